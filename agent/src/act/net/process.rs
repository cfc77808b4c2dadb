//! The processes of the network's servers: finding the one that was started, and ending it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{error::NetError, netns::Name};
pub(super) use crate::act::process::Process;

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
        let all = Self::all().map_err(NetError::file("list", "/proc"))?;
        Ok(all.into_iter().filter_map(Self::of).find(is_ours))
    }

    /// Whether it is in a namespace.
    pub(super) fn is_in(self, name: Name) -> bool {
        match name {
            Name::Present(inode) => self.namespace() == Some(inode),
            Name::Absent | Name::Empty => false,
        }
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
        let what = format!("send {signal} to process {}", self.pid);
        self.send(signal).map_err(NetError::system(what))
    }
}
