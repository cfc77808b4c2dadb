//! Takes questions off `ask.<host>` and answers whoever asked. Nothing is written down, and nothing of the engine is
//! used: a guest or a libvirt that hangs holds up its own questions, for as long as their askers wait, and nothing else.
//!
//! ```text
//!   delivery ─▶ decode ─▶ place, of some ─▶ seat, of a few ─▶ journal ─▶ inspect ─▶ answer to `reply_to` ─▶ acknowledge
//!                │          │ none            │ none in time    │ not here │ too late
//!                ▼          └─────────────────┴─────────────────┴──────────┴────────▶ refusal
//!            `berth.dead`, and a refusal
//! ```
//!
//! A question is answered once or not at all: one that was delivered before is dropped, since whoever asked asks again.

mod answer;

use std::{sync::Arc, time::Duration};

use berth_common::{
    bus::{Bus, BusError, Consumer, Delivery, Message, PublishError, QueueDecl, Target},
    ids::HostId,
    message::{
        app,
        question::{MAX_PATIENCE, QUESTION_TYPE, QUESTION_VERSION, Question},
        request::Reply,
        understands,
    },
    names::HostName,
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
};
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{act::inspect::Inspect, inbox::journal::Journal, metrics::AgentMetrics};

/// Questions taken off the queue and not yet answered: so many that those for which there is no place are refused before
/// any waits at the broker.
const PREFETCH: u16 = 64;
/// Questions that are worked on, or wait for it.
const PLACES: usize = 32;
/// Questions that are worked on at once.
const SEATS: usize = 8;
/// Pause before the queue is tried again that exists with other arguments.
const QUEUE_PAUSE: Duration = Duration::from_secs(10);
/// How much later than its limit a question is given up that should have ended by itself.
const GRACE: Duration = Duration::from_millis(250);

/// Everything that answering needs.
pub struct Answerer {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// Which instances are here.
    pub journal: Arc<Journal>,
    /// Who looks at guests.
    pub inspect: Arc<dyn Inspect>,
    /// Figures.
    pub metrics: AgentMetrics,
}

/// What became of a question, for figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered,
    /// It was refused: there is no such instance here, it is off, the answer is too large.
    Refused,
    /// It could not be found out.
    Failed,
    /// It was refused, because so many others are worked on.
    Busy,
    /// Whoever asked waited in vain.
    Expired,
    /// Nobody could use it.
    Unusable,
}

impl Outcome {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Busy => "busy",
            Self::Expired => "expired",
            Self::Unusable => "unusable",
        }
    }
}

/// A question at work.
struct Work {
    answerer: Answerer,
    places: Semaphore,
    seats: Semaphore,
}

impl Answerer {
    /// Answers until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let Some(mut consumer) = self.subscribe(&cancel).await else {
            return;
        };
        let work = Arc::new(Work {
            answerer: self,
            places: Semaphore::new(PLACES),
            seats: Semaphore::new(SEATS),
        });
        let mut running = JoinSet::new();
        loop {
            let delivery = tokio::select! {
                () = cancel.cancelled() => return,
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        // Its delivery comes back, and is dropped then.
                        tracing::error!(%error, "answering a question failed");
                    }
                    continue;
                }
                delivery = consumer.next() => delivery,
            };
            let Some(delivery) = delivery else { return };
            // The broker hands out no more than PREFETCH at once.
            running.spawn(Arc::clone(&work).take(delivery, Instant::now()));
        }
    }

    /// Waits for the queue, however long an operator takes to mend one that is not as it should be.
    async fn subscribe(&self, cancel: &CancellationToken) -> Option<Consumer> {
        let queue = QueueDecl::ask(self.host.as_str());
        loop {
            match self.bus.consume(&queue, PREFETCH).await {
                Ok(consumer) => return Some(consumer),
                Err(BusError::Closed) => return None,
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "no questions can be taken; trying again");
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = sleep(QUEUE_PAUSE) => {}
            }
        }
    }

    /// Sends an answer to whoever asked, if anybody still waits.
    async fn send(&self, asked: &Message, method: &str, result: Result<Value, Refusal>) {
        let Some(reply_to) = &asked.reply_to else {
            return;
        };
        let publish = async |result| {
            let method = format!("{method}.reply");
            match Message::reply(asked, method, 1, app::AGENT, &Reply::<Value>::from(result)) {
                Ok(message) => {
                    let to = Target::queue(reply_to.clone());
                    self.bus.publish(to, message).await
                }
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "an answer could not be written");
                    Ok(())
                }
            }
        };
        let mut sent = publish(result).await;
        if let Err(PublishError::TooLarge { bytes, limit }) = sent {
            let text =
                format!("the answer would have {bytes} bytes, and a message has at most {limit}");
            sent = publish(Err(Refusal::new(RefusalCode::TooLarge, text))).await;
        }
        match sent {
            Ok(()) => {}
            Err(PublishError::Unroutable { .. }) => {
                tracing::debug!(method, "nobody waits for an answer any more");
            }
            Err(error) => {
                tracing::warn!(method, error = %error_chain(&error), "an answer was not sent");
            }
        }
    }
}

