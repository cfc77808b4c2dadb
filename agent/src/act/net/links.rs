//! Links and addresses through netlink, in the namespace of the calling thread. No names are parsed from text and
//! nothing is decided: what a link is for, and whose it is, is [`crate::decide::network`]'s.

pub(super) mod known;
pub(super) mod legs;
mod neighbours;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        BridgeStpState, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask,
        LinkFlags, LinkInfo, LinkMessage,
    },
};
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkGetRequest, LinkMessageBuilder, LinkUnspec,
    LinkVeth, new_connection, new_connection_with_strict_check,
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
};
use tokio::task::JoinHandle;

use super::error::NetError;
use crate::decide::{
    names::LINK_PREFIX,
    network::{BridgeOptions, Link, LinkObserved, LinkSetting},
    usage::Traffic,
};

/// How many taps of one step are asked for or changed at once: a connection has room for as many answers.
const TAPS_AT_ONCE: usize = 16;

thread_local! {
    /// The connection of a thread that does one piece of work after the other, while it does none.
    static KEPT: RefCell<Option<Rc<Links>>> = const { RefCell::new(None) };
}

/// A netlink connection. Dropping it closes it.
pub(super) struct Links {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A link as the kernel has it now.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    master: Option<u32>,
    message: LinkMessage,
}

/// The links of the host as one bridge sees them, by name.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// Those in it.
    pub(super) members: BTreeSet<String>,
    /// Taps that are switched on and not in it.
    pub(super) stray_taps: BTreeSet<String>,
}

impl Around {
    /// The links in the bridge of this name, and the taps that are not. One answer of the kernel tells both, so a
    /// link is in exactly one of them.
    pub(super) fn of(all: &[Arc<Found>], bridge: &str) -> Self {
        let bridge = all
            .iter()
            .find(|found| found.name == bridge)
            .map(|found| found.index);
        let mut around = Around::default();
        for found in all {
            if bridge.is_some() && found.master == bridge {
                around.members.insert(found.name.clone());
            } else if found.is_tap() && found.is_up() && found.name.starts_with(LINK_PREFIX) {
                around.stray_taps.insert(found.name.clone());
            }
        }
        around
    }
}

impl Links {
    /// Connects to the kernel, for the namespace the calling thread is in.
    pub(super) fn open() -> Result<Self, NetError> {
        let (connection, handle, _) =
            new_connection().map_err(NetError::system("open a netlink socket"))?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }

    /// Works with a connection that the calling thread keeps for the next work, unless this one fails. The thread must never leave its
    /// namespace.
    pub(super) async fn kept<T>(
        work: impl AsyncFnOnce(Rc<Self>) -> Result<T, NetError>,
    ) -> Result<T, NetError> {
        let links = match KEPT.take() {
            Some(links) => links,
            None => Rc::new(Self::open()?),
        };
        let done = work(Rc::clone(&links)).await;
        if done.is_ok() {
            KEPT.set(Some(links));
        }
        done
    }

    /// The same as [`Self::open`], for questions about one link alone: the kernel takes no others then, and tells no more than was asked.
    pub(super) fn open_strict() -> Result<Self, NetError> {
        let (connection, handle, _) = new_connection_with_strict_check()
            .map_err(NetError::system("open a netlink socket"))?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }

    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Sends a request that rtnetlink has no words for, and waits for the kernel's word.
    pub(super) async fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answer = self.handle.clone().request(request)?;
        while let Some(message) = answer.next().await {
            if let NetlinkPayload::Error(error) = message.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }

