//! Room for downloads and copies: what they may take of the file system that they write to, and what is always left free
//! there. What is promised on one file system is nothing to another.
//!
//! Guests' disks grow on the same file system, and a guest whose disk cannot grow stops. So downloads and copies end
//! before the last bytes are taken, and one of known length starts only if all of it fits beside those that run.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_common::units::ByteCount;
use nix::sys::statvfs::statvfs;

use super::fault::StorageFault;

/// What downloads and copies leave free on a file system: the larger of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepFree {
    /// At least so much.
    pub bytes: ByteCount,
    /// At least so many hundredths of the file system.
    pub percent: u8,
}

/// In bytes: lets guests' disks grow while somebody reacts.
const KEEP_BYTES: u64 = 1 << 30;
/// What file systems keep back for root by custom, because they get slow when they are fuller.
const KEEP_PERCENT: u8 = 5;

impl Default for KeepFree {
    fn default() -> Self {
        Self {
            bytes: ByteCount::clamped(KEEP_BYTES),
            percent: KEEP_PERCENT,
        }
    }
}

impl KeepFree {
    /// In bytes, on a file system of this size.
    fn of(self, size: u64) -> u64 {
        let part = u128::from(size) * u128::from(self.percent) / 100;
        self.bytes
            .get()
            .max(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

/// The room there is, and how much of it is promised to downloads and copies that run.
#[derive(Debug)]
pub(super) struct Room {
    keep_free: KeepFree,
    /// Bytes that those of known length still have to write, by the file system (`st_dev`).
    promised: Mutex<BTreeMap<u64, u64>>,
}

impl Room {
    pub(super) fn new(keep_free: KeepFree) -> Self {
        Self {
            keep_free,
            promised: Mutex::default(),
        }
    }

    fn promises(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        // A map is whole after every operation, so a panic elsewhere cannot have broken it.
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promised(&self, device: u64) -> u64 {
        self.promises().get(&device).copied().unwrap_or_default()
    }

    fn give_back(&self, device: u64, count: u64) {
        let mut promises = self.promises();
        if let Some(sum) = promises.get_mut(&device) {
            *sum = sum.saturating_sub(count);
        }
        promises.retain(|_, sum| *sum > 0);
    }

    /// Room for one download or copy into a directory. It is refused if it is known that it will not fit.
    pub(super) fn reserve(
        self: &Arc<Self>,
        directory: &Path,
        load: Load,
        length: Option<u64>,
    ) -> Result<Share, StorageFault> {
        let needed = length.unwrap_or(0);
        let device = file_system(directory)?;
        // Promised before it is compared: of two that start at once, the second sees the first.
        let promised = {
            let mut promises = self.promises();
            let sum = promises.entry(device).or_default();
            let before = *sum;
            *sum = before.saturating_add(needed);
            before
        };
        let share = Share {
            room: Arc::clone(self),
            device,
            directory: directory.to_owned(),
            load,
            known: length.is_some(),
            expected: needed,
            left: needed,
        };
        let (free, kept) = share.look()?;
        let available = free.saturating_sub(kept).saturating_sub(promised);
        if needed > available {
            return Err(StorageFault::NoRoom {
                what: share.load.what.clone(),
                needed,
                path: directory.to_owned(),
                available,
                kept,
                promised,
            });
        }
        Ok(share)
    }
}

/// What is written, for people.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// `fetching`, `copying` or `wiping`.
    pub(super) verb: &'static str,
    /// What it is: `the image http://…`.
    pub(super) what: String,
}

impl Load {
    /// A download from this address, as people may see it.
    pub(super) fn fetching(url: &str) -> Self {
        Self {
            verb: "fetching",
            what: format!("the image {url}"),
        }
    }
}

/// What one download or copy may take; what it did not take is given back with it.
#[derive(Debug)]
pub(super) struct Share {
    room: Arc<Room>,
    device: u64,
    directory: PathBuf,
    load: Load,
    known: bool,
    expected: u64,
    left: u64,
}

impl Share {
    /// Asked before so many bytes are written. A download whose length nobody knows also leaves alone what is
    /// promised to others.
    pub(super) fn take(&mut self, count: u64) -> Result<(), StorageFault> {
        self.leaves_enough(count)?;
        self.note(count);
        Ok(())
    }

    /// Told after somebody else wrote so many bytes of it.
    pub(super) fn taken(&mut self, count: u64) -> Result<(), StorageFault> {
        self.note(count);
        self.leaves_enough(0)
    }

    /// Told how much of it somebody else has written by now, all in all.
    pub(super) fn written(&mut self, total: u64) -> Result<(), StorageFault> {
        let left = self.expected.saturating_sub(total);
        self.taken(self.left.saturating_sub(left))
    }

    fn leaves_enough(&self, count: u64) -> Result<(), StorageFault> {
        let (free, kept) = self.look()?;
        let others = if self.known {
            0
        } else {
            self.room.promised(self.device)
        };
        if free < kept.saturating_add(others).saturating_add(count) {
            return Err(StorageFault::Full {
                verb: self.load.verb,
                what: self.load.what.clone(),
                path: self.directory.clone(),
                kept,
            });
        }
        Ok(())
    }

    fn note(&mut self, count: u64) {
        let taken = count.min(self.left);
        self.left -= taken;
        self.room.give_back(self.device, taken);
    }

    /// Free bytes for a process that is not root, and how many of them have to stay free.
    fn look(&self) -> Result<(u64, u64), StorageFault> {
        let status = statvfs(&self.directory).map_err(|errno| {
            StorageFault::io("ask for the free space of", &self.directory, errno.into())
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(status.fragment_size());
        Ok((
            bytes(status.blocks_available()),
            self.room.keep_free.of(bytes(status.blocks())),
        ))
    }
}

/// The file system that a directory is on.
pub(super) fn file_system(directory: &Path) -> Result<u64, StorageFault> {
    let metadata = fs::metadata(directory)
        .map_err(|source| StorageFault::io("ask for the free space of", directory, source))?;
    Ok(metadata.dev())
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.give_back(self.device, self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_bound_counts() {
        let keep = KeepFree::default();
        assert_eq!(keep.of(10 << 30), 1 << 30);
        assert_eq!(keep.of(100 << 30), 5 << 30);
        assert_eq!(keep.of(u64::MAX), u64::MAX / 20);
    }

    #[test]
    fn what_a_hypervisor_still_has_to_write_is_promised_to_it() {
        let nothing_kept = KeepFree {
            bytes: ByteCount::clamped(0),
            percent: 0,
        };
        let room = Arc::new(Room::new(nothing_kept));
        let directory = tempfile::tempdir().unwrap();
        let free = statvfs(directory.path()).unwrap();
        let free = free.blocks_available() * free.fragment_size();
        let reserve = |bytes: u64| {
            let load = Load {
                verb: "copying",
                what: "it".to_owned(),
            };
            room.reserve(directory.path(), load, Some(bytes))
        };
        let device = file_system(directory.path()).unwrap();
        let promised = || room.promised(device);
        // Each of them alone would fit.
        let part = free / 4 * 3;
        let mut first = reserve(part).unwrap();
        let refused = reserve(part).unwrap_err();
        assert!(
            matches!(refused, StorageFault::NoRoom { promised, .. } if promised == part),
            "{refused:?}"
        );
        for (total, left) in [
            (10, part - 10),
            (4, part - 10),
            (part - 1, 1),
            (part + 7, 0),
        ] {
            first.written(total).unwrap();
            assert_eq!(promised(), left, "{total} are written");
        }
        let mut second = reserve(part).unwrap();
        second.written(5).unwrap();
        drop((first, second));
        assert_eq!(promised(), 0);
    }

    #[test]
    fn what_a_download_did_not_take_is_given_back() {
        let nothing_kept = KeepFree {
            bytes: ByteCount::clamped(0),
            percent: 0,
        };
        let room = Arc::new(Room::new(nothing_kept));
        let directory = tempfile::tempdir().unwrap();
        let load = || Load {
            verb: "fetching",
            what: "it".to_owned(),
        };
        let device = file_system(directory.path()).unwrap();
        let promised = || room.promised(device);
        let mut share = room.reserve(directory.path(), load(), Some(10)).unwrap();
        share.take(4).unwrap();
        assert_eq!(promised(), 6);
        share.take(100).unwrap();
        assert_eq!(promised(), 0, "a server may send more than it said");
        let other = room.reserve(directory.path(), load(), Some(7)).unwrap();
        let unknown = room.reserve(directory.path(), load(), None).unwrap();
        drop((share, unknown));
        assert_eq!(promised(), 7);
        drop(other);
        assert!(
            room.reserve(directory.path(), load(), Some(u64::MAX / 2))
                .is_err()
        );
        assert_eq!(promised(), 0);
    }
}
