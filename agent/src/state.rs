//! The agent's state directory: who this host is, how often its agent has started, and where everything else is.
//!
//! ```text
//!   <state>/host_id      this host's UUID, made once and never again
//!   <state>/session      how often an agent has started here
//!   <state>/lock         held while an agent runs
//!   <state>/ballast      space that is kept for a full disk        (ballast)
//!   <state>/journal/     the documents this host was sent   (crate::inbox::journal)
//!   <state>/instances/   disks and consoles of instances    (crate::act::storage)
//!   <state>/images/      the image cache                    (crate::act::storage)
//!   <state>/networks/    files of DHCP servers              (crate::act::net)
//! ```
//!
//! A disk that is full, or cannot be written, is no reason not to start: the agent is who empties it.
//!
//! A host is its UUID. So a damaged or missing identity is an error that an operator decides about; nothing here
//! ever makes up a new one where there was one before.

pub mod ballast;

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_common::ids::HostId;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use self::ballast::Ballast;
use crate::act::storage::atomic::{TEMPORARY_PREFIX, write_atomically};

/// QEMU and dnsmasq pass through to what they were told of, and list nothing.
const PASSAGE: u32 = 0o711;
/// Nobody else needs it.
const PRIVATE: u32 = 0o700;
/// How long the lock is waited for: an agent that was killed in the middle of starting a tool leaves it to that tool for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another agent uses it.
    #[error(
        "another berth-agent is running on {} (it holds the lock there); two agents on one host would work against \
         each other",
        .0.display()
    )]
    Locked(PathBuf),
    /// A file holds something else than it should.
    #[error(
        "{} is damaged: it holds {found:?} instead of {expected}; put back what was there, or, if this is a fresh \
         host without instances, move the state directory away",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it holds, cut to a readable length.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// There was an identity, and it is gone.
    #[error(
        "{} is missing, but an agent has run here before; without it this host would be a stranger to its own \
         instances. Restore the file (its UUID is in the scheduler's host list), or, if this is to be a new host, \
         move the state directory away",
        .0.display()
    )]
    IdentityLost(PathBuf),
}

/// An opened state directory. It is locked as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    host_id: HostId,
    session: u64,
    session_error: Option<StateError>,
    ballast: Ballast,
    _lock: Flock<File>,
}

impl StateDir {
    /// Opens a state directory, makes what is missing, and counts this start. A count that cannot be written is
    /// kept in memory: see [`Self::session_error`].
    ///
    /// # Errors
    /// [`StateError`]; the text says what to do.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        make_directory(root, PASSAGE)?;
        let lock = lock(root)?;
        remove_leftovers(root);
        let ballast = Ballast::of(root);
        let host_id = host_id(root, &ballast)?;
        for (name, mode) in [
            ("journal", PRIVATE),
            ("instances", PASSAGE),
            ("images", PASSAGE),
            ("networks", PASSAGE),
        ] {
            make_directory(&root.join(name), mode)?;
        }
        let session = last_session(root)?.saturating_add(1);
        let session_error = write_session(root, session, &ballast).err();
        if let Err(error) = ballast.keep() {
            tracing::warn!(%error, "no space could be kept for a full disk");
        }
        Ok(Self {
            root: root.to_owned(),
            host_id,
            session,
            session_error,
            ballast,
            _lock: lock,
        })
    }

    /// Mends what a full disk prevented, if there is room again: the count of starts, and the ballast.
    ///
    /// # Errors
    /// The count of starts cannot be written. Whoever starts next would count as the same start, and the scheduler
    /// would take its first reports for old ones.
    pub fn mend(&mut self) -> Result<(), &StateError> {
        if self.session_error.is_some() {
            self.session_error = write_session(&self.root, self.session, &self.ballast).err();
        }
        if self.session_error.is_none()
            && let Err(error) = self.ballast.keep()
        {
            tracing::debug!(%error, "no space could be kept for a full disk");
        }
        self.session_error.as_ref().map_or(Ok(()), Err)
    }

    /// Why this start could not be counted on disk, if so.
    #[must_use]
    pub const fn session_error(&self) -> Option<&StateError> {
        self.session_error.as_ref()
    }

    /// The space that is kept for a full disk.
    #[must_use]
    pub const fn ballast(&self) -> &Ballast {
        &self.ballast
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who this host is.
    #[must_use]
    pub const fn host_id(&self) -> HostId {
        self.host_id
    }

    /// How often an agent has started here, this time included.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// Where the documents are.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// Where files of networks are.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io {
        operation,
        path,
        source,
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), StateError> {
    let existed = path.is_dir();
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed("make the directory", path))?;
    if !existed {
        // The umask of whoever started the agent does not count.
        fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(failed("set the permissions of", path))?;
    }
    Ok(())
}

