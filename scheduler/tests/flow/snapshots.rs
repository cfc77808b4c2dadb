//! Lives of snapshots: made, volumes made from them, deleted, and what is refused on the way.

use std::collections::BTreeSet;

use berth_common::{
    document::{Document, DocumentKey, Kind, VolumeSource},
    ids::{SnapshotId, VolumeId},
    message::{
        heartbeat::{PoolKind, PoolReport},
        report::{ConvergeStatus, FaultCode, PowerState},
        request::{HostDelete, HostDisable, SnapshotList},
        view::{SnapshotStatus, SnapshotView, VolumeStatus},
    },
    refusal::RefusalCode::{Conflict, Invalid, NoValidHost, NotFound},
    units::{ByteCount, Generation},
};
use serde_json::json;

use crate::{
    ask::{delete_snapshot, delete_volume, extend, show_snapshot, show_volume, snapshot, volume},
    cloud::{Cloud, wait_until},
    host::Host,
    soundness::assert_sound,
};

fn volume_key(id: VolumeId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Volume,
        id: id.as_uuid(),
    }
}

fn snapshot_key(id: SnapshotId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Snapshot,
        id: id.as_uuid(),
    }
}

/// A host does as it is told until it was told of all of these; answers what it was told of them.
async fn converge(host: &mut Host, keys: &[DocumentKey]) -> Vec<Document> {
    let mut left: BTreeSet<DocumentKey> = keys.iter().copied().collect();
    let mut told = Vec::new();
    while !left.is_empty() {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        if left.remove(&document.key()) {
            told.push(document);
        }
    }
    told
}

/// Waits until a snapshot is so, with nobody doing anything.
async fn wait_for(cloud: &Cloud, name: &str, status: SnapshotStatus) -> SnapshotView {
    wait_until(&format!("{name} is {}", status.as_str()), async || {
        cloud.ok(show_snapshot(name)).await.status == status
    })
    .await;
    cloud.ok(show_snapshot(name)).await
}

async fn wait_for_volume(cloud: &Cloud, name: &str, status: VolumeStatus) {
    wait_until(&format!("{name} is {}", status.as_str()), async || {
        cloud.ok(show_volume(name)).await.status == status
    })
    .await;
}

/// A volume that is there on a host.
async fn made(cloud: &Cloud, host: &mut Host, name: &str, size_gb: u64) -> VolumeId {
    let more = json!({ "host": host.name, "format": "raw" });
    let request = volume(name, size_gb, more);
    cloud.ok(request.clone()).await;
    converge(host, &[volume_key(request.id)]).await;
    wait_for_volume(cloud, name, VolumeStatus::Available).await;
    request.id
}

/// A snapshot that is there.
async fn kept(cloud: &Cloud, host: &mut Host, name: &str, volume: &str) -> SnapshotId {
    let request = snapshot(name, volume);
    cloud.ok(request.clone()).await;
    converge(host, &[snapshot_key(request.id)]).await;
    wait_for(cloud, name, SnapshotStatus::Available).await;
    request.id
}

