//! A network's DHCP, router advertisements and names as text: its document → dnsmasq's configuration, its list of hosts and
//! its list of names.
//!
//! Pure and free of paths: where the files are is told to dnsmasq on its command line. Only the ports of the
//! document get an answer, each exactly its own address, for ever: dnsmasq keeps no leases on disk, because the
//! list of hosts says all there is to know, and a restarted server confirms what a guest already has.
//!
//! Names are those of all ports of the network that the document knows, on this host and on others. There is no way out of
//! the network's namespace, so nothing is asked elsewhere: what dnsmasq does not know, it refuses to answer.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use berth_common::{
    document::{Ipv6AddressMode, NetworkPort, NetworkSpec, SubnetSpec},
    ids::{NetworkId, SubnetId},
    names::InstanceName,
};
use ipnet::{IpNet, Ipv4Net};

use super::{metadata, names};

/// The domain of all names inside of networks. `internal` is reserved for such uses and will never be delegated.
pub const DOMAIN: &str = "berth.internal";

/// The most leases dnsmasq may hold: as many as one of the largest sensible subnets has. Its own limit is 1000.
const LEASES_MAX: u32 = 65_536;
/// The pause between two router advertisements that nobody asked for, in seconds.
const RA_INTERVAL: u32 = 600;
/// The routes of [`dhcp option 121`](https://www.rfc-editor.org/rfc/rfc3442), and the same as older Windows knows them.
const ROUTE_OPTIONS: [&str; 2] = ["option:classless-static-route", "249"];

/// What dnsmasq reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DhcpFiles {
    /// The configuration: read when it starts.
    pub config: String,
    /// The hosts it answers, one a line: read when it starts and on SIGHUP.
    pub hosts: String,
    /// The names it knows, one address a line: read when it starts and on SIGHUP.
    pub names: String,
}

/// What dnsmasq shall read for a network.
#[must_use]
pub fn files(network: NetworkId, spec: &NetworkSpec) -> DhcpFiles {
    DhcpFiles {
        config: config(network, spec),
        hosts: hosts(spec),
        names: names_known(spec),
    }
}

/// The subnets that have a DHCP server, with its address.
pub fn served(spec: &NetworkSpec) -> impl Iterator<Item = (&SubnetSpec, IpAddr)> {
    let subnets = spec.subnets.iter();
    subnets.filter_map(|subnet| Some((subnet, subnet.dhcp_ip?)))
}

/// Whether new hosts can be told to a running dnsmasq by SIGHUP. It keeps what it leased in memory, so an address
/// that moved to another port would be denied to it until dnsmasq starts afresh: only additions can be told.
#[must_use]
pub fn only_adds(loaded: &str, wanted: &str) -> bool {
    let wanted: BTreeSet<&str> = wanted.lines().collect();
    loaded.lines().all(|line| wanted.contains(line))
}

fn config(network: NetworkId, spec: &NetworkSpec) -> String {
    let link = names::veth_namespace(network);
    let mut lines = vec![
        "# Written by berth-agent, which overwrites changes.".to_owned(),
        // Names of the network only, and nothing of the host's own files.
        "no-hosts".to_owned(),
        "no-resolv".to_owned(),
        "no-poll".to_owned(),
        format!("domain={DOMAIN}"),
        format!("local=/{DOMAIN}/"),
        "domain-needed".to_owned(),
        "bogus-priv".to_owned(),
        // Only the network's own namespace, and there only its one link.
        format!("interface={link}"),
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
        "quiet-dhcp6".to_owned(),
        "quiet-ra".to_owned(),
        // Forced, because many clients use it but do not ask for it.
        format!("dhcp-option-force=option:mtu,{}", spec.mtu),
    ];
    if served(spec).any(|(subnet, _)| subnet.ipv6_address_mode.is_some()) {
        lines.push("enable-ra".to_owned());
        // A lifetime of 0: it tells addresses, and is no router itself.
        lines.push(format!("ra-param={link},mtu:{},{RA_INTERVAL},0", spec.mtu));
        lines.push(format!("dhcp-option=option6:domain-search,{DOMAIN}"));
    }
    for (index, subnet) in in_order(&spec.subnets).into_iter().enumerate() {
        let tag = format!("s{index}");
        lines.extend(match (subnet.dhcp_ip, subnet.cidr.net()) {
            (Some(IpAddr::V4(server)), IpNet::V4(net)) => subnet_v4(&tag, subnet, net, server),
            (Some(IpAddr::V6(_)), IpNet::V6(net)) => subnet
                .ipv6_address_mode
                .map(|mode| subnet_v6(&tag, subnet, IpNet::V6(net), mode))
                .unwrap_or_default(),
            _ => Vec::new(),
        });
    }
    text(lines)
}

