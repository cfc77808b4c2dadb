//! Limits and copies of packets through netlink: token bucket filters, clsact with u32 filters whose actions are mirred, and ifb.
//! u32 is the one classifier that every kernel of the last twenty years has; what it is asked here is to match everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use berth_common::ids::NetworkId;
use futures::TryStreamExt;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::InfoKind,
    tc::{
        TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
        TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle,
        TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Selector, TcU32SelectorFlags,
    },
};
use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator},
};

use super::{
    error::NetError,
    links::{Found, Links, is, known::Known},
};
use crate::decide::{
    names,
    network::tc::{
        Action, Hook, IfbObserved, Shaper, TapObserved, TcAct, TcObserved, TcStep, ifb_alias,
        ifb_mac, network_of_ifb,
    },
};

/// The handle of berth's limits: it tells them from others.
const SHAPER: TcHandle = TcHandle {
    major: 0xbe70,
    minor: 0,
};
/// The priority of berth's filters: it tells them from others. One for each hook: u32 keeps the filters of both hooks of a clsact
/// in one place, and lists those of one priority together.
const fn priority(hook: Hook) -> u16 {
    match hook {
        Hook::Sent => 190,
        Hook::Received => 191,
    }
}
/// All protocols, as the kernel's header has it (`ETH_P_ALL`).
const ALL_PROTOCOLS: u16 = 0x0003;
/// Where clsact is.
const CLSACT: u32 = 0xffff_fff1;
/// `TC_LINKLAYER_ETHERNET`: rates are computed, and no table of them is needed.
const ETHERNET: u8 = 1;
/// Attributes of a token bucket filter (`TCA_TBF_…`).
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// Places in `struct tc_tbf_qopt`: its length, the rate's link layer, the rate, and the limit.
const QOPT_LEN: usize = 36;
const QOPT_LINKLAYER: usize = 1;
const QOPT_RATE: usize = 8;
const QOPT_LIMIT: usize = 24;

/// The qdiscs of one link that matter here.
#[derive(Debug, Default)]
pub(super) struct Qdiscs {
    shaper: Option<Shaper>,
    clsact: bool,
}

/// The filters of one hook.
#[derive(Debug, Default)]
struct Filters {
    /// berth's, with its handle.
    own: Option<(TcHandle, Vec<Action>)>,
    others: bool,
}

impl Links {
    /// What tc is for the taps among these members of all links, and for what a network's limits need beside them.
    pub(super) async fn observe_tc(
        &self,
        network: NetworkId,
        known: &Known,
        all: &[Arc<Found>],
        members: &BTreeSet<String>,
    ) -> Result<TcObserved, NetError> {
        let all = || all.iter().map(Arc::as_ref);
        let is_tap = |found: &&Found| names::is_tap(&found.name) && members.contains(&found.name);
        let taps: Vec<&Found> = all().filter(is_tap).collect();
        let (ifbs, foreign): (Vec<&Found>, Vec<&Found>) = all()
            .filter(|found| names::is_ifb(&found.name))
            .partition(|found| owner(found, network).is_some());
        let mut observed = TcObserved::default();
        if taps.is_empty() && ifbs.is_empty() {
            return Ok(observed);
        }
        let qdiscs = known.qdiscs(self).await?;
        for found in ifbs {
            let shaper = qdiscs.get(&found.index).and_then(|it| it.shaper);
            let ifb = IfbObserved {
                marked: owner(found, network) == Some(Mark::Alias),
                up: found.is_up(),
                shaper,
            };
            observed.ifbs.insert(found.name.clone(), ifb);
        }
        if taps.is_empty() {
            return Ok(observed);
        }
        let names: BTreeMap<u32, &str> = all()
            .map(|found| (found.index, found.name.as_str()))
            .collect();
        for found in taps {
            let of_tap = qdiscs.get(&found.index);
            let mut tap = TapObserved {
                shaper: of_tap.and_then(|it| it.shaper),
                hooks: of_tap.is_some_and(|it| it.clsact),
                ..TapObserved::default()
            };
            if tap.hooks {
                for hook in [Hook::Sent, Hook::Received] {
                    let filters = self.filters(found.index, hook, &names).await?;
                    tap.others |= filters.others;
                    let own = filters.own.map(|(_, actions)| (hook, actions));
                    tap.actions.extend(own);
                }
            }
            observed.taps.insert(found.name.clone(), tap);
        }
        observed.foreign = foreign.iter().map(|found| found.name.clone()).collect();
        observed.links = all().map(|found| found.name.clone()).collect();
        Ok(observed)
    }

