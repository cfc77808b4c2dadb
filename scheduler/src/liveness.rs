//! Which hosts' heartbeats arrive: receiver-side, on the monotonic clock, in memory.
//!
//! ```text
//!            heard                      silent for long
//!   (new) ─────────▶ up ───────────────────┬───────────▶ down
//!                    ▲                     │ many at once  ▲ the others are back, or
//!                    │ heard               ▼               │ others are heard, these not for very long
//!                    └──────────────── suspected ──────────┘
//! ```
//!
//! Silence counts only while this scheduler listens. While it has no broker nobody can be heard, so that time
//! makes nobody old; and after its start, hosts that were alive when it last listened get the usual time to be
//! heard again. When a large share of the hosts falls silent at once, the likelier fault is between them and this
//! scheduler: it suspects itself, and declares none of them down, unless others are heard and these stay silent for
//! ten times as long as a host may.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use berth_common::{
    ids::HostId,
    message::{
        heartbeat::Heartbeat,
        view::{HostState, Resources},
    },
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
    /// Silent, and it is their fault.
    down: HashSet<HostId>,
    /// Silent, and it may be ours.
    suspected: HashSet<HostId>,
}

/// How soon the database should know of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// It knows.
    None,
    /// It knows all but how lately it was said.
    Soon,
    /// There are facts it does not know.
    AtOnce,
}

/// When silence means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A host not heard of for so long is silent.
    pub timeout: Duration,
    /// When more than this share of the hosts is silent at once, in percent, the scheduler suspects itself. 100: never.
    pub suspect_self_percent: u8,
}

impl Patience {
    /// For how long silent hosts are gathered before any of them is declared down.
    fn window(self) -> Duration {
        self.timeout / 2
    }

    /// After so long nobody is suspected any more.
    fn in_the_end(self) -> Duration {
        self.timeout.saturating_mul(10)
    }
}

/// With fewer silent hosts than this there is nothing to suspect: two of three may well have lost power.
const MIN_SUSPECTED: usize = 3;

/// How many hosts are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Heard of.
    pub up: usize,
    /// Silent, or never heard of.
    pub down: usize,
    /// Silent, all at once.
    pub suspected: usize,
}

/// How long unchanged facts stay unwritten, and how long a change of measured usage alone may.
pub const WRITE_AFTER: Duration = Duration::from_secs(30);
/// How much later it may be written: until the next heartbeat, and until others share the transaction.
const WRITE_LATE: Duration = Duration::from_secs(15);

impl Liveness {
    /// A host was heard of.
    pub fn heard(&mut self, host: HostId, at: Instant) {
        self.heard.insert(host, at);
    }

