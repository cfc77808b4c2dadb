//! Opening a database: the one place with settings of SQLite, PostgreSQL and MariaDB.
//!
//! The address may hold a password: it is never printed, and no error carries it.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use sea_orm::{
    DatabaseConnection, SqlxMySqlConnector, SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{
        self, Connection as _, Executor as _, Pool as SqlxPool,
        mysql::{MySql, MySqlConnectOptions, MySqlConnection},
        pool::PoolOptions,
        postgres::{PgConnectOptions, PgConnection, Postgres},
        sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};

use crate::{
    error::{Cause, StoreError, driver_failed, failed},
    executor::{self, Pool, Tally, Txn, sealed::Handle as _},
    leadership::{self, Epoch},
    lock::ExclusiveLock,
    migration,
};

/// How long a call waits for a free connection, and a new connection for the server.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock that another transaction holds, on each of the three databases.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// How many prepared statements a connection keeps. Statements for many rows come in nine sizes.
const STATEMENTS_KEPT: usize = 256;

/// How long a connection that is given back may take to say that it still works.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
/// How long a migration may take, with the wait for another process that is migrating.
const MIGRATION_LIMIT: Duration = Duration::from_secs(300);

/// What PostgreSQL is told on each new connection. It probes a silent one after 30 seconds and ends it within
/// another 30, so that the locks of a client that vanished do not stay for hours. It ends a transaction in which
/// nothing happens for 3 seconds: one in which a scheduler is frozen keeps its successor waiting for less than a
/// statement waits for a lock.
const POSTGRES_SETTINGS: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; \
                                 SET tcp_keepalives_idle = 30; \
                                 SET tcp_keepalives_interval = 10; \
                                 SET tcp_keepalives_count = 3; \
                                 SET idle_in_transaction_session_timeout = 3000; \
                                 SET lock_timeout = 5000";
/// What MariaDB is told on each new connection, with the same limits. Strict mode makes it refuse what it would else cut or bend.
const MARIADB_SETTINGS: [&str; 4] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",
    "SET SESSION innodb_lock_wait_timeout = 5",
    "SET SESSION idle_transaction_timeout = 3",
];

/// Where the database is.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// `sqlite:///path/file.db`, `postgres://user:password@host/database` or
    /// `mysql://user:password@host/database` (also `mariadb://`). A SQLite file is made if it is missing.
    pub url: String,
    /// The most connections to hold, at least 1.
    pub max_connections: u32,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split_once(':').map_or("?", |(scheme, _)| scheme);
        f.debug_struct("StoreConfig")
            .field("url", &format_args!("{scheme}:…"))
            .field("max_connections", &self.max_connections)
            .finish()
    }
}

/// Which database, and how it is reached.
enum Target {
    Sqlite(SqliteConnectOptions),
    Postgres(PgConnectOptions),
    MariaDb(MySqlConnectOptions),
}

/// Without the address, which may hold a password.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(options) => write!(f, "sqlite {}", options.get_filename().display()),
            Self::Postgres(_) => f.write_str("postgres"),
            Self::MariaDb(_) => f.write_str("mariadb"),
        }
    }
}

impl Target {
    fn parse(url: &str) -> Result<Self, StoreError> {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            "sqlite" => Ok(Self::Sqlite(sqlite_options(url)?)),
            "postgres" | "postgresql" => parse_options::<PgConnectOptions>(url).map(Self::Postgres),
            "mysql" | "mariadb" => parse_options::<MySqlConnectOptions>(url).map(Self::MariaDb),
            _ => Err(config(
                "the address must start with sqlite:, postgres: or mysql:",
            )),
        }
    }
}

fn config(what: impl Into<String>) -> StoreError {
    StoreError::Config { what: what.into() }
}

fn parse_options<O: FromStr<Err = sqlx::Error>>(url: &str) -> Result<O, StoreError> {
    O::from_str(url).map_err(|_| {
        config("the address does not parse; it is scheme://user:password@host:port/database")
    })
}

