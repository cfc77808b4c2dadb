//! The networks of a fake host: the planner's own model of what a step leads to.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::ids::NetworkId;

use super::domains::Domains;
use crate::decide::{
    names,
    network::{NetStep, NetworkObserved, imagine},
};

#[derive(Debug, Default)]
pub(super) struct Networks {
    networks: BTreeMap<NetworkId, NetworkObserved>,
}

impl Networks {
    /// What is there of a network; its bridge holds the taps of the domains that run.
    pub(super) fn observe(&self, network: NetworkId, domains: &Domains) -> NetworkObserved {
        let mut observed = self.networks.get(&network).cloned().unwrap_or_default();
        if observed.bridge.is_some() {
            observed.members = domains.taps_in(&names::bridge(network));
        }
        observed
    }

    pub(super) fn apply(&mut self, step: &NetStep) {
        let observed = self.networks.entry(step.network()).or_default();
        imagine(observed, step);
        if *observed == NetworkObserved::default() {
            self.networks.remove(&step.network());
        }
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
