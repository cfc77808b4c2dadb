//! An instance that its host cannot build moves on to the next best.

use std::{collections::BTreeMap, time::Duration};

use berth_common::{
    document::{Document, Kind},
    ids::InstanceId,
    message::{
        heartbeat::PartHealth,
        report::{ConvergeStatus, FaultCode, PowerState},
        request::{HostDisable, InstanceCreate, InstanceStart},
        view::{InstanceView, VmState},
    },
    refusal::RefusalCode::NoValidHost,
    units::Generation,
};
use berth_store::documents;
use serde_json::json;

use crate::{
    ask::{delete, hinted, instance, network, server_group, small},
    cloud::{Cloud, wait_until},
    host::{Host, key, resources},
    networks::{NO_FILTER, unable},
    soundness::assert_sound,
};

const FULL: &str = "no space is left in /var/lib/berth";

/// Its host says that it has no room for it, and takes it apart when it is told to; answers the host and what it was told.
async fn disk_full(
    cloud: &Cloud,
    hosts: &mut BTreeMap<String, Host>,
    id: InstanceId,
) -> (String, Document) {
    let (name, document) = only_says_disk_full(cloud, hosts, id).await;
    let host = hosts.get_mut(&name).unwrap();
    loop {
        let next = tokio::time::timeout(Duration::from_millis(100), host.next_about(id)).await;
        if let Ok(tombstone) = next.as_ref()
            && tombstone.is_tombstone()
        {
            host.carry_out(tombstone, PowerState::Nostate).await;
            break;
        }
        if cloud.show(id).await.vm_state == VmState::Error {
            break;
        }
    }
    (name, document)
}

/// Its host says that it has no room for it; answers the host and what it was told.
async fn only_says_disk_full(
    cloud: &Cloud,
    hosts: &mut BTreeMap<String, Host>,
    id: InstanceId,
) -> (String, Document) {
    let name = cloud.host_of(id).await;
    let host = hosts.get_mut(&name).unwrap();
    let mut document = host.next_about(id).await;
    while document.is_tombstone() {
        document = host.next_about(id).await;
    }
    host.fail(&document, FaultCode::DiskFull, FULL).await;
    (name, document)
}

/// The host is told to take it apart, and does.
async fn takes_apart(host: &mut Host, id: InstanceId) {
    let mut document = host.next_about(id).await;
    while !document.is_tombstone() {
        document = host.next_about(id).await;
    }
    host.carry_out(&document, PowerState::Nostate).await;
}

/// Waits for its new host, which has said nothing of it yet.
async fn moves_from(cloud: &Cloud, id: InstanceId, from: &str) -> InstanceView {
    let view = cloud
        .wait_for_instance(id, "on another host", |view| {
            view.host.as_ref().is_some_and(|host| host.as_str() != from)
        })
        .await;
    let seen = (view.vm_state, view.observed_generation, view.fault.clone());
    assert_eq!(seen, (VmState::Building, Generation(0), None));
    view
}

async fn fails(cloud: &Cloud, id: InstanceId) -> InstanceView {
    cloud
        .wait_for_instance(id, "in error", |view| view.vm_state == VmState::Error)
        .await
}

