//! The rules of a security group as rules of nftables: each accepts what it allows.

use std::collections::BTreeSet;

use berth_common::{
    document::{
        EtherType, PortRange, RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule,
        SecurityGroupSpec,
    },
    ids::{NetworkId, SecurityGroupId},
};

use super::{
    names,
    nft::{ABOVE, Field, ICMP4, ICMP6, L4, Op, Operand, Statement, TCP_TO, UDP_TO},
    part::Version,
    wanted::within,
};

/// The set of the addresses of a group's members.
pub(super) fn set_name(network: NetworkId, group: SecurityGroupId, version: Version) -> String {
    let kind = match version {
        Version::V4 => "m4",
        Version::V6 => "m6",
    };
    names::of_group(kind, network, group)
}

/// The groups that a group's rules name as the other side.
pub(super) fn remotes(group: &SecurityGroupSpec) -> BTreeSet<SecurityGroupId> {
    let remotes = group.rules.iter().filter_map(|rule| match rule.remote {
        Some(RuleRemote::Group(remote)) => Some(remote),
        Some(RuleRemote::Prefix(_)) | None => None,
    });
    remotes.collect()
}

/// The rules for one direction.
pub(super) fn rules(
    network: NetworkId,
    group: &SecurityGroupSpec,
    direction: RuleDirection,
) -> Vec<Vec<Statement>> {
    let rules = group
        .rules
        .iter()
        .filter(|rule| rule.direction == direction);
    rules.filter_map(|rule| statements(network, rule)).collect()
}

/// What a rule asks; nothing, if no packet can be so.
fn statements(network: NetworkId, rule: &SecurityGroupRule) -> Option<Vec<Statement>> {
    let (version, header) = match rule.ethertype {
        EtherType::IPv4 => (Version::V4, "ip"),
        EtherType::IPv6 => (Version::V6, "ip6"),
    };
    let is = |field, operand| Statement::Match(field, Op::Is, operand);
    let mut statements = vec![is(ABOVE, Operand::text(header))];
    let other_side = match rule.direction {
        RuleDirection::Ingress => Field::Header(header, "saddr"),
        RuleDirection::Egress => Field::Header(header, "daddr"),
    };
    match rule.remote {
        None => {}
        Some(RuleRemote::Prefix(prefix)) => {
            if prefix.is_ipv6() != (version == Version::V6) {
                return None;
            }
            statements.extend(within(other_side, &BTreeSet::from([prefix.net().trunc()])));
        }
        Some(RuleRemote::Group(group)) => {
            let set = set_name(network, group, version);
            statements.push(is(other_side, Operand::Named(set)));
        }
    }
    let above = |name: &str| is(L4, Operand::text(name));
    match rule.protocol {
        None => {}
        Some(RuleProtocol::Tcp { ports }) => statements.push(match ports {
            None => above("tcp"),
            Some(ports) => is(TCP_TO, range(ports)),
        }),
        Some(RuleProtocol::Udp { ports }) => statements.push(match ports {
            None => above("udp"),
            Some(ports) => is(UDP_TO, range(ports)),
        }),
        Some(RuleProtocol::Icmp { kind, code }) => {
            let (protocol, kind_field, code_field) = match version {
                Version::V4 => ("icmp", ICMP4, Field::Header("icmp", "code")),
                Version::V6 => ("ipv6-icmp", ICMP6, Field::Header("icmpv6", "code")),
            };
            statements.push(above(protocol));
            let number = |number| Operand::Number(u32::from(number));
            statements.extend(kind.map(|kind| is(kind_field, number(kind))));
            statements.extend(code.map(|code| is(code_field, number(code))));
        }
        Some(RuleProtocol::Number { number }) => {
            statements.push(is(L4, Operand::Number(u32::from(number))));
        }
    }
    statements.push(Statement::Accept);
    Some(statements)
}

fn range(ports: PortRange) -> Operand {
    if ports.min == ports.max {
        Operand::Number(u32::from(ports.min))
    } else {
        Operand::Range(ports.min, ports.max)
    }
}
