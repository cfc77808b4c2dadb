//! How the parts of a service are: named components, each fine, starting, or degraded with a
//! reason that a person understands. It reports; it decides nothing.
//!
//! ```text
//!   component("bus") ─▶ starting ─▶ ok ◀─▶ degraded
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, SecondsFormat, Utc};
use prometheus::core::{Collector, Desc};
use prometheus::{IntGaugeVec, Opts, proto};
use serde::{Serialize, Serializer};

use super::registry::{Metrics, MetricsError};

/// How one component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It does its work.
    Ok,
    /// It does not do its work yet.
    Starting {
        /// What it waits for.
        reason: String,
    },
    /// It does not do its work, or not all of it.
    Degraded {
        /// Why, and what happens next.
        reason: String,
    },
}

impl Status {
    /// The word used in `/healthz`.
    pub fn word(&self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Starting { .. } => "starting",
            Status::Degraded { .. } => "degraded",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Status::Ok => None,
            Status::Starting { reason } | Status::Degraded { reason } => Some(reason),
        }
    }
}

/// Each component's status, and since when.
type Components = BTreeMap<String, (Status, DateTime<Utc>)>;

/// The health of a service. Clones are cheap and share the same components.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<RwLock<Components>>,
}

impl Health {
    /// A service without components, which counts as fine.
    pub fn new() -> Self {
        Self::default()
    }

    /// The handle of a component. Asking for a name the first time adds it, as starting.
    pub fn component(&self, name: &str) -> Component {
        let mut components = self
            .components
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        components.entry(name.to_owned()).or_insert_with(|| {
            (
                Status::Starting {
                    reason: "has not reported yet".to_owned(),
                },
                Utc::now(),
            )
        });
        Component {
            health: self.clone(),
            name: name.to_owned(),
        }
    }

    /// How everything is now.
    pub fn report(&self) -> HealthReport {
        let components = self
            .components
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let components: BTreeMap<String, ComponentReport> = components
            .iter()
            .map(|(name, (status, since))| {
                let report = ComponentReport {
                    status: status.word(),
                    reason: status.reason().map(str::to_owned),
                    since: *since,
                };
                (name.clone(), report)
            })
            .collect();
        let ok = components
            .values()
            .all(|component| component.status == "ok");
        HealthReport {
            status: if ok { "ok" } else { "degraded" },
            components,
        }
    }

    /// Adds `berth_component_up{component}` (1 if ok, else 0) to the metrics.
    pub fn export(&self, metrics: &Metrics) -> Result<(), MetricsError> {
        let name = "berth_component_up";
        let help = "Whether a component of this service does its work (1) or not (0).";
        let gauges = IntGaugeVec::new(Opts::new(name, help), &["component"]).map_err(|source| {
            MetricsError::Register {
                name: name.to_owned(),
                source,
            }
        })?;
        metrics.register(
            name,
            Exported {
                health: self.clone(),
                gauges,
            },
        )
    }

    /// Sets a status; `since` moves only when the kind of status changes.
    fn set(&self, name: &str, status: Status, now: DateTime<Utc>) {
        let mut components = self
            .components
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let before = components.get(name).cloned();
        let changed = before
            .as_ref()
            .is_none_or(|(before, _)| before.word() != status.word());
        let since = match before {
            Some((_, since)) if !changed => since,
            _ => now,
        };
        components.insert(name.to_owned(), (status.clone(), since));
        drop(components);
        if changed {
            log(name, &status);
        }
    }
}

/// One line when the kind of status changes, not when only its reason does: a broker that is
/// gone for an hour is one line, not thousands.
fn log(name: &str, status: &Status) {
    match status {
        Status::Ok => tracing::info!(component = name, "component is ok"),
        Status::Starting { reason } => {
            tracing::info!(component = name, reason, "component is starting");
        }
        Status::Degraded { reason } => {
            tracing::warn!(component = name, reason, "component is degraded");
        }
    }
}

