//! The words of `berthctl port trace`.

use std::net::IpAddr;

use berth_common::{
    document::RuleDirection,
    ids::PortId,
    message::trace::{TraceConnection, TracePacket, TraceProtocol},
    names::MacAddress,
};
use clap::{Args, ValueEnum};

/// A packet that is thought of.
#[derive(Debug, Clone, Args)]
pub(crate) struct PortTraceArgs {
    /// Id of the port.
    pub(crate) port: PortId,
    /// Whether the guest of the port sends the packet or receives it.
    #[arg(value_enum)]
    pub(crate) direction: Direction,
    /// Where it comes from.
    #[arg(long, value_name = "IP")]
    pub(crate) source: IpAddr,
    /// Where it goes to.
    #[arg(long, value_name = "IP")]
    pub(crate) destination: IpAddr,
    /// The Ethernet address it comes from. Default: that of the port.
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<MacAddress>,
    /// tcp, udp, icmp, or the number of another protocol.
    #[arg(long, default_value = "icmp")]
    pub(crate) protocol: Protocol,
    /// The source port of TCP or UDP.
    #[arg(long, value_name = "PORT")]
    pub(crate) source_port: Option<u16>,
    /// The destination port of TCP or UDP.
    #[arg(
        long,
        value_name = "PORT",
        required_if_eq_any([("protocol", "tcp"), ("protocol", "udp")])
    )]
    pub(crate) port_number: Option<u16>,
    /// The type of ICMP. Default: an echo request.
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<u8>,
    /// The code of ICMP.
    #[arg(long, default_value_t = 0)]
    pub(crate) code: u8,
    /// It answers to what was allowed.
    #[arg(long)]
    pub(crate) answer: bool,
}

/// Seen from the guest.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Direction {
    /// It receives.
    Ingress,
    /// It sends.
    Egress,
}

/// A protocol above IP.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or `ICMPv6`.
    Icmp,
    /// Another one.
    Number(u8),
}

impl std::str::FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" | "6" => Ok(Self::Tcp),
            "udp" | "17" => Ok(Self::Udp),
            "icmp" | "icmpv6" | "1" | "58" => Ok(Self::Icmp),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| "must be tcp, udp, icmp or a number from 0 to 255".to_owned()),
        }
    }
}

impl PortTraceArgs {
    /// The packet that is meant.
    pub(crate) fn packet(&self) -> TracePacket {
        /// An echo request.
        const PING: [u8; 2] = [8, 128];
        let [ping, ping6] = PING;
        let destination_port = self.port_number.unwrap_or_default();
        let source_port = self.source_port;
        let protocol = match self.protocol {
            Protocol::Tcp => TraceProtocol::Tcp {
                source_port,
                destination_port,
            },
            Protocol::Udp => TraceProtocol::Udp {
                source_port,
                destination_port,
            },
            Protocol::Icmp => TraceProtocol::Icmp {
                kind: self.kind.unwrap_or(if self.destination.is_ipv6() {
                    ping6
                } else {
                    ping
                }),
                code: self.code,
            },
            Protocol::Number(number) => TraceProtocol::Number { number },
        };
        TracePacket {
            direction: match self.direction {
                Direction::Ingress => RuleDirection::Ingress,
                Direction::Egress => RuleDirection::Egress,
            },
            source: self.source,
            destination: self.destination,
            mac_address: self.mac,
            protocol,
            connection: if self.answer {
                TraceConnection::Answer
            } else {
                TraceConnection::New
            },
        }
    }
}
