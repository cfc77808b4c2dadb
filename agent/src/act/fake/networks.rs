//! The networks of a fake host: the planner's own model of what a step leads to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{ids::NetworkId, names::MacAddress};

use super::domains::Domains;
use crate::decide::{
    filter::{self, FilterObserved, FilterStep, Stateful, Tables, base, nft::Family},
    names,
    network::{
        Herald, Link, NetStep, NetworkObserved, imagine,
        uplink::{HostUplinks, Segment, UplinkObserved},
    },
};

#[derive(Debug, Clone, Default)]
pub(super) struct Networks {
    networks: BTreeMap<NetworkId, NetworkObserved>,
    /// What all of them share.
    host: HostUplinks,
    /// The same, as it is when the host boots.
    at_boot: HostUplinks,
    /// What the packet filter has for the whole host.
    filter_base: BTreeMap<filter::part::Name, Vec<String>>,
    /// What the packet filters of networks say of all guests, as text.
    of_guests: BTreeMap<NetworkId, String>,
    /// What switches were told.
    heralds: Vec<Herald>,
}

impl Networks {
    /// The host loses power and boots: no network is there, and the host has what it always had.
    pub(super) fn power_cut(&mut self) {
        let host = self.at_boot.clone();
        *self = Self::default();
        self.have_uplinks(host);
    }

    pub(super) fn have_uplinks(&mut self, host: HostUplinks) {
        self.at_boot.clone_from(&host);
        self.host = host;
    }

    pub(super) const fn uplinks(&self) -> &HostUplinks {
        &self.host
    }

    /// What is there of a network; its bridge holds the taps of the domains that run.
    pub(super) fn observe(&self, network: NetworkId, domains: &Domains) -> NetworkObserved {
        let mut observed = self.networks.get(&network).cloned().unwrap_or_default();
        self.show_host(network, &mut observed);
        if observed.bridge.is_some() {
            observed.members = domains.taps_in(&names::bridge(network));
        }
        observed.uplink.host = self.host.clone();
        for (other, found) in &self.networks {
            if *other != network {
                add_other(&mut observed.uplink.host, *other, &found.uplink);
            }
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

    pub(super) fn herald(&mut self, herald: &Herald) {
        self.heralds.push(herald.clone());
    }

    pub(super) fn heralds(&self) -> Vec<Herald> {
        self.heralds.clone()
    }

    pub(super) fn apply(&mut self, step: &NetStep, domains: &Domains) {
        self.forget_taps(domains);
        let seen = self.observe(step.network(), domains);
        let observed = self.networks.entry(step.network()).or_default();
        if let NetStep::Tc(_) = step {
            observed.tc = seen.tc;
        }
        if let NetStep::Filter(FilterStep::Change(change)) = step {
            let of_guests = change
                .chains
                .iter()
                .filter(|((_, name), _)| name.starts_with("n_"));
            for ((family, name), rules) in of_guests {
                let rules = rules.iter().map(|rule| rule.add(*family, name));
                self.of_guests.insert(change.network, rules.collect());
            }
        }
        observed.uplink.host = std::mem::take(&mut self.host);
        // What the host has once is kept once.
        observed.filter.base = std::mem::take(&mut self.filter_base);
        observed.filter.shared = seen.filter.shared;
        imagine(observed, step);
        observed.tc.links.clear();
        self.host = std::mem::take(&mut observed.uplink.host);
        self.filter_base = std::mem::take(&mut observed.filter.base);
        observed.filter.shared = false;
        if *observed == NetworkObserved::default() {
            self.networks.remove(&step.network());
        }
    }

    /// Whether the packet filter of a network knows a leg.
    pub(super) fn knows(&self, network: NetworkId, leg: MacAddress) -> bool {
        let text = self.of_guests.get(&network);
        text.is_some_and(|text| text.contains(&leg.to_string()))
    }

    /// Whether a network has a VTEP.
    pub(super) fn has_tunnel(&self, network: NetworkId) -> bool {
        let found = self.networks.get(&network);
        found.is_some_and(|found| found.uplink.vxlan.is_some())
    }

    /// The hosts that may send to the VTEP of a network; `None`: there is none, or nobody is refused.
    pub(super) fn senders(&self, network: NetworkId) -> Option<BTreeSet<IpAddr>> {
        let found = self.networks.get(&network)?;
        let vxlan = found.uplink.vxlan.as_ref()?;
        let part = &found.filter.part;
        let key = format!("{} . {}", vxlan.port?, vxlan.id?);
        let key = (Family::Inet, base::TUNNELS.to_owned(), key);
        let chain = (Family::Inet, part.links.get(&key)?.clone());
        part.chains.get(&chain)?;
        let of_hosts = part.sets.iter().filter(|((of, _), _)| *of == Family::Inet);
        let members = of_hosts.flat_map(|(_, set)| &set.members);
        Some(members.map(|net| net.addr()).collect())
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

/// What another network has of the host.
fn add_other(host: &mut HostUplinks, other: NetworkId, found: &UplinkObserved) {
    if let Some(segment) = found.vlan.as_ref().and_then(|vlan| vlan.segment()) {
        host.taken.insert(segment, Link::vlan(other).name());
    }
    if let Some(vxlan) = &found.vxlan
        && let (Some(id), Some(port)) = (vxlan.id, vxlan.port)
    {
        let segment = Segment::Vxlan { id, port };
        host.taken.insert(segment, Link::vxlan(other).name());
    }
    if !found.addresses.is_empty() {
        host.addresses
            .insert(Link::bridge(other).name(), found.addresses.clone());
    }
    let opened = found.nat.iter().flat_map(|nat| &nat.rules.open);
    host.opened.extend(opened.cloned());
}