fn lock(root: &Path) -> Result<Flock<File>, StateError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open the lock", &path))?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) if Instant::now() < give_up => file = again,
            Err((_, Errno::EWOULDBLOCK)) => return Err(StateError::Locked(root.to_owned())),
            Err((_, other)) => {
                return Err(StateError::Io {
                    operation: "lock",
                    path,
                    source: other.into(),
                });
            }
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// The content of a small file; `None`: there is none.
fn read(path: &Path) -> Result<Option<String>, StateError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn damaged(path: &Path, found: &str, expected: &'static str) -> StateError {
    StateError::Damaged {
        path: path.to_owned(),
        found: found.chars().take(60).collect(),
        expected,
    }
}

/// Removes what a killed agent was writing here. It does no harm, so failing does neither.
fn remove_leftovers(root: &Path) {
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let is_ours = entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEMPORARY_PREFIX);
            if is_ours && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    if let Err(error) = remove() {
        tracing::warn!(%error, directory = %root.display(), "leftovers of interrupted writes could not be removed");
    }
}

fn host_id(root: &Path, ballast: &Ballast) -> Result<HostId, StateError> {
    let path = root.join("host_id");
    if let Some(text) = read(&path)? {
        return text.parse().map_err(|_| damaged(&path, &text, "a UUID"));
    }
    if root.join("session").exists() {
        return Err(StateError::IdentityLost(path));
    }
    let id = HostId::new();
    ballast
        .spend(|| write_atomically(&path, format!("{id}\n").as_bytes()))
        .map_err(failed("write", &path))?;
    tracing::info!(host_id = %id, path = %path.display(), "this host got its identity");
    Ok(id)
}

/// How often agents have started here, as it was written last.
fn last_session(root: &Path) -> Result<u64, StateError> {
    let path = root.join("session");
    match read(&path)? {
        None => Ok(0),
        Some(text) => text
            .parse::<u64>()
            .map_err(|_| damaged(&path, &text, "a number of starts")),
    }
}

fn write_session(root: &Path, session: u64, ballast: &Ballast) -> Result<(), StateError> {
    let path = root.join("session");
    ballast
        .spend(|| write_atomically(&path, format!("{session}\n").as_bytes()))
        .map_err(failed("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_stays_and_the_session_counts() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("berth");
        let first = StateDir::open(&root).unwrap();
        let (id, session) = (first.host_id(), first.session());
        drop(first);
        let second = StateDir::open(&root).unwrap();
        assert_eq!(second.host_id(), id);
        assert_eq!((session, second.session()), (1, 2));
        assert_eq!(
            fs::metadata(second.journal()).unwrap().permissions().mode() & 0o777,
            PRIVATE
        );
        assert_eq!(
            fs::metadata(&root).unwrap().permissions().mode() & 0o777,
            PASSAGE
        );
    }

    /// As a tool does that was being started when the agent before was killed.
    #[test]
    fn a_lock_that_is_held_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(first);
        });
        assert!(StateDir::open(directory.path()).is_ok());
        holder.join().unwrap();
    }

    #[test]
    fn a_second_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _first = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::Locked(_)), "{error}");
    }

    #[test]
    fn a_damaged_or_lost_identity_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        drop(StateDir::open(directory.path()).unwrap());
        let path = directory.path().join("host_id");
        fs::write(&path, b"").unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::IdentityLost(_)), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_agent_was_writing_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at(".new-0f-session"), b"4").unwrap();
        fs::write(at(".kept"), b"").unwrap();
        let _state = StateDir::open(directory.path()).unwrap();
        assert!(!at(".new-0f-session").exists());
        assert!(at(".kept").exists());
    }

    #[test]
    fn a_damaged_session_is_told_and_not_guessed() {
        let directory = tempfile::tempdir().unwrap();
        drop(StateDir::open(directory.path()).unwrap());
        fs::write(directory.path().join("session"), b"\0\0\0").unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    }
}
