//! The links berth makes for a network, and all that follows from which one it is: name, alias, address,
//! kind and settings.

use std::fmt;

use berth_common::ids::NetworkId;

use crate::decide::names;

/// A link that berth makes for a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// Its network.
    pub network: NetworkId,
    /// What it is for.
    pub role: Role,
}

/// What a link of a network is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The bridge.
    Bridge,
    /// The end in the bridge of the veth pair to the namespace.
    VethHost,
    /// The end in the namespace.
    VethNamespace,
    /// The VLAN sub-interface of a physical network's NIC.
    Vlan,
    /// The end of a VXLAN on this host (VTEP).
    Vxlan,
}

impl Role {
    const fn registered(self) -> names::LinkRole {
        match self {
            Self::Bridge => names::LinkRole::Bridge,
            Self::VethHost => names::LinkRole::VethHost,
            Self::VethNamespace => names::LinkRole::VethNamespace,
            Self::Vlan => names::LinkRole::Vlan,
            Self::Vxlan => names::LinkRole::Vxlan,
        }
    }
}

/// A switch of the host's own IP stack for one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkSetting {
    /// No IPv6: no link-local address, no router advertisements of guests believed.
    DisableIpv6,
    /// Nothing that comes in here is forwarded.
    NoForwarding,
    /// What comes in here with a source that is not routed here is dropped: a guest cannot talk to the host.
    StrictReversePath,
    /// The host's addresses are not told to guests.
    NoArpReplies,
    /// IPv4 that comes in here is forwarded.
    Forwarding,
    /// Of the host's addresses only those of this link are told to those behind it.
    OwnArpReplies,
    /// The host speaks here as on any NIC: ARP is answered as the kernel does by itself.
    HostArpReplies,
    /// IPv6 as the kernel does it by itself.
    HostIpv6,
    /// What comes in here with a source that is routed nowhere is dropped.
    LooseReversePath,
    /// No link-local address but what it is given.
    NoOwnLinkLocal,
    /// No router advertisements of guests believed.
    NoRouterAdvertisements,
    /// Its addresses are the same on every host of a network: no other one that has them keeps it from using them.
    NoDuplicateDetection,
    /// IPv6. After the others: what they forbid happens when it is switched on.
    EnableIpv6,
}

impl LinkSetting {
    /// Its place below `/proc/sys/net` for a link of this name.
    #[must_use]
    pub fn path(self, link: &str) -> String {
        match self {
            Self::DisableIpv6 | Self::EnableIpv6 | Self::HostIpv6 => {
                format!("ipv6/conf/{link}/disable_ipv6")
            }
            Self::NoForwarding | Self::Forwarding => format!("ipv4/conf/{link}/forwarding"),
            Self::StrictReversePath | Self::LooseReversePath => {
                format!("ipv4/conf/{link}/rp_filter")
            }
            Self::NoArpReplies | Self::OwnArpReplies | Self::HostArpReplies => {
                format!("ipv4/conf/{link}/arp_ignore")
            }
            Self::NoOwnLinkLocal => format!("ipv6/conf/{link}/addr_gen_mode"),
            Self::NoRouterAdvertisements => format!("ipv6/conf/{link}/accept_ra"),
            Self::NoDuplicateDetection => format!("ipv6/conf/{link}/accept_dad"),
        }
    }

    /// Whether a kernel without IPv6 lacks it.
    #[must_use]
    pub const fn is_of_ipv6(self) -> bool {
        match self {
            Self::NoForwarding
            | Self::Forwarding
            | Self::StrictReversePath
            | Self::LooseReversePath
            | Self::NoArpReplies
            | Self::OwnArpReplies
            | Self::HostArpReplies => false,
            Self::DisableIpv6
            | Self::HostIpv6
            | Self::NoOwnLinkLocal
            | Self::NoRouterAdvertisements
            | Self::NoDuplicateDetection
            | Self::EnableIpv6 => true,
        }
    }

    /// What it shall be.
    #[must_use]
    pub const fn value(self) -> &'static str {
        match self {
            Self::DisableIpv6
            | Self::StrictReversePath
            | Self::Forwarding
            | Self::OwnArpReplies
            | Self::NoOwnLinkLocal => "1",
            Self::NoForwarding
            | Self::HostIpv6
            | Self::HostArpReplies
            | Self::NoRouterAdvertisements
            | Self::NoDuplicateDetection
            | Self::EnableIpv6 => "0",
            Self::LooseReversePath => "2",
            Self::NoArpReplies => "8",
        }
    }
}

impl Link {
    /// A network's bridge.
    #[must_use]
    pub const fn bridge(network: NetworkId) -> Self {
        Self {
            network,
            role: Role::Bridge,
        }
    }

