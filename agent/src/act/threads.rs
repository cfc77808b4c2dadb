//! Threads for work that may block, which nobody joins: a disk or an NFS server that hangs takes these, and holds up nothing else,
//! nor the end of the program.

use std::io;

use tokio::sync::oneshot;

/// Does the work on a thread of its own and waits for it. When the caller gives up, the thread ends by itself.
pub(super) async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, answer) = oneshot::channel();
    let work = move || {
        // Nobody waits any more: the caller was cancelled or ran out of patience.
        let _ = sender.send(work());
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)?;
    let panicked = |_| io::Error::other(format!("the thread {name} panicked"));
    answer.await.map_err(panicked)
}
