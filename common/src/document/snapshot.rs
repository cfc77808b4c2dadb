//! The document of a snapshot: what a volume held at one moment, as a thing of its own.
//!
//! It is independent of the volume: once it is made, the volume may grow, change or go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::VolumeRef;
use crate::{
    ids::SnapshotId,
    names::{PoolName, ProjectName, SnapshotName},
    units::DiskGb,
};

/// How a snapshot shall be. Nothing of it ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotSpec {
    /// Name given by its owner.
    pub name: SnapshotName,
    /// The owner.
    pub project: ProjectName,
    /// The volume of the same host whose content it is. It lies in the pool that its volume is in; once it is there, nothing
    /// else of this says anything any more.
    pub volume: VolumeRef,
    /// The most it may hold, in GiB: the size the volume shall have when the snapshot was asked for.
    pub size_gb: DiskGb,
}

/// A snapshot of the same host, with what must be known to open it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotRef {
    /// The snapshot.
    pub id: SnapshotId,
    /// Where; absent: `local`.
    #[serde(default, skip_serializing_if = "PoolName::is_local")]
    pub pool: PoolName,
}
