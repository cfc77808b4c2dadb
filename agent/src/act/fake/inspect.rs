//! What can be asked of the fake host's guests: they write to a console and send packets when they are told to, and show nothing.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use berth_common::{
    ids::{InstanceId, NetworkId, PortId},
    message::{
        question::{ConsolePlace, GuestAgentState, MAX_CONSOLE_BYTES},
        report::PowerState,
    },
};

use super::FakeHost;
use crate::{
    act::inspect::{
        Agent, ConsoleFrom, ConsolePart, Inspect, Inspected, LiveDomain, NotKnown, Picture,
        PortCounts,
    },
    decide::{
        console,
        domain_xml::{LiveDevices, VncAddress},
        names,
    },
};

/// The only console log of a fake instance.
const FILE: u64 = 1;

/// What is said on the consoles and went through ports, and whether somebody listens.
#[derive(Debug, Clone, Default)]
pub(super) struct Consoles {
    written: BTreeMap<InstanceId, Vec<u8>>,
    hang: bool,
    counts: BTreeMap<PortId, PortCounts>,
}

/// Whether the fake libvirt answers questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// It does.
    AtOnce,
    /// It never does.
    Never,
}

impl FakeHost {
    /// The guest of an instance writes to its console.
    pub fn guest_prints(&self, instance: InstanceId, bytes: &[u8]) {
        let mut model = self.model();
        let log = model.consoles.written.entry(instance).or_default();
        log.extend_from_slice(bytes);
    }

    /// Whether what is asked of guests, apart from their consoles, is answered from now on.
    pub fn set_answers(&self, answers: Answers) {
        self.model().consoles.hang = answers == Answers::Never;
    }

    /// So much is counted of a port while its guest is on.
    pub fn count(&self, port: PortId, counts: PortCounts) {
        self.model().consoles.counts.insert(port, counts);
    }

    /// The power state of a domain that can be asked about.
    async fn asked(&self, instance: InstanceId) -> Inspected<PowerState> {
        let hangs = self.model().consoles.hang;
        if hangs {
            std::future::pending::<()>().await;
        }
        let model = self.model();
        model.faults.look()?;
        let domain = model.domains.peek(instance.as_uuid());
        domain
            .map(|domain| domain.power_state)
            .ok_or(NotKnown::NoDomain(instance))
    }

    async fn running(&self, instance: InstanceId) -> Inspected<()> {
        let power = self.asked(instance).await?;
        if matches!(power, PowerState::Running | PowerState::Paused) {
            Ok(())
        } else {
            Err(NotKnown::Off { instance, power })
        }
    }
}

#[async_trait]
impl Inspect for FakeHost {
    async fn console(
        &self,
        instance: InstanceId,
        from: ConsoleFrom,
        _: Duration,
    ) -> Inspected<ConsolePart> {
        let model = self.model();
        let Some(log) = model.consoles.written.get(&instance) else {
            return Ok(ConsolePart::default());
        };
        let (part, start) = match from {
            ConsoleFrom::Last(lines) => {
                let lines = usize::try_from(lines).unwrap_or(usize::MAX);
                (console::last(log, lines, MAX_CONSOLE_BYTES, false), 0)
            }
            ConsoleFrom::After(place) => {
                let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
                let rest = log.get(start..).unwrap_or_default();
                let part = console::first(rest, MAX_CONSOLE_BYTES, false);
                (part, place.offset)
            }
        };
        let next = ConsolePlace {
            file: FILE,
            offset: start + part.taken,
        };
        Ok(ConsolePart {
            part,
            next: Some(next),
        })
    }

    async fn screenshot(&self, instance: InstanceId, _: Duration) -> Inspected<Picture> {
        self.running(instance).await?;
        // One black dot.
        Ok(Picture {
            media_type: "image/x-portable-pixmap".to_owned(),
            bytes: b"P6 1 1 255\n\0\0\0".to_vec(),
        })
    }

    async fn ping_guest_agent(&self, instance: InstanceId, _: Duration) -> Inspected<Agent> {
        self.running(instance).await?;
        Ok(Agent {
            state: GuestAgentState::Absent,
            detail: "fake guests have none".to_owned(),
        })
    }

    async fn live_domain(&self, instance: InstanceId, _: Duration) -> Inspected<LiveDomain> {
        let power = self.asked(instance).await?;
        let socket = format!("/run/fake/{}/vnc.sock", names::domain(instance));
        let vnc = (power == PowerState::Running).then_some(VncAddress::Unix(socket));
        Ok(LiveDomain {
            power,
            devices: LiveDevices {
                vnc: vnc.into_iter().collect(),
                ..LiveDevices::default()
            },
        })
    }

    async fn port_counts(
        &self,
        instance: InstanceId,
        (_, port): (NetworkId, PortId),
        _: Duration,
    ) -> Inspected<PortCounts> {
        if self.running(instance).await.is_err() {
            return Err(NotKnown::NoTap(port));
        }
        let counts = self.model().consoles.counts.get(&port).cloned();
        Ok(counts.unwrap_or_default())
    }
}
