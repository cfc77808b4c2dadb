//! The rules that the database holds, whoever writes and however many at once.

use std::sync::Arc;

use berth_common::ids::{HostId, InstanceId, NetworkId, PortId, SubnetId};
use berth_store::{
    Store, StoreError, UniqueWhat, claims,
    claims::ClaimRole,
    hosts, instances, networks,
    ports::{self, PortRow},
};

use crate::{
    database::{Kind, TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    ids_are_unique,
    instance_names_are_unique_among_the_living_of_a_project,
    network_names_are_unique_among_the_living_of_a_project,
    host_names_are_unique_and_never_taken_over,
    names_differ_by_case,
    addresses_are_unique_in_their_network,
    an_instance_has_one_port_at_each_position,
    claims_are_unique_by_instance_host_and_role,
    a_refused_port_leaves_nothing_behind,
    rows_refer_to_rows_that_exist,
    of_two_writers_of_the_same_address_exactly_one_wins,
    of_two_writers_of_the_same_name_exactly_one_wins,
    a_transaction_with_a_refused_statement_is_never_half_committed,
);

#[track_caller]
fn taken(result: Result<(), StoreError>, what: UniqueWhat) {
    match result {
        Err(error @ StoreError::Unique { .. }) => {
            assert!(
                matches!(&error, StoreError::Unique { constraint, .. } if *constraint == what),
                "{error:?}"
            );
            assert!(!error.retryable());
        }
        other => panic!("expected that {what} is taken, got {other:?}"),
    }
}

async fn ids_are_unique(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let mut other = sample::instance("other");
    other.id = instance.id;
    taken(instances::insert(db, &other).await, UniqueWhat::Id);
    let mut other = sample::network("other");
    other.id = network.id;
    taken(networks::insert(db, &other).await, UniqueWhat::Id);
    let port = sample::port(&instance, &network, 5);
    ports::insert(db, &port).await.unwrap();
    let mut other = sample::port(&instance, &network, 6);
    other.id = port.id;
    other.position = 1;
    taken(ports::insert(db, &other).await, UniqueWhat::Id);
}

async fn instance_names_are_unique_among_the_living_of_a_project(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let first = sample::add_instance(db, "web").await;
    let second = sample::instance("web");
    taken(
        instances::insert(db, &second).await,
        UniqueWhat::InstanceName,
    );
    let mut elsewhere = sample::instance("web");
    elsewhere.project = "other".parse().unwrap();
    instances::insert(db, &elsewhere).await.unwrap();

    instances::set_desired_deleted(db, first.id, sample::time(1))
        .await
        .unwrap();
    taken(
        instances::insert(db, &second).await,
        UniqueWhat::InstanceName,
    );
    instances::mark_deleted(db, first.id, sample::time(2))
        .await
        .unwrap();
    instances::insert(db, &second).await.unwrap();
    let found = instances::find_by_name(db, &first.project, &first.name)
        .await
        .unwrap();
    assert_eq!(found.unwrap().id, second.id);
    // Any number of deleted ones may have had it.
    instances::mark_deleted(db, second.id, sample::time(3))
        .await
        .unwrap();
    assert_eq!(
        instances::find_by_name(db, &first.project, &first.name)
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        instances::get(db, first.id).await.unwrap().unwrap().name,
        second.name
    );
}

async fn network_names_are_unique_among_the_living_of_a_project(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let first = sample::add_network(db, "blue").await;
    let second = sample::network("blue");
    taken(networks::insert(db, &second).await, UniqueWhat::NetworkName);
    let mut elsewhere = sample::network("blue");
    elsewhere.project = "other".parse().unwrap();
    networks::insert(db, &elsewhere).await.unwrap();
    networks::mark_deleted(db, first.id, sample::time(1))
        .await
        .unwrap();
    networks::insert(db, &second).await.unwrap();
    let found = networks::find_by_name(db, &first.project, &first.name)
        .await
        .unwrap();
    assert_eq!(found, Some(second));
}

async fn host_names_are_unique_and_never_taken_over(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let first = hosts::upsert_heartbeat(db, &sample::heartbeat("hv1"), sample::time(0))
        .await
        .unwrap();
    // A host that was set up anew under the old name.
    let thief = sample::heartbeat("hv1");
    taken(
        hosts::upsert_heartbeat(db, &thief, sample::time(1))
            .await
            .map(drop),
        UniqueWhat::HostName,
    );
    // A host that was renamed.
    let mut renamed = sample::heartbeat("hv2");
    hosts::upsert_heartbeat(db, &renamed, sample::time(1))
        .await
        .unwrap();
    renamed.host = first.name.clone();
    renamed.sequence += 1;
    taken(
        hosts::upsert_heartbeat(db, &renamed, sample::time(2))
            .await
            .map(drop),
        UniqueWhat::HostName,
    );
    assert_eq!(hosts::get(db, first.id).await.unwrap(), Some(first));
}

async fn names_differ_by_case(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    for name in ["web", "Web", "WEB"] {
        let instance = sample::add_instance(db, name).await;
        let found = instances::find_by_name(db, &instance.project, &instance.name)
            .await
            .unwrap();
        assert_eq!(found, Some(instance));
        let network = sample::add_network(db, name).await;
        assert_eq!(
            networks::find_by_name(db, &network.project, &network.name)
                .await
                .unwrap(),
            Some(network)
        );
        let host = sample::add_host(db, name).await;
        let found = hosts::find_by_name(db, &name.parse().unwrap())
            .await
            .unwrap();
        assert_eq!(found.unwrap().id, host);
    }
    let upper = "DEFAULT".parse().unwrap();
    assert_eq!(
        instances::list(db, Some(&upper), None, 10).await.unwrap(),
        []
    );
}

async fn addresses_are_unique_in_their_network(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let second = sample::add_instance(db, "db").await;
    ports::insert(db, &sample::port(&instance, &network, 5))
        .await
        .unwrap();
    let mut same_mac = sample::port(&second, &network, 6);
    same_mac.mac_address = sample::port(&instance, &network, 5).mac_address;
    taken(ports::insert(db, &same_mac).await, UniqueWhat::MacAddress);
    let mut same_ip = sample::port(&second, &network, 6);
    same_ip.fixed_ips = sample::port(&instance, &network, 5).fixed_ips;
    taken(ports::insert(db, &same_ip).await, UniqueWhat::IpAddress);
    let mut twice = sample::port(&second, &network, 6);
    twice.fixed_ips = [twice.fixed_ips.clone(), twice.fixed_ips].concat();
    taken(ports::insert(db, &twice).await, UniqueWhat::IpAddress);
    // The same addresses in another network are other addresses.
    let green = sample::add_network(db, "green").await;
    ports::insert(db, &sample::port(&second, &green, 5))
        .await
        .unwrap();
    // And they are free again after their owner.
    instances::mark_deleted(db, instance.id, sample::time(1))
        .await
        .unwrap();
    let mut next = sample::port(&second, &network, 5);
    next.position = 1;
    ports::insert(db, &next).await.unwrap();
}

async fn an_instance_has_one_port_at_each_position(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (_, network, instance) = sample::populate(&store).await;
    ports::insert(store.pool(), &sample::port(&instance, &network, 5))
        .await
        .unwrap();
    let again = ports::insert(store.pool(), &sample::port(&instance, &network, 6)).await;
    taken(again, UniqueWhat::Other("uq_port_position".to_owned()));
}

async fn claims_are_unique_by_instance_host_and_role(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, instance) = sample::populate(&store).await;
    let other = sample::add_host(db, "hv2").await;
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current))
        .await
        .unwrap();
    taken(
        claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current)).await,
        UniqueWhat::Id,
    );
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Incoming))
        .await
        .unwrap();
    claims::insert(db, &sample::claim(&instance, other, ClaimRole::Incoming))
        .await
        .unwrap();
    assert_eq!(claims::of_hosts(db, &[host]).await.unwrap().len(), 2);
}

