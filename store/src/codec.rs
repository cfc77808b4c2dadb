//! Between typed values and the few forms the tables hold: integers, text, JSON.
//!
//! Both directions are checked: what cannot be read back is not written, and what does not parse is reported
//! with its table and row. Nothing here knows a table.

use std::fmt::Display;

use berth_common::{
    message::{report::Fault, view::Resources},
    units::{AllocationRatio, DiskGb, MemoryMb, OutOfRange, Vcpus},
};
use chrono::{DateTime, SubsecRound, Utc};
use serde::{
    Serialize,
    de::{DeserializeOwned, IntoDeserializer, value::StrDeserializer},
};

use crate::error::StoreError;

/// The time as it is stored: whole milliseconds. Rows that shall compare equal to what is read back carry these.
#[must_use]
pub fn whole_millis(time: DateTime<Utc>) -> DateTime<Utc> {
    time.trunc_subsecs(3)
}

/// A time as milliseconds since 1970.
pub(crate) fn millis(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

/// A number as the database holds it: 63 bits.
pub(crate) fn int(column: &'static str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Unstorable {
        column,
        what: format!("{value} is above {}", i64::MAX),
    })
}

/// An enum by its name on the wire.
pub(crate) fn word<T: Serialize>(column: &'static str, value: &T) -> Result<String, StoreError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        Ok(other) => Err(StoreError::Unstorable {
            column,
            what: format!("{other} is not one word"),
        }),
        Err(error) => Err(StoreError::Unstorable {
            column,
            what: error.to_string(),
        }),
    }
}

/// A list as JSON.
pub(crate) fn json<T: Serialize>(column: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Unstorable {
        column,
        what: error.to_string(),
    })
}

/// What is mostly empty, as JSON; none when it is.
pub(crate) fn opt_json<T: Serialize + Default + PartialEq>(
    column: &'static str,
    value: &T,
) -> Result<Option<String>, StoreError> {
    if *value == T::default() {
        return Ok(None);
    }
    json(column, value).map(Some)
}

/// A ratio in thousandths.
pub(crate) fn ratio(ratio: Option<AllocationRatio>) -> Option<i64> {
    ratio.map(|ratio| i64::from(ratio.thousandths()))
}

/// Text for people. PostgreSQL cannot hold the NUL character, so it is shown as U+FFFD on all databases.
pub(crate) fn prose(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// An amount of everything as three integers.
pub(crate) struct Amounts {
    pub(crate) vcpus: i64,
    pub(crate) memory_mb: i64,
    pub(crate) disk_gb: i64,
}

/// An amount of everything, each in the range that can be read back.
pub(crate) fn amounts(column: &'static str, resources: Resources) -> Result<Amounts, StoreError> {
    let out_of_range = |error: OutOfRange| StoreError::Unstorable {
        column,
        what: error.to_string(),
    };
    Ok(Amounts {
        vcpus: int(
            column,
            Vcpus::new(resources.vcpus.get())
                .map_err(out_of_range)?
                .get(),
        )?,
        memory_mb: int(
            column,
            MemoryMb::new(resources.memory_mb.get())
                .map_err(out_of_range)?
                .get(),
        )?,
        disk_gb: int(
            column,
            DiskGb::new(resources.disk_gb.get())
                .map_err(out_of_range)?
                .get(),
        )?,
    })
}

/// A fault as its two columns.
pub(crate) fn fault_columns(
    column: &'static str,
    fault: Option<&Fault>,
) -> Result<(Option<String>, Option<String>), StoreError> {
    match fault {
        None => Ok((None, None)),
        Some(fault) => Ok((
            Some(word(column, &fault.code)?),
            Some(prose(&fault.message)),
        )),
    }
}

/// Reads the columns of one row; every complaint names the row.
pub(crate) struct RowReader<'a> {
    pub(crate) table: &'static str,
    pub(crate) id: &'a str,
}

