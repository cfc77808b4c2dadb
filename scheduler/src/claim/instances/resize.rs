//! Giving an instance another size, on the host it is on: a claim of the difference. A guest that is on gets more, and never
//! less: what it has is claimed as long as it has it.

use berth_common::{
    document::{DesiredPower, Flavor},
    ids::HostId,
    refusal::{Refusal, RefusalCode},
};
use berth_store::{
    claims,
    instances::{self, InstanceRow},
};

use super::{
    boot::check_not_rescued,
    change::leave_off,
    create::{claim_row, flavor_mistakes},
    root,
};
use crate::{
    claim::{ClaimError, cloud::Placed, conflict, invalid},
    context::Writing,
    place::{Demand, Resource},
};

/// Changes the size of an instance. The same size again is granted.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub(super) async fn resize(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    flavor: Flavor,
    host: Option<HostId>,
) -> Result<(), ClaimError> {
    let named = root::name(writing, row).await?;
    let mut mistakes = flavor_mistakes(match &named {
        None => flavor,
        Some(_) => root::without_disk(flavor),
    });
    if let Some(volume) = named.filter(|_| flavor.disk_gb != row.flavor.disk_gb) {
        mistakes.push(format!(
            "instance {} boots from volume {volume}, and its flavor's disk is not used: extend the volume instead, and leave \
             flavor.disk_gb {}",
            row.name,
            row.flavor.disk_gb.get()
        ));
    } else if flavor.disk_gb < row.flavor.disk_gb {
        mistakes.push(format!(
            "a disk never shrinks: instance {} has {}; got flavor.disk_gb {}",
            row.name,
            row.flavor.disk_gb,
            flavor.disk_gb.get()
        ));
    }
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    if flavor == row.flavor {
        return Ok(());
    }
    check_not_rescued(row)?;
    check_power(row, flavor)?;
    // A larger disk is no reason to start a guest that switched itself off.
    if let Some(host) = host {
        leave_off(writing, host, row).await?;
    }
    let Some(placed) = writing.cloud.placed(row.id).cloned() else {
        return Err(conflict(format!("instance {} has no host yet", row.name)));
    };
    let demand = Demand {
        resources: row.claimed(flavor),
        ..placed.demand.clone()
    };
    check_room(writing, row, placed.host, flavor)?;
    let host = placed.host;
    writing.cloud.unplace(row.id);
    writing.cloud.place(row.id, Placed { demand, ..placed });
    let resized = InstanceRow {
        flavor,
        ..row.clone()
    };
    instances::set_flavor(writing.txn(), row.id, flavor, writing.now).await?;
    claims::delete_of_instance(writing.txn(), row.id).await?;
    claims::insert(writing.txn(), &claim_row(&resized, host)).await?;
    tracing::info!(instance = %row.id, name = %row.name, ?flavor, "instance gets another size");
    Ok(())
}

/// Refuses what a guest that is on cannot be given: it gets more, at once if its domain has room for it and else with its
/// next start. Less would be claimed than it has, and it has that until it is off, whatever is wished.
fn check_power(row: &InstanceRow, flavor: Flavor) -> Result<(), ClaimError> {
    let only_disk = Flavor {
        disk_gb: row.flavor.disk_gb,
        ..flavor
    } == row.flavor;
    match row.desired_power {
        DesiredPower::Stopped | DesiredPower::Running | DesiredPower::Paused if only_disk => Ok(()),
        DesiredPower::Stopped => check_switching_off(row, flavor),
        DesiredPower::Running | DesiredPower::Paused
            if flavor.vcpus < row.flavor.vcpus || flavor.memory_mb < row.flavor.memory_mb =>
        {
            Err(conflict(format!(
                "instance {} shall be {}; stop it first: while it is on it gets more, never less (it has {} and {} of \
                 memory)",
                row.name,
                row.desired_power.as_str(),
                row.flavor.vcpus,
                row.flavor.memory_mb
            )))
        }
        // Whoever is given another size hears how, and that needs to be known.
        DesiredPower::Running | DesiredPower::Paused if row.observed.running.is_none() => {
            Err(conflict(format!(
                "instance {} shall be {}, and its host has not said yet what its guest has; repeat this when it is \
                 active, or stop it first",
                row.name,
                row.desired_power.as_str()
            )))
        }
        DesiredPower::Running | DesiredPower::Paused => Ok(()),
        DesiredPower::Suspended => Err(conflict(format!(
            "instance {} shall be {}, and its memory knows the size it has; resume it first",
            row.name,
            row.desired_power.as_str()
        ))),
    }
}

/// Refuses less than a guest that shall be off has until it is.
fn check_switching_off(row: &InstanceRow, flavor: Flavor) -> Result<(), ClaimError> {
    match row.observed.running {
        Some(running) if flavor.vcpus < running.vcpus || flavor.memory_mb < running.memory_mb => {
            Err(conflict(format!(
                "instance {} is still switching off, and its guest has {} and {} of memory; repeat this when it is \
                 stopped",
                row.name, running.vcpus, running.memory_mb
            )))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses what its host has no room for, all of it at once.
fn check_room(
    writing: &Writing<'_>,
    row: &InstanceRow,
    host: HostId,
    flavor: Flavor,
) -> Result<(), ClaimError> {
    let Some(host) = writing.cloud.table().host(host) else {
        return Err(conflict(format!(
            "instance {} is on a host that is gone",
            row.name
        )));
    };
    let amounts = |flavor: Flavor| {
        [
            (Resource::Vcpus, "vCPUs", flavor.vcpus.get()),
            (Resource::MemoryMb, "MB of memory", flavor.memory_mb.get()),
            (Resource::DiskGb, "GB of disk", flavor.disk_gb.get()),
        ]
    };
    let mut lacking = Vec::new();
    for ((resource, unit, wanted), (_, _, before)) in
        amounts(flavor).into_iter().zip(amounts(row.flavor))
    {
        let more = wanted.saturating_sub(before);
        let (physical, free) = (host.physical(resource), host.free(resource));
        // Overcommit is of the sum, never of one; what does not grow needs nothing.
        if more > 0 && wanted > physical {
            lacking.push(format!("{wanted} {unit} wanted, the host has {physical}"));
        } else if more > free {
            lacking.push(format!("{more} more {unit} wanted, {free} free"));
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the host of instance {} has no room for that size: {}",
        row.name,
        lacking.join("; ")
    );
    Err(Refusal::new(RefusalCode::NoValidHost, message).into())
}
