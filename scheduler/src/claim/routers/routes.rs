//! Further routes of routers: what a host can have beside the routes that follow from legs and the way out. The kernel takes one route to
//! a destination, and two that are the same in that would leave the router unfinished, or lead elsewhere than is shown.

use berth_common::document::Route;
use berth_store::{
    Executor,
    networks::NetworkRow,
    routers::{self, RouterInterfaceRow, RouterRow},
    subnets::SubnetRow,
};

use super::networks;
use crate::claim::{ClaimError, conflict, invalid};

/// A router has no more further routes than this.
const MAX_ROUTES: usize = 100;

/// Refuses further routes of a router that no host can have as they say, beside these legs and the way out.
///
/// # Errors
/// The refusal, or a failure of the database.
pub(super) async fn check(
    db: &impl Executor,
    row: &RouterRow,
    legs: &[RouterInterfaceRow],
) -> Result<(), ClaimError> {
    if row.routes.len() > MAX_ROUTES {
        return Err(invalid(format!(
            "a router has at most {MAX_ROUTES} routes; got {}",
            row.routes.len()
        )));
    }
    for (place, route) in row.routes.iter().enumerate() {
        let mut before = row.routes.iter().take(place);
        if let Some(other) = before.find(|other| is_same(other, route)) {
            return Err(invalid(format!(
                "there are two routes to {}, by way of {} and of {}; name one of them",
                route.destination, other.nexthop, route.nexthop
            )));
        }
    }
    let (inside, outside) = check_next_hops(db, row, legs).await?;
    refuse_clash(row, &inside, &outside)
}

/// Refuses further routes of a router to next hops that are nowhere beside it. Answers the subnets it is in, inside and outside, if it
/// has any such routes.
///
/// # Errors
/// The refusal, or a failure of the database.
pub(super) async fn check_next_hops(
    db: &impl Executor,
    row: &RouterRow,
    legs: &[RouterInterfaceRow],
) -> Result<(Vec<SubnetRow>, Vec<SubnetRow>), ClaimError> {
    if row.routes.is_empty() {
        return Ok(Default::default());
    }
    let known = networks::of(db, legs, row.external_network_id).await?;
    let all = known.into_values().flat_map(|network| network.subnets);
    let is_outside = |subnet: &SubnetRow| Some(subnet.network_id) == row.external_network_id;
    let (outside, inside): (Vec<SubnetRow>, Vec<SubnetRow>) = all
        .filter(|subnet| is_outside(subnet) || legs.iter().any(|leg| leg.subnet_id == subnet.id))
        .partition(is_outside);
    for Route {
        destination,
        nexthop,
    } in &row.routes
    {
        if destination.is_ipv6() != nexthop.is_ipv6() {
            return Err(invalid(format!(
                "the next hop {nexthop} is of another version of IP than {destination}"
            )));
        }
        let mut subnets = inside.iter().chain(&outside);
        if !subnets.any(|subnet| subnet.cidr.is_host_address(*nexthop)) {
            return Err(invalid(format!(
                "the next hop {nexthop} of the route to {destination} is in no subnet that the router is in"
            )));
        }
        if legs.iter().any(|leg| leg.ip_address == *nexthop) {
            return Err(invalid(format!(
                "the next hop {nexthop} of the route to {destination} is the router itself"
            )));
        }
    }
    Ok((inside, outside))
}

fn is_same(one: &Route, other: &Route) -> bool {
    one.destination.net().trunc() == other.destination.net().trunc()
}

/// Refuses further routes that a router has already by its subnets inside and outside.
fn refuse_clash(
    row: &RouterRow,
    inside: &[SubnetRow],
    outside: &[SubnetRow],
) -> Result<(), ClaimError> {
    for Route {
        destination,
        nexthop,
    } in &row.routes
    {
        let to = destination.net().trunc();
        let mut subnets = inside.iter().chain(outside);
        if let Some(subnet) = subnets.find(|subnet| subnet.cidr.net().trunc() == to) {
            return Err(conflict(format!(
                "router {} is in subnet {} itself, and has another route there, by way of {nexthop}; take that route from it, \
                 or name a part of the subnet as its destination",
                row.name, subnet.cidr
            )));
        }
        let mut ways_out = outside
            .iter()
            .filter(|subnet| subnet.cidr.is_ipv6() == destination.is_ipv6())
            .filter_map(|subnet| Some((subnet, subnet.gateway_ip?)));
        if to.prefix_len() == 0
            && let Some((subnet, gateway)) = ways_out.next()
        {
            return Err(conflict(format!(
                "router {} leads out by way of {gateway}, the gateway of {}, and has another route to {destination}, by way of \
                 {nexthop}; take that route from it, or lead out by a subnet without a gateway",
                row.name, subnet.cidr
            )));
        }
    }
    Ok(())
}

/// Refuses a subnet of an external network, as it is to be, by which a router that leads there gets a route that it has already.
///
/// # Errors
/// The refusal, or a failure of the database.
pub async fn refuse_clash_outside(
    db: &impl Executor,
    network: &NetworkRow,
    subnet: &SubnetRow,
) -> Result<(), ClaimError> {
    if !network.external {
        return Ok(());
    }
    for row in routers::leading_to(db, &[network.id].into()).await? {
        refuse_clash(&row, &[], std::slice::from_ref(subnet))?;
    }
    Ok(())
}
