//! What every part of the running scheduler shares, and the right to write.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_common::{
    bus::{Bus, ask_queue, compute_queue},
    document::{DocumentKey, Kind},
    ids::{HostId, InstanceId, NetworkId, RouterId, SecurityGroupId, SnapshotId, VolumeId},
    names::HostName,
    telemetry::error_chain,
};
use berth_store::{
    Store, StoreError, Txn,
    decisions::{self, DecisionRow},
    leadership::Epoch,
    reach::Among,
    whole_millis,
};
use chrono::{DateTime, Utc};
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

use crate::{
    claim::{
        self, ClaimError,
        cloud::{Cloud, Mark},
        load,
    },
    config::Config,
    dispatch::{Dispatch, Fresh, Publication},
    liveness::Liveness,
    metrics::SchedulerMetrics,
    place::Millis,
    report::order::ReportOrder,
};

/// How old the knowledge of who is alive may be when something is placed.
const LIVENESS_AGE: Duration = Duration::from_millis(250);

/// Shared by all tasks of one scheduler.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Counters and gauges.
    pub metrics: SchedulerMetrics,
    /// Which leader this is; a later one takes away its right to write.
    pub epoch: Epoch,
    /// What is to be published.
    pub dispatch: Dispatch,
    /// Cancelled when another scheduler took over.
    pub fenced: CancellationToken,
    started: Instant,
    /// When the database last failed to answer whoever had the turn.
    away: Mutex<Option<Instant>>,
    cloud: tokio::sync::Mutex<Cloud>,
    liveness: Mutex<Liveness>,
    order: Mutex<ReportOrder>,
    /// Whether a host may lack an address of an external subnet.
    lacks_addresses: AtomicBool,
}

/// A transaction, and the right to be the only one: one logical writer claims serially, so there is nothing to
/// race with. Dropped without [`Writing::commit`], nothing of it happened.
pub struct Writing<'a> {
    context: &'a Context,
    txn: Txn,
    /// All hosts, and all that lies on them; what changes here goes the way of the transaction.
    pub cloud: Image<'a>,
    /// What the documents of which hosts follow from.
    touched: BTreeMap<HostId, Touched>,
    /// The networks of which the documents on all their hosts may follow from other rows.
    everywhere: BTreeMap<NetworkId, Among>,
    /// Which security groups changed, and who is in them.
    groups: TouchedGroups,
    /// Documents that are written already, to be published after the commit.
    fresh: Vec<Publication>,
    decisions: Vec<DecisionRow>,
    forgotten: Vec<(HostId, HostName)>,
    oversize: Oversize,
    /// When it began.
    pub now: DateTime<Utc>,
}

/// What is done when a document would be too large for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// Who asks for what makes it so is refused.
    Refused,
    /// Its host keeps the one before: what was observed, and what is taken away, is written down whatever follows from it.
    LeftOut,
}

/// What of a host has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// These documents may follow from other rows now.
    pub keys: BTreeSet<DocumentKey>,
    /// These get a new generation even if nothing differs.
    pub again: BTreeSet<DocumentKey>,
    /// These networks bring more with them than their own documents.
    pub networks: BTreeSet<(NetworkId, Cause)>,
}

/// Why more than a network's own document on a host may follow from other rows now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The host's ports in it: with the first it gets the routers of the network, with the last it loses them.
    OwnPorts,
    /// Who is in it, on whatever host: rules in networks that a router joins to it may mean them.
    Members,
    /// What it is: its name, its MTU, its subnets.
    Itself,
}

/// What of security groups has changed: documents of any host may follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TouchedGroups {
    /// The rules of these.
    pub rules: BTreeSet<SecurityGroupId>,
    /// Whose ports have these, by their network.
    pub members: BTreeSet<(NetworkId, SecurityGroupId)>,
}

/// Where a [`Writing`] was when something began that can be taken back.
#[must_use = "it must be ended"]
pub struct Attempt {
    outer: Txn,
    mark: Mark,
    touched: BTreeMap<HostId, Touched>,
    everywhere: BTreeMap<NetworkId, Among>,
    groups: TouchedGroups,
    fresh: usize,
    decisions: usize,
    forgotten: usize,
}

/// The memory of the writer, as long as it is its turn.
pub struct Image<'a>(MutexGuard<'a, Cloud>);

impl Deref for Image<'_> {
    type Target = Cloud;

    fn deref(&self) -> &Cloud {
        &self.0
    }
}

