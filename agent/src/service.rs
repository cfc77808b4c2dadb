//! The running agent of a real machine: connects everything and ends it in order. Guests, bridges and DHCP servers are nobody's
//! children here: they neither start nor end with it.

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    act::{
        Compute, Storage,
        inspect::Guests,
        libvirt::{Libvirt, Options, VirtTypeChoice},
        machine::{Measure, ThisMachine},
        net::{KernelNet, features::Features},
        storage::{DirStorage, StorageOptions},
    },
    config::Config,
    decide::{
        instance::{HostFacts, Paths},
        room::{HostSize, RoomToGrow},
    },
    engine::Host,
    heap,
    metrics::AgentMetrics,
    preflight,
    report::{
        glance::{Glances, STALE_AFTER},
        heartbeat::watch_bus,
        usage::Meter,
    },
    state::StateDir,
    wiring::{Agent, Setup},
};

/// How often libvirt is asked what it can do, until it answers.
const ASK_LIBVIRT: Duration = Duration::from_secs(2);
/// How often figures are gathered that nobody else sets.
const GATHER: Duration = Duration::from_secs(30);
/// How often it is looked whether libvirt is asked: it takes no call.
const WATCH_BREAKER: Duration = Duration::from_secs(1);
/// How often old images are looked for: days pass before one is old, and all disks' headers are read.
const EVICT: Duration = Duration::from_secs(3600);
/// How often it is tried to mend what a full disk prevented.
const MEND: Duration = Duration::from_secs(60);

/// The largest frame on its connections, in bytes: the smallest that every RabbitMQ takes. It says little and hears little.
const FRAME_MAX: u32 = 8192;

