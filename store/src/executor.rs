//! What queries run on: the pool, or a transaction. Sealed, so that the database library stays inside.
//!
//! Every statement, and every begin and commit, has a time limit, so that a connection whose other end has
//! vanished without a word stops nobody. A transaction that is dropped without [`Txn::commit`] is rolled back.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait, sqlx,
};
use sea_orm_migration::async_trait;

use crate::error::{StoreError, ends_transaction, failed};

/// How long one statement, begin, commit or ping may take. Longer than the wait for a connection and the wait
/// for another transaction's lock, each of which has a limit of its own and a better error.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Bounds one exchange with the database.
///
/// An exchange that is given up leaves its connection in the middle of something. The pool finds that out before
/// it uses the connection again, and closes it (see `connect.rs`).
pub(crate) async fn answered<T>(
    exchange: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    tokio::time::timeout(ANSWER_LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(no_answer()))
}

fn no_answer() -> DbErr {
    let text = format!("no answer within {} s", ANSWER_LIMIT.as_secs());
    let error = std::io::Error::new(std::io::ErrorKind::TimedOut, text);
    DbErr::Conn(RuntimeErr::SqlxError(sqlx::Error::Io(error).into()))
}

/// What every further statement of a transaction is told that is over.
fn is_over() -> DbErr {
    let error = std::io::Error::other("an earlier failure ended the transaction");
    DbErr::Conn(RuntimeErr::SqlxError(sqlx::Error::Io(error).into()))
}

/// The pool or a transaction; every query function takes either.
pub trait Executor: sealed::Handle {}

/// How much was asked of a database since it was opened: what a request costs, whatever the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Statements, without those that begin and end transactions.
    pub statements: u64,
    /// Rows that came back.
    pub rows: u64,
}

/// Counts for a [`Tally`].
#[derive(Debug, Default)]
pub(crate) struct Counting {
    statements: AtomicU64,
    rows: AtomicU64,
}

impl Counting {
    fn statement(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
    }

    fn rows(&self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.rows.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            statements: self.statements.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
        }
    }
}

/// The connections of a [`Store`](crate::Store); each call takes one and gives it back.
#[derive(Debug, Clone)]
pub struct Pool {
    pub(crate) connection: DatabaseConnection,
    pub(crate) counting: Arc<Counting>,
}

/// One transaction on one connection. Dropping it undoes all of it.
///
/// Isolation is READ COMMITTED on PostgreSQL and MariaDB; on SQLite a transaction has the whole database to
/// itself from its start (`BEGIN IMMEDIATE`). berth has one logical writer, which needs no more, and what two
/// writers could spoil is held by unique indexes. READ COMMITTED is the one level with the same meaning on both:
/// no gap locks on MariaDB, no serialization failures on PostgreSQL.
///
/// A statement that fails with [`StoreError::Unavailable`] ends it, whatever the database says later: nobody knows
/// what it holds. After any other error, drop it, or the [nested](Txn::nested) one that the statement was in.
#[derive(Debug)]
pub struct Txn {
    transaction: DatabaseTransaction,
    /// It cannot be committed any more. Shared with those nested in it.
    over: Arc<AtomicBool>,
    counting: Arc<Counting>,
}

impl Executor for Pool {}
impl Executor for Txn {}

impl Txn {
    /// Makes all of it permanent.
    ///
    /// # Errors
    /// After an error nothing of it is there, except when the connection broke during the commit itself: then
    /// only reading tells.
    pub async fn commit(self) -> Result<(), StoreError> {
        // PostgreSQL answers the commit of a transaction in which a statement failed with success, and rolls it
        // back. One more statement makes it say so.
        if self.transaction.get_database_backend() == DbBackend::Postgres {
            self.exchange(self.transaction.execute_unprepared("SELECT 1"))
                .await
                .map_err(failed("commit"))?;
        }
        self.end().await
    }

