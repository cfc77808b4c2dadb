//! Which driver a volume is the business of: that of files, in `local` and in an operator's directory, or that of logical
//! volumes.
//!
//! A document says in which pool a volume is; a tombstone does not, and then all are looked at, and the mark says where it
//! was made. A pool that cannot be looked at keeps nobody from what lies in another one, but what was made in it is not gone
//! because it is not found.

use std::sync::Arc;

use berth_common::{
    ids::VolumeId,
    message::heartbeat::{PoolKind, PoolReport},
    names::PoolName,
    telemetry::error_chain,
    units::ByteCount,
};

use super::{
    Inner, VolumeWipe, atomic::remove_durably, fault::StorageFault, file_pool::FilePool, instances,
    lvm::LvmPool, snapshot, temporary, volume,
};
use crate::{
    act::{PoolState, Progress},
    decide::{
        instance::{Paths, StorageStep},
        lvm::Owner,
        volume::{VolumeContent, VolumeFiles},
    },
};

/// Which driver a storage pool is the business of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Store<'a> {
    Files(&'a Arc<FilePool>),
    Lvm(&'a LvmPool),
}

/// The driver of a pool.
pub(super) fn store<'a>(inner: &'a Inner, pool: &PoolName) -> Result<Store<'a>, StorageFault> {
    if pool.is_local() {
        return Ok(Store::Files(&inner.local));
    }
    let lvm = || inner.lvm.get(pool).map(Store::Lvm);
    let found = inner.dirs.get(pool).map(Store::Files).or_else(lvm);
    found.ok_or_else(|| StorageFault::UnknownPool { pool: pool.clone() })
}

