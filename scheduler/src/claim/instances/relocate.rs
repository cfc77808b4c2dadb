//! An instance that its host could not build moves on to the next best host.
//!
//! Only one that never was: there is nothing of it to lose. The host that failed gets a tombstone for what it made of
//! it, is not asked again for this instance, and weighs less for a while.

use berth_common::{
    ids::{DecisionId, HostId},
    message::report::Fault,
    names::HostName,
};
use berth_store::{
    claims,
    decisions::DecisionRow,
    instances::{self, InstanceObserved, InstanceRow, Placement},
};

use super::{create, networks_of};
use crate::{
    claim::{
        ClaimError,
        cloud::Placed,
        hints::{Asker, Lookups},
    },
    context::Writing,
    place,
    report::decision,
};

/// What became of an instance that its host could not build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relocation {
    /// It has another host now.
    Moved {
        /// That host.
        to: HostName,
    },
    /// It stays where it is, in error.
    Stays {
        /// Why no other host was tried, or none was found.
        why: String,
    },
}

/// Moves an instance on from the host that said it cannot build it.
///
/// # Errors
/// When the database fails; then nothing of it may be kept.
pub async fn relocate(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    from: HostId,
    fault: &Fault,
) -> Result<Relocation, ClaimError> {
    let now = writing.context().millis();
    writing.cloud.failed(from, now);
    let most = writing.context().config.max_attempts;
    if row.attempt >= most {
        return Ok(Relocation::Stays {
            why: format!("{most} hosts were tried, no more are"),
        });
    }
    let mut failed_hosts = row.failed_hosts.clone();
    if !failed_hosts.contains(&from) {
        failed_hosts.push(from);
    }
    let wanted = match request(writing, row, &failed_hosts).await {
        Ok(wanted) => wanted,
        // What the hints name may be gone by now.
        Err(ClaimError::Refused(refusal)) => {
            return Ok(Relocation::Stays {
                why: refusal.message,
            });
        }
        Err(error) => return Err(error),
    };
    // Its own claim must not stand in its way.
    let mark = writing.cloud.mark();
    writing.cloud.unplace(row.id);
    let decided = writing.cloud.decide(&wanted);
    let attempt = row.attempt.saturating_add(1);
    writing.decided(DecisionRow {
        id: DecisionId::new(),
        instance_id: row.id,
        decision: decision::view(&decided, attempt, writing.now),
    });
    let Some(chosen) = decided.chosen.clone() else {
        writing.cloud.undo_to(mark);
        return Ok(Relocation::Stays {
            why: decision::public_text(&decided),
        });
    };

    let (txn, id) = (writing.txn(), row.id);
    claims::delete_of_instance(txn, id).await?;
    claims::insert_many(txn, &[create::claim_row(row, chosen.host_id)]).await?;
    let placement = Placement {
        attempt,
        failed_hosts: &failed_hosts,
        fault: None,
    };
    instances::set_placement(txn, id, &placement, writing.now).await?;
    // What the failed host said of it says nothing of it on the next.
    instances::set_observed(txn, id, &InstanceObserved::default(), writing.now).await?;
    let networks = networks_of(txn, id).await?;
    writing.cloud.place(
        id,
        Placed {
            host: chosen.host_id,
            demand: wanted.demand(),
            group: row.server_group_id,
            building: true,
        },
    );
    for host in [from, chosen.host_id] {
        writing.touch_instance(host, id);
        for network in &networks {
            writing.touch_network(host, *network);
        }
    }
    writing.context().metrics.relocated();
    tracing::warn!(
        instance = %id, name = %row.name, %from, to = %chosen.host, attempt, reason = fault.message,
        "a host could not build an instance; the next one is asked"
    );
    Ok(Relocation::Moved { to: chosen.host })
}

/// The request of an instance, asked again without the hosts that failed.
async fn request(
    writing: &Writing<'_>,
    row: &InstanceRow,
    failed_hosts: &[HostId],
) -> Result<place::Request, ClaimError> {
    let asker = Asker {
        project: &row.project,
        seed: create::seed(row.id),
        now: writing.context().millis(),
    };
    let mut resolved = Lookups::default()
        .resolve(writing.txn(), &writing.cloud, asker, row.flavor, &row.hints)
        .await?;
    resolved
        .request
        .excluded_hosts
        .extend(failed_hosts.iter().copied());
    // It is a member of its group on the host it leaves.
    if let Some(group) = &mut resolved.request.group
        && let Some(placed) = writing.cloud.placed(row.id)
        && let Some(count) = group.members.get_mut(&placed.host)
    {
        *count = count.saturating_sub(1);
    }
    Ok(resolved.request)
}
