//! The few parts of nftables that berth's rulesets are made of, as data, and their form in nft's JSON
//! (libnftables-json(5)). Nothing here knows what a rule is for.

use std::{
    fmt::{self, Write as _},
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
    /// What its destination is to the link it came in by, in nft's words.
    DestinationHere,
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

    fn write(&self, out: &mut String) {
        match self {
            Self::Text(text) => quote(out, text),
            Self::Number(number) => put(out, format_args!("{number}")),
            Self::Range(min, max) => put(out, format_args!(r#"{{"range":[{min},{max}]}}"#)),
            Self::Net(net) => put(out, format_args!("{}", net_json(*net))),
            Self::Set(operands) => {
                out.push_str(r#"{"set":"#);
                array(out, operands, Self::write);
                out.push('}');
            }
            Self::Named(name) => put(out, format_args!(r#""@{name}""#)),
        }
    }
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

/// A string of JSON.
fn quote(out: &mut String, text: &str) {
    put(out, format_args!("{}", Value::from(text)));
}

fn array<T>(out: &mut String, items: &[T], write: impl Fn(&T, &mut String)) {
    out.push('[');
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(']');
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
    fn write(self, out: &mut String) {
        match self {
            Self::Header(protocol, field) => put(
                out,
                format_args!(r#"{{"payload":{{"protocol":"{protocol}","field":"{field}"}}}}"#),
            ),
            Self::Transport(offset, len) => put(
                out,
                format_args!(r#"{{"payload":{{"base":"th","offset":{offset},"len":{len}}}}}"#),
            ),
            Self::Meta(key) => put(out, format_args!(r#"{{"meta":{{"key":"{key}"}}}}"#)),
            Self::Ct(key) => put(out, format_args!(r#"{{"ct":{{"key":"{key}"}}}}"#)),
            Self::MarkBits(bits) => put(out, format_args!(r#"{{"&":[{MARK},{bits}]}}"#)),
            Self::GroupBit => out.push_str(
                r#"{"&":[{"payload":{"protocol":"ether","field":"daddr"}},"01:00:00:00:00:00"]}"#,
            ),
            Self::DestinationHere => {
                out.push_str(r#"{"fib":{"result":"type","flags":["daddr","iif"]}}"#);
            }
        }
    }
}

/// The packet's mark.
const MARK: &str = r#"{"meta":{"key":"mark"}}"#;

impl Statement {
    fn write(&self, out: &mut String) {
        match self {
            Self::Match(field, op, operand) => {
                let op = match op {
                    Op::Is => "==",
                    Op::IsNot => "!=",
                    Op::Has => "in",
                };
                put(out, format_args!(r#"{{"match":{{"op":"{op}","left":"#));
                field.write(out);
                out.push_str(r#","right":"#);
                operand.write(out);
                out.push_str("}}");
            }
            Self::Vmap(field, map) => {
                out.push_str(r#"{"vmap":{"key":"#);
                field.write(out);
                put(out, format_args!(r#","data":"@{map}"}}}}"#));
            }
            Self::Count => out.push_str(r#"{"counter":null}"#),
            Self::Accept => out.push_str(r#"{"accept":null}"#),
            Self::Drop => out.push_str(r#"{"drop":null}"#),
            Self::Jump(chain) => put(out, format_args!(r#"{{"jump":{{"target":"{chain}"}}}}"#)),
            Self::Goto(chain) => put(out, format_args!(r#"{{"goto":{{"target":"{chain}"}}}}"#)),
            Self::SetMarkBits(bits) => put(
                out,
                format_args!(r#"{{"mangle":{{"key":{MARK},"value":{{"|":[{MARK},{bits}]}}}}}}"#),
            ),
            Self::ClearMarkBits(bits) => put(
                out,
                format_args!(
                    r#"{{"mangle":{{"key":{MARK},"value":{{"&":[{MARK},{}]}}}}}}"#,
                    !bits
                ),
            ),
            Self::SetZone(zone) => put(
                out,
                format_args!(r#"{{"mangle":{{"key":{{"ct":{{"key":"zone"}}}},"value":{zone}}}}}"#),
            ),
            Self::SetMac(field, mac) => {
                out.push_str(r#"{"mangle":{"key":"#);
                field.write(out);
                put(out, format_args!(r#","value":"{mac}"}}}}"#));
            }
        }
    }
}

/// That a field is this.
#[must_use]
pub const fn is(field: Field, operand: Operand) -> Statement {
    Statement::Match(field, Op::Is, operand)
}

/// That it is this word.
#[must_use]
pub fn word(field: Field, text: &str) -> Statement {
    is(field, Operand::text(text))
}

/// That it is one of these numbers.
#[must_use]
pub fn number(field: Field, numbers: &[u32]) -> Statement {
    is(field, Operand::numbers(numbers))
}

/// One of these words.
pub fn words<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Operand {
    Operand::one_of(texts.into_iter().map(Operand::text).collect())
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
    /// Its comment: a digest of what it says, and whose it is. Two rules with the same comment are the same.
    #[must_use]
    pub fn comment(&self) -> String {
        let mut digest = Digested(Sha256::new());
        self.statements.hash(&mut digest);
        format!("{:016x} {}", digest.finish(), self.whose)
    }

    /// The command that adds it at the end of a chain. As text at once: there are dozens for each port, and values of JSON on the way
    /// would take longer than all the rest.
    #[must_use]
    pub fn add(&self, family: Family, chain: &str) -> String {
        let family = family.as_str();
        let mut out = format!(
            r#"{{"add":{{"rule":{{"family":"{family}","table":"{TABLE}","chain":"{chain}","comment":"#
        );
        quote(&mut out, &self.comment());
        out.push_str(r#","expr":"#);
        array(&mut out, &self.statements, Statement::write);
        out.push_str("}}}");
        out
    }
}

/// Commands as one transaction, as `nft -j -f -` reads it.
#[must_use]
pub fn transaction(commands: &[String]) -> String {
    format!(r#"{{"nftables":[{}]}}"#, commands.join(","))
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
/// The VLAN that a frame's tag of 802.1Q names; 0 is none.
pub const VLAN: Field = Field::Header("vlan", "id");
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
