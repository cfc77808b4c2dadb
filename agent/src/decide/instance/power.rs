//! The part of an instance's plan that is about its domain: how far it shall run × how far it does.
//!
//! ```text
//!            ┌──────────── start ────────────▶ running ◀──resume── paused ◀──┐
//!   off ─────┤                                  │  │  └─────pause────▶ ▲     │
//!    ▲       └──────────── start paused ────────│──│────────────────────┼─────┘
//!    │   stop, soft reboot: ask the guest, ─────┘  │                    │
//!    └── switch it off when it takes too long      │                    │
//!                                                  └──────save──────────┴──▶ saved ──restore──▶ running
//! ```
//!
//! Two marks in the domain's own metadata make one-shot wishes safe: the reboot nonce is written *before* the start that
//! carries the reboot out, and the generation *after* the start, so that a start is never forgotten and a reboot
//! never repeated. A guest that powers itself off stays off until a new generation asks for it, and so does one that
//! crashed if its document says so. A third mark keeps that reason, which libvirt forgets when it is started anew: it is written
//! when the reason is seen, and whatever is written before a start, a restoration or a request clears it. A reboot that was not carried out before a pause or a suspension is carried out after
//! it.
//!
//! A guest that was booted from another disk than it shall be (it is rescued, unrescued or rebuilt) is switched off as for a
//! soft reboot, and started from that disk.
//!
//! The generation is set to 0 *before* a guest is asked to power off. Who wants it to run after all cannot take the
//! question back: a guest that is marked so and still obeys is started again, by whatever agent sees it. The mark
//! goes when the guest was watched for its whole stop timeout and did not. A guest that stands still cannot obey: the mark
//! stays for when it goes on.
//!
//! While libvirt starts a domain or restores it, everything waits for that. A libvirtd that is started anew in the middle of it
//! ends such a domain, but one whose QEMU does not answer stays where it is for ever: after the time that even a slow host needs
//! it is switched off, and the next look starts it again. Its guest has not run, and the memory is still saved.
//!
//! A guest whose disk is full or failing stands still: QEMU stops it, and what it wanted to write is tried again when it goes on.
//! It is let go on now and then. Whether that was of use shows a moment later, so it counts as running only after that.
//!
//! Saved memory is thrown away for two wishes only: a hard reboot, and a tombstone. What is left of it while the guest runs
//! is of no use, and would be taken for more than it is: it goes at once.

use std::{path::Path, time::Duration};

use berth_common::{
    document::{DesiredPower, InstanceSpec, OnCrash, RebootKind},
    ids::Nonce,
    message::report::{Fault, FaultCode, PowerState},
    units::Generation,
};

use super::{Asked, Observed, Paths, Then, Wait};
use crate::decide::domain::{
    DiskError, DomainConfig, DomainObserved, DomainStep, LeftOff, OffReason,
};

/// How long after asking a guest to power off it is asked again: it may not have listened yet. One that stands still for its disks is
/// let go on as often, and if it still runs after this long, it does.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long libvirt may take to start QEMU, on a host where everything is slow.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// How fast saved memory is read at the least, in MiB per second: as from one slow disk.
const RESTORES_AT_LEAST: u64 = 50;

/// What an instance's document wants of its domain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The domain it describes.
    pub(super) config: &'a DomainConfig,
    /// Its generation.
    pub(super) generation: Generation,
    /// The rest of it.
    pub(super) spec: &'a InstanceSpec,
    /// Where its disks are.
    pub(super) paths: &'a Paths,
}

