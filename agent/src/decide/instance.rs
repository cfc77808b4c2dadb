//! The plan for one instance: its document × what is there → ordered steps.
//!
//! ```text
//!   no domain ──fetch, create disks──▶ (networks ready?) ──define──▶ what its power asks for: `power`
//!   tombstone: destroy, undefine, remove files ──▶ gone
//! ```
//!
//! Every pass plans from what is observed, so a crash between any two steps is just another start.

mod disks;
mod nics;
mod power;
mod size;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_common::{
    document::{
        Desired, DesiredPower, DiskBus, DiskFormat, DiskSource, ImageRef, Incarnation,
        InstanceSpec, InstanceVolume, VolumeAccess, VolumeFormat, VolumeLimits,
    },
    ids::{InstanceId, NetworkId, SnapshotId, VolumeId},
    message::report::{Fault, FaultCode, PowerState},
    names::PoolName,
    units::{ByteCount, Generation},
};

use super::{
    config_drive::{self, DriveFile, Subnets},
    disk_target,
    domain::{
        DiskError, DiskFile, DomainConfig, DomainDisk, DomainMetadata, DomainNic, DomainObserved,
        DomainStep, VirtType, cpu_shares,
    },
    image_cache::CachedName,
    metadata, names,
    pool::{FilesPlace, PoolPlace},
    room::{HostSize, Room, RoomToGrow},
    snapshot::{NewSnapshot, StoredSnapshot},
    volume::{FORMATS, LargerVolume, NewVolume, StoredVolume},
};

pub use disks::{DiskName, boot_disk, images, parse_config_drive};
pub use nics::{MAX_NICS, ports};
pub use power::ASK_AGAIN_AFTER;

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
    /// Make the directory of an instance that has no disk of its own, which would make it.
    CreateDirectory(InstanceId),
    /// Make a disk from a cached image.
    CreateDisk(DiskPlan),
    /// Make a config drive.
    CreateConfigDrive(ConfigDrivePlan),
    /// Write what the metadata service tells the guest.
    WriteMetadata(MetadataPlan),
    /// Make a disk larger that no guest has open.
    GrowDisk(LargerDisk),
    /// Remove a disk or a config drive that another one took the place of.
    RemoveOldFile(OldFile),
    /// Remove all files of an instance.
    RemoveInstance(InstanceId),
    /// Make the file of a volume.
    CreateVolume(NewVolume),
    /// Note durably that a volume was made.
    MarkVolume(VolumeId),
    /// Make a volume larger: a file that no guest has, or a block device, whose guest sees it only when it is told.
    GrowVolume(LargerVolume),
    /// Note durably that whoever has a block device that grew knows its size.
    SettleVolume(StoredVolume),
    /// Make the block device of a volume that is whole appear.
    ActivateVolume(StoredVolume),
    /// Take a volume's name and its mark away, and then its bytes as the host's rule for wiping says.
    RemoveVolume(VolumeId),
    /// Make a snapshot of a volume: a copy if no guest has it open, or in a thin pool what shares with it.
    CreateSnapshot(NewSnapshot),
    /// See that there is room for a snapshot that a hypervisor will write.
    PrepareSnapshot(NewSnapshot),
    /// Give what a hypervisor has written, whole, the snapshot's name.
    NameSnapshot(StoredSnapshot),
    /// Note durably that a snapshot was made.
    MarkSnapshot(StoredSnapshot),
    /// Remove what was to become a snapshot, whole or not.
    DiscardPartialSnapshot(StoredSnapshot),
    /// Take a snapshot's name and its mark away, and then its bytes as the host's rule for wiping says.
    RemoveSnapshot(SnapshotId),
}

/// A disk to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its instance.
    pub instance: InstanceId,
    /// Which one.
    pub name: DiskName,
    /// Where.
    pub path: PathBuf,
    /// Its virtual size.
    pub size: ByteCount,
    /// How it is stored.
    pub format: DiskFormat,
    /// The cached image below it.
    pub image: ImageRef,
}

/// A disk to make larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargerDisk {
    /// Its instance.
    pub instance: InstanceId,
    /// Which one.
    pub name: DiskName,
    /// Where.
    pub path: PathBuf,
    /// How it is stored.
    pub format: DiskFormat,
    /// Its new virtual size.
    pub size: ByteCount,
}

