//! The packet filter of a router, as data for `nft -j -f -`: one transaction that replaces all rules and leaves flows alone.
//!
//! ```text
//!   prerouting  mark what comes from outside; translate floating IPs to the addresses of their ports
//!   forward     from outside only: what belongs to a flow, and what a floating IP translated
//!   input       from outside only: what belongs to a flow, and ICMP
//!   postrouting to outside: from a port with a floating IP to that, from others to the leg's own address;
//!               from inside to a floating IP (and back in): likewise, so that answers come back by the router
//! ```
//!
//! The table is in the router's own namespace: addresses of other routers are not in it, and may be the same.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The table.
pub const TABLE: &str = "berth";
/// Raised when rules are made otherwise from the same wish.
const VERSION: u32 = 1;
/// What the mark of a packet is that came in from outside. A packet leaves a namespace without its mark.
const FROM_OUTSIDE: u32 = 1;
/// The counters, by the rules that use them. They go on when the rules are replaced.
pub const COUNTERS: [&str; 5] = [
    "floating_in",
    "floating_out",
    "translated_out",
    "denied_forward",
    "denied_input",
];

/// What the packet filter of a router is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The leg in the external network.
    pub outside: Option<Outside>,
    /// Floating IPs, each with the address of its port.
    pub floating: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

/// The way out, as the packet filter sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// The link.
    pub link: String,
    /// What becomes of the source of what goes out without a floating IP.
    pub source: Source,
}

/// What becomes of the source of what goes out without a floating IP (IPv4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It stays.
    Kept,
    /// It becomes this.
    Becomes(Ipv4Addr),
    /// It should become the leg's own address, and there is none: it is dropped, as answers would never come.
    Dropped,
}

impl Rules {
    /// Tells from which wish the rules in the kernel were made.
    #[must_use]
    pub fn mark(&self) -> String {
        let digest = Sha256::digest(format!("{VERSION} {self:?}").as_bytes());
        let hex: String = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("berth {hex}")
    }

