//! What a router's document asks for on this host: legs with their addresses, routes, the packet filter. A document that no host
//! can carry out is refused here, with the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_common::{
    document::{Ipv6AddressMode, RouterGateway, RouterInterface, RouterSpec},
    ids::RouterId,
    message::report::{Fault, FaultCode},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Leg, RouteEntry, Side, Translation,
    rules::{Outside, Rules, Source},
};
use crate::decide::{dhcp::DhcpFiles, network::MTU_MIN};

/// How often the router says in IPv6 that it is there, in seconds.
const ADVERTISE_EVERY: u16 = 60;
/// How long guests believe it, in seconds: three advertisements may be lost (RFC 4861, 6.2.1).
const ADVERTISED_FOR: u16 = 240;

/// What a router shall be on this host.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its legs.
    pub(super) legs: Vec<WantedLeg>,
    /// Its routes.
    pub(super) routes: BTreeSet<RouteEntry>,
    /// Its packet filter.
    pub(super) rules: Rules,
    /// What advertises it in IPv6, if it is in IPv6 networks.
    pub(super) advertiser: Option<DhcpFiles>,
}

/// What a leg shall be.
#[derive(Debug)]
pub(super) struct WantedLeg {
    /// Which it is.
    pub(super) leg: Leg,
    /// The Ethernet address of its end in the namespace.
    pub(super) mac: [u8; 6],
    /// Largest packet in bytes.
    pub(super) mtu: u32,
    /// Its addresses.
    pub(super) addresses: BTreeSet<IpNet>,
}

impl Wanted {
    /// What the document asks for.
    pub(super) fn of(router: RouterId, spec: &RouterSpec) -> Result<Self, Fault> {
        let mut legs = inside_legs(router, spec)?;
        let mut routes = BTreeSet::new();
        let mut rules = Rules::default();
        if let Some(gateway) = &spec.external_gateway {
            let floating = floating_ips(spec)?;
            let outside = outside_leg(router, gateway, floating.keys().copied())?;
            if legs.iter().any(|leg| leg.leg.network == gateway.network_id) {
                return wrong(format!(
                    "network {} is on both of its sides",
                    gateway.network_id
                ));
            }
            let link = outside.leg.namespace_end().name();
            routes.extend(ways_out(gateway, &link));
            rules = Rules {
                outside: Some(Outside {
                    link,
                    source: source(gateway),
                }),
                floating,
            };
            legs.push(outside);
        } else if let Some(floating) = spec.floating_ips.first() {
            return wrong(format!(
                "floating IP {} has no way out",
                floating.floating_ip_address
            ));
        }
        routes.extend(extra_routes(spec, router)?);
        let advertiser = advertisement(&advertised(router, spec));
        Ok(Self {
            legs,
            routes,
            rules,
            advertiser,
        })
    }

    /// The leg in the external network.
    pub(super) fn outside(&self) -> Option<&WantedLeg> {
        self.legs.iter().find(|leg| leg.leg.side == Side::Outside)
    }

    /// Whether flows are still translated in this way. The leg's address, once given to a flow, stays its address even if its
    /// port gets a floating IP meanwhile.
    pub(super) fn translates(&self, flow: Translation) -> bool {
        let Some(outside) = &self.rules.outside else {
            return false;
        };
        let is_own = |address: Ipv4Addr| {
            self.legs
                .iter()
                .filter(|leg| leg.leg.side == Side::Inside)
                .flat_map(|leg| &leg.addresses)
                .any(|it| it.addr() == address)
        };
        outside.source == Source::Becomes(flow.outside)
            || self.rules.floating.get(&flow.outside) == Some(&flow.inside)
            // Back in, to a floating IP.
            || is_own(flow.outside)
    }
}

fn wrong<T>(message: String) -> Result<T, Fault> {
    Err(Fault {
        code: FaultCode::Network,
        message,
    })
}

fn check_mtu(mtu: u16) -> Result<u32, Fault> {
    if mtu < MTU_MIN {
        return wrong(format!(
            "an MTU of {mtu} is too small: at least {MTU_MIN} is needed"
        ));
    }
    Ok(u32::from(mtu))
}

