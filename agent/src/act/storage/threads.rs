//! Blocking work on files, on bounded named threads with a deadline: a disk or an NFS server that hangs takes these
//! threads, and nothing else.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::fault::StorageFault;
use crate::act::threads;

/// A bound on threads that may block. A clone has the same bound.
#[derive(Debug, Clone)]
pub(super) struct FileThreads {
    name: &'static str,
    places: Arc<Semaphore>,
    deadline: Duration,
}

impl FileThreads {
    pub(super) fn new(name: &'static str, count: usize, deadline: Duration) -> Self {
        Self {
            name,
            places: Arc::new(Semaphore::new(count.max(1))),
            deadline,
        }
    }

    /// Runs the work on a thread of its own and waits for it. Past the deadline the caller is released; the thread
    /// keeps its place until it ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StorageFault> + Send + 'static,
    ) -> Result<T, StorageFault> {
        let answer = async {
            let place = Arc::clone(&self.places)
                .acquire_owned()
                .await
                .map_err(StorageFault::thread)?;
            let work = move || {
                let result = work();
                drop(place);
                result
            };
            threads::run(self.name, work)
                .await
                .map_err(StorageFault::thread)?
        };
        tokio::time::timeout(self.deadline, answer)
            .await
            .unwrap_or(Err(StorageFault::Hung {
                after: self.deadline,
            }))
    }
}
