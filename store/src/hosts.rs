//! Hosts: what their heartbeats say, and what operators decided about them.
//!
//! The two have separate writers: a heartbeat never changes status, reason, ratios or reserves.

use std::collections::BTreeMap;

use berth_common::{
    ids::HostId,
    message::{
        heartbeat::{
            ForeignDomain, Heartbeat, NetworkCapabilities, PartHealth, PoolReport,
            ResourceInventory,
        },
        view::{HostStatus, Resources},
    },
    names::{HostName, PhysicalNetworkName},
    units::{AllocationRatio, DiskGb, MemoryMb, Vcpus},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QuerySelect, sea_query::Expr,
};

use crate::{
    aggregates, bulk,
    codec::{self, Amounts, RowReader, int, millis, prose, word},
    documents,
    entity::{claim, host, snapshot, volume},
    error::{StoreError, failed},
    executor::{Executor, scope},
    held_addresses, routers,
};

const TABLE: &str = "hosts";

/// A hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    /// Its id, made by its agent.
    pub id: HostId,
    /// Its name, unique.
    pub name: HostName,
    /// Whether it gets new instances.
    pub status: HostStatus,
    /// Why it is disabled, if somebody said.
    pub disabled_reason: Option<String>,
    /// The session of the newest heartbeat.
    pub session: u64,
    /// The sequence number of the newest heartbeat.
    pub sequence: u64,
    /// Version of its agent.
    pub agent_version: String,
    /// Its processor architecture.
    pub arch: String,
    /// What runs guests there.
    pub virt_type: String,
    /// What exists.
    pub total: Resources,
    /// What is used, measured.
    pub used_now: Resources,
    /// How its parts are.
    pub health: Vec<PartHealth>,
    /// Domains that berth did not make.
    pub foreign_domains: Vec<ForeignDomain>,
    /// When the newest heartbeat arrived.
    pub last_heartbeat_at: DateTime<Utc>,
    /// When the first heartbeat arrived.
    pub created_at: DateTime<Utc>,
    /// The physical networks its NICs are plugged into.
    pub physical_networks: Vec<PhysicalNetworkName>,
    /// Countable resources besides CPUs, memory and disk.
    pub resources: Vec<ResourceInventory>,
    /// Its storage pools that work.
    pub pools: Vec<PoolReport>,
    /// What kinds of networks it can build.
    pub network: NetworkCapabilities,
    /// The host's own CPU ratio; none: its aggregates', or the scheduler's.
    pub cpu_ratio: Option<AllocationRatio>,
    /// The host's own memory ratio; none: its aggregates', or the scheduler's.
    pub ram_ratio: Option<AllocationRatio>,
    /// The host's own disk ratio; none: its aggregates', or the scheduler's.
    pub disk_ratio: Option<AllocationRatio>,
    /// What is kept for the host itself.
    pub reserved: ReservedOverrides,
}

/// What operators decided to keep for a host itself; none: what the scheduler keeps on every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReservedOverrides {
    /// CPUs.
    pub vcpus: Option<Vcpus>,
    /// Memory.
    pub memory_mb: Option<MemoryMb>,
    /// Disk.
    pub disk_gb: Option<DiskGb>,
}

/// All that operators decided about the capacity of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostOverrides {
    /// The CPU ratio.
    pub cpu_ratio: Option<AllocationRatio>,
    /// The memory ratio.
    pub ram_ratio: Option<AllocationRatio>,
    /// The disk ratio.
    pub disk_ratio: Option<AllocationRatio>,
    /// What is kept for the host itself.
    pub reserved: ReservedOverrides,
}

impl HostRow {
    /// What operators decided about its capacity, to change a part of it.
    #[must_use]
    pub const fn overrides(&self) -> HostOverrides {
        HostOverrides {
            cpu_ratio: self.cpu_ratio,
            ram_ratio: self.ram_ratio,
            disk_ratio: self.disk_ratio,
            reserved: self.reserved,
        }
    }
}

