//! Ports: of new instances, with every address chosen ([`Addresses`]); by themselves ([`change`](mod@change)); given to
//! instances and taken from them ([`attach`]).

pub mod attach;
pub mod change;
pub mod wishes;

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
};

use berth_common::{
    ids::{InstanceId, NetworkId, PortId, SecurityGroupId, SubnetId},
    message::request::{InstanceCreate, NetworkAttachment},
    names::{MacAddress, PortName, ProjectName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    networks::NetworkRow,
    ports::{self, AttachmentState, PortAttachment, PortRow, PortWishes},
    routers,
    security_groups::{self as group_rows, SecurityGroupRow},
};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use self::wishes::SecurityWish;
use super::{
    ClaimError, address,
    cloud::Cloud,
    conflict, invalid, networks, not_found,
    routers::{held, joined::Joined},
    security_groups,
};
use crate::{
    context::Writing,
    place::{Need, NetworkNeeds, Request},
    report::port_view::Names,
};

/// The networks that a batch of requests names, and the addresses that are in use on them: read once, then kept up to
/// date.
#[derive(Debug, Default)]
pub struct Addresses {
    networks: HashMap<(ProjectName, String), NetworkRow>,
    ips: HashMap<SubnetId, BTreeSet<IpAddr>>,
    macs: HashMap<NetworkId, BTreeSet<MacAddress>>,
    groups: HashMap<(ProjectName, String), SecurityGroupRow>,
    /// The ports that were there before and are given away.
    given: BTreeSet<PortId>,
    purpose: Purpose,
}

/// What ports are planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To make them. A project's group `default` is made if it is needed and not there yet.
    #[default]
    Creation,
    /// To know what would become of them: nothing is made.
    Question,
    /// To know how many there could be: nothing is made, and what others use counts for nothing: addresses, and ports.
    Count,
}

/// The ports that an instance shall have.
#[derive(Debug, Clone, Copy)]
pub struct PortsOf<'a> {
    /// The instance.
    pub instance: InstanceId,
    /// Its project.
    pub project: &'a ProjectName,
    /// Where it is plugged in.
    pub networks: &'a [NetworkAttachment],
}

impl<'a> From<&'a InstanceCreate> for PortsOf<'a> {
    fn from(request: &'a InstanceCreate) -> Self {
        Self {
            instance: request.id,
            project: &request.project,
            networks: &request.networks,
        }
    }
}

/// The ports of one instance, and their networks in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Planned {
    /// The ports.
    pub ports: Vec<PortRow>,
    /// Those of them that were there before.
    pub given: BTreeSet<PortId>,
    /// Their networks.
    pub networks: Vec<NetworkRow>,
}

impl Planned {
    /// Asks a host for all that the ports need; answers the networks of type `nat` that it gets with them.
    ///
    /// # Errors
    /// A refusal if no host can have all of the networks, or a failure of the database.
    pub async fn demand(
        &self,
        db: &impl Executor,
        cloud: &Cloud,
        joined: &mut Joined,
        wanted: &mut Request,
    ) -> Result<Vec<NetworkRow>, ClaimError> {
        for network in &self.networks {
            networks::demand(network, &mut wanted.networks);
        }
        for port in &self.ports {
            demand(&port.wishes, &mut wanted.networks);
        }
        joined.demand(db, cloud, &self.networks, wanted).await
    }
}

impl Addresses {
    /// None are known yet.
    #[must_use]
    pub fn of(purpose: Purpose) -> Self {
        Self {
            purpose,
            ..Self::default()
        }
    }

    /// Plans the ports of an instance; their addresses are in use from now on.
    ///
    /// # Errors
    /// A refusal that names the address or network, or a failure of the database; then no address is in use.
    pub async fn plan(
        &mut self,
        db: &impl Executor,
        of: PortsOf<'_>,
        now: DateTime<Utc>,
    ) -> Result<Planned, ClaimError> {
        let mut planned = Planned::default();
        for (position, attachment) in (0_u8..).zip(of.networks) {
            match self.one(db, of, position, attachment, now).await {
                Ok((port, network)) => {
                    if attachment.port.is_some() {
                        planned.given.insert(port.id);
                    }
                    planned.ports.push(port);
                    planned.networks.push(network);
                }
                Err(error) => {
                    self.give_back(&planned);
                    return Err(error);
                }
            }
        }
        Ok(planned)
    }

