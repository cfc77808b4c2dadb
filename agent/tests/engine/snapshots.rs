//! Snapshots through the whole agent, over a host in memory, together with their volumes and the instances that use them.

use std::collections::BTreeSet;

use berth_agent::{
    act::fake::FakeVolume,
    decide::domain::{BackupPlan, DiskFile},
};
use berth_common::{
    document::{
        InstanceVolume, SnapshotRef, SnapshotSpec, VolumeAccess, VolumeLimits, VolumeRef,
        VolumeSource,
    },
    ids::SnapshotId,
};

use super::*;

/// A volume, a snapshot of it, and a volume made from that.
struct Wanted {
    host: HostId,
    pool: PoolName,
    volume: VolumeId,
    snapshot: SnapshotId,
    copy: VolumeId,
}

impl Wanted {
    fn new(lab: &Lab) -> Self {
        Self {
            host: lab.host_id,
            pool: lab.pool.clone(),
            volume: VolumeId::new(),
            snapshot: SnapshotId::new(),
            copy: VolumeId::new(),
        }
    }

    /// Another snapshot of the same volume.
    fn another(&self) -> Self {
        Self {
            snapshot: SnapshotId::new(),
            copy: VolumeId::new(),
            pool: self.pool.clone(),
            ..*self
        }
    }

    fn volume(&self, generation: u64, gb: u64) -> Document {
        self.document_of(self.volume, generation, gb, None)
    }

    fn copy(&self, gb: u64) -> Document {
        let source = SnapshotRef {
            id: self.snapshot,
            pool: self.pool.clone(),
        };
        self.document_of(self.copy, 1, gb, Some(VolumeSource::Snapshot(source)))
    }

    fn document_of(
        &self,
        id: VolumeId,
        generation: u64,
        gb: u64,
        source: Option<VolumeSource>,
    ) -> Document {
        Document::Volume(Desired {
            id,
            generation: Generation(generation),
            host_id: self.host,
            spec: Some(VolumeSpec {
                name: "data".parse().unwrap(),
                project: "default".parse().unwrap(),
                size_gb: DiskGb::new(gb).unwrap(),
                format: VolumeFormat::usual(&self.pool),
                pool: self.pool.clone(),
                source,
            }),
        })
    }

    fn snapshot(&self) -> Document {
        Document::Snapshot(Desired {
            id: self.snapshot,
            generation: Generation(1),
            host_id: self.host,
            spec: Some(SnapshotSpec {
                name: "monday".parse().unwrap(),
                project: "default".parse().unwrap(),
                volume: VolumeRef {
                    id: self.volume,
                    format: VolumeFormat::usual(&self.pool),
                    pool: self.pool.clone(),
                },
                size_gb: DiskGb::new(1).unwrap(),
            }),
        })
    }

    /// The job that copies the volume of an instance for this snapshot.
    fn job(&self, wish: &Wish) -> BackupPlan {
        BackupPlan {
            instance: wish.instance,
            snapshot: self.snapshot,
            disk: DiskFile {
                path: facts().paths.volume(
                    &self.pool,
                    self.volume,
                    VolumeFormat::usual(&self.pool),
                ),
                target: "vdb".to_owned(),
            },
            file: facts().paths.partial_snapshot(&self.pool, self.snapshot),
            format: facts().paths.snapshot_format(&self.pool),
        }
    }
}

/// The host's pools: of files, of block devices, and of those that share what they hold.
const POOLS: [&str; 4] = ["local", "ssd", "fast", "thin"];
/// Those in which a hypervisor copies what a guest has.
const COPIED: [&str; 3] = ["local", "ssd", "fast"];

impl Lab {
    /// A host where volumes are in this pool.
    async fn of(pool: &str) -> Self {
        let mut lab = Self::new().await;
        lab.pool = pool.parse().unwrap();
        lab
    }
}

/// What a volume holds.
fn holds(of: &Wanted, gb: u64, content: &str) -> Option<FakeVolume> {
    let size = ByteCount::from_gb(DiskGb::new(gb).unwrap());
    Some(FakeVolume {
        pool: of.pool.clone(),
        format: VolumeFormat::usual(&of.pool),
        size,
        content: content.to_owned(),
        known: size,
        grown: false,
        active: true,
    })
}

/// What a snapshot holds: a block device that nobody has use for.
fn keeps(of: &Wanted, content: &str) -> Option<FakeVolume> {
    holds(of, 1, content).map(|volume| FakeVolume {
        format: facts().paths.snapshot_format(&of.pool),
        active: facts().paths.holds_files(&of.pool),
        ..volume
    })
}

