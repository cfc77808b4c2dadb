//! How fast ports may be, and where copies of their packets go: what tc shall be on the taps in a network's bridge × what it is →
//! steps. Pure, as all of the plan.
//!
//! ```text
//!   guest ◀── tap ◀── root: tbf (what the guest receives) ◀── clsact egress: copies ◀── bridge
//!   guest ──▶ tap ──▶ clsact ingress: copies, then redirect ──▶ ifb: tbf (what the guest sends) ──▶ back to the tap ──▶ bridge
//! ```
//!
//! A copy is made of what a guest sends before its limit and before the packet filter, and of what it receives before its limit
//! and after the filter. All of it belongs to the tap and goes with it, but the ifb: that is removed when the tap is gone.
//! A port without a tap has no running guest, and needs nothing. What others put on a tap is left alone, but for a qdisc in the
//! place of a limit.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{
        BandwidthLimit, Document, MirrorDirection, MirrorTarget, NetworkPort, PortMirror, PortQos,
    },
    ids::{InstanceId, NetworkId, PortId},
    message::report::{Fault, FaultCode},
};

use super::{observed::NetworkObserved, step::NetStep};
use crate::decide::names;

/// To so many places the packets of one direction of a port are copied: the kernel takes 32 actions.
const COPIES_MAX: usize = 16;
/// What may wait beyond a burst: as much as passes in this part of a second …
const WAIT_PARTS: u64 = 20;
/// … and so many bytes, that a segmented packet of a fast guest is not lost as a whole.
const WAIT_BYTES: u64 = 16 * 1024;
/// Ethernet and VLAN headers, which an MTU does not count, with some room.
const HEADERS: u64 = 32;

/// A limit as the kernel's token bucket filter has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaper {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may pass at once.
    pub burst: u64,
}

impl Shaper {
    /// The limit of a document. What is smaller than a packet would let none pass.
    fn of(limit: BandwidthLimit, mtu: u32) -> Self {
        let bytes = |kilobits: u64| kilobits * 1000 / 8;
        let rate = bytes(u64::from(limit.max_kbps)).max(1);
        let burst = match limit.max_burst_kbps {
            0 => rate / 10,
            burst => bytes(u64::from(burst)),
        };
        Self {
            rate,
            burst: burst.clamp(2 * (u64::from(mtu) + HEADERS), u64::from(u32::MAX) / 2),
        }
    }

    /// What may wait beyond the burst, in bytes.
    #[must_use]
    pub fn queue(rate: u64) -> u64 {
        (rate / WAIT_PARTS).min(u64::from(u32::MAX) / 4) + WAIT_BYTES
    }

    /// All that may be there at once, in bytes: of it and the rate, the kernel tells the burst exactly.
    #[must_use]
    pub fn limit(self) -> u64 {
        self.burst + Self::queue(self.rate)
    }
}

/// The two places of a tap where packets are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// What the guest sends: it comes in from the tap.
    Sent,
    /// What the guest receives: it goes out through the tap.
    Received,
}

/// What is done with each packet, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A copy goes out through this link.
    Copy(String),
    /// It goes through this link, and comes back.
    Through(String),
    /// What berth would not do.
    Other,
}

/// What tc is for a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcObserved {
    /// The links in its bridge with names of taps.
    pub taps: BTreeMap<String, TapObserved>,
    /// The links that its limits need beside those, by name.
    pub ifbs: BTreeMap<String, IfbObserved>,
    /// Links in the names of such ones that are not berth's.
    pub foreign: BTreeSet<String>,
    /// All links of the host, if there are any taps: copies can go there.
    pub links: BTreeSet<String>,
    /// To which ports those of other networks of this host are copied: see [`copies_beyond`].
    pub copies_beyond: Copies,
}

/// To which other ports the packets of ports are copied.
pub type Copies = BTreeMap<PortId, Vec<PortId>>;

