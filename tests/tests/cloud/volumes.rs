//! Volumes, seen from inside the guests that have them: their size, whether they can be written to, and the word that a
//! guest left on them.

use std::time::{Duration, Instant};

use anyhow::Context;
use berth_common::{
    document::{DiskBus, RebootKind, VolumeAccess, VolumeFormat},
    ids::{Nonce, VolumeId},
    message::{
        report::PowerState,
        request::{
            InstancePause, InstanceReboot, InstanceResume, InstanceSuspend, InstanceUnpause,
            VolumeAttach, VolumeCreateSource,
        },
        view::{InstanceView, SnapshotStatus, VmState, VolumeStatus, VolumeView},
    },
    refusal::RefusalCode,
};
use berth_tests::{
    TestCloud,
    cloud::{
        CONVERGE_LIMIT, InstanceOptions, VolumeOptions,
        volumes::{attach, detach},
    },
    image,
    wait::{Seen, moment, wait_for},
    with_cloud,
};

/// For how long a guest that stands still does not give back a volume, at least.
const KEEPS_IT: Duration = Duration::from_secs(6);
/// Moments of a kill, spread over the time that an undisturbed attachment or its end takes.
const MOMENTS: u32 = 4;

macro_rules! about {
    ($request:ident, $instance:expr) => {
        $request {
            instance: $instance.id.to_string(),
            project: Default::default(),
        }
    };
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Libvirtd,
}

#[test]
fn a_volume_goes_from_guest_to_guest_with_what_is_on_it() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let first = start(cloud, "first").await?;
        let data = create(cloud, "data", VolumeFormat::Qcow2).await?;
        let bare = create(cloud, "bare", VolumeFormat::Raw).await?;
        assert_eq!(cloud.hv1().volume_files()?, [""; 0], "nobody has them yet");

        it_is_given_to_a_running_guest_and_grows(cloud, &first, &data, &bare).await?;
        it_outlives_a_reboot_and_a_suspension(cloud, &first, &data, &bare).await?;
        it_is_free_only_when_the_guest_gave_it_back(cloud, &first, &data, &bare).await?;
        its_content_can_be_copied(cloud, &first, &data).await?;
        a_guest_can_have_eight(cloud, &first).await?;
        another_guest_finds_it_as_it_was(cloud, &data).await?;

        // An instance that is deleted frees what it has; only a deleted volume is gone, and after its instance.
        cloud.attach(data.id, &first).await?;
        cloud.delete(first.id).await?;
        cloud.delete_volume(bare.id).await?;
        cloud.wait_volume(bare.id, VolumeStatus::Deleted).await?;
        cloud.wait_deleted(first.id).await?;
        let free = cloud.wait_volume(data.id, VolumeStatus::Available).await?;
        assert_eq!(free.attachment, None);
        delete(cloud, data.id).await?;
        assert_eq!(cloud.hv1().volume_files()?, [""; 0]);
        Ok(())
    });
}

