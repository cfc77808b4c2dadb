//! Writes down what hosts observed. Observation never changes what is wanted: it has columns of its own.

use std::collections::{BTreeMap, HashMap};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{HostId, InstanceId, NetworkId, PortId, RouterId, SnapshotId, VolumeId},
    message::report::{ConvergeStatus, Fault, Report, ResourceReport},
    units::Generation,
};
use berth_store::{
    attachments::{self, AttachmentRow, AttachmentState},
    documents::{self, DocumentRow, Observation},
    held_addresses::{self, HeldAddressRow},
    instances::{self, InstanceObserved, InstanceRow},
    networks,
    ports::{self, PortRow},
    routers,
    snapshots::{self, SnapshotRow},
    volumes::{self, VolumeObserved, VolumeRow},
};

use super::order::Stamp;
use crate::{
    claim::{
        ClaimError,
        instances::{
            networks_of,
            relocate::{Relocation, built, give_up, is_leaving, move_on},
        },
        ports::{attach::settle_gone, touch_members_of},
    },
    context::{Context, Writing},
};

/// Writes reports down, in one transaction.
///
/// # Errors
/// When the database fails; then nothing of them was written.
pub async fn reports(context: &Context, reports: &[Report]) -> Result<(), ClaimError> {
    let mut writing = context.begin().await?;
    let mut order = Vec::new();
    let newest = newest(context, reports);
    let keys: Vec<(HostId, DocumentKey)> = newest
        .iter()
        .map(|(report, resource)| (report.host_id, resource.key))
        .collect();
    let mut known = Known::read(&writing, &keys).await?;
    for (report, resource) in newest {
        if apply(&mut writing, &mut known, report.host_id, resource).await? == Applied::Done {
            order.push((report.host_id, resource.key, stamp(report)));
        }
    }
    documents::mark_observed_many(writing.txn(), &known.observations).await?;
    held_addresses::release(writing.txn(), &known.given_up).await?;
    let attached = ports::AttachmentState::Attached;
    ports::set_state(writing.txn(), &known.plugged, attached).await?;
    writing.commit().await?;
    context.order(|remembered| {
        for (host, key, stamp) in order {
            remembered.written(host, key, stamp);
        }
    });
    if known.due {
        context.dispatch.wake();
    }
    Ok(())
}

/// What is told of each resource last: older words, in these reports or before them, are left out.
fn newest<'a>(context: &Context, reports: &'a [Report]) -> Vec<(&'a Report, &'a ResourceReport)> {
    let mut newest: BTreeMap<(HostId, DocumentKey), (&Report, &ResourceReport)> = BTreeMap::new();
    context.order(|order| {
        for report in reports {
            for resource in &report.resources {
                let key = (report.host_id, resource.key);
                let later = newest
                    .get(&key)
                    .is_none_or(|(other, _)| stamp(other) <= stamp(report));
                if later && !order.is_late(report.host_id, resource.key, stamp(report)) {
                    newest.insert(key, (report, resource));
                }
            }
        }
    });
    newest.into_values().collect()
}

const fn stamp(report: &Report) -> Stamp {
    Stamp {
        session: report.session,
        sequence: report.sequence,
    }
}

fn instance_id(report: &ResourceReport) -> Option<InstanceId> {
    InstanceId::try_from(report.key.id)
        .ok()
        .filter(|_| report.key.kind == Kind::Instance)
}

fn volume_id(report: &ResourceReport) -> Option<VolumeId> {
    VolumeId::try_from(report.key.id)
        .ok()
        .filter(|_| report.key.kind == Kind::Volume)
}

fn snapshot_id(report: &ResourceReport) -> Option<SnapshotId> {
    SnapshotId::try_from(report.key.id)
        .ok()
        .filter(|_| report.key.kind == Kind::Snapshot)
}

fn network_id(report: &ResourceReport) -> Option<NetworkId> {
    NetworkId::try_from(report.key.id)
        .ok()
        .filter(|_| report.key.kind == Kind::Network)
}

fn router_id(report: &ResourceReport) -> Option<RouterId> {
    RouterId::try_from(report.key.id)
        .ok()
        .filter(|_| report.key.kind == Kind::Router)
}

