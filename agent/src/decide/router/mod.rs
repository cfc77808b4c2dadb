//! The plan for one router on this host: its document × what is there → ordered steps.
//!
//! ```text
//!            host                                     namespace berth-r-<id>
//!   bridge of network A ── btq… ═════════════════════ btr…: A's gateway address ─┐
//!   bridge of network B ── btq… ═════════════════════ btr…: B's gateway address ─┼─ routes, nftables
//!   bridge of the external network ── bte… ══════════ btf…: this host's address, ┘
//!                                                           floating IPs of its ports
//! ```
//!
//! What is missing is made, what is wrong is mended in place. The namespace is the router's alone, so all in it that is not wanted
//! goes. A leg waits for the bridge of its network, and holds up nothing else; a network's tombstone waits until the legs have
//! left its bridge, and a router's waits for nobody. Flows are never dropped but for translations that ended.

mod imagine;
mod leg;
mod neighbour;
mod observed;
pub mod rules;
mod step;
mod wanted;

use std::collections::BTreeSet;

use berth_common::{
    document::{Desired, RouterSpec},
    ids::RouterId,
    message::report::Fault,
};

pub use imagine::imagine;
pub use leg::{End, Leg, LegLink, LegSwitch, RouterSwitch, Side};
pub use neighbour::{Neighbours, neighbours, neighbours_of};
pub use observed::{
    LegObserved, RouterContent, RouterNamespace, RouterObserved, RulesObserved, Translation,
};
pub use step::{RouteEntry, RouterPlan, RouterStep, RouterThen};

use self::wanted::{Wanted, WantedLeg};
use super::network::{OnError, not_ours};

/// The legs that a document asks for: what to look at besides what is the router's by its mark.
#[must_use]
pub fn legs(desired: &Desired<RouterId, RouterSpec>) -> BTreeSet<Leg> {
    let Some(spec) = &desired.spec else {
        return BTreeSet::new();
    };
    let inside = spec
        .interfaces
        .iter()
        .map(|it| Leg::inside(desired.id, it.network_id));
    let outside = spec
        .external_gateway
        .iter()
        .map(|it| Leg::outside(desired.id, it.network_id));
    inside.chain(outside).collect()
}

/// The plan for a router.
#[must_use]
pub fn plan(desired: &Desired<RouterId, RouterSpec>, observed: &RouterObserved) -> RouterPlan {
    let Some(spec) = &desired.spec else {
        return remove(desired.id, observed);
    };
    let wanted = match Wanted::of(desired.id, spec) {
        Ok(wanted) => wanted,
        Err(fault) => return refused(fault),
    };
    match foreign(&wanted, observed) {
        Some(fault) => refused(fault),
        None => converge(desired.id, &wanted, observed),
    }
}

const fn refused(fault: Fault) -> RouterPlan {
    RouterPlan {
        steps: Vec::new(),
        then: RouterThen::Refused(fault),
        on_error: OnError::Stop,
    }
}

/// A link that has the name of a leg's end in a bridge but is not that.
fn foreign(wanted: &Wanted, observed: &RouterObserved) -> Option<Fault> {
    wanted.legs.iter().find_map(|wanted| {
        let link = wanted.leg.host_end();
        let found = observed.link(link).filter(|found| !found.is_own(link))?;
        let alias = found.alias.as_deref();
        Some(not_ours(&link, &found.kind, alias, "router"))
    })
}

/// Plans a step at a time, from what the steps before lead to.
struct Planner {
    router: RouterId,
    now: RouterObserved,
    steps: Vec<RouterStep>,
}

impl Planner {
    fn new(router: RouterId, observed: &RouterObserved) -> Self {
        Self {
            router,
            now: observed.clone(),
            steps: Vec::new(),
        }
    }

    fn step(&mut self, step: RouterStep) {
        imagine(&mut self.now, &step);
        self.steps.push(step);
    }

    /// Makes or mends the namespace.
    fn namespace(&mut self) {
        if self.now.content().is_none() {
            self.step(RouterStep::CreateNamespace(self.router));
        }
        if self
            .now
            .content()
            .is_some_and(|content| !content.loopback_up)
        {
            self.step(RouterStep::LoopbackUp(self.router));
        }
    }

    /// Before there are addresses to send to, and before those that end are taken away: nothing is translated wrongly in between.
    fn rules(&mut self, wanted: &Wanted) {
        let is_set = self
            .now
            .content()
            .and_then(|content| content.rules.as_ref())
            .is_some_and(|rules| rules.is(&wanted.rules));
        if !is_set {
            self.step(RouterStep::SetRules {
                router: self.router,
                rules: wanted.rules.clone(),
            });
        }
    }

    /// Takes away the legs that are not wanted.
    fn drop_legs(&mut self, wanted: &Wanted) {
        let names: BTreeSet<String> = wanted
            .legs
            .iter()
            .map(|wanted| wanted.leg.namespace_end().name())
            .collect();
        let extra: Vec<String> = self
            .now
            .content()
            .into_iter()
            .flat_map(|content| content.links.keys())
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in extra {
            self.step(RouterStep::RemoveLink {
                router: self.router,
                name,
            });
        }
        let hosts: BTreeSet<LegLink> = wanted.legs.iter().map(|it| it.leg.host_end()).collect();
        self.drop_host_ends(|link| !hosts.contains(link));
    }

