//! A storage pool of files: `local`, or one on a disk of its own, which may be absent or another one.
//!
//! ```text
//!   <path>/.berth-pool     which pool this is, and an id made at random; berth makes it when it uses the pool first
//!   <made>/pool-<name>     the same, in the agent's own directory: from now on no other disk is that pool
//!
//!   no record, no mark  ──▶ mark ──▶ record ──▶ in use        (ended in between: the next look goes on from there)
//!   record, other mark or none: the disk is absent. Nothing is read there as lost, and nothing is written
//! ```
//!
//! That is asked at every look and before whatever is written, and of the directory that has the path now: a disk may come and
//! go at any time. While something is done its directory is open, so that it is not unmounted meanwhile unless by force;
//! it is asked once more afterwards, because then what was looked at may have been what is below.
//!
//! Each such pool has a file system for itself: its room would otherwise be counted twice.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_common::{names::PoolName, telemetry::error_chain, units::ByteCount};
use nix::{fcntl::OFlag, sys::statvfs::fstatvfs};
use uuid::Uuid;

use super::{
    PoolOptions, StorageOptions,
    atomic::{TEMPORARY_PREFIX, sync_directory, write_atomically},
    fault::StorageFault,
    instances::{self, MODE},
    threads::FileThreads,
};
use crate::decide::{
    instance::Paths,
    pool::{FilesPlace, PoolMark},
};

/// What says which pool a directory is.
pub(super) const MARK: &str = ".berth-pool";
/// More than a mark has, in bytes.
const MARK_MOST: u64 = 4096;

/// Permissions that a pool's directory must not have, and must have.
const WRITTEN_BY_OTHERS: u32 = 0o022;
const PASSED_BY_ALL: u32 = 0o001;

/// The file systems of the pools that were in order when they were looked at last.
type InUse = Arc<Mutex<BTreeMap<PoolName, u64>>>;

/// A storage pool of files.
#[derive(Debug)]
pub(super) struct FilePool {
    pub(super) name: PoolName,
    pub(super) place: FilesPlace,
    /// A disk that hangs takes these, and no other pool's.
    pub(super) threads: FileThreads,
    /// `None`: it is `local`, which is where the agent's own files are.
    own: Option<OwnDisk>,
}

/// The disk of a pool that is not `local`.
#[derive(Debug)]
struct OwnDisk {
    root: PathBuf,
    /// What is berth's in it.
    within: [PathBuf; 2],
    record: PathBuf,
    /// The other such pools: their directories and records.
    others: Vec<(PoolName, PathBuf, PathBuf)>,
    /// Directories that the pool `local` and the agent's own files are in.
    agents: Vec<PathBuf>,
    in_use: InUse,
    /// Held while the mark is made.
    making: Mutex<()>,
}

/// How a pool without a record is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// It is used from now on.
    Marks,
    /// Nothing is written.
    OnlyLooks,
}

/// A look at each pool of files besides `local`, which answers what is wrong with it, with what would be right, if anything is.
/// Nothing is written. A look blocks as long as the disk does.
#[must_use]
pub fn check(
    paths: &Paths,
    options: &StorageOptions,
) -> BTreeMap<PoolName, impl FnOnce() -> Result<(), String> + Send + use<>> {
    let look = |(name, pool): (PoolName, Arc<FilePool>)| {
        let its = name.clone();
        let check = move || {
            let own = pool.own.as_ref();
            let opened = own.map_or(Ok(()), |own| own.open(&its, First::OnlyLooks).map(drop));
            opened.map_err(|fault| error_chain(&fault))
        };
        (name, check)
    };
    FilePool::all(paths, options)
        .into_iter()
        .map(look)
        .collect()
}

impl FilePool {
    pub(super) fn local(paths: &Paths, threads: FileThreads) -> Self {
        Self {
            name: PoolName::default(),
            place: paths.local(),
            threads,
            own: None,
        }
    }

