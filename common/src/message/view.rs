//! What replies show: instances, networks and hosts as they are now.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::network::{NetworkView, SubnetView};
use super::{
    heartbeat::{ForeignDomain, NetworkCapabilities, PartHealth, PoolReport},
    report::{Fault, PowerState, RunningSize},
};
use crate::{
    document::{
        DesiredPower, DiskBus, FixedIp, Flavor, ImageRef, OnCrash, VolumeAccess, VolumeFormat,
        VolumeLimits, VolumeSource,
    },
    ids::{HostId, InstanceId, NetworkId, PortId, SnapshotId, VolumeId},
    names::{
        AggregateName, HostName, InstanceName, MacAddress, NetworkName, PhysicalNetworkName,
        PoolName, ProjectName, PropertyKey, PropertyValue, ResourceClass, SnapshotName, VolumeName,
        ZoneName,
    },
    units::{AllocationRatio, DiskGb, Generation, MemoryMb, Vcpus},
};

/// An instance as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceView {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: InstanceName,
    /// Its owner.
    pub project: ProjectName,
    /// In which part of its life it is.
    pub vm_state: VmState,
    /// What is being done to it, if anything.
    pub task_state: Option<TaskState>,
    /// What the hypervisor last said.
    pub power_state: PowerState,
    /// What its owner wants.
    pub desired_power: DesiredPower,
    /// What berth is busy with, for people ("downloading the image, 40 %").
    pub progress: Option<String>,
    /// Why it is in error, if it is.
    pub fault: Option<Fault>,
    /// The hypervisor it is on.
    pub host: Option<HostName>,
    /// The id of that hypervisor.
    pub host_id: Option<HostId>,
    /// Its size.
    pub flavor: Flavor,
    /// What its guest has of it, while it is on; null: it is off, or its host does not tell.
    #[serde(default)]
    pub running: Option<RunningSize>,
    /// What of its size its guest, which is on, does not have yet, and how it gets it.
    #[serde(default)]
    pub pending: Vec<PendingSize>,
    /// What its boot disk was made from; null: it boots from a volume.
    #[serde(default)]
    pub image: Option<ImageRef>,
    /// The volume that it boots from; null: a disk of its own. Its flavor's disk is not used, and nothing claimed for it.
    #[serde(default)]
    pub root_volume: Option<RootVolume>,
    /// Whether it shall boot from a rescue disk, with its own disks after that one and without its volumes.
    #[serde(default)]
    pub rescued: bool,
    /// What is said of it: at first, what its config drive said.
    #[serde(default)]
    pub metadata: BTreeMap<PropertyKey, PropertyValue>,
    /// What becomes of it when its guest crashes.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// The volumes attached to it, by position.
    #[serde(default)]
    pub volumes: Vec<AttachedVolume>,
    /// The version of what is wanted of it; 0 before it has a host.
    pub generation: Generation,
    /// The version its host last confirmed.
    pub observed_generation: Generation,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When anything of it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A volume that an instance boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct RootVolume {
    /// The volume.
    pub id: VolumeId,
    /// Whether it is deleted with the instance.
    #[serde(default)]
    pub delete_on_termination: bool,
}

/// A part of an instance's size that its guest does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingSize {
    /// Which part.
    pub part: SizePart,
    /// What the guest has.
    pub running: u64,
    /// What it shall have.
    pub wanted: u64,
    /// When it gets it.
    pub takes_effect: TakesEffect,
}

/// A part of an instance's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum SizePart {
    /// Virtual CPUs.
    Vcpus,
    /// Memory in MiB.
    MemoryMb,
}

/// When a guest that is on gets a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TakesEffect {
    /// While it runs, as soon as its host is at it.
    Live,
    /// When it is powered on the next time: by a reboot, or by stop and start. A reboot from within the guest is none.
    NextStart,
}

/// In which part of its life an instance is; Nova's `vm_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum VmState {
    /// It has not run yet.
    Building,
    /// It runs.
    Active,
    /// It is powered off.
    Stopped,
    /// Its processors stand still.
    Paused,
    /// It is off, and its memory is kept on disk.
    Suspended,
    /// Something failed; `fault` says what.
    Error,
    /// It is gone.
    Deleted,
}

impl VmState {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Active => "active",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Error => "error",
            Self::Deleted => "deleted",
        }
    }
}

/// What is being done to an instance; Nova's `task_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TaskState {
    /// It is being built on its host.
    Spawning,
    /// It is being powered on.
    PoweringOn,
    /// It is being powered off.
    PoweringOff,
    /// It is being rebooted.
    Rebooting,
    /// It is being paused.
    Pausing,
    /// It is being let go on after a pause.
    Unpausing,
    /// Its memory is being saved.
    Suspending,
    /// Its memory is being restored.
    Resuming,
    /// It is being booted from a rescue disk.
    Rescuing,
    /// It is being booted from its own disk again.
    Unrescuing,
    /// Its root disk is being made anew.
    Rebuilding,
    /// It is being deleted.
    Deleting,
}

