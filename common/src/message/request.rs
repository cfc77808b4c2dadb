//! Requests to the scheduler and their replies.
//!
//! A request is a body on queue `scheduler` with the method in the AMQP property `type`. Requests are
//! idempotent on what the client chooses (an instance's id, a network's id, a reboot's nonce): whoever got no
//! answer sends the same again.

use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use super::network::{
    NetworkCreate, NetworkDelete, NetworkList, NetworkListReply, NetworkSet, NetworkShow,
    SubnetCreate, SubnetDelete, SubnetList, SubnetListReply, SubnetSet, SubnetShow,
};
use super::{
    counters::{PortCounted, PortCounters},
    network::SubnetView,
    placement::{
        AggregateView, CapacityView, DecisionView, SchedulerHints, ServerGroupPolicy,
        ServerGroupView,
    },
    port::{
        InstanceAttachInterface, InstanceDetachInterface, PortCreate, PortDelete, PortList,
        PortListReply, PortSet, PortShow,
    },
    question::{
        ConsoleOutput, Endpoints, GuestAgent, InstanceConsoleOutput, InstanceEndpoints,
        InstancePingGuestAgent, InstanceScreenshot, Screenshot,
    },
    router::{
        FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpListReply, FloatingIpSet,
        FloatingIpShow, FloatingIpView, RouterAddInterface, RouterCreate, RouterDelete, RouterList,
        RouterListReply, RouterRemoveInterface, RouterSet, RouterShow, RouterView,
    },
    security_group::{
        SecurityGroupCreate, SecurityGroupDelete, SecurityGroupList, SecurityGroupListReply,
        SecurityGroupRuleCreate, SecurityGroupRuleDelete, SecurityGroupSet, SecurityGroupShow,
        SecurityGroupView,
    },
    trace::{PortTrace, PortTraced},
    view::{HostView, InstanceView, NetworkView, PortView, SnapshotView, VolumeView},
};
use crate::{
    document::{
        ConfigDrive, DesiredPower, DiskBus, Flavor, ImageRef, OnCrash, RebootKind, VolumeAccess,
        VolumeFormat, VolumeLimits,
    },
    ids::{AggregateId, HostId, InstanceId, Nonce, ServerGroupId, SnapshotId, VolumeId},
    names::{
        AggregateName, HostName, InstanceName, MacAddress, PoolName, ProjectName, PropertyKey,
        PropertyValue, ServerGroupName, SnapshotName, VolumeName, ZoneName,
    },
    refusal::Refusal,
    units::{AllocationRatio, DiskGb, MemoryMb, Vcpus},
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
    ($($request:ty => $name:literal $(version $version:literal)?, $reply:ty;)*) => {$(
        impl Method for $request {
            const NAME: &'static str = $name;
            $(const VERSION: u32 = $version;)?
            type Reply = $reply;
        }
    )*};
}

