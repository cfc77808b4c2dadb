//! What is there on a host: links, addresses, switches and rules, in a form in which two hosts can be compared; and the host's rules
//! as what `nft -f` reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use anyhow::{Context as _, ensure};
use berth_agent::decide::{names, network::Link};
use berth_common::ids::NetworkId;
use serde_json::Value;

use super::lab::run;

/// All that matters of a host, as texts that say what they are.
pub(crate) fn of(networks: &[NetworkId]) -> anyhow::Result<BTreeSet<String>> {
    let mut state = BTreeSet::new();
    links("host", &[], &mut state)?;
    for network in networks {
        let namespace = names::namespace(*network);
        if fs::exists(format!("/run/netns/{namespace}"))? {
            links(&namespace, &["-n", &namespace], &mut state)?;
            let inside = Link::veth_namespace(*network);
            for setting in inside.settings() {
                let path = format!("/proc/sys/net/{}", setting.path(&inside.name()));
                let value = run("ip", &["netns", "exec", &namespace, "cat", &path])?;
                state.insert(format!("{namespace} {path} {}", value.trim()));
            }
        }
        for link in [Link::bridge(*network), Link::veth_host(*network)] {
            for setting in link.settings() {
                let path = format!("/proc/sys/net/{}", setting.path(&link.name()));
                if let Ok(value) = fs::read_to_string(&path) {
                    state.insert(format!("{path} {}", value.trim()));
                }
            }
        }
    }
    rules(&mut state)?;
    Ok(state)
}

fn links(place: &str, options: &[&str], state: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let shown = run("ip", &[options, &["-j", "-d", "address", "show"]].concat())?;
    let shown: Vec<Value> = serde_json::from_str(&shown)?;
    for link in &shown {
        let info = &link["linkinfo"];
        let of_bridge = [
            "stp_state",
            "forward_delay",
            "mcast_snooping",
            "nf_call_iptables",
            "nf_call_ip6tables",
        ]
        .map(|option| format!("{option}={}", info["info_data"][option]));
        let about = [
            "ifname",
            "ifalias",
            "address",
            "mtu",
            "master",
            "inet6_addr_gen_mode",
        ]
        .map(|field| format!("{field}={}", link[field]));
        let flags = link["flags"].as_array().context("a link without flags")?;
        let kind = info["info_kind"].as_str().unwrap_or_default();
        state.insert(format!(
            "{place} link {} up={} kind={kind} {}",
            about.join(" "),
            flags.contains(&Value::from("UP")),
            if kind == "bridge" {
                of_bridge.join(" ")
            } else {
                String::new()
            },
        ));
        for address in link["addr_info"].as_array().into_iter().flatten() {
            state.insert(format!(
                "{place} address {} {}/{}",
                link["ifname"], address["local"], address["prefixlen"]
            ));
        }
    }
    let shown = run(
        "ip",
        &[options, &["-j", "route", "show", "table", "all"]].concat(),
    )?;
    let shown: Vec<Value> = serde_json::from_str(&shown)?;
    for route in &shown {
        let [to, over, table] = ["dst", "dev", "table"].map(|field| &route[field]);
        state.insert(format!("{place} route {to} {over} {table}"));
    }
    Ok(())
}

/// Everything that nft lists but handles, counts and the order of a rule's conditions. The order of rules matters.
fn rules(state: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let listed = run("nft", &["-j", "list", "ruleset"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        let Some((kind, object)) = object.as_object().and_then(|it| it.iter().next()) else {
            continue;
        };
        let mut object = object.clone();
        let fields = object.as_object_mut().context("nft lists objects")?;
        fields.remove("handle");
        // nft itself changes the order of conditions when it reads again what it listed.
        if let Some(expressions) = fields.get_mut("expr").and_then(Value::as_array_mut) {
            expressions.sort_by_key(Value::to_string);
        }
        if kind == "metainfo" {
            continue;
        }
        if let Some(elements) = fields.remove("elem") {
            for element in elements.as_array().into_iter().flatten() {
                let element = match element.get("elem") {
                    Some(inner) => &inner["val"],
                    None => element,
                };
                state.insert(format!(
                    "nft element {} {} {element}",
                    fields["family"], fields["name"]
                ));
            }
        }
        let order = match kind.as_str() {
            "rule" => {
                let chain = format!("{} {}", fields["family"], fields["chain"]);
                let order = place.entry(chain).or_default();
                *order += 1;
                *order
            }
            _ => 0,
        };
        state.insert(format!("nft {kind} {order} {object}"));
    }
    Ok(())
}

/// Fails, and names what differs, unless both are the same.
pub(crate) fn ensure_same(
    berth: &BTreeSet<String>,
    by_hand: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let few = |texts: Vec<&String>| -> String {
        let texts = texts.into_iter().take(5).map(|text| format!("\n  {text}"));
        texts.collect()
    };
    ensure!(
        berth == by_hand,
        "what is there differs. Only berth has:{}\nonly by hand there is:{}",
        few(berth.difference(by_hand).collect()),
        few(by_hand.difference(berth).collect())
    );
    Ok(())
}

/// Rules in nft's language.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// What adds them.
    pub(crate) add: String,
    /// What removes them again.
    pub(crate) remove: String,
}