/// A leg per network: subnets of one network share it.
fn inside_legs(router: RouterId, spec: &RouterSpec) -> Result<Vec<WantedLeg>, Fault> {
    let mut legs: BTreeMap<Leg, WantedLeg> = BTreeMap::new();
    let mut subnets: Vec<IpNet> = Vec::new();
    for interface in &spec.interfaces {
        let net = interface.cidr.net();
        let address = interface.ip_address;
        if !interface.cidr.is_host_address(address) {
            return wrong(format!(
                "its address {address} is not one of subnet {}",
                interface.cidr
            ));
        }
        if let Some(other) = subnets
            .iter()
            .find(|it| it.contains(&net) || net.contains(*it))
        {
            return wrong(format!("its subnets {other} and {net} overlap"));
        }
        subnets.push(net);
        let leg = Leg::inside(router, interface.network_id);
        let (mac, mtu) = (interface.mac_address.octets(), check_mtu(interface.mtu)?);
        let wanted = legs.entry(leg).or_insert_with(|| WantedLeg {
            leg,
            mac,
            mtu,
            addresses: BTreeSet::new(),
        });
        if (wanted.mac, wanted.mtu) != (mac, mtu) {
            return wrong(format!(
                "its interfaces in network {} differ in Ethernet address or MTU",
                interface.network_id
            ));
        }
        wanted
            .addresses
            .extend(IpNet::new(address, net.prefix_len()));
    }
    Ok(legs.into_values().collect())
}

fn outside_leg(
    router: RouterId,
    gateway: &RouterGateway,
    floating: impl Iterator<Item = Ipv4Addr>,
) -> Result<WantedLeg, Fault> {
    let mut addresses: BTreeSet<IpNet> = floating
        .map(|address| IpNet::from(IpAddr::from(address)))
        .collect();
    for own in &gateway.addresses {
        let Some(address) = own.ip_address else {
            continue;
        };
        if !own.cidr.is_host_address(address) {
            return wrong(format!(
                "its address {address} is not one of subnet {}",
                own.cidr
            ));
        }
        addresses.extend(IpNet::new(address, own.cidr.net().prefix_len()));
    }
    Ok(WantedLeg {
        leg: Leg::outside(router, gateway.network_id),
        mac: gateway.mac_address.octets(),
        mtu: check_mtu(gateway.mtu)?,
        addresses,
    })
}

fn floating_ips(spec: &RouterSpec) -> Result<BTreeMap<Ipv4Addr, Ipv4Addr>, Fault> {
    let mut found = BTreeMap::new();
    let mut ports = BTreeSet::new();
    for floating in &spec.floating_ips {
        let (IpAddr::V4(outside), IpAddr::V4(inside)) =
            (floating.floating_ip_address, floating.fixed_ip_address)
        else {
            return Err(Fault {
                code: FaultCode::Unsupported,
                message: format!(
                    "floating IP {} is not of IPv4: only such are translated",
                    floating.floating_ip_address
                ),
            });
        };
        let is_twice = found.insert(outside, inside).is_some() || !ports.insert(inside);
        if is_twice {
            return wrong(format!(
                "floating IP {outside} or its address {inside} is there twice"
            ));
        }
    }
    Ok(found)
}

fn source(gateway: &RouterGateway) -> Source {
    if !gateway.enable_snat {
        return Source::Kept;
    }
    let own = gateway.addresses.iter().find_map(|it| match it.ip_address {
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) | None => None,
    });
    own.map_or(Source::Dropped, Source::Becomes)
}

/// Where an address of the external network is, and everything else.
fn ways_out(gateway: &RouterGateway, link: &str) -> BTreeSet<RouteEntry> {
    let mut routes = BTreeSet::new();
    for own in &gateway.addresses {
        if own.ip_address.is_none() {
            routes.insert(RouteEntry {
                destination: own.cidr.net(),
                via: None,
                link: link.to_owned(),
            });
        }
    }
    for is_ipv6 in [false, true] {
        let via = gateway
            .addresses
            .iter()
            .filter(|own| own.cidr.is_ipv6() == is_ipv6)
            .find_map(|own| own.gateway_ip);
        routes.extend(via.map(|via| RouteEntry {
            destination: everything(is_ipv6),
            via: Some(via),
            link: link.to_owned(),
        }));
    }
    routes
}

fn everything(is_ipv6: bool) -> IpNet {
    if is_ipv6 {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0))
    } else {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0))
    }
}

