//! Whom a router finds on other hosts. Nothing is asked there: a leg's questions and answers stay on its host, as the other hosts
//! have the same leg. The networks' documents tell who is there, and with which Ethernet address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{Document, NetworkSpec},
    ids::NetworkId,
};

use super::{Leg, Side, wanted::WantedLeg};

/// Ethernet addresses by IP address.
pub type Neighbours = BTreeMap<IpAddr, [u8; 6]>;

/// The ports on other hosts that a document tells of: none, if it is not of a network.
#[must_use]
pub fn neighbours_of(document: &Document) -> Neighbours {
    match document {
        Document::Network(wish) => wish.spec.as_ref().map(remote).unwrap_or_default(),
        Document::Instance(_)
        | Document::Router(_)
        | Document::Snapshot(_)
        | Document::Volume(_) => Neighbours::new(),
    }
}

/// The ports on other hosts in the networks that these legs are in. Outside a router asks for itself.
#[must_use]
pub fn neighbours<'a>(
    legs: &BTreeSet<Leg>,
    documents: impl Iterator<Item = &'a Document>,
) -> BTreeMap<NetworkId, Neighbours> {
    let networks: BTreeSet<NetworkId> = legs
        .iter()
        .filter(|leg| leg.side == Side::Inside)
        .map(|leg| leg.network)
        .collect();
    documents
        .filter_map(|document| match document {
            Document::Network(wish) if networks.contains(&wish.id) => {
                Some((wish.id, neighbours_of(document)))
            }
            _ => None,
        })
        .collect()
}

/// A port of this host answers for itself, also while a document tells of it at both places.
fn remote(spec: &NetworkSpec) -> Neighbours {
    let fixed = spec.ports.iter().flat_map(|port| &port.fixed_ips);
    let addresses_here: BTreeSet<IpAddr> = fixed.map(|fixed| fixed.ip_address).collect();
    let here: BTreeSet<[u8; 6]> = spec
        .ports
        .iter()
        .map(|port| port.mac_address.octets())
        .collect();
    spec.remote_ports
        .iter()
        .map(|port| (port.mac_address.octets(), &port.ip_addresses))
        .filter(|(mac, _)| !here.contains(mac))
        .flat_map(|(mac, addresses)| addresses.iter().map(move |address| (*address, mac)))
        .filter(|(address, _)| !addresses_here.contains(address))
        .collect()
}

/// Whom a leg shall know of these: those in its own subnets.
pub(super) fn known(leg: &WantedLeg, all: Option<&Neighbours>) -> Neighbours {
    let is_near = |address: IpAddr| {
        let mut own = leg.addresses.iter();
        own.clone().any(|own| own.contains(&address)) && own.all(|own| own.addr() != address)
    };
    let all = all.into_iter().flatten();
    all.filter(|(address, _)| is_near(**address))
        .map(|(address, mac)| (*address, *mac))
        .collect()
}

#[cfg(test)]
mod tests {
    use berth_common::{
        document::{Desired, RemotePort},
        ids::{HostId, RouterId},
        units::Generation,
    };
    use serde_json::json;

    use super::*;

    fn document(spec: NetworkSpec) -> Document {
        Document::Network(Desired {
            id: NetworkId::new(),
            generation: Generation(1),
            host_id: HostId::new(),
            spec: Some(spec),
        })
    }

    fn far(mac: u8, addresses: &[&str]) -> RemotePort {
        RemotePort {
            mac_address: format!("52:54:00:00:00:{mac:02x}").parse().unwrap(),
            hostname: "far".parse().unwrap(),
            ip_addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            tunnel_ip: None,
        }
    }

    fn spec(near: u8, remote_ports: Vec<RemotePort>) -> NetworkSpec {
        let port = json!({
            "id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
            "instance_id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12",
            "mac_address": format!("52:54:00:00:00:{near:02x}"),
            "hostname": "near",
            "fixed_ips": [{
                "subnet_id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a13",
                "ip_address": format!("10.0.0.{near}"),
            }],
        });
        let spec = json!({
            "name": "net", "project": "default", "network_type": "vxlan", "mtu": 1450, "subnets": [],
            "ports": [port],
        });
        NetworkSpec {
            remote_ports,
            ..serde_json::from_value(spec).unwrap()
        }
    }

    const fn mac(n: u8) -> [u8; 6] {
        [0x52, 0x54, 0, 0, 0, n]
    }

    #[test]
    fn a_port_that_is_here_as_well_answers_for_itself() {
        let told = neighbours_of(&document(spec(
            10,
            vec![
                far(11, &["10.0.0.11", "2001:db8::11"]),
                // It came here, and the place it left is still told; another one had its address before.
                far(10, &["10.0.0.10", "10.0.0.99"]),
                far(12, &["10.0.0.10"]),
            ],
        )));
        let wanted: Neighbours = [
            ("10.0.0.11".parse().unwrap(), mac(11)),
            ("2001:db8::11".parse().unwrap(), mac(11)),
        ]
        .into();
        assert_eq!(told, wanted);
    }

    #[test]
    fn only_networks_inside_tell_whom_a_router_knows() {
        let [inside, outside, other] =
            [11, 12, 13].map(|n| document(spec(10, vec![far(n, &["10.0.0.20"])])));
        let id = |document: &Document| match document {
            Document::Network(wish) => wish.id,
            _ => panic!("{document:?}"),
        };
        let router = RouterId::new();
        let legs = BTreeSet::from([
            Leg::inside(router, id(&inside)),
            Leg::outside(router, id(&outside)),
        ]);
        let found = neighbours(&legs, [&inside, &outside, &other].into_iter());
        assert_eq!(found.keys().collect::<Vec<_>>(), [&id(&inside)]);
        assert_eq!(
            found[&id(&inside)],
            [("10.0.0.20".parse().unwrap(), mac(11))].into()
        );
    }

    #[test]
    fn a_leg_knows_those_in_its_own_subnets() {
        let leg = WantedLeg {
            leg: Leg::inside(RouterId::new(), NetworkId::new()),
            mac: mac(1),
            mtu: 1450,
            addresses: ["10.0.0.1/24", "2001:db8::1/64"]
                .map(|it| it.parse().unwrap())
                .into(),
        };
        let all: Neighbours = [
            "10.0.0.1",
            "10.0.0.9",
            "10.0.1.9",
            "2001:db8::9",
            "2001:db9::9",
        ]
        .map(|it| (it.parse().unwrap(), mac(9)))
        .into();
        let known: Vec<String> = known(&leg, Some(&all))
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(known, ["10.0.0.9", "2001:db8::9"]);
    }
}
