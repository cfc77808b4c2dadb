//! The plan for one network on this host: its document × what is there → ordered steps.
//!
//! ```text
//!            host                                 namespace berth-<id>
//!   tap ─┐
//!   tap ─┼─ bridge ── veth (host end) ═══════════ veth (namespace end): dhcp_ip, dnsmasq, berth-metadata
//!   tap ─┘
//! ```
//!
//! What is missing is made, what is wrong is mended in place; taps in the bridge are never touched, and a tap of
//! one of the network's ports that fell out of it (its bridge was deleted and made anew) is put back. A link that
//! has a name of ours but is not ours is refused and left alone. A network is not as its document says before the taps of ports
//! that it no longer has are gone, although it is ready for those that it has. A tombstone takes everything down, but not before
//! all instances have left the bridge.

mod herald;
mod imagine;
mod link;
mod metadata;
mod observed;
mod step;
pub mod tc;
pub mod uplink;

use std::{collections::BTreeSet, fmt, net::IpAddr};

use berth_common::{
    document::{Desired, NetworkPort, NetworkSpec, SubnetSpec},
    ids::{HostId, NetworkId, PortId},
    message::report::{Fault, FaultCode},
};
use ipnet::IpNet;

pub use herald::{Herald, herald};
pub use imagine::imagine;
pub use link::{BridgeUse, Link, LinkSetting, Role};
pub use metadata::{MetadataObserved, MetadataProcess, MetadataStep};
pub use observed::{
    BridgeOptions, DhcpObserved, DhcpProcess, LinkObserved, NamespaceContent, NamespaceObserved,
    NetworkObserved, Owner,
};
pub use step::{BridgePort, NetPlan, NetStep, NetThen, NetWait, OnError};

use self::uplink::Uplink;
use super::{
    dhcp::{self, DhcpFiles},
    filter::{self, FilterStep, Reach, Rendered, Stateful},
    metadata as guests_metadata, names,
};

/// The smallest MTU: what every IPv4 host can take in one piece (RFC 791), and a DHCP message needs (RFC 2131).
pub(super) const MTU_MIN: u16 = 576;

/// The plan for a network.
#[must_use]
pub fn plan(desired: &Desired<NetworkId, NetworkSpec>, observed: &NetworkObserved) -> NetPlan {
    plan_again(desired, observed, &mut Rendered::default())
}

/// The same, with what was kept of the network's last plan.
#[must_use]
pub fn plan_again(
    desired: &Desired<NetworkId, NetworkSpec>,
    observed: &NetworkObserved,
    rendered: &mut Rendered,
) -> NetPlan {
    match &desired.spec {
        None => remove(desired.id, observed),
        Some(spec) => {
            let uplink = impossible(spec)
                .or_else(|| impossible_here(spec, observed))
                .or_else(|| filter::impossible(spec, &observed.filter))
                .map_or_else(|| uplink::wanted(desired.id, spec, observed), Result::Err);
            let foreign = foreign(desired.id, uplink.as_ref().ok(), observed);
            match foreign.map_or(uplink, Result::Err) {
                Err(fault) => refused(fault),
                Ok(uplink) => converge(desired, spec, &uplink, observed, rendered),
            }
        }
    }
}

fn refused(fault: Fault) -> NetPlan {
    NetPlan {
        steps: Vec::new(),
        then: NetThen::Refused(fault),
        on_error: OnError::Stop,
    }
}

/// A link that has a name of ours but is not ours.
fn foreign(
    network: NetworkId,
    uplink: Option<&Uplink>,
    observed: &NetworkObserved,
) -> Option<Fault> {
    let links = [
        Link::bridge(network),
        Link::veth_host(network),
        Link::veth_namespace(network),
    ];
    let uplink = uplink.and_then(|uplink| uplink.link(network));
    links.into_iter().chain(uplink).find_map(|link| {
        let found = observed.link(link).filter(|found| !found.is_own(link))?;
        let alias = found.alias.as_deref();
        Some(not_ours(&link, &found.kind, alias, "network"))
    })
}

/// That a link has a name of ours but is not ours.
pub(super) fn not_ours(
    link: &impl fmt::Display,
    kind: &str,
    alias: Option<&str>,
    whose: &str,
) -> Fault {
    let kind = if kind.is_empty() { "hardware" } else { kind };
    let alias = alias.unwrap_or_default();
    Fault {
        code: FaultCode::ForeignObject,
        message: format!(
            "link {link} on the host ({kind}, alias {alias:?}) is not this {whose}'s; it was left alone"
        ),
    }
}

