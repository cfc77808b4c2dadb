//! Which driver a snapshot is the business of: it lies in the pool of its volume, as a file or as a logical volume. What [`super::pools`] says of volumes, of tombstones and of pools that cannot be looked at, holds here
//! too, with one exception: the tombstone of a snapshot without a mark waits for all pools.

use std::{path::PathBuf, sync::Arc};

use berth_common::{ids::SnapshotId, names::PoolName};

use super::{
    Inner, VolumeWipe,
    atomic::remove_durably,
    fault::StorageFault,
    file_pool::FilePool,
    instances::is_file,
    lvm::LvmPool,
    pools::{Store, check_configured, listed, store, with_those_in_pools},
    snapshot, volume,
};
use crate::{
    act::Progress,
    decide::{instance::StorageStep, lvm::Owner, snapshot::SnapshotFiles},
};

/// What is there of a snapshot.
pub(super) async fn observe(
    inner: &Arc<Inner>,
    id: SnapshotId,
    pool: Option<&PoolName>,
) -> Result<SnapshotFiles, StorageFault> {
    let shared = Arc::clone(inner);
    let is_local = pool.is_none_or(PoolName::is_local);
    let (mut found, marked) = inner
        .files
        .run(move || {
            let marked = volume::read_mark(&shared.paths.snapshot_mark(id))?;
            let mut found = SnapshotFiles::default();
            if is_local {
                found = snapshot::observe(&shared.local, id)?;
            }
            found.made = marked.is_some();
            Ok((found, marked))
        })
        .await?;
    if pool.is_none() {
        check_configured(inner, marked.as_ref())?;
    }
    let was_removed = inner.removed().contains(&id);
    let must_be_seen =
        |name: &PoolName| pool.is_some() || (!was_removed && may_lie_in(marked.as_ref(), name));
    for (name, dir) in &inner.dirs {
        if pool.is_some_and(|pool| pool != name) {
            continue;
        }
        let its = Arc::clone(dir);
        let look = move || its.on_disk(|| snapshot::observe(&its, id));
        match dir.threads.run(look).await {
            Ok(there) => {
                found.file = found.file.or(there.file);
                found.leaving |= there.leaving;
                found.partial |= there.partial;
            }
            Err(fault) if must_be_seen(name) => return Err(fault),
            Err(_) => {}
        }
    }
    for (name, lvm) in &inner.lvm {
        if pool.is_some_and(|pool| pool != name) {
            continue;
        }
        match lvm.observe_snapshot(id, &mut found).await {
            Err(fault) if must_be_seen(name) => return Err(fault),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(found)
}

/// Whether a snapshot may lie in a pool that cannot be looked at. Without a mark it may be whole in any: the agent may have
/// ended before it marked it, and to say that it is gone would give up its claim while it takes room, and its bytes unwiped.
fn may_lie_in(marked: Option<&PoolName>, pool: &PoolName) -> bool {
    marked.is_none_or(|marked| marked == pool)
}

/// Ids of all snapshots of which anything is there.
pub(super) async fn list(inner: &Arc<Inner>) -> Result<Vec<SnapshotId>, StorageFault> {
    let shared = Arc::clone(inner);
    let made = inner.files.run(move || snapshot::marked(&shared.paths));
    let mut ids = made.await?;
    ids.extend(listed(inner, snapshot::list).await?);
    let snapshot = |owner| match owner {
        Owner::Snapshot(id) => Some(id),
        Owner::Volume(_) => None,
    };
    Ok(with_those_in_pools(inner, ids, snapshot).await)
}

/// Carries out a step on a snapshot.
pub(super) async fn apply(
    inner: &Arc<Inner>,
    step: &StorageStep,
    progress: &Progress,
) -> Result<(), StorageFault> {
    match step {
        StorageStep::CreateSnapshot(plan) => match store(inner, &plan.volume.pool)? {
            Store::Files(pool) => snapshot::create(inner, pool, plan, progress).await,
            Store::Lvm(lvm) => lvm.create_snapshot(inner, plan, progress).await,
        },
        StorageStep::PrepareSnapshot(plan) => match store(inner, &plan.volume.pool)? {
            Store::Files(pool) => snapshot::prepare(inner, pool, plan).await,
            Store::Lvm(lvm) => lvm.prepare_snapshot(plan).await,
        },
        StorageStep::NameSnapshot(of) => match store(inner, &of.pool)? {
            Store::Files(pool) => snapshot::name(inner, pool, of.id).await,
            Store::Lvm(lvm) => lvm.name_snapshot(inner, of.id).await,
        },
        StorageStep::MarkSnapshot(of) => {
            let (shared, of) = (Arc::clone(inner), of.clone());
            let mark = move || snapshot::mark(&shared.paths, &of);
            inner.files.run(mark).await
        }
        StorageStep::DiscardPartialSnapshot(of) => match store(inner, &of.pool)? {
            Store::Files(pool) => {
                let (its, id) = (Arc::clone(pool), of.id);
                let discard = move || snapshot::discard(&its, id);
                pool.threads.run(discard).await
            }
            Store::Lvm(lvm) => lvm.discard_snapshot(of.id).await,
        },
        StorageStep::RemoveSnapshot(id) => remove(inner, *id, progress).await,
        StorageStep::FetchImage(_)
        | StorageStep::CreateDirectory(_)
        | StorageStep::CreateDisk(_)
        | StorageStep::CreateConfigDrive(_)
        | StorageStep::WriteMetadata(_)
        | StorageStep::GrowDisk(_)
        | StorageStep::RemoveOldFile(_)
        | StorageStep::RemoveInstance(_)
        | StorageStep::CreateVolume(_)
        | StorageStep::MarkVolume(_)
        | StorageStep::GrowVolume(_)
        | StorageStep::SettleVolume(_)
        | StorageStep::ActivateVolume(_)
        | StorageStep::RemoveVolume(_) => Ok(()),
    }
}

/// Removes a snapshot: its name wherever it has one, its bytes as the host's rule says, those of what was to become it too, and last its
/// mark, as [`super::pools`] does for volumes.
async fn remove(
    inner: &Arc<Inner>,
    id: SnapshotId,
    progress: &Progress,
) -> Result<(), StorageFault> {
    let shared = Arc::clone(inner);
    let marked = inner
        .files
        .run(move || volume::read_mark(&shared.paths.snapshot_mark(id)))
        .await?;
    check_configured(inner, marked.as_ref())?;
    // A whole one and a partial one, one after the other: each has the same place while it is wiped.
    loop {
        let devices = take_names(inner, id, marked.as_ref()).await?;
        let files = take_files(inner, id, marked.as_ref()).await?;
        let shared = Arc::clone(inner);
        let found = !devices.is_empty() || !files.is_empty();
        let note = move || note_removal(&shared, id, found);
        inner.files.run(note).await?;
        let left: Vec<(&LvmPool, String)> = devices
            .into_iter()
            .flat_map(|(lvm, names)| names.into_iter().map(move |name| (lvm, name)))
            .collect();
        if files.is_empty() && left.is_empty() {
            break;
        }
        for (pool, path) in files {
            let failed = move |path, source| StorageFault::SnapshotWipe { id, path, source };
            volume::wipe(inner, pool, path, progress, failed).await?;
        }
        for (lvm, name) in left {
            lvm.wipe(inner, id.into(), &name, progress).await?;
        }
    }
    // Last: while it is there, only its own pool is waited for, and afterwards that is remembered.
    if marked.is_some() {
        inner.removed().insert(id);
    }
    let mark = inner.paths.snapshot_mark(id);
    inner
        .files
        .run(move || {
            remove_durably(&mark).map_err(|source| StorageFault::io("remove", &mark, source))
        })
        .await
}

/// Takes its name from a snapshot in pools of files; answers what is to be wiped there.
async fn take_files<'a>(
    inner: &'a Inner,
    id: SnapshotId,
    marked: Option<&PoolName>,
) -> Result<Vec<(&'a Arc<FilePool>, PathBuf)>, StorageFault> {
    let how = inner.options.volume_wipe;
    let mut left = Vec::new();
    for pool in inner.file_pools() {
        let its = Arc::clone(pool);
        let take = move || its.on_disk(|| snapshot::take_name(&its, how, id));
        match pool.threads.run(take).await {
            Ok(taken) => left.extend(taken.map(|path| (pool, path))),
            Err(fault) if pool.name.is_local() || may_lie_in(marked, &pool.name) => {
                return Err(fault);
            }
            Err(_) => {}
        }
    }
    Ok(left)
}

/// Takes its names from a snapshot in pools of logical volumes; answers where something of it was, each with what is to be wiped
/// there.
async fn take_names<'a>(
    inner: &'a Inner,
    id: SnapshotId,
    marked: Option<&PoolName>,
) -> Result<Vec<(&'a LvmPool, Vec<String>)>, StorageFault> {
    let mut devices = Vec::new();
    for (name, lvm) in &inner.lvm {
        match lvm.take_name(id.into(), inner.options.volume_wipe).await {
            Ok(Some(left)) => devices.push((lvm, left)),
            Err(fault) if may_lie_in(marked, name) => return Err(fault),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(devices)
}

/// Has its mark say that it is being removed, or sees that there is nothing left of it that was not.
fn note_removal(inner: &Inner, id: SnapshotId, found: bool) -> Result<(), StorageFault> {
    let mark = inner.paths.snapshot_mark(id);
    if found {
        return volume::note_removal(&mark);
    }
    let is_lost = inner.options.volume_wipe != VolumeWipe::None && is_file(&mark)?;
    if is_lost && !volume::is_being_removed(&mark)? {
        return Err(StorageFault::SnapshotNothingToWipe { id, mark });
    }
    Ok(())
}
