//! What passes work with: the host, the slots that bound how many work at once, and where they tell of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{NetworkId, PortId, VolumeId},
    units::Generation,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    act::{ActError, Compute, Net, Progress, Storage},
    decide::{instance::HostFacts, volume::Usable},
    inbox::journal::Journal,
    metrics::AgentMetrics,
    report::reports::Reports,
};

/// What acts on the host.
#[derive(Clone)]
pub struct Host {
    /// Domains.
    pub compute: Arc<dyn Compute>,
    /// Files.
    pub storage: Arc<dyn Storage>,
    /// Networks.
    pub net: Arc<dyn Net>,
}

/// What all passes share.
pub(super) struct Tools {
    pub(super) host: Host,
    pub(super) facts: watch::Receiver<Option<HostFacts>>,
    pub(super) journal: Arc<Journal>,
    pub(super) reports: Reports,
    pub(super) metrics: AgentMetrics,
    pub(super) slots: Slots,
    pub(super) networks: ReadyNetworks,
    pub(super) volumes: ReadyVolumes,
}

/// How many work at once. Networks have slots of their own: they do not need libvirt, and a libvirt that hangs must
/// not keep them.
pub(super) struct Slots {
    networks: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Slots {
    /// So many of each.
    pub(super) fn new(count: usize) -> Self {
        Self {
            networks: Arc::new(Semaphore::new(count)),
            others: Arc::new(Semaphore::new(count)),
        }
    }

    fn of(&self, kind: Kind) -> Arc<Semaphore> {
        Arc::clone(match kind {
            Kind::Network => &self.networks,
            Kind::Instance | Kind::Router | Kind::Volume => &self.others,
        })
    }
}

/// The networks that are ready on this host, each with the ports it is ready for.
#[derive(Debug, Default)]
pub(super) struct ReadyNetworks {
    ports: Mutex<BTreeMap<NetworkId, BTreeSet<PortId>>>,
}

impl ReadyNetworks {
    /// A network is ready for these ports; `None`: it is not ready.
    pub(super) fn set(&self, network: NetworkId, ports: Option<BTreeSet<PortId>>) {
        let mut networks = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        match ports {
            Some(ports) => networks.insert(network, ports),
            None => networks.remove(&network),
        };
    }

    /// Whether a network is ready for a port: a guest that started before DHCP knew it would not get its address.
    pub(super) fn is_ready(&self, network: NetworkId, port: PortId) -> bool {
        let networks = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        networks
            .get(&network)
            .is_some_and(|ports| ports.contains(&port))
    }
}

/// The volumes that guests may have, and those that are being copied.
///
/// Who copies one takes hold of it before asking whether it is whole, and who removes one says that it is not before
/// asking whether somebody has hold of it: of the two, one always sees the other.
#[derive(Debug, Default)]
pub(super) struct ReadyVolumes {
    ids: Mutex<BTreeSet<VolumeId>>,
    held: Mutex<BTreeMap<VolumeId, usize>>,
}

/// A volume that is being copied, until this is dropped.
pub(super) struct Held {
    tools: Arc<Tools>,
    volume: VolumeId,
}

impl Held {
    /// Takes hold of a volume.
    pub(super) fn new(tools: &Arc<Tools>, volume: VolumeId) -> Self {
        *tools.volumes.held().entry(volume).or_default() += 1;
        Self {
            tools: Arc::clone(tools),
            volume,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.tools.volumes.held();
        match held.get_mut(&self.volume) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(held.remove(&self.volume)),
        }
    }
}

impl ReadyVolumes {
    /// Whether guests may have a volume, from now on.
    pub(super) fn set(&self, volume: VolumeId, usable: Usable) {
        let mut volumes = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        match usable {
            Usable::Yes => volumes.insert(volume),
            Usable::No => volumes.remove(&volume),
        };
    }

    /// Whether they may now: nobody copies it.
    pub(super) fn is_ready(&self, volume: VolumeId) -> bool {
        self.is_whole(volume) && !self.is_held(volume)
    }

    /// Whether it is whole, copied or not.
    pub(super) fn is_whole(&self, volume: VolumeId) -> bool {
        let volumes = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.contains(&volume)
    }

    /// Whether somebody copies it.
    pub(super) fn is_held(&self, volume: VolumeId) -> bool {
        self.held().contains_key(&volume)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<VolumeId, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pass at work.
pub(super) struct Worker {
    pub(super) tools: Arc<Tools>,
    pub(super) key: DocumentKey,
    pub(super) generation: Generation,
    pub(super) cancel: CancellationToken,
    slot: Option<OwnedSemaphorePermit>,
}

/// The pass was broken off.
#[derive(Debug)]
pub(super) struct BrokenOff;

impl Worker {
    pub(super) fn new(
        tools: Arc<Tools>,
        key: DocumentKey,
        generation: Generation,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            tools,
            key,
            generation,
            cancel,
            slot: None,
        }
    }

    /// Waits for a slot, unless the pass has one.
    pub(super) async fn take_slot(&mut self) -> Result<(), BrokenOff> {
        if self.slot.is_none() {
            let slot = tokio::select! {
                biased;
                () = self.cancel.cancelled() => None,
                slot = self.tools.slots.of(self.key.kind).acquire_owned() => slot.ok(),
            };
            self.slot = Some(slot.ok_or(BrokenOff)?);
        }
        if self.cancel.is_cancelled() {
            Err(BrokenOff)
        } else {
            Ok(())
        }
    }

    /// Lets somebody else work meanwhile.
    pub(super) fn leave_slot(&mut self) {
        self.slot = None;
    }

    /// Tells what is being done.
    pub(super) fn tell(&self, text: &str) {
        self.tools
            .reports
            .progress(self.key, self.generation, text.to_owned());
    }

    /// Does a step, counts it, and tells how far it is while it runs. `text` says what it is.
    pub(super) async fn step<F>(
        &self,
        name: &str,
        text: &str,
        work: impl FnOnce(Progress) -> F,
    ) -> Result<(), ActError>
    where
        F: Future<Output = Result<(), ActError>>,
    {
        self.tell(text);
        let (progress, mut told) = watch::channel(None);
        let mut work = std::pin::pin!(work(progress));
        let mut silent = false;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut work => break result,
                changed = told.changed(), if !silent => match changed {
                    Ok(()) => {
                        let now = told.borrow_and_update().clone();
                        self.tell(now.as_deref().unwrap_or(text));
                    }
                    Err(_) => silent = true,
                },
            }
        };
        self.tools
            .metrics
            .step(name, if result.is_ok() { Ok(()) } else { Err(()) });
        tracing::debug!(step = name, ok = result.is_ok(), "step");
        result
    }
}
