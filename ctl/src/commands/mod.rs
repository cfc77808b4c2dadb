//! One function for each command: request → answer → text. What the text looks like is [`crate::print`]'s
//! business, what the words of the command line are is [`crate::cli`]'s.

mod asking;
mod host;
mod instance;
mod network;

use std::time::Duration;

use berth_common::{message::request::Method, names::ProjectName};
use clap::CommandFactory;
use clap_complete::{generate, shells};
use serde::Serialize;

use crate::{
    cli::{Cli, Command, Output, Shell},
    client::{Caller, Client},
    config,
    error::CtlError,
    output,
    print::{json, table::Width},
};

/// What every command needs.
pub(crate) struct Context<C> {
    caller: C,
    timeout: Duration,
    output: Output,
    project: Option<ProjectName>,
}

impl<C: Caller> Context<C> {
    async fn ask<M: Method + Sync>(&self, request: &M) -> Result<M::Reply, CtlError> {
        self.caller.call(request, self.timeout).await
    }

    /// The project that names are looked up in.
    fn project(&self) -> ProjectName {
        self.project.clone().unwrap_or_default()
    }

    /// Prints an answer: as it is for programs, as `text` says for people.
    fn print<T: Serialize>(
        &self,
        answer: &T,
        text: impl FnOnce(&T, Width) -> String,
    ) -> Result<(), CtlError> {
        let text = match self.output {
            Output::Json => json::text(answer).map_err(|error| CtlError::Output(error.into()))?,
            Output::Table => text(answer, terminal_width()),
        };
        output::result(&text).map_err(CtlError::Output)
    }
}

/// How to repeat a request that may have been carried out.
fn repeat_with_id(id: &impl std::fmt::Display) -> String {
    format!("repeat the command with --id {id}, so that it is carried out only once")
}

/// On a terminal, tables fit into it.
fn terminal_width() -> Width {
    comfy_table::Table::new()
        .width()
        .map_or(Width::Unlimited, Width::Columns)
}

/// Carries out one command line.
pub(crate) async fn run(cli: Cli) -> Result<(), CtlError> {
    if let Command::Completion { shell } = &cli.command {
        return output::result(&completion(*shell)).map_err(CtlError::Output);
    }
    // Mistakes in files are told before anybody is bothered.
    let command = prepare(&cli)?;
    let url = config::broker_url(cli.global.url, cli.global.config)?;
    let client = Client::connect(&url, cli.global.timeout).await?;
    let context = Context {
        caller: client,
        timeout: cli.global.timeout,
        output: cli.global.output,
        project: cli.global.project,
    };
    let outcome = match command {
        Prepared::Host(command) => host::run(&context, command).await,
        Prepared::Network(command) => network::run(&context, command).await,
        Prepared::Instance(command) => instance::run(&context, command).await,
    };
    context.caller.close().await;
    outcome
}

/// A command whose files are read.
enum Prepared {
    Host(crate::cli::Host),
    Network(crate::cli::Network),
    Instance(instance::Prepared),
}

fn prepare(cli: &Cli) -> Result<Prepared, CtlError> {
    match cli.command.clone() {
        Command::Host(command) => Ok(Prepared::Host(command)),
        Command::Network(command) => Ok(Prepared::Network(command)),
        Command::Instance(command) => {
            instance::prepare(command, cli.global.project.clone()).map(Prepared::Instance)
        }
        Command::Completion { .. } => {
            Err(CtlError::Usage("completion needs no scheduler".to_owned()))
        }
    }
}

fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Cli::command();
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, "berthctl", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "berthctl", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "berthctl", &mut script),
    }
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completion(shell);
            for word in ["berthctl", "reboot", "disable", "wait-timeout"] {
                assert!(script.contains(word), "{shell:?}: {word}");
            }
        }
    }
}
