//! The database goes away in the middle of things and comes back: every call says so, and nothing half-made stays.

use std::{sync::Arc, time::Duration};

use berth_store::{Store, StoreConfig, StoreError, instances};

use crate::{
    database::{TestDatabase, on_all_databases},
    proxy::Proxy,
    sample,
};

on_all_databases!(a_writer_waits_for_another_one_only_so_long);

/// SQLite has no server that could go away.
mod servers {
    mod postgres {
        crate::database::run_on!(
            Postgres,
            super::super,
            an_outage_is_worth_a_retry_and_passes,
            a_server_that_falls_silent_stops_nobody
        );
    }
    mod mariadb {
        crate::database::run_on!(
            MariaDb,
            super::super,
            an_outage_is_worth_a_retry_and_passes,
            a_server_that_falls_silent_stops_nobody
        );
    }
}

/// Longer than any limit inside the store.
const LIMIT: Duration = Duration::from_secs(30);

#[track_caller]
fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.retryable());
}

/// The names of the instances that are there.
async fn names(store: &Store) -> Vec<String> {
    instances::list(store.pool(), None, None, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.name.to_string())
        .collect()
}

/// Nothing is told to either side: no packet arrives any more, and the connections stay open.
async fn a_server_that_falls_silent_stops_nobody(database: Arc<TestDatabase>) {
    database.store().await;
    let (proxy, url) = Proxy::before(&database).await;
    let config = StoreConfig {
        url,
        max_connections: 4,
    };
    let store = Store::connect(&config).await.unwrap();
    sample::add_instance(store.pool(), "before").await;
    // One for each way in which a call can hang.
    let (writing, committing) = (store.begin().await.unwrap(), store.begin().await.unwrap());
    sample::add_instance(&writing, "lost1").await;
    sample::add_instance(&committing, "lost2").await;
    let (lost3, lost4) = (sample::instance("lost3"), sample::instance("lost4"));

    proxy.fall_silent().await;
    tokio::time::timeout(LIMIT, async {
        let (pinged, inserted, begun, connected, written, committed) = tokio::join!(
            store.ping(),
            instances::insert(store.pool(), &lost3),
            store.begin(),
            Store::connect(&config),
            instances::insert(&writing, &lost4),
            committing.commit(),
        );
        unavailable(pinged);
        unavailable(inserted);
        unavailable(begun);
        unavailable(connected);
        unavailable(written);
        unavailable(committed);
    })
    .await
    .unwrap();

    // The way is open for new connections; the old ones never say anything again.
    proxy.heal().await;
    // Nobody knows what this transaction holds.
    unavailable(writing.commit().await);
    tokio::time::timeout(LIMIT, async {
        // Each of the four places in the pool is free again, and holds a connection that works.
        loop {
            let (a, b, c, d) =
                tokio::join!(store.begin(), store.begin(), store.begin(), store.begin());
            if [a, b, c, d].iter().all(Result::is_ok) {
                break;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(names(&store).await, ["before"]);
    sample::add_instance(store.pool(), "after").await;
    assert_eq!(names(&store).await, ["before", "after"]);
}

async fn an_outage_is_worth_a_retry_and_passes(database: Arc<TestDatabase>) {
    database.store().await;
    let (proxy, url) = Proxy::before(&database).await;
    let config = StoreConfig {
        url,
        max_connections: 2,
    };
    let store = Store::connect(&config).await.unwrap();
    sample::add_instance(store.pool(), "before").await;
    let transaction = store.begin().await.unwrap();
    sample::add_instance(&transaction, "lost").await;

    proxy.cut().await;
    unavailable(transaction.commit().await);
    unavailable(store.ping().await);
    unavailable(instances::insert(store.pool(), &sample::instance("refused")).await);
    unavailable(store.begin().await);
    unavailable(Store::connect(&config).await);

    proxy.restore().await;
    tokio::time::timeout(LIMIT, store.ping())
        .await
        .unwrap()
        .unwrap();
    sample::add_instance(store.pool(), "after").await;
    assert_eq!(names(&store).await, ["before", "after"]);
}

async fn a_writer_waits_for_another_one_only_so_long(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let instance = sample::add_instance(one.pool(), "web").await;
    let holder = one.begin().await.unwrap();
    instances::set_desired_deleted(&holder, instance.id, sample::time(1))
        .await
        .unwrap();
    let waiting = instances::set_desired_deleted(two.pool(), instance.id, sample::time(2));
    // The holder is at work: one that does nothing would be ended.
    let working = async {
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        loop {
            pace.tick().await;
            instances::get(&holder, instance.id).await.unwrap();
        }
    };
    tokio::select! {
        () = working => panic!("it never ends"),
        waited = tokio::time::timeout(LIMIT, waiting) => unavailable(waited.unwrap()),
    }
    holder.commit().await.unwrap();
    instances::set_desired_deleted(two.pool(), instance.id, sample::time(2))
        .await
        .unwrap();
    let row = instances::get(one.pool(), instance.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.updated_at, sample::time(2));
}
