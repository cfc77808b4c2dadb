//! The steps a plan for a router is made of.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use berth_common::{
    ids::{NetworkId, RouterId},
    message::report::Fault,
};
use ipnet::IpNet;

use super::{
    Neighbours,
    leg::{Leg, LegLink, LegSwitch, RouterSwitch},
    observed::Translation,
    rules::Rules,
};
use crate::decide::{dhcp::DhcpFiles, network::OnError};

/// A route of a router.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteEntry {
    /// To these addresses.
    pub destination: IpNet,
    /// By way of this one; `None`: they are on the link itself.
    pub via: Option<IpAddr>,
    /// By this link.
    pub link: String,
}

impl fmt::Display for RouteEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", self.link)
    }
}

/// One step towards a router. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouterStep {
    /// Make the namespace.
    CreateNamespace(RouterId),
    /// Switch its loopback link on.
    LoopbackUp(RouterId),
    /// Replace the packet filter as a whole, at once. Flows stay.
    SetRules {
        /// The router.
        router: RouterId,
        /// What it shall be.
        rules: Rules,
    },
    /// Make a leg's veth pair with its second end in the namespace, both switched off and without alias.
    CreateLeg {
        /// The leg.
        leg: Leg,
        /// The Ethernet address of the end in the namespace.
        mac: [u8; 6],
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// Give a link the alias that tells whose it is.
    Mark(LegLink),
    /// Set switches of the IP stack for a link.
    Settle {
        /// The link.
        link: LegLink,
        /// The switches.
        switches: BTreeSet<LegSwitch>,
    },
    /// Set the largest packet.
    SetMtu {
        /// The link.
        link: LegLink,
        /// In bytes.
        mtu: u32,
    },
    /// Put a leg's end into the bridge of its network.
    Plug(Leg),
    /// Tell the bridge for good that a leg's Ethernet address is behind its end there. Of a leg that only receives it would forget
    /// that, and show everybody what is for the leg.
    Anchor {
        /// The leg.
        leg: Leg,
        /// Its Ethernet address.
        mac: [u8; 6],
    },
    /// Give a leg an address.
    AddAddress {
        /// The leg.
        leg: Leg,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Take an address from a leg.
    RemoveAddress {
        /// The leg.
        leg: Leg,
        /// The address with its prefix.
        address: IpNet,
    },
    /// Switch a link on.
    SetUp(LegLink),
    /// Tell a leg of neighbours that it does not find by asking, and take such from it.
    ChangeNeighbours {
        /// The leg.
        leg: Leg,
        /// These it is told of, in place of what it knows of them.
        set: Neighbours,
        /// These are taken from it.
        unset: Vec<IpAddr>,
    },
    /// Set a route.
    AddRoute {
        /// The router.
        router: RouterId,
        /// The route.
        route: RouteEntry,
    },
    /// Remove a route.
    RemoveRoute {
        /// The router.
        router: RouterId,
        /// The route.
        route: RouteEntry,
    },
    /// Set switches of the IP stack of the namespace.
    Switch {
        /// The router.
        router: RouterId,
        /// The switches.
        switches: BTreeSet<RouterSwitch>,
    },
    /// Tell the external network where addresses are now.
    Announce {
        /// The leg.
        leg: Leg,
        /// With this Ethernet address.
        mac: [u8; 6],
        /// These are told.
        addresses: BTreeSet<IpAddr>,
        /// All that it was told then.
        announced: BTreeSet<IpAddr>,
    },
    /// End the flows that are translated in these ways.
    ForgetFlows {
        /// The router.
        router: RouterId,
        /// The translations.
        flows: BTreeSet<Translation>,
    },
    /// Write what advertises the router in IPv6.
    WriteAdvertiser {
        /// The router.
        router: RouterId,
        /// What it reads.
        files: DhcpFiles,
    },
    /// Start it.
    StartAdvertiser(RouterId),
    /// Stop it.
    StopAdvertiser(RouterId),
    /// Remove its files.
    RemoveFiles(RouterId),
    /// Remove a link in the namespace, with its other end.
    RemoveLink {
        /// The router.
        router: RouterId,
        /// Its name.
        name: String,
    },
    /// Remove an end in a bridge that has lost the other one.
    RemoveHostEnd(LegLink),
    /// Remove the namespace.
    DeleteNamespace(RouterId),
}

impl RouterStep {
    /// The router it is for.
    #[must_use]
    pub const fn router(&self) -> RouterId {
        match self {
            Self::CreateNamespace(router)
            | Self::LoopbackUp(router)
            | Self::StartAdvertiser(router)
            | Self::StopAdvertiser(router)
            | Self::RemoveFiles(router)
            | Self::DeleteNamespace(router)
            | Self::SetRules { router, .. }
            | Self::AddRoute { router, .. }
            | Self::RemoveRoute { router, .. }
            | Self::Switch { router, .. }
            | Self::ForgetFlows { router, .. }
            | Self::WriteAdvertiser { router, .. }
            | Self::RemoveLink { router, .. } => *router,
            Self::CreateLeg { leg, .. }
            | Self::Plug(leg)
            | Self::Anchor { leg, .. }
            | Self::AddAddress { leg, .. }
            | Self::RemoveAddress { leg, .. }
            | Self::ChangeNeighbours { leg, .. }
            | Self::Announce { leg, .. } => leg.router,
            Self::Mark(link)
            | Self::SetUp(link)
            | Self::RemoveHostEnd(link)
            | Self::Settle { link, .. }
            | Self::SetMtu { link, .. } => link.leg.router,
        }
    }

    /// Its name in figures and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CreateNamespace(_) => "create_router_namespace",
            Self::LoopbackUp(_) => "router_loopback_up",
            Self::SetRules { .. } => "set_router_rules",
            Self::CreateLeg { .. } => "create_router_leg",
            Self::Mark(_) => "mark_router_link",
            Self::Settle { .. } => "settle_router_link",
            Self::SetMtu { .. } => "set_router_mtu",
            Self::Plug(_) => "plug_router_leg",
            Self::Anchor { .. } => "anchor_router_leg",
            Self::AddAddress { .. } => "add_router_address",
            Self::RemoveAddress { .. } => "remove_router_address",
            Self::SetUp(_) => "router_link_up",
            Self::ChangeNeighbours { .. } => "change_neighbours",
            Self::AddRoute { .. } => "add_route",
            Self::RemoveRoute { .. } => "remove_route",
            Self::Switch { .. } => "switch_forwarding",
            Self::Announce { .. } => "announce_addresses",
            Self::ForgetFlows { .. } => "forget_flows",
            Self::WriteAdvertiser { .. } => "write_advertiser",
            Self::StartAdvertiser(_) => "start_advertiser",
            Self::StopAdvertiser(_) => "stop_advertiser",
            Self::RemoveFiles(_) => "remove_router_files",
            Self::RemoveLink { .. } => "remove_router_link",
            Self::RemoveHostEnd(_) => "remove_router_host_end",
            Self::DeleteNamespace(_) => "delete_router_namespace",
        }
    }
}