/// A file of an instance that nothing needs any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldFile {
    /// Its instance.
    pub instance: InstanceId,
    /// Its name in the instance's directory: that of a disk or of a config drive.
    pub name: String,
}

/// A config drive to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDrivePlan {
    /// Its instance.
    pub instance: InstanceId,
    /// Where.
    pub path: PathBuf,
    /// What is on it.
    pub files: Vec<DriveFile>,
}

/// What the metadata service shall tell a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataPlan {
    /// Its instance.
    pub instance: InstanceId,
    /// What is told, as text.
    pub content: String,
}

/// The files of an instance that are there and complete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceFiles {
    /// Whether its directory is there.
    pub directory: bool,
    /// The disks that are complete.
    pub disks: BTreeSet<DiskName>,
    /// Virtual sizes of those disks.
    pub sizes: BTreeMap<DiskName, ByteCount>,
    /// The config drives that are complete, by the root disk that each belongs to.
    pub config_drives: BTreeSet<Option<Incarnation>>,
    /// What the metadata service tells its guest.
    pub metadata: Option<String>,
}

/// What is there of an instance and of what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The domain with its UUID.
    pub domain: Option<DomainObserved>,
    /// Its files.
    pub files: InstanceFiles,
    /// Which images are in the cache.
    pub images: BTreeSet<CachedName>,
    /// Which networks are ready on this host.
    pub networks_ready: BTreeSet<NetworkId>,
    /// Of which networks of its ports this host has not been told.
    pub networks_unknown: BTreeSet<NetworkId>,
    /// The subnets of the others.
    pub subnets: Subnets,
    /// Which volumes guests may have.
    pub volumes_ready: BTreeSet<VolumeId>,
    /// Which of the volumes of this host are being copied.
    pub volumes_copied: BTreeSet<VolumeId>,
    /// How long ago the guest was asked to give back a volume: first and last time. `None`: it was not, as far as this
    /// agent knows.
    pub detach_asked: Option<Asked>,
    /// How long ago the guest was asked to give back a NIC: first and last time. `None`: it was not, as far as this agent
    /// knows.
    pub nic_asked: Option<Asked>,
    /// How long ago the guest was asked to power off for this wish: first and last time. `None`: not asked.
    pub asked: Option<Asked>,
    /// How long ago it was asked last, for whatever wish, or found marked as asked. `None`: neither, as far as this
    /// agent knows.
    pub asked_before: Option<Duration>,
    /// The disks that QEMU could not read or write, by the guest's names: of a guest that stands still for that, or did until it
    /// was let go on. Empty: nobody knows which.
    pub disk_errors: BTreeMap<String, DiskError>,
    /// How long ago a guest that stood still for its disks was let go on: first and last time. `None`: it was not, or has run since.
    pub let_go_on: Option<Asked>,
    /// For how long libvirt has been starting it, as far as this agent has seen. `None`: it was not.
    pub starting: Option<Duration>,
}

/// How long ago a guest was asked to power off, or for something it shall give back.
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
    /// How large it is.
    pub size: HostSize,
    /// Whether its guests are started with room to grow.
    pub room_to_grow: RoomToGrow,
    /// Where things are.
    pub paths: Paths,
}

/// Nothing is ever below this directory.
const NO_POOL: &str = "/nonexistent/berth-pools";

/// Where an agent keeps the files of instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// One directory per instance below this.
    pub instances: PathBuf,
    /// One file per image below this, named as [`CachedName`] says.
    pub images: PathBuf,
    /// One file per volume of the pool `local` below this.
    pub volumes: PathBuf,
    /// The other storage pools.
    pub pools: BTreeMap<PoolName, PoolPlace>,
    /// One file per snapshot of the pool `local` below this.
    pub snapshots: PathBuf,
    /// One file per instance with ports below this: what the metadata service tells its guest.
    pub metadata: PathBuf,
    /// One mark per volume that was made below this: not beside the volumes, whose disk may be absent after a boot.
    pub made: PathBuf,
}

