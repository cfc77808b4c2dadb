//! The bus: the only way the parts of berth talk to one another.
//!
//! ```text
//!  publish ──▶ Target::Queue(name) ─────────────▶ queue ──▶ Consumer::next ──▶ Delivery
//!          └─▶ Target::Topic{key} ─▶ exchange ─▶ queue         │  ack    done, for good
//!                                      `berth`                 │  retry  again, a bit later
//!                                                              └  dead   to `berth.dead`
//! ```
//!
//! [`Bus`] is implemented over RabbitMQ ([`rabbit`]) and in one process ([`local`]); both pass
//! the same law tests (`common/tests/bus_laws.rs`). The promises:
//!
//! - A publish that returned `Ok` was confirmed by the broker. One that reaches no queue fails
//!   at once. One whose confirm was lost with the connection is sent again, so a message may
//!   arrive **more than once**: receivers are idempotent.
//! - A delivery is redelivered until it is settled. Acknowledge after the journal or the commit,
//!   never before. A delivery dropped unsettled goes back to its queue at once.
//! - A message that no library can read (text that is not UTF-8 in a property) costs the
//!   connection at each delivery until it is dead; other messages are not counted up with it.
//! - A message that came back too often, or that a consumer declares dead, ends in
//!   [`topology::DEAD`] with the reason.
//! - Consumers and publishers outlive any loss of the connection, the broker or its vhost.
//!   Queues are declared again as soon as the broker is back. What was in a deleted vhost is
//!   gone: messages are hints, the database is the truth.
//!
//! This module names no broker library and no concrete request or document.

pub mod local;
pub mod message;
pub mod rabbit;
pub mod rpc;
pub mod topology;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::watch;

pub use local::{Faults, LocalBroker, LocalBus};
pub use message::{DecodeError, EncodeError, MAX_MESSAGE_BYTES, Message, Unfit};
pub use rabbit::{RabbitBus, RabbitConfig};
pub use rpc::{RpcClient, RpcError};
pub use topology::{QueueDecl, ask_queue, compute_queue, heartbeat_key, report_key};

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// One queue, by name (the default exchange).
    Queue(String),
    /// Every queue bound to the topic exchange with a pattern that takes the key.
    Topic {
        /// The routing key, such as `report.<uuid>`.
        key: String,
    },
}

impl Target {
    /// One queue, by name.
    pub fn queue(name: impl Into<String>) -> Self {
        Self::Queue(name.into())
    }

    /// The topic exchange, with a routing key.
    pub fn topic(key: impl Into<String>) -> Self {
        Self::Topic { key: key.into() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue `{name}`"),
            Self::Topic { key } => write!(f, "topic `{key}`"),
        }
    }
}

/// A connection to the bus. Shared as `Arc<dyn Bus>`.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Sends a message and waits until the broker has it.
    ///
    /// Waits a bounded time for a missing connection or a blocked broker. Any number of
    /// publishes may be under way at once.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::retryable`] says which may pass by waiting.
    async fn publish(&self, to: Target, message: Message) -> Result<(), PublishError>;

    /// Declares a queue with what it needs (exchange, binding, dead letter queue) and consumes
    /// it, with at most `prefetch` unsettled deliveries.
    ///
    /// Without a connection it returns at once too: the consumer subscribes when there is one.
    ///
    /// # Errors
    /// [`BusError::Mismatch`] when the queue exists with other arguments, [`BusError::Closed`].
    async fn consume(&self, queue: &QueueDecl, prefetch: u16) -> Result<Consumer, BusError>;

    /// Makes a private queue for answers: exclusive to this connection, gone with it.
    ///
    /// # Errors
    /// [`BusError::Closed`].
    async fn reply_queue(&self) -> Result<ReplyQueue, BusError>;

    /// Declares a queue with what it needs, now or as soon as there is a connection, and again
    /// after every reconnect until [`Bus::delete_queue`].
    ///
    /// # Errors
    /// [`BusError::Mismatch`] when the queue exists with other arguments, [`BusError::Closed`].
    async fn declare(&self, queue: &QueueDecl) -> Result<(), BusError>;

    /// Deletes a queue with all its messages. A queue that is not there is fine.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] after a bounded wait, or what the broker says.
    async fn delete_queue(&self, name: &str) -> Result<(), BusError>;

    /// The number of messages in a queue that wait for a consumer; `None` without such a queue.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] after a bounded wait, or what the broker says.
    async fn queue_depth(&self, name: &str) -> Result<Option<u64>, BusError>;

    /// How many consume a queue of which all consumers share the messages; `None` without such a queue.
    ///
    /// # Errors
    /// As for [`Bus::queue_depth`].
    async fn consumer_count(&self, name: &str) -> Result<Option<u64>, BusError>;

    /// How the connection is, now and as it changes.
    fn health(&self) -> watch::Receiver<BusHealth>;

    /// Counts the connections: 0 before the first, one more with each that is made. A loss and
    /// return that was too quick to be seen in [`Bus::health`] is seen here. A connection counts
    /// before the health says that it is there.
    fn epoch(&self) -> watch::Receiver<u64>;

    /// Ends the connection. Consumers yield `None`, publishes fail with
    /// [`PublishError::Closed`]. Unsettled deliveries go back to their queues.
    async fn close(&self);
}

