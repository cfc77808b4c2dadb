//! Carries out one step on a domain. Every step looks at the domain first: one that berth did not make is left
//! alone, and what is done already is not done again.

use std::path::Path;

use berth_common::{
    ids::InstanceId,
    message::report::{FaultCode, PowerState},
    telemetry::error_chain,
    units::{ByteCount, Vcpus},
};
use virt::{
    connect::Connect,
    domain::{Domain, SchedulerInfo},
    error::Error,
    sys,
};

use super::{
    error::{abandoned, failed, is_gone},
    observe,
    orphans::{self, Asked},
};
use crate::{
    act::{ActError, pool::Ticket},
    decide::{
        domain::{DiskFile, DomainConfig, DomainObserved, DomainStep, OffReason},
        domain_xml::{self, DomainXmlError},
        names,
        orphan::{MemoryRemoval, Removal},
    },
};

/// What belongs to a definition and goes with it. Disks are not among it: they are storage's.
const UNDEFINE_ALL: sys::virDomainUndefineFlagsValues = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | sys::VIR_DOMAIN_UNDEFINE_NVRAM;

/// libvirt's name of the first SCSI controller.
const SCSI_CONTROLLER: &str = "scsi0";

/// A step as words for errors.
pub(super) fn describe(step: &DomainStep) -> String {
    match step {
        DomainStep::Define(config) => format!("defining the domain of instance {}", config.id),
        DomainStep::Start(id) => format!("starting instance {id}"),
        DomainStep::StartPaused(id) => format!("starting instance {id} paused"),
        DomainStep::Restore(id) => format!("restoring the memory of instance {id}"),
        DomainStep::DiscardSaved(id) => format!("discarding the saved memory of instance {id}"),
        DomainStep::Pause(id) => format!("pausing instance {id}"),
        DomainStep::Resume(id) => format!("resuming instance {id}"),
        DomainStep::Save(id) => format!("saving the memory of instance {id}"),
        DomainStep::Shutdown(id) => format!("asking instance {id} to power off"),
        DomainStep::Destroy(id) => format!("switching off instance {id}"),
        DomainStep::Undefine(id) => format!("undefining the domain of instance {id}"),
        DomainStep::AttachScsiController(id) => {
            format!("attaching a SCSI controller to instance {id}")
        }
        DomainStep::Attach { instance, disk } => {
            format!("attaching disk {} to instance {instance}", disk.target)
        }
        DomainStep::Detach { instance, disk } => {
            format!("detaching disk {} from instance {instance}", disk.target)
        }
        DomainStep::AttachNic { instance, nic } => {
            format!("attaching port {} to instance {instance}", nic.port)
        }
        DomainStep::DetachNic { instance, nic } => {
            format!("detaching NIC {} from instance {instance}", nic.mac_address)
        }
        DomainStep::SetLink { instance, nic, .. } => format!(
            "setting the link state of NIC {} of instance {instance}",
            nic.mac_address
        ),
        DomainStep::GrowDisk { instance, disk, .. } => {
            format!("growing disk {} of instance {instance}", disk.target)
        }
        DomainStep::SetVcpus {
            instance, vcpus, ..
        } => format!("giving instance {instance} {vcpus}"),
        DomainStep::PlugMemory { instance, with, .. } => {
            format!("giving instance {instance} {with} of memory")
        }
        DomainStep::Backup(plan) => {
            format!(
                "copying disk {} of instance {}",
                plan.disk.target, plan.instance
            )
        }
        DomainStep::AbortBackup { instance, .. } => {
            format!("ending the backup job of instance {instance}")
        }
    }
}