impl Paths {
    /// The paths below an agent's state directory.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self {
            instances: state_dir.join("instances"),
            images: state_dir.join("images"),
            volumes: state_dir.join("volumes"),
            pools: BTreeMap::new(),
            snapshots: state_dir.join("snapshots"),
            metadata: state_dir.join("metadata"),
            made: state_dir.join("made"),
        }
    }

    /// The directory of an instance.
    #[must_use]
    pub fn instance(&self, id: InstanceId) -> PathBuf {
        self.instances.join(id.to_string())
    }

    /// What the metadata service tells the guest of an instance.
    #[must_use]
    pub fn metadata_file(&self, id: InstanceId) -> PathBuf {
        self.metadata.join(format!("{id}.json"))
    }

    /// A disk of an instance.
    #[must_use]
    pub fn disk(&self, id: InstanceId, name: DiskName, format: DiskFormat) -> PathBuf {
        self.instance(id).join(name.file_name(format))
    }

    /// The config drive of an instance that belongs to this root disk.
    #[must_use]
    pub fn config_drive(&self, id: InstanceId, incarnation: Option<Incarnation>) -> PathBuf {
        self.instance(id)
            .join(disks::config_drive_name(incarnation))
    }

    /// What the guest printed on its serial port.
    #[must_use]
    pub fn console_log(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("console.log")
    }

    /// A cached image.
    #[must_use]
    pub fn image(&self, image: &ImageRef) -> PathBuf {
        self.images.join(CachedName::of(image).file_name())
    }

    /// Where the pool `local` keeps volumes and snapshots.
    #[must_use]
    pub fn local(&self) -> FilesPlace {
        FilesPlace {
            volumes: self.volumes.clone(),
            snapshots: self.snapshots.clone(),
        }
    }

    /// Where a storage pool of files keeps them; `None`: it is none, or not here.
    #[must_use]
    pub fn files_of(&self, pool: &PoolName) -> Option<FilesPlace> {
        if pool.is_local() {
            return Some(self.local());
        }
        self.pools.get(pool)?.files().cloned()
    }

    /// Whether what lies in a storage pool is files: one that this host does not have holds nothing.
    #[must_use]
    pub fn holds_files(&self, pool: &PoolName) -> bool {
        pool.is_local() || self.pools.get(pool).is_some_and(|it| it.files().is_some())
    }

    /// Whether a snapshot in a storage pool shares what it holds with its volume.
    #[must_use]
    pub fn is_thin(&self, pool: &PoolName) -> bool {
        matches!(self.pools.get(pool), Some(PoolPlace::ThinDevices(_)))
    }

    /// How the snapshots of a storage pool are stored.
    #[must_use]
    pub fn snapshot_format(&self, pool: &PoolName) -> VolumeFormat {
        if self.holds_files(pool) {
            VolumeFormat::Qcow2
        } else {
            VolumeFormat::Raw
        }
    }

    /// Every pool of files, `local` first.
    fn all_files(&self) -> impl Iterator<Item = FilesPlace> {
        let others = self.pools.values().filter_map(PoolPlace::files).cloned();
        std::iter::once(self.local()).chain(others)
    }

    /// The directories of block devices of all pools.
    fn all_devices(&self) -> impl Iterator<Item = &PathBuf> {
        self.pools.values().filter_map(PoolPlace::devices)
    }

    /// What is in a pool: of files the one, and of block devices the other; of a pool that this host does not have, a place
    /// where never anything is.
    fn place(
        &self,
        pool: &PoolName,
        file: impl FnOnce(&FilesPlace) -> PathBuf,
        device: String,
    ) -> PathBuf {
        match self.pools.get(pool) {
            _ if pool.is_local() => file(&self.local()),
            Some(PoolPlace::Files(place)) => file(place),
            Some(PoolPlace::Devices(devices) | PoolPlace::ThinDevices(devices)) => {
                devices.join(device)
            }
            None => Path::new(NO_POOL).join(pool.as_str()).join(device),
        }
    }

    /// A volume of the pool `local`.
    #[must_use]
    pub fn volume_file(&self, id: VolumeId, format: VolumeFormat) -> PathBuf {
        self.local().volume(id, format)
    }

    /// A volume; of a pool that this host does not have, a place where never anything is.
    #[must_use]
    pub fn volume(&self, pool: &PoolName, id: VolumeId, format: VolumeFormat) -> PathBuf {
        let file = |place: &FilesPlace| place.volume(id, format);
        self.place(pool, file, names::logical_volume(id))
    }

    /// Everywhere a volume can be.
    #[must_use]
    pub fn volume_places(&self, id: VolumeId) -> Vec<PathBuf> {
        let files = self.all_files();
        let files = files.flat_map(|place| FORMATS.map(|format| place.volume(id, format)));
        let devices = self.all_devices();
        let devices = devices.map(|devices| devices.join(names::logical_volume(id)));
        files.chain(devices).collect()
    }

    /// The volume that lies here; `None`: none of berth's can.
    #[must_use]
    pub fn volume_at(&self, path: &Path) -> Option<VolumeId> {
        let directory = path.parent()?;
        if self.all_files().any(|place| place.volumes == directory) {
            return path.file_stem()?.to_str()?.parse().ok();
        }
        let is_pool = self.all_devices().any(|devices| devices == directory);
        is_pool.then(|| names::volume_of(path.file_name()?.to_str()?))?
    }

    /// Whether this host has a storage pool.
    #[must_use]
    pub fn has_pool(&self, pool: &PoolName) -> bool {
        pool.is_local() || self.pools.contains_key(pool)
    }

    /// Its storage pools, for people.
    #[must_use]
    pub fn pool_names(&self) -> String {
        let mut names = vec![PoolName::LOCAL];
        names.extend(self.pools.keys().map(PoolName::as_str));
        names.join(", ")
    }

    /// A snapshot of the pool `local`.
    #[must_use]
    pub fn snapshot_file(&self, id: SnapshotId) -> PathBuf {
        self.local().snapshot(id)
    }

    /// The file that a hypervisor writes a snapshot of the pool `local` into.
    #[must_use]
    pub fn partial_snapshot_file(&self, id: SnapshotId) -> PathBuf {
        self.local().partial_snapshot(id)
    }

    /// A snapshot; of a pool that this host does not have, a place where never anything is.
    #[must_use]
    pub fn snapshot(&self, pool: &PoolName, id: SnapshotId) -> PathBuf {
        let file = |place: &FilesPlace| place.snapshot(id);
        self.place(pool, file, names::logical_snapshot(id))
    }

    /// What a hypervisor writes a snapshot into.
    #[must_use]
    pub fn partial_snapshot(&self, pool: &PoolName, id: SnapshotId) -> PathBuf {
        let file = |place: &FilesPlace| place.partial_snapshot(id);
        self.place(pool, file, names::partial_snapshot(id))
    }

    /// Everywhere a hypervisor can be writing a snapshot.
    #[must_use]
    pub fn partial_snapshot_places(&self, id: SnapshotId) -> Vec<PathBuf> {
        let files = self.all_files().map(|place| place.partial_snapshot(id));
        let devices = self.all_devices();
        let devices = devices.map(|devices| devices.join(names::partial_snapshot(id)));
        files.chain(devices).collect()
    }

    /// What says which disk a storage pool of files was first used on.
    #[must_use]
    pub fn pool_record(&self, pool: &PoolName) -> PathBuf {
        self.made.join(format!("pool-{pool}"))
    }

    /// What says that a snapshot was made.
    #[must_use]
    pub fn snapshot_mark(&self, id: SnapshotId) -> PathBuf {
        self.made.join(format!("snapshot-{id}"))
    }

    /// What says that a volume was made.
    #[must_use]
    pub fn volume_mark(&self, id: VolumeId) -> PathBuf {
        self.made.join(id.to_string())
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
    /// The same, because its guest does not do its part; it may still, and is asked again.
    Stuck(Fault),
    /// Its guest stands still because of its disks, or was let go on only a moment ago: it is let go on again and again.
    Halted(Fault),
}