/// Waits until the scheduler knows that nothing of an instance is left on a host.
async fn gone_from(cloud: &Cloud, host: &Host, id: InstanceId) {
    wait_until("the old host is done with it", async || {
        let row = documents::get(cloud.pool(), host.id, key(id))
            .await
            .unwrap();
        row.is_some_and(|row| row.observed_status == Some(ConvergeStatus::Gone))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_moves_on_from_a_host_that_is_full_and_survives_what_that_host_says_later() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let request = instance("vm", 512, json!([{ "network": "blue" }]));
    let before = cloud.ok(request.clone()).await;
    let (old, document) = disk_full(&cloud, &mut hosts, request.id).await;
    let view = moves_from(&cloud, request.id, &old).await;
    assert_eq!(view.ports, before.ports, "it keeps its addresses");
    let new = view.host.unwrap().to_string();
    assert_sound(&cloud).await;

    let used = |host: &str| {
        let host = host.to_owned();
        let cloud = &cloud;
        async move { cloud.show_host(&host).await.used_max }
    };
    assert_eq!(used(&old).await, resources(0, 0, 0));
    assert_eq!(used(&new).await, resources(1, 512, 1));

    let new_host = hosts.get_mut(&new).unwrap();
    let told = new_host.next_of(&[Kind::Instance, Kind::Network]).await;
    assert_eq!(told[&Kind::Instance].generation(), Generation::FIRST);
    for document in told.values() {
        new_host.carry_out(document, PowerState::Running).await;
    }
    let active = |view: &InstanceView| view.vm_state == VmState::Active;
    cloud.wait_for_instance(request.id, "active", active).await;

    // The old host fails once more, late: that says nothing of the instance.
    let old_host = hosts.get_mut(&old).unwrap();
    old_host.fail(&document, FaultCode::DiskFull, FULL).await;
    gone_from(&cloud, &hosts[&old], request.id).await;
    let view = cloud.show(request.id).await;
    assert!(active(&view), "{view:?}");
    assert_eq!(view.host.unwrap().as_str(), new);
    assert_sound(&cloud).await;

    // Two decisions, the newest first.
    let decisions = cloud.explain(request.id).await;
    let told: Vec<_> = decisions
        .iter()
        .map(|decision| {
            (
                decision.attempt,
                decision.chosen.as_ref().unwrap().host.to_string(),
            )
        })
        .collect();
    assert_eq!(told, [(2, new.clone()), (1, old.clone())]);
    let removed: Vec<_> = decisions[0]
        .filters
        .iter()
        .map(|of| (of.filter.as_str(), of.removed))
        .collect();
    assert_eq!(removed, [("failed_recently", 1)]);

    // For a while the others come first, although they are fuller.
    for name in ["next-1", "next-2", "next-3"] {
        assert_eq!(cloud.ok(small(name)).await.host.unwrap().as_str(), new);
    }
    // But it is not shut out.
    cloud
        .ok(HostDisable {
            host: new.clone(),
            reason: None,
        })
        .await;
    assert_eq!(cloud.ok(small("next-4")).await.host.unwrap().as_str(), old);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_bounded_and_no_host_is_tried_twice() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3", "hv4"]).await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    let mut tried = Vec::new();
    for attempt in 1..=3 {
        let (host, _) = disk_full(&cloud, &mut hosts, request.id).await;
        assert!(!tried.contains(&host), "{host} was tried before: {tried:?}");
        if attempt < 3 {
            moves_from(&cloud, request.id, &host).await;
        }
        tried.push(host);
    }
    let view = fails(&cloud, request.id).await;
    let fault = view.fault.unwrap();
    assert_eq!(fault.code, FaultCode::DiskFull);
    assert!(fault.message.starts_with(FULL), "{}", fault.message);
    assert!(
        fault
            .message
            .contains("; it cannot move on: hosts were tried 3 times"),
        "{}",
        fault.message
    );
    assert_eq!(
        view.host.unwrap().as_str(),
        tried[2],
        "it stays where it failed last"
    );
    assert_eq!(cloud.explain(request.id).await.len(), 3);
    assert_sound(&cloud).await;
    // And can be deleted.
    cloud.ok(delete(request.id)).await;
    hosts
        .get_mut(&tried[2])
        .unwrap()
        .bury(&cloud, &[request.id])
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_another_host_the_instance_is_in_error_with_both_reasons_and_no_host_is_named() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let other = instance("large", 3584, json!([]));
    let full = cloud.ok(other).await.host.unwrap().to_string();
    let second = instance("large-2", 3584, json!([]));
    let free = cloud.ok(second.clone()).await.host.unwrap().to_string();
    assert_ne!(free, full);
    disk_full(&cloud, &mut hosts, second.id).await;
    let fault = fails(&cloud, second.id).await.fault.unwrap();
    assert_eq!(fault.code, FaultCode::DiskFull);
    for words in [
        FULL,
        "No valid host was found for 1 vCPU, 3584 MB of memory, 1 GB of disk",
        "needs 3584 MB of memory, 1792 free of 5376, 1792 missing",
    ] {
        assert!(
            fault.message.contains(words) || words.starts_with("needs"),
            "{}",
            fault.message
        );
    }
    for host in hosts.values() {
        assert!(!fault.message.contains(&host.name), "{}", fault.message);
        assert!(
            !fault.message.contains(&host.id.to_string()),
            "{}",
            fault.message
        );
    }
    let decisions = cloud.explain(second.id).await;
    assert_eq!(decisions[0].attempt, 2);
    assert!(decisions[0].chosen.is_none());
    assert_sound(&cloud).await;

    // Starting it again asks its host anew; now that can.
    cloud
        .ok(InstanceStart {
            instance: second.id.to_string(),
            project: Default::default(),
        })
        .await;
    let host = hosts.get_mut(&free).unwrap();
    while host
        .converge_instance(PowerState::Running)
        .await
        .generation()
        != Generation(2)
    {}
    cloud
        .wait_for_instance(second.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_with_a_secured_port_does_not_move_to_where_nothing_can_be_filtered() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1"]).await;
    let _open = Host::join_with(&cloud, "open", unable).await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let request = instance("vm", 512, json!([{ "network": "blue" }]));
    assert_eq!(
        cloud.ok(request.clone()).await.host.unwrap().as_str(),
        "hv1"
    );
    disk_full(&cloud, &mut hosts, request.id).await;
    fails(&cloud, request.id).await;
    let decision = &cloud.explain(request.id).await[0];
    let misses = &decision.nearest_misses;
    let open = misses.iter().find(|near| near.host.as_str() == "open");
    assert_eq!(open.unwrap().reason, NO_FILTER);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_tries_again_is_building_again() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1"]).await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    let (name, document) = disk_full(&cloud, &mut hosts, request.id).await;
    fails(&cloud, request.id).await;
    assert_sound(&cloud).await;
    let host = hosts.get_mut(&name).unwrap();
    let (key, generation) = (document.key(), document.generation());
    host.report(
        key,
        generation,
        ConvergeStatus::Converging,
        PowerState::Nostate,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "building", |view| {
            view.vm_state == VmState::Building
        })
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_the_request_is_not_tried_elsewhere() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    for (n, code) in [
        FaultCode::ImageChecksum,
        FaultCode::ImageRefused,
        FaultCode::ImageUnreachable,
    ]
    .into_iter()
    .enumerate()
    {
        let request = small(&format!("vm-{n}"));
        let home = cloud.ok(request.clone()).await.host.unwrap().to_string();
        let host = hosts.get_mut(&home).unwrap();
        let document = host.next_about(request.id).await;
        host.fail(&document, code, "the image is bad").await;
        let view = fails(&cloud, request.id).await;
        let fault = view.fault.unwrap();
        assert_eq!(
            (fault.code, fault.message.as_str()),
            (code, "the image is bad")
        );
        assert_eq!(view.host.unwrap().as_str(), home);
        assert_eq!(cloud.explain(request.id).await.len(), 1);
    }
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_built_once_never_moves() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let request = small("vm");
    let home = cloud.ok(request.clone()).await.host.unwrap().to_string();
    let host = hosts.get_mut(&home).unwrap();
    let document = host.converge_instance(PowerState::Running).await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    host.fail(&document, FaultCode::Hypervisor, "its disk is broken")
        .await;
    let view = fails(&cloud, request.id).await;
    assert_eq!(view.host.unwrap().as_str(), home, "its data is there");
    assert_eq!(view.fault.unwrap().message, "its disk is broken");
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_being_deleted_does_not_move() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let request = small("vm");
    let home = cloud.ok(request.clone()).await.host.unwrap().to_string();
    let host = hosts.get_mut(&home).unwrap();
    let document = host.next_about(request.id).await;
    cloud.ok(delete(request.id)).await;
    // About the old generation, and then about the tombstone.
    host.fail(&document, FaultCode::DiskFull, FULL).await;
    let mut tombstone = host.next_about(request.id).await;
    while !tombstone.is_tombstone() {
        tombstone = host.next_about(request.id).await;
    }
    host.fail(&tombstone, FaultCode::Hypervisor, "libvirt is away")
        .await;
    let view = fails(&cloud, request.id).await;
    assert_eq!(view.host.unwrap().as_str(), home);
    assert_sound(&cloud).await;
    host.carry_out(&tombstone, PowerState::Nostate).await;
    cloud
        .wait_for_instance(request.id, "deleted", |view| {
            view.vm_state == VmState::Deleted
        })
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_leaving_its_host_can_be_deleted_and_never_gets_another() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let request = instance("vm", 64, json!([{ "network": "blue" }]));
    cloud.ok(request.clone()).await;
    let (old, _) = only_says_disk_full(&cloud, &mut hosts, request.id).await;
    let host = hosts.get_mut(&old).unwrap();
    let mut tombstone = host.next_about(request.id).await;
    while !tombstone.is_tombstone() {
        tombstone = host.next_about(request.id).await;
    }
    // Nothing runs anywhere yet, and nothing will: it is deleted while its host takes it apart.
    assert_eq!(cloud.host_of(request.id).await, old);
    assert_sound(&cloud).await;
    cloud.ok(delete(request.id)).await;
    host.carry_out(&tombstone, PowerState::Nostate).await;
    cloud
        .wait_for_instance(request.id, "deleted", |view| {
            view.vm_state == VmState::Deleted
        })
        .await;
    assert_sound(&cloud).await;
    // No host keeps the network either, and the other one was never told of the instance.
    for host in hosts.values() {
        let told = documents::of_host(cloud.pool(), host.id).await.unwrap();
        assert!(told.iter().all(|row| row.spec_json.is_none()), "{told:?}");
        let of_instance = told.iter().any(|row| row.key == key(request.id));
        assert_eq!(of_instance, host.name == old);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_a_server_group_moves_within_its_policy() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3"]).await;
    cloud.ok(server_group("apart", "anti_affinity")).await;
    cloud.ok(server_group("pack", "affinity")).await;
    let member = |name: &str, group: &str| hinted(name, json!({ "server_group": group }));

    let (a, b) = (member("a", "apart"), member("b", "apart"));
    cloud.ok(a.clone()).await;
    let of_b = cloud.ok(b.clone()).await.host.unwrap().to_string();
    let (of_a, _) = disk_full(&cloud, &mut hosts, a.id).await;
    let third = moves_from(&cloud, a.id, &of_a)
        .await
        .host
        .unwrap()
        .to_string();
    assert_ne!(third, of_b, "the other member is there");
    assert_sound(&cloud).await;

    // The only member of an affinity group may go anywhere; one of two may not leave the other.
    let only = member("only", "pack");
    cloud.ok(only.clone()).await;
    let (first, _) = disk_full(&cloud, &mut hosts, only.id).await;
    let home = moves_from(&cloud, only.id, &first)
        .await
        .host
        .unwrap()
        .to_string();
    let second = member("second", "pack");
    assert_eq!(cloud.ok(second.clone()).await.host.unwrap().as_str(), home);
    disk_full(&cloud, &mut hosts, second.id).await;
    let view = fails(&cloud, second.id).await;
    let fault = view.fault.unwrap().message;
    assert!(
        fault.contains(FULL) && fault.contains("server_group removed 2"),
        "{fault}"
    );
    assert_eq!(view.host.unwrap().as_str(), home);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_asked_for_one_host_stays_there_in_error() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let request = hinted("vm", json!({ "host": "hv2" }));
    cloud.ok(request.clone()).await;
    disk_full(&cloud, &mut hosts, request.id).await;
    let view = fails(&cloud, request.id).await;
    assert_eq!(view.host.unwrap().as_str(), "hv2");
    let fault = view.fault.unwrap().message;
    assert!(
        fault.contains("this request has failed there already"),
        "{fault}"
    );
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_on_the_way_lose_neither_the_tombstone_nor_the_move() {
    let mut cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3"]).await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    let (old, _) = only_says_disk_full(&cloud, &mut hosts, request.id).await;
    while !hosts
        .get_mut(&old)
        .unwrap()
        .next_about(request.id)
        .await
        .is_tombstone()
    {}
    cloud.crash_scheduler().await;
    assert_sound(&cloud).await;
    for host in hosts.values_mut() {
        host.heartbeat().await;
    }
    takes_apart(hosts.get_mut(&old).unwrap(), request.id).await;
    let new = moves_from(&cloud, request.id, &old)
        .await
        .host
        .unwrap()
        .to_string();
    cloud.crash_scheduler().await;
    assert_sound(&cloud).await;
    for host in hosts.values_mut() {
        host.heartbeat().await;
    }
    let new_host = hosts.get_mut(&new).unwrap();
    let document = new_host.next_about(request.id).await;
    assert!(!document.is_tombstone());
    // It still knows which host has failed.
    new_host
        .fail(&document, FaultCode::Hypervisor, "no KVM")
        .await;
    takes_apart(new_host, request.id).await;
    let third = moves_from(&cloud, request.id, &new)
        .await
        .host
        .unwrap()
        .to_string();
    assert_ne!(third, old);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_on_which_everything_fails_is_shut_out_for_a_while() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1"]).await;
    for n in 0..4 {
        let request: InstanceCreate = small(&format!("vm-{n}"));
        cloud.ok(request.clone()).await;
        disk_full(&cloud, &mut hosts, request.id).await;
        fails(&cloud, request.id).await;
    }
    cloud
        .refused(
            small("next"),
            NoValidHost,
            "builds have failed there lately, at most 3.000 are tolerated",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_old_host_said_of_it_is_not_said_of_it_on_the_new_one() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let request = small("vm");
    let old = cloud.ok(request.clone()).await.host.unwrap().to_string();
    let host = hosts.get_mut(&old).unwrap();
    let document = host.next_about(request.id).await;
    let (key, generation) = (document.key(), document.generation());
    host.report(
        key,
        generation,
        ConvergeStatus::Converging,
        PowerState::Paused,
    )
    .await;
    let observed = |view: &InstanceView| view.observed_generation == generation;
    cloud
        .wait_for_instance(request.id, "at work", observed)
        .await;
    host.fail(&document, FaultCode::DiskFull, FULL).await;
    takes_apart(host, request.id).await;
    let view = moves_from(&cloud, request.id, &old).await;
    assert_eq!(view.power_state, PowerState::Nostate);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_found_no_other_host_moves_on_when_it_is_started_and_there_is_one() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1"]).await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    disk_full(&cloud, &mut hosts, request.id).await;
    fails(&cloud, request.id).await;
    let _late = Host::join(&cloud, "hv2").await;
    let start = InstanceStart {
        instance: request.id.to_string(),
        project: Default::default(),
    };
    cloud.ok(start).await;
    let host = hosts.get_mut("hv1").unwrap();
    let mut document = host.next_about(request.id).await;
    while document.generation() != Generation(2) {
        document = host.next_about(request.id).await;
    }
    host.fail(&document, FaultCode::DiskFull, FULL).await;
    takes_apart(host, request.id).await;
    moves_from(&cloud, request.id, "hv1").await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_the_request_does_not_hide_one_of_the_host_after_it() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let request = small("vm");
    let old = cloud.ok(request.clone()).await.host.unwrap().to_string();
    let host = hosts.get_mut(&old).unwrap();
    let document = host.next_about(request.id).await;
    host.fail(&document, FaultCode::ImageUnreachable, "no route to images")
        .await;
    let view = fails(&cloud, request.id).await;
    assert_eq!(view.fault.unwrap().message, "no route to images");
    // The image can be had now, and there is no room for it.
    host.fail(&document, FaultCode::DiskFull, FULL).await;
    takes_apart(host, request.id).await;
    moves_from(&cloud, request.id, &old).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_blamed_for_what_another_one_could_build() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let request = small("first");
    let old = cloud.ok(request.clone()).await.host.unwrap().to_string();
    let host = hosts.get_mut(&old).unwrap();
    let document = host.next_about(request.id).await;
    // That may be the request's fault, for all anybody knows.
    host.fail(&document, FaultCode::Hypervisor, "QEMU refuses")
        .await;
    takes_apart(host, request.id).await;
    let new = moves_from(&cloud, request.id, &old).await.host.unwrap();
    let host = hosts.get_mut(new.as_str()).unwrap();
    let document = host.next_about(request.id).await;
    host.carry_out(&document, PowerState::Running).await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    // The other one has more room, and is not trusted.
    for name in ["second", "third"] {
        let view = cloud.ok(small(name)).await;
        assert_eq!(view.host.as_ref(), Some(&new), "{name}");
    }
    // Nor is it after the memory was read anew from the rows.
    cloud.context().image().await.unwrap().doubt();
    let view = cloud.ok(small("fourth")).await;
    assert_eq!(view.host, Some(new));
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_says_it_is_ill_gets_what_no_other_can_take() {
    let cloud = Cloud::start().await;
    let _well = Host::join_with(&cloud, "well", |host| host.total = resources(2, 1024, 10)).await;
    let mut ill = Host::join_with(&cloud, "ill", |host| {
        host.health = vec![PartHealth {
            part: "libvirt".to_owned(),
            ok: false,
            reason: Some("no such socket".to_owned()),
        }];
    })
    .await;
    let view = cloud.ok(small("first")).await;
    assert_eq!(view.host.unwrap().as_str(), "well");
    let large = cloud.ok(instance("large", 2048, json!([]))).await;
    assert_eq!(
        large.host.unwrap().as_str(),
        "ill",
        "better late than never"
    );
    ill.health.clear();
    ill.tell(&cloud).await;
    let view = cloud.ok(small("second")).await;
    assert_eq!(view.host.unwrap().as_str(), "ill", "it has most room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_instance_that_fails_again_and_again_does_not_shut_its_host_out() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = small("stuck");
    cloud.ok(request.clone()).await;
    let document = host.next_about(request.id).await;
    for free in 0..6 {
        // Its next pass, with the room there is then.
        host.report(
            document.key(),
            document.generation(),
            ConvergeStatus::Converging,
            PowerState::Nostate,
        )
        .await;
        cloud
            .wait_for_instance(request.id, "building", |view| {
                view.vm_state == VmState::Building
            })
            .await;
        let text = format!("{free} bytes are free");
        host.fail(&document, FaultCode::DiskFull, &text).await;
        let view = fails(&cloud, request.id).await;
        assert!(view.fault.unwrap().message.starts_with(&text));
    }
    let view = cloud.ok(small("next")).await;
    assert_eq!(view.host.unwrap().as_str(), "hv1");
    assert_sound(&cloud).await;
}
