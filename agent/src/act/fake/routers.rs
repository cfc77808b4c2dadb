//! The routers of a fake host: the planner's own model of what a step leads to, beside the bridges of the same host.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{NetworkId, RouterId},
    names::MacAddress,
};

use super::networks::Networks;
use crate::decide::{
    names,
    router::{Leg, RouterNamespace, RouterObserved, RouterStep, Side, Translation, imagine},
};

#[derive(Debug, Default)]
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

    /// Names of the links that are in the bridge of a network.
    pub(super) fn legs_in(&self, network: NetworkId) -> BTreeSet<String> {
        let bridge = names::bridge(network);
        self.routers
            .values()
            .flat_map(|observed| &observed.host_ends)
            .filter(|(_, found)| found.master.as_ref() == Some(&bridge))
            .map(|(link, _)| link.name())
            .collect()
    }

    /// The Ethernet addresses behind the legs inside that are in the bridge of a network.
    pub(super) fn behind_legs_in(&self, network: NetworkId) -> BTreeSet<MacAddress> {
        let bridge = names::bridge(network);
        self.routers
            .values()
            .flat_map(|observed| &observed.host_ends)
            .filter(|(link, found)| {
                link.leg.side == Side::Inside && found.master.as_ref() == Some(&bridge)
            })
            .flat_map(|(_, found)| &found.behind)
            .filter_map(|mac| MacAddress::from_octets(*mac).ok())
            .collect()
    }

    /// The Ethernet addresses of the legs inside that are in the bridge of a network, whatever that was told.
    pub(super) fn plugged(&self, network: NetworkId) -> BTreeSet<MacAddress> {
        let bridge = names::bridge(network);
        let plugged = self.routers.values().flat_map(|observed| {
            let host_ends = observed.host_ends.iter();
            let here = host_ends.filter(|(link, found)| {
                link.leg.side == Side::Inside && found.master.as_ref() == Some(&bridge)
            });
            here.filter_map(|(link, _)| observed.link(link.leg.namespace_end())?.mac)
        });
        plugged
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
