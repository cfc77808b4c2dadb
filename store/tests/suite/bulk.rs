//! Many at once are the same as one after the other.

use std::{collections::BTreeMap, sync::Arc};

use berth_common::{
    document::{DocumentKey, Kind as DocumentKind},
    ids::{HostId, InstanceId},
    message::report::ConvergeStatus,
    names::MacAddress,
    units::Generation,
};
use berth_store::{
    Store, StoreError, Txn, UniqueWhat,
    claims::{self, ClaimRole},
    decisions,
    documents::{self, DocumentRow, Observation},
    instances, ports,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Handle;

use crate::{
    database::{Kind, TestDatabase, on_all_databases},
    sample::{self, time},
};

on_all_databases!(
    instances_inserted_at_once,
    ports_inserted_at_once,
    claims_inserted_at_once,
    decisions_inserted_at_once,
    of_many_rows_with_a_refused_one_none_is_there,
    instances_found_at_once,
    documents_written_observed_and_made_due_at_once,
    documents_found_at_once,
);

/// None, sizes of one statement, and what needs several.
const SIZES: [usize; 5] = [0, 1, 3, 256, 331];

/// What is there after a change, which is then undone.
async fn after<R>(
    store: &Store,
    change: impl AsyncFnOnce(&Txn),
    read: impl AsyncFnOnce(&Txn) -> R,
) -> R {
    let transaction = store.begin().await.unwrap();
    change(&transaction).await;
    read(&transaction).await
}

async fn instances_inserted_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let read = async |txn: &Txn| instances::list(txn, None, None, 1000).await.unwrap();
    for size in SIZES {
        let rows: Vec<_> = (0..size)
            .map(|number| {
                let mut row = sample::instance(&format!("i{number}"));
                row.attempt = u32::try_from(number).unwrap();
                row.failed_hosts = vec![HostId::new(); number % 3];
                row
            })
            .collect();
        let single = async |txn: &Txn| {
            for row in &rows {
                instances::insert(txn, row).await.unwrap();
            }
        };
        let many = async |txn: &Txn| instances::insert_many(txn, &rows).await.unwrap();
        let (single, many) = (
            after(&store, single, read).await,
            after(&store, many, read).await,
        );
        assert_eq!((many.len(), &many), (size, &single));
    }
}

/// A MAC address and the last parts of an IP address for each number.
fn addresses(number: usize) -> (MacAddress, [u8; 2]) {
    let [.., third, last] = u32::try_from(number).unwrap().to_be_bytes();
    let mac = MacAddress::from_octets([0x52, 0x54, 0, 1, third, last]).unwrap();
    (mac, [third, last])
}

async fn ports_inserted_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (_, network, instance) = sample::populate(&store).await;
    let read = async |txn: &Txn| ports::of_instance(txn, instance.id).await.unwrap();
    for size in SIZES {
        // A position is 8 bits.
        let size = size.min(250);
        let rows: Vec<_> = (0..size)
            .map(|number| {
                let mut port = sample::port(&instance, &network, 1);
                let (mac, [_, last]) = addresses(number);
                sample::put_at(&mut port, last);
                port.mac_address = mac;
                let address = port.fixed_ips.remove(0);
                // None, one, or two, in an order of their own.
                for second in (0..u8::try_from(number % 3).unwrap()).rev() {
                    let mut address = address;
                    address.ip_address = [10, 0, second, last].into();
                    port.fixed_ips.push(address);
                }
                port
            })
            .collect();
        let single = async |txn: &Txn| {
            for row in &rows {
                ports::insert(txn, row).await.unwrap();
            }
        };
        let many = async |txn: &Txn| ports::insert_many(txn, &rows).await.unwrap();
        let (single, many) = (
            after(&store, single, read).await,
            after(&store, many, read).await,
        );
        assert_eq!((many.len(), &many), (size, &single));
        assert_eq!(many, rows);
    }
}