fn sqlite_options(url: &str) -> Result<SqliteConnectOptions, StoreError> {
    if url.contains(":memory:") || url.contains("mode=memory") {
        return Err(config(
            "a SQLite database in memory forgets everything; name a file, sqlite:///path/file.db",
        ));
    }
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|_| config("the address does not parse; it is sqlite:///path/file.db"))?;
    if options.get_filename().as_os_str().is_empty() || options.get_filename().is_dir() {
        return Err(config(
            "the address names no file; it is sqlite:///path/file.db",
        ));
    }
    Ok(options
        .create_if_missing(true)
        .foreign_keys(true)
        // Readers go on while the one writer writes.
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is on the disk before it is confirmed: messages are acknowledged on its strength.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(LOCK_LIMIT))
}

fn pool_options<D: sqlx::Database>(max_connections: u32) -> PoolOptions<D> {
    PoolOptions::new()
        // With either, sqlx looks at idle connections from time to time, as many as a counter says that is below zero for moments: then it
        // never ends, and keeps a thread busy for ever. A connection that died is found when it is used.
        .idle_timeout(None)
        .max_lifetime(None)
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_LIMIT)
        // A call that was given up leaves its connection in the middle of an exchange. Only a connection that
        // answers in time goes back into the pool; any other is closed, and with it ends its transaction.
        .after_release(|connection: &mut D::Connection, _| {
            Box::pin(async move {
                match tokio::time::timeout(RELEASE_LIMIT, connection.ping()).await {
                    Ok(outcome) => outcome.map(|()| true),
                    Err(_) => Err(sqlx::Error::PoolTimedOut),
                }
            })
        })
}

impl Target {
    /// Opens a pool, and one connection in it.
    async fn open(&self, max_connections: u32) -> Result<DatabaseConnection, StoreError> {
        let opened = |error: sqlx::Error| driver_failed("the connection", &error);
        match self {
            Self::Sqlite(options) => {
                let options = options.clone().statement_cache_capacity(STATEMENTS_KEPT);
                let pool: SqlxPool<Sqlite> = pool_options(max_connections)
                    .connect_with(options)
                    .await
                    .map_err(opened)?;
                Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
            }
            Self::Postgres(options) => {
                let options = options
                    .clone()
                    .application_name("berth")
                    .statement_cache_capacity(STATEMENTS_KEPT);
                let pool: SqlxPool<Postgres> = pool_options(max_connections)
                    .after_connect(|connection: &mut PgConnection, _| {
                        Box::pin(
                            async move { connection.execute(POSTGRES_SETTINGS).await.map(drop) },
                        )
                    })
                    .connect_with(options)
                    .await
                    .map_err(opened)?;
                Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
            }
            Self::MariaDb(options) => {
                let options = options.clone().statement_cache_capacity(STATEMENTS_KEPT);
                let pool: SqlxPool<MySql> = pool_options(max_connections)
                    .after_connect(|connection: &mut MySqlConnection, _| {
                        Box::pin(async move {
                            for setting in MARIADB_SETTINGS {
                                connection.execute(setting).await?;
                            }
                            Ok(())
                        })
                    })
                    .connect_with(options)
                    .await
                    .map_err(opened)?;
                Ok(SqlxMySqlConnector::from_sqlx_mysql_pool(pool))
            }
        }
    }
}

