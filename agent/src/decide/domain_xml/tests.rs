//! The XML is looked at in golden files; reading gives back what was written, and survives anything.

use berth_common::{
    ids::{InstanceId, NetworkId, Nonce, PortId, SnapshotId},
    names::MacAddress,
    units::{Generation, Vcpus},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::decide::{
    domain::{DiskFile, LeftOff},
    room::Room,
};

fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0191_e7a0_7c1f_7b5e_9d2a_0000_0000_0000 + n)
}

fn config(virt_type: VirtType) -> DomainConfig {
    let instance = InstanceId::try_from(id(1)).unwrap();
    let mut config = DomainConfig {
        id: instance,
        title: "web-1".to_owned(),
        virt_type,
        arch: "x86_64".to_owned(),
        vcpus: Vcpus::clamped(2),
        cpu_shares: None,
        memory_mb: MemoryMb::clamped(512),
        room: Room::none(Vcpus::clamped(2), MemoryMb::clamped(512)),
        disks: vec![DomainDisk {
            path: format!("/var/lib/berth/instances/{instance}/disk0.qcow2").into(),
            format: "qcow2",
            backing: vec![(
                format!("/var/lib/berth/images/{:064x}", 0xabc).into(),
                "qcow2",
            )],
            target: "vda".to_owned(),
            serial: "disk0".to_owned(),
            access: VolumeAccess::ReadWrite,
            limits: VolumeLimits::default(),
        }],
        nics: vec![DomainNic {
            port: PortId::try_from(id(3)).unwrap(),
            mac_address: "52:54:00:12:34:56".parse::<MacAddress>().unwrap(),
            bridge: names::bridge(NetworkId::try_from(id(2)).unwrap()),
            tap: names::tap(PortId::try_from(id(3)).unwrap()),
            mtu: 1500,
            link: PortLink::Up,
        }],
        config_drive: None,
        console_log: format!("/var/lib/berth/instances/{instance}/console.log").into(),
        metadata: DomainMetadata {
            instance_id: instance,
            generation: Generation(0),
            reboot_nonce: None,
            digest: String::new(),
            left_off: None,
        },
    };
    // A fixed one: the real digest changes with every field that is added.
    config.metadata.digest = "00112233445566778899aabbccddeeff".to_owned();
    config
}

fn check_golden(name: &str, config: &DomainConfig) {
    check_golden_text(name, &write(config).unwrap());
}

fn check_golden_text(name: &str, xml: &str) {
    insta::with_settings!({ snapshot_path => "../../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, xml);
    });
}

#[test]
fn a_backup_goes_into_a_new_file_or_onto_a_block_device_that_is_there() {
    let snapshot = SnapshotId::try_from(id(6)).unwrap();
    for (name, format, file) in [
        (
            "backup_file",
            VolumeFormat::Qcow2,
            format!("/var/lib/berth/snapshots/.live-{snapshot}.qcow2"),
        ),
        (
            "backup_block_device",
            VolumeFormat::Raw,
            format!("/dev/vg0/{}", names::partial_snapshot(snapshot)),
        ),
    ] {
        let plan = BackupPlan {
            instance: InstanceId::try_from(id(1)).unwrap(),
            snapshot,
            disk: DiskFile {
                path: "/dev/vg0/berth-x".into(),
                target: "vdb".to_owned(),
            },
            file: file.into(),
            format,
        };
        let xml = write_backup(&plan).unwrap();
        check_golden_text(name, &xml);
        // Whoever looks for it later finds where it goes.
        assert_eq!(read_backup(&xml), [plan.file]);
    }
}

#[test]
fn an_emulated_guest_with_one_disk_and_one_nic() {
    check_golden("domain_qemu", &config(VirtType::Qemu));
}