methods! {
    InstanceCreate => "instance.create" version 5, InstanceView;
    InstanceCreateMany => "instance.create_many" version 4, InstanceCreateManyReply;
    InstanceDelete => "instance.delete" version 4, InstanceView;
    InstanceStart => "instance.start" version 4, InstanceView;
    InstanceStop => "instance.stop" version 4, InstanceView;
    InstancePause => "instance.pause" version 3, InstanceView;
    InstanceUnpause => "instance.unpause" version 3, InstanceView;
    InstanceSuspend => "instance.suspend" version 3, InstanceView;
    InstanceResume => "instance.resume" version 3, InstanceView;
    InstanceReboot => "instance.reboot" version 4, InstanceView;
    InstanceResize => "instance.resize" version 3, InstanceView;
    InstanceRescue => "instance.rescue" version 2, InstanceView;
    InstanceUnrescue => "instance.unrescue" version 2, InstanceView;
    InstanceRebuild => "instance.rebuild" version 2, InstanceView;
    InstanceSet => "instance.set" version 2, InstanceView;
    InstanceShow => "instance.show" version 4, InstanceView;
    InstanceList => "instance.list" version 4, InstanceListReply;
    InstanceConsoleOutput => "instance.console_output", ConsoleOutput;
    InstanceScreenshot => "instance.screenshot", Screenshot;
    InstancePingGuestAgent => "instance.ping_guest_agent", GuestAgent;
    InstanceEndpoints => "instance.endpoints", Endpoints;
    PortTrace => "port.trace", PortTraced;
    PortCounters => "port.counters", PortCounted;
    VolumeCreate => "volume.create" version 3, VolumeView;
    VolumeDelete => "volume.delete" version 2, VolumeView;
    VolumeShow => "volume.show" version 2, VolumeView;
    VolumeList => "volume.list" version 2, VolumeListReply;
    VolumeExtend => "volume.extend" version 2, VolumeView;
    VolumeAttach => "volume.attach" version 2, VolumeView;
    VolumeDetach => "volume.detach" version 2, VolumeView;
    SnapshotCreate => "snapshot.create", SnapshotView;
    SnapshotDelete => "snapshot.delete", SnapshotView;
    SnapshotShow => "snapshot.show", SnapshotView;
    SnapshotList => "snapshot.list", SnapshotListReply;
    NetworkCreate => "network.create" version 2, NetworkView;
    NetworkSet => "network.set", NetworkView;
    NetworkDelete => "network.delete" version 2, NetworkView;
    NetworkShow => "network.show", NetworkView;
    NetworkList => "network.list" version 2, NetworkListReply;
    SubnetCreate => "subnet.create", SubnetView;
    SubnetSet => "subnet.set", SubnetView;
    SubnetDelete => "subnet.delete", SubnetView;
    SubnetShow => "subnet.show", SubnetView;
    SubnetList => "subnet.list", SubnetListReply;
    HostList => "host.list" version 5, HostListReply;
    HostShow => "host.show" version 4, HostView;
    HostEnable => "host.enable" version 4, HostView;
    HostDisable => "host.disable" version 4, HostView;
    HostDrain => "host.drain" version 3, HostView;
    HostSet => "host.set" version 3, HostView;
    PortCreate => "port.create", PortView;
    PortSet => "port.set", PortView;
    PortDelete => "port.delete", PortView;
    PortShow => "port.show", PortView;
    PortList => "port.list", PortListReply;
    InstanceAttachInterface => "instance.attach_interface", InstanceView;
    InstanceDetachInterface => "instance.detach_interface", InstanceView;
    SecurityGroupCreate => "security_group.create", SecurityGroupView;
    SecurityGroupSet => "security_group.set", SecurityGroupView;
    SecurityGroupDelete => "security_group.delete", SecurityGroupView;
    SecurityGroupShow => "security_group.show", SecurityGroupView;
    SecurityGroupList => "security_group.list", SecurityGroupListReply;
    SecurityGroupRuleCreate => "security_group_rule.create", SecurityGroupView;
    SecurityGroupRuleDelete => "security_group_rule.delete", SecurityGroupView;
    RouterCreate => "router.create", RouterView;
    RouterSet => "router.set", RouterView;
    RouterDelete => "router.delete", RouterView;
    RouterShow => "router.show", RouterView;
    RouterList => "router.list", RouterListReply;
    RouterAddInterface => "router.add_interface", RouterView;
    RouterRemoveInterface => "router.remove_interface", RouterView;
    FloatingIpCreate => "floating_ip.create", FloatingIpView;
    FloatingIpSet => "floating_ip.set", FloatingIpView;
    FloatingIpDelete => "floating_ip.delete", FloatingIpView;
    FloatingIpShow => "floating_ip.show", FloatingIpView;
    FloatingIpList => "floating_ip.list", FloatingIpListReply;
    HostDelete => "host.delete", HostDeleteReply;
    AggregateCreate => "aggregate.create", AggregateView;
    AggregateSet => "aggregate.set", AggregateView;
    AggregateDelete => "aggregate.delete", AggregateView;
    AggregateList => "aggregate.list", AggregateListReply;
    AggregateAddHost => "aggregate.add_host", AggregateView;
    AggregateRemoveHost => "aggregate.remove_host", AggregateView;
    ServerGroupCreate => "server_group.create", ServerGroupView;
    ServerGroupDelete => "server_group.delete", ServerGroupView;
    ServerGroupList => "server_group.list", ServerGroupListReply;
    PlacementExplain => "placement.explain" version 2, PlacementExplainReply;
    PlacementPlace => "placement.place" version 3, DecisionView;
    PlacementCapacity => "placement.capacity" version 3, CapacityView;
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
    /// Its size; every part at least 1, but for the disk of one that boots from a volume, which is not used.
    pub flavor: Flavor,
    /// What its boot disk is made from. Exactly one of this and a block device with boot index 0 is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// What it boots from instead: one volume, with boot index 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub block_devices: Vec<BlockDevice>,
    /// The networks it is plugged into, one port each, in the order the guest sees them; at most 8.
    #[serde(default)]
    pub networks: Vec<NetworkAttachment>,
    /// Whether it shall run once it is built.
    #[serde(default)]
    pub power: DesiredPower,
    /// How long its guest may take to power itself off before it is switched off: 1 to 3600 seconds.
    #[serde(default = "default_stop_timeout_seconds")]
    pub stop_timeout_seconds: u32,
    /// Where it may be placed, and where not.
    #[serde(default, skip_serializing_if = "SchedulerHints::is_empty")]
    pub hints: SchedulerHints,
    /// What it finds on its config drive; null: it has none. An empty one still tells its name and its NICs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<ConfigDrive>,
    /// What the metadata service tells it, where it has no config drive: with one, that is told. At most one of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_data: Option<ConfigDrive>,
    /// What becomes of it when its guest crashes.
    #[serde(default, skip_serializing_if = "OnCrash::is_restart")]
    pub on_crash: OnCrash,
}

