//! Wipes the bytes of a file that is about to be removed, on a thread that may block.
//!
//! What was wiped of a file is not noted anywhere: after a crash it is wiped from its beginning again.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, OFlag, fallocate},
    unistd::{Whence, lseek},
};

use super::VolumeWipe;

/// How much is overwritten at a time, in bytes.
const PIECE: usize = 1 << 20;
/// How much is given back to the file system at a time, in bytes: between two pieces the wipe can be stopped.
const HOLE: i64 = 1 << 30;

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
    pub(super) fn reached(&self, position: i64) -> io::Result<()> {
        self.done
            .store(u64::try_from(position).unwrap_or(0), Ordering::Relaxed);
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::Interrupted));
        }
        Ok(())
    }
}

/// Wipes all bytes of a file, durably.
pub(super) fn wipe(path: &Path, how: VolumeWipe, wiping: &Wiping) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    let length = file.metadata()?.len();
    wiping.length.store(length, Ordering::Relaxed);
    let length = i64::try_from(length).map_err(io::Error::other)?;
    match how {
        VolumeWipe::None => return Ok(()),
        VolumeWipe::Zero => overwrite(&file, length, wiping)?,
        VolumeWipe::Discard => discard(&file, length, wiping)?,
    }
    file.sync_all()
}

/// Writes zeros wherever the file has bytes of its own.
fn overwrite(file: &std::fs::File, length: i64, wiping: &Wiping) -> io::Result<()> {
    let zeros = vec![0; PIECE];
    let mut position = 0;
    while position < length {
        let start = match lseek(file, position, Whence::SeekData) {
            Ok(start) => start,
            // There is only a hole left.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(file, start, Whence::SeekHole)?.min(length);
        position = start;
        while position < end {
            wiping.reached(position)?;
            let left = usize::try_from(end - position).map_err(io::Error::other)?;
            let count = left.min(PIECE);
            let at = u64::try_from(position).map_err(io::Error::other)?;
            file.write_all_at(&zeros[..count], at)?;
            position += i64::try_from(count).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Gives the blocks back to the file system.
fn discard(file: &std::fs::File, length: i64, wiping: &Wiping) -> io::Result<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut position = 0;
    while position < length {
        wiping.reached(position)?;
        let count = HOLE.min(length - position);
        fallocate(file, how, position, count)?;
        position += count;
    }
    Ok(())
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
            wipe(&path, how, &Wiping::default()).unwrap();
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
        let error = wipe(&path, VolumeWipe::Zero, &wiping).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        wipe(&link, VolumeWipe::Zero, &Wiping::default()).unwrap_err();
        assert_eq!(fs::read(&path).unwrap().first(), Some(&7));
    }
}
