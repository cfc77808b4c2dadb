//! The bus in one process, for tests and simulations: the same promises as RabbitMQ, kept in
//! memory, with switches for everything that can go wrong.
//!
//! A [`LocalBroker`] stands for the broker; each [`LocalBus`] is one connection to it. The broker
//! can be stopped and started, its vhost deleted and created; a connection can crash, or be cut
//! off and come back; messages can be dropped, doubled, delayed and reordered at random from a
//! seed. Time is tokio's, so tests may pause it.
//!
//! It does no networking and keeps nothing on disk.

mod broker;
mod queue;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{
    Bus, BusError, BusHealth, Consumer, Delivery, MAX_MESSAGE_BYTES, Message, PublishError,
    QueueDecl, ReplyQueue, Settle, Settled, Source, Target,
};
use broker::{ConnectionId, ConsumerId, Published, Shared, Tag, Take};

/// How long a publish waits for a connection.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// What goes wrong with messages on their way into a queue. Probabilities from 0 to 1; the
/// sender gets its confirm in any case.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// The message is lost.
    pub drop: f64,
    /// The message arrives twice.
    pub duplicate: f64,
    /// The message arrives late.
    pub delay: f64,
    /// How late at most.
    pub max_delay: Duration,
    /// The message overtakes others that wait.
    pub reorder: f64,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        drop: 0.0,
        duplicate: 0.0,
        delay: 0.0,
        max_delay: Duration::ZERO,
        reorder: 0.0,
    };
}

/// A broker in this process. Clones are handles to the same broker.
#[derive(Clone)]
pub struct LocalBroker {
    shared: Arc<Shared>,
}

impl fmt::Debug for LocalBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBroker").finish_non_exhaustive()
    }
}

impl LocalBroker {
    /// A running broker without queues. The seed decides what the faults hit.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            shared: Arc::new(Shared::new(seed)),
        }
    }

    /// A new connection.
    #[must_use]
    pub fn connect(&self) -> LocalBus {
        LocalBus {
            shared: Arc::clone(&self.shared),
            id: self.shared.state().connect(),
            publish_timeout: PUBLISH_TIMEOUT,
        }
    }

    /// From now on, this goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.state().faults = faults;
    }

    /// Stops the broker: all connections are lost, transient queues and what they hold are gone.
    pub fn stop(&self) {
        self.shared.state().stop();
        self.shared.changed();
    }

    /// Starts it again; connections that are not cut off come back and declare their queues.
    pub fn start(&self) {
        self.shared.state().start();
        self.shared.changed();
    }

    /// Deletes the vhost: all connections are lost, all queues and messages gone.
    pub fn delete_vhost(&self) {
        self.shared.state().delete_vhost();
        self.shared.changed();
    }

    /// Creates the vhost again, empty; connections come back and declare their queues.
    pub fn create_vhost(&self) {
        self.start();
    }

    /// Ends every connection; they come back at once.
    pub fn crash_connections(&self) {
        self.shared.state().crash_all();
        self.shared.changed();
    }

    /// Puts a message into a queue as a foreign client would: of any size, with any property
    /// missing, without faults. Tells whether there is such a queue.
    #[must_use]
    pub fn inject(&self, queue: &str, message: Message) -> bool {
        let found = self.shared.state().inject(queue, message, Instant::now());
        self.shared.changed();
        found
    }

    /// The names of all queues, private ones included: for leak checks.
    #[must_use]
    pub fn queues(&self) -> Vec<String> {
        self.shared.state().queue_names()
    }
}

/// One connection to a [`LocalBroker`]. Dropping it closes it.
pub struct LocalBus {
    shared: Arc<Shared>,
    id: ConnectionId,
    publish_timeout: Duration,
}