/// The handle by which a component says how it is. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Component {
    health: Health,
    name: String,
}

impl Component {
    /// Sets the status. A change of kind is logged, once.
    pub fn set(&self, status: Status) {
        self.health.set(&self.name, status, Utc::now());
    }

    /// It does its work.
    pub fn ok(&self) {
        self.set(Status::Ok);
    }

    /// It does not do its work yet, and waits for something.
    pub fn starting(&self, reason: impl Into<String>) {
        self.set(Status::Starting {
            reason: reason.into(),
        });
    }

    /// It does not do all its work, and why.
    pub fn degraded(&self, reason: impl Into<String>) {
        self.set(Status::Degraded {
            reason: reason.into(),
        });
    }
}

/// What `/healthz` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    /// `ok` if every component is, else `degraded`.
    pub status: &'static str,
    /// All components by name.
    pub components: BTreeMap<String, ComponentReport>,
}

impl HealthReport {
    /// Whether every component is ok.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

/// One component in [`HealthReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentReport {
    /// `ok`, `starting` or `degraded`.
    pub status: &'static str,
    /// Why it is not ok; null if it is.
    pub reason: Option<String>,
    /// When it took this status, in UTC.
    #[serde(serialize_with = "whole_seconds")]
    pub since: DateTime<Utc>,
}

fn whole_seconds<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Health as seen by Prometheus, filled in at each scrape.
struct Exported {
    health: Health,
    gauges: IntGaugeVec,
}

impl Collector for Exported {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.desc()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        for (name, component) in self.health.report().components {
            let up = i64::from(component.status == "ok");
            self.gauges.with_label_values(&[&name]).set(up);
        }
        self.gauges.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    #[test]
    fn a_service_is_ok_only_when_every_component_is() {
        let health = Health::new();
        assert!(health.report().is_ok());
        let bus = health.component("bus");
        let store = health.component("store");
        assert_eq!(health.report().components["bus"].status, "starting");
        bus.ok();
        assert!(!health.report().is_ok());
        store.ok();
        assert!(health.report().is_ok());
        health.clone().component("bus").degraded("gone");
        assert!(!health.report().is_ok());
        assert_eq!(
            health.report().components["bus"].reason.as_deref(),
            Some("gone")
        );
    }

    #[test]
    fn since_moves_only_when_the_kind_of_status_changes() {
        let health = Health::new();
        let degraded = |reason: &str| Status::Degraded {
            reason: reason.to_owned(),
        };
        let since = || health.report().components["bus"].since;
        health.set("bus", degraded("refused"), at(1));
        health.set("bus", degraded("timed out"), at(2));
        assert_eq!(since(), at(1));
        assert_eq!(
            health.report().components["bus"].reason.as_deref(),
            Some("timed out")
        );
        health.set("bus", Status::Ok, at(3));
        assert_eq!(since(), at(3));
        health.set("bus", Status::Ok, at(4));
        assert_eq!(since(), at(3));
    }

    #[test]
    fn the_report_is_this_json() {
        let health = Health::new();
        health.set(
            "bus",
            Status::Degraded {
                reason: "refused".to_owned(),
            },
            at(0),
        );
        health.set("store", Status::Ok, at(1));
        let json = serde_json::to_value(health.report()).unwrap();
        let expected = serde_json::json!({
            "status": "degraded",
            "components": {
                "bus": {
                    "status": "degraded", "reason": "refused", "since": "2023-11-14T22:13:20Z"
                },
                "store": { "status": "ok", "reason": null, "since": "2023-11-14T22:13:21Z" },
            }
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_metrics_show_each_component() {
        let metrics = Metrics::new("test", "1.2.3").unwrap();
        let health = Health::new();
        health.export(&metrics).unwrap();
        health.component("bus").ok();
        health.component("store").degraded("gone");
        let text = metrics.render().unwrap();
        assert!(
            text.contains("berth_component_up{component=\"bus\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("berth_component_up{component=\"store\"} 0\n"),
            "{text}"
        );
    }
}
