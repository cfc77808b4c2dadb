//! All rows that hosts' documents are derived from, or those of a few documents, in a few queries however many there
//! are.

mod routers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use berth_common::ids::{HostId, InstanceId, NetworkId, RouterId, SnapshotId, VolumeId};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
    sea_query::SelectStatement,
};

use crate::{
    attachments::{self, AttachmentRow},
    claims::{self, ClaimRole},
    entity::{attachment, claim, instance, network, port},
    error::StoreError,
    executor::Executor,
    instances::{self, InstanceRow},
    networks::{self, NetworkRow},
    ports::{self, PortRow},
    reach::{self, Reached},
    snapshots::{self, SnapshotRow},
    volumes::{self, VolumeRow},
};

mod security;

pub use routers::HostRouter;
use routers::Routers;
pub use security::SecurityRows;

/// What a host shall carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostRows {
    /// The instances that have their current claim on the host and are not gone yet, with their ports by position.
    pub instances: Vec<(InstanceRow, Vec<PortRow>)>,
    /// The networks of these ports, and those of the routers.
    pub networks: Vec<NetworkRow>,
    /// The routers that have a leg in a network of these ports.
    pub routers: Vec<HostRouter>,
    /// The volumes that are on the host and are not gone yet.
    pub volumes: Vec<VolumeRow>,
    /// Which of these instances have which of these volumes, by instance and position.
    pub attachments: Vec<AttachmentRow>,
    /// The snapshots that are on the host and are not gone yet.
    pub snapshots: Vec<SnapshotRow>,
    /// The ports, on all hosts, of those of these networks that reach beyond a host.
    pub reached: Reached,
    /// The security groups of these ports.
    pub security: SecurityRows,
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

/// The attachments of these instances.
fn attachments_of(host: HostId) -> Condition {
    let ids: SelectStatement = instance::Entity::find()
        .select_only()
        .column(instance::Column::Id)
        .filter(instances_of(host))
        .into_query();
    Condition::all().add(attachment::Column::InstanceId.in_subquery(ids))
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
    let places = networks.iter().map(|network| (host, network.id)).collect();
    let volumes = volumes::of_host(db, host).await?;
    let attachments = attachments::load(db, attachments_of(host)).await?;
    let snapshots = snapshots::of_host(db, host).await?;
    let mut by_instance: HashMap<_, Vec<PortRow>> = HashMap::new();
    for port in ports {
        if let Some(instance) = port.instance_id() {
            by_instance.entry(instance).or_default().push(port);
        }
    }
    let instances = instances
        .into_iter()
        .map(|instance| {
            let ports = by_instance.remove(&instance.id).unwrap_or_default();
            (instance, ports)
        })
        .collect();
    let mut rows = BTreeMap::from([(
        host,
        HostRows {
            instances,
            networks,
            routers: Vec::new(),
            volumes,
            attachments,
            snapshots,
            reached: Reached::new(),
            security: SecurityRows::default(),
        },
    )]);
    let routers = Routers::of(db, &places, |_, _| true).await?;
    for (host, rows) in &mut rows {
        routers.add_to(*host, rows);
    }
    security::add(db, &mut rows, |_, _| true).await?;
    add_reached(db, &mut rows, |_, _| true).await?;
    Ok(rows.remove(&host).unwrap_or_default())
}

/// Some documents of a host: those of these instances, networks, volumes and snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPart {
    /// The instances.
    pub instances: BTreeSet<InstanceId>,
    /// The networks.
    pub networks: BTreeSet<NetworkId>,
    /// The routers; all of their networks must be among those. Of others in these networks not everything is read.
    pub routers: BTreeSet<RouterId>,
    /// The volumes.
    pub volumes: BTreeSet<VolumeId>,
    /// The snapshots.
    pub snapshots: BTreeSet<SnapshotId>,
}

