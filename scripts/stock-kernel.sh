#!/usr/bin/env bash
# Runs a command on Debian's stock kernel, in a virtual machine over this machine's own file system: for tests that
# need of a kernel what the running one may not have (the device mapper, and so LVM; VLANs; bridges that track connections).
#
#   scripts/stock-kernel.sh [--limit SECONDS] COMMAND [ARGUMENT...]
#
# Prints what the command prints and ends as it ends; 124 when it took longer than the limit (default 300 s) or the
# machine never came to an end. The root file system is this machine's, read-only over 9p; /tmp, /run, /var/tmp and
# /etc/lvm are empty and in memory. Nothing the command does is left when the machine ends. KVM is used where the
# processor has it. The command's environment: PATH, HOME and those variables whose names begin with BERTH_ or RUST_.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
cache="$root/.cache/stock-kernel"
limit=300
memory=3072
# In load order of need; modprobe finds what they depend on among themselves.
modules=(
	virtio_pci 9pnet_virtio 9p virtio_rng loop crc32c_generic dm_mod dm_snapshot dm_thin_pool
	bridge veth 8021q vxlan nf_tables nft_chain_nat nft_masq nft_ct nft_meta_bridge nf_conntrack_bridge
	nf_conntrack_netlink
)

say() { printf 'stock-kernel: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

if [[ ${1:-} == --limit ]]; then
	limit=${2:?a number of seconds}
	shift 2
fi
(($# > 0)) || {
	sed -n '2,/^set -e/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
	exit 2
}
for tool in busybox qemu-system-x86_64 cpio; do
	command -v "$tool" >/dev/null || [[ $tool == cpio ]] || die "missing $tool: run scripts/install-packages.sh run guest"
done
mkdir -p "$cache"
exec 9>"$cache/lock"
# Only while kernel and initrd are made.
flock -w 300 9 || die "another call holds $cache/lock for more than 5 minutes"

# The kernel that the metapackage names today; nothing without apt lists.
kernel_name() {
	apt-cache depends linux-image-amd64 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-amd64\)$/\1/p' | head -n 1 || true
}

# The package of that kernel; without apt lists, the one downloaded before, and if there is none, with apt lists.
kernel_package() {
	local name
	name=$(kernel_name)
	if [[ -z $name && ! -f $cache/kernel.name ]]; then
		say "apt knows no linux-image-amd64: updating its lists"
		apt-get -qq update >&2 || say "apt-get update failed"
		name=$(kernel_name)
	fi
	if [[ -n $name ]]; then
		printf '%s=%s\n' "$name" "$(apt-cache policy "$name" | sed -n 's/^ *Candidate: //p')"
	elif [[ -f $cache/kernel.name ]]; then
		cat "$cache/kernel.name"
	else
		die "apt knows no linux-image-amd64: run apt-get update as root"
	fi
}

fetch_kernel() {
	[[ -f $cache/kernel.name && $(<"$cache/kernel.name") == "$kernel" && -d $cache/kernel ]] && return
	say "downloading $kernel"
	local work
	work=$(mktemp -d "$cache/kernel.XXXXXX")
	if ! (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$kernel"); then
		rm -rf "$work"
		die "cannot download $kernel: run apt-get update and try again"
	fi
	dpkg-deb -x "$work"/linux-image-*.deb "$work/tree"
	rm -f "$work"/*.deb
	rm -rf "$cache/kernel"
	mv "$work/tree" "$cache/kernel"
	rmdir "$work"
	printf '%s\n' "$kernel" >"$cache/kernel.name"
}

# What runs first: it brings up this machine's file system and the command in it.
make_initrd() {
	local tree release module
	tree=$(mktemp -d "$cache/initrd.XXXXXX")
	mkdir -p "$tree"/{bin,dev,proc,sys,root,lib/modules}
	cp "$(command -v busybox)" "$tree/bin/busybox"
	release=$(basename "$cache"/kernel/lib/modules/*)
	mkdir -p "$tree/lib/modules/$release"
	# The names of the modules and of all they depend on.
	busybox depmod -b "$cache/kernel" "$release"
	for module in $(busybox_dependencies "$release" "${modules[@]}"); do
		cp "$cache/kernel/lib/modules/$release/$module" "$tree/lib/modules/$release/"
	done
	busybox depmod -b "$tree" "$release"
	cat >"$tree/init" <<-INIT
		#!/bin/busybox sh
		export PATH=/bin
		/bin/busybox --install -s /bin
		mount -t proc proc /proc
		mount -t sysfs sys /sys
		mount -t devtmpfs dev /dev
		for module in ${modules[*]}; do modprobe "\$module" || echo "stock-kernel: no module \$module"; done
		mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose root /root || poweroff -f
		for name in proc sys dev; do mount --move /\$name /root/\$name; done
		for name in tmp run var/tmp etc/lvm; do mount -t tmpfs -o mode=1777,size=75% tmpfs /root/\$name; done
		mkdir -p /root/dev/shm /root/run/lock
		mount -t tmpfs shm /root/dev/shm
		ip link set lo up
		exec chroot /root /bin/bash \$(sed -n 's/.*berth.run=\\([^ ]*\\).*/\\1/p' /root/proc/cmdline)
	INIT
	chmod 755 "$tree/init"
	(cd "$tree" && find . | LC_ALL=C sort | busybox cpio -o -H newc -R 0:0 2>/dev/null) | gzip -n -1 >"$cache/initrd.gz.new"
	mv "$cache/initrd.gz.new" "$cache/initrd.gz"
	rm -rf "$tree"
}

# The files of some modules and of what they depend on, from modules.dep.
busybox_dependencies() {
	local release=$1 module
	shift
	for module in "$@"; do
		grep -E "^[^:]*/${module//_/[_-]}\.ko:" "$cache/kernel/lib/modules/$release/modules.dep" | tr -d ':'
	done | tr ' ' '\n' | sort -u
}

kernel=$(kernel_package)
fetch_kernel
stamp=$({
	echo "$kernel"
	cat "${BASH_SOURCE[0]}"
} | sha256sum | cut -d' ' -f1)
if [[ ! -f $cache/initrd.gz || ! -f $cache/stamp || $(<"$cache/stamp") != "$stamp" ]]; then
	make_initrd
	printf '%s\n' "$stamp" >"$cache/stamp"
fi

# What this machine reads is its own, so that others may run at once, and fetch another kernel meanwhile.
own=$(mktemp -d "$cache/run.XXXXXX")
trap 'rm -rf "$own"' EXIT
run=$own/command
log=$own/log
ln "$cache"/kernel/boot/vmlinuz-* "$own/vmlinuz"
ln "$cache/initrd.gz" "$own/initrd.gz"
exec 9>&-
mark=stock-kernel-$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
{
	printf 'export PATH=%q HOME=/tmp\n' "$PATH"
	while IFS='=' read -r name _; do
		if [[ $name =~ ^(BERTH|RUST)_[A-Z_]+$ ]]; then printf 'export %s=%q\n' "$name" "${!name}"; fi
	done < <(env)
	# The device mapper's programs would start a daemon that nothing here needs.
	printf 'printf "activation { monitoring=0 }\\n" >/etc/lvm/lvm.conf\n'
	printf 'cd %q\n' "$PWD"
	printf '%q ' "$@"
	printf '</dev/null\nstatus=$?\nsync\nprintf "\\n%s %%d\\n" "$status"\nsleep 0.2\n' "$mark"
	printf 'echo o >/proc/sysrq-trigger\nsleep 10\n'
} >"$run"

accelerator=(-accel tcg,thread=multi -cpu max)
if [[ -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accelerator=(-accel kvm -cpu host); fi
started=$SECONDS
status=0
# no_timer_check: on a busy machine an emulated timer ticks too late for the kernel's check of it at boot.
timeout --foreground --kill-after=5 "$limit" qemu-system-x86_64 -machine q35 "${accelerator[@]}" -smp 2 -m "$memory" \
	-nodefaults -no-user-config -display none -no-reboot \
	-kernel "$own/vmlinuz" -initrd "$own/initrd.gz" \
	-append "console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check berth.run=$run" \
	-fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
	-device virtio-9p-pci,fsdev=root,mount_tag=root -device virtio-rng-pci \
	-serial stdio </dev/null 2>&1 | sed -u 's/\r//g' | tee "$log" | grep --line-buffered -v "^$mark" || true
status=${PIPESTATUS[0]}
code=$(sed -n "s/^$mark \([0-9]*\)$/\1/p" "$log" | tail -n 1)
if [[ -z $code ]]; then
	say "the machine ended without an answer after $((SECONDS - started)) s (limit $limit s, qemu said $status)"
	exit 124
fi
say "the command ended with $code after $((SECONDS - started)) s"
exit "$code"
