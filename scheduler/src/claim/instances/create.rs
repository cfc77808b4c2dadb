//! Creating instances: as many as wait, with one transaction and a fixed number of statements.
//!
//! ```text
//!  each request:  validate ▶ known already? ▶ ports, hints ▶ place ─┬▶ host: row, ports, claim
//!                                                                  └▶ none: row with the reason
//!  all together:  rows are written at once; the documents follow at the commit
//! ```
//!
//! Placement sees each instance as soon as it is placed, so a batch fills hosts exactly as single requests would.

use std::collections::{BTreeSet, HashMap, HashSet};

use berth_common::{
    document::{DesiredPower, DocumentKey},
    ids::{DecisionId, HostId, InstanceId, PortId, ServerGroupId},
    message::{
        report::{Fault, FaultCode},
        request::{InstanceCreate, NetworkAttachment},
        view::InstanceView,
    },
    names::{HostName, InstanceName, ProjectName, VolumeName},
    refusal::{Refusal, RefusalCode},
    units::{Generation, MemoryMb, Vcpus},
};
use berth_store::{
    StoreError, UniqueWhat,
    attachments::AttachmentRow,
    claims::{self, ClaimRole, ClaimRow},
    decisions::{self, DecisionRow},
    documents::DocumentRow,
    instances::{self, BootSource, InstanceObserved, InstanceRow, Placement},
    ports::{self, PortRow},
};

use super::root::{self, Given, Root};
use crate::{
    claim::{
        ClaimError,
        cloud::Placed,
        conflict, fingerprint,
        hints::{self, Asker, Lookups, Resolved},
        invalid,
        ports::{
            self as claim_ports, Addresses, Planned,
            attach::MAX_PORTS,
            wishes::{attachment_mistakes, too_many},
        },
        routers::joined::Joined,
    },
    context::Writing,
    place::Demand,
    report::{decision, explain::MOST_DECISIONS, port_view::Names, show, view},
};

/// A request is the first attempt to place its instance, also when it is repeated.
const FIRST_ATTEMPT: u32 = 1;

/// What became of one request.
pub type Answer = Result<InstanceView, Refusal>;

/// Creates instances, one after the other, each granted or refused by itself. An instance for which there is no host is
/// kept, in error with the reason, and placed again when its request is repeated.
///
/// # Errors
/// When the database fails; then nothing of it may be kept.
pub async fn create(
    writing: &mut Writing<'_>,
    requests: &[InstanceCreate],
) -> Result<Vec<Answer>, ClaimError> {
    let mut batch = Batch::read(writing, requests).await?;
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        let mark = writing.cloud.mark();
        match batch.one(writing, request).await {
            Ok(answer) => answers.push(answer),
            Err(ClaimError::Refused(refusal)) => {
                writing.cloud.undo_to(mark);
                answers.push(Err(refusal));
            }
            Err(error) => return Err(error),
        }
    }
    batch.write(writing).await?;
    Ok(answers)
}

/// What a violated uniqueness means for the sender. Everything was looked up before, under the right to write, so only
/// a writer that should not be could have come between.
#[must_use]
pub fn taken(error: ClaimError, request: &InstanceCreate) -> ClaimError {
    match error {
        ClaimError::Store(StoreError::Unique {
            constraint: UniqueWhat::InstanceName,
            ..
        }) => name_taken(request),
        ClaimError::Store(StoreError::Unique {
            constraint: UniqueWhat::IpAddress,
            ..
        }) => conflict("an address of this instance was taken meanwhile"),
        ClaimError::Store(StoreError::Unique {
            constraint: UniqueWhat::MacAddress,
            ..
        }) => conflict("a MAC address of this instance was taken meanwhile"),
        error => error,
    }
}

fn name_taken(request: &InstanceCreate) -> ClaimError {
    conflict(format!(
        "project {} already has an instance named {}",
        request.project, request.name
    ))
}

/// What was found out for one request.
struct Means<'a> {
    fingerprint: String,
    planned: &'a Planned,
    /// The volume that the instance boots from.
    root: Option<&'a Root>,
}

/// What a batch knows, and what it will write.
struct Batch {
    /// The rows that some of its ids have, also those it is going to write.
    known: HashMap<InstanceId, InstanceRow>,
    /// The names of living instances that some of its requests have.
    names: HashSet<(ProjectName, InstanceName)>,
    addresses: Addresses,
    lookups: Lookups,
    joined: Joined,
    /// Rows to write.
    rows: Vec<InstanceRow>,
    ports: Vec<PortRow>,
    /// Those of them that are there already.
    given_ports: BTreeSet<PortId>,
    claims: Vec<ClaimRow>,
    /// The volumes that some of them boot from.
    given: Vec<Given>,
    /// Rows that are there and were placed again: why they have no place, if they have none.
    again: Vec<(InstanceId, Option<Fault>)>,
}