/// What a host says of a network that it shall not have: the addresses of one of type `nat` are taken there until it is gone.
async fn observe_end_of_network(
    writing: &mut Writing<'_>,
    host: HostId,
    network: NetworkId,
    status: ConvergeStatus,
) -> Result<(), ClaimError> {
    if status == ConvergeStatus::Gone {
        writing.cloud.release_nat(host, network);
    } else if !writing.cloud.nats().has(host, network)
        && let Some(row) = networks::get(writing.txn(), network).await?
    {
        writing.cloud.hold_nat(host, &row);
    }
    Ok(())
}

/// The rows that reports are about, and what will be written of documents.
struct Known {
    documents: HashMap<(HostId, DocumentKey), DocumentRow>,
    instances: HashMap<InstanceId, InstanceRow>,
    /// The volumes of these instances.
    attachments: HashMap<InstanceId, Vec<AttachmentRow>>,
    /// The ports of these instances that are being plugged in or unplugged.
    ports: HashMap<InstanceId, Vec<PortRow>>,
    /// Those of them that their instances have.
    plugged: Vec<PortId>,
    volumes: HashMap<VolumeId, VolumeRow>,
    snapshots: HashMap<SnapshotId, SnapshotRow>,
    observations: Vec<Observation>,
    /// The addresses outside that hosts were told to give up, of these routers.
    held: Vec<HeldAddressRow>,
    /// Those of them that they have given up.
    given_up: Vec<HeldAddressRow>,
    /// Whether a document was made due.
    due: bool,
}

impl Known {
    async fn read(
        writing: &Writing<'_>,
        keys: &[(HostId, DocumentKey)],
    ) -> Result<Self, ClaimError> {
        let of_kind = |kind| keys.iter().filter(move |(_, key)| key.kind == kind);
        let ids: Vec<InstanceId> = of_kind(Kind::Instance)
            .filter_map(|(_, key)| InstanceId::try_from(key.id).ok())
            .collect();
        let volume_ids: Vec<VolumeId> = of_kind(Kind::Volume)
            .filter_map(|(_, key)| VolumeId::try_from(key.id).ok())
            .collect();
        let snapshot_ids: Vec<SnapshotId> = of_kind(Kind::Snapshot)
            .filter_map(|(_, key)| SnapshotId::try_from(key.id).ok())
            .collect();
        let places = of_kind(Kind::Router)
            .filter_map(|(host, key)| Some((*host, RouterId::try_from(key.id).ok()?)))
            .collect();
        let held = held_addresses::of_places(writing.txn(), &places).await?;
        let documents = documents::of_host_resources(writing.txn(), keys).await?;
        let instances = instances::of_ids(writing.txn(), &ids).await?;
        let volumes = volumes::of_ids(writing.txn(), &volume_ids).await?;
        let snapshots = snapshots::of_ids(writing.txn(), &snapshot_ids).await?;
        let mut attachments: HashMap<InstanceId, Vec<AttachmentRow>> = HashMap::new();
        for row in attachments::of_instances(writing.txn(), &ids).await? {
            attachments.entry(row.instance_id).or_default().push(row);
        }
        let mut ports: HashMap<InstanceId, Vec<PortRow>> = HashMap::new();
        for row in ports::unsettled_of_instances(writing.txn(), &ids).await? {
            if let Some(instance) = row.instance_id() {
                ports.entry(instance).or_default().push(row);
            }
        }
        Ok(Self {
            ports,
            plugged: Vec::new(),
            documents: documents
                .into_iter()
                .map(|row| ((row.host_id, row.key), row))
                .collect(),
            instances: instances.into_iter().map(|row| (row.id, row)).collect(),
            attachments,
            volumes: volumes.into_iter().map(|row| (row.id, row)).collect(),
            snapshots: snapshots.into_iter().map(|row| (row.id, row)).collect(),
            observations: Vec::new(),
            held,
            given_up: Vec::new(),
            due: false,
        })
    }
}