/// A document that no host can carry out.
fn impossible(spec: &NetworkSpec) -> Option<Fault> {
    let fault = |message: String| {
        Some(Fault {
            code: FaultCode::Network,
            message,
        })
    };
    if spec.mtu < MTU_MIN {
        return fault(format!(
            "an MTU of {} is too small: at least {MTU_MIN} is needed",
            spec.mtu
        ));
    }
    if let Some((cidr, address)) = spec.subnets.iter().find_map(|subnet| {
        let address = subnet.dhcp_ip?;
        (!subnet.cidr.is_host_address(address)).then_some((subnet.cidr, address))
    }) {
        return fault(format!(
            "the DHCP server's address {address} is not one of subnet {cidr}"
        ));
    }
    if let Some(message) = spec.subnets.iter().find_map(unadvertisable) {
        return fault(message);
    }
    let mut taken: BTreeSet<IpAddr> = spec
        .subnets
        .iter()
        .filter_map(|subnet| subnet.dhcp_ip)
        .collect();
    for port in &spec.ports {
        for fixed in &port.fixed_ips {
            let Some(subnet) = spec
                .subnets
                .iter()
                .find(|subnet| subnet.id == fixed.subnet_id)
            else {
                return fault(format!(
                    "port {} has an address of subnet {}, which is unknown",
                    port.id, fixed.subnet_id
                ));
            };
            if !subnet.cidr.is_host_address(fixed.ip_address) {
                return fault(format!(
                    "address {} of port {} is not one of subnet {}",
                    fixed.ip_address, port.id, subnet.cidr
                ));
            }
            if !taken.insert(fixed.ip_address) {
                return fault(format!(
                    "address {} of port {} is in use twice",
                    fixed.ip_address, port.id
                ));
            }
        }
    }
    None
}

/// A document that another kernel could carry out.
fn impossible_here(spec: &NetworkSpec, observed: &NetworkObserved) -> Option<Fault> {
    let mut served = dhcp::served(spec);
    let subnet = served.find(|(subnet, _)| observed.lacks_ipv6 && subnet.cidr.is_ipv6());
    subnet.map(|(subnet, _)| Fault {
        code: FaultCode::Unsupported,
        message: format!(
            "this host's kernel has no IPv6, and subnet {} is of IPv6 and has a DHCP server (is ipv6.disable=1 on its command line?)",
            subnet.cidr
        ),
    })
}

/// What is wrong with a subnet that guests cannot be told of as it says.
fn unadvertisable(subnet: &SubnetSpec) -> Option<String> {
    subnet.dhcp_ip?;
    subnet.ipv6_address_mode?.mistake(subnet.cidr)
}

/// Plans a step at a time, from what the steps before lead to.
struct Planner {
    network: NetworkId,
    bridge_use: BridgeUse,
    now: NetworkObserved,
    steps: Vec<NetStep>,
}

impl Planner {
    fn new(network: NetworkId, observed: &NetworkObserved) -> Self {
        Self {
            network,
            bridge_use: BridgeUse::Switch,
            now: observed.clone(),
            steps: Vec::new(),
        }
    }

    fn step(&mut self, step: NetStep) {
        imagine(&mut self.now, &step);
        self.steps.push(step);
    }

    /// Sets what guests may send and receive, before there is a way for their packets.
    fn filter(&mut self, spec: &NetworkSpec, reach: &Reach, host: HostId, rendered: &mut Rendered) {
        let found = &self.now.filter;
        let step = filter::towards(self.network, spec, reach, host, found, rendered);
        // What it leads to is not imagined: no later step depends on it, and of many ports it would be much.
        let portions = step.into_iter().flat_map(FilterStep::portions);
        self.steps.extend(portions.map(NetStep::Filter));
    }

    /// Has the IP stack see the bridge's packets, where the bridge cannot track connections itself.
    fn call_ip(&mut self) {
        let needed = self.now.filter.stateful == Stateful::BrNetfilter;
        if needed && !self.now.filter.calls_ip {
            self.step(NetStep::Filter(FilterStep::CallIp(self.network)));
        }
    }

    /// Makes or mends the bridge.
    fn bridge(&mut self, mtu: u32) {
        if self.now.bridge.is_none() {
            self.step(NetStep::CreateBridge {
                network: self.network,
                mtu,
            });
        }
        self.call_ip();
        self.shape(Link::bridge(self.network), mtu);
        self.switch_on(Link::bridge(self.network));
    }

    /// Puts the taps of running guests back into the bridge. A port without a tap has no running guest here.
    fn taps(&mut self, ports: &[NetworkPort]) {
        let is_stray = |port: &PortId| self.now.stray_taps.contains(&names::tap(*port));
        let ports = ports.iter().map(|port| port.id);
        let stray: Vec<PortId> = ports.filter(is_stray).collect();
        for ports in stray.chunks(NetStep::TAPS_AT_ONCE) {
            self.step(NetStep::PlugTaps {
                network: self.network,
                ports: ports.iter().copied().collect(),
            });
        }
    }

