#!/usr/bin/env bash
# What networks cost on a host, by the agent's own code, in network, mount and process namespaces of their own. Run as root; ends
# within 15 minutes after the build.
#
# build: 100 ports, over 10 networks and in one, built and removed, beside the same end state by hand: one `ip -batch` for the
# host's links, in each namespace a shell that sets the switches and runs one `ip -batch`, and one `nft -f`. In turns on two hosts;
# what is there afterwards is compared, and nothing is printed if it differs. Taps are there before, as libvirt makes them, and both
# put them into their bridges. DHCP servers and metadata services are started by neither; their files are written by the agent alone.
#
#   bench plumbing ports=… networks=… berth_ms=… by_hand_ms=… ratio=… berth_build_ms=… by_hand_build_ms=… …
#
# rules: how long a change of security group rules takes with 10, 100 and 1,000 ports in one network, with their taps in its bridge.
#
#   bench rules ports=… update_ms=… member_ms=… port_ms=… nft_ms=… transaction_bytes=…
#   bench rules-growth from=10 to=1000 update=…
#
# plumbing.sh build|rules runs one of them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
die() {
	printf 'bench: %s\n' "$*" >&2
	exit 1
}
what=${1:-all}
[[ $what =~ ^(all|build|rules)$ && $# -le 1 ]] || die "usage: plumbing.sh [build|rules]"
((EUID == 0)) || die "run me as root: it makes network namespaces"
profile=${BENCH_PROFILE:-release}
echo "bench: building ($profile)" >&2
options=()
[[ $profile != release ]] || options=(--release)
(cd "$root" && cargo build "${options[@]}" --locked --quiet -p berth-agent --example plumbing)
[[ $profile == release ]] && directory=release || directory=debug
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# dnsmasq's files are below it.
chmod 0711 "$work"

# plumbing ARGUMENTS...: on a host of its own, whose namespaces and processes end with it. A /run of its own: namespaces have names
# below it.
plumbing() {
	# shellcheck disable=SC2016 # it is the inner shell's
	timeout -k 5 240 unshare --net --mount --pid --fork --kill-child --mount-proc \
		sh -c 'mount -t tmpfs tmpfs /run && "$@"; exit $?' sh \
		"$root/target/$directory/examples/plumbing" "$work" "$@"
}

if [[ $what != rules ]]; then
	plumbing build 10 100 "${BENCH_PAIRS:-9}"
	plumbing build 1 100 "${BENCH_PAIRS:-9}"
fi
if [[ $what != build ]]; then
	for ports in 10 100 1000; do
		plumbing rules "$ports"
	done | tee "$work/rules"
	awk '{
		for (field = 1; field <= NF; field++) {
			split($field, pair, "=")
			figures[pair[1]] = pair[2]
		}
		update[figures["ports"]] = figures["update_ms"]
	} END { printf "bench rules-growth from=10 to=1000 update=%.2f\n", update[1000] / update[10] }' "$work/rules"
fi
