//! Publishes what hosts have not confirmed, until they confirm it.
//!
//! A document lags while its host has not confirmed its generation. What was just committed is published at once, from
//! memory ([`Fresh`]); every lagging document is published again when it is due, from the database, with growing
//! pauses. Publishing the same document twice is harmless, so nothing here needs to be exact, and a crash anywhere
//! only means one more copy, later.

pub mod backoff;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_common::{
    bus::{Message, PublishError, QueueDecl, Target, compute_queue},
    document::{DOCUMENT_VERSION, DocumentKey},
    ids::HostId,
    message::{app, catalogue::document_type},
    names::HostName,
    telemetry::error_chain,
};
use berth_store::{
    StoreError,
    documents::{self, DocumentRow},
    hosts,
};
use chrono::Utc;
use futures::{StreamExt, stream};
use serde_json::{json, value::RawValue};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{claim::ClaimError, context::Context};

/// Documents taken up in one round.
const BATCH: u32 = 256;
/// Publishes of a round under way at once.
const IN_FLIGHT: usize = 64;
/// Publishes of fresh documents under way at once.
const FRESH_IN_FLIGHT: usize = 512;
/// How often is looked for documents that became due by time alone.
const TICK: Duration = Duration::from_secs(1);

/// Batches of fresh documents that wait to be published; whoever commits more waits.
const FRESH_BATCHES: usize = 64;

/// A document that was just committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Its host.
    pub host: HostName,
    /// The document.
    pub row: DocumentRow,
}

/// Where committed documents are handed in, and the dispatcher woken.
#[derive(Debug)]
pub struct Dispatch {
    wake: Notify,
    fresh: mpsc::Sender<Vec<Publication>>,
}

/// Where the dispatcher takes them out.
#[derive(Debug)]
pub struct Fresh(mpsc::Receiver<Vec<Publication>>);

impl Dispatch {
    /// Both ends.
    #[must_use]
    pub fn new() -> (Self, Fresh) {
        let (sender, receiver) = mpsc::channel(FRESH_BATCHES);
        let dispatch = Self {
            wake: Notify::new(),
            fresh: sender,
        };
        (dispatch, Fresh(receiver))
    }

    /// Hands in what was committed. Waits while too much waits to be published.
    pub async fn send(&self, fresh: Vec<Publication>) {
        if !fresh.is_empty() && self.fresh.send(fresh).await.is_err() {
            // The service ends; what is not published is due again in a while.
            tracing::debug!("fresh documents are published by the next scheduler");
        }
    }

    /// There may be something due in the database.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

/// Publishes what was just committed, until cancelled.
pub async fn run_fresh(context: Arc<Context>, mut fresh: Fresh, cancel: CancellationToken) {
    let documents = stream::poll_fn(|task| fresh.0.poll_recv(task)).flat_map(stream::iter);
    let published = documents
        .map(|publication| {
            let context = &context;
            async move {
                let sent = publish(context, &publication.row, &publication.host).await;
                (publication, sent)
            }
        })
        .buffer_unordered(FRESH_IN_FLIGHT)
        .ready_chunks(FRESH_IN_FLIGHT);
    let mut published = std::pin::pin!(published);
    loop {
        let next = tokio::select! {
            () = cancel.cancelled() => return,
            next = published.next() => next,
        };
        let Some(results) = next else { return };
        let mut failed = Vec::new();
        for (publication, sent) in results {
            match sent {
                Ok(()) => context.metrics.published(publication.row.key.kind),
                Err(error) => {
                    tracing::debug!(host = %publication.host, error = %error_chain(&error), "a document is published later");
                    failed.push((publication.row.host_id, publication.row.key));
                }
            }
        }
        if !failed.is_empty()
            && let Err(error) = make_due(&context, &failed).await
        {
            tracing::warn!(error = %error_chain(&error), "unpublished documents are due only after their pause");
        }
    }
}

/// What was written as published was not.
async fn make_due(
    context: &Context,
    documents: &[(HostId, DocumentKey)],
) -> Result<(), ClaimError> {
    let writing = context.begin().await?;
    documents::make_due(writing.txn(), documents).await?;
    writing.commit().await?;
    context.dispatch.wake();
    Ok(())
}

/// Why a round was cut short.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// What was done could not be written down.
    #[error("what was published could not be written down")]
    Write(#[from] ClaimError),
    /// A stored document is not JSON.
    #[error("the stored document of {key} is not JSON")]
    Corrupt {
        /// The document.
        key: DocumentKey,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The broker did not take it.
    #[error("publishing {key} to {queue} failed")]
    Publish {
        /// The document.
        key: DocumentKey,
        /// Where to.
        queue: String,
        /// Why.
        #[source]
        source: PublishError,
    },
}

/// Publishes until cancelled.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) {
    let mut health = context.bus.health();
    let epoch = context.bus.epoch();
    let mut renewed = None;
    let mut counted: Option<Instant> = None;
    loop {
        health.mark_unchanged();
        let connection = *epoch.borrow();
        let connected = health.borrow().is_connected();
        let result = async {
            // All that lags is counted, which takes its time when much does.
            if counted.is_none_or(|at| at.elapsed() >= TICK) {
                counted = Some(Instant::now());
                let lagging = documents::lag_count(context.store.pool()).await?;
                context.metrics.lagging(lagging);
            }
            if !connected {
                return Ok(0);
            }
            // Whatever was under way when the connection broke may be lost (with the whole vhost, even).
            if renewed != Some(connection) {
                renew(&context).await?;
                renewed = Some(connection);
            }
            round(&context).await
        };
        let pause = match result.await {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "dispatch failed; trying again");
                true
            }
        };
        if pause {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = context.dispatch.wake.notified() => {}
                _ = health.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        if cancel.is_cancelled() {
            return;
        }
    }
}