/// A disk that an instance is created with: an entry of OpenStack's `block_device_mapping_v2` whose source and destination
/// are a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockDevice {
    /// Id, or name within the project, of the volume: available, and made from an image, a snapshot or another volume.
    pub volume: String,
    /// Its place in the order of booting. Only 0, what the instance boots from; other volumes are attached when it is built.
    #[serde(default)]
    pub boot_index: u8,
    /// Whether the volume is deleted with the instance.
    #[serde(default)]
    pub delete_on_termination: bool,
}

/// Create several instances with one decision after the other, in the order given. Repeating the request is harmless,
/// as for each of its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceCreateMany {
    /// The instances; 1 to 256.
    pub instances: Vec<InstanceCreate>,
    /// What happens to the others when one cannot be created.
    #[serde(default)]
    pub mode: CreateMode,
}

/// What happens to the others when one of several instances cannot be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum CreateMode {
    /// None is created; the refusal is that of the first that cannot be.
    #[default]
    AllOrNothing,
    /// Each is created or refused by itself.
    BestEffort,
}

/// What became of each instance, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceCreateManyReply {
    /// One answer for each.
    pub results: Vec<InstanceCreateResult>,
}

/// What became of one instance of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceCreateResult {
    /// The instance.
    pub id: InstanceId,
    /// The instance as it is now, or why it was refused.
    pub outcome: Reply<InstanceView>,
}

/// Nova's `shutdown_timeout`: 60 seconds.
#[must_use]
pub fn default_stop_timeout_seconds() -> u32 {
    60
}

