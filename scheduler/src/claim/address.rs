//! Which address a port gets: pure.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_common::{
    document::{FixedIp, Ipv6AddressMode},
    ids::{InstanceId, SubnetId},
    message::network::AllocationPool,
    names::MacAddress,
};
use berth_store::subnets::SubnetRow;
use ipnet::IpNet;

/// Why an address cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is not an address of one machine in the subnet.
    #[error("{address} is not an address for a port in {subnet}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: String,
    },
    /// The subnet itself uses it.
    #[error("{address} is the {user} of {subnet}")]
    Reserved {
        /// The address.
        address: IpAddr,
        /// What for.
        user: &'static str,
        /// The subnet.
        subnet: String,
    },
    /// Another port has it.
    #[error("{address} is already used by another port in {subnet}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: String,
    },
    /// Guests make their addresses in the subnet themselves.
    #[error(
        "in {subnet} guests make their address themselves: with this Ethernet address it is {own}, not {address}"
    )]
    Automatic {
        /// The address.
        address: IpAddr,
        /// The one that it will be.
        own: IpAddr,
        /// The subnet.
        subnet: String,
    },
    /// All are taken.
    #[error("no address is free in {subnet}: all {used} are used")]
    Full {
        /// The subnet.
        subnet: String,
        /// How many ports it has.
        used: usize,
    },
}

/// The addresses of a port with this Ethernet address: one of IPv4 and one of IPv6, if the network has such subnets, and the one
/// that its guest makes itself in each subnet that lets it. `wish`: the one it shall have of its family; `used`: those in use,
/// by subnet.
///
/// # Errors
/// [`AddressError`] says which cannot be had.
pub fn choose_all(
    subnets: &[SubnetRow],
    used: &HashMap<SubnetId, BTreeSet<IpAddr>>,
    mac: MacAddress,
    wish: Option<IpAddr>,
) -> Result<Vec<FixedIp>, AddressError> {
    let none = BTreeSet::new();
    let used = |subnet: &SubnetRow| used.get(&subnet.id).unwrap_or(&none);
    let wished = match wish {
        Some(address) => Some((wished_subnet(subnets, address)?, address)),
        None => None,
    };
    let (automatic, given): (Vec<&SubnetRow>, Vec<&SubnetRow>) = subnets
        .iter()
        .partition(|subnet| subnet.ipv6_address_mode == Some(Ipv6AddressMode::Slaac));
    let mut chosen = Vec::new();
    for is_ipv6 in [false, true] {
        let mut family = given
            .iter()
            .copied()
            .filter(|subnet| subnet.cidr.is_ipv6() == is_ipv6);
        let wished = wished.filter(|(subnet, _)| {
            subnet.cidr.is_ipv6() == is_ipv6
                && subnet.ipv6_address_mode != Some(Ipv6AddressMode::Slaac)
        });
        if let Some((subnet, address)) = wished {
            let ip_address = choose(subnet, used(subnet), Some(address))?;
            chosen.push(fixed(subnet, ip_address));
            continue;
        }
        let found = family
            .clone()
            .find_map(|subnet| Some(fixed(subnet, lowest_free(subnet, used(subnet))?)));
        match (found, family.next()) {
            (Some(found), _) => chosen.push(found),
            (None, Some(first)) => {
                let full: Vec<&SubnetRow> = std::iter::once(first).chain(family).collect();
                return Err(AddressError::Full {
                    subnet: joined(full.iter().copied()),
                    used: full.iter().map(|subnet| used(subnet).len()).sum(),
                });
            }
            (None, None) => {}
        }
    }
    for subnet in automatic {
        let address = own_address(subnet, mac);
        if let Some((in_subnet, wish)) = wished
            && in_subnet.id == subnet.id
            && wish != address
        {
            return Err(AddressError::Automatic {
                address: wish,
                own: address,
                subnet: subnet.cidr.to_string(),
            });
        }
        let ip_address = choose(subnet, used(subnet), Some(address))?;
        chosen.push(fixed(subnet, ip_address));
    }
    Ok(chosen)
}

const fn fixed(subnet: &SubnetRow, ip_address: IpAddr) -> FixedIp {
    FixedIp {
        subnet_id: subnet.id,
        ip_address,
    }
}

