//! Writes down what hosts observed. Observation never changes what is wanted: it has columns of its own.

use std::collections::{BTreeMap, HashMap};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{HostId, InstanceId},
    message::report::{ConvergeStatus, Fault, Report, ResourceReport},
    units::Generation,
};
use berth_store::{
    documents::{self, DocumentRow, Observation},
    instances::{self, InstanceObserved, InstanceRow},
};

use super::order::Stamp;
use crate::{
    claim::{
        ClaimError,
        instances::{
            networks_of,
            relocate::{Relocation, built, give_up, is_leaving, move_on},
        },
    },
    context::{Context, Writing},
};

/// Writes reports down, in one transaction.
///
/// # Errors
/// When the database fails; then nothing of them was written.
pub async fn reports(context: &Context, reports: &[Report]) -> Result<(), ClaimError> {
    let mut writing = context.begin().await?;
    let mut order = Vec::new();
    let newest = newest(context, reports);
    let keys: Vec<(HostId, DocumentKey)> = newest
        .iter()
        .map(|(report, resource)| (report.host_id, resource.key))
        .collect();
    let ids: Vec<InstanceId> = newest
        .iter()
        .filter_map(|(_, resource)| instance_id(resource))
        .collect();
    let mut known = Known::read(&writing, &keys, &ids).await?;
    for (report, resource) in newest {
        if apply(&mut writing, &mut known, report.host_id, resource).await? == Applied::Done {
            order.push((report.host_id, resource.key, stamp(report)));
        }
    }
    documents::mark_observed_many(writing.txn(), &known.observations).await?;
    writing.commit().await?;
    context.order(|remembered| {
        for (host, key, stamp) in order {
            remembered.written(host, key, stamp);
        }
    });
    if known.due {
        context.dispatch.wake();
    }
    Ok(())
}

/// What is told of each resource last: older words, in these reports or before them, are left out.
fn newest<'a>(context: &Context, reports: &'a [Report]) -> Vec<(&'a Report, &'a ResourceReport)> {
    let mut newest: BTreeMap<(HostId, DocumentKey), (&Report, &ResourceReport)> = BTreeMap::new();
    context.order(|order| {
        for report in reports {
            for resource in &report.resources {
                let key = (report.host_id, resource.key);
                let later = newest
                    .get(&key)
                    .is_none_or(|(other, _)| stamp(other) <= stamp(report));
                if later && !order.is_late(report.host_id, resource.key, stamp(report)) {
                    newest.insert(key, (report, resource));
                }
            }
        }
    });
    newest.into_values().collect()
}

const fn stamp(report: &Report) -> Stamp {
    Stamp {
        session: report.session,
        sequence: report.sequence,
    }
}

fn instance_id(report: &ResourceReport) -> Option<InstanceId> {
    InstanceId::try_from(report.key.id)
        .ok()
        .filter(|_| report.key.kind == Kind::Instance)
}

/// The rows that reports are about, and what will be written of documents.
struct Known {
    documents: HashMap<(HostId, DocumentKey), DocumentRow>,
    instances: HashMap<InstanceId, InstanceRow>,
    observations: Vec<Observation>,
    /// Whether a document was made due.
    due: bool,
}

impl Known {
    async fn read(
        writing: &Writing<'_>,
        keys: &[(HostId, DocumentKey)],
        ids: &[InstanceId],
    ) -> Result<Self, ClaimError> {
        let documents = documents::of_host_resources(writing.txn(), keys).await?;
        let instances = instances::of_ids(writing.txn(), ids).await?;
        Ok(Self {
            documents: documents
                .into_iter()
                .map(|row| ((row.host_id, row.key), row))
                .collect(),
            instances: instances.into_iter().map(|row| (row.id, row)).collect(),
            observations: Vec::new(),
            due: false,
        })
    }
}

/// What a report means for the document it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It is about an older generation: the newer one is on its way.
    Stale,
    /// It is about the generation that is wanted.
    Current,
    /// The host knows a later generation than this database: it was set back. The wish is renewed above it.
    Ahead,
    /// No database was ever set back that far.
    Absurd,
}

/// How far a host may be ahead: a generation is a change of one resource, made by somebody.
const MAX_AHEAD: u64 = 1_000_000;

fn meaning(document: &DocumentRow, report: &ResourceReport) -> Meaning {
    match report.generation.cmp(&document.generation) {
        std::cmp::Ordering::Less => Meaning::Stale,
        std::cmp::Ordering::Equal => Meaning::Current,
        std::cmp::Ordering::Greater if report.generation.0 - document.generation.0 > MAX_AHEAD => {
            Meaning::Absurd
        }
        std::cmp::Ordering::Greater => Meaning::Ahead,
    }
}

/// What became of a report about one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    /// This host was never told of it.
    Unknown,
    /// It is written down, or nothing was to be written.
    Done,
}

/// Writes the state of one resource down.
async fn apply(
    writing: &mut Writing<'_>,
    known: &mut Known,
    host: HostId,
    report: &ResourceReport,
) -> Result<Applied, ClaimError> {
    let Some(document) = known.documents.remove(&(host, report.key)) else {
        return strayed(writing, known, host, report).await;
    };
    match meaning(&document, report) {
        Meaning::Stale => {}
        Meaning::Absurd => {
            tracing::error!(
                %host, resource = %report.key, told = %document.generation, reported = %report.generation,
                "a host reports a generation that cannot be; its report is ignored"
            );
        }
        Meaning::Ahead => {
            let renewed = DocumentRow {
                generation: report.generation.next(),
                observed_generation: report.generation,
                changed_at: writing.now,
                attempts: 0,
                next_publish_at: None,
                ..document
            };
            documents::upsert(writing.txn(), &renewed).await?;
            known.due = true;
        }
        Meaning::Current => {
            known.observations.push(Observation {
                host_id: host,
                key: report.key,
                generation: report.generation,
                status: report.status,
            });
            let row = instance_id(report).and_then(|id| known.instances.get(&id).cloned());
            if let Some(row) = row {
                observe(writing, host, &row, report, document.spec_json.is_none()).await?;
            }
        }
    }
    Ok(Applied::Done)
}

