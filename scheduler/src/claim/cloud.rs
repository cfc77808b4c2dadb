//! The memory of the one writer: all hosts as placement sees them, and who lies where.
//!
//! It is an image of rows and holds nothing that rows do not say: it is read from them when this scheduler takes over,
//! and changes only under the right to write. Every change is noted until the transaction it belongs to is committed,
//! and undone when it is not. It knows no database and no bus.

pub mod nat;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

use berth_common::{
    ids::{HostId, InstanceId, NetworkId, ServerGroupId, SnapshotId, VolumeId},
    message::view::{HostState, Resources},
    names::PoolName,
    units::DiskGb,
};

use berth_store::{aggregates::Aggregate, networks::NetworkRow, volumes::of_host_disk};

use self::nat::{NatNetwork, NatUndo, Nats};
use crate::place::{
    self, CapacityAnswer, Decision, Demand, HostFacts, HostTable, Millis, Request, Resource,
    Scratch, Settings,
};

/// Where an instance lies, and what it takes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The host.
    pub host: HostId,
    /// What it takes.
    pub demand: Demand,
    /// Its server group.
    pub group: Option<ServerGroupId>,
    /// Whether its host has yet to say that it was built.
    pub building: bool,
}

/// What of a host's disk is claimed by itself, and not by an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stored {
    /// A volume.
    Volume(VolumeId),
    /// A snapshot of one.
    Snapshot(SnapshotId),
}

/// Where a volume or a snapshot lies, and what it takes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedVolume {
    /// The host.
    pub host: HostId,
    /// The storage pool of the host.
    pub pool: PoolName,
    /// What it takes.
    pub size_gb: DiskGb,
}

impl PlacedVolume {
    /// What it takes of what instances take of as well.
    fn demand(&self) -> Demand {
        Demand {
            resources: Resources {
                disk_gb: of_host_disk(&self.pool, self.size_gb),
                ..Resources::default()
            },
            ..Demand::default()
        }
    }
}

/// A point to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(usize);

/// How to take a change back.
#[derive(Debug)]
enum Undo {
    /// It was not placed.
    Unplace(InstanceId),
    /// It lay there.
    Replace(InstanceId, Placed),
    /// It had no place.
    UnplaceStored(Stored),
    /// It lay there.
    ReplaceStored(Stored, PlacedVolume),
    /// The host had these facts; none: it was not there.
    Host(HostId, Option<Box<HostFacts>>),
    /// These were the aggregates.
    Aggregates(Vec<Aggregate>),
    /// A host or a `nat` network was so.
    Nat(NatUndo),
}

/// All hosts, and all that lies on them.
#[derive(Debug, Default)]
pub struct Cloud {
    table: HostTable,
    placed: HashMap<InstanceId, Placed>,
    stored: HashMap<Stored, PlacedVolume>,
    groups: HashMap<ServerGroupId, BTreeMap<HostId, u64>>,
    builds: HashMap<HostId, u64>,
    /// Which hosts were blamed for an instance that is not built yet.
    blamed: HashMap<InstanceId, BTreeSet<HostId>>,
    aggregates: Vec<Aggregate>,
    nats: Nats,
    scratch: Scratch,
    undo: Vec<Undo>,
    liveness_at: Option<Instant>,
    doubtful: bool,
}

