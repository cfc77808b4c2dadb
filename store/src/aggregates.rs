//! Host aggregates: hosts with properties, ratios or an availability zone in common.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{AggregateId, HostId},
    names::{AggregateName, PropertyKey, PropertyValue, ZoneName},
    units::AllocationRatio,
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, IntoActiveModel,
    QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, OnConflict},
};

use crate::{
    codec::{self, RowReader, millis},
    entity::{
        aggregate::{self, Column},
        aggregate_host,
    },
    error::{StoreError, failed},
    executor::Executor,
};

const TABLE: &str = "aggregates";

/// What an aggregate says of its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateRow {
    /// Its id, chosen by the client.
    pub id: AggregateId,
    /// Its name, unique.
    pub name: AggregateName,
    /// The availability zone of its hosts; none: it says nothing of zones.
    pub availability_zone: Option<ZoneName>,
    /// The CPU ratio of its hosts that have none of their own.
    pub cpu_ratio: Option<AllocationRatio>,
    /// The memory ratio, likewise.
    pub ram_ratio: Option<AllocationRatio>,
    /// The disk ratio, likewise.
    pub disk_ratio: Option<AllocationRatio>,
    /// Properties of its hosts.
    pub properties: BTreeMap<PropertyKey, PropertyValue>,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// An aggregate with its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aggregate {
    /// What it says of them.
    pub row: AggregateRow,
    /// The hosts.
    pub hosts: BTreeSet<HostId>,
}

fn read(model: aggregate::Model) -> Result<AggregateRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    Ok(AggregateRow {
        id: row.parsed("id", model.id.parse())?,
        name: row.parsed("name", AggregateName::try_from(model.name))?,
        availability_zone: model
            .availability_zone
            .map(|zone| row.parsed("availability_zone", ZoneName::try_from(zone)))
            .transpose()?,
        cpu_ratio: row.ratio("cpu_ratio", model.cpu_ratio)?,
        ram_ratio: row.ratio("ram_ratio", model.ram_ratio)?,
        disk_ratio: row.ratio("disk_ratio", model.disk_ratio)?,
        properties: row.json("properties", &model.properties)?,
        fingerprint: model.fingerprint,
        created_at: row.time("created_at", model.created_at)?,
    })
}

fn read_member(model: &aggregate_host::Model) -> Result<(AggregateId, HostId), StoreError> {
    let id = format!("{}/{}", model.aggregate_id, model.host_id);
    let row = RowReader {
        table: "aggregate_hosts",
        id: &id,
    };
    Ok((
        row.parsed("aggregate_id", model.aggregate_id.parse())?,
        row.parsed("host_id", model.host_id.parse())?,
    ))
}

fn write(aggregate: &AggregateRow) -> Result<aggregate::Model, StoreError> {
    Ok(aggregate::Model {
        id: aggregate.id.to_string(),
        name: aggregate.name.to_string(),
        availability_zone: aggregate
            .availability_zone
            .as_ref()
            .map(ToString::to_string),
        cpu_ratio: codec::ratio(aggregate.cpu_ratio),
        ram_ratio: codec::ratio(aggregate.ram_ratio),
        disk_ratio: codec::ratio(aggregate.disk_ratio),
        properties: codec::json("aggregates.properties", &aggregate.properties)?,
        fingerprint: aggregate.fingerprint.clone(),
        created_at: millis(aggregate.created_at),
    })
}

