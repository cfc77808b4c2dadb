//! What routers ask of the hosts of ports: a host that has a port in a network has that network's routers, and builds all networks
//! that these join to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use berth_common::ids::NetworkId;
use berth_store::{
    Executor,
    networks::{self as network_rows, NetworkRow},
    routers,
};

use crate::{
    claim::{ClaimError, networks},
    place::{NetworkNeeds, Request, RoutedNetwork},
};

/// The networks that routers join to others, as far as they were asked for: read once for the requests of one batch.
#[derive(Debug, Default)]
pub struct Joined(HashMap<NetworkId, Vec<RoutedNetwork>>);

impl Joined {
    /// Asks a host with ports in some networks for what routers join to them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn demand(
        &mut self,
        db: &impl Executor,
        networks: &[NetworkRow],
        request: &mut Request,
    ) -> Result<(), ClaimError> {
        for network in networks {
            let joined = match self.0.entry(network.id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(joined_to(db, network.id).await?),
            };
            for routed in &*joined {
                let is_asked = |asked: &RoutedNetwork| asked.needs == routed.needs;
                if !request.routed.iter().any(is_asked) {
                    request.routed.push(routed.clone());
                }
            }
        }
        Ok(())
    }
}

/// The networks that routers join to one, as far as they need anything: of those that need the same, one. A router that only leads out
/// by it joins nothing to it, and one that is not up is on no host.
async fn joined_to(
    db: &impl Executor,
    network: NetworkId,
) -> Result<Vec<RoutedNetwork>, ClaimError> {
    let near = routers::inside(db, &BTreeSet::from([network])).await?;
    if near.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = routers::interfaces(db, &near).await?;
    let mut joined = Vec::new();
    for router in routers::of_ids(db, &near).await? {
        let legs = interfaces.get(&router.id).into_iter().flatten();
        let inside: BTreeSet<NetworkId> = legs.map(|leg| leg.network_id).collect();
        if router.admin_state_up {
            let all = inside.into_iter().chain(router.external_network_id);
            joined.extend(
                all.filter(|other| *other != network)
                    .map(|other| (router.name.clone(), other)),
            );
        }
    }
    let ids: BTreeSet<NetworkId> = joined.iter().map(|(_, network)| *network).collect();
    let ids: Vec<NetworkId> = ids.into_iter().collect();
    let rows: BTreeMap<NetworkId, NetworkRow> = network_rows::of_ids(db, &ids)
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    let mut asked: Vec<RoutedNetwork> = Vec::new();
    for (router, network) in joined {
        let Some(row) = rows.get(&network) else {
            continue;
        };
        let mut needs = NetworkNeeds::NONE;
        networks::demand(row, &mut needs);
        // Networks are many, and what they need of a host is one of few things.
        if !needs.is_none() && asked.iter().all(|it| it.needs != needs) {
            asked.push(RoutedNetwork {
                router: router.to_string(),
                network: row.name.to_string(),
                needs,
            });
        }
    }
    Ok(asked)
}
