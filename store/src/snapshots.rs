//! Snapshots of volumes: what their owners want and, in columns of their own, what their hosts last said.
//!
//! A row stays after the snapshot is deleted, so that a repeated request for the same id is recognised. The size of a
//! living snapshot with a host is a claim there as that of a volume is: it lies in the pool that its volume is in.

use berth_common::{
    document::{VolumeFormat, VolumeRef},
    ids::{HostId, SnapshotId, VolumeId},
    names::{PoolName, ProjectName, SnapshotName},
    units::{DiskGb, Generation},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, UpdateMany, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{RowReader, fault_columns, int, millis, prose, word},
    entity::snapshot::{self, Column},
    error::{StoreError, failed},
    executor::Executor,
    volumes::{VolumeObserved, of_host_disk, size_column},
};

const TABLE: &str = "snapshots";

/// What a volume held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its id, chosen by the client.
    pub id: SnapshotId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique among the project's living snapshots.
    pub name: SnapshotName,
    /// The volume whose content it is, also one that is gone, how that was stored, and where: the snapshot lies there too.
    pub volume: VolumeRef,
    /// The host it is on; none any more once it is deleted.
    pub host_id: Option<HostId>,
    /// The most it may hold.
    pub size_gb: DiskGb,
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

/// What a snapshot takes of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotClaim {
    /// The snapshot, the claim's owner.
    pub snapshot_id: SnapshotId,
    /// The host.
    pub host_id: HostId,
    /// The storage pool of the host.
    pub pool: PoolName,
    /// How much.
    pub size_gb: DiskGb,
    /// The snapshot's owner.
    pub project: ProjectName,
}

impl SnapshotClaim {
    /// What of it is a claim on the host's own disk, which instances take of as well.
    #[must_use]
    pub fn of_host_disk(&self) -> DiskGb {
        of_host_disk(&self.pool, self.size_gb)
    }
}

fn read(model: snapshot::Model) -> Result<SnapshotRow, StoreError> {
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
    let format: VolumeFormat = row.word("volume_format", &model.volume_format)?;
    let volume_id: VolumeId = row.parsed("volume_id", model.volume_id.parse())?;
    Ok(SnapshotRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", SnapshotName::try_from(model.name))?,
        volume: VolumeRef {
            id: volume_id,
            format,
            pool: row.parsed("pool", PoolName::try_from(model.pool))?,
        },
        host_id: model
            .host_id
            .map(|id| row.parsed("host_id", id.parse()))
            .transpose()?,
        size_gb: row.parsed("size_gb", DiskGb::new(row.int("size_gb", model.size_gb)?))?,
        fingerprint: model.fingerprint,
        desired_deleted: model.desired_deleted,
        observed,
        created_at: row.time("created_at", model.created_at)?,
        updated_at: row.time("updated_at", model.updated_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
    })
}

fn write(snapshot: &SnapshotRow) -> Result<snapshot::Model, StoreError> {
    let observed = &snapshot.observed;
    let (fault_code, fault_message) =
        fault_columns("snapshots.observed_fault", observed.fault.as_ref())?;
    Ok(snapshot::Model {
        id: snapshot.id.to_string(),
        project: snapshot.project.to_string(),
        name: snapshot.name.to_string(),
        live_name: snapshot
            .deleted_at
            .is_none()
            .then(|| snapshot.name.to_string()),
        volume_id: snapshot.volume.id.to_string(),
        volume_format: word("snapshots.volume_format", &snapshot.volume.format)?,
        pool: snapshot.volume.pool.to_string(),
        host_id: snapshot.host_id.map(|id| id.to_string()),
        size_gb: size_column("snapshots.size_gb", snapshot.size_gb)?,
        fingerprint: snapshot.fingerprint.clone(),
        desired_deleted: snapshot.desired_deleted,
        observed_status: observed
            .status
            .map(|status| word("snapshots.observed_status", &status))
            .transpose()?,
        observed_generation: int("snapshots.observed_generation", observed.generation.0)?,
        observed_progress: observed.progress.as_deref().map(prose),
        observed_fault_code: fault_code,
        observed_fault_message: fault_message,
        observed_was_available: observed.was_available,
        observed_at: observed.at.map(millis),
        created_at: millis(snapshot.created_at),
        updated_at: millis(snapshot.updated_at),
        deleted_at: snapshot.deleted_at.map(millis),
    })
}