/// What is there of a volume.
pub(super) async fn observe(
    inner: &Arc<Inner>,
    id: VolumeId,
    pool: Option<&PoolName>,
) -> Result<VolumeFiles, StorageFault> {
    let shared = Arc::clone(inner);
    let is_local = pool.is_none_or(PoolName::is_local);
    let (mut found, marked) = inner
        .files
        .run(move || {
            let marked = volume::marked_pool(&shared.paths, id)?;
            let mut found = VolumeFiles::default();
            if is_local {
                found = volume::observe(&shared.local, id)?;
            }
            found.made = marked.is_some();
            Ok((found, marked))
        })
        .await?;
    if pool.is_none() {
        check_configured(inner, marked.as_ref())?;
    }
    let must_be_seen = |name: &PoolName| pool.is_some() || marked.as_ref() == Some(name);
    for (name, dir) in &inner.dirs {
        if pool.is_some_and(|pool| pool != name) {
            continue;
        }
        let its = Arc::clone(dir);
        let look = move || its.on_disk(|| volume::observe(&its, id));
        match dir.threads.run(look).await {
            Ok(there) => {
                found.files.extend(there.files);
                found.leaving |= there.leaving;
            }
            Err(fault) if must_be_seen(name) => return Err(fault),
            Err(_) => {}
        }
    }
    for (name, lvm) in &inner.lvm {
        if pool.is_some_and(|pool| pool != name) {
            continue;
        }
        match lvm.observe(id, &mut found).await {
            Err(fault) if must_be_seen(name) => return Err(fault),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(found)
}

/// Refuses to look for what was made in a pool that is not configured any more.
pub(super) fn check_configured(
    inner: &Inner,
    marked: Option<&PoolName>,
) -> Result<(), StorageFault> {
    match marked {
        Some(pool) => store(inner, pool).map(drop),
        None => Ok(()),
    }
}

/// Ids of all volumes of which anything is there.
pub(super) async fn list(inner: &Arc<Inner>) -> Result<Vec<VolumeId>, StorageFault> {
    let shared = Arc::clone(inner);
    let made = inner.files.run(move || volume::marked(&shared.paths));
    let mut ids = made.await?;
    ids.extend(listed(inner, volume::list).await?);
    let volume = |owner| match owner {
        Owner::Volume(id) => Some(id),
        Owner::Snapshot(_) => None,
    };
    Ok(with_those_in_pools(inner, ids, volume).await)
}

/// What is in pools of files.
pub(super) async fn listed<T: Send + 'static>(
    inner: &Inner,
    list: fn(&FilePool) -> Result<Vec<T>, StorageFault>,
) -> Result<Vec<T>, StorageFault> {
    let mut ids = Vec::new();
    for pool in inner.file_pools() {
        let its = Arc::clone(pool);
        match pool.threads.run(move || its.on_disk(|| list(&its))).await {
            Ok(more) => ids.extend(more),
            Err(fault) if pool.name.is_local() => return Err(fault),
            // That it is ill is said elsewhere.
            Err(_) => {}
        }
    }
    Ok(ids)
}

/// These, and those of their kind that pools of logical volumes have anything of; each once.
pub(super) async fn with_those_in_pools<T: Ord + Send>(
    inner: &Inner,
    mut ids: Vec<T>,
    of_kind: impl Fn(Owner) -> Option<T> + Send,
) -> Vec<T> {
    for lvm in inner.lvm.values() {
        // That it is ill is said elsewhere.
        if let Ok(content) = lvm.look().await {
            ids.extend(content.own().filter_map(|(owner, ..)| of_kind(owner)));
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Removes leftovers of interrupted work in the pools besides `local`; answers why some stay.
pub(super) async fn sweep(inner: &Arc<Inner>) -> Vec<StorageFault> {
    let mut stay = Vec::new();
    // That it is ill is said elsewhere.
    let ill = |name: &PoolName, fault: &StorageFault| {
        let error = error_chain(fault);
        tracing::warn!(pool = %name, error, "leftovers in a storage pool stay");
    };
    for (name, dir) in &inner.dirs {
        let (shared, its) = (Arc::clone(inner), Arc::clone(dir));
        let sweep = move || {
            let directories = [its.place.volumes.clone(), its.place.snapshots.clone()];
            let keep = shared.options.partial_max_age;
            its.on_disk(|| {
                let mut stay = temporary::sweep_in(&directories, &shared.temporaries, keep);
                stay.extend(its.sweep_marks());
                Ok(stay)
            })
        };
        match dir.threads.run(sweep).await {
            Ok(faults) => stay.extend(faults),
            Err(fault) => ill(name, &fault),
        }
    }
    for (name, lvm) in &inner.lvm {
        match lvm.sweep().await {
            Ok(faults) => stay.extend(faults),
            Err(fault) => ill(name, &fault),
        }
    }
    stay
}

/// How full every pool is.
pub(super) async fn report(inner: &Arc<Inner>) -> Vec<PoolState> {
    let mut states = Vec::new();
    for pool in inner.file_pools() {
        let (shared, its) = (Arc::clone(inner), Arc::clone(pool));
        let look = move || its.on_disk(|| report_of(&shared.paths, &its));
        let report = pool.threads.run(look).await;
        states.push(PoolState {
            name: pool.name.clone(),
            report: report.map_err(|fault| error_chain(&fault)),
        });
    }
    for (name, lvm) in &inner.lvm {
        let content = lvm.look().await;
        let report = content.map(|content| content.report(name));
        states.push(PoolState {
            name: name.clone(),
            report: report.map_err(|fault| error_chain(&fault)),
        });
    }
    states
}

fn report_of(paths: &Paths, pool: &FilePool) -> Result<PoolReport, StorageFault> {
    let (total_bytes, used_bytes) = pool.space(paths)?;
    let mut provisioned = ByteCount::ZERO;
    for id in volume::list(pool)? {
        for file in volume::observe(pool, id)?.files {
            if let VolumeContent::Size(size) = file.content {
                provisioned = provisioned.saturating_add(size);
            }
        }
    }
    for id in snapshot::list(pool)? {
        if let Some(VolumeContent::Size(size)) = snapshot::observe(pool, id)?.file {
            provisioned = provisioned.saturating_add(size);
        }
    }
    Ok(PoolReport {
        name: pool.name.clone(),
        kind: PoolKind::Dir,
        total_bytes,
        used_bytes,
        provisioned_bytes: provisioned,
        metadata_percent: None,
    })
}

/// Carries out a step on a volume.
pub(super) async fn apply(
    inner: &Arc<Inner>,
    step: &StorageStep,
    progress: &Progress,
) -> Result<(), StorageFault> {
    match step {
        StorageStep::CreateVolume(plan) => match store(inner, &plan.pool)? {
            Store::Files(pool) => volume::create(inner, pool, plan, progress).await,
            Store::Lvm(lvm) => lvm.create(inner, plan, progress).await,
        },
        StorageStep::GrowVolume(plan) => match store(inner, &plan.pool)? {
            Store::Files(pool) => volume::grow(inner, pool, plan).await,
            Store::Lvm(lvm) => lvm.grow(inner, plan, progress).await,
        },
        // Of a file there is nothing to note, and nothing to wake.
        StorageStep::SettleVolume(of) => match store(inner, &of.pool)? {
            Store::Files(_) => Ok(()),
            Store::Lvm(lvm) => lvm.settle(of.id).await,
        },
        StorageStep::ActivateVolume(of) => match store(inner, &of.pool)? {
            Store::Files(_) => Ok(()),
            Store::Lvm(lvm) => lvm.activate(of.id).await,
        },
        StorageStep::RemoveVolume(id) => remove(inner, *id, progress).await,
        StorageStep::MarkVolume(id) => {
            let found = observe(inner, *id, None).await?;
            let file = found.files.first();
            let file = file.ok_or_else(|| StorageFault::VolumeNotThere {
                id: *id,
                path: inner.paths.volumes.clone(),
            })?;
            let pool = file.pool.clone();
            let (shared, id) = (Arc::clone(inner), *id);
            inner
                .files
                .run(move || volume::mark(&shared.paths, id, &pool))
                .await
        }
        StorageStep::FetchImage(_)
        | StorageStep::CreateDirectory(_)
        | StorageStep::CreateDisk(_)
        | StorageStep::CreateConfigDrive(_)
        | StorageStep::WriteMetadata(_)
        | StorageStep::GrowDisk(_)
        | StorageStep::RemoveOldFile(_)
        | StorageStep::RemoveInstance(_)
        | StorageStep::CreateSnapshot(_)
        | StorageStep::PrepareSnapshot(_)
        | StorageStep::NameSnapshot(_)
        | StorageStep::MarkSnapshot(_)
        | StorageStep::DiscardPartialSnapshot(_)
        | StorageStep::RemoveSnapshot(_) => Ok(()),
    }
}

/// Removes a volume: its name wherever it has one, its bytes as the host's rule says, and last its mark, which says meanwhile that it is
/// being removed: that nothing is found of it is right then, and its pool is waited for until that is seen.
async fn remove(inner: &Arc<Inner>, id: VolumeId, progress: &Progress) -> Result<(), StorageFault> {
    let shared = Arc::clone(inner);
    let marked = inner
        .files
        .run(move || volume::marked_pool(&shared.paths, id))
        .await?;
    check_configured(inner, marked.as_ref())?;
    let how = inner.options.volume_wipe;
    let mut devices = Vec::new();
    for (name, lvm) in &inner.lvm {
        match lvm.take_name(id.into(), how).await {
            Ok(Some(left)) => devices.push((lvm, left)),
            Err(fault) if marked.as_ref() == Some(name) => return Err(fault),
            Ok(None) | Err(_) => {}
        }
    }
    let mut found = !devices.is_empty();
    let mut files = Vec::new();
    for pool in inner.file_pools() {
        let its = Arc::clone(pool);
        let take = move || its.on_disk(|| volume::take_name(&its, how, id));
        match pool.threads.run(take).await {
            Ok(taken) => {
                found |= taken.is_some();
                files.extend(taken.into_iter().flatten().map(|path| (pool, path)));
            }
            Err(fault) if pool.name.is_local() || marked.as_ref() == Some(&pool.name) => {
                return Err(fault);
            }
            Err(_) => {}
        }
    }
    let mark = inner.paths.volume_mark(id);
    let its = mark.clone();
    inner
        .files
        .run(move || {
            if found {
                return volume::note_removal(&its);
            }
            let is_lost = how != VolumeWipe::None && instances::is_file(&its)?;
            if is_lost && !volume::is_being_removed(&its)? {
                return Err(StorageFault::NothingToWipe { id, mark: its });
            }
            Ok(())
        })
        .await?;
    for (pool, path) in files {
        let failed = move |path, source| StorageFault::Wipe { id, path, source };
        volume::wipe(inner, pool, path, progress, failed).await?;
    }
    for (lvm, left) in devices {
        for name in left {
            lvm.wipe(inner, id.into(), &name, progress).await?;
        }
    }
    // Last: while it is there, a pool that cannot be looked at is waited for.
    inner
        .files
        .run(move || {
            remove_durably(&mark).map_err(|source| StorageFault::io("remove", &mark, source))
        })
        .await
}
