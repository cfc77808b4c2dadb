//! Routers, their legs, and the addresses that hosts have of external networks for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{Kind, Route},
    ids::{HostId, NetworkId, RouterId, SubnetId},
    names::{MacAddress, ProjectName, RouterName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult,
    IntoActiveModel, QueryFilter, QueryOrder, QueryResult, QuerySelect, Statement, sea_query::Expr,
};

use crate::{
    bulk,
    codec::{self, RowReader, millis},
    entity::{document, floating_ip, router, router_gateway, router_interface},
    error::{StoreError, failed},
    executor::{Executor, scope},
    held_addresses,
};

const TABLE: &str = "routers";

/// A router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterRow {
    /// Its id, chosen by the client.
    pub id: RouterId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique among the project's living routers.
    pub name: RouterName,
    /// Whether it is there at all: without, no host has it.
    pub admin_state_up: bool,
    /// The network that it leads out to.
    pub external_network_id: Option<NetworkId>,
    /// Whether what goes out without a floating IP is translated.
    pub enable_snat: bool,
    /// Further routes.
    pub routes: Vec<Route>,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was deleted.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// A leg of a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterInterfaceRow {
    /// The router.
    pub router_id: RouterId,
    /// The subnet that it is in.
    pub subnet_id: SubnetId,
    /// The network of that subnet.
    pub network_id: NetworkId,
    /// Its address.
    pub ip_address: IpAddr,
    /// Its Ethernet address, the same for all legs of the router in one network.
    pub mac_address: MacAddress,
}

/// An address that a host has of an external subnet, for a router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouterGatewayRow {
    /// The router.
    pub router_id: RouterId,
    /// The host.
    pub host_id: HostId,
    /// The external subnet.
    pub subnet_id: SubnetId,
    /// The address.
    pub ip_address: IpAddr,
}

fn read(model: router::Model) -> Result<RouterRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    Ok(RouterRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", ProjectName::try_from(model.project))?,
        name: row.parsed("name", RouterName::try_from(model.name))?,
        admin_state_up: model.admin_state_up,
        external_network_id: model
            .external_network_id
            .map(|id| row.parsed("external_network_id", id.parse()))
            .transpose()?,
        enable_snat: model.enable_snat,
        routes: row.json("routes", &model.routes)?,
        fingerprint: model.fingerprint,
        created_at: row.time("created_at", model.created_at)?,
        deleted_at: row.opt_time("deleted_at", model.deleted_at)?,
    })
}

fn write(router: &RouterRow) -> Result<router::Model, StoreError> {
    Ok(router::Model {
        id: router.id.to_string(),
        project: router.project.to_string(),
        name: router.name.to_string(),
        live_name: router.deleted_at.is_none().then(|| router.name.to_string()),
        admin_state_up: router.admin_state_up,
        external_network_id: router.external_network_id.map(|id| id.to_string()),
        enable_snat: router.enable_snat,
        routes: codec::json("routers.routes", &router.routes)?,
        fingerprint: router.fingerprint.clone(),
        created_at: millis(router.created_at),
        deleted_at: router.deleted_at.map(millis),
    })
}

fn read_interface(model: router_interface::Model) -> Result<RouterInterfaceRow, StoreError> {
    let id = format!("{}/{}", model.router_id, model.subnet_id);
    let row = RowReader {
        table: "router_interfaces",
        id: &id,
    };
    Ok(RouterInterfaceRow {
        router_id: row.parsed("router_id", model.router_id.parse())?,
        subnet_id: row.parsed("subnet_id", model.subnet_id.parse())?,
        network_id: row.parsed("network_id", model.network_id.parse())?,
        ip_address: row.parsed("ip_address", model.ip_address.parse())?,
        mac_address: row.parsed("mac_address", model.mac_address.parse())?,
    })
}

