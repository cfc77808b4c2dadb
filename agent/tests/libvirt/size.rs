//! A guest that is on gets processors and memory, by real libvirt and QEMU.

use berth_agent::decide::domain_xml;

use super::*;

fn roomy(hypervisor: &Hypervisor) -> DomainConfig {
    let mut config = instance(hypervisor);
    config.memory_mb = MemoryMb::clamped(1024);
    config.room = Room {
        vcpus: Vcpus::clamped(4),
        memory_mb: MemoryMb::clamped(2048),
    };
    config
}

fn has(domain: &DomainObserved) -> Option<(u64, u64)> {
    let running = domain.running?;
    Some((running.vcpus.get(), running.memory_mb.get()))
}

fn plug(id: InstanceId, before: u64, with: u64) -> DomainStep {
    DomainStep::PlugMemory {
        instance: id,
        before: MemoryMb::clamped(before),
        with: MemoryMb::clamped(with),
    }
}

fn vcpus(id: InstanceId, vcpus: u64) -> DomainStep {
    DomainStep::SetVcpus {
        instance: id,
        vcpus: Vcpus::clamped(vcpus),
        // Where there is no cpu controller libvirt refuses the weight: the processors come all the same.
        cpu_shares: Some(1024 * vcpus),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_processors_and_memory_while_it_is_on_and_starts_with_its_definition() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = roomy(&hypervisor);
    let id = config.id;
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!((domain.vcpus.get(), domain.memory_mb.get()), (1, 1024));
    assert_eq!(domain.running, None);
    // One that is off has nothing to be given to.
    twice(&libvirt, vcpus(id, 3)).await;
    twice(&libvirt, plug(id, 1024, 1152)).await;
    assert_eq!(observed(&libvirt, id).await.running, None);

    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);
    let running = observed(&libvirt, id).await.running.unwrap();
    assert_eq!(
        (
            running.vcpus.get(),
            running.vcpus_max.get(),
            running.memory_mb.get(),
            running.memory_mb_max.get()
        ),
        (1, 4, 1024, 2048)
    );
    twice(&libvirt, vcpus(id, 3)).await;
    twice(&libvirt, plug(id, 1024, 1152)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((3, 1152)));
    // What was planned for another size is not done to this one, and fewer is no more.
    twice(&libvirt, plug(id, 1024, 1280)).await;
    twice(&libvirt, vcpus(id, 2)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((3, 1152)));
    twice(&libvirt, plug(id, 1152, 1408)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((3, 1408)));

    // More than there is room for is refused, and changes nothing.
    let error = libvirt.apply(&plug(id, 1408, 4096)).await.unwrap_err();
    assert_eq!(error.code, FaultCode::Hypervisor, "{}", chain(&error));
    assert_eq!(has(&observed(&libvirt, id).await), Some((3, 1408)));

    // It keeps what it was given while its memory is saved, and a definition that says otherwise is for its next start.
    let mut larger = config.clone();
    larger.vcpus = Vcpus::clamped(2);
    larger.memory_mb = MemoryMb::clamped(1280);
    twice(&libvirt, DomainStep::Define(Box::new(larger.clone()))).await;
    twice(&libvirt, DomainStep::Save(id)).await;
    assert_eq!(observed(&libvirt, id).await.running, None);
    twice(&libvirt, DomainStep::Restore(id)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((3, 1408)));
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((2, 1280)));
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_libvirtd_lost_on_the_way_is_taken_back_first() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = roomy(&hypervisor);
    let id = config.id;
    let name = names::domain(id);
    let monitor = |command: &str, arguments: serde_json::Value| {
        let question = serde_json::json!({ "execute": command, "arguments": arguments });
        hypervisor.virsh(&["qemu-monitor-command", &name, &question.to_string()])
    };
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);

    // As libvirtd does it, step by step: it died after the first.
    let alias = names::memory_alias(MemoryMb::clamped(1024));
    let object = format!("mem{alias}");
    let backend = serde_json::json!({
        "qom-type": "memory-backend-ram", "id": object, "size": 128 << 20,
    });
    monitor("object-add", backend);
    twice(&libvirt, plug(id, 1024, 1152)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((1, 1152)));

    // It died after the second: the guest has it, and is asked for it, also where it shall have another size by now.
    let lose = |before: u64| {
        let alias = names::memory_alias(MemoryMb::clamped(before));
        let object = format!("mem{alias}");
        let backend = serde_json::json!({
            "qom-type": "memory-backend-ram", "id": object, "size": 128 << 20,
        });
        monitor("object-add", backend);
        let device = serde_json::json!({
            "driver": "pc-dimm", "id": alias, "memdev": object, "node": 0,
        });
        monitor("device_add", device);
    };
    lose(1152);
    let mut tries = 60;
    while let Err(error) = libvirt.apply(&plug(id, 1152, 1408)).await {
        tries -= 1;
        assert!(error.retryable && tries > 0, "{}", chain(&error));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(has(&observed(&libvirt, id).await), Some((1, 1408)));
    let devices = monitor("query-memory-devices", serde_json::json!({}));
    assert_eq!(devices.matches("\"dimm\"").count(), 2, "{devices}");
    let xml = hypervisor.virsh(&["dumpxml", &name]);
    let known = domain_xml::read(&xml).memory_aliases;
    assert_eq!(known.len(), 2, "{known:?}");

    // What is saved with memory that libvirt does not know could never be restored: the guest is asked for that first.
    lose(1408);
    let error = libvirt.apply(&DomainStep::Save(id)).await.unwrap_err();
    assert!(
        error.retryable && chain(&error).contains("memory that libvirt lost"),
        "{}",
        chain(&error)
    );
    let mut tries = 60;
    while let Err(error) = libvirt.apply(&DomainStep::Save(id)).await {
        tries -= 1;
        assert!(error.retryable && tries > 0, "{}", chain(&error));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    twice(&libvirt, DomainStep::Restore(id)).await;
    assert_eq!(has(&observed(&libvirt, id).await), Some((1, 1408)));
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
