//! Which hosts' heartbeats arrive: receiver-side, on the monotonic clock, in memory.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use berth_common::{
    ids::HostId,
    message::{heartbeat::Heartbeat, view::Resources},
};

/// When each host was last heard of, and what of it is in the database.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: HashMap<HostId, Instant>,
    used_now: HashMap<HostId, Resources>,
    written: HashMap<HostId, (Instant, Heartbeat)>,
}

/// How long unchanged facts stay unwritten, and how long a change of measured usage alone may.
pub const WRITE_AFTER: Duration = Duration::from_secs(30);

impl Liveness {
    /// A host was heard of.
    pub fn heard(&mut self, host: HostId, at: Instant) {
        self.heard.insert(host, at);
    }

    /// A heartbeat came.
    pub fn note(&mut self, heartbeat: &Heartbeat, at: Instant) {
        self.heard(heartbeat.host_id, at);
        self.used_now.insert(heartbeat.host_id, heartbeat.used_now);
    }

    /// What a host last measured; `None`: it was not heard of since this scheduler started.
    #[must_use]
    pub fn used_now(&self, host: HostId) -> Option<Resources> {
        self.used_now.get(&host).copied()
    }

    /// How long ago a host was heard of; `None`: never.
    #[must_use]
    pub fn age(&self, host: HostId, now: Instant) -> Option<Duration> {
        self.heard
            .get(&host)
            .map(|at| now.saturating_duration_since(*at))
    }

    /// How many of the hosts that were ever heard of are up and down.
    #[must_use]
    pub fn count(&self, timeout: Duration, now: Instant) -> (usize, usize) {
        let up = self
            .heard
            .values()
            .filter(|at| now.saturating_duration_since(**at) <= timeout)
            .count();
        (up, self.heard.len() - up)
    }

    /// Whether a heartbeat says anything that the database should know now: other facts than it has, or the same
    /// after a while.
    #[must_use]
    pub fn needs_writing(&self, heartbeat: &Heartbeat, now: Instant) -> bool {
        self.written
            .get(&heartbeat.host_id)
            .is_none_or(|(at, written)| {
                now.saturating_duration_since(*at) >= WRITE_AFTER || !same_facts(written, heartbeat)
            })
    }

    /// Remembers that these facts are in the database.
    pub fn written(&mut self, heartbeat: &Heartbeat, now: Instant) {
        self.written
            .insert(heartbeat.host_id, (now, heartbeat.clone()));
    }
}

/// Equal in everything but the sequence number and what is measured from moment to moment.
fn same_facts(a: &Heartbeat, b: &Heartbeat) -> bool {
    let mut a = a.clone();
    a.sequence = b.sequence;
    a.used_now = b.used_now;
    a == *b
}
