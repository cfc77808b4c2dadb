//! `berthctl volume …`.

use berth_common::{
    document::{DiskBus, ImageRef, VolumeAccess, VolumeLimits},
    ids::VolumeId,
    message::{
        request::{
            InstanceShow, Method, VolumeAttach, VolumeCreate, VolumeCreateSource, VolumeDelete,
            VolumeDetach, VolumeExtend, VolumeList, VolumeListReply, VolumeShow, default_page,
        },
        view::VolumeView,
    },
    names::ProjectName,
    refusal::RefusalCode,
};

use super::{Context, asking::Asking, repeat_with_id};
use crate::{
    cli::{Volume, VolumeCreateArgs, Wait},
    client::Caller,
    error::CtlError,
    print::volume,
    wait::{Awaited, volume::VolumeGoal},
};

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Volume) -> Result<(), CtlError> {
    let project = context.project();
    let meant = |name, goal| Change {
        name,
        project: project.clone(),
        goal,
    };
    match command {
        Volume::Create(arguments) => create(context, arguments).await,
        Volume::List => list(context).await,
        Volume::Show { name } => {
            let show = VolumeShow {
                volume: name,
                project,
            };
            let view = context.ask(&show).await?;
            context.print(&view, volume::show)
        }
        Volume::Delete { name, wait } => {
            let meant = meant(name, VolumeGoal::Deleted);
            change(context, meant, wait, |volume, project| VolumeDelete {
                volume,
                project,
            })
            .await
        }
        Volume::Extend { name, size, wait } => {
            let meant = meant(name, VolumeGoal::Extended);
            change(context, meant, wait, |volume, project| VolumeExtend {
                volume,
                project,
                size_gb: size,
            })
            .await
        }
        Volume::Attach {
            name,
            instance,
            read_only,
            disk_bus,
            wait,
        } => {
            let access = if read_only {
                VolumeAccess::ReadOnly
            } else {
                VolumeAccess::ReadWrite
            };
            let meant = meant(name, VolumeGoal::Attached);
            let mut asking = Asking::new(context, wait);
            let given = Given {
                access,
                disk_bus: disk_bus.into(),
            };
            let view = attached(&mut asking, meant, instance, given).await?;
            context.print(&view, |view, _| volume::outcome(view))
        }
        Volume::Detach { name, wait } => {
            let meant = meant(name, VolumeGoal::Detached);
            let view = detached(&mut Asking::new(context, wait), meant).await?;
            context.print(&view, |view, _| volume::outcome(view))
        }
    }
}

async fn create<C: Caller>(
    context: &Context<C>,
    arguments: VolumeCreateArgs,
) -> Result<(), CtlError> {
    let wait = arguments.wait;
    let request = request(arguments, context.project());
    let view = created(&mut Asking::new(context, wait), &request).await?;
    context.print(&view, volume::show)
}

/// What the command line asks for.
fn request(arguments: VolumeCreateArgs, project: ProjectName) -> VolumeCreate {
    let image = match (
        arguments.image_url,
        arguments.image_sha256,
        arguments.image_format,
    ) {
        (Some(url), Some(sha256), Some(format)) => Some(ImageRef {
            url,
            sha256,
            format: format.into(),
        }),
        // The command line has all of them or none.
        _ => None,
    };
    let copied = arguments.from.map(VolumeCreateSource::Volume);
    let kept = arguments.snapshot.map(VolumeCreateSource::Snapshot);
    VolumeCreate {
        id: arguments.id.unwrap_or_else(VolumeId::new),
        name: arguments.name,
        project,
        size_gb: arguments.size,
        format: arguments.format.map(Into::into),
        pool: arguments.pool,
        source: copied.or(kept).or(image.map(VolumeCreateSource::Image)),
        limits: VolumeLimits {
            total_iops: arguments.iops,
            total_bytes_per_second: arguments.bytes_per_second,
        },
        host: arguments.host,
    }
}

async fn created<C: Caller>(
    asking: &mut Asking<'_, C>,
    request: &VolumeCreate,
) -> Result<VolumeView, CtlError> {
    let accepted = asking.send(request).await;
    let accepted = accepted.map_err(|error| error.advise(&repeat_with_id(&request.id)))?;
    asking.until(accepted, VolumeGoal::Made).await
}

