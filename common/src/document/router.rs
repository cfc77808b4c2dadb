//! The document of a router. Agents journal and report it; acting on it is not part of this version.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{NetworkId, SubnetId},
    names::{MacAddress, ProjectName},
};

/// How a router shall be on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterSpec {
    /// The owner.
    pub project: ProjectName,
    /// The networks it joins.
    pub interfaces: Vec<RouterInterface>,
    /// The interface whose addresses the others are translated to, by its network; null: no way out.
    #[serde(default)]
    pub external_network_id: Option<NetworkId>,
}

/// One leg of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouterInterface {
    /// The network the leg is in.
    pub network_id: NetworkId,
    /// The subnet its address belongs to.
    pub subnet_id: SubnetId,
    /// Its address.
    pub ip_address: Ipv4Addr,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
}
