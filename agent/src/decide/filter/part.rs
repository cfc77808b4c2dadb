//! What belongs to one network in berth's tables of nftables, as it shall be and as it is; and one change from this to that.
//!
//! A chain is known by the comments of its rules, which contain digests of what they say ([`Rule::comment`]). So what shall be and
//! what is are compared without understanding what nft lists, and a change names only what differs.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::Arc,
};

use berth_common::ids::NetworkId;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    base, names,
    nft::{
        Family, Rule, TABLE, named, quote, tables, write_name, write_net, write_numbers, write_set,
    },
    reason::Reason,
    tunnel::Senders,
    wanted::RouterLeg,
};

/// How many new ports come in one transaction.
const PORTS_AT_ONCE: usize = 64;

/// A chain or a named map or set.
pub type Name = (Family, String);
/// A link in a named map: which map, and the link's name; of a VXLAN, its UDP port and VNI.
pub type Key = (Family, String, String);

/// The comments of a chain's rules, in order. There are many, and most never change: they are shared, and equal at a glance where
/// they are the same.
pub type Comments = Arc<Vec<String>>;

/// The comments of these rules.
pub(super) fn comments(rules: &[Rule]) -> Comments {
    Arc::new(rules.iter().map(Rule::comment).collect())
}

/// What is there of a network. The default: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// Chains: the comments of their rules, in order.
    pub chains: BTreeMap<Name, Comments>,
    /// Sets of addresses.
    pub sets: BTreeMap<Name, AddressSet>,
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

    /// Its header, in nft's words.
    #[must_use]
    pub const fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
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
    pub sets: BTreeMap<Name, AddressSet>,
    /// What the named maps say of its links.
    pub links: BTreeMap<Key, String>,
    /// The taps whose packets are counted.
    pub counted: BTreeSet<String>,
}

/// How the part of a network shall be, without what its chains' rules say: only what they are known by. All in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Shall<'a> {
    /// Chains with the comments of their rules.
    pub(super) chains: Vec<(&'a Name, &'a Comments)>,
    /// Sets of addresses.
    pub(super) sets: Vec<(&'a Name, &'a AddressSet)>,
    /// What the named maps say of its links.
    pub(super) links: Vec<(&'a Key, &'a String)>,
    /// The taps whose packets are counted.
    pub(super) counted: Vec<(&'a String, ())>,
}

/// What becomes of what there is for the whole host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// It stays as it is.
    Stays,
    /// All of it is made, before anything else.
    Made(base::Setup),
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
    pub sets: BTreeMap<Name, Version>,
    /// Sets to remove.
    pub gone_sets: BTreeSet<Name>,
    /// Members to put into sets.
    pub members: BTreeMap<Name, BTreeSet<IpNet>>,
    /// Members to take out of sets that stay.
    pub gone_members: BTreeMap<Name, BTreeSet<IpNet>>,
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

/// The change that makes what was found as it shall be; `None`: it is. Asks only for the rules of chains that differ.
#[must_use]
pub(super) fn change(
    network: NetworkId,
    base: Base,
    shall: &Shall<'_>,
    found: &FilterObserved,
    mut rules: impl FnMut(&Name) -> Vec<Rule>,
) -> Option<Change> {
    let mut change = Change {
        base,
        strays: found.strays.clone(),
        ..Change::empty(network)
    };
    let found = &found.part;
    for (name, wanted, there) in beside(&shall.chains, &found.chains) {
        match (wanted, there) {
            (None, _) => {
                change.gone_chains.insert(name.clone());
            }
            (Some(wanted), Some(there)) if wanted == there => {}
            (Some(_), there) => {
                change.refilled.extend(there.map(|_| name.clone()));
                change.chains.insert(name.clone(), rules(name));
            }
        }
    }
    change.links(shall, found);
    change.sets(shall, found);
    change.counters(shall, found);
    (change != Change::empty(network)).then_some(change)
}

impl Change {
    fn empty(network: NetworkId) -> Self {
        Self {
            network,
            base: Base::Stays,
            chains: BTreeMap::new(),
            refilled: BTreeSet::new(),
            gone_chains: BTreeSet::new(),
            sets: BTreeMap::new(),
            gone_sets: BTreeSet::new(),
            members: BTreeMap::new(),
            gone_members: BTreeMap::new(),
            links: BTreeMap::new(),
            gone_links: BTreeMap::new(),
            counted: BTreeMap::new(),
            gone_counted: BTreeMap::new(),
            strays: BTreeSet::new(),
        }
    }

