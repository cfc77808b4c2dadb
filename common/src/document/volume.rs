//! The document of a volume. Agents journal and report it; acting on it is not part of this version.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DiskFormat, ImageRef};
use crate::{ids::VolumeId, names::ProjectName, units::DiskGb};

/// How a volume shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSpec {
    /// The owner.
    pub project: ProjectName,
    /// Its size in GiB.
    pub size_gb: DiskGb,
    /// How it is stored.
    pub format: DiskFormat,
    /// What is on it at first; null: zeros.
    #[serde(default)]
    pub source: Option<VolumeSource>,
}

/// What is on a volume at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// The content of an image.
    Image(ImageRef),
    /// The content of another volume of the same host.
    Volume(VolumeId),
}
