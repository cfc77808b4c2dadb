//! What would become of a packet of a port, from the network's document: the same questions in the same order as the chains ask
//! them ([`super::wanted`]), answered in words.

use std::net::IpAddr;

use berth_common::{
    document::{
        EtherType, NetworkPort, NetworkSpec, NetworkType, PortRange, PortSecurity, RemotePort,
        RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule,
    },
    message::trace::{TraceConnection, TracePacket, TraceProtocol, TraceStage, TraceStep},
};
use ipnet::IpNet;

use super::{
    Beyond,
    base::{
        DHCP_ASKS, DHCP_FROM_SERVERS, DHCP_TO_CLIENTS, DHCPV6_SERVERS, GROUPS_ICMP6, GROUPS_V6,
        LINK_GROUPS_V6, LINK_LOCAL_V6, NEIGHBOURS_ICMP6, RECEIVED_GROUPS_ICMP6,
        RECEIVED_NEIGHBOURS_ICMP6, ROUTER_ICMP4, ROUTER_ICMP6, SERVICES_ICMP4, SERVICES_ICMP6,
    },
    part::Version,
    reason::Reason,
    wanted::{EARLY_ICMP6, RouterLeg, identities, known_by, may_be_others},
};
use crate::decide::{dhcp, metadata};

/// The number of TCP above IP.
const TCP: u8 = 6;

struct Trace<'a> {
    spec: &'a NetworkSpec,
    legs: &'a [RouterLeg],
    beyond: &'a [Beyond<'a>],
    packet: &'a TracePacket,
    steps: Vec<TraceStep>,
}

