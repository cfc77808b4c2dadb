//! A pass over one instance: look, plan, do, and look again, until there is nothing left to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use berth_common::{
    document::{
        Desired, Document, DocumentKey, InstanceSpec, Kind, PortLink, SubnetSpec, VolumeFormat,
    },
    ids::{InstanceId, NetworkId},
    message::report::{Fault, FaultCode},
    telemetry::error_chain,
};
use tokio::time::{Instant, timeout};

use super::{
    outcome::{AskedAt, Memory, Outcome, PassEnd, Waiting},
    tools::{BrokenOff, Host, Tools, Worker},
};
use crate::{
    act::{ActError, Progress},
    decide::{
        config_drive::Subnets,
        domain::{BackupPlan, DiskError, DomainObserved, DomainStep, LeftOff, OffReason},
        image_cache::CachedName,
        instance::{self, Asked, HostFacts, Observed, Step, StorageStep, Then, Wait},
    },
};

/// How often a pass plans anew before it counts as going round in circles. Two are usual: do, and see that it is done.
const ROUNDS: usize = 6;

/// How long a step on a guest that is there keeps others from work. It takes a moment; where QEMU hangs it takes as long as it may.
const HOLDS_SLOT: Duration = Duration::from_secs(5);

/// How often it is asked how far a long step is.
const WATCH_JOB_EVERY: Duration = Duration::from_secs(2);

type Wish = Desired<InstanceId, InstanceSpec>;

/// Carries out an instance's document as far as it goes now.
pub(super) async fn pass(mut worker: Worker, wish: &Wish, memory: Memory) -> PassEnd {
    let tools = Arc::clone(&worker.tools);
    let mut end = PassEnd {
        memory,
        ..PassEnd::of(Outcome::Superseded)
    };
    end.outcome = match rounds(&mut worker, wish, &mut end).await {
        // It is there, and only lent.
        Ok(Outcome::Waiting(Waiting::Volume(id))) if tools.volumes.is_whole(id) => {
            Outcome::Waiting(Waiting::CopiedVolume(id))
        }
        Ok(outcome) => outcome,
        Err(BrokenOff) => Outcome::Superseded,
    };
    end
}

async fn rounds(worker: &mut Worker, wish: &Wish, end: &mut PassEnd) -> Result<Outcome, BrokenOff> {
    let mut left = String::new();
    for _ in 0..ROUNDS {
        worker.take_slot().await?;
        let facts = worker.tools.facts.borrow().clone();
        let Some(facts) = facts else {
            return Ok(Outcome::Unseen(Fault {
                code: FaultCode::Hypervisor,
                message: "libvirt has not answered since the agent started".to_owned(),
            }));
        };
        let observed = match look(worker, wish, &end.memory).await {
            Ok(observed) => recall(observed, &mut end.memory),
            Err(error) => return Ok(Outcome::of_look(&error)),
        };
        end.saw(observed.domain.clone(), &facts.paths);
        let observed = overrule_guest(observed, &end.memory);
        let plan = instance::plan(wish, &observed, &facts);
        if plan.then != Then::Wait(Wait::GuestPowersOff) {
            end.memory.asked = None;
        }
        if matches!(plan.then, Then::Converged | Then::Watch(_) | Then::Gone) {
            end.memory.detach_asked = None;
            end.memory.nic_asked = None;
        }
        // QEMU could not give it back meanwhile: its time begins anew.
        if matches!(plan.then, Then::Wait(Wait::Copied(_))) {
            end.memory.detach_asked = None;
        }
        if plan.then == Then::Wait(Wait::Starts) {
            end.memory.starting.get_or_insert_with(Instant::now);
        } else {
            end.memory.starting = None;
        }
        if matches!(plan.then, Then::Halted(_)) {
            end.memory.disk_errors.clone_from(&observed.disk_errors);
        } else {
            end.memory.let_go_on = None;
            end.memory.disk_errors.clear();
        }
        if matches!(plan.then, Then::Watch(_)) {
            end.memory.asked_before.get_or_insert_with(Instant::now);
        }
        if plan.steps.is_empty() {
            return Ok(outcome(plan.then, end));
        }
        left = plan
            .steps
            .iter()
            .map(|step| name(step))
            .collect::<Vec<_>>()
            .join(", ");
        for step in &plan.steps {
            // The step before may have given it up.
            worker.take_slot().await?;
            if let Step::Domain(DomainStep::Shutdown(_)) = step {
                // Even if this fails, the guest may have heard it.
                end.memory.asked_before = Some(Instant::now());
            }
            if let Err(error) = apply(worker, step).await? {
                // Steps before it may have changed the domain. A refused one is watched for changes from now on.
                if !error.retryable
                    && let Ok(domain) = worker.tools.host.compute.observe_one(wish.id).await
                {
                    end.saw(domain, &facts.paths);
                }
                return Ok(Outcome::of_step(&error));
            }
            remember(&mut end.memory, step);
            if let (Then::Halted(_), Step::Domain(DomainStep::Resume(_))) = (&plan.then, step) {
                end.memory.let_go_on = again(end.memory.let_go_on);
            }
            end.taps |= matches!(step, Step::Domain(step) if step.changes_taps());
            // What it needs may have become another meanwhile: a volume that its start would have waited for grows.
            if matches!(step, Step::Storage(step) if takes_long(step, &worker.tools)) {
                break;
            }
            if let Step::Domain(DomainStep::AbandonStart(_)) = step {
                return Ok(Outcome::Failed(Fault {
                    code: FaultCode::Hypervisor,
                    message: "libvirt did not get it started and it was switched off; it is started again".to_owned(),
                }));
            }
        }
    }
    Ok(Outcome::unsettled(ROUNDS, &left))
}

