//! Everything that can go wrong with files and images, and what it means for the owner of the instance.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_common::{
    ids::{SnapshotId, VolumeId},
    message::report::FaultCode,
    names::{ImageSha256, PoolName},
    telemetry::error_chain,
    units::ByteCount,
};

use chrono::{DateTime, SecondsFormat, Utc};

use super::source::SourceFault;
use crate::{
    act::{
        ActError,
        command::{AccountError, CommandError},
    },
    decide::{
        image_header::Refusal,
        instance::DiskName,
        lvm::{Owner, ReportError},
    },
};

/// What the kernel and `qemu-img` (in its C locale) say when there is no room.
const NO_ROOM: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// A piece of work on files failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StorageFault {
    /// The file system refused.
    #[error("could not {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something else has the name.
    #[error("{} is not a directory of berth's: something else has its name; it was left alone", path.display())]
    NotOurs { path: PathBuf },
    /// The disk, or a network file system, does not answer.
    #[error("the file system did not answer within {} s", after.as_secs_f32())]
    Hung { after: Duration },
    /// It did not answer when it was asked last, and it is not time to ask again.
    #[error("the disk of storage pool {pool} was not asked: it has not answered since {}", since.to_rfc3339_opts(SecondsFormat::Secs, true))]
    NotAsked {
        pool: PoolName,
        since: DateTime<Utc>,
    },
    /// What a killed agent left could not all be removed.
    #[error("{}", leftovers(faults))]
    Leftovers { faults: Vec<StorageFault> },
    /// What a killed agent left running does not end.
    #[error(
        "{tools}, which an agent before this one left running, did not end within {} s",
        after.as_secs_f32()
    )]
    ToolsStay { tools: String, after: Duration },
    /// No thread could be had.
    #[error("no thread for work on files")]
    Thread {
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It is known beforehand that there is no room.
    #[error(
        "{what} has {needed} bytes, and {} has room for {available}: {kept} bytes are kept free for the disks of \
         guests, {promised} are promised to other downloads and copies",
        path.display()
    )]
    NoRoom {
        what: String,
        needed: u64,
        path: PathBuf,
        available: u64,
        kept: u64,
        promised: u64,
    },
    /// Free space is about to fall below what has to stay free.
    #[error(
        "{verb} {what} was stopped: {} is full but for {kept} bytes that are kept free for the disks of guests, and what \
         is promised to other downloads and copies",
        path.display()
    )]
    Full {
        verb: &'static str,
        what: String,
        path: PathBuf,
        kept: u64,
    },
    /// The image's bytes could not be had.
    #[error("could not fetch the image {url}")]
    Source {
        url: String,
        #[source]
        source: SourceFault,
    },
    /// All waiters went away.
    #[error("fetching the image {url} was given up: nobody waits for it any more")]
    Cancelled { url: String },
    /// It took too long.
    #[error("fetching the image {url} was given up after {} s", after.as_secs())]
    TooSlow { url: String, after: Duration },
    /// The file is larger than allowed.
    #[error("the image {url} is larger than the {limit} bytes this host accepts")]
    TooLarge { url: String, limit: u64 },
    /// The bytes are not those that were asked for.
    #[error("the image {url} does not have the sha256 {expected} that its document says")]
    Checksum { url: String, expected: ImageSha256 },
    /// The header is not acceptable.
    #[error("the image {url} was refused: {refusal}")]
    Refused { url: String, refusal: Refusal },
    /// An overlay cannot be smaller than what is below it.
    #[error(
        "{disk} is to have {size} bytes, and the image's own disk has {needed}; choose a flavor with at least \
         {} GB of disk",
        needed.get().div_ceil(1 << 30)
    )]
    DiskTooSmall {
        disk: DiskName,
        size: u64,
        needed: ByteCount,
    },
    /// The plan names a place that is not the disk's.
    #[error("{disk} belongs at {}, and the plan says {}", expected.display(), path.display())]
    WrongPlace {
        disk: DiskName,
        expected: PathBuf,
        path: PathBuf,
    },
    /// The image vanished between two steps.
    #[error("the image {sha256} is not in the cache")]
    NotCached { sha256: ImageSha256 },
    /// `xorriso` failed.
    #[error("could not make the config drive {}", path.display())]
    ConfigDrive {
        path: PathBuf,
        #[source]
        source: CommandError,
    },
    /// The plan names a place that is not the volume's.
    #[error("volume {id} belongs at {}, and the plan says {}", expected.display(), path.display())]
    VolumePlace {
        id: VolumeId,
        expected: PathBuf,
        path: PathBuf,
    },
    /// A volume cannot be smaller than what it is made from.
    #[error(
        "volume {id} is to have {size} bytes, and what it is made from has {needed}; make it with at least {} GB",
        needed.div_ceil(1 << 30)
    )]
    VolumeTooSmall {
        id: VolumeId,
        size: u64,
        needed: u64,
    },
    /// The volume to be copied or grown vanished between two steps.
    #[error("volume {id} is not whole on this host ({})", path.display())]
    VolumeNotThere { id: VolumeId, path: PathBuf },
    /// The copy may hold parts of what was written.
    #[error("{what} was written to while it was copied, so the copy was thrown away")]
    WrittenMeanwhile { what: String },
    /// `qemu-img` failed on a volume.
    #[error("could not {what} volume {id} at {}", path.display())]
    Volume {
        what: &'static str,
        id: VolumeId,
        path: PathBuf,
        #[source]
        source: CommandError,
    },
    /// The plan names a place that is not the snapshot's.
    #[error("snapshot {id} belongs at {}, and the plan says {}", expected.display(), path.display())]
    SnapshotPlace {
        id: SnapshotId,
        expected: PathBuf,
        path: PathBuf,
    },
    /// The snapshot to make a volume from vanished between two steps.
    #[error("snapshot {id} is not whole on this host ({})", path.display())]
    SnapshotNotThere { id: SnapshotId, path: PathBuf },
    /// What a hypervisor wrote is no snapshot.
    #[error("what the hypervisor wrote for snapshot {id} ({}) is no qcow2 disk of its own: {why}", path.display())]
    SnapshotBroken {
        id: SnapshotId,
        path: PathBuf,
        why: String,
    },
    /// QEMU does not let go of what it wrote.
    #[error("the hypervisor still has {} open, which it wrote for snapshot {id}; it is thrown away", path.display())]
    SnapshotOpen { id: SnapshotId, path: PathBuf },
    /// `qemu-img` failed on a snapshot.
    #[error("could not make snapshot {id} at {}", path.display())]
    Snapshot {
        id: SnapshotId,
        path: PathBuf,
        #[source]
        source: CommandError,
    },
    /// The bytes of a deleted snapshot are out of reach.
    #[error(
        "snapshot {id} shall be wiped, and its file is missing: bring back the disk it lies on, or remove {} to give it up",
        mark.display()
    )]
    SnapshotNothingToWipe { id: SnapshotId, mark: PathBuf },
    /// The bytes of a deleted snapshot could not be wiped.
    #[error("could not wipe what is left of snapshot {id} at {}; its file stays until that is done", path.display())]
    SnapshotWipe {
        id: SnapshotId,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// There is nobody without rights to be.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// `qemu-img` could not read the image, or not write what it becomes.
    #[error("the image {url} could not be converted to qcow2")]
    Convert {
        url: String,
        #[source]
        source: CommandError,
    },
    /// It becomes larger than its own disk, or than any image may be.
    #[error(
        "converting the image {url} was stopped: it becomes larger than {limit} bytes, which is more than its disk can \
         hold or this host accepts"
    )]
    Swollen { url: String, limit: u64 },
    /// What was made of it is another disk.
    #[error("converting the image {url} made a disk of {got}, and its header states {expected}")]
    OtherSize {
        url: String,
        expected: ByteCount,
        got: ByteCount,
    },
    /// The bytes of a deleted volume are out of reach.
    #[error(
        "volume {id} shall be wiped, and its file is missing: bring back the disk it lies on, or remove {} to give it up",
        mark.display()
    )]
    NothingToWipe { id: VolumeId, mark: PathBuf },
    /// The bytes of a deleted volume could not be wiped.
    #[error("could not wipe what is left of volume {id} at {}; its file stays until that is done", path.display())]
    Wipe {
        id: VolumeId,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The document names a storage pool that is not configured.
    #[error(
        "this host has no storage pool {pool}: configure it ([storage.pools.{pool}]) and start the agent again"
    )]
    UnknownPool { pool: PoolName },
    /// The storage pool is not there, or not as it must be.
    #[error("the storage pool {pool} cannot be used: {what} ({fix})")]
    PoolUnfit {
        pool: PoolName,
        what: String,
        fix: String,
    },
    /// LVM refused, or could not be asked.
    #[error("could not {what} in the storage pool {pool}")]
    Lvm {
        pool: PoolName,
        what: String,
        #[source]
        source: CommandError,
    },
    /// LVM said something that is not understood.
    #[error("could not look at the storage pool {pool}")]
    LvmReport {
        pool: PoolName,
        #[source]
        source: ReportError,
    },
    /// A thin pool has no room, or none for its tables.
    #[error(
        "the thin pool of the storage pool {pool} is full ({data} % of its data, {metadata} % of its tables): nothing more \
         is written to it until it is extended (lvextend) or volumes are deleted"
    )]
    ThinPoolFull {
        pool: PoolName,
        data: u64,
        metadata: u64,
    },
    /// It is known beforehand that there is no room in a thin pool.
    #[error(
        "{what} has {needed} bytes, and the thin pool of the storage pool {pool} has {free} left"
    )]
    NoThinRoom {
        pool: PoolName,
        what: String,
        needed: u64,
        free: u64,
    },
    /// Something else has the name of a logical volume.
    #[error(
        "logical volume {device} is in the way of {owner} and does not carry its tag, so it is not berth's; it was left \
         alone"
    )]
    ForeignVolume { owner: Owner, device: String },
    /// LVM would remove what an operator made of a volume together with it.
    #[error(
        "logical volume {snapshot} is a snapshot of {device} and would be removed with it, and does not carry berth's tag: \
         {owner} stays until it is removed (lvremove {snapshot})"
    )]
    ForeignSnapshot {
        owner: Owner,
        device: String,
        snapshot: String,
    },
    /// `qemu-img` failed.
    #[error("could not {what} {disk} at {}", path.display())]
    Create {
        what: &'static str,
        disk: DiskName,
        path: PathBuf,
        #[source]
        source: CommandError,
    },
}

