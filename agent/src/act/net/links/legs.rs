//! The links, addresses and routes of routers, through netlink, in the namespace of the calling thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use berth_common::names::MacAddress;
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    link::{LinkAttribute, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::{Found, Links, is, set_address, unset_address, without_link_local};
use crate::{
    act::net::error::NetError,
    decide::{
        filter::RouterLeg,
        names::LINK_PREFIX,
        network::{Link, uplink::fdb::FdbEntry},
        router::{Leg, LegLink, LegObserved, LegSwitch, Neighbours, RouteEntry, Side},
    },
};

/// The Ethernet addresses that the bridge a link is in was told to be behind it.
async fn told_behind(link: u32) -> Result<BTreeSet<[u8; 6]>, NetError> {
    let told = Links::open_strict()?.fdb(link).await?;
    let behind = told.into_iter().filter_map(|entry| match entry {
        FdbEntry::Bridge(mac) => Some(mac),
        FdbEntry::Flood(_) | FdbEntry::Remote { .. } => None,
    });
    Ok(behind.collect())
}

impl Links {
    /// The links of this name and alias, of all routers.
    pub(in crate::act::net) async fn all_host_ends(&self) -> Result<Vec<Leg>, NetError> {
        let all = self.all().await?;
        Ok(all
            .iter()
            .filter_map(|found| Leg::of_host_end(&found.name, found.alias.as_deref()?))
            .collect())
    }

    /// The legs inside that are in a bridge, as it was told of them: without their addresses.
    pub(in crate::act::net) async fn legs_in(
        &self,
        all: &[Arc<Found>],
        bridge: Option<u32>,
    ) -> Result<Vec<RouterLeg>, NetError> {
        let mut macs = BTreeSet::new();
        let members = all
            .iter()
            .filter(|found| bridge.is_some() && found.master == bridge);
        for found in members {
            let leg = found
                .alias
                .as_deref()
                .and_then(|alias| Leg::of_host_end(&found.name, alias));
            if leg.is_some_and(|leg| leg.side == Side::Inside) {
                macs.extend(told_behind(found.index).await?);
            }
        }
        let macs = macs.into_iter().map(MacAddress::from_octets);
        Ok(macs.filter_map(Result::ok).map(RouterLeg::found).collect())
    }

    /// What is there under the name of a router's link.
    pub(in crate::act::net) async fn observe_leg(
        &self,
        link: LegLink,
    ) -> Result<Option<LegObserved>, NetError> {
        let Some(found) = self.find(&link.name()).await? else {
            return Ok(None);
        };
        let mut observed = self.describe_leg(&found, link.switches()).await?;
        if let Some(master) = found.master {
            observed.master = Some(self.name_of(master).await?);
            observed.behind = told_behind(found.index).await?;
        }
        Ok(Some(observed))
    }

    /// All links here that have a name of ours, with the switches that a leg shall have.
    pub(in crate::act::net) async fn links_within(
        &self,
        switches: &[LegSwitch],
    ) -> Result<BTreeMap<String, LegObserved>, NetError> {
        let mut links = BTreeMap::new();
        let mut told = self.told_neighbours().await?;
        for found in self.all().await? {
            if found.name.starts_with(LINK_PREFIX) {
                let mut observed = self.describe_leg(&found, switches).await?;
                observed.neighbours = told.remove(&found.index).unwrap_or_default();
                links.insert(found.name, observed);
            }
        }
        Ok(links)
    }

    async fn describe_leg(
        &self,
        found: &Found,
        switches: &[LegSwitch],
    ) -> Result<LegObserved, NetError> {
        let mut unsettled = BTreeSet::new();
        for switch in switches {
            let path = Path::new("/proc/sys/net").join(switch.path(&found.name));
            match std::fs::read_to_string(&path) {
                Ok(text) if text.trim() == switch.value() => {}
                Ok(_) => {
                    unsettled.insert(*switch);
                }
                // The kernel lacks IPv6, or the link went away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(NetError::file("read", path)(error)),
            }
        }
        let mut observed = LegObserved {
            kind: found.kind().map(ToString::to_string).unwrap_or_default(),
            alias: found.alias.clone(),
            mac: None,
            mtu: 0,
            up: found.is_up(),
            master: None,
            behind: BTreeSet::new(),
            unsettled,
            // The link-local one that the kernel gives each leg is what it advertises itself with.
            addresses: without_link_local(self.addresses(found).await?),
            neighbours: Neighbours::new(),
        };
        for attribute in &found.message.attributes {
            match attribute {
                LinkAttribute::Address(mac) => observed.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => observed.mtu = *mtu,
                _ => {}
            }
        }
        Ok(observed)
    }

    /// The link of a router's leg, which must be there. An end in a bridge must be the router's.
    pub(super) async fn own_leg(&self, link: LegLink) -> Result<Found, NetError> {
        let found = self.find(&link.name()).await?;
        let found = found.ok_or_else(|| NetError::Absent { link: link.name() })?;
        if link.end == crate::decide::router::End::Host {
            let observed = self.describe_leg(&found, &[]).await?;
            if !observed.is_own(link) {
                return Err(NetError::Foreign { link: link.name() });
            }
        }
        Ok(found)
    }

    /// Makes a leg's veth pair, its second end in a namespace, unless it is there.
    pub(in crate::act::net) async fn create_leg(
        &self,
        leg: Leg,
        mac: [u8; 6],
        mtu: u32,
        namespace: &Path,
    ) -> Result<(), NetError> {
        let (host, inside) = (leg.host_end(), leg.namespace_end());
        match self.own_leg(host).await {
            Ok(_) => return Ok(()),
            Err(NetError::Absent { .. }) => {}
            Err(error) => return Err(error),
        }
        let ends = [(host.name(), host.own_mac()), (inside.name(), mac)];
        self.add_veth(ends, namespace, mtu).await
    }

    /// Gives a router's link its alias.
    pub(in crate::act::net) async fn mark_leg(&self, link: LegLink) -> Result<(), NetError> {
        self.change_leg(link, |change| change.alias(link.alias()))
            .await
    }

    /// Sets the largest packet.
    pub(in crate::act::net) async fn set_leg_mtu(
        &self,
        link: LegLink,
        mtu: u32,
    ) -> Result<(), NetError> {
        self.change_leg(link, |change| change.mtu(mtu)).await
    }

    /// Switches a router's link on.
    pub(in crate::act::net) async fn set_leg_up(&self, link: LegLink) -> Result<(), NetError> {
        self.change_leg(link, LinkMessageBuilder::up).await
    }

    /// Puts a leg into the bridge of its network.
    pub(in crate::act::net) async fn plug_leg(&self, leg: Leg) -> Result<(), NetError> {
        let bridge = self.own(Link::bridge(leg.network)).await?.index;
        self.change_leg(leg.host_end(), |change| change.controller(bridge))
            .await
    }

    /// Tells the bridge that a leg is in what is behind it.
    pub(in crate::act::net) async fn anchor_leg(
        &self,
        leg: Leg,
        mac: [u8; 6],
    ) -> Result<(), NetError> {
        let link = leg.host_end();
        let index = self.own_leg(link).await?.index;
        let told = self.tell_bridge(index, mac).await;
        told.map_err(NetError::netlink(format!(
            "tell the bridge what is behind link {link}"
        )))
    }

    async fn change_leg(
        &self,
        link: LegLink,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        let found = self.own_leg(link).await?;
        let message: LinkMessage = change(LinkUnspec::new_with_index(found.index)).build();
        let changed = self.handle.link().set(message).execute().await;
        changed.map_err(NetError::netlink(format!("change link {link}")))
    }

    /// Sets switches of the IP stack for a router's link.
    pub(in crate::act::net) async fn settle_leg(
        &self,
        link: LegLink,
        switches: &BTreeSet<LegSwitch>,
    ) -> Result<(), NetError> {
        self.own_leg(link).await?;
        for switch in switches {
            write_switch(&switch.path(&link.name()), switch.value())?;
        }
        Ok(())
    }

    /// Gives a leg an address, unless it has it.
    pub(in crate::act::net) async fn add_leg_address(
        &self,
        link: LegLink,
        address: IpNet,
    ) -> Result<(), NetError> {
        let found = self.own_leg(link).await?;
        set_address(&self.handle, &found, address).await
    }

    /// Takes an address from a leg, if it has it.
    pub(in crate::act::net) async fn remove_leg_address(
        &self,
        link: LegLink,
        address: IpNet,
    ) -> Result<(), NetError> {
        let found = self.own_leg(link).await?;
        unset_address(&self.handle, &found, address).await
    }

    /// Removes a link of this name; none is no error.
    pub(in crate::act::net) async fn remove_within(&self, name: &str) -> Result<(), NetError> {
        match self.find(name).await? {
            Some(found) => self.remove_found(&found).await,
            None => Ok(()),
        }
    }

    /// Removes an end in a bridge, if it is there and the router's.
    pub(in crate::act::net) async fn remove_host_end(&self, link: LegLink) -> Result<(), NetError> {
        match self.own_leg(link).await {
            Ok(found) => self.remove_found(&found).await,
            Err(NetError::Absent { .. } | NetError::Foreign { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove_found(&self, found: &Found) -> Result<(), NetError> {
        match self.handle.link().del(found.index).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            Err(error) => Err(NetError::netlink(format!("remove link {}", found.name))(
                error,
            )),
        }
    }

    /// The routes that somebody set.
    pub(in crate::act::net) async fn routes(&self) -> Result<BTreeSet<RouteEntry>, NetError> {
        let links: BTreeMap<u32, String> = self
            .all()
            .await?
            .into_iter()
            .map(|found| (found.index, found.name))
            .collect();
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut which = RouteMessage::default();
            which.header.address_family = family;
            let found: Vec<RouteMessage> = self
                .handle
                .route()
                .get(which)
                .execute()
                .try_collect()
                .await
                .map_err(NetError::netlink("list the routes"))?;
            routes.extend(found.iter().filter_map(|route| given_route(route, &links)));
        }
        Ok(routes)
    }

    /// Sets a route, unless it is there.
    pub(in crate::act::net) async fn add_route(&self, route: &RouteEntry) -> Result<(), NetError> {
        let message = self.route_message(route).await?;
        match self.handle.route().add(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, Errno::EEXIST) => Ok(()),
            Err(error) => Err(NetError::netlink(format!("set route {route}"))(error)),
        }
    }

    /// Removes a route, if it is there.
    pub(in crate::act::net) async fn remove_route(
        &self,
        route: &RouteEntry,
    ) -> Result<(), NetError> {
        let mut message = match self.route_message(route).await {
            Ok(message) => message,
            Err(NetError::Absent { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        // Whoever set it, and however far it reaches.
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        match self.handle.route().del(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, Errno::ESRCH) => Ok(()),
            Err(error) => Err(NetError::netlink(format!("remove route {route}"))(error)),
        }
    }

    async fn route_message(&self, route: &RouteEntry) -> Result<RouteMessage, NetError> {
        let found = self.find(&route.link).await?;
        let found = found.ok_or_else(|| NetError::Absent {
            link: route.link.clone(),
        })?;
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(found.index)
            .protocol(RouteProtocol::Static)
            .destination_prefix(route.destination.addr(), route.destination.prefix_len())
            .map_err(|error| unwritten(route, error.to_string()))?;
        builder = match route.via {
            Some(via) => builder
                .gateway(via)
                .map_err(|error| unwritten(route, error.to_string()))?,
            None => builder.scope(RouteScope::Link),
        };
        Ok(builder.build())
    }
}

/// A route that the kernel cannot be told of.
fn unwritten(route: &RouteEntry, reason: String) -> NetError {
    NetError::system(format!("write route {route} for the kernel"))(io::Error::other(reason))
}

/// Writes a switch of the IP stack. One of IPv6 that is not there is as good: the kernel lacks IPv6.
pub(in crate::act::net) fn write_switch(path: &str, value: &str) -> Result<(), NetError> {
    let is_ipv6 = path.starts_with("ipv6/");
    let path = Path::new("/proc/sys/net").join(path);
    match std::fs::write(&path, value) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_ipv6 => Ok(()),
        Err(error) => Err(NetError::file("write", path)(error)),
    }
}

/// A route that somebody set: not one that the kernel makes of addresses.
fn given_route(message: &RouteMessage, links: &BTreeMap<u32, String>) -> Option<RouteEntry> {
    let header = &message.header;
    let is_given = header.table == RouteHeader::RT_TABLE_MAIN
        && header.protocol != RouteProtocol::Kernel
        && header.kind == RouteType::Unicast;
    if !is_given {
        return None;
    }
    let (mut destination, mut via, mut link) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_of(address),
            RouteAttribute::Gateway(address) => via = address_of(address),
            RouteAttribute::Oif(index) => link = links.get(index),
            _ => {}
        }
    }
    let everything = match header.address_family {
        AddressFamily::Inet6 => IpAddr::from([0_u8; 16]),
        _ => IpAddr::from([0_u8; 4]),
    };
    Some(RouteEntry {
        destination: IpNet::new(
            destination.unwrap_or(everything),
            header.destination_prefix_length,
        )
        .ok()?,
        via,
        link: link?.clone(),
    })
}

const fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
