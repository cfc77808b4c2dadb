//! The life of a document: written, published, published again, confirmed, made due anew, deleted.

use std::sync::Arc;

use berth_common::{
    document::DocumentKey,
    ids::{HostId, InstanceId},
    message::report::ConvergeStatus,
    units::Generation,
};
use berth_store::{
    Executor, StoreError,
    documents::{self, DocumentRow},
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    a_document_lags_until_its_generation_is_settled,
    a_late_word_about_an_old_generation_changes_nothing,
    the_longest_due_comes_first,
    a_new_session_makes_all_documents_due,
    a_document_written_as_settled_does_not_lag,
    a_failed_publish_is_tried_again_later,
    only_tombstones_that_were_carried_out_are_swept,
    tombstones_are_swept_so_many_at_once_the_oldest_first,
);

async fn due(db: &impl Executor, at: i64) -> Vec<DocumentKey> {
    documents::lagging(db, time(at), 100)
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.key)
        .collect()
}

async fn set_up(database: &TestDatabase) -> (berth_store::Store, HostId, DocumentRow) {
    let store = database.store().await;
    let host = sample::add_host(store.pool(), "hv1").await;
    let document = sample::document(host, InstanceId::new());
    documents::upsert(store.pool(), &document).await.unwrap();
    (store, host, document)
}

async fn a_document_lags_until_its_generation_is_settled(database: Arc<TestDatabase>) {
    let (store, host, mut document) = set_up(&database).await;
    let db = store.pool();
    let key = document.key;
    assert_eq!(due(db, 0).await, [key]);

    assert!(
        documents::mark_published(db, host, key, Generation(1), time(0), time(100))
            .await
            .unwrap()
    );
    assert_eq!(due(db, 99).await, []);
    assert_eq!(due(db, 100).await, [key]);
    assert_eq!(documents::lag_count(db).await.unwrap(), 1);
    let published = documents::get(db, host, key).await.unwrap().unwrap();
    assert_eq!(
        (
            published.attempts,
            published.published_at,
            published.next_publish_at
        ),
        (1, Some(time(0)), Some(time(100)))
    );

    assert!(sample::observe(db, host, key, Generation(1), ConvergeStatus::Converging).await);
    assert_eq!(due(db, 100).await, [key]);
    assert!(sample::observe(db, host, key, Generation(1), ConvergeStatus::Converged).await);
    assert_eq!(due(db, 100).await, []);
    assert_eq!(documents::lag_count(db).await.unwrap(), 0);

    document.generation = Generation(2);
    document.observed_generation = Generation(1);
    document.observed_status = Some(ConvergeStatus::Converged);
    documents::upsert(db, &document).await.unwrap();
    assert_eq!(due(db, 0).await, [key]);
    // A publisher that was busy with the old generation.
    assert!(
        !documents::mark_published(db, host, key, Generation(1), time(5), time(500))
            .await
            .unwrap()
    );
    assert_eq!(due(db, 0).await, [key]);
    for status in [
        ConvergeStatus::Converged,
        ConvergeStatus::Failed,
        ConvergeStatus::Gone,
    ] {
        sample::observe(db, host, key, Generation(1), status).await;
        assert_eq!(
            due(db, 0).await,
            [key],
            "the old generation {status:?} says nothing of the new one"
        );
    }
    sample::observe(db, host, key, Generation(2), ConvergeStatus::Failed).await;
    assert_eq!(due(db, 1000).await, []);
}

async fn a_late_word_about_an_old_generation_changes_nothing(database: Arc<TestDatabase>) {
    let (store, host, mut document) = set_up(&database).await;
    let db = store.pool();
    document.generation = Generation(3);
    documents::upsert(db, &document).await.unwrap();
    assert!(sample::observe(db, host, document.key, Generation(3), ConvergeStatus::Gone).await);
    assert!(
        !sample::observe(
            db,
            host,
            document.key,
            Generation(2),
            ConvergeStatus::Converging
        )
        .await
    );
    let row = documents::get(db, host, document.key)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.observed_generation, row.observed_status),
        (Generation(3), Some(ConvergeStatus::Gone))
    );
    assert_eq!(due(db, 0).await, []);
    let unknown = sample::document(host, InstanceId::new()).key;
    assert!(!sample::observe(db, host, unknown, Generation(1), ConvergeStatus::Gone).await);
}

async fn the_longest_due_comes_first(database: Arc<TestDatabase>) {
    let (store, host, at_once) = set_up(&database).await;
    let db = store.pool();
    let mut keys = vec![at_once.key];
    for next in [-7, 0, 30] {
        let mut document = sample::document(host, InstanceId::new());
        document.next_publish_at = Some(time(next));
        documents::upsert(db, &document).await.unwrap();
        keys.push(document.key);
    }
    assert_eq!(due(db, 29).await, keys[..3]);
    assert_eq!(due(db, 30).await, keys);
    let limited = documents::lagging(db, time(30), 2).await.unwrap();
    assert_eq!(
        limited.into_iter().map(|row| row.key).collect::<Vec<_>>(),
        keys[..2]
    );
    assert_eq!(documents::lag_count(db).await.unwrap(), 4);
}

