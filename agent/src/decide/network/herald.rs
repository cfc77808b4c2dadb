//! What physical switches have to be told of. Of a port that others reach by a router alone they see nothing: its guest sends to the
//! router on its own host, and answers leave with the host's Ethernet address. They would show everybody what is for such a port,
//! or send it to the host it was on before.

use std::collections::BTreeSet;

use berth_common::{
    document::{Desired, NetworkPort, NetworkSpec, NetworkType},
    ids::NetworkId,
};

use super::{NetworkObserved, uplink};
use crate::decide::names;

/// What is told, and by which links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Herald {
    /// The network.
    pub network: NetworkId,
    /// The links to the physical network.
    pub links: BTreeSet<String>,
    /// The Ethernet address of each guest that is here. Not its IP addresses: one that another guest took over would be taken back.
    pub ports: BTreeSet<[u8; 6]>,
}

/// What is to be told of a network on this host from time to time; `None`: nothing. Tunnels are told by documents.
#[must_use]
pub fn herald(
    desired: &Desired<NetworkId, NetworkSpec>,
    observed: &NetworkObserved,
) -> Option<Herald> {
    let network = desired.id;
    let spec = desired.spec.as_ref()?;
    let is_physical = matches!(spec.network_type, NetworkType::Flat | NetworkType::Vlan);
    if !is_physical || observed.filter.legs.is_empty() {
        return None;
    }
    let uplink = uplink::wanted(network, spec, observed).ok()?;
    let is_here = |port: &&NetworkPort| observed.members.contains(&names::tap(port.id));
    let here = spec.ports.iter().filter(is_here);
    let ports: BTreeSet<_> = here.map(|port| port.mac_address.octets()).collect();
    (!ports.is_empty()).then(|| Herald {
        network,
        links: uplink.link_names(network),
        ports,
    })
}
