//! Queue `scheduler.reports`: what hosts observed.

use std::sync::Arc;

use berth_common::{
    bus::{BusError, QueueDecl},
    message::report::{REPORT_TYPE, REPORT_VERSION, Report},
    telemetry::error_chain,
};
use tokio_util::sync::CancellationToken;

use super::{Next, after_failure, decode, next};
use crate::{context::Context, report::apply};

/// Reports taken off the queue and not yet written down.
const PREFETCH: u16 = 64;

/// Writes reports down until cancelled.
///
/// # Errors
/// When the queue exists with other arguments.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) -> Result<(), BusError> {
    let mut consumer = context.bus.consume(&QueueDecl::reports(), PREFETCH).await?;
    while let Some(delivery) = next(&mut consumer, &cancel).await {
        let report: Report = match decode(&delivery, REPORT_TYPE, REPORT_VERSION) {
            Ok(report) => report,
            Err(reason) => {
                tracing::warn!(reason, "unusable report");
                context.metrics.dead("scheduler.reports");
                delivery.dead(&reason).await;
                continue;
            }
        };
        let applied = loop {
            match apply::report(&context, &report).await {
                Ok(()) => break Ok(()),
                Err(error) => match after_failure(error, &cancel).await {
                    Next::Again => {}
                    Next::End => return Ok(()),
                    Next::GiveUp(error) => break Err(error),
                },
            }
        };
        match applied {
            Ok(()) => {
                context.metrics.report();
                delivery.ack().await;
            }
            Err(error) => {
                let reason = error_chain(&error);
                tracing::error!(host = %report.host, error = reason, "a report could not be written down");
                delivery.dead(&reason).await;
            }
        }
    }
    Ok(())
}
