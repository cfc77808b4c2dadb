//! What networks reach beyond their bridges by: looks, and carries out one step at a time. No decisions here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use berth_common::{
    ids::NetworkId,
    names::{LinkName, PhysicalNetworkName},
};
use ipnet::IpNet;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoVlan, InfoVxlan, LinkInfo,
};
use rtnetlink::{LinkBridgePort, LinkVlan, LinkVxlan};

use super::{
    KernelNet,
    error::NetError,
    features::Features,
    links::{CHANGE, Found, Links, known::Seen},
    nic::is_of_a_network,
};
use crate::decide::network::{
    Link, LinkObserved,
    uplink::{
        Carrier, FlatAddressPolicy, Forwards, HostUplinks, Nic, NicFound, Segment, Tunnel,
        UplinkObserved, UplinkStep, VlanObserved, VxlanObserved,
    },
};

/// What the operator says of how networks go out.
#[derive(Debug, Clone)]
pub struct UplinkOptions {
    /// The NICs that are plugged into physical networks.
    pub nics: BTreeMap<PhysicalNetworkName, LinkName>,
    /// This host's address for VXLANs.
    pub tunnel_ip: Option<IpAddr>,
    /// The UDP port of VXLANs, the same on all hosts.
    pub vxlan_port: u16,
    /// What happens to the addresses of a NIC that a flat network takes.
    pub flat_addresses: FlatAddressPolicy,
    /// What the kernel can.
    pub features: Features,
}

/// The port that is registered for VXLANs (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;

impl Default for UplinkOptions {
    fn default() -> Self {
        Self {
            nics: BTreeMap::new(),
            tunnel_ip: None,
            vxlan_port: VXLAN_PORT,
            flat_addresses: FlatAddressPolicy::default(),
            features: Features::default(),
        }
    }
}

/// The links of the host, to look things up in.
pub(super) struct Host<'a> {
    all: &'a [Arc<Found>],
    addresses: &'a BTreeMap<u32, BTreeSet<IpNet>>,
}

impl<'a> Host<'a> {
    /// These links, with the addresses they have.
    pub(super) fn of(seen: &'a Seen) -> Self {
        Self {
            all: &seen.links,
            addresses: &seen.addresses,
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&'a Found> {
        let mut all = self.all.iter().map(Arc::as_ref);
        all.find(|found| found.name == name)
    }

    /// What is there under one of our names.
    pub(super) fn observe(&self, link: Link) -> Result<Option<LinkObserved>, NetError> {
        let found = self.find(&link.name());
        found.map(|found| self.describe(found, link)).transpose()
    }

    fn name_of(&self, index: u32) -> Option<String> {
        let found = self.all.iter().find(|found| found.index == index)?;
        Some(found.name.clone())
    }

    fn addresses_of(&self, found: &Found) -> BTreeSet<IpNet> {
        let addresses = self.addresses.get(&found.index);
        addresses.cloned().unwrap_or_default()
    }

    fn describe(&self, found: &Found, link: Link) -> Result<LinkObserved, NetError> {
        let mut observed = found.describe(link)?;
        observed.master = found
            .master()
            .map(|master| self.name_of(master).unwrap_or_else(|| format!("#{master}")));
        Ok(observed)
    }

    fn nic(&self, name: &LinkName) -> Nic {
        let found = self.find(name.as_str()).map(|found| NicFound {
            mac: found.mac(),
            mtu: found.mtu(),
            up: found.is_up(),
            master: found
                .master()
                .map(|master| self.name_of(master).unwrap_or_else(|| format!("#{master}"))),
            addresses: self.addresses_of(found),
        });
        Nic {
            name: name.clone(),
            found,
        }
    }

    fn carrier(&self, local: IpAddr) -> Option<Carrier> {
        let found = self.all.iter().find(|found| {
            let addresses = self.addresses.get(&found.index);
            addresses
                .is_some_and(|addresses| addresses.iter().any(|address| address.addr() == local))
        })?;
        Some(Carrier {
            name: found.name.clone(),
            mtu: found.mtu(),
        })
    }

    fn vlan(&self, found: &Found, link: Link) -> Result<VlanObserved, NetError> {
        Ok(VlanObserved {
            link: self.describe(found, link)?,
            id: vlan_id(found),
            parent: found.parent().and_then(|parent| self.name_of(parent)),
        })
    }

    fn segment(&self, found: &Found) -> Option<Segment> {
        if let Some(id) = vlan_id(found) {
            return Some(Segment::Vlan {
                parent: self.name_of(found.parent()?)?,
                id,
            });
        }
        let vxlan = Vtep::of(found)?;
        Some(Segment::Vxlan {
            id: vxlan.id?,
            port: vxlan.port?,
        })
    }
}

fn vlan_id(found: &Found) -> Option<u16> {
    found.infos().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => data.iter().find_map(|info| match info {
            InfoVlan::Id(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

/// What the kernel says of a VTEP.
#[derive(Default)]
struct Vtep {
    id: Option<u32>,
    local: Option<IpAddr>,
    port: Option<u16>,
    learning: bool,
}

impl Vtep {
    fn of(found: &Found) -> Option<Self> {
        let data = found.infos().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        })?;
        let mut vtep = Self::default();
        for info in data {
            match info {
                InfoVxlan::Id(id) => vtep.id = Some(*id),
                InfoVxlan::Local(local) => vtep.local = Some((*local).into()),
                InfoVxlan::Local6(local) => vtep.local = Some((*local).into()),
                InfoVxlan::Port(port) => vtep.port = Some(*port),
                InfoVxlan::Learning(learning) => vtep.learning = *learning,
                _ => {}
            }
        }
        Some(vtep)
    }
}

/// Whether the bridge that a link is in learns from it.
fn learns(found: &Found) -> bool {
    let told = found.infos().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
            data.iter().find_map(|info| match info {
                InfoBridgePort::Learning(learning) => Some(*learning),
                _ => None,
            })
        }
        _ => None,
    });
    told.unwrap_or(true)
}