async fn list<C: Caller>(context: &Context<C>) -> Result<(), CtlError> {
    let page = |last: Option<&VolumeView>| VolumeList {
        project: context.project.clone(),
        after: last.map(|last| last.id),
        limit: default_page(),
    };
    let volumes = context
        .pages(page, |reply: VolumeListReply| (reply.volumes, reply.more))
        .await?;
    let all = VolumeListReply {
        volumes,
        more: false,
    };
    context.print(&all, |all, width| volume::list(&all.volumes, width))
}

/// A change to the volume that somebody named.
struct Change {
    name: String,
    project: ProjectName,
    goal: VolumeGoal,
}

async fn change<C: Caller, M>(
    context: &Context<C>,
    change: Change,
    wait: Wait,
    request: impl FnOnce(String, ProjectName) -> M,
) -> Result<(), CtlError>
where
    M: Method<Reply = VolumeView> + Sync,
{
    let view = changed(&mut Asking::new(context, wait), change, request).await?;
    context.print(&view, |view, _| volume::outcome(view))
}

/// How an instance is to have a volume.
#[derive(Debug, Clone, Copy)]
struct Given {
    access: VolumeAccess,
    disk_bus: DiskBus,
}

/// Attaches a volume; from the first question on both are spoken of by their ids.
async fn attached<C: Caller>(
    asking: &mut Asking<'_, C>,
    meant: Change,
    instance: String,
    given: Given,
) -> Result<VolumeView, CtlError> {
    let show = InstanceShow {
        instance,
        project: meant.project.clone(),
    };
    let with = asking.send(&show).await.map_err(CtlError::before_asking)?;
    changed(asking, meant, |volume, project| VolumeAttach {
        volume,
        instance: with.id.to_string(),
        project,
        access: given.access,
        disk_bus: given.disk_bus,
    })
    .await
}

/// Takes a volume from the instance that has it now: by the time the request is sent again, another one may.
async fn detached<C: Caller>(
    asking: &mut Asking<'_, C>,
    meant: Change,
) -> Result<VolumeView, CtlError> {
    let goal = meant.goal;
    let found = found(asking, meant).await?;
    let Some(from) = &found.attachment else {
        return Ok(found);
    };
    let request = VolumeDetach {
        volume: found.id.to_string(),
        instance: Some(from.instance_id.to_string()),
        project: found.project.clone(),
    };
    ask(asking, found, &request, goal).await
}

/// Finds out which volume is meant, and from then on speaks of its id only: by the time a request is sent again, its
/// name may belong to another one.
async fn changed<C: Caller, M>(
    asking: &mut Asking<'_, C>,
    change: Change,
    request: impl FnOnce(String, ProjectName) -> M,
) -> Result<VolumeView, CtlError>
where
    M: Method<Reply = VolumeView> + Sync,
{
    let goal = change.goal;
    let found = found(asking, change).await?;
    let request = request(found.id.to_string(), found.project.clone());
    ask(asking, found, &request, goal).await
}

/// The volume that is meant.
async fn found<C: Caller>(
    asking: &mut Asking<'_, C>,
    change: Change,
) -> Result<VolumeView, CtlError> {
    let show = VolumeShow {
        volume: change.name,
        project: change.project,
    };
    asking.send(&show).await.map_err(CtlError::before_asking)
}

/// Asks for a change to a volume that was found.
async fn ask<C: Caller, M>(
    asking: &mut Asking<'_, C>,
    found: VolumeView,
    request: &M,
    goal: VolumeGoal,
) -> Result<VolumeView, CtlError>
where
    M: Method<Reply = VolumeView> + Sync,
{
    match asking.send(request).await {
        Ok(accepted) => asking.until(accepted, goal).await,
        Err(CtlError::Refused(refusal))
            if refusal.code == RefusalCode::NotFound && VolumeView::is_end(goal) =>
        {
            Ok(found.gone())
        }
        Err(error) => Err(error.advise(&format!(
            "repeating the command with the id {} is harmless",
            found.id
        ))),
    }
}

#[cfg(test)]
mod tests;
