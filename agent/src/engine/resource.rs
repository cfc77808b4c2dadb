//! One resource as the engine keeps it: its document, what was told about it, and when it is looked at next.
//!
//! ```text
//!              ┌──────────────── a newer document, or a change on the host ───────────────┐
//!              ▼                                                                          │
//!   due ──▶ running ──▶ converged ── (looked at again after a while) ──────────────────────┤
//!              ├──▶ waiting ── (a moment, or what it waits for) ───────────────────────────┤
//!              ├──▶ failing ── (1 s, 2 s, 4 s … 60 s; told as failed from the sixth on) ───┤
//!              ├──▶ refused ── (after five minutes; never for what only a document mends) ─┤
//!              └──▶ gone ── (only if something of it appears again) ────────────────────────┘
//! ```
//!
//! Pure: time and chance are arguments, and nothing is done here.

use std::{sync::Arc, time::Duration};

use berth_common::{
    document::{Document, DocumentKey, Kind},
    ids::{PortId, VolumeId},
    message::report::{ConvergeStatus, Fault, FaultCode, PowerState, ResourceReport},
};
use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    backoff::{self, FAILED_AFTER},
    outcome::{Memory, Outcome, PassEnd, Waiting},
};
use crate::{
    decide::{
        domain::{DomainObserved, LeftOff, OffReason},
        instance::{boot_disk, ports},
    },
    inbox::journal::Entry,
};

/// How often a converged instance is looked at with its files and networks, and a volume or a snapshot with its file; domains are
/// watched all the time.
const THOROUGH: Duration = Duration::from_secs(300);
/// How often a guest that was asked to power off, or to give back a volume or a NIC, is looked at.
const POLL_GUEST: Duration = Duration::from_secs(1);
/// How often a network that waits for its last instances is looked at.
const POLL_MEMBERS: Duration = Duration::from_secs(1);
/// How often a volume that waits for its last users is looked at; each time, all domains are.
const POLL_USERS: Duration = Duration::from_secs(2);
/// Who waits for a network, a volume or a snapshot is woken when that is ready. This is for the case that nobody wakes it.
const POLL_RESOURCE: Duration = Duration::from_secs(30);
/// A guest that runs for as long as this has not crashed soon.
const STEADY: Duration = Duration::from_secs(60);
/// How often it is tried whether what was refused is possible by now: something foreign has gone, a disk is back.
const POLL_REFUSED: Duration = Duration::from_secs(300);

/// One resource.
#[derive(Debug)]
pub(super) struct Resource {
    /// How it shall be.
    pub(super) document: Arc<Document>,
    /// What was told about it last; `None`: nothing since the agent started.
    pub(super) told: Option<ResourceReport>,
    /// When the next pass is due; `None`: only when something changes.
    pub(super) due: Option<Instant>,
    /// The pass that runs.
    pub(super) running: Option<CancellationToken>,
    /// The resource it waits for.
    pub(super) waits_for: Option<DocumentKey>,
    /// What the next pass has to know.
    pub(super) memory: Memory,
    /// The domain as the last pass left it; `None`: it was not seen.
    seen: Option<Option<DomainObserved>>,
    /// The volumes that it had then; `None`: no pass over this document has seen it.
    volumes: Option<Vec<VolumeId>>,
    /// When the last pass ended.
    left: Option<Instant>,
    /// Passes that failed in a row.
    failures: u32,
    /// Crashes of its guest in a row that came soon after the start that the last one asked for.
    crashes: u32,
    /// When that start was due.
    restarted: Option<Instant>,
    /// The end of the pass after which the last crash was seen.
    crashed_after: Option<Instant>,
    /// Whether the document came while this agent runs and was not carried out yet.
    fresh: bool,
}

/// Time, and chance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) at: DateTime<Utc>,
    pub(super) chance: u8,
}

impl Moment {
    /// Now.
    pub(super) fn now() -> Self {
        Self {
            now: Instant::now(),
            at: Utc::now(),
            chance: backoff::chance(),
        }
    }
}

