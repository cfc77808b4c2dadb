//! Instances that boot from volumes, seen from inside the guest: what is on the root disk outlives everything, the instance
//! too.

use berth_common::{
    document::RebootKind,
    ids::{Nonce, VolumeId},
    message::{
        request::{
            InstanceReboot, InstanceRescue, InstanceResume, InstanceStart, InstanceStop,
            InstanceSuspend, InstanceUnrescue, VolumeCreateSource,
        },
        view::{InstanceView, SnapshotStatus, VmState, VolumeStatus, VolumeView},
    },
    refusal::RefusalCode,
};
use berth_tests::{
    TestCloud,
    cloud::{InstanceOptions, VolumeOptions, volumes::detach},
    image,
    wait::moment,
    with_cloud,
};

macro_rules! about {
    ($request:ident, $instance:expr) => {
        $request {
            instance: $instance.id.to_string(),
            project: Default::default(),
        }
    };
}

/// A guest on a network of its own that boots from a volume; it may yet be on its way.
async fn boot(cloud: &TestCloud, name: &str, volume: VolumeId) -> anyhow::Result<InstanceView> {
    let number = u8::try_from(cloud.networks().await?.len())? + 1;
    let network = cloud.create_network(name, number).await?;
    let options = InstanceOptions {
        networks: vec![network.id],
        root_volume: Some(volume),
        ..InstanceOptions::default()
    };
    cloud.create_instance(name, &options).await
}

/// A volume that the guest boots from, which no host has yet.
async fn root(cloud: &TestCloud, name: &str) -> anyhow::Result<VolumeView> {
    let image = image::of_file(&cloud.services.guest_image)?;
    let options = VolumeOptions {
        source: Some(VolumeCreateSource::Image(image)),
        ..VolumeOptions::default()
    };
    let volume = cloud.create_volume(name, &options).await?;
    assert_eq!(volume.host, None);
    Ok(volume)
}

async fn word(cloud: &TestCloud, guest: &InstanceView, disk: &str) -> anyhow::Result<String> {
    Ok(cloud.kept(guest, disk).await?.word)
}

async fn write(
    cloud: &TestCloud,
    guest: &InstanceView,
    disk: &str,
    word: &str,
) -> anyhow::Result<()> {
    assert_eq!(cloud.keep(guest, disk, word).await?.failed, "");
    Ok(())
}

#[test]
fn what_a_guest_wrote_to_its_root_volume_is_there_for_the_next_instance() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let volume = root(cloud, "root").await?;
        let first = boot(cloud, "first", volume.id).await?;
        // The agent dies while it makes the volume or starts the guest; the next one finds the rest to do.
        moment(std::time::Duration::from_millis(500)).await;
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        let first = cloud.wait_active(first.id).await?;
        let inside = cloud.guest_answers(&first).await?;
        assert_eq!(inside.disk_bytes, 1 << 30, "the volume's size");
        assert_eq!(cloud.live_disks(&first).await?, ["vda"]);
        cloud.wait_volume(volume.id, VolumeStatus::InUse).await?;
        write(cloud, &first, "vda", "mine").await?;

        let refusal = cloud.refused(&detach(volume.id)).await?;
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(
            refusal.message.contains("boots from volume root"),
            "{refusal}"
        );
        cloud
            .extend_volume(volume.id, 2, VolumeStatus::InUse)
            .await?;
        assert_eq!(cloud.guest_has(&first, "vda", 2).await?.word, "mine");
        let again = cloud.guest_answers(&first).await?;
        assert_eq!(again.boot_id, inside.boot_id, "it grew under the guest");
        let snapshot = cloud.create_snapshot("snapshot", volume.id).await?;
        cloud
            .wait_snapshot(snapshot.id, SnapshotStatus::Available)
            .await?;
        write(cloud, &first, "vda", "later").await?;

        cloud.delete_and_wait(first.id).await?;
        let free = cloud
            .wait_volume(volume.id, VolumeStatus::Available)
            .await?;
        assert_eq!(free.attachment, None);
        let second = boot(cloud, "second", volume.id).await?;
        let second = cloud.wait_active(second.id).await?;
        cloud.guest_answers(&second).await?;
        assert_eq!(cloud.guest_has(&second, "vda", 2).await?.word, "later");

        // The snapshot boots as it was, beside the other.
        let options = VolumeOptions {
            size_gb: 2,
            source: Some(VolumeCreateSource::Snapshot(snapshot.id.to_string())),
            ..VolumeOptions::default()
        };
        let copy = cloud.create_volume("copy", &options).await?;
        let third = boot(cloud, "third", copy.id).await?;
        let third = cloud.wait_active(third.id).await?;
        cloud.guest_answers(&third).await?;
        assert_eq!(word(cloud, &third, "vda").await?, "mine");

        for instance in [second.id, third.id] {
            cloud.delete_and_wait(instance).await?;
        }
        cloud.delete_snapshot(snapshot.id).await?;
        cloud
            .wait_snapshot(snapshot.id, SnapshotStatus::Deleted)
            .await?;
        for volume in [volume.id, copy.id] {
            cloud.wait_volume(volume, VolumeStatus::Available).await?;
            cloud.delete_volume(volume).await?;
            cloud.wait_volume(volume, VolumeStatus::Deleted).await?;
        }
        Ok(())
    });
}

