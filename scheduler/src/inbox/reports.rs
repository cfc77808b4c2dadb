//! Queue `scheduler.reports`: what hosts observed, as many reports at once as wait.

use std::sync::Arc;

use berth_common::{
    bus::{BusError, Delivery, QueueDecl},
    message::report::{REPORT_TYPE, REPORT_VERSION, Report},
    telemetry::error_chain,
};
use tokio_util::sync::CancellationToken;

use super::{Next, after_failure, decode, gather, next};
use crate::{context::Context, report::apply};

/// Reports taken off the queue and not yet written down, and the most in one transaction.
const PREFETCH: u16 = 128;

/// Writes reports down until cancelled.
///
/// # Errors
/// When the queue exists with other arguments.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) -> Result<(), BusError> {
    let mut consumer = context.bus.consume(&QueueDecl::reports(), PREFETCH).await?;
    while let Some(delivery) = next(&mut consumer, &cancel).await {
        let batch = gather(delivery, &mut consumer, PREFETCH);
        let (mut deliveries, mut reports) = (Vec::new(), Vec::new());
        for delivery in batch {
            match decode::<Report>(&delivery, REPORT_TYPE, REPORT_VERSION) {
                Ok(report) => {
                    deliveries.push(delivery);
                    reports.push(report);
                }
                Err(reason) => {
                    tracing::warn!(reason, "unusable report");
                    bury(&context, delivery, &reason).await;
                }
            }
        }
        if reports.is_empty() {
            continue;
        }
        // Together if that can be; else each by itself, so that one report's trouble stays its own.
        if apply::reports(&context, &reports).await.is_ok() {
            for delivery in deliveries {
                context.metrics.report();
                delivery.ack().await;
            }
            continue;
        }
        for (delivery, report) in deliveries.into_iter().zip(&reports) {
            match one(&context, report, &cancel).await {
                None => return Ok(()),
                Some(Ok(())) => {
                    context.metrics.report();
                    delivery.ack().await;
                }
                Some(Err(reason)) => {
                    tracing::error!(host = %report.host, error = reason, "a report could not be written down");
                    bury(&context, delivery, &reason).await;
                }
            }
        }
    }
    Ok(())
}

async fn bury(context: &Context, delivery: Delivery, reason: &str) {
    context.metrics.dead("scheduler.reports");
    delivery.dead(reason).await;
}

/// Writes one report down, however long the database is out of reach. `None`: this scheduler ends.
async fn one(
    context: &Context,
    report: &Report,
    cancel: &CancellationToken,
) -> Option<Result<(), String>> {
    loop {
        let Err(error) = apply::reports(context, std::slice::from_ref(report)).await else {
            return Some(Ok(()));
        };
        match after_failure(error, cancel).await {
            Next::Again => {}
            Next::End => return None,
            Next::GiveUp(error) => return Some(Err(error_chain(&error))),
        }
    }
}
