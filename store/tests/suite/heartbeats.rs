//! Heartbeats count by session and sequence, and never touch what operators decided.

use std::sync::Arc;

use berth_common::{message::view::HostStatus, units::AllocationRatio};
use berth_store::{StoreError, hosts};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    only_newer_heartbeats_count,
    heartbeats_keep_what_operators_decided,
    a_host_may_be_renamed,
    hosts_are_listed_by_name,
);

async fn only_newer_heartbeats_count(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut heartbeat = sample::heartbeat("hv1");
    let mut newest = (0, 0);
    let arrivals = [
        (1, 1),
        (1, 3),
        (1, 2),
        (1, 3),
        (2, 1),
        (1, 9),
        (2, 1),
        (3, 0),
        (2, 9),
        (3, 1),
    ];
    for (at, (session, sequence)) in (0..).zip(arrivals) {
        heartbeat.session = session;
        heartbeat.sequence = sequence;
        heartbeat.agent_version = format!("{session}.{sequence}");
        let answered = hosts::upsert_heartbeat(db, &heartbeat, time(at))
            .await
            .unwrap();
        let counts = (session, sequence) > newest;
        newest = newest.max((session, sequence));
        assert_eq!((answered.session, answered.sequence), newest);
        assert_eq!(answered.agent_version, format!("{}.{}", newest.0, newest.1));
        assert_eq!(
            answered.last_heartbeat_at == time(at),
            counts,
            "arrival {at}"
        );
        assert_eq!(answered.created_at, time(0));
        assert_eq!(hosts::get(db, answered.id).await.unwrap(), Some(answered));
    }
}

async fn heartbeats_keep_what_operators_decided(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut heartbeat = sample::heartbeat("hv1");
    let host = hosts::upsert_heartbeat(db, &heartbeat, time(0))
        .await
        .unwrap();
    assert_eq!(
        (host.status, host.disabled_reason),
        (HostStatus::Enabled, None)
    );
    hosts::set_status(db, host.id, HostStatus::Disabled, Some("new disk"))
        .await
        .unwrap();
    database.execute("UPDATE hosts SET ram_ratio = 1000").await;
    heartbeat.sequence += 1;
    heartbeat.total = sample::resources(16, 1, 1);
    let host = hosts::upsert_heartbeat(db, &heartbeat, time(1))
        .await
        .unwrap();
    assert_eq!(
        (host.status, host.disabled_reason.as_deref()),
        (HostStatus::Disabled, Some("new disk"))
    );
    assert_eq!(
        (host.ram_ratio, host.total),
        (Some(AllocationRatio::ONE), heartbeat.total)
    );
    assert_eq!(hosts::get(db, host.id).await.unwrap().as_ref(), Some(&host));
    hosts::set_status(db, host.id, HostStatus::Enabled, None)
        .await
        .unwrap();
    assert_eq!(
        hosts::get(db, host.id)
            .await
            .unwrap()
            .unwrap()
            .disabled_reason,
        None
    );

    let unknown = hosts::set_status(
        db,
        sample::heartbeat("x").host_id,
        HostStatus::Enabled,
        None,
    )
    .await;
    assert!(
        matches!(unknown, Err(StoreError::NotFound { table: "hosts", .. })),
        "{unknown:?}"
    );
}

async fn a_host_may_be_renamed(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut heartbeat = sample::heartbeat("hv1");
    hosts::upsert_heartbeat(db, &heartbeat, time(0))
        .await
        .unwrap();
    heartbeat.host = "hv9".parse().unwrap();
    heartbeat.session += 1;
    let renamed = hosts::upsert_heartbeat(db, &heartbeat, time(1))
        .await
        .unwrap();
    assert_eq!(hosts::all(db).await.unwrap(), [renamed]);
    assert_eq!(
        hosts::find_by_name(db, &"hv1".parse().unwrap())
            .await
            .unwrap(),
        None
    );
}

async fn hosts_are_listed_by_name(database: Arc<TestDatabase>) {
    let store = database.store().await;
    for name in ["hv-b", "hv1", "HV2", "hv.a"] {
        sample::add_host(store.pool(), name).await;
    }
    let names: Vec<_> = hosts::all(store.pool())
        .await
        .unwrap()
        .into_iter()
        .map(|host| host.name.to_string())
        .collect();
    assert_eq!(names, ["HV2", "hv-b", "hv.a", "hv1"]);
}
