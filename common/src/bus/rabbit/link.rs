//! Keeps the one connection of a bus: connects, declares everything again, notices the end,
//! waits a bit and starts over, until it is told to stop.
//!
//! It publishes nothing and consumes nothing; others ask it for the connection of the moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt};
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::types::LongString;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::super::topology::DELIVERY_LIMIT;
use super::super::{BusError, BusHealth, QueueDecl};
use super::care::Turns;
use super::{RabbitConfig, declare};

/// The first wait after a failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const BACKOFF_LIMIT: Duration = Duration::from_secs(5);
/// How often the connection's own state is looked at, should an event have been missed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a polite goodbye to the broker may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// Connections in a row that may end by something unreadable before the tries get slower: each
/// such message needs as many as its queue's delivery limit.
const UNREADABLE_LIMIT: u32 = 10 * DELIVERY_LIMIT;

/// Waits that double up to a limit, each at random between half and the whole, so that a
/// thousand agents do not come back in the same instant.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self {
            next: BACKOFF_FIRST,
        }
    }

    pub(super) fn reset(&mut self) {
        self.next = BACKOFF_FIRST;
    }

    pub(super) fn step(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(BACKOFF_LIMIT);
        rand::rng().random_range(whole / 2..=whole)
    }
}

/// A connection that was alive when it was handed out.
#[derive(Clone, Debug)]
pub(super) struct Up {
    pub(super) connection: Arc<Connection>,
    /// Counts the connections of this bus.
    pub(super) epoch: u64,
    /// Set while the broker takes no messages.
    pub(super) blocked: Option<(DateTime<Utc>, String)>,
    /// The last connection ended by something that could not be read.
    pub(super) careful: bool,
}

/// How a connection ended.
struct Loss {
    why: String,
    /// By something that could not be read; it will be delivered again.
    unreadable: bool,
}

impl Loss {
    fn because(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            unreadable: false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Down {
        since: DateTime<Utc>,
        last_error: Option<String>,
    },
    Up(Up),
    Closed,
}

#[derive(Debug)]
pub(super) struct Link {
    config: RabbitConfig,
    uri: AMQPUri,
    phase: watch::Sender<Phase>,
    health: watch::Sender<BusHealth>,
    epoch: watch::Sender<u64>,
    /// Whose turn it is to take messages after an unreadable one.
    turns: Arc<Turns>,
    declared: Mutex<BTreeMap<String, QueueDecl>>,
    /// Queues that could not be declared, with the reason.
    trouble: Mutex<BTreeMap<String, String>>,
    stop: CancellationToken,
}

impl Link {
    pub(super) fn start(config: RabbitConfig, uri: AMQPUri) -> Arc<Self> {
        let since = Utc::now();
        let link = Arc::new(Self {
            config,
            uri,
            phase: watch::Sender::new(Phase::Down {
                since,
                last_error: None,
            }),
            health: watch::Sender::new(BusHealth::Connecting {
                since,
                last_error: None,
            }),
            epoch: watch::Sender::new(0),
            turns: Arc::new(Turns::new()),
            declared: Mutex::default(),
            trouble: Mutex::default(),
            stop: CancellationToken::new(),
        });
        tokio::spawn(keep(Arc::clone(&link)));
        link
    }

    /// Tells the task to end the connection.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends the connection and waits for it.
    pub(super) async fn close(&self) {
        self.stop();
        let mut health = self.health.subscribe();
        // The task always ends in `Closed`, and the health is what it sets last.
        let closed = health.wait_for(|h| *h == BusHealth::Closed);
        if timeout(GOODBYE * 2, closed).await.is_err() {
            tracing::warn!("the broker connection did not end in time");
        }
    }

    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub(super) fn check_open(&self) -> Result<(), BusError> {
        if self.stop.is_cancelled() {
            return Err(BusError::Closed);
        }
        Ok(())
    }

    pub(super) fn health(&self) -> watch::Receiver<BusHealth> {
        self.health.subscribe()
    }

    pub(super) fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    pub(super) fn publish_timeout(&self) -> Duration {
        self.config.publish_timeout
    }

    pub(super) fn turns(&self) -> Arc<Turns> {
        Arc::clone(&self.turns)
    }

    /// The phase of the moment, as a copy: nobody may hold the lock inside while asking for
    /// anything else, because a second look behind a waiting writer never returns.
    pub(super) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Remembers a queue, to be declared on every new connection.
    pub(super) fn remember(&self, queue: &QueueDecl) -> Result<(), BusError> {
        self.check_open()?;
        lock(&self.declared).insert(queue.name.clone(), queue.clone());
        Ok(())
    }

    pub(super) fn forget(&self, name: &str) {
        lock(&self.declared).remove(name);
        self.set_trouble(name, None);
    }