impl Batch {
    async fn read(writing: &Writing<'_>, requests: &[InstanceCreate]) -> Result<Self, ClaimError> {
        let ids: Vec<InstanceId> = requests.iter().map(|request| request.id).collect();
        let names: Vec<(ProjectName, InstanceName)> = requests
            .iter()
            .map(|request| (request.project.clone(), request.name.clone()))
            .collect();
        let known = instances::of_ids(writing.txn(), &ids).await?;
        let living = instances::living_by_names(writing.txn(), &names).await?;
        Ok(Self {
            known: known.into_iter().map(|row| (row.id, row)).collect(),
            names: living
                .into_iter()
                .map(|row| (row.project, row.name))
                .collect(),
            addresses: Addresses::default(),
            lookups: Lookups::default(),
            joined: Joined::default(),
            rows: Vec::new(),
            ports: Vec::new(),
            given_ports: BTreeSet::new(),
            claims: Vec::new(),
            given: Vec::new(),
            again: Vec::new(),
        })
    }

    /// Decides one request. A refusal that leaves nothing behind is an error, one that is kept an answer.
    async fn one(
        &mut self,
        writing: &mut Writing<'_>,
        request: &InstanceCreate,
    ) -> Result<Answer, ClaimError> {
        validate(request)?;
        let fingerprint = fingerprint(request)?;
        let before = self.known.get(&request.id).cloned();
        if let Some(row) = &before {
            if row.fingerprint != fingerprint {
                return Err(conflict(format!(
                    "instance {} exists already and was asked for with another content; use a new id for a new \
                     instance",
                    row.id
                )));
            }
            if row.placement_fault.is_none() || row.deleted_at.is_some() {
                return self.as_it_is(writing, row).await.map(Ok);
            }
        } else if self
            .names
            .contains(&(request.project.clone(), request.name.clone()))
        {
            return Err(name_taken(request));
        }

        let root = Root::find(writing, request, before.as_ref(), &self.given).await?;
        let planned = self
            .addresses
            .plan(writing.txn(), request.into(), writing.now)
            .await?;
        let means = Means {
            fingerprint,
            planned: &planned,
            root: root.as_ref(),
        };
        let placed = self.place(writing, request, before.as_ref(), means).await;
        let is_on_host = matches!(&placed, Ok(Ok(_)));
        if !is_on_host {
            self.addresses.give_back(&planned);
        }
        placed
    }

    /// An instance that was asked for before; in this very batch, perhaps.
    async fn as_it_is(
        &mut self,
        writing: &mut Writing<'_>,
        row: &InstanceRow,
    ) -> Result<InstanceView, ClaimError> {
        let host = writing.cloud.placed(row.id).map(|placed| placed.host);
        let ports: Vec<PortRow> = self
            .ports
            .iter()
            .filter(|port| port.instance_id() == Some(row.id))
            .cloned()
            .collect();
        // Its claim is a row only when the whole batch is written.
        if self.claims.iter().any(|fresh| fresh.instance_id == row.id) {
            let volumes: Vec<_> = self
                .given
                .iter()
                .filter(|given| given.attachment.instance_id == row.id)
                .map(|given| (given.attachment, given.name.clone()))
                .collect();
            let names = self.addresses.names();
            return Ok(first_view(writing, row, host, (&ports, &volumes), &names));
        }
        show::instance(writing.context(), writing.txn(), row).await
    }