async fn claims_inserted_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let host = sample::add_host(store.pool(), "hv1").await;
    let owners: Vec<_> = (0..331)
        .map(|number| sample::instance(&format!("i{number}")))
        .collect();
    instances::insert_many(store.pool(), &owners).await.unwrap();
    let read = async |txn: &Txn| sample::claims(txn).await.unwrap();
    for size in SIZES {
        let rows: Vec<_> = owners[..size]
            .iter()
            .zip(1..)
            .map(|(owner, number)| {
                let mut claim = sample::claim(owner, host, ClaimRole::Current);
                if number % 2 == 0 {
                    claim.extra = BTreeMap::from([("PCI_GPU".parse().unwrap(), number)]);
                }
                claim
            })
            .collect();
        let single = async |txn: &Txn| {
            for row in &rows {
                claims::insert(txn, row).await.unwrap();
            }
        };
        let many = async |txn: &Txn| claims::insert_many(txn, &rows).await.unwrap();
        let (single, many) = (
            after(&store, single, read).await,
            after(&store, many, read).await,
        );
        assert_eq!((many.len(), &many), (size, &single));
    }
}

async fn decisions_inserted_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let web = InstanceId::new();
    let read = async |txn: &Txn| decisions::of_instance(txn, web, 1000).await.unwrap();
    for size in SIZES {
        let rows: Vec<_> = (0..i64::try_from(size).unwrap())
            .map(|at| sample::decision(web, at))
            .collect();
        let single = async |txn: &Txn| {
            for row in &rows {
                decisions::insert_many(txn, std::slice::from_ref(row))
                    .await
                    .unwrap();
            }
        };
        let many = async |txn: &Txn| decisions::insert_many(txn, &rows).await.unwrap();
        let (single, many) = (
            after(&store, single, read).await,
            after(&store, many, read).await,
        );
        assert_eq!((many.len(), &many), (size, &single));
    }
}

#[track_caller]
fn taken(result: Result<(), StoreError>, what: UniqueWhat) {
    assert!(
        matches!(&result, Err(StoreError::Unique { constraint, .. }) if *constraint == what),
        "{result:?}"
    );
}

async fn of_many_rows_with_a_refused_one_none_is_there(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, network, instance) = sample::populate(&store).await;
    let mut rows: Vec<_> = (0..300)
        .map(|number| sample::instance(&format!("i{number}")))
        .collect();
    rows[299].name = instance.name.clone();
    taken(
        instances::insert_many(db, &rows).await,
        UniqueWhat::InstanceName,
    );
    assert_eq!(
        instances::list(db, None, None, 1000).await.unwrap().len(),
        1
    );

    let mut claims: Vec<_> = rows
        .iter()
        .map(|row| sample::claim(row, host, ClaimRole::Current))
        .collect();
    rows[299].name = "last".parse().unwrap();
    instances::insert_many(db, &rows).await.unwrap();
    claims[299] = claims[0].clone();
    taken(claims::insert_many(db, &claims).await, UniqueWhat::Id);
    assert_eq!(sample::claims(db).await.unwrap(), []);

    let (one, mut two) = (
        sample::port(&instance, &network, 5),
        sample::port(&rows[0], &network, 6),
    );
    two.fixed_ips = one.fixed_ips.clone();
    taken(
        ports::insert_many(db, &[one, two]).await,
        UniqueWhat::IpAddress,
    );
    let both = [instance.id, rows[0].id];
    assert_eq!(ports::of_instances(db, &both).await.unwrap(), []);
}

