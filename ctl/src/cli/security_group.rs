//! The words of `berthctl security-group …`.

use berth_common::{
    document::{EtherType, PortRange, RuleDirection, RuleProtocol},
    ids::{SecurityGroupId, SecurityGroupRuleId},
    names::{IpPrefix, SecurityGroupName},
};
use clap::{Args, Subcommand, ValueEnum};

/// Commands on security groups.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SecurityGroup {
    /// Create a security group. Its ports may send anything, and receive nothing until rules are added.
    Create(SecurityGroupCreateArgs),
    /// Change what a security group is called and what is said of it.
    Set(SecurityGroupSetArgs),
    /// List security groups.
    List,
    /// Show one security group with its rules.
    Show {
        /// Name or id of the security group.
        name: String,
    },
    /// Delete a security group that no port has.
    Delete {
        /// Name or id of the security group.
        name: String,
    },
    /// The rules of security groups.
    #[command(subcommand)]
    Rule(SecurityGroupRuleCommand),
}

/// A new security group.
#[derive(Debug, Clone, Args)]
pub(crate) struct SecurityGroupCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: SecurityGroupName,
    /// What it is for.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) description: String,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<SecurityGroupId>,
}

/// A change to a security group.
#[derive(Debug, Clone, Args)]
pub(crate) struct SecurityGroupSetArgs {
    /// Name or id of the security group.
    pub(crate) security_group: String,
    /// Its new name, unique in the project.
    #[arg(long, value_name = "NAME", required_unless_present = "description")]
    pub(crate) name: Option<SecurityGroupName>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
}

/// Commands on the rules of security groups.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SecurityGroupRuleCommand {
    /// Let something in, or out. Connections that are open stay so.
    Create(SecurityGroupRuleCreateArgs),
    /// Let it in, or out, no more.
    Delete {
        /// Id of the rule.
        id: SecurityGroupRuleId,
    },
    /// List the rules of a security group.
    List {
        /// Name or id of the security group.
        security_group: String,
    },
}

/// A new rule.
#[derive(Debug, Clone, Args)]
pub(crate) struct SecurityGroupRuleCreateArgs {
    /// Name or id of the security group.
    pub(crate) security_group: String,
    /// What its guests receive; this is the default.
    #[arg(long, conflicts_with = "egress")]
    pub(crate) ingress: bool,
    /// What its guests send.
    #[arg(long)]
    pub(crate) egress: bool,
    /// IPv4 or IPv6. Default: as --remote-ip, or IPv4.
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) ethertype: Option<Version>,
    /// any, tcp, udp, icmp, or the number of another protocol.
    #[arg(long, value_name = "PROTOCOL", default_value = "any", value_parser = protocol)]
    pub(crate) protocol: Protocol,
    /// With tcp and udp: the destination port, or the first and the last: 22, or 1:100. Default: all.
    #[arg(long, value_name = "PORTS", value_parser = ports)]
    pub(crate) dst_port: Option<PortRange>,
    /// With icmp: the type. Default: all.
    #[arg(long, value_name = "N")]
    pub(crate) icmp_type: Option<u8>,
    /// With --icmp-type: the code. Default: all.
    #[arg(long, value_name = "N", requires = "icmp_type")]
    pub(crate) icmp_code: Option<u8>,
    /// From these addresses, or to them. Default: any.
    #[arg(long, value_name = "PREFIX", conflicts_with = "remote_group")]
    pub(crate) remote_ip: Option<IpPrefix>,
    /// From the ports of this group, or to them.
    #[arg(long, value_name = "GROUP")]
    pub(crate) remote_group: Option<String>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<SecurityGroupRuleId>,
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    /// IPv4.
    #[value(name = "IPv4")]
    V4,
    /// IPv6.
    #[value(name = "IPv6")]
    V6,
}

/// A protocol above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Any.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, or ICMPv6.
    Icmp,
    /// Another one.
    Number(u8),
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "any" => Ok(Protocol::Any),
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" | "icmpv6" | "ipv6-icmp" => Ok(Protocol::Icmp),
        number => number
            .parse()
            .map(Protocol::Number)
            .map_err(|_| "must be any, tcp, udp, icmp, or a number up to 255".to_owned()),
    }
}

fn ports(text: &str) -> Result<PortRange, String> {
    let (min, max) = text.split_once(':').unwrap_or((text, text));
    match (min.parse(), max.parse()) {
        (Ok(min), Ok(max)) if 1 <= min && min <= max => Ok(PortRange { min, max }),
        _ => Err("must be a port from 1 to 65535, or two of them like 1:100".to_owned()),
    }
}

impl SecurityGroupRuleCreateArgs {
    /// Which way.
    pub(crate) const fn direction(&self) -> RuleDirection {
        if self.egress {
            RuleDirection::Egress
        } else {
            RuleDirection::Ingress
        }
    }

    /// The version of IP that is meant.
    pub(crate) fn ethertype(&self) -> EtherType {
        match (self.ethertype, self.remote_ip) {
            (Some(Version::V4), _) => EtherType::IPv4,
            (Some(Version::V6), _) => EtherType::IPv6,
            (None, Some(prefix)) if prefix.is_ipv6() => EtherType::IPv6,
            (None, _) => EtherType::IPv4,
        }
    }

    /// The protocol with what narrows it down; a mistake if that is of another one.
    pub(crate) fn rule_protocol(&self) -> Result<Option<RuleProtocol>, String> {
        let has_icmp = self.icmp_type.is_some();
        let (of_ports, of_icmp) = (self.dst_port.is_some(), has_icmp);
        match self.protocol {
            Protocol::Tcp | Protocol::Udp if of_icmp => {
                return Err("--icmp-type goes with --protocol icmp only".to_owned());
            }
            Protocol::Any | Protocol::Icmp | Protocol::Number(_) if of_ports => {
                return Err("--dst-port goes with --protocol tcp or udp only".to_owned());
            }
            Protocol::Any | Protocol::Number(_) if of_icmp => {
                return Err("--icmp-type goes with --protocol icmp only".to_owned());
            }
            Protocol::Any
            | Protocol::Tcp
            | Protocol::Udp
            | Protocol::Icmp
            | Protocol::Number(_) => {}
        }
        Ok(match self.protocol {
            Protocol::Any => None,
            Protocol::Tcp => Some(RuleProtocol::Tcp {
                ports: self.dst_port,
            }),
            Protocol::Udp => Some(RuleProtocol::Udp {
                ports: self.dst_port,
            }),
            Protocol::Icmp => Some(RuleProtocol::Icmp {
                kind: self.icmp_type,
                code: self.icmp_code,
            }),
            Protocol::Number(number) => Some(RuleProtocol::Number { number }),
        })
    }
}
