//! Volumes behind a SCSI controller, with a real QEMU: also in a guest that was started without one.

use serde_json::json;

use super::*;

/// A volume of a mebibyte on the bus scsi.
fn volume(config: &DomainConfig, target: &str) -> DomainDisk {
    let path = config.disks[0].path.with_file_name(format!("{target}.raw"));
    fs::write(&path, vec![0x41_u8; 1 << 20]).unwrap();
    // As libvirt does for the QEMU it gives a file to.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    DomainDisk {
        path,
        format: "raw",
        backing: Vec::new(),
        target: target.to_owned(),
        serial: format!("0191e7a0-7c1f-7b-{target}"),
        access: VolumeAccess::ReadWrite,
        limits: VolumeLimits {
            total_iops: Some(1000),
            total_bytes_per_second: None,
        },
    }
}

fn file(disk: &DomainDisk) -> DiskFile {
    DiskFile {
        path: disk.path.clone(),
        target: disk.target.clone(),
    }
}

fn attach(config: &DomainConfig, disk: &DomainDisk) -> DomainStep {
    DomainStep::Attach {
        instance: config.id,
        disk: Box::new(disk.clone()),
    }
}

fn detach(config: &DomainConfig, disk: &DomainDisk) -> DomainStep {
    DomainStep::Detach {
        instance: config.id,
        disk: file(disk),
    }
}

async fn has(libvirt: &Libvirt, config: &DomainConfig, disk: &DomainDisk) -> bool {
    let domain = observed(libvirt, config.id).await;
    domain.disks.live.contains(&file(disk))
}

