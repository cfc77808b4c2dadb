//! I/O on the host, behind narrow traits: observe, and apply one step of a plan. No decisions here.
//!
//! Implementations: [`libvirt`], [`net`], [`storage`], and [`machine`] for what is measured; [`fake`] is a small model of a host with state, for
//! tests and simulations. Calls that may hang are bounded and have deadlines, and what blocks has a thread of its own, so that one hung
//! call stops neither heartbeats nor other instances.

mod account;
mod calls;
pub mod command;
pub mod fake;
pub mod inspect;
pub mod libvirt;
pub mod machine;
pub mod net;
mod process;
pub mod storage;
mod threads;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use berth_common::{
    document::ImageRef,
    ids::{InstanceId, NetworkId, RouterId, SnapshotId, VolumeId},
    message::{heartbeat::PoolReport, report::FaultCode},
    names::PoolName,
    units::ByteCount,
};

use crate::decide::{
    domain::{DiskError, DomainObserved, DomainStep, JobProgress},
    filter::Reason,
    instance::{InstanceFiles, StorageStep},
    metadata::ForgedCounts,
    network::{Herald, NetStep, NetworkObserved},
    router::{Leg, RouterObserved, RouterStep},
    snapshot::{BackupJob, SnapshotFiles},
    usage::DomainUsage,
    volume::VolumeFiles,
};

/// An action failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ActError {
    /// What was tried, with ids and paths.
    pub what: String,
    /// What it means for the owner of the resource.
    pub code: FaultCode,
    /// Whether trying again can help without a new document (a full disk, an absent libvirtd), or not (a wrong
    /// checksum).
    pub retryable: bool,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ActError {
    /// A failure that trying again may mend.
    pub fn retryable(
        code: FaultCode,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            what: what.into(),
            code,
            retryable: true,
            source: Some(source.into()),
        }
    }

    /// A refusal: the same step will never succeed.
    pub fn refused(code: FaultCode, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            code,
            retryable: false,
            source: None,
        }
    }
}

/// A storage pool as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolState {
    /// Its name.
    pub name: PoolName,
    /// How full it is, or what is wrong with it.
    pub report: Result<PoolReport, String>,
}

/// Where a long step tells how far it is ("downloading the image, 40 %").
pub type Progress = tokio::sync::watch::Sender<Option<String>>;

/// Domains.
#[async_trait]
pub trait Compute: Send + Sync {
    /// All domains of the host, berth's and foreign ones.
    async fn observe(&self) -> Result<Vec<DomainObserved>, ActError>;
    /// The domain with an instance's UUID, whoever made it; `None`: there is none.
    async fn observe_one(&self, instance: InstanceId) -> Result<Option<DomainObserved>, ActError>;
    /// Carries out one step. Repeating a step that was done already is not an error.
    async fn apply(&self, step: &DomainStep) -> Result<(), ActError>;
    /// How far a long step on an instance's domain is; `None`: none runs.
    async fn job(&self, instance: InstanceId) -> Result<Option<JobProgress>, ActError>;
    /// The disks that QEMU could not read or write, by the guest's names, of one that stands still for that. Its QEMU has to answer, and
    /// (7.2) tells of those that it could not earlier since it was started as well.
    async fn disk_errors(
        &self,
        instance: InstanceId,
    ) -> Result<BTreeMap<String, DiskError>, ActError>;
    /// The backup jobs that run on the host's domains, berth's and others.
    async fn backups(&self) -> Result<Vec<BackupJob>, ActError>;
    /// Waits until the host says that something may have happened to a domain. That is a reason to look and nothing more: it may be
    /// said for nothing, or for what was done by a step, and it may never be said. What is said while nobody waits is kept, once.
    async fn news(&self);
}

/// What domains use. Apart from [`Compute`], so that measuring holds up no step.
#[async_trait]
pub trait Usage: Send + Sync {
    /// All running domains, berth's and foreign ones, in one call. One that is busy is not waited for, and tells less.
    async fn usage(&self) -> Result<Vec<DomainUsage>, ActError>;
}

