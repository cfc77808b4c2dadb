//! The networks of a fake host: the planner's own model of what a step leads to.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::ids::NetworkId;

use super::domains::Domains;
use crate::decide::{
    filter::{self, FilterObserved, Stateful, Tables},
    names,
    network::{NetStep, NetworkObserved, imagine},
};

#[derive(Debug, Default)]
pub(super) struct Networks {
    networks: BTreeMap<NetworkId, NetworkObserved>,
    /// What the packet filter has for the whole host.
    filter_base: BTreeMap<filter::part::Name, Vec<String>>,
}

impl Networks {
    /// What is there of a network; its bridge holds the taps of the domains that run.
    pub(super) fn observe(&self, network: NetworkId, domains: &Domains) -> NetworkObserved {
        let mut observed = self.networks.get(&network).cloned().unwrap_or_default();
        self.show_host(network, &mut observed);
        if observed.bridge.is_some() {
            observed.members = domains.taps_in(&names::bridge(network));
        }
        observed
    }

    pub(super) fn apply(&mut self, step: &NetStep) {
        let observed = self.networks.entry(step.network()).or_default();
        imagine(observed, step);
        // What the host has once is kept once.
        let base = std::mem::take(&mut observed.filter.base);
        if !base.is_empty() {
            self.filter_base = base;
        }
        if *observed == NetworkObserved::default() {
            self.networks.remove(&step.network());
        }
    }

    /// What a network sees of the host's packet filter.
    fn show_host(&self, network: NetworkId, observed: &mut NetworkObserved) {
        let mut tables = Tables {
            base: self.filter_base.clone(),
            ..Tables::default()
        };
        for (id, other) in &self.networks {
            tables.put(*id, other.filter.part.clone());
        }
        observed.filter = FilterObserved {
            calls_ip: observed.filter.calls_ip,
            ..tables.observed(network, Stateful::BrNetfilter)
        };
    }

    pub(super) fn present(&self) -> Vec<NetworkId> {
        self.networks.keys().copied().collect()
    }

    /// Names of all bridges.
    pub(super) fn bridges(&self) -> BTreeSet<String> {
        let with_bridge = self
            .networks
            .iter()
            .filter(|(_, observed)| observed.bridge.is_some());
        with_bridge
            .map(|(network, _)| names::bridge(*network))
            .collect()
    }
}
