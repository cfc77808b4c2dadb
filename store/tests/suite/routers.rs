//! Routers with their legs and their hosts' addresses, and floating IPs.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use berth_common::{
    document::{DocumentKey, Kind, NetworkType, Route},
    ids::{FloatingIpId, HostId, RouterId},
    message::report::ConvergeStatus,
    units::Generation,
};
use berth_store::{
    Executor, StoreError, UniqueWhat, claims,
    claims::ClaimRole,
    documents,
    documents::DocumentRow,
    floating_ips,
    floating_ips::{Association, FloatingIpRow},
    held_addresses,
    held_addresses::HeldAddressRow,
    host_rows, hosts, instances, networks,
    networks::NetworkRow,
    ports, reach, routers,
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
    what_hosts_hold_is_in_use_until_it_is_released,
    a_host_has_the_routers_of_its_ports_networks_and_what_is_theirs,
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

async fn what_hosts_hold_is_in_use_until_it_is_released(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, _) = sample::populate(&store).await;
    let other = sample::add_host(db, "hv2").await;
    let elsewhere = sample::add_network(db, "elsewhere").await;
    let (router_id, subnet) = (RouterId::new(), network.subnets[0].id);
    let row = |host_id, last, generation| HeldAddressRow {
        network_id: network.id,
        ip_address: IpAddr::from([10, 0, 0, last]),
        host_id,
        router_id,
        generation: Generation(generation),
    };
    let rows = [row(host, 20, 3), row(other, 20, 4), row(other, 21, 4)];
    held_addresses::hold(db, &rows).await.unwrap();
    // Of one that is known the later word counts.
    held_addresses::hold(db, &[row(host, 20, 7)]).await.unwrap();
    let outside = HeldAddressRow {
        ip_address: IpAddr::from([192, 0, 2, 9]),
        ..row(host, 0, 1)
    };
    held_addresses::hold(db, std::slice::from_ref(&outside))
        .await
        .unwrap();
    let used = async || routers::addresses_in_use(db, subnet).await.unwrap();
    let of = |lasts: &[u8]| -> BTreeSet<IpAddr> {
        lasts.iter().map(|last| [10, 0, 0, *last].into()).collect()
    };
    assert_eq!(used().await, of(&[20, 21]));
    let given = routers::addresses_given(db, subnet).await;
    assert_eq!(given.unwrap(), of(&[]));
    let there = routers::addresses_in_use(db, elsewhere.subnets[0].id).await;
    assert_eq!(there.unwrap(), of(&[]));
    let places = [(host, router_id), (other, RouterId::new())].into();
    let mut found = held_addresses::of_places(db, &places).await.unwrap();
    found.sort_by_key(|row| row.ip_address);
    assert_eq!(found, [row(host, 20, 7), outside]);
    for _ in 0..2 {
        held_addresses::release(db, &rows[1..]).await.unwrap();
        assert_eq!(used().await, of(&[20]));
    }
    let left = held_addresses::of_network(db, network.id).await.unwrap();
    assert_eq!(left.len(), 2);
    hosts::delete(db, host).await.unwrap();
    assert_eq!(used().await, of(&[]));
}

/// Tells a host of a router or a network, or that it is to go.
async fn tell(db: &impl Executor, host_id: HostId, key: DocumentKey, spec: Option<&str>) {
    let instance = sample::instance("of-no-interest");
    let row = DocumentRow {
        key,
        spec_json: spec.map(str::to_owned),
        ..sample::document(host_id, instance.id)
    };
    documents::upsert(db, &row).await.unwrap();
}