/// The snapshots that meet a condition, in order of creation.
async fn load(
    db: &impl Executor,
    which: Condition,
    limit: Option<u64>,
) -> Result<Vec<SnapshotRow>, StoreError> {
    let models = snapshot::Entity::find()
        .filter(which)
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .limit(limit)
        .all(&db.handle())
        .await
        .map_err(failed("snapshots"))?;
    models.into_iter().map(read).collect()
}

/// Adds a snapshot.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `SnapshotName`; [`StoreError::ForeignKey`] if its host does not exist.
pub async fn insert(db: &impl Executor, snapshot: &SnapshotRow) -> Result<(), StoreError> {
    snapshot::Entity::insert(write(snapshot)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("snapshots::insert"))
}

/// One snapshot, also a deleted one.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: SnapshotId) -> Result<Option<SnapshotRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which, None).await?.pop())
}

/// Some snapshots, also deleted ones, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(
    db: &impl Executor,
    ids: &[SnapshotId],
) -> Result<Vec<SnapshotRow>, StoreError> {
    let mut snapshots = Vec::with_capacity(ids.len());
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::Id.is_in(ids));
        snapshots.append(&mut load(db, which, None).await?);
    }
    snapshots.sort_by_key(|row| (row.created_at, row.id));
    snapshots.dedup_by_key(|row| row.id);
    Ok(snapshots)
}

/// The living snapshots of a host, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_host(db: &impl Executor, host: HostId) -> Result<Vec<SnapshotRow>, StoreError> {
    let which = Condition::all()
        .add(Column::DeletedAt.is_null())
        .add(Column::HostId.eq(host.to_string()));
    load(db, which, None).await
}

/// The living snapshots that are being made of a volume: not there yet, and not to be deleted.
///
/// # Errors
/// See [`StoreError`].
pub async fn being_made_of(
    db: &impl Executor,
    volume: VolumeId,
) -> Result<Vec<SnapshotRow>, StoreError> {
    let which = Condition::all()
        .add(Column::VolumeId.eq(volume.to_string()))
        .add(Column::DeletedAt.is_null())
        .add(Column::DesiredDeleted.eq(false))
        .add(Column::ObservedWasAvailable.eq(false));
    load(db, which, None).await
}

/// The living snapshot with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &SnapshotName,
) -> Result<Option<SnapshotRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::LiveName.eq(name.as_str()));
    Ok(load(db, which, None).await?.pop())
}

