//! What can go wrong in the store, in terms its callers can act on.
//!
//! This file alone turns the errors of the database drivers into [`StoreError`]. No text here contains the
//! database's address or password.

use std::{fmt, io, path::PathBuf};

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, sqlx};

use crate::{constraint, leadership::Epoch};

/// The driver's own words, the end of the chain of causes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

impl Cause {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What was to be unique and is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UniqueWhat {
    /// The name of a living instance in its project.
    InstanceName,
    /// The name of a living network in its project.
    NetworkName,
    /// The Ethernet address of a port in its network.
    MacAddress,
    /// The IP address of a port in its subnet.
    IpAddress,
    /// The name of a host.
    HostName,
    /// The name of an aggregate.
    AggregateName,
    /// The name of a server group in its project.
    ServerGroupName,
    /// The name of a living volume in its project.
    VolumeName,
    /// The name of a living snapshot in its project.
    SnapshotName,
    /// The name of a living subnet in its network.
    SubnetName,
    /// A flat network, a VLAN of a physical network, or a VNI.
    Segment,
    /// The name of a port in its project.
    PortName,
    /// The name of a security group in its project.
    SecurityGroupName,
    /// What a rule of a security group allows.
    SecurityGroupRule,
    /// The name of a living router in its project.
    RouterName,
    /// The address of a port that has a floating IP.
    FloatingIpPort,
    /// The primary key: an id, or the whole key of a claim or a document.
    Id,
    /// Another rule, by the name of its index (PostgreSQL, MariaDB) or its columns (SQLite).
    Other(String),
}

impl fmt::Display for UniqueWhat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InstanceName => "the instance name",
            Self::NetworkName => "the network name",
            Self::MacAddress => "the MAC address",
            Self::IpAddress => "the IP address",
            Self::HostName => "the host name",
            Self::AggregateName => "the aggregate name",
            Self::ServerGroupName => "the server group name",
            Self::VolumeName => "the volume name",
            Self::SnapshotName => "the snapshot name",
            Self::SubnetName => "the subnet name",
            Self::Segment => "the segment",
            Self::PortName => "the port name",
            Self::SecurityGroupName => "the security group name",
            Self::SecurityGroupRule => "what the security group rule allows",
            Self::RouterName => "the router name",
            Self::FloatingIpPort => "the floating IP of the port's address",
            Self::Id => "the id",
            Self::Other(rule) => return write!(f, "a value under the rule {rule}"),
        })
    }
}

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row with the same value is there already. Nothing was changed.
    #[error("{constraint} is already taken")]
    Unique {
        /// What is taken.
        constraint: UniqueWhat,
        /// The database's words.
        source: Cause,
    },
    /// A row refers to another one that does not exist, or is still referred to.
    #[error("a row refers to one that does not exist, or is still referred to")]
    ForeignKey {
        /// The database's words.
        source: Cause,
    },
    /// The database cannot serve just now: connection lost, pool exhausted, locked for too long, disk full.
    #[error("the database is not available just now")]
    Unavailable {
        /// The driver's words.
        source: Cause,
    },
    /// A newer berth has migrated this database; this one would misread it.
    #[error(
        "the database was migrated by a newer version of berth, which added {}; run that version or a newer one",
        unknown.join(", ")
    )]
    NewerSchema {
        /// The migrations this version does not know.
        unknown: Vec<String>,
    },
    /// A stored value does not parse.
    #[error("table {table} holds a corrupt value in row {id}: {what}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's primary key; parts joined by `/`.
        id: String,
        /// The column and what is wrong with it.
        what: String,
    },
    /// A value cannot be stored: it is outside what the column can hold and give back.
    #[error("{column} cannot be stored: {what}")]
    Unstorable {
        /// Table and column.
        column: &'static str,
        /// Why.
        what: String,
    },
    /// The row to change does not exist.
    #[error("table {table} has no row {id}")]
    NotFound {
        /// The table.
        table: &'static str,
        /// The row's primary key.
        id: String,
    },
    /// The row cannot be deleted: others refer to it. Nothing was changed.
    #[error("row {id} of table {table} is still referred to by {by}")]
    InUse {
        /// The table.
        table: &'static str,
        /// The row's primary key.
        id: String,
        /// The table of the rows that refer to it.
        by: &'static str,
    },
    /// Another scheduler took over; this one must write no more. Nothing was changed.
    #[error(
        "another scheduler took over: this one leads in epoch {ours}, the database is in epoch {newest}"
    )]
    Fenced {
        /// The epoch of whoever wanted to write.
        ours: Epoch,
        /// The epoch that the database is in.
        newest: Epoch,
    },
    /// Another process is the scheduler of this database.
    #[error("another scheduler is running on this database: {what}")]
    Locked {
        /// What is locked, and what would be right.
        what: String,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {}", path.display())]
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// The configuration cannot work.
    #[error("the database configuration is wrong: {what}")]
    Config {
        /// What is wrong and what would be right.
        what: String,
    },
    /// Anything else that the database refused.
    #[error("the database refused {what}")]
    Query {
        /// The operation.
        what: &'static str,
        /// The driver's words.
        source: Cause,
    },
}

