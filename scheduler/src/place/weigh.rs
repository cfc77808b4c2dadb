//! Scores of hosts: absolute numbers per host, so that no order of comparison can matter.

use super::Candidate;

/// How good a host is; the highest wins, and of equals the lowest host id.
///
/// Free memory decides, then free CPU, then free disk: instances spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    memory_mb: u64,
    vcpus: u64,
    disk_gb: u64,
}

/// The score of a host that passed every filter.
#[must_use]
pub fn score(host: &Candidate) -> Score {
    let free = host.free();
    Score {
        memory_mb: free.memory_mb.get(),
        vcpus: free.vcpus.get(),
        disk_gb: free.disk_gb.get(),
    }
}