fn wished_subnet(subnets: &[SubnetRow], wish: IpAddr) -> Result<&SubnetRow, AddressError> {
    let subnet = subnets
        .iter()
        .find(|subnet| subnet.cidr.net().contains(&wish));
    subnet.ok_or_else(|| AddressError::Outside {
        address: wish,
        subnet: match subnets {
            [] => "a network without subnets".to_owned(),
            subnets => joined(subnets.iter()),
        },
    })
}

fn joined<'a>(subnets: impl Iterator<Item = &'a SubnetRow>) -> String {
    let cidrs: Vec<String> = subnets.map(|subnet| subnet.cidr.to_string()).collect();
    cidrs.join(", ")
}

/// The address that a guest makes itself of a subnet's prefix of 64 bits and its Ethernet address: the modified EUI-64 format
/// of RFC 4291, appendix A.
fn own_address(subnet: &SubnetRow, mac: MacAddress) -> IpAddr {
    let IpAddr::V6(prefix) = subnet.cidr.net().network() else {
        return subnet.cidr.net().network();
    };
    let mut octets = prefix.octets();
    let [a, b, c, d, e, f] = mac.octets();
    octets[8..].copy_from_slice(&[a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    IpAddr::from(octets)
}

/// The wished address if it can be had, or else the lowest free one of the allocation pools.
///
/// # Errors
/// [`AddressError`] says why there is none.
pub fn choose(
    subnet: &SubnetRow,
    used: &BTreeSet<IpAddr>,
    wish: Option<IpAddr>,
) -> Result<IpAddr, AddressError> {
    let name = || subnet.cidr.to_string();
    match wish {
        Some(address) => {
            if !subnet.cidr.is_host_address(address) {
                Err(AddressError::Outside {
                    address,
                    subnet: name(),
                })
            } else if let Some(user) = reserved(subnet, address) {
                Err(AddressError::Reserved {
                    address,
                    user,
                    subnet: name(),
                })
            } else if used.contains(&address) {
                Err(AddressError::Taken {
                    address,
                    subnet: name(),
                })
            } else {
                Ok(address)
            }
        }
        None => lowest_free(subnet, used).ok_or_else(|| AddressError::Full {
            subnet: name(),
            used: used.len(),
        }),
    }
}

/// The addresses that ports of a subnet get unless they ask for another.
#[must_use]
pub fn pools(subnet: &SubnetRow) -> Vec<AllocationPool> {
    if !subnet.allocation_pools.is_empty() {
        return subnet.allocation_pools.clone();
    }
    let (net, first) = (subnet.cidr.net(), subnet.cidr.net().network());
    let last = match net {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from_bits(u32::from(net.broadcast()) - 1)),
        IpNet::V6(net) => IpAddr::V6(net.broadcast()),
    };
    after(first)
        .map(|start| AllocationPool { start, end: last })
        .into_iter()
        .collect()
}

fn lowest_free(subnet: &SubnetRow, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    pools(subnet)
        .into_iter()
        .find_map(|pool| free_in(pool, subnet, used))
}

fn free_in(pool: AllocationPool, subnet: &SubnetRow, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let mut next = Some(pool.start);
    let mut taken = used.range(pool.start..).peekable();
    while let Some(address) = next.filter(|address| *address <= pool.end) {
        let is_taken = taken.next_if(|taken| **taken == address).is_some();
        if !is_taken && reserved(subnet, address).is_none() {
            return Some(address);
        }
        next = after(address);
    }
    None
}

/// The next address.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into()),
    }
}

fn reserved(subnet: &SubnetRow, address: IpAddr) -> Option<&'static str> {
    if subnet.gateway_ip == Some(address) {
        Some("gateway")
    } else if subnet.dhcp_ip == Some(address) {
        Some("DHCP server")
    } else {
        None
    }
}

/// An Ethernet address that no port of the network has: derived from the instance and the port's position, so
/// that a repeated request arrives at the same one.
#[must_use]
pub fn choose_mac(used: &BTreeSet<MacAddress>, instance: InstanceId, position: u8) -> MacAddress {
    let mut seed = instance.as_uuid().as_bytes().to_vec();
    seed.push(position);
    loop {
        let mac = MacAddress::derived(&seed);
        if !used.contains(&mac) {
            return mac;
        }
        seed.push(0);
    }
}

#[cfg(test)]
mod tests {
    use berth_common::ids::NetworkId;
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;

