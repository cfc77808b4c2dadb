#!/usr/bin/env bash
# From nothing to a VM that answers, on this machine: installs what is missing, builds, starts RabbitMQ and
# libvirtd if none runs, a scheduler on SQLite and one agent, and creates an instance through the queue.
# Running it again is harmless. `down.sh` removes every trace. Run as root on Debian 12.
set -euo pipefail
# shellcheck source=scripts/demo/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

((EUID == 0)) || die "run as root: it installs packages and makes virtual machines"
cd "$root"

# On any failure and on Ctrl-C: what the services said last, and the two ways on.
ended() {
	local status=$? log
	((status != 0)) || return 0
	for log in "$state"/berth-*.log "$broker/console.log"; do
		[[ -s $log ]] || continue
		printf '\n== the end of %s\n' "$log" >&2
		tail -n 15 "$log" >&2
	done
	printf '\ndemo: failed (exit code %d); "make demo" tries again, "make demo-down" removes everything\n' "$status" >&2
}
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# With systemd, the installation itself starts services. What did not run before the demo ends with it.
note_units() {
	has_systemd && [[ ! -f $run/units ]] || return 0
	local unit
	for unit in rabbitmq-server.service epmd.socket libvirtd.socket libvirtd.service virtlogd.socket virtlockd.socket; do
		systemctl is-active --quiet "$unit" || printf '%s\n' "$unit"
	done >"$run/units.new"
	mv "$run/units.new" "$run/units"
}

start_rabbitmq() {
	if rabbitmq_answers; then
		say "RabbitMQ runs already"
		return
	fi
	say "starting RabbitMQ (log: $broker/console.log)"
	prepare_broker
	if ! alive rabbitmq; then
		as_broker env "$broker_mark" setsid -f /usr/lib/rabbitmq/bin/rabbitmq-server >>"$broker/console.log" 2>&1 </dev/null
	fi
	wait_for "the start of RabbitMQ" 60 rabbitmq_answers
}

prepare_broker() {
	install -d -m 750 -o rabbitmq -g rabbitmq "$broker" "$broker"/{mnesia,log,generated}
	if [[ ! -s $broker/.erlang.cookie ]]; then
		(umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$broker/cookie.new")
		chown rabbitmq:rabbitmq "$broker/cookie.new"
		chmod 400 "$broker/cookie.new"
		mv "$broker/cookie.new" "$broker/.erlang.cookie"
	fi
	printf '[].\n' >"$broker/enabled_plugins"
	# Without the user guest: the first vhost and user are the demo's.
	install -m 640 -g rabbitmq /dev/stdin "$broker/rabbitmq.conf" <<-END
		listeners.tcp.local = 127.0.0.1:$broker_port
		default_vhost = $vhost
		default_user = $vhost
		default_pass = $(<"$run/password")
		disk_free_limit.absolute = 200MB
	END
}

# A password nobody needs to know.
make_password() {
	[[ ! -s $run/password ]] || return 0
	(umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$run/password.new")
	mv "$run/password.new" "$run/password"
}

# The demo's own vhost and user. Each step may be repeated, so that an interrupted run is finished by the next.
make_vhost() {
	local password
	password=$(<"$run/password")
	rabbitctl list_vhosts --no-table-headers | grep -x "$vhost" >/dev/null || rabbitctl add_vhost "$vhost"
	if rabbitctl list_users --no-table-headers | grep "^${vhost}[[:space:]]" >/dev/null; then
		(rabbitctl authenticate_user "$vhost" "$password") >/dev/null 2>&1 || rabbitctl change_password "$vhost" "$password"
	else
		rabbitctl add_user "$vhost" "$password"
	fi
	rabbitctl list_permissions -p "$vhost" --no-table-headers | grep "^${vhost}[[:space:]]" >/dev/null ||
		rabbitctl set_permissions -p "$vhost" "$vhost" '.*' '.*' '.*'
}

# The files hold the password.
write_config() (
	umask 077
	local url port=5672
	if own_broker; then port=$broker_port; fi
	url="amqp://$vhost:$(<"$run/password")@127.0.0.1:$port/$vhost"
	cat >"$state/scheduler.toml" <<-END
		[bus]
		url = "$url"
		[store]
		url = "sqlite://$state/berth.db"
		[telemetry]
		listen = "$scheduler_listen"
	END
	cat >"$state/agent.toml" <<-END
		[bus]
		url = "$url"
		[host]
		state_dir = "$state/agent"
		heartbeat_seconds = 2
		[telemetry]
		listen = "$agent_listen"
	END
	printf '[bus]\nurl = "%s"\n' "$url" >"$state/berthctl.toml"
)

# start NAME: a berth service in the background, its log beside its configuration.
start() {
	if alive "$1"; then
		say "$1 runs already"
		return
	fi
	say "starting $1 (log: $state/$1.log)"
	setsid -f "$bin/$1" --config "$state/${1#berth-}.toml" >>"$state/$1.log" 2>&1 </dev/null
}

healthy() { [[ $(curl -s -o /dev/null -w '%{http_code}' "http://$1/healthz") == 200 ]]; }
host_is_up() { berthctl -o json host list | jq -e '.hosts | length > 0 and .[0].state == "up"'; }

vm_state() { berthctl -o json instance show "$instance" 2>/dev/null | jq -r .vm_state || true; }
settled() { [[ $(vm_state) != building ]]; }

create_instance() {
	local image=$root/.cache/guest/berth-guest.qcow2
	berthctl -o json network list | jq -e --arg name "$network" '.networks[] | select(.name == $name)' >/dev/null ||
		berthctl network create "$network" --cidr "$cidr"
	# What is shown comes from outside, and nothing comes in but what a rule allows. The same ids again are the same rules.
	berthctl security-group rule create default --protocol icmp --id 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a01
	berthctl security-group rule create default --protocol tcp --dst-port 80 --id 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a02
	if [[ -n $(vm_state) ]]; then
		say "instance $instance is there already"
		wait_for "the end of what instance $instance is doing" 120 settled
		case $(vm_state) in
		active) return ;;
		deleted) ;;
		error) berthctl instance delete "$instance" --wait ;;
		*)
			berthctl instance start "$instance" --wait
			return
			;;
		esac
	fi
	# The agent takes an image only when everybody may read it, wherever the checkout is.
	install -m 644 "$image" "$state/guest.qcow2.new"
	mv "$state/guest.qcow2.new" "$state/guest.qcow2"
	cat >"$state/instance.toml" <<-END
		name = "$instance"
		vcpus = 1
		memory_mb = 128
		disk_gb = 1
		[image]
		url = "file://$state/guest.qcow2"
		sha256 = "$(sha256sum "$state/guest.qcow2" | cut -d' ' -f1)"
		format = "qcow2"
		[[networks]]
		network = "$network"
	END
	say "creating instance $instance through RabbitMQ"
	berthctl instance create -f "$state/instance.toml" --wait
}

