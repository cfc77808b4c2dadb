//! How a `nat` network's packets are filtered and translated: a ruleset of nftables as data, a table per network.
//!
//! Guests go out by the host's routes, with the host's address. Nothing comes in but answers; the host itself answers ping at
//! the gateway's address and nothing else. Answers come in by links that would not forward by themselves: berth lets them,
//! and sees to it that they forward to its own bridges alone.
//!
//! What leaves has the host's own address, which other hosts may know as where guests of a VXLAN are: so nothing leaves to the port
//! of VXLANs.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::NetworkSpec,
    ids::NetworkId,
    message::report::{Fault, FaultCode},
};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    super::super::names,
    observed::{Forwards, UplinkObserved},
};

/// What the rules of a network follow from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatRules {
    /// The addresses of the gateway on the bridge, with their subnets.
    pub gateways: BTreeSet<Ipv4Net>,
    /// The links that forward only because berth lets them.
    pub open: BTreeSet<String>,
    /// The UDP port of VXLANs, of a host that has an address for them.
    #[serde(default)]
    pub tunnel_port: Option<u16>,
}

/// What is there of the rules: each chain, and how many rules are in it. Empty: no table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatShape(pub BTreeMap<String, usize>);

impl NatRules {
    /// The addresses of the bridge.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpNet> {
        self.gateways.iter().copied().map(IpNet::V4).collect()
    }

    /// What is there once they are carried out.
    #[must_use]
    pub fn shape(&self, network: NetworkId) -> NatShape {
        let mut shape: BTreeMap<String, usize> = CHAINS
            .iter()
            .map(|chain| (chain.name.to_owned(), 0))
            .collect();
        for (chain, _) in self.rules(network) {
            *shape.entry(chain.to_owned()).or_default() += 1;
        }
        NatShape(shape)
    }

    /// The commands for `nft -j -f -`: whatever was there is replaced at once.
    #[must_use]
    pub fn ruleset(&self, network: NetworkId) -> Value {
        let table = names::nat_table(network);
        let mut commands = vec![
            // Without it, removing a table that is not there fails.
            json!({"add": {"table": {"family": "inet", "name": table}}}),
            json!({"delete": {"table": {"family": "inet", "name": table}}}),
            json!({"add": {"table": {"family": "inet", "name": table}}}),
        ];
        commands.extend(CHAINS.iter().map(|chain| {
            json!({"add": {"chain": {
                "family": "inet", "table": table, "name": chain.name,
                "type": chain.kind, "hook": chain.name, "prio": chain.priority, "policy": "accept",
            }}})
        }));
        commands.extend(self.rules(network).into_iter().map(|(chain, expr)| {
            json!({"add": {"rule": {"family": "inet", "table": table, "chain": chain, "expr": expr}}})
        }));
        json!({ "nftables": commands })
    }

    /// The rules, with the chains they are in.
    fn rules(&self, network: NetworkId) -> Vec<(&'static str, Vec<Value>)> {
        let bridge = names::bridge(network);
        let inward = || matches(meta("iifname"), "==", json!(bridge));
        let outward = || matches(meta("oifname"), "==", json!(bridge));
        let answers = || {
            matches(
                json!({"ct": {"key": "state"}}),
                "in",
                json!(["established", "related"]),
            )
        };
        let accept = || json!({"accept": null});
        let drop = || json!({"drop": null});
        let gateways: Vec<String> = self
            .gateways
            .iter()
            .map(|gateway| gateway.addr().to_string())
            .collect();
        let mut rules = vec![(INPUT, vec![inward(), answers(), accept()])];
        if !gateways.is_empty() {
            let ping = matches(
                json!({"payload": {"protocol": "icmp", "field": "type"}}),
                "==",
                json!("echo-request"),
            );
            let to = matches(payload("daddr"), "==", json!({ "set": gateways }));
            rules.push((INPUT, vec![inward(), ping, to, accept()]));
        }
        rules.extend([
            (INPUT, vec![inward(), drop()]),
            // What stays in the bridge is seen here only with br_netfilter, and is the packet filter's.
            (FORWARD, vec![inward(), outward(), accept()]),
            (FORWARD, vec![outward(), answers(), accept()]),
            (FORWARD, vec![outward(), drop()]),
        ]);
        if let Some(port) = self.tunnel_port {
            let to = json!({"payload": {"protocol": "udp", "field": "dport"}});
            let tunnel = matches(to, "==", json!(port));
            let counter = json!({"counter": null});
            rules.push((FORWARD, vec![inward(), tunnel, counter, drop()]));
        }
        if !self.open.is_empty() {
            let open: Vec<&String> = self.open.iter().collect();
            let any_bridge = format!("{}b*", names::LINK_PREFIX);
            let from = matches(meta("iifname"), "==", json!({ "set": open }));
            let elsewhere = matches(meta("oifname"), "!=", json!(any_bridge));
            rules.push((FORWARD, vec![from, elsewhere, drop()]));
        }
        for gateway in &self.gateways {
            let subnet = json!({"prefix": {"addr": gateway.network().to_string(), "len": gateway.prefix_len()}});
            let from = matches(payload("saddr"), "==", subnet);
            let away = matches(meta("oifname"), "!=", json!(bridge));
            rules.push((POSTROUTING, vec![from, away, json!({"masquerade": null})]));
        }
        rules
    }
}

