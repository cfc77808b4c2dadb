//! A storage pool in a directory, whose disk comes after the agent, seen from inside a guest that has a volume there.

use berth_common::{
    document::VolumeFormat,
    message::{
        heartbeat::PoolKind,
        request::{HostShow, VolumeCreateSource},
        view::{HostView, SnapshotStatus, VolumeStatus},
    },
    names::PoolName,
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions, VolumeOptions},
    wait::{Seen, wait_for},
    with_cloud,
};

/// Where the pool's disk is mounted, on a hypervisor of the test's own.
const PLACE: &str = "/run/ssd";

/// Waits until the host tells this of its pool.
async fn wait_pool(cloud: &TestCloud, works: bool, reason: &str) -> anyhow::Result<HostView> {
    wait_for("the host to tell of its pool", CONVERGE_LIMIT, async || {
        let request = HostShow {
            host: "hv1".to_owned(),
        };
        let host = cloud.call(&request).await?;
        let health = host.health.iter().find(|part| part.part == "pool ssd");
        let is_so = health.is_some_and(|part| {
            let told = part.reason.as_deref().unwrap_or_default();
            part.ok == works && told.contains(reason)
        });
        let seen = format!("{:?}, {:?}", host.health, host.pools);
        Ok(if is_so {
            Seen::Done(host)
        } else {
            Seen::NotYet(seen)
        })
    })
    .await
}

#[test]
fn a_guest_has_a_volume_on_a_disk_that_came_after_the_agent() {
    let builder = TestCloud::builder()
        .agent_config("storage.pools.ssd.type", "dir")
        .agent_config("storage.pools.ssd.path", PLACE);
    with_cloud(builder, async |cloud| {
        let host = wait_pool(cloud, false, "is its disk mounted?").await?;
        assert!(host.pools.iter().all(|it| it.report.name.is_local()));
        cloud.hv1().text(&["mkdir", "-p", PLACE]).await?;
        let mount = ["mount", "-t", "tmpfs", "-o", "size=12g,mode=755"];
        let mount = [&mount[..], &["berth-test", PLACE]].concat();
        cloud.hv1().text(&mount).await?;
        let host = wait_pool(cloud, true, "").await?;
        let ssd: PoolName = "ssd".parse()?;
        let pool = host.pools.iter().find(|it| it.report.name == ssd);
        assert_eq!(pool.map(|it| it.report.kind), Some(PoolKind::Dir));

        let network = cloud.create_network("net", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let guest = cloud.create_instance("web", &options).await?;
        let guest = cloud.wait_active(guest.id).await?;
        let booted = cloud.guest_answers(&guest).await?.boot_id;
        let options = VolumeOptions {
            format: VolumeFormat::Qcow2,
            pool: ssd.clone(),
            ..VolumeOptions::default()
        };
        let data = cloud.create_volume("data", &options).await?;
        cloud.attach(data.id, &guest).await?;
        cloud.guest_has(&guest, "vdb", 1).await?;
        let kept = cloud.keep(&guest, "vdb", "A").await?;
        assert_eq!((kept.word.as_str(), kept.failed.as_str()), ("A", ""));
        let snapshot = cloud.create_snapshot("monday", data.id).await?;
        cloud
            .wait_snapshot(snapshot.id, SnapshotStatus::Available)
            .await?;
        cloud.keep(&guest, "vdb", "B").await?;
        cloud.extend_volume(data.id, 2, VolumeStatus::InUse).await?;
        assert_eq!(cloud.guest_has(&guest, "vdb", 2).await?.word, "B");
        assert_eq!(cloud.guest_answers(&guest).await?.boot_id, booted);
        let files = cloud.hv1().text(&["find", PLACE, "-type", "f"]).await?;
        let expected = [
            format!("{PLACE}/.berth-pool"),
            format!("{PLACE}/snapshots/{}.qcow2", snapshot.id),
            format!("{PLACE}/volumes/{}.qcow2", data.id),
        ];
        let mut files: Vec<&str> = files.lines().collect();
        files.sort_unstable();
        assert_eq!(files, expected);

        // What it was, from there to the host's own disk.
        cloud.detach(data.id).await?;
        let options = VolumeOptions {
            size_gb: 2,
            source: Some(VolumeCreateSource::Snapshot(snapshot.id.to_string())),
            ..VolumeOptions::default()
        };
        let copy = cloud.create_volume("copy", &options).await?;
        cloud.wait_volume(copy.id, VolumeStatus::Available).await?;
        cloud.attach(copy.id, &guest).await?;
        assert_eq!(cloud.guest_has(&guest, "vdb", 2).await?.word, "A");
        cloud.detach(copy.id).await?;

        // Its disk goes: nothing is gone with it, and it is as it was when that is back.
        let elsewhere = "/run/elsewhere";
        cloud.hv1().text(&["mkdir", elsewhere]).await?;
        let moved = ["mount", "--move", PLACE, elsewhere];
        cloud.hv1().text(&moved).await?;
        wait_pool(cloud, false, "is its disk mounted?").await?;
        cloud.delete_volume(data.id).await?;
        cloud.delete_snapshot(snapshot.id).await?;
        cloud.delete_volume(copy.id).await?;
        cloud.wait_volume(copy.id, VolumeStatus::Deleted).await?;
        assert_eq!(
            cloud.show_volume(data.id).await?.status,
            VolumeStatus::Deleting
        );
        let back = ["mount", "--move", elsewhere, PLACE];
        cloud.hv1().text(&back).await?;
        cloud.wait_volume(data.id, VolumeStatus::Deleted).await?;
        cloud
            .wait_snapshot(snapshot.id, SnapshotStatus::Deleted)
            .await?;
        let files = cloud.hv1().text(&["find", PLACE, "-type", "f"]).await?;
        assert_eq!(files.trim(), format!("{PLACE}/.berth-pool"));
        Ok(())
    });
}