    /// The connection, if there is one now.
    pub(super) fn up_now(&self) -> Option<Up> {
        match self.phase() {
            Phase::Up(up) if up.connection.status().connected() => Some(up),
            _ => None,
        }
    }

    /// The connection, when there is one. `None` when the bus was closed.
    pub(super) async fn up(&self) -> Option<Up> {
        let mut phase = self.phase.subscribe();
        loop {
            let now = phase.borrow_and_update().clone();
            match now {
                Phase::Up(up) if up.connection.status().connected() => return Some(up),
                Phase::Closed => return None,
                Phase::Up(_) | Phase::Down { .. } => {}
            }
            if self.stop.is_cancelled() {
                return None;
            }
            tokio::select! {
                () = self.stopped() => return None,
                changed = phase.changed() => changed.ok()?,
            }
        }
    }

    /// Waits for the end of a connection. A call that is under way then may never be answered.
    pub(super) async fn gone(&self, epoch: u64) {
        let mut phase = self.phase.subscribe();
        // An error means that the link itself is gone.
        let _ = phase
            .wait_for(|now| !matches!(now, Phase::Up(up) if up.epoch == epoch))
            .await;
    }

    /// The connection, within a limit.
    pub(super) async fn up_within(&self, limit: Duration) -> Result<Up, BusError> {
        match timeout(limit, self.up()).await {
            Ok(Some(up)) => Ok(up),
            Ok(None) => Err(BusError::Closed),
            Err(_) => Err(BusError::Disconnected {
                waited: limit,
                last_error: self.last_error(),
            }),
        }
    }

    /// Why there is no connection, readable.
    pub(super) fn last_error(&self) -> String {
        match self.phase() {
            Phase::Down {
                last_error: Some(error),
                ..
            } => error,
            Phase::Down { .. } => format!("no answer yet from {}", self.config.display_url()),
            Phase::Up(_) => "the connection was lost".to_owned(),
            Phase::Closed => "closed".to_owned(),
        }
    }

    /// Declares one queue and keeps the health true about it.
    pub(super) async fn declare_on(&self, up: &Up, queue: &QueueDecl) -> Result<(), BusError> {
        let result = declare::queue(&up.connection, queue).await;
        self.note(&queue.name, &result);
        result
    }

    /// Notes whether a queue could be declared; logs the change once.
    fn note(&self, queue: &str, result: &Result<(), BusError>) {
        match result {
            Ok(()) => self.set_trouble(queue, None),
            Err(error @ BusError::Mismatch { .. }) => {
                self.set_trouble(queue, Some(error.to_string()));
            }
            // Anything else shows as the state of the connection.
            Err(_) => {}
        }
    }

    fn set_trouble(&self, queue: &str, reason: Option<String>) {
        let before = {
            let mut trouble = lock(&self.trouble);
            match &reason {
                Some(text) => trouble.insert(queue.to_owned(), text.clone()),
                None => trouble.remove(queue),
            }
        };
        if before == reason {
            return;
        }
        match &reason {
            Some(reason) => tracing::error!(queue, reason, "a queue could not be declared"),
            None => tracing::info!(queue, "the queue is declared"),
        }
        self.refresh_health();
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
        self.refresh_health();
    }

    fn refresh_health(&self) {
        let health = match self.phase() {
            Phase::Down { since, last_error } => BusHealth::Connecting { since, last_error },
            Phase::Up(Up {
                blocked: Some((since, reason)),
                ..
            }) => BusHealth::Blocked { since, reason },
            Phase::Up(_) => match lock(&self.trouble).values().next() {
                Some(reason) => BusHealth::Degraded {
                    reason: reason.clone(),
                },
                None => BusHealth::Connected,
            },
            Phase::Closed => BusHealth::Closed,
        };
        self.health.send_if_modified(|now| {
            let changed = *now != health;
            *now = health;
            changed
        });
    }

