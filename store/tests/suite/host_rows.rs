//! All that a host's documents are derived from, and nothing of anybody else.

use std::sync::Arc;

use berth_common::{document::DesiredPower, ids::HostId};
use berth_store::{
    claims,
    claims::ClaimRole,
    host_rows::{self, HostRows},
    instances, ports,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(a_host_has_its_current_instances_with_ports_and_networks);

async fn a_host_has_its_current_instances_with_ports_and_networks(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, other) = (
        sample::add_host(db, "hv1").await,
        sample::add_host(db, "hv2").await,
    );
    let (blue, green) = (
        sample::add_network(db, "blue").await,
        sample::add_network(db, "green").await,
    );
    sample::add_network(db, "unused").await;
    assert_eq!(
        host_rows::of_host(db, host).await.unwrap(),
        HostRows::default()
    );

    let mut rows = vec![];
    for (number, name) in (1..).zip(["stays", "bare", "leaving", "gone", "arriving", "elsewhere"]) {
        let mut row = sample::instance(name);
        row.created_at = time(i64::from(number));
        row.updated_at = row.created_at;
        instances::insert(db, &row).await.unwrap();
        let role = if name == "arriving" {
            ClaimRole::Incoming
        } else {
            ClaimRole::Current
        };
        let on = if name == "elsewhere" { other } else { host };
        claims::insert(db, &sample::claim(&row, on, role))
            .await
            .unwrap();
        let mut own = vec![];
        if name != "bare" {
            own.push(sample::port(
                &row,
                if name == "elsewhere" { &green } else { &blue },
                number,
            ));
        }
        for port in &own {
            ports::insert(db, port).await.unwrap();
        }
        rows.push((row, own));
    }
    // A second port of the first, in another network.
    let mut second = sample::port(&rows[0].0, &green, 77);
    second.position = 1;
    ports::insert(db, &second).await.unwrap();
    rows[0].1.push(second);

    instances::set_desired_deleted(db, rows[2].0.id, time(50))
        .await
        .unwrap();
    rows[2].0.desired_deleted = true;
    rows[2].0.updated_at = time(50);
    instances::mark_deleted(db, rows[3].0.id, time(51))
        .await
        .unwrap();

    let read = host_rows::of_host(db, host).await.unwrap();
    assert_eq!(read.instances, rows[..3]);
    let mut networks = [blue, green.clone()];
    networks.sort_by_key(|network| (network.created_at, network.id));
    assert_eq!(read.networks, networks);
    // The same inside a transaction, with its own changes.
    let transaction = store.begin().await.unwrap();
    instances::set_desired_power(&transaction, rows[0].0.id, DesiredPower::Stopped, time(60))
        .await
        .unwrap();
    let read = host_rows::of_host(&transaction, host).await.unwrap();
    assert_eq!(read.instances[0].0.desired_power, DesiredPower::Stopped);
    drop(transaction);

    let elsewhere = host_rows::of_host(db, other).await.unwrap();
    assert_eq!(
        (elsewhere.instances.len(), elsewhere.networks),
        (1, vec![green])
    );
    assert_eq!(
        host_rows::of_host(db, HostId::new()).await.unwrap(),
        HostRows::default()
    );
}
