//! Reads the writer's memory from the rows, when a scheduler takes over or doubts what it remembers.

use std::collections::{BTreeSet, HashMap};

use berth_common::{
    document::NetworkType,
    ids::{NetworkId, ServerGroupId},
    message::view::HostState,
};
use berth_store::{
    Executor, StoreError, aggregates,
    claims::{self, ClaimRole, ClaimRow, GroupedClaim},
    documents, hosts,
    networks::{self, NetworkRow},
    snapshots, volumes,
};

use super::{
    cloud::{Cloud, Placed, PlacedVolume},
    facts,
};
use crate::{
    config::Placement,
    place::{Demand, ResourceClass},
};

/// Claims, volumes or snapshots read at once.
const PAGE: u32 = 4096;

/// All hosts, and all that lies on them. Who is alive is not in the rows: nobody is, until it is looked at.
///
/// # Errors
/// When the database is out of reach, or holds what cannot be read.
pub async fn cloud(db: &impl Executor, placement: &Placement) -> Result<Cloud, StoreError> {
    let mut cloud = Cloud::new(placement.settings);
    let aggregates = aggregates::all(db).await?;
    for row in hosts::all(db).await? {
        cloud.set_host(facts::of_host(
            &row,
            &aggregates,
            HostState::Down,
            placement,
        ));
    }
    cloud.set_aggregates(aggregates);
    let mut after = None;
    loop {
        let page = claims::page_with_groups(db, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.claim.key());
        for GroupedClaim {
            claim,
            server_group_id,
            is_building,
        } in page
        {
            if claim.role == ClaimRole::Current {
                let placed = placed(&claim, server_group_id, is_building);
                cloud.place(claim.instance_id, placed);
            }
        }
        // Nothing to take back, and the notes of a hundred thousand would take memory.
        cloud.settle();
    }
    place_volumes(db, &mut cloud).await?;
    place_snapshots(db, &mut cloud).await?;
    hold_nats(db, &mut cloud).await?;
    cloud.settle();
    Ok(cloud)
}

/// The hosts that have `nat` networks.
async fn hold_nats(db: &impl Executor, cloud: &mut Cloud) -> Result<(), StoreError> {
    let places = documents::places_of_networks(db, NetworkType::Nat).await?;
    let ids: BTreeSet<NetworkId> = places.iter().map(|(_, network)| *network).collect();
    let ids: Vec<NetworkId> = ids.into_iter().collect();
    let rows: HashMap<NetworkId, NetworkRow> = networks::of_ids(db, &ids)
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    for (host, network) in places {
        if let Some(row) = rows.get(&network) {
            cloud.hold_nat(host, row);
        }
    }
    Ok(())
}

/// The volumes that have a host.
async fn place_volumes(db: &impl Executor, cloud: &mut Cloud) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = volumes::page_of_claims(db, after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.volume_id);
        for claim in page {
            let placed = PlacedVolume {
                host: claim.host_id,
                pool: claim.pool,
                size_gb: claim.size_gb,
            };
            cloud.place_volume(claim.volume_id, placed);
        }
        cloud.settle();
    }
}

/// The snapshots that have a host.
async fn place_snapshots(db: &impl Executor, cloud: &mut Cloud) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = snapshots::page_of_claims(db, after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.snapshot_id);
        for claim in page {
            let placed = PlacedVolume {
                host: claim.host_id,
                pool: claim.pool,
                size_gb: claim.size_gb,
            };
            cloud.place_snapshot(claim.snapshot_id, placed);
        }
        cloud.settle();
    }
}

fn placed(claim: &ClaimRow, group: Option<ServerGroupId>, building: bool) -> Placed {
    Placed {
        host: claim.host_id,
        demand: Demand {
            resources: claim.resources,
            countables: claim
                .extra
                .iter()
                .map(|(class, amount)| (ResourceClass(class.to_string()), *amount))
                .collect(),
        },
        group,
        building,
    }
}
