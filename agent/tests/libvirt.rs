//! Domains on a real libvirtd with a real guest under emulation.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test, a panic is a failed assertion"
)]

#[path = "libvirt/devices.rs"]
mod devices;
#[path = "libvirt/events.rs"]
mod events;
#[path = "libvirt/full.rs"]
mod full;
#[path = "libvirt/halted.rs"]
mod halted;
#[path = "libvirt/hung.rs"]
mod hung;
#[path = "libvirt/nics.rs"]
mod nics;
#[path = "libvirt/off.rs"]
mod off;
#[path = "libvirt/orphans.rs"]
mod orphans;
#[path = "libvirt/scsi.rs"]
mod scsi;
#[path = "libvirt/shell.rs"]
mod shell;
#[path = "libvirt/size.rs"]
mod size;
mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use berth_agent::{
    act::{
        ActError, Compute, Usage,
        libvirt::{Libvirt, Limits, Options, VirtTypeChoice},
    },
    decide::{
        breaker::BreakerState,
        domain::{
            BackupPlan, DiskFile, DomainConfig, DomainDisk, DomainMetadata, DomainNic,
            DomainObserved, DomainStep, OffReason, VirtType,
        },
        names,
        room::Room,
    },
};
use berth_common::{
    document::{PortLink, VolumeAccess, VolumeFormat, VolumeLimits},
    ids::{InstanceId, NetworkId, Nonce, PortId, SnapshotId},
    message::report::{FaultCode, PowerState},
    names::MacAddress,
    units::{ByteCount, Generation, MemoryMb, Vcpus},
};
use support::{Hypervisor, LIMIT, guest_image, wait_for};

/// What the guest prints when it has booted.
const BOOTED: &str = "berth-guest: press Enter for a shell";
/// What it prints when it is asked to power off.
const ASKED: &str = "berth-guest: power button pressed";

/// A volume in a raw file, which is the guest's second disk.
fn raw_volume(path: &Path) -> DomainDisk {
    DomainDisk {
        path: path.to_owned(),
        format: "raw",
        backing: Vec::new(),
        target: "vdb".to_owned(),
        serial: "0191e7a0-7c1f-7b5e-9".to_owned(),
        access: VolumeAccess::ReadWrite,
        limits: VolumeLimits::default(),
    }
}

/// An instance with the test guest on a disk, below a path and with a title that XML has to escape.
fn instance(hypervisor: &Hypervisor) -> DomainConfig {
    let id = InstanceId::new();
    let network = NetworkId::new();
    let port = PortId::new();
    hypervisor.add_bridge(&names::bridge(network));
    let folder = hypervisor.path().join(format!("a b&c'<d>\"{id}"));
    fs::create_dir(&folder).unwrap();
    let image = folder.join("image.qcow2");
    fs::copy(guest_image(), &image).unwrap();
    let disk = folder.join("disk0.qcow2");
    overlay(&image, &disk);
    let mut config = DomainConfig {
        id,
        title: "it's <odd> & \"legal\" — ünïcode".to_owned(),
        virt_type: VirtType::Qemu,
        arch: "x86_64".to_owned(),
        vcpus: Vcpus::clamped(1),
        cpu_shares: None,
        memory_mb: MemoryMb::clamped(128),
        room: Room::none(Vcpus::clamped(1), MemoryMb::clamped(128)),
        disks: vec![DomainDisk {
            path: disk,
            format: "qcow2",
            backing: vec![(image, "qcow2")],
            target: "vda".to_owned(),
            serial: "disk0".to_owned(),
            access: VolumeAccess::ReadWrite,
            limits: VolumeLimits::default(),
        }],
        nics: vec![DomainNic {
            port,
            mac_address: MacAddress::derived(port.as_uuid().as_bytes()),
            bridge: names::bridge(network),
            tap: names::tap(port),
            mtu: 1400,
            link: PortLink::Up,
        }],
        config_drive: None,
        console_log: folder.join("console.log"),
        metadata: DomainMetadata {
            instance_id: id,
            generation: Generation(3),
            reboot_nonce: Some(Nonce::new()),
            digest: String::new(),
            left_off: None,
        },
    };
    config.metadata.digest = config.digest();
    config
}

/// A disk of a definition, as libvirt lists it.
fn disk_of(config: &DomainConfig, index: usize) -> DiskFile {
    DiskFile {
        path: config.disks[index].path.clone(),
        target: config.disks[index].target.clone(),
    }
}

fn overlay(image: &Path, disk: &Path) {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([image, disk])
        .arg("1G")
        .status()
        .unwrap();
    assert!(status.success());
}