fn outcome(then: Then, end: &mut PassEnd) -> Outcome {
    match then {
        Then::Converged => Outcome::Converged,
        Then::Watch(left) => {
            end.again = Some(left);
            Outcome::Converged
        }
        Then::Gone => Outcome::Gone,
        Then::Wait(Wait::Network(id)) => Outcome::Waiting(Waiting::Network(id)),
        Then::Wait(Wait::GuestPowersOff) => Outcome::Waiting(Waiting::Guest),
        Then::Wait(Wait::Starts) => Outcome::Waiting(Waiting::Start),
        Then::Wait(Wait::Volume(id)) => Outcome::Waiting(Waiting::Volume(id)),
        Then::Wait(Wait::Detach(targets)) => Outcome::Waiting(Waiting::Detach(targets)),
        Then::Wait(Wait::DetachNics(ports)) => Outcome::Waiting(Waiting::DetachNics(ports)),
        Then::Wait(Wait::Copied(id)) => Outcome::Waiting(Waiting::CopiedVolume(id)),
        Then::Wait(Wait::GuestGoesOn) => Outcome::Waiting(Waiting::GuestGoesOn),
        Then::Refused(fault) => Outcome::Refused(fault),
        Then::Stuck(fault) | Then::Halted(fault) => {
            end.again = Some(instance::ASK_AGAIN_AFTER);
            Outcome::Refused(fault)
        }
    }
}

/// The subnets of a network; `None`: this host has not been told of it.
fn subnets_of(worker: &Worker, network: NetworkId) -> Option<Vec<SubnetSpec>> {
    let key = DocumentKey {
        kind: Kind::Network,
        id: network.as_uuid(),
    };
    match &*worker.tools.journal.get(key)?.document {
        Document::Network(wish) => wish.spec.as_ref().map(|spec| spec.subnets.clone()),
        _ => None,
    }
}

/// What is there of the instance and of what it needs.
async fn look(worker: &Worker, wish: &Wish, memory: &Memory) -> Result<Observed, ActError> {
    let host = &worker.tools.host;
    let domain = host.compute.observe_one(wish.id).await?;
    let files = host.storage.observe(wish.id).await?;
    let mut images = BTreeSet::new();
    let mut networks_ready = BTreeSet::new();
    let mut networks_unknown = BTreeSet::new();
    let mut subnets = Subnets::new();
    if let Some(spec) = &wish.spec {
        for image in instance::images(spec) {
            if host.storage.has_image(image).await? {
                images.insert(CachedName::of(image));
            }
        }
        let networks: BTreeSet<_> = spec.ports.iter().map(|port| port.network_id).collect();
        let ready = |network| {
            let mut ports = spec.ports.iter().filter(|port| port.network_id == network);
            ports.all(|port| worker.tools.networks.is_ready(network, port.id))
        };
        for network in &networks {
            match subnets_of(worker, *network) {
                Some(known) => subnets.extend(known.into_iter().map(|subnet| (subnet.id, subnet))),
                None => {
                    networks_unknown.insert(*network);
                }
            }
        }
        // One that was told of before has not all that the instance needs.
        for port in &spec.ports {
            let mut fixed = port.fixed_ips.iter();
            if fixed.any(|fixed| !subnets.contains_key(&fixed.subnet_id)) {
                networks_unknown.insert(port.network_id);
            }
        }
        networks_ready = networks
            .into_iter()
            .filter(|network| ready(*network))
            .collect();
    }
    let volumes = wish.spec.iter().flat_map(|spec| &spec.volumes);
    let volumes_ready = volumes
        .map(|volume| volume.id)
        .filter(|id| worker.tools.volumes.is_ready(*id))
        .collect();
    let volumes_copied = worker.tools.volumes.all_held();
    let elapsed = |asked: AskedAt| Asked {
        first: asked.first.elapsed(),
        last: asked.last.elapsed(),
    };
    let asked = memory.asked.map(elapsed);
    Ok(Observed {
        files,
        images,
        networks_ready,
        networks_unknown,
        subnets,
        volumes_ready,
        volumes_copied,
        detach_asked: memory.detach_asked.map(elapsed),
        nic_asked: memory.nic_asked.map(elapsed),
        asked,
        disk_errors: disk_errors(host, domain.as_ref(), memory).await,
        let_go_on: memory.let_go_on.map(elapsed),
        asked_before: memory.asked_before.map(|asked| asked.elapsed()),
        starting: memory.starting.map(|since| since.elapsed()),
        domain,
    })
}

