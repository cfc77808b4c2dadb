//! Wipes the bytes of a file that is about to be removed, on a thread that may block.
//!
//! What the file has in common with others is theirs still, and stays on the disk as long as they have it: it is only given
//! back. Zeros would not get there, but be written elsewhere, into room that is kept for guests. Whoever has it last
//! overwrites it. Where the file system writes elsewhere anyway, or does not tell, a piece is overwritten if there is room for
//! it, and given back otherwise.
//!
//! What was wiped of a file is not noted anywhere: after a crash it is wiped from its beginning again.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, OFlag, fallocate},
    sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs},
    unistd::{Whence, lseek},
};

use super::{VolumeWipe, extents};

/// How much is overwritten at a time, in bytes.
const PIECE: usize = 1 << 20;
/// How much is given back to the file system at a time, in bytes: between two pieces the wipe can be stopped.
const HOLE: u64 = 1 << 30;
/// Held from asking whether others have something until it is given back: of two files that have the same and are wiped at
/// once, the second one then has it alone.
static ASKING: Mutex<()> = Mutex::new(());

/// How far a wipe is, and whether it shall stop.
#[derive(Debug, Default)]
pub(super) struct Wiping {
    /// Bytes up to which it is done.
    pub(super) done: AtomicU64,
    /// Length of the file.
    pub(super) length: AtomicU64,
    /// Nobody waits for it any more.
    pub(super) stopped: AtomicBool,
}

impl Wiping {
    pub(super) fn reached(&self, position: u64) -> io::Result<()> {
        self.done.store(position, Ordering::Relaxed);
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        Ok(())
    }
}

/// Wipes all bytes of a file, durably. It is asked whether there is room wherever overwriting may take any.
pub(super) fn wipe(
    path: &Path,
    how: VolumeWipe,
    wiping: &Wiping,
    has_room: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    let length = file.metadata()?.len();
    wiping.length.store(length, Ordering::Relaxed);
    match how {
        VolumeWipe::None => return Ok(()),
        VolumeWipe::Zero => overwrite(&file, length, wiping, has_room)?,
        VolumeWipe::Discard => discard(&file, length, wiping)?,
    }
    file.sync_all()
}

/// Writes zeros wherever the file has bytes of its own, and gives back what others have too.
fn overwrite(
    file: &File,
    length: u64,
    wiping: &Wiping,
    mut has_room: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    // The kernel tells how those lie that are on the disk.
    file.sync_all()?;
    let writes_elsewhere = fstatfs(file)?.filesystem_type() == BTRFS_SUPER_MAGIC;
    let zeros = vec![0; PIECE];
    let mut position = 0;
    while let Some(data) = next_data(file, position, length)? {
        position = data.start;
        while position < data.end {
            wiping.reached(position)?;
            let (end, takes_room) = match what_is_next(file, position..data.end)? {
                Next::GivenBack(end) => {
                    position = end;
                    continue;
                }
                Next::Alone(end) => (end, writes_elsewhere),
                Next::Unknown(end) => (end, true),
            };
            while position < end {
                wiping.reached(position)?;
                let count = usize::try_from(end - position).map_or(PIECE, |left| left.min(PIECE));
                let next = position + u64::try_from(count).map_err(io::Error::other)?;
                if takes_room && !has_room(next - position) {
                    give_back(file, &(position..next))?;
                } else {
                    file.write_all_at(&zeros[..count], position)?;
                }
                position = next;
            }
        }
    }
    Ok(())
}

/// The next bytes of a file that are no hole.
fn next_data(file: &File, from: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    let start = match lseek(file, signed(from)?, Whence::SeekData) {
        Ok(start) => start,
        // There is only a hole left.
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = unsigned(lseek(file, start, Whence::SeekHole)?)?.min(length);
    let start = unsigned(start)?;
    Ok((start < end).then_some(start..end))
}

/// What is to be done with bytes of a file, and where they end.
enum Next {
    /// Nothing: others have them too, and they were given back.
    GivenBack(u64),
    /// They are overwritten: nobody else has them.
    Alone(u64),
    /// Nobody tells whether others have them too.
    Unknown(u64),
}

fn what_is_next(file: &File, part: Range<u64>) -> io::Result<Next> {
    let _alone = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(extent) = extents::first(file, &part)? else {
        return Ok(Next::Unknown(part.end));
    };
    if !extent.is_shared {
        return Ok(Next::Alone(extent.end.min(part.end)));
    }
    // Up to the end of its last block: a part of one would be overwritten, and so written elsewhere.
    let end = extent.end.min(part.start + HOLE);
    give_back(file, &(part.start..end))?;
    Ok(Next::GivenBack(end))
}

/// Gives the blocks back to the file system.
fn discard(file: &File, length: u64, wiping: &Wiping) -> io::Result<()> {
    let mut position = 0;
    while position < length {
        wiping.reached(position)?;
        let end = length.min(position + HOLE);
        give_back(file, &(position..end))?;
        position = end;
    }
    Ok(())
}

fn give_back(file: &File, part: &Range<u64>) -> io::Result<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let count = signed(part.end.saturating_sub(part.start))?;
    Ok(fallocate(file, how, signed(part.start)?, count)?)
}

fn signed(position: u64) -> io::Result<i64> {
    i64::try_from(position).map_err(io::Error::other)
}

fn unsigned(position: i64) -> io::Result<u64> {
    u64::try_from(position).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    /// A file with bytes at its beginning and its end, and a hole between.
    fn file(directory: &Path) -> std::path::PathBuf {
        let path = directory.join("file");
        let file = fs::File::create(&path).unwrap();
        file.write_all_at(&[7; 3 * PIECE / 2], 0).unwrap();
        file.write_all_at(&[7; 5], 64 << 20).unwrap();
        path
    }

    #[test]
    fn all_bytes_become_zeros_and_holes_stay_holes() {
        let directory = tempfile::tempdir().unwrap();
        for how in [VolumeWipe::Zero, VolumeWipe::Discard] {
            let path = file(directory.path());
            wipe(&path, how, &Wiping::default(), |_| true).unwrap();
            let content = fs::read(&path).unwrap();
            assert_eq!(content.len(), (64 << 20) + 5);
            assert!(content.iter().all(|byte| *byte == 0), "{how:?}");
            let allocated = fs::metadata(&path).unwrap().blocks() * 512;
            assert!(allocated < 8 << 20, "{how:?}: {allocated}");
        }
    }

    #[test]
    fn a_wipe_nobody_waits_for_stops() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path());
        let wiping = Wiping::default();
        wiping.stopped.store(true, Ordering::Relaxed);
        let error = wipe(&path, VolumeWipe::Zero, &wiping, |_| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        wipe(&link, VolumeWipe::Zero, &Wiping::default(), |_| true).unwrap_err();
        assert_eq!(fs::read(&path).unwrap().first(), Some(&7));
    }

    /// A file system in memory does not tell how its files lie.
    #[test]
    fn what_may_take_room_is_given_back_where_there_is_none() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        for (room, left) in [(true, 1), (false, 0)] {
            let path = directory.path().join("file");
            fs::write(&path, vec![7; 2 * PIECE]).unwrap();
            let mut asked = Vec::new();
            wipe(&path, VolumeWipe::Zero, &Wiping::default(), |count| {
                asked.push(count);
                room || asked.len() == 1
            })
            .unwrap();
            assert_eq!(asked, [1 << 20; 2]);
            let allocated = fs::metadata(&path).unwrap().blocks() * 512;
            assert_eq!(allocated, (1 + left) << 20);
            assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
        }
    }
}
