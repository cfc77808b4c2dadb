//! `berthctl network …`.

use berth_common::{
    ids::NetworkId,
    message::{
        network::{NetworkCreate, NetworkDelete, NetworkList, NetworkSet, NetworkShow},
        view::NetworkView,
    },
};

use super::{
    Context,
    lookup::{Listed, Named},
    repeat_with_id,
};
use crate::{
    cli::{Network, NetworkCreateArgs, NetworkSetArgs},
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
        Network::Show { name } => {
            let request = NetworkShow {
                network: name,
                project: context.project(),
            };
            let view = context.ask(&request).await?;
            context.print(&view, network::show)
        }
        Network::Set(arguments) => {
            let view = context.wish(&change(context, arguments)).await?;
            context.print(&view, network::show)
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
        network_type: arguments.network_type.into(),
        physical_network: arguments.physical_network,
        segmentation_id: arguments.segment,
        external: arguments.external,
        cidr: arguments.cidr,
        gateway_ip: arguments
            .gateway
            .zip(arguments.cidr)
            .and_then(|(gateway, cidr)| gateway.of(cidr)),
        dns_nameservers: arguments.dns,
        mtu: arguments.mtu,
    };
    let view = context
        .ask(&request)
        .await
        .map_err(|error| error.advise(&repeat_with_id(&id)))?;
    context.print(&view, network::show)
}

fn change<C: Caller>(context: &Context<C>, arguments: NetworkSetArgs) -> NetworkSet {
    NetworkSet {
        network: arguments.network,
        project: context.project(),
        name: arguments.name,
        mtu: arguments.mtu,
        external: match (arguments.external, arguments.internal) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        },
    }
}

#[cfg(test)]
mod tests;
