//! The words of `berthctl network …`.

use std::net::IpAddr;

use berth_common::{
    document::NetworkType,
    ids::NetworkId,
    names::{Cidr, NetworkName, PhysicalNetworkName},
};
use clap::{Args, Subcommand, ValueEnum};

use super::subnet::Gateway;

/// Commands on networks.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Network {
    /// Create a network, with one subnet if --cidr is given.
    Create(NetworkCreateArgs),
    /// List networks.
    List,
    /// Show a network with its subnets.
    Show {
        /// Name or id of the network.
        name: String,
    },
    /// Change a network.
    Set(NetworkSetArgs),
    /// Delete a network that no instance uses, with its subnets.
    Delete {
        /// Name or id of the network.
        name: String,
    },
}

/// A new network.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: NetworkName,
    /// How it is built.
    #[arg(
        long = "provider-network-type",
        alias = "type",
        value_name = "TYPE",
        value_enum,
        default_value = "local"
    )]
    pub(crate) network_type: Kind,
    /// Of flat and vlan: the physical network it is on. Default: for vlan, the first with a free VLAN.
    #[arg(
        long = "provider-physical-network",
        alias = "physical-network",
        value_name = "NAME"
    )]
    pub(crate) physical_network: Option<PhysicalNetworkName>,
    /// Of vlan: the VLAN, 1 to 4094; of vxlan: the VNI, 1 to 16777215. Default: the lowest free one of the scheduler's
    /// ranges.
    #[arg(long = "provider-segment", alias = "segment", value_name = "ID")]
    pub(crate) segment: Option<u32>,
    /// It leads out of the cloud: routers have their gateways there.
    #[arg(long)]
    pub(crate) external: bool,
    /// The addresses of its first subnet, like 10.0.0.0/24 or fd00:1::/64. Default: it gets none yet.
    #[arg(long, value_name = "CIDR")]
    pub(crate) cidr: Option<Cidr>,
    /// A router's address in it, handed to guests as default route; or none. Default: none.
    #[arg(long, value_name = "IP", requires = "cidr")]
    pub(crate) gateway: Option<Gateway>,
    /// A name server handed to guests; up to 3.
    #[arg(
        long = "dns-nameserver",
        alias = "dns",
        value_name = "IP",
        requires = "cidr"
    )]
    pub(crate) dns: Vec<IpAddr>,
    /// Largest packet in bytes, 576 to 9216. Default: what its type can carry, at most 1500 for local and nat.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=9216))]
    pub(crate) mtu: Option<u16>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<NetworkId>,
}

/// What of a network shall change.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkSetArgs {
    /// Name or id of the network.
    pub(crate) network: String,
    /// Its new name, unique in the project.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<NetworkName>,
    /// Largest packet in bytes; only while it has no ports.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=9216))]
    pub(crate) mtu: Option<u16>,
    /// It leads out of the cloud.
    #[arg(long, conflicts_with = "internal")]
    pub(crate) external: bool,
    /// It does not lead out of the cloud.
    #[arg(long)]
    pub(crate) internal: bool,
}

/// How a network is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A bridge that reaches only the instances of the same host.
    Local,
    /// As local, and translated to the host's own address on the way out.
    Nat,
    /// The NIC of a physical network.
    Flat,
    /// A VLAN (802.1Q) of a physical network.
    Vlan,
    /// A VXLAN between the hosts.
    Vxlan,
}

impl From<Kind> for NetworkType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Local => Self::Local,
            Kind::Nat => Self::Nat,
            Kind::Flat => Self::Flat,
            Kind::Vlan => Self::Vlan,
            Kind::Vxlan => Self::Vxlan,
        }
    }
}
