//! Asks libvirt what somebody wants to know of a guest. Nothing here changes anything, and only what is berth's is
//! looked at.

use std::time::Duration;

use berth_common::{
    ids::InstanceId,
    message::{
        question::{GuestAgentState, MAX_PICTURE_BYTES},
        report::{FaultCode, PowerState},
    },
};
use virt::{
    connect::Connect,
    domain::Domain,
    error::{Error, ErrorNumber},
    stream::Stream,
};

use super::{
    error::{failed, is_gone},
    observe,
};
use crate::{
    act::{
        ActError,
        inspect::{Agent, Inspected, LiveDomain, NotKnown, Picture},
    },
    decide::{
        domain::DomainObserved,
        domain_xml::{self, AgentChannel, LiveDevices},
    },
};

/// Bytes of a picture that are taken at a time.
const CHUNK: usize = 64 * 1024;
/// Asks the agent of a guest to say that it is there (QEMU's `qga/qapi-schema.json`).
const PING: &str = r#"{"execute":"guest-ping"}"#;

/// A picture of the first display.
pub(super) fn screenshot(
    connection: &Connect,
    instance: InstanceId,
    what: &str,
) -> Inspected<Picture> {
    let domain = running(connection, instance, what)?;
    let stream = Stream::new(connection, 0).map_err(|error| told(instance, what, error))?;
    let media_type = domain
        .screenshot(&stream, 0, 0)
        .map_err(|error| told(instance, what, error))?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = stream
            .recv(&mut chunk)
            .map_err(|error| told(instance, what, error))?;
        let Some(came) = chunk.get(..count).filter(|came| !came.is_empty()) else {
            break;
        };
        if bytes.len() + came.len() > MAX_PICTURE_BYTES {
            // Of a stream that is given up there is nothing more to know.
            drop(stream.abort());
            return Err(NotKnown::TooLarge(MAX_PICTURE_BYTES));
        }
        bytes.extend_from_slice(came);
    }
    stream
        .finish()
        .map_err(|error| told(instance, what, error))?;
    Ok(Picture { media_type, bytes })
}

/// Whether the guest's agent answers. It is asked only if something in the guest has opened its channel, and waited for
/// no longer than half of the limit.
pub(super) fn ping_guest_agent(
    connection: &Connect,
    instance: InstanceId,
    what: &str,
    limit: Duration,
) -> Inspected<Agent> {
    let domain = running(connection, instance, what)?;
    let agent = |state, detail: String| Ok(Agent { state, detail });
    let devices = devices(&domain, instance, what)?;
    let state = devices.guest_agent.map(|channel| channel.state);
    match state {
        None => {
            let detail = "its domain has no channel for a guest agent".to_owned();
            return agent(GuestAgentState::Absent, detail);
        }
        Some(AgentChannel::Disconnected) => {
            let detail = "nothing in the guest has opened the channel of the guest agent; is qemu-guest-agent installed \
                          there, and does it run?";
            return agent(GuestAgentState::Absent, detail.to_owned());
        }
        Some(AgentChannel::Connected) => {}
    }
    let seconds = i32::try_from((limit / 2).as_secs()).unwrap_or(1).max(1);
    match domain.qemu_agent_command(PING, seconds, 0) {
        Ok(_) => agent(GuestAgentState::Present, "it answered".to_owned()),
        // It is there, and would rather not.
        Err(error) if error.code() == ErrorNumber::AgentCommandFailed => agent(
            GuestAgentState::Present,
            format!("it answered with an error: {}", error.message()),
        ),
        Err(error) if is_silence(error.code()) => agent(
            GuestAgentState::Silent,
            format!(
                "something in the guest has opened the channel, and did not answer within {seconds} s: {}",
                error.message()
            ),
        ),
        Err(error) => Err(told(instance, what, error)),
    }
}

/// Where its display and consoles are.
pub(super) fn live_domain(
    connection: &Connect,
    instance: InstanceId,
    what: &str,
) -> Inspected<LiveDomain> {
    let (domain, observed) = find(connection, instance, what)?;
    Ok(LiveDomain {
        power: observed.power_state,
        devices: devices(&domain, instance, what)?,
    })
}

/// What libvirt says when an agent does not answer, or answers nonsense.
fn is_silence(code: ErrorNumber) -> bool {
    matches!(
        code,
        ErrorNumber::AgentUnresponsive
            | ErrorNumber::AgentCommandTimeout
            | ErrorNumber::AgentUnsynced
            | ErrorNumber::InternalError
    )
}

fn devices(domain: &Domain, instance: InstanceId, what: &str) -> Inspected<LiveDevices> {
    let xml = domain
        .get_xml_desc(0)
        .map_err(|error| told(instance, what, error))?;
    Ok(domain_xml::read_live(&xml))
}

/// The domain of an instance, if it runs, or stands still.
fn running(connection: &Connect, instance: InstanceId, what: &str) -> Inspected<Domain> {
    let (domain, observed) = find(connection, instance, what)?;
    match observed.power_state {
        PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate => Err(NotKnown::Off {
            instance,
            power: observed.power_state,
        }),
        _ => Ok(domain),
    }
}

/// The domain with the instance's UUID, if it is berth's.
fn find(
    connection: &Connect,
    instance: InstanceId,
    what: &str,
) -> Inspected<(Domain, DomainObserved)> {
    let domain = observe::lookup(connection, instance)?.ok_or(NotKnown::NoDomain(instance))?;
    let observed = observe::of(&domain)?.ok_or(NotKnown::NoDomain(instance))?;
    if observed.metadata.is_none() {
        let text = format!(
            "{what}: domain {:?} has the instance's UUID, but berth did not make it",
            observed.name
        );
        return Err(ActError::refused(FaultCode::ForeignObject, text).into());
    }
    Ok((domain, observed))
}

/// What an error of libvirt means. A guest may go off at any instant.
fn told(instance: InstanceId, what: &str, error: Error) -> NotKnown {
    if is_gone(&error) {
        NotKnown::NoDomain(instance)
    } else if error.code() == ErrorNumber::OperationInvalid
        && error.message().contains("not running")
    {
        NotKnown::Off {
            instance,
            power: PowerState::Shutdown,
        }
    } else {
        NotKnown::Failed(failed(what.to_owned(), error))
    }
}
