//! Heartbeats: tells the scheduler every few seconds that this host is there, what it has and what it uses.
//!
//! They run on a thread of their own with a connection of their own, and read the newest [`Glance`] instead of
//! asking anybody: neither a hung libvirt, nor a flood of documents, nor a busy runtime can keep them from leaving.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use berth_common::{
    bus::{Bus, BusError, BusHealth, Message, RabbitBus, RabbitConfig, Target, heartbeat_key},
    ids::HostId,
    message::{
        app,
        heartbeat::{
            ForeignDomain, HEARTBEAT_TYPE, HEARTBEAT_VERSION, Heartbeat, PartHealth, PoolReport,
        },
        report::PowerState,
        view::Resources,
    },
    names::HostName,
    telemetry::{error_chain, health::Component},
    units::{ByteCount, DiskGb, Vcpus},
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, sleep},
};
use tokio_util::sync::CancellationToken;

use super::glance::{Glance, Glances, STALE_AFTER};
use crate::{
    act::machine::{Machine, Measure},
    decide::instance::HostFacts,
    metrics::AgentMetrics,
    spread::phase,
};

/// How long the first heartbeat waits until the host was looked at.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often it is asked whether that was done.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Everything heartbeats need.
#[derive(Clone)]
pub struct Pulse {
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// How often its agent has started.
    pub session: u64,
    /// The pause between two heartbeats.
    pub every: Duration,
    /// What processors and memory the host has.
    pub machine: Arc<dyn Measure>,
    /// The newest look at the host.
    pub glances: Glances,
    /// What guests run on, once libvirt has said so.
    pub facts: watch::Receiver<Option<HostFacts>>,
    /// Figures.
    pub metrics: AgentMetrics,
}

/// The thread that sends heartbeats.
#[derive(Debug)]
pub struct Heart {
    /// To wait for its end.
    pub thread: JoinHandle<()>,
    /// Comes to an end, with whatever result, when the thread does: also when it panics.
    pub stopped: oneshot::Receiver<()>,
}

impl Pulse {
    /// Starts the thread. It ends when cancelled.
    ///
    /// # Errors
    /// The address of the broker cannot be read, or there is no thread to be had.
    pub fn start(
        self,
        bus: RabbitConfig,
        component: Component,
        cancel: CancellationToken,
    ) -> Result<Heart, StartError> {
        bus.check().map_err(StartError::Bus)?;
        let (started, outcome) = mpsc::channel();
        let (alive, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                let _alive = alive;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => {
                        // Nobody is left to be told when the receiver is gone.
                        let _ = started.send(Ok(()));
                        runtime.block_on(self.connect_and_beat(bus, component, cancel));
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            });
        let thread = thread.map_err(StartError::Thread)?;
        match outcome.recv() {
            Ok(Ok(())) => Ok(Heart { thread, stopped }),
            Ok(Err(error)) => Err(StartError::Thread(error)),
            Err(_) => Err(StartError::Thread(std::io::Error::other(
                "the thread ended at once",
            ))),
        }
    }

    async fn connect_and_beat(
        self,
        config: RabbitConfig,
        component: Component,
        cancel: CancellationToken,
    ) {
        let bus: Arc<dyn Bus> = match RabbitBus::start(config) {
            Ok(bus) => Arc::new(bus),
            Err(error) => {
                component.degraded(error_chain(&error));
                return;
            }
        };
        let health = bus.health();
        let watching = watch_bus(health, component, cancel.clone());
        tokio::join!(watching, self.beat(Arc::clone(&bus), cancel));
        bus.close().await;
    }

