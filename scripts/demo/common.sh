# shellcheck shell=bash
# What up.sh and down.sh share: where things are, what runs, and small helpers. Sourced, not run.
# shellcheck disable=SC2034 # used by the two scripts

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"

umask 022

# Everything the demo writes outside the checkout. QEMU's user must be able to reach the disks, so it cannot be
# below a closed directory.
state=/var/lib/berth-demo
# Notes of what the demo started or made and therefore ends or removes.
run=$state/run
vhost=berth-demo
instance=demo-vm
network=demo-net
cidr=10.77.0.0/24
scheduler_listen=127.0.0.1:9791
agent_listen=127.0.0.1:9792
bin=$root/target/debug

# The demo's own broker, used where none runs. All of it is on 127.0.0.1: Erlang's name server and the port between
# nodes too, which otherwise listen on every address.
broker=$state/rabbitmq
broker_port=9793
broker_epmd_port=9794
broker_variables=(
	HOME="$broker"
	LANG=C.UTF-8
	PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin
	ERL_EPMD_PORT="$broker_epmd_port"
	ERL_EPMD_ADDRESS=127.0.0.1
	RABBITMQ_NODENAME=berth-demo@localhost
	RABBITMQ_DIST_PORT=9795
	RUNNING_UNDER_SYSTEMD=1 # the start script replaces itself, no shell stays
	"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"
	RABBITMQ_CONF_ENV_FILE="$broker/none.conf"
	RABBITMQ_CONFIG_FILE="$broker/rabbitmq.conf"
	RABBITMQ_ADVANCED_CONFIG_FILE="$broker/none.config"
	RABBITMQ_ENABLED_PLUGINS_FILE="$broker/enabled_plugins"
	RABBITMQ_MNESIA_BASE="$broker/mnesia"
	RABBITMQ_LOG_BASE="$broker/log"
	RABBITMQ_GENERATED_CONFIG_DIR="$broker/generated"
)
broker_mark=BERTH_DEMO_BROKER=$broker

bold='' plain=''
if [[ -t 1 ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '%sdemo:%s %s\n' "$bold" "$plain" "$*"; }
die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

# need TOOL...: all of them, or an end that names those missing.
need() {
	local tool missing=()
	for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
	((${#missing[@]} == 0)) || die "missing ${missing[*]}: run scripts/install-packages.sh build run guest"
}

# wait_for WHAT SECONDS COMMAND...: until the command succeeds. It runs in a subshell, so that a trap of this shell
# never finds its output turned away.
wait_for() {
	local what=$1 limit=$2 end
	shift 2
	end=$((SECONDS + limit))
	until ("$@") >/dev/null 2>&1; do
		((SECONDS < end)) || die "$what did not happen within $limit s"
		sleep 0.2
	done
}
not() { ! "$@"; }

# Processes --------------------------------------------------------------------------------------------------
# They are found by what they were started with, never by a pid noted earlier: that finds those of an interrupted run
# and of another checkout, and never a stranger who got an old pid.

# pids PROGRAM FILE TEXT: processes of this program with exactly this text in /proc/PID/FILE, cmdline or environ.
pids() {
	local file pid
	{ grep -lzxF -e "$3" /proc/[0-9]*/"$2" 2>/dev/null || true; } | while read -r file; do
		pid=${file#/proc/} pid=${pid%%/*}
		# "(deleted)" follows the name when the program was built again since.
		[[ $(readlink "/proc/$pid/exe" 2>/dev/null) =~ /"$1"( \(deleted\))?$ ]] && printf '%s\n' "$pid"
	done || true
}
pids_of() {
	case $1 in
	berth-*) pids "$1" cmdline "$state/${1#berth-}.toml" ;;
	rabbitmq) pids beam.smp environ "$broker_mark" ;;
	epmd) pids epmd environ "ERL_EPMD_PORT=$broker_epmd_port" ;;
	esac
}
alive() { [[ -n $(pids_of "$1") ]]; }

# Services ---------------------------------------------------------------------------------------------------

berthctl() { "$bin/berthctl" --config "$state/berthctl.toml" "$@"; }
as_broker() { (cd / && setpriv --reuid rabbitmq --regid rabbitmq --init-groups --reset-env env "${broker_variables[@]}" "$@"); }
# Whether the demo has a broker of its own. Once it has, it keeps it: its queues are there.
own_broker() { [[ -d $broker ]]; }
# rabbitmqctl for the broker that the demo uses.
rabbitctl() {
	if own_broker; then as_broker rabbitmqctl -q "$@"; else rabbitmqctl -q "$@"; fi
}
# Asking epmd first, because rabbitmqctl starts one, on every address, when it finds none.
system_broker_answers() { epmd -names 2>/dev/null | grep '^name ' >/dev/null && rabbitmqctl -q status >/dev/null 2>&1; }
rabbitmq_answers() {
	if own_broker; then
		alive rabbitmq && (as_broker rabbitmqctl -q await_startup --timeout 5) >/dev/null 2>&1
	else
		system_broker_answers
	fi
}

libvirt_answers() { virsh -c qemu:///system list >/dev/null 2>&1; }
# pid_file_runs PROGRAM FILE: whether the process of a daemon's pid file runs and is that program.
pid_file_runs() { [[ $(readlink "/proc/$(cat "$2" 2>/dev/null)/exe" 2>/dev/null) == */"$1" ]]; }
virtlogd_runs() { pid_file_runs virtlogd /run/virtlogd.pid; }
libvirtd_runs() { pid_file_runs libvirtd /run/libvirtd.pid; }
has_systemd() { [[ -d /run/systemd/system ]]; }

start_libvirt() {
	if libvirt_answers; then
		say "libvirtd runs already"
		return
	fi
	say "starting libvirtd"
	if has_systemd; then
		systemctl start libvirtd.socket libvirtd.service
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