#[test]
fn a_kvm_guest_with_everything() {
    let mut config = config(VirtType::Kvm);
    config.cpu_shares = Some(2048);
    config.metadata.generation = Generation(7);
    config.metadata.reboot_nonce = Some(Nonce::try_from(id(4)).unwrap());
    config.disks.push(DomainDisk {
        path: "/srv/pool/data & more.raw".into(),
        format: "raw",
        backing: Vec::new(),
        target: "vdb".to_owned(),
        serial: "disk1".to_owned(),
        access: VolumeAccess::ReadOnly,
        limits: VolumeLimits {
            total_iops: Some(500),
            total_bytes_per_second: Some(10 << 20),
        },
    });
    config.nics.push(DomainNic {
        port: PortId::try_from(id(5)).unwrap(),
        mac_address: "52:54:00:12:34:57".parse().unwrap(),
        tap: names::tap(PortId::try_from(id(5)).unwrap()),
        link: PortLink::Down,
        mtu: 1442,
        ..config.nics[0].clone()
    });
    check_golden("domain_kvm", &config);
}

/// A NIC of a definition, as libvirt would name it.
fn observed(nic: &DomainNic) -> NicObserved {
    NicObserved {
        alias: Some(names::nic_alias(nic.port)),
        mac_address: nic.mac_address,
        bridge: nic.bridge.clone(),
        tap: nic.tap.clone(),
        mtu: Some(nic.mtu),
        link: nic.link,
    }
}

#[test]
fn nics_are_read_as_they_were_written_and_those_on_no_bridge_are_nobodys() {
    let mut config = config(VirtType::Kvm);
    let second = DomainNic {
        port: PortId::try_from(id(5)).unwrap(),
        link: PortLink::Down,
        ..config.nics[0].clone()
    };
    config.nics.push(second);
    let nics: Vec<NicObserved> = config.nics.iter().map(observed).collect();
    assert_eq!(read(&write(&config).unwrap()).nics, nics);
    assert_eq!(nics[1].port(), Some(config.nics[1].port));
    let other = "<domain><devices><interface type='user'><mac address='52:54:00:12:34:56'/></interface>\
                 <interface type='bridge'><mac address='nonsense'/><source bridge='b'/><target dev='t'/></interface>\
                 <interface type='bridge'><mac address='52:54:00:12:34:56'/><source bridge='b'/><target dev='vnet0'/>\
                 <link state='up'/><alias name='net0'/></interface></devices></domain>";
    let found = read(other).nics;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(!found[0].is_ours() && found[0].link == PortLink::Up);
}

#[test]
fn a_nic_is_changed_by_all_that_stays_of_it() {
    let mut nic = observed(&config(VirtType::Kvm).nics[0]);
    let expected = |alias: &str, link: &str| {
        format!(
            "<interface type=\"bridge\"><mac address=\"52:54:00:12:34:56\"/><source bridge=\"{}\"/><target dev=\"{}\"/>\
             <model type=\"virtio\"/>{link}<mtu size=\"1500\"/><alias name=\"{alias}\"/></interface>",
            nic.bridge, nic.tap
        )
    };
    let flat = |xml: String| -> String { xml.lines().map(str::trim).collect() };
    let port = format!("ua-berth-port-{}", id(3));
    assert_eq!(
        flat(write_nic_observed(&nic, PortLink::Up).unwrap()),
        expected(&port, "")
    );
    assert_eq!(
        flat(write_nic_observed(&nic, PortLink::Down).unwrap()),
        expected(&port, "<link state=\"down\"/>")
    );
    nic.alias = Some("net0".to_owned());
    assert!(
        write_nic_observed(&nic, PortLink::Up)
            .unwrap()
            .contains("net0")
    );
}

#[test]
fn a_guest_with_room_to_grow() {
    let mut config = config(VirtType::Kvm);
    config.cpu_shares = Some(2048);
    config.room.vcpus = Vcpus::clamped(8);
    config.memory_mb = MemoryMb::clamped(1024);
    config.room.memory_mb = MemoryMb::clamped(4096);
    check_golden("domain_room", &config);
}

