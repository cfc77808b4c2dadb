//! The metrics of one service: a Prometheus registry that holds every name to the same rules.
//! It knows no metric of any service; each part makes its own here and keeps the handle.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::process::ProcessCollector;

/// What every name of ours starts with.
const PREFIX: &str = "berth_";

/// What is wrong with a metric. All but [`MetricsError::Render`] are mistakes in the program.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The name or the help text breaks a rule.
    #[error("metric {name:?}: {rule}")]
    Rule {
        /// The name given.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// The registry does not take it.
    #[error("cannot register metric {name}")]
    Register {
        /// The name given.
        name: String,
        /// What the registry says.
        source: prometheus::Error,
    },
    /// The metrics cannot be written as text.
    #[error("cannot write the metrics")]
    Render(#[source] prometheus::Error),
}

/// A registry of metrics. Clones are cheap and share the same metrics.
///
/// Names are given in full, so that a search for one finds where it is made. Rules: names start
/// with `berth_`, hold only lower case letters, digits and `_`, end in `_total` if and only if
/// they are counters, and have a help text. What already has a name of its own everywhere, the
/// `process_*` figures, keeps it.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry with the metrics of the process and `berth_build_info{component,version}`.
    pub fn new(component: &str, version: &str) -> Result<Self, MetricsError> {
        let metrics = Metrics {
            registry: Registry::new(),
        };
        let process = ProcessCollector::new().map_err(|source| MetricsError::Register {
            name: "process_*".to_owned(),
            source,
        })?;
        metrics.register("process_*", process)?;
        let info = metrics.gauges(
            "berth_build_info",
            "Always 1; the labels say what runs here.",
            &["component", "version"],
        )?;
        info.with_label_values(&[component, version]).set(1);
        Ok(metrics)
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricsError> {
        self.make(counter_rules(name, help)?, IntCounter::with_opts)
    }

    /// A counter per combination of labels.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, MetricsError> {
        self.make(counter_rules(name, help)?, |opts| {
            IntCounterVec::new(opts, labels)
        })
    }

    /// A gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.make(other_rules(name, help)?, IntGauge::with_opts)
    }

    /// A gauge of whole numbers per combination of labels.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, MetricsError> {
        self.make(other_rules(name, help)?, |opts| {
            IntGaugeVec::new(opts, labels)
        })
    }

    /// A gauge of decimals.
    pub fn decimal_gauge(&self, name: &str, help: &str) -> Result<Gauge, MetricsError> {
        self.make(other_rules(name, help)?, Gauge::with_opts)
    }

    /// A gauge of decimals per combination of labels.
    pub fn decimal_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, MetricsError> {
        self.make(other_rules(name, help)?, |opts| GaugeVec::new(opts, labels))
    }

    /// A histogram; `buckets` are upper bounds, in the unit that the name ends in.
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, MetricsError> {
        self.make(other_rules(name, help)?, |opts| {
            Histogram::with_opts(HistogramOpts::from(opts).buckets(buckets.to_vec()))
        })
    }

    /// A histogram per combination of labels.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, MetricsError> {
        self.make(other_rules(name, help)?, |opts| {
            HistogramVec::new(HistogramOpts::from(opts).buckets(buckets.to_vec()), labels)
        })
    }

    /// Adds a collector that works its figures out at each scrape. `name` is for the error.
    pub fn register(
        &self,
        name: &str,
        collector: impl Collector + 'static,
    ) -> Result<(), MetricsError> {
        self.registry
            .register(Box::new(collector))
            .map_err(|source| MetricsError::Register {
                name: name.to_owned(),
                source,
            })
    }

    /// All metrics in Prometheus' text format 0.0.4.
    pub fn render(&self) -> Result<String, MetricsError> {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .map_err(MetricsError::Render)
    }

    fn make<C: Collector + Clone + 'static>(
        &self,
        opts: Opts,
        new: impl FnOnce(Opts) -> prometheus::Result<C>,
    ) -> Result<C, MetricsError> {
        let name = opts.name.clone();
        let metric = new(opts).map_err(|source| MetricsError::Register {
            name: name.clone(),
            source,
        })?;
        self.register(&name, metric.clone())?;
        Ok(metric)
    }
}

fn counter_rules(name: &str, help: &str) -> Result<Opts, MetricsError> {
    if !name.ends_with("_total") {
        return broken(name, "a counter's name ends in _total");
    }
    common_rules(name, help)
}

fn other_rules(name: &str, help: &str) -> Result<Opts, MetricsError> {
    if name.ends_with("_total") {
        return broken(name, "only a counter's name ends in _total");
    }
    common_rules(name, help)
}

fn common_rules(name: &str, help: &str) -> Result<Opts, MetricsError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with(PREFIX) {
        return broken(name, "a name starts with berth_");
    }
    if !name.chars().all(plain) {
        return broken(name, "a name holds only lower case letters, digits and _");
    }
    if help.trim().is_empty() {
        return broken(name, "a help text is mandatory");
    }
    Ok(Opts::new(name, help))
}

fn broken<T>(name: &str, rule: &'static str) -> Result<T, MetricsError> {
    Err(MetricsError::Rule {
        name: name.to_owned(),
        rule,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new("berth-test", "1.2.3").unwrap()
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = metrics();
        metrics.counter("berth_a_total", "A.").unwrap().inc_by(3);
        metrics
            .counters("berth_b_total", "B.", &["kind"])
            .unwrap()
            .with_label_values(&["x"])
            .inc();
        metrics.gauge("berth_c", "C.").unwrap().set(-4);
        metrics
            .decimal_gauge("berth_d_ratio", "D.")
            .unwrap()
            .set(0.5);
        metrics
            .histogram("berth_e_seconds", "E.", &[0.1, 1.0])
            .unwrap()
            .observe(0.2);
        let text = metrics.render().unwrap();
        for line in [
            "# HELP berth_a_total A.",
            "# TYPE berth_a_total counter",
            "berth_a_total 3",
            "berth_b_total{kind=\"x\"} 1",
            "berth_c -4",
            "berth_d_ratio 0.5",
            "berth_e_seconds_bucket{le=\"0.1\"} 0",
            "berth_e_seconds_bucket{le=\"1\"} 1",
            "berth_build_info{component=\"berth-test\",version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in:\n{text}");
        }
    }

    #[test]
    fn names_and_help_texts_are_held_to_the_rules() {
        let metrics = metrics();
        let check = |result: Result<(), MetricsError>, expected: &str| {
            assert_eq!(result.unwrap_err().to_string(), expected);
        };
        let counter = |name, help| metrics.counter(name, help).map(drop);
        let gauge = |name, help| metrics.gauge(name, help).map(drop);
        check(
            counter("berth_a", "A."),
            "metric \"berth_a\": a counter's name ends in _total",
        );
        check(
            counter("a_total", "A."),
            "metric \"a_total\": a name starts with berth_",
        );
        check(
            counter("berth_a_total", " "),
            "metric \"berth_a_total\": a help text is mandatory",
        );
        check(
            gauge("berth_a_total", "A."),
            "metric \"berth_a_total\": only a counter's name ends in _total",
        );
        check(
            gauge("berth_A b", "A."),
            "metric \"berth_A b\": a name holds only lower case letters, digits and _",
        );
        gauge("berth_a", "A.").unwrap();
        check(gauge("berth_a", "A."), "cannot register metric berth_a");
    }
}
