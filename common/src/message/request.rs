//! Requests to the scheduler and their replies.
//!
//! A request is a body on queue `scheduler` with the method in the AMQP property `type`. Requests are
//! idempotent on what the client chooses (an instance's id, a network's id, a reboot's nonce): whoever got no
//! answer sends the same again.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::view::{HostView, InstanceView, NetworkView};
use crate::{
    document::{DesiredPower, Flavor, ImageRef, NetworkType, RebootKind},
    ids::{InstanceId, NetworkId, Nonce},
    names::{Cidr, InstanceName, MacAddress, NetworkName, ProjectName},
    refusal::Refusal,
};

/// A request type, bound to its method name, version and reply.
pub trait Method: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The AMQP property `type`.
    const NAME: &'static str;
    /// The header `x-berth-version`.
    const VERSION: u32 = 1;
    /// What a granted request answers.
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

macro_rules! methods {
    ($($request:ty => $name:literal, $reply:ty;)*) => {$(
        impl Method for $request {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    )*};
}

methods! {
    InstanceCreate => "instance.create", InstanceView;
    InstanceDelete => "instance.delete", InstanceView;
    InstanceStart => "instance.start", InstanceView;
    InstanceStop => "instance.stop", InstanceView;
    InstanceReboot => "instance.reboot", InstanceView;
    InstanceShow => "instance.show", InstanceView;
    InstanceList => "instance.list", InstanceListReply;
    NetworkCreate => "network.create", NetworkView;
    NetworkDelete => "network.delete", NetworkView;
    NetworkList => "network.list", NetworkListReply;
    HostList => "host.list", HostListReply;
    HostShow => "host.show", HostView;
    HostEnable => "host.enable", HostView;
    HostDisable => "host.disable", HostView;
}

/// The body of every reply: exactly one of the two fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    /// The request was accepted; this is the resource as it is now.
    Ok(T),
    /// The request was refused.
    Error(Refusal),
}

impl<T> From<Result<T, Refusal>> for Reply<T> {
    fn from(result: Result<T, Refusal>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(refusal) => Self::Error(refusal),
        }
    }
}

impl<T> From<Reply<T>> for Result<T, Refusal> {
    fn from(reply: Reply<T>) -> Self {
        match reply {
            Reply::Ok(value) => Ok(value),
            Reply::Error(refusal) => Err(refusal),
        }
    }
}

/// Create an instance. The same id with the same content again answers with the instance as it is; with other
/// content it is refused as a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceCreate {
    /// Chosen by the client: a new UUID for each instance.
    pub id: InstanceId,
    /// Its name, unique among the project's living instances.
    pub name: InstanceName,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// Its size; every part at least 1.
    pub flavor: Flavor,
    /// What its boot disk is made from.
    pub image: ImageRef,
    /// The networks it is plugged into, one port each, in the order the guest sees them; at most 8.
    #[serde(default)]
    pub networks: Vec<NetworkAttachment>,
    /// Whether it shall run once it is built.
    #[serde(default)]
    pub power: DesiredPower,
    /// How long its guest may take to power itself off before it is switched off: 1 to 3600 seconds.
    #[serde(default = "default_stop_timeout_seconds")]
    pub stop_timeout_seconds: u32,
}

/// Nova's `shutdown_timeout`: 60 seconds.
#[must_use]
pub fn default_stop_timeout_seconds() -> u32 {
    60
}

/// One port of a new instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkAttachment {
    /// Id, or name within the project, of the network.
    pub network: String,
    /// The address the guest shall get; null: the scheduler picks a free one.
    #[serde(default)]
    pub ip_address: Option<Ipv4Addr>,
    /// The Ethernet address it shall have; null: the scheduler picks one.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
}

macro_rules! instance_requests {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct $name {
            /// Id, or name within the project, of the instance.
            pub instance: String,
            /// The project a name is looked up in.
            #[serde(default)]
            pub project: ProjectName,
        }
    )*};
}

instance_requests! {
    /// Delete an instance, its disks and its ports. Deleting a deleted one is harmless.
    InstanceDelete;
    /// Power an instance on.
    InstanceStart;
    /// Power an instance off: the guest is asked, then switched off after its timeout.
    InstanceStop;
    /// Show one instance.
    InstanceShow;
}

/// Reboot a running instance once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceReboot {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Soft or hard.
    #[serde(rename = "type", default)]
    pub kind: RebootKind,
    /// Chosen by the client: the same nonce again is the same reboot.
    pub nonce: Nonce,
}

/// List instances, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct InstanceList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// Only after the instance with this id, for the next page.
    #[serde(default)]
    pub after: Option<InstanceId>,
    /// At most so many, 1 to 1000.
    #[serde(default = "default_page")]
    pub limit: u32,
}

/// The size of a page unless asked otherwise.
#[must_use]
pub fn default_page() -> u32 {
    500
}

/// One page of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceListReply {
    /// The instances.
    pub instances: Vec<InstanceView>,
    /// Whether more follow.
    pub more: bool,
}

/// Create a network with one IPv4 subnet. Idempotent on its id, as instances are.
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
    /// Its addresses.
    pub cidr: Cidr,
    /// A router's address in it, handed to guests as default route; null: none.
    #[serde(default)]
    pub gateway_ip: Option<Ipv4Addr>,
    /// Name servers handed to guests; at most 3.
    #[serde(default)]
    pub dns_nameservers: Vec<Ipv4Addr>,
    /// Largest packet in bytes, 576 to 9216; null: 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// Delete a network that no instance uses. Deleting a deleted one is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDelete {
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

/// List all hypervisors, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HostList {}

/// All hypervisors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostListReply {
    /// The hypervisors.
    pub hosts: Vec<HostView>,
}

/// Show one hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostShow {
    /// Name or id of the hypervisor.
    pub host: String,
}

/// Let a hypervisor get new instances again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEnable {
    /// Name or id of the hypervisor.
    pub host: String,
}

/// Give a hypervisor no new instances; those it has stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostDisable {
    /// Name or id of the hypervisor.
    pub host: String,
    /// Why, for other operators.
    #[serde(default)]
    pub reason: Option<String>,
}
