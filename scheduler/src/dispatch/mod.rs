//! Publishes what hosts have not confirmed, until they confirm it.
//!
//! A document lags while its host has not confirmed its generation. Every lagging document is published when it
//! is due: at once when it changed, then again with growing pauses. Publishing the same document twice is
//! harmless, so nothing here needs to be exact, and a crash anywhere only means one more copy.

pub mod backoff;

use std::{sync::Arc, time::Duration};

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
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Documents taken up in one round.
const BATCH: u32 = 256;
/// Publishes under way at once.
const IN_FLIGHT: usize = 64;
/// How often is looked for documents that became due by time alone.
const TICK: Duration = Duration::from_secs(1);

/// Why a round was cut short.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
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
    let mut connected = false;
    loop {
        // Whatever was under way when the connection broke may be lost (with the whole vhost, even).
        let now_connected = health.borrow_and_update().is_connected();
        let result = if now_connected && !connected {
            renew(&context).await
        } else {
            Ok(())
        };
        connected = now_connected && result.is_ok();
        let result = match result {
            Ok(()) if connected => round(&context).await,
            Ok(()) => Ok(0),
            Err(error) => Err(error),
        };
        match result {
            Ok(0) => {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = context.dispatch.notified() => {}
                    _ = health.changed() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "dispatch failed; trying again");
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(TICK) => {}
                }
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
    documents::make_lagging_due(&writing.txn).await?;
    writing.commit().await?;
    Ok(())
}

/// One round: publishes what is due, and answers how many that were.
async fn round(context: &Context) -> Result<usize, DispatchError> {
    let due = documents::lagging(context.store.pool(), Utc::now(), BATCH).await?;
    context
        .metrics
        .lagging(documents::lag_count(context.store.pool()).await?);
    if due.is_empty() {
        return Ok(0);
    }
    let names = hosts::all(context.store.pool()).await?;
    let name_of = |id: HostId| {
        names
            .iter()
            .find(|host| host.id == id)
            .map(|host| &host.name)
    };
    let results: Vec<(DocumentRow, Result<(), DispatchError>)> = stream::iter(due)
        .map(|row| async {
            let published = match name_of(row.host_id) {
                Some(host) => publish(context, &row, host).await,
                None => Ok(()),
            };
            (row, published)
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    let mut count = 0;
    let mut failed = None;
    let writing = context.begin().await?;
    for (row, result) in results {
        match result {
            Ok(()) => {
                let now = Utc::now();
                let next = now + backoff::pause(context.config.republish_after, row.attempts);
                documents::mark_published(
                    &writing.txn,
                    row.host_id,
                    row.key,
                    row.generation,
                    now,
                    next,
                )
                .await?;
                context.metrics.published(row.key.kind);
                count += 1;
            }
            Err(error) => failed = Some(error),
        }
    }
    writing.commit().await?;
    match failed {
        Some(error) => Err(error),
        None => Ok(count),
    }
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
