//! `berthctl instance …`.

mod guest;
mod many;
mod told;

use berth_common::{
    document::{Flavor, RebootKind},
    ids::{InstanceId, Nonce},
    message::{
        request::{
            BlockDevice, InstanceCreate, InstanceDelete, InstanceList, InstanceListReply,
            InstancePause, InstanceReboot, InstanceRebuild, InstanceRescue, InstanceResize,
            InstanceResume, InstanceSet, InstanceShow, InstanceStart, InstanceStop,
            InstanceSuspend, InstanceUnpause, InstanceUnrescue, Method, default_page,
        },
        view::InstanceView,
    },
    names::ProjectName,
    refusal::{Refusal, RefusalCode},
};

use super::{Context, aggregate::properties, asking::Asking, port, read, repeat_with_id};
use crate::{
    cli::{Instance, InstanceCreateArgs, Wait},
    client::Caller,
    error::CtlError,
    instance_file::{self, Overrides},
    print::{self, instance},
    wait::{Goal, gone},
};

/// A command whose file is read.
pub(super) enum Prepared {
    Create {
        request: Box<InstanceCreate>,
        wait: Wait,
    },
    CreateMany(many::Prepared),
    Other(Instance),
}

/// Reads the instance file, if the command has one.
pub(super) fn prepare(
    command: Instance,
    project: Option<ProjectName>,
) -> Result<Prepared, CtlError> {
    match command {
        Instance::Create(arguments) => {
            let request = read_request(&arguments, project)?;
            match arguments.count {
                Some(count) => many::prepare(&request, count, &arguments).map(Prepared::CreateMany),
                None => Ok(Prepared::Create {
                    request: Box::new(request),
                    wait: arguments.wait,
                }),
            }
        }
        other => Ok(Prepared::Other(other)),
    }
}

