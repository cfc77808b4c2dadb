//! Security groups and their rules as tables.

use berth_common::{
    document::{EtherType, PortRange, RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule},
    message::security_group::SecurityGroupView,
};

use super::table::{Column, Width, fields, rows};

/// Security groups, one in a row.
pub(crate) fn list(groups: &[SecurityGroupView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Project"),
        Column::Text("Description"),
        Column::Number("Rules"),
        Column::Number("Ports"),
    ];
    let row = |group: &SecurityGroupView| {
        vec![
            group.id.to_string(),
            group.name.to_string(),
            group.project.to_string(),
            group.description.clone(),
            group.rules.len().to_string(),
            group.ports.to_string(),
        ]
    };
    rows(&columns, groups.iter().map(row), width)
}

/// Everything about one security group.
pub(crate) fn show(group: &SecurityGroupView, width: Width) -> String {
    let mut lines = vec![
        ("ID", group.id.to_string()),
        ("Name", group.name.to_string()),
        ("Project", group.project.to_string()),
        ("Description", group.description.clone()),
        ("Ports", group.ports.to_string()),
    ];
    lines.extend(group.rules.iter().map(|rule| ("Rule", in_words(rule))));
    lines.push(("Created", group.created_at.to_rfc3339()));
    fields(lines, width)
}

/// Rules, one in a row.
pub(crate) fn rules<'r>(
    rules: impl Iterator<Item = &'r SecurityGroupRule>,
    width: Width,
) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Direction"),
        Column::Text("Ethertype"),
        Column::Text("Protocol"),
        Column::Text("Remote"),
    ];
    let row = |rule: &SecurityGroupRule| {
        vec![
            rule.id.to_string(),
            direction(rule.direction).to_owned(),
            ethertype(rule.ethertype).to_owned(),
            protocol(rule.protocol),
            remote(rule),
        ]
    };
    self::rows(&columns, rules.map(row), width)
}

fn in_words(rule: &SecurityGroupRule) -> String {
    format!(
        "{} {} {}, {}",
        direction(rule.direction),
        ethertype(rule.ethertype),
        protocol(rule.protocol),
        remote(rule)
    )
}

const fn direction(direction: RuleDirection) -> &'static str {
    match direction {
        RuleDirection::Ingress => "ingress",
        RuleDirection::Egress => "egress",
    }
}

const fn ethertype(ethertype: EtherType) -> &'static str {
    match ethertype {
        EtherType::IPv4 => "IPv4",
        EtherType::IPv6 => "IPv6",
    }
}

fn protocol(protocol: Option<RuleProtocol>) -> String {
    let with_ports = |name: &str, ports: Option<PortRange>| match ports {
        None => name.to_owned(),
        Some(ports) if ports.min == ports.max => format!("{name} {}", ports.min),
        Some(ports) => format!("{name} {}:{}", ports.min, ports.max),
    };
    match protocol {
        None => "any".to_owned(),
        Some(RuleProtocol::Tcp { ports }) => with_ports("tcp", ports),
        Some(RuleProtocol::Udp { ports }) => with_ports("udp", ports),
        Some(RuleProtocol::Icmp { kind, code }) => match (kind, code) {
            (None, _) => "icmp".to_owned(),
            (Some(kind), None) => format!("icmp type {kind}"),
            (Some(kind), Some(code)) => format!("icmp type {kind} code {code}"),
        },
        Some(RuleProtocol::Number { number }) => number.to_string(),
    }
}

fn remote(rule: &SecurityGroupRule) -> String {
    let word = match rule.direction {
        RuleDirection::Ingress => "from",
        RuleDirection::Egress => "to",
    };
    match &rule.remote {
        None => format!("{word} anywhere"),
        Some(RuleRemote::Prefix(prefix)) => format!("{word} {prefix}"),
        Some(RuleRemote::Group(group)) => format!("{word} group {group}"),
    }
}

/// What became of `security-group delete`, in a line.
pub(crate) fn deleted(group: &SecurityGroupView) -> String {
    format!("security group {} ({}): deleted\n", group.name, group.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::security_group;

    fn check(text: &str, expected: &[&str]) {
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_security_group_is_shown_with_its_rules() {
        let group = security_group();
        let expected = [
            "what the world may reach",
            "egress IPv4 any, to anywhere",
            "ingress IPv4 tcp 80:443, from 10.0.0.0/8",
            "ingress IPv6 icmp type 128, from group 0191e7a0-0000-7000-8000-00000000000a",
        ];
        check(&show(&group, Width::Unlimited), &expected);
        let rows = rules(group.rules.iter(), Width::Unlimited);
        check(&rows, &["tcp 80:443", "from 10.0.0.0/8", "to anywhere"]);
    }

    #[test]
    fn security_groups_are_listed() {
        let text = list(&[security_group()], Width::Unlimited);
        check(&text, &["web", "what the world may reach", "|     3 |"]);
    }
}
