//! How long to wait before a failed pass is tried again. Pure: chance is an argument.

use std::time::Duration;

/// The pause after the first failure; doubled with each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// Failures that are told as work in progress; with the next one the resource counts as failed.
pub(super) const FAILED_AFTER: u32 = 5;

/// The pause after so many failures in a row, at least one: 1 s, 2 s, 4 s … 60 s, each less up to a quarter of it,
/// so that what failed together is not tried again together. `chance` is any number.
pub(super) fn after(failures: u32, chance: u8) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    spread(pause, chance)
}

/// Up to a quarter less than `pause`.
pub(super) fn spread(pause: Duration, chance: u8) -> Duration {
    pause - pause / 1024 * u32::from(chance)
}

/// Any number.
pub(super) fn chance() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_spread_by_a_quarter() {
        let seconds: Vec<u64> = (1..=9)
            .map(|failures| after(failures, 0).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(after(u32::MAX, 0), LONGEST);
        assert!(
            after(1, 255) >= Duration::from_millis(750)
                && after(1, 255) < Duration::from_millis(752)
        );
    }
}
