//! `berthctl server-group …`.

use berth_common::{
    ids::ServerGroupId,
    message::{
        placement::ServerGroupView,
        request::{ServerGroupCreate, ServerGroupDelete, ServerGroupList},
    },
    names::ProjectName,
};

use super::{
    Context,
    lookup::{Listed, Named},
    repeat_with_id,
};
use crate::{
    cli::{Policy, ServerGroup, ServerGroupCreateArgs},
    client::Caller,
    error::CtlError,
    print::server_group,
};

impl Listed for ServerGroupView {
    type Id = ServerGroupId;
    const WHAT: &'static str = "server group";
    const COMMAND: &'static str = "server-group";

    fn id(&self) -> ServerGroupId {
        self.id
    }
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// Refuses a limit that no policy would keep.
pub(super) fn checked(command: ServerGroup) -> Result<ServerGroup, CtlError> {
    match &command {
        ServerGroup::Create(ServerGroupCreateArgs {
            policy,
            max_server_per_host: Some(_),
            ..
        }) if *policy != Policy::AntiAffinity => Err(CtlError::Usage(
            "--max-server-per-host is of --policy anti-affinity only: the other policies have no limit".to_owned(),
        )),
        _ => Ok(command),
    }
}

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    command: ServerGroup,
) -> Result<(), CtlError> {
    match command {
        ServerGroup::Create(arguments) => {
            let view = create(context, arguments).await?;
            context.print(&view, server_group::show)
        }
        ServerGroup::List => {
            let all = ServerGroupList {
                project: context.project.clone(),
            };
            let reply = context.ask(&all).await?;
            context.print(&reply, |reply, width| {
                server_group::list(&reply.server_groups, width)
            })
        }
        ServerGroup::Delete { name } => {
            let view = delete(context, &name, context.project()).await?;
            context.print(&view, |view, _| server_group::deleted(view))
        }
    }
}

async fn create<C: Caller>(
    context: &Context<C>,
    arguments: ServerGroupCreateArgs,
) -> Result<ServerGroupView, CtlError> {
    let id = arguments.id.unwrap_or_else(ServerGroupId::new);
    let request = ServerGroupCreate {
        id,
        name: arguments.name,
        project: context.project(),
        policy: arguments.policy.into(),
        max_server_per_host: arguments.max_server_per_host,
    };
    let answer = context.ask(&request).await;
    answer.map_err(|error| error.advise(&repeat_with_id(&id)))
}

async fn delete<C: Caller>(
    context: &Context<C>,
    name: &str,
    project: ProjectName,
) -> Result<ServerGroupView, CtlError> {
    let all = ServerGroupList {
        project: Some(project.clone()),
    };
    let reply = context.ask(&all).await.map_err(CtlError::before_asking)?;
    let named = Named {
        name,
        project: Some(&project),
    };
    named
        .delete(context, reply.server_groups, |server_group| {
            ServerGroupDelete {
                server_group,
                project: project.clone(),
            }
        })
        .await
}

#[cfg(test)]
mod tests;
