//! A tool without rights, imposed between fork and exec: another user, no capability, nothing that gives either back,
//! and no network if the caller says so. For tools that read what strangers made.
//!
//! Its unsafe code must stay free of allocation, locks and logging: it runs in the child of a process with many
//! threads.

#![expect(
    unsafe_code,
    reason = "a closure between fork and exec is the only place where rights can be dropped before the tool runs"
)]

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, unshare},
    sys::prctl::set_no_new_privs,
    unistd::{Gid, Uid, User, setgroups, setresgid, setresuid},
};

/// Above the highest capability of any kernel; the kernel itself says where its list ends.
const MAX_CAPABILITY: libc::c_ulong = 63;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// Who it becomes.
    pub account: Account,
    /// What it sees of the network.
    pub network: Network,
}

impl Confinement {
    /// Makes the child give up everything before it becomes the tool. Its working directory was entered before that:
    /// the tool reaches files in it also where it could not have come there itself.
    pub(super) fn impose_on(self, command: &mut Command) {
        let impose = move || -> io::Result<()> {
            if self.network == Network::None {
                unshare(CloneFlags::CLONE_NEWNET)?;
            }
            drop_bounding_set()?;
            setgroups(&[])?;
            let Account { uid, gid } = self.account;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
            set_no_new_privs()?;
            Ok(())
        };
        // SAFETY: the closure only makes system calls on values it owns; turning their errno into an `io::Error` does
        // not allocate.
        unsafe {
            command.pre_exec(impose);
        }
    }
}

/// No program that is run from now on can have any capability.
fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..=MAX_CAPABILITY {
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
