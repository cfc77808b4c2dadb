//! Queue `scheduler.heartbeats`: what hosts are, have and use.

use std::{sync::Arc, time::Instant};

use berth_common::{
    bus::{BusError, QueueDecl, compute_queue},
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
    let now = Instant::now();
    let host = heartbeat.host_id;
    let (age, needs_writing) = context.liveness(|liveness| {
        (
            liveness.note(heartbeat, now),
            liveness.needs_writing(heartbeat, now),
        )
    });
    let is_back = age.is_none_or(|age| age > context.config.heartbeat_timeout);
    if !needs_writing && !is_back {
        return Ok(());
    }
    match write(context, heartbeat, is_back).await {
        Err(ClaimError::Store(StoreError::Unique {
            constraint: UniqueWhat::HostName,
            ..
        })) => {
            context.metrics.host_conflict();
            if context.liveness(|liveness| liveness.conflicts(host)) {
                tracing::error!(
                    host = %heartbeat.host, host_id = %host,
                    "another host has this name; this one gets nothing until it is renamed"
                );
            }
            Ok(())
        }
        other => {
            other?;
            context.liveness(|liveness| liveness.written(heartbeat, now));
            Ok(())
        }
    }
}

/// Writes the facts of a host. One whose agent started anew, or that was silent for long, or has another name now, is
/// told everything again: it may have lost it.
async fn write(context: &Context, heartbeat: &Heartbeat, is_back: bool) -> Result<(), ClaimError> {
    let writing = context.begin().await?;
    let before = hosts::get(&writing.txn, heartbeat.host_id).await?;
    hosts::upsert_heartbeat(&writing.txn, heartbeat, Utc::now()).await?;
    let new_session = before
        .as_ref()
        .is_some_and(|row| row.session < heartbeat.session);
    let old_name = before
        .as_ref()
        .map(|row| &row.name)
        .filter(|name| **name != heartbeat.host);
    let told_again = before.is_some() && (new_session || is_back || old_name.is_some());
    if told_again {
        documents::make_all_due(&writing.txn, heartbeat.host_id).await?;
    }
    writing.commit().await?;

    let (host, host_id) = (&heartbeat.host, heartbeat.host_id);
    if before.is_none() {
        tracing::info!(%host, %host_id, "a new host");
    } else if new_session {
        tracing::info!(%host, session = heartbeat.session, "the agent of a host has started anew");
    } else if is_back {
        tracing::info!(%host, "a host is heard of again");
    }
    if let Some(old) = old_name {
        tracing::warn!(%host, %old, %host_id, "a host has a new name; what waits under its old one is told anew");
        if let Err(error) = context.bus.delete_queue(&compute_queue(old.as_str())).await {
            tracing::warn!(%old, error = %error_chain(&error), "the queue of a host's old name is left");
        }
    }
    if told_again {
        context.dispatch.notify_one();
    }
    Ok(())
}
