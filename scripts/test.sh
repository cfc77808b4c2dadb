#!/usr/bin/env bash
# Every test of berth: formatting and lints, unit and property tests, the bus and store suites against a real
# broker and real databases, the agent against a real kernel and libvirt, whole clouds. Installs what is missing
# and starts the services it needs; a tier that cannot run is a failure. Run as root.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh

current=start
tier() {
	current=$1
	printf '\n== %s (%ds)\n' "$current" "$SECONDS"
}
ended() {
	local status=$?
	trap - EXIT
	[[ -z ${lvm_other:-} ]] || kill -- -"$lvm_other" 2>/dev/null || true
	if [[ $current != start ]]; then scripts/test-services.sh stop >/dev/null || ((status != 0)) || status=1; fi
	((status == 0)) || printf '\n== FAILED: %s (exit code %d, %ds)\n' "$current" "$status" "$SECONDS" >&2
	exit "$status"
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

((EUID == 0)) || {
	echo "test: run as root: the tests make network namespaces and virtual machines" >&2
	exit 1
}

tier "packages"
scripts/install-packages.sh all

tier "services and guest"
scripts/test-services.sh start
variables=$(scripts/test-services.sh env)
eval "$variables"
scripts/guest-image.sh

tier "formatting and lints"
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
# Not among all targets: they are no tests that cargo runs by itself.
cargo clippy --workspace --test lvm --test vlan --locked -- -D warnings

tier "build of the tests"
cargo test --workspace --locked --no-run

# The laws of the bus restart the broker, so no two test binaries may run at once, and the clouds come after them.
# cargo runs one binary after the other: keep it so.
tier "unit, bus, store and agent tests"
cargo test --workspace --locked --exclude berth-tests

# What the running kernel may not have. The tests are not among those above, and fail where they cannot run.
tier "storage pools, VLANs and the packet filter on Debian's stock kernel"
mapfile -t kernel_tests < <(cargo test --workspace --test filter --test lvm --test vlan --locked --no-run --message-format=json |
	jq -r 'select(.reason == "compiler-artifact" and (.target.name | IN("filter", "lvm", "vlan"))) | "\(.target.name) \(.executable)"' |
	sort | cut -d' ' -f2)
((${#kernel_tests[@]} == 3))
filter_test=${kernel_tests[0]} lvm_test=${kernel_tests[1]} vlan_test=${kernel_tests[2]}
# Of the packet filter what depends on how connections are tracked: there the bridge does it, which the running kernel may not.
filter_names=(
	a_transfer_loses_nothing_when_rules_change_and_stops_when_its_rule_goes
	networks_with_the_same_addresses_do_not_mix
	nothing_of_a_hostile_guest_reaches_anyone_and_all_of_it_is_counted
)
# One test at a time has a kernel. Two machines work at once: an emulated one works on one core for most of the time. One has a
# quarter of the tests of pools, after those of networks.
mapfile -t lvm_names < <("$lvm_test" --list --format terse | sed -n 's/: test$//p')
((${#lvm_names[@]} > 2))
lvm_few=() lvm_many=()
for index in "${!lvm_names[@]}"; do
	if ((index % 4)); then lvm_many+=("${lvm_names[index]}"); else lvm_few+=("${lvm_names[index]}"); fi
done
lvm_log=$(mktemp)
setsid scripts/stock-kernel.sh --limit 1200 "$lvm_test" --test-threads=1 --exact "${lvm_many[@]}" >"$lvm_log" 2>&1 &
lvm_other=$!
lvm_status=0
# shellcheck disable=SC2016
scripts/stock-kernel.sh --limit 1200 bash -c '"$1" --test-threads=1 && BERTH_TEST_STATEFUL=Bridge "$2" --test-threads=1 --exact $3 && shift 3 && exec "$@"' bash \
	"$vlan_test" "$filter_test" "${filter_names[*]}" "$lvm_test" --test-threads=1 --exact "${lvm_few[@]}" || lvm_status=$?
wait "$lvm_other" || lvm_status=$?
lvm_other=
cat "$lvm_log"
rm -f "$lvm_log"
((lvm_status == 0))

# The services as users get them. The tests were built with tokio's test-util and other features that only they ask
# for, so this compiles tokio and what stands on it a second time, once per change of the lock file.
tier "build of the services"
cargo build --workspace --locked

# --workspace and not -p: cargo then chooses the features of dependencies as above, and compiles none of them again.
tier "whole clouds"
cargo test --workspace --locked --test cloud -- --test-threads=2

printf '\n== all tests passed (%ds)\n' "$SECONDS"
