//! Aggregates and the hosts in them.

use std::{collections::BTreeMap, sync::Arc};

use berth_common::{
    ids::{AggregateId, HostId},
    units::AllocationRatio,
};
use berth_store::{
    StoreError, UniqueWhat,
    aggregates::{self, Aggregate},
    hosts,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    what_an_aggregate_says_is_read_back,
    hosts_come_and_go,
    an_aggregate_goes_without_its_hosts,
    names_of_aggregates_are_unique,
);

async fn what_an_aggregate_says_is_read_back(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let bare = sample::aggregate("bare");
    aggregates::insert(db, &bare).await.unwrap();
    let mut full = sample::aggregate(&"A".repeat(63));
    full.availability_zone = Some("z".repeat(63).parse().unwrap());
    full.cpu_ratio = Some(AllocationRatio::from_thousandths(1).unwrap());
    full.ram_ratio = Some(AllocationRatio::ONE);
    full.disk_ratio = Some(AllocationRatio::from_thousandths(1_000_000).unwrap());
    full.properties = (0..64)
        .map(|number| {
            let key = format!("k{number}.{}", "x".repeat(50));
            (key.parse().unwrap(), " '\"~".repeat(63).parse().unwrap())
        })
        .collect();
    aggregates::insert(db, &full).await.unwrap();
    let expected = |row: &aggregates::AggregateRow| Aggregate {
        row: row.clone(),
        hosts: [].into(),
    };
    assert_eq!(
        aggregates::all(db).await.unwrap(),
        [expected(&full), expected(&bare)]
    );
    assert_eq!(
        aggregates::find_by_name(db, &full.name).await.unwrap(),
        Some(expected(&full))
    );

    let mut changed = full.clone();
    changed.name = "renamed".parse().unwrap();
    changed.availability_zone = None;
    changed.cpu_ratio = None;
    changed.ram_ratio = Some(AllocationRatio::DEFAULT_RAM);
    changed.disk_ratio = None;
    changed.properties = BTreeMap::from([("ssd".parse().unwrap(), "true".parse().unwrap())]);
    // Who made it, and when, stays.
    let mut asked = changed.clone();
    asked.fingerprint = "f2".to_owned();
    asked.created_at = time(9);
    aggregates::update(db, &asked).await.unwrap();
    assert_eq!(
        aggregates::get(db, full.id).await.unwrap(),
        Some(expected(&changed))
    );
    assert_eq!(
        aggregates::get(db, bare.id).await.unwrap(),
        Some(expected(&bare))
    );
}

async fn hosts_come_and_go(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (one, two) = (
        sample::add_host(db, "hv1").await,
        sample::add_host(db, "hv2").await,
    );
    let (ssd, gpu) = (sample::aggregate("ssd"), sample::aggregate("gpu"));
    for aggregate in [&ssd, &gpu] {
        aggregates::insert(db, aggregate).await.unwrap();
    }
    for (aggregate, host) in [(&ssd, one), (&ssd, two), (&ssd, one), (&gpu, two)] {
        aggregates::add_host(db, aggregate.id, host).await.unwrap();
    }
    let hosts = || async {
        let all = aggregates::all(db).await.unwrap();
        all.into_iter()
            .map(|aggregate| (aggregate.row.name.to_string(), aggregate.hosts))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        hosts().await,
        [
            ("gpu".to_owned(), [two].into()),
            ("ssd".to_owned(), [one, two].into())
        ]
    );
    assert!(aggregates::remove_host(db, ssd.id, one).await.unwrap());
    assert!(!aggregates::remove_host(db, ssd.id, one).await.unwrap());
    // A host that is deleted is in none.
    hosts::delete(db, two).await.unwrap();
    assert_eq!(
        hosts().await,
        [("gpu".to_owned(), [].into()), ("ssd".to_owned(), [].into())]
    );
    for (aggregate, host) in [(ssd.id, HostId::new()), (AggregateId::new(), one)] {
        let stray = aggregates::add_host(db, aggregate, host).await;
        assert!(
            matches!(stray, Err(StoreError::ForeignKey { .. })),
            "{stray:?}"
        );
    }
}

async fn an_aggregate_goes_without_its_hosts(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let (ssd, gpu) = (sample::aggregate("ssd"), sample::aggregate("gpu"));
    for aggregate in [&ssd, &gpu] {
        aggregates::insert(db, aggregate).await.unwrap();
        aggregates::add_host(db, aggregate.id, host).await.unwrap();
    }
    aggregates::delete(db, ssd.id).await.unwrap();
    assert_eq!(aggregates::get(db, ssd.id).await.unwrap(), None);
    assert!(hosts::get(db, host).await.unwrap().is_some());
    let left = aggregates::get(db, gpu.id).await.unwrap().unwrap();
    assert_eq!(left.hosts, [host].into());
    // Its name is free, and a new one of the same id has no hosts.
    aggregates::insert(db, &ssd).await.unwrap();
    let again = aggregates::get(db, ssd.id).await.unwrap().unwrap();
    assert_eq!(again.hosts, [].into());

    let unknown = sample::aggregate("unknown");
    for missing in [
        aggregates::delete(db, unknown.id).await,
        aggregates::update(db, &unknown).await,
    ] {
        assert!(
            matches!(&missing, Err(StoreError::NotFound { table: "aggregates", id }) if *id == unknown.id.to_string()),
            "{missing:?}"
        );
    }
}

async fn names_of_aggregates_are_unique(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let first = sample::aggregate("ssd");
    aggregates::insert(db, &first).await.unwrap();
    aggregates::insert(db, &sample::aggregate("SSD"))
        .await
        .unwrap();
    let other = sample::aggregate("gpu");
    aggregates::insert(db, &other).await.unwrap();
    let renamed = aggregates::AggregateRow {
        name: first.name.clone(),
        ..other
    };
    let mut same_id = sample::aggregate("next");
    same_id.id = first.id;
    for (refused, what) in [
        (
            aggregates::insert(db, &sample::aggregate("ssd")).await,
            UniqueWhat::AggregateName,
        ),
        (
            aggregates::update(db, &renamed).await,
            UniqueWhat::AggregateName,
        ),
        (aggregates::insert(db, &same_id).await, UniqueWhat::Id),
    ] {
        assert!(
            matches!(&refused, Err(StoreError::Unique { constraint, .. }) if *constraint == what),
            "{refused:?}"
        );
    }
}
