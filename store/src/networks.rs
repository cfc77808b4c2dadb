//! Networks, each with its one subnet.

use std::{collections::BTreeMap, net::IpAddr};

use berth_common::{
    document::NetworkType,
    ids::{NetworkId, SubnetId},
    names::{Cidr, NetworkName, ProjectName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{self, RowReader, millis, word},
    entity::{network, port, subnet},
    error::{StoreError, failed},
    executor::{Executor, scope},
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
    /// Largest packet in bytes.
    pub mtu: u16,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// Its addresses.
    pub subnet: SubnetRow,
}

/// The addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetRow {
    /// Its id.
    pub id: SubnetId,
    /// Its network.
    pub network_id: NetworkId,
    /// The addresses.
    pub cidr: Cidr,
    /// The router's address.
    pub gateway_ip: Option<IpAddr>,
    /// The DHCP server's address.
    pub dhcp_ip: IpAddr,
    /// Name servers handed to guests.
    pub dns_nameservers: Vec<IpAddr>,
}

fn read(
    (model, subnet): (network::Model, Option<subnet::Model>),
) -> Result<NetworkRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let subnet = subnet.ok_or_else(|| row.corrupt("subnet", "it has none"))?;
    Ok(NetworkRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", NetworkName::try_from(model.name))?,
        network_type: row.word("network_type", &model.network_type)?,
        mtu: row.int("mtu", model.mtu)?,
        created_at: row.time("created_at", model.created_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
        fingerprint: model.fingerprint,
        subnet: read_subnet(subnet)?,
    })
}

fn read_subnet(model: subnet::Model) -> Result<SubnetRow, StoreError> {
    let row = RowReader {
        table: "subnets",
        id: &model.id,
    };
    Ok(SubnetRow {
        id: row.parsed("id", model.id.parse())?,
        network_id: row.parsed("network_id", model.network_id.parse())?,
        cidr: row.parsed("cidr", Cidr::try_from(model.cidr))?,
        gateway_ip: model
            .gateway_ip
            .map(|ip| row.parsed("gateway_ip", ip.parse()))
            .transpose()?,
        dhcp_ip: row.parsed("dhcp_ip", model.dhcp_ip.parse())?,
        dns_nameservers: row.json("dns_nameservers", &model.dns_nameservers)?,
    })
}

/// The networks that meet a condition, with their subnets, in order of creation.
pub(crate) async fn load(
    db: &impl Executor,
    which: Condition,
) -> Result<Vec<NetworkRow>, StoreError> {
    let found = network::Entity::find()
        .find_also_related(subnet::Entity)
        .filter(which)
        .order_by_asc(network::Column::CreatedAt)
        .order_by_asc(network::Column::Id)
        .all(&db.handle())
        .await
        .map_err(failed("networks"))?;
    found.into_iter().map(read).collect()
}

/// Adds a network and its subnet.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `NetworkName`.
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
        mtu: i64::from(network.mtu),
        fingerprint: network.fingerprint.clone(),
        created_at: millis(network.created_at),
        deleted_at: network.deleted_at.map(millis),
    };
    let subnet = subnet::Model {
        id: network.subnet.id.to_string(),
        network_id: network.subnet.network_id.to_string(),
        cidr: network.subnet.cidr.to_string(),
        gateway_ip: network.subnet.gateway_ip.map(|ip| ip.to_string()),
        dhcp_ip: network.subnet.dhcp_ip.to_string(),
        dns_nameservers: codec::json("subnets.dns_nameservers", &network.subnet.dns_nameservers)?,
    };
    let scope = scope(db).await?;
    network::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&scope.handle())
        .await
        .map_err(failed("networks::insert"))?;
    subnet::Entity::insert(subnet.into_active_model().reset_all())
        .exec_without_returning(&scope.handle())
        .await
        .map_err(failed("networks::insert"))?;
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

/// Marks a network deleted and frees its name. Doing it again is harmless and keeps the first time.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such network.
pub async fn mark_deleted(
    db: &impl Executor,
    id: NetworkId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let updated = network::Entity::update_many()
        .col_expr(network::Column::DeletedAt, Expr::value(millis(now)))
        .col_expr(
            network::Column::LiveName,
            Expr::value(Option::<String>::None),
        )
        .filter(network::Column::Id.eq(id.to_string()))
        .filter(network::Column::DeletedAt.is_null())
        .exec(&db.handle())
        .await
        .map_err(failed("networks::mark_deleted"))?;
    if updated.rows_affected == 0 {
        let known = network::Entity::find_by_id(id.to_string())
            .count(&db.handle())
            .await
            .map_err(failed("networks::mark_deleted"))?;
        if known == 0 {
            return Err(StoreError::NotFound {
                table: TABLE,
                id: id.to_string(),
            });
        }
    }
    Ok(())
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
