//! What belongs to one network in berth's tables of nftables, as it shall be and as it is; and one change from this to that.
//!
//! A chain is known by the comments of its rules, which contain digests of what they say ([`Rule::comment`]). So what shall be and
//! what is are compared without understanding what nft lists, and a change names only what differs.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::ids::NetworkId;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    base, names,
    nft::{Family, Rule, TABLE, net_json},
    reason::Reason,
    wanted::RouterLeg,
};

/// A chain or a named map or set.
pub type Name = (Family, String);
/// A link in a named map: which map, and the link's name.
pub type Key = (Family, String, String);

/// What is there of a network. The default: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// Chains: the comments of their rules, in order.
    pub chains: BTreeMap<Name, Vec<String>>,
    /// Sets of addresses.
    pub sets: BTreeMap<String, AddressSet>,
    /// The chains to which the named maps lead from its links.
    pub links: BTreeMap<Key, String>,
    /// The reasons for which packets of its ports are counted, by tap.
    pub counted: BTreeMap<String, BTreeSet<Reason>>,
}

/// A set of addresses of one version of IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSet {
    /// Of which version.
    pub version: Version,
    /// No two of them overlap.
    pub members: BTreeSet<IpNet>,
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// Its addresses, in nft's words.
    #[must_use]
    pub const fn set_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// The version of an address.
    #[must_use]
    pub const fn of(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// How the part of a network shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Chains with their rules.
    pub chains: BTreeMap<Name, Vec<Rule>>,
    /// Sets of addresses.
    pub sets: BTreeMap<String, AddressSet>,
    /// What the named maps say of its links.
    pub links: BTreeMap<Key, String>,
    /// The taps whose packets are counted.
    pub counted: BTreeSet<String>,
}

impl Wanted {
    /// What is there once this is carried out.
    #[must_use]
    pub fn part(&self) -> Part {
        let chains = self.chains.iter();
        Part {
            chains: chains
                .map(|(name, rules)| (name.clone(), rules.iter().map(Rule::comment).collect()))
                .collect(),
            sets: self.sets.clone(),
            links: self.links.clone(),
            counted: self
                .counted
                .iter()
                .map(|tap| (tap.clone(), Reason::ALL.into_iter().collect()))
                .collect(),
        }
    }
}

/// What becomes of what there is for the whole host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// It stays as it is.
    Stays,
    /// All of it is made, before anything else.
    Made(base::Stateful),
    /// It goes with the tables, unless they hold something of another network when the change is carried out: what was there when
    /// it was planned says nothing of that.
    Goes,
}

/// One transaction: what differs, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The network it is for.
    pub network: NetworkId,
    /// What becomes of what is the host's.
    pub base: Base,
    /// Chains to make or to fill anew.
    pub chains: BTreeMap<Name, Vec<Rule>>,
    /// Those of them that are there.
    pub refilled: BTreeSet<Name>,
    /// Chains to remove.
    pub gone_chains: BTreeSet<Name>,
    /// Sets to make.
    pub sets: BTreeMap<String, Version>,
    /// Sets to remove.
    pub gone_sets: BTreeSet<String>,
    /// Members to put into sets.
    pub members: BTreeMap<String, BTreeSet<IpNet>>,
    /// Members to take out of sets that stay.
    pub gone_members: BTreeMap<String, BTreeSet<IpNet>>,
    /// What the named maps shall say.
    pub links: BTreeMap<Key, String>,
    /// What they shall not say any more.
    pub gone_links: BTreeMap<Key, String>,
    /// Counters to begin.
    pub counted: BTreeMap<String, BTreeSet<Reason>>,
    /// Counters to end.
    pub gone_counted: BTreeMap<String, BTreeSet<Reason>>,
    /// Objects in berth's tables that nobody knows, to remove.
    pub strays: BTreeSet<Stray>,
}

/// An object in berth's tables that is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// In which table.
    pub family: Family,
    /// What it is, in nft's words.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

