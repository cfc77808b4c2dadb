//! What a confined tool sees of the host's files: the system's programs and libraries, and what it is to work on. Everything
//! is where it is on the host, so that arguments and messages name the same places.
//!
//! What is shown is opened here, as root and following no link, and only shown later: whatever takes a file's name in between
//! is not seen.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Component, Path},
    sync::Arc,
};

use nix::{fcntl::OFlag, libc};

/// Where programs and their libraries are, and what glibc and QEMU ask for. What is not there is left out, and what is a
/// link on the host is one here.
pub(crate) const SYSTEM: [&str; 16] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/dev/null",
    "/dev/urandom",
];
/// How the system's own is mounted, its few devices without the last one, and how data is.
const OF_SYSTEM: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const OF_DEVICE: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
const OF_DATA: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// What a tool may do with what it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

/// All that a tool sees.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub(super) shown: Vec<Shown>,
    /// Whether something of it is private to other users.
    pub(super) private: bool,
}

/// Something that a tool sees. Paths are relative to the root.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// The directories it lies in, the outermost first.
    pub(super) parents: Vec<CString>,
    pub(super) path: CString,
    pub(super) what: Arc<What>,
}

/// What it is.
#[derive(Debug)]
pub(super) enum What {
    /// A file or a directory of the host, mounted with these attributes (mount_setattr(2)).
    Tree {
        file: File,
        is_directory: bool,
        attributes: u64,
    },
    /// A symbolic link to this.
    Link(CString),
    /// This block device: a node of the tool's own with its number, with this mode, of its group. It is open, so that its
    /// number is no other one's meanwhile.
    Device { file: File, mode: u32 },
}

impl View {
    /// The system's programs and libraries, and nothing else.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn of_system() -> io::Result<Self> {
        let mut view = Self::default();
        for path in SYSTEM.map(Path::new) {
            let found = match fs::symlink_metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if found.is_symlink() {
                let target = fs::read_link(path)?;
                view.add(
                    path,
                    What::Link(CString::new(target.as_os_str().as_bytes())?),
                )?;
            } else {
                let attributes = match found.file_type().is_char_device() {
                    true => OF_DEVICE,
                    false => OF_SYSTEM,
                };
                view.add_tree(path, attributes)?;
            }
        }
        Ok(view)
    }

    /// Adds a file or a directory with all that is in it, as it is on the host.
    ///
    /// # Errors
    /// It is not there, or it is a link.
    pub fn with_tree(mut self, path: &Path) -> io::Result<Self> {
        self.add_tree(path, 0)?;
        Ok(self)
    }

    /// Adds a file that the tool's user has the permission to use.
    ///
    /// # Errors
    /// It is not there, or something else than a file.
    pub fn with_file(mut self, path: &Path, access: Access) -> io::Result<Self> {
        let file = open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let attributes = match access {
            Access::Read => OF_DATA | libc::MOUNT_ATTR_RDONLY,
            Access::Write => OF_DATA,
        };
        let what = What::Tree {
            file,
            is_directory: false,
            attributes,
        };
        self.add(path, what)?;
        Ok(self)
    }

    /// Adds a file that only others have the permission to use.
    ///
    /// # Errors
    /// It is not there, or something else than a file.
    pub fn with_private_file(self, path: &Path, access: Access) -> io::Result<Self> {
        let view = self.with_file(path, access)?;
        Ok(Self {
            private: true,
            ..view
        })
    }

    /// Adds a block device, whoever may use its node on the host.
    ///
    /// # Errors
    /// It is not there, or something else than a block device.
    pub fn with_device(mut self, path: &Path, access: Access) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        if !file.metadata()?.file_type().is_block_device() {
            return Err(io::Error::other("it is not a block device"));
        }
        let what = What::Device {
            file,
            mode: match access {
                Access::Read => 0o440,
                Access::Write => 0o660,
            },
        };
        self.add(path, what)?;
        Ok(self)
    }

    fn add_tree(&mut self, path: &Path, attributes: u64) -> io::Result<()> {
        let file = open(path)?;
        let found = file.metadata()?;
        if found.is_symlink() {
            return Err(io::Error::other("it is a symbolic link"));
        }
        let what = What::Tree {
            file,
            is_directory: found.is_dir(),
            attributes,
        };
        self.add(path, what)
    }

    fn add(&mut self, path: &Path, what: What) -> io::Result<()> {
        let mut parents = chain(path)?;
        let path = parents
            .pop()
            .ok_or_else(|| io::Error::other("it is the root directory"))?;
        self.shown.push(Shown {
            parents,
            path,
            what: Arc::new(what),
        });
        Ok(())
    }
}

/// A file without reading it: only what it is counts, and a link is not followed.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
        .open(path)
}

/// A path, and before it all the directories it lies in, the outermost first, relative to the root.
pub(super) fn chain(path: &Path) -> io::Result<Vec<CString>> {
    let path = std::path::absolute(path)?;
    let mut chain = Vec::new();
    let mut walked = Vec::new();
    for component in path.components() {
        if let Component::Normal(_) | Component::ParentDir = component {
            if !walked.is_empty() {
                walked.push(b'/');
            }
            walked.extend_from_slice(component.as_os_str().as_bytes());
            chain.push(CString::new(walked.clone())?);
        }
    }
    Ok(chain)
}
