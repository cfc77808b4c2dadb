//! Snapshots of volumes: asked for and deleted. Nothing else ever changes of one.
//!
//! ```text
//!  snapshot.create ─▶ on the volume's host, which makes it ─▶ available ── snapshot.delete ─▶ gone when its host says so
//! ```
//!
//! Once it is made it is independent of its volume: that one may grow, be attached elsewhere or go. Until then the volume
//! is neither grown nor deleted. A snapshot lies in the pool that its volume is in, and its size is a claim there, as that of
//! a volume is.

use berth_common::{
    document::{DocumentKey, Kind, VolumeRef},
    ids::{HostId, SnapshotId},
    message::{
        request::{SnapshotCreate, SnapshotDelete},
        view::{SnapshotView, VolumeStatus},
    },
    names::{ProjectName, SnapshotName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat, documents,
    snapshots::{self, SnapshotRow},
    volumes::{self, VolumeObserved, VolumeRow},
};

use super::{
    ClaimError,
    cloud::PlacedVolume,
    conflict, fingerprint, not_found,
    volumes::{
        Wanted, being_deleted, check_admission, check_room, no_such, resolve as resolve_volume,
    },
};
use crate::{context::Writing, report::show};

/// The snapshot a request names, by id or by name; by id also a deleted one.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    snapshot: &str,
) -> Result<SnapshotRow, ClaimError> {
    if let Ok(id) = snapshot.parse::<SnapshotId>()
        && let Some(row) = snapshots::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = snapshot.parse::<SnapshotName>()
        && let Some(row) = snapshots::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    Err(no_such_snapshot(project, snapshot))
}

/// There is no such snapshot.
pub(super) fn no_such_snapshot(project: &ProjectName, snapshot: &str) -> ClaimError {
    let shown: String = snapshot.chars().take(80).collect();
    not_found(format!(
        "project {project} has no snapshot {shown:?}, neither by id nor by name"
    ))
}

/// Creates a snapshot of a volume that was made.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &mut Writing<'_>,
    request: &SnapshotCreate,
) -> Result<SnapshotView, ClaimError> {
    let fingerprint = fingerprint(request)?;
    if let Some(existing) = snapshots::get(writing.txn(), request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "snapshot {} exists already and was asked for with another content; use a new id for a new snapshot",
                existing.id
            )));
        }
        return show::snapshot(writing.context(), writing.txn(), &existing).await;
    }
    let volume = resolve_volume(writing.txn(), &request.project, &request.volume).await?;
    if volume.project != request.project {
        return Err(no_such(&request.project, &request.volume));
    }
    let host = check_volume(writing, &volume).await?;
    // A name that is taken is said before a host that is full: it cannot be helped by waiting.
    let living = snapshots::find_by_name(writing.txn(), &request.project, &request.name).await?;
    if living.is_some() {
        return Err(name_taken(request));
    }
    check_admission(writing, host, "the snapshot")?;
    let size_gb = volume.size_gb;
    let wanted = Wanted {
        what: &format!("snapshot {}", request.name),
        pool: &volume.pool,
        format: volume.format,
        size: size_gb,
        more: size_gb,
    };
    check_room(writing, host, wanted)?;
    let row = SnapshotRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        volume: VolumeRef {
            id: volume.id,
            format: volume.format,
            pool: volume.pool.clone(),
        },
        host_id: Some(host),
        size_gb,
        fingerprint,
        desired_deleted: false,
        observed: VolumeObserved::default(),
        created_at: writing.now,
        updated_at: writing.now,
        deleted_at: None,
    };
    snapshots::insert(writing.txn(), &row)
        .await
        .map_err(|error| match error {
            StoreError::Unique {
                constraint: UniqueWhat::SnapshotName,
                ..
            } => name_taken(request),
            error => error.into(),
        })?;
    let placed = PlacedVolume {
        host,
        pool: volume.pool.clone(),
        size_gb,
    };
    writing.cloud.place_snapshot(row.id, placed);
    writing.touch_snapshot(host, row.id);
    writing.derive().await?;
    tracing::info!(snapshot = %row.id, name = %row.name, volume = %volume.id, "snapshot accepted");
    show::snapshot(writing.context(), writing.txn(), &row).await
}

/// The host of a volume that has something to keep.
async fn check_volume(writing: &Writing<'_>, volume: &VolumeRow) -> Result<HostId, ClaimError> {
    if volume.desired_deleted || volume.deleted_at.is_some() {
        return Err(being_deleted(volume));
    }
    let name = &volume.name;
    let Some(host) = volume.host_id else {
        return Err(conflict(format!(
            "volume {name} has no host yet, so there is nothing on it to keep; attach it first"
        )));
    };
    if !volume.observed.was_available {
        return Err(conflict(format!(
            "volume {name} was not made yet; take a snapshot of it when it is available"
        )));
    }
    let shown = show::volume(writing.context(), writing.txn(), volume).await?;
    // With an instance it may be the instance that failed, and the volume is as it was.
    if shown.status == VolumeStatus::Error && shown.attachment.is_none() {
        let why = shown.fault.map_or_else(String::new, |fault| fault.message);
        return Err(conflict(format!("volume {name} is in error: {why}")));
    }
    Ok(host)
}

fn name_taken(request: &SnapshotCreate) -> ClaimError {
    conflict(format!(
        "project {} already has a snapshot named {}",
        request.project, request.name
    ))
}

/// Deletes a snapshot that no volume is being made from. One that its host was not told of is gone at once, others when
/// their host says so.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &SnapshotDelete,
) -> Result<SnapshotView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.snapshot).await?;
    if row.deleted_at.is_none() && !row.desired_deleted {
        let made = volumes::being_made_from_snapshot(writing.txn(), row.id).await?;
        if let Some(volume) = made.first() {
            return Err(conflict(format!(
                "volume {} is being made from snapshot {}: wait until it is available, or delete it",
                volume.name, row.name
            )));
        }
        snapshots::set_desired_deleted(writing.txn(), row.id, writing.now).await?;
        let key = DocumentKey {
            kind: Kind::Snapshot,
            id: row.id.as_uuid(),
        };
        let told = match row.host_id {
            Some(host) => documents::get(writing.txn(), host, key)
                .await?
                .map(|_| host),
            None => None,
        };
        if let Some(host) = told {
            writing.touch_snapshot(host, row.id);
            writing.derive().await?;
        } else {
            snapshots::mark_deleted(writing.txn(), row.id, writing.now).await?;
            writing.cloud.unplace_snapshot(row.id);
        }
        tracing::info!(snapshot = %row.id, name = %row.name, "snapshot is to be deleted");
    }
    let again = snapshots::get(writing.txn(), row.id).await?;
    let row = again.ok_or_else(|| not_found(format!("snapshot {} is gone", row.id)))?;
    show::snapshot(writing.context(), writing.txn(), &row).await
}