impl Known {
    /// The addresses outside that a host was told to give up of a router and has not, as far as it said.
    fn held_by(&self, host: HostId, router: DocumentKey) -> Vec<HeldAddressRow> {
        let is_its = |row: &&HeldAddressRow| {
            row.host_id == host
                && router.kind == Kind::Router
                && row.router_id.as_uuid() == router.id
        };
        self.held.iter().filter(is_its).cloned().collect()
    }

    /// A host that is done with a router's document has none of the addresses that it, or one before it, took away. One that failed may
    /// have any.
    fn observe_addresses(&mut self, host: HostId, report: &ResourceReport) {
        let is_done = match report.status {
            ConvergeStatus::Converged | ConvergeStatus::Gone => true,
            ConvergeStatus::Converging | ConvergeStatus::Failed => false,
        };
        if is_done {
            let held = self.held_by(host, report.key).into_iter();
            let given_up = held.filter(|row| row.generation <= report.generation);
            self.given_up.extend(given_up);
        }
    }
}

/// What a report means for the document it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It is about an older generation: the newer one is on its way.
    Stale,
    /// It is about the generation that is wanted.
    Current,
    /// The host knows a later generation than this database: it was set back. The wish is renewed above it.
    Ahead,
    /// No database was ever set back that far.
    Absurd,
}

/// How far a host may be ahead: a generation is a change of one resource, made by somebody.
const MAX_AHEAD: u64 = 1_000_000;

fn meaning(document: &DocumentRow, report: &ResourceReport) -> Meaning {
    match report.generation.cmp(&document.generation) {
        std::cmp::Ordering::Less => Meaning::Stale,
        std::cmp::Ordering::Equal => Meaning::Current,
        std::cmp::Ordering::Greater if report.generation.0 - document.generation.0 > MAX_AHEAD => {
            Meaning::Absurd
        }
        std::cmp::Ordering::Greater => Meaning::Ahead,
    }
}

/// What became of a report about one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    /// This host was never told of it.
    Unknown,
    /// It is written down, or nothing was to be written.
    Done,
}

/// What a host says of a resource, and whether it was told to end it.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    report: &'a ResourceReport,
    tombstone: bool,
}

/// Writes the state of one resource down.
async fn apply(
    writing: &mut Writing<'_>,
    known: &mut Known,
    host: HostId,
    report: &ResourceReport,
) -> Result<Applied, ClaimError> {
    let Some(document) = known.documents.remove(&(host, report.key)) else {
        return strayed(writing, known, host, report).await;
    };
    match meaning(&document, report) {
        Meaning::Stale => known.observe_addresses(host, report),
        Meaning::Absurd => {
            tracing::error!(
                %host, resource = %report.key, told = %document.generation, reported = %report.generation,
                "a host reports a generation that cannot be; its report is ignored"
            );
        }
        Meaning::Ahead => {
            let renewed = DocumentRow {
                generation: report.generation.next(),
                observed_generation: report.generation,
                changed_at: writing.now,
                attempts: 0,
                next_publish_at: None,
                ..document
            };
            documents::upsert(writing.txn(), &renewed).await?;
            // What it says of generations that this database never knew is nothing about them.
            let mut held = known.held_by(host, report.key);
            held.iter_mut()
                .for_each(|row| row.generation = renewed.generation);
            held_addresses::hold(writing.txn(), &held).await?;
            known.due = true;
        }
        Meaning::Current => {
            known.observe_addresses(host, report);
            known.observations.push(Observation {
                host_id: host,
                key: report.key,
                generation: report.generation,
                status: report.status,
            });
            let seen = Seen {
                report,
                tombstone: document.spec_json.is_none(),
            };
            let row = instance_id(report).and_then(|id| known.instances.get(&id).cloned());
            if let Some(row) = row {
                let attached = known.attachments.get(&row.id).cloned();
                let changing = known.ports.get(&row.id).cloned().unwrap_or_default();
                known
                    .plugged
                    .extend(settle_ports(writing, host, &changing, seen).await?);
                observe(writing, host, &row, &attached.unwrap_or_default(), seen).await?;
            }
            let row = volume_id(report).and_then(|id| known.volumes.get(&id).cloned());
            if let Some(row) = row {
                observe_volume(writing, host, &row, seen).await?;
            }
            let row = snapshot_id(report).and_then(|id| known.snapshots.get(&id).cloned());
            if let Some(row) = row {
                observe_snapshot(writing, host, &row, seen).await?;
            }
            if let Some(network) = network_id(report).filter(|_| seen.tombstone) {
                observe_end_of_network(writing, host, network, report.status).await?;
            }
        }
    }
    Ok(Applied::Done)
}

