//! Subnets as tables.

use berth_common::message::view::SubnetView;

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};

/// Subnets, one in a row.
pub(crate) fn list(subnets: &[SubnetView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Network"),
        Column::Text("Subnet"),
        Column::Text("Gateway"),
        Column::Text("DHCP"),
    ];
    let row = |subnet: &SubnetView| {
        vec![
            subnet.id.to_string(),
            or_none(subnet.name.as_ref()),
            subnet.network_id.to_string(),
            subnet.cidr.to_string(),
            or_none(subnet.gateway_ip),
            or_none(subnet.dhcp_ip),
        ]
    };
    rows(&columns, subnets.iter().map(row), width)
}

/// Everything about one subnet.
pub(crate) fn show(subnet: &SubnetView, width: Width) -> String {
    let pools = subnet
        .allocation_pools
        .iter()
        .map(|pool| format!("{}-{}", pool.start, pool.end));
    let routes = subnet
        .host_routes
        .iter()
        .map(|route| format!("{} via {}", route.destination, route.nexthop));
    let mode = subnet.ipv6_address_mode.map(|mode| mode.as_str());
    let properties = [
        ("ID", subnet.id.to_string()),
        ("Name", or_none(subnet.name.as_ref())),
        ("Network", subnet.network_id.to_string()),
        ("Subnet", subnet.cidr.to_string()),
        ("Gateway", or_none(subnet.gateway_ip)),
        ("DHCP", or_none(subnet.dhcp_ip)),
        ("Allocation pools", joined(pools, ", ")),
        ("DNS", joined(&subnet.dns_nameservers, ", ")),
        ("Host routes", joined(routes, ", ")),
        ("IPv6 address mode", or_none(mode)),
        ("Created", subnet.created_at.to_rfc3339()),
    ];
    fields(properties, width)
}

/// What became of `subnet delete`, in a line.
pub(crate) fn deleted(subnet: &SubnetView) -> String {
    format!("subnet {} ({}): deleted\n", subnet.cidr, subnet.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    #[test]
    fn subnets_are_listed() {
        insta::assert_snapshot!(list(&network().subnets, Width::Unlimited), @r#"
        +--------------------------------------+-------+--------------------------------------+-------------+---------+----------+
        | ID                                   | Name  | Network                              | Subnet      | Gateway | DHCP     |
        +--------------------------------------+-------+--------------------------------------+-------------+---------+----------+
        | 0191e7a0-0000-7000-8000-000000000004 | first | 0191e7a0-0000-7000-8000-000000000003 | 10.0.0.0/24 | -       | 10.0.0.2 |
        +--------------------------------------+-------+--------------------------------------+-------------+---------+----------+
        "#);
    }

    #[test]
    fn a_subnet_is_shown_whole() {
        insta::assert_snapshot!(show(&network().subnets[0], Width::Unlimited), @r#"
        +-------------------+--------------------------------------+
        | Field             | Value                                |
        +-------------------+--------------------------------------+
        | ID                | 0191e7a0-0000-7000-8000-000000000004 |
        | Name              | first                                |
        | Network           | 0191e7a0-0000-7000-8000-000000000003 |
        | Subnet            | 10.0.0.0/24                          |
        | Gateway           | -                                    |
        | DHCP              | 10.0.0.2                             |
        | Allocation pools  | 10.0.0.1-10.0.0.254                  |
        | DNS               | 10.0.0.53, 10.0.1.53                 |
        | Host routes       | 10.9.0.0/16 via 10.0.0.3             |
        | IPv6 address mode | -                                    |
        | Created           | 2026-01-02T03:04:05+00:00            |
        +-------------------+--------------------------------------+
        "#);
    }
}