impl Wish<'_> {
    /// What the domain needs, once disks and networks are there.
    pub(super) fn plan(&self, observed: &Observed) -> (Vec<DomainStep>, Then) {
        let Some(domain) = &observed.domain else {
            let steps = match self.spec.power {
                DesiredPower::Running => self.start(),
                DesiredPower::Paused => self.start_paused(),
                // What never ran has no memory to keep.
                DesiredPower::Stopped | DesiredPower::Suspended => {
                    vec![self.define(self.generation, self.nonce(), None)]
                }
            };
            return (steps, Then::Converged);
        };
        if is_off(domain) {
            self.of_off(domain)
        } else {
            self.of_on(domain, observed)
        }
    }

    fn of_off(&self, domain: &DomainObserved) -> (Vec<DomainStep>, Then) {
        let carried_out_before = self.is_carried_out(domain);
        let left_off_by_guest = (domain.off_reason == Some(OffReason::Guest)
            || self.stays_crashed(domain))
            && carried_out_before
            && self.is_rebooted(domain);
        match (self.spec.power, domain.off_reason) {
            // It was to go on, and then to stop: it can only be asked when it runs.
            (DesiredPower::Stopped, Some(OffReason::Saved)) => {
                (self.restore(domain), Then::Converged)
            }
            (DesiredPower::Stopped | DesiredPower::Suspended, _) => self.settled(domain),
            (DesiredPower::Running | DesiredPower::Paused, Some(OffReason::Moved)) => {
                (Vec::new(), Then::Refused(moved(domain)))
            }
            (DesiredPower::Running | DesiredPower::Paused, Some(OffReason::Saved)) => {
                (self.restore(domain), Then::Converged)
            }
            (DesiredPower::Running, _) if left_off_by_guest => self.settled(domain),
            (DesiredPower::Running, _) => (self.start(), Then::Converged),
            (DesiredPower::Paused, Some(OffReason::Crashed))
                if self.stays_crashed(domain) && carried_out_before =>
            {
                self.settled(domain)
            }
            // It switched itself off before the pause came: nobody asked for it to run again.
            (DesiredPower::Paused, Some(OffReason::Guest)) if !is_marked(domain) => {
                self.settled(domain)
            }
            // Its memory is lost, of whatever it was off: it stands still at the very beginning.
            (DesiredPower::Paused, _) => (self.start_paused(), Then::Converged),
        }
    }

    fn of_on(&self, domain: &DomainObserved, observed: &Observed) -> (Vec<DomainStep>, Then) {
        let id = self.config.id;
        if domain.is_starting {
            let is_late = observed.starting >= Some(starts_within(domain));
            let steps = is_late.then_some(DomainStep::AbandonStart(id));
            return (steps.into_iter().collect(), Then::Wait(Wait::Starts));
        }
        if domain.leftover_memory {
            return (vec![DomainStep::DiscardSaved(id)], Then::Converged);
        }
        match self.spec.power {
            DesiredPower::Stopped => self.power_off(domain, observed.asked),
            // What runs is another system: its memory is not what shall be kept.
            DesiredPower::Suspended | DesiredPower::Paused if self.boots_otherwise(domain) => {
                self.power_off(domain, observed.asked)
            }
            DesiredPower::Suspended => {
                let step = match domain.power_state {
                    // There is nothing left to go on with.
                    PowerState::Crashed => DomainStep::Destroy(id),
                    _ => DomainStep::Save(id),
                };
                (vec![step], Then::Converged)
            }
            DesiredPower::Paused => match domain.power_state {
                PowerState::Crashed if self.spec.on_crash == OnCrash::Restart => {
                    self.anew(self.start_paused())
                }
                // A guest that crashed, or went to sleep by itself, stands still as well.
                PowerState::Paused | PowerState::Suspended | PowerState::Crashed => {
                    self.standing_still(domain)
                }
                _ => (vec![DomainStep::Pause(id)], Then::Converged),
            },
            DesiredPower::Running => self.running(domain, observed),
        }
    }

    fn running(&self, domain: &DomainObserved, observed: &Observed) -> (Vec<DomainStep>, Then) {
        match self.spec.reboot {
            Some(reboot) if !self.is_rebooted(domain) => {
                return match (reboot.kind, domain.power_state) {
                    (RebootKind::Hard, _) => self.anew(self.start()),
                    // It was asked for before a pause: the guest can only hear it when it goes on.
                    (RebootKind::Soft, PowerState::Paused) if observed.asked.is_none() => {
                        match halted(domain, observed) {
                            None => (vec![DomainStep::Resume(self.config.id)], Then::Converged),
                            Some(fault) if self.may_go_on_in_time(observed) => {
                                (self.let_go_on(domain, observed), Then::Halted(fault))
                            }
                            Some(_) => self.power_off(domain, None),
                        }
                    }
                    (RebootKind::Soft, _) => self.power_off(domain, observed.asked),
                };
            }
            _ => {}
        }
        if domain.power_state == PowerState::Crashed {
            let stays = self.spec.on_crash == OnCrash::Stop && self.is_carried_out(domain);
            return if stays {
                self.settled(domain)
            } else {
                self.anew(self.start())
            };
        }
        if self.boots_otherwise(domain) {
            return self.power_off(domain, observed.asked);
        }
        let (mut steps, then) = match self.may_obey_for(domain, observed.asked_before) {
            Some(left) => (
                self.written(domain, Generation(0), self.nonce()),
                Then::Watch(left),
            ),
            None => self.settled(domain),
        };
        if let Some(fault) = halted(domain, observed) {
            steps.extend(self.let_go_on(domain, observed));
            return (steps, Then::Halted(fault));
        }
        if domain.power_state == PowerState::Paused {
            steps.push(DomainStep::Resume(self.config.id));
        }
        (steps, then)
    }

    /// Lets a guest that stands still for its disks go on, if that was not tried just now.
    fn let_go_on(&self, domain: &DomainObserved, observed: &Observed) -> Vec<DomainStep> {
        let is_due = observed
            .let_go_on
            .is_none_or(|tried| tried.last >= ASK_AGAIN_AFTER);
        let step = (domain.is_halted && is_due).then_some(DomainStep::Resume(self.config.id));
        step.into_iter().collect()
    }

    /// Whether a guest that stands still for its disks may still go on in time to hear that it shall power off.
    fn may_go_on_in_time(&self, observed: &Observed) -> bool {
        observed
            .let_go_on
            .is_none_or(|tried| tried.first < self.stop_timeout())
    }

    /// Whether a guest that is on was booted from another disk of its own than it shall be: it was rescued since, or
    /// unrescued, or rebuilt.
    fn boots_otherwise(&self, domain: &DomainObserved) -> bool {
        let Some(boot) = self.config.disks.first() else {
            return false;
        };
        // A disk of the instance, or the volume that is one: what else it may have, berth did not give it.
        let directory = self.paths.instance(self.config.id);
        let is_ours =
            |path: &Path| path.parent() == Some(&directory) || self.paths.volume_at(path).is_some();
        domain
            .disks
            .live
            .iter()
            .any(|file| file.target == boot.target && file.path != boot.path && is_ours(&file.path))
    }

    /// A guest that stands still as it shall.
    fn standing_still(&self, domain: &DomainObserved) -> (Vec<DomainStep>, Then) {
        let generation = if is_marked(domain) {
            Generation(0)
        } else {
            self.generation
        };
        (
            self.written(domain, generation, nonce_of(domain)),
            Then::Converged,
        )
    }

    fn anew(&self, start: Vec<DomainStep>) -> (Vec<DomainStep>, Then) {
        let mut steps = vec![DomainStep::Destroy(self.config.id)];
        steps.extend(start);
        (steps, Then::Converged)
    }

    fn nonce(&self) -> Option<Nonce> {
        self.spec.reboot.map(|reboot| reboot.nonce)
    }

    fn is_rebooted(&self, domain: &DomainObserved) -> bool {
        nonce_of(domain) == self.nonce() && domain.metadata.is_some()
    }

    /// Whether the document was carried out before.
    fn is_carried_out(&self, domain: &DomainObserved) -> bool {
        let metadata = domain.metadata.as_ref();
        metadata.is_some_and(|metadata| metadata.generation == self.generation)
    }

    /// Whether its guest crashed, and shall not be started again for that.
    fn stays_crashed(&self, domain: &DomainObserved) -> bool {
        domain.off_reason == Some(OffReason::Crashed) && self.spec.on_crash == OnCrash::Stop
    }

    fn define(
        &self,
        generation: Generation,
        reboot_nonce: Option<Nonce>,
        left_off: Option<LeftOff>,
    ) -> DomainStep {
        let mut config = self.config.clone();
        config.metadata.generation = generation;
        config.metadata.reboot_nonce = reboot_nonce;
        config.metadata.left_off = left_off;
        DomainStep::Define(Box::new(config))
    }

    fn start(&self) -> Vec<DomainStep> {
        self.around(DomainStep::Start(self.config.id))
    }

    fn start_paused(&self) -> Vec<DomainStep> {
        self.around(DomainStep::StartPaused(self.config.id))
    }

    fn around(&self, start: DomainStep) -> Vec<DomainStep> {
        vec![
            self.define(Generation(0), self.nonce(), None),
            start,
            self.define(self.generation, self.nonce(), None),
        ]
    }

    /// Lets the guest go on from its saved memory; the next look sees what else it needs. The mark says that it may have
    /// been asked to power off, which nobody knows of a guest that slept.
    fn restore(&self, domain: &DomainObserved) -> Vec<DomainStep> {
        let hard = self
            .spec
            .reboot
            .is_some_and(|reboot| reboot.kind == RebootKind::Hard);
        if hard && self.spec.power == DesiredPower::Running && !self.is_rebooted(domain) {
            let mut steps = vec![DomainStep::DiscardSaved(self.config.id)];
            steps.extend(self.start());
            return steps;
        }
        let mut steps = self.written(domain, Generation(0), nonce_of(domain));
        steps.push(DomainStep::Restore(self.config.id));
        steps
    }

    fn settled(&self, domain: &DomainObserved) -> (Vec<DomainStep>, Then) {
        // A reboot that waits for its guest to go on is not forgotten.
        let nonce = match domain.off_reason {
            Some(OffReason::Saved) => nonce_of(domain),
            _ => self.nonce(),
        };
        (
            self.written(domain, self.generation, nonce),
            Then::Converged,
        )
    }

    /// Writes a definition, unless it is the one that is there.
    fn written(
        &self,
        domain: &DomainObserved,
        generation: Generation,
        reboot_nonce: Option<Nonce>,
    ) -> Vec<DomainStep> {
        let left_off = left_off(domain);
        let done = domain.persistent
            && domain.metadata.as_ref().is_some_and(|metadata| {
                metadata.generation == generation
                    && metadata.reboot_nonce == reboot_nonce
                    && metadata.left_off == left_off
                    && metadata.digest == self.config.metadata.digest
            });
        if done {
            Vec::new()
        } else {
            vec![self.define(generation, reboot_nonce, left_off)]
        }
    }

    /// How much longer a guest that is on may still obey a request to power off that another agent, or another wish,
    /// made. A start that was not noted looks the same and is treated the same.
    fn may_obey_for(
        &self,
        domain: &DomainObserved,
        asked_before: Option<Duration>,
    ) -> Option<Duration> {
        if !is_marked(domain) {
            return None;
        }
        self.stop_timeout()
            .checked_sub(asked_before.unwrap_or_default())
            .filter(|left| !left.is_zero())
    }

    fn stop_timeout(&self) -> Duration {
        Duration::from_secs(self.spec.stop_timeout_seconds.into())
    }

    /// Ask the guest, ask again, and switch it off when it takes too long or cannot hear.
    fn power_off(&self, domain: &DomainObserved, asked: Option<Asked>) -> (Vec<DomainStep>, Then) {
        let wait = Then::Wait(Wait::GuestPowersOff);
        let id = self.config.id;
        if domain.power_state != PowerState::Running {
            return (vec![DomainStep::Destroy(id)], wait);
        }
        let ask = || {
            let mark =
                (!is_marked(domain)).then(|| self.define(Generation(0), nonce_of(domain), None));
            mark.into_iter().chain([DomainStep::Shutdown(id)]).collect()
        };
        match asked {
            None => (ask(), wait),
            Some(asked) if asked.first >= self.stop_timeout() => {
                (vec![DomainStep::Destroy(id)], wait)
            }
            Some(asked) if asked.last >= ASK_AGAIN_AFTER => (ask(), wait),
            Some(_) => (Vec::new(), wait),
        }
    }
}

