//! Files of instances: the image cache and the disks made from it, and volumes.
//!
//! ```text
//!   <images>/<sha256>              a whole, verified image; never changed
//!   <images>/<sha256>.vmdk.qcow2   what was made of one in a format that guests do not run on; never changed
//!   <images>/.partial-<sha256>     a download that runs, or one that a later one may continue (or a leftover: sweep)
//!   <instances>/<id>/disk0.qcow2   an overlay over an image; rebuilt ones and rescue disks carry their nonce
//!   <instances>/<id>/config.iso    its config drive
//!   <instances>/<id>/.tmp-…        a disk that is being made (or a leftover: sweep)
//!   <volumes>/<id>.qcow2 or .raw   a volume, with nothing below it
//!   <made>/<id>                    says that this volume was made: without its file, it was lost
//!   <snapshots>/<id>.qcow2         a snapshot, with nothing below it
//!   <snapshots>/.live-<id>.qcow2   one that a guest's hypervisor writes: no sweep removes it, its document does
//!   <made>/snapshot-<id>           says that this snapshot was made
//!   <volumes>/.tmp-…               a volume that is being made (or a leftover: sweep)
//!   <volumes>/.wipe-<id>.…         a deleted volume whose bytes are being wiped; its tombstone goes on with it
//! ```
//!
//! An operator's pool of files has `volumes` and `snapshots` like these on a disk of its own, which may be absent: see
//! [`file_pool`]. The volumes of other pools are logical volumes, by the same rules: see [`lvm`].
//!
//! A file gets its final name only when it is complete and on disk, so a name says everything there is to know
//! after a crash. No image is opened by any tool before its header was inspected, and every tool is told its format.
//!
//! Nothing here decides what an instance should have, and nothing follows a symbolic link out of these trees.

pub mod atomic;
mod cache;
mod config_drive;
mod convert;
mod disk;
mod evict;
mod extents;
mod fault;
mod fetch;
mod file_pool;
mod instances;
mod lvm;
mod metadata;
mod options;
mod original;
mod partial;
mod pools;
mod predecessor;
mod reach;
mod reflink;
mod room;
mod share;
mod sight;
mod snapshot;
mod snapshot_pools;
mod source;
mod temporary;
mod threads;
mod volume;
mod wipe;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use berth_common::{
    document::ImageRef,
    ids::{InstanceId, SnapshotId, VolumeId},
    names::PoolName,
    telemetry::error_chain,
    units::ByteCount,
};
use tokio::sync::Semaphore;

pub use cache::CachedImage;
pub use file_pool::check as check_dir_pools;
pub use lvm::check as check_lvm_pool;
pub use options::{
    DirPoolOptions, LvmPoolOptions, PoolOptions, StorageOptions, UnknownWipe, VolumeWipe,
};
pub use room::KeepFree;
pub use sight::{check as check_qemu_img, seen_with_the_system};

use self::{
    evict::Uses, fault::StorageFault, file_pool::FilePool, lvm::LvmPool, room::Room,
    share::Downloads, temporary::Temporaries, threads::FileThreads,
};
use super::{ActError, PoolState, Progress, Storage};
use crate::decide::{
    image_cache::Reason,
    instance::{InstanceFiles, Paths, StorageStep},
    snapshot::SnapshotFiles,
    volume::VolumeFiles,
};

/// Volumes that are wiped at once: more would only share the same disk.
const WIPES: usize = 2;
/// How long a wipe, or the first zeros of a volume, may take, with its turn: a slow disk takes half a day for ten terabytes.
const WIPE_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Images, disks and volumes: files below the agent's directory, and storage pools elsewhere.
#[derive(Debug, Clone)]
pub struct DirStorage {
    inner: Arc<Inner>,
}