/// One port of a new instance: a port that is there, or one to be made in a network. Exactly one of the two is named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetworkAttachment {
    /// Id, or name within the project, of the network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Id, or name within the project, of a port of no instance, which has all that is said below by itself. It is free again
    /// when the instance is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The address the guest shall get; null: the scheduler picks a free one.
    #[serde(default)]
    pub ip_address: Option<IpAddr>,
    /// The Ethernet address it shall have; null: the scheduler picks one.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
    /// Ids, or names within the project, of its security groups, at most 16; null: the project's group `default`, or none
    /// without port security.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<Vec<String>>,
    /// Whether its guest is held to its addresses and its groups; else it may send and receive anything. Null: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_security_enabled: Option<bool>,
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
    /// Let the processors of a running instance stand still.
    InstancePause;
    /// Let a paused instance go on.
    InstanceUnpause;
    /// Save the memory of a running instance on its host's disk, and switch it off.
    InstanceSuspend;
    /// Let a suspended instance go on where it was.
    InstanceResume;
    /// Boot a rescued instance from its own disk again. The rescue disk goes, with all that is on it.
    InstanceUnrescue;
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

/// Give an instance another size on the hypervisor it is on. Its disk never shrinks, and one that is on gets more and never
/// less: vCPUs and memory while it runs if its domain was started with room for them, else with its next start. `pending` of
/// the answer says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceResize {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its new size; every part at least 1.
    pub flavor: Flavor,
}

/// Boot an instance from a fresh disk made from an image, with its own disks after that one (`vdb`) and without its
/// volumes, until it is unrescued. It is powered on if it was off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceRescue {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// What it boots from; null: the image that its own disk was made from.
    #[serde(default)]
    pub image: Option<ImageRef>,
    /// Chosen by the client: the same nonce again is the same rescue.
    pub nonce: Nonce,
}

/// Make the root disk of an instance anew from an image, on the host it is on. **What was on it is lost.** Its id, ports,
/// addresses and volumes stay, and so does its power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceRebuild {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// What its root disk is made from.
    pub image: ImageRef,
    /// Chosen by the client: the same nonce again is the same rebuild.
    pub nonce: Nonce,
}

/// Change what an instance is called and what is said of it. What is not named stays. Its guest runs on: it gets the new host
/// name by DHCP with its next lease, and finds the metadata of when its config drive was made there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceSet {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its new name, unique among the project's living instances.
    #[serde(default)]
    pub name: Option<InstanceName>,
    /// Metadata to set, or with null to remove; at most 128 in all.
    #[serde(default)]
    pub metadata: BTreeMap<PropertyKey, Option<PropertyValue>>,
    /// What becomes of it when its guest crashes.
    #[serde(default)]
    pub on_crash: Option<OnCrash>,
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

/// Create a volume. Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeCreate {
    /// Chosen by the client.
    pub id: VolumeId,
    /// Its name, unique among the project's living volumes.
    pub name: VolumeName,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// Its size in GiB, at least 1 and at least that of its source.
    pub size_gb: DiskGb,
    /// How it is stored; null: `qcow2` in the pool `local`, and `raw` in any other one. A pool of LVM holds nothing else than `raw`.
    #[serde(default)]
    pub format: Option<VolumeFormat>,
    /// The storage pool of its host that it shall be in; null: `local`, which every host has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// What is on it at first; null: zeros.
    #[serde(default)]
    pub source: Option<VolumeCreateSource>,
    /// How much a guest may do with it.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// Name or id of the hypervisor it shall be on; null: that of its source, or else of the first instance it is attached
    /// to.
    #[serde(default)]
    pub host: Option<String>,
}

/// What a new volume is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeCreateSource {
    /// An image.
    Image(ImageRef),
    /// Id, or name within the project, of a volume that no instance has.
    Volume(String),
    /// Id, or name within the project, of a snapshot.
    Snapshot(String),
}

macro_rules! volume_requests {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct $name {
            /// Id, or name within the project, of the volume.
            pub volume: String,
            /// The project a name is looked up in.
            #[serde(default)]
            pub project: ProjectName,
        }
    )*};
}

volume_requests! {
    /// Delete a volume that no instance has, with its content. Deleting a deleted one is harmless.
    VolumeDelete;
    /// Show one volume.
    VolumeShow;
}

