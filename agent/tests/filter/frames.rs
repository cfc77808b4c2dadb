//! Frames as guests send them that behave, and as others do; and what a frame is to a trace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_common::{
    document::RuleDirection,
    message::trace::{TraceConnection, TracePacket, TraceProtocol},
};

/// Is in every frame that may pass.
pub(crate) const MARK: &[u8] = b"LAWFUL!!";
/// Is in every frame that may not.
pub(crate) const HOSTILE: &[u8] = b"HOSTILE!";

const EVERYBODY: [u8; 6] = [0xff; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const PROVIDER_VLAN: u16 = 0x88a8;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// The Ethernet address of guest n.
pub(crate) const fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap().to_be_bytes()
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(length(20 + payload.len()));
    header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    header.extend(Ipv4Addr::from(from).octets());
    header.extend(Ipv4Addr::from(to).octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header[..], payload].concat()
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend(length(8 + payload.len()));
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length(payload.len()));
    bytes.extend([protocol, 255]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

fn icmp6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    pseudo.extend([0, 0, 0, ICMP6]);
    pseudo.extend(message);
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    ipv6(from, to, ICMP6, &message)
}

fn arp(operation: u8, from: ([u8; 6], [u8; 4]), to: ([u8; 6], [u8; 4]), mark: &[u8]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &from.0, &from.1, &to.0, &to.1, mark].concat()
}

const A: [u8; 4] = [10, 0, 0, 10];
const B: [u8; 4] = [10, 0, 0, 11];
const NOBODY: [u8; 6] = [0; 6];

fn link_local(n: u8) -> Ipv6Addr {
    Ipv6Addr::from([
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0, 0, n,
    ])
}

const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn datagram(mark: &[u8]) -> Vec<u8> {
    ipv4(A, B, UDP, &udp(1000, 2000, mark))
}

/// A datagram with these tags, the outermost first, each with its type and VLAN.
fn tagged(to: [u8; 6], from: [u8; 6], mark: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, (_, id)) in tags.iter().enumerate() {
        let next = tags.get(at + 1).map_or(IPV4, |next| next.0);
        bytes.extend(id.to_be_bytes());
        bytes.extend(next.to_be_bytes());
    }
    bytes.extend(datagram(mark));
    ethernet(to, from, tags[0].0, &bytes)
}

/// What machine `from` sends to everybody in VLANs.
pub(crate) fn in_vlans(from: u8) -> Vec<(&'static str, Vec<u8>)> {
    [
        ("a VLAN tag", &[(VLAN, 5)][..]),
        ("a provider's VLAN tag", &[(PROVIDER_VLAN, 5)]),
        ("two VLAN tags", &[(VLAN, 1), (VLAN, 6)]),
        (
            "a provider's VLAN tag over another",
            &[(PROVIDER_VLAN, 5), (VLAN, 6)],
        ),
        ("a VLAN tag behind a priority tag", &[(VLAN, 0), (VLAN, 6)]),
        ("two priority tags", &[(VLAN, 0), (VLAN, 0)]),
    ]
    .map(|(what, tags)| (what, tagged(EVERYBODY, mac(from), HOSTILE, tags)))
    .to_vec()
}

/// The same with a tag that names no VLAN.
pub(crate) fn with_priority(from: u8) -> Vec<u8> {
    tagged(EVERYBODY, mac(from), MARK, &[(VLAN, 0)])
}

/// The same with tags that name no VLAN, one or two of them, to one machine.
pub(crate) fn with_priority_to(from: u8, to: &[u8; 6]) -> [Vec<u8>; 2] {
    [&[(VLAN, 0)][..], &[(VLAN, 0), (VLAN, 0)]].map(|tags| tagged(*to, mac(from), HOSTILE, tags))
}

/// A datagram to guest 11, as it may pass.
pub(crate) fn udp_from(mac_from: [u8; 6], address: [u8; 4], port: u16) -> Vec<u8> {
    let packet = ipv4(address, B, UDP, &udp(1000, port, MARK));
    ethernet(mac(11), mac_from, IPV4, &packet)
}

