//! Decisions are kept for some time and some number.

use std::sync::Arc;

use berth_common::{
    ids::{HostId, InstanceId},
    message::placement::{FilterResult, NearMiss, ScorePart, ScoredHost},
};
use berth_store::{StoreError, UniqueWhat, decisions};
use chrono::{DateTime, Utc};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    a_decision_is_read_back_whole,
    the_newest_decision_comes_first,
    the_newest_are_kept,
    old_decisions_are_forgotten,
);

async fn a_decision_is_read_back_whole(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut row = sample::decision(InstanceId::new(), 0);
    let host = ScoredHost {
        host_id: HostId::new(),
        host: "hv1".parse().unwrap(),
        score: i64::MIN,
        parts: vec![ScorePart {
            weigher: "ram".to_owned(),
            score: i64::MAX,
        }],
    };
    row.decision.decided_at = DateTime::<Utc>::MAX_UTC;
    row.decision.attempt = u32::MAX;
    row.decision.asked = Some(sample::resources(0, 1, 2));
    row.decision.constraints = vec!["availability zone é🛳".to_owned(), String::new()];
    row.decision.hosts = u64::MAX;
    row.decision.filters = vec![FilterResult {
        filter: "ram".to_owned(),
        removed: u64::MAX,
    }];
    row.decision.runner_up = Some(host.clone());
    row.decision.nearest_misses = vec![NearMiss {
        host_id: host.host_id,
        host: host.host.clone(),
        filter: "disk".to_owned(),
        reason: "é🛳\n'\"\\\0".to_owned(),
        missing: Some(u64::MAX),
    }];
    row.decision.chosen = Some(host);
    // Longer than MariaDB's `TEXT`.
    row.decision.summary = "🛳".repeat(20_000);
    decisions::insert_many(db, std::slice::from_ref(&row))
        .await
        .unwrap();
    assert_eq!(
        decisions::of_instance(db, row.instance_id, 10)
            .await
            .unwrap(),
        [row.clone()]
    );
    let again = decisions::insert_many(db, &[row]).await;
    assert!(
        matches!(
            again,
            Err(StoreError::Unique {
                constraint: UniqueWhat::Id,
                ..
            })
        ),
        "{again:?}"
    );
}

/// Decisions about one instance, two at each moment, the newest first; and one about another instance.
async fn set_up(
    store: &berth_store::Store,
) -> (InstanceId, InstanceId, Vec<decisions::DecisionRow>) {
    let (web, other) = (InstanceId::new(), InstanceId::new());
    let mut rows: Vec<_> = [1, 1, 0, 2, 0, 2]
        .into_iter()
        .map(|at| sample::decision(web, at))
        .collect();
    decisions::insert_many(store.pool(), &rows).await.unwrap();
    decisions::insert_many(store.pool(), &[sample::decision(other, 1)])
        .await
        .unwrap();
    rows.sort_by_key(|row| std::cmp::Reverse((row.decision.decided_at, row.id)));
    (web, other, rows)
}

async fn the_newest_decision_comes_first(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (web, other, rows) = set_up(&store).await;
    let db = store.pool();
    for limit in [0, 1, 3, 6, u32::MAX] {
        let read = decisions::of_instance(db, web, limit).await.unwrap();
        let expected: Vec<_> = rows
            .iter()
            .take(usize::try_from(limit).unwrap())
            .cloned()
            .collect();
        assert_eq!(read, expected);
    }
    assert_eq!(decisions::of_instance(db, other, 9).await.unwrap().len(), 1);
}

async fn the_newest_are_kept(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (web, other, rows) = set_up(&store).await;
    let db = store.pool();
    for (keep, deleted) in [
        (u32::MAX, 0),
        (6, 0),
        (5, 1),
        (2, 3),
        (2, 0),
        (0, 2),
        (0, 0),
    ] {
        assert_eq!(decisions::trim(db, web, keep).await.unwrap(), deleted);
        let left = decisions::of_instance(db, web, u32::MAX).await.unwrap();
        assert_eq!(left, rows[..left.len()]);
        assert!(left.len() <= usize::try_from(keep).unwrap());
    }
    assert_eq!(decisions::of_instance(db, other, 9).await.unwrap().len(), 1);
}

async fn old_decisions_are_forgotten(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (web, other, rows) = set_up(&store).await;
    let db = store.pool();
    assert_eq!(decisions::delete_before(db, time(1), 100).await.unwrap(), 2);
    assert_eq!(decisions::of_instance(db, web, 9).await.unwrap(), rows[..4]);
    // At most so many at once, the oldest first.
    assert_eq!(decisions::delete_before(db, time(2), 2).await.unwrap(), 2);
    assert_eq!(decisions::delete_before(db, time(2), 2).await.unwrap(), 1);
    assert_eq!(decisions::of_instance(db, web, 9).await.unwrap(), rows[..2]);
    assert_eq!(decisions::of_instance(db, other, 9).await.unwrap(), []);
}