    /// A heartbeat came. Answers how old the host had become: `None`: it was never heard of.
    pub fn note(&mut self, heartbeat: &Heartbeat, at: Instant) -> Option<Duration> {
        let host = heartbeat.host_id;
        let before = self.age(host, at);
        // One that has another's name is not there for anybody until it was written down under a name of its own.
        if !self.conflicts.contains(&host) {
            self.heard(host, at);
        }
        self.used_now.insert(host, heartbeat.used_now);
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

    /// Whether a host may be given something to do: it was heard of lately.
    #[must_use]
    pub fn is_alive(&self, host: HostId, timeout: Duration, now: Instant) -> bool {
        self.age(host, now).is_some_and(|age| age <= timeout)
    }

    /// Decides who is down, from who was silent until now. `known`: how many hosts there are, heard of or not.
    ///
    /// Heartbeats are spread over time, so hosts that vanish at one moment fall silent one after the other. Nobody is
    /// declared down before all of these had the time to.
    pub fn judge(&mut self, patience: Patience, known: usize, now: Instant) -> Count {
        let silence: HashMap<HostId, Duration> = self
            .heard
            .keys()
            .filter_map(|host| Some((*host, self.age(*host, now)?)))
            .filter(|(_, age)| *age > patience.timeout)
            .collect();
        self.down.retain(|host| silence.contains_key(host));
        let fresh: HashSet<HostId> = silence
            .keys()
            .copied()
            .filter(|host| !self.down.contains(host))
            .collect();
        let up = self.heard.len() - silence.len();
        self.suspected.clear();
        let is_silent_for =
            |host: &HostId, least: Duration| silence.get(host).copied().unwrap_or_default() > least;
        if fresh.len() >= MIN_SUSPECTED && is_more(fresh.len(), up + fresh.len(), patience) {
            // While some are heard, those that stay silent for very long are gone, however many they are.
            let (gone, suspected) = fresh
                .into_iter()
                .partition(|host| up > 0 && is_silent_for(host, patience.in_the_end()));
            self.suspected = suspected;
            self.down.extend::<HashSet<HostId>>(gone);
        } else {
            let least = patience.timeout.saturating_add(patience.window());
            self.down
                .extend(fresh.into_iter().filter(|host| is_silent_for(host, least)));
        }
        let suspected = self.suspected.len();
        Count {
            up,
            down: known.saturating_sub(up).saturating_sub(suspected),
            suspected,
        }
    }

    /// The state of a host as it was last judged. A host that was never heard of is down.
    #[must_use]
    pub fn state(&self, host: HostId) -> HostState {
        if self.heard.contains_key(&host) && !self.down.contains(&host) {
            HostState::Up
        } else {
            HostState::Down
        }
    }

    /// Whether anything was heard of a host since it was last forgotten.
    #[must_use]
    pub fn knows(&self, host: HostId) -> bool {
        self.heard.contains_key(&host) || self.conflicts.contains(&host)
    }

    /// Forgets a host.
    pub fn forget(&mut self, host: HostId) {
        self.heard.remove(&host);
        self.used_now.remove(&host);
        self.written.remove(&host);
        self.conflicts.remove(&host);
        self.down.remove(&host);
        self.suspected.remove(&host);
    }

    /// How soon the database should know of a heartbeat.
    #[must_use]
    pub fn urgency(&self, heartbeat: &Heartbeat, now: Instant) -> Urgency {
        match self.written.get(&heartbeat.host_id) {
            Some((_, written)) if !same_facts(written, heartbeat) => Urgency::AtOnce,
            Some((at, _)) if now.saturating_duration_since(*at) < WRITE_AFTER => Urgency::None,
            Some(_) => Urgency::Soon,
            None => Urgency::AtOnce,
        }
    }

    /// Remembers that these facts are in the database.
    pub fn written(&mut self, heartbeat: &Heartbeat, now: Instant) {
        if self.conflicts.remove(&heartbeat.host_id) {
            self.heard(heartbeat.host_id, now);
        }
        self.written
            .insert(heartbeat.host_id, (now, heartbeat.clone()));
    }

    /// Remembers that a host has another one's name; answers whether that is news.
    pub fn conflicts(&mut self, host: HostId) -> bool {
        self.heard.remove(&host);
        self.conflicts.insert(host)
    }
}

/// Whether so many of all are more than the share that makes a scheduler suspect itself.
fn is_more(silent: usize, all: usize, patience: Patience) -> bool {
    silent.saturating_mul(100) > all.saturating_mul(usize::from(patience.suspect_self_percent))
}

/// Equal in everything but the sequence number and what is measured from moment to moment.
fn same_facts(a: &Heartbeat, b: &Heartbeat) -> bool {
    let mut a = a.clone();
    a.sequence = b.sequence;
    a.used_now = b.used_now;
    for (pool, other) in a.pools.iter_mut().zip(&b.pools) {
        pool.used_bytes = other.used_bytes;
        pool.provisioned_bytes = other.provisioned_bytes;
        pool.metadata_percent = other.metadata_percent;
    }
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
    let silence = timeout
        .saturating_add(WRITE_AFTER)
        .saturating_add(WRITE_LATE);
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
        assert!(liveness.is_alive(host, 10 * SECOND, start + 100 * SECOND));
        liveness.hears_again(start + 105 * SECOND);
        assert_eq!(liveness.age(host, start + 107 * SECOND), Some(7 * SECOND));
        assert!(!liveness.is_alive(host, 6 * SECOND, start + 107 * SECOND));
    }

    const PATIENCE: Patience = Patience {
        timeout: Duration::from_secs(10),
        suspect_self_percent: 50,
    };

    fn counts(up: usize, down: usize, suspected: usize) -> Count {
        Count {
            up,
            down,
            suspected,
        }
    }

