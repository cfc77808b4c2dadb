//! A host as placement knows it: the facts the caller gives, and the account of what is claimed of it.
//!
//! Sums are kept in 128 bits, so that a claim can always be released exactly, whatever the numbers.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::HostId,
    message::heartbeat::{NetworkCapabilities, PoolReport},
    message::view::{AllocationRatios, HostState as Liveness, Resources},
    names::HostName,
    units::{DiskGb, MemoryMb, Vcpus},
};

use super::{
    amounts::{PerResource, Resource},
    failures::FailureHistory,
    request::{Demand, ResourceClass},
};

/// Whether a host may get new instances, by its operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admission {
    /// It may.
    Enabled,
    /// It may not, and shall become empty; nothing moves what it holds by itself.
    Draining,
    /// It may not.
    Disabled,
}

/// How much of a countable resource a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inventory {
    /// What exists.
    pub total: u64,
    /// What of it is kept for the host itself.
    pub reserved: u64,
}

impl Inventory {
    /// What may be claimed: countable resources are never overcommitted.
    #[must_use]
    pub const fn capacity(self) -> u64 {
        self.total.saturating_sub(self.reserved)
    }
}

/// What the caller knows of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// Whether its operator lets it get new instances.
    pub admission: Admission,
    /// Whether its heartbeats arrive.
    pub liveness: Liveness,
    /// What exists.
    pub total: Resources,
    /// What is kept for the host itself.
    pub reserved: Resources,
    /// How many of its parts say that they do not work: it counts as so many failed builds.
    pub ailing: u64,
    /// How much may be claimed for each unit that exists.
    pub ratios: AllocationRatios,
    /// What domains take that berth did not make: counted as used.
    pub foreign: Resources,
    /// Its availability zone.
    pub zone: Option<String>,
    /// The properties of its aggregates, merged: a key may have several values.
    pub properties: BTreeSet<(String, String)>,
    /// Its processor architecture, in libvirt's words.
    pub architecture: String,
    /// How it can run guests: `kvm`, `qemu`.
    pub virt_types: BTreeSet<String>,
    /// The physical networks it is connected to.
    pub physical_networks: BTreeSet<String>,
    /// What kinds of networks it can build, and whether it can filter. What its agent does not tell, it cannot: an agent that is
    /// too old to tell of networks is too old for port security as well, and would let through what that forbids.
    pub network: NetworkCapabilities,
    /// Its countable resources.
    pub countables: BTreeMap<ResourceClass, Inventory>,
    /// Its storage pools, for volumes; instances take of none but its disk.
    pub pools: Vec<PoolReport>,
}

impl HostFacts {
    /// An enabled host that is up and has so much, nothing reserved, nothing overcommitted, and no other features.
    #[must_use]
    pub fn new(id: HostId, name: HostName, total: Resources) -> Self {
        use berth_common::units::AllocationRatio;
        Self {
            id,
            name,
            admission: Admission::Enabled,
            liveness: Liveness::Up,
            total,
            reserved: Resources::default(),
            ailing: 0,
            ratios: AllocationRatios {
                cpu: AllocationRatio::ONE,
                ram: AllocationRatio::ONE,
                disk: AllocationRatio::ONE,
            },
            foreign: Resources::default(),
            zone: None,
            properties: BTreeSet::new(),
            architecture: String::new(),
            virt_types: BTreeSet::new(),
            physical_networks: BTreeSet::new(),
            network: NetworkCapabilities::default(),
            countables: BTreeMap::new(),
            pools: Vec::new(),
        }
    }

    /// `total − reserved`: the most one instance may have.
    #[must_use]
    pub fn physical(&self) -> Resources {
        self.total.saturating_sub(self.reserved)
    }

    /// `(total − reserved) × ratio`: the most that may ever be claimed.
    #[must_use]
    pub fn capacity(&self) -> Resources {
        let physical = self.physical();
        Resources {
            vcpus: Vcpus::clamped(self.ratios.cpu.apply(physical.vcpus.get())),
            memory_mb: MemoryMb::clamped(self.ratios.ram.apply(physical.memory_mb.get())),
            disk_gb: DiskGb::clamped(self.ratios.disk.apply(physical.disk_gb.get())),
        }
    }
}

/// A host in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    facts: HostFacts,
    physical: PerResource<u64>,
    capacity: PerResource<u64>,
    claimed: PerResource<u128>,
    claimed_countables: BTreeMap<ResourceClass, u128>,
    builds_in_flight: u64,
    failures: FailureHistory,
}

impl Host {
    pub(super) fn new(facts: HostFacts) -> Self {
        let mut host = Self {
            facts,
            physical: PerResource::default(),
            capacity: PerResource::default(),
            claimed: PerResource::default(),
            claimed_countables: BTreeMap::new(),
            builds_in_flight: 0,
            failures: FailureHistory::default(),
        };
        host.measure();
        host
    }

