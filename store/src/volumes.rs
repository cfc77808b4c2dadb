//! Volumes: what their owners want and, in columns of their own, what their hosts last said.
//!
//! A row stays after the volume is deleted, so that a repeated request for the same id is recognised. The size of a
//! living volume with a host is a claim on that host: in the pool `local` on its disk, in another one on that pool.

use berth_common::{
    document::{VolumeFormat, VolumeLimits, VolumeSource},
    ids::{HostId, SnapshotId, VolumeId},
    message::report::{ConvergeStatus, Fault},
    names::{PoolName, ProjectName, VolumeName},
    units::{DiskGb, Generation},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, UpdateMany, sea_query::Expr,
};

use crate::{
    attachments, bulk,
    codec::{self, RowReader, fault_columns, int, millis, prose, word},
    entity::volume::{self, Column},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

const TABLE: &str = "volumes";

/// A disk of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    /// Its id, chosen by the client.
    pub id: VolumeId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique among the project's living volumes.
    pub name: VolumeName,
    /// The host it is on; none yet, or none any more.
    pub host_id: Option<HostId>,
    /// Its size, as it shall be.
    pub size_gb: DiskGb,
    /// How it is stored.
    pub format: VolumeFormat,
    /// The storage pool of its host that it is in.
    pub pool: PoolName,
    /// What is on it at first.
    pub source: Option<VolumeSource>,
    /// How much a guest may do with it.
    pub limits: VolumeLimits,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// Whether it shall be gone.
    pub desired_deleted: bool,
    /// What its host last said.
    pub observed: VolumeObserved,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When anything of it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was gone.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// What a host last said of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeObserved {
    /// How far the host is with the document.
    pub status: Option<ConvergeStatus>,
    /// The generation that is about.
    pub generation: Generation,
    /// What the agent is busy with, for people.
    pub progress: Option<String>,
    /// What went wrong.
    pub fault: Option<Fault>,
    /// Whether it was ever there, with its content.
    pub was_available: bool,
    /// When the agent looked.
    pub at: Option<DateTime<Utc>>,
}

/// What a volume takes of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeClaim {
    /// The volume, the claim's owner.
    pub volume_id: VolumeId,
    /// The host.
    pub host_id: HostId,
    /// The storage pool of the host.
    pub pool: PoolName,
    /// How much.
    pub size_gb: DiskGb,
    /// The volume's owner.
    pub project: ProjectName,
}

impl VolumeClaim {
    /// What of it is a claim on the host's own disk, which instances take of as well.
    #[must_use]
    pub fn of_host_disk(&self) -> DiskGb {
        of_host_disk(&self.pool, self.size_gb)
    }
}

/// What a volume of this size in this pool takes of its host's own disk: other pools than `local` have their own room.
#[must_use]
pub fn of_host_disk(pool: &PoolName, size: DiskGb) -> DiskGb {
    if pool.is_local() { size } else { DiskGb::ZERO }
}

fn read(model: volume::Model) -> Result<VolumeRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let observed = VolumeObserved {
        status: model
            .observed_status
            .map(|status| row.word("observed_status", &status))
            .transpose()?,
        generation: Generation(row.int("observed_generation", model.observed_generation)?),
        progress: model.observed_progress,
        fault: row.fault(
            "observed_fault",
            model.observed_fault_code.as_deref(),
            model.observed_fault_message,
        )?,
        was_available: model.observed_was_available,
        at: row.opt_time("observed_at", model.observed_at)?,
    };
    let source: Option<VolumeSource> = row.opt_json("source", model.source.as_deref())?;
    let named = source_volume(source.as_ref()).map(|id| id.to_string());
    if named != model.source_volume_id {
        return Err(row.corrupt("source_volume_id", "it is not the volume in source"));
    }
    let named = source_snapshot(source.as_ref()).map(|id| id.to_string());
    if named != model.source_snapshot_id {
        return Err(row.corrupt("source_snapshot_id", "it is not the snapshot in source"));
    }
    Ok(VolumeRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", VolumeName::try_from(model.name))?,
        host_id: model
            .host_id
            .map(|id| row.parsed("host_id", id.parse()))
            .transpose()?,
        size_gb: row.parsed("size_gb", DiskGb::new(row.int("size_gb", model.size_gb)?))?,
        format: row.word("format", &model.format)?,
        pool: row.parsed("pool", PoolName::try_from(model.pool))?,
        source,
        limits: row.opt_json("limits", model.limits.as_deref())?,
        fingerprint: model.fingerprint,
        desired_deleted: model.desired_deleted,
        observed,
        created_at: row.time("created_at", model.created_at)?,
        updated_at: row.time("updated_at", model.updated_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
    })
}