    /// Begins a transaction within this one, a savepoint: the outer one must rest until the inner one is committed or
    /// dropped. Dropping it undoes what was done in it; the outer one goes on. Committed, it is part of the outer one.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn nested(&self) -> Result<Self, StoreError> {
        let transaction = self
            .exchange(self.transaction.begin())
            .await
            .map_err(failed("savepoint"))?;
        Ok(Self {
            transaction,
            over: Arc::clone(&self.over),
            counting: Arc::clone(&self.counting),
        })
    }

    async fn end(self) -> Result<(), StoreError> {
        if self.over.load(Ordering::Relaxed) {
            return Err(failed("commit")(is_over()));
        }
        let Self {
            transaction, over, ..
        } = self;
        let ended = answered(transaction.commit()).await;
        if ended.is_err() {
            over.store(true, Ordering::Relaxed);
        }
        ended.map_err(failed("commit"))
    }

    async fn exchange<T>(
        &self,
        exchange: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, DbErr> {
        if self.over.load(Ordering::Relaxed) {
            return Err(is_over());
        }
        let outcome = answered(exchange).await;
        if outcome.as_ref().is_err_and(ends_transaction) {
            self.over.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

/// Opens a transaction that owns the right to write from its start.
pub(crate) async fn begin(
    connection: &DatabaseConnection,
) -> Result<DatabaseTransaction, StoreError> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    answered(connection.begin_with_options(options))
        .await
        .map_err(failed("begin"))
}

impl Pool {
    /// Opens a transaction.
    pub(crate) async fn begin(&self) -> Result<Txn, StoreError> {
        Ok(Txn {
            transaction: begin(&self.connection).await?,
            over: Arc::default(),
            counting: Arc::clone(&self.counting),
        })
    }
}

/// Several statements as one: in the caller's transaction, or in one of their own.
pub(crate) enum Scope<'a> {
    Joined(&'a Txn),
    Own(Txn),
}

impl Scope<'_> {
    pub(crate) fn handle(&self) -> Bounded<'_> {
        Bounded::Txn(match self {
            Self::Joined(transaction) => transaction,
            Self::Own(transaction) => transaction,
        })
    }

    /// Ends it; the caller's transaction stays open.
    pub(crate) async fn finish(self) -> Result<(), StoreError> {
        match self {
            Self::Joined(_) => Ok(()),
            Self::Own(transaction) => transaction.end().await,
        }
    }
}

/// Opens a [`Scope`] on whatever the caller gave.
pub(crate) async fn scope(db: &impl Executor) -> Result<Scope<'_>, StoreError> {
    match db.handle() {
        Bounded::Pool(pool) => Ok(Scope::Own(pool.begin().await?)),
        Bounded::Txn(transaction) => Ok(Scope::Joined(transaction)),
    }
}

/// An executor as the database library wants it: each statement with its time limit.
#[derive(Debug, Clone, Copy)]
pub enum Bounded<'a> {
    /// Each statement on any connection.
    Pool(&'a Pool),
    /// All on one.
    Txn(&'a Txn),
}

impl Bounded<'_> {
    fn counting(&self) -> &Counting {
        match self {
            Self::Pool(pool) => &pool.counting,
            Self::Txn(txn) => &txn.counting,
        }
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Bounded<'_> {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Pool(pool) => pool.connection.get_database_backend(),
            Self::Txn(txn) => txn.transaction.get_database_backend(),
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.counting().statement();
        match self {
            Self::Pool(pool) => answered(pool.connection.execute_raw(statement)).await,
            Self::Txn(txn) => txn.exchange(txn.transaction.execute_raw(statement)).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.counting().statement();
        match self {
            Self::Pool(pool) => answered(pool.connection.execute_unprepared(sql)).await,
            Self::Txn(txn) => txn.exchange(txn.transaction.execute_unprepared(sql)).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.counting().statement();
        let found = match self {
            Self::Pool(pool) => answered(pool.connection.query_one_raw(statement)).await,
            Self::Txn(txn) => txn.exchange(txn.transaction.query_one_raw(statement)).await,
        }?;
        self.counting().rows(usize::from(found.is_some()));
        Ok(found)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.counting().statement();
        let found = match self {
            Self::Pool(pool) => answered(pool.connection.query_all_raw(statement)).await,
            Self::Txn(txn) => txn.exchange(txn.transaction.query_all_raw(statement)).await,
        }?;
        self.counting().rows(found.len());
        Ok(found)
    }
}

pub(crate) mod sealed {
    //! What makes [`Executor`](super::Executor) ours alone.

    use super::{Bounded, Pool, Txn};

    /// Gives the database library's view of an executor.
    pub trait Handle: Send + Sync {
        #[doc(hidden)]
        fn handle(&self) -> Bounded<'_>;
    }

    impl Handle for Pool {
        fn handle(&self) -> Bounded<'_> {
            Bounded::Pool(self)
        }
    }

    impl Handle for Txn {
        fn handle(&self) -> Bounded<'_> {
            Bounded::Txn(self)
        }
    }
}