    /// Makes or mends the namespace, and the veth pair from the bridge into it.
    fn namespace(&mut self, mtu: u32, addresses: &BTreeSet<IpNet>) {
        let network = self.network;
        if self.now.content().is_none() {
            self.step(NetStep::CreateNamespace(network));
        }
        if self
            .now
            .content()
            .is_some_and(|content| !content.loopback_up)
        {
            self.step(NetStep::LoopbackUp(network));
        }
        let ends = [Link::veth_host(network), Link::veth_namespace(network)];
        match ends.map(|end| self.now.link(end).is_some()) {
            [true, true] => {}
            [false, false] => self.step(NetStep::CreateVeth { network, mtu }),
            [true, false] | [false, true] => {
                self.step(NetStep::DeleteVeth(network));
                self.step(NetStep::CreateVeth { network, mtu });
            }
        }
        ends.into_iter().for_each(|end| self.shape(end, mtu));
        self.addresses(addresses);
        ends.into_iter().for_each(|end| self.switch_on(end));
    }

    fn addresses(&mut self, wanted: &BTreeSet<IpNet>) {
        let network = self.network;
        let found = self
            .now
            .content()
            .map(|content| content.addresses.clone())
            .unwrap_or_default();
        let remove: BTreeSet<IpNet> = found.difference(wanted).copied().collect();
        let can_have = |address: &IpNet| !(self.now.lacks_ipv6 && address.addr().is_ipv6());
        let add = wanted.difference(&found).copied().filter(can_have);
        let add: BTreeSet<IpNet> = add.collect();
        if !(remove.is_empty() && add.is_empty()) {
            self.step(NetStep::ChangeAddresses {
                network,
                remove,
                add,
            });
        }
    }

    fn switch_on(&mut self, link: Link) {
        if self.now.link(link).is_some_and(|found| !found.up) {
            self.step(NetStep::SetUp(link));
        }
    }

    /// The settings a link shall have.
    fn settings(&self, link: Link) -> &'static [LinkSetting] {
        match link.role {
            Role::Bridge => self.bridge_use.settings(),
            Role::VethHost | Role::VethNamespace | Role::Vlan | Role::Vxlan => link.settings(),
        }
    }

    /// Makes a link that is there as it shall be, but for switching it on.
    fn shape(&mut self, link: Link, mtu: u32) {
        let Some(found) = self.now.link(link).cloned() else {
            return;
        };
        if found.owner(link) == Owner::Unmarked {
            self.step(NetStep::Mark(link));
        }
        if link.role == Role::Bridge && found.bridge != Some(BridgeOptions::WANTED) {
            self.step(NetStep::SetBridgeOptions(self.network));
        }
        let wanted = self.settings(link).iter().copied();
        let settings: BTreeSet<LinkSetting> = wanted
            .filter(|setting| found.unsettled.contains(setting))
            .collect();
        if !settings.is_empty() {
            self.step(NetStep::Settle { link, settings });
        }
        if found.mtu != mtu {
            self.step(NetStep::SetMtu { link, mtu });
        }
        if link.role == Role::VethHost && found.master != Some(Link::bridge(self.network).name()) {
            self.step(NetStep::Plug(BridgePort::Veth(self.network)));
        }
    }

    /// Writes what DHCP reads, and stops a server that has to start afresh.
    fn prepare_dhcp(&mut self, wanted: &DhcpFiles) {
        let network = self.network;
        if self.now.dhcp.files.as_ref() != Some(wanted) {
            self.step(NetStep::WriteDhcp {
                network,
                files: wanted.clone(),
            });
        }
        let Some(process) = &self.now.dhcp.process else {
            return;
        };
        let link_stays = [Link::veth_host(network), Link::veth_namespace(network)]
            .into_iter()
            .all(|end| self.now.link(end).is_some());
        let can_go_on = process.loaded.as_ref().is_some_and(|loaded| {
            loaded.config == wanted.config && dhcp::only_adds(&loaded.hosts, &wanted.hosts)
        });
        if !(can_go_on && process.in_namespace && link_stays) {
            self.step(NetStep::StopDhcp(network));
        }
    }

    /// Starts DHCP, or tells a running server of its new hosts.
    fn run_dhcp(&mut self, wanted: &DhcpFiles) {
        match &self.now.dhcp.process {
            None => self.step(NetStep::StartDhcp(self.network)),
            Some(process) if process.loaded.as_ref() == Some(wanted) => {}
            Some(_) => self.step(NetStep::ReloadDhcp(self.network)),
        }
    }

    /// Takes down DHCP and metadata with their namespace, and what is ours of the veth pair.
    fn drop_namespace(&mut self) {
        let network = self.network;
        self.stop_metadata();
        if self.now.dhcp.process.is_some() {
            self.step(NetStep::StopDhcp(network));
        }
        let ends = [Link::veth_host(network), Link::veth_namespace(network)];
        if ends
            .into_iter()
            .any(|end| self.now.link(end).is_some_and(|found| found.is_own(end)))
        {
            self.step(NetStep::DeleteVeth(network));
        }
        if self.now.namespace != NamespaceObserved::Absent {
            self.step(NetStep::DeleteNamespace(network));
        }
    }

    fn remove_files(&mut self) {
        let files = self.now.dhcp.files.is_some() || self.now.metadata.sources.is_some();
        if self.now.dhcp.directory || files {
            self.step(NetStep::RemoveFiles(self.network));
        }
    }
}