fn read_gateway(model: router_gateway::Model) -> Result<RouterGatewayRow, StoreError> {
    let id = format!("{}/{}/{}", model.router_id, model.host_id, model.subnet_id);
    let row = RowReader {
        table: "router_gateways",
        id: &id,
    };
    Ok(RouterGatewayRow {
        router_id: row.parsed("router_id", model.router_id.parse())?,
        host_id: row.parsed("host_id", model.host_id.parse())?,
        subnet_id: row.parsed("subnet_id", model.subnet_id.parse())?,
        ip_address: row.parsed("ip_address", model.ip_address.parse())?,
    })
}

/// The routers that meet a condition, in order of creation.
async fn load(db: &impl Executor, which: Condition) -> Result<Vec<RouterRow>, StoreError> {
    let found = router::Entity::find()
        .filter(which)
        .order_by_asc(router::Column::CreatedAt)
        .order_by_asc(router::Column::Id)
        .all(&db.handle())
        .await
        .map_err(failed("routers"))?;
    found.into_iter().map(read).collect()
}

async fn load_interfaces(
    db: &impl Executor,
    which: Condition,
) -> Result<Vec<RouterInterfaceRow>, StoreError> {
    let found = router_interface::Entity::find()
        .filter(which)
        .order_by_asc(router_interface::Column::RouterId)
        .order_by_asc(router_interface::Column::SubnetId)
        .all(&db.handle())
        .await
        .map_err(failed("router_interfaces"))?;
    found.into_iter().map(read_interface).collect()
}

/// Adds a router.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` or `RouterName`.
pub async fn insert(db: &impl Executor, router: &RouterRow) -> Result<(), StoreError> {
    router::Entity::insert(write(router)?.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("routers::insert"))
}

/// Writes a router as it is now.
///
/// # Errors
/// [`StoreError::Unique`] with `RouterName`; [`StoreError::NotFound`] if there is no such router.
pub async fn update(db: &impl Executor, router: &RouterRow) -> Result<(), StoreError> {
    let row = write(router)?;
    let updated = router::Entity::update_many()
        .col_expr(router::Column::Name, Expr::value(row.name))
        .col_expr(router::Column::LiveName, Expr::value(row.live_name))
        .col_expr(
            router::Column::AdminStateUp,
            Expr::value(row.admin_state_up),
        )
        .col_expr(
            router::Column::ExternalNetworkId,
            Expr::value(row.external_network_id),
        )
        .col_expr(router::Column::EnableSnat, Expr::value(row.enable_snat))
        .col_expr(router::Column::Routes, Expr::value(row.routes))
        .col_expr(router::Column::DeletedAt, Expr::value(row.deleted_at))
        .filter(router::Column::Id.eq(row.id.clone()))
        .exec(&db.handle())
        .await
        .map_err(failed("routers::update"))?;
    if updated.rows_affected == 0 {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: row.id,
        });
    }
    Ok(())
}

/// One router, also a deleted one.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: RouterId) -> Result<Option<RouterRow>, StoreError> {
    let which = Condition::all().add(router::Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// Some living routers.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(
    db: &impl Executor,
    ids: &BTreeSet<RouterId>,
) -> Result<Vec<RouterRow>, StoreError> {
    let mut routers = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all()
            .add(router::Column::DeletedAt.is_null())
            .add(router::Column::Id.is_in(ids));
        routers.append(&mut load(db, which).await?);
    }
    Ok(routers)
}

/// The living router with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &RouterName,
) -> Result<Option<RouterRow>, StoreError> {
    let which = Condition::all()
        .add(router::Column::Project.eq(project.as_str()))
        .add(router::Column::LiveName.eq(name.as_str()));
    Ok(load(db, which).await?.pop())
}

/// The living routers of a project, or all, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn list(
    db: &impl Executor,
    project: Option<&ProjectName>,
) -> Result<Vec<RouterRow>, StoreError> {
    let which = Condition::all()
        .add(router::Column::DeletedAt.is_null())
        .add_option(project.map(|project| router::Column::Project.eq(project.as_str())));
    load(db, which).await
}

