//! Rescue, rebuild and a disk that grows, seen from inside the guest: what it boots from, and what is on its disks.

use std::path::Path;

use anyhow::Context;
use berth_common::{
    document::{ConfigDrive, ImageRef},
    ids::Nonce,
    message::{
        report::PowerState,
        request::{
            InstanceRebuild, InstanceRescue, InstanceResize, InstanceResume, InstanceSet,
            InstanceStart, InstanceStop, InstanceSuspend, InstanceUnrescue,
        },
        view::{InstanceView, TakesEffect, VmState},
    },
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, GuestStatus, InstanceOptions, VolumeOptions},
    image,
    wait::{Seen, moment, wait_for},
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

async fn start(cloud: &TestCloud, name: &str) -> anyhow::Result<InstanceView> {
    let network = cloud.create_network("front", 1).await?;
    let options = InstanceOptions {
        networks: vec![network.id],
        ..InstanceOptions::default()
    };
    cloud
        .wait_active(cloud.create_instance(name, &options).await?.id)
        .await
}

/// The files of an instance's own disks.
fn disk_files(cloud: &TestCloud, instance: &InstanceView) -> anyhow::Result<Vec<String>> {
    let state = cloud.hypervisor_of(instance)?.state_dir();
    let folder = state.join("instances").join(instance.id.to_string());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.ends_with(".qcow2").then_some(name));
    }
    names.sort();
    Ok(names)
}

fn other_image(cloud: &TestCloud, name: &str) -> anyhow::Result<ImageRef> {
    let guest = &cloud.services.guest_image;
    image::of_file(&image::fresh_copy(guest, cloud.site.dir(), name)?)
}

#[test]
fn a_rescued_guest_has_its_own_disk_beside_the_one_it_boots_from() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let instance = start(cloud, "patient").await?;
        let before = cloud.guest_answers(&instance).await?;
        assert_eq!(cloud.keep(&instance, "vda", "mine").await?.failed, "");
        let data = cloud
            .create_volume("data", &VolumeOptions::default())
            .await?;
        cloud.attach(data.id, &instance).await?;
        cloud.guest_has(&instance, "vdb", 1).await?;
        assert_eq!(cloud.keep(&instance, "vdb", "data").await?.failed, "");

        let rescue = InstanceRescue {
            instance: instance.id.to_string(),
            project: Default::default(),
            image: Some(other_image(cloud, "rescue")?),
            nonce: Nonce::new(),
        };
        // The agent dies while it is at it; the next one finds the rest to do.
        let asked = cloud.call(&rescue).await?;
        moment(std::time::Duration::from_millis(500)).await;
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        let rescued = cloud.settled(&asked, VmState::Active).await?;
        assert!(rescued.rescued);
        let inside = cloud.guest_answers(&instance).await?;
        assert_ne!(inside.boot_id, before.boot_id);
        assert_eq!(inside.address, before.address);
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "");
        assert_eq!(cloud.kept(&instance, "vdb").await?.word, "mine");
        assert!(!cloud.kept(&instance, "vdc").await?.there);
        assert_eq!(disk_files(cloud, &instance)?.len(), 2);

        // Off and on it stays rescued.
        assert_eq!(cloud.keep(&instance, "vda", "notes").await?.failed, "");
        cloud
            .change(about!(InstanceStop, instance), VmState::Stopped)
            .await?;
        cloud
            .change(about!(InstanceStart, instance), VmState::Active)
            .await?;
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "notes");
        assert_eq!(cloud.keep(&instance, "vdb", "mended").await?.failed, "");

        let unrescued = cloud
            .change(about!(InstanceUnrescue, instance), VmState::Active)
            .await?;
        assert!(!unrescued.rescued);
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "mended");
        assert_eq!(cloud.kept(&instance, "vdb").await?.word, "data");
        assert_eq!(disk_files(cloud, &instance)?, ["disk0.qcow2"]);
        cloud.detach(data.id).await?;
        cloud.delete_volume(data.id).await?;
        cloud.delete_and_wait(instance.id).await
    });
}

