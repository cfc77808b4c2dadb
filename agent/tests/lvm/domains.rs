//! Logical volumes under a real libvirt and a real QEMU, whose guest stands still: that is enough to open disks, to get more of
//! them, and for QEMU to copy one.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use berth_agent::{
    act::{
        Compute,
        libvirt::{Libvirt, Options},
    },
    decide::{
        domain::{
            BackupPlan, DiskFile, DomainConfig, DomainDisk, DomainMetadata, DomainStep, VirtType,
        },
        room::Room,
    },
};
use berth_common::{
    document::{VolumeAccess, VolumeLimits},
    ids::InstanceId,
    message::report::PowerState,
    units::{Generation, MemoryMb, Vcpus},
};

use super::{snapshots::from, *};

#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "../support/mod.rs"]
mod support;

use support::Hypervisor;

fn disk(volume: &NewVolume, target: &str) -> DomainDisk {
    DomainDisk {
        path: volume.path.clone(),
        format: "raw",
        backing: Vec::new(),
        target: target.to_owned(),
        serial: volume.id.to_string().chars().take(20).collect(),
        access: VolumeAccess::ReadWrite,
        limits: VolumeLimits::default(),
    }
}

fn domain(folder: &Path, disk: DomainDisk) -> DomainConfig {
    let id = InstanceId::new();
    let mut config = DomainConfig {
        id,
        title: "web".to_owned(),
        virt_type: VirtType::Qemu,
        arch: "x86_64".to_owned(),
        vcpus: Vcpus::clamped(1),
        cpu_shares: None,
        memory_mb: MemoryMb::clamped(32),
        room: Room::none(Vcpus::clamped(1), MemoryMb::clamped(32)),
        disks: vec![disk],
        nics: Vec::new(),
        config_drive: None,
        console_log: folder.join("console.log"),
        metadata: DomainMetadata {
            instance_id: id,
            generation: Generation(1),
            reboot_nonce: None,
            digest: String::new(),
        },
    };
    config.metadata.digest = config.digest();
    config
}

/// The programs that have a block device open.
fn users(device: &Path) -> Vec<String> {
    // By its number: libvirt gives QEMU nodes of its own.
    let number = fs::metadata(device).unwrap().rdev();
    let mut names = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        // Processes end while they are looked at.
        let files = fs::read_dir(process.path().join("fd"));
        let has = files.is_ok_and(|files| {
            files
                .flatten()
                .filter_map(|file| fs::metadata(file.path()).ok())
                .any(|file| file.file_type().is_block_device() && file.rdev() == number)
        });
        if has && let Ok(name) = fs::read_to_string(process.path().join("comm")) {
            names.push(name.trim().to_owned());
        }
    }
    names
}

#[track_caller]
fn is_qemus(device: &Path) {
    let users = users(device);
    assert!(
        !users.is_empty() && users.iter().all(|name| name.starts_with("qemu-system")),
        "{}: {users:?}",
        device.display()
    );
}

async fn step(libvirt: &Libvirt, step: DomainStep) {
    let begun = Instant::now();
    // A libvirtd that is asked for the first time asks QEMU first, which takes long where all is emulated.
    while let Err(error) = libvirt.apply(&step).await {
        let is_patient = begun.elapsed() < Duration::from_secs(150);
        assert!(error.retryable && is_patient, "{}", chain(&error));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("{} ms: {step:?}", begun.elapsed().as_millis());
}

#[tokio::test]
async fn a_guest_has_logical_volumes_which_are_kept_under_it_and_not_removed() {
    let lab = Lab::with(128, VolumeWipe::None).with_thin_pool(40);
    let content = noise(2 * MIB);
    let mut volumes = Vec::new();
    for pool in ["thick", "thick", "thin"] {
        let volume = lab.new_volume(pool, 8, Content::Zeros);
        lab.make(&volume).await;
        write(&volume.path, &content, 0);
        volumes.push(volume);
    }
    let [root, data, thin] = volumes.as_slice() else {
        panic!();
    };
    let begun = Instant::now();
    let hypervisor = Hypervisor::start_in("shared");
    println!("{} ms: libvirtd", begun.elapsed().as_millis());
    let libvirt = Libvirt::start(&hypervisor.uri(), Options::default());
    let config = domain(hypervisor.path(), disk(root, "vda"));
    let instance = config.id;
    step(&libvirt, DomainStep::Define(Box::new(config))).await;
    step(&libvirt, DomainStep::StartPaused(instance)).await;
    is_qemus(&root.path);
    for (volume, target) in [(data, "vdb"), (thin, "vdc")] {
        assert_eq!(users(&volume.path), [""; 0]);
        let attach = DomainStep::Attach {
            instance,
            disk: Box::new(disk(volume, target)),
        };
        step(&libvirt, attach).await;
        is_qemus(&volume.path);
    }
    let observed = libvirt.observe_one(instance).await.unwrap().unwrap();
    assert_eq!(observed.power_state, PowerState::Paused);
    let live: Vec<&Path> = observed
        .disks
        .live
        .iter()
        .map(|it| it.path.as_path())
        .collect();
    assert_eq!(live, [root, data, thin].map(|it| it.path.as_path()));
    // The kernel lets nobody take away what is open.
    for volume in [root, thin] {
        let error = lab
            .step(StorageStep::RemoveVolume(volume.id))
            .await
            .unwrap_err();
        assert!(chain(&error).contains("in use"), "{}", chain(&error));
        lab.is_whole(volume, 8).await;
    }

    // Thin: LVM keeps it. Thick: QEMU copies it into a device, and lets go of that.
    let shared = lab.new_snapshot(thin);
    lab.keep(&shared).await;
    let pushed = lab.new_snapshot(data);
    lab.step(StorageStep::PrepareSnapshot(pushed.clone()))
        .await
        .unwrap();
    let partial = lab.paths.partial_snapshot(&data.pool, pushed.id);
    let job = BackupPlan {
        instance,
        snapshot: pushed.id,
        disk: DiskFile {
            path: data.path.clone(),
            target: "vdb".to_owned(),
        },
        file: partial,
        format: VolumeFormat::Raw,
    };
    let begun = Instant::now();
    libvirt
        .apply(&DomainStep::Backup(job))
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    println!("{} ms: backup", begun.elapsed().as_millis());
    for step in [
        StorageStep::NameSnapshot(stored(&pushed)),
        StorageStep::MarkSnapshot(stored(&pushed)),
    ] {
        lab.step(step)
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    write(&data.path, &[7; 4096], 0);
    write(&thin.path, &[7; 4096], 0);
    for snapshot in [&pushed, &shared] {
        let copy = lab.new_volume("thin", 8, from(snapshot));
        lab.make(&copy).await;
        check(&copy.path, &content, 8);
        lab.remove(&copy).await;
        lab.step(StorageStep::RemoveSnapshot(snapshot.id))
            .await
            .unwrap();
    }

    step(&libvirt, DomainStep::Destroy(instance)).await;
    step(&libvirt, DomainStep::Undefine(instance)).await;
    for volume in [root, data, thin] {
        assert_eq!(users(&volume.path), [""; 0]);
        lab.remove(volume).await;
    }
    drop(libvirt);
    drop(hypervisor);
    lab.end(&["tp"]);
}
