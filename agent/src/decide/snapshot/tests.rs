//! What is done for a snapshot in every situation.

use std::path::Path;

use berth_common::{
    document::VolumeFormat,
    ids::HostId,
    units::{DiskGb, Generation},
};

use super::*;
use crate::decide::{
    pool::{FilesPlace, PoolPlace},
    volume::VolumeFile,
};

const GB: u64 = 1 << 30;

struct Case {
    id: SnapshotId,
    volume: VolumeId,
    instance: InstanceId,
}

impl Case {
    fn new() -> Self {
        Self {
            id: SnapshotId::new(),
            volume: VolumeId::new(),
            instance: InstanceId::new(),
        }
    }

    fn paths() -> Paths {
        let pools = [
            ("fast", PoolPlace::Devices("/dev/vg0".into())),
            (
                "ssd",
                PoolPlace::Files(FilesPlace::below(Path::new("/srv/ssd"))),
            ),
            ("thin", PoolPlace::ThinDevices("/dev/vg0".into())),
        ];
        Paths {
            pools: pools
                .map(|(name, place)| (name.parse().unwrap(), place))
                .into(),
            ..Paths::below(Path::new("/var/lib/berth"))
        }
    }

    fn desired(&self) -> Desired<SnapshotId, SnapshotSpec> {
        Desired {
            id: self.id,
            generation: Generation(1),
            host_id: HostId::new(),
            spec: Some(SnapshotSpec {
                name: "monday".parse().unwrap(),
                project: "default".parse().unwrap(),
                volume: VolumeRef {
                    id: self.volume,
                    format: VolumeFormat::Raw,
                    pool: PoolName::default(),
                },
                size_gb: DiskGb::new(2).unwrap(),
            }),
        }
    }

    fn tombstone(&self) -> Desired<SnapshotId, SnapshotSpec> {
        Desired {
            spec: None,
            ..self.desired()
        }
    }

    /// The volume is whole, and nothing of the snapshot is there.
    fn ready() -> SnapshotObserved {
        SnapshotObserved {
            source: VolumeFiles {
                files: vec![VolumeFile {
                    pool: PoolName::default(),
                    format: VolumeFormat::Raw,
                    content: VolumeContent::Size(ByteCount::clamped(2 * GB)),
                }],
                made: true,
                ..VolumeFiles::default()
            },
            ..SnapshotObserved::default()
        }
    }

    fn user(&self, hold: Hold) -> VolumeUser {
        VolumeUser {
            domain: "berth-web".to_owned(),
            instance: Some(self.instance),
            hold,
        }
    }

    fn live(&self) -> SnapshotObserved {
        let target = "vdb".to_owned();
        SnapshotObserved {
            users: vec![self.user(Hold::Live { target })],
            ..Self::ready()
        }
    }

    /// A job that writes to this file.
    fn job(&self, file: PathBuf) -> BackupJob {
        BackupJob {
            instance: self.instance,
            domain: "berth-web".to_owned(),
            files: vec![file],
        }
    }

    fn own_job(&self) -> BackupJob {
        self.job(Self::paths().partial_snapshot_file(self.id))
    }
}

fn words(plan: &SnapshotPlan) -> Vec<&'static str> {
    let word = |step: &Step| match step {
        Step::Storage(StorageStep::CreateSnapshot(_)) => "create",
        Step::Storage(StorageStep::PrepareSnapshot(_)) => "prepare",
        Step::Storage(StorageStep::NameSnapshot(_)) => "name",
        Step::Storage(StorageStep::MarkSnapshot(_)) => "mark",
        Step::Storage(StorageStep::DiscardPartialSnapshot(_)) => "discard",
        Step::Storage(StorageStep::RemoveSnapshot(_)) => "remove",
        Step::Domain(DomainStep::Backup(_)) => "backup",
        Step::Domain(DomainStep::AbortBackup { .. }) => "abort",
        other => panic!("{other:?}"),
    };
    plan.steps.iter().map(word).collect()
}