    /// One port of an instance: one that is there, or a new one.
    async fn one(
        &mut self,
        db: &impl Executor,
        of: PortsOf<'_>,
        position: u8,
        attachment: &NetworkAttachment,
        now: DateTime<Utc>,
    ) -> Result<(PortRow, NetworkRow), ClaimError> {
        let project = of.project;
        let of_instance = Some(PortAttachment {
            instance_id: of.instance,
            position,
            state: AttachmentState::Attaching,
        });
        if let Some(port) = &attachment.port {
            let row = resolve(db, project, port).await?;
            check_project(&row, project)?;
            if self.purpose != Purpose::Count {
                check_free(db, &row).await?;
            }
            let groups: Vec<SecurityGroupId> = row.wishes.security_groups.iter().copied().collect();
            for group in group_rows::of_ids(db, &groups).await? {
                let key = (project.clone(), group.id.to_string());
                self.groups.insert(key, group);
            }
            if !self.given.insert(row.id) {
                return Err(conflict(format!(
                    "port {} is given to an instance by this request or one beside it already",
                    called(&row)
                )));
            }
            let network = self.network(db, project, &row.network_id.to_string()).await;
            let network = network.inspect_err(|_| {
                self.given.remove(&row.id);
            })?;
            let attachment = of_instance;
            return Ok((PortRow { attachment, ..row }, network));
        }
        let network = self.network(db, project, &attachment.network).await?;
        let security = SecurityWish {
            port_security_enabled: attachment.port_security_enabled.unwrap_or(true),
            security_groups: attachment.security_groups.as_deref(),
        };
        let wishes = self.wishes(db, project, security, now).await?;
        let new = NewPort {
            id: port_id(of.instance, position)?,
            seed: (of.instance.as_uuid(), position),
            project,
            name: None,
            ip_address: attachment.ip_address,
            mac_address: attachment.mac_address,
            attachment: of_instance,
            delete_with_instance: true,
            wishes,
            fingerprint: String::new(),
            created_at: now,
        };
        Ok((self.port(db, &network, new).await?, network))
    }

    /// What is wanted of a port whose request says no more than this; groups become ids.
    ///
    /// # Errors
    /// A refusal that names the group, or a failure of the database.
    pub async fn wishes(
        &mut self,
        db: &impl Executor,
        project: &ProjectName,
        wish: SecurityWish<'_>,
        now: DateTime<Utc>,
    ) -> Result<PortWishes, ClaimError> {
        let mut groups = BTreeSet::new();
        for group in wish.groups() {
            groups.extend(self.group(db, project, group, now).await?);
        }
        Ok(PortWishes {
            port_security_enabled: wish.port_security_enabled,
            security_groups: groups,
            ..PortWishes::default()
        })
    }

    async fn group(
        &mut self,
        db: &impl Executor,
        project: &ProjectName,
        group: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<SecurityGroupId>, ClaimError> {
        let key = (project.clone(), group.to_owned());
        if let Some(row) = self.groups.get(&key) {
            return Ok(Some(row.id));
        }
        let row = match self.purpose {
            Purpose::Creation => security_groups::resolve_or_make(db, project, group, now).await?,
            Purpose::Question | Purpose::Count => {
                match security_groups::resolve_if_made(db, project, group).await? {
                    Some(row) => row,
                    None => return Ok(None),
                }
            }
        };
        if row.project != *project {
            return Err(invalid(format!(
                "security group {} is of project {}, and the port of project {project}: they must be of the same",
                row.name, row.project
            )));
        }
        let id = row.id;
        self.groups.insert(key, row);
        Ok(Some(id))
    }

    /// The addresses of these ports are free again.
    pub fn give_back(&mut self, planned: &Planned) {
        for port in &planned.ports {
            if planned.given.contains(&port.id) {
                self.given.remove(&port.id);
                continue;
            }
            if let Some(macs) = self.macs.get_mut(&port.network_id) {
                macs.remove(&port.mac_address);
            }
            for ip in &port.fixed_ips {
                if let Some(ips) = self.ips.get_mut(&ip.subnet_id) {
                    ips.remove(&ip.ip_address);
                }
            }
        }
    }

    /// The names of the networks and security groups that were looked up.
    #[must_use]
    pub fn names(&self) -> Names {
        Names {
            networks: self
                .networks
                .values()
                .map(|network| (network.id, network.name.clone()))
                .collect(),
            groups: self
                .groups
                .values()
                .map(|group| (group.id, group.name.clone()))
                .collect(),
        }
    }

    /// A network by its id, or its name in the project; what is in use there is known from now on.
    ///
    /// # Errors
    /// A refusal when there is none, or a failure of the database.
    pub async fn network(
        &mut self,
        db: &impl Executor,
        project: &ProjectName,
        network: &str,
    ) -> Result<NetworkRow, ClaimError> {
        let key = (project.clone(), network.to_owned());
        if let Some(network) = self.networks.get(&key) {
            return Ok(network.clone());
        }
        let network = networks::resolve(db, project, network).await?;
        // Two names may lead to one network: what is known of its addresses stays.
        if self.purpose != Purpose::Count
            && let Entry::Vacant(unknown) = self.macs.entry(network.id)
        {
            let mut macs = ports::macs_in_use(db, network.id).await?;
            macs.extend(routers::macs_in_use(db, network.id).await?);
            unknown.insert(macs);
            for subnet in &network.subnets {
                let mut ips = ports::addresses_in_use(db, subnet.id).await?;
                ips.extend(routers::addresses_in_use(db, subnet.id).await?);
                self.ips.insert(subnet.id, ips);
            }
        }
        self.networks.insert(key, network.clone());
        Ok(network)
    }

    /// A new port in a network that was looked up; its addresses are in use from now on.
    ///
    /// # Errors
    /// A refusal that names the address, or a failure of the database.
    pub async fn port(
        &mut self,
        db: &impl Executor,
        network: &NetworkRow,
        new: NewPort<'_>,
    ) -> Result<PortRow, ClaimError> {
        let macs = self.macs.entry(network.id).or_default();
        let mac_address = match new.mac_address {
            Some(mac) if macs.contains(&mac) => {
                return Err(conflict(format!(
                    "{mac} is already used by another port of network {}",
                    network.name
                )));
            }
            Some(mac) => mac,
            None => address::choose_mac(macs, new.seed),
        };
        let chosen = address::choose_all(&network.subnets, &self.ips, mac_address, new.ip_address);
        let fixed_ips = match chosen {
            Ok(fixed_ips) => fixed_ips,
            Err(error) => return Err(held::refused(db, network, error).await?),
        };
        for ip in &fixed_ips {
            let ips = self.ips.entry(ip.subnet_id).or_default();
            ips.insert(ip.ip_address);
        }
        macs.insert(mac_address);
        Ok(PortRow {
            id: new.id,
            project: new.project.clone(),
            name: new.name,
            network_id: network.id,
            attachment: new.attachment,
            delete_with_instance: new.delete_with_instance,
            mac_address,
            fixed_ips,
            wishes: new.wishes,
            fingerprint: new.fingerprint,
            created_at: new.created_at,
        })
    }
}

/// A port that is not there yet.
pub struct NewPort<'a> {
    /// Its id.
    pub id: PortId,
    /// What its Ethernet address is derived from.
    pub seed: (Uuid, u8),
    /// The owner.
    pub project: &'a ProjectName,
    /// Its name.
    pub name: Option<PortName>,
    /// The address it shall have.
    pub ip_address: Option<IpAddr>,
    /// The Ethernet address it shall have.
    pub mac_address: Option<MacAddress>,
    /// Whose it is.
    pub attachment: Option<PortAttachment>,
    /// Whether it goes with that instance.
    pub delete_with_instance: bool,
    /// What else is wanted of it.
    pub wishes: PortWishes,
    /// What its request contained.
    pub fingerprint: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// The port a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    port: &str,
) -> Result<PortRow, ClaimError> {
    if let Ok(id) = port.parse::<PortId>()
        && let Some(row) = ports::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = port.parse::<PortName>()
        && let Some(row) = ports::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    let shown: String = port.chars().take(80).collect();
    Err(not_found(format!(
        "project {project} has no port {shown:?}, neither by id nor by name"
    )))
}

