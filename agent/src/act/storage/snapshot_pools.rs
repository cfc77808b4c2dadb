//! Which driver a snapshot is the business of: it lies in the pool of its volume, as a file in `local` and as a logical volume
//! in every other one. What [`super::pools`] says of volumes, of tombstones and of pools that cannot be looked at, holds here
//! too, with one exception: the tombstone of a snapshot without a mark waits for all pools.

use std::sync::Arc;

use berth_common::{ids::SnapshotId, names::PoolName};

use super::{
    Inner, VolumeWipe,
    atomic::remove_durably,
    fault::StorageFault,
    instances::is_file,
    lvm::LvmPool,
    pools::{check_configured, driver, with_those_in_pools},
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
                found = snapshot::observe(&shared.paths, id)?;
            }
            found.made = marked.is_some();
            Ok((found, marked))
        })
        .await?;
    if pool.is_none() {
        check_configured(inner, marked.as_ref())?;
    }
    for (name, lvm) in &inner.pools {
        if pool.is_some_and(|pool| pool != name) {
            continue;
        }
        match lvm.observe_snapshot(id, &mut found).await {
            Err(fault) if pool.is_some() || may_lie_in(marked.as_ref(), name) => {
                return Err(fault);
            }
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
    let ids = inner
        .files
        .run(move || snapshot::list(&shared.paths))
        .await?;
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
        StorageStep::CreateSnapshot(plan) if plan.volume.pool.is_local() => {
            snapshot::create(inner, plan, progress).await
        }
        StorageStep::CreateSnapshot(plan) => {
            let lvm = driver(inner, &plan.volume.pool)?;
            lvm.create_snapshot(inner, plan, progress).await
        }
        StorageStep::PrepareSnapshot(plan) if plan.volume.pool.is_local() => {
            snapshot::prepare(inner, plan).await
        }
        StorageStep::PrepareSnapshot(plan) => {
            driver(inner, &plan.volume.pool)?
                .prepare_snapshot(plan)
                .await
        }
        StorageStep::NameSnapshot(of) if of.pool.is_local() => snapshot::name(inner, of.id).await,
        StorageStep::NameSnapshot(of) => driver(inner, &of.pool)?.name_snapshot(inner, of.id).await,
        StorageStep::MarkSnapshot(of) => {
            let (shared, of) = (Arc::clone(inner), of.clone());
            let mark = move || snapshot::mark(&shared.paths, &of);
            inner.files.run(mark).await
        }
        StorageStep::DiscardPartialSnapshot(of) if of.pool.is_local() => {
            let (shared, id) = (Arc::clone(inner), of.id);
            let discard = move || snapshot::discard(&shared.paths, id);
            inner.files.run(discard).await
        }
        StorageStep::DiscardPartialSnapshot(of) => {
            driver(inner, &of.pool)?.discard_snapshot(of.id).await
        }
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

/// Removes a snapshot: its name wherever it has one, its mark, and last its bytes as the host's rule says, those of what was to
/// become it too.
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
        let shared = Arc::clone(inner);
        let is_in_a_pool = !devices.is_empty();
        let file = inner
            .files
            .run(move || take_name(&shared, id, is_in_a_pool))
            .await?;
        let left: Vec<(&LvmPool, String)> = devices
            .into_iter()
            .flat_map(|(lvm, names)| names.into_iter().map(move |name| (lvm, name)))
            .collect();
        if file.is_none() && left.is_empty() {
            return Ok(());
        }
        if let Some(path) = file {
            let failed = move |path, source| StorageFault::SnapshotWipe { id, path, source };
            volume::wipe(inner, path, progress, failed).await?;
        }
        for (lvm, name) in left {
            lvm.wipe(inner, id.into(), &name, progress).await?;
        }
    }
}

/// Takes its names from a snapshot in pools of logical volumes; answers where something of it was, each with what is to be wiped
/// there.
async fn take_names<'a>(
    inner: &'a Inner,
    id: SnapshotId,
    marked: Option<&PoolName>,
) -> Result<Vec<(&'a LvmPool, Vec<String>)>, StorageFault> {
    let mut devices = Vec::new();
    for (name, lvm) in &inner.pools {
        match lvm.take_name(id.into(), inner.options.volume_wipe).await {
            Ok(Some(left)) => devices.push((lvm, left)),
            Err(fault) if may_lie_in(marked, name) => return Err(fault),
            Ok(None) | Err(_) => {}
        }
    }
    Ok(devices)
}

/// The same in the pool `local`, and its mark. What is being wiped needs none: it is found by the name it has then.
fn take_name(
    inner: &Inner,
    id: SnapshotId,
    is_in_a_pool: bool,
) -> Result<Option<std::path::PathBuf>, StorageFault> {
    let left = snapshot::take_name(inner, id)?;
    let mark = inner.paths.snapshot_mark(id);
    let wipes = inner.options.volume_wipe != VolumeWipe::None;
    if wipes && left.is_none() && !is_in_a_pool && is_file(&mark)? {
        return Err(StorageFault::SnapshotNothingToWipe { id, mark });
    }
    remove_durably(&mark).map_err(|source| StorageFault::io("remove", &mark, source))?;
    Ok(left)
}
