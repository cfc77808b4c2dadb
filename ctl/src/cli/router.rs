//! The words of `berthctl router …` and `berthctl floating-ip …`: those of the openstack client.

use std::net::IpAddr;

use berth_common::{
    document::Route,
    ids::{FloatingIpId, PortId, RouterId},
    names::RouterName,
};
use clap::{Args, Subcommand};

use super::subnet::route;

/// Commands on routers.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Router {
    /// Create a router.
    Create(RouterCreateArgs),
    /// List routers.
    List,
    /// Show a router with its interfaces and the hosts that have it.
    Show {
        /// Name or id of the router.
        name: String,
    },
    /// Change a router.
    Set(RouterSetArgs),
    /// Take something from a router.
    Unset(RouterUnsetArgs),
    /// Put a router into something.
    #[command(subcommand)]
    Add(RouterAdd),
    /// Take a router out of something.
    #[command(subcommand)]
    Remove(RouterRemove),
    /// Delete a router that has no interfaces.
    Delete {
        /// Name or id of the router.
        name: String,
    },
}

/// What a router is put into.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RouterAdd {
    /// A subnet, in which it is the gateway.
    Subnet {
        /// Name or id of the router.
        router: String,
        /// Id of the subnet; or name or id of its network.
        subnet: String,
        /// The router's address in it. Default: the subnet's gateway.
        #[arg(long, value_name = "IP")]
        address: Option<IpAddr>,
    },
}

/// What a router is taken out of.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RouterRemove {
    /// A subnet.
    Subnet {
        /// Name or id of the router.
        router: String,
        /// Id of the subnet; or name or id of its network.
        subnet: String,
    },
}

/// A new router.
#[derive(Debug, Clone, Args)]
pub(crate) struct RouterCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: RouterName,
    /// The external network that it leads out to, by name or id.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) external_gateway: Option<String>,
    /// What goes out without a floating IP keeps its address.
    #[arg(long)]
    pub(crate) disable_snat: bool,
    /// No host has it until it is enabled.
    #[arg(long)]
    pub(crate) disable: bool,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<RouterId>,
}

/// Changes to a router.
#[derive(Debug, Clone, Args)]
#[group(id = "change", required = true, multiple = true)]
pub(crate) struct RouterSetArgs {
    /// Name or id of the router.
    #[arg(group = "which")]
    pub(crate) router: String,
    /// Another name.
    #[arg(long, group = "change")]
    pub(crate) name: Option<RouterName>,
    /// Hosts have it.
    #[arg(long, group = "change", conflicts_with = "disable")]
    pub(crate) enable: bool,
    /// No host has it.
    #[arg(long, group = "change")]
    pub(crate) disable: bool,
    /// The external network that it leads out to, by name or id.
    #[arg(long, group = "change", value_name = "NETWORK")]
    pub(crate) external_gateway: Option<String>,
    /// What goes out without a floating IP is translated to the host's own address.
    #[arg(long, group = "change", conflicts_with = "disable_snat")]
    pub(crate) enable_snat: bool,
    /// What goes out without a floating IP keeps its address.
    #[arg(long, group = "change")]
    pub(crate) disable_snat: bool,
    /// A further route; those given here replace all there were. Again for each.
    #[arg(
        long = "route",
        group = "change",
        value_name = "destination=CIDR,gateway=IP",
        value_parser = route,
        conflicts_with = "no_route"
    )]
    pub(crate) routes: Vec<Route>,
    /// No further routes.
    #[arg(long, group = "change")]
    pub(crate) no_route: bool,
}

/// What to take from a router.
#[derive(Debug, Clone, Args)]
pub(crate) struct RouterUnsetArgs {
    /// Name or id of the router.
    pub(crate) router: String,
    /// It leads nowhere.
    #[arg(long, required = true)]
    pub(crate) external_gateway: bool,
}

/// Commands on floating IPs.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum FloatingIp {
    /// Get an address of an external network.
    Create(FloatingIpCreateArgs),
    /// List floating IPs.
    List,
    /// Show a floating IP.
    Show {
        /// Address or id of the floating IP.
        floating_ip: String,
    },
    /// Give a floating IP to a port.
    Set {
        /// Address or id of the floating IP.
        floating_ip: String,
        /// Id of the port.
        #[arg(long, value_name = "UUID")]
        port: PortId,
        /// Which of the port's addresses. Default: its only one of IPv4.
        #[arg(long, value_name = "IP")]
        fixed_ip_address: Option<IpAddr>,
    },
    /// Take a floating IP from its port.
    Unset {
        /// Address or id of the floating IP.
        floating_ip: String,
        /// It belongs to no port.
        #[arg(long, required = true)]
        port: bool,
    },
    /// Give a floating IP back.
    Delete {
        /// Address or id of the floating IP.
        floating_ip: String,
    },
}

/// A new floating IP.
#[derive(Debug, Clone, Args)]
pub(crate) struct FloatingIpCreateArgs {
    /// The external network, by name or id.
    pub(crate) network: String,
    /// This address. Default: any that is free.
    #[arg(long, value_name = "IP")]
    pub(crate) floating_ip_address: Option<IpAddr>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<FloatingIpId>,
}