/// The aggregates that meet a condition, by name, with their hosts: two queries.
async fn load(db: &impl Executor, which: Condition) -> Result<Vec<Aggregate>, StoreError> {
    let connection = db.handle();
    let ids = aggregate::Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(which.clone())
        .into_query();
    let models = aggregate::Entity::find()
        .filter(which)
        .all(&connection)
        .await
        .map_err(failed("aggregates"))?;
    let members = aggregate_host::Entity::find()
        .filter(aggregate_host::Column::AggregateId.in_subquery(ids))
        .all(&connection)
        .await
        .map_err(failed("aggregates"))?;
    let mut hosts: BTreeMap<AggregateId, BTreeSet<HostId>> = BTreeMap::new();
    for member in &members {
        let (aggregate, host) = read_member(member)?;
        hosts.entry(aggregate).or_default().insert(host);
    }
    let mut aggregates = models
        .into_iter()
        .map(|model| {
            let row = read(model)?;
            let hosts = hosts.remove(&row.id).unwrap_or_default();
            Ok(Aggregate { row, hosts })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    // Sorted here: the collations of the databases order names differently.
    aggregates.sort_by(|a, b| a.row.name.cmp(&b.row.name));
    Ok(aggregates)
}

/// Adds an aggregate without hosts.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `AggregateName`.
pub async fn insert(db: &impl Executor, aggregate: &AggregateRow) -> Result<(), StoreError> {
    aggregate::Entity::insert(write(aggregate)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("aggregates::insert"))
}

/// One aggregate.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: AggregateId) -> Result<Option<Aggregate>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// The aggregate with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    name: &AggregateName,
) -> Result<Option<Aggregate>, StoreError> {
    let which = Condition::all().add(Column::Name.eq(name.as_str()));
    Ok(load(db, which).await?.pop())
}

/// All aggregates, by name.
///
/// # Errors
/// See [`StoreError`].
pub async fn all(db: &impl Executor) -> Result<Vec<Aggregate>, StoreError> {
    load(db, Condition::all()).await
}

/// Sets everything an aggregate says of its hosts. What made it, and when, stays.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such aggregate; [`StoreError::Unique`] with `AggregateName`.
pub async fn update(db: &impl Executor, aggregate: &AggregateRow) -> Result<(), StoreError> {
    let model = write(aggregate)?;
    let updated = aggregate::Entity::update_many()
        .col_expr(Column::Name, Expr::value(model.name))
        .col_expr(
            Column::AvailabilityZone,
            Expr::value(model.availability_zone),
        )
        .col_expr(Column::CpuRatio, Expr::value(model.cpu_ratio))
        .col_expr(Column::RamRatio, Expr::value(model.ram_ratio))
        .col_expr(Column::DiskRatio, Expr::value(model.disk_ratio))
        .col_expr(Column::Properties, Expr::value(model.properties))
        .filter(Column::Id.eq(model.id))
        .exec(&db.handle())
        .await
        .map_err(failed("aggregates::update"))?;
    found(updated.rows_affected, aggregate.id)
}

/// Deletes an aggregate; its hosts stay. One statement: who is in it goes with it (`ON DELETE CASCADE`).
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such aggregate.
pub async fn delete(db: &impl Executor, id: AggregateId) -> Result<(), StoreError> {
    let deleted = aggregate::Entity::delete_by_id(id.to_string())
        .exec(&db.handle())
        .await
        .map_err(failed("aggregates::delete"))?;
    found(deleted.rows_affected, id)
}

/// Puts a host into an aggregate. Doing it again is harmless.
///
/// # Errors
/// [`StoreError::ForeignKey`] if there is no such aggregate or host.
pub async fn add_host(db: &impl Executor, id: AggregateId, host: HostId) -> Result<(), StoreError> {
    let row = aggregate_host::Model {
        aggregate_id: id.to_string(),
        host_id: host.to_string(),
    };
    let key = [
        aggregate_host::Column::AggregateId,
        aggregate_host::Column::HostId,
    ];
    // The key once more is no change; "do nothing" would on MariaDB also hide that the host does not exist.
    let keep = OnConflict::columns(key).update_columns(key).to_owned();
    aggregate_host::Entity::insert(row.into_active_model().reset_all())
        .on_conflict(keep)
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("aggregates::add_host"))
}

/// Takes a host out of an aggregate. False: it was not in it.
///
/// # Errors
/// See [`StoreError`].
pub async fn remove_host(
    db: &impl Executor,
    id: AggregateId,
    host: HostId,
) -> Result<bool, StoreError> {
    let deleted = aggregate_host::Entity::delete_by_id((id.to_string(), host.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("aggregates::remove_host"))?;
    Ok(deleted.rows_affected > 0)
}

/// Takes a host out of all aggregates, for the deletion of the host.
pub(crate) async fn remove_host_from_all(
    connection: &impl ConnectionTrait,
    host: HostId,
) -> Result<(), StoreError> {
    aggregate_host::Entity::delete_many()
        .filter(aggregate_host::Column::HostId.eq(host.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("aggregates::remove_host_from_all"))
}

fn found(rows: u64, id: AggregateId) -> Result<(), StoreError> {
    if rows == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}
