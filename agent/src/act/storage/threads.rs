//! Blocking work on files, on bounded named threads with a deadline: a disk or an NFS server that hangs takes these
//! threads, and nothing else.
//!
//! A storage pool that has a disk for itself has a breaker before its threads: after one piece of work that did not end in
//! time others are refused at once, and now and then one finds out. Work that ends late is as good an answer.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_common::names::PoolName;
use chrono::Utc;
use tokio::sync::Semaphore;

use super::fault::StorageFault;
use crate::{
    act::threads,
    decide::breaker::{Admission, Breaker, BreakerLimits, BreakerState},
};

/// How long a disk that did not answer is left alone.
const UNASKED: Duration = Duration::from_secs(15);
/// How long whoever finds out whether it answers, at first or again, is kept; the work goes on, and is heard of when it ends.
const PROBE: Duration = Duration::from_secs(5);

/// A bound on threads that may block. A clone has the same bound.
#[derive(Debug, Clone)]
pub(super) struct FileThreads {
    name: &'static str,
    places: Arc<Semaphore>,
    deadline: Duration,
    disk: Option<Disk>,
}

/// The disk that all work is on.
#[derive(Debug, Clone)]
struct Disk {
    pool: PoolName,
    breaker: Arc<Mutex<Breaker>>,
    /// Whether anything was ever answered. The agent's start waits for the first answers.
    heard: Arc<AtomicBool>,
    probe: Duration,
}

impl FileThreads {
    pub(super) fn new(name: &'static str, count: usize, deadline: Duration) -> Self {
        Self {
            name,
            places: Arc::new(Semaphore::new(count.max(1))),
            deadline,
            disk: None,
        }
    }

    /// For work on the disk of one pool, and on nothing else.
    pub(super) fn of_pool(pool: &PoolName, count: usize, deadline: Duration) -> Self {
        let limits = BreakerLimits {
            misses: 1,
            pause: UNASKED,
            probe: PROBE.min(deadline),
        };
        Self {
            disk: Some(Disk {
                pool: pool.clone(),
                breaker: Arc::new(Mutex::new(Breaker::new(limits))),
                heard: Arc::default(),
                probe: limits.probe,
            }),
            ..Self::new("berth-pool", count, deadline)
        }
    }

    /// Runs the work on a thread of its own and waits for it. Past the deadline the caller is released; the thread
    /// keeps its place until it ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StorageFault> + Send + 'static,
    ) -> Result<T, StorageFault> {
        let after = match &self.disk {
            Some(disk) => disk.admit(self.deadline)?,
            None => self.deadline,
        };
        let disk = self.disk.clone();
        let answer = async {
            let place = Arc::clone(&self.places)
                .acquire_owned()
                .await
                .map_err(StorageFault::thread)?;
            let work = move || {
                let result = work();
                drop(place);
                // A disk that says no is there as well.
                if let Some(disk) = disk {
                    disk.answered();
                }
                result
            };
            threads::run(self.name, work)
                .await
                .map_err(StorageFault::thread)?
        };
        match tokio::time::timeout(after, answer).await {
            Ok(result) => result,
            Err(_) => {
                if let Some(disk) = &self.disk {
                    disk.missed();
                }
                Err(StorageFault::Hung { after })
            }
        }
    }
}

impl Disk {
    /// How long whoever comes now waits.
    fn admit(&self, deadline: Duration) -> Result<Duration, StorageFault> {
        match self.breaker().admit(Instant::now()) {
            Admission::Call if self.heard.load(Ordering::Relaxed) => Ok(deadline),
            Admission::Call | Admission::Probe => Ok(self.probe),
            Admission::Refused(since) => Err(StorageFault::NotAsked {
                pool: self.pool.clone(),
                since,
            }),
        }
    }

    fn answered(&self) {
        self.heard.store(true, Ordering::Relaxed);
        let mut breaker = self.breaker();
        let was_closed = breaker.state() == BreakerState::Closed;
        breaker.answered();
        if !was_closed {
            tracing::info!(pool = %self.pool, "the disk of a storage pool answers again");
        }
    }

    fn missed(&self) {
        let mut breaker = self.breaker();
        let was_closed = breaker.state() == BreakerState::Closed;
        breaker.missed(Instant::now(), Utc::now());
        if was_closed {
            tracing::warn!(pool = %self.pool, "the disk of a storage pool does not answer");
        }
    }

    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_disk_that_hangs_is_not_asked_until_it_answers() {
        let disk = FileThreads::of_pool(&"fast".parse().unwrap(), 4, SHORT);
        let (answer, hangs) = mpsc::channel::<()>();
        let hung = disk.run(move || Ok(hangs.recv().is_ok())).await;
        assert!(matches!(hung, Err(StorageFault::Hung { .. })), "{hung:?}");
        for _ in 0..100 {
            let refused = disk.run(|| Ok(())).await.unwrap_err();
            let told = refused.to_string();
            assert!(
                told.starts_with(
                    "the disk of storage pool fast was not asked: it has not answered since 20"
                ),
                "{told}"
            );
        }
        // What took too long ends late: that is an answer.
        answer.send(()).unwrap();
        let again = async {
            while disk.run(|| Ok(())).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        // Sooner than it would have been asked again.
        tokio::time::timeout(UNASKED / 3, again).await.unwrap();
    }

    #[tokio::test]
    async fn one_at_a_time_finds_out_whether_a_disk_answers() {
        let pause = Duration::from_millis(200);
        let mut threads = FileThreads::of_pool(&"fast".parse().unwrap(), 4, 10 * pause);
        let disk = threads.disk.as_mut().unwrap();
        disk.probe = 4 * pause;
        *disk.breaker() = Breaker::new(BreakerLimits {
            misses: 1,
            pause,
            probe: disk.probe,
        });
        disk.missed();
        tokio::time::sleep(pause).await;
        let (answer, hangs) = mpsc::channel::<()>();
        let probe = {
            let threads = threads.clone();
            tokio::spawn(async move { threads.run(move || Ok(hangs.recv().is_ok())).await })
        };
        tokio::task::yield_now().await;
        let refused = threads.run(|| Ok(())).await;
        assert!(
            matches!(refused, Err(StorageFault::NotAsked { .. })),
            "{refused:?}"
        );
        answer.send(()).unwrap();
        assert!(probe.await.unwrap().unwrap());
        threads.run(|| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_disk_that_never_answered_is_not_waited_for_as_long() {
        let mut threads = FileThreads::of_pool(&"fast".parse().unwrap(), 4, 600 * SHORT);
        threads.disk.as_mut().unwrap().probe = SHORT;
        let (answer, hangs) = mpsc::channel::<()>();
        let hung = threads.run(move || Ok(hangs.recv().is_ok())).await;
        assert!(
            matches!(hung, Err(StorageFault::Hung { after }) if after == SHORT),
            "{hung:?}"
        );
        answer.send(()).unwrap();
        let again = async {
            while threads.run(|| Ok(())).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(UNASKED / 3, again).await.unwrap();
        // It has answered: now it may be slow.
        let slow = threads.run(|| {
            std::thread::sleep(3 * SHORT);
            Ok(())
        });
        slow.await.unwrap();
    }

    #[tokio::test]
    async fn work_on_more_than_one_disk_is_refused_for_none() {
        let files = FileThreads::new("files", 4, SHORT);
        let (_answer, hangs) = mpsc::channel::<()>();
        let hung = files.run(move || Ok(hangs.recv().is_ok())).await;
        assert!(matches!(hung, Err(StorageFault::Hung { .. })), "{hung:?}");
        files.run(|| Ok(())).await.unwrap();
    }
}