/// How a connection to the bus is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusHealth {
    /// There is no connection; it is tried again and again.
    Connecting {
        /// Since when there is none.
        since: DateTime<Utc>,
        /// Why the last try failed.
        last_error: Option<String>,
    },
    /// All is well.
    Connected,
    /// Connected, but a queue could not be declared.
    Degraded {
        /// Which queue and what to do, readable.
        reason: String,
    },
    /// Connected, but the broker takes no messages (memory or disk alarm).
    Blocked {
        /// Since when.
        since: DateTime<Utc>,
        /// What the broker says.
        reason: String,
    },
    /// Closed by [`Bus::close`].
    Closed,
}

impl BusHealth {
    /// Whether messages can flow.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match self {
            Self::Connected | Self::Degraded { .. } => true,
            Self::Connecting { .. } | Self::Blocked { .. } | Self::Closed => false,
        }
    }
}

impl fmt::Display for BusHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { since, last_error } => {
                write!(f, "not connected since {}", since.to_rfc3339())?;
                match last_error {
                    Some(error) => write!(f, ": {error}"),
                    None => Ok(()),
                }
            }
            Self::Connected => f.write_str("connected"),
            Self::Degraded { reason } => write!(f, "connected, but {reason}"),
            Self::Blocked { since, reason } => write!(
                f,
                "the broker takes no messages since {}: {reason}",
                since.to_rfc3339()
            ),
            Self::Closed => f.write_str("closed"),
        }
    }
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The body is over [`MAX_MESSAGE_BYTES`]; nothing was sent.
    #[error("a message of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Size of the body in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// No queue takes the message.
    #[error("no queue takes a message to {target}")]
    Unroutable {
        /// Where it should have gone.
        target: Target,
    },
    /// There was no connection, or it went away before the confirm, until the wait ended.
    /// The message may or may not have reached the broker.
    #[error("not connected to the message broker for {} ms: {last_error}", waited.as_millis())]
    Disconnected {
        /// How long was waited.
        waited: Duration,
        /// What went wrong last.
        last_error: String,
    },
    /// The broker did not confirm within the wait. The message may have reached it.
    #[error("the broker did not confirm a message to {target} within {} ms", waited.as_millis())]
    Unconfirmed {
        /// Where it should have gone.
        target: Target,
        /// How long was waited.
        waited: Duration,
    },
    /// The broker takes no messages (memory or disk alarm).
    #[error("the broker takes no messages: {reason}")]
    Blocked {
        /// What the broker says.
        reason: String,
    },
    /// The broker refused the message (a full queue that keeps its oldest, an internal error).
    #[error("the broker refused a message to {target}")]
    Refused {
        /// Where it should have gone.
        target: Target,
    },
    /// The message cannot be put on the wire, such as a name over 255 bytes.
    #[error("a message to {target} cannot be sent: {reason}")]
    Invalid {
        /// Where it should have gone.
        target: Target,
        /// What is wrong with it.
        reason: String,
    },
    /// The bus was closed.
    #[error("the connection to the message broker was closed by this program")]
    Closed,
}

impl PublishError {
    /// Whether the same publish may succeed later without anybody changing the message.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unroutable { .. }
            | Self::Disconnected { .. }
            | Self::Unconfirmed { .. }
            | Self::Blocked { .. }
            | Self::Refused { .. } => true,
            Self::TooLarge { .. } | Self::Invalid { .. } | Self::Closed => false,
        }
    }
}

/// Why an operation on queues failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The queue exists with other arguments than berth declares.
    #[error(
        "queue `{queue}` exists with other arguments ({detail}); stop its consumers, drain it if \
         its messages matter and delete it (`rabbitmqctl delete_queue {queue}`): it is declared \
         again at once"
    )]
    Mismatch {
        /// The queue (or the exchange) that differs.
        queue: String,
        /// What the broker says.
        detail: String,
    },
    /// There was no connection within the wait.
    #[error("not connected to the message broker for {} ms: {last_error}", waited.as_millis())]
    Disconnected {
        /// How long was waited.
        waited: Duration,
        /// What went wrong last.
        last_error: String,
    },
    /// The broker refused the operation.
    #[error("{operation} failed")]
    Broker {
        /// What was tried, with its object.
        operation: String,
        /// What the broker or the connection says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration cannot be used.
    #[error("the broker address cannot be used: {reason}")]
    Config {
        /// What is wrong; never with the password.
        reason: String,
    },
    /// The bus was closed.
    #[error("the connection to the message broker was closed by this program")]
    Closed,
}

