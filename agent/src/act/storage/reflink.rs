//! Copies that share their blocks with what they are copies of, where the file system can do that (XFS, btrfs): they take
//! neither time nor room before one of the two is written to.
//!
//! Nothing of the content is read here, so root does it. Where it cannot be done, for whatever reason, nothing is changed
//! and `qemu-img` copies.

#![expect(
    unsafe_code,
    reason = "no library has the call that shares blocks between files"
)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use berth_common::{document::VolumeFormat, units::ByteCount};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};

use super::{
    fault::StorageFault,
    original::{Original, Written},
    volume,
};
use crate::decide::{image_header::qcow2, volume::VolumeContent};

/// Where QEMU notes in locks that it may write to a file or change its length, and how many bytes that are
/// (`RAW_LOCK_PERM_BASE` in its `block/file-posix.c`, and its `BLK_PERM_WRITE` to `BLK_PERM_RESIZE`).
const WRITERS: (libc::off_t, libc::off_t) = (101, 3);

/// Makes a new file share everything with the original, if both are stored alike and nobody may write to the original;
/// answers whether it did. What was inspected is inspected again: that of the copy nobody else has open.
pub(super) fn reflink(
    original: &Original,
    target: &Path,
    format: VolumeFormat,
) -> Result<bool, StorageFault> {
    // A qcow2 image is a stranger's, and holds what a volume needs not: compressed clusters, snapshots.
    let alike = original.format == format.as_str()
        && (original.lease.is_none() || format == VolumeFormat::Raw);
    if !alike || matches!(original.written, Written::Sectors(_)) {
        return Ok(false);
    }
    let failed = |source| StorageFault::io("share the blocks of", &original.path, source);
    let source = open(&original.path, OpenOptions::new().read(true)).map_err(failed)?;
    let copy = open(target, OpenOptions::new().read(true).write(true)).map_err(failed)?;
    // A file system without locks does not tell who writes. QEMU has its own word on that.
    if has_writer(&source).unwrap_or(true) || !share(&source, &copy).map_err(failed)? {
        return Ok(false);
    }
    if format == VolumeFormat::Raw {
        return Ok(true);
    }
    if volume::content(target, format)? != VolumeContent::Size(original.size) {
        return Err(StorageFault::WrittenMeanwhile {
            what: original.what.clone(),
        });
    }
    if is_lean(&copy, original.size).map_err(failed)? {
        return Ok(true);
    }
    // What is not needed would count for nobody, and take room for ever.
    copy.set_len(0).map_err(failed)?;
    Ok(false)
}

/// Whether a qcow2 file is no larger than a copy of its disk can become, and has no snapshots in it. A guest that has taken
/// its QEMU over may make it as large as it likes.
fn is_lean(file: &File, size: ByteCount) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let most = volume::with_tables(size.get());
    let mut head = [0; qcow2::COUNTED];
    file.read_exact_at(&mut head, 0)?;
    Ok(metadata.len() <= most
        && metadata.blocks().saturating_mul(512) <= most
        && qcow2::internal_snapshots(&head) == Some(0))
}

fn open(path: &Path, how: &mut OpenOptions) -> io::Result<File> {
    how.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

/// Whether some QEMU has a file open to write to it. No lock is taken: a guest that is started now is not kept from it.
fn has_writer(file: &File) -> io::Result<bool> {
    let narrow = |value| i16::try_from(value).map_err(io::Error::other);
    let mut lock = libc::flock {
        l_type: narrow(libc::F_WRLCK)?,
        l_whence: narrow(libc::SEEK_SET)?,
        l_start: WRITERS.0,
        l_len: WRITERS.1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != narrow(libc::F_UNLCK)?)
}

/// Shares all blocks of a file with an empty one; answers whether it could.
fn share(source: &File, copy: &File) -> io::Result<bool> {
    // SAFETY: FICLONE takes two descriptors, which are open until it returns, and touches no memory.
    let result = unsafe { libc::ioctl(copy.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        // Another file system, one that cannot, or files that it does not do this with.
        Err(
            Errno::EOPNOTSUPP
            | Errno::EXDEV
            | Errno::EINVAL
            | Errno::ENOTTY
            | Errno::ENOSYS
            | Errno::EPERM
            | Errno::ETXTBSY,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