/// What all threads that work on files share.
#[derive(Debug)]
struct Inner {
    paths: Paths,
    options: StorageOptions,
    temporaries: Temporaries,
    files: FileThreads,
    /// For work that takes as long as a volume is large.
    slow_files: FileThreads,
    /// For work that takes as long as writing a volume over: it must not keep others from making theirs.
    wipes: FileThreads,
    /// For work that takes as long as filling a new volume: the same.
    zeros: FileThreads,
    copies: Semaphore,
    downloads: Downloads,
    room: Arc<Room>,
    live: snapshot::LiveShares,
    uses: Uses,
    /// Snapshots that this agent removed from where their marks said they were: to look for them in pools that cannot be looked at
    /// would say nothing.
    removed: Mutex<BTreeSet<SnapshotId>>,
    /// The pool that every host has.
    local: Arc<FilePool>,
    /// Other pools of files.
    dirs: BTreeMap<PoolName, Arc<FilePool>>,
    /// Pools of logical volumes.
    lvm: BTreeMap<PoolName, LvmPool>,
}

impl Inner {
    /// All pools of files, `local` first.
    fn file_pools(&self) -> impl Iterator<Item = &Arc<FilePool>> {
        std::iter::once(&self.local).chain(self.dirs.values())
    }

    fn removed(&self) -> MutexGuard<'_, BTreeSet<SnapshotId>> {
        // A set is whole after every operation, so a panic elsewhere cannot have broken it.
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirStorage {
    /// Storage below these paths. Nothing is touched yet.
    #[must_use]
    pub fn new(paths: Paths, options: StorageOptions) -> Self {
        let downloads = Downloads::new(options.parallel_downloads);
        let room = Arc::new(Room::new(options.keep_free));
        let files = FileThreads::new("berth-files", options.file_threads, options.file_deadline);
        let slow_files = FileThreads::new(
            "berth-volumes",
            options.parallel_copies,
            options.copy_deadline,
        );
        Self {
            inner: Arc::new(Inner {
                copies: Semaphore::new(options.parallel_copies.max(1)),
                slow_files,
                wipes: FileThreads::new("berth-wipes", WIPES, WIPE_DEADLINE),
                zeros: FileThreads::new("berth-zeros", options.parallel_copies, WIPE_DEADLINE),
                local: Arc::new(FilePool::local(&paths, files.clone())),
                dirs: FilePool::all(&paths, &options),
                lvm: LvmPool::all(&options),
                paths,
                options,
                temporaries: Temporaries::default(),
                files,
                downloads,
                room,
                live: snapshot::LiveShares::default(),
                uses: Uses::default(),
                removed: Mutex::default(),
            }),
        }
    }

    /// All whole images in the cache, by checksum.
    ///
    /// # Errors
    /// The cache's directory cannot be read.
    pub async fn cached_images(&self) -> Result<Vec<CachedImage>, ActError> {
        self.on_files(|inner| cache::list(&inner.paths)).await
    }

    /// Removes images that nothing uses and that were not used for long.
    ///
    /// # Errors
    /// Something cannot be read, and so nothing is removed; or a file cannot be removed.
    pub async fn evict_old_images(&self) -> Result<(), ActError> {
        self.on_files(|inner| evict::evict(inner, ByteCount::clamped(0)))
            .await
    }

    /// How many files of the cache were removed since this was asked last, by reason.
    #[must_use]
    pub fn take_evicted(&self) -> [(Reason, u64); 2] {
        self.inner.uses.take_removed()
    }

    /// Works on files on a bounded thread, with a deadline.
    async fn on_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StorageFault> + Send + 'static,
    ) -> Result<T, ActError> {
        let inner = Arc::clone(&self.inner);
        Ok(self.inner.files.run(move || work(&inner)).await?)
    }
}

#[async_trait]
impl Storage for DirStorage {
    async fn observe(&self, instance: InstanceId) -> Result<InstanceFiles, ActError> {
        self.on_files(move |inner| instances::observe(&inner.paths, instance))
            .await
    }

    async fn has_image(&self, image: &ImageRef) -> Result<bool, ActError> {
        let image = image.clone();
        self.on_files(move |inner| cache::has(&inner.paths, &image))
            .await
    }

