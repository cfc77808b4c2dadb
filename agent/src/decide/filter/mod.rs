//! The packet filter: what guests may send and receive, and what stays on the host. Pure: a network's document × what is in
//! berth's tables of nftables → one transaction that touches only what differs.
//!
//! - [`nft`]: the parts of nftables that are used, as data;
//! - [`base`]: what there is once for the host;
//! - [`wanted`], [`group`]: what there shall be for a network;
//! - [`Rendered`]: what is kept of it from plan to plan;
//! - [`tunnel`]: who may send into a VXLAN;
//! - [`part`]: the difference, and the transaction; [`listing`]: what nft lists;
//! - [`trace()`]: what would become of a packet, in words; [`beyond()`]: where routers lead;
//! - [`reason`]: why packets are dropped, and [`drops()`]: how many.

pub mod base;
mod beyond;
mod drops;
mod group;
mod legs;
mod listing;
mod names;
pub mod nft;
pub mod part;
mod reason;
mod rendered;
mod trace;
mod tunnel;
mod wanted;

use std::{fmt, sync::Arc};

use berth_common::{
    document::NetworkSpec,
    ids::{HostId, NetworkId},
    message::report::{Fault, FaultCode},
};
use sha2::{Digest, Sha256};

pub use base::Stateful;
pub use beyond::{Beyond, beyond};
pub use drops::{PortDrops, drops};
pub use legs::{legs, legs_of};
pub use listing::{NotAList, counted, tables};
pub use part::{Base, Change, FilterObserved, Tables, Wanted};
pub use reason::Reason;
pub use rendered::Rendered;
pub use trace::trace;
pub use tunnel::{Reach, Senders, TunnelEnd, hosts_told, joined, senders};
pub use wanted::RouterLeg;
use wanted::Surroundings;

use self::{
    base::Setup,
    part::{Part, Shall},
    tunnel::Guarded,
};
use super::{names as link_names, network::Link};

/// A step towards the packet filter of a network. Each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterStep {
    /// Show the packets of the network's bridge to the IP stack, which tracks connections.
    CallIp(NetworkId),
    /// Carry out a transaction.
    Change(Box<Change>),
}

impl FilterStep {
    /// The network it is for.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        match self {
            Self::CallIp(network) => *network,
            Self::Change(change) => change.network,
        }
    }

    /// The same, in steps that do not take too long each: see [`Change::portions`].
    #[must_use]
    pub fn portions(self) -> Vec<Self> {
        match self {
            Self::CallIp(_) => vec![self],
            Self::Change(change) => {
                let portions = change.portions().into_iter();
                portions
                    .map(|change| Self::Change(Box::new(change)))
                    .collect()
            }
        }
    }

    /// A word for it, in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CallIp(_) => "call_ip",
            Self::Change(_) => "change_filter",
        }
    }
}

impl fmt::Display for FilterStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CallIp(network) => {
                write!(
                    f,
                    "show the packets of bridge {} to the IP stack",
                    Link::bridge(*network)
                )
            }
            Self::Change(change) => write!(
                f,
                "change its packet filter ({} objects{})",
                change.objects(),
                match change.base {
                    Base::Made(_) => ", and those of the host",
                    Base::Goes => ", and those of the host unless others need them",
                    Base::Stays => "",
                }
            ),
        }
    }
}

/// What stands against filtering the network's packets on this host.
#[must_use]
pub fn impossible(spec: &NetworkSpec, found: &FilterObserved) -> Option<Fault> {
    let secured = spec.ports.iter().find(|port| port.security.is_some())?;
    (found.stateful == Stateful::No).then(|| Fault {
        code: FaultCode::Unsupported,
        message: format!(
            "port {} has port security, and this host's kernel cannot track connections across bridges: it needs \
             nf_conntrack_bridge or br_netfilter",
            secured.id
        ),
    })
}