    /// The link of this name, if there is one: without the counts of its packets.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Found>, NetError> {
        let request = without_counts(self.handle.link().get()).match_name(name.to_owned());
        found(request, || format!("show link {name}")).await
    }

    /// The same with the counts of its packets.
    pub(super) async fn find_counted(&self, name: &str) -> Result<Option<Found>, NetError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        found(request, || format!("show link {name}")).await
    }

    /// The link with this index, if there is one.
    async fn find_index(&self, index: u32) -> Result<Option<Found>, NetError> {
        let request = without_counts(self.handle.link().get()).match_index(index);
        found(request, || format!("show link #{index}")).await
    }

    /// The link with one of our names, which must be there and be ours.
    pub(super) async fn own(&self, link: Link) -> Result<Found, NetError> {
        self.own_if_any(link)
            .await?
            .ok_or_else(|| NetError::Absent { link: link.name() })
    }

    /// The link with one of our names; if it is there, it must be ours.
    pub(super) async fn own_if_any(&self, link: Link) -> Result<Option<Found>, NetError> {
        match self.find(&link.name()).await? {
            Some(found) if !found.bare().is_own(link) => {
                Err(NetError::Foreign { link: link.name() })
            }
            found => Ok(found),
        }
    }

    /// What is there under one of our names.
    pub(super) async fn observe(&self, link: Link) -> Result<Option<LinkObserved>, NetError> {
        match self.find(&link.name()).await? {
            Some(found) => Ok(Some(self.describe(&found, link).await?)),
            None => Ok(None),
        }
    }

    /// The same of a link that was found.
    pub(super) async fn describe(
        &self,
        found: &Found,
        link: Link,
    ) -> Result<LinkObserved, NetError> {
        let mut observed = found.describe(link)?;
        if let Some(master) = found.master {
            observed.master = Some(self.name_of(master).await?);
        }
        Ok(observed)
    }

    /// All links, without the counts of their packets: those are most of what the kernel would tell.
    pub(super) async fn all(&self) -> Result<Vec<Found>, NetError> {
        let request = without_counts(self.handle.link().get());
        let answer = request.execute().map_ok(Found::from);
        answer
            .try_collect()
            .await
            .map_err(NetError::netlink("list the links"))
    }

    async fn name_of(&self, index: u32) -> Result<String, NetError> {
        let found = self.find_index(index).await?;
        Ok(found.map_or_else(|| format!("#{index}"), |found| found.name))
    }

    /// Makes a bridge, unless it is there.
    pub(super) async fn create_bridge(&self, link: Link, mtu: u32) -> Result<(), NetError> {
        if self.own_if_any(link).await?.is_some() {
            return Ok(());
        }
        let message = with_bridge_options(LinkMessageBuilder::<LinkBridge>::new(&link.name()))
            .address(link.mac().to_vec())
            .mtu(mtu)
            .build();
        self.add(link, message).await
    }

    /// Makes a veth pair, its second end in a namespace, unless both are there.
    pub(super) async fn create_veth(
        &self,
        [host, inside]: [Link; 2],
        namespace: &Path,
        mtu: u32,
    ) -> Result<(), NetError> {
        if self.own_if_any(host).await?.is_some() {
            return Ok(());
        }
        let ends = [(host.name(), host.mac()), (inside.name(), inside.mac())];
        self.add_veth(ends, namespace, mtu).await
    }

    /// Makes a veth pair of these names and Ethernet addresses, its second end in a namespace.
    async fn add_veth(
        &self,
        [(host, host_mac), (inside, inside_mac)]: [(String, [u8; 6]); 2],
        namespace: &Path,
        mtu: u32,
    ) -> Result<(), NetError> {
        let namespace =
            File::open(namespace).map_err(NetError::file("open namespace", namespace))?;
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(inside)
            .address(inside_mac.to_vec())
            .mtu(mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(host.clone())
            .address(host_mac.to_vec())
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.add(host, message).await
    }

    pub(super) async fn add(
        &self,
        link: impl fmt::Display,
        message: LinkMessage,
    ) -> Result<(), NetError> {
        let made = self.handle.link().add(message).execute().await;
        made.map_err(NetError::netlink(format!("make link {link}")))
    }

    /// Sets how a bridge works.
    pub(super) async fn set_bridge_options(&self, link: Link) -> Result<(), NetError> {
        let found = self.own(link).await?;
        let change = || {
            LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
                .index(found.index)
        };
        // The spanning tree protocol first: while it is on, the kernel takes no forward delay of zero.
        for change in [with_stp(change()), with_bridge_options(change())] {
            // Options of a kind are set by a request to make the link that does not ask to create it.
            let request = self.handle.link().add(change.build()).set_flags(CHANGE);
            request
                .execute()
                .await
                .map_err(NetError::netlink(format!("set the options of {link}")))?;
        }
        Ok(())
    }

    /// Has a bridge show its packets to the IP stack.
    pub(super) async fn call_ip(&self, link: Link) -> Result<(), NetError> {
        let found = self.own(link).await?;
        let change = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
            .index(found.index)
            .append_info_data(InfoBridge::NfCallIpTables(true))
            .append_info_data(InfoBridge::NfCallIp6Tables(true));
        let request = self.handle.link().add(change.build()).set_flags(CHANGE);
        request.execute().await.map_err(NetError::netlink(format!(
            "show the packets of bridge {link} to the IP stack"
        )))
    }

    /// Gives a link its alias.
    pub(super) async fn mark(&self, link: Link) -> Result<(), NetError> {
        self.change(link, |change| change.alias(link.alias())).await
    }

    /// Sets the largest packet.
    pub(super) async fn set_mtu(&self, link: Link, mtu: u32) -> Result<(), NetError> {
        self.change(link, |change| change.mtu(mtu)).await
    }

    /// Switches a link on.
    pub(super) async fn set_up(&self, link: Link) -> Result<(), NetError> {
        self.change(link, LinkMessageBuilder::up).await
    }

    /// Puts a link into a bridge.
    pub(super) async fn plug(&self, link: Link, bridge: Link) -> Result<(), NetError> {
        let master = self.own(bridge).await?.index;
        self.change(link, |change| change.controller(master)).await
    }

    /// Puts guests' taps into a bridge.
    pub(super) async fn plug_taps(&self, taps: &[String], bridge: Link) -> Result<(), NetError> {
        let master = self.own(bridge).await?.index;
        let taps = futures::stream::iter(taps.iter().map(Ok));
        let plugged = taps.try_for_each_concurrent(TAPS_AT_ONCE, |tap| self.plug_tap(tap, master));
        plugged.await
    }

    /// Puts a guest's tap into a bridge. A tap that is gone is no error: its guest ended meanwhile.
    async fn plug_tap(&self, tap: &str, master: u32) -> Result<(), NetError> {
        let Some(found) = self.find(tap).await? else {
            return Ok(());
        };
        if !found.is_tap() {
            return Err(NetError::Foreign {
                link: tap.to_owned(),
            });
        }
        let message = LinkUnspec::new_with_index(found.index)
            .controller(master)
            .build();
        match self.handle.link().set(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            Err(error) => Err(NetError::netlink(format!("change link {tap}"))(error)),
        }
    }

    /// Switches the loopback link on.
    pub(super) async fn loopback_up(&self) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_name("lo").up().build();
        let changed = self.handle.link().set(message).execute().await;
        changed.map_err(NetError::netlink("switch link lo on"))
    }

    /// Whether the loopback link is switched on.
    pub(super) async fn is_loopback_up(&self) -> Result<bool, NetError> {
        Ok(self.find("lo").await?.is_some_and(|found| found.is_up()))
    }

    async fn change(
        &self,
        link: Link,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        let found = self.own(link).await?;
        let message = change(LinkUnspec::new_with_index(found.index)).build();
        let changed = self.handle.link().set(message).execute().await;
        changed.map_err(NetError::netlink(format!("change link {link}")))
    }

    /// Sets switches of the IP stack for a link.
    pub(super) async fn settle(
        &self,
        link: Link,
        settings: &BTreeSet<LinkSetting>,
    ) -> Result<(), NetError> {
        self.own(link).await?;
        for setting in settings {
            let path = setting_path(*setting, &link.name());
            match std::fs::write(&path, setting.value()) {
                Ok(()) => {}
                // The kernel lacks IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && setting.is_of_ipv6() => {}
                Err(error) => return Err(NetError::file("write", path)(error)),
            }
        }
        Ok(())
    }

    /// Removes a link, if it is there and ours. Somebody else's is no error: there is nothing of ours to remove.
    pub(super) async fn delete(&self, link: Link) -> Result<(), NetError> {
        self.delete_if_any(link).await.map(drop)
    }

    /// The same; answers whether it was there.
    pub(super) async fn delete_if_any(&self, link: Link) -> Result<bool, NetError> {
        let found = match self.own_if_any(link).await {
            Ok(Some(found)) => found,
            Ok(None) | Err(NetError::Foreign { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        match self.handle.link().del(found.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if is(&error, Errno::ENODEV) => Ok(false),
            Err(error) => Err(NetError::netlink(format!("remove link {link}"))(error)),
        }
    }

    /// The addresses that a link was given.
    pub(super) async fn addresses(&self, found: &Found) -> Result<BTreeSet<IpNet>, NetError> {
        let answer = self
            .handle
            .address()
            .get()
            .set_link_index_filter(found.index)
            .execute();
        let messages: Vec<AddressMessage> =
            answer
                .try_collect()
                .await
                .map_err(NetError::netlink(format!(
                    "list the addresses of {}",
                    found.name
                )))?;
        Ok(messages.iter().filter_map(given_address).collect())
    }

    /// The addresses that links were given, by the index of the link.
    pub(super) async fn all_addresses(&self) -> Result<BTreeMap<u32, BTreeSet<IpNet>>, NetError> {
        let answer = self.handle.address().get().execute();
        let messages: Vec<AddressMessage> = answer
            .try_collect()
            .await
            .map_err(NetError::netlink("list the addresses of all links"))?;
        let mut addresses = BTreeMap::<u32, BTreeSet<IpNet>>::new();
        for message in &messages {
            let of_link = addresses.entry(message.header.index).or_default();
            of_link.extend(given_address(message).filter(|address| !is_link_local(*address)));
        }
        Ok(addresses)
    }

    /// Takes addresses from a link, and gives it others, unless that is so already.
    pub(super) async fn change_addresses(
        &self,
        link: Link,
        remove: &BTreeSet<IpNet>,
        add: &BTreeSet<IpNet>,
    ) -> Result<(), NetError> {
        let found = self.own(link).await?;
        for address in remove {
            unset_address(&self.handle, &found, *address).await?;
        }
        for address in add {
            set_address(&self.handle, &found, *address).await?;
        }
        Ok(())
    }

    /// Gives a link an address, unless it has it.
    pub(super) async fn add_address(&self, link: Link, address: IpNet) -> Result<(), NetError> {
        let found = self.own(link).await?;
        set_address(&self.handle, &found, address).await
    }

    /// Takes an address from a link, if it has it.
    pub(super) async fn remove_address(&self, link: Link, address: IpNet) -> Result<(), NetError> {
        let found = self.own(link).await?;
        unset_address(&self.handle, &found, address).await
    }

    /// Takes an address from whatever link, if it has it.
    pub(super) async fn take_address(&self, found: &Found, address: IpNet) -> Result<(), NetError> {
        unset_address(&self.handle, found, address).await
    }
}

/// A question that is answered without the counts of packets.
fn without_counts(request: LinkGetRequest) -> LinkGetRequest {
    request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
}

/// The answer to a question about one link.
async fn found(
    request: LinkGetRequest,
    what: impl FnOnce() -> String,
) -> Result<Option<Found>, NetError> {
    let mut answer = std::pin::pin!(request.execute());
    match answer.try_next().await {
        Ok(message) => Ok(message.map(Found::from)),
        Err(error) if is(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(NetError::netlink(what())(error)),
    }
}

/// Gives a link an address, unless it has it.
async fn set_address(handle: &Handle, found: &Found, address: IpNet) -> Result<(), NetError> {
    let mut request = handle
        .address()
        .add(found.index, address.addr(), address.prefix_len());
    if address.addr().is_ipv6() {
        // Usable as soon as it is there: without it the kernel looks at the link's switch later, and whoever binds to the address
        // meanwhile is told that there is none.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    match request.execute().await {
        Ok(()) => Ok(()),
        Err(error) if is(&error, Errno::EEXIST) => Ok(()),
        Err(error) => Err(NetError::netlink(format!(
            "give link {} the address {address}",
            found.name
        ))(error)),
    }
}

/// Takes an address from a link, if it has it.
async fn unset_address(handle: &Handle, found: &Found, address: IpNet) -> Result<(), NetError> {
    let prefix_len = address.prefix_len();
    let message = match address.addr() {
        IpAddr::V4(address) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(found.index)
            .address(address, prefix_len)
            .build(),
        IpAddr::V6(address) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(found.index)
            .address(address, prefix_len)
            .build(),
    };
    match handle.address().del(message).execute().await {
        Ok(()) => Ok(()),
        Err(error) if is(&error, Errno::EADDRNOTAVAIL) => Ok(()),
        Err(error) => Err(NetError::netlink(format!(
            "take the address {address} from link {}",
            found.name
        ))(error)),
    }
}

/// Flags of a request that changes a link by its index: NLM_F_REQUEST and NLM_F_ACK.
pub(super) const CHANGE: u16 = 0x1 | 0x4;

fn with_stp(builder: LinkMessageBuilder<LinkBridge>) -> LinkMessageBuilder<LinkBridge> {
    let wanted = if BridgeOptions::WANTED.stp {
        BridgeStpState::KernelStp
    } else {
        BridgeStpState::Disabled
    };
    builder.append_info_data(InfoBridge::StpState(wanted))
}

fn with_bridge_options(builder: LinkMessageBuilder<LinkBridge>) -> LinkMessageBuilder<LinkBridge> {
    let wanted = BridgeOptions::WANTED;
    with_stp(builder)
        .append_info_data(InfoBridge::ForwardDelay(wanted.forward_delay))
        .append_info_data(InfoBridge::MulticastSnooping(wanted.multicast_snooping))
        .append_info_data(InfoBridge::GroupFwdMask(wanted.group_fwd_mask))
}

impl From<LinkMessage> for Found {
    fn from(message: LinkMessage) -> Self {
        let mut found = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            master: None,
            message,
        };
        for attribute in &found.message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
                LinkAttribute::Controller(index) if *index != 0 => found.master = Some(*index),
                _ => {}
            }
        }
        found
    }
}

