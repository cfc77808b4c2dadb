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
        insta::assert_snapshot!(list(&network().subnets, Width::Unlimited), @"");
    }

    #[test]
    fn a_subnet_is_shown_whole() {
        insta::assert_snapshot!(show(&network().subnets[0], Width::Unlimited), @"");
    }
}
