//! The routers of a fake host: the planner's own model of what a step leads to, beside the bridges of the same host.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{NetworkId, RouterId},
    names::MacAddress,
};

use super::networks::Networks;
use crate::decide::{
    names,
    router::{
        Leg, LegLink, LegObserved, RouterNamespace, RouterObserved, RouterStep, Side, Translation,
        imagine,
    },
};

#[derive(Debug, Clone, Default)]
pub(super) struct Routers {
    routers: BTreeMap<RouterId, RouterObserved>,
}

impl Routers {
    /// What is there of a router, and which bridges of these legs.
    pub(super) fn observe(
        &self,
        router: RouterId,
        legs: &BTreeSet<Leg>,
        networks: &Networks,
    ) -> RouterObserved {
        let mut observed = self.routers.get(&router).cloned().unwrap_or_default();
        observed.bridges = bridges(legs.iter().map(|leg| leg.network), networks);
        observed
    }

    pub(super) fn apply(&mut self, step: &RouterStep, networks: &Networks) {
        let observed = self.routers.entry(step.router()).or_default();
        if let RouterStep::Plug(leg) = step {
            observed.bridges = bridges([leg.network].into_iter(), networks);
        }
        imagine(observed, step);
        observed.bridges.clear();
        if *observed == RouterObserved::default() {
            self.routers.remove(&step.router());
        }
    }

    /// The ends of legs that are in the bridge of a network, with the routers they are of.
    fn plugged_in(
        &self,
        network: NetworkId,
    ) -> impl Iterator<Item = (&RouterObserved, &LegLink, &LegObserved)> {
        let bridge = names::bridge(network);
        let ends = self.routers.values().flat_map(|observed| {
            let ends = observed.host_ends.iter();
            ends.map(move |(link, found)| (observed, link, found))
        });
        ends.filter(move |(_, _, found)| found.master.as_ref() == Some(&bridge))
    }

    /// Names of the links that are in the bridge of a network.
    pub(super) fn legs_in(&self, network: NetworkId) -> BTreeSet<String> {
        let plugged = self.plugged_in(network);
        plugged.map(|(_, link, _)| link.name()).collect()
    }

    /// The Ethernet addresses behind the legs inside that are in the bridge of a network.
    pub(super) fn behind_legs_in(&self, network: NetworkId) -> BTreeSet<MacAddress> {
        let inside = self
            .plugged_in(network)
            .filter(|(_, link, _)| link.leg.side == Side::Inside);
        inside
            .flat_map(|(_, _, found)| &found.behind)
            .filter_map(|mac| MacAddress::from_octets(*mac).ok())
            .collect()
    }

    /// The Ethernet addresses of the legs inside that are in the bridge of a network, whatever that was told.
    pub(super) fn plugged(&self, network: NetworkId) -> BTreeSet<MacAddress> {
        let inside = self
            .plugged_in(network)
            .filter(|(_, link, _)| link.leg.side == Side::Inside);
        inside
            .filter_map(|(observed, link, _)| observed.link(link.leg.namespace_end())?.mac)
            .filter_map(|mac| MacAddress::from_octets(mac).ok())
            .collect()
    }

    /// The bridge of a network is gone: nothing is in it.
    pub(super) fn lose_bridge(&mut self, network: NetworkId) {
        let bridge = names::bridge(network);
        for observed in self.routers.values_mut() {
            for found in observed.host_ends.values_mut() {
                if found.master.take_if(|master| *master == bridge).is_some() {
                    found.behind.clear();
                }
            }
        }
    }

    pub(super) fn have_flow(&mut self, router: RouterId, flow: Translation) {
        if let Some(RouterNamespace::Present(content)) = self
            .routers
            .get_mut(&router)
            .map(|observed| &mut observed.namespace)
        {
            content.flows.insert(flow);
        }
    }

    pub(super) fn present(&self) -> Vec<RouterId> {
        self.routers.keys().copied().collect()
    }
}

fn bridges(asked: impl Iterator<Item = NetworkId>, networks: &Networks) -> BTreeSet<NetworkId> {
    let there = networks.bridges();
    asked
        .filter(|network| there.contains(&names::bridge(*network)))
        .collect()
}
