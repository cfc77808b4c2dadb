//! Lists: who is in them, in which order, page by page.

use std::{collections::BTreeMap, sync::Arc};

use berth_common::{ids::InstanceId, message::report::ConvergeStatus};
use berth_store::{
    StoreError,
    claims::{self, ClaimRole, GroupedClaim},
    instances, networks, ports,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    instances_come_page_by_page_in_order_of_creation,
    networks_come_in_order_of_creation,
    ports_of_many_instances_come_together,
    claims_come_page_by_page_with_their_groups,
);

async fn instances_come_page_by_page_in_order_of_creation(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    // Several share a moment, and the order of insertion is not that of creation.
    let mut rows = vec![];
    for (number, created) in [(0, 5), (1, 1), (2, 5), (3, 1), (4, 3), (5, 5), (6, 2)] {
        let mut row = sample::instance(&format!("i{number}"));
        row.created_at = time(created);
        row.project = if number == 4 { "other" } else { "default" }
            .parse()
            .unwrap();
        instances::insert(db, &row).await.unwrap();
        rows.push(row);
    }
    rows.sort_by_key(|row| (row.created_at, row.id));
    assert_eq!(instances::list(db, None, None, 100).await.unwrap(), rows);
    assert_eq!(instances::list(db, None, None, 3).await.unwrap(), rows[..3]);

    // Paging goes on after a row that was deleted meanwhile.
    instances::mark_deleted(db, rows[2].id, time(9))
        .await
        .unwrap();
    let mut paged = vec![];
    let mut after = Some(rows[2].id);
    loop {
        let page = instances::list(db, None, after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        paged.extend(page);
    }
    assert_eq!(paged, rows[3..]);
    let other = "other".parse().unwrap();
    let listed = instances::list(db, Some(&other), None, 100).await.unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|row| row.name.as_str())
            .collect::<Vec<_>>(),
        ["i4"]
    );
    let unknown = instances::list(db, None, Some(InstanceId::new()), 2).await;
    assert!(
        matches!(
            unknown,
            Err(StoreError::NotFound {
                table: "instances",
                ..
            })
        ),
        "{unknown:?}"
    );
}

async fn networks_come_in_order_of_creation(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut rows = vec![];
    for (name, created) in [("c", 3), ("a", 1), ("b", 2), ("gone", 0)] {
        let mut row = sample::network(name);
        row.created_at = time(created);
        networks::insert(db, &row).await.unwrap();
        rows.push(row);
    }
    networks::mark_deleted(db, rows.pop().unwrap().id, time(9))
        .await
        .unwrap();
    rows.sort_by_key(|row| row.created_at);
    assert_eq!(networks::list(db, None).await.unwrap(), rows);
    assert_eq!(
        networks::list(db, Some(&"other".parse().unwrap()))
            .await
            .unwrap(),
        []
    );
}

async fn ports_of_many_instances_come_together(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (blue, green) = (
        sample::add_network(db, "blue").await,
        sample::add_network(db, "green").await,
    );
    let mut expected = vec![];
    for number in 1..=3 {
        let instance = sample::add_instance(db, &format!("i{number}")).await;
        for (position, network) in [(1, &green), (0, &blue)] {
            let mut port = sample::port(&instance, network, number);
            sample::put_at(&mut port, position);
            ports::insert(db, &port).await.unwrap();
            expected.push(port);
        }
    }
    expected.sort_by_key(|port| (port.instance_id(), port.position()));
    // Unknown ones, and more than one statement holds, do no harm.
    let mut ids: Vec<_> = (0..20_500).map(|_| InstanceId::new()).collect();
    ids.splice(
        10_000..10_000,
        expected
            .iter()
            .step_by(2)
            .filter_map(ports::PortRow::instance_id),
    );
    assert_eq!(ports::of_instances(db, &ids).await.unwrap(), expected);
    assert_eq!(ports::of_instances(db, &[]).await.unwrap(), []);
    assert_eq!(networks::port_count(db, blue.id).await.unwrap(), 3);
    assert_eq!(
        networks::port_counts(db).await.unwrap(),
        BTreeMap::from([(blue.id, 3), (green.id, 3)])
    );
}

async fn claims_come_page_by_page_with_their_groups(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    assert_eq!(claims::page_with_groups(db, None, 10).await.unwrap(), []);
    let (one, two) = (
        sample::add_host(db, "hv1").await,
        sample::add_host(db, "hv2").await,
    );
    let group = sample::server_group("apart");
    let mut expected = vec![];
    for number in 0..7 {
        let mut row = sample::instance(&format!("i{number}"));
        row.server_group_id = (number % 2 == 0).then_some(group.id);
        instances::insert(db, &row).await.unwrap();
        // The pages end between instances, between hosts and between roles.
        for (host, role) in [
            (one, ClaimRole::Current),
            (one, ClaimRole::Incoming),
            (two, ClaimRole::Incoming),
        ] {
            let mut claim = sample::claim(&row, host, role);
            if number == 3 {
                claim.extra = BTreeMap::from([("PCI_GPU".parse().unwrap(), 2)]);
            }
            claims::insert(db, &claim).await.unwrap();
            expected.push(GroupedClaim {
                claim,
                server_group_id: row.server_group_id,
                is_building: !row.observed.was_active
                    && row.observed.status != Some(ConvergeStatus::Failed),
            });
        }
    }
    expected.sort_by_key(|grouped| grouped.claim.key());
    for size in [1, 2, 3, 4, 5, 20, 21, 100] {
        let mut paged = vec![];
        let mut after = None;
        loop {
            let page = claims::page_with_groups(db, after, size).await.unwrap();
            assert!(page.len() <= usize::try_from(size).unwrap());
            let Some(last) = page.last() else { break };
            after = Some(last.claim.key());
            paged.extend(page);
        }
        assert_eq!(paged, expected, "pages of {size}");
    }
}