/// To which ports the documents of other networks than this one have theirs copied.
#[must_use]
pub fn copies_beyond<'a>(
    network: NetworkId,
    documents: impl Iterator<Item = &'a Document>,
) -> Copies {
    let ports = documents.filter_map(|document| match document {
        Document::Network(wish) if wish.id != network => wish.spec.as_ref(),
        _ => None,
    });
    copies(ports.flat_map(|spec| &spec.ports))
}

fn copies<'a>(ports: impl IntoIterator<Item = &'a NetworkPort>) -> Copies {
    let targets = |port: &NetworkPort| -> Vec<PortId> {
        let to = port.mirrors.iter().filter_map(|mirror| match &mirror.to {
            MirrorTarget::Port(id) => Some(*id),
            MirrorTarget::Interface(_) => None,
        });
        to.collect()
    };
    let ports = ports.into_iter();
    ports
        .map(|port| (port.id, targets(port)))
        .filter(|(_, to)| !to.is_empty())
        .collect()
}

/// What is on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TapObserved {
    /// Its limit; `None`: none of berth's.
    pub shaper: Option<Shaper>,
    /// Whether it has the places where packets are copied.
    pub hooks: bool,
    /// berth's actions there.
    pub actions: BTreeMap<Hook, Vec<Action>>,
    /// Whether there are any of others.
    pub others: bool,
}

/// A link that what a guest sends is slowed down in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IfbObserved {
    /// Whether it has its alias.
    pub marked: bool,
    /// Whether it is switched on.
    pub up: bool,
    /// Its limit.
    pub shaper: Option<Shaper>,
}

/// One step on limits or copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcStep {
    /// The network.
    pub network: NetworkId,
    /// The link it is about.
    pub link: String,
    /// What is done to it.
    pub act: TcAct,
}

/// What is done to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcAct {
    /// Make it, an ifb, without alias.
    Create,
    /// Give it its alias.
    Mark(PortId),
    /// Switch it on.
    SetUp,
    /// Remove it, an ifb.
    Delete,
    /// Set its limit.
    Shape(Shaper),
    /// Take its limit away.
    Unshape,
    /// Make the places where packets are copied.
    AddHooks,
    /// Remove them, with all that is there.
    RemoveHooks,
    /// Set what is done with each packet.
    SetActions {
        /// Where.
        hook: Hook,
        /// What.
        actions: Vec<Action>,
    },
    /// Do nothing with packets any more.
    ClearActions(Hook),
}

impl TcStep {
    /// The word for it in figures.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self.act {
            TcAct::Create => "create_ifb",
            TcAct::Mark(_) => "mark_ifb",
            TcAct::SetUp => "set_up_ifb",
            TcAct::Delete => "delete_ifb",
            TcAct::Shape(_) => "shape",
            TcAct::Unshape => "unshape",
            TcAct::AddHooks => "add_clsact",
            TcAct::RemoveHooks => "remove_clsact",
            TcAct::SetActions { .. } => "set_mirrors",
            TcAct::ClearActions(_) => "clear_mirrors",
        }
    }
}

impl std::fmt::Display for TcStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let link = &self.link;
        match &self.act {
            TcAct::Create => write!(f, "make ifb {link}"),
            TcAct::Mark(_) => write!(f, "give ifb {link} its alias"),
            TcAct::SetUp => write!(f, "switch ifb {link} on"),
            TcAct::Delete => write!(f, "remove ifb {link}"),
            TcAct::Shape(shaper) => write!(
                f,
                "limit {link} to {} bytes/s, {} at once",
                shaper.rate, shaper.burst
            ),
            TcAct::Unshape => write!(f, "take the limit off {link}"),
            TcAct::AddHooks => write!(f, "make the clsact qdisc of {link}"),
            TcAct::RemoveHooks => write!(f, "remove the clsact qdisc of {link}"),
            TcAct::SetActions { hook, .. } => {
                write!(f, "set what is done with {}", hook.packets(link))
            }
            TcAct::ClearActions(hook) => {
                write!(f, "clear what is done with {}", hook.packets(link))
            }
        }
    }
}

