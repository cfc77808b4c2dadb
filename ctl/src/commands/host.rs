//! `berthctl host …`.

use berth_common::message::request::{HostDisable, HostEnable, HostList, HostShow};

use super::Context;
use crate::{cli::Host, client::Caller, error::CtlError, print::host};

pub(super) async fn run<C: Caller>(context: &Context<C>, command: Host) -> Result<(), CtlError> {
    match command {
        Host::List => {
            let reply = context.ask(&HostList {}).await?;
            context.print(&reply, |reply, width| host::list(&reply.hosts, width))
        }
        Host::Show { name } => {
            let view = context.ask(&HostShow { host: name }).await?;
            context.print(&view, host::show)
        }
        Host::Enable { name } => {
            let view = context.ask(&HostEnable { host: name }).await?;
            context.print(&view, |view, _| host::outcome(view))
        }
        Host::Disable { name, reason } => {
            let view = context.ask(&HostDisable { host: name, reason }).await?;
            context.print(&view, |view, _| host::outcome(view))
        }
    }
}