fn read(model: host::Model) -> Result<HostRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let total = Amounts {
        vcpus: model.total_vcpus,
        memory_mb: model.total_memory_mb,
        disk_gb: model.total_disk_gb,
    };
    let used = Amounts {
        vcpus: model.used_vcpus,
        memory_mb: model.used_memory_mb,
        disk_gb: model.used_disk_gb,
    };
    Ok(HostRow {
        id: row.parsed("id", model.id.parse())?,
        name: row.parsed("name", HostName::try_from(model.name))?,
        status: row.word("status", &model.status)?,
        disabled_reason: model.disabled_reason,
        session: row.int("session", model.session)?,
        sequence: row.int("sequence", model.sequence)?,
        agent_version: model.agent_version,
        arch: model.arch,
        virt_type: model.virt_type,
        total: row.amounts("total", &total)?,
        used_now: row.amounts("used", &used)?,
        health: row.json("health", &model.health)?,
        foreign_domains: row.json("foreign_domains", &model.foreign_domains)?,
        last_heartbeat_at: row.time("last_heartbeat_at", model.last_heartbeat_at)?,
        created_at: row.time("created_at", model.created_at)?,
        physical_networks: row.json("physical_networks", &model.physical_networks)?,
        resources: row.json("resources", &model.resources)?,
        pools: row.json("pools", &model.pools)?,
        network: row.json("network", &model.network)?,
        cpu_ratio: row.ratio("cpu_ratio", model.cpu_ratio)?,
        ram_ratio: row.ratio("ram_ratio", model.ram_ratio)?,
        disk_ratio: row.ratio("disk_ratio", model.disk_ratio)?,
        reserved: ReservedOverrides {
            vcpus: row.opt_amount("reserved_vcpus", model.reserved_vcpus, Vcpus::new)?,
            memory_mb: row.opt_amount(
                "reserved_memory_mb",
                model.reserved_memory_mb,
                MemoryMb::new,
            )?,
            disk_gb: row.opt_amount("reserved_disk_gb", model.reserved_disk_gb, DiskGb::new)?,
        },
    })
}

/// The row after a heartbeat; what operators decided is kept.
fn after(
    heartbeat: &Heartbeat,
    now: DateTime<Utc>,
    before: Option<host::Model>,
) -> Result<host::Model, StoreError> {
    let total = codec::amounts("hosts.total", heartbeat.total)?;
    let used = codec::amounts("hosts.used", heartbeat.used_now)?;
    let (status, created_at) = match &before {
        Some(before) => (before.status.clone(), before.created_at),
        None => (word("hosts.status", &HostStatus::Enabled)?, millis(now)),
    };
    Ok(host::Model {
        id: heartbeat.host_id.to_string(),
        name: heartbeat.host.to_string(),
        status,
        disabled_reason: before
            .as_ref()
            .and_then(|before| before.disabled_reason.clone()),
        session: int("hosts.session", heartbeat.session)?,
        sequence: int("hosts.sequence", heartbeat.sequence)?,
        agent_version: prose(&heartbeat.agent_version),
        arch: prose(&heartbeat.arch),
        virt_type: prose(&heartbeat.virt_type),
        total_vcpus: total.vcpus,
        total_memory_mb: total.memory_mb,
        total_disk_gb: total.disk_gb,
        used_vcpus: used.vcpus,
        used_memory_mb: used.memory_mb,
        used_disk_gb: used.disk_gb,
        health: codec::json("hosts.health", &heartbeat.health)?,
        foreign_domains: codec::json("hosts.foreign_domains", &heartbeat.foreign_domains)?,
        last_heartbeat_at: millis(now),
        created_at,
        cpu_ratio: before.as_ref().and_then(|before| before.cpu_ratio),
        ram_ratio: before.as_ref().and_then(|before| before.ram_ratio),
        disk_ratio: before.as_ref().and_then(|before| before.disk_ratio),
        reserved_vcpus: before.as_ref().and_then(|before| before.reserved_vcpus),
        reserved_memory_mb: before.as_ref().and_then(|before| before.reserved_memory_mb),
        reserved_disk_gb: before.as_ref().and_then(|before| before.reserved_disk_gb),
        physical_networks: codec::json("hosts.physical_networks", &heartbeat.physical_networks)?,
        resources: codec::json("hosts.resources", &heartbeat.resources)?,
        pools: codec::json("hosts.pools", &heartbeat.pools)?,
        network: codec::json("hosts.network", &heartbeat.network)?,
    })
}

/// All hosts, by name.
///
/// # Errors
/// See [`StoreError`].
pub async fn all(db: &impl Executor) -> Result<Vec<HostRow>, StoreError> {
    let models = host::Entity::find()
        .all(&db.handle())
        .await
        .map_err(failed("hosts::all"))?;
    let mut hosts = models
        .into_iter()
        .map(read)
        .collect::<Result<Vec<_>, _>>()?;
    // Sorted here: the collations of the databases order names differently.
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(hosts)
}

/// Some hosts, in no particular order.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(db: &impl Executor, ids: &[HostId]) -> Result<Vec<HostRow>, StoreError> {
    let mut hosts = Vec::with_capacity(ids.len());
    for ids in bulk::id_lists(ids) {
        let models = host::Entity::find()
            .filter(host::Column::Id.is_in(ids))
            .all(&db.handle())
            .await
            .map_err(failed("hosts::of_ids"))?;
        for model in models {
            hosts.push(read(model)?);
        }
    }
    Ok(hosts)
}

