//! The engine: one loop that keeps every resource as its document says.
//!
//! ```text
//!   inbox ──changed──▶ ┌────────┐ ──due, one at a time per resource──▶ pass: look, plan, do, look again
//!   survey ──seen────▶ │ engine │ ◀──────────── outcome ────────────────┘
//!   timers ──────────▶ └────────┘ ──▶ reports
//! ```
//!
//! It takes no orders, only hints where to look: documents are in the journal, and what is there is on the host. It
//! never fails; what goes wrong with a resource becomes that resource's state. A crash at any instant is no more
//! than the next start.
//!
//! - [`resource`]: what is kept of a resource, and when it is looked at next (pure);
//! - [`instance`], [`network`], [`router`], [`snapshot`], [`volume`]: one pass over a resource;
//! - [`survey`]: the regular look at the whole host.

mod backoff;
mod instance;
mod network;
mod outcome;
mod resource;
mod router;
mod snapshot;
mod survey;
mod tools;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant as WallInstant},
};

use berth_common::{
    document::{Document, DocumentKey, Kind, VolumeSource},
    ids::{NetworkId, PortId, SnapshotId, VolumeId},
    message::report::{ConvergeStatus, Fault, FaultCode},
    telemetry::{error_chain, health::Component},
    units::Generation,
};
use chrono::Utc;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::{
    outcome::{Outcome, PassEnd},
    resource::{Moment, Resource},
    survey::Survey,
    tools::{
        FilteredLegs, Heralds, ReadyFiles, ReadyNetworks, RenderedFilters, Slots, Tools, Turns,
        Worker,
    },
};
use crate::{
    decide::{
        self, domain::DomainObserved, filter, instance::HostFacts, network::tc,
        router::neighbours_of,
    },
    inbox::journal::Journal,
    metrics::AgentMetrics,
    report::{glance::Glances, reports::Reports},
};

pub use tools::Host;

/// Hints that wait for the engine. More make their senders wait: the inbox then takes no more documents.
const EVENTS: usize = 1024;
/// How often the engine shows that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long the first passes wait for libvirt's first answer.
const LIBVIRT_MOMENT: Duration = Duration::from_secs(2);
/// How long running steps may take when the agent ends.
const GRACE: Duration = Duration::from_secs(10);

/// Everything the engine works with.
pub struct Parts {
    /// The host.
    pub host: Host,
    /// What the host can do, once libvirt has said so.
    pub facts: watch::Receiver<Option<HostFacts>>,
    /// The documents.
    pub journal: Arc<Journal>,
    /// Where the state of resources is told.
    pub reports: Reports,
    /// Where the look at the host is left for others.
    pub glances: Glances,
    /// Figures.
    pub metrics: AgentMetrics,
    /// Whether the engine does its work.
    pub health: Component,
    /// Whether libvirt answers.
    pub libvirt: Component,
    /// Whether what a killed agent left is gone.
    pub leftovers: Component,
    /// How often the host is looked at.
    pub resync_every: Duration,
    /// How many networks and routers are worked on at once, and how many other resources.
    pub concurrent_operations: usize,
}

/// A hint for the engine.
#[derive(Debug)]
enum Event {
    /// The journal has another document.
    Changed(DocumentKey),
    /// Somebody does not know how far this resource is.
    Asked(DocumentKey),
    /// The journal has forgotten a tombstone.
    Forgotten(DocumentKey),
    /// There is something of a resource whose tombstone was carried out.
    Reappeared(DocumentKey),
    /// All domains of the host.
    Seen {
        /// When the look began.
        since: Instant,
        /// `Err`: they could not be looked at.
        domains: Result<Arc<Vec<DomainObserved>>, ()>,
    },
}

/// How others give the engine hints.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    events: mpsc::Sender<Event>,
}

impl EngineHandle {
    /// The journal has another document of this resource.
    pub async fn changed(&self, key: DocumentKey) {
        // An engine that has ended needs no hints: the next one reads the journal.
        let _ = self.events.send(Event::Changed(key)).await;
    }

    /// Somebody does not know how far this resource is: tell it again.
    pub async fn asked(&self, key: DocumentKey) {
        // As above.
        let _ = self.events.send(Event::Asked(key)).await;
    }
}

/// The loop over all resources.
pub struct Engine {
    tools: Arc<Tools>,
    glances: Glances,
    health: Component,
    libvirt: Component,
    leftovers: Component,
    resync_every: Duration,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    resources: BTreeMap<DocumentKey, Resource>,
    passes: JoinSet<(PassEnd, Duration)>,
    running: HashMap<Id, (DocumentKey, Arc<Document>)>,
    libvirt_was_away: bool,
}