    fn drop_host_ends(&mut self, which: impl Fn(&LegLink) -> bool) {
        let extra: Vec<LegLink> = self
            .now
            .host_ends
            .iter()
            .filter(|(link, found)| found.is_own(**link) && which(link))
            .map(|(link, _)| *link)
            .collect();
        for link in extra {
            self.step(RouterStep::RemoveHostEnd(link));
        }
    }

    /// Makes or mends a leg whose network has its bridge.
    fn leg(&mut self, wanted: &WantedLeg) {
        let leg = wanted.leg;
        let (host, inside) = (leg.host_end(), leg.namespace_end());
        let is_whole = self.now.link(host).is_some()
            && self
                .now
                .link(inside)
                .is_some_and(|found| found.kind == "veth" && found.mac == Some(wanted.mac));
        if !is_whole {
            if self.now.link(inside).is_some() {
                // The others know it by another Ethernet address, if at all: they are told again.
                self.announced(wanted, &BTreeSet::new());
                self.step(RouterStep::RemoveLink {
                    router: self.router,
                    name: inside.name(),
                });
            }
            if self.now.link(host).is_some() {
                self.step(RouterStep::RemoveHostEnd(host));
            }
            self.step(RouterStep::CreateLeg {
                leg,
                mac: wanted.mac,
                mtu: wanted.mtu,
            });
        }
        self.mend(host, wanted);
        self.mend(inside, wanted);
        self.neighbours(wanted);
    }

    /// Tells a leg that is switched on of the ports on other hosts, and of no others.
    fn neighbours(&mut self, wanted: &WantedLeg) {
        let leg = wanted.leg;
        let told = match leg.side {
            Side::Inside => self.now.neighbours.get(&leg.network),
            Side::Outside => None,
        };
        let wanted = neighbour::known(wanted, told);
        let Some(found) = self.now.link(leg.namespace_end()) else {
            return;
        };
        let set: Neighbours = wanted
            .iter()
            .filter(|(address, mac)| found.neighbours.get(address) != Some(mac))
            .map(|(address, mac)| (*address, *mac))
            .collect();
        let known = found.neighbours.keys();
        let unset: Vec<_> = known
            .filter(|address| !wanted.contains_key(address))
            .copied()
            .collect();
        if !(set.is_empty() && unset.is_empty()) {
            self.step(RouterStep::ChangeNeighbours { leg, set, unset });
        }
    }

    /// Makes a link that is there as it shall be; switches it on last.
    fn mend(&mut self, link: LegLink, wanted: &WantedLeg) {
        let Some(found) = self.now.link(link).cloned() else {
            return;
        };
        let leg = link.leg;
        if found.alias != Some(link.alias()) {
            self.step(RouterStep::Mark(link));
        }
        if !found.unsettled.is_empty() {
            self.step(RouterStep::Settle {
                link,
                switches: found.unsettled,
            });
        }
        if found.mtu != wanted.mtu {
            self.step(RouterStep::SetMtu {
                link,
                mtu: wanted.mtu,
            });
        }
        match link.end {
            End::Host => {
                if found.master != Some(super::names::bridge(leg.network)) {
                    self.step(RouterStep::Plug(leg));
                }
                let is_known = self
                    .now
                    .link(link)
                    .is_some_and(|found| found.behind.contains(&wanted.mac));
                if !is_known {
                    self.step(RouterStep::Anchor {
                        leg,
                        mac: wanted.mac,
                    });
                }
            }
            End::Namespace => {
                for address in found.addresses.difference(&wanted.addresses) {
                    self.step(RouterStep::RemoveAddress {
                        leg,
                        address: *address,
                    });
                }
                for address in wanted.addresses.difference(&found.addresses) {
                    self.step(RouterStep::AddAddress {
                        leg,
                        address: *address,
                    });
                }
            }
        }
        if !found.up {
            self.step(RouterStep::SetUp(link));
        }
    }

    /// Sets the routes over the legs that are there.
    fn routes(&mut self, wanted: &Wanted) {
        let Some(content) = self.now.content() else {
            return;
        };
        let found = content.routes.clone();
        let possible: BTreeSet<RouteEntry> = wanted
            .routes
            .iter()
            .filter(|route| content.links.contains_key(&route.link))
            .cloned()
            .collect();
        for route in found.difference(&possible) {
            self.step(RouterStep::RemoveRoute {
                router: self.router,
                route: route.clone(),
            });
        }
        // What is on a link comes before what goes by way of it.
        let (direct, others): (Vec<&RouteEntry>, Vec<_>) = possible
            .difference(&found)
            .partition(|route| route.via.is_none());
        for route in direct.into_iter().chain(others) {
            self.step(RouterStep::AddRoute {
                router: self.router,
                route: route.clone(),
            });
        }
    }