/// The way of a packet, up to where it is dropped. The last step tells whether it passes. The legs are those that routers have in the
/// network on this host, and `beyond` is where these routers lead.
#[must_use]
pub fn trace(
    spec: &NetworkSpec,
    legs: &[RouterLeg],
    beyond: &[Beyond<'_>],
    port: &NetworkPort,
    packet: &TracePacket,
) -> Vec<TraceStep> {
    let mut trace = Trace {
        spec,
        legs,
        beyond,
        packet,
        steps: Vec::new(),
    };
    match packet.direction {
        RuleDirection::Egress => trace.sent(port),
        RuleDirection::Ingress => {
            trace.received(port);
        }
    }
    trace.steps
}

impl Trace<'_> {
    /// Notes an answer; whether the packet goes on.
    fn step(
        &mut self,
        stage: TraceStage,
        port: Option<&NetworkPort>,
        answer: Result<String, String>,
    ) -> bool {
        let passes = answer.is_ok();
        self.steps.push(TraceStep {
            stage,
            port_id: port.map(|port| port.id),
            passes,
            detail: match answer {
                Ok(detail) | Err(detail) => detail,
            },
        });
        passes
    }

    fn sent(&mut self, port: &NetworkPort) {
        let Some(security) = &port.security else {
            let off = "port security is off: any address may be used, and everything sent";
            let answer = self.asks_as_itself(port).map(|()| off.to_owned());
            if self.step(TraceStage::AntiSpoofing, Some(port), answer) {
                self.delivered(port);
            }
            return;
        };
        let source = self.source(port, security);
        if !self.step(TraceStage::AntiSpoofing, Some(port), source) {
            return;
        }
        let role = self.role();
        if role.is_err() && !self.step(TraceStage::Role, Some(port), role) {
            return;
        }
        if let Some(service) = self.service() {
            self.step(TraceStage::Services, Some(port), Ok(service));
            return;
        }
        let groups = self.groups(port, security, RuleDirection::Egress);
        if self.step(TraceStage::Egress, Some(port), groups) {
            self.delivered(port);
        }
    }

    /// Whether it does not ask the metadata service from what may be another's.
    fn asks_as_itself(&self, port: &NetworkPort) -> Result<(), String> {
        let destination = self.packet.destination;
        let is_told_apart = destination.is_ipv4() || self.number(self.packet.protocol) == TCP;
        let is_held = self.is_services(destination) && is_metadata(destination);
        if !is_held || !is_told_apart || !may_be_others(port) {
            return Ok(());
        }
        let mac = self.packet.mac_address.unwrap_or(port.mac_address);
        let own = known_by(port);
        let nets = own.of(destination);
        if mac == port.mac_address && nets.iter().any(|net| net.contains(&self.packet.source)) {
            return Ok(());
        }
        let own: Vec<String> = nets.iter().map(ToString::to_string).collect();
        Err(format!(
            "the metadata service is asked only from what is the port's own, {mac_address} and {}: dropped as {}",
            if own.is_empty() {
                "no address of this kind".to_owned()
            } else {
                own.join(", ")
            },
            Reason::SpoofedIp.as_str(),
            mac_address = port.mac_address,
        ))
    }

    /// Whether the guest may send from this address.
    fn source(&self, port: &NetworkPort, security: &PortSecurity) -> Result<String, String> {
        let mac = self.packet.mac_address.unwrap_or(port.mac_address);
        let source = self.packet.source;
        let identities = identities(port, security);
        let Some(identity) = identities.iter().find(|it| it.mac == mac.to_string()) else {
            return Err(format!(
                "{mac} is neither the port's Ethernet address nor that of an allowed address pair: dropped as {}",
                Reason::SpoofedMac.as_str()
            ));
        };
        self.asks_as_itself(port)?;
        let nets = identity.of(source);
        if nets.iter().any(|net| net.contains(&source)) {
            return Ok(format!("the port may send from {source} with {mac}"));
        }
        let is_early = if source.is_ipv4() {
            self.asks_for_address()
        } else {
            self.is_icmp6(&EARLY_ICMP6)
        };
        if source.is_unspecified() && is_early {
            return Ok("it asks for an address, and has none yet".to_owned());
        }
        let own: Vec<String> = nets.iter().map(ToString::to_string).collect();
        Err(format!(
            "with {mac} the port may send from {} only: {source} is dropped as {}",
            if own.is_empty() {
                "no address of this kind".to_owned()
            } else {
                own.join(", ")
            },
            Reason::SpoofedIp.as_str()
        ))
    }

    /// Whether a guest asks a DHCP server for an address by it, of the version of its destination.
    fn asks_for_address(&self) -> bool {
        let [v4, v6] = DHCP_ASKS;
        let (from, to) = if self.packet.destination.is_ipv6() {
            v6
        } else {
            v4
        };
        let is = |port: u16, wanted: u32| u32::from(port) == wanted;
        matches!(self.packet.protocol, TraceProtocol::Udp { source_port, destination_port }
            if source_port.is_none_or(|port| is(port, from)) && is(destination_port, to))
    }

    /// Whether no router is between the network and an address.
    fn is_on_link(&self, address: IpAddr) -> bool {
        let mut subnets = self.spec.subnets.iter();
        address.is_unspecified()
            || is_of_link(address)
            || self.legs.is_empty()
            || self.is_of_pair(address)
            || subnets.any(|subnet| subnet.cidr.net().contains(&address))
    }

    /// Whether a port with port security says that it may use it.
    fn is_of_pair(&self, address: IpAddr) -> bool {
        let mut ports = self.spec.ports.iter();
        ports.any(|port| port.security.is_some() && may_use(port, address))
    }

    /// Whether it is of `ICMPv6`, and of one of these types.
    fn is_icmp6(&self, types: &[u32]) -> bool {
        self.packet.destination.is_ipv6() && self.is_icmp(types)
    }

    /// Whether it is of ICMP in its version of IP, and of one of these types.
    fn is_icmp(&self, types: &[u32]) -> bool {
        matches!(self.packet.protocol, TraceProtocol::Icmp { kind, .. } if types.contains(&u32::from(kind)))
    }

    /// Whether the guest plays a part that only berth plays.
    fn role(&self) -> Result<String, String> {
        let dropped = |reason: Reason, what: &str| {
            Err(format!(
                "guests are no {what}: dropped as {}",
                reason.as_str()
            ))
        };
        match self.packet.protocol {
            TraceProtocol::Udp {
                source_port,
                destination_port,
            } if source_port.is_some_and(|port| DHCP_FROM_SERVERS.contains(&u32::from(port)))
                || DHCP_TO_CLIENTS.contains(&u32::from(destination_port)) =>
            {
                dropped(Reason::RogueDhcp, "DHCP servers")
            }
            TraceProtocol::Icmp { kind, .. }
                if self.packet.destination.is_ipv4() && ROUTER_ICMP4.contains(&u32::from(kind)) =>
            {
                dropped(Reason::RogueRa, "routers that advertise themselves")
            }
            TraceProtocol::Icmp { .. } if self.is_icmp6(&ROUTER_ICMP6) => {
                dropped(Reason::RogueRa, "routers that advertise themselves")
            }
            TraceProtocol::Icmp { .. } if self.is_icmp6(&[136]) && !self.finds_neighbours() => {
                dropped(Reason::SpoofedNd, "neighbours of who is not on the link")
            }
            _ => Ok(String::new()),
        }
    }

    /// Which of berth's own services is meant, if one is.
    fn service(&self) -> Option<String> {
        if let Some(server) = self.dhcp_server() {
            return Some(format!("it goes to {server}, whatever the groups say"));
        }
        if self.tells_groups() || self.finds_neighbours() {
            return Some(
                "neighbour discovery passes, whatever the groups say, if it tells only the port's own addresses and stays on the link"
                    .to_owned(),
            );
        }
        let destination = self.packet.destination;
        if !self.is_services(destination) {
            return None;
        }
        match self.packet.protocol {
            TraceProtocol::Tcp {
                destination_port: 80,
                ..
            } if is_metadata(destination) => Some(
                "it goes to berth's metadata service on this host, whatever the groups say"
                    .to_owned(),
            ),
            TraceProtocol::Tcp {
                destination_port: 53,
                ..
            }
            | TraceProtocol::Udp {
                destination_port: 53,
                ..
            } if !is_metadata(destination) => Some(
                "it goes to berth's name server on this host, whatever the groups say".to_owned(),
            ),
            _ => None,
        }
    }

    /// Which DHCP server is asked for an address, if one is.
    fn dhcp_server(&self) -> Option<&'static str> {
        const BERTHS: &str = "berth's DHCP server on this host";
        const SOMEBODYS: &str = "whoever answers DHCP in the network";
        if !self.asks_for_address() {
            return None;
        }
        let destination = self.packet.destination;
        let is_ipv6 = destination.is_ipv6();
        let is_to_all = is_broadcast(destination)
            || destination == IpAddr::V6(DHCPV6_SERVERS)
            || LINK_LOCAL_V6.contains(&destination);
        if is_to_all {
            let mut served = dhcp::served(self.spec);
            let is_served = served.any(|(_, server)| server.is_ipv6() == is_ipv6);
            return Some(if is_served { BERTHS } else { SOMEBODYS });
        }
        if self.is_services(destination) {
            return Some(BERTHS);
        }
        let mut subnets = self.spec.subnets.iter();
        subnets
            .any(|it| it.dhcp_ip.is_none() && it.cidr.net().contains(&destination))
            .then_some(SOMEBODYS)
    }

    /// Whether it tells which groups the guest hears.
    fn tells_groups(&self) -> bool {
        self.is_icmp6(&GROUPS_ICMP6) && GROUPS_V6.contains(&self.packet.destination)
    }

    /// Whether it asks for neighbours or routers on the link, or tells that the guest is a neighbour.
    fn finds_neighbours(&self) -> bool {
        let destination = self.packet.destination;
        self.is_icmp6(&NEIGHBOURS_ICMP6)
            && if self.is_icmp6(&[133]) {
                is_of_link(destination)
            } else {
                self.is_on_link(destination)
            }
    }

    /// Whether berth's own services have this address in the network. Without a DHCP server, a network has none of them.
    fn is_services(&self, address: IpAddr) -> bool {
        dhcp::served(self.spec).any(|(_, own)| own == address || is_metadata(address))
    }

    /// What a guest receives whatever its groups say, if it is such.
    fn received_anyway(&self) -> Option<String> {
        let is_received =
            self.is_icmp6(&RECEIVED_GROUPS_ICMP6) || self.is_icmp6(&RECEIVED_NEIGHBOURS_ICMP6);
        // From elsewhere it has not the hop limit any more.
        if is_received && self.is_on_link(self.packet.source) {
            let text = "neighbour discovery, and what tells of routers and groups, passes, whatever the groups say";
            return Some(text.to_owned());
        }
        if !self.is_services(self.packet.source) {
            return None;
        }
        let answers = match self.packet.protocol {
            TraceProtocol::Udp {
                source_port: Some(from),
                destination_port: to,
            } => from == 53 || [(67, 68), (547, 546)].contains(&(from, to)),
            TraceProtocol::Tcp {
                source_port: Some(from),
                ..
            } => [53, 80].contains(&from),
            TraceProtocol::Icmp { .. } if self.packet.destination.is_ipv6() => {
                self.is_icmp(&SERVICES_ICMP6)
            }
            TraceProtocol::Icmp { .. } => self.is_icmp(&SERVICES_ICMP4),
            TraceProtocol::Tcp { .. }
            | TraceProtocol::Udp { .. }
            | TraceProtocol::Number { .. } => false,
        };
        let text = "it comes from berth's own services on this host, whatever the groups say";
        answers.then(|| text.to_owned())
    }

    /// Whether a router has this address here.
    fn is_leg(&self, address: IpAddr) -> bool {
        let mut legs = self.legs.iter();
        legs.any(|leg| leg.ip_addresses.contains(&address))
    }

    /// Who has this address on this host and is no port, in words.
    fn own(&self, address: IpAddr) -> Option<String> {
        let subnets = &self.spec.subnets;
        if self.is_services(address) {
            Some("the address of berth's own services on this host".to_owned())
        } else if self.is_leg(address) {
            Some(format!("the router's leg on this host, {address}"))
        } else if self.spec.network_type == NetworkType::Nat
            && subnets
                .iter()
                .any(|subnet| subnet.gateway_ip == Some(address))
        {
            Some(format!(
                "this host, which is the network's gateway {address}"
            ))
        } else {
            None
        }
    }

    /// The address that a packet leaves the network by.
    fn hop(&self) -> Option<IpAddr> {
        let destination = self.packet.destination;
        let subnets = || {
            let subnets = self.spec.subnets.iter();
            subnets.filter(|subnet| subnet.cidr.is_ipv6() == destination.is_ipv6())
        };
        let routes = subnets().flat_map(|subnet| &subnet.host_routes);
        let route = routes
            .filter(|route| route.destination.net().contains(&destination))
            .max_by_key(|route| route.destination.net().prefix_len());
        // In IPv6 routers tell of themselves.
        let mut legs = self.legs.iter().flat_map(|leg| &leg.ip_addresses);
        route
            .map(|route| route.nexthop)
            .or_else(|| subnets().find_map(|subnet| subnet.gateway_ip))
            .or_else(|| {
                let told = legs.find(|leg| leg.is_ipv6() && destination.is_ipv6());
                told.copied()
            })
    }

    /// How a packet leaves the network.
    fn leaves(&self, hop: Option<IpAddr>) -> Result<String, String> {
        let Some(hop) = hop else {
            return Err("it leaves the network, whose subnets have no gateway".to_owned());
        };
        if let Some(own) = self.own(hop) {
            return Ok(format!("it leaves the network by {own}"));
        }
        let is_a_guest = port_at(self.spec, hop).is_some() || may_be_used(self.spec, hop);
        if !self.spec.network_type.spans_hosts() && !is_a_guest {
            return Err(format!(
                "it leaves the network by its gateway {hop}, which nobody on this host has, and the network reaches no other"
            ));
        }
        Ok(format!("it leaves the network by its gateway {hop}"))
    }

    /// Where a router of this host sends it that it left the network by. What goes on to the outside is not followed.
    fn routed(&mut self, hop: IpAddr) {
        let destination = self.packet.destination;
        let mut routers = self.beyond.iter();
        let Some(beyond) = routers.find(|beyond| beyond.legs.contains(&hop)) else {
            return;
        };
        let router = beyond.router;
        if beyond.own.contains(&destination) {
            let detail = format!("it goes to router {router} itself");
            self.step(TraceStage::Delivery, None, Ok(detail));
            return;
        }
        let Some((network, spec)) = beyond.network(destination) else {
            return;
        };
        let Some(spec) = spec else {
            let detail = format!(
                "router {router} leads into network {network}, which this host has not been told of"
            );
            self.step(TraceStage::Delivery, None, Err(detail));
            return;
        };
        let way = format!("router {router} leads into network {network}");
        if let Some(receiver) = port_at(spec, destination) {
            let detail = format!(
                "{way}, to port {} ({}) on this host",
                receiver.id, receiver.hostname
            );
            self.step(TraceStage::Delivery, Some(receiver), Ok(detail));
            let mut there = Trace {
                spec,
                legs: &[],
                beyond: &[],
                packet: self.packet,
                steps: std::mem::take(&mut self.steps),
            };
            there.received(receiver);
            self.steps = there.steps;
            return;
        }
        let answer = if let Some(remote) = remote_at(spec, destination) {
            Ok(format!(
                "{way}, and there {}",
                to_remote(spec, remote, destination)
            ))
        } else if may_be_used(spec, destination) {
            Ok(format!(
                "{way}, to a port of this host that may use {destination}"
            ))
        } else {
            Err(format!(
                "{way}, where no port is known to have this address: on other hosts routers find nothing but ports"
            ))
        };
        self.step(TraceStage::Delivery, None, answer);
    }

    /// Where a packet goes that the guest of this port may send.
    fn delivered(&mut self, port: &NetworkPort) {
        let spec = self.spec;
        let destination = self.packet.destination;
        if let Some(receiver) = port_at(spec, destination) {
            let detail = format!(
                "it goes to port {} ({}) on this host",
                receiver.id, receiver.hostname
            );
            self.step(TraceStage::Delivery, Some(receiver), Ok(detail));
            self.received(receiver);
            return;
        }
        let answer = if let Some(remote) = remote_at(spec, destination) {
            Ok(to_remote(spec, remote, destination))
        } else if let Some(own) = self.own(destination) {
            Ok(format!("it goes to {own}"))
        } else if destination.is_multicast() || self.is_to_everybody(destination) {
            Ok("it goes to everybody in the network, and each receiver's groups decide".to_owned())
        } else if spec
            .subnets
            .iter()
            .any(|subnet| subnet.cidr.net().contains(&destination))
        {
            let users = users_of(spec, destination, port);
            if let [receiver] = users.as_slice() {
                let detail = format!(
                    "it goes to port {} ({}) on this host, which may use this address{}",
                    receiver.id,
                    receiver.hostname,
                    if spec.network_type.spans_hosts() {
                        ", unless somebody on another host has it"
                    } else {
                        ""
                    }
                );
                self.step(TraceStage::Delivery, Some(receiver), Ok(detail));
                self.received(receiver);
                return;
            }
            if !users.is_empty() {
                let users: Vec<String> = users.iter().map(|port| port.id.to_string()).collect();
                Ok(format!(
                    "it goes to whichever of the ports of this host uses this address that may, {}, and its groups decide",
                    users.join(", ")
                ))
            } else if spec.network_type.spans_hosts() {
                Ok("no port of berth's is known to have this address; the uplink leads to whoever has it".to_owned())
            } else {
                Err("no port has this address, and the network reaches no other host".to_owned())
            }
        } else {
            let hop = self.hop();
            let answer = self.leaves(hop);
            self.step(TraceStage::Delivery, None, answer);
            hop.into_iter().for_each(|hop| self.routed(hop));
            return;
        };
        self.step(TraceStage::Delivery, None, answer);
    }

    /// Whether an address is everybody's, or everybody's in a subnet.
    fn is_to_everybody(&self, address: IpAddr) -> bool {
        let mut subnets = self.spec.subnets.iter();
        is_broadcast(address)
            || subnets.any(|subnet| {
                let net = subnet.cidr.net();
                // The two of a link between two machines, and a single one, are no less theirs (RFC 3021).
                net.addr().is_ipv4() && net.prefix_len() < 31 && net.broadcast() == address
            })
    }

    fn received(&mut self, port: &NetworkPort) {
        if let Err(others) = self.answers_itself(port) {
            self.step(TraceStage::Ingress, Some(port), Err(others));
            return;
        }
        if port.security.is_some()
            && let Some(anyway) = self.received_anyway()
        {
            self.step(TraceStage::Services, Some(port), Ok(anyway));
            return;
        }
        let answer = match &port.security {
            None => Ok("port security is off: it receives everything".to_owned()),
            Some(security) => self.groups(port, security, RuleDirection::Ingress),
        };
        self.step(TraceStage::Ingress, Some(port), answer);
    }

    /// Whether what the metadata service answers goes to the port's own address.
    fn answers_itself(&self, port: &NetworkPort) -> Result<(), String> {
        let TracePacket {
            source,
            destination,
            ..
        } = *self.packet;
        let is_told_apart = source.is_ipv4() || self.number(self.packet.protocol) == TCP;
        let is_held = self.is_services(source) && is_metadata(source);
        let own = known_by(port);
        let is_own = own
            .of(destination)
            .iter()
            .any(|net| net.contains(&destination));
        if is_held && is_told_apart && may_be_others(port) && !is_own {
            return Err(format!(
                "what the metadata service answers to {destination} is not for this port"
            ));
        }
        Ok(())
    }

    /// Whether a group of the port allows it.
    fn groups(
        &self,
        port: &NetworkPort,
        security: &PortSecurity,
        direction: RuleDirection,
    ) -> Result<String, String> {
        let groups = self.spec.security_groups.iter();
        let own = || {
            groups
                .clone()
                .filter(|group| security.security_groups.contains(&group.id))
        };
        let rules = || own().flat_map(|group| group.rules.iter().map(move |rule| (group.id, rule)));
        let (word, reason) = match direction {
            RuleDirection::Ingress => ("receive", Reason::DeniedIngress),
            RuleDirection::Egress => ("send", Reason::DeniedEgress),
        };
        if self.packet.connection == TraceConnection::Answer {
            return Ok(
                "answers pass for as long as a rule allows what they answer to, in the other direction".to_owned(),
            );
        }
        let allowing =
            rules().find(|(_, rule)| rule.direction == direction && self.matches(rule, direction));
        match allowing {
            Some((group, rule)) => Ok(format!("rule {} of group {group} allows it", rule.id)),
            None => Err(format!(
                "none of the {} rules of port {}'s {} groups allows it to {word} {} {} {}: dropped as {}",
                rules()
                    .filter(|(_, rule)| rule.direction == direction)
                    .count(),
                port.id,
                own().count(),
                self.packet.protocol,
                match direction {
                    RuleDirection::Ingress => "from",
                    RuleDirection::Egress => "at",
                },
                self.other_side(direction),
                reason.as_str()
            )),
        }
    }

    const fn other_side(&self, direction: RuleDirection) -> IpAddr {
        match direction {
            RuleDirection::Ingress => self.packet.source,
            RuleDirection::Egress => self.packet.destination,
        }
    }

    fn matches(&self, rule: &SecurityGroupRule, direction: RuleDirection) -> bool {
        let other = self.other_side(direction);
        let version = match rule.ethertype {
            EtherType::IPv4 => Version::V4,
            EtherType::IPv6 => Version::V6,
        };
        if Version::of(IpNet::from(self.packet.destination)) != version
            || Version::of(IpNet::from(other)) != version
        {
            return false;
        }
        let remote = match rule.remote {
            None => true,
            Some(RuleRemote::Prefix(prefix)) => prefix.net().contains(&other),
            Some(RuleRemote::Group(group)) => {
                let members = self.spec.group_members.get(&group);
                members
                    .into_iter()
                    .flatten()
                    .any(|member| member.net().contains(&other))
            }
        };
        remote && rule.protocol.is_none_or(|protocol| self.carries(protocol))
    }

    fn carries(&self, wanted: RuleProtocol) -> bool {
        let within = |ports: Option<PortRange>, port: u16| {
            ports.is_none_or(|ports| (ports.min..=ports.max).contains(&port))
        };
        match (wanted, self.packet.protocol) {
            (
                RuleProtocol::Tcp { ports },
                TraceProtocol::Tcp {
                    destination_port, ..
                },
            )
            | (
                RuleProtocol::Udp { ports },
                TraceProtocol::Udp {
                    destination_port, ..
                },
            ) => within(ports, destination_port),
            (
                RuleProtocol::Icmp { kind, code },
                TraceProtocol::Icmp {
                    kind: found,
                    code: found_code,
                },
            ) => {
                kind.is_none_or(|kind| kind == found) && code.is_none_or(|code| code == found_code)
            }
            (RuleProtocol::Number { number }, found) => number == self.number(found),
            _ => false,
        }
    }

    const fn number(&self, protocol: TraceProtocol) -> u8 {
        match protocol {
            TraceProtocol::Tcp { .. } => 6,
            TraceProtocol::Udp { .. } => 17,
            TraceProtocol::Icmp { .. } => match self.packet.destination {
                IpAddr::V4(_) => 1,
                IpAddr::V6(_) => 58,
            },
            TraceProtocol::Number { number } => number,
        }
    }
}

