//! Host aggregates: hosts with properties, ratios or an availability zone in common.
//!
//! A change takes effect with the next decision, and moves nothing that is placed already.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{AggregateId, HostId},
    message::{
        placement::AggregateView,
        request::{
            AggregateAddHost, AggregateCreate, AggregateDelete, AggregateListReply,
            AggregateRemoveHost, AggregateSet,
        },
    },
    names::{AggregateName, HostName, ZoneName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    aggregates::{self, Aggregate, AggregateRow},
    hosts as host_rows,
};

use super::{ClaimError, conflict, facts, fingerprint, hosts, invalid, not_found};
use crate::context::Writing;

/// The most properties of an aggregate.
const MAX_PROPERTIES: usize = 64;

/// Creates an aggregate without hosts.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &mut Writing<'_>,
    request: &AggregateCreate,
) -> Result<AggregateView, ClaimError> {
    few_properties(request.properties.len())?;
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = aggregates::get(txn, request.id).await? {
        if existing.row.fingerprint != fingerprint {
            return Err(conflict(format!(
                "aggregate {} exists already and was asked for with another content; use a new id for a new aggregate",
                existing.row.id
            )));
        }
        return view(txn, &existing).await;
    }
    let row = AggregateRow {
        id: request.id,
        name: request.name.clone(),
        availability_zone: request.availability_zone.clone(),
        cpu_ratio: request.cpu_allocation_ratio,
        ram_ratio: request.ram_allocation_ratio,
        disk_ratio: request.disk_allocation_ratio,
        properties: request.properties.clone(),
        fingerprint,
        created_at: writing.now,
    };
    aggregates::insert(txn, &row)
        .await
        .map_err(|error| name_taken(error, &request.name))?;
    changed(writing, row.id, []).await
}

/// Changes an aggregate.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(
    writing: &mut Writing<'_>,
    request: &AggregateSet,
) -> Result<AggregateView, ClaimError> {
    let Aggregate { mut row, hosts } = resolve(writing.txn(), &request.aggregate).await?;
    row.availability_zone = request
        .availability_zone
        .clone()
        .apply(row.availability_zone);
    row.cpu_ratio = request.cpu_allocation_ratio.apply(row.cpu_ratio);
    row.ram_ratio = request.ram_allocation_ratio.apply(row.ram_ratio);
    row.disk_ratio = request.disk_allocation_ratio.apply(row.disk_ratio);
    for (key, value) in &request.properties {
        match value {
            Some(value) => {
                row.properties.insert(key.clone(), value.clone());
            }
            None => {
                row.properties.remove(key);
            }
        }
    }
    few_properties(row.properties.len())?;
    if let Some(zone) = &row.availability_zone {
        for host in &hosts {
            one_zone(writing, &row, zone, *host)?;
        }
    }
    aggregates::update(writing.txn(), &row).await?;
    changed(writing, row.id, hosts).await
}

/// Deletes an aggregate; its hosts stay.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &AggregateDelete,
) -> Result<AggregateView, ClaimError> {
    let aggregate = resolve(writing.txn(), &request.aggregate).await?;
    let shown = view(writing.txn(), &aggregate).await?;
    aggregates::delete(writing.txn(), aggregate.row.id).await?;
    remember(writing, aggregate.hosts).await?;
    Ok(shown)
}

/// Puts a host into an aggregate.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn add_host(
    writing: &mut Writing<'_>,
    request: &AggregateAddHost,
) -> Result<AggregateView, ClaimError> {
    let row = resolve(writing.txn(), &request.aggregate).await?.row;
    let host = hosts::resolve(writing.txn(), &request.host).await?.id;
    if let Some(zone) = &row.availability_zone {
        one_zone(writing, &row, zone, host)?;
    }
    aggregates::add_host(writing.txn(), row.id, host).await?;
    changed(writing, row.id, [host]).await
}

/// Takes a host out of an aggregate.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn remove_host(
    writing: &mut Writing<'_>,
    request: &AggregateRemoveHost,
) -> Result<AggregateView, ClaimError> {
    let row = resolve(writing.txn(), &request.aggregate).await?.row;
    let host = hosts::resolve(writing.txn(), &request.host).await?.id;
    aggregates::remove_host(writing.txn(), row.id, host).await?;
    changed(writing, row.id, [host]).await
}

/// All aggregates, by name.
///
/// # Errors
/// When the database fails.
pub async fn list(db: &impl Executor) -> Result<AggregateListReply, ClaimError> {
    let mut rows = aggregates::all(db).await?;
    let names = host_names(db, &rows).await?;
    rows.sort_by(|a, b| a.row.name.cmp(&b.row.name));
    Ok(AggregateListReply {
        aggregates: rows.iter().map(|row| view_of(row, &names)).collect(),
    })
}

