//! The document of a router on one host. A router is on every host that has ports in one of its networks, with the same addresses on
//! each: what its guests send to each other never leaves the way between their hosts.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Ipv6AddressMode, Route};
use crate::{
    ids::{FloatingIpId, NetworkId, PortId, SubnetId},
    names::{Cidr, MacAddress, ProjectName, RouterName},
};

/// How a router shall be on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterSpec {
    /// Name given by its owner.
    pub name: RouterName,
    /// The owner.
    pub project: ProjectName,
    /// The legs in its project's networks, all of which this host has documents of.
    pub interfaces: Vec<RouterInterface>,
    /// The way out; null: there is none.
    #[serde(default)]
    pub external_gateway: Option<RouterGateway>,
    /// The floating IPs of ports on this host.
    #[serde(default)]
    pub floating_ips: Vec<RouterFloatingIp>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// One leg of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterInterface {
    /// The network the leg is in.
    pub network_id: NetworkId,
    /// The subnet its address belongs to.
    pub subnet_id: SubnetId,
    /// The subnet's addresses.
    pub cidr: Cidr,
    /// Its address: the gateway of the subnet, as a rule.
    pub ip_address: IpAddr,
    /// Its Ethernet address, the same on every host; legs in the same network have the same one.
    pub mac_address: MacAddress,
    /// Largest packet in bytes, of the network.
    pub mtu: u16,
    /// How guests get their addresses of the subnet, if it is of IPv6 and they are told: advertisements of the router must not tell
    /// them otherwise.
    #[serde(default)]
    pub ipv6_address_mode: Option<Ipv6AddressMode>,
}

/// The way out of a router on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterGateway {
    /// The external network, of which this host has a document.
    pub network_id: NetworkId,
    /// The Ethernet address of the leg, of this host alone.
    pub mac_address: MacAddress,
    /// The external network's subnets that it uses, with this host's own address in each.
    pub addresses: Vec<GatewayAddress>,
    /// Whether what goes out without a floating IP is translated to the leg's own address (IPv4).
    pub enable_snat: bool,
    /// Largest packet in bytes, of the external network.
    pub mtu: u16,
}

/// An address of the leg in the external network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GatewayAddress {
    /// The subnet's addresses.
    pub cidr: Cidr,
    /// This host's own; null: none was left, and without a floating IP nobody gets out.
    pub ip_address: Option<IpAddr>,
    /// The next router; null: nothing beyond the subnet is reached.
    pub gateway_ip: Option<IpAddr>,
}

/// A floating IP of a port on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterFloatingIp {
    /// The floating IP.
    pub id: FloatingIpId,
    /// The address outside.
    pub floating_ip_address: IpAddr,
    /// The address of the port.
    pub fixed_ip_address: IpAddr,
    /// The port.
    pub port_id: PortId,
}