impl StorageFault {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// `qemu-img` failed to fill a volume or a snapshot.
    pub(super) fn not_filled(owner: Owner, path: PathBuf, source: CommandError) -> Self {
        match owner {
            Owner::Volume(id) => Self::Volume {
                what: "make",
                id,
                path,
                source,
            },
            Owner::Snapshot(id) => Self::Snapshot { id, path, source },
        }
    }

    /// The bytes of a deleted volume or snapshot could not be wiped.
    pub(super) fn not_wiped(owner: Owner, path: PathBuf, source: io::Error) -> Self {
        match owner {
            Owner::Volume(id) => Self::Wipe { id, path, source },
            Owner::Snapshot(id) => Self::SnapshotWipe { id, path, source },
        }
    }

    pub(super) fn thread(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Thread {
            source: source.into(),
        }
    }

    /// What it means for the owner.
    fn code(&self) -> FaultCode {
        match self {
            Self::Io { source, .. }
            | Self::Wipe { source, .. }
            | Self::SnapshotWipe { source, .. }
                if is_no_room(source) =>
            {
                FaultCode::DiskFull
            }
            Self::Create { source, .. }
            | Self::ConfigDrive { source, .. }
            | Self::Convert { source, .. }
            | Self::Volume { source, .. }
            | Self::Snapshot { source, .. }
                if NO_ROOM.iter().any(|text| source.stderr().contains(text)) =>
            {
                FaultCode::DiskFull
            }
            Self::Lvm { source, .. } if is_no_extents(source) => FaultCode::DiskFull,
            Self::NoRoom { .. }
            | Self::Full { .. }
            | Self::ThinPoolFull { .. }
            | Self::NoThinRoom { .. } => FaultCode::DiskFull,
            Self::Source { .. } | Self::TooSlow { .. } | Self::Cancelled { .. } => {
                FaultCode::ImageUnreachable
            }
            Self::Checksum { .. } => FaultCode::ImageChecksum,
            Self::Convert { source, .. } if is_verdict(source) => FaultCode::ImageRefused,
            Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::DiskTooSmall { .. }
            | Self::Swollen { .. }
            | Self::OtherSize { .. } => FaultCode::ImageRefused,
            Self::NotOurs { .. } | Self::ForeignVolume { .. } | Self::ForeignSnapshot { .. } => {
                FaultCode::ForeignObject
            }
            Self::VolumeTooSmall { .. }
            | Self::VolumeNotThere { .. }
            | Self::WrittenMeanwhile { .. }
            | Self::Volume { .. }
            | Self::NothingToWipe { .. }
            | Self::UnknownPool { .. }
            | Self::PoolUnfit { .. }
            | Self::Lvm { .. }
            | Self::LvmReport { .. }
            | Self::Wipe { .. }
            | Self::SnapshotNotThere { .. }
            | Self::SnapshotBroken { .. }
            | Self::SnapshotOpen { .. }
            | Self::Snapshot { .. }
            | Self::SnapshotNothingToWipe { .. }
            | Self::SnapshotWipe { .. } => FaultCode::Volume,
            Self::Io { .. }
            | Self::Hung { .. }
            | Self::NotAsked { .. }
            | Self::Leftovers { .. }
            | Self::ToolsStay { .. }
            | Self::Thread { .. }
            | Self::WrongPlace { .. }
            | Self::VolumePlace { .. }
            | Self::SnapshotPlace { .. }
            | Self::NotCached { .. }
            | Self::ConfigDrive { .. }
            | Self::Account(_)
            | Self::Convert { .. }
            | Self::Create { .. } => FaultCode::Internal,
        }
    }

