#!/bin/sh
# A file of the config drive, found by its label as cloud-init does: GET /cgi-bin/config?openstack/latest/user_data
export PATH=/bin
printf 'Content-Type: application/octet-stream\r\n\r\n'
drive=
for device in /dev/sr*; do
	# The label of a CD: 40 bytes into its first descriptor, which is the 17th sector of 2048 bytes (ECMA-119).
	label=$(dd if="$device" bs=1 skip=32808 count=8 2>/dev/null)
	[ "$label" != config-2 ] || drive=$device
done
[ -n "$drive" ] || exit 0
mkdir -p /run/config
grep -q ' /run/config ' /proc/mounts || mount -t iso9660 -o ro "$drive" /run/config
case $QUERY_STRING in
*..*) ;;
*) cat "/run/config/$QUERY_STRING" ;;
esac
