//! Ports: virtual NICs in networks, with their addresses. Each is of an instance, or of none.
//!
//! ```text
//!  attach ─▶ attaching ── its host has it so ─▶ attached
//!                └──────── detach ────────────────┴──────▶ detaching ── its host saw it gone ─▶ of none, or no row
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use berth_common::{
    document::{AddressPair, FixedIp, PortMirror, PortQos},
    ids::{HostId, InstanceId, NetworkId, PortId, SecurityGroupId, SubnetId},
    names::{MacAddress, PortName, ProjectName},
};
use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect,
};

pub use crate::attachments::AttachmentState;
use crate::{
    bulk,
    codec::{RowReader, millis, opt_json},
    entity::{
        fixed_ip,
        port::{self, Column},
        port_security_group,
    },
    error::{StoreError, failed},
    executor::{Executor, scope},
};

mod change;

pub(crate) use change::leave_instance;
pub use change::{attach, delete, free, set_name, set_state, set_wishes};

const TABLE: &str = "ports";

/// A virtual NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// Its id.
    pub id: PortId,
    /// The owner.
    pub project: ProjectName,
    /// Its name, unique in the project.
    pub name: Option<PortName>,
    /// The network it is plugged into.
    pub network_id: NetworkId,
    /// The instance it belongs to, if there is one.
    pub attachment: Option<PortAttachment>,
    /// Whether it goes with that instance, and not only away from it.
    pub delete_with_instance: bool,
    /// Its Ethernet address, unique in the network.
    pub mac_address: MacAddress,
    /// Its addresses in order, each unique in its subnet.
    pub fixed_ips: Vec<FixedIp>,
    /// What else is wanted of it.
    pub wishes: PortWishes,
    /// What the request that made it contained, to recognise its repetition.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// A port is of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortAttachment {
    /// The instance.
    pub instance_id: InstanceId,
    /// The guest's order of NICs, from 0; unique in the instance.
    pub position: u8,
    /// How far it is.
    pub state: AttachmentState,
}

/// What can be wished of a port at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortWishes {
    /// Whether the guest sees a cable in it.
    pub admin_state_up: bool,
    /// Whether groups and pairs hold; else its guest may send and receive anything.
    pub port_security_enabled: bool,
    /// Its security groups, each once, by id.
    pub security_groups: BTreeSet<SecurityGroupId>,
    /// Further addresses that its guest may use.
    pub allowed_address_pairs: Vec<AddressPair>,
    /// How fast it may be.
    pub qos: PortQos,
    /// Where copies of its packets go.
    pub mirrors: Vec<PortMirror>,
}

impl Default for PortWishes {
    /// Up, without port security, groups, limits or mirrors.
    fn default() -> Self {
        Self {
            admin_state_up: true,
            port_security_enabled: false,
            security_groups: BTreeSet::new(),
            allowed_address_pairs: Vec::new(),
            qos: PortQos::default(),
            mirrors: Vec::new(),
        }
    }
}

impl PortRow {
    /// The instance it belongs to, if there is one.
    #[must_use]
    pub fn instance_id(&self) -> Option<InstanceId> {
        self.attachment.map(|attachment| attachment.instance_id)
    }

    /// The guest's order of its NICs; those of no instance come last.
    #[must_use]
    pub fn position(&self) -> u8 {
        self.attachment
            .map_or(u8::MAX, |attachment| attachment.position)
    }

    /// Whether its instance shall have it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.attachment
            .is_some_and(|attachment| attachment.state != AttachmentState::Detaching)
    }

    /// The groups that hold for it.
    pub fn groups_in_force(&self) -> impl Iterator<Item = SecurityGroupId> {
        self.wishes
            .security_groups
            .iter()
            .filter(|_| self.wishes.port_security_enabled)
            .copied()
    }
}

/// Some ports in the order of their instances, and in each as the guest has them.
fn in_order(ports: &mut [PortRow]) {
    ports.sort_by_key(|port| {
        (
            port.instance_id(),
            port.position(),
            port.created_at,
            port.id,
        )
    });
}

