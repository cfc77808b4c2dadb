//! Ports: the virtual NICs of instances, with their addresses.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use berth_common::{
    document::FixedIp,
    ids::{HostId, InstanceId, NetworkId, PortId, SubnetId},
    names::MacAddress,
};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait,
};

use crate::{
    bulk,
    codec::RowReader,
    entity::{fixed_ip, port},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

/// A virtual NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// Its id.
    pub id: PortId,
    /// The instance it belongs to.
    pub instance_id: InstanceId,
    /// The network it is plugged into.
    pub network_id: NetworkId,
    /// The guest's order of NICs, from 0; unique in the instance.
    pub position: u8,
    /// Its Ethernet address, unique in the network.
    pub mac_address: MacAddress,
    /// Its addresses in order, each unique in its subnet.
    pub fixed_ips: Vec<FixedIp>,
}

fn read(model: port::Model, fixed_ips: Vec<FixedIp>) -> Result<PortRow, StoreError> {
    let row = RowReader {
        table: "ports",
        id: &model.id,
    };
    Ok(PortRow {
        id: row.parsed("id", model.id.parse())?,
        instance_id: row.parsed("instance_id", model.instance_id.parse())?,
        network_id: row.parsed("network_id", model.network_id.parse())?,
        position: row.int("position", model.position)?,
        mac_address: row.parsed("mac_address", model.mac_address.parse())?,
        fixed_ips,
    })
}

fn read_fixed_ip(model: &fixed_ip::Model) -> Result<FixedIp, StoreError> {
    let id = format!("{}/{}", model.port_id, model.position);
    let row = RowReader {
        table: "fixed_ips",
        id: &id,
    };
    Ok(FixedIp {
        subnet_id: row.parsed("subnet_id", model.subnet_id.parse())?,
        ip_address: row.parsed("ip_address", model.ip_address.parse())?,
    })
}

/// A port.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: PortId) -> Result<Option<PortRow>, StoreError> {
    let which = Condition::all().add(port::Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// The ports that meet a condition, by instance and position, with their addresses: two queries.
pub(crate) async fn load(db: &impl Executor, which: Condition) -> Result<Vec<PortRow>, StoreError> {
    let connection = db.handle();
    let port_ids = port::Entity::find()
        .select_only()
        .column(port::Column::Id)
        .filter(which.clone())
        .into_query();
    let ports = port::Entity::find()
        .filter(which)
        .order_by_asc(port::Column::InstanceId)
        .order_by_asc(port::Column::Position)
        .all(&connection)
        .await
        .map_err(failed("ports"))?;
    let addresses = fixed_ip::Entity::find()
        .filter(fixed_ip::Column::PortId.in_subquery(port_ids))
        .order_by_asc(fixed_ip::Column::PortId)
        .order_by_asc(fixed_ip::Column::Position)
        .all(&connection)
        .await
        .map_err(failed("ports"))?;
    let mut by_port: HashMap<&str, Vec<FixedIp>> = HashMap::new();
    for address in &addresses {
        by_port
            .entry(&address.port_id)
            .or_default()
            .push(read_fixed_ip(address)?);
    }
    ports
        .into_iter()
        .map(|model| {
            let fixed_ips = by_port.remove(model.id.as_str()).unwrap_or_default();
            read(model, fixed_ips)
        })
        .collect()
}

fn write(port: &PortRow) -> port::Model {
    port::Model {
        id: port.id.to_string(),
        instance_id: port.instance_id.to_string(),
        network_id: port.network_id.to_string(),
        position: i64::from(port.position),
        mac_address: port.mac_address.to_string(),
    }
}

fn write_fixed_ips(port: &PortRow) -> impl Iterator<Item = fixed_ip::Model> {
    (0_i64..)
        .zip(&port.fixed_ips)
        .map(|(position, address)| fixed_ip::Model {
            port_id: port.id.to_string(),
            position,
            subnet_id: address.subnet_id.to_string(),
            ip_address: address.ip_address.to_string(),
        })
}

/// The ports in some networks of the instances that have their current claim on some hosts, each with its host: two
/// queries, and more only beyond some hundred pairs.
pub(crate) async fn on_hosts(
    db: &impl Executor,
    wanted: &BTreeSet<(HostId, NetworkId)>,
) -> Result<Vec<(HostId, PortRow)>, StoreError> {
    let connection = db.handle();
    let rows = wanted
        .iter()
        .map(|(host, network)| [host.to_string(), network.to_string()])
        .collect();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["host_id", "network_id"],
        rows,
        "SELECT p.id, p.instance_id, p.network_id, p.position, p.mac_address, c.host_id \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p \
         WHERE c.host_id = w.host_id AND c.role = 'current' \
         AND p.instance_id = c.instance_id AND p.network_id = w.network_id",
    );
    let mut ports = Vec::new();
    for query in queries {
        let found = OnHost::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("ports::on_hosts"))?;
        for OnHost { port, host_id } in found {
            let row = RowReader {
                table: "claims",
                id: &port.instance_id,
            };
            let host = row.parsed("host_id", host_id.parse())?;
            ports.push((host, read(port, Vec::new())?));
        }
    }
    ports.sort_by_key(|(_, port)| port.id);
    ports.dedup_by_key(|(_, port)| port.id);
    let mut addresses: HashMap<String, Vec<(i64, FixedIp)>> = HashMap::new();
    for ids in bulk::id_lists(ports.iter().map(|(_, port)| port.id)) {
        let models = fixed_ip::Entity::find()
            .filter(fixed_ip::Column::PortId.is_in(ids))
            .all(&connection)
            .await
            .map_err(failed("ports::on_hosts"))?;
        for model in models {
            let address = read_fixed_ip(&model)?;
            let of_port = addresses.entry(model.port_id).or_default();
            of_port.push((model.position, address));
        }
    }
    for (_, port) in &mut ports {
        let mut fixed_ips = addresses.remove(&port.id.to_string()).unwrap_or_default();
        fixed_ips.sort_by_key(|(position, _)| *position);
        port.fixed_ips = fixed_ips.into_iter().map(|(_, address)| address).collect();
    }
    Ok(ports)
}