/// Which disks its guest stands still for, or did before it was let go on. Where QEMU does not say that, nobody knows.
async fn disk_errors(
    host: &Host,
    domain: Option<&DomainObserved>,
    memory: &Memory,
) -> BTreeMap<String, DiskError> {
    let Some(id) = domain
        .filter(|domain| domain.is_halted)
        .and_then(|domain| Some(domain.metadata.as_ref()?.instance_id))
    else {
        return memory.disk_errors.clone();
    };
    host.compute.disk_errors(id).await.unwrap_or_else(|error| {
        tracing::debug!(error = %error_chain(&error), "nobody knows which disk of a guest fails");
        BTreeMap::new()
    })
}

/// Until the reason for a domain to be off by itself is written down, this agent knows it as well.
fn recall(mut observed: Observed, memory: &mut Memory) -> Observed {
    let domain = observed.domain.as_mut();
    memory.left_off = domain.and_then(|domain| {
        domain.off_reason = LeftOff::recall(domain.off_reason, memory.left_off);
        domain.off_reason.and_then(LeftOff::of)
    });
    observed
}

/// A guest's own decision to be off, or its crash, holds until a document comes that was not carried out. Of one with the
/// generation of another, the domain's metadata cannot tell that.
fn overrule_guest(mut observed: Observed, memory: &Memory) -> Observed {
    if let Some(domain) = observed.domain.as_mut().filter(|_| memory.overruled)
        && matches!(
            domain.off_reason,
            Some(OffReason::Guest | OffReason::Crashed)
        )
    {
        domain.off_reason = Some(OffReason::Destroyed);
    }
    observed
}

/// Something was asked for now, perhaps not for the first time.
fn again(asked: Option<AskedAt>) -> Option<AskedAt> {
    let now = Instant::now();
    let first = asked.map_or(now, |asked| asked.first);
    Some(AskedAt { first, last: now })
}

/// What later passes must know of a step.
fn remember(memory: &mut Memory, step: &Step) {
    let now = Instant::now();
    match step {
        Step::Domain(DomainStep::Shutdown(_)) => memory.asked = again(memory.asked),
        Step::Domain(
            DomainStep::Start(_)
            | DomainStep::StartPaused(_)
            | DomainStep::Restore(_)
            | DomainStep::Save(_)
            | DomainStep::Destroy(_)
            | DomainStep::AbandonStart(_),
        ) => *memory = Memory::default(),
        // Its clock stood still: what it may still obey, it may obey from now on.
        Step::Domain(DomainStep::Resume(_)) => {
            memory.asked_before = memory.asked_before.map(|_| now);
            memory.detach_asked = None;
            memory.nic_asked = None;
        }
        Step::Domain(DomainStep::Detach { .. }) => memory.detach_asked = again(memory.detach_asked),
        Step::Domain(DomainStep::DetachNic { .. }) => memory.nic_asked = again(memory.nic_asked),
        Step::Domain(
            DomainStep::Define(_)
            | DomainStep::DiscardSaved(_)
            | DomainStep::Pause(_)
            | DomainStep::Undefine(_)
            | DomainStep::AttachScsiController(_)
            | DomainStep::Attach { .. }
            | DomainStep::AttachNic { .. }
            | DomainStep::SetLink { .. }
            | DomainStep::GrowDisk { .. }
            | DomainStep::SetVcpus { .. }
            | DomainStep::PlugMemory { .. }
            | DomainStep::Backup(_)
            | DomainStep::AbortBackup { .. },
        )
        | Step::Storage(_) => {}
    }
}

