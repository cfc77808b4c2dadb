#!/bin/sh
# The page at /.
export PATH=/bin
read -r uptime _ </proc/uptime
read -r boot_id </proc/sys/kernel/random/boot_id
printf 'Content-Type: text/plain\r\n\r\n'
echo "Hello from a berth guest."
echo "hostname $(hostname)"
echo "address $(cat /run/address)"
echo "boot_id $boot_id"
echo "uptime_seconds $uptime"
