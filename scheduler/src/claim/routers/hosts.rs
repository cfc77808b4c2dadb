//! What follows from a host's ports and routers: a host that has a port in a network has that network's routers, all of their
//! networks, and an address of its own of their external networks for as long as it does.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{HostId, NetworkId, RouterId},
};
use berth_store::{
    ports,
    reach::{self, Among},
    routers::{self, RouterGatewayRow, RouterInterfaceRow, RouterRow},
};

use super::networks;
use crate::{
    claim::{ClaimError, address},
    context::{Touched, Writing},
};

/// Adds the documents that follow from those that were touched, and gives and takes the hosts' addresses.
///
/// # Errors
/// When the database fails.
pub async fn follow(
    writing: &Writing<'_>,
    touched: &BTreeMap<HostId, Touched>,
) -> Result<BTreeMap<HostId, Touched>, ClaimError> {
    let mut all = touched.clone();
    let networks: BTreeSet<NetworkId> = touched
        .values()
        .flat_map(|touched| ids(touched, Kind::Network))
        .collect();
    let mut which: BTreeSet<RouterId> = touched
        .values()
        .flat_map(|touched| ids(touched, Kind::Router))
        .collect();
    which.extend(routers::of_networks(writing.txn(), &networks).await?);
    if which.is_empty() {
        return Ok(all);
    }
    let rows = routers::of_ids(writing.txn(), &which).await?;
    let interfaces = routers::interfaces(writing.txn(), &which).await?;
    let mut concerned: BTreeMap<RouterId, BTreeSet<HostId>> = BTreeMap::new();
    for row in &rows {
        let legs = interfaces.get(&row.id).map(Vec::as_slice);
        let of_router: BTreeSet<NetworkId> = legs
            .unwrap_or_default()
            .iter()
            .map(|leg| leg.network_id)
            .chain(row.external_network_id)
            .collect();
        for (host, touched) in &mut all {
            let has = ids::<NetworkId>(touched, Kind::Network)
                .iter()
                .any(|network| of_router.contains(network))
                || ids::<RouterId>(touched, Kind::Router).contains(&row.id);
            if has {
                touched.keys.insert(DocumentKey {
                    kind: Kind::Router,
                    id: row.id.as_uuid(),
                });
                touched
                    .keys
                    .extend(of_router.iter().map(|network| DocumentKey {
                        kind: Kind::Network,
                        id: network.as_uuid(),
                    }));
                concerned.entry(row.id).or_default().insert(*host);
            }
        }
    }
    let gateways = routers::gateways(writing.txn(), &which).await?;
    for row in &rows {
        let legs = interfaces.get(&row.id).map(Vec::as_slice);
        let hosts = concerned.remove(&row.id).unwrap_or_default();
        let of_router = gateways.iter().filter(|it| it.router_id == row.id);
        give_addresses(writing, row, legs.unwrap_or_default(), &hosts, of_router).await?;
    }
    Ok(all)
}

fn ids<I: TryFrom<uuid::Uuid> + Ord>(touched: &Touched, kind: Kind) -> BTreeSet<I> {
    touched
        .keys
        .iter()
        .filter(|key| key.kind == kind)
        .filter_map(|key| I::try_from(key.id).ok())
        .collect()
}

/// Gives each of these hosts that needs a router an address in each external subnet, as far as there are any, and takes those of
/// the others.
async fn give_addresses(
    writing: &Writing<'_>,
    router: &RouterRow,
    legs: &[RouterInterfaceRow],
    hosts: &BTreeSet<HostId>,
    gateways: impl Iterator<Item = &RouterGatewayRow>,
) -> Result<(), ClaimError> {
    let inside: BTreeSet<NetworkId> = legs.iter().map(|leg| leg.network_id).collect();
    let needing: BTreeSet<HostId> = if router.admin_state_up {
        let found = reach::hosts_of(writing.txn(), &inside, Among::All).await?;
        found.into_iter().map(|(host, _)| host).collect()
    } else {
        BTreeSet::new()
    };
    let external = networks::of(writing.txn(), &[], router.external_network_id).await?;
    let subnets: Vec<_> = external
        .values()
        .flat_map(|network| &network.subnets)
        .collect();
    let mut has = BTreeSet::new();
    for gateway in gateways {
        let is_right = needing.contains(&gateway.host_id)
            && subnets.iter().any(|subnet| subnet.id == gateway.subnet_id);
        if is_right {
            has.insert((gateway.host_id, gateway.subnet_id));
        } else {
            routers::delete_gateway(writing.txn(), gateway).await?;
        }
    }
    for subnet in subnets {
        let missing: Vec<HostId> = hosts
            .intersection(&needing)
            .filter(|host| !has.contains(&(**host, subnet.id)))
            .copied()
            .collect();
        if missing.is_empty() {
            continue;
        }
        let mut used = ports::addresses_in_use(writing.txn(), subnet.id).await?;
        used.extend(routers::addresses_in_use(writing.txn(), subnet.id).await?);
        for host_id in missing {
            let ip_address = match address::choose(subnet, &used, None) {
                Ok(address) => address,
                Err(error) => {
                    // The router works without it, and its view shows that the host has none.
                    tracing::warn!(router = %router.id, host = %host_id, %error, "a host gets no address for a router");
                    break;
                }
            };
            used.insert(ip_address);
            let gateway = RouterGatewayRow {
                router_id: router.id,
                host_id,
                subnet_id: subnet.id,
                ip_address,
            };
            routers::insert_gateway(writing.txn(), &gateway).await?;
        }
    }
    Ok(())
}