/// The legs in some networks.
///
/// # Errors
/// See [`StoreError`].
pub async fn interfaces_in_networks(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
) -> Result<Vec<RouterInterfaceRow>, StoreError> {
    let mut found = Vec::new();
    for ids in bulk::id_lists(networks) {
        let inside = Condition::all().add(router_interface::Column::NetworkId.is_in(ids));
        found.append(&mut load_interfaces(db, inside).await?);
    }
    Ok(found)
}

/// The routers that have a leg inside one of these networks.
///
/// # Errors
/// See [`StoreError`].
pub async fn inside(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
) -> Result<BTreeSet<RouterId>, StoreError> {
    let legs = interfaces_in_networks(db, networks).await?;
    Ok(legs.into_iter().map(|leg| leg.router_id).collect())
}

/// The living routers that lead out to one of these networks, in order of creation.
///
/// # Errors
/// See [`StoreError`].
pub async fn leading_to(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
) -> Result<Vec<RouterRow>, StoreError> {
    let mut found = Vec::new();
    for ids in bulk::id_lists(networks) {
        let outside = Condition::all()
            .add(router::Column::DeletedAt.is_null())
            .add(router::Column::ExternalNetworkId.is_in(ids));
        found.append(&mut load(db, outside).await?);
    }
    Ok(found)
}

/// The living routers that have a leg in one of these networks, on whichever side.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_networks(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
) -> Result<BTreeSet<RouterId>, StoreError> {
    let mut found = inside(db, networks).await?;
    let leading = leading_to(db, networks).await?;
    found.extend(leading.into_iter().map(|row| row.id));
    Ok(found)
}

/// Adds a leg.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` (the router has one in the subnet) or `IpAddress`.
pub async fn insert_interface(
    db: &impl Executor,
    interface: &RouterInterfaceRow,
) -> Result<(), StoreError> {
    let row = router_interface::Model {
        router_id: interface.router_id.to_string(),
        subnet_id: interface.subnet_id.to_string(),
        network_id: interface.network_id.to_string(),
        ip_address: interface.ip_address.to_string(),
        mac_address: interface.mac_address.to_string(),
    };
    router_interface::Entity::insert(row.into_active_model().reset_all())
        .exec_without_returning(&db.handle())
        .await
        .map(drop)
        .map_err(failed("routers::insert_interface"))
}

/// Removes a leg; none is no error.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete_interface(
    db: &impl Executor,
    router: RouterId,
    subnet: SubnetId,
) -> Result<(), StoreError> {
    router_interface::Entity::delete_many()
        .filter(router_interface::Column::RouterId.eq(router.to_string()))
        .filter(router_interface::Column::SubnetId.eq(subnet.to_string()))
        .exec(&db.handle())
        .await
        .map(drop)
        .map_err(failed("routers::delete_interface"))
}

/// The legs of some routers, by router.
///
/// # Errors
/// See [`StoreError`].
pub async fn interfaces(
    db: &impl Executor,
    routers: &BTreeSet<RouterId>,
) -> Result<BTreeMap<RouterId, Vec<RouterInterfaceRow>>, StoreError> {
    let mut found: BTreeMap<RouterId, Vec<RouterInterfaceRow>> = BTreeMap::new();
    for ids in bulk::id_lists(routers) {
        let which = Condition::all().add(router_interface::Column::RouterId.is_in(ids));
        for leg in load_interfaces(db, which).await? {
            found.entry(leg.router_id).or_default().push(leg);
        }
    }
    Ok(found)
}

/// Gives hosts addresses for routers, all or nothing.
///
/// # Errors
/// [`StoreError::Unique`] with `Id` (a host has one) or `IpAddress`.
pub async fn insert_gateways(
    db: &impl Executor,
    gateways: &[RouterGatewayRow],
) -> Result<(), StoreError> {
    let models = gateways
        .iter()
        .map(|gateway| router_gateway::Model {
            router_id: gateway.router_id.to_string(),
            host_id: gateway.host_id.to_string(),
            subnet_id: gateway.subnet_id.to_string(),
            ip_address: gateway.ip_address.to_string(),
        })
        .collect();
    let scope = scope(db).await?;
    bulk::insert(&scope.handle(), "routers::insert_gateways", models, None).await?;
    scope.finish().await
}