/// The links to close: a network let them forward, needs them no more, and no other network does.
#[must_use]
pub fn no_longer_needed(
    opened: &BTreeSet<String>,
    needed: &BTreeSet<String>,
    by_others: &BTreeSet<String>,
) -> BTreeSet<String> {
    opened
        .iter()
        .filter(|link| !needed.contains(*link) && !by_others.contains(*link))
        .cloned()
        .collect()
}

/// The commands that remove a network's table, whether or not it is there.
#[must_use]
pub fn removal(network: NetworkId) -> Value {
    let table = json!({"table": {"family": "inet", "name": names::nat_table(network)}});
    json!({"nftables": [{"add": table}, {"delete": table}]})
}

struct Chain {
    name: &'static str,
    kind: &'static str,
    priority: i32,
}

const INPUT: &str = "input";
const FORWARD: &str = "forward";
const POSTROUTING: &str = "postrouting";
/// The base chains, named as the hooks they are at.
const CHAINS: [Chain; 3] = [
    Chain {
        name: INPUT,
        kind: "filter",
        priority: 0,
    },
    Chain {
        name: FORWARD,
        kind: "filter",
        priority: 0,
    },
    Chain {
        name: POSTROUTING,
        kind: "nat",
        priority: 100,
    },
];

fn matches(left: Value, op: &str, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn payload(field: &str) -> Value {
    json!({"payload": {"protocol": "ip", "field": field}})
}

/// What a network needs; the fault: its addresses are the host's own, or another network's.
pub(super) fn wanted(spec: &NetworkSpec, observed: &UplinkObserved) -> Result<NatRules, Fault> {
    let host = &observed.host;
    let gateways: BTreeSet<Ipv4Net> = spec
        .subnets
        .iter()
        .filter_map(
            |subnet| match IpNet::new(subnet.gateway_ip?, subnet.cidr.net().prefix_len()) {
                Ok(IpNet::V4(gateway)) => Some(gateway),
                Ok(IpNet::V6(_)) | Err(_) => None,
            },
        )
        .collect();
    for gateway in &gateways {
        let found = host.addresses.iter().find_map(|(link, addresses)| {
            let address = addresses.iter().find(|address| overlap(address, gateway))?;
            Some((link, address))
        });
        if let Some((link, address)) = found {
            return Err(Fault {
                code: FaultCode::Network,
                message: format!(
                    "subnet {} overlaps {address} of link {link} of this host: nat networks go out by the host's routes, \
                     so their addresses must be no others' on the host",
                    gateway.trunc()
                ),
            });
        }
    }
    let before = observed.nat.iter().flat_map(|nat| &nat.rules.open);
    let closed = host
        .outward
        .iter()
        .filter(|(_, forwards)| **forwards == Forwards::No);
    let open = closed
        .map(|(link, _)| link)
        .chain(before)
        .chain(&host.opened)
        .filter(|link| host.outward.contains_key(*link))
        .cloned()
        .collect();
    Ok(NatRules {
        gateways,
        open,
        tunnel_port: host.tunnel.as_ref().map(|tunnel| tunnel.port),
    })
}

fn overlap(address: &IpNet, gateway: &Ipv4Net) -> bool {
    match address {
        IpNet::V4(address) => {
            address.contains(&gateway.network()) || gateway.contains(&address.network())
        }
        IpNet::V6(_) => false,
    }
}
