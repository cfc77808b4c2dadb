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
    reach::{self, Among},
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

/// Some routers that are up, with everything of them.
#[derive(Default)]
pub(super) struct Routers {
    routers: Vec<RouterRow>,
    interfaces: BTreeMap<RouterId, Vec<RouterInterfaceRow>>,
    gateways: Vec<RouterGatewayRow>,
    floating_ips: Vec<FloatingIpRow>,
    networks: BTreeMap<NetworkId, NetworkRow>,
    /// Which hosts have ports in which of the networks inside.
    with_ports: BTreeSet<(HostId, NetworkId)>,
}

impl Routers {
    /// Reads these, and those of some networks.
    pub(super) async fn of(
        db: &impl Executor,
        networks: &BTreeSet<NetworkId>,
        mut ids: BTreeSet<RouterId>,
    ) -> Result<Self, StoreError> {
        ids.extend(routers::of_networks(db, networks).await?);
        if ids.is_empty() {
            return Ok(Self::default());
        }
        Self::read(db, &ids).await
    }

    /// Some networks, and those that these routers join to them.
    pub(super) fn with_joined(&self, networks: &BTreeSet<NetworkId>) -> BTreeSet<NetworkId> {
        let mut all = networks.clone();
        for legs in self.routers.iter().map(|router| self.legs(router)) {
            let inside = legs.iter().map(|leg| leg.network_id);
            if inside.clone().any(|network| networks.contains(&network)) {
                all.extend(inside);
            }
        }
        all
    }

    fn legs(&self, router: &RouterRow) -> &[RouterInterfaceRow] {
        let legs = self.interfaces.get(&router.id).map(Vec::as_slice);
        legs.unwrap_or_default()
    }

    async fn read(db: &impl Executor, ids: &BTreeSet<RouterId>) -> Result<Self, StoreError> {
        let mut routers = routers::of_ids(db, ids).await?;
        routers.retain(|router| router.admin_state_up);
        let interfaces = routers::interfaces(db, ids).await?;
        let inside: BTreeSet<NetworkId> = interfaces
            .values()
            .flatten()
            .map(|leg| leg.network_id)
            .collect();
        let with_ports = reach::hosts_of(db, &inside, Among::All).await?;
        let outside = routers
            .iter()
            .filter_map(|router| router.external_network_id);
        let networks: BTreeSet<NetworkId> = inside.into_iter().chain(outside).collect();
        let networks: Vec<NetworkId> = networks.into_iter().collect();
        let networks = networks::of_ids(db, &networks).await?;
        Ok(Self {
            routers,
            interfaces,
            gateways: routers::gateways(db, ids).await?,
            floating_ips: floating_ips::of_routers(db, ids).await?,
            networks: networks
                .into_iter()
                .map(|network| (network.id, network))
                .collect(),
            with_ports,
        })
    }

    /// Adds those that a host has: by all of its ports, also those in networks that nobody asked for.
    pub(super) fn add_to(&self, host: HostId, rows: &mut HostRows) {
        let there: BTreeSet<NetworkId> = rows.networks.iter().map(|network| network.id).collect();
        let ports: BTreeSet<PortId> = rows
            .instances
            .iter()
            .flat_map(|(_, ports)| ports)
            .map(|port| port.id)
            .collect();
        let mut wanted = BTreeSet::new();
        for router in &self.routers {
            let interfaces = self.legs(router);
            if !interfaces
                .iter()
                .any(|leg| self.with_ports.contains(&(host, leg.network_id)))
            {
                continue;
            }
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