/// A host speaks of something it was not told of, as far as the database knows: the host was forgotten and is back, or
/// the database was set back. An instance that shall not be there is ended, and so is a volume or a snapshot that was
/// deleted, or a router that nothing there needs; what nobody knows is left alone, and so is what anybody may still want.
async fn strayed(
    writing: &mut Writing<'_>,
    known: &mut Known,
    host: HostId,
    report: &ResourceReport,
) -> Result<Applied, ClaimError> {
    let row = instance_id(report).and_then(|id| known.instances.get(&id));
    let lies_here = |row: &InstanceRow| {
        writing
            .cloud
            .placed(row.id)
            .is_some_and(|placed| placed.host == host)
    };
    let volume = volume_id(report).and_then(|id| known.volumes.get(&id));
    let snapshot = snapshot_id(report).and_then(|id| known.snapshots.get(&id));
    // Of a router nobody has data, and one that stays answers at addresses that are somebody else's by now. It may be known here and not
    // be told: then nothing of the host's needs it.
    let router = match router_id(report) {
        Some(id) => routers::get(writing.txn(), id).await?,
        None => None,
    };
    let shall_go = router.is_some()
        || row.is_some_and(|row| !lies_here(row))
        || volume.is_some_and(|volume| volume.deleted_at.is_some())
        || snapshot.is_some_and(|snapshot| snapshot.deleted_at.is_some());
    let is_host = writing.cloud.table().host(host).is_some();
    if !shall_go || !is_host || report.status == ConvergeStatus::Gone {
        tracing::debug!(%host, resource = %report.key, "a report about a resource this host was never told of");
        return Ok(Applied::Unknown);
    }
    tracing::warn!(%host, resource = %report.key, "a host has what shall not be there; it is ended there");
    let tombstone = DocumentRow {
        host_id: host,
        key: report.key,
        generation: report.generation.next(),
        spec_json: None,
        observed_generation: report.generation,
        observed_status: Some(report.status),
        changed_at: writing.now,
        published_at: None,
        attempts: 0,
        next_publish_at: None,
    };
    documents::upsert(writing.txn(), &tombstone).await?;
    known.due = true;
    Ok(Applied::Done)
}

/// Writes down what a host says of an instance. A host speaks for an instance while the instance lies there; of one
/// that has moved on it can only say that it is gone from there.
async fn observe(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &InstanceRow,
    attached: &[AttachmentRow],
    seen: Seen<'_>,
) -> Result<(), ClaimError> {
    let Seen { report, tombstone } = seen;
    let lies_here = writing
        .cloud
        .placed(row.id)
        .is_some_and(|placed| placed.host == host);
    if tombstone && report.status == ConvergeStatus::Gone {
        return gone(writing, host, row, attached).await;
    }
    if !lies_here {
        return Ok(());
    }
    if !tombstone {
        settle_attachments(writing, attached, report).await?;
    }
    // Without a power state nobody has looked yet (the agent was started anew): what was said before is still the newest.
    let before = &row.observed;
    let (power_state, boot_disk, running) = match report.power_state {
        Some(power_state) => (power_state, report.boot_disk, report.running),
        None => (before.power_state, before.boot_disk, before.running),
    };
    let observed = InstanceObserved {
        status: Some(report.status),
        generation: report.generation,
        power_state,
        reboot_nonce: report.reboot_nonce.or(row.observed.reboot_nonce),
        boot_disk,
        running,
        progress: report.progress.clone(),
        fault: report.fault.clone(),
        was_active: row.observed.was_active || report.status == ConvergeStatus::Converged,
        at: Some(report.observed_at),
    };
    let observed = match &report.fault {
        Some(fault) if report.status == ConvergeStatus::Failed => {
            match failed(writing, host, row, report.generation, fault).await? {
                Some(fault) => InstanceObserved {
                    fault: Some(fault),
                    ..observed
                },
                None => return Ok(()),
            }
        }
        _ => observed,
    };
    if observed.was_active && !row.observed.was_active {
        built(writing, row);
    }
    // As `instances::building` reads it from the rows.
    let building = !observed.was_active && report.status != ConvergeStatus::Failed;
    writing.cloud.set_building(row.id, building);
    let repeated = InstanceObserved {
        at: row.observed.at,
        ..observed.clone()
    };
    if repeated != row.observed {
        instances::set_observed(writing.txn(), row.id, &observed, writing.now).await?;
    }
    Ok(())
}

