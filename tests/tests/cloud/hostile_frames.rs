//! Frames that no ordinary tool sends: of DHCP servers, of routers and with tags, from a guest's own addresses, so that nothing else is
//! wrong with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::ensure;
use berth_common::names::MacAddress;
use etherparse::{PacketBuilder, PacketBuilderStep, VlanId};

const EVERYBODY: [u8; 6] = [0xff; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES_IP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Of neighbour discovery: RFC 4861 wants that it came over no router.
const HOP_LIMIT: u8 = 255;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Who sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender {
    pub(crate) mac: MacAddress,
    pub(crate) ip: Ipv4Addr,
}

/// Frames of one kind, and why they are dropped.
pub(crate) struct Frames {
    pub(crate) reason: &'static str,
    pub(crate) frames: Vec<Vec<u8>>,
}

impl Sender {
    /// # Errors
    /// The address is none of IPv4.
    pub(crate) fn new(mac: MacAddress, ip: IpAddr) -> anyhow::Result<Self> {
        let IpAddr::V4(ip) = ip else {
            anyhow::bail!("{ip} is not IPv4");
        };
        Ok(Self { mac, ip })
    }

    /// Its IPv6 address of the link, as RFC 4291 makes one of an Ethernet address.
    pub(crate) fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.octets();
        Ipv6Addr::from([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ])
    }

    /// Everything hostile that it sends as itself. `victim`: whose address it advertises.
    ///
    /// # Errors
    /// One cannot be made.
    pub(crate) fn everything(self, victim: Self) -> anyhow::Result<Vec<Frames>> {
        let bootp = |kind: u8| {
            // An offer or an acknowledgement of RFC 2131, of the address that it has itself.
            let mut reply = vec![2, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0];
            reply.extend(self.ip.octets());
            reply.extend(self.ip.octets());
            reply.resize(236, 0);
            reply.extend([99, 130, 83, 99, 53, 1, kind]);
            reply.extend([54, 4]);
            reply.extend(self.ip.octets());
            reply.push(255);
            reply
        };
        let offers = vec![
            self.datagram4((67, 68), &bootp(2))?,
            self.datagram4((67, 68), &bootp(5))?,
            self.datagram4((1000, 68), &bootp(2))?,
            // An advertisement and a reply of DHCPv6 without options.
            self.datagram6((547, 546), &[2, 1, 2, 3])?,
            self.datagram6((1000, 546), &[7, 1, 2, 3])?,
        ];
        // A prefix for everybody, and the sender as the router: for half an hour.
        let prefix = [
            3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0x66, 0x66, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let times = [0; 8];
        let away = [self.link_local().octets(), victim.link_local().octets()].concat();
        let routers = vec![
            self.icmp6(
                ROUTER_ADVERTISEMENT,
                [64, 0, 7, 8],
                &[&times[..], &prefix].concat(),
            )?,
            self.icmp6(REDIRECT, [0; 4], &away)?,
            self.icmp4(5, self.ip.octets(), &[0; 28])?,
            // RFC 1256: one address of two words, for half an hour, and that is the sender's.
            self.icmp4(9, [1, 2, 7, 8], &[&self.ip.octets()[..], &[0; 4]].concat())?,
        ];
        let override_it = [0x20, 0, 0, 0];
        let mine = [&[2, 1][..], &self.mac.octets()].concat();
        let target = [&victim.link_local().octets()[..], &mine].concat();
        let neighbours = vec![self.icmp6(NEIGHBOUR_ADVERTISEMENT, override_it, &target)?];
        Ok(vec![
            Frames {
                reason: "rogue_dhcp",
                frames: offers,
            },
            Frames {
                reason: "rogue_ra",
                frames: routers,
            },
            Frames {
                reason: "spoofed_nd",
                frames: neighbours,
            },
            Frames {
                reason: "tagged",
                frames: vec![self.in_two_tags(5, 6)?, self.in_two_tags(1, 5)?],
            },
        ])
    }

    fn datagram4(self, (from, to): (u16, u16), payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.octets(), EVERYBODY)
            .ipv4(self.ip.octets(), [255; 4], 64)
            .udp(from, to);
        let mut frame = Vec::new();
        packet.write(&mut frame, payload)?;
        Ok(frame)
    }

    fn datagram6(self, (from, to): (u16, u16), payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut frame = Vec::new();
        self.packet6().udp(from, to).write(&mut frame, payload)?;
        Ok(frame)
    }

    fn icmp6(self, kind: u8, word: [u8; 4], payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut frame = Vec::new();
        let packet = self.packet6().icmpv6_raw(kind, 0, word);
        packet.write(&mut frame, payload)?;
        Ok(frame)
    }

    fn packet6(self) -> PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2(self.mac.octets(), ALL_NODES).ipv6(
            self.link_local().octets(),
            ALL_NODES_IP.octets(),
            HOP_LIMIT,
        )
    }

    fn icmp4(self, kind: u8, word: [u8; 4], payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.octets(), EVERYBODY)
            .ipv4(self.ip.octets(), [255; 4], 1)
            .icmpv4_raw(kind, 0, word);
        let mut frame = Vec::new();
        packet.write(&mut frame, payload)?;
        Ok(frame)
    }

    /// A datagram for everybody in two VLANs.
    fn in_two_tags(self, outer: u16, inner: u16) -> anyhow::Result<Vec<u8>> {
        let packet = PacketBuilder::ethernet2(self.mac.octets(), EVERYBODY)
            .double_vlan(VlanId::try_new(outer)?, VlanId::try_new(inner)?)
            .ipv4(self.ip.octets(), [255; 4], 64)
            .udp(1000, 2000);
        let mut frame = Vec::new();
        packet.write(&mut frame, b"in two tags")?;
        Ok(frame)
    }
}

/// A line of shell that sends them all by a link of the guest.
///
/// # Errors
/// There is none.
pub(crate) fn script(link: &str, all: &[Frames]) -> anyhow::Result<String> {
    ensure!(!all.is_empty(), "nothing to send");
    let hex = |frame: &Vec<u8>| -> String { frame.iter().map(|it| format!("{it:02x}")).collect() };
    let lines: Vec<String> = all.iter().flat_map(|it| &it.frames).map(hex).collect();
    Ok(format!(
        "frame {link} <<'FRAMES'\n{}\nFRAMES\n",
        lines.join("\n")
    ))
}
