//! `berthctl port …`.

use berth_common::message::trace::PortTrace;

use super::Context;
use crate::{cli::Port, client::Caller, error::CtlError, print::port};

/// Carries out a command on ports.
pub(super) async fn run<C: Caller>(context: &Context<C>, command: Port) -> Result<(), CtlError> {
    match command {
        Port::Trace(arguments) => {
            let request = PortTrace {
                port: arguments.port,
                packet: arguments.packet(),
            };
            let answer = context.ask(&request).await?;
            context.print(&answer, port::traced)
        }
    }
}
