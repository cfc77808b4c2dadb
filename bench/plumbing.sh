#!/usr/bin/env bash
# How long a change of security group rules takes on a host with 10, 100 and 1,000 ports, in namespaces of its own. Run as root; ends
# within 2 minutes after the build.
#
#   bench rules ports=… update_ms=… member_ms=… port_ms=… nft_ms=…
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
((EUID == 0)) || {
	echo "bench: run me as root: it makes network namespaces" >&2
	exit 1
}
profile=${BENCH_PROFILE:-release}
echo "bench: building ($profile)" >&2
options=()
[[ $profile != release ]] || options=(--release)
(cd "$root" && cargo build "${options[@]}" --locked --quiet -p berth-agent --example plumbing)
[[ $profile == release ]] && directory=release || directory=debug
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A /run of its own: namespaces have names below it.
unshare --net --mount sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' sh \
	"$root/target/$directory/examples/plumbing" "$work"
