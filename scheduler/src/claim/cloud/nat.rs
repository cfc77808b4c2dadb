//! Which hosts have which `nat` networks: all of them go out by the routes of their host, and so the addresses of each must be its
//! own there.
//!
//! A host has one from when it is to be told of it until it said that it is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_common::{
    document::NetworkType,
    ids::{HostId, NetworkId},
    names::{Cidr, NetworkName},
};
use berth_store::networks::NetworkRow;

use crate::place::Rejection;

/// A `nat` network, as far as others on the same host meet it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatNetwork {
    /// Its name.
    pub name: NetworkName,
    /// The subnets whose gateway is the host: those of IPv4 that have one.
    pub subnets: Vec<Cidr>,
}

impl NatNetwork {
    /// What counts of a network; none: it is of another type.
    #[must_use]
    pub fn of(row: &NetworkRow) -> Option<Self> {
        let by_host = row
            .subnets
            .iter()
            .filter(|subnet| subnet.gateway_ip.is_some() && !subnet.cidr.is_ipv6());
        (row.network_type == NetworkType::Nat).then(|| Self {
            name: row.name.clone(),
            subnets: by_host.map(|subnet| subnet.cidr).collect(),
        })
    }

    /// The first addresses of this one that another one has as well, and which it has there.
    #[must_use]
    pub fn meets(&self, other: &Self) -> Option<(Cidr, Cidr)> {
        self.subnets.iter().find_map(|own| {
            let mut others = other.subnets.iter();
            let found = others
                .find(|its| own.net().contains(&its.net()) || its.net().contains(&own.net()))?;
            Some((*own, *found))
        })
    }
}

/// A change, and how to take it back.
#[derive(Debug)]
pub(super) enum NatUndo {
    /// The host did not have it.
    Release(HostId, NetworkId),
    /// The host had it.
    Hold(HostId, NetworkId, NatNetwork),
    /// It was this.
    Know(NetworkId, NatNetwork),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    network: NatNetwork,
    hosts: BTreeSet<HostId>,
}

/// All that any host has.
#[derive(Debug, Default)]
pub struct Nats(HashMap<NetworkId, Held>);

impl Nats {
    /// Whether a host has a network.
    #[must_use]
    pub fn has(&self, host: HostId, network: NetworkId) -> bool {
        let held = self.0.get(&network);
        held.is_some_and(|held| held.hosts.contains(&host))
    }

    /// The hosts that have a network.
    pub fn hosts_of(&self, network: NetworkId) -> impl Iterator<Item = HostId> {
        let held = self.0.get(&network).into_iter();
        held.flat_map(|held| held.hosts.iter().copied())
    }

    /// The hosts on which others have addresses of a network, each with what one of them has.
    #[must_use]
    pub fn taken(&self, id: NetworkId, network: &NatNetwork) -> BTreeMap<HostId, Rejection> {
        let mut taken = BTreeMap::new();
        let others = self.0.iter().filter(|(other, _)| **other != id);
        // Always the same of several, whatever the order in memory.
        let meeting: BTreeMap<NetworkId, (&Held, (Cidr, Cidr))> = others
            .filter_map(|(other, held)| Some((*other, (held, network.meets(&held.network)?))))
            .collect();
        for (held, (needed, found)) in meeting.into_values() {
            for host in &held.hosts {
                taken
                    .entry(*host)
                    .or_insert_with(|| Rejection::NatAddresses {
                        needed: needed.to_string(),
                        network: held.network.name.to_string(),
                        found: found.to_string(),
                    });
            }
        }
        taken
    }

    /// The same of the hosts that do not have the network yet: where it is already, one port more brings no addresses.
    #[must_use]
    pub fn newly_taken(&self, id: NetworkId, network: &NatNetwork) -> BTreeMap<HostId, Rejection> {
        let mut taken = self.taken(id, network);
        taken.retain(|host, _| !self.has(*host, id));
        taken
    }

    pub(super) fn of_host(&self, host: HostId) -> Vec<NetworkId> {
        let held = self.0.iter().filter(|(_, held)| held.hosts.contains(&host));
        held.map(|(network, _)| *network).collect()
    }

    pub(super) fn hold(
        &mut self,
        host: HostId,
        id: NetworkId,
        network: NatNetwork,
    ) -> Option<NatUndo> {
        let held = self.0.entry(id).or_insert_with(|| Held {
            network,
            hosts: BTreeSet::new(),
        });
        held.hosts
            .insert(host)
            .then_some(NatUndo::Release(host, id))
    }

