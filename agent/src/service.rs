//! The running agent: connects everything and ends it in order. Guests, bridges and DHCP servers are nobody's
//! children here: they neither start nor end with it.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use berth_common::{
    bus::{Bus, RabbitBus, RabbitConfig},
    message::app,
    telemetry::{
        error_chain,
        health::{Component, Health},
        http,
        registry::Metrics,
    },
};
use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    act::{
        Compute, Storage,
        libvirt::{Libvirt, Options, VirtTypeChoice},
        net::KernelNet,
        storage::{DirStorage, StorageOptions},
    },
    config::Config,
    decide::instance::{HostFacts, Paths},
    engine::{Engine, Host, Parts},
    inbox::{Inbox, journal::Journal},
    metrics::AgentMetrics,
    preflight,
    report::{
        glance::{Glances, STALE_AFTER},
        heartbeat::{Pulse, watch_bus},
        reports::{Reports, Sender},
    },
    state::StateDir,
};

/// How often libvirt is asked what it can do, until it answers.
const ASK_LIBVIRT: Duration = Duration::from_secs(2);
/// How often figures are gathered that nobody else sets.
const GATHER: Duration = Duration::from_secs(30);
/// How often it is tried to mend what a full disk prevented.
const MEND: Duration = Duration::from_secs(60);

/// Runs an agent until cancelled.
///
/// # Errors
/// What waiting cannot mend: a machine that cannot be a hypervisor, a damaged state directory, another agent on it,
/// an address in use. An absent broker or libvirt is waited for.
pub async fn run(config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let state_dir = config.state_dir.clone();
    let state = tokio::task::spawn_blocking(move || StateDir::open(&state_dir)).await??;
    let checked = config.clone();
    tokio::task::spawn_blocking(move || preflight::check(&checked))
        .await?
        .judge()?;

    let metrics = Metrics::new("agent", env!("CARGO_PKG_VERSION"))?;
    let agent_metrics = AgentMetrics::new(&metrics)?;
    let health = Health::new();
    health.export(&metrics)?;
    let listener = http::bind(config.listen).await?;
    tracing::info!(
        host = %config.host_name, host_id = %state.host_id(), session = state.session(), listen = %config.listen,
        version = env!("CARGO_PKG_VERSION"), "agent starts"
    );
    let server = tokio::spawn(http::serve(
        listener,
        metrics,
        health.clone(),
        cancel.clone(),
    ));

    let agent = Agent::assemble(&config, &state, &health, &agent_metrics)?;
    let heart = agent.pulse.start(
        RabbitConfig::new(
            config.bus_url.expose().clone(),
            format!("{} {} heartbeat", app::AGENT, config.host_name),
        ),
        health.component("heartbeat"),
        cancel.clone(),
    )?;

    // Reports go on until the engine has said its last.
    let reporting = CancellationToken::new();
    let mut last = JoinSet::new();
    last.spawn(agent.reports.send(
        Arc::clone(&agent.bus),
        agent.sender,
        agent_metrics.clone(),
        reporting.clone(),
    ));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // It sends nothing: it is dropped with its thread.
        let _ = heart.stopped.await;
    });
    let state = Arc::new(Mutex::new(state));
    tasks.spawn(until_cancelled(
        keep_state(Arc::clone(&state), health.component("state")),
        cancel.clone(),
    ));
    tasks.spawn(watch_bus(
        agent.bus.health(),
        health.component("bus"),
        cancel.clone(),
    ));
    tasks.spawn(until_cancelled(
        ask_libvirt(
            Arc::clone(&agent.libvirt),
            config.virt_type,
            agent.facts,
            agent.paths,
        ),
        cancel.clone(),
    ));
    tasks.spawn(until_cancelled(
        gather(agent.libvirt, agent.storage, agent_metrics),
        cancel.clone(),
    ));
    tasks.spawn(until_cancelled(
        feed_watchdog(agent.glances),
        cancel.clone(),
    ));
    tasks.spawn(agent.inbox.run(cancel.clone()));
    tasks.spawn(agent.engine.run(cancel.clone()));
    notify(NotifyState::Ready);

    let mut outcome = Ok(());
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(ended) => ended,
                None => break,
            },
            Some(ended) = last.join_next() => ended,
        };
        outcome = outcome.and(judge_end(ended, cancel.is_cancelled()));
        if outcome.is_err() {
            cancel.cancel();
        }
    }
    notify(NotifyState::Stopping);
    reporting.cancel();
    while let Some(ended) = last.join_next().await {
        outcome = outcome.and(judge_end(ended, true));
    }
    agent.bus.close().await;
    if tokio::task::spawn_blocking(move || heart.thread.join())
        .await?
        .is_err()
    {
        outcome = outcome.and(Err(anyhow::anyhow!("the heartbeat panicked")));
    }
    server.await??;
    tracing::info!("agent ends; guests, networks and their DHCP servers stay");
    drop(state);
    outcome
}