    /// The end in the bridge of a network's veth pair.
    #[must_use]
    pub const fn veth_host(network: NetworkId) -> Self {
        Self {
            network,
            role: Role::VethHost,
        }
    }

    /// The end in the namespace of a network's veth pair.
    #[must_use]
    pub const fn veth_namespace(network: NetworkId) -> Self {
        Self {
            network,
            role: Role::VethNamespace,
        }
    }

    /// A network's VLAN sub-interface.
    #[must_use]
    pub const fn vlan(network: NetworkId) -> Self {
        Self {
            network,
            role: Role::Vlan,
        }
    }

    /// A network's VTEP.
    #[must_use]
    pub const fn vxlan(network: NetworkId) -> Self {
        Self {
            network,
            role: Role::Vxlan,
        }
    }

    /// All that a network may have on a host.
    #[must_use]
    pub const fn all(network: NetworkId) -> [Self; 5] {
        [
            Self::bridge(network),
            Self::veth_host(network),
            Self::veth_namespace(network),
            Self::vlan(network),
            Self::vxlan(network),
        ]
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> String {
        match self.role {
            Role::Bridge => names::bridge(self.network),
            Role::VethHost => names::veth_host(self.network),
            Role::VethNamespace => names::veth_namespace(self.network),
            Role::Vlan => names::vlan(self.network),
            Role::Vxlan => names::vxlan(self.network),
        }
    }

    /// The alias that tells whose it is.
    #[must_use]
    pub fn alias(self) -> String {
        names::link_alias(self.role.registered(), self.network.as_uuid())
    }

    /// Its Ethernet address: see [`names::own_mac`].
    #[must_use]
    pub fn mac(self) -> [u8; 6] {
        names::own_mac(&self.alias())
    }

    /// The kernel's name of its kind.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self.role {
            Role::Bridge => "bridge",
            Role::VethHost | Role::VethNamespace => "veth",
            Role::Vlan => "vlan",
            Role::Vxlan => "vxlan",
        }
    }

    /// The settings it shall have. A kernel without IPv6 lacks its switch, which is as good.
    #[must_use]
    pub const fn settings(self) -> &'static [LinkSetting] {
        use LinkSetting::{
            DisableIpv6, EnableIpv6, NoDuplicateDetection, NoForwarding, NoOwnLinkLocal,
            NoRouterAdvertisements,
        };
        match self.role {
            Role::Bridge => BridgeUse::Switch.settings(),
            Role::VethHost | Role::Vlan | Role::Vxlan => &[DisableIpv6, NoForwarding],
            Role::VethNamespace => &[
                NoForwarding,
                NoOwnLinkLocal,
                NoRouterAdvertisements,
                NoDuplicateDetection,
                EnableIpv6,
            ],
        }
    }

    /// All the settings that it may have, whatever its network is.
    #[must_use]
    pub const fn possible_settings(self) -> &'static [LinkSetting] {
        use LinkSetting::{
            DisableIpv6, Forwarding, HostArpReplies, HostIpv6, LooseReversePath, NoArpReplies,
            NoForwarding, OwnArpReplies, StrictReversePath,
        };
        match self.role {
            Role::Bridge => &[
                DisableIpv6,
                NoForwarding,
                StrictReversePath,
                NoArpReplies,
                Forwarding,
                OwnArpReplies,
                HostArpReplies,
                HostIpv6,
                LooseReversePath,
            ],
            Role::VethHost | Role::VethNamespace | Role::Vlan | Role::Vxlan => self.settings(),
        }
    }
}

/// What a bridge is to the host's own IP stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BridgeUse {
    /// A switch that the host is not plugged into.
    #[default]
    Switch,
    /// As a switch, but the host is the gateway of those in it.
    Gateway,
    /// What the NIC in it was: the host's own addresses are on it.
    Host,
}

impl BridgeUse {
    /// The settings of such a bridge. Whether a bridge with the host's addresses forwards is the host's own matter.
    #[must_use]
    pub const fn settings(self) -> &'static [LinkSetting] {
        use LinkSetting::{
            DisableIpv6, Forwarding, HostArpReplies, HostIpv6, LooseReversePath, NoArpReplies,
            NoForwarding, OwnArpReplies, StrictReversePath,
        };
        match self {
            Self::Switch => &[DisableIpv6, NoForwarding, StrictReversePath, NoArpReplies],
            Self::Gateway => &[DisableIpv6, Forwarding, StrictReversePath, OwnArpReplies],
            Self::Host => &[HostIpv6, LooseReversePath, HostArpReplies],
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
