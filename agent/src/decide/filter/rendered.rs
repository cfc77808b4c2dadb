//! What ports' chains were rendered to, kept from one plan to the next: of a network with many ports hardly any changes, and to know
//! that its chains are as they shall be takes the digests of all their rules.
//!
//! It decides nothing: with an empty one a plan is the same, and takes longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use berth_common::{
    document::NetworkPort,
    ids::{NetworkId, PortId},
};

use super::{
    nft::Rule,
    part::{self, Base, Change, Comments, FilterObserved, Key, Name, Part, Shall, comments},
    wanted::{Common, Filter},
};

/// What the ports' chains of one network were rendered to, and from what. What is known of all ports is together and in order, as
/// what is found is: so both are compared side by side, and nothing has to be looked for.
#[derive(Debug, Clone, Default)]
pub struct Rendered {
    common: Option<Common>,
    ports: BTreeMap<PortId, Port>,
    /// Chains, with whose they are.
    chains: BTreeMap<Name, (PortId, Comments)>,
    links: BTreeMap<Key, String>,
    counted: BTreeSet<String>,
}

/// What a port was rendered to, by name.
#[derive(Debug, Clone)]
struct Port {
    from: NetworkPort,
    chains: Vec<Name>,
    links: Vec<Key>,
    counted: Vec<String>,
}

impl Rendered {
    /// The change towards a network's document; `None`: everything is as it shall be.
    pub(super) fn change(
        &mut self,
        network: NetworkId,
        mut filter: Filter<'_>,
        base: Base,
        found: &FilterObserved,
    ) -> Option<Change> {
        self.render(&mut filter, &found.part);
        let mut rest = filter.of_network();
        let of_rest: Vec<(Name, Comments)> = rest
            .chains
            .iter()
            .map(|(name, rules)| (name.clone(), comments(rules)))
            .collect();
        let chains = of_rest.iter().map(|(name, comments)| (name, comments));
        let of_ports = self.chains.iter();
        let of_ports = of_ports.map(|(name, (_, comments))| (name, comments));
        let shall = Shall {
            chains: in_order(chains, of_ports),
            links: in_order(rest.links.iter(), self.links.iter()),
            sets: rest.sets.iter().collect(),
            counted: self.counted.iter().map(|tap| (tap, ())).collect(),
        };
        let mut chains = std::mem::take(&mut rest.chains);
        let rules = |name: &Name| -> Vec<Rule> {
            if !chains.contains_key(name)
                && let Some((id, _)) = self.chains.get(name)
                && let Some(port) = self.ports.get(id)
            {
                chains.extend(filter.of_port(&port.from).chains);
            }
            chains.remove(name).unwrap_or_default()
        };
        part::change(network, base, &shall, found, rules)
    }

    /// Renders what is not known yet, and forgets what is no more.
    fn render(&mut self, filter: &mut Filter<'_>, found: &Part) {
        let common = filter.common();
        if self.common.as_ref() != Some(&common) {
            *self = Self {
                common: Some(common),
                ..Self::default()
            };
        }
        for port in filter.ports() {
            let known = self.ports.get(&port.id);
            if known.is_none_or(|known| known.from != *port) {
                self.forget(port.id);
                self.render_port(filter, port, found);
            }
        }
        if self.ports.len() > filter.ports().len() {
            let ids: BTreeSet<PortId> = filter.ports().iter().map(|port| port.id).collect();
            let gone = self.ports.keys().filter(|id| !ids.contains(id));
            for id in gone.copied().collect::<Vec<_>>() {
                self.forget(id);
            }
        }
    }

    fn render_port(&mut self, filter: &mut Filter<'_>, port: &NetworkPort, found: &Part) {
        let wanted = filter.of_port(port);
        self.ports.insert(
            port.id,
            Port {
                from: port.clone(),
                chains: wanted.chains.keys().cloned().collect(),
                links: wanted.links.keys().cloned().collect(),
                counted: wanted.counted.iter().cloned().collect(),
            },
        );
        let chains = wanted.chains.into_iter().map(|(name, rules)| {
            let comments = comments(&rules);
            // What is there is remembered anyway.
            let there = found.chains.get(&name).filter(|there| **there == comments);
            let comments = there.map_or(comments, Arc::clone);
            (name, (port.id, comments))
        });
        self.chains.extend(chains);
        self.links.extend(wanted.links);
        self.counted.extend(wanted.counted);
    }

    fn forget(&mut self, port: PortId) {
        let Some(Port {
            chains,
            links,
            counted,
            ..
        }) = self.ports.remove(&port)
        else {
            return;
        };
        chains.iter().for_each(|name| {
            self.chains.remove(name);
        });
        links.iter().for_each(|key| {
            self.links.remove(key);
        });
        counted.iter().for_each(|tap| {
            self.counted.remove(tap);
        });
    }
}

/// Both, in the order of their keys, which each of them is in.
fn in_order<'a, K: Ord, V>(
    some: impl Iterator<Item = (&'a K, &'a V)>,
    others: impl Iterator<Item = (&'a K, &'a V)>,
) -> Vec<(&'a K, &'a V)> {
    let mut all: Vec<_> = some.chain(others).collect();
    all.sort_by_key(|(key, _)| *key);
    all
}
