//! Where instances may be placed and where not: every hint and every server group policy, end to end.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::Flavor,
    ids::InstanceId,
    message::request::{AggregateAddHost, InstanceCreate, ServerGroupDelete, ServerGroupList},
    refusal::RefusalCode::{Conflict, NoValidHost, NotFound},
};
use serde_json::json;

use crate::{
    ask::{aggregate, delete, hinted, instance, server_group, several, small},
    cloud::Cloud,
    host::{Host, inventory},
    soundness::assert_sound,
};

async fn add(cloud: &Cloud, aggregate: &str, host: &str) {
    cloud
        .ok(AggregateAddHost {
            aggregate: aggregate.to_owned(),
            host: host.to_owned(),
        })
        .await;
}

/// Creates an instance and answers its host.
async fn created(cloud: &Cloud, request: InstanceCreate) -> String {
    cloud.ok(request).await.host.unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_availability_zone_is_kept_to_and_an_unknown_one_is_refused() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud
        .ok(aggregate("a-east", json!({ "availability_zone": "east" })))
        .await;
    let east = || json!({ "availability_zone": "east" });
    let refusal = cloud
        .refused(
            hinted("too-early", east()),
            NoValidHost,
            "availability zone",
        )
        .await;
    assert!(refusal.retryable);
    add(&cloud, "a-east", "hv2").await;
    assert_eq!(
        cloud.show_host("hv2").await.availability_zone.as_str(),
        "east"
    );
    assert_eq!(
        cloud.show_host("hv1").await.availability_zone.as_str(),
        "nova"
    );
    for name in ["e-1", "e-2", "e-3"] {
        assert_eq!(created(&cloud, hinted(name, east())).await, "hv2");
    }
    let nova = json!({ "availability_zone": "nova" });
    for name in ["n-1", "n-2", "n-3"] {
        assert_eq!(created(&cloud, hinted(name, nova.clone())).await, "hv1");
    }
    let unknown = hinted("w-1", json!({ "availability_zone": "west" }));
    cloud
        .refused(
            unknown.clone(),
            NotFound,
            "there is no availability zone west; there are: east, nova",
        )
        .await;
    let shown = cloud
        .refused(delete(unknown.id), NotFound, "has no instance")
        .await;
    assert!(!shown.retryable, "nothing of it is kept");
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requested_host_is_the_only_one_by_name_and_by_id() {
    let cloud = Cloud::start().await;
    let hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let id = hosts["hv2"].id.to_string();
    for (name, host) in [("vm-1", "hv2"), ("vm-2", id.as_str()), ("vm-3", "hv2")] {
        assert_eq!(
            created(&cloud, hinted(name, json!({ "host": host }))).await,
            "hv2"
        );
    }
    let mut large = hinted("large", json!({ "host": "hv2" }));
    large.flavor.vcpus = berth_common::units::Vcpus::new(4).unwrap();
    for n in 0..3 {
        let mut request = large.clone();
        request.id = InstanceId::new();
        request.name = format!("large-{n}").parse().unwrap();
        cloud.ok(request).await;
    }
    cloud.refused(large, NoValidHost, "cpu removed 1").await;
    cloud
        .refused(
            hinted("vm-9", json!({ "host": "hv9" })),
            NotFound,
            "there is no host \"hv9\"",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_lie_beside_and_apart_from_others_as_hinted() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let first = small("first");
    let home = created(&cloud, first.clone()).await;
    for n in 0..3 {
        let beside = hinted(&format!("beside-{n}"), json!({ "same_host": [first.id] }));
        assert_eq!(created(&cloud, beside).await, home);
        let apart = hinted(
            &format!("apart-{n}"),
            json!({ "different_host": [first.id] }),
        );
        assert_ne!(created(&cloud, apart).await, home);
    }
    // One of several is enough to be beside; none of them may be near to be apart.
    let other = cloud
        .ok(hinted("other", json!({ "different_host": [first.id] })))
        .await;
    created(
        &cloud,
        hinted("beside-any", json!({ "same_host": [first.id, other.id] })),
    )
    .await;
    cloud
        .refused(
            hinted(
                "apart-from-all",
                json!({ "different_host": [first.id, other.id] }),
            ),
            NoValidHost,
            "different_host removed 2",
        )
        .await;
    let stranger = InstanceId::new();
    for hint in ["same_host", "different_host"] {
        cloud
            .refused(
                hinted("lost", json!({ hint: [stranger] })),
                NotFound,
                &format!("there is no instance {stranger}, which hints.{hint} names"),
            )
            .await;
    }
    // One that has no host is beside nobody and apart from all.
    let homeless = instance("homeless", 9999, json!([]));
    cloud.call(homeless.clone()).await.unwrap_err();
    cloud
        .refused(
            hinted("beside-homeless", json!({ "same_host": [homeless.id] })),
            Conflict,
            "no instance in hints.same_host has a host",
        )
        .await;
    created(
        &cloud,
        hinted("apart-homeless", json!({ "different_host": [homeless.id] })),
    )
    .await;
    // What has moved out is beside nobody.
    cloud.ok(delete(first.id)).await;
    hosts
        .get_mut(&home)
        .unwrap()
        .bury(&cloud, &[first.id])
        .await;
    cloud
        .refused(
            hinted("too-late", json!({ "same_host": [first.id] })),
            Conflict,
            "no instance in hints.same_host has a host",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_an_affinity_group_share_a_host_or_are_refused() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let group = cloud.ok(server_group("pack", "affinity")).await;
    // By name and by id.
    let by_name = || json!({ "server_group": "pack" });
    let by_id = || json!({ "server_group": group.id });
    let home = created(&cloud, hinted("m-1", by_name())).await;
    for name in ["m-2", "m-3"] {
        assert_eq!(created(&cloud, hinted(name, by_id())).await, home);
    }
    // 5376 MB are 5184 beside three members of 64 MB: one more of 3584 and none of 1601.
    let sized = |name: &str, memory_mb| InstanceCreate {
        hints: hinted(name, by_name()).hints,
        ..instance(name, memory_mb, json!([]))
    };
    assert_eq!(created(&cloud, sized("m-4", 3584)).await, home);
    cloud
        .refused(
            sized("m-5", 1601),
            NoValidHost,
            "the members of the server group are elsewhere",
        )
        .await;
    assert_eq!(created(&cloud, sized("m-6", 1600)).await, home);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_an_anti_affinity_group_are_apart_up_to_the_limit() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(server_group("apart", "anti_affinity")).await;
    let hints = json!({ "server_group": "apart" });
    let members = several("m", 2, &hints);
    let mut on = BTreeSet::new();
    for member in &members {
        on.insert(created(&cloud, member.clone()).await);
    }
    assert_eq!(on.len(), 2);
    let third = hinted("third", hints.clone());
    let refusal = cloud
        .refused(
            third.clone(),
            NoValidHost,
            "it holds 1 of the server group, at most 1 may lie on one host",
        )
        .await;
    assert!(
        refusal.message.contains("server_group removed 2"),
        "{refusal}"
    );
    // A member that is gone makes room; one that is only going does not.
    let home = cloud.host_of(members[0].id).await;
    cloud.ok(delete(members[0].id)).await;
    cloud
        .refused(third.clone(), NoValidHost, "server_group removed 2")
        .await;
    hosts
        .get_mut(&home)
        .unwrap()
        .bury(&cloud, &[members[0].id])
        .await;
    assert_eq!(created(&cloud, third).await, home);

    let mut two = server_group("pairs", "anti_affinity");
    two.max_server_per_host = Some(2);
    cloud.ok(two).await;
    let mut on: BTreeMap<String, usize> = BTreeMap::new();
    for member in several("p", 4, &json!({ "server_group": "pairs" })) {
        *on.entry(created(&cloud, member).await).or_default() += 1;
    }
    assert_eq!(on.into_values().collect::<Vec<_>>(), [2, 2]);
    cloud
        .refused(
            hinted("p-5", json!({ "server_group": "pairs" })),
            NoValidHost,
            "it holds 2 of the server group, at most 2",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soft_policies_are_kept_where_there_is_room_and_given_up_where_there_is_none() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(server_group("near", "soft_affinity")).await;
    cloud.ok(server_group("far", "soft_anti_affinity")).await;
    let sized = |name: &str, group: &str| InstanceCreate {
        hints: hinted(name, json!({ "server_group": group })).hints,
        ..instance(name, 1280, json!([]))
    };
    // 5376 MB are 4 × 1280 with 256 left.
    let home = created(&cloud, sized("near-0", "near")).await;
    assert_eq!(created(&cloud, sized("near-1", "near")).await, home);
    let far = created(&cloud, sized("far-0", "far")).await;
    assert_ne!(created(&cloud, sized("far-1", "far")).await, far);
    assert_eq!(created(&cloud, sized("near-2", "near")).await, home);
    // Its home is full now: elsewhere is better than nowhere.
    assert_ne!(created(&cloud, sized("near-3", "near")).await, home);
    // And so is beside a member.
    created(&cloud, sized("far-2", "far")).await;
    created(&cloud, sized("far-3", "far")).await;
    cloud
        .refused(sized("far-4", "far"), NoValidHost, "ram removed 2")
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_group_lists_its_living_members_and_goes_after_the_last() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let group = cloud.ok(server_group("pack", "affinity")).await;
    let member = hinted("m-1", json!({ "server_group": "pack" }));
    cloud.ok(member.clone()).await;
    let listed = cloud.ok(ServerGroupList { project: None }).await;
    assert_eq!(listed.server_groups[0].members, [member.id]);
    let gone = || ServerGroupDelete {
        server_group: group.id.to_string(),
        project: Default::default(),
    };
    cloud
        .refused(gone(), Conflict, "has 1 instances; delete them first")
        .await;
    cloud.ok(delete(member.id)).await;
    cloud.refused(gone(), Conflict, "delete them first").await;
    host.bury(&cloud, &[member.id]).await;
    cloud.ok(gone()).await;
    cloud.refused(gone(), NotFound, "has no server group").await;
    assert!(
        cloud
            .ok(ServerGroupList { project: None })
            .await
            .server_groups
            .is_empty()
    );
    // A new group of the same name has none of the old one's members.
    cloud.ok(server_group("pack", "anti_affinity")).await;
    cloud
        .ok(hinted("m-1", json!({ "server_group": "pack" })))
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_are_those_of_any_aggregate_of_the_host() {
    let cloud = Cloud::start().await;
    let _hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3"]).await;
    cloud
        .ok(aggregate(
            "fast",
            json!({ "properties": { "disk": "ssd" } }),
        ))
        .await;
    cloud
        .ok(aggregate(
            "old",
            json!({ "properties": { "disk": "hdd", "rack": "r 1" } }),
        ))
        .await;
    for (aggregate, host) in [("fast", "hv1"), ("old", "hv1"), ("old", "hv2")] {
        add(&cloud, aggregate, host).await;
    }
    let check = async |name: &str, properties: serde_json::Value, expected: &[&str]| {
        let mut on = BTreeSet::new();
        for n in 0..4 {
            let request = hinted(&format!("{name}-{n}"), json!({ "properties": properties }));
            on.insert(created(&cloud, request).await);
        }
        assert_eq!(
            on.iter().map(String::as_str).collect::<Vec<_>>(),
            expected,
            "{name}"
        );
    };
    check("hdd", json!({ "disk": "hdd" }), &["hv1", "hv2"]).await;
    check("ssd", json!({ "disk": "ssd" }), &["hv1"]).await;
    check("both", json!({ "disk": "ssd", "rack": "r 1" }), &["hv1"]).await;
    cloud
        .refused(
            hinted("tape", json!({ "properties": { "disk": "tape" } })),
            NoValidHost,
            "aggregate_properties removed 3",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn architecture_and_virtualization_are_those_of_the_heartbeat() {
    let cloud = Cloud::start().await;
    let mut arm = Host::join_with(&cloud, "arm", |host| host.arch = "aarch64".to_owned()).await;
    let _kvm = Host::join_with(&cloud, "kvm", |host| host.virt_type = "kvm".to_owned()).await;
    for n in 0..3 {
        let request = hinted(&format!("a-{n}"), json!({ "architecture": "aarch64" }));
        assert_eq!(created(&cloud, request).await, "arm");
        let request = hinted(&format!("k-{n}"), json!({ "virt_type": "kvm" }));
        assert_eq!(created(&cloud, request).await, "kvm");
    }
    let both = || {
        hinted(
            "both",
            json!({ "architecture": "aarch64", "virt_type": "kvm" }),
        )
    };
    cloud
        .refused(both(), NoValidHost, "image_properties removed 2")
        .await;
    // Its kernel was given KVM.
    arm.virt_type = "kvm".to_owned();
    arm.tell(&cloud).await;
    let mut again = both();
    again.name = "both-2".parse().unwrap();
    assert_eq!(created(&cloud, again).await, "arm");
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn countable_resources_are_given_out_to_the_last_unit_and_no_further() {
    let cloud = Cloud::start().await;
    let mut host = Host::join_with(&cloud, "hv1", |host| {
        host.resources = inventory("HUGEPAGES_2048K", 4);
    })
    .await;
    let _plain = Host::join(&cloud, "hv2").await;
    let pages =
        |name: &str, count: u64| hinted(name, json!({ "resources": { "HUGEPAGES_2048K": count } }));
    let three = pages("three", 3);
    assert_eq!(created(&cloud, three.clone()).await, "hv1");
    cloud
        .refused(
            pages("two", 2),
            NoValidHost,
            "needs 2 HUGEPAGES_2048K, 1 free of 4, 1 missing",
        )
        .await;
    assert_eq!(created(&cloud, pages("one", 1)).await, "hv1");
    let used = async || {
        let shown = cloud.show_host("hv1").await;
        shown
            .resources
            .iter()
            .map(|of| (of.used, of.total))
            .collect::<Vec<_>>()
    };
    assert_eq!(used().await, [(4, 4)]);
    cloud
        .refused(
            pages("none-left", 1),
            NoValidHost,
            "needs 1 HUGEPAGES_2048K, 0 free of 4",
        )
        .await;
    // What needs none still fits.
    created(&cloud, hinted("plain", json!({ "host": "hv1" }))).await;
    cloud
        .refused(
            hinted("gpu", json!({ "resources": { "PCI_GPU": 1 } })),
            NoValidHost,
            "0 free of 0",
        )
        .await;
    cloud
        .refused(
            pages("all-there-is", u64::MAX),
            NoValidHost,
            "18446744073709551615 HUGEPAGES_2048K",
        )
        .await;
    // The host loses some: nobody is evicted, and nothing fits before enough is given back.
    host.resources = inventory("HUGEPAGES_2048K", 2);
    host.tell(&cloud).await;
    assert_eq!(used().await, [(4, 2)]);
    cloud.ok(delete(three.id)).await;
    host.bury(&cloud, &[three.id]).await;
    assert_eq!(used().await, [(1, 2)]);
    created(&cloud, pages("last", 1)).await;
    cloud
        .refused(pages("beyond", 1), NoValidHost, "0 free of 2")
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_domains_count_as_used() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let of = |vcpus, memory_mb| -> Flavor {
        serde_json::from_value(json!({ "vcpus": vcpus, "memory_mb": memory_mb, "disk_gb": 1 }))
            .unwrap()
    };
    host.foreign_domains = serde_json::from_value(json!([{
        "uuid": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11", "name": "pet", "power_state": "running",
        "vcpus": 2, "memory_mb": 5000,
    }]))
    .unwrap();
    host.tell(&cloud).await;
    let sized = |name: &str, flavor| InstanceCreate {
        flavor,
        ..small(name)
    };
    cloud
        .refused(
            sized("beyond", of(1, 377)),
            NoValidHost,
            "needs 377 MB of memory, 376 free of 5376, 1 missing",
        )
        .await;
    created(&cloud, sized("exact", of(1, 376))).await;
    assert_eq!(cloud.show_host("hv1").await.used_max.memory_mb.get(), 5376);
    assert_sound(&cloud).await;
}