/// At most `limit` living snapshots of a project, or of all, in order of creation, after the one given. That one may
/// have been deleted since, so that paging survives deletions.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no snapshot `after`.
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
    after: Option<SnapshotId>,
    limit: u32,
) -> Result<Vec<SnapshotRow>, StoreError> {
    let mut which = Condition::all()
        .add(Column::DeletedAt.is_null())
        .add_option(project.map(|project| Column::Project.eq(project.as_str())));
    if let Some(after) = after {
        let created_at: Option<i64> = snapshot::Entity::find_by_id(after.to_string())
            .select_only()
            .column(Column::CreatedAt)
            .into_tuple()
            .one(&db.handle())
            .await
            .map_err(failed("snapshots::list"))?;
        let Some(created_at) = created_at else {
            return Err(not_found(after));
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

/// What the living snapshots that meet a condition take of their hosts, by snapshot.
async fn claims(
    db: &impl Executor,
    which: Condition,
    limit: Option<u64>,
) -> Result<Vec<SnapshotClaim>, StoreError> {
    let found: Vec<(String, Option<String>, String, i64, String)> = snapshot::Entity::find()
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
        .map_err(failed("snapshots::claims"))?;
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
) -> Result<SnapshotClaim, StoreError> {
    let row = RowReader { table: TABLE, id };
    Ok(SnapshotClaim {
        snapshot_id: row.parsed("id", id.parse())?,
        host_id: row.parsed("host_id", host.parse())?,
        pool: row.parsed("pool", PoolName::try_from(pool))?,
        size_gb: row.parsed("size_gb", DiskGb::new(row.int("size_gb", size)?))?,
        project: row.parsed("project", ProjectName::try_from(project))?,
    })
}

/// What living snapshots take of some hosts.
///
/// # Errors
/// See [`StoreError`].
pub async fn claims_of_hosts(
    db: &impl Executor,
    ids: &[HostId],
) -> Result<Vec<SnapshotClaim>, StoreError> {
    let mut found = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(Column::HostId.is_in(ids));
        found.append(&mut claims(db, which, None).await?);
    }
    found.sort_by_key(|claim| claim.snapshot_id);
    found.dedup_by_key(|claim| claim.snapshot_id);
    Ok(found)
}

/// What all living snapshots take of their hosts, page by page in the order of ids: at most `limit` after the one given.
/// Pages are of different moments, as with [`crate::claims::page_with_groups`].
///
/// # Errors
/// See [`StoreError`].
pub async fn page_of_claims(
    db: &impl Executor,
    after: Option<SnapshotId>,
    limit: u32,
) -> Result<Vec<SnapshotClaim>, StoreError> {
    let which = Condition::all()
        .add(Column::HostId.is_not_null())
        .add_option(after.map(|id| Column::Id.gt(id.to_string())));
    claims(db, which, Some(u64::from(limit))).await
}

/// Starts an update of one snapshot.
fn update(id: SnapshotId, now: DateTime<Utc>) -> UpdateMany<snapshot::Entity> {
    snapshot::Entity::update_many()
        .col_expr(Column::UpdatedAt, Expr::value(millis(now)))
        .filter(Column::Id.eq(id.to_string()))
}

async fn apply(
    db: &impl Executor,
    id: SnapshotId,
    what: &'static str,
    update: UpdateMany<snapshot::Entity>,
) -> Result<(), StoreError> {
    let updated = update.exec(&db.handle()).await.map_err(failed(what))?;
    if updated.rows_affected == 0 {
        return Err(not_found(id));
    }
    Ok(())
}

fn not_found(id: SnapshotId) -> StoreError {
    StoreError::NotFound {
        table: TABLE,
        id: id.to_string(),
    }
}

/// Sets that it shall be gone. It lives, and keeps its name and its room, until [`mark_deleted`].
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such snapshot.
pub async fn set_desired_deleted(
    db: &impl Executor,
    id: SnapshotId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let update = update(id, now).col_expr(Column::DesiredDeleted, Expr::value(true));
    apply(db, id, "snapshots::set_desired_deleted", update).await
}

/// Sets what its host last said. What is desired is not touched.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such snapshot.
pub async fn set_observed(
    db: &impl Executor,
    id: SnapshotId,
    observed: &VolumeObserved,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let (fault_code, fault_message) =
        fault_columns("snapshots.observed_fault", observed.fault.as_ref())?;
    let status = observed
        .status
        .map(|status| word("snapshots.observed_status", &status))
        .transpose()?;
    let generation = int("snapshots.observed_generation", observed.generation.0)?;
    let update = update(id, now)
        .col_expr(Column::ObservedStatus, Expr::value(status))
        .col_expr(Column::ObservedGeneration, Expr::value(generation))
        .col_expr(
            Column::ObservedProgress,
            Expr::value(observed.progress.as_deref().map(prose)),
        )
        .col_expr(Column::ObservedFaultCode, Expr::value(fault_code))
        .col_expr(Column::ObservedFaultMessage, Expr::value(fault_message))
        .col_expr(
            Column::ObservedWasAvailable,
            Expr::value(observed.was_available),
        )
        .col_expr(Column::ObservedAt, Expr::value(observed.at.map(millis)));
    apply(db, id, "snapshots::set_observed", update).await
}

/// Marks a snapshot deleted, and frees its name, its room and its host. Doing it again is harmless and keeps the first
/// time.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such snapshot.
pub async fn mark_deleted(
    db: &impl Executor,
    id: SnapshotId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    const WHAT: &str = "snapshots::mark_deleted";
    let updated = update(id, now)
        .col_expr(Column::DeletedAt, Expr::value(millis(now)))
        .col_expr(Column::DesiredDeleted, Expr::value(true))
        .col_expr(Column::LiveName, Expr::value(Option::<String>::None))
        .col_expr(Column::HostId, Expr::value(Option::<String>::None))
        .filter(Column::DeletedAt.is_null())
        .exec(&db.handle())
        .await
        .map_err(failed(WHAT))?;
    if updated.rows_affected > 0 {
        return Ok(());
    }
    let known = snapshot::Entity::find_by_id(id.to_string())
        .count(&db.handle())
        .await
        .map_err(failed(WHAT))?;
    if known == 0 {
        return Err(not_found(id));
    }
    Ok(())
}
