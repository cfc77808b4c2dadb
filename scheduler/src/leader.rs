//! Who of several schedulers is the one that decides.
//!
//! ```text
//!  standing by ── a message of queue `scheduler` comes ──▶ taking over ── epoch + 1, rows read ──▶ leading
//!                                                                                                    │
//!                        ends (systemd starts it anew, standing by) ◀── a later epoch took over ─────┘
//! ```
//!
//! The broker elects: of the consumers of queue `scheduler` only one gets messages (single active consumer), and when
//! that one's connection ends, or says nothing for two heartbeats, the next does. A scheduler that stands by sends
//! itself a probe now and then, so that it learns of its turn without waiting for a client. The epoch in the database
//! fences: a leader that was frozen, or cut off, cannot commit once another took over, whatever it believes.

use std::time::Duration;

use berth_common::{
    bus::{Bus, Consumer, Delivery, Message, Target, topology::SCHEDULER},
    message::app,
    telemetry::error_chain,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The `type` of a probe: schedulers send it to themselves, and nobody answers it.
pub const PROBE: &str = "scheduler.probe";
/// How often a scheduler that stands by sends a probe.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Waits until it is this scheduler's turn: until the first message comes, which is still to be served. `None` when the
/// service ends.
pub async fn wait(
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
