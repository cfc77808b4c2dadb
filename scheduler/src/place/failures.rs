//! How much a host is distrusted for builds that failed there: a number that grows by one per failure and halves
//! with time, so that no host is a black hole and none is banned for ever.

use std::fmt;

/// Milliseconds on the caller's monotonic clock, from any origin it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

/// A number of failures in thousandths: 1500 is a failure and half of another, long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FailureCount(pub u64);

impl FailureCount {
    /// So many whole failures.
    #[must_use]
    pub const fn whole(failures: u64) -> Self {
        Self(failures.saturating_mul(1000))
    }
}

impl fmt::Display for FailureCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// The failures of a host: what they were worth when the last one came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FailureHistory {
    /// The count at that moment.
    pub count: FailureCount,
    /// That moment.
    pub at: Millis,
}

impl FailureHistory {
    /// What they are worth now: half after each half-life, on straight lines between.
    ///
    /// A moment before the last failure is that moment; a half-life of zero forgets at once.
    #[must_use]
    pub fn decayed(&self, now: Millis, half_life: Millis) -> FailureCount {
        let age = now.0.saturating_sub(self.at.0);
        if age == 0 || self.count.0 == 0 {
            return self.count;
        }
        let (Some(halvings), Some(rest)) =
            (age.checked_div(half_life.0), age.checked_rem(half_life.0))
        else {
            return FailureCount(0);
        };
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        let whole = self.count.0.checked_shr(halvings).unwrap_or(0);
        let lost = u128::from(whole) * u128::from(rest) / (2 * u128::from(half_life.0));
        FailureCount(whole.saturating_sub(u64::try_from(lost).unwrap_or(u64::MAX)))
    }

    /// After one more failure.
    #[must_use]
    pub fn with_failure(&self, now: Millis, half_life: Millis) -> Self {
        let count = self.decayed(now, half_life).0.saturating_add(1000);
        Self {
            count: FailureCount(count),
            at: now.max(self.at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_halve_with_time_and_never_grow_by_themselves() {
        let half_life = Millis(1000);
        let history = FailureHistory::default()
            .with_failure(Millis(0), half_life)
            .with_failure(Millis(1000), half_life);
        let check = |now, expected| {
            assert_eq!(
                history.decayed(Millis(now), half_life),
                FailureCount(expected),
                "{now}"
            );
        };
        check(0, 1500);
        check(1000, 1500);
        check(1500, 1125);
        check(2000, 750);
        check(3000, 375);
        check(1000 * 40, 0);
        check(u64::MAX, 0);
        assert_eq!(history.decayed(Millis(1001), Millis(0)), FailureCount(0));
        let mut last = u64::MAX;
        for now in 0..20_000 {
            let next = history.decayed(Millis(now), half_life).0;
            assert!(next <= last);
            last = next;
        }
    }
}