/// Whether a step may take as long as what it works on is large.
fn takes_long(step: &StorageStep, tools: &Tools) -> bool {
    match step {
        StorageStep::FetchImage(_)
        | StorageStep::CreateVolume(_)
        | StorageStep::RemoveVolume(_)
        | StorageStep::CreateSnapshot(_)
        | StorageStep::RemoveSnapshot(_) => true,
        // The new part of a block device is filled with zeros.
        StorageStep::GrowVolume(larger) => {
            let facts = tools.facts.borrow();
            let is_file = |facts: &HostFacts| facts.paths.holds_files(&larger.pool);
            !facts.as_ref().is_some_and(is_file)
        }
        StorageStep::CreateDirectory(_)
        | StorageStep::CreateDisk(_)
        | StorageStep::CreateConfigDrive(_)
        | StorageStep::WriteMetadata(_)
        | StorageStep::GrowDisk(_)
        | StorageStep::RemoveOldFile(_)
        | StorageStep::RemoveInstance(_)
        | StorageStep::MarkVolume(_)
        | StorageStep::SettleVolume(_)
        | StorageStep::ActivateVolume(_)
        | StorageStep::PrepareSnapshot(_)
        | StorageStep::NameSnapshot(_)
        | StorageStep::MarkSnapshot(_)
        | StorageStep::DiscardPartialSnapshot(_) => false,
    }
}

/// Carries out one step. The outer error: the pass was broken off.
pub(super) async fn apply(
    worker: &mut Worker,
    step: &Step,
) -> Result<Result<(), ActError>, BrokenOff> {
    let host = worker.tools.host.clone();
    let (name, text) = (name(step), text(step));
    match step {
        // What takes minutes has bounds of its own: it keeps nobody from work, and ends with its wish.
        Step::Storage(long) if takes_long(long, &worker.tools) => {
            worker.leave_slot();
            let result = tokio::select! {
                biased;
                () = worker.cancel.cancelled() => return Err(BrokenOff),
                result = worker.step(name, &text, async |progress| host.storage.apply(long, &progress).await) => result,
            };
            worker.take_slot().await?;
            Ok(result)
        }
        Step::Storage(step) => Ok(worker
            .step(name, &text, async |progress| {
                host.storage.apply(step, &progress).await
            })
            .await),
        // The memory of a large guest takes minutes, and is bounded by threads of its own.
        Step::Domain(step) if step.moves_memory() => {
            worker.leave_slot();
            let result = worker
                .step(name, &text, async |progress| {
                    tokio::select! {
                        biased;
                        result = host.compute.apply(step) => result,
                        never = watch_job(&host, step, &text, &progress) => match never {},
                    }
                })
                .await;
            worker.take_slot().await?;
            Ok(result)
        }
        // The hypervisor goes on with it when nobody waits any more: whoever looks next ends it.
        Step::Domain(step @ DomainStep::Backup(plan)) => {
            worker.leave_slot();
            let work = worker.step(name, &text, async |progress| {
                tokio::select! {
                    biased;
                    result = host.compute.apply(step) => result,
                    full = watch_room(&host, plan) => Err(full),
                    never = watch_job(&host, step, &text, &progress) => match never {},
                }
            });
            let result = tokio::select! {
                biased;
                () = worker.cancel.cancelled() => return Err(BrokenOff),
                result = work => result,
            };
            worker.take_slot().await?;
            Ok(result)
        }
        // As long as QEMU starts it works: more at once would only make all of them slower.
        Step::Domain(step) if step.starts_qemu() => Ok(worker
            .step(name, &text, async |_| host.compute.apply(step).await)
            .await),
        Step::Domain(step) => {
            let slot = worker.lend_slot();
            let (result, slot) = {
                let work = worker.step(name, &text, async |_| host.compute.apply(step).await);
                let mut work = pin!(work);
                match timeout(HOLDS_SLOT, &mut work).await {
                    Ok(result) => (result, slot),
                    Err(_) => {
                        drop(slot);
                        (work.await, None)
                    }
                }
            };
            worker.return_slot(slot);
            Ok(result)
        }
    }
}