#[test]
fn a_volume_behind_a_scsi_controller_grows_and_goes_to_another_guest_with_what_is_on_it() {
    with_cloud(TestCloud::builder(), async |cloud| {
        // It was started without such a controller.
        let first = start(cloud, "first").await?;
        let booted = cloud.guest_answers(&first).await?.boot_id;
        let data = create(cloud, "data", VolumeFormat::Raw).await?;
        let given = attach_on_scsi(cloud, data.id, &first).await?;
        let to = given.attachment.context("it has it")?;
        assert_eq!(
            (to.device.as_str(), to.disk_bus),
            ("/dev/sdb", DiskBus::Scsi)
        );
        assert_eq!(cloud.live_disks(&first).await?, ["vda", "sdb"]);

        // The guest counts its SCSI disks on its own; by its serial number it knows each on any bus.
        let empty = cloud.guest_has(&first, "sda", 1).await?;
        assert_eq!((empty.word.as_str(), empty.read_only), ("", false));
        let digits = data.id.as_uuid().simple().to_string();
        assert_eq!(empty.serial, digits[12..]);
        let kept = cloud.keep(&first, "sda", "thrown-away").await?;
        assert_eq!(
            (kept.word.as_str(), kept.failed.as_str()),
            ("thrown-away", "")
        );
        let thrown = cloud.discard(&first, "sda").await?;
        assert_eq!((thrown.failed.as_str(), thrown.word.as_str()), ("", ""));
        cloud.keep(&first, "sda", "from-scsi").await?;
        cloud.extend_volume(data.id, 2, VolumeStatus::InUse).await?;
        let larger = cloud.guest_has(&first, "sda", 2).await?;
        assert_eq!(larger.word, "from-scsi");
        let snapshot = cloud.create_snapshot("live", data.id).await?;
        cloud
            .wait_snapshot(snapshot.id, SnapshotStatus::Available)
            .await?;

        // Its memory knows the controller that it was given.
        cloud.call(&about!(InstanceSuspend, &first)).await?;
        cloud
            .wait_state(first.id, VmState::Suspended, CONVERGE_LIMIT)
            .await?;
        cloud.call(&about!(InstanceResume, &first)).await?;
        cloud.wait_active(first.id).await?;
        cloud.guest_has(&first, "sda", 2).await?;
        assert_eq!(cloud.guest_answers(&first).await?.boot_id, booted);

        // No guest is asked for it: one that stands still has it no more.
        cloud.call(&about!(InstancePause, &first)).await?;
        cloud
            .wait_state(first.id, VmState::Paused, CONVERGE_LIMIT)
            .await?;
        cloud.detach(data.id).await?;
        cloud.call(&about!(InstanceUnpause, &first)).await?;
        cloud.wait_active(first.id).await?;
        let gone = wait_for("the guest to notice", CONVERGE_LIMIT, async || {
            let kept = cloud.kept(&first, "sda").await?;
            Ok(Seen::when(!kept.there, kept))
        });
        gone.await?;

        let second = start(cloud, "second").await?;
        cloud.attach(data.id, &second).await?;
        let there = cloud.guest_has(&second, "vdb", 2).await?;
        assert_eq!(there.word, "from-scsi");
        assert_eq!(there.serial, empty.serial);

        more_than_there_are_ports(cloud, &first).await
    });
}

#[test]
fn a_volume_comes_and_goes_whenever_the_agent_or_libvirtd_is_killed() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let guest = start(cloud, "guest").await?;
        let before = cloud.guest_answers(&guest).await?;
        let takes = undisturbed(cloud, &guest).await?;
        for victim in [Victim::Agent, Victim::Libvirtd] {
            for part in 0..=MOMENTS {
                let after = takes * part / MOMENTS;
                attach_and_detach(cloud, &guest, victim, after)
                    .await
                    .map_err(|error| error.context(format!("{victim:?} killed after {after:?}")))?;
            }
        }
        let after = cloud.guest_answers(&guest).await?;
        assert_eq!(after.boot_id, before.boot_id, "the guest noticed more");
        Ok(())
    });
}

