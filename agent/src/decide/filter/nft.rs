//! The few parts of nftables that berth's rulesets are made of, as data, and their form in nft's JSON
//! (libnftables-json(5)). Nothing here knows what a rule is for.

use std::{
    hash::{Hash as _, Hasher},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The table of this name in each family is berth's, with all that is in it.
pub const TABLE: &str = "berth";

/// The families that berth has a table in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Frames that a bridge forwards, or that are to or from the bridge itself.
    Bridge,
    /// Packets as the IP stack sees them.
    Inet,
}

impl Family {
    /// nft's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Inet => "inet",
        }
    }
}

/// A rule of a chain. It is known again by a digest in its comment: nft lists expressions in other words than it took them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it asks and does, in this order.
    pub statements: Vec<Statement>,
    /// Whose it is, for whoever reads the ruleset; part of the comment.
    pub whose: String,
}

/// One thing that a rule asks or does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// Goes on only if this holds.
    Match(Field, Op, Operand),
    /// Does what a named map says of a link.
    Vmap(Field, &'static str),
    /// Counts.
    Count,
    /// The packet passes this hook's chain.
    Accept,
    /// The packet ends here.
    Drop,
    /// Goes through a chain, and on if that decides nothing.
    Jump(String),
    /// Goes through a chain, and not back.
    Goto(String),
    /// Sets bits of the packet's mark.
    SetMarkBits(u32),
    /// Clears bits of the packet's mark.
    ClearMarkBits(u32),
    /// Sets the zone in which its connection is looked for.
    SetZone(u16),
    /// Sets an Ethernet address of the frame.
    SetMac(Field, String),
}

/// Something of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// A field of a header, in nft's words.
    Header(&'static str, &'static str),
    /// Bits of the header above IP: offset and length.
    Transport(u16, u16),
    /// What the kernel knows of the packet, in nft's words.
    Meta(&'static str),
    /// What it knows of the connection, in nft's words.
    Ct(&'static str),
    /// Bits of its mark.
    MarkBits(u32),
    /// The bit of the destination that tells a group of receivers from one.
    GroupBit,
}

/// How a field and an operand are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// It is, or is one of.
    Is,
    /// It is not, or is none of.
    IsNot,
    /// One of these bits is set.
    Has,
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A word of nft's, an Ethernet address, a number in hexadecimal.
    Text(String),
    /// A number.
    Number(u32),
    /// From … to.
    Range(u16, u16),
    /// Addresses.
    Net(IpNet),
    /// One of these.
    Set(Vec<Operand>),
    /// One of a named set.
    Named(String),
}

impl Operand {
    /// A word.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// One of these; a single one needs no set.
    #[must_use]
    pub fn one_of(mut operands: Vec<Self>) -> Self {
        match operands.pop() {
            Some(only) if operands.is_empty() => only,
            last => Self::Set(operands.into_iter().chain(last).collect()),
        }
    }

    /// One of these numbers.
    #[must_use]
    pub fn numbers(numbers: &[u32]) -> Self {
        Self::one_of(numbers.iter().copied().map(Self::Number).collect())
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
            Self::Range(min, max) => json!({ "range": [min, max] }),
            Self::Net(net) => net_json(*net),
            Self::Set(operands) => {
                json!({ "set": operands.iter().map(Self::json).collect::<Vec<_>>() })
            }
            Self::Named(name) => json!(format!("@{name}")),
        }
    }
}

/// An address or a prefix, as an element of a set or the right side of a comparison.
#[must_use]
pub fn net_json(net: IpNet) -> Value {
    if net.prefix_len() == net.max_prefix_len() {
        json!(net.addr().to_string())
    } else {
        json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } })
    }
}

/// Reads what [`net_json`] writes, and nft lists.
#[must_use]
pub fn net_of_json(value: &Value) -> Option<IpNet> {
    if let Some(text) = value.as_str() {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    }
    let prefix = value.get("prefix")?;
    let address = prefix.get("addr")?.as_str()?.parse().ok()?;
    let len = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
    IpNet::new(address, len).ok()
}

