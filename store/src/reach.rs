//! Who is in a network, on all hosts: what the documents of networks that reach beyond a host tell of the others, and which
//! hosts have a document of a network at all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use berth_common::{
    document::Kind,
    ids::{HostId, NetworkId, PortId},
    message::heartbeat::NetworkCapabilities,
    names::{InstanceName, MacAddress},
};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QuerySelect, Statement,
};

use crate::{
    bulk,
    codec::RowReader,
    entity::host,
    error::{StoreError, failed},
    executor::Executor,
    networks::NetworkRow,
    security_groups::types_that_span_hosts,
};

/// A port of a network, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReachedPort {
    /// The port.
    pub port_id: PortId,
    /// The host its instance lies on.
    pub host_id: HostId,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The name of its instance.
    pub hostname: InstanceName,
    /// Its addresses in order.
    pub ip_addresses: Vec<IpAddr>,
    /// The address of its host for VXLANs, as far as it is known. Also of other types: a router may lead from there into a VXLAN, and
    /// then its packets come from this address.
    pub tunnel_ip: Option<IpAddr>,
}

/// The ports of networks that reach beyond a host, on all hosts; shared by all hosts that have the network.
pub type Reached = BTreeMap<NetworkId, Arc<Vec<ReachedPort>>>;

/// Which networks' hosts are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Of all that are named.
    All,
    /// Of those that reach beyond a host.
    Spanning,
}

#[derive(Debug, FromQueryResult)]
struct Port {
    id: String,
    network_id: String,
    mac_address: String,
    host_id: String,
    name: String,
}

#[derive(Debug, FromQueryResult)]
struct Address {
    port_id: String,
    position: i64,
    ip_address: String,
}

#[derive(Debug, FromQueryResult)]
struct Place {
    network_id: String,
    host_id: String,
}

#[derive(Debug, FromQueryResult)]
struct Named {
    host_id: String,
    name: String,
}

fn rows(networks: impl IntoIterator<Item = NetworkId>) -> Vec<[String; 1]> {
    let ids: BTreeSet<NetworkId> = networks.into_iter().collect();
    ids.into_iter().map(|id| [id.to_string()]).collect()
}

fn pairs(places: &BTreeSet<(HostId, NetworkId)>) -> Vec<[String; 2]> {
    places
        .iter()
        .map(|(host, network)| [host.to_string(), network.to_string()])
        .collect()
}

/// Reads the ports of those of some networks that reach beyond a host: three queries, and none if all end at their hosts.
pub(crate) async fn ports_of(
    db: &impl Executor,
    networks: &[&NetworkRow],
) -> Result<Reached, StoreError> {
    let spanning: Vec<&NetworkRow> = networks
        .iter()
        .copied()
        .filter(|network| network.network_type.spans_hosts())
        .collect();
    let mut reached = Reached::new();
    if spanning.is_empty() {
        return Ok(reached);
    }
    let ids = rows(spanning.iter().map(|network| network.id));
    let mut addresses = addresses_of(db, ids.clone()).await?;
    let mut found: BTreeMap<(NetworkId, PortId), ReachedPort> = BTreeMap::new();
    for port in places_of(db, ids).await? {
        let row = RowReader {
            table: "ports",
            id: &port.id,
        };
        let network = row.parsed("network_id", port.network_id.parse())?;
        let port_id = row.parsed("id", port.id.parse())?;
        let reached = ReachedPort {
            port_id,
            host_id: row.parsed("host_id", port.host_id.parse())?,
            mac_address: row.parsed("mac_address", port.mac_address.parse())?,
            hostname: row.parsed("name", InstanceName::try_from(port.name))?,
            ip_addresses: addresses.remove(&port.id).unwrap_or_default(),
            tunnel_ip: None,
        };
        // What is found for the last network may come twice.
        found.entry((network, port_id)).or_insert(reached);
    }
    let hosts: BTreeSet<HostId> = found.values().map(|port| port.host_id).collect();
    let tunnel_ips = tunnel_ips(db, &hosts).await?;
    let mut by_network: BTreeMap<NetworkId, Vec<ReachedPort>> = spanning
        .iter()
        .map(|network| (network.id, Vec::new()))
        .collect();
    for ((network, _), mut port) in found {
        port.tunnel_ip = tunnel_ips.get(&port.host_id).copied();
        by_network.entry(network).or_default().push(port);
    }
    for (network, ports) in by_network {
        reached.insert(network, Arc::new(ports));
    }
    Ok(reached)
}