/// Carries out a step.
pub(super) fn apply(
    connection: &Connect,
    step: &DomainStep,
    ticket: &Ticket,
) -> Result<(), ActError> {
    let job = Job {
        connection,
        ticket,
        what: describe(step),
    };
    match step {
        DomainStep::Define(config) => job.define(config),
        DomainStep::Start(id) => job.must_act(*id, is_off, |domain| start(domain, 0)),
        // libvirt restores saved memory by itself when it starts a domain that has some.
        DomainStep::Restore(id) => job.must_act(*id, is_off, |domain| domain.create().map(drop)),
        DomainStep::StartPaused(id) => job.must_act(*id, is_off, |domain| {
            start(domain, sys::VIR_DOMAIN_START_PAUSED)
        }),
        DomainStep::DiscardSaved(id) => job
            .act(*id, is_saved, |domain| {
                domain.managed_save_remove(0).map(drop)
            })
            .map(drop),
        DomainStep::Pause(id) => job.must_act(*id, is_running, |domain| domain.suspend().map(drop)),
        DomainStep::Resume(id) => job.must_act(*id, is_paused, |domain| domain.resume().map(drop)),
        DomainStep::Save(id) => job.save(*id),
        DomainStep::Shutdown(id) => job.act(*id, is_on, ask_to_power_off).map(drop),
        DomainStep::Destroy(id) => job.act(*id, is_on, destroy).map(drop),
        DomainStep::Undefine(id) => job.undefine(*id),
        DomainStep::AttachScsiController(id) => {
            let xml = job.written(domain_xml::write_scsi_controller())?;
            let needed = |domain: &DomainObserved| is_on(domain) && !domain.disks.scsi_controller;
            job.act(*id, needed, |domain| attach_controller(domain, &xml))
                .map(drop)
        }
        DomainStep::Attach { instance, disk } => {
            let xml = job.written(domain_xml::write_disk(disk))?;
            let needed = |domain: &DomainObserved| {
                is_on(domain) && !domain.disks.live.iter().any(|it| it.path == disk.path)
            };
            job.act(*instance, needed, |domain| attach(domain, &xml, &disk.path))
                .map(drop)
        }
        DomainStep::Detach { instance, disk } => {
            let xml = job.written(domain_xml::write_disk_file(disk))?;
            let needed =
                |domain: &DomainObserved| is_on(domain) && domain.disks.live.contains(disk);
            job.act(*instance, needed, |domain| ask_to_give_back(domain, &xml))
                .map(drop)
        }
        DomainStep::AttachNic { instance, nic } => job.attach_nic(*instance, nic),
        DomainStep::DetachNic { instance, nic } => job.detach_nic(*instance, nic),
        DomainStep::SetLink {
            instance,
            nic,
            link,
        } => job.set_link(*instance, nic, *link),
        // A guest that went off meanwhile has no disks to grow: whoever planned this looks again.
        DomainStep::GrowDisk {
            instance,
            disk,
            size,
        } => job.grow(*instance, disk, *size),
        DomainStep::SetVcpus {
            instance,
            vcpus,
            cpu_shares,
        } => job.set_vcpus(*instance, *vcpus, *cpu_shares),
        DomainStep::PlugMemory {
            instance,
            before,
            with,
        } => {
            let xml = job.written(domain_xml::write_memory(*before, *with))?;
            let needed = |domain: &DomainObserved| {
                is_on(domain)
                    && domain
                        .running
                        .is_some_and(|running| running.memory_mb == *before)
            };
            job.act(*instance, needed, |domain| plug(domain, &xml))
                .map(drop)
        }
        // Jobs are waited for, and not on a thread.
        DomainStep::Backup(_) | DomainStep::AbortBackup { .. } => Err(ActError::refused(
            FaultCode::Internal,
            format!("{}: it is no single call of libvirt", job.what),
        )),
    }
}

fn is_off(domain: &DomainObserved) -> bool {
    domain.power_state == PowerState::Shutdown
}

pub(super) fn is_on(domain: &DomainObserved) -> bool {
    !is_off(domain)
}

fn is_paused(domain: &DomainObserved) -> bool {
    domain.power_state == PowerState::Paused
}

fn is_running(domain: &DomainObserved) -> bool {
    domain.power_state == PowerState::Running
}

fn is_saved(domain: &DomainObserved) -> bool {
    domain.off_reason == Some(OffReason::Saved) || domain.leftover_memory
}

/// Afresh: memory that was saved without anybody's wish is thrown away.
fn start(domain: &Domain, flags: sys::virDomainCreateFlags) -> Result<(), Error> {
    domain
        .create_with_flags(sys::VIR_DOMAIN_START_FORCE_BOOT | flags)
        .map(drop)
}

/// So that it runs when it is restored, even if it stands still now.
fn save(domain: &Domain) -> Result<(), Error> {
    domain.managed_save(sys::VIR_DOMAIN_SAVE_RUNNING).map(drop)
}

