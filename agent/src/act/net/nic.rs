//! Puts NICs of the host into bridges and takes them out, with the host's addresses and routes: in one go, and back again on
//! the first error, so that the host is never cut off.
//!
//! Broken off in between, addresses may be on both links, and each route is on one of them: carrying on from there is the same
//! as beginning.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_common::names::LinkName;
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::{
    error::NetError,
    links::{Found, Links, given_address, is},
};
use crate::decide::network::Link;

/// What the host's addresses move between.
#[derive(Clone, Copy)]
struct Between<'a> {
    from: &'a Found,
    to: &'a Found,
}

impl Links {
    /// Switches a NIC on.
    pub(super) async fn nic_up(&self, nic: &LinkName) -> Result<(), NetError> {
        let found = self.nic(nic).await?;
        let message = LinkUnspec::new_with_index(found.index).up().build();
        let changed = self.handle().link().set(message).execute().await;
        changed.map_err(NetError::netlink(format!("switch NIC {nic} on")))
    }

    /// Puts a NIC into a bridge, whose Ethernet address becomes the NIC's if addresses move with it.
    pub(super) async fn take_nic(
        &self,
        bridge: Link,
        nic: &LinkName,
        addresses: &BTreeSet<IpNet>,
    ) -> Result<(), NetError> {
        let (inside, found) = (self.own(bridge).await?, self.nic(nic).await?);
        if found.is_in_another_than(inside.index) {
            return Err(NetError::Foreign {
                link: nic.to_string(),
            });
        }
        if addresses.is_empty() {
            return self.set_master(&found, inside.index).await;
        }
        let before = (inside.mac(), found.master());
        let given = self.given(&found, addresses).await?;
        let moving = Between {
            from: &found,
            to: &inside,
        };
        let done = async {
            if let Some(mac) = found.mac() {
                self.set_mac(&inside, mac).await?;
            }
            self.add_addresses(&inside, &given).await?;
            self.set_master(&found, inside.index).await?;
            self.move_routes(moving).await?;
            self.drop_addresses(&found, addresses).await
        };
        let Err(error) = done.await else {
            return Ok(());
        };
        tracing::warn!(%nic, %error, "the host's addresses could not be moved to the bridge; moving them back");
        let back = async {
            self.set_master(&found, before.1.unwrap_or_default())
                .await?;
            self.add_addresses(&found, &given).await?;
            self.move_routes(moving.back()).await?;
            self.drop_addresses(&inside, addresses).await?;
            match before.0 {
                Some(mac) => self.set_mac(&inside, mac).await,
                None => Ok(()),
            }
        };
        // The first error is the one that tells; what could not be undone is seen, and put right, by the next look.
        if let Err(second) = back.await {
            tracing::error!(%nic, error = %second, "nor could they all be moved back");
        }
        Err(error)
    }

    /// Takes a NIC out of a bridge, and gives it addresses of the bridge.
    pub(super) async fn release_nic(
        &self,
        bridge: Link,
        nic: &LinkName,
        addresses: &BTreeSet<IpNet>,
    ) -> Result<(), NetError> {
        let Some(found) = self.find(nic.as_str()).await? else {
            return Ok(());
        };
        let Some(inside) = self.own_if_any(bridge).await? else {
            return Ok(());
        };
        if found.is_in_another_than(inside.index) {
            return Ok(());
        }
        let given = self.given(&inside, addresses).await?;
        self.add_addresses(&found, &given).await?;
        self.move_routes(Between {
            from: &inside,
            to: &found,
        })
        .await?;
        self.drop_addresses(&inside, addresses).await?;
        self.set_mac(&inside, bridge.mac()).await?;
        // Last: as long as it is in the bridge, the next look knows that there may be something to be moved.
        self.set_master(&found, 0).await
    }

    async fn nic(&self, nic: &LinkName) -> Result<Found, NetError> {
        let found = self.find(nic.as_str()).await?;
        found.ok_or_else(|| NetError::Absent {
            link: nic.to_string(),
        })
    }

    /// Puts a link into a bridge, or out of any: 0.
    async fn set_master(&self, link: &Found, master: u32) -> Result<(), NetError> {
        if link.master().unwrap_or_default() == master && master != 0 {
            return Ok(());
        }
        let message = LinkUnspec::new_with_index(link.index)
            .controller(master)
            .build();
        let changed = self.handle().link().set(message).execute().await;
        changed.map_err(NetError::netlink(format!(
            "put NIC {} into a bridge, or out of it",
            link.name
        )))
    }

