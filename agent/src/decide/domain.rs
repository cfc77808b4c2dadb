//! Domains as plain data: what is wanted of libvirt, and what libvirt says.

use std::{fmt, path::PathBuf, str::FromStr};

use berth_common::{
    document::{DiskBus, PortLink, VolumeAccess, VolumeFormat, VolumeLimits},
    ids::{InstanceId, Nonce, PortId, SnapshotId},
    message::report::{PowerState, RunningSize},
    names::MacAddress,
    units::{ByteCount, Generation, MemoryMb, Vcpus},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{disk_target, names, room::Room};

/// Everything that goes into a domain's XML. Built from an instance's document by
/// [`super::instance::domain_config`], written as XML by [`super::domain_xml`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainConfig {
    /// The instance; also the domain's UUID.
    pub id: InstanceId,
    /// The name its owner gave it; libvirt shows it as the title.
    pub title: String,
    /// What runs it.
    pub virt_type: VirtType,
    /// libvirt's name of the architecture (`x86_64`).
    pub arch: String,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Its weight when guests compete for the processor ([`cpu_shares`]); `None` where the host has no cpu
    /// controller, because libvirt refuses the wish there.
    pub cpu_shares: Option<u64>,
    /// Memory in MiB.
    pub memory_mb: MemoryMb,
    /// How large it may become while it is on.
    pub room: Room,
    /// Disks in the guest's order; the first boots.
    pub disks: Vec<DomainDisk>,
    /// NICs in the guest's order.
    pub nics: Vec<DomainNic>,
    /// Its config drive, a CD.
    pub config_drive: Option<PathBuf>,
    /// Where virtlogd keeps what the guest prints on its serial port.
    pub console_log: PathBuf,
    /// What berth keeps in the domain itself, so that it can be adopted without a journal.
    pub metadata: DomainMetadata,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VirtType {
    /// The processor's virtualisation.
    Kvm,
    /// QEMU's emulation.
    Qemu,
}

impl VirtType {
    /// libvirt's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// The file.
    pub path: PathBuf,
    /// Its format in libvirt's words; a stated fact, never probed.
    pub format: &'static str,
    /// The formats of the files below it, nearest first, with their paths; stated, so that libvirt never probes.
    pub backing: Vec<(PathBuf, &'static str)>,
    /// The guest's name for it (`vda`), which says on which bus it is: [`super::disk_target`].
    pub target: String,
    /// What the guest sees as its serial number, at most 20 bytes.
    pub serial: String,
    /// What the guest may do with it.
    pub access: VolumeAccess,
    /// How much of it.
    pub limits: VolumeLimits,
}

/// A NIC of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainNic {
    /// The port it is the guest's end of.
    pub port: PortId,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The bridge its tap is put into.
    pub bridge: String,
    /// The name of its tap.
    pub tap: String,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Whether the guest sees a cable in it.
    pub link: PortLink,
}

/// What berth keeps in a domain's metadata element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainMetadata {
    /// The instance.
    pub instance_id: InstanceId,
    /// The generation of the document that was carried out: written once the domain was started (or left off)
    /// for it. 0 while that is not done, and from before its guest is asked to power off.
    pub generation: Generation,
    /// The last reboot that was carried out.
    pub reboot_nonce: Option<Nonce>,
    /// [`DomainConfig::digest`] of the definition.
    pub digest: String,
    /// Why it is off by itself, as libvirt said when that was seen. Every start clears it before QEMU runs, so that the next
    /// time it is off, it says nothing.
    pub left_off: Option<LeftOff>,
}

/// A reason to be off that decides whether a domain is started again. libvirt knows it only as long as it runs: of each domain that
/// is off it says "unknown" once it was started anew, and so once the host was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeftOff {
    /// The guest powered itself off.
    Guest,
    /// QEMU or the guest crashed.
    Crashed,
}

impl LeftOff {
    /// The word that is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Crashed => "crashed",
        }
    }

    /// What of a reason has to be written down.
    #[must_use]
    pub const fn of(reason: OffReason) -> Option<Self> {
        match reason {
            OffReason::Guest => Some(Self::Guest),
            OffReason::Crashed => Some(Self::Crashed),
            OffReason::Saved
            | OffReason::Destroyed
            | OffReason::Failed
            | OffReason::Moved
            | OffReason::Unknown => None,
        }
    }

    /// Why a domain is off: what libvirt says, and if it does not know, what was noted when it did.
    #[must_use]
    pub const fn recall(said: Option<OffReason>, noted: Option<Self>) -> Option<OffReason> {
        match (said, noted) {
            (Some(OffReason::Unknown), Some(Self::Guest)) => Some(OffReason::Guest),
            (Some(OffReason::Unknown), Some(Self::Crashed)) => Some(OffReason::Crashed),
            (said, _) => said,
        }
    }
}

