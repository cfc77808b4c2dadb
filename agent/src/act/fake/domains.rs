//! The domains of a fake host, and the guests in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use berth_common::{
    document::DiskBus,
    ids::InstanceId,
    message::report::{FaultCode, PowerState, RunningSize},
    units::MemoryMb,
};
use uuid::Uuid;

use super::{faults::Nature, files::Files, networks::Networks};
use crate::{
    act::ActError,
    decide::{
        disk_target,
        domain::{
            BackupPlan, DiskError, DiskFile, DomainConfig, DomainDisks, DomainNic, DomainNics,
            DomainObserved, DomainStep, LeftOff, NicObserved, OffReason,
        },
        instance::{DiskName, MAX_NICS},
        names, room,
        snapshot::BackupJob,
    },
};

/// How a guest takes being asked to power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guest {
    /// It is off at once.
    #[default]
    Obeys,
    /// It is off after having been looked at so many times more.
    Takes(u32),
    /// It does not listen.
    IgnoresAcpi,
}

/// What became of a guest so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lives {
    /// How often it was started.
    pub starts: u32,
    /// How often it was asked to power off.
    pub asked: u32,
    /// How often it was switched off.
    pub destroys: u32,
    /// How often its memory was saved.
    pub saves: u32,
    /// How often it went on from saved memory.
    pub restores: u32,
    /// How often it was let go on after it had stood still.
    pub resumes: u32,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Domains {
    own: BTreeMap<Uuid, OwnDomain>,
    foreign: BTreeMap<Uuid, DomainObserved>,
    guests: BTreeMap<InstanceId, Guest>,
    lives: BTreeMap<InstanceId, Lives>,
}

#[derive(Debug, Clone)]
struct OwnDomain {
    /// What was defined last: what the next start uses.
    config: DomainConfig,
    /// What it was started with.
    live: Option<DomainConfig>,
    /// What it was started with before its memory was saved.
    saved: Option<DomainConfig>,
    /// Whether not all of its memory was saved: libvirt, when it starts anew with the host, throws that away.
    half_saved: bool,
    state: PowerState,
    off: OffReason,
    /// Asked to power off: how often it will be looked at before it is off.
    going_off: Option<u32>,
    /// A backup job that runs: the file it writes.
    backup: Option<PathBuf>,
    /// Whether the guest that is on, or saved, has a controller for SCSI disks.
    scsi_controller: bool,
    /// Whether libvirt is starting it, and does not get any further.
    is_starting: bool,
    /// Whether each start of it hangs.
    starts_hang: bool,
    /// Whether there is no room for what it writes to its first disk. Then it stands still after having been looked at once.
    is_full: bool,
    is_halted: bool,
    /// Whether it was looked at since it goes on.
    was_seen: bool,
}

impl OwnDomain {
    fn is_on(&self) -> bool {
        self.live.is_some()
    }

    fn switch_off(&mut self, reason: OffReason) {
        if self.live.take().is_some() {
            self.state = PowerState::Shutdown;
            self.off = reason;
            self.going_off = None;
            self.backup = None;
            self.is_starting = false;
            self.is_halted = false;
            self.was_seen = false;
        }
    }

    /// QEMU cannot write what the guest wants to, and stops it.
    fn halt(&mut self) {
        if self.is_on() && self.state == PowerState::Running {
            self.state = PowerState::Paused;
            self.is_halted = true;
        }
    }

    /// QEMU opens its volumes, and knows how large they are.
    fn open(&self, files: &mut Files) {
        for disk in self.live.iter().flat_map(|live| &live.disks) {
            if let Some(volume) = files.volume_at(&disk.path) {
                files.open(volume);
            }
        }
    }

    /// libvirt begins to start it, or to restore it, and gets no further.
    fn hang(&mut self) {
        let live = self.saved.as_ref().unwrap_or(&self.config);
        self.live = Some(live.clone());
        self.state = PowerState::Running;
        self.is_starting = true;
    }