/// What QEMU says of a disk: `info block`.
fn info_block(hypervisor: &Hypervisor, config: &DomainConfig) -> String {
    let domain = names::domain(config.id);
    hypervisor.virsh(&["qemu-monitor-command", "--hmp", &domain, "info block"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_controller_is_given_one_and_disks_behind_it() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = instance(&hypervisor);
    let id = config.id;
    let live_xml = || hypervisor.virsh(&["dumpxml", &names::domain(id)]);
    let disk = volume(&config, "sdb");
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);
    assert!(!observed(&libvirt, id).await.disks.scsi_controller);

    twice(&libvirt, DomainStep::AttachScsiController(id)).await;
    let domain = observed(&libvirt, id).await;
    assert!(domain.disks.scsi_controller);
    twice(&libvirt, attach(&config, &disk)).await;
    assert!(has(&libvirt, &config, &disk).await);
    // More than one controller of libvirt's own making has room for, and none takes a port.
    let more: Vec<_> = ('c'..='m')
        .map(|letter| volume(&config, &format!("sd{letter}")))
        .collect();
    for disk in &more {
        libvirt.apply(&attach(&config, disk)).await.unwrap();
    }
    let xml = live_xml();
    assert_eq!(xml.matches("<controller type='scsi'").count(), 1, "{xml}");
    assert!(xml.contains("model='virtio-scsi'"), "{xml}");
    let place = "controller='0' bus='0' target='12' unit='0'";
    assert!(xml.contains(place), "{xml}");
    let devices = info_block(&hypervisor, &config);
    assert!(devices.contains("scsi0-0-12-0"), "{devices}");

    // It grows, and is copied while the guest has it.
    let grow = DomainStep::GrowDisk {
        instance: id,
        disk: file(&disk),
        size: ByteCount::clamped(4 << 20),
    };
    twice(&libvirt, grow).await;
    assert_eq!(fs::metadata(&disk.path).unwrap().len(), 4 << 20);
    let copy = disk.path.with_file_name(".live-scsi.qcow2");
    let backup = DomainStep::Backup(BackupPlan {
        instance: id,
        snapshot: SnapshotId::new(),
        disk: file(&disk),
        file: copy.clone(),
        format: VolumeFormat::Qcow2,
    });
    libvirt.apply(&backup).await.unwrap();
    assert!(
        content(&copy) == fs::read(&disk.path).unwrap(),
        "it is another content"
    );

    // Its memory knows the controller and the disks, and nothing else is needed when it goes on.
    twice(&libvirt, DomainStep::Save(id)).await;
    let saved = observed(&libvirt, id).await;
    assert_eq!(saved.off_reason, Some(OffReason::Saved));
    assert!(saved.disks.scsi_controller && saved.disks.live.contains(&file(&disk)));
    twice(&libvirt, DomainStep::Restore(id)).await;
    wait_for_state(&libvirt, id, PowerState::Running).await;
    assert!(has(&libvirt, &config, &disk).await);

    // It is taken at once, also from a guest that stands still.
    twice(&libvirt, DomainStep::Pause(id)).await;
    for disk in more.iter().chain([&disk]) {
        twice(&libvirt, detach(&config, disk)).await;
        assert!(!has(&libvirt, &config, disk).await, "{}", disk.target);
    }
    twice(&libvirt, DomainStep::Resume(id)).await;
    twice(&libvirt, attach(&config, &disk)).await;
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_starts_with_disks_behind_the_controller_of_its_config_drive() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let mut config = instance(&hypervisor);
    let id = config.id;
    let nic_of = || {
        let xml = hypervisor.virsh(&["dumpxml", &names::domain(id)]);
        let interface = xml.split("<interface ").nth(1).unwrap().to_owned();
        interface
            .lines()
            .find(|line| line.contains("type='pci'"))
            .unwrap()
            .to_owned()
    };
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    let nic = nic_of();
    let drive = config.disks[0].path.with_file_name("config.iso");
    fs::write(&drive, vec![0_u8; 1 << 20]).unwrap();
    config.config_drive = Some(drive);
    let read_only = DomainDisk {
        access: VolumeAccess::ReadOnly,
        ..volume(&config, "sdi")
    };
    let disks = [volume(&config, "sdb"), read_only];
    config.disks.extend(disks.clone());
    config.metadata.digest = config.digest();
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    // What a guest calls its interfaces follows from their addresses.
    assert_eq!(nic_of(), nic);
    twice(&libvirt, DomainStep::Start(id)).await;
    let domain = observed(&libvirt, id).await;
    assert!(domain.disks.scsi_controller);
    for disk in &disks {
        assert!(domain.disks.live.contains(&file(disk)), "{domain:?}");
        assert!(domain.disks.kept.contains(&file(disk)), "{domain:?}");
    }
    let devices = info_block(&hypervisor, &config);
    let line = devices.lines().find(|line| line.contains("sdi.raw"));
    assert!(line.unwrap().contains("read-only"), "{devices}");
    for disk in &disks {
        twice(&libvirt, detach(&config, disk)).await;
        assert!(!has(&libvirt, &config, disk).await);
    }
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_interrupted_attachments_left_of_scsi_is_got_rid_of() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = booted(&hypervisor, &libvirt).await;
    let id = config.id;
    let ask = |command: serde_json::Value| {
        let domain = names::domain(id);
        let answer = hypervisor.virsh(&["qemu-monitor-command", &domain, &command.to_string()]);
        assert!(answer.contains("\"return\""), "{answer}");
    };
    // A controller that libvirt does not know: the guest has to give it back before there can be another one.
    ask(json!({"execute": "device_add", "arguments": {
        "driver": "virtio-scsi-pci", "bus": "pci.9", "id": "scsi0",
    }}));
    let attached = async {
        let mut refused = 0;
        // What QEMU says late of the one that went libvirt takes for the one that came, and forgets that: it is made once more.
        while !observed(&libvirt, id).await.disks.scsi_controller {
            if let Err(error) = libvirt.apply(&DomainStep::AttachScsiController(id)).await {
                assert!(error.retryable, "{}", chain(&error));
                refused += 1;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        refused
    };
    let refused = tokio::time::timeout(LIMIT, attached).await.unwrap();
    assert!(refused > 0, "nothing was left");

    // A disk that libvirt does not know: it is taken at once.
    let disk = volume(&config, "sdb");
    ask(json!({"execute": "blockdev-add", "arguments": {
        "driver": "file", "filename": disk.path, "node-name": "left-storage", "auto-read-only": true,
    }}));
    ask(json!({"execute": "blockdev-add", "arguments": {
        "driver": "raw", "file": "left-storage", "node-name": "left-format",
    }}));
    ask(json!({"execute": "device_add", "arguments": {
        "driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": 1, "lun": 0, "drive": "left-format", "id": "scsi0-0-1-0",
    }}));
    let attached = async {
        let mut refused = 0;
        while let Err(error) = libvirt.apply(&attach(&config, &disk)).await {
            assert!(error.retryable, "{}", chain(&error));
            refused += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        refused
    };
    let refused = tokio::time::timeout(LIMIT, attached).await.unwrap();
    assert!(refused > 0, "nothing was left");
    assert!(has(&libvirt, &config, &disk).await);
    twice(&libvirt, detach(&config, &disk)).await;
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