/// An instance that is as its document says, which is derived with every change of its volumes, has those it shall have, and no
/// others. Of one that is not, for whatever other reason, a volume is free that its host has seen it without.
async fn settle_attachments(
    writing: &Writing<'_>,
    attached: &[AttachmentRow],
    report: &ResourceReport,
) -> Result<(), ClaimError> {
    let is_done = report.status == ConvergeStatus::Converged;
    let has = |volume| {
        report
            .volumes
            .as_ref()
            .map(|volumes| volumes.contains(&volume))
    };
    for row in attached {
        match row.state {
            AttachmentState::Attaching if is_done => {
                let state = AttachmentState::Attached;
                attachments::set_state(writing.txn(), row.volume_id, state).await?;
            }
            AttachmentState::Detaching if is_done || has(row.volume_id) == Some(false) => {
                attachments::delete(writing.txn(), row.volume_id).await?;
                tracing::info!(volume = %row.volume_id, instance = %row.instance_id, "volume is free");
            }
            AttachmentState::Attaching | AttachmentState::Attached | AttachmentState::Detaching => {
            }
        }
    }
    Ok(())
}

/// Which of the ports that are being plugged in or unplugged are so by now: those that are plugged in are answered, those that
/// are unplugged are settled. What the host says of the ports is about the generation that is wanted, so that none of them
/// comes back. Of those that are plugged in an agent that does not tell of ports speaks by being done.
async fn settle_ports(
    writing: &mut Writing<'_>,
    host: HostId,
    changing: &[PortRow],
    seen: Seen<'_>,
) -> Result<Vec<PortId>, ClaimError> {
    let Seen { report, tombstone } = seen;
    let mut plugged = Vec::new();
    for port in changing {
        let Some(attachment) = port.attachment else {
            continue;
        };
        let placed = writing.cloud.placed(attachment.instance_id);
        if tombstone || placed.is_none_or(|placed| placed.host != host) {
            continue;
        }
        let has = report.ports.as_ref().map(|ports| ports.contains(&port.id));
        let is_done = report.status == ConvergeStatus::Converged;
        match attachment.state {
            ports::AttachmentState::Attaching if is_done && has != Some(false) => {
                plugged.push(port.id);
            }
            ports::AttachmentState::Detaching if has == Some(false) => {
                settle_gone(writing, host, port).await?;
            }
            ports::AttachmentState::Attaching
            | ports::AttachmentState::Attached
            | ports::AttachmentState::Detaching => {}
        }
    }
    Ok(plugged)
}

/// Writes down what a host says of a volume; only the volume's own host speaks for it.
async fn observe_volume(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &VolumeRow,
    seen: Seen<'_>,
) -> Result<(), ClaimError> {
    let Seen { report, tombstone } = seen;
    if row.host_id != Some(host) {
        return Ok(());
    }
    if tombstone && report.status == ConvergeStatus::Gone {
        if row.desired_deleted {
            volumes::mark_deleted(writing.txn(), row.id, writing.now).await?;
            writing.cloud.unplace_volume(row.id);
            tracing::info!(volume = %row.id, %host, "volume is gone");
        }
        return Ok(());
    }
    let observed = stored_observed(&row.observed, seen);
    if let (ConvergeStatus::Failed, Some(fault)) = (report.status, &report.fault)
        && row.observed.status != Some(ConvergeStatus::Failed)
    {
        tracing::warn!(volume = %row.id, reason = fault.message, "volume is in error");
    }
    let repeated = VolumeObserved {
        at: row.observed.at,
        ..observed.clone()
    };
    if repeated != row.observed {
        volumes::set_observed(writing.txn(), row.id, &observed, writing.now).await?;
    }
    Ok(())
}

