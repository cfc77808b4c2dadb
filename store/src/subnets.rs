//! Subnets: the addresses of a network.

use std::net::IpAddr;

use berth_common::{
    document::{Ipv6AddressMode, Route},
    ids::{NetworkId, SubnetId},
    message::network::AllocationPool,
    names::{Cidr, ProjectName, SubnetName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, sea_query::Expr,
};

use crate::{
    codec::{self, RowReader, millis, word},
    entity::{fixed_ip, network, subnet},
    error::{StoreError, failed},
    executor::Executor,
};

const TABLE: &str = "subnets";

/// The addresses of a network, or some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetRow {
    /// Its id.
    pub id: SubnetId,
    /// Its network.
    pub network_id: NetworkId,
    /// Its name, unique among the network's living subnets.
    pub name: Option<SubnetName>,
    /// The addresses.
    pub cidr: Cidr,
    /// The router's address.
    pub gateway_ip: Option<IpAddr>,
    /// The address of the DHCP server and the metadata service; none: neither answers.
    pub dhcp_ip: Option<IpAddr>,
    /// The addresses that ports get unless they ask for another; none: all.
    pub allocation_pools: Vec<AllocationPool>,
    /// Name servers handed to guests.
    pub dns_nameservers: Vec<IpAddr>,
    /// Further routes handed to guests.
    pub host_routes: Vec<Route>,
    /// Of IPv6: how guests get their address.
    pub ipv6_address_mode: Option<Ipv6AddressMode>,
    /// What the request that made it contained, to recognise its repetition; empty: it came with its network.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
}

pub(crate) fn read(model: subnet::Model) -> Result<SubnetRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let address = |column: &'static str, text: Option<String>| {
        text.map(|ip| row.parsed(column, ip.parse())).transpose()
    };
    Ok(SubnetRow {
        id: row.parsed("id", model.id.parse())?,
        network_id: row.parsed("network_id", model.network_id.parse())?,
        name: model
            .name
            .map(|name| row.parsed("name", SubnetName::try_from(name)))
            .transpose()?,
        cidr: row.parsed("cidr", Cidr::try_from(model.cidr))?,
        gateway_ip: address("gateway_ip", model.gateway_ip)?,
        dhcp_ip: address("dhcp_ip", model.dhcp_ip)?,
        allocation_pools: row.json("allocation_pools", &model.allocation_pools)?,
        dns_nameservers: row.json("dns_nameservers", &model.dns_nameservers)?,
        host_routes: row.json("host_routes", &model.host_routes)?,
        ipv6_address_mode: model
            .ipv6_address_mode
            .map(|mode| row.word("ipv6_address_mode", &mode))
            .transpose()?,
        fingerprint: model.fingerprint,
        created_at: row.time("created_at", model.created_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
    })
}

pub(crate) fn write(subnet: &SubnetRow) -> Result<subnet::Model, StoreError> {
    let name = subnet.name.as_ref().map(ToString::to_string);
    Ok(subnet::Model {
        id: subnet.id.to_string(),
        network_id: subnet.network_id.to_string(),
        live_name: name.clone().filter(|_| subnet.deleted_at.is_none()),
        name,
        cidr: subnet.cidr.to_string(),
        gateway_ip: subnet.gateway_ip.map(|ip| ip.to_string()),
        dhcp_ip: subnet.dhcp_ip.map(|ip| ip.to_string()),
        allocation_pools: codec::json("subnets.allocation_pools", &subnet.allocation_pools)?,
        dns_nameservers: codec::json("subnets.dns_nameservers", &subnet.dns_nameservers)?,
        host_routes: codec::json("subnets.host_routes", &subnet.host_routes)?,
        ipv6_address_mode: subnet
            .ipv6_address_mode
            .map(|mode| word("subnets.ipv6_address_mode", &mode))
            .transpose()?,
        fingerprint: subnet.fingerprint.clone(),
        created_at: millis(subnet.created_at),
        deleted_at: subnet.deleted_at.map(millis),
    })
}

/// Adds a subnet to its network.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `SubnetName`; [`StoreError::ForeignKey`] if there is no such network.
pub async fn insert(db: &impl Executor, subnet: &SubnetRow) -> Result<(), StoreError> {
    subnet::Entity::insert(write(subnet)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("subnets::insert"))
}

/// One subnet, also a deleted one.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: SubnetId) -> Result<Option<SubnetRow>, StoreError> {
    subnet::Entity::find_by_id(id.to_string())
        .one(&db.handle())
        .await
        .map_err(failed("subnets::get"))?
        .map(read)
        .transpose()
}

/// The living subnets with this name in the living networks of a project, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &SubnetName,
) -> Result<Vec<SubnetRow>, StoreError> {
    let found = subnet::Entity::find()
        .find_also_related(network::Entity)
        .filter(subnet::Column::LiveName.eq(name.as_str()))
        .filter(network::Column::Project.eq(project.as_str()))
        .filter(network::Column::DeletedAt.is_null())
        .order_by_asc(subnet::Column::CreatedAt)
        .order_by_asc(subnet::Column::Id)
        .all(&db.handle())
        .await
        .map_err(failed("subnets::find_by_name"))?;
    found.into_iter().map(|(model, _)| read(model)).collect()
}

/// Writes what can be changed of a living subnet: all but its id, network, addresses and times.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such living subnet; [`StoreError::Unique`] with `SubnetName`.
pub async fn update(db: &impl Executor, subnet: &SubnetRow) -> Result<(), StoreError> {
    let model = write(subnet)?;
    let updated = subnet::Entity::update_many()
        .col_expr(subnet::Column::Name, Expr::value(model.name))
        .col_expr(subnet::Column::LiveName, Expr::value(model.live_name))
        .col_expr(subnet::Column::GatewayIp, Expr::value(model.gateway_ip))
        .col_expr(subnet::Column::DhcpIp, Expr::value(model.dhcp_ip))
        .col_expr(
            subnet::Column::AllocationPools,
            Expr::value(model.allocation_pools),
        )
        .col_expr(
            subnet::Column::DnsNameservers,
            Expr::value(model.dns_nameservers),
        )
        .col_expr(subnet::Column::HostRoutes, Expr::value(model.host_routes))
        .filter(subnet::Column::Id.eq(model.id))
        .filter(subnet::Column::DeletedAt.is_null())
        .exec(&db.handle())
        .await
        .map_err(failed("subnets::update"))?;
    found(updated.rows_affected, subnet.id)
}

/// Marks a living subnet deleted and frees its name.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such living subnet.
pub async fn mark_deleted(
    db: &impl Executor,
    id: SubnetId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let updated = subnet::Entity::update_many()
        .col_expr(subnet::Column::DeletedAt, Expr::value(millis(now)))
        .col_expr(
            subnet::Column::LiveName,
            Expr::value(Option::<String>::None),
        )
        .filter(subnet::Column::Id.eq(id.to_string()))
        .filter(subnet::Column::DeletedAt.is_null())
        .exec(&db.handle())
        .await
        .map_err(failed("subnets::mark_deleted"))?;
    found(updated.rows_affected, id)
}

/// How many addresses of a subnet ports have.
///
/// # Errors
/// See [`StoreError`].
pub async fn address_count(db: &impl Executor, id: SubnetId) -> Result<u64, StoreError> {
    fixed_ip::Entity::find()
        .filter(fixed_ip::Column::SubnetId.eq(id.to_string()))
        .count(&db.handle())
        .await
        .map_err(failed("subnets::address_count"))
}

fn found(rows: u64, id: SubnetId) -> Result<(), StoreError> {
    if rows == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}
