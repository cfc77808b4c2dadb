//! The steps a plan for a network is made of.

use std::{collections::BTreeSet, fmt};

use berth_common::{
    ids::{NetworkId, PortId},
    message::report::Fault,
};
use ipnet::IpNet;

use super::{
    super::{dhcp::DhcpFiles, filter::FilterStep, names},
    link::{Link, LinkSetting},
    metadata::MetadataStep,
    tc::TcStep,
    uplink::UplinkStep,
};

/// A link that belongs into a network's bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgePort {
    /// The end of the veth pair to the network's namespace.
    Veth(NetworkId),
    /// A VLAN sub-interface or a VTEP.
    Uplink(Link),
}

impl BridgePort {
    /// The network whose bridge it belongs into.
    #[must_use]
    pub const fn network(self) -> NetworkId {
        match self {
            Self::Veth(network) => network,
            Self::Uplink(link) => link.network,
        }
    }

    /// The name of the link.
    #[must_use]
    pub fn link_name(self) -> String {
        match self {
            Self::Veth(network) => names::veth_host(network),
            Self::Uplink(link) => link.name(),
        }
    }
}

/// One step towards a network. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetStep {
    /// Write what the DHCP server reads.
    WriteDhcp {
        /// The network.
        network: NetworkId,
        /// What it reads.
        files: DhcpFiles,
    },
    /// Make the bridge, switched off and without alias.
    CreateBridge {
        /// The network.
        network: NetworkId,
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// Make the namespace.
    CreateNamespace(NetworkId),
    /// Make the veth pair with its second end in the namespace, both switched off and without alias.
    CreateVeth {
        /// The network.
        network: NetworkId,
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// Give a link the alias that tells whose it is.
    Mark(Link),
    /// Set how the bridge works ([`super::BridgeOptions::WANTED`]).
    SetBridgeOptions(NetworkId),
    /// Set switches of the IP stack.
    Settle {
        /// The link.
        link: Link,
        /// The switches.
        settings: BTreeSet<LinkSetting>,
    },
    /// Set the largest packet.
    SetMtu {
        /// The link.
        link: Link,
        /// In bytes.
        mtu: u32,
    },
    /// Put a link into the bridge.
    Plug(BridgePort),
    /// Put taps of running guests into the bridge. libvirt made them; they are only put back where they belong.
    PlugTaps {
        /// The network.
        network: NetworkId,
        /// The ports they are the taps of: [`Self::TAPS_AT_ONCE`] at most.
        ports: BTreeSet<PortId>,
    },
    /// Take addresses from the link in the namespace, and give it others.
    ChangeAddresses {
        /// The network.
        network: NetworkId,
        /// The addresses that go, with their prefixes.
        remove: BTreeSet<IpNet>,
        /// Those that come.
        add: BTreeSet<IpNet>,
    },
    /// Switch a link on.
    SetUp(Link),
    /// Switch the namespace's loopback link on.
    LoopbackUp(NetworkId),
    /// Start the DHCP server.
    StartDhcp(NetworkId),
    /// Make it read its hosts again.
    ReloadDhcp(NetworkId),
    /// Stop it.
    StopDhcp(NetworkId),
    /// Remove the veth pair.
    DeleteVeth(NetworkId),
    /// Remove the namespace.
    DeleteNamespace(NetworkId),
    /// Remove the bridge.
    DeleteBridge(NetworkId),
    /// Remove the network's files.
    RemoveFiles(NetworkId),
    /// Towards what the network reaches beyond its bridge by.
    Uplink(UplinkStep),
    /// A step towards its packet filter.
    Filter(FilterStep),
    /// A step on limits or copies of packets.
    Tc(TcStep),
    /// Do something with its metadata service.
    Metadata(MetadataStep),
}

impl NetStep {
    /// How many taps one step plugs in: it is not broken off in between.
    pub const TAPS_AT_ONCE: usize = 64;

    /// The network it is for.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        match self {
            Self::WriteDhcp { network, .. }
            | Self::CreateBridge { network, .. }
            | Self::CreateVeth { network, .. }
            | Self::PlugTaps { network, .. }
            | Self::ChangeAddresses { network, .. }
            | Self::CreateNamespace(network)
            | Self::SetBridgeOptions(network)
            | Self::LoopbackUp(network)
            | Self::StartDhcp(network)
            | Self::ReloadDhcp(network)
            | Self::StopDhcp(network)
            | Self::DeleteVeth(network)
            | Self::DeleteNamespace(network)
            | Self::DeleteBridge(network)
            | Self::RemoveFiles(network) => *network,
            Self::Uplink(step) => step.network(),
            Self::Plug(port) => port.network(),
            Self::Filter(step) => step.network(),
            Self::Tc(step) => step.network,
            Self::Metadata(step) => step.network(),
            Self::Mark(link) | Self::SetUp(link) => link.network,
            Self::Settle { link, .. } | Self::SetMtu { link, .. } => link.network,
        }
    }
}