impl Found {
    /// The bridge or bond it is in.
    pub(super) const fn master(&self) -> Option<u32> {
        self.master
    }

    /// Whether it is in a bridge or bond, and not in this one.
    pub(super) fn is_in_another_than(&self, bridge: u32) -> bool {
        self.master.is_some_and(|master| master != bridge)
    }

    /// Its Ethernet address.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        self.message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
                _ => None,
            })
    }

    /// The largest packet it takes.
    pub(super) fn mtu(&self) -> u32 {
        let mtu = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        };
        self.message
            .attributes
            .iter()
            .find_map(mtu)
            .unwrap_or_default()
    }

    /// The link it is a part of.
    pub(super) fn parent(&self) -> Option<u32> {
        self.message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Link(index) => Some(*index),
                _ => None,
            })
    }

    /// What the kernel says of its kind.
    pub(super) fn infos(&self) -> impl Iterator<Item = &LinkInfo> {
        self.message
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            })
            .flatten()
    }

    pub(super) fn is_up(&self) -> bool {
        self.message.header.flags.contains(LinkFlags::Up)
    }

    pub(super) fn kind(&self) -> Option<&InfoKind> {
        self.message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                }),
                _ => None,
            })
    }

    /// What it received and what it transmitted, if the kernel tells.
    pub(super) fn traffic(&self) -> Option<(Traffic, Traffic)> {
        let mut attributes = self.message.attributes.iter();
        attributes.find_map(|attribute| match attribute {
            LinkAttribute::Stats64(counted) => Some((
                Traffic {
                    bytes: counted.rx_bytes,
                    packets: counted.rx_packets,
                    drops: counted.rx_dropped,
                    errors: counted.rx_errors,
                },
                Traffic {
                    bytes: counted.tx_bytes,
                    packets: counted.tx_packets,
                    drops: counted.tx_dropped,
                    errors: counted.tx_errors,
                },
            )),
            _ => None,
        })
    }

    /// Whether it is a tap, as QEMU uses them.
    fn is_tap(&self) -> bool {
        self.kind() == Some(&InfoKind::Tun)
    }

    /// Of a bridge: whether it shows packets of both versions of IP to the IP stack.
    pub(super) fn calls_ip(&self) -> bool {
        let infos = self
            .message
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
        let options = infos.flatten().filter_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(options)) => Some(options),
            _ => None,
        });
        let calls = options.flatten().filter(|option| {
            matches!(
                option,
                InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true)
            )
        });
        calls.count() == 2
    }

    /// What it looks like, without the name of its bridge.
    pub(super) fn describe(&self, link: Link) -> Result<LinkObserved, NetError> {
        Ok(LinkObserved {
            unsettled: unsettled(link)?,
            ..self.bare()
        })
    }

    /// What it looks like, without its switches either.
    fn bare(&self) -> LinkObserved {
        let mut observed = LinkObserved {
            kind: String::new(),
            alias: self.alias.clone(),
            mac: None,
            mtu: 0,
            up: self.is_up(),
            master: None,
            unsettled: BTreeSet::new(),
            bridge: None,
        };
        for attribute in &self.message.attributes {
            match attribute {
                LinkAttribute::Address(mac) => observed.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => observed.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => observed.kind = kind.to_string(),
                            LinkInfo::Data(InfoData::Bridge(options)) => {
                                observed.bridge = Some(bridge(options))
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        observed
    }
}

fn bridge(options: &[InfoBridge]) -> BridgeOptions {
    let mut bridge = BridgeOptions {
        stp: false,
        forward_delay: 0,
        multicast_snooping: false,
        group_fwd_mask: 0,
    };
    for option in options {
        match option {
            InfoBridge::StpState(state) => bridge.stp = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(delay) => bridge.forward_delay = *delay,
            InfoBridge::MulticastSnooping(on) => bridge.multicast_snooping = *on,
            InfoBridge::GroupFwdMask(mask) => bridge.group_fwd_mask = *mask,
            _ => {}
        }
    }
    bridge
}

/// Whether the kernel gives each link an address like this.
const fn is_link_local(address: IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}

/// The addresses that somebody chose.
fn without_link_local(mut addresses: BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    addresses.retain(|address| !is_link_local(*address));
    addresses
}

/// An address of a link. The kernel makes none by itself where it is asked: there, that is switched off.
pub(super) fn given_address(message: &AddressMessage) -> Option<IpNet> {
    let prefix_len = message.header.prefix_len;
    // IPv4 has both, and the one that counts is local; IPv6 has only the other, but of tunnels.
    let find =
        |which: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(which);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, prefix_len).ok()
}

/// Below `/proc/sys/net` each thread finds the switches of the namespace it is in.
fn setting_path(setting: LinkSetting, link: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(setting.path(link))
}

fn unsettled(link: Link) -> Result<BTreeSet<LinkSetting>, NetError> {
    let mut unsettled = BTreeSet::new();
    for setting in link.possible_settings() {
        let path = setting_path(*setting, &link.name());
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim() == setting.value() => {}
            Ok(_) => {
                unsettled.insert(*setting);
            }
            // The kernel lacks IPv6, or the link went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetError::file("read", path)(error)),
        }
    }
    Ok(unsettled)
}

/// Whether the kernel refused for this reason.
pub(super) fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            message.to_io().raw_os_error() == std::io::Error::from(errno).raw_os_error()
        }
        _ => false,
    }
}
