//! Named network namespaces, kept where `ip netns` keeps them and made the same way, so that its commands work on
//! them.
//!
//! Making one changes the namespace of the calling thread: only threads of [`super::worker`] may do it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use super::error::NetError;

/// Where named namespaces are.
const DIRECTORY: &str = "/run/netns";
/// No more mounts than this are taken off one name: there is one, or as many as something broke off in between.
const STACKED_MAX: usize = 16;

/// What there is of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Nothing.
    Absent,
    /// A file without a namespace.
    Empty,
    /// A namespace with this inode.
    Present(u64),
}

/// The path of a name.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// What there is of a name.
pub(super) fn look(name: &str) -> Result<Name, NetError> {
    let path = path(name);
    let about = match fs::symlink_metadata(&path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Name::Absent),
        Err(error) => return Err(NetError::file("look at", path)(error)),
    };
    let filesystem =
        statfs(&path).map_err(NetError::system(format!("look at {}", path.display())))?;
    Ok(if filesystem.filesystem_type() == NSFS_MAGIC {
        Name::Present(about.ino())
    } else {
        Name::Empty
    })
}

/// All names.
pub(super) fn names() -> Result<Vec<String>, NetError> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(NetError::file("list", DIRECTORY)(error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(NetError::file("list", DIRECTORY))
}

/// Whether something had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// It was not there.
    Now,
    /// It was there.
    Before,
}

/// Makes a namespace, unless there is one. If it made one, the calling thread is in it afterwards; it must end in any case.
pub(super) fn create(name: &str) -> Result<Made, NetError> {
    share_directory()?;
    let path = path(name);
    if let Name::Present(_) = look(name)? {
        return Ok(Made::Before);
    }
    // The file is only a place to mount on; one that is left over from an interrupted try is as good.
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path);
    match made {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(NetError::file("make", path)(error)),
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(NetError::system("make a network namespace"))?;
    mount(
        Some("/proc/thread-self/ns/net"),
        &path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(NetError::system(format!(
        "give the new namespace the name {name}"
    )))?;
    Ok(Made::Now)
}

/// Removes a name with the namespace behind it, which ends once nothing else holds it. No such name: done.
pub(super) fn delete(name: &str) -> Result<(), NetError> {
    let path = path(name);
    for _ in 0..STACKED_MAX {
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => {
                return Err(NetError::system(format!("unmount {}", path.display()))(
                    errno,
                ));
            }
        }
    }
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(NetError::file("remove", path)(error)),
    }
}

/// Makes the directory a shared mount: a namespace that is unmounted in one mount namespace must go in all, or
/// it would live on in those that were copied meanwhile.
fn share_directory() -> Result<(), NetError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIRECTORY)
        .map_err(NetError::file("make", DIRECTORY))?;
    // The same lock as `ip netns` takes, held until the end of this function: without it, two could mount the
    // directory over one another and hide names.
    let lock = File::open(DIRECTORY).map_err(NetError::file("open", DIRECTORY))?;
    lock.lock().map_err(NetError::file("lock", DIRECTORY))?;
    let share = || {
        mount(
            None::<&str>,
            DIRECTORY,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    let shared = match share() {
        // It is not a mount yet.
        Err(Errno::EINVAL) => mount(
            Some(DIRECTORY),
            DIRECTORY,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .and_then(|()| share()),
        other => other,
    };
    shared.map_err(NetError::system(format!("make {DIRECTORY} a shared mount")))
}
