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
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use berth_common::document::VolumeFormat;
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
use crate::decide::volume::VolumeContent;

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
    let copy = open(target, OpenOptions::new().write(true)).map_err(failed)?;
    if has_writer(&source).map_err(failed)? || !share(&source, &copy).map_err(failed)? {
        return Ok(false);
    }
    let size = VolumeContent::Size(original.size);
    if format == VolumeFormat::Qcow2 && volume::content(target, format)? != size {
        return Err(StorageFault::WrittenMeanwhile {
            what: original.what.clone(),
        });
    }
    Ok(true)
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