/// What lies in other tables.
#[derive(Default)]
struct Parts {
    fixed_ips: Vec<FixedIp>,
    security_groups: BTreeSet<SecurityGroupId>,
}

fn read(model: port::Model, parts: Parts) -> Result<PortRow, StoreError> {
    let row = RowReader {
        table: TABLE,
        id: &model.id,
    };
    let attachment = match (&model.instance_id, model.position, &model.state) {
        (None, None, None) => None,
        (Some(instance), Some(position), Some(state)) => Some(PortAttachment {
            instance_id: row.parsed("instance_id", instance.parse())?,
            position: row.int("position", position)?,
            state: row.parsed("state", AttachmentState::from_name(state))?,
        }),
        _ => {
            return Err(row.corrupt(
                "instance_id",
                "an instance, a position and a state belong together, and one of them is missing",
            ));
        }
    };
    Ok(PortRow {
        id: row.parsed("id", model.id.parse())?,
        project: row.parsed("project", model.project.parse())?,
        name: model
            .name
            .map(|name| row.parsed("name", name.parse()))
            .transpose()?,
        network_id: row.parsed("network_id", model.network_id.parse())?,
        attachment,
        delete_with_instance: model.delete_with_instance,
        mac_address: row.parsed("mac_address", model.mac_address.parse())?,
        fixed_ips: parts.fixed_ips,
        wishes: PortWishes {
            admin_state_up: model.admin_state_up,
            port_security_enabled: model.port_security_enabled,
            security_groups: parts.security_groups,
            allowed_address_pairs: row.opt_json(
                "allowed_address_pairs",
                model.allowed_address_pairs.as_deref(),
            )?,
            qos: row.opt_json("qos", model.qos.as_deref())?,
            mirrors: row.opt_json("mirrors", model.mirrors.as_deref())?,
        },
        created_at: row.time("created_at", model.created_at)?,
        fingerprint: model.fingerprint,
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

/// Reads what of some ports lies in other tables: two queries for each 8192 ports.
async fn complete(
    db: &impl Executor,
    models: Vec<port::Model>,
) -> Result<Vec<PortRow>, StoreError> {
    let connection = db.handle();
    let mut parts: HashMap<String, Parts> = HashMap::new();
    for ids in bulk::id_lists(models.iter().map(|model| &model.id)) {
        let addresses = fixed_ip::Entity::find()
            .filter(fixed_ip::Column::PortId.is_in(ids.clone()))
            .order_by_asc(fixed_ip::Column::PortId)
            .order_by_asc(fixed_ip::Column::Position)
            .all(&connection)
            .await
            .map_err(failed(TABLE))?;
        for address in addresses {
            let fixed = read_fixed_ip(&address)?;
            let of_port = parts.entry(address.port_id).or_default();
            of_port.fixed_ips.push(fixed);
        }
        let groups = port_security_group::Entity::find()
            .filter(port_security_group::Column::PortId.is_in(ids))
            .all(&connection)
            .await
            .map_err(failed(TABLE))?;
        for link in groups {
            let row = RowReader {
                table: "port_security_groups",
                id: &link.port_id,
            };
            let group = row.parsed("group_id", link.group_id.parse())?;
            let of_port = parts.entry(link.port_id).or_default();
            of_port.security_groups.insert(group);
        }
    }
    models
        .into_iter()
        .map(|model| {
            let parts = parts.remove(&model.id).unwrap_or_default();
            read(model, parts)
        })
        .collect()
}

/// The ports that meet a condition, by instance and position, with their addresses and groups: three queries.
pub(crate) async fn load(db: &impl Executor, which: Condition) -> Result<Vec<PortRow>, StoreError> {
    let models = port::Entity::find()
        .filter(which)
        .all(&db.handle())
        .await
        .map_err(failed(TABLE))?;
    let mut ports = complete(db, models).await?;
    in_order(&mut ports);
    Ok(ports)
}

fn write(port: &PortRow) -> Result<port::Model, StoreError> {
    let attachment = port.attachment;
    Ok(port::Model {
        id: port.id.to_string(),
        instance_id: attachment.map(|of| of.instance_id.to_string()),
        network_id: port.network_id.to_string(),
        position: attachment.map(|of| i64::from(of.position)),
        mac_address: port.mac_address.to_string(),
        project: port.project.to_string(),
        name: port.name.as_ref().map(ToString::to_string),
        state: attachment.map(|of| of.state.as_str().to_owned()),
        delete_with_instance: port.delete_with_instance,
        admin_state_up: port.wishes.admin_state_up,
        port_security_enabled: port.wishes.port_security_enabled,
        allowed_address_pairs: opt_json(
            "ports.allowed_address_pairs",
            &port.wishes.allowed_address_pairs,
        )?,
        qos: opt_json("ports.qos", &port.wishes.qos)?,
        mirrors: opt_json("ports.mirrors", &port.wishes.mirrors)?,
        fingerprint: port.fingerprint.clone(),
        created_at: millis(port.created_at),
    })
}

fn write_fixed_ips(port: PortId, addresses: &[FixedIp]) -> impl Iterator<Item = fixed_ip::Model> {
    (0_i64..)
        .zip(addresses)
        .map(move |(position, address)| fixed_ip::Model {
            port_id: port.to_string(),
            position,
            subnet_id: address.subnet_id.to_string(),
            ip_address: address.ip_address.to_string(),
        })
}

fn write_groups(
    port: PortId,
    groups: &BTreeSet<SecurityGroupId>,
) -> impl Iterator<Item = port_security_group::Model> {
    groups.iter().map(move |group| port_security_group::Model {
        port_id: port.to_string(),
        group_id: group.to_string(),
    })
}

/// The ports in some networks of the instances that have their current claim on some hosts, each with its host: three
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
        "SELECT p.*, c.host_id \
         FROM w CROSS JOIN claims AS c CROSS JOIN ports AS p \
         WHERE c.host_id = w.host_id AND c.role = 'current' \
         AND p.instance_id = c.instance_id AND p.network_id = w.network_id",
    );
    let mut hosts: HashMap<PortId, HostId> = HashMap::new();
    let mut models = Vec::new();
    for query in queries {
        let found = OnHost::find_by_statement(query)
            .all(&connection)
            .await
            .map_err(failed("ports::on_hosts"))?;
        for OnHost { port, host_id } in found {
            let row = RowReader {
                table: TABLE,
                id: &port.id,
            };
            let id = row.parsed("id", port.id.parse())?;
            let host = row.parsed("host_id", host_id.parse())?;
            if hosts.insert(id, host).is_none() {
                models.push(port);
            }
        }
    }
    let mut ports = Vec::new();
    for port in complete(db, models).await? {
        if let Some(host) = hosts.get(&port.id) {
            ports.push((*host, port));
        }
    }
    ports.sort_by_key(|(_, port)| port.id);
    Ok(ports)
}

/// A port and a column of its instance's claim, as stored.
#[derive(Debug, FromQueryResult)]
struct OnHost {
    #[sea_orm(nested)]
    port: port::Model,
    host_id: String,
}

/// Adds a port, its addresses and its groups.
///
/// # Errors
/// [`StoreError::Unique`] with `MacAddress`, `IpAddress`, `PortName` or `Id`; [`StoreError::ForeignKey`] if instance,
/// network, subnet or a group do not exist.
pub async fn insert(db: &impl Executor, port: &PortRow) -> Result<(), StoreError> {
    insert_many(db, std::slice::from_ref(port)).await
}

/// Adds ports, their addresses and their groups, all or nothing.
///
/// # Errors
/// As [`insert`], without saying which.
pub async fn insert_many(db: &impl Executor, ports: &[PortRow]) -> Result<(), StoreError> {
    const WHAT: &str = "ports::insert_many";
    let models = ports.iter().map(write).collect::<Result<_, _>>()?;
    let addresses = ports
        .iter()
        .flat_map(|port| write_fixed_ips(port.id, &port.fixed_ips))
        .collect();
    let groups = ports
        .iter()
        .flat_map(|port| write_groups(port.id, &port.wishes.security_groups))
        .collect();
    let scope = scope(db).await?;
    bulk::insert(&scope.handle(), WHAT, models, None).await?;
    bulk::insert(&scope.handle(), WHAT, addresses, None).await?;
    bulk::insert(&scope.handle(), WHAT, groups, None).await?;
    scope.finish().await
}

/// One port.
///
/// # Errors
/// See [`StoreError`].
pub async fn get(db: &impl Executor, id: PortId) -> Result<Option<PortRow>, StoreError> {
    let which = Condition::all().add(Column::Id.eq(id.to_string()));
    Ok(load(db, which).await?.pop())
}

/// Some ports, by instance and position.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_ids(db: &impl Executor, ids: &[PortId]) -> Result<Vec<PortRow>, StoreError> {
    let mut ports = Vec::new();
    for ids in bulk::id_lists(ids) {
        ports.append(&mut load(db, Condition::all().add(Column::Id.is_in(ids))).await?);
    }
    in_order(&mut ports);
    Ok(ports)
}