    /// The facts are other ones now; claims, builds and failures stay.
    pub(super) fn set_facts(&mut self, facts: HostFacts) {
        self.facts = facts;
        self.measure();
    }

    pub(super) const fn set_liveness(&mut self, liveness: Liveness) {
        self.facts.liveness = liveness;
    }

    fn measure(&mut self) {
        let (physical, capacity) = (self.facts.physical(), self.facts.capacity());
        self.physical = PerResource::from_fn(|resource| resource.of(&physical));
        self.capacity = PerResource::from_fn(|resource| resource.of(&capacity));
    }

    pub(super) fn add(&mut self, demand: &Demand) {
        self.claimed = PerResource::from_fn(|resource| {
            let sum = self.claimed.get(resource);
            sum.saturating_add(resource.of(&demand.resources).into())
        });
        // Nothing of a class leaves no trace, so that releasing leaves the host as it was.
        let countables = demand.countables.iter();
        for (class, amount) in countables.filter(|(_, amount)| **amount > 0) {
            match self.claimed_countables.get_mut(class) {
                Some(sum) => *sum = sum.saturating_add((*amount).into()),
                None => {
                    self.claimed_countables
                        .insert(class.clone(), (*amount).into());
                }
            }
        }
    }

    /// Whether so much is claimed that this can be given back.
    pub(super) fn holds(&self, demand: &Demand) -> bool {
        Resource::ALL.into_iter().all(|resource| {
            self.claimed.get(resource) >= u128::from(resource.of(&demand.resources))
        }) && demand.countables.iter().all(|(class, amount)| {
            let sum = self.claimed_countables.get(class).copied().unwrap_or(0);
            sum >= u128::from(*amount)
        })
    }

    pub(super) fn subtract(&mut self, demand: &Demand) {
        self.claimed = PerResource::from_fn(|resource| {
            let sum = self.claimed.get(resource);
            sum.saturating_sub(resource.of(&demand.resources).into())
        });
        for (class, amount) in &demand.countables {
            if let Some(sum) = self.claimed_countables.get_mut(class) {
                *sum = sum.saturating_sub((*amount).into());
                if *sum == 0 {
                    self.claimed_countables.remove(class);
                }
            }
        }
    }

    pub(super) const fn set_builds_in_flight(&mut self, builds: u64) {
        self.builds_in_flight = builds;
    }

    pub(super) const fn set_failures(&mut self, failures: FailureHistory) {
        self.failures = failures;
    }

    /// What the caller said of it.
    #[must_use]
    pub const fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// `total − reserved`.
    #[must_use]
    pub const fn physical(&self, resource: Resource) -> u64 {
        self.physical.get(resource)
    }

    /// `(total − reserved) × ratio`.
    #[must_use]
    pub const fn capacity(&self, resource: Resource) -> u64 {
        self.capacity.get(resource)
    }

    /// Claimed, plus what foreign domains take; bounded by 64 bits. More than the capacity after a ratio went down.
    #[must_use]
    pub fn used(&self, resource: Resource) -> u64 {
        u64::try_from(self.used_exactly(resource)).unwrap_or(u64::MAX)
    }

    fn used_exactly(&self, resource: Resource) -> u128 {
        let foreign = resource.of(&self.facts.foreign);
        self.claimed.get(resource).saturating_add(foreign.into())
    }

    /// What may still be claimed.
    #[must_use]
    pub fn free(&self, resource: Resource) -> u64 {
        let capacity = u128::from(self.capacity(resource));
        // At most the capacity, so it fits.
        u64::try_from(capacity.saturating_sub(self.used_exactly(resource))).unwrap_or(u64::MAX)
    }

    /// What of a countable resource may ever be claimed.
    #[must_use]
    pub fn countable_capacity(&self, class: &ResourceClass) -> u64 {
        let inventory = self.facts.countables.get(class);
        inventory.map_or(0, |inventory| inventory.capacity())
    }

    /// What of a countable resource is claimed; bounded by 64 bits.
    #[must_use]
    pub fn countable_used(&self, class: &ResourceClass) -> u64 {
        let sum = self.claimed_countables.get(class).copied().unwrap_or(0);
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    /// What of a countable resource may still be claimed.
    #[must_use]
    pub fn countable_free(&self, class: &ResourceClass) -> u64 {
        // A sum beyond 64 bits leaves nothing of a capacity of 64 bits either way.
        self.countable_capacity(class)
            .saturating_sub(self.countable_used(class))
    }

    /// Builds in flight.
    #[must_use]
    pub const fn builds_in_flight(&self) -> u64 {
        self.builds_in_flight
    }

    /// Its failed builds.
    #[must_use]
    pub const fn failures(&self) -> FailureHistory {
        self.failures
    }

    /// Countable resources that it has or that are claimed of it.
    pub(super) fn classes(&self) -> impl Iterator<Item = &ResourceClass> {
        self.facts
            .countables
            .keys()
            .chain(self.claimed_countables.keys())
    }
}
