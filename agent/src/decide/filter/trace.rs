//! What would become of a packet of a port, from the network's document: the same questions in the same order as the chains ask
//! them ([`super::wanted()`]), answered in words.

use std::net::IpAddr;

use berth_common::{
    document::{
        EtherType, NetworkPort, NetworkSpec, PortRange, PortSecurity, RuleDirection, RuleProtocol,
        RuleRemote, SecurityGroupRule,
    },
    message::trace::{TraceConnection, TracePacket, TraceProtocol, TraceStage, TraceStep},
};
use ipnet::IpNet;

use super::{part::Version, reason::Reason, wanted::identities};
use crate::decide::{dhcp, metadata};

struct Trace<'a> {
    spec: &'a NetworkSpec,
    packet: &'a TracePacket,
    steps: Vec<TraceStep>,
}

/// The way of a packet, up to where it is dropped. The last step tells whether it passes.
#[must_use]
pub fn trace(spec: &NetworkSpec, port: &NetworkPort, packet: &TracePacket) -> Vec<TraceStep> {
    let mut trace = Trace {
        spec,
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
            self.step(TraceStage::AntiSpoofing, Some(port), Ok(off.to_owned()));
            self.delivered();
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
            self.delivered();
        }
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
        let nets = match source {
            IpAddr::V4(_) => &identity.v4,
            IpAddr::V6(_) => &identity.v6,
        };
        if nets.iter().any(|net| net.contains(&source)) {
            return Ok(format!("the port may send from {source} with {mac}"));
        }
        if source.is_unspecified() && (self.is_udp(68, 67) || self.is_early_icmp6()) {
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

    fn is_udp(&self, from: u16, to: u16) -> bool {
        matches!(self.packet.protocol, TraceProtocol::Udp { source_port, destination_port }
            if source_port.is_none_or(|port| port == from) && destination_port == to)
    }

    fn icmp6(&self) -> Option<u8> {
        match self.packet.protocol {
            TraceProtocol::Icmp { kind, .. } if self.packet.destination.is_ipv6() => Some(kind),
            _ => None,
        }
    }

    fn is_early_icmp6(&self) -> bool {
        matches!(self.icmp6(), Some(131 | 133 | 135 | 143))
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
                source_port: Some(67 | 547),
                ..
            } => dropped(Reason::RogueDhcp, "DHCP servers"),
            TraceProtocol::Icmp { kind: 5 | 9, .. } if self.packet.destination.is_ipv4() => {
                dropped(Reason::RogueRa, "routers that advertise themselves")
            }
            TraceProtocol::Icmp {
                kind: 134 | 137, ..
            } if self.packet.destination.is_ipv6() => {
                dropped(Reason::RogueRa, "routers that advertise themselves")
            }
            _ => Ok(String::new()),
        }
    }

    /// Which of berth's own services is meant, if one is.
    fn service(&self) -> Option<String> {
        if self.is_udp(68, 67) || self.is_udp(546, 547) {
            return Some(
                "it goes to berth's DHCP server on this host, whatever the groups say".to_owned(),
            );
        }
        if self.is_early_icmp6() || matches!(self.icmp6(), Some(132 | 136)) {
            return Some(
                "neighbour discovery passes, whatever the groups say, if it tells only the port's own addresses"
                    .to_owned(),
            );
        }
        // Without a server of its own, a network has none of berth's services.
        dhcp::served(self.spec).next()?;
        let destination = self.packet.destination;
        let asks_metadata = [
            IpAddr::V4(metadata::ADDRESS_V4),
            IpAddr::V6(metadata::ADDRESS_V6),
        ]
        .contains(&destination);
        let server = dhcp::served(self.spec).any(|(_, address)| address == destination);
        match self.packet.protocol {
            TraceProtocol::Tcp {
                destination_port: 80,
                ..
            } if asks_metadata => Some(
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
            } if server => Some(
                "it goes to berth's name server on this host, whatever the groups say".to_owned(),
            ),
            _ => None,
        }
    }

    /// Where a packet goes that a guest may send.
    fn delivered(&mut self) {
        let spec = self.spec;
        let destination = self.packet.destination;
        let has = |port: &&NetworkPort| {
            port.fixed_ips
                .iter()
                .any(|fixed| fixed.ip_address == destination)
        };
        if let Some(receiver) = spec.ports.iter().find(has) {
            let detail = format!(
                "it goes to port {} ({}) on this host",
                receiver.id, receiver.hostname
            );
            self.step(TraceStage::Delivery, Some(receiver), Ok(detail));
            self.received(receiver);
            return;
        }
        let remote = spec
            .remote_ports
            .iter()
            .find(|remote| remote.ip_addresses.contains(&destination));
        let answer = if let Some(remote) = remote {
            let by = remote.tunnel_ip.map_or_else(
                || "by the network's uplink".to_owned(),
                |ip| format!("by the tunnel to {ip}"),
            );
            Ok(format!(
                "it goes {by} to {} ({}) on another host, whose groups decide there",
                destination, remote.hostname
            ))
        } else if spec
            .subnets
            .iter()
            .any(|subnet| subnet.dhcp_ip == Some(destination))
        {
            Ok("it goes to the address of berth's own services on this host".to_owned())
        } else if destination.is_multicast() || is_broadcast(destination) {
            Ok("it goes to everybody in the network, and each receiver's groups decide".to_owned())
        } else if spec
            .subnets
            .iter()
            .any(|subnet| subnet.cidr.net().contains(&destination))
        {
            if spec.network_type.spans_hosts() {
                Ok("no port of berth's is known to have this address; the uplink leads to whoever has it".to_owned())
            } else {
                Err("no port has this address, and the network reaches no other host".to_owned())
            }
        } else {
            let version = self.packet.destination.is_ipv6();
            let gateway = spec
                .subnets
                .iter()
                .filter(|subnet| subnet.cidr.is_ipv6() == version)
                .find_map(|subnet| subnet.gateway_ip);
            match gateway {
                Some(gateway) => Ok(format!("it leaves the network by its gateway {gateway}")),
                None => Err("it leaves the network, whose subnets have no gateway".to_owned()),
            }
        };
        self.step(TraceStage::Delivery, None, answer);
    }

    fn received(&mut self, port: &NetworkPort) {
        let answer = match &port.security {
            None => Ok("port security is off: it receives everything".to_owned()),
            Some(security) => self.groups(port, security, RuleDirection::Ingress),
        };
        self.step(TraceStage::Ingress, Some(port), answer);
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

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}
