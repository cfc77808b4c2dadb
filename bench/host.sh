#!/usr/bin/env bash
# What an agent costs on its host, with a real libvirt and emulated guests: how long until a guest runs, and how much
# memory and processor time the agent takes. The hypervisor is made of namespaces, as in the tests. Run as root; boot ends
# within 3 minutes after the build, agent within 10.
#
#   bench boot berth_ms=… by_hand_ms=… ratio=…             medians of alternating turns
#   bench agent domains=… rss_mib=… idle_cpu_pct=… rss_anon_mib=… rss_file_mib=…
#
# host.sh boot|agent runs one of them.
set -euo pipefail
# shellcheck source=bench/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

boot() { "$bin/berth-bench" boot --pairs "${BENCH_PAIRS:-15}"; }
agent() { "$bin/berth-bench" domains --count "${BENCH_DOMAINS:-50}" --seconds "${BENCH_SECONDS:-60}"; }

what=${1:-all}
[[ $what =~ ^(all|boot|agent)$ && $# -le 1 ]] || die "usage: host.sh [boot|agent]"
build
"$root/scripts/guest-image.sh" >&2
prepare host
case $what in
all)
	boot
	agent
	;;
*) "$what" ;;
esac
