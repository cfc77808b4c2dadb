#!/usr/bin/env bash
# From nothing to a VM that answers, on this machine: installs what is missing, builds, starts RabbitMQ and
# libvirtd if none runs, a scheduler on SQLite and one agent, and creates an instance through the queue.
# Running it again is harmless. `down.sh` removes every trace. Run as root on Debian 12.
set -euo pipefail
# shellcheck source=scripts/demo/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

((EUID == 0)) || die "run as root: it installs packages and makes virtual machines"
cd "$root"

start_rabbitmq() {
	if rabbitmq_answers; then
		say "RabbitMQ runs already"
		return
	fi
	say "starting RabbitMQ"
	touch "$run/started-rabbitmq"
	if has_systemd; then
		systemctl start rabbitmq-server
	else
		# For this machine only.
		RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 rabbitmq-server -detached 2>/dev/null
	fi
	wait_for "the start of RabbitMQ" 60 rabbitmq_answers
}

start_libvirt() {
	if libvirt_answers; then
		say "libvirtd runs already"
		return
	fi
	say "starting libvirtd"
	if has_systemd; then
		touch "$run/started-libvirtd"
		systemctl start libvirtd
	else
		open_kvm
		if ! virtlogd_runs; then
			touch "$run/started-virtlogd"
			virtlogd -d
		fi
		touch "$run/started-libvirtd"
		libvirtd -d
	fi
	wait_for "the start of libvirtd" 30 libvirt_answers
}

# Where no udev runs, nobody has given /dev/kvm to its group. libvirt then finds KVM with one eye and not with the
# other, and asks QEMU for its capabilities again at every call, seconds each.
open_kvm() {
	[[ -c /dev/kvm && $(stat -c '%a %G' /dev/kvm) == "600 root" ]] || return 0
	touch "$run/opened-kvm"
	chgrp kvm /dev/kvm
	chmod 660 /dev/kvm
}

# The demo's own vhost and user, with a password nobody needs to know.
make_vhost() {
	if [[ -f $run/password ]] && rabbitmqctl -q list_vhosts --no-table-headers | grep -qx "$vhost"; then return; fi
	(umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$run/password")
	rabbitmqctl -q list_vhosts --no-table-headers | grep -qx "$vhost" || rabbitmqctl -q add_vhost "$vhost"
	rabbitmqctl -q delete_user "$vhost" >/dev/null 2>&1 || true
	rabbitmqctl -q add_user "$vhost" "$(cat "$run/password")"
	rabbitmqctl -q set_permissions -p "$vhost" "$vhost" '.*' '.*' '.*'
}

write_config() {
	local url
	url="amqp://$vhost:$(cat "$run/password")@127.0.0.1:5672/$vhost"
	umask 077
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
	umask 022
}

# start NAME CONFIG: a berth service in the background, its log beside its configuration.
start() {
	if alive "$1"; then
		say "$1 runs already"
		return
	fi
	say "starting $1 (log: $state/$1.log)"
	setsid "$bin/$1" --config "$state/$2" >>"$state/$1.log" 2>&1 </dev/null &
	printf '%s\n' "$!" >"$run/$1.pid"
}

healthy() { [[ $(curl -s -o /dev/null -w '%{http_code}' "http://$1/healthz") == 200 ]]; }
host_is_up() { berthctl -o json host list | jq -e '.hosts | length > 0 and .[0].state == "up"'; }

create_instance() {
	local image=$root/.cache/guest/berth-guest.qcow2
	berthctl -o json network list | jq -e --arg name "$network" '.networks[] | select(.name == $name)' >/dev/null ||
		berthctl network create "$network" --cidr "$cidr"
	if berthctl -o json instance show "$instance" >/dev/null 2>&1; then
		say "instance $instance is there already"
		berthctl instance start "$instance" --wait >/dev/null
		return
	fi
	# The agent must be able to read it wherever the checkout is.
	cp "$image" "$state/guest.qcow2"
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

show() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }

say "installing what is missing"
scripts/install-packages.sh build run guest
say "building berth"
cargo build --workspace --locked
say "building the guest"
scripts/guest-image.sh

mkdir -p "$run"
chmod 711 "$state"
start_rabbitmq
start_libvirt
make_vhost
write_config
start berth-scheduler scheduler.toml
start berth-agent agent.toml
wait_for "a healthy scheduler (see $state/berth-scheduler.log)" 30 healthy "$scheduler_listen"
wait_for "a healthy agent (see $state/berth-agent.log)" 30 healthy "$agent_listen"
wait_for "the first heartbeat" 30 host_is_up
create_instance

shown=$(berthctl -o json instance show "$instance")
host=$(jq -r .host <<<"$shown")
address=$(jq -r '.ports[0].fixed_ips[0].ip_address' <<<"$shown")
namespace=berth-$(jq -r '.ports[0].network_id' <<<"$shown")
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
curl -s "http://$scheduler_listen/metrics" | grep -E '^berth_scheduler_(requests|placements|documents|hosts)' | head -n 8
show "curl http://$agent_listen/metrics"
curl -s "http://$agent_listen/metrics" | grep -E '^berth_agent_' | head -n 8

printf '\n'
printf 'demo: instance %s is active on %s, %s answers ping and HTTP\n' "$instance" "$host" "$address"
printf 'demo: try %s --config %s/berthctl.toml instance list; make demo-down removes everything\n' "$bin/berthctl" "$state"