#[track_caller]
fn check(
    desired: &Desired<SnapshotId, SnapshotSpec>,
    observed: &SnapshotObserved,
    steps: &[&str],
    then: &SnapshotThen,
) {
    let plan = plan(desired, observed, &Case::paths());
    assert_eq!(words(&plan), steps, "{observed:?}");
    assert_eq!(plan.then, *then, "{observed:?}");
}

#[track_caller]
fn refused(case: &Case, observed: &SnapshotObserved, expected: &str) {
    let plan = plan(&case.desired(), observed, &Case::paths());
    assert_eq!(plan.steps, []);
    let SnapshotThen::Refused(fault) = plan.then else {
        panic!("{:?}", plan.then);
    };
    assert_eq!(fault.code, FaultCode::Volume);
    assert!(fault.message.contains(expected), "{}", fault.message);
}

/// The same in another pool of the host.
fn in_pool(
    case: &Case,
    mut observed: SnapshotObserved,
    pool: &str,
) -> (Desired<SnapshotId, SnapshotSpec>, SnapshotObserved) {
    let pool: PoolName = pool.parse().unwrap();
    let mut wish = case.desired();
    wish.spec.as_mut().unwrap().volume.pool = pool.clone();
    for file in &mut observed.source.files {
        file.pool = pool.clone();
    }
    (wish, observed)
}

#[test]
fn a_pool_that_the_host_does_not_have_is_refused_by_its_name() {
    let case = Case::new();
    let (wish, observed) = in_pool(&case, Case::ready(), "slow");
    let plan = plan(&wish, &observed, &Case::paths());
    assert_eq!(plan.steps, []);
    let SnapshotThen::Refused(fault) = plan.then else {
        panic!("{:?}", plan.then);
    };
    assert_eq!(fault.code, FaultCode::Volume);
    let text =
        "is in the storage pool slow, which this host does not have; it has local, fast, ssd, thin";
    assert!(fault.message.contains(text), "{}", fault.message);
}

#[test]
fn a_thin_volume_is_kept_whoever_has_it() {
    let case = Case::new();
    let mut many = case.live();
    many.users.push(VolumeUser {
        instance: None,
        ..case.user(Hold::Kept)
    });
    many.users.extend(many.users.clone());
    let mut busy = case.live();
    busy.jobs = vec![case.job("/somewhere/else".into())];
    for observed in [Case::ready(), case.live(), many, busy] {
        let (wish, observed) = in_pool(&case, observed, "thin");
        check(
            &wish,
            &observed,
            &["create", "mark"],
            &SnapshotThen::Converged,
        );
    }
    let (wish, mut left) = in_pool(&case, case.live(), "thin");
    left.files.partial = true;
    let steps = ["discard", "create", "mark"];
    check(&wish, &left, &steps, &SnapshotThen::Converged);
    left.source.files[0].content = VolumeContent::Inactive;
    let wait = SnapshotThen::Wait(SnapshotWait::Volume(case.volume));
    check(&wish, &left, &["discard"], &wait);
}

#[test]
fn a_thick_volume_of_a_guest_that_is_on_is_copied_into_a_device() {
    let case = Case::new();
    let (wish, off) = in_pool(&case, Case::ready(), "fast");
    check(&wish, &off, &["create", "mark"], &SnapshotThen::Converged);
    let (wish, on) = in_pool(&case, case.live(), "fast");
    let steps = ["prepare", "backup", "name", "mark"];
    check(&wish, &on, &steps, &SnapshotThen::Converged);
    let plan = plan(&wish, &on, &Case::paths());
    let Step::Domain(DomainStep::Backup(backup)) = &plan.steps[1] else {
        panic!("{plan:?}");
    };
    let device = format!("/dev/vg0/berth-snap-tmp-{}", case.id);
    assert_eq!(backup.format, VolumeFormat::Raw);
    assert_eq!(backup.file, Path::new(&device));
    assert_eq!(
        backup.disk.path,
        Path::new(&format!("/dev/vg0/berth-{}", case.volume))
    );
    // Whose tombstone comes, it is ended where it is.
    let mut there = SnapshotObserved::default();
    there.files.partial = true;
    there.jobs = vec![case.job(device.into())];
    let steps = ["abort", "remove"];
    check(&case.tombstone(), &there, &steps, &SnapshotThen::Gone);
}