    /// All that are configured besides `local`.
    pub(super) fn all(paths: &Paths, options: &StorageOptions) -> BTreeMap<PoolName, Arc<Self>> {
        let dirs = || {
            let pools = options.pools.iter();
            pools.filter_map(|(name, pool)| match pool {
                PoolOptions::Dir(dir) => Some((name, dir)),
                PoolOptions::Lvm(_) => None,
            })
        };
        let in_use = InUse::default();
        let state = paths.made.parent().unwrap_or(&paths.made);
        let agents = [state, &paths.instances, &paths.volumes, &paths.snapshots];
        let new = |(name, dir): (&PoolName, &super::DirPoolOptions)| {
            let others = dirs().filter(|(other, _)| *other != name);
            let pool = Self {
                name: name.clone(),
                place: dir.files(),
                threads: FileThreads::of_pool(name, options.file_threads, options.file_deadline),
                own: Some(OwnDisk {
                    root: dir.path.clone(),
                    within: [dir.files().volumes, dir.files().snapshots],
                    record: paths.pool_record(name),
                    others: others
                        .map(|(other, dir)| {
                            (other.clone(), dir.path.clone(), paths.pool_record(other))
                        })
                        .collect(),
                    agents: agents.map(Path::to_owned).into(),
                    in_use: Arc::clone(&in_use),
                    making: Mutex::default(),
                }),
            };
            (name.clone(), Arc::new(pool))
        };
        dirs().map(new).collect()
    }

    /// Does something in the pool while its disk is there. Blocks.
    pub(super) fn on_disk<T>(
        &self,
        work: impl FnOnce() -> Result<T, StorageFault>,
    ) -> Result<T, StorageFault> {
        let Some(own) = &self.own else {
            return work();
        };
        let held = own.open(&self.name, First::Marks)?;
        let result = work();
        // By force it is unmounted under whoever has it open.
        own.open(&self.name, First::OnlyLooks)?;
        drop(held);
        result
    }

    /// Makes one of its directories, if it is not there: never that of the pool itself, which is somebody else's to make.
    pub(super) fn make(&self, directory: &Path) -> Result<(), StorageFault> {
        if self.own.is_none() {
            return instances::make_root(directory);
        }
        let made = DirBuilder::new().mode(MODE).create(directory);
        match made {
            Ok(()) => {
                let parent = directory.parent().unwrap_or(directory);
                sync_directory(parent)
                    .map_err(|source| StorageFault::io("write to disk", parent, source))
            }
            // Whatever else has its name is told.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                instances::is_directory(directory).map(drop)
            }
            Err(source) => Err(StorageFault::io("make the directory", directory, source)),
        }
    }

    /// Size and used bytes of its file system, as `df` counts.
    pub(super) fn space(&self, paths: &Paths) -> Result<(ByteCount, ByteCount), StorageFault> {
        let Some(own) = &self.own else {
            return instances::space(paths);
        };
        let held = own.open(&self.name, First::Marks)?;
        let status = fstatvfs(&held).map_err(|errno| {
            StorageFault::io("ask for the free space of", &own.root, errno.into())
        })?;
        Ok(instances::size_and_used(&status))
    }

    /// Removes marks that were not finished; answers why some stay. Whatever else lies beside them is not berth's to judge.
    pub(super) fn sweep_marks(&self) -> Vec<StorageFault> {
        let Some(own) = &self.own else {
            return Vec::new();
        };
        let names = match instances::entries(&own.root) {
            Ok(names) => names.unwrap_or_default(),
            Err(fault) => return vec![fault],
        };
        let is_leftover =
            |name: &&String| name.starts_with(TEMPORARY_PREFIX) && name.ends_with(MARK);
        // Whoever makes one has this.
        let _making = own.making();
        let remove = |name: &String| {
            let path = own.root.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Some(StorageFault::io("remove the leftover", &path, source))
                }
                Ok(()) | Err(_) => None,
            }
        };
        names
            .iter()
            .filter(is_leftover)
            .filter_map(remove)
            .collect()
    }
}

