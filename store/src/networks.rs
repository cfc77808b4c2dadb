//! Networks, each with its subnets.

use std::collections::BTreeMap;

use berth_common::{
    document::NetworkType,
    ids::NetworkId,
    names::{NetworkName, PhysicalNetworkName, ProjectName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QuerySelect, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{RowReader, millis, word},
    entity::{network, port, subnet},
    error::{StoreError, failed},
    executor::{Executor, scope},
    segments,
    subnets::{self, SubnetRow},
};

const TABLE: &str = "networks";

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRow {
    /// Its id, chosen by the client.
    pub id: NetworkId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique among the project's living networks.
    pub name: NetworkName,
    /// How it is built.
    pub network_type: NetworkType,
    /// Of `flat` and `vlan`: the physical network it is on.
    pub physical_network: Option<PhysicalNetworkName>,
    /// Of `vlan`: the VLAN's id; of `vxlan`: the VNI.
    pub segmentation_id: Option<u32>,
    /// Whether it leads out of the cloud.
    pub external: bool,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// Its living subnets, in order of creation.
    pub subnets: Vec<SubnetRow>,
}

fn read((model, subnets): (network::Model, Vec<subnet::Model>)) -> Result<NetworkRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let mut subnets = subnets
        .into_iter()
        .filter(|subnet| subnet.deleted_at.is_none())
        .map(subnets::read)
        .collect::<Result<Vec<_>, _>>()?;
    subnets.sort_by_key(|subnet| (subnet.created_at, subnet.id));
    Ok(NetworkRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", NetworkName::try_from(model.name))?,
        network_type: row.word("network_type", &model.network_type)?,
        physical_network: model
            .physical_network
            .map(|name| row.parsed("physical_network", PhysicalNetworkName::try_from(name)))
            .transpose()?,
        segmentation_id: model
            .segmentation_id
            .map(|id| row.int("segmentation_id", id))
            .transpose()?,
        external: model.external,
        mtu: row.int("mtu", model.mtu)?,
        created_at: row.time("created_at", model.created_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
        fingerprint: model.fingerprint,
        subnets,
    })
}

/// The networks that meet a condition, with their subnets, in order of creation.
pub(crate) async fn load(
    db: &impl Executor,
    which: Condition,
) -> Result<Vec<NetworkRow>, StoreError> {
    let found = network::Entity::find()
        .find_with_related(subnet::Entity)
        .filter(which)
        .all(&db.handle())
        .await
        .map_err(failed("networks"))?;
    let mut networks = found.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    networks.sort_by_key(|network| (network.created_at, network.id));
    Ok(networks)
}

/// Adds a network and its subnets; its segment belongs to it from now on.
///
/// # Errors
/// [`StoreError::Unique`] with `Id`, `NetworkName` or `Segment`.
pub async fn insert(db: &impl Executor, network: &NetworkRow) -> Result<(), StoreError> {
    let row = network::Model {
        id: network.id.to_string(),
        project: network.project.to_string(),
        name: network.name.to_string(),
        live_name: network
            .deleted_at
            .is_none()
            .then(|| network.name.to_string()),
        network_type: word("networks.network_type", &network.network_type)?,
        physical_network: network.physical_network.as_ref().map(ToString::to_string),
        segmentation_id: network.segmentation_id.map(i64::from),
        external: network.external,
        mtu: i64::from(network.mtu),
        fingerprint: network.fingerprint.clone(),
        created_at: millis(network.created_at),
        deleted_at: network.deleted_at.map(millis),
    };
    let subnets = network
        .subnets
        .iter()
        .map(subnets::write)
        .collect::<Result<Vec<_>, _>>()?;
    let scope = scope(db).await?;
    network::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&scope.handle())
        .await
        .map_err(failed("networks::insert"))?;
    segments::take(&scope.handle(), network).await?;
    bulk::insert(&scope.handle(), "networks::insert", subnets, None).await?;
    scope.finish().await
}

