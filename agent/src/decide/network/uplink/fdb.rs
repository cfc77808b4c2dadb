//! Whom a VTEP knows: nothing is learned from packets, all of it comes from documents.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::document::NetworkSpec;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// One thing that a VTEP, or the bridge it is in, knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FdbEntry {
    /// What is for everybody, and what nobody knows the place of, goes (also) to this host.
    Flood(IpAddr),
    /// The VTEP: this guest is on that host.
    Remote {
        /// The guest.
        mac: Mac,
        /// The host.
        host: IpAddr,
    },
    /// The bridge: this guest is behind the VTEP.
    Bridge(Mac),
}

impl FdbEntry {
    /// Whether putting in `other` takes this one out: a guest is in one place.
    fn gives_way_to(self, other: Self) -> bool {
        matches!((self, other), (Self::Remote { mac: mine, .. }, Self::Remote { mac: theirs, .. }) if mine == theirs)
    }
}

/// Whom it shall know: of each guest on another host where it is, and each such host once.
#[must_use]
pub fn wanted(spec: &NetworkSpec, local: IpAddr) -> BTreeSet<FdbEntry> {
    let own: BTreeSet<Mac> = spec
        .ports
        .iter()
        .map(|port| port.mac_address.octets())
        .collect();
    let places: BTreeMap<Mac, IpAddr> = spec
        .remote_ports
        .iter()
        .filter_map(|port| Some((port.mac_address.octets(), port.tunnel_ip?)))
        .filter(|(mac, host)| *host != local && !own.contains(mac))
        .collect();
    places
        .into_iter()
        .flat_map(|(mac, host)| {
            [
                FdbEntry::Flood(host),
                FdbEntry::Remote { mac, host },
                FdbEntry::Bridge(mac),
            ]
        })
        .collect()
}

/// What has to be put in and taken out, in this order, so that `found` becomes `wanted`. What is put in takes out what said
/// otherwise, so that nobody is nowhere in between.
#[must_use]
pub fn difference(
    found: &BTreeSet<FdbEntry>,
    wanted: &BTreeSet<FdbEntry>,
) -> (Vec<FdbEntry>, Vec<FdbEntry>) {
    let add: Vec<FdbEntry> = wanted.difference(found).copied().collect();
    let moved: BTreeSet<Mac> = add
        .iter()
        .filter_map(|entry| match entry {
            FdbEntry::Remote { mac, .. } => Some(*mac),
            FdbEntry::Flood(_) | FdbEntry::Bridge(_) => None,
        })
        .collect();
    let remove = found
        .difference(wanted)
        .filter(|entry| !matches!(entry, FdbEntry::Remote { mac, .. } if moved.contains(mac)))
        .copied()
        .collect();
    (add, remove)
}

/// What putting in and taking out leads to.
pub(super) fn change(fdb: &mut BTreeSet<FdbEntry>, add: &[FdbEntry], remove: &[FdbEntry]) {
    for entry in add {
        fdb.retain(|found| !found.gives_way_to(*entry));
        fdb.insert(*entry);
    }
    for entry in remove {
        fdb.remove(entry);
    }
}