/// A host is in one availability zone: instances that were asked for in one must not find themselves in another.
fn one_zone(
    writing: &Writing<'_>,
    row: &AggregateRow,
    zone: &ZoneName,
    host: HostId,
) -> Result<(), ClaimError> {
    let others = facts::aggregates_of(host, writing.cloud.aggregates());
    let other = others.filter(|other| other.id != row.id).find(|other| {
        other
            .availability_zone
            .as_ref()
            .is_some_and(|of| of != zone)
    });
    let Some(other) = other else { return Ok(()) };
    let name = writing
        .cloud
        .table()
        .host(host)
        .map_or_else(|| host.to_string(), |host| host.facts().name.to_string());
    let of = other
        .availability_zone
        .as_ref()
        .map_or("?", ZoneName::as_str);
    Err(conflict(format!(
        "host {name} is in availability zone {of} through aggregate {}; a host is in one zone only: take it out of that \
         aggregate first",
        other.name
    )))
}

fn few_properties(count: usize) -> Result<(), ClaimError> {
    if count > MAX_PROPERTIES {
        return Err(invalid(format!(
            "an aggregate has at most {MAX_PROPERTIES} properties; got {count}"
        )));
    }
    Ok(())
}

fn name_taken(error: StoreError, name: &AggregateName) -> ClaimError {
    match error {
        StoreError::Unique {
            constraint: UniqueWhat::AggregateName,
            ..
        } => conflict(format!("there is already an aggregate named {name}")),
        error => error.into(),
    }
}

/// Rows changed: placement knows, and the aggregate is shown.
async fn changed(
    writing: &mut Writing<'_>,
    id: AggregateId,
    hosts: impl IntoIterator<Item = HostId>,
) -> Result<AggregateView, ClaimError> {
    remember(writing, hosts).await?;
    let row = resolve(writing.txn(), &id.to_string()).await?;
    view(writing.txn(), &row).await
}

/// Placement knows the aggregates as their rows say, and what follows for these hosts.
async fn remember(
    writing: &mut Writing<'_>,
    hosts: impl IntoIterator<Item = HostId>,
) -> Result<(), ClaimError> {
    let rows = aggregates::all(writing.txn()).await?;
    writing.cloud.set_aggregates(rows);
    let hosts: Vec<HostId> = hosts.into_iter().collect();
    for row in host_rows::of_ids(writing.txn(), &hosts).await? {
        super::hosts::remember(writing, &row);
    }
    Ok(())
}

async fn view(db: &impl Executor, row: &Aggregate) -> Result<AggregateView, ClaimError> {
    Ok(view_of(
        row,
        &host_names(db, std::slice::from_ref(row)).await?,
    ))
}

async fn host_names(
    db: &impl Executor,
    rows: &[Aggregate],
) -> Result<BTreeMap<HostId, HostName>, ClaimError> {
    let hosts: BTreeSet<HostId> = rows.iter().flat_map(|row| &row.hosts).copied().collect();
    let hosts: Vec<HostId> = hosts.into_iter().collect();
    Ok(host_rows::names(db, &hosts).await?)
}

fn view_of(aggregate: &Aggregate, names: &BTreeMap<HostId, HostName>) -> AggregateView {
    let row = &aggregate.row;
    let mut hosts: Vec<HostName> = aggregate
        .hosts
        .iter()
        .filter_map(|host| names.get(host).cloned())
        .collect();
    hosts.sort();
    AggregateView {
        id: row.id,
        name: row.name.clone(),
        availability_zone: row.availability_zone.clone(),
        cpu_allocation_ratio: row.cpu_ratio,
        ram_allocation_ratio: row.ram_ratio,
        disk_allocation_ratio: row.disk_ratio,
        properties: row.properties.clone(),
        hosts,
        created_at: row.created_at,
    }
}

/// The aggregate a request names, by id or by name.
async fn resolve(db: &impl Executor, aggregate: &str) -> Result<Aggregate, ClaimError> {
    if let Ok(id) = aggregate.parse::<AggregateId>()
        && let Some(row) = aggregates::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = aggregate.parse::<AggregateName>()
        && let Some(row) = aggregates::find_by_name(db, &name).await?
    {
        return Ok(row);
    }
    let shown: String = aggregate.chars().take(80).collect();
    Err(not_found(format!(
        "there is no aggregate {shown:?}, neither by id nor by name; `berthctl aggregate list` shows all"
    )))
}
