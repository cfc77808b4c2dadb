//! What a network reaches beyond its bridge by, beside the instances of this host.
//!
//! ```text
//!   flat    NIC ─ bridge
//!   vlan    NIC ─ VLAN sub-interface ─ bridge
//!   vxlan   VTEP ─ bridge                    (the host's own routes lead to the other hosts)
//!   nat     bridge with the gateway's address, nftables, the host's own routes
//! ```
//!
//! A NIC is the host's: it is switched on, put into the bridge of a flat network and taken out again, and nothing else.

pub mod fdb;
mod imagine;
pub mod nat;
mod observed;
mod step;

use std::{collections::BTreeSet, net::IpAddr};

use berth_common::{
    document::{NetworkSpec, NetworkType},
    ids::NetworkId,
    message::report::{Fault, FaultCode},
    names::LinkName,
};
use ipnet::IpNet;

pub(super) use imagine::{imagine, plugged, without_bridge};
pub use observed::{
    Carrier, Feature, FlatAddressPolicy, Forwards, HostUplinks, NatObserved, Nic, NicFound,
    Segment, Tunnel, UnknownPolicy, UplinkObserved, VlanObserved, VxlanObserved,
};
pub use step::UplinkStep;

use self::{fdb::FdbEntry, nat::NatRules, step::list};
use super::{
    Planner,
    link::{BridgeUse, Link},
    observed::NetworkObserved,
    step::{BridgePort, NetStep},
};
use crate::decide::filter::{Reach, TunnelEnd};

/// What a VXLAN puts around each packet (RFC 7348): the Ethernet header of the guest, VXLAN, UDP and the hosts' IP.
const VXLAN_OVERHEAD_IPV4: u32 = 14 + 8 + 8 + 20;
const VXLAN_OVERHEAD_IPV6: u32 = 14 + 8 + 8 + 40;
const VLAN_MAX: u32 = 4094;
const VNI_MAX: u32 = (1 << 24) - 1;

/// What a network shall reach beyond its bridge by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Uplink {
    /// Nothing.
    None,
    /// The host, as a gateway.
    Nat(NatRules),
    /// A NIC.
    Nic(LinkName),
    /// A VLAN of a NIC.
    Vlan { parent: LinkName, id: u16 },
    /// A VXLAN.
    Vxlan {
        id: u32,
        local: IpAddr,
        port: u16,
        fdb: BTreeSet<FdbEntry>,
    },
}

/// What a network's document asks for, with what this host has for it; the fault: why it has not.
pub(super) fn wanted(
    network: NetworkId,
    spec: &NetworkSpec,
    observed: &NetworkObserved,
) -> Result<Uplink, Fault> {
    let uplink = &observed.uplink;
    let host = &uplink.host;
    let mtu = u32::from(spec.mtu);
    match spec.network_type {
        NetworkType::Local => Ok(Uplink::None),
        NetworkType::Nat => {
            has(host, Feature::Nat)?;
            nat::wanted(spec, uplink).map(Uplink::Nat)
        }
        NetworkType::Flat => {
            let (name, found) = nic(spec, host)?;
            let bridge = Link::bridge(network).name();
            if let Some(master) = found.master.as_ref().filter(|master| **master != bridge) {
                return Err(fault(format!(
                    "NIC {name} is in {master} already: a NIC is in one bridge or bond, and one flat network has it alone"
                )));
            }
            if !found.addresses.is_empty() && host.flat_addresses == FlatAddressPolicy::Refuse {
                return Err(fault(format!(
                    "NIC {name} carries addresses of this host ({}), which would be cut off: use another NIC, or set \
                     network.flat_address_policy = \"move\"",
                    list(&found.addresses)
                )));
            }
            carries(&format!("NIC {name}"), found.mtu, mtu, 0)?;
            Ok(Uplink::Nic(name.clone()))
        }
        NetworkType::Vlan => {
            has(host, Feature::Vlan)?;
            let (name, found) = nic(spec, host)?;
            let id = segment(spec, VLAN_MAX)?;
            let id = u16::try_from(id).map_err(|error| fault(error.to_string()))?;
            carries(&format!("NIC {name}"), found.mtu, mtu, 0)?;
            let parent = name.to_string();
            free(host, &Segment::Vlan { parent, id })?;
            Ok(Uplink::Vlan {
                parent: name.clone(),
                id,
            })
        }
        NetworkType::Vxlan => {
            has(host, Feature::Vxlan)?;
            vxlan(spec, host)
        }
    }
}