    /// One try to connect and to declare everything.
    async fn connect(&self) -> Result<Connection, String> {
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(self.config.connection_name.clone()));
        let mut uri = self.uri.clone();
        let heartbeat = u16::try_from(self.config.heartbeat.as_secs()).unwrap_or(u16::MAX);
        uri.query.heartbeat = Some(heartbeat.max(1));
        uri.query.frame_max = uri.query.frame_max.or(self.config.frame_max);
        let limit = self.config.connect_timeout;
        let connection = timeout(limit, Connection::connect_uri(uri, properties))
            .await
            .map_err(|_| format!("no answer within {} ms", limit.as_millis()))?
            .map_err(|e| e.to_string())?;
        let queues: Vec<QueueDecl> = lock(&self.declared).values().cloned().collect();
        for queue in queues {
            let result = declare::queue(&connection, &queue).await;
            self.note(&queue.name, &result);
            match result {
                Ok(()) | Err(BusError::Mismatch { .. }) => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        Ok(connection)
    }

    /// Watches a connection until it ends; says why.
    async fn watch(&self, up: &Up, mut events: impl Stream<Item = Event> + Unpin) -> Loss {
        let connection = &up.connection;
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = self.stopped() => return Loss::because("closed"),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(reason, "the broker takes no messages");
                        self.set_phase(Phase::Up(Up {
                            blocked: Some((Utc::now(), reason)),
                            ..up.clone()
                        }));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!("the broker takes messages again");
                        self.set_phase(Phase::Up(up.clone()));
                    }
                    Some(Event::Error(error)) => {
                        // Errors of one channel come here as well.
                        if !connection.status().connected() {
                            return Loss {
                                why: error.to_string(),
                                unreadable: is_unreadable(error.kind()),
                            };
                        }
                    }
                    Some(_) => {}
                    None => return Loss::because("the connection ended"),
                },
                _ = look.tick() => {
                    if !connection.status().connected() {
                        return Loss::because("the connection ended");
                    }
                }
            }
        }
    }
}

/// Whether something was sent that cannot be read: no frame at all, or one that is too large. Headers travel in one frame,
/// and who wrote them may have had larger ones.
fn is_unreadable(error: &ErrorKind) -> bool {
    match error {
        ErrorKind::ParsingError(_) => true,
        ErrorKind::ProtocolError(error) => {
            *error.kind() == AMQPErrorKind::Hard(AMQPHardError::FRAMEERROR)
        }
        _ => false,
    }
}

/// The task of a link.
async fn keep(link: Arc<Link>) {
    let mut backoff = Backoff::new();
    let mut careful = false;
    let mut unreadable = 0_u32;
    let mut since = Utc::now();
    let mut logged: Option<String> = None;
    while !link.stop.is_cancelled() {
        let outcome = tokio::select! {
            () = link.stopped() => break,
            outcome = link.connect() => outcome,
        };
        match outcome {
            Ok(connection) => {
                link.epoch.send_modify(|epoch| *epoch += 1);
                // Listening starts before anybody consumes, so that no end is missed.
                let events = connection.events_listener();
                let up = Up {
                    connection: Arc::new(connection),
                    epoch: *link.epoch.borrow(),
                    blocked: None,
                    careful,
                };
                tracing::info!(
                    broker = link.config.display_url(),
                    "connected to the broker"
                );
                link.set_phase(Phase::Up(up.clone()));
                let up_at = Instant::now();
                let loss = link.watch(&up, events).await;
                if link.stop.is_cancelled() {
                    goodbye(&up.connection).await;
                    break;
                }
                since = Utc::now();
                careful = loss.unreadable;
                let lasted = up_at.elapsed() > BACKOFF_LIMIT;
                unreadable = match (loss.unreadable, lasted) {
                    (true, true) => 1,
                    (true, false) => unreadable.saturating_add(1),
                    (false, _) => 0,
                };
                let why = loss.why;
                match unreadable {
                    0 => tracing::warn!(
                        broker = link.config.display_url(),
                        why,
                        "lost the broker; trying again until it is back"
                    ),
                    1 => tracing::error!(
                        broker = link.config.display_url(),
                        why,
                        "a message of the broker cannot be read, which ends the connection; \
                         messages are taken one at a time until the broker has put it away"
                    ),
                    again => tracing::debug!(again, why, "a message cannot be read"),
                }
                link.set_phase(Phase::Down {
                    since,
                    last_error: Some(why.clone()),
                });
                logged = Some(why);
                // A broker that takes us and throws us out again is not asked in a tight loop.
                // An unreadable message goes sooner when it is delivered sooner.
                if lasted || (1..=UNREADABLE_LIMIT).contains(&unreadable) {
                    backoff.reset();
                }
            }
            Err(why) => {
                if logged.as_ref() != Some(&why) {
                    tracing::warn!(
                        broker = link.config.display_url(),
                        why,
                        "cannot connect to the broker; trying again until it is there"
                    );
                    logged = Some(why.clone());
                }
                link.set_phase(Phase::Down {
                    since,
                    last_error: Some(why),
                });
            }
        }
        tokio::select! {
            () = link.stopped() => break,
            () = tokio::time::sleep(backoff.step()) => {}
        }
    }
    link.set_phase(Phase::Closed);
}

async fn goodbye(connection: &Connection) {
    match timeout(GOODBYE, connection.close(200, "bye".into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the connection was gone before it was closed"),
        Err(_) => tracing::debug!("the broker did not confirm the end of the connection"),
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// A poisoned lock still holds whole maps: each change is one insert or remove.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
