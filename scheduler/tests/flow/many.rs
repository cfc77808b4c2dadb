//! Several instances in one request.

use berth_common::{
    ids::InstanceId,
    message::{
        heartbeat::ForeignDomain,
        request::{CreateMode, HostList, InstanceList, PlacementExplain, Reply},
        view::{InstanceView, VmState},
    },
    refusal::RefusalCode::{Conflict, Invalid, NoValidHost, NotFound, TooLarge},
    units::{MemoryMb, Vcpus},
};
use berth_store::documents;
use serde_json::json;

use crate::{
    ask::{hinted, instance, many, network, server_group, several, small},
    cloud::Cloud,
    host::{Host, resources},
    soundness::assert_sound,
};

async fn listed(cloud: &Cloud) -> Vec<InstanceView> {
    let all = InstanceList {
        project: None,
        after: None,
        limit: 1000,
    };
    cloud.ok(all).await.instances
}

/// Nothing of these is left anywhere: no row, claim, document, decision, address, memory.
async fn left_nothing(cloud: &Cloud, host: &Host, ids: &[InstanceId]) {
    for id in ids {
        let explain = PlacementExplain {
            instance: id.to_string(),
            project: Default::default(),
        };
        cloud.refused(explain, NotFound, "has no instance").await;
        let decisions = berth_store::decisions::of_instance(cloud.pool(), *id, 10).await;
        assert!(decisions.unwrap().is_empty());
    }
    assert!(listed(cloud).await.is_empty());
    assert!(
        documents::of_host(cloud.pool(), host.id)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        cloud.show_host(&host.name).await.used_max,
        resources(0, 0, 0)
    );
    assert!(cloud.context().image().await.unwrap().is_empty());
    assert_sound(cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_or_nothing_leaves_nothing_behind_when_one_does_not_fit() {
    let cloud = Cloud::start().await;
    let host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let on_blue = |n: usize| instance(&format!("vm-{n}"), 64, json!([{ "network": "blue" }]));
    let all: Vec<_> = (0..17).map(on_blue).collect();
    let ids: Vec<_> = all.iter().map(|request| request.id).collect();
    let refusal = cloud
        .refused(
            many(CreateMode::AllOrNothing, all.clone()),
            NoValidHost,
            "none of the 17 instances was created, since vm-16 cannot be: No valid host was found",
        )
        .await;
    assert!(refusal.message.contains("0 free of 16"), "{refusal}");
    left_nothing(&cloud, &host, &ids).await;
    // What was imagined takes no room, and no address: exactly as many fit as before.
    let granted = cloud
        .ok(many(CreateMode::AllOrNothing, all[..16].to_vec()))
        .await;
    assert_eq!(granted.results.len(), 16);
    let first = &granted.results[0].outcome;
    let Reply::Ok(view) = first else {
        panic!("{first:?}")
    };
    assert_eq!(
        view.ports[0].fixed_ips[0].ip_address.to_string(),
        "10.0.0.1"
    );
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_or_nothing_leaves_nothing_behind_when_one_is_wrong() {
    let cloud = Cloud::start().await;
    let host = Host::join(&cloud, "hv1").await;
    let wrong = hinted("wrong", json!({ "server_group": "nobodys" }));
    let all = vec![small("vm-1"), wrong, small("vm-2")];
    let ids: Vec<_> = all.iter().map(|request| request.id).collect();
    cloud
        .refused(
            many(CreateMode::AllOrNothing, all),
            NotFound,
            "since wrong cannot be: project default has no server group",
        )
        .await;
    left_nothing(&cloud, &host, &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn best_effort_creates_what_fits_and_keeps_the_others_in_error() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let mut all = several("vm", 17, &json!({}));
    all.insert(
        3,
        hinted("wrong", json!({ "availability_zone": "nowhere" })),
    );
    let reply = cloud.ok(many(CreateMode::BestEffort, all.clone())).await;
    let answered: Vec<_> = reply.results.iter().map(|result| result.id).collect();
    let asked: Vec<_> = all.iter().map(|request| request.id).collect();
    assert_eq!(answered, asked, "in the order of the request");
    for (n, result) in reply.results.iter().enumerate() {
        match (&result.outcome, n) {
            (Reply::Error(refusal), 3) => assert_eq!(refusal.code, NotFound),
            (Reply::Error(refusal), 17) => {
                assert_eq!(refusal.code, NoValidHost);
                let view = cloud.show(result.id).await;
                assert_eq!(view.vm_state, VmState::Error);
                assert_eq!(view.fault.unwrap().message, refusal.message);
            }
            (Reply::Ok(view), _) => assert_eq!(view.vm_state, VmState::Building),
            (outcome, n) => panic!("{n}: {outcome:?}"),
        }
    }
    assert_eq!(listed(&cloud).await.len(), 17);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_answers_the_same_and_creates_nothing() {
    let mut cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    for mode in [CreateMode::AllOrNothing, CreateMode::BestEffort] {
        let all = several(&format!("{mode:?}").to_lowercase(), 5, &json!({}));
        let first = cloud.ok(many(mode, all.clone())).await;
        assert_eq!(cloud.ok(many(mode, all.clone())).await, first);
        cloud.crash_scheduler().await;
        assert_eq!(cloud.ok(many(mode, all)).await, first);
    }
    assert_eq!(listed(&cloud).await.len(), 10);
    // Some of it was there before.
    let old = small("old");
    cloud.ok(old.clone()).await;
    let mixed = cloud
        .ok(many(CreateMode::AllOrNothing, vec![old, small("new")]))
        .await;
    assert!(
        mixed
            .results
            .iter()
            .all(|result| matches!(result.outcome, Reply::Ok(_)))
    );
    assert_eq!(listed(&cloud).await.len(), 12);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_asked_for_twice_in_one_request_is_created_once() {
    let cloud = Cloud::start().await;
    let host = Host::join(&cloud, "hv1").await;
    let mut other = small("twin");
    let twin = small("twin");
    // Two instances with one name.
    let all = vec![twin.clone(), other.clone()];
    cloud
        .refused(
            many(CreateMode::AllOrNothing, all.clone()),
            Conflict,
            "already has an instance named twin",
        )
        .await;
    left_nothing(&cloud, &host, &[twin.id, other.id]).await;
    // Two contents of one id.
    other.id = twin.id;
    other.flavor.memory_mb = berth_common::units::MemoryMb::new(65).unwrap();
    cloud
        .refused(
            many(CreateMode::AllOrNothing, vec![twin.clone(), other]),
            Conflict,
            "was asked for with another content",
        )
        .await;
    left_nothing(&cloud, &host, &[twin.id]).await;
    // The same twice.
    let reply = cloud
        .ok(many(
            CreateMode::AllOrNothing,
            vec![twin.clone(), twin.clone()],
        ))
        .await;
    assert_eq!(reply.results[0], reply.results[1]);
    assert!(matches!(&reply.results[0].outcome, Reply::Ok(view) if view.host.is_some()));
    assert_eq!(cloud.show_host("hv1").await.instances, 1);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_refused_and_is_asked_for_twice_again_is_shown_alike_both_times() {
    let cloud = Cloud::start().await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let late = instance("late", 64, json!([{ "network": "blue" }]));
    cloud
        .refused(
            late.clone(),
            NoValidHost,
            "no host has ever sent a heartbeat",
        )
        .await;
    let _host = Host::join(&cloud, "hv1").await;
    let reply = cloud
        .ok(many(
            CreateMode::BestEffort,
            vec![late.clone(), late.clone()],
        ))
        .await;
    assert_eq!(reply.results[0], reply.results[1]);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_for_one_to_256_instances() {
    let cloud = Cloud::start().await;
    let _host = Host::join_with(&cloud, "hv1", |host| {
        host.total = resources(64, 65536, 1000)
    })
    .await;
    for mode in [CreateMode::AllOrNothing, CreateMode::BestEffort] {
        cloud
            .refused(
                many(mode, Vec::new()),
                Invalid,
                "instances must be 1 to 256; got 0",
            )
            .await;
        cloud
            .refused(
                many(mode, several("vm", 257, &json!({}))),
                Invalid,
                "instances must be 1 to 256; got 257",
            )
            .await;
    }
    cloud
        .ok(many(
            CreateMode::AllOrNothing,
            several("vm", 256, &json!({})),
        ))
        .await;
    assert_eq!(cloud.show_host("hv1").await.instances, 256);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_group_that_come_in_one_request_know_of_one_another() {
    let cloud = Cloud::start().await;
    let hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3"]).await;
    cloud.ok(server_group("apart", "anti_affinity")).await;
    cloud.ok(server_group("pack", "affinity")).await;
    let apart = json!({ "server_group": "apart" });
    let four = several("four", 4, &apart);
    let ids: Vec<_> = four.iter().map(|request| request.id).collect();
    cloud
        .refused(
            many(CreateMode::AllOrNothing, four),
            NoValidHost,
            "server_group removed 3",
        )
        .await;
    for host in hosts.values() {
        left_nothing(&cloud, host, &ids).await;
    }
    cloud
        .ok(many(CreateMode::AllOrNothing, several("three", 3, &apart)))
        .await;
    let pack = json!({ "server_group": "pack" });
    cloud
        .ok(many(CreateMode::AllOrNothing, several("pack", 5, &pack)))
        .await;
    let mut on = std::collections::BTreeMap::new();
    for view in listed(&cloud).await {
        *on.entry(view.host.unwrap()).or_insert(0) += 1;
    }
    let mut on: Vec<_> = on.into_values().collect();
    on.sort_unstable();
    assert_eq!(on, [1, 1, 6]);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_may_name_another_in_its_hints() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let first = small("first");
    let all = vec![
        first.clone(),
        hinted("beside", json!({ "same_host": [first.id] })),
        hinted("apart", json!({ "different_host": [first.id] })),
        hinted("beside-too", json!({ "same_host": [first.id] })),
    ];
    let ids: Vec<_> = all.iter().map(|request| request.id).collect();
    cloud.ok(many(CreateMode::AllOrNothing, all)).await;
    let mut on = Vec::new();
    for id in ids {
        on.push(cloud.host_of(id).await);
    }
    assert!(on[0] == on[1] && on[0] == on[3] && on[0] != on[2], "{on:?}");
    assert_sound(&cloud).await;
}

/// Three hosts of which a message holds one, or two at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_no_message_holds_comes_in_pages() {
    let cloud = Cloud::start().await;
    for name in ["hv1", "hv2", "hv3"] {
        Host::join_with(&cloud, name, |host| {
            host.foreign_domains = (0..4000_u32)
                .map(|n| ForeignDomain {
                    uuid: uuid::Uuid::from_u128(u128::from(n)),
                    name: format!("{n:0100}"),
                    power_state: Default::default(),
                    vcpus: Vcpus::ZERO,
                    memory_mb: MemoryMb::ZERO,
                })
                .collect();
        })
        .await;
    }
    cloud
        .refused(HostList::default(), TooLarge, "ask for less at once")
        .await;
    let (mut names, mut pages) = (Vec::new(), 0);
    loop {
        let after = names.last().cloned();
        let page = cloud
            .ok(HostList {
                after,
                limit: Some(10),
            })
            .await;
        assert!(!page.hosts.is_empty());
        pages += 1;
        names.extend(page.hosts.into_iter().map(|host| host.name));
        if !page.more {
            break;
        }
    }
    assert!(pages > 1);
    let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
    assert_eq!(names, ["hv1", "hv2", "hv3"]);
}
