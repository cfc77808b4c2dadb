//! Who leads, who is alive, and what becomes of a leader that another one replaced.

use std::sync::Arc;

use berth_common::{
    bus::{Bus as _, QueueDecl, topology::STANDBY},
    document::Kind,
    message::{
        report::{ConvergeStatus, PowerState, Report},
        request::{HostDisable, InstanceList},
        view::HostState,
    },
    refusal::RefusalCode::NoValidHost,
    units::Generation,
};
use berth_scheduler::{
    claim::{ClaimError, instances::create::create},
    leader,
    report::apply,
    service::TaskError,
};
use berth_store::StoreError;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    ask::{delete, several, small},
    cloud::{Cloud, wait_until},
    host::{Host, key, resource},
    soundness::assert_sound,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_replaced_writes_nothing_any_more_and_ends() {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let before = small("before");
    cloud.ok(before.clone()).await;
    let mut old = cloud.take_over().await;
    assert!(cloud.context().epoch > old.context.epoch);

    let fenced = |error: &StoreError| matches!(error, StoreError::Fenced { .. });
    let begun = old.context.begin().await;
    assert!(begun.is_err_and(|error| fenced(&error)));
    assert!(old.context.fenced.is_cancelled());
    let report = Report {
        host_id: host.id,
        host: "hv1".parse().unwrap(),
        session: 1,
        sequence: 99,
        resources: vec![resource(
            key(before.id),
            Generation::FIRST,
            ConvergeStatus::Converged,
            PowerState::Running,
        )],
    };
    let reported = apply::reports(&old.context, &[report]).await;
    assert!(matches!(reported, Err(ClaimError::Store(error)) if fenced(&error)));

    // The broker still gives it the requests; it gives them back, and each is served once, by the new one.
    let requests = several("vm", 5, &json!({}));
    let calls = requests.iter().map(|request| cloud.call(request.clone()));
    let (answers, why) = tokio::join!(futures::future::join_all(calls), old.ended());
    assert!(matches!(why, TaskError::Fenced { ours } if ours == old.context.epoch.get()));
    for answer in answers {
        answer.unwrap();
    }
    let all = InstanceList {
        project: None,
        after: None,
        limit: 100,
    };
    assert_eq!(cloud.ok(all).await.instances.len(), 6);
    for request in &requests {
        assert_eq!(cloud.explain(request.id).await.len(), 1);
    }
    cloud.ok(delete(before.id)).await;
    host.bury(&cloud, &[before.id]).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_learns_that_it_was_replaced_without_writing() {
    let mut cloud = Cloud::start().await;
    let mut old = cloud.take_over().await;
    assert!(matches!(old.ended().await, TaskError::Fenced { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_and_reports_that_a_replaced_leader_took_are_not_lost() {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    let document = host
        .next_of(&[Kind::Instance])
        .await
        .remove(&Kind::Instance)
        .unwrap();
    let mut old = cloud.take_over().await;
    // Both consume; whoever gets it, it is written down by the one that leads.
    for _ in 0..8 {
        host.carry_out(&document, PowerState::Running).await;
    }
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == berth_common::message::view::VmState::Active
        })
        .await;
    old.ended().await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_given_up_leaves_rows_and_memory_as_they_were() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(small("kept")).await;
    let mut writing = cloud.context().begin().await.unwrap();
    let answers = create(&mut writing, &several("no", 4, &json!({})))
        .await
        .unwrap();
    assert!(answers.iter().all(Result::is_ok));
    let attempt = writing.attempt().await.unwrap();
    create(&mut writing, &several("never", 4, &json!({})))
        .await
        .unwrap();
    assert_eq!(writing.cloud.len(), 9);
    writing.end(attempt, false).await.unwrap();
    assert_eq!(writing.cloud.len(), 5);
    drop(writing);
    assert_eq!(cloud.context().image().await.unwrap().len(), 1);
    assert_sound(&cloud).await;

    // A part of one that is given up takes nothing else with it.
    let mut writing = cloud.context().begin().await.unwrap();
    create(&mut writing, &several("yes", 2, &json!({})))
        .await
        .unwrap();
    let attempt = writing.attempt().await.unwrap();
    create(&mut writing, &several("never", 4, &json!({})))
        .await
        .unwrap();
    writing.derive().await.unwrap();
    writing.end(attempt, false).await.unwrap();
    let attempt = writing.attempt().await.unwrap();
    create(&mut writing, &several("also", 2, &json!({})))
        .await
        .unwrap();
    writing.end(attempt, true).await.unwrap();
    writing.commit().await.unwrap();
    assert_eq!(cloud.context().image().await.unwrap().len(), 5);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_in_doubt_is_read_anew() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let some = small("some");
    cloud.ok(some.clone()).await;
    {
        let mut image = cloud.context().image().await.unwrap();
        let instance = some.id;
        image.unplace(instance);
        image.settle();
        image.doubt();
    }
    assert_sound(&cloud).await;
    cloud.ok(small("after")).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_silent_host_is_down_but_most_at_once_are_the_schedulers_own_fault() {
    let cloud = Cloud::start().await;
    let hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3", "hv4", "hv5"]).await;
    let status = || cloud.scheduler.health.report().components["hosts"].status;
    let state = async |name: &str| cloud.show_host(name).await.state;
    cloud.silence(&[hosts["hv1"].id]).await;
    wait_until("hv1 is down", async || {
        state("hv1").await == HostState::Down
    })
    .await;
    assert_eq!(status(), "ok");

    let most = ["hv2", "hv3", "hv4"].map(|name| hosts[name].id);
    cloud.silence(&most).await;
    wait_until("the scheduler suspects itself", async || {
        status() == "degraded"
    })
    .await;
    assert_eq!(state("hv1").await, HostState::Down, "that was before");
    for name in ["hv2", "hv3", "hv4", "hv5"] {
        assert_eq!(state(name).await, HostState::Up, "{name}");
    }
    // None of them gets anything all the same.
    for request in several("vm", 3, &json!({})) {
        assert_eq!(cloud.ok(request).await.host.unwrap().as_str(), "hv5");
    }
    cloud
        .ok(HostDisable {
            host: "hv5".to_owned(),
            reason: None,
        })
        .await;
    cloud
        .refused(small("nowhere"), NoValidHost, "alive removed 4")
        .await;
    let mut back = hosts;
    for name in ["hv2", "hv3", "hv4"] {
        back.get_mut(name).unwrap().heartbeat().await;
    }
    wait_until("all but one are heard of", async || status() == "ok").await;
    cloud.ok(small("somewhere")).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_while_the_scheduler_has_no_broker_makes_nobody_old() {
    let cloud = Cloud::start().await;
    let host = Host::join(&cloud, "hv1").await;
    let context = cloud.context();
    let age = || context.liveness(|liveness| liveness.age(host.id, std::time::Instant::now()));
    cloud.broker.stop();
    let mut last = age();
    wait_until("nobody gets older", async || {
        tokio::task::yield_now().await;
        std::mem::replace(&mut last, age()) == last
    })
    .await;
    cloud.broker.start();
    wait_until("silence counts again", async || age() > last).await;
    cloud.ok(small("vm")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgives_those_who_were_alive() {
    let mut cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    cloud.crash_scheduler().await;
    cloud.ok(small("at-once")).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_stands_by_shows_it_also_after_its_connection_was_lost() {
    let cloud = Cloud::start().await;
    let bus = Arc::new(cloud.broker.connect());
    let shown = async || {
        let consumers = bus.consumer_count(STANDBY).await.unwrap();
        consumers.unwrap_or_default()
    };
    let standby = Arc::new(cloud.broker.connect());
    let store = cloud.context().store.clone();
    let cancel = CancellationToken::new();
    let (its_bus, its_cancel) = (Arc::clone(&standby), cancel.clone());
    let waits = tokio::spawn(async move {
        let queue = QueueDecl::scheduler();
        let mut consumer = its_bus.consume(&queue, 1).await.unwrap();
        leader::wait(its_bus.as_ref(), &store, &mut consumer, &its_cancel).await
    });
    wait_until("it shows that it stands by", async || shown().await == 1).await;
    for _ in 0..2 {
        standby.disconnect();
        wait_until("nobody stands by", async || shown().await == 0).await;
        standby.reconnect();
        wait_until("it shows itself again", async || shown().await == 1).await;
    }
    cancel.cancel();
    assert!(waits.await.unwrap().is_none(), "it was never its turn");
    wait_until("nobody stands by", async || shown().await == 0).await;
}