    async fn place(
        &mut self,
        writing: &mut Writing<'_>,
        request: &InstanceCreate,
        before: Option<&InstanceRow>,
        means: Means<'_>,
    ) -> Result<Answer, ClaimError> {
        let Means {
            fingerprint,
            planned,
            root,
        } = means;
        let boot_source = match (root, &request.image) {
            (Some(root), _) => root.boot_source(),
            (None, Some(image)) => BootSource::Image(image.clone()),
            (None, None) => return Err(invalid("image is missing")),
        };
        let asker = Asker {
            project: &request.project,
            seed: seed(request.id),
            now: writing.context().millis(),
        };
        let Resolved {
            request: mut wanted,
            group,
        } = self
            .lookups
            .resolve(
                writing.txn(),
                &writing.cloud,
                asker,
                request.flavor,
                &request.hints,
            )
            .await?;
        let nat = planned
            .demand(writing.txn(), &writing.cloud, &mut self.joined, &mut wanted)
            .await?;
        let demand = match root {
            None => wanted.demand(),
            Some(root) => root.ask(&writing.cloud, &mut wanted),
        };
        let decided = writing.cloud.decide(&wanted);
        writing.decided(DecisionRow {
            id: DecisionId::new(),
            instance_id: request.id,
            decision: decision::view(&decided, FIRST_ATTEMPT, writing.now),
        });
        let fault = decided.chosen.is_none().then(|| Fault {
            code: FaultCode::NoValidHost,
            message: decision::public_text(&decided),
        });
        let row = before.map_or_else(
            || {
                let row = NewRow {
                    boot_source,
                    fingerprint,
                    server_group_id: group,
                    placement_fault: fault.clone(),
                };
                row.of(request, writing.now)
            },
            |before| InstanceRow {
                placement_fault: fault.clone(),
                updated_at: writing.now,
                ..before.clone()
            },
        );
        if before.is_none() {
            self.rows.push(row.clone());
            self.names
                .insert((request.project.clone(), request.name.clone()));
        } else {
            self.again.push((request.id, fault.clone()));
        }
        self.known.insert(request.id, row.clone());
        let metrics = &writing.context().metrics;
        match (decided.chosen.as_ref(), fault) {
            (Some(chosen), _) => {
                metrics.placed();
                for network in &nat {
                    writing.cloud.hold_nat(chosen.host_id, network);
                }
                let place = (chosen.host_id, demand);
                let view = self.claim(writing, &row, place, planned, root);
                tracing::info!(instance = %row.id, name = %row.name, host = %chosen.host, "instance accepted");
                Ok(Ok(view))
            }
            (None, fault) => {
                metrics.no_valid_host();
                tracing::warn!(instance = %row.id, name = %row.name, reason = %decided, "instance refused");
                let message = fault.map_or_else(String::new, |fault| fault.message);
                Ok(Err(Refusal::new(RefusalCode::NoValidHost, message)))
            }
        }
    }

    /// Gives an instance its ports and its room on a host.
    fn claim(
        &mut self,
        writing: &mut Writing<'_>,
        row: &InstanceRow,
        (host, demand): (HostId, Demand),
        planned: &Planned,
        root: Option<&Root>,
    ) -> InstanceView {
        self.ports.extend(planned.ports.iter().cloned());
        self.given_ports.extend(planned.given.iter().copied());
        self.claims.push(claim_row(row, host));
        writing.cloud.place(
            row.id,
            Placed {
                host,
                demand,
                group: row.server_group_id,
                building: true,
            },
        );
        writing.touch_instance(host, row.id);
        for network in &planned.networks {
            writing.touch_network(host, network.id);
        }
        for port in &planned.ports {
            claim_ports::touch_members(writing, port);
        }
        let given = root.map(|root| root.give(writing, row, host));
        let volumes = given
            .iter()
            .map(|given| (given.attachment, given.name.clone()));
        let volumes: Vec<_> = volumes.collect();
        self.given.extend(given);
        let names = self.addresses.names();
        first_view(writing, row, Some(host), (&planned.ports, &volumes), &names)
    }

    async fn write(self, writing: &Writing<'_>) -> Result<(), ClaimError> {
        let txn = writing.txn();
        instances::insert_many(txn, &self.rows).await?;
        for (id, fault) in &self.again {
            let placement = Placement {
                attempt: FIRST_ATTEMPT,
                failed_hosts: &[],
                fault: fault.as_ref(),
            };
            instances::set_placement(txn, *id, &placement, writing.now).await?;
            // The new one is written at the commit. Whoever repeats a refused request for days fills no table.
            decisions::trim(txn, *id, MOST_DECISIONS.saturating_sub(1)).await?;
        }
        let (given, new): (Vec<PortRow>, Vec<PortRow>) = self
            .ports
            .into_iter()
            .partition(|port| self.given_ports.contains(&port.id));
        ports::insert_many(txn, &new).await?;
        for port in given {
            if let Some(attachment) = port.attachment {
                ports::attach(txn, port.id, attachment).await?;
            }
        }
        claims::insert_many(txn, &self.claims).await?;
        root::write(writing, &self.given).await
    }
}

/// What an instance takes of a host, as a row.
#[must_use]
pub fn claim_row(row: &InstanceRow, host_id: HostId) -> ClaimRow {
    ClaimRow {
        instance_id: row.id,
        host_id,
        role: ClaimRole::Current,
        resources: row.claimed(row.flavor),
        project: row.project.clone(),
        extra: row.hints.resources.clone(),
    }
}