fn read_name(id: String, name: String) -> Result<(HostId, HostName), StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &id,
    };
    Ok((
        row.parsed("id", id.parse())?,
        row.parsed("name", HostName::try_from(name))?,
    ))
}

/// The names of all hosts after one, in order.
///
/// # Errors
/// See [`StoreError`].
pub async fn names_after(
    db: &impl Executor,
    after: Option<&HostName>,
) -> Result<Vec<(HostName, HostId)>, StoreError> {
    let found: Vec<(String, String)> = host::Entity::find()
        .select_only()
        .column(host::Column::Id)
        .column(host::Column::Name)
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("hosts::names_after"))?;
    let mut names = Vec::with_capacity(found.len());
    for (id, name) in found {
        let (id, name) = read_name(id, name)?;
        if after.is_none_or(|after| name > *after) {
            names.push((name, id));
        }
    }
    // Sorted here: the collations of the databases order names differently.
    names.sort();
    Ok(names)
}

/// The names of some hosts, and nothing else of them.
///
/// # Errors
/// See [`StoreError`].
pub async fn names(
    db: &impl Executor,
    ids: &[HostId],
) -> Result<BTreeMap<HostId, HostName>, StoreError> {
    let mut names = BTreeMap::new();
    for ids in bulk::id_lists(ids) {
        let found: Vec<(String, String)> = host::Entity::find()
            .select_only()
            .column(host::Column::Id)
            .column(host::Column::Name)
            .filter(host::Column::Id.is_in(ids))
            .into_tuple()
            .all(&db.handle())
            .await
            .map_err(failed("hosts::names"))?;
        for (id, name) in found {
            let (id, name) = read_name(id, name)?;
            names.insert(id, name);
        }
    }
    Ok(names)
}

/// One host.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: HostId) -> Result<Option<HostRow>, StoreError> {
    model(db, id).await?.map(read).transpose()
}

async fn model(db: &impl Executor, id: HostId) -> Result<Option<host::Model>, StoreError> {
    host::Entity::find_by_id(id.to_string())
        .one(&db.handle())
        .await
        .map_err(failed("hosts::get"))
}

/// The host with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    name: &HostName,
) -> Result<Option<HostRow>, StoreError> {
    let model = host::Entity::find()
        .filter(host::Column::Name.eq(name.as_str()))
        .one(&db.handle())
        .await
        .map_err(failed("hosts::find_by_name"))?;
    model.map(read).transpose()
}

/// Takes in a heartbeat: a new host is enabled, of a known one the facts are updated. A heartbeat that is not
/// newer than the stored one, by session and sequence, changes nothing. Answers with the row as it is afterwards.
///
/// # Errors
/// [`StoreError::Unique`] with `HostName` if another host has the name: the two are not the same host.
pub async fn upsert_heartbeat(
    db: &impl Executor,
    heartbeat: &Heartbeat,
    now: DateTime<Utc>,
) -> Result<HostRow, StoreError> {
    let session = int("hosts.session", heartbeat.session)?;
    let sequence = int("hosts.sequence", heartbeat.sequence)?;
    let before = model(db, heartbeat.host_id).await?;
    let known = before.is_some();
    if let Some(before) = &before
        && (before.session, before.sequence) >= (session, sequence)
    {
        return read(before.clone());
    }
    let model = after(heartbeat, now, before)?;
    if known {
        let older = Condition::any().add(host::Column::Session.lt(session)).add(
            Condition::all()
                .add(host::Column::Session.eq(session))
                .add(host::Column::Sequence.lt(sequence)),
        );
        // Only the facts: an operator may be changing the status at this moment.
        let mut facts = model.clone().into_active_model().reset_all();
        for decided in [
            host::Column::Id,
            host::Column::Status,
            host::Column::DisabledReason,
            host::Column::CreatedAt,
            host::Column::CpuRatio,
            host::Column::RamRatio,
            host::Column::DiskRatio,
            host::Column::ReservedVcpus,
            host::Column::ReservedMemoryMb,
            host::Column::ReservedDiskGb,
        ] {
            facts.not_set(decided);
        }
        let updated = host::Entity::update_many()
            .set(facts)
            .filter(host::Column::Id.eq(&model.id))
            .filter(older)
            .exec(&db.handle())
            .await
            .map_err(failed("hosts::upsert_heartbeat"))?;
        if updated.rows_affected == 0
            && let Some(newer) = self::model(db, heartbeat.host_id).await?
        {
            return read(newer);
        }
    } else {
        host::Entity::insert(model.clone().into_active_model().reset_all())
            .exec_without_returning(&db.handle())
            .await
            .map_err(failed("hosts::upsert_heartbeat"))?;
    }
    read(model)
}

