//! A nonce is new once.

use std::sync::Arc;

use berth_common::ids::Nonce;
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
    let nonce = Nonce::new();
    let transaction = store.begin().await.unwrap();
    assert!(
        nonces::remember(&transaction, nonce, "instance.reboot", time(0))
            .await
            .unwrap()
    );
    assert!(
        !nonces::remember(&transaction, nonce, "instance.reboot", time(0))
            .await
            .unwrap()
    );
    transaction.rollback().await.unwrap();
    assert!(
        nonces::remember(store.pool(), nonce, "instance.reboot", time(0))
            .await
            .unwrap()
    );
    assert!(
        !nonces::remember(store.pool(), nonce, "instance.start", time(1))
            .await
            .unwrap()
    );
    assert!(
        nonces::remember(store.pool(), Nonce::new(), "instance.reboot", time(1))
            .await
            .unwrap()
    );
}

async fn of_two_at_once_one_is_new(database: Arc<TestDatabase>) {
    let (one, two) = (database.store().await, database.store().await);
    for _ in 0..20 {
        let nonce = Nonce::new();
        let (first, second) = tokio::join!(
            nonces::remember(one.pool(), nonce, "instance.reboot", time(0)),
            nonces::remember(two.pool(), nonce, "instance.reboot", time(0)),
        );
        assert!(first.unwrap() ^ second.unwrap());
    }
}

async fn old_nonces_can_be_forgotten(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (old, new) = (Nonce::new(), Nonce::new());
    nonces::remember(store.pool(), old, "instance.reboot", time(0))
        .await
        .unwrap();
    nonces::remember(store.pool(), new, "instance.reboot", time(10))
        .await
        .unwrap();
    assert_eq!(
        nonces::forget_before(store.pool(), time(10)).await.unwrap(),
        1
    );
    assert!(
        nonces::remember(store.pool(), old, "instance.reboot", time(11))
            .await
            .unwrap()
    );
    assert!(
        !nonces::remember(store.pool(), new, "instance.reboot", time(11))
            .await
            .unwrap()
    );
}
