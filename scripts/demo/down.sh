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

# end_pids SIGNAL WHAT PID...: an orderly end, SIGKILL after 15 s.
end_pids() {
	local signal=$1 what=$2 pid
	shift 2
	for pid in "$@"; do
		kill -s "$signal" "$pid" 2>/dev/null || continue
		if ! (wait_for "the end of $what" 15 not test -d "/proc/$pid"); then
			kill -KILL "$pid" 2>/dev/null || true
		fi
	done
}
stop() {
	local found
	mapfile -t found < <(pids_of "$1")
	end_pids TERM "$1" "${found[@]}"
}

# What the demo made on this host ------------------------------------------------------------------------------
# Ids are noted as soon as they are seen, so that a second run knows what the first one did not get rid of.

note_ids() {
	mkdir -p "$run"
	ls "$state/agent/instances" >>"$run/instances" 2>/dev/null || true
	ls "$state/agent/networks" >>"$run/networks" 2>/dev/null || true
}
noted() { sort -u "$run/$1" 2>/dev/null || true; }

# Domains whose disk is in the demo's folder: another berth on this machine has its own.
demo_domains() {
	local domain
	{ virsh -q list --all --name || true; } | { grep '^berth-' || true; } | while read -r domain; do
		if virsh -q dumpxml "$domain" 2>/dev/null | grep -F "$state/agent/" >/dev/null; then printf '%s\n' "$domain"; fi
	done
}
# Namespaces, and links with what hangs on them, of the noted networks.
demo_namespaces() {
	local id
	for id in $(noted networks); do
		if [[ -e /run/netns/berth-$id ]]; then printf 'berth-%s\n' "$id"; fi
	done
}
demo_links() {
	ip -j link | jq -r --arg ids "$(noted networks)" '
		($ids | split("\n") | map(select(. != ""))) as $ids
		| [.[] | select((.ifalias // "") as $alias | any($ids[]; . as $id | $alias | endswith($id))) | .ifname] as $own
		| .[] | select((.ifname | IN($own[])) or ((.master // "") | IN($own[]))) | .ifname'
}
# demo_processes PROGRAM: of the helpers of the agent, those that work in its folder.
demo_processes() {
	local file pid
	{ grep -lF -e "$state/agent/" /proc/[0-9]*/cmdline 2>/dev/null || true; } | while read -r file; do
		pid=${file#/proc/} pid=${pid%%/*}
		if [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == */"$1"* ]]; then printf '%s\n' "$pid"; fi
	done
}

# Removal ------------------------------------------------------------------------------------------------------

# The instances of the demo are removed by berth itself, the way a user would.
remove_through_berth() {
	local id ids
	[[ -x $bin/berthctl && -f $state/berthctl.toml ]] || return 1
	rabbitmq_answers && alive berth-scheduler && alive berth-agent || return 1
	ids=$(berthctl --timeout 10 -o json instance list | jq -r '.instances[].id') || return 1
	for id in $ids; do
		berthctl instance delete "$id" --wait || return 1
	done
	ids=$(berthctl --timeout 10 -o json network list | jq -r '.networks[].id') || return 1
	for id in $ids; do
		# The port is freed when the host reported that the instance is gone, which --wait saw.
		berthctl network delete "$id" || return 1
	done
	wait_for "the end of the demo's network on the host" 30 no_networks
}
no_networks() { [[ -z $(ls "$state/agent/networks" 2>/dev/null) ]]; }

# When not all of berth's services run. The agent is gone by now: a living one would build everything again.
remove_by_hand() {
	local name found
	mapfile -t found < <(demo_processes qemu-system)
	if ((${#found[@]} > 0)) || [[ -n $(noted instances) ]]; then start_libvirt; fi
	if libvirt_answers; then
		for name in $(demo_domains); do
			virsh -q destroy "$name" >/dev/null 2>&1 || true
			virsh -q undefine "$name" --managed-save --snapshots-metadata --checkpoints-metadata --nvram >/dev/null ||
				problem "cannot undefine domain $name"
		done
	fi
	for name in dnsmasq berth-metadata; do
		mapfile -t found < <(demo_processes "$name")
		end_pids TERM "$name" "${found[@]}"
	done
	for name in $(demo_namespaces); do ip netns delete "$name" || problem "cannot delete namespace $name"; done
	# One link of a pair takes the other with it.
	for name in $(demo_links); do ip link delete "$name" 2>/dev/null || true; done
}

# The tables of the host's packet filter, which outlive networks. While a network of another berth has a bridge they are that
# one's too.
packet_filter() {
	local family others
	others=$(ip -j link | jq '[.[] | select((.ifalias // "") | startswith("berth "))] | length')
	((others == 0)) || return 0
	for family in bridge inet; do
		if nft list table "$family" berth >/dev/null 2>&1; then printf '%s\n' "$family"; fi
	done
}
remove_packet_filter() {
	local family
	for family in $(packet_filter); do
		nft delete table "$family" berth || problem "cannot delete the $family table berth of nftables"
	done
}

check_nothing_is_left() {
	local left program
	if libvirt_answers; then
		left=$(demo_domains)
		[[ -z $left ]] || problem "domains are left: ${left//$'\n'/ }"
	fi
	left=$(demo_namespaces)
	[[ -z $left ]] || problem "namespaces are left: ${left//$'\n'/ }"
	left=$(demo_links)
	[[ -z $left ]] || problem "links are left: ${left//$'\n'/ }"
	left=$(packet_filter)
	[[ -z $left ]] || problem "tables berth of nftables are left: ${left//$'\n'/ }"
	for program in qemu-system dnsmasq berth-metadata; do
		left=$(demo_processes "$program")
		[[ -z $left ]] || problem "processes of $program are left: ${left//$'\n'/ }"
	done
	for program in berth-agent berth-scheduler; do
		if alive "$program"; then problem "$program does not end"; fi
	done
}

end_libvirt() {
	if [[ -f $run/started-libvirtd ]] && libvirtd_runs; then
		say "ending libvirtd"
		end_pids TERM libvirtd "$(cat /run/libvirtd.pid)"
	fi
	if [[ -f $run/started-virtlogd ]] && virtlogd_runs; then
		end_pids TERM virtlogd "$(cat /run/virtlogd.pid)"
	fi
	if [[ -f $run/opened-kvm ]]; then
		chgrp root /dev/kvm
		chmod 600 /dev/kvm
	fi
}

# Vhost and user where RabbitMQ is the machine's, all of it where it is the demo's.
end_rabbitmq() {
	if own_broker; then
		say "ending RabbitMQ"
		stop rabbitmq
		stop epmd
		if alive rabbitmq || alive epmd; then problem "RabbitMQ does not end"; fi
	elif rabbitmq_answers; then
		rabbitctl delete_vhost "$vhost" >/dev/null 2>&1 || true
		rabbitctl delete_user "$vhost" >/dev/null 2>&1 || true
		if rabbitctl list_users --no-table-headers | grep "^${vhost}[[:space:]]" >/dev/null; then
			problem "RabbitMQ keeps user $vhost"
		fi
	fi
}

# With systemd: what did not run before the demo. Sockets go with their services, or they would start them again.
end_units() {
	[[ -s $run/units ]] || return 0
	local unit units=() epmd=false
	while read -r unit; do
		case $unit in
		epmd.socket) epmd=true ;;
		virtlogd.socket | virtlockd.socket) units+=("$unit" "${unit%.socket}.service") ;;
		*) units+=("$unit") ;;
		esac
	done <"$run/units"
	if ((${#units[@]} > 0)); then
		say "ending" "${units[@]}"
		systemctl stop "${units[@]}" || problem "systemd could not stop them"
	fi
	# Another Erlang node may have registered there since.
	if $epmd && ! epmd -names 2>/dev/null | grep '^name ' >/dev/null; then
		systemctl stop epmd.socket epmd.service || problem "systemd could not stop epmd"
	fi
}

need ip jq
note_ids
say "removing the instance and its network"
(remove_through_berth) || {
	say "not all of berth's services run: removing by hand what they made"
	stop berth-agent
	remove_by_hand
}
say "ending the agent and the scheduler"
stop berth-agent
stop berth-scheduler
remove_packet_filter
check_nothing_is_left
for id in $(noted instances); do rm -f "/var/log/libvirt/qemu/berth-$id.log"*; done
end_rabbitmq
end_libvirt
end_units
if ((problems == 0)); then
	rm -rf "$state"
	say "no domain, link, namespace, process or file is left"
else
	die "some things are left; $state is kept, make demo-down tries again"
fi
