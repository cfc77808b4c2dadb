//! The scheduler's process.

use std::{
    collections::BTreeMap, net::SocketAddr, path::PathBuf, process::ExitStatus, time::Duration,
};

use anyhow::{Context, ensure};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;

use super::builder::toml;
use crate::{
    binaries, http,
    lab::{Service, Site},
    wait::{Seen, wait_for},
};

const START_LIMIT: Duration = Duration::from_secs(60);

/// One scheduler and its configuration.
#[derive(Debug)]
pub struct Scheduler {
    name: &'static str,
    dir: PathBuf,
    mark: String,
    listen: SocketAddr,
    keys: BTreeMap<String, Value>,
    service: Option<Service>,
    /// How long its log was when it was started last.
    log_before: usize,
}

impl Scheduler {
    pub(super) fn new(
        site: &Site,
        bus_url: &str,
        store_url: &str,
        extra: BTreeMap<String, Value>,
    ) -> Self {
        // Every site has its own address of the loopback network, so the port is free.
        let listen = SocketAddr::from(([127, 99, site.number(), 1], 9781));
        let mut keys: BTreeMap<String, Value> = [
            ("bus.url", Value::from(bus_url)),
            ("store.url", store_url.into()),
            // A busy machine may be late with heartbeats, and a silent host gets nothing.
            ("hosts.heartbeat_timeout_seconds", 30.into()),
            ("dispatch.republish_seconds", 2.into()),
            ("telemetry.listen", listen.to_string().into()),
            ("log.filter", "info,berth_scheduler=debug".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        keys.extend(extra);
        Self {
            name: "scheduler",
            dir: site.dir().to_owned(),
            mark: site.number().to_string(),
            listen,
            keys,
            service: None,
            log_before: 0,
        }
    }

    /// Another one with the same configuration, at an address of its own.
    #[must_use]
    pub fn second(&self) -> Self {
        let mut listen = self.listen;
        listen.set_port(listen.port() + 1);
        let mut keys = self.keys.clone();
        keys.insert("telemetry.listen".to_owned(), listen.to_string().into());
        Self {
            name: "scheduler-2",
            dir: self.dir.clone(),
            mark: self.mark.clone(),
            listen,
            keys,
            service: None,
            log_before: 0,
        }
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// Changes a key of its configuration, for the next start.
    pub fn configure(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.insert(key.to_owned(), value.into());
    }

    /// Starts it. It may take a moment until it serves.
    ///
    /// # Errors
    /// It cannot be started, or runs already.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.service.is_none(), "the {} runs already", self.name);
        let config = self.dir.join(format!("{}.toml", self.name));
        std::fs::write(&config, toml(&self.keys))?;
        let program = binaries::path("berth-scheduler")?.display().to_string();
        let argv = [program.as_str(), "--config", &config.display().to_string()];
        self.log_before = std::fs::read(self.log()).map_or(0, |log| log.len());
        self.service = Some(Service::start(self.name, &argv, &self.log(), &self.mark)?);
        Ok(())
    }

    /// Whether it was started and not stopped since; it may have died by itself.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.service.is_some()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.service.take().context("no scheduler runs")?.kill()
    }

    /// SIGSTOP: it is frozen, as a machine that is paused, until [`Self::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.running()?.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Ok(self.running()?.pid())
    }

    fn running(&self) -> anyhow::Result<&Service> {
        self.service.as_ref().context("no scheduler runs")
    }

    /// Waits until it has ended by itself. Then it can be started again.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the {} to end by itself", self.name);
        let service = self.service.as_mut().context("no scheduler runs")?;
        let status = wait_for(&what, limit, async || {
            Ok(service
                .exited()?
                .map_or_else(|| Seen::NotYet("it runs".to_owned()), Seen::Done))
        })
        .await?;
        self.service = None;
        Ok(status)
    }

    /// Waits until it says that it stands by, since it was started last.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_stands_by(&self) -> anyhow::Result<()> {
        wait_for("the scheduler to stand by", START_LIMIT, async || {
            let log = std::fs::read_to_string(self.log())?;
            let since = log.get(self.log_before..).unwrap_or_default();
            Ok(Seen::when(
                since.contains("standing by"),
                "it has not said so",
            ))
        })
        .await
    }

    /// SIGTERM; it must end in order.
    ///
    /// # Errors
    /// It does not run, or does not end with success.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        self.service
            .take()
            .context("no scheduler runs")?
            .terminate()
            .await
    }

    /// SIGTERM, and started again; waits until it is well.
    ///
    /// # Errors
    /// It does not end or start.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.terminate().await?;
        self.start()?;
        self.wait_healthy().await
    }

    /// Waits until `/healthz` says ok.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_healthy(&self) -> anyhow::Result<()> {
        wait_for("the scheduler to be well", START_LIMIT, async || {
            let (status, body) = self.healthz().await?;
            Ok(Seen::when(status == 200, body))
        })
        .await
    }

    /// Status and body of `/healthz`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn healthz(&self) -> anyhow::Result<(u16, String)> {
        http::get(self.listen, "/healthz").await
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(http::get(self.listen, "/metrics").await?.1)
    }

    /// The value of a metric without labels.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let value = http::metric(self.listen, name).await?;
        value.with_context(|| format!("no metric {name}"))
    }
}
