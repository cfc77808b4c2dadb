//! What a step leads to, as far as a plan can know: a model of the host's network in data.
//!
//! The planner goes on from it after each step, so that what comes after making a link is the same as what mends
//! one; hosts that exist only in tests are made of it too.

use std::collections::BTreeSet;

use berth_common::ids::NetworkId;

use super::{
    super::{filter, names},
    link::{Link, LinkSetting},
    observed::{
        BridgeOptions, DhcpProcess, LinkObserved, NamespaceContent, NamespaceObserved,
        NetworkObserved,
    },
    step::{BridgePort, NetStep},
    tc, uplink,
};

/// Changes what was observed to what will be observed once the step is done. A step on something that is not
/// there changes nothing.
pub fn imagine(observed: &mut NetworkObserved, step: &NetStep) {
    match step {
        NetStep::Uplink(step) => uplink::imagine(observed, step),
        NetStep::WriteDhcp { files, .. } => {
            observed.dhcp.directory = true;
            observed.dhcp.files = Some(files.clone());
        }
        NetStep::Filter(step) => filter::imagine(&mut observed.filter, step),
        NetStep::CreateBridge { network, mtu } => {
            observed
                .bridge
                .get_or_insert_with(|| fresh(Link::bridge(*network), *mtu));
        }
        NetStep::CreateNamespace(_) => {
            if observed.content().is_none() {
                observed.namespace = NamespaceObserved::Present(NamespaceContent {
                    loopback_up: true,
                    ..NamespaceContent::default()
                });
                left_outside(observed);
            }
        }
        NetStep::CreateVeth { network, mtu } => create_veth(observed, *network, *mtu),
        NetStep::Mark(link) => change(observed, *link, |found| found.alias = Some(link.alias())),
        NetStep::SetBridgeOptions(network) => {
            change(observed, Link::bridge(*network), |found| {
                found.bridge = Some(BridgeOptions::WANTED)
            });
        }
        NetStep::Settle { link, settings } => {
            change(observed, *link, |found| {
                found
                    .unsettled
                    .retain(|setting| !settings.contains(setting));
                found.unsettled.extend(opposites(*link, settings));
            });
        }
        NetStep::SetMtu { link, mtu } => change(observed, *link, |found| found.mtu = *mtu),
        NetStep::Plug(port) => {
            if observed.bridge.is_some() {
                plug(observed, *port);
            }
        }
        NetStep::PlugTaps { ports, .. } => {
            if observed.bridge.is_some() {
                let taps = ports.iter().copied().map(names::tap);
                let taps = taps.filter_map(|tap| observed.stray_taps.take(&tap));
                observed.members.extend(taps);
            }
        }
        NetStep::ChangeAddresses { remove, add, .. } => {
            if let Some(content) = content(observed).filter(|content| content.veth.is_some()) {
                content
                    .addresses
                    .retain(|address| !remove.contains(address));
                content.addresses.extend(add);
            }
        }
        NetStep::SetUp(link) => change(observed, *link, |found| found.up = true),
        NetStep::LoopbackUp(_) => {
            if let Some(content) = content(observed) {
                content.loopback_up = true;
            }
        }
        NetStep::StartDhcp(_) => {
            if observed.content().is_some() && observed.dhcp.files.is_some() {
                observed.dhcp.process = Some(DhcpProcess {
                    loaded: observed.dhcp.files.clone(),
                    in_namespace: true,
                });
            }
        }
        NetStep::ReloadDhcp(_) => {
            if let Some(process) = &mut observed.dhcp.process {
                process.loaded.clone_from(&observed.dhcp.files);
            }
        }
        NetStep::StopDhcp(_) => observed.dhcp.process = None,
        NetStep::DeleteVeth(network) => delete_veth(observed, *network),
        NetStep::DeleteNamespace(network) => {
            delete_veth(observed, *network);
            observed.namespace = NamespaceObserved::Absent;
            left_outside(observed);
        }
        NetStep::DeleteBridge(network) => {
            uplink::without_bridge(observed, &Link::bridge(*network).name());
            observed.bridge = None;
            observed.filter.calls_ip = false;
            observed.members.clear();
            if let Some(veth) = &mut observed.veth_host {
                veth.master = None;
            }
        }
        NetStep::Tc(step) => tc::imagine(&mut observed.tc, step),
        NetStep::RemoveFiles(_) => {
            observed.dhcp.directory = false;
            observed.dhcp.files = None;
            observed.metadata.sources = None;
            if let Some(process) = &mut observed.dhcp.process {
                process.loaded = None;
            }
        }
        NetStep::Metadata(step) => super::metadata::imagine(observed, step),
    }
}

