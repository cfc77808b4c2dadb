//! Heartbeats: what an agent says of its host, every few seconds.
//!
//! Topic `heartbeat.<host id>`. Only the newest matters, so the queue is transient and old ones expire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{report::PowerState, view::Resources};
use crate::{
    ids::HostId,
    names::{HostName, PhysicalNetworkName, ResourceClass},
    units::{MemoryMb, Vcpus},
};

/// The `type` property of a heartbeat.
pub const HEARTBEAT_TYPE: &str = "heartbeat";
/// The version of heartbeats (`x-berth-version`).
pub const HEARTBEAT_VERSION: u32 = 2;

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