impl RowReader<'_> {
    pub(crate) fn corrupt(&self, column: &str, why: impl Display) -> StoreError {
        StoreError::Corrupt {
            table: self.table,
            id: self.id.to_owned(),
            what: format!("{column}: {why}"),
        }
    }

    /// A value whose parsing may have failed.
    pub(crate) fn parsed<T, E: Display>(
        &self,
        column: &str,
        parsed: Result<T, E>,
    ) -> Result<T, StoreError> {
        parsed.map_err(|error| self.corrupt(column, error))
    }

    /// A number in the range of its type.
    pub(crate) fn int<T: TryFrom<i64>>(&self, column: &str, value: i64) -> Result<T, StoreError> {
        T::try_from(value).map_err(|_| self.corrupt(column, format!("{value} is out of range")))
    }

    pub(crate) fn time(&self, column: &str, millis: i64) -> Result<DateTime<Utc>, StoreError> {
        DateTime::from_timestamp_millis(millis)
            .ok_or_else(|| self.corrupt(column, format!("{millis} ms is not a time")))
    }

    pub(crate) fn opt_time(
        &self,
        column: &str,
        millis: Option<i64>,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        millis.map(|millis| self.time(column, millis)).transpose()
    }

    /// An enum by its name on the wire.
    pub(crate) fn word<T: DeserializeOwned>(
        &self,
        column: &str,
        word: &str,
    ) -> Result<T, StoreError> {
        let deserializer: StrDeserializer<'_, serde::de::value::Error> = word.into_deserializer();
        self.parsed(column, T::deserialize(deserializer))
    }

    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        column: &str,
        json: &str,
    ) -> Result<T, StoreError> {
        self.parsed(column, serde_json::from_str(json))
    }

    /// What is mostly empty: none when the column is null.
    pub(crate) fn opt_json<T: DeserializeOwned + Default>(
        &self,
        column: &str,
        json: Option<&str>,
    ) -> Result<T, StoreError> {
        json.map_or_else(|| Ok(T::default()), |json| self.json(column, json))
    }

    /// A ratio in thousandths.
    pub(crate) fn ratio(
        &self,
        column: &str,
        thousandths: Option<i64>,
    ) -> Result<Option<AllocationRatio>, StoreError> {
        thousandths
            .map(|thousandths| {
                let thousandths = self.int(column, thousandths)?;
                self.parsed(column, AllocationRatio::from_thousandths(thousandths))
            })
            .transpose()
    }

    /// One amount, if there is any, in the range of its unit.
    pub(crate) fn opt_amount<T>(
        &self,
        column: &str,
        amount: Option<i64>,
        unit: fn(u64) -> Result<T, OutOfRange>,
    ) -> Result<Option<T>, StoreError> {
        amount
            .map(|amount| self.parsed(column, unit(self.int(column, amount)?)))
            .transpose()
    }

    pub(crate) fn amounts(
        &self,
        columns: &str,
        amounts: &Amounts,
    ) -> Result<Resources, StoreError> {
        Ok(Resources {
            vcpus: self.parsed(columns, Vcpus::new(self.int(columns, amounts.vcpus)?))?,
            memory_mb: self.parsed(
                columns,
                MemoryMb::new(self.int(columns, amounts.memory_mb)?),
            )?,
            disk_gb: self.parsed(columns, DiskGb::new(self.int(columns, amounts.disk_gb)?))?,
        })
    }

    pub(crate) fn fault(
        &self,
        column: &str,
        code: Option<&str>,
        message: Option<String>,
    ) -> Result<Option<Fault>, StoreError> {
        match (code, message) {
            (None, None) => Ok(None),
            (Some(code), Some(message)) => Ok(Some(Fault {
                code: self.word(column, code)?,
                message,
            })),
            _ => Err(self.corrupt(
                column,
                "a code and a message belong together, and one of them is missing",
            )),
        }
    }
}
