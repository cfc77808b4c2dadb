//! Routers and floating IPs as tables.

use berth_common::message::router::{FloatingIpView, RouterView};

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};

/// Routers, one in a row.
pub(crate) fn list(routers: &[RouterView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Project"),
        Column::Text("State"),
        Column::Text("External network"),
        Column::Number("Interfaces"),
        Column::Number("Hosts"),
    ];
    let row = |router: &RouterView| {
        vec![
            router.id.to_string(),
            router.name.to_string(),
            router.project.to_string(),
            state(router).to_owned(),
            external(router),
            router.interfaces.len().to_string(),
            router.hosts.len().to_string(),
        ]
    };
    rows(&columns, routers.iter().map(row), width)
}

const fn state(router: &RouterView) -> &'static str {
    if router.admin_state_up { "up" } else { "down" }
}

fn external(router: &RouterView) -> String {
    match (&router.external_network, router.external_network_id) {
        (Some(name), _) => name.to_string(),
        (None, id) => or_none(id),
    }
}

/// Everything about one router.
pub(crate) fn show(router: &RouterView, width: Width) -> String {
    let interfaces: Vec<String> = router
        .interfaces
        .iter()
        .map(|leg| {
            let network = leg
                .network
                .as_ref()
                .map_or_else(|| leg.network_id.to_string(), ToString::to_string);
            format!("{} in {} of {network}", leg.ip_address, or_none(leg.cidr))
        })
        .collect();
    let hosts: Vec<String> = router
        .hosts
        .iter()
        .map(|host| {
            let name = host
                .host
                .as_ref()
                .map_or_else(|| host.host_id.to_string(), ToString::to_string);
            let status = host.status.map_or("unknown", |status| status.as_str());
            let address = match (host.ip_addresses.is_empty(), router.external_network_id) {
                (false, _) => format!(", {}", joined(&host.ip_addresses, " ")),
                (true, Some(_)) => ", no external address left".to_owned(),
                (true, None) => String::new(),
            };
            format!("{name} ({status}{address})")
        })
        .collect();
    let routes: Vec<String> = router
        .routes
        .iter()
        .map(|route| format!("{} via {}", route.destination, route.nexthop))
        .collect();
    let snat = if router.enable_snat { "on" } else { "off" };
    let properties = [
        ("ID", router.id.to_string()),
        ("Name", router.name.to_string()),
        ("Project", router.project.to_string()),
        ("State", state(router).to_owned()),
        ("External network", external(router)),
        ("SNAT", snat.to_owned()),
        ("Interfaces", joined(&interfaces, "\n")),
        ("Routes", joined(&routes, "\n")),
        ("Hosts", joined(&hosts, "\n")),
        ("Created", router.created_at.to_rfc3339()),
    ];
    fields(properties, width)
}

/// What became of `router delete`, in a line.
pub(crate) fn deleted(router: &RouterView) -> String {
    format!("router {} ({}): deleted\n", router.name, router.id)
}

/// Floating IPs, one in a row.
pub(crate) fn list_floating(floating_ips: &[FloatingIpView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Address"),
        Column::Text("Project"),
        Column::Text("Network"),
        Column::Text("Fixed address"),
        Column::Text("Port"),
    ];
    let row = |floating: &FloatingIpView| {
        vec![
            floating.id.to_string(),
            floating.ip_address.to_string(),
            floating.project.to_string(),
            network(floating),
            or_none(floating.fixed_ip_address),
            or_none(floating.port_id),
        ]
    };
    rows(&columns, floating_ips.iter().map(row), width)
}

fn network(floating: &FloatingIpView) -> String {
    floating
        .network
        .as_ref()
        .map_or_else(|| floating.network_id.to_string(), ToString::to_string)
}

/// Everything about one floating IP.
pub(crate) fn show_floating(floating: &FloatingIpView, width: Width) -> String {
    let properties = [
        ("ID", floating.id.to_string()),
        ("Address", floating.ip_address.to_string()),
        ("Project", floating.project.to_string()),
        ("Network", network(floating)),
        ("Port", or_none(floating.port_id)),
        ("Instance", or_none(floating.instance_id)),
        ("Fixed address", or_none(floating.fixed_ip_address)),
        ("Router", or_none(floating.router_id)),
        ("Created", floating.created_at.to_rfc3339()),
    ];
    fields(properties, width)
}

/// What became of `floating-ip delete`, in a line.
pub(crate) fn deleted_floating(floating: &FloatingIpView) -> String {
    format!(
        "floating IP {} ({}): deleted\n",
        floating.ip_address, floating.id
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn router() -> RouterView {
        serde_json::from_value(json!({
            "id": "0191e7a0-0000-7000-8000-000000000021", "name": "r1", "project": "lab", "admin_state_up": true,
            "external_network_id": "0191e7a0-0000-7000-8000-000000000022", "external_network": "public",
            "enable_snat": true,
            "routes": [{ "destination": "192.0.2.0/24", "nexthop": "10.0.0.7" }],
            "interfaces": [{
                "subnet_id": "0191e7a0-0000-7000-8000-000000000004", "cidr": "10.0.0.0/24",
                "network_id": "0191e7a0-0000-7000-8000-000000000003", "network": "net0",
                "ip_address": "10.0.0.1", "mac_address": "52:54:00:00:00:01"
            }],
            "hosts": [
                { "host_id": "0191e7a0-0000-7000-8000-000000000031", "host": "hv1",
                  "ip_addresses": ["198.51.100.20"], "status": "converged" },
                { "host_id": "0191e7a0-0000-7000-8000-000000000032", "host": "hv2",
                  "ip_addresses": [], "status": null }
            ],
            "created_at": "2026-01-02T03:04:05Z"
        }))
        .unwrap()
    }

    #[test]
    fn a_router_is_shown_whole() {
        let text = show(&router(), Width::Unlimited);
        for part in [
            "10.0.0.1 in 10.0.0.0/24 of net0",
            "192.0.2.0/24 via 10.0.0.7",
            "hv1 (converged, 198.51.100.20)",
            "hv2 (unknown, no external address left)",
            "public",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let text = list(&[router()], Width::Unlimited);
        assert!(
            text.contains("| r1   | lab     | up    | public "),
            "{text}"
        );
    }

    #[test]
    fn a_floating_ip_is_shown_with_its_port_or_without() {
        let free: FloatingIpView = serde_json::from_value(json!({
            "id": "0191e7a0-0000-7000-8000-000000000041", "project": "lab",
            "network_id": "0191e7a0-0000-7000-8000-000000000022", "network": "public",
            "ip_address": "198.51.100.50", "port_id": null, "instance_id": null, "fixed_ip_address": null,
            "router_id": null, "created_at": "2026-01-02T03:04:05Z"
        }))
        .unwrap();
        let text = list_floating(std::slice::from_ref(&free), Width::Unlimited);
        assert!(
            text.contains("| 198.51.100.50 | lab     | public  | - "),
            "{text}"
        );
        assert!(show_floating(&free, Width::Unlimited).contains("198.51.100.50"));
    }
}