/// An instance that its host was not told of yet: its document will be the first.
fn first_view(
    writing: &Writing<'_>,
    row: &InstanceRow,
    host: Option<HostId>,
    (ports, volumes): (&[PortRow], &[(AttachmentRow, VolumeName)]),
    names: &Names,
) -> InstanceView {
    let named: Option<(HostId, HostName)> = host
        .and_then(|host| writing.cloud.table().host(host))
        .map(|host| (host.facts().id, host.facts().name.clone()));
    let document = host.map(|host_id| DocumentRow {
        host_id,
        key: DocumentKey {
            kind: berth_common::document::Kind::Instance,
            id: row.id.as_uuid(),
        },
        generation: Generation::FIRST,
        spec_json: None,
        observed_generation: Generation(0),
        observed_status: None,
        changed_at: writing.now,
        published_at: None,
        attempts: 0,
        next_publish_at: None,
    });
    view::instance(view::InstanceFacts {
        row,
        ports,
        volumes,
        root_fault: None,
        host: named.as_ref().map(|(id, name)| (*id, name)),
        // It was chosen for being up.
        silence: None,
        document: document.as_ref(),
        names,
    })
}

/// Decides between hosts that are equally good: the random part of the id.
#[must_use]
pub fn seed(instance: InstanceId) -> u64 {
    instance.as_uuid().as_u64_pair().1
}

/// Everything that can be said of a request without looking at any row; all mistakes at once.
fn validate(request: &InstanceCreate) -> Result<(), ClaimError> {
    let flavor = match request.block_devices.as_slice() {
        [] => request.flavor,
        _ => root::without_disk(request.flavor),
    };
    let mut mistakes = flavor_mistakes(flavor);
    mistakes.extend(root::mistakes(request));
    if !(1..=3600).contains(&request.stop_timeout_seconds) {
        mistakes.push(format!(
            "stop_timeout_seconds must be from 1 to 3600; got {}",
            request.stop_timeout_seconds
        ));
    }
    if !matches!(request.power, DesiredPower::Running | DesiredPower::Stopped) {
        mistakes.push(format!(
            "power must be running or stopped when an instance is created; got {}",
            request.power.as_str()
        ));
    }
    mistakes.extend(network_mistakes(&request.networks));
    mistakes.extend(hints::mistakes(&request.hints, Some(request.id)));
    if let Some(drive) = &request.config_drive {
        mistakes.extend(drive.mistakes("config_drive"));
    }
    if let Some(told) = &request.guest_data {
        mistakes.extend(told.mistakes("guest_data"));
        if request.config_drive.is_some() {
            mistakes.push(
                "guest_data must be absent where there is a config_drive: the metadata service tells what is on that"
                    .to_owned(),
            );
        }
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(invalid(mistakes.join("; ")))
    }
}

/// What is wrong with the networks of an instance.
#[must_use]
pub fn network_mistakes(networks: &[NetworkAttachment]) -> Vec<String> {
    let most = usize::from(MAX_PORTS);
    let mut mistakes = Vec::from_iter(too_many("networks", networks.len(), most));
    mistakes.extend(attachment_mistakes(networks));
    mistakes
}

/// What is wrong with a size.
#[must_use]
pub fn flavor_mistakes(flavor: berth_common::document::Flavor) -> Vec<String> {
    let mut mistakes = Vec::new();
    if flavor.vcpus == Vcpus::ZERO {
        mistakes.push("flavor.vcpus must be at least 1".to_owned());
    }
    if flavor.memory_mb == MemoryMb::ZERO {
        mistakes.push("flavor.memory_mb must be at least 1".to_owned());
    }
    if flavor.disk_gb.get() == 0 {
        mistakes.push("flavor.disk_gb must be at least 1".to_owned());
    }
    mistakes
}

/// What a new instance is made of besides its request.
struct NewRow {
    boot_source: BootSource,
    fingerprint: String,
    server_group_id: Option<ServerGroupId>,
    placement_fault: Option<Fault>,
}

impl NewRow {
    fn of(self, request: &InstanceCreate, now: chrono::DateTime<chrono::Utc>) -> InstanceRow {
        InstanceRow {
            id: request.id,
            name: request.name.clone(),
            project: request.project.clone(),
            flavor: request.flavor,
            boot_source: self.boot_source,
            stop_timeout_seconds: request.stop_timeout_seconds,
            fingerprint: self.fingerprint,
            desired_power: request.power,
            desired_reboot: None,
            desired_deleted: false,
            hints: request.hints.clone(),
            config_drive: request.config_drive.clone(),
            guest_data: request.guest_data.clone(),
            desired_rescue: None,
            desired_incarnation: None,
            metadata: request
                .config_drive
                .as_ref()
                .or(request.guest_data.as_ref())
                .map(|drive| drive.metadata.clone())
                .unwrap_or_default(),
            on_crash: request.on_crash,
            server_group_id: self.server_group_id,
            attempt: FIRST_ATTEMPT,
            failed_hosts: Vec::new(),
            placement_fault: self.placement_fault,
            observed: InstanceObserved::default(),
            created_at: now,
            updated_at: now,
            deleted_at: None,
        }
    }
}