impl fmt::Debug for LocalBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBus")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl LocalBus {
    /// The same connection with another limit on how long a publish waits while cut off.
    #[must_use]
    pub fn with_publish_timeout(mut self, limit: Duration) -> Self {
        self.publish_timeout = limit;
        self
    }

    /// Loses the connection, as a killed process does: what was not settled goes back to its
    /// queues, private queues are gone. It comes back at once.
    pub fn crash(&self) {
        self.shared.state().crash(self.id);
        self.shared.changed();
    }

    /// Cuts the connection off until [`LocalBus::reconnect`].
    pub fn disconnect(&self) {
        self.shared.state().set_cut_off(self.id);
        self.shared.changed();
    }

    /// Ends [`LocalBus::disconnect`].
    pub fn reconnect(&self) {
        self.shared.state().set_joined(self.id);
        self.shared.changed();
    }

    /// Waits until there is a connection.
    async fn live(&self) -> Result<(), BusError> {
        let mut health = self.health();
        let wait = health.wait_for(|h| !matches!(h, BusHealth::Connecting { .. }));
        match timeout(self.publish_timeout, wait).await {
            Ok(Ok(now)) if *now == BusHealth::Closed => Err(BusError::Closed),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(BusError::Closed),
            Err(_) => Err(BusError::Disconnected {
                waited: self.publish_timeout,
                last_error: "the connection is cut off".to_owned(),
            }),
        }
    }
}

impl Drop for LocalBus {
    fn drop(&mut self) {
        self.shared.state().close(self.id);
        self.shared.changed();
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, to: Target, message: Message) -> Result<(), PublishError> {
        let bytes = message.body.len();
        if bytes > MAX_MESSAGE_BYTES {
            return Err(PublishError::TooLarge {
                bytes,
                limit: MAX_MESSAGE_BYTES,
            });
        }
        match self.live().await {
            Ok(()) => {}
            Err(BusError::Disconnected { waited, last_error }) => {
                return Err(PublishError::Disconnected { waited, last_error });
            }
            Err(_) => return Err(PublishError::Closed),
        }
        let published = self.shared.state().publish(&to, message, Instant::now());
        self.shared.changed();
        match published {
            Published::Taken => Ok(()),
            Published::Unroutable => Err(PublishError::Unroutable { target: to }),
            Published::Full => Err(PublishError::Refused { target: to }),
        }
    }

    async fn consume(&self, queue: &QueueDecl, prefetch: u16) -> Result<Consumer, BusError> {
        self.declare(queue).await?;
        let mut source = LocalSource {
            shared: Arc::clone(&self.shared),
            connection: self.id,
            what: What::Queue(queue.clone()),
            prefetch: usize::from(prefetch.max(1)),
            registered: None,
        };
        source.register();
        Ok(Consumer::new(queue.name.clone(), Box::new(source)))
    }

    async fn reply_queue(&self) -> Result<ReplyQueue, BusError> {
        self.shared.state().check_open(self.id)?;
        let (sender, address) = watch::channel(None);
        let mut source = LocalSource {
            shared: Arc::clone(&self.shared),
            connection: self.id,
            what: What::Reply(sender),
            prefetch: usize::MAX,
            registered: None,
        };
        source.register();
        Ok(ReplyQueue {
            address,
            incoming: Consumer::new("(answers)", Box::new(source)),
        })
    }

    async fn declare(&self, queue: &QueueDecl) -> Result<(), BusError> {
        let result = self.shared.state().declare(self.id, queue);
        self.shared.changed();
        result
    }

    async fn delete_queue(&self, name: &str) -> Result<(), BusError> {
        self.live().await?;
        self.shared.state().delete_queue(self.id, name);
        self.shared.changed();
        Ok(())
    }

    async fn queue_depth(&self, name: &str) -> Result<Option<u64>, BusError> {
        self.live().await?;
        let depth = self.shared.state().depth(name, Instant::now());
        Ok(depth.map(|n| u64::try_from(n).unwrap_or(u64::MAX)))
    }

    async fn consumer_count(&self, name: &str) -> Result<Option<u64>, BusError> {
        self.live().await?;
        let count = self.shared.state().consumer_count(name);
        Ok(count.map(|n| u64::try_from(n).unwrap_or(u64::MAX)))
    }