    fn observed(&self) -> DomainObserved {
        DomainObserved {
            uuid: self.config.id.as_uuid(),
            name: names::domain(self.config.id),
            power_state: self.state,
            off_reason: (!self.is_on())
                .then_some(if self.saved.is_some() {
                    OffReason::Saved
                } else {
                    self.off
                })
                .and_then(|said| LeftOff::recall(Some(said), self.config.metadata.left_off)),
            leftover_memory: self.is_on() && self.saved.is_some() && !self.is_starting,
            is_starting: self.is_starting,
            is_halted: self.is_halted,
            reason: format!("{:?}", self.state),
            persistent: true,
            vcpus: self.config.vcpus,
            memory_mb: self.config.memory_mb,
            running: self.live.as_ref().map(running),
            metadata: Some(self.config.metadata.clone()),
            disks: DomainDisks {
                live: self
                    .live
                    .as_ref()
                    .or(self.saved.as_ref())
                    .map(files)
                    .unwrap_or_default(),
                kept: files(&self.config),
                scsi_controller: self.scsi_controller && (self.is_on() || self.saved.is_some()),
            },
            nics: DomainNics {
                live: self
                    .live
                    .as_ref()
                    .or(self.saved.as_ref())
                    .map(nics)
                    .unwrap_or_default(),
                kept: nics(&self.config),
            },
        }
    }
}

impl Domains {
    pub(super) fn set_guest(&mut self, instance: InstanceId, guest: Guest) {
        self.guests.insert(instance, guest);
    }

    pub(super) fn add_foreign(&mut self, domain: DomainObserved) {
        self.foreign.insert(domain.uuid, domain);
    }

    pub(super) fn remove_foreign(&mut self, uuid: Uuid) {
        self.foreign.remove(&uuid);
    }

    /// Who has QEMU running: each with its memory, and berth's own with what it was started with.
    pub(super) fn on(&self) -> Vec<(Uuid, MemoryMb, Option<&DomainConfig>)> {
        let own = self.own.values().filter_map(|domain| {
            let live = domain.live.as_ref()?;
            Some((live.id.as_uuid(), live.memory_mb, Some(live)))
        });
        let foreign = self
            .foreign
            .values()
            .filter(|domain| domain.off_reason.is_none());
        own.chain(foreign.map(|domain| (domain.uuid, domain.memory_mb, None)))
            .collect()
    }

    pub(super) fn lives(&self, instance: InstanceId) -> Lives {
        self.lives.get(&instance).copied().unwrap_or_default()
    }

    pub(super) fn guest_has(&self, instance: InstanceId) -> Option<DomainConfig> {
        let domain = self.own.get(&instance.as_uuid())?;
        domain.live.clone().or_else(|| domain.saved.clone())
    }

    pub(super) fn definition(&self, instance: InstanceId) -> Option<DomainConfig> {
        let domain = self.own.get(&instance.as_uuid())?;
        Some(domain.config.clone())
    }

    pub(super) fn own(&self) -> Vec<InstanceId> {
        self.own.values().map(|domain| domain.config.id).collect()
    }

    /// The memory of all guests that run: a fake guest takes all it was given.
    pub(super) fn memory_in_use(&self) -> MemoryMb {
        let running = self.own.values().filter_map(|domain| domain.live.as_ref());
        running.map(|live| live.memory_mb).sum()
    }

    pub(super) fn taps_in(&self, bridge: &str) -> BTreeSet<String> {
        let nics = self
            .own
            .values()
            .filter_map(|domain| domain.live.as_ref())
            .flat_map(|live| &live.nics);
        nics.filter(|nic| nic.bridge == bridge)
            .map(|nic| nic.tap.clone())
            .collect()
    }

    /// All taps of domains that run.
    pub(super) fn taps(&self) -> BTreeSet<String> {
        let live = self.own.values().filter_map(|domain| domain.live.as_ref());
        live.flat_map(|live| &live.nics)
            .map(|nic| nic.tap.clone())
            .collect()
    }

    pub(super) fn power_cut(&mut self) {
        for domain in self.own.values_mut() {
            domain.switch_off(OffReason::Unknown);
            domain.saved.take_if(|_| domain.half_saved);
        }
        self.libvirt_ends();
    }

    /// libvirt keeps no reason for what is off: the next one does not know.
    pub(super) fn libvirt_ends(&mut self) {
        for domain in self.own.values_mut().filter(|domain| !domain.is_on()) {
            domain.off = OffReason::Unknown;
        }
    }

    pub(super) fn guest_powers_off(&mut self, instance: InstanceId) {
        self.change(instance, |domain| domain.switch_off(OffReason::Guest));
    }

    pub(super) fn guest_crashes(&mut self, instance: InstanceId) {
        self.change(instance, |domain| domain.switch_off(OffReason::Crashed));
    }

