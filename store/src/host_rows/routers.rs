//! The routers that hosts have: each that has a leg in a network that the host has ports in, with all of its networks, the host's own
//! addresses and the floating IPs of the host's ports.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{HostId, NetworkId, PortId, RouterId},
    names::Cidr,
};

use super::HostRows;
use crate::{
    error::StoreError,
    executor::Executor,
    floating_ips::{self, FloatingIpRow},
    networks::{self, NetworkRow},
    routers::{self, RouterGatewayRow, RouterInterfaceRow, RouterRow},
};

impl HostRows {
    /// The networks that the host's routers join to one of these, each with the addresses that lead there: those of the subnets that
    /// the routers are in. Others of that network may be somebody else's here.
    pub fn joined_to(&self, network: NetworkId) -> BTreeMap<NetworkId, Vec<Cidr>> {
        let mut joined: BTreeMap<NetworkId, Vec<Cidr>> = BTreeMap::new();
        for of in &self.routers {
            if !of.interfaces.iter().any(|leg| leg.network_id == network) {
                continue;
            }
            for leg in of.interfaces.iter().filter(|leg| leg.network_id != network) {
                let there = self.networks.iter().find(|row| row.id == leg.network_id);
                let mut subnets = there.into_iter().flat_map(|row| &row.subnets);
                let subnet = subnets.find(|subnet| subnet.id == leg.subnet_id);
                let cidrs = joined.entry(leg.network_id).or_default();
                cidrs.extend(subnet.map(|subnet| subnet.cidr));
            }
        }
        joined
    }
}

/// A router on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRouter {
    /// The router.
    pub router: RouterRow,
    /// Its legs.
    pub interfaces: Vec<RouterInterfaceRow>,
    /// The addresses that the host has for it.
    pub gateways: Vec<RouterGatewayRow>,
    /// The floating IPs of the host's ports.
    pub floating_ips: Vec<FloatingIpRow>,
}

/// The routers that some hosts have with a leg in some of their networks, and that are up.
#[derive(Default)]
pub(super) struct Routers {
    routers: Vec<RouterRow>,
    interfaces: BTreeMap<RouterId, Vec<RouterInterfaceRow>>,
    gateways: Vec<RouterGatewayRow>,
    floating_ips: Vec<FloatingIpRow>,
    networks: BTreeMap<NetworkId, NetworkRow>,
    /// Which hosts have which of them.
    on_hosts: BTreeSet<(HostId, RouterId)>,
    /// Which hosts have a network because a router leads out to it.
    led_to: BTreeSet<(HostId, NetworkId)>,
}

impl Routers {
    /// Reads those with a leg in these networks, on the hosts beside these, and of those asked for what the hosts have for them. How
    /// many others lead to the same networks, and how many other hosts have them, does not matter.
    pub(super) async fn of(
        db: &impl Executor,
        places: &BTreeSet<(HostId, NetworkId)>,
        is_asked: impl Fn(HostId, RouterId) -> bool,
    ) -> Result<Self, StoreError> {
        let on_hosts = routers::on_hosts(db, places).await?;
        let led_to = routers::led_to(db, places).await?;
        if on_hosts.is_empty() && led_to.is_empty() {
            return Ok(Self::default());
        }
        let ids = on_hosts.iter().map(|(_, router)| *router).collect();
        let mut routers = routers::of_ids(db, &ids).await?;
        routers.retain(|router| router.admin_state_up);
        let interfaces = routers::interfaces(db, &ids).await?;
        let inside = interfaces.values().flatten().map(|leg| leg.network_id);
        let outside = routers
            .iter()
            .filter_map(|router| router.external_network_id);
        let led = led_to.iter().map(|(_, network)| *network);
        let networks: BTreeSet<NetworkId> = inside.chain(outside).chain(led).collect();
        let networks: Vec<NetworkId> = networks.into_iter().collect();
        let networks = networks::of_ids(db, &networks).await?;
        let asked = on_hosts
            .iter()
            .filter(|(host, router)| is_asked(*host, *router));
        let asked: BTreeSet<(HostId, RouterId)> = asked.copied().collect();
        Ok(Self {
            routers,
            interfaces,
            gateways: routers::gateways_on(db, &asked).await?,
            floating_ips: floating_ips::on_hosts(db, &asked).await?,
            networks: networks
                .into_iter()
                .map(|network| (network.id, network))
                .collect(),
            on_hosts,
            led_to,
        })
    }

    /// Some networks, and those that the routers of a host join to them.
    pub(super) fn with_joined(
        &self,
        host: HostId,
        networks: &BTreeSet<NetworkId>,
    ) -> BTreeSet<NetworkId> {
        let mut all = networks.clone();
        for legs in self.of_host(host).map(|router| self.legs(router)) {
            let inside = legs.iter().map(|leg| leg.network_id);
            if inside.clone().any(|network| networks.contains(&network)) {
                all.extend(inside);
            }
        }
        all
    }

    fn of_host(&self, host: HostId) -> impl Iterator<Item = &RouterRow> {
        let has = move |router: &&RouterRow| self.on_hosts.contains(&(host, router.id));
        self.routers.iter().filter(has)
    }

    fn legs(&self, router: &RouterRow) -> &[RouterInterfaceRow] {
        let legs = self.interfaces.get(&router.id).map(Vec::as_slice);
        legs.unwrap_or_default()
    }

    /// Adds those that a host has.
    pub(super) fn add_to(&self, host: HostId, rows: &mut HostRows) {
        let there: BTreeSet<NetworkId> = rows.networks.iter().map(|network| network.id).collect();
        let ports: BTreeSet<PortId> = rows
            .instances
            .iter()
            .flat_map(|(_, ports)| ports)
            .map(|port| port.id)
            .collect();
        let led_to = self.led_to.iter().filter(|(of, _)| *of == host);
        let mut wanted: BTreeSet<NetworkId> = led_to.map(|(_, network)| *network).collect();
        for router in self.of_host(host) {
            let interfaces = self.legs(router);
            wanted.extend(interfaces.iter().map(|leg| leg.network_id));
            wanted.extend(router.external_network_id);
            let is_here = |of: &&RouterGatewayRow| of.router_id == router.id && of.host_id == host;
            let floats = |of: &&FloatingIpRow| {
                of.association
                    .is_some_and(|it| it.router_id == router.id && ports.contains(&it.port_id))
            };
            rows.routers.push(HostRouter {
                router: router.clone(),
                interfaces: interfaces.to_vec(),
                gateways: self.gateways.iter().filter(is_here).cloned().collect(),
                floating_ips: self.floating_ips.iter().filter(floats).cloned().collect(),
            });
        }
        let more = wanted.difference(&there);
        rows.networks
            .extend(more.filter_map(|id| self.networks.get(id)).cloned());
        rows.networks
            .sort_by_key(|network| (network.created_at, network.id));
    }
}
