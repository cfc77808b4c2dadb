//! Processes by id and time of birth: together they name one process for ever, so a signal never hits another
//! one that got the same id later.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::{error::NetError, netns::Name};

/// How often a process that was told to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Its id.
    pub(super) pid: i32,
    /// When it was born, in clock ticks since the machine started.
    pub(super) born: u64,
}

/// What is known of a process that may have been started.
#[derive(Debug)]
pub(super) struct Known {
    /// The very one that was recorded.
    pub(super) recorded: Option<Process>,
    /// An id that it may have.
    pub(super) named: Option<i32>,
    /// The namespace it shall be in.
    pub(super) namespace: Name,
    /// An argument by which it is known.
    pub(super) mark: PathBuf,
}

impl Process {
    /// The process, if it runs: the one whose id is known, else any one that looks like it. The command line alone could be
    /// that of another agent's, in other namespaces with the same paths; so the process must be in the namespace, or be the
    /// very one that was recorded.
    pub(super) fn find(known: &Known) -> Result<Option<Self>, NetError> {
        let is_ours = |process: &Self| {
            (known.recorded == Some(*process) || process.is_in(known.namespace))
                && process.has_argument(&known.mark)
        };
        let named = [known.named, known.recorded.map(|process| process.pid)];
        let found = named
            .into_iter()
            .flatten()
            .filter_map(Self::of)
            .find(is_ours);
        if found.is_some() || !matches!(known.namespace, Name::Present(_)) {
            return Ok(found);
        }
        Ok(Self::all()?.into_iter().filter_map(Self::of).find(is_ours))
    }

    /// Whether it is in a namespace.
    pub(super) fn is_in(self, name: Name) -> bool {
        match name {
            Name::Present(inode) => self.namespace() == Some(inode),
            Name::Absent | Name::Empty => false,
        }
    }

    /// The process with this id, if there is one that has not ended.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may itself hold spaces and parentheses; the state follows the last one, and
        // the time of birth is the 20th field from there (proc_pid_stat(5)).
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        Some(Self {
            pid,
            born: fields.get(19)?.parse().ok()?,
        })
    }

    /// All processes, by id.
    pub(super) fn all() -> Result<Vec<i32>, NetError> {
        let entries = fs::read_dir("/proc").map_err(NetError::file("list", "/proc"))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect())
    }

    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it was started with this very argument.
    pub(super) fn has_argument(self, argument: &Path) -> bool {
        let Ok(line) = fs::read(format!("/proc/{}/cmdline", self.pid)) else {
            return false;
        };
        line.split(|byte| *byte == 0)
            .skip(1)
            .any(|found| found == argument.as_os_str().as_bytes())
            && self.is_alive()
    }

    /// What it was started with, without its own name.
    pub(super) fn arguments(self) -> Vec<OsString> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = line.strip_suffix(&[0]).unwrap_or(&line);
        line.split(|byte| *byte == 0)
            .skip(1)
            .map(|argument| OsString::from_vec(argument.to_owned()))
            .collect()
    }

    /// Whether it runs the file that is now at this path. A file that is not there is no reason to think otherwise: nothing
    /// could take its place.
    pub(super) fn runs(self, program: &Path) -> bool {
        let Ok(installed) = fs::metadata(program) else {
            return true;
        };
        fs::metadata(format!("/proc/{}/exe", self.pid)).is_ok_and(|running| {
            (running.dev(), running.ino()) == (installed.dev(), installed.ino())
        })
    }

    /// Ends it, and waits until it has ended; `false`: it does not end.
    pub(super) async fn stop(self, limit: Duration) -> Result<bool, NetError> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            self.signal(signal)?;
            if self.ends_within(limit).await {
                break;
            }
        }
        Ok(!self.is_alive())
    }

    /// The inode of its network namespace.
    pub(super) fn namespace(self) -> Option<u64> {
        let about = fs::metadata(format!("/proc/{}/ns/net", self.pid)).ok()?;
        self.is_alive().then(|| about.ino())
    }

    /// Sends it a signal; `false`: it has ended.
    pub(super) fn signal(self, signal: Signal) -> Result<bool, NetError> {
        if !self.is_alive() {
            return Ok(false);
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(NetError::system(format!(
                "send {signal} to process {}",
                self.pid
            ))(io::Error::from(errno))),
        }
    }

    /// Waits for its end; `false`: it goes on.
    pub(super) async fn ends_within(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
        true
    }
}
