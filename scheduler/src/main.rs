//! `berth-scheduler`: reads its configuration and runs until it is told to stop.

use std::{path::PathBuf, process::ExitCode};

use berth_common::telemetry::{error_chain, logging};
use berth_scheduler::{
    config::{Config, DEFAULT_PATH},
    service,
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Decides which hypervisor gets which instance, and keeps the documents flowing.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Only check the configuration: say what is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
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
    eprintln!("berth-scheduler: {}", error_chain(error));
}

fn start(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if args.check_config {
        return Ok(());
    }
    logging::init(&config.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
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
