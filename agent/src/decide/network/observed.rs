//! What is there of a network, as plain data.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    super::{dhcp::DhcpFiles, filter::FilterObserved},
    link::{Link, LinkSetting},
    metadata::MetadataObserved,
    tc::TcObserved,
    uplink::UplinkObserved,
};

/// What is there of a network. The default: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkObserved {
    /// The link with the name of its bridge.
    pub bridge: Option<LinkObserved>,
    /// The link with the name of its veth pair's end in the bridge.
    pub veth_host: Option<LinkObserved>,
    /// Names of the links in the bridge that are neither this network's nor NICs of physical networks: taps of instances, and whatever somebody else put there.
    pub members: BTreeSet<String>,
    /// Names of taps of any network that are switched on and not in its bridge. One that is switched off does not
    /// count: libvirt puts a new tap into its bridge first, and fails if somebody else was quicker.
    pub stray_taps: BTreeSet<String>,
    /// Its namespace.
    pub namespace: NamespaceObserved,
    /// Its DHCP server.
    pub dhcp: DhcpObserved,
    /// What it reaches beyond its bridge by.
    pub uplink: UplinkObserved,
    /// Its packet filter.
    pub filter: FilterObserved,
    /// Limits and copies of its ports' packets.
    pub tc: TcObserved,
    /// Its metadata service.
    pub metadata: MetadataObserved,
    /// Whether the kernel has no IPv6, for this network or any other.
    pub lacks_ipv6: bool,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkObserved {
    /// The kernel's name of its kind; empty for hardware.
    pub kind: String,
    /// Its alias.
    pub alias: Option<String>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether it is switched on.
    pub up: bool,
    /// Name of the bridge it is in.
    pub master: Option<String>,
    /// Those of [`Link::possible_settings`] that are not so.
    pub unsettled: BTreeSet<LinkSetting>,
    /// Of bridges: how it works.
    pub bridge: Option<BridgeOptions>,
}

/// How a bridge works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeOptions {
    /// Whether it speaks the spanning tree protocol.
    pub stp: bool,
    /// How long a new port listens before it forwards, in hundredths of a second.
    pub forward_delay: u32,
    /// Whether it filters multicast by who asked for it.
    pub multicast_snooping: bool,
    /// Which of the Ethernet addresses that bridges keep to themselves it treats like others: bit n for `01:80:c2:00:00:0n`.
    pub group_fwd_mask: u16,
}

impl BridgeOptions {
    /// How berth's bridges work: a guest's packets pass at once, and nobody speaks but guests. What is for the address of LLDP is
    /// forwarded, that is, shown to the packet filter, which drops it: the host's own IP stack would get it otherwise, whatever it is, and
    /// its sender's address would be learned.
    pub const WANTED: Self = Self {
        stp: false,
        forward_delay: 0,
        multicast_snooping: false,
        group_fwd_mask: 1 << 0xe,
    };
}

/// Whose a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// berth's, and marked so.
    Berth,
    /// berth's, but the mark is missing: something broke off between making and marking it.
    Unmarked,
    /// Somebody else's.
    Foreign,
}

impl LinkObserved {
    /// Whose this link is, found under the name of `link`.
    #[must_use]
    pub fn owner(&self, link: Link) -> Owner {
        if self.kind != link.kind() {
            return Owner::Foreign;
        }
        match &self.alias {
            Some(alias) if *alias == link.alias() => Owner::Berth,
            None if self.mac == Some(link.mac()) => Owner::Unmarked,
            Some(_) | None => Owner::Foreign,
        }
    }

    /// Whether it is berth's.
    #[must_use]
    pub fn is_own(&self, link: Link) -> bool {
        self.owner(link) != Owner::Foreign
    }
}

/// A network's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NamespaceObserved {
    /// There is nothing of that name.
    #[default]
    Absent,
    /// There is a file of that name, but no namespace behind it.
    Empty,
    /// It is there.
    Present(NamespaceContent),
}

/// What is in a network's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceContent {
    /// Whether its loopback link is switched on.
    pub loopback_up: bool,
    /// The link with the name of the veth pair's end.
    pub veth: Option<LinkObserved>,
    /// The addresses its link was given.
    pub addresses: BTreeSet<IpNet>,
}

/// A network's DHCP server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DhcpObserved {
    /// Whether there is a directory for its files.
    pub directory: bool,
    /// Its files, if all are there.
    pub files: Option<DhcpFiles>,
    /// The server, if it runs.
    pub process: Option<DhcpProcess>,
}

/// A running DHCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpProcess {
    /// The files as it read them; `None`: that is not known.
    pub loaded: Option<DhcpFiles>,
    /// Whether it runs in the namespace that has the network's name now.
    pub in_namespace: bool,
}

impl NetworkObserved {
    /// What is in the namespace, if there is one.
    #[must_use]
    pub fn content(&self) -> Option<&NamespaceContent> {
        match &self.namespace {
            NamespaceObserved::Present(content) => Some(content),
            NamespaceObserved::Absent | NamespaceObserved::Empty => None,
        }
    }

    /// The link that was found under the name of one of the network's.
    #[must_use]
    pub fn link(&self, link: Link) -> Option<&LinkObserved> {
        match link.role {
            super::link::Role::Bridge => self.bridge.as_ref(),
            super::link::Role::VethHost => self.veth_host.as_ref(),
            super::link::Role::VethNamespace => self.content()?.veth.as_ref(),
            super::link::Role::Vlan => self.uplink.vlan.as_ref().map(|vlan| &vlan.link),
            super::link::Role::Vxlan => self.uplink.vxlan.as_ref().map(|vxlan| &vxlan.link),
        }
    }
}
