//! The scheduler's own figures.

use berth_common::{
    document::Kind,
    refusal::RefusalCode,
    telemetry::registry::{Metrics, MetricsError},
};
use berth_store::Tally;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::liveness::Count;

/// Counters and gauges of one scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerMetrics {
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    placements: IntCounterVec,
    documents: IntCounterVec,
    lagging: IntGauge,
    reports: IntCounter,
    heartbeats: IntCounter,
    host_conflicts: IntCounter,
    dead: IntCounterVec,
    hosts: IntGaugeVec,
    batches: Histogram,
    relocations: IntCounter,
    leader: IntGauge,
    epoch: IntGauge,
    statements: IntCounter,
    rows: IntCounter,
}

impl SchedulerMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is taken, which no configuration can cause.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        Ok(Self {
            requests: metrics.counters(
                "berth_scheduler_requests_total",
                "Requests answered, by method and outcome (ok, or the code of the refusal).",
                &["method", "outcome"],
            )?,
            request_seconds: metrics.histograms(
                "berth_scheduler_request_duration_seconds",
                "Time from taking a request off its queue to its commit.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0],
                &["method"],
            )?,
            placements: metrics.counters(
                "berth_scheduler_placements_total",
                "Placement decisions, by outcome (placed, no_valid_host).",
                &["outcome"],
            )?,
            documents: metrics.counters(
                "berth_scheduler_documents_published_total",
                "Documents published to hosts, by kind.",
                &["kind"],
            )?,
            lagging: metrics.gauge(
                "berth_scheduler_documents_lagging",
                "Documents whose host has not confirmed their generation.",
            )?,
            reports: metrics.counter(
                "berth_scheduler_reports_total",
                "Reports of hosts that were written down.",
            )?,
            heartbeats: metrics
                .counter("berth_scheduler_heartbeats_total", "Heartbeats of hosts.")?,
            host_conflicts: metrics.counter(
                "berth_scheduler_host_conflicts_total",
                "Heartbeats of hosts whose name another host has.",
            )?,
            dead: metrics.counters(
                "berth_scheduler_dead_messages_total",
                "Messages that were unusable and went to berth.dead, by queue.",
                &["queue"],
            )?,
            hosts: metrics.gauges(
                "berth_scheduler_hosts",
                "Hosts, by state (up, down, suspected: silent with so many others that the scheduler suspects itself).",
                &["state"],
            )?,
            batches: metrics.histogram(
                "berth_scheduler_batch_requests",
                "Requests that were served together.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
            )?,
            relocations: metrics.counter(
                "berth_scheduler_relocations_total",
                "Instances that moved on because a host could not build them.",
            )?,
            leader: metrics.gauge(
                "berth_scheduler_leader",
                "Whether this scheduler is the one that decides (1) or stands by (0).",
            )?,
            epoch: metrics.gauge(
                "berth_scheduler_epoch",
                "Which leader this scheduler is or was, counted from 1; 0: none yet.",
            )?,
            statements: metrics.counter(
                "berth_scheduler_database_statements_total",
                "Statements that the database was asked.",
            )?,
            rows: metrics.counter(
                "berth_scheduler_database_rows_read_total",
                "Rows that the database answered with.",
            )?,
        })
    }

    /// A request was answered.
    pub fn request(&self, method: &str, refused: Option<RefusalCode>, seconds: f64) {
        let outcome = refused.map_or("ok", RefusalCode::as_str);
        self.requests.with_label_values(&[method, outcome]).inc();
        self.request_seconds
            .with_label_values(&[method])
            .observe(seconds);
    }

    /// A host was found for an instance.
    pub fn placed(&self) {
        self.placements.with_label_values(&["placed"]).inc();
    }

    /// No host was found for an instance.
    pub fn no_valid_host(&self) {
        self.placements.with_label_values(&["no_valid_host"]).inc();
    }

    /// A document was published.
    pub fn published(&self, kind: Kind) {
        self.documents.with_label_values(&[kind.as_str()]).inc();
    }

    /// So many documents lag.
    pub fn lagging(&self, count: u64) {
        self.lagging.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So much was asked of the database.
    pub fn database(&self, tally: Tally) {
        for (counter, total) in [
            (&self.statements, tally.statements),
            (&self.rows, tally.rows),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// A report was written down.
    pub fn report(&self) {
        self.reports.inc();
    }

    /// A heartbeat came.
    pub fn heartbeat(&self) {
        self.heartbeats.inc();
    }

    /// A host came whose name another host has.
    pub fn host_conflict(&self) {
        self.host_conflicts.inc();
    }

    /// A message was unusable.
    pub fn dead(&self, queue: &str) {
        self.dead.with_label_values(&[queue]).inc();
    }

    /// So many hosts are up, down and suspected.
    pub fn hosts(&self, count: Count) {
        let Count {
            up,
            down,
            suspected,
        } = count;
        for (state, count) in [("up", up), ("down", down), ("suspected", suspected)] {
            self.hosts
                .with_label_values(&[state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// So many requests were served together.
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "a batch is small"
    )]
    pub fn batch(&self, requests: usize) {
        self.batches.observe(requests as f64);
    }

    /// An instance moved on because a host could not build it.
    pub fn relocated(&self) {
        self.relocations.inc();
    }

    /// This scheduler leads, as the leader with this number.
    pub fn leads(&self, epoch: u64) {
        self.leader.set(1);
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }
}
