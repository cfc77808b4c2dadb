//! The plan for one snapshot: its document × what is there → ordered steps.
//!
//! ```text
//!            ┌── no guest has the volume: copy its file ───────────────────────────┐
//!   nothing ─┤                                                                     ├─▶ file ──mark──▶ made
//!            ├── a guest has it: a backup job of QEMU writes a partial file ─name─▶┤
//!            │        ▲                    │                                       │
//!            │        └── discard, abort ◀─┘ who began the job is gone, so nobody knows how it ended
//!            └── it is in a thin pool, whoever has it: LVM makes one that shares with it ┘
//! ```
//!
//! A file that has a snapshot's name is complete. The partial file of a backup job gets that name only from the pass that
//! began the job and saw it succeed; whoever else finds a partial file begins again. A snapshot that was made and
//! whose file is missing is never made anew: it would hold another moment. It lies in the pool of its volume; of a pool of
//! block devices it is a logical volume, by the same rules.

use std::{collections::BTreeSet, path::PathBuf};

use berth_common::{
    document::{Desired, SnapshotSpec, VolumeRef},
    ids::{InstanceId, SnapshotId, VolumeId},
    message::report::{Fault, FaultCode},
    names::PoolName,
    units::ByteCount,
};

use super::{
    domain::{BackupPlan, DiskFile, DomainStep},
    instance::{Paths, Step, StorageStep},
    volume::{Hold, VolumeContent, VolumeFiles, VolumeUser},
};

/// A snapshot to make of a volume that no guest has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Where.
    pub path: PathBuf,
    /// The volume whose content it gets.
    pub volume: VolumeRef,
}

/// A snapshot in a storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// The storage pool.
    pub pool: PoolName,
}

/// What is there of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotFiles {
    /// What the file holds that has its name.
    pub file: Option<VolumeContent>,
    /// Whether it was made once, and its tombstone was not carried out.
    pub made: bool,
    /// Whether a file of it is on its way out: it has lost its name, and its bytes are being wiped.
    pub leaving: bool,
    /// Whether there is what was to become it: what a backup job writes, or wrote, or a leftover of a copy.
    pub partial: bool,
}

impl SnapshotFiles {
    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.file.is_none() && !self.made && !self.leaving && !self.partial
    }

    /// Its virtual size, if it is whole.
    #[must_use]
    pub fn whole(&self) -> Option<ByteCount> {
        match &self.file {
            Some(VolumeContent::Size(size)) if self.made && !self.leaving => Some(*size),
            _ => None,
        }
    }
}

/// A backup job that runs on a domain, whoever began it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupJob {
    /// The domain with this UUID.
    pub instance: InstanceId,
    /// libvirt's name of it.
    pub domain: String,
    /// The files it writes.
    pub files: Vec<PathBuf>,
}

/// What is there of a snapshot and of what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotObserved {
    /// Its own files.
    pub files: SnapshotFiles,
    /// What is there of its volume.
    pub source: VolumeFiles,
    /// Whether a volume is being made from it.
    pub copied: bool,
    /// Who uses its volume. Looked at only while the snapshot is not there.
    pub users: Vec<VolumeUser>,
    /// The backup jobs of the host. Looked at only if [`asks_for_jobs`] says so.
    pub jobs: Vec<BackupJob>,
}

/// What to do, and where that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPlan {
    /// The steps, in order; each depends on those before it.
    pub steps: Vec<Step>,
    /// What is true once they are done.
    pub then: SnapshotThen,
}

/// What is true once a plan's steps are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotThen {
    /// The snapshot is there.
    Converged,
    /// Nothing of it is left.
    Gone,
    /// Something else must happen first.
    Wait(SnapshotWait),
    /// It cannot be made so.
    Refused(Fault),
}

/// What a snapshot waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotWait {
    /// Its volume is not made yet.
    Volume(VolumeId),
    /// A volume is being made from it.
    Copied,
    /// These domains use the volume, and no snapshot can be made of it under them.
    Users(BTreeSet<String>),
    /// Another backup job runs on the domain that has the volume: there is one at a time.
    Turn(String),
}

/// Whether [`plan`] has to know which backup jobs run.
#[must_use]
pub fn asks_for_jobs(files: &SnapshotFiles, users: &[VolumeUser]) -> bool {
    let is_live = |user: &VolumeUser| matches!(user.hold, Hold::Live { .. });
    files.partial || users.iter().any(is_live)
}

/// The plan for a snapshot.
#[must_use]
pub fn plan(
    desired: &Desired<SnapshotId, SnapshotSpec>,
    observed: &SnapshotObserved,
    paths: &Paths,
) -> SnapshotPlan {
    let (steps, then) = match &desired.spec {
        None => remove(desired.id, observed, paths),
        Some(spec) => converge(desired.id, spec, observed, paths)
            .unwrap_or_else(|fault| (Vec::new(), SnapshotThen::Refused(fault))),
    };
    SnapshotPlan { steps, then }
}

type Planned = (Vec<Step>, SnapshotThen);

fn remove(id: SnapshotId, observed: &SnapshotObserved, paths: &Paths) -> Planned {
    if observed.files.is_empty() {
        return (Vec::new(), SnapshotThen::Gone);
    }
    if observed.copied {
        return (Vec::new(), SnapshotThen::Wait(SnapshotWait::Copied));
    }
    let mut steps = abort(id, observed, paths);
    steps.push(Step::Storage(StorageStep::RemoveSnapshot(id)));
    (steps, SnapshotThen::Gone)
}