impl Resource {
    /// A resource of a journal that was just opened. Nothing is told of it before it was looked at.
    pub(super) fn of_journal(entry: &Entry, moment: Moment) -> Self {
        let mut resource = Self::new(Arc::clone(&entry.document), moment);
        if let Some(at) = entry.gone_at {
            resource.due = None;
            resource.told = Some(ResourceReport {
                observed_at: at,
                ..resource.report(ConvergeStatus::Gone, moment)
            });
        }
        resource
    }

    /// A resource that was not known before.
    pub(super) fn fresh(document: Arc<Document>, moment: Moment) -> Self {
        let mut resource = Self::new(document, moment);
        resource.fresh = true;
        resource.told = Some(resource.report(ConvergeStatus::Converging, moment));
        resource
    }

    fn new(document: Arc<Document>, moment: Moment) -> Self {
        Self {
            document,
            told: None,
            due: Some(moment.now),
            running: None,
            waits_for: None,
            memory: Memory::default(),
            seen: None,
            volumes: None,
            left: None,
            failures: 0,
            crashes: 0,
            restarted: None,
            crashed_after: None,
            fresh: false,
        }
    }

    /// Another document came. A pass over the old one is broken off between two steps.
    pub(super) fn replace(&mut self, document: Arc<Document>, moment: Moment) {
        self.memory.overruled = document.generation() == self.document.generation();
        self.document = document;
        // A step for the one before may be under way.
        self.volumes = None;
        self.fresh = true;
        self.failures = 0;
        self.crashes = 0;
        self.restarted = None;
        self.waits_for = None;
        self.memory.asked = None;
        self.memory.detach_asked = None;
        self.memory.nic_asked = None;
        self.due = Some(moment.now);
        self.told = Some(self.report(ConvergeStatus::Converging, moment));
        if let Some(running) = &self.running {
            running.cancel();
        }
    }

