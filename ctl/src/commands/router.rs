//! `berthctl router …` and `berthctl floating-ip …`.

use berth_common::{
    ids::{FloatingIpId, RouterId},
    message::router::{
        ExternalGateway, FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpSet,
        FloatingIpShow, RouterAddInterface, RouterCreate, RouterDelete, RouterList,
        RouterRemoveInterface, RouterSet, RouterShow, RouterView,
    },
};

use super::{
    Context,
    lookup::{Listed, Named},
    repeat_with_id,
};
use crate::{
    cli::{
        FloatingIp, FloatingIpCreateArgs, Router, RouterAdd, RouterCreateArgs, RouterRemove,
        RouterSetArgs,
    },
    client::Caller,
    error::CtlError,
    print::router as print,
};

impl Listed for RouterView {
    type Id = RouterId;
    const WHAT: &'static str = "router";
    const COMMAND: &'static str = "router";

    fn id(&self) -> RouterId {
        self.id
    }
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Router) -> Result<(), CtlError> {
    let project = context.project();
    match command {
        Router::Create(arguments) => create(context, arguments).await,
        Router::List => {
            let request = RouterList {
                project: context.project.clone(),
            };
            let reply = context.ask(&request).await?;
            context.print(&reply, |reply, width| print::list(&reply.routers, width))
        }
        Router::Show { name } => {
            let request = RouterShow {
                router: name,
                project,
            };
            let view = context.ask(&request).await?;
            context.print(&view, print::show)
        }
        Router::Set(arguments) => set(context, request(context, arguments)).await,
        Router::Unset(arguments) => {
            let request = RouterSet {
                router: arguments.router,
                project,
                external_gateway: Some(ExternalGateway::None),
                ..RouterSet::default()
            };
            set(context, request).await
        }
        Router::Add(RouterAdd::Subnet {
            router,
            subnet,
            address,
        }) => {
            let request = RouterAddInterface {
                router,
                project,
                subnet,
                ip_address: address,
            };
            let view = context.ask(&request).await?;
            context.print(&view, print::show)
        }
        Router::Remove(RouterRemove::Subnet { router, subnet }) => {
            let request = RouterRemoveInterface {
                router,
                project,
                subnet,
            };
            let view = context.ask(&request).await?;
            context.print(&view, print::show)
        }
        Router::Delete { name } => {
            let view = delete(context, &name).await?;
            context.print(&view, |view, _| print::deleted(view))
        }
    }
}

async fn create<C: Caller>(
    context: &Context<C>,
    arguments: RouterCreateArgs,
) -> Result<(), CtlError> {
    let id = arguments.id.unwrap_or_else(RouterId::new);
    let request = RouterCreate {
        id,
        name: arguments.name,
        project: context.project(),
        admin_state_up: !arguments.disable,
        external_network: arguments.external_gateway,
        enable_snat: !arguments.disable_snat,
    };
    let asked = context.ask(&request).await;
    let view = asked.map_err(|error| error.advise(&repeat_with_id(&id)))?;
    context.print(&view, print::show)
}

fn request<C: Caller>(context: &Context<C>, arguments: RouterSetArgs) -> RouterSet {
    let routes = arguments.routes;
    RouterSet {
        router: arguments.router,
        project: context.project(),
        name: arguments.name,
        admin_state_up: either(arguments.enable, arguments.disable),
        external_gateway: arguments.external_gateway.map(ExternalGateway::Network),
        enable_snat: either(arguments.enable_snat, arguments.disable_snat),
        routes: (arguments.no_route || !routes.is_empty()).then_some(routes),
    }
}

/// What two switches say that exclude each other.
fn either(on: bool, off: bool) -> Option<bool> {
    (on || off).then_some(on)
}

async fn set<C: Caller>(context: &Context<C>, request: RouterSet) -> Result<(), CtlError> {
    let view = context.wish(&request).await?;
    context.print(&view, print::show)
}

async fn delete<C: Caller>(context: &Context<C>, name: &str) -> Result<RouterView, CtlError> {
    let project = context.project();
    let all = RouterList {
        project: Some(project.clone()),
    };
    let reply = context.ask(&all).await.map_err(CtlError::before_asking)?;
    let named = Named {
        name,
        project: Some(&project),
    };
    named
        .delete(context, reply.routers, |router| RouterDelete {
            router,
            project: project.clone(),
        })
        .await
}

pub(super) async fn run_floating<C: Caller>(
    context: &Context<C>,
    command: FloatingIp,
) -> Result<(), CtlError> {
    let project = context.project();
    match command {
        FloatingIp::Create(arguments) => create_floating(context, arguments).await,
        FloatingIp::List => {
            let request = FloatingIpList {
                project: context.project.clone(),
            };
            let reply = context.ask(&request).await?;
            context.print(&reply, |reply, width| {
                print::list_floating(&reply.floating_ips, width)
            })
        }
        FloatingIp::Show { floating_ip } => {
            let request = FloatingIpShow {
                floating_ip,
                project,
            };
            let view = context.ask(&request).await?;
            context.print(&view, print::show_floating)
        }
        FloatingIp::Set {
            floating_ip,
            port,
            fixed_ip_address,
        } => {
            let request = FloatingIpSet {
                floating_ip,
                project,
                port_id: Some(port),
                fixed_ip_address,
            };
            let view = context.wish(&request).await?;
            context.print(&view, print::show_floating)
        }
        FloatingIp::Unset { floating_ip, .. } => {
            let request = FloatingIpSet {
                floating_ip,
                project,
                port_id: None,
                fixed_ip_address: None,
            };
            let view = context.wish(&request).await?;
            context.print(&view, print::show_floating)
        }
        FloatingIp::Delete { floating_ip } => {
            let request = FloatingIpDelete {
                floating_ip,
                project,
            };
            let view = context.wish(&request).await?;
            context.print(&view, |view, _| print::deleted_floating(view))
        }
    }
}

async fn create_floating<C: Caller>(
    context: &Context<C>,
    arguments: FloatingIpCreateArgs,
) -> Result<(), CtlError> {
    let id = arguments.id.unwrap_or_else(FloatingIpId::new);
    let request = FloatingIpCreate {
        id,
        project: context.project(),
        network: arguments.network,
        ip_address: arguments.floating_ip_address,
    };
    let asked = context.ask(&request).await;
    let view = asked.map_err(|error| error.advise(&repeat_with_id(&id)))?;
    context.print(&view, print::show_floating)
}
