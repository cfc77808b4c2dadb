//! Who may send into a VXLAN: the hosts that documents name, and nobody else who can reach this host.
//!
//! A host sends into a network of its own guests, and into those that a router joins to these (ADR 28). So the hosts of a network are
//! those that its document tells of, and those that the documents of the networks beside it do.

use std::{collections::BTreeSet, net::IpAddr};

use berth_common::{
    document::{Document, NetworkSpec, NetworkType},
    ids::NetworkId,
};

use super::part::Version;

/// How a network reaches other hosts, as its packet filter sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// The links in its bridge by which it does.
    pub links: BTreeSet<String>,
    /// Of a VXLAN: what its packets come in as.
    pub tunnel: Option<TunnelEnd>,
}

impl From<BTreeSet<String>> for Reach {
    fn from(links: BTreeSet<String>) -> Self {
        Self {
            links,
            tunnel: None,
        }
    }
}

/// The end of a network's VXLAN on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelEnd {
    /// The VNI.
    pub id: u32,
    /// The UDP port that the host listens at.
    pub port: u16,
    /// The host's own address.
    pub local: IpAddr,
}

/// Who may send into a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Senders {
    /// Hosts with these addresses.
    Known(BTreeSet<IpAddr>),
    /// Also hosts whose addresses were not told: nobody can be refused.
    Unknown,
}

/// Nobody.
impl Default for Senders {
    fn default() -> Self {
        Self::Known(BTreeSet::new())
    }
}

impl Senders {
    fn and(self, more: Self) -> Self {
        match (self, more) {
            (Self::Known(mut known), Self::Known(more)) => {
                known.extend(more);
                Self::Known(known)
            }
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
        }
    }
}

/// A network's VXLAN as it shall be guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guarded {
    pub(super) end: TunnelEnd,
    /// Who may send, of the version of IP that the tunnel is of.
    pub(super) senders: BTreeSet<IpAddr>,
}

impl Guarded {
    /// That of a network, with those who send into it by routers; `None`: everybody may.
    pub(super) fn of(end: TunnelEnd, spec: &NetworkSpec, by_routers: &Senders) -> Option<Self> {
        match told(spec).and(by_routers.clone()) {
            Senders::Unknown => None,
            Senders::Known(mut senders) => {
                senders.retain(|ip| ip.is_ipv4() == end.local.is_ipv4() && *ip != end.local);
                Some(Self { end, senders })
            }
        }
    }

    pub(super) const fn version(&self) -> Version {
        match self.end.local {
            IpAddr::V4(_) => Version::V4,
            IpAddr::V6(_) => Version::V6,
        }
    }
}

/// The hosts that a network's document tells of, by their addresses for VXLANs. Those of a VXLAN without one are on none.
fn told(spec: &NetworkSpec) -> Senders {
    let hosts = || spec.remote_ports.iter().filter_map(|port| port.tunnel_ip);
    match spec.network_type {
        // Its routers lead nobody's answers back from other hosts, so nobody sends from there.
        NetworkType::Local | NetworkType::Nat => Senders::default(),
        // An older document tells of none: then hosts are not known. Of one that tells of some, the others have no VXLANs.
        NetworkType::Flat | NetworkType::Vlan
            if !spec.remote_ports.is_empty() && hosts().next().is_none() =>
        {
            Senders::Unknown
        }
        NetworkType::Flat | NetworkType::Vlan | NetworkType::Vxlan => {
            Senders::Known(hosts().collect())
        }
    }
}

/// The same of any document: others tell of none.
#[must_use]
pub fn hosts_told(document: &Document) -> Senders {
    match document {
        Document::Network(wish) => wish.spec.as_ref().map(told).unwrap_or_default(),
        Document::Instance(_)
        | Document::Router(_)
        | Document::Snapshot(_)
        | Document::Volume(_) => Senders::default(),
    }
}

/// The networks that the routers of this host join to one.
#[must_use]
pub fn joined<'a>(
    network: NetworkId,
    documents: impl Iterator<Item = &'a Document>,
) -> BTreeSet<NetworkId> {
    let legs = documents.map(super::legs_of);
    let mut joined: BTreeSet<NetworkId> = legs
        .filter(|networks| networks.contains(&network))
        .flatten()
        .collect();
    joined.remove(&network);
    joined
}

/// Who sends into a network by routers: the hosts of the networks that they join to it.
#[must_use]
pub fn senders<'a>(
    network: NetworkId,
    documents: impl Iterator<Item = &'a Document> + Clone,
) -> Senders {
    let joined = joined(network, documents.clone());
    if joined.is_empty() {
        return Senders::default();
    }
    documents
        .filter(|document| matches!(document, Document::Network(wish) if joined.contains(&wish.id)))
        .map(hosts_told)
        .fold(Senders::default(), Senders::and)
}
