//! Which hosts have a feature: a zone, a property of an aggregate, an architecture, a physical network.
//!
//! One set of hosts per feature that any host has, so that a filter over such features is an intersection of sets.

use std::collections::BTreeMap;

use super::{
    host::HostFacts,
    host_set::{HostIndex, HostSet},
    request::{Need, NetworkNeeds},
};

/// Something a host has or has not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Feature {
    Zone(String),
    Property(String, String),
    Architecture(String),
    VirtType(String),
    PhysicalNetwork(String),
    Vlan,
    /// And an address for it.
    Vxlan,
    StatefulFilter,
}

impl Feature {
    /// Every feature of a host.
    pub(super) fn all(facts: &HostFacts) -> impl Iterator<Item = Self> {
        let zone = facts.zone.iter().cloned().map(Self::Zone);
        let properties = facts.properties.iter().cloned();
        let architecture = Self::Architecture(facts.architecture.clone());
        let virt_types = facts.virt_types.iter().cloned().map(Self::VirtType);
        let networks = facts.physical_networks.iter().cloned();
        zone.chain(properties.map(|(key, value)| Self::Property(key, value)))
            .chain(std::iter::once(architecture))
            .chain(virt_types)
            .chain(networks.map(Self::PhysicalNetwork))
            .chain(facts.network.vlan.then_some(Self::Vlan))
            .chain(
                (facts.network.vxlan && facts.network.tunnel_ip.is_some()).then_some(Self::Vxlan),
            )
            .chain(
                facts
                    .network
                    .stateful_filter
                    .then_some(Self::StatefulFilter),
            )
    }

    /// Every feature that networks need.
    pub(super) fn needed(needs: &NetworkNeeds) -> impl Iterator<Item = Self> {
        let networks = needs.physical_networks.iter().cloned();
        let kinds = [
            (needs.vlan, Self::Vlan),
            (needs.vxlan, Self::Vxlan),
            (needs.stateful_filter, Self::StatefulFilter),
        ];
        let kinds = kinds.into_iter().filter(|(need, _)| *need == Need::Asked);
        networks
            .map(Self::PhysicalNetwork)
            .chain(kinds.map(|(_, kind)| kind))
    }
}

/// The hosts of every feature.
#[derive(Debug, Clone, Default)]
pub(super) struct Features {
    hosts: BTreeMap<Feature, HostSet>,
}

impl Features {
    /// Adds a host under all its features.
    pub(super) fn insert(&mut self, host: HostIndex, facts: &HostFacts) {
        for feature in Feature::all(facts) {
            self.hosts.entry(feature).or_default().insert(host);
        }
    }

    /// Takes a host out, and forgets the features that no host has any more.
    pub(super) fn remove(&mut self, host: HostIndex, facts: &HostFacts) {
        for feature in Feature::all(facts) {
            if let Some(hosts) = self.hosts.get_mut(&feature) {
                hosts.remove(host);
                if hosts.is_empty() {
                    self.hosts.remove(&feature);
                }
            }
        }
    }

    /// Writes the hosts that have all of some features into a set.
    pub(super) fn intersect(
        &self,
        features: impl IntoIterator<Item = Feature>,
        hosts: &mut HostSet,
    ) {
        let mut first = true;
        for feature in features {
            match self.hosts.get(&feature) {
                Some(having) if first => hosts.copy_from(having),
                Some(having) => hosts.intersect(having),
                None => hosts.clear(),
            }
            first = false;
        }
    }

    /// For checks: every feature with each of its hosts.
    pub(super) fn pairs(&self, hosts: usize) -> impl Iterator<Item = (&Feature, HostIndex)> {
        self.hosts.iter().flat_map(move |(feature, having)| {
            let slots = (0..hosts).map(HostIndex);
            slots
                .filter(|host| having.contains(*host))
                .map(move |host| (feature, host))
        })
    }
}
