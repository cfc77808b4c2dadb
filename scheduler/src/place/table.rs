//! All hosts in memory: one [`Host`] each, and beside them the columns and sets that decisions are made on.
//!
//! The caller holds the truth and keeps the table in step: facts, claims, builds, failures. Every derived column is
//! a pure function of the hosts; [`HostTable::debug_validate`] computes all of it anew and compares.

use std::collections::{BTreeSet, HashMap};

use berth_common::{ids::HostId, message::view::HostState as Liveness};

use super::{
    columns::{Columns, Row},
    countables::Countables,
    failures::{FailureCount, FailureHistory, Millis},
    features::{Feature, Features},
    host::{Host, HostFacts},
    host_set::{BLOCK, HostIndex},
    mix::BuildIdHasher,
    request::Demand,
    settings::Settings,
};

/// The table was asked for something it cannot do; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It has no such host.
    #[error("placement knows no host {0}")]
    UnknownHost(HostId),
    /// More was released than is claimed.
    #[error("more was released on host {0} than is claimed there")]
    NotClaimed(HostId),
}

/// All hosts.
#[derive(Debug, Clone, Default)]
pub struct HostTable {
    settings: Settings,
    hosts: Vec<Host>,
    slots: HashMap<HostId, HostIndex, BuildIdHasher>,
    pub(super) columns: Columns,
    pub(super) features: Features,
    pub(super) countables: Countables,
    /// Hosts with failures that are not forgotten.
    pub(super) failing: BTreeSet<HostIndex>,
}

impl HostTable {
    /// No hosts yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// What the operator has set.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many hosts there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// A host, with what is used of it.
    #[must_use]
    pub fn host(&self, id: HostId) -> Option<&Host> {
        self.slot(id).map(|slot| self.at(slot))
    }

