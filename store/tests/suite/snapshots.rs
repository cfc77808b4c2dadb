//! Snapshots of volumes, and the volumes that are made from them.

use std::sync::Arc;

use berth_common::{
    document::{SnapshotRef, VolumeFormat, VolumeSource},
    ids::SnapshotId,
    message::report::{ConvergeStatus, Fault, FaultCode},
    units::{DiskGb, Generation},
};
use berth_store::{
    StoreError, UniqueWhat, hosts,
    snapshots::{self, SnapshotClaim, SnapshotRow},
    volumes::{self, VolumeObserved},
    whole_millis,
};
use chrono::{DateTime, Utc};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    snapshots_are_read_back_at_their_extremes,
    names_of_snapshots_are_unique_among_the_living_of_a_project,
    each_setter_changes_its_own_columns_of_a_snapshot,
    snapshots_come_page_by_page_in_order_of_creation,
    what_snapshots_take_is_the_sum_of_the_living,
    a_snapshot_outlives_its_volume_and_keeps_its_host,
    what_is_being_made_is_found_by_its_source,
);

#[track_caller]
fn taken(result: Result<(), StoreError>, what: &UniqueWhat) {
    assert!(
        matches!(&result, Err(StoreError::Unique { constraint, .. }) if constraint == what),
        "{result:?}"
    );
}

async fn snapshots_are_read_back_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let least = sample::snapshot("s", &sample::volume("v", None));
    let mut most = sample::snapshot(&"S".repeat(63), &sample::volume("w", Some(host)));
    most.project = "p".repeat(63).parse().unwrap();
    most.size_gb = DiskGb::MAX;
    most.volume.format = VolumeFormat::Raw;
    most.volume.pool = "p".repeat(32).parse().unwrap();
    most.fingerprint = "é🛳".repeat(20_000);
    most.desired_deleted = true;
    most.observed = VolumeObserved {
        status: Some(ConvergeStatus::Failed),
        generation: Generation(i64::MAX.unsigned_abs()),
        progress: Some("copying, 40 %".to_owned()),
        fault: Some(Fault {
            code: FaultCode::DiskFull,
            message: "x".repeat(70_000),
        }),
        was_available: true,
        at: Some(whole_millis(DateTime::<Utc>::MAX_UTC)),
    };
    most.deleted_at = Some(whole_millis(DateTime::<Utc>::MAX_UTC));
    for snapshot in [least, most] {
        snapshots::insert(db, &snapshot).await.unwrap();
        let read = snapshots::get(db, snapshot.id).await.unwrap();
        assert_eq!(read, Some(snapshot));
    }
    assert_eq!(snapshots::get(db, SnapshotId::new()).await.unwrap(), None);
}

async fn names_of_snapshots_are_unique_among_the_living_of_a_project(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let volume = sample::volume("data", None);
    let first = sample::snapshot("monday", &volume);
    snapshots::insert(db, &first).await.unwrap();
    let second = sample::snapshot("monday", &volume);
    let again = snapshots::insert(db, &second).await;
    taken(again, &UniqueWhat::SnapshotName);
    let mut same = sample::snapshot("other", &volume);
    same.id = first.id;
    taken(snapshots::insert(db, &same).await, &UniqueWhat::Id);
    let mut elsewhere = sample::snapshot("monday", &volume);
    elsewhere.project = "other".parse().unwrap();
    snapshots::insert(db, &elsewhere).await.unwrap();
    snapshots::set_desired_deleted(db, first.id, time(1))
        .await
        .unwrap();
    let again = snapshots::insert(db, &second).await;
    taken(again, &UniqueWhat::SnapshotName);
    snapshots::mark_deleted(db, first.id, time(2))
        .await
        .unwrap();
    snapshots::insert(db, &second).await.unwrap();
    let found = snapshots::find_by_name(db, &first.project, &first.name).await;
    assert_eq!(found.unwrap().map(|row| row.id), Some(second.id));
}

async fn each_setter_changes_its_own_columns_of_a_snapshot(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let neighbour = sample::snapshot("neighbour", &sample::volume("w", None));
    snapshots::insert(db, &neighbour).await.unwrap();
    let mut expected = sample::snapshot("monday", &sample::volume("data", Some(host)));
    let id = expected.id;
    snapshots::insert(db, &expected).await.unwrap();
    let check = async |expected: &SnapshotRow| {
        let read = snapshots::get(db, id).await.unwrap();
        assert_eq!(read.as_ref(), Some(expected));
    };
    let observed = VolumeObserved {
        status: Some(ConvergeStatus::Converged),
        generation: Generation(3),
        was_available: true,
        at: Some(time(1)),
        ..VolumeObserved::default()
    };
    snapshots::set_observed(db, id, &observed, time(1))
        .await
        .unwrap();
    expected.observed = observed;
    expected.updated_at = time(1);
    check(&expected).await;
    snapshots::set_desired_deleted(db, id, time(2))
        .await
        .unwrap();
    expected.desired_deleted = true;
    expected.updated_at = time(2);
    check(&expected).await;
    snapshots::mark_deleted(db, id, time(3)).await.unwrap();
    expected.deleted_at = Some(time(3));
    expected.updated_at = time(3);
    expected.host_id = None;
    check(&expected).await;
    snapshots::mark_deleted(db, id, time(4)).await.unwrap();
    check(&expected).await;
    let untouched = snapshots::get(db, neighbour.id).await.unwrap();
    assert_eq!(untouched, Some(neighbour));
    let unknown = SnapshotId::new();
    for result in [
        snapshots::mark_deleted(db, unknown, time(1)).await,
        snapshots::set_desired_deleted(db, unknown, time(1)).await,
        snapshots::set_observed(db, unknown, &VolumeObserved::default(), time(1)).await,
    ] {
        assert!(
            matches!(result, Err(StoreError::NotFound { .. })),
            "{result:?}"
        );
    }
}