impl Field {
    fn json(self) -> Value {
        match self {
            Self::Header(protocol, field) => {
                json!({ "payload": { "protocol": protocol, "field": field } })
            }
            Self::Transport(offset, len) => {
                json!({ "payload": { "base": "th", "offset": offset, "len": len } })
            }
            Self::Meta(key) => json!({ "meta": { "key": key } }),
            Self::Ct(key) => json!({ "ct": { "key": key } }),
            Self::MarkBits(bits) => json!({ "&": [{ "meta": { "key": "mark" } }, bits] }),
            Self::GroupBit => json!({ "&": [
                { "payload": { "protocol": "ether", "field": "daddr" } },
                "01:00:00:00:00:00"
            ] }),
        }
    }
}

impl Statement {
    fn json(&self) -> Value {
        let mark = || json!({ "meta": { "key": "mark" } });
        match self {
            Self::Match(field, op, operand) => {
                let op = match op {
                    Op::Is => "==",
                    Op::IsNot => "!=",
                    Op::Has => "in",
                };
                json!({ "match": { "op": op, "left": field.json(), "right": operand.json() } })
            }
            Self::Vmap(field, map) => {
                json!({ "vmap": { "key": field.json(), "data": format!("@{map}") } })
            }
            Self::Count => json!({ "counter": null }),
            Self::Accept => json!({ "accept": null }),
            Self::Drop => json!({ "drop": null }),
            Self::Jump(chain) => json!({ "jump": { "target": chain } }),
            Self::Goto(chain) => json!({ "goto": { "target": chain } }),
            Self::SetMarkBits(bits) => {
                json!({ "mangle": { "key": mark(), "value": { "|": [mark(), bits] } } })
            }
            Self::ClearMarkBits(bits) => {
                json!({ "mangle": { "key": mark(), "value": { "&": [mark(), !bits] } } })
            }
            Self::SetZone(zone) => {
                json!({ "mangle": { "key": { "ct": { "key": "zone" } }, "value": zone } })
            }
            Self::SetMac(field, mac) => {
                json!({ "mangle": { "key": field.json(), "value": mac } })
            }
        }
    }
}

/// Digests what a rule says, without the detour over JSON: a plan does this for every rule of a network. Another compiler may order
/// the bytes in another way; then the chains are filled anew once.
struct Digested(Sha256);

impl Hasher for Digested {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(self.0.clone().finalize());
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl Rule {
    /// Its expressions in nft's words.
    fn expressions(&self) -> Value {
        Value::Array(self.statements.iter().map(Statement::json).collect())
    }

    /// Its comment: a digest of what it says, and whose it is. Two rules with the same comment are the same.
    #[must_use]
    pub fn comment(&self) -> String {
        let mut digest = Digested(Sha256::new());
        self.statements.hash(&mut digest);
        format!("{:016x} {}", digest.finish(), self.whose)
    }

    /// The command that adds it at the end of a chain.
    #[must_use]
    pub fn add(&self, family: Family, chain: &str) -> Value {
        json!({ "add": { "rule": {
            "family": family.as_str(),
            "table": TABLE,
            "chain": chain,
            "comment": self.comment(),
            "expr": self.expressions(),
        } } })
    }
}

/// Where a link is compared: what a packet came in by.
pub const IN: Field = Field::Meta("iifname");
/// What it goes out by.
pub const OUT: Field = Field::Meta("oifname");
/// What is above Ethernet, its tags left out.
pub const ABOVE: Field = Field::Meta("protocol");
/// What is above IP.
pub const L4: Field = Field::Meta("l4proto");
/// The sender's Ethernet address.
pub const MAC_FROM: Field = Field::Header("ether", "saddr");
/// The receiver's Ethernet address.
pub const MAC_TO: Field = Field::Header("ether", "daddr");
/// What the frame says it carries.
pub const ETHER_TYPE: Field = Field::Header("ether", "type");
/// The type of an `ICMPv6` message.
pub const ICMP6: Field = Field::Header("icmpv6", "type");
/// The type of an ICMP message.
pub const ICMP4: Field = Field::Header("icmp", "type");
/// The source port of UDP.
pub const UDP_FROM: Field = Field::Header("udp", "sport");
/// The destination port of UDP.
pub const UDP_TO: Field = Field::Header("udp", "dport");
/// The source port of TCP.
pub const TCP_FROM: Field = Field::Header("tcp", "sport");
/// The destination port of TCP.
pub const TCP_TO: Field = Field::Header("tcp", "dport");
