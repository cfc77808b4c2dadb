//! The schema appears once, whoever asks how often, and a newer one is left alone.

use std::sync::Arc;

use berth_store::{
    StoreError,
    claims::{self, ClaimRole},
    hosts, instances, leadership, networks, ports, subnets, volumes,
};
use sea_orm::{ConnectionTrait, Statement};

use crate::{
    database::{Kind, TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    migrating_twice_is_harmless,
    migrating_from_two_processes_at_once_is_harmless,
    a_half_made_schema_is_completed,
    rows_of_the_first_schema_are_read_by_the_newest,
    rows_of_the_second_schema_are_read_by_the_third,
    networks_of_before_get_more_than_one_subnet,
    a_newer_schema_is_refused_and_left_alone,
);

async fn migrating_twice_is_harmless(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let host = sample::add_host(store.pool(), "hv1").await;
    store.migrate().await.unwrap();
    let again = database.store().await;
    assert_eq!(
        berth_store::hosts::all(again.pool()).await.unwrap()[0].id,
        host
    );
}

async fn migrating_from_two_processes_at_once_is_harmless(database: Arc<TestDatabase>) {
    let (one, two) = (database.connect().await, database.connect().await);
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    first.unwrap();
    second.unwrap();
    assert_eq!(berth_store::hosts::all(two.pool()).await.unwrap(), []);
}

/// What a crash in the middle leaves on MariaDB, where each statement commits by itself.
async fn a_half_made_schema_is_completed(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let connection = database.raw().await;
    for sql in [
        "DROP TABLE documents",
        "DROP TABLE nonces",
        "DELETE FROM berth_migrations",
    ] {
        connection.execute_unprepared(sql).await.unwrap();
    }
    store.migrate().await.unwrap();
    let host = sample::add_host(store.pool(), "hv1").await;
    assert_eq!(
        berth_store::documents::of_host(store.pool(), host)
            .await
            .unwrap(),
        []
    );
}

async fn a_newer_schema_is_refused_and_left_alone(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let applied = async || {
        let connection = database.raw().await;
        let statement = Statement::from_string(
            connection.get_database_backend(),
            "SELECT version FROM berth_migrations",
        );
        let rows = connection.query_all_raw(statement).await.unwrap();
        connection.close().await.unwrap();
        rows.len()
    };
    let before = applied().await;
    database
        .execute(
            "INSERT INTO berth_migrations (version, applied_at) VALUES ('m9999_of_tomorrow', 0)",
        )
        .await;
    let error = store.migrate().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NewerSchema { unknown } if unknown == &["m9999_of_tomorrow"]),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("newer version of berth, which added m9999_of_tomorrow"),
        "{error}"
    );
    assert!(!error.retryable());
    assert_eq!(applied().await, before + 1);
}

/// The first schema, made by taking away what the later ones add, with rows in it.
async fn rows_of_the_first_schema_are_read_by_the_newest(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, instance) = sample::populate(&store).await;
    let claim = sample::claim(&instance, host, ClaimRole::Current);
    claims::insert(db, &claim).await.unwrap();
    let connection = database.raw().await;
    if database.kind == Kind::Sqlite {
        let sql = "DROP INDEX ix_instance_group";
        connection.execute_unprepared(sql).await.unwrap();
    }
    for (table, column) in [
        ("hosts", "reserved_vcpus"),
        ("hosts", "reserved_memory_mb"),
        ("hosts", "reserved_disk_gb"),
        ("hosts", "physical_networks"),
        ("hosts", "resources"),
        ("instances", "hints"),
        ("instances", "server_group_id"),
        ("instances", "attempt"),
        ("instances", "failed_hosts"),
        ("claims", "extra"),
    ] {
        let sql = format!("ALTER TABLE {table} DROP COLUMN {column}");
        connection.execute_unprepared(&sql).await.unwrap();
    }
    for table in [
        "attachments",
        "snapshots",
        "volumes",
        "aggregate_hosts",
        "aggregates",
        "server_groups",
        "decisions",
        "leadership",
    ] {
        let sql = format!("DROP TABLE {table}");
        connection.execute_unprepared(&sql).await.unwrap();
    }
    connection
        .execute_unprepared(
            "DELETE FROM berth_migrations WHERE version IN ('m0002_placement', 'm0003_volumes', \
             'm0005_pools', 'm0006_snapshots', 'm0009_disk_bus', 'm0011_snapshot_pools')",
        )
        .await
        .unwrap();
    connection.close().await.unwrap();

    let store = database.store().await;
    let db = store.pool();
    let rows = instances::list(db, None, None, 10).await.unwrap();
    assert_eq!(rows, [instance]);
    let page = claims::page_with_groups(db, None, 10).await.unwrap();
    assert_eq!(page[0].claim, claim);
    let row = hosts::get(db, host).await.unwrap().unwrap();
    assert_eq!(row.overrides(), hosts::HostOverrides::default());
    assert_eq!((row.physical_networks, row.resources), (vec![], vec![]));
    assert_eq!(leadership::current(db).await.unwrap(), None);
    assert_eq!(
        leadership::take(db, "one", sample::time(0))
            .await
            .unwrap()
            .get(),
        1
    );
}

