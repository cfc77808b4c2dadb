//! Queue `scheduler`: requests of clients.

use std::{sync::Arc, time::Instant};

use berth_common::{
    bus::{BusError, Message, QueueDecl, Target, Unfit},
    message::{
        app,
        request::{
            HostDisable, HostEnable, HostList, HostShow, InstanceCreate, InstanceDelete,
            InstanceList, InstanceReboot, InstanceShow, InstanceStart, InstanceStop, Method,
            NetworkCreate, NetworkDelete, NetworkList, Reply,
        },
        understands,
        view::HostStatus,
    },
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{RETRY_PAUSE, cut, misfit, next, wrong_version};
use crate::{
    claim::{
        self, ClaimError,
        instances::{Change, change},
    },
    context::Context,
    report::show,
};

/// Requests taken off the queue ahead of their turn. They are served one after another, so that few are enough,
/// and a broker lets each be large.
const PREFETCH: u16 = 8;
/// Answers under way at once; while the broker takes none, no more requests are served.
const ANSWERS: usize = 256;
/// The longest method that is repeated in an answer, in bytes; AMQP allows 255 with what is appended.
const MAX_METHOD: usize = 200;

/// What became of a request.
enum Outcome {
    /// It was granted or refused.
    Answered(Result<Value, Refusal>),
    /// Nobody could use it: it is refused and goes to `berth.dead`.
    Poison(Refusal),
    /// The database is out of reach and nobody waits for an answer: it is served later.
    Later,
}

/// Serves requests until cancelled.
///
/// # Errors
/// When the queue exists with other arguments.
pub async fn run(context: Arc<Context>, cancel: CancellationToken) -> Result<(), BusError> {
    let answers = Arc::new(Semaphore::new(ANSWERS));
    let mut consumer = context
        .bus
        .consume(&QueueDecl::scheduler(), PREFETCH)
        .await?;
    while let Some(delivery) = next(&mut consumer, &cancel).await {
        let started = Instant::now();
        let outcome = loop {
            match handle(&context, &delivery.message, delivery.unfit()).await {
                Outcome::Later if cancel.is_cancelled() => return Ok(()),
                Outcome::Later => tokio::time::sleep(RETRY_PAUSE).await,
                outcome => break outcome,
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let request = delivery.message.clone();
        // Settled in the order of the requests and before the answer: a lost connection must not bring an older
        // request back after a newer one.
        let answer = match outcome {
            Outcome::Answered(result) => {
                let code = result.as_ref().err().map(|refusal| refusal.code);
                context.metrics.request(&request.method, code, seconds);
                delivery.ack().await;
                result
            }
            Outcome::Poison(refusal) => {
                // Not the sender's text: a label must not grow with what strangers send.
                context
                    .metrics
                    .request("unusable", Some(refusal.code), seconds);
                tracing::warn!(
                    method = %request.method.escape_debug(), sender = %request.app_id.escape_debug(), reason = %refusal,
                    "unusable request"
                );
                context.metrics.dead("scheduler");
                delivery.dead(&refusal.message).await;
                Err(refusal)
            }
            // Not reached: the loop above stays with it.
            Outcome::Later => continue,
        };
        let Ok(permit) = Arc::clone(&answers).acquire_owned().await else {
            return Ok(());
        };
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            send_answer(&context, &request, answer).await;
            drop(permit);
        });
    }
    Ok(())
}

/// Sends the answer where the sender wants it. Progress never depends on anybody waiting for it.
async fn send_answer(context: &Context, request: &Message, result: Result<Value, Refusal>) {
    let Some(reply_to) = &request.reply_to else {
        return;
    };
    let method = format!("{}.reply", cut(&request.method, MAX_METHOD));
    let message = match Message::reply(request, method, 1, app::SCHEDULER, &Reply::from(result)) {
        Ok(message) => message,
        Err(error) => {
            tracing::error!(error = %error_chain(&error), "an answer could not be written");
            return;
        }
    };
    if let Err(error) = context
        .bus
        .publish(Target::queue(reply_to.clone()), message)
        .await
    {
        tracing::debug!(error = %error_chain(&error), "nobody waits for an answer any more");
    }
}

async fn handle(context: &Context, message: &Message, unfit: Option<Unfit>) -> Outcome {
    if let Some(unfit) = unfit {
        let code = match unfit {
            Unfit::TooLarge { .. } => RefusalCode::TooLarge,
            _ => RefusalCode::Malformed,
        };
        return Outcome::Poison(Refusal::new(code, unfit.to_string()));
    }
    let store = &context.store;
    match message.method.as_str() {
        InstanceCreate::NAME => {
            serve(message, async |request: InstanceCreate| {
                claim::instances::create(context, &request).await
            })
            .await
        }
        InstanceDelete::NAME => {
            serve(message, async |request: InstanceDelete| {
                change(context, &request.project, &request.instance, Change::Delete).await
            })
            .await
        }
        InstanceStart::NAME => {
            serve(message, async |request: InstanceStart| {
                change(context, &request.project, &request.instance, Change::Start).await
            })
            .await
        }
        InstanceStop::NAME => {
            serve(message, async |request: InstanceStop| {
                change(context, &request.project, &request.instance, Change::Stop).await
            })
            .await
        }
        InstanceReboot::NAME => {
            serve(message, async |request: InstanceReboot| {
                change(
                    context,
                    &request.project,
                    &request.instance,
                    Change::from(&request),
                )
                .await
            })
            .await
        }
        InstanceShow::NAME => {
            serve(message, async |request: InstanceShow| {
                let row =
                    claim::instances::resolve(store.pool(), &request.project, &request.instance)
                        .await?;
                show::instance(store.pool(), &row).await
            })
            .await
        }
        InstanceList::NAME => {
            serve(message, async |request: InstanceList| {
                show::instance_list(store.pool(), &request).await
            })
            .await
        }
        NetworkCreate::NAME => {
            serve(message, async |request: NetworkCreate| {
                claim::networks::create(context, &request).await
            })
            .await
        }
        NetworkDelete::NAME => {
            serve(message, async |request: NetworkDelete| {
                claim::networks::delete(context, &request).await
            })
            .await
        }
        NetworkList::NAME => {
            serve(message, async |request: NetworkList| {
                show::network_list(store.pool(), &request).await
            })
            .await
        }
        HostList::NAME => {
            serve(message, async |_: HostList| {
                show::host_list(context, store.pool()).await
            })
            .await
        }
        HostShow::NAME => {
            serve(message, async |request: HostShow| {
                let row = claim::hosts::resolve(store.pool(), &request.host).await?;
                show::host(context, store.pool(), &row).await
            })
            .await
        }
        HostEnable::NAME => {
            serve(message, async |request: HostEnable| {
                claim::hosts::set_status(context, &request.host, HostStatus::Enabled, None).await
            })
            .await
        }
        HostDisable::NAME => {
            serve(message, async |request: HostDisable| {
                let reason = request.reason.as_deref();
                claim::hosts::set_status(context, &request.host, HostStatus::Disabled, reason).await
            })
            .await
        }
        unknown => {
            let shown = cut(unknown, 80);
            let text = format!(
                "there is no method {shown:?} (AMQP property `type`); docs/messages.md lists all"
            );
            Outcome::Poison(Refusal::new(RefusalCode::UnknownMethod, text))
        }
    }
}

/// Decode, one call, encode.
async fn serve<M: Method>(
    message: &Message,
    call: impl AsyncFnOnce(M) -> Result<M::Reply, ClaimError>,
) -> Outcome {
    if !message
        .version
        .is_some_and(|got| understands(M::VERSION, got))
    {
        return Outcome::Poison(Refusal::new(
            RefusalCode::UnsupportedVersion,
            wrong_version(message, M::VERSION),
        ));
    }
    let request = match serde_json::from_slice::<M>(&message.body) {
        Ok(request) => request,
        Err(error) => {
            return Outcome::Poison(Refusal::new(
                RefusalCode::Malformed,
                misfit(M::NAME, &error),
            ));
        }
    };
    let answer = match call(request).await {
        Ok(reply) => serde_json::to_value(reply).map_err(|error| ClaimError::from(error).refusal()),
        Err(ClaimError::Store(error)) if error.retryable() && message.reply_to.is_none() => {
            tracing::warn!(method = M::NAME, error = %error_chain(&error), "the database is out of reach; the request waits");
            return Outcome::Later;
        }
        Err(error) => Err(error.refusal()),
    };
    Outcome::Answered(answer)
}
