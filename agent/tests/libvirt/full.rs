//! A backup job that finds its disk full while it writes, with a real QEMU.

use super::*;

/// Bytes of the volume: more than the small disk has.
const SIZE: usize = 96 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_finds_its_disk_full_is_told_and_the_guest_notices_nothing() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let mut config = instance(&hypervisor);
    let id = config.id;
    let folder = hypervisor.path().join("pool");
    let small = folder.join("snapshots");
    fs::create_dir_all(&small).unwrap();
    let path = folder.join("volume.raw");
    let mut expected = vec![0x41_u8; SIZE];
    fs::write(&path, &expected).unwrap();
    config.disks.push(raw_volume(&path));
    config.metadata.digest = config.digest();
    let mount = small.to_str().unwrap();
    hypervisor.run(&["mount", "-t", "tmpfs", "-o", "size=32m", "small", mount]);
    let file = small.join(".live-1.qcow2");
    let backup = DomainStep::Backup(BackupPlan {
        instance: id,
        snapshot: SnapshotId::new(),
        disk: disk_of(&config, 1),
        file: file.clone(),
        format: VolumeFormat::Qcow2,
    });
    let file = file.to_str().unwrap();
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);

    let error = libvirt.apply(&backup).await.unwrap_err();
    let text = chain(&error);
    assert_eq!(error.code, FaultCode::DiskFull, "{text}");
    assert!(error.retryable && text.contains(mount), "{text}");
    assert_eq!(libvirt.backups().await.unwrap(), [], "it goes on");
    // Its disk is what it was, and what it writes goes there; it stands still for nobody.
    assert!(fs::read(&path).unwrap() == expected, "its disk was touched");
    let running = observed(&libvirt, id).await;
    assert_eq!(running.power_state, PowerState::Running);
    guest_writes(&hypervisor, &config, 0x42, 0);
    expected[..1 << 20].fill(0x42);
    assert!(fs::read(&path).unwrap() == expected, "its write is lost");

    // What may be left of it goes, and as long as there is no room it ends the same.
    hypervisor.run(&["rm", "-f", file]);
    let error = libvirt.apply(&backup).await.unwrap_err();
    assert_eq!(error.code, FaultCode::DiskFull, "{}", chain(&error));

    // With room it is made, as the disk is by now.
    hypervisor.run(&["rm", "-f", file]);
    hypervisor.run(&["mount", "-o", "remount,size=256m", mount]);
    libvirt.apply(&backup).await.unwrap();
    let copy = folder.join("copy.raw");
    let convert = [
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        file,
        copy.to_str().unwrap(),
    ];
    // The job has ended a moment before QEMU lets go of the file.
    wait_for("the file to be free", || hypervisor.try_run(&convert));
    assert!(
        fs::read(&copy).unwrap() == expected,
        "it is another content"
    );
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
