//! Why an instance is where it is, where one would go, how many would fit.

use std::collections::BTreeMap;

use berth_common::{
    ids::{HostId, InstanceId, NetworkId, PortId},
    message::{
        network::NetworkCreate,
        placement::DecisionView,
        port::PortCreate,
        request::{
            AggregateAddHost, Change, CreateMode, HostDisable, HostSet, InstanceCreate,
            InstanceList, PlacementExplain,
        },
        security_group::SecurityGroupList,
    },
    names::HostName,
    refusal::RefusalCode::{Invalid, NoValidHost, NotFound},
};
use berth_scheduler::config::IdRange;
use berth_store::decisions;
use serde_json::{Value, json};

use crate::{
    ask::{aggregate, capacity, hinted, instance, many, place, server_group, several, small},
    cloud::Cloud,
    host::{Host, inventory, resources},
    routers::{add, request, router},
    soundness::assert_sound,
};

/// A decision as an operator reads it, without the times.
fn told(decision: &DecisionView) -> String {
    let mut text = format!("attempt {} of {} hosts\n", decision.attempt, decision.hosts);
    text.push_str(&format!("asked: {}\n", decision.constraints.join("; ")));
    for of in &decision.filters {
        text.push_str(&format!("{} removed {}\n", of.filter, of.removed));
    }
    for near in &decision.nearest_misses {
        text.push_str(&format!(
            "near: {} ({}, missing {:?}): {}\n",
            near.host, near.filter, near.missing, near.reason
        ));
    }
    text.push_str(&format!(
        "{}\n{}",
        decision.summary, decision.public_summary
    ));
    text
}