fn ask_to_power_off(domain: &Domain) -> Result<(), Error> {
    domain
        .shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        .map(drop)
}

/// A libvirtd that died while it attached the disk has left parts of it in QEMU, which keep the file locked.
fn attach(domain: &Domain, xml: &str, file: &Path) -> Result<(), Error> {
    let try_it = || {
        let result = domain.attach_device_flags(xml, sys::VIR_DOMAIN_AFFECT_LIVE);
        result.map(drop)
    };
    let Err(error) = try_it() else {
        return Ok(());
    };
    // Another call, whose caller gave up, may have attached it meanwhile.
    let is_there = |now: &DomainObserved| now.disks.live.iter().any(|it| it.path == file);
    if matches!(observe::of(domain), Ok(Some(now)) if is_there(&now)) {
        return Ok(());
    }
    match orphans::remove(domain, file) {
        Ok(Removal::Nothing) => Err(error),
        Ok(Removal::Nodes(nodes)) => {
            tracing::warn!(file = %file.display(), ?nodes, "removed what an interrupted attachment had left in QEMU");
            try_it()
        }
        Ok(Removal::AskBack(devices)) => {
            tracing::warn!(
                file = %file.display(), ?devices,
                "an interrupted attachment has left devices with the guest; it was asked to give them back"
            );
            Err(error)
        }
        Err(second) => {
            tracing::warn!(
                file = %file.display(), error = %error_chain(&second),
                "what is left of an attachment in QEMU could not be looked for"
            );
            Err(error)
        }
    }
}

/// A libvirtd that died while it attached the controller has left it in QEMU, under the name that the next one gets.
fn attach_controller(domain: &Domain, xml: &str) -> Result<(), Error> {
    let result = domain.attach_device_flags(xml, sys::VIR_DOMAIN_AFFECT_LIVE);
    let Err(error) = result else {
        return Ok(());
    };
    // Another call, whose caller gave up, may have attached it meanwhile: then it is no orphan.
    if !matches!(observe::of(domain), Ok(Some(now)) if !now.disks.scsi_controller) {
        return Err(error);
    }
    match orphans::ask_back(domain, SCSI_CONTROLLER) {
        Ok(Asked::Nobody) => {}
        Ok(Asked::TheGuest) => tracing::warn!(
            "an interrupted attachment has left a SCSI controller with the guest; it was asked to give it back"
        ),
        Err(second) => tracing::warn!(
            error = %error_chain(&second),
            "a SCSI controller that libvirt does not know could not be looked for in QEMU"
        ),
    }
    Err(error)
}

/// A libvirtd that died while it did this has left a piece of memory in QEMU that it does not know of. It has the name of the
/// one that is to be added now, so QEMU refuses that.
fn plug(domain: &Domain, xml: &str) -> Result<(), Error> {
    let try_it = || {
        let result = domain.attach_device_flags(xml, sys::VIR_DOMAIN_AFFECT_LIVE);
        result.map(drop)
    };
    let Err(error) = try_it() else {
        return Ok(());
    };
    match orphans::remove_memory(domain) {
        Ok(MemoryRemoval { unused, held }) if unused.is_empty() && held.is_empty() => Err(error),
        Ok(MemoryRemoval { unused, held }) if held.is_empty() => {
            tracing::warn!(
                ?unused,
                "removed memory that nobody uses and an interrupted resize had left in QEMU"
            );
            try_it()
        }
        Ok(MemoryRemoval { held, .. }) => {
            tracing::warn!(
                ?held,
                "an interrupted resize has left memory with the guest; it was asked to give it back"
            );
            Err(error)
        }
        Err(second) => {
            tracing::warn!(
                error = %error_chain(&second),
                "what is left of a resize in QEMU could not be looked for"
            );
            Err(error)
        }
    }
}

/// The guest answers when it likes, so being asked is all there is to do. QEMU says so of one that is asked twice.
pub(super) fn ask_to_give_back(domain: &Domain, xml: &str) -> Result<(), Error> {
    match domain.detach_device_flags(xml, sys::VIR_DOMAIN_AFFECT_LIVE) {
        Err(error) if error.message().contains("process of unplug") => Ok(()),
        result => result.map(drop),
    }
}