/// The port with this name.
///
/// # Errors
/// See [`StoreError`].
pub async fn find_by_name(
    db: &impl Executor,
    project: &ProjectName,
    name: &PortName,
) -> Result<Option<PortRow>, StoreError> {
    let which = Condition::all()
        .add(Column::Project.eq(project.as_str()))
        .add(Column::Name.eq(name.as_str()));
    Ok(load(db, which).await?.pop())
}

/// Which ports are listed: those for which all of it is true.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortFilter {
    /// Of this project.
    pub project: Option<ProjectName>,
    /// In this network.
    pub network: Option<NetworkId>,
    /// Of this instance.
    pub instance: Option<InstanceId>,
}

/// One page of ports, by id: those after this one, at most so many.
///
/// # Errors
/// See [`StoreError`].
pub async fn list(
    db: &impl Executor,
    filter: &PortFilter,
    after: Option<PortId>,
    limit: u32,
) -> Result<Vec<PortRow>, StoreError> {
    let which = Condition::all()
        .add_option(
            filter
                .project
                .as_ref()
                .map(|of| Column::Project.eq(of.as_str())),
        )
        .add_option(
            filter
                .network
                .map(|of| Column::NetworkId.eq(of.to_string())),
        )
        .add_option(
            filter
                .instance
                .map(|of| Column::InstanceId.eq(of.to_string())),
        )
        .add_option(after.map(|after| Column::Id.gt(after.to_string())));
    let models = port::Entity::find()
        .filter(which)
        .order_by_asc(Column::Id)
        .limit(u64::from(limit))
        .all(&db.handle())
        .await
        .map_err(failed("ports::list"))?;
    complete(db, models).await
}

