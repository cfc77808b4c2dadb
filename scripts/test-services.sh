#!/usr/bin/env bash
# The private broker and databases of berth's tests: RabbitMQ, PostgreSQL and MariaDB with ports, users and
# data of their own, so that a service which the machine already runs is never touched. Run as root.
#
#   scripts/test-services.sh start    start what does not run and wait until each answers; may be repeated
#   scripts/test-services.sh stop     end exactly these processes and remove their data
#   scripts/test-services.sh status   one line per service; fails unless all three run
#   scripts/test-services.sh env      shell lines that tell the tests where everything is
#
# After a crash (kill -9) `start` brings a service back on the same port with the same data.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state="$root/.cache/test-services"

# First choice of each port; the next free one is taken instead, and kept until `stop`.
amqp_port_first=25673
epmd_port_first=25700
dist_port_first=25720
postgres_port_first=25432
mariadb_port_first=23306
# Seconds until a started service must answer.
start_limit=60
# Seconds for an orderly end before SIGKILL.
stop_limit=15

say() { printf 'test-services: %s\n' "$*"; }
die() {
	printf 'test-services: %s\n' "$*" >&2
	exit 1
}

# The daemons run as users of their own, who must reach their data, and a socket path has at most 107 bytes.
# A checkout below a closed directory such as /root, or a very long path, keeps the data in /var/tmp instead.
data_directory() {
	mkdir -p "$state"
	if ((${#state} <= 70)) && setpriv --reuid nobody --regid nogroup --clear-groups test -x "$state"; then
		printf '%s\n' "$state"
	else
		printf '/var/tmp/berth-test-services-%s\n' "$(printf '%s' "$root" | sha256sum | cut -c1-12)"
	fi
}

as_user() {
	local user=$1
	shift
	setpriv --reuid "$user" --regid "$user" --init-groups --reset-env "$@"
}

# port NAME FIRST: the port this service had, or the first free one from FIRST on.
port() {
	local file="$base/ports/$1" port
	if [[ ! -f $file ]]; then
		for ((port = $2; port < $2 + 20; port++)); do
			[[ -n $(ss -Hltn "sport = :$port") ]] || break
		done
		((port < $2 + 20)) || die "no free port for $1 between $2 and $port"
		printf '%s\n' "$port" >"$file"
	fi
	cat "$file"
}

# The pid of service $1 if it runs. A pid file of old may name somebody else's process by now: only a process
# whose environment carries our mark counts.
pid_of() {
	local file="$base/pids/$1" pid
	[[ -f $file ]] || return 1
	pid=$(<"$file")
	[[ -r /proc/$pid/environ ]] || return 1
	{ tr '\0' '\n' <"/proc/$pid/environ"; } 2>/dev/null | grep -qxF "BERTH_TEST_SERVICE=$base/$1" || return 1
	printf '%s\n' "$pid"
}

# Whether the process that was started as service $1 is there. The pid alone decides: between fork and exec its
# environment does not carry our mark yet. One that is dead but not waited for does not count.
exists() {
	local pid stat
	pid=$(<"$base/pids/$1")
	{ stat=$(<"/proc/$pid/stat"); } 2>/dev/null && [[ $stat != *') Z '* ]]
}

# spawn NAME USER COMMAND...: in a session of its own, logging to a file, pid kept. setpriv and setsid both
# replace themselves, so the pid is the daemon's.
spawn() {
	local name=$1 user=$2
	shift 2
	setsid setpriv --reuid "$user" --regid "$user" --init-groups --reset-env \
		env BERTH_TEST_SERVICE="$base/$name" "$@" >>"$base/log/$name.log" 2>&1 </dev/null 9>&- &
	printf '%s\n' $! >"$base/pids/$name"
}

# Files ------------------------------------------------------------------------------------------------------

prepare() {
	install -d -m 755 "$base" "$base"/{ports,pids,log}
	amqp_port=$(port amqp $amqp_port_first)
	epmd_port=$(port epmd $epmd_port_first)
	dist_port=$(port dist $dist_port_first)
	postgres_port=$(port postgres $postgres_port_first)
	mariadb_port=$(port mariadb $mariadb_port_first)
}

# RUNNING_UNDER_SYSTEMD makes the start script replace itself, so that the pid is the broker's own.
rabbit_environment() {
	cat <<-VARS
		HOME=$base/rabbitmq
		LANG=C.UTF-8
		PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin
		ERL_EPMD_PORT=$epmd_port
		ERL_EPMD_ADDRESS=127.0.0.1
		RABBITMQ_NODENAME=berth-test@localhost
		RUNNING_UNDER_SYSTEMD=1
		RABBITMQ_CONF_ENV_FILE=$base/rabbitmq/none.conf
		RABBITMQ_CONFIG_FILE=$base/rabbitmq/rabbitmq.conf
		RABBITMQ_ADVANCED_CONFIG_FILE=$base/rabbitmq/none.config
		RABBITMQ_ENABLED_PLUGINS_FILE=$base/rabbitmq/enabled_plugins
		RABBITMQ_MNESIA_BASE=$base/rabbitmq/mnesia
		RABBITMQ_LOG_BASE=$base/rabbitmq/log
		RABBITMQ_GENERATED_CONFIG_DIR=$base/rabbitmq/generated
		RABBITMQ_NODE_PORT=$amqp_port
		RABBITMQ_DIST_PORT=$dist_port
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
	VARS
}

prepare_rabbit() {
	local line home="$base/rabbitmq"
	if [[ ! -f $home/.erlang.cookie ]]; then
		install -d -m 750 -o rabbitmq -g rabbitmq "$home" "$home"/{mnesia,log,generated}
		(
			umask 077
			od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$home/.erlang.cookie"
		)
		chmod 400 "$home/.erlang.cookie"
		chown rabbitmq:rabbitmq "$home/.erlang.cookie"
		printf '[].\n' >"$home/enabled_plugins"
		# Hosts of the tests live in network namespaces, so the broker listens on every address.
		cat >"$home/rabbitmq.conf" <<-CONF
			listeners.tcp.default = $amqp_port
			loopback_users = none
			default_user = berth
			default_pass = berth
			default_user_tags.administrator = true
			default_permissions.configure = .*
			default_permissions.read = .*
			default_permissions.write = .*
			disk_free_limit.absolute = 200MB
			log.console = false
		CONF
		chmod 644 "$home/enabled_plugins" "$home/rabbitmq.conf"
	fi
	# What the tests call to look at and shake this broker.
	{
		printf '#!/bin/sh\n# rabbitmqctl against the broker of the tests. Written by scripts/test-services.sh.\n'
		printf 'cd / && exec setpriv --reuid rabbitmq --regid rabbitmq --init-groups --reset-env env'
		while read -r line; do printf " \\\\\n\t'%s'" "$line"; done < <(rabbit_environment)
		printf " \\\\\n\t/usr/lib/rabbitmq/bin/rabbitmqctl \"\$@\"\n"
	} >"$base/rabbitmqctl.new"
	chmod 755 "$base/rabbitmqctl.new"
	mv "$base/rabbitmqctl.new" "$base/rabbitmqctl"
}

prepare_postgres() {
	local data="$base/postgres/data"
	[[ ! -f $base/postgres/ready ]] || return 0
	rm -rf "$base/postgres"
	install -d -m 750 -o postgres -g postgres "$base/postgres"
	printf 'berth\n' >"$base/postgres/password"
	(cd / && as_user postgres "$postgres_bin/initdb" -D "$data" -U postgres -A scram-sha-256 --auth-local=peer \
		-E UTF8 --locale=C.UTF-8 --no-sync --no-instructions --pwfile="$base/postgres/password") \
		>>"$base/log/postgres.log" 2>&1 || die "initdb failed, see $base/log/postgres.log"
	cat >>"$data/postgresql.conf" <<-CONF
		listen_addresses = '127.0.0.1'
		port = $postgres_port
		unix_socket_directories = '$base/postgres'
		max_connections = 200
		shared_buffers = 32MB
		# Test data: speed before safety.
		fsync = off
		full_page_writes = off
		synchronous_commit = off
		# While a vacuum is at work in a database, nobody but a superuser can drop it by force.
		autovacuum = off
	CONF
	touch "$base/postgres/ready"
}

prepare_mariadb() {
	[[ ! -f $base/mariadb/ready ]] || return 0
	rm -rf "$base/mariadb"
	install -d -m 755 -o mysql -g mysql "$base/mariadb"
	(cd / && mariadb-install-db --no-defaults --datadir="$base/mariadb/data" --user=mysql --skip-test-db \
		--auth-root-authentication-method=socket --skip-name-resolve --innodb-flush-log-at-trx-commit=0) \
		>>"$base/log/mariadb.log" 2>&1 || die "mariadb-install-db failed, see $base/log/mariadb.log"
	touch "$base/mariadb/ready"
}

# Processes --------------------------------------------------------------------------------------------------

# Erlang's name server on a port of its own: the broker, even one that runs, registers with it again.
start_epmd() {
	if ! pid_of epmd >/dev/null; then
		spawn epmd rabbitmq epmd -port "$epmd_port" -address 127.0.0.1
		await epmd answers_tcp "$epmd_port"
	fi
}

start_rabbit() {
	local -a variables
	mapfile -t variables < <(rabbit_environment)
	(cd / && spawn rabbitmq rabbitmq "${variables[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server)
}

# A killed postmaster leaves its lock files, and for a moment its children, and the next one refuses to start
# beside them. They all work in the data directory: when nobody does, the files are leftovers.
start_postgres() {
	local data="$base/postgres/data" end=$((SECONDS + stop_limit))
	while [[ -n $(find /proc -maxdepth 2 -path '/proc/[0-9]*/cwd' -lname "$data" 2>/dev/null) ]]; do
		((SECONDS < end)) || fail "processes of a killed postgres still work in $data"
		sleep 0.1
	done
	rm -f "$data/postmaster.pid" "$base/postgres"/.s.PGSQL.*
	(cd / && spawn postgres postgres "$postgres_bin/postgres" -D "$data")
}

start_mariadb() {
	(cd / && spawn mariadb mysql /usr/sbin/mariadbd --no-defaults --datadir="$base/mariadb/data" \
		--socket="$base/mariadb/socket" --pid-file="$base/mariadb/pid" --port="$mariadb_port" \
		--bind-address=127.0.0.1 --skip-name-resolve --character-set-server=utf8mb4 \
		--collation-server=utf8mb4_general_ci --innodb-flush-log-at-trx-commit=0 \
		--innodb-buffer-pool-size=64M --max-connections=200)
}

answers_tcp() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
rabbit_answers() {
	answers_tcp "$amqp_port" && "$base/rabbitmqctl" -q await_startup --timeout 30 >/dev/null 2>&1
}
# shellcheck disable=SC2120 # `await` passes arguments
postgres_sql() {
	(cd / && as_user postgres psql -X -q -v ON_ERROR_STOP=1 -h "$base/postgres" -p "$postgres_port" -d postgres "$@")
}
# shellcheck disable=SC2120 # `await` passes arguments
mariadb_sql() { mariadb --no-defaults --socket="$base/mariadb/socket" -u root "$@"; }

# Roles are made whenever they are missing, so that a start that was interrupted is finished by the next.
postgres_role() {
	# shellcheck disable=SC2119
	postgres_sql >>"$base/log/postgres.log" 2>&1 <<-'SQL'
		DO $$ BEGIN
			IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'berth') THEN
				CREATE ROLE berth LOGIN CREATEDB PASSWORD 'berth';
			END IF;
		END $$;
	SQL
	PGPASSWORD=berth psql -X -q -h 127.0.0.1 -p "$postgres_port" -U berth -d postgres -c 'SELECT 1' >/dev/null
}
mariadb_role() {
	# shellcheck disable=SC2119
	mariadb_sql >>"$base/log/mariadb.log" 2>&1 <<-'SQL'
		CREATE USER IF NOT EXISTS berth@localhost IDENTIFIED BY 'berth';
		CREATE USER IF NOT EXISTS berth@127.0.0.1 IDENTIFIED BY 'berth';
		GRANT ALL PRIVILEGES ON *.* TO berth@localhost WITH GRANT OPTION;
		GRANT ALL PRIVILEGES ON *.* TO berth@127.0.0.1 WITH GRANT OPTION;
	SQL
	mariadb --no-defaults -h 127.0.0.1 -P "$mariadb_port" -u berth -pberth -e 'SELECT 1' >/dev/null
}

# await NAME COMMAND...: until the command succeeds; at once an error when the process is gone.
await() {
	local name=$1 end=$((SECONDS + start_limit))
	shift
	until "$@" 2>/dev/null; do
		exists "$name" || fail "$name ended before it answered"
		((SECONDS < end)) || fail "$name does not answer after $start_limit s"
		sleep 0.1
	done
}

fail() {
	tail -n 8 "$base"/log/*.log "$base"/rabbitmq/log/*.log >&2 2>/dev/null || true
	die "$1; logs are in $base/log"
}

start() {
	local started=$SECONDS name
	local -a fresh=()
	need_programs
	prepare
	for name in rabbitmq postgres mariadb; do
		pid_of "$name" >/dev/null || fresh+=("$name")
	done
	start_epmd
	for name in "${fresh[@]}"; do
		say "starting $name"
		case $name in
		rabbitmq) prepare_rabbit && start_rabbit ;;
		postgres) prepare_postgres && start_postgres ;;
		mariadb) prepare_mariadb && start_mariadb ;;
		esac
	done
	await postgres postgres_sql -c 'SELECT 1' -o /dev/null
	await mariadb mariadb_sql -e 'SELECT 1' -r >/dev/null
	postgres_role || fail "postgres does not take its role"
	mariadb_role || fail "mariadb does not take its user"
	await rabbitmq rabbit_answers
	if ((${#fresh[@]} > 0)); then
		say "ready after $((SECONDS - started)) s: rabbitmq :$amqp_port, postgres :$postgres_port, mariadb :$mariadb_port"
	else
		say "all running"
	fi
}

need_programs() {
	local missing=() program
	postgres_bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
	[[ -x $postgres_bin/initdb ]] || missing+=(postgresql)
	for program in /usr/lib/rabbitmq/bin/rabbitmq-server:rabbitmq-server /usr/sbin/mariadbd:mariadb-server \
		/usr/bin/psql:postgresql-client /usr/bin/mariadb:mariadb-client; do
		[[ -x ${program%%:*} ]] || missing+=("${program##*:}")
	done
	((${#missing[@]} == 0)) || die "missing ${missing[*]}: run scripts/install-packages.sh run test"
}

# Waits until service $1 is gone.
ends() {
	local end=$((SECONDS + stop_limit))
	while exists "$1"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

stop() {
	local name pid
	# The signal for an orderly end: PostgreSQL's SIGINT does not wait for its clients. epmd comes last.
	for name in rabbitmq:TERM postgres:INT mariadb:TERM epmd:TERM; do
		if pid=$(pid_of "${name%%:*}"); then
			say "stopping ${name%%:*} ($pid)"
			kill -s "${name##*:}" "$pid" 2>/dev/null || true
			ends "${name%%:*}" || {
				say "${name%%:*} ignores its signal, killing it"
				kill -KILL "$pid" 2>/dev/null || true
				# It writes to its data until it is gone.
				ends "${name%%:*}" || die "${name%%:*} ($pid) does not end, its data stays"
			}
		fi
	done
	rm -rf "$base" "$state"
	say "stopped, data removed"
}

status() {
	local name pid result=0
	for name in rabbitmq:amqp postgres:postgres mariadb:mariadb; do
		if pid=$(pid_of "${name%%:*}"); then
			say "${name%%:*} runs: pid $pid, port $(cat "$base/ports/${name##*:}")"
		else
			say "${name%%:*} does not run"
			result=1
		fi
	done
	return $result
}

print_env() {
	[[ -d $base/ports ]] || die "not started: run scripts/test-services.sh start"
	prepare
	cat <<-VARS
		export BERTH_TEST_AMQP=amqp://berth:berth@127.0.0.1:$amqp_port
		export BERTH_TEST_POSTGRES=postgres://berth:berth@127.0.0.1:$postgres_port/
		export BERTH_TEST_MARIADB=mysql://berth:berth@127.0.0.1:$mariadb_port/
		export BERTH_TEST_RABBITMQCTL=$(printf %q "$base/rabbitmqctl")
		export BERTH_TEST_GUEST_IMAGE=$(printf %q "$root/.cache/guest/berth-guest.qcow2")
	VARS
}

command=${1:-}
[[ $command =~ ^(start|stop|status|env)$ && $# == 1 ]] || die "usage: test-services.sh start|stop|status|env"
((EUID == 0)) || die "run me as root: the services run as users of their own"
base=$(data_directory)
# One start or stop at a time. The lock lies beside the state, which `stop` removes.
exec 9>"$state.lock"
flock -w 120 9 || die "another start or stop has been running for two minutes"
case $command in
start) start ;;
stop) stop ;;
status) status ;;
env) print_env ;;
esac
