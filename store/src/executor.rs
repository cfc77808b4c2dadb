//! What queries run on: the pool, or a transaction. Sealed, so that the database library stays inside.
//!
//! A transaction that is dropped without [`Txn::commit`] is rolled back.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseExecutor, DatabaseTransaction, DbBackend,
    SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

use crate::error::{StoreError, failed};

/// The pool or a transaction; every query function takes either.
pub trait Executor: sealed::Handle {}

/// The connections of a [`Store`](crate::Store); each call takes one and gives it back.
#[derive(Debug, Clone)]
pub struct Pool(pub(crate) DatabaseConnection);

/// One transaction on one connection. Dropping it undoes all of it.
///
/// Isolation is READ COMMITTED on PostgreSQL and MariaDB; on SQLite a transaction has the whole database to
/// itself from its start (`BEGIN IMMEDIATE`). berth has one logical writer, which needs no more, and what two
/// writers could spoil is held by unique indexes. READ COMMITTED is the one level with the same meaning on both:
/// no gap locks on MariaDB, no serialization failures on PostgreSQL.
#[derive(Debug)]
pub struct Txn(pub(crate) DatabaseTransaction);

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
        if self.0.get_database_backend() == DbBackend::Postgres {
            self.0
                .execute_unprepared("SELECT 1")
                .await
                .map_err(failed("commit"))?;
        }
        self.0.commit().await.map_err(failed("commit"))
    }

    /// Undoes all of it, and waits until that is done.
    ///
    /// # Errors
    /// The connection is broken; the database undoes it all the same.
    pub async fn rollback(self) -> Result<(), StoreError> {
        self.0.rollback().await.map_err(failed("rollback"))
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
    connection
        .begin_with_options(options)
        .await
        .map_err(failed("begin"))
}

/// Several statements as one: in the caller's transaction, or in one of their own.
pub(crate) enum Scope<'a> {
    Joined(&'a DatabaseTransaction),
    Own(DatabaseTransaction),
}

impl Scope<'_> {
    pub(crate) fn transaction(&self) -> &DatabaseTransaction {
        match self {
            Self::Joined(transaction) => transaction,
            Self::Own(transaction) => transaction,
        }
    }

    /// Ends it; the caller's transaction stays open.
    pub(crate) async fn finish(self) -> Result<(), StoreError> {
        match self {
            Self::Joined(_) => Ok(()),
            Self::Own(transaction) => transaction.commit().await.map_err(failed("commit")),
        }
    }
}

/// Opens a [`Scope`] on whatever the caller gave.
pub(crate) async fn scope(db: &impl Executor) -> Result<Scope<'_>, StoreError> {
    match db.handle() {
        DatabaseExecutor::Connection(connection) => Ok(Scope::Own(begin(connection).await?)),
        DatabaseExecutor::Transaction(transaction) => Ok(Scope::Joined(transaction)),
        DatabaseExecutor::OwnedTransaction(transaction) => Ok(Scope::Own(transaction)),
    }
}

pub(crate) mod sealed {
    //! What makes [`Executor`](super::Executor) ours alone.

    use sea_orm::DatabaseExecutor;

    use super::{Pool, Txn};

    /// Gives the database library's view of an executor.
    pub trait Handle: Send + Sync {
        #[doc(hidden)]
        fn handle(&self) -> DatabaseExecutor<'_>;
    }

    impl Handle for Pool {
        fn handle(&self) -> DatabaseExecutor<'_> {
            DatabaseExecutor::Connection(&self.0)
        }
    }

    impl Handle for Txn {
        fn handle(&self) -> DatabaseExecutor<'_> {
            DatabaseExecutor::Transaction(&self.0)
        }
    }
}
