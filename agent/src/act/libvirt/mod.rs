//! Domains through libvirt: the only module that calls it.
//!
//! It speaks libvirt's protocol itself ([`rpc`]). A call can hang for as long as libvirtd or QEMU does. So each has a deadline,
//! and a connection that nobody else uses meanwhile ([`calls`], [`session`]). Looking never waits for a QEMU; a step that does has
//! places apart from everything that does not, and a guest whose QEMU hangs gets no second one before the first has come back. What
//! libvirt tells unasked is only a reason to look ([`Libvirt::listen`]). No decisions here: [`steps`] carries out what was decided, and refuses to touch what berth did not make.

mod backup;
mod error;
mod facts;
mod inspect;
mod nics;
mod observe;
mod orphans;
mod power;
mod records;
mod rpc;
mod session;
mod stats;
mod steps;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use berth_common::{ids::InstanceId, message::report::FaultCode, telemetry::error_chain};
use chrono::Utc;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use uuid::Uuid;

pub use super::calls::Limits;
pub use facts::{KvmEvidence, UnknownVirtType, VirtTypeChoice};
pub use rpc::{Address, BadAddress};

use super::{
    ActError, Compute, Usage,
    calls::{CallError, Calls, Ticket},
    inspect::{Agent, Inspected, LiveDomain, NotKnown, Picture},
};
use crate::decide::{
    breaker::{Admission, Breaker, BreakerLimits, BreakerState},
    domain::{BackupPlan, DiskError, DomainObserved, DomainStep, JobProgress, VirtType},
    snapshot::BackupJob,
    usage::DomainUsage,
};
use error::{
    abandoned, failed, is_not_made, is_silence, is_silence_of_qemu, no_answer, no_answer_of_qemu,
    not_asked, not_made,
};
use rpc::Connection;
use session::Session;

/// How often a backup job is looked at.
const BACKUP_LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many looks at a backup job in a row may fail: a libvirtd takes its time to start.
const BACKUP_UNANSWERED: u32 = 120;
/// How many looks it may take until an aborted job has ended.
const BACKUP_ABORT_LOOKS: u32 = 120;

/// The call that finds out whether libvirt is there: one at a time, for as many as want to know.
const PROBE_LIMITS: Limits = Limits {
    workers: 1,
    stuck: 1,
    queued: 64,
};

/// How long a call that a QEMU has to answer keeps the next one such from being begun. libvirtd has 5 workers and makes another one
/// for a call that finds none free, but only if no other call waits (libvirt 9.0, `virThreadPoolSendJob` subtracts without a sign):
/// several calls at once that hang would be all that it ever works on.
const APART: Duration = Duration::from_millis(250);

