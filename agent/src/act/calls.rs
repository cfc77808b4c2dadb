//! A bounded number of calls that may hang, each with a session of its own and a deadline for whoever waits.
//!
//! ```text
//!   call ──▶ queue ──▶ task (a session that nobody else uses) ──▶ answer
//!              │         │
//!              │         └─ deadline passes: the caller gets an error and its place is free; the task counts as stuck until
//!              │            the call comes back after all
//!              ├─ deadline passes: nothing was asked, so nobody's silence
//!              └─ full, too many stuck, or one stuck that is about the same thing: refused at once
//! ```
//!
//! A call may be about one of many things that hang each for itself: a guest, say. One that hangs keeps further calls about it away
//! until it has come back, and no others.
//!
//! A session is whatever one call can hand to the next: a connection to libvirt, for one. libvirt works on one connection's calls at
//! once only up to a number, and one that hangs would take a place from the others: so none is shared. One whose caller gave up is
//! not closed either: libvirt goes on with the call whether or not somebody listens, and only the answer tells that it is over.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

/// A call that nobody waits for any more and that is younger than this is likely to come back by itself: it hangs from then on.
const A_MOMENT: Duration = Duration::from_secs(1);

/// How many calls of one sort there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Calls that are made at once.
    pub workers: usize,
    /// Calls that did not come back in time, before new ones are refused.
    pub stuck: usize,
    /// Calls that wait for their turn.
    pub queued: usize,
}

/// A call was not carried out, or nobody knows whether it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It took too long. It may still happen.
    #[error("no answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// Its turn did not come, so nobody was asked.
    #[error("calls before it took all of its {} s, so it was not tried", .0.as_secs())]
    Queued(Duration),
    /// An earlier call about the same thing hangs, so this one was not tried.
    #[error("an earlier call still hangs, so this one was not tried")]
    Hung,
    /// So many earlier calls hang that this one was not tried.
    #[error("{0} earlier calls still hang, so this one was not tried")]
    Stuck(usize),
    /// So many calls wait that this one was not taken.
    #[error("{0} calls are waiting already")]
    Full(usize),
    /// The task panicked.
    #[error("the task that made the call panicked")]
    Panicked,
}

/// Whether anybody still waits for a call. Asked right before a call changes something.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket(Arc<TicketState>);

#[derive(Debug, Default)]
struct TicketState {
    ended: AtomicBool,
    abandoned: AtomicBool,
}

impl Ticket {
    /// Whether the caller has given up.
    #[must_use]
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.abandoned.load(Ordering::SeqCst)
    }
}

/// What is known of the calls.
struct Books<S> {
    /// Calls that wait for a place.
    queued: usize,
    /// Calls whose caller gave up, and which have not come back.
    stuck: usize,
    /// What they are about, as far as they are about one thing, and when they were begun.
    hung: Vec<About>,
    /// Sessions that nobody uses.
    idle: Vec<S>,
}

/// What a call is about, and when it was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct About {
    id: Uuid,
    begun: Instant,
}

impl<S> Books<S> {
    fn hangs(&self, id: Uuid) -> bool {
        let mut hung = self.hung.iter();
        hung.any(|it| it.id == id && it.begun.elapsed() >= A_MOMENT)
    }

    fn check_hung(&self, about: Option<Uuid>) -> Result<(), CallError> {
        match about {
            Some(id) if self.hangs(id) => Err(CallError::Hung),
            Some(_) | None => Ok(()),
        }
    }
}

struct Shared<S> {
    limits: Limits,
    make: Box<dyn Fn() -> S + Send + Sync>,
    places: Semaphore,
    books: Mutex<Books<S>>,
}

/// Calls of one sort.
pub(super) struct Calls<S>(Arc<Shared<S>>);