/// Take a volume from its instance. It is free when its host saw the device gone. Whoever may send the request again, or
/// late, names the instance: by then the volume may be another one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeDetach {
    /// Id, or name within the project, of the volume.
    pub volume: String,
    /// Id, or name within the project, of the instance it shall be taken from; if that one does not have it, nothing is
    /// changed. Null: from whichever has it.
    #[serde(default)]
    pub instance: Option<String>,
    /// The project that names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// Make a volume larger, also while an instance has it that may write to it. It never shrinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeExtend {
    /// Id, or name within the project, of the volume.
    pub volume: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its new size in GiB.
    pub size_gb: DiskGb,
}

/// Attach a volume to an instance on the same hypervisor; at once if the instance runs. A volume that has no hypervisor yet
/// gets the instance's. Attaching it again to the same instance is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeAttach {
    /// Id, or name within the project, of the volume.
    pub volume: String,
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project that names are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Whether the guest may write to it.
    #[serde(default)]
    pub access: VolumeAccess,
    /// Which bus the guest has it on.
    #[serde(default)]
    pub disk_bus: DiskBus,
}

/// List volumes, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumeList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// Only after the volume with this id, for the next page.
    #[serde(default)]
    pub after: Option<VolumeId>,
    /// At most so many, 1 to 1000.
    #[serde(default = "default_page")]
    pub limit: u32,
}

/// One page of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeListReply {
    /// The volumes.
    pub volumes: Vec<VolumeView>,
    /// Whether more follow.
    pub more: bool,
}

/// Create a snapshot of a volume: its content at one moment between this request and `available`, as after a power cut. The
/// volume may be in use. Idempotent on its id, as instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotCreate {
    /// Chosen by the client.
    pub id: SnapshotId,
    /// Its name, unique among the project's living snapshots.
    pub name: SnapshotName,
    /// The owner, also of the volume.
    #[serde(default)]
    pub project: ProjectName,
    /// Id, or name within the project, of a volume that was made on a hypervisor.
    pub volume: String,
}

macro_rules! snapshot_requests {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct $name {
            /// Id, or name within the project, of the snapshot.
            pub snapshot: String,
            /// The project a name is looked up in.
            #[serde(default)]
            pub project: ProjectName,
        }
    )*};
}

snapshot_requests! {
    /// Delete a snapshot that no volume is being made from, with its content. Deleting a deleted one is harmless.
    SnapshotDelete;
    /// Show one snapshot.
    SnapshotShow;
}

/// List snapshots, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
    /// Only after the snapshot with this id, for the next page.
    #[serde(default)]
    pub after: Option<SnapshotId>,
    /// At most so many, 1 to 1000.
    #[serde(default = "default_page")]
    pub limit: u32,
}

/// One page of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotListReply {
    /// The snapshots.
    pub snapshots: Vec<SnapshotView>,
    /// Whether more follow.
    pub more: bool,
}

/// List hypervisors, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HostList {
    /// Only after the hypervisor with this name, for the next page.
    #[serde(default)]
    pub after: Option<HostName>,
    /// At most so many, 1 to 1000; null: all, which is refused when they do not fit in a message.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// One page of hypervisors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostListReply {
    /// The hypervisors.
    pub hosts: Vec<HostView>,
    /// Whether more follow.
    #[serde(default)]
    pub more: bool,
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

/// Give a hypervisor no new instances, and mark that those it has shall leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostDrain {
    /// Name or id of the hypervisor.
    pub host: String,
    /// Why, for other operators.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Change a hypervisor's own ratios and reserves. What is not named stays; null takes the aggregate's or the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HostSet {
    /// Name or id of the hypervisor.
    pub host: String,
    /// `cpu_allocation_ratio`.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<AllocationRatio>")]
    pub cpu_allocation_ratio: Change<AllocationRatio>,
    /// `ram_allocation_ratio`.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<AllocationRatio>")]
    pub ram_allocation_ratio: Change<AllocationRatio>,
    /// `disk_allocation_ratio`.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<AllocationRatio>")]
    pub disk_allocation_ratio: Change<AllocationRatio>,
    /// CPUs kept for the host itself.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<Vcpus>")]
    pub reserved_host_cpus: Change<Vcpus>,
    /// Memory in MiB kept for the host itself.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<MemoryMb>")]
    pub reserved_host_memory_mb: Change<MemoryMb>,
    /// Disk in GiB kept for the host itself.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<DiskGb>")]
    pub reserved_host_disk_gb: Change<DiskGb>,
}

