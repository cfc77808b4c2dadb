#!/bin/sh
# A file of the config drive, found by its label as cloud-init does: GET /cgi-bin/config?openstack/latest/user_data
export PATH=/bin
printf 'Content-Type: application/octet-stream\r\n\r\n'
drive=$(blkid | grep 'LABEL="config-2"' | cut -d: -f1)
[ -n "$drive" ] || exit 0
mkdir -p /run/config
grep -q ' /run/config ' /proc/mounts || mount -t iso9660 -o ro "$drive" /run/config
case $QUERY_STRING in
*..*) ;;
*) cat "/run/config/$QUERY_STRING" ;;
esac