    async fn set_mac(&self, link: &Found, mac: [u8; 6]) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.to_vec())
            .build();
        let changed = self.handle().link().set(message).execute().await;
        changed.map_err(NetError::netlink(format!(
            "set the Ethernet address of bridge {}",
            link.name
        )))
    }

    /// Gives a link addresses as another one has them, in the same order: the first of a subnet is the one that is used.
    async fn add_addresses(&self, link: &Found, given: &[AddressMessage]) -> Result<(), NetError> {
        for address in given {
            let mut address = address.clone();
            address.header.index = link.index;
            address.header.flags = AddressHeaderFlags::empty();
            // A label is of the other link; how long the address is good for was told to the other link, too.
            address.attributes.retain(|attribute| {
                !matches!(
                    attribute,
                    AddressAttribute::Label(_)
                        | AddressAttribute::CacheInfo(_)
                        | AddressAttribute::Flags(_)
                )
            });
            if address.header.family == AddressFamily::Inet6 {
                // It was found to be nobody else's when the host got it, and must not be without use meanwhile.
                let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                address.attributes.push(flags);
            }
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let mut request = self.handle().address().add(link.index, any, 32);
            *request.message_mut() = address;
            match request.execute().await {
                Ok(()) => {}
                Err(error) if is(&error, Errno::EEXIST) => {}
                Err(error) => {
                    let what = format!("give {} an address that is to move there", link.name);
                    return Err(NetError::netlink(what)(error));
                }
            }
        }
        Ok(())
    }

    /// Those of a link's addresses that are among these, as it has them.
    async fn given(
        &self,
        link: &Found,
        addresses: &BTreeSet<IpNet>,
    ) -> Result<Vec<AddressMessage>, NetError> {
        let answer = self
            .handle()
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute();
        let mut all: Vec<AddressMessage> =
            answer
                .try_collect()
                .await
                .map_err(NetError::netlink(format!(
                    "list the addresses of {}",
                    link.name
                )))?;
        all.retain(|message| {
            given_address(message).is_some_and(|address| addresses.contains(&address))
        });
        Ok(all)
    }

    async fn drop_addresses(
        &self,
        link: &Found,
        addresses: &BTreeSet<IpNet>,
    ) -> Result<(), NetError> {
        for address in addresses {
            self.take_address(link, *address).await?;
        }
        Ok(())
    }

    /// Moves the routes over one link to another. Each is replaced in one step, so it is always there.
    async fn move_routes(&self, between: Between<'_>) -> Result<(), NetError> {
        let mut routes = self.routes_over::<Ipv4Addr>(between.from).await?;
        routes.extend(self.routes_over::<Ipv6Addr>(between.from).await?);
        // Those to whom there is no gateway first: gateways are reached by them.
        routes.sort_by_key(has_gateway);
        for mut route in routes {
            for attribute in &mut route.attributes {
                if let RouteAttribute::Oif(index) = attribute {
                    *index = between.to.index;
                }
            }
            route
                .attributes
                .retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
            // What else is flagged is how the kernel found the link to be.
            route.header.flags &= RouteFlags::Onlink;
            let what = format!(
                "move a route from {} to {}",
                between.from.name, between.to.name
            );
            let request = self.handle().route().add(route).replace();
            request.execute().await.map_err(NetError::netlink(what))?;
        }
        Ok(())
    }

    /// The unicast routes of the main table over a link that somebody set: the kernel makes and removes those that go with
    /// addresses by itself.
    async fn routes_over<A>(&self, link: &Found) -> Result<Vec<RouteMessage>, NetError>
    where
        RouteMessageBuilder<A>: Family,
    {
        let request = self.handle().route().get(RouteMessageBuilder::<A>::any());
        let all: Vec<RouteMessage> =
            request
                .execute()
                .try_collect()
                .await
                .map_err(NetError::netlink(format!(
                    "list the routes over {}",
                    link.name
                )))?;
        let over = |route: &RouteMessage| {
            let out = RouteAttribute::Oif(link.index);
            route.attributes.contains(&out)
                && route.header.kind == RouteType::Unicast
                && route.header.protocol != RouteProtocol::Kernel
                && route.header.table == RouteHeader::RT_TABLE_MAIN
        };
        Ok(all.into_iter().filter(over).collect())
    }

    /// The link that IPv4 goes out by when it goes nowhere else.
    pub(super) async fn outward(&self) -> Result<Option<u32>, NetError> {
        // The dummy address (RFC 7600) is nobody's, so no route but the default one leads there.
        let somewhere = Ipv4Addr::new(192, 0, 0, 8);
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(somewhere, 32)
            .build();
        let mut answer = std::pin::pin!(self.handle().route().get(message).execute());
        let route = match answer.try_next().await {
            Ok(route) => route,
            Err(error)
                if [
                    Errno::ENETUNREACH,
                    Errno::EHOSTUNREACH,
                    Errno::EACCES,
                    Errno::EINVAL,
                ]
                .iter()
                .any(|errno| is(&error, *errno)) =>
            {
                None
            }
            Err(error) => {
                return Err(NetError::netlink("say where packets go by default")(error));
            }
        };
        Ok(route.and_then(|route| {
            route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
        }))
    }
}

impl Between<'_> {
    const fn back(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }
}

fn has_gateway(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
        )
    })
}

/// A family of addresses whose routes can be listed.
trait Family {
    /// The message that asks for all of them.
    fn any() -> RouteMessage;
}

impl Family for RouteMessageBuilder<Ipv4Addr> {
    fn any() -> RouteMessage {
        Self::new().build()
    }
}

impl Family for RouteMessageBuilder<Ipv6Addr> {
    fn any() -> RouteMessage {
        Self::new().build()
    }
}

/// Whether an address is more than this machine's own.
pub(super) fn is_of_a_network(address: &IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback(),
    }
}
