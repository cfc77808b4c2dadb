//! A part of a transaction is undone by itself, and the rest goes on; except when the database undid more.

use std::sync::Arc;

use berth_store::{Executor, Store, StoreError, UniqueWhat, instances};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    what_is_done_in_a_dropped_savepoint_is_undone_alone,
    a_refused_row_leaves_the_others_intact,
    savepoints_nest,
    a_transaction_takes_its_savepoints_with_it,
);

/// SQLite has one writer, who waits for nobody.
mod servers {
    mod postgres {
        crate::database::run_on!(
            Postgres,
            super::super,
            the_victim_of_a_deadlock_commits_nothing
        );
    }
    mod mariadb {
        crate::database::run_on!(
            MariaDb,
            super::super,
            the_victim_of_a_deadlock_commits_nothing
        );
    }
}

async fn names(db: &impl Executor) -> Vec<String> {
    let rows = instances::list(db, None, None, 1000).await.unwrap();
    let mut names: Vec<_> = rows.into_iter().map(|row| row.name.to_string()).collect();
    names.sort();
    names
}

async fn what_is_done_in_a_dropped_savepoint_is_undone_alone(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let transaction = store.begin().await.unwrap();
    sample::add_instance(&transaction, "before").await;

    let savepoint = transaction.nested().await.unwrap();
    sample::add_instance(&savepoint, "undone").await;
    assert_eq!(names(&savepoint).await, ["before", "undone"]);
    drop(savepoint);
    assert_eq!(names(&transaction).await, ["before"]);

    let savepoint = transaction.nested().await.unwrap();
    sample::add_instance(&savepoint, "kept").await;
    savepoint.commit().await.unwrap();
    sample::add_instance(&transaction, "after").await;
    transaction.commit().await.unwrap();
    assert_eq!(names(store.pool()).await, ["after", "before", "kept"]);
}

async fn a_refused_row_leaves_the_others_intact(database: Arc<TestDatabase>) {
    let store = database.store().await;
    sample::add_instance(store.pool(), "taken").await;
    let transaction = store.begin().await.unwrap();
    for (number, name) in ["a", "taken", "b", "a", "c"].into_iter().enumerate() {
        let savepoint = transaction.nested().await.unwrap();
        sample::add_instance(&savepoint, &format!("with-{number}")).await;
        match instances::insert(&savepoint, &sample::instance(name)).await {
            Ok(()) => savepoint.commit().await.unwrap(),
            Err(StoreError::Unique {
                constraint: UniqueWhat::InstanceName,
                ..
            }) => drop(savepoint),
            Err(error) => panic!("{error:?}"),
        }
    }
    transaction.commit().await.unwrap();
    assert_eq!(
        names(store.pool()).await,
        ["a", "b", "c", "taken", "with-0", "with-2", "with-4"]
    );
}

async fn savepoints_nest(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let transaction = store.begin().await.unwrap();
    let outer = transaction.nested().await.unwrap();
    sample::add_instance(&outer, "outer").await;
    let inner = outer.nested().await.unwrap();
    sample::add_instance(&inner, "inner").await;
    let innermost = inner.nested().await.unwrap();
    sample::add_instance(&innermost, "innermost").await;
    innermost.commit().await.unwrap();
    drop(inner);
    assert_eq!(names(&outer).await, ["outer"]);
    let inner = outer.nested().await.unwrap();
    sample::add_instance(&inner, "second").await;
    inner.commit().await.unwrap();
    outer.commit().await.unwrap();

    let outer = transaction.nested().await.unwrap();
    let inner = outer.nested().await.unwrap();
    sample::add_instance(&inner, "third").await;
    inner.commit().await.unwrap();
    drop(outer);
    transaction.commit().await.unwrap();
    assert_eq!(names(store.pool()).await, ["outer", "second"]);
}

async fn a_transaction_takes_its_savepoints_with_it(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let transaction = store.begin().await.unwrap();
    let savepoint = transaction.nested().await.unwrap();
    sample::add_instance(&savepoint, "lost").await;
    savepoint.commit().await.unwrap();
    drop(transaction);
    assert!(names(store.pool()).await.is_empty());
    // Nothing is left on the connection.
    let transaction = store.begin().await.unwrap();
    let savepoint = transaction.nested().await.unwrap();
    sample::add_instance(&savepoint, "web").await;
    savepoint.commit().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(names(store.pool()).await, ["web"]);
}

/// Adds an instance, then in a savepoint changes the second row while holding the first.
async fn cross(
    store: &Store,
    name: &str,
    rows: [berth_common::ids::InstanceId; 2],
    meet: &tokio::sync::Barrier,
) -> bool {
    let transaction = store.begin().await.unwrap();
    sample::add_instance(&transaction, name).await;
    instances::set_desired_deleted(&transaction, rows[0], time(1))
        .await
        .unwrap();
    meet.wait().await;
    let savepoint = transaction.nested().await.unwrap();
    let changed = instances::set_desired_deleted(&savepoint, rows[1], time(1)).await;
    drop(savepoint);
    if let Err(error) = &changed {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        // MariaDB undid all of it, and would let this one commit by itself.
        let more = instances::insert(&transaction, &sample::instance("stray")).await;
        assert!(
            matches!(more, Err(StoreError::Unavailable { .. })),
            "{more:?}"
        );
    }
    let committed = transaction.commit().await;
    assert_eq!(committed.is_ok(), changed.is_ok(), "{committed:?}");
    committed.is_ok()
}

async fn the_victim_of_a_deadlock_commits_nothing(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let a = sample::add_instance(one.pool(), "row-a").await.id;
    let b = sample::add_instance(one.pool(), "row-b").await.id;
    let meet = tokio::sync::Barrier::new(2);
    let (first, second) = tokio::join!(
        cross(&one, "one", [a, b], &meet),
        cross(&two, "two", [b, a], &meet),
    );
    assert!(first ^ second, "{first} {second}");
    let winner = if first { "one" } else { "two" };
    assert_eq!(names(one.pool()).await, {
        let mut expected = [winner, "row-a", "row-b"];
        expected.sort_unstable();
        expected
    });
}