/// First so that QEMU may still write what it holds of the disks, then by force.
fn destroy(domain: &Domain) -> Result<(), Error> {
    match domain.destroy_flags(sys::VIR_DOMAIN_DESTROY_GRACEFUL) {
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(_) => domain.destroy_flags(0).map(drop),
    }
}

/// Whether there was a domain to act on.
pub(super) enum Outcome {
    Done,
    Missing,
}

pub(super) struct Job<'a> {
    connection: &'a Connect,
    ticket: &'a Ticket,
    pub(super) what: String,
}

impl Job<'_> {
    /// Acts on an instance's domain if that is needed. An error counts only if it is still needed afterwards: the
    /// guest, or somebody else, may have been faster.
    pub(super) fn act(
        &self,
        id: InstanceId,
        needed: impl Fn(&DomainObserved) -> bool,
        act: impl Fn(&Domain) -> Result<(), Error>,
    ) -> Result<Outcome, ActError> {
        let Some((domain, observed)) = self.find(id)? else {
            return Ok(Outcome::Missing);
        };
        if !needed(&observed) {
            return Ok(Outcome::Done);
        }
        self.still_wanted()?;
        let Err(error) = act(&domain) else {
            return Ok(Outcome::Done);
        };
        match observe::of(&domain) {
            Ok(Some(observed)) if !needed(&observed) => Ok(Outcome::Done),
            Ok(None) => Ok(Outcome::Missing),
            Ok(Some(_)) | Err(_) => Err(failed(self.what.clone(), error)),
        }
    }

    /// As [`Self::act`], where there has to be a domain.
    fn must_act(
        &self,
        id: InstanceId,
        needed: fn(&DomainObserved) -> bool,
        act: impl Fn(&Domain) -> Result<(), Error>,
    ) -> Result<(), ActError> {
        match self.act(id, needed, act)? {
            Outcome::Done => Ok(()),
            Outcome::Missing => Err(self.undefined()),
        }
    }

    /// Memory that QEMU has and libvirt does not know would be saved with the rest, and could never be restored: libvirt would
    /// start a QEMU without it. So the guest has to give it back first.
    fn save(&self, id: InstanceId) -> Result<(), ActError> {
        if let Some((domain, observed)) = self.find(id)?
            && is_on(&observed)
        {
            self.still_wanted()?;
            self.refuse_lost_memory(&domain)?;
        }
        self.must_act(id, is_on, save)
    }

    /// Where memory can be added, some may have been lost on the way.
    fn refuse_lost_memory(&self, domain: &Domain) -> Result<(), ActError> {
        let xml = domain
            .get_xml_desc(0)
            .map_err(|error| failed(self.what.clone(), error))?;
        if domain_xml::read(&xml).memory_max.is_none() {
            return Ok(());
        }
        let removal = orphans::remove_memory(domain).map_err(|error| {
            ActError::retryable(
                FaultCode::Hypervisor,
                format!(
                    "{}: whether QEMU has memory that libvirt lost could not be looked for",
                    self.what
                ),
                error,
            )
        })?;
        if removal.held.is_empty() {
            return Ok(());
        }
        Err(ActError {
            what: format!(
                "{}: an interrupted resize has left it memory that libvirt lost ({}), and what is saved with that could \
                 never be restored; the guest was asked to give it back, and if it does not, stop the instance instead",
                self.what,
                removal.held.join(", ")
            ),
            code: FaultCode::Hypervisor,
            retryable: true,
            source: None,
        })
    }

    /// By its file, which libvirt finds once it has the domain to itself: the guest may have been started anew by then,
    /// with other disks under the same names, and a disk that is larger already would shrink.
    fn grow(&self, id: InstanceId, disk: &DiskFile, size: ByteCount) -> Result<(), ActError> {
        let path = disk.path.to_str().ok_or_else(|| ActError {
            what: format!("{}: its path is no text", self.what),
            code: FaultCode::Internal,
            retryable: false,
            source: None,
        })?;
        let needed = |domain: &DomainObserved| {
            is_on(domain) && domain.disks.live.iter().any(|it| it.path == disk.path)
        };
        self.act(id, needed, |domain| {
            domain
                .block_resize(path, size.get(), sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)
                .map(drop)
        })
        .map(drop)
    }

    /// One guest that went off meanwhile starts with its definition. The weight comes first: it is not looked at, so
    /// who is interrupted in between must have to do both again. One that cannot be set keeps no processors away: the next
    /// start sets it.
    fn set_vcpus(
        &self,
        id: InstanceId,
        vcpus: Vcpus,
        cpu_shares: Option<u64>,
    ) -> Result<(), ActError> {
        let count = u32::try_from(vcpus.get()).unwrap_or(u32::MAX);
        let needed = |domain: &DomainObserved| {
            domain
                .running
                .is_some_and(|running| running.takes_vcpus(vcpus))
        };
        self.act(id, needed, |domain| {
            if cpu_shares.is_some() {
                let weight = SchedulerInfo {
                    cpu_shares,
                    ..SchedulerInfo::default()
                };
                let set =
                    domain.set_scheduler_parameters_flags(&weight, sys::VIR_DOMAIN_AFFECT_LIVE);
                if let Err(error) = set {
                    tracing::warn!(
                        instance = %id, ?cpu_shares, error = %error_chain(&error),
                        "a guest gets processors, but not the weight that goes with them; its next start sets it"
                    );
                }
            }
            domain
                .set_vcpus_flags(count, sys::VIR_DOMAIN_VCPU_LIVE)
                .map(drop)
        })
        .map(drop)
    }

    fn define(&self, config: &DomainConfig) -> Result<(), ActError> {
        let xml = self.written(domain_xml::write(config))?;
        if self.find(config.id)?.is_none() {
            self.refuse_taken_name(config)?;
        }
        self.still_wanted()?;
        Domain::define_xml_flags(self.connection, &xml, sys::VIR_DOMAIN_DEFINE_VALIDATE)
            .map(drop)
            .map_err(|error| failed(self.what.clone(), error))
    }

    /// What XML cannot say will never be said.
    pub(super) fn written(&self, xml: Result<String, DomainXmlError>) -> Result<String, ActError> {
        xml.map_err(|error| ActError {
            what: self.what.clone(),
            code: FaultCode::Hypervisor,
            retryable: false,
            source: Some(Box::new(error)),
        })
    }

    fn undefine(&self, id: InstanceId) -> Result<(), ActError> {
        let on = self.find(id)?.is_some_and(|(_, observed)| is_on(&observed));
        if on {
            // libvirt would do it, and leave a domain that runs with no definition.
            return Err(ActError {
                what: format!("{}: it is not off", self.what),
                code: FaultCode::Hypervisor,
                retryable: true,
                source: None,
            });
        }
        self.act(
            id,
            |observed| observed.persistent,
            |domain| domain.undefine_flags(UNDEFINE_ALL),
        )
        .map(drop)
    }

    /// The domain with the instance's UUID, if it is berth's.
    fn find(&self, id: InstanceId) -> Result<Option<(Domain, DomainObserved)>, ActError> {
        let Some(domain) = observe::lookup(self.connection, id)? else {
            return Ok(None);
        };
        let Some(observed) = observe::of(&domain)? else {
            return Ok(None);
        };
        if observed.metadata.is_none() {
            return Err(self.foreign(&observed.name, "has the instance's UUID"));
        }
        Ok(Some((domain, observed)))
    }

    /// libvirt's names are unique as well, and somebody else may have taken the instance's.
    fn refuse_taken_name(&self, config: &DomainConfig) -> Result<(), ActError> {
        let name = names::domain(config.id);
        match Domain::lookup_by_name(self.connection, &name) {
            Ok(_) => Err(self.foreign(&name, "has the instance's name and another UUID")),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(failed(self.what.clone(), error)),
        }
    }

    fn foreign(&self, name: &str, why: &str) -> ActError {
        ActError::refused(
            FaultCode::ForeignObject,
            format!(
                "{}: domain {name:?} {why}, but berth did not make it; it was left alone",
                self.what
            ),
        )
    }

    fn undefined(&self) -> ActError {
        ActError {
            what: format!("{}: there is no such domain", self.what),
            code: FaultCode::Hypervisor,
            retryable: true,
            source: None,
        }
    }

    fn still_wanted(&self) -> Result<(), ActError> {
        if self.ticket.is_abandoned() {
            Err(abandoned(self.what.clone()))
        } else {
            Ok(())
        }
    }
}
