//! `berthctl network …`.

use berth_common::{
    document::NetworkType,
    ids::NetworkId,
    message::request::{NetworkCreate, NetworkDelete, NetworkList},
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
            let view = context
                .ask(&NetworkDelete {
                    network: name,
                    project: context.project(),
                })
                .await?;
            context.print(&view, |view, _| network::deleted(view))
        }
    }
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