/// The processes are not in the namespace that has the network's name now.
fn left_outside(observed: &mut NetworkObserved) {
    if let Some(process) = &mut observed.dhcp.process {
        process.in_namespace = false;
    }
    if let Some(process) = &mut observed.metadata.process {
        process.in_namespace = false;
    }
}

/// A link of ours as the kernel makes it.
pub(super) fn fresh(link: Link, mtu: u32) -> LinkObserved {
    LinkObserved {
        kind: link.kind().to_owned(),
        alias: None,
        mac: Some(link.mac()),
        mtu,
        up: false,
        master: None,
        unsettled: link.possible_settings().iter().copied().collect(),
        bridge: (link.role == super::Role::Bridge).then_some(BridgeOptions::WANTED),
    }
}

/// The settings of a link that are not so any more once these are.
fn opposites(link: Link, settings: &BTreeSet<LinkSetting>) -> Vec<LinkSetting> {
    let path = |setting: LinkSetting| setting.path(&link.name());
    let set: BTreeSet<String> = settings.iter().copied().map(path).collect();
    link.possible_settings()
        .iter()
        .copied()
        .filter(|setting| !settings.contains(setting) && set.contains(&path(*setting)))
        .collect()
}

fn create_veth(observed: &mut NetworkObserved, network: NetworkId, mtu: u32) {
    let Some(content) = content(observed) else {
        return;
    };
    content.addresses.clear();
    content.veth = Some(fresh(Link::veth_namespace(network), mtu));
    observed.veth_host = Some(fresh(Link::veth_host(network), mtu));
}

fn plug(observed: &mut NetworkObserved, port: BridgePort) {
    match port {
        BridgePort::Veth(network) => {
            let bridge = Link::bridge(network).name();
            change(observed, Link::veth_host(network), |found| {
                found.master = Some(bridge)
            });
        }
        BridgePort::Uplink(link) => uplink::plugged(observed, link),
    }
}

/// Removes what is ours of the pair.
fn delete_veth(observed: &mut NetworkObserved, network: NetworkId) {
    observed
        .veth_host
        .take_if(|found| found.is_own(Link::veth_host(network)));
    if let Some(content) = content(observed) {
        content.veth = None;
        content.addresses.clear();
    }
}

fn content(observed: &mut NetworkObserved) -> Option<&mut NamespaceContent> {
    match &mut observed.namespace {
        NamespaceObserved::Present(content) => Some(content),
        NamespaceObserved::Absent | NamespaceObserved::Empty => None,
    }
}

pub(super) fn change(
    observed: &mut NetworkObserved,
    link: Link,
    change: impl FnOnce(&mut LinkObserved),
) {
    let found = match link.role {
        super::Role::Bridge => observed.bridge.as_mut(),
        super::Role::VethHost => observed.veth_host.as_mut(),
        super::Role::VethNamespace => content(observed).and_then(|content| content.veth.as_mut()),
        super::Role::Vlan => observed.uplink.vlan.as_mut().map(|vlan| &mut vlan.link),
        super::Role::Vxlan => observed.uplink.vxlan.as_mut().map(|vxlan| &mut vxlan.link),
    };
    if let Some(found) = found {
        change(found);
    }
}