    /// Every host, in no particular order.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter()
    }

    /// Adds a host, or replaces the facts of one; its claims, builds and failures stay.
    pub fn upsert(&mut self, facts: HostFacts) {
        let Some(slot) = self.slot(facts.id) else {
            self.push(Host::new(facts));
            return;
        };
        if *self.at(slot).facts() == facts {
            return;
        }
        let host = &mut self.hosts[slot.0];
        self.features.remove(slot, host.facts());
        for class in host.facts().countables.keys() {
            self.countables.set(class, slot, 0);
        }
        host.set_facts(facts);
        self.features.insert(slot, host.facts());
        self.countables.set_all(slot, host);
        self.refresh(slot);
    }

    fn push(&mut self, host: Host) {
        let slot = HostIndex(self.hosts.len());
        self.slots.insert(host.facts().id, slot);
        self.features.insert(slot, host.facts());
        self.countables.set_all(slot, &host);
        self.columns.push(Row::of(&host, &self.settings));
        self.hosts.push(host);
    }

    /// Forgets a host, with all that is claimed of it.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`].
    pub fn remove(&mut self, id: HostId) -> Result<Host, TableError> {
        let slot = self.known(id)?;
        let last = HostIndex(self.hosts.len() - 1);
        self.features.remove(slot, self.hosts[slot.0].facts());
        self.failing.remove(&slot);
        if slot != last {
            let moved = self.hosts[last.0].facts();
            self.features.remove(last, moved);
            self.features.insert(slot, moved);
            self.slots.insert(moved.id, slot);
            if self.failing.remove(&last) {
                self.failing.insert(slot);
            }
        }
        self.countables.swap_remove(slot, last);
        self.columns.swap_remove(slot);
        self.slots.remove(&id);
        Ok(self.hosts.swap_remove(slot.0))
    }

    /// A host's heartbeats arrive, or stop arriving.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`].
    pub fn set_liveness(&mut self, id: HostId, liveness: Liveness) -> Result<(), TableError> {
        let slot = self.known(id)?;
        self.hosts[slot.0].set_liveness(liveness);
        self.refresh(slot);
        Ok(())
    }

    /// Something is claimed of a host; whether it fits is not asked here, for the caller's rows are the truth.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`].
    pub fn claim(&mut self, id: HostId, demand: &Demand) -> Result<(), TableError> {
        let slot = self.known(id)?;
        self.hosts[slot.0].add(demand);
        self.recount(slot, demand);
        Ok(())
    }

    /// A claim is given back.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`]; [`TableError::NotClaimed`] when less than that is claimed.
    pub fn release(&mut self, id: HostId, demand: &Demand) -> Result<(), TableError> {
        let slot = self.known(id)?;
        let host = &mut self.hosts[slot.0];
        if !host.holds(demand) {
            return Err(TableError::NotClaimed(id));
        }
        host.subtract(demand);
        self.recount(slot, demand);
        Ok(())
    }

    /// How many builds are in flight on a host.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`].
    pub fn set_builds_in_flight(&mut self, id: HostId, builds: u64) -> Result<(), TableError> {
        let slot = self.known(id)?;
        self.hosts[slot.0].set_builds_in_flight(builds);
        self.refresh(slot);
        Ok(())
    }

    /// A build failed on a host.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`].
    pub fn record_failure(&mut self, id: HostId, now: Millis) -> Result<(), TableError> {
        let slot = self.known(id)?;
        let half_life = self.settings.failure_half_life;
        let history = self.at(slot).failures().with_failure(now, half_life);
        self.set_failures(id, history)
    }

    /// The failures of a host are these: after a restart, or (none) by the operator's word.
    ///
    /// # Errors
    /// [`TableError::UnknownHost`].
    pub fn set_failures(&mut self, id: HostId, history: FailureHistory) -> Result<(), TableError> {
        let slot = self.known(id)?;
        self.hosts[slot.0].set_failures(history);
        if history.count == FailureCount(0) {
            self.failing.remove(&slot);
        } else {
            self.failing.insert(slot);
        }
        Ok(())
    }

    /// Forgets the failures that count for nothing any more. Changes no answer; decisions read each host with
    /// failures one by one, so it is worth doing now and then.
    pub fn forget_old_failures(&mut self, now: Millis) {
        let (hosts, half_life) = (&mut self.hosts, self.settings.failure_half_life);
        self.failing.retain(|slot| {
            let host = &mut hosts[slot.0];
            let counts = host.failures().decayed(now, half_life) > FailureCount(0);
            if !counts {
                host.set_failures(FailureHistory::default());
            }
            counts
        });
    }

    /// After a claim or a release.
    fn recount(&mut self, slot: HostIndex, demand: &Demand) {
        let host = &self.hosts[slot.0];
        for class in demand.countables.keys() {
            self.countables.set(class, slot, host.countable_free(class));
        }
        self.refresh(slot);
    }

    fn refresh(&mut self, slot: HostIndex) {
        let row = Row::of(&self.hosts[slot.0], &self.settings);
        self.columns.set(slot, row);
    }

    pub(super) fn slot(&self, id: HostId) -> Option<HostIndex> {
        self.slots.get(&id).copied()
    }

    fn known(&self, id: HostId) -> Result<HostIndex, TableError> {
        self.slot(id).ok_or(TableError::UnknownHost(id))
    }

    /// The host in a slot of this table.
    pub(super) fn at(&self, slot: HostIndex) -> &Host {
        &self.hosts[slot.0]
    }

    /// Every slot.
    pub(super) fn all_slots(&self) -> impl Iterator<Item = HostIndex> + use<> {
        (0..self.hosts.len()).map(HostIndex)
    }

    /// Computes everything that is derived anew, and compares. For tests and for doubts: it takes its time.
    ///
    /// # Errors
    /// What differs.
    pub fn debug_validate(&self) -> Result<(), String> {
        let mut features = BTreeSet::new();
        for (slot, host) in self.hosts.iter().enumerate() {
            let (slot, id) = (HostIndex(slot), host.facts().id);
            if self.slot(id) != Some(slot) {
                return Err(format!("host {id} is not found in its slot"));
            }
            let (kept, anew) = (self.columns.row(slot), Row::of(host, &self.settings));
            if kept != anew {
                return Err(format!(
                    "host {id}: the columns have {kept:?}, it is {anew:?}"
                ));
            }
            for class in host.classes() {
                let (kept, anew) = (
                    self.countables.free(class, slot),
                    host.countable_free(class),
                );
                if kept != anew {
                    return Err(format!(
                        "host {id}: {kept} of {class} are kept as free, {anew} are"
                    ));
                }
            }
            if self.failing.contains(&slot) != (host.failures().count > FailureCount(0)) {
                return Err(format!("host {id} is wrongly listed as failing or not"));
            }
            features.extend(Feature::all(host.facts()).map(|feature| (feature, slot)));
        }
        let kept = self.features.pairs(self.hosts.len() + 64);
        let kept: BTreeSet<_> = kept
            .map(|(feature, slot)| (feature.clone(), slot))
            .collect();
        if kept != features {
            return Err(format!(
                "features are kept as {kept:?}, they are {features:?}"
            ));
        }
        let blocks = 0..self.hosts.len().div_ceil(BLOCK);
        let highest: Vec<_> = blocks.map(|block| self.columns.highest_in(block)).collect();
        if !self.columns.highest.iter().copied().map(Some).eq(highest) {
            return Err("the highest scores of the blocks are wrong".to_owned());
        }
        if self.slots.len() != self.hosts.len() || self.columns.id.len() != self.hosts.len() {
            return Err("the parts of the table have different lengths".to_owned());
        }
        self.countables.debug_validate(|class, slot| {
            let host = self.hosts.get(slot.0);
            host.map_or(0, |host| host.countable_free(class))
        })
    }
}
