//! Heartbeats: what an agent says of its host, every few seconds.
//!
//! Topic `heartbeat.<host id>`. Only the newest matters, so the queue is transient and old ones expire.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{report::PowerState, view::Resources};
use crate::{
    document::VolumeFormat,
    ids::HostId,
    names::{HostName, PhysicalNetworkName, PoolName, ResourceClass},
    units::{ByteCount, MemoryMb, Vcpus},
};

/// The `type` property of a heartbeat.
pub const HEARTBEAT_TYPE: &str = "heartbeat";
/// The version of heartbeats (`x-berth-version`).
pub const HEARTBEAT_VERSION: u32 = 4;

/// What a host is, has and uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// The host.
    pub host_id: HostId,
    /// Its name, also the name of its queue `compute.<host>`.
    pub host: HostName,
    /// How often this agent has started. A new session makes the scheduler publish all documents again.
    pub session: u64,
    /// Counts up within a session.
    pub sequence: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// Its processor architecture, in libvirt's words (`x86_64`).
    pub arch: String,
    /// What runs guests: `kvm` or `qemu`.
    pub virt_type: String,
    /// What exists: logical CPUs, memory of `/proc/meminfo`, size of the file system that holds disks.
    pub total: Resources,
    /// What is used, measured: vCPUs of running domains, memory not available, disk space taken.
    pub used_now: Resources,
    /// How the host's parts are.
    pub health: Vec<PartHealth>,
    /// Domains that berth did not make.
    pub foreign_domains: Vec<ForeignDomain>,
    /// The physical networks its NICs are plugged into.
    #[serde(default)]
    pub physical_networks: Vec<PhysicalNetworkName>,
    /// Countable resources besides CPUs, memory and disk: huge pages, PCI devices.
    #[serde(default)]
    pub resources: Vec<ResourceInventory>,
    /// Its storage pools that work, by name. An agent that knew none has `local` only, and says nothing of it.
    #[serde(default)]
    pub pools: Vec<PoolReport>,
    /// What kinds of networks it can build.
    #[serde(default)]
    pub network: NetworkCapabilities,
}

/// What kinds of networks a host can build.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetworkCapabilities {
    /// Its kernel has VLANs (802.1Q).
    pub vlan: bool,
    /// Its kernel has VXLAN.
    pub vxlan: bool,
    /// Its kernel tells established connections apart on a bridge: what security groups need.
    pub stateful_filter: bool,
    /// Its address for VXLAN; null: it has none.
    pub tunnel_ip: Option<IpAddr>,
}

/// A storage pool of a host: where its volumes lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolReport {
    /// Its name.
    pub name: PoolName,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: PoolKind,
    /// Its size in bytes: of its file system, of its volume group, or of its thin pool.
    pub total_bytes: ByteCount,
    /// What is taken of it, whoever took it.
    pub used_bytes: ByteCount,
    /// The sum of the virtual sizes of berth's volumes and snapshots in it.
    pub provisioned_bytes: ByteCount,
    /// How full the tables of a thin pool are, in percent, rounded up; null: it has none.
    #[serde(default)]
    pub metadata_percent: Option<u8>,
}

/// What a storage pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PoolKind {
    /// Files in a directory.
    Dir,
    /// Logical volumes that have all their extents.
    Lvm,
    /// Logical volumes that take extents of a thin pool when they are written to.
    LvmThin,
}

impl PoolKind {
    /// Whether a volume can be stored so in such a pool: a block device holds the bare bytes.
    #[must_use]
    pub const fn holds(self, format: VolumeFormat) -> bool {
        match self {
            Self::Dir => true,
            Self::Lvm | Self::LvmThin => matches!(format, VolumeFormat::Raw),
        }
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Lvm => "lvm",
            Self::LvmThin => "lvm_thin",
        }
    }
}

/// How much of a countable resource a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceInventory {
    /// The resource.
    pub class: ResourceClass,
    /// How many there are for instances.
    pub total: u64,
}

/// The state of one part of a host (`agent`, `libvirt`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PartHealth {
    /// The part.
    pub part: String,
    /// Whether it works.
    pub ok: bool,
    /// What is wrong with it.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A domain that berth did not make: listed, counted as used, never touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForeignDomain {
    /// libvirt's UUID of it.
    pub uuid: Uuid,
    /// libvirt's name of it.
    pub name: String,
    /// Its state.
    pub power_state: PowerState,
    /// Its virtual CPUs.
    pub vcpus: Vcpus,
    /// Its memory in MiB.
    pub memory_mb: MemoryMb,
}
