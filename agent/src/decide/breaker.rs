//! Whether somebody who no longer answers is still asked. Pure; time comes in.
//!
//! ```text
//!            as many misses in a row as are borne
//!   closed ───────────────────────────────────────▶ open ◀───────────┐
//!     ▲ ▲                                            │               │ it misses too
//!     │ └─────────── anything is answered ───────────┤ after a pause │
//!     │                                              ▼               │
//!     └──────────── the probe is answered ──────── probing ──────────┘
//! ```
//!
//! While it is open or probing, nobody waits for an answer that will not come. An answer counts however bad its news:
//! somebody who says no is there.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// When it opens, and when it tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// So many misses in a row open it.
    pub misses: u32,
    /// How long it stays open until the next probe.
    pub pause: Duration,
    /// How long a probe may take: one that was not heard of for twice as long was given up by whoever made it.
    pub probe: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            misses: 3,
            pause: Duration::from_secs(2),
            probe: Duration::from_secs(2),
        }
    }
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Call.
    Call,
    /// Find out first whether there is anybody; then say so with [`Breaker::answered`] or [`Breaker::missed`].
    Probe,
    /// Do not: nothing was answered since then.
    Refused(DateTime<Utc>),
}

/// What it does with callers just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It lets all of them through.
    Closed,
    /// It refuses them.
    Open,
    /// It lets one find out.
    Probing,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::Probing];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

/// What is known of somebody's answers.
#[derive(Debug, Clone)]
pub struct Breaker {
    limits: BreakerLimits,
    now: Now,
}

#[derive(Debug, Clone, Copy)]
enum Now {
    Closed {
        misses: u32,
    },
    Open {
        since: DateTime<Utc>,
        until: Instant,
    },
    Probing {
        since: DateTime<Utc>,
        began: Instant,
    },
}

impl Breaker {
    /// One that knows of no miss.
    #[must_use]
    pub const fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            now: Now::Closed { misses: 0 },
        }
    }

    /// What it does with callers.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        match self.now {
            Now::Closed { .. } => BreakerState::Closed,
            Now::Open { .. } => BreakerState::Open,
            Now::Probing { .. } => BreakerState::Probing,
        }
    }

    /// What a caller may do who comes now.
    #[must_use]
    pub fn admit(&mut self, at: Instant) -> Admission {
        let (since, is_due) = match self.now {
            Now::Closed { .. } => return Admission::Call,
            Now::Open { since, until } => (since, at >= until),
            Now::Probing { since, began } => {
                let silence = at.saturating_duration_since(began);
                (since, silence >= self.limits.probe.saturating_mul(2))
            }
        };
        if is_due {
            self.now = Now::Probing { since, began: at };
            Admission::Probe
        } else {
            Admission::Refused(since)
        }
    }

    /// Something was answered.
    pub fn answered(&mut self) {
        self.now = Now::Closed { misses: 0 };
    }

    /// A call, or the probe, got no answer in time. `wall`: the same moment on the wall.
    pub fn missed(&mut self, at: Instant, wall: DateTime<Utc>) {
        let until = at.checked_add(self.limits.pause).unwrap_or(at);
        self.now = match self.now {
            Now::Closed { misses } if misses.saturating_add(1) < self.limits.misses => {
                Now::Closed { misses: misses + 1 }
            }
            Now::Closed { .. } => Now::Open { since: wall, until },
            // Calls that began before it opened.
            open @ Now::Open { .. } => open,
            Now::Probing { since, .. } => Now::Open { since, until },
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> BreakerLimits {
        BreakerLimits {
            misses: 3,
            pause: 2 * SECOND,
            probe: 5 * SECOND,
        }
    }

    #[test]
    fn it_opens_after_misses_in_a_row_and_closes_with_the_probe() {
        let (start, wall) = (Instant::now(), DateTime::UNIX_EPOCH);
        let mut breaker = Breaker::new(limits());
        breaker.missed(start, wall);
        breaker.missed(start, wall);
        breaker.answered();
        for _ in 0..3 {
            assert_eq!(breaker.admit(start), Admission::Call);
            breaker.missed(start, wall);
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(start + SECOND), Admission::Refused(wall));
        assert_eq!(breaker.admit(start + 2 * SECOND), Admission::Probe);
        assert_eq!(breaker.admit(start + 3 * SECOND), Admission::Refused(wall));
        breaker.missed(start + 7 * SECOND, wall + 7 * SECOND);
        assert_eq!(breaker.admit(start + 8 * SECOND), Admission::Refused(wall));
        assert_eq!(breaker.admit(start + 9 * SECOND), Admission::Probe);
        // Whoever probed gave up, and said nothing.
        assert_eq!(breaker.admit(start + 18 * SECOND), Admission::Refused(wall));
        assert_eq!(breaker.admit(start + 19 * SECOND), Admission::Probe);
        breaker.answered();
        assert_eq!(breaker.admit(start + 19 * SECOND), Admission::Call);
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Wait(u32),
        Admit,
        Answer,
        Miss,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (0_u32..20).prop_map(Event::Wait),
            4 => Just(Event::Admit),
            1 => Just(Event::Answer),
            4 => Just(Event::Miss),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens(events in prop::collection::vec(event(), 1..80)) {
            let (mut at, wall) = (Instant::now(), DateTime::UNIX_EPOCH);
            let mut breaker = Breaker::new(limits());
            let (mut misses, mut last_probe, mut last_miss) = (0_u32, None, None);
            for event in events {
                let before = breaker.state();
                match event {
                    Event::Wait(seconds) => at += seconds * SECOND,
                    Event::Answer => {
                        breaker.answered();
                        misses = 0;
                        // An answer closes it, whoever got it.
                        prop_assert_eq!(breaker.state(), BreakerState::Closed);
                    }
                    Event::Miss => {
                        breaker.missed(at, wall);
                        misses += 1;
                        last_miss = Some(at);
                        // It is closed exactly as long as there were too few misses in a row.
                        prop_assert_eq!(breaker.state() == BreakerState::Closed, misses < 3);
                    }
                    Event::Admit => match breaker.admit(at) {
                        Admission::Call => prop_assert_eq!(before, BreakerState::Closed),
                        Admission::Refused(_) => prop_assert!(misses >= 3),
                        Admission::Probe => {
                            prop_assert!(misses >= 3);
                            // One at a time, unless one was given up, and never right after a miss that opened it.
                            let again = last_probe.replace(at).is_none_or(|it| at - it >= 2 * SECOND);
                            prop_assert!(again, "two probes at once");
                            prop_assert_eq!(breaker.state(), BreakerState::Probing);
                        }
                    },
                }
            }
            // It never stays shut for ever: the longest pause is over, and somebody may try.
            if breaker.state() != BreakerState::Closed {
                prop_assert!(last_miss.is_some());
                prop_assert_eq!(breaker.admit(at + 10 * SECOND), Admission::Probe);
            }
        }
    }
}
