//! Which address a port gets: pure.

use std::{collections::BTreeSet, net::IpAddr};

use berth_common::names::MacAddress;
use berth_store::networks::SubnetRow;
use uuid::Uuid;

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
    /// All are taken.
    #[error("no address is free in {subnet}: all {used} are used")]
    Full {
        /// The subnet.
        subnet: String,
        /// How many ports it has.
        used: usize,
    },
}

/// The wished address if it can be had, or else the lowest free one.
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
        None => subnet
            .cidr
            .net()
            .hosts()
            .filter(|address| subnet.cidr.is_host_address(*address))
            .find(|address| reserved(subnet, *address).is_none() && !used.contains(address))
            .ok_or_else(|| AddressError::Full {
                subnet: name(),
                used: used.len(),
            }),
    }
}

fn reserved(subnet: &SubnetRow, address: IpAddr) -> Option<&'static str> {
    if subnet.gateway_ip == Some(address) {
        Some("gateway")
    } else if subnet.dhcp_ip == address {
        Some("DHCP server")
    } else {
        None
    }
}

/// An Ethernet address that no port of the network has: derived from the port, or its instance and its position there, so
/// that a repeated request arrives at the same one.
#[must_use]
pub fn choose_mac(used: &BTreeSet<MacAddress>, (id, position): (Uuid, u8)) -> MacAddress {
    let mut seed = id.as_bytes().to_vec();
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
    use berth_common::ids::{NetworkId, SubnetId};
    use proptest::prelude::*;

    use super::*;

    fn subnet(cidr: &str, gateway: Option<&str>, dhcp: &str) -> SubnetRow {
        SubnetRow {
            id: SubnetId::new(),
            network_id: NetworkId::new(),
            cidr: cidr.parse().unwrap(),
            gateway_ip: gateway.map(|address| address.parse().unwrap()),
            dhcp_ip: dhcp.parse().unwrap(),
            dns_nameservers: Vec::new(),
        }
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
        fn a_chosen_mac_is_never_a_used_one(instances in 1_usize..50) {
            let mut used = BTreeSet::new();
            for _ in 0..instances {
                let mac = choose_mac(&used, (Uuid::new_v4(), 0));
                prop_assert!(used.insert(mac));
            }
        }
    }
}