/// Reads what some documents of some hosts are derived from: seventeen queries, five more if a host has a router in a network, up to
/// three more if a network reaches beyond a host, and more only beyond hundreds of ids.
/// Every host that is asked for is in the answer.
///
/// The documents of the instances, networks, routers, volumes and snapshots asked for come out as from all rows of the host, [`of_host`];
/// what is asked for and not there has none. Others that come out are incomplete and must be left out: a network's
/// document lists all ports on the host, so their instances are read too, with no other ports and no volumes, and so are those
/// in networks that a router joins to it; and an instance's document tells of its networks and its volumes.
///
/// # Errors
/// See [`StoreError`].
pub async fn of_parts(
    db: &impl Executor,
    parts: &BTreeMap<HostId, HostPart>,
) -> Result<BTreeMap<HostId, HostRows>, StoreError> {
    let asked: BTreeSet<InstanceId> = parts
        .values()
        .flat_map(|part| &part.instances)
        .copied()
        .collect();
    let mut found = Found::default();
    for (instance, host) in current_hosts(db, &asked).await? {
        if parts
            .get(&host)
            .is_some_and(|part| part.instances.contains(&instance))
        {
            found.host_of.insert(instance, host);
        }
    }
    let on_host: Vec<InstanceId> = found.host_of.keys().copied().collect();
    found.ports = ports::of_instances(db, &on_host).await?;
    let of_host = |(host, networks): (&HostId, &BTreeSet<NetworkId>)| {
        let host = *host;
        let networks: Vec<NetworkId> = networks.iter().copied().collect();
        networks.into_iter().map(move |network| (host, network))
    };
    let places = parts
        .iter()
        .flat_map(|(host, part)| of_host((host, &part.networks)))
        .collect();
    let routers = Routers::of(db, &places, |host, router| {
        parts
            .get(&host)
            .is_some_and(|part| part.routers.contains(&router))
    })
    .await?;
    // Whom a network's rules mean may be in another one.
    let pairs = parts
        .iter()
        .flat_map(|(host, part)| of_host((host, &routers.with_joined(*host, &part.networks))))
        .collect();
    found.add_neighbours(ports::on_hosts(db, &pairs).await?);
    found.add_volumes(db, &on_host, parts).await?;
    let mut rows = found.read(db, parts).await?;
    add_snapshots(db, &mut rows, parts).await?;
    for (host, rows) in &mut rows {
        routers.add_to(*host, rows);
    }
    let is_asked = |host: HostId, network: NetworkId| {
        parts
            .get(&host)
            .is_some_and(|part| part.networks.contains(&network))
    };
    security::add(db, &mut rows, is_asked).await?;
    add_reached(db, &mut rows, is_asked).await?;
    Ok(rows)
}

/// Adds the ports, on all hosts, of those of the hosts' networks that are asked for and reach beyond a host.
async fn add_reached(
    db: &impl Executor,
    rows: &mut BTreeMap<HostId, HostRows>,
    is_asked: impl Fn(HostId, NetworkId) -> bool,
) -> Result<(), StoreError> {
    let asked: BTreeMap<NetworkId, &NetworkRow> = rows
        .iter()
        .flat_map(|(host, rows)| rows.networks.iter().map(move |network| (*host, network)))
        .filter(|(host, network)| is_asked(*host, network.id))
        .map(|(_, network)| (network.id, network))
        .collect();
    let spanning: Vec<&NetworkRow> = asked.into_values().collect();
    let reached = reach::ports_of(db, &spanning).await?;
    for (host, rows) in rows {
        for network in &rows.networks {
            if let Some(ports) = reached.get(&network.id)
                && is_asked(*host, network.id)
            {
                rows.reached.insert(network.id, Arc::clone(ports));
            }
        }
    }
    Ok(())
}

/// Adds the snapshots asked for.
async fn add_snapshots(
    db: &impl Executor,
    rows: &mut BTreeMap<HostId, HostRows>,
    parts: &BTreeMap<HostId, HostPart>,
) -> Result<(), StoreError> {
    let ids: BTreeSet<SnapshotId> = parts
        .values()
        .flat_map(|part| &part.snapshots)
        .copied()
        .collect();
    let ids: Vec<SnapshotId> = ids.into_iter().collect();
    for snapshot in snapshots::of_ids(db, &ids).await? {
        let host = snapshot.host_id.filter(|_| snapshot.deleted_at.is_none());
        if let Some(of_host) = host.and_then(|host| rows.get_mut(&host)) {
            of_host.snapshots.push(snapshot);
        }
    }
    Ok(())
}

/// What was found so far of the parts of some hosts.
#[derive(Default)]
struct Found {
    host_of: HashMap<InstanceId, HostId>,
    ports: Vec<PortRow>,
    volumes: Vec<VolumeRow>,
    attachments: Vec<AttachmentRow>,
}

