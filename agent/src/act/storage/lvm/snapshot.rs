//! Snapshots that are logical volumes, in the pool of their volume.
//!
//! ```text
//!   thin:                          lvcreate --snapshot ─▶ berth-snap-tmp-<id> ─┐
//!   thick, no guest has it:        lvcreate, qemu-img  ─▶ berth-snap-tmp-<id> ─┼─▶ rename ─▶ berth-snap-<id>
//!   thick, a guest has it:         lvcreate, QEMU      ─▶ berth-snap-tmp-<id> ─┘
//! ```
//!
//! A thin one shares all extents with its volume, and leans on it for nothing: LVM lets what is being written to the volume
//! wait for an instant, and from then on writes elsewhere. A thick one is a full copy. What is whole is read-only, and has
//! no device unless a volume is copied from it ([`Reading`]): whatever a guest wrote there, nothing on the host looks at it.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc, time::Duration};

use berth_common::{ids::SnapshotId, telemetry::error_chain, units::ByteCount};
use tokio::sync::Mutex;

use super::{
    super::{Inner, fault::StorageFault, original},
    LvmPool, copy,
};
use crate::{
    act::Progress,
    decide::{
        lvm::{LogicalVolume, Owner, PoolContent, Role},
        snapshot::{NewSnapshot, SnapshotFiles},
        volume::{NewVolume, VolumeContent},
    },
};

/// How often it is tried to take a device away that a hypervisor has just written, and how many times.
const CLOSED_EVERY: Duration = Duration::from_secs(1);
const CLOSED_LOOKS: u32 = 20;

/// The snapshots that are copied from just now, with how many copy.
pub(super) type Readers = Arc<Mutex<BTreeMap<SnapshotId, usize>>>;

/// A snapshot whose device is there to be copied from, until this is dropped.
pub(in crate::act::storage) struct Reading {
    pool: LvmPool,
    id: SnapshotId,
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Without a runtime the agent ends, and the next one finds the device.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (pool, id) = (self.pool.clone(), self.id);
            runtime.spawn(async move { pool.end_reading(id).await });
        }
    }
}

impl LvmPool {
    /// Adds what is there of a snapshot.
    pub(in crate::act::storage) async fn observe_snapshot(
        &self,
        id: SnapshotId,
        found: &mut SnapshotFiles,
    ) -> Result<(), StorageFault> {
        let content = self.look().await?;
        if let Some(volume) = content.find(id, Role::Whole) {
            found.file = Some(VolumeContent::Size(volume.size));
        }
        found.leaving |= content.find(id, Role::Leaving).is_some();
        found.partial |= content.find(id, Role::Partial).is_some();
        Ok(())
    }

    /// Makes a snapshot, unless it is there: of a thin volume whoever has it, of a thick one that no guest has.
    pub(in crate::act::storage) async fn create_snapshot(
        &self,
        inner: &Arc<Inner>,
        plan: &NewSnapshot,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        let Some((content, source)) = self.begin(plan).await? else {
            return Ok(());
        };
        self.check_thin_room(&content, None)?;
        let made = if self.options.thin_pool.is_some() {
            self.share(plan.id, &source).await
        } else {
            self.copy_whole(inner, plan, &source, progress).await
        };
        self.clean_up(plan.id.into(), made).await
    }

    /// Makes the device that a hypervisor will write a snapshot into.
    pub(in crate::act::storage) async fn prepare_snapshot(
        &self,
        plan: &NewSnapshot,
    ) -> Result<(), StorageFault> {
        match self.begin(plan).await? {
            Some((_, source)) => self.allocate_for(plan.id, source.size).await,
            None => Ok(()),
        }
    }

    /// Lets what a hypervisor has written, whole, be the snapshot.
    ///
    /// libvirt tells the end of a job a moment before QEMU closes the device, and only who takes it away knows that it is
    /// closed.
    pub(in crate::act::storage) async fn name_snapshot(
        &self,
        inner: &Arc<Inner>,
        id: SnapshotId,
    ) -> Result<(), StorageFault> {
        let content = self.look().await?;
        if content.find(id, Role::Whole).is_some() {
            return Ok(());
        }
        let partial = Role::Partial.name(id);
        let mut looks = 0;
        while let Err(fault) = self.deactivate(&partial).await {
            looks += 1;
            if looks == CLOSED_LOOKS {
                return Err(fault);
            }
            tokio::time::sleep(CLOSED_EVERY).await;
        }
        self.activate_named(&partial).await?;
        self.finish(inner, id).await
    }

    /// Removes what was to become a snapshot.
    pub(in crate::act::storage) async fn discard_snapshot(
        &self,
        id: SnapshotId,
    ) -> Result<(), StorageFault> {
        match self.look().await?.find(id, Role::Partial) {
            Some(volume) => self.remove(id.into(), &volume.name).await,
            None => Ok(()),
        }
    }

    /// A snapshot to copy from: its size, and its device for as long as that is kept.
    pub(in crate::act::storage) async fn read_snapshot(
        &self,
        id: SnapshotId,
    ) -> Result<(ByteCount, Reading), StorageFault> {
        let content = self.look().await?;
        let found = content.find(id, Role::Whole);
        let volume = found.ok_or_else(|| self.no_snapshot(id))?;
        let mut readers = self.readers.lock().await;
        *readers.entry(id).or_default() += 1;
        let reading = Reading {
            pool: self.clone(),
            id,
        };
        if !self.device(&volume.name).exists() {
            self.activate_named(&volume.name).await?;
        }
        Ok((volume.size, reading))
    }