impl Engine {
    /// An engine over these parts, and the handle to it.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, EngineHandle) {
        let (sender, events) = mpsc::channel(EVENTS);
        let tools = Tools {
            host: parts.host,
            facts: parts.facts,
            journal: parts.journal,
            reports: parts.reports,
            metrics: parts.metrics,
            slots: Slots::new(parts.concurrent_operations.max(1)),
            networks: ReadyNetworks::default(),
            legs: FilteredLegs::default(),
            heralds: Heralds::default(),
            rendered: RenderedFilters::default(),
            volumes: ReadyFiles::default(),
            snapshots: ReadyFiles::default(),
            turns: Turns::default(),
        };
        let handle = EngineHandle {
            events: sender.clone(),
        };
        // An engine that never gets to its work counts as dead after a moment, like one that stopped.
        parts
            .glances
            .update(|glance| glance.engine_alive = Some(Instant::now()));
        let engine = Self {
            tools: Arc::new(tools),
            glances: parts.glances,
            health: parts.health,
            libvirt: parts.libvirt,
            leftovers: parts.leftovers,
            resync_every: parts.resync_every,
            sender,
            events,
            resources: BTreeMap::new(),
            passes: JoinSet::new(),
            running: HashMap::new(),
            libvirt_was_away: false,
        };
        (engine, handle)
    }

    /// Works until cancelled; then lets running steps finish, for a while.
    pub async fn run(mut self, cancel: CancellationToken) {
        match self.tools.host.storage.sweep().await {
            Ok(()) => self.leftovers.ok(),
            // While it works, nobody can tell what is left from what is being made.
            Err(error) => self.leftovers.degraded(format!(
                "{}; they are tried again when the agent starts",
                error_chain(&error)
            )),
        }
        self.load();
        let survey = Survey {
            tools: Arc::clone(&self.tools),
            glances: self.glances.clone(),
            events: self.sender.clone(),
            libvirt: self.libvirt.clone(),
            every: self.resync_every,
            unclaimed: survey::Unclaimed::default(),
        };
        // It ends with this, however that ends.
        let mut surveys = JoinSet::new();
        surveys.spawn(survey.run());
        self.health.ok();
        let mut facts = self.tools.facts.clone();
        let mut facts_known = true;
        // A libvirt that is there answers at once; whoever is looked at before it did would seem to fail.
        let answered = async { facts.wait_for(Option::is_some).await.is_ok() };
        if tokio::time::timeout(LIBVIRT_MOMENT, answered)
            .await
            .is_err()
        {
            tracing::debug!("libvirt has not answered yet");
        }
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        loop {
            self.start_due();
            let due = self.next_due();
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(event) = self.events.recv() => self.handle(event),
                Some(ended) = self.passes.join_next_with_id() => self.ended(ended),
                () = until(due) => {}
                changed = facts.changed(), if facts_known => match changed {
                    Ok(()) => self.wake_failing(),
                    Err(_) => facts_known = false,
                },
                _ = alive.tick() => self.show_alive(),
            }
        }
        surveys.abort_all();
        self.finish().await;
    }

    /// Takes over the journal.
    fn load(&mut self) {
        let moment = Moment::now();
        for entry in self.tools.journal.all() {
            self.resources
                .insert(entry.document.key(), Resource::of_journal(&entry, moment));
        }
        self.tools.metrics.journal(self.resources.len());
        tracing::info!(documents = self.resources.len(), "the engine starts");
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Changed(key) => self.changed(key),
            Event::Asked(key) => {
                if let Some(told) = self
                    .resources
                    .get(&key)
                    .and_then(|resource| resource.told.clone())
                {
                    self.tools.reports.repeat(told);
                }
            }
            Event::Forgotten(key) => {
                if self.tools.journal.get(key).is_none() {
                    self.resources.remove(&key);
                }
            }
            Event::Reappeared(key) => {
                if let Some(resource) = self.resources.get_mut(&key).filter(|it| it.is_gone()) {
                    tracing::warn!(resource = %key, "it was deleted, and something of it is here again");
                    resource.wake(Instant::now());
                }
            }
            Event::Seen {
                since,
                domains: Ok(domains),
            } => self.seen(since, &domains),
            Event::Seen {
                domains: Err(()), ..
            } => self.libvirt_was_away = true,
        }
    }

    /// Takes another document from the journal.
    fn changed(&mut self, key: DocumentKey) {
        let Some(entry) = self.tools.journal.get(key) else {
            return;
        };
        let moment = Moment::now();
        let document = Arc::clone(&entry.document);
        let before = match self.resources.get_mut(&key) {
            None => {
                self.resources
                    .insert(key, Resource::fresh(entry.document, moment));
                None
            }
            Some(resource) if resource.document != entry.document => {
                let before = Arc::clone(&resource.document);
                resource.replace(entry.document, moment);
                Some(before)
            }
            Some(_) => return,
        };
        self.wake_legs(before.as_deref(), &document);
        // Routers find ports on other hosts by what the documents of networks tell.
        let known = before.as_deref().map(neighbours_of).unwrap_or_default();
        if neighbours_of(&document) != known {
            self.wake_routers(&document);
        }
        let senders = before.as_deref().map(filter::hosts_told);
        if filter::hosts_told(&document) != senders.unwrap_or_default() {
            self.wake_joined(&document);
        }
        self.tell(key);
        self.tools.metrics.journal(self.tools.journal.len());
    }

    /// Compares the host with what passes left: what somebody else changed is looked at closely. What a pass left since the look began
    /// may be newer than what was seen, and is compared with the next one.
    fn seen(&mut self, since: Instant, domains: &[DomainObserved]) {
        let moment = Moment::now();
        let found: HashMap<_, _> = domains.iter().map(|domain| (domain.uuid, domain)).collect();
        for (key, resource) in self
            .resources
            .iter_mut()
            .filter(|(key, resource)| key.kind == Kind::Instance && !resource.was_left_after(since))
        {
            if resource.has_drifted(found.get(&key.id).copied()) {
                tracing::info!(resource = %key, "the domain is no longer as it was left");
                resource.drifted(found.get(&key.id).copied(), moment);
            }
        }
        if std::mem::take(&mut self.libvirt_was_away) {
            self.wake_failing();
        }
    }

    /// Whatever fails is tried again at once: a part of the host has come back.
    fn wake_failing(&mut self) {
        let now = Instant::now();
        for resource in self
            .resources
            .values_mut()
            .filter(|resource| resource.is_failing())
        {
            resource.wake(now);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let idle = self
            .resources
            .values()
            .filter(|resource| resource.running.is_none());
        idle.filter_map(|resource| resource.due).min()
    }

    /// Starts the passes that are due.
    fn start_due(&mut self) {
        let now = Instant::now();
        for (key, resource) in &mut self.resources {
            if resource.running.is_some() || resource.due.is_none_or(|due| due > now) {
                continue;
            }
            let cancel = resource.begin();
            let document = Arc::clone(&resource.document);
            let generation = document.generation();
            let worker = Worker::new(Arc::clone(&self.tools), *key, generation, cancel);
            let span = tracing::info_span!("pass", resource = %key, generation = generation.0);
            let memory = resource.memory.clone();
            let work = {
                let document = Arc::clone(&document);
                async move {
                    let started = WallInstant::now();
                    let end = pass(worker, &document, memory).await;
                    (end, started.elapsed())
                }
            };
            let task = self.passes.spawn(work.instrument(span));
            self.running.insert(task.id(), (*key, document));
        }
    }

    /// Notes how a pass ended, and wakes who waited for it.
    fn ended(&mut self, ended: Result<(Id, (PassEnd, Duration)), JoinError>) {
        let (id, end, took) = match ended {
            Ok((id, (end, took))) => (id, end, took),
            Err(error) => (error.id(), PassEnd::of(panicked(&error)), Duration::ZERO),
        };
        let Some((key, document)) = self.running.remove(&id) else {
            return;
        };
        let end = self.waits_in_vain(end);
        let waits = matches!(end.outcome, Outcome::Waiting(_));
        self.count(key, document.generation(), &end.outcome, took);
        let ready = match key.kind {
            Kind::Network => end.outcome.is_built() && !document.is_tombstone(),
            // Also one that cannot have its new size.
            Kind::Volume => {
                VolumeId::try_from(key.id).is_ok_and(|id| self.tools.volumes.is_ready(id))
            }
            Kind::Snapshot => {
                SnapshotId::try_from(key.id).is_ok_and(|id| self.tools.snapshots.is_whole(id))
            }
            Kind::Instance | Kind::Router => false,
        };
        let (changed_taps, has_new_bridge, other_legs) = (end.taps, end.bridge, end.legs);
        if let Some(resource) = self.resources.get_mut(&key) {
            resource.end(&document, end, self.resync_every, Moment::now());
        }
        self.tell(key);
        if ready {
            self.wake_waiting(key);
        }
        if changed_taps {
            self.wake_networks(&document);
        }
        // Also one that works at this moment, and has asked before what is known now.
        if has_new_bridge || other_legs {
            self.wake_routers(&document);
        }
        // Their packet filters know them still.
        if other_legs && key.kind == Kind::Router {
            let networks = self.tools.legs.networks();
            self.wake_all(networks.into_iter());
        }
        // This one copies nothing any more. If it waits for its source itself, nothing has changed for others.
        if !waits && let Some(source) = source(&document) {
            self.wake_waiting(source);
        }
    }

    /// What waits for a network or a volume which cannot be made has that fault itself: who placed it there may know a
    /// better place.
    fn waits_in_vain(&self, end: PassEnd) -> PassEnd {
        let Outcome::Waiting(waiting) = &end.outcome else {
            return end;
        };
        let Some((key, needed)) = waiting
            .resource()
            .and_then(|key| self.resources.get_key_value(&key))
        else {
            return end;
        };
        let told = needed.told.as_ref();
        let fault = told
            .filter(|told| told.status == ConvergeStatus::Failed)
            .and_then(|told| told.fault.as_ref());
        let fault = match fault {
            Some(fault) => Fault {
                code: fault.code,
                message: format!("its {key}: {}", fault.message),
            },
            // A network may come back under its id, with all it was; what was on a volume does not.
            None if matches!(key.kind, Kind::Volume | Kind::Snapshot)
                && needed.document.is_tombstone() =>
            {
                Fault {
                    code: FaultCode::Volume,
                    message: format!("its {key} was deleted"),
                }
            }
            None => return end,
        };
        PassEnd {
            outcome: Outcome::Failed(fault),
            ..end
        }
    }

    /// Those that wait for a resource go on.
    fn wake_waiting(&mut self, key: DocumentKey) {
        let now = Instant::now();
        for resource in self
            .resources
            .values_mut()
            .filter(|resource| resource.waits_for == Some(key))
        {
            resource.wake(now);
        }
    }

    /// The taps of an instance's ports are new, or gone: networks that limit or copy their packets look at them at once.
    fn wake_networks(&mut self, document: &Document) {
        let Document::Instance(wish) = document else {
            return;
        };
        let ports = wish.spec.iter().flat_map(|spec| &spec.ports);
        let ports: BTreeSet<PortId> = ports.map(|port| port.id).collect();
        let now = Instant::now();
        for resource in self.resources.values_mut() {
            let concerned = match &*resource.document {
                Document::Network(network) => network
                    .spec
                    .as_ref()
                    .is_some_and(|spec| tc::concerns(&spec.ports, wish.id, &ports)),
                Document::Instance(_)
                | Document::Router(_)
                | Document::Snapshot(_)
                | Document::Volume(_) => false,
            };
            if concerned {
                resource.wake(now);
            }
        }
    }

    /// Legs of a router begin or end: the packet filters of their networks are made from them too, and follow at once.
    fn wake_legs(&mut self, before: Option<&Document>, now: &Document) {
        let documents = before.into_iter().chain([now]);
        let networks: BTreeSet<NetworkId> = documents.flat_map(filter::legs_of).collect();
        self.wake_all(networks.into_iter());
    }

    /// Other hosts have guests in a network: they send into those that routers join to it, whose packet filters follow at once.
    fn wake_joined(&mut self, document: &Document) {
        let Document::Network(network) = document else {
            return;
        };
        let documents = self.resources.values().map(|it| &*it.document);
        let joined = filter::joined(network.id, documents);
        self.wake_all(joined.into_iter());
    }

    fn wake_all(&mut self, networks: impl Iterator<Item = NetworkId>) {
        let now = Instant::now();
        for network in networks {
            let key = DocumentKey {
                kind: Kind::Network,
                id: network.as_uuid(),
            };
            if let Some(resource) = self.resources.get_mut(&key) {
                resource.wake(now);
            }
        }
    }

    /// The bridge of a network was made anew, without what was in it, or other ports are on other hosts: the routers that are in
    /// it look at it at once.
    fn wake_routers(&mut self, document: &Document) {
        let Document::Network(network) = document else {
            return;
        };
        let now = Instant::now();
        for resource in self.resources.values_mut() {
            let concerned = match &*resource.document {
                Document::Router(wish) => {
                    let legs = decide::router::legs(wish);
                    legs.iter().any(|leg| leg.network == network.id)
                }
                Document::Instance(_)
                | Document::Network(_)
                | Document::Snapshot(_)
                | Document::Volume(_) => false,
            };
            if concerned {
                resource.wake(now);
            }
        }
    }

    fn tell(&self, key: DocumentKey) {
        if let Some(told) = self
            .resources
            .get(&key)
            .and_then(|resource| resource.told.clone())
        {
            self.tools.reports.tell(told);
        }
    }

    fn count(&self, key: DocumentKey, generation: Generation, outcome: &Outcome, took: Duration) {
        self.tools
            .metrics
            .pass(key.kind, outcome.word(), took.as_secs_f64());
        let told = self
            .resources
            .get(&key)
            .and_then(|resource| resource.told.as_ref());
        match outcome.fault() {
            Some(fault) => {
                self.tools.metrics.pass_error(key.kind, fault.code);
                tracing::warn!(
                    resource = %key, generation = generation.0, outcome = outcome.word(), error = fault.message,
                    "a pass did not get through"
                );
            }
            None if told.is_none_or(|told| told.status == ConvergeStatus::Converging) => {
                tracing::info!(resource = %key, generation = generation.0, outcome = outcome.word(), "a pass ended");
            }
            None => tracing::debug!(resource = %key, outcome = outcome.word(), "a pass ended"),
        }
    }

    fn show_alive(&self) {
        self.glances
            .update(|glance| glance.engine_alive = Some(Instant::now()));
        let mut counts = BTreeMap::new();
        for (key, resource) in &self.resources {
            let status = resource
                .told
                .as_ref()
                .map_or("unknown", |told| told.status.as_str());
            *counts.entry((key.kind, status)).or_default() += 1;
        }
        self.tools.metrics.documents(&counts);
    }

    /// Lets running steps finish; passes are broken off before their next step.
    async fn finish(&mut self) {
        for resource in self.resources.values() {
            if let Some(running) = &resource.running {
                running.cancel();
            }
        }
        let drain = async {
            while let Some(ended) = self.passes.join_next_with_id().await {
                self.ended(ended);
            }
        };
        if tokio::time::timeout(GRACE, drain).await.is_err() {
            tracing::warn!(
                passes = self.passes.len(),
                "steps that still run are left; the next start finishes them"
            );
            self.passes.abort_all();
        }
        tracing::info!("the engine ends; guests and networks stay as they are");
    }
}

