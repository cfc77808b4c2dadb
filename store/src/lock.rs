//! One scheduler for each database.
//!
//! SQLite: a lock of the operating system on a file beside the database. It belongs to the open file, so it ends
//! with the process, however that ends. The file stays: removing it would let two processes hold locks on two
//! files of the same name.
//!
//! PostgreSQL and MariaDB: a lock of the server that belongs to a session. The session has a connection of its
//! own, and ends with it. A server that restarts, or a network that breaks, ends it too: then
//! [`ExclusiveLock::check`] takes the lock anew, unless another scheduler was faster.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement};

use crate::{
    error::{Cause, StoreError, failed},
    executor::{Pool, sealed::Handle},
};

/// The key of PostgreSQL's advisory lock, the bytes of `berthsch`, as one number and as the two halves by which
/// `pg_locks` shows it. Such locks belong to one database of the server.
const POSTGRES_KEY: i64 = 0x6265_7274_6873_6368;
const POSTGRES_KEY_HALVES: (i64, i64) = (0x6265_7274, 0x6873_6368);
/// The name of MariaDB's lock. Such names are the whole server's and ignore case, names of databases do not.
const MARIADB_NAME: &str = "CONCAT('berth_scheduler_', MD5(DATABASE()))";
/// What the session of the lock is told: MariaDB ends it when a scheduler that vanished says nothing for a
/// minute. PostgreSQL does the same with probes on the connection.
pub(crate) const MARIADB_SETTINGS: &str = "SET SESSION wait_timeout = 60";

/// The right to be the only scheduler on a database; dropping it gives it up.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this value lives"]
pub struct ExclusiveLock {
    holder: Holder,
}

#[derive(Debug)]
enum Holder {
    File(#[expect(dead_code, reason = "it is the lock as long as it is open")] File),
    Session {
        /// The one connection.
        connection: Pool,
        /// The server's number for the session that got the lock.
        id: i64,
    },
}

/// What a server says when it is asked for the lock.
struct Answer {
    /// The session that asked.
    asking: i64,
    /// The session that has the lock; none: it ended while we asked.
    holding: Option<i64>,
}

impl ExclusiveLock {
    /// Locks `<database>.lock`.
    pub(crate) fn beside(database: &Path) -> Result<Self, StoreError> {
        // By its real name: a database that is reached through two links is still one.
        let database = database
            .canonicalize()
            .map_err(|source| StoreError::LockFile {
                path: database.into(),
                source,
            })?;
        let path = lock_path(&database);
        let failed = |source| StoreError::LockFile {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                holder: Holder::File(file),
            }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
                what: format!("{} is locked", path.display()),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Takes the server's lock in a session on this connection, which nobody else may use: at most one is open,
    /// and it never ends by itself.
    pub(crate) async fn in_session(connection: Pool) -> Result<Self, StoreError> {
        let answer = ask(&connection).await?;
        let id = answer.asking;
        if answer.holding != Some(id) {
            return Err(locked(&answer));
        }
        Ok(Self {
            holder: Holder::Session { connection, id },
        })
    }

    /// Makes sure that the lock is held. Call it every few seconds: between two calls it may have been lost.
    ///
    /// # Errors
    /// [`StoreError::Locked`]: another scheduler has it; this one must stop. [`StoreError::Unavailable`]: the
    /// database does not answer, so ask again; it is the answer too while the server has not yet noticed that the
    /// connection of the old session is gone.
    pub async fn check(&mut self) -> Result<(), StoreError> {
        let Holder::Session { connection, id } = &mut self.holder else {
            return Ok(());
        };
        let answer = ask(connection).await?;
        if answer.holding == Some(answer.asking) {
            *id = answer.asking;
            return Ok(());
        }
        if answer.holding == Some(*id) || answer.holding.is_none() {
            return Err(StoreError::Unavailable {
                source: Cause::new(format!("the lock still belongs to lost session {id}")),
            });
        }
        Err(locked(&answer))
    }
}

fn locked(answer: &Answer) -> StoreError {
    let what = match answer.holding {
        Some(session) => format!("session {session} of the server holds the scheduler's lock"),
        None => "the scheduler's lock is taken".to_owned(),
    };
    StoreError::Locked { what }
}

/// Takes the lock if it is free, and asks who has it.
async fn ask(connection: &Pool) -> Result<Answer, StoreError> {
    let connection = connection.handle();
    let backend = connection.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => {
            let (high, low) = POSTGRES_KEY_HALVES;
            format!(
                "WITH holder AS (SELECT pid::bigint AS pid FROM pg_locks WHERE locktype = 'advisory' AND granted \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                 AND classid = {high} AND objid = {low} AND objsubid = 1 LIMIT 1) \
                 SELECT pg_backend_pid()::bigint AS asking, CASE \
                 WHEN (SELECT pid FROM holder) IS NOT NULL THEN (SELECT pid FROM holder) \
                 WHEN pg_try_advisory_lock({POSTGRES_KEY}) THEN pg_backend_pid()::bigint END AS holding"
            )
        }
        _ => format!(
            "SELECT CAST(CONNECTION_ID() AS SIGNED) AS asking, CAST(CASE \
             WHEN IS_USED_LOCK({MARIADB_NAME}) IS NOT NULL THEN IS_USED_LOCK({MARIADB_NAME}) \
             WHEN GET_LOCK({MARIADB_NAME}, 0) = 1 THEN CONNECTION_ID() END AS SIGNED) AS holding"
        ),
    };
    let row = connection
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .and_then(|row| {
            row.ok_or_else(|| DbErr::RecordNotFound("the answer has no row".to_owned()))
        })
        .and_then(|row| read(&row));
    row.map_err(failed("the scheduler's lock"))
}

fn read(row: &QueryResult) -> Result<Answer, DbErr> {
    Ok(Answer {
        asking: row.try_get("", "asking")?,
        holding: row.try_get("", "holding")?,
    })
}

fn lock_path(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(".lock");
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_are_the_key() {
        let (high, low) = POSTGRES_KEY_HALVES;
        assert_eq!((high << 32) | low, POSTGRES_KEY);
    }
}