/// One network, also a deleted one.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: NetworkId) -> Result<Option<NetworkRow>, StoreError> {
    let which = Condition::all().add(network::Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// Some networks, also deleted ones.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(db: &impl Executor, ids: &[NetworkId]) -> Result<Vec<NetworkRow>, StoreError> {
    let mut networks = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all().add(network::Column::Id.is_in(ids));
        networks.append(&mut load(db, which).await?);
    }
    Ok(networks)
}

/// The living network with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &NetworkName,
) -> Result<Option<NetworkRow>, StoreError> {
    let which = Condition::all()
        .add(network::Column::Project.eq(project.as_str()))
        .add(network::Column::LiveName.eq(name.as_str()));
    Ok(load(db, which).await?.pop())
}

/// The living networks of a project, or all, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
) -> Result<Vec<NetworkRow>, StoreError> {
    let which = Condition::all()
        .add(network::Column::DeletedAt.is_null())
        .add_option(project.map(|project| network::Column::Project.eq(project.as_str())));
    load(db, which).await
}

/// Writes the name, the MTU and whether it leads out of the cloud of a living network.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such living network; [`StoreError::Unique`] with `NetworkName`.
pub async fn update(db: &impl Executor, network: &NetworkRow) -> Result<(), StoreError> {
    let updated = network::Entity::update_many()
        .col_expr(network::Column::Name, Expr::value(network.name.as_str()))
        .col_expr(
            network::Column::LiveName,
            Expr::value(network.name.as_str()),
        )
        .col_expr(network::Column::Mtu, Expr::value(i64::from(network.mtu)))
        .col_expr(network::Column::External, Expr::value(network.external))
        .filter(network::Column::Id.eq(network.id.to_string()))
        .filter(network::Column::DeletedAt.is_null())
        .exec(&db.handle())
        .await
        .map_err(failed("networks::update"))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: network.id.to_string(),
        });
    }
    Ok(())
}

/// Marks a network deleted and frees its name and its segment. Doing it again is harmless and keeps the first time.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such network.
pub async fn mark_deleted(
    db: &impl Executor,
    id: NetworkId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let scope = scope(db).await?;
    segments::free(&scope.handle(), id).await?;
    let updated = network::Entity::update_many()
        .col_expr(network::Column::DeletedAt, Expr::value(millis(now)))
        .col_expr(
            network::Column::LiveName,
            Expr::value(Option::<String>::None),
        )
        .filter(network::Column::Id.eq(id.to_string()))
        .filter(network::Column::DeletedAt.is_null())
        .exec(&scope.handle())
        .await
        .map_err(failed("networks::mark_deleted"))?;
    if updated.rows_affected == 0 {
        let known = network::Entity::find_by_id(id.to_string())
            .count(&scope.handle())
            .await
            .map_err(failed("networks::mark_deleted"))?;
        if known == 0 {
            return Err(StoreError::NotFound {
                table: TABLE,
                id: id.to_string(),
            });
        }
    }
    scope.finish().await
}

/// How many ports a network has.
///
/// # Errors
/// See [`StoreError`].
pub async fn port_count(db: &impl Executor, id: NetworkId) -> Result<u64, StoreError> {
    port::Entity::find()
        .filter(port::Column::NetworkId.eq(id.to_string()))
        .count(&db.handle())
        .await
        .map_err(failed("networks::port_count"))
}

/// How many ports each network has; networks without any are not listed.
///
/// # Errors
/// See [`StoreError`].
pub async fn port_counts(db: &impl Executor) -> Result<BTreeMap<NetworkId, u64>, StoreError> {
    let counts: Vec<(String, i64)> = port::Entity::find()
        .select_only()
        .column(port::Column::NetworkId)
        .column_as(port::Column::Id.count(), "ports")
        .group_by(port::Column::NetworkId)
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("networks::port_counts"))?;
    let parse = |(id, count): (String, i64)| {
        let row = RowReader {
            table: "ports",
            id: &id,
        };
        Ok((
            row.parsed("network_id", id.parse())?,
            row.int("count", count)?,
        ))
    };
    counts.into_iter().map(parse).collect()
}