/// Files: images, disks and volumes.
#[async_trait]
pub trait Storage: Send + Sync {
    /// The files of an instance that are complete.
    async fn observe(&self, instance: InstanceId) -> Result<InstanceFiles, ActError>;
    /// Whether an image is in the cache, whole, verified and ready to be used.
    async fn has_image(&self, image: &ImageRef) -> Result<bool, ActError>;
    /// Carries out one step. Repeating a step that was done already is not an error.
    async fn apply(&self, step: &StorageStep, progress: &Progress) -> Result<(), ActError>;
    /// Size and used bytes of the file system that holds the disks.
    async fn space(&self) -> Result<(ByteCount, ByteCount), ActError>;
    /// Ids of all instances that have files on this host, whether or not a document names them.
    async fn instances_with_files(&self) -> Result<Vec<InstanceId>, ActError>;
    /// What is there of a volume in a storage pool, if it is known in which it can only be, and otherwise in any.
    async fn observe_volume(
        &self,
        volume: VolumeId,
        pool: Option<&PoolName>,
    ) -> Result<VolumeFiles, ActError>;
    /// Every storage pool, by name: how full it is, or why that cannot be said.
    async fn pools(&self) -> Vec<PoolState>;
    /// Ids of all volumes of which anything is on this host, whether or not a document names them.
    async fn volumes_with_files(&self) -> Result<Vec<VolumeId>, ActError>;
    /// What is there of a snapshot in a storage pool, if it is known in which it can only be, and otherwise in any.
    async fn observe_snapshot(
        &self,
        snapshot: SnapshotId,
        pool: Option<&PoolName>,
    ) -> Result<SnapshotFiles, ActError>;
    /// Ids of all snapshots of which anything is on this host, whether or not a document names them.
    async fn snapshots_with_files(&self) -> Result<Vec<SnapshotId>, ActError>;
    /// Whether the disk has room for more of a snapshot that a hypervisor writes just now.
    async fn check_snapshot_room(&self, snapshot: SnapshotId) -> Result<(), ActError>;
    /// Gives back what is left of the room that was promised when such a snapshot was prepared.
    fn release_snapshot_room(&self, snapshot: SnapshotId);
    /// Removes leftovers of interrupted work (temporary files that no running step owns). Called once at start.
    async fn sweep(&self) -> Result<(), ActError>;
    /// Fetches an image into the cache, verified; concurrent requests for one image share one download.
    async fn fetch_image(&self, image: &ImageRef, progress: &Progress) -> Result<(), ActError>;
}

/// The kernel's network, and DHCP.
#[async_trait]
pub trait Net: Send + Sync {
    /// What is there of a network.
    async fn observe(&self, network: NetworkId) -> Result<NetworkObserved, ActError>;
    /// Carries out one step. Repeating a step that was done already is not an error.
    async fn apply(&self, step: &NetStep) -> Result<(), ActError>;
    /// The packets that the packet filter dropped so far, by the name of a tap and the reason.
    async fn drops(&self) -> Result<BTreeMap<(String, Reason), u64>, ActError>;
    /// The packets for VXLANs that the packet filter dropped so far, as no document names their senders; `None`: there is no VXLAN.
    async fn tunnel_drops(&self) -> Result<Option<u64>, ActError>;
    /// The requests with identity headers that metadata services got so far, by network and where they came from.
    async fn forged_requests(&self) -> Result<BTreeMap<NetworkId, ForgedCounts>, ActError>;
    /// Ids of all networks of which anything of berth's exists on this host.
    async fn networks_present(&self) -> Result<Vec<NetworkId>, ActError>;
    /// What is there of a router, and of the bridges that these legs of it belong into.
    async fn observe_router(
        &self,
        router: RouterId,
        legs: &BTreeSet<Leg>,
    ) -> Result<RouterObserved, ActError>;
    /// Carries out one step. Repeating a step that was done already is not an error.
    async fn apply_router(&self, step: &RouterStep) -> Result<(), ActError>;
    /// Tells physical switches where guests are. To be repeated now and then: they forget.
    async fn herald(&self, herald: &Herald) -> Result<(), ActError>;
    /// Ids of all routers of which anything of berth's exists on this host.
    async fn routers_present(&self) -> Result<Vec<RouterId>, ActError>;
}