    pub(super) fn pause(&mut self, instance: InstanceId) {
        self.change(instance, |domain| {
            if domain.is_on() {
                domain.state = PowerState::Paused;
            }
        });
    }

    pub(super) fn fill_disk(&mut self, instance: InstanceId) {
        self.change(instance, |domain| {
            domain.is_full = true;
            domain.halt();
        });
    }

    pub(super) fn make_room(&mut self, instance: InstanceId) {
        self.change(instance, |domain| domain.is_full = false);
    }

    pub(super) fn disk_errors(&self, instance: InstanceId) -> BTreeMap<String, DiskError> {
        let domain = self.own.get(&instance.as_uuid());
        let live = domain.filter(|domain| domain.is_halted);
        let disk = live.and_then(|domain| domain.live.as_ref()?.disks.first());
        disk.map(|disk| (disk.target.clone(), DiskError::NoSpace))
            .into_iter()
            .collect()
    }

    pub(super) fn leave_memory(&mut self, instance: InstanceId) {
        self.change(instance, |domain| domain.saved.clone_from(&domain.live));
    }

    pub(super) fn hang_start(&mut self, instance: InstanceId) {
        self.change(instance, OwnDomain::hang);
    }

    pub(super) fn hang_starts(&mut self, instance: InstanceId) {
        self.change(instance, |domain| domain.starts_hang = true);
    }

    /// A backup job that nobody waits for any more.
    pub(super) fn leave_backup(&mut self, plan: &BackupPlan, files: &mut Files) {
        let Some(domain) = self.own.get_mut(&plan.instance.as_uuid()) else {
            return;
        };
        if back_up(domain, plan, files).is_ok() {
            domain.backup = Some(plan.file.clone());
        }
    }

    pub(super) fn backups(&self) -> Vec<BackupJob> {
        let job = |domain: &OwnDomain| {
            Some(BackupJob {
                instance: domain.config.id,
                domain: names::domain(domain.config.id),
                files: vec![domain.backup.clone()?],
            })
        };
        self.own.values().filter_map(job).collect()
    }

    fn change(&mut self, instance: InstanceId, change: impl FnOnce(&mut OwnDomain)) {
        if let Some(domain) = self.own.get_mut(&instance.as_uuid()) {
            change(domain);
        }
    }

    pub(super) fn observe_all(&mut self) -> Vec<DomainObserved> {
        let uuids: BTreeSet<Uuid> = self
            .own
            .keys()
            .chain(self.foreign.keys())
            .copied()
            .collect();
        uuids
            .into_iter()
            .filter_map(|uuid| self.observe(uuid))
            .collect()
    }

    /// The domain as it is; a guest on its way off gets nearer to it by being looked at.
    pub(super) fn observe(&mut self, uuid: Uuid) -> Option<DomainObserved> {
        if let Some(domain) = self.own.get_mut(&uuid) {
            match domain
                .going_off
                .filter(|_| domain.state == PowerState::Running)
            {
                Some(0) => domain.switch_off(OffReason::Guest),
                Some(left) => domain.going_off = Some(left - 1),
                None => {}
            }
            if domain.is_full && domain.was_seen {
                domain.halt();
            }
            domain.was_seen = domain.state == PowerState::Running;
        }
        self.peek(uuid)
    }

    pub(super) fn peek(&self, uuid: Uuid) -> Option<DomainObserved> {
        self.own
            .get(&uuid)
            .map(OwnDomain::observed)
            .or_else(|| self.foreign.get(&uuid).cloned())
    }

