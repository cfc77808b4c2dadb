//! A tool without rights, imposed between fork and exec: another user, nothing that gives rights back, a root directory
//! with nothing in it but what it works on, and no network if the caller says so. For tools that read what strangers made.
//!
//! It has no capability, with one exception: a tool that works on a file of another user's may pass over the permissions of
//! what it sees (`CAP_DAC_OVERRIDE`), and it sees nothing else. What it may only read is mounted read-only.
//!
//! Its unsafe code must stay free of allocation, locks and logging: it runs in the child of a process with many
//! threads.

#![expect(
    unsafe_code,
    reason = "a closure between fork and exec is the only place where rights can be dropped before the tool runs"
)]

use std::{io, os::unix::process::CommandExt, path::Path, process::Command};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::prctl::{set_keepcaps, set_no_new_privs},
    unistd::{Gid, Uid, User, setgroups, setresgid, setresuid},
};

use super::{private_root::PrivateRoot, view::View};

/// Above the highest capability of any kernel; the kernel itself says where its list ends.
const MAX_CAPABILITY: libc::c_ulong = 63;
/// Passes over the permissions of files (capabilities(7)). Not `CAP_DAC_READ_SEARCH`, which opens files by handles too, and
/// so also those that are not seen.
const DAC_OVERRIDE: libc::c_ulong = 1;
/// Operation of `PR_CAP_AMBIENT` (prctl(2)).
const AMBIENT_RAISE: libc::c_ulong = 2;
/// `_LINUX_CAPABILITY_VERSION_3` of capset(2).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// A user without rights, as the host knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    uid: Uid,
    gid: Gid,
}

/// There is no such user to become.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The host has no user of this name.
    #[error(
        "there is no user {0:?} on this host for qemu-img to run as: make one (`useradd --system {0}`), or name another \
         as storage.qemu_img_user"
    )]
    Unknown(String),
    /// It is root.
    #[error(
        "{0:?} is root, and qemu-img must run as a user without rights: name another as storage.qemu_img_user"
    )]
    Root(String),
    /// The host's list of users cannot be read.
    #[error("could not look up the user {name:?}")]
    Unreadable {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
}

impl Account {
    /// The user of this name. Asks the host's list of users, so it may block.
    ///
    /// # Errors
    /// [`AccountError`]: there is none, or it is root.
    pub fn named(name: &str) -> Result<Self, AccountError> {
        let user = User::from_name(name).map_err(|source| AccountError::Unreadable {
            name: name.to_owned(),
            source,
        })?;
        let user = user.ok_or_else(|| AccountError::Unknown(name.to_owned()))?;
        if user.uid.is_root() {
            return Err(AccountError::Root(name.to_owned()));
        }
        Ok(Self {
            uid: user.uid,
            gid: user.gid,
        })
    }

    /// Its id.
    #[must_use]
    pub const fn uid(self) -> u32 {
        self.uid.as_raw()
    }

    /// The id of its own group.
    #[must_use]
    pub const fn gid(self) -> u32 {
        self.gid.as_raw()
    }
}

/// What a tool sees of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// Nothing at all, not even loopback.
    None,
}

/// How a tool is kept from doing harm.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// Who it becomes.
    pub account: Account,
    /// What it sees of the network.
    pub network: Network,
    /// What it sees of the host's files.
    pub view: View,
}

impl Confinement {
    /// Makes the child give up everything before it becomes the tool. It begins in this directory, of which it sees what it
    /// was shown in it.
    pub(super) fn impose_on(&self, command: &mut Command, directory: &Path) -> io::Result<()> {
        let account = self.account;
        let kept = self.view.private.then_some(DAC_OVERRIDE);
        let namespaces = match self.network {
            Network::Host => CloneFlags::empty(),
            Network::None => CloneFlags::CLONE_NEWNET,
        };
        let mut root = PrivateRoot::new(&self.view, account.gid, directory)?;
        let impose = move || -> io::Result<()> {
            root.open_trees()?;
            unshare(namespaces | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)?;
            root.enter()?;
            drop_bounding_set(kept)?;
            setgroups(&[])?;
            let Account { uid, gid } = account;
            setresgid(gid, gid, gid)?;
            set_keepcaps(kept.is_some())?;
            setresuid(uid, uid, uid)?;
            if let Some(capability) = kept {
                keep(capability)?;
            }
            set_no_new_privs()?;
            Ok(())
        };
        // SAFETY: the closure only makes system calls on values it owns; turning their errno into an `io::Error` does
        // not allocate.
        unsafe {
            command.pre_exec(impose);
        }
        Ok(())
    }
}

/// No program that is run from now on can have any other capability.
fn drop_bounding_set(kept: Option<libc::c_ulong>) -> io::Result<()> {
    for capability in (0..=MAX_CAPABILITY).filter(|it| Some(*it) != kept) {
        // SAFETY: PR_CAPBSET_DROP takes one number and touches no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct` of capset(2).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct` of capset(2): 32 of the capabilities.
#[repr(C)]
#[derive(Clone, Copy)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities but this one of the first 32, which the tool is to have.
fn keep(capability: libc::c_ulong) -> io::Result<()> {
    let bit = 1 << capability;
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let none = Capabilities {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    let one = Capabilities {
        effective: bit,
        permitted: bit,
        inheritable: bit,
    };
    let sets = [one, none];
    // SAFETY: capset reads a header and, with this version, two sets, which live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    Errno::result(result)?;
    let none: libc::c_ulong = 0;
    // SAFETY: PR_CAP_AMBIENT takes numbers and touches no memory.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, AMBIENT_RAISE, capability, none, none) };
    Errno::result(result)?;
    Ok(())
}
