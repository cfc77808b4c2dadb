//! The state of the in-process broker: connections, queues, what is on its way to be settled.
//!
//! One lock around plain data; nothing here waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::super::topology::{Consumers, DEAD, DeadLetter, QueueKind, topic_matches};
use super::super::{BusError, BusHealth, DeadInfo, Message, QueueDecl, Target};
use super::Faults;
use super::queue::{Queue, Stored};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionId(u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConsumerId(u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Tag(u64);

/// What a consumer gets.
pub(super) struct Taken {
    pub(super) tag: Tag,
    pub(super) message: Message,
    pub(super) redelivered: bool,
    pub(super) dead: Option<DeadInfo>,
}

pub(super) enum Take {
    Got(Taken),
    /// Nothing now; look again at a change, or then.
    Wait(Option<Instant>),
    Closed,
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    Taken,
    Unroutable,
    /// A queue is full and keeps its oldest.
    Full,
}

struct Unsettled {
    stored: Stored,
    queue: String,
    consumer: ConsumerId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Joined,
    CutOff,
    Closed,
}

struct Connection {
    wire: Wire,
    declared: BTreeMap<String, QueueDecl>,
    consumers: Vec<ConsumerId>,
    health: watch::Sender<BusHealth>,
    epoch: watch::Sender<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Off,
}

pub(super) struct Shared {
    state: Mutex<State>,
    notify: Notify,
}

impl Shared {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                power: Power::On,
                faults: Faults::NONE,
                rng: StdRng::seed_from_u64(seed),
                queues: BTreeMap::new(),
                connections: BTreeMap::new(),
                unsettled: HashMap::new(),
                counter: 0,
            }),
            notify: Notify::new(),
        }
    }

    /// The state; a poisoned lock means that a test has panicked already.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes every consumer to look again.
    pub(super) fn changed(&self) {
        self.notify.notify_waiters();
    }

    pub(super) fn changes(&self) -> Notified<'_> {
        self.notify.notified()
    }
}

pub(super) struct State {
    power: Power,
    pub(super) faults: Faults,
    rng: StdRng,
    queues: BTreeMap<String, Queue>,
    connections: BTreeMap<ConnectionId, Connection>,
    unsettled: HashMap<Tag, Unsettled>,
    counter: u64,
}

impl State {
    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    // Connections.

    pub(super) fn connect(&mut self) -> ConnectionId {
        let id = ConnectionId(self.count());
        self.connections.insert(
            id,
            Connection {
                wire: Wire::Joined,
                declared: BTreeMap::new(),
                consumers: Vec::new(),
                health: watch::Sender::new(BusHealth::Closed),
                epoch: watch::Sender::new(0),
            },
        );
        self.resume(id);
        id
    }

    pub(super) fn check_open(&self, id: ConnectionId) -> Result<(), BusError> {
        match self.connections.get(&id) {
            Some(connection) if connection.wire != Wire::Closed => Ok(()),
            _ => Err(BusError::Closed),
        }
    }

    fn live(&self, id: ConnectionId) -> bool {
        let joined = self
            .connections
            .get(&id)
            .is_some_and(|c| c.wire == Wire::Joined);
        joined && self.power == Power::On
    }

    pub(super) fn health(&self, id: ConnectionId) -> watch::Receiver<BusHealth> {
        match self.connections.get(&id) {
            Some(connection) => connection.health.subscribe(),
            None => watch::Sender::new(BusHealth::Closed).subscribe(),
        }
    }

    pub(super) fn epoch(&self, id: ConnectionId) -> watch::Receiver<u64> {
        match self.connections.get(&id) {
            Some(connection) => connection.epoch.subscribe(),
            None => watch::Sender::new(0).subscribe(),
        }
    }

    fn refresh(&self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let live = self.live(id);
        connection.health.send_if_modified(|now| {
            let next = match (connection.wire, live) {
                (Wire::Closed, _) => BusHealth::Closed,
                (_, true) => BusHealth::Connected,
                (_, false) => match now {
                    BusHealth::Connecting { .. } => return false,
                    _ => BusHealth::Connecting {
                        since: Utc::now(),
                        last_error: Some("the connection is cut off".to_owned()),
                    },
                },
            };
            let changed = *now != next;
            *now = next;
            changed
        });
    }

