//! What a running service tells the people who run it.
//!
//! - [`logging`]: lines for people and journald, started once, first of all.
//! - [`registry`]: numbers for Prometheus; [`process`] adds those of the process itself.
//! - [`health`]: named components, each fine, starting, or degraded with a reason.
//! - [`http`]: `/metrics`, `/healthz` and `/livez` on one address.
//! - [`trace`]: the W3C trace context that follows a request through the bus.
//!
//! Telemetry must never be the reason why a service stops: logging falls back, a trace context
//! that cannot be read is none. Only a mistake of the operator, such as a filter that means
//! nothing or an address in use, is an error, and it says what to change.
//!
//! ```no_run
//! # use berth_common::telemetry::*;
//! # use tokio_util::sync::CancellationToken;
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! logging::init(&logging::LogConfig::default())?;
//! let metrics = registry::Metrics::new("berth-agent", env!("CARGO_PKG_VERSION"))?;
//! let created = metrics.counter("berth_agent_created_total", "Instances created.")?;
//! let health = health::Health::new();
//! health.export(&metrics)?;
//! let bus = health.component("bus");
//!
//! let listener = http::bind("127.0.0.1:9102".parse()?).await?;
//! let shutdown = CancellationToken::new();
//! tokio::spawn(http::serve(listener, metrics, health, shutdown.clone()));
//!
//! bus.ok();
//! created.inc();
//! bus.degraded("the broker refused the connection; next try in 4 s");
//! # Ok(()) }
//! ```

pub mod health;
pub mod http;
pub mod logging;
pub mod process;
pub mod registry;
pub mod trace;

use std::error::Error;

/// An error and what caused it, as `a: b: c`. A cause that the text before it already ends
/// with is not repeated.
///
/// ```
/// # use berth_common::telemetry::error_chain;
/// #[derive(Debug, thiserror::Error)]
/// #[error("cannot read the journal")]
/// struct Journal(#[source] std::io::Error);
///
/// let error = Journal(std::io::Error::other("disk full"));
/// assert_eq!(error_chain(&error), "cannot read the journal: disk full");
/// ```
pub fn error_chain(error: &dyn Error) -> String {
    let mut chain = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !chain.ends_with(&text) {
            chain.push_str(": ");
            chain.push_str(&text);
        }
        cause = error.source();
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&'static str]) -> Link {
        let (first, rest) = texts.split_first().unwrap();
        let source = (!rest.is_empty()).then(|| Box::new(chain(rest)));
        Link {
            text: first,
            source,
        }
    }

    #[test]
    fn causes_follow_without_repeats() {
        let check = |texts: &[&'static str], expected| {
            assert_eq!(error_chain(&chain(texts)), expected);
        };
        check(&["a"], "a");
        check(&["a", "b", "c"], "a: b: c");
        check(&["a", "a", "b"], "a: b");
        check(
            &["open: denied", "denied", "os error 13"],
            "open: denied: os error 13",
        );
    }
}