impl<S: Send + 'static> Calls<S> {
    /// Calls whose sessions are made like this, when they are needed.
    pub(super) fn new(limits: Limits, make: impl Fn() -> S + Send + Sync + 'static) -> Self {
        let books = Books {
            queued: 0,
            stuck: 0,
            hung: Vec::new(),
            idle: Vec::new(),
        };
        Self(Arc::new(Shared {
            limits,
            make: Box::new(make),
            places: Semaphore::new(limits.workers),
            books: Mutex::new(books),
        }))
    }

    /// Runs `work` with a session of its own.
    ///
    /// # Errors
    /// [`CallError`]; after [`CallError::Deadline`] the work may still be done.
    pub(super) async fn call<T, F>(
        &self,
        limit: Duration,
        work: impl FnOnce(S, Ticket) -> F + Send,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = (S, T)> + Send + 'static,
    {
        self.call_about(None, limit, work).await
    }

    /// The same, about one thing that may hang by itself.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(super) async fn call_about<T, F>(
        &self,
        about: Option<Uuid>,
        limit: Duration,
        work: impl FnOnce(S, Ticket) -> F + Send,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = (S, T)> + Send + 'static,
    {
        let give_up = Instant::now() + limit;
        let _place = {
            let _queued = self.queue(about)?;
            let place = timeout_at(give_up, self.0.places.acquire()).await;
            // It is closed never, so an error is the deadline's.
            place
                .ok()
                .and_then(Result::ok)
                .ok_or(CallError::Queued(limit))?
        };
        // Another one may have got stuck while this one waited.
        self.0.books().check_hung(about)?;
        let ticket = Ticket::default();
        let begun = Instant::now();
        let about = about.map(|id| About { id, begun });
        let session = self.0.books().idle.pop();
        let session = session.unwrap_or_else(|| (self.0.make)());
        let running = Running {
            shared: Arc::clone(&self.0),
            ticket: ticket.clone(),
            about,
        };
        let work = work(session, ticket.clone());
        let task = tokio::spawn(async move {
            let (session, answer) = work.await;
            running.shared.give_back(session);
            drop(running);
            answer
        });
        let _waiting = Waiting {
            shared: &self.0,
            ticket,
            about,
        };
        match timeout_at(give_up, task).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(CallError::Panicked),
            Err(_) => Err(CallError::Deadline(limit)),
        }
    }

    /// How many calls did not come back in time and still hang.
    #[must_use]
    pub(super) fn stuck(&self) -> usize {
        self.0.books().stuck
    }

    /// Whether a call about this did not come back in time and still hangs.
    #[must_use]
    pub(super) fn hangs(&self, about: Uuid) -> bool {
        self.0.books().hangs(about)
    }

    /// A place in the queue.
    fn queue(&self, about: Option<Uuid>) -> Result<Queued<'_, S>, CallError> {
        let mut books = self.0.books();
        books.check_hung(about)?;
        if books.stuck >= self.0.limits.stuck {
            return Err(CallError::Stuck(books.stuck));
        }
        // Whoever finds a place free does not wait.
        if books.queued >= self.0.limits.queued.max(self.0.places.available_permits()) {
            return Err(CallError::Full(books.queued));
        }
        books.queued += 1;
        Ok(Queued(&self.0))
    }
}

impl<S> Shared<S> {
    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn books(&self) -> MutexGuard<'_, Books<S>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As many are kept as calls run at once.
    fn give_back(&self, session: S) {
        let mut books = self.books();
        if books.idle.len() < self.limits.workers {
            books.idle.push(session);
        }
    }
}

/// One in the queue.
struct Queued<'a, S>(&'a Shared<S>);

impl<S> Drop for Queued<'_, S> {
    fn drop(&mut self) {
        self.0.books().queued -= 1;
    }
}

/// A call that is being made. Dropped when it has come back, or panicked.
struct Running<S> {
    shared: Arc<Shared<S>>,
    ticket: Ticket,
    about: Option<About>,
}

