//! Whom the legs of routers know of, through netlink, in the namespace of the calling thread. What was told is permanent; what was
//! learned is the kernel's.

use std::{collections::BTreeMap, net::IpAddr};

use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::{Links, is};
use crate::{
    act::net::error::NetError,
    decide::router::{LegLink, Neighbours},
};

impl Links {
    /// Whom the links here were told of, by the link's index.
    pub(super) async fn told_neighbours(&self) -> Result<BTreeMap<u32, Neighbours>, NetError> {
        let found: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list the neighbours"))?;
        let mut told: BTreeMap<u32, Neighbours> = BTreeMap::new();
        for message in &found {
            if let Some((address, mac)) = permanent(message) {
                let of_link = told.entry(message.header.ifindex).or_default();
                of_link.insert(address, mac);
            }
        }
        Ok(told)
    }

    /// Tells a leg of neighbours, in place of what it knows of them, and takes others from it.
    pub(in crate::act::net) async fn change_neighbours(
        &self,
        link: LegLink,
        set: &Neighbours,
        unset: &[IpAddr],
    ) -> Result<(), NetError> {
        let index = self.own_leg(link).await?.index;
        let what = || format!("change the neighbours of link {link}");
        for (address, mac) in set {
            let message = RouteNetlinkMessage::NewNeighbour(message(index, *address, Some(*mac)));
            let sent = self.send(message, NLM_F_CREATE | NLM_F_REPLACE).await;
            sent.map_err(NetError::netlink(what()))?;
        }
        for address in unset {
            let message = RouteNetlinkMessage::DelNeighbour(message(index, *address, None));
            match self.send(message, 0).await {
                Ok(()) => {}
                Err(error) if is(&error, Errno::ENOENT) => {}
                Err(error) => return Err(NetError::netlink(what())(error)),
            }
        }
        Ok(())
    }
}

fn message(link: u32, address: IpAddr, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

/// An entry that somebody made for good.
fn permanent(message: &NeighbourMessage) -> Option<(IpAddr, [u8; 6])> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found));
            }
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((address?, mac?))
}
