//! An instance that its host could not build moves on to the next best host.
//!
//! ```text
//!  on A ── A cannot build it ──▶ leaving A: A gets a tombstone ── A says that it is gone ──▶ on B, or back on A
//!    └──── no other host would do, or enough were tried: it stays, in error
//! ```
//!
//! Only one that never ran moves: there is nothing of it to lose. It keeps its claim and its addresses until the host
//! that failed has confirmed that nothing is left there, so it can never run twice. That host is not asked again for
//! it, and weighs less for a while. One that boots from a volume stays: a volume never moves.

use std::collections::BTreeSet;

use berth_common::{
    ids::{DecisionId, HostId, NetworkId},
    message::report::{ConvergeStatus, Fault, FaultCode},
};
use berth_store::{
    claims,
    decisions::DecisionRow,
    instances::{self, InstanceObserved, InstanceRow, Placement},
    networks::NetworkRow,
    ports,
};

use super::{create, networks_of, root};
use crate::{
    claim::{
        ClaimError,
        cloud::Placed,
        hints::{Asker, Lookups},
        ports::Planned,
        routers::joined::Joined,
    },
    context::Writing,
    place,
    report::decision,
};

/// What becomes of an instance that its host could not build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relocation {
    /// It leaves: its host is told to take it apart.
    Leaves,
    /// It stays where it is, in error.
    Stays {
        /// Why, as the end of a sentence.
        why: String,
    },
}

/// Whether an instance is leaving a host that could not build it.
#[must_use]
pub fn is_leaving(row: &InstanceRow, host: HostId) -> bool {
    row.failed_hosts.contains(&host)
}

/// Whether a fault tells against the host before anybody knows whether another one does better.
const fn is_held_against_host(code: FaultCode) -> bool {
    matches!(code, FaultCode::DiskFull | FaultCode::Network)
}

/// An instance runs at last: the hosts that could not build it are to blame, those that were not blamed at once too.
pub fn built(writing: &mut Writing<'_>, row: &InstanceRow) {
    let now = writing.context().millis();
    for host in &row.failed_hosts {
        writing.cloud.failed_to_build(*host, row.id, now);
    }
    writing.cloud.was_built(row.id);
}

