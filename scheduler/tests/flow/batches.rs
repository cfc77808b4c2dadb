//! Requests that are served together: one's trouble stays its own, and each sees what those before it did.

use std::time::Duration;

use berth_common::{
    bus::{Bus as _, Message, QueueDecl},
    message::{
        request::{
            AggregateAddHost, CreateMode, HostDelete, HostDisable, HostSet, InstanceCreate,
            InstanceList, InstanceShow, InstanceStop, Method, NetworkDelete, ServerGroupDelete,
        },
        view::{InstanceView, VmState},
    },
    refusal::{
        Refusal,
        RefusalCode::{
            self, Conflict, Invalid, Malformed, NoValidHost, NotFound, Unavailable, UnknownMethod,
        },
    },
};
use berth_store::leadership;
use serde_json::{Value, json};

use crate::{
    ask::{aggregate, delete, hinted, instance, many, network, server_group, several, small},
    cloud::{Cloud, LIMIT, message, open},
    host::Host,
    soundness::assert_sound,
};

type Answer = Result<Value, Refusal>;

fn granted(answer: &Answer) -> InstanceView {
    serde_json::from_value(answer.clone().unwrap()).unwrap()
}

fn code(answer: &Answer) -> Option<RefusalCode> {
    answer.as_ref().err().map(|refusal| refusal.code)
}

fn show(id: berth_common::ids::InstanceId) -> InstanceShow {
    InstanceShow {
        instance: id.to_string(),
        project: Default::default(),
    }
}

