//! What the three databases spell differently in a schema, and nothing else.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};
use sea_orm_migration::sea_query::{Alias, ColumnDef, IntoIden, TableCreateStatement};

use crate::error::{Cause, StoreError, failed};

/// The key of PostgreSQL's advisory lock: the bytes of `berth`.
const POSTGRES_LOCK_KEY: i64 = 0x0062_6572_7468;
/// How long MariaDB waits for another migration, in seconds. PostgreSQL waits for its `lock_timeout`, SQLite for
/// its busy timeout.
const MARIADB_LOCK_SECONDS: u32 = 60;

/// A table's options. MariaDB compares text by its bytes only if told so; its own default ignores case.
pub(super) fn table_options(
    backend: DbBackend,
    mut table: TableCreateStatement,
) -> TableCreateStatement {
    if backend == DbBackend::MySql {
        table
            .engine("InnoDB")
            .character_set("utf8mb4")
            .collate("utf8mb4_bin");
    }
    table
}

/// A text column of any length. MariaDB's `TEXT` ends at 64 KiB, its `LONGTEXT` at 4 GiB.
pub(super) fn long_text(backend: DbBackend, name: impl IntoIden) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    if backend == DbBackend::MySql {
        column.custom(Alias::new("longtext"));
    } else {
        column.text();
    }
    column
}

/// Waits until no other process migrates this database. SQLite's transaction is that lock already.
pub(super) async fn lock(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let backend = transaction.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => {
            format!("SELECT 1 FROM pg_advisory_xact_lock({POSTGRES_LOCK_KEY})")
        }
        DbBackend::MySql => {
            format!(
                "SELECT 1 FROM DUAL WHERE GET_LOCK(CONCAT('berth_migrate_', DATABASE()), {MARIADB_LOCK_SECONDS}) = 1"
            )
        }
        _ => return Ok(()),
    };
    let locked = transaction
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .map_err(failed("the lock for migrations"))?;
    if locked.is_none() {
        return Err(StoreError::Unavailable {
            source: Cause::new("another process is migrating the schema"),
        });
    }
    Ok(())
}

/// Gives the lock back. PostgreSQL's and SQLite's end with the transaction.
pub(super) async fn unlock(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let backend = transaction.get_database_backend();
    if backend == DbBackend::MySql {
        let sql = "SELECT RELEASE_LOCK(CONCAT('berth_migrate_', DATABASE()))";
        transaction
            .execute_raw(Statement::from_string(backend, sql))
            .await
            .map_err(failed("the lock for migrations"))?;
    }
    Ok(())
}