fn vxlan(spec: &NetworkSpec, host: &HostUplinks) -> Result<Uplink, Fault> {
    let id = segment(spec, VNI_MAX)?;
    let Some(tunnel) = &host.tunnel else {
        return Err(fault(
            "this host has no address for VXLANs: set network.tunnel_ip in its agent's configuration".to_owned(),
        ));
    };
    let (local, port) = (tunnel.local, tunnel.port);
    let Some(carrier) = &tunnel.carrier else {
        return Err(fault(format!(
            "no link of this host has the address {local}, which network.tunnel_ip names"
        )));
    };
    let overhead = if local.is_ipv4() {
        VXLAN_OVERHEAD_IPV4
    } else {
        VXLAN_OVERHEAD_IPV6
    };
    carries(
        &format!("link {}, which VXLANs go out by,", carrier.name),
        carrier.mtu,
        u32::from(spec.mtu),
        overhead,
    )?;
    let other = spec
        .remote_ports
        .iter()
        .find_map(|port| port.tunnel_ip.filter(|ip| ip.is_ipv4() != local.is_ipv4()));
    if let Some(other) = other {
        return Err(fault(format!(
            "{other} of another host and {local} of this one cannot reach each other: network.tunnel_ip must be of IPv4 on \
             all hosts, or of IPv6"
        )));
    }
    free(host, &Segment::Vxlan { id, port })?;
    Ok(Uplink::Vxlan {
        id,
        local,
        port,
        fdb: fdb::wanted(spec, local),
    })
}

fn fault(message: String) -> Fault {
    Fault {
        code: FaultCode::Network,
        message,
    }
}

fn has(host: &HostUplinks, feature: Feature) -> Result<(), Fault> {
    match host.lacks.get(&feature) {
        None => Ok(()),
        Some(lack) => Err(Fault {
            code: FaultCode::Unsupported,
            message: lack.clone(),
        }),
    }
}

/// The NIC of the network's physical network.
fn nic<'a>(
    spec: &NetworkSpec,
    host: &'a HostUplinks,
) -> Result<(&'a LinkName, &'a NicFound), Fault> {
    let Some(physical) = &spec.physical_network else {
        return Err(fault(format!(
            "a network of type {} needs a physical network, and none is given",
            spec.network_type.as_str()
        )));
    };
    let Some(nic) = host.nics.get(physical) else {
        return Err(fault(format!(
            "this host is not plugged into physical network {physical}: network.physical_networks of its agent's \
             configuration names no NIC for it"
        )));
    };
    match &nic.found {
        Some(found) => Ok((&nic.name, found)),
        None => Err(fault(format!(
            "NIC {} of physical network {physical} is not there",
            nic.name
        ))),
    }
}

fn segment(spec: &NetworkSpec, max: u32) -> Result<u32, Fault> {
    let what = spec.network_type.as_str();
    match spec.segmentation_id {
        Some(id) if (1..=max).contains(&id) => Ok(id),
        Some(id) => Err(fault(format!(
            "segmentation id {id} is not one of a {what}: they go from 1 to {max}"
        ))),
        None => Err(fault(format!(
            "a network of type {what} needs a segmentation id, and none is given"
        ))),
    }
}

fn carries(link: &str, has: u32, mtu: u32, overhead: u32) -> Result<(), Fault> {
    let needed = mtu.saturating_add(overhead);
    if has >= needed {
        return Ok(());
    }
    let for_what = if overhead == 0 {
        String::new()
    } else {
        format!(" (and {overhead} bytes around each packet)")
    };
    Err(fault(format!(
        "the network's MTU of {mtu}{for_what} needs {needed}, and {link} has {has}: raise the MTU there, or lower the network's"
    )))
}

fn free(host: &HostUplinks, segment: &Segment) -> Result<(), Fault> {
    match host.taken.get(segment) {
        None => Ok(()),
        Some(link) => Err(fault(format!(
            "{segment} is in use by link {link} of this host"
        ))),
    }
}

/// The addresses of the host on a bridge whose NIC was pulled out: they would go with the bridge.
pub(super) fn stranded(network: NetworkId, observed: &NetworkObserved) -> Option<Fault> {
    let bridge = Link::bridge(network);
    let found = observed.bridge.as_ref()?;
    let uplink = &observed.uplink;
    let was_a_nic = found.is_own(bridge) && found.mac != Some(bridge.mac());
    let without_nic = uplink.host.nics_in(&bridge.name()).next().is_none();
    (was_a_nic && without_nic && !uplink.addresses.is_empty()).then(|| {
        fault(format!(
            "bridge {bridge} has the host's addresses {}, and no NIC of network.physical_networks is in it: put the NIC back \
             into it, or move them to where they belong",
            list(&uplink.addresses)
        ))
    })
}