/// How libvirt is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many steps that no running guest's QEMU has to answer run at once, hang, or wait.
    pub limits: Limits,
    /// How many looks at domains run at once, hang, or wait.
    pub observe_limits: Limits,
    /// How long looking at domains may take.
    pub observe_deadline: Duration,
    /// How many steps that a running guest's QEMU has to answer run at once, hang, or wait. Each that hangs keeps one of
    /// libvirtd's own workers, of which there are 20 unless it is told otherwise (`max_workers`): some must be left.
    pub guest_limits: Limits,
    /// How long a guest's QEMU may take for what it does at once: hearing that the guest shall power off.
    pub ask_deadline: Duration,
    /// How long it may take for anything else.
    pub guest_deadline: Duration,
    /// How many guests are switched off at once, hang at that, or wait. It takes half a minute and more where QEMU hangs.
    pub end_limits: Limits,
    /// How long one step may take. Starting a large guest takes its time, and so does switching off one whose
    /// disks are slow.
    pub step_deadline: Duration,
    /// How long saving or restoring a guest's memory may take: that of a large guest is written to disk.
    pub memory_deadline: Duration,
    /// How many guests' memories are saved or restored at once, hang, or wait. Of one that is saved and whose QEMU hangs that is
    /// noticed (see `ask_deadline`, `observe_deadline`), and it gives its place up; one that is restored keeps its own.
    pub memory_limits: Limits,
    /// How long measuring all domains may take.
    pub usage_deadline: Duration,
    /// How many measurements run at once, hang, or wait. One that hangs on a QEMU leaves that one busy, and the next
    /// passes it by: so a second one is enough to go on.
    pub usage_limits: Limits,
    /// How many questions about guests are asked at once, hang, or wait.
    pub ask_limits: Limits,
    /// When a libvirt that does not answer is no longer asked, and how it is tried.
    pub breaker: BreakerLimits,
    /// libvirt's configuration of QEMU.
    pub qemu_conf: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits {
                workers: 4,
                stuck: 8,
                queued: 1024,
            },
            observe_limits: Limits {
                workers: 4,
                stuck: 4,
                queued: 1024,
            },
            observe_deadline: Duration::from_secs(30),
            guest_limits: Limits {
                workers: 12,
                stuck: 12,
                queued: 1024,
            },
            ask_deadline: Duration::from_secs(10),
            guest_deadline: Duration::from_secs(60),
            end_limits: Limits {
                workers: 8,
                stuck: 8,
                queued: 1024,
            },
            step_deadline: Duration::from_secs(120),
            memory_deadline: Duration::from_secs(3600),
            memory_limits: Limits {
                workers: 2,
                stuck: 4,
                queued: 1024,
            },
            usage_deadline: Duration::from_secs(10),
            usage_limits: Limits {
                workers: 1,
                stuck: 4,
                queued: 1,
            },
            ask_limits: Limits {
                workers: 2,
                stuck: 4,
                queued: 32,
            },
            breaker: BreakerLimits::default(),
            qemu_conf: PathBuf::from("/etc/libvirt/qemu.conf"),
        }
    }
}

/// What libvirt and its host are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtFacts {
    /// The processor architecture, in libvirt's words.
    pub arch: String,
    /// Version of libvirt: 1,000,000 × major + 1,000 × minor + release.
    pub libvirt_version: u32,
    /// Version of QEMU, counted the same way.
    pub hypervisor_version: u32,
    /// What guests run on.
    pub virt_type: VirtType,
    /// Whether libvirt can weigh guests against each other.
    pub has_cpu_controller: bool,
}

/// The hypervisor of this host.
pub struct Libvirt {
    address: Arc<Address>,
    options: Options,
    /// Looks at domains: what libvirt knows without asking a QEMU.
    looking: Calls<Session>,
    /// Steps that no QEMU has to answer, and starts.
    steps: Calls<Session>,
    /// Steps that a guest's QEMU has to answer. It may never.
    guests: Calls<Session>,
    /// Switches guests off, also those that hang: the way out must not be full of them.
    ending: Calls<Session>,
    /// Whatever takes long has places of its own, so that the others stay free.
    memory: Calls<Session>,
    /// Measuring asks every QEMU, so it is the first to hang: it takes no place from the others.
    measuring: Calls<Session>,
    /// What somebody wants to know of a guest may wait for that guest for as long as it likes.
    questions: Calls<Session>,
    /// Finds out whether libvirt is back, with one call that may hang.
    probe: Calls<Session>,
    /// Whose turn it is to begin a call that a QEMU has to answer.
    turn: Semaphore,
    breaker: Mutex<Breaker>,
    /// libvirt has told of an event.
    events: Arc<Notify>,
}

/// What calls that get no answer say of libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// That it hangs.
    Libvirt,
    /// That it hangs, or that a QEMU does: a question that takes no time tells.
    Unclear,
    /// Nothing: whoever asks has little patience, and a guest that hangs is asked as well.
    Meaningless,
}

/// Who did not answer a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silent {
    /// Nobody: it was answered, or nobody was asked.
    Nobody,
    /// libvirt, or nobody knows who.
    Libvirt,
    /// A QEMU: libvirt is there.
    Qemu,
}

/// How a call ended, as far as it says something of libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Something was answered.
    Answered,
    /// The connection is there, and nothing comes over it.
    LinkIsSilent,
    /// It was not answered in time.
    Late,
    /// It was not made: the QEMU that would have to answer it has not answered an earlier one.
    QemuHangs,
    /// It was not made: too many earlier ones were not answered.
    ManyHang,
    /// It was not made for another reason. Who is not asked owes no answer.
    NotMade,
}