#[test]
fn a_volume_is_attached_only_to_instances_of_its_own_host() {
    with_cloud(TestCloud::builder().agents(2), async |cloud| {
        let mut instances = Vec::new();
        for host in ["hv1", "hv2"] {
            let options = InstanceOptions {
                power: berth_common::document::DesiredPower::Stopped,
                ..InstanceOptions::default()
            };
            let mut request = cloud.instance_request(&format!("on-{host}"), &options)?;
            request.hints.host = Some(host.to_owned());
            instances.push(cloud.call(&request).await?);
        }
        for instance in &mut instances {
            *instance = cloud
                .wait_state(instance.id, VmState::Stopped, CONVERGE_LIMIT)
                .await?;
        }
        let options = VolumeOptions {
            host: Some("hv1".to_owned()),
            ..VolumeOptions::default()
        };
        let named = cloud.create_volume("named", &options).await?;
        cloud.wait_volume(named.id, VolumeStatus::Available).await?;
        assert_eq!(
            cloud.hypervisors[0].volume_files()?.len(),
            2,
            "and its mark"
        );
        let bound = create(cloud, "bound", VolumeFormat::Raw).await?;
        let bound = cloud.attach(bound.id, &instances[1]).await?;
        assert_eq!(bound.host.map(|host| host.to_string()), Some("hv2".into()));
        let device = bound.attachment.map(|attachment| attachment.device);
        assert_eq!(device.as_deref(), Some("/dev/vdb"));
        // It has its host for good.
        cloud.detach(bound.id).await?;
        for (volume, instance) in [(named.id, &instances[1]), (bound.id, &instances[0])] {
            let asked = attach(volume, instance.id, VolumeAccess::ReadWrite);
            let refusal = cloud.refused(&asked).await?;
            assert_eq!(refusal.code, RefusalCode::Conflict);
            for host in ["hv1", "hv2"] {
                assert!(refusal.message.contains(host), "{refusal}");
            }
        }
        Ok(())
    });
}

async fn attach_on_scsi(
    cloud: &TestCloud,
    volume: VolumeId,
    guest: &InstanceView,
) -> anyhow::Result<VolumeView> {
    let asked = VolumeAttach {
        disk_bus: DiskBus::Scsi,
        ..attach(volume, guest.id, VolumeAccess::ReadWrite)
    };
    cloud.call(&asked).await?;
    cloud.wait_volume(volume, VolumeStatus::InUse).await
}

/// Reboots a guest, and waits until it has booted again.
async fn reboot(cloud: &TestCloud, guest: &InstanceView, kind: RebootKind) -> anyhow::Result<()> {
    let before = cloud.guest_answers(guest).await?;
    cloud
        .call(&InstanceReboot {
            instance: guest.id.to_string(),
            project: Default::default(),
            kind,
            nonce: Nonce::new(),
        })
        .await?;
    wait_for("the guest to boot again", CONVERGE_LIMIT, async || {
        let now = cloud.guest_answers(guest).await?;
        Ok(Seen::when(now.boot_id != before.boot_id, now))
    })
    .await?;
    cloud.wait_active(guest.id).await?;
    Ok(())
}

/// Disks behind a controller take no ports: a guest has ten of them, and after its next boot again.
async fn more_than_there_are_ports(cloud: &TestCloud, guest: &InstanceView) -> anyhow::Result<()> {
    for number in 0..10 {
        let volume = create(cloud, &format!("scsi-{number}"), VolumeFormat::Qcow2).await?;
        attach_on_scsi(cloud, volume.id, guest).await?;
    }
    for disk in 'a'..='j' {
        cloud.guest_has(guest, &format!("sd{disk}"), 1).await?;
    }
    reboot(cloud, guest, RebootKind::Hard).await?;
    for disk in 'a'..='j' {
        cloud.guest_has(guest, &format!("sd{disk}"), 1).await?;
    }
    Ok(())
}

/// A guest on a network of its own.
async fn create_guest(cloud: &TestCloud, name: &str) -> anyhow::Result<InstanceView> {
    let number = u8::try_from(cloud.networks().await?.len())? + 1;
    let network = cloud.create_network(name, number).await?;
    let options = InstanceOptions {
        networks: vec![network.id],
        ..InstanceOptions::default()
    };
    let instance = cloud.create_instance(name, &options).await?;
    cloud.wait_active(instance.id).await
}

/// A guest on a network of its own, which answers.
async fn start(cloud: &TestCloud, name: &str) -> anyhow::Result<InstanceView> {
    let instance = create_guest(cloud, name).await?;
    cloud.guest_answers(&instance).await?;
    Ok(instance)
}

