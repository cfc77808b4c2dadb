//! Floating IPs: addresses outside, each of a port inside or of none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    ids::{FloatingIpId, HostId, InstanceId, NetworkId, PortId, RouterId, SubnetId},
    names::ProjectName,
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult,
    IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, UpdateMany,
    sea_query::Expr,
};

use crate::{
    bulk,
    codec::{RowReader, millis},
    entity::{
        floating_ip::{self, Column},
        port,
    },
    error::{StoreError, failed},
    executor::Executor,
};

const TABLE: &str = "floating_ips";

/// A floating IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloatingIpRow {
    /// Its id, chosen by the client.
    pub id: FloatingIpId,
    /// The owner.
    pub project: ProjectName,
    /// The external network.
    pub network_id: NetworkId,
    /// The subnet of the address.
    pub subnet_id: SubnetId,
    /// The address outside, unique in the subnet.
    pub ip_address: IpAddr,
    /// Whose it is.
    pub association: Option<Association>,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// Whose a floating IP is. An address inside has one at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Association {
    /// The port.
    pub port_id: PortId,
    /// The address of the port that it is translated to.
    pub fixed_ip_address: IpAddr,
    /// The router that translates.
    pub router_id: RouterId,
}

fn read(model: floating_ip::Model) -> Result<FloatingIpRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let association = match (model.port_id, model.fixed_ip_address, model.router_id) {
        (None, None, None) => None,
        (Some(port), Some(address), Some(router)) => Some(Association {
            port_id: row.parsed("port_id", port.parse())?,
            fixed_ip_address: row.parsed("fixed_ip_address", address.parse())?,
            router_id: row.parsed("router_id", router.parse())?,
        }),
        _ => {
            return Err(row.corrupt(
                "port_id",
                "port, address and router are not all there or all not",
            ));
        }
    };
    Ok(FloatingIpRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        network_id: row.parsed("network_id", model.network_id.parse())?,
        subnet_id: row.parsed("subnet_id", model.subnet_id.parse())?,
        ip_address: row.parsed("ip_address", model.ip_address.parse())?,
        association,
        fingerprint: model.fingerprint,
        created_at: row.time("created_at", model.created_at)?,
    })
}

async fn load(db: &impl Executor, which: Condition) -> Result<Vec<FloatingIpRow>, StoreError> {
    let found = floating_ip::Entity::find()
        .filter(which)
        .order_by_asc(Column::CreatedAt)
        .order_by_asc(Column::Id)
        .all(&db.handle())
        .await
        .map_err(failed("floating_ips"))?;
    found.into_iter().map(read).collect()
}

/// Adds a floating IP.
///
/// # Errors
/// [`StoreError::Unique`] with `Id`, `IpAddress` or `FloatingIpPort`.
pub async fn insert(db: &impl Executor, floating: &FloatingIpRow) -> Result<(), StoreError> {
    let association = floating.association;
    let row = floating_ip::Model {
        id: floating.id.to_string(),
        project: floating.project.to_string(),
        network_id: floating.network_id.to_string(),
        subnet_id: floating.subnet_id.to_string(),
        ip_address: floating.ip_address.to_string(),
        router_id: association.map(|it| it.router_id.to_string()),
        port_id: association.map(|it| it.port_id.to_string()),
        fixed_ip_address: association.map(|it| it.fixed_ip_address.to_string()),
        fingerprint: floating.fingerprint.clone(),
        created_at: millis(floating.created_at),
    };
    floating_ip::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("floating_ips::insert"))
}

/// One floating IP.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(
    db: &impl Executor,
    id: FloatingIpId,
) -> Result<Option<FloatingIpRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// The floating IPs of a project with this address: addresses of different networks may be the same.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_address(
    db: &impl Executor,
    project: &ProjectName,
    address: IpAddr,
) -> Result<Vec<FloatingIpRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::IpAddress.eq(address.to_string()));
    load(db, which).await
}

/// The floating IPs of a project, or all, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
) -> Result<Vec<FloatingIpRow>, StoreError> {
    let which =
        Condition::all().add_option(project.map(|project| Column::Project.eq(project.as_str())));
    load(db, which).await
}

/// The floating IPs that some routers translate.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_routers(
    db: &impl Executor,
    routers: &BTreeSet<RouterId>,
) -> Result<Vec<FloatingIpRow>, StoreError> {
    let mut found = Vec::new();
    for ids in bulk::id_lists(routers) {
        let which = Condition::all().add(Column::RouterId.is_in(ids));
        found.append(&mut load(db, which).await?);
    }
    Ok(found)
}

