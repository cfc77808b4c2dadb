//! Lives of instances: from a request to the documents, and to the end.

use berth_common::{
    bus::{Bus as _, Message, QueueDecl},
    document::{Document, DocumentKey, Kind},
    ids::Nonce,
    message::{
        report::{ConvergeStatus, PowerState},
        request::{
            HostDisable, HostShow, InstanceList, InstanceReboot, InstanceStart, InstanceStop,
            NetworkDelete, Reply,
        },
        view::{InstanceView, Resources, TaskState, VmState},
    },
    refusal::RefusalCode,
    units::{Generation, MemoryMb, Vcpus},
};
use berth_store::documents;
use serde_json::json;

use crate::{
    ask::{delete, instance, network},
    cloud::{Cloud, LIMIT, wait_until},
    host::{Host, key},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_lives_and_dies_by_its_documents() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.call(network("blue", "10.0.0.0/24")).await.unwrap();
    let request = instance(
        "web-1",
        512,
        json!([{ "network": "blue", "ip_address": "10.0.0.9" }, { "network": "blue" }]),
    );
    let view = cloud.call(request.clone()).await.unwrap();
    assert_eq!(
        (view.vm_state, view.task_state),
        (VmState::Building, Some(TaskState::Spawning))
    );
    assert_eq!(view.host.unwrap().as_str(), "hv1");
    let addresses: Vec<_> = view
        .ports
        .iter()
        .map(|port| port.fixed_ips[0].ip_address.to_string())
        .collect();
    assert_eq!(
        addresses,
        ["10.0.0.9", "10.0.0.1"],
        "the DHCP server has 10.0.0.2"
    );

    let documents = host.next_of(&[Kind::Network, Kind::Instance]).await;
    let Document::Network(network_document) = &documents[&Kind::Network] else {
        panic!()
    };
    assert_eq!(network_document.spec.as_ref().unwrap().ports.len(), 2);
    let Document::Instance(document) = &documents[&Kind::Instance] else {
        panic!()
    };
    assert_eq!(document.generation, Generation::FIRST);
    for document in documents.values() {
        host.report(
            document.key(),
            document.generation(),
            ConvergeStatus::Converged,
            PowerState::Running,
        )
        .await;
    }
    let view = cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    assert_eq!(view.task_state, None);

    // The same again is the same; with another content it is a conflict.
    assert_eq!(cloud.call(request.clone()).await.unwrap().id, request.id);
    let mut other = request.clone();
    other.flavor.memory_mb = MemoryMb::new(513).unwrap();
    assert_eq!(
        cloud.call(other).await.unwrap_err().code,
        RefusalCode::Conflict
    );
    // A network in use stays.
    let refusal = cloud
        .call(NetworkDelete {
            network: "blue".to_owned(),
            project: Default::default(),
        })
        .await
        .unwrap_err();
    assert!(refusal.message.contains("used by 2 ports"), "{refusal}");

    assert_eq!(
        cloud.call(delete(request.id)).await.unwrap().task_state,
        Some(TaskState::Deleting)
    );
    let tombstone = host.converge_instance(PowerState::Nostate).await;
    assert!(tombstone.is_tombstone());
    assert_eq!(tombstone.generation(), Generation(2));
    cloud
        .wait_for_instance(request.id, "deleted", |view| {
            view.vm_state == VmState::Deleted
        })
        .await;
    let network_tombstone = host.next_of(&[Kind::Network]).await;
    assert!(
        network_tombstone[&Kind::Network].is_tombstone(),
        "the last instance takes its network with it"
    );
    let shown = cloud
        .call(HostShow {
            host: "hv1".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(
        shown.used_max,
        Resources::default(),
        "the claim is gone with its owner"
    );
    cloud
        .call(NetworkDelete {
            network: "blue".to_owned(),
            project: Default::default(),
        })
        .await
        .unwrap();
    // Deleting it again by id is harmless, and its name is free.
    assert_eq!(
        cloud.call(delete(request.id)).await.unwrap().vm_state,
        VmState::Deleted
    );
    assert!(cloud.call(instance("web-1", 512, json!([]))).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_fits_nowhere_is_kept_in_error_with_the_numbers() {
    let cloud = Cloud::start().await;
    let request = instance("web-1", 512, json!([]));
    let refusal = cloud.call(request.clone()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NoValidHost);
    assert!(
        refusal
            .message
            .ends_with("no host has ever sent a heartbeat"),
        "{refusal}"
    );

    let _host = Host::join(&cloud, "hv1").await;
    let large = instance("web-2", 5000, json!([]));
    let refusal = cloud.call(large.clone()).await.unwrap_err();
    assert!(
        refusal
            .message
            .contains("needs 5000 MB of memory, the whole host has 3584"),
        "{refusal}"
    );
    let view = cloud.show(large.id).await;
    assert_eq!(view.vm_state, VmState::Error);
    assert_eq!(
        view.fault.unwrap().message,
        refusal.message,
        "the reply and the instance say the same"
    );
    assert_eq!(
        cloud.call(large.clone()).await.unwrap_err(),
        refusal,
        "and so does a repeated request"
    );
    assert_eq!(
        cloud.call(delete(large.id)).await.unwrap().vm_state,
        VmState::Deleted
    );

    cloud
        .call(HostDisable {
            host: "hv1".to_owned(),
            reason: Some("repair".to_owned()),
        })
        .await
        .unwrap();
    let refusal = cloud
        .call(instance("web-3", 512, json!([])))
        .await
        .unwrap_err();
    assert!(
        refusal
            .message
            .contains("enabled removed 1; nearest miss: it is disabled"),
        "{refusal}"
    );
    let refusal = cloud
        .call(HostShow {
            host: "hv9".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_fill_a_host_exactly() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    // (4096 − 512) × 1.5 = 5376 MB = 21 × 256 MB; 4 × 4.0 = 16 vCPU: the CPUs are the limit.
    let requests: Vec<_> = (0..24)
        .map(|n| instance(&format!("vm-{n}"), 256, json!([])))
        .collect();
    let answers =
        futures::future::join_all(requests.into_iter().map(|request| cloud.call(request))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 16);
    for refusal in answers.into_iter().filter_map(Result::err) {
        assert!(
            refusal
                .message
                .contains("needs 1 vCPU, 0 free of 16, 1 missing"),
            "{refusal}"
        );
    }
    let shown = cloud
        .call(HostShow {
            host: "hv1".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(shown.used_max.vcpus, shown.capacity.vcpus);
    assert_eq!(shown.instances, 16);
    let listed = cloud
        .call(InstanceList {
            project: None,
            after: None,
            limit: 10,
        })
        .await
        .unwrap();
    assert_eq!((listed.instances.len(), listed.more), (10, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_published_until_they_are_confirmed_whatever_happens_to_the_scheduler_and_the_broker()
 {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 512, json!([]));
    cloud.call(request.clone()).await.unwrap();
    let first = host.next().await;
    let again = host.next().await;
    assert_eq!(again, first, "what is not confirmed comes again");
    cloud.crash_scheduler().await;
    host.heartbeat().await;
    assert_eq!(host.next().await, first);
    cloud.broker.delete_vhost();
    cloud.broker.create_vhost();
    assert_eq!(host.next().await, first);
    host.report(
        first.key(),
        first.generation(),
        ConvergeStatus::Converged,
        PowerState::Running,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;

    // An agent that starts anew is told everything again.
    host.session += 1;
    host.heartbeat().await;
    assert_eq!(host.next().await, first);
    // A host that is ahead (the database was set back) makes the scheduler go above it.
    host.report(
        first.key(),
        Generation(40),
        ConvergeStatus::Gone,
        PowerState::Nostate,
    )
    .await;
    loop {
        let document = host.next().await;
        if document.generation() == Generation(41) {
            assert_eq!(document.with_generation(first.generation()), first);
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_and_reboot_are_wishes_that_are_carried_out_once() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 512, json!([]));
    cloud.call(request.clone()).await.unwrap();
    host.converge_instance(PowerState::Running).await;
    let settled = |view: &InstanceView| view.task_state.is_none();
    cloud.wait_for_instance(request.id, "active", settled).await;
    let by_name = || "web-1".to_owned();

    let reboot = InstanceReboot {
        instance: by_name(),
        project: Default::default(),
        kind: Default::default(),
        nonce: Nonce::new(),
    };
    let view = cloud.call(reboot.clone()).await.unwrap();
    assert_eq!(
        (view.task_state, view.generation),
        (Some(TaskState::Rebooting), Generation(2))
    );
    assert_eq!(
        cloud.call(reboot.clone()).await.unwrap().generation,
        Generation(2),
        "the same nonce is one reboot"
    );

    let stop = InstanceStop {
        instance: by_name(),
        project: Default::default(),
    };
    assert_eq!(
        cloud.call(stop).await.unwrap().task_state,
        Some(TaskState::PoweringOff)
    );
    while host
        .converge_instance(PowerState::Shutdown)
        .await
        .generation()
        != Generation(3)
    {}
    cloud
        .wait_for_instance(request.id, "stopped", |view| {
            view.vm_state == VmState::Stopped && settled(view)
        })
        .await;
    let refusal = cloud
        .call(InstanceReboot {
            nonce: Nonce::new(),
            ..reboot
        })
        .await
        .unwrap_err();
    assert!(
        refusal.message.contains("is stopped; start it instead"),
        "{refusal}"
    );

    let start = InstanceStart {
        instance: by_name(),
        project: Default::default(),
    };
    cloud.call(start.clone()).await.unwrap();
    while host
        .converge_instance(PowerState::Running)
        .await
        .generation()
        != Generation(4)
    {}
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active && settled(view)
        })
        .await;
    // Its guest powers itself off: it is stopped, and stays so until somebody starts it.
    let key = DocumentKey {
        kind: Kind::Instance,
        id: request.id.as_uuid(),
    };
    host.report(
        key,
        Generation(4),
        ConvergeStatus::Converged,
        PowerState::Shutdown,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "stopped", |view| {
            view.vm_state == VmState::Stopped && settled(view)
        })
        .await;
    assert_eq!(cloud.call(start).await.unwrap().generation, Generation(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_in_words_and_change_nothing() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    cloud.call(network("blue", "10.0.0.0/29")).await.unwrap();
    let taken = json!([{ "network": "blue", "ip_address": "10.0.0.4", "mac_address": "52:54:00:00:00:01" }]);
    cloud.call(instance("first", 64, taken)).await.unwrap();
    let check = async |networks: serde_json::Value, code: RefusalCode, words: &str| {
        let refusal = cloud
            .call(instance("second", 64, networks))
            .await
            .unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    };
    check(
        json!([{ "network": "red" }]),
        RefusalCode::NotFound,
        "has no network \"red\"",
    )
    .await;
    check(
        json!([{ "network": "blue", "ip_address": "10.0.0.4" }]),
        RefusalCode::Conflict,
        "10.0.0.4 is already used",
    )
    .await;
    check(
        json!([{ "network": "blue", "mac_address": "52:54:00:00:00:01" }]),
        RefusalCode::Conflict,
        "52:54:00:00:00:01 is already used",
    )
    .await;
    check(
        json!([{ "network": "blue", "ip_address": "10.9.0.4" }]),
        RefusalCode::Invalid,
        "is not an address for a port",
    )
    .await;
    check(
        json!(vec![json!({ "network": "blue" }); 9]),
        RefusalCode::Invalid,
        "networks must be at most 8",
    )
    .await;
    let refusal = cloud
        .call(instance("first", 64, json!([])))
        .await
        .unwrap_err();
    assert!(
        refusal
            .message
            .contains("already has an instance named first"),
        "{refusal}"
    );
    let refusal = cloud
        .call(network("blue", "10.1.0.0/24"))
        .await
        .unwrap_err();
    assert!(
        refusal.message.contains("already has a network named blue"),
        "{refusal}"
    );
    let mut nothing = instance("second", 64, json!([]));
    nothing.flavor.vcpus = Vcpus::ZERO;
    nothing.stop_timeout_seconds = 0;
    let refusal = cloud.call(nothing).await.unwrap_err();
    assert!(
        refusal
            .message
            .contains("flavor.vcpus must be at least 1; stop_timeout_seconds must be"),
        "{refusal}"
    );

    let raw = |method: &str, version: u32, body: &str| {
        Message::from_json(method, version, "test", body.as_bytes().to_vec())
    };
    for (message, code, words) in [
        (
            raw("instance.create", 1, "{\"id\":"),
            RefusalCode::Malformed,
            "JSON",
        ),
        (
            raw("instance.create", 1, "{}"),
            RefusalCode::Malformed,
            "missing field `id`",
        ),
        (
            raw("instance.create", 9, "{}"),
            RefusalCode::UnsupportedVersion,
            "must be 1",
        ),
        (
            raw("instance.explode", 1, "{}"),
            RefusalCode::UnknownMethod,
            "instance.explode",
        ),
    ] {
        let answer = cloud.rpc.call_message(message, LIMIT).await.unwrap();
        let refusal =
            Result::from(answer.decode::<Reply<serde_json::Value>>().unwrap()).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    }
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
    let listed = cloud
        .call(InstanceList {
            project: None,
            after: None,
            limit: 100,
        })
        .await
        .unwrap();
    assert_eq!(listed.instances.len(), 1, "nothing half-made is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_that_is_repeated_is_placed_once_there_is_room() {
    let cloud = Cloud::start().await;
    cloud.call(network("blue", "10.0.0.0/24")).await.unwrap();
    let request = instance("web-1", 512, json!([{ "network": "blue" }]));
    let refusal = cloud.call(request.clone()).await.unwrap_err();
    assert!(refusal.retryable, "{refusal}");
    let _host = Host::join(&cloud, "hv1").await;
    let view = cloud.call(request.clone()).await.unwrap();
    assert_eq!(view.vm_state, VmState::Building);
    assert_eq!((view.fault, view.ports.len()), (None, 1));
    assert_eq!(
        cloud.call(request).await.unwrap().host.unwrap().as_str(),
        "hv1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_is_one_reboot_of_one_instance() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let nonce = Nonce::new();
    for name in ["web-1", "web-2"] {
        cloud.call(instance(name, 64, json!([]))).await.unwrap();
        let reboot = InstanceReboot {
            instance: name.to_owned(),
            project: Default::default(),
            kind: Default::default(),
            nonce,
        };
        let view = cloud.call(reboot).await.unwrap();
        assert_eq!(view.generation, Generation(2), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_cannot_be_is_ignored() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 64, json!([]));
    cloud.call(request.clone()).await.unwrap();
    let first = host.next().await;
    let (key, absurd) = (first.key(), Generation(i64::MAX.unsigned_abs() - 1));
    host.report(key, absurd, ConvergeStatus::Converged, PowerState::Running)
        .await;
    host.report(
        key,
        first.generation(),
        ConvergeStatus::Converged,
        PowerState::Running,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    let deleted = cloud.call(delete(request.id)).await.unwrap();
    assert_eq!(deleted.generation, Generation(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_host_is_told_everything_under_its_new_name() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.call(instance("web-1", 64, json!([]))).await.unwrap();
    let first = host.next().await;
    host.name = "hv2".to_owned();
    host.queue = host
        .bus
        .consume(&QueueDecl::compute("hv2"), 16)
        .await
        .unwrap();
    host.heartbeat().await;
    assert_eq!(host.next().await, first);
    let shown = cloud
        .call(HostShow {
            host: "hv2".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(shown.id, host.id);
    let deadline = tokio::time::Instant::now() + LIMIT;
    while cloud
        .broker
        .queues()
        .iter()
        .any(|name| name == "compute.hv1")
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the queue of the old name is left"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_host_that_is_down_says_so_and_goes_on_when_it_is_back() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = cloud.call(instance("web-1", 512, json!([]))).await.unwrap();
    let built = cloud.call(instance("web-2", 512, json!([]))).await.unwrap();
    let running = (ConvergeStatus::Converged, PowerState::Running);
    host.report(key(built.id), Generation::FIRST, running.0, running.1)
        .await;
    cloud
        .wait_for_instance(built.id, "active", |view| view.vm_state == VmState::Active)
        .await;

    cloud.lose(&[host.id]).await;
    let view = cloud.show(request.id).await;
    assert_eq!((view.vm_state, view.task_state), (VmState::Error, None));
    let fault = view.fault.unwrap();
    assert!(
        fault.message.starts_with("its host is down, nothing was heard of it for ")
            && fault.message.ends_with(" s: building goes on when the host is back; delete the instance to have it elsewhere"),
        "{}",
        fault.message
    );
    // What ran may well run on: that is no error, but it is told.
    let view = cloud.show(built.id).await;
    assert_eq!((view.vm_state, view.fault), (VmState::Active, None));
    assert!(view.progress.unwrap().starts_with("its host is down"));

    cloud.ok(delete(request.id)).await;
    let view = cloud.show(request.id).await;
    assert_eq!(view.task_state, Some(TaskState::Deleting));
    assert!(view.progress.unwrap().starts_with("its host is down"));

    host.heartbeat().await;
    cloud
        .wait_for_instance(built.id, "as before", |view| view.progress.is_none())
        .await;
    assert_eq!(cloud.show(request.id).await.vm_state, VmState::Building);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_started_anew_says_the_same_again_and_nothing_lags() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 512, json!([]));
    cloud.ok(request.clone()).await;
    let lagging = async || documents::lag_count(cloud.pool()).await.unwrap();
    for _ in 0..2 {
        let document = host.next_about(request.id).await;
        host.carry_out(&document, PowerState::Running).await;
        wait_until("nothing lags", async || lagging().await == 0).await;
        let before = cloud.show(request.id).await;
        // It has its journal, and is told everything again, since nobody knows that.
        host.session += 1;
        host.sequence = 0;
        host.tell(&cloud).await;
        wait_until("it is told again", async || lagging().await == 1).await;
        let after = cloud.show(request.id).await;
        assert_eq!(after.updated_at, before.updated_at, "nothing of it changed");
    }
}