impl FromStr for LeftOff {
    type Err = UnknownLeftOff;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Guest, Self::Crashed]
            .into_iter()
            .find(|it| it.as_str() == text)
            .ok_or(UnknownLeftOff)
    }
}

/// It is no such word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a reason to be left off")]
pub struct UnknownLeftOff;

/// A guest's weight in proportion to its vCPUs: 1024 for each, the kernel's share of one ordinary group, up to 10,000.
/// That is the most that libvirt takes where cgroups are of version 2, and it refuses to start a guest that wants more. With
/// version 1 more could be had (262,144): all that is lost there is that guests of 10 or more vCPUs weigh the same.
#[must_use]
pub fn cpu_shares(vcpus: Vcpus) -> u64 {
    vcpus.get().saturating_mul(1024).clamp(1024, 10_000)
}

impl DomainConfig {
    /// Whether it has anything that sits behind a SCSI controller.
    #[must_use]
    pub fn needs_scsi_controller(&self) -> bool {
        let on_scsi = |disk: &DomainDisk| disk_target::bus(&disk.target) == DiskBus::Scsi;
        self.config_drive.is_some() || self.disks.iter().any(on_scsi)
    }

    /// A fingerprint of everything but generation, reboot nonce, the reason to be left off and the digest itself: equal digests mean that
    /// nothing would change by defining the domain anew. Room to grow is left out as well: it follows from the size and
    /// from the host, and a host that gets more memory is no reason to define all its domains anew. A start takes the
    /// newest definition in any case.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut bare = self.clone();
        bare.metadata.generation = Generation(0);
        bare.metadata.reboot_nonce = None;
        bare.metadata.digest.clear();
        let digest = Sha256::digest(format!("{:?}", Digested(&bare)).as_bytes());
        digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// What a digest is made of: what the derived `Debug` would say without room to grow, so that definitions of before there was
/// any have the digest that they had.
struct Digested<'a>(&'a DomainConfig);

impl fmt::Debug for Digested<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DomainConfig {
            id,
            title,
            virt_type,
            arch,
            vcpus,
            cpu_shares,
            memory_mb,
            room: _,
            disks,
            nics,
            config_drive,
            console_log,
            metadata,
        } = self.0;
        f.debug_struct("DomainConfig")
            .field("id", id)
            .field("title", title)
            .field("virt_type", virt_type)
            .field("arch", arch)
            .field("vcpus", vcpus)
            .field("cpu_shares", cpu_shares)
            .field("memory_mb", memory_mb)
            .field("disks", disks)
            .field("nics", nics)
            .field("config_drive", config_drive)
            .field("console_log", console_log)
            .field("metadata", &DigestedMetadata(metadata))
            .finish()
    }
}

/// The same for metadata: without the reason to be left off.
struct DigestedMetadata<'a>(&'a DomainMetadata);

impl fmt::Debug for DigestedMetadata<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DomainMetadata {
            instance_id,
            generation,
            reboot_nonce,
            digest,
            left_off: _,
        } = self.0;
        f.debug_struct("DomainMetadata")
            .field("instance_id", instance_id)
            .field("generation", generation)
            .field("reboot_nonce", reboot_nonce)
            .field("digest", digest)
            .finish()
    }
}

/// What libvirt says of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainObserved {
    /// libvirt's UUID of it.
    pub uuid: Uuid,
    /// libvirt's name of it.
    pub name: String,
    /// Its state.
    pub power_state: PowerState,
    /// Why it is off, if it is; also if libvirt has forgotten that and berth has not ([`LeftOff::recall`]).
    pub off_reason: Option<OffReason>,
    /// Whether memory of it is kept on disk although it is on: left over by a libvirtd that ended while it saved or
    /// restored it. Once the domain is off, that would look like memory to go on with.
    pub leftover_memory: bool,
    /// Whether libvirt is on its way with it: it starts it, or restores it from saved memory. Its guest has not run yet. A
    /// libvirtd that was started anew meanwhile may never get any further with it.
    pub is_starting: bool,
    /// Whether its guest stands still because QEMU could not read or write one of its disks.
    pub is_halted: bool,
    /// libvirt's state and reason as text, for people ("shut off: crashed").
    pub reason: String,
    /// Whether a definition is kept when it is off.
    pub persistent: bool,
    /// Virtual CPUs it is defined with.
    pub vcpus: Vcpus,
    /// Memory it is defined with, in MiB.
    pub memory_mb: MemoryMb,
    /// What its guest has just now; `None`: it is off.
    pub running: Option<RunningSize>,
    /// berth's metadata, if it carries any that is valid: without it, the domain is foreign.
    pub metadata: Option<DomainMetadata>,
    /// The files it names as disks.
    pub disks: DomainDisks,
    /// Its NICs on bridges.
    pub nics: DomainNics,
}

