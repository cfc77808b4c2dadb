#!/bin/sh
# Keeps a word in the guest's memory or at the beginning of one of its disks, and says what is kept there:
# GET /cgi-bin/keep?memory, ?memory=word, ?vdb, ?vdb=word, ?sda, …; ?sda=--discard throws all of a disk away.
export PATH=/bin
place=${QUERY_STRING%%=*}
sector=0
case $place in
memory) file=/run/kept bytes=0 read_only=0 serial= ;;
vd[a-z] | sd[a-z])
	file=/dev/$place bytes=0 read_only=0 serial=
	# A disk that one can boot from has room behind its partition, which ends before 64 MiB.
	[ ! -e "/sys/class/block/${place}1" ] || sector=1000000
	if [ -b "$file" ]; then
		read -r sectors <"/sys/class/block/$place/size"
		read -r read_only <"/sys/class/block/$place/ro"
		bytes=$((sectors * 512))
		# What udev names a disk by: a virtio disk says it, a SCSI disk has it on a page after four bytes.
		case $place in
		vd*) serial=$(cat "/sys/class/block/$place/serial") ;;
		sd*) serial=$(tail -c +5 "/sys/class/block/$place/device/vpd_pg80") ;;
		esac
		serial=$(printf '%s' "$serial" | tr -dc 'A-Za-z0-9._-')
	fi
	;;
*)
	printf 'Status: 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nno such place\n'
	exit
	;;
esac
failed=
case $QUERY_STRING in
*=*)
	word=${QUERY_STRING#*=}
	if [ "$place" = memory ]; then
		printf '%s\n' "$word" >"$file"
	elif [ "$word" = --discard ]; then
		failed=$(blkdiscard "$file" 2>&1) && failed=
	elif [ ! -b "$file" ]; then
		failed='no such disk'
	else
		failed=$(printf '%-511.511s\n' "$word" | dd of="$file" bs=512 seek="$sector" count=1 conv=fsync 2>&1 >/dev/null) && failed=
	fi
	;;
esac
word=
[ ! -e "$file" ] || word=$(dd if="$file" bs=512 skip="$sector" count=1 iflag=direct 2>/dev/null || dd if="$file" bs=512 skip="$sector" count=1 2>/dev/null)
word=$(printf '%s' "$word" | tr -dc 'A-Za-z0-9._-')
failed=$(printf '%s' "$failed" | tr -d '"\\\n')
there=false
[ ! -e "$file" ] || there=true
printf 'Content-Type: application/json\r\n\r\n'
printf '{"there":%s,"bytes":%s,"read_only":%s,"serial":"%s","word":"%s","failed":"%s"}\n' \
	"$there" "$bytes" "$([ "$read_only" = 1 ] && echo true || echo false)" "$serial" "$word" "$failed"
