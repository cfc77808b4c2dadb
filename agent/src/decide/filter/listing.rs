//! Reads what nft lists of berth's tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use berth_common::ids::NetworkId;
use serde_json::Value;

use super::{
    base::{self, Setup, Stateful, Tunnels},
    names,
    nft::{Family, TABLE, net_of_json},
    part::{AddressSet, Key, Name, Stray, Tables, Version},
    reason::Reason,
};

/// The list is not what nft prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nft listed {what}")]
pub struct NotAList {
    what: String,
}

fn not_a_list(what: impl Into<String>) -> NotAList {
    NotAList { what: what.into() }
}

/// What is in berth's tables, of what nft lists as JSON.
///
/// # Errors
/// [`NotAList`]: it is something else.
pub fn tables(listed: &Value) -> Result<Tables, NotAList> {
    let mut tables = Tables::default();
    let mut links: Vec<(Key, String)> = Vec::new();
    let mut counted: Vec<(String, Reason, u64)> = Vec::new();
    let known: BTreeSet<&Name> = [Stateful::BrNetfilter, Stateful::Bridge]
        .into_iter()
        .flat_map(|stateful| {
            let tunnels = Tunnels::Guarded;
            base::wanted(Setup { stateful, tunnels }).keys()
        })
        .collect();
    for object in objects(listed)? {
        let Some((kind, object)) = object.as_object().and_then(|object| object.iter().next())
        else {
            return Err(not_a_list("something that is no object"));
        };
        if kind == "table" {
            let named = object["name"].as_str() == Some(TABLE);
            tables
                .families
                .extend(family_named(object).filter(|_| named));
        }
        let Some(family) = family_of(object) else {
            continue;
        };
        match kind.as_str() {
            "chain" => {
                let name = text(object, "name")?;
                let chain = (family, name.clone());
                if let Some(network) = names::network_of(&name) {
                    let part = tables.part_mut(network);
                    part.chains.entry(chain).or_default();
                } else if known.contains(&chain) {
                    tables.base.entry(chain).or_default();
                } else {
                    tables.strays.insert(Stray {
                        family,
                        kind: "chain",
                        name,
                    });
                }
            }
            "rule" => {
                let name = text(object, "chain")?;
                // A rule that somebody else added has none.
                let comment = object["comment"].as_str().unwrap_or_default().to_owned();
                tables.networks.extend(network_in(&comment));
                let chain = (family, name.clone());
                match names::network_of(&name) {
                    Some(network) => {
                        let part = tables.part_mut(network);
                        Arc::make_mut(part.chains.entry(chain).or_default()).push(comment);
                    }
                    None => {
                        if known.contains(&chain) {
                            tables.base.entry(chain).or_default().push(comment);
                        }
                    }
                }
            }
            "map" | "set" => {
                let name = text(object, "name")?;
                let named = (family, name.clone());
                let elements = object["elem"].as_array().cloned().unwrap_or_default();
                if let Some(network) = names::network_of(&name) {
                    let version = match object["type"].as_str() {
                        Some("ipv6_addr") => Version::V6,
                        _ => Version::V4,
                    };
                    let set = AddressSet {
                        version,
                        members: elements.iter().filter_map(net_of_json).collect(),
                    };
                    let part = tables.part_mut(network);
                    part.sets.insert(named, set);
                } else if let Some(reason) = Reason::of_set(&name) {
                    tables.base.entry(named).or_default();
                    counted.extend(elements.iter().filter_map(|element| {
                        let (tap, packets) = counter(element)?;
                        Some((tap, reason, packets))
                    }));
                } else if known.contains(&named) {
                    tables.base.entry(named).or_default();
                    links.extend(elements.iter().filter_map(|element| {
                        let (link, target) = lead(element)?;
                        Some(((family, name.clone(), link), target))
                    }));
                } else {
                    let kind = if kind == "map" { "map" } else { "set" };
                    tables.strays.insert(Stray { family, kind, name });
                }
            }
            _ => {}
        }
    }
    let mut network_of_tap: BTreeMap<String, String> = BTreeMap::new();
    for (key, target) in links {
        if let Some(network) = names::network_of(&target).map(str::to_owned) {
            network_of_tap.insert(key.2.clone(), network.clone());
            let part = tables.part_mut(&network);
            part.links.insert(key, target);
        }
    }
    for (tap, reason, packets) in counted {
        if let Some(network) = network_of_tap.get(&tap) {
            let part = tables.part_mut(network);
            part.counted.entry(tap.clone()).or_default().insert(reason);
        }
        tables.drops.insert((tap, reason), packets);
    }
    Ok(tables)
}

fn objects(listed: &Value) -> Result<&Vec<Value>, NotAList> {
    listed["nftables"]
        .as_array()
        .ok_or_else(|| not_a_list("no \"nftables\""))
}

/// The family of an object, if it is in a table of berth's.
fn family_of(object: &Value) -> Option<Family> {
    (object["table"].as_str() == Some(TABLE)).then_some(())?;
    family_named(object)
}

fn family_named(object: &Value) -> Option<Family> {
    match object["family"].as_str()? {
        "bridge" => Some(Family::Bridge),
        "inet" => Some(Family::Inet),
        _ => None,
    }
}

fn text(object: &Value, key: &str) -> Result<String, NotAList> {
    let text = object[key].as_str().map(str::to_owned);
    text.ok_or_else(|| not_a_list(format!("an object without {key:?}")))
}

/// A link with its counter.
fn counter(element: &Value) -> Option<(String, u64)> {
    let Some(inner) = element.get("elem") else {
        return Some((element.as_str()?.to_owned(), 0));
    };
    let packets = inner["counter"]["packets"].as_u64().unwrap_or_default();
    Some((inner["val"].as_str()?.to_owned(), packets))
}

/// A link, or the port and the VNI of a VXLAN, with the chain that a map leads to.
fn lead(element: &Value) -> Option<(String, String)> {
    let key = element.get(0)?;
    let link = match key.as_str() {
        Some(link) => link.to_owned(),
        None => {
            let numbers = key.get("concat")?.as_array()?.iter();
            let numbers: Option<Vec<String>> =
                numbers.map(|it| Some(it.as_u64()?.to_string())).collect();
            numbers?.join(" . ")
        }
    };
    let target = element.get(1)?["goto"]["target"].as_str()?;
    Some((link, target.to_owned()))
}

/// The packets that the rules of a listed chain count.
#[must_use]
pub fn counted(listed: &Value) -> u64 {
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let statements = objects.filter_map(|object| object["rule"]["expr"].as_array());
    let counters = statements.flatten();
    counters
        .filter_map(|statement| statement["counter"]["packets"].as_u64())
        .fold(0, u64::saturating_add)
}

/// The network that a rule's comment names.
fn network_in(comment: &str) -> Option<NetworkId> {
    let (_, rest) = comment.split_once("network ")?;
    rest.split(' ').next()?.parse().ok()
}
