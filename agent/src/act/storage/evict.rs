//! Removes images that nobody uses: those that are old, and those in the way of one that is needed now.
//!
//! ```text
//!   lease an image ──▶ make a disk over it, under its final name ──▶ let go of the lease
//!   evict: hold back new leases, note those there are, read what all disks lean on, remove the rest
//! ```
//!
//! So at any instant an image in use has a lease, or a disk whose header names it: there is no moment in which a disk
//! is being made and eviction does not know. What cannot be read counts as a reason to remove nothing at all.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, FileTimes, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use berth_common::{document::ImageRef, units::ByteCount};
use nix::fcntl::OFlag;

use super::{
    Inner, StorageOptions, atomic::sync_directory, cache::FileWindow, fault::StorageFault,
    instances, temporary::PARTIAL,
};
use crate::decide::{
    image_cache::{CachedName, Entry, EntryKind, EvictionRules, Reason, evictions},
    image_header,
    instance::Paths,
};

/// Images that were used lately are not removed for room: the step after the one that fetched it needs it.
const SETTLED_AFTER: Duration = Duration::from_secs(600);
/// What the file system counts in.
const BLOCK: u64 = 512;

/// Who uses which image right now, and how much was removed so far.
#[derive(Debug, Default)]
pub(super) struct Uses {
    leases: Mutex<HashMap<CachedName, Weak<()>>>,
    removed_for_age: AtomicU64,
    removed_for_space: AtomicU64,
}

/// Somebody uses an image: it stays as long as this does.
#[derive(Debug)]
pub(super) struct Lease(#[expect(dead_code, reason = "it is there to be counted")] Arc<()>);

impl Uses {
    /// The image stays from now on, if it is there. Waits while something is being removed.
    pub(super) fn lease(&self, image: &ImageRef) -> Lease {
        let mut leases = self.lock();
        leases.retain(|_, lease| lease.strong_count() > 0);
        let name = CachedName::of(image);
        let lease = leases
            .get(&name)
            .and_then(Weak::upgrade)
            .unwrap_or_default();
        leases.insert(name, Arc::downgrade(&lease));
        Lease(lease)
    }

    /// How many files were removed since this was asked last, by reason.
    pub(super) fn take_removed(&self) -> [(Reason, u64); 2] {
        [
            (Reason::Age, self.removed_for_age.swap(0, Ordering::Relaxed)),
            (
                Reason::Space,
                self.removed_for_space.swap(0, Ordering::Relaxed),
            ),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CachedName, Weak<()>>> {
        // A map is whole after every operation, so a panic elsewhere cannot have broken it.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rules(options: &StorageOptions) -> EvictionRules {
    EvictionRules {
        image_max_age: options.image_max_age,
        partial_max_age: options.partial_max_age,
        settled_after: SETTLED_AFTER,
    }
}

/// Removes what is too old, and more if so much room is needed.
pub(super) fn evict(inner: &Inner, need: ByteCount) -> Result<(), StorageFault> {
    let leases = inner.uses.lock();
    let mut in_use: BTreeSet<String> = leases
        .iter()
        .filter(|(_, lease)| lease.strong_count() > 0)
        .map(|(name, _)| name.file_name())
        .collect();
    in_use.extend(leaned_on(&inner.paths)?);
    let entries = entries(inner)?;
    // An image grows old from when its last disk went.
    for entry in entries
        .iter()
        .filter(|entry| in_use.contains(&entry.file_name))
    {
        touch(&inner.paths.images.join(&entry.file_name));
    }
    let chosen = evictions(&entries, &in_use, &rules(&inner.options), need);
    for (name, reason) in &chosen {
        let path = inner.paths.images.join(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(StorageFault::io("remove", &path, source)),
        }
        tracing::info!(path = %path.display(), reason = reason.as_str(), "removed an image that nothing uses");
        let removed = match reason {
            Reason::Age => &inner.uses.removed_for_age,
            Reason::Space => &inner.uses.removed_for_space,
        };
        removed.fetch_add(1, Ordering::Relaxed);
    }
    if !chosen.is_empty() {
        let images = &inner.paths.images;
        sync_directory(images)
            .map_err(|source| StorageFault::io("write to disk the directory", images, source))?;
    }
    drop(leases);
    Ok(())
}

/// The files in the cache that could go: images, and what came of downloads that no step works on.
fn entries(inner: &Inner) -> Result<Vec<Entry>, StorageFault> {
    let images = &inner.paths.images;
    let now = SystemTime::now();
    let mut entries = Vec::new();
    for file_name in instances::entries(images)?.unwrap_or_default() {
        let path = images.join(&file_name);
        let kind = if file_name.starts_with(PARTIAL) && !inner.temporaries.owns(&path) {
            EntryKind::Partial
        } else if CachedName::parse(&file_name).is_some() {
            EntryKind::Image
        } else {
            continue;
        };
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if !metadata.is_file() {
            continue;
        }
        // When it was read last counts, and when it came. One from the future was used just now: somebody has set the
        // clock.
        let used = metadata.modified().unwrap_or(now);
        let used = metadata.accessed().map_or(used, |read| read.max(used));
        entries.push(Entry {
            file_name,
            kind,
            size: ByteCount::clamped(metadata.blocks().saturating_mul(BLOCK)),
            unused_for: now.duration_since(used).unwrap_or_default(),
        });
    }
    Ok(entries)
}

/// The names of all files that disks lean on, whoever has them.
fn leaned_on(paths: &Paths) -> Result<BTreeSet<String>, StorageFault> {
    let mut names = BTreeSet::new();
    for owner in instances::entries(&paths.instances)?.unwrap_or_default() {
        for file in listed(&paths.instances.join(owner))? {
            names.extend(backing_of(&file)?);
        }
    }
    Ok(names)
}

/// All that is in an owner's directory; nothing, if it is none.
fn listed(directory: &Path) -> Result<Vec<PathBuf>, StorageFault> {
    let failed = |source| StorageFault::io("list", directory, source);
    match fs::symlink_metadata(directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    }
    // It may be removed at any time, with all disks in it.
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => paths.push(entry.path()),
            Err(error) if gone(&error) => break,
            Err(source) => return Err(failed(source)),
        }
    }
    Ok(paths)
}

/// The name of the file below a disk. What is no regular file, or has just gone, leans on nothing.
fn backing_of(path: &Path) -> Result<Option<String>, StorageFault> {
    let failed = |source| StorageFault::io("read", path, source);
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    }
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let length = file.metadata().map_err(failed)?.len();
    let name = image_header::backing_file(&mut FileWindow {
        file: &file,
        length,
    })
    .map_err(failed)?;
    Ok(name.and_then(|name| Some(Path::new(&name).file_name()?.to_string_lossy().into_owned())))
}

/// Notes that an image is used now. That this fails does not matter: it is evicted earlier, and fetched again.
pub(super) fn touch(path: &Path) {
    // Never the time of the last change: an image is not changed, and others may rely on that.
    let times = FileTimes::new().set_accessed(SystemTime::now());
    let touched = File::open(path).and_then(|file| file.set_times(times));
    if let Err(error) = touched {
        tracing::debug!(path = %path.display(), %error, "the time of an image's last use was not noted");
    }
}
