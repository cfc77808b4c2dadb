//! The words of `berthctl network …`.

use std::net::IpAddr;

use berth_common::{
    ids::NetworkId,
    names::{Cidr, NetworkName},
};
use clap::{Args, Subcommand};

/// Commands on networks.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Network {
    /// Create a network with one IPv4 subnet.
    Create(NetworkCreateArgs),
    /// List networks.
    List,
    /// Delete a network that no instance uses.
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
    /// Its addresses, like 10.0.0.0/24.
    #[arg(long, value_name = "CIDR")]
    pub(crate) cidr: Cidr,
    /// A router's address in it, handed to guests as default route.
    #[arg(long, value_name = "IP")]
    pub(crate) gateway: Option<IpAddr>,
    /// A name server handed to guests; up to 3.
    #[arg(long = "dns", value_name = "IP")]
    pub(crate) dns: Vec<IpAddr>,
    /// Largest packet in bytes, 576 to 9216. Default: 1500.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=9216))]
    pub(crate) mtu: Option<u16>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<NetworkId>,
}