impl End {
    fn of<T>(answer: &Result<Result<T, ActError>, CallError>) -> Self {
        match answer {
            Ok(Err(error)) if is_silence(error) => Self::LinkIsSilent,
            Ok(_) => Self::Answered,
            Err(CallError::Deadline(_)) => Self::Late,
            Err(CallError::Hung) => Self::QemuHangs,
            Err(CallError::Stuck(_)) => Self::ManyHang,
            Err(CallError::Queued(_) | CallError::Full(_) | CallError::Panicked) => Self::NotMade,
        }
    }
}

/// How a call is made.
struct Way<'a> {
    calls: &'a Calls<Session>,
    /// The guest whose QEMU has to answer it.
    about: Option<InstanceId>,
    silence: Silence,
    limit: Duration,
}

impl Libvirt {
    /// Uses the libvirt at an address. Nothing is opened before it is needed, so libvirtd may be absent.
    #[must_use]
    pub fn start(address: &Address, options: Options) -> Self {
        let address = Arc::new(address.clone());
        let calls = |limits| {
            let address = Arc::clone(&address);
            Calls::new(limits, move || Session::new(Arc::clone(&address)))
        };
        Self {
            looking: calls(options.observe_limits),
            steps: calls(options.limits),
            guests: calls(options.guest_limits),
            ending: calls(options.end_limits),
            memory: calls(options.memory_limits),
            measuring: calls(options.usage_limits),
            questions: calls(options.ask_limits),
            probe: calls(PROBE_LIMITS),
            turn: Semaphore::new(1),
            address,
            breaker: Mutex::new(Breaker::new(options.breaker)),
            events: Arc::default(),
            options,
        }
    }

    /// Listens to what libvirt tells of domains, for [`Compute::news`]. Never ends, and fails never: a connection that ends is made
    /// again.
    pub async fn listen(&self) {
        rpc::listen(&self.address, &self.events).await;
    }

    /// How many calls did not come back in time and still hang.
    #[must_use]
    pub fn stuck_calls(&self) -> usize {
        let Self {
            looking,
            steps,
            guests,
            ending,
            memory,
            measuring,
            questions,
            probe,
            ..
        } = self;
        let all = [
            looking, steps, guests, ending, memory, measuring, questions, probe,
        ];
        all.into_iter().map(Calls::stuck).sum()
    }

    /// Whether libvirt is asked just now.
    #[must_use]
    pub fn breaker_state(&self) -> BreakerState {
        self.breaker().state()
    }

    /// Nothing that runs under this lock can panic half-way, so a poisoned one is as good as any.
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What libvirt and this host are.
    ///
    /// # Errors
    /// Retryable while libvirt cannot be asked.
    pub async fn host_facts(&self, choice: VirtTypeChoice) -> Result<LibvirtFacts, ActError> {
        let virt_type = facts::virt_type(choice, KvmEvidence::gather());
        let has_cpu_controller = facts::has_cpu_controller(&self.options.qemu_conf);
        let ask = move |connection: Connection, _| async move {
            let failed = |error| failed("asking libvirt about its host".to_owned(), error);
            // Some QEMU of the year 4,000 may count higher.
            let version = |number| u32::try_from(number).unwrap_or(u32::MAX);
            let libvirt = connection.get_lib_version().await.map_err(failed)?;
            let hypervisor = connection.get_hyp_version().await.map_err(failed)?;
            Ok(LibvirtFacts {
                arch: connection.get_node_info().await.map_err(failed)?.model,
                libvirt_version: version(libvirt),
                hypervisor_version: version(hypervisor),
                virt_type,
                has_cpu_controller,
            })
        };
        self.look("asking libvirt about its host".to_owned(), ask)
            .await
    }

    /// A picture of a guest's display.
    ///
    /// # Errors
    /// It has none, or none that fits; or libvirt does not answer in time.
    pub(super) async fn screenshot(
        &self,
        instance: InstanceId,
        limit: Duration,
    ) -> Inspected<Picture> {
        let what = format!("taking a picture of instance {instance}");
        let about = Some(instance);
        self.ask(about, what, limit, move |connection, what| async move {
            inspect::screenshot(&connection, instance, &what).await
        })
        .await
    }

