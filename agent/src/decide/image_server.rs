//! Which addresses an image may be fetched from. The agent asks as the host itself: what listens only for the host's own
//! programs would answer it, and whoever named the URL would learn of it, or have it as a disk.
//!
//! What the host's name service says is judged, and of each redirect again; what is connected to is the address that was judged.
//! Private ranges are not among what is refused: that is where operators keep images.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// The key of the configuration by which addresses are allowed that would be refused.
pub const ALLOW_KEY: &str = "storage.image_url_allow";

/// What an address is that no image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This host, whatever it is called: its loopback, or an address of one of its interfaces.
    ThisHost,
    /// What is next to it, without a router between: cloud providers tell their secrets there.
    Link,
    /// Nobody in particular.
    Nobody,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThisHost => "the hypervisor's own",
            Self::Link => "link-local",
            Self::Nobody => "no single machine's",
        })
    }
}

/// An image is not fetched from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server's address {address} is {place}, and no image is fetched from there unless the hypervisor's configuration allows \
     it ({ALLOW_KEY} in agent.toml)"
)]
pub struct Forbidden {
    /// What was found.
    pub address: IpAddr,
    /// What that is.
    pub place: Place,
}

/// Whether an image may be fetched from an address. `own`: those of the host's interfaces; `allowed`: what the operator allows
/// besides.
///
/// # Errors
/// What it is instead.
pub fn check(address: IpAddr, own: &BTreeSet<IpAddr>, allowed: &[IpNet]) -> Result<(), Forbidden> {
    let meant = meant(address);
    let is_allowed = |net: &IpNet| net.contains(&address) || net.contains(&meant);
    if allowed.iter().any(is_allowed) {
        return Ok(());
    }
    let is_own = own.contains(&address) || own.contains(&meant);
    let place = if is_own {
        Some(Place::ThisHost)
    } else {
        match meant {
            IpAddr::V4(v4) => of_v4(v4),
            IpAddr::V6(v6) => of_v6(v6),
        }
    };
    place.map_or(Ok(()), |place| Err(Forbidden { address, place }))
}

fn of_v4(address: Ipv4Addr) -> Option<Place> {
    match address.octets() {
        // The kernel takes 0.0.0.0 for the host itself.
        [0, ..] | [127, ..] => Some(Place::ThisHost),
        [169, 254, ..] => Some(Place::Link),
        // Multicast, what is kept for later, and everybody.
        [224..=255, ..] => Some(Place::Nobody),
        _ => None,
    }
}

fn of_v6(address: Ipv6Addr) -> Option<Place> {
    if address.is_loopback() || address.is_unspecified() {
        return Some(Place::ThisHost);
    }
    match address.segments() {
        [0xfe80..=0xfebf, ..] => Some(Place::Link),
        [0xff00..=0xffff, ..] => Some(Place::Nobody),
        _ => None,
    }
}

/// The address of IPv4 that one of IPv6 stands for, however it is written: mapped (RFC 4291), compatible (its predecessor), behind
/// NAT64 (RFC 6052) or 6to4 (RFC 3056). Any other one is itself.
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let two = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => two(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_place(address: &str, place: Option<Place>) {
        let own = BTreeSet::from(["192.0.2.7", "2001:db8::7"].map(|it| it.parse().unwrap()));
        let address = address.parse().unwrap();
        let found = check(address, &own, &[]).err();
        assert_eq!(found.map(|it| it.place), place, "{address}");
    }

    #[test]
    fn what_only_the_host_itself_reaches_is_refused() {
        for address in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "2002:7f00:1::",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "2001:db8::7",
        ] {
            check_place(address, Some(Place::ThisHost));
        }
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::a9fe:a9fe",
            "febf::1",
        ] {
            check_place(address, Some(Place::Link));
        }
        for address in [
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::ffff:224.0.0.1",
            "ff02::1",
        ] {
            check_place(address, Some(Place::Nobody));
        }
    }

    #[test]
    fn everything_else_is_where_images_are() {
        for address in [
            "192.0.2.8",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "2001:db8::8",
            "fc00::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "169.253.0.1",
            "128.0.0.1",
        ] {
            check_place(address, None);
        }
    }

    #[test]
    fn what_is_allowed_is_not_refused_and_nothing_else_with_it() {
        let own = BTreeSet::from(["192.0.2.7".parse().unwrap()]);
        let allowed: Vec<IpNet> = ["127.0.0.2/32", "192.0.2.0/24", "fe80::/10"]
            .map(|net| net.parse().unwrap())
            .into();
        let is_allowed = |text: &str| check(text.parse().unwrap(), &own, &allowed).is_ok();
        for address in ["127.0.0.2", "::ffff:127.0.0.2", "192.0.2.7", "fe80::1"] {
            assert!(is_allowed(address), "{address}");
        }
        for address in ["127.0.0.1", "169.254.169.254", "::1"] {
            assert!(!is_allowed(address), "{address}");
        }
    }

    #[test]
    fn whoever_is_refused_is_told_which_address_and_what_to_set() {
        let address = "127.0.0.1".parse().unwrap();
        let told = check(address, &BTreeSet::new(), &[])
            .unwrap_err()
            .to_string();
        for part in ["127.0.0.1", "own", "storage.image_url_allow"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
