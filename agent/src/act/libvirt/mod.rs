//! Domains through libvirt: the only module that calls it.
//!
//! libvirt's calls block, and a call can hang for as long as libvirtd or QEMU does. So each runs on one of a few
//! threads, with a deadline ([`super::pool`]); each thread has its own connection ([`session`]). No decisions here:
//! [`steps`] carries out what was decided, and refuses to touch what berth did not make.

mod backup;
mod error;
mod facts;
mod inspect;
mod nics;
mod observe;
mod orphans;
mod power;
mod records;
mod saved;
mod session;
mod stats;
mod steps;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use berth_common::{ids::InstanceId, message::report::FaultCode};
use chrono::Utc;
use virt::connect::Connect;

pub use super::pool::Limits;
pub use facts::{KvmEvidence, UnknownVirtType, VirtTypeChoice};

use super::{
    ActError, Compute, Usage,
    inspect::{Agent, Inspected, LiveDomain, NotKnown, Picture},
    pool::{Pool, PoolError, Ticket},
};
use crate::decide::{
    breaker::{Admission, Breaker, BreakerLimits, BreakerState},
    domain::{BackupPlan, DomainObserved, DomainStep, JobProgress, VirtType},
    snapshot::BackupJob,
    usage::DomainUsage,
};
use error::{abandoned, failed, no_answer, not_asked};
use session::Session;

/// How often a backup job is looked at.
const BACKUP_LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many looks at a backup job in a row may fail: a libvirtd takes its time to start.
const BACKUP_UNANSWERED: u32 = 120;
/// How many looks it may take until an aborted job has ended.
const BACKUP_ABORT_LOOKS: u32 = 120;

/// The system's libvirtd on this host.
pub const DEFAULT_URI: &str = "qemu:///system";

/// The thread that finds out whether libvirt is back.
const PROBE_LIMITS: Limits = Limits {
    workers: 1,
    stuck: 1,
    queued: 1,
};

/// How libvirt is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many calls run at once, hang, or wait.
    pub limits: Limits,
    /// How long looking at domains may take.
    pub observe_deadline: Duration,
    /// How long one step may take. Starting a large guest takes its time, and so does switching off one whose
    /// disks are slow.
    pub step_deadline: Duration,
    /// How long saving or restoring a guest's memory may take: that of a large guest is written to disk.
    pub memory_deadline: Duration,
    /// How many guests' memories are saved or restored at once, hang, or wait.
    pub memory_limits: Limits,
    /// How long measuring all domains may take.
    pub usage_deadline: Duration,
    /// How many measurements run at once, hang, or wait. One that hangs on a QEMU leaves that one busy, and the next
    /// passes it by: so a second thread is enough to go on.
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
            observe_deadline: Duration::from_secs(30),
            step_deadline: Duration::from_secs(120),
            memory_deadline: Duration::from_secs(3600),
            memory_limits: Limits {
                workers: 2,
                stuck: 2,
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
    uri: String,
    options: Options,
    pool: Pool<Session>,
    /// Whatever takes long has threads of its own, so that the others stay free.
    memory_pool: Pool<Session>,
    /// Measuring asks every QEMU, so it is the first to hang: it takes no thread from the others.
    usage_pool: Pool<Session>,
    /// What somebody wants to know of a guest may wait for that guest for as long as it likes.
    ask_pool: Pool<Session>,
    /// Finds out whether libvirt is back, with one thread that may hang.
    probe_pool: Pool<Session>,
    breaker: Mutex<Breaker>,
}

/// What calls that get no answer say of libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// That it hangs.
    OfLibvirt,
    /// Nothing: whoever asks has little patience, and a guest that hangs is asked as well.
    OfAnybody,
}

impl Libvirt {
    /// Uses the libvirt at `uri`. Nothing is opened before it is needed, so libvirtd may be absent.
    #[must_use]
    pub fn start(uri: &str, options: Options) -> Self {
        let pool = |name, limits| {
            let address = uri.to_owned();
            Pool::new(name, limits, move || Session::new(address.clone()))
        };
        Self {
            uri: uri.to_owned(),
            pool: pool("libvirt", options.limits),
            memory_pool: pool("libvirt-memory", options.memory_limits),
            usage_pool: pool("libvirt-usage", options.usage_limits),
            ask_pool: pool("libvirt-ask", options.ask_limits),
            probe_pool: pool("libvirt-probe", PROBE_LIMITS),
            breaker: Mutex::new(Breaker::new(options.breaker)),
            options,
        }
    }

