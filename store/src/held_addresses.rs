//! Outside addresses that hosts were told to give up and have not yet, as far as they said: who is silent may answer at them, and
//! translates what comes there, for as long as it runs. Nobody else gets such an address until then.
//!
//! They are known by their network: a subnet may go and come back under another id while a host has its addresses.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use berth_common::{
    ids::{HostId, NetworkId, RouterId, SubnetId},
    names::Cidr,
    units::Generation,
};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    sea_query::OnConflict,
};

use crate::{
    bulk,
    codec::{RowReader, int},
    entity::held_address::{Column, Entity, Model},
    error::{StoreError, failed},
    executor::{Executor, scope},
};

const TABLE: &str = "held_addresses";

/// An address that a host was told to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldAddressRow {
    /// The external network.
    pub network_id: NetworkId,
    /// The address.
    pub ip_address: IpAddr,
    /// The host that has it, as far as is known.
    pub host_id: HostId,
    /// The router that it has it for.
    pub router_id: RouterId,
    /// The first generation of the router's document on the host without the address.
    pub generation: Generation,
}

fn read(model: Model) -> Result<HeldAddressRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.ip_address,
    };
    Ok(HeldAddressRow {
        network_id: row.parsed("network_id", model.network_id.parse())?,
        ip_address: row.parsed("ip_address", model.ip_address.parse())?,
        host_id: row.parsed("host_id", model.host_id.parse())?,
        router_id: row.parsed("router_id", model.router_id.parse())?,
        generation: Generation(row.int("generation", model.generation)?),
    })
}

/// Notes addresses that hosts are told to give up; of one that is known already, the later generation counts, whichever that is.
///
/// # Errors
/// See [`StoreError`].
pub async fn hold(db: &impl Executor, held: &[HeldAddressRow]) -> Result<(), StoreError> {
    if held.is_empty() {
        return Ok(());
    }
    let mut last = HashMap::new();
    for row in held {
        last.insert(key(row), row.generation);
    }
    let mut last: Vec<_> = last.into_iter().collect();
    last.sort();
    let mut models = Vec::new();
    for ([network_id, ip_address, host_id, router_id], generation) in last {
        models.push(Model {
            network_id,
            ip_address,
            host_id,
            router_id,
            generation: int("held_addresses.generation", generation.0)?,
        });
    }
    let replace = OnConflict::columns([
        Column::NetworkId,
        Column::IpAddress,
        Column::HostId,
        Column::RouterId,
    ])
    .update_column(Column::Generation)
    .to_owned();
    let scope = scope(db).await?;
    let connection = scope.handle();
    bulk::insert(&connection, "held_addresses::hold", models, Some(&replace)).await?;
    scope.finish().await
}

fn key(row: &HeldAddressRow) -> [String; 4] {
    [
        row.network_id.to_string(),
        row.ip_address.to_string(),
        row.host_id.to_string(),
        row.router_id.to_string(),
    ]
}

/// Hosts gave addresses up; one that is not there is no error.
///
/// # Errors
/// See [`StoreError`].
pub async fn release(db: &impl Executor, held: &[HeldAddressRow]) -> Result<(), StoreError> {
    if held.is_empty() {
        return Ok(());
    }
    let scope = scope(db).await?;
    bulk::delete_rows::<Entity, 4>(
        &scope.handle(),
        TABLE,
        ["network_id", "ip_address", "host_id", "router_id"],
        held.iter().map(key).collect(),
        "held_addresses::release",
    )
    .await?;
    scope.finish().await
}

/// The addresses of a network that hosts have not given up, in order.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_network(
    db: &impl Executor,
    network: NetworkId,
) -> Result<Vec<HeldAddressRow>, StoreError> {
    let found = Entity::find()
        .filter(Condition::all().add(Column::NetworkId.eq(network.to_string())))
        .order_by_asc(Column::IpAddress)
        .order_by_asc(Column::HostId)
        .order_by_asc(Column::RouterId)
        .all(&db.handle())
        .await
        .map_err(failed("held_addresses::of_network"))?;
    found.into_iter().map(read).collect()
}

/// The addresses that hosts have not given up of the routers beside them. One query for each 256.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_places(
    db: &impl Executor,
    places: &BTreeSet<(HostId, RouterId)>,
) -> Result<Vec<HeldAddressRow>, StoreError> {
    let connection = db.handle();
    let rows = places
        .iter()
        .map(|(host, router)| [host.to_string(), router.to_string()])
        .collect();
    let mut found = Vec::new();
    for which in bulk::row_lists(
        connection.get_database_backend(),
        TABLE,
        ["host_id", "router_id"],
        rows,
    ) {
        let models = Entity::find()
            .filter(which)
            .all(&connection)
            .await
            .map_err(failed("held_addresses::of_places"))?;
        for model in models {
            found.push(read(model)?);
        }
    }
    Ok(found)
}

/// An address and a subnet of the network that it is in, as stored.
#[derive(Debug, FromQueryResult)]
struct InSubnet {
    ip_address: String,
    cidr: String,
}

/// The addresses of a subnet that hosts have not given up.
pub(crate) async fn of_subnet(
    db: &impl Executor,
    subnet: SubnetId,
) -> Result<BTreeSet<IpAddr>, StoreError> {
    let connection = db.handle();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["subnet_id"],
        vec![[subnet.to_string()]],
        "SELECT h.ip_address, s.cidr FROM w CROSS JOIN subnets AS s CROSS JOIN held_addresses AS h \
         WHERE s.id = w.subnet_id AND h.network_id = s.network_id",
    );
    let mut held = BTreeSet::new();
    for query in queries {
        let found = InSubnet::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("held_addresses::of_subnet"))?;
        for InSubnet { ip_address, cidr } in found {
            let row = RowReader {
                table: TABLE,
                id: &ip_address,
            };
            let address: IpAddr = row.parsed("ip_address", ip_address.parse())?;
            let cidr: Cidr = row.parsed("cidr", cidr.parse())?;
            if cidr.net().contains(&address) {
                held.insert(address);
            }
        }
    }
    Ok(held)
}

/// A host goes for good, and nobody waits for it any more.
pub(crate) async fn release_of_host(
    connection: &impl ConnectionTrait,
    host: HostId,
) -> Result<(), StoreError> {
    Entity::delete_many()
        .filter(Column::HostId.eq(host.to_string()))
        .exec(connection)
        .await
        .map(drop)
        .map_err(failed("held_addresses::release_of_host"))
}
