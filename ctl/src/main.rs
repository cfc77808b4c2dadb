//! `berthctl`: the operator's command line. It talks to the scheduler over the message queue, as any client can.
//!
//! It holds no state and no knowledge of its own: what it shows is what the scheduler answered.

mod cli;
mod client;
mod commands;
mod config;
mod console;
mod error;
mod instance_file;
mod output;
mod print;
mod progress;
mod terminal;
#[cfg(test)]
mod testing;
mod wait;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

use crate::{
    cli::{Cli, Output},
    error::CtlError,
};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refused(&error, &arguments),
    };
    let output = cli.global.output;
    // One worker keeps the connection while the command waits.
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(CtlError::Start)
        .and_then(|runtime| runtime.block_on(commands::run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::remark(&match output {
                Output::Json => error.json(),
                Output::Table => error.text(),
            });
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help and version are results, everything else is a mistake of the command line.
fn refused(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let by_environment =
        || std::env::var_os("BERTHCTL_OUTPUT").is_some_and(|output| output == "json");
    if error.use_stderr() && (cli::asks_for_json(arguments) || by_environment()) {
        output::remark(&error::usage_json(&error.render().to_string()));
        return ExitCode::from(2);
    }
    // A terminal that went away has nobody to tell.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
