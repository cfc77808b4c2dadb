//! An agent's parts, joined: inbox, engine, answers, reports and the pulse over one host and one connection. The agent of a
//! real machine ([`crate::service`]) and simulated ones ([`crate::sim`]) are put together here.
//!
//! It knows neither libvirt nor RabbitMQ nor a configuration file: it gets a host, a bus and figures.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use berth_common::{
    bus::Bus,
    ids::HostId,
    names::HostName,
    telemetry::health::{Component, Health},
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    act::{inspect::Inspect, machine::Measure},
    ask::Answerer,
    decide::instance::HostFacts,
    engine::{Engine, Host, Parts},
    inbox::{
        Inbox,
        journal::{Journal, JournalError},
    },
    metrics::AgentMetrics,
    report::{
        glance::Glances,
        heartbeat::Pulse,
        reports::{Reports, Sender},
    },
    state::ballast::Ballast,
};

/// Everything an agent is made from.
pub struct Setup {
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: HostName,
    /// How often its agent has started.
    pub session: u64,
    /// Where its documents are. The directory must be there.
    pub journal: PathBuf,
    /// What is given up for them when the disk is full.
    pub ballast: Ballast,
    /// What acts on it.
    pub acts: Host,
    /// What is asked about its guests.
    pub inspect: Arc<dyn Inspect>,
    /// How its processors and memory are measured.
    pub machine: Arc<dyn Measure>,
    /// What it can do, once that is known.
    pub facts: watch::Receiver<Option<HostFacts>>,
    /// The connection for documents and reports.
    pub bus: Arc<dyn Bus>,
    /// How its parts are.
    pub health: Health,
    /// Figures.
    pub metrics: AgentMetrics,
    /// The pause between two heartbeats.
    pub heartbeat_every: Duration,
    /// How often everything on the host is looked at.
    pub resync_every: Duration,
    /// How many networks are worked on at once, and how many other resources.
    pub concurrent_operations: usize,
}

/// The parts of an agent, connected and not yet running.
pub struct Agent {
    bus: Arc<dyn Bus>,
    metrics: AgentMetrics,
    inbox: Inbox,
    answerer: Answerer,
    engine: Engine,
    reports: Reports,
    sender: Sender,
    pulse: Pulse,
}

impl Agent {
    /// Reads the journal and joins the parts. It blocks on the disk for as long as the journal takes to read.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn assemble(setup: Setup) -> Result<Self, JournalError> {
        let journal_health = setup.health.component("journal");
        let (journal, corrupt) = Journal::open(&setup.journal, setup.host_id, setup.ballast)?;
        note_corrupt(&journal_health, corrupt.len());
        let journal = Arc::new(journal);
        let glances = Glances::default();
        let reports = Reports::default();
        let (engine, handle) = Engine::new(Parts {
            host: setup.acts,
            facts: setup.facts.clone(),
            journal: Arc::clone(&journal),
            reports: reports.clone(),
            glances: glances.clone(),
            metrics: setup.metrics.clone(),
            health: setup.health.component("engine"),
            libvirt: setup.health.component("libvirt"),
            leftovers: setup.health.component("leftovers"),
            resync_every: setup.resync_every,
            concurrent_operations: setup.concurrent_operations,
        });
        Ok(Self {
            answerer: Answerer {
                bus: Arc::clone(&setup.bus),
                host_id: setup.host_id,
                host: setup.host.clone(),
                journal: Arc::clone(&journal),
                inspect: setup.inspect,
                metrics: setup.metrics.clone(),
            },
            inbox: Inbox {
                bus: Arc::clone(&setup.bus),
                host_id: setup.host_id,
                host: setup.host.clone(),
                journal,
                engine: handle,
                glances: glances.clone(),
                metrics: setup.metrics.clone(),
                health: journal_health,
            },
            engine,
            reports,
            sender: Sender {
                host_id: setup.host_id,
                host: setup.host.clone(),
                session: setup.session,
            },
            pulse: Pulse {
                host_id: setup.host_id,
                host: setup.host,
                session: setup.session,
                every: setup.heartbeat_every,
                machine: setup.machine,
                glances,
                facts: setup.facts,
                metrics: setup.metrics.clone(),
            },
            bus: setup.bus,
            metrics: setup.metrics,
        })
    }

    /// The heartbeats of this agent; who runs them decides over which connection, and on which thread.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The documents of this agent.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.inbox.journal
    }

    /// Works until cancelled, with what else belongs to this agent `beside` it. Reports go on until the engine has
    /// said its last. The connection stays open.
    ///
    /// # Errors
    /// A task ended before its time, or panicked; then all others were cancelled.
    pub async fn run(self, beside: JoinSet<()>, cancel: CancellationToken) -> anyhow::Result<()> {
        let reporting = CancellationToken::new();
        let mut last = JoinSet::new();
        last.spawn(
            self.reports
                .send(self.bus, self.sender, self.metrics, reporting.clone()),
        );
        let mut tasks = beside;
        tasks.spawn(self.inbox.run(cancel.clone()));
        tasks.spawn(self.answerer.run(cancel.clone()));
        tasks.spawn(self.engine.run(cancel.clone()));
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
        reporting.cancel();
        while let Some(ended) = last.join_next().await {
            outcome = outcome.and(judge_end(ended, true));
        }
        outcome
    }
}

/// What the end of a task means for the agent. The bus was closed, the engine or the reports ended, the heartbeat
/// stopped: none of it happens while there is work.
fn judge_end(ended: Result<(), JoinError>, expected: bool) -> anyhow::Result<()> {
    ended.context("a task of the agent panicked")?;
    anyhow::ensure!(expected, "a task of the agent ended before its time");
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

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