    /// Something about it changed: look at it now.
    pub(super) const fn wake(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// Its domain is no longer as the last pass left it: look at it now. A guest that crashes soon after each start is not started as
    /// fast as it crashes.
    pub(super) fn drifted(&mut self, found: Option<&DomainObserved>, moment: Moment) {
        let reason = found.and_then(|domain| domain.off_reason);
        self.memory.left_off = reason.and_then(LeftOff::of);
        if !found.is_some_and(has_crashed) {
            return self.wake(moment.now);
        }
        let is_counted = self.crashed_after.is_some() && self.crashed_after == self.left;
        if is_counted && self.due.is_some() {
            return;
        }
        let soon = self
            .restarted
            .is_some_and(|at| moment.now.saturating_duration_since(at) < STEADY);
        self.crashes = if soon {
            self.crashes.saturating_add(1)
        } else {
            0
        };
        self.crashed_after = self.left;
        let pause = match self.crashes {
            0 => Duration::ZERO,
            crashes => backoff::after(crashes, moment.chance),
        };
        let at = moment.now + pause;
        self.restarted = Some(at);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Whether its tombstone was carried out, and nobody works on it.
    pub(super) fn is_gone(&self) -> bool {
        self.running.is_none() && self.status() == Some(ConvergeStatus::Gone)
    }

    fn status(&self) -> Option<ConvergeStatus> {
        self.told.as_ref().map(|told| told.status)
    }

    /// Whether a pass over it has ended since.
    pub(super) fn was_left_after(&self, since: Instant) -> bool {
        self.left.is_some_and(|left| left > since)
    }

    /// Whether passes over it fail.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether its domain is no longer as the last pass left it. Of what is failing or waits, the next pass is near.
    pub(super) fn has_drifted(&self, found: Option<&DomainObserved>) -> bool {
        let is_settled = match self.status() {
            // Of what is gone nothing of ours may appear; what is not ours may be whatever it likes.
            Some(ConvergeStatus::Gone) => {
                return self.is_gone() && found.is_some_and(|domain| domain.metadata.is_some());
            }
            Some(ConvergeStatus::Converged) => true,
            // Refused.
            Some(ConvergeStatus::Failed) => !self.is_failing(),
            Some(ConvergeStatus::Converging) | None => false,
        };
        let Some(seen) = self
            .seen
            .as_ref()
            .filter(|_| is_settled && self.running.is_none())
        else {
            return false;
        };
        match (seen, found) {
            (None, None) => false,
            (Some(seen), Some(found)) => !alike(seen, found),
            (Some(_), None) | (None, Some(_)) => true,
        }
    }

    /// The pass has begun.
    pub(super) fn begin(&mut self) -> CancellationToken {
        let token = CancellationToken::new();
        self.running = Some(token.clone());
        self.due = None;
        token
    }

    /// The pass has ended. `document` is the one it was about.
    pub(super) fn end(
        &mut self,
        document: &Arc<Document>,
        end: PassEnd,
        resync: Duration,
        moment: Moment,
    ) {
        self.running = None;
        self.left = Some(moment.now);
        if !Arc::ptr_eq(document, &self.document) {
            // What was done for the old document is found by looking; what was asked of the guest is not.
            self.memory.asked_before = end.memory.asked_before;
            self.memory.starting = end.memory.starting;
            self.memory.left_off = end.memory.left_off;
            self.due = Some(moment.now);
            return;
        }
        self.memory = end.memory;
        if let Some(domain) = end.domain {
            self.seen = Some(domain);
            self.volumes = end.volumes;
        }
        self.waits_for = None;
        let pause = self.settle(&end.outcome, resync, moment);
        let pause = pause.into_iter().chain(end.again).min();
        // A wake-up during the pass stays.
        if self.due.is_none() {
            self.due = pause.map(|pause| moment.now + pause);
        }
    }

    /// Notes what a pass came to; answers after what pause to look again.
    fn settle(&mut self, outcome: &Outcome, resync: Duration, moment: Moment) -> Option<Duration> {
        match outcome {
            Outcome::Converged => {
                self.failures = 0;
                self.fresh = false;
                self.memory.overruled = false;
                self.told = Some(self.report(ConvergeStatus::Converged, moment));
                match self.document.key().kind {
                    Kind::Instance | Kind::Snapshot | Kind::Volume => {
                        Some(backoff::spread(THOROUGH, moment.chance))
                    }
                    Kind::Network | Kind::Router => Some(backoff::spread(resync, moment.chance)),
                }
            }
            Outcome::Gone => {
                self.failures = 0;
                self.fresh = false;
                self.told = Some(self.report(ConvergeStatus::Gone, moment));
                None
            }
            Outcome::Waiting(waiting) => {
                // One that libvirt never gets started has failed as often before.
                if *waiting != Waiting::Start {
                    self.failures = 0;
                }
                let report = self.report(ConvergeStatus::Converging, moment);
                self.told = Some(ResourceReport {
                    progress: Some(waiting.text()),
                    ..report
                });
                self.waits_for = waiting.resource();
                Some(match waiting {
                    Waiting::Network(_)
                    | Waiting::Volume(_)
                    | Waiting::Snapshot(_)
                    | Waiting::CopiedVolume(_)
                    | Waiting::GuestGoesOn => POLL_RESOURCE,
                    Waiting::Users(_) | Waiting::Copied | Waiting::Turn(_) => POLL_USERS,
                    Waiting::Guest
                    | Waiting::Start
                    | Waiting::Detach(_)
                    | Waiting::DetachNics(_) => POLL_GUEST,
                    Waiting::Members(_) => POLL_MEMBERS,
                    // A tap that appears wakes who waits for it.
                    Waiting::Mirrors(_) => backoff::spread(resync, moment.chance),
                })
            }
            Outcome::Refused(fault) => {
                self.failures = 0;
                self.tell_fault(ConvergeStatus::Failed, fault, moment);
                may_mend_itself(fault.code).then(|| backoff::spread(POLL_REFUSED, moment.chance))
            }
            // What is missing may appear, and guests with ports of it come and go.
            Outcome::Flawed(fault) => {
                self.failures = 0;
                self.tell_fault(ConvergeStatus::Failed, fault, moment);
                Some(backoff::spread(resync, moment.chance))
            }
            Outcome::Failed(fault) => Some(self.fail(fault, self.failures >= FAILED_AFTER, moment)),
            // What is built is looked at as regularly as ever.
            Outcome::Hampered(fault) => Some(
                self.fail(fault, self.failures >= FAILED_AFTER, moment)
                    .min(backoff::spread(resync, moment.chance)),
            ),
            Outcome::Unseen(fault) => {
                let was_well = self
                    .told
                    .as_ref()
                    .is_some_and(|told| told.status == ConvergeStatus::Converged);
                if was_well {
                    // That nobody can look does not make it worse; the host's health tells of it.
                    self.failures = self.failures.saturating_add(1);
                    return Some(backoff::after(self.failures, moment.chance));
                }
                Some(self.fail(fault, self.fresh && self.failures >= FAILED_AFTER, moment))
            }
            Outcome::Superseded => Some(Duration::ZERO),
        }
    }

    fn fail(&mut self, fault: &Fault, for_good: bool, moment: Moment) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let status = if for_good {
            ConvergeStatus::Failed
        } else {
            ConvergeStatus::Converging
        };
        self.tell_fault(status, fault, moment);
        backoff::after(self.failures, moment.chance)
    }

    fn tell_fault(&mut self, status: ConvergeStatus, fault: &Fault, moment: Moment) {
        self.told = Some(ResourceReport {
            fault: Some(fault.clone()),
            ..self.report(status, moment)
        });
    }

    /// The report of this moment.
    fn report(&self, status: ConvergeStatus, moment: Moment) -> ResourceReport {
        let key = self.document.key();
        let before = self.told.as_ref();
        let ports = self.ports();
        let (power_state, reboot_nonce, boot_disk, running) = match (&self.seen, key.kind) {
            (_, Kind::Network | Kind::Router | Kind::Snapshot | Kind::Volume) => {
                (None, None, None, None)
            }
            (None, Kind::Instance) => (
                before.and_then(|told| told.power_state),
                before.and_then(|told| told.reboot_nonce),
                before.and_then(|told| told.boot_disk),
                before.and_then(|told| told.running),
            ),
            (Some(None), Kind::Instance) => (Some(PowerState::Nostate), None, None, None),
            (Some(Some(domain)), Kind::Instance) => (
                Some(match domain.off_reason {
                    Some(OffReason::Saved) => PowerState::Suspended,
                    Some(OffReason::Crashed) => PowerState::Crashed,
                    _ => domain.power_state,
                }),
                domain
                    .metadata
                    .as_ref()
                    .and_then(|metadata| metadata.reboot_nonce),
                boot_disk(domain),
                domain.running,
            ),
        };
        ResourceReport {
            key,
            generation: self.document.generation(),
            status,
            progress: None,
            fault: None,
            power_state,
            reboot_nonce,
            boot_disk,
            running,
            ports,
            volumes: self.volumes.clone(),
            observed_at: moment.at,
        }
    }

    /// Of instances: the ports its domain has.
    fn ports(&self) -> Option<Vec<PortId>> {
        let Document::Instance(wish) = &*self.document else {
            return None;
        };
        let wanted = wish.spec.as_ref().map_or(&[][..], |spec| &spec.ports);
        match &self.seen {
            None => self.told.as_ref().and_then(|told| told.ports.clone()),
            Some(None) => Some(Vec::new()),
            Some(Some(domain)) => ports(domain, wanted),
        }
    }
}

/// Whether what is refused for this reason may become possible without another document. An image does not change; a kernel
/// can load a module.
const fn may_mend_itself(code: FaultCode) -> bool {
    match code {
        FaultCode::ImageChecksum | FaultCode::ImageRefused => false,
        FaultCode::NoValidHost
        | FaultCode::ImageUnreachable
        | FaultCode::DiskFull
        | FaultCode::Network
        | FaultCode::Hypervisor
        | FaultCode::ForeignObject
        | FaultCode::Volume
        | FaultCode::Unsupported
        | FaultCode::Internal => true,
    }
}

fn has_crashed(domain: &DomainObserved) -> bool {
    domain.power_state == PowerState::Crashed || domain.off_reason == Some(OffReason::Crashed)
}

/// Whether a domain is the same in all that a pass decides by.
fn alike(a: &DomainObserved, b: &DomainObserved) -> bool {
    a.power_state == b.power_state
        && a.off_reason == b.off_reason
        && a.leftover_memory == b.leftover_memory
        && a.is_starting == b.is_starting
        && a.is_halted == b.is_halted
        && a.persistent == b.persistent
        && a.metadata == b.metadata
        && a.disks.live == b.disks.live
        && a.nics.live == b.nics.live
        && a.running == b.running
}

#[cfg(test)]
mod tests {
    use berth_common::{
        document::Desired,
        ids::{HostId, InstanceId, NetworkId},
        message::report::RunningSize,
        units::{Generation, MemoryMb, Vcpus},
    };

