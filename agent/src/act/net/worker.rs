//! Threads for work on the network: each piece of work gets a named thread of its own that ends with it.
//!
//! Only such a thread may enter a namespace: it never comes back, so no shared thread can be left in the wrong
//! one. Their number is bounded, and so is the time a caller waits; a thread that hangs keeps its slot.
//!
//! Changes of links in the agent's own namespace are many and short, and the kernel makes one at a time: they share one thread, which
//! enters nothing and is given up when it hangs.

use std::{
    fmt,
    fs::File,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::error::NetError;

/// How many pieces of work may be under way: they wait for the kernel's one network lock anyway.
const SLOTS: usize = 8;
/// How long one piece of work may take, the wait for a slot included. The kernel answers within milliseconds;
/// stopping a stubborn dnsmasq takes the longest.
const DEADLINE: Duration = Duration::from_secs(30);

/// Work for the shared thread.
type Short = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Runs work on threads.
#[derive(Clone)]
pub(super) struct Workers {
    slots: Arc<Semaphore>,
    /// The way to the shared thread, once there is one.
    shared: Arc<Mutex<Option<mpsc::UnboundedSender<Short>>>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            slots: Arc::new(Semaphore::new(SLOTS)),
            shared: Arc::default(),
        }
    }

    /// Runs async work that is short, in the agent's own namespace, after what was asked before.
    pub(super) async fn short<T, F>(&self, work: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: AsyncFnOnce() -> Result<T, NetError> + Send + 'static,
    {
        let shared = tokio::time::timeout(DEADLINE, self.shared())
            .await
            .unwrap_or(Err(NetError::Deadline { limit: DEADLINE }))?;
        let (sender, receiver) = oneshot::channel();
        let order: Short = Box::new(move || {
            Box::pin(async move {
                // Who gave up while something else hung plans anew by now.
                if sender.is_closed() {
                    return;
                }
                let done = tokio::time::timeout(DEADLINE, work()).await;
                // Nobody listens any more when the deadline has passed.
                let _ = sender.send(done.unwrap_or(Err(NetError::Deadline { limit: DEADLINE })));
            })
        });
        let sent = shared.send(order).map_err(|_| NetError::ThreadLost);
        let answer = async {
            sent?;
            receiver.await.map_err(|_| NetError::ThreadLost)
        };
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(lost)) => {
                self.give_up(&shared);
                Err(lost)
            }
            Err(_) => {
                self.give_up(&shared);
                Err(NetError::Deadline { limit: DEADLINE })
            }
        }
    }

    /// The way to the shared thread, which is begun if there is none. It has a slot too, and keeps it as long as it hangs.
    async fn shared(&self) -> Result<mpsc::UnboundedSender<Short>, NetError> {
        if let Some(sender) = &*self.lock() {
            return Ok(sender.clone());
        }
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|_| NetError::ThreadLost)?;
        let mut shared = self.lock();
        if let Some(sender) = &*shared {
            return Ok(sender.clone());
        }
        // Bounded by its senders: each waits for its answer.
        let (sender, mut orders) = mpsc::unbounded_channel::<Short>();
        let runtime = runtime()?;
        thread::Builder::new()
            .name("net-links".to_owned())
            .spawn(move || {
                let _slot = slot;
                runtime.block_on(async {
                    while let Some(order) = orders.recv().await {
                        order().await;
                    }
                });
            })
            .map_err(NetError::system("start a thread"))?;
        *shared = Some(sender.clone());
        Ok(sender)
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Short>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one gets another thread. This one ends with what it does, if that ever ends.
    fn give_up(&self, hangs: &mpsc::UnboundedSender<Short>) {
        self.lock().take_if(|sender| sender.same_channel(hangs));
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
    runtime()?.block_on(async {
        tokio::time::timeout(DEADLINE, work())
            .await
            .unwrap_or(Err(NetError::Deadline { limit: DEADLINE }))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, NetError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NetError::system("start a runtime"))
}
