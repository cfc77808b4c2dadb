//! Routers with their legs and their hosts' addresses, and floating IPs.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use berth_common::{
    document::Route,
    ids::{FloatingIpId, RouterId},
};
use berth_store::{
    StoreError, UniqueWhat, floating_ips,
    floating_ips::{Association, FloatingIpRow},
    hosts, instances,
    networks::NetworkRow,
    ports, routers,
    routers::{RouterGatewayRow, RouterInterfaceRow, RouterRow},
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    a_router_comes_back_as_it_was_written,
    a_deleted_router_gives_back_its_name_and_addresses,
    addresses_outside_are_given_once,
    a_floating_ip_is_nobodys_when_its_instance_is_gone,
    a_floating_ip_stays_with_a_port_that_stays,
    a_host_that_is_forgotten_gives_its_addresses_back,
);

pub(crate) fn router(name: &str) -> RouterRow {
    RouterRow {
        id: RouterId::new(),
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        admin_state_up: true,
        external_network_id: None,
        enable_snat: true,
        routes: Vec::new(),
        fingerprint: "f".to_owned(),
        created_at: sample::time(1),
        deleted_at: None,
    }
}

pub(crate) fn leg(router: &RouterRow, network: &NetworkRow, last: u8) -> RouterInterfaceRow {
    RouterInterfaceRow {
        router_id: router.id,
        subnet_id: network.subnets[0].id,
        network_id: network.id,
        ip_address: IpAddr::from([10, 0, 0, last]),
        mac_address: "52:54:00:00:00:01".parse().unwrap(),
    }
}

fn floating(network: &NetworkRow, last: u8) -> FloatingIpRow {
    FloatingIpRow {
        id: FloatingIpId::new(),
        project: "default".parse().unwrap(),
        network_id: network.id,
        subnet_id: network.subnets[0].id,
        ip_address: IpAddr::from([10, 0, 0, last]),
        association: None,
        fingerprint: "f".to_owned(),
        created_at: sample::time(2),
    }
}

#[track_caller]
fn taken(result: Result<(), StoreError>, what: UniqueWhat) {
    match result {
        Err(StoreError::Unique { constraint, .. }) => assert_eq!(constraint, what),
        other => panic!("expected that {what} is taken, got {other:?}"),
    }
}

async fn a_router_comes_back_as_it_was_written(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, _) = sample::populate(&store).await;
    let mut row = router("r1");
    routers::insert(db, &row).await.unwrap();
    assert_eq!(routers::get(db, row.id).await.unwrap().as_ref(), Some(&row));
    row.name = "r2".parse().unwrap();
    row.admin_state_up = false;
    row.enable_snat = false;
    row.external_network_id = Some(network.id);
    row.routes = vec![Route {
        destination: "192.0.2.0/24".parse().unwrap(),
        nexthop: IpAddr::from([10, 0, 0, 7]),
    }];
    // Writing it twice changes nothing.
    for _ in 0..2 {
        routers::update(db, &row).await.unwrap();
    }
    assert_eq!(routers::list(db, None).await.unwrap(), [row.clone()]);
    let found = routers::find_by_name(db, &row.project, &row.name).await;
    assert_eq!(found.unwrap().as_ref(), Some(&row));
    let leg = leg(&row, &network, 1);
    routers::insert_interface(db, &leg).await.unwrap();
    let ids = BTreeSet::from([row.id]);
    let legs = routers::interfaces(db, &ids).await.unwrap();
    assert_eq!(legs[&row.id], [leg]);
    assert_eq!(routers::of_ids(db, &ids).await.unwrap(), [row.clone()]);
    let networks = BTreeSet::from([network.id]);
    assert_eq!(routers::of_networks(db, &networks).await.unwrap(), ids);
    routers::delete_interface(db, row.id, network.subnets[0].id)
        .await
        .unwrap();
    assert!(routers::interfaces(db, &ids).await.unwrap().is_empty());
    match routers::update(db, &router("nobody")).await {
        Err(StoreError::NotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
}

async fn a_deleted_router_gives_back_its_name_and_addresses(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, _) = sample::populate(&store).await;
    let row = router("r1");
    routers::insert(db, &row).await.unwrap();
    taken(
        routers::insert(db, &router("r1")).await,
        UniqueWhat::RouterName,
    );
    let gateway = RouterGatewayRow {
        router_id: row.id,
        host_id: host,
        subnet_id: network.subnets[0].id,
        ip_address: IpAddr::from([10, 0, 0, 20]),
    };
    routers::insert_interface(db, &leg(&row, &network, 1))
        .await
        .unwrap();
    routers::insert_gateways(db, &[gateway]).await.unwrap();
    let used = routers::addresses_in_use(db, network.subnets[0].id).await;
    assert_eq!(
        used.unwrap(),
        [1, 20].map(|last| IpAddr::from([10, 0, 0, last])).into()
    );
    for at in [5, 6] {
        routers::mark_deleted(db, row.id, sample::time(at))
            .await
            .unwrap();
    }
    let found = routers::get(db, row.id).await.unwrap().unwrap();
    assert_eq!(found.deleted_at, Some(sample::time(5)));
    let used = routers::addresses_in_use(db, network.subnets[0].id).await;
    assert_eq!(used.unwrap(), BTreeSet::new());
    assert_eq!(routers::list(db, None).await.unwrap(), []);
    routers::insert(db, &router("r1")).await.unwrap();
}

