//! Ports: with an instance, without one, and those that were there before they could be.

use std::{collections::BTreeSet, sync::Arc};

use berth_common::ids::PortId;
use berth_store::{
    StoreError, UniqueWhat, instances,
    ports::{self, AttachmentState, PortAttachment, PortFilter, PortRow, PortWishes},
    security_groups,
};

use crate::{
    database::{Kind, TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    a_port_is_given_to_instances_and_taken_back,
    what_is_wanted_of_a_port_is_changed,
    the_ports_of_a_deleted_instance_go_or_are_free,
    ports_are_listed_in_pages,
    a_name_is_for_one_port_of_a_project,
    ports_of_before_are_attached_and_without_port_security,
);

fn free(port: PortRow) -> PortRow {
    PortRow {
        attachment: None,
        ..port
    }
}

async fn a_port_is_given_to_instances_and_taken_back(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let port = free(sample::port(&instance, &network, 5));
    ports::insert(db, &port).await.unwrap();
    let read = async || ports::get(db, port.id).await.unwrap().unwrap();
    assert_eq!(read().await, port);
    assert_eq!(ports::of_instance(db, instance.id).await.unwrap(), []);
    let attachment = PortAttachment {
        instance_id: instance.id,
        position: 3,
        state: AttachmentState::Attaching,
    };
    ports::attach(db, port.id, attachment).await.unwrap();
    assert_eq!(read().await.attachment, Some(attachment));
    // It is of one instance at most.
    let again = ports::attach(db, port.id, attachment).await;
    assert!(
        matches!(again, Err(StoreError::NotFound { .. })),
        "{again:?}"
    );
    ports::set_state(db, &[port.id], AttachmentState::Detaching)
        .await
        .unwrap();
    let row = read().await;
    assert!(!row.is_wanted());
    assert_eq!(row.position(), 3);
    let unsettled = ports::unsettled_of_instances(db, &[instance.id]).await;
    assert_eq!(unsettled.unwrap(), std::slice::from_ref(&row));
    assert_eq!(ports::of_instance(db, instance.id).await.unwrap(), [row]);
    ports::free(db, port.id).await.unwrap();
    assert_eq!(read().await, port);
    ports::set_state(db, &[port.id], AttachmentState::Attached)
        .await
        .unwrap();
    assert_eq!(read().await, port);
    ports::delete(db, port.id).await.unwrap();
    ports::delete(db, port.id).await.unwrap();
    assert_eq!(ports::get(db, port.id).await.unwrap(), None);
    let used = ports::addresses_in_use(db, network.subnets[0].id).await;
    assert_eq!(used.unwrap(), BTreeSet::new());
}

async fn what_is_wanted_of_a_port_is_changed(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let mut port = sample::port(&instance, &network, 5);
    ports::insert(db, &port).await.unwrap();
    let (one, two) = (sample::security_group("one"), sample::security_group("two"));
    for group in [&one, &two] {
        security_groups::insert(db, group).await.unwrap();
    }
    for groups in [vec![one.id], vec![one.id, two.id], vec![two.id], vec![]] {
        port.wishes = PortWishes {
            port_security_enabled: !groups.is_empty(),
            admin_state_up: groups.len() != 2,
            security_groups: groups.into_iter().collect(),
            ..PortWishes::default()
        };
        for _ in 0..2 {
            ports::set_wishes(db, port.id, &port.wishes).await.unwrap();
            let read = ports::get(db, port.id).await.unwrap();
            assert_eq!(read.as_ref(), Some(&port));
        }
    }
    port.name = Some("uplink".parse().unwrap());
    ports::set_name(db, port.id, port.name.as_ref())
        .await
        .unwrap();
    let named = ports::find_by_name(db, &port.project, port.name.as_ref().unwrap()).await;
    assert_eq!(named.unwrap(), Some(port.clone()));
    ports::set_name(db, port.id, None).await.unwrap();
    assert_eq!(ports::get(db, port.id).await.unwrap().unwrap().name, None);
    let unknown = ports::set_wishes(db, PortId::new(), &port.wishes).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })));
}

async fn the_ports_of_a_deleted_instance_go_or_are_free(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let group = sample::security_group("web");
    security_groups::insert(db, &group).await.unwrap();
    let mut goes = sample::port(&instance, &network, 5);
    goes.wishes.security_groups.insert(group.id);
    let mut stays = sample::port(&instance, &network, 6);
    stays.delete_with_instance = false;
    sample::put_at(&mut stays, 1);
    ports::insert_many(db, &[goes.clone(), stays.clone()])
        .await
        .unwrap();
    instances::mark_deleted(db, instance.id, sample::time(1))
        .await
        .unwrap();
    let left = ports::of_ids(db, &[goes.id, stays.id]).await.unwrap();
    assert_eq!(left, [free(stays)]);
    assert_eq!(
        security_groups::some_ports(db, group.id, 5).await.unwrap(),
        []
    );
}

