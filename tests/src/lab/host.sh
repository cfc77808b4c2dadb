# PID 1 of a hypervisor in namespaces. $1: its folder, $2: its host name.
# A shell, because it collects dead children; a bare sleep would not.
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 run /run
# A /dev without kvm: libvirt probes QEMU anew before every other call where /dev/kvm opens for root alone.
mkdir /run/dev
mount -t tmpfs -o mode=755 dev /run/dev
mkdir /run/dev/net /run/dev/pts /run/dev/shm
for node in fd stdin stdout stderr null zero full random urandom tty ptmx net/tun; do
    cp -a "/dev/$node" "/run/dev/$node"
done
mount --bind /dev/pts /run/dev/pts
umount --lazy --recursive /dev
mount --move /run/dev /dev
rmdir /run/dev
mkdir -p /var/lib/berth
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/log" /var/log/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/berth" /var/lib/berth
hostname "$2"
ip link set lo up
touch /run/host-ready
exec sh -c "sleep infinity & wait"