    pub(super) fn release(&mut self, host: HostId, id: NetworkId) -> Option<NatUndo> {
        let held = self.0.get_mut(&id)?;
        if !held.hosts.remove(&host) {
            return None;
        }
        let undo = NatUndo::Hold(host, id, held.network.clone());
        if held.hosts.is_empty() {
            self.0.remove(&id);
        }
        Some(undo)
    }

    pub(super) fn know(&mut self, id: NetworkId, network: NatNetwork) -> Option<NatUndo> {
        let held = self.0.get_mut(&id)?;
        if held.network == network {
            return None;
        }
        let before = std::mem::replace(&mut held.network, network);
        Some(NatUndo::Know(id, before))
    }

    pub(super) fn take_back(&mut self, undo: NatUndo) {
        match undo {
            NatUndo::Release(host, id) => {
                self.release(host, id);
            }
            NatUndo::Hold(host, id, network) => {
                self.hold(host, id, network);
            }
            NatUndo::Know(id, network) => {
                self.know(id, network);
            }
        }
    }

    /// All of it in order, to compare.
    pub(super) fn sorted(&self) -> BTreeMap<NetworkId, (NatNetwork, BTreeSet<HostId>)> {
        let held = self.0.iter();
        held.map(|(id, held)| (*id, (held.network.clone(), held.hosts.clone())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, subnets: &[&str]) -> NatNetwork {
        NatNetwork {
            name: name.parse().unwrap(),
            subnets: subnets.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn addresses_meet_when_one_holds_the_other() {
        let check = |one: &[&str], other: &[&str], expected: Option<(&str, &str)>| {
            let found = network("a", one).meets(&network("b", other));
            let expected =
                expected.map(|(one, other)| (one.parse().unwrap(), other.parse().unwrap()));
            assert_eq!(found, expected);
        };
        check(&["10.0.0.0/24"], &["10.0.1.0/24"], None);
        check(&["10.0.0.0/24"], &[], None);
        let both = Some(("10.0.1.0/24", "10.0.0.0/16"));
        check(&["192.168.0.0/24", "10.0.1.0/24"], &["10.0.0.0/16"], both);
        let both = Some(("10.0.0.0/16", "10.0.1.0/24"));
        check(&["10.0.0.0/16"], &["192.168.0.0/24", "10.0.1.0/24"], both);
    }

    /// As hosts may have two from before anybody saw to that.
    #[test]
    fn a_network_that_a_host_has_is_refused_nothing_there() {
        let mut nats = Nats::default();
        let (both, one) = (HostId::new(), HostId::new());
        let (a, b) = (NetworkId::new(), NetworkId::new());
        let of = |name| network(name, &["10.0.0.0/24"]);
        nats.hold(both, a, of("a"));
        nats.hold(both, b, of("b"));
        nats.hold(one, b, of("b"));
        let hosts = |taken: BTreeMap<HostId, Rejection>| taken.into_keys().collect::<Vec<_>>();
        assert_eq!(hosts(nats.newly_taken(a, &of("a"))), [one]);
        assert_eq!(hosts(nats.newly_taken(b, &of("b"))), []);
        assert_eq!(
            nats.taken(a, &of("a")).len(),
            2,
            "what it is must not change there"
        );
    }

    #[test]
    fn what_is_taken_back_never_was() {
        let mut nats = Nats::default();
        let (host, other) = (HostId::new(), HostId::new());
        let (a, b) = (NetworkId::new(), NetworkId::new());
        nats.hold(host, a, network("a", &["10.0.0.0/24"]));
        let before = nats.sorted();
        let wide = || network("b", &["10.0.0.0/16"]);
        let undo: Vec<_> = [
            nats.hold(other, b, wide()),
            nats.hold(other, a, network("a", &["10.0.0.0/24"])),
            nats.know(a, network("a2", &["10.0.0.0/24", "10.9.0.0/24"])),
            nats.hold(host, b, wide()),
            nats.release(other, b),
            nats.release(host, a),
            nats.release(other, a),
        ]
        .into_iter()
        .map(Option::unwrap)
        .collect();
        assert!(nats.hold(host, b, wide()).is_none(), "it has it");
        assert!(nats.release(other, a).is_none(), "it has it not");
        let taken = nats.taken(a, &network("a", &["10.0.0.0/24"]));
        assert_eq!(taken.keys().copied().collect::<Vec<_>>(), [host]);
        assert!(nats.taken(b, &wide()).is_empty(), "it never meets itself");
        undo.into_iter().rev().for_each(|undo| nats.take_back(undo));
        assert_eq!(nats.sorted(), before);
    }
}
