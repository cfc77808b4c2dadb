//! A nonce is new once for each instance.

use std::sync::Arc;

use berth_common::ids::{InstanceId, Nonce};
use berth_store::nonces;

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::time,
};

on_all_databases!(
    a_nonce_is_new_once,
    of_two_at_once_one_is_new,
    old_nonces_can_be_forgotten,
    nonces_are_forgotten_so_many_at_once_the_oldest_first
);

async fn a_nonce_is_new_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (web, other, nonce) = (InstanceId::new(), InstanceId::new(), Nonce::new());
    let transaction = store.begin().await.unwrap();
    assert!(
        nonces::remember(&transaction, web, nonce, "instance.reboot", time(0))
            .await
            .unwrap()
    );
    assert!(
        !nonces::remember(&transaction, web, nonce, "instance.reboot", time(0))
            .await
            .unwrap()
    );
    drop(transaction);
    assert!(
        nonces::remember(store.pool(), web, nonce, "instance.reboot", time(0))
            .await
            .unwrap()
    );
    assert!(
        !nonces::remember(store.pool(), web, nonce, "instance.start", time(1))
            .await
            .unwrap()
    );
    assert!(
        nonces::remember(store.pool(), web, Nonce::new(), "instance.reboot", time(1))
            .await
            .unwrap()
    );
    // Nobody can use up the nonce of somebody else's instance.
    assert!(
        nonces::remember(store.pool(), other, nonce, "instance.reboot", time(1))
            .await
            .unwrap()
    );
}

async fn of_two_at_once_one_is_new(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    for _ in 0..20 {
        let (web, nonce) = (InstanceId::new(), Nonce::new());
        let (first, second) = tokio::join!(
            nonces::remember(one.pool(), web, nonce, "instance.reboot", time(0)),
            nonces::remember(two.pool(), web, nonce, "instance.reboot", time(0)),
        );
        assert!(first.unwrap() ^ second.unwrap());
    }
}

async fn old_nonces_can_be_forgotten(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (web, old, new) = (InstanceId::new(), Nonce::new(), Nonce::new());
    nonces::remember(store.pool(), web, old, "instance.reboot", time(0))
        .await
        .unwrap();
    nonces::remember(store.pool(), web, new, "instance.reboot", time(10))
        .await
        .unwrap();
    assert_eq!(
        nonces::forget_before(store.pool(), time(10), 100)
            .await
            .unwrap(),
        1
    );
    assert!(
        nonces::remember(store.pool(), web, old, "instance.reboot", time(11))
            .await
            .unwrap()
    );
    assert!(
        !nonces::remember(store.pool(), web, new, "instance.reboot", time(11))
            .await
            .unwrap()
    );
}

async fn nonces_are_forgotten_so_many_at_once_the_oldest_first(database: Arc<TestDatabase>) {
    // More than one statement names.
    const OLD: i64 = 300;
    let store = database.store().await;
    // The same wish of many instances, and many of one.
    let (web, nonce) = (InstanceId::new(), Nonce::new());
    let transaction = store.begin().await.unwrap();
    for age in (0..=OLD).rev() {
        let (instance, nonce) = match age % 2 {
            0 => (web, Nonce::new()),
            _ => (InstanceId::new(), nonce),
        };
        let new = nonces::remember(&transaction, instance, nonce, "instance.reboot", time(age));
        assert!(new.await.unwrap());
    }
    transaction.commit().await.unwrap();
    let db = store.pool();
    let forget = async |before, limit| {
        nonces::forget_before(db, time(before), limit)
            .await
            .unwrap()
    };
    assert_eq!(forget(OLD, 0).await, 0);
    assert_eq!(forget(OLD, 2).await, 2);
    assert_eq!(forget(2, 100).await, 0, "those were the oldest");
    assert_eq!(forget(OLD, 280).await, 280);
    assert_eq!(forget(282, 100).await, 0);
    assert_eq!(forget(OLD, 280).await, 18);
    assert_eq!(
        forget(OLD + 1, 280).await,
        1,
        "the one that was not old enough"
    );
}
