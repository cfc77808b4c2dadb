//! Care after a message that cannot be read, so that it alone collects returns.
//!
//! A frame that the library cannot read (text that is not UTF-8 in an AMQP property) ends the
//! whole connection, and everything that was delivered goes back to its queue with one more
//! return. Which message it was, nobody can tell. So after such a loss every consumer
//!
//! - waits for its turn, so that one at a time takes its first messages,
//! - takes one message at a time until it has done as many as it usually prefetches: the message
//!   was among them.
//!
//! When it happens again, a consumer that had a message in its hands cannot have been sent the
//! bad one. The one that started last, with empty hands, is the suspect and goes first, until
//! the broker puts the message away for its returns. The others wait and collect none.
//!
//! It keeps the books; subscribing is done elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::link::Up;

/// The longest wait for a turn: a consumer that nobody polls does not hold up the others.
const TURN_LIMIT: Duration = Duration::from_secs(1);
/// A queue that sends nothing for so long has nothing bad at its head.
const QUIET: Duration = Duration::from_millis(250);

/// Whether a consumer was sent what could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// No: it had a message in its hands, or nothing is known.
    Cleared,
    /// Perhaps: it had none.
    Possible,
    /// And it was the last to start.
    Likely,
}

impl Suspicion {
    /// How long others are let go first.
    fn head_start(self) -> Duration {
        Duration::from_millis(match self {
            Self::Likely => 0,
            Self::Possible => 30,
            Self::Cleared => 100,
        })
    }
}

/// Whose turn it is, shared by all consumers of a connection.
#[derive(Debug)]
pub(super) struct Turns {
    turn: Arc<Semaphore>,
    /// The consumer that started last.
    latest: AtomicU64,
    /// The number of the next consumer; 0 is nobody.
    next: AtomicU64,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            latest: AtomicU64::new(0),
            next: AtomicU64::new(1),
        }
    }
}

/// What one subscription has got and done.
#[derive(Debug, Default)]
struct Progress {
    /// Messages still to be done with care.
    left: AtomicU32,
    /// Messages that wait to be settled.
    held: AtomicU32,
    /// A message was in hand when the connection went.
    caught: AtomicBool,
}

impl Progress {
    fn new(left: u32) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU32::new(left),
            ..Self::default()
        })
    }
}

fn less(counter: &AtomicU32) {
    // Below zero is nothing: `Err` says that it was zero.
    let _ = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
}

/// One delivery on the books, until it is dropped.
#[derive(Debug)]
pub(super) struct Held(Arc<Progress>);

impl Held {
    /// The message is done for good.
    pub(super) fn done(&self) {
        less(&self.0.left);
    }

    /// The connection went before the message was done.
    pub(super) fn lost(&self) {
        self.0.caught.store(true, Ordering::Release);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        less(&self.0.held);
    }
}

/// The books of one consumer.
#[derive(Debug)]
pub(super) struct Care {
    turns: Arc<Turns>,
    number: u64,
    progress: Arc<Progress>,
    turn: Option<OwnedSemaphorePermit>,
    /// As the last connection left it.
    next: Suspicion,
    now: Suspicion,
    /// The connection the books are about.
    epoch: u64,
    /// Since when that is so.
    since: Instant,
    /// When something came last.
    last: Instant,
}

impl Care {
    pub(super) fn new(turns: Arc<Turns>) -> Self {
        let now = Instant::now();
        Self {
            number: turns.next.fetch_add(1, Ordering::AcqRel),
            turns,
            progress: Arc::default(),
            turn: None,
            next: Suspicion::Cleared,
            now: Suspicion::Cleared,
            epoch: 0,
            since: now,
            last: now,
        }
    }

    /// Opens the books for a connection; nothing changes for one that is known.
    pub(super) fn open(&mut self, up: &Up, prefetch: u16) {
        if self.epoch == up.epoch {
            return;
        }
        self.epoch = up.epoch;
        self.since = Instant::now();
        let next = std::mem::replace(&mut self.next, Suspicion::Cleared);
        let (now, left) = if up.careful {
            (next, u32::from(prefetch))
        } else {
            let left = self.progress.left.load(Ordering::Acquire);
            (Suspicion::Cleared, left)
        };
        self.now = now;
        self.progress = Progress::new(left);
    }

