#!/usr/bin/env bash
# Builds the small guest that berth's demo and tests boot: a bootable qcow2 made of Debian packages alone
# (cloud kernel, static busybox, dropbear, qemu-guest-agent, syslinux). Nothing is mounted; root is not needed.
#
#   scripts/guest-image.sh [OUT]           build OUT (default .cache/guest/berth-guest.qcow2); does nothing
#                                          when OUT already belongs to these inputs
#   scripts/guest-image.sh --check [OUT]   the same, then boot it: ready line, HTTP, SSH port, power button
#
# On its serial console the guest prints, once per boot and as a line of its own:
#   berth-guest: ready address=A.B.C.D hostname=NAME boot_id=UUID
# It serves / and /cgi-bin/status (JSON) on port 80, SSH on port 22 (root, password berth; or the key that the metadata service
# tells), a shell on the
# console, and powers off when the power button is pressed. Where it has a channel for it, QEMU's guest agent runs. 96 MiB of memory
# are enough.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
parts="$root/scripts/guest"
cache="$root/.cache/guest"

# Sizes in MiB. The file system holds kernel, initramfs and boot loader with some room.
fs_offset_mib=1
fs_size_mib=30
max_image_bytes=$((40 * 1024 * 1024))
# SSH password of root, as crypt(3) of "berth" with a fixed salt: the image is public and so is this.
password=berth
salt=berthguest
# In load order of need; busybox depmod finds what they depend on among themselves.
modules=(
	virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover
	virtio_net virtio-rng virtio_balloon evdev button scsi_common scsi_mod virtio_scsi sd_mod cdrom
	sr_mod isofs virtio_console pvpanic pvpanic-mmio llc stp mrp garp 8021q
)

say() { printf 'guest-image: %s\n' "$*"; }
die() {
	printf 'guest-image: %s\n' "$*" >&2
	exit 1
}

check=false
if [[ ${1:-} == --check ]]; then
	check=true
	shift
fi
[[ ${1:-} != -* ]] || die "unknown option $1 (usage: guest-image.sh [--check] [OUT])"
out=${1:-$cache/berth-guest.qcow2}
mkdir -p "$cache" "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")

missing=()
for tool in busybox dropbear dropbearkey syslinux mformat mcopy sfdisk qemu-img ldd gcc; do
	PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing+=("$tool")