    pub(super) fn apply(
        &mut self,
        step: &DomainStep,
        files: &mut Files,
        networks: &Networks,
    ) -> Result<(), ActError> {
        let id = step.instance();
        if self.foreign.contains_key(&id.as_uuid()) {
            return Err(ActError::refused(
                FaultCode::ForeignObject,
                format!("domain {id} is not berth's"),
            ));
        }
        if let DomainStep::Define(config) = step {
            self.define(config);
            return Ok(());
        }
        let uuid = id.as_uuid();
        let guest = self.guests.get(&id).copied().unwrap_or_default();
        let lives = self.lives.entry(id).or_default();
        let Some(domain) = self.own.get_mut(&uuid) else {
            return match step {
                DomainStep::Shutdown(_)
                | DomainStep::Destroy(_)
                | DomainStep::AbandonStart(_)
                | DomainStep::DiscardSaved(_)
                | DomainStep::AbortBackup { .. }
                | DomainStep::Undefine(_) => Ok(()),
                _ => Err(failed(format!("there is no domain {id}"))),
            };
        };
        match step {
            DomainStep::Define(_) => {}
            step if step.starts_qemu() && domain.is_on() => {}
            step if step.starts_qemu() && domain.starts_hang => {
                domain.hang();
                return Err(failed(format!("no answer about domain {id}")));
            }
            DomainStep::Restore(_) if domain.saved.is_some() => {
                can_start(&domain.config, files, networks)?;
                lives.restores += 1;
                domain.live = domain.saved.take();
                domain.state = PowerState::Running;
                domain.open(files);
            }
            DomainStep::Start(_) | DomainStep::Restore(_) | DomainStep::StartPaused(_) => {
                can_start(&domain.config, files, networks)?;
                lives.starts += 1;
                domain.saved = None;
                domain.live = Some(domain.config.clone());
                domain.scsi_controller = domain.config.needs_scsi_controller();
                domain.state = match step {
                    DomainStep::StartPaused(_) => PowerState::Paused,
                    _ => PowerState::Running,
                };
                domain.open(files);
            }
            DomainStep::DiscardSaved(_) => domain.saved = None,
            DomainStep::Pause(_) => {
                if domain.state == PowerState::Running {
                    domain.state = PowerState::Paused;
                }
            }
            DomainStep::Save(_) if domain.backup.is_some() => {
                return Err(failed(format!("domain {id} is being backed up")));
            }
            DomainStep::Save(_) => {
                if let Some(live) = domain.live.clone() {
                    lives.saves += 1;
                    domain.switch_off(OffReason::Destroyed);
                    domain.saved = Some(live);
                    domain.half_saved = false;
                }
            }
            DomainStep::Resume(_) => {
                if domain.state == PowerState::Paused {
                    lives.resumes += 1;
                    domain.state = PowerState::Running;
                    domain.is_halted = false;
                    domain.was_seen = false;
                }
            }
            DomainStep::Shutdown(_) if !domain.is_on() => {}
            DomainStep::Shutdown(_) => {
                lives.asked += 1;
                match guest {
                    Guest::Obeys => domain.switch_off(OffReason::Guest),
                    Guest::Takes(looks) => {
                        domain.going_off = Some(domain.going_off.unwrap_or(looks))
                    }
                    Guest::IgnoresAcpi => {}
                }
            }
            DomainStep::Destroy(_) if !domain.is_on() => {}
            DomainStep::Destroy(_) => {
                lives.destroys += 1;
                domain.switch_off(OffReason::Destroyed);
            }
            DomainStep::AbandonStart(_) if !domain.is_starting => {}
            DomainStep::AbandonStart(_) => domain.switch_off(OffReason::Failed),
            DomainStep::Undefine(_) if domain.is_on() => {
                return Err(failed(format!("domain {id} is not off")));
            }
            DomainStep::Undefine(_) => {
                self.own.remove(&uuid);
            }
            DomainStep::AttachScsiController(_) => domain.scsi_controller |= domain.is_on(),
            DomainStep::Attach { disk, .. } => {
                let Some(live) = &mut domain.live else {
                    return Ok(());
                };
                if is_on_scsi(&disk.target) && !domain.scsi_controller {
                    return Err(failed(format!("domain {id} has no SCSI controller")));
                }
                let Some(volume) = files.volume_at(&disk.path) else {
                    return Err(failed(format!("there is no {}", disk.path.display())));
                };
                if !live.disks.iter().any(|it| it.target == disk.target) {
                    live.disks.push((**disk).clone());
                    files.open(volume);
                }
            }
            DomainStep::Detach { .. } if domain.backup.is_some() => {
                return Err(failed(format!("domain {id} is being backed up")));
            }
            // A guest that does not hear of being switched off does not hear of this; a SCSI disk is simply taken.
            DomainStep::Detach { disk, .. } => {
                let is_deaf = guest == Guest::IgnoresAcpi && !is_on_scsi(&disk.target);
                if let (Some(live), false) = (&mut domain.live, is_deaf) {
                    live.disks.retain(|it| it.path != disk.path);
                }
            }
            DomainStep::AttachNic { nic, .. } => {
                let Some(live) = &mut domain.live else {
                    return Ok(());
                };
                if !networks.bridges().contains(&nic.bridge) {
                    return Err(failed(format!("there is no bridge {}", nic.bridge)));
                }
                if live.nics.len() >= MAX_NICS {
                    return Err(failed(format!("domain {id} has no room for a NIC")));
                }
                if !live.nics.iter().any(|it| it.tap == nic.tap) {
                    live.nics.push((**nic).clone());
                }
            }
            DomainStep::DetachNic { nic, .. } => {
                let is_deaf = guest == Guest::IgnoresAcpi || domain.state == PowerState::Paused;
                if let (Some(live), false) = (&mut domain.live, is_deaf) {
                    live.nics.retain(|it| observed_nic(it) != *nic);
                }
            }
            DomainStep::SetLink { nic, link, .. } => {
                let nics = domain.live.iter_mut().flat_map(|live| &mut live.nics);
                for found in nics.filter(|it| it.tap == nic.tap) {
                    found.link = *link;
                }
            }
            // What the guest does not have any more is not grown under it.
            DomainStep::GrowDisk { disk, size, .. } => {
                let Some(live) = &domain.live else {
                    return Ok(());
                };
                let Some(disk) = live.disks.iter().find(|it| it.path == disk.path) else {
                    return Ok(());
                };
                if files.grow_disk(id, &disk.path, *size).is_none() {
                    match files.volume_at(&disk.path) {
                        None => {
                            return Err(failed(format!("there is no {}", disk.path.display())));
                        }
                        Some(volume) => files.grow(volume, *size)?,
                    }
                }
            }
            DomainStep::SetVcpus { vcpus, .. } => {
                let Some(live) = &mut domain.live else {
                    return Ok(());
                };
                if *vcpus > live.room.vcpus {
                    return Err(failed(format!(
                        "domain {id} can have {}, not {vcpus}",
                        live.room.vcpus
                    )));
                }
                live.vcpus = live.vcpus.max(*vcpus);
            }
            DomainStep::PlugMemory { before, with, .. } => {
                let Some(live) = &mut domain.live else {
                    return Ok(());
                };
                if live.memory_mb == *before {
                    if *with > live.room.memory_mb {
                        return Err(failed(format!(
                            "domain {id} can have {} of memory, not {with}",
                            live.room.memory_mb
                        )));
                    }
                    live.memory_mb = *with;
                }
            }
            // Nothing takes time here: it is done when it has begun.
            DomainStep::Backup(plan) => back_up(domain, plan, files)?,
            DomainStep::AbortBackup { file, .. } => {
                if domain.backup.as_ref() == Some(file) {
                    domain.backup = None;
                }
            }
        }
        Ok(())
    }

