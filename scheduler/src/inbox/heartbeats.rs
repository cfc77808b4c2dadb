//! Queue `scheduler.heartbeats`: what hosts are, have and use.

use std::{sync::Arc, time::Instant};

use berth_common::{
    bus::{BusError, QueueDecl},
    message::heartbeat::{HEARTBEAT_TYPE, HEARTBEAT_VERSION, Heartbeat},
    telemetry::error_chain,
};
use berth_store::{StoreError, UniqueWhat, documents, hosts};
use chrono::Utc;
use tokio_util::sync::CancellationToken;

use super::{decode, next};
use crate::{claim::ClaimError, context::Context};

/// Heartbeats taken off the queue and not yet noted.
const PREFETCH: u16 = 256;

/// Notes heartbeats until cancelled.
///
/// # Errors
/// When the queue exists with other arguments.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) -> Result<(), BusError> {
    let mut consumer = context
        .bus
        .consume(&QueueDecl::heartbeats(), PREFETCH)
        .await?;
    while let Some(delivery) = next(&mut consumer, &cancel).await {
        let heartbeat: Heartbeat = match decode(&delivery, HEARTBEAT_TYPE, HEARTBEAT_VERSION) {
            Ok(heartbeat) => heartbeat,
            Err(reason) => {
                tracing::warn!(reason, "unusable heartbeat");
                context.metrics.dead("scheduler.heartbeats");
                delivery.dead(&reason).await;
                continue;
            }
        };
        context.metrics.heartbeat();
        // Not tried again: the next heartbeat says it all anew.
        if let Err(error) = note(&context, &heartbeat).await {
            tracing::error!(host = %heartbeat.host, error = %error_chain(&error), "a heartbeat could not be written down");
        }
        delivery.ack().await;
    }
    Ok(())
}

/// Notes one heartbeat; writes its facts when they changed.
async fn note(context: &Context, heartbeat: &Heartbeat) -> Result<(), ClaimError> {
    if context.liveness(|liveness| liveness.needs_writing(heartbeat, Instant::now())) {
        match write(context, heartbeat).await {
            Err(ClaimError::Store(StoreError::Unique {
                constraint: UniqueWhat::HostName,
                ..
            })) => {
                context.metrics.host_conflict();
                tracing::error!(
                    host = %heartbeat.host, host_id = %heartbeat.host_id,
                    "another host has this name; this one gets nothing until it is renamed"
                );
                return Ok(());
            }
            other => other?,
        }
        context.liveness(|liveness| liveness.written(heartbeat, Instant::now()));
    }
    context.liveness(|liveness| liveness.note(heartbeat, Instant::now()));
    Ok(())
}

async fn write(context: &Context, heartbeat: &Heartbeat) -> Result<(), ClaimError> {
    let writing = context.begin().await?;
    let before = hosts::get(&writing.txn, heartbeat.host_id).await?;
    hosts::upsert_heartbeat(&writing.txn, heartbeat, Utc::now()).await?;
    // The agent of a new session may have lost its journal: everything is told again.
    let new_session = before
        .as_ref()
        .is_some_and(|row| row.session < heartbeat.session);
    if new_session {
        documents::make_all_due(&writing.txn, heartbeat.host_id).await?;
    }
    writing.commit().await?;
    if before.is_none() {
        tracing::info!(host = %heartbeat.host, host_id = %heartbeat.host_id, "a new host");
    } else if new_session {
        tracing::info!(host = %heartbeat.host, session = heartbeat.session, "the agent of a host has started anew");
        context.dispatch.notify_one();
    }
    Ok(())
}