async fn instances_found_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut rows: Vec<_> = (0..300)
        .map(|number| {
            let mut row = sample::instance(&format!("i{}", number % 150));
            row.created_at = time(300 - number);
            row.project = if number < 150 { "default" } else { "other" }
                .parse()
                .unwrap();
            row
        })
        .collect();
    instances::insert_many(db, &rows).await.unwrap();
    instances::mark_deleted(db, rows[7].id, time(400))
        .await
        .unwrap();
    rows[7] = instances::get(db, rows[7].id).await.unwrap().unwrap();
    rows.sort_by_key(|row| (row.created_at, row.id));

    for step in [1, 2, 7, 100, 301] {
        let some: Vec<_> = rows.iter().step_by(step).cloned().collect();
        // In no order, one of them twice, and one that is not there.
        let mut ids: Vec<_> = some.iter().rev().map(|row| row.id).collect();
        ids.extend([ids[0], InstanceId::new()]);
        assert_eq!(instances::of_ids(db, &ids).await.unwrap(), some);

        let mut names: Vec<_> = some
            .iter()
            .rev()
            .map(|row| (row.project.clone(), row.name.clone()))
            .collect();
        names.extend([
            names[0].clone(),
            (names[0].0.clone(), "nobody".parse().unwrap()),
            ("nowhere".parse().unwrap(), names[0].1.clone()),
        ]);
        let mut single = vec![];
        for (project, name) in &names {
            single.extend(instances::find_by_name(db, project, name).await.unwrap());
        }
        single.sort_by_key(|row| (row.created_at, row.id));
        single.dedup();
        assert_eq!(
            instances::living_by_names(db, &names).await.unwrap(),
            single
        );
    }
    assert_eq!(instances::of_ids(db, &[]).await.unwrap(), []);
    assert_eq!(instances::living_by_names(db, &[]).await.unwrap(), []);
}

/// What happens to a few documents.
#[derive(Debug, Clone)]
enum Happening {
    Written(Vec<(usize, DocumentRow)>),
    Observed(Vec<(usize, Generation, ConvergeStatus)>),
    MadeDue(Vec<usize>),
}

const HOSTS: usize = 2;
const RESOURCES: usize = 3;
const DOCUMENTS: usize = HOSTS * RESOURCES;

fn status() -> impl Strategy<Value = ConvergeStatus> {
    prop::sample::select(vec![
        ConvergeStatus::Converging,
        ConvergeStatus::Converged,
        ConvergeStatus::Failed,
        ConvergeStatus::Gone,
    ])
}

fn generation() -> impl Strategy<Value = Generation> {
    (0_u64..4).prop_map(Generation)
}

fn written() -> impl Strategy<Value = (usize, DocumentRow)> {
    let spec = prop::option::of("[a-z]{0,3}");
    let publish = (
        prop::option::of(0..9_i64),
        0..3_u32,
        prop::option::of(0..9_i64),
    );
    let parts = (
        0..DOCUMENTS,
        generation(),
        generation(),
        prop::option::of(status()),
        spec,
        publish,
    );
    parts.prop_map(
        |(which, generation, observed_generation, observed_status, spec_json, publish)| {
            let (published_at, attempts, next_publish_at) = publish;
            let row = DocumentRow {
                generation,
                observed_generation,
                observed_status,
                spec_json,
                published_at: published_at.map(time),
                attempts,
                next_publish_at: next_publish_at.map(time),
                ..sample::document(HostId::new(), InstanceId::new())
            };
            (which, row)
        },
    )
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        prop::collection::vec(written(), 0..8).prop_map(Happening::Written),
        prop::collection::vec((0..DOCUMENTS, generation(), status()), 0..12)
            .prop_map(Happening::Observed),
        prop::collection::vec(0..DOCUMENTS, 0..4).prop_map(Happening::MadeDue),
    ]
}

type Ids = [(HostId, DocumentKey); DOCUMENTS];

async fn at_once(txn: &Txn, ids: &Ids, happening: &Happening) {
    match happening {
        Happening::Written(rows) => {
            let rows: Vec<_> = rows
                .iter()
                .map(|(which, row)| placed(ids, *which, row))
                .collect();
            documents::upsert_many(txn, &rows).await.unwrap();
        }
        Happening::Observed(seen) => {
            let seen: Vec<_> = seen
                .iter()
                .map(|(which, generation, status)| Observation {
                    host_id: ids[*which].0,
                    key: ids[*which].1,
                    generation: *generation,
                    status: *status,
                })
                .collect();
            documents::mark_observed_many(txn, &seen).await.unwrap();
        }
        Happening::MadeDue(which) => {
            let due: Vec<_> = which.iter().map(|which| ids[*which]).collect();
            documents::make_due(txn, &due).await.unwrap();
        }
    }
}

fn placed(ids: &Ids, which: usize, row: &DocumentRow) -> DocumentRow {
    let (host_id, key) = ids[which];
    DocumentRow {
        host_id,
        key,
        ..row.clone()
    }
}