    /// Whether messages are taken one at a time.
    pub(super) fn active(&self) -> bool {
        self.progress.left.load(Ordering::Acquire) > 0
    }

    /// Whether this consumer is the one that is sent what cannot be read.
    pub(super) fn suspect(&self) -> bool {
        self.now == Suspicion::Likely
    }

    /// Waits for the turn, within limits. Cancel safe.
    pub(super) async fn wait(&mut self) {
        if self.turn.is_none() {
            sleep_until(self.since + self.now.head_start()).await;
            let turn = Arc::clone(&self.turns.turn).acquire_owned();
            self.turn = match timeout_at(self.since + TURN_LIMIT, turn).await {
                Ok(Ok(turn)) => Some(turn),
                // Never closed; and late is better than not at all.
                Ok(Err(_)) | Err(_) => None,
            };
        }
        self.turns.latest.store(self.number, Ordering::Release);
        self.last = Instant::now();
    }

    /// A message came.
    pub(super) fn hold(&mut self) -> Held {
        self.last = Instant::now();
        self.progress.held.fetch_add(1, Ordering::AcqRel);
        Held(Arc::clone(&self.progress))
    }

    /// Waits until the turn may be over; for ever without a turn. Cancel safe.
    pub(super) fn quiet(&self) -> impl Future<Output = ()> + Send + 'static {
        let end = self.turn.is_some().then(|| self.last + QUIET);
        async move {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Nothing came for a while: the next one's turn, unless a message is still being worked on.
    pub(super) fn rest(&mut self) {
        if self.progress.held.load(Ordering::Acquire) == 0 {
            self.pass();
        } else {
            self.last = Instant::now();
        }
    }

    /// Lets the next one have its turn.
    pub(super) fn pass(&mut self) {
        self.turn = None;
        self.now = Suspicion::Cleared;
    }

    /// The subscription ended.
    pub(super) fn end(&mut self) {
        self.turn = None;
        let latest = self.turns.latest.load(Ordering::Acquire) == self.number;
        let caught = self.progress.caught.load(Ordering::Acquire)
            || self.progress.held.load(Ordering::Acquire) > 0;
        self.next = match (self.active() && !caught, latest) {
            (false, _) => Suspicion::Cleared,
            (true, false) => Suspicion::Possible,
            (true, true) => Suspicion::Likely,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(turns: &Arc<Turns>, left: u32) -> Care {
        let mut care = Care::new(Arc::clone(turns));
        care.progress = Progress::new(left);
        care
    }

    #[test]
    fn care_ends_when_enough_is_done_and_not_when_it_is_given_back() {
        let mut care = books(&Arc::new(Turns::new()), 2);
        care.hold().done();
        drop(care.hold());
        assert!(care.active());
        care.hold().done();
        assert!(!care.active());
        care.hold().done();
        assert!(!care.active());
    }

    #[tokio::test]
    async fn a_turn_goes_on_while_a_message_is_worked_on_and_passes_when_it_is_quiet() {
        let turns = Arc::new(Turns::new());
        let mut first = books(&turns, 3);
        let mut second = books(&turns, 3);
        first.wait().await;
        let held = first.hold();
        first.quiet().await;
        first.rest();
        assert!(first.turn.is_some());
        drop(held);
        first.quiet().await;
        first.rest();
        assert!(first.turn.is_none());
        second.wait().await;
        assert!(second.turn.is_some());
    }

    #[tokio::test]
    async fn the_suspect_is_the_last_to_start_with_empty_hands() {
        let turns = Arc::new(Turns::new());
        let mut care = books(&turns, 3);
        let mut other = books(&turns, 3);
        // The turn is not given up; after a while the other one starts all the same.
        care.wait().await;
        other.wait().await;
        assert!(other.turn.is_none());
        care.end();
        other.end();
        assert_eq!(care.next, Suspicion::Possible);
        assert_eq!(other.next, Suspicion::Likely);
        let held = care.hold();
        care.end();
        assert_eq!(care.next, Suspicion::Cleared);
        held.lost();
        drop(held);
        care.end();
        assert_eq!(care.next, Suspicion::Cleared);
        let mut normal = books(&turns, 0);
        normal.end();
        assert_eq!(normal.next, Suspicion::Cleared);
    }
}
