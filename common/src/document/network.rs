//! The document of a network on one host: what this host needs so that its own instances can use the network.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FixedIp;
use crate::{
    ids::{InstanceId, PortId, SubnetId},
    names::{Cidr, InstanceName, MacAddress, NetworkName, ProjectName},
};

/// How a network shall be on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSpec {
    /// Name given by its owner.
    pub name: NetworkName,
    /// The owner.
    pub project: ProjectName,
    /// How it is built.
    pub network_type: NetworkType,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Its subnets.
    pub subnets: Vec<SubnetSpec>,
    /// The ports of this host's own instances, and no others.
    pub ports: Vec<NetworkPort>,
}

/// How a network is built on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum NetworkType {
    /// A bridge that reaches only the instances of the same host.
    #[default]
    Local,
}

impl NetworkType {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
        }
    }
}

/// One IPv4 subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetSpec {
    /// The subnet.
    pub id: SubnetId,
    /// Its addresses.
    pub cidr: Cidr,
    /// The router's address, if the subnet has one; guests get it as their default route.
    #[serde(default)]
    pub gateway_ip: Option<Ipv4Addr>,
    /// The address of berth's DHCP server on every host of the network.
    pub dhcp_ip: Ipv4Addr,
    /// Name servers handed to guests.
    #[serde(default)]
    pub dns_nameservers: Vec<Ipv4Addr>,
}

/// A port of one of this host's instances, as DHCP needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPort {
    /// The port.
    pub id: PortId,
    /// The instance it belongs to.
    pub instance_id: InstanceId,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The host name the guest gets.
    pub hostname: InstanceName,
    /// The addresses it gets.
    pub fixed_ips: Vec<FixedIp>,
}
