//! Volumes: asked for ([`create`]), grown and deleted ([`change`]), given to instances and taken from them ([`attach`]).
//!
//! ```text
//!  volume.create ─▶ no host yet ── first attached to an instance ─▶ on the instance's host
//!              └──── a host, or a volume to be made from, is named ────▶ on that host
//! ```
//!
//! A volume is in one storage pool of one host, and claims its size there from then until the host says that it is gone
//! ([`room`]).

pub mod attach;
pub mod change;
pub mod create;
mod room;

pub(super) use create::check_admission;

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{HostId, InstanceId, VolumeId},
    names::{ProjectName, VolumeName},
};
use berth_store::{
    Executor, documents, instances, snapshots,
    volumes::{self, VolumeRow},
};

use super::{ClaimError, conflict, not_found};
pub(super) use room::{PoolRoom, Wanted, check_room, pool_room};

/// The volume a request names, by id or by name; by id also a deleted one.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    volume: &str,
) -> Result<VolumeRow, ClaimError> {
    if let Ok(id) = volume.parse::<VolumeId>()
        && let Some(row) = volumes::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = volume.parse::<VolumeName>()
        && let Some(row) = volumes::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    Err(no_such(project, volume))
}

/// There is no such volume.
pub(super) fn no_such(project: &ProjectName, volume: &str) -> ClaimError {
    let shown: String = volume.chars().take(80).collect();
    not_found(format!(
        "project {project} has no volume {shown:?}, neither by id nor by name"
    ))
}

/// What to call an instance that has a volume.
pub(super) async fn called(db: &impl Executor, id: InstanceId) -> Result<String, ClaimError> {
    let row = instances::get(db, id).await?;
    Ok(row.map_or_else(|| id.to_string(), |row| row.name.to_string()))
}

/// A volume as it is now; it was just read or written.
async fn again(db: &impl Executor, id: VolumeId) -> Result<VolumeRow, ClaimError> {
    let row = volumes::get(db, id).await?;
    row.ok_or_else(|| not_found(format!("volume {id} is gone")))
}

/// Whether a host was told of a volume.
async fn is_told(db: &impl Executor, host: HostId, id: VolumeId) -> Result<bool, ClaimError> {
    let key = DocumentKey {
        kind: Kind::Volume,
        id: id.as_uuid(),
    };
    Ok(documents::get(db, host, key).await?.is_some())
}

/// Refuses what would change or end a volume while a snapshot is being made of it.
async fn check_no_snapshot(db: &impl Executor, row: &VolumeRow) -> Result<(), ClaimError> {
    match snapshots::being_made_of(db, row.id).await?.first() {
        None => Ok(()),
        Some(snapshot) => Err(conflict(format!(
            "snapshot {} is being made of volume {}: wait until it is available, or delete it",
            snapshot.name, row.name
        ))),
    }
}

/// Refuses what would change or end a volume while another one is being made from it.
async fn check_not_copied(db: &impl Executor, row: &VolumeRow) -> Result<(), ClaimError> {
    match volumes::being_made_from(db, row.id).await?.first() {
        None => Ok(()),
        Some(copy) => Err(conflict(format!(
            "volume {} is being made from volume {}: wait until it is available, or delete it",
            copy.name, row.name
        ))),
    }
}

/// Refuses what a volume on its way out is asked for.
pub(super) fn being_deleted(row: &VolumeRow) -> ClaimError {
    conflict(format!("volume {} is being deleted", row.name))
}