#[test]
fn a_rebuilt_guest_has_a_new_disk_and_keeps_its_address_and_its_volume() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let instance = start(cloud, "again").await?;
        let before = cloud.guest_answers(&instance).await?;
        assert_eq!(cloud.keep(&instance, "vda", "old").await?.failed, "");
        let data = cloud
            .create_volume("data", &VolumeOptions::default())
            .await?;
        cloud.attach(data.id, &instance).await?;
        cloud.guest_has(&instance, "vdb", 1).await?;
        assert_eq!(cloud.keep(&instance, "vdb", "data").await?.failed, "");

        // From an image that is not what it should be, nothing happens to it.
        let mut bad = other_image(cloud, "bad")?;
        bad.sha256 = "ab".repeat(32).parse()?;
        let rebuild = |image: ImageRef| InstanceRebuild {
            instance: instance.id.to_string(),
            project: Default::default(),
            image,
            nonce: Nonce::new(),
        };
        cloud.change(rebuild(bad), VmState::Error).await?;
        let still = cloud.guest_answers(&instance).await?;
        assert_eq!(still.boot_id, before.boot_id);
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "old");

        let good = rebuild(other_image(cloud, "good")?);
        let asked = cloud.call(&good).await?;
        moment(std::time::Duration::from_millis(500)).await;
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        cloud.settled(&asked, VmState::Active).await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_ne!(after.boot_id, before.boot_id);
        assert_eq!(
            (after.address, after.mac, after.hostname),
            (before.address, before.mac, before.hostname)
        );
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "");
        assert_eq!(cloud.kept(&instance, "vdb").await?.word, "data");
        let files = disk_files(cloud, &instance)?;
        let [file] = files.as_slice() else {
            panic!("{files:?}");
        };
        let ending = format!("-{}.qcow2", good.nonce);
        assert!(
            file.starts_with("disk0-") && file.ends_with(&ending),
            "{file}"
        );

        // What it writes from now on outlives the repetition of the wish, and new agents.
        assert_eq!(cloud.keep(&instance, "vda", "new").await?.failed, "");
        assert_eq!(cloud.call(&good).await?.generation, asked.generation);
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        cloud.wait_agent_healthy(cloud.hv1()).await?;
        cloud
            .change(about!(InstanceStop, instance), VmState::Stopped)
            .await?;
        cloud
            .change(about!(InstanceStart, instance), VmState::Active)
            .await?;
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "new");
        cloud.detach(data.id).await?;
        cloud.delete_volume(data.id).await?;
        cloud.delete_and_wait(instance.id).await
    });
}

#[test]
fn a_disk_grows_under_a_running_guest() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let instance = start(cloud, "grows").await?;
        let before = cloud.guest_answers(&instance).await?;
        assert_eq!(before.disk_bytes, 1 << 30);
        assert_eq!(cloud.keep(&instance, "vda", "kept").await?.failed, "");
        let resize: berth_common::message::request::InstanceResize =
            serde_json::from_value(serde_json::json!({
                "instance": instance.id,
                "flavor": {
                    "vcpus": before.vcpus,
                    "memory_mb": instance.flavor.memory_mb,
                    "disk_gb": 3,
                },
            }))?;
        cloud.call(&resize).await?;
        cloud.guest_has(&instance, "vda", 3).await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!(after.boot_id, before.boot_id, "it was not rebooted");
        assert!(after.uptime_seconds > before.uptime_seconds);
        assert_eq!(after.disk_bytes, 3 << 30);
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "kept");
        // It is as large for its next start.
        cloud
            .change(about!(InstanceStop, instance), VmState::Stopped)
            .await?;
        cloud
            .change(about!(InstanceStart, instance), VmState::Active)
            .await?;
        assert_eq!(cloud.guest_answers(&instance).await?.disk_bytes, 3 << 30);
        cloud.delete_and_wait(instance.id).await
    });
}

fn resized(instance: &InstanceView, vcpus: u64, memory_mb: u64) -> anyhow::Result<InstanceResize> {
    Ok(serde_json::from_value(serde_json::json!({
        "instance": instance.id,
        "flavor": {
            "vcpus": vcpus,
            "memory_mb": memory_mb,
            "disk_gb": instance.flavor.disk_gb,
        },
    }))?)
}

