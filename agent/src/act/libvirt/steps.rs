//! Carries out one step on a domain. Every step looks at the domain first: one that berth did not make is left
//! alone, and what is done already is not done again.

use std::path::Path;

use berth_common::{
    ids::InstanceId,
    message::report::{FaultCode, PowerState},
    telemetry::error_chain,
    units::{ByteCount, Vcpus},
};

use super::{
    error::{abandoned, failed, is_gone},
    observe,
    orphans::{self, Asked},
    rpc::{Connection, Domain, Error, TypedParam, TypedValue, constants},
};
use crate::{
    act::{ActError, calls::Ticket},
    decide::{
        domain::{DiskFile, DomainConfig, DomainObserved, DomainStep, OffReason},
        domain_xml::{self, DomainXmlError},
        names,
        orphan::{MemoryRemoval, Removal},
    },
};

/// What belongs to a definition and goes with it. Disks are not among it: they are storage's.
const UNDEFINE_ALL: u32 = constants::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | constants::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | constants::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | constants::VIR_DOMAIN_UNDEFINE_NVRAM;

/// libvirt's name of the first SCSI controller.
const SCSI_CONTROLLER: &str = "scsi0";
/// How a guest is started: memory that was saved without anybody's wish is thrown away.
const AFRESH: u32 = constants::VIR_DOMAIN_START_FORCE_BOOT;

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
        DomainStep::AbandonStart(id) => {
            format!("switching off instance {id}, which does not start")
        }
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
pub(super) async fn apply(
    connection: &Connection,
    step: &DomainStep,
    ticket: &Ticket,
) -> Result<(), ActError> {
    let job = Job {
        connection,
        ticket,
        what: describe(step),
    };
    match step {
        DomainStep::Define(config) => job.define(config).await,
        DomainStep::Start(id) => {
            let start = async |domain: Domain| domain.create_with_flags(AFRESH).await;
            job.must_act(*id, is_off, start).await
        }
        // libvirt restores saved memory by itself when it starts a domain that has some.
        DomainStep::Restore(id) => {
            let start = async |domain: Domain| domain.create_with_flags(0).await;
            job.must_act(*id, is_off, start).await
        }
        DomainStep::StartPaused(id) => {
            let flags = AFRESH | constants::VIR_DOMAIN_START_PAUSED;
            let start = async move |domain: Domain| domain.create_with_flags(flags).await;
            job.must_act(*id, is_off, start).await
        }
        DomainStep::DiscardSaved(id) => {
            let discard = async |domain: Domain| domain.managed_save_remove().await;
            job.act(*id, is_saved, discard).await.map(drop)
        }
        DomainStep::Pause(id) => {
            let pause = async |domain: Domain| domain.suspend().await;
            job.must_act(*id, is_running, pause).await
        }
        DomainStep::Resume(id) => {
            let resume = async |domain: Domain| domain.resume().await;
            job.must_act(*id, is_paused, resume).await
        }
        DomainStep::Save(id) => job.save(*id).await,
        DomainStep::Shutdown(id) => {
            let flags = constants::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN;
            let ask = async move |domain: Domain| domain.shutdown_flags(flags).await;
            job.act(*id, is_on, ask).await.map(drop)
        }
        DomainStep::Destroy(id) => job.act(*id, is_on, destroy).await.map(drop),
        DomainStep::AbandonStart(id) => {
            let is_starting = |domain: &DomainObserved| domain.is_starting;
            // QEMU has written nothing yet.
            let end = async |domain: Domain| domain.destroy_flags(0).await;
            job.act(*id, is_starting, end).await.map(drop)
        }
        DomainStep::Undefine(id) => job.undefine(*id).await,
        DomainStep::AttachScsiController(id) => {
            let xml = job.written(domain_xml::write_scsi_controller())?;
            let needed = |domain: &DomainObserved| is_on(domain) && !domain.disks.scsi_controller;
            let attach = async |domain: Domain| attach_controller(&domain, &xml).await;
            job.act(*id, needed, attach).await.map(drop)
        }
        DomainStep::Attach { instance, disk } => {
            let xml = job.written(domain_xml::write_disk(disk))?;
            let needed = |domain: &DomainObserved| {
                is_on(domain) && !domain.disks.live.iter().any(|it| it.path == disk.path)
            };
            let attach = async |domain: Domain| attach(&domain, &xml, &disk.path).await;
            job.act(*instance, needed, attach).await.map(drop)
        }
        DomainStep::Detach { instance, disk } => {
            let xml = job.written(domain_xml::write_disk_file(disk))?;
            let needed =
                |domain: &DomainObserved| is_on(domain) && domain.disks.live.contains(disk);
            let ask = async |domain: Domain| ask_to_give_back(&domain, &xml).await;
            job.act(*instance, needed, ask).await.map(drop)
        }
        DomainStep::AttachNic { instance, nic } => job.attach_nic(*instance, nic).await,
        DomainStep::DetachNic { instance, nic } => job.detach_nic(*instance, nic).await,
        DomainStep::SetLink {
            instance,
            nic,
            link,
        } => job.set_link(*instance, nic, *link).await,
        // A guest that went off meanwhile has no disks to grow: whoever planned this looks again.
        DomainStep::GrowDisk {
            instance,
            disk,
            size,
        } => job.grow(*instance, disk, *size).await,
        DomainStep::SetVcpus {
            instance,
            vcpus,
            cpu_shares,
        } => job.set_vcpus(*instance, *vcpus, *cpu_shares).await,
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
            let plug = async |domain: Domain| plug(&domain, &xml).await;
            job.act(*instance, needed, plug).await.map(drop)
        }
        // Jobs are waited for, and not by a call.
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

/// So that it runs when it is restored, even if it stands still now.
async fn save(domain: Domain) -> Result<(), Error> {
    domain
        .managed_save(constants::VIR_DOMAIN_SAVE_RUNNING)
        .await
}

/// Gives a guest that is on a device, once.
pub(super) async fn attach_live(domain: &Domain, xml: &str) -> Result<(), Error> {
    let flags = constants::VIR_DOMAIN_AFFECT_LIVE;
    domain.attach_device_flags(xml, flags).await
}

/// A libvirtd that died while it attached the disk has left parts of it in QEMU, which keep the file locked.
async fn attach(domain: &Domain, xml: &str, file: &Path) -> Result<(), Error> {
    let Err(error) = attach_live(domain, xml).await else {
        return Ok(());
    };
    // Another call, whose caller gave up, may have attached it meanwhile.
    let is_there = |now: &DomainObserved| now.disks.live.iter().any(|it| it.path == file);
    if matches!(observe::of(domain).await, Ok(Some(now)) if is_there(&now)) {
        return Ok(());
    }
    match orphans::remove(domain, file).await {
        Ok(Removal::Nothing) => Err(error),
        Ok(Removal::Nodes(nodes)) => {
            tracing::warn!(file = %file.display(), ?nodes, "removed what an interrupted attachment had left in QEMU");
            attach_live(domain, xml).await
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
async fn attach_controller(domain: &Domain, xml: &str) -> Result<(), Error> {
    let Err(error) = attach_live(domain, xml).await else {
        return Ok(());
    };
    // Another call, whose caller gave up, may have attached it meanwhile: then it is no orphan.
    if !matches!(observe::of(domain).await, Ok(Some(now)) if !now.disks.scsi_controller) {
        return Err(error);
    }
    match orphans::ask_back(domain, SCSI_CONTROLLER).await {
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
async fn plug(domain: &Domain, xml: &str) -> Result<(), Error> {
    let Err(error) = attach_live(domain, xml).await else {
        return Ok(());
    };
    match orphans::remove_memory(domain).await {
        Ok(MemoryRemoval { unused, held }) if unused.is_empty() && held.is_empty() => Err(error),
        Ok(MemoryRemoval { unused, held }) if held.is_empty() => {
            tracing::warn!(
                ?unused,
                "removed memory that nobody uses and an interrupted resize had left in QEMU"
            );
            attach_live(domain, xml).await
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
pub(super) async fn ask_to_give_back(domain: &Domain, xml: &str) -> Result<(), Error> {
    let flags = constants::VIR_DOMAIN_AFFECT_LIVE;
    match domain.detach_device_flags(xml, flags).await {
        Err(error) if error.message().contains("process of unplug") => Ok(()),
        result => result,
    }
}

/// First so that QEMU may still write what it holds of the disks, then by force.
async fn destroy(domain: Domain) -> Result<(), Error> {
    let graceful = constants::VIR_DOMAIN_DESTROY_GRACEFUL;
    match domain.destroy_flags(graceful).await {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(_) => domain.destroy_flags(0).await,
    }
}

/// Whether there was a domain to act on.
pub(super) enum Outcome {
    Done,
    Missing,
}

pub(super) struct Job<'a> {
    connection: &'a Connection,
    ticket: &'a Ticket,
    pub(super) what: String,
}

impl Job<'_> {
    /// Acts on an instance's domain if that is needed. An error counts only if it is still needed afterwards: the
    /// guest, or somebody else, may have been faster.
    pub(super) async fn act<F: Future<Output = Result<(), Error>>>(
        &self,
        id: InstanceId,
        needed: impl Fn(&DomainObserved) -> bool,
        act: impl FnOnce(Domain) -> F,
    ) -> Result<Outcome, ActError> {
        let Some((domain, observed)) = self.find(id).await? else {
            return Ok(Outcome::Missing);
        };
        if !needed(&observed) {
            return Ok(Outcome::Done);
        }
        self.still_wanted()?;
        let Err(error) = act(domain.clone()).await else {
            return Ok(Outcome::Done);
        };
        match observe::of(&domain).await {
            Ok(Some(observed)) if !needed(&observed) => Ok(Outcome::Done),
            Ok(None) => Ok(Outcome::Missing),
            Ok(Some(_)) | Err(_) => Err(failed(self.what.clone(), error)),
        }
    }

    /// As [`Self::act`], where there has to be a domain.
    async fn must_act<F: Future<Output = Result<(), Error>>>(
        &self,
        id: InstanceId,
        needed: fn(&DomainObserved) -> bool,
        act: impl FnOnce(Domain) -> F,
    ) -> Result<(), ActError> {
        match self.act(id, needed, act).await? {
            Outcome::Done => Ok(()),
            Outcome::Missing => Err(self.undefined()),
        }
    }

    /// Memory that QEMU has and libvirt does not know would be saved with the rest, and could never be restored: libvirt would
    /// start a QEMU without it. So the guest has to give it back first.
    async fn save(&self, id: InstanceId) -> Result<(), ActError> {
        if let Some((domain, observed)) = self.find(id).await?
            && is_on(&observed)
        {
            self.still_wanted()?;
            self.refuse_lost_memory(&domain).await?;
        }
        self.must_act(id, is_on, save).await
    }

    /// Where memory can be added, some may have been lost on the way.
    async fn refuse_lost_memory(&self, domain: &Domain) -> Result<(), ActError> {
        let xml = domain
            .get_xml_desc(0)
            .await
            .map_err(|error| failed(self.what.clone(), error))?;
        if domain_xml::read(&xml).memory_max.is_none() {
            return Ok(());
        }
        let removal = orphans::remove_memory(domain).await.map_err(|error| {
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
    async fn grow(&self, id: InstanceId, disk: &DiskFile, size: ByteCount) -> Result<(), ActError> {
        let path = disk.path.to_str().ok_or_else(|| ActError {
            what: format!("{}: its path is no text", self.what),
            code: FaultCode::Internal,
            retryable: false,
            source: None,
        })?;
        let needed = |domain: &DomainObserved| {
            is_on(domain) && domain.disks.live.iter().any(|it| it.path == disk.path)
        };
        let flags = constants::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
        let resize = async |domain: Domain| domain.block_resize(path, size.get(), flags).await;
        self.act(id, needed, resize).await.map(drop)
    }

    /// One guest that went off meanwhile starts with its definition. The weight comes first: it is not looked at, so
    /// who is interrupted in between must have to do both again. One that cannot be set keeps no processors away: the next
    /// start sets it.
    async fn set_vcpus(
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
        let set = async |domain: Domain| {
            if let Some(shares) = cpu_shares {
                let weight = TypedParam {
                    field: constants::VIR_DOMAIN_SCHEDULER_CPU_SHARES.to_owned(),
                    value: TypedValue::Ullong(shares),
                };
                let live = constants::VIR_DOMAIN_AFFECT_LIVE;
                let set = domain.set_scheduler_parameters_flags(vec![weight], live);
                if let Err(error) = set.await {
                    tracing::warn!(
                        instance = %id, ?cpu_shares, error = %error_chain(&error),
                        "a guest gets processors, but not the weight that goes with them; its next start sets it"
                    );
                }
            }
            let live = constants::VIR_DOMAIN_VCPU_LIVE;
            domain.set_vcpus_flags(count, live).await
        };
        self.act(id, needed, set).await.map(drop)
    }

    async fn define(&self, config: &DomainConfig) -> Result<(), ActError> {
        let xml = self.written(domain_xml::write(config))?;
        if self.find(config.id).await?.is_none() {
            self.refuse_taken_name(config).await?;
        }
        self.still_wanted()?;
        let flags = constants::VIR_DOMAIN_DEFINE_VALIDATE;
        let defined = self.connection.define_xml_flags(&xml, flags).await;
        defined
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

    async fn undefine(&self, id: InstanceId) -> Result<(), ActError> {
        let found = self.find(id).await?;
        let on = found.is_some_and(|(_, observed)| is_on(&observed));
        if on {
            // libvirt would do it, and leave a domain that runs with no definition.
            return Err(ActError {
                what: format!("{}: it is not off", self.what),
                code: FaultCode::Hypervisor,
                retryable: true,
                source: None,
            });
        }
        let needed = |observed: &DomainObserved| observed.persistent;
        let undefine = async |domain: Domain| domain.undefine_flags(UNDEFINE_ALL).await;
        self.act(id, needed, undefine).await.map(drop)
    }

    /// The domain with the instance's UUID, if it is berth's.
    async fn find(&self, id: InstanceId) -> Result<Option<(Domain, DomainObserved)>, ActError> {
        let Some(domain) = observe::lookup(self.connection, id).await? else {
            return Ok(None);
        };
        let Some(observed) = observe::of(&domain).await? else {
            return Ok(None);
        };
        if observed.metadata.is_none() {
            return Err(self.foreign(&observed.name, "has the instance's UUID"));
        }
        Ok(Some((domain, observed)))
    }

    /// libvirt's names are unique as well, and somebody else may have taken the instance's.
    async fn refuse_taken_name(&self, config: &DomainConfig) -> Result<(), ActError> {
        let name = names::domain(config.id);
        match self.connection.lookup_by_name(&name).await {
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