    /// Ends what a connection held: consumers, private queues, unsettled deliveries.
    fn lose(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let consumers = std::mem::take(&mut connection.consumers);
        self.queues.retain(|_, queue| {
            let before = queue.consumers.len();
            queue.consumers.retain(|c| !consumers.contains(c));
            let was_last = queue.consumers.is_empty() && before > 0;
            queue.owner != Some(id) && !(queue.decl.kind.auto_delete() && was_last)
        });
        let mut tags: Vec<Tag> = self
            .unsettled
            .iter()
            .filter(|(_, u)| consumers.contains(&u.consumer))
            .map(|(tag, _)| *tag)
            .collect();
        tags.sort_unstable();
        for tag in tags {
            self.retry(tag, Instant::now());
        }
    }

    /// What a connection does when it is made.
    fn resume(&mut self, id: ConnectionId) {
        if self.live(id) {
            let declared: Vec<QueueDecl> = self
                .connections
                .get(&id)
                .map(|c| c.declared.values().cloned().collect())
                .unwrap_or_default();
            for decl in declared {
                if let Err(error) = self.ensure(&decl) {
                    tracing::error!(%error, "a queue could not be declared");
                }
            }
            if let Some(connection) = self.connections.get(&id) {
                connection.epoch.send_modify(|epoch| *epoch += 1);
            }
        }
        self.refresh(id);
    }

    fn ids(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    pub(super) fn crash(&mut self, id: ConnectionId) {
        self.lose(id);
        self.resume(id);
    }

    pub(super) fn crash_all(&mut self) {
        for id in self.ids() {
            self.crash(id);
        }
    }

    pub(super) fn set_cut_off(&mut self, id: ConnectionId) {
        self.rewire(id, Wire::CutOff);
    }

    pub(super) fn set_joined(&mut self, id: ConnectionId) {
        self.rewire(id, Wire::Joined);
    }

    pub(super) fn close(&mut self, id: ConnectionId) {
        self.rewire(id, Wire::Closed);
    }

    fn rewire(&mut self, id: ConnectionId, wire: Wire) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.wire == Wire::Closed || connection.wire == wire {
            return;
        }
        connection.wire = wire;
        if wire == Wire::Joined {
            self.resume(id);
        } else {
            self.lose(id);
            self.refresh(id);
        }
    }

    // The broker as a whole.

    pub(super) fn stop(&mut self) {
        self.power = Power::Off;
        for id in self.ids() {
            self.lose(id);
            self.refresh(id);
        }
        self.queues.retain(|_, queue| queue.decl.kind.durable());
    }

    pub(super) fn start(&mut self) {
        if std::mem::replace(&mut self.power, Power::On) == Power::On {
            return;
        }
        for id in self.ids() {
            self.resume(id);
        }
    }

    pub(super) fn delete_vhost(&mut self) {
        self.stop();
        self.queues.clear();
        self.unsettled.clear();
    }

    // Queues.

