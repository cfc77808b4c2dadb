//! The words of `berthctl port …`, and of the ports of instances.

use std::net::IpAddr;

use berth_common::{
    document::{AddressPair, BandwidthLimit, MirrorDirection, MirrorTarget, PortMirror},
    ids::PortId,
    message::request::Change,
    names::{MacAddress, PortName},
};
use clap::{Args, Subcommand};

use super::{Wait, trace::PortTraceArgs, value_or};

/// Commands on ports.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Port {
    /// Show where a packet would go and what would drop it, without sending one.
    Trace(PortTraceArgs),
    /// Show what went through a port of a guest that is on, and what was dropped, as its hypervisor counts now.
    Counters {
        /// Name or id of the port.
        name: String,
    },
    /// Create a port that is of no instance yet. It keeps its addresses until it is deleted.
    Create(PortCreateArgs),
    /// Change what is wanted of a port. What is not named stays, and its guest runs on.
    Set(PortSetArgs),
    /// List ports.
    List {
        /// Only those in this network, by name or id.
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
        /// Only those of this instance, by name or id.
        #[arg(long, value_name = "INSTANCE")]
        instance: Option<String>,
    },
    /// Show one port.
    Show {
        /// Name or id of the port.
        name: String,
    },
    /// Delete a port that is of no instance.
    Delete {
        /// Name or id of the port.
        name: String,
    },
}

/// What may go through a port.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Security {
    /// A security group, by name or id; may be given several times. Default: the project's group `default`.
    #[arg(long = "security-group", value_name = "GROUP")]
    pub(crate) security_groups: Vec<String>,
    /// No security group: nothing is received, and nothing sent.
    #[arg(long, conflicts_with = "security_groups")]
    pub(crate) no_security_group: bool,
    /// Let the guest send and receive anything, from and to any address.
    #[arg(long, conflicts_with_all = ["security_groups", "no_security_group"])]
    pub(crate) no_port_security: bool,
}

impl Security {
    /// The groups that are named, if any are.
    pub(crate) fn groups(&self) -> Option<Vec<String>> {
        let named = !self.security_groups.is_empty() || self.no_security_group;
        named.then(|| self.security_groups.clone())
    }
}

/// A new port.
#[derive(Debug, Clone, Args)]
pub(crate) struct PortCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: Option<PortName>,
    /// The network it is in, by name or id.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: String,
    /// The address it shall have. Default: a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip_address: Option<IpAddr>,
    /// The Ethernet address it shall have. Default: one made by berth.
    #[arg(long, value_name = "MAC")]
    pub(crate) mac_address: Option<MacAddress>,
    #[command(flatten)]
    pub(crate) security: Security,
    #[command(flatten)]
    pub(crate) extras: Extras,
    /// The guest sees no cable in it.
    #[arg(long)]
    pub(crate) disable: bool,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<PortId>,
}

/// What a port may have besides.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Extras {
    /// A further address that the guest may use, or a prefix, also with another Ethernet address: 10.0.0.100, or
    /// 10.0.0.100,52:54:00:00:01:01. May be given several times.
    #[arg(long = "allowed-address", value_name = "ADDRESS[,MAC]", value_parser = pair)]
    pub(crate) allowed_addresses: Vec<AddressPair>,
    /// How fast the guest may send, in kbit/s, and how much at once in kbit: 10000, or 10000,2000; `none`: no limit.
    #[arg(long, value_name = "KBPS[,BURST]", value_parser = bandwidth)]
    pub(crate) egress_limit: Option<Change<BandwidthLimit>>,
    /// How fast the guest may receive, likewise.
    #[arg(long, value_name = "KBPS[,BURST]", value_parser = bandwidth)]
    pub(crate) ingress_limit: Option<Change<BandwidthLimit>>,
    /// Copy what goes through it to a port on the same hypervisor, by id, or to one of its links: in, out or both, like
    /// both,port,UUID or out,link,eth1. May be given several times.
    #[arg(long = "mirror", value_name = "WHICH,KIND,TO", value_parser = mirror)]
    pub(crate) mirrors: Vec<PortMirror>,
}

