//! Pauses, suspensions and other sizes, seen from inside the guest: it goes on where it was, with all it had.

use std::time::{Duration, Instant};

use berth_common::{
    document::RebootKind,
    ids::Nonce,
    message::{
        report::PowerState,
        request::{
            InstancePause, InstanceReboot, InstanceResize, InstanceResume, InstanceStart,
            InstanceStop, InstanceSuspend, InstanceUnpause,
        },
        view::VmState,
    },
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    wait::{Seen, moment, wait_for},
    with_cloud,
};

/// For how long the guest stands still, at least.
const STANDS_STILL: Duration = Duration::from_secs(4);

macro_rules! about {
    ($request:ident, $instance:expr) => {
        $request {
            instance: $instance.id.to_string(),
            project: Default::default(),
        }
    };
}

#[test]
fn a_stopped_guest_gets_another_size_and_keeps_its_disk() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("grows", &options).await?.id)
            .await?;
        let before = cloud.guest_answers(&instance).await?;
        assert_eq!((before.vcpus, before.disk_bytes), (1, 1 << 30));
        assert_eq!(cloud.keep(&instance, "vda", "kept").await?.failed, "");

        cloud
            .change(about!(InstanceStop, instance), VmState::Stopped)
            .await?;
        let resize: InstanceResize = serde_json::from_value(serde_json::json!({
            "instance": instance.id,
            "flavor": { "vcpus": 2, "memory_mb": 160, "disk_gb": 2 },
        }))?;
        // The agent dies as soon as it knows of it; the next one finds the rest to do.
        let asked = cloud.call(&resize).await?;
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        wait_for("the new size to be confirmed", CONVERGE_LIMIT, async || {
            let view = cloud.show(instance.id).await?;
            Ok(Seen::when(
                view.observed_generation >= asked.generation,
                format!("{view:?}"),
            ))
        })
        .await?;
        cloud
            .change(about!(InstanceStart, instance), VmState::Active)
            .await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!((after.vcpus, after.disk_bytes), (2, 2 << 30));
        assert!(after.memory_kib > before.memory_kib, "{after:?}");
        assert_eq!(cloud.kept(&instance, "vda").await?.word, "kept");
        Ok(())
    });
}

#[test]
fn a_guest_is_paused_and_suspended_and_goes_on_where_it_was() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let instance = cloud
            .wait_active(cloud.create_instance("sleeper", &options).await?.id)
            .await?;
        let watched = Instant::now();
        let before = cloud.guest_answers(&instance).await?;
        assert_eq!(cloud.keep(&instance, "memory", "here").await?.word, "here");

        // Paused, it does not even count the seconds.
        let paused = cloud
            .change(about!(InstancePause, instance), VmState::Paused)
            .await?;
        assert_eq!(paused.power_state, PowerState::Paused);
        cloud.hv1_mut().kill_agent()?;
        moment(STANDS_STILL).await;
        cloud.hv1_mut().spawn_agent().await?;
        cloud.wait_agent_healthy(cloud.hv1()).await?;
        assert!(!cloud.hv1().pids_of("qemu-system-x86_64")?.is_empty());
        let view = cloud.show(instance.id).await?;
        assert_eq!(view.vm_state, VmState::Paused, "{view:?}");
        cloud
            .change(about!(InstanceUnpause, instance), VmState::Active)
            .await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!(after.boot_id, before.boot_id);
        let lived = after.uptime_seconds - before.uptime_seconds;
        let watched = watched.elapsed().as_secs_f64();
        assert!(
            watched - lived >= STANDS_STILL.as_secs_f64(),
            "in {watched} s its clock counted {lived} s"
        );

        // Suspended, it is no process any more, and neither a new agent nor a new libvirtd makes it forget.
        let suspended = cloud
            .change(about!(InstanceSuspend, instance), VmState::Suspended)
            .await?;
        assert_eq!(suspended.power_state, PowerState::Suspended);
        assert!(cloud.hv1().pids_of("qemu-system-x86_64")?.is_empty());
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().kill_libvirtd().await?;
        cloud.hv1_mut().start_libvirtd().await?;
        cloud.hv1_mut().spawn_agent().await?;
        cloud.wait_agent_healthy(cloud.hv1()).await?;
        let resumed = cloud
            .change(about!(InstanceResume, instance), VmState::Active)
            .await?;
        assert_eq!(resumed.power_state, PowerState::Running);
        let after = cloud.guest_answers(&instance).await?;
        assert_eq!(after.boot_id, before.boot_id);
        assert!(after.uptime_seconds >= before.uptime_seconds, "{after:?}");
        assert_eq!(cloud.kept(&instance, "memory").await?.word, "here");

        // A hard reboot is the one way to lose the memory of a suspended guest on purpose.
        cloud
            .change(about!(InstanceSuspend, instance), VmState::Suspended)
            .await?;
        let reboot = InstanceReboot {
            instance: instance.id.to_string(),
            project: Default::default(),
            kind: RebootKind::Hard,
            nonce: Nonce::new(),
        };
        cloud.change(reboot, VmState::Active).await?;
        let after = cloud.guest_answers(&instance).await?;
        assert_ne!(after.boot_id, before.boot_id);
        assert_eq!(cloud.kept(&instance, "memory").await?.word, "");

        // A suspended instance can be deleted, and nothing of its memory is left.
        cloud
            .change(about!(InstanceSuspend, instance), VmState::Suspended)
            .await?;
        cloud.delete_and_wait(instance.id).await
    });
}
