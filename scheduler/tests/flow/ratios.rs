//! Overcommit, reserves, and what operators decide about hosts at run time.

use berth_common::{
    message::{
        request::{
            AggregateAddHost, AggregateDelete, AggregateRemoveHost, AggregateSet, Change,
            HostDelete, HostDisable, HostDrain, HostEnable, HostSet, HostShow, InstanceCreate,
        },
        view::{HostStatus, TaskState, VmState},
    },
    refusal::RefusalCode::{Conflict, NoValidHost, NotFound},
    units::{AllocationRatio, MemoryMb, Vcpus},
};
use serde_json::json;

use crate::{
    ask::{aggregate, delete, hinted, instance, network, several, small},
    cloud::{Cloud, wait_until},
    host::Host,
    soundness::assert_sound,
};

fn ratio(text: &str) -> Change<AllocationRatio> {
    Change::Set(text.parse().unwrap())
}

fn set(host: &str) -> HostSet {
    HostSet {
        host: host.to_owned(),
        ..HostSet::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ratio_is_the_hosts_own_else_the_lowest_of_its_aggregates_else_the_default() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    // Each time all three ways of knowing it must agree: shown, counted, and in a refusal.
    let check = async |cpu: &str, capacity: u64| {
        let shown = cloud.show_host("hv1").await;
        assert_eq!(shown.allocation_ratios.cpu, cpu.parse().unwrap());
        assert_eq!(shown.capacity.vcpus.get(), capacity);
        let like = hinted("probe", json!({ "host": "hv1" }));
        assert_eq!(cloud.ok(crate::ask::capacity(&like)).await.fits, capacity);
        assert_sound(&cloud).await;
    };
    check("4.0", 16).await;
    for (name, cpu) in [("slow", "2.5"), ("slower", "1.5")] {
        cloud
            .ok(aggregate(name, json!({ "cpu_allocation_ratio": cpu })))
            .await;
        cloud
            .ok(AggregateAddHost {
                aggregate: name.to_owned(),
                host: "hv1".to_owned(),
            })
            .await;
    }
    cloud.ok(aggregate("silent", json!({}))).await;
    cloud
        .ok(AggregateAddHost {
            aggregate: "silent".to_owned(),
            host: "hv1".to_owned(),
        })
        .await;
    check("1.5", 6).await;
    cloud
        .ok(HostSet {
            cpu_allocation_ratio: ratio("3"),
            ..set("hv1")
        })
        .await;
    check("3", 12).await;
    cloud
        .ok(HostSet {
            cpu_allocation_ratio: Change::Clear,
            ..set("hv1")
        })
        .await;
    check("1.5", 6).await;
    cloud
        .ok(AggregateSet {
            aggregate: "slower".to_owned(),
            cpu_allocation_ratio: ratio("2.75"),
            ..AggregateSet::default()
        })
        .await;
    check("2.5", 10).await;
    cloud
        .ok(AggregateRemoveHost {
            aggregate: "slow".to_owned(),
            host: "hv1".to_owned(),
        })
        .await;
    check("2.75", 11).await;
    cloud
        .ok(AggregateDelete {
            aggregate: "slower".to_owned(),
        })
        .await;
    check("4.0", 16).await;
    assert_eq!(cloud.show_host("hv2").await.capacity.vcpus.get(), 16);
    assert_eq!(
        cloud.show_host("hv1").await.allocation_ratios.ram,
        "1.5".parse().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_ratio_counts_from_the_next_decision_on_and_evicts_nobody() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let instances = several("vm", 10, &json!({}));
    for request in &instances {
        cloud.ok(request.clone()).await;
    }
    let shown = cloud
        .ok(HostSet {
            cpu_allocation_ratio: ratio("1"),
            ..set("hv1")
        })
        .await;
    assert_eq!(
        (shown.used_max.vcpus.get(), shown.capacity.vcpus.get()),
        (10, 4)
    );
    assert_eq!(shown.instances, 10, "nobody is evicted");
    let next = small("next");
    cloud
        .refused(
            next.clone(),
            NoValidHost,
            "needs 1 vCPU, 0 free of 4, 1 missing",
        )
        .await;
    for request in &instances {
        assert_eq!(cloud.show(request.id).await.vm_state, VmState::Building);
    }
    cloud
        .ok(HostSet {
            cpu_allocation_ratio: ratio("2.749"),
            ..set("hv1")
        })
        .await;
    cloud
        .refused(next.clone(), NoValidHost, "0 free of 10")
        .await;
    cloud
        .ok(HostSet {
            cpu_allocation_ratio: ratio("2.75"),
            ..set("hv1")
        })
        .await;
    cloud.ok(next).await;
    cloud
        .refused(small("beyond"), NoValidHost, "0 free of 11")
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_the_host_is_given_to_nobody() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let shown = cloud
        .ok(HostSet {
            reserved_host_cpus: Change::Set(Vcpus::new(1).unwrap()),
            reserved_host_memory_mb: Change::Set(MemoryMb::new(1096).unwrap()),
            ram_allocation_ratio: ratio("1"),
            ..set("hv1")
        })
        .await;
    assert_eq!(
        (shown.capacity.vcpus.get(), shown.capacity.memory_mb.get()),
        (12, 3000)
    );
    cloud
        .refused(
            instance("beyond", 3001, json!([])),
            NoValidHost,
            "the whole host has 3000",
        )
        .await;
    let exact = instance("exact", 3000, json!([]));
    cloud.ok(exact.clone()).await;
    cloud
        .refused(
            small("full"),
            NoValidHost,
            "needs 64 MB of memory, 0 free of 3000",
        )
        .await;
    // More is kept than there is: nothing is left, and nobody is evicted.
    let shown = cloud
        .ok(HostSet {
            reserved_host_memory_mb: Change::Set(MemoryMb::MAX),
            ..set("hv1")
        })
        .await;
    assert_eq!(
        (
            shown.capacity.memory_mb.get(),
            shown.used_max.memory_mb.get()
        ),
        (0, 3000)
    );
    cloud
        .refused(
            instance("one", 1, json!([])),
            NoValidHost,
            "the whole host has 0",
        )
        .await;
    let shown = cloud
        .ok(HostSet {
            reserved_host_memory_mb: Change::Clear,
            ..set("hv1")
        })
        .await;
    assert_eq!(
        (shown.reserved.memory_mb.get(), shown.reserved.vcpus.get()),
        (512, 1)
    );
    cloud.ok(instance("rest", 584, json!([]))).await;
    cloud
        .refused(
            instance("one-more", 1, json!([])),
            NoValidHost,
            "0 free of 3584",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_instance_is_never_larger_than_its_host_whatever_the_ratio() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    cloud
        .ok(HostSet {
            cpu_allocation_ratio: ratio("1000"),
            ram_allocation_ratio: ratio("1000"),
            disk_allocation_ratio: ratio("1000"),
            ..set("hv1")
        })
        .await;
    let sized = |vcpus: u64, memory_mb: u64, disk_gb: u64| InstanceCreate {
        flavor: serde_json::from_value(
            json!({ "vcpus": vcpus, "memory_mb": memory_mb, "disk_gb": disk_gb }),
        )
        .unwrap(),
        ..small("vm")
    };
    for (request, words) in [
        (sized(5, 64, 1), "needs 5 vCPU, the whole host has 4"),
        (
            sized(1, 3585, 1),
            "needs 3585 MB of memory, the whole host has 3584",
        ),
        (
            sized(1, 64, 101),
            "needs 101 GB of disk, the whole host has 100",
        ),
    ] {
        cloud.refused(request.clone(), NoValidHost, words).await;
        cloud.ok(delete(request.id)).await;
    }
    cloud.ok(sized(4, 3584, 100)).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_or_draining_host_gets_nothing_new_until_it_is_enabled() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let first = small("first");
    let home = cloud.ok(first.clone()).await.host.unwrap().to_string();
    let shown = cloud
        .ok(HostDrain {
            host: home.clone(),
            reason: Some("new disks".to_owned()),
        })
        .await;
    assert_eq!(
        (shown.status, shown.disabled_reason.as_deref()),
        (HostStatus::Draining, Some("new disks"))
    );
    for request in several("vm", 3, &json!({})) {
        assert_ne!(cloud.ok(request).await.host.unwrap().as_str(), home);
    }
    let here = |name: &str| hinted(name, json!({ "host": home }));
    cloud
        .refused(
            here("drained"),
            NoValidHost,
            "enabled removed 1; requested_host removed 1",
        )
        .await;
    cloud
        .ok(HostDisable {
            host: home.clone(),
            reason: None,
        })
        .await;
    cloud
        .refused(
            here("disabled"),
            NoValidHost,
            "enabled removed 1; requested_host removed 1",
        )
        .await;
    assert_eq!(cloud.host_of(first.id).await, home, "what it has stays");
    let shown = cloud.ok(HostEnable { host: home.clone() }).await;
    assert_eq!(
        (shown.status, shown.disabled_reason),
        (HostStatus::Enabled, None)
    );
    assert_eq!(cloud.ok(here("enabled")).await.host.unwrap().as_str(), home);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_decided_survives_heartbeats_and_a_crash() {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud
        .ok(HostSet {
            cpu_allocation_ratio: ratio("1.5"),
            ..set("hv1")
        })
        .await;
    cloud
        .ok(HostDisable {
            host: "hv1".to_owned(),
            reason: None,
        })
        .await;
    host.session += 1;
    host.tell(&cloud).await;
    cloud.crash_scheduler().await;
    cloud
        .refused(small("no"), NoValidHost, "it is disabled")
        .await;
    cloud
        .ok(HostEnable {
            host: "hv1".to_owned(),
        })
        .await;
    for request in several("vm", 6, &json!({})) {
        cloud.ok(request).await;
    }
    cloud
        .refused(small("beyond"), NoValidHost, "0 free of 6")
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_host_is_forgotten_with_what_was_being_deleted_there_and_nothing_else() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let _other = Host::join(&cloud, "hv2").await;
    cloud
        .ok(aggregate(
            "east",
            json!({ "availability_zone": "east", "cpu_allocation_ratio": "1" }),
        ))
        .await;
    cloud
        .ok(AggregateAddHost {
            aggregate: "east".to_owned(),
            host: "hv1".to_owned(),
        })
        .await;
    cloud.ok(network("blue", "10.0.0.0/24")).await;
    let here = |name: &str| InstanceCreate {
        hints: hinted(name, json!({ "host": "hv1" })).hints,
        ..instance(name, 64, json!([{ "network": "blue" }]))
    };
    let (going, wanted) = (here("going"), here("wanted"));
    cloud.ok(going.clone()).await;
    cloud.ok(wanted.clone()).await;
    let forget = || HostDelete {
        host: "hv1".to_owned(),
    };
    cloud
        .refused(forget(), Conflict, "host hv1 is up: stop its agent first")
        .await;
    cloud.lose(&[host.id]).await;
    cloud.ok(delete(going.id)).await;
    cloud
        .refused(
            forget(),
            Conflict,
            "still has 1 instances that nobody deleted",
        )
        .await;
    let view = cloud.show(going.id).await;
    assert_eq!(
        (view.vm_state, view.task_state),
        (VmState::Error, Some(TaskState::Deleting)),
        "not yet"
    );
    cloud.ok(delete(wanted.id)).await;
    let forgotten = cloud.ok(forget()).await;
    assert_eq!(forgotten.id, host.id);
    for id in [going.id, wanted.id] {
        let view = cloud.show(id).await;
        assert_eq!((view.vm_state, view.host), (VmState::Deleted, None));
    }
    cloud
        .refused(
            HostShow {
                host: "hv1".to_owned(),
            },
            NotFound,
            "there is no host \"hv1\"",
        )
        .await;
    cloud.refused(forget(), NotFound, "there is no host").await;
    wait_until("its queue is gone", async || {
        !cloud
            .broker
            .queues()
            .iter()
            .any(|name| name == "compute.hv1")
    })
    .await;
    // Their names and addresses are free.
    let again = InstanceCreate {
        hints: Default::default(),
        ..here("going")
    };
    assert_eq!(cloud.ok(again).await.host.unwrap().as_str(), "hv2");
    assert_sound(&cloud).await;

    // It comes back after all, as a new host: in no aggregate, and with nothing on it.
    host.tell(&cloud).await;
    let shown = cloud.show_host("hv1").await;
    assert_eq!(
        (shown.availability_zone.as_str(), shown.instances),
        ("nova", 0)
    );
    assert_eq!(shown.capacity.vcpus.get(), 16);
    let like = hinted("probe", json!({ "host": "hv1" }));
    assert_eq!(cloud.ok(crate::ask::capacity(&like)).await.fits, 16);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_host_gets_nothing_and_is_told_what_it_may_have_missed_when_it_is_back() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    let first = host.next_about(request.id).await;
    cloud.lose(&[host.id]).await;
    let late = small("late");
    cloud
        .refused(late.clone(), NoValidHost, "its heartbeats do not arrive")
        .await;
    host.heartbeat().await;
    assert_eq!(
        host.next_about(request.id).await,
        first,
        "it may have lost it"
    );
    cloud.ok(late).await;
    assert_sound(&cloud).await;
}