/// The ports of some networks whose instances lie on a host.
async fn places_of(db: &impl Executor, ids: Vec<[String; 1]>) -> Result<Vec<Port>, StoreError> {
    let connection = db.handle();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["network_id"],
        ids,
        "SELECT p.id, p.network_id, p.mac_address, c.host_id, i.name \
         FROM w CROSS JOIN ports AS p CROSS JOIN claims AS c CROSS JOIN instances AS i \
         WHERE p.network_id = w.network_id AND c.instance_id = p.instance_id AND c.role = 'current' \
         AND i.id = p.instance_id AND i.deleted_at IS NULL",
    );
    let mut found = Vec::new();
    for query in queries {
        let mut ports = Port::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("reach::ports_of"))?;
        found.append(&mut ports);
    }
    Ok(found)
}

/// The addresses of the ports of some networks, by port.
async fn addresses_of(
    db: &impl Executor,
    ids: Vec<[String; 1]>,
) -> Result<HashMap<String, Vec<IpAddr>>, StoreError> {
    let connection = db.handle();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["network_id"],
        ids,
        "SELECT f.port_id, f.position, f.ip_address \
         FROM w CROSS JOIN ports AS p CROSS JOIN fixed_ips AS f \
         WHERE p.network_id = w.network_id AND f.port_id = p.id",
    );
    let mut by_port: HashMap<String, BTreeMap<i64, IpAddr>> = HashMap::new();
    for query in queries {
        let found = Address::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("reach::ports_of"))?;
        for address in found {
            let id = format!("{}/{}", address.port_id, address.position);
            let row = RowReader {
                table: "fixed_ips",
                id: &id,
            };
            let ip = row.parsed("ip_address", address.ip_address.parse())?;
            let of_port = by_port.entry(address.port_id).or_default();
            of_port.insert(address.position, ip);
        }
    }
    Ok(by_port
        .into_iter()
        .map(|(port, addresses)| (port, addresses.into_values().collect()))
        .collect())
}

/// The addresses of hosts for VXLAN, of those that have one.
async fn tunnel_ips(
    db: &impl Executor,
    hosts: &BTreeSet<HostId>,
) -> Result<BTreeMap<HostId, IpAddr>, StoreError> {
    let mut tunnel_ips = BTreeMap::new();
    for ids in bulk::id_lists(hosts.iter().copied()) {
        let found: Vec<(String, String)> = host::Entity::find()
            .select_only()
            .columns([host::Column::Id, host::Column::Network])
            .filter(host::Column::Id.is_in(ids))
            .into_tuple()
            .all(&db.handle())
            .await
            .map_err(failed("reach::tunnel_ips"))?;
        for (id, network) in found {
            let row = RowReader {
                table: "hosts",
                id: &id,
            };
            let network: NetworkCapabilities = row.json("network", &network)?;
            let id = row.parsed("id", id.parse())?;
            if let Some(tunnel_ip) = network.tunnel_ip {
                tunnel_ips.insert(id, tunnel_ip);
            }
        }
    }
    Ok(tunnel_ips)
}

/// The hosts that have ports in some networks, and so a document of each: one query for some hundred networks.
///
/// # Errors
/// See [`StoreError`].
pub async fn hosts_of(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
    among: Among,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let spanning = only(among);
    let text = format!(
        "SELECT DISTINCT p.network_id, c.host_id \
         FROM w CROSS JOIN networks AS n CROSS JOIN ports AS p CROSS JOIN claims AS c \
         WHERE n.id = w.network_id AND p.network_id = n.id AND c.instance_id = p.instance_id \
         AND c.role = 'current'{spanning}"
    );
    places(db, networks, &text, "reach::hosts_of").await
}

/// The hosts that have a document of some networks, whether they have ports there, or a router that needs the network: one query
/// for some hundred networks.
///
/// # Errors
/// See [`StoreError`].
pub async fn hosts_told(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
    among: Among,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let spanning = only(among);
    let text = format!(
        "SELECT n.id AS network_id, d.host_id \
         FROM w CROSS JOIN networks AS n CROSS JOIN documents AS d \
         WHERE n.id = w.network_id AND d.kind = '{}' AND d.resource_id = n.id \
         AND d.spec_json IS NOT NULL{spanning}",
        Kind::Network.as_str()
    );
    places(db, networks, &text, "reach::hosts_told").await
}

