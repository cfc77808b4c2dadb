#!/bin/sh
# What the guest knows about itself, as JSON: GET /cgi-bin/status
export PATH=/bin
read -r uptime _ </proc/uptime
read -r _ memory_kib _ </proc/meminfo
read -r boot_id </proc/sys/kernel/random/boot_id
read -r hostname </proc/sys/kernel/hostname
read -r address </run/address
read -r mac </sys/class/net/eth0/address
sectors=0
[ ! -e /sys/class/block/vda/size ] || read -r sectors </sys/class/block/vda/size
printf 'Content-Type: application/json\r\n\r\n'
printf '{"hostname":"%s","address":"%s","mac":"%s","boot_id":"%s","uptime_seconds":%s,"vcpus":%s,"memory_kib":%s,"disk_bytes":%s}\n' \
	"$hostname" "$address" "$mac" "$boot_id" "$uptime" "$(nproc)" "$memory_kib" "$((sectors * 512))"
