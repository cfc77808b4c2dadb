//! What is there of a router, as plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use berth_common::ids::NetworkId;
use ipnet::IpNet;

use super::{
    Neighbours,
    leg::{Leg, LegLink, LegSwitch, RouterSwitch},
    rules::Rules,
    step::RouteEntry,
};
use crate::decide::network::DhcpObserved;

/// What is there of a router. The default: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouterObserved {
    /// Its namespace.
    pub namespace: RouterNamespace,
    /// The links in the host's own namespace that have the name of an end of one of its legs: of those that were asked for, and of
    /// all that carry its alias.
    pub host_ends: BTreeMap<LegLink, LegObserved>,
    /// Those of the networks that were asked for whose bridge is there, and is berth's.
    pub bridges: BTreeSet<NetworkId>,
    /// The ports on other hosts that the documents of its networks tell of ([`super::neighbours`]).
    pub neighbours: BTreeMap<NetworkId, Neighbours>,
    /// Those of its legs that the packet filters of their networks do not know yet: what they send to other hosts would have the
    /// Ethernet address that the router has on every host.
    pub unfiltered: BTreeSet<Leg>,
    /// What advertises it in IPv6.
    pub advertiser: DhcpObserved,
}

/// A router's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RouterNamespace {
    /// There is nothing of that name.
    #[default]
    Absent,
    /// There is a file of that name, but no namespace behind it.
    Empty,
    /// It is there.
    Present(RouterContent),
}

/// What is in a router's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouterContent {
    /// Whether its loopback link is switched on.
    pub loopback_up: bool,
    /// Those of its switches that are not as they shall be.
    pub unsettled: BTreeSet<RouterSwitch>,
    /// The links in it that have a name of ours, by name. All of them are this router's: nobody else makes links here.
    pub links: BTreeMap<String, LegObserved>,
    /// The routes that somebody set; those that the kernel makes of addresses are not among them.
    pub routes: BTreeSet<RouteEntry>,
    /// Its packet filter.
    pub rules: Option<RulesObserved>,
    /// The translations that packets pass by at the moment.
    pub flows: BTreeSet<Translation>,
}

/// A link of a leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegObserved {
    /// The kernel's name of its kind; empty for hardware.
    pub kind: String,
    /// Its alias.
    pub alias: Option<String>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether it is switched on.
    pub up: bool,
    /// Name of the bridge it is in.
    pub master: Option<String>,
    /// The Ethernet addresses that the bridge it is in was told to be behind it.
    pub behind: BTreeSet<[u8; 6]>,
    /// Those of its switches that are not as they shall be.
    pub unsettled: BTreeSet<LegSwitch>,
    /// The addresses it was given.
    pub addresses: BTreeSet<IpNet>,
    /// The neighbours it was told of; those it learned of are not among them.
    pub neighbours: Neighbours,
}

impl LegObserved {
    /// Whether a link found under the name of an end in a bridge is that end.
    #[must_use]
    pub fn is_own(&self, link: LegLink) -> bool {
        let marked = match &self.alias {
            Some(alias) => *alias == link.alias(),
            None => self.mac == Some(link.own_mac()),
        };
        self.kind == "veth" && marked
    }
}

/// The packet filter in a router's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RulesObserved {
    /// What the rules were made from ([`Rules::mark`]).
    pub mark: Option<String>,
    /// How many rules there are.
    pub count: usize,
    /// Which addresses are translated for what comes in.
    pub floating_in: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// And for what goes out.
    pub floating_out: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The addresses that the external network was told of.
    pub announced: BTreeSet<IpAddr>,
}

impl RulesObserved {
    /// Whether it is as wanted.
    #[must_use]
    pub fn is(&self, wanted: &Rules) -> bool {
        let out = wanted
            .floating
            .iter()
            .map(|(floating, fixed)| (*fixed, *floating));
        self.mark.as_deref() == Some(&*wanted.mark())
            && self.count == wanted.count()
            && self.floating_in == wanted.floating
            && self.floating_out == out.collect()
    }
}

/// An address that flows are translated to or from, for an address inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Translation {
    /// As it is seen outside.
    pub outside: Ipv4Addr,
    /// As it is inside.
    pub inside: Ipv4Addr,
}

impl RouterObserved {
    /// What is in the namespace, if there is one.
    #[must_use]
    pub const fn content(&self) -> Option<&RouterContent> {
        match &self.namespace {
            RouterNamespace::Present(content) => Some(content),
            RouterNamespace::Absent | RouterNamespace::Empty => None,
        }
    }

    /// The link that was found under the name of one of the router's.
    #[must_use]
    pub fn link(&self, link: LegLink) -> Option<&LegObserved> {
        match link.end {
            super::End::Host => self.host_ends.get(&link),
            super::End::Namespace => self.content()?.links.get(&link.name()),
        }
    }
}
