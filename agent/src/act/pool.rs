//! A bounded number of threads for calls that may hang, with a deadline for whoever waits.
//!
//! ```text
//!   call ──▶ queue ──▶ thread (its own session) ──▶ answer
//!              │            │
//!              │            └─ deadline passes: the caller gets an error, the thread counts as stuck and another
//!              │               takes its place; when the call returns after all, one of them ends
//!              └─ full, or too many threads stuck: refused at once
//! ```
//!
//! Knows nothing of libvirt: a session is whatever a thread keeps between calls.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

/// How much a pool may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that work.
    pub workers: usize,
    /// Threads whose call did not come back in time, before new calls are refused.
    pub stuck: usize,
    /// Calls that wait for a thread.
    pub queued: usize,
}

/// A call was not carried out, or nobody knows whether it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum PoolError {
    /// It took too long. It may still happen.
    #[error("no answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// So many earlier calls hang that this one was not tried.
    #[error("{0} earlier calls still hang, so this one was not tried")]
    Stuck(usize),
    /// So many calls wait that this one was not taken.
    #[error("{0} calls are waiting already")]
    Full(usize),
    /// The thread panicked.
    #[error("the thread that made the call panicked")]
    Panicked,
    /// No thread could be made.
    #[error("no thread could be started")]
    Thread(#[source] std::io::Error),
}

/// Whether anybody still waits for a call. Asked right before a call changes something.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket(Arc<TicketState>);

#[derive(Debug, Default)]
struct TicketState {
    running: AtomicBool,
    abandoned: AtomicBool,
}

impl Ticket {
    /// Whether the caller has given up.
    #[must_use]
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.abandoned.load(Ordering::SeqCst)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

type Work<S> = Box<dyn FnOnce(&mut S, &Ticket) + Send>;

struct Job<S> {
    ticket: Ticket,
    work: Work<S>,
}

struct Queue<S> {
    jobs: VecDeque<Job<S>>,
    threads: usize,
    idle: usize,
    stuck: usize,
    closed: bool,
}

struct Shared<S> {
    name: &'static str,
    limits: Limits,
    make: Box<dyn Fn() -> S + Send + Sync>,
    queue: Mutex<Queue<S>>,
    wake: Condvar,
}

/// The threads, and the queue in front of them.
pub(super) struct Pool<S: 'static> {
    shared: Arc<Shared<S>>,
}

impl<S: 'static> Pool<S> {
    /// A pool whose threads are called `name` and each `make` a session of their own. Threads start when needed.
    pub(super) fn new(
        name: &'static str,
        limits: Limits,
        make: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let queue = Queue {
            jobs: VecDeque::new(),
            threads: 0,
            idle: 0,
            stuck: 0,
            closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                name,
                limits,
                make: Box::new(make),
                queue: Mutex::new(queue),
                wake: Condvar::new(),
            }),
        }
    }

    /// Runs `work` on one of the threads.
    ///
    /// # Errors
    /// [`PoolError`]; after [`PoolError::Deadline`] the work may still be done, if it had begun.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut S, &Ticket) -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (sender, answer) = oneshot::channel();
        let ticket = Ticket::default();
        let work: Work<S> = Box::new(move |session, ticket| {
            // Nobody listens when the caller has given up.
            drop(sender.send(work(session, ticket)));
        });
        self.shared.submit(Job {
            ticket: ticket.clone(),
            work,
        })?;
        let mut waiting = Waiting {
            shared: &self.shared,
            ticket,
            answered: false,
        };
        let result = tokio::time::timeout(limit, answer).await;
        waiting.answered = result.is_ok();
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(PoolError::Panicked),
            Err(_) => Err(PoolError::Deadline(limit)),
        }
    }

    /// How many calls did not come back in time and still hang.
    #[cfg(test)]
    fn stuck(&self) -> usize {
        self.shared.lock().stuck
    }
}

impl<S: 'static> Drop for Pool<S> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

/// A caller that waits; dropped without an answer, it gives its call up.
struct Waiting<'a, S: 'static> {
    shared: &'a Arc<Shared<S>>,
    ticket: Ticket,
    answered: bool,
}

impl<S: 'static> Drop for Waiting<'_, S> {
    fn drop(&mut self) {
        if !self.answered {
            Shared::abandon(self.shared, &self.ticket);
        }
    }
}

