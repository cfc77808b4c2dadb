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
	[[ -z ${kernel_machine:-} ]] || kill -- -"$kernel_machine" 2>/dev/null || true
	[[ -z ${kernel_log:-} ]] || rm -f "$kernel_log"
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
cargo clippy --workspace --test laws --test libvirt --test lvm --test usage --test vlan --locked -- -D warnings

# The services too: those are what the whole clouds run. They differ from what users get in features of libraries that only tests
# ask for, such as tokio's clock that can be stopped; to compile all that stands on tokio a second time takes minutes.
tier "build of the tests"
cargo build --workspace --tests --bins --locked
cargo test --workspace --locked --no-run
cargo test --workspace --test laws --test libvirt --test usage --locked --no-run
mapfile -t kernel_tests < <(cargo test --workspace --test filter --test lvm --test vlan --locked --no-run --message-format=json |
	jq -r 'select(.reason == "compiler-artifact" and (.target.name | IN("filter", "lvm", "vlan"))) | "\(.target.name) \(.executable)"' |
	sort | cut -d' ' -f2)
((${#kernel_tests[@]} == 3))

# libvirt waits for no longer than half a minute for what a starved QEMU does.
tier "agent with a real libvirt"
cargo test --workspace --locked --test laws --test libvirt --test usage

# What the running kernel may not have: a machine that works on one core beside the next tier, which waits for most of its time, and
# gives way to it. One test at a time has its kernel. Those of pools and VLANs are not among the tests below, and fail where they cannot
# run; of the packet filter those that depend on how connections are tracked: there the bridge does it, which the running kernel may not.
filter_names=(
	a_transfer_loses_nothing_when_rules_change_and_stops_when_its_rule_goes
	networks_with_the_same_addresses_do_not_mix
	no_tag_crosses_an_uplink_also_of_a_port_without_security
	nothing_of_a_hostile_guest_reaches_anyone_and_all_of_it_is_counted
	the_hosts_own_firewall_knows_answers_that_come_over_a_flat_network
	metadata_are_told_to_a_port_at_its_own_addresses_alone
	what_finds_addresses_and_neighbours_goes_no_further_than_the_link
	what_bridges_keep_to_themselves_reaches_neither_the_host_nor_its_tables
	what_metadata_tell_a_port_reaches_no_other
)
kernel_log=$(mktemp)
# shellcheck disable=SC2016
setsid nice -n 5 scripts/stock-kernel.sh --limit 3600 bash -ec \
	'"$2" --test-threads=1; "$3" --test-threads=1; BERTH_TEST_STATEFUL=Bridge "$1" --test-threads=1 --exact "${@:4}"' bash \
	"${kernel_tests[@]}" "${filter_names[@]}" >"$kernel_log" 2>&1 &
kernel_machine=$!

# The laws of the bus restart the broker, so no two test binaries may run at once, and the clouds come after them.
# cargo runs one binary after the other: keep it so.
tier "unit, bus, store and agent tests"
cargo test --workspace --locked --exclude berth-tests

tier "storage pools, VLANs and the packet filter on Debian's stock kernel"
kernel_status=0
wait "$kernel_machine" || kernel_status=$?
kernel_machine=
cat "$kernel_log"
rm -f "$kernel_log"
((kernel_status == 0))

# --workspace and not -p: cargo then chooses the features of dependencies as above, and compiles none of them again.
tier "whole clouds"
cargo test --workspace --locked --test cloud -- --test-threads=2

printf '\n== all tests passed (%ds)\n' "$SECONDS"
