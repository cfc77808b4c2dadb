//! The plan for one volume: its document × what is there → ordered steps.
//!
//! ```text
//!   nothing ──fetch image──▶ ──make the file──▶ file ──mark──▶ file and mark: made ──grow──▶ larger
//!      ▲                                                         │
//!      └──── remove: only once no domain of the host names it ───┘
//! ```
//!
//! A file that has a volume's name is complete. Its mark, kept elsewhere, says that the volume was made once: what is marked
//! and has no file was lost, and is never made anew, because that would look like success and be a loss of data. So
//! a volume counts as made only with both, and only a tombstone takes the mark away, once the file has lost its name.
//!
//! A volume of a pool of logical volumes is a block device. It grows in three steps, of which the device itself says how far
//! they are: it is larger, its new part holds zeros, whoever has it knows. So the new part is never shown with what somebody
//! else once had there, and never overwritten once a guest has it.
//!
//! Who uses a volume is not in its document: it is read from the domains of the host, berth's and others, running
//! and only defined. [`asks_for_users`] says when that must be known.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use berth_common::{
    document::{Desired, ImageRef, SnapshotRef, VolumeFormat, VolumeRef, VolumeSource, VolumeSpec},
    ids::{InstanceId, SnapshotId, VolumeId},
    message::report::{Fault, FaultCode},
    names::PoolName,
    units::ByteCount,
};

use super::{
    domain::{DiskFile, DomainObserved, DomainStep, OffReason},
    image_cache::CachedName,
    instance::{Paths, Step, StorageStep},
};

/// Every way a volume can be stored.
pub const FORMATS: [VolumeFormat; 2] = [VolumeFormat::Qcow2, VolumeFormat::Raw];

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// The volume.
    pub id: VolumeId,
    /// The storage pool.
    pub pool: PoolName,
    /// Where.
    pub path: PathBuf,
    /// How it is stored.
    pub format: VolumeFormat,
    /// Its virtual size.
    pub size: ByteCount,
    /// What is on it at first.
    pub content: Content,
}

/// What is on a volume at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Zeros,
    /// What a cached image holds.
    Image(ImageRef),
    /// What another volume holds that nobody uses.
    Volume(VolumeRef),
    /// What a snapshot holds.
    Snapshot(SnapshotRef),
}

/// A volume to make larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargerVolume {
    /// The volume.
    pub id: VolumeId,
    /// The storage pool.
    pub pool: PoolName,
    /// Where it is.
    pub path: PathBuf,
    /// How it is stored.
    pub format: VolumeFormat,
    /// Its new virtual size.
    pub size: ByteCount,
}

/// A volume in a pool of block devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVolume {
    /// The volume.
    pub id: VolumeId,
    /// The storage pool.
    pub pool: PoolName,
}

/// What is there of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeFiles {
    /// The files and block devices that have its name, at most one of a format in a pool; more than one is nothing berth ever makes.
    pub files: Vec<VolumeFile>,
    /// Whether it was made once, and its tombstone was not carried out.
    pub made: bool,
    /// Whether a file of it is on its way out: it has lost its name, and its bytes are being wiped.
    pub leaving: bool,
    /// Whether a block device is there that was to become it: nobody's, unless somebody is at it.
    pub partial: bool,
}

impl VolumeFiles {
    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.made && !self.leaving && !self.partial
    }

    /// Its size, if it is whole and stored so and in no other way.
    #[must_use]
    pub fn whole(&self, pool: &PoolName, format: VolumeFormat) -> Option<ByteCount> {
        match self.files.as_slice() {
            [file] if file.format == format && file.pool == *pool && self.made && !self.leaving => {
                match &file.content {
                    VolumeContent::Size(size) | VolumeContent::Grown(size) => Some(*size),
                    VolumeContent::Growing(_)
                    | VolumeContent::Inactive
                    | VolumeContent::Unreadable(_) => None,
                }
            }
            _ => None,
        }
    }
}

