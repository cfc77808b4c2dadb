//! The agent's own figures. No label takes its value from a message: a series must not grow with what strangers
//! send. The one exception, and what bounds it, is [`usage`].

pub mod usage;

use std::collections::BTreeMap;

use self::usage::{UsageCollector, UsageFigures};
use crate::{
    act::PoolState,
    ask::Outcome,
    decide::{breaker::BreakerState, image_cache::Reason},
};
use berth_common::{
    document::Kind,
    message::report::FaultCode,
    telemetry::registry::{Metrics, MetricsError},
    units::ByteCount,
};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Counters and gauges of one agent.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    documents: IntGaugeVec,
    received: IntCounterVec,
    dead: IntCounter,
    journal: IntGauge,
    passes: IntCounterVec,
    pass_errors: IntCounterVec,
    pass_seconds: HistogramVec,
    steps: IntCounterVec,
    reports: IntCounterVec,
    heartbeats: IntCounterVec,
    unclaimed: IntGaugeVec,
    domains: IntGaugeVec,
    stuck: IntGauge,
    questions: IntCounterVec,
    breaker: IntGaugeVec,
    images: IntGauge,
    image_bytes: IntGauge,
    image_evictions: IntCounterVec,
    pool_up: IntGaugeVec,
    usage: UsageFigures,
}

