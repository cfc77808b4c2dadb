//! The document of a network on one host: what this host needs so that its own instances can use the network.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FixedIp, Route, SecurityGroupSpec};
use crate::{
    ids::{InstanceId, PortId, SecurityGroupId, SubnetId},
    names::{
        Cidr, InstanceName, IpPrefix, LinkName, MacAddress, NetworkName, PhysicalNetworkName,
        ProjectName,
    },
};

/// How a network shall be on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkSpec {
    /// Name given by its owner.
    pub name: NetworkName,
    /// The owner.
    pub project: ProjectName,
    /// How it is built.
    pub network_type: NetworkType,
    /// Of `flat` and `vlan`: the physical network it is on.
    #[serde(default)]
    pub physical_network: Option<PhysicalNetworkName>,
    /// Of `vlan`: the VLAN's id, from 1 to 4094; of `vxlan`: the VNI, from 1 to 16777215.
    #[serde(default)]
    pub segmentation_id: Option<u32>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Its subnets.
    pub subnets: Vec<SubnetSpec>,
    /// The ports of this host's own instances, and no others.
    pub ports: Vec<NetworkPort>,
    /// The ports on other hosts, of networks that reach beyond a host: who they are, and where `vxlan` finds them.
    #[serde(default)]
    pub remote_ports: Vec<RemotePort>,
    /// The security groups of `ports`, each once.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupSpec>,
    /// Of the groups that rules name as remote: the addresses of all their members, on all hosts.
    #[serde(default)]
    pub group_members: BTreeMap<SecurityGroupId, Vec<IpPrefix>>,
}

/// How a network is built on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum NetworkType {
    /// A bridge that reaches only the instances of the same host.
    #[default]
    Local,
    /// As `local`, with the gateway's address on the host, which translates (masquerades) what goes out to its own.
    Nat,
    /// The NIC of a physical network is in the bridge.
    Flat,
    /// A VLAN (802.1Q) of a physical network is in the bridge.
    Vlan,
    /// A VXLAN between the hosts is in the bridge.
    Vxlan,
}

impl NetworkType {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Nat => "nat",
            Self::Flat => "flat",
            Self::Vlan => "vlan",
            Self::Vxlan => "vxlan",
        }
    }

    /// Whether ports on different hosts reach each other.
    #[must_use]
    pub const fn spans_hosts(self) -> bool {
        match self {
            Self::Local | Self::Nat => false,
            Self::Flat | Self::Vlan | Self::Vxlan => true,
        }
    }
}

/// One subnet, of IPv4 or IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubnetSpec {
    /// The subnet.
    pub id: SubnetId,
    /// Its addresses.
    pub cidr: Cidr,
    /// The router's address, if the subnet has one; guests get it as their default route.
    #[serde(default)]
    pub gateway_ip: Option<IpAddr>,
    /// The address of berth's DHCP server and metadata service, the same on every host of the network; null: neither answers
    /// in this subnet.
    #[serde(default)]
    pub dhcp_ip: Option<IpAddr>,
    /// Name servers handed to guests; none: berth's own DHCP server, which knows the names of the network.
    #[serde(default)]
    pub dns_nameservers: Vec<IpAddr>,
    /// Further routes handed to guests.
    #[serde(default)]
    pub host_routes: Vec<Route>,
    /// Of IPv6: how guests get their address; null: they are not told.
    #[serde(default)]
    pub ipv6_address_mode: Option<Ipv6AddressMode>,
}

/// How guests get their IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Ipv6AddressMode {
    /// They make it themselves, of the subnet's prefix and their Ethernet address (RFC 4862, modified EUI-64).
    Slaac,
    /// DHCPv6 gives it to them (RFC 8415).
    Dhcpv6Stateful,
}