    /// Leaves half of a step, as whoever ends in the middle of it does.
    pub(super) fn halve(
        &mut self,
        step: &DomainStep,
        files: &mut Files,
        networks: &Networks,
    ) -> Result<(), ActError> {
        let Some(domain) = self.own.get_mut(&step.instance().as_uuid()) else {
            return Ok(());
        };
        match step {
            DomainStep::Start(_) | DomainStep::StartPaused(_) | DomainStep::Restore(_)
                if !domain.is_on() =>
            {
                can_start(&domain.config, files, networks)?;
                if !matches!(step, DomainStep::Restore(_)) {
                    domain.saved = None;
                    domain.scsi_controller = domain.config.needs_scsi_controller();
                }
                domain.hang();
            }
            DomainStep::Save(_) => {
                domain.saved.clone_from(&domain.live);
                domain.half_saved = domain.saved.is_some();
            }
            DomainStep::Backup(plan) => {
                back_up(domain, plan, files)?;
                domain.backup = Some(plan.file.clone());
            }
            _ => {}
        }
        Ok(())
    }

    fn define(&mut self, config: &DomainConfig) {
        let domain = self
            .own
            .entry(config.id.as_uuid())
            .or_insert_with(|| OwnDomain {
                config: config.clone(),
                live: None,
                saved: None,
                half_saved: false,
                state: PowerState::Shutdown,
                off: OffReason::Unknown,
                going_off: None,
                backup: None,
                scsi_controller: false,
                is_starting: false,
                starts_hang: false,
                is_full: false,
                is_halted: false,
                was_seen: false,
            });
        domain.config = config.clone();
    }
}

/// libvirt goes on with what an agent began that ends, but nobody waits for the end of a copy any more. A libvirtd that ends
/// leaves what takes it long: a start, memory that is being saved, a copy.
pub(super) fn nature(step: &DomainStep) -> Nature {
    let is_copy = matches!(step, DomainStep::Backup(_));
    Nature {
        of_libvirt: true,
        halved_by_agent: is_copy,
        halved_by_libvirt: is_copy || step.starts_qemu() || matches!(step, DomainStep::Save(_)),
    }
}