fn extra_routes(spec: &RouterSpec, router: RouterId) -> Result<BTreeSet<RouteEntry>, Fault> {
    let inside = spec
        .interfaces
        .iter()
        .map(|it| (it.cidr, Leg::inside(router, it.network_id)));
    let outside = spec.external_gateway.iter().flat_map(|gateway| {
        let leg = Leg::outside(router, gateway.network_id);
        gateway.addresses.iter().map(move |own| (own.cidr, leg))
    });
    let reached: Vec<_> = inside.chain(outside).collect();
    let mut routes = BTreeSet::new();
    for route in &spec.routes {
        let destination = route.destination.net().trunc();
        let Some((_, leg)) = reached
            .iter()
            .find(|(cidr, _)| cidr.net().contains(&route.nexthop))
        else {
            return wrong(format!(
                "the next hop {} of the route to {destination} is in none of its subnets",
                route.nexthop
            ));
        };
        if route.nexthop.is_ipv6() != route.destination.is_ipv6() {
            return wrong(format!(
                "the next hop {} and the destination {destination} of a route differ in their version of IP",
                route.nexthop
            ));
        }
        routes.insert(RouteEntry {
            destination,
            via: Some(route.nexthop),
            link: leg.namespace_end().name(),
        });
    }
    Ok(routes)
}

/// A link that guests find the router by in IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Advertised {
    /// Largest packet in bytes.
    mtu: u16,
    /// The subnets on it, and whether guests make themselves addresses of them.
    prefixes: BTreeMap<Ipv6Net, Autonomy>,
}

/// Whether guests make themselves addresses (the autonomous flag of RFC 4861, 4.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Autonomy {
    /// They do.
    Autonomous,
    /// They are given them, or have them from their owner.
    Given,
}

/// The links that guests find the router by in IPv6, by name.
fn advertised(router: RouterId, spec: &RouterSpec) -> BTreeMap<String, Advertised> {
    let mut links: BTreeMap<String, Advertised> = BTreeMap::new();
    for interface in &spec.interfaces {
        if let Some((prefix, autonomy)) = prefix(interface) {
            let leg = Leg::inside(router, interface.network_id);
            let link = links.entry(leg.namespace_end().name()).or_default();
            link.mtu = interface.mtu;
            link.prefixes.insert(prefix, autonomy);
        }
    }
    links
}

/// What is advertised of a subnet; `None`: it is of IPv4, or so wide that it cannot be advertised.
fn prefix(interface: &RouterInterface) -> Option<(Ipv6Net, Autonomy)> {
    let IpNet::V6(net) = interface.cidr.net() else {
        return None;
    };
    let autonomy = match interface.ipv6_address_mode {
        Some(Ipv6AddressMode::Slaac) if net.prefix_len() == Ipv6AddressMode::PREFIX => {
            Autonomy::Autonomous
        }
        Some(Ipv6AddressMode::Slaac | Ipv6AddressMode::Dhcpv6Stateful) | None => Autonomy::Given,
    };
    (net.prefix_len() >= Ipv6AddressMode::PREFIX).then_some((net.trunc(), autonomy))
}

/// What dnsmasq reads that advertises the router on these links; `None`: there are none. It says who the router is, and which
/// subnets are on the link; guests get their addresses from the DHCP server of each network, and it answers none that asks for one.
fn advertisement(links: &BTreeMap<String, Advertised>) -> Option<DhcpFiles> {
    if links.is_empty() {
        return None;
    }
    let mut lines = vec![
        "port=0".to_owned(),
        "no-resolv".to_owned(),
        "no-hosts".to_owned(),
        "leasefile-ro".to_owned(),
        "bind-dynamic".to_owned(),
        "except-interface=lo".to_owned(),
        "dhcp-ignore=tag:!known".to_owned(),
        "enable-ra".to_owned(),
        "quiet-dhcp6".to_owned(),
        "quiet-ra".to_owned(),
    ];
    for (link, advertised) in links {
        lines.push(format!("interface={link}"));
        for (prefix, autonomy) in &advertised.prefixes {
            // As in the networks' own servers: where it could give addresses, it does not tell guests to make some.
            let mode = match autonomy {
                Autonomy::Autonomous => "ra-only",
                Autonomy::Given => "static",
            };
            let (network, length) = (prefix.network(), prefix.prefix_len());
            lines.push(format!("dhcp-range={network},{mode},{length},infinite"));
        }
        let mtu = advertised.mtu;
        lines.push(format!(
            "ra-param={link},mtu:{mtu},{ADVERTISE_EVERY},{ADVERTISED_FOR}"
        ));
    }
    let mut config = lines.join("\n");
    config.push('\n');
    Some(DhcpFiles {
        config,
        hosts: String::new(),
        names: String::new(),
    })
}