/// An empty volume that no host has yet.
async fn create(cloud: &TestCloud, name: &str, format: VolumeFormat) -> anyhow::Result<VolumeView> {
    let options = VolumeOptions {
        format,
        ..VolumeOptions::default()
    };
    let volume = cloud.create_volume(name, &options).await?;
    assert_eq!(volume.status, VolumeStatus::Available);
    assert_eq!(volume.host, None);
    Ok(volume)
}

async fn delete(cloud: &TestCloud, volume: VolumeId) -> anyhow::Result<()> {
    cloud.delete_volume(volume).await?;
    cloud.wait_volume(volume, VolumeStatus::Deleted).await?;
    let files = cloud.hv1().volume_files()?;
    let name = volume.to_string();
    assert!(!files.iter().any(|file| file.contains(&name)), "{files:?}");
    Ok(())
}

/// Checks what is on both volumes of the first guest. `size_gb`: of the one at vdb.
async fn both_words(cloud: &TestCloud, guest: &InstanceView, size_gb: u64) -> anyhow::Result<()> {
    let data = cloud.guest_has(guest, "vdb", size_gb).await?;
    assert_eq!((data.word.as_str(), data.read_only), ("from-first", false));
    let bare = cloud.guest_has(guest, "vdc", 3).await?;
    assert_eq!((bare.word.as_str(), bare.read_only), ("raw-word", false));
    Ok(())
}

async fn it_is_given_to_a_running_guest_and_grows(
    cloud: &TestCloud,
    guest: &InstanceView,
    data: &VolumeView,
    bare: &VolumeView,
) -> anyhow::Result<()> {
    for (volume, disk, word) in [(data, "vdb", "from-first"), (bare, "vdc", "raw-word")] {
        let given = cloud.attach(volume.id, guest).await?;
        assert_eq!(given.host, guest.host, "it got the host of the instance");
        let device = given.attachment.map(|attachment| attachment.device);
        assert_eq!(device, Some(format!("/dev/{disk}")));
        let empty = cloud.guest_has(guest, disk, 1).await?;
        assert_eq!((empty.word.as_str(), empty.read_only), ("", false));
        let kept = cloud.keep(guest, disk, word).await?;
        assert_eq!((kept.word.as_str(), kept.failed.as_str()), (word, ""));
    }
    cloud.extend_volume(data.id, 2, VolumeStatus::InUse).await?;
    cloud.extend_volume(bare.id, 3, VolumeStatus::InUse).await?;
    both_words(cloud, guest, 2).await
}

async fn it_outlives_a_reboot_and_a_suspension(
    cloud: &TestCloud,
    guest: &InstanceView,
    data: &VolumeView,
    bare: &VolumeView,
) -> anyhow::Result<()> {
    reboot(cloud, guest, RebootKind::Soft).await?;
    both_words(cloud, guest, 2).await?;

    cloud.call(&about!(InstanceSuspend, guest)).await?;
    let suspended = cloud
        .wait_state(guest.id, VmState::Suspended, CONVERGE_LIMIT)
        .await?;
    assert_eq!(suspended.power_state, PowerState::Suspended);
    let refusal = cloud.refused(&detach(data.id)).await?;
    assert!(refusal.message.contains("suspended"), "{refusal}");
    let refusal = cloud
        .refused(&berth_common::message::request::VolumeDelete {
            volume: bare.id.to_string(),
            project: Default::default(),
        })
        .await?;
    assert!(refusal.message.contains("attached"), "{refusal}");
    // What its memory knows grows when it goes on.
    cloud
        .extend_volume(data.id, 3, VolumeStatus::Extending)
        .await?;
    cloud.call(&about!(InstanceResume, guest)).await?;
    cloud.wait_active(guest.id).await?;
    for volume in [data, bare] {
        cloud.wait_volume(volume.id, VolumeStatus::InUse).await?;
    }
    both_words(cloud, guest, 3).await
}

