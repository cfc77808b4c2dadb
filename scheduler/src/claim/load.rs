//! Reads the writer's memory from the rows, when a scheduler takes over or doubts what it remembers.

use berth_common::message::view::HostState;
use berth_store::{
    Pool, StoreError, aggregates,
    claims::{self, ClaimRole},
    hosts, instances,
};

use super::{
    cloud::{Cloud, Placed},
    facts,
};
use crate::{
    config::Placement,
    place::{Demand, ResourceClass},
};

/// All hosts, and all that lies on them. Who is alive is not in the rows: nobody is, until it is looked at.
///
/// # Errors
/// When the database is out of reach, or holds what cannot be read.
pub async fn cloud(pool: &Pool, placement: &Placement) -> Result<Cloud, StoreError> {
    let mut cloud = Cloud::new(placement.settings);
    let aggregates = aggregates::all(pool).await?;
    for row in hosts::all(pool).await? {
        cloud.set_host(facts::of_host(
            &row,
            &aggregates,
            HostState::Down,
            placement,
        ));
    }
    cloud.set_aggregates(aggregates);
    let building = instances::building(pool).await?;
    claims::for_each(pool, |claim, group| {
        if claim.role == ClaimRole::Current {
            let placed = Placed {
                host: claim.host_id,
                demand: Demand {
                    resources: claim.resources,
                    countables: claim
                        .extra
                        .into_iter()
                        .map(|(class, amount)| (ResourceClass(class.to_string()), amount))
                        .collect(),
                },
                group,
                building: building.contains(&claim.instance_id),
            };
            cloud.place(claim.instance_id, placed);
        }
    })
    .await?;
    cloud.settle();
    Ok(cloud)
}