#[test]
fn what_a_running_guest_has_is_read_with_what_it_was_given() {
    let mut config = config(VirtType::Kvm);
    config.memory_mb = MemoryMb::clamped(1024);
    config.room.vcpus = Vcpus::clamped(8);
    config.room.memory_mb = MemoryMb::clamped(4096);
    let xml = write(&config).unwrap();
    let facts = read(&xml);
    let running = facts.running();
    assert_eq!((running.vcpus.get(), running.vcpus_max.get()), (2, 8));
    assert_eq!(
        (running.memory_mb.get(), running.memory_mb_max.get()),
        (1024, 4096)
    );
    // libvirt's sum has what was added. Once all slots are used, there is no room any more.
    let piece = write_memory(MemoryMb::clamped(1024), MemoryMb::clamped(1152)).unwrap();
    let with = |pieces: usize| {
        let xml = xml.replace(
            "<memory unit=\"KiB\">1048576<",
            "<memory unit=\"KiB\">1179648<",
        );
        read(&xml.replace("</devices>", &format!("{}</devices>", piece.repeat(pieces))))
    };
    let facts = with(1);
    assert_eq!(facts.memory_aliases, ["ua-berth-memory-1024"]);
    let running = facts.running();
    assert_eq!(
        (running.memory_mb.get(), running.memory_mb_max.get()),
        (1152, 4096)
    );
    assert_eq!(with(16).running().memory_mb_max.get(), 1152);
}

#[test]
fn two_pieces_of_memory_for_the_same_size_cannot_both_be_there() {
    let piece = |with| {
        let xml = write_memory(MemoryMb::clamped(1024), MemoryMb::clamped(with)).unwrap();
        let aliases = read(&format!("<domain><devices>{xml}</devices></domain>")).memory_aliases;
        (xml, aliases)
    };
    let ((small, first), (large, second)) = (piece(1152), piece(1280));
    assert_ne!(small, large);
    assert_eq!(first, ["ua-berth-memory-1024"]);
    assert_eq!(first, second);
}

#[test]
fn a_large_guest_gets_memory_in_the_blocks_that_linux_has_there() {
    for (memory_mb, step) in [(1024, 128), (61_439, 128), (61_440, 2048)] {
        let mut config = config(VirtType::Kvm);
        config.memory_mb = MemoryMb::clamped(memory_mb);
        config.room.memory_mb = MemoryMb::clamped(4 * memory_mb);
        let running = read(&write(&config).unwrap()).running();
        assert_eq!(running.memory_step_mb.get(), step, "{memory_mb}");
        let more = |more: u64| running.takes_memory(MemoryMb::clamped(memory_mb + more));
        assert_eq!(more(128), step == 128, "{memory_mb}");
        assert!(more(2048), "{memory_mb}");
    }
}

#[test]
fn a_guest_with_no_disk_and_no_nic() {
    let mut config = config(VirtType::Qemu);
    config.disks.clear();
    config.nics.clear();
    config.arch = "aarch64".to_owned();
    check_golden("domain_bare", &config);
}

#[test]
fn a_guest_with_a_block_device() {
    let mut config = config(VirtType::Qemu);
    let device = DomainDisk {
        path: "/dev/vg0/berth-0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11".into(),
        format: "raw",
        backing: Vec::new(),
        target: "vdb".to_owned(),
        serial: "7b5e9d2a3f6f5f0c2a11".to_owned(),
        access: VolumeAccess::ReadWrite,
        limits: VolumeLimits {
            total_iops: Some(500),
            total_bytes_per_second: None,
        },
    };
    let file = DiskFile {
        path: device.path.clone(),
        target: "vdb".to_owned(),
    };
    let detach = write_disk_file(&file).unwrap();
    assert!(detach.contains("type=\"block\"") && detach.contains("dev=\"/dev/vg0/berth-"));
    config.disks.push(device);
    check_golden("domain_block_device", &config);
    // Read back, it is one of the domain's disks.
    let found = read(&write(&config).unwrap()).disks;
    assert!(found.contains(&file), "{found:?}");
}

