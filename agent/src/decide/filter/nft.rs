//! The few parts of nftables that berth's rulesets are made of, as data, and their form in nft's own language (nft(8)). Nothing here
//! knows what a rule is for.
//!
//! That language has quotes but no escapes. So whatever is a string here is written by [`quote`] or [`write_name`], which leave no
//! character that could end it: nothing that is put into a rule can become another one.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    hash::{Hash as _, Hasher},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::Value;
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
    /// Does what a named map says of a link, or of a VXLAN.
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
    /// The destination without its last four bits.
    Block,
    /// The UDP port that a packet is for, and the VNI if it is of a VXLAN (RFC 7348): three bytes, four behind the header of UDP.
    Tunnel,
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
            Self::Range(min, max) => put(out, format_args!("{min}-{max}")),
            Self::Net(net) => write_net(out, *net),
            Self::Set(operands) => write_set(out, operands, |operand, out| operand.write(out)),
            Self::Named(name) => {
                out.push('@');
                write_name(out, name);
            }
        }
    }
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

/// A string. What would end it, or the line, becomes a question mark: then it is no link's and no word of nft's.
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    let ends = |character: char| character == '"' || character.is_control();
    out.extend(text.chars().map(|it| if ends(it) { '?' } else { it }));
    out.push('"');
}

/// The name of a chain, map or set, for which nft has no quotes. What is not of a name becomes a question mark, and nft refuses that.
pub(super) fn write_name(out: &mut String, name: &str) {
    let is_of_name =
        |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
    out.extend(name.chars().map(|it| if is_of_name(it) { it } else { '?' }));
}

/// Numbers with dots between them, as they are in a set of several fields. What is of neither becomes a question mark, and nft refuses
/// that.
pub(super) fn write_numbers(out: &mut String, numbers: &str) {
    let is_of_numbers = |character: char| character.is_ascii_digit() || " .".contains(character);
    let written = numbers
        .chars()
        .map(|it| if is_of_numbers(it) { it } else { '?' });
    out.extend(written);
}

/// The elements of a set, between braces.
pub(super) fn write_set<T>(out: &mut String, items: &[T], write: impl Fn(&T, &mut String)) {
    out.push_str("{ ");
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write(item, out);
    }
    out.push_str(" }");
}

/// An address or a prefix, as an element of a set or the right side of a comparison.
pub(super) fn write_net(out: &mut String, net: IpNet) {
    if net.prefix_len() == net.max_prefix_len() {
        put(out, format_args!("{}", net.addr()));
    } else {
        put(out, format_args!("{}", net.trunc()));
    }
}

/// Reads an address or a prefix as nft lists it.
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
            Self::Header(protocol, field) => put(out, format_args!("{protocol} {field}")),
            Self::Transport(offset, len) => put(out, format_args!("@th,{offset},{len}")),
            Self::Meta(key) => put(out, format_args!("meta {key}")),
            Self::Ct(key) => put(out, format_args!("ct {key}")),
            Self::MarkBits(bits) => put(out, format_args!("meta mark & {bits:#x}")),
            Self::Block => out.push_str("ether daddr & ff:ff:ff:ff:ff:f0"),
            Self::GroupBit => out.push_str("ether daddr & 01:00:00:00:00:00"),
            Self::Tunnel => out.push_str("udp dport . @th,96,24"),
        }
    }
}

impl Statement {
    fn write(&self, out: &mut String) {
        match self {
            Self::Match(field, op, operand) => {
                field.write(out);
                out.push_str(match op {
                    Op::Is => " == ",
                    Op::IsNot => " != ",
                    // Of bits, it is what nft asks where nothing is said.
                    Op::Has => " ",
                });
                operand.write(out);
            }
            Self::Vmap(field, map) => {
                field.write(out);
                put(out, format_args!(" vmap @{map}"));
            }
            Self::Count => out.push_str("counter"),
            Self::Accept => out.push_str("accept"),
            Self::Drop => out.push_str("drop"),
            Self::Jump(chain) => {
                out.push_str("jump ");
                write_name(out, chain);
            }
            Self::Goto(chain) => {
                out.push_str("goto ");
                write_name(out, chain);
            }
            Self::SetMarkBits(bits) => {
                put(out, format_args!("meta mark set meta mark | {bits:#x}"));
            }
            Self::ClearMarkBits(bits) => {
                put(out, format_args!("meta mark set meta mark & {:#x}", !bits));
            }
            Self::SetZone(zone) => put(out, format_args!("ct zone set {zone}")),
            Self::SetMac(field, mac) => {
                field.write(out);
                out.push_str(" set ");
                quote(out, mac);
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

/// Digests what a rule says, without the detour over its text: a plan does this for every rule of a network. Another compiler may order
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

    /// The command that adds it at the end of a chain.
    #[must_use]
    pub fn add(&self, family: Family, chain: &str) -> String {
        let mut out = named("add rule", family, chain);
        out.push(' ');
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        for statement in &self.statements {
            statement.write(out);
            out.push(' ');
        }
        out.push_str("comment ");
        quote(out, &self.comment());
    }
}

/// The beginning of a command: what is done to an object of berth's table in a family.
#[must_use]
pub(super) fn named(what: &str, family: Family, name: &str) -> String {
    let mut out = format!("{what} {} {TABLE} ", family.as_str());
    write_name(&mut out, name);
    out
}

/// The commands that make chains, unless they are there, and add rules at their ends: one for each table. nft reads that quicker than
/// a command for each rule.
#[must_use]
pub(super) fn tables<'a>(
    chains: impl IntoIterator<Item = (Family, &'a str, &'a [Rule])>,
) -> Vec<String> {
    let mut tables: BTreeMap<Family, String> = BTreeMap::new();
    for (family, name, rules) in chains {
        let begin = || format!("table {} {TABLE} {{\n", family.as_str());
        let out = tables.entry(family).or_insert_with(begin);
        out.push_str("\tchain ");
        write_name(out, name);
        out.push_str(" {\n");
        for rule in rules {
            out.push_str("\t\t");
            rule.write(out);
            out.push('\n');
        }
        out.push_str("\t}\n");
    }
    let closed = tables.into_values().map(|table| table + "}");
    closed.collect()
}

/// Commands as one transaction, as `nft -f -` reads it.
#[must_use]
pub fn transaction(commands: &[String]) -> String {
    let mut text = commands.join("\n");
    text.push('\n');
    text
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
