//! Outside addresses that hosts were told to give up: nobody else gets one until its host has said that it has it no more. The hosts
//! that are silent may still answer at them, and translate to guests of who had them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::RouterSpec,
    ids::{HostId, NetworkId, RouterId},
    names::HostName,
};
use berth_store::{
    Executor, held_addresses, held_addresses::HeldAddressRow, hosts as host_rows,
    networks::NetworkRow, routers,
};

use crate::claim::{ClaimError, address::AddressError, conflict, invalid};

/// How many hosts a refusal names.
const NAMED: usize = 3;

/// The addresses outside that a router has by a document and has no more by the next one. Null: a tombstone.
///
/// # Errors
/// When one of them is no document of a router.
pub fn given_up(
    before: Option<&str>,
    after: Option<&str>,
) -> Result<BTreeSet<(NetworkId, IpAddr)>, serde_json::Error> {
    let (mut before, after) = (outside(before)?, outside(after)?);
    before.retain(|address| !after.contains(address));
    Ok(before)
}

fn outside(spec: Option<&str>) -> Result<BTreeSet<(NetworkId, IpAddr)>, serde_json::Error> {
    let Some(spec) = spec else {
        return Ok(BTreeSet::new());
    };
    let spec: RouterSpec = serde_json::from_str(spec)?;
    let Some(gateway) = spec.external_gateway else {
        return Ok(BTreeSet::new());
    };
    let own = gateway.addresses.iter().filter_map(|it| it.ip_address);
    let floating = spec.floating_ips.iter().map(|it| it.floating_ip_address);
    Ok(own
        .chain(floating)
        .map(|address| (gateway.network_id, address))
        .collect())
}

/// Why a network has no such address, in words; who waits for a host is told for which.
///
/// # Errors
/// When the database fails.
pub async fn refused(
    db: &impl Executor,
    network: &NetworkRow,
    error: AddressError,
) -> Result<ClaimError, ClaimError> {
    match &error {
        AddressError::Outside { .. }
        | AddressError::Reserved { .. }
        | AddressError::Automatic { .. } => Ok(invalid(error.to_string())),
        AddressError::Taken { address, .. } => {
            let waited_for = refused_for_now(db, network, *address).await?;
            Ok(waited_for.unwrap_or_else(|| conflict(error.to_string())))
        }
        AddressError::Full { subnet, .. } => {
            let full: Vec<&str> = subnet.split(", ").collect();
            let mut held = held(db, network).await?;
            held.retain(|address, _| {
                let mut subnets = network.subnets.iter();
                let of = subnets.find(|it| it.cidr.net().contains(address));
                of.is_some_and(|it| full.contains(&it.cidr.to_string().as_str()))
            });
            if held.is_empty() {
                return Ok(conflict(error.to_string()));
            }
            let count = held.len();
            let hosts = held.into_values().flatten().collect();
            Ok(conflict(format!(
                "{error}; {count} of them were given up, which {} did not confirm so far",
                named(db, &hosts).await?
            )))
        }
    }
}

/// The refusal of an address that only hosts have which were told to give it up, if it is one.
///
/// # Errors
/// When the database fails.
pub async fn refused_for_now(
    db: &impl Executor,
    network: &NetworkRow,
    address: IpAddr,
) -> Result<Option<ClaimError>, ClaimError> {
    match held(db, network).await?.remove(&address) {
        Some(hosts) => Ok(Some(conflict(format!(
            "{address} is not free yet: it was given up, which {} did not confirm so far; it is free once that is confirmed or the host deleted",
            named(db, &hosts).await?
        )))),
        None => Ok(None),
    }
}

/// The addresses of a network that nobody shall have any more, each with the hosts that may have it.
async fn held(
    db: &impl Executor,
    network: &NetworkRow,
) -> Result<BTreeMap<IpAddr, BTreeSet<HostId>>, ClaimError> {
    let mut held: BTreeMap<IpAddr, BTreeSet<HostId>> = BTreeMap::new();
    for row in held_addresses::of_network(db, network.id).await? {
        held.entry(row.ip_address).or_default().insert(row.host_id);
    }
    if held.is_empty() {
        return Ok(held);
    }
    for subnet in &network.subnets {
        // What was given up on one host may be somebody's on another one.
        for given in routers::addresses_given(db, subnet.id).await? {
            held.remove(&given);
        }
    }
    Ok(held)
}