impl Ipv6AddressMode {
    /// The bits of the prefix of subnets in which guests make their addresses themselves, and the fewest of those that DHCPv6 works in.
    pub const PREFIX: u8 = 64;

    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slaac => "slaac",
            Self::Dhcpv6Stateful => "dhcpv6-stateful",
        }
    }

    /// What is wrong with a subnet in which guests are to get their addresses so, if anything is: who asks for it is told, and no host
    /// builds the network.
    #[must_use]
    pub fn mistake(self, cidr: Cidr) -> Option<String> {
        let (name, prefix) = (self.as_str(), cidr.net().prefix_len());
        match self {
            _ if !cidr.is_ipv6() => Some(format!(
                "ipv6_address_mode {name} is for IPv6, and {cidr} is not"
            )),
            Self::Slaac if prefix != Self::PREFIX => Some(format!(
                "with ipv6_address_mode {name} the prefix must have {} bits, the rest is the guest's: {cidr} has {prefix}",
                Self::PREFIX
            )),
            Self::Dhcpv6Stateful if prefix < Self::PREFIX => Some(format!(
                "with ipv6_address_mode {name} the prefix must have at least {} bits: {cidr} has {prefix}",
                Self::PREFIX
            )),
            Self::Slaac | Self::Dhcpv6Stateful => None,
        }
    }
}

/// A port of one of this host's instances: all that DHCP and the packet filter need of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkPort {
    /// The port.
    pub id: PortId,
    /// The instance it belongs to.
    pub instance_id: InstanceId,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The host name the guest gets.
    pub hostname: InstanceName,
    /// The addresses it gets.
    pub fixed_ips: Vec<FixedIp>,
    /// What its guest may send and receive; null: anything, from and to any address (port security is off).
    #[serde(default)]
    pub security: Option<PortSecurity>,
    /// How fast it may send and receive.
    #[serde(default)]
    pub qos: PortQos,
    /// Where copies of its packets go.
    #[serde(default)]
    pub mirrors: Vec<PortMirror>,
}

/// What the guest behind a port may send and receive. Beyond its own Ethernet and IP addresses it may use the allowed pairs; it is
/// never a DHCP server or a router that advertises itself. What no rule of a group allows is dropped, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortSecurity {
    /// Further addresses that the guest may use.
    #[serde(default)]
    pub allowed_address_pairs: Vec<AddressPair>,
    /// Its groups; what one of them allows is allowed.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupId>,
}

/// An address that a guest may use beside its own.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct AddressPair {
    /// The IP address or addresses.
    pub ip_address: IpPrefix,
    /// With this Ethernet address; null: with the port's own.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
}

/// How fast a port may be, seen from its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub struct PortQos {
    /// What the guest sends; null: no limit.
    #[serde(default)]
    pub egress: Option<BandwidthLimit>,
    /// What the guest receives; null: no limit.
    #[serde(default)]
    pub ingress: Option<BandwidthLimit>,
}

/// A limit of bandwidth, as Neutron's `bandwidth_limit` rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct BandwidthLimit {
    /// In kilobits (1000 bits) a second.
    pub max_kbps: u32,
    /// How much may pass at once, in kilobits; 0: a tenth of `max_kbps`.
    #[serde(default)]
    pub max_burst_kbps: u32,
}

/// Copies of a port's packets.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct PortMirror {
    /// Which packets, seen from the guest.
    pub direction: MirrorDirection,
    /// Where to.
    pub to: MirrorTarget,
}

/// Which packets of a port are copied, seen from its guest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum MirrorDirection {
    /// What it receives.
    Ingress,
    /// What it sends.
    Egress,
    /// Both.
    Both,
}

/// Where the copies of a port's packets go.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MirrorTarget {
    /// To a port on the same host.
    Port(PortId),
    /// To a link of the host that is not berth's.
    Interface(LinkName),
}

/// A port of the same network on another host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct RemotePort {
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The host name of its guest.
    pub hostname: InstanceName,
    /// Its addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Of `vxlan`: the address of the host it is on, as far as that is known.
    // Of `flat` and `vlan` as well: a router sends into a VXLAN from there. Nothing finds the port by it.
    #[serde(default)]
    pub tunnel_ip: Option<IpAddr>,
}

impl NetworkPort {
    /// Its addresses, each a network of one.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.fixed_ips
            .iter()
            .map(|fixed| IpNet::from(fixed.ip_address))
    }
}