/// Tells how far a long step is, until it is dropped: it never ends by itself.
async fn watch_job(host: &Host, step: &DomainStep, text: &str, progress: &Progress) -> Infallible {
    let mut ticks = tokio::time::interval(WATCH_JOB_EVERY);
    loop {
        ticks.tick().await;
        // Nobody knows how far it is just now; the step itself says what goes wrong.
        if let Ok(Some(job)) = host.compute.job(step.instance()).await
            && let Some(percent) = job.percent()
        {
            progress.send_replace(Some(format!("{text}, {percent} %")));
        }
    }
}

/// Sees to it that what a hypervisor writes takes no room that is kept for guests; ends with the reason to end that.
async fn watch_room(host: &Host, plan: &BackupPlan) -> ActError {
    // A block device has all its room from the beginning.
    if plan.format == VolumeFormat::Raw {
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(WATCH_JOB_EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = host.storage.check_snapshot_room(plan.snapshot).await
            && error.code == FaultCode::DiskFull
        {
            return error;
        }
    }
}

/// The word for a step in figures and logs.
pub(super) fn name(step: &Step) -> &'static str {
    match step {
        Step::Storage(StorageStep::FetchImage(_)) => "fetch_image",
        Step::Storage(StorageStep::CreateDirectory(_)) => "create_directory",
        Step::Storage(StorageStep::CreateDisk(_)) => "create_disk",
        Step::Storage(StorageStep::CreateConfigDrive(_)) => "create_config_drive",
        Step::Storage(StorageStep::WriteMetadata(_)) => "write_metadata",
        Step::Storage(StorageStep::GrowDisk(_)) => "grow_file",
        Step::Storage(StorageStep::RemoveOldFile(_)) => "remove_old_file",
        Step::Storage(StorageStep::RemoveInstance(_)) => "remove_files",
        Step::Storage(StorageStep::CreateVolume(_)) => "create_volume",
        Step::Storage(StorageStep::MarkVolume(_)) => "mark_volume",
        Step::Storage(StorageStep::GrowVolume(_)) => "grow_volume",
        Step::Storage(StorageStep::SettleVolume(_)) => "settle_volume",
        Step::Storage(StorageStep::ActivateVolume(_)) => "activate_volume",
        Step::Storage(StorageStep::RemoveVolume(_)) => "remove_volume",
        Step::Storage(StorageStep::CreateSnapshot(_)) => "create_snapshot",
        Step::Storage(StorageStep::PrepareSnapshot(_)) => "prepare_snapshot",
        Step::Storage(StorageStep::NameSnapshot(_)) => "name_snapshot",
        Step::Storage(StorageStep::MarkSnapshot(_)) => "mark_snapshot",
        Step::Storage(StorageStep::DiscardPartialSnapshot(_)) => "discard_partial_snapshot",
        Step::Storage(StorageStep::RemoveSnapshot(_)) => "remove_snapshot",
        Step::Domain(DomainStep::Define(_)) => "define",
        Step::Domain(DomainStep::Start(_)) => "start",
        Step::Domain(DomainStep::StartPaused(_)) => "start_paused",
        Step::Domain(DomainStep::Restore(_)) => "restore",
        Step::Domain(DomainStep::DiscardSaved(_)) => "discard_saved",
        Step::Domain(DomainStep::Pause(_)) => "pause",
        Step::Domain(DomainStep::Resume(_)) => "resume",
        Step::Domain(DomainStep::Save(_)) => "save",
        Step::Domain(DomainStep::Shutdown(_)) => "shutdown",
        Step::Domain(DomainStep::Destroy(_)) => "destroy",
        Step::Domain(DomainStep::AbandonStart(_)) => "abandon_start",
        Step::Domain(DomainStep::Undefine(_)) => "undefine",
        Step::Domain(DomainStep::AttachScsiController(_)) => "attach_scsi_controller",
        Step::Domain(DomainStep::SetVcpus { .. }) => "set_vcpus",
        Step::Domain(DomainStep::PlugMemory { .. }) => "plug_memory",
        Step::Domain(DomainStep::Attach { .. }) => "attach",
        Step::Domain(DomainStep::Detach { .. }) => "detach",
        Step::Domain(DomainStep::AttachNic { .. }) => "attach_nic",
        Step::Domain(DomainStep::DetachNic { .. }) => "detach_nic",
        Step::Domain(DomainStep::SetLink { .. }) => "set_link",
        Step::Domain(DomainStep::GrowDisk { .. }) => "grow_disk",
        Step::Domain(DomainStep::Backup(_)) => "backup",
        Step::Domain(DomainStep::AbortBackup { .. }) => "abort_backup",
    }
}

