//! Many agents in one process, on hosts that exist only in memory: the same inbox, journal, engine, reports and
//! heartbeats as a real agent, over [`crate::act::fake`]. For benchmarks and tests of everything around agents.
//!
//! ```text
//!   connection 1 ──┬── agent sim-0001 ── fake host, journal <state>/sim-0001/
//!                  └── agent sim-0003 ── …
//!   connection 2 ───── agent sim-0002 ── …
//! ```
//!
//! Agents are tasks of one runtime and share its threads, and a few connections with each other. Ids of hosts follow
//! from their names, so that a simulation that is started again is the same hosts; it has forgotten what ran on them,
//! as after a power cut.
//!
//! It is no model of time: a step takes none.

mod scratch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_common::{
    bus::Bus,
    ids::HostId,
    message::view::Resources,
    names::HostName,
    telemetry::{health::Health, registry::Metrics},
    units::{DiskGb, MemoryMb, Vcpus},
};
use chrono::Utc;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::scratch::Scratch;
use crate::{
    act::fake::{Disk, FakeHost},
    decide::{
        domain::VirtType,
        instance::{HostFacts, Paths},
        room::{HostSize, RoomToGrow},
    },
    engine::Host,
    metrics::AgentMetrics,
    state::ballast::Ballast,
    wiring::{Agent, Setup},
};

/// What ids of simulated hosts are derived in (UUID version 5 of the name).
const NAMESPACE: Uuid = Uuid::from_u128(0x7f1c_5d0e_2b9a_4c61_8e3d_a1c5_96f0_4b27);
/// Pause between the starts of two agents: a broker makes a few hundred quorum queues a second.
const START_EVERY: Duration = Duration::from_millis(4);
/// How many networks, and other resources, each agent works on at once, as a real one by default.
const CONCURRENT: usize = 4;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// How many hosts.
    pub count: usize,
    /// Hosts are named `<prefix>-0001` and so on.
    pub name_prefix: String,
    /// What each of them has.
    pub size: Resources,
    /// The pause between two heartbeats of a host.
    pub heartbeat_every: Duration,
    /// How often each host is looked at.
    pub resync_every: Duration,
    /// So many, the first ones, have a disk that takes nothing: every build there fails with `disk_full`.
    pub broken: usize,
    /// The probability that a step fails, on every host.
    pub fault_rate: f64,
    /// Where the journals are; `None`: in a directory in memory, or where temporary files go, that ends with this.
    pub state_dir: Option<PathBuf>,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            count: 1,
            name_prefix: "sim".to_owned(),
            size: Resources {
                vcpus: Vcpus::clamped(16),
                memory_mb: MemoryMb::clamped(64 << 10),
                disk_gb: DiskGb::clamped(1000),
            },
            heartbeat_every: Duration::from_secs(10),
            resync_every: Duration::from_secs(10),
            broken: 0,
            fault_rate: 0.0,
            state_dir: None,
        }
    }
}

/// One simulated host.
#[derive(Debug, Clone)]
pub struct SimHost {
    /// Its id, a function of its name.
    pub id: HostId,
    /// Its name.
    pub name: HostName,
    /// What is on it, and what can be done to it.
    pub host: FakeHost,
}

/// Hosts that are ready to be run.
#[derive(Debug)]
pub struct Sim {
    options: SimOptions,
    hosts: Vec<SimHost>,
}

/// Runs simulated hosts until cancelled, sharing these connections in turn.
///
/// # Errors
/// The options cannot work, the journals cannot be read or made, or an agent ended before its time.
pub async fn run(
    options: SimOptions,
    buses: &[Arc<dyn Bus>],
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    Sim::new(options)?.run(buses, cancel).await
}

impl Sim {
    /// Makes the hosts.
    ///
    /// # Errors
    /// A prefix that gives no host names, or a probability that is none.
    pub fn new(options: SimOptions) -> anyhow::Result<Self> {
        ensure!(
            (0.0..=1.0).contains(&options.fault_rate),
            "the rate of faults must be from 0 to 1; got {}",
            options.fault_rate
        );
        let hosts = (1..=options.count).map(|number| host(&options, number));
        Ok(Self {
            hosts: hosts.collect::<anyhow::Result<_>>()?,
            options,
        })
    }

    /// The hosts, in the order of their numbers.
    #[must_use]
    pub fn hosts(&self) -> &[SimHost] {
        &self.hosts
    }

