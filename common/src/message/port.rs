//! Requests about ports and their replies: ports by themselves, and the interfaces of instances.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    request::{Change, change, default_page},
    view::PortView,
};
use crate::{
    document::{AddressPair, BandwidthLimit, PortMirror, PortQos},
    ids::PortId,
    names::{MacAddress, PortName, ProjectName},
};

/// What is true unless it is said.
pub(super) const fn yes() -> bool {
    true
}

/// Create a port that is of no instance yet. It keeps its addresses until it is deleted, whichever instances it is given to.
/// Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortCreate {
    /// Chosen by the client.
    pub id: PortId,
    /// Its name, unique among the project's ports.
    #[serde(default)]
    pub name: Option<PortName>,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// Id, or name within the project, of the network it is in.
    pub network: String,
    /// The address it shall have; null: the scheduler picks a free one.
    #[serde(default)]
    pub ip_address: Option<IpAddr>,
    /// The Ethernet address it shall have; null: the scheduler picks one.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
    /// Whether the guest sees a cable in it.
    #[serde(default = "yes")]
    pub admin_state_up: bool,
    /// Whether its guest is held to its addresses and its groups; else it may send and receive anything.
    #[serde(default = "yes")]
    pub port_security_enabled: bool,
    /// Ids, or names within the project, of its security groups, at most 16; null: the project's group `default`, or none
    /// without port security.
    #[serde(default)]
    pub security_groups: Option<Vec<String>>,
    /// Further addresses that its guest may use, at most 16.
    #[serde(default)]
    pub allowed_address_pairs: Vec<AddressPair>,
    /// How fast it may be.
    #[serde(default)]
    pub qos: PortQos,
    /// Where copies of its packets go, at most 4. A port that gets them must be on the same host.
    #[serde(default)]
    pub mirrors: Vec<PortMirror>,
}

/// Change what is wanted of a port. What is not named stays. The guest runs on, and connections that stay allowed go on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortSet {
    /// Id, or name within the project, of the port.
    pub port: String,
    /// The project names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its name; null takes it away.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<PortName>")]
    pub name: Change<PortName>,
    /// Whether the guest sees a cable in it.
    #[serde(default)]
    pub admin_state_up: Option<bool>,
    /// Whether its guest is held to its addresses and its groups. Switched on for a port without groups, it gets the project's
    /// group `default` unless groups are named. Its groups and pairs are kept while it is off.
    #[serde(default)]
    pub port_security_enabled: Option<bool>,
    /// Ids, or names within the project, of all its security groups from now on, at most 16.
    #[serde(default)]
    pub security_groups: Option<Vec<String>>,
    /// All further addresses that its guest may use from now on, at most 16.
    #[serde(default)]
    pub allowed_address_pairs: Option<Vec<AddressPair>>,
    /// How fast it may send; null: no limit.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<BandwidthLimit>")]
    pub qos_egress: Change<BandwidthLimit>,
    /// How fast it may receive; null: no limit.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<BandwidthLimit>")]
    pub qos_ingress: Change<BandwidthLimit>,
    /// Where all copies of its packets go from now on, at most 4.
    #[serde(default)]
    pub mirrors: Option<Vec<PortMirror>>,
}

/// Delete a port that is of no instance. Deleting one that is not there is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortDelete {
    /// Id, or name within the project, of the port.
    pub port: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Show one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortShow {
    /// Id, or name within the project, of the port.
    pub port: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// List ports, by id: those for which all that is named is true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// Only those in the network with this id, or name within the project.
    #[serde(default)]
    pub network: Option<String>,
    /// Only those of the instance with this id, or name within the project.
    #[serde(default)]
    pub instance: Option<String>,
    /// Only after the port with this id, for the next page.
    #[serde(default)]
    pub after: Option<PortId>,
    /// At most so many, 1 to 1000.
    #[serde(default = "default_page")]
    pub limit: u32,
}

/// One page of ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortListReply {
    /// The ports.
    pub ports: Vec<PortView>,
    /// Whether more follow.
    pub more: bool,
}

/// Plug a port into an instance, also while it runs: one that is there, or a new one in a network. Exactly one of the two is
/// named. A port that it has already is granted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceAttachInterface {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Id, or name within the project, of a port of no instance.
    #[serde(default)]
    pub port: Option<String>,
    /// A port to be made, which is deleted when it is unplugged, or with the instance.
    #[serde(default)]
    pub new_port: Option<NewPort>,
}

/// A port that is made for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewPort {
    /// Chosen by the client.
    pub id: PortId,
    /// Id, or name within the project, of the network it is in.
    pub network: String,
    /// The address it shall have; null: the scheduler picks a free one.
    #[serde(default)]
    pub ip_address: Option<IpAddr>,
    /// The Ethernet address it shall have; null: the scheduler picks one.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
    /// Whether its guest is held to its addresses and its groups; else it may send and receive anything.
    #[serde(default = "yes")]
    pub port_security_enabled: bool,
    /// Ids, or names within the project, of its security groups, at most 16; null: the project's group `default`, or none
    /// without port security.
    #[serde(default)]
    pub security_groups: Option<Vec<String>>,
}

/// Unplug a port from an instance, also while it runs. It is free, or gone if it was made for the instance, when the
/// instance's host saw the NIC gone. Unplugging one that the instance does not have is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceDetachInterface {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Id, or name within the project, of the port.
    pub port: String,
}

/// How far a port is; Neutron's `status` in small letters, with what is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PortStatus {
    /// It is of no instance.
    #[default]
    Down,
    /// Its instance's host has yet to say that the instance has it.
    Attaching,
    /// Its instance has it.
    Active,
    /// Its instance's host has yet to say that the instance is free of it.
    Detaching,
}

impl PortStatus {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Attaching => "attaching",
            Self::Active => "active",
            Self::Detaching => "detaching",
        }
    }
}