async fn converged(lab: &Lab, document: &Document) {
    lab.send(document).await;
    lab.wait_status(document, ConvergeStatus::Converged).await;
}

async fn gone(lab: &Lab, document: &Document) {
    lab.send(&document.tombstone()).await;
    lab.wait_status(&document.tombstone(), ConvergeStatus::Gone)
        .await;
}

/// A volume with something written on it.
async fn written(lab: &Lab) -> Wanted {
    let wanted = Wanted::new(lab);
    converged(lab, &wanted.volume(1, 1)).await;
    lab.host.write_volume(wanted.volume, "monday");
    wanted
}

/// An instance that has a volume.
fn with_volume(wish: &Wish, generation: u64, volume: Option<&Wanted>) -> Document {
    wish.instance(generation, |spec| {
        let attached = volume.map(|wanted| InstanceVolume {
            id: wanted.volume,
            position: 1,
            format: VolumeFormat::usual(&wanted.pool),
            pool: wanted.pool.clone(),
            access: VolumeAccess::ReadWrite,
            disk_bus: Default::default(),
            limits: VolumeLimits::default(),
        });
        spec.volumes = attached.into_iter().collect();
    })
}

/// A guest that is on and has a volume with something written on it.
async fn used(lab: &Lab) -> (Wish, Wanted) {
    let (wish, ..) = running(lab).await;
    let wanted = written(lab).await;
    converged(lab, &with_volume(&wish, 2, Some(&wanted))).await;
    (wish, wanted)
}

fn says<'a>(part: &'a str) -> impl Fn(&ResourceReport) -> bool + 'a {
    move |report| {
        let progress = report.progress.as_ref();
        progress.is_some_and(|it| it.contains(part))
    }
}

