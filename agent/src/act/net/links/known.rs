//! What is known of the links of the agent's own namespace: what the kernel listed once, and from then on what it told of.
//!
//! The kernel tells of each change of a link, an address or a qdisc before whoever made it gets his answer (rtnetlink(7)), but for some of
//! links that are switched off, such as their alias. So a look first hears what was told since the last one. What was not told of is as
//! it was; a link that was told of or is off is asked for again, and if that is many of them, or the kernel had no room to tell all, they
//! are listed anew. So a look costs what changed, and not what there
//! is. What is told is not believed, it only says what to ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netlink_packet_route::link::{InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkInfo};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
        setsockopt, socket, sockopt::RcvBufForce,
    },
};
use tokio::sync::Mutex;

use super::{Found, Links};
use crate::act::net::{error::NetError, tc::Qdiscs};

/// Everything is listed anew after this time, whatever was told: should a kernel change something and not tell, it is seen then.
const LISTED_AT_LEAST: Duration = Duration::from_secs(60);
/// How much the kernel may have to tell between two looks: some thousand changes. It is its memory, and taken as it is needed.
const ROOM: usize = 2 << 20;
/// How many messages are heard at once; after more everything is listed anew.
const HEARD_MAX: usize = 10_000;
/// How often everything is listed in a look while links go meanwhile.
const LISTS: usize = 4;
/// A link in so many is asked for by itself; if more changed, it is quicker to list them all.
const FEW: usize = 4;

/// The groups of messages (`RTMGRP_…`): links, qdiscs, addresses of IPv4 and of IPv6.
const GROUPS: u32 = 0x1 | 0x8 | 0x10 | 0x100;
/// The types of messages (`RTM_…`).
const LINK: u16 = 16;
const LINK_GONE: u16 = 17;
const ADDRESS: [u16; 2] = [20, 21];
const QDISC: [u16; 2] = [36, 37];
/// Bytes of the header that all messages have, and where in one of links the index is.
const HEADER: usize = 16;
const INDEX: usize = HEADER + 4;

/// What links have, by their index.
type ByLink<T> = Arc<BTreeMap<u32, T>>;

/// The links of the agent's own namespace. Clones share what is known.
#[derive(Debug, Clone, Default)]
pub(in crate::act::net) struct Known {
    shared: Arc<Mutex<Option<State>>>,
}

/// The links as they are now.
pub(in crate::act::net) struct Seen {
    /// All of them.
    pub(in crate::act::net) links: Vec<Arc<Found>>,
    /// The addresses that they were given.
    pub(in crate::act::net) addresses: ByLink<BTreeSet<IpNet>>,
}

#[derive(Debug)]
struct State {
    told: Told,
    listed: Instant,
    links: BTreeMap<u32, Arc<Found>>,
    /// `None`: they have to be listed.
    addresses: Option<ByLink<BTreeSet<IpNet>>>,
    qdiscs: Option<ByLink<Qdiscs>>,
    /// Links that were told of and are to be asked for.
    changed: BTreeSet<u32>,
    /// Whether a link went since they were listed.
    gone: bool,
    /// Whether something was not heard: everything has to be listed anew.
    lost: bool,
}

impl Known {
    /// All links with their addresses, through a connection in the same namespace. The bridge of this name is asked for in any case:
    /// the kernel does not tell of all ways to change its options.
    pub(in crate::act::net) async fn look(
        &self,
        links: &Links,
        bridge: &str,
    ) -> Result<Seen, NetError> {
        let mut shared = self.shared.lock().await;
        let state = current(&mut shared, links, Some(bridge)).await?;
        let addresses = match &state.addresses {
            Some(addresses) => Arc::clone(addresses),
            None => state.list_addresses(links).await?,
        };
        Ok(Seen {
            links: state.links.values().cloned().collect(),
            addresses,
        })
    }

