//! The part of an instance's plan that is about the NICs its guest has: the ports of its document × the NICs that are live.
//!
//! As with volumes, a guest that is on gets and gives back NICs while it runs, and has to give one back itself: it is asked again
//! and again, and the plan waits until libvirt no longer names the NIC. A guest that does not do it in time makes that a fault,
//! and is still asked. One that stands still cannot, and is waited for. Whether there is a cable in a NIC needs no guest.
//!
//! A NIC is its port, its address and its bridge: if one of the three differs, it is another NIC, and the old one has to go first.
//! Its MTU changes with the next start. What berth did not plug in, it does not unplug.

use std::collections::BTreeSet;

use berth_common::{
    document::InstancePort,
    ids::PortId,
    message::report::{Fault, FaultCode, PowerState},
};

use super::{End, Observed, Wait, keeps_for_long, kept_by_guest, power::ASK_AGAIN_AFTER};
use crate::decide::{
    domain::{DomainConfig, DomainNic, DomainObserved, DomainStep, NicObserved, OffReason},
    names,
};

/// How many NICs an instance can have: as many places for them as a guest is started with.
pub const MAX_NICS: usize = 8;

/// What a guest's NICs need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Change {
    /// The steps, in order.
    pub(super) steps: Vec<DomainStep>,
    /// What keeps them from being as they shall be.
    pub(super) end: Option<End>,
}

/// More ports than a guest has room for.
pub(super) fn too_many(ports: &[InstancePort]) -> Option<Fault> {
    (ports.len() > MAX_NICS).then(|| Fault {
        code: FaultCode::Unsupported,
        message: format!(
            "the instance has {} ports, and a guest can have at most {MAX_NICS}",
            ports.len()
        ),
    })
}

/// The ports that a domain has: those its guest has, or else those its next start will give it. `None`: a NIC of an older
/// agent's does not tell its port, and is none of these.
#[must_use]
pub fn ports(domain: &DomainObserved, wanted: &[InstancePort]) -> Option<Vec<PortId>> {
    let is_off = domain.power_state == PowerState::Shutdown;
    let nics = if is_off && domain.off_reason != Some(OffReason::Saved) {
        &domain.nics.kept
    } else {
        &domain.nics.live
    };
    let ours = nics.iter().filter(|nic| nic.is_ours());
    ours.map(|nic| {
        let by_tap = || wanted.iter().find(|port| names::tap(port.id) == nic.tap);
        nic.port().or_else(|| by_tap().map(|port| port.id))
    })
    .collect()
}

/// What to do so that a guest has the NICs of its definition, and no others of berth's.
pub(super) fn change(
    config: &DomainConfig,
    ports: &[InstancePort],
    domain: &DomainObserved,
    observed: &Observed,
) -> Change {
    let live: Vec<&NicObserved> = domain
        .nics
        .live
        .iter()
        .filter(|nic| nic.is_ours())
        .collect();
    let surplus: Vec<&NicObserved> = live
        .iter()
        .copied()
        .filter(|found| !config.nics.iter().any(|nic| is_same(nic, found)))
        .collect();
    let missing: Vec<&DomainNic> = config
        .nics
        .iter()
        .filter(|nic| !live.iter().any(|found| is_same(nic, found)))
        .collect();
    let cables: Vec<(&DomainNic, &NicObserved)> = config
        .nics
        .iter()
        .filter_map(|nic| {
            let found = live.iter().find(|found| is_same(nic, found))?;
            (found.link != nic.link).then_some((nic, *found))
        })
        .collect();
    if surplus.is_empty() && missing.is_empty() && cables.is_empty() {
        return Change::default();
    }
    match (domain.power_state, domain.off_reason) {
        (PowerState::Running | PowerState::Paused, _) => {}
        // Off, and nothing saved: it has none, and its next start gives it those of its definition.
        (PowerState::Shutdown | PowerState::Nostate, reason)
            if reason != Some(OffReason::Saved) =>
        {
            return Change::default();
        }
        _ => {
            return Change {
                steps: Vec::new(),
                end: Some(End::Wait(Wait::GuestGoesOn)),
            };
        }
    }
    let instance = config.id;
    let mut change = Change::default();
    change
        .steps
        .extend(cables.into_iter().map(|(nic, found)| DomainStep::SetLink {
            instance,
            nic: found.clone(),
            link: nic.link,
        }));
    if !surplus.is_empty() {
        let asked = observed.nic_asked;
        if asked.is_none_or(|asked| asked.last >= ASK_AGAIN_AFTER) {
            let detach = |nic: &&NicObserved| DomainStep::DetachNic {
                instance,
                nic: (*nic).clone(),
            };
            change.steps.extend(surplus.iter().map(detach));
        }
        let names: BTreeSet<String> = surplus.iter().map(|nic| name(nic)).collect();
        change.end = Some(if keeps_for_long(domain, asked) {
            End::Stuck(kept_by_guest("the NIC of", &names))
        } else {
            End::Wait(Wait::DetachNics(names))
        });
    }
    for nic in missing {
        // The same place, or the same address: it has to be free first.
        let is_taken = surplus
            .iter()
            .any(|found| found.tap == nic.tap || found.mac_address == nic.mac_address);
        if is_taken {
            continue;
        }
        let network = ports
            .iter()
            .find(|port| port.id == nic.port)
            .map(|port| port.network_id)
            .filter(|network| !observed.networks_ready.contains(network));
        match network {
            Some(network) => {
                change.end.get_or_insert(End::Wait(Wait::Network(network)));
            }
            None => change.steps.push(DomainStep::AttachNic {
                instance,
                nic: Box::new(nic.clone()),
            }),
        }
    }
    change
}

/// Whether it is this NIC that was found, whatever its cable and its MTU.
fn is_same(nic: &DomainNic, found: &NicObserved) -> bool {
    found.tap == nic.tap && found.mac_address == nic.mac_address && found.bridge == nic.bridge
}

/// A NIC, for people.
fn name(nic: &NicObserved) -> String {
    let port = nic.port().map(|port| format!("port {port}"));
    let port = port.unwrap_or_else(|| format!("the port of tap {}", nic.tap));
    format!("{port} ({})", nic.mac_address)
}

#[cfg(test)]
mod tests;
