//! One scheduler for each database.

use std::{future::Future, sync::Arc, time::Duration};

use berth_store::{ExclusiveLock, Store, StoreConfig, StoreError};

use crate::{
    database::{Kind, TestDatabase, on_all_databases},
    proxy::Proxy,
};

on_all_databases!(
    a_second_scheduler_on_one_database_is_refused,
    configuration_that_cannot_work_is_refused
);

/// A file's lock cannot be lost.
mod servers {
    mod postgres {
        crate::database::run_on!(
            Postgres,
            super::super,
            a_lost_lock_is_taken_anew,
            a_lock_that_somebody_else_took_meanwhile_is_lost,
            a_lock_session_that_falls_silent_is_not_mistaken_for_another_scheduler
        );
    }
    mod mariadb {
        crate::database::run_on!(
            MariaDb,
            super::super,
            a_lost_lock_is_taken_anew,
            a_lock_that_somebody_else_took_meanwhile_is_lost,
            a_lock_session_that_falls_silent_is_not_mistaken_for_another_scheduler
        );
    }
}

/// Longer than any limit inside the store.
const LIMIT: Duration = Duration::from_secs(30);

#[track_caller]
fn locked<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreError {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    assert!(!error.retryable());
    error
}

#[track_caller]
fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
}

async fn connect(url: String) -> Store {
    let config = StoreConfig {
        url,
        max_connections: 1,
    };
    Store::connect(&config).await.unwrap()
}

/// Repeats an attempt until it succeeds: a server needs a moment to notice that a connection has ended.
async fn eventually<T, F: Future<Output = Result<T, StoreError>>>(
    mut attempt: impl FnMut() -> F,
) -> T {
    let repeated = async {
        loop {
            if let Ok(value) = attempt().await {
                return value;
            }
        }
    };
    tokio::time::timeout(LIMIT, repeated).await.unwrap()
}

async fn eventually_checked(lock: &mut ExclusiveLock) {
    let repeated = async { while lock.check().await.is_err() {} };
    tokio::time::timeout(LIMIT, repeated).await.unwrap();
}

async fn a_second_scheduler_on_one_database_is_refused(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let mut held = one.try_lock_exclusive().await.unwrap();
    let error = locked(two.try_lock_exclusive().await);
    assert!(
        error
            .to_string()
            .starts_with("another scheduler is running on this database: "),
        "{error}"
    );
    if database.kind == Kind::Sqlite {
        assert!(error.to_string().contains("berth.db.lock"), "{error}");
        // Another way to the same file is no way around the lock.
        let link = database.url.replace("berth.db", "link.db");
        let path = |url: &str| url.strip_prefix("sqlite://").unwrap().to_owned();
        std::os::unix::fs::symlink(path(&database.url), path(&link)).unwrap();
        locked(connect(link).await.try_lock_exclusive().await);
    }
    held.check().await.unwrap();
    held.check().await.unwrap();
    locked(two.try_lock_exclusive().await);
    // The lock outlives the store, and ends with its own value.
    drop(one);
    locked(two.try_lock_exclusive().await);
    drop(held);
    let _held = eventually(|| two.try_lock_exclusive()).await;
}

async fn a_lost_lock_is_taken_anew(database: Arc<TestDatabase>) {
    let other = database.store().await;
    let (proxy, url) = Proxy::before(&database).await;
    let mut lock = connect(url).await.try_lock_exclusive().await.unwrap();
    proxy.cut().await;
    unavailable(lock.check().await);
    proxy.restore().await;
    eventually_checked(&mut lock).await;
    locked(other.try_lock_exclusive().await);
    lock.check().await.unwrap();
}

async fn a_lock_that_somebody_else_took_meanwhile_is_lost(database: Arc<TestDatabase>) {
    let other = database.store().await;
    let (proxy, url) = Proxy::before(&database).await;
    let mut lock = connect(url).await.try_lock_exclusive().await.unwrap();
    proxy.cut().await;
    let mut faster = eventually(|| other.try_lock_exclusive()).await;
    unavailable(lock.check().await);
    proxy.restore().await;
    locked(lock.check().await);
    faster.check().await.unwrap();
}

async fn a_lock_session_that_falls_silent_is_not_mistaken_for_another_scheduler(
    database: Arc<TestDatabase>,
) {
    let other = database.store().await;
    let (proxy, url) = Proxy::before(&database).await;
    let mut lock = connect(url).await.try_lock_exclusive().await.unwrap();
    proxy.fall_silent().await;
    unavailable(tokio::time::timeout(LIMIT, lock.check()).await.unwrap());
    // The server still believes in the old session, which is our own.
    proxy.heal().await;
    unavailable(lock.check().await);
    locked(other.try_lock_exclusive().await);
    // Now it learns that the session is gone.
    proxy.cut().await;
    proxy.restore().await;
    eventually_checked(&mut lock).await;
    locked(other.try_lock_exclusive().await);
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