impl Hook {
    fn packets(self, link: &str) -> String {
        match self {
            Self::Sent => format!("packets from {link}"),
            Self::Received => format!("packets to {link}"),
        }
    }
}

/// The alias of the link that what a port's guest sends is slowed down in. Its end tells the network.
#[must_use]
pub fn ifb_alias(network: NetworkId, port: PortId) -> String {
    format!(
        "{} of {network}",
        names::link_alias(names::LinkRole::Ifb, port.as_uuid())
    )
}

/// The network of a link with this alias, if it is such a one.
#[must_use]
pub fn network_of_ifb(alias: &str) -> Option<NetworkId> {
    let (own, network) = alias.rsplit_once(" of ")?;
    let network = network.parse().ok()?;
    let port = own.rsplit(' ').next()?.parse().ok()?;
    (ifb_alias(network, port) == alias).then_some(network)
}

/// The Ethernet address of all such links of a network: it tells whose one is before it has an alias. It is on no packet.
#[must_use]
pub fn ifb_mac(network: NetworkId) -> [u8; 6] {
    names::own_mac(&format!("berth ifb {network}"))
}

/// Whether a network has anything to do when the taps of an instance's ports appear or go: limits or copies of its packets, or
/// copies to it.
#[must_use]
pub fn concerns(ports: &[NetworkPort], instance: InstanceId, its: &BTreeSet<PortId>) -> bool {
    ports.iter().any(|port| {
        let is_its = port.instance_id == instance
            && (port.qos != PortQos::default() || !port.mirrors.is_empty());
        let goes_to_it = |mirror: &PortMirror| match &mirror.to {
            MirrorTarget::Port(to) => its.contains(to),
            MirrorTarget::Interface(_) => false,
        };
        is_its || port.mirrors.iter().any(goes_to_it)
    })
}

/// What keeps copies from going where they shall; everything else is done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Complaints {
    /// Taps that copies shall go to, with the ports, for people.
    pub(super) absent: BTreeSet<String>,
    /// What only another document mends, or somebody on the host.
    pub(super) wrong: Vec<String>,
}

impl Complaints {
    /// What is wrong, as a fault.
    pub(super) fn fault(&self) -> Option<Fault> {
        (!self.wrong.is_empty()).then(|| Fault {
            code: FaultCode::Network,
            message: self.wrong.join("; "),
        })
    }
}

/// What a port's tap shall have.
#[derive(Debug, Default)]
struct Wanted {
    received: Option<Shaper>,
    sent: Option<Shaper>,
    copies: BTreeMap<Hook, Vec<String>>,
}

/// What tc needs, so that the ports with taps have their limits and copies, and nobody else has any.
pub(super) fn plan(
    network: NetworkId,
    ports: &[NetworkPort],
    mtu: u32,
    observed: &NetworkObserved,
) -> (Vec<NetStep>, Complaints) {
    let tc = &observed.tc;
    let mut steps = Steps {
        network,
        steps: Vec::new(),
    };
    let mut complaints = Complaints::default();
    let mut ifbs = BTreeSet::new();
    let loops = loops(ports, &tc.copies_beyond);
    for port in ports {
        let tap = names::tap(port.id);
        let Some(found) = tc.taps.get(&tap) else {
            continue;
        };
        let mut wanted = wanted(port, mtu, tc, &loops, &mut complaints);
        let ifb = names::ifb(port.id);
        if wanted.sent.is_some() && tc.foreign.contains(&ifb) {
            complaints.wrong.push(format!(
                "what port {} sends cannot be limited: link {ifb} on the host is not berth's, and was left alone",
                port.id
            ));
            wanted.sent = None;
        }
        if wanted.sent.is_some() {
            ifbs.insert(ifb.clone());
        }
        steps.port(port.id, &tap, &ifb, found, tc.ifbs.get(&ifb), &wanted);
    }
    let no_port = Wanted::default();
    let taps: BTreeSet<String> = ports.iter().map(|port| names::tap(port.id)).collect();
    for (tap, found) in tc.taps.iter().filter(|(tap, _)| !taps.contains(*tap)) {
        steps.tap(tap, found, &no_port, None);
    }
    // After the taps, whose packets go through them.
    for ifb in tc.ifbs.keys().filter(|ifb| !ifbs.contains(*ifb)) {
        steps.add(ifb, TcAct::Delete);
    }
    (steps.steps, complaints)
}