/// What the step does, as the end of "could not …".
impl fmt::Display for NetStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(step) => step.fmt(f),
            Self::WriteDhcp { .. } => f.write_str("write the files of its DHCP server"),
            Self::CreateBridge { network, .. } => {
                write!(f, "make bridge {}", Link::bridge(*network))
            }
            Self::CreateNamespace(_) => f.write_str("make its namespace"),
            Self::CreateVeth { network, .. } => {
                write!(f, "make veth pair {}", Link::veth_host(*network))
            }
            Self::Mark(link) => write!(f, "give link {link} its alias"),
            Self::SetBridgeOptions(network) => {
                write!(f, "set the options of bridge {}", Link::bridge(*network))
            }
            Self::Settle { link, .. } => write!(f, "set the IP switches of link {link}"),
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of link {link} to {mtu}"),
            Self::Plug(port) => {
                write!(
                    f,
                    "put link {} into bridge {}",
                    port.link_name(),
                    Link::bridge(port.network())
                )
            }
            Self::PlugTaps { network, ports } => {
                let bridge = Link::bridge(*network);
                write!(f, "put {} taps into bridge {bridge}", ports.len())
            }
            Self::ChangeAddresses {
                network,
                remove,
                add,
            } => {
                let link = Link::veth_namespace(*network);
                write!(f, "change the addresses of link {link}:")?;
                remove.iter().try_for_each(|it| write!(f, " -{it}"))?;
                add.iter().try_for_each(|it| write!(f, " +{it}"))
            }
            Self::SetUp(link) => write!(f, "switch link {link} on"),
            Self::LoopbackUp(_) => f.write_str("switch the loopback link of its namespace on"),
            Self::StartDhcp(_) => f.write_str("start its DHCP server"),
            Self::ReloadDhcp(_) => f.write_str("make its DHCP server read its hosts again"),
            Self::StopDhcp(_) => f.write_str("stop its DHCP server"),
            Self::DeleteVeth(network) => {
                write!(f, "remove veth pair {}", Link::veth_host(*network))
            }
            Self::DeleteNamespace(_) => f.write_str("remove its namespace"),
            Self::DeleteBridge(network) => write!(f, "remove bridge {}", Link::bridge(*network)),
            Self::RemoveFiles(_) => f.write_str("remove its files"),
            Self::Uplink(step) => step.fmt(f),
            Self::Tc(step) => step.fmt(f),
            Self::Metadata(step) => step.fmt(f),
        }
    }
}

/// What to do, and where that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetPlan {
    /// The steps, in order.
    pub steps: Vec<NetStep>,
    /// What is true once they are done.
    pub then: NetThen,
    /// What a failed step means for those after it.
    pub on_error: OnError,
}

/// What a failed step means for those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// They need it: leave them.
    Stop,
    /// They can be done without it: do them, and tell all errors.
    CarryOn,
}

/// What is true once a plan's steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetThen {
    /// The network is as its document says.
    Converged,
    /// Nothing of it is left.
    Gone,
    /// Something else must happen first.
    Wait(NetWait),
    /// It cannot be made so.
    Refused(Fault),
    /// It is built but for something that its document asks for in vain: its ports can be used.
    Flawed(Fault),
}

/// What a network waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetWait {
    /// Links of others are still in its bridge.
    Members(BTreeSet<String>),
    /// These taps are not there, and copies of packets shall go to them.
    Mirrors(BTreeSet<String>),
}

impl fmt::Display for NetWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, names) = match self {
            Self::Members(names) => ("until these links have left its bridge", names),
            Self::Mirrors(names) => (
                "for these taps to be on this host, where copies of packets shall go",
                names,
            ),
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        write!(f, "waiting {what}: {}", names.join(", "))
    }
}
