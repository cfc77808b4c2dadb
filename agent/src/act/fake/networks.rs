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
        // What is on a tap goes with it.
        let mut before = std::mem::take(&mut observed.tc.taps);
        for tap in &observed.members {
            let there = before.remove(tap).unwrap_or_default();
            observed.tc.taps.insert(tap.clone(), there);
        }
        if !observed.tc.taps.is_empty() {
            observed.tc.links = domains.taps();
            observed.tc.links.insert("eth0".to_owned());
        }
        observed
    }

    pub(super) fn apply(&mut self, step: &NetStep, domains: &Domains) {
        self.forget_taps(domains);
        let seen = self.observe(step.network(), domains);
        let observed = self.networks.entry(step.network()).or_default();
        if let NetStep::Tc(_) = step {
            observed.tc = seen.tc;
        }
        imagine(observed, step);
        observed.tc.links.clear();
        if *observed == NetworkObserved::default() {
            self.networks.remove(&step.network());
        }
    }

    /// Taps that are gone have taken with them what was on them.
    pub(super) fn forget_taps(&mut self, domains: &Domains) {
        let taps = domains.taps();
        for observed in self.networks.values_mut() {
            observed.tc.taps.retain(|tap, _| taps.contains(tap));
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
