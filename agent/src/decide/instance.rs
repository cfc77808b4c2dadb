//! The plan for one instance: its document × what is there → ordered steps.
//!
//! ```text
//!   no domain ──fetch, create disks──▶ (networks ready?) ──define──▶ off ──start──▶ running
//!                                                                    ▲               │
//!                              stop, soft reboot: ask the guest, ────┴───────────────┘
//!                              switch it off when it takes too long
//!   tombstone: destroy, undefine, remove files ──▶ gone
//! ```
//!
//! Every pass plans from what is observed, so a crash between any two steps is just another start. Two marks in
//! the domain's own metadata make one-shot wishes safe: the reboot nonce is written *before* the start that
//! carries the reboot out, and the generation *after* the start, so that a start is never forgotten and a reboot
//! never repeated. A guest that powers itself off stays off until a new generation asks for it.
//!
//! The generation is set to 0 *before* a guest is asked to power off. Who wants it to run after all cannot take the
//! question back: a guest that is marked so and still obeys is started again, by whatever agent sees it. The mark
//! goes when the guest was watched for its whole stop timeout and did not.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_common::{
    document::{
        Desired, DesiredPower, DiskFormat, DiskSource, ImageRef, InstanceDisk, InstanceSpec,
        RebootKind,
    },
    ids::{InstanceId, NetworkId, Nonce},
    message::report::{Fault, FaultCode, PowerState},
    names::ImageSha256,
    units::{ByteCount, Generation},
};

use super::{
    domain::{
        DomainConfig, DomainDisk, DomainMetadata, DomainNic, DomainObserved, DomainStep, OffReason,
        VirtType, cpu_shares,
    },
    names,
};

/// How long after asking a guest to power off it is asked again: it may not have listened yet.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// One step for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A step on files.
    Storage(StorageStep),
    /// A step on the domain.
    Domain(DomainStep),
}

/// One step on files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageStep {
    /// Fetch an image into the cache.
    FetchImage(ImageRef),
    /// Make a disk from a cached image.
    CreateDisk(DiskPlan),
    /// Remove all files of an instance.
    RemoveInstance(InstanceId),
}

/// A disk to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its instance.
    pub instance: InstanceId,
    /// Its position.
    pub index: u8,
    /// Where.
    pub path: PathBuf,
    /// Its virtual size.
    pub size: ByteCount,
    /// How it is stored.
    pub format: DiskFormat,
    /// The cached image below it.
    pub image: ImageRef,
}

/// The files of an instance that are there and complete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceFiles {
    /// Whether anything of the instance is there at all.
    pub directory: bool,
    /// Positions of the disks that are complete.
    pub disks: BTreeSet<u8>,
}

/// What is there of an instance and of what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The domain with its UUID.
    pub domain: Option<DomainObserved>,
    /// Its files.
    pub files: InstanceFiles,
    /// Which images are in the cache.
    pub images: BTreeSet<ImageSha256>,
    /// Which networks are ready on this host.
    pub networks_ready: BTreeSet<NetworkId>,
    /// How long ago the guest was asked to power off for this wish: first and last time. `None`: not asked.
    pub asked: Option<Asked>,
    /// How long ago it was asked last, for whatever wish, or found marked as asked. `None`: neither, as far as this
    /// agent knows.
    pub asked_before: Option<Duration>,
}

/// How long ago a guest was asked to power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The first time.
    pub first: Duration,
    /// The last time.
    pub last: Duration,
}

/// What is the same for all instances of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// What runs guests.
    pub virt_type: VirtType,
    /// libvirt's name of the architecture.
    pub arch: String,
    /// Whether libvirt can weigh guests against each other (the cgroup controller `cpu`).
    pub has_cpu_controller: bool,
    /// Where things are.
    pub paths: Paths,
}

/// Where an agent keeps the files of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// One directory per instance below this.
    pub instances: PathBuf,
    /// One file per image below this, named by its sha256.
    pub images: PathBuf,
}

