#!/usr/bin/env bash
# Removes every trace of the demo: its instance and network through berth, then its services, files, vhost and
# user, and RabbitMQ and libvirtd if the demo started them. Harmless when there is nothing. Run as root.
set -euo pipefail
# shellcheck source=scripts/demo/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

((EUID == 0)) || die "run as root"
if [[ ! -d $state ]]; then
	say "nothing is left of the demo"
	exit 0
fi
problems=0
problem() {
	say "problem: $*"
	problems=1
}

# stop NAME: ends a service of the demo, by pid, in an orderly way.
stop() {
	if alive "$1"; then
		local pid
		pid=$(cat "$run/$1.pid")
		kill -TERM "$pid"
		for _ in {1..150}; do
			[[ -d /proc/$pid ]] && alive "$1" || break
			sleep 0.1
		done
		if alive "$1"; then kill -KILL "$pid"; fi
	fi
	rm -f "$run/$1.pid"
}

# The instances of the demo are removed by berth itself, the way a user would.
remove_through_berth() {
	local id ids
	[[ -x $bin/berthctl && -f $state/berthctl.toml ]] || return 1
	rabbitmq_answers && alive berth-scheduler && alive berth-agent || return 1
	ids=$(berthctl --timeout 10 -o json instance list | jq -r '.instances[].id') || return 1
	for id in $ids; do
		berthctl instance delete "$id" --wait || return 1
	done
	for id in $(berthctl --timeout 10 -o json network list | jq -r '.networks[].id'); do
		# The port is freed when the host reported that the instance is gone, which --wait saw.
		berthctl network delete "$id" || return 1
	done
	wait_for "the end of the demo's network on the host" 30 no_leftovers
}

demo_networks() { ls "$state/agent/networks" 2>/dev/null || true; }
no_leftovers() { [[ -z $(demo_networks) ]]; }

# When berth's services are gone: by hand, and only what this demo's agent made.
remove_by_hand() {
	local id network pid link
	for id in $(ls "$state/agent/instances" 2>/dev/null || true); do
		virsh -q destroy "berth-$id" >/dev/null 2>&1 || true
		virsh -q undefine "berth-$id" >/dev/null 2>&1 || true
	done
	for network in $(demo_networks); do
		pid=$(cat "$state/agent/networks/$network/"*.pid 2>/dev/null || true)
		if [[ -n $pid ]] && grep -qz "$state/agent/networks/$network" "/proc/$pid/cmdline" 2>/dev/null; then kill "$pid"; fi
		ip netns delete "berth-$network" 2>/dev/null || true
		for link in $(ip -j link | jq -r --arg id "$network" '.[] | select((.ifalias // "") | endswith($id)) | .ifname'); do
			ip link delete "$link" 2>/dev/null || true
		done
	done
}

instances=$(ls "$state/agent/instances" 2>/dev/null || true)
say "removing the instance and its network"
(remove_through_berth) || {
	say "berth's services do not run (any more): removing what they made by hand"
	remove_by_hand
}
say "ending the agent and the scheduler"
stop berth-agent
stop berth-scheduler
for id in $instances; do rm -f "/var/log/libvirt/qemu/berth-$id.log"*; done

if rabbitmq_answers; then
	rabbitmqctl -q delete_vhost "$vhost" >/dev/null 2>&1 || true
	rabbitmqctl -q delete_user "$vhost" >/dev/null 2>&1 || true
fi
if [[ -f $run/started-libvirtd ]]; then
	say "ending libvirtd"
	if has_systemd; then
		systemctl stop libvirtd
	elif libvirtd_runs; then
		kill "$(cat /run/libvirtd.pid)"
		wait_for "the end of libvirtd" 15 not libvirtd_runs
	fi
fi
if [[ -f $run/started-virtlogd ]] && virtlogd_runs; then
	kill "$(cat /run/virtlogd.pid)"
	wait_for "the end of virtlogd" 15 not virtlogd_runs
fi
if [[ -f $run/opened-kvm ]]; then
	chgrp root /dev/kvm
	chmod 600 /dev/kvm
fi
if [[ -f $run/started-rabbitmq ]]; then
	say "ending RabbitMQ"
	if has_systemd; then
		systemctl stop rabbitmq-server
	else
		pid=$(rabbitmqctl -q eval 'os:getpid().' | tr -d '"')
		rabbitmqctl -q shutdown >/dev/null 2>&1 || problem "RabbitMQ (pid $pid) did not end"
	fi
fi
left=$(ip -j link | jq -r '.[] | select((.ifalias // "") | startswith("berth ")) | .ifname')
[[ -z $left ]] || problem "links are left: $left"
if ((problems == 0)); then
	rm -rf "$state"
	say "no domain, link, namespace, process or file is left"
else
	die "some things are left; $state is kept"
fi