show() { printf '\n%s$ %s%s\n' "$bold" "$*" "$plain"; }

mkdir -p "$run"
chmod 711 "$state"
note_units
say "installing what is missing"
scripts/install-packages.sh build run guest
need cargo curl epmd ip jq ping qemu-img rabbitmqctl setpriv setsid sha256sum virsh
say "building berth"
cargo build --workspace --locked
say "building the guest"
scripts/guest-image.sh

make_password
start_rabbitmq
start_libvirt
make_vhost
write_config
start berth-scheduler
start berth-agent
wait_for "a healthy scheduler (see $state/berth-scheduler.log)" 30 healthy "$scheduler_listen"
wait_for "a healthy agent (see $state/berth-agent.log)" 30 healthy "$agent_listen"
wait_for "the first heartbeat" 30 host_is_up
create_instance

shown=$(berthctl -o json instance show "$instance")
host=$(jq -r .host <<<"$shown")
address=$(jq -r '.ports[0].fixed_ips[0].ip_address' <<<"$shown")
network_id=$(jq -r '.ports[0].network_id' <<<"$shown")
namespace=berth-$network_id
[[ $(jq -r .vm_state <<<"$shown") == active ]] || die "instance $instance is $(jq -r .vm_state <<<"$shown")"

say "waiting until the guest answers"
wait_for "an answer of the guest to ping" 60 ip netns exec "$namespace" ping -c 1 -W 1 "$address"
wait_for "an HTTP answer of the guest" 30 ip netns exec "$namespace" curl -sf -m 2 "http://$address/"

show "berthctl instance console $instance --lines 5"
berthctl instance console "$instance" --lines 5 --state-dir "$state/agent"
show "ping $address   (from its network's namespace on $host: a local network reaches nothing else)"
ip netns exec "$namespace" ping -c 3 -i 0.2 "$address"
show "curl http://$address/"
ip netns exec "$namespace" curl -sf "http://$address/"
show "berthctl host show $host"
berthctl host show "$host"
show "berthctl instance list"
berthctl instance list
show "curl http://$scheduler_listen/metrics"
curl -s "http://$scheduler_listen/metrics" | awk '/^berth_scheduler_(requests|placements|documents|hosts)/ && lines++ < 8'
show "curl http://$agent_listen/metrics"
curl -s "http://$agent_listen/metrics" | awk '/^berth_agent_/ && lines++ < 8'

printf '\n'
printf 'demo: instance %s is active on %s, %s answers ping and HTTP\n' "$instance" "$host" "$address"
printf 'demo: try %s --config %s/berthctl.toml instance list; make demo-down removes everything\n' "$bin/berthctl" "$state"
