//! What passes work with: the host, the slots that bound how many work at once, and where they tell of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{InstanceId, NetworkId, PortId, SnapshotId, VolumeId},
    names::MacAddress,
    units::Generation,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    act::{ActError, Compute, Net, Progress, Storage},
    decide::{filter::Rendered, instance::HostFacts, network::Herald, volume::Usable},
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
    pub(super) legs: FilteredLegs,
    pub(super) heralds: Heralds,
    pub(super) rendered: RenderedFilters,
    pub(super) volumes: ReadyFiles<VolumeId>,
    pub(super) snapshots: ReadyFiles<SnapshotId>,
    pub(super) turns: Turns,
}

/// How many work at once. Networks and routers have slots of their own: they do not need libvirt, and a libvirt that hangs must
/// not keep them. A guest that hangs does not keep one for long (`instance::HOLDS_SLOT`).
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
            Kind::Network | Kind::Router => &self.networks,
            Kind::Instance | Kind::Snapshot | Kind::Volume => &self.others,
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

/// The legs of routers that the packet filters of networks know, by their Ethernet addresses.
#[derive(Debug, Default)]
pub(super) struct FilteredLegs(Mutex<BTreeMap<NetworkId, BTreeSet<MacAddress>>>);

impl FilteredLegs {
    /// The filter of a network knows these, and no others. Answers whether that is news.
    pub(super) fn set(&self, network: NetworkId, legs: BTreeSet<MacAddress>) -> bool {
        let mut known = self.lock();
        if legs.is_empty() {
            return known.remove(&network).is_some();
        }
        let before = known.get(&network);
        let is_news = before != Some(&legs);
        known.insert(network, legs);
        is_news
    }

    /// Whether the filter of a network knows a leg.
    pub(super) fn knows(&self, network: NetworkId, leg: MacAddress) -> bool {
        let known = self.lock();
        known.get(&network).is_some_and(|legs| legs.contains(&leg))
    }

    /// The networks whose filters know legs.
    pub(super) fn networks(&self) -> Vec<NetworkId> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, BTreeSet<MacAddress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What physical switches were told of, and when. They forget after minutes, most of them after five.
#[derive(Debug, Default)]
pub(super) struct Heralds {
    told: Mutex<BTreeMap<NetworkId, (Herald, Instant)>>,
}

impl Heralds {
    const EVERY: Duration = Duration::from_secs(60);

    /// Whether this has to be told now; from then on it counts as told.
    pub(super) fn is_due(&self, network: NetworkId, herald: Option<&Herald>) -> bool {
        let Some(herald) = herald else {
            self.forget(network);
            return false;
        };
        let mut told = self.lock();
        let is_fresh = told
            .get(&network)
            .is_some_and(|(last, when)| last == herald && when.elapsed() < Self::EVERY);
        if !is_fresh {
            told.insert(network, (herald.clone(), Instant::now()));
        }
        !is_fresh
    }

    /// Nothing was told of a network.
    pub(super) fn forget(&self, network: NetworkId) {
        self.lock().remove(&network);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, (Herald, Instant)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept of networks' plans: see [`Rendered`].
#[derive(Debug, Default)]
pub(super) struct RenderedFilters(Mutex<BTreeMap<NetworkId, Rendered>>);

impl RenderedFilters {
    /// What was kept of a network's last plan. The pass that takes it is the only one over the network.
    pub(super) fn take(&self, network: NetworkId) -> Rendered {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&network).unwrap_or_default()
    }

    /// Keeps it for the next one.
    pub(super) fn keep(&self, network: NetworkId, rendered: Rendered) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(network, rendered);
    }
}

/// The volumes that guests may have, or the snapshots that are whole, and those that are being copied.
///
/// Who copies one takes hold of it before asking whether it is whole, and who removes one says that it is not before
/// asking whether somebody has hold of it: of the two, one always sees the other.
#[derive(Debug)]
pub(super) struct ReadyFiles<I: Ord> {
    ids: Mutex<BTreeSet<I>>,
    held: Arc<Holds<I>>,
}

/// How many copy which.
#[derive(Debug)]
struct Holds<I: Ord>(Mutex<BTreeMap<I, usize>>);

impl<I: Ord> Holds<I> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<I, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume or a snapshot that is being copied, until this is dropped.
pub(super) struct Held<I: Ord> {
    holds: Arc<Holds<I>>,
    id: I,
}

impl<I: Ord> Drop for Held<I> {
    fn drop(&mut self) {
        let mut held = self.holds.lock();
        match held.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(held.remove(&self.id)),
        }
    }
}

impl<I: Ord> Default for ReadyFiles<I> {
    fn default() -> Self {
        Self {
            ids: Mutex::default(),
            held: Arc::new(Holds(Mutex::default())),
        }
    }
}

impl<I: Ord + Copy> ReadyFiles<I> {
    /// Takes hold of one.
    pub(super) fn hold(&self, id: I) -> Held<I> {
        *self.held.lock().entry(id).or_default() += 1;
        Held {
            holds: Arc::clone(&self.held),
            id,
        }
    }

    /// Whether it may be used, from now on.
    pub(super) fn set(&self, id: I, usable: Usable) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        match usable {
            Usable::Yes => ids.insert(id),
            Usable::No => ids.remove(&id),
        };
    }

    /// Whether guests may have it now: nobody copies it.
    pub(super) fn is_ready(&self, id: I) -> bool {
        self.is_whole(id) && !self.is_held(id)
    }

    /// Whether it is whole, copied or not.
    pub(super) fn is_whole(&self, id: I) -> bool {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.contains(&id)
    }

    /// Whether somebody copies it.
    pub(super) fn is_held(&self, id: I) -> bool {
        self.held.lock().contains_key(&id)
    }

    /// Which are being copied.
    pub(super) fn all_held(&self) -> BTreeSet<I> {
        self.held.lock().keys().copied().collect()
    }
}

/// The instances whose disks this agent lets be copied: one at a time of each.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<BTreeSet<InstanceId>>>);

/// The turn of a copy of an instance's disk, until this is dropped.
pub(super) struct Turn {
    turns: Turns,
    instance: InstanceId,
}

impl Turn {
    /// Takes it, if nobody has it.
    pub(super) fn take(turns: &Turns, instance: InstanceId) -> Option<Self> {
        let is_free = turns.lock().insert(instance);
        is_free.then(|| Self {
            turns: turns.clone(),
            instance,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.instance);
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<InstanceId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Gives its slot to a step, which may drop it.
    pub(super) fn lend_slot(&mut self) -> Option<OwnedSemaphorePermit> {
        self.slot.take()
    }

    /// What is left of the slot after the step.
    pub(super) fn return_slot(&mut self, slot: Option<OwnedSemaphorePermit>) {
        self.slot = slot;
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