/// The files that a domain names as disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainDisks {
    /// Those its guest has now, or will have again when it goes on from its saved memory; else none while it is off.
    pub live: Vec<DiskFile>,
    /// Those its next start will use.
    pub kept: Vec<DiskFile>,
    /// Whether its guest has the controller that SCSI disks sit behind.
    pub scsi_controller: bool,
}

/// A file that a domain has as a disk, or below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// The file.
    pub path: PathBuf,
    /// The guest's name for the disk (`vda`).
    pub target: String,
}

/// The NICs on bridges that a domain has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainNics {
    /// Those its guest has now, or will have again when it goes on from its saved memory; else none while it is off.
    pub live: Vec<NicObserved>,
    /// Those its next start will use.
    pub kept: Vec<NicObserved>,
}

/// A NIC on a bridge, as libvirt names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicObserved {
    /// libvirt's name of it, of which a device has one while its guest is on, and one that berth gave it always.
    pub alias: Option<String>,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The bridge.
    pub bridge: String,
    /// Its tap.
    pub tap: String,
    /// Largest packet in bytes, if that is stated.
    pub mtu: Option<u16>,
    /// Whether the guest sees a cable in it.
    pub link: PortLink,
}

impl NicObserved {
    /// The port it is the guest's end of, as far as its alias tells: NICs from before berth gave them one do not say.
    #[must_use]
    pub fn port(&self) -> Option<PortId> {
        names::port_of_alias(self.alias.as_deref()?)
    }

    /// Whether berth made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.port().is_some() || names::is_tap(&self.tap)
    }
}

/// What is wrong with a disk that QEMU could not read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskError {
    /// There is no room for it where it lies.
    NoSpace,
    /// Something else.
    Other,
}

/// Why a domain is off, as far as it matters for starting it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OffReason {
    /// The guest powered itself off, or obeyed a request to.
    Guest,
    /// Its memory is kept on disk; starting it lets it go on where it was.
    Saved,
    /// It was switched off from outside.
    Destroyed,
    /// QEMU or the guest crashed.
    Crashed,
    /// It could not be started.
    Failed,
    /// It was migrated to another host, where it may be running: starting it here could ruin its disks.
    Moved,
    /// libvirt does not know: it never ran, or the host or libvirt went down.
    Unknown,
}

/// One step towards a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainStep {
    /// Define it, or define it anew; a running one keeps running and gets the new definition when it starts next.
    Define(Box<DomainConfig>),
    /// Start it afresh, whatever memory of it is kept.
    Start(InstanceId),
    /// Start it afresh with its processors standing still.
    StartPaused(InstanceId),
    /// Let a saved one go on where it was.
    Restore(InstanceId),
    /// Throw its saved memory away.
    DiscardSaved(InstanceId),
    /// Let the processors of one that is on stand still.
    Pause(InstanceId),
    /// Let a paused one go on.
    Resume(InstanceId),
    /// Save its memory on disk and switch it off.
    Save(InstanceId),
    /// Ask the guest to power off, through ACPI.
    Shutdown(InstanceId),
    /// Switch it off.
    Destroy(InstanceId),
    /// Switch off one that libvirt has been starting for too long. Nothing is lost: its guest has not run, and memory that was
    /// to be restored is still saved.
    AbandonStart(InstanceId),
    /// Forget its definition; the domain must be off.
    Undefine(InstanceId),
    /// Give a guest that is on the controller that SCSI disks sit behind.
    AttachScsiController(InstanceId),
    /// Give a guest that is on another disk; one on the bus scsi needs the controller there.
    Attach {
        /// The instance.
        instance: InstanceId,
        /// The disk.
        disk: Box<DomainDisk>,
    },
    /// Ask a guest that is on to give back a disk: it is gone only once libvirt no longer names it.
    Detach {
        /// The instance.
        instance: InstanceId,
        /// The disk.
        disk: DiskFile,
    },
    /// Give a guest that is on another NIC.
    AttachNic {
        /// The instance.
        instance: InstanceId,
        /// The NIC.
        nic: Box<DomainNic>,
    },
    /// Ask a guest that is on to give back a NIC: it is gone only once libvirt no longer names it.
    DetachNic {
        /// The instance.
        instance: InstanceId,
        /// The NIC.
        nic: NicObserved,
    },
    /// Plug the cable of a guest that is on into one of its NICs, or pull it.
    SetLink {
        /// The instance.
        instance: InstanceId,
        /// The NIC as it is.
        nic: NicObserved,
        /// How it shall be.
        link: PortLink,
    },
    /// Make a disk of a guest that is on larger, with the file it is kept in.
    GrowDisk {
        /// The instance.
        instance: InstanceId,
        /// The disk, by its file: what is `vdb` today may be another disk after the guest's next start.
        disk: DiskFile,
        /// Its new size.
        size: ByteCount,
    },
    /// Give a guest that is on more virtual CPUs.
    SetVcpus {
        /// The instance.
        instance: InstanceId,
        /// As many as it shall have.
        vcpus: Vcpus,
        /// Its weight with them; `None` where the host has no cpu controller.
        cpu_shares: Option<u64>,
    },
    /// Give a guest that is on more memory.
    PlugMemory {
        /// The instance.
        instance: InstanceId,
        /// What it must have before: two at a time would give it too much.
        before: MemoryMb,
        /// What it has with it.
        with: MemoryMb,
    },
    /// Let the hypervisor of a guest that is on copy one of its disks into a file of its own, as the disk is when this
    /// begins; done once all of it is there.
    Backup(BackupPlan),
    /// End the backup job that writes this file, if it still runs.
    AbortBackup {
        /// The instance.
        instance: InstanceId,
        /// The file.
        file: PathBuf,
    },
}

