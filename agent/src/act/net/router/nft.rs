//! The packet filter in the namespace of the calling thread: `nft` with JSON, one transaction at a time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use serde_json::{Value, json};

use crate::{
    act::net::{error::NetError, nft_command::run},
    decide::router::{RulesObserved, rules::TABLE},
};

/// Carries out a transaction.
pub(super) async fn apply(transaction: &Value) -> Result<(), NetError> {
    run(transaction, &[]).await.map(drop)
}

/// What is there of the table.
pub(super) async fn look() -> Result<Option<RulesObserved>, NetError> {
    let ruleset = json!({ "nftables": [{ "list": { "ruleset": null } }] });
    Ok(read(&run(&ruleset, &[]).await?))
}

fn read(listed: &Value) -> Option<RulesObserved> {
    let objects = listed["nftables"].as_array()?;
    let of_table = |object: &Value, key: &str| object["family"] == "inet" && object[key] == TABLE;
    let has_table = objects
        .iter()
        .any(|object| of_table(&object["table"], "name"));
    if !has_table {
        return None;
    }
    let mut observed = RulesObserved::default();
    for object in objects {
        if of_table(&object["rule"], "table") {
            observed.count += 1;
            // One that is not of the newest wish, or not ours at all, makes the whole not so.
            let mark = object["rule"]["comment"].as_str().map(str::to_owned);
            observed.mark = match (observed.count, observed.mark) {
                (1, _) => mark,
                (_, Some(before)) if mark.as_ref() == Some(&before) => mark,
                _ => None,
            };
        }
        if of_table(&object["map"], "table") {
            match object["map"]["name"].as_str() {
                Some("floating_in") => observed.floating_in = pairs(&object["map"]),
                Some("floating_out") => observed.floating_out = pairs(&object["map"]),
                _ => {}
            }
        }
        let is_announced = matches!(
            object["set"]["name"].as_str(),
            Some("announced" | "announced6")
        );
        if is_announced && of_table(&object["set"], "table") {
            let elements = object["set"]["elem"].as_array().into_iter().flatten();
            observed
                .announced
                .extend(elements.filter_map(|element| element.as_str()?.parse::<IpAddr>().ok()));
        }
    }
    Some(observed)
}

fn pairs(map: &Value) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let elements = map["elem"].as_array().into_iter().flatten();
    elements
        .filter_map(|pair| {
            let address = |at: usize| pair[at].as_str()?.parse().ok();
            Some((address(0)?, address(1)?))
        })
        .collect()
}