#[test]
fn a_volume_in_a_directory_of_an_operators_is_kept_as_one_of_local_is() {
    let case = Case::new();
    let (wish, off) = in_pool(&case, Case::ready(), "ssd");
    check(&wish, &off, &["create", "mark"], &SnapshotThen::Converged);
    let (wish, on) = in_pool(&case, case.live(), "ssd");
    let plan = plan(&wish, &on, &Case::paths());
    assert_eq!(words(&plan), ["prepare", "backup", "name", "mark"]);
    let Step::Domain(DomainStep::Backup(backup)) = &plan.steps[1] else {
        panic!("{plan:?}");
    };
    // Also of a raw volume.
    assert_eq!(backup.format, VolumeFormat::Qcow2);
    let live = format!("/srv/ssd/snapshots/.live-{}.qcow2", case.id);
    assert_eq!(backup.file, Path::new(&live));
    let volume = format!("/srv/ssd/volumes/{}.raw", case.volume);
    assert_eq!(backup.disk.path, Path::new(&volume));
    // Whose tombstone comes, it is ended where it is.
    let mut there = SnapshotObserved::default();
    there.files.partial = true;
    there.jobs = vec![case.job(live.into())];
    let steps = ["abort", "remove"];
    check(&case.tombstone(), &there, &steps, &SnapshotThen::Gone);
}

#[test]
fn a_volume_that_no_guest_has_is_copied_also_one_of_a_guest_that_sleeps() {
    let case = Case::new();
    for hold in [None, Some(Hold::Kept), Some(Hold::Saved)] {
        let observed = SnapshotObserved {
            users: hold.into_iter().map(|hold| case.user(hold)).collect(),
            ..Case::ready()
        };
        let steps = ["create", "mark"];
        check(&case.desired(), &observed, &steps, &SnapshotThen::Converged);
    }
}

#[test]
fn a_volume_of_a_guest_that_is_on_is_kept_by_its_hypervisor() {
    let case = Case::new();
    let steps = ["prepare", "backup", "name", "mark"];
    check(
        &case.desired(),
        &case.live(),
        &steps,
        &SnapshotThen::Converged,
    );
    let plan = plan(&case.desired(), &case.live(), &Case::paths());
    let Step::Domain(DomainStep::Backup(backup)) = &plan.steps[1] else {
        panic!("{plan:?}");
    };
    assert_eq!(
        (backup.instance, backup.disk.target.as_str()),
        (case.instance, "vdb")
    );
    assert_eq!(
        backup.file,
        Path::new(&format!("/var/lib/berth/snapshots/.live-{}.qcow2", case.id))
    );
}

#[test]
fn what_a_job_left_that_nobody_saw_end_is_discarded_and_begun_again() {
    let case = Case::new();
    let mut left = case.live();
    left.files.partial = true;
    let steps = ["discard", "prepare", "backup", "name", "mark"];
    check(&case.desired(), &left, &steps, &SnapshotThen::Converged);
    left.jobs = vec![case.own_job()];
    let steps = ["abort", "discard"];
    check(&case.desired(), &left, &steps, &SnapshotThen::Converged);
    // Its guest is off by now.
    let off = SnapshotObserved {
        files: left.files.clone(),
        ..Case::ready()
    };
    let steps = ["discard", "create", "mark"];
    check(&case.desired(), &off, &steps, &SnapshotThen::Converged);
}

