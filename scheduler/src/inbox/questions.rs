//! Questions that only an instance's host can answer: its host is looked up here, and the question passed on. The
//! agent answers whoever asked; nothing is stored, and nobody waits here for the answer.

use std::time::{Duration, Instant};

use berth_common::{
    bus::{Message, PublishError, Target, ask_queue},
    ids::{HostId, InstanceId, PortId},
    message::{
        app,
        counters::PortCounters,
        question::{
            Ask, DEFAULT_PATIENCE, InstanceConsoleOutput, InstanceEndpoints,
            InstancePingGuestAgent, InstanceScreenshot, MAX_CONSOLE_LINES, MAX_PATIENCE,
            QUESTION_TYPE, Question,
        },
        request::Method,
        trace::PortTrace,
        view::HostState,
    },
    names::{HostName, ProjectName},
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
};
use berth_store::{
    Executor,
    claims::{self, ClaimRole},
    hosts,
    instances::{self, InstanceRow},
    ports,
};

use super::{
    methods::{self, Unserved},
    requests::parse,
};
use crate::{
    claim::{ClaimError, conflict, instances::resolve, invalid, not_found},
    context::Context,
};

/// The shortest patience that is worth a question.
const MIN_PATIENCE: Duration = Duration::from_secs(1);

/// A question whose host is known.
#[derive(Debug)]
pub(super) struct Passing {
    host: HostName,
    instance: InstanceId,
    question: Question,
}

/// What somebody wants to know, of which instance.
struct Asked {
    of: Of,
    ask: Ask,
}

/// The instance that is meant.
enum Of {
    /// By its id, or name in the project.
    Instance {
        project: ProjectName,
        instance: String,
    },
    /// By one of its ports.
    Port(PortId),
}

/// The instance that a port belongs to.
async fn instance_of_port(db: &impl Executor, port: PortId) -> Result<InstanceRow, ClaimError> {
    let found = ports::get(db, port).await?;
    let found = found.ok_or_else(|| not_found(format!("there is no port {port}")))?;
    let instance = found.instance_id().ok_or_else(|| {
        conflict(format!(
            "port {port} is of no instance: it is plugged in nowhere, and nothing goes through it"
        ))
    })?;
    let row = instances::get(db, instance).await?;
    row.ok_or_else(|| not_found(format!("the instance of port {port} is gone")))
}

/// Looks up the host of the instance that a question is about. `None`: nobody waits for the answer.
///
/// # Errors
/// What nobody could use, a refusal, or a failure of the database.
pub(super) async fn look_up(
    context: &Context,
    message: &Message,
) -> Result<Option<Passing>, Unserved> {
    let Asked { of, ask } = read(message)?;
    if message.reply_to.is_none() {
        return Ok(None);
    }
    let pool = context.store.pool();
    // An instance that moves on is seen before it or after it.
    let turn = context.image().await.map_err(ClaimError::from)?;
    let row = match of {
        Of::Instance { project, instance } => resolve(pool, &project, &instance).await?,
        Of::Port(port) => instance_of_port(pool, port).await?,
    };
    if row.deleted_at.is_some() {
        return Err(not_found(format!("instance {} is deleted", row.id)).into());
    }
    let claims = claims::of_instance(pool, row.id)
        .await
        .map_err(ClaimError::from)?;
    let claim = claims.iter().find(|it| it.role == ClaimRole::Current);
    let Some(claim) = claim else {
        let text = format!("instance {} has no hypervisor, so nobody can tell", row.id);
        return Err(conflict(text).into());
    };
    let host = hosts::get(pool, claim.host_id)
        .await
        .map_err(ClaimError::from)?
        .ok_or_else(|| not_found(format!("host {} is gone", claim.host_id)))?;
    drop(turn);
    refuse_down(context, &host.name, host.id, row.id)?;
    let patience = message.expiration.unwrap_or(DEFAULT_PATIENCE);
    let patience = patience.clamp(MIN_PATIENCE, MAX_PATIENCE);
    Ok(Some(Passing {
        host: host.name,
        instance: row.id,
        question: Question {
            host_id: host.id,
            instance_id: row.id,
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            ask,
        },
    }))
}