/// A file or block device that has a volume's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// The storage pool it is in.
    pub pool: PoolName,
    /// How it is stored, as its name says.
    pub format: VolumeFormat,
    /// What it holds.
    pub content: VolumeContent,
}

/// What a volume's file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeContent {
    /// A disk of this virtual size.
    Size(ByteCount),
    /// A block device that was made larger: beyond this size there may be what somebody else once had.
    Growing(ByteCount),
    /// A block device of this size that grew: a guest that has it may not know.
    Grown(ByteCount),
    /// A block device that is whole, and not there until it is activated, as after a boot of the host.
    Inactive,
    /// No disk of its format, for this reason.
    Unreadable(String),
}

/// What is there of a volume and of what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeObserved {
    /// Its own files.
    pub files: VolumeFiles,
    /// Which images are in the cache.
    pub images: BTreeSet<CachedName>,
    /// What is there of the volume it is made from; nothing if it is made from none.
    pub source: VolumeFiles,
    /// Of the snapshot it is made from: its size, if it is whole.
    pub snapshot: Option<ByteCount>,
    /// Whether another volume or a snapshot is being made from it.
    pub copied: bool,
    /// Who uses it. Looked at only if [`asks_for_users`] says so.
    pub users: Vec<VolumeUser>,
    /// Who uses the volume it is made from. Looked at only if [`asks_for_users`] says so.
    pub source_users: Vec<VolumeUser>,
}

/// A domain that names a volume's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUser {
    /// libvirt's name of it.
    pub domain: String,
    /// The instance, if berth made it.
    pub instance: Option<InstanceId>,
    /// How far it uses it.
    pub hold: Hold,
}

/// How far a domain uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// Its guest is on and has it, as this disk.
    Live {
        /// The guest's name for it (`vdb`).
        target: String,
    },
    /// Its guest has it and is saved on disk: it goes on with the volume as it was.
    Saved,
    /// Only its kept definition names it: its next start will use it.
    Kept,
}

/// What to do, and where that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// The steps, in order; each depends on those before it.
    pub steps: Vec<Step>,
    /// What is true once they are done.
    pub then: VolumeThen,
    /// Whether guests may have it, now and while the steps are carried out.
    pub usable: Usable,
}

/// Whether guests may have a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usable {
    /// It is whole.
    Yes,
    /// It is not there, is being changed, or shall not be.
    No,
}

/// What is true once a plan's steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeThen {
    /// The volume is as its document says.
    Converged,
    /// Nothing of it is left.
    Gone,
    /// Something else must happen first.
    Wait(VolumeWait),
    /// It cannot be made so.
    Refused(Fault),
}

/// What a volume waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeWait {
    /// Domains that name its file, by libvirt's names of them.
    Users(BTreeSet<String>),
    /// The volume it is made from is not made yet.
    Source(VolumeId),
    /// The snapshot it is made from is not made yet.
    Snapshot(SnapshotId),
    /// Another volume or a snapshot is being made from it.
    Copied,
}

/// The domains that name one of these files, each once.
#[must_use]
pub fn users(paths: &[PathBuf], domains: &[DomainObserved]) -> Vec<VolumeUser> {
    let names = |path: &Path| paths.iter().any(|it| it == path);
    let user = |domain: &DomainObserved| {
        let find = |disks: &[super::domain::DiskFile]| {
            disks
                .iter()
                .find(|disk| names(&disk.path))
                .map(|disk| disk.target.clone())
        };
        let live = find(&domain.disks.live).map(|target| match domain.off_reason {
            Some(OffReason::Saved) => Hold::Saved,
            _ => Hold::Live { target },
        });
        let hold = live.or_else(|| find(&domain.disks.kept).map(|_| Hold::Kept))?;
        Some(VolumeUser {
            domain: domain.name.clone(),
            instance: domain.metadata.as_ref().map(|it| it.instance_id),
            hold,
        })
    };
    domains.iter().filter_map(user).collect()
}

