//! The sum of the claims is the sum of the rows that are there, after any sequence of operations.

use std::{collections::BTreeMap, sync::Arc};

use berth_common::{ids::HostId, message::view::Resources};
use berth_store::{
    Store, StoreError, UniqueWhat,
    claims::{self, ClaimRole, ClaimRow},
    instances::{self, InstanceRow},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Handle;

use crate::{
    database::{Kind, TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(usage_is_the_sum_of_the_rows_that_are_there);

const INSTANCES: usize = 4;
const HOSTS: usize = 3;

#[derive(Debug, Clone)]
enum Operation {
    Claim {
        instance: usize,
        host: usize,
        role: ClaimRole,
        resources: Resources,
    },
    Release {
        instance: usize,
    },
    Delete {
        instance: usize,
    },
}

/// Some operations in one transaction, and whether it is committed.
#[derive(Debug, Clone)]
struct Batch {
    operations: Vec<Operation>,
    committed: bool,
}

fn operation() -> impl Strategy<Value = Operation> {
    let role = prop_oneof![Just(ClaimRole::Current), Just(ClaimRole::Incoming)];
    let amounts = (0_u64..=1 << 20, 0_u64..=1 << 36, 0_u64..=1 << 36);
    let claim = (0..INSTANCES, 0..HOSTS, role, amounts).prop_map(
        |(instance, host, role, (vcpus, memory, disk))| Operation::Claim {
            instance,
            host,
            role,
            resources: sample::resources(vcpus, memory, disk),
        },
    );
    prop_oneof![
        4 => claim,
        1 => (0..INSTANCES).prop_map(|instance| Operation::Release { instance }),
        1 => (0..INSTANCES).prop_map(|instance| Operation::Delete { instance }),
    ]
}

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let batch = (
        prop::collection::vec(operation(), 1..6),
        prop::bool::weighted(0.7),
    )
        .prop_map(|(operations, committed)| Batch {
            operations,
            committed,
        });
    prop::collection::vec(batch, 1..8)
}

type Model = BTreeMap<(usize, usize, ClaimRole), Resources>;

/// Applies one batch to the store and to the model, and answers with the model as it shall be afterwards.
async fn apply(
    store: &Store,
    instances: &[InstanceRow],
    hosts: &[HostId],
    batch: &Batch,
    model: &Model,
) -> Model {
    let mut after = model.clone();
    let transaction = store.begin().await.unwrap();
    for operation in &batch.operations {
        match operation {
            Operation::Claim {
                instance,
                host,
                role,
                resources,
            } => {
                let mut claim = sample::claim(&instances[*instance], hosts[*host], *role);
                claim.resources = *resources;
                let claimed = claims::insert(&transaction, &claim).await;
                if after
                    .insert((*instance, *host, *role), *resources)
                    .is_some()
                {
                    assert!(
                        matches!(
                            claimed,
                            Err(StoreError::Unique {
                                constraint: UniqueWhat::Id,
                                ..
                            })
                        ),
                        "{claimed:?}"
                    );
                    // The transaction ends here, whatever was to follow.
                    drop(transaction);
                    return model.clone();
                }
                claimed.unwrap();
            }
            Operation::Release { instance } => {
                claims::delete_of_instance(&transaction, instances[*instance].id)
                    .await
                    .unwrap();
                after.retain(|(owner, ..), _| owner != instance);
            }
            Operation::Delete { instance } => {
                instances::mark_deleted(&transaction, instances[*instance].id, sample::time(1))
                    .await
                    .unwrap();
                after.retain(|(owner, ..), _| owner != instance);
            }
        }
    }
    if batch.committed {
        transaction.commit().await.unwrap();
        return after;
    }
    drop(transaction);
    model.clone()
}

fn sum<'a>(resources: impl Iterator<Item = &'a Resources>) -> Resources {
    resources.fold(Resources::default(), |sum, more| sum.saturating_add(*more))
}

async fn compare(store: &Store, instances: &[InstanceRow], hosts: &[HostId], model: &Model) {
    for (at, host) in hosts.iter().enumerate() {
        let rows: Vec<ClaimRow> = claims::of_hosts(store.pool(), &[*host]).await.unwrap();
        let expected = sum(model
            .iter()
            .filter(|((_, on, _), _)| *on == at)
            .map(|(_, resources)| resources));
        assert_eq!(sum(rows.iter().map(|row| &row.resources)), expected);
    }
    for (at, instance) in instances.iter().enumerate() {
        let rows = claims::of_instance(store.pool(), instance.id)
            .await
            .unwrap();
        assert_eq!(
            rows.len(),
            model.keys().filter(|(owner, ..)| *owner == at).count()
        );
    }
}

async fn one_case(store: &Store, batches: Vec<Batch>) {
    let db = store.pool();
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let mut instances = vec![];
    let mut hosts = vec![];
    for number in 0..INSTANCES {
        instances.push(sample::add_instance(db, &format!("i{number}-{mark}")).await);
    }
    for number in 0..HOSTS {
        hosts.push(sample::add_host(db, &format!("h{number}-{mark}")).await);
    }
    let mut model = Model::new();
    for batch in &batches {
        model = apply(store, &instances, &hosts, batch, &model).await;
        compare(store, &instances, &hosts, &model).await;
    }
}

async fn usage_is_the_sum_of_the_rows_that_are_there(database: Arc<TestDatabase>) {
    let store = database.store().await;
    // Each case costs some fifty round trips; SQLite has none, so it bears most of the search.
    let cases = if database.kind == Kind::Sqlite { 64 } else { 8 };
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&batches(), |batches| {
            Handle::current().block_on(one_case(&store, batches));
            Ok(())
        })
    });
    outcome.unwrap();
}