/// Forget a hypervisor that is gone for good: it must be down and have no instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostDelete {
    /// Name or id of the hypervisor.
    pub host: String,
}

/// The hypervisor that was forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostDeleteReply {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
}

/// Create a host aggregate: hosts with properties, ratios or an availability zone in common. Idempotent on its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateCreate {
    /// Chosen by the client.
    pub id: AggregateId,
    /// Its name, unique.
    pub name: AggregateName,
    /// The availability zone its hosts are in; null: it says nothing of zones.
    #[serde(default)]
    pub availability_zone: Option<ZoneName>,
    /// `cpu_allocation_ratio` of its hosts that have none of their own; of several aggregates the lowest counts.
    #[serde(default)]
    pub cpu_allocation_ratio: Option<AllocationRatio>,
    /// `ram_allocation_ratio`, likewise.
    #[serde(default)]
    pub ram_allocation_ratio: Option<AllocationRatio>,
    /// `disk_allocation_ratio`, likewise.
    #[serde(default)]
    pub disk_allocation_ratio: Option<AllocationRatio>,
    /// Properties of its hosts that instances can ask for; at most 64.
    #[serde(default)]
    pub properties: BTreeMap<PropertyKey, PropertyValue>,
}

/// Change a host aggregate. What is not named stays; null clears.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct AggregateSet {
    /// Name or id of the aggregate.
    pub aggregate: String,
    /// The availability zone its hosts are in.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<ZoneName>")]
    pub availability_zone: Change<ZoneName>,
    /// `cpu_allocation_ratio`.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<AllocationRatio>")]
    pub cpu_allocation_ratio: Change<AllocationRatio>,
    /// `ram_allocation_ratio`.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<AllocationRatio>")]
    pub ram_allocation_ratio: Change<AllocationRatio>,
    /// `disk_allocation_ratio`.
    #[serde(default, with = "change", skip_serializing_if = "Change::is_kept")]
    #[schemars(with = "Option<AllocationRatio>")]
    pub disk_allocation_ratio: Change<AllocationRatio>,
    /// Properties to set, or with null to remove.
    #[serde(default)]
    pub properties: BTreeMap<PropertyKey, Option<PropertyValue>>,
}

/// Delete a host aggregate; its hosts stay. Deleting one that is not there is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateDelete {
    /// Name or id of the aggregate.
    pub aggregate: String,
}

/// List all host aggregates, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct AggregateList {}

/// All host aggregates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateListReply {
    /// The aggregates.
    pub aggregates: Vec<AggregateView>,
}

/// Put a hypervisor into an aggregate. A host is in at most one availability zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateAddHost {
    /// Name or id of the aggregate.
    pub aggregate: String,
    /// Name or id of the hypervisor.
    pub host: String,
}

/// Take a hypervisor out of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateRemoveHost {
    /// Name or id of the aggregate.
    pub aggregate: String,
    /// Name or id of the hypervisor.
    pub host: String,
}

/// Create a server group: instances that shall be together, or apart. Idempotent on its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerGroupCreate {
    /// Chosen by the client.
    pub id: ServerGroupId,
    /// Its name, unique in the project.
    pub name: ServerGroupName,
    /// The owner.
    #[serde(default)]
    pub project: ProjectName,
    /// How its instances stand to one another.
    pub policy: ServerGroupPolicy,
    /// Of `anti_affinity`: how many of its instances one host may have, at least 1; null: 1.
    #[serde(default)]
    pub max_server_per_host: Option<u32>,
}

/// Delete a server group that has no living instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerGroupDelete {
    /// Id, or name within the project, of the server group.
    pub server_group: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// List server groups, by project and name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ServerGroupList {
    /// Only this project's; null: all.
    #[serde(default)]
    pub project: Option<ProjectName>,
}