/// Whether [`plan`] has to know who uses the volume, and the one it is made from: looking at all domains is dear.
#[must_use]
pub fn asks_for_users(desired: &Desired<VolumeId, VolumeSpec>, files: &VolumeFiles) -> bool {
    match &desired.spec {
        None => !files.files.is_empty(),
        Some(spec) => match files.files.as_slice() {
            [] => matches!(spec.source, Some(VolumeSource::Volume(_))),
            [file] => match &file.content {
                VolumeContent::Size(size) => *size < ByteCount::from_gb(spec.size_gb),
                VolumeContent::Growing(_) | VolumeContent::Grown(_) => true,
                VolumeContent::Inactive | VolumeContent::Unreadable(_) => false,
            },
            _ => false,
        },
    }
}

/// The plan for a volume.
#[must_use]
pub fn plan(
    desired: &Desired<VolumeId, VolumeSpec>,
    observed: &VolumeObserved,
    paths: &Paths,
) -> VolumePlan {
    let Some(spec) = &desired.spec else {
        return remove(desired.id, observed);
    };
    let Planned { steps, then } =
        converge(desired.id, spec, observed, paths).unwrap_or_else(|fault| Planned {
            steps: Vec::new(),
            then: VolumeThen::Refused(fault),
        });
    let touches = |step: &Step| match step {
        // It only notes what is.
        Step::Storage(StorageStep::SettleVolume(_)) | Step::Domain(_) => false,
        Step::Storage(_) => true,
    };
    let is_touched = steps.iter().any(touches);
    let usable = match observed.files.whole(&spec.pool, spec.format) {
        Some(_) if !is_touched => Usable::Yes,
        Some(_) | None => Usable::No,
    };
    VolumePlan {
        steps,
        then,
        usable,
    }
}

/// Steps, and where they lead.
struct Planned {
    steps: Vec<Step>,
    then: VolumeThen,
}

impl Planned {
    fn converged(steps: Vec<Step>) -> Self {
        Self {
            steps,
            then: VolumeThen::Converged,
        }
    }

    fn wait(wait: VolumeWait) -> Self {
        Self {
            steps: Vec::new(),
            then: VolumeThen::Wait(wait),
        }
    }
}

/// A guest must not lose its disk from under it, nor the next start of one that is off. What has lost its name is
/// nobody's any more.
fn remove(id: VolumeId, observed: &VolumeObserved) -> VolumePlan {
    let named = !observed.files.files.is_empty();
    let (steps, then) = match () {
        () if observed.files.is_empty() => (Vec::new(), VolumeThen::Gone),
        () if observed.copied => (Vec::new(), VolumeThen::Wait(VolumeWait::Copied)),
        () if named && !observed.users.is_empty() => {
            (Vec::new(), VolumeThen::Wait(wait_for(&observed.users)))
        }
        () => (
            vec![Step::Storage(StorageStep::RemoveVolume(id))],
            VolumeThen::Gone,
        ),
    };
    VolumePlan {
        steps,
        then,
        usable: Usable::No,
    }
}