    fn switches(&mut self) {
        let unsettled = self
            .now
            .content()
            .map(|content| content.unsettled.clone())
            .unwrap_or_default();
        if !unsettled.is_empty() {
            self.step(RouterStep::Switch {
                router: self.router,
                switches: unsettled,
            });
        }
    }

    /// Ends the flows whose translation ended.
    fn flows(&mut self, wanted: &Wanted) {
        let ended: BTreeSet<Translation> = self
            .now
            .content()
            .into_iter()
            .flat_map(|content| &content.flows)
            .filter(|flow| !wanted.translates(**flow))
            .copied()
            .collect();
        if !ended.is_empty() {
            self.step(RouterStep::ForgetFlows {
                router: self.router,
                flows: ended,
            });
        }
    }

    /// Tells the external network of addresses that are new here.
    fn announce(&mut self, wanted: &Wanted) {
        let there = wanted
            .outside()
            .filter(|outside| self.now.link(outside.leg.namespace_end()).is_some());
        if let Some(outside) = there {
            let addresses = outside.addresses.iter().map(ipnet::IpNet::addr).collect();
            self.announced(outside, &addresses);
        }
    }

    /// Makes these the addresses that the external network was told of.
    fn announced(&mut self, leg: &WantedLeg, addresses: &BTreeSet<std::net::IpAddr>) {
        let told = self
            .now
            .content()
            .and_then(|content| content.rules.as_ref())
            .map(|rules| rules.announced.clone())
            .unwrap_or_default();
        if leg.leg.side == Side::Outside && told != *addresses {
            self.step(RouterStep::Announce {
                leg: leg.leg,
                mac: leg.mac,
                addresses: addresses.difference(&told).copied().collect(),
                announced: addresses.clone(),
            });
        }
    }

    /// Starts what advertises the router in IPv6, afresh if it shall say something else; or stops it.
    fn advertiser(&mut self, wanted: &Wanted) {
        let router = self.router;
        let Some(files) = &wanted.advertiser else {
            self.drop_advertiser();
            return;
        };
        let runs = self.now.advertiser.process.as_ref();
        let is_right = runs.is_some_and(|it| it.in_namespace && it.loaded.as_ref() == Some(files));
        if is_right && self.now.advertiser.files.as_ref() == Some(files) {
            return;
        }
        if runs.is_some() {
            self.step(RouterStep::StopAdvertiser(router));
        }
        if self.now.advertiser.files.as_ref() != Some(files) {
            self.step(RouterStep::WriteAdvertiser {
                router,
                files: files.clone(),
            });
        }
        self.step(RouterStep::StartAdvertiser(router));
    }

    fn drop_advertiser(&mut self) {
        if self.now.advertiser.process.is_some() {
            self.step(RouterStep::StopAdvertiser(self.router));
        }
        if self.now.advertiser.directory || self.now.advertiser.files.is_some() {
            self.step(RouterStep::RemoveFiles(self.router));
        }
    }
}

fn converge(router: RouterId, wanted: &Wanted, observed: &RouterObserved) -> RouterPlan {
    let mut planner = Planner::new(router, observed);
    planner.namespace();
    planner.rules(wanted);
    planner.drop_legs(wanted);
    let (possible, missing): (Vec<&WantedLeg>, Vec<_>) = wanted
        .legs
        .iter()
        .partition(|wanted| is_possible(wanted, observed));
    for wanted in &possible {
        planner.leg(wanted);
    }
    planner.routes(wanted);
    planner.switches();
    planner.flows(wanted);
    planner.announce(wanted);
    planner.advertiser(wanted);
    RouterPlan {
        steps: planner.steps,
        then: missing.first().map_or(RouterThen::Converged, |missing| {
            RouterThen::Wait(missing.leg.network)
        }),
        on_error: OnError::Stop,
    }
}

/// Whether a leg can be in its network now. One that is there stays.
fn is_possible(wanted: &WantedLeg, observed: &RouterObserved) -> bool {
    let leg = wanted.leg;
    let bridge = super::names::bridge(leg.network);
    let is_there = || {
        let host = observed.link(leg.host_end());
        let inside = observed.link(leg.namespace_end());
        host.is_some_and(|found| found.master.as_ref() == Some(&bridge))
            && inside.is_some_and(|found| found.mac == Some(wanted.mac))
    };
    observed.bridges.contains(&leg.network) && (!observed.unfiltered.contains(&leg) || is_there())
}

fn remove(router: RouterId, observed: &RouterObserved) -> RouterPlan {
    let mut planner = Planner::new(router, observed);
    planner.drop_advertiser();
    // The links first: a namespace lives on for as long as anything is in it.
    let links: Vec<String> = observed
        .content()
        .into_iter()
        .flat_map(|content| content.links.keys().cloned())
        .collect();
    for name in links {
        planner.step(RouterStep::RemoveLink { router, name });
    }
    planner.drop_host_ends(|_| true);
    if observed.namespace != RouterNamespace::Absent {
        planner.step(RouterStep::DeleteNamespace(router));
    }
    RouterPlan {
        steps: planner.steps,
        then: RouterThen::Gone,
        on_error: OnError::CarryOn,
    }
}

#[cfg(test)]
mod tests;
