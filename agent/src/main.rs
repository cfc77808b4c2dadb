//! `berth-agent`: reads its configuration and runs until it is told to stop.

use std::{path::PathBuf, process::ExitCode};

use berth_agent::{
    config::{Config, DEFAULT_PATH},
    preflight::{self, NotReady, Severity},
    service,
};
use berth_common::telemetry::{error_chain, logging};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Threads of the runtime: the agent waits most of its time, and blocking calls have threads of their own.
const WORKERS: usize = 2;
/// Threads for blocking work on small files.
const BLOCKING: usize = 16;
/// Stack of each thread in bytes: most of it is never touched, but it counts against memory limits.
const STACK: usize = 1 << 20;

/// Makes this hypervisor match the documents it is sent.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Only check the configuration: say what is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
    /// Only check whether this machine can be a hypervisor: say what was found, and end.
    #[arg(long, conflicts_with = "check_config")]
    preflight_only: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a program whose log may not have started"
)]
fn report(error: &(dyn std::error::Error + 'static)) {
    eprintln!("berth-agent: {}", error_chain(error));
}

fn start(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if args.check_config {
        return Ok(());
    }
    if args.preflight_only {
        return show_preflight(&config);
    }
    logging::init(&config.log)?;
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
        service::run(config, cancel).await
    })
}

#[expect(clippy::print_stdout, reason = "this is what the operator asked for")]
fn show_preflight(config: &Config) -> anyhow::Result<()> {
    let findings = preflight::check(config);
    if findings
        .all()
        .iter()
        .any(|finding| finding.severity == Severity::Fatal)
    {
        return Err(NotReady(findings).into());
    }
    println!("this machine is ready to be a hypervisor:\n{findings}");
    Ok(())
}
