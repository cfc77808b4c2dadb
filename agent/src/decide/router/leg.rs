//! The legs of a router: a veth pair each, from the bridge of a network into the router's namespace; and all that follows from
//! which one it is.

use std::fmt;

use berth_common::ids::{NetworkId, RouterId};

use crate::decide::names::{self, LinkRole};

/// A leg of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leg {
    /// The router.
    pub router: RouterId,
    /// The network it is in.
    pub network: NetworkId,
    /// On which side of the router that is.
    pub side: Side,
}

/// A side of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// A network of its project.
    Inside,
    /// The external network.
    Outside,
}

/// An end of a leg's veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// In the network's bridge.
    Host,
    /// In the router's namespace.
    Namespace,
}

/// A link of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LegLink {
    /// The leg.
    pub leg: Leg,
    /// Which end of it.
    pub end: End,
}

/// A switch of the IP stack for one link of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LegSwitch {
    /// No IPv6: the host itself is not in the network.
    DisableIpv6,
    /// Nothing that comes in here is forwarded: it is for the bridge alone.
    NoForwarding,
    /// What comes in here with a source that is not routed here is dropped.
    StrictReversePath,
    /// Only the leg's own addresses are told of in it.
    OwnArpReplies,
    /// Guests that share the leg are not told to do without the router.
    NoRedirects,
    /// Nobody else's advertisements are believed.
    NoAdvertisements,
    /// Its addresses are not looked for first: other hosts have the same ones.
    NoDuplicateDetection,
}

impl LegSwitch {
    /// Those of each leg's end in the namespace.
    pub const IN_NAMESPACE: [Self; 5] = [
        Self::StrictReversePath,
        Self::OwnArpReplies,
        Self::NoRedirects,
        Self::NoAdvertisements,
        Self::NoDuplicateDetection,
    ];

    /// Its place below `/proc/sys/net` for a link of this name.
    #[must_use]
    pub fn path(self, link: &str) -> String {
        match self {
            Self::DisableIpv6 => format!("ipv6/conf/{link}/disable_ipv6"),
            Self::NoForwarding => format!("ipv4/conf/{link}/forwarding"),
            Self::StrictReversePath => format!("ipv4/conf/{link}/rp_filter"),
            Self::OwnArpReplies => format!("ipv4/conf/{link}/arp_ignore"),
            Self::NoRedirects => format!("ipv4/conf/{link}/send_redirects"),
            Self::NoAdvertisements => format!("ipv6/conf/{link}/accept_ra"),
            Self::NoDuplicateDetection => format!("ipv6/conf/{link}/accept_dad"),
        }
    }

    /// What it shall be.
    #[must_use]
    pub const fn value(self) -> &'static str {
        match self {
            Self::DisableIpv6 | Self::StrictReversePath | Self::OwnArpReplies => "1",
            Self::NoForwarding
            | Self::NoRedirects
            | Self::NoAdvertisements
            | Self::NoDuplicateDetection => "0",
        }
    }
}

/// A switch of the IP stack for a whole namespace of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouterSwitch {
    /// The links alone decide about the reverse path: the kernel takes the laxer of both.
    ReversePathPerLink,
    /// The links alone decide about redirects.
    RedirectsPerLink,
    /// IPv4 is forwarded.
    ForwardIpv4,
    /// IPv6 is forwarded.
    ForwardIpv6,
}

impl RouterSwitch {
    /// All of them, in the order they are set: forwarding last.
    pub const ALL: [Self; 4] = [
        Self::ReversePathPerLink,
        Self::RedirectsPerLink,
        Self::ForwardIpv4,
        Self::ForwardIpv6,
    ];

    /// Its place below `/proc/sys/net`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::ReversePathPerLink => "ipv4/conf/all/rp_filter",
            Self::RedirectsPerLink => "ipv4/conf/all/send_redirects",
            Self::ForwardIpv4 => "ipv4/ip_forward",
            Self::ForwardIpv6 => "ipv6/conf/all/forwarding",
        }
    }

    /// What it shall be.
    #[must_use]
    pub const fn value(self) -> &'static str {
        match self {
            Self::ReversePathPerLink | Self::RedirectsPerLink => "0",
            Self::ForwardIpv4 | Self::ForwardIpv6 => "1",
        }
    }
}

impl Leg {
    /// A leg in a network of the router's project.
    #[must_use]
    pub const fn inside(router: RouterId, network: NetworkId) -> Self {
        Self {
            router,
            network,
            side: Side::Inside,
        }
    }

    /// The leg in the external network.
    #[must_use]
    pub const fn outside(router: RouterId, network: NetworkId) -> Self {
        Self {
            router,
            network,
            side: Side::Outside,
        }
    }

    /// Its end in the network's bridge.
    #[must_use]
    pub const fn host_end(self) -> LegLink {
        LegLink {
            leg: self,
            end: End::Host,
        }
    }

    /// Its end in the router's namespace.
    #[must_use]
    pub const fn namespace_end(self) -> LegLink {
        LegLink {
            leg: self,
            end: End::Namespace,
        }
    }

    /// The leg whose end in a bridge has this name and alias.
    #[must_use]
    pub fn of_host_end(name: &str, alias: &str) -> Option<Self> {
        [Side::Inside, Side::Outside].into_iter().find_map(|side| {
            let role = LegLink::role_of(side, End::Host);
            let (router, network) = names::of_router_alias(role, alias)?;
            let leg = Self {
                router,
                network,
                side,
            };
            (leg.host_end().name() == name).then_some(leg)
        })
    }
}

impl LegLink {
    const fn role_of(side: Side, end: End) -> LinkRole {
        match (side, end) {
            (Side::Inside, End::Host) => LinkRole::RouterLegHost,
            (Side::Inside, End::Namespace) => LinkRole::RouterLegNamespace,
            (Side::Outside, End::Host) => LinkRole::RouterGatewayHost,
            (Side::Outside, End::Namespace) => LinkRole::RouterGatewayNamespace,
        }
    }

    const fn role(self) -> LinkRole {
        Self::role_of(self.leg.side, self.end)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        names::router_link(self.role(), self.leg.router, self.leg.network)
    }

    /// The alias that tells whose it is.
    #[must_use]
    pub fn alias(self) -> String {
        names::router_alias(self.role(), self.leg.router, self.leg.network)
    }

    /// The Ethernet address of an end in a bridge, which nobody sends to: see [`names::own_mac`].
    #[must_use]
    pub fn own_mac(self) -> [u8; 6] {
        names::own_mac(&self.alias())
    }

    /// The switches it shall have. A kernel without IPv6 lacks some, which is as good.
    #[must_use]
    pub const fn switches(self) -> &'static [LegSwitch] {
        match self.end {
            End::Host => &[LegSwitch::DisableIpv6, LegSwitch::NoForwarding],
            End::Namespace => &LegSwitch::IN_NAMESPACE,
        }
    }
}

impl fmt::Display for LegLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
