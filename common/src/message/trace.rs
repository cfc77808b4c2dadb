//! A question to the host of a port: what would become of a packet. It is answered from what the host was told, without a packet.

use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    document::RuleDirection,
    ids::{InstanceId, PortId},
    names::{HostName, MacAddress},
};

/// Tell where a packet of a port would go, and what would drop it. Only the port's host can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortTrace {
    /// The port, which belongs to an instance.
    pub port: PortId,
    /// The packet.
    pub packet: TracePacket,
}

/// A packet that is thought of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TracePacket {
    /// Seen from the guest of the port: whether it receives the packet or sends it.
    pub direction: RuleDirection,
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to, of the same version of IP.
    pub destination: IpAddr,
    /// The Ethernet address it comes from; null: that of the port, if its guest sends it.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
    /// What it carries.
    pub protocol: TraceProtocol,
    /// Whether it begins something.
    #[serde(default)]
    pub connection: TraceConnection,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum TraceProtocol {
    /// TCP.
    Tcp {
        /// Null: any that nobody is known by.
        #[serde(default)]
        source_port: Option<u16>,
        /// The one that rules ask for.
        destination_port: u16,
    },
    /// UDP.
    Udp {
        /// Null: any that nobody is known by.
        #[serde(default)]
        source_port: Option<u16>,
        /// The one that rules ask for.
        destination_port: u16,
    },
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp {
        /// The type.
        #[serde(rename = "type")]
        kind: u8,
        /// The code.
        #[serde(default)]
        code: u8,
    },
    /// Another protocol.
    Number {
        /// Its number, as assigned by IANA.
        number: u8,
    },
}

/// What a packet is in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TraceConnection {
    /// It begins one, or goes on in the direction of the packet that began it.
    #[default]
    New,
    /// It answers to what was allowed.
    Answer,
}

/// What would become of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortTraced {
    /// The port.
    pub port_id: PortId,
    /// The instance it belongs to.
    pub instance_id: InstanceId,
    /// Its hypervisor.
    pub host: HostName,
    /// Whether nothing on this host drops it.
    pub passes: bool,
    /// What is asked of it, in this order; what drops it comes last.
    pub steps: Vec<TraceStep>,
}

/// One thing that is asked of a packet on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceStep {
    /// What asks.
    pub stage: TraceStage,
    /// At which port; null: at none on this host.
    #[serde(default)]
    pub port_id: Option<PortId>,
    /// Whether it goes on from there.
    pub passes: bool,
    /// Why, in words: the rule that allows it, or that there is none.
    pub detail: String,
}

/// What asks something of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TraceStage {
    /// Whether its sender may use such addresses.
    AntiSpoofing,
    /// Whether its sender may be what it claims to be: a DHCP server, a router.
    Role,
    /// Whether berth's own services are meant.
    Services,
    /// Whether the groups of the sender allow it.
    Egress,
    /// Where it goes.
    Delivery,
    /// Whether the groups of the receiver allow it.
    Ingress,
}

impl TraceStage {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AntiSpoofing => "anti_spoofing",
            Self::Role => "role",
            Self::Services => "services",
            Self::Egress => "egress",
            Self::Delivery => "delivery",
            Self::Ingress => "ingress",
        }
    }
}

impl fmt::Display for TraceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp {
                destination_port, ..
            } => write!(f, "TCP to port {destination_port}"),
            Self::Udp {
                destination_port, ..
            } => write!(f, "UDP to port {destination_port}"),
            Self::Icmp { kind, code } => write!(f, "ICMP type {kind} code {code}"),
            Self::Number { number } => write!(f, "protocol {number}"),
        }
    }
}
