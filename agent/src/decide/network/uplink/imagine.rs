//! What a step towards an uplink leads to.

use std::collections::BTreeSet;

use super::{
    super::{
        imagine::{change, fresh},
        link::Link,
        observed::NetworkObserved,
    },
    fdb::{self, FdbEntry},
    nat::no_longer_needed,
    observed::{Forwards, NatObserved, NicFound, VlanObserved, VxlanObserved},
    step::UplinkStep,
};

/// Changes what was observed to what will be observed once the step is done.
pub(in super::super) fn imagine(observed: &mut NetworkObserved, step: &UplinkStep) {
    match step {
        UplinkStep::CreateVlan {
            network,
            parent,
            id,
            mtu,
        } => {
            observed.uplink.vlan.get_or_insert_with(|| VlanObserved {
                link: fresh(Link::vlan(*network), *mtu),
                id: Some(*id),
                parent: Some(parent.to_string()),
            });
        }
        UplinkStep::CreateVxlan {
            network,
            id,
            local,
            port,
            mtu,
        } => {
            observed.uplink.vxlan.get_or_insert_with(|| VxlanObserved {
                link: fresh(Link::vxlan(*network), *mtu),
                id: Some(*id),
                local: Some(*local),
                port: Some(*port),
                learning: false,
                port_learning: true,
                fdb: Default::default(),
            });
        }
        UplinkStep::Delete(link) => delete(observed, *link),
        UplinkStep::StopLearning(_) => {
            if let Some(vxlan) = &mut observed.uplink.vxlan {
                vxlan.port_learning = false;
            }
        }
        UplinkStep::ChangeFdb { add, remove, .. } => {
            if let Some(vxlan) = &mut observed.uplink.vxlan {
                fdb::change(&mut vxlan.fdb, add, remove);
            }
        }
        UplinkStep::NicUp { nic, .. } => {
            observed
                .uplink
                .host
                .change_nic(nic, |found| found.up = true);
        }
        UplinkStep::TakeNic {
            network,
            nic,
            addresses,
        } => {
            if observed.bridge.is_none() {
                return;
            }
            let bridge = Link::bridge(*network);
            let mut mac = None;
            observed.uplink.host.change_nic(nic, |found| {
                found.master = Some(bridge.name());
                found
                    .addresses
                    .retain(|address| !addresses.contains(address));
                mac = found.mac;
            });
            if !addresses.is_empty() {
                observed.uplink.addresses.extend(addresses);
                change(observed, bridge, |found| found.mac = mac);
            }
        }
        UplinkStep::ReleaseNic {
            network,
            nic,
            addresses,
        } => {
            let bridge = Link::bridge(*network);
            observed
                .uplink
                .host
                .change_nic(nic, |found: &mut NicFound| {
                    found.master = None;
                    found.addresses.extend(addresses);
                });
            observed
                .uplink
                .addresses
                .retain(|address| !addresses.contains(address));
            change(observed, bridge, |found| found.mac = Some(bridge.mac()));
        }
        UplinkStep::AddAddress { address, .. } => {
            if observed.bridge.is_some() {
                observed.uplink.addresses.insert(*address);
            }
        }
        UplinkStep::RemoveAddress { address, .. } => {
            observed.uplink.addresses.remove(address);
        }
        UplinkStep::ApplyNat { network, rules } => {
            close(observed, &rules.open);
            for link in &rules.open {
                if let Some(forwards) = observed.uplink.host.outward.get_mut(link) {
                    *forwards = Forwards::Yes;
                }
            }
            observed.uplink.nat = Some(NatObserved {
                rules: rules.clone(),
                shape: rules.shape(*network),
            });
        }
        UplinkStep::RemoveNat(_) => {
            close(observed, &BTreeSet::new());
            observed.uplink.nat = None;
        }
    }
}

/// Links that forwarded for this network alone do so no more, but for those it still needs.
fn close(observed: &mut NetworkObserved, needed: &BTreeSet<String>) {
    let uplink = &mut observed.uplink;
    let Some(nat) = &uplink.nat else {
        return;
    };
    for link in no_longer_needed(&nat.rules.open, needed, &uplink.host.opened) {
        if let Some(forwards) = uplink.host.outward.get_mut(&link) {
            *forwards = Forwards::No;
        }
    }
}

fn delete(observed: &mut NetworkObserved, link: Link) {
    let uplink = &mut observed.uplink;
    uplink
        .vlan
        .take_if(|found| link == Link::vlan(link.network) && found.link.is_own(link));
    uplink
        .vxlan
        .take_if(|found| link == Link::vxlan(link.network) && found.link.is_own(link));
}

/// A link was put into the bridge: of what the bridge is told of a port nothing was said yet.
pub(in super::super) fn plugged(observed: &mut NetworkObserved, link: Link) {
    let bridge = Link::bridge(link.network).name();
    change(observed, link, |found| found.master = Some(bridge));
    if link == Link::vxlan(link.network)
        && let Some(vxlan) = &mut observed.uplink.vxlan
    {
        forget_port(vxlan);
    }
}

/// The bridge is gone, with its addresses, and those in it are out.
pub(in super::super) fn without_bridge(observed: &mut NetworkObserved, bridge: &str) {
    let uplink = &mut observed.uplink;
    uplink.addresses.clear();
    if let Some(vlan) = &mut uplink.vlan {
        vlan.link.master = None;
    }
    if let Some(vxlan) = &mut uplink.vxlan {
        vxlan.link.master = None;
        forget_port(vxlan);
    }
    for nic in uplink.host.nics.values_mut() {
        if let Some(found) = &mut nic.found
            && found.master.as_deref() == Some(bridge)
        {
            found.master = None;
        }
    }
}

fn forget_port(vxlan: &mut VxlanObserved) {
    vxlan.port_learning = true;
    vxlan
        .fdb
        .retain(|entry| !matches!(entry, FdbEntry::Bridge(_)));
}
