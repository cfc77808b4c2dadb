//! Snapshots of volumes, seen from inside the guests that have those: the word that was there at the moment, and the one
//! that came after.

use std::time::Duration;

use berth_common::{
    document::VolumeFormat,
    message::{
        request::{InstanceStop, VolumeCreateSource},
        view::{InstanceView, SnapshotStatus, SnapshotView, VmState, VolumeStatus, VolumeView},
    },
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions, VolumeOptions},
    wait::moment,
    with_cloud,
};

/// How long after a snapshot was asked for the agent is killed.
const MOMENTS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(900),
];

#[test]
fn a_snapshot_holds_what_a_guest_had_written_and_outlives_the_volume() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let first = start(cloud, "first").await?;
        let second = start(cloud, "second").await?;
        for format in [VolumeFormat::Qcow2, VolumeFormat::Raw] {
            let name = format.as_str();
            let data = given(cloud, &first, name, format).await?;
            write(cloud, &first, "A").await?;
            let before = cloud.guest_answers(&first).await?;
            let live = cloud
                .create_snapshot(&format!("{name}-live"), data.id)
                .await?;
            let live = cloud
                .wait_snapshot(live.id, SnapshotStatus::Available)
                .await?;
            assert_eq!(live.volume_id, data.id);
            write(cloud, &first, "B").await?;
            let after = cloud.guest_answers(&first).await?;
            assert_eq!(after.boot_id, before.boot_id, "the guest noticed more");

            holds(cloud, &second, &live, "A").await?;
            assert_eq!(cloud.guest_has(&first, "vdb", 1).await?.word, "B");

            // The volume goes; what was kept of it stays.
            cloud.detach(data.id).await?;
            let cold = cloud
                .create_snapshot(&format!("{name}-cold"), data.id)
                .await?;
            let cold = cloud
                .wait_snapshot(cold.id, SnapshotStatus::Available)
                .await?;
            cloud.delete_volume(data.id).await?;
            cloud.wait_volume(data.id, VolumeStatus::Deleted).await?;
            holds(cloud, &second, &live, "A").await?;
            holds(cloud, &second, &cold, "B").await?;
            for snapshot in [&live, &cold] {
                cloud.delete_snapshot(snapshot.id).await?;
                cloud
                    .wait_snapshot(snapshot.id, SnapshotStatus::Deleted)
                    .await?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_snapshot_is_whole_whenever_the_agent_is_killed_and_whoever_stops_the_guest() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let first = start(cloud, "first").await?;
        let second = start(cloud, "second").await?;
        let data = given(cloud, &first, "data", VolumeFormat::Raw).await?;
        write(cloud, &first, "A").await?;
        for (number, after) in MOMENTS.into_iter().enumerate() {
            let snapshot = cloud
                .create_snapshot(&format!("s{number}"), data.id)
                .await?;
            moment(after).await;
            cloud.hv1_mut().kill_agent()?;
            cloud.hv1_mut().spawn_agent().await?;
            let snapshot = cloud
                .wait_snapshot(snapshot.id, SnapshotStatus::Available)
                .await?;
            holds(cloud, &second, &snapshot, "A").await?;
        }
        // Its guest goes off in the middle: then there is nobody left whose volume it is.
        let snapshot = cloud.create_snapshot("stopped", data.id).await?;
        cloud
            .call(&InstanceStop {
                instance: first.id.to_string(),
                project: Default::default(),
            })
            .await?;
        cloud
            .wait_state(first.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        let snapshot = cloud
            .wait_snapshot(snapshot.id, SnapshotStatus::Available)
            .await?;
        holds(cloud, &second, &snapshot, "A").await
    });
}

/// A guest on a network of its own, which answers.
async fn start(cloud: &TestCloud, name: &str) -> anyhow::Result<InstanceView> {
    let number = u8::try_from(cloud.networks().await?.len())? + 1;
    let network = cloud.create_network(name, number).await?;
    let options = InstanceOptions {
        networks: vec![network.id],
        ..InstanceOptions::default()
    };
    let instance = cloud.create_instance(name, &options).await?;
    let instance = cloud.wait_active(instance.id).await?;
    cloud.guest_answers(&instance).await?;
    Ok(instance)
}

/// An empty volume that a guest has as vdb.
async fn given(
    cloud: &TestCloud,
    guest: &InstanceView,
    name: &str,
    format: VolumeFormat,
) -> anyhow::Result<VolumeView> {
    let options = VolumeOptions {
        format,
        ..VolumeOptions::default()
    };
    let volume = cloud.create_volume(name, &options).await?;
    let volume = cloud.attach(volume.id, guest).await?;
    cloud.guest_has(guest, "vdb", 1).await?;
    Ok(volume)
}

async fn write(cloud: &TestCloud, guest: &InstanceView, word: &str) -> anyhow::Result<()> {
    let kept = cloud.keep(guest, "vdb", word).await?;
    assert_eq!((kept.word.as_str(), kept.failed.as_str()), (word, ""));
    Ok(())
}

/// Checks that another guest finds this word on a volume that is made from a snapshot.
async fn holds(
    cloud: &TestCloud,
    guest: &InstanceView,
    snapshot: &SnapshotView,
    word: &str,
) -> anyhow::Result<()> {
    let options = VolumeOptions {
        size_gb: 2,
        source: Some(VolumeCreateSource::Snapshot(snapshot.id.to_string())),
        ..VolumeOptions::default()
    };
    let volume = cloud
        .create_volume(&format!("of-{}", snapshot.name), &options)
        .await?;
    assert_eq!(volume.host, snapshot.host, "it is where the snapshot is");
    cloud
        .wait_volume(volume.id, VolumeStatus::Available)
        .await?;
    cloud.attach(volume.id, guest).await?;
    let kept = cloud.guest_has(guest, "vdb", 2).await?;
    assert_eq!(kept.word, word, "{}", snapshot.name);
    cloud.detach(volume.id).await?;
    cloud.delete_volume(volume.id).await?;
    cloud.wait_volume(volume.id, VolumeStatus::Deleted).await?;
    Ok(())
}
