//! A root directory that shows a [`View`] and nothing else, entered between fork and exec.
//!
//! What is shown is cloned as mounts of nobody's (open_tree(2)) while the child is still in the host's mount namespace, and
//! put into an empty file system once it is in one of its own. The namespace ends with its last process, and all of this
//! with it: nothing is ever mounted on the host.
//!
//! Its unsafe code must stay free of allocation, locks and logging: it runs in the child of a process with many
//! threads. So everything is prepared before.

#![expect(
    unsafe_code,
    reason = "no library has the calls that clone a mount, change it and put it somewhere"
)]

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::AT_FDCWD,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mknod, umask},
    unistd::{Gid, Uid, chdir, chown, mkdir, pivot_root, symlinkat},
};

use super::view::{View, What, chain};

/// A directory that every host has. It is covered in the child's namespace, until that has its own root.
const COVERED: &CStr = c"/dev";
/// What the new root may take, and who may look into it: it holds names and nothing else.
const BOUNDS: &CStr = c"size=1m,mode=755";
const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);

/// The root directory, ready to be entered.
pub(super) struct PrivateRoot {
    view: View,
    group: Gid,
    /// Where the tool begins, and before it the directories it lies in.
    directory: Vec<CString>,
    /// The mount of each thing that is shown, once it was cloned.
    trees: Vec<Option<RawFd>>,
}

impl PrivateRoot {
    pub(super) fn new(view: &View, group: Gid, directory: &Path) -> io::Result<Self> {
        Ok(Self {
            view: view.clone(),
            group,
            directory: chain(directory)?,
            trees: vec![None; view.shown.len()],
        })
    }

    /// Clones what is to be shown: to be called in the host's mount namespace. The descriptors close when the tool begins.
    pub(super) fn open_trees(&mut self) -> io::Result<()> {
        for (shown, tree) in self.view.shown.iter().zip(&mut self.trees) {
            if let What::Tree {
                file, attributes, ..
            } = &*shown.what
            {
                let cloned = clone_mount(file.as_raw_fd())?;
                set_attributes(cloned, c"", *attributes)?;
                *tree = Some(cloned);
            }
        }
        Ok(())
    }

    /// Makes it the root of this process: to be called in a mount namespace of its own.
    pub(super) fn enter(&self) -> io::Result<()> {
        let nothing: Option<&CStr> = None;
        let alone = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nothing, c"/", nothing, alone, nothing)?;
        let kind = Some(c"tmpfs");
        mount(kind, COVERED, kind, MsFlags::MS_NOSUID, Some(BOUNDS))?;
        chdir(COVERED)?;
        let mask = umask(Mode::empty());
        for (shown, tree) in self.view.shown.iter().zip(&self.trees) {
            make_directories(&shown.parents)?;
            self.show(&shown.path, &shown.what, *tree)?;
        }
        make_directories(&self.directory)?;
        umask(mask);
        // The old root then lies over the new one, and is taken off.
        pivot_root(c".", c".")?;
        umount2(c".", MntFlags::MNT_DETACH)?;
        chdir(c"/")?;
        let sealed = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC;
        set_attributes(libc::AT_FDCWD, c"/", sealed)?;
        if let Some(directory) = self.directory.last() {
            chdir(directory.as_c_str())?;
        }
        Ok(())
    }

    fn show(&self, path: &CStr, what: &What, tree: Option<RawFd>) -> io::Result<()> {
        match what {
            What::Tree { is_directory, .. } => {
                if *is_directory {
                    accept_existing(mkdir(path, DIRECTORY))?;
                } else {
                    accept_existing(mknod(path, SFlag::S_IFREG, Mode::empty(), 0))?;
                }
                put_mount(tree.ok_or(Errno::EBADF)?, path)
            }
            What::Link(target) => Ok(symlinkat(target.as_c_str(), AT_FDCWD, path)?),
            What::Device { file, mode } => {
                let number = fstat(file)?.st_rdev;
                mknod(path, SFlag::S_IFBLK, Mode::empty(), number)?;
                chown(path, Some(Uid::from_raw(0)), Some(self.group))?;
                let mode = Mode::from_bits_truncate(*mode);
                Ok(fchmodat(
                    AT_FDCWD,
                    path,
                    mode,
                    FchmodatFlags::FollowSymlink,
                )?)
            }
        }
    }
}

fn make_directories(chain: &[CString]) -> io::Result<()> {
    for directory in chain {
        accept_existing(mkdir(directory.as_c_str(), DIRECTORY))?;
    }
    Ok(())
}

fn accept_existing(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A mount of what this descriptor is of, which is nowhere yet and ends with its own descriptor.
fn clone_mount(of: RawFd) -> io::Result<RawFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: open_tree reads an empty text that lives for ever.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, of, c"".as_ptr(), flags) };
    RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW.into())
}

/// Adds attributes to a mount: that of a path below this descriptor, or its own if the path is empty. A clone is a peer of
/// what it was cloned from, where that is shared, and from now on it is nobody's: what is mounted on the host does not
/// appear in it.
fn set_attributes(at: RawFd, path: &CStr, attributes: u64) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: mount_setattr reads a path and a structure of the length it is told, which live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Puts a mount that is nowhere on a path.
fn put_mount(tree: RawFd, path: &CStr) -> io::Result<()> {
    // SAFETY: move_mount reads two paths, which live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result)?;
    Ok(())
}
