//! Questions about the guest of an instance: its console, its display, its agent, and how to reach it. Its hypervisor
//! answers them; what the guest itself wrote never drives the terminal, unless it is asked for as it is.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::super::Context;
use crate::{
    cli::{ConsoleArgs, Output},
    client::Caller,
    console,
    error::CtlError,
    output::{self, Listener},
    print::{
        guest::{self, Saved},
        json,
    },
    terminal::Lines,
    wait::label,
};
use berth_common::{
    message::question::{
        ConsoleOutput, InstanceConsoleOutput, InstanceEndpoints, InstancePingGuestAgent,
        InstanceScreenshot,
    },
    message::request::InstanceShow,
    names::ProjectName,
};

/// How often it is asked whether a console has more.
const POLL: Duration = Duration::from_secs(1);

/// Shows the end of a console.
pub(super) async fn console<C: Caller>(
    context: &Context<C>,
    arguments: ConsoleArgs,
) -> Result<(), CtlError> {
    if arguments.local || arguments.state_dir.is_some() {
        let directory = arguments.state_dir.unwrap_or_else(console::state_dir);
        return local_console(context, arguments.name, arguments.lines, &directory).await;
    }
    let request = InstanceConsoleOutput {
        instance: arguments.name,
        project: context.project(),
        lines: arguments.lines,
        after: None,
    };
    let look = match (context.output, arguments.raw) {
        (Output::Json, _) => Look::Json,
        (Output::Table, true) => Look::Raw,
        (Output::Table, false) => Look::Harmless(Lines::default()),
    };
    if arguments.follow {
        follow(context, request, look, output::stream).await
    } else {
        once(context, &request, look).await
    }
}

/// How a console is shown.
enum Look {
    /// The answers, for programs.
    Json,
    /// What the guest wrote, as it is.
    Raw,
    /// The same, harmless for a terminal.
    Harmless(Lines),
}

impl Look {
    /// A part as it is shown.
    fn show(&mut self, answer: &ConsoleOutput) -> Result<String, CtlError> {
        match self {
            Self::Json => json::text(answer).map_err(|error| CtlError::Output(error.into())),
            Self::Raw => Ok(answer.text.clone()),
            Self::Harmless(lines) => Ok(lines.add(&answer.text)),
        }
    }
}

async fn once<C: Caller>(
    context: &Context<C>,
    request: &InstanceConsoleOutput,
    mut look: Look,
) -> Result<(), CtlError> {
    let answer = context.ask(request).await?;
    if matches!(look, Look::Harmless(_)) {
        output::remark(&format!(
            "# instance {} on {}{}\n",
            answer.instance_id,
            answer.host,
            remark(&answer)
        ));
    }
    let mut text = look.show(&answer)?;
    if matches!(look, Look::Harmless(_)) && !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    output::result(&text).map_err(CtlError::Output)
}

/// What has to be said about a part.
fn remark(answer: &ConsoleOutput) -> &'static str {
    if answer.next.is_none() {
        ": it has no console yet, because it was never powered on"
    } else if answer.cut {
        ": what came before is too much to be shown, or is not kept any more"
    } else {
        ""
    }
}

/// Shows what comes, until nobody reads it any more or the instance is gone.
async fn follow<C: Caller>(
    context: &Context<C>,
    mut request: InstanceConsoleOutput,
    mut look: Look,
    mut write: impl FnMut(&str) -> io::Result<Listener>,
) -> Result<(), CtlError> {
    // The first answer says which instance is meant: later its name may belong to another one.
    let mut answer = context.ask(&request).await?;
    request.instance = answer.instance_id.to_string();
    let mut is_lost = false;
    loop {
        let is_first = request.after.is_none();
        if answer.cut && !is_first && !matches!(look, Look::Json) {
            output::remark("# something is missing here: it is not kept any more\n");
        }
        if !answer.text.is_empty() {
            let text = look.show(&answer)?;
            if write(&text).map_err(CtlError::Output)? == Listener::Gone {
                return Ok(());
            }
        }
        request.after = answer.next.or(request.after);
        if !answer.more {
            tokio::time::sleep(POLL).await;
        }
        answer = loop {
            match context.ask(&request).await {
                Ok(answer) => break answer,
                // An agent or a scheduler that is started anew is back in a moment.
                Err(error) if error.retryable() => {
                    if !std::mem::replace(&mut is_lost, true) {
                        output::remark(&format!("# {}", error.text()));
                        output::remark("# it is asked again until there is an answer\n");
                    }
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => return Err(error),
            }
        };
        is_lost = false;
    }
}

/// Shows the end of a log that is on this machine.
async fn local_console<C: Caller>(
    context: &Context<C>,
    name: String,
    lines: u32,
    state_dir: &Path,
) -> Result<(), CtlError> {
    let view = context
        .ask(&InstanceShow {
            instance: name,
            project: context.project(),
        })
        .await?;
    let host = view
        .host
        .as_ref()
        .ok_or_else(|| console::ConsoleError::NoHost(label(&view)))?;
    let path = console::path(state_dir, view.id);
    let text = console::tail(&path, host, usize::try_from(lines).unwrap_or(usize::MAX))?;
    match context.output {
        Output::Json => context.print(
            &console::Tail {
                host,
                path: &path,
                text: &text,
            },
            |_, _| String::new(),
        ),
        Output::Table => {
            output::remark(&format!(
                "# {} on {host}, {}\n",
                label(&view),
                path.display()
            ));
            output::result(&text).map_err(CtlError::Output)
        }
    }
}

/// Saves a picture of a display.
pub(super) async fn screenshot<C: Caller>(
    context: &Context<C>,
    instance: String,
    file: PathBuf,
) -> Result<(), CtlError> {
    let answer = context
        .ask(&InstanceScreenshot {
            instance,
            project: context.project(),
        })
        .await?;
    std::fs::write(&file, &answer.picture.0).map_err(|source| CtlError::WriteFile {
        path: file.clone(),
        source,
    })?;
    let saved = Saved {
        instance_id: answer.instance_id,
        host: answer.host,
        bytes: answer.picture.0.len(),
        media_type: answer.media_type,
        file,
    };
    context.print(&saved, |saved, _| guest::saved(saved))
}

/// Shows whether a guest agent is there.
pub(super) async fn ping_guest_agent<C: Caller>(
    context: &Context<C>,
    instance: String,
) -> Result<(), CtlError> {
    let project: ProjectName = context.project();
    let answer = context
        .ask(&InstancePingGuestAgent { instance, project })
        .await?;
    context.print(&answer, guest::agent)
}

/// Shows how to reach a guest.
pub(super) async fn endpoints<C: Caller>(
    context: &Context<C>,
    instance: String,
) -> Result<(), CtlError> {
    let project: ProjectName = context.project();
    let answer = context
        .ask(&InstanceEndpoints { instance, project })
        .await?;
    context.print(&answer, guest::endpoints)
}

#[cfg(test)]
mod tests;
