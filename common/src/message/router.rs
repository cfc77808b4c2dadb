//! Requests about routers and floating IPs, and what they answer.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::ConvergeStatus;
use crate::{
    document::Route,
    ids::{FloatingIpId, HostId, InstanceId, NetworkId, PortId, RouterId, SubnetId},
    names::{Cidr, HostName, MacAddress, NetworkName, ProjectName, RouterName},
};

const fn yes() -> bool {
    true
}

/// Create a router. Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterCreate {
    /// Chosen by the client.
    pub id: RouterId,
    /// Its name, unique in the project.
    pub name: RouterName,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// Whether it is there at all; without, no host has it.
    #[serde(default = "yes")]
    pub admin_state_up: bool,
    /// Id, or name, of the external network that it leads out to; null: none.
    #[serde(default)]
    pub external_network: Option<String>,
    /// Whether what goes out without a floating IP is translated to the host's own address (IPv4).
    #[serde(default = "yes")]
    pub enable_snat: bool,
}

/// Change a router; what is null stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RouterSet {
    /// Id, or name within the project, of the router.
    pub router: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Another name.
    #[serde(default)]
    pub name: Option<RouterName>,
    /// Whether it is there at all.
    #[serde(default)]
    pub admin_state_up: Option<bool>,
    /// The external network or none; null: as it is.
    #[serde(default)]
    pub external_gateway: Option<ExternalGateway>,
    /// Whether what goes out without a floating IP is translated.
    #[serde(default)]
    pub enable_snat: Option<bool>,
    /// All of its further routes.
    #[serde(default)]
    pub routes: Option<Vec<Route>>,
}

/// Where a router leads out to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExternalGateway {
    /// To this external network: its id, or its name.
    Network(String),
    /// Nowhere.
    None,
}

/// Delete a router that has no interfaces. Deleting a deleted one is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterDelete {
    /// Id, or name within the project, of the router.
    pub router: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Show one router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterShow {
    /// Id, or name within the project, of the router.
    pub router: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// List routers, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RouterList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
}

/// All routers asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterListReply {
    /// The routers.
    pub routers: Vec<RouterView>,
}

/// Put a router into a subnet. Doing it again is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterAddInterface {
    /// Id, or name within the project, of the router.
    pub router: String,
    /// The project names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Id of the subnet; or id or name of its network, if that has one subnet.
    pub subnet: String,
    /// The router's address in it; null: the subnet's gateway.
    #[serde(default)]
    pub ip_address: Option<IpAddr>,
}

/// Take a router out of a subnet. Doing it again is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterRemoveInterface {
    /// Id, or name within the project, of the router.
    pub router: String,
    /// The project names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Id of the subnet; or id or name of its network, if that has one subnet.
    pub subnet: String,
}

/// A router as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterView {
    /// Its id.
    pub id: RouterId,
    /// Its name.
    pub name: RouterName,
    /// Its owner.
    pub project: ProjectName,
    /// Whether it is there at all.
    pub admin_state_up: bool,
    /// The external network.
    pub external_network_id: Option<NetworkId>,
    /// Its name.
    pub external_network: Option<NetworkName>,
    /// Whether what goes out without a floating IP is translated.
    pub enable_snat: bool,
    /// Further routes.
    pub routes: Vec<Route>,
    /// Its legs.
    pub interfaces: Vec<RouterInterfaceView>,
    /// The hosts that have it.
    pub hosts: Vec<RouterHostView>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A leg of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterInterfaceView {
    /// The subnet.
    pub subnet_id: SubnetId,
    /// Its addresses; null once it is deleted.
    pub cidr: Option<Cidr>,
    /// Its network.
    pub network_id: NetworkId,
    /// The name of that.
    pub network: Option<NetworkName>,
    /// The router's address.
    pub ip_address: IpAddr,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
}

/// A router on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterHostView {
    /// The host.
    pub host_id: HostId,
    /// Its name; null once it is forgotten.
    pub host: Option<HostName>,
    /// The addresses it has of the external network. None although there is one: no address was left, and nothing is
    /// translated there but floating IPs.
    pub ip_addresses: Vec<IpAddr>,
    /// What the host said last; null: nothing yet.
    pub status: Option<ConvergeStatus>,
}

/// Get an address of an external network. Idempotent on its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpCreate {
    /// Chosen by the client.
    pub id: FloatingIpId,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// Id, or name, of the external network.
    pub network: String,
    /// This one; null: any.
    #[serde(default)]
    pub ip_address: Option<IpAddr>,
}

/// Give a floating IP to a port, or take it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpSet {
    /// Its id, or its address within the project.
    pub floating_ip: String,
    /// The project.
    #[serde(default)]
    pub project: ProjectName,
    /// The port; null: none.
    #[serde(default)]
    pub port_id: Option<PortId>,
    /// Which of the port's addresses; null: its only one of IPv4.
    #[serde(default)]
    pub fixed_ip_address: Option<IpAddr>,
}

/// Give back a floating IP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpDelete {
    /// Its id, or its address within the project.
    pub floating_ip: String,
    /// The project.
    #[serde(default)]
    pub project: ProjectName,
}

/// Show one floating IP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpShow {
    /// Its id, or its address within the project.
    pub floating_ip: String,
    /// The project.
    #[serde(default)]
    pub project: ProjectName,
}

/// List floating IPs, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
}

/// All floating IPs asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpListReply {
    /// The floating IPs.
    pub floating_ips: Vec<FloatingIpView>,
}

/// A floating IP as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FloatingIpView {
    /// Its id.
    pub id: FloatingIpId,
    /// Its owner.
    pub project: ProjectName,
    /// The external network.
    pub network_id: NetworkId,
    /// Its name.
    pub network: Option<NetworkName>,
    /// The address outside.
    pub ip_address: IpAddr,
    /// The port it belongs to.
    pub port_id: Option<PortId>,
    /// The instance of that.
    pub instance_id: Option<InstanceId>,
    /// The address of the port.
    pub fixed_ip_address: Option<IpAddr>,
    /// The router that translates.
    pub router_id: Option<RouterId>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}
