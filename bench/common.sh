# shellcheck shell=bash
# What the benchmarks share: a vhost of its own on the tests' services, processes that end with the script, figures.
# Sourced, not run.
# shellcheck disable=SC2034 # used by those that source it

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
bin=$root/target/release
# Seconds until a started program must answer.
start_limit=60

say() { printf 'bench: %s\n' "$*" >&2; }
die() {
	printf 'bench: %s\n' "$*" >&2
	exit 1
}

# build: release builds of what is measured and of the client. In one call and the same for every benchmark: with
# other packages cargo chooses other features, and compiles everything below them again.
build() {
	say "building (release)"
	(cd "$root" && cargo build --release --locked --quiet -p berth-scheduler -p berth-agent -p berth-tests \
		--bin berth-scheduler --bin berth-agent --bin berth-metadata --bin berth-agent-sim --bin berth-bench)
}

# prepare NAME: services, an empty vhost, a directory for everything else. All of it goes at the end, the services
# only if they did not run before.
prepare() {
	((EUID == 0)) || die "run me as root: the services run as users of their own"
	name=$1-$$
	scripts=$root/scripts
	if "$scripts/test-services.sh" status >/dev/null 2>&1; then services_were_up=1; else services_were_up=; fi
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	"$scripts/test-services.sh" start >&2
	eval "$("$scripts/test-services.sh" env)"
	# The database of a scheduler is on a real disk, not in memory.
	mkdir -p "$root/.cache"
	work=$(mktemp -d "$root/.cache/bench-$name.XXXX")
	rabbitctl add_vhost "$name"
	vhost_made=1
	rabbitctl set_permissions -p "$name" berth '.*' '.*' '.*'
	bus_url=$BERTH_TEST_AMQP/$name
}
rabbitctl() { "$BERTH_TEST_RABBITMQCTL" -q "$@"; }

pids=()
# What a benchmark cleans up beyond that, when nothing runs any more.
clean_more() { :; }
cleanup() {
	local status=$?
	trap - EXIT
	end "${pids[@]}"
	clean_more
	[[ -z ${vhost_made:-} ]] || rabbitctl --timeout 120 delete_vhost "$name" || say "the vhost $name is left"
	[[ -z ${work:-} ]] || {
		if ((status != 0)); then tail -n 5 "$work"/*.log >&2 2>/dev/null || true; fi
		rm -rf "$work"
	}
	[[ -n ${services_were_up:-} ]] || "$scripts/test-services.sh" stop >&2
	exit "$status"
}
# end PID...: in order, or else by force; only what this script started, whatever has got an old pid meanwhile.
end() {
	local pid limit=$((SECONDS + 20))
	for pid in "$@"; do
		if runs "$pid"; then kill -CONT "$pid" && kill -TERM "$pid"; fi
	done
	for pid in "$@"; do
		while runs "$pid"; do
			if ((SECONDS >= limit)); then kill -KILL "$pid"; fi
			sleep 0.1
		done
	done
}
# runs PID: whether this child of the script has not ended.
runs() { [[ $(ps -o ppid=,stat= -p "$1") =~ ^\ *$$\ +[^Z] ]]; }

# start NAME COMMAND...: in the background, logging to a file; its pid is in `started`.
start() {
	local log=$work/$1.log
	shift
	"$@" >"$log" 2>&1 </dev/null &
	started=$!
	pids+=("$started")
}

# free_port: a port of 127.0.0.1 that nobody listens on.
free_port() {
	local port
	for ((port = 19700 + RANDOM % 200; ; port++)); do
		[[ -n $(ss -Hltn "sport = :$port") ]] || break
	done
	printf '%s\n' "$port"
}

# start_scheduler NAME STORE_URL: `scheduler` is its pid, `listen` its /metrics. Documents are published once in the
# time of a benchmark, so that the counter of published ones counts each once.
start_scheduler() {
	listen=127.0.0.1:$(free_port)
	cat >"$work/$1.toml" <<-CONF
		[bus]
		url = "$bus_url"
		[store]
		url = "$2"
		[dispatch]
		republish_seconds = 120
		[telemetry]
		listen = "$listen"
		[log]
		filter = "warn,lapin=error"
	CONF
	start "$1" "$bin/berth-scheduler" --config "$work/$1.toml"
	scheduler=$started
	wait_for "the start of the scheduler" "$start_limit" metrics
}

# start_sim COUNT OPTION...: simulated hosts; returns when the scheduler knows all of them.
start_sim() {
	local count=$1
	shift
	start agents "$bin/berth-agent-sim" --bus-url "$bus_url" --count "$count" "$@"
	sim=$started
	wait_for "$count hosts" 90 hosts_up "$count"
}
hosts_up() { (($(metric 'berth_scheduler_hosts{state="up"}') >= $1)); }

metrics() { curl -sf "http://$listen/metrics"; }
# metric SERIES: its value, without decimals; 0 while there is none.
metric() { metrics | awk -v series="$1" 'index($0, series " ") == 1 { value = $NF } END { printf "%d\n", value }'; }

# wait_for WHAT SECONDS COMMAND...
wait_for() {
	local what=$1 end=$((SECONDS + $2))
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || die "$what did not come about"
		sleep 0.2
	done
}

# cpu_ticks PID: user and system time so far, in ticks. The name of the program, in brackets, may hold spaces.
cpu_ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
# cpu_pct PID SECONDS: of one core, measured over this time.
cpu_pct() {
	local before after
	before=$(cpu_ticks "$1")
	sleep "$2"
	after=$(cpu_ticks "$1")
	awk -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v seconds="$2" \
		'BEGIN { printf "%.2f", 100 * ticks / hz / seconds }'
}
# rss_mib PID: resident memory in MiB.
rss_mib() { awk '/^VmRSS:/ { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }
