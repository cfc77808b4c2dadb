# What up.sh and down.sh share: where things are, and small helpers. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH="$HOME/.cargo/bin:$PATH"

# Everything the demo writes outside the checkout. QEMU's user must be able to reach the disks, so it cannot be
# below a closed directory.
state=/var/lib/berth-demo
# What was started by the demo and is therefore ended by it: one pid file or marker each.
run=$state/run
vhost=berth-demo
instance=demo-vm
network=demo-net
cidr=10.77.0.0/24
scheduler_listen=127.0.0.1:9791
agent_listen=127.0.0.1:9792
bin=$root/target/debug

say() { printf '\033[1mdemo:\033[0m %s\n' "$*"; }
die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

# alive NAME: whether the process of a pid file runs and is still that program.
alive() {
	local pid
	pid=$(cat "$run/$1.pid" 2>/dev/null) || return 1
	[[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$bin/$1"* ]]
}

# wait_for WHAT SECONDS COMMAND...: until the command succeeds.
wait_for() {
	local what=$1 limit=$2 end
	shift 2
	end=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || die "$what did not happen within $limit s"
		sleep 0.2
	done
}

berthctl() { "$bin/berthctl" --config "$state/berthctl.toml" "$@"; }

rabbitmq_answers() { rabbitmqctl -q status >/dev/null 2>&1; }
libvirt_answers() { virsh -c qemu:///system list >/dev/null 2>&1; }
# pid_file_runs PROGRAM FILE: whether the process of a daemon's pid file runs and is that program.
pid_file_runs() { [[ $(readlink "/proc/$(cat "$2" 2>/dev/null)/exe" 2>/dev/null) == */"$1" ]]; }
virtlogd_runs() { pid_file_runs virtlogd /run/virtlogd.pid; }
libvirtd_runs() { pid_file_runs libvirtd /run/libvirtd.pid; }
not() { ! "$@"; }
has_systemd() { [[ -d /run/systemd/system ]]; }