impl Paths {
    /// The paths below an agent's state directory.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self {
            instances: state_dir.join("instances"),
            images: state_dir.join("images"),
        }
    }

    /// The directory of an instance.
    #[must_use]
    pub fn instance(&self, id: InstanceId) -> PathBuf {
        self.instances.join(id.to_string())
    }

    /// A disk of an instance.
    #[must_use]
    pub fn disk(&self, id: InstanceId, index: u8, format: DiskFormat) -> PathBuf {
        let DiskFormat::Qcow2 = format;
        self.instance(id).join(format!("disk{index}.qcow2"))
    }

    /// What the guest printed on its serial port.
    #[must_use]
    pub fn console_log(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("console.log")
    }

    /// A cached image.
    #[must_use]
    pub fn image(&self, sha256: &ImageSha256) -> PathBuf {
        self.images.join(sha256.as_str())
    }
}

/// What to do, and where that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order; each depends on those before it.
    pub steps: Vec<Step>,
    /// What is true once they are done.
    pub then: Then,
}

/// What is true once a plan's steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// The instance is as its document says.
    Converged,
    /// The same, but the guest may still obey an old request to power off: look again after this long.
    Watch(Duration),
    /// Nothing of it is left.
    Gone,
    /// Something else must happen first.
    Wait(Wait),
    /// It cannot be made so.
    Refused(Fault),
}

/// What an instance waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// A network is not ready on this host yet.
    Network(NetworkId),
    /// The guest was asked to power off.
    GuestPowersOff,
}

/// The plan for an instance.
#[must_use]
pub fn plan(
    desired: &Desired<InstanceId, InstanceSpec>,
    observed: &Observed,
    host: &HostFacts,
) -> Plan {
    match &desired.spec {
        None => remove(desired.id, observed),
        Some(spec) => match foreign(desired.id, observed.domain.as_ref()) {
            Some(fault) => refused(fault),
            None => converge(desired.id, desired.generation, spec, observed, host),
        },
    }
}

/// Whether berth made a domain for this instance.
fn is_ours(id: InstanceId, domain: &DomainObserved) -> bool {
    domain
        .metadata
        .as_ref()
        .is_some_and(|metadata| metadata.instance_id == id)
}

/// A domain with the instance's UUID that berth did not make.
fn foreign(id: InstanceId, domain: Option<&DomainObserved>) -> Option<Fault> {
    let domain = domain.filter(|domain| !is_ours(id, domain))?;
    Some(Fault {
        code: FaultCode::ForeignObject,
        message: format!(
            "domain {:?} on the host has this instance's UUID, but berth did not make it; it was left alone",
            domain.name
        ),
    })
}

/// Removes what is berth's, and only that: a foreign domain with the instance's UUID stays. So do the disks while it
/// is on: it may be the instance's own, with its mark lost.
fn remove(id: InstanceId, observed: &Observed) -> Plan {
    let mut steps = Vec::new();
    match &observed.domain {
        // Whatever is not known to be off counts as on: an active domain would outlive its definition, and its disks.
        Some(domain) if is_ours(id, domain) => {
            if domain.power_state != PowerState::Shutdown {
                steps.push(Step::Domain(DomainStep::Destroy(id)));
            }
            if domain.persistent {
                steps.push(Step::Domain(DomainStep::Undefine(id)));
            }
        }
        Some(domain)
            if domain.power_state != PowerState::Shutdown && !observed.files.disks.is_empty() =>
        {
            return refused(may_use_our_disks(domain));
        }
        Some(_) | None => {}
    }
    if observed.files.directory {
        steps.push(Step::Storage(StorageStep::RemoveInstance(id)));
    }
    Plan {
        steps,
        then: Then::Gone,
    }
}

fn refused(fault: Fault) -> Plan {
    Plan {
        steps: Vec::new(),
        then: Then::Refused(fault),
    }
}

