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

/// What the ports' chains of one network were rendered to, and from what.
#[derive(Debug, Clone, Default)]
pub struct Rendered {
    common: Option<Common>,
    ports: BTreeMap<PortId, Port>,
}

/// What a port's chains are known by.
#[derive(Debug, Clone)]
struct Port {
    from: NetworkPort,
    chains: Vec<(Name, Comments)>,
    links: Vec<(Key, String)>,
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
        let chains = self.ports.values().flat_map(|port| &port.chains);
        let links = self.ports.values().flat_map(|port| &port.links);
        let counted = self.ports.values().flat_map(|port| &port.counted);
        let shall = Shall {
            chains: of_rest
                .iter()
                .chain(chains)
                .map(|(name, comments)| (name, comments))
                .collect(),
            links: rest
                .links
                .iter()
                .chain(links.map(|(key, target)| (key, target)))
                .collect(),
            sets: rest.sets.iter().collect(),
            counted: counted.collect(),
        };
        let mut chains = std::mem::take(&mut rest.chains);
        let mut port_of = None;
        let rules = |name: &Name| -> Vec<Rule> {
            if !chains.contains_key(name) {
                let port_of = port_of.get_or_insert_with(|| self.by_chain());
                if let Some(port) = port_of.get(name) {
                    chains.extend(filter.of_port(port).chains);
                }
            }
            chains.remove(name).unwrap_or_default()
        };
        part::change(network, base, &shall, found, rules)
    }

    /// Renders what is not known yet, and forgets what is no more.
    fn render(&mut self, filter: &mut Filter<'_>, found: &Part) {
        let common = filter.common();
        if self.common.as_ref() != Some(&common) {
            self.ports.clear();
            self.common = Some(common);
        }
        for port in filter.ports() {
            if self
                .ports
                .get(&port.id)
                .is_some_and(|known| known.from == *port)
            {
                continue;
            }
            let wanted = filter.of_port(port);
            let chains = wanted.chains.into_iter().map(|(name, rules)| {
                let comments = comments(&rules);
                // What is there is remembered anyway.
                let there = found.chains.get(&name).filter(|there| **there == comments);
                let comments = there.map_or(comments, Arc::clone);
                (name, comments)
            });
            let rendered = Port {
                from: port.clone(),
                chains: chains.collect(),
                links: wanted.links.into_iter().collect(),
                counted: wanted.counted.into_iter().collect(),
            };
            self.ports.insert(port.id, rendered);
        }
        if self.ports.len() > filter.ports().len() {
            let ids: BTreeSet<PortId> = filter.ports().iter().map(|port| port.id).collect();
            self.ports.retain(|id, _| ids.contains(id));
        }
    }

    /// The ports by the names of their chains.
    fn by_chain(&self) -> BTreeMap<&Name, &NetworkPort> {
        let ports = self.ports.values();
        ports
            .flat_map(|port| port.chains.iter().map(|(name, _)| (name, &port.from)))
            .collect()
    }
}
