//! Quantities with their unit in the type and checked arithmetic.
//!
//! Unit names follow OpenStack: `memory_mb` counts mebibytes (2^20 bytes) and `disk_gb` counts gibibytes
//! (2^30 bytes). Every quantity has an upper bound far above real machines and far below overflow, so that
//! sums over a whole cloud fit in 64 bits.

use std::{borrow::Cow, fmt, iter::Sum, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number was outside the range of its quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be a whole number from 0 to {max}; got {got}")]
pub struct OutOfRange {
    /// Name of the quantity.
    pub what: &'static str,
    /// Largest value that is accepted.
    pub max: u64,
    /// What was given.
    pub got: String,
}

macro_rules! quantities {
    ($($(#[$doc:meta])* $name:ident, $what:literal, max $max:expr, unit $unit:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            /// The largest value that is accepted from outside.
            pub const MAX: Self = Self($max);

            /// The value, if it is in range.
            ///
            /// # Errors
            /// [`OutOfRange`] above [`Self::MAX`].
            pub fn new(value: u64) -> Result<Self, OutOfRange> {
                if value > $max {
                    return Err(OutOfRange { what: $what, max: $max, got: value.to_string() });
                }
                Ok(Self(value))
            }

            /// The value, or the largest accepted one: for measurements, which must never fail.
            #[must_use]
            pub fn clamped(value: u64) -> Self {
                Self(value.min($max))
            }

            /// The bare number, in this quantity's unit.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// `self + other`, or `None` on overflow of 64 bits.
            #[must_use]
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }

            /// `self - other`, or zero where that would be negative.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// `self + other`, or the largest 64-bit value.
            #[must_use]
            pub fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Self::saturating_add)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{}", $unit), self.0)
            }
        }

        impl FromStr for $name {
            type Err = OutOfRange;
            fn from_str(text: &str) -> Result<Self, OutOfRange> {
                text.parse::<u64>()
                    .ok()
                    .and_then(|value| Self::new(value).ok())
                    .ok_or_else(|| OutOfRange { what: $what, max: $max, got: text.to_owned() })
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let number = serde_json::Number::deserialize(deserializer)?;
                number
                    .as_u64()
                    .and_then(|value| Self::new(value).ok())
                    .ok_or_else(|| de::Error::custom(OutOfRange { what: $what, max: $max, got: number.to_string() }))
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "integer", "minimum": 0, "maximum": $max, "description": $what })
            }
        }
    )*};
}

quantities! {
    /// Virtual CPUs (or, of a host, logical CPUs).
    Vcpus, "a number of vCPUs", max 1_u64 << 20, unit " vCPU";
    /// Memory in mebibytes.
    MemoryMb, "an amount of memory in MiB", max 1_u64 << 36, unit " MB";
    /// Disk space in gibibytes.
    DiskGb, "an amount of disk in GiB", max 1_u64 << 36, unit " GB";
    /// A count of bytes.
    ByteCount, "a count of bytes", max 1_u64 << 62, unit " B";
}

impl ByteCount {
    /// Bytes in so many gibibytes.
    #[must_use]
    pub fn from_gb(gb: DiskGb) -> Self {
        Self::clamped(gb.get().saturating_mul(1 << 30))
    }

    /// Bytes in so many mebibytes.
    #[must_use]
    pub fn from_mb(mb: MemoryMb) -> Self {
        Self::clamped(mb.get().saturating_mul(1 << 20))
    }

    /// Whole mebibytes, rounded down.
    #[must_use]
    pub fn whole_mb(self) -> MemoryMb {
        MemoryMb::clamped(self.get() >> 20)
    }

    /// Whole gibibytes, rounded down.
    #[must_use]
    pub fn whole_gb(self) -> DiskGb {
        DiskGb::clamped(self.get() >> 30)
    }
}

/// How much of a resource may be promised for each unit that exists: 4.0 sells every CPU four times.
///
/// Kept in thousandths, so that capacities are exact integers. On the wire and in configuration a decimal
/// with at most three places, as a number or a string, from 0.001 to 1000.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationRatio(u32);