/// What an instance waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// A network is not ready on this host yet.
    Network(NetworkId),
    /// The guest was asked to power off.
    GuestPowersOff,
    /// libvirt is starting it.
    Starts,
    /// A volume is not there for guests yet.
    Volume(VolumeId),
    /// The guest was asked to give back these disks, by its names of them.
    Detach(BTreeSet<String>),
    /// The guest was asked to give back these NICs, by what people know them by: port and Ethernet address.
    DetachNics(BTreeSet<String>),
    /// Its volumes and ports change when its guest goes on.
    GuestGoesOn,
    /// A volume that its guest has is being copied.
    Copied(VolumeId),
}

/// What keeps the volumes or the NICs of a guest from being as they shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Something must happen first.
    Wait(Wait),
    /// The guest does not do its part.
    Stuck(Fault),
}

/// How long a guest that runs may take to give back a volume or a NIC before that is a fault.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(60);

/// Whether a guest that was asked for something has kept it for too long. One that stands still cannot hear it.
fn keeps_for_long(domain: &DomainObserved, asked: Option<Asked>) -> bool {
    domain.power_state == PowerState::Running
        && asked.is_some_and(|asked| asked.first >= GIVE_BACK_WITHIN)
}

/// A guest has kept something for too long.
fn kept_by_guest(what: &str, names: &BTreeSet<String>) -> Fault {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Fault {
        code: FaultCode::Hypervisor,
        message: format!(
            "the guest was asked to give back {what} {} and did not within {} s: it has to support PCI hot plug and to have \
             booted; powering it off takes it from the guest",
            names.join(", "),
            GIVE_BACK_WITHIN.as_secs()
        ),
    }
}