async fn snapshots_come_page_by_page_in_order_of_creation(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let volume = sample::volume("data", None);
    let mut ids = Vec::new();
    for number in 0..5 {
        let mut snapshot = sample::snapshot(&format!("s{number}"), &volume);
        snapshot.created_at = time(number / 2);
        snapshots::insert(db, &snapshot).await.unwrap();
        ids.push((snapshot.created_at, snapshot.id));
    }
    ids.sort();
    let page = async |after: Option<usize>, limit| {
        let after = after.map(|place| ids[place].1);
        let rows = snapshots::list(db, None, after, limit).await.unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2).await, [ids[0].1, ids[1].1]);
    snapshots::mark_deleted(db, ids[1].1, time(9))
        .await
        .unwrap();
    assert_eq!(page(Some(1), 2).await, [ids[2].1, ids[3].1]);
    assert_eq!(page(Some(3), 9).await, [ids[4].1]);
    let other = "other".parse().unwrap();
    let none = snapshots::list(db, Some(&other), None, 9).await.unwrap();
    assert_eq!(none, []);
    let unknown = snapshots::list(db, None, Some(SnapshotId::new()), 9).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })));
}

async fn what_snapshots_take_is_the_sum_of_the_living(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let volume = sample::volume("data", Some(host));
    let mut living = sample::snapshot("living", &volume);
    living.volume.pool = "fast".parse().unwrap();
    let gone = sample::snapshot("gone", &volume);
    for snapshot in [&living, &gone] {
        snapshots::insert(db, snapshot).await.unwrap();
    }
    snapshots::mark_deleted(db, gone.id, time(1)).await.unwrap();
    let expected = [SnapshotClaim {
        snapshot_id: living.id,
        host_id: host,
        pool: "fast".parse().unwrap(),
        size_gb: living.size_gb,
        project: living.project.clone(),
    }];
    let found = snapshots::claims_of_hosts(db, &[host]).await.unwrap();
    assert_eq!(found, expected);
    assert_eq!(found[0].of_host_disk(), DiskGb::ZERO);
    assert_eq!(
        snapshots::page_of_claims(db, None, 9).await.unwrap(),
        expected
    );
    let rest = snapshots::page_of_claims(db, Some(living.id), 9).await;
    assert_eq!(rest.unwrap(), []);
}

async fn a_snapshot_outlives_its_volume_and_keeps_its_host(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let volume = sample::volume("data", Some(host));
    volumes::insert(db, &volume).await.unwrap();
    let snapshot = sample::snapshot("monday", &volume);
    snapshots::insert(db, &snapshot).await.unwrap();
    volumes::mark_deleted(db, volume.id, time(1)).await.unwrap();
    let on_host = snapshots::of_host(db, host).await.unwrap();
    assert_eq!(on_host.as_slice(), std::slice::from_ref(&snapshot));
    let refused = hosts::delete(db, host).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::InUse {
                by: "snapshots",
                ..
            })
        ),
        "{refused:?}"
    );
    snapshots::mark_deleted(db, snapshot.id, time(2))
        .await
        .unwrap();
    hosts::delete(db, host).await.unwrap();
}

async fn what_is_being_made_is_found_by_its_source(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let volume = sample::volume("data", Some(host));
    volumes::insert(db, &volume).await.unwrap();
    let snapshot = sample::snapshot("monday", &volume);
    snapshots::insert(db, &snapshot).await.unwrap();
    let made_of = async || {
        let found = snapshots::being_made_of(db, volume.id).await.unwrap();
        found.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(made_of().await, [snapshot.id]);
    let made = VolumeObserved {
        was_available: true,
        ..VolumeObserved::default()
    };
    snapshots::set_observed(db, snapshot.id, &made, time(1))
        .await
        .unwrap();
    assert_eq!(made_of().await, []);

    let mut copy = sample::volume("copy", Some(host));
    copy.source = Some(VolumeSource::Snapshot(SnapshotRef {
        id: snapshot.id,
        pool: snapshot.volume.pool.clone(),
    }));
    volumes::insert(db, &copy).await.unwrap();
    let made_from = async || {
        let found = volumes::being_made_from_snapshot(db, snapshot.id).await;
        found.unwrap()
    };
    assert_eq!(made_from().await, [copy.clone()]);
    volumes::set_observed(db, copy.id, &made, time(2))
        .await
        .unwrap();
    assert_eq!(made_from().await, []);
}