/// Which of these hosts have a document of the network beside them: one query for some hundred pairs.
///
/// # Errors
/// See [`StoreError`].
pub async fn told_on(
    db: &impl Executor,
    places: &BTreeSet<(HostId, NetworkId)>,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let text = format!(
        "SELECT d.resource_id AS network_id, d.host_id \
         FROM w CROSS JOIN documents AS d \
         WHERE d.host_id = w.host_id AND d.kind = '{}' AND d.resource_id = w.network_id \
         AND d.spec_json IS NOT NULL",
        Kind::Network.as_str()
    );
    let backend = db.handle().get_database_backend();
    let queries = bulk::queries_from(backend, ["host_id", "network_id"], pairs(places), &text);
    find_places(db, queries, "reach::told_on").await
}

/// The condition that leaves the networks `n` which are asked for.
fn only(among: Among) -> String {
    match among {
        Among::All => String::new(),
        Among::Spanning => format!(" AND n.network_type IN ({})", types_that_span_hosts()),
    }
}

async fn places(
    db: &impl Executor,
    networks: &BTreeSet<NetworkId>,
    text: &str,
    what: &'static str,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let queries = bulk::queries_from(
        db.handle().get_database_backend(),
        ["network_id"],
        rows(networks.iter().copied()),
        text,
    );
    find_places(db, queries, what).await
}

async fn find_places(
    db: &impl Executor,
    queries: impl Iterator<Item = Statement>,
    what: &'static str,
) -> Result<BTreeSet<(HostId, NetworkId)>, StoreError> {
    let connection = db.handle();
    let mut hosts = BTreeSet::new();
    for query in queries {
        let found = Place::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed(what))?;
        for place in found {
            let row = RowReader {
                table: "networks",
                id: &place.network_id,
            };
            let network = row.parsed("network_id", place.network_id.parse())?;
            hosts.insert((row.parsed("host_id", place.host_id.parse())?, network));
        }
    }
    Ok(hosts)
}

/// The instances that have ports in a network on the host beside it, by name: one query for some hundred pairs.
///
/// # Errors
/// See [`StoreError`].
pub async fn instances_on(
    db: &impl Executor,
    places: &BTreeSet<(HostId, NetworkId)>,
) -> Result<BTreeSet<(HostId, InstanceName)>, StoreError> {
    let connection = db.handle();
    let queries = bulk::queries_from(
        connection.get_database_backend(),
        ["host_id", "network_id"],
        pairs(places),
        "SELECT DISTINCT c.host_id, i.name \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p CROSS JOIN instances AS i \
         WHERE c.host_id = w.host_id AND c.role = 'current' AND p.instance_id = c.instance_id \
         AND p.network_id = w.network_id AND i.id = c.instance_id",
    );
    let mut instances = BTreeSet::new();
    for query in queries {
        let found = Named::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("reach::instances_on"))?;
        for Named { host_id, name } in found {
            let row = RowReader {
                table: "instances",
                id: &name,
            };
            let host = row.parsed("host_id", host_id.parse())?;
            instances.insert((
                host,
                row.parsed("name", InstanceName::try_from(name.clone()))?,
            ));
        }
    }
    Ok(instances)
}

/// The networks that reach beyond a host and in which this one has ports.
///
/// # Errors
/// See [`StoreError`].
pub async fn spanning_on(
    db: &impl Executor,
    host: HostId,
) -> Result<BTreeSet<NetworkId>, StoreError> {
    let spanning = only(Among::Spanning);
    let text = format!(
        "SELECT DISTINCT p.network_id, c.host_id \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p CROSS JOIN networks AS n \
         WHERE c.host_id = w.host_id AND c.role = 'current' AND p.instance_id = c.instance_id \
         AND n.id = p.network_id{spanning}"
    );
    let queries = bulk::queries_from(
        db.handle().get_database_backend(),
        ["host_id"],
        vec![[host.to_string()]],
        &text,
    );
    let places = find_places(db, queries, "reach::spanning_on").await?;
    Ok(places.into_iter().map(|(_, network)| network).collect())
}
