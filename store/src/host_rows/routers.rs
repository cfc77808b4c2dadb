//! The routers that hosts have: each that has a leg in a network that the host has ports in, with all of its networks, the host's own
//! addresses and the floating IPs of the host's ports.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::ids::{HostId, NetworkId, PortId, RouterId};

use super::HostRows;
use crate::{
    error::StoreError,
    executor::Executor,
    floating_ips::{self, FloatingIpRow},
    networks::{self, NetworkRow},
    reach::{self, Among},
    routers::{self, RouterGatewayRow, RouterInterfaceRow, RouterRow},
};

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

/// Adds these, and those of some networks. A host has a router by all of its ports, also those in networks that nobody asked for.
pub(super) async fn add(
    db: &impl Executor,
    rows: &mut BTreeMap<HostId, HostRows>,
    networks: &BTreeSet<NetworkId>,
    mut ids: BTreeSet<RouterId>,
) -> Result<(), StoreError> {
    ids.extend(routers::of_networks(db, networks).await?);
    if ids.is_empty() {
        return Ok(());
    }
    let all = All::read(db, &ids).await?;
    for (host, rows) in rows {
        all.add_to(*host, rows);
    }
    Ok(())
}

/// Everything of some routers.
struct All {
    routers: Vec<RouterRow>,
    interfaces: BTreeMap<RouterId, Vec<RouterInterfaceRow>>,
    gateways: Vec<RouterGatewayRow>,
    floating_ips: Vec<FloatingIpRow>,
    networks: BTreeMap<NetworkId, NetworkRow>,
    /// Which hosts have ports in which of the networks inside.
    with_ports: BTreeSet<(HostId, NetworkId)>,
}

impl All {
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

    fn add_to(&self, host: HostId, rows: &mut HostRows) {
        let there: BTreeSet<NetworkId> = rows.networks.iter().map(|network| network.id).collect();
        let ports: BTreeSet<PortId> = rows
            .instances
            .iter()
            .flat_map(|(_, ports)| ports)
            .map(|port| port.id)
            .collect();
        let mut wanted = BTreeSet::new();
        for router in &self.routers {
            let interfaces = self.interfaces.get(&router.id);
            let interfaces = interfaces.cloned().unwrap_or_default();
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
                interfaces,
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