fn converge(
    id: VolumeId,
    spec: &VolumeSpec,
    observed: &VolumeObserved,
    paths: &Paths,
) -> Result<Planned, Fault> {
    if !paths.has_pool(&spec.pool) {
        return Err(fault(format!(
            "volume {id} is in the storage pool {}, which this host does not have; it has {}: configure it \
             ([storage.pools.{}]) and start the agent again",
            spec.pool,
            paths.pool_names(),
            spec.pool
        )));
    }
    let is_file = paths.holds_files(&spec.pool);
    if !is_file && spec.format != VolumeFormat::Raw {
        return Err(fault(format!(
            "volume {id} shall be stored as {} in the storage pool {}, which is of block devices on this host: those hold \
             raw volumes only; a pool of files (type = \"dir\") holds both",
            spec.format.as_str(),
            spec.pool
        )));
    }
    let path = paths.volume(&spec.pool, id, spec.format);
    let size = ByteCount::from_gb(spec.size_gb);
    if observed.files.leaving {
        return Err(fault(format!(
            "volume {id} was deleted and its bytes are being wiped (pool {}); it is not made anew",
            spec.pool
        )));
    }
    if let Some(other) = observed
        .files
        .files
        .iter()
        .find(|file| file.format != spec.format)
    {
        return Err(fault(format!(
            "volume {id} is stored as {} on this host ({}), and its document says {}; it was left alone",
            other.format.as_str(),
            paths.volume(&other.pool, id, other.format).display(),
            spec.format.as_str()
        )));
    }
    let content = observed.files.files.first().map(|file| &file.content);
    let found = match content {
        None if observed.files.made => {
            return Err(fault(format!(
                "volume {id} was made on this host and its file is missing ({}); it is not made anew, because its data \
                 would be zeros: bring the file back, or delete the volume",
                path.display()
            )));
        }
        None => return make(id, spec, observed, path, size),
        Some(VolumeContent::Unreadable(why)) => {
            return Err(fault(format!(
                "the file of volume {id} ({}) is no {} volume of berth's: {why}",
                path.display(),
                spec.format.as_str()
            )));
        }
        // First of all, and also if it cannot have its size: it is there.
        Some(_) if !observed.files.made => {
            let mark = Step::Storage(StorageStep::MarkVolume(id));
            return Ok(Planned::converged(vec![mark]));
        }
        Some(VolumeContent::Inactive) => {
            let activate = StorageStep::ActivateVolume(stored(id, spec));
            return Ok(Planned::converged(vec![Step::Storage(activate)]));
        }
        Some(
            VolumeContent::Size(found)
            | VolumeContent::Grown(found)
            | VolumeContent::Growing(found),
        ) => *found,
    };
    let larger = LargerVolume {
        id,
        pool: spec.pool.clone(),
        path,
        format: spec.format,
        size,
    };
    match (found.cmp(&size), content) {
        (std::cmp::Ordering::Greater, _) => Err(shrinks(id, found, size)),
        (std::cmp::Ordering::Less, _) | (_, Some(VolumeContent::Growing(_))) => Ok(if is_file {
            grow_file(larger, observed)
        } else {
            grow_device(larger, observed)
        }),
        (std::cmp::Ordering::Equal, Some(VolumeContent::Grown(_))) => Ok(tell(larger, observed)),
        (std::cmp::Ordering::Equal, _) => Ok(Planned::converged(Vec::new())),
    }
}

fn stored(id: VolumeId, spec: &VolumeSpec) -> StoredVolume {
    StoredVolume {
        id,
        pool: spec.pool.clone(),
    }
}

fn make(
    id: VolumeId,
    spec: &VolumeSpec,
    observed: &VolumeObserved,
    path: PathBuf,
    size: ByteCount,
) -> Result<Planned, Fault> {
    let mut steps = Vec::new();
    let content = match &spec.source {
        None => Content::Zeros,
        Some(VolumeSource::Image(image)) => {
            if !observed.images.contains(&CachedName::of(image)) {
                steps.push(Step::Storage(StorageStep::FetchImage(image.clone())));
            }
            Content::Image(image.clone())
        }
        Some(VolumeSource::Volume(source)) => {
            let Some(found) = observed.source.whole(&source.pool, source.format) else {
                return Ok(Planned::wait(VolumeWait::Source(source.id)));
            };
            may_be_copied(source.id, &observed.source_users)?;
            check_size(id, size, found, &format!("volume {}", source.id))?;
            Content::Volume(source.clone())
        }
        Some(VolumeSource::Snapshot(source)) => {
            let Some(found) = observed.snapshot else {
                return Ok(Planned::wait(VolumeWait::Snapshot(source.id)));
            };
            check_size(id, size, found, &format!("snapshot {}", source.id))?;
            Content::Snapshot(source.clone())
        }
    };
    steps.push(Step::Storage(StorageStep::CreateVolume(NewVolume {
        id,
        pool: spec.pool.clone(),
        path,
        format: spec.format,
        size,
        content,
    })));
    steps.push(Step::Storage(StorageStep::MarkVolume(id)));
    Ok(Planned::converged(steps))
}