impl<S> Drop for Running<S> {
    fn drop(&mut self) {
        let mut books = self.shared.books();
        self.ticket.0.ended.store(true, Ordering::SeqCst);
        if self.ticket.is_abandoned() {
            books.stuck -= 1;
            let this = self.about;
            // Of two that were begun at the same time it does not matter which.
            if let Some(at) = books.hung.iter().position(|it| Some(*it) == this) {
                books.hung.swap_remove(at);
            }
        }
    }
}

/// A caller that waits. Dropped before the call has come back, it gives it up.
struct Waiting<'a, S> {
    shared: &'a Shared<S>,
    ticket: Ticket,
    about: Option<About>,
}

impl<S> Drop for Waiting<'_, S> {
    fn drop(&mut self) {
        let mut books = self.shared.books();
        if !self.ticket.0.ended.load(Ordering::SeqCst) {
            self.ticket.0.abandoned.store(true, Ordering::SeqCst);
            books.stuck += 1;
            books.hung.extend(self.about);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::atomic::AtomicUsize};

    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_secs(1);

    /// How often a session was used.
    type Uses = u32;

    fn calls(workers: usize, stuck: usize, queued: usize) -> Calls<Uses> {
        let limits = Limits {
            workers,
            stuck,
            queued,
        };
        Calls::new(limits, || 0)
    }

    async fn plain(calls: &Calls<Uses>, answer: u32) -> Result<u32, CallError> {
        let work = |session, _| async move { (session, answer) };
        calls.call(LONG, work).await
    }

    /// A call that takes until it is released.
    async fn held(
        calls: &Calls<Uses>,
        limit: Duration,
        release: oneshot::Receiver<()>,
    ) -> Result<(), CallError> {
        let work = |session, _| async move {
            drop(release.await);
            (session, ())
        };
        calls.call(limit, work).await
    }

    #[tokio::test]
    async fn a_session_goes_from_one_call_to_the_next() {
        let calls = calls(1, 1, 1);
        for expected in 1..=3 {
            let work = |uses, _| async move { (uses + 1, uses + 1) };
            assert_eq!(calls.call(LONG, work).await.unwrap(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hung_calls_are_replaced_then_refused_and_forgiven_when_they_return() {
        let calls = calls(1, 2, 3);
        let mut releases = Vec::new();
        for hung in 1..=2 {
            let (release, until) = oneshot::channel();
            releases.push(release);
            let error = held(&calls, SHORT, until).await.unwrap_err();
            assert!(matches!(error, CallError::Deadline(_)), "{error}");
            assert_eq!(calls.stuck(), hung);
            if hung == 1 {
                assert_eq!(plain(&calls, 7).await.unwrap(), 7);
            }
        }
        let error = plain(&calls, 7).await.unwrap_err();
        assert!(matches!(error, CallError::Stuck(2)), "{error}");
        drop(releases);
        while calls.stuck() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(plain(&calls, 7).await.unwrap(), 7);
        assert_eq!(calls.0.books().idle.len(), 1, "as many as run at once");
    }

    /// As [`held`], about one thing.
    async fn held_about(
        calls: &Calls<Uses>,
        about: Uuid,
        release: oneshot::Receiver<()>,
    ) -> Result<(), CallError> {
        let work = |session, _| async move {
            drop(release.await);
            (session, ())
        };
        calls.call_about(Some(about), SHORT, work).await
    }

    async fn plain_about(calls: &Calls<Uses>, about: Uuid) -> Result<u32, CallError> {
        let work = |session, _| async move { (session, 7) };
        calls.call_about(Some(about), LONG, work).await
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_keeps_calls_about_the_same_thing_away_and_no_others() {
        let calls = calls(1, 9, 9);
        let [ill, well] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let (release, until) = oneshot::channel();
        let error = held_about(&calls, ill, until).await.unwrap_err();
        assert!(matches!(error, CallError::Deadline(_)), "{error}");
        assert!(calls.hangs(ill) && !calls.hangs(well));
        // However often it is tried, no second one hangs.
        for _ in 0..20 {
            let error = plain_about(&calls, ill).await.unwrap_err();
            assert!(matches!(error, CallError::Hung), "{error}");
        }
        assert_eq!(calls.stuck(), 1);
        assert_eq!(plain_about(&calls, well).await.unwrap(), 7);
        assert_eq!(plain(&calls, 8).await.unwrap(), 8);
        drop(release);
        while calls.stuck() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(!calls.hangs(ill));
        assert_eq!(plain_about(&calls, ill).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_caller_went_away_early_hangs_only_if_it_does_not_come_back() {
        let calls = calls(2, 9, 9);
        let about = Uuid::from_u128(1);
        let (_release, until) = oneshot::channel();
        let call = held_about(&calls, about, until);
        let early = A_MOMENT / 10;
        assert!(tokio::time::timeout(early, call).await.is_err());
        assert_eq!(calls.stuck(), 1);
        assert_eq!(plain_about(&calls, about).await.unwrap(), 7);
        tokio::time::sleep(A_MOMENT).await;
        let error = plain_about(&calls, about).await.unwrap_err();
        assert!(matches!(error, CallError::Hung), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waited_while_another_about_the_same_thing_got_stuck_is_not_begun() {
        let calls = calls(1, 9, 9);
        let ill = Uuid::from_u128(1);
        let (_release, until) = oneshot::channel();
        let (first, second) =
            tokio::join!(held_about(&calls, ill, until), plain_about(&calls, ill));
        assert!(matches!(first, Err(CallError::Deadline(_))), "{first:?}");
        assert!(matches!(second, Err(CallError::Hung)), "{second:?}");
        assert_eq!(calls.stuck(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_is_never_begun() {
        let calls = calls(1, 5, 5);
        let (release, until) = oneshot::channel();
        let begun = AtomicUsize::new(0);
        let late = async {
            let work = |session, _| {
                begun.fetch_add(1, Ordering::SeqCst);
                async move { (session, ()) }
            };
            let error = calls.call(SHORT, work).await.unwrap_err();
            assert!(matches!(error, CallError::Queued(_)), "{error}");
            assert_eq!(calls.stuck(), 0, "it was waiting, not running");
            drop(release);
        };
        let (blocked, ()) = tokio::join!(held(&calls, LONG, until), late);
        blocked.unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        assert_eq!(calls.0.books().queued, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_given_up_is_told_before_it_changes_something() {
        let calls = calls(1, 5, 5);
        let (told, tells) = oneshot::channel();
        let work = |session, ticket: Ticket| async move {
            tokio::time::sleep(2 * SHORT).await;
            let _ = told.send(ticket.is_abandoned());
            (session, ())
        };
        let error = calls.call(SHORT, work).await.unwrap_err();
        assert!(matches!(error, CallError::Deadline(_)), "{error}");
        assert!(tells.await.unwrap());
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_call_only() {
        let calls = calls(1, 1, 1);
        let work = |_, _| async { panic!("on purpose") };
        let error = calls.call::<(), _>(LONG, work).await.unwrap_err();
        assert!(matches!(error, CallError::Panicked), "{error}");
        assert_eq!(plain(&calls, 1).await.unwrap(), 1);
        assert_eq!(calls.stuck(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded() {
        let calls = calls(1, 9, 1);
        let (release, until) = oneshot::channel();
        let second = plain(&calls, 2);
        let third = async {
            let error = plain(&calls, 3).await.unwrap_err();
            assert!(matches!(error, CallError::Full(1)), "{error}");
            drop(release);
        };
        let (first, second, ()) = tokio::join!(held(&calls, LONG, until), second, third);
        first.unwrap();
        assert_eq!(second.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_a_call_that_counts_as_stuck() {
        let calls = calls(1, 1, 1);
        let work = |session, _| async move {
            pending::<()>().await;
            (session, ())
        };
        let call = calls.call(LONG, work);
        assert!(tokio::time::timeout(SHORT, call).await.is_err());
        assert_eq!(calls.stuck(), 1);
        let error = plain(&calls, 7).await.unwrap_err();
        assert!(matches!(error, CallError::Stuck(1)), "{error}");
    }
}