#[test]
fn a_root_volume_outlives_all_that_is_done_to_its_instance() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let volume = root(cloud, "root").await?;
        let guest = boot(cloud, "guest", volume.id).await?;
        let guest = cloud.wait_active(guest.id).await?;
        let before = cloud.guest_answers(&guest).await?;
        write(cloud, &guest, "vda", "mine").await?;

        let hard = InstanceReboot {
            instance: guest.id.to_string(),
            project: Default::default(),
            kind: RebootKind::Hard,
            nonce: Nonce::new(),
        };
        cloud.change(hard, VmState::Active).await?;
        let after = cloud.guest_answers(&guest).await?;
        assert_ne!(after.boot_id, before.boot_id);
        assert_eq!(word(cloud, &guest, "vda").await?, "mine");
        cloud
            .change(about!(InstanceSuspend, guest), VmState::Suspended)
            .await?;
        cloud
            .change(about!(InstanceResume, guest), VmState::Active)
            .await?;
        let resumed = cloud.guest_answers(&guest).await?;
        assert_eq!(resumed.boot_id, after.boot_id, "it went on where it was");
        assert_eq!(word(cloud, &guest, "vda").await?, "mine");
        cloud
            .change(about!(InstanceStop, guest), VmState::Stopped)
            .await?;
        cloud
            .change(about!(InstanceStart, guest), VmState::Active)
            .await?;
        assert_eq!(word(cloud, &guest, "vda").await?, "mine");

        let other = image::fresh_copy(&cloud.services.guest_image, cloud.site.dir(), "rescue")?;
        let rescue = InstanceRescue {
            instance: guest.id.to_string(),
            project: Default::default(),
            image: Some(image::of_file(&other)?),
            nonce: Nonce::new(),
        };
        cloud.change(rescue, VmState::Active).await?;
        assert_eq!(word(cloud, &guest, "vda").await?, "");
        assert_eq!(word(cloud, &guest, "vdb").await?, "mine");
        write(cloud, &guest, "vdb", "mended").await?;
        cloud
            .change(about!(InstanceUnrescue, guest), VmState::Active)
            .await?;
        assert_eq!(word(cloud, &guest, "vda").await?, "mended");
        assert!(!cloud.kept(&guest, "vdb").await?.there);

        cloud.delete_and_wait(guest.id).await?;
        cloud
            .wait_volume(volume.id, VolumeStatus::Available)
            .await?;
        cloud.delete_volume(volume.id).await?;
        cloud.wait_volume(volume.id, VolumeStatus::Deleted).await?;
        Ok(())
    });
}