#[test]
fn a_guest_that_boots_from_a_volume() {
    for (name, path, format) in [
        (
            "domain_root_volume",
            "/var/lib/berth/volumes/0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11.qcow2",
            "qcow2",
        ),
        (
            "domain_root_device",
            "/dev/vg0/berth-0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
            "raw",
        ),
    ] {
        let mut config = config(VirtType::Qemu);
        config.disks = vec![DomainDisk {
            path: path.into(),
            format,
            backing: Vec::new(),
            serial: "7b5e9d2a3f6f5f0c2a11".to_owned(),
            ..config.disks[0].clone()
        }];
        check_golden(name, &config);
    }
}

#[test]
fn a_guest_with_a_config_drive() {
    let mut config = config(VirtType::Qemu);
    config.config_drive = Some("/var/lib/berth/instances/x/config.iso".into());
    check_golden("domain_config_drive", &config);
}

#[test]
fn a_guest_with_disks_behind_a_scsi_controller() {
    let mut config = config(VirtType::Qemu);
    for (target, access) in [
        ("sdb", VolumeAccess::ReadWrite),
        ("sdi", VolumeAccess::ReadOnly),
    ] {
        config.disks.push(DomainDisk {
            path: format!("/var/lib/berth/volumes/{target}.raw").into(),
            format: "raw",
            backing: Vec::new(),
            target: target.to_owned(),
            serial: format!("7b5e9d2a3f6f5f0c2a{target}"),
            access,
            limits: VolumeLimits {
                total_iops: Some(500),
                total_bytes_per_second: None,
            },
        });
    }
    check_golden("domain_scsi", &config);
    // One controller for all of them and the config drive, and no port for any of them.
    let ports = |config: &DomainConfig| write(config).unwrap().matches("pcie-root-port").count();
    let controllers = |config: &DomainConfig| write(config).unwrap().matches("virtio-scsi").count();
    let before = (ports(&config), controllers(&config));
    config.config_drive = Some("/var/lib/berth/instances/x/config.iso".into());
    assert_eq!((ports(&config), controllers(&config)), before);
    assert_eq!(before.1, 1);
    // It is found again as what the guest calls it.
    let found = read(&write(&config).unwrap());
    assert!(found.scsi_controller);
    let file = DiskFile {
        path: "/var/lib/berth/volumes/sdi.raw".into(),
        target: "sdi".to_owned(),
    };
    assert!(found.disks.contains(&file), "{:?}", found.disks);
    let detach = write_disk_file(&file).unwrap();
    assert!(detach.contains("dev=\"sdi\" bus=\"scsi\""), "{detach}");
}

#[test]
fn only_the_controller_that_disks_are_put_behind_counts() {
    let check = |controller: &str, expected: bool| {
        let xml = format!("<domain><devices>{controller}</devices></domain>");
        assert_eq!(read(&xml).scsi_controller, expected, "{xml}");
    };
    check(
        "<controller type='scsi' index='0' model='virtio-scsi'><alias name='scsi0'/></controller>",
        true,
    );
    check(
        "<controller type='scsi' index='1' model='virtio-scsi'/>",
        false,
    );
    check(
        "<controller type='scsi' index='0' model='lsilogic'/>",
        false,
    );
    check(
        "<controller type='pci' index='0' model='pcie-root'/>",
        false,
    );
    check(
        "<x><controller type='scsi' index='0' model='virtio-scsi'/></x>",
        false,
    );
    assert!(!read(&write(&config(VirtType::Qemu)).unwrap()).scsi_controller);
}

#[test]
fn what_xml_cannot_hold_is_refused_or_left_out_of_titles() {
    let mut odd = config(VirtType::Qemu);
    odd.title = "a\u{0}b\n</title>&amp;\u{FFFF}".to_owned();
    let xml = write(&odd).unwrap();
    assert!(
        xml.contains("<title>a b &lt;/title&gt;&amp;amp; </title>"),
        "{xml}"
    );
    assert_eq!(read(&xml).metadata, Some(odd.metadata));

    let mut bad = config(VirtType::Qemu);
    bad.disks[0].path = "/a\u{1}b".into();
    assert!(matches!(
        write(&bad),
        Err(DomainXmlError::IllegalCharacter {
            character: '\u{1}',
            ..
        })
    ));

    use std::os::unix::ffi::OsStrExt;
    bad.disks[0].path = std::ffi::OsStr::from_bytes(b"/a\xffb").into();
    assert!(matches!(write(&bad), Err(DomainXmlError::PathNotText(_))));
}

