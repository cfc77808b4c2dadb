//! Queue `scheduler.heartbeats`: what hosts are, have and use.
//!
//! Who is alive is noted at once, in memory. The database is told at once of what is new (a host, a session, a fact),
//! and now and then that nothing is: those wait for one another and share a transaction.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_common::{
    bus::{BusError, QueueDecl, compute_queue},
    ids::HostId,
    message::heartbeat::{HEARTBEAT_TYPE, HEARTBEAT_VERSION, Heartbeat},
    names::HostName,
    telemetry::error_chain,
};
use berth_store::{StoreError, UniqueWhat, documents, hosts, reach};
use tokio::task::JoinError;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{decode, gather, next};
use crate::{
    claim::{self, ClaimError},
    context::{Context, Writing},
    liveness::Urgency,
};

/// Heartbeats taken off the queue and not yet noted.
const PREFETCH: u16 = 256;
/// How long unchanged facts wait for others to share their transaction.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// Notes heartbeats until cancelled.
///
/// # Errors
/// When the queue exists with other arguments.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) -> Result<(), BusError> {
    let mut consumer = context
        .bus
        .consume(&QueueDecl::heartbeats(), PREFETCH)
        .await?;
    let mut waiting: HashMap<HostId, News> = HashMap::new();
    let mut urgent = false;
    let mut flushed = Instant::now();
    // One transaction at a time, and heartbeats are noted meanwhile: it may wait long for an absent database. A task of
    // its own, so that nothing that happens here keeps it from ending its transaction.
    let mut writing: Option<AbortOnDropHandle<Vec<News>>> = None;
    loop {
        let is_time = urgent || flushed.elapsed() >= FLUSH_EVERY;
        if is_time && writing.is_none() && !waiting.is_empty() {
            urgent = false;
            let news: Vec<News> = waiting.drain().map(|(_, news)| news).collect();
            let context = Arc::clone(&context);
            let task = tokio::spawn(async move { write_all(&context, news).await });
            writing = Some(AbortOnDropHandle::new(task));
        }
        let delivery = tokio::select! {
            delivery = next(&mut consumer, &cancel) => delivery,
            later = written(&mut writing) => {
                writing = None;
                flushed = Instant::now();
                for one in later {
                    again(&mut waiting, one);
                }
                continue;
            }
        };
        let Some(delivery) = delivery else { break };
        for delivery in gather(delivery, &mut consumer, PREFETCH) {
            match decode::<Heartbeat>(&delivery, HEARTBEAT_TYPE, HEARTBEAT_VERSION) {
                Ok(heartbeat) => {
                    context.metrics.heartbeat();
                    urgent |= note(&context, heartbeat, &mut waiting);
                    delivery.ack().await;
                }
                Err(reason) => {
                    tracing::warn!(reason, "unusable heartbeat");
                    context.metrics.dead("scheduler.heartbeats");
                    delivery.dead(&reason).await;
                }
            }
        }
    }
    Ok(())
}

/// What the write that is under way could not write down; never, if none is.
async fn written(writing: &mut Option<AbortOnDropHandle<Vec<News>>>) -> Vec<News> {
    match writing {
        None => std::future::pending().await,
        Some(task) => match task.await.map_err(JoinError::try_into_panic) {
            Ok(later) => later,
            // As if it had been written here.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Nobody else could have aborted it.
            Err(Err(_)) => Vec::new(),
        },
    }
}

/// What could not be written waits again; a later word of the same host is the better one.
fn again(waiting: &mut HashMap<HostId, News>, one: News) {
    waiting
        .entry(one.heartbeat.host_id)
        .and_modify(|later| later.is_back |= one.is_back)
        .or_insert(one);
}

/// A heartbeat that the database should know of.
#[derive(Debug)]
struct News {
    heartbeat: Heartbeat,
    /// The host was silent for long, or was never heard of by this scheduler.
    is_back: bool,
}

/// Notes one heartbeat in memory; answers whether the database should know at once.
fn note(context: &Context, heartbeat: Heartbeat, waiting: &mut HashMap<HostId, News>) -> bool {
    let now = Instant::now();
    let host = heartbeat.host_id;
    let (age, urgency) = context.liveness(|liveness| {
        (
            liveness.note(&heartbeat, now),
            liveness.urgency(&heartbeat, now),
        )
    });
    let is_back = age.is_none_or(|age| age > context.config.patience.timeout);
    if !is_back && urgency == Urgency::None {
        return false;
    }
    let before = waiting.remove(&host);
    let is_back = is_back || before.is_some_and(|news| news.is_back);
    waiting.insert(host, News { heartbeat, is_back });
    is_back || urgency == Urgency::AtOnce
}

