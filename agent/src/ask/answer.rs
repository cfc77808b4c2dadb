//! One question: what is known on this host, as the reply of its method.

use std::time::Duration;

use berth_common::{
    document::{Document, DocumentKey, Kind, NetworkPort, NetworkSpec},
    ids::{InstanceId, NetworkId, PortId},
    message::{
        counters::{LinkCounts, PortCounted},
        question::{
            Ask, Base64, ConsoleOutput, Endpoints, GuestAgent, MAX_CONSOLE_LINES, Question,
            Screenshot,
        },
        trace::PortTraced,
    },
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
};
use serde::Serialize;
use serde_json::Value;

use super::Answerer;
use crate::{
    act::{
        ActError,
        inspect::{ConsoleFrom, NotKnown},
    },
    decide::{
        endpoints::endpoints,
        filter::{beyond, legs, trace},
        metadata, names,
        usage::Traffic,
    },
};

/// Answers a question within the limit.
///
/// # Errors
/// What whoever asked is told instead.
pub(super) async fn answer(
    answerer: &Answerer,
    question: &Question,
    limit: Duration,
) -> Result<Value, Refusal> {
    let instance_id = question.instance_id;
    if !is_here(answerer, instance_id) {
        let text = format!("hypervisor {} has no instance {instance_id}", answerer.host);
        return Err(Refusal::new(RefusalCode::NotFound, text));
    }
    let host = answerer.host.clone();
    let inspect = &answerer.inspect;
    match &question.ask {
        Ask::ConsoleOutput { lines, after } => {
            let from = match after {
                Some(place) => ConsoleFrom::After(*place),
                None => ConsoleFrom::Last((*lines).clamp(1, MAX_CONSOLE_LINES)),
            };
            let console = inspect.console(instance_id, from, limit).await;
            let console = console.map_err(|why| refusal(&why))?;
            reply(&ConsoleOutput {
                instance_id,
                host,
                text: console.part.text,
                cut: console.part.cut,
                more: console.part.more,
                next: console.next,
            })
        }
        Ask::Screenshot {} => {
            let picture = inspect.screenshot(instance_id, limit).await;
            let picture = picture.map_err(|why| refusal(&why))?;
            reply(&Screenshot {
                instance_id,
                host,
                media_type: picture.media_type,
                picture: Base64(picture.bytes),
            })
        }
        Ask::PingGuestAgent {} => {
            let agent = inspect.ping_guest_agent(instance_id, limit).await;
            let agent = agent.map_err(|why| refusal(&why))?;
            reply(&GuestAgent {
                instance_id,
                host,
                state: agent.state,
                detail: agent.detail,
            })
        }
        Ask::PortTrace { port_id, packet } => {
            let (network, spec, port) = port_of(answerer, instance_id, *port_id)?;
            let documents = answerer.journal.all();
            let documents: Vec<_> = documents.iter().map(|entry| &*entry.document).collect();
            let legs = legs(network, &[], documents.iter().copied());
            let steps = trace(&spec, &legs, &beyond(network, &documents), &port, packet);
            reply(&PortTraced {
                port_id: *port_id,
                instance_id,
                host,
                passes: steps.iter().all(|step| step.passes),
                steps,
            })
        }
        Ask::PortCounters { port_id } => {
            let (network, spec, port) = port_of(answerer, instance_id, *port_id)?;
            let counts = inspect
                .port_counts(instance_id, (network, *port_id), limit)
                .await;
            let counts = counts.map_err(|why| refusal(&why))?;
            let dropped = counts.dropped.iter();
            reply(&PortCounted {
                port_id: *port_id,
                instance_id,
                host,
                tap: names::tap(*port_id),
                received: link_counts(counts.received),
                sent: link_counts(counts.sent),
                filter_dropped_packets: dropped
                    .map(|(why, packets)| (why.as_str().to_owned(), *packets))
                    .collect(),
                forged_metadata_requests: metadata::forged_of(&spec, &port, counts.forged.as_ref()),
            })
        }
        Ask::Endpoints {} => {
            let live = inspect.live_domain(instance_id, limit).await;
            let live = live.map_err(|why| refusal(&why))?;
            let domain = names::domain(instance_id);
            reply(&Endpoints {
                endpoints: endpoints(&host, &domain, &live.devices),
                power_state: live.power,
                instance_id,
                host,
                domain,
            })
        }
    }
}

/// Whether this host was told to have an instance. What else is here is nobody's to look at.
fn is_here(answerer: &Answerer, instance: InstanceId) -> bool {
    let key = DocumentKey {
        kind: Kind::Instance,
        id: instance.as_uuid(),
    };
    let entry = answerer.journal.get(key);
    entry.is_some_and(|entry| !entry.document.is_tombstone())
}

/// A port of an instance in the document of its network.
fn port_of(
    answerer: &Answerer,
    instance: InstanceId,
    port: PortId,
) -> Result<(NetworkId, NetworkSpec, NetworkPort), Refusal> {
    let found = answerer.journal.all().iter().find_map(|entry| {
        let Document::Network(wish) = &*entry.document else {
            return None;
        };
        let spec = wish.spec.as_ref()?;
        let found = spec
            .ports
            .iter()
            .find(|found| found.id == port && found.instance_id == instance)?;
        Some((wish.id, spec.clone(), found.clone()))
    });
    found.ok_or_else(|| {
        let text = format!(
            "hypervisor {} has not been told of port {port} of instance {instance}",
            answerer.host
        );
        Refusal::new(RefusalCode::NotFound, text)
    })
}

fn link_counts(traffic: Traffic) -> LinkCounts {
    LinkCounts {
        bytes: traffic.bytes,
        packets: traffic.packets,
        dropped_packets: traffic.drops,
        errors: traffic.errors,
    }
}

fn reply(answer: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer)
        .map_err(|error| Refusal::new(RefusalCode::Internal, error.to_string()))
}

/// Why something is not known, for whoever asked.
fn refusal(why: &NotKnown) -> Refusal {
    let code = match why {
        NotKnown::NoDomain(_) | NotKnown::Off { .. } | NotKnown::NoTap(_) => RefusalCode::Conflict,
        NotKnown::TooLarge(_) => RefusalCode::TooLarge,
        NotKnown::Failed(ActError {
            retryable: true, ..
        }) => RefusalCode::Unavailable,
        NotKnown::Failed(_) => RefusalCode::Internal,
    };
    Refusal::new(code, error_chain(why))
}