async fn disk_used(cloud: &Cloud, host: &str) -> u64 {
    cloud.show_host(host).await.used_max.disk_gb.get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_lives_and_dies_by_its_documents_and_outlives_its_volume() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let data = made(&cloud, &mut host, "data", 10).await;
    let request = snapshot("monday", "data");
    let view = cloud.ok(request.clone()).await;
    assert_eq!(
        (view.status, view.volume_id, view.size_gb.get()),
        (SnapshotStatus::Creating, data, 10)
    );
    assert_eq!(view.volume.as_ref().unwrap().as_str(), "data");
    assert_eq!(view.host.as_ref().unwrap().as_str(), "hv1");
    assert_eq!(disk_used(&cloud, "hv1").await, 20, "it claims its size");
    assert_sound(&cloud).await;

    // Until it is made, its volume stays as it is.
    let busy =
        "snapshot monday is being made of volume data: wait until it is available, or delete it";
    cloud.refused(delete_volume("data"), Conflict, busy).await;
    cloud.refused(extend("data", 20), Conflict, busy).await;

    let told = converge(&mut host, &[snapshot_key(request.id)]).await;
    let Document::Snapshot(document) = &told[0] else {
        panic!("{told:?}")
    };
    let spec = document.spec.as_ref().unwrap();
    assert_eq!(
        (
            spec.volume.id,
            spec.volume.format.as_str(),
            spec.size_gb.get()
        ),
        (data, "raw", 10)
    );
    wait_for(&cloud, "monday", SnapshotStatus::Available).await;
    // The same again is the same; with another content it is a conflict.
    let again = cloud.ok(request.clone()).await;
    assert_eq!(again.status, SnapshotStatus::Available);
    let mut other = request.clone();
    other.name = "tuesday".parse().unwrap();
    cloud
        .refused(
            other,
            Conflict,
            "exists already and was asked for with another content",
        )
        .await;

    // The volume may grow and go; what is known of it stays.
    cloud.ok(extend("data", 20)).await;
    assert_eq!(disk_used(&cloud, "hv1").await, 30);
    converge(&mut host, &[volume_key(data)]).await;
    cloud.ok(delete_volume("data")).await;
    converge(&mut host, &[volume_key(data)]).await;
    wait_for_volume(&cloud, &data.to_string(), VolumeStatus::Deleted).await;
    let view = cloud.ok(show_snapshot("monday")).await;
    assert_eq!(
        (view.status, view.volume_id, view.volume),
        (SnapshotStatus::Available, data, None)
    );
    assert_eq!(disk_used(&cloud, "hv1").await, 10);

    let view = cloud.ok(delete_snapshot("monday")).await;
    assert_eq!(view.status, SnapshotStatus::Deleting);
    assert_eq!(disk_used(&cloud, "hv1").await, 10);
    let told = converge(&mut host, &[snapshot_key(request.id)]).await;
    assert!(told[0].is_tombstone());
    let id = request.id.to_string();
    wait_for(&cloud, &id, SnapshotStatus::Deleted).await;
    let again = cloud.ok(delete_snapshot(&id)).await;
    assert_eq!(again.status, SnapshotStatus::Deleted);
    cloud
        .refused(show_snapshot("monday"), NotFound, "has no snapshot")
        .await;
    assert_eq!(disk_used(&cloud, "hv1").await, 0);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_from_a_snapshot_which_stays_until_it_is_made() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    Host::join(&cloud, "hv2").await;
    made(&cloud, &mut host, "data", 10).await;
    let request = snapshot("monday", "data");
    cloud.ok(request.clone()).await;
    let from = |size, more: serde_json::Value| {
        let mut body = json!({ "source": { "snapshot": "monday" } });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        volume("copy", size, body)
    };
    cloud
        .refused(
            from(10, json!({})),
            Conflict,
            "snapshot monday is creating: only from an available snapshot a volume can be made",
        )
        .await;
    converge(&mut host, &[snapshot_key(request.id)]).await;
    wait_for(&cloud, "monday", SnapshotStatus::Available).await;
    cloud
        .refused(
            from(9, json!({})),
            Invalid,
            "size_gb must be at least 10, the size of snapshot monday; got 9",
        )
        .await;
    cloud
        .refused(
            from(10, json!({ "host": "hv2" })),
            Conflict,
            "snapshot monday is on host hv1, and a copy of it can only be made there; asked for was host hv2",
        )
        .await;
    cloud
        .refused(
            from(10, json!({ "source": { "snapshot": "nobody" } })),
            NotFound,
            "has no snapshot \"nobody\"",
        )
        .await;
    cloud
        .refused(
            from(
                10,
                json!({ "project": "other", "source": { "snapshot": request.id } }),
            ),
            NotFound,
            "project other has no snapshot",
        )
        .await;
    let copy = from(12, json!({}));
    let view = cloud.ok(copy.clone()).await;
    assert_eq!(view.status, VolumeStatus::Creating);
    assert!(matches!(view.source, Some(VolumeSource::Snapshot(of)) if of.id == request.id));
    cloud
        .refused(
            delete_snapshot("monday"),
            Conflict,
            "volume copy is being made from snapshot monday: wait until it is available, or delete it",
        )
        .await;
    assert_sound(&cloud).await;
    converge(&mut host, &[volume_key(copy.id)]).await;
    wait_for_volume(&cloud, "copy", VolumeStatus::Available).await;
    cloud.ok(delete_snapshot("monday")).await;
    converge(&mut host, &[snapshot_key(request.id)]).await;
    wait_for(&cloud, &request.id.to_string(), SnapshotStatus::Deleted).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_is_refused_with_the_reason() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(volume("unbound", 1, json!({}))).await;
    cloud
        .refused(
            snapshot("s", "unbound"),
            Conflict,
            "volume unbound has no host yet, so there is nothing on it to keep",
        )
        .await;
    let slow = volume("slow", 1, json!({ "host": "hv1" }));
    cloud.ok(slow.clone()).await;
    cloud
        .refused(
            snapshot("s", "slow"),
            Conflict,
            "volume slow was not made yet; take a snapshot of it when it is available",
        )
        .await;
    converge(&mut host, &[volume_key(slow.id)]).await;
    wait_for_volume(&cloud, "slow", VolumeStatus::Available).await;
    cloud
        .refused(
            snapshot("s", "nobody"),
            NotFound,
            "has no volume \"nobody\"",
        )
        .await;
    let mut elsewhere = snapshot("s", &slow.id.to_string());
    elsewhere.project = "other".parse().unwrap();
    cloud
        .refused(elsewhere, NotFound, "project other has no volume")
        .await;
    kept(&cloud, &mut host, "monday", "slow").await;
    cloud
        .refused(
            snapshot("monday", "slow"),
            Conflict,
            "project default already has a snapshot named monday",
        )
        .await;
    // Its host has no room for as much again.
    let total = cloud.show_host("hv1").await.total.disk_gb.get();
    made(&cloud, &mut host, "large", total - 3).await;
    cloud
        .refused(
            snapshot("huge", "large"),
            NoValidHost,
            "host hv1 has no room for snapshot huge",
        )
        .await;
    let disable = HostDisable {
        host: "hv1".to_owned(),
        reason: None,
    };
    cloud.ok(disable).await;
    cloud
        .refused(snapshot("t", "slow"), NoValidHost, "host hv1 is disabled")
        .await;
    cloud.ok(delete_volume("slow")).await;
    cloud
        .refused(
            snapshot("t", "slow"),
            Conflict,
            "volume slow is being deleted",
        )
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_fails_says_why_and_can_be_deleted() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    made(&cloud, &mut host, "data", 5).await;
    let request = snapshot("monday", "data");
    cloud.ok(request.clone()).await;
    let document = host.next().await;
    host.fail(&document, FaultCode::DiskFull, "no space left")
        .await;
    let view = wait_for(&cloud, "monday", SnapshotStatus::Error).await;
    assert_eq!(view.fault.unwrap().message, "no space left");
    // It may still become one, and its volume waits for that.
    cloud
        .refused(
            delete_volume("data"),
            Conflict,
            "is being made of volume data",
        )
        .await;
    cloud.ok(delete_snapshot("monday")).await;
    cloud.ok(delete_volume("data")).await;
    converge(&mut host, &[snapshot_key(request.id)]).await;
    wait_for(&cloud, &request.id.to_string(), SnapshotStatus::Deleted).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_gone_takes_the_snapshots_that_were_deleted_with_it() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    made(&cloud, &mut host, "data", 5).await;
    let id = kept(&cloud, &mut host, "monday", "data").await;
    cloud.ok(snapshot("tuesday", "data")).await;
    cloud.lose(&[host.id]).await;
    let view = cloud.ok(show_snapshot("monday")).await;
    assert_eq!(view.status, SnapshotStatus::Available);
    let view = cloud.ok(show_snapshot("tuesday")).await;
    assert_eq!(view.status, SnapshotStatus::Error);
    let why = view.fault.unwrap().message;
    assert!(
        why.contains("making it goes on when the host is back"),
        "{why}"
    );
    let forget = || HostDelete {
        host: "hv1".to_owned(),
    };
    cloud.ok(delete_snapshot("tuesday")).await;
    cloud.ok(delete_volume("data")).await;
    cloud
        .refused(
            forget(),
            Conflict,
            "host hv1 still has 1 snapshots that nobody deleted: delete them first, or bring the host back",
        )
        .await;
    cloud.ok(delete_snapshot("monday")).await;
    cloud.ok(forget()).await;
    let view = cloud.ok(show_snapshot(&id.to_string())).await;
    assert_eq!(view.status, SnapshotStatus::Deleted);
    assert_sound(&cloud).await;
    // The host is back, and has it still: it is ended there. What nobody knows is left alone.
    host.session += 1;
    host.sequence = 0;
    host.tell(&cloud).await;
    for id in [SnapshotId::new(), id] {
        let converged = ConvergeStatus::Converged;
        host.report(
            snapshot_key(id),
            Generation(7),
            converged,
            PowerState::Nostate,
        )
        .await;
    }
    let document = host.next().await;
    assert_eq!(
        (document.key(), document.is_tombstone()),
        (snapshot_key(id), true)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_takes_over_counts_snapshots_as_before() {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    made(&cloud, &mut host, "data", 5).await;
    kept(&cloud, &mut host, "monday", "data").await;
    cloud.crash_scheduler().await;
    assert_eq!(disk_used(&cloud, "hv1").await, 10);
    let shown = cloud.show_host("hv1").await;
    assert_eq!(shown.projects[0].claimed.disk_gb.get(), 10);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_listed_in_pages() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    made(&cloud, &mut host, "data", 1).await;
    for n in 0..4 {
        cloud.ok(snapshot(&format!("s{n}"), "data")).await;
    }
    let mut after = None;
    let mut names = Vec::new();
    loop {
        let list = SnapshotList {
            project: Some(Default::default()),
            after,
            limit: 3,
        };
        let page = cloud.ok(list).await;
        after = page.snapshots.last().map(|snapshot| snapshot.id);
        let found = page.snapshots.iter();
        names.extend(found.map(|snapshot| snapshot.name.to_string()));
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["s0", "s1", "s2", "s3"]);
    let unknown = SnapshotList {
        after: Some(SnapshotId::new()),
        limit: 1,
        ..SnapshotList::default()
    };
    assert_eq!(cloud.call(unknown).await.unwrap_err().code, NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_lies_in_the_pool_of_its_volume_and_takes_of_that() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    host.pools = ["local", "fast", "thin"].map(pool).to_vec();
    host.tell(&cloud).await;
    for name in ["fast", "thin"] {
        let request = volume(name, 20, json!({ "host": "hv1", "pool": name }));
        cloud.ok(request.clone()).await;
        converge(&mut host, &[volume_key(request.id)]).await;
        wait_for_volume(&cloud, name, VolumeStatus::Available).await;
    }
    let claims = async || {
        let shown = cloud.show_host("hv1").await;
        let pools = shown.pools.iter().map(|pool| pool.claimed_gb.get());
        (shown.used_max.disk_gb.get(), pools.collect::<Vec<_>>())
    };
    let request = snapshot("monday", "fast");
    let view = cloud.ok(request.clone()).await;
    assert_eq!(view.pool.as_str(), "fast");
    let told = converge(&mut host, &[snapshot_key(request.id)]).await;
    let [Document::Snapshot(told)] = told.as_slice() else {
        panic!("{told:?}");
    };
    let spec = told.spec.as_ref().unwrap();
    assert_eq!(
        (spec.volume.pool.as_str(), spec.volume.format.as_str()),
        ("fast", "raw")
    );
    wait_for(&cloud, "monday", SnapshotStatus::Available).await;
    assert_eq!(claims().await, (0, vec![0, 40, 20]));
    // A thick pool has no more than it has; a thin one may promise more.
    cloud
        .refused(
            snapshot("tuesday", "fast"),
            NoValidHost,
            "pool fast of host hv1 has no room for snapshot tuesday: 20 GB are needed, 10 GB are free of 50 GB",
        )
        .await;
    for name in ["t1", "t2", "t3"] {
        let id = kept(&cloud, &mut host, name, "thin").await;
        assert_eq!(
            cloud.ok(show_snapshot(&id.to_string())).await.pool.as_str(),
            "thin"
        );
    }
    assert_eq!(claims().await, (0, vec![0, 40, 80]));
    assert_sound(&cloud).await;

    // Volumes from it may be in any pool, and their host is told where it lies.
    let copy = volume("copy", 22, json!({ "source": { "snapshot": "t1" } }));
    let view = cloud.ok(copy.clone()).await;
    assert_eq!(
        (view.pool.as_str(), view.format.as_str()),
        ("local", "qcow2")
    );
    let told = converge(&mut host, &[volume_key(copy.id)]).await;
    let [Document::Volume(told)] = told.as_slice() else {
        panic!("{told:?}");
    };
    let source = told.spec.as_ref().unwrap().source.as_ref();
    assert!(matches!(source, Some(VolumeSource::Snapshot(of)) if of.pool.as_str() == "thin"));

    // Its volume may go first; what it takes ends with it, also for a scheduler that takes over.
    cloud.ok(delete_volume("thin")).await;
    let mut cloud = cloud;
    cloud.crash_scheduler().await;
    assert_sound(&cloud).await;
    cloud.ok(delete_snapshot("monday")).await;
    converge(&mut host, &[snapshot_key(request.id)]).await;
    wait_for(&cloud, &request.id.to_string(), SnapshotStatus::Deleted).await;
    let shown = cloud.show_host("hv1").await;
    assert_eq!(shown.pools[1].claimed_gb.get(), 20);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_another_pool_is_made_from_a_snapshot_of_a_file() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    host.pools = ["local", "fast"].map(pool).to_vec();
    host.tell(&cloud).await;
    made(&cloud, &mut host, "data", 10).await;
    kept(&cloud, &mut host, "monday", "data").await;
    let more = json!({ "source": { "snapshot": "monday" }, "pool": "fast" });
    let copy = volume("copy", 12, more);
    let view = cloud.ok(copy.clone()).await;
    assert_eq!((view.pool.as_str(), view.format.as_str()), ("fast", "raw"));
    converge(&mut host, &[volume_key(copy.id)]).await;
    // Of the host's disk there is the volume in local, and its snapshot.
    let shown = cloud.show_host("hv1").await;
    assert_eq!(shown.used_max.disk_gb.get(), 20);
    let claimed = shown.pools.iter().map(|pool| pool.claimed_gb.get());
    assert_eq!(claimed.collect::<Vec<_>>(), [20, 12]);
    assert_sound(&cloud).await;
}

/// A pool of a host that reports it, of 50 GB.
fn pool(name: &str) -> PoolReport {
    let kind = match name {
        "local" => PoolKind::Dir,
        "thin" => PoolKind::LvmThin,
        _ => PoolKind::Lvm,
    };
    PoolReport {
        name: name.parse().unwrap(),
        kind,
        total_bytes: ByteCount::clamped(50 << 30),
        used_bytes: ByteCount::ZERO,
        provisioned_bytes: ByteCount::ZERO,
        metadata_percent: None,
    }
}
