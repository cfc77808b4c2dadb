//! Threads for work on the network: each piece of work gets a named thread of its own that ends with it.
//!
//! Only such a thread may enter a namespace: it never comes back, so no shared thread can be left in the wrong
//! one. Their number is bounded, and so is the time a caller waits; a thread that hangs keeps its slot.

use std::{fs::File, path::PathBuf, sync::Arc, thread, time::Duration};

use nix::sched::{CloneFlags, setns};
use tokio::sync::{Semaphore, oneshot};

use super::error::NetError;

/// How many pieces of work may be under way: they wait for the kernel's one network lock anyway.
const SLOTS: usize = 8;
/// How long one piece of work may take, the wait for a slot included. The kernel answers within milliseconds;
/// stopping a stubborn dnsmasq takes the longest.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs work on threads.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    slots: Arc<Semaphore>,
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(SLOTS)),
        }
    }

    /// Runs async work in the agent's own namespace.
    pub(super) async fn run<T, F>(&self, name: &'static str, work: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T, NetError> + Send + 'static,
    {
        self.plain(name, move || block_on(work)).await
    }

    /// Runs async work in a named network namespace.
    pub(super) async fn run_in<T, F>(
        &self,
        name: &'static str,
        namespace: PathBuf,
        work: F,
    ) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T, NetError> + Send + 'static,
    {
        self.plain(name, move || {
            enter(&namespace)?;
            block_on(work)
        })
        .await
    }

    /// Runs blocking work. The thread may change its own namespaces.
    pub(super) async fn plain<T, F>(&self, name: &'static str, work: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, NetError> + Send + 'static,
    {
        let answer = async {
            let slot = Arc::clone(&self.slots)
                .acquire_owned()
                .await
                .map_err(|_| NetError::ThreadLost)?;
            let (sender, receiver) = oneshot::channel();
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    let _slot = slot;
                    // Nobody listens any more when the deadline has passed.
                    let _ = sender.send(work());
                })
                .map_err(NetError::system("start a thread"))?;
            receiver.await.map_err(|_| NetError::ThreadLost)?
        };
        tokio::time::timeout(DEADLINE, answer)
            .await
            .unwrap_or(Err(NetError::Deadline { limit: DEADLINE }))
    }
}

/// Moves the calling thread into a namespace, for good.
fn enter(namespace: &PathBuf) -> Result<(), NetError> {
    let file = File::open(namespace).map_err(NetError::file("open namespace", namespace))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(NetError::system(format!(
        "enter namespace {}",
        namespace.display()
    )))
}

/// Runs async work to its end on the calling thread, with a deadline.
fn block_on<T, F>(work: F) -> Result<T, NetError>
where
    F: AsyncFnOnce() -> Result<T, NetError>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NetError::system("start a runtime"))?;
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, work())
            .await
            .unwrap_or(Err(NetError::Deadline { limit: DEADLINE }))
    })
}