fn may_use_our_disks(domain: &DomainObserved) -> Fault {
    Fault {
        code: FaultCode::ForeignObject,
        message: format!(
            "domain {:?} on the host has this instance's UUID and is not off, but does not carry berth's mark; the \
             instance's disks stay while it may use them: switch it off, and they are removed",
            domain.name
        ),
    }
}

fn converge(
    id: InstanceId,
    generation: Generation,
    spec: &InstanceSpec,
    observed: &Observed,
    host: &HostFacts,
) -> Plan {
    let disks = match missing_disks(id, spec, observed, host) {
        Ok(disks) => disks,
        Err(fault) => return refused(fault),
    };
    let config = domain_config(id, spec, host);
    let (domain_steps, then) = domain_plan(&config, generation, spec, observed);
    let starts = domain_steps
        .iter()
        .any(|step| matches!(step, DomainStep::Start(_)));

    // A disk is no more than what differs from its image: without that, there is nothing to make or to start.
    let mut images: Vec<&ImageRef> = disks.iter().map(|disk| &disk.image).collect();
    if starts {
        images.extend(spec.disks.iter().map(|disk| image_of(&disk.source)));
    }
    let mut steps = missing_images(images, observed);
    steps.extend(
        disks
            .into_iter()
            .map(|disk| Step::Storage(StorageStep::CreateDisk(disk))),
    );
    let is_on = observed
        .domain
        .as_ref()
        .is_some_and(|domain| !is_off(domain));
    let unready = spec
        .ports
        .iter()
        .map(|port| port.network_id)
        .find(|id| !observed.networks_ready.contains(id));
    if let (true, false, Some(network)) = (starts, is_on, unready) {
        return Plan {
            steps,
            then: Then::Wait(Wait::Network(network)),
        };
    }
    steps.extend(domain_steps.into_iter().map(Step::Domain));
    Plan { steps, then }
}

/// The disks that are not there. One that vanished from under a domain is never made anew: that would look like
/// success and be a loss of data.
fn missing_disks(
    id: InstanceId,
    spec: &InstanceSpec,
    observed: &Observed,
    host: &HostFacts,
) -> Result<Vec<DiskPlan>, Fault> {
    let missing = spec
        .disks
        .iter()
        .filter(|disk| !observed.files.disks.contains(&disk.index));
    let plan = |disk: &InstanceDisk| {
        let path = host.paths.disk(id, disk.index, disk.format);
        if observed.domain.is_some() {
            return Err(Fault {
                code: FaultCode::Hypervisor,
                message: format!(
                    "disk {} is missing on the host ({})",
                    disk.index,
                    path.display()
                ),
            });
        }
        Ok(DiskPlan {
            instance: id,
            index: disk.index,
            path,
            size: ByteCount::from_gb(disk.size_gb),
            format: disk.format,
            image: image_of(&disk.source).clone(),
        })
    };
    missing.map(plan).collect()
}

/// Fetches those of the images that are not in the cache, each once.
fn missing_images(images: Vec<&ImageRef>, observed: &Observed) -> Vec<Step> {
    let mut fetched = BTreeSet::new();
    images
        .into_iter()
        .filter(|image| !observed.images.contains(&image.sha256) && fetched.insert(&image.sha256))
        .map(|image| Step::Storage(StorageStep::FetchImage(image.clone())))
        .collect()
}

fn image_of(source: &DiskSource) -> &ImageRef {
    let DiskSource::Image(image) = source;
    image
}