fn source_volume(source: Option<&VolumeSource>) -> Option<VolumeId> {
    match source {
        Some(VolumeSource::Volume(volume)) => Some(volume.id),
        Some(VolumeSource::Image(_) | VolumeSource::Snapshot(_)) | None => None,
    }
}

fn source_snapshot(source: Option<&VolumeSource>) -> Option<SnapshotId> {
    match source {
        Some(VolumeSource::Snapshot(snapshot)) => Some(snapshot.id),
        Some(VolumeSource::Image(_) | VolumeSource::Volume(_)) | None => None,
    }
}

fn write(volume: &VolumeRow) -> Result<volume::Model, StoreError> {
    let observed = write_observed(&volume.observed)?;
    Ok(volume::Model {
        id: volume.id.to_string(),
        project: volume.project.to_string(),
        name: volume.name.to_string(),
        live_name: volume.deleted_at.is_none().then(|| volume.name.to_string()),
        host_id: volume.host_id.map(|id| id.to_string()),
        size_gb: size(volume.size_gb)?,
        format: word("volumes.format", &volume.format)?,
        pool: volume.pool.to_string(),
        source: codec::opt_json("volumes.source", &volume.source)?,
        source_volume_id: source_volume(volume.source.as_ref()).map(|id| id.to_string()),
        source_snapshot_id: source_snapshot(volume.source.as_ref()).map(|id| id.to_string()),
        limits: codec::opt_json("volumes.limits", &volume.limits)?,
        fingerprint: volume.fingerprint.clone(),
        desired_deleted: volume.desired_deleted,
        observed_status: observed.status,
        observed_generation: observed.generation,
        observed_progress: observed.progress,
        observed_fault_code: observed.fault_code,
        observed_fault_message: observed.fault_message,
        observed_was_available: volume.observed.was_available,
        observed_at: volume.observed.at.map(millis),
        created_at: millis(volume.created_at),
        updated_at: millis(volume.updated_at),
        deleted_at: volume.deleted_at.map(millis),
    })
}

fn size(size: DiskGb) -> Result<i64, StoreError> {
    size_column("volumes.size_gb", size)
}

/// A size in the range that can be read back.
pub(crate) fn size_column(column: &'static str, size: DiskGb) -> Result<i64, StoreError> {
    let size = DiskGb::new(size.get()).map_err(|error| StoreError::Unstorable {
        column,
        what: error.to_string(),
    })?;
    int(column, size.get())
}

/// The observation's columns that need converting.
struct ObservedColumns {
    status: Option<String>,
    generation: i64,
    progress: Option<String>,
    fault_code: Option<String>,
    fault_message: Option<String>,
}

fn write_observed(observed: &VolumeObserved) -> Result<ObservedColumns, StoreError> {
    let (fault_code, fault_message) =
        fault_columns("volumes.observed_fault", observed.fault.as_ref())?;
    Ok(ObservedColumns {
        status: observed
            .status
            .map(|status| word("volumes.observed_status", &status))
            .transpose()?,
        generation: int("volumes.observed_generation", observed.generation.0)?,
        progress: observed.progress.as_deref().map(prose),
        fault_code,
        fault_message,
    })
}

/// The volumes that meet a condition, in order of creation.
pub(crate) async fn load(
    db: &impl Executor,
    which: Condition,
    limit: Option<u64>,
) -> Result<Vec<VolumeRow>, StoreError> {
    let models = volume::Entity::find()
        .filter(which)
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(limit)
        .all(&db.handle())
        .await
        .map_err(failed("volumes"))?;
    models.into_iter().map(read).collect()
}

/// Adds a volume.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `VolumeName`; [`StoreError::ForeignKey`] if its host does not exist.
pub async fn insert(db: &impl Executor, volume: &VolumeRow) -> Result<(), StoreError> {
    volume::Entity::insert(write(volume)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("volumes::insert"))
}

/// One volume, also a deleted one.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: VolumeId) -> Result<Option<VolumeRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which, None).await?.pop())
}

/// Some volumes, also deleted ones, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(db: &impl Executor, ids: &[VolumeId]) -> Result<Vec<VolumeRow>, StoreError> {
    let mut volumes = Vec::with_capacity(ids.len());
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::Id.is_in(ids));
        volumes.append(&mut load(db, which, None).await?);
    }
    volumes.sort_by_key(|row| (row.created_at, row.id));
    volumes.dedup_by_key(|row| row.id);
    Ok(volumes)
}

