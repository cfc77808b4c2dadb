//! One scheduler for each SQLite file; and configuration that cannot work.

use std::sync::Arc;

use berth_store::{Store, StoreConfig, StoreError};

use crate::database::{Kind, TestDatabase, on_all_databases};

on_all_databases!(configuration_that_cannot_work_is_refused);

/// Servers lock nothing.
mod files {
    crate::database::run_on!(Sqlite, super, a_second_scheduler_on_one_file_is_refused);
}
mod servers {
    mod postgres {
        crate::database::run_on!(
            Postgres,
            super::super,
            several_schedulers_may_share_a_server
        );
    }
    mod mariadb {
        crate::database::run_on!(MariaDb, super::super, several_schedulers_may_share_a_server);
    }
}

#[track_caller]
fn locked<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreError {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    assert!(!error.retryable());
    error
}

async fn several_schedulers_may_share_a_server(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    assert!(one.try_lock_exclusive().unwrap().is_none());
    assert!(two.try_lock_exclusive().unwrap().is_none());
}

async fn a_second_scheduler_on_one_file_is_refused(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let held = one.try_lock_exclusive().unwrap();
    assert!(held.is_some());
    let error = locked(two.try_lock_exclusive()).to_string();
    assert!(
        error.starts_with("another scheduler is running on this database: "),
        "{error}"
    );
    assert!(
        error.ends_with("berth.db.lock is locked; use PostgreSQL or MariaDB for a standby"),
        "{error}"
    );
    // Another way to the same file is no way around the lock.
    let link = database.url.replace("berth.db", "link.db");
    let path = |url: &str| url.strip_prefix("sqlite://").unwrap().to_owned();
    std::os::unix::fs::symlink(path(&database.url), path(&link)).unwrap();
    let config = StoreConfig {
        url: link,
        max_connections: 1,
    };
    let linked = Store::connect(&config).await.unwrap();
    locked(linked.try_lock_exclusive());
    // The lock outlives the store, and ends with its own value.
    drop(one);
    locked(two.try_lock_exclusive());
    drop(held);
    assert!(two.try_lock_exclusive().unwrap().is_some());
}

async fn configuration_that_cannot_work_is_refused(database: Arc<TestDatabase>) {
    let none = Store::connect(&StoreConfig {
        url: database.url.clone(),
        max_connections: 0,
    })
    .await;
    assert!(matches!(none, Err(StoreError::Config { .. })), "{none:?}");
    if database.kind == Kind::Sqlite {
        let url = database.url.replace("berth.db", "missing/berth.db");
        let error = Store::connect(&StoreConfig {
            url,
            max_connections: 1,
        })
        .await
        .unwrap_err();
        assert!(format!("{error:?}").contains("unable to open"), "{error:?}");
    } else {
        let url = database.url.replace("berth:berth@", "berth:hunter2@");
        let error = Store::connect(&StoreConfig {
            url,
            max_connections: 1,
        })
        .await
        .unwrap_err();
        assert!(matches!(error, StoreError::Query { .. }), "{error:?}");
        assert!(
            !format!("{error:?} {error}").contains("hunter2"),
            "{error:?}"
        );
    }
}
