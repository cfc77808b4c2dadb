//! Which hosts' heartbeats arrive: receiver-side, on the monotonic clock, in memory.
//!
//! Silence counts only while this scheduler listens. While it has no broker nobody can be heard, so that time
//! makes nobody old; and after its start, hosts that were alive when it last listened get the usual time to be
//! heard again.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use berth_common::{
    ids::HostId,
    message::{heartbeat::Heartbeat, view::Resources},
};
use chrono::{DateTime, Utc};

/// When each host was last heard of, and what of it is in the database.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: HashMap<HostId, Instant>,
    used_now: HashMap<HostId, Resources>,
    written: HashMap<HostId, (Instant, Heartbeat)>,
    conflicts: HashSet<HostId>,
    deaf_since: Option<Instant>,
}

/// How long unchanged facts stay unwritten, and how long a change of measured usage alone may.
pub const WRITE_AFTER: Duration = Duration::from_secs(30);

impl Liveness {
    /// A host was heard of.
    pub fn heard(&mut self, host: HostId, at: Instant) {
        self.heard.insert(host, at);
    }

    /// A heartbeat came. Answers how old the host had become: `None`: it was never heard of.
    pub fn note(&mut self, heartbeat: &Heartbeat, at: Instant) -> Option<Duration> {
        let before = self.age(heartbeat.host_id, at);
        self.heard(heartbeat.host_id, at);
        self.used_now.insert(heartbeat.host_id, heartbeat.used_now);
        before
    }

    /// From now on nobody can be heard.
    pub fn goes_deaf(&mut self, now: Instant) {
        self.deaf_since.get_or_insert(now);
    }

    /// From now on everybody can be heard again: the time between made nobody older.
    pub fn hears_again(&mut self, now: Instant) {
        if let Some(since) = self.deaf_since.take() {
            let missed = now.saturating_duration_since(since);
            for at in self.heard.values_mut() {
                *at = at.checked_add(missed).map_or(now, |at| at.min(now));
            }
        }
    }

    /// What a host last measured; `None`: it was not heard of since this scheduler started.
    #[must_use]
    pub fn used_now(&self, host: HostId) -> Option<Resources> {
        self.used_now.get(&host).copied()
    }

    /// For how long a host was not heard of while it could have been; `None`: never heard of.
    #[must_use]
    pub fn age(&self, host: HostId, now: Instant) -> Option<Duration> {
        let now = self.deaf_since.map_or(now, |since| since.min(now));
        self.heard
            .get(&host)
            .map(|at| now.saturating_duration_since(*at))
    }

    /// How many of the hosts that were ever heard of are up and down.
    #[must_use]
    pub fn count(&self, timeout: Duration, now: Instant) -> (usize, usize) {
        let is_up = |host: &&HostId| self.age(**host, now).is_some_and(|age| age <= timeout);
        let up = self.heard.keys().filter(is_up).count();
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
        self.conflicts.remove(&heartbeat.host_id);
        self.written
            .insert(heartbeat.host_id, (now, heartbeat.clone()));
    }

    /// Remembers that a host has another one's name; answers whether that is news.
    pub fn conflicts(&mut self, host: HostId) -> bool {
        self.heard.remove(&host);
        self.conflicts.insert(host)
    }
}

/// Equal in everything but the sequence number and what is measured from moment to moment.
fn same_facts(a: &Heartbeat, b: &Heartbeat) -> bool {
    let mut a = a.clone();
    a.sequence = b.sequence;
    a.used_now = b.used_now;
    a == *b
}

/// Which hosts were alive when some scheduler last listened, by what the database says of their last heartbeats.
/// `timeout`: how long a host may be silent.
#[must_use]
pub fn alive_at_the_end(
    last_heartbeats: &[(HostId, DateTime<Utc>)],
    timeout: Duration,
) -> Vec<HostId> {
    let Some(newest) = last_heartbeats.iter().map(|(_, at)| *at).max() else {
        return Vec::new();
    };
    // What is in the database may be that much older than what was heard.
    let silence = timeout.saturating_add(WRITE_AFTER);
    last_heartbeats
        .iter()
        .filter(|(_, at)| (newest - *at).to_std().is_ok_and(|age| age <= silence))
        .map(|(host, _)| *host)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_counts_only_while_somebody_listens() {
        let start = Instant::now();
        let host = HostId::new();
        let mut liveness = Liveness::default();
        assert_eq!(liveness.age(host, start), None);
        liveness.heard(host, start);
        liveness.goes_deaf(start + 5 * SECOND);
        liveness.goes_deaf(start + 8 * SECOND);
        assert_eq!(liveness.age(host, start + 100 * SECOND), Some(5 * SECOND));
        assert_eq!(liveness.count(10 * SECOND, start + 100 * SECOND), (1, 0));
        liveness.hears_again(start + 105 * SECOND);
        assert_eq!(liveness.age(host, start + 107 * SECOND), Some(7 * SECOND));
        assert_eq!(liveness.count(6 * SECOND, start + 107 * SECOND), (0, 1));
    }

    #[test]
    fn a_restart_forgives_those_who_were_alive_and_no_others() {
        let (alive, dead) = (HostId::new(), HostId::new());
        let end = Utc::now();
        let last = [(alive, end), (dead, end - 3600 * SECOND)];
        assert_eq!(alive_at_the_end(&last, 30 * SECOND), [alive]);
        assert!(alive_at_the_end(&[], SECOND).is_empty());
    }
}
