//! `berthctl host …`.

use berth_common::message::{
    request::{
        HostDelete, HostDeleteReply, HostDisable, HostDrain, HostEnable, HostList, HostListReply,
        HostSet, HostShow,
    },
    view::HostView,
};

use super::{Context, lookup};
use crate::{
    cli::{Host, HostSetArgs, WithReason},
    client::Caller,
    error::CtlError,
    print::host,
};

/// Refuses what changes nothing.
pub(super) fn checked(command: Host) -> Result<Host, CtlError> {
    match &command {
        Host::Set(arguments) if set(arguments) == HostSet { host: arguments.name.clone(), ..HostSet::default() } => {
            Err(CtlError::Usage(
                "host set was told to change nothing: give at least one of --cpu-allocation-ratio, \
                 --ram-allocation-ratio, --disk-allocation-ratio, --reserved-cpus, --reserved-memory-mb and \
                 --reserved-disk-gb"
                    .to_owned(),
            ))
        }
        _ => Ok(command),
    }
}

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Host) -> Result<(), CtlError> {
    let view = match command {
        Host::List => return list(context).await,
        Host::Show { name } => {
            let view = context.ask(&HostShow { host: name }).await?;
            return context.print(&view, host::show);
        }
        Host::Delete { name } => {
            let gone = delete(context, name).await?;
            return context.print(&gone, |gone, _| host::deleted(gone));
        }
        Host::Set(arguments) => {
            let view = context.wish(&set(&arguments)).await?;
            return context.print(&view, |view, _| host::settings(view));
        }
        Host::Enable { name } => context.wish(&HostEnable { host: name }).await?,
        Host::Disable(WithReason { name: host, reason }) => {
            context.wish(&HostDisable { host, reason }).await?
        }
        Host::Drain(WithReason { name: host, reason }) => {
            context.wish(&HostDrain { host, reason }).await?
        }
    };
    context.print(&view, |view, _| host::outcome(view))
}

/// How many hosts are asked for at once.
const PAGE: u32 = 500;

async fn list<C: Caller>(context: &Context<C>) -> Result<(), CtlError> {
    let page = |last: Option<&HostView>| HostList {
        after: last.map(|last| last.name.clone()),
        limit: Some(PAGE),
    };
    let hosts = context
        .pages(page, |reply: HostListReply| (reply.hosts, reply.more))
        .await?;
    let all = HostListReply { hosts, more: false };
    context.print(&all, |all, width| host::list(&all.hosts, width))
}

fn set(arguments: &HostSetArgs) -> HostSet {
    HostSet {
        host: arguments.name.clone(),
        cpu_allocation_ratio: arguments.cpu_allocation_ratio.unwrap_or_default(),
        ram_allocation_ratio: arguments.ram_allocation_ratio.unwrap_or_default(),
        disk_allocation_ratio: arguments.disk_allocation_ratio.unwrap_or_default(),
        reserved_host_cpus: arguments.reserved_cpus.unwrap_or_default(),
        reserved_host_memory_mb: arguments.reserved_memory_mb.unwrap_or_default(),
        reserved_host_disk_gb: arguments.reserved_disk_gb.unwrap_or_default(),
    }
}

/// Finds out which hypervisor is meant, and forgets that one by its id.
async fn delete<C: Caller>(
    context: &Context<C>,
    name: String,
) -> Result<HostDeleteReply, CtlError> {
    let show = HostShow { host: name };
    let found = context.ask(&show).await.map_err(CtlError::before_asking)?;
    let request = HostDelete {
        host: found.id.to_string(),
    };
    let again = format!("host delete {}", found.id);
    let found = HostDeleteReply {
        id: found.id,
        name: found.name,
    };
    lookup::delete(context, &request, Some(found), &again).await
}

#[cfg(test)]
mod tests;