impl KernelNet {
    /// What there is of a network's uplink, among all links of the host.
    pub(super) async fn observe_uplink(
        &self,
        network: NetworkId,
        links: &Links,
        host: &Host<'_>,
    ) -> Result<UplinkObserved, NetError> {
        let [bridge, vlan, vxlan] =
            [Link::bridge, Link::vlan, Link::vxlan].map(|link| link(network));
        let of_vlan = host.find(&vlan.name());
        let vxlan = match host.find(&vxlan.name()) {
            Some(found) => Some(self.observe_vxlan(host, found, vxlan).await?),
            None => None,
        };
        let bridge = host.find(&bridge.name());
        let shared = self.observe_host_uplinks(network, links, host).await?;
        Ok(UplinkObserved {
            vlan: of_vlan.map(|found| host.vlan(found, vlan)).transpose()?,
            vxlan,
            addresses: bridge
                .map(|bridge| host.addresses_of(bridge))
                .unwrap_or_default(),
            nat: self.nat.observe(network).await?,
            host: shared,
        })
    }

    async fn observe_vxlan(
        &self,
        host: &Host<'_>,
        found: &Found,
        link: Link,
    ) -> Result<VxlanObserved, NetError> {
        let vtep = Vtep::of(found).unwrap_or_default();
        let observed = host.describe(found, link)?;
        let fdb = if observed.is_own(link) {
            Links::open_strict()?.fdb(found.index).await?
        } else {
            BTreeSet::new()
        };
        Ok(VxlanObserved {
            link: observed,
            id: vtep.id,
            local: vtep.local,
            port: vtep.port,
            learning: vtep.learning,
            port_learning: learns(found),
            fdb,
        })
    }

    async fn observe_host_uplinks(
        &self,
        network: NetworkId,
        links: &Links,
        host: &Host<'_>,
    ) -> Result<HostUplinks, NetError> {
        let options = &self.uplinks;
        let own: BTreeSet<String> = Link::all(network).into_iter().map(Link::name).collect();
        let others = || host.all.iter().filter(|found| !own.contains(&found.name));
        let outward = match links.outward().await? {
            Some(index) => host.name_of(index),
            None => None,
        };
        Ok(HostUplinks {
            nics: options
                .nics
                .iter()
                .map(|(physical, name)| (physical.clone(), host.nic(name)))
                .collect(),
            tunnel: options.tunnel_ip.map(|local| Tunnel {
                local,
                port: options.vxlan_port,
                carrier: host.carrier(local),
            }),
            flat_addresses: options.flat_addresses,
            taken: others()
                .filter_map(|found| Some((host.segment(found)?, found.name.clone())))
                .collect(),
            addresses: others()
                .map(|found| {
                    let mut addresses = host.addresses_of(found);
                    addresses.retain(is_of_a_network);
                    (found.name.clone(), addresses)
                })
                .filter(|(_, addresses)| !addresses.is_empty())
                .collect(),
            outward: outward
                .map(|link| Ok((link.clone(), forwards(&link)?)))
                .into_iter()
                .collect::<Result<_, NetError>>()?,
            opened: self.nat.opened_by_others(network)?,
            lacks: options.features.lacks(),
        })
    }