/// A subnet of DHCPv4.
fn subnet_v4(tag: &str, subnet: &SubnetSpec, net: Ipv4Net, server: Ipv4Addr) -> Vec<String> {
    let gateway = subnet.gateway_ip.filter(IpAddr::is_ipv4);
    let mut routes = vec![format!("{}/32,{server}", metadata::ADDRESS_V4)];
    let given = subnet.host_routes.iter();
    let given = given.filter(|route| !route.destination.is_ipv6() && route.nexthop.is_ipv4());
    routes.extend(
        given.map(|route| format!("{},{}", route.destination.net().trunc(), route.nexthop)),
    );
    // Who takes routes does not look at the option `router`.
    routes.extend(gateway.map(|gateway| format!("0.0.0.0/0,{gateway}")));
    let routes = routes.join(",");
    let mut lines = vec![
        format!(
            "dhcp-range=set:{tag},{},static,{},infinite",
            net.network(),
            net.netmask()
        ),
        // An option without a value is not sent; without the line, dnsmasq would send its own address.
        option(
            tag,
            "option:router",
            gateway.iter().map(ToString::to_string),
        ),
        option(tag, "option:dns-server", name_servers(subnet)),
    ];
    lines.extend(ROUTE_OPTIONS.map(|name| option(tag, name, [routes.clone()])));
    lines
}

/// A subnet that router advertisements tell of, and maybe DHCPv6.
fn subnet_v6(tag: &str, subnet: &SubnetSpec, net: IpNet, mode: Ipv6AddressMode) -> Vec<String> {
    let mode = match mode {
        Ipv6AddressMode::Slaac => "ra-only",
        Ipv6AddressMode::Dhcpv6Stateful => "static",
    };
    let servers = name_servers(subnet).into_iter();
    vec![
        format!(
            "dhcp-range=set:{tag},{},{mode},{},infinite",
            net.network(),
            net.prefix_len()
        ),
        option(
            tag,
            "option6:dns-server",
            servers.map(|server| format!("[{server}]")),
        ),
    ]
}

/// What guests ask for names, of the subnet's own family: what the subnet says, and otherwise dnsmasq itself.
fn name_servers(subnet: &SubnetSpec) -> Vec<String> {
    let wanted = match subnet.dns_nameservers.as_slice() {
        [] => subnet.dhcp_ip.as_slice(),
        given => given,
    };
    let family = subnet.cidr.is_ipv6();
    let wanted = wanted.iter().filter(|server| server.is_ipv6() == family);
    wanted.map(ToString::to_string).collect()
}

fn option(tag: &str, name: &str, values: impl IntoIterator<Item = String>) -> String {
    let values: String = values
        .into_iter()
        .map(|value| format!(",{value}"))
        .collect();
    format!("dhcp-option=tag:{tag},{name}{values}")
}

fn hosts(spec: &NetworkSpec) -> String {
    let subnets: BTreeSet<SubnetId> = served(spec)
        .filter(|(subnet, _)| {
            !subnet.cidr.is_ipv6()
                || subnet.ipv6_address_mode == Some(Ipv6AddressMode::Dhcpv6Stateful)
        })
        .map(|(subnet, _)| subnet.id)
        .collect();
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
    text(lines)
}

/// One host. The dot at the end of its name keeps dnsmasq from reading names like `12`, `5h`, `infinite` or
/// `ignore` as a lease time or a keyword, and is not sent. Lower case, because dnsmasq treats other names as
/// international ones, and refuses some of them.
fn host(port: &NetworkPort, address: IpAddr) -> String {
    let address = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    format!(
        "{},{address},{}.,infinite",
        port.mac_address,
        lower_case(&port.hostname)
    )
}

/// `10.0.0.5 web-1.berth.internal web-1`, for all addresses of all ports of the network.
fn names_known(spec: &NetworkSpec) -> String {
    let own = spec.ports.iter().flat_map(|port| {
        let addresses = port.fixed_ips.iter().map(|fixed| fixed.ip_address);
        addresses.map(|address| (address, &port.hostname))
    });
    let remote = spec.remote_ports.iter().flat_map(|port| {
        let addresses = port.ip_addresses.iter();
        addresses.map(|address| (*address, &port.hostname))
    });
    let known: BTreeSet<(IpAddr, String)> = own
        .chain(remote)
        .map(|(address, name)| (address, lower_case(name)))
        .collect();
    text(
        known
            .into_iter()
            .map(|(address, name)| format!("{address} {name}.{DOMAIN} {name}")),
    )
}

fn lower_case(name: &InstanceName) -> String {
    name.as_str().to_ascii_lowercase()
}

fn text(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

/// Subnets in an order that does not depend on the order in the document.
fn in_order(subnets: &[SubnetSpec]) -> Vec<&SubnetSpec> {
    let mut sorted: Vec<&SubnetSpec> = subnets.iter().collect();
    sorted.sort_by_key(|subnet| (subnet.cidr, subnet.id));
    sorted
}

#[cfg(test)]
mod tests;