    /// Sends heartbeats until cancelled: the first at once, the others at this host's own moment of each period, so
    /// that hosts which started together, or waited for the broker together, do not all speak in the same instant.
    pub async fn beat(self, bus: Arc<dyn Bus>, cancel: CancellationToken) {
        let mut sequence = 0;
        let mut failing = false;
        let started = Instant::now();
        let mut ticks =
            tokio::time::interval_at(started + phase(self.host_id, self.every), self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let turn = async {
                if sequence == 0 {
                    self.first_look(started).await;
                } else {
                    ticks.tick().await;
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = turn => {}
            }
            sequence += 1;
            let heartbeat = self.heartbeat(sequence, self.machine.measure(), Instant::now());
            let sent = tokio::select! {
                () = cancel.cancelled() => return,
                sent = self.publish(&*bus, &heartbeat) => sent,
            };
            match sent {
                Ok(()) => {
                    self.metrics.heartbeat(Ok(()));
                    if std::mem::take(&mut failing) {
                        tracing::info!("heartbeats reach the scheduler again");
                    }
                }
                Err(reason) => {
                    self.metrics.heartbeat(Err(()));
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            reason,
                            "heartbeats do not reach the scheduler; trying again until they do"
                        );
                    }
                }
            }
        }
    }

    /// What is not known yet would look like a host without a disk; the first look takes a moment only.
    async fn first_look(&self, started: Instant) {
        while !self.is_known() && started.elapsed() < FIRST_LOOK {
            sleep(LOOK_AGAIN).await;
        }
    }

    fn is_known(&self) -> bool {
        let glance = self.glances.newest();
        let libvirt = self.facts.borrow().is_some() || glance.libvirt_error.is_some();
        let storage = glance.space.is_some() || glance.storage_error.is_some();
        libvirt && storage
    }

    async fn publish(&self, bus: &dyn Bus, heartbeat: &Heartbeat) -> Result<(), String> {
        let message = Message::new(HEARTBEAT_TYPE, HEARTBEAT_VERSION, app::AGENT, heartbeat)
            .map_err(|error| error_chain(&error))?;
        let target = Target::topic(heartbeat_key(self.host_id));
        bus.publish(target, message)
            .await
            .map_err(|error| error_chain(&error))
    }

    /// The heartbeat of this moment.
    #[must_use]
    pub fn heartbeat(&self, sequence: u64, machine: Machine, now: Instant) -> Heartbeat {
        let glance = self.glances.newest();
        let facts = self.facts.borrow().clone();
        let (disk_total, disk_used) = glance.space.unwrap_or_default();
        let (arch, virt_type) = match &facts {
            Some(facts) => (facts.arch.clone(), facts.virt_type.as_str().to_owned()),
            None => (std::env::consts::ARCH.to_owned(), "unknown".to_owned()),
        };
        Heartbeat {
            host_id: self.host_id,
            host: self.host.clone(),
            session: self.session,
            sequence,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            arch,
            virt_type,
            total: Resources {
                vcpus: Vcpus::clamped(machine.cpus),
                memory_mb: machine.memory_total.whole_mb(),
                disk_gb: disk_total.whole_gb(),
            },
            used_now: Resources {
                vcpus: running_vcpus(&glance),
                memory_mb: machine
                    .memory_total
                    .saturating_sub(machine.memory_available)
                    .whole_mb(),
                disk_gb: round_up(disk_used),
            },
            health: [
                agent_health(&glance, now),
                libvirt_health(&glance, now),
                storage_health(&glance),
            ]
            .into_iter()
            .chain(pools_health(&glance))
            .collect(),
            foreign_domains: foreign_domains(&glance),
            physical_networks: machine.physical_networks,
            resources: machine.countables,
            pools: pools(&glance),
            network: machine.network,
        }
    }
}

