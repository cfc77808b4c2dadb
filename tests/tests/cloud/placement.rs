//! Where instances go, and when there is no room: two hypervisors, claims to the last megabyte.

use berth_common::{
    document::DesiredPower,
    ids::InstanceId,
    message::{
        report::FaultCode,
        request::{HostDisable, HostEnable},
        view::{HostView, VmState},
    },
    refusal::RefusalCode,
    units::{MemoryMb, Vcpus},
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    with_cloud,
};

/// Memory that each hypervisor has to give, before overcommit.
const FREE_MB: u64 = 512;
/// Times 1.5, in instances of this size: six each.
const SIZE_MB: u64 = 128;

#[test]
fn instances_spread_by_free_memory_and_fill_hosts_exactly_up_to_the_overcommit_ratio() {
    let builder = TestCloud::builder()
        .agents(2)
        .scheduler_config("placement.ram_allocation_ratio", "1.5")
        .scheduler_config("placement.cpu_allocation_ratio", "16.0");
    with_cloud(builder, async |cloud| {
        // (total − reserved) × ratio shall be small: the totals are this machine's.
        let total = cloud.host("hv1").await?.total.memory_mb.get();
        cloud
            .scheduler
            .configure("placement.reserved_host_memory_mb", total - FREE_MB);
        cloud.scheduler.restart().await?;
        cloud.wait_all_up().await?;
        let capacity = MemoryMb::new(FREE_MB * 3 / 2)?;
        assert!(
            cloud
                .hosts()
                .await?
                .iter()
                .all(|host| host.capacity.memory_mb == capacity)
        );

        let options = InstanceOptions {
            power: DesiredPower::Stopped,
            memory_mb: SIZE_MB,
            ..InstanceOptions::default()
        };
        let mut made = Vec::new();
        for number in 1..=12_u64 {
            let name = format!("i{number}");
            let id = cloud.create_instance(&name, &options).await?.id;
            // A host that still builds one weighs less: here only memory shall count.
            cloud
                .wait_state(id, VmState::Stopped, CONVERGE_LIMIT)
                .await?;
            made.push(id);
            let hosts = cloud.hosts().await?;
            let counts: Vec<u64> = hosts.iter().map(|host| host.instances).collect();
            assert!(
                counts[0].abs_diff(counts[1]) <= 1,
                "after {number} instances: {counts:?}"
            );
            assert_eq!(counts.iter().sum::<u64>(), number);
        }
        let full = |host: &HostView| host.used_max.memory_mb == capacity && host.instances == 6;
        assert!(
            cloud.hosts().await?.iter().all(full),
            "{:?}",
            cloud.hosts().await?
        );

        the_next_one_is_refused_with_the_numbers(cloud, &options).await?;
        for id in &made {
            cloud
                .wait_state(*id, VmState::Stopped, CONVERGE_LIMIT)
                .await?;
        }

        // What goes makes room again, on the host it was on and on no other.
        let gone = cloud.show(made[0]).await?;
        cloud.delete_and_wait(gone.id).await?;
        let next = cloud.create_instance("after", &options).await?;
        assert_eq!(next.host, gone.host);
        cloud
            .wait_state(next.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        Ok(())
    });
}

async fn the_next_one_is_refused_with_the_numbers(
    cloud: &TestCloud,
    options: &InstanceOptions,
) -> anyhow::Result<()> {
    let request = cloud.instance_request("one-too-many", options)?;
    let refusal = cloud.refused(&request).await?;
    assert_eq!(refusal.code, RefusalCode::NoValidHost);
    for part in [
        "needs 128 MB of memory",
        "0 free of 768",
        "128 missing",
        "not enough memory is free",
        "ram removed 2",
    ] {
        assert!(
            refusal.message.contains(part),
            "no {part:?} in {:?}",
            refusal.message
        );
    }
    // The instance is there, in error with the same words, and has taken nothing.
    let view = cloud.show(request.id).await?;
    assert_eq!(view.vm_state, VmState::Error);
    let fault = view.fault.map(|fault| (fault.code, fault.message));
    assert_eq!(fault, Some((FaultCode::NoValidHost, refusal.message)));
    assert_eq!(view.host, None);
    // Even the smallest finds no room any more: the sum is exact.
    let mut smallest = cloud.instance_request("smallest", options)?;
    smallest.flavor.memory_mb = MemoryMb::new(1)?;
    let refusal = cloud.refused(&smallest).await?;
    assert!(
        refusal
            .message
            .contains("needs 1 MB of memory, 0 free of 768"),
        "{}",
        refusal.message
    );
    for id in [request.id, smallest.id] {
        cloud.delete_and_wait(id).await?;
    }
    Ok(())
}

#[test]
fn overcommit_is_of_the_sum_and_a_disabled_host_gets_nothing() {
    with_cloud(TestCloud::builder().agents(2), async |cloud| {
        let options = InstanceOptions {
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        larger_than_any_host(cloud, &options).await?;

        let host = "hv1".to_owned();
        let reason = Some("new memory on Tuesday".to_owned());
        let view = cloud
            .call(&HostDisable {
                host: host.clone(),
                reason: reason.clone(),
            })
            .await?;
        assert_eq!(view.disabled_reason, reason);
        for name in ["a", "b"] {
            let instance = cloud.create_instance(name, &options).await?;
            assert_eq!(instance.host.map(String::from).as_deref(), Some("hv2"));
        }
        cloud.call(&HostEnable { host }).await?;
        let instance = cloud.create_instance("c", &options).await?;
        assert_eq!(
            instance.host.map(String::from).as_deref(),
            Some("hv1"),
            "it has more free memory"
        );
        Ok(())
    });
}

async fn larger_than_any_host(cloud: &TestCloud, options: &InstanceOptions) -> anyhow::Result<()> {
    let total = cloud.host("hv1").await?.total;
    let mut request = cloud.instance_request("giant", options)?;
    // Within the ratio of 4.0, but more than one host has.
    request.flavor.vcpus = Vcpus::new(total.vcpus.get() + 1)?;
    let refusal = cloud.refused(&request).await?;
    assert_eq!(refusal.code, RefusalCode::NoValidHost);
    let needed = format!(
        "needs {} vCPU, the whole host has {}",
        total.vcpus.get() + 1,
        total.vcpus.get()
    );
    assert!(refusal.message.contains(&needed), "{}", refusal.message);
    cloud.delete_and_wait(request.id).await?;

    request.id = InstanceId::new();
    request.flavor.vcpus = Vcpus::new(1)?;
    request.flavor.memory_mb = MemoryMb::new(total.memory_mb.get() + 1)?;
    let refusal = cloud.refused(&request).await?;
    assert!(
        refusal.message.contains("MB of memory, the whole host has"),
        "{}",
        refusal.message
    );
    cloud.delete_and_wait(request.id).await
}
