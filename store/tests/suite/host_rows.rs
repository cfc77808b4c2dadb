//! All that a host's documents are derived from, and nothing of anybody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use berth_common::{
    document::DesiredPower,
    ids::{HostId, NetworkId},
    names::Cidr,
};
use berth_store::{
    attachments, claims,
    claims::ClaimRole,
    host_rows::{self, HostPart, HostRows},
    instances, ports, snapshots, volumes,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    routers,
    sample::{self, time},
};

on_all_databases!(
    a_host_has_its_current_instances_with_ports_and_networks,
    a_part_of_a_host_is_as_in_the_whole,
);

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
    sample::put_at(&mut second, 1);
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

/// The networks that routers join to those of a part, with the addresses that lead there.
fn joined(rows: &HostRows, part: &HostPart) -> BTreeMap<NetworkId, Vec<Cidr>> {
    let networks = part.networks.iter();
    networks
        .flat_map(|network| rows.joined_to(*network))
        .collect()
}

/// All that the documents of a part say: the instances and volumes whole, and of the networks, and of those that
/// routers join to them, every port with its instance.
fn said(rows: &HostRows, part: &HostPart) -> impl PartialEq + std::fmt::Debug + use<> {
    let instances: Vec<_> = rows
        .instances
        .iter()
        .filter(|(instance, _)| part.instances.contains(&instance.id))
        .cloned()
        .collect();
    let told_of: BTreeSet<_> = instances
        .iter()
        .flat_map(|(_, ports)| ports.iter().map(|port| port.network_id))
        .collect();
    let networks: Vec<_> = rows
        .networks
        .iter()
        .filter(|network| part.networks.contains(&network.id) || told_of.contains(&network.id))
        .cloned()
        .collect();
    let joined = joined(rows, part);
    let ports: Vec<_> = rows
        .instances
        .iter()
        .flat_map(|(instance, ports)| {
            ports
                .iter()
                .map(move |port| (instance.clone(), port.clone()))
        })
        .filter(|(_, port)| {
            part.networks.contains(&port.network_id) || joined.contains_key(&port.network_id)
        })
        .collect();
    let volumes: Vec<_> = rows
        .volumes
        .iter()
        .filter(|volume| {
            part.volumes.contains(&volume.id)
                || rows.attachments.iter().any(|row| {
                    row.volume_id == volume.id && part.instances.contains(&row.instance_id)
                })
        })
        .cloned()
        .collect();
    let attachments: Vec<_> = rows
        .attachments
        .iter()
        .filter(|row| {
            part.volumes.contains(&row.volume_id) || part.instances.contains(&row.instance_id)
        })
        .copied()
        .collect();
    let snapshots: Vec<_> = rows
        .snapshots
        .iter()
        .filter(|snapshot| part.snapshots.contains(&snapshot.id))
        .cloned()
        .collect();
    let routers: Vec<_> = rows
        .routers
        .iter()
        .filter(|of| part.routers.contains(&of.router.id))
        .cloned()
        .collect();
    (
        instances,
        networks,
        ports,
        volumes,
        attachments,
        snapshots,
        (routers, joined),
    )
}