/// All server groups asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerGroupListReply {
    /// The server groups.
    pub server_groups: Vec<ServerGroupView>,
}

/// Tell why an instance is where it is, or why it is nowhere: for operators, with the names of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementExplain {
    /// Id, or name within the project, of the instance.
    pub instance: String,
    /// The project a name is looked up in.
    #[serde(default)]
    pub project: ProjectName,
}

/// The decisions about an instance, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementExplainReply {
    /// The instance.
    pub instance_id: InstanceId,
    /// The decisions that are still kept.
    pub decisions: Vec<DecisionView>,
}

/// Where would such an instance be placed now? Nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementPlace {
    /// The project that names in the hints and networks are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Its size.
    pub flavor: Flavor,
    /// Where it may be placed, and where not.
    #[serde(default)]
    pub hints: SchedulerHints,
    /// The networks it would be plugged into, as in `instance.create`: hosts that cannot build them, or what routers join to them,
    /// are no place for it. What that would refuse of them is refused here too.
    #[serde(default)]
    pub networks: Vec<NetworkAttachment>,
}

/// How many such instances would fit now, and what runs out first? Nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementCapacity {
    /// The project that names in the hints and networks are looked up in.
    #[serde(default)]
    pub project: ProjectName,
    /// Their size.
    pub flavor: Flavor,
    /// Where they may be placed, and where not.
    #[serde(default)]
    pub hints: SchedulerHints,
    /// The networks each would be plugged into, as in `placement.place`. Addresses are not counted: a port or an address that is
    /// named is as if each had its own.
    #[serde(default)]
    pub networks: Vec<NetworkAttachment>,
    /// Count no further than this; 1 to 100000.
    #[serde(default = "default_most")]
    pub most: u32,
}

/// How far capacity is counted unless asked otherwise.
#[must_use]
pub fn default_most() -> u32 {
    10_000
}

/// A change to a field: not named, cleared, or set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Change<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It has no value any more.
    Clear,
    /// It has this value.
    Set(T),
}

impl<T> Change<T> {
    /// Whether it stays as it is.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// The field after the change.
    #[must_use]
    pub fn apply(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }
}

/// [`Change`] on the wire: absent, null, or a value.
pub(super) mod change {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Change;

    pub(in crate::message) fn serialize<T: Serialize, S: Serializer>(
        change: &Change<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match change {
            Change::Keep | Change::Clear => serializer.serialize_none(),
            Change::Set(value) => serializer.serialize_some(value),
        }
    }

    pub(in crate::message) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Change<T>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Change::Clear, Change::Set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_not_named_stays_and_null_clears_it() {
        let check = |json: &str, expected: Change<AllocationRatio>| {
            let request: HostSet = serde_json::from_str(json).unwrap();
            assert_eq!(request.cpu_allocation_ratio, expected);
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<HostSet>(&again).unwrap(), request);
        };
        check(r#"{"host":"hv1"}"#, Change::Keep);
        check(
            r#"{"host":"hv1","cpu_allocation_ratio":null}"#,
            Change::Clear,
        );
        check(
            r#"{"host":"hv1","cpu_allocation_ratio":"2.5"}"#,
            Change::Set("2.5".parse().unwrap()),
        );
        for wrong in ["0", "-1", "\"NaN\"", "1e400", "true"] {
            let json = format!(r#"{{"host":"hv1","cpu_allocation_ratio":{wrong}}}"#);
            assert!(serde_json::from_str::<HostSet>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn an_instance_without_hints_is_written_as_before_there_were_any() {
        let request = r#"{"id":"0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11","name":"web-1","project":"default","flavor":{"vcpus":1,"memory_mb":64,"disk_gb":1},"image":{"url":"file:///x","sha256":"0000000000000000000000000000000000000000000000000000000000000000","format":"raw"},"networks":[],"power":"running","stop_timeout_seconds":60}"#;
        let parsed: InstanceCreate = serde_json::from_str(request).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), request);
    }
}
