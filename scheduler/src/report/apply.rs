//! Writes down what hosts observed. Observation never changes what is wanted: it has columns of its own.

use std::collections::BTreeSet;

use berth_common::{
    document::Kind,
    ids::{HostId, InstanceId},
    message::report::{ConvergeStatus, Report, ResourceReport},
};
use berth_store::{
    Txn, documents,
    documents::DocumentRow,
    instances::{self, InstanceObserved},
};
use chrono::{DateTime, Utc};

use super::order::Stamp;
use crate::{
    claim::{ClaimError, refresh},
    context::Context,
};

/// Writes one report down, in one transaction.
///
/// # Errors
/// When the database fails; then nothing of the report was written.
pub async fn report(context: &Context, report: &Report) -> Result<(), ClaimError> {
    let now = Utc::now();
    let stamp = Stamp {
        session: report.session,
        sequence: report.sequence,
    };
    let newest: Vec<&ResourceReport> = context.order(|order| {
        let fresh =
            |resource: &&ResourceReport| !order.is_late(report.host_id, resource.key, stamp);
        report.resources.iter().filter(fresh).collect()
    });
    let writing = context.begin().await?;
    let mut known = Vec::new();
    let mut gone = false;
    for resource in newest {
        let applied = apply(&writing.txn, report.host_id, resource, now).await?;
        gone |= applied == Applied::Gone;
        if applied != Applied::Unknown {
            known.push(resource.key);
        }
    }
    if gone {
        refresh(&writing.txn, report.host_id, &BTreeSet::new(), now).await?;
    }
    writing.commit().await?;
    context.order(|order| {
        for key in known {
            order.written(report.host_id, key, stamp);
        }
    });
    context.dispatch.notify_one();
    Ok(())
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
    /// It is written down, and an instance is gone from the host with it.
    Gone,
}

/// Writes the state of one resource down.
async fn apply(
    txn: &Txn,
    host: HostId,
    report: &ResourceReport,
    now: DateTime<Utc>,
) -> Result<Applied, ClaimError> {
    let Some(document) = documents::get(txn, host, report.key).await? else {
        tracing::debug!(%host, resource = %report.key, "a report about a resource this host was never told of");
        return Ok(Applied::Unknown);
    };
    match meaning(&document, report) {
        Meaning::Stale => Ok(Applied::Done),
        Meaning::Absurd => {
            tracing::error!(
                %host, resource = %report.key, told = %document.generation, reported = %report.generation,
                "a host reports a generation that cannot be; its report is ignored"
            );
            Ok(Applied::Done)
        }
        Meaning::Ahead => {
            let renewed = DocumentRow {
                generation: report.generation.next(),
                observed_generation: report.generation,
                changed_at: now,
                attempts: 0,
                next_publish_at: None,
                ..document
            };
            documents::upsert(txn, &renewed).await?;
            Ok(Applied::Done)
        }
        Meaning::Current => {
            documents::mark_observed(txn, host, report.key, report.generation, report.status)
                .await?;
            let id = InstanceId::try_from(report.key.id)
                .ok()
                .filter(|_| report.key.kind == Kind::Instance);
            match (id, report.status, document.spec_json) {
                (None, _, _) => Ok(Applied::Done),
                (Some(id), ConvergeStatus::Gone, None) => {
                    instances::mark_deleted(txn, id, now).await?;
                    tracing::info!(instance = %id, %host, "instance is gone");
                    Ok(Applied::Gone)
                }
                (Some(id), _, _) => {
                    observe(txn, id, report, now).await?;
                    Ok(Applied::Done)
                }
            }
        }
    }
}

async fn observe(
    txn: &Txn,
    id: InstanceId,
    report: &ResourceReport,
    now: DateTime<Utc>,
) -> Result<(), ClaimError> {
    let Some(row) = instances::get(txn, id).await? else {
        return Ok(());
    };
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
    if report.status == ConvergeStatus::Failed
        && row.observed.status != Some(ConvergeStatus::Failed)
    {
        let reason = report
            .fault
            .as_ref()
            .map_or("", |fault| fault.message.as_str());
        tracing::warn!(instance = %id, reason, "instance is in error");
    }
    instances::set_observed(txn, id, &observed, now).await?;
    Ok(())
}
