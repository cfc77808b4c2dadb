//! One queue in memory: what waits, in which order, and who may take it. Pure; time comes in.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::super::topology::{Consumers, Overflow};
use super::super::{DeadInfo, Message, QueueDecl};
use super::broker::{ConnectionId, ConsumerId};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Its place among all messages; a message that comes back takes its old place.
    pub(super) seq: u64,
    pub(super) message: Message,
    pub(super) dead: Option<DeadInfo>,
    /// How often it came back.
    pub(super) returns: u32,
    /// Not before then.
    pub(super) visible_at: Instant,
    /// Gone after then.
    pub(super) expires_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) decl: QueueDecl,
    /// A private queue goes with its connection.
    pub(super) owner: Option<ConnectionId>,
    pub(super) consumers: Vec<ConsumerId>,
    ready: VecDeque<Stored>,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(decl: QueueDecl, owner: Option<ConnectionId>) -> Self {
        Self {
            decl,
            owner,
            consumers: Vec::new(),
            ready: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len()
    }

    /// Whether it is full and keeps its oldest.
    pub(super) fn refuses(&self) -> bool {
        let reached = |limit: Option<u32>, now: usize| {
            limit.is_some_and(|limit| u64::try_from(now).is_ok_and(|now| now >= u64::from(limit)))
        };
        self.decl.overflow() == Overflow::RefuseNewest
            && (reached(self.decl.max_length, self.ready.len())
                || reached(self.decl.max_length_bytes, self.bytes))
    }

    /// Takes a message in at an index from the back (0 is last), dropping the oldest ones that
    /// no longer fit.
    pub(super) fn push(&mut self, stored: Stored, from_back: usize) {
        self.bytes += stored.message.body.len();
        let at = self.ready.len().saturating_sub(from_back);
        self.ready.insert(at, stored);
        let fits = |limit: Option<u32>, now: usize| {
            limit.is_none_or(|limit| u64::try_from(now).is_ok_and(|now| now <= u64::from(limit)))
        };
        while self.decl.overflow() == Overflow::DropOldest
            && (!fits(self.decl.max_length, self.ready.len())
                || !fits(self.decl.max_length_bytes, self.bytes))
        {
            if self.remove(0).is_none() {
                break;
            }
        }
    }

    /// Puts a message back to its old place.
    pub(super) fn put_back(&mut self, stored: Stored) {
        self.bytes += stored.message.body.len();
        let at = self
            .ready
            .iter()
            .position(|other| other.seq > stored.seq)
            .unwrap_or(self.ready.len());
        self.ready.insert(at, stored);
    }

    fn remove(&mut self, at: usize) -> Option<Stored> {
        let stored = self.ready.remove(at)?;
        self.bytes = self.bytes.saturating_sub(stored.message.body.len());
        Some(stored)
    }

    /// Removes and returns what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Stored> {
        let mut expired = Vec::new();
        let mut at = 0;
        while let Some(stored) = self.ready.get(at) {
            if stored.expires_at.is_some_and(|end| end <= now) {
                expired.extend(self.remove(at));
            } else {
                at += 1;
            }
        }
        expired
    }

    /// Whether this consumer may have messages.
    pub(super) fn serves(&self, consumer: ConsumerId) -> bool {
        match self.decl.consumers {
            Consumers::SingleActive => self.consumers.first() == Some(&consumer),
            Consumers::Shared => self.consumers.contains(&consumer),
        }
    }

    /// The first message that may be seen, or else when to look again.
    pub(super) fn pop(&mut self, now: Instant) -> Result<Stored, Option<Instant>> {
        match self.ready.iter().position(|s| s.visible_at <= now) {
            Some(at) => self.remove(at).ok_or(None),
            None => Err(self.ready.iter().map(|s| s.visible_at).min()),
        }
    }
}
