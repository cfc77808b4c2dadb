//! Forwarding tables of VTEPs and of the bridges they are in, through netlink, in the namespace of the calling thread.

use std::{collections::BTreeSet, net::IpAddr};

use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};

use super::{
    error::NetError,
    links::{Links, is},
};
use crate::decide::network::{Link, uplink::fdb::FdbEntry};

/// What nobody knows the place of, and what is for everybody, goes by the entry of this address.
const ANYBODY: [u8; 6] = [0; 6];
/// Not learned, and never forgotten: NUD_NOARP | NUD_REACHABLE, as `bridge fdb … static` says it.
const STATIC: NeighbourState = NeighbourState::Other(0x40 | 0x02);

impl Links {
    /// Whom a VTEP knows, and whom the bridge it is in was told to be behind it. The connection must be one that
    /// [`Links::open_strict`] made: the kernel tells of this link alone then.
    pub(super) async fn fdb(&self, vtep: u32) -> Result<BTreeSet<FdbEntry>, NetError> {
        let mut request = self
            .handle()
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Bridge);
        request.message_mut().header.ifindex = vtep;
        let found: Vec<NeighbourMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list the forwarding table of a VTEP"))?;
        let of_vtep = found
            .iter()
            .filter(|message| message.header.ifindex == vtep);
        Ok(of_vtep.filter_map(entry).collect())
    }

    /// Tells the bridge that a link is in, for good and whoever else claims it, that an Ethernet address is behind the link.
    pub(super) async fn tell_bridge(
        &self,
        link: u32,
        mac: [u8; 6],
    ) -> Result<(), rtnetlink::Error> {
        let mut message = message(link, FdbEntry::Bridge(mac));
        message.header.flags |= NeighbourFlags::Sticky;
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.send(request, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Puts entries in, and takes entries out. Those that are as they shall be already are no error.
    pub(super) async fn change_fdb(
        &self,
        vtep: Link,
        add: &[FdbEntry],
        remove: &[FdbEntry],
    ) -> Result<(), NetError> {
        let index = self.own(vtep).await?.index;
        let what = || format!("change the forwarding table of link {vtep}");
        for entry in add {
            let (message, flags) = put_in(index, *entry);
            match self.send(message, flags).await {
                Ok(()) => {}
                Err(error) if is(&error, Errno::EEXIST) => {}
                Err(error) => return Err(NetError::netlink(what())(error)),
            }
        }
        for entry in remove {
            let message = RouteNetlinkMessage::DelNeighbour(message(index, *entry));
            match self.send(message, 0).await {
                Ok(()) => {}
                Err(error) if is(&error, Errno::ENOENT) => {}
                Err(error) => return Err(NetError::netlink(what())(error)),
            }
        }
        Ok(())
    }
}

/// The request that puts an entry in. Hosts are added to those that get everything; a guest is in one place.
fn put_in(vtep: u32, entry: FdbEntry) -> (RouteNetlinkMessage, u16) {
    let how = match entry {
        FdbEntry::Flood(_) => NLM_F_APPEND,
        FdbEntry::Remote { .. } | FdbEntry::Bridge(_) => NLM_F_REPLACE,
    };
    let message = RouteNetlinkMessage::NewNeighbour(message(vtep, entry));
    (message, NLM_F_CREATE | how)
}

fn message(vtep: u32, entry: FdbEntry) -> NeighbourMessage {
    let (mac, host, flags) = match entry {
        FdbEntry::Flood(host) => (ANYBODY, Some(host), NeighbourFlags::Own),
        FdbEntry::Remote { mac, host } => (mac, Some(host), NeighbourFlags::Own),
        FdbEntry::Bridge(mac) => (mac, None, NeighbourFlags::Controller),
    };
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = vtep;
    message.header.state = STATIC;
    message.header.flags = flags;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
        .attributes
        .extend(host.map(|host| NeighbourAttribute::Destination(host.into())));
    message
}

/// What an entry of the kernel says; `None`: it was not told so by anybody, or it is about the link itself.
fn entry(message: &NeighbourMessage) -> Option<FdbEntry> {
    let find = |which: fn(&NeighbourAttribute) -> Option<Vec<u8>>| {
        message.attributes.iter().find_map(which)
    };
    let mac: [u8; 6] = find(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
        _ => None,
    })?
    .try_into()
    .ok()?;
    if message.header.flags.contains(NeighbourFlags::Own) {
        let host = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(host) => address(host),
                _ => None,
            })?;
        return Some(if mac == ANYBODY {
            FdbEntry::Flood(host)
        } else {
            FdbEntry::Remote { mac, host }
        });
    }
    let told = u16::from(message.header.state) & u16::from(NeighbourState::Noarp) != 0;
    told.then_some(FdbEntry::Bridge(mac))
}

/// In messages about bridges addresses come as mere bytes.
fn address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice())
                .ok()
                .map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}
