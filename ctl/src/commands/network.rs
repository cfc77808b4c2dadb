//! `berthctl network …`.

use berth_common::{
    document::NetworkType,
    ids::NetworkId,
    message::{
        request::{NetworkCreate, NetworkDelete, NetworkList},
        view::NetworkView,
    },
};

use super::{
    Context,
    lookup::{Listed, Named},
    repeat_with_id,
};
use crate::{
    cli::{Network, NetworkCreateArgs},
    client::Caller,
    error::CtlError,
    print::network,
};

impl Listed for NetworkView {
    type Id = NetworkId;
    const WHAT: &'static str = "network";
    const COMMAND: &'static str = "network";

    fn id(&self) -> NetworkId {
        self.id
    }
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

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

async fn delete<C: Caller>(context: &Context<C>, name: &str) -> Result<NetworkView, CtlError> {
    let project = context.project();
    let all = NetworkList {
        project: Some(project.clone()),
    };
    let reply = context.ask(&all).await.map_err(CtlError::before_asking)?;
    let named = Named {
        name,
        project: Some(&project),
    };
    named
        .delete(context, reply.networks, |network| NetworkDelete {
            network,
            project: project.clone(),
        })
        .await
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
