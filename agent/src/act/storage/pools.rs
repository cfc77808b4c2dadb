//! Which driver a volume is the business of: files for the pool `local`, logical volumes for every other one.
//!
//! A document says in which pool a volume is; a tombstone does not, and then all are looked at, and the mark says where it
//! was made. A pool that cannot be looked at keeps nobody from what lies in another one, but what was made in it is not gone
//! because it is not found.

use std::sync::Arc;

use berth_common::{
    ids::VolumeId,
    message::heartbeat::{PoolKind, PoolReport},
    names::PoolName,
    units::ByteCount,
};

use super::{
    Inner, VolumeWipe, atomic::remove_durably, fault::StorageFault, instances, lvm::LvmPool,
    snapshot, volume,
};
use crate::{
    act::{PoolState, Progress},
    decide::{
        instance::StorageStep,
        lvm::Owner,
        volume::{VolumeContent, VolumeFiles},
    },
};

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
                found = volume::observe(&shared.paths, id)?;
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
        match lvm.observe(id, &mut found).await {
            Err(fault) if pool.is_some() || marked.as_ref() == Some(name) => return Err(fault),
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
        Some(pool) if !pool.is_local() => driver(inner, pool).map(drop),
        Some(_) | None => Ok(()),
    }
}

/// Ids of all volumes of which anything is there.
pub(super) async fn list(inner: &Arc<Inner>) -> Result<Vec<VolumeId>, StorageFault> {
    let shared = Arc::clone(inner);
    let ids = inner.files.run(move || volume::list(&shared.paths)).await?;
    let volume = |owner| match owner {
        Owner::Volume(id) => Some(id),
        Owner::Snapshot(_) => None,
    };
    Ok(with_those_in_pools(inner, ids, volume).await)
}

/// These, and those of their kind that pools of logical volumes have anything of; each once.
pub(super) async fn with_those_in_pools<T: Ord + Send>(
    inner: &Inner,
    mut ids: Vec<T>,
    of_kind: impl Fn(Owner) -> Option<T> + Send,
) -> Vec<T> {
    for lvm in inner.pools.values() {
        // That it is ill is said elsewhere.
        if let Ok(content) = lvm.look().await {
            ids.extend(content.own().filter_map(|(owner, ..)| of_kind(owner)));
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Removes leftovers of interrupted work; answers why some stay.
pub(super) async fn sweep(inner: &Arc<Inner>) -> Vec<StorageFault> {
    let mut stay = Vec::new();
    for (name, lvm) in &inner.pools {
        match lvm.sweep().await {
            Ok(faults) => stay.extend(faults),
            // That it is ill is said elsewhere.
            Err(fault) => {
                let error = berth_common::telemetry::error_chain(&fault);
                tracing::warn!(pool = %name, error, "leftovers in a storage pool stay");
            }
        }
    }
    stay
}

/// How full every pool is.
pub(super) async fn report(inner: &Arc<Inner>) -> Vec<PoolState> {
    let shared = Arc::clone(inner);
    let local = inner.files.run(move || local(&shared)).await;
    let chain = |fault: StorageFault| berth_common::telemetry::error_chain(&fault);
    let mut states = vec![PoolState {
        name: PoolName::default(),
        report: local.map_err(chain),
    }];
    for (name, lvm) in &inner.pools {
        let content = lvm.look().await;
        states.push(PoolState {
            name: name.clone(),
            report: content.map(|content| content.report(name)).map_err(chain),
        });
    }
    states
}

fn local(inner: &Inner) -> Result<PoolReport, StorageFault> {
    let (total_bytes, used_bytes) = instances::space(&inner.paths)?;
    let mut provisioned = ByteCount::ZERO;
    for id in volume::list(&inner.paths)? {
        for file in volume::observe(&inner.paths, id)?.files {
            if let VolumeContent::Size(size) = file.content {
                provisioned = provisioned.saturating_add(size);
            }
        }
    }
    for id in snapshot::list(&inner.paths)? {
        if let Some(VolumeContent::Size(size)) = snapshot::observe(&inner.paths, id)?.file {
            provisioned = provisioned.saturating_add(size);
        }
    }
    Ok(PoolReport {
        name: PoolName::default(),
        kind: PoolKind::Dir,
        total_bytes,
        used_bytes,
        provisioned_bytes: provisioned,
        metadata_percent: None,
    })
}

/// The driver of a pool of block devices.
pub(super) fn driver<'a>(inner: &'a Inner, pool: &PoolName) -> Result<&'a LvmPool, StorageFault> {
    inner
        .pools
        .get(pool)
        .ok_or_else(|| StorageFault::UnknownPool { pool: pool.clone() })
}

/// Carries out a step on a volume.
pub(super) async fn apply(
    inner: &Arc<Inner>,
    step: &StorageStep,
    progress: &Progress,
) -> Result<(), StorageFault> {
    match step {
        StorageStep::CreateVolume(plan) if plan.pool.is_local() => {
            volume::create(inner, plan, progress).await
        }
        StorageStep::CreateVolume(plan) => {
            driver(inner, &plan.pool)?
                .create(inner, plan, progress)
                .await
        }
        StorageStep::GrowVolume(plan) if plan.pool.is_local() => volume::grow(inner, plan).await,
        StorageStep::GrowVolume(plan) => {
            driver(inner, &plan.pool)?.grow(inner, plan, progress).await
        }
        StorageStep::SettleVolume(of) => driver(inner, &of.pool)?.settle(of.id).await,
        StorageStep::ActivateVolume(of) => driver(inner, &of.pool)?.activate(of.id).await,
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

/// Removes a volume: its name wherever it has one, its mark, and last its bytes as the host's rule says. What is being
/// wiped needs no mark: it is found by the name it has then.
async fn remove(inner: &Arc<Inner>, id: VolumeId, progress: &Progress) -> Result<(), StorageFault> {
    let shared = Arc::clone(inner);
    let marked = inner
        .files
        .run(move || volume::marked_pool(&shared.paths, id))
        .await?;
    check_configured(inner, marked.as_ref())?;
    let mut devices = Vec::new();
    for (name, lvm) in &inner.pools {
        match lvm.take_name(id.into(), inner.options.volume_wipe).await {
            Ok(Some(left)) => devices.push((lvm, left)),
            Err(fault) if marked.as_ref() == Some(name) => return Err(fault),
            Ok(None) | Err(_) => {}
        }
    }
    let shared = Arc::clone(inner);
    let files = inner
        .files
        .run(move || volume::take_name(&shared, id))
        .await?;
    let found = files.is_some() || !devices.is_empty();
    let shared = Arc::clone(inner);
    inner
        .files
        .run(move || {
            let mark = shared.paths.volume_mark(id);
            let wipes = shared.options.volume_wipe != VolumeWipe::None;
            if wipes && !found && instances::is_file(&mark)? {
                return Err(StorageFault::NothingToWipe { id, mark });
            }
            remove_durably(&mark).map_err(|source| StorageFault::io("remove", &mark, source))
        })
        .await?;
    for path in files.into_iter().flatten() {
        let failed = move |path, source| StorageFault::Wipe { id, path, source };
        volume::wipe(inner, path, progress, failed).await?;
    }
    for (lvm, left) in devices {
        for name in left {
            lvm.wipe(inner, id.into(), &name, progress).await?;
        }
    }
    Ok(())
}
