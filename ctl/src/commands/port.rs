//! `berthctl port …`, and the ports of instances.

use berth_common::{
    ids::PortId,
    message::{
        counters::PortCounters,
        port::{
            InstanceAttachInterface, InstanceDetachInterface, NewPort, PortCreate, PortDelete,
            PortList, PortListReply, PortSet, PortShow,
        },
        request::{Change, InstanceShow, default_page},
        view::{InstanceView, PortView},
    },
    names::ProjectName,
};

use super::{Context, asking::Asking, repeat_with_id, trace};
use crate::{
    cli::{AddNetworkArgs, Port, PortCreateArgs, PortSetArgs},
    client::Caller,
    error::CtlError,
    print::port,
    wait::{Awaited, port::PortGoal},
};

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Port) -> Result<(), CtlError> {
    match command {
        Port::Trace(arguments) => trace::run(context, arguments).await,
        Port::Counters { name } => {
            let meant = found(context, name).await?;
            let answer = context.ask(&PortCounters { port: meant.id }).await?;
            context.print(&answer, port::counters)
        }
        Port::Create(arguments) => {
            let request = create_request(arguments, context.project());
            let answer = context.ask(&request).await;
            let view = answer.map_err(|error| error.advise(&repeat_with_id(&request.id)))?;
            context.print(&view, port::show)
        }
        Port::Set(arguments) => {
            let meant = found(context, arguments.port.clone()).await?;
            let view = context.wish(&set_request(arguments, &meant)).await?;
            context.print(&view, port::show)
        }
        Port::List { network, instance } => list(context, network, instance).await,
        Port::Show { name } => {
            let view = found(context, name).await?;
            context.print(&view, port::show)
        }
        Port::Delete { name } => {
            let meant = found(context, name)
                .await
                .map_err(CtlError::before_asking)?;
            let request = PortDelete {
                port: meant.id.to_string(),
                project: meant.project.clone(),
            };
            let view = match context.wish(&request).await {
                Err(CtlError::Refused(refusal)) if refusal.code == NOT_FOUND => meant,
                answer => answer?,
            };
            context.print(&view, |view, _| port::deleted(view))
        }
    }
}

const NOT_FOUND: berth_common::refusal::RefusalCode = berth_common::refusal::RefusalCode::NotFound;

/// The port that is meant.
async fn found<C: Caller>(context: &Context<C>, port: String) -> Result<PortView, CtlError> {
    let show = PortShow {
        port,
        project: context.project(),
    };
    context.ask(&show).await
}

async fn list<C: Caller>(
    context: &Context<C>,
    network: Option<String>,
    instance: Option<String>,
) -> Result<(), CtlError> {
    let page = |last: Option<&PortView>| PortList {
        project: context.project.clone(),
        network: network.clone(),
        instance: instance.clone(),
        after: last.map(|last| last.id),
        limit: default_page(),
    };
    let ports = context
        .pages(page, |reply: PortListReply| (reply.ports, reply.more))
        .await?;
    let all = PortListReply { ports, more: false };
    context.print(&all, |all, width| port::list(&all.ports, width))
}

fn create_request(arguments: PortCreateArgs, project: ProjectName) -> PortCreate {
    let PortCreateArgs {
        security, extras, ..
    } = arguments;
    PortCreate {
        id: arguments.id.unwrap_or_else(PortId::new),
        name: arguments.name,
        project,
        network: arguments.network,
        ip_address: arguments.ip_address,
        mac_address: arguments.mac_address,
        admin_state_up: !arguments.disable,
        port_security_enabled: !security.no_port_security,
        security_groups: security.groups(),
        allowed_address_pairs: extras.allowed_addresses,
        qos: berth_common::document::PortQos {
            egress: extras.egress_limit.unwrap_or_default().apply(None),
            ingress: extras.ingress_limit.unwrap_or_default().apply(None),
        },
        mirrors: extras.mirrors,
    }
}

