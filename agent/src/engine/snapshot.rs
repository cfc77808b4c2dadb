//! A pass over one snapshot: look, plan, do, and look again, until there is nothing left to do.

use std::sync::Arc;

use berth_common::{
    document::{Desired, SnapshotSpec},
    ids::{SnapshotId, VolumeId},
    message::report::{Fault, FaultCode},
    telemetry::error_chain,
};

use super::{
    instance::{apply, name},
    outcome::{Outcome, PassEnd, Waiting},
    tools::{BrokenOff, Held, Turn, Worker},
};
use crate::{
    act::{ActError, Storage},
    decide::{
        domain::DomainStep,
        instance::{Paths, Step},
        names,
        snapshot::{self, SnapshotObserved, SnapshotPlan, SnapshotThen, SnapshotWait},
        volume::{self as volumes, Usable},
    },
};

/// How often a pass plans anew before it counts as going round in circles.
const ROUNDS: usize = 6;

type Wish = Desired<SnapshotId, SnapshotSpec>;

/// Carries out a snapshot's document as far as it goes now.
pub(super) async fn pass(mut worker: Worker, wish: &Wish) -> PassEnd {
    if wish.spec.is_none() {
        worker.tools.snapshots.set(wish.id, Usable::No);
    }
    let outcome = rounds(&mut worker, wish)
        .await
        .unwrap_or(Outcome::Superseded);
    PassEnd::of(outcome)
}

async fn rounds(worker: &mut Worker, wish: &Wish) -> Result<Outcome, BrokenOff> {
    let mut left = String::new();
    let mut held = None;
    // Whatever ends this pass, nobody writes a snapshot for it any more.
    let _promised = PromisedRoom {
        storage: Arc::clone(&worker.tools.host.storage),
        snapshot: wish.id,
    };
    for _ in 0..ROUNDS {
        worker.take_slot().await?;
        // Where the files are is among them, and who uses a volume only libvirt knows.
        let facts = worker.tools.facts.borrow().clone();
        let Some(facts) = facts else {
            return Ok(Outcome::Unseen(Fault {
                code: FaultCode::Hypervisor,
                message: "libvirt has not answered since the agent started".to_owned(),
            }));
        };
        let observed = match look(worker, wish, &facts.paths, &mut held).await {
            Ok(observed) => observed,
            Err(error) => return Ok(Outcome::of_look(&error)),
        };
        let SnapshotPlan { steps, then } = snapshot::plan(wish, &observed, &facts.paths);
        let usable = match observed.files.whole() {
            Some(_) if wish.spec.is_some() => Usable::Yes,
            Some(_) | None => Usable::No,
        };
        worker.tools.snapshots.set(wish.id, usable);
        if steps.is_empty() {
            return Ok(outcome(then));
        }
        left = steps.iter().map(name).collect::<Vec<_>>().join(", ");
        for step in &steps {
            // The step before may have given it up.
            worker.take_slot().await?;
            // libvirt refuses a second job on a domain, but only after it began to make the file.
            let turn = match step {
                Step::Domain(DomainStep::Backup(plan)) => {
                    let Some(turn) = Turn::take(&worker.tools.turns, plan.instance) else {
                        return Ok(Outcome::Waiting(Waiting::Turn(names::domain(
                            plan.instance,
                        ))));
                    };
                    Some(turn)
                }
                _ => None,
            };
            let result = apply(worker, step).await?;
            end_without_room(worker, step, &result).await?;
            drop(turn);
            if let Err(error) = result {
                return Ok(Outcome::of_step(&error));
            }
        }
    }
    Ok(Outcome::unsettled(ROUNDS, &left))
}

/// The room that a snapshot of a guest that is on is promised while it is made.
struct PromisedRoom {
    storage: Arc<dyn Storage>,
    snapshot: SnapshotId,
}

impl Drop for PromisedRoom {
    fn drop(&mut self) {
        self.storage.release_snapshot_room(self.snapshot);
    }
}

/// A job that took what is kept free for guests ends at once: the pass that looks again comes too late for them.
async fn end_without_room(
    worker: &mut Worker,
    step: &Step,
    result: &Result<(), ActError>,
) -> Result<(), BrokenOff> {
    if let (Step::Domain(DomainStep::Backup(plan)), Err(error)) = (step, result)
        && error.code == FaultCode::DiskFull
    {
        let abort = Step::Domain(DomainStep::AbortBackup {
            instance: plan.instance,
            file: plan.file.clone(),
        });
        if let Err(error) = apply(worker, &abort).await? {
            tracing::warn!(
                instance = %plan.instance, error = %error_chain(&error),
                "a copy that has no room could not be ended at once; the next pass ends it"
            );
        }
    }
    Ok(())
}

fn outcome(then: SnapshotThen) -> Outcome {
    match then {
        SnapshotThen::Converged => Outcome::Converged,
        SnapshotThen::Gone => Outcome::Gone,
        SnapshotThen::Wait(SnapshotWait::Volume(id)) => Outcome::Waiting(Waiting::Volume(id)),
        SnapshotThen::Wait(SnapshotWait::Copied) => Outcome::Waiting(Waiting::Copied),
        SnapshotThen::Wait(SnapshotWait::Users(names)) => Outcome::Waiting(Waiting::Users(names)),
        SnapshotThen::Wait(SnapshotWait::Turn(domain)) => Outcome::Waiting(Waiting::Turn(domain)),
        SnapshotThen::Refused(fault) => Outcome::Refused(fault),
    }
}

/// What is there of the snapshot and of what it needs. Takes hold of its volume, as long as the snapshot is not there.
async fn look(
    worker: &Worker,
    wish: &Wish,
    paths: &Paths,
    held: &mut Option<Held<VolumeId>>,
) -> Result<SnapshotObserved, ActError> {
    let host = &worker.tools.host;
    // A tombstone does not say where it is.
    let pool = wish.spec.as_ref().map(|spec| &spec.volume.pool);
    let mut observed = SnapshotObserved {
        files: host.storage.observe_snapshot(wish.id, pool).await?,
        copied: worker.tools.snapshots.is_held(wish.id),
        ..SnapshotObserved::default()
    };
    *held = None;
    // What it was made of says nothing any more once it is there.
    if let Some(spec) = wish.spec.as_ref().filter(|_| observed.files.file.is_none()) {
        let (volume, pool) = (spec.volume.id, &spec.volume.pool);
        *held = Some(worker.tools.volumes.hold(volume));
        if worker.tools.volumes.is_whole(volume) {
            observed.source = host.storage.observe_volume(volume, Some(pool)).await?;
        }
        let domains = host.compute.observe().await?;
        observed.users = volumes::users(&paths.volume_places(volume), &domains);
    }
    if snapshot::asks_for_jobs(&observed.files, &observed.users) {
        observed.jobs = host.compute.backups().await?;
    }
    Ok(observed)
}
