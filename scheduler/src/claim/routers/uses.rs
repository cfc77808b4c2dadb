//! What routers and floating IPs stand on: networks and subnets that may not change or go under them, and addresses that may not meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{NetworkType, Route},
    ids::NetworkId,
    names::Cidr,
};
use berth_store::{
    Executor, floating_ips,
    networks::NetworkRow,
    routers::{self, RouterInterfaceRow, RouterRow},
    subnets::SubnetRow,
};

use super::{held, networks};
use crate::claim::{ClaimError, conflict};

/// Refuses to delete a network that routers or floating IPs use.
///
/// # Errors
/// The refusal, or a failure of the database.
pub async fn refuse_use(db: &impl Executor, network: &NetworkRow) -> Result<(), ClaimError> {
    let using = routers::of_networks(db, &BTreeSet::from([network.id])).await?;
    if let Some(router) = routers::of_ids(db, &using).await?.first() {
        return Err(conflict(format!(
            "network {} is used by router {}; remove its interface or clear its external gateway first",
            network.name, router.name
        )));
    }
    refuse_floating_ips(db, network).await
}

async fn refuse_floating_ips(db: &impl Executor, network: &NetworkRow) -> Result<(), ClaimError> {
    let floating = floating_ips::count_of_network(db, network.id).await?;
    if floating > 0 {
        return Err(conflict(format!(
            "network {} has {floating} floating IPs; delete them first",
            network.name
        )));
    }
    Ok(())
}

/// Refuses to make a network internal that leads out.
///
/// # Errors
/// The refusal, or a failure of the database.
pub async fn refuse_outside_use(
    db: &impl Executor,
    network: &NetworkRow,
) -> Result<(), ClaimError> {
    let leading = routers::leading_to(db, &BTreeSet::from([network.id])).await?;
    if let Some(router) = leading.first() {
        return Err(conflict(format!(
            "network {} is the external network of router {}; clear its external gateway first",
            network.name, router.name
        )));
    }
    refuse_floating_ips(db, network).await
}

/// Refuses to delete a subnet that a router is in or has a route by way of, or that has floating IPs.
///
/// # Errors
/// The refusal, or a failure of the database.
pub async fn refuse_use_of_subnet(
    db: &impl Executor,
    subnet: &SubnetRow,
) -> Result<(), ClaimError> {
    let legs = routers::interfaces_in(db, subnet.id).await?;
    let using = legs.iter().map(|leg| leg.router_id).collect();
    if let Some(router) = routers::of_ids(db, &using).await?.first() {
        return Err(conflict(format!(
            "subnet {} is used by router {}; remove its interface first",
            subnet.cidr, router.name
        )));
    }
    let floating = floating_ips::count_of_subnet(db, subnet.id).await?;
    if floating > 0 {
        return Err(conflict(format!(
            "subnet {} has {floating} floating IPs; delete them first",
            subnet.cidr
        )));
    }
    for router in routers::leading_to(db, &BTreeSet::from([subnet.network_id])).await? {
        let by_way = |route: &&Route| subnet.cidr.net().contains(&route.nexthop);
        if let Some(route) = router.routes.iter().find(by_way) {
            return Err(conflict(format!(
                "router {} reaches {} by way of {} in subnet {}; take that route from it first",
                router.name, route.destination, route.nexthop, subnet.cidr
            )));
        }
    }
    Ok(())
}

/// Refuses a gateway for a subnet that is somebody else's there. A router's own address is what a gateway usually is.
///
/// # Errors
/// The refusal, or a failure of the database.
pub async fn refuse_as_gateway(
    db: &impl Executor,
    network: &NetworkRow,
    subnet: &SubnetRow,
    gateway: IpAddr,
) -> Result<(), ClaimError> {
    let legs = routers::interfaces_in(db, subnet.id).await?;
    if legs.iter().any(|leg| leg.ip_address == gateway) {
        if is_bridge_address(network, subnet, gateway) {
            return Err(conflict(format!(
                "{gateway} is a router's address, and in nat network {} the bridge of each host has the gateway's; the gateway needs another address",
                network.name
            )));
        }
        return Ok(());
    }
    let used = routers::addresses_in_use(db, subnet.id).await?;
    if used.contains(&gateway) {
        if let Some(refusal) = held::refused_for_now(db, network, gateway).await? {
            return Err(refusal);
        }
        return Err(conflict(format!(
            "{gateway} is a floating IP or a host's address for a router in {}; the gateway needs another address",
            subnet.cidr
        )));
    }
    Ok(())
}