    use super::*;
    use crate::decide::domain::{DomainDisks, DomainNics};

    fn document(id: NetworkId, generation: u64) -> Arc<Document> {
        Arc::new(Document::Network(Desired {
            id,
            generation: Generation(generation),
            host_id: HostId::new(),
            spec: None,
        }))
    }

    fn moment() -> Moment {
        Moment {
            chance: 0,
            ..Moment::now()
        }
    }

    fn fault(code: FaultCode) -> Fault {
        Fault {
            code,
            message: "no".to_owned(),
        }
    }

    /// Runs passes that come to these outcomes; tells status and pause after each.
    fn run(
        resource: &mut Resource,
        outcomes: &[Outcome],
    ) -> Vec<(Option<ConvergeStatus>, Option<u64>)> {
        let now = moment();
        let resync = Duration::from_secs(10);
        let run = |outcome: &Outcome| {
            resource.begin();
            let document = Arc::clone(&resource.document);
            resource.end(&document, PassEnd::of(outcome.clone()), resync, now);
            let status = resource.told.as_ref().map(|told| told.status);
            (
                status,
                resource
                    .due
                    .map(|due| due.duration_since(now.now).as_secs()),
            )
        };
        outcomes.iter().map(run).collect()
    }

    #[test]
    fn failures_are_work_in_progress_for_a_while_and_then_told_as_such() {
        use ConvergeStatus::{Converging, Failed};
        let mut resource = Resource::fresh(document(NetworkId::new(), 1), moment());
        let outcomes = vec![Outcome::Failed(fault(FaultCode::Network)); 8];
        let expected = [
            (Some(Converging), Some(1)),
            (Some(Converging), Some(2)),
            (Some(Converging), Some(4)),
            (Some(Converging), Some(8)),
            (Some(Converging), Some(16)),
            (Some(Failed), Some(32)),
            (Some(Failed), Some(60)),
            (Some(Failed), Some(60)),
        ];
        assert_eq!(run(&mut resource, &outcomes), expected);
        assert_eq!(
            run(&mut resource, &[Outcome::Converged])[0],
            (Some(ConvergeStatus::Converged), Some(10))
        );
        assert!(!resource.is_failing());
    }