/// The change towards a network's document on this host; `None`: everything is as it shall be.
#[must_use]
pub fn towards(
    network: NetworkId,
    spec: &NetworkSpec,
    reach: &Reach,
    host: HostId,
    found: &FilterObserved,
    rendered: &mut Rendered,
) -> Option<FilterStep> {
    let guarded = |end| Guarded::of(end, spec, &found.senders);
    let around = Surroundings {
        uplinks: reach.links.clone(),
        tunnel: reach.tunnel.and_then(guarded),
        legs: found.legs.clone(),
        host_mac: link_names::host_mac(host),
    };
    let zone = zone(network, found);
    let filter = wanted::Filter::new(network, spec, &around, found.stateful, zone);
    let setup = Setup {
        stateful: found.stateful,
        tunnels: match around.tunnel {
            Some(_) => base::Tunnels::Guarded,
            None => base::tunnels(&found.base),
        },
    };
    let base = if found.base == *base::wanted(setup) {
        Base::Stays
    } else {
        Base::Made(setup)
    };
    let change = rendered.change(network, filter, base, found)?;
    Some(FilterStep::Change(Box::new(change)))
}

/// The change that leaves nothing of a network, and of the host if no other network needs it; `None`: nothing is there.
#[must_use]
pub fn away(network: NetworkId, found: &FilterObserved) -> Option<FilterStep> {
    let is_left = !found.base.is_empty() || !found.strays.is_empty();
    if found.part.is_empty() && (found.shared || !is_left) {
        return None;
    }
    let change = part::change(network, Base::Goes, &Shall::default(), found, |_| {
        Vec::new()
    })?;
    Some(FilterStep::Change(Box::new(change)))
}

/// What a step leads to.
pub fn imagine(found: &mut FilterObserved, step: &FilterStep) {
    match step {
        FilterStep::CallIp(_) => found.calls_ip = true,
        FilterStep::Change(change) => {
            if let Base::Made(setup) = change.base {
                found.base = base::wanted(setup).clone();
            }
            found.strays.retain(|stray| !change.strays.contains(stray));
            Arc::make_mut(&mut found.part).apply(change);
            if change.base == Base::Goes && !found.shared {
                found.base.clear();
            }
        }
    }
}

/// In which zone connections of the network are looked for: the one it has, or else the first free one from where its id leads to.
/// Two networks never share one for long: whoever sees it moves.
fn zone(network: NetworkId, found: &FilterObserved) -> u16 {
    let has = zones_of(&found.part, &names::of_network("z", network)).next();
    if let Some(zone) = has.filter(|zone| !found.taken_zones.contains(zone)) {
        return zone;
    }
    let digest = Sha256::digest(network.as_uuid().as_bytes());
    let first = u16::from_be_bytes([digest[0], digest[1]]).max(1);
    (first..=u16::MAX)
        .chain(1..first)
        .find(|zone| !found.taken_zones.contains(zone))
        .unwrap_or(first)
}

/// The zones that a chain of this name tells, whichever family has it.
fn zones_of(part: &Part, chain: &str) -> impl Iterator<Item = u16> {
    [nft::Family::Bridge, nft::Family::Inet]
        .into_iter()
        .filter_map(move |family| part.chains.get(&(family, chain.to_owned())))
        .flat_map(|comments| comments.iter())
        .filter_map(|comment| zone_in(comment))
}

/// The zone that the comment of a rule tells.
fn zone_in(comment: &str) -> Option<u16> {
    comment.split_once(" zone ")?.1.parse().ok()
}

impl Tables {
    /// What is there for a network, as a plan sees it.
    #[must_use]
    pub fn observed(&self, network: NetworkId, stateful: Stateful) -> FilterObserved {
        let own = names::network(network);
        let others = self.parts.iter().filter(|(name, _)| **name != own);
        let zones = others
            .flat_map(|(name, part)| zones_of(part, &format!("z_{name}")).collect::<Vec<_>>());
        let mut base = self.base.clone();
        let mut strays = self.strays.clone();
        for name in self.outdated(stateful) {
            base.remove(name);
            strays.insert(base::stray(name));
        }
        FilterObserved {
            stateful,
            base,
            part: self.part(network),
            strays,
            taken_zones: zones.collect(),
            shared: self
                .parts
                .iter()
                .any(|(name, part)| *name != own && !part.is_empty()),
            calls_ip: false,
            legs: Vec::new(),
            senders: Senders::default(),
        }
    }

    /// What is the host's for tracking connections in another way than this, as a kernel without a module had it.
    fn outdated(&self, stateful: Stateful) -> impl Iterator<Item = &part::Name> {
        let wanted = base::wanted(Setup {
            stateful,
            tunnels: base::Tunnels::Guarded,
        });
        let names = self.base.keys();
        names.filter(move |name| !wanted.contains_key(*name))
    }
}

#[cfg(test)]
mod tests;