    /// How many calls did not come back in time and still hang.
    #[must_use]
    pub fn stuck_calls(&self) -> usize {
        self.pool.stuck()
            + self.memory_pool.stuck()
            + self.usage_pool.stuck()
            + self.ask_pool.stuck()
            + self.probe_pool.stuck()
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
        let ask = move |connection: &Connect, _: &Ticket| {
            let failed = |error| failed("asking libvirt about its host".to_owned(), error);
            Ok(LibvirtFacts {
                arch: connection.get_node_info().map_err(failed)?.model,
                libvirt_version: connection.get_lib_version().map_err(failed)?,
                hypervisor_version: connection.get_hyp_version().map_err(failed)?,
                virt_type,
                has_cpu_controller,
            })
        };
        self.call(
            "asking libvirt about its host".to_owned(),
            self.options.observe_deadline,
            ask,
        )
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
        self.ask(what, limit, move |connection, what| {
            inspect::screenshot(connection, instance, what)
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
        self.ask(what, limit, move |connection, what| {
            inspect::ping_guest_agent(connection, instance, what, limit)
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
        self.ask(what, limit, move |connection, what| {
            inspect::live_domain(connection, instance, what)
        })
        .await
    }

    /// Asks something that changes nothing.
    async fn ask<T: Send + 'static>(
        &self,
        what: String,
        limit: Duration,
        question: impl Fn(&Connect, &str) -> Inspected<T> + Send + 'static,
    ) -> Inspected<T> {
        let words = what.clone();
        let answer = self
            .call_on(
                &self.ask_pool,
                Silence::OfAnybody,
                what,
                limit,
                move |connection, _| {
                    match question(connection, &words) {
                        // A broken connection is a failure that a new one may mend; a plain no is an answer.
                        Err(NotKnown::Failed(error)) => Err(error),
                        answer => Ok(answer),
                    }
                },
            )
            .await;
        answer.map_err(NotKnown::Failed)?
    }

    async fn call<T: Send + 'static>(
        &self,
        what: String,
        limit: Duration,
        operation: impl Fn(&Connect, &Ticket) -> Result<T, ActError> + Send + 'static,
    ) -> Result<T, ActError> {
        let silence = Silence::OfLibvirt;
        self.call_on(&self.pool, silence, what, limit, operation)
            .await
    }

    /// Whether libvirt may be asked. One that did not answer for a while is not, but for one caller now and then, who
    /// finds out with a question that takes no time.
    async fn admitted(&self, what: &str) -> Result<(), ActError> {
        let admission = self.breaker().admit(Instant::now());
        let since = match admission {
            Admission::Call => return Ok(()),
            Admission::Refused(since) => since,
            Admission::Probe => {
                let limit = self.options.breaker.probe;
                let words = what.to_owned();
                let probe = self.probe_pool.call(limit, move |session, ticket| {
                    session.run(ticket, &words, |connection| {
                        let version = connection.get_lib_version();
                        version.map_err(|error| {
                            failed("asking libvirt for its version".to_owned(), error)
                        })
                    })
                });
                match probe.await {
                    // One that says no is there as well: whoever calls hears what is wrong with it.
                    Ok(_) => {
                        self.breaker().answered();
                        tracing::info!(uri = self.uri, "libvirt answers again");
                        return Ok(());
                    }
                    Err(_) => self.breaker().missed(Instant::now(), Utc::now()),
                }
                match self.breaker().admit(Instant::now()) {
                    Admission::Refused(since) => since,
                    // Somebody else was answered meanwhile, or it is time for the next probe already.
                    Admission::Call | Admission::Probe => return Ok(()),
                }
            }
        };
        let pause = self.options.breaker.pause;
        Err(not_asked(what, &self.uri, since, pause))
    }

    /// What the end of a call says of libvirt.
    fn note<T>(&self, silence: Silence, answer: &Result<T, PoolError>) {
        match (answer, silence) {
            (Ok(_), _) => self.breaker().answered(),
            (Err(PoolError::Deadline(_)), Silence::OfLibvirt) => {
                let mut breaker = self.breaker();
                let before = breaker.state();
                breaker.missed(Instant::now(), Utc::now());
                if before == BreakerState::Closed && breaker.state() == BreakerState::Open {
                    tracing::warn!(
                        uri = self.uri,
                        "libvirt does not answer; it is not asked until a probe is answered"
                    );
                }
            }
            (Err(_), _) => {}
        }
    }

    async fn call_on<T: Send + 'static>(
        &self,
        pool: &Pool<Session>,
        silence: Silence,
        what: String,
        limit: Duration,
        operation: impl Fn(&Connect, &Ticket) -> Result<T, ActError> + Send + 'static,
    ) -> Result<T, ActError> {
        self.admitted(&what).await?;
        let words = what.clone();
        let call = pool.call(limit, move |session, ticket| {
            session.run(ticket, &words, |connection| operation(connection, ticket))
        });
        let answer = call.await;
        self.note(silence, &answer);
        answer.map_err(|error| no_answer(&what, &self.uri, error))?
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
        let begin = move |connection: &Connect, ticket: &Ticket| {
            if ticket.is_abandoned() {
                return Err(abandoned(words.clone()));
            }
            backup::begin(connection, &begun, &words)
        };
        self.call(what.clone(), self.options.step_deadline, begin)
            .await?;
        let mut unanswered = 0_u32;
        loop {
            tokio::time::sleep(BACKUP_LOOK_EVERY).await;
            let (words, instance) = (what.clone(), plan.instance);
            let look =
                move |connection: &Connect, _: &Ticket| backup::look(connection, instance, &words);
            let deadline = self.options.observe_deadline;
            match self.call(what.clone(), deadline, look).await {
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
        let abort = move |connection: &Connect, _: &Ticket| {
            backup::abort(connection, instance, &path, &words)
        };
        self.call(what.clone(), self.options.step_deadline, abort)
            .await?;
        for _ in 0..BACKUP_ABORT_LOOKS {
            let path = file.to_owned();
            let look =
                move |connection: &Connect, _: &Ticket| backup::writes(connection, instance, &path);
            let deadline = self.options.observe_deadline;
            if !self.call(what.clone(), deadline, look).await? {
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
        self.call(what, self.options.observe_deadline, |connection, _| {
            observe::all(connection)
        })
        .await
    }

    async fn observe_one(&self, instance: InstanceId) -> Result<Option<DomainObserved>, ActError> {
        let what = format!("looking at instance {instance}");
        self.call(what, self.options.observe_deadline, move |connection, _| {
            observe::one(connection, instance)
        })
        .await
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
        let moves_memory = step.moves_memory();
        let step = step.clone();
        let operation =
            move |connection: &Connect, ticket: &Ticket| steps::apply(connection, &step, ticket);
        let (pool, deadline) = if moves_memory {
            (&self.memory_pool, self.options.memory_deadline)
        } else {
            (&self.pool, self.options.step_deadline)
        };
        self.call_on(pool, Silence::OfLibvirt, what, deadline, operation)
            .await
    }

    async fn job(&self, instance: InstanceId) -> Result<Option<JobProgress>, ActError> {
        let what = format!("asking how far instance {instance} is");
        self.call(what, self.options.observe_deadline, move |connection, _| {
            observe::job(connection, instance)
        })
        .await
    }

    async fn backups(&self) -> Result<Vec<BackupJob>, ActError> {
        let what = "looking for backup jobs".to_owned();
        self.call(what, self.options.observe_deadline, |connection, _| {
            backup::all(connection)
        })
        .await
    }
}

#[async_trait]
impl Usage for Libvirt {
    async fn usage(&self) -> Result<Vec<DomainUsage>, ActError> {
        let what = "measuring the domains".to_owned();
        let deadline = self.options.usage_deadline;
        let silence = Silence::OfLibvirt;
        self.call_on(
            &self.usage_pool,
            silence,
            what,
            deadline,
            |connection, _| stats::all(connection),
        )
        .await
    }
}