impl Uplink {
    /// What the bridge is to the host then.
    pub(super) fn bridge_use(&self, observed: &NetworkObserved) -> BridgeUse {
        let uplink = &observed.uplink;
        match self {
            Self::None | Self::Vlan { .. } | Self::Vxlan { .. } => BridgeUse::Switch,
            Self::Nat(_) => BridgeUse::Gateway,
            Self::Nic(name) => {
                let found = uplink.host.found(name);
                let still = found.is_some_and(|found| !found.addresses.is_empty());
                if still || !uplink.addresses.is_empty() {
                    BridgeUse::Host
                } else {
                    BridgeUse::Switch
                }
            }
        }
    }

    /// The link of berth's that it needs.
    pub(super) const fn link(&self, network: NetworkId) -> Option<Link> {
        match self {
            Self::None | Self::Nat(_) | Self::Nic(_) => None,
            Self::Vlan { .. } => Some(Link::vlan(network)),
            Self::Vxlan { .. } => Some(Link::vxlan(network)),
        }
    }

    /// The links in the bridge by which packets come from other hosts.
    pub(super) fn link_names(&self, network: NetworkId) -> BTreeSet<String> {
        match self {
            Self::None | Self::Nat(_) => BTreeSet::new(),
            Self::Nic(name) => BTreeSet::from([name.to_string()]),
            Self::Vlan { .. } | Self::Vxlan { .. } => {
                self.link(network).map(Link::name).into_iter().collect()
            }
        }
    }

    /// The same, with what packets of a VXLAN come in as.
    pub(super) fn reach(&self, network: NetworkId) -> Reach {
        let tunnel = match self {
            Self::None | Self::Nat(_) | Self::Nic(_) | Self::Vlan { .. } => None,
            Self::Vxlan {
                id, local, port, ..
            } => Some(TunnelEnd {
                id: *id,
                port: *port,
                local: *local,
            }),
        };
        Reach {
            links: self.link_names(network),
            tunnel,
        }
    }

    fn is_vlan(&self, found: &VlanObserved) -> bool {
        matches!(self, Self::Vlan { parent, id }
            if found.id == Some(*id) && found.parent.as_deref() == Some(parent.as_str()))
    }

    fn is_vxlan(&self, found: &VxlanObserved) -> bool {
        matches!(self, Self::Vxlan { id, local, port, .. }
            if found.id == Some(*id) && found.local == Some(*local) && found.port == Some(*port) && !found.learning)
    }
}

impl Planner {
    fn uplink_step(&mut self, step: UplinkStep) {
        self.step(NetStep::Uplink(step));
    }

    /// Takes down what the network had and shall not have.
    pub(super) fn drop_uplinks(&mut self, wanted: &Uplink) {
        let network = self.network;
        if !matches!(wanted, Uplink::Nat(_)) {
            self.drop_nat();
        }
        let vlan = self.now.uplink.vlan.as_ref();
        if vlan.is_some_and(|vlan| vlan.link.is_own(Link::vlan(network)) && !wanted.is_vlan(vlan)) {
            self.uplink_step(UplinkStep::Delete(Link::vlan(network)));
        }
        let vxlan = self.now.uplink.vxlan.as_ref();
        if vxlan
            .is_some_and(|vxlan| vxlan.link.is_own(Link::vxlan(network)) && !wanted.is_vxlan(vxlan))
        {
            self.uplink_step(UplinkStep::Delete(Link::vxlan(network)));
        }
        if self.has_own_bridge() {
            self.release_nics(wanted);
        }
    }

    fn has_own_bridge(&self) -> bool {
        let bridge = self.now.bridge.as_ref();
        bridge.is_some_and(|found| found.is_own(Link::bridge(self.network)))
    }

    fn release_nics(&mut self, wanted: &Uplink) {
        let network = self.network;
        let bridge = Link::bridge(network);
        let host = &self.now.uplink.host;
        let others: Vec<LinkName> = host
            .nics_in(&bridge.name())
            .map(|nic| nic.name.clone())
            .filter(|name| !matches!(wanted, Uplink::Nic(wanted) if wanted == name))
            .collect();
        for nic in others {
            // What the host had before its NIC was taken; a gateway's addresses went before, or are put right later.
            let was_a_nic = self
                .now
                .bridge
                .as_ref()
                .is_some_and(|found| found.mac != Some(bridge.mac()));
            let addresses = if was_a_nic {
                self.now.uplink.addresses.clone()
            } else {
                BTreeSet::new()
            };
            self.uplink_step(UplinkStep::ReleaseNic {
                network,
                nic,
                addresses,
            });
        }
    }

