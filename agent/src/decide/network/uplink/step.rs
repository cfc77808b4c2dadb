//! The steps that build and take down an uplink.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use berth_common::{ids::NetworkId, names::LinkName};
use ipnet::IpNet;

use super::{super::link::Link, fdb::FdbEntry, nat::NatRules};

/// One step towards an uplink. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkStep {
    /// Make the VLAN sub-interface of a NIC, switched off and without alias.
    CreateVlan {
        /// The network.
        network: NetworkId,
        /// The NIC.
        parent: LinkName,
        /// The VLAN's id.
        id: u16,
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// Make the VTEP, switched off, without alias, and knowing nobody.
    CreateVxlan {
        /// The network.
        network: NetworkId,
        /// The VNI.
        id: u32,
        /// The address it sends from.
        local: IpAddr,
        /// The UDP port.
        port: u16,
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// Remove a VLAN sub-interface or a VTEP.
    Delete(Link),
    /// Keep the bridge from believing what comes out of the VTEP.
    StopLearning(NetworkId),
    /// Change whom the VTEP and the bridge know: first put in, then take out.
    ChangeFdb {
        /// The network.
        network: NetworkId,
        /// What is put in.
        add: Vec<FdbEntry>,
        /// What is taken out.
        remove: Vec<FdbEntry>,
    },
    /// Switch a NIC on.
    NicUp {
        /// The network.
        network: NetworkId,
        /// The NIC.
        nic: LinkName,
    },
    /// Put a NIC into the bridge; its addresses and routes move to the bridge, which takes its Ethernet address then.
    TakeNic {
        /// The network.
        network: NetworkId,
        /// The NIC.
        nic: LinkName,
        /// Its addresses.
        addresses: BTreeSet<IpNet>,
    },
    /// Take a NIC out of the bridge; addresses of the bridge, and their routes, move back to it.
    ReleaseNic {
        /// The network.
        network: NetworkId,
        /// The NIC.
        nic: LinkName,
        /// The addresses.
        addresses: BTreeSet<IpNet>,
    },
    /// Give the bridge an address.
    AddAddress {
        /// The network.
        network: NetworkId,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Take an address from the bridge.
    RemoveAddress {
        /// The network.
        network: NetworkId,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Filter and translate; let answers come in.
    ApplyNat {
        /// The network.
        network: NetworkId,
        /// How.
        rules: NatRules,
    },
    /// No longer do so; links forward no more that nobody else needs. Which ones is found out when it is done: what another
    /// network needs changes until then.
    RemoveNat(NetworkId),
}

impl UplinkStep {
    /// The network it is for.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        match self {
            Self::CreateVlan { network, .. }
            | Self::CreateVxlan { network, .. }
            | Self::StopLearning(network)
            | Self::ChangeFdb { network, .. }
            | Self::NicUp { network, .. }
            | Self::TakeNic { network, .. }
            | Self::ReleaseNic { network, .. }
            | Self::AddAddress { network, .. }
            | Self::RemoveAddress { network, .. }
            | Self::ApplyNat { network, .. }
            | Self::RemoveNat(network) => *network,
            Self::Delete(link) => link.network,
        }
    }

    /// Its name in figures and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CreateVlan { .. } => "create_vlan",
            Self::CreateVxlan { .. } => "create_vxlan",
            Self::Delete(_) => "delete_uplink",
            Self::StopLearning(_) => "stop_learning",
            Self::ChangeFdb { .. } => "change_fdb",
            Self::NicUp { .. } => "nic_up",
            Self::TakeNic { .. } => "take_nic",
            Self::ReleaseNic { .. } => "release_nic",
            Self::AddAddress { .. } => "add_gateway",
            Self::RemoveAddress { .. } => "remove_gateway",
            Self::ApplyNat { .. } => "apply_nat",
            Self::RemoveNat(_) => "remove_nat",
        }
    }
}

/// What the step does, as the end of "could not …".
impl fmt::Display for UplinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bridge = Link::bridge(self.network());
        match self {
            Self::CreateVlan {
                network,
                parent,
                id,
                ..
            } => write!(
                f,
                "make link {} for VLAN {id} of {parent}",
                Link::vlan(*network)
            ),
            Self::CreateVxlan {
                network,
                id,
                local,
                port,
                ..
            } => write!(
                f,
                "make link {} for VNI {id} from {local} on UDP port {port}",
                Link::vxlan(*network)
            ),
            Self::Delete(link) => write!(f, "remove link {link}"),
            Self::StopLearning(network) => {
                write!(
                    f,
                    "keep bridge {bridge} from learning from link {}",
                    Link::vxlan(*network)
                )
            }
            Self::ChangeFdb {
                network,
                add,
                remove,
            } => write!(
                f,
                "put {} entries into the forwarding table of link {} and take {} out",
                add.len(),
                Link::vxlan(*network),
                remove.len()
            ),
            Self::NicUp { nic, .. } => write!(f, "switch NIC {nic} on"),
            Self::TakeNic { nic, addresses, .. } => {
                write!(f, "put NIC {nic} into bridge {bridge}{}", Moved(addresses))
            }
            Self::ReleaseNic { nic, addresses, .. } => {
                write!(
                    f,
                    "take NIC {nic} out of bridge {bridge}{}",
                    Moved(addresses)
                )
            }
            Self::AddAddress { address, .. } => {
                write!(f, "give bridge {bridge} the address {address}")
            }
            Self::RemoveAddress { address, .. } => {
                write!(f, "take the address {address} from bridge {bridge}")
            }
            Self::ApplyNat { .. } => write!(f, "translate the addresses of bridge {bridge}"),
            Self::RemoveNat(_) => write!(
                f,
                "no longer translate the addresses of bridge {bridge}, and close what nobody else needs"
            ),
        }
    }
}

/// Addresses that move along, in a sentence.
struct Moved<'a>(&'a BTreeSet<IpNet>);

impl fmt::Display for Moved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, " together with {}", list(self.0))
    }
}

/// Addresses with commas between them.
pub(super) fn list(addresses: &BTreeSet<IpNet>) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
