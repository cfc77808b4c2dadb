//! `berth-agent`: reads its configuration and runs until it is told to stop.

use std::{path::PathBuf, process::ExitCode};

use berth_agent::{
    act::net::features::Features,
    config::{Config, DEFAULT_PATH},
    heap,
    preflight::{self, NotReady, Severity},
    process, service,
};
use berth_common::telemetry::logging;
use clap::Parser;

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
    heap::settle();
    process::exit("berth-agent", start(&Args::parse()))
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
    process::run(async |cancel| service::run(config, cancel).await)
}

#[expect(clippy::print_stdout, reason = "this is what the operator asked for")]
fn show_preflight(config: &Config) -> anyhow::Result<()> {
    let findings = preflight::check(config, &Features::of_this_kernel());
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
