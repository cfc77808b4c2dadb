//! `berthctl port trace`.

use berth_common::message::trace::PortTrace;

use super::Context;
use crate::{cli::PortTraceArgs, client::Caller, error::CtlError, print::trace};

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    arguments: PortTraceArgs,
) -> Result<(), CtlError> {
    let request = PortTrace {
        port: arguments.port,
        packet: arguments.packet(),
    };
    let answer = context.ask(&request).await?;
    context.print(&answer, trace::traced)
}
