#!/usr/bin/env bash
# What many hosts cost the scheduler: its processor time while 1,000 simulated agents send heartbeats every 10 s, and
# its memory over a database of 10,000 hosts and 100,000 instances. Run as root; each ends within 4 minutes after the
# build.
#
#   bench heartbeats agents=… scheduler_cpu_pct=…        of one core, over 40 s without requests; and again, over a
#                                                        minute, with BENCH_PER_HOST (10) instances on each
#   bench memory hosts=… instances=… rss_mib=…           after it has served requests
#
# scale.sh heartbeats|memory runs one of them. BENCH_AGENTS, BENCH_HOSTS, BENCH_INSTANCES change the sizes.
set -euo pipefail
# shellcheck source=bench/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

heartbeats() {
	local agents=${BENCH_AGENTS:-1000} pct before agents_before
	start_scheduler scheduler "sqlite://$work/heartbeats.db"
	start_sim "$agents" --heartbeat-seconds 10
	# The first facts of all hosts are written down once; what counts is every minute after that.
	sleep 15
	before=$(metric berth_scheduler_heartbeats_total) agents_before=$(cpu_ticks "$sim")
	pct=$(cpu_pct "$scheduler" 40)
	printf 'bench heartbeats agents=%d scheduler_cpu_pct=%s heartbeats=%d seconds=40 scheduler_rss_mib=%s ' "$agents" \
		"$pct" $(($(metric berth_scheduler_heartbeats_total) - before)) "$(rss_mib "$scheduler")"
	printf 'agents_cpu_ticks=%d agents_rss_mib=%s agents_threads=%d\n' $(($(cpu_ticks "$sim") - agents_before)) \
		"$(rss_mib "$sim")" "$(awk '/^Threads:/ { print $2 }' "/proc/$sim/status")"
	# The same with instances, of which every host tells all once a minute.
	local instances=$((agents * ${BENCH_PER_HOST:-10}))
	"$bin/berth-bench" --bus-url "$bus_url" load --count "$instances" --in-flight 256 --seconds 60 >&2
	sleep 20
	pct=$(cpu_pct "$scheduler" 60)
	printf 'bench heartbeats agents=%d scheduler_cpu_pct=%s instances=%d seconds=60 scheduler_rss_mib=%s\n' "$agents" \
		"$pct" "$instances" "$(rss_mib "$scheduler")"
	end "$sim" "$scheduler"
}

takes_requests() { rabbitctl list_queues -p "$name" name | grep -x scheduler; }

memory() {
	local hosts=${BENCH_HOSTS:-10000} instances=${BENCH_INSTANCES:-100000} filled=$SECONDS idle
	"$bin/examples/fill-database" "sqlite://$work/memory.db" "$hosts" "$instances"
	say "filled in $((SECONDS - filled)) s"
	start_scheduler scheduler "sqlite://$work/memory.db"
	wait_for "the queue of requests" "$start_limit" takes_requests
	idle=$(rss_mib "$scheduler")
	"$bin/berth-bench" --bus-url "$bus_url" load --count 50 --in-flight 4 --seconds 25 >&2
	printf 'bench memory hosts=%d instances=%d rss_mib=%s rss_at_start_mib=%s peak_mib=%s\n' "$hosts" "$instances" \
		"$(rss_mib "$scheduler")" "$idle" "$(awk '/^VmHWM:/ { printf "%.1f", $2 / 1024 }' "/proc/$scheduler/status")"
	end "$scheduler"
}

what=${1:-all}
[[ $what =~ ^(all|heartbeats|memory)$ && $# -le 1 ]] || die "usage: scale.sh [heartbeats|memory]"
build
(cd "$root" && cargo build --release --locked --quiet -p berth-scheduler --example fill-database)
prepare scale
case $what in
all)
	heartbeats
	memory
	;;
*) "$what" ;;
esac
