//! What can be asked of a guest: its console, its display, its guest agent, and how to reach them. Nothing here changes
//! anything, and nothing that convergence needs is used for it: a guest, a disk or a libvirt that hangs costs whoever
//! asks its patience, and a thread of a few.

mod console;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_common::{
    ids::{InstanceId, NetworkId, PortId},
    message::{
        question::{ConsolePlace, GuestAgentState},
        report::{FaultCode, PowerState},
    },
};

use super::{
    ActError,
    calls::{Calls, Limits},
    libvirt::Libvirt,
    net::KernelNet,
    threads,
};
use crate::decide::{
    console::Part, domain_xml::LiveDevices, filter::Reason, instance::Paths,
    metadata::ForgedCounts, names, usage::Traffic,
};

/// Console logs that are read at once. One whose disk hangs gives its place to another, a few times.
const CONSOLE_LIMITS: Limits = Limits {
    workers: 2,
    stuck: 4,
    queued: 32,
};

/// Why something is not known.
#[derive(Debug, thiserror::Error)]
pub enum NotKnown {
    /// libvirt has no domain of the instance.
    #[error(
        "instance {0} has no domain on this hypervisor (yet); it is made when the instance is built"
    )]
    NoDomain(InstanceId),
    /// It does not run.
    #[error("instance {instance} does not run: its power state is {}; power it on first", power.as_str())]
    Off {
        /// The instance.
        instance: InstanceId,
        /// What libvirt says of it.
        power: PowerState,
    },
    /// A port has no link.
    #[error(
        "port {0} has no tap {tap} on this hypervisor, and its counters are those of the tap: power the guest on, or wait until \
         the port is plugged in",
        tap = names::tap(*.0)
    )]
    NoTap(PortId),
    /// The answer would not fit into a message.
    #[error(
        "the picture has more than {0} bytes, and an answer has room for no more: make the guest's display smaller"
    )]
    TooLarge(usize),
    /// It could not be found out.
    #[error(transparent)]
    Failed(#[from] ActError),
}

/// What is known of something, or why it is not.
pub type Inspected<T> = Result<T, NotKnown>;

/// Which part of a console is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleFrom {
    /// So many lines from the end.
    Last(u32),
    /// What comes after this place.
    After(ConsolePlace),
}

/// A part of a console's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsolePart {
    /// What is there.
    pub part: Part,
    /// Where to go on; `None`: there is no log.
    pub next: Option<ConsolePlace>,
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// What it is, such as `image/png`.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What became of asking a guest agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Whether it is there.
    pub state: GuestAgentState,
    /// The same in words.
    pub detail: String,
}

/// A domain as somebody who wants to reach it needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveDomain {
    /// Whether it runs.
    pub power: PowerState,
    /// What of it can be reached.
    pub devices: LiveDevices,
}

/// What is counted of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortCounts {
    /// What its guest received.
    pub received: Traffic,
    /// What its guest sent.
    pub sent: Traffic,
    /// The packets that the packet filter dropped.
    pub dropped: BTreeMap<Reason, u64>,
    /// What the metadata service of its network counted; `None`: there is none, or it does not count.
    pub forged: Option<ForgedCounts>,
}

/// What can be asked of a guest. Each call ends within its limit.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// What it wrote to its console.
    async fn console(
        &self,
        instance: InstanceId,
        from: ConsoleFrom,
        limit: Duration,
    ) -> Inspected<ConsolePart>;
    /// A picture of its display.
    async fn screenshot(&self, instance: InstanceId, limit: Duration) -> Inspected<Picture>;
    /// Whether its guest agent is there.
    async fn ping_guest_agent(&self, instance: InstanceId, limit: Duration) -> Inspected<Agent>;
    /// Where its display and consoles are.
    async fn live_domain(&self, instance: InstanceId, limit: Duration) -> Inspected<LiveDomain>;
    /// What is counted of its port in a network.
    async fn port_counts(
        &self,
        instance: InstanceId,
        port: (NetworkId, PortId),
        limit: Duration,
    ) -> Inspected<PortCounts>;
}

/// The guests of this machine.
pub struct Guests {
    libvirt: Arc<Libvirt>,
    net: KernelNet,
    paths: Paths,
    files: Calls<()>,
}

impl Guests {
    /// Those of this libvirt and in this network, with their files below these paths.
    #[must_use]
    pub fn new(libvirt: Arc<Libvirt>, net: &KernelNet, paths: Paths) -> Self {
        Self {
            libvirt,
            net: net.apart(),
            paths,
            files: Calls::new(CONSOLE_LIMITS, || ()),
        }
    }
}

#[async_trait]
impl Inspect for Guests {
    async fn console(
        &self,
        instance: InstanceId,
        from: ConsoleFrom,
        limit: Duration,
    ) -> Inspected<ConsolePart> {
        let path = self.paths.console_log(instance);
        let what = || format!("reading the console log {}", path.display());
        let log = path.clone();
        let read = self.files.call(limit, async move |(), _| {
            let read = threads::run("console-log", move || console::read(&log, from));
            ((), read.await)
        });
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            NotKnown::Failed(ActError::retryable(FaultCode::Internal, what(), error))
        };
        read.await
            .map_err(|error| failed(error.into()))?
            .map_err(|error| failed(error.into()))?
            .map_err(|error| failed(error.into()))
    }

    async fn screenshot(&self, instance: InstanceId, limit: Duration) -> Inspected<Picture> {
        self.libvirt.screenshot(instance, limit).await
    }

    async fn ping_guest_agent(&self, instance: InstanceId, limit: Duration) -> Inspected<Agent> {
        self.libvirt.ping_guest_agent(instance, limit).await
    }

    async fn live_domain(&self, instance: InstanceId, limit: Duration) -> Inspected<LiveDomain> {
        self.libvirt.live_domain(instance, limit).await
    }

    async fn port_counts(
        &self,
        _: InstanceId,
        (network, port): (NetworkId, PortId),
        limit: Duration,
    ) -> Inspected<PortCounts> {
        let counts = tokio::time::timeout(limit, self.net.port_counts(network, port)).await;
        let late = |elapsed| {
            let what = format!("reading what is counted of port {port}");
            NotKnown::Failed(ActError::retryable(FaultCode::Network, what, elapsed))
        };
        counts.map_err(late)??.ok_or(NotKnown::NoTap(port))
    }
}