    /// Runs an agent on each host until cancelled, sharing these connections in turn. They stay open.
    ///
    /// # Errors
    /// The journals cannot be read or made, or an agent ended before its time; then all others are ended.
    pub async fn run(
        self,
        buses: &[Arc<dyn Bus>],
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        ensure!(!buses.is_empty(), "agents need a connection to share");
        let scratch = match &self.options.state_dir {
            Some(path) => Scratch::keep(path),
            None => Scratch::temporary(),
        };
        let scratch = scratch.context("there is no place for the journals")?;
        // Counters of all agents together. Nobody asks for them yet.
        let metrics = AgentMetrics::new(&Metrics::new("agent-sim", env!("CARGO_PKG_VERSION"))?)?;
        // Counts up from start to start, also when the journals are gone.
        let session = u64::try_from(Utc::now().timestamp_millis())?;
        let mut agents = JoinSet::new();
        for (host, bus) in self.hosts.iter().zip(buses.iter().cycle()) {
            let start = Start {
                options: &self.options,
                session,
                metrics: &metrics,
                root: scratch.path(),
            };
            let started = start.agent(host, Arc::clone(bus), &cancel);
            agents.spawn(started.with_context(|| host.name.to_string())?);
            if cancel.is_cancelled() {
                break;
            }
            sleep(START_EVERY).await;
        }
        tracing::info!(agents = agents.len(), "all simulated agents run");
        let mut outcome = Ok(());
        while let Some(ended) = agents.join_next().await {
            outcome = outcome.and(
                ended
                    .context("a simulated agent panicked")
                    .and_then(|it| it),
            );
            if outcome.is_err() {
                cancel.cancel();
            }
        }
        tokio::task::spawn_blocking(move || drop(scratch)).await?;
        outcome
    }
}

/// Makes the host with this number.
fn host(options: &SimOptions, number: usize) -> anyhow::Result<SimHost> {
    let name: HostName = format!("{}-{number:04}", options.name_prefix)
        .parse()
        .context("the prefix gives no names of hosts")?;
    let id = HostId::try_from(Uuid::new_v5(&NAMESPACE, name.as_str().as_bytes()))?;
    let host = FakeHost::sized(options.size);
    if number <= options.broken {
        host.set_disk(Disk::Full);
    }
    if options.fault_rate > 0.0 {
        let (_, seed) = id.as_uuid().as_u64_pair();
        host.fail_at_random(options.fault_rate, seed);
    }
    Ok(SimHost { id, name, host })
}

/// What all agents start with.
struct Start<'a> {
    options: &'a SimOptions,
    session: u64,
    metrics: &'a AgentMetrics,
    root: &'a Path,
}

impl Start<'_> {
    /// One agent, to be spawned.
    fn agent(
        &self,
        host: &SimHost,
        bus: Arc<dyn Bus>,
        cancel: &CancellationToken,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
        let root = self.root.join(host.name.as_str());
        let journal = root.join("journal");
        std::fs::create_dir_all(&journal).context("its journal cannot be made")?;
        let (facts_known, facts) = watch::channel(Some(HostFacts {
            virt_type: VirtType::Qemu,
            arch: std::env::consts::ARCH.to_owned(),
            has_cpu_controller: true,
            size: HostSize {
                cpus: self.options.size.vcpus.get(),
                memory_mb: self.options.size.memory_mb,
            },
            room_to_grow: RoomToGrow::Given,
            paths: Paths::below(&root),
        }));
        let agent = Agent::assemble(Setup {
            host_id: host.id,
            host: host.name.clone(),
            session: self.session,
            journal,
            // None is kept: thousands of them are no use to anybody.
            ballast: Ballast::of(&root),
            acts: Host {
                compute: Arc::new(host.host.clone()),
                storage: Arc::new(host.host.clone()),
                net: Arc::new(host.host.clone()),
            },
            inspect: Arc::new(host.host.clone()),
            machine: Arc::new(host.host.clone()),
            facts,
            bus: Arc::clone(&bus),
            health: Health::new(),
            metrics: self.metrics.clone(),
            heartbeat_every: self.options.heartbeat_every,
            resync_every: self.options.resync_every,
            concurrent_operations: CONCURRENT,
        })?;
        let mut beside = JoinSet::new();
        beside.spawn(agent.pulse().clone().beat(bus, cancel.clone()));
        // A failure of one agent is everybody's: it cancels all.
        let running = agent.run(beside, cancel.clone());
        let name = host.name.clone();
        Ok(async move {
            let outcome = running.await.with_context(|| name.to_string());
            drop(facts_known);
            outcome
        })
    }
}