async fn one_by_one(txn: &Txn, ids: &Ids, happening: &Happening) {
    match happening {
        Happening::Written(rows) => {
            for (which, row) in rows {
                documents::upsert(txn, &placed(ids, *which, row))
                    .await
                    .unwrap();
            }
        }
        Happening::Observed(seen) => {
            for (which, generation, status) in seen {
                let (host, key) = ids[*which];
                sample::observe(txn, host, key, *generation, *status).await;
            }
        }
        Happening::MadeDue(which) => {
            for which in which {
                let (host, key) = ids[*which];
                let row = documents::get(txn, host, key).await.unwrap();
                let made = documents::make_due(txn, &[ids[*which]]).await.unwrap();
                assert_eq!(made, u64::from(row.is_some()));
                let expected = row.map(|row| DocumentRow {
                    attempts: 0,
                    published_at: None,
                    next_publish_at: None,
                    ..row
                });
                assert_eq!(documents::get(txn, host, key).await.unwrap(), expected);
            }
        }
    }
}

/// The documents, and which of them lag.
async fn state(txn: &Txn, ids: &Ids) -> (Vec<Option<DocumentRow>>, Vec<DocumentRow>) {
    let mut rows = vec![];
    for (host, key) in ids {
        rows.push(documents::get(txn, *host, *key).await.unwrap());
    }
    (rows, documents::lagging(txn, time(99), 99).await.unwrap())
}

async fn documents_written_observed_and_made_due_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let (one, two) = (
        sample::add_host(store.pool(), "hv1").await,
        sample::add_host(store.pool(), "hv2").await,
    );
    let shared = sample::document(one, InstanceId::new()).key;
    let network = DocumentKey {
        kind: DocumentKind::Network,
        ..shared
    };
    let other = sample::document(one, InstanceId::new()).key;
    let ids = [
        (one, shared),
        (one, network),
        (one, other),
        (two, shared),
        (two, network),
        (two, other),
    ];
    // Each case costs some hundred round trips; SQLite has none, so it bears most of the search.
    let cases = if database.kind == Kind::Sqlite { 64 } else { 8 };
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&prop::collection::vec(happening(), 1..10), |happenings| {
            let (single, many) = Handle::current().block_on(async {
                let single = async |txn: &Txn| {
                    for happening in &happenings {
                        one_by_one(txn, &ids, happening).await;
                    }
                };
                let many = async |txn: &Txn| {
                    for happening in &happenings {
                        at_once(txn, &ids, happening).await;
                    }
                };
                let read = async |txn: &Txn| state(txn, &ids).await;
                (
                    after(&store, single, read).await,
                    after(&store, many, read).await,
                )
            });
            prop_assert_eq!(single, many);
            Ok(())
        })
    });
    outcome.unwrap();
}

async fn documents_found_at_once(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (one, two) = (
        sample::add_host(db, "hv1").await,
        sample::add_host(db, "hv2").await,
    );
    let mut rows = vec![];
    for number in 0..300 {
        let row = sample::document(if number % 2 == 0 { one } else { two }, InstanceId::new());
        let mut network = row.clone();
        network.key.kind = DocumentKind::Network;
        rows.extend([row, network]);
    }
    documents::upsert_many(db, &rows).await.unwrap();
    rows.sort_by_key(|row| (row.host_id, row.key));
    for step in [1, 2, 3, 250] {
        let some: Vec<_> = rows.iter().step_by(step).cloned().collect();
        let mut ids: Vec<_> = some
            .iter()
            .rev()
            .map(|row| (row.host_id, row.key))
            .collect();
        // One twice, and the same resource on the other host, where it is not.
        let (host, key) = ids[0];
        ids.extend([ids[0], (if host == one { two } else { one }, key)]);
        assert_eq!(documents::of_host_resources(db, &ids).await.unwrap(), some);
        let count = u64::try_from(some.len()).unwrap();
        assert_eq!(documents::make_due(db, &ids).await.unwrap(), count);
    }
    assert_eq!(documents::of_host_resources(db, &[]).await.unwrap(), []);
}
