#!/usr/bin/env bash
# Durable placements through RabbitMQ (request, committed claim, confirmed document) beside what the same broker does
# for bare confirmed publishes of documents of the same size, in turns. Run as root; ends within 2 minutes after the
# build.
#
#   bench durable placements_per_s=… broker_per_s=… ratio=… in_flight=…
#   bench durable-cpu process=… us_per_placement=… us_per_publish=…      processor time, of all that share the machine
#
# BENCH_IN_FLIGHT (256 1000): requests under way at once; BENCH_HOSTS (200): simulated hosts.
set -euo pipefail
# shellcheck source=bench/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

hosts=${BENCH_HOSTS:-200}
build
prepare durable
start_scheduler scheduler "sqlite://$work/berth.db"
start_sim "$hosts" --vcpus 128 --memory-mb 1048576 --disk-gb 10000
broker=$(rabbitctl eval 'os:getpid().' | tr -d '"')
for in_flight in ${BENCH_IN_FLIGHT:-256 1000}; do
	"$bin/berth-bench" --bus-url "$bus_url" durable --metrics "$listen" --in-flight "$in_flight" \
		--process "broker=$broker" --process "scheduler=$scheduler" --process "agents=$sim"
done