fn set_request(arguments: PortSetArgs, meant: &PortView) -> PortSet {
    let PortSetArgs {
        security, extras, ..
    } = arguments;
    let has_pairs = !extras.allowed_addresses.is_empty() || arguments.no_allowed_address;
    let has_mirrors = !extras.mirrors.is_empty() || arguments.no_mirror;
    PortSet {
        port: meant.id.to_string(),
        project: meant.project.clone(),
        name: arguments.name.unwrap_or_default(),
        admin_state_up: match (arguments.enable, arguments.disable) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        },
        port_security_enabled: match (arguments.port_security, security.no_port_security) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        },
        security_groups: security.groups(),
        allowed_address_pairs: has_pairs.then_some(extras.allowed_addresses),
        qos_egress: extras.egress_limit.unwrap_or(Change::Keep),
        qos_ingress: extras.ingress_limit.unwrap_or(Change::Keep),
        mirrors: has_mirrors.then_some(extras.mirrors),
    }
}

/// The instance that is meant; from then on it is spoken of by its id.
async fn instance<C: Caller>(
    asking: &mut Asking<'_, C>,
    instance: String,
    project: ProjectName,
) -> Result<InstanceView, CtlError> {
    let show = InstanceShow { instance, project };
    asking.send(&show).await.map_err(CtlError::before_asking)
}

async fn port_of<C: Caller>(
    asking: &mut Asking<'_, C>,
    port: String,
    project: ProjectName,
) -> Result<PortView, CtlError> {
    let show = PortShow { port, project };
    asking.send(&show).await.map_err(CtlError::before_asking)
}

/// Plugs a port into an instance.
pub(super) async fn add<C: Caller>(
    asking: &mut Asking<'_, C>,
    (to, port): (String, String),
    project: ProjectName,
) -> Result<PortView, CtlError> {
    let with = instance(asking, to, project.clone()).await?;
    let meant = port_of(asking, port, project).await?;
    let request = InstanceAttachInterface {
        instance: with.id.to_string(),
        project: with.project.clone(),
        port: Some(meant.id.to_string()),
        new_port: None,
    };
    let answer = asking.send(&request).await;
    let view = answer.map_err(|error| error.advise("repeating the command is harmless"))?;
    plugged(asking, &view, meant.id).await
}

/// Plugs an instance into a network.
pub(super) async fn add_network<C: Caller>(
    asking: &mut Asking<'_, C>,
    arguments: AddNetworkArgs,
    project: ProjectName,
) -> Result<PortView, CtlError> {
    let with = instance(asking, arguments.instance.clone(), project).await?;
    let id = arguments.id.unwrap_or_else(PortId::new);
    let request = InstanceAttachInterface {
        instance: with.id.to_string(),
        project: with.project.clone(),
        port: None,
        new_port: Some(NewPort {
            id,
            network: arguments.network,
            ip_address: arguments.ip_address,
            mac_address: arguments.mac_address,
            port_security_enabled: !arguments.security.no_port_security,
            security_groups: arguments.security.groups(),
        }),
    };
    let answer = asking.send(&request).await;
    let view = answer.map_err(|error| error.advise(&repeat_with_id(&id)))?;
    plugged(asking, &view, id).await
}

async fn plugged<C: Caller>(
    asking: &mut Asking<'_, C>,
    view: &InstanceView,
    id: PortId,
) -> Result<PortView, CtlError> {
    let port = view.ports.iter().find(|port| port.id == id).cloned();
    let port = port.ok_or_else(|| CtlError::Nonsense {
        method: <InstanceAttachInterface as berth_common::message::request::Method>::NAME,
        reason: format!("an instance without the port {id} that it was to get"),
    })?;
    asking.until(port, PortGoal::PluggedIn).await
}

/// Unplugs a port from an instance.
pub(super) async fn remove<C: Caller>(
    asking: &mut Asking<'_, C>,
    (from, port): (String, String),
    project: ProjectName,
) -> Result<PortView, CtlError> {
    let with = instance(asking, from, project.clone()).await?;
    let meant = port_of(asking, port, project).await?;
    let request = InstanceDetachInterface {
        instance: with.id.to_string(),
        project: with.project.clone(),
        port: meant.id.to_string(),
    };
    let answer = asking.send(&request).await;
    let view = answer.map_err(|error| error.advise("repeating the command is harmless"))?;
    match view.ports.into_iter().find(|port| port.id == meant.id) {
        Some(port) => asking.until(port, PortGoal::Unplugged).await,
        None => Ok(meant.gone()),
    }
}

#[cfg(test)]
mod tests;
