//! The legs that routers have in a network on this host: from the routers' documents, and those that are in its bridge still.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{document::Document, ids::NetworkId, names::MacAddress};

use super::RouterLeg;

/// The networks in which a document puts such legs.
#[must_use]
pub fn legs_of(document: &Document) -> BTreeSet<NetworkId> {
    let Document::Router(wish) = document else {
        return BTreeSet::new();
    };
    let interfaces = wish.spec.iter().flat_map(|spec| &spec.interfaces);
    interfaces.map(|leg| leg.network_id).collect()
}

/// The legs in a network: by Ethernet address, the addresses behind it. Those that were found in its bridge count for as long as
/// they are there, whatever documents say. The way out of a router has an address of this host alone, and is none of them.
#[must_use]
pub fn legs<'a>(
    network: NetworkId,
    found: &[RouterLeg],
    documents: impl Iterator<Item = &'a Document>,
) -> Vec<RouterLeg> {
    let mut legs: BTreeMap<MacAddress, BTreeSet<IpAddr>> = BTreeMap::new();
    for leg in found {
        let addresses = legs.entry(leg.mac_address).or_default();
        addresses.extend(&leg.ip_addresses);
    }
    for document in documents {
        let Document::Router(wish) = document else {
            continue;
        };
        let interfaces = wish.spec.iter().flat_map(|spec| &spec.interfaces);
        for leg in interfaces.filter(|leg| leg.network_id == network) {
            legs.entry(leg.mac_address)
                .or_default()
                .insert(leg.ip_address);
        }
    }
    legs.into_iter()
        .map(|(mac_address, addresses)| RouterLeg {
            mac_address,
            ip_addresses: addresses.into_iter().collect(),
        })
        .collect()
}
