//! Which channel a publish takes, and how many may be under way to one queue.
//!
//! RabbitMQ lets a quorum queue that does not confirm (no leader, no majority) take others along, and each limit
//! here is below one of its own:
//!
//! - A channel with 32 unconfirmed messages to one quorum queue (`quorum_commands_soft_limit`) gets no more credit,
//!   and its connection is not read any more as soon as the last credit is used up: [`PER_QUEUE`] for each channel.
//! - The first message from a channel to a quorum queue waits for the queue's leader, up to 65 s, and with it the
//!   channel. The connection is read for at least 200 further messages to that channel: [`PER_LANE`]. A lane finds
//!   out that its channel is blocked. What it carried is then sent alone, and so is everything to those queues until
//!   one of them has confirmed again: they are suspects.
//!
//! So one queue's messages are spread over several channels when there are many of them, and otherwise all take the
//! first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::lane::{Lane, Road};
use super::link::{Link, Up};

/// Shared channels.
const LANES: usize = 16;
/// Unconfirmed messages to one queue on one shared channel.
const PER_QUEUE: usize = 30;
/// Unconfirmed messages on one shared channel.
pub(super) const PER_LANE: usize = 192;
/// Messages to one queue at once that have a channel of their own.
const PER_SUSPECT: usize = 4;
/// How long a queue is a suspect that nobody publishes to.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// What is under way to one queue, or to all topics.
#[derive(Debug)]
struct Place {
    shared: Arc<Semaphore>,
    alone: Arc<Semaphore>,
    /// On each lane.
    taken: [usize; LANES],
    suspect: Option<Instant>,
    /// Seats that name it.
    seats: usize,
}

impl Place {
    fn new() -> Self {
        Self {
            shared: Arc::new(Semaphore::new(LANES * PER_QUEUE)),
            alone: Arc::new(Semaphore::new(PER_SUSPECT)),
            taken: [0; LANES],
            suspect: None,
            seats: 0,
        }
    }

    fn is_suspect(&self) -> bool {
        self.suspect
            .is_some_and(|since| since.elapsed() < SUSPECT_FOR)
    }
}

#[derive(Debug, Default)]
struct Inner {
    lanes: [Option<Lane>; LANES],
    /// All that is under way on each lane.
    taken: [usize; LANES],
    places: HashMap<Arc<str>, Place>,
}

/// The places of one road.
#[derive(Debug)]
pub(super) struct Places {
    road: Road,
    inner: Mutex<Inner>,
}

/// One publish on the books, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    places: Arc<Places>,
    name: Arc<str>,
    lane: Option<usize>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(road: Road) -> Arc<Self> {
        Arc::new(Self {
            road,
            inner: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets in line for a place. The semaphores are never closed.
    fn line(
        self: &Arc<Self>,
        name: &str,
        which: impl Fn(&Place) -> &Arc<Semaphore>,
    ) -> (Seat, Arc<Semaphore>) {
        let mut inner = self.lock();
        let name = match inner.places.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(name),
        };
        let place = inner
            .places
            .entry(Arc::clone(&name))
            .or_insert_with(Place::new);
        place.seats += 1;
        let line = Arc::clone(which(place));
        drop(inner);
        let seat = Seat {
            places: Arc::clone(self),
            name,
            lane: None,
            permit: None,
        };
        (seat, line)
    }

    /// A seat on a shared channel to this queue, when there is one. Cancel safe.
    pub(super) async fn shared(
        self: &Arc<Self>,
        name: &str,
        link: &Arc<Link>,
        up: &Up,
    ) -> (Seat, Lane) {
        let (mut seat, line) = self.line(name, |place| &place.shared);
        seat.permit = line.acquire_owned().await.ok();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let taken = inner.places.get(name).map_or([0; LANES], |p| p.taken);
        // There is one: a permit was got.
        let number = (0..LANES)
            .filter(|&n| taken[n] < PER_QUEUE)
            .min_by_key(|&n| (inner.taken[n].saturating_sub(PER_LANE - 1), n))
            .unwrap_or_default();
        inner.taken[number] += 1;
        if let Some(place) = inner.places.get_mut(name) {
            place.taken[number] += 1;
        }
        seat.lane = Some(number);
        let lane = &mut inner.lanes[number];
        let lane = match lane {
            Some(lane) if lane.serves(up.epoch) => lane.clone(),
            _ => lane
                .insert(Lane::open(Arc::clone(link), up.clone(), self.road))
                .clone(),
        };
        (seat, lane)
    }

    /// Leave to publish to this queue on a channel of one's own. Cancel safe.
    pub(super) async fn alone(self: &Arc<Self>, name: &str) -> Seat {
        let (mut seat, line) = self.line(name, |place| &place.alone);
        seat.permit = line.acquire_owned().await.ok();
        seat
    }

    pub(super) fn is_suspect(&self, name: &str) -> bool {
        self.lock().places.get(name).is_some_and(Place::is_suspect)
    }

    /// A channel was blocked while a message to this queue was on it.
    pub(super) fn suspect(&self, name: &str) {
        let mut inner = self.lock();
        inner.places.retain(|_, p| p.seats > 0 || p.is_suspect());
        let place = inner
            .places
            .entry(Arc::from(name))
            .or_insert_with(Place::new);
        place.suspect = Some(Instant::now());
    }

    /// The queue has answered.
    pub(super) fn clear(&self, name: &str) {
        let mut inner = self.lock();
        if let Some(place) = inner.places.get_mut(name) {
            place.suspect = None;
            if place.seats == 0 {
                inner.places.remove(name);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.places.lock();
        let inner = &mut *inner;
        if let Some(number) = self.lane {
            inner.taken[number] -= 1;
        }
        if let Some(place) = inner.places.get_mut(&self.name) {
            if let Some(number) = self.lane {
                place.taken[number] -= 1;
            }
            place.seats -= 1;
            if place.seats == 0 && place.suspect.is_none() {
                inner.places.remove(&self.name);
            }
        }
        // The next in line finds the place that is free now.
        self.permit = None;
    }
}