/// What the domain needs, once disks and networks are there.
fn domain_plan(
    config: &DomainConfig,
    generation: Generation,
    spec: &InstanceSpec,
    observed: &Observed,
) -> (Vec<DomainStep>, Then) {
    let wanted_nonce = spec.reboot.map(|reboot| reboot.nonce);
    let carried_out = |done: Generation| define(config, done, wanted_nonce);
    let start = || {
        vec![
            carried_out(Generation(0)),
            DomainStep::Start(config.id),
            carried_out(generation),
        ]
    };
    let written = |domain: &DomainObserved, generation: Generation| {
        let done = domain.persistent
            && domain.metadata.as_ref().is_some_and(|metadata| {
                metadata.generation == generation
                    && metadata.reboot_nonce == wanted_nonce
                    && metadata.digest == config.metadata.digest
            });
        if done {
            Vec::new()
        } else {
            vec![carried_out(generation)]
        }
    };
    let settled = |domain: &DomainObserved| (written(domain, generation), Then::Converged);
    let Some(domain) = &observed.domain else {
        return match spec.power {
            DesiredPower::Running => (start(), Then::Converged),
            DesiredPower::Stopped | DesiredPower::Paused | DesiredPower::Suspended => {
                (vec![carried_out(generation)], Then::Converged)
            }
        };
    };
    let metadata = domain.metadata.as_ref();
    let rebooted = metadata.is_some_and(|metadata| metadata.reboot_nonce == wanted_nonce);
    let carried_out_before = metadata.is_some_and(|metadata| metadata.generation == generation);

    if is_off(domain) {
        if spec.power == DesiredPower::Running && domain.off_reason == Some(OffReason::Moved) {
            return (Vec::new(), Then::Refused(moved(domain)));
        }
        let left_off_by_guest =
            domain.off_reason == Some(OffReason::Guest) && carried_out_before && rebooted;
        return match spec.power {
            DesiredPower::Running if !left_off_by_guest => (start(), Then::Converged),
            DesiredPower::Running
            | DesiredPower::Stopped
            | DesiredPower::Paused
            | DesiredPower::Suspended => settled(domain),
        };
    }
    match (spec.power, spec.reboot) {
        (DesiredPower::Paused | DesiredPower::Suspended, _) => settled(domain),
        (DesiredPower::Stopped, _) => power_off(config, domain, spec, observed.asked),
        (DesiredPower::Running, Some(reboot)) if !rebooted => match reboot.kind {
            RebootKind::Soft => power_off(config, domain, spec, observed.asked),
            RebootKind::Hard => {
                let mut steps = vec![DomainStep::Destroy(config.id)];
                steps.extend(start());
                (steps, Then::Converged)
            }
        },
        (DesiredPower::Running, _) if domain.power_state == PowerState::Crashed => {
            let mut steps = vec![DomainStep::Destroy(config.id)];
            steps.extend(start());
            (steps, Then::Converged)
        }
        (DesiredPower::Running, _) => {
            let (mut steps, then) = match may_obey_for(domain, spec, observed.asked_before) {
                Some(left) => (written(domain, Generation(0)), Then::Watch(left)),
                None => settled(domain),
            };
            if domain.power_state == PowerState::Paused {
                steps.push(DomainStep::Resume(config.id));
            }
            (steps, then)
        }
    }
}

fn moved(domain: &DomainObserved) -> Fault {
    Fault {
        code: FaultCode::Hypervisor,
        message: format!(
            "domain {:?} was migrated away from this host; it is not started here while it may run elsewhere",
            domain.name
        ),
    }
}

/// How much longer a guest that is on may still obey a request to power off that another agent, or another wish, made.
/// A start that was not noted looks the same and is treated the same.
fn may_obey_for(
    domain: &DomainObserved,
    spec: &InstanceSpec,
    asked_before: Option<Duration>,
) -> Option<Duration> {
    if !is_marked(domain) {
        return None;
    }
    stop_timeout(spec)
        .checked_sub(asked_before.unwrap_or_default())
        .filter(|left| !left.is_zero())
}

/// Whether its guest may have been asked to power off.
fn is_marked(domain: &DomainObserved) -> bool {
    domain
        .metadata
        .as_ref()
        .is_some_and(|metadata| metadata.generation == Generation(0))
}