/// The floating IPs of the ports on hosts that the routers beside them translate. One query for each 256; `COALESCE` keeps a database
/// from going through all that a router translates anywhere.
///
/// # Errors
/// See [`StoreError`].
pub(crate) async fn on_hosts(
    db: &impl Executor,
    places: &BTreeSet<(HostId, RouterId)>,
) -> Result<Vec<FloatingIpRow>, StoreError> {
    let connection = db.handle();
    let rows = places
        .iter()
        .map(|(host, router)| [host.to_string(), router.to_string()])
        .collect();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["host_id", "router_id"],
        rows,
        "SELECT f.* \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p CROSS JOIN floating_ips AS f \
         WHERE (SELECT 1 FROM floating_ips AS e WHERE e.router_id = w.router_id LIMIT 1) IS NOT NULL \
         AND c.host_id = w.host_id AND c.role = 'current' AND p.instance_id = c.instance_id \
         AND f.port_id = p.id AND COALESCE(f.router_id, '') = w.router_id",
    );
    let mut found = BTreeMap::new();
    for query in queries {
        let models = floating_ip::Model::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("floating_ips::on_hosts"))?;
        for model in models {
            let row = read(model)?;
            found.insert((row.created_at, row.id), row);
        }
    }
    Ok(found.into_values().collect())
}

/// How many floating IPs a network has.
///
/// # Errors
/// See [`StoreError`].
pub async fn count_of_network(db: &impl Executor, network: NetworkId) -> Result<u64, StoreError> {
    floating_ip::Entity::find()
        .filter(Column::NetworkId.eq(network.to_string()))
        .count(&db.handle())
        .await
        .map_err(failed("floating_ips::count_of_network"))
}

/// Gives a floating IP to a port, or takes it back.
///
/// # Errors
/// [`StoreError::Unique`] with `FloatingIpPort`; [`StoreError::NotFound`] if there is no such floating IP.
pub async fn associate(
    db: &impl Executor,
    id: FloatingIpId,
    association: Option<Association>,
) -> Result<(), StoreError> {
    let updated = floating_ip::Entity::update_many()
        .col_expr(
            Column::RouterId,
            Expr::value(association.map(|it| it.router_id.to_string())),
        )
        .col_expr(
            Column::PortId,
            Expr::value(association.map(|it| it.port_id.to_string())),
        )
        .col_expr(
            Column::FixedIpAddress,
            Expr::value(association.map(|it| it.fixed_ip_address.to_string())),
        )
        .filter(Column::Id.eq(id.to_string()))
        .exec(&db.handle())
        .await
        .map_err(failed("floating_ips::associate"))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    }
    Ok(())
}

/// The floating IPs of a port.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_port(db: &impl Executor, port: PortId) -> Result<Vec<FloatingIpRow>, StoreError> {
    load(
        db,
        Condition::all().add(Column::PortId.eq(port.to_string())),
    )
    .await
}

/// How many floating IPs a subnet has.
///
/// # Errors
/// See [`StoreError`].
pub async fn count_of_subnet(db: &impl Executor, subnet: SubnetId) -> Result<u64, StoreError> {
    floating_ip::Entity::find()
        .filter(Column::SubnetId.eq(subnet.to_string()))
        .count(&db.handle())
        .await
        .map_err(failed("floating_ips::count_of_subnet"))
}

/// A port goes: its floating IPs are nobody's.
pub(crate) async fn release_of_port(
    connection: &impl ConnectionTrait,
    port: PortId,
) -> Result<(), StoreError> {
    released()
        .filter(Column::PortId.eq(port.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("floating_ips::release_of_port"))
}

/// The columns of a floating IP that is nobody's.
fn released() -> UpdateMany<floating_ip::Entity> {
    let none = || Expr::value(Option::<String>::None);
    floating_ip::Entity::update_many()
        .col_expr(Column::RouterId, none())
        .col_expr(Column::FixedIpAddress, none())
        .col_expr(Column::PortId, none())
}

/// The ports of an instance that go with it go: their floating IPs are nobody's.
pub(crate) async fn release_where_instance(
    connection: &impl ConnectionTrait,
    instance: InstanceId,
) -> Result<(), StoreError> {
    let ports = port::Entity::find()
        .select_only()
        .column(port::Column::Id)
        .filter(port::Column::InstanceId.eq(instance.to_string()))
        .filter(port::Column::DeleteWithInstance.eq(true))
        .into_query();
    released()
        .filter(Column::PortId.in_subquery(ports))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("floating_ips::release_where_instance"))
}

/// Deletes a floating IP; none is no error.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete(db: &impl Executor, id: FloatingIpId) -> Result<(), StoreError> {
    floating_ip::Entity::delete_by_id(id.to_string())
        .exec(&db.handle())
        .await
        .map(drop)
        .map_err(failed("floating_ips::delete"))
}
