//! Networks as tables.

use berth_common::message::view::NetworkView;

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};

/// Networks, one in a row.
pub(crate) fn list(networks: &[NetworkView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Project"),
        Column::Text("Type"),
        Column::Text("Segment"),
        Column::Text("Subnets"),
        Column::Number("MTU"),
        Column::Number("Ports"),
    ];
    let row = |network: &NetworkView| {
        vec![
            network.id.to_string(),
            network.name.to_string(),
            network.project.to_string(),
            network.network_type.as_str().to_owned(),
            segment(network),
            joined(network.subnets.iter().map(|subnet| subnet.cidr), ", "),
            network.mtu.to_string(),
            network.ports.to_string(),
        ]
    };
    rows(&columns, networks.iter().map(row), width)
}

/// Where it is on the wire: `physnet1 100`, `physnet1`, `4711`.
fn segment(network: &NetworkView) -> String {
    let physnet = network.physical_network.iter().map(ToString::to_string);
    let id = network.segmentation_id.iter().map(ToString::to_string);
    joined(physnet.chain(id), " ")
}

/// Whether it leads out of the cloud.
const fn external(network: &NetworkView) -> &'static str {
    if network.external { "yes" } else { "no" }
}

/// Everything about one network.
pub(crate) fn show(network: &NetworkView, width: Width) -> String {
    let mut properties = vec![
        ("ID", network.id.to_string()),
        ("Name", network.name.to_string()),
        ("Project", network.project.to_string()),
        ("Type", network.network_type.as_str().to_owned()),
        (
            "Physical network",
            or_none(network.physical_network.as_ref()),
        ),
        ("Segmentation ID", or_none(network.segmentation_id)),
        ("External", external(network).to_owned()),
        ("MTU", network.mtu.to_string()),
        ("Ports", network.ports.to_string()),
        ("Created", network.created_at.to_rfc3339()),
    ];
    for subnet in &network.subnets {
        let parts = [
            ("Subnet", subnet.cidr.to_string()),
            ("Subnet ID", subnet.id.to_string()),
            ("Gateway", or_none(subnet.gateway_ip)),
            ("DHCP", or_none(subnet.dhcp_ip)),
            ("DNS", joined(&subnet.dns_nameservers, ", ")),
        ];
        properties.extend(parts);
    }
    fields(properties, width)
}

/// What became of `network delete`, in a line.
pub(crate) fn deleted(network: &NetworkView) -> String {
    format!("network {} ({}): deleted\n", network.name, network.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    #[test]
    fn networks_are_listed() {
        insta::assert_snapshot!(list(&[network()], Width::Unlimited), @r#"
        +--------------------------------------+------+---------+-------+-------------+---------+----------+------+-------+
        | ID                                   | Name | Project | Type  | Subnet      | Gateway | DHCP     |  MTU | Ports |
        +--------------------------------------+------+---------+-------+-------------+---------+----------+------+-------+
        | 0191e7a0-0000-7000-8000-000000000003 | net0 | lab     | local | 10.0.0.0/24 | -       | 10.0.0.2 | 1500 |     1 |
        +--------------------------------------+------+---------+-------+-------------+---------+----------+------+-------+
        "#);
    }

    #[test]
    fn a_network_is_shown_whole() {
        insta::assert_snapshot!(show(&network(), Width::Unlimited), @r#"
        +-----------+--------------------------------------+
        | Field     | Value                                |
        +-----------+--------------------------------------+
        | ID        | 0191e7a0-0000-7000-8000-000000000003 |
        | Name      | net0                                 |
        | Project   | lab                                  |
        | Type      | local                                |
        | Subnet    | 10.0.0.0/24                          |
        | Subnet ID | 0191e7a0-0000-7000-8000-000000000004 |
        | Gateway   | -                                    |
        | DHCP      | 10.0.0.2                             |
        | DNS       | 10.0.0.53, 10.0.1.53                 |
        | MTU       | 1500                                 |
        | Ports     | 1                                    |
        | Created   | 2026-01-02T03:04:05+00:00            |
        +-----------+--------------------------------------+
        "#);
    }
}