/// An open database. Cloning is cheap; clones share the connections.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    target: Arc<Target>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database and makes one connection, so that a wrong address shows at once.
    ///
    /// # Errors
    /// [`StoreError::Config`] for an address that cannot work, [`StoreError::Unavailable`] if nobody answers
    /// within five seconds, [`StoreError::Query`] if the server refuses (a wrong password, no such database).
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        if config.max_connections == 0 {
            return Err(self::config("max_connections must be at least 1"));
        }
        let target = Arc::new(Target::parse(&config.url)?);
        let connection = target.open(config.max_connections).await?;
        Ok(Self {
            pool: Pool {
                connection,
                counting: Arc::default(),
            },
            target,
        })
    }

    /// Brings the schema up to this version. Doing it again is harmless; two at once wait for each other.
    ///
    /// # Errors
    /// [`StoreError::NewerSchema`] if a newer berth was here; then nothing is changed.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let migration = async {
            let transaction = executor::begin(&self.pool.connection).await?;
            migration::run(transaction).await
        };
        tokio::time::timeout(MIGRATION_LIMIT, migration)
            .await
            .unwrap_or_else(|_| {
                Err(StoreError::Unavailable {
                    source: Cause::new("the migration of the schema did not end in time"),
                })
            })
    }

    /// Opens a transaction of the leader. Nobody can take the lead before its end, and after somebody did, none of an
    /// earlier epoch can be opened or committed.
    ///
    /// It excludes every other one, so it must be short: PostgreSQL and MariaDB end it, and its connection, when it
    /// does nothing for three seconds.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if another scheduler took the lead since; else as for [`Store::begin`].
    pub async fn begin_as(&self, epoch: Epoch) -> Result<Txn, StoreError> {
        let txn = self.begin().await?;
        leadership::fence(&txn.handle(), epoch).await?;
        Ok(txn)
    }

    /// Opens a transaction, whoever leads.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if no connection is free, or (SQLite) another writer does not end, in time.
    pub async fn begin(&self) -> Result<Txn, StoreError> {
        self.pool.begin().await
    }

    /// The connections, for queries outside a transaction.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How much was asked of the database so far, by this store and its clones.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.pool.counting.tally()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        executor::answered(self.pool.connection.ping())
            .await
            .map_err(failed("ping"))
    }

    /// Claims a SQLite file for this process. None on PostgreSQL and MariaDB: several schedulers may wait beside one
    /// another there, and [`crate::leadership`] tells which one leads.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another scheduler has it, [`StoreError::LockFile`] if the lock file fails.
    pub fn try_lock_exclusive(&self) -> Result<Option<ExclusiveLock>, StoreError> {
        match &*self.target {
            Target::Sqlite(options) => ExclusiveLock::beside(options.get_filename()).map(Some),
            Target::Postgres(_) | Target::MariaDb(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread of a test was busy for ever with them, which happens by chance alone.
    #[test]
    fn nobody_looks_after_idle_connections() {
        let options = pool_options::<Sqlite>(4);
        assert_eq!(options.get_idle_timeout(), None);
        assert_eq!(options.get_max_lifetime(), None);
        assert!(options.get_test_before_acquire());
    }

    #[test]
    fn a_wrong_address_is_refused_without_showing_its_password() {
        for bad in [
            "",
            "berth.db",
            "oracle://berth:hunter2@db/berth",
            "postgres://berth:hunter2@[bad/berth",
            "mysql://berth:hunter2@db:port/berth",
            "sqlite::memory:",
            "sqlite:///tmp",
        ] {
            let error = Target::parse(bad).map(drop).unwrap_err();
            assert!(matches!(error, StoreError::Config { .. }), "{bad}: {error}");
            assert!(
                !format!("{error:?} {error}").contains("hunter2"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn the_configuration_does_not_print_its_password() {
        let config = StoreConfig {
            url: "postgres://berth:hunter2@db/berth".to_owned(),
            max_connections: 2,
        };
        assert_eq!(
            format!("{config:?}"),
            "StoreConfig { url: postgres:…, max_connections: 2 }"
        );
    }

    #[test]
    fn the_limits_are_the_same_on_all_databases() {
        const IDLE_LIMIT: Duration = Duration::from_secs(3);
        let idle = IDLE_LIMIT.as_millis();
        assert!(POSTGRES_SETTINGS.contains(&format!(
            "SET idle_in_transaction_session_timeout = {idle};"
        )));
        assert!(MARIADB_SETTINGS[3].ends_with(&IDLE_LIMIT.as_secs().to_string()));
        assert!(IDLE_LIMIT < LOCK_LIMIT);
        assert!(POSTGRES_SETTINGS.ends_with(&LOCK_LIMIT.as_millis().to_string()));
        assert!(MARIADB_SETTINGS[2].ends_with(&LOCK_LIMIT.as_secs().to_string()));
    }
}
