//! Security groups: what the ports that have them may send and receive. They travel in the documents of networks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{SecurityGroupId, SecurityGroupRuleId},
    names::IpPrefix,
};

/// A group of rules. Each rule allows something; what none allows is dropped. Answers to what was allowed are allowed, for as long
/// as the rule stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecurityGroupSpec {
    /// The group.
    pub id: SecurityGroupId,
    /// Its rules.
    pub rules: Vec<SecurityGroupRule>,
}

/// Something that is allowed.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct SecurityGroupRule {
    /// The rule.
    pub id: SecurityGroupRuleId,
    /// Seen from the guest.
    pub direction: RuleDirection,
    /// Of which protocol its packets are.
    pub ethertype: EtherType,
    /// Of which protocol above IP; null: any.
    #[serde(default)]
    pub protocol: Option<RuleProtocol>,
    /// Where from, or where to; null: anywhere.
    #[serde(default)]
    pub remote: Option<RuleRemote>,
}

/// Seen from the guest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum RuleDirection {
    /// What the guest receives.
    Ingress,
    /// What the guest sends.
    Egress,
}

/// A version of IP.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[schemars(inline)]
pub enum EtherType {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// A protocol above IP, with what narrows it down.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum RuleProtocol {
    /// TCP.
    Tcp {
        /// Destination ports; null: all.
        #[serde(default)]
        ports: Option<PortRange>,
    },
    /// UDP.
    Udp {
        /// Destination ports; null: all.
        #[serde(default)]
        ports: Option<PortRange>,
    },
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp {
        /// The type; null: all.
        #[serde(default, rename = "type")]
        kind: Option<u8>,
        /// The code, only with a type; null: all.
        #[serde(default)]
        code: Option<u8>,
    },
    /// Another protocol.
    Number {
        /// Its number, as assigned by IANA.
        number: u8,
    },
}

/// A range of ports of TCP or UDP.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct PortRange {
    /// The first.
    pub min: u16,
    /// The last, not below the first.
    pub max: u16,
}

/// The other side of what a rule allows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RuleRemote {
    /// Some addresses.
    Prefix(IpPrefix),
    /// The addresses of all ports that have a group.
    Group(SecurityGroupId),
}
