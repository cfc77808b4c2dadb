//! Processes by id and time of birth: together they name one process for ever, so a signal never hits another
//! one that got the same id later.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

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

/// What the kernel tells of a process at once.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// Which one it is.
    pub(super) process: Process,
    /// The name of its program's file, cut to 15 bytes. It is there until the very end, the command line is not.
    pub(super) name: String,
    /// The id of its parent.
    pub(super) parent: i32,
    /// The id of the process that its group began with.
    pub(super) group: i32,
}

impl Look {
    /// At the process with this id, if there is one that has not ended.
    pub(super) fn at(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name in parentheses may itself hold spaces and parentheses; the state follows the last one, and
        // the time of birth is the 20th field from there (proc_pid_stat(5)).
        let (head, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        Some(Self {
            process: Process {
                pid,
                born: fields.get(19)?.parse().ok()?,
            },
            name: head.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
        })
    }
}

impl Process {
    /// The process with this id, if there is one that has not ended.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Look::at(pid).map(|look| look.process)
    }

    /// All processes, by id.
    pub(super) fn all() -> io::Result<Vec<i32>> {
        let entries = fs::read_dir("/proc")?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect())
    }

    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it was started with this very argument.
    pub(super) fn has_argument(self, argument: &Path) -> bool {
        self.arguments()
            .iter()
            .any(|found| found.as_bytes() == argument.as_os_str().as_bytes())
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

    /// Sends it a signal; `false`: it has ended.
    pub(super) fn send(self, signal: Signal) -> io::Result<bool> {
        if !self.is_alive() {
            return Ok(false);
        }
        sent(kill(Pid::from_raw(self.pid), signal))
    }

    /// Sends a signal to it and all of its group, if that began with it; `false`: it has ended.
    pub(super) fn send_with_group(self, signal: Signal) -> io::Result<bool> {
        match Look::at(self.pid).filter(|look| look.process == self) {
            Some(look) if look.group == self.pid => sent(killpg(Pid::from_raw(self.pid), signal)),
            Some(_) => sent(kill(Pid::from_raw(self.pid), signal)),
            None => Ok(false),
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

fn sent(result: nix::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