fn stop_timeout(spec: &InstanceSpec) -> Duration {
    Duration::from_secs(spec.stop_timeout_seconds.into())
}

/// Ask the guest, ask again, and switch it off when it takes too long or cannot hear.
fn power_off(
    config: &DomainConfig,
    domain: &DomainObserved,
    spec: &InstanceSpec,
    asked: Option<Asked>,
) -> (Vec<DomainStep>, Then) {
    let wait = Then::Wait(Wait::GuestPowersOff);
    if domain.power_state != PowerState::Running {
        return (vec![DomainStep::Destroy(config.id)], wait);
    }
    let ask = || {
        let reboots = domain
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.reboot_nonce);
        let mark = (!is_marked(domain)).then(|| define(config, Generation(0), reboots));
        mark.into_iter()
            .chain([DomainStep::Shutdown(config.id)])
            .collect()
    };
    match asked {
        None => (ask(), wait),
        Some(asked) if asked.first >= stop_timeout(spec) => {
            (vec![DomainStep::Destroy(config.id)], wait)
        }
        Some(asked) if asked.last >= ASK_AGAIN_AFTER => (ask(), wait),
        Some(_) => (Vec::new(), wait),
    }
}

/// Whether nothing of the guest runs or is kept in memory.
fn is_off(domain: &DomainObserved) -> bool {
    match domain.power_state {
        PowerState::Shutdown | PowerState::Nostate => true,
        // A crashed guest that libvirt still lists as such is kept in memory, for whoever wants to look at it.
        PowerState::Running | PowerState::Paused | PowerState::Suspended | PowerState::Crashed => {
            false
        }
    }
}

fn define(
    config: &DomainConfig,
    generation: Generation,
    reboot_nonce: Option<Nonce>,
) -> DomainStep {
    let mut config = config.clone();
    config.metadata.generation = generation;
    config.metadata.reboot_nonce = reboot_nonce;
    DomainStep::Define(Box::new(config))
}

/// The domain an instance's document describes, with generation 0 and its digest filled in.
#[must_use]
pub fn domain_config(id: InstanceId, spec: &InstanceSpec, host: &HostFacts) -> DomainConfig {
    let disks = spec.disks.iter().map(|disk| {
        let image = image_of(&disk.source);
        let DiskFormat::Qcow2 = disk.format;
        DomainDisk {
            path: host.paths.disk(id, disk.index, disk.format),
            format: "qcow2",
            backing: vec![(host.paths.image(&image.sha256), image.format.as_str())],
            target: disk_target(disk.index),
            serial: format!("disk{}", disk.index),
        }
    });
    let nics = spec.ports.iter().map(|port| DomainNic {
        mac_address: port.mac_address,
        bridge: names::bridge(port.network_id),
        tap: names::tap(port.id),
        mtu: port.mtu,
    });
    let mut config = DomainConfig {
        id,
        title: spec.name.to_string(),
        virt_type: host.virt_type,
        arch: host.arch.clone(),
        vcpus: spec.flavor.vcpus,
        cpu_shares: host
            .has_cpu_controller
            .then(|| cpu_shares(spec.flavor.vcpus)),
        memory_mb: spec.flavor.memory_mb,
        disks: disks.collect(),
        nics: nics.collect(),
        console_log: host.paths.console_log(id),
        metadata: DomainMetadata {
            instance_id: id,
            generation: Generation(0),
            reboot_nonce: None,
            digest: String::new(),
        },
    };
    config.metadata.digest = config.digest();
    config
}

/// `vda`, `vdb`, … `vdz`, `vdaa`, …
fn disk_target(index: u8) -> String {
    let letter = |n: u8| char::from(b'a' + n % 26);
    match index / 26 {
        0 => format!("vd{}", letter(index)),
        tens => format!("vd{}{}", letter(tens - 1), letter(index)),
    }
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;