/// Takes addresses from hosts; one that is not there is no error.
///
/// # Errors
/// See [`StoreError`].
pub async fn delete_gateways(
    db: &impl Executor,
    gateways: &[RouterGatewayRow],
) -> Result<(), StoreError> {
    let rows = gateways
        .iter()
        .map(|gateway| {
            [
                gateway.router_id.to_string(),
                gateway.host_id.to_string(),
                gateway.subnet_id.to_string(),
            ]
        })
        .collect();
    let scope = scope(db).await?;
    bulk::delete_rows::<router_gateway::Entity, 3>(
        &scope.handle(),
        "router_gateways",
        ["router_id", "host_id", "subnet_id"],
        rows,
        "routers::delete_gateways",
    )
    .await?;
    scope.finish().await
}

/// A host goes: its addresses are free.
pub(crate) async fn delete_gateways_of_host(
    connection: &impl ConnectionTrait,
    host: HostId,
) -> Result<(), StoreError> {
    router_gateway::Entity::delete_many()
        .filter(router_gateway::Column::HostId.eq(host.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("routers::delete_gateways_of_host"))
}

/// The legs in a subnet.
///
/// # Errors
/// See [`StoreError`].
pub async fn interfaces_in(
    db: &impl Executor,
    subnet: SubnetId,
) -> Result<Vec<RouterInterfaceRow>, StoreError> {
    let which = Condition::all().add(router_interface::Column::SubnetId.eq(subnet.to_string()));
    load_interfaces(db, which).await
}

/// The addresses that hosts have for some routers.
///
/// # Errors
/// See [`StoreError`].
pub async fn gateways(
    db: &impl Executor,
    routers: &BTreeSet<RouterId>,
) -> Result<Vec<RouterGatewayRow>, StoreError> {
    let mut found = Vec::new();
    for ids in bulk::id_lists(routers) {
        let models = router_gateway::Entity::find()
            .filter(router_gateway::Column::RouterId.is_in(ids))
            .order_by_asc(router_gateway::Column::RouterId)
            .order_by_asc(router_gateway::Column::HostId)
            .order_by_asc(router_gateway::Column::SubnetId)
            .all(&db.handle())
            .await
            .map_err(failed("routers::gateways"))?;
        for model in models {
            found.push(read_gateway(model)?);
        }
    }
    Ok(found)
}

/// The addresses that hosts have for the routers beside them. One query for each 256.
///
/// # Errors
/// See [`StoreError`].
pub async fn gateways_on(
    db: &impl Executor,
    places: &BTreeSet<(HostId, RouterId)>,
) -> Result<Vec<RouterGatewayRow>, StoreError> {
    let connection = db.handle();
    let rows = places
        .iter()
        .map(|(host, router)| [router.to_string(), host.to_string()])
        .collect();
    let mut found = BTreeSet::new();
    for which in bulk::row_lists(
        connection.get_database_backend(),
        "router_gateways",
        ["router_id", "host_id"],
        rows,
    ) {
        let models = router_gateway::Entity::find()
            .filter(which)
            .all(&connection)
            .await
            .map_err(failed("routers::gateways_on"))?;
        for model in models {
            found.insert(read_gateway(model)?);
        }
    }
    Ok(found.into_iter().collect())
}

/// A router on a host, as stored.
#[derive(Debug, FromQueryResult)]
struct OnHost {
    host_id: String,
    router_id: String,
}

async fn places(
    db: &impl Executor,
    queries: impl Iterator<Item = sea_orm::Statement>,
    what: &'static str,
) -> Result<BTreeSet<(HostId, RouterId)>, StoreError> {
    let mut places = BTreeSet::new();
    for query in queries {
        let found = OnHost::find_by_statement(query)
            .all(&db.handle())
            .await
            .map_err(failed(what))?;
        for place in found {
            let row = RowReader {
                table: TABLE,
                id: &place.router_id,
            };
            let router = row.parsed("id", place.router_id.parse())?;
            places.insert((row.parsed("host_id", place.host_id.parse())?, router));
        }
    }
    Ok(places)
}

fn pairs(places: &BTreeSet<(HostId, NetworkId)>) -> Vec<[String; 2]> {
    places
        .iter()
        .map(|(host, network)| [host.to_string(), network.to_string()])
        .collect()
}

/// The routers with a leg in a network, on the host beside it: a host has those of the networks that it has ports in, if they are up,
/// which is not looked at. One query for each 256 pairs; it reads what the hosts have, and nothing of others: `COALESCE` keeps a
/// database from going through all routers of a network for each of the hosts' ports.
///
/// # Errors
/// See [`StoreError`].
pub async fn on_hosts(
    db: &impl Executor,
    wanted: &BTreeSet<(HostId, NetworkId)>,
) -> Result<BTreeSet<(HostId, RouterId)>, StoreError> {
    let queries = bulk::queries_from(
        db.handle().get_database_backend(),
        ["host_id", "network_id"],
        pairs(wanted),
        "SELECT DISTINCT c.host_id, m.router_id \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p CROSS JOIN router_interfaces AS l \
         CROSS JOIN router_interfaces AS m \
         WHERE (SELECT 1 FROM router_interfaces AS e WHERE e.network_id = w.network_id LIMIT 1) IS NOT NULL \
         AND c.host_id = w.host_id AND c.role = 'current' AND p.instance_id = c.instance_id \
         AND l.network_id = p.network_id AND m.router_id = l.router_id \
         AND COALESCE(m.network_id, '') = w.network_id",
    );
    places(db, queries, "routers::on_hosts").await
}

/// The hosts that were told of a router with a leg in one of these networks, and the router. One query for each 256 networks.
///
/// # Errors
/// See [`StoreError`].
pub async fn told_inside(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
) -> Result<BTreeSet<(HostId, RouterId)>, StoreError> {
    let text = format!(
        "SELECT DISTINCT d.host_id, l.router_id \
         FROM w CROSS JOIN router_interfaces AS l CROSS JOIN documents AS d \
         WHERE l.network_id = w.network_id AND d.resource_id = l.router_id AND d.kind = '{}' \
         AND d.spec_json IS NOT NULL",
        Kind::Router.as_str()
    );
    told(db, networks, &text, "routers::told_inside").await
}

/// The hosts that were told of a router that leads out to one of these networks, and the router. One query for each 256 networks.
///
/// # Errors
/// See [`StoreError`].
pub async fn told_leading_to(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
) -> Result<BTreeSet<(HostId, RouterId)>, StoreError> {
    let text = format!(
        "SELECT d.host_id, r.id AS router_id \
         FROM w CROSS JOIN routers AS r CROSS JOIN documents AS d \
         WHERE r.external_network_id = w.network_id AND d.resource_id = r.id AND d.kind = '{}' \
         AND d.spec_json IS NOT NULL",
        Kind::Router.as_str()
    );
    told(db, networks, &text, "routers::told_leading_to").await
}

async fn told(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
    text: &str,
    what: &'static str,
) -> Result<BTreeSet<(HostId, RouterId)>, StoreError> {
    let rows = networks.iter().map(|id| [id.to_string()]).collect();
    let backend = db.handle().get_database_backend();
    let queries = bulk::queries_from(backend, ["network_id"], rows, text);
    places(db, queries, what).await
}

/// Hosts that were told of a router that is up, and have no address of a subnet that it leads out to.
const WITHOUT_ADDRESS: &str = "FROM subnets AS s JOIN routers AS r ON r.external_network_id = s.network_id \
     JOIN documents AS d ON d.resource_id = r.id AND d.kind = 'router' AND d.spec_json IS NOT NULL \
     WHERE s.deleted_at IS NULL AND r.deleted_at IS NULL AND r.admin_state_up \
     AND NOT EXISTS (SELECT 1 FROM router_gateways AS g \
     WHERE g.router_id = r.id AND g.host_id = d.host_id AND g.subnet_id = s.id)";

/// The external subnets of which a host that has a router lacks an address for it.
///
/// # Errors
/// See [`StoreError`].
pub async fn short_subnets(db: &impl Executor) -> Result<BTreeSet<SubnetId>, StoreError> {
    let connection = db.handle();
    let query = Statement::from_string(
        connection.get_database_backend(),
        format!("SELECT DISTINCT s.id {WITHOUT_ADDRESS}"),
    );
    let found = connection
        .query_all_raw(query)
        .await
        .map_err(failed("routers::short_subnets"))?;
    let parse = |found: &QueryResult| {
        let id: String = found
            .try_get_by_index(0)
            .map_err(failed("routers::short_subnets"))?;
        let row = RowReader {
            table: "subnets",
            id: &id,
        };
        row.parsed("id", id.parse())
    };
    found.iter().map(parse).collect()
}

/// Hosts that lack an address of an external subnet, each with the router that it is for: no more than some.
///
/// # Errors
/// See [`StoreError`].
pub async fn without_address(
    db: &impl Executor,
    subnet: SubnetId,
    most: u32,
) -> Result<BTreeSet<(HostId, RouterId)>, StoreError> {
    let query = Statement::from_string(
        db.handle().get_database_backend(),
        format!(
            "SELECT d.host_id, r.id AS router_id {WITHOUT_ADDRESS} AND s.id = '{subnet}' \
             ORDER BY r.id, d.host_id LIMIT {most}"
        ),
    );
    places(db, std::iter::once(query), "routers::without_address").await
}

/// A network on a host, as stored.
#[derive(Debug, FromQueryResult)]
struct LedTo {
    host_id: String,
    network_id: String,
}

/// The networks that a router leads out to which is on the host beside it and up. One query for each 256 pairs, begun as that of
/// [`on_hosts`].
///
/// # Errors
/// See [`StoreError`].
pub(crate) async fn led_to(
    db: &impl Executor,
    wanted: &BTreeSet<(HostId, NetworkId)>,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let connection = db.handle();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["host_id", "network_id"],
        pairs(wanted),
        "SELECT DISTINCT c.host_id, r.external_network_id AS network_id \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p CROSS JOIN router_interfaces AS l CROSS JOIN routers AS r \
         WHERE (SELECT 1 FROM routers AS e WHERE e.external_network_id = w.network_id LIMIT 1) IS NOT NULL \
         AND c.host_id = w.host_id AND c.role = 'current' AND p.instance_id = c.instance_id \
         AND l.network_id = p.network_id AND r.id = l.router_id \
         AND COALESCE(r.external_network_id, '') = w.network_id AND r.admin_state_up",
    );
    let mut found = BTreeSet::new();
    for query in queries {
        let places = LedTo::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("routers::led_to"))?;
        for place in places {
            let row = RowReader {
                table: TABLE,
                id: &place.network_id,
            };
            let host = row.parsed("host_id", place.host_id.parse())?;
            found.insert((
                host,
                row.parsed("external_network_id", place.network_id.parse())?,
            ));
        }
    }
    Ok(found)
}