/// The change that makes `found` as `wanted`; `None`: it is.
#[must_use]
pub fn change(
    network: NetworkId,
    base: Base,
    wanted: &Wanted,
    found: &FilterObserved,
) -> Option<Change> {
    let shall = wanted.part();
    if base == Base::Stays && shall == found.part && found.strays.is_empty() {
        return None;
    }
    let strays = found.strays.clone();
    let found = &found.part;
    let mut change = Change {
        network,
        base,
        chains: BTreeMap::new(),
        refilled: BTreeSet::new(),
        gone_chains: BTreeSet::new(),
        sets: BTreeMap::new(),
        gone_sets: BTreeSet::new(),
        members: BTreeMap::new(),
        gone_members: BTreeMap::new(),
        links: missing(&shall.links, &found.links),
        gone_links: missing(&found.links, &shall.links),
        counted: BTreeMap::new(),
        gone_counted: BTreeMap::new(),
        strays,
    };
    for (name, rules) in &wanted.chains {
        if found.chains.get(name) != shall.chains.get(name) {
            change.chains.insert(name.clone(), rules.clone());
            if found.chains.contains_key(name) {
                change.refilled.insert(name.clone());
            }
        }
    }
    let gone = |name: &&Name| !shall.chains.contains_key(*name);
    change.gone_chains = found.chains.keys().filter(gone).cloned().collect();
    for (name, set) in &shall.sets {
        let there = found
            .sets
            .get(name)
            .filter(|there| there.version == set.version);
        if there.is_none() {
            change.sets.insert(name.clone(), set.version);
        }
        let empty = BTreeSet::new();
        let members = there.map_or(&empty, |there| &there.members);
        put(&mut change.members, name, set.members.difference(members));
        put(
            &mut change.gone_members,
            name,
            members.difference(&set.members),
        );
    }
    let gone = |name: &&String| !shall.sets.contains_key(*name);
    change.gone_sets = found.sets.keys().filter(gone).cloned().collect();
    difference(&mut change.counted, &shall.counted, &found.counted);
    difference(&mut change.gone_counted, &found.counted, &shall.counted);
    Some(change)
}

