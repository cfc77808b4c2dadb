//! Lives of volumes: made, attached, grown, detached, deleted, and what is refused on the way.

use std::{collections::BTreeSet, time::Instant};

use berth_common::{
    document::{
        DesiredPower, DiskBus, Document, DocumentKey, InstanceVolume, Kind, VolumeAccess,
        VolumeFormat, VolumeSource,
    },
    ids::{InstanceId, VolumeId},
    message::{
        heartbeat::{PoolKind, PoolReport},
        report::{ConvergeStatus, Fault, FaultCode, PowerState},
        request::{
            HostDelete, HostDisable, HostSet, InstanceResume, InstanceStart, InstanceStop,
            InstanceSuspend, VolumeAttach, VolumeCreate, VolumeDetach, VolumeList,
        },
        view::{InstanceView, VmState, VolumeStatus, VolumeView},
    },
    refusal::RefusalCode::{self, Conflict, Invalid, NoValidHost, NotFound},
    units::{ByteCount, DiskGb, Generation},
};
use serde_json::{Value, json};

use crate::{
    ask::{attach, delete, delete_volume, detach, extend, hinted, show_volume, small, volume},
    cloud::{Cloud, LIMIT, message, wait_until},
    host::{Host, key, resource},
    soundness::assert_sound,
};

fn volume_key(id: VolumeId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Volume,
        id: id.as_uuid(),
    }
}

/// A host does as it is told until it was told something new of all of these; answers what it was told of them.
async fn converge(host: &mut Host, keys: &[DocumentKey]) -> Vec<Document> {
    let mut left: BTreeSet<DocumentKey> = keys.iter().copied().collect();
    let mut told = Vec::new();
    while !left.is_empty() {
        let (document, is_news) = host.next_told().await;
        host.carry_out(&document, PowerState::Running).await;
        if is_news && left.remove(&document.key()) {
            told.push(document);
        }
    }
    told
}

/// A host does as it is told until a volume is so.
async fn until(cloud: &Cloud, host: &mut Host, name: &str, status: VolumeStatus) -> VolumeView {
    let deadline = Instant::now() + LIMIT;
    loop {
        let view = cloud.ok(show_volume(name)).await;
        if view.status == status {
            return view;
        }
        assert!(Instant::now() < deadline, "not {status:?}: {view:#?}");
        let soon = std::time::Duration::from_millis(20);
        if let Some(document) = host.next_within(soon).await {
            host.carry_out(&document, PowerState::Running).await;
        }
    }
}

/// Waits until a volume is so, with nobody doing anything.
async fn wait_for(cloud: &Cloud, name: &str, status: VolumeStatus) -> VolumeView {
    wait_until(&format!("{name} is {}", status.as_str()), async || {
        cloud.ok(show_volume(name)).await.status == status
    })
    .await;
    cloud.ok(show_volume(name)).await
}

/// An instance that runs on a host.
async fn active(cloud: &Cloud, host: &mut Host, name: &str) -> InstanceView {
    let request = hinted(name, json!({ "host": host.name }));
    cloud.ok(request.clone()).await;
    converge(host, &[key(request.id)]).await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await
}

/// A volume that is there on a host.
async fn made(cloud: &Cloud, host: &mut Host, name: &str, size_gb: u64) -> VolumeView {
    let request = volume(name, size_gb, json!({ "host": host.name }));
    cloud.ok(request.clone()).await;
    converge(host, &[volume_key(request.id)]).await;
    wait_for(cloud, name, VolumeStatus::Available).await
}

fn volumes_of(document: &Document) -> Vec<InstanceVolume> {
    match document {
        Document::Instance(desired) => desired.spec.clone().unwrap().volumes,
        other => panic!("{other:?}"),
    }
}

fn power_of(document: &Document) -> DesiredPower {
    match document {
        Document::Instance(desired) => desired.spec.as_ref().unwrap().power,
        other => panic!("{other:?}"),
    }
}

/// The guest of an instance switches itself off.
async fn goes_off(cloud: &Cloud, host: &mut Host, id: InstanceId, generation: Generation) {
    let settled = ConvergeStatus::Converged;
    host.report(key(id), generation, settled, PowerState::Shutdown)
        .await;
    cloud
        .wait_for_instance(id, "off", |view| view.vm_state == VmState::Stopped)
        .await;
}

fn stop(instance: &str) -> InstanceStop {
    InstanceStop {
        instance: instance.to_owned(),
        project: Default::default(),
    }
}

fn start(instance: &str) -> InstanceStart {
    InstanceStart {
        instance: instance.to_owned(),
        project: Default::default(),
    }
}

/// The next document of a host that says something new of this, not carried out.
async fn next_about(host: &mut Host, key: DocumentKey) -> Document {
    loop {
        let (document, is_news) = host.next_told().await;
        if is_news && document.key() == key {
            return document;
        }
    }
}