async fn wait_fault(lab: &Lab, document: &Document, code: FaultCode, part: &str) {
    let report = lab.wait_status(document, ConvergeStatus::Failed).await;
    let fault = report.fault.unwrap();
    assert_eq!(fault.code, code, "{}", fault.message);
    assert!(fault.message.contains(part), "{}", fault.message);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_stands_alone_and_a_volume_is_made_from_it() {
    for pool in POOLS {
        let lab = Lab::of(pool).await;
        let wanted = written(&lab).await;
        converged(&lab, &wanted.snapshot()).await;
        let kept = keeps(&wanted, "zeros + monday");
        assert_eq!(lab.host.snapshot(wanted.snapshot), kept);
        lab.host.write_volume(wanted.volume, "tuesday");
        converged(&lab, &wanted.volume(2, 3)).await;
        gone(&lab, &wanted.volume(2, 3)).await;
        assert_eq!(lab.host.snapshot(wanted.snapshot), kept);
        converged(&lab, &wanted.copy(2)).await;
        assert_eq!(
            lab.host.volume(wanted.copy),
            holds(&wanted, 2, "zeros + monday")
        );
        gone(&lab, &wanted.snapshot()).await;
        assert_eq!(
            lab.host.volume(wanted.copy),
            holds(&wanted, 2, "zeros + monday")
        );
        gone(&lab, &wanted.copy(2)).await;
        assert_eq!(lab.host.leftovers(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_made_under_a_guest_that_goes_on() {
    for pool in POOLS {
        let lab = Lab::of(pool).await;
        let (wish, wanted) = used(&lab).await;
        converged(&lab, &wanted.snapshot()).await;
        lab.host.write_volume(wanted.volume, "tuesday");
        let kept = keeps(&wanted, "zeros + monday");
        assert_eq!(lab.host.snapshot(wanted.snapshot), kept);
        let lives = lab.host.lives(wish.instance);
        assert_eq!((lives.starts, lives.destroys, lives.saves), (1, 0, 0));
        converged(&lab, &wanted.copy(1)).await;
        assert_eq!(
            lab.host.volume(wanted.copy),
            holds(&wanted, 1, "zeros + monday")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_sleeps_keeps_its_memory_while_its_volume_is_copied() {
    for pool in POOLS {
        let lab = Lab::of(pool).await;
        let (wish, wanted) = used(&lab).await;
        let mut asleep = with_volume(&wish, 3, Some(&wanted));
        if let Document::Instance(desired) = &mut asleep {
            desired.spec.as_mut().unwrap().power = DesiredPower::Suspended;
        }
        converged(&lab, &asleep).await;
        converged(&lab, &wanted.snapshot()).await;
        let kept = keeps(&wanted, "zeros + monday");
        assert_eq!(lab.host.snapshot(wanted.snapshot), kept);
        converged(&lab, &with_volume(&wish, 4, Some(&wanted))).await;
        let lives = lab.host.lives(wish.instance);
        assert_eq!((lives.saves, lives.restores, lives.starts), (1, 1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_agent_died_is_ended_and_the_snapshot_made_anew() {
    for pool in POOLS {
        let mut lab = Lab::of(pool).await;
        let (wish, wanted) = used(&lab).await;
        lab.kill().await;
        lab.host.leave_backup(&wanted.job(&wish));
        lab.host.write_volume(wanted.volume, "tuesday");
        lab.start();
        converged(&lab, &wanted.snapshot()).await;
        // Of the moment after it was begun again, and not of the one nobody knows.
        let kept = keeps(&wanted, "zeros + monday + tuesday");
        assert_eq!(lab.host.snapshot(wanted.snapshot), kept);
        let left = BTreeSet::from_iter(lab.host.leftovers());
        assert!(!left.iter().any(|it| it.contains("job")), "{left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_ends_the_job_that_nobody_waits_for() {
    for pool in POOLS {
        let mut lab = Lab::of(pool).await;
        let (wish, wanted) = used(&lab).await;
        lab.kill().await;
        lab.host.leave_backup(&wanted.job(&wish));
        lab.start();
        gone(&lab, &wanted.snapshot()).await;
        let left = lab.host.leftovers();
        let of_it = |it: &&String| it.contains("job") || it.contains("snapshot");
        assert_eq!(left.iter().find(of_it), None);
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_one_guests_volumes_take_turns() {
    for pool in COPIED {
        let lab = Lab::of(pool).await;
        let (wish, first) = used(&lab).await;
        // A job of somebody else, as far as this snapshot knows.
        let other = first.another();
        lab.host.leave_backup(&other.job(&wish));
        lab.send(&first.snapshot()).await;
        let key = first.snapshot().key();
        lab.wait(key, "waiting for its turn", says("waiting for its turn"))
            .await;
        converged(&lab, &other.snapshot()).await;
        lab.wait_status(&first.snapshot(), ConvergeStatus::Converged)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn switching_a_guest_off_ends_its_job_and_the_copy_is_made_then() {
    for pool in COPIED {
        let lab = Lab::of(pool).await;
        let (wish, first) = used(&lab).await;
        let other = first.another();
        lab.host.leave_backup(&other.job(&wish));
        lab.send(&first.snapshot()).await;
        let key = first.snapshot().key();
        lab.wait(key, "waiting for its turn", says("waiting for its turn"))
            .await;
        let mut off = with_volume(&wish, 3, Some(&first));
        if let Document::Instance(desired) = &mut off {
            stopped(desired.spec.as_mut().unwrap());
        }
        converged(&lab, &off).await;
        lab.wait_status(&first.snapshot(), ConvergeStatus::Converged)
            .await;
        let kept = keeps(&first, "zeros + monday");
        assert_eq!(lab.host.snapshot(first.snapshot), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_vanished_is_told_and_not_made_anew() {
    for pool in POOLS {
        let mut lab = Lab::of(pool).await;
        let wanted = written(&lab).await;
        converged(&lab, &wanted.snapshot()).await;
        lab.host.lose_snapshot(wanted.snapshot);
        lab.restart().await;
        let missing = "its file is missing";
        wait_fault(&lab, &wanted.snapshot(), FaultCode::Volume, missing).await;
        gone(&lab, &wanted.snapshot()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_and_mended() {
    for pool in POOLS {
        let lab = Lab::of(pool).await;
        let (_, wanted) = used(&lab).await;
        lab.host.set_disk(Disk::Full);
        lab.send(&wanted.snapshot()).await;
        let code = FaultCode::DiskFull;
        wait_fault(&lab, &wanted.snapshot(), code, "the snapshot").await;
        assert_eq!(lab.host.snapshot(wanted.snapshot), None);
        lab.host.set_disk(Disk::Roomy);
        lab.wait_status(&wanted.snapshot(), ConvergeStatus::Converged)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_without_a_document_is_left_alone() {
    for pool in POOLS {
        let mut lab = Lab::of(pool).await;
        let (wish, wanted) = used(&lab).await;
        let stranger = wanted.another();
        lab.kill().await;
        lab.host.leave_backup(&stranger.job(&wish));
        lab.start();
        sleep(LIMIT).await;
        let left = lab.host.leftovers();
        let name = format!("snapshot {}", stranger.snapshot);
        assert!(left.contains(&name), "{left:?}");
    }
}