/// What the end of a task means for the agent. The bus was closed, the engine or the reports ended, the heartbeat
/// stopped: none of it happens while there is work.
fn judge_end(ended: Result<(), JoinError>, expected: bool) -> anyhow::Result<()> {
    ended.context("a task of the agent panicked")?;
    anyhow::ensure!(expected, "a task of the agent ended before its time");
    Ok(())
}

/// The parts of an agent, connected and not yet running.
struct Agent {
    bus: Arc<dyn Bus>,
    libvirt: Arc<Libvirt>,
    storage: Arc<DirStorage>,
    paths: Paths,
    facts: watch::Sender<Option<HostFacts>>,
    glances: Glances,
    pulse: Pulse,
    reports: Reports,
    sender: Sender,
    inbox: Inbox,
    engine: Engine,
}

impl Agent {
    fn assemble(
        config: &Config,
        state: &StateDir,
        health: &Health,
        metrics: &AgentMetrics,
    ) -> anyhow::Result<Self> {
        let journal_health = health.component("journal");
        let (journal, corrupt) =
            Journal::open(&state.journal(), state.host_id(), state.ballast().clone())?;
        note_corrupt(&journal_health, corrupt.len());
        let journal = Arc::new(journal);
        let paths = Paths::below(state.root());
        let libvirt = Arc::new(Libvirt::start(&config.libvirt_uri, Options::default()));
        let storage_options = StorageOptions {
            not_below: vec![state.root().to_owned()],
            ..StorageOptions::default()
        };
        let storage = Arc::new(DirStorage::new(paths.clone(), storage_options));
        let (compute, files): (Arc<dyn Compute>, Arc<dyn Storage>) =
            (libvirt.clone(), storage.clone());
        let (facts, facts_known) = watch::channel(None);
        let glances = Glances::default();
        let reports = Reports::default();
        let (engine, handle) = Engine::new(Parts {
            host: Host {
                compute,
                storage: files,
                net: Arc::new(KernelNet::new(state.root())),
            },
            facts: facts_known.clone(),
            journal: Arc::clone(&journal),
            reports: reports.clone(),
            glances: glances.clone(),
            metrics: metrics.clone(),
            health: health.component("engine"),
            libvirt: health.component("libvirt"),
            resync_every: config.resync_every,
            concurrent_operations: config.concurrent_operations,
        });
        let connection = format!("{} {}", app::AGENT, config.host_name);
        let bus: Arc<dyn Bus> = Arc::new(RabbitBus::start(RabbitConfig::new(
            config.bus_url.expose().clone(),
            connection,
        ))?);
        let inbox = Inbox {
            bus: Arc::clone(&bus),
            host_id: state.host_id(),
            host: config.host_name.clone(),
            journal,
            engine: handle,
            glances: glances.clone(),
            metrics: metrics.clone(),
            health: journal_health,
        };
        let pulse = Pulse {
            host_id: state.host_id(),
            host: config.host_name.clone(),
            session: state.session(),
            every: config.heartbeat_every,
            glances: glances.clone(),
            facts: facts_known,
            metrics: metrics.clone(),
        };
        let sender = Sender {
            host_id: state.host_id(),
            host: config.host_name.clone(),
            session: state.session(),
        };
        Ok(Self {
            bus,
            libvirt,
            storage,
            paths,
            facts,
            glances,
            pulse,
            reports,
            sender,
            inbox,
            engine,
        })
    }
}

