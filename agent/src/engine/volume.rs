//! A pass over one volume: look, plan, do, and look again, until there is nothing left to do.

use berth_common::{
    document::{Desired, VolumeSource, VolumeSpec},
    ids::{SnapshotId, VolumeId},
    message::report::{Fault, FaultCode},
};

use super::{
    instance::{apply, name},
    outcome::{Outcome, PassEnd, Waiting},
    tools::{BrokenOff, Held, Worker},
};
use crate::{
    act::ActError,
    decide::{
        image_cache::CachedName,
        instance::{Paths, Step, StorageStep},
        volume::{self, Usable, VolumeObserved, VolumePlan, VolumeThen, VolumeWait},
    },
};

/// How often a pass plans anew before it counts as going round in circles.
const ROUNDS: usize = 6;

type Wish = Desired<VolumeId, VolumeSpec>;

/// What a volume is made from, as long as it is.
#[derive(Default)]
struct Source {
    volume: Option<Held<VolumeId>>,
    snapshot: Option<Held<SnapshotId>>,
}

/// Carries out a volume's document as far as it goes now.
pub(super) async fn pass(mut worker: Worker, wish: &Wish) -> PassEnd {
    if wish.spec.is_none() {
        worker.tools.volumes.set(wish.id, Usable::No);
    }
    let outcome = rounds(&mut worker, wish)
        .await
        .unwrap_or(Outcome::Superseded);
    PassEnd::of(outcome)
}

async fn rounds(worker: &mut Worker, wish: &Wish) -> Result<Outcome, BrokenOff> {
    let mut left = String::new();
    let mut held = Source::default();
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
        let VolumePlan {
            steps,
            then,
            usable,
        } = volume::plan(wish, &observed, &facts.paths);
        worker.tools.volumes.set(wish.id, usable);
        if steps.is_empty() {
            return Ok(match then {
                VolumeThen::Converged => Outcome::Converged,
                VolumeThen::Gone => Outcome::Gone,
                VolumeThen::Wait(VolumeWait::Users(names)) => {
                    Outcome::Waiting(Waiting::Users(names))
                }
                VolumeThen::Wait(VolumeWait::Copied) => Outcome::Waiting(Waiting::Copied),
                VolumeThen::Wait(VolumeWait::Source(id)) => Outcome::Waiting(Waiting::Volume(id)),
                VolumeThen::Wait(VolumeWait::Snapshot(id)) => {
                    Outcome::Waiting(Waiting::Snapshot(id))
                }
                VolumeThen::Refused(fault) => Outcome::Refused(fault),
            });
        }
        left = steps.iter().map(name).collect::<Vec<_>>().join(", ");
        for step in &steps {
            // The step before may have given it up.
            worker.take_slot().await?;
            if let Err(error) = apply(worker, step).await? {
                // Whoever has use for it as it was need not wait for what it cannot become.
                if let Step::Storage(StorageStep::GrowVolume(larger)) = step
                    && let storage = &worker.tools.host.storage
                    && let Ok(files) = storage.observe_volume(wish.id, Some(&larger.pool)).await
                    && files.whole(&larger.pool, larger.format).is_some()
                {
                    worker.tools.volumes.set(wish.id, Usable::Yes);
                }
                return Ok(Outcome::of_step(&error));
            }
        }
    }
    Ok(Outcome::unsettled(ROUNDS, &left))
}

/// What is there of the volume and of what it needs. Takes hold of the volume it is made from, as long as it is not.
async fn look(
    worker: &Worker,
    wish: &Wish,
    paths: &Paths,
    held: &mut Source,
) -> Result<VolumeObserved, ActError> {
    let host = &worker.tools.host;
    // A tombstone does not say where it is.
    let pool = wish.spec.as_ref().map(|spec| &spec.pool);
    let mut observed = VolumeObserved {
        files: host.storage.observe_volume(wish.id, pool).await?,
        copied: worker.tools.volumes.is_held(wish.id),
        ..VolumeObserved::default()
    };
    *held = Source::default();
    let source = wish.spec.as_ref().and_then(|spec| spec.source.as_ref());
    // What it was made from says nothing any more once it is there.
    match source.filter(|_| observed.files.files.is_empty()) {
        Some(VolumeSource::Image(image)) => {
            let cached = host.storage.has_image(image).await?;
            observed.images = cached.then(|| CachedName::of(image)).into_iter().collect();
        }
        Some(VolumeSource::Volume(source)) => {
            held.volume = Some(worker.tools.volumes.hold(source.id));
            if worker.tools.volumes.is_whole(source.id) {
                observed.source = host
                    .storage
                    .observe_volume(source.id, Some(&source.pool))
                    .await?;
            }
        }
        Some(VolumeSource::Snapshot(source)) => {
            held.snapshot = Some(worker.tools.snapshots.hold(source.id));
            if worker.tools.snapshots.is_whole(source.id) {
                let found = host.storage.observe_snapshot(source.id, Some(&source.pool));
                let files = found.await?;
                observed.snapshot = files.whole();
            }
        }
        None => {}
    }
    if volume::asks_for_users(wish, &observed.files) {
        let domains = host.compute.observe().await?;
        observed.users = volume::users(&paths.volume_places(wish.id), &domains);
        if let Some(VolumeSource::Volume(source)) = source {
            observed.source_users = volume::users(&paths.volume_places(source.id), &domains);
        }
    }
    Ok(observed)
}