#[test]
fn only_berths_own_element_at_its_place_is_metadata() {
    let good = write(&config(VirtType::Qemu)).unwrap();
    let metadata = Some(config(VirtType::Qemu).metadata);
    let check = |xml: &str, expected: &Option<DomainMetadata>| {
        assert_eq!(&read(xml).metadata, expected, "{xml}")
    };
    check(&good, &metadata);
    // Beside somebody else's element, and with another prefix, as libvirt may write it.
    check(
        &good.replace(
            "<metadata>",
            "<metadata><x:y xmlns:x='urn:x'><x:instance>1</x:instance></x:y>",
        ),
        &metadata,
    );
    let other = good
        .replace("<berth:", "<b:")
        .replace("</berth:", "</b:")
        .replace("xmlns:berth", "xmlns:b");
    check(&other, &metadata);
    // Not in its namespace, not at its place, twice, cut off, with more in it than values.
    check(&good.replace(METADATA_NAMESPACE, "urn:other"), &None);
    check(
        &good
            .replace("<metadata>", "<metadata><o>")
            .replace("</metadata>", "</o></metadata>"),
        &None,
    );
    check(&good.replace("metadata>", "description>"), &None);
    let element = &good[good.find("<berth:domain").unwrap()..good.find("</metadata>").unwrap()];
    check(
        &good.replace(element, &format!("{element}{element}")),
        &None,
    );
    check(&good[..good.len() / 2], &None);
    check(
        &good.replace("<berth:generation>0", "<berth:generation>0<x/>"),
        &None,
    );
    check(
        &good.replace("<berth:generation>0", "<berth:generation>&lt;0"),
        &None,
    );
    check(
        &good.replace("<berth:generation>0", "<berth:generation>-1"),
        &None,
    );
    check(
        &good.replace(
            "<berth:generation>0",
            "<berth:generation>1</berth:generation><berth:generation>0",
        ),
        &None,
    );
    check(
        &good.replace("<berth:instance>", "<berth:instance>x"),
        &None,
    );
    check(&format!("<!DOCTYPE domain [<!ENTITY a 'b'>]>{good}"), &None);
    check("", &None);
    check(&"<a>".repeat(100_000), &None);
}

#[test]
fn size_is_read_in_any_unit() {
    let check = |xml: &str, vcpus, memory_mb| {
        let facts = read(xml);
        assert_eq!(
            (facts.vcpus.get(), facts.memory_mb.get()),
            (vcpus, memory_mb),
            "{xml}"
        );
    };
    check(
        "<domain><memory unit='KiB'>131072</memory><vcpu placement='static' current='1'>4</vcpu></domain>",
        1,
        128,
    );
    check(
        "<domain type='xen'><memory>131072</memory><vcpu>1</vcpu></domain>",
        1,
        128,
    );
    check("<domain><memory unit='GiB'>2</memory></domain>", 0, 2048);
    check(
        "<domain><memory unit='TiB'>99999999999999</memory><vcpu>-1</vcpu></domain>",
        0,
        0,
    );
    check(
        "<domain><devices><memory unit='KiB'>1024</memory></devices></domain>",
        0,
        0,
    );
}