/// Runs an agent until cancelled.
///
/// # Errors
/// What waiting cannot mend: a machine that cannot be a hypervisor, a damaged state directory, another agent on it,
/// an address in use. An absent broker or libvirt is waited for.
pub async fn run(config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let state_dir = config.state_dir.clone();
    let state = tokio::task::spawn_blocking(move || StateDir::open(&state_dir)).await??;
    let checked = config.clone();
    let features = tokio::task::spawn_blocking(move || {
        let features = Features::of_this_kernel();
        let judged = preflight::check(&checked, &features).judge();
        judged.map(|()| features)
    })
    .await??;

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

    let paths = Paths {
        pools: config
            .pools
            .iter()
            .map(|(name, pool)| (name.clone(), pool.place()))
            .collect(),
        ..Paths::below(state.root())
    };
    let libvirt = Arc::new(Libvirt::start(&config.libvirt_uri, Options::default()));
    let storage_options = StorageOptions {
        not_below: vec![state.root().to_owned()],
        qemu_img_user: config.qemu_img_user.clone(),
        image_url_allow: config.image_url_allow.clone(),
        image_max_age: config.image_cache_max_age,
        volume_wipe: config.volume_wipe,
        pools: config.pools.clone(),
        ..StorageOptions::default()
    };
    let storage = Arc::new(DirStorage::new(paths.clone(), storage_options));
    let (compute, files): (Arc<dyn Compute>, Arc<dyn Storage>) = (libvirt.clone(), storage.clone());
    let (facts, facts_known) = watch::channel(None);
    let connection = |name: String| RabbitConfig {
        frame_max: Some(FRAME_MAX),
        ..RabbitConfig::new(config.bus_url.expose().clone(), name)
    };
    let name = format!("{} {}", app::AGENT, config.host_name);
    let bus: Arc<dyn Bus> = Arc::new(RabbitBus::start(connection(name.clone()))?);
    let net = Arc::new(
        KernelNet::with_uplinks(state.root(), config.network.uplinks(features.clone()))
            .with_metadata_program(config.metadata_program.clone()),
    );
    let agent = Agent::assemble(Setup {
        host_id: state.host_id(),
        host: config.host_name.clone(),
        session: state.session(),
        journal: state.journal(),
        ballast: state.ballast().clone(),
        acts: Host {
            compute,
            storage: files,
            net: net.clone(),
        },
        inspect: Arc::new(Guests::new(Arc::clone(&libvirt), &net, paths.clone())),
        machine: Arc::new(ThisMachine {
            physical_networks: config.network.nics.keys().cloned().collect(),
            pci_pools: config.pci_pools.clone(),
            tunnel_ip: config.network.tunnel_ip,
            features: features.clone(),
        }),
        facts: facts_known,
        bus: Arc::clone(&bus),
        health: health.clone(),
        metrics: agent_metrics.clone(),
        heartbeat_every: config.heartbeat_every,
        resync_every: config.resync_every,
        concurrent_operations: config.concurrent_operations,
    })?;
    let glances = agent.pulse().glances.clone();
    let heart = agent.pulse().clone().start(
        connection(format!("{name} heartbeat")),
        health.component("heartbeat"),
        cancel.clone(),
    )?;

    let mut beside = JoinSet::new();
    beside.spawn(async move {
        // It sends nothing: it is dropped with its thread.
        let _ = heart.stopped.await;
    });
    beside.spawn(until_cancelled(features.keep_trying(), cancel.clone()));
    let state = Arc::new(Mutex::new(state));
    beside.spawn(until_cancelled(
        keep_state(Arc::clone(&state), health.component("state")),
        cancel.clone(),
    ));
    beside.spawn(watch_bus(
        bus.health(),
        health.component("bus"),
        cancel.clone(),
    ));
    beside.spawn(until_cancelled(
        ask_libvirt(
            Arc::clone(&libvirt),
            config.virt_type,
            config.room_to_grow,
            facts,
            paths,
        ),
        cancel.clone(),
    ));
    let listening = Arc::clone(&libvirt);
    beside.spawn(until_cancelled(
        async move { listening.listen().await },
        cancel.clone(),
    ));
    let meter = Meter {
        usage: libvirt.clone(),
        storage: storage.clone(),
        net,
        glances: glances.clone(),
        journal: Arc::clone(agent.journal()),
        root: PathBuf::from("/"),
        every: config.heartbeat_every,
        figures: agent_metrics.usage().clone(),
    };
    beside.spawn(meter.run(cancel.clone()));
    beside.spawn(until_cancelled(
        watch_breaker(Arc::clone(&libvirt), agent_metrics.clone()),
        cancel.clone(),
    ));
    beside.spawn(until_cancelled(
        gather(libvirt, storage, agent_metrics),
        cancel.clone(),
    ));
    beside.spawn(until_cancelled(feed_watchdog(glances), cancel.clone()));
    beside.spawn(until_cancelled(heap::keep_small(), cancel.clone()));
    let stopping = cancel.clone();
    beside.spawn(async move {
        stopping.cancelled().await;
        notify(NotifyState::Stopping);
    });
    notify(NotifyState::Ready);
    let mut outcome = agent.run(beside, cancel).await;

    bus.close().await;
    if tokio::task::spawn_blocking(move || heart.thread.join())
        .await?
        .is_err()
    {
        outcome = outcome.and(Err(anyhow::anyhow!("the heartbeat panicked")));
    }
    server.await??;
    tracing::info!("agent ends; guests, networks, their DHCP servers and metadata services stay");
    drop(state);
    outcome
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
    room_to_grow: RoomToGrow,
    facts: watch::Sender<Option<HostFacts>>,
    paths: Paths,
) {
    let mut told = false;
    loop {
        match libvirt.host_facts(choice).await {
            Ok(known) => {
                let machine = ThisMachine::default().measure();
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
                    size: HostSize {
                        cpus: machine.cpus,
                        memory_mb: machine.memory_total.whole_mb(),
                    },
                    room_to_grow,
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

/// Sets the figures that nobody else sets, and removes images that nobody used for long.
async fn gather(libvirt: Arc<Libvirt>, storage: Arc<DirStorage>, metrics: AgentMetrics) {
    let mut swept: Option<Instant> = None;
    loop {
        metrics.stuck(libvirt.stuck_calls());
        if swept.is_none_or(|at| at.elapsed() >= EVICT) {
            swept = Some(Instant::now());
            if let Err(error) = storage.evict_old_images().await {
                tracing::warn!(error = %error_chain(&error), "old images stay in the cache");
            }
        }
        for (reason, count) in storage.take_evicted() {
            metrics.evicted(reason, count);
        }
        match storage.cached_images().await {
            Ok(images) => metrics.images(images.len(), images.iter().map(|image| image.size).sum()),
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the image cache cannot be listed")
            }
        }
        sleep(GATHER).await;
    }
}

/// Shows whether libvirt is asked.
async fn watch_breaker(libvirt: Arc<Libvirt>, metrics: AgentMetrics) {
    loop {
        metrics.breaker(libvirt.breaker_state());
        sleep(WATCH_BREAKER).await;
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
}