impl Work {
    async fn take(self: Arc<Self>, delivery: Delivery, taken: Instant) {
        let answerer = &self.answerer;
        let question = match decode(&delivery, answerer.host_id) {
            Ok(question) => question,
            Err(refusal) => {
                tracing::warn!(
                    reason = %refusal, sender = %delivery.message.app_id.escape_debug(),
                    message_id = %delivery.message.id.escape_debug(), "unusable question"
                );
                answerer.metrics.question("unknown", Outcome::Unusable);
                answerer.metrics.dead();
                answerer
                    .send(&delivery.message, QUESTION_TYPE, Err(refusal.clone()))
                    .await;
                delivery.dead(&refusal.message).await;
                return;
            }
        };
        let kind = question.ask.kind();
        if delivery.redelivered {
            answerer.metrics.question(kind, Outcome::Expired);
            delivery.ack().await;
            return;
        }
        // So that whoever asked hears what is wrong, and does not just wait in vain.
        let patience = Duration::from_millis(question.patience_ms).min(MAX_PATIENCE);
        let deadline = taken + patience - patience / 5;
        let (result, outcome) = self.answer(&question, deadline).await;
        answerer.metrics.question(kind, outcome);
        answerer
            .send(&delivery.message, question.ask.method(), result)
            .await;
        delivery.ack().await;
    }

    /// The answer, or why there is none, within the deadline.
    async fn answer(
        &self,
        question: &Question,
        deadline: Instant,
    ) -> (Result<Value, Refusal>, Outcome) {
        let unavailable = |text| Err(Refusal::new(RefusalCode::Unavailable, text));
        let host = &self.answerer.host;
        let Ok(_place) = self.places.try_acquire() else {
            let text =
                format!("hypervisor {host} is busy with {PLACES} other questions; ask again");
            return (unavailable(text), Outcome::Busy);
        };
        let late = || {
            let text = format!("hypervisor {host} could not answer in time; ask again");
            (unavailable(text), Outcome::Expired)
        };
        let Ok(Ok(_seat)) = timeout_at(deadline, self.seats.acquire()).await else {
            return late();
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        let answer = answer::answer(&self.answerer, question, limit);
        match timeout_at(deadline + GRACE, answer).await {
            Ok(Ok(value)) => (Ok(value), Outcome::Answered),
            Ok(Err(refusal)) => {
                let outcome = match refusal.code {
                    RefusalCode::Unavailable | RefusalCode::Internal => Outcome::Failed,
                    _ => Outcome::Refused,
                };
                (Err(refusal), outcome)
            }
            Err(_) => late(),
        }
    }
}

/// Reads a question that this agent may answer.
fn decode(delivery: &Delivery, host: HostId) -> Result<Question, Refusal> {
    let malformed = |text: String| Refusal::new(RefusalCode::Malformed, text);
    if let Some(unfit) = delivery.unfit() {
        return Err(malformed(unfit.to_string()));
    }
    let message = &delivery.message;
    if message.method != QUESTION_TYPE {
        let got: String = message.method.chars().take(80).collect();
        return Err(malformed(format!(
            "property `type` must be {QUESTION_TYPE:?} on this queue; got {got:?}"
        )));
    }
    let version = message.version.unwrap_or_default();
    if !understands(QUESTION_VERSION, version) {
        return Err(Refusal::new(
            RefusalCode::UnsupportedVersion,
            format!(
                "header `x-berth-version` must be at most {QUESTION_VERSION} for questions; got {version}: the \
                 hypervisor's agent is older than the scheduler"
            ),
        ));
    }
    let question: Question = message
        .decode()
        .map_err(|error| malformed(format!("the body is no question: {}", error_chain(&error))))?;
    if question.host_id != host {
        return Err(Refusal::new(
            RefusalCode::Unavailable,
            format!(
                "the question is for host {}, and this host is {host}: two hosts have the same name",
                question.host_id
            ),
        ));
    }
    Ok(question)
}
