//! Of several schedulers one leads, and no ex-leader can commit anything.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use berth_store::{Epoch, StoreError, instances, leadership};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    nobody_leads_at_first,
    each_take_gets_an_epoch_of_its_own,
    an_ex_leader_is_told_that_it_is_one,
    a_leader_in_the_middle_of_a_transaction_ends_it_before_another_leads,
);

/// SQLite's one process cannot be frozen beside another one: its file is locked.
mod servers {
    mod postgres {
        crate::database::run_on!(
            Postgres,
            super::super,
            a_leader_that_is_frozen_in_a_transaction_is_overtaken
        );
    }
    mod mariadb {
        crate::database::run_on!(
            MariaDb,
            super::super,
            a_leader_that_is_frozen_in_a_transaction_is_overtaken
        );
    }
}

async fn nobody_leads_at_first(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    assert_eq!(leadership::current(db).await.unwrap(), None);
    let epoch = leadership::take(db, "hv1 pid 7\0", time(5)).await.unwrap();
    assert_eq!(epoch.get(), 1);
    let current = leadership::current(db).await.unwrap().unwrap();
    assert_eq!(
        (current.epoch, current.holder.as_str(), current.taken_at),
        (epoch, "hv1 pid 7\u{FFFD}", time(5))
    );
    // A schema that is brought up to date again still knows who leads.
    store.migrate().await.unwrap();
    assert_eq!(leadership::current(db).await.unwrap(), Some(current));
}

async fn each_take_gets_an_epoch_of_its_own(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let mut epochs = BTreeSet::new();
    for _ in 0..10 {
        let (first, second) = tokio::join!(
            leadership::take(one.pool(), "one", time(0)),
            leadership::take(two.pool(), "two", time(0)),
        );
        for (epoch, holder) in [(first.unwrap(), "one"), (second.unwrap(), "two")] {
            assert!(epochs.insert(epoch), "{epoch} was given twice");
            let current = leadership::current(one.pool()).await.unwrap().unwrap();
            assert!(epoch <= current.epoch);
            assert_eq!(epoch == current.epoch, holder == current.holder);
        }
    }
    assert_eq!(epochs.len(), 20);
    // As part of a transaction that is undone it was never taken.
    let last = epochs.last().copied();
    let transaction = one.begin().await.unwrap();
    leadership::take(&transaction, "nobody", time(0))
        .await
        .unwrap();
    drop(transaction);
    let current = leadership::current(two.pool()).await.unwrap().unwrap();
    assert_eq!(Some(current.epoch), last);
}

#[track_caller]
fn fenced<T: std::fmt::Debug>(result: Result<T, StoreError>, mine: Epoch, other: Epoch) {
    let error = result.unwrap_err();
    assert!(
        matches!(error, StoreError::Fenced { ours, newest } if ours == mine && newest == other),
        "{error:?}"
    );
    assert!(!error.retryable());
    assert_eq!(
        error.to_string(),
        format!(
            "another scheduler took over: this one leads in epoch {mine}, the database is in epoch {other}"
        )
    );
}

async fn an_ex_leader_is_told_that_it_is_one(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let first = leadership::take(one.pool(), "one", time(0)).await.unwrap();
    for name in ["web", "db"] {
        let transaction = one.begin_as(first).await.unwrap();
        sample::add_instance(&transaction, name).await;
        transaction.commit().await.unwrap();
    }
    let second = leadership::take(two.pool(), "two", time(1)).await.unwrap();
    fenced(one.begin_as(first).await, first, second);
    let transaction = two.begin_as(second).await.unwrap();
    sample::add_instance(&transaction, "next").await;
    transaction.commit().await.unwrap();
    fenced(one.begin_as(first).await, first, second);
    fenced(
        one.begin_as(Epoch::default()).await,
        Epoch::default(),
        second,
    );
    // A refused one keeps nothing: the leader goes on.
    two.begin_as(second).await.unwrap().commit().await.unwrap();
}

async fn a_leader_in_the_middle_of_a_transaction_ends_it_before_another_leads(
    database: Arc<TestDatabase>,
) {
    let (one, two) = (database.store().await, database.store().await);
    let first = leadership::take(one.pool(), "one", time(0)).await.unwrap();
    let transaction = one.begin_as(first).await.unwrap();
    let taking = tokio::spawn({
        let two = two.clone();
        async move { leadership::take(two.pool(), "two", time(1)).await }
    });
    // Long enough for the other one to ask, whatever it does meanwhile.
    let web = sample::add_instance(&transaction, "web").await;
    for _ in 0..50 {
        instances::set_desired_deleted(&transaction, web.id, time(1))
            .await
            .unwrap();
        tokio::task::yield_now().await;
    }
    assert!(!taking.is_finished());
    transaction.commit().await.unwrap();
    let second = taking.await.unwrap().unwrap();
    assert!(second > first);
    fenced(one.begin_as(first).await, first, second);
    let row = instances::get(two.pool(), web.id).await.unwrap().unwrap();
    assert!(row.desired_deleted);
}

async fn a_leader_that_is_frozen_in_a_transaction_is_overtaken(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    let first = leadership::take(one.pool(), "one", time(0)).await.unwrap();
    let transaction = one.begin_as(first).await.unwrap();
    let web = sample::add_instance(&transaction, "web").await;

    // Nothing happens in it any more. One try of the other one is enough: it waits longer than the server does.
    let taken = tokio::time::timeout(
        Duration::from_secs(10),
        leadership::take(two.pool(), "two", time(1)),
    );
    let second = taken.await.unwrap().unwrap();
    assert!(second > first);

    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert_eq!(instances::get(two.pool(), web.id).await.unwrap(), None);
    fenced(one.begin_as(first).await, first, second);
}