#[test]
fn jobs_of_one_domain_take_turns() {
    let case = Case::new();
    let mut busy = case.live();
    busy.jobs = vec![case.job("/somewhere/else".into())];
    let turn = SnapshotThen::Wait(SnapshotWait::Turn("berth-web".to_owned()));
    check(&case.desired(), &busy, &[], &turn);
    busy.jobs[0].instance = InstanceId::new();
    let steps = ["prepare", "backup", "name", "mark"];
    check(&case.desired(), &busy, &steps, &SnapshotThen::Converged);
}

#[test]
fn a_strangers_guest_is_waited_for() {
    let case = Case::new();
    let mut foreign = case.live();
    foreign.users[0].instance = None;
    let names = ["berth-web".to_owned()].into();
    let wait = SnapshotThen::Wait(SnapshotWait::Users(names));
    check(&case.desired(), &foreign, &[], &wait);
}

#[test]
fn a_snapshot_that_is_there_needs_nothing_of_its_volume() {
    let case = Case::new();
    let mut made = SnapshotObserved::default();
    made.files.file = Some(VolumeContent::Size(ByteCount::clamped(GB)));
    check(&case.desired(), &made, &["mark"], &SnapshotThen::Converged);
    made.files.made = true;
    check(&case.desired(), &made, &[], &SnapshotThen::Converged);
    made.files.partial = true;
    made.jobs = vec![case.own_job()];
    let steps = ["abort", "discard"];
    check(&case.desired(), &made, &steps, &SnapshotThen::Converged);
}

#[test]
fn a_snapshot_waits_for_its_volume_and_is_no_smaller_than_that() {
    let case = Case::new();
    let wait = SnapshotThen::Wait(SnapshotWait::Volume(case.volume));
    let nothing = SnapshotObserved::default();
    check(&case.desired(), &nothing, &[], &wait);
    let mut larger = Case::ready();
    let size = ByteCount::clamped(3 * GB);
    larger.source.files[0].content = VolumeContent::Size(size);
    refused(&case, &larger, "may have 2147483648");
}

#[test]
fn what_was_lost_is_not_made_anew() {
    let case = Case::new();
    let mut lost = Case::ready();
    lost.files.made = true;
    refused(&case, &lost, "its file is missing");
    let mut broken = Case::ready();
    broken.files.file = Some(VolumeContent::Unreadable(
        "it has a backing file".to_owned(),
    ));
    refused(&case, &broken, "it has a backing file");
    let mut leaving = Case::ready();
    leaving.files.leaving = true;
    refused(&case, &leaving, "are being wiped");
}

#[test]
fn a_tombstone_ends_the_job_and_removes_what_is_there() {
    let case = Case::new();
    let mut there = SnapshotObserved::default();
    check(&case.tombstone(), &there, &[], &SnapshotThen::Gone);
    there.files.made = true;
    check(&case.tombstone(), &there, &["remove"], &SnapshotThen::Gone);
    there.copied = true;
    let copied = SnapshotThen::Wait(SnapshotWait::Copied);
    check(&case.tombstone(), &there, &[], &copied);
    let mut partial = SnapshotObserved::default();
    partial.files.partial = true;
    partial.jobs = vec![case.job("/somewhere/else".into()), case.own_job()];
    let steps = ["abort", "remove"];
    check(&case.tombstone(), &partial, &steps, &SnapshotThen::Gone);
}

#[test]
fn jobs_are_looked_for_only_where_there_may_be_one() {
    let case = Case::new();
    let none = SnapshotFiles::default();
    assert!(!asks_for_jobs(&none, &[case.user(Hold::Saved)]));
    assert!(asks_for_jobs(&none, &case.live().users));
    let partial = SnapshotFiles {
        partial: true,
        ..none
    };
    assert!(asks_for_jobs(&partial, &[]));
}
