//! Who of several schedulers is the one that decides.
//!
//! ```text
//!  standing by ── a message of queue `scheduler` comes ──▶ taking over ── epoch + 1, rows read ──▶ leading
//!                                                                                                    │
//!                        ends (systemd starts it anew, standing by) ◀── a later epoch took over, ────┘
//!                                                                        or it gives way
//! ```
//!
//! The broker elects: of the consumers of queue `scheduler` only one gets messages (single active consumer), and when
//! that one's connection ends, or says nothing for two heartbeats, the next does. A scheduler that stands by sends
//! itself a probe now and then, so that it learns of its turn without waiting for a client. The epoch in the database
//! fences: a leader that was frozen, or cut off, cannot commit once another took over, whatever it believes.
//!
//! The broker does not know who reaches the database. One that stands by and does shows it, by consuming queue
//! `scheduler.standby`, to which no message ever comes. A leader that has lost its database for long gives way while
//! somebody does; alone it stays, and tells clients why it cannot serve them.

use std::time::Duration;

use berth_common::{
    bus::{
        Bus, Consumer, Delivery, Message, QueueDecl, Target,
        topology::{SCHEDULER, STANDBY},
    },
    message::app,
    telemetry::error_chain,
};
use berth_store::Store;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The `type` of a probe: schedulers send it to themselves, and nobody answers it.
pub const PROBE: &str = "scheduler.probe";
/// How often a scheduler that stands by sends a probe.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often it is asked whether the database answers, by those that stand by and by the one that leads.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long a leader holds on without its database while another scheduler could lead.
const HOLD_ON: Duration = Duration::from_secs(10);

/// Waits until it is this scheduler's turn: until the first message comes, which is still to be served. `None` when the
/// service ends.
pub async fn wait(
    bus: &dyn Bus,
    store: &Store,
    consumer: &mut Consumer,
    cancel: &CancellationToken,
) -> Option<Delivery> {
    tokio::select! {
        turn = turn(bus, consumer, cancel) => turn,
        // Ends with the wait, and with it what it shows.
        () = show(bus, store) => None,
    }
}

async fn turn(
    bus: &dyn Bus,
    consumer: &mut Consumer,
    cancel: &CancellationToken,
) -> Option<Delivery> {
    let mut pause = tokio::time::interval(PROBE_EVERY);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return None,
            delivery = consumer.next() => return delivery,
            _ = pause.tick() => probe(bus, cancel).await,
        }
    }
}

/// Shows that this scheduler could lead, as long as its database answers. Never ends.
async fn show(bus: &dyn Bus, store: &Store) {
    let mut shown: Option<Consumer> = None;
    loop {
        let could_lead = store.ping().await.is_ok();
        if !could_lead {
            shown = None;
        } else if shown.is_none() && bus.health().borrow().is_connected() {
            shown = match bus.consume(&QueueDecl::standby(), 1).await {
                Ok(consumer) => Some(consumer),
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "the leader is not told that this scheduler stands by");
                    None
                }
            };
        }
        // A consumer comes back after a lost connection only while somebody waits for what it brings, which is nothing.
        let mut pause = std::pin::pin!(tokio::time::sleep(ASK_EVERY));
        loop {
            let brought = async {
                match &mut shown {
                    Some(consumer) => consumer.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut pause => break,
                brought = brought => match brought {
                    Some(delivery) => drop(delivery.ack().await),
                    // The bus ends, and this with it.
                    None => shown = None,
                },
            }
        }
    }
}

/// Waits until this scheduler, whose turn it is, should leave it to another one: its database has not answered for long,
/// and another one could lead. Answers for how long.
pub async fn gives_way(bus: &dyn Bus, store: &Store) -> Duration {
    let mut lost: Option<Instant> = None;
    loop {
        let asked = Instant::now();
        lost = match store.ping().await {
            Ok(()) => None,
            Err(_) => lost.or(Some(asked)),
        };
        if let Some(silence) = lost.map(|lost| lost.elapsed())
            && silence >= HOLD_ON
            && matches!(bus.consumer_count(STANDBY).await, Ok(Some(1..)))
        {
            return silence;
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Sends a probe, unless something waits in the queue already, which will do as well: while nobody serves it, probes do
/// not pile up. One that expired would end in `berth.dead`. Without a broker there is nothing to be elected by, so that
/// it fails does not matter.
async fn probe(bus: &dyn Bus, cancel: &CancellationToken) {
    if !bus.health().borrow().is_connected() {
        return;
    }
    let depth = tokio::select! {
        () = cancel.cancelled() => return,
        depth = bus.queue_depth(SCHEDULER) => depth,
    };
    if matches!(depth, Ok(Some(1..))) {
        return;
    }
    let message = match Message::new(PROBE, 1, app::SCHEDULER, &json!({})) {
        Ok(message) => message,
        Err(error) => {
            tracing::error!(error = %error_chain(&error), "a probe could not be written");
            return;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        sent = bus.publish(Target::queue(SCHEDULER), message) => if let Err(error) = sent {
            tracing::debug!(error = %error_chain(&error), "a probe was not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::bus::{LocalBroker, QueueDecl};

    #[tokio::test]
    async fn probes_that_nobody_serves_neither_pile_up_nor_expire() {
        let bus = LocalBroker::new(1).connect();
        bus.declare(&QueueDecl::scheduler()).await.unwrap();
        let cancel = CancellationToken::new();
        for _ in 0..3 {
            probe(&bus, &cancel).await;
        }
        assert_eq!(bus.queue_depth(SCHEDULER).await.unwrap(), Some(1));
        let mut consumer = bus.consume(&QueueDecl::scheduler(), 1).await.unwrap();
        let delivery = consumer.next().await.unwrap();
        assert_eq!(delivery.message.method, PROBE);
        assert_eq!(delivery.message.expiration, None);
    }
}