/// How long libvirt may be starting a domain, or restoring it.
fn starts_within(domain: &DomainObserved) -> Duration {
    STARTS_WITHIN + Duration::from_secs(domain.memory_mb.get() / RESTORES_AT_LEAST)
}

/// What keeps a guest from running that stands still for its disks, or was let go on so lately that it may not have used them yet.
fn halted(domain: &DomainObserved, observed: &Observed) -> Option<Fault> {
    let is_on_trial = || {
        let tried = observed.let_go_on;
        domain.power_state == PowerState::Running
            && tried.is_some_and(|tried| tried.last < ASK_AGAIN_AFTER)
    };
    if !domain.is_halted && !is_on_trial() {
        return None;
    }
    let errors = &observed.disk_errors;
    let disk = |target: &String, error: &DiskError| {
        let mut files = domain.disks.live.iter();
        let path = files
            .find(|file| file.target == *target)
            .map_or_else(String::new, |file| format!(" ({})", file.path.display()));
        match error {
            DiskError::NoSpace => format!("there is no room for what it writes to {target}{path}"),
            DiskError::Other => format!("{target}{path} cannot be read or written"),
        }
    };
    let disks: Vec<String> = errors.iter().map(|(it, error)| disk(it, error)).collect();
    let why = if disks.is_empty() {
        "one of its disks is full or fails".to_owned()
    } else {
        disks.join(", ")
    };
    let is_full = errors.values().any(|error| *error == DiskError::NoSpace);
    Some(Fault {
        code: if is_full {
            FaultCode::DiskFull
        } else {
            FaultCode::Hypervisor
        },
        message: format!(
            "the guest stands still: {why}; it is let go on every {} s, and goes on by itself once that helps",
            ASK_AGAIN_AFTER.as_secs()
        ),
    })
}