impl TaskState {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spawning => "spawning",
            Self::PoweringOn => "powering_on",
            Self::PoweringOff => "powering_off",
            Self::Rebooting => "rebooting",
            Self::Pausing => "pausing",
            Self::Unpausing => "unpausing",
            Self::Suspending => "suspending",
            Self::Resuming => "resuming",
            Self::Rescuing => "rescuing",
            Self::Unrescuing => "unrescuing",
            Self::Rebuilding => "rebuilding",
            Self::Deleting => "deleting",
        }
    }
}

/// A volume that is attached to an instance, or about to be, or not free of it yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachedVolume {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// The guest's usual name of it (`/dev/vdb`); on the bus `scsi` libvirt's (`/dev/sdb`), and the guest counts on its own.
    pub device: String,
    /// Whether the guest may write to it.
    pub access: VolumeAccess,
    /// Which bus the guest has it on.
    #[serde(default)]
    pub disk_bus: DiskBus,
}

/// A volume as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeView {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its owner.
    pub project: ProjectName,
    /// Its size in GiB, as it shall be.
    pub size_gb: DiskGb,
    /// How it is stored.
    pub format: VolumeFormat,
    /// The storage pool of its host that it is in.
    #[serde(default)]
    pub pool: PoolName,
    /// What was on it at first; null: zeros.
    pub source: Option<VolumeSource>,
    /// How much a guest may do with it.
    pub limits: VolumeLimits,
    /// In which part of its life it is.
    pub status: VolumeStatus,
    /// What berth is busy with, for people ("copying, 40 %").
    pub progress: Option<String>,
    /// Why it is in error, if it is.
    pub fault: Option<Fault>,
    /// The hypervisor it is on; null: it has none yet, and gets that of the first instance it is attached to.
    pub host: Option<HostName>,
    /// The id of that hypervisor.
    pub host_id: Option<HostId>,
    /// The instance it is attached to.
    pub attachment: Option<AttachmentView>,
    /// The version of what is wanted of it; 0 before it has a host.
    pub generation: Generation,
    /// The version its host last confirmed.
    pub observed_generation: Generation,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When anything of it last changed.
    pub updated_at: DateTime<Utc>,
}

/// What a volume is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachmentView {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its name.
    pub instance: InstanceName,
    /// The guest's usual name of the volume (`/dev/vdb`); on the bus `scsi` libvirt's (`/dev/sdb`), and the guest counts on
    /// its own.
    pub device: String,
    /// Whether the guest may write to it.
    pub access: VolumeAccess,
    /// Which bus the guest has it on.
    #[serde(default)]
    pub disk_bus: DiskBus,
}

/// In which part of its life a volume is; Cinder's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum VolumeStatus {
    /// Its host makes it.
    Creating,
    /// It can be attached.
    Available,
    /// It is being attached.
    Attaching,
    /// An instance has it.
    InUse,
    /// It is being detached: nobody else gets it before its host saw the device gone.
    Detaching,
    /// It is growing.
    Extending,
    /// It is being deleted.
    Deleting,
    /// Something failed; `fault` says what.
    Error,
    /// It is gone.
    Deleted,
}

impl VolumeStatus {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::Attaching => "attaching",
            Self::InUse => "in-use",
            Self::Detaching => "detaching",
            Self::Extending => "extending",
            Self::Deleting => "deleting",
            Self::Error => "error",
            Self::Deleted => "deleted",
        }
    }
}

/// A snapshot of a volume as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotView {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// Its owner.
    pub project: ProjectName,
    /// The volume whose content it is; it may be gone since.
    pub volume_id: VolumeId,
    /// That volume's name; null once it is deleted.
    pub volume: Option<VolumeName>,
    /// Its size in GiB: the least that a volume made from it has.
    pub size_gb: DiskGb,
    /// The storage pool of its host that it is in: that of its volume.
    #[serde(default)]
    pub pool: PoolName,
    /// In which part of its life it is.
    pub status: SnapshotStatus,
    /// What berth is busy with, for people ("copying, 40 %").
    pub progress: Option<String>,
    /// Why it is in error, if it is.
    pub fault: Option<Fault>,
    /// The hypervisor it is on.
    pub host: Option<HostName>,
    /// The id of that hypervisor.
    pub host_id: Option<HostId>,
    /// The version of what is wanted of it.
    pub generation: Generation,
    /// The version its host last confirmed.
    pub observed_generation: Generation,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When anything of it last changed.
    pub updated_at: DateTime<Utc>,
}

/// In which part of its life a snapshot is; Cinder's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum SnapshotStatus {
    /// Its host makes it.
    Creating,
    /// It is whole, and volumes can be made from it.
    Available,
    /// It is being deleted.
    Deleting,
    /// Something failed; `fault` says what.
    Error,
    /// It is gone.
    Deleted,
}