    fn links(&mut self, shall: &Shall<'_>, found: &Part) {
        for (key, wanted, there) in beside(&shall.links, &found.links) {
            if wanted != there {
                self.links
                    .extend(wanted.map(|it| (key.clone(), it.clone())));
                self.gone_links
                    .extend(there.map(|it| (key.clone(), it.clone())));
            }
        }
    }

    fn sets(&mut self, shall: &Shall<'_>, found: &Part) {
        let empty = BTreeSet::new();
        for (name, set) in &shall.sets {
            let there = found
                .sets
                .get(*name)
                .filter(|there| there.version == set.version);
            if there.is_none() {
                self.sets.insert((*name).clone(), set.version);
            }
            let members = there.map_or(&empty, |there| &there.members);
            put(
                &mut self.members,
                name,
                set.members.difference(members).copied(),
            );
            put(
                &mut self.gone_members,
                name,
                members.difference(&set.members).copied(),
            );
        }
        let names: BTreeSet<&Name> = shall.sets.iter().map(|(name, _)| *name).collect();
        let gone = found.sets.keys().filter(|name| !names.contains(name));
        self.gone_sets = gone.cloned().collect();
    }

    fn counters(&mut self, shall: &Shall<'_>, found: &Part) {
        let none = BTreeSet::new();
        for (tap, wanted, there) in beside(&shall.counted, &found.counted) {
            let there = there.unwrap_or(&none);
            if wanted.is_none() {
                self.gone_counted.insert(tap.clone(), there.clone());
            } else if there.len() < Reason::ALL.len() {
                let all = Reason::ALL.into_iter();
                let missing = all.filter(|reason| !there.contains(reason));
                self.counted.insert(tap.clone(), missing.collect());
            }
        }
    }
}