impl OwnDisk {
    /// The directory, open, if it is that of the pool and of no other.
    fn open(&self, name: &PoolName, first: First) -> Result<File, StorageFault> {
        let opened = self.look(name, first);
        let mut in_use = lock(&self.in_use);
        match &opened {
            Ok((_, device)) => in_use.insert(name.clone(), *device),
            Err(_) => in_use.remove(name),
        };
        opened.map(|(directory, _)| directory)
    }

    /// The same, and its file system.
    fn look(&self, name: &PoolName, first: First) -> Result<(File, u64), StorageFault> {
        let (directory, device) = self.directory(name)?;
        let inside = inside(&directory);
        // That its disk is absent explains the rest.
        let judged = self.judge(name, read(&self.record)?.as_ref(), &inside)?;
        if let Some(agents) = self.agents.iter().find(|it| lies_on(it, device)) {
            let whose = format!("{}, where the pool local is", agents.display());
            return Err(self.shares(name, &whose));
        }
        let other = lock(&self.in_use)
            .iter()
            .find(|(other, used)| *other != name && **used == device)
            .map(|(other, _)| other.clone());
        if let Some(other) = other {
            return Err(self.shares(name, &self.called(&other)));
        }
        if let Judged::New(mark) = judged {
            self.check_new(name, device)?;
            if first == First::Marks {
                self.begin(name, &inside, mark)?;
            }
        }
        Ok((directory, device))
    }