impl Found {
    /// Adds the volumes asked for and those of some instances, with their attachments.
    async fn add_volumes(
        &mut self,
        db: &impl Executor,
        instances: &[InstanceId],
        parts: &BTreeMap<HostId, HostPart>,
    ) -> Result<(), StoreError> {
        let mut ids: BTreeSet<VolumeId> = parts
            .values()
            .flat_map(|part| &part.volumes)
            .copied()
            .collect();
        let asked: Vec<VolumeId> = ids.iter().copied().collect();
        let mut attachments = attachments::of_instances(db, instances).await?;
        attachments.append(&mut attachments::of_volumes(db, &asked).await?);
        attachments::in_order(&mut attachments);
        ids.extend(attachments.iter().map(|row| row.volume_id));
        let ids: Vec<VolumeId> = ids.into_iter().collect();
        self.volumes = volumes::of_ids(db, &ids).await?;
        self.volumes.retain(|volume| volume.deleted_at.is_none());
        self.attachments = attachments;
        Ok(())
    }

    /// Adds the ports of other instances in the networks asked for.
    fn add_neighbours(&mut self, neighbours: Vec<(HostId, PortRow)>) {
        let known: HashSet<_> = self.ports.iter().map(|port| port.id).collect();
        for (host, port) in neighbours {
            if let Some(instance) = port.instance_id()
                && !known.contains(&port.id)
            {
                self.host_of.insert(instance, host);
                self.ports.push(port);
            }
        }
    }

    /// Reads the instances and networks, and sorts everything by host.
    async fn read(
        self,
        db: &impl Executor,
        parts: &BTreeMap<HostId, HostPart>,
    ) -> Result<BTreeMap<HostId, HostRows>, StoreError> {
        let ids: Vec<InstanceId> = self.host_of.keys().copied().collect();
        let mut instances = instances::of_ids(db, &ids).await?;
        instances.retain(|instance| instance.deleted_at.is_none());

        let mut networks_of: BTreeMap<HostId, BTreeSet<NetworkId>> = BTreeMap::new();
        let mut ports_of: HashMap<InstanceId, Vec<PortRow>> = HashMap::new();
        for port in self.ports {
            let Some(instance) = port.instance_id() else {
                continue;
            };
            if let Some(host) = self.host_of.get(&instance) {
                networks_of
                    .entry(*host)
                    .or_default()
                    .insert(port.network_id);
            }
            ports_of.entry(instance).or_default().push(port);
        }
        let ids: BTreeSet<NetworkId> = networks_of.values().flatten().copied().collect();
        let ids: Vec<NetworkId> = ids.into_iter().collect();
        let mut networks = networks::of_ids(db, &ids).await?;
        networks.sort_by_key(|network| (network.created_at, network.id));

        let mut rows: BTreeMap<HostId, HostRows> = parts
            .keys()
            .map(|host| (*host, HostRows::default()))
            .collect();
        for instance in instances {
            let Some(host) = self.host_of.get(&instance.id) else {
                continue;
            };
            let mut ports = ports_of.remove(&instance.id).unwrap_or_default();
            ports.sort_by_key(PortRow::position);
            let of_host = rows.entry(*host).or_default();
            of_host.instances.push((instance, ports));
        }
        for (host, ids) in networks_of {
            let on_host = networks.iter().filter(|network| ids.contains(&network.id));
            rows.entry(host)
                .or_default()
                .networks
                .extend(on_host.cloned());
        }
        let mut host_of_volume: HashMap<VolumeId, HostId> = HashMap::new();
        for volume in self.volumes {
            let Some(host) = volume.host_id else { continue };
            if let Some(of_host) = rows.get_mut(&host) {
                host_of_volume.insert(volume.id, host);
                of_host.volumes.push(volume);
            }
        }
        for attachment in self.attachments {
            let host = host_of_volume.get(&attachment.volume_id);
            if let Some(of_host) = host.and_then(|host| rows.get_mut(host)) {
                of_host.attachments.push(attachment);
            }
        }
        Ok(rows)
    }
}

/// The hosts on which some instances have their current claims.
async fn current_hosts(
    db: &impl Executor,
    ids: &BTreeSet<InstanceId>,
) -> Result<Vec<(InstanceId, HostId)>, StoreError> {
    let ids: Vec<InstanceId> = ids.iter().copied().collect();
    let claims = claims::of_instances(db, &ids).await?;
    Ok(claims
        .into_iter()
        .filter(|claim| claim.role == ClaimRole::Current)
        .map(|claim| (claim.instance_id, claim.host_id))
        .collect())
}