    #[test]
    fn a_network_that_is_built_but_for_a_failed_step_is_tried_again_soon() {
        use ConvergeStatus::{Converging, Failed};
        let mut resource = Resource::fresh(document(NetworkId::new(), 1), moment());
        let outcomes = vec![Outcome::Hampered(fault(FaultCode::Network)); 6];
        let expected = [
            (Some(Converging), Some(1)),
            (Some(Converging), Some(2)),
            (Some(Converging), Some(4)),
            (Some(Converging), Some(8)),
            (Some(Converging), Some(10)),
            (Some(Failed), Some(10)),
        ];
        assert_eq!(run(&mut resource, &outcomes), expected);
        assert!(resource.is_failing());
    }

    #[test]
    fn a_refusal_is_looked_at_again_unless_only_a_newer_document_can_mend_it() {
        let failed = Some(ConvergeStatus::Failed);
        let mut resource = Resource::fresh(document(NetworkId::new(), 1), moment());
        for (code, again) in [
            (FaultCode::ImageChecksum, None),
            (FaultCode::ImageRefused, None),
            (FaultCode::Unsupported, Some(300)),
            (FaultCode::ForeignObject, Some(300)),
            (FaultCode::Hypervisor, Some(300)),
            (FaultCode::Network, Some(300)),
        ] {
            let after = run(&mut resource, &[Outcome::Refused(fault(code))]);
            assert_eq!(after, [(failed, again)], "{code:?}");
        }
        resource.replace(document(NetworkId::new(), 2), moment());
        assert_eq!(
            resource.told.as_ref().map(|told| told.status),
            Some(ConvergeStatus::Converging)
        );
        assert!(resource.due.is_some());
    }