/// The ports of an instance, by position.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instance(db: &impl Executor, id: InstanceId) -> Result<Vec<PortRow>, StoreError> {
    of_instances(db, &[id]).await
}

/// The ports of some instances, by instance and position. Three queries for each 8192 instances.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_instances(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<Vec<PortRow>, StoreError> {
    let mut ports = Vec::new();
    for ids in bulk::id_lists(ids) {
        ports.append(&mut load(db, Condition::all().add(Column::InstanceId.is_in(ids))).await?);
    }
    in_order(&mut ports);
    Ok(ports)
}

/// The ports of some instances whose attachment is under way, by instance and position.
///
/// # Errors
/// See [`StoreError`].
pub async fn unsettled_of_instances(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<Vec<PortRow>, StoreError> {
    let mut ports = Vec::new();
    for ids in bulk::id_lists(ids) {
        let which = Condition::all()
            .add(Column::InstanceId.is_in(ids))
            .add(Column::State.ne(AttachmentState::Attached.as_str()));
        ports.append(&mut load(db, which).await?);
    }
    in_order(&mut ports);
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
        .columns([Column::Id, Column::MacAddress])
        .filter(Column::NetworkId.eq(network.to_string()))
        .into_tuple()
        .all(&db.handle())
        .await
        .map_err(failed("ports::macs_in_use"))?;
    macs.into_iter()
        .map(|(id, mac)| {
            RowReader {
                table: TABLE,
                id: &id,
            }
            .parsed("mac_address", mac.parse())
        })
        .collect()
}