/// A guest that stands still cannot give anything back, whoever asks.
async fn it_is_free_only_when_the_guest_gave_it_back(
    cloud: &TestCloud,
    guest: &InstanceView,
    data: &VolumeView,
    bare: &VolumeView,
) -> anyhow::Result<()> {
    cloud.call(&about!(InstancePause, guest)).await?;
    cloud
        .wait_state(guest.id, VmState::Paused, CONVERGE_LIMIT)
        .await?;
    cloud.call(&detach(data.id)).await?;
    moment(KEEPS_IT).await;
    assert_eq!(
        cloud.show_volume(data.id).await?.status,
        VolumeStatus::Detaching
    );
    assert!(cloud.live_disks(guest).await?.contains(&"vdb".to_owned()));
    let asked = attach(data.id, guest.id, VolumeAccess::ReadWrite);
    let refusal = cloud.refused(&asked).await?;
    assert!(refusal.message.contains("being detached"), "{refusal}");

    cloud.call(&about!(InstanceUnpause, guest)).await?;
    let free = cloud.wait_volume(data.id, VolumeStatus::Available).await?;
    assert!(!cloud.live_disks(guest).await?.contains(&"vdb".to_owned()));
    assert_eq!(free.host, guest.host, "it stays on its host");
    let gone = cloud.kept(guest, "vdb").await?;
    assert!(!gone.there, "{gone:?}");
    cloud.wait_active(guest.id).await?;
    let other = cloud.guest_has(guest, "vdc", 3).await?;
    assert_eq!(other.word, "raw-word", "{:?}", bare.name);
    Ok(())
}

/// A volume from an image and a copy of a volume, side by side in one guest.
async fn its_content_can_be_copied(
    cloud: &TestCloud,
    guest: &InstanceView,
    data: &VolumeView,
) -> anyhow::Result<()> {
    let image = image::with_word(cloud.site.dir(), "from-image")?;
    let copies = [
        ("copy", VolumeCreateSource::Volume(data.name.to_string()), 4),
        ("filled", VolumeCreateSource::Image(image), 1),
    ];
    let mut made = Vec::new();
    for (name, source, size_gb) in copies {
        let options = VolumeOptions {
            size_gb,
            source: Some(source),
            ..VolumeOptions::default()
        };
        made.push(cloud.create_volume(name, &options).await?);
    }
    for (volume, disk, word) in [
        (&made[0], "vdb", "from-first"),
        (&made[1], "vdd", "from-image"),
    ] {
        let status = cloud
            .wait_volume(volume.id, VolumeStatus::Available)
            .await?;
        assert_eq!(status.attachment, None);
        let given = cloud.attach(volume.id, guest).await?;
        let kept = cloud.guest_has(guest, disk, given.size_gb.get()).await?;
        assert_eq!(kept.word, word);
    }
    // What is written to the copy is not written to what it was copied from.
    cloud.keep(guest, "vdb", "rewritten").await?;
    for volume in &made {
        cloud.detach(volume.id).await?;
        delete(cloud, volume.id).await?;
    }
    Ok(())
}

/// As many as are allowed have room in the machine that the guest sees, beside its own disk and interface.
async fn a_guest_can_have_eight(cloud: &TestCloud, guest: &InstanceView) -> anyhow::Result<()> {
    let mut more = Vec::new();
    // It has one already.
    for number in 2..=9 {
        let name = format!("more-{number}");
        more.push(create(cloud, &name, VolumeFormat::Qcow2).await?.id);
    }
    let one_too_many = more.pop().context("there is one")?;
    for id in &more {
        let asked = attach(*id, guest.id, VolumeAccess::ReadWrite);
        cloud.call(&asked).await?;
    }
    let asked = attach(one_too_many, guest.id, VolumeAccess::ReadWrite);
    let refusal = cloud.refused(&asked).await?;
    assert!(refusal.message.contains("8 volumes"), "{refusal}");
    for id in &more {
        cloud.wait_volume(*id, VolumeStatus::InUse).await?;
    }
    for disk in ["vdb", "vdd", "vde", "vdf", "vdg", "vdh", "vdi"] {
        cloud.guest_has(guest, disk, 1).await?;
    }
    for id in &more {
        cloud.call(&detach(*id)).await?;
    }
    for id in more.into_iter().chain([one_too_many]) {
        cloud.wait_volume(id, VolumeStatus::Available).await?;
        delete(cloud, id).await?;
    }
    Ok(())
}

