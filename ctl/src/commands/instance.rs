//! `berthctl instance …`.

use std::path::PathBuf;

use berth_common::{
    document::RebootKind,
    ids::{InstanceId, Nonce},
    message::{
        request::{
            InstanceCreate, InstanceDelete, InstanceList, InstanceListReply, InstanceReboot,
            InstanceShow, InstanceStart, InstanceStop, Method, default_page,
        },
        view::InstanceView,
    },
    names::ProjectName,
};

use super::{Context, repeat_with_id};
use crate::{
    cli::{Instance, InstanceCreateArgs, Output, Wait},
    client::Caller,
    console,
    error::CtlError,
    instance_file::{self, Overrides},
    output,
    print::instance,
    progress,
    wait::{Goal, Limits, Pace, label, send, until},
};

/// A command whose file is read.
pub(super) enum Prepared {
    Create {
        request: Box<InstanceCreate>,
        wait: Wait,
    },
    Other(Instance),
}

/// Reads the instance file, if the command has one.
pub(super) fn prepare(
    command: Instance,
    project: Option<ProjectName>,
) -> Result<Prepared, CtlError> {
    match command {
        Instance::Create(arguments) => {
            let wait = arguments.wait;
            Ok(Prepared::Create {
                request: Box::new(read(arguments, project)?),
                wait,
            })
        }
        other => Ok(Prepared::Other(other)),
    }
}

fn read(
    arguments: InstanceCreateArgs,
    project: Option<ProjectName>,
) -> Result<InstanceCreate, CtlError> {
    let text = std::fs::read_to_string(&arguments.file).map_err(|source| CtlError::ReadFile {
        path: arguments.file.clone(),
        source,
    })?;
    let id = arguments.id.unwrap_or_else(InstanceId::new);
    Ok(instance_file::parse(
        &arguments.file,
        &text,
        Overrides {
            id,
            name: arguments.name,
            project,
        },
    )?)
}

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    command: Prepared,
) -> Result<(), CtlError> {
    let project = context.project();
    match command {
        Prepared::Create { request, wait } => create(context, *request, wait).await,
        Prepared::Other(Instance::Create(_)) => {
            Err(CtlError::Usage("the instance file was not read".to_owned()))
        }
        Prepared::Other(Instance::List) => list(context).await,
        Prepared::Other(Instance::Show { name }) => {
            let view = context
                .ask(&InstanceShow {
                    instance: name,
                    project,
                })
                .await?;
            context.print(&view, instance::show)
        }
        Prepared::Other(Instance::Start { name, wait }) => {
            change(
                context,
                InstanceStart {
                    instance: name,
                    project,
                },
                Goal::Running,
                wait,
            )
            .await
        }
        Prepared::Other(Instance::Stop { name, wait }) => {
            change(
                context,
                InstanceStop {
                    instance: name,
                    project,
                },
                Goal::Stopped,
                wait,
            )
            .await
        }
        Prepared::Other(Instance::Reboot { name, hard, wait }) => {
            let kind = if hard {
                RebootKind::Hard
            } else {
                RebootKind::Soft
            };
            let request = InstanceReboot {
                instance: name,
                project,
                kind,
                nonce: Nonce::new(),
            };
            change(context, request, Goal::Rebooted, wait).await
        }
        Prepared::Other(Instance::Delete { name, wait }) => {
            change(
                context,
                InstanceDelete {
                    instance: name,
                    project,
                },
                Goal::Deleted,
                wait,
            )
            .await
        }
        Prepared::Other(Instance::Console {
            name,
            lines,
            state_dir,
        }) => show_console(context, name, lines, state_dir).await,
    }
}

async fn create<C: Caller>(
    context: &Context<C>,
    request: InstanceCreate,
    wait: Wait,
) -> Result<(), CtlError> {
    let goal = Goal::Built(request.power);
    let again = repeat_with_id(&request.id);
    let view = ask_and_wait(context, request, goal, wait)
        .await
        .map_err(|error| error.advise(&again))?;
    context.print(&view, instance::show)
}

async fn change<C: Caller, M>(
    context: &Context<C>,
    request: M,
    goal: Goal,
    wait: Wait,
) -> Result<(), CtlError>
where
    M: Method<Reply = InstanceView> + Sync,
{
    let view = ask_and_wait(context, request, goal, wait)
        .await
        .map_err(|error| error.advise(advice(goal)))?;
    context.print(&view, |view, _| instance::outcome(view))
}

/// What repeating a change does: all but a reboot only say how the instance shall be.
fn advice(goal: Goal) -> &'static str {
    match goal {
        Goal::Rebooted => "repeating the command may reboot it once more",
        Goal::Built(_) | Goal::Running | Goal::Stopped | Goal::Deleted => {
            "repeating the command is harmless"
        }
    }
}

/// Sends a request, and waits for what it asks for if that is wanted.
async fn ask_and_wait<C: Caller, M>(
    context: &Context<C>,
    request: M,
    goal: Goal,
    wait: Wait,
) -> Result<InstanceView, CtlError>
where
    M: Method<Reply = InstanceView> + Sync,
{
    if !wait.wait {
        return context.ask(&request).await;
    }
    let limits = Limits::from_now(Pace::USUAL, context.timeout, wait.wait_timeout);
    let mut progress = progress::for_output(context.output);
    progress.show(&format!("{}: waiting for the scheduler", M::NAME));
    let accepted = tokio::select! {
        sent = send(&context.caller, &request, limits, &mut *progress) => sent?,
        () = interrupt() => {
            return Err(CtlError::InterruptedUnanswered { method: M::NAME, hint: String::new() });
        }
    };
    let instance = label(&accepted);
    tokio::select! {
        reached = until(&context.caller, accepted, goal, limits, &mut *progress) => reached,
        () = interrupt() => Err(CtlError::Interrupted(instance)),
    }
}

/// Ends with the first Ctrl-C. Where that cannot be noticed, the system's own way stays: the process ends.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn list<C: Caller>(context: &Context<C>) -> Result<(), CtlError> {
    let mut instances: Vec<InstanceView> = Vec::new();
    loop {
        let after = instances.last().map(|last| last.id);
        let page = InstanceList {
            project: context.project.clone(),
            after,
            limit: default_page(),
        };
        let reply = context.ask(&page).await?;
        if reply.more && reply.instances.is_empty() {
            let reason = "an empty page, and more to follow".to_owned();
            return Err(CtlError::Nonsense {
                method: InstanceList::NAME,
                reason,
            });
        }
        instances.extend(reply.instances);
        if !reply.more {
            let all = InstanceListReply {
                instances,
                more: false,
            };
            return context.print(&all, |all, width| instance::list(&all.instances, width));
        }
    }
}

async fn show_console<C: Caller>(
    context: &Context<C>,
    name: String,
    lines: u32,
    state_dir: PathBuf,
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
    let path = console::path(&state_dir, view.id);
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