/// What nft lists of the host's tables, without counts, in its own language.
pub(crate) fn ruleset() -> anyhow::Result<String> {
    run("nft", &["-s", "list", "ruleset"])
}

/// A chain, map or set of a listing.
struct Block<'a> {
    /// Family and name of its table.
    table: &'a str,
    /// What it is, and its name.
    head: &'a str,
    text: String,
    /// What stands between the braces after `elements =`.
    elements: String,
}

impl Block<'_> {
    fn elements(&self) -> BTreeSet<&str> {
        let elements = self.elements.split(',').map(str::trim);
        elements.filter(|element| !element.is_empty()).collect()
    }
}

fn blocks(listing: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut table = "";
    let mut in_elements = false;
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(head) = line
            .strip_prefix('\t')
            .filter(|rest| !rest.starts_with('\t'))
        {
            if head == "}" {
                if let Some(block) = blocks.last_mut() {
                    block.text += "\t}\n";
                }
                continue;
            }
            blocks.push(Block {
                table,
                head: head.trim_end_matches(" {"),
                text: format!("{line}\n"),
                elements: String::new(),
            });
        } else if let Some(block) = blocks.last_mut().filter(|_| line.starts_with('\t')) {
            block.text += line;
            block.text += "\n";
            let begins = line.trim_start().strip_prefix("elements = {");
            in_elements |= begins.is_some();
            if in_elements {
                block.elements += begins.unwrap_or(line).trim_end_matches('}');
                in_elements = !line.trim_end().ends_with('}');
            }
        }
    }
    blocks
}

impl Rules {
    /// What the networks have beyond what the host has anyway.
    pub(crate) fn between(host: &str, all: &str) -> anyhow::Result<Self> {
        let there = blocks(host);
        let before = |block: &Block<'_>| {
            there
                .iter()
                .find(|other| (other.table, other.head) == (block.table, block.head))
        };
        let mut tables: BTreeMap<&str, String> = BTreeMap::new();
        let (mut elements, mut unlinked) = (String::new(), String::new());
        let (mut emptied, mut removed) = (String::new(), String::new());
        let all = blocks(all);
        for block in &all {
            let name = block
                .head
                .split_once(' ')
                .context("a block without name")?
                .1;
            if let Some(before) = before(block) {
                let before = before.elements();
                let more = block.elements().into_iter();
                let more: Vec<&str> = more.filter(|it| !before.contains(it)).collect();
                if !more.is_empty() {
                    let what = format!("element {} {name} {{ {} }}", block.table, more.join(", "));
                    writeln!(elements, "add {what}")?;
                    writeln!(unlinked, "delete {what}")?;
                }
                continue;
            }
            *tables.entry(block.table).or_default() += &block.text;
            if let Some(chain) = block.head.strip_prefix("chain ") {
                writeln!(emptied, "flush chain {} {chain}", block.table)?;
            }
            let what = format!(
                "delete {} {} {name}\n",
                block.head.split(' ').next().unwrap_or_default(),
                block.table
            );
            // Chains first: they name sets.
            if what.starts_with("delete chain") {
                removed.insert_str(0, &what);
            } else {
                removed += &what;
            }
        }
        let tables = tables
            .into_iter()
            .map(|(table, text)| format!("table {table} {{\n{text}}}\n"));
        Ok(Self {
            add: tables.chain([elements]).collect(),
            remove: [unlinked, emptied, removed].concat(),
        })
    }
}