/// What is true of both, the worse of the two. Of two faults neither hides the other.
fn worse(volumes: Option<End>, nics: Option<End>) -> Option<End> {
    match (volumes, nics) {
        (Some(End::Stuck(volumes)), Some(End::Stuck(nics))) => Some(End::Stuck(Fault {
            message: format!("{}; {}", volumes.message, nics.message),
            ..volumes
        })),
        (Some(stuck @ End::Stuck(_)), _) | (_, Some(stuck @ End::Stuck(_))) => Some(stuck),
        (volumes, nics) => volumes.or(nics),
    }
}

/// The plan for an instance.
#[must_use]
pub fn plan(
    desired: &Desired<InstanceId, InstanceSpec>,
    observed: &Observed,
    host: &HostFacts,
) -> Plan {
    match &desired.spec {
        None => remove(desired.id, observed, &host.paths),
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
fn remove(id: InstanceId, observed: &Observed, paths: &Paths) -> Plan {
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
            if domain.power_state != PowerState::Shutdown
                && has_our_disks(domain, observed, paths) =>
        {
            return refused(may_use_our_disks(domain));
        }
        Some(_) | None => {}
    }
    if observed.files.directory || observed.files.metadata.is_some() {
        steps.push(Step::Storage(StorageStep::RemoveInstance(id)));
    }
    Plan {
        steps,
        then: Then::Gone,
    }
}

/// Whether a domain may be using disks of the instance's, or has a volume open.
fn has_our_disks(domain: &DomainObserved, observed: &Observed, paths: &Paths) -> bool {
    let is_volume = |file: &DiskFile| paths.volume_at(&file.path).is_some();
    !observed.files.disks.is_empty() || domain.disks.live.iter().any(is_volume)
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
    let disks = match disks::newer(spec, observed) {
        Some(fault) => Err(fault),
        None => disks::missing(id, spec, observed, host),
    };
    if let (true, Some(fault)) = (
        spec.power != DesiredPower::Stopped,
        nics::too_many(&spec.ports),
    ) {
        return refused(fault);
    }
    let config = domain_config(id, spec, host);
    let wish = power::Wish {
        config: &config,
        generation,
        spec,
        paths: &host.paths,
    };
    let (domain_steps, then) = wish.plan(observed);
    let starts = domain_steps.iter().any(DomainStep::starts_qemu);
    let is_on = observed
        .domain
        .as_ref()
        .is_some_and(|domain| !power::is_off(domain));
    let drive = missing_config_drive(id, spec, observed, host);
    // Switching off needs no disk: one that cannot be made keeps no guest on. The definition has to wait for it; that it
    // is of an older document is mark enough that the guest may have been asked.
    let told = untold_metadata(id, spec, observed);
    let lacks =
        disks.as_ref().map_or(true, |disks| !disks.is_empty()) || drive.is_some() || told.is_some();
    if is_on && spec.power == DesiredPower::Stopped && lacks {
        let off = domain_steps
            .into_iter()
            .filter(|step| !matches!(step, DomainStep::Define(_)));
        return Plan {
            steps: off.map(Step::Domain).collect(),
            then,
        };
    }
    let disks = match disks {
        Ok(disks) => disks,
        Err(fault) => return refused(fault),
    };

    // A disk is no more than what differs from its image: without that, there is nothing to make or to start.
    let mut images: Vec<&ImageRef> = disks.iter().map(|disk| &disk.image).collect();
    if starts {
        images.extend(disks::images(spec));
    }
    let mut steps = missing_images(images, observed);
    // What the guest prints is kept there too.
    if spec.disks.is_empty() && !observed.files.directory {
        steps.push(Step::Storage(StorageStep::CreateDirectory(id)));
    }
    steps.extend(
        disks
            .into_iter()
            .map(|disk| Step::Storage(StorageStep::CreateDisk(disk))),
    );
    steps.extend(drive);
    steps.extend(told);
    steps.extend(disks::small(id, spec, observed, host));
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
    // A reboot would end as an outage: what it needs comes first.
    let reboots = spec.power == DesiredPower::Running
        && domain_steps
            .iter()
            .any(|step| matches!(step, DomainStep::Shutdown(_) | DomainStep::Destroy(_)));
    let absent = volumes_of(spec)
        .map(|volume| volume.id)
        .find(|id| !observed.volumes_ready.contains(id));
    if let (true, Some(volume)) = (starts || reboots, absent) {
        return Plan {
            steps,
            then: Then::Wait(Wait::Volume(volume)),
        };
    }
    // QEMU does one such thing at a time. Whoever switches it off ends the copying.
    let saves = domain_steps
        .iter()
        .any(|step| matches!(step, DomainStep::Save(_)));
    let copied = observed
        .domain
        .as_ref()
        .and_then(|domain| volumes::copied(domain, observed, &host.paths));
    if let (true, Some(volume)) = (saves, copied) {
        return Plan {
            steps,
            then: Then::Wait(Wait::Copied(volume)),
        };
    }
    let stays = matches!(then, Then::Converged | Then::Watch(_))
        && domain_steps
            .iter()
            .all(|step| matches!(step, DomainStep::Define(_)));
    steps.extend(domain_steps.into_iter().map(Step::Domain));
    // What changes how far the guest runs comes first; the next look sees what it has then.
    let (volumes, nics) = match &observed.domain {
        Some(domain) if stays => {
            let larger = disks::small_live(id, spec, domain, observed, host);
            steps.extend(larger.into_iter().map(Step::Domain));
            (
                volumes::change(&config, domain, observed, &host.paths),
                nics::change(&config, &spec.ports, domain, observed),
            )
        }
        Some(_) | None => Default::default(),
    };
    steps.extend(volumes.steps.into_iter().map(Step::Domain));
    steps.extend(nics.steps.into_iter().map(Step::Domain));
    // Last: a guest that cannot be given more keeps nobody from its volumes.
    if let Some(domain) = observed.domain.as_ref().filter(|_| stays) {
        let more = size::more(&config, domain);
        steps.extend(more.into_iter().map(Step::Domain));
    }
    if steps.is_empty() {
        steps.extend(disks::old_files(id, spec, observed, host));
    }
    let then = match worse(volumes.end, nics.end) {
        Some(End::Stuck(fault)) => Then::Stuck(fault),
        Some(End::Wait(wait)) => Then::Wait(wait),
        None => then,
    };
    Plan { steps, then }
}

/// The config drive, if it is not there. Everything on it is in the document and in those of its networks, which it waits for, so one
/// that was lost is made anew.
fn missing_config_drive(
    id: InstanceId,
    spec: &InstanceSpec,
    observed: &Observed,
    host: &HostFacts,
) -> Option<Step> {
    let drive = spec.config_drive.as_ref()?;
    if !observed.networks_unknown.is_empty() {
        return None;
    }
    let incarnation = disks::incarnation(spec);
    (!observed.files.config_drives.contains(&incarnation)).then(|| {
        Step::Storage(StorageStep::CreateConfigDrive(ConfigDrivePlan {
            instance: id,
            path: host.paths.config_drive(id, incarnation),
            files: config_drive::files(id, spec, drive, &observed.subnets),
        }))
    })
}

/// What the metadata service shall tell the guest, if it tells something else. Only through a port can anybody ask.
fn untold_metadata(id: InstanceId, spec: &InstanceSpec, observed: &Observed) -> Option<Step> {
    if spec.ports.is_empty() {
        return None;
    }
    let content = metadata::guest_text(id, spec, &observed.subnets);
    let is_told = observed.files.metadata.as_ref() == Some(&content);
    let plan = MetadataPlan {
        instance: id,
        content,
    };
    (!is_told).then_some(Step::Storage(StorageStep::WriteMetadata(plan)))
}

/// Fetches those of the images that are not in the cache, each once.
fn missing_images(images: Vec<&ImageRef>, observed: &Observed) -> Vec<Step> {
    let mut fetched = BTreeSet::new();
    images
        .into_iter()
        .filter(|image| {
            let name = CachedName::of(image);
            !observed.images.contains(&name) && fetched.insert(name)
        })
        .map(|image| Step::Storage(StorageStep::FetchImage(image.clone())))
        .collect()
}

/// The position of the volume that an instance boots from.
const ROOT: u8 = 0;

/// The volumes that its guest shall have now, in its order: while it is rescued, none but the one it boots from otherwise.
fn volumes_of(spec: &InstanceSpec) -> impl Iterator<Item = &InstanceVolume> {
    let volumes = spec.volumes.iter();
    volumes.filter(|volume| spec.rescue.is_none() || volume.position == ROOT)
}

fn image_of(source: &DiskSource) -> &ImageRef {
    let DiskSource::Image(image) = source;
    image
}

/// The domain an instance's document describes, with generation 0 and its digest filled in.
#[must_use]
pub fn domain_config(id: InstanceId, spec: &InstanceSpec, host: &HostFacts) -> DomainConfig {
    let disks = disks::own(spec).into_iter().map(|disk| {
        let DiskFormat::Qcow2 = disk.format;
        DomainDisk {
            path: host.paths.disk(id, disk.name, disk.format),
            format: "qcow2",
            backing: vec![(
                host.paths.image(disk.image),
                disk.image.format.cached().as_str(),
            )],
            target: disk_target::name(DiskBus::Virtio, disk.position),
            serial: disk.serial,
            access: VolumeAccess::ReadWrite,
            limits: VolumeLimits::default(),
        }
    });
    let volumes = volumes_of(spec).map(|volume| DomainDisk {
        path: host.paths.volume(&volume.pool, volume.id, volume.format),
        format: volume.format.as_str(),
        backing: Vec::new(),
        // A rescue disk comes before what is rescued.
        target: disk_target::name(
            volume.disk_bus,
            volume
                .position
                .saturating_add(u8::from(spec.rescue.is_some())),
        ),
        serial: serial(volume.id),
        access: volume.access,
        limits: volume.limits,
    });
    let nics = spec.ports.iter().map(|port| DomainNic {
        port: port.id,
        mac_address: port.mac_address,
        bridge: names::bridge(port.network_id),
        tap: names::tap(port.id),
        mtu: port.mtu,
        link: port.link,
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
        room: match host.room_to_grow {
            RoomToGrow::Given => Room::of(spec.flavor, &host.arch, host.size),
            RoomToGrow::Withheld => Room::none(spec.flavor.vcpus, spec.flavor.memory_mb),
        },
        disks: disks.chain(volumes).collect(),
        nics: nics.collect(),
        config_drive: spec
            .config_drive
            .as_ref()
            .map(|_| host.paths.config_drive(id, disks::incarnation(spec))),
        console_log: host.paths.console_log(id),
        metadata: DomainMetadata {
            instance_id: id,
            generation: Generation(0),
            reboot_nonce: None,
            digest: String::new(),
            left_off: None,
        },
    };
    config.metadata.digest = config.digest();
    config
}

/// The longest serial number of a virtio disk, in bytes.
const SERIAL: usize = 20;

/// What the guest sees as a volume's serial number: the end of its id. The beginning of one of version 7 is the time, and
/// volumes that are made together would share it.
fn serial(id: VolumeId) -> String {
    let digits = id.as_uuid().simple().to_string();
    let skipped = digits.len().saturating_sub(SERIAL);
    digits.chars().skip(skipped).collect()
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;