impl AgentMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is taken, which no configuration can cause.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let usage = UsageFigures::default();
        let register = |source| MetricsError::Register {
            name: "berth_agent_domain_*".to_owned(),
            source,
        };
        let collector = UsageCollector::new(usage.clone()).map_err(register)?;
        metrics.register("berth_agent_domain_*", collector)?;
        Ok(Self {
            documents: metrics.gauges(
                "berth_agent_documents",
                "Documents of this host, by kind and status (unknown until it was looked at).",
                &["kind", "status"],
            )?,
            received: metrics.counters(
                "berth_agent_documents_received_total",
                "Documents that arrived, by outcome (new, same, older).",
                &["outcome"],
            )?,
            dead: metrics.counter(
                "berth_agent_dead_messages_total",
                "Messages that were unusable and went to berth.dead.",
            )?,
            journal: metrics.gauge("berth_agent_journal_documents", "Documents in the journal, tombstones included.")?,
            passes: metrics.counters(
                "berth_agent_passes_total",
                "Passes over a resource, by kind and outcome (converged, gone, waiting, refused, failed, superseded).",
                &["kind", "outcome"],
            )?,
            pass_errors: metrics.counters(
                "berth_agent_pass_errors_total",
                "Passes that failed or were refused, by kind and code of the fault.",
                &["kind", "code"],
            )?,
            pass_seconds: metrics.histograms(
                "berth_agent_pass_duration_seconds",
                "How long a pass over a resource took, by kind.",
                &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0],
                &["kind"],
            )?,
            steps: metrics.counters(
                "berth_agent_steps_total",
                "Steps that changed something on the host, by step and outcome (ok, error).",
                &["step", "outcome"],
            )?,
            reports: metrics.counters(
                "berth_agent_reports_total",
                "Reports sent to the scheduler, by outcome (ok, error).",
                &["outcome"],
            )?,
            heartbeats: metrics.counters(
                "berth_agent_heartbeats_total",
                "Heartbeats sent to the scheduler, by outcome (ok, error).",
                &["outcome"],
            )?,
            unclaimed: metrics.gauges(
                "berth_agent_unclaimed_resources",
                "What is on this host with berth's mark but without a document, by kind; it is never touched.",
                &["kind"],
            )?,
            domains: metrics.gauges(
                "berth_agent_domains",
                "Domains of this host, by owner (berth, foreign) and power state.",
                &["owner", "state"],
            )?,
            stuck: metrics.gauge("berth_agent_libvirt_stuck_calls", "Calls to libvirt that hang.")?,
            breaker: metrics.gauges(
                "berth_agent_libvirt_breaker",
                "Whether libvirt is asked (closed), not asked because it did not answer (open), or tried (probing): 1 for the \
                 state that it is in.",
                &["state"],
            )?,
            questions: metrics.counters(
                "berth_agent_questions_total",
                "Questions about instances, by kind and outcome (answered, refused, failed, busy, expired, unusable).",
                &["kind", "outcome"],
            )?,
            images: metrics.gauge("berth_agent_images_cached", "Images in the cache.")?,
            image_evictions: metrics.counters(
                "berth_agent_image_evictions_total",
                "Files that were removed from the image cache, by reason (age, space).",
                &["reason"],
            )?,
            image_bytes: metrics.gauge("berth_agent_images_cached_bytes", "Size of the images in the cache.")?,
            pool_up: metrics.gauges(
                "berth_agent_pool_up",
                "Whether a storage pool works (1) or not (0).",
                &["pool"],
            )?,
            usage,
        })
    }

    /// Where it is told what domains, the pool and the host use.
    #[must_use]
    pub fn usage(&self) -> &UsageFigures {
        &self.usage
    }

    /// So many documents, by kind and status.
    pub fn documents(&self, counts: &BTreeMap<(Kind, &'static str), usize>) {
        self.documents.reset();
        for ((kind, status), count) in counts {
            self.documents
                .with_label_values(&[kind.as_str(), status])
                .set(whole(*count));
        }
    }

    /// A document arrived.
    pub fn received(&self, outcome: &str) {
        self.received.with_label_values(&[outcome]).inc();
    }

    /// A message was unusable.
    pub fn dead(&self) {
        self.dead.inc();
    }

    /// The journal has so many documents.
    pub fn journal(&self, count: usize) {
        self.journal.set(whole(count));
    }

    /// A pass ended.
    pub fn pass(&self, kind: Kind, outcome: &str, seconds: f64) {
        self.passes
            .with_label_values(&[kind.as_str(), outcome])
            .inc();
        self.pass_seconds
            .with_label_values(&[kind.as_str()])
            .observe(seconds);
    }

    /// A pass ended with a fault.
    pub fn pass_error(&self, kind: Kind, code: FaultCode) {
        self.pass_errors
            .with_label_values(&[kind.as_str(), code.as_str()])
            .inc();
    }

    /// A step was carried out, or failed.
    pub fn step(&self, step: &str, done: Result<(), ()>) {
        self.steps.with_label_values(&[step, outcome(done)]).inc();
    }

    /// A report was sent, or not.
    pub fn report(&self, done: Result<(), ()>) {
        self.reports.with_label_values(&[outcome(done)]).inc();
    }

    /// A heartbeat was sent, or not.
    pub fn heartbeat(&self, done: Result<(), ()>) {
        self.heartbeats.with_label_values(&[outcome(done)]).inc();
    }

    /// So much of a kind is there without a document.
    pub fn unclaimed(&self, kind: &str, count: usize) {
        self.unclaimed.with_label_values(&[kind]).set(whole(count));
    }

    /// These domains are there, by owner and state.
    pub fn domains(&self, counts: &BTreeMap<(&'static str, &'static str), usize>) {
        self.domains.reset();
        for ((owner, state), count) in counts {
            self.domains
                .with_label_values(&[owner, state])
                .set(whole(*count));
        }
    }

    /// So many calls to libvirt hang.
    pub fn stuck(&self, count: usize) {
        self.stuck.set(whole(count));
    }

    /// Whether libvirt is asked.
    pub fn breaker(&self, now: BreakerState) {
        for state in BreakerState::ALL {
            self.breaker
                .with_label_values(&[state.as_str()])
                .set(i64::from(state == now));
        }
    }

    /// What became of a question.
    pub fn question(&self, kind: &'static str, outcome: Outcome) {
        self.questions
            .with_label_values(&[kind, outcome.as_str()])
            .inc();
    }

    /// So many more files were removed from the image cache.
    pub fn evicted(&self, reason: Reason, count: u64) {
        self.image_evictions
            .with_label_values(&[reason.as_str()])
            .inc_by(count);
    }

    /// Which storage pools work, by their configured names.
    pub fn pools(&self, pools: &[PoolState]) {
        for pool in pools {
            let up = self.pool_up.with_label_values(&[pool.name.as_str()]);
            up.set(i64::from(pool.report.is_ok()));
        }
    }

    /// The image cache.
    pub fn images(&self, count: usize, size: ByteCount) {
        self.images.set(whole(count));
        self.image_bytes
            .set(i64::try_from(size.get()).unwrap_or(i64::MAX));
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn outcome(done: Result<(), ()>) -> &'static str {
    match done {
        Ok(()) => "ok",
        Err(()) => "error",
    }
}