/// Writes what is new down, together if that can be. Answers what is to be tried again, since the database is out of
/// reach: the next heartbeats would tell the facts anew, but not that their host was silent for long.
async fn write_all(context: &Context, mut news: Vec<News>) -> Vec<News> {
    // A host that was forgotten since is not to come back by its last word.
    context.liveness(|liveness| {
        news.retain(|one| liveness.knows(one.heartbeat.host_id));
    });
    match write(context, &news).await {
        Ok(()) => return Vec::new(),
        Err(ClaimError::Store(error)) if error.retryable() => {
            tracing::warn!(error = %error_chain(&error), "heartbeats are written down later");
            return news;
        }
        // Whose fault it is, shows when each is written by itself.
        Err(_) => {}
    }
    let mut later = Vec::new();
    for one in news {
        let host = &one.heartbeat.host;
        match write(context, std::slice::from_ref(&one)).await {
            Ok(()) => {}
            Err(ClaimError::Store(StoreError::Unique {
                constraint: UniqueWhat::HostName,
                ..
            })) => {
                context.metrics.host_conflict();
                let id = one.heartbeat.host_id;
                if context.liveness(|liveness| liveness.conflicts(id)) {
                    tracing::error!(
                        %host, host_id = %id,
                        "another host has this name; this one gets nothing until it is renamed"
                    );
                }
            }
            Err(ClaimError::Store(error)) if error.retryable() => later.push(one),
            Err(error) => {
                tracing::error!(%host, error = %error_chain(&error), "a heartbeat could not be written down");
            }
        }
    }
    later
}

/// Writes the facts of hosts in one transaction.
async fn write(context: &Context, news: &[News]) -> Result<(), ClaimError> {
    let mut writing = context.begin().await?;
    let mut changes = Vec::new();
    for one in news {
        changes.push(host(&mut writing, one).await?);
    }
    writing.commit().await?;
    let now = Instant::now();
    let mut told_again = false;
    for (one, change) in news.iter().zip(changes) {
        context.liveness(|liveness| liveness.written(&one.heartbeat, now));
        told_again |= change.told_again;
        change.tell(context, one).await;
    }
    if told_again {
        context.dispatch.wake();
    }
    Ok(())
}

/// What a heartbeat changed.
#[derive(Debug)]
struct Change {
    is_new: bool,
    new_session: bool,
    old_name: Option<HostName>,
    told_again: bool,
}

/// Writes the facts of a host. One whose agent started anew, or that was silent for long, or has another name now, is
/// told everything again: it may have lost it.
async fn host(writing: &mut Writing<'_>, news: &News) -> Result<Change, ClaimError> {
    let heartbeat = &news.heartbeat;
    let before = hosts::get(writing.txn(), heartbeat.host_id).await?;
    let row = hosts::upsert_heartbeat(writing.txn(), heartbeat, writing.now).await?;
    claim::hosts::remember(writing, &row);
    let other_tunnel = before
        .as_ref()
        .is_some_and(|before| before.network.tunnel_ip != row.network.tunnel_ip);
    if other_tunnel {
        // Where the others find its ports, and where what it sends by routers comes from.
        for network in reach::spanning_on(writing.txn(), row.id).await? {
            writing.touch_members(network);
        }
    }
    let new_session = before
        .as_ref()
        .is_some_and(|row| row.session < heartbeat.session);
    let is_new = before.is_none();
    let old_name = before
        .map(|row| row.name)
        .filter(|name| *name != heartbeat.host);
    let told_again = !is_new && (new_session || news.is_back || old_name.is_some());
    if new_session || old_name.is_some() {
        documents::make_all_due(writing.txn(), heartbeat.host_id).await?;
    } else if told_again {
        // The same agent has its journal; only what was under way may be lost.
        documents::make_lagging_of_host_due(writing.txn(), heartbeat.host_id).await?;
    }
    Ok(Change {
        is_new,
        new_session,
        old_name,
        told_again,
    })
}

impl Change {
    /// Logs it, and removes the queue of an old name.
    async fn tell(self, context: &Context, news: &News) {
        let Heartbeat { host, host_id, .. } = &news.heartbeat;
        if self.is_new {
            tracing::info!(%host, %host_id, "a new host");
        } else if self.new_session {
            let session = news.heartbeat.session;
            tracing::info!(%host, session, "the agent of a host has started anew");
        } else if news.is_back {
            tracing::info!(%host, "a host is heard of again");
        }
        if let Some(old) = self.old_name {
            tracing::warn!(%host, %old, %host_id, "a host has a new name; what waits under its old one is told anew");
            if let Err(error) = context.bus.delete_queue(&compute_queue(old.as_str())).await {
                tracing::warn!(%old, error = %error_chain(&error), "the queue of a host's old name is left");
            }
        }
    }
}