    fn subnet(cidr: &str, gateway: Option<&str>, dhcp: &str) -> SubnetRow {
        SubnetRow {
            id: SubnetId::new(),
            network_id: NetworkId::new(),
            name: None,
            cidr: cidr.parse().unwrap(),
            gateway_ip: gateway.map(|address| address.parse().unwrap()),
            dhcp_ip: Some(dhcp.parse().unwrap()),
            allocation_pools: Vec::new(),
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            ipv6_address_mode: None,
            fingerprint: String::new(),
            created_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
        }
    }

    fn pool(start: &str, end: &str) -> AllocationPool {
        AllocationPool {
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        }
    }

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    /// The addresses of a port, or why it gets none.
    fn all(
        subnets: &[SubnetRow],
        used: &HashMap<SubnetId, BTreeSet<IpAddr>>,
        wish: Option<&str>,
    ) -> Result<Vec<String>, String> {
        let mac = MacAddress::from_octets(MAC).unwrap();
        let wish = wish.map(|wish| wish.parse().unwrap());
        choose_all(subnets, used, mac, wish)
            .map(|found| found.iter().map(|ip| ip.ip_address.to_string()).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_port_has_one_address_of_each_family_and_one_of_each_automatic_subnet() {
        let v4 = subnet("10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2");
        let more = subnet("10.1.0.0/24", None, "10.1.0.2");
        let v6 = subnet("fd00:1::/64", Some("fd00:1::1"), "fd00:1::2");
        let mut slaac = subnet("fd00:2::/64", None, "fd00:2::2");
        slaac.ipv6_address_mode = Some(Ipv6AddressMode::Slaac);
        let none = HashMap::new();
        let subnets = [slaac.clone(), v4.clone(), more.clone(), v6];
        let own = "fd00:2::5054:ff:fe12:3456";
        assert_eq!(
            all(&subnets, &none, None).unwrap(),
            ["10.0.0.3", "fd00:1::3", own]
        );
        let wished = all(&subnets, &none, Some("10.1.0.9")).unwrap();
        assert_eq!(wished, ["10.1.0.9", "fd00:1::3", own]);
        let wished = all(&subnets, &none, Some("fd00:1::abcd")).unwrap();
        assert_eq!(wished, ["10.0.0.3", "fd00:1::abcd", own]);
        assert_eq!(all(&subnets, &none, Some(own)).unwrap()[2], own);
        assert_eq!(
            all(&subnets, &none, Some("fd00:2::7")).unwrap_err(),
            format!(
                "in fd00:2::/64 guests make their address themselves: with this Ethernet address it is {own}, not fd00:2::7"
            )
        );
        assert_eq!(
            all(&subnets, &none, Some("10.9.0.1")).unwrap_err(),
            "10.9.0.1 is not an address for a port in fd00:2::/64, 10.0.0.0/24, 10.1.0.0/24, fd00:1::/64"
        );
        assert_eq!(all(&[], &none, None).unwrap(), Vec::<String>::new());
        assert!(all(&[], &none, Some("10.0.0.1")).is_err());
        // What its guest will make itself must be nobody else's.
        let used = HashMap::from([(slaac.id, BTreeSet::from([own.parse().unwrap()]))]);
        assert!(
            all(&[slaac], &used, None)
                .unwrap_err()
                .contains("already used")
        );
        // The second subnet is for when the first is full.
        let mut full = v4;
        full.allocation_pools = vec![pool("10.0.0.9", "10.0.0.9")];
        let mut last = more;
        last.allocation_pools = vec![pool("10.1.0.9", "10.1.0.9")];
        let mut used = HashMap::from([(full.id, BTreeSet::from([IpAddr::from([10, 0, 0, 9])]))]);
        let subnets = [full, last.clone()];
        assert_eq!(all(&subnets, &used, None).unwrap(), ["10.1.0.9"]);
        used.insert(last.id, BTreeSet::from([IpAddr::from([10, 1, 0, 9])]));
        assert_eq!(
            all(&subnets, &used, None).unwrap_err(),
            "no address is free in 10.0.0.0/24, 10.1.0.0/24: all 2 are used"
        );
    }

    #[test]
    fn addresses_come_from_the_pools_and_wishes_from_anywhere() {
        let mut subnet = subnet("10.0.0.0/24", Some("10.0.0.20"), "10.0.0.2");
        subnet.allocation_pools =
            vec![pool("10.0.0.20", "10.0.0.21"), pool("10.0.0.5", "10.0.0.5")];
        let mut used = BTreeSet::new();
        for last in [21, 5] {
            let address = choose(&subnet, &used, None).unwrap();
            assert_eq!(address, IpAddr::from([10, 0, 0, last]));
            used.insert(address);
        }
        assert!(choose(&subnet, &used, None).is_err());
        let outside = IpAddr::from([10, 0, 0, 99]);
        assert_eq!(choose(&subnet, &used, Some(outside)), Ok(outside));
    }

    #[test]
    fn a_small_subnet_hands_out_each_address_once_and_then_says_that_it_is_full() {
        let subnet = subnet("10.0.0.0/29", Some("10.0.0.1"), "10.0.0.2");
        let mut used = BTreeSet::new();
        for last in 3..=6 {
            let address = choose(&subnet, &used, None).unwrap();
            assert_eq!(address, IpAddr::from([10, 0, 0, last]));
            assert!(used.insert(address));
        }
        let full = choose(&subnet, &used, None).unwrap_err();
        assert_eq!(
            full.to_string(),
            "no address is free in 10.0.0.0/29: all 4 are used"
        );
    }

    #[test]
    fn wishes_are_granted_or_refused_by_name() {
        let subnet = subnet("10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2");
        let used = BTreeSet::from([IpAddr::from([10, 0, 0, 9])]);
        let check = |wish: [u8; 4], expected: Result<(), &str>| {
            let answer = choose(&subnet, &used, Some(wish.into()))
                .map(|_| ())
                .map_err(|error| error.to_string());
            assert_eq!(answer, expected.map_err(str::to_owned));
        };
        check([10, 0, 0, 50], Ok(()));
        check([10, 0, 0, 1], Err("10.0.0.1 is the gateway of 10.0.0.0/24"));
        check(
            [10, 0, 0, 2],
            Err("10.0.0.2 is the DHCP server of 10.0.0.0/24"),
        );
        check(
            [10, 0, 0, 9],
            Err("10.0.0.9 is already used by another port in 10.0.0.0/24"),
        );
        check(
            [10, 0, 0, 255],
            Err("10.0.0.255 is not an address for a port in 10.0.0.0/24"),
        );
        check(
            [10, 0, 1, 5],
            Err("10.0.1.5 is not an address for a port in 10.0.0.0/24"),
        );
    }

    proptest! {
        #[test]
        fn the_chosen_address_is_the_lowest_free_one_of_the_first_pool_with_any(
            used in prop::collection::btree_set(0_u8..=255, 0..256),
            pools in prop::collection::vec((1_u8..=254, 0_u8..20), 0..4),
            gateway in prop::option::of(1_u8..=254), dhcp in 1_u8..=254,
        ) {
            let at = |last: u8| IpAddr::from([10, 0, 0, last]);
            let mut subnet = subnet("10.0.0.0/24", None, "10.0.0.2");
            subnet.gateway_ip = gateway.map(at);
            subnet.dhcp_ip = Some(at(dhcp));
            let pools: Vec<(u8, u8)> = pools
                .into_iter()
                .map(|(start, more)| (start, start.saturating_add(more).min(254)))
                .collect();
            subnet.allocation_pools = pools
                .iter()
                .map(|(start, end)| AllocationPool { start: at(*start), end: at(*end) })
                .collect();
            let pools = if pools.is_empty() { vec![(1, 254)] } else { pools };
            let expected = pools
                .into_iter()
                .flat_map(|(start, end)| start..=end)
                .find(|last| !used.contains(last) && Some(*last) != gateway && *last != dhcp);
            let used: BTreeSet<IpAddr> = used.into_iter().map(at).collect();
            prop_assert_eq!(choose(&subnet, &used, None).ok(), expected.map(at));
        }

        #[test]
        fn an_ipv6_subnet_gives_each_address_once(count in 1_usize..60) {
            let subnet = subnet("fd00:1::/64", Some("fd00:1::1"), "fd00:1::2");
            let mut used = BTreeSet::new();
            for _ in 0..count {
                let address = choose(&subnet, &used, None).unwrap();
                prop_assert!(subnet.cidr.is_host_address(address));
                prop_assert!(reserved(&subnet, address).is_none());
                prop_assert!(used.insert(address));
            }
        }

        #[test]
        fn a_chosen_mac_is_never_a_used_one(instances in 1_usize..50) {
            let mut used = BTreeSet::new();
            for _ in 0..instances {
                let mac = choose_mac(&used, InstanceId::new(), 0);
                prop_assert!(used.insert(mac));
            }
        }
    }
}