impl Cloud {
    /// No hosts yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            table: HostTable::new(settings),
            ..Self::default()
        }
    }

    /// The hosts, to ask.
    #[must_use]
    pub const fn table(&self) -> &HostTable {
        &self.table
    }

    /// Where such an instance would be placed.
    pub fn decide(&mut self, request: &Request) -> Decision {
        place::place(request, &self.table, &mut self.scratch)
    }

    /// How many such instances would fit, counted up to `most`.
    pub fn capacity(&mut self, request: &Request, most: u64) -> CapacityAnswer {
        place::capacity(request, &self.table, most, &mut self.scratch)
    }

    /// All host aggregates.
    #[must_use]
    pub fn aggregates(&self) -> &[Aggregate] {
        &self.aggregates
    }

    /// The aggregates are these now. The facts of their hosts are set apart.
    pub fn set_aggregates(&mut self, aggregates: Vec<Aggregate>) {
        let before = std::mem::replace(&mut self.aggregates, aggregates);
        self.undo.push(Undo::Aggregates(before));
    }

    /// Where an instance lies.
    #[must_use]
    pub fn placed(&self, instance: InstanceId) -> Option<&Placed> {
        self.placed.get(&instance)
    }

    /// How many members of a server group lie on which host.
    #[must_use]
    pub fn members(&self, group: ServerGroupId) -> BTreeMap<HostId, u64> {
        self.groups.get(&group).cloned().unwrap_or_default()
    }

    /// What is known of a host now: a new one, or other facts.
    pub fn set_host(&mut self, facts: HostFacts) {
        let id = facts.id;
        let before = self.table.host(id).map(|host| host.facts().clone());
        if before.as_ref() == Some(&facts) {
            return;
        }
        self.undo.push(Undo::Host(id, before.map(Box::new)));
        self.table.upsert(facts);
    }

    /// Which hosts have which `nat` networks.
    #[must_use]
    pub const fn nats(&self) -> &Nats {
        &self.nats
    }

    /// A host has a network now, or will; it counts if it is of type `nat`.
    pub fn hold_nat(&mut self, host: HostId, network: &NetworkRow) {
        let of_row = NatNetwork::of(network);
        let undo = of_row.and_then(|of| self.nats.hold(host, network.id, of));
        self.undo.extend(undo.map(Undo::Nat));
    }

    /// A host does not have a network any more.
    pub fn release_nat(&mut self, host: HostId, network: NetworkId) {
        let undo = self.nats.release(host, network);
        self.undo.extend(undo.map(Undo::Nat));
    }

    /// A network that hosts may have is other than it was.
    pub fn know_nat(&mut self, network: &NetworkRow) {
        let of_row = NatNetwork::of(network);
        let undo = of_row.and_then(|of| self.nats.know(network.id, of));
        self.undo.extend(undo.map(Undo::Nat));
    }

    /// A host is gone for good; nothing lies on it.
    pub fn remove_host(&mut self, id: HostId) {
        for network in self.nats.of_host(id) {
            self.release_nat(id, network);
        }
        if let Ok(host) = self.table.remove(id) {
            self.builds.remove(&id);
            let facts = Box::new(host.facts().clone());
            self.undo.push(Undo::Host(id, Some(facts)));
        }
    }

    /// An instance lies there now; it lay nowhere.
    pub fn place(&mut self, instance: InstanceId, placed: Placed) {
        self.undo.push(Undo::Unplace(instance));
        self.put(instance, placed);
    }

    /// An instance lies nowhere any more.
    pub fn unplace(&mut self, instance: InstanceId) {
        if let Some(placed) = self.take(instance) {
            self.undo.push(Undo::Replace(instance, placed));
        }
    }

    /// The volumes that lie on a host.
    #[must_use]
    pub fn volumes_on(&self, host: HostId) -> Vec<VolumeId> {
        self.stored_on(host)
            .filter_map(|stored| match stored {
                Stored::Volume(volume) => Some(volume),
                Stored::Snapshot(_) => None,
            })
            .collect()
    }

    /// The snapshots that lie on a host.
    #[must_use]
    pub fn snapshots_on(&self, host: HostId) -> Vec<SnapshotId> {
        self.stored_on(host)
            .filter_map(|stored| match stored {
                Stored::Snapshot(snapshot) => Some(snapshot),
                Stored::Volume(_) => None,
            })
            .collect()
    }

    fn stored_on(&self, host: HostId) -> impl Iterator<Item = Stored> + '_ {
        let on_host = self
            .stored
            .iter()
            .filter(move |(_, placed)| placed.host == host);
        on_host.map(|(stored, _)| *stored)
    }

    /// What is claimed of a storage pool of a host.
    #[must_use]
    pub fn claimed_of_pool(&self, host: HostId, pool: &PoolName) -> DiskGb {
        let in_pool = self
            .stored
            .values()
            .filter(|placed| placed.host == host && placed.pool == *pool);
        in_pool.map(|placed| placed.size_gb).sum()
    }

    /// What is claimed of a storage pool, host by host.
    #[must_use]
    pub fn claimed_of_pools(&self, pool: &PoolName) -> BTreeMap<HostId, DiskGb> {
        let mut claimed = BTreeMap::new();
        for placed in self.stored.values().filter(|placed| placed.pool == *pool) {
            let sum: &mut DiskGb = claimed.entry(placed.host).or_default();
            *sum = sum.saturating_add(placed.size_gb);
        }
        claimed
    }

    /// A volume lies there now; it lay nowhere, or there with another size.
    pub fn place_volume(&mut self, volume: VolumeId, placed: PlacedVolume) {
        self.place_stored(Stored::Volume(volume), placed);
    }

    /// A snapshot lies there now; it lay nowhere.
    pub fn place_snapshot(&mut self, snapshot: SnapshotId, placed: PlacedVolume) {
        self.place_stored(Stored::Snapshot(snapshot), placed);
    }

    fn place_stored(&mut self, stored: Stored, placed: PlacedVolume) {
        self.unplace_stored(stored);
        self.undo.push(Undo::UnplaceStored(stored));
        self.put_stored(stored, placed);
    }

    /// A volume lies nowhere any more.
    pub fn unplace_volume(&mut self, volume: VolumeId) {
        self.unplace_stored(Stored::Volume(volume));
    }

    /// A snapshot lies nowhere any more.
    pub fn unplace_snapshot(&mut self, snapshot: SnapshotId) {
        self.unplace_stored(Stored::Snapshot(snapshot));
    }

    fn unplace_stored(&mut self, stored: Stored) {
        if let Some(placed) = self.take_stored(stored) {
            self.undo.push(Undo::ReplaceStored(stored, placed));
        }
    }

    /// The host of an instance has yet to build it, or was done with that or gave it up.
    pub fn set_building(&mut self, instance: InstanceId, building: bool) {
        let Some(placed) = self.placed.get(&instance) else {
            return;
        };
        if placed.building == building {
            return;
        }
        let after = Placed {
            building,
            ..placed.clone()
        };
        self.unplace(instance);
        self.place(instance, after);
    }

    /// A host could not build an instance, which counts once however often it tries.
    pub fn failed_to_build(&mut self, host: HostId, instance: InstanceId, now: Millis) {
        if self.blamed.entry(instance).or_default().insert(host) {
            self.failed(host, now);
        }
    }

    /// An instance was built: nobody will be blamed for it any more.
    pub fn was_built(&mut self, instance: InstanceId) {
        self.blamed.remove(&instance);
    }

    /// A host could not build something. Not a row, so it stays whatever becomes of the transaction: it did happen.
    fn failed(&mut self, host: HostId, now: Millis) {
        if let Err(error) = self.table.record_failure(host, now) {
            tracing::debug!(%host, %error, "a failed build is not noted");
        }
    }

    /// Takes over which builds have failed, from another image: no row says it.
    pub fn take_failures(&mut self, other: &Self) {
        self.blamed.clone_from(&other.blamed);
        for host in other.table.hosts() {
            if let Err(error) = self.table.set_failures(host.facts().id, host.failures()) {
                tracing::debug!(%error, "a host with failed builds is gone");
            }
        }
    }

    /// Forgets failed builds that count for nothing any more.
    pub fn forget_old_failures(&mut self, now: Millis) {
        self.table.forget_old_failures(now);
        let placed = &self.placed;
        self.blamed
            .retain(|instance, _| placed.contains_key(instance));
    }

    /// Takes over whose heartbeats arrive.
    pub fn look_at_liveness(&mut self, now: Instant, alive: impl Fn(HostId) -> bool) {
        self.liveness_at = Some(now);
        let changed: Vec<(HostId, HostState)> = self
            .table
            .hosts()
            .filter_map(|host| {
                let facts = host.facts();
                let state = if alive(facts.id) {
                    HostState::Up
                } else {
                    HostState::Down
                };
                (facts.liveness != state).then_some((facts.id, state))
            })
            .collect();
        for (host, state) in changed {
            if let Err(error) = self.table.set_liveness(host, state) {
                tracing::debug!(%host, %error, "a host is gone");
            }
        }
    }

    /// When liveness was last taken over.
    #[must_use]
    pub const fn liveness_at(&self) -> Option<Instant> {
        self.liveness_at
    }

    /// Here and now.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        Mark(self.undo.len())
    }

    /// Takes back everything since a mark.
    pub fn undo_to(&mut self, mark: Mark) {
        while self.undo.len() > mark.0 {
            match self.undo.pop() {
                None => {}
                Some(Undo::Unplace(instance)) => {
                    self.take(instance);
                }
                Some(Undo::Replace(instance, placed)) => self.put(instance, placed),
                Some(Undo::UnplaceStored(stored)) => {
                    self.take_stored(stored);
                }
                Some(Undo::ReplaceStored(stored, placed)) => self.put_stored(stored, placed),
                Some(Undo::Host(_, Some(facts))) => self.table.upsert(*facts),
                Some(Undo::Aggregates(before)) => self.aggregates = before,
                Some(Undo::Nat(undo)) => self.nats.take_back(undo),
                Some(Undo::Host(id, None)) => {
                    if let Err(error) = self.table.remove(id) {
                        tracing::debug!(%error, "a host that was not there is gone already");
                    }
                }
            }
        }
    }

    /// Takes back everything that was not committed.
    pub fn undo_all(&mut self) {
        self.undo_to(Mark(0));
    }

    /// What happened so far is permanent.
    pub fn settle(&mut self) {
        self.undo.clear();
    }

    /// Nobody knows whether the last transaction was committed: this image must be read anew.
    pub const fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Whether it must be read anew.
    #[must_use]
    pub const fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    fn put(&mut self, instance: InstanceId, placed: Placed) {
        if let Err(error) = self.table.claim(placed.host, &placed.demand) {
            // Rows hold a claim on a host that has a row; the image of it is there too.
            tracing::error!(%instance, host = %placed.host, %error, "a claim is not counted");
        }
        if let Some(group) = placed.group {
            let members = self.groups.entry(group).or_default();
            let count = members.entry(placed.host).or_default();
            *count = count.saturating_add(1);
        }
        if placed.building {
            self.count_builds(placed.host, |builds| builds.saturating_add(1));
        }
        self.placed.insert(instance, placed);
    }

    fn take(&mut self, instance: InstanceId) -> Option<Placed> {
        let placed = self.placed.remove(&instance)?;
        if let Err(error) = self.table.release(placed.host, &placed.demand) {
            tracing::error!(%instance, host = %placed.host, %error, "a claim is not given back");
        }
        if let Some(group) = placed.group
            && let Some(members) = self.groups.get_mut(&group)
        {
            if let Some(count) = members.get_mut(&placed.host) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    members.remove(&placed.host);
                }
            }
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
        if placed.building {
            self.count_builds(placed.host, |builds| builds.saturating_sub(1));
        }
        Some(placed)
    }

    fn put_stored(&mut self, stored: Stored, placed: PlacedVolume) {
        if let Err(error) = self.table.claim(placed.host, &placed.demand()) {
            tracing::error!(?stored, host = %placed.host, %error, "it is not counted");
        }
        self.stored.insert(stored, placed);
    }

    fn take_stored(&mut self, stored: Stored) -> Option<PlacedVolume> {
        let placed = self.stored.remove(&stored)?;
        if let Err(error) = self.table.release(placed.host, &placed.demand()) {
            tracing::error!(?stored, host = %placed.host, %error, "its room is not given back");
        }
        Some(placed)
    }

    fn count_builds(&mut self, host: HostId, change: impl FnOnce(u64) -> u64) {
        let builds = self.builds.entry(host).or_default();
        *builds = change(*builds);
        let builds = *builds;
        if builds == 0 {
            self.builds.remove(&host);
        }
        if let Err(error) = self.table.set_builds_in_flight(host, builds) {
            tracing::debug!(%host, %error, "builds are not counted");
        }
    }

    /// Which of these hosts some instances lie on.
    #[must_use]
    pub fn hosts_of(&self, instances: &[InstanceId]) -> BTreeSet<HostId> {
        instances
            .iter()
            .filter_map(|instance| self.placed(*instance))
            .map(|placed| placed.host)
            .collect()
    }

    /// The instances that lie on a host.
    #[must_use]
    pub fn instances_on(&self, host: HostId) -> Vec<InstanceId> {
        let on_host = self.placed.iter().filter(|(_, placed)| placed.host == host);
        on_host.map(|(instance, _)| *instance).collect()
    }

    /// How many instances have a place.
    #[must_use]
    pub fn len(&self) -> usize {
        self.placed.len()
    }

    /// Whether no instance has a place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }

    /// What differs from another image of the same rows, if anything does: for tests and for doubts. Who is alive and
    /// which builds have failed is in no row, and not compared.
    #[must_use]
    pub fn differs_from(&self, other: &Self) -> Option<String> {
        differing("places", &sorted(&self.placed), &sorted(&other.placed))
            .or_else(|| differing("volumes", &sorted(&self.stored), &sorted(&other.stored)))
            .or_else(|| differing("groups", &sorted(&self.groups), &sorted(&other.groups)))
            .or_else(|| differing("builds", &sorted(&self.builds), &sorted(&other.builds)))
            .or_else(|| {
                let (nats, others) = (self.nats.sorted(), other.nats.sorted());
                differing("nat networks", &nats, &others)
            })
            .or_else(|| {
                let by_id = |cloud: &Self| -> BTreeMap<_, _> {
                    let rows = cloud.aggregates.iter().cloned();
                    rows.map(|aggregate| (aggregate.row.id, aggregate))
                        .collect()
                };
                differing("aggregates", &by_id(self), &by_id(other))
            })
            .or_else(|| differing("hosts", &self.measured(), &other.measured()))
    }

    /// Every host as placement counts it.
    fn measured(&self) -> BTreeMap<HostId, (HostFacts, Vec<u64>)> {
        let hosts = self.table.hosts().map(|host| {
            let facts = HostFacts {
                liveness: HostState::Down,
                ..host.facts().clone()
            };
            let used = Resource::ALL.into_iter().map(|of| host.used(of));
            let countables = facts.countables.keys();
            let counted = countables.map(|class| host.countable_used(class));
            let builds = std::iter::once(host.builds_in_flight());
            let amounts = used.chain(counted).chain(builds).collect();
            (facts.id, (facts, amounts))
        });
        hosts.collect()
    }
}

fn sorted<K: Ord + Copy, V: Clone>(map: &HashMap<K, V>) -> BTreeMap<K, V> {
    map.iter()
        .map(|(key, value)| (*key, value.clone()))
        .collect()
}

/// The first entry that two maps do not share.
fn differing<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
) -> Option<String> {
    let key = a
        .keys()
        .chain(b.keys())
        .find(|key| a.get(key) != b.get(key))?;
    Some(format!(
        "{what}: {key:?} is {:?} here, {:?} there",
        a.get(key),
        b.get(key)
    ))
}
