//! What follows from a host's ports and routers: a host that has a port in a network has that network's routers, all of their
//! networks, and an address of its own of their external networks for as long as it does.
//!
//! Only the hosts that were touched are looked at, and of the routers those that a touched network or the router itself brings
//! there: how many others lead out to the same network, and how many hosts have them, costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{HostId, NetworkId, RouterId, SubnetId},
};
use berth_store::{
    held_addresses, networks as network_rows,
    networks::NetworkRow,
    ports,
    routers::{self, RouterGatewayRow, RouterInterfaceRow, RouterRow},
    subnets::SubnetRow,
};

use super::{held, supply};
use crate::{
    claim::{ClaimError, address},
    context::{Cause, Touched, Writing},
};

/// Routers on hosts.
type Places = BTreeSet<(HostId, RouterId)>;

/// Adds the documents that follow from those that were touched, and gives and takes the hosts' addresses.
///
/// # Errors
/// When the database fails.
pub async fn follow(
    writing: &Writing<'_>,
    touched: &BTreeMap<HostId, Touched>,
) -> Result<BTreeMap<HostId, Touched>, ClaimError> {
    let txn = writing.txn();
    let mut all = touched.clone();
    let mut concerned = named(touched);
    let with_ports = because_of(touched, Cause::OwnPorts);
    let networks = with_ports.keys().copied().collect();
    for leg in routers::interfaces_in_networks(txn, &networks).await? {
        let hosts = with_ports.get(&leg.network_id).into_iter().flatten();
        concerned.extend(hosts.map(|host| (*host, leg.router_id)));
    }
    let changed = because_of(touched, Cause::Itself).into_keys().collect();
    concerned.extend(routers::told_inside(txn, &changed).await?);
    concerned.extend(routers::told_leading_to(txn, &changed).await?);
    let members = because_of(touched, Cause::Members).into_keys().collect();
    let beside = routers::told_inside(txn, &members).await?;
    let which: BTreeSet<RouterId> = concerned
        .union(&beside)
        .map(|(_, router)| *router)
        .collect();
    if which.is_empty() {
        return Ok(all);
    }
    let these = Routers {
        rows: routers::of_ids(txn, &which).await?,
        legs: routers::interfaces(txn, &which).await?,
    };
    for row in &these.rows {
        let inside = these.inside(row.id);
        for (host, touched) in &mut all {
            let is_concerned = concerned.contains(&(*host, row.id));
            if !is_concerned && !beside.contains(&(*host, row.id)) {
                continue;
            }
            touched.keys.extend(inside.iter().copied().map(key));
            if is_concerned {
                touched.keys.extend(row.external_network_id.map(key));
                touched.keys.insert(DocumentKey {
                    kind: Kind::Router,
                    id: row.id.as_uuid(),
                });
            }
        }
    }
    concerned.retain(|(host, _)| touched.contains_key(host));
    give_addresses(writing, &these, &concerned).await?;
    Ok(all)
}

const fn key(network: NetworkId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Network,
        id: network.as_uuid(),
    }
}

/// The routers that were touched themselves.
fn named(touched: &BTreeMap<HostId, Touched>) -> Places {
    let keys = touched
        .iter()
        .flat_map(|(host, touched)| touched.keys.iter().map(|key| (*host, key)));
    keys.filter(|(_, key)| key.kind == Kind::Router)
        .filter_map(|(host, key)| Some((host, RouterId::try_from(key.id).ok()?)))
        .collect()
}

/// The networks that were touched for a cause, each with the hosts.
fn because_of(
    touched: &BTreeMap<HostId, Touched>,
    cause: Cause,
) -> BTreeMap<NetworkId, BTreeSet<HostId>> {
    let mut found: BTreeMap<NetworkId, BTreeSet<HostId>> = BTreeMap::new();
    for (host, touched) in touched {
        for (network, _) in touched.networks.iter().filter(|(_, of)| *of == cause) {
            found.entry(*network).or_default().insert(*host);
        }
    }
    found
}

/// Some living routers, with their legs.
struct Routers {
    rows: Vec<RouterRow>,
    legs: BTreeMap<RouterId, Vec<RouterInterfaceRow>>,
}

impl Routers {
    fn inside(&self, router: RouterId) -> BTreeSet<NetworkId> {
        let legs = self.legs.get(&router).into_iter().flatten();
        legs.map(|leg| leg.network_id).collect()
    }

