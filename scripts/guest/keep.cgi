#!/bin/sh
# Keeps a word in the guest's memory or at the beginning of one of its disks, and says what is kept there:
# GET /cgi-bin/keep?memory, ?memory=word, ?vdb, ?vdb=word
export PATH=/bin
place=${QUERY_STRING%%=*}
sector=0
case $place in
memory) file=/run/kept bytes=0 read_only=0 ;;
vd[a-z])
	file=/dev/$place bytes=0 read_only=0
	# A disk that one can boot from has room behind its partition, which ends before 64 MiB.
	[ ! -e "/sys/class/block/${place}1" ] || sector=1000000
	if [ -b "$file" ]; then
		read -r sectors <"/sys/class/block/$place/size"
		read -r read_only <"/sys/class/block/$place/ro"
		bytes=$((sectors * 512))
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
printf '{"there":%s,"bytes":%s,"read_only":%s,"word":"%s","failed":"%s"}\n' \
	"$there" "$bytes" "$([ "$read_only" = 1 ] && echo true || echo false)" "$word" "$failed"