async fn disk_used(cloud: &Cloud, host: &str) -> u64 {
    cloud.show_host(host).await.used_max.disk_gb.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_lives_and_dies_by_its_documents() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    let limits = json!({ "total_iops": 500 });
    let request = volume(
        "data",
        10,
        json!({ "host": "hv1", "format": "raw", "limits": limits }),
    );
    let view = cloud.ok(request.clone()).await;
    assert_eq!(view.status, VolumeStatus::Creating);
    assert_eq!(view.host.as_ref().unwrap().as_str(), "hv1");
    assert_eq!(
        (view.generation, view.observed_generation),
        (Generation::FIRST, Generation(0))
    );
    let shown = cloud.show_host("hv1").await;
    assert_eq!(
        shown.used_max.disk_gb.get(),
        11,
        "an instance's GB, and its"
    );
    assert_eq!(shown.projects[0].claimed.disk_gb.get(), 11);
    assert_eq!(shown.instances, 1);

    let told = converge(&mut host, &[volume_key(request.id)]).await;
    let Document::Volume(document) = &told[0] else {
        panic!()
    };
    let spec = document.spec.as_ref().unwrap();
    assert_eq!((spec.size_gb.get(), spec.format.as_str()), (10, "raw"));
    wait_for(&cloud, "data", VolumeStatus::Available).await;

    // The same again is the same; with another content it is a conflict.
    assert_eq!(
        cloud.ok(request.clone()).await.status,
        VolumeStatus::Available
    );
    let mut other = request.clone();
    other.size_gb = serde_json::from_value(json!(11)).unwrap();
    cloud
        .refused(
            other,
            Conflict,
            "exists already and was asked for with another content",
        )
        .await;

    let view = cloud.ok(attach("data", "web")).await;
    assert_eq!(view.status, VolumeStatus::Attaching);
    let to = view.attachment.unwrap();
    assert_eq!((to.instance_id, to.device.as_str()), (web.id, "/dev/vdb"));
    assert_eq!(to.disk_bus, DiskBus::Virtio);
    // Twice is once.
    cloud.ok(attach("data", "web")).await;
    let told = converge(&mut host, &[key(web.id)]).await;
    let has = volumes_of(&told[0]);
    assert_eq!(has.len(), 1);
    assert_eq!(
        (has[0].id, has[0].position, has[0].format.as_str()),
        (request.id, 1, "raw")
    );
    assert_eq!(has[0].limits.total_iops, Some(500));
    wait_for(&cloud, "data", VolumeStatus::InUse).await;
    let shown = cloud.show(web.id).await;
    assert_eq!(shown.volumes.len(), 1);
    assert_eq!(
        (
            shown.volumes[0].name.as_str(),
            shown.volumes[0].device.as_str()
        ),
        ("data", "/dev/vdb")
    );

    // It grows while it is in use; to what it has it need not grow.
    assert_eq!(
        cloud.ok(extend("data", 10)).await.status,
        VolumeStatus::InUse
    );
    let view = cloud.ok(extend("data", 20)).await;
    assert_eq!(
        (view.status, view.size_gb.get()),
        (VolumeStatus::Extending, 20)
    );
    assert_eq!(disk_used(&cloud, "hv1").await, 21);
    converge(&mut host, &[volume_key(request.id)]).await;
    wait_for(&cloud, "data", VolumeStatus::InUse).await;
    // Other changes of the instance say nothing of its volume.
    cloud.ok(stop("web")).await;
    assert_eq!(
        cloud.ok(show_volume("data")).await.status,
        VolumeStatus::InUse
    );
    next_about(&mut host, key(web.id)).await;

    assert_eq!(
        cloud.ok(detach("data")).await.status,
        VolumeStatus::Detaching
    );
    assert_eq!(
        cloud.ok(detach("data")).await.status,
        VolumeStatus::Detaching
    );
    let told = converge(&mut host, &[key(web.id)]).await;
    assert!(volumes_of(&told[0]).is_empty());
    let view = wait_for(&cloud, "data", VolumeStatus::Available).await;
    assert_eq!(view.attachment, None);
    assert!(cloud.show(web.id).await.volumes.is_empty());
    // Of nothing it need not be detached.
    cloud.ok(detach("data")).await;

    assert_eq!(
        cloud.ok(delete_volume("data")).await.status,
        VolumeStatus::Deleting
    );
    assert_eq!(disk_used(&cloud, "hv1").await, 21, "until it is gone");
    let told = converge(&mut host, &[volume_key(request.id)]).await;
    assert!(told[0].is_tombstone());
    let id = request.id.to_string();
    wait_for(&cloud, &id, VolumeStatus::Deleted).await;
    assert_eq!(disk_used(&cloud, "hv1").await, 1);
    // Again by id is harmless, and its name is free.
    assert_eq!(
        cloud.ok(delete_volume(&id)).await.status,
        VolumeStatus::Deleted
    );
    cloud.ok(volume("data", 1, json!({}))).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_without_a_host_gets_that_of_its_first_instance() {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    let image = json!({ "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2" });
    let request = volume("data", 30, json!({ "source": { "image": image } }));
    let view = cloud.ok(request.clone()).await;
    assert_eq!(
        (view.status, view.host, view.generation),
        (VolumeStatus::Available, None, Generation(0))
    );
    assert_eq!(disk_used(&cloud, "hv1").await, 1, "it takes nothing yet");
    // It grows for nothing.
    assert_eq!(cloud.ok(extend("data", 40)).await.size_gb.get(), 40);

    let view = cloud.ok(attach("data", "web")).await;
    assert_eq!(view.host.unwrap().as_str(), "hv1");
    assert_eq!(disk_used(&cloud, "hv1").await, 41);
    assert_sound(&cloud).await;
    cloud.crash_scheduler().await;
    assert_sound(&cloud).await;
    let told = converge(&mut host, &[volume_key(request.id), key(web.id)]).await;
    for document in &told {
        if let Document::Volume(desired) = document {
            let spec = desired.spec.as_ref().unwrap();
            assert!(matches!(spec.source, Some(VolumeSource::Image(_))));
        }
    }
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    // One that nobody was told of is gone at once.
    cloud.ok(volume("never", 1, json!({}))).await;
    assert_eq!(
        cloud.ok(delete_volume("never")).await.status,
        VolumeStatus::Deleted
    );
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_free_only_when_its_host_said_so() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    active(&cloud, &mut host, "db").await;
    made(&cloud, &mut host, "data", 5).await;
    cloud.ok(attach("data", "web")).await;
    let with = converge(&mut host, &[key(web.id)]).await.remove(0);
    wait_for(&cloud, "data", VolumeStatus::InUse).await;

    cloud.ok(detach("data")).await;
    let without = next_about(&mut host, key(web.id)).await;
    // What is said of the document before, late or again, frees nothing; nor does being at work, nor failing.
    host.carry_out(&with, PowerState::Running).await;
    host.report(
        without.key(),
        without.generation(),
        ConvergeStatus::Converging,
        PowerState::Running,
    )
    .await;
    host.fail(&without, FaultCode::Hypervisor, "the guest keeps it")
        .await;
    let view = wait_for(&cloud, "data", VolumeStatus::Error).await;
    assert_eq!(view.fault.unwrap().message, "the guest keeps it");
    assert!(view.attachment.is_some());
    host.carry_out(&with, PowerState::Running).await;
    let words = "volume data is being detached from instance web; attach it when it is available";
    cloud.refused(attach("data", "db"), Conflict, words).await;
    cloud.refused(attach("data", "web"), Conflict, words).await;
    cloud
        .refused(
            delete_volume("data"),
            Conflict,
            "volume data is being detached from instance web; delete it when it is available",
        )
        .await;
    // Its host obeys at last.
    host.carry_out(&without, PowerState::Running).await;
    wait_for(&cloud, "data", VolumeStatus::Available).await;
    cloud.ok(attach("data", "db")).await;
    // Once more, from before: it belongs to the other now.
    host.carry_out(&without, PowerState::Running).await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    let to = cloud.ok(show_volume("data")).await.attachment.unwrap();
    assert_eq!(to.instance.as_str(), "db");
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_its_guest_has_given_back_is_free_although_the_instance_fails_at_something_else()
 {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    let data = made(&cloud, &mut host, "data", 5).await;
    cloud.ok(attach("data", "web")).await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    cloud.ok(detach("data")).await;
    let document = next_about(&mut host, key(web.id)).await;
    let fails = |message: &str, volumes| {
        let mut report = resource(
            document.key(),
            document.generation(),
            ConvergeStatus::Failed,
            PowerState::Running,
        );
        report.fault = Some(Fault {
            code: FaultCode::Network,
            message: message.to_owned(),
        });
        report.volumes = volumes;
        report
    };
    host.say(fails("not seen yet", None)).await;
    let fault_is = async |message: &str| {
        wait_until("the newest words", async || {
            let fault = cloud.show(web.id).await.fault;
            fault.is_some_and(|fault| fault.message == message)
        })
        .await;
    };
    fault_is("not seen yet").await;
    // The same fault in other words is told in the newest.
    host.say(fails("the guest keeps a NIC", Some(vec![data.id])))
        .await;
    fault_is("the guest keeps a NIC").await;
    let view = cloud.ok(show_volume("data")).await;
    assert!(view.attachment.is_some(), "{view:?}");
    host.say(fails("the guest keeps a NIC", Some(Vec::new())))
        .await;
    wait_for(&cloud, "data", VolumeStatus::Available).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_says_what_its_guest_is_waited_for() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    made(&cloud, &mut host, "data", 5).await;
    cloud.ok(attach("data", "web")).await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    cloud.ok(detach("data")).await;
    let document = next_about(&mut host, key(web.id)).await;
    let waits = "waiting for the guest to give back vdb";
    let mut report = resource(
        document.key(),
        document.generation(),
        ConvergeStatus::Converging,
        PowerState::Running,
    );
    report.progress = Some(waits.to_owned());
    host.say_all(vec![report]).await;
    wait_until("the volume says so", async || {
        let view = cloud.ok(show_volume("data")).await;
        view.status == VolumeStatus::Detaching && view.progress.as_deref() == Some(waits)
    })
    .await;
    // Once something else is wanted of the instance, that was said of the past.
    cloud.ok(stop("web")).await;
    let view = cloud.ok(show_volume("data")).await;
    assert_eq!(
        (view.status, view.progress),
        (VolumeStatus::Detaching, None)
    );
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_detachment_takes_the_volume_from_nobody_else() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    active(&cloud, &mut host, "db").await;
    made(&cloud, &mut host, "data", 5).await;
    let from = |instance: &str| VolumeDetach {
        instance: Some(instance.to_owned()),
        ..detach("data")
    };
    let by_id = web.id.to_string();
    // Nobody has it.
    let free = cloud.ok(from("web")).await;
    assert_eq!(free.status, VolumeStatus::Available);
    cloud.ok(attach("data", "web")).await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    assert_eq!(cloud.ok(from("db")).await.status, VolumeStatus::InUse);
    cloud
        .refused(from("nobody"), NotFound, "has no instance \"nobody\"")
        .await;
    // Twice is once.
    for _ in 0..2 {
        let view = cloud.ok(from(&by_id)).await;
        assert_eq!(view.status, VolumeStatus::Detaching);
    }
    until(&cloud, &mut host, "data", VolumeStatus::Available).await;
    cloud.ok(attach("data", "db")).await;
    let db = until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    // Once more, late: it is the other's now.
    for instance in ["web", &by_id] {
        assert_eq!(cloud.ok(from(instance)).await, db);
    }
    assert_eq!(cloud.ok(from("db")).await.status, VolumeStatus::Detaching);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_that_cannot_be_made_is_an_error_with_a_way_out() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    made(&cloud, &mut host, "data", 5).await;
    cloud.ok(attach("data", "web")).await;
    let document = next_about(&mut host, key(web.id)).await;
    host.fail(&document, FaultCode::Hypervisor, "no slot is free")
        .await;
    let view = wait_for(&cloud, "data", VolumeStatus::Error).await;
    assert_eq!(view.fault.unwrap().message, "no slot is free");
    assert_eq!(
        cloud.host_of(web.id).await,
        "hv1",
        "an instance that ran does not move"
    );
    cloud.ok(detach("data")).await;
    until(&cloud, &mut host, "data", VolumeStatus::Available).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_gone_frees_its_volumes() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    for name in ["keep", "drop"] {
        made(&cloud, &mut host, name, 5).await;
        cloud.ok(attach(name, "web")).await;
    }
    until(&cloud, &mut host, "drop", VolumeStatus::InUse).await;
    cloud.ok(delete(web.id)).await;
    assert_eq!(
        cloud.ok(show_volume("keep")).await.status,
        VolumeStatus::Detaching
    );
    cloud
        .refused(
            attach("keep", "web"),
            Conflict,
            "instance web is being deleted",
        )
        .await;
    // One of them shall go as well: after the instance.
    let drop = cloud.ok(delete_volume("drop")).await;
    assert_eq!(drop.status, VolumeStatus::Deleting);
    assert_sound(&cloud).await;
    let tombstone = next_about(&mut host, key(web.id)).await;
    assert!(tombstone.is_tombstone());
    let generation = cloud.ok(show_volume("drop")).await.generation;
    assert_eq!(generation, drop.generation, "its host is not told yet");
    // Twice, as the bus may deliver it.
    host.carry_out(&tombstone, PowerState::Nostate).await;
    host.carry_out(&tombstone, PowerState::Nostate).await;
    wait_for(&cloud, "keep", VolumeStatus::Available).await;
    let told = converge(&mut host, &[volume_key(drop.id)]).await;
    assert!(told[0].is_tombstone());
    wait_for(&cloud, &drop.id.to_string(), VolumeStatus::Deleted).await;
    assert_eq!(disk_used(&cloud, "hv1").await, 5);
    // The name of an instance and a volume of another life.
    active(&cloud, &mut host, "web").await;
    cloud.ok(attach("keep", "web")).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_and_stale_words_about_a_volume_change_nothing() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let data = made(&cloud, &mut host, "data", 5).await;
    cloud.ok(extend("data", 6)).await;
    let larger = next_about(&mut host, volume_key(data.id)).await;
    host.fail(&larger, FaultCode::DiskFull, "the disk is full")
        .await;
    let view = wait_for(&cloud, "data", VolumeStatus::Error).await;
    assert_eq!(view.fault.unwrap().message, "the disk is full");
    let web = active(&cloud, &mut host, "web").await;
    cloud
        .refused(
            attach("data", "web"),
            Conflict,
            "volume data is in error: the disk is full",
        )
        .await;
    // A report of an older generation.
    host.report(
        volume_key(data.id),
        Generation::FIRST,
        ConvergeStatus::Converged,
        PowerState::Nostate,
    )
    .await;
    // A later report with an earlier number.
    host.sequence = 1;
    host.carry_out(&larger, PowerState::Nostate).await;
    host.sequence = 1000;
    // Something that comes after both.
    host.report(
        key(web.id),
        Generation::FIRST,
        ConvergeStatus::Converged,
        PowerState::Shutdown,
    )
    .await;
    cloud
        .wait_for_instance(web.id, "off", |view| view.vm_state == VmState::Stopped)
        .await;
    assert_eq!(
        cloud.ok(show_volume("data")).await.status,
        VolumeStatus::Error
    );
    host.carry_out(&larger, PowerState::Nostate).await;
    wait_for(&cloud, "data", VolumeStatus::Available).await;
    // A host says that something is gone that nobody deleted: it stays, and so does its room.
    host.report(
        volume_key(data.id),
        larger.generation(),
        ConvergeStatus::Gone,
        PowerState::Nostate,
    )
    .await;
    wait_for(&cloud, "data", VolumeStatus::Extending).await;
    assert_eq!(disk_used(&cloud, "hv1").await, 7);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_share_a_hosts_room_with_instances() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    active(&cloud, &mut host, "web").await;
    // 100 GB there are, and 1 is taken.
    made(&cloud, &mut host, "big", 90).await;
    cloud
        .refused(
            volume("more", 10, json!({ "host": "hv1" })),
            NoValidHost,
            "host hv1 has no room for volume more: 10 GB are needed, 9 GB are free",
        )
        .await;
    cloud
        .refused(
            volume("more", 101, json!({ "host": "hv1" })),
            NoValidHost,
            "host hv1 is too small for volume more: 101 GB are needed, its disk has 100 GB",
        )
        .await;
    cloud
        .refused(
            extend("big", 100),
            NoValidHost,
            "host hv1 has no room for volume big: 10 GB are needed, 9 GB are free",
        )
        .await;
    cloud.ok(volume("later", 10, json!({}))).await;
    cloud
        .refused(
            attach("later", "web"),
            NoValidHost,
            "host hv1 has no room for volume later: 10 GB are needed, 9 GB are free",
        )
        .await;
    let view = cloud.ok(show_volume("later")).await;
    assert_eq!((view.host, view.status), (None, VolumeStatus::Available));
    assert_sound(&cloud).await;
    // An instance sees that the room is taken.
    let mut large = small("large");
    large.flavor.disk_gb = serde_json::from_value(json!(10)).unwrap();
    cloud.refused(large, NoValidHost, "GB of disk").await;
    cloud.ok(extend("big", 99)).await;
    cloud.refused(small("one-too-many"), NoValidHost, "").await;
    // With a ratio there is room again: of the sum, never of one.
    let ratio = json!({ "host": "hv1", "disk_allocation_ratio": "2" });
    let set: HostSet = serde_json::from_value(ratio).unwrap();
    cloud.ok(set).await;
    cloud
        .ok(volume("more", 100, json!({ "host": "hv1" })))
        .await;
    cloud
        .refused(
            extend("more", 101),
            NoValidHost,
            "host hv1 is too small for volume more: 101 GB are needed, its disk has 100 GB",
        )
        .await;
    assert_sound(&cloud).await;
}

fn pool(name: &str, kind: PoolKind, [total, used, provisioned]: [u64; 3]) -> PoolReport {
    let gb = |gb| ByteCount::from_gb(DiskGb::clamped(gb));
    PoolReport {
        name: name.parse().unwrap(),
        kind,
        total_bytes: gb(total),
        used_bytes: gb(used),
        provisioned_bytes: gb(provisioned),
        metadata_percent: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_have_their_own_room_and_are_refused_where_they_are_not() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let host = hosts.get_mut("hv1").unwrap();
    host.pools = vec![
        pool("local", PoolKind::Dir, [100, 1, 0]),
        pool("fast", PoolKind::Lvm, [50, 20, 0]),
        pool("thin", PoolKind::LvmThin, [40, 1, 0]),
    ];
    host.tell(&cloud).await;
    active(&cloud, host, "web").await;
    // The pool's room, not the host's; and raw without being asked for.
    let on =
        |name: &str, size, pool: &str| volume(name, size, json!({ "host": "hv1", "pool": pool }));
    let request = on("f1", 25, "fast");
    cloud.ok(request.clone()).await;
    let told = converge(host, &[volume_key(request.id)]).await;
    let [Document::Volume(told)] = told.as_slice() else {
        panic!("{told:?}");
    };
    let spec = told.spec.as_ref().unwrap();
    assert_eq!(
        (spec.pool.as_str(), spec.format),
        ("fast", VolumeFormat::Raw)
    );
    let view = wait_for(&cloud, "f1", VolumeStatus::Available).await;
    assert_eq!(
        (view.pool.as_str(), view.format),
        ("fast", VolumeFormat::Raw)
    );
    let text =
        "pool fast of host hv1 has no room for volume f2: 6 GB are needed, 5 GB are free of 50 GB";
    cloud.refused(on("f2", 6, "fast"), NoValidHost, text).await;
    let text =
        "pool fast of host hv1 has no room for volume f1: 6 GB are needed, 5 GB are free of 50 GB";
    cloud.refused(extend("f1", 31), NoValidHost, text).await;
    // A thin one may promise more than it has.
    for name in ["t1", "t2", "t3"] {
        cloud.ok(on(name, 40, "thin")).await;
    }
    let text = "pool thin of host hv1 is too small for volume t4: 41 GB are needed, it has 40 GB";
    cloud.refused(on("t4", 41, "thin"), NoValidHost, text).await;
    assert_sound(&cloud).await;
    let shown = cloud.show_host("hv1").await;
    assert_eq!(
        shown.used_max.disk_gb,
        DiskGb::clamped(1),
        "the instance's alone"
    );
    let claimed: Vec<(&str, u64)> = shown
        .pools
        .iter()
        .map(|pool| (pool.report.name.as_str(), pool.claimed_gb.get()))
        .collect();
    assert_eq!(claimed, [("local", 0), ("fast", 25), ("thin", 120)]);
    // All of the host's disk is there for others.
    cloud.ok(on("l1", 99, "local")).await;
    assert_sound(&cloud).await;
    // A host without the pool, named or chosen by attaching.
    let text = "host hv2 has no storage pool fast, which volume f3 shall be in; it has local";
    let elsewhere = volume("f3", 1, json!({ "host": "hv2", "pool": "fast" }));
    cloud.refused(elsewhere, NoValidHost, text).await;
    active(&cloud, hosts.get_mut("hv2").unwrap(), "other").await;
    cloud.ok(volume("f3", 1, json!({ "pool": "fast" }))).await;
    cloud
        .refused(attach("f3", "other"), NoValidHost, text)
        .await;
    cloud.ok(attach("f3", "web")).await;
    let host = hosts.get_mut("hv1").unwrap();
    let view = until(&cloud, host, "f3", VolumeStatus::InUse).await;
    assert_eq!(view.host.unwrap().as_str(), "hv1");
    // Only files are stored otherwise.
    let text = "format must be raw or null in pool fast: on the hosts that have it now it is of logical volumes";
    let qcow2 = |name: &str, mut more: Value| {
        more["format"] = json!("qcow2");
        volume(name, 1, more)
    };
    let anywhere = qcow2("q", json!({ "pool": "fast" }));
    cloud.refused(anywhere, Conflict, text).await;
    // One that is files elsewhere.
    let other = hosts.get_mut("hv2").unwrap();
    other.pools = vec![pool("fast", PoolKind::Dir, [50, 20, 0])];
    other.tell(&cloud).await;
    let here = qcow2("q", json!({ "pool": "fast", "host": "hv1" }));
    cloud.refused(here, Conflict, text).await;
    cloud.ok(qcow2("q1", json!({ "pool": "fast" }))).await;
    let text = "pool fast of host hv1 is of logical volumes, which hold raw volumes only, and volume q1 shall be qcow2";
    cloud.refused(attach("q1", "web"), NoValidHost, text).await;
    cloud.ok(attach("q1", "other")).await;
    let there = qcow2("q2", json!({ "pool": "fast", "host": "hv2" }));
    let view = cloud.ok(there).await;
    assert_eq!(view.format, VolumeFormat::Qcow2);
    // It has room of its own, and is full as one of logical volumes is.
    let text = "pool fast of host hv2 has no room for volume q3: 29 GB are needed, 28 GB are free of 50 GB";
    let full = volume("q3", 29, json!({ "pool": "fast", "host": "hv2" }));
    cloud.refused(full, NoValidHost, text).await;
    // Nobody has it, so nothing is known of it yet.
    cloud.ok(qcow2("q4", json!({ "pool": "later" }))).await;
    let view = cloud.ok(volume("plain", 1, json!({}))).await;
    assert_eq!(
        (view.pool.as_str(), view.format),
        ("local", VolumeFormat::Qcow2)
    );
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_from_another_one_on_its_host() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let host = hosts.get_mut("hv1").unwrap();
    let web = active(&cloud, host, "web").await;
    let from = |name: &str, size: u64, mut more: Value| {
        more["source"] = json!({ "volume": "golden" });
        volume(name, size, more)
    };
    cloud
        .refused(
            from("copy", 5, json!({})),
            NotFound,
            "project default has no volume \"golden\", neither by id nor by name",
        )
        .await;
    cloud.ok(volume("golden", 5, json!({}))).await;
    cloud
        .refused(
            from("copy", 5, json!({})),
            Conflict,
            "volume golden has no host yet, so there is nothing on it to copy",
        )
        .await;
    cloud.ok(delete_volume("golden")).await;
    let golden = cloud
        .ok(volume(
            "golden",
            5,
            json!({ "host": "hv1", "format": "raw" }),
        ))
        .await;
    cloud
        .refused(
            from("copy", 5, json!({})),
            Conflict,
            "volume golden is creating: only an available volume can be copied",
        )
        .await;
    converge(host, &[volume_key(golden.id)]).await;
    wait_for(&cloud, "golden", VolumeStatus::Available).await;
    cloud
        .refused(
            from("copy", 4, json!({})),
            Invalid,
            "size_gb must be at least 5, the size of volume golden; got 4",
        )
        .await;
    cloud
        .refused(
            from("copy", 5, json!({ "host": "hv2" })),
            Conflict,
            "volume golden is on host hv1, and a copy of it can only be made there; asked for was host hv2",
        )
        .await;
    let copy = cloud.ok(from("copy", 6, json!({ "host": "hv1" }))).await;
    assert_eq!(copy.host.unwrap().as_str(), "hv1");
    let words =
        "volume copy is being made from volume golden: wait until it is available, or delete it";
    cloud
        .refused(delete_volume("golden"), Conflict, words)
        .await;
    cloud
        .refused(attach("golden", "web"), Conflict, words)
        .await;
    cloud.refused(extend("golden", 9), Conflict, words).await;
    let copy = copy.id;
    let document = next_about(host, volume_key(copy)).await;
    let Document::Volume(desired) = &document else {
        panic!()
    };
    let source = desired.spec.as_ref().unwrap().source.clone();
    let Some(VolumeSource::Volume(source)) = source else {
        panic!("{source:?}")
    };
    assert_eq!((source.id, source.format.as_str()), (golden.id, "raw"));
    host.carry_out(&document, PowerState::Nostate).await;
    wait_for(&cloud, &copy.to_string(), VolumeStatus::Available).await;
    cloud.ok(attach("golden", "web")).await;
    cloud
        .refused(
            from("late", 5, json!({})),
            Conflict,
            "volume golden is attached to instance web: only a volume that no instance has can be copied",
        )
        .await;
    converge(host, &[key(web.id)]).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_attached_is_refused_with_the_way_out() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let one = hosts.get_mut("hv1").unwrap();
    let web = active(&cloud, one, "web").await;
    active(&cloud, one, "db").await;
    made(&cloud, one, "data", 1).await;
    let two = hosts.get_mut("hv2").unwrap();
    active(&cloud, two, "far").await;
    let fresh = cloud.ok(hinted("fresh", json!({ "host": "hv1" }))).await;

    let refused = async |volume: &str, instance: &str, code: RefusalCode, words: &str| {
        cloud.refused(attach(volume, instance), code, words).await;
        assert_sound(&cloud).await;
    };
    refused(
        "data",
        "far",
        Conflict,
        "volume data is on host hv1, and instance far on host hv2: attach it to an instance on hv1, or attach a volume \
         that has no host yet",
    )
    .await;
    refused(
        "data",
        "fresh",
        Conflict,
        "instance fresh was not built yet, and may still get another host; attach the volume when it is built",
    )
    .await;
    refused("data", "nobody", NotFound, "has no instance \"nobody\"").await;
    refused(
        "nothing",
        "web",
        NotFound,
        "project default has no volume \"nothing\", neither by id nor by name",
    )
    .await;
    let mut elsewhere = volume("theirs", 1, json!({}));
    elsewhere.project = "other".parse().unwrap();
    cloud.ok(elsewhere.clone()).await;
    refused(
        &elsewhere.id.to_string(),
        "web",
        Invalid,
        "volume theirs is of project other, and instance web of project default: they must be of the same",
    )
    .await;
    let mut huge = small("huge");
    huge.flavor.memory_mb = serde_json::from_value(json!(1_000_000)).unwrap();
    let huge_id = huge.id.to_string();
    cloud.refused(huge, NoValidHost, "").await;
    refused(
        "data",
        &huge_id,
        Conflict,
        "instance huge has no host; repeat the request that created it, or delete it",
    )
    .await;

    cloud.ok(attach("data", "web")).await;
    refused(
        "data",
        "db",
        Conflict,
        "volume data is attached to instance web; detach it there first",
    )
    .await;
    let mut read_only = attach("data", "web");
    read_only.access = VolumeAccess::ReadOnly;
    cloud
        .refused(
            read_only,
            Conflict,
            "volume data is attached to instance web already, with access read_write; detach it first to attach it with \
             access read_only",
        )
        .await;
    cloud
        .refused(
            delete_volume("data"),
            Conflict,
            "volume data is attached to instance web; detach it first",
        )
        .await;
    for n in 2..=8 {
        cloud.ok(volume(&format!("v{n}"), 1, json!({}))).await;
        let view = cloud.ok(attach(&format!("v{n}"), "web")).await;
        let device = format!("/dev/vd{}", char::from(b'a' + n));
        assert_eq!(view.attachment.unwrap().device, device);
    }
    cloud.ok(volume("v9", 1, json!({}))).await;
    refused(
        "v9",
        "web",
        Conflict,
        "instance web has 8 volumes on the bus virtio, which is the most; detach one first, or attach it on the bus scsi",
    )
    .await;
    // Behind a SCSI controller there is room for more, up to a limit of all together.
    let scsi = |name: &str| VolumeAttach {
        disk_bus: DiskBus::Scsi,
        ..attach(name, "web")
    };
    for n in 10..=25 {
        let name = format!("v{n}");
        cloud.ok(volume(&name, 1, json!({}))).await;
        let to = cloud.ok(scsi(&name)).await.attachment.unwrap();
        let device = format!("/dev/sd{}", char::from(b'a' + n - 1));
        assert_eq!((to.device, to.disk_bus), (device, DiskBus::Scsi));
    }
    cloud
        .refused(
            scsi("v9"),
            Conflict,
            "instance web has 24 volumes, which is the most; detach one first",
        )
        .await;
    cloud
        .refused(
            attach("v10", "web"),
            Conflict,
            "volume v10 is attached to instance web already, on the bus scsi; detach it first to attach it on the bus virtio",
        )
        .await;
    let one = hosts.get_mut("hv1").unwrap();
    for n in 10..=25 {
        let name = format!("v{n}");
        cloud.ok(detach(&name)).await;
        until(&cloud, one, &name, VolumeStatus::Available).await;
    }
    // One that is being detached keeps its place until it is gone; then it is the first to be taken.
    cloud.ok(detach("v3")).await;
    refused("v9", "web", Conflict, "instance web has 8 volumes").await;
    let one = hosts.get_mut("hv1").unwrap();
    until(&cloud, one, "v3", VolumeStatus::Available).await;
    let view = cloud.ok(attach("v9", "web")).await;
    assert_eq!(view.attachment.unwrap().device, "/dev/vdd");
    let devices: Vec<String> = cloud
        .show(web.id)
        .await
        .volumes
        .into_iter()
        .map(|volume| volume.device)
        .collect();
    assert!(devices.is_sorted() && devices.len() == 8, "{devices:?}");
    cloud.ok(delete(fresh.id)).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_on_the_bus_that_was_asked_for() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await.id;
    let data = made(&cloud, &mut host, "data", 1).await.id;
    for (disk_bus, device) in [
        (DiskBus::Scsi, "/dev/sdb"),
        (DiskBus::Virtio, "/dev/vdb"),
        (DiskBus::Scsi, "/dev/sdb"),
    ] {
        let asked = VolumeAttach {
            disk_bus,
            ..attach("data", "web")
        };
        cloud.ok(asked.clone()).await;
        // Twice is once.
        let to = cloud.ok(asked).await.attachment.unwrap();
        assert_eq!((to.device.as_str(), to.disk_bus), (device, disk_bus));
        let told = converge(&mut host, &[key(web)]).await;
        let has = volumes_of(&told[0]);
        assert_eq!((has[0].id, has[0].position), (data, 1));
        assert_eq!(has[0].disk_bus, disk_bus);
        let shown = cloud.show(web).await.volumes;
        assert_eq!(
            (shown[0].device.as_str(), shown[0].disk_bus),
            (device, disk_bus)
        );
        cloud.ok(detach("data")).await;
        until(&cloud, &mut host, "data", VolumeStatus::Available).await;
    }
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disks_of_a_suspended_instance_stay_as_its_memory_knows_them() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    active(&cloud, &mut host, "web").await;
    for name in ["has", "wants"] {
        made(&cloud, &mut host, name, 1).await;
    }
    cloud.ok(attach("has", "web")).await;
    until(&cloud, &mut host, "has", VolumeStatus::InUse).await;
    let web = || ("web".to_owned(), Default::default());
    let (instance, project) = web();
    cloud.ok(InstanceSuspend { instance, project }).await;
    let words = "instance web is suspended, and its memory knows the disks it has; resume it first";
    cloud.refused(attach("wants", "web"), Conflict, words).await;
    cloud.refused(detach("has"), Conflict, words).await;
    // What is so already is no change.
    cloud.ok(attach("has", "web")).await;
    cloud.ok(extend("has", 2)).await;
    let (instance, project) = web();
    cloud.ok(InstanceResume { instance, project }).await;
    cloud.ok(attach("wants", "web")).await;
    cloud.ok(detach("has")).await;
    until(&cloud, &mut host, "wants", VolumeStatus::InUse).await;
    until(&cloud, &mut host, "has", VolumeStatus::Available).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_suspended_only_with_the_disks_it_is_known_to_have() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let fresh = hinted("web", json!({ "host": "hv1" }));
    cloud.ok(fresh.clone()).await;
    let suspend = || InstanceSuspend {
        instance: "web".to_owned(),
        project: Default::default(),
    };
    cloud
        .refused(
            suspend(),
            Conflict,
            "instance web is being built; suspend it when it is active",
        )
        .await;
    converge(&mut host, &[key(fresh.id)]).await;
    cloud
        .wait_for_instance(fresh.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    made(&cloud, &mut host, "data", 1).await;
    cloud.ok(attach("data", "web")).await;
    cloud
        .refused(
            suspend(),
            Conflict,
            "volume data is being attached to instance web; suspend it when the volume is in use, or detach the volume \
             first",
        )
        .await;
    let attaching = next_about(&mut host, key(fresh.id)).await;
    host.fail(&attaching, FaultCode::Hypervisor, "no slot is free")
        .await;
    wait_for(&cloud, "data", VolumeStatus::Error).await;
    host.report(
        key(fresh.id),
        attaching.generation(),
        ConvergeStatus::Converging,
        PowerState::Running,
    )
    .await;
    wait_for(&cloud, "data", VolumeStatus::Attaching).await;
    cloud.ok(detach("data")).await;
    cloud
        .refused(
            suspend(),
            Conflict,
            "volume data is being detached from instance web; suspend it when the volume is available",
        )
        .await;
    until(&cloud, &mut host, "data", VolumeStatus::Available).await;
    cloud.ok(attach("data", "web")).await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    cloud.ok(suspend()).await;
    cloud.ok(suspend()).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_may_only_read_does_not_grow() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    active(&cloud, &mut host, "web").await;
    made(&cloud, &mut host, "data", 5).await;
    let mut read_only = attach("data", "web");
    read_only.access = VolumeAccess::ReadOnly;
    cloud.ok(read_only).await;
    let words = |way_out: &str| {
        format!(
            "volume data is attached to instance web read-only, and QEMU cannot grow a disk that a guest may only \
             read; {way_out}"
        )
    };
    let refused = async |way_out: &str| {
        cloud
            .refused(extend("data", 6), Conflict, &words(way_out))
            .await;
    };
    refused("detach it first").await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    refused("detach it first").await;
    // What it has already is no change.
    cloud.ok(extend("data", 5)).await;
    cloud.ok(detach("data")).await;
    refused("extend it when it is available").await;
    assert_eq!(disk_used(&cloud, "hv1").await, 6);
    until(&cloud, &mut host, "data", VolumeStatus::Available).await;
    cloud.ok(extend("data", 6)).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_switched_itself_off_stays_off_when_its_volumes_change() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    made(&cloud, &mut host, "data", 1).await;
    let generation = cloud.show(web.id).await.generation;
    goes_off(&cloud, &mut host, web.id, generation).await;
    assert_eq!(
        cloud.show(web.id).await.desired_power,
        DesiredPower::Running
    );

    cloud.ok(attach("data", "web")).await;
    let document = next_about(&mut host, key(web.id)).await;
    assert_eq!(volumes_of(&document).len(), 1);
    assert_eq!(power_of(&document), DesiredPower::Stopped);
    host.carry_out(&document, PowerState::Shutdown).await;
    wait_for(&cloud, "data", VolumeStatus::InUse).await;

    // A start that its host has yet to confirm is no wish of the past, although the guest is still off.
    cloud.ok(start("web")).await;
    let starting = next_about(&mut host, key(web.id)).await;
    assert_eq!(power_of(&starting), DesiredPower::Running);
    cloud.ok(detach("data")).await;
    let document = next_about(&mut host, key(web.id)).await;
    assert_eq!(power_of(&document), DesiredPower::Running);
    host.carry_out(&document, PowerState::Running).await;
    wait_for(&cloud, "data", VolumeStatus::Available).await;

    // Nor is one that its host failed at: without the volume it may well succeed.
    cloud.ok(attach("data", "web")).await;
    let document = next_about(&mut host, key(web.id)).await;
    host.fail(&document, FaultCode::Hypervisor, "the volume is lost")
        .await;
    wait_for(&cloud, "data", VolumeStatus::Error).await;
    cloud.ok(detach("data")).await;
    let document = next_about(&mut host, key(web.id)).await;
    assert_eq!(power_of(&document), DesiredPower::Running);
    host.carry_out(&document, PowerState::Running).await;
    wait_for(&cloud, "data", VolumeStatus::Available).await;

    cloud.ok(attach("data", "web")).await;
    let document = next_about(&mut host, key(web.id)).await;
    host.carry_out(&document, PowerState::Running).await;
    wait_for(&cloud, "data", VolumeStatus::InUse).await;
    goes_off(&cloud, &mut host, web.id, document.generation()).await;
    cloud.ok(detach("data")).await;
    let document = next_about(&mut host, key(web.id)).await;
    assert!(volumes_of(&document).is_empty());
    assert_eq!(power_of(&document), DesiredPower::Stopped);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_in_one_batch_is_done_in_its_order() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    let data = volume("data", 5, json!({}));
    let brief = volume("brief", 5, json!({ "host": "hv1" }));
    let large = volume("large", 96, json!({ "host": "hv1" }));
    let answers = cloud
        .in_one_batch(vec![
            message(&data),
            message(&attach("data", "web")),
            message(&brief),
            message(&large),
            message(&detach("data")),
            message(&delete_volume("brief")),
            message(&data),
            message(&brief),
        ])
        .await;
    let view =
        |n: usize| -> VolumeView { serde_json::from_value(answers[n].clone().unwrap()).unwrap() };
    assert_eq!(view(1).status, VolumeStatus::Attaching);
    assert_eq!(
        answers[3].as_ref().unwrap_err().message,
        "host hv1 has no room for volume large: 96 GB are needed, 89 GB are free"
    );
    assert_eq!(view(4).status, VolumeStatus::Detaching);
    assert_eq!(view(5).status, VolumeStatus::Deleting);
    assert_eq!(view(6).status, VolumeStatus::Detaching);
    assert_eq!(view(7).status, VolumeStatus::Deleting);
    assert_sound(&cloud).await;
    converge(&mut host, &[key(web.id), volume_key(data.id)]).await;
    until(&cloud, &mut host, "data", VolumeStatus::Available).await;
    until(
        &cloud,
        &mut host,
        &brief.id.to_string(),
        VolumeStatus::Deleted,
    )
    .await;
    assert_eq!(disk_used(&cloud, "hv1").await, 6);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_down_or_disabled_gets_no_new_volume_and_is_not_forgotten_with_one() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let web = active(&cloud, &mut host, "web").await;
    made(&cloud, &mut host, "data", 5).await;
    cloud.ok(attach("data", "web")).await;
    until(&cloud, &mut host, "data", VolumeStatus::InUse).await;
    let slow = cloud.ok(volume("slow", 1, json!({ "host": "hv1" }))).await;
    let disable = HostDisable {
        host: "hv1".to_owned(),
        reason: None,
    };
    cloud.ok(disable).await;
    let request = || volume("new", 1, json!({ "host": "hv1" }));
    cloud
        .refused(
            request(),
            NoValidHost,
            "host hv1 is disabled: it gets nothing new until it is enabled",
        )
        .await;
    cloud.lose(&[host.id]).await;
    let enable = berth_common::message::request::HostEnable {
        host: "hv1".to_owned(),
    };
    cloud.ok(enable).await;
    cloud
        .refused(
            request(),
            NoValidHost,
            "host hv1 is down: nobody there would make the volume",
        )
        .await;
    let view = cloud.ok(show_volume("slow")).await;
    assert_eq!(view.status, VolumeStatus::Error);
    let why = view.fault.unwrap().message;
    assert!(
        why.contains("its host is down") && why.contains("delete the volume to have it elsewhere"),
        "{why}"
    );
    let forget = || HostDelete {
        host: "hv1".to_owned(),
    };
    cloud
        .refused(
            forget(),
            Conflict,
            "host hv1 still has 1 instances that nobody deleted",
        )
        .await;
    cloud.ok(delete(web.id)).await;
    cloud
        .refused(
            forget(),
            Conflict,
            "host hv1 still has 2 volumes that nobody deleted: delete them first, or bring the host back",
        )
        .await;
    cloud.ok(delete_volume("slow")).await;
    cloud.ok(delete_volume("data")).await;
    cloud.ok(forget()).await;
    assert_eq!(
        cloud.ok(show_volume(&slow.id.to_string())).await.status,
        VolumeStatus::Deleted
    );
    assert_sound(&cloud).await;
    // The host is back, and has it still: it is ended there.
    host.session += 1;
    host.sequence = 0;
    host.tell(&cloud).await;
    host.report(
        volume_key(slow.id),
        Generation(7),
        ConvergeStatus::Converged,
        PowerState::Nostate,
    )
    .await;
    let document = next_about(&mut host, volume_key(slow.id)).await;
    assert!(document.is_tombstone());
    assert_eq!(document.generation(), Generation(8));
    // What nobody knows, and what somebody may want, is left alone.
    let unbound = cloud.ok(volume("unbound", 1, json!({}))).await;
    for id in [VolumeId::new(), unbound.id] {
        host.report(
            volume_key(id),
            Generation(3),
            ConvergeStatus::Converged,
            PowerState::Nostate,
        )
        .await;
    }
    active(&cloud, &mut host, "after").await;
    let rows = berth_store::documents::of_host(cloud.pool(), host.id)
        .await
        .unwrap();
    assert!(
        rows.iter()
            .all(|row| row.key.kind != Kind::Volume || row.key == volume_key(slow.id)),
        "{rows:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_listed_in_pages() {
    let cloud = Cloud::start().await;
    for n in 0..5 {
        let mut request: VolumeCreate = volume(&format!("v{n}"), 1, json!({}));
        if n == 4 {
            request.project = "other".parse().unwrap();
        }
        cloud.ok(request).await;
    }
    let mut after = None;
    let mut names = Vec::new();
    loop {
        let list = VolumeList {
            project: Some(Default::default()),
            after,
            limit: 3,
        };
        let page = cloud.ok(list).await;
        assert!(page.volumes.len() <= 3);
        after = page.volumes.last().map(|volume| volume.id);
        names.extend(
            page.volumes
                .into_iter()
                .map(|volume| volume.name.to_string()),
        );
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["v0", "v1", "v2", "v3"]);
    let all = VolumeList {
        limit: 1000,
        ..VolumeList::default()
    };
    assert_eq!(cloud.ok(all).await.volumes.len(), 5);
    let unknown = VolumeList {
        after: Some(VolumeId::new()),
        limit: 1,
        ..VolumeList::default()
    };
    assert_eq!(cloud.call(unknown).await.unwrap_err().code, NotFound);
}