    /// How many rules there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.rules().len()
    }

    /// The transaction.
    #[must_use]
    pub fn transaction(&self) -> Value {
        let mut commands = vec![add("table", json!({ "family": "inet", "name": TABLE }))];
        commands.extend(
            COUNTERS
                .iter()
                .map(|name| add("counter", named(name, json!({})))),
        );
        let map = json!({ "type": "ipv4_addr", "map": "ipv4_addr" });
        for name in ["floating_in", "floating_out"] {
            commands.push(add("map", named(name, map.clone())));
            commands.push(json!({ "flush": { "map": named(name, json!({})) } }));
        }
        for (name, of) in [("announced", "ipv4_addr"), ("announced6", "ipv6_addr")] {
            commands.push(add("set", named(name, json!({ "type": of }))));
        }
        for (name, kind, hook, priority) in CHAINS {
            let base = json!({ "type": kind, "hook": hook, "prio": priority, "policy": "accept" });
            commands.push(add("chain", named(name, base)));
            commands.push(json!({ "flush": { "chain": named(name, json!({})) } }));
        }
        if !self.floating.is_empty() {
            let pairs = |pair: fn((&Ipv4Addr, &Ipv4Addr)) -> Value| -> Vec<Value> {
                self.floating.iter().map(pair).collect()
            };
            let inward = pairs(|(floating, fixed)| json!([floating, fixed]));
            let outward = pairs(|(floating, fixed)| json!([fixed, floating]));
            for (name, elements) in [("floating_in", inward), ("floating_out", outward)] {
                commands.push(add("element", named(name, json!({ "elem": elements }))));
            }
        }
        for (chain, expressions) in self.rules() {
            let rule = json!({ "family": "inet", "table": TABLE, "chain": chain, "expr": expressions, "comment": self.mark() });
            commands.push(add("rule", rule));
        }
        json!({ "nftables": commands })
    }

    /// Each with its chain, in order.
    fn rules(&self) -> Vec<(&'static str, Vec<Value>)> {
        let Some(outside) = &self.outside else {
            // Says that the table is as it shall be.
            return vec![("mark", vec![json!({ "accept": null })])];
        };
        let from_outside = link("iifname", "==", &outside.link);
        let to_outside = link("oifname", "==", &outside.link);
        let to_inside = link("oifname", "!=", &outside.link);
        let accept = json!({ "accept": null });
        let drop = json!({ "drop": null });
        let known = json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"] } });
        let translated = json!({ "match": { "op": "in", "left": { "ct": { "key": "status" } }, "right": "dnat" } });
        let from_inside = json!({ "match": { "op": "!=", "left": { "meta": { "key": "mark" } }, "right": FROM_OUTSIDE } });
        let ipv4 = json!({ "match": { "op": "==", "left": { "meta": { "key": "nfproto" } }, "right": "ipv4" } });
        let icmp = |protocol: &str| json!({ "match": { "op": "==", "left": { "meta": { "key": "l4proto" } }, "right": protocol } });
        let count = |name: &str| json!({ "counter": name });
        let mapped = |field: &str, map: &str| json!({ "map": { "key": { "payload": { "protocol": "ip", "field": field } }, "data": format!("@{map}") } });
        let known_field = |field: &str, map: &str| json!({ "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": field } }, "right": format!("@{map}") } });
        let to = |kind: &str, address: Value| json!({ kind: { "family": "ip", "addr": address } });

        let mut rules = vec![
            (
                "mark",
                vec![
                    from_outside.clone(),
                    json!({ "mangle": { "key": { "meta": { "key": "mark" } }, "value": FROM_OUTSIDE } }),
                ],
            ),
            (
                "destination",
                vec![
                    known_field("daddr", "floating_in"),
                    count("floating_in"),
                    to("dnat", mapped("daddr", "floating_in")),
                ],
            ),
            (
                "forward",
                vec![from_outside.clone(), known.clone(), accept.clone()],
            ),
            (
                "forward",
                vec![from_outside.clone(), translated.clone(), accept.clone()],
            ),
            (
                "forward",
                vec![from_outside.clone(), count("denied_forward"), drop.clone()],
            ),
            ("input", vec![from_outside.clone(), known, accept.clone()]),
            (
                "input",
                vec![from_outside.clone(), icmp("icmp"), accept.clone()],
            ),
            (
                "input",
                vec![from_outside.clone(), icmp("ipv6-icmp"), accept],
            ),
            (
                "input",
                vec![from_outside, count("denied_input"), drop.clone()],
            ),
            (
                "source",
                vec![
                    to_outside.clone(),
                    known_field("saddr", "floating_out"),
                    count("floating_out"),
                    to("snat", mapped("saddr", "floating_out")),
                ],
            ),
            (
                "source",
                vec![
                    to_inside.clone(),
                    from_inside.clone(),
                    translated.clone(),
                    known_field("saddr", "floating_out"),
                    to("snat", mapped("saddr", "floating_out")),
                ],
            ),
        ];
        let back_in = match outside.source {
            Source::Becomes(address) => to("snat", json!(address)),
            Source::Kept | Source::Dropped => json!({ "masquerade": null }),
        };
        rules.push((
            "source",
            vec![to_inside, from_inside, translated, ipv4.clone(), back_in],
        ));
        match outside.source {
            Source::Kept => {}
            Source::Becomes(address) => rules.push((
                "source",
                vec![
                    to_outside,
                    ipv4,
                    count("translated_out"),
                    to("snat", json!(address)),
                ],
            )),
            Source::Dropped => {
                rules.push((
                    "source",
                    vec![to_outside, ipv4, count("denied_forward"), drop],
                ));
            }
        }
        rules
    }
}

/// Name, type, hook and priority of the chains. They are made once and stay: taking away the last one that translates would stop
/// the translation of flows that are under way.
const CHAINS: [(&str, &str, &str, i32); 5] = [
    ("mark", "filter", "prerouting", -150),
    ("destination", "nat", "prerouting", -100),
    ("forward", "filter", "forward", 0),
    ("input", "filter", "input", 0),
    ("source", "nat", "postrouting", 100),
];

/// The transaction that notes which addresses the external network was told of.
#[must_use]
pub fn announced<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> Value {
    let (ipv4, ipv6): (Vec<&IpAddr>, Vec<&IpAddr>) = addresses.partition(|it| it.is_ipv4());
    let mut commands = Vec::new();
    for (name, elements) in [("announced", ipv4), ("announced6", ipv6)] {
        commands.push(json!({ "flush": { "set": named(name, json!({})) } }));
        if !elements.is_empty() {
            commands.push(add("element", named(name, json!({ "elem": elements }))));
        }
    }
    json!({ "nftables": commands })
}

fn add(what: &str, object: Value) -> Value {
    json!({ "add": { what: object } })
}

/// An object of the table, with whatever else it has.
fn named(name: &str, mut more: Value) -> Value {
    for (key, value) in [("family", "inet"), ("table", TABLE), ("name", name)] {
        more[key] = json!(value);
    }
    more
}

fn link(key: &str, op: &str, name: &str) -> Value {
    json!({ "match": { "op": op, "left": { "meta": { "key": key } }, "right": name } })
}