async fn addresses_outside_are_given_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, _) = sample::populate(&store).await;
    let [a, b] = ["a", "b"].map(router);
    for row in [&a, &b] {
        routers::insert(db, row).await.unwrap();
    }
    let gateway = |router: &RouterRow| RouterGatewayRow {
        router_id: router.id,
        host_id: host,
        subnet_id: network.subnets[0].id,
        ip_address: IpAddr::from([10, 0, 0, 20]),
    };
    routers::insert_gateways(db, &[gateway(&a)]).await.unwrap();
    taken(
        routers::insert_gateways(db, &[gateway(&b)]).await,
        UniqueWhat::IpAddress,
    );
    routers::delete_gateways(db, &[gateway(&a)]).await.unwrap();
    routers::insert_gateways(db, &[gateway(&b)]).await.unwrap();
    let ids = [a.id, b.id].into();
    assert_eq!(routers::gateways(db, &ids).await.unwrap(), [gateway(&b)]);
    floating_ips::insert(db, &floating(&network, 50))
        .await
        .unwrap();
    taken(
        floating_ips::insert(db, &floating(&network, 50)).await,
        UniqueWhat::IpAddress,
    );
    assert_eq!(
        floating_ips::count_of_network(db, network.id)
            .await
            .unwrap(),
        1
    );
}

async fn a_floating_ip_is_nobodys_when_its_instance_is_gone(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let port = sample::port(&instance, &network, 5);
    ports::insert(db, &port).await.unwrap();
    let row = router("r1");
    routers::insert(db, &row).await.unwrap();
    let [mut one, two] = [floating(&network, 50), floating(&network, 51)];
    for row in [&one, &two] {
        floating_ips::insert(db, row).await.unwrap();
    }
    let association = Association {
        port_id: port.id,
        fixed_ip_address: port.fixed_ips[0].ip_address,
        router_id: row.id,
    };
    floating_ips::associate(db, one.id, Some(association))
        .await
        .unwrap();
    taken(
        floating_ips::associate(db, two.id, Some(association)).await,
        UniqueWhat::FloatingIpPort,
    );
    one.association = Some(association);
    assert_eq!(
        floating_ips::get(db, one.id).await.unwrap().as_ref(),
        Some(&one)
    );
    let of_routers = floating_ips::of_routers(db, &[row.id].into()).await;
    assert_eq!(of_routers.unwrap(), [one.clone()]);
    let found = floating_ips::find_by_address(db, &one.project, one.ip_address).await;
    assert_eq!(found.unwrap(), [one.clone()]);
    instances::mark_deleted(db, instance.id, sample::time(9))
        .await
        .unwrap();
    one.association = None;
    assert_eq!(floating_ips::list(db, None).await.unwrap(), {
        let mut both = vec![one.clone(), two];
        both.sort_by_key(|row| row.id.to_string());
        both
    });
    for _ in 0..2 {
        floating_ips::delete(db, one.id).await.unwrap();
    }
    assert_eq!(floating_ips::get(db, one.id).await.unwrap(), None);
}

async fn a_floating_ip_stays_with_a_port_that_stays(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let mut port = sample::port(&instance, &network, 5);
    port.delete_with_instance = false;
    ports::insert(db, &port).await.unwrap();
    let row = router("r1");
    routers::insert(db, &row).await.unwrap();
    let mut floating = floating(&network, 50);
    floating.association = Some(Association {
        port_id: port.id,
        fixed_ip_address: port.fixed_ips[0].ip_address,
        router_id: row.id,
    });
    floating_ips::insert(db, &floating).await.unwrap();
    instances::mark_deleted(db, instance.id, sample::time(9))
        .await
        .unwrap();
    let of_port = floating_ips::of_port(db, port.id).await.unwrap();
    assert_eq!(of_port, [floating.clone()]);
    let subnet = network.subnets[0].id;
    let count = floating_ips::count_of_subnet(db, subnet).await.unwrap();
    assert_eq!(count, 1);
    // With the port it is nobody's.
    ports::delete(db, port.id).await.unwrap();
    floating.association = None;
    assert_eq!(
        floating_ips::get(db, floating.id).await.unwrap(),
        Some(floating)
    );
}

async fn a_host_that_is_forgotten_gives_its_addresses_back(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, _) = sample::populate(&store).await;
    let other = sample::add_host(db, "hv2").await;
    let row = router("r1");
    routers::insert(db, &row).await.unwrap();
    let gateway = |host_id, last| RouterGatewayRow {
        router_id: row.id,
        host_id,
        subnet_id: network.subnets[0].id,
        ip_address: IpAddr::from([10, 0, 0, last]),
    };
    let stays = gateway(other, 21);
    for gateway in [&gateway(host, 20), &stays] {
        routers::insert_gateways(db, std::slice::from_ref(gateway))
            .await
            .unwrap();
    }
    hosts::delete(db, host).await.unwrap();
    let left = routers::gateways(db, &[row.id].into()).await.unwrap();
    assert_eq!(left, [stays]);
}