/// Reads the body of a question.
fn read(message: &Message) -> Result<Asked, Unserved> {
    let asked = match message.method.as_str() {
        InstanceConsoleOutput::NAME => {
            let request: InstanceConsoleOutput = body(message)?;
            if !(1..=MAX_CONSOLE_LINES).contains(&request.lines) {
                let text = format!(
                    "lines must be 1 to {MAX_CONSOLE_LINES}; got {}",
                    request.lines
                );
                return Err(invalid(text).into());
            }
            Asked {
                of: Of::Instance {
                    project: request.project,
                    instance: request.instance,
                },
                ask: Ask::ConsoleOutput {
                    lines: request.lines,
                    after: request.after,
                },
            }
        }
        InstanceScreenshot::NAME => {
            let request: InstanceScreenshot = body(message)?;
            Asked {
                of: Of::Instance {
                    project: request.project,
                    instance: request.instance,
                },
                ask: Ask::Screenshot {},
            }
        }
        InstancePingGuestAgent::NAME => {
            let request: InstancePingGuestAgent = body(message)?;
            Asked {
                of: Of::Instance {
                    project: request.project,
                    instance: request.instance,
                },
                ask: Ask::PingGuestAgent {},
            }
        }
        InstanceEndpoints::NAME => {
            let request: InstanceEndpoints = body(message)?;
            Asked {
                of: Of::Instance {
                    project: request.project,
                    instance: request.instance,
                },
                ask: Ask::Endpoints {},
            }
        }
        PortTrace::NAME => {
            let request: PortTrace = body(message)?;
            if request.packet.source.is_ipv6() != request.packet.destination.is_ipv6() {
                let text = format!(
                    "source and destination of a packet must be of the same version of IP; got {} and {}",
                    request.packet.source, request.packet.destination
                );
                return Err(invalid(text).into());
            }
            Asked {
                of: Of::Port(request.port),
                ask: Ask::PortTrace {
                    port_id: request.port,
                    packet: request.packet,
                },
            }
        }
        PortCounters::NAME => {
            let request: PortCounters = body(message)?;
            Asked {
                of: Of::Port(request.port),
                ask: Ask::PortCounters {
                    port_id: request.port,
                },
            }
        }
        method => return Err(Unserved::Poison(methods::unknown(method))),
    };
    Ok(asked)
}

fn body<M: Method>(message: &Message) -> Result<M, Unserved> {
    parse(message).map_err(Unserved::Poison)
}

/// A host that is down would never answer.
fn refuse_down(
    context: &Context,
    host: &HostName,
    id: HostId,
    instance: InstanceId,
) -> Result<(), ClaimError> {
    let (state, age) =
        context.liveness(|liveness| (liveness.state(id), liveness.age(id, Instant::now())));
    if state == HostState::Up {
        return Ok(());
    }
    let silence = age.map_or_else(String::new, |age| {
        format!(", nothing was heard of it for {} s", age.as_secs())
    });
    let text = format!(
        "hypervisor {host} of instance {instance} is down{silence}; only it can answer. Ask again when `berthctl host \
         show {host}` says that it is up"
    );
    Err(Refusal::new(RefusalCode::Unavailable, text).into())
}

/// Hands a question to the host's agent, with the address of whoever asked.
///
/// # Errors
/// What whoever asked is told instead: no agent listens there, or the broker does not take it.
pub(super) async fn pass_on(
    context: &Context,
    request: &Message,
    passing: Passing,
) -> Result<(), Refusal> {
    let Passing {
        host,
        instance,
        question,
    } = passing;
    let version = question.ask.version();
    let mut message = Message::new(QUESTION_TYPE, version, app::SCHEDULER, &question)
        .map_err(|error| ClaimError::from(error.source).refusal())?;
    message.correlation_id = Some(request.reply_correlation().to_owned());
    message.reply_to.clone_from(&request.reply_to);
    message.traceparent.clone_from(&request.traceparent);
    // Whatever waits longer is nobody's question any more.
    message.expiration = Some(Duration::from_millis(question.patience_ms));
    let target = Target::queue(ask_queue(host.as_str()));
    match context.bus.publish(target, message).await {
        Ok(()) => Ok(()),
        Err(PublishError::Unroutable { .. }) => Err(Refusal::new(
            RefusalCode::Unavailable,
            format!(
                "no agent listens on hypervisor {host} of instance {instance}: it was stopped or has lost the message \
                 broker, or it is too old to be asked (`systemctl status berth-agent` there); instances are not affected"
            ),
        )),
        Err(error) => {
            tracing::warn!(%host, error = %error_chain(&error), "a question was not passed on");
            Err(Refusal::new(
                RefusalCode::Unavailable,
                format!("the question could not be passed on to hypervisor {host}; ask again"),
            ))
        }
    }
}
