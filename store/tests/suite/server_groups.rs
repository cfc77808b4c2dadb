//! Server groups and the instances in them.

use std::{collections::BTreeMap, sync::Arc};

use berth_common::{ids::ServerGroupId, message::placement::ServerGroupPolicy};
use berth_store::{StoreError, UniqueWhat, instances, server_groups};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    groups_are_read_back,
    only_the_living_are_members,
    a_group_goes_without_its_members,
    names_of_groups_are_unique_in_their_project,
);

async fn groups_are_read_back(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut rows = vec![];
    for (created, policy, most) in [
        (3, ServerGroupPolicy::Affinity, None),
        (1, ServerGroupPolicy::AntiAffinity, Some(u32::MAX)),
        (2, ServerGroupPolicy::SoftAffinity, Some(0)),
        (4, ServerGroupPolicy::SoftAntiAffinity, None),
    ] {
        let mut row = sample::server_group(&format!("g{created}"));
        row.policy = policy;
        row.max_server_per_host = most;
        row.created_at = time(created);
        row.project = if created == 4 { "other" } else { "default" }
            .parse()
            .unwrap();
        server_groups::insert(db, &row).await.unwrap();
        let read = server_groups::get(db, row.id).await.unwrap();
        assert_eq!(read.as_ref(), Some(&row));
        let named = server_groups::find_by_name(db, &row.project, &row.name).await;
        assert_eq!(named.unwrap().as_ref(), Some(&row));
        rows.push(row);
    }
    rows.sort_by_key(|row| row.created_at);
    assert_eq!(server_groups::list(db, None).await.unwrap(), rows);
    let other = "other".parse().unwrap();
    assert_eq!(
        server_groups::list(db, Some(&other)).await.unwrap(),
        rows[3..]
    );
    let elsewhere = server_groups::find_by_name(db, &other, &rows[0].name).await;
    assert_eq!(elsewhere.unwrap(), None);
    assert_eq!(
        server_groups::get(db, ServerGroupId::new()).await.unwrap(),
        None
    );
}

async fn only_the_living_are_members(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (together, apart, empty) = (
        sample::server_group("together"),
        sample::server_group("apart"),
        sample::server_group("empty"),
    );
    for group in [&together, &apart, &empty] {
        server_groups::insert(db, group).await.unwrap();
    }
    let mut expected: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (created, group) in [(3, &together), (2, &apart), (1, &together), (4, &together)] {
        let mut row = sample::instance(&format!("i{created}"));
        row.created_at = time(created);
        row.server_group_id = Some(group.id);
        instances::insert(db, &row).await.unwrap();
        if created == 4 {
            instances::mark_deleted(db, row.id, time(5)).await.unwrap();
        } else {
            let members = expected.entry(group.id).or_default();
            members.push((created, row.id));
        }
    }
    sample::add_instance(db, "alone").await;
    let expected = expected
        .into_iter()
        .map(|(group, mut members)| {
            members.sort_unstable();
            (group, members.into_iter().map(|(_, id)| id).collect())
        })
        .collect();
    let ids = [together.id, empty.id, apart.id, ServerGroupId::new()];
    assert_eq!(server_groups::members(db, &ids).await.unwrap(), expected);
    assert_eq!(
        server_groups::members(db, &[]).await.unwrap(),
        BTreeMap::new()
    );
}

async fn a_group_goes_without_its_members(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let group = sample::server_group("apart");
    server_groups::insert(db, &group).await.unwrap();
    let mut row = sample::instance("web");
    row.server_group_id = Some(group.id);
    instances::insert(db, &row).await.unwrap();
    let transaction = store.begin().await.unwrap();
    server_groups::delete(&transaction, group.id).await.unwrap();
    drop(transaction);
    assert_eq!(
        instances::get(db, row.id).await.unwrap().as_ref(),
        Some(&row)
    );
    server_groups::delete(db, group.id).await.unwrap();
    row.server_group_id = None;
    assert_eq!(instances::get(db, row.id).await.unwrap(), Some(row));
    let missing = server_groups::delete(db, group.id).await;
    assert!(
        matches!(
            missing,
            Err(StoreError::NotFound {
                table: "server_groups",
                ..
            })
        ),
        "{missing:?}"
    );
}

async fn names_of_groups_are_unique_in_their_project(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let first = sample::server_group("apart");
    server_groups::insert(db, &first).await.unwrap();
    let mut elsewhere = sample::server_group("apart");
    elsewhere.project = "other".parse().unwrap();
    server_groups::insert(db, &elsewhere).await.unwrap();
    let mut same_id = sample::server_group("next");
    same_id.id = first.id;
    for (row, what) in [
        (sample::server_group("apart"), UniqueWhat::ServerGroupName),
        (same_id, UniqueWhat::Id),
    ] {
        let refused = server_groups::insert(db, &row).await;
        assert!(
            matches!(&refused, Err(StoreError::Unique { constraint, .. }) if *constraint == what),
            "{refused:?}"
        );
    }
}