/// Heartbeats cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker's address cannot be used.
    #[error("heartbeats have nowhere to go")]
    Bus(#[source] BusError),
    /// The thread did not start.
    #[error("the thread for heartbeats did not start")]
    Thread(#[source] std::io::Error),
}

/// Shows a connection's health as a component's until cancelled.
pub async fn watch_bus(
    mut health: watch::Receiver<BusHealth>,
    component: Component,
    cancel: CancellationToken,
) {
    loop {
        let now = health.borrow_and_update().clone();
        match &now {
            BusHealth::Connected => component.ok(),
            other => component.degraded(other.to_string()),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = health.changed() => if changed.is_err() { return },
        }
    }
}

/// A part of a GiB is taken as well.
fn round_up(used: ByteCount) -> DiskGb {
    used.saturating_add(ByteCount::clamped((1 << 30) - 1))
        .whole_gb()
}

/// The vCPUs of all domains that run, whoever made them.
fn running_vcpus(glance: &Glance) -> Vcpus {
    let Some((_, domains)) = &glance.domains else {
        return Vcpus::ZERO;
    };
    domains
        .iter()
        .filter(|domain| is_running(domain.power_state))
        .map(|domain| domain.running.map_or(domain.vcpus, |running| running.vcpus))
        .sum()
}

fn is_running(state: PowerState) -> bool {
    match state {
        PowerState::Running | PowerState::Paused => true,
        PowerState::Nostate
        | PowerState::Shutdown
        | PowerState::Crashed
        | PowerState::Suspended => false,
    }
}

fn foreign_domains(glance: &Glance) -> Vec<ForeignDomain> {
    let Some((_, domains)) = &glance.domains else {
        return Vec::new();
    };
    let foreign = domains.iter().filter(|domain| domain.metadata.is_none());
    foreign
        .map(|domain| ForeignDomain {
            uuid: domain.uuid,
            name: domain.name.clone(),
            power_state: domain.power_state,
            vcpus: domain.vcpus,
            memory_mb: domain.memory_mb,
        })
        .collect()
}

fn part(name: &str, reason: Option<String>) -> PartHealth {
    PartHealth {
        part: name.to_owned(),
        ok: reason.is_none(),
        reason,
    }
}

fn agent_health(glance: &Glance, now: Instant) -> PartHealth {
    let silent = glance
        .engine_alive
        .map(|at| now.duration_since(at))
        .filter(|age| *age > STALE_AFTER);
    let engine =
        silent.map(|age| format!("the engine has not been heard of for {} s", age.as_secs()));
    part("agent", engine.or_else(|| glance.journal_error.clone()))
}

fn libvirt_health(glance: &Glance, now: Instant) -> PartHealth {
    let reason = match (&glance.domains, &glance.libvirt_error) {
        (_, Some(error)) => Some(error.clone()),
        (None, None) => Some("not asked yet".to_owned()),
        (Some((at, _)), None) => {
            let age = now.duration_since(*at);
            (age > STALE_AFTER).then(|| format!("has not answered for {} s", age.as_secs()))
        }
    };
    part("libvirt", reason)
}

fn storage_health(glance: &Glance) -> PartHealth {
    part("storage", glance.storage_error.clone())
}

/// The pools that an operator configured. How `local` is, `storage` says.
fn pools_health(glance: &Glance) -> impl Iterator<Item = PartHealth> {
    let configured = glance.pools.iter().filter(|pool| !pool.name.is_local());
    configured.map(|pool| {
        let reason = pool.report.as_ref().err().cloned();
        part(&format!("pool {}", pool.name), reason)
    })
}

/// The pools that work.
fn pools(glance: &Glance) -> Vec<PoolReport> {
    let reports = glance.pools.iter();
    reports
        .filter_map(|pool| pool.report.as_ref().ok().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use berth_common::{
        message::heartbeat::PoolKind, telemetry::registry::Metrics, units::MemoryMb,
    };
    use uuid::Uuid;

    use super::*;
    use crate::{
        act::{PoolState, machine::ThisMachine},
        decide::domain::{DomainDisks, DomainObserved},
    };

    fn pulse() -> Pulse {
        Pulse {
            host_id: HostId::new(),
            host: "hv1".parse().unwrap(),
            session: 1,
            every: Duration::from_secs(10),
            machine: Arc::new(ThisMachine::default()),
            glances: Glances::default(),
            facts: watch::channel(None).1,
            metrics: AgentMetrics::new(&Metrics::new("test", "1").unwrap()).unwrap(),
        }
    }

    fn fast() -> PoolReport {
        PoolReport {
            name: "fast".parse().unwrap(),
            kind: PoolKind::Lvm,
            total_bytes: ByteCount::clamped(4),
            used_bytes: ByteCount::clamped(2),
            provisioned_bytes: ByteCount::clamped(1),
            metadata_percent: None,
        }
    }

    fn domain(name: &str, power_state: PowerState, vcpus: u64) -> DomainObserved {
        DomainObserved {
            uuid: Uuid::now_v7(),
            name: name.to_owned(),
            power_state,
            off_reason: None,
            leftover_memory: false,
            is_starting: false,
            is_halted: false,
            reason: String::new(),
            persistent: true,
            vcpus: Vcpus::clamped(vcpus),
            memory_mb: MemoryMb::clamped(64),
            running: None,
            metadata: None,
            nics: Default::default(),
            disks: DomainDisks::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn running_domains_count_whoever_made_them_and_old_looks_are_told() {
        let pulse = pulse();
        let domains = vec![
            domain("theirs", PowerState::Running, 2),
            domain("off", PowerState::Shutdown, 4),
        ];
        let seen = Instant::now();
        pulse.glances.update(|glance| {
            glance.domains = Some((seen, Arc::new(domains)));
            glance.space = Some((ByteCount::clamped(100 << 30), ByteCount::clamped(1)));
            glance.pools = vec![
                PoolState {
                    name: "fast".parse().unwrap(),
                    report: Ok(fast()),
                },
                PoolState {
                    name: "slow".parse().unwrap(),
                    report: Err("no such volume group".to_owned()),
                },
            ];
        });
        let heartbeat = pulse.heartbeat(
            1,
            ThisMachine::default().measure(),
            seen + Duration::from_secs(5),
        );
        assert_eq!(heartbeat.used_now.vcpus, Vcpus::clamped(2));
        assert_eq!(
            (
                heartbeat.total.disk_gb.get(),
                heartbeat.used_now.disk_gb.get()
            ),
            (100, 1)
        );
        assert_eq!(heartbeat.foreign_domains.len(), 2);
        let health = |heartbeat: &Heartbeat, name: &str| {
            heartbeat
                .health
                .iter()
                .find(|part| part.part == name)
                .unwrap()
                .clone()
        };
        assert!(health(&heartbeat, "libvirt").ok);
        let ill = health(&heartbeat, "pool slow");
        assert_eq!(
            (ill.ok, ill.reason.as_deref()),
            (false, Some("no such volume group"))
        );
        assert!(health(&heartbeat, "pool fast").ok);
        let names = heartbeat.pools.iter().map(|pool| pool.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["fast"]);
        let late = pulse.heartbeat(
            2,
            ThisMachine::default().measure(),
            seen + Duration::from_secs(31),
        );
        assert_eq!(
            health(&late, "libvirt").reason.as_deref(),
            Some("has not answered for 31 s")
        );
    }
}