async fn count(cloud: &Cloud) -> usize {
    let all = InstanceList {
        project: None,
        after: None,
        limit: 1000,
    };
    cloud.ok(all).await.instances.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_created_and_deleted_in_one_batch_is_gone() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let brief = instance("brief", 64, json!([{ "network": "blue" }]));
    let after = instance("brief", 64, json!([{ "network": "blue" }]));
    let answers = cloud
        .in_one_batch(vec![
            message(&brief),
            message(&delete(brief.id)),
            message(&after),
            message(&delete(brief.id)),
        ])
        .await;
    assert_eq!(granted(&answers[0]).vm_state, VmState::Building);
    assert_eq!(
        granted(&answers[1]).vm_state,
        VmState::Deleted,
        "no host was ever told of it"
    );
    assert_eq!(
        granted(&answers[2]).vm_state,
        VmState::Building,
        "its name is free"
    );
    assert_eq!(granted(&answers[3]).vm_state, VmState::Deleted);
    assert_eq!(cloud.show_host("hv1").await.instances, 1);
    assert_sound(&cloud).await;
    assert_eq!(host.next_about(after.id).await.generation().0, 1);
    // Several are a transaction of their own, so the host was told of them before they are deleted.
    let group = several("g", 3, &json!({}));
    let answers = cloud
        .in_one_batch(vec![
            message(&many(CreateMode::AllOrNothing, group.clone())),
            message(&delete(group[0].id)),
            message(&InstanceStop {
                instance: group[1].id.to_string(),
                project: Default::default(),
            }),
            message(&delete(group[1].id)),
        ])
        .await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(granted(&answers[1]).vm_state, VmState::Building);
    assert_sound(&cloud).await;
    host.bury(&cloud, &[group[0].id, group[1].id]).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_read_see_all_changes_of_their_batch() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let (first, second) = (small("first"), small("second"));
    let stop = InstanceStop {
        instance: "first".to_owned(),
        project: Default::default(),
    };
    let answers = cloud
        .in_one_batch(vec![
            message(&show(first.id)),
            message(&first),
            message(&show(first.id)),
            message(&second),
            message(&stop),
            message(&show(first.id)),
            message(&show(second.id)),
            message(&show(berth_common::ids::InstanceId::new())),
        ])
        .await;
    assert_eq!(granted(&answers[1]).host.unwrap().as_str(), "hv1");
    for read in [0, 2, 5] {
        assert_eq!(
            answers[4], answers[read],
            "the answer to the last change is what is shown"
        );
    }
    assert_eq!(answers[3], answers[6]);
    assert_eq!(code(&answers[7]), Some(NotFound));
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_refused_leaves_the_others_intact() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("blue", "10.0.0.0/29")).await;
    let on_blue =
        |name: &str, ip: &str| instance(name, 64, json!([{ "network": "blue", "ip_address": ip }]));
    let mut zero = small("zero");
    zero.flavor.disk_gb = berth_common::units::DiskGb::ZERO;
    let whole = several("whole", 17, &json!({}));
    let answers = cloud
        .in_one_batch(vec![
            message(&on_blue("a", "10.0.0.4")),
            message(&on_blue("b", "10.0.0.4")),
            message(&small("a")),
            message(&zero),
            message(&hinted("lost", json!({ "host": "hv9" }))),
            message(&instance("huge", 5000, json!([]))),
            message(&many(CreateMode::AllOrNothing, whole)),
            message(&HostSet {
                host: "hv1".to_owned(),
                ..HostSet::default()
            }),
            message(&on_blue("c", "10.0.0.5")),
        ])
        .await;
    let codes: Vec<_> = answers.iter().map(code).collect();
    assert_eq!(
        codes,
        [
            None,
            Some(Conflict),
            Some(Conflict),
            Some(Invalid),
            Some(NotFound),
            Some(NoValidHost),
            Some(NoValidHost),
            Some(Invalid),
            None
        ]
    );
    assert_eq!(count(&cloud).await, 3, "a, c, and huge with its reason");
    assert_eq!(cloud.show_host("hv1").await.instances, 2);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_instance_twice_in_one_batch_is_one() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let request = small("vm");
    let mut other = request.clone();
    other.flavor.memory_mb = berth_common::units::MemoryMb::new(65).unwrap();
    let answers = cloud
        .in_one_batch(vec![
            message(&request),
            message(&request),
            message(&other),
            message(&show(request.id)),
            message(&request),
        ])
        .await;
    assert_eq!(answers[0], answers[1]);
    assert_eq!(code(&answers[2]), Some(Conflict));
    assert_eq!(answers[0], answers[3]);
    assert_eq!(answers[0], answers[4]);
    assert_eq!(count(&cloud).await, 1);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_in_the_middle_goes_to_the_dead_and_the_others_are_served() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let raw =
        |method: &str, body: &str| Message::from_json(method, 1, "test", body.as_bytes().to_vec());
    let answers = cloud
        .in_one_batch(vec![
            message(&small("a")),
            raw(InstanceCreate::NAME, "{\"id\":"),
            message(&small("b")),
            raw("instance.explode", "{}"),
            raw(HostSet::NAME, r#"{"host":"hv1","cpu_allocation_ratio":0}"#),
            raw(InstanceShow::NAME, "[]"),
            message(&small("c")),
        ])
        .await;
    let codes: Vec<_> = answers.iter().map(code).collect();
    let bad = Some(Malformed);
    assert_eq!(
        codes,
        [None, bad, None, Some(UnknownMethod), bad, bad, None]
    );
    assert_eq!(count(&cloud).await, 3);
    let bus = cloud.broker.connect();
    let mut dead = bus.consume(&QueueDecl::dead(), 16).await.unwrap();
    for _ in 0..4 {
        let delivery = tokio::time::timeout(LIMIT, dead.next())
            .await
            .unwrap()
            .unwrap();
        assert!(!delivery.dead.as_ref().unwrap().reason.is_empty());
        delivery.ack().await;
    }
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_and_owners_in_one_batch_see_one_another() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let disable = |host: &str| HostDisable {
        host: host.to_owned(),
        reason: None,
    };
    let east = json!({ "availability_zone": "east" });
    let group = server_group("pack", "affinity");
    let answers = cloud
        .in_one_batch(vec![
            message(&hinted("too-early", east.clone())),
            message(&aggregate(
                "east",
                json!({ "availability_zone": "east", "cpu_allocation_ratio": "0.5" }),
            )),
            message(&AggregateAddHost {
                aggregate: "east".to_owned(),
                host: "hv2".to_owned(),
            }),
            message(&hinted("e-1", east.clone())),
            message(&hinted("e-2", east.clone())),
            message(&hinted("e-3", east)),
            message(&disable("hv2")),
            message(&group),
            message(&hinted("m-1", json!({ "server_group": "pack" }))),
            message(&ServerGroupDelete {
                server_group: "pack".to_owned(),
                project: Default::default(),
            }),
            message(&disable("hv1")),
            message(&small("nowhere")),
        ])
        .await;
    let codes: Vec<_> = answers.iter().map(code).collect();
    let full = Some(NoValidHost);
    assert_eq!(
        codes,
        [
            Some(NotFound),
            None,
            None,
            None,
            None,
            full,
            None,
            None,
            None,
            Some(Conflict),
            None,
            full
        ]
    );
    assert_eq!(granted(&answers[4]).host.unwrap().as_str(), "hv2");
    assert_eq!(granted(&answers[8]).host.unwrap().as_str(), "hv1");
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_after_it_began_is_taken_back_from_memory_too() {
    let cloud = Cloud::start().await;
    let hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    cloud.lose(&[hosts["hv2"].id]).await;
    let forget = || HostDelete {
        host: "hv2".to_owned(),
    };
    let gone = NetworkDelete {
        network: "blue".to_owned(),
        project: Default::default(),
    };
    let kept = instance("kept", 64, json!([{ "network": "blue" }]));
    let answers = cloud
        .in_one_batch(vec![
            message(&kept),
            message(&gone),
            message(&many(
                CreateMode::AllOrNothing,
                several("no", 16, &json!({})),
            )),
            message(&forget()),
            message(&forget()),
            message(&many(
                CreateMode::AllOrNothing,
                several("yes", 15, &json!({})),
            )),
            message(&small("beyond")),
        ])
        .await;
    let codes: Vec<_> = answers.iter().map(code).collect();
    let full = Some(NoValidHost);
    assert_eq!(
        codes,
        [None, Some(Conflict), full, None, Some(NotFound), None, full]
    );
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_database_is_told_to_whoever_waits_and_leaves_nothing_half_made() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let early = small("early");
    cloud.ok(early.clone()).await;
    // It is told, and dies before it says how far it is.
    let told = host.next_about(early.id).await;
    cloud.lose(&[host.id]).await;

    let store = open(cloud.url()).await;
    let epoch = leadership::current(store.pool())
        .await
        .unwrap()
        .unwrap()
        .epoch;
    let lock = store.begin_as(epoch).await.unwrap();
    // Heard of again while nothing can be written.
    host.heartbeat().await;
    let request = small("vm");
    let refusal = cloud
        .refused(request.clone(), Unavailable, "out of reach just now")
        .await;
    assert!(refusal.retryable);
    drop(lock);
    cloud
        .refused(show(request.id), NotFound, "has no instance")
        .await;
    let view = cloud.ok(request.clone()).await;
    assert_eq!(cloud.ok(request).await, view);
    // It was silent for long, and is told everything again although that could not be written at once.
    let again = tokio::time::timeout(LIMIT, async {
        loop {
            host.heartbeat().await;
            let next = tokio::time::timeout(Duration::from_millis(200), host.next_about(early.id));
            if let Ok(document) = next.await {
                return document;
            }
        }
    });
    assert_eq!(again.await.expect("it is not told again"), told);
    assert_sound(&cloud).await;
}