    /// What of the links' qdiscs matters here.
    pub(in crate::act::net) async fn qdiscs(
        &self,
        links: &Links,
    ) -> Result<ByLink<Qdiscs>, NetError> {
        let mut shared = self.shared.lock().await;
        let state = current(&mut shared, links, None).await?;
        if let Some(qdiscs) = &state.qdiscs {
            return Ok(Arc::clone(qdiscs));
        }
        let listed = Arc::new(links.qdiscs().await?);
        state.qdiscs = Some(Arc::clone(&listed));
        // What changed meanwhile is listed again with the next look.
        state.lost |= !state.hear()?;
        Ok(listed)
    }
}

/// What is known, once it is as it is now. A link that is named is asked for, whatever was told, and so is each that is switched off:
/// of those the kernel tells not everything.
async fn current<'a>(
    shared: &'a mut Option<State>,
    links: &Links,
    asked: Option<&str>,
) -> Result<&'a mut State, NetError> {
    let known = match shared.take() {
        Some(mut state) if !state.lost && state.listed.elapsed() < LISTED_AT_LEAST => {
            state.hear()?.then_some(state)
        }
        _ => None,
    };
    let state = match known {
        Some(mut state) => {
            let is_asked = |found: &&Arc<Found>| !found.is_up() || asked == Some(&found.name);
            let asked = state.links.values().filter(is_asked);
            state.changed.extend(asked.map(|found| found.index));
            state
        }
        None => State::list(links).await?,
    };
    let state = shared.insert(state);
    state.ask(links).await?;
    Ok(state)
}

impl State {
    /// Lists all links. What is told from before on is heard later.
    async fn list(links: &Links) -> Result<Self, NetError> {
        let mut state = Self {
            told: Told::open()?,
            listed: Instant::now(),
            links: BTreeMap::new(),
            addresses: None,
            qdiscs: None,
            changed: BTreeSet::new(),
            gone: false,
            lost: false,
        };
        state.list_links(links).await?;
        Ok(state)
    }

    /// The same again. A kernel before 6.10 leaves out links of a list in the middle of which others go, and tells nothing of these.
    async fn list_links(&mut self, links: &Links) -> Result<(), NetError> {
        for _ in 0..LISTS {
            self.gone = false;
            self.qdiscs = None;
            let all = links.all().await?.into_iter();
            self.changed.clear();
            self.links = all
                .map(|found| (found.index, Arc::new(slim(found))))
                .collect();
            self.lost |= !self.hear()?;
            if !self.gone {
                return Ok(());
            }
        }
        // It has to do for this look.
        self.lost = true;
        Ok(())
    }

    /// Lists the addresses of all links, with the same care.
    async fn list_addresses(&mut self, links: &Links) -> Result<ByLink<BTreeSet<IpNet>>, NetError> {
        let mut listed = Arc::default();
        for _ in 0..LISTS {
            self.gone = false;
            listed = Arc::new(links.all_addresses().await?);
            self.addresses = Some(Arc::clone(&listed));
            self.lost |= !self.hear()?;
            if self.addresses.is_some() && !self.gone {
                return Ok(listed);
            }
        }
        self.lost = true;
        Ok(listed)
    }

    /// Hears what was told; whether that was everything.
    fn hear(&mut self) -> Result<bool, NetError> {
        let mut is_all = true;
        for _ in 0..HEARD_MAX {
            match self.told.next()? {
                Heard::Link(index) => {
                    self.changed.insert(index);
                }
                Heard::LinkGone(index) => {
                    self.changed.insert(index);
                    // They go with it untold, and the next one may have its index.
                    self.qdiscs = None;
                    self.gone = true;
                }
                Heard::Address => self.addresses = None,
                Heard::Qdisc => self.qdiscs = None,
                Heard::Other => {}
                Heard::Lost => is_all = false,
                Heard::Nothing => return Ok(is_all),
            }
        }
        Ok(false)
    }

    /// Asks for the links that were told of.
    async fn ask(&mut self, links: &Links) -> Result<(), NetError> {
        if self.changed.len() > self.links.len() / FEW {
            self.list_links(links).await?;
        }
        while let Some(index) = self.changed.first().copied() {
            match links.find_index(index).await? {
                Some(found) => {
                    self.links.insert(index, Arc::new(slim(found)));
                }
                None => {
                    self.links.remove(&index);
                }
            }
            self.changed.remove(&index);
        }
        Ok(())
    }
}

