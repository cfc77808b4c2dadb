//! Simulated hypervisors: `berth-agent-sim` as a process of the cloud. They cost a few threads, not a machine each.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use berth_common::{
    document::{ImageFormat, ImageRef},
    message::view::{HostState, HostView},
};
use serde_json::Value;

use super::TestCloud;
use crate::{
    binaries,
    lab::{Service, Site},
    wait::{Seen, wait_for},
};

/// How long it may take until what runs on simulated hosts is what has claims there.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// Where the journals are: in memory, so that hundreds of them do not measure a disk.
const IN_MEMORY: &str = "/dev/shm";

/// Simulated hypervisors of one kind, all in one process.
#[derive(Debug, Clone)]
pub struct Sims {
    /// They are named `<prefix>-0001` and so on.
    pub prefix: String,
    /// How many.
    pub count: usize,
    /// Processors of each.
    pub vcpus: u64,
    /// Memory of each in MiB.
    pub memory_mb: u64,
    /// Disk of each in GiB.
    pub disk_gb: u64,
    /// So many of them, the first ones, have a disk that takes nothing.
    pub broken: usize,
}

impl Default for Sims {
    fn default() -> Self {
        Self {
            prefix: "sim".to_owned(),
            count: 1,
            vcpus: 16,
            memory_mb: 65_536,
            disk_gb: 1000,
            broken: 0,
        }
    }
}

impl Sims {
    /// So many hosts, of the usual size.
    #[must_use]
    pub fn of(count: usize) -> Self {
        Self {
            count,
            ..Self::default()
        }
    }
}

/// A running simulation.
#[derive(Debug)]
pub struct SimAgents {
    sims: Sims,
    state_dir: PathBuf,
    log: PathBuf,
    service: Option<Service>,
}

impl SimAgents {
    pub(super) fn start(sims: Sims, site: &Site, bus_url: &str) -> anyhow::Result<Self> {
        let mark = site.number().to_string();
        let state_dir = Path::new(IN_MEMORY).join(format!("berth-lab-{mark}-{}", sims.prefix));
        // Left over from a test that was killed.
        remove(&state_dir)?;
        let log = site.dir().join(format!("{}.log", sims.prefix));
        let program = binaries::path("berth-agent-sim")?.display().to_string();
        let state = state_dir.display().to_string();
        let numbers = [
            ("--count", sims.count.to_string()),
            ("--vcpus", sims.vcpus.to_string()),
            ("--memory-mb", sims.memory_mb.to_string()),
            ("--disk-gb", sims.disk_gb.to_string()),
            ("--broken", sims.broken.to_string()),
        ];
        let mut argv = vec![program.as_str()];
        argv.extend(["--bus-url", bus_url, "--name-prefix", &sims.prefix]);
        argv.extend(["--heartbeat-seconds", "1", "--connections", "2"]);
        argv.extend(["--state-dir", &state, "--log", "info,lapin=error"]);
        for (option, number) in &numbers {
            argv.extend([option, number.as_str()]);
        }
        let service = Service::start("the simulated agents", &argv, &log, &mark)?;
        Ok(Self {
            sims,
            state_dir,
            log,
            service: Some(service),
        })
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How many hosts.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sims.count
    }

    /// The names of its hosts.
    #[must_use]
    pub fn host_names(&self) -> Vec<String> {
        (1..=self.sims.count)
            .map(|number| format!("{}-{number:04}", self.sims.prefix))
            .collect()
    }

    /// SIGTERM; it must end in order. Its journals are left for a look.
    ///
    /// # Errors
    /// It does not run, or does not end with success.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        self.service
            .take()
            .context("no simulated agents run")?
            .terminate()
            .await
    }

    /// Ends it, and removes its journals.
    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        if let Some(mut service) = self.service.take() {
            service.kill()?;
        }
        remove(&self.state_dir)
    }

    /// The ids of the instances that each of its hosts has been told to have: what its journal says.
    ///
    /// # Errors
    /// A journal cannot be read.
    pub fn told(&self) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
        let mut told = BTreeMap::new();
        for host in self.host_names() {
            let ids = instances_of(&self.state_dir.join(&host).join("journal"))?;
            told.insert(host, ids);
        }
        Ok(told)
    }
}

impl Drop for SimAgents {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The instances of a journal that are no tombstones.
fn instances_of(journal: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    let entries =
        std::fs::read_dir(journal).with_context(|| format!("no journal {}", journal.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(id) = name
            .strip_prefix("instance-")
            .and_then(|rest| rest.strip_suffix(".json"))
        else {
            continue;
        };
        let record: Value = serde_json::from_slice(&std::fs::read(&path)?)
            .with_context(|| path.display().to_string())?;
        let document = record.get("document").context("no document")?;
        if !document.get("spec").is_none_or(Value::is_null) {
            ids.insert(id.to_owned());
        }
    }
    Ok(ids)
}

/// An image that exists in no place but the mind of simulated hosts.
///
/// # Errors
/// Never, as far as anybody knows.
pub fn imaginary_image() -> anyhow::Result<ImageRef> {
    Ok(ImageRef {
        url: "file:///var/lib/berth-images/imaginary.qcow2".parse()?,
        sha256: "5eed".repeat(16).parse()?,
        format: ImageFormat::Qcow2,
    })
}

impl TestCloud {
    /// Waits until on each host as many vCPUs run as its instances have claimed: one domain for each, on the host of
    /// its claim and on no other. For clouds of simulated hosts, whose instances all shall run.
    ///
    /// # Errors
    /// They do not in time.
    pub async fn wait_all_run(&self, instances: u64) -> anyhow::Result<Vec<HostView>> {
        let what = format!("{instances} instances to run where they have their claims");
        wait_for(&what, SETTLE_LIMIT, async || {
            let hosts = self.hosts().await?;
            let claims: u64 = hosts.iter().map(|host| host.instances).sum();
            let seen: Vec<_> = hosts
                .iter()
                .filter(|host| {
                    host.used_now.vcpus != host.used_max.vcpus || host.state != HostState::Up
                })
                .map(|host| (&host.name, host.used_now.vcpus, host.used_max.vcpus))
                .collect();
            if claims == instances && seen.is_empty() {
                return Ok(Seen::Done(hosts));
            }
            Ok(Seen::NotYet(format!(
                "{claims} claims; hosts where less or more runs: {seen:?}"
            )))
        })
        .await
    }

    /// The host that has been told of each instance.
    ///
    /// # Errors
    /// Two hosts have been told of one instance, or a journal cannot be read.
    pub fn told_once(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut on = BTreeMap::new();
        for sims in &self.sims {
            for (host, ids) in sims.told()? {
                for id in ids {
                    let before = on.insert(id.clone(), host.clone());
                    ensure!(
                        before.is_none(),
                        "both {host} and {before:?} have instance {id}"
                    );
                }
            }
        }
        Ok(on)
    }
}
