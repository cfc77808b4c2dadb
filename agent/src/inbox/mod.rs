//! Takes documents off `compute.<host>`: check, journal on disk, acknowledge, give the engine a hint. In this order,
//! so that a document is never lost and never acted on from memory alone.
//!
//! What nobody could use goes to `berth.dead` with its reason. A disk that cannot be written makes the inbox wait
//! with the document in its hands; the others stay at the broker.

pub mod journal;

use std::{sync::Arc, time::Duration};

use berth_common::{
    bus::{Bus, BusError, Consumer, Delivery, QueueDecl},
    document::{DOCUMENT_VERSION, Document},
    ids::HostId,
    message::catalogue::document_type,
    names::HostName,
    telemetry::{error_chain, health::Component},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::journal::{Journal, Taken};
use crate::{engine::EngineHandle, metrics::AgentMetrics, report::glance::Glances};

/// Documents taken off the queue and not yet journalled.
const PREFETCH: u16 = 32;
/// Pauses while the journal cannot be written.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause before the queue is tried again that exists with other arguments.
const QUEUE_PAUSE: Duration = Duration::from_secs(10);

/// Everything the inbox works with.
pub struct Inbox {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// The documents.
    pub journal: Arc<Journal>,
    /// Who acts on them.
    pub engine: EngineHandle,
    /// Where others see that the journal cannot be written.
    pub glances: Glances,
    /// Figures.
    pub metrics: AgentMetrics,
    /// Whether the journal can be written.
    pub health: Component,
}

impl Inbox {
    /// Takes documents until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let Some(mut consumer) = self.subscribe(&cancel).await else {
            return;
        };
        loop {
            let delivery = tokio::select! {
                () = cancel.cancelled() => return,
                delivery = consumer.next() => delivery,
            };
            match delivery {
                Some(delivery) => self.take(delivery, &cancel).await,
                None => return,
            }
        }
    }

    /// Waits for the queue, however long an operator takes to mend one that is not as it should be.
    async fn subscribe(&self, cancel: &CancellationToken) -> Option<Consumer> {
        loop {
            match self
                .bus
                .consume(&QueueDecl::compute(self.host.as_str()), PREFETCH)
                .await
            {
                Ok(consumer) => return Some(consumer),
                Err(BusError::Closed) => return None,
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "no documents can be taken; trying again");
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = sleep(QUEUE_PAUSE) => {}
            }
        }
    }

    async fn take(&self, delivery: Delivery, cancel: &CancellationToken) {
        let document = match decode(&delivery, self.host_id) {
            Ok(document) => document,
            Err(reason) => {
                tracing::warn!(
                    reason, sender = %delivery.message.app_id.escape_debug(), message_id = %delivery.message.id.escape_debug(),
                    "unusable document"
                );
                self.metrics.dead();
                delivery.dead(&reason).await;
                return;
            }
        };
        let (key, generation) = (document.key(), document.generation());
        // Dropped without an answer, it goes back to its queue: the agent ends.
        let Some(taken) = self.write_down(document, cancel).await else {
            return;
        };
        delivery.ack().await;
        match taken {
            Taken::New => {
                tracing::info!(resource = %key, generation = generation.0, "document received");
                self.metrics.received("new");
                self.engine.changed(key).await;
            }
            Taken::Same => {
                tracing::debug!(resource = %key, generation = generation.0, "this document is known");
                self.metrics.received("same");
                self.engine.asked(key).await;
            }
            Taken::Older { journalled } => {
                tracing::info!(
                    resource = %key, generation = generation.0, journalled = journalled.0,
                    "a later document is known; this one is ignored"
                );
                self.metrics.received("older");
                self.engine.asked(key).await;
            }
        }
    }

    /// Journals a document, however long the disk stays full; `None` when cancelled.
    async fn write_down(&self, document: Document, cancel: &CancellationToken) -> Option<Taken> {
        let mut pause = FIRST_PAUSE;
        loop {
            let (journal, copy) = (Arc::clone(&self.journal), document.clone());
            let reason = match tokio::task::spawn_blocking(move || journal.put(copy)).await {
                Ok(Ok(taken)) => {
                    self.health.ok();
                    self.glances.update(|glance| glance.journal_error = None);
                    return Some(taken);
                }
                Ok(Err(error)) => error_chain(&error),
                Err(error) => error.to_string(),
            };
            tracing::error!(
                reason,
                pause_seconds = pause.as_secs(),
                "a document could not be journalled; trying again"
            );
            self.health.degraded(reason.clone());
            self.glances
                .update(|glance| glance.journal_error = Some(reason));
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Reads a document that this agent may act on; the error is for people.
fn decode(delivery: &Delivery, host: HostId) -> Result<Document, String> {
    if let Some(unfit) = delivery.unfit() {
        return Err(unfit.to_string());
    }
    let message = &delivery.message;
    if message.version != Some(DOCUMENT_VERSION) {
        let got = message.version.unwrap_or_default();
        return Err(format!(
            "header `x-berth-version` must be {DOCUMENT_VERSION} for documents; got {got}"
        ));
    }
    if !message.method.starts_with("document.") {
        let got: String = message.method.chars().take(80).collect();
        return Err(format!(
            "property `type` must be `document.<kind>`; got {got:?}"
        ));
    }
    let document: Document = message
        .decode()
        .map_err(|error| format!("the body is no document: {}", error_chain(&error)))?;
    let kind = document.key().kind;
    if message.method != document_type(kind) {
        return Err(format!(
            "property `type` is {:?}, but the body is about a resource of kind {kind}",
            message.method
        ));
    }
    if document.host_id() != host {
        return Err(format!(
            "the document is for host {}, and this host is {host}: another host has had this name",
            document.host_id()
        ));
    }
    Ok(document)
}
