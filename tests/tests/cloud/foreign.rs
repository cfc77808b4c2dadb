//! What berth did not make, it never touches.

use std::time::Duration;

use berth_common::{
    document::DesiredPower,
    message::{report::FaultCode, report::PowerState, view::VmState},
    units::{MemoryMb, Vcpus},
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    wait::{Seen, wait_for},
    with_cloud,
};

#[test]
fn a_foreign_domain_is_listed_counted_and_never_touched() {
    with_cloud(TestCloud::builder(), async |cloud| {
        define(cloud, "database-of-old", None).await?;
        cloud
            .hv1()
            .text(&["virsh", "-q", "start", "database-of-old"])
            .await?;
        let qemu = cloud.hv1().pids_of("qemu-system-x86_64")?;
        let xml = cloud
            .hv1()
            .text(&["virsh", "dumpxml", "database-of-old"])
            .await?;

        let listed = wait_for(
            "the foreign domain in host show",
            Duration::from_secs(30),
            async || {
                let host = cloud.host("hv1").await?;
                let found = host
                    .foreign_domains
                    .iter()
                    .find(|domain| domain.power_state == PowerState::Running)
                    .cloned();
                Ok(found.map_or_else(
                    || Seen::NotYet(format!("{:?}", host.foreign_domains)),
                    Seen::Done,
                ))
            },
        )
        .await?;
        assert_eq!(listed.name, "database-of-old");
        assert_eq!(listed.memory_mb, MemoryMb::new(32)?);
        assert_eq!(listed.vcpus, Vcpus::new(1)?);
        let host = cloud.host("hv1").await?;
        assert_eq!(
            host.used_max.memory_mb,
            MemoryMb::new(32)?,
            "it is counted as used"
        );
        assert_eq!(host.instances, 0);

        // Instances come and go beside it.
        let options = InstanceOptions {
            power: DesiredPower::Stopped,
            ..InstanceOptions::default()
        };
        let instance = cloud.create_instance("neighbour", &options).await?;
        cloud
            .wait_state(instance.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        cloud.hv1_mut().kill_agent()?;
        cloud.hv1_mut().spawn_agent().await?;
        cloud.delete_and_wait(instance.id).await?;

        assert_eq!(cloud.hv1().pids_of("qemu-system-x86_64")?, qemu);
        assert_eq!(
            cloud
                .hv1()
                .text(&["virsh", "dumpxml", "database-of-old"])
                .await?,
            xml
        );
        cloud
            .hv1()
            .text(&["virsh", "-q", "destroy", "database-of-old"])
            .await?;
        cloud
            .hv1()
            .text(&["virsh", "-q", "undefine", "database-of-old"])
            .await?;
        Ok(())
    });
}

#[test]
fn a_foreign_domain_with_the_uuid_of_an_instance_is_a_fault_and_is_left_alone() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let request = cloud.instance_request("twin", &InstanceOptions::default())?;
        define(cloud, "somebody-elses", Some(request.id.to_string())).await?;
        let xml = cloud
            .hv1()
            .text(&["virsh", "dumpxml", "somebody-elses"])
            .await?;
        cloud.call(&request).await?;
        let fault = wait_for("the instance to be in error", CONVERGE_LIMIT, async || {
            let view = cloud.show(request.id).await?;
            let seen = format!("{:?}, fault {:?}", view.vm_state, view.fault);
            Ok(match view.fault {
                Some(fault) if view.vm_state == VmState::Error => Seen::Done(fault),
                _ => Seen::NotYet(seen),
            })
        })
        .await?;
        assert_eq!(fault.code, FaultCode::ForeignObject);
        assert!(
            fault.message.contains("somebody-elses"),
            "{}",
            fault.message
        );

        // Deleting the instance must end, and must not be the other one's end.
        cloud.delete_and_wait(request.id).await?;
        assert_eq!(
            cloud
                .hv1()
                .text(&["virsh", "dumpxml", "somebody-elses"])
                .await?,
            xml
        );
        cloud
            .hv1()
            .text(&["virsh", "-q", "undefine", "somebody-elses"])
            .await?;
        Ok(())
    });
}

async fn define(cloud: &TestCloud, name: &str, uuid: Option<String>) -> anyhow::Result<()> {
    let uuid = uuid
        .map(|uuid| format!("<uuid>{uuid}</uuid>"))
        .unwrap_or_default();
    let xml = format!(
        "<domain type='qemu'><name>{name}</name>{uuid}<memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
    );
    let file = cloud.site.dir().join(format!("{name}.xml"));
    std::fs::write(&file, xml)?;
    cloud
        .hv1()
        .text(&["virsh", "-q", "define", &file.display().to_string()])
        .await
        .map(drop)
}