/// Sets whether a host gets new instances, and why not.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such host.
pub async fn set_status(
    db: &impl Executor,
    id: HostId,
    status: HostStatus,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let updated = host::Entity::update_many()
        .col_expr(
            host::Column::Status,
            Expr::value(word("hosts.status", &status)?),
        )
        .col_expr(host::Column::DisabledReason, Expr::value(reason.map(prose)))
        .filter(host::Column::Id.eq(id.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("hosts::set_status"))?;
    found(updated.rows_affected, id)
}

/// Sets what operators decided about a host's capacity, all of it. Nothing else is touched.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such host.
pub async fn set_overrides(
    db: &impl Executor,
    id: HostId,
    overrides: &HostOverrides,
) -> Result<(), StoreError> {
    let kept = overrides.reserved;
    // Checked as one, so that nothing is written that could not be read back.
    let reserved = codec::amounts(
        "hosts.reserved",
        Resources {
            vcpus: kept.vcpus.unwrap_or_default(),
            memory_mb: kept.memory_mb.unwrap_or_default(),
            disk_gb: kept.disk_gb.unwrap_or_default(),
        },
    )?;
    let updated = host::Entity::update_many()
        .col_expr(
            host::Column::CpuRatio,
            Expr::value(codec::ratio(overrides.cpu_ratio)),
        )
        .col_expr(
            host::Column::RamRatio,
            Expr::value(codec::ratio(overrides.ram_ratio)),
        )
        .col_expr(
            host::Column::DiskRatio,
            Expr::value(codec::ratio(overrides.disk_ratio)),
        )
        .col_expr(
            host::Column::ReservedVcpus,
            Expr::value(kept.vcpus.map(|_| reserved.vcpus)),
        )
        .col_expr(
            host::Column::ReservedMemoryMb,
            Expr::value(kept.memory_mb.map(|_| reserved.memory_mb)),
        )
        .col_expr(
            host::Column::ReservedDiskGb,
            Expr::value(kept.disk_gb.map(|_| reserved.disk_gb)),
        )
        .filter(host::Column::Id.eq(id.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("hosts::set_overrides"))?;
    found(updated.rows_affected, id)
}

/// Deletes a host, its documents, its places in aggregates and its addresses for routers, all or nothing.
///
/// # Errors
/// [`StoreError::InUse`] while an instance has a claim on it, or a volume or snapshot is on it, [`StoreError::NotFound`] if there is no such host.
pub async fn delete(db: &impl Executor, id: HostId) -> Result<(), StoreError> {
    let in_use = |by| StoreError::InUse {
        table: TABLE,
        id: id.to_string(),
        by,
    };
    let scope = scope(db).await?;
    let claims = claim::Entity::find()
        .filter(claim::Column::HostId.eq(id.to_string()))
        .count(&scope.handle())
        .await
        .map_err(failed("hosts::delete"))?;
    if claims > 0 {
        return Err(in_use("claims"));
    }
    let volumes = volume::Entity::find()
        .filter(volume::Column::HostId.eq(id.to_string()))
        .count(&scope.handle())
        .await
        .map_err(failed("hosts::delete"))?;
    if volumes > 0 {
        return Err(in_use("volumes"));
    }
    let snapshots = snapshot::Entity::find()
        .filter(snapshot::Column::HostId.eq(id.to_string()))
        .count(&scope.handle())
        .await
        .map_err(failed("hosts::delete"))?;
    if snapshots > 0 {
        return Err(in_use("snapshots"));
    }
    documents::delete_of_host(&scope.handle(), id).await?;
    aggregates::remove_host_from_all(&scope.handle(), id).await?;
    routers::delete_gateways_of_host(&scope.handle(), id).await?;
    held_addresses::release_of_host(&scope.handle(), id).await?;
    let deleted = host::Entity::delete_by_id(id.to_string())
        .exec(&scope.handle())
        .await
        .map_err(failed("hosts::delete"))
        .map_err(|error| match error {
            // A claim, a volume, a snapshot, a document, or a place in an aggregate that came since.
            StoreError::ForeignKey { .. } => in_use("claims"),
            other => other,
        })?;
    found(deleted.rows_affected, id)?;
    scope.finish().await
}

fn found(rows: u64, id: HostId) -> Result<(), StoreError> {
    if rows == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}
