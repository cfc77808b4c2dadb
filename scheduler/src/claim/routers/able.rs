//! Whether the hosts that a router comes to can build all of its networks: else they would be a fault there, and the guests of these
//! hosts would pay for it.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{HostId, NetworkId},
    message::view::Resources,
    names::HostName,
};
use berth_store::{
    networks::{self as network_rows, NetworkRow},
    reach::{self, Among},
    routers::{RouterInterfaceRow, RouterRow},
};

use crate::{
    claim::{
        ClaimError, conflict,
        nat::{self, Asked},
        networks,
    },
    context::Writing,
    place::{self, Rejection, Request},
};

/// How many hosts a refusal names, and how many instances of each.
const NAMED: usize = 3;

/// A network that a host cannot build.
struct Lacking {
    host_id: HostId,
    host: HostName,
    network: String,
    rejection: Rejection,
}

/// Refuses what a router is to be if a host with ports in its networks would need a network for it that it cannot build. `row` and
/// `legs`: as they are to be. What a host has already is not asked for again.
///
/// # Errors
/// The refusal, with the hosts, their instances and what they lack; or a failure of the database.
pub(super) async fn check_hosts(
    writing: &mut Writing<'_>,
    row: &RouterRow,
    legs: &[RouterInterfaceRow],
) -> Result<(), ClaimError> {
    let inside: BTreeSet<NetworkId> = legs.iter().map(|leg| leg.network_id).collect();
    if !row.admin_state_up || inside.is_empty() {
        return Ok(());
    }
    let with_ports = reach::hosts_of(writing.txn(), &inside, Among::All).await?;
    let hosts: BTreeSet<HostId> = with_ports.iter().map(|(host, _)| *host).collect();
    if hosts.is_empty() {
        return Ok(());
    }
    let mut needed = inside.clone();
    needed.extend(row.external_network_id);
    let places = hosts
        .iter()
        .flat_map(|host| needed.iter().map(|network| (*host, *network)))
        .collect();
    let has = reach::told_on(writing.txn(), &places).await?;
    let ids: Vec<NetworkId> = needed.into_iter().collect();
    let needed = network_rows::of_ids(writing.txn(), &ids).await?;
    let asked = asked(writing, &needed)?;
    let mut lacking = Vec::new();
    for host in &hosts {
        let Some(known) = writing.cloud.table().host(*host) else {
            continue;
        };
        let new = asked
            .iter()
            .filter(|(network, _)| !has.contains(&(*host, network.id)));
        for (network, request) in new {
            if let Err(rejection) = place::reaches_networks(request, known) {
                lacking.push(Lacking {
                    host_id: *host,
                    host: known.facts().name.clone(),
                    network: network.name.to_string(),
                    rejection,
                });
            }
        }
    }
    if !lacking.is_empty() {
        return Err(refusal(writing, row, &inside, &lacking).await?);
    }
    for host in hosts {
        for network in &needed {
            writing.cloud.hold_nat(host, network);
        }
    }
    Ok(())
}

/// What each of some networks asks of a host.
fn asked<'a>(
    writing: &Writing<'_>,
    needed: &'a [NetworkRow],
) -> Result<Vec<(&'a NetworkRow, Request)>, ClaimError> {
    let of = |network| Asked {
        network,
        router: None,
    };
    // Together they must not meet either.
    let together: Vec<Asked<'_>> = needed.iter().map(of).collect();
    let nats = writing.cloud.nats();
    nat::demand(nats, &together, &mut Request::of(Resources::default()))?;
    let mut asked = Vec::new();
    for network in needed {
        let mut request = Request::of(Resources::default());
        networks::demand(network, &mut request.networks);
        nat::demand(nats, &[of(network)], &mut request)?;
        asked.push((network, request));
    }
    Ok(asked)
}

async fn refusal(
    writing: &Writing<'_>,
    row: &RouterRow,
    inside: &BTreeSet<NetworkId>,
    lacking: &[Lacking],
) -> Result<ClaimError, ClaimError> {
    let hosts: BTreeSet<HostId> = lacking.iter().map(|of| of.host_id).collect();
    let mut named: BTreeMap<HostId, Vec<String>> = BTreeMap::new();
    for of in lacking {
        if named.len() < NAMED || named.contains_key(&of.host_id) {
            let text = format!("network {}: {}", of.network, of.rejection.for_owner());
            named.entry(of.host_id).or_default().push(text);
        }
    }
    let places = named
        .keys()
        .flat_map(|host| inside.iter().map(|network| (*host, *network)))
        .collect();
    let instances = reach::instances_on(writing.txn(), &places).await?;
    let mut words = Vec::new();
    for (host, reasons) in &named {
        let Some(name) = lacking.iter().find(|of| of.host_id == *host) else {
            continue;
        };
        let here: Vec<&str> = instances
            .iter()
            .filter(|(of, _)| of == host)
            .map(|(_, instance)| instance.as_str())
            .collect();
        words.push(format!(
            "host {} of {} cannot build {}",
            name.host,
            some(&here),
            reasons.join("; ")
        ));
    }
    let more = hosts.len().saturating_sub(named.len());
    if more > 0 {
        words.push(format!("{more} more hosts cannot either"));
    }
    Ok(conflict(format!(
        "router {} comes with all of its networks to every host that has a port in one of them, and {}",
        row.name,
        words.join("; ")
    )))
}

/// The first of some instances, in words.
fn some(instances: &[&str]) -> String {
    let first: Vec<&str> = instances.iter().take(NAMED).copied().collect();
    let what = match instances {
        [_] => "instance",
        _ => "instances",
    };
    match instances.len().saturating_sub(NAMED) {
        0 => format!("{what} {}", first.join(", ")),
        more => format!("{what} {} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_instances_are_named() {
        let check = |names: &[&str], expected: &str| assert_eq!(some(names), expected);
        check(&["a"], "instance a");
        check(&["a", "b", "c"], "instances a, b, c");
        check(&["a", "b", "c", "d", "e"], "instances a, b, c and 2 more");
    }
}