/// Where deliveries come from; implemented by each bus.
#[async_trait]
pub trait Source: Send {
    /// The next delivery; `None` when the bus was closed. Cancel safe.
    async fn next(&mut self) -> Option<Delivery>;
}

/// A subscription to one queue.
///
/// Dropping it ends the subscription; what was not yet taken from it goes back to the queue.
pub struct Consumer {
    queue: String,
    source: Box<dyn Source>,
}

impl Consumer {
    pub(crate) fn new(queue: impl Into<String>, source: Box<dyn Source>) -> Self {
        Self {
            queue: queue.into(),
            source,
        }
    }

    /// The next delivery. Waits through any loss of the connection, and yields `None` only when
    /// the bus was closed. Cancel safe: a delivery is not lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.source.next().await
    }

    /// The name of the queue.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// A private queue for answers. Its name changes with every reconnect.
#[derive(Debug)]
pub struct ReplyQueue {
    /// The present name: what goes into `reply_to`. `None` while there is no connection.
    pub address: watch::Receiver<Option<String>>,
    /// The answers. Settle them like any delivery.
    pub incoming: Consumer,
}

/// What became of settling a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is on its way to the broker. Should the connection be lost first, the message will be delivered again.
    Done,
    /// The connection the delivery came by was gone already: the message will be delivered again.
    /// Nothing needs to be done about it; receivers are idempotent.
    Lost,
}

/// How a delivery is settled; implemented by each bus.
#[async_trait]
pub trait Settle: Send {
    /// Removes the message from its queue.
    async fn ack(self: Box<Self>) -> Settled;
    /// Gives the message back to its queue.
    async fn retry(self: Box<Self>) -> Settled;
    /// Copies the message to the dead letter queue, then removes it.
    async fn dead(self: Box<Self>, reason: &str) -> Settled;
    /// Gives the message back without waiting; called when the delivery is dropped.
    fn abandon(self: Box<Self>);
}

/// Why and from where a message got into [`topology::DEAD`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadInfo {
    /// The reason a consumer gave, or the broker's own such as `delivery_limit`.
    pub reason: String,
    /// The queue it was taken from.
    pub queue: String,
}

/// A message that waits to be settled: `ack`, `retry` or `dead`.
///
/// Dropped unsettled (by a panic, an early return) it goes back to its queue at once, which
/// counts towards the delivery limit.
pub struct Delivery {
    /// The message. The body is empty when [`Delivery::unfit`] is [`Unfit::TooLarge`].
    pub message: Message,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// In [`topology::DEAD`]: why it is there.
    pub dead: Option<DeadInfo>,
    oversized: Option<usize>,
    settle: Option<Box<dyn Settle>>,
}

impl Delivery {
    /// Wraps a message for its consumer, holding back a body over the limit.
    pub(crate) fn new(
        mut message: Message,
        redelivered: bool,
        dead: Option<DeadInfo>,
        settle: Box<dyn Settle>,
    ) -> Self {
        let bytes = message.body.len();
        // The dead letter queue is for people, who want to see the body.
        let oversized = (bytes > MAX_MESSAGE_BYTES && dead.is_none()).then_some(bytes);
        if oversized.is_some() {
            message.body = bytes::Bytes::new();
        }
        Self {
            message,
            redelivered,
            dead,
            oversized,
            settle: Some(settle),
        }
    }

    /// What makes the message unusable for any receiver. A consumer asks this first, answers
    /// the sender if it wants an answer, and declares the delivery dead with this text.
    ///
    /// A body over the limit is held back by the bus (it is still copied to the dead letter
    /// queue whole), so that not even a consumer that forgets to ask can be made to read it.
    #[must_use]
    pub fn unfit(&self) -> Option<Unfit> {
        match self.oversized {
            Some(bytes) => Some(Unfit::TooLarge {
                bytes,
                limit: MAX_MESSAGE_BYTES,
            }),
            None => self.message.unfit(),
        }
    }

    /// Removes the message for good. Call it after the journal or the commit.
    pub async fn ack(mut self) -> Settled {
        match self.settle.take() {
            Some(settle) => settle.ack().await,
            None => Settled::Lost,
        }
    }

    /// Gives the message back to be delivered again at once. Counts towards the delivery limit.
    pub async fn retry(mut self) -> Settled {
        match self.settle.take() {
            Some(settle) => settle.retry().await,
            None => Settled::Lost,
        }
    }

    /// Copies the message with all its properties to [`topology::DEAD`], with the reason and the
    /// queue in headers, and removes it from its queue once the copy is confirmed.
    pub async fn dead(mut self, reason: &str) -> Settled {
        match self.settle.take() {
            Some(settle) => settle.dead(reason).await,
            None => Settled::Lost,
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle.abandon();
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("redelivered", &self.redelivered)
            .field("dead", &self.dead)
            .field("oversized", &self.oversized)
            .finish_non_exhaustive()
    }
}
