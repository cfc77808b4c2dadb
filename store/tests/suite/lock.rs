//! One scheduler for each SQLite file; the servers need no lock.

use std::sync::Arc;

use berth_store::{Store, StoreConfig, StoreError};

use crate::database::{Kind, TestDatabase, on_all_databases};

on_all_databases!(
    a_second_scheduler_on_one_file_is_refused,
    configuration_that_cannot_work_is_refused
);

async fn a_second_scheduler_on_one_file_is_refused(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let held = one.try_lock_exclusive().await.unwrap();
    let second = two.try_lock_exclusive().await;
    if database.kind == Kind::Sqlite {
        let error = second.unwrap_err();
        assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
        assert!(error.to_string().contains("berth.db.lock"), "{error}");
        // Another way to the same file is no way around the lock.
        let link = database.url.replace("berth.db", "link.db");
        let path = |url: &str| url.strip_prefix("sqlite://").unwrap().to_owned();
        std::os::unix::fs::symlink(path(&database.url), path(&link)).unwrap();
        let three = Store::connect(&StoreConfig {
            url: link,
            max_connections: 1,
        })
        .await
        .unwrap();
        assert!(matches!(
            three.try_lock_exclusive().await,
            Err(StoreError::Locked { .. })
        ));
        drop(held);
        two.try_lock_exclusive().await.map(drop).unwrap();
    } else {
        second.map(drop).unwrap();
    }
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