/// The addresses of a subnet that nobody else can have: those that legs, hosts and floating IPs use, and those that hosts have not given
/// up yet.
///
/// # Errors
/// See [`StoreError`].
pub async fn addresses_in_use(
    db: &impl Executor,
    subnet: SubnetId,
) -> Result<BTreeSet<IpAddr>, StoreError> {
    let mut used = addresses_given(db, subnet).await?;
    used.extend(held_addresses::of_subnet(db, subnet).await?);
    Ok(used)
}

/// The addresses of a subnet that legs, hosts and floating IPs use.
///
/// # Errors
/// See [`StoreError`].
pub async fn addresses_given(
    db: &impl Executor,
    subnet: SubnetId,
) -> Result<BTreeSet<IpAddr>, StoreError> {
    let id = subnet.to_string();
    let legs: Vec<String> = router_interface::Entity::find()
        .select_only()
        .column(router_interface::Column::IpAddress)
        .filter(router_interface::Column::SubnetId.eq(id.clone()))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("routers::addresses_given"))?;
    let hosts: Vec<String> = router_gateway::Entity::find()
        .select_only()
        .column(router_gateway::Column::IpAddress)
        .filter(router_gateway::Column::SubnetId.eq(id.clone()))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("routers::addresses_given"))?;
    let floating: Vec<String> = floating_ip::Entity::find()
        .select_only()
        .column(floating_ip::Column::IpAddress)
        .filter(floating_ip::Column::SubnetId.eq(id.clone()))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("routers::addresses_given"))?;
    let row = RowReader {
        table: "subnets",
        id: &id,
    };
    legs.iter()
        .chain(&hosts)
        .chain(&floating)
        .map(|address| row.parsed("ip_address", address.parse()))
        .collect()
}