#[test]
fn every_file_a_domain_names_is_found_with_the_guests_name_for_it() {
    let check = |xml: &str, expected: &[(&str, &str)]| {
        let facts = read(&format!("<domain><devices>{xml}</devices></domain>"));
        let found: Vec<_> = facts
            .disks
            .iter()
            .map(|file| (file.path.to_str().unwrap(), file.target.as_str()))
            .collect();
        assert_eq!(found, expected, "{xml}");
    };
    check(
        "<disk type='file'><source file='/a&amp;b' index='2'><seclabel model='dac' relabel='no'/></source>\
         <target dev='vda' bus='virtio'/></disk><disk type='block'><source dev='/dev/sdb'/><target dev='vdb'/></disk>\
         <disk type='file' device='cdrom'><target dev='sda'/></disk>\
         <disk><target dev='vdc'/><source file='/late'/></disk>",
        &[("/a&b", "vda"), ("/dev/sdb", "vdb"), ("/late", "")],
    );
    // What a disk is being copied to is in use as well.
    check(
        "<disk><source file='/top'/><backingStore><source file='/below'/><backingStore/></backingStore>\
         <mirror><source file='/copy'/></mirror><target dev='vdb'/></disk>",
        &[("/top", "vdb"), ("/below", "vdb"), ("/copy", "vdb")],
    );
    check(
        "<filesystem><source file='/no'/></filesystem><serial><source file='/no'/></serial>",
        &[],
    );
    let cut_off = read("<domain><devices><disk><source file='/a'/><target dev='vda'/></disk><disk");
    assert_eq!(cut_off.disks.len(), 1, "what was read is told");
}

prop_compose! {
    fn any_config()(
        seed in 1_u128..1 << 60,
        title in any::<String>(),
        vcpus in 1_u64..=1 << 20,
        memory_mb in 1_u64..=1 << 36,
        generation in any::<u64>(),
        nonce in proptest::option::of(1_u128..1 << 60),
        left_off in proptest::option::of(prop_oneof![Just(LeftOff::Guest), Just(LeftOff::Crashed)]),
        digest in "[0-9a-f]{0,32}",
        paths in proptest::collection::vec("/[^\\p{C}]{1,40}", 0..4),
        kvm in any::<bool>(),
        more_vcpus in 0_u64..4,
        more_memory in 0_u64..4,
    ) -> DomainConfig {
        let mut config = config(if kvm { VirtType::Kvm } else { VirtType::Qemu });
        config.id = InstanceId::try_from(id(seed)).unwrap();
        config.title = title;
        config.vcpus = Vcpus::clamped(vcpus);
        config.room.vcpus = Vcpus::clamped(vcpus.saturating_add(more_vcpus));
        config.memory_mb = MemoryMb::clamped(memory_mb);
        config.room.memory_mb = MemoryMb::clamped(memory_mb.saturating_add(more_memory));
        config.disks[0].backing = paths.into_iter().map(|path| (path.into(), "qcow2")).collect();
        config.metadata = DomainMetadata {
            instance_id: config.id,
            generation: Generation(generation),
            reboot_nonce: nonce.map(|nonce| Nonce::try_from(id(nonce)).unwrap()),
            digest,
            left_off,
        };
        config
    }
}

proptest! {
    #[test]
    fn reading_gives_back_what_was_written(config in any_config()) {
        let facts = read(&write(&config).unwrap());
        prop_assert_eq!(facts.metadata, Some(config.metadata));
        prop_assert_eq!(facts.vcpus, config.vcpus);
        prop_assert_eq!(facts.vcpus_max, config.room.vcpus);
        prop_assert_eq!(facts.memory_mb, config.memory_mb);
        let has_room = config.room.memory_mb > config.memory_mb;
        prop_assert_eq!(facts.memory_max, has_room.then_some(config.room.memory_mb));
        let files = config.disks.iter().flat_map(|disk| {
            let below = disk.backing.iter().map(|(path, _)| path);
            [&disk.path].into_iter().chain(below).map(|path| DiskFile {
                path: path.clone(),
                target: disk.target.clone(),
            })
        });
        prop_assert_eq!(facts.disks, files.collect::<Vec<_>>());
    }

    #[test]
    fn reading_survives_any_text(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn reading_survives_damage(config in any_config(), at in any::<prop::sample::Index>(), junk in ".{0,8}") {
        let mut xml = write(&config).unwrap();
        let places: Vec<usize> = xml.char_indices().map(|(place, _)| place).collect();
        let place = places[at.index(places.len())];
        xml.insert_str(place, &junk);
        // Whatever is still valid is either what was written or visibly something else; never a panic.
        let _ = read(&xml);
    }
}
