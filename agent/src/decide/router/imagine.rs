//! What a step leads to, as far as a plan can know: a model of a router's namespace in data. The planner goes on from it after each
//! step, and hosts that exist only in tests are made of it too.

use super::{
    Neighbours,
    leg::{End, LegLink, RouterSwitch},
    observed::{LegObserved, RouterContent, RouterNamespace, RouterObserved, RulesObserved},
    rules::Rules,
    step::RouterStep,
};
use crate::decide::{names, network::DhcpProcess};

/// Changes what was observed to what will be observed once the step is done. A step on something that is not there changes nothing.
pub fn imagine(observed: &mut RouterObserved, step: &RouterStep) {
    match step {
        RouterStep::CreateNamespace(_) => create_namespace(observed),
        RouterStep::LoopbackUp(_) => within(observed, |content| content.loopback_up = true),
        RouterStep::SetRules { rules, .. } => within(observed, |content| set_rules(content, rules)),
        RouterStep::CreateLeg { leg, mac, mtu } => {
            if observed.content().is_none() {
                return;
            }
            let (host, inside) = (leg.host_end(), leg.namespace_end());
            observed
                .host_ends
                .insert(host, fresh(host, host.own_mac(), *mtu));
            within(observed, |content| {
                content
                    .links
                    .insert(inside.name(), fresh(inside, *mac, *mtu));
            });
        }
        RouterStep::Mark(link) => change(observed, *link, |found| found.alias = Some(link.alias())),
        RouterStep::Settle { link, switches } => change(observed, *link, |found| {
            found.unsettled.retain(|switch| !switches.contains(switch));
        }),
        RouterStep::SetMtu { link, mtu } => change(observed, *link, |found| found.mtu = *mtu),
        RouterStep::Plug(leg) => {
            if observed.bridges.contains(&leg.network) {
                change(observed, leg.host_end(), |found| {
                    found.master = Some(names::bridge(leg.network));
                    found.behind.clear();
                });
            }
        }
        RouterStep::Anchor { leg, mac } => change(observed, leg.host_end(), |found| {
            if found.master.is_some() {
                found.behind.insert(*mac);
            }
        }),
        RouterStep::AddAddress { leg, address } => {
            change(observed, leg.namespace_end(), |found| {
                found.addresses.insert(*address);
            });
        }
        RouterStep::RemoveAddress { leg, address } => {
            change(observed, leg.namespace_end(), |found| {
                found.addresses.remove(address);
                // With the last address of IPv4 the kernel forgets all neighbours of it.
                if !found.addresses.iter().any(|it| it.addr().is_ipv4()) {
                    found.neighbours.retain(|address, _| address.is_ipv6());
                }
            });
        }
        RouterStep::ChangeNeighbours { leg, set, unset } => {
            change(observed, leg.namespace_end(), |found| {
                found.neighbours.extend(set);
                found
                    .neighbours
                    .retain(|address, _| !unset.contains(address));
            });
        }
        RouterStep::SetUp(link) => change(observed, *link, |found| found.up = true),
        RouterStep::AddRoute { route, .. } => within(observed, |content| {
            if content.links.contains_key(&route.link) {
                content.routes.insert(route.clone());
            }
        }),
        RouterStep::RemoveRoute { route, .. } => within(observed, |content| {
            content.routes.remove(route);
        }),
        RouterStep::Switch { switches, .. } => within(observed, |content| {
            content
                .unsettled
                .retain(|switch| !switches.contains(switch));
        }),
        RouterStep::Announce { announced, .. } => within(observed, |content| {
            if let Some(rules) = &mut content.rules {
                rules.announced.clone_from(announced);
            }
        }),
        RouterStep::ForgetFlows { flows, .. } => within(observed, |content| {
            content.flows.retain(|flow| !flows.contains(flow));
        }),
        RouterStep::WriteAdvertiser { files, .. } => {
            observed.advertiser.directory = true;
            observed.advertiser.files = Some(files.clone());
        }
        RouterStep::StartAdvertiser(_) => {
            if observed.content().is_some() && observed.advertiser.files.is_some() {
                observed.advertiser.process = Some(DhcpProcess {
                    loaded: observed.advertiser.files.clone(),
                    in_namespace: true,
                });
            }
        }
        RouterStep::StopAdvertiser(_) => observed.advertiser.process = None,
        RouterStep::RemoveFiles(_) => {
            observed.advertiser.directory = false;
            observed.advertiser.files = None;
            if let Some(process) = &mut observed.advertiser.process {
                process.loaded = None;
            }
        }
        RouterStep::RemoveLink { name, .. } => remove_link(observed, name),
        RouterStep::RemoveHostEnd(link) => remove_host_end(observed, *link),
        RouterStep::DeleteNamespace(_) => {
            let links: Vec<String> = observed
                .content()
                .into_iter()
                .flat_map(|content| content.links.keys().cloned())
                .collect();
            for name in links {
                remove_link(observed, &name);
            }
            observed.namespace = RouterNamespace::Absent;
            if let Some(process) = &mut observed.advertiser.process {
                process.in_namespace = false;
            }
        }
    }
}

fn create_namespace(observed: &mut RouterObserved) {
    if observed.content().is_some() {
        return;
    }
    observed.namespace = RouterNamespace::Present(RouterContent {
        unsettled: RouterSwitch::ALL.into(),
        ..RouterContent::default()
    });
    if let Some(process) = &mut observed.advertiser.process {
        process.in_namespace = false;
    }
}

fn set_rules(content: &mut RouterContent, rules: &Rules) {
    let announced = content
        .rules
        .take()
        .map(|rules| rules.announced)
        .unwrap_or_default();
    content.rules = Some(RulesObserved {
        mark: Some(rules.mark()),
        count: rules.count(),
        floating_in: rules.floating.clone(),
        floating_out: rules
            .floating
            .iter()
            .map(|(floating, fixed)| (*fixed, *floating))
            .collect(),
        announced,
    });
}

/// An end of a leg as the kernel makes it.
fn fresh(link: LegLink, mac: [u8; 6], mtu: u32) -> LegObserved {
    LegObserved {
        kind: "veth".to_owned(),
        alias: None,
        mac: Some(mac),
        mtu,
        up: false,
        master: None,
        behind: std::collections::BTreeSet::new(),
        unsettled: link.switches().iter().copied().collect(),
        addresses: std::collections::BTreeSet::new(),
        neighbours: Neighbours::new(),
    }
}

/// Both ends go, and all that was by way of it.
fn remove_link(observed: &mut RouterObserved, name: &str) {
    within(observed, |content| {
        content.links.remove(name);
        content.routes.retain(|route| route.link != name);
    });
    observed
        .host_ends
        .retain(|link, found| link.leg.namespace_end().name() != name || !found.is_own(*link));
}

fn remove_host_end(observed: &mut RouterObserved, link: LegLink) {
    let was_own = observed
        .host_ends
        .get(&link)
        .is_some_and(|found| found.is_own(link));
    if was_own {
        remove_link(observed, &link.leg.namespace_end().name());
    }
}

fn within(observed: &mut RouterObserved, change: impl FnOnce(&mut RouterContent)) {
    if let RouterNamespace::Present(content) = &mut observed.namespace {
        change(content);
    }
}

fn change(observed: &mut RouterObserved, link: LegLink, change: impl FnOnce(&mut LegObserved)) {
    match link.end {
        End::Host => {
            if let Some(found) = observed.host_ends.get_mut(&link) {
                change(found);
            }
        }
        End::Namespace => within(observed, |content| {
            if let Some(found) = content.links.get_mut(&link.name()) {
                change(found);
            }
        }),
    }
}
