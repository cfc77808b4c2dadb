//! What there is of a network's uplink, and of the host that it goes out by, as plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use berth_common::names::{LinkName, PhysicalNetworkName};
use ipnet::IpNet;

use super::{
    super::observed::LinkObserved,
    fdb::FdbEntry,
    nat::{NatRules, NatShape},
};

/// What there is of a network's uplink. The default: nothing, on a host that has nothing to offer but a whole kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UplinkObserved {
    /// What all networks of the host share.
    pub host: HostUplinks,
    /// The link with the name of its VLAN sub-interface.
    pub vlan: Option<VlanObserved>,
    /// The link with the name of its VTEP.
    pub vxlan: Option<VxlanObserved>,
    /// The addresses that its bridge was given.
    pub addresses: BTreeSet<IpNet>,
    /// How its packets are translated.
    pub nat: Option<NatObserved>,
}

/// A VLAN sub-interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanObserved {
    /// The link.
    pub link: LinkObserved,
    /// The VLAN's id.
    pub id: Option<u16>,
    /// The link it is a part of.
    pub parent: Option<String>,
}

/// A VTEP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanObserved {
    /// The link.
    pub link: LinkObserved,
    /// The VNI.
    pub id: Option<u32>,
    /// The address it sends from.
    pub local: Option<IpAddr>,
    /// The UDP port it sends to and listens at.
    pub port: Option<u16>,
    /// Whether it believes packets about where their senders are.
    pub learning: bool,
    /// Whether the bridge believes those that come out of it.
    pub port_learning: bool,
    /// Whom it knows, and whom the bridge knows behind it.
    pub fdb: BTreeSet<FdbEntry>,
}

/// How a network's packets are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatObserved {
    /// The rules as they were last carried out.
    pub rules: NatRules,
    /// What the kernel has of them now.
    pub shape: NatShape,
}

/// What of a host its networks go out by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostUplinks {
    /// The NICs that are plugged into physical networks.
    pub nics: BTreeMap<PhysicalNetworkName, Nic>,
    /// Where VXLANs end on this host.
    pub tunnel: Option<Tunnel>,
    /// What happens to the addresses of a NIC that a flat network takes.
    pub flat_addresses: FlatAddressPolicy,
    /// The segments of links that are not this network's, and the links.
    pub taken: BTreeMap<Segment, String>,
    /// The addresses of links that are not this network's.
    pub addresses: BTreeMap<String, BTreeSet<IpNet>>,
    /// The links that IPv4 goes out by when it goes nowhere else, and whether they forward what comes in.
    pub outward: BTreeMap<String, Forwards>,
    /// Those of them that forward because other networks of berth need it.
    pub opened: BTreeSet<String>,
    /// What the kernel lacks, and what would help.
    pub lacks: BTreeMap<Feature, String>,
}

/// Whether a link forwards the IPv4 that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwards {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// The NIC of a physical network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: LinkName,
    /// What it looks like, if it is there.
    pub found: Option<NicFound>,
}

/// What a NIC looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFound {
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether it is switched on.
    pub up: bool,
    /// The bridge or bond it is in.
    pub master: Option<String>,
    /// The addresses it was given.
    pub addresses: BTreeSet<IpNet>,
}

/// Where VXLANs end on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The host's address.
    pub local: IpAddr,
    /// The UDP port of all hosts.
    pub port: u16,
    /// The link that has the address.
    pub carrier: Option<Carrier>,
}

/// A link that VXLANs go out by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// Its name.
    pub name: String,
    /// Largest packet in bytes.
    pub mtu: u32,
}

/// What happens to the addresses of a NIC that a flat network takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlatAddressPolicy {
    /// The network is refused: the host would be cut off.
    #[default]
    Refuse,
    /// They move to the bridge, and their routes with them.
    Move,
}

/// The text names no such policy.
#[derive(Debug, thiserror::Error)]
#[error("no policy for addresses")]
pub struct UnknownPolicy;

impl std::str::FromStr for FlatAddressPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "move" => Ok(Self::Move),
            _ => Err(UnknownPolicy),
        }
    }
}

/// What keeps networks apart on one wire. Two links of one host cannot have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// A VLAN of a NIC.
    Vlan {
        /// The NIC.
        parent: String,
        /// The VLAN's id.
        id: u16,
    },
    /// A VXLAN.
    Vxlan {
        /// The VNI.
        id: u32,
        /// The UDP port.
        port: u16,
    },
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vlan { parent, id } => write!(f, "VLAN {id} of {parent}"),
            Self::Vxlan { id, port } => write!(f, "VNI {id} on UDP port {port}"),
        }
    }
}

/// What not every kernel can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// VLANs (802.1Q).
    Vlan,
    /// VXLANs.
    Vxlan,
    /// Translating addresses with nftables.
    Nat,
    /// Filtering packets that stay in a bridge by the connection they belong to.
    StatefulFilter,
}

impl VlanObserved {
    /// What it keeps apart.
    #[must_use]
    pub fn segment(&self) -> Option<Segment> {
        Some(Segment::Vlan {
            parent: self.parent.clone()?,
            id: self.id?,
        })
    }
}

impl HostUplinks {
    /// The NICs that are in a bridge of this name.
    pub(super) fn nics_in<'a>(&'a self, bridge: &'a str) -> impl Iterator<Item = &'a Nic> {
        self.nics.values().filter(move |nic| {
            let master = nic.found.as_ref().and_then(|found| found.master.as_deref());
            master == Some(bridge)
        })
    }

    /// A NIC by its name.
    pub(super) fn found(&self, name: &LinkName) -> Option<&NicFound> {
        let nic = self.nics.values().find(|nic| nic.name == *name)?;
        nic.found.as_ref()
    }

    /// Changes what a NIC looks like.
    pub(super) fn change_nic(&mut self, name: &LinkName, change: impl FnOnce(&mut NicFound)) {
        let nic = self.nics.values_mut().find(|nic| nic.name == *name);
        if let Some(found) = nic.and_then(|nic| nic.found.as_mut()) {
            change(found);
        }
    }
}
