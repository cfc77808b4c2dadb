# The machine outside, and the wire it is on. $1: its address, $2: the program it serves, $3: on which port.
set -e
ip link set lo up
# With an Ethernet address of its own: a bridge without one changes it with every cable.
ip link add wire address 02:00:00:00:71:01 type bridge
ip addr add "$1" dev wire
ip link set wire up
# What it was told of an address it believes for long: only what is announced changes that.
echo 600000 >/proc/sys/net/ipv4/neigh/wire/base_reachable_time_ms
exec python3 -c "$2" "$3"