/// Whether the bridges of a network have this address of a subnet.
pub(super) fn is_bridge_address(network: &NetworkRow, subnet: &SubnetRow, address: IpAddr) -> bool {
    network.network_type == NetworkType::Nat && subnet.gateway_ip == Some(address)
}

/// Refuses a leg of a router in a subnet that overlaps with another one that it is in.
pub(super) async fn refuse_overlap(
    db: &impl Executor,
    row: &RouterRow,
    legs: &[RouterInterfaceRow],
    cidr: Cidr,
) -> Result<(), ClaimError> {
    let known = networks::of(db, legs, row.external_network_id).await?;
    check_overlap(row, legs, &known, cidr)
}

/// The same, with the networks of the router.
fn check_overlap(
    row: &RouterRow,
    legs: &[RouterInterfaceRow],
    known: &BTreeMap<NetworkId, NetworkRow>,
    cidr: Cidr,
) -> Result<(), ClaimError> {
    let inside = legs.iter().flat_map(|leg| {
        let network = known.get(&leg.network_id).into_iter();
        let subnets = network.flat_map(|network| &network.subnets);
        subnets.filter(|subnet| subnet.id == leg.subnet_id)
    });
    let outside = row.external_network_id.and_then(|id| known.get(&id));
    let outside = outside.into_iter().flat_map(|network| &network.subnets);
    match inside.chain(outside).find(|it| overlap(it.cidr, cidr)) {
        Some(other) => Err(conflict(format!(
            "{cidr} overlaps with {}, which router {} is in already",
            other.cidr, row.name
        ))),
        None => Ok(()),
    }
}

/// Refuses an external network in which a subnet overlaps with one that the router is in.
pub(super) async fn refuse_overlap_outside(
    db: &impl Executor,
    row: &RouterRow,
    legs: &[RouterInterfaceRow],
) -> Result<(), ClaimError> {
    let known = networks::of(db, legs, row.external_network_id).await?;
    let outside = row.external_network_id.and_then(|id| known.get(&id));
    let inside = RouterRow {
        external_network_id: None,
        ..row.clone()
    };
    for subnet in outside.into_iter().flat_map(|network| &network.subnets) {
        check_overlap(&inside, legs, &known, subnet.cidr)?;
    }
    Ok(())
}

/// Refuses another subnet of an external network that overlaps with one inside: every router that leads there has all of its
/// subnets.
///
/// # Errors
/// The refusal, or a failure of the database.
pub async fn refuse_overlap_inside(
    db: &impl Executor,
    network: &NetworkRow,
    cidr: Cidr,
) -> Result<(), ClaimError> {
    if !network.external {
        return Ok(());
    }
    let leading = routers::leading_to(db, &BTreeSet::from([network.id])).await?;
    let ids = leading.iter().map(|row| row.id).collect();
    let interfaces = routers::interfaces(db, &ids).await?;
    let legs: Vec<RouterInterfaceRow> = interfaces.values().flatten().cloned().collect();
    let known = networks::of(db, &legs, Some(network.id)).await?;
    for row in &leading {
        let legs = interfaces.get(&row.id).map(Vec::as_slice);
        check_overlap(row, legs.unwrap_or_default(), &known, cidr)?;
    }
    Ok(())
}

fn overlap(one: Cidr, other: Cidr) -> bool {
    let (one, other) = (one.net(), other.net());
    one.contains(&other) || other.contains(&one)
}