    /// Carries out one step. A tap that is gone is no error: its guest ended meanwhile.
    pub(super) async fn apply_tc(&self, step: &TcStep) -> Result<(), NetError> {
        let found = self.find(&step.link).await?;
        let is_ifb = names::is_ifb(&step.link);
        let own = found
            .as_ref()
            .is_none_or(|found| !is_ifb || owner(found, step.network).is_some());
        if !own || !(is_ifb || names::is_tap(&step.link)) {
            return Err(NetError::Foreign {
                link: step.link.clone(),
            });
        }
        let Some(found) = found else {
            return match step.act {
                TcAct::Create => self.create_ifb(step).await,
                TcAct::Delete => Ok(()),
                _ if is_ifb => Err(NetError::Absent {
                    link: step.link.clone(),
                }),
                _ => Ok(()),
            };
        };
        let done = match &step.act {
            TcAct::Create => Ok(()),
            TcAct::Mark(port) => {
                let alias = ifb_alias(step.network, *port);
                let message = LinkUnspec::new_with_index(found.index).alias(alias).build();
                self.handle().link().set(message).execute().await
            }
            TcAct::SetUp => {
                let message = LinkUnspec::new_with_index(found.index).up().build();
                self.handle().link().set(message).execute().await
            }
            TcAct::Delete => self.handle().link().del(found.index).execute().await,
            TcAct::Shape(shaper) => self.send(shape(&found, *shaper), CREATE_OR_REPLACE).await,
            TcAct::Unshape => {
                let message = RouteNetlinkMessage::DelQueueDiscipline(root(&found));
                self.send(message, 0).await
            }
            TcAct::AddHooks => {
                let mut message = clsact(&found);
                message
                    .attributes
                    .push(TcAttribute::Kind("clsact".to_owned()));
                let message = RouteNetlinkMessage::NewQueueDiscipline(message);
                match self.send(message, NLM_F_CREATE | NLM_F_EXCL).await {
                    Err(error) if is(&error, Errno::EEXIST) => Ok(()),
                    done => done,
                }
            }
            TcAct::RemoveHooks => {
                let message = RouteNetlinkMessage::DelQueueDiscipline(clsact(&found));
                self.send(message, 0).await
            }
            TcAct::SetActions { hook, actions } => {
                return self.set_actions(&found, *hook, actions, step).await;
            }
            TcAct::ClearActions(hook) => {
                let message = RouteNetlinkMessage::DelTrafficFilter(filter(found.index, *hook));
                self.send(message, 0).await
            }
        };
        settle(done, step)
    }

