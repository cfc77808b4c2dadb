//! The parent of a tool that must not outlive the agent.
//!
//! The kernel kills such a tool when the thread that started it ends (`PR_SET_PDEATHSIG`, prctl(2)). So each has a thread of its
//! own, which starts it and then waits for nothing but being let go of: when it ends, the tool has ended, or is to end, or the
//! agent was killed. Threads of the runtime come and go as it likes.
//!
//! The wish is the child's last act before it becomes the tool: a change of user takes it back. It outlasts exec, so a wrapper
//! that becomes the tool (prlimit, setpriv, a script with `exec`) passes it on; what a wrapper starts as a child of its own has
//! it not, and is what the next agent ends (`storage/predecessor.rs`).
//!
//! Its unsafe code must stay free of allocation, locks and logging: it runs in the child of a process with many threads.

#![expect(
    unsafe_code,
    reason = "a closure between fork and exec is the only place where a child can be tied to its parent"
)]

use std::{io, os::unix::process::CommandExt, sync::mpsc};

use nix::{
    errno::Errno,
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{Pid, getppid},
};
use tokio::{process::Child, runtime::Handle, sync::oneshot};

/// Stack of the thread, in bytes: it forks, and the child uses a copy of it until it is the tool.
const STACK: usize = 256 << 10;

/// Makes the child end with the thread that starts it. To be called after all else that changes the child.
pub(super) fn end_with_parent(command: &mut std::process::Command) {
    let agent = Pid::this();
    let impose = move || -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        // The agent may have ended before that.
        if getppid() == agent {
            Ok(())
        } else {
            Err(Errno::ESRCH.into())
        }
    };
    // SAFETY: the closure only calls prctl(2) and getppid(2), which are async-signal-safe, on values it owns; turning their
    // errno into an `io::Error` does not allocate.
    unsafe {
        command.pre_exec(impose);
    }
}

/// A thread that is the parent of one tool. The tool ends with this.
pub(super) struct Parent {
    /// The thread ends when this is dropped.
    _thread: mpsc::Sender<()>,
}

impl Parent {
    /// Starts the tool. It is a child of this process like any other, and in the namespaces of the calling thread.
    pub(super) async fn start(mut command: tokio::process::Command) -> io::Result<(Self, Child)> {
        let runtime = Handle::current();
        let (sender, started) = oneshot::channel();
        let (thread, let_go) = mpsc::channel();
        let work = move || {
            {
                let _entered = runtime.enter();
                let child = command.spawn();
                // Nobody waits any more: dropping the child kills it.
                let _ = sender.send(child);
            }
            drop((command, runtime));
            // It fails when the other side is dropped, and that is waited for.
            let _ = let_go.recv();
        };
        std::thread::Builder::new()
            .name("berth-tool".to_owned())
            .stack_size(STACK)
            .spawn(work)?;
        let child = started.await.map_err(io::Error::other)??;
        Ok((Self { _thread: thread }, child))
    }
}
