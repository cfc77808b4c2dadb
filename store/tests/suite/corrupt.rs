//! A stored value that does not parse is named with its table and row, and never guessed.

use std::sync::Arc;

use berth_store::{
    StoreError, claims, claims::ClaimRole, documents, host_rows, hosts, instances, networks, ports,
};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(corrupt_values_are_named_with_table_and_row);

#[track_caller]
fn check<T: std::fmt::Debug>(result: Result<T, StoreError>, table: &str, id: &str, column: &str) {
    let error = result.unwrap_err();
    let StoreError::Corrupt {
        table: named,
        id: row,
        what,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!((*named, row.as_str()), (table, id), "{error}");
    assert!(what.starts_with(column), "{what}");
    assert!(!error.retryable());
}

async fn corrupt_values_are_named_with_table_and_row(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, instance) = sample::populate(&store).await;
    let port = sample::port(&instance, &network, 5);
    ports::insert(db, &port).await.unwrap();
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current))
        .await
        .unwrap();
    let document = sample::document(host, instance.id);
    documents::upsert(db, &document).await.unwrap();
    let (host_id, id) = (host.to_string(), instance.id.to_string());

    for (column, value) in [
        ("status", "'asleep'"),
        ("health", "'[{'"),
        ("session", "-1"),
        ("total_vcpus", "4611686018427387904"),
        ("name", "'-'"),
        ("last_heartbeat_at", "9223372036854775807"),
        ("cpu_ratio", "0"),
        ("reserved_memory_mb", "-1"),
        ("physical_networks", "'[\"\"]'"),
        ("network", "'{}'"),
        ("resources", "'{}'"),
    ] {
        let before = format!("UPDATE hosts SET {column} = {value}");
        let heartbeat = sample::heartbeat("spare");
        database.execute(&before).await;
        let column = column.strip_suffix("_vcpus").unwrap_or(column);
        check(hosts::get(db, host).await, "hosts", &host_id, column);
        check(hosts::all(db).await, "hosts", &host_id, column);
        // Mend it: a row made anew has every column right.
        database.execute("DELETE FROM claims").await;
        database.execute("DELETE FROM documents").await;
        database.execute("DELETE FROM hosts").await;
        let again = berth_common::message::heartbeat::Heartbeat {
            host_id: host,
            ..heartbeat
        };
        hosts::upsert_heartbeat(db, &again, sample::time(0))
            .await
            .unwrap();
    }
    claims::insert(db, &sample::claim(&instance, host, ClaimRole::Current))
        .await
        .unwrap();
    documents::upsert(db, &document).await.unwrap();

    database
        .execute("UPDATE instances SET placement_fault_code = 'disk_full'")
        .await;
    check(
        instances::get(db, instance.id).await,
        "instances",
        &id,
        "placement_fault",
    );
    for (column, value, right) in [
        ("hints", "'web'", "NULL"),
        ("server_group_id", "'web'", "NULL"),
        ("attempt", "-1", "1"),
        ("failed_hosts", "'[1]'", "'[]'"),
        ("config_drive", "'{\"user_data\": \"\"}'", "NULL"),
        ("guest_data", "'{\"user_data\": \"\"}'", "NULL"),
        ("desired_rescue", "'{\"nonce\": \"x\"}'", "NULL"),
        ("desired_incarnation", "'{\"number\": -1}'", "NULL"),
        ("metadata", "'[1]'", "NULL"),
        ("on_crash", "'\"preserve\"'", "NULL"),
        ("observed_boot_disk", "'{\"first\": 1}'", "NULL"),
        ("root_volume", "'{\"id\": \"x\"}'", "NULL"),
        ("observed_running", "'{\"vcpus\": 1}'", "NULL"),
    ] {
        let set =
            |value| format!("UPDATE instances SET placement_fault_code = NULL, {column} = {value}");
        database.execute(&set(value)).await;
        check(
            instances::get(db, instance.id).await,
            "instances",
            &id,
            column,
        );
        if column == "server_group_id" {
            check(
                claims::page_with_groups(db, None, 10).await,
                "instances",
                &id,
                column,
            );
        }
        database.execute(&set(right)).await;
    }
    database
        .execute("UPDATE instances SET image_sha256 = 'AB'")
        .await;
    check(
        instances::list(db, None, None, 10).await,
        "instances",
        &id,
        "image_sha256",
    );
    check(
        host_rows::of_host(db, host).await,
        "instances",
        &id,
        "image_sha256",
    );

    database
        .execute("UPDATE subnets SET cidr = '10.0.0.1/24'")
        .await;
    check(
        networks::get(db, network.id).await,
        "subnets",
        &network.subnets[0].id.to_string(),
        "cidr",
    );
    database
        .execute("UPDATE fixed_ips SET ip_address = '10.0.0'")
        .await;
    check(
        ports::of_instance(db, instance.id).await,
        "fixed_ips",
        &format!("{}/0", port.id),
        "ip_address",
    );
    database.execute("DELETE FROM fixed_ips").await;
    database.execute("DELETE FROM subnets").await;
    database
        .execute("UPDATE networks SET physical_network = '/'")
        .await;
    check(
        networks::list(db, None).await,
        "networks",
        &network.id.to_string(),
        "physical_network",
    );
    database
        .execute("UPDATE ports SET mac_address = '01:00:00:00:00:00'")
        .await;
    check(
        ports::of_instance(db, instance.id).await,
        "ports",
        &port.id.to_string(),
        "mac_address",
    );
    for (column, value) in [
        ("state", "'asleep'"),
        ("state", "NULL"),
        ("allowed_address_pairs", "'{}'"),
        ("qos", "'1'"),
        ("mirrors", "'[1]'"),
        ("project", "''"),
        ("name", "''"),
    ] {
        let mut good = sample::port(&instance, &network, 6);
        good.fixed_ips = vec![];
        database.execute("DELETE FROM ports").await;
        ports::insert(db, &good).await.unwrap();
        database
            .execute(&format!("UPDATE ports SET {column} = {value}"))
            .await;
        let named = if value == "NULL" {
            "instance_id"
        } else {
            column
        };
        check(
            ports::of_instance(db, instance.id).await,
            "ports",
            &good.id.to_string(),
            named,
        );
    }

    database
        .execute("UPDATE claims SET extra = '{\"gpu\":1}'")
        .await;
    check(
        sample::claims(db).await,
        "claims",
        &format!("{id}/{host_id}/current"),
        "extra",
    );
    database
        .execute("UPDATE claims SET extra = NULL, role = 'past'")
        .await;
    check(
        sample::claims(db).await,
        "claims",
        &format!("{id}/{host_id}/past"),
        "role",
    );
    database
        .execute("UPDATE documents SET kind = 'planet'")
        .await;
    let key = format!("{host_id}/planet/{id}");
    check(
        documents::of_host(db, host).await,
        "documents",
        &key,
        "kind",
    );
    check(
        documents::lagging(db, sample::time(0), 10).await,
        "documents",
        &key,
        "kind",
    );
}