/// A datagram of guest 10 for an address, as it may pass: to everybody.
pub(crate) fn udp_to_all(to: [u8; 4]) -> Vec<u8> {
    ethernet(
        EVERYBODY,
        mac(10),
        IPV4,
        &ipv4(A, to, UDP, &udp(1000, 2000, MARK)),
    )
}

/// A datagram of guest 10 for an address, by way of guest 11.
pub(crate) fn udp_to(to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let packet = ipv4(A, to, UDP, &udp(ports.0, ports.1, MARK));
    ethernet(mac(11), mac(10), IPV4, &packet)
}

/// The same in IPv6.
pub(crate) fn udp6_to(to: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let packet = ipv6(link_local(10), to, UDP, &udp(ports.0, ports.1, MARK));
    ethernet(mac(11), mac(10), IPV6, &packet)
}

/// A message of `ICMPv6` of this type of guest 10, that says of itself only what is true, by way of guest 11.
pub(crate) fn icmp6_to(to: Ipv6Addr, kind: u8, hop_limit: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(link_local(10).octets());
    let mut packet = icmp6(link_local(10), to, &message);
    packet[7] = hop_limit;
    ethernet(mac(11), mac(10), IPV6, &packet)
}

/// An ICMP message from guest 10 to guest 11.
pub(crate) fn icmp(kind: u8, code: u8) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 1, 0, 1];
    message.extend(MARK);
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    ethernet(mac(11), mac(10), IPV4, &ipv4(A, B, ICMP, &message))
}

/// Tells everybody by ARP who has an address.
pub(crate) fn announcement(mac_from: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let own = (mac_from, address);
    ethernet(EVERYBODY, mac_from, ARP, &arp(2, own, own, MARK))
}

/// A frame of a guest as a trace is asked about it; what is not IP at once, it is not asked about.
pub(crate) fn as_traced(frame: &[u8]) -> Option<TracePacket> {
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    let packet = &frame[14..];
    let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap();
    let (source, destination, protocol, above) = match kind {
        IPV4 => (
            IpAddr::from([packet[12], packet[13], packet[14], packet[15]]),
            IpAddr::from([packet[16], packet[17], packet[18], packet[19]]),
            packet[9],
            &packet[20..],
        ),
        IPV6 => (
            IpAddr::from(octets(8)),
            IpAddr::from(octets(24)),
            packet[6],
            &packet[40..],
        ),
        _ => return None,
    };
    let port = |at: usize| u16::from_be_bytes([above[at], above[at + 1]]);
    let protocol = match protocol {
        ICMP | ICMP6 => TraceProtocol::Icmp {
            kind: above[0],
            code: above[1],
        },
        TCP => TraceProtocol::Tcp {
            source_port: Some(port(0)),
            destination_port: port(2),
        },
        UDP => TraceProtocol::Udp {
            source_port: Some(port(0)),
            destination_port: port(2),
        },
        number => TraceProtocol::Number { number },
    };
    let mac: Vec<String> = frame[6..12].iter().map(|it| format!("{it:02x}")).collect();
    Some(TracePacket {
        direction: RuleDirection::Egress,
        source,
        destination,
        mac_address: Some(mac.join(":").parse().unwrap()),
        protocol,
        connection: TraceConnection::New,
    })
}

fn advertisement(target: Ipv6Addr, option_mac: [u8; 6], mark: &[u8]) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(option_mac);
    message.extend(mark);
    ethernet(
        ALL_NODES,
        mac(10),
        IPV6,
        &icmp6(link_local(10), ALL, &message),
    )
}

/// What guest 10 may send to guest 11 and everybody.
pub(crate) fn legitimate() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "a datagram",
            ethernet(mac(11), mac(10), IPV4, &datagram(MARK)),
        ),
        (
            "an ARP request",
            ethernet(
                EVERYBODY,
                mac(10),
                ARP,
                &arp(1, (mac(10), A), (NOBODY, B), MARK),
            ),
        ),
        (
            "a gratuitous ARP for its own address",
            ethernet(
                EVERYBODY,
                mac(10),
                ARP,
                &arp(2, (mac(10), A), (mac(10), A), MARK),
            ),
        ),
    ]
}