/// A decision is what the golden file says, but for what differs each time; `BERTH_WRITE_DOCS=1` writes the file anew.
/// The tests of berthctl print it.
fn assert_golden(name: &str, decision: &DecisionView) {
    let mut ids = BTreeMap::new();
    let mut number = |name: &HostName| -> HostId {
        let next = ids.len() + 1;
        let number = *ids.entry(name.clone()).or_insert(next);
        format!("0191e7a0-0000-7000-8000-{number:012}")
            .parse()
            .unwrap()
    };
    let mut decision = decision.clone();
    decision.decided_at = "2026-01-02T03:04:05Z".parse().unwrap();
    for host in decision.chosen.iter_mut().chain(&mut decision.runner_up) {
        host.host_id = number(&host.host);
    }
    for near in &mut decision.nearest_misses {
        near.host_id = number(&near.host);
    }
    let text = serde_json::to_string_pretty(&decision).unwrap() + "\n";
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/flow/golden")
        .join(name);
    if std::env::var_os("BERTH_WRITE_DOCS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        text,
        golden,
        "BERTH_WRITE_DOCS=1 writes {} anew",
        file.display()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_explained_by_each_filter_and_the_nearest_misses_in_numbers() {
    let cloud = Cloud::start().await;
    // hv1 disabled, hv2 silent, hv3 without room, hv4 nearly with room, hv5 in another zone.
    let hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3", "hv4", "hv5"]).await;
    cloud
        .ok(aggregate("east", json!({ "availability_zone": "east" })))
        .await;
    for host in ["hv1", "hv2", "hv3", "hv4"] {
        cloud
            .ok(AggregateAddHost {
                aggregate: "east".to_owned(),
                host: host.to_owned(),
            })
            .await;
    }
    for (host, name, memory_mb) in [("hv3", "fill-3", 3000), ("hv4", "fill-4", 2000)] {
        let fill = InstanceCreate {
            hints: hinted(name, json!({ "host": host })).hints,
            ..instance(name, memory_mb, json!([]))
        };
        cloud.ok(fill).await;
    }
    cloud
        .ok(HostDisable {
            host: "hv1".to_owned(),
            reason: None,
        })
        .await;
    cloud.lose(&[hosts["hv2"].id]).await;
    let request = InstanceCreate {
        hints: hinted(
            "vm",
            json!({ "availability_zone": "east", "architecture": "x86_64" }),
        )
        .hints,
        ..instance("vm", 3500, json!([]))
    };
    let refusal = cloud.call(request.clone()).await.unwrap_err();
    let decisions = cloud.explain(request.id).await;
    assert_eq!(decisions.len(), 1);
    assert_eq!(
        told(&decisions[0]),
        "\
attempt 1 of 5 hosts
asked: availability zone east; architecture x86_64
enabled removed 1
alive removed 1
ram removed 2
availability_zone removed 1
near: hv5 (availability_zone, missing None): needs availability zone east, it is in nova
near: hv4 (ram, missing Some(124)): needs 3500 MB of memory, 3376 free of 5376, 124 missing
near: hv3 (ram, missing Some(1124)): needs 3500 MB of memory, 2376 free of 5376, 1124 missing
No valid host was found for 1 vCPU, 3500 MB of memory, 1 GB of disk: 5 hosts; enabled removed 1; alive removed 1; ram \
         removed 2; availability_zone removed 1; nearest miss hv5: needs availability zone east, it is in nova
No valid host was found for 1 vCPU, 3500 MB of memory, 1 GB of disk: no host that fits otherwise is in the availability \
         zone; enabled removed 1; alive removed 1; ram removed 2; availability_zone removed 1; nearest miss: needs \
         availability zone east, it is in nova"
    );
    assert_golden("refused.json", &decisions[0]);
    assert_eq!(refusal.code, NoValidHost);
    assert_eq!(refusal.message, decisions[0].public_summary);
    assert_eq!(
        cloud.show(request.id).await.fault.unwrap().message,
        refusal.message
    );
    // Asked again, it is decided again.
    cloud.call(request.clone()).await.unwrap_err();
    assert_eq!(cloud.explain(request.id).await.len(), 2);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_placement_is_explained_by_its_score_and_the_runner_up() {
    let cloud = Cloud::start().await;
    let _large =
        Host::join_with(&cloud, "large", |host| host.total = resources(4, 8192, 100)).await;
    let _middle = Host::join(&cloud, "hv1").await;
    let _small = Host::join_with(&cloud, "hv2", |host| host.total = resources(4, 2048, 100)).await;
    let request = small("vm");
    cloud.ok(request.clone()).await;
    let decision = cloud.explain(request.id).await.remove(0);
    assert_golden("placed.json", &decision);
    assert_eq!((decision.attempt, decision.hosts), (1, 3));
    assert!(decision.filters.is_empty() && decision.nearest_misses.is_empty());
    let (chosen, runner_up) = (decision.chosen.unwrap(), decision.runner_up.unwrap());
    assert_eq!(chosen.host.as_str(), "large");
    assert_eq!(runner_up.host.as_str(), "hv1");
    // (8192 − 512) × 1.5 MB, 16 vCPU, and a thousandth for each of 100 GB.
    assert_eq!(chosen.score, 11_520_000 + 16_000 + 100);
    for scored in [&chosen, &runner_up] {
        assert_eq!(
            scored.parts.iter().map(|part| part.score).sum::<i64>(),
            scored.score
        );
    }
    assert!(
        decision.summary.starts_with("large was chosen for 1 vCPU"),
        "{}",
        decision.summary
    );
    assert_eq!(
        decision.public_summary,
        "A host was found for 1 vCPU, 64 MB of memory, 1 GB of disk"
    );
    // By name, and after a repetition, it is the same one decision.
    cloud.ok(request.clone()).await;
    let by_name = PlacementExplain {
        instance: "vm".to_owned(),
        project: Default::default(),
    };
    assert_eq!(cloud.ok(by_name).await.decisions.len(), 1);
    let unknown = PlacementExplain {
        instance: InstanceId::new().to_string(),
        project: Default::default(),
    };
    cloud.refused(unknown, NotFound, "has no instance").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_where_one_would_go_changes_nothing() {
    let cloud = Cloud::start().await;
    let _large =
        Host::join_with(&cloud, "large", |host| host.total = resources(4, 8192, 100)).await;
    let _small = Host::join(&cloud, "hv1").await;
    cloud.ok(server_group("apart", "anti_affinity")).await;
    let request = hinted("vm", json!({ "server_group": "apart" }));
    for _ in 0..5 {
        let decision = cloud.ok(place(&request)).await;
        assert_eq!(decision.chosen.unwrap().host.as_str(), "large");
        assert_eq!(cloud.ok(capacity(&request)).await.fits, 2);
    }
    assert!(cloud.claims().await.is_empty());
    let kept = decisions::of_instance(cloud.pool(), request.id, 10).await;
    assert!(kept.unwrap().is_empty());
    let all = InstanceList {
        project: None,
        after: None,
        limit: 10,
    };
    assert!(cloud.ok(all).await.instances.is_empty());
    assert_sound(&cloud).await;
    assert_eq!(
        cloud.ok(request.clone()).await.host.unwrap().as_str(),
        "large"
    );
    let decision = cloud.ok(place(&request)).await;
    assert_eq!(
        decision.chosen.unwrap().host.as_str(),
        "hv1",
        "the group has a member now"
    );
    let hopeless = instance("hopeless", 9000, json!([]));
    let decision = cloud.ok(place(&hopeless)).await;
    assert!(decision.chosen.is_none());
    assert_eq!(decision.nearest_misses[0].missing, Some(9000 - 7680));
    let unknown = hinted("vm", json!({ "server_group": "nobodys" }));
    cloud
        .refused(place(&unknown), NotFound, "has no server group")
        .await;
    let mut nothing = capacity(&request);
    nothing.most = 0;
    cloud
        .refused(nothing, Invalid, "most must be from 1 to 100000")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_fit_as_was_said() {
    let cloud = Cloud::start().await;
    let _plain = Host::join(&cloud, "hv1").await;
    let _pages = Host::join_with(&cloud, "hv2", |host| {
        host.total = resources(2, 2048, 50);
        host.resources = inventory("HUGEPAGES_2048K", 7);
    })
    .await;
    let _large = Host::join_with(&cloud, "hv3", |host| host.total = resources(8, 3000, 20)).await;
    cloud
        .ok(aggregate(
            "east",
            json!({ "availability_zone": "east", "ram_allocation_ratio": "1.1" }),
        ))
        .await;
    cloud
        .ok(AggregateAddHost {
            aggregate: "east".to_owned(),
            host: "hv3".to_owned(),
        })
        .await;
    cloud
        .ok(HostSet {
            host: "hv1".to_owned(),
            cpu_allocation_ratio: Change::Set("2.5".parse().unwrap()),
            ..HostSet::default()
        })
        .await;
    let first = cloud.ok(small("first")).await.id;
    for (name, policy) in [
        ("apart", "anti_affinity"),
        ("pack", "affinity"),
        ("near", "soft_affinity"),
        ("far", "soft_anti_affinity"),
    ] {
        cloud.ok(server_group(name, policy)).await;
    }
    let mut round = 0;
    let mut check = async |size: [u64; 3], hints: Value| {
        round += 1;
        let request = |n: u64| -> InstanceCreate {
            let mut request = hinted(&format!("r{round}-{n}"), hints.clone());
            let [vcpus, memory_mb, disk_gb] = size;
            request.flavor = serde_json::from_value(
                json!({ "vcpus": vcpus, "memory_mb": memory_mb, "disk_gb": disk_gb }),
            )
            .unwrap();
            request
        };
        let said = cloud.ok(capacity(&request(0))).await;
        assert!(!said.counted_out, "{said:?}");
        let all: Vec<_> = (0..=said.fits).map(request).collect();
        let reply = cloud
            .call(many(CreateMode::AllOrNothing, all.clone()))
            .await;
        let refusal = reply.expect_err("one more than was said fits");
        assert_eq!(refusal.code, NoValidHost, "{hints} {refusal}");
        if said.fits == 0 {
            return;
        }
        // All of them do fit, and all of it is taken back: the next round finds the same room.
        let fits = usize::try_from(said.fits).unwrap();
        let mut all_and_a_hopeless_one = all[..fits].to_vec();
        all_and_a_hopeless_one.push(instance("hopeless", 60_000, json!([])));
        let refusal = cloud
            .call(many(CreateMode::AllOrNothing, all_and_a_hopeless_one))
            .await
            .unwrap_err();
        assert!(
            refusal.message.contains("since hopeless cannot be"),
            "{hints}: {refusal}"
        );
        assert_eq!(
            cloud.ok(capacity(&request(0))).await.fits,
            said.fits,
            "{hints}"
        );
    };
    for size in [[1, 700, 1], [2, 300, 7], [9, 10, 1]] {
        for hints in [
            json!({}),
            json!({ "server_group": "apart" }),
            json!({ "server_group": "pack" }),
            json!({ "server_group": "near" }),
            json!({ "server_group": "far" }),
            json!({ "availability_zone": "east" }),
            json!({ "resources": { "HUGEPAGES_2048K": 2 } }),
            json!({ "same_host": [first] }),
            json!({ "different_host": [first] }),
            json!({ "host": "hv2" }),
        ] {
            check(size, hints).await;
        }
    }
    assert_sound(&cloud).await;
    let mut few = capacity(&small("few"));
    few.most = 3;
    let said = cloud.ok(few).await;
    assert_eq!((said.fits, said.counted_out, said.next), (3, true, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_out_first_is_told_in_words() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let said = cloud.ok(capacity(&instance("vm", 1000, json!([])))).await;
    assert_eq!(
        said.summary,
        "5 more fit; next limit: ram, nearest on hv1: needs 1000 MB of memory, 376 free of 5376, 624 missing"
    );
    let said = cloud.ok(capacity(&instance("vm", 64, json!([])))).await;
    assert_eq!(
        said.summary,
        "16 more fit; next limit: cpu, nearest on hv1: needs 1 vCPU, 0 free of 16, 1 missing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_owners_of_instances_read_names_no_host() {
    let cloud = Cloud::start().await;
    let hosts = Host::join_all(&cloud, &["hv-one", "hv-two"]).await;
    let first = cloud.ok(small("first")).await.id;
    let second = cloud
        .ok(hinted("second", json!({ "different_host": [first] })))
        .await
        .id;
    cloud.ok(server_group("apart", "anti_affinity")).await;
    for member in several("m", 2, &json!({ "server_group": "apart" })) {
        cloud.ok(member).await;
    }
    let home = cloud.host_of(first).await;
    let mut texts = Vec::new();
    let asked = cloud
        .ok(place(&hinted("on", json!({ "host": home }))))
        .await;
    assert_eq!(asked.constraints, [format!("host {home}")]);
    texts.push(asked.public_summary);
    for (n, hints) in [
        json!({ "server_group": "apart" }),
        json!({ "different_host": [first, second] }),
        json!({ "architecture": "riscv64" }),
        json!({ "virt_type": "kvm" }),
        json!({ "properties": { "disk": "ssd" } }),
        json!({ "resources": { "PCI_GPU": 1 } }),
    ]
    .into_iter()
    .enumerate()
    {
        let request = hinted(&format!("no-{n}"), hints);
        texts.push(cloud.call(request).await.unwrap_err().message);
    }
    // The one that was asked for is full, so the other came nearest.
    let mut wants_one = hinted("wants-one", json!({ "host": home }));
    wants_one.flavor.memory_mb = berth_common::units::MemoryMb::new(3584).unwrap();
    let other = InstanceCreate {
        id: InstanceId::new(),
        name: "wants-one-first".parse().unwrap(),
        ..wants_one.clone()
    };
    cloud.ok(other).await;
    texts.push(cloud.call(wants_one).await.unwrap_err().message);
    for text in texts {
        for host in hosts.values() {
            assert!(!text.contains(&host.name), "{text}");
            assert!(!text.contains(&host.id.to_string()), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_refused_again_and_again_keeps_its_newest_decisions_only() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let hopeless = instance("hopeless", 9000, json!([]));
    for _ in 0..25 {
        cloud.call(hopeless.clone()).await.unwrap_err();
    }
    let kept = decisions::of_instance(cloud.pool(), hopeless.id, 100).await;
    assert_eq!(kept.unwrap().len(), 20);
    assert_eq!(cloud.explain(hopeless.id).await.len(), 20);
    assert_sound(&cloud).await;
}

/// What can be wrong with the networks of hosts, and with the networks of a request.
async fn cloud_of_networks() -> Cloud {
    let cloud = Cloud::start_with(|config| {
        config.networks.flat_networks = vec!["physnet1".parse().unwrap()];
        config.networks.vni_ranges = vec![IdRange(10..=20)];
    })
    .await;
    // Of different sizes, so that no seed decides between them.
    for (number, name) in (1..).zip(["plain", "wired", "tunnel", "open"]) {
        let join = Host::join_with(&cloud, name, |host| {
            host.total = resources(4, 4_096 + number * 70, 100);
            host.network.stateful_filter = name != "open";
            if name == "wired" {
                host.physical_networks = vec!["physnet1".parse().unwrap()];
            }
            if name == "tunnel" {
                host.network.vxlan = true;
                host.network.tunnel_ip = "192.0.2.1".parse().ok();
            }
        });
        drop(join.await);
    }
    for (name, more) in [
        (
            "near",
            json!({ "cidr": "10.0.1.0/24", "gateway_ip": "10.0.1.1" }),
        ),
        (
            "wire",
            json!({ "network_type": "flat", "physical_network": "physnet1", "cidr": "10.0.2.0/24" }),
        ),
        (
            "far",
            json!({ "network_type": "vxlan", "cidr": "10.0.3.0/24", "gateway_ip": "10.0.3.1" }),
        ),
        (
            "inner",
            json!({ "cidr": "10.0.4.0/24", "gateway_ip": "10.0.4.1" }),
        ),
        ("full", json!({ "cidr": "10.0.5.0/29" })),
        (
            "home",
            json!({ "network_type": "nat", "cidr": "10.0.6.0/24", "gateway_ip": "10.0.6.1" }),
        ),
    ] {
        let mut network = more;
        network["id"] = json!(NetworkId::new());
        network["name"] = json!(name);
        cloud.ok(request::<NetworkCreate>(network)).await;
    }
    cloud.ok(router("r1", json!({}))).await;
    for network in ["inner", "far"] {
        cloud.ok(add("r1", network)).await;
    }
    let free = ["full-1", "full-2", "full-3", "full-4", "full-5"].map(|name| (name, "full"));
    let named = [("spare", "near"), ("bound", "near")].into_iter();
    for (name, network) in named.chain(free) {
        let port = json!({ "id": PortId::new(), "name": name, "network": network });
        cloud.ok(request::<PortCreate>(port)).await;
    }
    cloud
        .ok(instance("owner", 64, json!([{ "port": "bound" }])))
        .await;
    cloud
}

/// A question changes nothing, and tells of every host what creating would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_with_networks_is_answered_as_creating_would_be() {
    let cloud = cloud_of_networks().await;
    let open = json!({ "network": "near", "port_security_enabled": false });
    let wishes = [
        json!([]),
        json!([{ "network": "near" }]),
        json!([open]),
        json!([{ "network": "wire" }]),
        json!([{ "network": "wire", "port_security_enabled": false }]),
        json!([{ "network": "far" }]),
        json!([{ "network": "wire" }, { "network": "far" }]),
        // A router joins `far` to it.
        json!([{ "network": "inner" }]),
        json!([{ "network": "home" }]),
        json!([{ "port": "spare" }]),
        json!([{ "port": "bound" }]),
        json!([{ "network": "full" }]),
        json!([{ "network": "nowhere" }]),
        json!([{ "network": "near", "security_groups": ["nobodys"] }]),
        json!([{ "network": "near", "ip_address": "10.0.9.9" }]),
        json!([{ "network": "near", "port": "spare" }]),
        json!([{ "network": "near" }, { "network": "near" }, { "network": "near" }, { "network": "near" },
            { "network": "near" }, { "network": "near" }, { "network": "near" }, { "network": "near" },
            { "network": "near" }]),
    ];
    let mut verdicts = BTreeMap::new();
    for (number, wish) in wishes.into_iter().enumerate() {
        let wanted = instance(&format!("vm-{number}"), 64, wish.clone());
        let asked = cloud.call(place(&wanted)).await;
        let fit = cloud.call(capacity(&wanted)).await;
        assert_sound(&cloud).await;
        let created = cloud.call(wanted.clone()).await;
        match (asked, created) {
            (Ok(asked), created) => {
                let explained = cloud.explain(wanted.id).await.remove(0);
                let as_asked = DecisionView {
                    decided_at: asked.decided_at,
                    ..explained
                };
                assert_eq!(asked, as_asked, "{wish}");
                assert_eq!(asked.chosen.is_some(), created.is_ok(), "{wish}");
                assert_eq!(fit.unwrap().fits > 0, created.is_ok(), "{wish}");
                let chosen = asked.chosen.map(|chosen| chosen.host.to_string());
                let of = verdicts.entry(chosen.unwrap_or_else(|| "nowhere".to_owned()));
                *of.or_insert(0) += 1;
                if created.is_ok() {
                    cloud.ok(crate::ask::delete(wanted.id)).await;
                }
            }
            (Err(asked), Err(created)) => {
                assert_eq!(asked, created, "{wish}");
                // What is used by others is not counted.
                let used = ["bound", "full"]
                    .iter()
                    .any(|it| wish.to_string().contains(it));
                match fit {
                    Ok(fit) => assert!(used && fit.fits > 0, "{wish}: {fit:?}"),
                    Err(fit) => assert_eq!((fit, used), (created, false), "{wish}"),
                }
                *verdicts.entry("refused".to_owned()).or_insert(0) += 1;
            }
            (Err(asked), Ok(created)) => panic!("{wish}: {asked}, and then {created:?}"),
        }
    }
    for verdict in ["wired", "tunnel", "open", "nowhere", "refused"] {
        assert!(verdicts.contains_key(verdict), "{verdicts:?}");
    }
}

/// The first port of a project makes its security group; a question does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_makes_no_security_group() {
    let cloud = cloud_of_networks().await;
    let groups = async || {
        let list = request::<SecurityGroupList>(json!({ "project": "fresh" }));
        cloud.ok(list).await.security_groups.len()
    };
    let mut network = json!({ "id": NetworkId::new(), "name": "own", "project": "fresh" });
    network["cidr"] = json!("10.0.7.0/24");
    cloud.ok(request::<NetworkCreate>(network)).await;
    let mut wanted = instance("vm", 64, json!([{ "network": "own" }]));
    wanted.project = "fresh".parse().unwrap();
    let decision = cloud.ok(place(&wanted)).await;
    assert!(decision.chosen.is_some());
    assert_eq!(groups().await, 0);
    cloud.ok(wanted).await;
    assert_eq!(groups().await, 1);
}
