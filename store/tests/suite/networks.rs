//! Networks of all types: their segments, their subnets, and who is in them on all hosts.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use berth_common::{
    document::{Kind, NetworkType},
    ids::NetworkId,
    message::heartbeat::NetworkCapabilities,
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    claims::{self, ClaimRole},
    documents,
    host_rows::{self, HostPart},
    hosts, instances,
    networks::{self, NetworkRow},
    ports,
    reach::{self, Among},
    segments, subnets,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    a_segment_belongs_to_one_living_network,
    subnets_are_added_changed_and_deleted,
    everybody_in_a_network_that_reaches_beyond_a_host_is_known,
);

fn vlan(name: &str, id: u32) -> NetworkRow {
    NetworkRow {
        network_type: NetworkType::Vlan,
        physical_network: Some("physnet1".parse().unwrap()),
        segmentation_id: Some(id),
        ..sample::network(name)
    }
}

async fn a_segment_belongs_to_one_living_network(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let taken = async || {
        let physnet = "physnet1".parse().unwrap();
        segments::taken(db, NetworkType::Vlan, Some(&physnet), 100..=199)
            .await
            .unwrap()
    };
    let first = vlan("first", 100);
    networks::insert(db, &first).await.unwrap();
    networks::insert(db, &vlan("beyond", 200)).await.unwrap();
    let mut other = vlan("other", 100);
    let refused = networks::insert(db, &other).await.unwrap_err();
    assert!(
        matches!(
            &refused,
            StoreError::Unique {
                constraint: UniqueWhat::Segment,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(networks::get(db, other.id).await.unwrap(), None);
    other.physical_network = Some("physnet2".parse().unwrap());
    networks::insert(db, &other).await.unwrap();
    networks::insert(db, &vlan("second", 150)).await.unwrap();
    let mut vni = vlan("vni", 100);
    (vni.network_type, vni.physical_network) = (NetworkType::Vxlan, None);
    networks::insert(db, &vni).await.unwrap();
    let again = NetworkRow {
        id: NetworkId::new(),
        name: "again".parse().unwrap(),
        subnets: vec![],
        ..vni.clone()
    };
    assert!(networks::insert(db, &again).await.is_err());
    // Local networks have none to share.
    networks::insert(db, &sample::network("l1")).await.unwrap();
    networks::insert(db, &sample::network("l2")).await.unwrap();
    assert_eq!(taken().await, [100, 150]);

    networks::mark_deleted(db, first.id, time(1)).await.unwrap();
    assert_eq!(taken().await, [150]);
    networks::insert(db, &vlan("next", 100)).await.unwrap();
    // Deleting it once more takes nothing from its successor.
    networks::mark_deleted(db, first.id, time(2)).await.unwrap();
    assert_eq!(taken().await, [100, 150]);
}

async fn subnets_are_added_changed_and_deleted(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let network = sample::add_network(db, "blue").await;
    let mut second = sample::subnet(network.id, "10.1.0.0/24");
    second.name = Some("second".parse().unwrap());
    second.created_at = time(1);
    subnets::insert(db, &second).await.unwrap();
    let mut third = sample::subnet(network.id, "10.2.0.0/24");
    third.name = second.name.clone();
    let refused = subnets::insert(db, &third).await.unwrap_err();
    assert!(
        matches!(
            &refused,
            StoreError::Unique {
                constraint: UniqueWhat::SubnetName,
                ..
            }
        ),
        "{refused:?}"
    );

    second.name = Some("renamed".parse().unwrap());
    second.gateway_ip = Some(IpAddr::from([10, 1, 0, 1]));
    second.dns_nameservers = vec![IpAddr::from([10, 1, 0, 53])];
    subnets::update(db, &second).await.unwrap();
    subnets::update(db, &second).await.unwrap();
    assert_eq!(
        subnets::get(db, second.id).await.unwrap(),
        Some(second.clone())
    );
    let read = networks::get(db, network.id).await.unwrap().unwrap();
    assert_eq!(read.subnets, [network.subnets[0].clone(), second.clone()]);
    let name = second.name.clone().unwrap();
    let named = subnets::find_by_name(db, &network.project, &name).await;
    assert_eq!(named.unwrap(), std::slice::from_ref(&second));
    let elsewhere = "elsewhere".parse().unwrap();
    let named = subnets::find_by_name(db, &elsewhere, &name).await;
    assert_eq!(named.unwrap(), []);

    subnets::mark_deleted(db, second.id, time(2)).await.unwrap();
    let gone = subnets::get(db, second.id).await.unwrap().unwrap();
    assert_eq!(gone.deleted_at, Some(time(2)));
    let read = networks::get(db, network.id).await.unwrap();
    assert_eq!(read, Some(network.clone()));
    let again = subnets::mark_deleted(db, second.id, time(3)).await;
    assert!(matches!(again, Err(StoreError::NotFound { .. })));
    assert!(subnets::update(db, &second).await.is_err());
    // Its name is free.
    third.name = Some(name);
    subnets::insert(db, &third).await.unwrap();
    assert_eq!(subnets::address_count(db, third.id).await.unwrap(), 0);
}

/// An instance with a port in a network, on a host.
async fn member(
    db: &impl Executor,
    name: &str,
    network: &NetworkRow,
    host: berth_common::ids::HostId,
    last: u8,
) -> berth_store::instances::InstanceRow {
    let instance = sample::add_instance(db, name).await;
    let claim = sample::claim(&instance, host, ClaimRole::Current);
    claims::insert(db, &claim).await.unwrap();
    let port = sample::port(&instance, network, last);
    ports::insert(db, &port).await.unwrap();
    instance
}

async fn everybody_in_a_network_that_reaches_beyond_a_host_is_known(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let one = sample::add_host(db, "hv1").await;
    let mut heartbeat = sample::heartbeat("hv2");
    heartbeat.network = NetworkCapabilities {
        vxlan: true,
        tunnel_ip: Some(IpAddr::from([192, 0, 2, 2])),
        ..NetworkCapabilities::default()
    };
    let two = hosts::upsert_heartbeat(db, &heartbeat, time(0))
        .await
        .unwrap();
    assert_eq!(two.network, heartbeat.network);
    let two = two.id;
    let mut wide = vlan("wide", 7);
    (wide.network_type, wide.physical_network) = (NetworkType::Vxlan, None);
    networks::insert(db, &wide).await.unwrap();
    let narrow = sample::add_network(db, "narrow").await;
    let a = member(db, "a", &wide, one, 11).await;
    member(db, "b", &wide, two, 12).await;
    let gone = member(db, "c", &wide, two, 13).await;
    instances::mark_deleted(db, gone.id, time(1)).await.unwrap();
    member(db, "d", &narrow, two, 14).await;
    // A free port is nowhere.
    let mut free = sample::port(&a, &wide, 16);
    free.attachment = None;
    ports::insert(db, &free).await.unwrap();
    // Without a host nobody is reached.
    let nowhere = sample::add_instance(db, "e").await;
    ports::insert(db, &sample::port(&nowhere, &wide, 15))
        .await
        .unwrap();

    let whole = host_rows::of_host(db, one).await.unwrap();
    let reached = &whole.reached[&wide.id];
    let told: BTreeSet<_> = reached
        .iter()
        .map(|port| {
            (
                port.hostname.as_str(),
                port.host_id,
                port.ip_addresses[0],
                port.tunnel_ip,
            )
        })
        .collect();
    let tunnel = Some(IpAddr::from([192, 0, 2, 2]));
    assert_eq!(
        told,
        BTreeSet::from([
            ("a", one, IpAddr::from([10, 0, 0, 11]), None),
            ("b", two, IpAddr::from([10, 0, 0, 12]), tunnel),
        ])
    );
    assert_eq!(whole.reached.len(), 1);
    let part = HostPart {
        networks: BTreeSet::from([wide.id, narrow.id]),
        ..HostPart::default()
    };
    let parts = host_rows::of_parts(db, &[(one, part.clone()), (two, part)].into())
        .await
        .unwrap();
    for host in [one, two] {
        assert_eq!(parts[&host].reached, whole.reached);
    }

    // From a VLAN a router may lead into a VXLAN: where its host sends from is known there too.
    let cable = vlan("cable", 8);
    networks::insert(db, &cable).await.unwrap();
    member(db, "f", &cable, two, 17).await;
    let theirs = host_rows::of_host(db, two).await.unwrap().reached;
    let places = theirs[&cable.id].iter().map(|port| port.tunnel_ip);
    assert_eq!(places.collect::<Vec<_>>(), [tunnel]);

    let both = BTreeSet::from([wide.id, narrow.id]);
    let all = reach::hosts_of(db, &both, Among::All).await.unwrap();
    assert_eq!(
        all,
        [(one, wide.id), (two, wide.id), (two, narrow.id)].into()
    );
    let spanning = reach::hosts_of(db, &both, Among::Spanning).await.unwrap();
    assert_eq!(spanning, [(one, wide.id), (two, wide.id)].into());
    // A document makes a host one of those that were told, and a tombstone does not.
    let word = |host_id, network: &NetworkRow, spec: Option<&str>| {
        let mut row = sample::document(host_id, a.id);
        row.key.kind = Kind::Network;
        row.key.id = network.id.as_uuid();
        row.spec_json = spec.map(str::to_owned);
        row
    };
    let words = [
        word(one, &narrow, Some("{}")),
        word(two, &narrow, None),
        word(two, &wide, Some("{}")),
    ];
    documents::upsert_many(db, &words).await.unwrap();
    let told = reach::hosts_told(db, &both, Among::All).await.unwrap();
    assert_eq!(told, [(one, narrow.id), (two, wide.id)].into());
    let told = reach::hosts_told(db, &both, Among::Spanning).await.unwrap();
    assert_eq!(told, [(two, wide.id)].into());
    let on = reach::spanning_on(db, two).await.unwrap();
    assert_eq!(on, [wide.id, cable.id].into());
    instances::mark_deleted(db, a.id, time(2)).await.unwrap();
    let spanning = reach::hosts_of(db, &both, Among::Spanning).await.unwrap();
    assert_eq!(spanning, [(two, wide.id)].into());
}