/// What guest 10 may not send, and the reason that is counted.
pub(crate) fn hostile() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let announce = |address: [u8; 4]| {
        ethernet(
            EVERYBODY,
            mac(10),
            ARP,
            &arp(2, (mac(10), address), (mac(10), address), HOSTILE),
        )
    };
    let mut offer = vec![2, 1, 6, 0];
    offer.resize(236, 0);
    offer.extend(HOSTILE);
    let mut router = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    router.extend(HOSTILE);
    let mut redirect = vec![137, 0, 0, 0, 0, 0, 0, 0];
    redirect.extend([0; 32]);
    redirect.extend(HOSTILE);
    let from = link_local(10);
    vec![
        (
            "another's Ethernet address",
            "spoofed_mac",
            ethernet(mac(11), mac(99), IPV4, &datagram(HOSTILE)),
        ),
        (
            "another's IPv4 address",
            "spoofed_ip",
            ethernet(
                mac(11),
                mac(10),
                IPV4,
                &ipv4([10, 0, 0, 12], B, UDP, &udp(1000, 2000, HOSTILE)),
            ),
        ),
        (
            "another's IPv6 address",
            "spoofed_ip",
            ethernet(
                ALL_NODES,
                mac(10),
                IPV6,
                &ipv6(link_local(11), ALL, UDP, &udp(1000, 2000, HOSTILE)),
            ),
        ),
        (
            "a gratuitous ARP for its neighbour",
            "spoofed_arp",
            announce(B),
        ),
        (
            "a gratuitous ARP for the gateway",
            "spoofed_arp",
            announce([10, 0, 0, 1]),
        ),
        (
            "an ARP answer with another's Ethernet address",
            "spoofed_arp",
            ethernet(
                mac(11),
                mac(10),
                ARP,
                &arp(2, (mac(77), A), (mac(11), B), HOSTILE),
            ),
        ),
        (
            "a DHCP offer",
            "rogue_dhcp",
            ethernet(
                EVERYBODY,
                mac(10),
                IPV4,
                &ipv4(A, [255; 4], UDP, &udp(67, 68, &offer)),
            ),
        ),
        (
            "a DHCP offer from another port",
            "rogue_dhcp",
            ethernet(
                EVERYBODY,
                mac(10),
                IPV4,
                &ipv4(A, [255; 4], UDP, &udp(1000, 68, &offer)),
            ),
        ),
        (
            "a DHCPv6 answer from another port",
            "rogue_dhcp",
            ethernet(
                ALL_NODES,
                mac(10),
                IPV6,
                &ipv6(from, ALL, UDP, &udp(1000, 546, HOSTILE)),
            ),
        ),
        (
            "a DHCPv6 answer",
            "rogue_dhcp",
            ethernet(
                ALL_NODES,
                mac(10),
                IPV6,
                &ipv6(from, ALL, UDP, &udp(547, 546, HOSTILE)),
            ),
        ),
        (
            "a router advertisement",
            "rogue_ra",
            ethernet(ALL_NODES, mac(10), IPV6, &icmp6(from, ALL, &router)),
        ),
        (
            "a redirect",
            "rogue_ra",
            ethernet(ALL_NODES, mac(10), IPV6, &icmp6(from, ALL, &redirect)),
        ),
        (
            "a VLAN tag",
            "tagged",
            tagged(mac(11), mac(10), HOSTILE, &[(VLAN, 5)]),
        ),
        (
            "a priority tag",
            "tagged",
            tagged(mac(11), mac(10), HOSTILE, &[(VLAN, 0)]),
        ),
        (
            "two VLAN tags",
            "tagged",
            tagged(mac(11), mac(10), HOSTILE, &[(VLAN, 1), (VLAN, 6)]),
        ),
        (
            "a provider's VLAN tag over another",
            "tagged",
            tagged(mac(11), mac(10), HOSTILE, &[(PROVIDER_VLAN, 5), (VLAN, 6)]),
        ),
        (
            "a neighbour advertisement for another's address",
            "spoofed_nd",
            advertisement(link_local(11), mac(10), HOSTILE),
        ),
        (
            "a neighbour advertisement with another's Ethernet address",
            "spoofed_nd",
            advertisement(from, mac(11), HOSTILE),
        ),
        (
            "a spanning tree message",
            "ethertype",
            ethernet(
                [1, 0x80, 0xc2, 0, 0, 0],
                mac(10),
                38,
                &[&[0x42, 0x42, 3][..], HOSTILE].concat(),
            ),
        ),
        (
            "another protocol",
            "ethertype",
            ethernet(EVERYBODY, mac(10), 0x88b5, HOSTILE),
        ),
    ]
}

