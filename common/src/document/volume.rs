//! The document of a volume: a disk of its own, which outlives the instances it is attached to.
//!
//! Who uses it is said in the documents of instances ([`super::InstanceVolume`]), not here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ImageRef, SnapshotRef};
use crate::{
    ids::VolumeId,
    names::{PoolName, ProjectName, VolumeName},
    units::DiskGb,
};

/// How a volume shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSpec {
    /// Name given by its owner.
    pub name: VolumeName,
    /// The owner.
    pub project: ProjectName,
    /// Its size in GiB. A larger one than it has makes it grow; it never shrinks.
    pub size_gb: DiskGb,
    /// How it is stored.
    pub format: VolumeFormat,
    /// Where on its host it is stored; absent: `local`.
    #[serde(default, skip_serializing_if = "PoolName::is_local")]
    pub pool: PoolName,
    /// What is on it at first; null: zeros. Once it is there, this says nothing any more.
    #[serde(default)]
    pub source: Option<VolumeSource>,
}

/// How a volume is stored on its host: a stated fact, never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum VolumeFormat {
    /// A qcow2 file of its own, with nothing below it.
    #[default]
    Qcow2,
    /// The bare bytes, in a sparse file or on a block device.
    Raw,
}

impl VolumeFormat {
    /// How a volume is stored in a pool unless its owner says otherwise. What another pool than `local` is made of may differ
    /// from host to host, and every kind holds raw volumes.
    #[must_use]
    pub fn usual(pool: &PoolName) -> Self {
        if pool.is_local() {
            Self::Qcow2
        } else {
            Self::Raw
        }
    }

    /// The name on the wire, and the one `qemu-img` and libvirt use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What is on a volume at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// The content of an image.
    Image(ImageRef),
    /// The content of another volume of the same host.
    Volume(VolumeRef),
    /// What a snapshot of the same host holds.
    Snapshot(SnapshotRef),
}

/// Another volume of the same host, with what must be known to open it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct VolumeRef {
    /// The volume.
    pub id: VolumeId,
    /// How it is stored.
    pub format: VolumeFormat,
    /// Where; absent: `local`.
    #[serde(default, skip_serializing_if = "PoolName::is_local")]
    pub pool: PoolName,
}

/// How much a guest may do with a volume in a second, reads and writes together; null: as much as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumeLimits {
    /// I/O operations per second, 1 to 1000000000000000.
    #[serde(default)]
    pub total_iops: Option<u64>,
    /// Bytes per second, 1 to 1000000000000000.
    #[serde(default)]
    pub total_bytes_per_second: Option<u64>,
}

impl VolumeLimits {
    /// The highest limit there is: the most that libvirt's QEMU driver takes for `iotune`
    /// (`QEMU_BLOCK_IOTUNE_MAX`).
    pub const MOST: u64 = 1_000_000_000_000_000;

    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.total_iops.is_none() && self.total_bytes_per_second.is_none()
    }
}
