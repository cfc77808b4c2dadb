//! With an instance go its ports, its addresses and its claims: all of them or none.

use std::sync::Arc;

use berth_common::ids::{HostId, InstanceId, NetworkId};
use berth_store::{
    Executor, StoreError, claims, claims::ClaimRole, documents, hosts, instances, networks, ports,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    deleting_an_instance_deletes_what_it_owns,
    a_rollback_restores_all_of_it,
    a_dropped_transaction_restores_all_of_it,
    deleting_twice_keeps_the_first_time,
    what_does_not_exist_cannot_be_deleted,
    a_host_goes_with_its_documents_once_nothing_is_on_it,
);

/// How many ports, addresses and claims there are, and whether the instance lives.
#[derive(Debug, PartialEq, Eq)]
struct Owned {
    alive: bool,
    ports: usize,
    addresses: usize,
    claims: usize,
}

struct Setup {
    instance: InstanceId,
    neighbour: InstanceId,
    network: NetworkId,
    host: HostId,
}

async fn set_up(store: &berth_store::Store) -> Setup {
    let (host, network, instance) = sample::populate(store).await;
    let db = store.pool();
    for (position, last) in [(0, 5), (1, 6)] {
        let mut port = sample::port(&instance, &network, last);
        port.position = position;
        ports::insert(db, &port).await.unwrap();
    }
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current))
        .await
        .unwrap();
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Incoming))
        .await
        .unwrap();
    // A neighbour, whose things must stay.
    let neighbour = sample::add_instance(db, "neighbour").await;
    ports::insert(db, &sample::port(&neighbour, &network, 7))
        .await
        .unwrap();
    claims::insert(db, &sample::claim(&neighbour, host, ClaimRole::Current))
        .await
        .unwrap();
    Setup {
        instance: instance.id,
        neighbour: neighbour.id,
        network: network.id,
        host,
    }
}

async fn owned(db: &impl Executor, setup: &Setup) -> Owned {
    let both = [setup.instance, setup.neighbour];
    let network = networks::get(db, setup.network).await.unwrap().unwrap();
    Owned {
        alive: instances::get(db, setup.instance)
            .await
            .unwrap()
            .unwrap()
            .deleted_at
            .is_none(),
        ports: ports::of_instances(db, &both).await.unwrap().len(),
        addresses: ports::addresses_in_use(db, network.subnets[0].id)
            .await
            .unwrap()
            .len(),
        claims: claims::of_hosts(db, &[setup.host]).await.unwrap().len(),
    }
}

const BEFORE: Owned = Owned {
    alive: true,
    ports: 3,
    addresses: 3,
    claims: 3,
};
const AFTER: Owned = Owned {
    alive: false,
    ports: 1,
    addresses: 1,
    claims: 1,
};

async fn deleting_an_instance_deletes_what_it_owns(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let setup = set_up(&store).await;
    assert_eq!(owned(store.pool(), &setup).await, BEFORE);
    instances::mark_deleted(store.pool(), setup.instance, sample::time(1))
        .await
        .unwrap();
    assert_eq!(owned(store.pool(), &setup).await, AFTER);
    let row = instances::get(store.pool(), setup.instance)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.deleted_at, row.updated_at),
        (Some(sample::time(1)), sample::time(1))
    );
    assert_eq!(
        networks::port_count(store.pool(), setup.network)
            .await
            .unwrap(),
        1
    );
}

async fn a_rollback_restores_all_of_it(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let setup = set_up(&store).await;
    let transaction = store.begin().await.unwrap();
    instances::mark_deleted(&transaction, setup.instance, sample::time(1))
        .await
        .unwrap();
    assert_eq!(owned(&transaction, &setup).await, AFTER);
    drop(transaction);
    assert_eq!(owned(store.pool(), &setup).await, BEFORE);
}

async fn a_dropped_transaction_restores_all_of_it(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let setup = set_up(&store).await;
    let transaction = store.begin().await.unwrap();
    instances::mark_deleted(&transaction, setup.instance, sample::time(1))
        .await
        .unwrap();
    drop(transaction);
    assert_eq!(owned(store.pool(), &setup).await, BEFORE);
    // Nobody holds a lock either.
    let transaction = store.begin().await.unwrap();
    instances::mark_deleted(&transaction, setup.instance, sample::time(1))
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(owned(store.pool(), &setup).await, AFTER);
}

async fn deleting_twice_keeps_the_first_time(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    for at in [1, 2] {
        instances::mark_deleted(db, instance.id, sample::time(at))
            .await
            .unwrap();
        networks::mark_deleted(db, network.id, sample::time(at))
            .await
            .unwrap();
    }
    assert_eq!(
        instances::get(db, instance.id)
            .await
            .unwrap()
            .unwrap()
            .deleted_at,
        Some(sample::time(1))
    );
    assert_eq!(
        networks::get(db, network.id)
            .await
            .unwrap()
            .unwrap()
            .deleted_at,
        Some(sample::time(1))
    );
}

async fn what_does_not_exist_cannot_be_deleted(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let missing = instances::mark_deleted(store.pool(), InstanceId::new(), sample::time(1)).await;
    assert!(
        matches!(
            missing,
            Err(StoreError::NotFound {
                table: "instances",
                ..
            })
        ),
        "{missing:?}"
    );
    let missing = networks::mark_deleted(store.pool(), NetworkId::new(), sample::time(1)).await;
    assert!(
        matches!(
            missing,
            Err(StoreError::NotFound {
                table: "networks",
                ..
            })
        ),
        "{missing:?}"
    );
}

async fn a_host_goes_with_its_documents_once_nothing_is_on_it(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, instance) = sample::populate(&store).await;
    let neighbour = sample::add_host(db, "neighbour").await;
    for on in [host, neighbour] {
        documents::upsert(db, &sample::document(on, instance.id))
            .await
            .unwrap();
    }
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current))
        .await
        .unwrap();

    let refused = hosts::delete(db, host).await;
    assert!(
        matches!(&refused, Err(StoreError::InUse { table: "hosts", by: "claims", id }) if *id == host.to_string()),
        "{refused:?}"
    );
    assert_eq!(documents::of_host(db, host).await.unwrap().len(), 1);

    claims::delete_of_instance(db, instance.id).await.unwrap();
    // As part of a transaction it is undone with it.
    let transaction = store.begin().await.unwrap();
    hosts::delete(&transaction, host).await.unwrap();
    drop(transaction);
    assert!(hosts::get(db, host).await.unwrap().is_some());

    hosts::delete(db, host).await.unwrap();
    assert_eq!(hosts::get(db, host).await.unwrap(), None);
    assert_eq!(documents::of_host(db, host).await.unwrap(), []);
    assert_eq!(documents::of_host(db, neighbour).await.unwrap().len(), 1);
    let again = hosts::delete(db, host).await;
    assert!(
        matches!(again, Err(StoreError::NotFound { table: "hosts", .. })),
        "{again:?}"
    );
}
