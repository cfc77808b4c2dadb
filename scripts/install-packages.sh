#!/usr/bin/env bash
# Installs what berth needs on Debian 12. Run as root. Says nothing and asks no mirror when all is there.
#
#   scripts/install-packages.sh GROUP...
#
#   build   compile berth: C compiler, git, and Rust as new as Cargo.toml demands
#   run     be a hypervisor with a broker: QEMU, libvirt, RabbitMQ, dnsmasq, nftables; and what the demo looks
#           at them with: curl, jq, ping
#   guest   build the test guest (scripts/guest-image.sh)
#   test    what the test tiers use on top: PostgreSQL, MariaDB, a Python AMQP client, ssh, jq, strace, promtool,
#           LVM, XFS
#   all     all of these
#
# On a machine without systemd no service is started by the installation; with systemd, Debian's own rules
# apply, and a service that was there before is never touched.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
export DEBIAN_FRONTEND=noninteractive

build_packages=(ca-certificates curl gcc git libc6-dev make)
run_packages=(
	curl dnsmasq-base iproute2 iputils-ping jq libvirt-clients libvirt-daemon-driver-qemu libvirt-daemon-system
	nftables procps qemu-system-x86 qemu-utils rabbitmq-server util-linux xorriso
)
guest_packages=(busybox-static dropbear-bin fdisk gcc libc6-dev mtools qemu-utils syslinux syslinux-common)
test_packages=(
	iproute2 jq lvm2 mariadb-client mariadb-server openssh-client postgresql postgresql-client procps
	prometheus python3 python3-pika sshpass strace systemd thin-provisioning-tools util-linux
	xfsprogs
)

say() { printf 'packages: %s\n' "$*"; }
die() {
	printf 'packages: %s\n' "$*" >&2
	exit 1
}

usage() {
	sed -n '2,/^set -e/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
	exit 2
}

want=()
want_rust=false
(($# > 0)) || usage
for group in "$@"; do
	case $group in
	build) want+=("${build_packages[@]}") want_rust=true ;;
	run) want+=("${run_packages[@]}") ;;
	guest) want+=("${guest_packages[@]}") ;;
	test) want+=("${test_packages[@]}") ;;
	all)
		want+=("${build_packages[@]}" "${run_packages[@]}" "${guest_packages[@]}" "${test_packages[@]}")
		want_rust=true
		;;
	*) usage ;;
	esac
done
mapfile -t want < <(printf '%s\n' "${want[@]}" | sort -u)

# Those of the arguments that dpkg does not report as installed.
missing_of() {
	local installed
	installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' || true)
	printf '%s\n' "$@" | grep -vxF -f <(printf '%s\n' "$installed" | sed '/^$/d') || true
}

contains() {
	local needle=$1
	shift
	printf '%s\n' "$@" | grep -qxF "$needle"
}

# apt-get with its output kept back unless it fails.
apt() {
	local log
	log=$(mktemp)
	if ! apt-get -q -y "$@" >"$log" 2>&1; then
		tail -n 40 "$log" >&2
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}

# Without systemd as PID 1 a package must not start its daemon by hand: berth starts what it needs itself.
# policy-rc.d is Debian's switch for that; one that exists already is left alone.
policy=/usr/sbin/policy-rc.d
policy_made=false
hold_services() {
	[[ ! -d /run/systemd/system && ! -e $policy ]] || return 0
	printf '#!/bin/sh\n# Made by berth while it installs packages.\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	policy_made=true
}
release_services() {
	if $policy_made; then rm -f "$policy"; fi
	policy_made=false
}
trap release_services EXIT

install_missing() {
	local missing started=$SECONDS version
	mapfile -t missing < <(missing_of "${want[@]}")
	((${#missing[@]} > 0)) || return 0
	((EUID == 0)) || die "missing ${missing[*]}: run me as root"
	say "installing ${missing[*]}"
	apt update || die "apt-get update failed"
	# qemu-system-x86 and qemu-utils must have one version. A machine may carry newer qemu-utils from a
	# repository that it no longer knows; then apt refuses, unless both are named with what it can get.
	local -a arguments=("${missing[@]}") flags=(--no-install-recommends)
	if contains qemu-system-x86 "${missing[@]}" || contains qemu-utils "${missing[@]}"; then
		version=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
		[[ -n $version && $version != '(none)' ]] || die "apt knows no qemu-system-x86: is this Debian 12?"
		mapfile -t arguments < <(printf '%s\n' "${missing[@]}" | grep -vxE 'qemu-system-x86|qemu-utils' || true)
		arguments+=("qemu-utils=$version")
		if contains qemu-system-x86 "${want[@]}"; then arguments+=("qemu-system-x86=$version"); fi
		flags+=(--allow-downgrades)
	fi
	hold_services
	apt install "${flags[@]}" "${arguments[@]}" || die "apt-get could not install ${arguments[*]}"
	release_services
	mapfile -t missing < <(missing_of "${want[@]}")
	((${#missing[@]} == 0)) || die "apt-get said yes, but these are still missing: ${missing[*]}"
	say "done in $((SECONDS - started)) s"
}

# Whether version $1 is at least version $2.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

fetch() { curl --proto '=https' --tlsv1.2 -fsS --retry 2 --connect-timeout 15 -o "$2" "$1"; }

install_rust() {
	local needed found component installer
	needed=$(sed -n 's/^rust-version *= *"\(.*\)"$/\1/p' "$root/Cargo.toml")
	[[ -n $needed ]] || die "Cargo.toml names no rust-version"
	if ! command -v cargo >/dev/null; then
		say "installing Rust with rustup"
		installer=$(mktemp)
		# The first address is the one everybody knows, the second the same file at its source.
		fetch https://sh.rustup.rs "$installer" ||
			fetch https://static.rust-lang.org/rustup/rustup-init.sh "$installer" || {
			rm -f "$installer"
			die "cannot download rustup: install Rust $needed or newer and run me again"
		}
		sh "$installer" -y -q --profile minimal --no-modify-path --default-toolchain stable \
			--component rustfmt --component clippy >&2 || die "rustup could not install Rust (see above)"
		rm -f "$installer"
	fi
	found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
	if [[ -z $found ]] || ! at_least "$found" "$needed"; then
		command -v rustup >/dev/null ||
			die "Rust $needed or newer is needed, found ${found:-none} and no rustup to update it"
		say "updating Rust ${found:-(none)} to at least $needed"
		rustup -q toolchain install stable --profile minimal --component rustfmt --component clippy >&2 ||
			die "rustup could not install the stable toolchain"
		rustup -q default stable >&2
		found=$(rustc --version | cut -d' ' -f2)
		at_least "$found" "$needed" || die "Rust $needed or newer is needed, the stable one is $found"
	fi
	command -v rustup >/dev/null || return 0
	for component in rustfmt clippy; do
		if ! rustup component list --installed 2>/dev/null | grep -q "^$component"; then
			say "adding $component to Rust"
			rustup -q component add "$component" >&2 || die "rustup could not add $component"
		fi
	done
}

install_missing
if $want_rust; then install_rust; fi
