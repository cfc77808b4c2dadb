//! Reports: what an agent says of the documents it has.
//!
//! Topic `report.<host id>`. A report is a statement of fact, newest wins: `(session, sequence)` orders the
//! reports of a host, and an older one than already seen is ignored.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    document::DocumentKey,
    ids::{HostId, Nonce, PortId, VolumeId},
    names::HostName,
    units::{Generation, MemoryMb, Vcpus},
};

/// The `type` property of a report.
pub const REPORT_TYPE: &str = "report";
/// The version of reports (`x-berth-version`).
pub const REPORT_VERSION: u32 = 5;

/// The state of some of a host's documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// How often this agent has started: counts up with each start.
    pub session: u64,
    /// Counts up within a session.
    pub sequence: u64,
    /// The documents whose state is told, at most 100 in a report.
    pub resources: Vec<ResourceReport>,
}

/// The state of one document on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceReport {
    /// The resource.
    #[serde(flatten)]
    pub key: DocumentKey,
    /// The generation this state is about.
    pub generation: Generation,
    /// How far the host is.
    pub status: ConvergeStatus,
    /// What the agent is busy with, for people.
    #[serde(default)]
    pub progress: Option<String>,
    /// What went wrong, if anything did.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// Of instances: what the hypervisor says.
    #[serde(default)]
    pub power_state: Option<PowerState>,
    /// Of instances: the last reboot that was carried out.
    #[serde(default)]
    pub reboot_nonce: Option<Nonce>,
    /// Of instances: what its domain boots from; null: from the disk that was made with it, or there is no domain.
    #[serde(default)]
    pub boot_disk: Option<BootDisk>,
    /// Of instances: the size of the guest that is on; null: it is off, or its host does not tell.
    #[serde(default)]
    pub running: Option<RunningSize>,
    /// Of instances: the ports whose NICs its domain has, those of its guest if that is on; null: not known.
    #[serde(default)]
    pub ports: Option<Vec<PortId>>,
    /// Of instances: the volumes that its domain has, or has after its next start, as was seen since this generation came; null: not
    /// known.
    #[serde(default)]
    pub volumes: Option<Vec<VolumeId>>,
    /// When the agent looked.
    pub observed_at: DateTime<Utc>,
}

/// What a guest that is on has, and the most it can be given without a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct RunningSize {
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// As many as it can have.
    pub vcpus_max: Vcpus,
    /// Memory in MiB.
    pub memory_mb: MemoryMb,
    /// As much as it can have.
    pub memory_mb_max: MemoryMb,
    /// It gets more memory in multiples of this.
    pub memory_step_mb: MemoryMb,
}

impl RunningSize {
    /// Whether so many virtual CPUs are more, and can be given to it without a restart.
    #[must_use]
    pub fn takes_vcpus(&self, wanted: Vcpus) -> bool {
        wanted > self.vcpus && wanted <= self.vcpus_max
    }

    /// Whether so much memory is more, and can be given to it without a restart.
    #[must_use]
    pub fn takes_memory(&self, wanted: MemoryMb) -> bool {
        let more = wanted.get().saturating_sub(self.memory_mb.get());
        let is_whole = more.checked_rem(self.memory_step_mb.get()) == Some(0);
        more > 0 && is_whole && wanted <= self.memory_mb_max
    }
}

/// What an instance boots from, if not from the disk that was made with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootDisk {
    /// The disk of the rebuild with this nonce.
    Rebuilt(Nonce),
    /// The disk of the rescue with this nonce.
    Rescue(Nonce),
}

/// How far a host is with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ConvergeStatus {
    /// At work on it, or waiting to try again.
    Converging,
    /// It is as the document says.
    Converged,
    /// It cannot be made so; `fault` says why. A new generation is tried anew.
    Failed,
    /// A tombstone was carried out: nothing of the resource is left on the host.
    Gone,
}

impl ConvergeStatus {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Converging => "converging",
            Self::Converged => "converged",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }
}

/// Why something failed, for the owner of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// The reason, for programs.
    pub code: FaultCode,
    /// The reason, for people.
    pub message: String,
}

/// Reasons for failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum FaultCode {
    /// No host had room, or none was up and enabled.
    NoValidHost,
    /// The image could not be fetched.
    ImageUnreachable,
    /// The image's content is not what its sha256 says.
    ImageChecksum,
    /// The image is not acceptable: a backing file, an external data file, another format, too large a disk.
    ImageRefused,
    /// The host has no space left.
    DiskFull,
    /// The network could not be built on the host.
    Network,
    /// libvirt or QEMU refused.
    Hypervisor,
    /// Something that berth did not make is in the way.
    ForeignObject,
    /// The volume, or what it shall be made from, is not as it must be.
    Volume,
    /// This version of the agent cannot act on the document.
    Unsupported,
    /// A fault of berth itself; the host's log has the rest.
    Internal,
}

impl FaultCode {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoValidHost => "no_valid_host",
            Self::ImageUnreachable => "image_unreachable",
            Self::ImageChecksum => "image_checksum",
            Self::ImageRefused => "image_refused",
            Self::DiskFull => "disk_full",
            Self::Network => "network",
            Self::Hypervisor => "hypervisor",
            Self::ForeignObject => "foreign_object",
            Self::Volume => "volume",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    /// Whether another host may do better: the host is to blame, not the request.
    #[must_use]
    pub const fn is_hosts(self) -> bool {
        match self {
            Self::DiskFull
            | Self::Network
            | Self::Hypervisor
            | Self::ForeignObject
            | Self::Unsupported
            | Self::Internal => true,
            Self::NoValidHost
            | Self::Volume
            | Self::ImageUnreachable
            | Self::ImageChecksum
            | Self::ImageRefused => false,
        }
    }
}

/// What the hypervisor says of a guest; Nova's `power_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PowerState {
    /// Nothing is known, or there is no domain.
    #[default]
    Nostate,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It is powered off.
    Shutdown,
    /// It crashed.
    Crashed,
    /// It sleeps.
    Suspended,
}

impl PowerState {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nostate => "nostate",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shutdown",
            Self::Crashed => "crashed",
            Self::Suspended => "suspended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_called_the_same_everywhere() {
        for code in [
            FaultCode::NoValidHost,
            FaultCode::ImageUnreachable,
            FaultCode::ImageChecksum,
            FaultCode::ImageRefused,
            FaultCode::DiskFull,
            FaultCode::Network,
            FaultCode::Hypervisor,
            FaultCode::ForeignObject,
            FaultCode::Volume,
            FaultCode::Unsupported,
            FaultCode::Internal,
        ] {
            let on_the_wire = serde_json::to_value(code).unwrap();
            assert_eq!(on_the_wire, code.as_str());
        }
    }
}
