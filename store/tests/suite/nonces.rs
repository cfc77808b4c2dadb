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
    old_nonces_can_be_forgotten
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
        nonces::forget_before(store.pool(), time(10)).await.unwrap(),
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