/// The living volumes of a host, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_host(db: &impl Executor, host: HostId) -> Result<Vec<VolumeRow>, StoreError> {
    let which = Condition::all()
        .add(Column::DeletedAt.is_null())
        .add(Column::HostId.eq(host.to_string()));
    load(db, which, None).await
}

/// The living volumes that are being made from another one: not there yet, and not to be deleted.
///
/// # Errors
/// See [`StoreError`].
pub async fn being_made_from(
    db: &impl Executor,
    source: VolumeId,
) -> Result<Vec<VolumeRow>, StoreError> {
    let which = being_made().add(Column::SourceVolumeId.eq(source.to_string()));
    load(db, which, None).await
}

/// The living volumes that are being made from a snapshot: not there yet, and not to be deleted.
///
/// # Errors
/// See [`StoreError`].
pub async fn being_made_from_snapshot(
    db: &impl Executor,
    source: SnapshotId,
) -> Result<Vec<VolumeRow>, StoreError> {
    let which = being_made().add(Column::SourceSnapshotId.eq(source.to_string()));
    load(db, which, None).await
}

fn being_made() -> Condition {
    Condition::all()
        .add(Column::DeletedAt.is_null())
        .add(Column::DesiredDeleted.eq(false))
        .add(Column::ObservedWasAvailable.eq(false))
}

/// The living volume with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &VolumeName,
) -> Result<Option<VolumeRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::LiveName.eq(name.as_str()));
    Ok(load(db, which, None).await?.pop())
}

/// At most `limit` living volumes of a project, or of all, in order of creation, after the one given. That one may have
/// been deleted since, so that paging survives deletions.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no volume `after`.
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
    after: Option<VolumeId>,
    limit: u32,
) -> Result<Vec<VolumeRow>, StoreError> {
    let mut which = Condition::all()
        .add(Column::DeletedAt.is_null())
        .add_option(project.map(|project| Column::Project.eq(project.as_str())));
    if let Some(after) = after {
        let created_at: Option<i64> = volume::Entity::find_by_id(after.to_string())
            .select_only()
            .column(Column::CreatedAt)
            .into_tuple()
            .one(&db.handle())
            .await
            .map_err(failed("volumes::list"))?;
        let Some(created_at) = created_at else {
            return Err(StoreError::NotFound {
                table: TABLE,
                id: after.to_string(),
            });
        };
        which = which.add(
            Condition::any().add(Column::CreatedAt.gt(created_at)).add(
                Condition::all()
                    .add(Column::CreatedAt.eq(created_at))
                    .add(Column::Id.gt(after.to_string())),
            ),
        );
    }
    load(db, which, Some(u64::from(limit))).await
}

/// What the living volumes that meet a condition take of their hosts, by volume.
async fn claims(
    db: &impl Executor,
    which: Condition,
    limit: Option<u64>,
) -> Result<Vec<VolumeClaim>, StoreError> {
    let found: Vec<(String, Option<String>, String, i64, String)> = volume::Entity::find()
        .select_only()
        .columns([
            Column::Id,
            Column::HostId,
            Column::Pool,
            Column::SizeGb,
            Column::Project,
        ])
        .filter(Column::DeletedAt.is_null())
        .filter(which)
        .order_by_asc(Column::Id)
        .limit(limit)
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("volumes::claims"))?;
    found
        .into_iter()
        .filter_map(|(id, host, pool, size, project)| {
            Some(read_claim(&id, &host?, (pool, size, project)))
        })
        .collect()
}

fn read_claim(
    id: &str,
    host: &str,
    (pool, size, project): (String, i64, String),
) -> Result<VolumeClaim, StoreError> {
    let row = RowReader { table: TABLE, id };
    Ok(VolumeClaim {
        volume_id: row.parsed("id", id.parse())?,
        host_id: row.parsed("host_id", host.parse())?,
        pool: row.parsed("pool", PoolName::try_from(pool))?,
        size_gb: row.parsed("size_gb", DiskGb::new(row.int("size_gb", size)?))?,
        project: row.parsed("project", ProjectName::try_from(project))?,
    })
}

/// What living volumes take of some hosts.
///
/// # Errors
/// See [`StoreError`].
pub async fn claims_of_hosts(
    db: &impl Executor,
    ids: &[HostId],
) -> Result<Vec<VolumeClaim>, StoreError> {
    let mut found = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::HostId.is_in(ids));
        found.append(&mut claims(db, which, None).await?);
    }
    found.sort_by_key(|claim| claim.volume_id);
    found.dedup_by_key(|claim| claim.volume_id);
    Ok(found)
}

