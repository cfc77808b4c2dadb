//! Networks and subnets: what clients ask for, and what replies show.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::{Change, change};
use crate::{
    document::{Ipv6AddressMode, NetworkType, Route},
    ids::{NetworkId, SubnetId},
    names::{Cidr, NetworkName, PhysicalNetworkName, ProjectName, SubnetName},
};

/// Addresses that ports may get: from one to another, both included.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct AllocationPool {
    /// The first.
    pub start: IpAddr,
    /// The last.
    pub end: IpAddr,
}

/// Create a network, with one subnet or none. Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkCreate {
    /// Chosen by the client.
    pub id: NetworkId,
    /// Its name, unique in the project.
    pub name: NetworkName,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// How it is built.
    #[serde(default)]
    pub network_type: NetworkType,
    /// Of `flat` and `vlan`: the physical network it is on; null: for `vlan`, the first with a free VLAN of the scheduler's
    /// `network.vlan_ranges`.
    #[serde(default)]
    pub physical_network: Option<PhysicalNetworkName>,
    /// Of `vlan`: the VLAN's id, 1 to 4094; of `vxlan`: the VNI, 1 to 16777215; null: the lowest free one of the scheduler's
    /// ranges.
    #[serde(default)]
    pub segmentation_id: Option<u32>,
    /// Whether it leads out of the cloud: routers have their gateways and floating IPs there (Neutron's `router:external`).
    #[serde(default)]
    pub external: bool,
    /// The addresses of its first subnet; null: it gets none yet.
    #[serde(default)]
    pub cidr: Option<Cidr>,
    /// A router's address in it, handed to guests as default route; null: none.
    #[serde(default)]
    pub gateway_ip: Option<IpAddr>,
    /// Name servers handed to guests; at most 3.
    #[serde(default)]
    pub dns_nameservers: Vec<IpAddr>,
    /// Largest packet in bytes, from 576 (1280 with IPv6) to what its type can carry; null: 1500, and less for `vxlan`.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// Change a network. What is not named stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSet {
    /// Id, or name within the project, of the network.
    pub network: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its name, unique in the project.
    #[serde(default)]
    pub name: Option<NetworkName>,
    /// Largest packet in bytes; only while it has no ports.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Whether it leads out of the cloud.
    #[serde(default)]
    pub external: Option<bool>,
}

/// Delete a network that no instance uses, with its subnets. Deleting a deleted one is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDelete {
    /// Id, or name within the project, of the network.
    pub network: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Show one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkShow {
    /// Id, or name within the project, of the network.
    pub network: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// List networks, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetworkList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
}

/// All networks asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkListReply {
    /// The networks.
    pub networks: Vec<NetworkView>,
}

/// A network with its subnets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkView {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: NetworkName,
    /// Its owner.
    pub project: ProjectName,
    /// How it is built.
    pub network_type: NetworkType,
    /// Of `flat` and `vlan`: the physical network it is on.
    pub physical_network: Option<PhysicalNetworkName>,
    /// Of `vlan`: the VLAN's id; of `vxlan`: the VNI.
    pub segmentation_id: Option<u32>,
    /// Whether it leads out of the cloud.
    pub external: bool,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Its subnets, in order of creation.
    pub subnets: Vec<SubnetView>,
    /// How many ports it has.
    pub ports: u64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// Create a subnet in a network. Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetCreate {
    /// Chosen by the client.
    pub id: SubnetId,
    /// Id, or name within the project, of the network.
    pub network: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its name, unique in the network.
    #[serde(default)]
    pub name: Option<SubnetName>,
    /// Its addresses, of IPv4 or IPv6; no other subnet of the network has any of them.
    pub cidr: Cidr,
    /// A router's address in it, handed to guests as default route; null: none.
    #[serde(default)]
    pub gateway_ip: Option<IpAddr>,
    /// The addresses that ports get unless they ask for another; empty: all.
    #[serde(default)]
    pub allocation_pools: Vec<AllocationPool>,
    /// Name servers handed to guests; at most 3, of the subnet's family.
    #[serde(default)]
    pub dns_nameservers: Vec<IpAddr>,
    /// Further routes handed to guests; at most 20, of the subnet's family.
    #[serde(default)]
    pub host_routes: Vec<Route>,
    /// Whether berth's DHCP server and metadata service answer in it.
    #[serde(default = "yes")]
    pub enable_dhcp: bool,
    /// Of IPv6: how guests get their address; null: they are not told.
    #[serde(default)]
    pub ipv6_address_mode: Option<Ipv6AddressMode>,
}

/// What `enable_dhcp` is unless it is said.
const fn yes() -> bool {
    true
}

/// Change a subnet. What is not named stays as it is; lists are replaced whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SubnetSet {
    /// Id, or name within the project, of the subnet.
    pub subnet: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its name; null: none.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<SubnetName>")]
    pub name: Change<SubnetName>,
    /// A router's address in it; null: none.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<IpAddr>")]
    pub gateway_ip: Change<IpAddr>,
    /// The addresses that ports get unless they ask for another; empty: all.
    #[serde(default)]
    pub allocation_pools: Option<Vec<AllocationPool>>,
    /// Name servers handed to guests.
    #[serde(default)]
    pub dns_nameservers: Option<Vec<IpAddr>>,
    /// Further routes handed to guests.
    #[serde(default)]
    pub host_routes: Option<Vec<Route>>,
}

/// Delete a subnet in which no port has an address. Deleting a deleted one is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetDelete {
    /// Id, or name within the project, of the subnet.
    pub subnet: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Show one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetShow {
    /// Id, or name within the project, of the subnet.
    pub subnet: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// List subnets, by network in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SubnetList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// Only those of the network with this id, or name within the project; null: all.
    #[serde(default)]
    pub network: Option<String>,
}

/// All subnets asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetListReply {
    /// The subnets.
    pub subnets: Vec<SubnetView>,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetView {
    /// Its id.
    pub id: SubnetId,
    /// Its name, if it has one.
    pub name: Option<SubnetName>,
    /// Its network.
    pub network_id: NetworkId,
    /// Its addresses.
    pub cidr: Cidr,
    /// The router's address in it.
    pub gateway_ip: Option<IpAddr>,
    /// The address of berth's DHCP server and metadata service in it; null: neither answers.
    pub dhcp_ip: Option<IpAddr>,
    /// The addresses that ports get unless they ask for another.
    pub allocation_pools: Vec<AllocationPool>,
    /// Name servers handed to guests.
    pub dns_nameservers: Vec<IpAddr>,
    /// Further routes handed to guests.
    pub host_routes: Vec<Route>,
    /// Of IPv6: how guests get their address.
    pub ipv6_address_mode: Option<Ipv6AddressMode>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}