fn is_on_scsi(target: &str) -> bool {
    disk_target::bus(target) == DiskBus::Scsi
}

/// What a guest has of what it was started with and given since.
fn running(live: &DomainConfig) -> RunningSize {
    RunningSize {
        vcpus: live.vcpus,
        vcpus_max: live.room.vcpus,
        memory_mb: live.memory_mb,
        memory_mb_max: live.room.memory_mb,
        memory_step_mb: room::memory_step(live.memory_mb),
    }
}

/// The NICs of a definition, as libvirt names them.
fn nics(config: &DomainConfig) -> Vec<NicObserved> {
    config.nics.iter().map(observed_nic).collect()
}

fn observed_nic(nic: &DomainNic) -> NicObserved {
    NicObserved {
        alias: Some(names::nic_alias(nic.port)),
        mac_address: nic.mac_address,
        bridge: nic.bridge.clone(),
        tap: nic.tap.clone(),
        mtu: Some(nic.mtu),
        link: nic.link,
    }
}

/// The files that a definition names.
fn files(config: &DomainConfig) -> Vec<DiskFile> {
    let of = |disk: &crate::decide::domain::DomainDisk| DiskFile {
        path: disk.path.clone(),
        target: disk.target.clone(),
    };
    let drive = config.config_drive.iter().map(|path| DiskFile {
        path: path.clone(),
        target: disk_target::CONFIG_DRIVE.to_owned(),
    });
    config.disks.iter().map(of).chain(drive).collect()
}

/// What QEMU would miss.
fn can_start(config: &DomainConfig, files: &Files, networks: &Networks) -> Result<(), ActError> {
    let own = config.id.to_string();
    let is_volume = |path: &Path| !path.parent().is_some_and(|it| it.ends_with(&own));
    let found = files.observe(config.id);
    if !found.directory {
        return Err(failed(format!(
            "there is no {} to keep what the guest of {} prints",
            config.console_log.display(),
            config.id
        )));
    }
    let there = found.disks;
    let mut own = config.disks.iter().filter(|disk| !is_volume(&disk.path));
    let is_there = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(DiskName::parse)
            .is_some_and(|name| there.contains(&name))
    };
    if let Some(missing) = own.find(|disk| !is_there(&disk.path)) {
        return Err(failed(format!(
            "{} of {} is missing",
            missing.path.display(),
            config.id
        )));
    }
    let mut volumes = config.disks.iter().filter(|disk| is_volume(&disk.path));
    if let Some(disk) = volumes.find(|disk| files.volume_at(&disk.path).is_none()) {
        return Err(failed(format!("there is no {}", disk.path.display())));
    }
    let backing = config.disks.iter().flat_map(|disk| &disk.backing);
    let is_there = |path: &Path| files.images.iter().any(|it| path.ends_with(it.file_name()));
    if let Some((path, _)) = backing.into_iter().find(|(path, _)| !is_there(path)) {
        return Err(failed(format!("there is no {}", path.display())));
    }
    let bridges = networks.bridges();
    match config
        .nics
        .iter()
        .find(|nic| !bridges.contains(&nic.bridge))
    {
        Some(nic) => Err(failed(format!("there is no bridge {}", nic.bridge))),
        None => Ok(()),
    }
}

fn failed(what: String) -> ActError {
    ActError {
        what,
        code: FaultCode::Hypervisor,
        retryable: true,
        source: None,
    }
}

/// Copies a disk of a guest that is on, as it is now.
fn back_up(domain: &OwnDomain, plan: &BackupPlan, files: &mut Files) -> Result<(), ActError> {
    let id = plan.instance;
    if domain.backup.is_some() {
        return Err(failed(format!("domain {id} is being backed up already")));
    }
    let Some(live) = &domain.live else {
        return Err(failed(format!("domain {id} is off")));
    };
    let disk = live
        .disks
        .iter()
        .find(|disk| disk.path == plan.disk.path && disk.target == plan.disk.target);
    match disk.and_then(|disk| files.volume_at(&disk.path)) {
        None => Err(failed(format!(
            "domain {id} has no volume as {}",
            plan.disk.target
        ))),
        Some(volume) => files.back_up(volume, plan.snapshot),
    }
}