#[test]
fn a_running_guest_gets_processors_and_memory_without_a_restart() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            memory_mb: 1024,
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("grows", &options).await?.id)
            .await?;
        let before = cloud.guest_answers(&instance).await?;
        assert_eq!(before.vcpus, 1);
        // Half of it is Linux's own; what it is given later is not.
        let had = before.memory_kib;

        let asked = cloud.call(&resized(&instance, 2, 1280)?).await?;
        let live = |part| part == TakesEffect::Live;
        let answers: Vec<_> = asked.pending.iter().map(|it| it.takes_effect).collect();
        assert!(
            answers.len() == 2 && answers.into_iter().all(live),
            "{asked:?}"
        );
        // The agent dies as soon as it knows of it; the next one finds the rest to do.
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        let view = wait_for("the guest to have all of it", CONVERGE_LIMIT, async || {
            let view = cloud.show(instance.id).await?;
            let status = cloud.guest_answers(&instance).await?;
            let has = status.vcpus == 2 && status.memory_kib >= had + 250 * 1024;
            if has && view.pending.is_empty() && view.observed_generation >= asked.generation {
                return Ok(Seen::Done(view));
            }
            Ok(Seen::NotYet(format!("{status:?}, {view:?}")))
        })
        .await?;
        let running = view.running.context("what it has was not reported")?;
        assert_eq!((running.vcpus.get(), running.memory_mb.get()), (2, 1280));
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!(after.boot_id, before.boot_id, "it was not rebooted");
        assert!(after.uptime_seconds > before.uptime_seconds);

        // What it was given survives its memory being saved.
        cloud
            .change(about!(InstanceSuspend, instance), VmState::Suspended)
            .await?;
        cloud
            .change(about!(InstanceResume, instance), VmState::Active)
            .await?;
        let resumed = cloud.guest_answers(&instance).await?;
        assert_eq!(resumed.boot_id, before.boot_id);
        assert_eq!(
            (resumed.vcpus, resumed.memory_kib),
            (after.vcpus, after.memory_kib)
        );

        // An odd amount waits, and it is said so as long as it does.
        let asked = cloud.call(&resized(&instance, 2, 1300)?).await?;
        let waits = |view: &InstanceView| {
            let mut parts = view.pending.iter();
            parts.len() == 1 && parts.all(|it| it.takes_effect == TakesEffect::NextStart)
        };
        assert!(waits(&asked), "{asked:?}");
        let view = wait_for("the rest to be confirmed", CONVERGE_LIMIT, async || {
            let view = cloud.show(instance.id).await?;
            if view.observed_generation >= asked.generation {
                return Ok(Seen::Done(view));
            }
            Ok(Seen::NotYet(format!("{view:?}")))
        })
        .await?;
        assert!(waits(&view), "{view:?}");
        assert_eq!(
            cloud.guest_answers(&instance).await?.memory_kib,
            after.memory_kib
        );

        // Started anew, it has exactly what was asked for, in one piece.
        cloud
            .change(about!(InstanceStop, instance), VmState::Stopped)
            .await?;
        let view = cloud
            .change(about!(InstanceStart, instance), VmState::Active)
            .await?;
        let running = view.running.context("what it has was not reported")?;
        assert_eq!((running.vcpus.get(), running.memory_mb.get()), (2, 1300));
        assert_eq!(view.pending, []);
        let anew = cloud.guest_answers(&instance).await?;
        assert_ne!(anew.boot_id, before.boot_id);
        assert_eq!(anew.vcpus, 2);
        let grown = anew.memory_kib - had;
        assert!(
            (265 * 1024..=276 * 1024).contains(&grown),
            "{before:?} {anew:?}"
        );
        let domain = instance.id.to_string();
        let xml = cloud.hv1().text(&["virsh", "dumpxml", &domain]).await?;
        assert!(!xml.contains("<memory model="), "{xml}");
        cloud.delete_and_wait(instance.id).await
    });
}

/// QEMU ends by itself. Its process id is the machine's, so it is the machine that sends the signal.
async fn crash(cloud: &TestCloud) -> anyhow::Result<()> {
    for pid in cloud.hv1().pids_of("qemu-system-x86_64")? {
        cloud
            .hv1()
            .text(&["kill", "-SEGV", &pid.to_string()])
            .await?;
    }
    Ok(())
}

/// Its kernel panics, and stands still: without a panic device nobody would see that.
async fn panic(cloud: &TestCloud, instance: &InstanceView, key: &Path) -> anyhow::Result<()> {
    let later = "sleep 1; echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger";
    let script = format!("setsid sh -c '{later}' </dev/null >/dev/null 2>&1 &");
    cloud.in_guest(instance, key, &script).await?;
    Ok(())
}

async fn boots_again(
    cloud: &TestCloud,
    instance: &InstanceView,
    before: &GuestStatus,
) -> anyhow::Result<GuestStatus> {
    wait_for("another boot", CONVERGE_LIMIT, async || {
        let status = cloud.guest_answers(instance).await?;
        if status.boot_id == before.boot_id {
            return Ok(Seen::NotYet(format!("{status:?}")));
        }
        Ok(Seen::Done(status))
    })
    .await
}

#[test]
fn a_crashed_guest_is_started_again_or_stays_off_as_its_owner_says() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let (key, public) = cloud.new_key("fragile").await?;
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            guest_data: Some(ConfigDrive {
                public_keys: [("me".parse()?, public.parse()?)].into(),
                ..ConfigDrive::default()
            }),
            ..InstanceOptions::default()
        };
        let created = cloud.create_instance("fragile", &options).await?;
        let instance = cloud.wait_active(created.id).await?;
        let before = cloud.guest_answers(&instance).await?;
        crash(cloud).await?;
        let again = boots_again(cloud, &instance, &before).await?;
        panic(cloud, &instance, &key).await?;
        boots_again(cloud, &instance, &again).await?;

        // It is called something else while it runs, and learns it by DHCP at its next boot at the latest.
        let running = cloud.guest_answers(&instance).await?;
        let set: InstanceSet = serde_json::from_value(serde_json::json!({
            "instance": instance.id, "name": "sturdy", "on_crash": "stop",
        }))?;
        cloud.change(set, VmState::Active).await?;
        assert_eq!(
            cloud.guest_answers(&instance).await?.boot_id,
            running.boot_id
        );
        panic(cloud, &instance, &key).await?;
        let view = cloud.settled(&instance, VmState::Error).await?;
        assert_eq!(view.power_state, PowerState::Crashed);
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        cloud.wait_agent_healthy(cloud.hv1()).await?;
        assert!(cloud.hv1().pids_of("qemu-system-x86_64")?.is_empty());
        cloud
            .change(about!(InstanceStart, instance), VmState::Active)
            .await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!(after.hostname, "sturdy");
        assert_eq!(after.address, before.address);
        cloud.delete_and_wait(instance.id).await
    });
}
