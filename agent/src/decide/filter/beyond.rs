//! Where the routers of a network lead on this host, from the documents: what a trace follows a packet by.

use std::{collections::BTreeSet, net::IpAddr};

use berth_common::{
    document::{Document, NetworkSpec},
    ids::{NetworkId, RouterId},
};
use ipnet::IpNet;

/// A router with a leg in the network that is asked about.
#[derive(Debug)]
pub struct Beyond<'a> {
    /// Which it is.
    pub router: RouterId,
    /// Its addresses in the network.
    pub legs: BTreeSet<IpAddr>,
    /// Its addresses in all of its networks.
    pub own: BTreeSet<IpAddr>,
    /// The subnets that it joins.
    subnets: Vec<Subnet<'a>>,
}

#[derive(Debug)]
struct Subnet<'a> {
    net: IpNet,
    network: NetworkId,
    spec: Option<&'a NetworkSpec>,
}

impl<'a> Beyond<'a> {
    /// The network that it sends what is for an address into, and its document, if this host has it; `None`: into none inside.
    pub(super) fn network(&self, address: IpAddr) -> Option<(NetworkId, Option<&'a NetworkSpec>)> {
        let mut subnets = self.subnets.iter();
        let subnet = subnets.find(|subnet| subnet.net.contains(&address))?;
        Some((subnet.network, subnet.spec))
    }
}

/// The routers in a network on this host.
#[must_use]
pub fn beyond<'a>(network: NetworkId, documents: &[&'a Document]) -> Vec<Beyond<'a>> {
    let spec_of = |id: NetworkId| {
        documents.iter().find_map(|document| match document {
            Document::Network(wish) if wish.id == id => wish.spec.as_ref(),
            _ => None,
        })
    };
    let routers = documents.iter().filter_map(|document| match document {
        Document::Router(wish) => Some((wish.id, wish.spec.as_ref()?)),
        _ => None,
    });
    routers
        .map(|(router, spec)| {
            let interfaces = || spec.interfaces.iter();
            let here = interfaces().filter(|it| it.network_id == network);
            Beyond {
                router,
                legs: here.map(|it| it.ip_address).collect(),
                own: interfaces().map(|it| it.ip_address).collect(),
                subnets: interfaces()
                    .map(|it| Subnet {
                        net: it.cidr.net(),
                        network: it.network_id,
                        spec: spec_of(it.network_id),
                    })
                    .collect(),
            }
        })
        .filter(|beyond| !beyond.legs.is_empty())
        .collect()
}