    /// Takes the device away, unless somebody else copies from it.
    async fn end_reading(&self, id: SnapshotId) {
        let mut readers = self.readers.lock().await;
        if let Some(count) = readers.get_mut(&id) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        readers.remove(&id);
        self.rest(id).await;
    }

    /// Takes the device of a snapshot away that nobody reads.
    pub(super) async fn rest(&self, id: SnapshotId) {
        if let Err(fault) = self.deactivate(&Role::Whole.name(id)).await {
            // The next start of the agent ends it, or the snapshot's end.
            tracing::warn!(snapshot = %id, error = %error_chain(&fault), "the device of a snapshot stays");
        }
    }

    /// Refuses to make a volume of a snapshot in the same thin pool that is not there, or larger than it.
    pub(super) fn check_source(
        &self,
        content: &PoolContent,
        plan: &NewVolume,
        source: SnapshotId,
    ) -> Result<(), StorageFault> {
        let found = content.find(source, Role::Whole);
        let volume = found.ok_or_else(|| self.no_snapshot(source))?;
        if volume.size > plan.size {
            return Err(StorageFault::VolumeTooSmall {
                id: plan.id,
                size: plan.size.get(),
                needed: volume.size.get(),
            });
        }
        Ok(())
    }

    fn no_snapshot(&self, id: SnapshotId) -> StorageFault {
        StorageFault::SnapshotNotThere {
            id,
            path: self.device(&Role::Whole.name(id)),
        }
    }

    /// What is in the pool and the volume to keep, if the snapshot is not there yet and can be made.
    async fn begin(
        &self,
        plan: &NewSnapshot,
    ) -> Result<Option<(PoolContent, LogicalVolume)>, StorageFault> {
        let expected = self.device(&Role::Whole.name(plan.id));
        if plan.path != expected {
            return Err(StorageFault::SnapshotPlace {
                id: plan.id,
                expected,
                path: plan.path.clone(),
            });
        }
        let content = self.look().await?;
        if content.find(plan.id, Role::Whole).is_some() {
            return Ok(None);
        }
        self.clear_way(&content, plan.id.into()).await?;
        let source = self.whole(&content, plan.volume.id)?.clone();
        Ok(Some((content, source)))
    }

    /// Makes one that shares its extents with its volume.
    async fn share(&self, id: SnapshotId, source: &LogicalVolume) -> Result<(), StorageFault> {
        let (name, tag) = (Role::Partial.name(id), Owner::Snapshot(id).tag());
        let what = format!("make logical volume {name} of {}", source.name);
        let args = [
            "--yes",
            "--snapshot",
            "--permission",
            "r",
            "--setactivationskip",
            "y",
            "--activate",
            "n",
            "--addtag",
            &tag,
            "--name",
            &name,
            "--",
            &self.full(&source.name),
        ];
        self.change(&what, "lvcreate", &args).await?;
        self.rename(&name, &Role::Whole.name(id)).await
    }

    async fn allocate_for(&self, id: SnapshotId, size: ByteCount) -> Result<(), StorageFault> {
        let (name, tag) = (Role::Partial.name(id), Owner::Snapshot(id).tag());
        self.allocate(size, (&name, &tag)).await
    }

    /// Makes one that is a copy of its volume.
    async fn copy_whole(
        &self,
        inner: &Arc<Inner>,
        plan: &NewSnapshot,
        source: &LogicalVolume,
        progress: &Progress,
    ) -> Result<(), StorageFault> {
        let original = original::volume(inner, &plan.volume).await?;
        self.allocate_for(plan.id, source.size).await?;
        let job = copy::Job {
            owner: plan.id.into(),
            device: &self.device(&Role::Partial.name(plan.id)),
            size: source.size,
            is_thin: false,
        };
        copy::copy(inner, self, &job, original, progress).await?;
        self.finish(inner, plan.id).await
    }

    /// Writes what was copied to the disk, and lets it be the snapshot.
    async fn finish(&self, inner: &Arc<Inner>, id: SnapshotId) -> Result<(), StorageFault> {
        let partial = Role::Partial.name(id);
        let device = self.device(&partial);
        inner.slow_files.run(move || sync(&device)).await?;
        self.deactivate(&partial).await?;
        let what = format!("let logical volume {partial} be as it is");
        let args = [
            "--permission",
            "r",
            "--setactivationskip",
            "y",
            "--",
            &self.full(&partial),
        ];
        self.change(&what, "lvchange", &args).await?;
        self.rename(&partial, &Role::Whole.name(id)).await
    }

    /// Lets what was a snapshot be written to: there is no other way to wipe it.
    pub(super) async fn let_write(&self, name: &str) -> Result<(), StorageFault> {
        let what = format!("let logical volume {name} be wiped");
        let args = ["--permission", "rw", "--", &self.full(name)];
        self.change(&what, "lvchange", &args).await
    }
}

fn sync(device: &Path) -> Result<(), StorageFault> {
    File::open(device)
        .and_then(|file| file.sync_all())
        .map_err(|source| StorageFault::io("write to disk", device, source))
}