    async fn create_ifb(&self, step: &TcStep) -> Result<(), NetError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
            .name(step.link.clone())
            .address(ifb_mac(step.network).to_vec())
            .build();
        let made = self.handle().link().add(message).execute().await;
        made.map_err(NetError::netlink(step.to_string()))
    }

    async fn set_actions(
        &self,
        tap: &Found,
        hook: Hook,
        actions: &[Action],
        step: &TcStep,
    ) -> Result<(), NetError> {
        let all = self.all().await?;
        let index = |name: &str| {
            let found = all.iter().find(|found| found.name == name);
            found.map(|found| found.index).ok_or(NetError::Absent {
                link: name.to_owned(),
            })
        };
        let mut made = Vec::new();
        for action in actions {
            made.push(match action {
                Action::Copy(link) => mirred(
                    TcMirrorActionType::EgressMirror,
                    TcActionType::Pipe,
                    index(link)?,
                ),
                Action::Through(link) => mirred(
                    TcMirrorActionType::EgressRedir,
                    TcActionType::Stolen,
                    index(link)?,
                ),
                Action::Other => continue,
            });
        }
        for (order, action) in (1..).zip(&mut made) {
            action.tab = order;
        }
        let mut message = filter(tap.index, hook);
        let there = self.filters(tap.index, hook, &BTreeMap::new()).await?;
        if let Some((handle, _)) = there.own {
            message.header.handle = handle;
        }
        let mut everything = TcU32Selector::default();
        everything.flags = TcU32SelectorFlags::Terminal;
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything)),
            TcOption::U32(TcFilterU32Option::Action(made)),
        ]));
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        settle(self.send(message, CREATE_OR_REPLACE).await, step)
    }

    /// The qdiscs of all links, by their index.
    pub(super) async fn qdiscs(&self) -> Result<BTreeMap<u32, Qdiscs>, NetError> {
        let answer = self.handle().qdisc().get().execute();
        let messages: Vec<TcMessage> = answer
            .try_collect()
            .await
            .map_err(NetError::netlink("list the qdiscs"))?;
        let mut all: BTreeMap<u32, Qdiscs> = BTreeMap::new();
        for message in &messages {
            let Ok(index) = u32::try_from(message.header.index) else {
                continue;
            };
            let qdiscs = all.entry(index).or_default();
            match kind(message) {
                Some("clsact") => qdiscs.clsact = true,
                Some("tbf")
                    if message.header.handle == SHAPER
                        && message.header.parent == TcHandle::ROOT =>
                {
                    qdiscs.shaper = shaper(message);
                }
                _ => {}
            }
        }
        Ok(all)
    }

    async fn filters(
        &self,
        index: u32,
        hook: Hook,
        names: &BTreeMap<u32, &str>,
    ) -> Result<Filters, NetError> {
        let mut filters = Filters::default();
        let Ok(index) = i32::try_from(index) else {
            return Ok(filters);
        };
        let request = self.handle().traffic_filter(index).get();
        let request = match hook {
            Hook::Sent => request.ingress(),
            Hook::Received => request.egress(),
        };
        let answer: Result<Vec<TcMessage>, _> = request.execute().try_collect().await;
        let messages = match answer {
            Ok(messages) => messages,
            // The tap, or its clsact, is gone.
            Err(error) if is_gone(&error) => return Ok(filters),
            Err(error) => {
                return Err(NetError::netlink(format!("list the filters of #{index}"))(
                    error,
                ));
            }
        };
        for message in &messages {
            let is_own = message.header.info >> 16 == u32::from(priority(hook))
                && kind(message) == Some("u32");
            filters.others |= !is_own;
            if let Some(actions) = actions(message, names).filter(|_| is_own) {
                filters.own = Some((message.header.handle, actions));
            }
        }
        Ok(filters)
    }
}

const CREATE_OR_REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// How it is known that a link is a network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// By its alias.
    Alias,
    /// By its address: it was made, and not marked yet.
    Address,
}

/// How it is known that a link with the name of an ifb is this network's; `None`: it is not.
fn owner(found: &Found, network: NetworkId) -> Option<Mark> {
    if found.kind() != Some(&InfoKind::Ifb) {
        return None;
    }
    match &found.alias {
        Some(alias) => (network_of_ifb(alias) == Some(network)).then_some(Mark::Alias),
        None => (found.mac() == Some(ifb_mac(network))).then_some(Mark::Address),
    }
}

/// What is gone needs no change, but for an ifb, which is never gone by itself.
fn settle(done: Result<(), rtnetlink::Error>, step: &TcStep) -> Result<(), NetError> {
    match done {
        Ok(()) => Ok(()),
        Err(error) if is(&error, Errno::ENODEV) && !names::is_ifb(&step.link) => Ok(()),
        Err(error)
            if matches!(
                step.act,
                TcAct::Unshape | TcAct::RemoveHooks | TcAct::ClearActions(_) | TcAct::Delete
            ) && is_gone(&error) =>
        {
            Ok(())
        }
        Err(error) => Err(NetError::netlink(step.to_string())(error)),
    }
}

/// What the kernel says of a link, a qdisc or a filter that is not there.
fn is_gone(error: &rtnetlink::Error) -> bool {
    [Errno::ENODEV, Errno::ENOENT, Errno::EINVAL]
        .into_iter()
        .any(|errno| is(error, errno))
}

fn of_link(index: u32) -> TcMessage {
    TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX))
}

fn root(found: &Found) -> TcMessage {
    let mut message = of_link(found.index);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = SHAPER;
    message
}

fn clsact(found: &Found) -> TcMessage {
    let mut message = of_link(found.index);
    message.header.parent = TcHandle::from(CLSACT);
    message.header.handle = TcHandle::from(0xffff_0000);
    message
}