    /// Whether the same step may succeed later.
    fn retryable(&self) -> bool {
        match self {
            Self::Source { source, .. } => source.retryable(),
            Self::Convert { source, .. } => {
                self.code() == FaultCode::DiskFull || !is_verdict(source)
            }
            Self::Io { .. }
            | Self::Hung { .. }
            | Self::NotAsked { .. }
            | Self::Leftovers { .. }
            | Self::ToolsStay { .. }
            | Self::Thread { .. }
            | Self::NoRoom { .. }
            | Self::Full { .. }
            | Self::Cancelled { .. }
            | Self::TooSlow { .. }
            | Self::NotCached { .. }
            | Self::ConfigDrive { .. }
            | Self::Account(_)
            | Self::VolumeNotThere { .. }
            | Self::WrittenMeanwhile { .. }
            | Self::Volume { .. }
            | Self::NothingToWipe { .. }
            | Self::Wipe { .. }
            | Self::PoolUnfit { .. }
            | Self::Lvm { .. }
            | Self::LvmReport { .. }
            | Self::ThinPoolFull { .. }
            | Self::NoThinRoom { .. }
            | Self::ForeignVolume { .. }
            | Self::ForeignSnapshot { .. }
            | Self::SnapshotNotThere { .. }
            | Self::SnapshotBroken { .. }
            | Self::SnapshotOpen { .. }
            | Self::Snapshot { .. }
            | Self::SnapshotNothingToWipe { .. }
            | Self::SnapshotWipe { .. }
            | Self::Create { .. } => true,
            Self::NotOurs { .. }
            | Self::UnknownPool { .. }
            | Self::TooLarge { .. }
            | Self::Checksum { .. }
            | Self::Refused { .. }
            | Self::DiskTooSmall { .. }
            | Self::Swollen { .. }
            | Self::OtherSize { .. }
            | Self::VolumeTooSmall { .. }
            | Self::VolumePlace { .. }
            | Self::SnapshotPlace { .. }
            | Self::WrongPlace { .. } => false,
        }
    }
}