async fn a_refused_port_leaves_nothing_behind(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let second = sample::add_instance(db, "db").await;
    ports::insert(db, &sample::port(&instance, &network, 5))
        .await
        .unwrap();
    let mut refused = sample::port(&second, &network, 6);
    refused.fixed_ips = sample::port(&instance, &network, 5).fixed_ips;
    taken(ports::insert(db, &refused).await, UniqueWhat::IpAddress);
    assert_eq!(ports::of_instance(db, second.id).await.unwrap(), []);
    let mut refused = sample::network("green");
    refused.subnets[0].id = network.subnets[0].id;
    taken(networks::insert(db, &refused).await, UniqueWhat::Id);
    assert_eq!(networks::get(db, refused.id).await.unwrap(), None);
}

async fn rows_refer_to_rows_that_exist(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, instance) = sample::populate(&store).await;
    let check = |result: Result<(), StoreError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::ForeignKey { .. }), "{error:?}");
        assert!(!error.retryable());
    };
    let port = sample::port(&instance, &network, 5);
    check(
        ports::insert(
            db,
            &PortRow {
                instance_id: InstanceId::new(),
                ..port.clone()
            },
        )
        .await,
    );
    check(
        ports::insert(
            db,
            &PortRow {
                network_id: NetworkId::new(),
                ..port.clone()
            },
        )
        .await,
    );
    let mut lost = port;
    lost.fixed_ips[0].subnet_id = SubnetId::new();
    check(ports::insert(db, &lost).await);
    check(
        claims::insert(
            db,
            &sample::claim(&sample::instance("x"), host, ClaimRole::Current),
        )
        .await,
    );
    check(
        claims::insert(
            db,
            &sample::claim(&instance, HostId::new(), ClaimRole::Current),
        )
        .await,
    );
    check(berth_store::documents::upsert(db, &sample::document(HostId::new(), instance.id)).await);
}