fn read_request(
    arguments: &InstanceCreateArgs,
    project: Option<ProjectName>,
) -> Result<InstanceCreate, CtlError> {
    let text = read(&arguments.file)?;
    let id = arguments.id.unwrap_or_else(InstanceId::new);
    let mut request = instance_file::parse(
        &arguments.file,
        &text,
        Overrides {
            id,
            name: arguments.name.clone(),
            project,
            volume: arguments.volume.clone().map(|volume| BlockDevice {
                volume,
                boot_index: 0,
                delete_on_termination: arguments.delete_volume_on_termination,
            }),
        },
    )?;
    let security = &arguments.security;
    let made = request.networks.iter_mut().filter(|to| to.port.is_none());
    for attachment in made {
        if let Some(groups) = security.groups() {
            attachment.security_groups = Some(groups);
        }
        if security.no_port_security {
            attachment.port_security_enabled = Some(false);
            attachment.security_groups = None;
        }
    }
    told::add(&mut request, arguments)?;
    Ok(request)
}

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    command: Prepared,
) -> Result<(), CtlError> {
    let project = context.project();
    let meant = |name, goal| Change {
        name,
        project: project.clone(),
        goal,
    };
    match command {
        Prepared::Create { request, wait } => create(context, *request, wait).await,
        Prepared::CreateMany(prepared) => many::create(context, prepared).await,
        Prepared::Other(Instance::Create(_)) => {
            Err(CtlError::Usage("the instance file was not read".to_owned()))
        }
        Prepared::Other(Instance::List) => list(context).await,
        Prepared::Other(Instance::AddPort {
            instance,
            port: name,
            wait,
        }) => {
            let mut asking = Asking::new(context, wait);
            let view = port::add(&mut asking, (instance, name), project).await?;
            context.print(&view, |view, _| print::port::outcome(view))
        }
        Prepared::Other(Instance::AddNetwork(arguments)) => {
            let mut asking = Asking::new(context, arguments.wait);
            let view = port::add_network(&mut asking, arguments, project).await?;
            context.print(&view, |view, _| print::port::outcome(view))
        }
        Prepared::Other(Instance::RemovePort {
            instance,
            port: name,
            wait,
        }) => {
            let mut asking = Asking::new(context, wait);
            let view = port::remove(&mut asking, (instance, name), project).await?;
            context.print(&view, |view, _| print::port::outcome(view))
        }
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
                meant(name, Goal::Running),
                wait,
                |instance, project| InstanceStart { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Stop { name, wait }) => {
            change(
                context,
                meant(name, Goal::Stopped),
                wait,
                |instance, project| InstanceStop { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Pause { name, wait }) => {
            change(
                context,
                meant(name, Goal::Paused),
                wait,
                |instance, project| InstancePause { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Unpause { name, wait }) => {
            change(
                context,
                meant(name, Goal::Running),
                wait,
                |instance, project| InstanceUnpause { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Suspend { name, wait }) => {
            change(
                context,
                meant(name, Goal::Suspended),
                wait,
                |instance, project| InstanceSuspend { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Resume { name, wait }) => {
            change(
                context,
                meant(name, Goal::Running),
                wait,
                |instance, project| InstanceResume { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Reboot { name, hard, wait }) => {
            let kind = if hard {
                RebootKind::Hard
            } else {
                RebootKind::Soft
            };
            change(
                context,
                meant(name, Goal::Rebooted),
                wait,
                |instance, project| InstanceReboot {
                    instance,
                    project,
                    kind,
                    nonce: Nonce::new(),
                },
            )
            .await
        }
        Prepared::Other(Instance::Resize {
            name,
            vcpus,
            memory_mb,
            disk_gb,
            wait,
        }) => {
            let shown = shown(context, name).await?;
            let flavor = Flavor {
                vcpus: vcpus.unwrap_or(shown.flavor.vcpus),
                memory_mb: memory_mb.unwrap_or(shown.flavor.memory_mb),
                disk_gb: disk_gb.unwrap_or(shown.flavor.disk_gb),
            };
            change(
                context,
                meant(shown.id.to_string(), Goal::Built(shown.desired_power)),
                wait,
                |instance, project| InstanceResize {
                    instance,
                    project,
                    flavor,
                },
            )
            .await
        }
        Prepared::Other(Instance::Rescue { name, image, wait }) => {
            let image = image.named();
            change(
                context,
                meant(name, Goal::Rescued),
                wait,
                |instance, project| InstanceRescue {
                    instance,
                    project,
                    image,
                    nonce: Nonce::new(),
                },
            )
            .await
        }
        Prepared::Other(Instance::Unrescue { name, wait }) => {
            let shown = shown(context, name).await?;
            let goal = Goal::Built(shown.desired_power);
            change(
                context,
                meant(shown.id.to_string(), goal),
                wait,
                |instance, project| InstanceUnrescue { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Rebuild { name, image, wait }) => {
            let shown = shown(context, name).await?;
            let Some(image) = image.named().or(shown.image) else {
                return Err(CtlError::Usage(format!(
                    "instance {} boots from a volume, and is not rebuilt: create a volume from the image (`berthctl volume \
                     create`), and an instance from that volume",
                    shown.name
                )));
            };
            let goal = Goal::Rebuilt(shown.desired_power);
            change(
                context,
                meant(shown.id.to_string(), goal),
                wait,
                |instance, project| InstanceRebuild {
                    instance,
                    project,
                    image,
                    nonce: Nonce::new(),
                },
            )
            .await
        }
        Prepared::Other(Instance::Set(arguments)) => {
            let changes = arguments.changes;
            let metadata = properties(&changes.metadata, &changes.unset_metadata)?;
            let shown = shown(context, arguments.instance).await?;
            let goal = Goal::Built(shown.desired_power);
            change(
                context,
                meant(shown.id.to_string(), goal),
                arguments.wait,
                |instance, project| InstanceSet {
                    instance,
                    project,
                    name: changes.name,
                    metadata,
                    on_crash: changes.on_crash.map(Into::into),
                },
            )
            .await
        }
        Prepared::Other(Instance::Delete { name, wait }) => {
            change(
                context,
                meant(name, Goal::Deleted),
                wait,
                |instance, project| InstanceDelete { instance, project },
            )
            .await
        }
        Prepared::Other(Instance::Console(arguments)) => guest::console(context, arguments).await,
        Prepared::Other(Instance::Screenshot { name, file }) => {
            guest::screenshot(context, name, file).await
        }
        Prepared::Other(Instance::PingGuestAgent { name }) => {
            guest::ping_guest_agent(context, name).await
        }
        Prepared::Other(Instance::Endpoints { name }) => guest::endpoints(context, name).await,
    }
}

/// The instance as it is now: what a change to it needs to know.
async fn shown<C: Caller>(context: &Context<C>, name: String) -> Result<InstanceView, CtlError> {
    let show = InstanceShow {
        instance: name,
        project: context.project(),
    };
    context.ask(&show).await
}

async fn create<C: Caller>(
    context: &Context<C>,
    request: InstanceCreate,
    wait: Wait,
) -> Result<(), CtlError> {
    let view = created(&mut Asking::new(context, wait), &request).await?;
    context.print(&view, instance::show)
}

async fn created<C: Caller>(
    asking: &mut Asking<'_, C>,
    request: &InstanceCreate,
) -> Result<InstanceView, CtlError> {
    let accepted = asking.send(request).await.map_err(|error| match error {
        CtlError::Refused(refusal) => refused(refusal, request.id),
        error => error.advise(&repeat_with_id(&request.id)),
    })?;
    asking.until(accepted, Goal::Built(request.power)).await
}

/// A refusal of a new instance. One that has no host is kept all the same.
fn refused(refusal: Refusal, id: InstanceId) -> CtlError {
    match refusal.code {
        RefusalCode::NoValidHost => CtlError::NoHost { refusal, id },
        _ => CtlError::Refused(refusal),
    }
}

/// A change to the instance that somebody named.
struct Change {
    name: String,
    project: ProjectName,
    goal: Goal,
}

async fn change<C: Caller, M>(
    context: &Context<C>,
    change: Change,
    wait: Wait,
    request: impl FnOnce(String, ProjectName) -> M,
) -> Result<(), CtlError>
where
    M: Method<Reply = InstanceView> + Sync,
{
    let view = changed(&mut Asking::new(context, wait), change, request).await?;
    context.print(&view, |view, _| instance::outcome(view))
}

/// Finds out which instance is meant, and from then on speaks of its id only: by the time a request is sent again,
/// its name may belong to another one.
async fn changed<C: Caller, M>(
    asking: &mut Asking<'_, C>,
    change: Change,
    request: impl FnOnce(String, ProjectName) -> M,
) -> Result<InstanceView, CtlError>
where
    M: Method<Reply = InstanceView> + Sync,
{
    let show = InstanceShow {
        instance: change.name,
        project: change.project,
    };
    let found = asking.send(&show).await.map_err(CtlError::before_asking)?;
    let request = request(found.id.to_string(), found.project.clone());
    match asking.send(&request).await {
        Ok(accepted) => {
            let goal = change.goal.with_power(accepted.desired_power);
            asking.until(accepted, goal).await
        }
        Err(CtlError::Refused(refusal))
            if refusal.code == RefusalCode::NotFound && change.goal == Goal::Deleted =>
        {
            Ok(gone(found))
        }
        Err(error) => Err(error.advise(&advice(change.goal, found.id))),
    }
}

/// What repeating a change does: most only say how the instance shall be.
fn advice(goal: Goal, id: InstanceId) -> String {
    match goal {
        Goal::Rebooted => "repeating the command may reboot it once more".to_owned(),
        Goal::Deleted => {
            format!("repeating it as `berthctl instance delete {id}` is harmless")
        }
        Goal::Rebuilt(_) => "repeating the command makes its disk anew once more".to_owned(),
        Goal::Rescued => "repeating the command is refused if it was carried out".to_owned(),
        Goal::Built(_) | Goal::Running | Goal::Stopped | Goal::Paused | Goal::Suspended => {
            format!("repeating the command with the id {id} is harmless")
        }
    }
}

async fn list<C: Caller>(context: &Context<C>) -> Result<(), CtlError> {
    let page = |last: Option<&InstanceView>| InstanceList {
        project: context.project.clone(),
        after: last.map(|last| last.id),
        limit: default_page(),
    };
    let instances = context
        .pages(page, |reply: InstanceListReply| {
            (reply.instances, reply.more)
        })
        .await?;
    let all = InstanceListReply {
        instances,
        more: false,
    };
    context.print(&all, |all, width| instance::list(&all.instances, width))
}

#[cfg(test)]
pub(super) mod tests;
