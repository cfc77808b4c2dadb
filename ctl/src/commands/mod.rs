//! One function for each command: request → answer → text. What the text looks like is [`crate::print`]'s
//! business, what the words of the command line are is [`crate::cli`]'s.

mod aggregate;
mod asking;
mod host;
mod instance;
mod lookup;
mod network;
mod placement;
mod port;
mod router;
mod security_group;
mod server_group;
mod snapshot;
mod subnet;
mod trace;
mod volume;

use std::{path::Path, time::Duration};

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
    terminal::visible_lines,
};

/// What every command needs.
pub(crate) struct Context<C> {
    pub(crate) caller: C,
    /// How long an answer may take.
    pub(crate) timeout: Duration,
    pub(crate) output: Output,
    /// What `--project` says.
    pub(crate) project: Option<ProjectName>,
}

impl<C: Caller> Context<C> {
    async fn ask<M: Method + Sync>(&self, request: &M) -> Result<M::Reply, CtlError> {
        self.caller.call(request, self.timeout).await
    }

    /// Asks for page after page. `page`: what to ask for after the last one that came; `read`: what came, and whether
    /// more follows.
    async fn pages<M: Method + Sync, T>(
        &self,
        page: impl Fn(Option<&T>) -> M,
        read: impl Fn(M::Reply) -> (Vec<T>, bool),
    ) -> Result<Vec<T>, CtlError> {
        let mut all: Vec<T> = Vec::new();
        loop {
            let (came, more) = read(self.ask(&page(all.last())).await?);
            if more && came.is_empty() {
                return Err(CtlError::Nonsense {
                    method: M::NAME,
                    reason: "an empty page, and more to follow".to_owned(),
                });
            }
            all.extend(came);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Sends a wish that only says how something shall be: twice is the same as once.
    async fn wish<M: Method + Sync>(&self, request: &M) -> Result<M::Reply, CtlError> {
        let answer = self.ask(request).await;
        answer.map_err(|error| error.advise("repeating the command is harmless"))
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
            Output::Table => visible_lines(&text(answer, terminal_width())),
        };
        output::result(&text).map_err(CtlError::Output)
    }
}

/// How to repeat a request that may have been carried out.
fn repeat_with_id(id: &impl std::fmt::Display) -> String {
    format!("repeat the command with --id {id}, so that it is carried out only once")
}

/// The text of an instance file.
fn read(file: &Path) -> Result<String, CtlError> {
    std::fs::read_to_string(file).map_err(|source| CtlError::ReadFile {
        path: file.to_owned(),
        source,
    })
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
        Prepared::Port(command) => port::run(&context, command).await,
        Prepared::Subnet(command) => subnet::run(&context, command).await,
        Prepared::SecurityGroup(command) => security_group::run(&context, command).await,
        Prepared::Router(command) => router::run(&context, command).await,
        Prepared::FloatingIp(command) => router::run_floating(&context, command).await,
        Prepared::Instance(command) => instance::run(&context, command).await,
        Prepared::Volume(command) => volume::run(&context, command).await,
        Prepared::Snapshot(command) => snapshot::run(&context, command).await,
        Prepared::Aggregate(command) => aggregate::run(&context, command).await,
        Prepared::ServerGroup(command) => server_group::run(&context, command).await,
        Prepared::Placement(question) => placement::run(&context, question).await,
    };
    context.caller.close().await;
    outcome
}

/// A command whose files are read and whose words are right.
enum Prepared {
    Host(crate::cli::Host),
    Network(crate::cli::Network),
    Port(crate::cli::Port),
    Subnet(crate::cli::Subnet),
    SecurityGroup(crate::cli::SecurityGroup),
    Router(crate::cli::Router),
    FloatingIp(crate::cli::FloatingIp),
    Instance(instance::Prepared),
    Volume(crate::cli::Volume),
    Snapshot(crate::cli::Snapshot),
    Aggregate(crate::cli::Aggregate),
    ServerGroup(crate::cli::ServerGroup),
    Placement(placement::Question),
}

fn prepare(cli: &Cli) -> Result<Prepared, CtlError> {
    let project = cli.global.project.clone();
    Ok(match cli.command.clone() {
        Command::Host(command) => Prepared::Host(host::checked(command)?),
        Command::Network(command) => Prepared::Network(command),
        Command::Port(command) => Prepared::Port(command),
        Command::Subnet(command) => Prepared::Subnet(command),
        Command::SecurityGroup(command) => Prepared::SecurityGroup(command),
        Command::Router(command) => Prepared::Router(command),
        Command::FloatingIp(command) => Prepared::FloatingIp(command),
        Command::Instance(command) => Prepared::Instance(instance::prepare(command, project)?),
        Command::Volume(command) => Prepared::Volume(command),
        Command::Snapshot(command) => Prepared::Snapshot(command),
        Command::Aggregate(command) => Prepared::Aggregate(aggregate::checked(command)?),
        Command::ServerGroup(command) => Prepared::ServerGroup(server_group::checked(command)?),
        Command::Explain(arguments) => Prepared::Placement(placement::explain(arguments, project)),
        Command::Place(arguments) => Prepared::Placement(placement::place(arguments, project)?),
        Command::Capacity(arguments) => {
            Prepared::Placement(placement::capacity(arguments, project)?)
        }
        Command::Completion { .. } => {
            let nonsense = "completion needs no scheduler".to_owned();
            return Err(CtlError::Usage(nonsense));
        }
    })
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
            for word in [
                "berthctl",
                "reboot",
                "drain",
                "server-group",
                "snapshot",
                "security-group",
                "add-network",
                "soft-affinity",
                "explain",
                "wait-timeout",
                "bytes-per-second",
            ] {
                assert!(script.contains(word), "{shell:?}: {word}");
            }
        }
    }
}
