//! What an operator can set of placement: the multipliers of the weighers, and how failed builds count.

use std::str::FromStr;

use super::failures::{FailureCount, Millis};

/// A multiplier of a weigher in thousandths: −1500 is −1.5. Negative turns the preference round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Multiplier(i64);

impl Multiplier {
    /// The weigher is not asked.
    pub const ZERO: Self = Self(0);

    /// A whole multiplier.
    #[must_use]
    pub const fn whole(multiplier: i64) -> Self {
        Self(multiplier.saturating_mul(1000))
    }

    /// A multiplier in thousandths.
    #[must_use]
    pub const fn thousandths(thousandths: i64) -> Self {
        Self(thousandths)
    }

    /// `amount × multiplier`, in thousandths of a point; bounded by 64 bits.
    pub(super) fn times(self, amount: u64) -> i64 {
        // |i64| × u64 stays below 2^127.
        let product = i128::from(self.0) * i128::from(amount);
        i64::try_from(product).unwrap_or(if product < 0 { i64::MIN } else { i64::MAX })
    }

    /// The multiplier the other way round.
    pub(super) const fn negated(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

/// A multiplier was not a decimal with at most three places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a multiplier must be a decimal from -1000000000 to 1000000000 with at most three places, like -1.5; got {0:?}"
)]
pub struct InvalidMultiplier(pub String);

impl FromStr for Multiplier {
    type Err = InvalidMultiplier;

    fn from_str(text: &str) -> Result<Self, InvalidMultiplier> {
        let invalid = || InvalidMultiplier(text.chars().take(40).collect());
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_number =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || whole.len() > 10 || fraction.len() > 3 {
            return Err(invalid());
        }
        let whole: i64 = whole.parse().map_err(|_| invalid())?;
        let thousandths: i64 = format!("{fraction:0<3}").parse().map_err(|_| invalid())?;
        if whole > 1_000_000_000 {
            return Err(invalid());
        }
        let value = whole * 1000 + thousandths;
        Ok(Self(if negative { -value } else { value }))
    }
}

/// The multipliers of the weighers.
///
/// The score of a host is the sum of `multiplier × part`. Parts are absolute amounts of that one host (never
/// relative to the other hosts, so no host's score changes when another comes or goes), each in its own unit. One
/// *point* is what one free MiB of memory is worth at a multiplier of 1: so a multiplier says how many MiB of free
/// memory one unit of its part weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// `ram_weight_multiplier`, per free MiB of memory. 1.0: spread by free memory; negative: stack.
    pub ram: Multiplier,
    /// `cpu_weight_multiplier`, per free vCPU. 1.0: decides only between hosts of about the same free memory.
    pub cpu: Multiplier,
    /// `disk_weight_multiplier`, per free GiB of disk. 0.001: decides where the others are equal.
    pub disk: Multiplier,
    /// `io_ops_weight_multiplier`, per build in flight. −256.0: each weighs as 256 MiB less.
    pub io_ops: Multiplier,
    /// `soft_affinity_weight_multiplier`, per member of the group on the host. 2^20: as a TiB of free memory.
    pub soft_affinity: Multiplier,
    /// `soft_anti_affinity_weight_multiplier`, per member of the group on the host, which then weighs *less*. 2^20.
    pub soft_anti_affinity: Multiplier,
    /// `build_failure_weight_multiplier`, per failed build, halving with time. −2^20.
    pub build_failures: Multiplier,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            ram: Multiplier::whole(1),
            cpu: Multiplier::whole(1),
            disk: Multiplier::thousandths(1),
            io_ops: Multiplier::whole(-256),
            soft_affinity: Multiplier::whole(1 << 20),
            soft_anti_affinity: Multiplier::whole(1 << 20),
            build_failures: Multiplier::whole(-(1 << 20)),
        }
    }
}

/// Everything an operator can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The multipliers of the weighers.
    pub weights: Weights,
    /// After how long a failed build counts half. 10 minutes.
    pub failure_half_life: Millis,
    /// A host gets nothing while its failed builds count for more than this. 3.0: the fourth in a row shuts it out.
    pub max_failures: FailureCount,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: Weights::default(),
            failure_half_life: Millis(10 * 60 * 1000),
            max_failures: FailureCount::whole(3),
        }
    }
}