/// Decides what becomes of an instance whose host said that it cannot build it.
///
/// # Errors
/// When the database fails; then nothing of it may be kept.
pub async fn give_up(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    from: HostId,
    fault: &Fault,
) -> Result<Relocation, ClaimError> {
    // What libvirt refuses may be refused everywhere: it is held against the host once another one has built it.
    if is_held_against_host(fault.code) {
        let now = writing.context().millis();
        writing.cloud.failed_to_build(from, row.id, now);
    }
    if let Some(volume) = root::name(writing, row).await? {
        return Ok(Relocation::Stays {
            why: format!("it boots from volume {volume}, which is on its host"),
        });
    }
    let most = writing.context().config.max_attempts;
    if row.attempt >= most {
        return Ok(Relocation::Stays {
            why: format!("hosts were tried {most} times, which is as often as is allowed"),
        });
    }
    let mut failed_hosts = row.failed_hosts.clone();
    if !failed_hosts.contains(&from) {
        failed_hosts.push(from);
    }
    let wanted = match request(writing, row, &failed_hosts).await {
        Ok((wanted, _)) => wanted,
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
    writing.cloud.undo_to(mark);
    if decided.chosen.is_none() {
        writing.decided(DecisionRow {
            id: DecisionId::new(),
            instance_id: row.id,
            decision: decision::view(&decided, row.attempt.saturating_add(1), writing.now),
        });
        return Ok(Relocation::Stays {
            why: decision::public_text(&decided),
        });
    }
    let placement = Placement {
        attempt: row.attempt,
        failed_hosts: &failed_hosts,
        fault: None,
    };
    instances::set_placement(writing.txn(), row.id, &placement, writing.now).await?;
    let observed = InstanceObserved {
        status: Some(ConvergeStatus::Converging),
        progress: Some(
            "its host cannot build it; it is taken off there and tried elsewhere".to_owned(),
        ),
        fault: Some(fault.clone()),
        ..row.observed.clone()
    };
    instances::set_observed(writing.txn(), row.id, &observed, writing.now).await?;
    writing.cloud.set_building(row.id, true);
    writing.touch_instance(from, row.id);
    tracing::warn!(
        instance = %row.id, name = %row.name, %from, reason = fault.message,
        "a host cannot build an instance; it is taken off there and tried elsewhere"
    );
    Ok(Relocation::Leaves)
}

/// Places an instance of which nothing is left on the host that could not build it.
///
/// # Errors
/// When the database fails; then nothing of it may be kept.
pub async fn move_on(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    from: HostId,
) -> Result<(), ClaimError> {
    let attempt = row.attempt.saturating_add(1);
    let chosen = match request(writing, row, &row.failed_hosts).await {
        Ok((wanted, nat)) => {
            let mark = writing.cloud.mark();
            writing.cloud.unplace(row.id);
            let decided = writing.cloud.decide(&wanted);
            writing.decided(DecisionRow {
                id: DecisionId::new(),
                instance_id: row.id,
                decision: decision::view(&decided, attempt, writing.now),
            });
            match &decided.chosen {
                Some(chosen) => {
                    for network in &nat {
                        writing.cloud.hold_nat(chosen.host_id, network);
                    }
                    Ok((chosen.host_id, wanted.demand()))
                }
                None => {
                    writing.cloud.undo_to(mark);
                    Err(decision::public_text(&decided))
                }
            }
        }
        Err(ClaimError::Refused(refusal)) => Err(refusal.message),
        Err(error) => return Err(error),
    };
    match chosen {
        Ok((to, demand)) => settle_on(writing, row, from, to, demand, attempt).await,
        Err(why) => go_back(writing, row, from, attempt, &why).await,
    }
}

/// It lies on another host now.
async fn settle_on(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    from: HostId,
    to: HostId,
    demand: place::Demand,
    attempt: u32,
) -> Result<(), ClaimError> {
    let (txn, id) = (writing.txn(), row.id);
    claims::delete_of_instance(txn, id).await?;
    claims::insert_many(txn, &[create::claim_row(row, to)]).await?;
    let placement = Placement {
        attempt,
        failed_hosts: &row.failed_hosts,
        fault: None,
    };
    instances::set_placement(txn, id, &placement, writing.now).await?;
    // What the failed host said of it says nothing of it on the next.
    instances::set_observed(txn, id, &InstanceObserved::default(), writing.now).await?;
    let networks = networks_of(txn, id).await?;
    writing.cloud.place(
        id,
        Placed {
            host: to,
            demand,
            group: row.server_group_id,
            building: true,
        },
    );
    for host in [from, to] {
        writing.touch_instance(host, id);
        for network in &networks {
            writing.touch_network(host, *network);
        }
    }
    for network in networks {
        writing.touch_members(network);
    }
    writing.context().metrics.relocated();
    tracing::info!(instance = %id, name = %row.name, %from, %to, attempt, "an instance has another host");
    Ok(())
}

/// The other hosts filled up meanwhile: the one that failed is asked once more.
async fn go_back(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    to: HostId,
    attempt: u32,
    why: &str,
) -> Result<(), ClaimError> {
    let failed_hosts: Vec<HostId> = row
        .failed_hosts
        .iter()
        .copied()
        .filter(|host| *host != to)
        .collect();
    let placement = Placement {
        attempt,
        failed_hosts: &failed_hosts,
        fault: None,
    };
    instances::set_placement(writing.txn(), row.id, &placement, writing.now).await?;
    writing.touch_instance(to, row.id);
    tracing::warn!(instance = %row.id, name = %row.name, host = %to, attempt, why, "no other host is left; the same is asked again");
    Ok(())
}

/// The request of an instance, asked again without the hosts that failed, and the `nat` networks that its host gets.
async fn request(
    writing: &Writing<'_>,
    row: &InstanceRow,
    failed_hosts: &[HostId],
) -> Result<(place::Request, Vec<NetworkRow>), ClaimError> {
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
    let ports = ports::of_instances(writing.txn(), &[row.id]).await?;
    let ids: Vec<NetworkId> = ports.iter().map(|port| port.network_id).collect();
    let planned = Planned {
        networks: berth_store::networks::of_ids(writing.txn(), &ids).await?,
        given: BTreeSet::new(),
        ports,
    };
    let mut joined = Joined::default();
    let wanted = &mut resolved.request;
    let nat = planned
        .demand(writing.txn(), &writing.cloud, &mut joined, wanted)
        .await?;
    // It is a member of its group on the host it leaves.
    if let Some(group) = &mut resolved.request.group
        && let Some(placed) = writing.cloud.placed(row.id)
        && let Some(count) = group.members.get_mut(&placed.host)
    {
        *count = count.saturating_sub(1);
    }
    Ok((resolved.request, nat))
}