/// What shall be and what is there, side by side: both are in the order of their keys.
fn beside<'a, K: Ord, A: Copy, B>(
    shall: &[(&'a K, A)],
    there: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, Option<A>, Option<&'a B>)> {
    let mut shall = shall.iter().copied().peekable();
    let mut there = there.iter().peekable();
    iter::from_fn(move || {
        let order = match (shall.peek(), there.peek()) {
            (Some((wanted, _)), Some((found, _))) => wanted.cmp(found),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let wanted = if order.is_le() { shall.next() } else { None };
        let found = if order.is_ge() { there.next() } else { None };
        let key = wanted.map(|(key, _)| key).or(found.map(|(key, _)| key))?;
        Some((key, wanted.map(|(_, it)| it), found.map(|(_, it)| it)))
    })
}

fn put(
    into: &mut BTreeMap<Name, BTreeSet<IpNet>>,
    name: &Name,
    members: impl Iterator<Item = IpNet>,
) {
    let members: BTreeSet<IpNet> = members.collect();
    if !members.is_empty() {
        into.insert(name.clone(), members);
    }
}

impl Part {
    /// What is there after the change.
    pub fn apply(&mut self, change: &Change) {
        self.chains
            .retain(|name, _| !change.gone_chains.contains(name));
        for (name, rules) in &change.chains {
            self.chains.insert(name.clone(), comments(rules));
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
        let sizes = |sets: &BTreeMap<Name, BTreeSet<IpNet>>| -> usize {
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

    /// The commands of one transaction. Whatever is named is made before and removed after. What nobody knows is not among them: see
    /// [`removal`].
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let mut commands = match self.base {
            Base::Made(setup) => base::commands(setup),
            Base::Stays | Base::Goes => Vec::new(),
        };
        let each = |what: &'static str| move |(family, name): &Name| named(what, *family, name);
        for ((family, name), version) in &self.sets {
            let set = named("add set", *family, name);
            let of = version.set_type();
            let flags = match family {
                Family::Bridge => " flags interval;",
                // Those of hosts are single addresses: for a change of intervals nft reads all of them.
                Family::Inet => "",
            };
            commands.push(format!("{set} {{ type {of};{flags} }}"));
        }
        commands.extend(leads("delete element", &self.gone_links));
        let emptied = self.refilled.iter().chain(&self.gone_chains);
        commands.extend(emptied.map(each("flush chain")));
        let members = |what, sets: &BTreeMap<Name, BTreeSet<IpNet>>| -> Vec<String> {
            let of = |((family, name), nets): (&Name, &BTreeSet<IpNet>)| {
                let nets: Vec<IpNet> = nets.iter().copied().collect();
                elements(what, *family, name, &nets, |net, out| {
                    write_net(out, *net);
                })
            };
            sets.iter().map(of).collect()
        };
        commands.extend(members("delete element", &self.gone_members));
        commands.extend(members("add element", &self.members));
        let chains = self.chains.iter();
        commands.extend(tables(chains.map(|((family, name), rules)| {
            (*family, name.as_str(), rules.as_slice())
        })));
        for (what, counted) in [
            ("delete element", &self.gone_counted),
            ("add element", &self.counted),
        ] {
            for (reason, taps) in by_reason(counted) {
                let set = reason.set();
                let write = |tap: &&str, out: &mut String| quote(out, tap);
                commands.push(elements(what, Family::Bridge, &set, &taps, write));
            }
        }
        commands.extend(leads("add element", &self.links));
        commands.extend(self.gone_chains.iter().map(each("delete chain")));
        commands.extend(self.gone_sets.iter().map(each("delete set")));
        commands
    }

    /// The same as several transactions, if it brings or changes many ports: what one takes in the kernel grows faster than what it
    /// brings. The first has all that is not a port's, and those that follow need it; a port comes whole. Chains and sets go last:
    /// they may be named by what the others change.
    #[must_use]
    pub fn portions(mut self) -> Vec<Self> {
        let chains = self.chains.keys();
        let ports: BTreeSet<String> = chains
            .filter_map(|(_, name)| names::port_of(name))
            .map(str::to_owned)
            .collect();
        let ports: Vec<String> = ports.into_iter().skip(PORTS_AT_ONCE).collect();
        let later: Vec<Self> = ports
            .chunks(PORTS_AT_ONCE)
            .map(|ports| self.take(&ports.iter().map(String::as_str).collect()))
            .collect();
        let mut last = Self::empty(self.network);
        if !later.is_empty() {
            last.gone_chains = std::mem::take(&mut self.gone_chains);
            last.gone_sets = std::mem::take(&mut self.gone_sets);
        }
        let last = Some(last).filter(|last| last.objects() > 0);
        [self].into_iter().chain(later).chain(last).collect()
    }

    /// Takes out what is of these ports.
    fn take(&mut self, ports: &BTreeSet<&str>) -> Self {
        let is_theirs =
            |(_, name): &Name| names::port_of(name).is_some_and(|it| ports.contains(it));
        let mut taken = Self::empty(self.network);
        let theirs = self.chains.keys().filter(|name| is_theirs(name));
        let theirs: BTreeSet<Name> = theirs.cloned().collect();
        taken.chains = self
            .chains
            .extract_if(.., |name, _| theirs.contains(name))
            .collect();
        taken.refilled = self
            .refilled
            .extract_if(.., |name| theirs.contains(name))
            .collect();
        let chains = &taken.chains;
        taken.links = self
            .links
            .extract_if(.., |(family, _, _), target| {
                chains.contains_key(&(*family, target.clone()))
            })
            .collect();
        for (_, _, link) in taken.links.keys() {
            if let Some(reasons) = self.counted.remove(link) {
                taken.counted.insert(link.clone(), reasons);
            }
        }
        taken
    }
}

/// The transaction that removes what nobody knows, once nothing of ours leads there any more. As JSON, for `nft -j -f -`: somebody
/// else, or an agent of before, may have used names that nft's own language has no words for.
#[must_use]
pub fn removal(strays: &BTreeSet<Stray>) -> Value {
    let object = |stray: &Stray| json!({ "family": stray.family.as_str(), "table": TABLE, "name": stray.name });
    let chains = strays.iter().filter(|stray| stray.kind == "chain");
    let emptied = chains.map(|stray| json!({ "flush": { "chain": object(stray) } }));
    // Chains come first, in the order of strays too: they may name maps and sets.
    let removed = strays
        .iter()
        .map(|stray| json!({ "delete": { stray.kind: object(stray) } }));
    let commands: Vec<Value> = emptied.chain(removed).collect();
    json!({ "nftables": commands })
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

/// A command on elements of a set.
fn elements<T>(
    what: &str,
    family: Family,
    set: &str,
    items: &[T],
    write: impl Fn(&T, &mut String),
) -> String {
    let mut command = named(what, family, set);
    command.push(' ');
    write_set(&mut command, items, write);
    command
}

/// A command for each map on where its links lead.
fn leads(what: &str, links: &BTreeMap<Key, String>) -> Vec<String> {
    let mut maps: BTreeMap<(Family, &str), Vec<(&str, &str)>> = BTreeMap::new();
    for ((family, map, link), target) in links {
        let map = maps.entry((*family, map)).or_default();
        map.push((link, target));
    }
    let commands = maps.iter();
    commands
        .map(|((family, map), links)| {
            let write = |(link, target): &(&str, &str), out: &mut String| {
                match *map {
                    base::TUNNELS => write_numbers(out, link),
                    _ => quote(out, link),
                }
                out.push_str(" : goto ");
                write_name(out, target);
            };
            elements(what, *family, map, links, write)
        })
        .collect()
}

/// What is there for the packets of a network. The default: nothing, on a kernel that cannot track connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilterObserved {
    /// How this kernel tracks connections.
    pub stateful: base::Stateful,
    /// What is there for the whole host, as [`base::wanted`] tells it.
    pub base: BTreeMap<Name, Vec<String>>,
    /// What is the network's own: shared with what is remembered, as it can be much.
    pub part: Arc<Part>,
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
    /// Who sends into it by routers, beside the hosts that its own document tells of.
    pub senders: Senders,
}

/// What is in berth's tables, by network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// What is the host's: by name, the comments of its chains; maps and sets have none.
    pub base: BTreeMap<Name, Vec<String>>,
    /// What is a network's, by the part of the names that tells it.
    pub parts: BTreeMap<String, Arc<Part>>,
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
    pub fn part(&self, network: NetworkId) -> Arc<Part> {
        let part = self.parts.get(&names::network(network));
        part.cloned().unwrap_or_default()
    }

    /// The same, by the part of the names that tells the network.
    pub(super) fn part_mut(&mut self, network: &str) -> &mut Part {
        Arc::make_mut(self.parts.entry(network.to_owned()).or_default())
    }

    /// Sets what belongs to a network.
    pub fn put(&mut self, network: NetworkId, part: Arc<Part>) {
        self.parts.insert(names::network(network), part);
        self.networks.insert(network);
    }

    /// What is there after the change.
    pub fn apply(&mut self, change: &Change) {
        if let Base::Made(setup) = change.base {
            let before = std::mem::replace(&mut self.base, base::wanted(setup).clone());
            for (name, comments) in before {
                // Another network needs them, of which this one did not know.
                if base::is_of_tunnels(&name) {
                    self.base.entry(name).or_insert(comments);
                }
            }
            self.families.extend(base::families(setup));
        }
        self.base
            .retain(|name, _| !change.strays.contains(&base::stray(name)));
        self.strays.retain(|stray| !change.strays.contains(stray));
        let key = names::network(change.network);
        let part = self.part_mut(&key);
        part.apply(change);
        if part.is_empty() {
            self.parts.remove(&key);
            self.networks.remove(&change.network);
        } else {
            self.networks.insert(change.network);
        }
        if change.base == Base::Goes && self.parts.values().all(|part| part.is_empty()) {
            *self = Self::default();
        }
    }

    /// The commands that carry out the change, with this in the tables. The last network takes them with it.
    #[must_use]
    pub fn commands(&self, change: &Change) -> Vec<String> {
        let mut after = self.clone();
        after.apply(change);
        if after.families == self.families || change.base != Base::Goes {
            return change.commands();
        }
        let tables = self.families.iter().flat_map(|family| {
            let family = family.as_str();
            // Without it, removing a table that is not there fails.
            ["add", "delete"].map(|verb| format!("{verb} table {family} {TABLE}"))
        });
        tables.collect()
    }
}