/// Ends the jobs that write this snapshot's partial file: QEMU would go on writing to a file that has lost its name.
fn abort(id: SnapshotId, observed: &SnapshotObserved, paths: &Paths) -> Vec<Step> {
    let places = paths.partial_snapshot_places(id);
    let step = |job: &BackupJob| {
        let written = job.files.iter().find(|file| places.contains(file))?;
        Some(Step::Domain(DomainStep::AbortBackup {
            instance: job.instance,
            file: written.clone(),
        }))
    };
    observed.jobs.iter().filter_map(step).collect()
}

/// Gets rid of a partial file of which nobody knows how far it is.
fn discard(of: &StoredSnapshot, observed: &SnapshotObserved, paths: &Paths) -> Vec<Step> {
    let mut steps = abort(of.id, observed, paths);
    if observed.files.partial || !steps.is_empty() {
        let step = StorageStep::DiscardPartialSnapshot(of.clone());
        steps.push(Step::Storage(step));
    }
    steps
}

fn converge(
    id: SnapshotId,
    spec: &SnapshotSpec,
    observed: &SnapshotObserved,
    paths: &Paths,
) -> Result<Planned, Fault> {
    let pool = &spec.volume.pool;
    if !paths.has_pool(pool) {
        return Err(fault(format!(
            "snapshot {id} is in the storage pool {pool}, which this host does not have; it has {}: configure it \
             ([storage.pools.{pool}]) and start the agent again",
            paths.pool_names()
        )));
    }
    let path = paths.snapshot(pool, id);
    let stored = StoredSnapshot {
        id,
        pool: pool.clone(),
    };
    if observed.files.leaving {
        return Err(fault(format!(
            "snapshot {id} was deleted and its bytes are being wiped ({}); it is not made anew",
            path.display()
        )));
    }
    match &observed.files.file {
        None if observed.files.made => Err(fault(format!(
            "snapshot {id} was made on this host and its file is missing ({}); it is not made anew, because it would \
             hold what the volume has now: bring the file back, or delete the snapshot",
            path.display()
        ))),
        None => make(stored, spec, observed, paths),
        Some(VolumeContent::Unreadable(why)) => Err(fault(format!(
            "the file of snapshot {id} ({}) is no qcow2 snapshot of berth's: {why}",
            path.display()
        ))),
        Some(VolumeContent::Inactive | VolumeContent::Growing(_) | VolumeContent::Grown(_)) => {
            Err(fault(format!(
                "what is in the place of snapshot {id} ({}) changes, and a snapshot never does",
                path.display()
            )))
        }
        Some(VolumeContent::Size(_)) => {
            let mut steps = Vec::new();
            if !observed.files.made {
                steps.push(Step::Storage(StorageStep::MarkSnapshot(stored.clone())));
            }
            steps.extend(discard(&stored, observed, paths));
            Ok((steps, SnapshotThen::Converged))
        }
    }
}

fn make(
    stored: StoredSnapshot,
    spec: &SnapshotSpec,
    observed: &SnapshotObserved,
    paths: &Paths,
) -> Result<Planned, Fault> {
    // What was begun and is worth nothing any more takes no room meanwhile.
    let wait = |steps, wait| Ok((steps, SnapshotThen::Wait(wait)));
    let (id, volume) = (stored.id, spec.volume.clone());
    let mut steps = discard(&stored, observed, paths);
    let Some(found) = observed.source.whole(&volume.pool, volume.format) else {
        return wait(steps, SnapshotWait::Volume(volume.id));
    };
    let most = ByteCount::from_gb(spec.size_gb);
    if found > most {
        return Err(fault(format!(
            "volume {} has {} bytes, and snapshot {id} of it may have {}",
            volume.id,
            found.get(),
            most.get()
        )));
    }
    // A job that is aborted is looked at once more before another one begins.
    if steps.iter().any(|step| matches!(step, Step::Domain(_))) {
        return Ok((steps, SnapshotThen::Converged));
    }
    let is_live = |user: &&VolumeUser| matches!(user.hold, Hold::Live { .. });
    let live: Vec<&VolumeUser> = observed.users.iter().filter(is_live).collect();
    let path = paths.snapshot(&stored.pool, id);
    let is_shared = paths.is_thin(&stored.pool);
    match live.as_slice() {
        // LVM makes it in an instant, and lets what is being written wait for that.
        // One that is saved goes on with the disk as it is now: that is a moment as good as any.
        live if is_shared || live.is_empty() => {
            steps.push(Step::Storage(StorageStep::CreateSnapshot(NewSnapshot {
                id,
                path,
                volume,
            })))
        }
        [
            VolumeUser {
                instance: Some(instance),
                hold: Hold::Live { target },
                domain,
            },
        ] => {
            if observed.jobs.iter().any(|job| job.instance == *instance) {
                return wait(steps, SnapshotWait::Turn(domain.clone()));
            }
            let disk = DiskFile {
                path: paths.volume(&volume.pool, volume.id, volume.format),
                target: target.clone(),
            };
            steps.push(Step::Storage(StorageStep::PrepareSnapshot(NewSnapshot {
                id,
                path,
                volume,
            })));
            steps.push(Step::Domain(DomainStep::Backup(BackupPlan {
                instance: *instance,
                snapshot: id,
                disk,
                file: paths.partial_snapshot(&stored.pool, id),
                // Of a pool of block devices it is one too.
                format: paths.snapshot_format(&stored.pool),
            })));
            steps.push(Step::Storage(StorageStep::NameSnapshot(stored.clone())));
        }
        _ => {
            let names = live.iter().map(|user| user.domain.clone()).collect();
            return wait(steps, SnapshotWait::Users(names));
        }
    }
    steps.push(Step::Storage(StorageStep::MarkSnapshot(stored)));
    Ok((steps, SnapshotThen::Converged))
}

fn fault(message: String) -> Fault {
    Fault {
        code: FaultCode::Volume,
        message,
    }
}

#[cfg(test)]
mod tests;