    fn health(&self) -> watch::Receiver<BusHealth> {
        self.shared.state().health(self.id)
    }

    fn epoch(&self) -> watch::Receiver<u64> {
        self.shared.state().epoch(self.id)
    }

    async fn close(&self) {
        self.shared.state().close(self.id);
        self.shared.changed();
    }
}

enum What {
    Queue(QueueDecl),
    Reply(watch::Sender<Option<String>>),
}

/// A consumer as the broker of the moment knows it.
struct Registered {
    consumer: ConsumerId,
    queue: String,
}

struct LocalSource {
    shared: Arc<Shared>,
    connection: ConnectionId,
    what: What,
    prefetch: usize,
    registered: Option<Registered>,
}

impl LocalSource {
    /// Subscribes if there is a connection and no subscription on it.
    fn register(&mut self) {
        let mut state = self.shared.state();
        if let Some(registered) = &self.registered {
            if state.is_consuming(registered.consumer, &registered.queue) {
                return;
            }
            state.unregister(registered.consumer, &registered.queue);
            self.registered = None;
            if let What::Reply(address) = &self.what {
                address.send_replace(None);
            }
        }
        let name = match &self.what {
            What::Queue(decl) => state
                .declare_live(self.connection, decl)
                .then(|| decl.name.clone()),
            What::Reply(_) => state.declare_reply(self.connection),
        };
        let Some(queue) = name else { return };
        let consumer = state.register(self.connection, &queue);
        if let What::Reply(address) = &self.what {
            address.send_replace(Some(queue.clone()));
        }
        self.registered = Some(Registered { consumer, queue });
    }

    fn take(&mut self) -> Take {
        self.register();
        let mut state = self.shared.state();
        if state.check_open(self.connection).is_err() {
            return Take::Closed;
        }
        match &self.registered {
            Some(r) => state.take(r.consumer, &r.queue, self.prefetch, Instant::now()),
            None => Take::Wait(None),
        }
    }
}

impl Drop for LocalSource {
    fn drop(&mut self) {
        if let Some(registered) = &self.registered {
            self.shared
                .state()
                .unregister(registered.consumer, &registered.queue);
            self.shared.changed();
        }
    }
}

#[async_trait]
impl Source for LocalSource {
    async fn next(&mut self) -> Option<Delivery> {
        let shared = Arc::clone(&self.shared);
        loop {
            // Listening starts before looking, so that no change is missed.
            let mut changes = std::pin::pin!(shared.changes());
            changes.as_mut().enable();
            match self.take() {
                Take::Closed => return None,
                Take::Got(taken) => {
                    let settle = LocalSettle {
                        shared: Arc::clone(&shared),
                        tag: taken.tag,
                    };
                    return Some(Delivery::new(
                        taken.message,
                        taken.redelivered,
                        taken.dead,
                        Box::new(settle),
                    ));
                }
                Take::Wait(None) => changes.await,
                Take::Wait(Some(until)) => {
                    tokio::select! {
                        () = changes => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }
}

struct LocalSettle {
    shared: Arc<Shared>,
    tag: Tag,
}

impl LocalSettle {
    fn settle(&self, how: impl FnOnce(&mut broker::State, Tag) -> bool) -> Settled {
        let known = how(&mut self.shared.state(), self.tag);
        self.shared.changed();
        if known { Settled::Done } else { Settled::Lost }
    }
}

#[async_trait]
impl Settle for LocalSettle {
    async fn ack(self: Box<Self>) -> Settled {
        self.settle(|state, tag| state.ack(tag))
    }

    async fn retry(self: Box<Self>) -> Settled {
        self.settle(|state, tag| state.retry(tag, Instant::now()))
    }

    async fn dead(self: Box<Self>, reason: &str) -> Settled {
        self.settle(|state, tag| state.dead(tag, reason, Instant::now()))
    }

    fn abandon(self: Box<Self>) {
        self.settle(|state, tag| state.retry(tag, Instant::now()));
    }
}
