//! A network's DHCP as text: its document → dnsmasq's configuration and its list of hosts.
//!
//! Pure and free of paths: where the files are is told to dnsmasq on its command line. Only the ports of the
//! document get an answer, each exactly its own address, for ever: dnsmasq keeps no leases on disk, because the
//! list of hosts says all there is to know, and a restarted server confirms what a guest already has.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use berth_common::{
    document::{NetworkPort, NetworkSpec, SubnetSpec},
    ids::{NetworkId, SubnetId},
};

use super::names;

/// The most leases dnsmasq may hold: as many as one of the largest sensible subnets has. Its own limit is 1000.
const LEASES_MAX: u32 = 65_536;

/// What dnsmasq reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DhcpFiles {
    /// The configuration: read when it starts.
    pub config: String,
    /// The hosts it answers, one a line: read when it starts and on SIGHUP.
    pub hosts: String,
}

/// What dnsmasq shall read for a network.
#[must_use]
pub fn files(network: NetworkId, spec: &NetworkSpec) -> DhcpFiles {
    DhcpFiles {
        config: config(network, spec),
        hosts: hosts(spec),
    }
}

/// Whether new hosts can be told to a running dnsmasq by SIGHUP. It keeps what it leased in memory, so an address
/// that moved to another port would be denied to it until dnsmasq starts afresh: only additions can be told.
#[must_use]
pub fn only_adds(loaded: &str, wanted: &str) -> bool {
    let wanted: BTreeSet<&str> = wanted.lines().collect();
    loaded.lines().all(|line| wanted.contains(line))
}

fn config(network: NetworkId, spec: &NetworkSpec) -> String {
    let mut lines = vec![
        "# Written by berth-agent, which overwrites changes.".to_owned(),
        // DHCP only: no DNS, and nothing of the host's own files.
        "port=0".to_owned(),
        "no-hosts".to_owned(),
        "no-resolv".to_owned(),
        // Only the network's own namespace, and there only its one link.
        format!("interface={}", names::veth_namespace(network)),
        "except-interface=lo".to_owned(),
        "bind-dynamic".to_owned(),
        // The hosts file is the truth: no lease file, no probing, no names or identifiers from guests.
        "leasefile-ro".to_owned(),
        "dhcp-authoritative".to_owned(),
        "no-ping".to_owned(),
        "dhcp-ignore=tag:!known".to_owned(),
        "dhcp-ignore-names".to_owned(),
        "dhcp-ignore-clid".to_owned(),
        format!("dhcp-lease-max={LEASES_MAX}"),
        "quiet-dhcp".to_owned(),
        // Forced, because many clients use it but do not ask for it.
        format!("dhcp-option-force=option:mtu,{}", spec.mtu),
    ];
    for (index, subnet) in in_order(&spec.subnets).into_iter().enumerate() {
        let net = subnet.cidr.net();
        let tag = format!("s{index}");
        lines.push(format!(
            "dhcp-range=set:{tag},{},static,{},infinite",
            net.network(),
            net.netmask()
        ));
        // An option without a value is not sent; without the line, dnsmasq would send its own address.
        lines.push(option(&tag, "router", subnet.gateway_ip.as_slice()));
        lines.push(option(&tag, "dns-server", &subnet.dns_nameservers));
    }
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

fn option(tag: &str, name: &str, addresses: &[IpAddr]) -> String {
    let values: String = addresses
        .iter()
        .map(|address| format!(",{address}"))
        .collect();
    format!("dhcp-option=tag:{tag},option:{name}{values}")
}

fn hosts(spec: &NetworkSpec) -> String {
    let subnets: BTreeSet<SubnetId> = spec.subnets.iter().map(|subnet| subnet.id).collect();
    let lines: BTreeSet<String> = spec
        .ports
        .iter()
        .flat_map(|port| {
            let own = port
                .fixed_ips
                .iter()
                .filter(|fixed| subnets.contains(&fixed.subnet_id));
            own.map(|fixed| host(port, fixed.ip_address))
        })
        .collect();
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

/// One host. The dot at the end of its name keeps dnsmasq from reading names like `12`, `5h`, `infinite` or
/// `ignore` as a lease time or a keyword, and is not sent. Lower case, because dnsmasq treats other names as
/// international ones, and refuses some of them.
fn host(port: &NetworkPort, address: IpAddr) -> String {
    format!(
        "{},{address},{}.,infinite",
        port.mac_address,
        port.hostname.as_str().to_ascii_lowercase()
    )
}

/// Subnets in an order that does not depend on the order in the document.
fn in_order(subnets: &[SubnetSpec]) -> Vec<&SubnetSpec> {
    let mut sorted: Vec<&SubnetSpec> = subnets.iter().collect();
    sorted.sort_by_key(|subnet| (subnet.cidr, subnet.id));
    sorted
}

#[cfg(test)]
mod tests;