/// Makes everything that lags due at once.
async fn renew(context: &Context) -> Result<(), DispatchError> {
    let writing = context.begin().await?;
    documents::make_lagging_due(writing.txn()).await?;
    writing.commit().await?;
    Ok(())
}

/// What became of a document in a round.
enum Sent {
    /// The broker has it.
    Published,
    /// Its host is not heard of: it is told everything again when it is back, so its queue need not fill.
    HostIsSilent,
    /// The broker did not take it.
    Failed(DispatchError),
}

/// One round: publishes what is due, and answers how many that were. A document that could not be published waits
/// for its next turn like any other, so that one host's trouble keeps others waiting for no longer than one publish may
/// take.
async fn round(context: &Context) -> Result<usize, DispatchError> {
    let due = documents::lagging(context.store.pool(), Utc::now(), BATCH).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let of: BTreeSet<HostId> = due.iter().map(|row| row.host_id).collect();
    let of: Vec<HostId> = of.into_iter().collect();
    let names: BTreeMap<HostId, HostName> = hosts::names(context.store.pool(), &of).await?;
    let results: Vec<(DocumentRow, Sent)> = stream::iter(due)
        .map(|row| async {
            let sent = match names.get(&row.host_id) {
                Some(host) if context.is_alive(row.host_id) => publish(context, &row, host)
                    .await
                    .map_or_else(Sent::Failed, |()| Sent::Published),
                _ => Sent::HostIsSilent,
            };
            (row, sent)
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    let count = results.len();
    let writing = context.begin().await?;
    let mut failures: BTreeMap<HostId, String> = BTreeMap::new();
    for (row, sent) in results {
        let now = Utc::now();
        let next = now + backoff::pause(context.config.republish_after, row.attempts);
        let (txn, host) = (writing.txn(), row.host_id);
        match sent {
            Sent::Published => {
                context.metrics.published(row.key.kind);
                documents::mark_published(txn, host, row.key, row.generation, now, next).await?;
            }
            Sent::HostIsSilent => {
                documents::mark_failed_publish(txn, host, row.key, row.generation, next).await?;
            }
            Sent::Failed(error) => {
                failures.insert(host, error_chain(&error));
                documents::mark_failed_publish(txn, host, row.key, row.generation, next).await?;
            }
        }
    }
    writing.commit().await?;
    for (host, error) in failures {
        let host = names.get(&host).map_or("?", HostName::as_str);
        tracing::warn!(
            host,
            error,
            "documents could not be published; trying again later"
        );
    }
    Ok(count)
}

async fn publish(
    context: &Context,
    row: &DocumentRow,
    host: &HostName,
) -> Result<(), DispatchError> {
    let queue = compute_queue(host.as_str());
    let message = message(row).map_err(|source| DispatchError::Corrupt {
        key: row.key,
        source,
    })?;
    let target = || Target::queue(queue.clone());
    let published = match context.bus.publish(target(), message.clone()).await {
        Err(PublishError::Unroutable { .. }) => {
            // The vhost was made anew, or the host never declared its queue: declare it and try once more.
            if let Err(error) = context
                .bus
                .declare(&QueueDecl::compute(host.as_str()))
                .await
            {
                tracing::warn!(%host, error = %error_chain(&error), "the queue of a host could not be declared");
            }
            context.bus.publish(target(), message).await
        }
        other => other,
    };
    published.map_err(|source| DispatchError::Publish {
        key: row.key,
        queue,
        source,
    })
}

/// A stored document as the message that is published.
fn message(row: &DocumentRow) -> Result<Message, serde_json::Error> {
    let spec = row
        .spec_json
        .clone()
        .map(RawValue::from_string)
        .transpose()?;
    let body = serde_json::to_vec(&json!({
        "kind": row.key.kind,
        "id": row.key.id,
        "generation": row.generation,
        "host_id": row.host_id,
        "spec": spec,
    }))?;
    Ok(Message::from_json(
        document_type(row.key.kind),
        DOCUMENT_VERSION,
        app::SCHEDULER,
        body,
    ))
}

#[cfg(test)]
mod tests {
    use berth_common::{
        document::{Document, Kind},
        units::Generation,
    };

    use super::*;

    #[test]
    fn what_is_published_reads_back_as_the_document() {
        let row = DocumentRow {
            host_id: HostId::new(),
            key: DocumentKey {
                kind: Kind::Network,
                id: uuid::Uuid::now_v7(),
            },
            generation: Generation(7),
            spec_json: None,
            observed_generation: Generation(6),
            observed_status: None,
            changed_at: Utc::now(),
            published_at: None,
            attempts: 0,
            next_publish_at: None,
        };
        let message = message(&row).unwrap();
        assert_eq!(message.method, "document.network");
        let document: Document = serde_json::from_slice(&message.body).unwrap();
        assert!(document.is_tombstone());
        assert_eq!(
            (document.key(), document.generation(), document.host_id()),
            (row.key, row.generation, row.host_id)
        );
    }
}
