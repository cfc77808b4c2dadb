//! `berthctl network …`.

use berth_common::{
    document::NetworkType,
    ids::NetworkId,
    message::{
        request::{NetworkCreate, NetworkDelete, NetworkList},
        view::NetworkView,
    },
    names::ProjectName,
    refusal::{Refusal, RefusalCode},
};

use super::{Context, repeat_with_id};
use crate::{
    cli::{Network, NetworkCreateArgs},
    client::Caller,
    error::CtlError,
    print::network,
};

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Network) -> Result<(), CtlError> {
    match command {
        Network::Create(arguments) => create(context, arguments).await,
        Network::List => {
            let reply = context
                .ask(&NetworkList {
                    project: context.project.clone(),
                })
                .await?;
            context.print(&reply, |reply, width| network::list(&reply.networks, width))
        }
        Network::Delete { name } => {
            let view = delete(context, &name).await?;
            context.print(&view, |view, _| network::deleted(view))
        }
    }
}

/// Finds out which network is meant, and deletes that one by its id: once it is gone, its name may belong to
/// another one.
async fn delete<C: Caller>(context: &Context<C>, name: &str) -> Result<NetworkView, CtlError> {
    let project = context.project();
    let (id, found) = match (find(context, &project, name).await?, name.parse()) {
        (Some(found), _) => (found.id, Some(found)),
        // One of another project, or one that is deleted: the scheduler knows.
        (None, Ok(id)) => (id, None),
        (None, Err(_)) => {
            let message =
                format!("project {project} has no network {name:?}, neither by id nor by name");
            return Err(CtlError::Refused(Refusal::new(
                RefusalCode::NotFound,
                message,
            )));
        }
    };
    let request = NetworkDelete {
        network: id.to_string(),
        project,
    };
    match (context.ask(&request).await, found) {
        (Err(CtlError::Refused(refusal)), Some(found)) if refusal.code == RefusalCode::NotFound => {
            Ok(found)
        }
        (answer, _) => answer.map_err(|error| {
            error.advise(&format!(
                "repeating it as `berthctl network delete {id}` is harmless"
            ))
        }),
    }
}

/// The project's living network that has this id or else this name.
async fn find<C: Caller>(
    context: &Context<C>,
    project: &ProjectName,
    name: &str,
) -> Result<Option<NetworkView>, CtlError> {
    let all = NetworkList {
        project: Some(project.clone()),
    };
    let reply = context.ask(&all).await.map_err(CtlError::before_asking)?;
    let id: Option<NetworkId> = name.parse().ok();
    let is_meant = |network: &&NetworkView| Some(network.id) == id;
    let is_named = |network: &&NetworkView| network.name.as_str() == name;
    let networks = &reply.networks;
    Ok(networks
        .iter()
        .find(is_meant)
        .or_else(|| networks.iter().find(is_named))
        .cloned())
}

async fn create<C: Caller>(
    context: &Context<C>,
    arguments: NetworkCreateArgs,
) -> Result<(), CtlError> {
    let id = arguments.id.unwrap_or_else(NetworkId::new);
    let request = NetworkCreate {
        id,
        name: arguments.name,
        project: context.project(),
        network_type: NetworkType::Local,
        cidr: arguments.cidr,
        gateway_ip: arguments.gateway,
        dns_nameservers: arguments.dns,
        mtu: arguments.mtu,
    };
    let view = context
        .ask(&request)
        .await
        .map_err(|error| error.advise(&repeat_with_id(&id)))?;
    context.print(&view, network::show)
}

#[cfg(test)]
mod tests;
