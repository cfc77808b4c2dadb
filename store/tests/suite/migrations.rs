//! The schema appears once, whoever asks how often, and a newer one is left alone.

use std::sync::Arc;

use berth_store::StoreError;
use sea_orm::{ConnectionTrait, Statement};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    migrating_twice_is_harmless,
    migrating_from_two_processes_at_once_is_harmless,
    a_half_made_schema_is_completed,
    a_newer_schema_is_refused_and_left_alone,
);

async fn migrating_twice_is_harmless(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let host = sample::add_host(store.pool(), "hv1").await;
    store.migrate().await.unwrap();
    let again = database.store().await;
    assert_eq!(
        berth_store::hosts::all(again.pool()).await.unwrap()[0].id,
        host
    );
}

async fn migrating_from_two_processes_at_once_is_harmless(database: Arc<TestDatabase>) {
    let (one, two) = (database.connect().await, database.connect().await);
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    first.unwrap();
    second.unwrap();
    assert_eq!(berth_store::hosts::all(two.pool()).await.unwrap(), []);
}

/// What a crash in the middle leaves on MariaDB, where each statement commits by itself.
async fn a_half_made_schema_is_completed(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let connection = database.raw().await;
    for sql in [
        "DROP TABLE documents",
        "DROP TABLE nonces",
        "DELETE FROM berth_migrations",
    ] {
        connection.execute_unprepared(sql).await.unwrap();
    }
    store.migrate().await.unwrap();
    let host = sample::add_host(store.pool(), "hv1").await;
    assert_eq!(
        berth_store::documents::of_host(store.pool(), host)
            .await
            .unwrap(),
        []
    );
}

async fn a_newer_schema_is_refused_and_left_alone(database: Arc<TestDatabase>) {
    let store = database.store().await;
    database
        .execute(
            "INSERT INTO berth_migrations (version, applied_at) VALUES ('m9999_of_tomorrow', 0)",
        )
        .await;
    let error = store.migrate().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NewerSchema { unknown } if unknown == &["m9999_of_tomorrow"]),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("newer version of berth, which added m9999_of_tomorrow"),
        "{error}"
    );
    assert!(!error.retryable());
    let connection = database.raw().await;
    let statement = Statement::from_string(
        connection.get_database_backend(),
        "SELECT version FROM berth_migrations",
    );
    assert_eq!(connection.query_all_raw(statement).await.unwrap().len(), 3);
}