    fn drop_nat(&mut self) {
        let network = self.network;
        let Some(nat) = self.now.uplink.nat.clone() else {
            return;
        };
        let addresses = if self.has_own_bridge() {
            nat.rules.addresses()
        } else {
            BTreeSet::new()
        };
        for address in addresses.intersection(&self.now.uplink.addresses.clone()) {
            self.uplink_step(UplinkStep::RemoveAddress {
                network,
                address: *address,
            });
        }
        self.uplink_step(UplinkStep::RemoveNat(network));
    }

    /// Makes or mends what the network shall reach beyond its bridge by. The bridge is there.
    pub(super) fn uplink(&mut self, wanted: &Uplink, mtu: u32) {
        match wanted {
            Uplink::None => {}
            Uplink::Nat(rules) => self.nat(rules),
            Uplink::Nic(nic) => {
                self.nic_up(nic);
                self.take_nic(nic);
            }
            Uplink::Vlan { parent, id } => {
                self.nic_up(parent);
                self.vlan(parent, *id, mtu);
            }
            Uplink::Vxlan {
                id,
                local,
                port,
                fdb,
            } => {
                let network = self.network;
                if self.now.uplink.vxlan.is_none() {
                    self.uplink_step(UplinkStep::CreateVxlan {
                        network,
                        id: *id,
                        local: *local,
                        port: *port,
                        mtu,
                    });
                }
                self.vxlan(fdb, mtu);
            }
        }
    }

    fn nat(&mut self, rules: &NatRules) {
        let network = self.network;
        let wanted: BTreeSet<IpNet> = rules.addresses();
        for address in self.now.uplink.addresses.clone().difference(&wanted) {
            self.uplink_step(UplinkStep::RemoveAddress {
                network,
                address: *address,
            });
        }
        let is_so = self
            .now
            .uplink
            .nat
            .as_ref()
            .is_some_and(|nat| nat.rules == *rules && nat.shape == rules.shape(network));
        let outward = &self.now.uplink.host.outward;
        let shut = |link: &String| outward.get(link) == Some(&Forwards::No);
        if !is_so || rules.open.iter().any(shut) {
            self.uplink_step(UplinkStep::ApplyNat {
                network,
                rules: rules.clone(),
            });
        }
        for address in wanted.difference(&self.now.uplink.addresses.clone()) {
            self.uplink_step(UplinkStep::AddAddress {
                network,
                address: *address,
            });
        }
    }

    fn nic_up(&mut self, nic: &LinkName) {
        let network = self.network;
        let found = self.now.uplink.host.found(nic);
        if found.is_some_and(|found| !found.up) {
            let nic = nic.clone();
            self.uplink_step(UplinkStep::NicUp { network, nic });
        }
    }

    fn take_nic(&mut self, nic: &LinkName) {
        let network = self.network;
        let bridge = Link::bridge(network).name();
        let Some(found) = self.now.uplink.host.found(nic) else {
            return;
        };
        if found.master.as_ref() != Some(&bridge) || !found.addresses.is_empty() {
            let (nic, addresses) = (nic.clone(), found.addresses.clone());
            self.uplink_step(UplinkStep::TakeNic {
                network,
                nic,
                addresses,
            });
        }
    }

    fn vlan(&mut self, parent: &LinkName, id: u16, mtu: u32) {
        let network = self.network;
        let link = Link::vlan(network);
        if self.now.uplink.vlan.is_none() {
            self.uplink_step(UplinkStep::CreateVlan {
                network,
                parent: parent.clone(),
                id,
                mtu,
            });
        }
        self.shape(link, mtu);
        self.plug_uplink(link);
        self.switch_on(link);
    }

    fn vxlan(&mut self, wanted: &BTreeSet<FdbEntry>, mtu: u32) {
        let network = self.network;
        let link = Link::vxlan(network);
        self.shape(link, mtu);
        self.plug_uplink(link);
        if self
            .now
            .uplink
            .vxlan
            .as_ref()
            .is_some_and(|vxlan| vxlan.port_learning)
        {
            self.uplink_step(UplinkStep::StopLearning(network));
        }
        let found = self.now.uplink.vxlan.as_ref().map(|vxlan| &vxlan.fdb);
        let (add, remove) = found
            .map(|found| fdb::difference(found, wanted))
            .unwrap_or_default();
        if !(add.is_empty() && remove.is_empty()) {
            self.uplink_step(UplinkStep::ChangeFdb {
                network,
                add,
                remove,
            });
        }
        self.switch_on(link);
    }

    fn plug_uplink(&mut self, link: Link) {
        let bridge = Link::bridge(self.network).name();
        let found = self.now.link(link);
        if found.is_some_and(|found| found.master.as_ref() != Some(&bridge)) {
            self.step(NetStep::Plug(BridgePort::Uplink(link)));
        }
    }
}

#[cfg(test)]
mod tests;
