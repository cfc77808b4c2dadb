//! Zeros on a block device, on a thread that may block.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::atomic::Ordering,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::stat::{major, minor},
};

use super::super::wipe::Wiping;

/// How much is zeroed at a time, in bytes: between two pieces the work can be stopped.
const PIECE: u64 = 64 << 20;
/// How much is looked at at a time, in bytes.
const LOOK: usize = 1 << 20;
/// No disk has larger sectors, in bytes; the kernel refuses to zero a part of one.
const SECTOR: u64 = 4096;

/// Writes zeros from a position on to the end of a block device, durably. The kernel leaves that to the disk where the disk
/// guarantees it (`blkdev_issue_zeroout`), and otherwise writes them.
pub(super) fn zero(device: &Path, from: u64, wiping: &Wiping) -> io::Result<()> {
    let (file, length) = open(device, wiping)?;
    let mut position = from.next_multiple_of(SECTOR).min(length);
    let head = usize::try_from(position.saturating_sub(from)).map_err(io::Error::other)?;
    file.write_all_at(&vec![0; head], from)?;
    while position < length {
        let count = PIECE.min(length - position);
        wiping.reached(position)?;
        fallocate(
            &file,
            FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            signed(position)?,
            signed(count)?,
        )?;
        position += count;
    }
    file.sync_all()
}

/// Whether a block device can be discarded. Where it cannot, `blkdiscard` fails, today and tomorrow.
pub(super) fn can_discard(device: &Path) -> io::Result<bool> {
    let number = fs::metadata(device)?.rdev();
    let most = format!(
        "/sys/dev/block/{}:{}/queue/discard_max_bytes",
        major(number),
        minor(number)
    );
    Ok(fs::read_to_string(most)?.trim() != "0")
}

/// Overwrites what is not zero in a part of a block device, durably; answers whether there was any. For thin volumes: what was
/// never written to reads as zeros, and must not begin to take room now.
pub(super) fn overwrite(device: &Path, part: &Range<u64>, wiping: &Wiping) -> io::Result<bool> {
    let (file, length) = open(device, wiping)?;
    let (mut buffer, zeros) = (vec![0; LOOK], vec![0; LOOK]);
    let length = length.min(part.end);
    let mut position = part.start;
    let mut found = false;
    while position < length {
        wiping.reached(position)?;
        let left = usize::try_from(length - position).map_err(io::Error::other)?;
        let count = left.min(LOOK);
        file.read_exact_at(&mut buffer[..count], position)?;
        if buffer[..count] != zeros[..count] {
            file.write_all_at(&zeros[..count], position)?;
            found = true;
        }
        position += u64::try_from(count).map_err(io::Error::other)?;
    }
    if found {
        file.sync_all()?;
    }
    Ok(found)
}

fn open(device: &Path, wiping: &Wiping) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).open(device)?;
    let length = file.seek(SeekFrom::End(0))?;
    wiping.length.store(length, Ordering::Relaxed);
    Ok((file, length))
}

fn signed(position: u64) -> io::Result<i64> {
    i64::try_from(position).map_err(io::Error::other)
}
