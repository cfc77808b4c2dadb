//! Rescue, rebuild, and disks that grow under a guest: which files there are at each step, and what is on them.

use berth_common::document::{DiskBus, Incarnation, Rescue};

use super::*;
use crate::decide::{domain::DiskFile, instance::disks::own};

fn nonce(n: u128) -> Nonce {
    id(2000 + n)
}

fn other_image() -> ImageRef {
    ImageRef {
        url: "http://images.example/other.qcow2".parse().unwrap(),
        sha256: "cd".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

fn rescued(generation: u64, n: u128) -> Desired<InstanceId, InstanceSpec> {
    let rescue = Some(Rescue {
        nonce: nonce(n),
        image: other_image(),
        size_gb: None,
    });
    desired(generation, Some(InstanceSpec { rescue, ..spec() }))
}

fn rebuilt(generation: u64, number: u32) -> Desired<InstanceId, InstanceSpec> {
    let mut spec = spec();
    spec.disks[0].incarnation = Some(Incarnation {
        number,
        nonce: nonce(number.into()),
    });
    spec.disks[0].source = DiskSource::Image(other_image());
    desired(generation, Some(spec))
}

fn rebuilt_disk(number: u32) -> DiskName {
    DiskName::Own {
        index: 0,
        incarnation: Some(Incarnation {
            number,
            nonce: nonce(number.into()),
        }),
    }
}

/// The guest's disks as it sees them: its name of each, and the file.
fn guest_has(rig: &Rig) -> Vec<(String, String)> {
    let domain = rig.host.domain(instance().as_uuid()).unwrap();
    let file = |disk: &DiskFile| {
        let name = disk.path.file_name().unwrap().to_string_lossy();
        (disk.target.clone(), name.into_owned())
    };
    domain.disks.live.iter().map(file).collect()
}

fn content(rig: &Rig, name: DiskName) -> Option<String> {
    rig.host
        .disks(instance())
        .get(&name)
        .map(|disk| disk.content.clone())
}

fn first_image() -> String {
    format!("image {}", image().sha256)
}

fn second_image() -> String {
    format!("image {}", other_image().sha256)
}

#[test]
fn a_rescue_disk_boots_first_and_goes_with_the_rescue() {
    let mut rig = Rig::after(&[running(1)]);
    rig.host.guest_writes(instance(), "vda", "mine");
    let kept = Some(format!("{} + mine", first_image()));

    rig.converge(&rescued(2, 1));
    let rescue = format!("rescue-{}.qcow2", nonce(1));
    let expected = [("vda", rescue.as_str()), ("vdb", "disk0.qcow2")];
    let expected = expected.map(|(target, file)| (target.to_owned(), file.to_owned()));
    assert_eq!(guest_has(&rig), expected);
    assert_eq!(content(&rig, DiskName::first(0)), kept);
    let name = DiskName::Rescue(nonce(1));
    assert_eq!(content(&rig, name), Some(second_image()));

    // Off and on again it stays rescued, with what the rescue left on its disk.
    rig.host.guest_writes(instance(), "vda", "notes");
    let mut stopped = rescued(3, 1);
    stopped.spec.as_mut().unwrap().power = DesiredPower::Stopped;
    rig.converge(&stopped);
    assert_eq!(rig.power_state(), Shutdown);
    rig.converge(&rescued(4, 1));
    let notes = Some(format!("{} + notes", second_image()));
    assert_eq!(content(&rig, name), notes);

    rig.host.guest_writes(instance(), "vdb", "mended");
    rig.converge(&running(5));
    assert_eq!(
        guest_has(&rig),
        [("vda".to_owned(), "disk0.qcow2".to_owned())]
    );
    assert_eq!(content(&rig, name), None, "the rescue disk is gone");
    let mended = Some(format!("{} + mine + mended", first_image()));
    assert_eq!(content(&rig, DiskName::first(0)), mended);

    // Another rescue is another disk, even if nobody saw the end of the one before.
    rig.converge(&rescued(6, 2));
    rig.host.guest_writes(instance(), "vda", "old notes");
    rig.converge(&rescued(8, 3));
    assert_eq!(
        content(&rig, DiskName::Rescue(nonce(3))),
        Some(second_image())
    );
    assert_eq!(content(&rig, DiskName::Rescue(nonce(2))), None);
    assert_eq!(content(&rig, DiskName::first(0)), mended);
}

#[test]
fn the_guest_runs_on_until_the_new_disk_is_there() {
    for wanted in [rescued(2, 1), rebuilt(2, 1)] {
        let mut rig = Rig::after(&[running(1)]);
        rig.host.image_is_unreachable(other_image().url);
        for _ in 0..5 {
            let _ = rig.pass(&wanted).unwrap_err();
        }
        assert_eq!(rig.power_state(), Running);
        assert_eq!((rig.lives().starts, rig.lives().asked), (1, 0));
        assert_eq!(content(&rig, DiskName::first(0)), Some(first_image()));
        // The wish is taken back: nothing ever happened to the guest.
        rig.converge(&running(3));
        assert_eq!((rig.lives().starts, rig.lives().asked), (1, 0));
    }
}

#[test]
fn a_disk_that_cannot_be_made_keeps_no_guest_on() {
    let mut rig = Rig::after(&[running(1)]);
    rig.host.set_guest(instance(), Guest::Takes(2));
    rig.host.image_is_unreachable(other_image().url);
    let _ = rig.pass(&rebuilt(2, 1)).unwrap_err();
    let mut off = rebuilt(3, 1);
    off.spec.as_mut().unwrap().power = DesiredPower::Stopped;
    rig.pass(&off).unwrap();
    // Its owner wants it to run after all, and the guest obeys all the same.
    let _ = rig.pass(&rebuilt(4, 1)).unwrap_err();
    for _ in 0..3 {
        let _ = rig.pass(&rebuilt(4, 1));
    }
    assert_eq!(rig.power_state(), Shutdown);
    assert_eq!(content(&rig, DiskName::first(0)), Some(first_image()));
    rig.host.image_is_back(&other_image().url);
    rig.converge(&rebuilt(4, 1));
    assert_eq!(rig.power_state(), Running);

    let mut rig = Rig::after(&[running(1)]);
    rig.host.image_is_unreachable(other_image().url);
    rig.pass(&off).unwrap();
    assert_eq!((rig.power_state(), rig.lives().asked), (Shutdown, 1));
    let _ = rig.pass(&off).unwrap_err();
}

#[test]
fn a_rebuilt_disk_takes_the_place_of_the_old_one_and_is_made_once() {
    let mut rig = Rig::after(&[running(1)]);
    rig.host.guest_writes(instance(), "vda", "old");
    rig.converge(&rebuilt(2, 1));
    assert_eq!(content(&rig, rebuilt_disk(1)), Some(second_image()));
    assert_eq!(rig.host.disks(instance()).len(), 1, "the old one is gone");
    rig.host.guest_writes(instance(), "vda", "new");
    for _ in 0..3 {
        rig.forget();
        rig.converge(&rebuilt(2, 1));
    }
    let new = Some(format!("{} + new", second_image()));
    assert_eq!(content(&rig, rebuilt_disk(1)), new);
    assert_eq!(rig.lives().starts, 2);
    rig.converge(&rebuilt(3, 2));
    assert_eq!(content(&rig, rebuilt_disk(2)), Some(second_image()));
    assert_eq!(rig.host.disks(instance()).len(), 1);
}

#[test]
fn a_stopped_instance_is_rebuilt_and_stays_off() {
    let mut rig = Rig::after(&[running(1), stopped(2)]);
    let mut wanted = rebuilt(3, 1);
    wanted.spec.as_mut().unwrap().power = DesiredPower::Stopped;
    rig.converge(&wanted);
    assert_eq!((rig.power_state(), rig.lives().starts), (Shutdown, 1));
    assert_eq!(content(&rig, rebuilt_disk(1)), Some(second_image()));
    assert_eq!(rig.host.disks(instance()).len(), 1);
}

#[test]
fn an_older_disk_never_takes_the_place_of_a_newer_one() {
    for older in [running(5), rebuilt(5, 1)] {
        let mut rig = Rig::after(&[running(1), rebuilt(2, 1), rebuilt(3, 2)]);
        rig.host.guest_writes(instance(), "vda", "new");
        let then = rig.converge(&older);
        let Then::Refused(fault) = then else {
            panic!("{then:?}")
        };
        assert!(fault.message.contains("has the number 2"), "{fault:?}");
        let new = Some(format!("{} + new", second_image()));
        assert_eq!(content(&rig, rebuilt_disk(2)), new);
        assert_eq!(rig.power_state(), Running);
        // Its owner may switch it off all the same.
        let mut off = older.clone();
        off.generation = Generation(6);
        off.spec.as_mut().unwrap().power = DesiredPower::Stopped;
        assert!(matches!(rig.converge(&off), Then::Refused(_)));
        assert_eq!(rig.power_state(), Shutdown);
    }
    // The same number of another database is another disk.
    let mut other = rebuilt(5, 2);
    other.spec.as_mut().unwrap().disks[0].incarnation = Some(Incarnation {
        number: 2,
        nonce: nonce(77),
    });
    let mut rig = Rig::after(&[running(1), rebuilt(3, 2)]);
    assert!(matches!(rig.converge(&other), Then::Refused(_)));
}

#[test]
fn a_rebuilt_disk_that_vanished_from_under_its_domain_is_not_made_anew() {
    let mut rig = Rig::after(&[running(1), rebuilt(2, 1)]);
    rig.host.lose_disk(instance(), rebuilt_disk(1));
    let then = rig.converge(&rebuilt(3, 1));
    assert!(
        matches!(&then, Then::Refused(fault) if fault.message.contains("is missing on the host")),
        "{then:?}"
    );
}

#[test]
fn what_is_on_a_disk_is_right_after_every_crash_and_failure() {
    type Way = (
        Vec<Desired<InstanceId, InstanceSpec>>,
        Desired<InstanceId, InstanceSpec>,
    );
    let ways: [Way; 4] = [
        (vec![running(1)], rescued(2, 1)),
        (vec![running(1), rescued(2, 1)], running(3)),
        (vec![running(1)], rebuilt(2, 1)),
        (vec![running(1), rebuilt(2, 1)], rebuilt(3, 2)),
    ];
    for (before, wanted) in &ways {
        for guest in [Guest::Obeys, Guest::Takes(2), Guest::IgnoresAcpi] {
            for step in 0..12 {
                for crash in [true, false] {
                    let mut rig = Rig::after(before);
                    rig.host.set_guest(instance(), guest);
                    rig.host.guest_writes(instance(), "vda", "before");
                    let starts = rig.lives().starts;
                    if crash {
                        rig.host.crash_after(step);
                    } else {
                        rig.host.fail_after(step);
                    }
                    rig.converge(wanted);
                    rig.host.guest_writes(instance(), "vda", "after");
                    rig.forget();
                    rig.converge(wanted);
                    let boots = own(wanted.spec.as_ref().unwrap())[0].name;
                    let what = format!("{guest:?}, {step}, {crash}, {wanted:?}");
                    let found = content(&rig, boots).unwrap();
                    let expected = match (boots, before.len()) {
                        // Rescued and unrescued, it has what it had before it was rescued.
                        (
                            DiskName::Own {
                                incarnation: None, ..
                            },
                            _,
                        ) => {
                            format!("{} + after", first_image())
                        }
                        _ => format!("{} + after", second_image()),
                    };
                    assert_eq!(found, expected, "{what}");
                    let disks = rig.host.disks(instance()).len();
                    let wanted_disks = own(wanted.spec.as_ref().unwrap()).len();
                    assert_eq!(disks, wanted_disks, "{what}");
                    assert_eq!(rig.lives().starts, starts + 1, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_disk_grows_under_a_guest_that_is_on_without_being_started_anew() {
    let larger = |generation, power| {
        let mut larger = spec();
        larger.power = power;
        larger.disks[0].size_gb = DiskGb::clamped(2);
        desired(generation, Some(larger))
    };
    let mut rig = Rig::after(&[running(1)]);
    rig.converge(&larger(2, DesiredPower::Running));
    let size = || rig.host.disks(instance())[&DiskName::first(0)].size;
    assert_eq!(size(), ByteCount::from_gb(DiskGb::clamped(2)));
    assert_eq!(rig.lives().starts, 1);

    // One that sleeps knows the size it has; it grows when it goes on.
    let mut rig = Rig::after(&[running(1), suspended(2)]);
    rig.converge(&larger(3, DesiredPower::Suspended));
    let size = |rig: &Rig| rig.host.disks(instance())[&DiskName::first(0)].size;
    assert_eq!(size(&rig), ByteCount::from_gb(DiskGb::clamped(1)));
    rig.converge(&larger(4, DesiredPower::Running));
    assert_eq!(size(&rig), ByteCount::from_gb(DiskGb::clamped(2)));
    assert_eq!((rig.lives().starts, rig.lives().restores), (1, 1));
}

#[test]
fn volumes_are_left_out_of_a_rescue_and_the_config_drive_is_made_anew_by_a_rebuild() {
    let volume = InstanceVolume {
        id: id(50),
        position: 1,
        format: VolumeFormat::Qcow2,
        pool: PoolName::default(),
        access: VolumeAccess::ReadWrite,
        disk_bus: Default::default(),
        limits: VolumeLimits::default(),
    };
    let mut wanted = rescued(2, 1).spec.unwrap();
    wanted.volumes = vec![volume];
    let targets = |spec: &InstanceSpec| -> Vec<(String, String)> {
        let config = domain_config(instance(), spec, &host());
        let disks = config.disks.into_iter();
        disks.map(|disk| (disk.target, disk.serial)).collect()
    };
    let pair = |target: &str, serial: &str| (target.to_owned(), serial.to_owned());
    assert_eq!(
        targets(&wanted),
        [pair("vda", "rescue"), pair("vdb", "disk0")]
    );
    wanted.rescue = None;
    let with = targets(&wanted);
    assert_eq!(
        (with[0].clone(), with[1].0.as_str(), with.len()),
        (pair("vda", "disk0"), "vdb", 2)
    );

    let mut wanted = rebuilt(2, 1);
    wanted.spec.as_mut().unwrap().config_drive = Some(ConfigDrive::default());
    let mut first = running(1);
    first.spec.as_mut().unwrap().config_drive = Some(ConfigDrive::default());
    let mut rig = Rig::after(&[first]);
    assert_eq!(rig.observe().unwrap().files.config_drives, [None].into());
    rig.converge(&wanted);
    let incarnation = wanted.spec.unwrap().disks[0].incarnation;
    assert_eq!(
        rig.observe().unwrap().files.config_drives,
        [incarnation].into()
    );
}

fn root() -> InstanceVolume {
    InstanceVolume {
        id: id(60),
        position: 0,
        format: VolumeFormat::Qcow2,
        pool: PoolName::default(),
        access: VolumeAccess::ReadWrite,
        disk_bus: DiskBus::Virtio,
        limits: VolumeLimits::default(),
    }
}

fn rooted(generation: u64) -> Desired<InstanceId, InstanceSpec> {
    let rooted = InstanceSpec {
        disks: Vec::new(),
        volumes: vec![root()],
        ..spec()
    };
    desired(generation, Some(rooted))
}

#[test]
fn an_instance_that_boots_from_a_volume_needs_neither_image_nor_disk_and_starts_when_the_volume_is_made()
 {
    let rig = Rig::new();
    let mut observed = rig.observe().unwrap();
    let wanted = rooted(1);
    let early = plan(&wanted, &observed, &host());
    assert_eq!(outline(&early), ["directory"]);
    assert_eq!(early.then, Then::Wait(Wait::Volume(root().id)));
    observed.volumes_ready = [root().id].into();
    let ready = plan(&wanted, &observed, &host());
    assert_eq!(
        outline(&ready),
        ["directory", "define@0", "start", "define@1"]
    );
    assert_eq!(ready.then, Then::Converged);
    // Off, it waits for nothing.
    observed.volumes_ready.clear();
    let mut off = wanted;
    off.spec.as_mut().unwrap().power = DesiredPower::Stopped;
    let off = plan(&off, &observed, &host());
    assert_eq!((outline(&off).len(), off.then), (2, Then::Converged));
}

#[test]
fn a_root_volume_is_the_first_disk_and_the_second_while_its_instance_is_rescued() {
    let mut wanted = rooted(1).spec.unwrap();
    wanted.volumes.push(InstanceVolume {
        id: id(61),
        position: 1,
        ..root()
    });
    let disks = |spec: &InstanceSpec| -> Vec<(String, PathBuf, bool)> {
        let config = domain_config(instance(), spec, &host());
        let disks = config.disks.into_iter();
        disks
            .map(|disk| (disk.target, disk.path, disk.backing.is_empty()))
            .collect()
    };
    let volume = |n| host().paths.volume_file(id(n), VolumeFormat::Qcow2);
    assert_eq!(
        disks(&wanted),
        [
            ("vda".to_owned(), volume(60), true),
            ("vdb".to_owned(), volume(61), true)
        ]
    );
    wanted.rescue = Some(Rescue {
        nonce: nonce(1),
        image: other_image(),
        size_gb: Some(DiskGb::clamped(7)),
    });
    let rescue = host()
        .paths
        .disk(instance(), DiskName::Rescue(nonce(1)), DiskFormat::Qcow2);
    assert_eq!(
        disks(&wanted),
        [
            ("vda".to_owned(), rescue, false),
            ("vdb".to_owned(), volume(60), true)
        ]
    );
    let size = own(&wanted)[0].size;
    assert_eq!(size, ByteCount::from_gb(DiskGb::clamped(7)));
}

#[test]
fn a_guest_is_switched_off_between_its_root_volume_and_a_rescue_disk() {
    let mut rescue = rooted(2);
    rescue.spec.as_mut().unwrap().rescue = Some(Rescue {
        nonce: nonce(1),
        image: other_image(),
        size_gb: None,
    });
    for (from, to) in [(rooted(1), rescue.clone()), (rescue, rooted(3))] {
        let config = domain_config(instance(), from.spec.as_ref().unwrap(), &host());
        let files: Vec<DiskFile> = config
            .disks
            .iter()
            .map(|disk| DiskFile {
                path: disk.path.clone(),
                target: disk.target.clone(),
            })
            .collect();
        let rig = Rig::after(&[running(1)]);
        let mut observed = rig.observe().unwrap();
        let domain = observed.domain.as_mut().unwrap();
        domain.metadata = Some(config.metadata);
        domain.disks.live.clone_from(&files);
        domain.disks.kept = files;
        observed.volumes_ready = [root().id].into();
        observed.images = [image(), other_image()]
            .iter()
            .map(CachedName::of)
            .collect();
        observed.files.disks = [DiskName::Rescue(nonce(1))].into();
        let next = plan(&to, &observed, &host());
        assert!(
            outline(&next).contains(&"shutdown".to_owned()),
            "{:?}",
            outline(&next)
        );
        assert_eq!(next.then, Then::Wait(Wait::GuestPowersOff));
        // The same again is as it shall be.
        let same = plan(&from, &observed, &host());
        assert!(
            !outline(&same).contains(&"shutdown".to_owned()),
            "{:?}",
            outline(&same)
        );
    }
}
