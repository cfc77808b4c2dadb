//! The main road: a request on the queue becomes a running guest, lives through everything its owner may ask of
//! it, and goes without a trace.

use std::time::Duration;

use berth_common::{
    document::RebootKind,
    ids::Nonce,
    message::{
        report::PowerState,
        request::{InstanceReboot, InstanceStart, InstanceStop},
        view::{InstanceView, VmState},
    },
    units::{DiskGb, MemoryMb, Vcpus},
};
use berth_tests::{
    TestCloud,
    cloud::InstanceOptions,
    wait::{Seen, wait_for},
    with_cloud,
};

/// A guest that listens powers itself off within a second; the limit leaves room for a busy machine, and is
/// below the 30 seconds after which it would be switched off.
const ACPI_LIMIT: Duration = Duration::from_secs(25);

#[test]
fn a_request_becomes_a_running_guest_that_obeys_its_owner_and_goes_without_a_trace() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let network = cloud.create_network("front", 1).await?;
        let options = InstanceOptions {
            networks: vec![network.id],
            ..InstanceOptions::default()
        };
        let created = cloud.create_instance("web-1", &options).await?;
        let instance = cloud.wait_active(created.id).await?;

        it_has_exactly_what_was_asked_for(cloud, &instance).await?;
        the_hypervisor_shows_what_it_claims(cloud).await?;
        it_stops_and_starts(cloud, &instance).await?;
        it_reboots_once_per_nonce(cloud, &instance, RebootKind::Soft).await?;
        it_reboots_once_per_nonce(cloud, &instance, RebootKind::Hard).await?;
        it_stays_off_when_its_guest_powers_off(cloud, &instance).await?;

        cloud.delete_and_wait(instance.id).await?;
        // Deleting what is deleted is harmless.
        assert_eq!(cloud.delete(instance.id).await?.vm_state, VmState::Deleted);
        Ok(())
    });
}

async fn it_has_exactly_what_was_asked_for(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let address = TestCloud::address_of(instance)?.to_string();
    let status = cloud.guest_answers(instance).await?;
    assert_eq!(status.address, address);
    assert_eq!(status.hostname, "web-1");
    assert_eq!(status.mac, instance.ports[0].mac_address.to_string());
    assert_eq!(status.vcpus, 1);
    assert_eq!(status.disk_bytes, 1 << 30);
    let console = cloud.console_log(instance)?;
    let ready = format!(
        "berth-guest: ready address={address} hostname=web-1 boot_id={}",
        status.boot_id
    );
    assert!(
        console.lines().any(|line| line.trim_end() == ready),
        "no line {ready:?} in the console log:\n{console}"
    );
    assert_eq!(
        cloud.hv1().domains().await?,
        [format!("berth-{}", instance.id)]
    );
    Ok(())
}

async fn the_hypervisor_shows_what_it_claims(cloud: &TestCloud) -> anyhow::Result<()> {
    let host = cloud.host("hv1").await?;
    assert_eq!(host.used_max.vcpus, Vcpus::new(1)?);
    assert_eq!(host.used_max.memory_mb, MemoryMb::new(96)?);
    assert_eq!(host.used_max.disk_gb, DiskGb::new(1)?);
    assert_eq!(host.instances, 1);
    assert_eq!(host.projects.len(), 1);
    assert_eq!(host.projects[0].claimed, host.used_max);
    assert_eq!(host.virt_type, "qemu");
    assert!(host.total.memory_mb > host.used_now.memory_mb, "{host:?}");
    assert!(host.health.iter().all(|part| part.ok), "{:?}", host.health);
    Ok(())
}

async fn it_stops_and_starts(cloud: &TestCloud, instance: &InstanceView) -> anyhow::Result<()> {
    cloud
        .call(&InstanceStop {
            instance: instance.id.to_string(),
            project: Default::default(),
        })
        .await?;
    let stopped = cloud
        .wait_state(instance.id, VmState::Stopped, ACPI_LIMIT)
        .await?;
    assert_eq!(stopped.power_state, PowerState::Shutdown);
    assert!(cloud.hv1().pids_of("qemu-system-x86_64")?.is_empty());
    cloud
        .call(&InstanceStart {
            instance: instance.id.to_string(),
            project: Default::default(),
        })
        .await?;
    cloud.wait_active(instance.id).await?;
    cloud.guest_answers(instance).await?;
    Ok(())
}

async fn it_reboots_once_per_nonce(
    cloud: &TestCloud,
    instance: &InstanceView,
    kind: RebootKind,
) -> anyhow::Result<()> {
    let before = cloud.guest_answers(instance).await?;
    let request = InstanceReboot {
        instance: instance.id.to_string(),
        project: Default::default(),
        kind,
        nonce: Nonce::new(),
    };
    cloud.call(&request).await?;
    cloud.wait_active(instance.id).await?;
    let after = cloud.guest_answers(instance).await?;
    assert_ne!(before.boot_id, after.boot_id, "a {kind:?} reboot");
    // The same wish again is no other wish.
    let again = cloud.call(&request).await?;
    assert_eq!(again.task_state, None, "the same nonce started something");
    cloud.call(&request).await?;
    assert_eq!(
        cloud.guest_answers(instance).await?.boot_id,
        after.boot_id,
        "one nonce, two {kind:?} reboots"
    );
    Ok(())
}

async fn it_stays_off_when_its_guest_powers_off(
    cloud: &TestCloud,
    instance: &InstanceView,
) -> anyhow::Result<()> {
    let hypervisor = cloud.hv1();
    let domain = format!("berth-{}", instance.id);
    // The power button, pressed by somebody else than berth, is what a guest's own `poweroff` looks like.
    hypervisor
        .text(&["virsh", "-q", "shutdown", &domain, "--mode", "acpi"])
        .await?;
    let stopped = cloud
        .wait_state(instance.id, VmState::Stopped, ACPI_LIMIT)
        .await?;
    assert_eq!(stopped.power_state, PowerState::Shutdown);
    // Five heartbeats, so two looks of the agent, later it is still off.
    let heartbeats = "berth_scheduler_heartbeats_total";
    let before = cloud.scheduler.metric(heartbeats).await?;
    wait_for("five heartbeats", Duration::from_secs(60), async || {
        let now = cloud.scheduler.metric(heartbeats).await?;
        Ok(Seen::when(now >= before + 5.0, now - before))
    })
    .await?;
    let view = cloud.show(instance.id).await?;
    assert_eq!(
        view.vm_state,
        VmState::Stopped,
        "berth started what its guest had switched off"
    );
    assert_eq!(view.task_state, None);
    cloud
        .call(&InstanceStart {
            instance: instance.id.to_string(),
            project: Default::default(),
        })
        .await?;
    cloud.wait_active(instance.id).await?;
    cloud.guest_answers(instance).await?;
    Ok(())
}