/// A corrupt journal is told until the first document is written again: by then the scheduler sends what is missing.
fn note_corrupt(health: &Component, count: usize) {
    match count {
        0 => health.ok(),
        count => health.degraded(format!(
            "{count} files of the journal were corrupt and were moved aside; the scheduler sends their documents again"
        )),
    }
}

/// Runs a task that has no end of its own.
async fn until_cancelled(task: impl Future<Output = ()>, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = async { task.await; std::future::pending().await } => {}
    }
}

/// Asks libvirt what it can do until it answers; an instance can be made only then.
async fn ask_libvirt(
    libvirt: Arc<Libvirt>,
    choice: VirtTypeChoice,
    facts: watch::Sender<Option<HostFacts>>,
    paths: Paths,
) {
    let mut told = false;
    loop {
        match libvirt.host_facts(choice).await {
            Ok(known) => {
                tracing::info!(
                    arch = known.arch,
                    virt_type = known.virt_type.as_str(),
                    libvirt = known.libvirt_version,
                    qemu = known.hypervisor_version,
                    cpu_weights = known.has_cpu_controller,
                    "libvirt answers"
                );
                facts.send_replace(Some(HostFacts {
                    virt_type: known.virt_type,
                    arch: known.arch,
                    has_cpu_controller: known.has_cpu_controller,
                    paths,
                }));
                return;
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = %error_chain(&error), "libvirt is out of reach; waiting for it");
                }
                sleep(ASK_LIBVIRT).await;
            }
        }
    }
}

/// Mends the state directory again and again after the disk was full, and tells how it is.
async fn keep_state(state: Arc<Mutex<StateDir>>, health: Component) {
    loop {
        let state = Arc::clone(&state);
        let mended = tokio::task::spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.mend().map_err(|error| error_chain(error))
        });
        match mended.await {
            Ok(Ok(())) => health.ok(),
            Ok(Err(reason)) => health.degraded(format!(
                "{reason}; until this start is counted, a restart of the agent would look like this one to the \
                 scheduler; trying again"
            )),
            Err(error) => health.degraded(error.to_string()),
        }
        sleep(MEND).await;
    }
}

/// Sets the figures that nobody else sets.
async fn gather(libvirt: Arc<Libvirt>, storage: Arc<DirStorage>, metrics: AgentMetrics) {
    loop {
        metrics.stuck(libvirt.stuck_calls());
        match storage.cached_images().await {
            Ok(images) => metrics.images(images.len(), images.iter().map(|image| image.size).sum()),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the image cache cannot be listed")
            }
        }
        sleep(GATHER).await;
    }
}

/// Tells systemd that the agent lives, as long as the engine does.
async fn feed_watchdog(glances: Glances) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        if is_alive(glances.newest().engine_alive, Instant::now()) {
            notify(NotifyState::Watchdog);
        }
        sleep(limit / 3).await;
    }
}

/// Whether the engine was heard of lately. It is heard of first when it is made.
fn is_alive(engine: Option<Instant>, now: Instant) -> bool {
    engine.is_some_and(|at| now.duration_since(at) < STALE_AFTER)
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_silent_or_never_spoke_is_not_alive() {
        let now = Instant::now();
        assert!(is_alive(Some(now), now));
        assert!(!is_alive(Some(now), now + STALE_AFTER));
        assert!(!is_alive(None, now));
    }

    #[tokio::test]
    async fn a_task_may_end_only_when_the_agent_does() {
        let ended = async |fails: bool| {
            tokio::spawn(async move { assert!(!fails, "a defect, on purpose") }).await
        };
        assert!(judge_end(ended(false).await, true).is_ok());
        assert!(judge_end(ended(false).await, false).is_err());
        assert!(judge_end(ended(true).await, true).is_err());
    }
}