/// A host speaks of something it was not told of, as far as the database knows: the host was forgotten and is back, or
/// the database was set back. An instance that shall not be there is ended; what nobody knows is left alone.
async fn strayed(
    writing: &mut Writing<'_>,
    known: &mut Known,
    host: HostId,
    report: &ResourceReport,
) -> Result<Applied, ClaimError> {
    let row = instance_id(report).and_then(|id| known.instances.get(&id));
    let lies_here = |row: &InstanceRow| {
        writing
            .cloud
            .placed(row.id)
            .is_some_and(|placed| placed.host == host)
    };
    let shall_go = row.is_some_and(|row| !lies_here(row));
    let is_host = writing.cloud.table().host(host).is_some();
    if !shall_go || !is_host || report.status == ConvergeStatus::Gone {
        tracing::debug!(%host, resource = %report.key, "a report about a resource this host was never told of");
        return Ok(Applied::Unknown);
    }
    tracing::warn!(%host, resource = %report.key, "a host has an instance that shall not be there; it is ended there");
    let tombstone = DocumentRow {
        host_id: host,
        key: report.key,
        generation: report.generation.next(),
        spec_json: None,
        observed_generation: report.generation,
        observed_status: Some(report.status),
        changed_at: writing.now,
        published_at: None,
        attempts: 0,
        next_publish_at: None,
    };
    documents::upsert(writing.txn(), &tombstone).await?;
    known.due = true;
    Ok(Applied::Done)
}

/// Writes down what a host says of an instance. A host speaks for an instance while the instance lies there; of one
/// that has moved on it can only say that it is gone from there.
async fn observe(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &InstanceRow,
    report: &ResourceReport,
    tombstone: bool,
) -> Result<(), ClaimError> {
    let lies_here = writing
        .cloud
        .placed(row.id)
        .is_some_and(|placed| placed.host == host);
    if tombstone && report.status == ConvergeStatus::Gone {
        return gone(writing, host, row, lies_here).await;
    }
    if !lies_here {
        return Ok(());
    }
    let observed = InstanceObserved {
        status: Some(report.status),
        generation: report.generation,
        power_state: report.power_state.unwrap_or(row.observed.power_state),
        reboot_nonce: report.reboot_nonce.or(row.observed.reboot_nonce),
        progress: report.progress.clone(),
        fault: report.fault.clone(),
        was_active: row.observed.was_active || report.status == ConvergeStatus::Converged,
        at: Some(report.observed_at),
    };
    let observed = match &report.fault {
        Some(fault) if report.status == ConvergeStatus::Failed => {
            match failed(writing, host, row, report.generation, fault).await? {
                Some(fault) => InstanceObserved {
                    fault: Some(fault),
                    ..observed
                },
                None => return Ok(()),
            }
        }
        _ => observed,
    };
    if observed.was_active && !row.observed.was_active {
        built(writing, row);
    }
    // As `instances::building` reads it from the rows.
    let building = !observed.was_active && report.status != ConvergeStatus::Failed;
    writing.cloud.set_building(row.id, building);
    let repeated = InstanceObserved {
        at: row.observed.at,
        ..observed.clone()
    };
    if repeated != row.observed {
        instances::set_observed(writing.txn(), row.id, &observed, writing.now).await?;
    }
    Ok(())
}

/// Nothing of an instance is left on a host.
async fn gone(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &InstanceRow,
    lies_here: bool,
) -> Result<(), ClaimError> {
    let networks = networks_of(writing.txn(), row.id).await?;
    if row.desired_deleted && (lies_here || writing.cloud.placed(row.id).is_none()) {
        instances::mark_deleted(writing.txn(), row.id, writing.now).await?;
        writing.cloud.unplace(row.id);
        tracing::info!(instance = %row.id, %host, "instance is gone");
    } else if lies_here && is_leaving(row, host) {
        move_on(writing, row, host).await?;
    }
    for network in networks {
        writing.touch_network(host, network);
    }
    Ok(())
}

/// A host cannot do what an instance's document says. One that was never built may move on: then there is no fault.
async fn failed(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &InstanceRow,
    generation: Generation,
    fault: &Fault,
) -> Result<Option<Fault>, ClaimError> {
    let before = row.observed.fault.as_ref().filter(|_| {
        row.observed.status == Some(ConvergeStatus::Failed) && row.observed.generation == generation
    });
    // The words of the same fault may differ from pass to pass, and have got an end here.
    if let Some(before) = before
        && before.code == fault.code
    {
        return Ok(Some(before.clone()));
    }
    let mut fault = fault.clone();
    let may_move = !row.observed.was_active && !row.desired_deleted && !is_leaving(row, host);
    if fault.code.is_hosts() && may_move {
        match give_up(writing, row, host, &fault).await? {
            Relocation::Leaves => return Ok(None),
            Relocation::Stays { why } => {
                fault.message = format!("{}; it cannot move on: {why}", fault.message);
            }
        }
    }
    tracing::warn!(instance = %row.id, reason = fault.message, "instance is in error");
    Ok(Some(fault))
}