async fn ports_are_listed_in_pages(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let other = sample::add_network(db, "green").await;
    let mut all = vec![];
    for last in 1..=6 {
        let on = if last % 2 == 0 { &network } else { &other };
        let mut port = sample::port(&instance, on, last);
        if last == 6 {
            sample::put_at(&mut port, 1);
        } else {
            port = free(port);
        }
        if last == 1 {
            port.project = "other".parse().unwrap();
        }
        ports::insert(db, &port).await.unwrap();
        all.push(port);
    }
    all.sort_by_key(|port| port.id.to_string());
    let list = async |filter: &PortFilter, after, limit| {
        let rows = ports::list(db, filter, after, limit).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    let any = PortFilter::default();
    let ids: Vec<_> = all.iter().map(|port| port.id).collect();
    assert_eq!(list(&any, None, 100).await, ids);
    assert_eq!(list(&any, None, 2).await, ids[..2]);
    assert_eq!(list(&any, Some(ids[1]), 2).await, ids[2..4]);
    let check = async |filter: PortFilter, count: usize| {
        assert_eq!(list(&filter, None, 100).await.len(), count, "{filter:?}");
    };
    check(
        PortFilter {
            network: Some(network.id),
            ..any.clone()
        },
        3,
    )
    .await;
    check(
        PortFilter {
            instance: Some(instance.id),
            ..any.clone()
        },
        1,
    )
    .await;
    check(
        PortFilter {
            project: Some("other".parse().unwrap()),
            ..any
        },
        1,
    )
    .await;
}

async fn a_name_is_for_one_port_of_a_project(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let named = |last, project: &str| PortRow {
        name: Some("uplink".parse().unwrap()),
        project: project.parse().unwrap(),
        ..free(sample::port(&instance, &network, last))
    };
    ports::insert(db, &named(5, "default")).await.unwrap();
    ports::insert(db, &named(6, "other")).await.unwrap();
    let taken = ports::insert(db, &named(7, "default")).await.unwrap_err();
    assert!(
        matches!(
            &taken,
            StoreError::Unique {
                constraint: UniqueWhat::PortName,
                ..
            }
        ),
        "{taken:?}"
    );
}

/// The tables as they were before ports could be without an instance, with rows in them.
async fn ports_of_before_are_attached_and_without_port_security(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (_, network, instance) = sample::populate(&store).await;
    let mut port = sample::port(&instance, &network, 5);
    port.fingerprint = String::new();
    let options = match database.kind {
        Kind::MariaDb => "ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        Kind::Sqlite | Kind::Postgres => "",
    };
    for sql in [
        "DROP TABLE port_security_groups".to_owned(),
        "DROP TABLE security_group_rules".to_owned(),
        "DROP TABLE security_groups".to_owned(),
        "DROP TABLE fixed_ips".to_owned(),
        "DROP TABLE ports".to_owned(),
        format!(
            "CREATE TABLE ports (id varchar(36) NOT NULL, instance_id varchar(36) NOT NULL, \
             network_id varchar(36) NOT NULL, position bigint NOT NULL, mac_address varchar(18) NOT NULL, \
             PRIMARY KEY (id), CONSTRAINT uq_port_mac UNIQUE (network_id, mac_address), \
             CONSTRAINT uq_port_position UNIQUE (instance_id, position), \
             CONSTRAINT fk_port_instance FOREIGN KEY (instance_id) REFERENCES instances (id), \
             CONSTRAINT fk_port_network FOREIGN KEY (network_id) REFERENCES networks (id)) {options}"
        ),
        format!(
            "CREATE TABLE fixed_ips (port_id varchar(36) NOT NULL, position bigint NOT NULL, \
             subnet_id varchar(36) NOT NULL, ip_address varchar(43) NOT NULL, PRIMARY KEY (port_id, position), \
             CONSTRAINT uq_fixed_ip UNIQUE (subnet_id, ip_address), \
             CONSTRAINT fk_fixed_ip_port FOREIGN KEY (port_id) REFERENCES ports (id) ON DELETE CASCADE, \
             CONSTRAINT fk_fixed_ip_subnet FOREIGN KEY (subnet_id) REFERENCES subnets (id)) {options}"
        ),
        format!(
            "INSERT INTO ports VALUES ('{}', '{}', '{}', 0, '{}')",
            port.id, instance.id, network.id, port.mac_address
        ),
        format!(
            "INSERT INTO fixed_ips VALUES ('{}', 0, '{}', '10.0.0.5')",
            port.id, network.subnets[0].id
        ),
        "DELETE FROM berth_migrations WHERE version = 'm0014_ports'".to_owned(),
    ] {
        database.execute(&sql).await;
    }

    let store = database.store().await;
    let db = store.pool();
    assert_eq!(ports::get(db, port.id).await.unwrap(), Some(port.clone()));
    // And everything that is new can be done with it.
    ports::free(db, port.id).await.unwrap();
    let group = sample::security_group("web");
    security_groups::insert(db, &group).await.unwrap();
    port.wishes.port_security_enabled = true;
    port.wishes.security_groups.insert(group.id);
    ports::set_wishes(db, port.id, &port.wishes).await.unwrap();
    assert_eq!(
        ports::get(db, port.id).await.unwrap(),
        Some(free(port.clone()))
    );
    let same_mac = PortRow {
        id: PortId::new(),
        fixed_ips: vec![],
        ..free(port.clone())
    };
    let taken = ports::insert(db, &same_mac).await.unwrap_err();
    assert!(
        matches!(
            &taken,
            StoreError::Unique {
                constraint: UniqueWhat::MacAddress,
                ..
            }
        ),
        "{taken:?}"
    );
    // Its addresses go with it still.
    ports::delete(db, port.id).await.unwrap();
    let used = ports::addresses_in_use(db, network.subnets[0].id).await;
    assert_eq!(used.unwrap(), BTreeSet::new());
    // A crash in the middle of it is made good by doing it again.
    database
        .execute("DELETE FROM berth_migrations WHERE version = 'm0014_ports'")
        .await;
    database.store().await;
}