    #[test]
    fn a_pass_that_wants_to_look_again_soon_does() {
        let mut resource = Resource::fresh(document(NetworkId::new(), 1), moment());
        let now = moment();
        resource.begin();
        let document = Arc::clone(&resource.document);
        let end = PassEnd {
            again: Some(Duration::from_secs(3)),
            ..PassEnd::of(Outcome::Converged)
        };
        resource.end(&document, end, Duration::from_secs(10), now);
        assert_eq!(resource.due, Some(now.now + Duration::from_secs(3)));
    }

    #[test]
    fn a_resource_that_cannot_be_seen_is_no_worse_than_it_was() {
        let mut resource = Resource::fresh(document(NetworkId::new(), 1), moment());
        let unseen = Outcome::Unseen(fault(FaultCode::Hypervisor));
        run(&mut resource, &[Outcome::Converged]);
        let after = run(&mut resource, &vec![unseen.clone(); 9]);
        assert!(
            after
                .iter()
                .all(|(status, _)| *status == Some(ConvergeStatus::Converged)),
            "{after:?}"
        );
        let mut waiting = Resource::fresh(document(NetworkId::new(), 1), moment());
        let after = run(&mut waiting, &vec![unseen; 6]);
        assert_eq!(
            after[5].0,
            Some(ConvergeStatus::Failed),
            "a wish that cannot be carried out is told"
        );
    }

    fn guest(id: InstanceId, vcpus: u64) -> DomainObserved {
        let memory_mb = MemoryMb::clamped(512);
        DomainObserved {
            uuid: id.as_uuid(),
            name: "berth".to_owned(),
            power_state: PowerState::Running,
            off_reason: None,
            leftover_memory: false,
            is_starting: false,
            is_halted: false,
            reason: String::new(),
            persistent: true,
            vcpus: Vcpus::clamped(1),
            memory_mb,
            running: Some(RunningSize {
                vcpus: Vcpus::clamped(vcpus),
                vcpus_max: Vcpus::clamped(8),
                memory_mb,
                memory_mb_max: memory_mb,
                memory_step_mb: MemoryMb::clamped(128),
            }),
            metadata: None,
            disks: DomainDisks::default(),
            nics: DomainNics::default(),
        }
    }

    #[test]
    fn a_guest_that_somebody_gave_another_size_is_looked_at() {
        let id = InstanceId::new();
        let document = Arc::new(Document::Instance(Desired {
            id,
            generation: Generation(1),
            host_id: HostId::new(),
            spec: None,
        }));
        let mut resource = Resource::fresh(Arc::clone(&document), moment());
        resource.begin();
        let end = PassEnd {
            domain: Some(Some(guest(id, 1))),
            ..PassEnd::of(Outcome::Converged)
        };
        resource.end(&document, end, Duration::from_secs(10), moment());
        assert!(!resource.has_drifted(Some(&guest(id, 1))));
        assert!(resource.has_drifted(Some(&guest(id, 2))));
    }

    #[test]
    fn what_was_done_for_an_old_document_says_nothing_about_the_new_one() {
        let id = NetworkId::new();
        let mut resource = Resource::fresh(document(id, 1), moment());
        let token = resource.begin();
        let old = Arc::clone(&resource.document);
        resource.replace(document(id, 2), moment());
        assert!(token.is_cancelled());
        resource.end(
            &old,
            PassEnd::of(Outcome::Converged),
            Duration::from_secs(10),
            moment(),
        );
        let told = resource.told.clone().unwrap();
        assert_eq!(
            (told.status, told.generation),
            (ConvergeStatus::Converging, Generation(2))
        );
        assert!(resource.due.is_some());
    }
}