    /// Asks a guest's agent whether it is there, and gives it most of the time to answer.
    ///
    /// # Errors
    /// The guest does not run, or libvirt does not answer in time.
    pub(super) async fn ping_guest_agent(
        &self,
        instance: InstanceId,
        limit: Duration,
    ) -> Inspected<Agent> {
        let what = format!("asking the guest agent of instance {instance}");
        let about = Some(instance);
        self.ask(about, what, limit, move |connection, what| async move {
            inspect::ping_guest_agent(&connection, instance, &what, limit).await
        })
        .await
    }

    /// Where a guest's display and consoles are.
    ///
    /// # Errors
    /// There is no such domain, or libvirt does not answer in time.
    pub(super) async fn live_domain(
        &self,
        instance: InstanceId,
        limit: Duration,
    ) -> Inspected<LiveDomain> {
        let what = format!("looking at the devices of instance {instance}");
        self.ask(None, what, limit, move |connection, what| async move {
            inspect::live_domain(&connection, instance, &what).await
        })
        .await
    }

    /// Asks something that changes nothing. `about`: the guest whose QEMU has to answer.
    async fn ask<T, F>(
        &self,
        about: Option<InstanceId>,
        what: String,
        limit: Duration,
        question: impl Fn(Connection, String) -> F + Send + 'static,
    ) -> Inspected<T>
    where
        T: Send + 'static,
        F: Future<Output = Inspected<T>> + Send + 'static,
    {
        let words = what.clone();
        let operation = move |connection, _| {
            let answer = question(connection, words.clone());
            async move {
                match answer.await {
                    // A broken connection is a failure that a new one may mend; a plain no is an answer.
                    Err(NotKnown::Failed(error)) => Err(error),
                    answer => Ok(answer),
                }
            }
        };
        let way = Way {
            calls: &self.questions,
            about,
            silence: Silence::Meaningless,
            limit,
        };
        let answer = self.call(way, what, operation).await;
        answer.map_err(NotKnown::Failed)?
    }

    /// Asks what libvirt knows without asking a QEMU.
    async fn look<T, F>(
        &self,
        what: String,
        operation: impl Fn(Connection, Ticket) -> F + Send + 'static,
    ) -> Result<T, ActError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ActError>> + Send + 'static,
    {
        let way = Way {
            calls: &self.looking,
            about: None,
            silence: Silence::Libvirt,
            limit: self.options.observe_deadline,
        };
        self.call(way, what, operation).await
    }