fn console(config: &DomainConfig) -> String {
    String::from_utf8_lossy(&fs::read(&config.console_log).unwrap_or_default()).into_owned()
}

fn wait_for_console(config: &DomainConfig, text: &str, times: usize) {
    wait_for(&format!("{times} × {text:?} on the console"), || {
        let seen = console(config);
        if seen.matches(text).count() >= times {
            Ok(())
        } else {
            Err(seen)
        }
    });
}

/// One whose first question was answered. As the engine does: a libvirtd on a busy machine, asked for the first time, may fail without a
/// cause.
async fn connected(hypervisor: &Hypervisor, options: Options) -> Libvirt {
    let libvirt = Libvirt::start(&hypervisor.address(), options);
    answers(&libvirt).await;
    libvirt
}

/// Waits until libvirt answers, and nothing that it was asked before hangs; how many domains it lists.
async fn answers(libvirt: &Libvirt) -> usize {
    let start = Instant::now();
    loop {
        let error = match libvirt.observe().await {
            Ok(domains) if libvirt.stuck_calls() == 0 => return domains.len(),
            Ok(_) => "earlier questions hang".to_owned(),
            Err(error) => {
                assert!(error.retryable, "{}", chain(&error));
                chain(&error)
            }
        };
        assert!(start.elapsed() < LIMIT, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn observed(libvirt: &Libvirt, id: InstanceId) -> DomainObserved {
    libvirt
        .observe_one(id)
        .await
        .unwrap()
        .expect("there is a domain")
}

async fn wait_for_state(libvirt: &Libvirt, id: InstanceId, state: PowerState) -> DomainObserved {
    let look = async {
        loop {
            let domain = observed(libvirt, id).await;
            if domain.power_state == state {
                return domain;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let last = tokio::time::timeout(LIMIT, look).await;
    last.unwrap_or_else(|_| panic!("instance {id} is not {state:?} in time"))
}

/// An instance whose guest has booted.
async fn booted(hypervisor: &Hypervisor, libvirt: &Libvirt) -> DomainConfig {
    let config = instance(hypervisor);
    twice(libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(libvirt, DomainStep::Start(config.id)).await;
    wait_for_console(&config, BOOTED, 1);
    config
}

/// A step may always be repeated.
async fn twice(libvirt: &Libvirt, step: DomainStep) {
    // As the engine does: a libvirtd on a busy machine, asked for the first time, may fail without a cause.
    let mut tries = 5;
    while let Err(error) = libvirt.apply(&step).await {
        tries -= 1;
        assert!(error.retryable && tries > 0, "{}", chain(&error));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    libvirt
        .apply(&step)
        .await
        .unwrap_or_else(|error| panic!("the second time: {}", chain(&error)));
}

fn chain(error: &ActError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_lives_its_life_step_by_step() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = instance(&hypervisor);
    let id = config.id;
    assert_eq!(libvirt.observe_one(id).await.unwrap(), None);
    for gone in [
        DomainStep::Shutdown(id),
        DomainStep::Destroy(id),
        DomainStep::Undefine(id),
    ] {
        twice(&libvirt, gone).await;
    }
    let error = libvirt.apply(&DomainStep::Start(id)).await.unwrap_err();
    assert!(
        error.retryable && error.to_string().contains("no such domain"),
        "{}",
        chain(&error)
    );

    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.name, names::domain(id));
    assert_eq!(
        (domain.power_state, domain.off_reason),
        (PowerState::Shutdown, Some(OffReason::Unknown))
    );
    assert!(domain.persistent);
    assert_eq!(
        (domain.vcpus, domain.memory_mb),
        (config.vcpus, config.memory_mb)
    );
    assert_eq!(domain.metadata.as_ref(), Some(&config.metadata));
    assert_eq!(libvirt.observe().await.unwrap(), [domain]);
    assert_eq!(
        hypervisor
            .virsh(&["desc", "--title", &names::domain(id)])
            .trim(),
        config.title
    );

    twice(&libvirt, DomainStep::Start(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(
        (domain.power_state, domain.off_reason),
        (PowerState::Running, None),
        "{}",
        domain.reason
    );
    let links = hypervisor.run(&["ip", "-o", "link", "show", "master", &config.nics[0].bridge]);
    assert!(
        links.contains(&config.nics[0].tap) && links.contains("mtu 1400"),
        "{links}"
    );
    wait_for_console(&config, BOOTED, 1);
    let display = hypervisor.virsh(&["domdisplay", &names::domain(id)]);
    assert!(display.contains("vnc+unix:///"), "{display}");

    // A new definition of a running domain changes what is kept, not what runs.
    let mut newer = config.clone();
    newer.metadata.generation = Generation(4);
    libvirt
        .apply(&DomainStep::Define(Box::new(newer.clone())))
        .await
        .unwrap();
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.metadata, Some(newer.metadata));
    assert_eq!(domain.power_state, PowerState::Running);
    let error = libvirt.apply(&DomainStep::Undefine(id)).await.unwrap_err();
    assert!(
        error.to_string().contains("it is not off"),
        "{}",
        chain(&error)
    );

    hypervisor.virsh(&["suspend", &names::domain(id)]);
    assert_eq!(observed(&libvirt, id).await.power_state, PowerState::Paused);
    twice(&libvirt, DomainStep::Resume(id)).await;
    assert_eq!(
        observed(&libvirt, id).await.power_state,
        PowerState::Running
    );

    libvirt.apply(&DomainStep::Shutdown(id)).await.unwrap();
    let domain = wait_for_state(&libvirt, id, PowerState::Shutdown).await;
    assert_eq!(
        domain.off_reason,
        Some(OffReason::Guest),
        "{}",
        domain.reason
    );
    assert!(console(&config).contains(ASKED));

    // The second boot is added to the same log.
    libvirt.apply(&DomainStep::Start(id)).await.unwrap();
    wait_for_console(&config, BOOTED, 2);
    twice(&libvirt, DomainStep::Destroy(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(
        domain.off_reason,
        Some(OffReason::Destroyed),
        "{}",
        domain.reason
    );
    twice(&libvirt, DomainStep::Undefine(id)).await;
    assert_eq!(libvirt.observe().await.unwrap(), []);
    assert_eq!(hypervisor.qemu_pids(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_stands_still_is_saved_and_goes_on_where_it_was() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = instance(&hypervisor);
    let id = config.id;
    for needs_a_domain in [
        DomainStep::Pause(id),
        DomainStep::Save(id),
        DomainStep::Restore(id),
        DomainStep::StartPaused(id),
    ] {
        let error = libvirt.apply(&needs_a_domain).await.unwrap_err();
        assert!(error.to_string().contains("no such domain"), "{error}");
    }
    twice(&libvirt, DomainStep::DiscardSaved(id)).await;

    // Started so that it stands still, it has printed nothing before it goes on.
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::StartPaused(id)).await;
    assert_eq!(observed(&libvirt, id).await.power_state, PowerState::Paused);
    assert!(!console(&config).contains(BOOTED));
    twice(&libvirt, DomainStep::Resume(id)).await;
    wait_for_console(&config, BOOTED, 1);

    twice(&libvirt, DomainStep::Pause(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(
        (domain.power_state, domain.off_reason),
        (PowerState::Paused, None),
        "{}",
        domain.reason
    );

    // One that stands still is saved too, and runs when it is restored.
    twice(&libvirt, DomainStep::Save(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(
        (domain.power_state, domain.off_reason),
        (PowerState::Shutdown, Some(OffReason::Saved)),
        "{}",
        domain.reason
    );
    assert_eq!(hypervisor.qemu_pids(), "");
    assert_eq!(libvirt.job(id).await.unwrap(), None);

    // libvirt may be started anew meanwhile, and a newer definition be written.
    hypervisor.kill_libvirtd();
    hypervisor.start_libvirtd();
    let mut newer = config.clone();
    newer.metadata.generation = Generation(4);
    twice(&libvirt, DomainStep::Define(Box::new(newer.clone()))).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(
        domain.off_reason,
        Some(OffReason::Saved),
        "{}",
        domain.reason
    );
    twice(&libvirt, DomainStep::Restore(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.power_state, PowerState::Running, "{}", domain.reason);
    assert_eq!(domain.metadata, Some(newer.metadata));

    // It is the same guest, and it listens.
    libvirt.apply(&DomainStep::Shutdown(id)).await.unwrap();
    wait_for_state(&libvirt, id, PowerState::Shutdown).await;
    assert_eq!(console(&config).matches(BOOTED).count(), 1);
    assert!(console(&config).contains(ASKED));

    // Memory that is thrown away means another boot.
    libvirt.apply(&DomainStep::Start(id)).await.unwrap();
    wait_for_console(&config, BOOTED, 2);
    twice(&libvirt, DomainStep::Save(id)).await;
    twice(&libvirt, DomainStep::DiscardSaved(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.power_state, PowerState::Shutdown);
    assert_ne!(domain.off_reason, Some(OffReason::Saved));
    libvirt.apply(&DomainStep::Start(id)).await.unwrap();
    wait_for_console(&config, BOOTED, 3);

    // A guest that is started afresh does not go back to memory that somebody saved meanwhile.
    hypervisor.virsh(&["managedsave", &names::domain(id)]);
    libvirt.apply(&DomainStep::Start(id)).await.unwrap();
    wait_for_console(&config, BOOTED, 4);
    let domain = observed(&libvirt, id).await;
    assert!(!domain.leftover_memory, "{domain:?}");

    // A definition goes with the memory that was saved for it.
    twice(&libvirt, DomainStep::Save(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
    assert_eq!(libvirt.observe().await.unwrap(), []);
}

/// A libvirtd that is started anew ends what its predecessor was starting, once QEMU answers. Of one that does not answer
/// it would say for ever that it is starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_libvirt_never_finishes_is_abandoned_and_costs_no_saved_memory() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = booted(&hypervisor, &libvirt).await;
    let id = config.id;
    // It runs: nobody switches it off for this.
    twice(&libvirt, DomainStep::AbandonStart(id)).await;
    assert_eq!(
        observed(&libvirt, id).await.power_state,
        PowerState::Running
    );
    twice(&libvirt, DomainStep::Save(id)).await;

    let frozen = async {
        let freeze = "until pkill -STOP -u libvirt-qemu qemu-system; do sleep 0.01; done";
        let argv = ["timeout", "60", "sh", "-c", freeze];
        tokio::task::block_in_place(|| {
            hypervisor.run(&argv);
            hypervisor.kill_libvirtd();
            hypervisor.start_libvirtd();
            hypervisor.wait_libvirtd();
        });
    };
    let restore = DomainStep::Restore(id);
    let (restored, ()) = tokio::join!(libvirt.apply(&restore), frozen);
    restored.unwrap_err();
    let domain = observed(&libvirt, id).await;
    assert!(domain.is_starting, "{domain:?}");
    assert!(!domain.leftover_memory, "{domain:?}");

    twice(&libvirt, DomainStep::AbandonStart(id)).await;
    let domain = observed(&libvirt, id).await;
    assert!(!domain.is_starting, "{domain:?}");
    assert_eq!(
        domain.off_reason,
        Some(OffReason::Saved),
        "{}",
        domain.reason
    );
    twice(&libvirt, DomainStep::Restore(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.power_state, PowerState::Running, "{}", domain.reason);
    assert_eq!(console(&config).matches(BOOTED).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_below_a_disk_stays_roots_and_read_only() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = instance(&hypervisor);
    let id = config.id;
    let (disk, image) = (&config.disks[0].path, &config.disks[0].backing[0].0);
    fs::set_permissions(image, fs::Permissions::from_mode(0o444)).unwrap();
    let owner = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    let before = fs::read(image).unwrap();
    assert_eq!(owner(image), (0, 0, 0o444));

    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);
    assert_ne!(owner(disk).0, 0, "QEMU does not run as root");
    assert_eq!(owner(image), (0, 0, 0o444));

    libvirt.apply(&DomainStep::Destroy(id)).await.unwrap();
    assert_eq!(owner(image), (0, 0, 0o444));
    assert_eq!(fs::read(image).unwrap(), before);
    libvirt.apply(&DomainStep::Undefine(id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_domain_is_listed_and_never_touched() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = instance(&hypervisor);
    let id = config.id;
    let define = |name: &str, uuid: &str, metadata: &str| {
        let path = hypervisor.path().join("foreign.xml");
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><metadata>{metadata}</metadata>\
             <memory unit='MiB'>64</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>"
        );
        fs::write(&path, xml).unwrap();
        hypervisor.virsh(&["define", path.to_str().unwrap()]);
    };
    let all_steps = [
        DomainStep::Define(Box::new(config.clone())),
        DomainStep::Start(id),
        DomainStep::StartPaused(id),
        DomainStep::Restore(id),
        DomainStep::DiscardSaved(id),
        DomainStep::Pause(id),
        DomainStep::Resume(id),
        DomainStep::Save(id),
        DomainStep::Shutdown(id),
        DomainStep::Destroy(id),
        DomainStep::Undefine(id),
    ];

    // It has the instance's UUID; once also with a copy of another instance's metadata.
    let copied = format!(
        "<b:domain xmlns:b='urn:berth:domain:1'><b:instance>{}</b:instance><b:generation>1</b:generation>\
         <b:digest>0</b:digest></b:domain>",
        InstanceId::new()
    );
    for metadata in ["", &copied] {
        define("somebodys-own", &id.to_string(), metadata);
        hypervisor.virsh(&["start", "--paused", "somebodys-own"]);
        let before = hypervisor.virsh(&["dumpxml", "somebodys-own"]);
        let listed = libvirt.observe().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].name.as_str(), &listed[0].metadata),
            ("somebodys-own", &None)
        );
        assert_eq!((listed[0].vcpus.get(), listed[0].memory_mb.get()), (2, 64));
        assert_eq!(listed[0].power_state, PowerState::Paused);
        for step in &all_steps {
            let error = libvirt.apply(step).await.unwrap_err();
            assert_eq!(
                (error.code, error.retryable),
                (FaultCode::ForeignObject, false),
                "{step:?}: {}",
                chain(&error)
            );
        }
        assert_eq!(hypervisor.virsh(&["dumpxml", "somebodys-own"]), before);
        hypervisor.virsh(&["destroy", "somebodys-own"]);
        hypervisor.virsh(&["undefine", "somebodys-own"]);
    }

    // It has the instance's name.
    define(&names::domain(id), &InstanceId::new().to_string(), "");
    let error = libvirt.apply(&all_steps[0]).await.unwrap_err();
    assert_eq!(
        (error.code, error.retryable),
        (FaultCode::ForeignObject, false),
        "{}",
        chain(&error)
    );
    assert_eq!(libvirt.observe_one(id).await.unwrap(), None);
    assert_eq!(libvirt.observe().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_run_on_while_libvirtd_is_gone_and_calls_recover() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = instance(&hypervisor);
    let id = config.id;
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);
    let before = observed(&libvirt, id).await;
    let qemu = hypervisor.qemu_pids();
    assert!(!qemu.trim().is_empty());

    hypervisor.kill_libvirtd();
    let error = libvirt.observe().await.unwrap_err();
    assert!(error.retryable, "{}", chain(&error));
    assert!(
        chain(&error).contains("cannot reach libvirt at qemu+unix"),
        "{}",
        chain(&error)
    );
    assert_eq!(hypervisor.qemu_pids(), qemu);

    hypervisor.start_libvirtd();
    let recovered = async {
        loop {
            match libvirt.observe_one(id).await {
                Ok(found) => return found,
                Err(error) => assert!(error.retryable, "{}", chain(&error)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let after = tokio::time::timeout(LIMIT, recovered)
        .await
        .expect("libvirt is reached again")
        .unwrap();
    assert_eq!(
        (after.power_state, &after.metadata),
        (PowerState::Running, &before.metadata)
    );
    assert_eq!(hypervisor.qemu_pids(), qemu);
    assert_eq!(console(&config).matches(BOOTED).count(), 1);

    // Killed once more, with nobody looking in between: the next call finds out by itself.
    hypervisor.kill_libvirtd();
    hypervisor.start_libvirtd();
    hypervisor.wait_libvirtd();
    assert_eq!(observed(&libvirt, id).await.metadata, before.metadata);

    libvirt.apply(&DomainStep::Destroy(id)).await.unwrap();
    libvirt.apply(&DomainStep::Undefine(id)).await.unwrap();
    assert_eq!(libvirt.observe().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_hangs_costs_its_callers_a_deadline_and_then_nothing() {
    let hypervisor = Hypervisor::start();
    let options = Options {
        observe_limits: Limits {
            workers: 1,
            stuck: 2,
            queued: 8,
        },
        observe_deadline: Duration::from_secs(5),
        ..Options::default()
    };
    let libvirt = connected(&hypervisor, options).await;

    hypervisor.signal_libvirtd("STOP");
    for stuck in 1..=2 {
        let error = libvirt.observe().await.unwrap_err();
        assert!(
            error.retryable && chain(&error).contains("no answer within 5 s"),
            "{}",
            chain(&error)
        );
        assert_eq!(libvirt.stuck_calls(), stuck);
    }
    let error = libvirt.observe().await.unwrap_err();
    assert!(
        chain(&error).contains("2 earlier calls still hang"),
        "{}",
        chain(&error)
    );

    hypervisor.signal_libvirtd("CONT");
    wait_for("the calls that hung to return", || {
        match libvirt.stuck_calls() {
            0 => Ok(()),
            stuck => Err(format!("{stuck} hang")),
        }
    });
    assert_eq!(answers(&libvirt).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_hangs_on_is_not_asked_any_more_until_it_is_back() {
    let hypervisor = Hypervisor::start();
    let options = Options {
        observe_deadline: Duration::from_secs(1),
        usage_deadline: Duration::from_secs(1),
        ..Options::default()
    };
    let libvirt = connected(&hypervisor, options).await;
    hypervisor.signal_libvirtd("STOP");
    let since = chrono::Utc::now();
    for _ in 0..3 {
        assert_eq!(libvirt.breaker_state(), BreakerState::Closed);
        let error = chain(&libvirt.observe().await.unwrap_err());
        assert!(error.contains("no answer within 1 s"), "{error}");
    }
    assert_eq!(libvirt.breaker_state(), BreakerState::Open);
    let stuck = libvirt.stuck_calls();

    // However many ask, nobody waits for longer than a probe takes, and no thread more than the probe's hangs.
    let mut refused = 0;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) || refused <= 5 {
        let asked = Instant::now();
        let error = chain(&libvirt.observe().await.unwrap_err());
        assert!(error.contains("does not answer since"), "{error}");
        let year = since.format("%Y-").to_string();
        assert!(error.contains(&year), "{error}");
        assert!(asked.elapsed() < Duration::from_secs(4), "{error}");
        let error = chain(&libvirt.usage().await.unwrap_err());
        assert!(error.contains("it was not asked"), "{error}");
        refused += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(libvirt.stuck_calls() <= stuck + 2, "{stuck}");

    hypervisor.signal_libvirtd("CONT");
    assert_eq!(answers(&libvirt).await, 0);
    assert_eq!(libvirt.breaker_state(), BreakerState::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_libvirtd_is_told_by_its_address_and_may_come_later() {
    let nowhere = "qemu+unix:///system?socket=/nonexistent/libvirt-sock";
    let libvirt = Libvirt::start(&nowhere.parse().unwrap(), Options::default());
    let error = libvirt.observe().await.unwrap_err();
    assert_eq!((error.code, error.retryable), (FaultCode::Hypervisor, true));
    let text = chain(&error);
    for words in [
        "/nonexistent/libvirt-sock",
        "systemctl start libvirtd",
        "No such file",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert!(
        libvirt
            .host_facts(VirtTypeChoice::Auto)
            .await
            .unwrap_err()
            .retryable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_told_as_libvirt_sees_it() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let facts = libvirt.host_facts(VirtTypeChoice::Qemu).await.unwrap();
    assert_eq!(facts.arch, std::env::consts::ARCH);
    assert_eq!(facts.virt_type, VirtType::Qemu);
    assert!(
        facts.libvirt_version >= 7_001_000 && facts.hypervisor_version > 0,
        "{facts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_given_a_volume_that_it_keeps_until_it_gives_it_back_or_is_off() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let config = instance(&hypervisor);
    let id = config.id;
    let path = config.disks[0].path.with_file_name("volume.raw");
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let volume = DomainDisk {
        limits: VolumeLimits {
            total_iops: Some(1000),
            total_bytes_per_second: Some(16 << 20),
        },
        ..raw_volume(&path)
    };
    let file = DiskFile {
        path: path.clone(),
        target: volume.target.clone(),
    };
    let attach = DomainStep::Attach {
        instance: id,
        disk: Box::new(volume.clone()),
    };
    let detach = DomainStep::Detach {
        instance: id,
        disk: file.clone(),
    };

    // A guest that stands still can be given one, and cannot give it back.
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::StartPaused(id)).await;
    let before = observed(&libvirt, id).await;
    twice(&libvirt, attach.clone()).await;
    let domain = observed(&libvirt, id).await;
    assert!(domain.disks.live.contains(&file), "{:?}", domain.disks);
    assert_eq!(domain.disks.kept, before.disks.kept);
    // libvirt asks QEMU for what is in force.
    let limits = || hypervisor.virsh(&["blkdeviotune", &names::domain(id), &file.target]);
    let is_limited = |limits: &str| {
        let value = |name: &str| -> Option<u64> {
            let line = limits.lines().find(|line| line.starts_with(name))?;
            line.split(':').nth(1)?.trim().parse().ok()
        };
        value("total_iops_sec ") == Some(1000) && value("total_bytes_sec") == Some(16 << 20)
    };
    assert!(is_limited(&limits()), "{}", limits());
    twice(
        &libvirt,
        DomainStep::GrowDisk {
            instance: id,
            disk: file.clone(),
            size: ByteCount::clamped(4 << 20),
        },
    )
    .await;
    assert_eq!(size(&path), 4 << 20);
    // What has that name now may be another disk than the one that was meant.
    let other = DiskFile {
        path: path.with_file_name("other.raw"),
        target: "vdb".to_owned(),
    };
    for elsewhere in [1 << 20, 8 << 20] {
        let grow = DomainStep::GrowDisk {
            instance: id,
            disk: other.clone(),
            size: ByteCount::clamped(elsewhere),
        };
        libvirt.apply(&grow).await.unwrap();
        assert_eq!(size(&path), 4 << 20);
    }
    twice(&libvirt, detach.clone()).await;
    let domain = observed(&libvirt, id).await;
    assert!(domain.disks.live.contains(&file), "{:?}", domain.disks);

    // Saved, it keeps it, whatever its definition says; switched off, it does not.
    twice(&libvirt, DomainStep::Save(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.off_reason, Some(OffReason::Saved));
    assert!(domain.disks.live.contains(&file), "{:?}", domain.disks);
    twice(&libvirt, DomainStep::DiscardSaved(id)).await;
    let domain = observed(&libvirt, id).await;
    assert_eq!(domain.disks.live, []);

    // All spare ports can be used, and a guest that runs gives back what it is asked for.
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);
    twice(&libvirt, attach).await;
    for letter in 'c'..='i' {
        let target = format!("vd{letter}");
        let path = path.with_file_name(format!("{target}.raw"));
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let disk = Box::new(DomainDisk {
            path,
            target,
            ..volume.clone()
        });
        let attach = DomainStep::Attach { instance: id, disk };
        libvirt.apply(&attach).await.unwrap();
    }
    assert_eq!(
        observed(&libvirt, id).await.disks.live.len(),
        before.disks.live.len() + 8
    );
    // One port is kept for the controller of more of them.
    twice(&libvirt, DomainStep::AttachScsiController(id)).await;
    let given_back = async {
        loop {
            libvirt.apply(&detach).await.unwrap();
            let domain = observed(&libvirt, id).await;
            if !domain.disks.live.contains(&file) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, given_back).await.unwrap();
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}

/// Bytes of the volume in the test of backup jobs: enough for a job to be seen at work.
const KEPT: usize = 512 << 20;

/// The guest's disk is written to as if by the guest: through the device it has it as.
fn guest_writes(hypervisor: &Hypervisor, config: &DomainConfig, byte: u8, offset: usize) {
    let monitor = |command: String| {
        let output = Command::new("virsh")
            .args(["-c", &hypervisor.uri(), "qemu-monitor-command", "--hmp"])
            .args([names::domain(config.id), command])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let devices = monitor("info block".to_owned());
    let device = devices
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Attached to:"))
        .map(str::trim)
        .find(|device| device.contains("virtio-disk1"))
        .unwrap_or_else(|| panic!("no vdb in {devices}"));
    let answer = monitor(format!(
        "qemu-io -d {device} \"write -P {byte} {offset} 1M\""
    ));
    // What becomes of it QEMU tells on its standard output only.
    assert_eq!(answer.trim(), "");
}

/// Sets the pace of the job on the guest's volume, in MiB per second; 0 is as fast as it can.
fn pace(uri: &str, domain: &str, mebibytes: u32) {
    // It may have ended already, and virsh says so or says nothing: the answer is in what is left.
    Command::new("virsh")
        .args(["-c", uri, "blockjob", domain, "vdb", "--bandwidth"])
        .arg(mebibytes.to_string())
        .output()
        .unwrap();
}

/// Bytes that the job on the guest's volume has still to copy.
fn left(uri: &str, domain: &str) -> u64 {
    let output = Command::new("virsh")
        .args(["-c", uri, "blockjob", domain, "vdb", "--raw"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(name)?.parse::<u64>().ok())
    };
    match (field("cur="), field("end=")) {
        (Some(done), Some(all)) => all.saturating_sub(done),
        _ => 0,
    }
}

/// Slows the next job on the guest's volume down as soon as it begins; answers whether it then has so much left that it
/// goes on for seconds.
fn slow_down_the_next(
    hypervisor: &Hypervisor,
    config: &DomainConfig,
    over: Arc<AtomicBool>,
) -> thread::JoinHandle<bool> {
    let (uri, domain) = (hypervisor.uri(), names::domain(config.id));
    thread::spawn(move || {
        while left(&uri, &domain) == 0 {
            if over.load(Ordering::Relaxed) {
                return false;
            }
        }
        pace(&uri, &domain, 8);
        left(&uri, &domain) > 64 << 20
    })
}

/// The content of a qcow2 file.
fn content(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("read-back");
    // The job has ended a moment before QEMU lets go of the file.
    wait_for("the file to be free", || {
        let output = Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .args([path, &raw])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    let content = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_copied_as_it_was_when_that_began_and_a_job_left_alone_is_ended() {
    let hypervisor = Hypervisor::start();
    let libvirt = connected(&hypervisor, Options::default()).await;
    let mut config = instance(&hypervisor);
    let id = config.id;
    let folder = config.disks[0].path.parent().unwrap().to_owned();
    let path = folder.join("volume.raw");
    let mut expected = vec![0x41_u8; KEPT];
    fs::write(&path, &expected).unwrap();
    config.disks.push(raw_volume(&path));
    config.metadata.digest = config.digest();
    let file = folder.join(".live-1.qcow2");
    let backup = DomainStep::Backup(BackupPlan {
        instance: id,
        snapshot: SnapshotId::new(),
        disk: disk_of(&config, 1),
        file: file.clone(),
        format: VolumeFormat::Qcow2,
    });
    let abort = DomainStep::AbortBackup {
        instance: id,
        file: file.clone(),
    };
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;

    // A guest that is off has nothing that QEMU could copy; one that stands still has.
    let error = libvirt.apply(&backup).await.unwrap_err();
    assert!(chain(&error).contains("its guest is not on"), "{error:?}");
    twice(&libvirt, DomainStep::StartPaused(id)).await;
    assert_eq!(libvirt.backups().await.unwrap(), []);
    libvirt.apply(&backup).await.unwrap();
    assert_eq!(libvirt.backups().await.unwrap(), []);
    assert!(content(&file) == expected, "it is another content");
    // A file that is there is not written over.
    libvirt.apply(&backup).await.unwrap_err();
    fs::remove_file(&file).unwrap();
    twice(&libvirt, DomainStep::Resume(id)).await;
    wait_for_console(&config, BOOTED, 1);

    // A job that is begun, and slowed down before it is done: whether that was in time.
    let seen = async |work: &mut (dyn Future<Output = Result<(), ActError>> + Unpin)| {
        let over = Arc::new(AtomicBool::new(false));
        let slow = slow_down_the_next(&hypervisor, &config, over.clone());
        let (mut result, mut is_seen) = (None, false);
        // A job that is seen may be over before it can be slowed down.
        while result.is_none() && !(is_seen && slow.is_finished()) {
            tokio::select! {
                biased;
                done = &mut *work => result = Some(done),
                jobs = libvirt.backups() => {
                    let jobs = jobs.unwrap();
                    if let Some(job) = jobs.iter().find(|job| job.instance == id) {
                        assert_eq!(job.files.as_slice(), std::slice::from_ref(&file));
                        is_seen = true;
                    }
                }
            }
        }
        over.store(result.is_some(), Ordering::Relaxed);
        let slow = slow.join().unwrap();
        assert!(
            !slow || result.is_none(),
            "it was told as done while it ran"
        );
        (slow, result)
    };
    // A copy of this size takes a good second; a machine that never looks in time shows nothing here.
    let begun = async || {
        for _ in 0..10 {
            let mut work = Box::pin(libvirt.apply(&backup));
            match seen(&mut work).await {
                (true, _) => return work,
                (false, None) => work.await.unwrap(),
                (false, Some(done)) => done.unwrap(),
            }
            fs::remove_file(&file).unwrap();
        }
        panic!("ten jobs were over before they were slowed down");
    };

    // What the guest writes after it began is not in it, wherever it writes.
    let work = begun().await;
    guest_writes(&hypervisor, &config, 0x42, KEPT - (1 << 20));
    pace(&hypervisor.uri(), &names::domain(id), 0);
    work.await.unwrap();
    assert!(
        content(&file) == expected,
        "it holds what was written later"
    );
    expected[KEPT - (1 << 20)..].fill(0x42);
    assert!(
        fs::read(&path).unwrap() == expected,
        "the guest's write is lost"
    );
    fs::remove_file(&file).unwrap();

    // Whoever began it dies: the job goes on, is seen by the next one, and ended by nothing but its own file's name.
    drop(begun().await);
    let elsewhere = DomainStep::AbortBackup {
        instance: id,
        file: folder.join("elsewhere"),
    };
    libvirt.apply(&elsewhere).await.unwrap();
    let jobs = libvirt.backups().await.unwrap();
    assert_eq!(jobs.len(), 1, "it ended with its agent: {jobs:?}");
    twice(&libvirt, abort).await;
    assert_eq!(libvirt.backups().await.unwrap(), []);
    if file.exists() {
        fs::remove_file(&file).unwrap();
    }
    libvirt.apply(&backup).await.unwrap();
    assert!(content(&file) == expected, "it is another content");
    fs::remove_file(&file).unwrap();

    // Switching the guest off ends it, and that is no success.
    let work = begun().await;
    twice(&libvirt, DomainStep::Destroy(id)).await;
    let error = work.await.expect_err("half a copy counts as whole");
    assert!(error.retryable, "{error:?}");
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