/// What a volume or a snapshot is made from, if that is a resource.
fn source(document: &Document) -> Option<DocumentKey> {
    let (kind, id) = match document {
        Document::Volume(wish) => match wish.spec.as_ref()?.source.as_ref()? {
            VolumeSource::Volume(source) => (Kind::Volume, source.id.as_uuid()),
            VolumeSource::Snapshot(source) => (Kind::Snapshot, source.id.as_uuid()),
            VolumeSource::Image(_) => return None,
        },
        Document::Snapshot(wish) => (Kind::Volume, wish.spec.as_ref()?.volume.id.as_uuid()),
        Document::Instance(_) | Document::Network(_) | Document::Router(_) => return None,
    };
    Some(DocumentKey { kind, id })
}

/// Carries out one document as far as it goes now.
async fn pass(worker: Worker, document: &Document, memory: outcome::Memory) -> PassEnd {
    let tools = Arc::clone(&worker.tools);
    let (key, generation) = (worker.key, worker.generation);
    let end = match document {
        Document::Instance(wish) => instance::pass(worker, wish, memory).await,
        Document::Network(wish) => network::pass(worker, wish).await,
        Document::Router(wish) => router::pass(worker, wish).await,
        Document::Snapshot(wish) => snapshot::pass(worker, wish).await,
        Document::Volume(wish) => volume::pass(worker, wish).await,
    };
    if end.outcome == Outcome::Gone {
        note_gone(&tools, key, generation).await;
    }
    end
}

/// Notes in the journal that a tombstone was carried out.
async fn note_gone(tools: &Tools, key: DocumentKey, generation: Generation) {
    let journal = Arc::clone(&tools.journal);
    let noted =
        tokio::task::spawn_blocking(move || journal.mark_gone(key, generation, Utc::now())).await;
    match noted {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %error_chain(&error), "the end of a resource was not noted")
        }
        Err(error) => tracing::error!(%error, "noting the end of a resource failed"),
    }
}

fn panicked(error: &JoinError) -> Outcome {
    tracing::error!(%error, "a pass panicked: this is a defect in berth");
    Outcome::Failed(Fault {
        code: FaultCode::Internal,
        message: "berth-agent failed while working on this; the host's log has the rest".to_owned(),
    })
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        // Something else will happen first.
        None => sleep(ALIVE_EVERY).await,
    }
}
