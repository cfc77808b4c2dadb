//! What routers ask of the hosts of ports: a host that has a port in a network has that network's routers, and builds all networks
//! that these join to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use berth_common::{document::NetworkType, ids::NetworkId};
use berth_store::{
    Executor,
    networks::{self as network_rows, NetworkRow},
    routers,
};

use crate::{
    claim::{
        ClaimError,
        cloud::Cloud,
        nat::{self, Asked},
        networks,
    },
    place::{NetworkNeeds, Request, RoutedNetwork},
};

/// The networks that routers join to others, as far as they were asked for: read once for the requests of one batch.
#[derive(Debug, Default)]
pub struct Joined(HashMap<NetworkId, JoinedTo>);

/// What routers join to one network.
#[derive(Debug, Default)]
struct JoinedTo {
    /// What needs anything that not every host has.
    asked: Vec<RoutedNetwork>,
    /// What is of type `nat`, each with the router.
    nat: Vec<(String, NetworkRow)>,
}

impl Joined {
    /// Asks a host with ports in some networks for what routers join to them, and that those of type `nat` among all of these meet
    /// nobody's addresses there. Answers which those are.
    ///
    /// # Errors
    /// A refusal if no host can have all of them, or a failure of the database.
    pub async fn demand(
        &mut self,
        db: &impl Executor,
        cloud: &Cloud,
        networks: &[NetworkRow],
        request: &mut Request,
    ) -> Result<Vec<NetworkRow>, ClaimError> {
        for network in networks {
            let joined = match self.0.entry(network.id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(joined_to(db, network.id).await?),
            };
            for routed in &joined.asked {
                let is_asked = |asked: &RoutedNetwork| asked.needs == routed.needs;
                if !request.routed.iter().any(is_asked) {
                    request.routed.push(routed.clone());
                }
            }
        }
        let own = networks.iter().map(|network| Asked {
            network,
            router: None,
        });
        let joined = networks.iter().filter_map(|of| self.0.get(&of.id));
        let joined = joined.flat_map(|joined| &joined.nat);
        let joined = joined.map(|(router, network)| Asked {
            network,
            router: Some(router),
        });
        let asked: Vec<Asked<'_>> = own
            .chain(joined)
            .filter(|asked| asked.network.network_type == NetworkType::Nat)
            .collect();
        nat::demand(cloud.nats(), &asked, request)?;
        Ok(asked.iter().map(|asked| asked.network.clone()).collect())
    }
}

/// The networks that routers join to one, as far as they need anything: of those that need the same, one. A router that only leads out
/// by it joins nothing to it, and one that is not up is on no host.
async fn joined_to(db: &impl Executor, network: NetworkId) -> Result<JoinedTo, ClaimError> {
    let near = routers::inside(db, &BTreeSet::from([network])).await?;
    if near.is_empty() {
        return Ok(JoinedTo::default());
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
    let JoinedTo { mut asked, mut nat } = JoinedTo::default();
    for (router, network) in joined {
        let Some(row) = rows.get(&network) else {
            continue;
        };
        if row.network_type == NetworkType::Nat {
            nat.push((router.to_string(), row.clone()));
        }
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
    Ok(JoinedTo { asked, nat })
}
