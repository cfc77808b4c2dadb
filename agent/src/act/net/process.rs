//! Processes by id and time of birth: together they name one process for ever, so a signal never hits another
//! one that got the same id later.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::error::NetError;

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

impl Process {
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
