//! Desired documents: how one resource shall be on one host, at one generation.
//!
//! A document is complete (an agent never asks back) and convergent: applying it twice, late, or after a newer
//! one changes nothing. A document whose `spec` is null is a *tombstone*: the resource shall not exist. Nothing
//! but a tombstone ever destroys anything, so `spec` must be present on the wire, even when it is null.

mod config_drive;
mod instance;
mod network;
mod route;
mod router;
mod security_group;
mod snapshot;
mod volume;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

pub use config_drive::ConfigDrive;
pub use instance::{
    DesiredPower, DiskBus, DiskFormat, DiskSource, FixedIp, Flavor, ImageFormat, ImageRef,
    Incarnation, InstanceDisk, InstancePort, InstanceSpec, InstanceVolume, OnCrash, PortLink,
    Reboot, RebootKind, Rescue, VolumeAccess,
};
pub use network::{
    AddressPair, BandwidthLimit, Ipv6AddressMode, MirrorDirection, MirrorTarget, NetworkPort,
    NetworkSpec, NetworkType, PortMirror, PortQos, PortSecurity, RemotePort, SubnetSpec,
};
pub use route::Route;
pub use router::{GatewayAddress, RouterFloatingIp, RouterGateway, RouterInterface, RouterSpec};
pub use security_group::{
    EtherType, PortRange, RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule,
    SecurityGroupSpec,
};
pub use snapshot::{SnapshotRef, SnapshotSpec};
pub use volume::{VolumeFormat, VolumeLimits, VolumeRef, VolumeSource, VolumeSpec};

use crate::{
    ids::{HostId, InstanceId, NetworkId, RouterId, SnapshotId, VolumeId},
    units::Generation,
};

/// Version of the document messages (`x-berth-version`).
pub const DOCUMENT_VERSION: u32 = 5;

/// The kinds of resources that documents describe.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A virtual machine.
    Instance,
    /// What a host needs of a network.
    Network,
    /// A router.
    Router,
    /// A snapshot of a volume.
    Snapshot,
    /// A volume.
    Volume,
}

impl Kind {
    /// The name on the wire and in file names.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Network => "network",
            Self::Router => "router",
            Self::Snapshot => "snapshot",
            Self::Volume => "volume",
        }
    }

    /// The kind with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Instance,
            Self::Network,
            Self::Router,
            Self::Snapshot,
            Self::Volume,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which resource a document is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct DocumentKey {
    /// The kind of the resource.
    pub kind: Kind,
    /// The id of the resource.
    pub id: Uuid,
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

/// How one resource shall be on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Document {
    /// A virtual machine.
    Instance(Desired<InstanceId, InstanceSpec>),
    /// What a host needs of a network.
    Network(Desired<NetworkId, NetworkSpec>),
    /// A router.
    Router(Desired<RouterId, RouterSpec>),
    /// A snapshot of a volume.
    Snapshot(Desired<SnapshotId, SnapshotSpec>),
    /// A volume.
    Volume(Desired<VolumeId, VolumeSpec>),
}

/// The part all kinds of documents share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(bound(deserialize = "I: Deserialize<'de>, S: Deserialize<'de>"))]
pub struct Desired<I, S> {
    /// The resource.
    pub id: I,
    /// The version of this wish; a lower one than already seen is ignored.
    pub generation: Generation,
    /// The host this document is for. An agent with another id refuses it.
    pub host_id: HostId,
    /// How the resource shall be; null: it shall not exist. Must be present.
    #[serde(deserialize_with = "present")]
    #[schemars(required)]
    pub spec: Option<S>,
}

/// A missing `spec` is a mistake, not a tombstone: naming the deserializer makes serde demand the field.
fn present<'de, D: Deserializer<'de>, S: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<S>, D::Error> {
    Option::deserialize(deserializer)
}

impl Document {
    /// Which resource this is about.
    #[must_use]
    pub fn key(&self) -> DocumentKey {
        let (kind, id) = match self {
            Self::Instance(desired) => (Kind::Instance, desired.id.as_uuid()),
            Self::Network(desired) => (Kind::Network, desired.id.as_uuid()),
            Self::Router(desired) => (Kind::Router, desired.id.as_uuid()),
            Self::Snapshot(desired) => (Kind::Snapshot, desired.id.as_uuid()),
            Self::Volume(desired) => (Kind::Volume, desired.id.as_uuid()),
        };
        DocumentKey { kind, id }
    }

    /// The version of this wish.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match self {
            Self::Instance(desired) => desired.generation,
            Self::Network(desired) => desired.generation,
            Self::Router(desired) => desired.generation,
            Self::Snapshot(desired) => desired.generation,
            Self::Volume(desired) => desired.generation,
        }
    }

    /// The host this document is for.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        match self {
            Self::Instance(desired) => desired.host_id,
            Self::Network(desired) => desired.host_id,
            Self::Router(desired) => desired.host_id,
            Self::Snapshot(desired) => desired.host_id,
            Self::Volume(desired) => desired.host_id,
        }
    }

    /// Whether the resource shall not exist.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        match self {
            Self::Instance(desired) => desired.spec.is_none(),
            Self::Network(desired) => desired.spec.is_none(),
            Self::Router(desired) => desired.spec.is_none(),
            Self::Snapshot(desired) => desired.spec.is_none(),
            Self::Volume(desired) => desired.spec.is_none(),
        }
    }

    /// The same document at another generation.
    #[must_use]
    pub fn with_generation(mut self, generation: Generation) -> Self {
        match &mut self {
            Self::Instance(desired) => desired.generation = generation,
            Self::Network(desired) => desired.generation = generation,
            Self::Router(desired) => desired.generation = generation,
            Self::Snapshot(desired) => desired.generation = generation,
            Self::Volume(desired) => desired.generation = generation,
        }
        self
    }

    /// The tombstone that ends this document's resource on its host, one generation later.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        let mut tombstone = self.clone().with_generation(self.generation().next());
        match &mut tombstone {
            Self::Instance(desired) => desired.spec = None,
            Self::Network(desired) => desired.spec = None,
            Self::Router(desired) => desired.spec = None,
            Self::Snapshot(desired) => desired.spec = None,
            Self::Volume(desired) => desired.spec = None,
        }
        tombstone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_spec_is_a_mistake_and_not_a_tombstone() {
        let id = InstanceId::new();
        let host = HostId::new();
        let without =
            format!(r#"{{"kind":"instance","id":"{id}","generation":2,"host_id":"{host}"}}"#);
        let error = serde_json::from_str::<Document>(&without)
            .unwrap_err()
            .to_string();
        assert!(error.contains("spec"), "{error}");

        let tombstone = format!(
            r#"{{"kind":"instance","id":"{id}","generation":2,"host_id":"{host}","spec":null}}"#
        );
        let document: Document = serde_json::from_str(&tombstone).unwrap();
        assert!(document.is_tombstone());
        assert_eq!(
            document.key(),
            DocumentKey {
                kind: Kind::Instance,
                id: id.as_uuid()
            }
        );
    }

    #[test]
    fn unknown_fields_are_ignored_so_that_neighbouring_versions_understand_each_other() {
        let id = NetworkId::new();
        let host = HostId::new();
        let newer = format!(
            r#"{{"kind":"network","id":"{id}","generation":1,"host_id":"{host}","colour":"red","spec":null}}"#
        );
        assert!(serde_json::from_str::<Document>(&newer).is_ok());
    }
}