    fn directory(&self, name: &PoolName) -> Result<(File, u64), StorageFault> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(&self.root);
        let unfit = |what: String, fix: &str| {
            Err(StorageFault::PoolUnfit {
                pool: name.clone(),
                what,
                fix: fix.to_owned(),
            })
        };
        let root = self.root.display();
        match opened {
            Ok(directory) => {
                let metadata = directory
                    .metadata()
                    .map_err(|source| StorageFault::io("look at", &self.root, source))?;
                if is_others(&metadata) {
                    return unfit(
                        format!(
                            "others than root may write to {root}, and so replace what berth makes there"
                        ),
                        "chown root and chmod go-w",
                    );
                }
                for within in &self.within {
                    // What is no directory is told by whoever needs one.
                    let found = fs::symlink_metadata(within);
                    if found.is_ok_and(|it| it.is_dir() && is_others(&it)) {
                        return unfit(
                            format!(
                                "others than root may write to {}, and so replace what berth makes there",
                                within.display()
                            ),
                            "chown root and chmod go-w",
                        );
                    }
                }
                if metadata.mode() & PASSED_BY_ALL == 0 {
                    return unfit(
                        format!(
                            "not everybody can pass through {root}, as QEMU has to, to the disks of its guests"
                        ),
                        "chmod o+x",
                    );
                }
                Ok((directory, metadata.dev()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => unfit(
                format!("there is no directory {root}: is its disk mounted?"),
                "make the directory and mount the pool's disk there",
            ),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(nix::libc::ENOTDIR | nix::libc::ELOOP)
                ) =>
            {
                unfit(
                    format!("{root} is no directory, or a link to one"),
                    "set its path to the directory itself",
                )
            }
            Err(source) => Err(StorageFault::io("open", &self.root, source)),
        }
    }

    /// Whether the mark is what was recorded. What is not recorded yet may have a mark already: the agent ended before it
    /// recorded it, or it lost what it knew.
    fn judge(
        &self,
        name: &PoolName,
        recorded: Option<&PoolMark>,
        inside: &Path,
    ) -> Result<Judged, StorageFault> {
        let mark = read(&inside.join(MARK))?;
        let at = self.root.join(MARK);
        let at = at.display();
        let (what, fix) = match (recorded, mark) {
            (Some(recorded), Some(mark)) if *recorded == mark => return Ok(Judged::Right),
            (Some(_), None) => (
                format!(
                    "berth made {at} when it used the pool first, and it is missing: is its disk mounted?"
                ),
                "mount it; nothing is lost meanwhile".to_owned(),
            ),
            (Some(recorded), Some(mark)) => (
                format!(
                    "{at} says that this is pool {} with the id {}, and it was first used with {}: is its disk mounted?",
                    mark.pool, mark.id, recorded.id
                ),
                format!(
                    "mount the right one; if this one shall be the pool from now on, remove {}",
                    self.record.display()
                ),
            ),
            (None, Some(mark)) if mark.pool != *name => (
                format!("{at} says that this is pool {}", mark.pool),
                format!(
                    "mount the disk of {name}, or remove that file if it is to be {name} from now on"
                ),
            ),
            (None, mark) => return Ok(Judged::New(mark)),
        };
        Err(StorageFault::PoolUnfit {
            pool: name.clone(),
            what,
            fix,
        })
    }

    /// Refuses to begin with a pool on a file system that another one is configured for. One whose disk is known to be absent
    /// only seems to be there.
    fn check_new(&self, name: &PoolName, device: u64) -> Result<(), StorageFault> {
        for (other, root, record) in &self.others {
            if !lies_on(root, device) {
                continue;
            }
            let recorded = read(record)?;
            if recorded.is_some() && read(&root.join(MARK)).ok().flatten() != recorded {
                continue;
            }
            return Err(self.shares(name, &self.called(other)));
        }
        Ok(())
    }

    /// Makes the mark and then the record, each whole or not at all. Of two threads one makes them, and both see them.
    fn begin(
        &self,
        name: &PoolName,
        inside: &Path,
        mark: Option<PoolMark>,
    ) -> Result<(), StorageFault> {
        let _making = self.making();
        if let Some(recorded) = read(&self.record)? {
            return self.judge(name, Some(&recorded), inside).map(drop);
        }
        let at = inside.join(MARK);
        let mark = match mark.map_or_else(|| read(&at), |mark| Ok(Some(mark)))? {
            Some(mark) => mark,
            None => {
                let mark = PoolMark {
                    pool: name.clone(),
                    id: Uuid::new_v4().to_string(),
                };
                write_atomically(&at, mark.text().as_bytes())
                    .map_err(|source| StorageFault::io("write", &self.root.join(MARK), source))?;
                mark
            }
        };
        let record = &self.record;
        instances::make_root(record.parent().unwrap_or(record))?;
        write_atomically(record, mark.text().as_bytes())
            .map_err(|source| StorageFault::io("write", record, source))?;
        tracing::info!(pool = %name, path = %self.root.display(), id = mark.id, "a storage pool is used first");
        Ok(())
    }

    fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(&self, other: &PoolName) -> String {
        let mut others = self.others.iter();
        match others.find(|(name, ..)| name == other) {
            Some((_, root, _)) => format!("{}, which is pool {other}", root.display()),
            None => format!("pool {other}"),
        }
    }

    fn shares(&self, name: &PoolName, whose: &str) -> StorageFault {
        StorageFault::PoolUnfit {
            pool: name.clone(),
            what: format!(
                "{} lies on the same file system as {whose}, and its room would count twice: is its disk mounted?",
                self.root.display()
            ),
            fix: "give the pool a file system of its own".to_owned(),
        }
    }
}

/// What a pool's directory says of itself.
enum Judged {
    /// It is the one that was recorded.
    Right,
    /// None was recorded. What its mark says, if there is one.
    New(Option<PoolMark>),
}

/// Whether others than root may make and remove files in a directory.
fn is_others(directory: &fs::Metadata) -> bool {
    directory.uid() != 0 || directory.mode() & WRITTEN_BY_OTHERS != 0
}

/// A way into a directory that is open, whatever has its path by now.
fn inside(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Whether a directory is there and lies on this file system.
fn lies_on(directory: &Path, device: u64) -> bool {
    fs::metadata(directory).is_ok_and(|metadata| metadata.dev() == device)
}

/// What a mark or a record says; `None`: there is none.
fn read(path: &Path) -> Result<Option<PoolMark>, StorageFault> {
    let failed = |source| StorageFault::io("read", path, source);
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut text = String::new();
    file.take(MARK_MOST)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let mark = PoolMark::parse(&text);
    let unread = || {
        failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no mark of a pool",
        ))
    };
    mark.map(Some).ok_or_else(unread)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map is whole after every operation, so a panic elsewhere cannot have broken it.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