/// The port of this host that has an address.
fn port_at(spec: &NetworkSpec, address: IpAddr) -> Option<&NetworkPort> {
    let mut ports = spec.ports.iter();
    ports.find(|port| {
        let mut fixed = port.fixed_ips.iter();
        fixed.any(|fixed| fixed.ip_address == address)
    })
}

/// The port on another host that has an address.
fn remote_at(spec: &NetworkSpec, address: IpAddr) -> Option<&RemotePort> {
    let mut ports = spec.remote_ports.iter();
    ports.find(|port| port.ip_addresses.contains(&address))
}

fn to_remote(spec: &NetworkSpec, remote: &RemotePort, address: IpAddr) -> String {
    let is_tunnelled = spec.network_type == NetworkType::Vxlan;
    let by = remote.tunnel_ip.filter(|_| is_tunnelled).map_or_else(
        || "by the network's uplink".to_owned(),
        |ip| format!("by the tunnel to {ip}"),
    );
    let name = &remote.hostname;
    format!("it goes {by} to {address} ({name}) on another host, whose groups decide there")
}

/// Whether a port may use an address that is not its own.
fn may_use(port: &NetworkPort, address: IpAddr) -> bool {
    port.security.as_ref().is_none_or(|security| {
        let mut pairs = security.allowed_address_pairs.iter();
        pairs.any(|pair| pair.ip_address.net().contains(&address))
    })
}

/// Whether a port of this host may.
fn may_be_used(spec: &NetworkSpec, address: IpAddr) -> bool {
    spec.ports.iter().any(|port| may_use(port, address))
}

/// The ports of this host, but for the sender's, that may use an address that is none of their own: those that say so, or else those
/// that may use any.
fn users_of<'a>(
    spec: &'a NetworkSpec,
    address: IpAddr,
    sender: &NetworkPort,
) -> Vec<&'a NetworkPort> {
    let others = spec.ports.iter().filter(|port| port.id != sender.id);
    let (told, open): (Vec<_>, Vec<_>) = others
        .filter(|port| may_use(port, address))
        .partition(|port| port.security.is_some());
    if told.is_empty() { open } else { told }
}

/// Whether an address is of the link alone, or of a group on it.
fn is_of_link(address: IpAddr) -> bool {
    [LINK_GROUPS_V6, LINK_LOCAL_V6]
        .iter()
        .any(|net| net.contains(&address))
}

fn is_metadata(address: IpAddr) -> bool {
    [
        IpAddr::V4(metadata::ADDRESS_V4),
        IpAddr::V6(metadata::ADDRESS_V6),
    ]
    .contains(&address)
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}