/// A port and a column of its instance's claim, as stored.
#[derive(Debug, FromQueryResult)]
struct OnHost {
    #[sea_orm(nested)]
    port: port::Model,
    host_id: String,
}

/// Adds a port and its addresses.
///
/// # Errors
/// [`StoreError::Unique`] with `MacAddress`, `IpAddress` or `Id`; [`StoreError::ForeignKey`] if instance, network
/// or subnet do not exist.
pub async fn insert(db: &impl Executor, port: &PortRow) -> Result<(), StoreError> {
    insert_many(db, std::slice::from_ref(port)).await
}

/// Adds ports and their addresses, all or nothing.
///
/// # Errors
/// As [`insert`], without saying which.
pub async fn insert_many(db: &impl Executor, ports: &[PortRow]) -> Result<(), StoreError> {
    const WHAT: &str = "ports::insert_many";
    let models = ports.iter().map(write).collect();
    let addresses = ports.iter().flat_map(write_fixed_ips).collect();
    let scope = scope(db).await?;
    bulk::insert(&scope.handle(), WHAT, models, None).await?;
    bulk::insert(&scope.handle(), WHAT, addresses, None).await?;
    scope.finish().await
}

/// The ports of an instance, by position.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instance(db: &impl Executor, id: InstanceId) -> Result<Vec<PortRow>, StoreError> {
    of_instances(db, &[id]).await
}

/// The ports of some instances, by instance and position. Two queries for each 8192 instances.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instances(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<Vec<PortRow>, StoreError> {
    let mut ports = Vec::new();
    for ids in bulk::id_lists(ids) {
        ports.append(
            &mut load(
                db,
                Condition::all().add(port::Column::InstanceId.is_in(ids)),
            )
            .await?,
        );
    }
    ports.sort_by_key(|port| (port.instance_id, port.position));
    Ok(ports)
}

/// The addresses that ports have in a subnet.
///
/// # Errors
/// See [`StoreError`].
pub async fn addresses_in_use(
    db: &impl Executor,
    subnet: SubnetId,
) -> Result<BTreeSet<IpAddr>, StoreError> {
    let models = fixed_ip::Entity::find()
        .filter(fixed_ip::Column::SubnetId.eq(subnet.to_string()))
        .all(&db.handle())
        .await
        .map_err(failed("ports::addresses_in_use"))?;
    models
        .iter()
        .map(|model| read_fixed_ip(model).map(|address| address.ip_address))
        .collect()
}

/// The Ethernet addresses that ports have in a network.
///
/// # Errors
/// See [`StoreError`].
pub async fn macs_in_use(
    db: &impl Executor,
    network: NetworkId,
) -> Result<BTreeSet<MacAddress>, StoreError> {
    let macs: Vec<(String, String)> = port::Entity::find()
        .select_only()
        .columns([port::Column::Id, port::Column::MacAddress])
        .filter(port::Column::NetworkId.eq(network.to_string()))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("ports::macs_in_use"))?;
    macs.into_iter()
        .map(|(id, mac)| {
            RowReader {
                table: "ports",
                id: &id,
            }
            .parsed("mac_address", mac.parse())
        })
        .collect()
}

/// Deletes the ports of an instance. One statement: the addresses go with them (`ON DELETE CASCADE`).
pub(crate) async fn delete_where_instance(
    connection: &impl ConnectionTrait,
    id: InstanceId,
) -> Result<(), StoreError> {
    port::Entity::delete_many()
        .filter(port::Column::InstanceId.eq(id.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("ports::delete_where_instance"))
}
