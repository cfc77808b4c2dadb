//! Measures what domains, the pool and the host use, again and again, for `/metrics`.
//!
//! It is a task of its own, and nothing waits for it: a libvirt that hangs makes the figures of domains vanish, and
//! delays neither heartbeats nor passes. It changes nothing on the host. Simulated hosts are not measured: they share
//! one page.

use std::{path::PathBuf, sync::Arc, time::Duration};

use berth_common::{names::PoolName, telemetry::error_chain};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::glance::Glances;
use crate::{
    act::{ActError, Net, Storage, Usage, machine::memory::Memory},
    decide::{
        filter::drops,
        metadata::forged,
        usage::{History, Sample, labels, provisioned},
    },
    inbox::journal::Journal,
    metrics::usage::{Pool, UsageFigures},
};

/// For how many periods a figure is shown when no newer one comes.
const PERIODS_SHOWN: u32 = 3;
/// After how many failures in a row it is told: one may be a guest that was busy.
const FAILURES_TOLD: u32 = 2;

/// Everything measuring needs.
pub struct Meter {
    /// What is asked what domains use.
    pub usage: Arc<dyn Usage>,
    /// What is asked how full the pool is.
    pub storage: Arc<dyn Storage>,
    /// What is asked which packets were dropped, and which requests were forged.
    pub net: Arc<dyn Net>,
    /// Whose the domains are.
    pub glances: Glances,
    /// What their owners call them, and how large disks may become.
    pub journal: Arc<Journal>,
    /// Below which `/proc` and `/sys` are: usually `/`.
    pub root: PathBuf,
    /// The pause between two measurements.
    pub every: Duration,
    /// Where the figures go.
    pub figures: UsageFigures,
}

impl Meter {
    /// Measures until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.measure_domains() => {}
            () = self.measure_pools() => {}
            () = self.measure_memory() => {}
            () = self.measure_drops() => {}
            () = self.measure_forged() => {}
        }
    }

    /// Never ends. One call at a time: while one hangs, no other is made.
    async fn measure_domains(&self) {
        let started = Instant::now();
        let mut history = History::default();
        let mut ticks = self.ticks();
        let mut failures = 0_u32;
        loop {
            ticks.tick().await;
            match self.usage.usage().await {
                Ok(domains) => {
                    let sample = Sample {
                        at: started.elapsed(),
                        domains: domains.into_iter().map(|it| (it.uuid, it)).collect(),
                    };
                    failures = 0;
                    let picture = self.glances.newest().domains.map(|(_, observed)| {
                        let documents = self.journal.all();
                        let documents = documents.iter().map(|entry| &*entry.document);
                        history.add(sample, &observed, &labels(documents))
                    });
                    self.figures.domains(picture, self.shown());
                }
                Err(error) => {
                    self.figures.domains(None, self.shown());
                    failures = failures.saturating_add(1);
                    self.tell(failures, &error);
                }
            }
        }
    }

    /// Says once what is wrong, if nobody else does: a libvirt that does not answer at all is told by the engine.
    fn tell(&self, failures: u32, error: &ActError) {
        if failures == FAILURES_TOLD && self.glances.newest().libvirt_error.is_none() {
            tracing::warn!(
                error = %error_chain(error),
                "what domains use cannot be measured; its figures are left out until it can"
            );
        }
    }

    /// Never ends. What hangs here is a file system.
    async fn measure_pools(&self) {
        let mut ticks = self.ticks();
        loop {
            ticks.tick().await;
            // The engine looks as well, and says what is wrong.
            let space = self.storage.space().await.ok();
            let documents = self.journal.all();
            let provisioned_of =
                |pool: &PoolName| provisioned(documents.iter().map(|entry| &*entry.document), pool);
            let local = space.map(|(capacity, used)| Pool {
                capacity,
                used,
                provisioned: provisioned_of(&PoolName::default()),
                ..Pool::default()
            });
            let others = self.glances.newest().pools;
            let others = others.iter().filter(|pool| !pool.name.is_local());
            let others = others.filter_map(|pool| {
                let report = pool.report.as_ref().ok()?;
                Some(Pool {
                    name: pool.name.clone(),
                    capacity: report.total_bytes,
                    used: report.used_bytes,
                    provisioned: provisioned_of(&pool.name),
                    metadata_percent: report.metadata_percent,
                })
            });
            self.figures
                .pools(local.into_iter().chain(others).collect(), self.shown());
        }
    }

    /// Never ends, and waits for nobody.
    async fn measure_memory(&self) {
        let mut ticks = self.ticks();
        loop {
            ticks.tick().await;
            self.figures.memory(Memory::look(&self.root), self.shown());
        }
    }

    /// Never ends. What nft cannot tell is told by passes, which need it as well.
    async fn measure_drops(&self) {
        let mut ticks = self.ticks();
        loop {
            ticks.tick().await;
            let counted = self.net.drops().await.ok();
            let documents = self.journal.all();
            let documents = || documents.iter().map(|entry| &*entry.document);
            let drops = counted.map(|counted| drops(&counted, documents()));
            self.figures.drops(drops, self.shown());
            let tunnels = self.net.tunnel_drops().await.ok().flatten();
            self.figures.tunnel_drops(tunnels, self.shown());
        }
    }

    /// Never ends. What hangs here is a file system.
    async fn measure_forged(&self) {
        let mut ticks = self.ticks();
        loop {
            ticks.tick().await;
            let counted = self.net.forged_requests().await.ok();
            let documents = self.journal.all();
            let documents = || documents.iter().map(|entry| &*entry.document);
            let forged = counted.map(|counted| forged(&counted, documents()));
            self.figures.forged(forged, self.shown());
        }
    }

    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }

    fn shown(&self) -> Duration {
        self.every * PERIODS_SHOWN
    }
}