/// A change to a port.
#[derive(Debug, Clone, Args)]
pub(crate) struct PortSetArgs {
    /// Name or id of the port.
    pub(crate) port: String,
    /// Its name, unique in the project; `none` takes it away.
    #[arg(long, value_name = "NAME", value_parser = |text: &str| value_or::<PortName>("none", text))]
    pub(crate) name: Option<Change<PortName>>,
    #[command(flatten)]
    pub(crate) security: Security,
    /// Hold its guest to its addresses and its groups.
    #[arg(long, conflicts_with = "no_port_security")]
    pub(crate) port_security: bool,
    #[command(flatten)]
    pub(crate) extras: Extras,
    /// No further addresses.
    #[arg(long, conflicts_with = "allowed_addresses")]
    pub(crate) no_allowed_address: bool,
    /// No mirrors.
    #[arg(long, conflicts_with = "mirrors")]
    pub(crate) no_mirror: bool,
    /// The guest sees a cable in it.
    #[arg(long, conflicts_with = "disable")]
    pub(crate) enable: bool,
    /// The guest sees no cable in it.
    #[arg(long)]
    pub(crate) disable: bool,
}

/// A network that an instance is plugged into.
#[derive(Debug, Clone, Args)]
pub(crate) struct AddNetworkArgs {
    /// Name or id of the instance.
    pub(crate) instance: String,
    /// Name or id of the network.
    pub(crate) network: String,
    /// The address it shall have there. Default: a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip_address: Option<IpAddr>,
    /// The Ethernet address it shall have there. Default: one made by berth.
    #[arg(long, value_name = "MAC")]
    pub(crate) mac_address: Option<MacAddress>,
    #[command(flatten)]
    pub(crate) security: Security,
    /// The id of the port that is made: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<PortId>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

fn pair(text: &str) -> Result<AddressPair, String> {
    let (address, mac) = match text.split_once(',') {
        Some((address, mac)) => (address, Some(mac)),
        None => (text, None),
    };
    Ok(AddressPair {
        ip_address: address
            .parse()
            .map_err(|error: berth_common::names::InvalidText| error.to_string())?,
        mac_address: mac
            .map(str::parse)
            .transpose()
            .map_err(|error: berth_common::names::InvalidText| error.to_string())?,
    })
}

fn bandwidth(text: &str) -> Result<Change<BandwidthLimit>, String> {
    if text == "none" {
        return Ok(Change::Clear);
    }
    let (rate, burst) = text.split_once(',').unwrap_or((text, "0"));
    match (rate.parse(), burst.parse()) {
        (Ok(max_kbps), Ok(max_burst_kbps)) if max_kbps > 0 => Ok(Change::Set(BandwidthLimit {
            max_kbps,
            max_burst_kbps,
        })),
        _ => {
            Err("must be kbit/s from 1, with a burst in kbit like 10000,2000; or `none`".to_owned())
        }
    }
}

fn mirror(text: &str) -> Result<PortMirror, String> {
    let parts: Vec<&str> = text.split(',').collect();
    let [direction, kind, to] = parts.as_slice() else {
        return Err("must be like both,port,UUID or out,link,eth1".to_owned());
    };
    let direction = match *direction {
        "in" => MirrorDirection::Ingress,
        "out" => MirrorDirection::Egress,
        "both" => MirrorDirection::Both,
        other => return Err(format!("{other:?} must be in, out or both")),
    };
    let to = match *kind {
        "port" => MirrorTarget::Port(
            to.parse()
                .map_err(|error: berth_common::ids::InvalidId| error.to_string())?,
        ),
        "link" => MirrorTarget::Interface(
            to.parse()
                .map_err(|error: berth_common::names::InvalidText| error.to_string())?,
        ),
        other => return Err(format!("{other:?} must be port or link")),
    };
    Ok(PortMirror { direction, to })
}