/// A volume is at least as large as what it is made from.
fn check_size(id: VolumeId, size: ByteCount, found: ByteCount, source: &str) -> Result<(), Fault> {
    if found <= size {
        return Ok(());
    }
    Err(fault(format!(
        "volume {id} is to have {} bytes, and {source} that it is made from has {}; a volume is at least as large as its \
         source",
        size.get(),
        found.get()
    )))
}

/// What a guest writes while it is copied would be there in parts.
fn may_be_copied(source: VolumeId, users: &[VolumeUser]) -> Result<(), Fault> {
    match users.iter().find(|user| user.hold != Hold::Kept) {
        None => Ok(()),
        Some(user) => Err(fault(format!(
            "volume {source} is in use by the guest of domain {:?}, and a copy of it would not be consistent: detach it \
             or stop the instance, and it is copied",
            user.domain
        ))),
    }
}

/// Who has to be told that a volume grew.
enum Told {
    /// No guest has it.
    Nobody,
    /// This guest, of its disk.
    Guest(DomainStep),
}

/// Who has to be told that a volume grew; otherwise, whom to wait for.
fn told(larger: &LargerVolume, observed: &VolumeObserved) -> Result<Told, VolumeWait> {
    let users = observed.users.iter();
    let guests: Vec<_> = users.filter(|user| user.hold != Hold::Kept).collect();
    match guests.as_slice() {
        [] => Ok(Told::Nobody),
        [
            VolumeUser {
                instance: Some(instance),
                hold: Hold::Live { target },
                ..
            },
        ] => Ok(Told::Guest(DomainStep::GrowDisk {
            instance: *instance,
            disk: DiskFile {
                path: larger.path.clone(),
                target: target.clone(),
            },
            size: larger.size,
        })),
        _ => Err(wait_for(guests)),
    }
}

/// Grows a file: under the guest that has it, which its QEMU does, or what nobody has.
fn grow_file(larger: LargerVolume, observed: &VolumeObserved) -> Planned {
    // Also of one that a guest has: a snapshot may be made of it.
    if observed.copied {
        return Planned::wait(VolumeWait::Copied);
    }
    Planned::converged(vec![match told(&larger, observed) {
        Err(wait) => return Planned::wait(wait),
        Ok(Told::Guest(tell)) => Step::Domain(tell),
        Ok(Told::Nobody) => Step::Storage(StorageStep::GrowVolume(larger)),
    }])
}

/// Grows a block device, whoever has it: QEMU only looks at it. How it goes on, is told when that is done and looked at.
fn grow_device(larger: LargerVolume, observed: &VolumeObserved) -> Planned {
    if observed.copied {
        return Planned::wait(VolumeWait::Copied);
    }
    match told(&larger, observed) {
        Err(wait) => Planned::wait(wait),
        Ok(Told::Nobody | Told::Guest(_)) => {
            Planned::converged(vec![Step::Storage(StorageStep::GrowVolume(larger))])
        }
    }
}

/// Lets the guest that has a block device know that it grew.
fn tell(larger: LargerVolume, observed: &VolumeObserved) -> Planned {
    let guest = match told(&larger, observed) {
        Err(wait) => return Planned::wait(wait),
        Ok(Told::Nobody) => None,
        Ok(Told::Guest(tell)) => Some(Step::Domain(tell)),
    };
    let settle = StorageStep::SettleVolume(StoredVolume {
        id: larger.id,
        pool: larger.pool,
    });
    Planned::converged(guest.into_iter().chain([Step::Storage(settle)]).collect())
}

fn wait_for<'a>(users: impl IntoIterator<Item = &'a VolumeUser>) -> VolumeWait {
    VolumeWait::Users(users.into_iter().map(|user| user.domain.clone()).collect())
}

fn shrinks(id: VolumeId, found: ByteCount, wanted: ByteCount) -> Fault {
    fault(format!(
        "volume {id} has {} bytes, and its document says {}: a volume never shrinks, because what is at its end would \
         be lost",
        found.get(),
        wanted.get()
    ))
}

fn fault(message: String) -> Fault {
    Fault {
        code: FaultCode::Volume,
        message,
    }
}

#[cfg(test)]
mod tests;