/// Runs two writers at once and asserts that exactly one of them wins and the other is told what is taken.
async fn race<F: Future<Output = Result<(), StoreError>>>(one: F, two: F, what: UniqueWhat) {
    let (one, two) = tokio::join!(one, two);
    match (one, two) {
        (Ok(()), refused) | (refused, Ok(())) => taken(refused, what),
        (one, two) => panic!("nobody won: {one:?}, {two:?}"),
    }
}

async fn of_two_writers_of_the_same_address_exactly_one_wins(database: Arc<TestDatabase>) {
    async fn write(store: Store, port: PortRow) -> Result<(), StoreError> {
        let transaction = store.begin().await?;
        ports::insert(&transaction, &port).await?;
        transaction.commit().await
    }
    let (one, two) = (database.store().await, database.store().await);
    let (_, network, first) = sample::populate(&one).await;
    let second = sample::add_instance(one.pool(), "db").await;
    for round in 0..20 {
        let mut port = sample::port(&first, &network, 10 + round);
        port.position = round;
        let mut rival = PortRow {
            id: PortId::new(),
            instance_id: second.id,
            ..port.clone()
        };
        rival.mac_address = sample::port(&second, &network, 100 + round).mac_address;
        race(
            write(one.clone(), port),
            write(two.clone(), rival),
            UniqueWhat::IpAddress,
        )
        .await;
    }
    assert_eq!(
        ports::of_instances(two.pool(), &[first.id, second.id])
            .await
            .unwrap()
            .len(),
        20
    );
}

async fn of_two_writers_of_the_same_name_exactly_one_wins(database: Arc<TestDatabase>) {
    async fn write(store: Store, name: String) -> Result<(), StoreError> {
        let transaction = store.begin().await?;
        instances::insert(&transaction, &sample::instance(&name)).await?;
        transaction.commit().await
    }
    let (one, two) = (database.store().await, database.store().await);
    for round in 0..20 {
        let name = format!("web-{round}");
        race(
            write(one.clone(), name.clone()),
            write(two.clone(), name),
            UniqueWhat::InstanceName,
        )
        .await;
    }
    assert_eq!(
        instances::list(two.pool(), None, None, 100)
            .await
            .unwrap()
            .len(),
        20
    );
}

async fn a_transaction_with_a_refused_statement_is_never_half_committed(
    database: Arc<TestDatabase>,
) {
    let store = database.store().await;
    sample::add_instance(store.pool(), "web").await;
    let transaction = store.begin().await.unwrap();
    sample::add_instance(&transaction, "first").await;
    taken(
        instances::insert(&transaction, &sample::instance("web")).await,
        UniqueWhat::InstanceName,
    );
    // PostgreSQL cannot keep the first part, and must not pretend to.
    if database.kind == Kind::Postgres {
        let error = transaction.commit().await.unwrap_err();
        assert!(matches!(error, StoreError::Query { .. }), "{error:?}");
    } else {
        drop(transaction);
    }
    assert_eq!(
        instances::list(store.pool(), None, None, 10)
            .await
            .unwrap()
            .len(),
        1
    );
}
