//! What the programs of this package share: one runtime of bounded size that runs until a signal ends it, and the
//! last word on standard error.

use std::process::ExitCode;

use berth_common::telemetry::error_chain;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Threads of the runtime: the agent waits most of its time, and blocking calls have threads of their own.
const WORKERS: usize = 2;
/// Threads for blocking work on small files.
const BLOCKING: usize = 16;
/// Stack of each thread in bytes: most of it is never touched, but it counts against memory limits.
const STACK: usize = 1 << 20;

/// Runs a program until it ends by itself; SIGTERM and SIGINT cancel it.
///
/// # Errors
/// There is no runtime to be had, or those of the program.
pub fn run(
    program: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        });
        program(cancel).await
    })
}

/// The exit code of a program, and why it failed on standard error.
#[expect(
    clippy::print_stderr,
    reason = "the last word of a program whose log may not have started"
)]
#[must_use]
pub fn exit(name: &str, outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