/// The entries of `these` that are not in `those`.
fn missing<K: Ord + Clone, V: PartialEq + Clone>(
    these: &BTreeMap<K, V>,
    those: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    these
        .iter()
        .filter(|(key, value)| those.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn put<'a, T: Ord + Copy + 'a>(
    into: &mut BTreeMap<String, BTreeSet<T>>,
    name: &str,
    values: impl Iterator<Item = &'a T>,
) {
    let values: BTreeSet<T> = values.copied().collect();
    if !values.is_empty() {
        into.insert(name.to_owned(), values);
    }
}

fn difference(
    into: &mut BTreeMap<String, BTreeSet<Reason>>,
    these: &BTreeMap<String, BTreeSet<Reason>>,
    those: &BTreeMap<String, BTreeSet<Reason>>,
) {
    let none = BTreeSet::new();
    for (tap, reasons) in these {
        let there = those.get(tap).unwrap_or(&none);
        put(into, tap, reasons.difference(there));
    }
}

impl Part {
    /// What is there after the change.
    pub fn apply(&mut self, change: &Change) {
        self.chains
            .retain(|name, _| !change.gone_chains.contains(name));
        for (name, rules) in &change.chains {
            let comments = rules.iter().map(Rule::comment).collect();
            self.chains.insert(name.clone(), comments);
        }
        self.sets.retain(|name, _| !change.gone_sets.contains(name));
        for (name, version) in &change.sets {
            let set = AddressSet {
                version: *version,
                members: BTreeSet::new(),
            };
            self.sets.insert(name.clone(), set);
        }
        for (name, members) in &change.gone_members {
            if let Some(set) = self.sets.get_mut(name) {
                set.members.retain(|member| !members.contains(member));
            }
        }
        for (name, members) in &change.members {
            if let Some(set) = self.sets.get_mut(name) {
                set.members.extend(members);
            }
        }
        self.links
            .retain(|key, _| !change.gone_links.contains_key(key));
        self.links.extend(change.links.clone());
        for (tap, reasons) in &change.gone_counted {
            if let Some(counted) = self.counted.get_mut(tap) {
                counted.retain(|reason| !reasons.contains(reason));
            }
        }
        for (tap, reasons) in &change.counted {
            self.counted.entry(tap.clone()).or_default().extend(reasons);
        }
        self.counted.retain(|_, reasons| !reasons.is_empty());
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Change {
    /// How many objects it makes, changes or removes.
    #[must_use]
    pub fn objects(&self) -> usize {
        let sizes = |sets: &BTreeMap<String, BTreeSet<IpNet>>| -> usize {
            sets.values().map(BTreeSet::len).sum()
        };
        self.chains.len()
            + self.gone_chains.len()
            + self.sets.len()
            + self.gone_sets.len()
            + sizes(&self.members)
            + sizes(&self.gone_members)
            + self.links.len()
            + self.gone_links.len()
            + self.counted.len()
            + self.gone_counted.len()
            + self.strays.len()
    }

    /// What `nft -j -f -` reads: one transaction. Whatever it names is made before and removed after.
    #[must_use]
    pub fn commands(&self) -> Value {
        let mut commands = match self.base {
            Base::Made(stateful) => base::commands(stateful),
            Base::Stays | Base::Goes => Vec::new(),
        };
        let chains = self.chains.keys();
        commands.extend(chains.map(|name| json!({ "add": { "chain": chain(name) } })));
        for (name, version) in &self.sets {
            commands.push(json!({ "add": { "set": {
                "family": "bridge", "table": TABLE, "name": name,
                "type": version.set_type(), "flags": ["interval"],
            } } }));
        }
        for ((family, map, link), target) in &self.gone_links {
            let elements = json!([[link, verdict(target)]]);
            commands.push(json!({ "delete": { "element": element(*family, map, &elements) } }));
        }
        let emptied = self.refilled.iter().chain(&self.gone_chains);
        commands.extend(emptied.map(|name| json!({ "flush": { "chain": chain(name) } })));
        for (verb, sets) in [("delete", &self.gone_members), ("add", &self.members)] {
            for (name, members) in sets {
                let elements: Vec<Value> = members.iter().copied().map(net_json).collect();
                let elements = element(Family::Bridge, name, &json!(elements));
                commands.push(json!({ verb: { "element": elements } }));
            }
        }
        for (name, rules) in &self.chains {
            commands.extend(rules.iter().map(|rule| rule.add(name.0, &name.1)));
        }
        for (verb, counted) in [("delete", &self.gone_counted), ("add", &self.counted)] {
            for (reason, taps) in by_reason(counted) {
                let elements = element(Family::Bridge, &reason.set(), &json!(taps));
                commands.push(json!({ verb: { "element": elements } }));
            }
        }
        for ((family, map, link), target) in &self.links {
            let elements = json!([[link, verdict(target)]]);
            commands.push(json!({ "add": { "element": element(*family, map, &elements) } }));
        }
        let chains = self.gone_chains.iter();
        commands.extend(chains.map(|name| json!({ "delete": { "chain": chain(name) } })));
        for name in &self.gone_sets {
            commands.push(json!({ "delete": { "set": {
                "family": "bridge", "table": TABLE, "name": name,
            } } }));
        }
        let chains = self.strays.iter().filter(|stray| stray.kind == "chain");
        commands.extend(chains.map(|stray| json!({ "flush": { "chain": stray.json() } })));
        // Chains come first: they may name maps and sets.
        commands.extend(
            self.strays
                .iter()
                .map(|stray| json!({ "delete": { stray.kind: stray.json() } })),
        );
        json!({ "nftables": commands })
    }
}

impl Stray {
    fn json(&self) -> Value {
        json!({ "family": self.family.as_str(), "table": TABLE, "name": self.name })
    }
}

fn by_reason(counted: &BTreeMap<String, BTreeSet<Reason>>) -> BTreeMap<Reason, Vec<&str>> {
    let mut taps: BTreeMap<Reason, Vec<&str>> = BTreeMap::new();
    for (tap, reasons) in counted {
        for reason in reasons {
            taps.entry(*reason).or_default().push(tap);
        }
    }
    taps
}

fn chain((family, name): &Name) -> Value {
    json!({ "family": family.as_str(), "table": TABLE, "name": name })
}

fn element(family: Family, set: &str, elements: &Value) -> Value {
    json!({ "family": family.as_str(), "table": TABLE, "name": set, "elem": elements })
}

fn verdict(target: &str) -> Value {
    json!({ "goto": { "target": target } })
}

/// What is there for the packets of a network. The default: nothing, on a kernel that cannot track connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilterObserved {
    /// How this kernel tracks connections.
    pub stateful: base::Stateful,
    /// What is there for the whole host, as [`base::wanted`] tells it.
    pub base: BTreeMap<Name, Vec<String>>,
    /// What is the network's own.
    pub part: Part,
    /// Objects in berth's tables that nobody knows.
    pub strays: BTreeSet<Stray>,
    /// The zones of the other networks.
    pub taken_zones: BTreeSet<u16>,
    /// Whether anything of another network is in berth's tables.
    pub shared: bool,
    /// Whether the network's bridge shows its packets to the IP stack.
    pub calls_ip: bool,
    /// The legs that routers have in the network on this host.
    pub legs: Vec<RouterLeg>,
}

/// What is in berth's tables, by network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// What is the host's: by name, the comments of its chains; maps and sets have none.
    pub base: BTreeMap<Name, Vec<String>>,
    /// What is a network's, by the part of the names that tells it.
    pub parts: BTreeMap<String, Part>,
    /// Objects that nobody knows.
    pub strays: BTreeSet<Stray>,
    /// The families with a table of berth's.
    pub families: BTreeSet<Family>,
    /// Ids of networks that comments of rules tell.
    pub networks: BTreeSet<NetworkId>,
    /// The packets dropped so far, by tap and reason.
    pub drops: BTreeMap<(String, Reason), u64>,
}

impl Tables {
    /// What belongs to a network.
    #[must_use]
    pub fn part(&self, network: NetworkId) -> Part {
        let part = self.parts.get(&names::network(network));
        part.cloned().unwrap_or_default()
    }

    /// Sets what belongs to a network.
    pub fn put(&mut self, network: NetworkId, part: Part) {
        self.parts.insert(names::network(network), part);
        self.networks.insert(network);
    }

    /// What is there after the change.
    pub fn apply(&mut self, change: &Change) {
        if let Base::Made(stateful) = change.base {
            self.base = base::wanted(stateful);
            self.families.extend(base::families(stateful));
        }
        self.base
            .retain(|name, _| !change.strays.contains(&base::stray(name)));
        self.strays.retain(|stray| !change.strays.contains(stray));
        let key = names::network(change.network);
        let part = self.parts.entry(key.clone()).or_default();
        part.apply(change);
        if part.is_empty() {
            self.parts.remove(&key);
            self.networks.remove(&change.network);
        } else {
            self.networks.insert(change.network);
        }
        if change.base == Base::Goes && self.parts.values().all(Part::is_empty) {
            *self = Self::default();
        }
    }

    /// What `nft -j -f -` reads to carry out the change, with this in the tables. The last network takes them with it.
    #[must_use]
    pub fn commands(&self, change: &Change) -> Value {
        let mut after = self.clone();
        after.apply(change);
        if after.families == self.families || change.base != Base::Goes {
            return change.commands();
        }
        let tables = self.families.iter().flat_map(|family| {
            let table = json!({ "table": { "family": family.as_str(), "name": TABLE } });
            // Without it, removing a table that is not there fails.
            [json!({ "add": table }), json!({ "delete": table })]
        });
        json!({ "nftables": tables.collect::<Vec<_>>() })
    }
}