    /// Which of these are on their hosts.
    async fn there(&self, writing: &Writing<'_>, places: &Places) -> Result<Places, ClaimError> {
        // A host that has a router has all of its networks: to ask by one of them is enough.
        let up: BTreeMap<RouterId, NetworkId> = self
            .rows
            .iter()
            .filter(|row| row.admin_state_up)
            .filter_map(|row| Some((row.id, *self.inside(row.id).first()?)))
            .collect();
        let asked = places
            .iter()
            .filter_map(|(host, router)| Some((*host, *up.get(router)?)))
            .collect();
        let found = routers::on_hosts(writing.txn(), &asked).await?;
        Ok(found
            .into_iter()
            .filter(|(host, router)| up.contains_key(router) && places.contains(&(*host, *router)))
            .collect())
    }
}

/// Gives each of these hosts that has a router an address in each of its external subnets, as far as there are any, and takes those
/// that are not needed any more.
async fn give_addresses(
    writing: &Writing<'_>,
    these: &Routers,
    places: &Places,
) -> Result<(), ClaimError> {
    let txn = writing.txn();
    let has = routers::gateways_on(txn, places).await?;
    let outside: BTreeSet<NetworkId> = these
        .rows
        .iter()
        .filter_map(|row| row.external_network_id)
        .collect();
    if has.is_empty() && outside.is_empty() {
        return Ok(());
    }
    let outside: Vec<NetworkId> = outside.into_iter().collect();
    let outside: BTreeMap<NetworkId, NetworkRow> = network_rows::of_ids(txn, &outside)
        .await?
        .into_iter()
        .map(|network| (network.id, network))
        .collect();
    let there = these.there(writing, places).await?;
    let mut wanted: BTreeSet<(RouterId, HostId, SubnetId)> = BTreeSet::new();
    for row in &these.rows {
        let network = row.external_network_id.and_then(|id| outside.get(&id));
        for subnet in network.into_iter().flat_map(|network| &network.subnets) {
            let hosts = there.iter().filter(|(_, router)| *router == row.id);
            wanted.extend(hosts.map(|(host, _)| (row.id, *host, subnet.id)));
        }
    }
    let mut given = BTreeSet::new();
    let mut wrong = Vec::new();
    for gateway in has {
        let of = (gateway.router_id, gateway.host_id, gateway.subnet_id);
        if wanted.contains(&of) {
            given.insert(of);
        } else {
            wrong.push(gateway);
        }
    }
    routers::delete_gateways(txn, &wrong).await?;
    let mut missing: BTreeMap<SubnetId, Vec<(RouterId, HostId)>> = BTreeMap::new();
    for (router, host, subnet) in wanted.difference(&given) {
        missing.entry(*subnet).or_default().push((*router, *host));
    }
    let mut gateways = Vec::new();
    for subnet in outside.values().flat_map(|network| &network.subnets) {
        if let Some(missing) = missing.remove(&subnet.id) {
            gateways.append(&mut choose(writing, subnet, &missing, &wrong).await?);
        }
    }
    routers::insert_gateways(txn, &gateways).await?;
    Ok(())
}

/// Addresses of a subnet for routers on hosts, as far as there are any. A host that has not given one up yet gets it again; `taken`:
/// those that hosts have until they hear of what is decided here.
async fn choose(
    writing: &Writing<'_>,
    subnet: &SubnetRow,
    missing: &[(RouterId, HostId)],
    taken: &[RouterGatewayRow],
) -> Result<Vec<RouterGatewayRow>, ClaimError> {
    let txn = writing.txn();
    let mut used = supply::used(txn, subnet.id).await?;
    // Of a subnet that was there before with the same addresses, too.
    used.extend(taken.iter().map(|it| it.ip_address));
    let mut held = held_addresses::of_network(txn, subnet.network_id).await?;
    held.retain(|row| subnet.cidr.net().contains(&row.ip_address));
    if !held.is_empty() {
        let mut given = ports::addresses_in_use(txn, subnet.id).await?;
        given.extend(routers::addresses_given(txn, subnet.id).await?);
        held.retain(|row| !given.contains(&row.ip_address));
    }
    let own = held::own(&held);
    let mut gateways = Vec::new();
    let mut is_full = false;
    for (router, host) in missing {
        let own = own.get(&(*host, *router)).into_iter().flatten();
        let mut own = own
            .copied()
            .filter(|own| address::choose(subnet, &BTreeSet::new(), Some(*own)).is_ok());
        let chosen = match own.next() {
            Some(own) => Ok(own),
            // Others have theirs to get again.
            None if is_full => continue,
            None => address::choose(subnet, &used, None),
        };
        let ip_address = match chosen {
            Ok(address) => address,
            Err(error) => {
                // The router works without it, and its view shows that the host has none.
                tracing::warn!(%router, %host, %error, "hosts get no address for a router until one is free");
                writing.context().lack_addresses();
                is_full = true;
                continue;
            }
        };
        used.insert(ip_address);
        gateways.push(RouterGatewayRow {
            router_id: *router,
            host_id: *host,
            subnet_id: subnet.id,
            ip_address,
        });
    }
    Ok(gateways)
}