    /// How something is done that a guest's QEMU has to answer.
    fn of_guest(&self, instance: InstanceId, limit: Duration) -> Way<'_> {
        Way {
            calls: &self.guests,
            about: Some(instance),
            silence: Silence::Unclear,
            limit,
        }
    }

    /// How a step is done.
    fn way(&self, step: &DomainStep) -> Way<'_> {
        let options = &self.options;
        let of_nobody = |calls, limit| Way {
            calls,
            about: None,
            silence: Silence::Unclear,
            limit,
        };
        match step {
            DomainStep::Define(_)
            | DomainStep::Undefine(_)
            | DomainStep::DiscardSaved(_)
            | DomainStep::Start(_)
            | DomainStep::StartPaused(_) => of_nobody(&self.steps, options.step_deadline),
            // Both are the way out of a QEMU that hangs.
            DomainStep::Destroy(_) | DomainStep::AbandonStart(_) => {
                of_nobody(&self.ending, options.step_deadline)
            }
            DomainStep::Restore(_) => of_nobody(&self.memory, options.memory_deadline),
            DomainStep::Save(id) => Way {
                calls: &self.memory,
                ..self.of_guest(*id, options.memory_deadline)
            },
            DomainStep::Shutdown(id) => self.of_guest(*id, options.ask_deadline),
            DomainStep::Pause(_)
            | DomainStep::Resume(_)
            | DomainStep::AttachScsiController(_)
            | DomainStep::Attach { .. }
            | DomainStep::Detach { .. }
            | DomainStep::AttachNic { .. }
            | DomainStep::DetachNic { .. }
            | DomainStep::SetLink { .. }
            | DomainStep::GrowDisk { .. }
            | DomainStep::SetVcpus { .. }
            | DomainStep::PlugMemory { .. }
            | DomainStep::Backup(_)
            | DomainStep::AbortBackup { .. } => {
                self.of_guest(step.instance(), options.guest_deadline)
            }
        }
    }

    /// Ends when the QEMU of a guest whose memory is being saved does not answer, and with how that shows.
    async fn until_it_hangs(&self, instance: InstanceId) -> ActError {
        loop {
            tokio::time::sleep(self.options.ask_deadline).await;
            match self.job(instance).await {
                Err(error) if is_silence_of_qemu(&error) => return error,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Whether libvirt may be asked. One that did not answer for a while is not, but for one caller now and then, who
    /// finds out with a question that takes no time.
    async fn admitted(&self, what: &str) -> Result<(), ActError> {
        let admission = self.breaker().admit(Instant::now());
        let since = match admission {
            Admission::Call => return Ok(()),
            Admission::Refused(since) => since,
            Admission::Probe => {
                if self.is_there(what).await {
                    self.breaker().answered();
                    tracing::info!(address = %self.address, "libvirt answers again");
                    return Ok(());
                }
                self.breaker().missed(Instant::now(), Utc::now());
                match self.breaker().admit(Instant::now()) {
                    Admission::Refused(since) => since,
                    // Somebody else was answered meanwhile, or it is time for the next probe already.
                    Admission::Call | Admission::Probe => return Ok(()),
                }
            }
        };
        let pause = self.options.breaker.pause;
        Err(not_asked(what, &self.address, since, pause))
    }

    /// Whether libvirt answers a question that takes no time. One that says no is there as well: whoever calls hears what is
    /// wrong with it.
    async fn is_there(&self, what: &str) -> bool {
        let limit = self.options.breaker.probe;
        let words = what.to_owned();
        let question = async |connection: Connection| {
            let version = connection.get_lib_version().await;
            version.map_err(|error| failed("asking libvirt for its version".to_owned(), error))
        };
        let probe = self
            .probe
            .call(limit, move |mut session, ticket| async move {
                let answer = session.run(&ticket, &words, question).await;
                (session, answer)
            });
        match probe.await {
            Ok(Err(error)) => !is_silence(&error),
            Ok(Ok(_)) => true,
            Err(_) => false,
        }
    }

    /// Notes what the end of a call says of libvirt, and answers who was silent.
    async fn note(&self, silence: Silence, what: &str, end: End) -> Silent {
        match (end, silence) {
            (End::Answered, _) => {
                self.breaker().answered();
                Silent::Nobody
            }
            (End::QemuHangs, _) => Silent::Qemu,
            (End::ManyHang, Silence::Unclear) | (End::NotMade, _) => Silent::Nobody,
            (End::ManyHang, Silence::Libvirt | Silence::Meaningless)
            | (End::Late | End::LinkIsSilent, Silence::Meaningless) => Silent::Libvirt,
            (End::Late, Silence::Unclear) if self.is_there(what).await => {
                self.breaker().answered();
                Silent::Qemu
            }
            // No guest keeps libvirt from saying that it is there.
            (End::LinkIsSilent, Silence::Libvirt | Silence::Unclear)
            | (End::Late, Silence::Libvirt | Silence::Unclear) => {
                let mut breaker = self.breaker();
                let before = breaker.state();
                breaker.missed(Instant::now(), Utc::now());
                if before == BreakerState::Closed && breaker.state() == BreakerState::Open {
                    tracing::warn!(
                        address = %self.address,
                        "libvirt does not answer; it is not asked until a probe is answered"
                    );
                }
                Silent::Libvirt
            }
        }
    }

    /// Begins a call that a QEMU has to answer a moment after the one before, unless that has come back.
    async fn in_turn<T, F>(
        &self,
        calls: &Calls<Session>,
        about: Uuid,
        limit: Duration,
        work: impl FnOnce(Session, Ticket) -> F + Send,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = (Session, T)> + Send + 'static,
    {
        let begin = Instant::now();
        // It is closed never, so an error is the deadline's.
        let turn = timeout(limit, self.turn.acquire()).await;
        let turn = turn
            .ok()
            .and_then(Result::ok)
            .ok_or(CallError::Queued(limit))?;
        let left = limit.saturating_sub(begin.elapsed());
        let mut call = pin!(calls.call_about(Some(about), left, work));
        let early = timeout(APART, &mut call).await;
        drop(turn);
        let answer = match early {
            Ok(answer) => answer,
            Err(_) => call.await,
        };
        answer.map_err(|error| match error {
            // Its turn took some of it.
            CallError::Deadline(_) => CallError::Deadline(limit),
            error => error,
        })
    }

    async fn call<T, F>(
        &self,
        way: Way<'_>,
        what: String,
        operation: impl Fn(Connection, Ticket) -> F + Send + 'static,
    ) -> Result<T, ActError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ActError>> + Send + 'static,
    {
        self.admitted(&what).await?;
        let Way {
            calls,
            about,
            silence,
            limit,
        } = way;
        let about = about.map(|id| id.as_uuid());
        // A QEMU that does not answer one sort of calls answers no other.
        let hangs = about.is_some_and(|id| self.guests.hangs(id) || self.memory.hangs(id));
        let answer = if hangs {
            Err(CallError::Hung)
        } else {
            let words = what.clone();
            let work = move |mut session: Session, ticket: Ticket| async move {
                let again = ticket.clone();
                let operation = move |connection| operation(connection, again.clone());
                let answer = session.run(&ticket, &words, operation).await;
                (session, answer)
            };
            match about {
                None => calls.call(limit, work).await,
                Some(about) => self.in_turn(calls, about, limit, work).await,
            }
        };
        let silent = self.note(silence, &what, End::of(&answer)).await;
        answer.map_err(|error| match silent {
            Silent::Qemu => no_answer_of_qemu(&what, error),
            Silent::Libvirt => no_answer(&what, &self.address, error),
            Silent::Nobody => not_made(&what, error),
        })?
    }
}

impl Libvirt {
    /// Lets QEMU copy a disk, and waits until it has. Whoever stops waiting leaves a job that goes on.
    async fn back_up(&self, plan: &BackupPlan) -> Result<(), ActError> {
        let what = format!(
            "copying disk {} of instance {}",
            plan.disk.target, plan.instance
        );
        let (words, begun) = (what.clone(), plan.clone());
        let begin = move |connection: Connection, ticket: Ticket| {
            let (words, begun) = (words.clone(), begun.clone());
            async move {
                if ticket.is_abandoned() {
                    return Err(abandoned(words));
                }
                backup::begin(&connection, &begun, &words).await
            }
        };
        let deadline = self.options.guest_deadline;
        let way = self.of_guest(plan.instance, deadline);
        self.call(way, what.clone(), begin).await?;
        let mut unanswered = 0_u32;
        loop {
            tokio::time::sleep(BACKUP_LOOK_EVERY).await;
            let (words, instance) = (what.clone(), plan.instance);
            let look = move |connection: Connection, _| {
                let words = words.clone();
                async move { backup::look(&connection, instance, &words).await }
            };
            match self.look(what.clone(), look).await {
                Ok(backup::Seen::Running) => unanswered = 0,
                Ok(backup::Seen::Succeeded) => return Ok(()),
                Ok(backup::Seen::Failed { why }) => {
                    return Err(not_copied(what, &plan.file, why));
                }
                // A libvirtd that is restarted goes on with the job, and is asked again.
                Err(_) if unanswered < BACKUP_UNANSWERED => unanswered += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a backup job, and waits until QEMU has let go of its file.
    async fn abort_backup(&self, instance: InstanceId, file: &Path) -> Result<(), ActError> {
        let what = format!("ending the backup job of instance {instance}");
        let (words, path) = (what.clone(), file.to_owned());
        let abort = move |connection: Connection, _| {
            let (words, path) = (words.clone(), path.clone());
            async move { backup::abort(&connection, instance, &path, &words).await }
        };
        let deadline = self.options.guest_deadline;
        let way = self.of_guest(instance, deadline);
        self.call(way, what.clone(), abort).await?;
        for _ in 0..BACKUP_ABORT_LOOKS {
            let path = file.to_owned();
            let look = move |connection: Connection, _| {
                let path = path.clone();
                async move { backup::writes(&connection, instance, &path).await }
            };
            if !self.look(what.clone(), look).await? {
                return Ok(());
            }
            tokio::time::sleep(BACKUP_LOOK_EVERY).await;
        }
        Err(ActError {
            what: format!("{what}: it still runs"),
            code: FaultCode::Hypervisor,
            retryable: true,
            source: None,
        })
    }
}

/// A backup job did not get through.
fn not_copied(what: String, file: &Path, why: String) -> ActError {
    if !why.contains("No space left on device") {
        return ActError::retryable(FaultCode::Hypervisor, what, why);
    }
    let directory = file.parent().unwrap_or(file);
    let what = format!("{what}: the disk of {} is full", directory.display());
    ActError::retryable(FaultCode::DiskFull, what, why)
}

#[async_trait]
impl Compute for Libvirt {
    async fn observe(&self) -> Result<Vec<DomainObserved>, ActError> {
        let what = "listing the domains".to_owned();
        let look = |connection, _| async move { observe::all(&connection).await };
        self.look(what, look).await
    }

    async fn observe_one(&self, instance: InstanceId) -> Result<Option<DomainObserved>, ActError> {
        let what = format!("looking at instance {instance}");
        let look = move |connection, _| async move { observe::one(&connection, instance).await };
        self.look(what, look).await
    }

    async fn apply(&self, step: &DomainStep) -> Result<(), ActError> {
        match step {
            DomainStep::Backup(plan) => return self.back_up(plan).await,
            DomainStep::AbortBackup { instance, file } => {
                return self.abort_backup(*instance, file).await;
            }
            _ => {}
        }
        let what = steps::describe(step);
        let shared = Arc::new(step.clone());
        let operation = move |connection: Connection, ticket: Ticket| {
            let step = Arc::clone(&shared);
            async move { steps::apply(&connection, &step, &ticket).await }
        };
        let call = self.call(self.way(step), what, operation);
        match step {
            // Who stops waiting gives its place up.
            DomainStep::Save(id) => tokio::select! {
                biased;
                saved = call => saved,
                hangs = self.until_it_hangs(*id) => Err(hangs),
            },
            // The request is with QEMU, which passes it on as soon as it goes on. Whoever waits for the guest to power off
            // waits for no longer than for one that does not listen. Nor for longer because others hang so that it could not be
            // asked: it is asked again, and switched off in time.
            DomainStep::Shutdown(_) => match call.await {
                Err(error) if is_silence_of_qemu(&error) || is_not_made(&error) => {
                    tracing::warn!(error = %error_chain(&error), "a guest shall power off and did not hear it yet");
                    Ok(())
                }
                asked => asked,
            },
            _ => call.await,
        }
    }

    async fn job(&self, instance: InstanceId) -> Result<Option<JobProgress>, ActError> {
        let what = format!("asking how far instance {instance} is");
        let way = self.of_guest(instance, self.options.observe_deadline);
        let look = move |connection, _| async move { observe::job(&connection, instance).await };
        self.call(way, what, look).await
    }

    async fn disk_errors(
        &self,
        instance: InstanceId,
    ) -> Result<BTreeMap<String, DiskError>, ActError> {
        let what = format!("asking which disks of instance {instance} fail");
        let way = self.of_guest(instance, self.options.ask_deadline);
        let look =
            move |connection, _| async move { observe::disk_errors(&connection, instance).await };
        self.call(way, what, look).await
    }

    async fn backups(&self) -> Result<Vec<BackupJob>, ActError> {
        let what = "looking for backup jobs".to_owned();
        let look = |connection, _| async move { backup::all(&connection).await };
        self.look(what, look).await
    }

    async fn news(&self) {
        self.events.notified().await;
    }
}

#[async_trait]
impl Usage for Libvirt {
    async fn usage(&self) -> Result<Vec<DomainUsage>, ActError> {
        let what = "measuring the domains".to_owned();
        let way = Way {
            calls: &self.measuring,
            about: None,
            silence: Silence::Unclear,
            limit: self.options.usage_deadline,
        };
        let measure = |connection, _| async move { stats::all(&connection).await };
        self.call(way, what, measure).await
    }
}