impl SnapshotStatus {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::Deleting => "deleting",
            Self::Error => "error",
            Self::Deleted => "deleted",
        }
    }
}

/// A port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortView {
    /// Its id.
    pub id: PortId,
    /// Its network.
    pub network_id: NetworkId,
    /// Its network's name; null once the network is deleted.
    pub network: Option<NetworkName>,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// Its addresses.
    pub fixed_ips: Vec<FixedIp>,
}

/// A hypervisor as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// Whether it gets new instances.
    pub status: HostStatus,
    /// Why it is disabled, if somebody said.
    pub disabled_reason: Option<String>,
    /// Whether its heartbeats arrive.
    pub state: HostState,
    /// Its availability zone.
    #[serde(default = "ZoneName::nova")]
    pub availability_zone: ZoneName,
    /// The aggregates it is in, by name.
    #[serde(default)]
    pub aggregates: Vec<AggregateName>,
    /// Seconds since its last heartbeat; null: none since this scheduler started.
    pub last_heartbeat_seconds: Option<u64>,
    /// Version of its agent.
    pub agent_version: String,
    /// What runs guests there: `kvm` or `qemu`.
    pub virt_type: String,
    /// Its processor architecture, in libvirt's words.
    pub arch: String,
    /// How its parts are.
    pub health: Vec<PartHealth>,
    /// Row `(total)`: what exists.
    pub total: Resources,
    /// Kept for the host itself.
    pub reserved: Resources,
    /// How much of each is promised for each unit that exists.
    pub allocation_ratios: AllocationRatios,
    /// `(total − reserved) × ratio`: the most that is ever claimed.
    pub capacity: Resources,
    /// Row `(used_now)`: measured on the host.
    pub used_now: Resources,
    /// Row `(used_max)`: claimed by instances, plus what foreign domains take.
    pub used_max: Resources,
    /// One row for each project with claims here.
    pub projects: Vec<ProjectUsage>,
    /// Domains on the host that berth did not make and never touches.
    pub foreign_domains: Vec<ForeignDomain>,
    /// How many instances have a claim here.
    pub instances: u64,
    /// The physical networks its NICs are plugged into.
    #[serde(default)]
    pub physical_networks: Vec<PhysicalNetworkName>,
    /// What kinds of networks it can build.
    #[serde(default)]
    pub network: NetworkCapabilities,
    /// Countable resources besides CPUs, memory and disk.
    #[serde(default)]
    pub resources: Vec<ResourceUsage>,
    /// Its storage pools that work, by name.
    #[serde(default)]
    pub pools: Vec<PoolUsage>,
}

/// A storage pool of a host, and how much of it is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolUsage {
    /// As its host sees it.
    #[serde(flatten)]
    pub report: PoolReport,
    /// The sum of the sizes of the volumes and snapshots that shall be in it, in GiB.
    pub claimed_gb: DiskGb,
}

/// How much of a countable resource a host has, and how much of it is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceUsage {
    /// The resource.
    pub class: ResourceClass,
    /// How many there are for instances.
    pub total: u64,
    /// How many are claimed.
    pub used: u64,
}

/// What one project has claimed on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectUsage {
    /// The project.
    pub project: ProjectName,
    /// The sum of its claims there.
    pub claimed: Resources,
}

/// Whether a host gets new instances; Nova's service `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HostStatus {
    /// It does.
    Enabled,
    /// It does not.
    Disabled,
    /// It does not, and those it has shall leave.
    Draining,
}

/// Whether a host's heartbeats arrive; Nova's service `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum HostState {
    /// They do.
    Up,
    /// They do not.
    Down,
}

/// An amount of everything that placement counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// CPUs.
    pub vcpus: Vcpus,
    /// Memory in MiB.
    pub memory_mb: MemoryMb,
    /// Disk in GiB.
    pub disk_gb: DiskGb,
}

impl Resources {
    /// Part by part, bounded by 64 bits.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
            disk_gb: self.disk_gb.saturating_add(other.disk_gb),
        }
    }

    /// Part by part, not below zero.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mb: self.memory_mb.saturating_sub(other.memory_mb),
            disk_gb: self.disk_gb.saturating_sub(other.disk_gb),
        }
    }
}

impl From<Flavor> for Resources {
    fn from(flavor: Flavor) -> Self {
        Self {
            vcpus: flavor.vcpus,
            memory_mb: flavor.memory_mb,
            disk_gb: flavor.disk_gb,
        }
    }
}

/// How much of each resource may be claimed for each unit that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllocationRatios {
    /// `cpu_allocation_ratio`.
    pub cpu: AllocationRatio,
    /// `ram_allocation_ratio`.
    pub ram: AllocationRatio,
    /// `disk_allocation_ratio`.
    pub disk: AllocationRatio,
}
