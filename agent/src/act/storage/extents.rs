//! Asks the kernel which bytes of a file lie in blocks that other files have too (Documentation/filesystems/fiemap.rst of the
//! kernel). It tells what is on the disk: what was not written yet has to be, before.

#![expect(
    unsafe_code,
    reason = "no library has the call that tells where a file lies"
)]

use std::{fs::File, io, ops::Range, os::fd::AsRawFd};

use nix::{errno::Errno, libc};

/// `FS_IOC_FIEMAP` of `linux/fs.h`.
const FIEMAP: libc::Ioctl = 0xc020_660b;
/// `FIEMAP_EXTENT_SHARED` of `linux/fiemap.h`.
const SHARED: u32 = 0x2000;

/// `struct fiemap` of `linux/fiemap.h`, with place for one extent.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    places: u32,
    reserved: u32,
    extent: Answer,
}

/// `struct fiemap_extent` of `linux/fiemap.h`.
#[repr(C)]
#[derive(Default)]
struct Answer {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// Bytes that lie alike, from the beginning of the part that was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where they end. That may be after the part.
    pub(super) end: u64,
    /// Whether another file has their blocks too.
    pub(super) is_shared: bool,
}

/// How the beginning of a part of a file lies; `None`: the file system does not tell.
pub(super) fn first(file: &File, part: &Range<u64>) -> io::Result<Option<Extent>> {
    let mut request = Request {
        start: part.start,
        length: part.end.saturating_sub(part.start),
        flags: 0,
        mapped: 0,
        places: 1,
        reserved: 0,
        extent: Answer::default(),
    };
    // SAFETY: FIEMAP takes a descriptor, which is open until it returns, and reads and writes the request, which says that
    // there is place for one extent after it, as there is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut request) };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS | Errno::EINVAL | Errno::EBADR) => {
            return Ok(None);
        }
        Err(errno) => return Err(errno.into()),
    }
    let found = &request.extent;
    Ok(Some(if request.mapped == 0 {
        Extent {
            end: part.end,
            is_shared: false,
        }
    } else if found.logical > part.start {
        Extent {
            end: found.logical,
            is_shared: false,
        }
    } else {
        Extent {
            end: found.logical.saturating_add(found.length),
            is_shared: found.flags & SHARED != 0,
        }
    }))
}