fn converge(
    desired: &Desired<NetworkId, NetworkSpec>,
    spec: &NetworkSpec,
    uplink: &Uplink,
    observed: &NetworkObserved,
    rendered: &mut Rendered,
) -> NetPlan {
    let network = desired.id;
    let mtu = u32::from(spec.mtu);
    let mut planner = Planner::new(network, observed);
    planner.drop_uplinks(uplink);
    planner.bridge_use = uplink.bridge_use(&planner.now);
    let reach = uplink.reach(network);
    planner.filter(spec, &reach, desired.host_id, rendered);
    if dhcp::served(spec).next().is_none() {
        planner.drop_namespace();
        planner.remove_files();
        planner.bridge(mtu);
        planner.taps(&spec.ports);
        planner.uplink(uplink, mtu);
    } else {
        let wanted = dhcp::files(network, spec);
        planner.prepare_dhcp(&wanted);
        planner.prepare_metadata(guests_metadata::sources_text(spec));
        planner.bridge(mtu);
        planner.taps(&spec.ports);
        planner.namespace(mtu, &addresses(&spec.subnets));
        planner.uplink(uplink, mtu);
        planner.run_dhcp(&wanted);
        planner.run_metadata();
    }
    let (steps, complaints) = tc::plan(network, &spec.ports, mtu, &planner.now);
    steps.into_iter().for_each(|step| planner.step(step));
    let leaving = leaving(&spec.ports, observed);
    let then = match complaints.fault() {
        Some(fault) => NetThen::Flawed(fault),
        None if !leaving.is_empty() => NetThen::Wait(NetWait::Members(leaving)),
        None if !complaints.absent.is_empty() => NetThen::Wait(NetWait::Mirrors(complaints.absent)),
        None => NetThen::Converged,
    };
    NetPlan {
        steps: planner.steps,
        then,
        on_error: OnError::Stop,
    }
}

/// The taps of ports that are no longer the network's: their guests have them still. Everything is built, but a port is not gone
/// before its tap is.
fn leaving(ports: &[NetworkPort], observed: &NetworkObserved) -> BTreeSet<String> {
    let wanted: BTreeSet<String> = ports.iter().map(|port| names::tap(port.id)).collect();
    let members = observed.members.iter();
    members
        .filter(|name| names::is_tap(name) && !wanted.contains(*name))
        .cloned()
        .collect()
}

fn remove(network: NetworkId, observed: &NetworkObserved) -> NetPlan {
    let bridge = Link::bridge(network);
    let own_bridge = observed
        .bridge
        .as_ref()
        .is_some_and(|found| found.is_own(bridge));
    if own_bridge && !observed.members.is_empty() {
        let wait = NetWait::Members(observed.members.clone());
        return NetPlan {
            steps: Vec::new(),
            then: NetThen::Wait(wait),
            on_error: OnError::Stop,
        };
    }
    if let Some(fault) = uplink::stranded(network, observed) {
        return refused(fault);
    }
    let mut planner = Planner::new(network, observed);
    for step in tc::remove(network, observed) {
        planner.step(step);
    }
    planner.drop_namespace();
    planner.drop_uplinks(&Uplink::None);
    // The host's addresses are back where they belong before their bridge goes.
    let on_error = if observed.uplink.addresses.is_empty() {
        OnError::CarryOn
    } else {
        OnError::Stop
    };
    if own_bridge {
        planner.step(NetStep::DeleteBridge(network));
    }
    planner.remove_files();
    if let Some(step) = filter::away(network, &planner.now.filter) {
        planner.step(NetStep::Filter(step));
    }
    NetPlan {
        steps: planner.steps,
        then: NetThen::Gone,
        on_error,
    }
}

/// The addresses of the DHCP server and the metadata service.
fn addresses(subnets: &[SubnetSpec]) -> BTreeSet<IpNet> {
    subnets
        .iter()
        .filter_map(|subnet| IpNet::new(subnet.dhcp_ip?, subnet.cidr.net().prefix_len()).ok())
        .chain(guests_metadata::addresses())
        .collect()
}

#[cfg(test)]
mod tests;