fn text(step: &Step) -> String {
    match step {
        Step::Storage(StorageStep::FetchImage(_)) => "fetching the image".to_owned(),
        Step::Storage(StorageStep::CreateDirectory(_)) => "making its directory".to_owned(),
        Step::Storage(StorageStep::CreateDisk(disk)) => format!("making {}", disk.name),
        Step::Storage(StorageStep::CreateConfigDrive(_)) => "making the config drive".to_owned(),
        Step::Storage(StorageStep::WriteMetadata(_)) => "writing its metadata".to_owned(),
        Step::Storage(StorageStep::GrowDisk(disk)) => format!("making {} larger", disk.name),
        Step::Storage(StorageStep::RemoveOldFile(old)) => format!("removing {}", old.name),
        Step::Storage(StorageStep::RemoveInstance(_)) => "removing its files".to_owned(),
        Step::Domain(DomainStep::Define(_)) => "defining the domain".to_owned(),
        Step::Domain(DomainStep::Start(_)) => "starting".to_owned(),
        Step::Domain(DomainStep::StartPaused(_)) => "starting it paused".to_owned(),
        Step::Domain(DomainStep::Restore(_)) => "restoring its memory".to_owned(),
        Step::Domain(DomainStep::DiscardSaved(_)) => "discarding its saved memory".to_owned(),
        Step::Domain(DomainStep::Pause(_)) => "pausing".to_owned(),
        Step::Domain(DomainStep::Resume(_)) => "letting it go on".to_owned(),
        Step::Domain(DomainStep::Save(_)) => "saving its memory".to_owned(),
        Step::Domain(DomainStep::Shutdown(_)) => "asking the guest to power off".to_owned(),
        Step::Domain(DomainStep::Destroy(_)) => "switching off".to_owned(),
        Step::Domain(DomainStep::AbandonStart(_)) => {
            "switching off what libvirt does not get started".to_owned()
        }
        Step::Domain(DomainStep::Undefine(_)) => "removing the domain".to_owned(),
        Step::Domain(DomainStep::AttachScsiController(_)) => {
            "attaching a SCSI controller".to_owned()
        }
        Step::Domain(DomainStep::Attach { disk, .. }) => format!("attaching disk {}", disk.target),
        Step::Domain(DomainStep::Detach { disk, .. }) => {
            format!("asking the guest to give back disk {}", disk.target)
        }
        Step::Domain(DomainStep::AttachNic { nic, .. }) => format!("attaching port {}", nic.port),
        Step::Domain(DomainStep::DetachNic { nic, .. }) => {
            format!("asking the guest to give back NIC {}", nic.mac_address)
        }
        Step::Domain(DomainStep::SetLink { nic, link, .. }) => format!(
            "{} the cable of NIC {}",
            match link {
                PortLink::Up => "plugging in",
                PortLink::Down => "pulling",
            },
            nic.mac_address
        ),
        Step::Domain(DomainStep::GrowDisk { disk, .. }) => format!("growing disk {}", disk.target),
        Step::Domain(DomainStep::SetVcpus { vcpus, .. }) => format!("giving it {vcpus}"),
        Step::Domain(DomainStep::PlugMemory { with, .. }) => {
            format!("giving it {with} of memory")
        }
        Step::Domain(DomainStep::Backup(plan)) => format!("copying disk {}", plan.disk.target),
        Step::Domain(DomainStep::AbortBackup { .. }) => {
            "ending a backup job that nobody waited for".to_owned()
        }
        Step::Storage(
            StorageStep::CreateSnapshot(_)
            | StorageStep::PrepareSnapshot(_)
            | StorageStep::NameSnapshot(_)
            | StorageStep::MarkSnapshot(_),
        ) => "making the snapshot".to_owned(),
        Step::Storage(StorageStep::DiscardPartialSnapshot(_)) => {
            "discarding an interrupted snapshot".to_owned()
        }
        Step::Storage(StorageStep::RemoveSnapshot(_)) => "removing the snapshot".to_owned(),
        Step::Storage(StorageStep::CreateVolume(_) | StorageStep::MarkVolume(_)) => {
            "making the volume".to_owned()
        }
        Step::Storage(StorageStep::GrowVolume(_) | StorageStep::SettleVolume(_)) => {
            "growing the volume".to_owned()
        }
        Step::Storage(StorageStep::ActivateVolume(_)) => "activating the volume".to_owned(),
        Step::Storage(StorageStep::RemoveVolume(_)) => "removing the volume".to_owned(),
    }
}