async fn a_part_of_a_host_is_as_in_the_whole(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut hosts = vec![];
    let mut networks = vec![];
    for number in 0..3 {
        hosts.push(sample::add_host(db, &format!("hv{number}")).await);
        networks.push(sample::add_network(db, &format!("n{number}")).await);
    }
    let mut instances = vec![];
    for number in 0_u8..16 {
        let at = usize::from(number);
        let mut row = sample::instance(&format!("i{number}"));
        // Not in the order of their ids.
        row.created_at = time(i64::from(number * 7 % 16));
        instances::insert(db, &row).await.unwrap();
        // On hosts 0 and 1; the third has none. Every fifth is only on its way.
        let role = if number % 5 == 4 {
            ClaimRole::Incoming
        } else {
            ClaimRole::Current
        };
        claims::insert(db, &sample::claim(&row, hosts[at % 2], role))
            .await
            .unwrap();
        for position in 0..number % 4 {
            let network = &networks[(at + usize::from(position)) % 3];
            let mut port = sample::port(&row, network, 1 + number * 8 + position);
            sample::put_at(&mut port, 3 - position);
            ports::insert(db, &port).await.unwrap();
        }
        instances.push(row.id);
    }
    instances::set_desired_deleted(db, instances[3], time(20))
        .await
        .unwrap();
    instances::mark_deleted(db, instances[7], time(20))
        .await
        .unwrap();

    // Both lead to the same network, in which nobody has a port; the first from one that only host 0 has ports in, the second
    // joins two.
    let [inside, outside] = [
        sample::add_network(db, "inside").await,
        sample::add_network(db, "outside").await,
    ];
    let mut only = sample::instance("only");
    only.created_at = time(30);
    instances::insert(db, &only).await.unwrap();
    claims::insert(db, &sample::claim(&only, hosts[0], ClaimRole::Current))
        .await
        .unwrap();
    ports::insert(db, &sample::port(&only, &inside, 250))
        .await
        .unwrap();
    let mut leading = vec![];
    for (name, legs) in [
        ("r0", vec![&inside]),
        ("r1", vec![&networks[1], &networks[2]]),
    ] {
        let mut row = routers::router(name);
        row.external_network_id = Some(outside.id);
        berth_store::routers::insert(db, &row).await.unwrap();
        for network in &legs {
            berth_store::routers::insert_interface(db, &routers::leg(&row, network, 254))
                .await
                .unwrap();
        }
        let needed: BTreeSet<_> = legs
            .iter()
            .map(|network| network.id)
            .chain([outside.id])
            .collect();
        leading.push((row.id, needed));
    }

    // On hosts 0 and 1, three of them with an instance there; one is gone.
    let mut disks = vec![];
    for number in 0_u8..6 {
        let host = hosts[usize::from(number) % 2];
        let mut row = sample::volume(&format!("v{number}"), Some(host));
        row.created_at = time(i64::from(number * 5 % 6));
        volumes::insert(db, &row).await.unwrap();
        if number < 3 {
            let with = instances[usize::from(number)];
            let attachment = sample::attachment(&row, with, 8 - number);
            attachments::insert(db, &attachment).await.unwrap();
        }
        disks.push(row.id);
    }
    volumes::mark_deleted(db, disks[5], time(20)).await.unwrap();
    let unbound = sample::volume("unbound", None);
    volumes::insert(db, &unbound).await.unwrap();
    disks.push(unbound.id);
    // On hosts 0 and 1; one is gone.
    let mut snapshots = vec![];
    for number in 0_u8..4 {
        let host = hosts[usize::from(number) % 2];
        let volume = sample::volume("gone", Some(host));
        let row = sample::snapshot(&format!("s{number}"), &volume);
        snapshots::insert(db, &row).await.unwrap();
        snapshots.push(row.id);
    }
    snapshots::mark_deleted(db, snapshots[3], time(20))
        .await
        .unwrap();

    let mut whole = BTreeMap::new();
    for host in &hosts {
        whole.insert(*host, host_rows::of_host(db, *host).await.unwrap());
    }
    // Every kind of part: each bit says whether one instance or network is asked for.
    for bits in (0_u32..1 << 19).step_by(4099) {
        let asked = |bit: usize| bits >> bit & 1 == 1;
        let mut part = HostPart {
            routers: [].into(),
            instances: (0..16)
                .filter(|n| asked(*n))
                .map(|n| instances[n])
                .collect(),
            networks: (0..3)
                .filter(|n| asked(16 + n))
                .map(|n| networks[n].id)
                .collect(),
            // Other ones with every part, those of instances asked for and others.
            volumes: (0..7).filter(|n| asked(18 - n)).map(|n| disks[n]).collect(),
            snapshots: (0..4)
                .filter(|n| asked(3 * n))
                .map(|n| snapshots[n])
                .collect(),
        };
        if asked(9) {
            part.networks.insert(outside.id);
        }
        if asked(10) {
            part.networks.insert(inside.id);
        }
        part.routers = leading
            .iter()
            .filter(|(_, needed)| needed.is_subset(&part.networks))
            .map(|(router, _)| *router)
            .collect();
        let parts: BTreeMap<_, _> = hosts.iter().map(|host| (*host, part.clone())).collect();
        let read = host_rows::of_parts(db, &parts).await.unwrap();
        assert!(read.keys().eq(whole.keys()));
        for host in &hosts {
            assert_eq!(
                said(&read[host], &part),
                said(&whole[host], &part),
                "{bits:b} on {host}"
            );
            // Nothing is read that the part says nothing of, but for whom its networks' rules may mean.
            let joined = joined(&whole[host], &part);
            let told_of: BTreeSet<_> = part.networks.iter().chain(joined.keys()).collect();
            for (instance, ports) in &read[host].instances {
                assert!(
                    part.instances.contains(&instance.id)
                        || (!ports.is_empty()
                            && ports.iter().all(|port| told_of.contains(&port.network_id)))
                );
            }
        }
    }
    // Each host by its own part.
    let parts = BTreeMap::from([
        (
            hosts[0],
            HostPart {
                instances: [instances[2], instances[1]].into(),
                networks: [networks[0].id].into(),
                volumes: [disks[0]].into(),
                snapshots: [snapshots[0]].into(),
                routers: [].into(),
            },
        ),
        (
            hosts[1],
            HostPart {
                instances: [].into(),
                networks: [networks[1].id].into(),
                volumes: [disks[3], disks[0]].into(),
                snapshots: [snapshots[0], snapshots[3]].into(),
                routers: [].into(),
            },
        ),
    ]);
    let read = host_rows::of_parts(db, &parts).await.unwrap();
    for (host, part) in &parts {
        assert_eq!(said(&read[host], part), said(&whole[host], part));
    }
    assert!(
        read[&hosts[1]]
            .networks
            .iter()
            .all(|network| [networks[1].id, networks[2].id, outside.id].contains(&network.id))
    );
}