/// A ratio was not a decimal from 0.001 to 1000 with at most three places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an allocation ratio must be a decimal from 0.001 to 1000 with at most three places, like 1.5; got {0:?}"
)]
pub struct InvalidRatio(pub String);

impl AllocationRatio {
    /// Exactly what exists, nothing more.
    pub const ONE: Self = Self(1000);
    /// `cpu_allocation_ratio` unless configured: 4.0.
    pub const DEFAULT_CPU: Self = Self(4000);
    /// `ram_allocation_ratio` unless configured: 1.5.
    pub const DEFAULT_RAM: Self = Self(1500);
    const MAX_THOUSANDTHS: u32 = 1_000_000;

    /// The ratio in thousandths: 1500 is 1.5.
    ///
    /// # Errors
    /// [`InvalidRatio`] for zero and for more than 1000.0.
    pub fn from_thousandths(thousandths: u32) -> Result<Self, InvalidRatio> {
        if thousandths == 0 || thousandths > Self::MAX_THOUSANDTHS {
            return Err(InvalidRatio(format!("{thousandths}/1000")));
        }
        Ok(Self(thousandths))
    }

    /// The ratio in thousandths.
    #[must_use]
    pub const fn thousandths(self) -> u32 {
        self.0
    }

    /// `floor(amount × ratio)`, exact; capped at the largest 64-bit number.
    #[must_use]
    pub fn apply(self, amount: u64) -> u64 {
        let product = u128::from(amount) * u128::from(self.0) / 1000;
        u64::try_from(product).unwrap_or(u64::MAX)
    }
}

impl FromStr for AllocationRatio {
    type Err = InvalidRatio;
    fn from_str(text: &str) -> Result<Self, InvalidRatio> {
        let invalid = || InvalidRatio(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || whole.len() > 4 || fraction.len() > 3 {
            return Err(invalid());
        }
        let whole: u32 = whole.parse().map_err(|_| invalid())?;
        let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| invalid())?;
        Self::from_thousandths(whole * 1000 + fraction).map_err(|_| invalid())
    }
}

impl fmt::Display for AllocationRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:03}", self.0 % 1000);
        let fraction = fraction.trim_end_matches('0');
        write!(
            f,
            "{}.{}",
            self.0 / 1000,
            if fraction.is_empty() { "0" } else { fraction }
        )
    }
}

impl fmt::Debug for AllocationRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AllocationRatio({self})")
    }
}

impl Serialize for AllocationRatio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AllocationRatio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for AllocationRatio {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("AllocationRatio")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]{1,4}(\\.[0-9]{1,3})?$", "description": "allocation ratio, 0.001 to 1000" })
    }
}

/// Which version of a resource's desired state: a document with a lower generation than one already seen is
/// history and is ignored.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of a resource's first document.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_out_of_range_are_refused_on_the_wire() {
        for bad in ["-1", "1.5", "68719476737", "1e30"] {
            let error = serde_json::from_str::<MemoryMb>(bad)
                .unwrap_err()
                .to_string();
            assert!(error.contains("from 0 to 68719476736"), "{bad}: {error}");
        }
        assert_eq!(serde_json::from_str::<MemoryMb>("512").unwrap().get(), 512);
    }

    #[test]
    fn ratios_are_exact() {
        let check = |text: &str, amount, expected| {
            assert_eq!(
                text.parse::<AllocationRatio>().unwrap().apply(amount),
                expected,
                "{text}"
            );
        };
        check("1.5", 3, 4);
        check("1.5", 23_488, 35_232);
        check("0.001", 999, 0);
        check("16", u64::MAX / 16 + 1, u64::MAX);
        for bad in [
            "", "0", "0.0000", "1.2345", "-1", "1001", "nan", "1e3", ".5", "5.",
        ] {
            assert!(bad.parse::<AllocationRatio>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_ratio_reads_back_what_it_prints(thousandths in 1_u32..=1_000_000) {
            let ratio = AllocationRatio::from_thousandths(thousandths).unwrap();
            prop_assert_eq!(ratio.to_string().parse::<AllocationRatio>().unwrap(), ratio);
            let json = serde_json::to_string(&ratio).unwrap();
            prop_assert_eq!(serde_json::from_str::<AllocationRatio>(&json).unwrap(), ratio);
        }
    }
}