async fn rows_of_the_second_schema_are_read_by_the_third(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (host, _, instance) = sample::populate(&store).await;
    let connection = database.raw().await;
    for sql in [
        "DROP TABLE attachments",
        "DROP TABLE snapshots",
        "DROP TABLE volumes",
        "DELETE FROM berth_migrations WHERE version IN ('m0003_volumes', 'm0005_pools', 'm0006_snapshots', \
         'm0009_disk_bus', 'm0011_snapshot_pools')",
    ] {
        connection.execute_unprepared(sql).await.unwrap();
    }
    connection.close().await.unwrap();

    let store = database.store().await;
    let db = store.pool();
    let rows = instances::list(db, None, None, 10).await.unwrap();
    assert_eq!(rows, [instance]);
    assert_eq!(volumes::of_host(db, host).await.unwrap(), []);
    volumes::insert(db, &sample::volume("data", Some(host)))
        .await
        .unwrap();
}

/// The schema in which a network had one subnet, made by taking away what came since.
async fn networks_of_before_get_more_than_one_subnet(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (_, network, instance) = sample::populate(&store).await;
    let port = sample::port(&instance, &network, 5);
    ports::insert(store.pool(), &port).await.unwrap();
    let connection = database.raw().await;
    let of_subnets: &[&str] = if database.kind == Kind::Sqlite {
        &[
            "PRAGMA foreign_keys = OFF",
            "CREATE TABLE s AS SELECT id, network_id, cidr, gateway_ip, dhcp_ip, dns_nameservers FROM subnets",
            "DROP TABLE subnets",
            "CREATE TABLE subnets (id varchar(36) NOT NULL PRIMARY KEY, network_id varchar(36) NOT NULL, \
             cidr varchar(18) NOT NULL, gateway_ip varchar(18), dhcp_ip varchar(18) NOT NULL, \
             dns_nameservers text NOT NULL, CONSTRAINT uq_subnet_network UNIQUE (network_id), \
             FOREIGN KEY (network_id) REFERENCES networks (id))",
            "INSERT INTO subnets SELECT * FROM s",
            "DROP TABLE s",
        ]
    } else {
        &[
            "ALTER TABLE subnets ADD CONSTRAINT uq_subnet_network UNIQUE (network_id)",
            "DROP INDEX ix_subnet_network",
            "DROP INDEX uq_subnet_name",
            "ALTER TABLE subnets DROP COLUMN name",
            "ALTER TABLE subnets DROP COLUMN live_name",
            "ALTER TABLE subnets DROP COLUMN allocation_pools",
            "ALTER TABLE subnets DROP COLUMN host_routes",
            "ALTER TABLE subnets DROP COLUMN ipv6_address_mode",
            "ALTER TABLE subnets DROP COLUMN fingerprint",
            "ALTER TABLE subnets DROP COLUMN created_at",
            "ALTER TABLE subnets DROP COLUMN deleted_at",
        ]
    };
    for sql in of_subnets {
        let sql = match (database.kind, sql.strip_prefix("DROP INDEX ")) {
            (Kind::MariaDb, Some(index)) => format!("ALTER TABLE subnets DROP INDEX {index}"),
            _ => (*sql).to_owned(),
        };
        connection.execute_unprepared(&sql).await.unwrap();
    }
    for sql in [
        "DROP TABLE segments",
        "ALTER TABLE networks DROP COLUMN physical_network",
        "ALTER TABLE networks DROP COLUMN segmentation_id",
        "ALTER TABLE networks DROP COLUMN external",
        "ALTER TABLE hosts DROP COLUMN network",
        "DELETE FROM berth_migrations WHERE version = 'm0013_networks'",
    ] {
        connection.execute_unprepared(sql).await.unwrap();
    }
    connection.close().await.unwrap();

    let store = database.store().await;
    let db = store.pool();
    let read = networks::get(db, network.id).await.unwrap();
    assert_eq!(read.as_ref(), Some(&network));
    assert_eq!(ports::of_instance(db, instance.id).await.unwrap(), [port]);
    let mut second = sample::subnet(network.id, "fd00:1::/64");
    second.created_at = sample::time(1);
    subnets::insert(db, &second).await.unwrap();
    let read = networks::get(db, network.id).await.unwrap().unwrap();
    assert_eq!(read.subnets, [network.subnets[0].clone(), second]);
    // What refers to a subnet still does.
    database.execute("DELETE FROM ports").await;
    let stranger = sample::subnet(berth_common::ids::NetworkId::new(), "10.9.0.0/24");
    let refused = subnets::insert(db, &stranger).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::ForeignKey { .. }),
        "{refused:?}"
    );
}