/// As many as people read; the log has all of them.
const LEFTOVERS_TOLD: usize = 5;

fn leftovers(faults: &[StorageFault]) -> String {
    let told: Vec<_> = faults
        .iter()
        .take(LEFTOVERS_TOLD)
        .map(|fault| error_chain(fault))
        .collect();
    let more = match faults.len().saturating_sub(LEFTOVERS_TOLD) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let count = faults.len();
    format!(
        "leftovers of interrupted work stay ({count}): {}{more}",
        told.join("; ")
    )
}

/// Whether a failed conversion says something about the image: the tool gave up on it. That it is missing, could not
/// be started, was too slow or was killed (it aborts when memory runs out) may be the host's fault.
fn is_verdict(error: &CommandError) -> bool {
    matches!(error, CommandError::Failed { status, .. } if status.code().is_some())
}

/// Whether LVM found too few extents, in its words: `Volume group "vg" has insufficient free space (3 extents): 256
/// required.`, `Insufficient free space: 256 extents needed, but only 3 available`.
fn is_no_extents(error: &CommandError) -> bool {
    error
        .stderr()
        .to_ascii_lowercase()
        .contains("insufficient free space")
}

fn is_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl From<StorageFault> for ActError {
    fn from(fault: StorageFault) -> Self {
        Arc::new(fault).into()
    }
}

impl From<Arc<StorageFault>> for ActError {
    fn from(fault: Arc<StorageFault>) -> Self {
        Self {
            what: fault.to_string(),
            code: fault.code(),
            retryable: fault.retryable(),
            source: Cause::of(fault).map(|cause| Box::new(cause).into()),
        }
    }
}

/// The cause of a fault that several waiters share.
#[derive(Debug)]
struct Cause(Arc<StorageFault>);

impl Cause {
    fn of(fault: Arc<StorageFault>) -> Option<Self> {
        fault.source().is_some().then_some(Self(fault))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source() {
            Some(source) => fmt::Display::fmt(source, f),
            None => Ok(()),
        }
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source().and_then(Error::source)
    }
}