    pub(super) fn declare(&mut self, id: ConnectionId, decl: &QueueDecl) -> Result<(), BusError> {
        self.check_open(id)?;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.declared.insert(decl.name.clone(), decl.clone());
        }
        if self.live(id) {
            self.ensure(decl)?;
        }
        Ok(())
    }

    /// Declares if there is a connection; tells whether the queue is there.
    pub(super) fn declare_live(&mut self, id: ConnectionId, decl: &QueueDecl) -> bool {
        self.live(id) && self.ensure(decl).is_ok()
    }

    pub(super) fn declare_reply(&mut self, id: ConnectionId) -> Option<String> {
        if !self.live(id) {
            return None;
        }
        let name = format!("amq.gen-{}", self.count());
        let decl = QueueDecl {
            name: name.clone(),
            kind: QueueKind::TransientClassic,
            consumers: Consumers::Shared,
            delivery_limit: None,
            dead_letter: DeadLetter::Drop,
            message_ttl: None,
            max_length: None,
            max_length_bytes: None,
            topic: None,
        };
        self.queues.insert(name.clone(), Queue::new(decl, Some(id)));
        Some(name)
    }

    fn ensure(&mut self, decl: &QueueDecl) -> Result<(), BusError> {
        if decl.dead_letter == DeadLetter::ToDeadQueue {
            self.ensure(&QueueDecl::dead())?;
        }
        match self.queues.get(&decl.name) {
            Some(queue) if queue.decl == *decl => Ok(()),
            Some(queue) => Err(BusError::Mismatch {
                queue: decl.name.clone(),
                detail: format!("it is {:?}", queue.decl),
            }),
            None => {
                let queue = Queue::new(decl.clone(), None);
                self.queues.insert(decl.name.clone(), queue);
                Ok(())
            }
        }
    }

    pub(super) fn delete_queue(&mut self, id: ConnectionId, name: &str) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.declared.remove(name);
        }
        self.queues.remove(name);
        self.unsettled.retain(|_, u| u.queue != name);
    }

    pub(super) fn depth(&mut self, name: &str, now: Instant) -> Option<usize> {
        self.expire(name, now);
        self.queues.get(name).map(Queue::len)
    }

    pub(super) fn consumer_count(&self, name: &str) -> Option<usize> {
        self.queues.get(name).map(|queue| queue.consumers.len())
    }

    pub(super) fn queue_names(&self) -> Vec<String> {
        self.queues.keys().cloned().collect()
    }

    // Consumers.

    pub(super) fn register(&mut self, id: ConnectionId, queue: &str) -> ConsumerId {
        let consumer = ConsumerId(self.count());
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.consumers.push(consumer);
        }
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.consumers.push(consumer);
        }
        consumer
    }

    pub(super) fn is_consuming(&self, consumer: ConsumerId, queue: &str) -> bool {
        self.queues
            .get(queue)
            .is_some_and(|q| q.consumers.contains(&consumer))
    }

    /// Ends a subscription. What it took and did not settle stays with its holders; a private
    /// queue goes with its last consumer.
    pub(super) fn unregister(&mut self, consumer: ConsumerId, name: &str) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.consumers.retain(|c| *c != consumer);
            let goes = queue.owner.is_some() || queue.decl.kind.auto_delete();
            if goes && queue.consumers.is_empty() {
                self.queues.remove(name);
            }
        }
    }

    pub(super) fn take(
        &mut self,
        consumer: ConsumerId,
        name: &str,
        prefetch: usize,
        now: Instant,
    ) -> Take {
        self.expire(name, now);
        let held = self
            .unsettled
            .values()
            .filter(|u| u.consumer == consumer)
            .count();
        let Some(queue) = self.queues.get_mut(name) else {
            return Take::Wait(None);
        };
        if held >= prefetch || !queue.serves(consumer) {
            return Take::Wait(None);
        }
        let stored = match queue.pop(now) {
            Ok(stored) => stored,
            Err(until) => return Take::Wait(until),
        };
        let tag = Tag(self.count());
        let taken = Taken {
            tag,
            message: stored.message.clone(),
            redelivered: stored.returns > 0,
            dead: stored.dead.clone(),
        };
        let queue = name.to_owned();
        self.unsettled.insert(
            tag,
            Unsettled {
                stored,
                queue,
                consumer,
            },
        );
        Take::Got(taken)
    }

    // Settling: each tells whether the delivery was still known.

    pub(super) fn ack(&mut self, tag: Tag) -> bool {
        self.unsettled.remove(&tag).is_some()
    }

    pub(super) fn retry(&mut self, tag: Tag, now: Instant) -> bool {
        let Some(Unsettled {
            mut stored, queue, ..
        }) = self.unsettled.remove(&tag)
        else {
            return false;
        };
        stored.returns += 1;
        let Some(home) = self.queues.get_mut(&queue) else {
            return true;
        };
        let spent = home
            .decl
            .delivery_limit
            .is_some_and(|limit| stored.returns > limit);
        if spent {
            self.dead_letter(&queue, stored, "delivery_limit", now);
        } else {
            home.put_back(stored);
        }
        true
    }

    pub(super) fn dead(&mut self, tag: Tag, reason: &str, now: Instant) -> bool {
        let Some(Unsettled { stored, queue, .. }) = self.unsettled.remove(&tag) else {
            return false;
        };
        self.bury(&queue, stored.message, reason, now);
        true
    }

    /// What a queue does with a message it gives up on.
    fn dead_letter(&mut self, queue: &str, stored: Stored, reason: &str, now: Instant) {
        match self.queues.get(queue).map(|q| q.decl.dead_letter) {
            Some(DeadLetter::ToDeadQueue) => self.bury(queue, stored.message, reason, now),
            Some(DeadLetter::Drop) | None => {}
        }
    }

    fn bury(&mut self, queue: &str, mut message: Message, reason: &str, now: Instant) {
        let info = DeadInfo {
            reason: reason.to_owned(),
            queue: queue.to_owned(),
        };
        message.expiration = None;
        if let Err(error) = self.ensure(&QueueDecl::dead()) {
            tracing::error!(%error, "the dead letter queue could not be declared");
        }
        self.store(DEAD, message, Some(info), now, 0);
    }

    fn expire(&mut self, name: &str, now: Instant) {
        let expired = match self.queues.get_mut(name) {
            Some(queue) => queue.expire(now),
            None => Vec::new(),
        };
        for stored in expired {
            self.dead_letter(name, stored, "expired", now);
        }
    }

    // Messages coming in.

    fn store(
        &mut self,
        name: &str,
        message: Message,
        dead: Option<DeadInfo>,
        visible_at: Instant,
        from_back: usize,
    ) {
        let seq = self.count();
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        let ttl = match (message.expiration, queue.decl.message_ttl) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let stored = Stored {
            seq,
            message,
            dead,
            returns: 0,
            visible_at,
            expires_at: ttl.map(|ttl| visible_at + ttl),
        };
        queue.push(stored, from_back);
    }

    pub(super) fn inject(&mut self, queue: &str, message: Message, now: Instant) -> bool {
        let found = self.queues.contains_key(queue);
        self.store(queue, message, None, now, 0);
        found
    }

    fn route(&self, to: &Target) -> Vec<String> {
        match to {
            Target::Queue(name) => self
                .queues
                .contains_key(name)
                .then(|| name.clone())
                .into_iter()
                .collect(),
            Target::Topic { key } => self
                .queues
                .values()
                .filter(|q| {
                    q.decl
                        .topic
                        .as_deref()
                        .is_some_and(|pattern| topic_matches(pattern, key))
                })
                .map(|q| q.decl.name.clone())
                .collect(),
        }
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability.clamp(0.0, 1.0))
    }

    /// Stores a message in every queue that takes it, as the faults will have it.
    pub(super) fn publish(&mut self, to: &Target, message: Message, now: Instant) -> Published {
        let queues = self.route(to);
        let faults = self.faults;
        let mut outcome = if queues.is_empty() {
            Published::Unroutable
        } else {
            Published::Taken
        };
        for name in &queues {
            if self.queues.get(name).is_some_and(Queue::refuses) {
                outcome = Published::Full;
                continue;
            }
            if self.happens(faults.drop) {
                continue;
            }
            let copies = if self.happens(faults.duplicate) { 2 } else { 1 };
            for _ in 0..copies {
                let late = self.happens(faults.delay);
                let visible_at = if late {
                    now + self
                        .rng
                        .random_range(std::time::Duration::ZERO..=faults.max_delay)
                } else {
                    now
                };
                let from_back = if self.happens(faults.reorder) {
                    let waiting = self.queues.get(name).map_or(0, Queue::len);
                    self.rng.random_range(0..=waiting)
                } else {
                    0
                };
                self.store(name, message.clone(), None, visible_at, from_back);
            }
        }
        outcome
    }
}
