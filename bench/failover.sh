#!/usr/bin/env bash
# How long until the scheduler that stands by places requests, after the one that leads was killed (SIGKILL) or frozen
# (SIGSTOP) under load. Two schedulers on one PostgreSQL database and one broker, simulated agents. Run as root; ends
# within 3 minutes after the build.
#
#   bench failover mode=kill seconds=…       from the signal to the first request, sent after it, that was granted
#   bench failover mode=freeze seconds=…
#
# The leader is the one whose metric berth_scheduler_leader is 1. failover.sh kill|freeze runs one of them.
set -euo pipefail
# shellcheck source=bench/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

psql_server() { PGPASSWORD=berth psql -X -q -d "${BERTH_TEST_POSTGRES}postgres" -c "$1"; }

leads() { (($(metric berth_scheduler_leader) == 1)); }

failover() {
	local mode=$1 database=berth_bench_${$}_$1 first second
	psql_server "CREATE DATABASE $database"
	databases+=("$database")
	start_scheduler "first-$mode" "$BERTH_TEST_POSTGRES$database"
	first=$scheduler@$listen
	wait_for "the first scheduler to lead" "$start_limit" leads
	start_scheduler "second-$mode" "$BERTH_TEST_POSTGRES$database"
	second=$scheduler@$listen
	listen=${first#*@}
	start_sim "${BENCH_HOSTS:-20}" --name-prefix "$mode" --vcpus 128 --memory-mb 1048576 --disk-gb 10000
	"$bin/berth-bench" --bus-url "$bus_url" failover --mode "$mode" --scheduler "$first" --scheduler "$second" --limit 60
	end "${first%@*}" "${second%@*}" "$sim"
}

databases=()
clean_more() {
	local database
	for database in "${databases[@]}"; do
		psql_server "DROP DATABASE $database WITH (FORCE)" || say "the database $database is left"
	done
}

what=${1:-all}
[[ $what =~ ^(all|kill|freeze)$ && $# -le 1 ]] || die "usage: failover.sh [kill|freeze]"
build
prepare failover
case $what in
all)
	failover kill
	failover freeze
	;;
*) failover "$what" ;;
esac
