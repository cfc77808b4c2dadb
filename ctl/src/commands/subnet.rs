//! `berthctl subnet …`.

use berth_common::{
    ids::SubnetId,
    message::{
        network::{SubnetCreate, SubnetDelete, SubnetList, SubnetSet, SubnetShow},
        request::Change,
        view::SubnetView,
    },
};

use super::{
    Context,
    lookup::{Listed, Named},
    repeat_with_id,
};
use crate::{
    cli::{Subnet, SubnetCreateArgs, SubnetSetArgs},
    client::Caller,
    error::CtlError,
    print::subnet,
};

impl Listed for SubnetView {
    type Id = SubnetId;
    const WHAT: &'static str = "subnet";
    const COMMAND: &'static str = "subnet";

    fn id(&self) -> SubnetId {
        self.id
    }
    fn name(&self) -> &str {
        self.name.as_ref().map_or("", |name| name.as_str())
    }
}

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Subnet) -> Result<(), CtlError> {
    match command {
        Subnet::Create(arguments) => create(context, arguments).await,
        Subnet::List { network } => {
            let reply = context
                .ask(&SubnetList {
                    project: context.project.clone(),
                    network,
                })
                .await?;
            context.print(&reply, |reply, width| subnet::list(&reply.subnets, width))
        }
        Subnet::Show { name } => {
            let request = SubnetShow {
                subnet: name,
                project: context.project(),
            };
            let view = context.ask(&request).await?;
            context.print(&view, subnet::show)
        }
        Subnet::Set(arguments) => {
            let view = context.wish(&change(context, arguments)).await?;
            context.print(&view, subnet::show)
        }
        Subnet::Delete { name } => {
            let view = delete(context, &name).await?;
            context.print(&view, |view, _| subnet::deleted(view))
        }
    }
}

async fn create<C: Caller>(
    context: &Context<C>,
    arguments: SubnetCreateArgs,
) -> Result<(), CtlError> {
    let id = arguments.id.unwrap_or_else(SubnetId::new);
    let request = SubnetCreate {
        id,
        network: arguments.network,
        project: context.project(),
        name: Some(arguments.name),
        cidr: arguments.cidr,
        gateway_ip: arguments.gateway.of(arguments.cidr),
        allocation_pools: arguments.allocation_pool,
        dns_nameservers: arguments.dns,
        host_routes: arguments.host_route,
        enable_dhcp: !arguments.no_dhcp,
        ipv6_address_mode: arguments.ipv6_address_mode.map(Into::into),
    };
    let view = context
        .ask(&request)
        .await
        .map_err(|error| error.advise(&repeat_with_id(&id)))?;
    context.print(&view, subnet::show)
}

/// A list that is replaced if there is a word of it.
fn replaced<T>(items: Vec<T>, cleared: bool) -> Option<Vec<T>> {
    (cleared || !items.is_empty()).then_some(items)
}

fn change<C: Caller>(context: &Context<C>, arguments: SubnetSetArgs) -> SubnetSet {
    SubnetSet {
        subnet: arguments.subnet,
        project: context.project(),
        name: arguments.name.map_or(Change::Keep, Change::Set),
        gateway_ip: arguments.gateway.unwrap_or(Change::Keep),
        allocation_pools: replaced(arguments.allocation_pool, arguments.no_allocation_pool),
        dns_nameservers: replaced(arguments.dns, arguments.no_dns_nameservers),
        host_routes: replaced(arguments.host_route, arguments.no_host_route),
    }
}

async fn delete<C: Caller>(context: &Context<C>, name: &str) -> Result<SubnetView, CtlError> {
    let project = context.project();
    let all = SubnetList {
        project: Some(project.clone()),
        network: None,
    };
    let subnets = context
        .ask(&all)
        .await
        .map_err(CtlError::before_asking)?
        .subnets;
    let has_name = |subnet: &&SubnetView| subnet.name() == name;
    // Which of several is meant, only their ids say: the scheduler tells how many there are.
    if subnets.iter().filter(has_name).count() > 1 {
        let request = SubnetDelete {
            subnet: name.to_owned(),
            project,
        };
        return context.ask(&request).await;
    }
    let named = Named {
        name,
        project: Some(&project),
    };
    named
        .delete(context, subnets, |subnet| SubnetDelete {
            subnet,
            project: project.clone(),
        })
        .await
}

#[cfg(test)]
mod tests;
