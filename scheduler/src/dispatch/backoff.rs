//! How long to wait for a confirmation before a document is published again: pure.

use std::time::Duration;

/// The longest pause, in multiples of the first.
const LONGEST: u32 = 10;

/// The pause after the attempt with this number, counted from 0: the first one, doubled each time, at most ten
/// times the first.
#[must_use]
pub fn pause(first: Duration, attempts: u32) -> Duration {
    let factor = 1_u32
        .checked_shl(attempts)
        .unwrap_or(LONGEST)
        .clamp(1, LONGEST);
    first.saturating_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_times_the_first() {
        let seconds = |attempts| pause(Duration::from_secs(5), attempts).as_secs();
        assert_eq!(
            [0, 1, 2, 3, 4, 31, 32, u32::MAX].map(seconds),
            [5, 10, 20, 40, 50, 50, 50, 50]
        );
    }
}
