//! Plans for volumes, each in a table, and all of them together from any state.

use std::path::Path;

use berth_common::{
    document::{ImageFormat, VolumeRef},
    ids::HostId,
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::decide::domain::{DiskFile, DomainDisks, DomainMetadata};
use crate::decide::pool::{FilesPlace, PoolPlace};
use berth_common::message::report::PowerState;

const GB: u64 = 1 << 30;

fn paths() -> Paths {
    Paths::below(Path::new("/var/lib/berth"))
}

fn image() -> ImageRef {
    ImageRef {
        url: "http://images.example.org/a.qcow2".parse().unwrap(),
        sha256: "ab".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

/// A volume of 2 GiB.
fn wish(source: Option<VolumeSource>) -> Desired<VolumeId, VolumeSpec> {
    Desired {
        id: VolumeId::new(),
        generation: Generation(1),
        host_id: HostId::new(),
        spec: Some(VolumeSpec {
            pool: Default::default(),
            name: "data".parse().unwrap(),
            project: "default".parse().unwrap(),
            size_gb: DiskGb::new(2).unwrap(),
            format: VolumeFormat::Qcow2,
            source,
        }),
    }
}

fn file(gb: u64) -> VolumeFile {
    VolumeFile {
        pool: Default::default(),
        format: VolumeFormat::Qcow2,
        content: VolumeContent::Size(ByteCount::clamped(gb * GB)),
    }
}

fn made(gb: u64) -> VolumeFiles {
    VolumeFiles {
        files: vec![file(gb)],
        made: true,
        ..VolumeFiles::default()
    }
}

fn with(files: VolumeFiles) -> VolumeObserved {
    VolumeObserved {
        files,
        ..VolumeObserved::default()
    }
}

fn live(instance: Option<InstanceId>) -> VolumeUser {
    VolumeUser {
        domain: "web".to_owned(),
        instance,
        hold: Hold::Live {
            target: "vdb".to_owned(),
        },
    }
}

fn kept() -> VolumeUser {
    VolumeUser {
        hold: Hold::Kept,
        ..live(None)
    }
}

/// The names of a plan's steps.
fn words(plan: &VolumePlan) -> Vec<&'static str> {
    let word = |step: &Step| match step {
        Step::Storage(StorageStep::FetchImage(_)) => "fetch",
        Step::Storage(StorageStep::CreateVolume(_)) => "create",
        Step::Storage(StorageStep::MarkVolume(_)) => "mark",
        Step::Storage(StorageStep::GrowVolume(_)) => "grow",
        Step::Storage(StorageStep::RemoveVolume(_)) => "remove",
        Step::Domain(DomainStep::GrowDisk { .. }) => "grow live",
        _ => "something else",
    };
    plan.steps.iter().map(word).collect()
}

/// Checks what a plan does, and whether guests may have the volume meanwhile.
fn check(
    wish: &Desired<VolumeId, VolumeSpec>,
    observed: &VolumeObserved,
    steps: &[&str],
    then: &VolumeThen,
    usable: Usable,
) {
    let plan = plan(wish, observed, &paths());
    assert_eq!(words(&plan), steps);
    assert_eq!(&plan.then, then);
    assert_eq!(plan.usable, usable);
}

/// Checks that a plan does nothing and is refused with a text that holds these parts.
fn refuses(
    wish: &Desired<VolumeId, VolumeSpec>,
    observed: &VolumeObserved,
    usable: Usable,
    parts: &[&str],
) {
    let plan = plan(wish, observed, &paths());
    let VolumeThen::Refused(fault) = &plan.then else {
        panic!("{plan:?}");
    };
    assert_eq!(plan.steps, []);
    assert_eq!(plan.usable, usable);
    assert_eq!(fault.code, FaultCode::Volume);
    for part in parts {
        assert!(fault.message.contains(part), "{part}: {}", fault.message);
    }
}

const DONE: VolumeThen = VolumeThen::Converged;

#[test]
fn a_volume_is_made_and_then_marked() {
    let nothing = VolumeObserved::default();
    check(
        &wish(None),
        &nothing,
        &["create", "mark"],
        &DONE,
        Usable::No,
    );
    let from_image = wish(Some(VolumeSource::Image(image())));
    let steps = ["fetch", "create", "mark"];
    check(&from_image, &nothing, &steps, &DONE, Usable::No);
    let cached = VolumeObserved {
        images: BTreeSet::from([CachedName::of(&image())]),
        ..VolumeObserved::default()
    };
    check(&from_image, &cached, &["create", "mark"], &DONE, Usable::No);
    let plan = plan(&from_image, &cached, &paths());
    let expected = NewVolume {
        pool: Default::default(),
        id: from_image.id,
        path: paths().volumes.join(format!("{}.qcow2", from_image.id)),
        format: VolumeFormat::Qcow2,
        size: ByteCount::clamped(2 * GB),
        content: Content::Image(image()),
    };
    assert_eq!(
        plan.steps[0],
        Step::Storage(StorageStep::CreateVolume(expected))
    );
}

#[test]
fn a_file_without_its_mark_is_marked_before_guests_may_have_it() {
    let unmarked = with(VolumeFiles {
        made: false,
        ..made(2)
    });
    check(&wish(None), &unmarked, &["mark"], &DONE, Usable::No);
    check(&wish(None), &with(made(2)), &[], &DONE, Usable::Yes);
}

#[test]
fn a_volume_that_vanished_is_never_made_anew() {
    let lost = with(VolumeFiles {
        files: Vec::new(),
        ..made(2)
    });
    for source in [None, Some(VolumeSource::Image(image()))] {
        let parts = ["its file is missing", "/var/lib/berth/volumes/"];
        refuses(&wish(source), &lost, Usable::No, &parts);
    }
    let gone = Desired {
        spec: None,
        ..wish(None)
    };
    check(&gone, &lost, &["remove"], &VolumeThen::Gone, Usable::No);
}

#[test]
fn what_is_not_as_it_was_made_is_left_alone() {
    let mut other = made(2);
    other.files[0].format = VolumeFormat::Raw;
    let parts = ["stored as raw", "says qcow2"];
    refuses(&wish(None), &with(other.clone()), Usable::No, &parts);
    other.files.insert(0, file(2));
    refuses(&wish(None), &with(other), Usable::No, &parts);
    let mut broken = made(2);
    broken.files[0].content = VolumeContent::Unreadable("it is cut off".to_owned());
    refuses(&wish(None), &with(broken), Usable::No, &["it is cut off"]);
    let leaving = with(VolumeFiles {
        leaving: true,
        ..VolumeFiles::default()
    });
    refuses(&wish(None), &leaving, Usable::No, &["was deleted"]);
}

#[test]
fn a_volume_grows_where_it_is_in_use_and_never_shrinks() {
    let small = with(made(1));
    check(&wish(None), &small, &["grow"], &DONE, Usable::No);
    let used = |users: &[VolumeUser]| VolumeObserved {
        users: users.to_vec(),
        ..with(made(1))
    };
    check(&wish(None), &used(&[kept()]), &["grow"], &DONE, Usable::No);
    let instance = InstanceId::new();
    let ours = live(Some(instance));
    let wished = wish(None);
    let grown = plan(&wished, &used(&[ours.clone(), kept()]), &paths());
    let step = DomainStep::GrowDisk {
        instance,
        disk: DiskFile {
            path: paths().volume_file(wished.id, VolumeFormat::Qcow2),
            target: "vdb".to_owned(),
        },
        size: ByteCount::clamped(2 * GB),
    };
    assert_eq!(grown.steps, [Step::Domain(step)]);
    assert_eq!(grown.usable, Usable::Yes);
    let names = BTreeSet::from(["web".to_owned()]);
    let wait = VolumeThen::Wait(VolumeWait::Users(names));
    let saved = VolumeUser {
        hold: Hold::Saved,
        ..ours.clone()
    };
    for users in [vec![live(None)], vec![ours, live(None)], vec![saved]] {
        check(&wish(None), &used(&users), &[], &wait, Usable::Yes);
    }
    let copied = VolumeObserved {
        copied: true,
        ..with(made(1))
    };
    let wait = VolumeThen::Wait(VolumeWait::Copied);
    check(&wish(None), &copied, &[], &wait, Usable::Yes);
    let parts = ["3221225472", "2147483648", "never shrinks"];
    refuses(&wish(None), &with(made(3)), Usable::Yes, &parts);
}

#[test]
fn a_copy_waits_for_its_source_and_is_not_taken_from_a_guest_that_writes() {
    let source = VolumeRef {
        pool: Default::default(),
        id: VolumeId::new(),
        format: VolumeFormat::Qcow2,
    };
    let wish = wish(Some(VolumeSource::Volume(source.clone())));
    let wait = VolumeThen::Wait(VolumeWait::Source(source.id));
    check(&wish, &with(VolumeFiles::default()), &[], &wait, Usable::No);
    let there = |gb, users: &[VolumeUser]| VolumeObserved {
        source: made(gb),
        source_users: users.to_vec(),
        ..VolumeObserved::default()
    };
    let steps = ["create", "mark"];
    check(&wish, &there(1, &[]), &steps, &DONE, Usable::No);
    check(&wish, &there(2, &[kept()]), &steps, &DONE, Usable::No);
    let parts = ["in use by the guest of domain \"web\""];
    let saved = VolumeUser {
        hold: Hold::Saved,
        ..live(None)
    };
    for user in [live(None), saved] {
        refuses(&wish, &there(1, &[user]), Usable::No, &parts);
    }
    let parts = ["2147483648", "3221225472"];
    refuses(&wish, &there(3, &[]), Usable::No, &parts);
    let mut other = there(1, &[]);
    other.source.files[0].format = VolumeFormat::Raw;
    check(&wish, &other, &[], &wait, Usable::No);
}

#[test]
fn a_tombstone_waits_for_everyone_who_names_the_file() {
    let gone = Desired {
        spec: None,
        ..wish(None)
    };
    let nothing = VolumeObserved::default();
    check(&gone, &nothing, &[], &VolumeThen::Gone, Usable::No);
    let free = with(made(2));
    check(&gone, &free, &["remove"], &VolumeThen::Gone, Usable::No);
    let wait = VolumeThen::Wait(VolumeWait::Users(BTreeSet::from(["web".to_owned()])));
    for user in [live(Some(InstanceId::new())), live(None), kept()] {
        let used = VolumeObserved {
            users: vec![user],
            ..with(made(2))
        };
        check(&gone, &used, &[], &wait, Usable::No);
    }
    let copied = VolumeObserved {
        copied: true,
        ..with(made(2))
    };
    let wait = VolumeThen::Wait(VolumeWait::Copied);
    check(&gone, &copied, &[], &wait, Usable::No);
    // A wipe that a crash broke off goes on.
    let leaving = with(VolumeFiles {
        leaving: true,
        ..VolumeFiles::default()
    });
    check(&gone, &leaving, &["remove"], &VolumeThen::Gone, Usable::No);
}

fn domain(name: &str, live: &[(&Path, &str)], kept: &[(&Path, &str)]) -> DomainObserved {
    let files = |files: &[(&Path, &str)]| {
        let file = |(path, target): &(&Path, &str)| DiskFile {
            path: path.to_path_buf(),
            target: (*target).to_owned(),
        };
        files.iter().map(file).collect()
    };
    DomainObserved {
        uuid: Uuid::new_v4(),
        name: name.to_owned(),
        power_state: PowerState::Running,
        off_reason: None,
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        reason: String::new(),
        persistent: true,
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(64),
        running: None,
        metadata: None,
        nics: Default::default(),
        disks: DomainDisks {
            live: files(live),
            kept: files(kept),
            scsi_controller: false,
        },
    }
}

#[test]
fn users_are_whoever_names_the_file_live_or_kept() {
    let id = VolumeId::new();
    let path = paths().volume_file(id, VolumeFormat::Raw);
    let other = Path::new("/else");
    let mut ours = domain("both", &[(&path, "vdc")], &[(&path, "vdb")]);
    let instance = InstanceId::new();
    ours.metadata = Some(DomainMetadata {
        instance_id: instance,
        generation: Generation(1),
        reboot_nonce: None,
        digest: String::new(),
        left_off: None,
    });
    let domains = [
        ours,
        domain("none", &[(other, "vda")], &[(other, "vda")]),
        domain("detached", &[(&path, "vdd")], &[]),
        DomainObserved {
            off_reason: Some(OffReason::Saved),
            leftover_memory: false,
            is_starting: false,
            is_halted: false,
            ..domain("saved", &[(&path, "vdb")], &[])
        },
        domain("off", &[], &[(other, "vda"), (&path, "vdb")]),
    ];
    let users = users(
        &[paths().volume_file(id, VolumeFormat::Qcow2), path],
        &domains,
    );
    let hold = |target: &str| Hold::Live {
        target: target.to_owned(),
    };
    let found: Vec<_> = users
        .into_iter()
        .map(|user| (user.domain, user.instance, user.hold))
        .collect();
    assert_eq!(
        found,
        [
            ("both".to_owned(), Some(instance), hold("vdc")),
            ("detached".to_owned(), None, hold("vdd")),
            ("saved".to_owned(), None, Hold::Saved),
            ("off".to_owned(), None, Hold::Kept),
        ]
    );
}

/// A host with pools of every kind.
fn with_pools() -> Paths {
    let pools = [
        ("fast", PoolPlace::Devices("/dev/vg0".into())),
        (
            "ssd",
            PoolPlace::Files(FilesPlace::below(Path::new("/srv/ssd"))),
        ),
    ];
    Paths {
        pools: pools
            .map(|(name, place)| (name.parse().unwrap(), place))
            .into(),
        ..paths()
    }
}

#[test]
fn a_place_is_that_of_the_pools_kind_and_leads_back() {
    let (id, paths) = (VolumeId::new(), with_pools());
    for (pool, format, expected) in [
        ("local", "raw", format!("/var/lib/berth/volumes/{id}.raw")),
        ("ssd", "raw", format!("/srv/ssd/volumes/{id}.raw")),
        ("ssd", "qcow2", format!("/srv/ssd/volumes/{id}.qcow2")),
        ("fast", "raw", format!("/dev/vg0/berth-{id}")),
    ] {
        let format = FORMATS.into_iter().find(|it| it.as_str() == format);
        let path = paths.volume(&pool.parse().unwrap(), id, format.unwrap());
        assert_eq!(path, Path::new(&expected));
        assert_eq!(paths.volume_at(&path), Some(id), "{pool}");
        assert!(paths.volume_places(id).contains(&path), "{pool}");
    }
    let snapshot = format!("/srv/ssd/snapshots/{id}.raw");
    assert_eq!(paths.volume_at(Path::new(&snapshot)), None);
}

#[test]
fn a_file_grows_under_its_guest_in_whatever_pool_it_is_and_a_device_by_itself() {
    let instance = InstanceId::new();
    for (pool, steps) in [
        ("local", "grow live"),
        ("ssd", "grow live"),
        ("fast", "grow"),
    ] {
        let mut wish = wish(None);
        let spec = wish.spec.as_mut().unwrap();
        (spec.pool, spec.format) = (pool.parse().unwrap(), VolumeFormat::Raw);
        let mut files = made(1);
        files.files[0] = VolumeFile {
            pool: pool.parse().unwrap(),
            format: VolumeFormat::Raw,
            ..file(1)
        };
        let observed = VolumeObserved {
            users: vec![live(Some(instance))],
            ..with(files)
        };
        let found = plan(&wish, &observed, &with_pools());
        assert_eq!(words(&found), [steps], "{pool}");
    }
}

#[test]
fn a_document_that_asks_for_qcow2_on_block_devices_is_refused() {
    for (pool, is_refused) in [("ssd", false), ("fast", true)] {
        let mut wish = wish(None);
        wish.spec.as_mut().unwrap().pool = pool.parse().unwrap();
        let found = plan(&wish, &VolumeObserved::default(), &with_pools());
        let text = "shall be stored as qcow2 in the storage pool fast, which is of block devices";
        let told =
            matches!(&found.then, VolumeThen::Refused(fault) if fault.message.contains(text));
        assert_eq!(told, is_refused, "{found:?}");
        assert_eq!(found.steps.is_empty(), is_refused);
    }
}

fn any_files() -> impl Strategy<Value = VolumeFiles> {
    let content = prop_oneof![
        (0..4_u64).prop_map(|gb| VolumeContent::Size(ByteCount::clamped(gb * GB))),
        Just(VolumeContent::Unreadable("no".to_owned())),
    ];
    let format = prop_oneof![Just(VolumeFormat::Qcow2), Just(VolumeFormat::Raw)];
    let file = (format, content).prop_map(|(format, content)| VolumeFile {
        pool: Default::default(),
        format,
        content,
    });
    let files = prop::collection::vec(file, 0..2);
    (files, any::<bool>(), any::<bool>()).prop_map(|(files, made, leaving)| VolumeFiles {
        files,
        made,
        leaving,
        partial: false,
    })
}

proptest! {
    #[test]
    fn who_must_not_lose_the_volume_is_always_asked_for_and_never_loses_it(
        files in any_files(),
        source in any_files(),
        tombstone in any::<bool>(),
        copy in any::<bool>(),
    ) {
        let other = VolumeRef { pool: Default::default(), id: VolumeId::new(), format: VolumeFormat::Qcow2 };
        let mut wish = wish(copy.then_some(VolumeSource::Volume(other)));
        if tombstone {
            wish.spec = None;
        }
        let free = VolumeObserved { files, source, ..VolumeObserved::default() };
        let touches = |observed: &VolumeObserved| {
            words(&plan(&wish, observed, &paths()))
                .into_iter()
                .filter(|word| ["remove", "grow", "grow live"].contains(word))
                .count()
        };
        let named = !free.files.files.is_empty();
        if named && touches(&free) > 0 {
            prop_assert!(asks_for_users(&wish, &free.files));
        }
        let copies = words(&plan(&wish, &free, &paths())).contains(&"create") && copy;
        if copies {
            prop_assert!(asks_for_users(&wish, &free.files));
        }
        let used = VolumeObserved {
            users: vec![live(None)],
            source_users: vec![live(None)],
            ..free.clone()
        };
        if named {
            prop_assert_eq!(touches(&used), 0);
        }
        if copy {
            prop_assert!(!words(&plan(&wish, &used, &paths())).contains(&"create"));
        }
        // Nothing that was made is ever made again.
        if free.files.made || named {
            prop_assert!(!words(&plan(&wish, &free, &paths())).contains(&"create"));
        }
        // Whoever may have it has something whole.
        if plan(&wish, &free, &paths()).usable == Usable::Yes {
            prop_assert!(free.files.whole(&PoolName::default(), VolumeFormat::Qcow2).is_some());
        }
    }
}