/// The same without what nobody asks for: it is most of what the kernel tells, and kept for as long as the link is there.
fn slim(mut found: Found) -> Found {
    found
        .message
        .attributes
        .retain_mut(|attribute| match attribute {
            LinkAttribute::Address(_) | LinkAttribute::Mtu(_) | LinkAttribute::Link(_) => true,
            LinkAttribute::LinkInfo(infos) => {
                infos.retain_mut(|info| match info {
                    LinkInfo::Kind(_) => true,
                    LinkInfo::Data(data) => matches!(
                        data,
                        InfoData::Bridge(_) | InfoData::Vlan(_) | InfoData::Vxlan(_)
                    ),
                    LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                        data.retain(|info| matches!(info, InfoBridgePort::Learning(_)));
                        data.shrink_to_fit();
                        true
                    }
                    _ => false,
                });
                infos.shrink_to_fit();
                true
            }
            _ => false,
        });
    found.message.attributes.shrink_to_fit();
    found
}

/// A message, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Something of this link changed, or of the port of a bridge that it is.
    Link(u32),
    /// This link went, or left its bridge.
    LinkGone(u32),
    /// Some link's addresses changed.
    Address,
    /// Some link's qdiscs changed.
    Qdisc,
    /// Nothing that matters.
    Other,
    /// The kernel had no room to tell all.
    Lost,
    /// It has told everything.
    Nothing,
}

/// Where the kernel tells of changes in the namespace that it was opened in.
#[derive(Debug)]
struct Told {
    socket: OwnedFd,
}

impl Told {
    fn open() -> Result<Self, NetError> {
        let what = "have the kernel tell of changes of links";
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )
        .map_err(NetError::system(what))?;
        // Where that is not allowed there is less room, and links are listed anew more often.
        let _ = setsockopt(&socket, RcvBufForce, &ROOM);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).map_err(NetError::system(what))?;
        Ok(Self { socket })
    }

    /// The next message. There is one in each datagram, and its beginning is all that matters of it.
    fn next(&self) -> Result<Heard, NetError> {
        let mut message = [0_u8; INDEX + 4];
        loop {
            return match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) => Ok(heard(message.get(..length).unwrap_or_default())),
                Err(Errno::EAGAIN) => Ok(Heard::Nothing),
                // What was told before can still be heard, and what is told once that was heard.
                Err(Errno::ENOBUFS) => Ok(Heard::Lost),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(NetError::system("hear of changes of links")(errno)),
            };
        }
    }
}

/// What the beginning of a message says.
fn heard(message: &[u8]) -> Heard {
    let Some(kind) = message.get(4..).and_then(|it| it.first_chunk::<2>()) else {
        return Heard::Other;
    };
    let kind = u16::from_ne_bytes(*kind);
    let index = message.get(INDEX..).and_then(|it| it.first_chunk::<4>());
    match index {
        Some(index) if kind == LINK => Heard::Link(u32::from_ne_bytes(*index)),
        Some(index) if kind == LINK_GONE => Heard::LinkGone(u32::from_ne_bytes(*index)),
        _ if ADDRESS.contains(&kind) => Heard::Address,
        _ if QDISC.contains(&kind) => Heard::Qdisc,
        _ => Heard::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a message of this type, as long as this.
    fn message(kind: u16, length: usize) -> Vec<u8> {
        let mut message = [0_u8; INDEX + 4];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[INDEX..].copy_from_slice(&7_u32.to_ne_bytes());
        message[..length].to_vec()
    }

    #[test]
    fn messages_say_what_to_ask_for_however_short_they_are() {
        let whole = INDEX + 4;
        for (kind, length, says) in [
            (16, whole, Heard::Link(7)),
            (17, whole, Heard::LinkGone(7)),
            (20, whole, Heard::Address),
            (21, HEADER, Heard::Address),
            (36, whole, Heard::Qdisc),
            (37, whole, Heard::Qdisc),
            (44, whole, Heard::Other),
            // It names no link.
            (16, whole - 1, Heard::Other),
            (16, 5, Heard::Other),
            (16, 0, Heard::Other),
        ] {
            assert_eq!(heard(&message(kind, length)), says, "{kind} {length}");
        }
    }
}