    async fn apply(&self, step: &StorageStep, progress: &Progress) -> Result<(), ActError> {
        match step {
            StorageStep::FetchImage(image) => self.fetch_image(image, progress).await,
            StorageStep::CreateDirectory(id) => {
                let id = *id;
                self.on_files(move |inner| instances::make(&inner.paths, id))
                    .await
            }
            StorageStep::CreateDisk(plan) => Ok(disk::create(&self.inner, plan).await?),
            StorageStep::GrowDisk(plan) => Ok(disk::grow(&self.inner, plan).await?),
            StorageStep::CreateConfigDrive(plan) => {
                Ok(config_drive::create(&self.inner, plan).await?)
            }
            StorageStep::WriteMetadata(plan) => {
                let plan = plan.clone();
                self.on_files(move |inner| metadata::write(inner, &plan))
                    .await
            }
            StorageStep::RemoveOldFile(old) => {
                let old = old.clone();
                self.on_files(move |inner| instances::remove_old(&inner.paths, &old))
                    .await
            }
            StorageStep::RemoveInstance(id) => {
                let id = *id;
                self.on_files(move |inner| instances::remove(&inner.paths, id))
                    .await
            }
            StorageStep::CreateVolume(_)
            | StorageStep::MarkVolume(_)
            | StorageStep::GrowVolume(_)
            | StorageStep::SettleVolume(_)
            | StorageStep::ActivateVolume(_)
            | StorageStep::RemoveVolume(_) => {
                Ok(Box::pin(pools::apply(&self.inner, step, progress)).await?)
            }
            StorageStep::CreateSnapshot(_)
            | StorageStep::PrepareSnapshot(_)
            | StorageStep::NameSnapshot(_)
            | StorageStep::MarkSnapshot(_)
            | StorageStep::DiscardPartialSnapshot(_)
            | StorageStep::RemoveSnapshot(_) => {
                Ok(Box::pin(snapshot_pools::apply(&self.inner, step, progress)).await?)
            }
        }
    }

    async fn observe_volume(
        &self,
        volume: VolumeId,
        pool: Option<&PoolName>,
    ) -> Result<VolumeFiles, ActError> {
        Ok(pools::observe(&self.inner, volume, pool).await?)
    }

    async fn pools(&self) -> Vec<PoolState> {
        pools::report(&self.inner).await
    }

    async fn volumes_with_files(&self) -> Result<Vec<VolumeId>, ActError> {
        Ok(pools::list(&self.inner).await?)
    }

    async fn observe_snapshot(
        &self,
        snapshot: SnapshotId,
        pool: Option<&PoolName>,
    ) -> Result<SnapshotFiles, ActError> {
        Ok(snapshot_pools::observe(&self.inner, snapshot, pool).await?)
    }

    async fn snapshots_with_files(&self) -> Result<Vec<SnapshotId>, ActError> {
        Ok(snapshot_pools::list(&self.inner).await?)
    }

    async fn check_snapshot_room(&self, snapshot: SnapshotId) -> Result<(), ActError> {
        Ok(snapshot::check_room(&self.inner, snapshot).await?)
    }

    fn release_snapshot_room(&self, snapshot: SnapshotId) {
        self.inner.live.end(snapshot);
    }

    async fn space(&self) -> Result<(ByteCount, ByteCount), ActError> {
        self.on_files(|inner| instances::space(&inner.paths)).await
    }

    async fn instances_with_files(&self) -> Result<Vec<InstanceId>, ActError> {
        self.on_files(|inner| instances::list(&inner.paths)).await
    }

    async fn sweep(&self) -> Result<(), ActError> {
        // What still writes is ended first.
        let mut faults = Vec::from_iter(predecessor::end_tools(&self.inner).await.err());
        faults.extend(pools::sweep(&self.inner).await);
        let inner = Arc::clone(&self.inner);
        let sweep = move || {
            let keep_partial = inner.options.partial_max_age;
            let mut stay = instances::close_all(&inner.paths);
            stay.extend(temporary::sweep(
                &inner.paths,
                &inner.temporaries,
                keep_partial,
            ));
            Ok(stay)
        };
        match self.inner.files.run(sweep).await {
            Ok(stay) => faults.extend(stay),
            Err(fault) => faults.push(fault),
        }
        if faults.is_empty() {
            return Ok(());
        }
        for fault in &faults {
            tracing::warn!(
                error = error_chain(fault),
                "what an agent before this one left stays"
            );
        }
        Err(StorageFault::Leftovers { faults }.into())
    }

    async fn fetch_image(&self, image: &ImageRef, progress: &Progress) -> Result<(), ActError> {
        Ok(self
            .inner
            .downloads
            .fetch(&self.inner, image, progress)
            .await?)
    }
}