/// What is known of a volume or a snapshot after its host said this.
fn stored_observed(before: &VolumeObserved, seen: Seen<'_>) -> VolumeObserved {
    let Seen { report, tombstone } = seen;
    let is_made = report.status == ConvergeStatus::Converged && !tombstone;
    VolumeObserved {
        status: Some(report.status),
        generation: report.generation,
        progress: report.progress.clone(),
        fault: report.fault.clone(),
        was_available: before.was_available || is_made,
        at: Some(report.observed_at),
    }
}

/// Writes down what a host says of a snapshot; only the snapshot's own host speaks for it.
async fn observe_snapshot(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &SnapshotRow,
    seen: Seen<'_>,
) -> Result<(), ClaimError> {
    let Seen { report, tombstone } = seen;
    if row.host_id != Some(host) {
        return Ok(());
    }
    if tombstone && report.status == ConvergeStatus::Gone {
        if row.desired_deleted {
            snapshots::mark_deleted(writing.txn(), row.id, writing.now).await?;
            writing.cloud.unplace_snapshot(row.id);
            tracing::info!(snapshot = %row.id, %host, "snapshot is gone");
        }
        return Ok(());
    }
    let observed = stored_observed(&row.observed, seen);
    if let (ConvergeStatus::Failed, Some(fault)) = (report.status, &report.fault)
        && row.observed.status != Some(ConvergeStatus::Failed)
    {
        tracing::warn!(snapshot = %row.id, reason = fault.message, "snapshot is in error");
    }
    let repeated = VolumeObserved {
        at: row.observed.at,
        ..observed.clone()
    };
    if repeated != row.observed {
        snapshots::set_observed(writing.txn(), row.id, &observed, writing.now).await?;
    }
    Ok(())
}

/// Nothing of an instance is left on a host.
async fn gone(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &InstanceRow,
    attached: &[AttachmentRow],
) -> Result<(), ClaimError> {
    let placed = writing.cloud.placed(row.id).map(|placed| placed.host);
    let lies_here = placed == Some(host);
    let networks = networks_of(writing.txn(), row.id).await?;
    if row.desired_deleted && (lies_here || placed.is_none()) {
        touch_members_of(writing, row.id).await?;
        instances::mark_deleted(writing.txn(), row.id, writing.now).await?;
        writing.cloud.unplace(row.id);
        // Its volumes are free, and those that were to go after it go.
        for volume in attached {
            writing.touch_volume(host, volume.volume_id);
        }
        tracing::info!(instance = %row.id, %host, "instance is gone");
    } else if lies_here && is_leaving(row, host) {
        move_on(writing, row, host).await?;
    }
    for network in networks {
        writing.touch_network(host, network);
        writing.touch_members(network);
    }
    Ok(())
}

/// A host cannot do what an instance's document says. One that was never built may move on: then there is no fault.
async fn failed(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &InstanceRow,
    generation: Generation,
    fault: &Fault,
) -> Result<Option<Fault>, ClaimError> {
    let before = row.observed.fault.as_ref().filter(|_| {
        row.observed.status == Some(ConvergeStatus::Failed) && row.observed.generation == generation
    });
    let may_move = !row.observed.was_active && !row.desired_deleted && !is_leaving(row, host);
    let is_given_up = fault.code.is_hosts() && may_move;
    // The words of the same fault may differ from pass to pass. Where it cannot move on, those of the first time say why.
    if let Some(before) = before
        && before.code == fault.code
    {
        let newest = if is_given_up { before } else { fault };
        return Ok(Some(newest.clone()));
    }
    let mut fault = fault.clone();
    if is_given_up {
        match give_up(writing, row, host, &fault).await? {
            Relocation::Leaves => return Ok(None),
            Relocation::Stays { why } => {
                fault.message = format!("{}; it cannot move on: {why}", fault.message);
            }
        }
    }
    tracing::warn!(instance = %row.id, reason = fault.message, "instance is in error");
    Ok(Some(fault))
}