/// What the step does, as the end of "could not …".
impl fmt::Display for RouterStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateNamespace(_) => f.write_str("make its namespace"),
            Self::LoopbackUp(_) => f.write_str("switch the loopback link of its namespace on"),
            Self::SetRules { .. } => f.write_str("set its packet filter"),
            Self::CreateLeg { leg, .. } => write!(f, "make veth pair {}", leg.host_end()),
            Self::Mark(link) => write!(f, "give link {link} its alias"),
            Self::Settle { link, .. } => write!(f, "set the IP switches of link {link}"),
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of link {link} to {mtu}"),
            Self::Plug(leg) => write!(
                f,
                "put link {} into the bridge of network {}",
                leg.host_end(),
                leg.network
            ),
            Self::Anchor { leg, .. } => write!(
                f,
                "tell the bridge of network {} what is behind link {}",
                leg.network,
                leg.host_end()
            ),
            Self::AddAddress { leg, address } => {
                write!(f, "give link {} the address {address}", leg.namespace_end())
            }
            Self::RemoveAddress { leg, address } => {
                write!(
                    f,
                    "take the address {address} from link {}",
                    leg.namespace_end()
                )
            }
            Self::SetUp(link) => write!(f, "switch link {link} on"),
            Self::ChangeNeighbours { leg, set, unset } => write!(
                f,
                "tell link {} of {} ports on other hosts, and take {} from it",
                leg.namespace_end(),
                set.len(),
                unset.len()
            ),
            Self::AddRoute { route, .. } => write!(f, "set route {route}"),
            Self::RemoveRoute { route, .. } => write!(f, "remove route {route}"),
            Self::Switch { .. } => f.write_str("set the IP switches of its namespace"),
            Self::Announce { leg, .. } => {
                write!(f, "announce its addresses in network {}", leg.network)
            }
            Self::ForgetFlows { .. } => f.write_str("end flows that are no longer translated"),
            Self::WriteAdvertiser { .. } => {
                f.write_str("write the files of what advertises it in IPv6")
            }
            Self::StartAdvertiser(_) => f.write_str("start what advertises it in IPv6"),
            Self::StopAdvertiser(_) => f.write_str("stop what advertises it in IPv6"),
            Self::RemoveFiles(_) => f.write_str("remove its files"),
            Self::RemoveLink { name, .. } => write!(f, "remove link {name}"),
            Self::RemoveHostEnd(link) => write!(f, "remove link {link}"),
            Self::DeleteNamespace(_) => f.write_str("remove its namespace"),
        }
    }
}

/// What to do, and where that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterPlan {
    /// The steps, in order.
    pub steps: Vec<RouterStep>,
    /// What is true once they are done.
    pub then: RouterThen,
    /// What a failed step means for those after it.
    pub on_error: OnError,
}

/// What is true once a plan's steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouterThen {
    /// The router is as its document says.
    Converged,
    /// Nothing of it is left.
    Gone,
    /// All but the leg in this network is there: the network's bridge is not.
    Wait(NetworkId),
    /// It cannot be made so.
    Refused(Fault),
}