impl<S: 'static> Shared<S> {
    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Queue<S>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Self>, job: Job<S>) -> Result<(), PoolError> {
        let mut queue = self.lock();
        if queue.stuck >= self.limits.stuck {
            return Err(PoolError::Stuck(queue.stuck));
        }
        if queue.jobs.len() >= self.limits.queued {
            return Err(PoolError::Full(queue.jobs.len()));
        }
        let more = queue.idle <= queue.jobs.len() && queue.threads < self.wanted_threads(&queue);
        if more
            && let Err(error) = self.spawn(&mut queue)
            && queue.threads == 0
        {
            return Err(PoolError::Thread(error));
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn wanted_threads(&self, queue: &Queue<S>) -> usize {
        self.limits.workers + queue.stuck.min(self.limits.stuck)
    }

    fn spawn(self: &Arc<Self>, queue: &mut Queue<S>) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || shared.work())?;
        queue.threads += 1;
        Ok(())
    }

    /// The caller has given up: what waits is not begun any more; what runs counts as stuck.
    fn abandon(self: &Arc<Self>, ticket: &Ticket) {
        let mut queue = self.lock();
        ticket.0.abandoned.store(true, Ordering::SeqCst);
        queue.jobs.retain(|job| !job.ticket.is(ticket));
        if !ticket.0.running.load(Ordering::SeqCst) {
            return;
        }
        queue.stuck += 1;
        if !queue.jobs.is_empty() && queue.threads < self.wanted_threads(&queue) {
            // Without a replacement the others carry on; the next call tries again.
            drop(self.spawn(&mut queue));
        }
    }

    fn work(self: Arc<Self>) {
        let mut session = None;
        let mut queue = self.lock();
        loop {
            let Some(job) = queue.jobs.pop_front() else {
                if queue.closed || queue.threads > self.wanted_threads(&queue) {
                    break;
                }
                queue.idle += 1;
                queue = self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            job.ticket.0.running.store(true, Ordering::SeqCst);
            drop(queue);
            // A session that saw a panic is not used again.
            let mut current = session.take().unwrap_or_else(|| (self.make)());
            let Job { ticket, work } = job;
            if catch_unwind(AssertUnwindSafe(|| work(&mut current, &ticket))).is_ok() {
                session = Some(current);
            }
            queue = self.lock();
            ticket.0.running.store(false, Ordering::SeqCst);
            if ticket.is_abandoned() {
                queue.stuck -= 1;
            }
        }
        queue.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    /// Long enough for a thread to begin a call.
    const SHORT: Duration = Duration::from_secs(1);

    fn pool() -> Pool<u32> {
        Pool::new(
            "test",
            Limits {
                workers: 2,
                stuck: 2,
                queued: 3,
            },
            || 0,
        )
    }

    /// Until the pool has as many stuck calls as expected.
    async fn stuck(pool: &Pool<u32>, expected: usize) {
        tokio::time::timeout(LONG, async {
            while pool.stuck() != expected {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{} stuck, expected {expected}", pool.stuck()));
    }

    #[tokio::test]
    async fn a_thread_keeps_its_session() {
        let pool = Pool::new(
            "test",
            Limits {
                workers: 1,
                stuck: 1,
                queued: 1,
            },
            || 0_u32,
        );
        for expected in 1..=3 {
            let count = pool.call(LONG, |session, _| {
                *session += 1;
                *session
            });
            assert_eq!(count.await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn hung_calls_are_replaced_then_refused_and_forgiven_when_they_return() {
        let pool = pool();
        let mut releases = Vec::new();
        for hung in 1..=2 {
            let (release, held) = mpsc::channel::<()>();
            releases.push(release);
            let error = pool.call(SHORT, move |_, _| held.recv()).await.unwrap_err();
            assert!(matches!(error, PoolError::Deadline(_)), "{error}");
            assert_eq!(pool.stuck(), hung);
            if hung == 1 {
                assert_eq!(pool.call(LONG, |_, _| 7).await.unwrap(), 7);
            }
        }
        let error = pool.call(LONG, |_, _| ()).await.unwrap_err();
        assert!(matches!(error, PoolError::Stuck(2)), "{error}");
        drop(releases);
        stuck(&pool, 0).await;
        pool.call(LONG, |_, _| ()).await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_is_never_begun() {
        let pool = Pool::new(
            "test",
            Limits {
                workers: 1,
                stuck: 5,
                queued: 5,
            },
            || 0_u32,
        );
        let (release, held) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let blocker = pool.call(LONG, move |_, _| {
            began.send(()).unwrap();
            held.recv()
        });
        let late = async {
            tokio::task::spawn_blocking(move || begun.recv().unwrap())
                .await
                .unwrap();
            let error = pool
                .call(SHORT, |session, _| *session = 99)
                .await
                .unwrap_err();
            assert!(matches!(error, PoolError::Deadline(_)), "{error}");
            assert_eq!(pool.stuck(), 0, "it was waiting, not running");
            drop(release);
        };
        let (blocked, ()) = tokio::join!(blocker, late);
        assert!(blocked.unwrap().is_err(), "released by dropping the sender");
        assert_eq!(pool.call(LONG, |session, _| *session).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_call_only() {
        let pool = Pool::new(
            "test",
            Limits {
                workers: 1,
                stuck: 1,
                queued: 1,
            },
            || 0_u32,
        );
        let error = pool
            .call(LONG, |_, _| panic!("on purpose"))
            .await
            .unwrap_err();
        assert!(matches!(error, PoolError::Panicked), "{error}");
        assert_eq!(pool.call(LONG, |_, _| 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let pool = Pool::new(
            "test",
            Limits {
                workers: 1,
                stuck: 9,
                queued: 1,
            },
            || 0_u32,
        );
        let (release, held) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let first = pool.call(LONG, move |_, _| {
            began.send(()).unwrap();
            held.recv()
        });
        let rest = async {
            tokio::task::spawn_blocking(move || begun.recv().unwrap())
                .await
                .unwrap();
            let second = pool.call(LONG, |_, _| ());
            let third = async {
                let error = pool.call(LONG, |_, _| ()).await.unwrap_err();
                assert!(matches!(error, PoolError::Full(1)), "{error}");
                drop(release);
            };
            tokio::join!(second, third).0.unwrap();
        };
        drop(tokio::join!(first, rest));
    }
}