async fn a_host_has_the_routers_of_its_ports_networks_and_what_is_theirs(
    database: Arc<TestDatabase>,
) {
    let store = database.store().await;
    let db = store.pool();
    let [one, two] = [
        sample::add_host(db, "hv1").await,
        sample::add_host(db, "hv2").await,
    ];
    let [near, far, aside] = [
        sample::add_network(db, "near").await,
        sample::add_network(db, "far").await,
        sample::add_network(db, "aside").await,
    ];
    let outside = NetworkRow {
        network_type: NetworkType::Nat,
        ..sample::network("outside")
    };
    networks::insert(db, &outside).await.unwrap();
    // Near and far are joined; another router leads out from aside, and one that is off from near.
    let mut rows = Vec::new();
    for (name, inside, up) in [
        ("joins", vec![&near, &far], true),
        ("alone", vec![&aside], true),
        ("off", vec![&near], false),
    ] {
        let row = RouterRow {
            external_network_id: Some(outside.id),
            admin_state_up: up,
            ..router(name)
        };
        routers::insert(db, &row).await.unwrap();
        for network in inside {
            let last = if up { 1 } else { 2 };
            routers::insert_interface(db, &leg(&row, network, last))
                .await
                .unwrap();
        }
        rows.push(row.id);
    }
    let [joins, alone, off] = rows[..] else {
        panic!("three routers")
    };
    let mut of_ports = Vec::new();
    for (name, network, host, last) in [("a", &near, one, 5), ("b", &aside, two, 6)] {
        let instance = sample::add_instance(db, name).await;
        claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current))
            .await
            .unwrap();
        let port = sample::port(&instance, network, last);
        ports::insert(db, &port).await.unwrap();
        of_ports.push(port);
    }
    let ids = |networks: &[&NetworkRow]| -> BTreeSet<_> {
        networks.iter().map(|network| network.id).collect()
    };
    let all = ids(&[&near, &far, &aside, &outside]);
    let everywhere: BTreeSet<_> = [one, two]
        .into_iter()
        .flat_map(|host| all.iter().map(move |network| (host, *network)))
        .collect();
    // Whether they are up is asked elsewhere.
    let there = [(one, joins), (one, off), (two, alone)].into();
    assert_eq!(routers::on_hosts(db, &everywhere).await.unwrap(), there);
    let far_only = [(one, far.id), (two, far.id)].into();
    let there = [(one, joins)].into();
    assert_eq!(routers::on_hosts(db, &far_only).await.unwrap(), there);
    let leading = routers::leading_to(db, &ids(&[&outside, &near])).await;
    let leading: BTreeSet<_> = leading.unwrap().iter().map(|row| row.id).collect();
    assert_eq!(leading, rows.iter().copied().collect());
    let legs = routers::interfaces_in_networks(db, &ids(&[&near])).await;
    assert_eq!(legs.unwrap().len(), 2);

    for (host, router) in [(one, joins), (two, alone), (two, joins)] {
        let key = DocumentKey {
            kind: Kind::Router,
            id: router.as_uuid(),
        };
        // It was on the second host once.
        let spec = (router != joins || host == one).then_some("{}");
        tell(db, host, key, spec).await;
    }
    let told = routers::told_inside(db, &ids(&[&near, &aside, &outside])).await;
    assert_eq!(told.unwrap(), [(one, joins), (two, alone)].into());
    let told = routers::told_inside(db, &ids(&[&far])).await;
    assert_eq!(told.unwrap(), [(one, joins)].into());
    let told = routers::told_leading_to(db, &ids(&[&outside, &near])).await;
    assert_eq!(told.unwrap(), [(one, joins), (two, alone)].into());

    let gateway = |router_id, host_id, last| RouterGatewayRow {
        router_id,
        host_id,
        subnet_id: outside.subnets[0].id,
        ip_address: IpAddr::from([10, 0, 0, last]),
    };
    let gateways = [gateway(joins, one, 20), gateway(alone, two, 21)];
    routers::insert_gateways(db, &gateways).await.unwrap();
    let crossed = [(one, joins), (one, alone), (two, joins)].into();
    let on = routers::gateways_on(db, &crossed).await.unwrap();
    assert_eq!(on, gateways[..1]);

    let mut given = Vec::new();
    for (port, router_id, last) in [(&of_ports[0], joins, 50), (&of_ports[1], alone, 51)] {
        let association = Association {
            port_id: port.id,
            fixed_ip_address: port.fixed_ips[0].ip_address,
            router_id,
        };
        let row = FloatingIpRow {
            association: Some(association),
            ..floating(&outside, last)
        };
        floating_ips::insert(db, &row).await.unwrap();
        given.push(row);
    }
    for (host, router, networks, at) in [
        (one, joins, ids(&[&near, &far, &outside]), 0),
        (two, alone, ids(&[&aside, &outside]), 1),
    ] {
        let read = host_rows::of_host(db, host).await.unwrap();
        let has: BTreeSet<_> = read.networks.iter().map(|network| network.id).collect();
        assert_eq!(has, networks);
        let [of_host] = &read.routers[..] else {
            panic!("{:?}", read.routers)
        };
        assert_eq!(of_host.router.id, router);
        assert_eq!(of_host.gateways, gateways[at..=at]);
        assert_eq!(of_host.floating_ips, given[at..=at]);
    }

    // Who has networks, and who is in them.
    let key = DocumentKey {
        kind: Kind::Network,
        id: outside.id.as_uuid(),
    };
    tell(db, one, key, Some("{}")).await;
    tell(db, two, key, None).await;
    let told = reach::told_on(db, &everywhere).await.unwrap();
    assert_eq!(told, [(one, outside.id)].into());
    let there = async || {
        let found = documents::places_of_networks(db, NetworkType::Nat).await;
        found.unwrap().into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(there().await, [(one, outside.id), (two, outside.id)].into());
    let seen = documents::get(db, two, key).await.unwrap().unwrap();
    let gone = documents::Observation {
        host_id: two,
        key,
        generation: seen.generation,
        status: ConvergeStatus::Gone,
    };
    documents::mark_observed_many(db, &[gone]).await.unwrap();
    assert_eq!(there().await, [(one, outside.id)].into());
    // What it said is of another time.
    let gone = documents::get(db, two, key).await.unwrap().unwrap();
    assert!(gone.is_gone());
    let told_again = DocumentRow {
        generation: gone.generation.next(),
        ..gone
    };
    documents::upsert(db, &told_again).await.unwrap();
    assert!(!told_again.is_gone());
    assert_eq!(there().await, [(one, outside.id), (two, outside.id)].into());
    let local = documents::places_of_networks(db, NetworkType::Local).await;
    assert_eq!(local.unwrap(), []);
    let named = reach::instances_on(db, &everywhere).await.unwrap();
    let expected = [(one, "a".parse().unwrap()), (two, "b".parse().unwrap())].into();
    assert_eq!(named, expected);
    let none = [(two, near.id), (one, aside.id)].into();
    assert!(reach::instances_on(db, &none).await.unwrap().is_empty());
}