/// Removes all links that a network's limits needed.
pub(super) fn remove(network: NetworkId, observed: &NetworkObserved) -> Vec<NetStep> {
    let mut steps = Steps {
        network,
        steps: Vec::new(),
    };
    for ifb in observed.tc.ifbs.keys() {
        steps.add(ifb, TcAct::Delete);
    }
    steps.steps
}

/// The ports whose copies would be copied again until they came back.
fn loops(ports: &[NetworkPort], beyond: &Copies) -> BTreeSet<PortId> {
    let own = copies(ports);
    let next = |port: &PortId| own.get(port).or_else(|| beyond.get(port));
    let comes_back = |start: PortId| {
        let mut seen = BTreeSet::new();
        let mut left = next(&start).cloned().unwrap_or_default();
        while let Some(port) = left.pop() {
            if port == start {
                return true;
            }
            if seen.insert(port) {
                left.extend(next(&port).into_iter().flatten());
            }
        }
        false
    };
    own.keys()
        .copied()
        .filter(|port| comes_back(*port))
        .collect()
}

fn wanted(
    port: &NetworkPort,
    mtu: u32,
    tc: &TcObserved,
    loops: &BTreeSet<PortId>,
    complaints: &mut Complaints,
) -> Wanted {
    let mut wanted = Wanted {
        received: port.qos.ingress.map(|limit| Shaper::of(limit, mtu)),
        sent: port.qos.egress.map(|limit| Shaper::of(limit, mtu)),
        copies: BTreeMap::new(),
    };
    if loops.contains(&port.id) {
        complaints.wrong.push(format!(
            "packets of port {} are not copied: the copies would come back to it",
            port.id
        ));
        return wanted;
    }
    for mirror in &port.mirrors {
        let link = match &mirror.to {
            MirrorTarget::Port(to) => {
                let tap = names::tap(*to);
                if !tc.links.contains(&tap) {
                    complaints.absent.insert(format!("{tap} of port {to}"));
                    continue;
                }
                tap
            }
            MirrorTarget::Interface(name) => match refused(name.as_str(), &tc.links) {
                Some(why) => {
                    complaints.wrong.push(format!(
                        "packets of port {} are not copied to {name}: {why}",
                        port.id
                    ));
                    continue;
                }
                None => name.to_string(),
            },
        };
        let hooks: &[Hook] = match mirror.direction {
            MirrorDirection::Egress => &[Hook::Sent],
            MirrorDirection::Ingress => &[Hook::Received],
            MirrorDirection::Both => &[Hook::Sent, Hook::Received],
        };
        for hook in hooks {
            let copies = wanted.copies.entry(*hook).or_default();
            if copies.contains(&link) {
                continue;
            }
            if copies.len() >= COPIES_MAX {
                complaints.wrong.push(format!(
                    "packets of port {} are copied to {COPIES_MAX} places only, and not to {link}",
                    port.id
                ));
                continue;
            }
            copies.push(link.clone());
        }
    }
    wanted
}

/// Why copies cannot go to a link.
fn refused(name: &str, links: &BTreeSet<String>) -> Option<&'static str> {
    if names::is_link(name) {
        Some("it is a link of berth's; copies for a port are told by the port's id")
    } else if name == "lo" {
        Some("the host would take them for packets of its own")
    } else if !links.contains(name) {
        Some("the host has no such link")
    } else {
        None
    }
}

struct Steps {
    network: NetworkId,
    steps: Vec<NetStep>,
}

impl Steps {
    fn add(&mut self, link: &str, act: TcAct) {
        self.steps.push(NetStep::Tc(TcStep {
            network: self.network,
            link: link.to_owned(),
            act,
        }));
    }