/// The Ethernet addresses of a network that legs use.
///
/// # Errors
/// See [`StoreError`].
pub async fn macs_in_use(
    db: &impl Executor,
    network: NetworkId,
) -> Result<BTreeSet<MacAddress>, StoreError> {
    let which = Condition::all().add(router_interface::Column::NetworkId.eq(network.to_string()));
    let legs = load_interfaces(db, which).await?;
    Ok(legs.into_iter().map(|leg| leg.mac_address).collect())
}

/// The hosts that were told of a router.
///
/// # Errors
/// See [`StoreError`].
pub async fn hosts_told(
    db: &impl Executor,
    router: RouterId,
) -> Result<BTreeSet<HostId>, StoreError> {
    let hosts: Vec<String> = document::Entity::find()
        .select_only()
        .column(document::Column::HostId)
        .filter(document::Column::Kind.eq(Kind::Router.as_str()))
        .filter(document::Column::ResourceId.eq(router.to_string()))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("routers::hosts_told"))?;
    hosts
        .iter()
        .map(|host| {
            let row = RowReader {
                table: "documents",
                id: host,
            };
            row.parsed("host_id", host.parse())
        })
        .collect()
}

/// Marks a router deleted, frees its name, and gives back its addresses: its legs', and its hosts'. Doing it again is harmless and
/// keeps the first time.
///
/// # Errors
/// [`StoreError::NotFound`] if there is no such router.
pub async fn mark_deleted(
    db: &impl Executor,
    id: RouterId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let Some(row) = get(db, id).await? else {
        return Err(StoreError::NotFound {
            table: TABLE,
            id: id.to_string(),
        });
    };
    let deleted_at = row.deleted_at.unwrap_or(now);
    let scope = scope(db).await?;
    router_interface::Entity::delete_many()
        .filter(router_interface::Column::RouterId.eq(id.to_string()))
        .exec(&scope.handle())
        .await
        .map_err(failed("routers::mark_deleted"))?;
    router_gateway::Entity::delete_many()
        .filter(router_gateway::Column::RouterId.eq(id.to_string()))
        .exec(&scope.handle())
        .await
        .map_err(failed("routers::mark_deleted"))?;
    let none = || Expr::value(Option::<String>::None);
    router::Entity::update_many()
        .col_expr(router::Column::LiveName, none())
        .col_expr(router::Column::ExternalNetworkId, none())
        .col_expr(router::Column::DeletedAt, Expr::value(millis(deleted_at)))
        .filter(router::Column::Id.eq(id.to_string()))
        .exec(&scope.handle())
        .await
        .map_err(failed("routers::mark_deleted"))?;
    scope.finish().await
}