fn moved(domain: &DomainObserved) -> Fault {
    Fault {
        code: FaultCode::Hypervisor,
        message: format!(
            "domain {:?} was migrated away from this host; it is not started here while it may run elsewhere",
            domain.name
        ),
    }
}

/// Why it is off by itself, or will be once it is: a guest that crashed may be kept in memory for whoever wants to look at it.
fn left_off(domain: &DomainObserved) -> Option<LeftOff> {
    match domain.power_state {
        PowerState::Crashed => Some(LeftOff::Crashed),
        PowerState::Nostate
        | PowerState::Running
        | PowerState::Paused
        | PowerState::Shutdown
        | PowerState::Suspended => domain.off_reason.and_then(LeftOff::of),
    }
}

/// The last reboot that was carried out.
fn nonce_of(domain: &DomainObserved) -> Option<Nonce> {
    domain
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.reboot_nonce)
}

/// Whether its guest may have been asked to power off.
fn is_marked(domain: &DomainObserved) -> bool {
    domain
        .metadata
        .as_ref()
        .is_some_and(|metadata| metadata.generation == Generation(0))
}

/// Whether nothing of the guest runs or is kept in memory.
pub(super) fn is_off(domain: &DomainObserved) -> bool {
    match domain.power_state {
        PowerState::Shutdown | PowerState::Nostate => true,
        // A crashed guest that libvirt still lists as such is kept in memory, for whoever wants to look at it.
        PowerState::Running | PowerState::Paused | PowerState::Suspended | PowerState::Crashed => {
            false
        }
    }
}
