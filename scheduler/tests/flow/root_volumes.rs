//! Instances that boot from volumes: where they are placed, what they take, and what is refused while they have them.

use std::time::Instant;

use berth_common::{
    document::{Document, DocumentKey, InstanceSpec, Kind},
    ids::{Nonce, VolumeId},
    message::{
        heartbeat::{PoolKind, PoolReport},
        report::{FaultCode, PowerState},
        request::{
            CreateMode, HostDisable, InstanceCreate, InstanceRebuild, InstanceRescue,
            InstanceResize, InstanceSuspend,
        },
        view::{InstanceView, TaskState, VmState, VolumeStatus},
    },
    refusal::RefusalCode::{Conflict, Invalid, NoValidHost, NotFound},
    units::{ByteCount, DiskGb},
};
use serde_json::json;

use crate::{
    ask::{
        attach, body, bootable, delete, delete_volume, detach, extend, many, rooted, show_volume,
        small, snapshot, volume,
    },
    cloud::{Cloud, LIMIT, message, wait_until},
    host::{Host, key},
    soundness::assert_sound,
};

fn volume_key(id: VolumeId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Volume,
        id: id.as_uuid(),
    }
}

fn spec(document: &Document) -> InstanceSpec {
    match document {
        Document::Instance(desired) => desired.spec.clone().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A host does as it is told until it was told of this.
async fn converge(host: &mut Host, key: DocumentKey) -> Document {
    loop {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        if document.key() == key {
            return document;
        }
    }
}

/// An instance that runs, with its root volume.
async fn active(
    cloud: &Cloud,
    host: &mut Host,
    request: &InstanceCreate,
) -> (InstanceView, Document) {
    cloud.ok(request.clone()).await;
    let document = converge(host, key(request.id)).await;
    let view = cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    (view, document)
}

/// A host does as it is told until a volume is so.
async fn has_status(cloud: &Cloud, host: &mut Host, name: &str, status: VolumeStatus) {
    let deadline = Instant::now() + LIMIT;
    while cloud.ok(show_volume(name)).await.status != status {
        assert!(Instant::now() < deadline, "{name} never became {status:?}");
        let soon = std::time::Duration::from_millis(20);
        if let Ok(delivery) = tokio::time::timeout(soon, host.queue.next()).await {
            let delivery = delivery.unwrap();
            let document: Document = serde_json::from_slice(&delivery.message.body).unwrap();
            delivery.ack().await;
            host.carry_out(&document, PowerState::Running).await;
        }
    }
}

async fn disk_used(cloud: &Cloud, host: &str) -> u64 {
    cloud.show_host(host).await.used_max.disk_gb.get()
}

fn disable(host: &str) -> HostDisable {
    HostDisable {
        host: host.to_owned(),
        reason: None,
    }
}

fn pool(name: &str, kind: PoolKind, [total, used]: [u64; 2]) -> PoolReport {
    let gb = |gb| ByteCount::from_gb(DiskGb::clamped(gb));
    PoolReport {
        name: name.parse().unwrap(),
        kind,
        total_bytes: gb(total),
        used_bytes: gb(used),
        provisioned_bytes: gb(0),
        metadata_percent: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_boots_from_a_volume_that_gets_its_host_and_its_room_with_it() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let root = bootable("root", 10, json!({}));
    cloud.ok(root.clone()).await;
    assert_eq!(disk_used(&cloud, "hv1").await, 0);
    let request = rooted("web", "root", json!({}));
    let view = cloud.ok(request.clone()).await;
    assert_eq!(view.image, None);
    let boots = view.root_volume.unwrap();
    assert_eq!((boots.id, boots.delete_on_termination), (root.id, false));
    assert_eq!(
        (
            view.volumes[0].name.as_str(),
            view.volumes[0].device.as_str()
        ),
        ("root", "/dev/vda")
    );
    // The volume's size and nothing else: the flavor's disk is not used.
    assert_eq!(disk_used(&cloud, "hv1").await, 10);
    let shown = cloud.ok(show_volume("root")).await;
    assert_eq!(shown.status, VolumeStatus::Attaching);
    assert_eq!(shown.host.unwrap().as_str(), "hv1");
    assert_sound(&cloud).await;

    let mut told = Vec::new();
    while told.len() < 2 {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        told.push(document);
    }
    let document = told.iter().find(|it| it.key() == key(request.id)).unwrap();
    let spec = spec(document);
    assert!(spec.disks.is_empty());
    assert_eq!((spec.volumes[0].id, spec.volumes[0].position), (root.id, 0));
    assert!(told.iter().any(|it| it.key() == volume_key(root.id)));
    has_status(&cloud, &mut host, "root", VolumeStatus::InUse).await;
    // The same again is the same, with its volume.
    assert_eq!(cloud.ok(request.clone()).await.id, request.id);
    let other = rooted("web", "other", json!({}));
    let other = InstanceCreate {
        id: request.id,
        ..other
    };
    cloud.refused(other, Conflict, "with another content").await;

    // It grows under its guest.
    cloud.ok(extend("root", 12)).await;
    assert_eq!(disk_used(&cloud, "hv1").await, 12);
    converge(&mut host, volume_key(root.id)).await;
    has_status(&cloud, &mut host, "root", VolumeStatus::InUse).await;
    cloud.ok(snapshot("before", "root")).await;

    // Deleted, it leaves its volume, and another one boots from that.
    cloud.ok(delete(request.id)).await;
    assert_eq!(
        cloud
            .ok(show_volume("root"))
            .await
            .attachment
            .unwrap()
            .instance_id,
        request.id
    );
    host.bury(&cloud, &[request.id]).await;
    has_status(&cloud, &mut host, "root", VolumeStatus::Available).await;
    let next = rooted("next", &root.id.to_string(), json!({}));
    let (view, _) = active(&cloud, &mut host, &next).await;
    assert_eq!(view.root_volume.unwrap().id, root.id);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_in_error_while_its_root_volume_cannot_be_made() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let root = bootable("root", 10, json!({}));
    cloud.ok(root.clone()).await;
    let request = rooted("web", "root", json!({}));
    cloud.ok(request.clone()).await;
    let document = loop {
        let document = host.next().await;
        if document.key() == volume_key(root.id) {
            break document;
        }
    };
    host.fail(&document, FaultCode::ImageChecksum, "it is another image")
        .await;
    let view = cloud
        .wait_for_instance(request.id, "in error", |view| {
            view.vm_state == VmState::Error
        })
        .await;
    let fault = view.fault.unwrap();
    assert_eq!(fault.code, FaultCode::ImageChecksum);
    assert_eq!(
        fault.message,
        "the volume that it boots from could not be made: it is another image"
    );
    assert_eq!(view.host.unwrap().as_str(), "hv1");
    // It is made after all.
    host.carry_out(&document, PowerState::Running).await;
    cloud
        .wait_for_instance(request.id, "building", |view| {
            view.vm_state == VmState::Building && view.fault.is_none()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_volume_that_it_boots_from_is_none_of_those_that_an_instance_may_have_on_a_bus() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(bootable("root", 5, json!({}))).await;
    active(&cloud, &mut host, &rooted("web", "root", json!({}))).await;
    for n in 0..8 {
        let name = format!("data-{n}");
        cloud.ok(volume(&name, 1, json!({}))).await;
        cloud.ok(attach(&name, "web")).await;
    }
    cloud.ok(volume("data-8", 1, json!({}))).await;
    cloud
        .refused(
            attach("data-8", "web"),
            Conflict,
            "has 8 volumes on the bus virtio",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_has_a_host_keeps_its_instance_there() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2", "hv3"]).await;
    for n in 0..3 {
        let name = format!("root-{n}");
        cloud.ok(bootable(&name, 5, json!({ "host": "hv2" }))).await;
        let view = cloud.ok(rooted(&format!("vm-{n}"), &name, json!({}))).await;
        assert_eq!(view.host.unwrap().as_str(), "hv2");
    }
    // Full, it is told first, though others were refused later.
    cloud
        .ok(bootable("last", 5, json!({ "host": "hv2" })))
        .await;
    let mut large = rooted("large", "last", json!({}));
    large.flavor =
        serde_json::from_value(json!({ "vcpus": 1, "memory_mb": 5000, "disk_gb": 0 })).unwrap();
    let refused = cloud.call(large.clone()).await.unwrap_err();
    assert_eq!(refused.code, NoValidHost);
    assert!(
        refused.message.contains("needs 5000 MB of memory"),
        "{}",
        refused.message
    );
    // It has no host, and so it has no volume.
    let shown = cloud.ok(show_volume("last")).await;
    assert_eq!(shown.attachment, None);
    assert_eq!(cloud.show(large.id).await.root_volume.unwrap().id, shown.id);
    cloud.ok(delete(large.id)).await;
    let elsewhere = rooted("elsewhere", "last", json!({ "host": "hv1" }));
    let refused = cloud.call(elsewhere).await.unwrap_err();
    assert_eq!(refused.code, NoValidHost);
    assert!(
        refused.message.contains("it does not reach the volume"),
        "{}",
        refused.message
    );
    cloud.ok(disable("hv2")).await;
    let refused = cloud
        .call(rooted("late", "last", json!({})))
        .await
        .unwrap_err();
    assert!(
        refused.message.contains("it is disabled"),
        "{}",
        refused.message
    );
    assert_sound(&cloud).await;
    drop(hosts.pop_first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_without_a_host_is_placed_where_its_pool_has_room() {
    let cloud = Cloud::start().await;
    let mut kept = Vec::new();
    for (name, pools) in [
        ("hv1", vec![pool("fast", PoolKind::Lvm, [20, 0])]),
        ("hv2", vec![pool("fast", PoolKind::Lvm, [50, 10])]),
        ("hv3", Vec::new()),
    ] {
        kept.push(Host::join_with(&cloud, name, |host| host.pools = pools).await);
    }
    let fast = |name: &str, size| bootable(name, size, json!({ "pool": "fast" }));
    for (n, size) in [30, 30].into_iter().enumerate() {
        cloud.ok(fast(&format!("root-{n}"), size)).await;
    }
    let first = cloud.ok(rooted("first", "root-0", json!({}))).await;
    assert_eq!(first.host.unwrap().as_str(), "hv2");
    assert_eq!(disk_used(&cloud, "hv2").await, 0, "it is of the pool");
    let refused = cloud
        .call(rooted("second", "root-1", json!({})))
        .await
        .unwrap_err();
    assert_eq!(refused.code, NoValidHost);
    let told = [
        "needs 30 GB in storage pool fast for the volume, 20 free of 20, 10 missing",
        "needs 30 GB in storage pool fast for the volume, 10 free of 50, 20 missing",
        "it has no storage pool fast",
    ];
    assert!(
        told.iter().any(|text| refused.message.contains(text)),
        "{}",
        refused.message
    );
    let explained = cloud.explain(first.id).await;
    assert!(
        explained[0]
            .constraints
            .contains(&"30 GB in storage pool fast for a volume".to_owned()),
        "{explained:?}"
    );
    // Where it is made of block devices it holds no qcow2, and where it is files it does.
    let hv1 = &mut kept[0];
    hv1.pools = vec![pool("fast", PoolKind::Dir, [20, 0])];
    hv1.tell(&cloud).await;
    let files = json!({ "pool": "fast", "format": "qcow2" });
    for n in [2, 3, 4] {
        let name = format!("root-{n}");
        cloud.ok(bootable(&name, 10, files.clone())).await;
    }
    for n in [2, 3] {
        let request = rooted(&format!("on-files-{n}"), &format!("root-{n}"), json!({}));
        let placed = cloud.ok(request).await;
        assert_eq!(placed.host.unwrap().as_str(), "hv1");
    }
    assert_eq!(disk_used(&cloud, "hv1").await, 0, "it is of the pool");
    // hv2 has room for as much.
    let refused = cloud
        .call(rooted("fourth", "root-4", json!({})))
        .await
        .unwrap_err();
    assert_eq!(refused.code, NoValidHost);
    let told = [
        "its storage pool fast holds raw volumes only, and the volume shall be qcow2",
        "needs 10 GB in storage pool fast for the volume, 0 free of 20, 10 missing",
        "it has no storage pool fast",
    ];
    assert!(
        told.iter().any(|text| refused.message.contains(text)),
        "{}",
        refused.message
    );
    // In the pool of files that every host has it is the host's disk that must have room.
    cloud.ok(bootable("huge", 101, json!({}))).await;
    let refused = cloud
        .call(rooted("third", "huge", json!({})))
        .await
        .unwrap_err();
    assert!(
        refused
            .message
            .contains("needs 101 GB of disk, the whole host has 100"),
        "{}",
        refused.message
    );
    assert_eq!(cloud.ok(show_volume("huge")).await.host, None);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_booted_from_is_refused_in_words() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(volume("empty", 1, json!({}))).await;
    let text = "volume empty was made empty, so there is nothing to boot from";
    cloud
        .refused(rooted("web", "empty", json!({})), Conflict, text)
        .await;
    let text = "project default has no volume \"none\"";
    cloud
        .refused(rooted("web", "none", json!({})), NotFound, text)
        .await;

    let mut both = body("web", json!({}));
    both["block_devices"] = json!([{ "volume": "empty" }]);
    let mut neither = body("web", json!({}));
    neither["image"] = json!(null);
    let mut second = body("web", json!({}));
    second["image"] = json!(null);
    second["block_devices"] = json!([{ "volume": "empty", "boot_index": 1 }]);
    let mut two = second.clone();
    two["block_devices"] = json!([{ "volume": "empty" }, { "volume": "other" }]);
    for (body, text) in [
        (both, "give image or block_devices, not both"),
        (neither, "give image, or block_devices with one volume"),
        (second, "block_devices[0].boot_index must be 0"),
        (two, "block_devices must have one entry"),
    ] {
        let request: InstanceCreate = serde_json::from_value(body).unwrap();
        cloud.refused(request, Invalid, text).await;
    }

    let (web, _) = active(&cloud, &mut host, &small("web")).await;
    cloud.ok(bootable("data", 1, json!({}))).await;
    cloud.ok(attach("data", "web")).await;
    let text = "volume data is attached to instance web";
    cloud
        .refused(rooted("other", "data", json!({})), Conflict, text)
        .await;
    let mut foreign = bootable("theirs", 1, json!({}));
    foreign.project = "other".parse().unwrap();
    cloud.ok(foreign.clone()).await;
    let request = rooted("other", &foreign.id.to_string(), json!({}));
    cloud
        .refused(request, Invalid, "volume theirs is of project other")
        .await;

    let broken = bootable("broken", 1, json!({ "host": "hv1" }));
    cloud.ok(broken.clone()).await;
    let document = loop {
        let document = host.next().await;
        if document.key() == volume_key(broken.id) {
            break document;
        }
        host.carry_out(&document, PowerState::Running).await;
    };
    host.fail(&document, FaultCode::ImageChecksum, "these are other bytes")
        .await;
    has_status(&cloud, &mut host, "broken", VolumeStatus::Error).await;
    let text = "volume broken is in error: these are other bytes";
    cloud
        .refused(rooted("other", "broken", json!({})), Conflict, text)
        .await;
    cloud.ok(delete_volume("broken")).await;
    let text = "volume broken is being deleted";
    let request = rooted("other", &broken.id.to_string(), json!({}));
    cloud.refused(request, Conflict, text).await;
    cloud.ok(delete(web.id)).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_gets_a_volume() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let root = bootable("root", 1, json!({}));
    let pair = || {
        [
            rooted("one", "root", json!({})),
            rooted("two", "root", json!({})),
        ]
    };
    let [one, two] = pair();
    let answers = cloud
        .in_one_batch(vec![
            message(&root),
            message(&one),
            message(&two),
            message(&one),
        ])
        .await;
    let view =
        |n: usize| -> InstanceView { serde_json::from_value(answers[n].clone().unwrap()).unwrap() };
    assert_eq!((view(1).id, view(1).volumes.len()), (one.id, 1));
    assert_eq!((view(3).id, view(3).volumes.len()), (one.id, 1));
    let refused = answers[2].as_ref().unwrap_err();
    assert_eq!(refused.code, Conflict);
    assert!(
        refused
            .message
            .contains("volume root is attached to instance"),
        "{}",
        refused.message
    );
    assert_sound(&cloud).await;

    cloud.ok(bootable("other", 1, json!({}))).await;
    let pair = ["three", "four"].map(|name| rooted(name, "other", json!({})));
    let all = many(CreateMode::AllOrNothing, pair.to_vec());
    let text =
        "none of the 2 instances was created, since four cannot be: volume other is attached to";
    cloud.refused(all, Conflict, text).await;
    assert_eq!(cloud.ok(show_volume("other")).await.host, None);
    assert_sound(&cloud).await;
    let best = cloud.ok(many(CreateMode::BestEffort, pair.to_vec())).await;
    let granted = best
        .results
        .into_iter()
        .map(|result| Result::from(result.outcome).is_ok());
    assert_eq!(granted.collect::<Vec<_>>(), [true, false]);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_boots_from_a_volume_keeps_it() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(bootable("root", 7, json!({}))).await;
    let request = rooted("web", "root", json!({}));
    let (web, _) = active(&cloud, &mut host, &request).await;
    let text = "instance web boots from volume root: it is detached when the instance is deleted";
    cloud.refused(detach("root"), Conflict, text).await;
    let text = "instance web boots from volume root; delete the instance first";
    cloud.refused(delete_volume("root"), Conflict, text).await;
    let name = || "web".to_owned();
    let rebuild = InstanceRebuild {
        instance: name(),
        project: Default::default(),
        image: small("x").image.unwrap(),
        nonce: Nonce::new(),
    };
    let text = "instance web boots from volume root, and is not rebuilt";
    cloud.refused(rebuild, Conflict, text).await;

    let resize = |vcpus: u64, disk_gb: u64| InstanceResize {
        instance: name(),
        project: Default::default(),
        flavor: serde_json::from_value(
            json!({ "vcpus": vcpus, "memory_mb": 64, "disk_gb": disk_gb }),
        )
        .unwrap(),
    };
    for disk_gb in [0, 2] {
        let text = "its flavor's disk is not used: extend the volume instead";
        cloud.refused(resize(1, disk_gb), Invalid, text).await;
    }
    // Others are attached beside it.
    cloud.ok(volume("data", 1, json!({}))).await;
    cloud.ok(attach("data", "web")).await;
    let document = converge(&mut host, key(web.id)).await;
    let positions: Vec<u8> = spec(&document)
        .volumes
        .iter()
        .map(|it| it.position)
        .collect();
    assert_eq!(positions, [0, 1]);
    has_status(&cloud, &mut host, "data", VolumeStatus::InUse).await;

    // Rescued, it needs to be said with what; the disk is as large as the volume.
    let rescue = |image| InstanceRescue {
        instance: name(),
        project: Default::default(),
        image,
        nonce: Nonce::new(),
    };
    let text = "instance web boots from a volume, so there is no image that it was made from";
    cloud.refused(rescue(None), Invalid, text).await;
    cloud.ok(rescue(small("x").image)).await;
    let document = converge(&mut host, key(web.id)).await;
    assert_eq!(spec(&document).rescue.unwrap().size_gb.unwrap().get(), 7);
    cloud
        .ok(berth_common::message::request::InstanceUnrescue {
            instance: name(),
            project: Default::default(),
        })
        .await;
    converge(&mut host, key(web.id)).await;
    cloud
        .wait_for_instance(web.id, "unrescued", |view| view.task_state.is_none())
        .await;
    cloud
        .ok(InstanceSuspend {
            instance: name(),
            project: Default::default(),
        })
        .await;
    let view = cloud.show(web.id).await;
    assert_eq!(view.task_state, Some(TaskState::Suspending));
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_built_stays_with_its_volume() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    cloud.ok(bootable("root", 1, json!({}))).await;
    let request = rooted("web", "root", json!({}));
    let on = cloud.ok(request.clone()).await.host.unwrap().to_string();
    let host = hosts.get_mut(&on).unwrap();
    let document = host.next_about(request.id).await;
    host.fail(&document, FaultCode::Network, "no bridge").await;
    let view = cloud
        .wait_for_instance(request.id, "in error", |view| {
            view.vm_state == VmState::Error
        })
        .await;
    assert_eq!(view.host.unwrap().to_string(), on);
    let fault = view.fault.unwrap();
    assert_eq!(fault.code, FaultCode::Network);
    assert_eq!(
        fault.message,
        "no bridge; it cannot move on: it boots from volume root, which is on its host"
    );
    // When it can be built, it is.
    host.carry_out(&document, PowerState::Running).await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    has_status(&cloud, host, "root", VolumeStatus::InUse).await;
    assert_sound(&cloud).await;
}

/// The same, with its volume going with it.
fn ending(name: &str, volume: &str) -> InstanceCreate {
    let mut request = rooted(name, volume, json!({}));
    request.block_devices[0].delete_on_termination = true;
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_goes_with_its_instance_if_that_was_said() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let root = bootable("root", 1, json!({}));
    cloud.ok(root.clone()).await;
    let request = ending("web", "root");
    let (view, _) = active(&cloud, &mut host, &request).await;
    assert!(view.root_volume.unwrap().delete_on_termination);
    has_status(&cloud, &mut host, "root", VolumeStatus::InUse).await;

    // Not while a snapshot is being made of it: that would have nothing to be made of.
    let taken = snapshot("before", "root");
    cloud.ok(taken.clone()).await;
    let text = "snapshot before is being made of volume root: wait until it is available";
    cloud.refused(delete(request.id), Conflict, text).await;
    let made = DocumentKey {
        kind: Kind::Snapshot,
        id: taken.id.as_uuid(),
    };
    converge(&mut host, made).await;
    wait_until("the snapshot is there", async || {
        cloud.call(delete(request.id)).await.is_ok()
    })
    .await;
    assert_eq!(
        cloud.ok(show_volume("root")).await.status,
        VolumeStatus::Deleting
    );
    assert_sound(&cloud).await;
    cloud.ok(delete(request.id)).await;
    host.bury(&cloud, &[request.id]).await;
    loop {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Nostate).await;
        if document.key() == volume_key(root.id) && document.is_tombstone() {
            break;
        }
    }
    has_status(
        &cloud,
        &mut host,
        &root.id.to_string(),
        VolumeStatus::Deleted,
    )
    .await;

    // Never placed, it never had it; created and deleted in one batch, nobody was told of either.
    cloud.ok(bootable("kept", 1, json!({}))).await;
    let mut large = ending("large", "kept");
    large.flavor =
        serde_json::from_value(json!({ "vcpus": 64, "memory_mb": 64, "disk_gb": 1 })).unwrap();
    assert_eq!(
        cloud.call(large.clone()).await.unwrap_err().code,
        NoValidHost
    );
    cloud.ok(delete(large.id)).await;
    assert_eq!(
        cloud.ok(show_volume("kept")).await.status,
        VolumeStatus::Available
    );
    let brief = ending("brief", "kept");
    let answers = cloud
        .in_one_batch(vec![message(&brief), message(&delete(brief.id))])
        .await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(
        cloud.call(show_volume("kept")).await.unwrap_err().code,
        NotFound
    );
    assert_eq!(disk_used(&cloud, "hv1").await, 1, "the snapshot");
    assert_sound(&cloud).await;
}
