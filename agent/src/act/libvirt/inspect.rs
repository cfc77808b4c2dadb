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

use super::{
    error::{failed, is_gone},
    observe,
    rpc::{Code, Connection, Domain, Error},
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

/// The media type of what has none.
const UNKNOWN_TYPE: &str = "application/octet-stream";
/// Asks the agent of a guest to say that it is there (QEMU's `qga/qapi-schema.json`).
const PING: &str = r#"{"execute":"guest-ping"}"#;

/// A picture of the first display.
pub(super) async fn screenshot(
    connection: &Connection,
    instance: InstanceId,
    what: &str,
) -> Inspected<Picture> {
    let domain = running(connection, instance, what).await?;
    match domain.screenshot(MAX_PICTURE_BYTES).await {
        Ok((media_type, bytes)) => Ok(Picture {
            media_type: media_type.unwrap_or_else(|| UNKNOWN_TYPE.to_owned()),
            bytes,
        }),
        Err(Error::TooMuch(most)) => Err(NotKnown::TooLarge(most)),
        Err(error) => Err(told(instance, what, error)),
    }
}

/// Whether the guest's agent answers. It is asked only if something in the guest has opened its channel, and waited for
/// no longer than half of the limit.
pub(super) async fn ping_guest_agent(
    connection: &Connection,
    instance: InstanceId,
    what: &str,
    limit: Duration,
) -> Inspected<Agent> {
    let domain = running(connection, instance, what).await?;
    let agent = |state, detail: String| Ok(Agent { state, detail });
    let devices = devices(&domain, instance, what).await?;
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
    match domain.qemu_agent_command(PING, seconds).await {
        Ok(_) => agent(GuestAgentState::Present, "it answered".to_owned()),
        // It is there, and would rather not.
        Err(error) if error.code() == Some(Code::AGENT_COMMAND_FAILED) => agent(
            GuestAgentState::Present,
            format!("it answered with an error: {}", error.message()),
        ),
        Err(error) if error.code().is_some_and(is_silence) => agent(
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
pub(super) async fn live_domain(
    connection: &Connection,
    instance: InstanceId,
    what: &str,
) -> Inspected<LiveDomain> {
    let (domain, observed) = find(connection, instance, what).await?;
    Ok(LiveDomain {
        power: observed.power_state,
        devices: devices(&domain, instance, what).await?,
    })
}

/// What libvirt says when an agent does not answer, or answers nonsense.
fn is_silence(code: Code) -> bool {
    matches!(
        code,
        Code::AGENT_UNRESPONSIVE
            | Code::AGENT_COMMAND_TIMEOUT
            | Code::AGENT_UNSYNCED
            | Code::INTERNAL_ERROR
    )
}

async fn devices(domain: &Domain, instance: InstanceId, what: &str) -> Inspected<LiveDevices> {
    let xml = domain
        .get_xml_desc(0)
        .await
        .map_err(|error| told(instance, what, error))?;
    Ok(domain_xml::read_live(&xml))
}

/// The domain of an instance, if it runs, or stands still.
async fn running(connection: &Connection, instance: InstanceId, what: &str) -> Inspected<Domain> {
    let (domain, observed) = find(connection, instance, what).await?;
    match observed.power_state {
        PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate => Err(NotKnown::Off {
            instance,
            power: observed.power_state,
        }),
        _ => Ok(domain),
    }
}

/// The domain with the instance's UUID, if it is berth's.
async fn find(
    connection: &Connection,
    instance: InstanceId,
    what: &str,
) -> Inspected<(Domain, DomainObserved)> {
    let domain = observe::lookup(connection, instance)
        .await?
        .ok_or(NotKnown::NoDomain(instance))?;
    let observed = observe::of(&domain)
        .await?
        .ok_or(NotKnown::NoDomain(instance))?;
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
    } else if error.code() == Some(Code::OPERATION_INVALID)
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