/// A disk of a guest that is on, to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPlan {
    /// The instance.
    pub instance: InstanceId,
    /// The snapshot that the copy is for.
    pub snapshot: SnapshotId,
    /// The disk: its file must still have this name when the copy has begun.
    pub disk: DiskFile,
    /// What it is copied into: a file, which is not there yet, or a block device as large as the disk.
    pub file: PathBuf,
    /// How: a qcow2 file, or the bare bytes of a block device.
    pub format: VolumeFormat,
}

impl DomainStep {
    /// Whether it makes QEMU open the domain's disks and plug in its NICs.
    #[must_use]
    pub const fn starts_qemu(&self) -> bool {
        match self {
            Self::Start(_) | Self::StartPaused(_) | Self::Restore(_) => true,
            Self::Define(_)
            | Self::DiscardSaved(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Save(_)
            | Self::Shutdown(_)
            | Self::Destroy(_)
            | Self::AbandonStart(_)
            | Self::Undefine(_)
            | Self::AttachScsiController(_)
            | Self::Attach { .. }
            | Self::Detach { .. }
            | Self::AttachNic { .. }
            | Self::DetachNic { .. }
            | Self::SetLink { .. }
            | Self::GrowDisk { .. }
            | Self::SetVcpus { .. }
            | Self::PlugMemory { .. }
            | Self::Backup(_)
            | Self::AbortBackup { .. } => false,
        }
    }

    /// Whether taps come or go with it.
    #[must_use]
    pub const fn changes_taps(&self) -> bool {
        self.starts_qemu()
            || matches!(
                self,
                Self::AttachNic { .. }
                    | Self::DetachNic { .. }
                    | Self::Destroy(_)
                    | Self::AbandonStart(_)
                    | Self::Save(_)
            )
    }

    /// Whether it writes the guest's memory to disk or reads it from there, which may take minutes.
    #[must_use]
    pub const fn moves_memory(&self) -> bool {
        matches!(self, Self::Save(_) | Self::Restore(_))
    }

    /// The instance it is about.
    #[must_use]
    pub const fn instance(&self) -> InstanceId {
        match self {
            Self::Define(config) => config.id,
            Self::Start(id)
            | Self::StartPaused(id)
            | Self::Restore(id)
            | Self::DiscardSaved(id)
            | Self::Pause(id)
            | Self::Resume(id)
            | Self::Save(id)
            | Self::Shutdown(id)
            | Self::Destroy(id)
            | Self::AbandonStart(id)
            | Self::Undefine(id)
            | Self::AttachScsiController(id) => *id,
            Self::Attach { instance, .. }
            | Self::Detach { instance, .. }
            | Self::AttachNic { instance, .. }
            | Self::DetachNic { instance, .. }
            | Self::SetLink { instance, .. }
            | Self::GrowDisk { instance, .. }
            | Self::SetVcpus { instance, .. }
            | Self::PlugMemory { instance, .. }
            | Self::AbortBackup { instance, .. } => *instance,
            Self::Backup(plan) => plan.instance,
        }
    }
}

/// How far a long operation of libvirt on a domain is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobProgress {
    /// Done.
    pub done: u64,
    /// Of so many; a guest that writes meanwhile makes it more.
    pub total: u64,
}

impl JobProgress {
    /// `40 %`; `None`: nobody knows yet.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let done = u128::from(self.done.min(self.total));
        (done * 100)
            .checked_div(u128::from(self.total))
            .and_then(|percent| u64::try_from(percent).ok())
    }
}