fn filter(index: u32, hook: Hook) -> TcMessage {
    let mut message = of_link(index);
    message.header.parent = TcHandle {
        major: 0xffff,
        minor: match hook {
            Hook::Sent => TcHandle::MIN_INGRESS,
            Hook::Received => TcHandle::MIN_EGRESS,
        },
    };
    message.header.info = (u32::from(priority(hook)) << 16) | u32::from(ALL_PROTOCOLS.to_be());
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    message
}

fn mirred(what: TcMirrorActionType, then: TcActionType, index: u32) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = then;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = what;
    mirror.ifindex = index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}

fn shape(found: &Found, shaper: Shaper) -> RouteNetlinkMessage {
    let mut message = root(found);
    let mut qopt = vec![0_u8; QOPT_LEN];
    let rate = u32::try_from(shaper.rate).unwrap_or(u32::MAX);
    let limit = u32::try_from(shaper.limit()).unwrap_or(u32::MAX);
    let burst = u32::try_from(shaper.burst).unwrap_or(u32::MAX);
    put(&mut qopt, QOPT_LINKLAYER, &[ETHERNET]);
    put(&mut qopt, QOPT_RATE, &rate.to_ne_bytes());
    put(&mut qopt, QOPT_LIMIT, &limit.to_ne_bytes());
    let nla = |kind, bytes: Vec<u8>| TcOption::Other(DefaultNla::new(kind, bytes));
    let mut options = vec![
        nla(TBF_PARMS, qopt),
        nla(TBF_BURST, burst.to_ne_bytes().to_vec()),
    ];
    if shaper.rate > u64::from(u32::MAX) {
        options.push(nla(TBF_RATE64, shaper.rate.to_ne_bytes().to_vec()));
    }
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(options),
    ];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    let places = bytes.iter_mut().skip(at);
    places.zip(what).for_each(|(place, byte)| *place = *byte);
}

fn kind(message: &TcMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        })
}

/// The limit that a token bucket filter has; `None`: it is not as berth makes them.
fn shaper(message: &TcMessage) -> Option<Shaper> {
    use rtnetlink::packet_core::Nla;
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    // The library knows no such qdisc: it hands over all its attributes as one.
    let TcOption::Other(all) = options.first()? else {
        return None;
    };
    let mut bytes = vec![0; all.value_len()];
    all.emit_value(&mut bytes);
    let (mut rate, mut rate64, mut limit) = (None, None, None);
    for nla in NlasIterator::new(&bytes) {
        let nla = nla.ok()?;
        match nla.kind() {
            TBF_PARMS => {
                rate = u32_at(nla.value(), QOPT_RATE);
                limit = u32_at(nla.value(), QOPT_LIMIT);
            }
            TBF_RATE64 => rate64 = Some(u64::from_ne_bytes(nla.value().try_into().ok()?)),
            _ => {}
        }
    }
    let rate = rate64.unwrap_or(u64::from(rate?));
    let burst = u64::from(limit?).checked_sub(Shaper::queue(rate))?;
    Some(Shaper { rate, burst })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

/// What a filter does with packets; `None`: it is no filter, but the table that filters are in.
fn actions(message: &TcMessage, names: &BTreeMap<u32, &str>) -> Option<Vec<Action>> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    let has_selector = options
        .iter()
        .any(|option| matches!(option, TcOption::U32(TcFilterU32Option::Selector(_))));
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions.as_slice()),
        _ => None,
    });
    has_selector.then(|| {
        let actions = actions.unwrap_or_default().iter();
        actions.map(|found| action(found, names)).collect()
    })
}

fn action(found: &TcAction, names: &BTreeMap<u32, &str>) -> Action {
    let options = found
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options.as_slice()),
            _ => None,
        });
    let mirror = options
        .unwrap_or_default()
        .iter()
        .find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror),
            _ => None,
        });
    let Some((mirror, name)) = mirror.and_then(|it| Some((it, names.get(&it.ifindex)?))) else {
        return Action::Other;
    };
    match (mirror.eaction, &mirror.generic.action) {
        (TcMirrorActionType::EgressMirror, TcActionType::Pipe) => Action::Copy((*name).to_owned()),
        (TcMirrorActionType::EgressRedir, TcActionType::Stolen) => {
            Action::Through((*name).to_owned())
        }
        _ => Action::Other,
    }
}