impl DerefMut for Image<'_> {
    fn deref_mut(&mut self) -> &mut Cloud {
        &mut self.0
    }
}

impl Drop for Image<'_> {
    /// What was not settled did not happen.
    fn drop(&mut self) {
        self.0.undo_all();
    }
}

impl Writing<'_> {
    /// The transaction.
    #[must_use]
    pub const fn txn(&self) -> &Txn {
        &self.txn
    }

    /// The configuration and everything else that is shared.
    #[must_use]
    pub const fn context(&self) -> &Context {
        self.context
    }

    /// Somebody asks for more than there is: if a document would be too large for a message by that, it is refused.
    pub const fn refuse_oversize(&mut self) {
        self.oversize = Oversize::Refused;
    }

    /// What is done when a document would be too large for a message.
    #[must_use]
    pub const fn oversize(&self) -> Oversize {
        self.oversize
    }

    /// The document of an instance on a host may follow from other rows now.
    pub fn touch_instance(&mut self, host: HostId, instance: InstanceId) {
        let key = DocumentKey {
            kind: Kind::Instance,
            id: instance.as_uuid(),
        };
        self.touched.entry(host).or_default().keys.insert(key);
    }

    /// The ports of a network on a host changed, or there are others: its document may follow from other rows now, and so may
    /// those of its routers.
    pub fn touch_network(&mut self, host: HostId, network: NetworkId) {
        self.touch_network_alone(host, network);
        let touched = self.touched.entry(host).or_default();
        touched.networks.insert((network, Cause::OwnPorts));
    }

    /// The document of a network on a host may follow from other rows now, and nothing else for that.
    pub fn touch_network_alone(&mut self, host: HostId, network: NetworkId) {
        let key = DocumentKey {
            kind: Kind::Network,
            id: network.as_uuid(),
        };
        self.touched.entry(host).or_default().keys.insert(key);
    }

    /// Somebody came into a network, left it, moved or is called something else: where it reaches beyond a host, all its hosts
    /// are told.
    pub fn touch_members(&mut self, network: NetworkId) {
        self.everywhere.entry(network).or_insert(Among::Spanning);
    }

    /// The documents of a network on all its hosts may follow from other rows now.
    pub fn touch_everywhere(&mut self, network: NetworkId) {
        self.everywhere.insert(network, Among::All);
    }

    /// The rules of a security group changed.
    pub fn touch_rules(&mut self, group: SecurityGroupId) {
        self.groups.rules.insert(group);
    }

    /// The addresses of those who have these security groups in a network changed.
    pub fn touch_group_members(
        &mut self,
        network: NetworkId,
        groups: impl IntoIterator<Item = SecurityGroupId>,
    ) {
        let members = groups.into_iter().map(|group| (network, group));
        self.groups.members.extend(members);
    }

    /// Finds out which documents may follow from what changed of security groups, as the rows are now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn spread(&mut self) -> Result<(), ClaimError> {
        let groups = std::mem::take(&mut self.groups);
        for (host, network) in claim::documents::dependents(&self.txn, &groups).await? {
            self.touch_network_alone(host, network);
        }
        Ok(())
    }

    /// The document of a router on a host may follow from other rows now, and with it those of its networks.
    pub fn touch_router(&mut self, host: HostId, router: RouterId) {
        let key = DocumentKey {
            kind: Kind::Router,
            id: router.as_uuid(),
        };
        self.touched.entry(host).or_default().keys.insert(key);
    }

    /// The document of a volume on a host may follow from other rows now.
    pub fn touch_volume(&mut self, host: HostId, volume: VolumeId) {
        let key = DocumentKey {
            kind: Kind::Volume,
            id: volume.as_uuid(),
        };
        self.touched.entry(host).or_default().keys.insert(key);
    }

    /// The document of a snapshot on a host may follow from other rows now.
    pub fn touch_snapshot(&mut self, host: HostId, snapshot: SnapshotId) {
        let key = DocumentKey {
            kind: Kind::Snapshot,
            id: snapshot.as_uuid(),
        };
        self.touched.entry(host).or_default().keys.insert(key);
    }

    /// The document of an instance gets a new generation even if nothing differs.
    pub fn again(&mut self, host: HostId, instance: InstanceId) {
        self.touch_instance(host, instance);
        let touched = self.touched.entry(host).or_default();
        touched.again.insert(DocumentKey {
            kind: Kind::Instance,
            id: instance.as_uuid(),
        });
    }

    /// Writes a decision down with the rest.
    pub fn decided(&mut self, decision: DecisionRow) {
        self.decisions.push(decision);
    }

    /// A host is gone for good: its queue goes after the commit.
    pub fn forget_host(&mut self, id: HostId, name: HostName) {
        self.forgotten.push((id, name));
    }

    /// Begins something that can be taken back by itself: everything until [`Writing::end`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attempt(&mut self) -> Result<Attempt, StoreError> {
        let inner = self.txn.nested().await?;
        Ok(Attempt {
            outer: std::mem::replace(&mut self.txn, inner),
            mark: self.cloud.mark(),
            touched: self.touched.clone(),
            everywhere: self.everywhere.clone(),
            groups: self.groups.clone(),
            fresh: self.fresh.len(),
            decisions: self.decisions.len(),
            forgotten: self.forgotten.len(),
        })
    }

    /// Ends it: keeps what was done, or takes it back. What was done before stays either way.
    ///
    /// # Errors
    /// When the database fails; then nothing of the transaction may be kept.
    pub async fn end(&mut self, attempt: Attempt, keep: bool) -> Result<(), StoreError> {
        let inner = std::mem::replace(&mut self.txn, attempt.outer);
        if keep {
            return inner.commit().await;
        }
        drop(inner);
        self.cloud.undo_to(attempt.mark);
        self.touched = attempt.touched;
        self.everywhere = attempt.everywhere;
        self.groups = attempt.groups;
        self.fresh.truncate(attempt.fresh);
        // No row will have them, and whoever asked for several hears of one.
        for undone in self.decisions.drain(attempt.decisions..) {
            if undone.decision.chosen.is_none() {
                tracing::info!(instance = %undone.instance_id, why = undone.decision.summary, "no host was found");
            }
        }
        self.forgotten.truncate(attempt.forgotten);
        Ok(())
    }

    /// Writes the documents that follow from the rows as they are now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn derive(&mut self) -> Result<(), ClaimError> {
        self.spread().await?;
        let mut touched = std::mem::take(&mut self.touched);
        let everywhere = std::mem::take(&mut self.everywhere);
        claim::documents::spread(&self.txn, &mut touched, &everywhere).await?;
        let fresh = claim::documents::refresh(self, &touched).await?;
        self.fresh.extend(fresh);
        Ok(())
    }

    /// Writes the documents that follow, and makes everything permanent; then publishes them.
    ///
    /// # Errors
    /// When the database does not confirm; then nothing may be assumed, and whoever asked asks again.
    pub async fn commit(mut self) -> Result<(), ClaimError> {
        self.derive().await?;
        decisions::insert_many(&self.txn, &self.decisions).await?;
        match self.txn.commit().await {
            Ok(()) => self.cloud.settle(),
            Err(error) => {
                // It may have been committed all the same.
                self.cloud.undo_all();
                self.cloud.doubt();
                return Err(error.into());
            }
        }
        drop(self.cloud);
        for (id, name) in self.forgotten {
            self.context.liveness(|liveness| liveness.forget(id));
            for queue in [compute_queue(name.as_str()), ask_queue(name.as_str())] {
                if let Err(error) = self.context.bus.delete_queue(&queue).await {
                    tracing::warn!(queue, error = %error_chain(&error), "the queue of a forgotten host is left");
                }
            }
        }
        self.context.dispatch.send(self.fresh).await;
        Ok(())
    }
}