async fn a_new_session_makes_all_documents_due(database: Arc<TestDatabase>) {
    let (store, host, document) = set_up(&database).await;
    let db = store.pool();
    let other = sample::add_host(db, "hv2").await;
    let elsewhere = sample::document(other, InstanceId::new());
    documents::upsert(db, &elsewhere).await.unwrap();
    documents::mark_published(db, host, document.key, Generation(1), time(0), time(100))
        .await
        .unwrap();
    sample::observe(
        db,
        host,
        document.key,
        Generation(1),
        ConvergeStatus::Converged,
    )
    .await;
    sample::observe(
        db,
        other,
        elsewhere.key,
        Generation(1),
        ConvergeStatus::Converged,
    )
    .await;
    assert_eq!(due(db, 0).await, []);

    assert_eq!(documents::make_all_due(db, host).await.unwrap(), 1);
    assert_eq!(due(db, 0).await, [document.key]);
    let row = documents::get(db, host, document.key)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.attempts, row.observed_status),
        (0, Some(ConvergeStatus::Converged))
    );
    // Published and confirmed once more, it is quiet.
    documents::mark_published(db, host, document.key, Generation(1), time(1), time(100))
        .await
        .unwrap();
    sample::observe(
        db,
        host,
        document.key,
        Generation(1),
        ConvergeStatus::Converged,
    )
    .await;
    assert_eq!(due(db, 100).await, []);
}

async fn a_document_written_as_settled_does_not_lag(database: Arc<TestDatabase>) {
    let (store, host, mut document) = set_up(&database).await;
    let db = store.pool();
    document.observed_generation = Generation(1);
    for (status, lags) in [
        (None, true),
        (Some(ConvergeStatus::Converging), true),
        (Some(ConvergeStatus::Converged), false),
        (Some(ConvergeStatus::Failed), false),
        (Some(ConvergeStatus::Gone), false),
    ] {
        document.observed_status = status;
        documents::upsert(db, &document).await.unwrap();
        assert_eq!(!due(db, 0).await.is_empty(), lags, "{status:?}");
    }
    let stray = documents::upsert(db, &sample::document(HostId::new(), InstanceId::new())).await;
    assert!(
        matches!(stray, Err(StoreError::ForeignKey { .. })),
        "{stray:?}"
    );
    assert_eq!(documents::of_host(db, host).await.unwrap().len(), 1);
}

async fn a_failed_publish_is_tried_again_later(database: Arc<TestDatabase>) {
    let (store, host, document) = set_up(&database).await;
    let db = store.pool();
    let key = document.key;
    for (attempt, next) in [(1, 10), (2, 30)] {
        assert!(
            documents::mark_failed_publish(db, host, key, Generation(1), time(next))
                .await
                .unwrap()
        );
        let row = documents::get(db, host, key).await.unwrap().unwrap();
        assert_eq!(
            (row.attempts, row.published_at, row.next_publish_at),
            (attempt, None, Some(time(next)))
        );
        assert_eq!(due(db, next - 1).await, []);
        assert_eq!(due(db, next).await, [key]);
    }
    assert!(
        !documents::mark_failed_publish(db, host, key, Generation(2), time(99))
            .await
            .unwrap()
    );
    assert_eq!(due(db, 30).await, [key]);
}

async fn only_tombstones_that_were_carried_out_are_swept(database: Arc<TestDatabase>) {
    let (store, host, living) = set_up(&database).await;
    let db = store.pool();
    let mut kept = vec![living.key];
    let mut swept = vec![];
    for (spec, observed, status, changed, goes) in [
        (None, 1, Some(ConvergeStatus::Gone), 9, true),
        (None, 1, Some(ConvergeStatus::Gone), 10, false),
        (None, 0, Some(ConvergeStatus::Gone), 0, false),
        (None, 1, Some(ConvergeStatus::Failed), 0, false),
        (None, 1, Some(ConvergeStatus::Converging), 0, false),
        (None, 0, None, 0, false),
        (Some("{}"), 1, Some(ConvergeStatus::Gone), 0, false),
    ] {
        let mut document = sample::document(host, InstanceId::new());
        document.spec_json = spec.map(str::to_owned);
        document.observed_generation = Generation(observed);
        document.observed_status = status;
        document.changed_at = time(changed);
        documents::upsert(db, &document).await.unwrap();
        if goes { &mut swept } else { &mut kept }.push(document.key);
    }
    assert_eq!(
        documents::delete_settled_tombstones(db, time(10), 100)
            .await
            .unwrap(),
        1
    );
    assert_eq!(documents::of_keys(db, &swept).await.unwrap(), []);
    assert_eq!(
        documents::of_keys(db, &kept).await.unwrap().len(),
        kept.len()
    );
}

async fn tombstones_are_swept_so_many_at_once_the_oldest_first(database: Arc<TestDatabase>) {
    // More than one statement names.
    const OLD: i64 = 600;
    let (store, host, living) = set_up(&database).await;
    let db = store.pool();
    let tombstones: Vec<_> = (0..=OLD)
        .rev()
        .map(|age| {
            let mut document = sample::document(host, InstanceId::new());
            document.spec_json = None;
            document.observed_generation = document.generation;
            document.observed_status = Some(ConvergeStatus::Gone);
            document.changed_at = time(age);
            document
        })
        .collect();
    documents::upsert_many(db, &tombstones).await.unwrap();
    let mut left: Vec<_> = tombstones.into_iter().map(|row| row.key).collect();
    for (limit, gone) in [(0, 0), (2, 2), (300, 300), (300, 298), (300, 0)] {
        let swept = documents::delete_settled_tombstones(db, time(OLD), limit).await;
        assert_eq!(swept.unwrap(), gone);
        left.truncate(left.len() - usize::try_from(gone).unwrap());
        let mut expected: Vec<_> = [living.key].into_iter().chain(left.clone()).collect();
        expected.sort_unstable();
        let rows = documents::of_host(db, host).await.unwrap();
        let mut kept: Vec<_> = rows.into_iter().map(|row| row.key).collect();
        kept.sort_unstable();
        assert_eq!(kept, expected);
    }
    assert_eq!(left.len(), 1, "the one that is not old enough");
}