impl StoreError {
    /// The database did not answer somebody else just now, and was not asked again.
    #[must_use]
    pub fn away() -> Self {
        Self::Unavailable {
            source: Cause::new("it has just not answered another transaction"),
        }
    }

    /// Whether the same call may succeed later without anybody changing it.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Unique { .. }
            | Self::ForeignKey { .. }
            | Self::NewerSchema { .. }
            | Self::Corrupt { .. }
            | Self::Unstorable { .. }
            | Self::NotFound { .. }
            | Self::InUse { .. }
            | Self::Fenced { .. }
            | Self::Locked { .. }
            | Self::LockFile { .. }
            | Self::Config { .. }
            | Self::Query { .. } => false,
        }
    }
}

/// Turns the driver's error of an operation into the store's.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(DbErr) -> StoreError {
    move |error| match error {
        DbErr::ConnectionAcquire(ConnAcquireErr::Timeout | ConnAcquireErr::ConnectionClosed) => {
            StoreError::Unavailable {
                source: Cause::new(error.to_string()),
            }
        }
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => driver_failed(what, &error),
        other => StoreError::Query {
            what,
            source: Cause::new(other.to_string()),
        },
    }
}

/// Whether the connection, or the transaction it happened in, is gone with an error. MariaDB undoes the whole
/// transaction of a deadlock's victim and would let the next statement commit by itself; so does SQLite when the disk
/// is full.
pub(crate) fn ends_transaction(error: &DbErr) -> bool {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            driver_failed("a statement", error).retryable()
        }
        other => matches!(other, DbErr::ConnectionAcquire(_)),
    }
}

/// Turns sqlx's error of an operation into the store's.
pub(crate) fn driver_failed(what: &'static str, error: &sqlx::Error) -> StoreError {
    let database = match error {
        sqlx::Error::Database(database) => database,
        sqlx::Error::Io(io) => {
            return StoreError::Unavailable {
                source: Cause::new(io.to_string()),
            };
        }
        sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_)
        | sqlx::Error::BeginFailed => {
            return StoreError::Unavailable {
                source: Cause::new(error.to_string()),
            };
        }
        other => {
            return StoreError::Query {
                what,
                source: Cause::new(other.to_string()),
            };
        }
    };
    let code = native_code(database.as_ref());
    let source = Cause::new(format!("{} ({code})", database.message()));
    if database.is_unique_violation() {
        let constraint = constraint::violated(database.constraint(), database.message());
        StoreError::Unique { constraint, source }
    } else if database.is_foreign_key_violation() {
        StoreError::ForeignKey { source }
    } else if is_passing(&code) {
        StoreError::Unavailable { source }
    } else {
        StoreError::Query { what, source }
    }
}

/// The code of a database's error with the database's name: the three number their errors apart from each other.
fn native_code(error: &dyn sqlx::error::DatabaseError) -> String {
    if let Some(mysql) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return format!("mariadb {}", mysql.number());
    }
    let code = error.code().unwrap_or_default();
    if error
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
        .is_some()
    {
        format!("postgres {code}")
    } else {
        format!("sqlite {code}")
    }
}

/// Whether an error passes by itself: the server stops or is full, a lock was waited for in vain, a transaction
/// was chosen as the victim of a deadlock. Codes: PostgreSQL appendix A, MariaDB "Error Codes", SQLite
/// "Result and Error Codes" (the low byte of an extended code is the primary one).
fn is_passing(code: &str) -> bool {
    match code.split_once(' ') {
        Some(("postgres", code)) => {
            // Classes: 08 connection, 53 resources (disk, memory, connections), 58 system.
            ["08", "53", "58"]
                .iter()
                .any(|class| code.starts_with(class))
                || matches!(
                    code,
                    "25006"
                        | "40001"
                        | "40P01"
                        | "55P03"
                        | "57P01"
                        | "57P02"
                        | "57P03"
                        | "57P05"
                        | "25P03"
                )
        }
        // 1021, 1041, 1114: disk, memory, table full; 1040, 1203, 1226: too many connections; 1053, 1927, 1158 to
        // 1161: shutdown, killed, network; 1205, 1213: lock wait, deadlock; 1290, 1836: read-only for now.
        Some(("mariadb", code)) => matches!(
            code,
            "1021"
                | "1040"
                | "1041"
                | "1053"
                | "1114"
                | "1158"
                | "1159"
                | "1160"
                | "1161"
                | "1203"
                | "1205"
                | "1213"
                | "1226"
                | "1290"
                | "1836"
                | "1927"
        ),
        // BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN.
        Some(("sqlite", code)) => code
            .parse::<u32>()
            .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 7 | 8 | 10 | 13 | 14)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_worth_a_retry() {
        for passing in [
            "postgres 57P01",
            "postgres 53100",
            "postgres 40001",
            "mariadb 1205",
            "sqlite 517",
            "sqlite 13",
        ] {
            assert!(is_passing(passing), "{passing}");
        }
        for lasting in [
            "postgres 28P01",
            "postgres 42P01",
            "mariadb 1045",
            "mariadb 1146",
            "sqlite 1",
            "sqlite 26",
            "",
        ] {
            assert!(!is_passing(lasting), "{lasting}");
        }
    }
}