/// What a port demands of the host of its instance, besides its network.
pub fn demand(wishes: &PortWishes, needs: &mut NetworkNeeds) {
    if wishes.port_security_enabled {
        needs.stateful_filter = Need::Asked;
    }
}

/// What to call a port.
#[must_use]
pub fn called(row: &PortRow) -> String {
    row.name
        .as_ref()
        .map_or_else(|| row.id.to_string(), ToString::to_string)
}

/// A port goes to an instance of its own project.
fn check_project(row: &PortRow, project: &ProjectName) -> Result<(), ClaimError> {
    if row.project == *project {
        return Ok(());
    }
    Err(invalid(format!(
        "port {} is of project {}, and the instance of project {project}: they must be of the same",
        called(row),
        row.project
    )))
}

/// Refuses a port that is of an instance.
async fn check_free(db: &impl Executor, row: &PortRow) -> Result<(), ClaimError> {
    let Some(attachment) = row.attachment else {
        return Ok(());
    };
    let name = super::volumes::called(db, attachment.instance_id).await?;
    Err(conflict(
        if attachment.state == AttachmentState::Detaching {
            format!(
                "port {} is being unplugged from instance {name}; use it when that is done",
                called(row)
            )
        } else {
            format!(
                "port {} is of instance {name}; unplug it there first",
                called(row)
            )
        },
    ))
}

/// What a violated uniqueness of a port means for the sender.
fn taken(error: StoreError, row: &PortRow) -> ClaimError {
    match error {
        StoreError::Unique {
            constraint: UniqueWhat::PortName,
            ..
        } => conflict(format!(
            "project {} already has a port named {}",
            row.project,
            called(row)
        )),
        error => error.into(),
    }
}

/// The documents of other hosts may follow from this port being there, or being gone.
pub fn touch_members(writing: &mut Writing<'_>, port: &PortRow) {
    writing.touch_members(port.network_id);
    writing.touch_group_members(port.network_id, port.groups_in_force());
}

/// The documents of other hosts may follow from an instance's ports being gone: to be said before they are.
///
/// # Errors
/// When the database fails.
pub async fn touch_members_of(
    writing: &mut Writing<'_>,
    instance: InstanceId,
) -> Result<(), ClaimError> {
    for port in ports::of_instance(writing.txn(), instance).await? {
        touch_members(writing, &port);
    }
    Ok(())
}

/// The id of an instance's port: a function of the instance and the position.
fn port_id(instance: InstanceId, position: u8) -> Result<PortId, ClaimError> {
    let name = format!("port {position}");
    PortId::try_from(Uuid::new_v5(&instance.as_uuid(), name.as_bytes()))
        .map_err(|error| invalid(error.to_string()))
}