/// Some hosts that are waited for, in words.
async fn named(db: &impl Executor, hosts: &BTreeSet<HostId>) -> Result<String, ClaimError> {
    let ids: Vec<HostId> = hosts.iter().copied().collect();
    let rows = host_rows::of_ids(db, &ids).await?;
    let mut names: Vec<HostName> = rows.into_iter().map(|row| row.name).collect();
    names.sort();
    Ok(words(&names))
}

fn words(names: &[HostName]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(HostName::as_str).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = match names {
        [_] => "host",
        _ => "hosts",
    };
    format!("{what} {}{more}", first.join(", "))
}

/// By host and router, the addresses that were taken from the host and that it alone has, for that router: it may have one of them
/// again.
#[must_use]
pub fn own(held: &[HeldAddressRow]) -> BTreeMap<(HostId, RouterId), BTreeSet<IpAddr>> {
    let mut places: BTreeMap<IpAddr, BTreeSet<(HostId, RouterId)>> = BTreeMap::new();
    for row in held {
        let of_address = places.entry(row.ip_address).or_default();
        of_address.insert((row.host_id, row.router_id));
    }
    let mut own: BTreeMap<_, BTreeSet<IpAddr>> = BTreeMap::new();
    for (address, places) in places {
        if let (1, Some(place)) = (places.len(), places.first()) {
            own.entry(*place).or_default().insert(address);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(own: Option<&str>, floating: &[&str]) -> String {
        let floating: Vec<serde_json::Value> = floating
            .iter()
            .map(|address| {
                serde_json::json!({
                    "id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a01",
                    "floating_ip_address": address,
                    "fixed_ip_address": "10.0.0.7",
                    "port_id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a02",
                })
            })
            .collect();
        serde_json::json!({
            "name": "r1",
            "project": "default",
            "interfaces": [],
            "external_gateway": {
                "network_id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a03",
                "mac_address": "02:de:bc:14:3f:d4",
                "addresses": [{ "cidr": "198.51.100.0/24", "ip_address": own, "gateway_ip": null }],
                "enable_snat": true,
                "mtu": 1500,
            },
            "floating_ips": floating,
        })
        .to_string()
    }

    #[test]
    fn what_the_next_document_has_not_is_given_up() {
        let check = |before: Option<&str>, after: Option<&str>, expected: &[&str]| {
            let found = given_up(before, after).unwrap();
            let found: Vec<String> = found.iter().map(|(_, it)| it.to_string()).collect();
            assert_eq!(found, expected);
        };
        let full = spec(Some("198.51.100.3"), &["198.51.100.20", "198.51.100.21"]);
        let less = spec(Some("198.51.100.4"), &["198.51.100.21"]);
        check(Some(&full), Some(&full), &[]);
        check(Some(&full), Some(&less), &["198.51.100.3", "198.51.100.20"]);
        check(
            Some(&full),
            None,
            &["198.51.100.3", "198.51.100.20", "198.51.100.21"],
        );
        check(None, Some(&full), &[]);
        let inside = r#"{ "name": "r1", "project": "default", "interfaces": [] }"#;
        check(
            Some(&less),
            Some(inside),
            &["198.51.100.4", "198.51.100.21"],
        );
        assert!(given_up(Some("{}"), None).is_err());
    }

    #[test]
    fn who_is_waited_for_is_named_and_not_all_are() {
        let check = |names: &[&str], expected: &str| {
            let names: Vec<HostName> = names.iter().map(|name| name.parse().unwrap()).collect();
            assert_eq!(words(&names), expected);
        };
        check(&["a"], "host a");
        check(&["a", "b", "c", "d"], "hosts a, b, c and 1 more");
    }
}