done
((${#missing[@]} == 0)) || die "missing ${missing[*]}: run scripts/install-packages.sh guest run"
PATH=$PATH:/usr/sbin:/sbin

# One build at a time; a second caller waits and then finds the image there.
exec 9>"$cache/lock"
flock -w 300 9 || die "another build holds $cache/lock for more than 5 minutes"

# The kernel package that the cloud metapackage names today; without apt lists, the one downloaded before.
kernel_package() {
	local name
	name=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-cloud-amd64\)$/\1/p' | head -n 1)
	if [[ -n $name ]]; then
		printf '%s=%s\n' "$name" "$(apt-cache policy "$name" | sed -n 's/^ *Candidate: //p')"
	elif [[ -f $cache/kernel.name ]]; then
		cat "$cache/kernel.name"
	else
		die "apt knows no linux-image-cloud-amd64: run apt-get update as root"
	fi
}

# The package of the guest agent that apt knows; without apt lists, the one downloaded before. It is not installed here: on a
# machine that is virtual itself it would start, and obey whoever runs that.
agent_package() {
	local version
	version=$(apt-cache policy qemu-guest-agent 2>/dev/null | sed -n 's/^ *Candidate: //p')
	if [[ -n $version && $version != '(none)' ]]; then
		printf 'qemu-guest-agent=%s\n' "$version"
	elif [[ -f $cache/agent.name ]]; then
		cat "$cache/agent.name"
	else
		die "apt knows no qemu-guest-agent: run apt-get update as root"
	fi
}

# A machine whose packages were all there, such as a fresh container, may have no apt lists yet.
if [[ $EUID == 0 && ! (-f $cache/kernel.name && -f $cache/agent.name) ]] &&
	! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
	say "asking apt for its lists"
	apt-get -qq update || die "apt-get update failed"
fi
kernel=$(kernel_package)
agent=$(agent_package)
stamp=$({
	echo "$kernel" "$agent"
	cat "${BASH_SOURCE[0]}" "$parts"/*
	dpkg-query -W -f='${Package} ${Version}\n' busybox-static dropbear-bin syslinux 2>/dev/null || true
} | sha256sum | cut -d' ' -f1)

describe() {
	local bytes
	bytes=$(stat -c %s "$out")
	say "$out"
	say "size $bytes bytes ($((bytes / 1024 / 1024)) MiB), sha256 $(sha256sum "$out" | cut -d' ' -f1)"
}

# Downloads package $2 and unpacks it as $cache/$1.tree, unless it is there.
fetch() {
	local part=$1 package=$2 work
	[[ -f $cache/$part.name && $(<"$cache/$part.name") == "$package" && -d $cache/$part.tree ]] && return
	say "downloading $package"
	work=$(mktemp -d "$cache/$part.XXXXXX")
	if ! (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package"); then
		rm -rf "$work"
		die "cannot download $package: run apt-get update and try again"
	fi
	dpkg-deb -x "$work"/*.deb "$work"
	rm -f "$work"/*.deb
	rm -rf "$cache/$part.tree"
	mv "$work" "$cache/$part.tree"
	printf '%s\n' "$package" >"$cache/$part.name"
}

# The root file system of the guest, in $1.
make_root() {
	local tree=$1 release module file binary linked
	mkdir -p "$tree"/{bin,dev,etc/acpi/PWRF,etc/dropbear,lib,proc,root,run,sys,tmp,var/log,www/cgi-bin}
	ln -s bin "$tree/sbin"
	cp "$(command -v busybox)" "$tree/bin/busybox"
	for file in $(busybox --list); do
		[[ $file == busybox ]] || ln -s busybox "$tree/bin/$file"
	done
	ln -s bin/busybox "$tree/init"

	# dropbear, the guest agent and what they are linked with, at the paths their loader looks at.
	for binary in "$(command -v dropbear)" "$(command -v dropbearkey)" "$cache/agent.tree/usr/sbin/qemu-ga"; do
		cp "$binary" "$tree/bin/"
		linked=$(ldd "$binary")
		[[ $linked != *'not found'* ]] || die "$binary needs libraries that are not here: $linked"
		grep -o '/[^ ]*' <<<"$linked" | while read -r file; do
			mkdir -p "$tree$(dirname "$file")"
			cp -Lf "$file" "$tree$file"
		done
	done

	release=$(basename "$cache"/kernel.tree/lib/modules/*)
	mkdir -p "$tree/lib/modules/$release"
	for module in "${modules[@]}"; do
		file=$(find "$cache/kernel.tree/lib/modules/$release" -name "$module.ko")
		[[ -n $file ]] || die "$kernel has no module $module"
		cp "$file" "$tree/lib/modules/$release/"
	done
	busybox depmod -b "$tree" "$release"

	cp "$parts/inittab" "$tree/etc/inittab"
	install -m 755 "$parts/rc" "$tree/etc/rc"
	# What it is linked with is there already.
	gcc -Os -s -Wall -Wextra -Werror -o "$tree/bin/frame" "$parts/frame.c"
	install -m 755 "$parts/agent" "$tree/etc/agent"
	install -m 755 "$parts/console" "$tree/etc/console"
	install -m 755 "$parts/hotplug" "$tree/etc/hotplug"
	install -m 755 "$parts/key" "$tree/etc/key"
	install -m 755 "$parts/udhcpc.script" "$tree/etc/udhcpc.script"
	install -m 755 "$parts/power.sh" "$tree/etc/acpi/PWRF/00000080"
	install -m 755 "$parts/status.cgi" "$tree/www/cgi-bin/status"
	install -m 755 "$parts/keep.cgi" "$tree/www/cgi-bin/keep"
	install -m 755 "$parts/config.cgi" "$tree/www/cgi-bin/config"
	install -m 755 "$parts/index.cgi" "$tree/www/cgi-bin/index.cgi"
	printf 'root:x:0:0:root:/root:/bin/sh\n' >"$tree/etc/passwd"
	printf 'root:x:0:\n' >"$tree/etc/group"
	printf 'root:%s:19000:0:99999:7:::\n' "$(busybox mkpasswd -m sha512 -S "$salt" "$password")" >"$tree/etc/shadow"
	chmod 600 "$tree/etc/shadow"
	printf '/bin/sh\n' >"$tree/etc/shells"
	printf '127.0.0.1 localhost\n' >"$tree/etc/hosts"
	printf "export PATH=/bin PS1='\\\\h:\\\\w# '\n" >"$tree/etc/profile"
	find "$tree" -exec touch -h -d @0 {} +
}

# A disk with an MBR, one active FAT partition and syslinux in it.
make_disk() {
	local raw=$1 offset=$((fs_offset_mib * 1024 * 1024))
	truncate -s "$((fs_offset_mib + fs_size_mib))M" "$raw"
	sfdisk -q "$raw" <<-TABLE
		label: dos
		label-id: 0x62657274
		start=${fs_offset_mib}MiB, size=${fs_size_mib}MiB, type=e, bootable
	TABLE
	dd if=/usr/lib/syslinux/mbr/mbr.bin of="$raw" bs=440 count=1 conv=notrunc status=none
	# -T counts the sectors of the file system, -H those in front of it: boot code reads both.
	mformat -i "$raw@@$offset" -T $((fs_size_mib * 2048)) -h 16 -s 63 -H $((fs_offset_mib * 2048)) \
		-N 62657274 -v BERTHGUEST ::
	mcopy -m -i "$raw@@$offset" "$2" ::vmlinuz
	mcopy -m -i "$raw@@$offset" "$3" ::initrd.gz
	mcopy -m -i "$raw@@$offset" "$parts/syslinux.cfg" ::syslinux.cfg
	syslinux --install --offset "$offset" "$raw"
}

build() {
	local work started=$SECONDS bytes
	fetch kernel "$kernel"
	fetch agent "$agent"
	work=$(mktemp -d "$cache/build.XXXXXX")
	# shellcheck disable=SC2064 # the directory of now is meant
	trap "rm -rf '$work'" EXIT
	say "building from $kernel and $agent"
	umask 022
	make_root "$work/root"
	(cd "$work/root" && find . | LC_ALL=C sort | busybox cpio -o -H newc -R 0:0 2>/dev/null) |
		gzip -n -9 >"$work/initrd.gz"
	touch -d @0 "$work/initrd.gz"
	SOURCE_DATE_EPOCH=0 make_disk "$work/disk.raw" "$(echo "$cache"/kernel.tree/boot/vmlinuz-*)" "$work/initrd.gz"
	qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
	bytes=$(stat -c %s "$work/disk.qcow2")
	((bytes <= max_image_bytes)) || die "the image has $bytes bytes, more than $max_image_bytes"
	chmod 644 "$work/disk.qcow2"
	mv "$work/disk.qcow2" "$out"
	printf '%s\n' "$stamp" >"$out.stamp"
	rm -rf "$work"
	trap - EXIT
	say "built in $((SECONDS - started)) s"
}

# Boots an overlay of the image, larger than it, and tries what the guest promises.
check() {
	command -v qemu-system-x86_64 >/dev/null || die "missing qemu-system-x86_64: run scripts/install-packages.sh run"
	local machine work pid ready started
	for machine in q35 pc; do
		work=$(mktemp -d "$cache/check.XXXXXX")
		qemu-img create -q -f qcow2 -F qcow2 -b "$out" "$work/disk.qcow2" 1G
		mkfifo "$work/commands"
		exec 8<>"$work/commands"
		started=$(date +%s%N)
		qemu-system-x86_64 -machine "$machine" -accel tcg -cpu qemu64 -m 128 -smp 1 -display none -nodefaults \
			-drive "file=$work/disk.qcow2,format=qcow2,if=virtio" \
			-netdev "user,id=n0,hostfwd=tcp:127.0.0.1:0-:80,hostfwd=tcp:127.0.0.1:0-:22,hostname=check-$machine" \
			-device virtio-net-pci,netdev=n0 -device virtio-rng-pci \
			-serial "file:$work/console" -monitor stdio <&8 >"$work/monitor" 2>&1 &
		pid=$!
		# shellcheck disable=SC2064 # the values of now are meant
		trap "kill $pid 2>/dev/null; rm -rf '$work'" EXIT
		touch "$work/console"
		await 60 "the ready line ($machine)" "$work/console" grep -q '^berth-guest: ready ' "$work/console"
		ready=$(tr -d '\r' <"$work/console" | grep '^berth-guest: ready ')
		say "$machine: ready after $((($(date +%s%N) - started) / 1000000)) ms: $ready"
		[[ $ready == *" hostname=check-$machine "* ]] || die "the host name of DHCP was not taken: $ready"
		echo 'info usernet' >&8
		await 5 "forwarded ports ($machine)" "$work/monitor" forwarded "$work/monitor" 22
		http=$(forwarded "$work/monitor" 80)
		ssh=$(forwarded "$work/monitor" 22)
		await 20 "HTTP ($machine)" "$work/console" \
			curl -fsS -m 5 -o "$work/status" "http://127.0.0.1:$http/cgi-bin/status"
		say "$machine: $(cat "$work/status")"
		grep -q "\"boot_id\":\"${ready##*boot_id=}\"" "$work/status" || die "HTTP shows another boot_id"
		grep -q '"disk_bytes":1073741824' "$work/status" || die "the guest does not see its grown disk"
		await 20 "the SSH banner ($machine)" "$work/console" ssh_banner "$ssh"
		started=$(date +%s%N)
		echo system_powerdown >&8
		await 15 "power off ($machine)" "$work/console" gone "$pid"
		wait "$pid" || die "qemu failed"
		say "$machine: power button to power off in $((($(date +%s%N) - started) / 1000000)) ms"
		trap - EXIT
		exec 8>&-
		rm -rf "$work"
	done
	say "check passed"
}

# await SECONDS WHAT LOG COMMAND...: until the command succeeds; shows the log's tail when it never does.
await() {
	local limit=$1 what=$2 log=$3 end=$((SECONDS + $1))
	shift 3
	until "$@" >/dev/null 2>&1; do
		if ((SECONDS >= end)); then
			tail -n 30 "$log" >&2
			die "no sign of $what within $limit s"
		fi
		sleep 0.1
	done
}

gone() { ! kill -0 "$1" 2>/dev/null; }
# The local port that QEMU chose for the guest's port $2, from what its monitor printed into $1.
forwarded() {
	tr -d '\r' <"$1" | awk -v port="$2" '$1 ~ /HOST_FORWARD/ && $6 == port { print $4; found = 1 } END { exit !found }'
}
ssh_banner() { timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1 && head -n 1 <&3" | grep -q '^SSH-2.0-dropbear'; }

if [[ -f $out && -f $out.stamp && $(<"$out.stamp") == "$stamp" ]]; then
	say "up to date"
else
	build
fi
describe
exec 9>&-
if $check; then check; fi
