//! Tells everybody in a network where an address is now: gratuitous ARP, and unsolicited neighbour advertisements, as frames. The
//! neighbours of an address that has moved would otherwise go on sending to where it was, until their caches forget.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};

use crate::{act::net::error::NetError, decide::network::Herald};

/// How often an address is told: a frame can be lost.
const TIMES: usize = 3;
/// The pauses in between. (The first frame may come before a bridge forwards for the new link.)
const PAUSE: Duration = Duration::from_secs(1);

/// Tells of addresses in the network a link of the calling thread's namespace is in: now, and again from a thread of its own.
pub(super) fn announce(
    link: &str,
    mac: [u8; 6],
    addresses: &BTreeSet<IpAddr>,
) -> Result<(), NetError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let frames = move |addresses: &BTreeSet<IpAddr>| -> Vec<Vec<u8>> {
        addresses
            .iter()
            .flat_map(|address| match address {
                IpAddr::V4(address) => vec![arp(mac, *address, 1), arp(mac, *address, 2)],
                IpAddr::V6(address) => vec![advertisement(mac, *address)],
            })
            .collect()
    };
    send(link, &frames(addresses))?;
    let (link, mut addresses) = (link.to_owned(), addresses.clone());
    // It is in the same namespace, and at its end in a moment.
    thread::Builder::new()
        .name("announce".to_owned())
        .spawn(move || {
            for _ in 1..TIMES {
                thread::sleep(PAUSE);
                // An address that left is somewhere else by now: telling of it here would take it away again.
                let again = addresses_of(&link).and_then(|there| {
                    addresses.retain(|address| there.contains(address));
                    send(&link, &frames(&addresses))
                });
                if let Err(error) = again {
                    tracing::debug!(link, %error, "addresses are not announced again");
                    return;
                }
            }
        })
        .map_err(NetError::system("start a thread"))?;
    Ok(())
}

/// Tells a physical network, once, by links of the calling thread's namespace, where guests are.
pub(in crate::act::net) fn herald(herald: &Herald) -> Result<(), NetError> {
    let frames: Vec<Vec<u8>> = herald.ports.iter().map(|mac| reverse_arp(*mac)).collect();
    herald.links.iter().try_for_each(|link| send(link, &frames))
}

fn send(link: &str, frames: &[Vec<u8>]) -> Result<(), NetError> {
    let to = address(link)?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(NetError::system("open a packet socket"))?;
    // One that does not go out takes none of the others with it.
    let mut sent = Ok(());
    for frame in frames {
        let this = sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty());
        sent = sent.and(this.map(drop));
    }
    sent.map_err(NetError::system(format!("send a frame by link {link}")))
}

/// The addresses that a link has at the moment.
fn addresses_of(link: &str) -> Result<BTreeSet<IpAddr>, NetError> {
    let all = getifaddrs().map_err(NetError::system("list the addresses"))?;
    let of_link = all.filter(|found| found.interface_name == link);
    Ok(of_link
        .filter_map(|found| {
            let address = found.address?;
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
        })
        .collect())
}

fn address(link: &str) -> Result<LinkAddr, NetError> {
    let mut all = getifaddrs().map_err(NetError::system("list the links"))?;
    all.find(|found| found.interface_name == link)
        .and_then(|found| found.address?.as_link_addr().copied())
        .ok_or_else(|| NetError::Absent {
            link: link.to_owned(),
        })
}

/// An ARP frame to all that says where an address is (RFC 5227, 3): a request (1) or a reply (2), as some listen only to one.
fn arp(mac: [u8; 6], address: Ipv4Addr, operation: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, operation]);
    for target in [mac, [0xff; 6]] {
        frame.extend(target);
        frame.extend(address.octets());
    }
    frame
}

/// A frame to all that is of use to switches alone, as hypervisors send it for guests: who asks for its own IP address by reverse ARP
/// (RFC 903) says of itself no more than its Ethernet address.
fn reverse_arp(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([0x80, 0x35, 0, 1, 0x08, 0x00, 6, 4, 0, 3]);
    for whose in [mac, mac] {
        frame.extend(whose);
        frame.extend(Ipv4Addr::UNSPECIFIED.octets());
    }
    // The shortest that Ethernet has.
    frame.resize(60, 0);
    frame
}

/// A router's unsolicited neighbour advertisement to all nodes that takes the place of what was known (RFC 4861, 7.2.6).
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const LENGTH: u8 = 32;
    // Type 136; the target; its link-layer address.
    let mut body = vec![136, 0, 0, 0, 0xa0, 0, 0, 0];
    body.extend(address.octets());
    body.extend([2, 1]);
    body.extend(mac);
    let mut pseudo = Vec::new();
    pseudo.extend(address.octets());
    pseudo.extend(ALL_NODES);
    pseudo.extend([0, 0, 0, LENGTH, 0, 0, 0, 58]);
    pseudo.extend(&body);
    body[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());

    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, LENGTH, 58, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES);
    frame.extend(body);
    frame
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            u32::from(u16::from_be_bytes([high, low]))
        })
        .sum();
    while sum > u32::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gratuitous_arp_says_who_has_the_address_to_all() {
        let frame = arp([2, 0, 0, 0, 0, 7], Ipv4Addr::new(198, 51, 100, 7), 1);
        assert_eq!(frame.len(), 42);
        assert_eq!(
            frame[28..32],
            frame[38..42],
            "sender and target are the same"
        );
        assert_eq!(frame[22..28], [2, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn switches_are_told_an_ethernet_address_and_nothing_else() {
        let mac = [2, 0, 0, 0, 0, 7];
        let frame = reverse_arp(mac);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
        assert_eq!((&frame[28..32], &frame[38..42]), (&[0; 4][..], &[0; 4][..]));
    }

    #[test]
    fn the_checksum_of_an_advertisement_is_right() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap_or(Ipv6Addr::LOCALHOST);
        let frame = advertisement([2, 0, 0, 0, 0, 7], address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // Over the pseudo-header and the body with its checksum, the sum is nothing.
        let mut all = frame[22..54].to_vec();
        all.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        all.extend(&frame[54..]);
        assert_eq!(checksum(&all), 0);
    }
}
