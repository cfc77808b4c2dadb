//! Ports as tables.

use berth_common::{
    document::{BandwidthLimit, MirrorDirection, MirrorTarget},
    message::{
        counters::{LinkCounts, PortCounted},
        view::PortView,
    },
};

use super::{
    or_none,
    table::{Column, Width, fields, rows},
};
use crate::wait::port::{label, summary};

/// Ports, one in a row.
pub(crate) fn list(ports: &[PortView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("Network"),
        Column::Text("MAC address"),
        Column::Text("IP addresses"),
        Column::Text("Status"),
        Column::Text("Instance"),
    ];
    let row = |port: &PortView| {
        vec![
            port.id.to_string(),
            or_none(port.name.as_ref()),
            network(port),
            port.mac_address.to_string(),
            addresses(port),
            port.status.as_str().to_owned(),
            or_none(port.instance_id),
        ]
    };
    rows(&columns, ports.iter().map(row), width)
}

fn network(port: &PortView) -> String {
    port.network
        .as_ref()
        .map_or_else(|| port.network_id.to_string(), ToString::to_string)
}

fn addresses(port: &PortView) -> String {
    let addresses = port.fixed_ips.iter().map(|fixed| fixed.ip_address);
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    addresses.join(" ")
}

/// Everything about one port.
pub(crate) fn show(port: &PortView, width: Width) -> String {
    let state = if port.admin_state_up { "up" } else { "down" };
    let security = if port.port_security_enabled {
        "enabled"
    } else {
        "disabled"
    };
    let goes = if port.delete_with_instance {
        "yes"
    } else {
        "no"
    };
    let mut lines = vec![
        ("ID", port.id.to_string()),
        ("Name", or_none(port.name.as_ref())),
        ("Project", port.project.to_string()),
        ("Network", network(port)),
        ("MAC address", port.mac_address.to_string()),
        ("IP addresses", addresses(port)),
        ("Status", port.status.as_str().to_owned()),
        ("Admin state", state.to_owned()),
        ("Instance", or_none(port.instance_id)),
        ("Goes with it", goes.to_owned()),
        ("Port security", security.to_owned()),
    ];
    let groups = port.security_groups.iter();
    lines.extend(groups.map(|group| ("Security group", format!("{} ({})", group.name, group.id))));
    for pair in &port.allowed_address_pairs {
        let text = match pair.mac_address {
            Some(mac) => format!("{} with {mac}", pair.ip_address),
            None => pair.ip_address.to_string(),
        };
        lines.push(("Allowed address", text));
    }
    lines.push(("Egress limit", or_none(port.qos.egress.map(limit))));
    lines.push(("Ingress limit", or_none(port.qos.ingress.map(limit))));
    for mirror in &port.mirrors {
        let which = match mirror.direction {
            MirrorDirection::Ingress => "in",
            MirrorDirection::Egress => "out",
            MirrorDirection::Both => "both",
        };
        let text = match &mirror.to {
            MirrorTarget::Port(port) => format!("{which} to port {port}"),
            MirrorTarget::Interface(link) => format!("{which} to link {link}"),
        };
        lines.push(("Mirror", text));
    }
    let created = port.created_at.map(|time| time.to_rfc3339());
    lines.push(("Created", or_none(created)));
    fields(lines, width)
}

fn limit(limit: BandwidthLimit) -> String {
    match limit.max_burst_kbps {
        0 => format!("{} kbit/s", limit.max_kbps),
        burst => format!("{} kbit/s, bursts of {burst} kbit", limit.max_kbps),
    }
}

/// What went through a port, and what was dropped.
pub(crate) fn counters(counted: &PortCounted, width: Width) -> String {
    let mut lines = vec![
        ("Port", counted.port_id.to_string()),
        ("Instance", counted.instance_id.to_string()),
        ("Host", counted.host.to_string()),
        ("Tap", counted.tap.clone()),
        ("Guest received", traffic(counted.received)),
        ("Guest sent", traffic(counted.sent)),
    ];
    let dropped = counted.filter_dropped_packets.iter();
    let dropped = dropped.filter(|(_, packets)| **packets > 0);
    let dropped: Vec<_> = dropped
        .map(|(why, packets)| ("Filter dropped", format!("{packets} packets: {why}")))
        .collect();
    if dropped.is_empty() {
        lines.push(("Filter dropped", "nothing".to_owned()));
    }
    lines.extend(dropped);
    let forged = counted.forged_metadata_requests;
    lines.push(("Forged metadata requests", or_none(forged)));
    fields(lines, width)
}

fn traffic(counts: LinkCounts) -> String {
    format!(
        "{} bytes in {} packets; {} dropped by the link, {} spoilt",
        counts.bytes, counts.packets, counts.dropped_packets, counts.errors
    )
}

/// What became of a port, in a line.
pub(crate) fn outcome(port: &PortView) -> String {
    format!("port {}: {}\n", label(port), summary(port))
}

/// What became of `port delete`, in a line.
pub(crate) fn deleted(port: &PortView) -> String {
    format!("port {}: deleted\n", label(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::port;

    fn check(text: &str, expected: &[&str]) {
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_port_is_shown_whole() {
        let expected = [
            "uplink",
            "active",
            "52:54:00:12:34:56",
            "web (0191e7a0-0000-7000-8000-00000000000a)",
            "10.0.0.100/32",
            "10000 kbit/s, bursts of 2000 kbit",
            "both to link eth1",
            "enabled",
        ];
        check(&show(&port(), Width::Unlimited), &expected);
    }

    #[test]
    fn counters_are_seen_from_the_guest_and_name_what_was_dropped() {
        let direction = |bytes| LinkCounts {
            bytes,
            packets: 7,
            dropped_packets: 1,
            errors: 0,
        };
        let mut counted = PortCounted {
            port_id: port().id,
            instance_id: "0191e7a0-0000-7000-8000-00000000000a".parse().unwrap(),
            host: "hv1".parse().unwrap(),
            tap: "btt0123456789ab".to_owned(),
            received: direction(5000),
            sent: direction(900),
            filter_dropped_packets: [("spoofed_mac", 3), ("denied_ingress", 0)]
                .map(|(why, packets)| (why.to_owned(), packets))
                .into(),
            forged_metadata_requests: Some(2),
        };
        let text = counters(&counted, Width::Unlimited);
        check(
            &text,
            &[
                "| Guest received           | 5000 bytes in 7 packets; 1 dropped by the link, 0 spoilt |",
                "| Guest sent               | 900 bytes in 7",
                "3 packets: spoofed_mac",
                "| Forged metadata requests | 2 ",
            ],
        );
        assert!(!text.contains("denied_ingress"), "{text}");
        counted.filter_dropped_packets.clear();
        counted.forged_metadata_requests = None;
        let text = counters(&counted, Width::Unlimited);
        check(
            &text,
            &[
                "| Filter dropped           | nothing ",
                "| Forged metadata requests | - ",
            ],
        );
    }

    #[test]
    fn ports_are_listed() {
        let bare = PortView {
            name: None,
            instance_id: None,
            ..port()
        };
        let text = list(&[port(), bare], Width::Unlimited);
        check(
            &text,
            &["| uplink | net0    |", "| -      | net0    |", "10.0.0.5"],
        );
    }
}