    fn port(
        &mut self,
        port: PortId,
        tap: &str,
        ifb: &str,
        found: &TapObserved,
        found_ifb: Option<&IfbObserved>,
        wanted: &Wanted,
    ) {
        let through = wanted.sent.map(|shaper| {
            let nothing = IfbObserved::default();
            let there = found_ifb.unwrap_or(&nothing);
            if found_ifb.is_none() {
                self.add(ifb, TcAct::Create);
            }
            if !there.marked {
                self.add(ifb, TcAct::Mark(port));
            }
            // Before it is on, and before anything goes through it: no packet passes without the limit.
            if there.shaper != Some(shaper) {
                self.add(ifb, TcAct::Shape(shaper));
            }
            if !there.up {
                self.add(ifb, TcAct::SetUp);
            }
            ifb
        });
        self.tap(tap, found, wanted, through);
    }

    fn tap(&mut self, tap: &str, found: &TapObserved, wanted: &Wanted, through: Option<&str>) {
        if found.shaper != wanted.received {
            self.add(tap, wanted.received.map_or(TcAct::Unshape, TcAct::Shape));
        }
        let actions = |hook: Hook| -> Vec<Action> {
            let copies = wanted.copies.get(&hook).into_iter().flatten();
            let through = through.filter(|_| hook == Hook::Sent);
            copies
                .cloned()
                .map(Action::Copy)
                .chain(through.map(|ifb| Action::Through(ifb.to_owned())))
                .collect()
        };
        let [sent, received] = [Hook::Sent, Hook::Received].map(|hook| (hook, actions(hook)));
        let needs_hooks = !sent.1.is_empty() || !received.1.is_empty();
        if needs_hooks && !found.hooks {
            self.add(tap, TcAct::AddHooks);
        }
        if !needs_hooks && found.hooks && !found.others {
            self.add(tap, TcAct::RemoveHooks);
            return;
        }
        for (hook, actions) in [sent, received] {
            match (found.actions.get(&hook), actions.is_empty()) {
                (None, true) => {}
                (Some(_), true) => self.add(tap, TcAct::ClearActions(hook)),
                (Some(there), false) if *there == actions => {}
                (_, false) => self.add(tap, TcAct::SetActions { hook, actions }),
            }
        }
    }
}

/// Changes what was observed to what will be observed once the step is done.
pub(super) fn imagine(observed: &mut TcObserved, step: &TcStep) {
    let TcStep { link, act, .. } = step;
    match act {
        TcAct::Create => {
            observed.ifbs.entry(link.clone()).or_default();
        }
        TcAct::Delete => {
            observed.ifbs.remove(link);
        }
        TcAct::Mark(_) => {
            if let Some(ifb) = observed.ifbs.get_mut(link) {
                ifb.marked = true;
            }
        }
        TcAct::SetUp => {
            if let Some(ifb) = observed.ifbs.get_mut(link) {
                ifb.up = true;
            }
        }
        TcAct::Shape(_) | TcAct::Unshape => {
            let shaper = match act {
                TcAct::Shape(shaper) => Some(*shaper),
                _ => None,
            };
            if let Some(ifb) = observed.ifbs.get_mut(link) {
                ifb.shaper = shaper;
            }
            if let Some(tap) = observed.taps.get_mut(link) {
                tap.shaper = shaper;
            }
        }
        TcAct::AddHooks
        | TcAct::RemoveHooks
        | TcAct::SetActions { .. }
        | TcAct::ClearActions(_) => {
            let Some(tap) = observed.taps.get_mut(link) else {
                return;
            };
            match act {
                TcAct::AddHooks => tap.hooks = true,
                TcAct::RemoveHooks => {
                    tap.hooks = false;
                    tap.actions.clear();
                }
                TcAct::SetActions { hook, actions } if tap.hooks => {
                    tap.actions.insert(*hook, actions.clone());
                }
                TcAct::ClearActions(hook) => {
                    tap.actions.remove(hook);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "tc_tests.rs"]
mod tests;