    #[test]
    fn one_host_after_another_goes_down_but_most_at_once_are_the_schedulers_own_fault() {
        let start = Instant::now();
        let hosts: Vec<HostId> = (0..10).map(|_| HostId::new()).collect();
        let mut liveness = Liveness::default();
        let hear = |liveness: &mut Liveness, which: std::ops::Range<usize>, seconds: u32| {
            for host in &hosts[which] {
                liveness.heard(*host, start + seconds * SECOND);
            }
        };
        hear(&mut liveness, 0..10, 0);
        hear(&mut liveness, 1..10, 20);
        assert_eq!(
            liveness.judge(PATIENCE, 10, start + 21 * SECOND),
            counts(9, 1, 0)
        );
        assert_eq!(liveness.state(hosts[0]), HostState::Down);

        // Five of the nine that were up: more than half.
        hear(&mut liveness, 1..5, 40);
        assert_eq!(
            liveness.judge(PATIENCE, 10, start + 41 * SECOND),
            counts(4, 1, 5)
        );
        assert_eq!(liveness.state(hosts[9]), HostState::Up);
        assert!(!liveness.is_alive(hosts[9], PATIENCE.timeout, start + 41 * SECOND));
        assert_eq!(liveness.state(hosts[0]), HostState::Down);

        // One more is heard of: the others are no majority any more, and it is their own fault.
        hear(&mut liveness, 1..6, 60);
        assert_eq!(
            liveness.judge(PATIENCE, 10, start + 61 * SECOND),
            counts(5, 5, 0)
        );
        assert_eq!(liveness.state(hosts[9]), HostState::Down);
        hear(&mut liveness, 0..10, 62);
        assert_eq!(
            liveness.judge(PATIENCE, 10, start + 63 * SECOND),
            counts(10, 0, 0)
        );
    }

    #[test]
    fn hosts_that_vanish_at_one_moment_are_suspected_together_however_spread_their_heartbeats_are()
    {
        let start = Instant::now();
        let mut liveness = Liveness::default();
        let hosts: Vec<HostId> = (0..100).map(|_| HostId::new()).collect();
        // The last heartbeats before the network broke, evenly over ten seconds.
        for (phase, host) in (0_u32..).zip(&hosts) {
            liveness.heard(*host, start + phase * SECOND / 10);
        }
        for second in 10..60 {
            liveness.judge(PATIENCE, 100, start + second * SECOND);
            assert!(
                hosts
                    .iter()
                    .all(|host| liveness.state(*host) == HostState::Up),
                "after {second} s"
            );
        }
        let count = liveness.judge(PATIENCE, 100, start + 60 * SECOND);
        assert_eq!(count, counts(0, 0, 100));
    }

    #[test]
    fn suspicion_ends_where_others_are_heard() {
        let start = Instant::now();
        let mut liveness = Liveness::default();
        let hosts: Vec<HostId> = (0..5).map(|_| HostId::new()).collect();
        for host in &hosts {
            liveness.heard(*host, start);
        }
        // Three of five have lost power for good.
        for (second, expected) in [
            (60, counts(2, 0, 3)),
            (99, counts(2, 0, 3)),
            (101, counts(2, 3, 0)),
        ] {
            for host in &hosts[..2] {
                liveness.heard(*host, start + second * SECOND);
            }
            assert_eq!(
                liveness.judge(PATIENCE, 5, start + second * SECOND),
                expected,
                "after {second} s"
            );
        }
        assert_eq!(liveness.state(hosts[4]), HostState::Down);
        // Where nobody is heard, it stays.
        let mut liveness = Liveness::default();
        for host in hosts {
            liveness.heard(host, start);
        }
        assert_eq!(
            liveness.judge(PATIENCE, 5, start + 1000 * SECOND),
            counts(0, 0, 5)
        );
    }

    #[test]
    fn a_small_cloud_never_suspects_itself() {
        let start = Instant::now();
        let hosts = [HostId::new(), HostId::new()];
        let mut liveness = Liveness::default();
        for host in hosts {
            liveness.heard(host, start);
        }
        assert_eq!(
            liveness.judge(PATIENCE, 2, start + 60 * SECOND),
            counts(0, 2, 0)
        );
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