/// What guest 10 sends to the host at an address of its own, each in a frame to one of the addresses that bridges keep to themselves,
/// as itself and as guest 11.
pub(crate) fn reserved(host: [u8; 4], port: u16) -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    for last in [2, 3, 0xd, 0xe, 0xf] {
        for from in [10, 11] {
            let packet = ipv4(A, host, UDP, &udp(1000, port, HOSTILE));
            let to = [1, 0x80, 0xc2, 0, 0, last];
            let what = format!("to 01:80:c2:00:00:{last:02x} as guest {from}");
            frames.push((what, ethernet(to, mac(from), IPV4, &packet)));
        }
    }
    frames
}

/// What comes in by an uplink and must not: the same address is here as well, or berth alone speaks so in the network.
pub(crate) fn from_outside(service: &[u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let other = mac(200);
    let server = [10, 0, 0, 2];
    let mut router = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    router.extend(HOSTILE);
    vec![
        (
            "a DHCP offer",
            ethernet(
                EVERYBODY,
                other,
                IPV4,
                &ipv4([10, 0, 0, 200], [255; 4], UDP, &udp(67, 68, HOSTILE)),
            ),
        ),
        (
            "a DHCP offer from another port",
            ethernet(
                EVERYBODY,
                other,
                IPV4,
                &ipv4([10, 0, 0, 200], [255; 4], UDP, &udp(1000, 68, HOSTILE)),
            ),
        ),
        (
            "the DHCP server's ARP",
            ethernet(
                EVERYBODY,
                other,
                ARP,
                &arp(2, (other, server), (other, server), HOSTILE),
            ),
        ),
        (
            "the DHCP server's ARP behind a priority tag",
            ethernet(
                EVERYBODY,
                other,
                VLAN,
                &[
                    &[0, 0][..],
                    &ARP.to_be_bytes(),
                    &arp(2, (other, server), (other, server), HOSTILE),
                ]
                .concat(),
            ),
        ),
        (
            "the DHCP server's Ethernet address",
            ethernet(
                EVERYBODY,
                *service,
                IPV4,
                &ipv4([10, 0, 0, 200], B, UDP, &udp(1000, 2000, HOSTILE)),
            ),
        ),
        (
            "a router advertisement",
            ethernet(
                ALL_NODES,
                other,
                IPV6,
                &icmp6(link_local(200), ALL, &router),
            ),
        ),
        (
            "what a switch tells of itself by LLDP",
            ethernet([1, 0x80, 0xc2, 0, 0, 0xe], other, 0x88cc, HOSTILE),
        ),
    ]
}

/// What comes in by an uplink and may.
pub(crate) fn from_stranger() -> Vec<u8> {
    ethernet(
        EVERYBODY,
        mac(200),
        ARP,
        &arp(1, (mac(200), [10, 0, 0, 200]), (NOBODY, A), MARK),
    )
}

/// What guest 10 sends to berth's own services, which are on its host.
pub(crate) fn to_outside() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "a DHCP request",
            ethernet(
                EVERYBODY,
                mac(10),
                IPV4,
                &ipv4([0; 4], [255; 4], UDP, &udp(68, 67, HOSTILE)),
            ),
        ),
        (
            "a DHCP request from another port",
            ethernet(
                EVERYBODY,
                mac(10),
                IPV4,
                &ipv4(A, [255; 4], UDP, &udp(1000, 67, HOSTILE)),
            ),
        ),
        (
            "an ARP request for the DHCP server",
            ethernet(
                EVERYBODY,
                mac(10),
                ARP,
                &arp(1, (mac(10), A), (NOBODY, [10, 0, 0, 2]), HOSTILE),
            ),
        ),
    ]
}