    pub(super) async fn carry_out_uplink(&self, step: UplinkStep) -> Result<(), NetError> {
        let network = step.network();
        let [bridge, vlan, vxlan] =
            [Link::bridge, Link::vlan, Link::vxlan].map(|link| link(network));
        match step {
            UplinkStep::CreateVlan {
                parent, id, mtu, ..
            } => {
                self.at(vlan, async move |links| {
                    links.create_vlan(vlan, &parent, id, mtu).await
                })
                .await
            }
            UplinkStep::CreateVxlan {
                id,
                local,
                port,
                mtu,
                ..
            } => {
                self.at(vxlan, async move |links| {
                    if links.own_if_any(vxlan).await?.is_some() {
                        return Ok(());
                    }
                    let wanted = LinkVxlan::new(&vxlan.name(), id).port(port).learning(false);
                    let wanted = match local {
                        IpAddr::V4(local) => wanted.local(local),
                        IpAddr::V6(local) => wanted.local6(local),
                    };
                    let wanted = wanted.address(vxlan.mac().to_vec()).mtu(mtu);
                    links.add(vxlan, wanted.build()).await
                })
                .await
            }
            UplinkStep::Delete(link) => {
                self.at(link, async move |links| links.delete(link).await)
                    .await
            }
            UplinkStep::StopLearning(_) => {
                self.at(vxlan, async move |links| links.stop_learning(vxlan).await)
                    .await
            }
            UplinkStep::ChangeFdb { add, remove, .. } => {
                self.at(vxlan, async move |links| {
                    links.change_fdb(vxlan, &add, &remove).await
                })
                .await
            }
            UplinkStep::NicUp { nic, .. } => {
                self.at(bridge, async move |links| links.nic_up(&nic).await)
                    .await
            }
            UplinkStep::TakeNic { nic, addresses, .. } => {
                self.at(bridge, async move |links| {
                    links.take_nic(bridge, &nic, &addresses).await
                })
                .await
            }
            UplinkStep::ReleaseNic { nic, addresses, .. } => {
                self.at(bridge, async move |links| {
                    links.release_nic(bridge, &nic, &addresses).await
                })
                .await
            }
            UplinkStep::AddAddress { address, .. } => {
                self.at(bridge, async move |links| {
                    links.add_address(bridge, address).await
                })
                .await
            }
            UplinkStep::RemoveAddress { address, .. } => {
                self.at(bridge, async move |links| {
                    links.remove_address(bridge, address).await
                })
                .await
            }
            UplinkStep::ApplyNat { rules, .. } => {
                let nat = self.nat.clone();
                self.workers
                    .run("nat-apply", async move || nat.apply(network, &rules).await)
                    .await
            }
            UplinkStep::RemoveNat(_) => {
                let nat = self.nat.clone();
                self.workers
                    .run("nat-remove", async move || nat.remove(network).await)
                    .await
            }
        }
    }
}

impl Links {
    async fn create_vlan(
        &self,
        link: Link,
        parent: &LinkName,
        id: u16,
        mtu: u32,
    ) -> Result<(), NetError> {
        if self.own_if_any(link).await?.is_some() {
            return Ok(());
        }
        let Some(parent) = self.find(parent.as_str()).await? else {
            return Err(NetError::Absent {
                link: parent.to_string(),
            });
        };
        let wanted = LinkVlan::new(&link.name(), parent.index, id)
            .address(link.mac().to_vec())
            .mtu(mtu);
        self.add(link, wanted.build()).await
    }

    /// Keeps the bridge from learning from a link, and lets it forget what it has learned.
    async fn stop_learning(&self, link: Link) -> Result<(), NetError> {
        let found = self.own(link).await?;
        let change = LinkBridgePort::new(found.index).learning(false).fdb_flush();
        let request = self.handle().link().add(change.build()).set_flags(CHANGE);
        let changed = request.execute().await;
        changed.map_err(NetError::netlink(format!(
            "keep the bridge from learning from link {link}"
        )))
    }
}

/// Whether a link forwards the IPv4 that comes in. One that went away meanwhile does not.
fn forwards(link: &str) -> Result<Forwards, NetError> {
    let path = forwarding_path(link);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == "0" => Ok(Forwards::No),
        Ok(_) => Ok(Forwards::Yes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Forwards::No),
        Err(error) => Err(NetError::file("read", path)(error)),
    }
}

/// Sets whether a link forwards. One that went away is no error.
pub(super) fn set_forwards(link: &str, forwards: Forwards) -> Result<(), NetError> {
    let path = forwarding_path(link);
    let value = match forwards {
        Forwards::Yes => "1",
        Forwards::No => "0",
    };
    match fs::write(&path, value) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(NetError::file("write", path)(error)),
    }
}

fn forwarding_path(link: &str) -> std::path::PathBuf {
    Path::new("/proc/sys/net/ipv4/conf")
        .join(link)
        .join("forwarding")
}
