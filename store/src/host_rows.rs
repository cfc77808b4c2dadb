//! All rows that one host's documents are derived from, in four queries however many there are.

use std::collections::HashMap;

use berth_common::ids::HostId;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
    sea_query::SelectStatement,
};

use crate::{
    claims::ClaimRole,
    entity::{claim, instance, network, port},
    error::StoreError,
    executor::Executor,
    instances::{self, InstanceRow},
    networks::{self, NetworkRow},
    ports::{self, PortRow},
};

/// What a host shall carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostRows {
    /// The instances that have their current claim on the host and are not gone yet, with their ports by position.
    pub instances: Vec<(InstanceRow, Vec<PortRow>)>,
    /// The networks of these ports.
    pub networks: Vec<NetworkRow>,
}

/// The instances of a host: those with a current claim there that are not gone.
fn instances_of(host: HostId) -> Condition {
    let claimed = claim::Entity::find()
        .select_only()
        .column(claim::Column::InstanceId)
        .filter(claim::Column::HostId.eq(host.to_string()))
        .filter(claim::Column::Role.eq(ClaimRole::Current.as_str()))
        .into_query();
    Condition::all()
        .add(instance::Column::DeletedAt.is_null())
        .add(instance::Column::Id.in_subquery(claimed))
}

/// The ports of these instances.
fn ports_of(host: HostId) -> Condition {
    let ids: SelectStatement = instance::Entity::find()
        .select_only()
        .column(instance::Column::Id)
        .filter(instances_of(host))
        .into_query();
    Condition::all().add(port::Column::InstanceId.in_subquery(ids))
}

/// The networks of these ports.
fn networks_of(host: HostId) -> Condition {
    let ids: SelectStatement = port::Entity::find()
        .select_only()
        .column(port::Column::NetworkId)
        .filter(ports_of(host))
        .into_query();
    Condition::all().add(network::Column::Id.in_subquery(ids))
}

/// Reads them. Give it a transaction if another writer may be at work.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_host(db: &impl Executor, host: HostId) -> Result<HostRows, StoreError> {
    let instances = instances::load(db, instances_of(host), None).await?;
    let ports = ports::load(db, ports_of(host)).await?;
    let networks = networks::load(db, networks_of(host)).await?;
    let mut by_instance: HashMap<_, Vec<PortRow>> = HashMap::new();
    for port in ports {
        by_instance.entry(port.instance_id).or_default().push(port);
    }
    let instances = instances
        .into_iter()
        .map(|instance| {
            let ports = by_instance.remove(&instance.id).unwrap_or_default();
            (instance, ports)
        })
        .collect();
    Ok(HostRows {
        instances,
        networks,
    })
}