impl Context {
    /// The shared state of a scheduler that just took over: reads its memory from the rows.
    ///
    /// # Errors
    /// When the database is out of reach, or holds what cannot be read.
    pub async fn take_over(
        config: Config,
        store: Store,
        bus: Arc<dyn Bus>,
        metrics: SchedulerMetrics,
        epoch: Epoch,
    ) -> Result<(Self, Fresh), StoreError> {
        let cloud = load::cloud(store.pool(), &config.placement).await?;
        let (dispatch, fresh) = Dispatch::new();
        let context = Self {
            config,
            store,
            bus,
            metrics,
            epoch,
            dispatch,
            fenced: CancellationToken::new(),
            started: Instant::now(),
            away: Mutex::default(),
            cloud: tokio::sync::Mutex::new(cloud),
            liveness: Mutex::default(),
            order: Mutex::default(),
            // Who led before may have known of some.
            lacks_addresses: AtomicBool::new(true),
        };
        Ok((context, fresh))
    }

    /// Waits for the turn to write, and opens a transaction.
    ///
    /// # Errors
    /// When the database is out of reach; [`StoreError::Fenced`] when another scheduler took over.
    pub async fn begin(&self) -> Result<Writing<'_>, StoreError> {
        let asked = Instant::now();
        let mut cloud = self.cloud.lock().await;
        let txn = self.fenced_txn(asked).await?;
        self.trust(&mut cloud, &txn).await?;
        self.look_at_liveness(&mut cloud);
        Ok(Writing {
            context: self,
            txn,
            cloud: Image(cloud),
            touched: BTreeMap::new(),
            everywhere: BTreeMap::new(),
            groups: TouchedGroups::default(),
            fresh: Vec::new(),
            decisions: Vec::new(),
            forgotten: Vec::new(),
            oversize: Oversize::LeftOut,
            // As a row gives it back, so that the first answer about something is the same as every later one.
            now: whole_millis(Utc::now()),
        })
    }

    /// Waits for the turn, to look and to try things out: nothing of it stays.
    ///
    /// # Errors
    /// When the image must be read anew and the database is out of reach.
    pub async fn image(&self) -> Result<Image<'_>, StoreError> {
        let asked = Instant::now();
        let mut cloud = self.cloud.lock().await;
        if cloud.is_doubtful() {
            let txn = self.fenced_txn(asked).await?;
            self.trust(&mut cloud, &txn).await?;
        }
        self.look_at_liveness(&mut cloud);
        Ok(Image(cloud))
    }

    /// A transaction that no earlier one can still be under way beside, not even one whose commit was never answered.
    ///
    /// Whoever waited for the turn while the database did not answer another shares that answer: each would wait as
    /// long again, one after the other, and the last would be told long after nobody wants to know. `asked`: since when
    /// it waited.
    async fn fenced_txn(&self, asked: Instant) -> Result<Txn, StoreError> {
        let away = || self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away().is_some_and(|at| at >= asked) {
            return Err(StoreError::away());
        }
        let txn = self.store.begin_as(self.epoch).await;
        match &txn {
            Err(StoreError::Fenced { .. }) => self.fenced.cancel(),
            Err(error) if error.retryable() => *away() = Some(Instant::now()),
            Err(_) | Ok(_) => {}
        }
        txn
    }

    /// Reads a doubtful image anew, through a transaction that waited for the one that made it so.
    async fn trust(&self, cloud: &mut Cloud, txn: &Txn) -> Result<(), StoreError> {
        if cloud.is_doubtful() {
            let mut read = load::cloud(txn, &self.config.placement).await?;
            // No row has them.
            read.take_failures(cloud);
            *cloud = read;
        }
        Ok(())
    }

    fn look_at_liveness(&self, cloud: &mut Cloud) {
        let now = Instant::now();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < LIVENESS_AGE;
        if !cloud.liveness_at().is_some_and(is_fresh) {
            cloud.forget_old_failures(self.millis());
            let timeout = self.config.patience.timeout;
            self.liveness(|liveness| {
                cloud.look_at_liveness(now, |host| liveness.is_alive(host, timeout, now));
            });
        }
    }

    /// Now, on the clock of failures.
    #[must_use]
    pub fn millis(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Looks at or changes who is alive. Never held over an await.
    pub fn liveness<T>(&self, look: impl FnOnce(&mut Liveness) -> T) -> T {
        look(&mut self.liveness.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at or changes which reports are the newest. Never held over an await.
    pub fn order<T>(&self, look: impl FnOnce(&mut ReportOrder) -> T) -> T {
        look(&mut self.order.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A host got no address of an external subnet, or may lack one still.
    pub fn lack_addresses(&self) {
        self.lacks_addresses.store(true, Ordering::Relaxed);
    }

    /// Whether that was said since this was last asked.
    pub fn took_lack_of_addresses(&self) -> bool {
        self.lacks_addresses.swap(false, Ordering::Relaxed)
    }

    /// Whether a host's heartbeats arrive.
    pub fn is_alive(&self, host: HostId) -> bool {
        let timeout = self.config.patience.timeout;
        self.liveness(|liveness| liveness.is_alive(host, timeout, Instant::now()))
    }
}