async fn another_guest_finds_it_as_it_was(
    cloud: &TestCloud,
    data: &VolumeView,
) -> anyhow::Result<()> {
    // It is given to the guest before that has its kernel.
    let second = create_guest(cloud, "second").await?;
    let asked = attach(data.id, second.id, VolumeAccess::ReadOnly);
    cloud.call(&asked).await?;
    cloud.wait_volume(data.id, VolumeStatus::InUse).await?;
    cloud.guest_answers(&second).await?;
    let kept = cloud.guest_has(&second, "vdb", 3).await?;
    assert_eq!((kept.word.as_str(), kept.read_only), ("from-first", true));
    let refused = cloud.keep(&second, "vdb", "scribble").await?;
    assert_ne!(refused.failed, "");
    assert_eq!(refused.word, "from-first");
    cloud.delete_and_wait(second.id).await
}

/// How long giving a running guest a new volume takes when nobody disturbs. Taking it back takes about as long, if
/// the guest listens.
async fn undisturbed(cloud: &TestCloud, guest: &InstanceView) -> anyhow::Result<Duration> {
    let volume = create(cloud, "undisturbed", VolumeFormat::Qcow2).await?;
    let start = Instant::now();
    cloud.attach(volume.id, guest).await?;
    let takes = start.elapsed();
    cloud.guest_has(guest, "vdb", 1).await?;
    cloud.detach(volume.id).await?;
    delete(cloud, volume.id).await?;
    Ok(takes)
}

/// A volume that is made, attached, detached and removed, with a kill so long after each request.
async fn attach_and_detach(
    cloud: &mut TestCloud,
    guest: &InstanceView,
    victim: Victim,
    after: Duration,
) -> anyhow::Result<()> {
    let volume = create(cloud, "fresh", VolumeFormat::Qcow2).await?.id;
    let asked = attach(volume, guest.id, VolumeAccess::ReadWrite);
    cloud.call(&asked).await?;
    kill_and_restart(cloud, victim, after).await?;
    cloud.wait_volume(volume, VolumeStatus::InUse).await?;
    cloud.guest_has(guest, "vdb", 1).await?;
    assert_eq!(cloud.live_disks(guest).await?, ["vda", "vdb"]);
    let kept = cloud.keep(guest, "vdb", "still-here").await?;
    assert_eq!(kept.word, "still-here");

    cloud.call(&detach(volume)).await?;
    kill_and_restart(cloud, victim, after).await?;
    cloud.wait_volume(volume, VolumeStatus::Available).await?;
    assert_eq!(cloud.live_disks(guest).await?, ["vda"]);
    let gone = cloud.kept(guest, "vdb").await?;
    assert!(!gone.there, "{gone:?}");

    cloud.delete_volume(volume).await?;
    kill_and_restart(cloud, victim, after).await?;
    cloud.wait_volume(volume, VolumeStatus::Deleted).await?;
    assert_eq!(cloud.hv1().volume_files()?, [""; 0]);
    Ok(())
}

async fn kill_and_restart(
    cloud: &mut TestCloud,
    victim: Victim,
    after: Duration,
) -> anyhow::Result<()> {
    moment(after).await;
    match victim {
        Victim::Agent => {
            cloud.hv1_mut().kill_agent()?;
            cloud.hv1_mut().spawn_agent().await
        }
        Victim::Libvirtd => cloud.hv1().restart_libvirtd().await,
    }
}
