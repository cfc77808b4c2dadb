//! What operators decide about hosts.

use berth_common::{
    ids::HostId,
    message::{
        request::{HostDelete, HostDeleteReply, HostSet},
        view::{HostState, HostStatus, HostView},
    },
    names::HostName,
};
use berth_store::{
    Executor, aggregates,
    hosts::{self, HostOverrides, HostRow, ReservedOverrides},
    instances, ports, snapshots, volumes,
};

use super::{ClaimError, conflict, facts, invalid, not_found};
use crate::{context::Writing, report::show};

/// Lets a host get new instances, or no more.
///
/// # Errors
/// A refusal when there is no such host, or a failure of the database.
pub async fn set_status(
    writing: &mut Writing<'_>,
    host: &str,
    status: HostStatus,
    reason: Option<&str>,
) -> Result<HostView, ClaimError> {
    let row = resolve(writing.txn(), host).await?;
    hosts::set_status(writing.txn(), row.id, status, reason).await?;
    tracing::info!(host = %row.name, ?status, reason, "host status changed");
    changed(writing, row.id).await
}

/// Changes a host's own ratios and reserves.
///
/// # Errors
/// A refusal when there is no such host or nothing to change, or a failure of the database.
pub async fn set(writing: &mut Writing<'_>, request: &HostSet) -> Result<HostView, ClaimError> {
    let nothing = HostSet {
        host: request.host.clone(),
        ..HostSet::default()
    };
    if *request == nothing {
        return Err(invalid(
            "nothing to change: name a ratio (cpu_allocation_ratio, …) or a reserve (reserved_host_memory_mb, …)",
        ));
    }
    let row = resolve(writing.txn(), &request.host).await?;
    let overrides = HostOverrides {
        cpu_ratio: request.cpu_allocation_ratio.apply(row.cpu_ratio),
        ram_ratio: request.ram_allocation_ratio.apply(row.ram_ratio),
        disk_ratio: request.disk_allocation_ratio.apply(row.disk_ratio),
        reserved: ReservedOverrides {
            vcpus: request.reserved_host_cpus.apply(row.reserved.vcpus),
            memory_mb: request
                .reserved_host_memory_mb
                .apply(row.reserved.memory_mb),
            disk_gb: request.reserved_host_disk_gb.apply(row.reserved.disk_gb),
        },
    };
    hosts::set_overrides(writing.txn(), row.id, &overrides).await?;
    tracing::info!(host = %row.name, ?overrides, "a host's ratios and reserves changed");
    changed(writing, row.id).await
}

/// Forgets a host that is gone for good, and with it the instances, volumes and snapshots there that were being deleted.
///
/// # Errors
/// A refusal while it is heard of, or while it has instances, volumes or snapshots that nobody deleted; or a failure of the database.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &HostDelete,
) -> Result<HostDeleteReply, ClaimError> {
    let row = resolve(writing.txn(), &request.host).await?;
    if writing.context().is_alive(row.id) {
        return Err(conflict(format!(
            "host {} is up: stop its agent first, or it would be back with its next heartbeat",
            row.name
        )));
    }
    let on_host = writing.cloud.instances_on(row.id);
    let instances = instances::of_ids(writing.txn(), &on_host).await?;
    let wanted = instances.iter().filter(|row| !row.desired_deleted).count();
    if wanted > 0 {
        return Err(conflict(format!(
            "host {} still has {wanted} instances that nobody deleted: delete them first, or bring the host back",
            row.name
        )));
    }
    let on_host = writing.cloud.volumes_on(row.id);
    let volumes = volumes::of_ids(writing.txn(), &on_host).await?;
    let wanted = volumes.iter().filter(|row| !row.desired_deleted).count();
    if wanted > 0 {
        return Err(conflict(format!(
            "host {} still has {wanted} volumes that nobody deleted: delete them first, or bring the host back",
            row.name
        )));
    }
    let on_host = writing.cloud.snapshots_on(row.id);
    let snapshots = snapshots::of_ids(writing.txn(), &on_host).await?;
    let wanted = snapshots.iter().filter(|row| !row.desired_deleted).count();
    if wanted > 0 {
        return Err(conflict(format!(
            "host {} still has {wanted} snapshots that nobody deleted: delete them first, or bring the host back",
            row.name
        )));
    }
    let ids: Vec<_> = instances.iter().map(|row| row.id).collect();
    for port in ports::of_instances(writing.txn(), &ids).await? {
        writing.touch_members(port.network_id);
    }
    // Their host will never confirm that they are gone; by this request its operator does.
    for instance in instances {
        instances::mark_deleted(writing.txn(), instance.id, writing.now).await?;
        writing.cloud.unplace(instance.id);
    }
    for volume in volumes {
        volumes::mark_deleted(writing.txn(), volume.id, writing.now).await?;
        writing.cloud.unplace_volume(volume.id);
    }
    for snapshot in snapshots {
        snapshots::mark_deleted(writing.txn(), snapshot.id, writing.now).await?;
        writing.cloud.unplace_snapshot(snapshot.id);
    }
    hosts::delete(writing.txn(), row.id).await?;
    writing.cloud.remove_host(row.id);
    // It may come back, as a host that nobody has put into any of them.
    let aggregates = aggregates::all(writing.txn()).await?;
    writing.cloud.set_aggregates(aggregates);
    writing.forget_host(row.id, row.name.clone());
    tracing::info!(host = %row.name, host_id = %row.id, "a host was forgotten");
    Ok(HostDeleteReply {
        id: row.id,
        name: row.name,
    })
}

/// A host's row changed: placement knows, and the host is shown.
async fn changed(writing: &mut Writing<'_>, host: HostId) -> Result<HostView, ClaimError> {
    let row = resolve(writing.txn(), &host.to_string()).await?;
    remember(writing, &row);
    show::host(writing.context(), writing.txn(), &row).await
}

/// Placement knows a host as its row says.
pub fn remember(writing: &mut Writing<'_>, row: &HostRow) {
    let state = if writing.context().is_alive(row.id) {
        HostState::Up
    } else {
        HostState::Down
    };
    let placement = &writing.context().config.placement;
    let facts = facts::of_host(row, writing.cloud.aggregates(), state, placement);
    writing.cloud.set_host(facts);
}

/// The host a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(db: &impl Executor, host: &str) -> Result<HostRow, ClaimError> {
    if let Ok(id) = host.parse::<HostId>()
        && let Some(row) = hosts::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = host.parse::<HostName>()
        && let Some(row) = hosts::find_by_name(db, &name).await?
    {
        return Ok(row);
    }
    let shown: String = host.chars().take(80).collect();
    Err(not_found(format!(
        "there is no host {shown:?}, neither by id nor by name; `berthctl host list` shows all"
    )))
}