/// What all living volumes take of their hosts, page by page in the order of ids: at most `limit` after the one given.
/// Pages are no snapshot, as with [`crate::claims::page_with_groups`].
///
/// # Errors
/// See [`StoreError`].
pub async fn page_of_claims(
    db: &impl Executor,
    after: Option<VolumeId>,
    limit: u32,
) -> Result<Vec<VolumeClaim>, StoreError> {
    let which = Condition::all()
        .add(Column::HostId.is_not_null())
        .add_option(after.map(|id| Column::Id.gt(id.to_string())));
    claims(db, which, Some(u64::from(limit))).await
}

/// Starts an update of one volume.
fn update(id: VolumeId, now: DateTime<Utc>) -> UpdateMany<volume::Entity> {
    volume::Entity::update_many()
        .col_expr(Column::UpdatedAt, Expr::value(millis(now)))
        .filter(Column::Id.eq(id.to_string()))
}

async fn apply(
    db: &impl Executor,
    id: VolumeId,
    what: &'static str,
    update: UpdateMany<volume::Entity>,
) -> Result<(), StoreError> {
    let updated = update.exec(&db.handle()).await.map_err(failed(what))?;
    if updated.rows_affected == 0 {
        return Err(not_found(id));
    }
    Ok(())
}

fn not_found(id: VolumeId) -> StoreError {
    StoreError::NotFound {
        table: TABLE,
        id: id.to_string(),
    }
}

/// Sets its host.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such volume; [`StoreError::ForeignKey`] if there is no such host.
pub async fn set_host(
    db: &impl Executor,
    id: VolumeId,
    host: HostId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let update = update(id, now).col_expr(Column::HostId, Expr::value(host.to_string()));
    apply(db, id, "volumes::set_host", update).await
}

/// Sets how large it shall be.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such volume.
pub async fn set_size(
    db: &impl Executor,
    id: VolumeId,
    size_gb: DiskGb,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let update = update(id, now).col_expr(Column::SizeGb, Expr::value(size(size_gb)?));
    apply(db, id, "volumes::set_size", update).await
}

/// Sets that it shall be gone. It lives, and keeps its name and its room, until [`mark_deleted`].
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such volume.
pub async fn set_desired_deleted(
    db: &impl Executor,
    id: VolumeId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let update = update(id, now).col_expr(Column::DesiredDeleted, Expr::value(true));
    apply(db, id, "volumes::set_desired_deleted", update).await
}

/// Sets what its host last said. What is desired is not touched.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such volume.
pub async fn set_observed(
    db: &impl Executor,
    id: VolumeId,
    observed: &VolumeObserved,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let columns = write_observed(observed)?;
    let update = update(id, now)
        .col_expr(Column::ObservedStatus, Expr::value(columns.status))
        .col_expr(Column::ObservedGeneration, Expr::value(columns.generation))
        .col_expr(Column::ObservedProgress, Expr::value(columns.progress))
        .col_expr(Column::ObservedFaultCode, Expr::value(columns.fault_code))
        .col_expr(
            Column::ObservedFaultMessage,
            Expr::value(columns.fault_message),
        )
        .col_expr(
            Column::ObservedWasAvailable,
            Expr::value(observed.was_available),
        )
        .col_expr(Column::ObservedAt, Expr::value(observed.at.map(millis)));
    apply(db, id, "volumes::set_observed", update).await
}

/// Marks a volume deleted, frees its name, its room and its host, and deletes its attachment, all or nothing. Doing it
/// again is harmless and keeps the first time.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such volume.
pub async fn mark_deleted(
    db: &impl Executor,
    id: VolumeId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    const WHAT: &str = "volumes::mark_deleted";
    let scope = scope(db).await?;
    let updated = update(id, now)
        .col_expr(Column::DeletedAt, Expr::value(millis(now)))
        .col_expr(Column::DesiredDeleted, Expr::value(true))
        .col_expr(Column::LiveName, Expr::value(Option::<String>::None))
        .col_expr(Column::HostId, Expr::value(Option::<String>::None))
        .filter(Column::DeletedAt.is_null())
        .exec(&scope.handle())
        .await
        .map_err(failed(WHAT))?;
    if updated.rows_affected == 0 {
        let known = volume::Entity::find_by_id(id.to_string())
            .count(&scope.handle())
            .await
            .map_err(failed(WHAT))?;
        if known == 0 {
            return Err(not_found(id));
        }
    }
    attachments::delete_where_volume(&scope.handle(), id).await?;
    scope.finish().await
}
