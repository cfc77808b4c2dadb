//! A hypervisor made of namespaces, with a libvirt of its own: `scripts/README.md` tells how, by hand.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, ensure};
use berth_common::ids::NetworkId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Service, Site};
use crate::{
    binaries, run,
    wait::{Seen, wait_for},
};

const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How long the kernel may take over the cable of a machine that lost its power.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);
const HOST_SH: &str = include_str!("host.sh");
/// Where the agent serves `/metrics` and `/healthz`.
const TELEMETRY_PORT: u16 = 9782;

/// Whether a hypervisor has a libvirt from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libvirtd {
    /// It runs when the machine is up.
    Running,
    /// It is started by the test.
    Absent,
}

/// One machine.
#[derive(Debug)]
pub struct Hypervisor {
    name: String,
    dir: PathBuf,
    mark: String,
    address: Ipv4Addr,
    bridge: String,
    cable: String,
    /// PID 1, while the machine has power.
    machine: Option<Service>,
    agent: Option<Service>,
    /// The folder of the machine's own that the agent is started from, once one was installed there.
    installed: Option<PathBuf>,
}

impl Hypervisor {
    /// Makes machine number `index` (from 1) of a site and switches it on.
    ///
    /// # Errors
    /// The namespaces cannot be made: these tests need root.
    pub async fn create(site: &Site, index: u8, libvirtd: Libvirtd) -> anyhow::Result<Self> {
        let name = format!("hv{index}");
        let dir = site.dir().join(&name);
        for folder in ["etc", "lib", "log", "cache", "berth"] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        let uuid = uuid::Uuid::new_v4();
        std::fs::write(
            dir.join("etc/libvirtd.conf"),
            format!("host_uuid = \"{uuid}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n"),
        )?;
        std::fs::write(
            dir.join("etc/qemu.conf"),
            "security_driver = \"none\"\ncgroup_controllers = []\n",
        )?;
        let mut hypervisor = Self {
            name,
            dir,
            mark: site.number().to_string(),
            address: site.address(10 + index),
            bridge: site.bridge(),
            cable: site.cable(index),
            machine: None,
            agent: None,
            installed: None,
        };
        hypervisor.boot().await?;
        if libvirtd == Libvirtd::Running {
            hypervisor.start_libvirtd().await?;
        }
        Ok(hypervisor)
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its agent serves `/metrics` and `/healthz`.
    #[must_use]
    pub fn telemetry(&self) -> SocketAddr {
        (self.address, TELEMETRY_PORT).into()
    }

    /// The agent's state directory, seen from outside.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("berth")
    }

    /// The agent's log.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Where the agent's configuration is.
    #[must_use]
    pub fn agent_config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Switches the machine on; its disks are as they were, nothing runs yet.
    ///
    /// # Errors
    /// The namespaces cannot be made.
    pub async fn boot(&mut self) -> anyhow::Result<()> {
        ensure!(self.machine.is_none(), "{} is on already", self.name);
        self.wait_unplugged().await?;
        let dir = self.dir.display().to_string();
        let argv = [
            "unshare",
            "--mount",
            "--uts",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "sh",
            "-c",
            HOST_SH,
            "sh",
            &dir,
            &self.name,
        ];
        let log = self.dir.join("machine.log");
        let machine = Service::start_inside(&self.name, &argv, &log, &self.mark).await?;
        let ready = format!("/proc/{}/root/run/host-ready", machine.pid());
        let pid = machine.pid().to_string();
        self.machine = Some(machine);
        wait_for(&format!("{} to boot", self.name), BOOT_LIMIT, async || {
            Ok(Seen::when(
                Path::new(&ready).exists(),
                std::fs::read_to_string(&log).unwrap_or_default(),
            ))
        })
        .await?;
        run::text(&[
            "ip",
            "link",
            "add",
            &self.cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &pid,
        ])
        .await?;
        run::text(&[
            "ip",
            "link",
            "set",
            &self.cable,
            "master",
            &self.bridge,
            "up",
        ])
        .await?;
        self.text(&[
            "ip",
            "addr",
            "add",
            &format!("{}/24", self.address),
            "dev",
            "eth0",
        ])
        .await?;
        self.text(&["ip", "link", "set", "eth0", "up"]).await?;
        Ok(())
    }

    /// The cable goes with the network namespace of a machine, which the kernel takes apart after its last process.
    async fn wait_unplugged(&self) -> anyhow::Result<()> {
        let link = Path::new("/sys/class/net").join(&self.cable);
        wait_for(
            &format!("{} to be gone", self.cable),
            UNPLUG_LIMIT,
            async || Ok(Seen::when(!link.exists(), "it is there")),
        )
        .await
    }

    /// Everything on the machine ends at once.
    ///
    /// # Errors
    /// It does not.
    pub fn power_cut(&mut self) -> anyhow::Result<()> {
        if let Some(mut machine) = self.machine.take() {
            machine.kill()?;
        }
        // The agent died with its PID namespace; this only collects the door to it.
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
        }
        Ok(())
    }

    /// Starts virtlogd and libvirtd, and waits until libvirt answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn start_libvirtd(&self) -> anyhow::Result<()> {
        if self.pids_of("virtlogd")?.is_empty() {
            self.text(&["virtlogd", "-d"]).await?;
        }
        self.text(&["libvirtd", "-d"]).await?;
        wait_for(
            &format!("libvirt of {}", self.name),
            BOOT_LIMIT,
            async || {
                self.text(&["virsh", "-q", "list", "--all"]).await?;
                Ok(Seen::Done(()))
            },
        )
        .await
    }

    /// SIGKILL for libvirtd; its domains run on.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_libvirtd(&self) -> anyhow::Result<()> {
        let pids = self.pids_of("libvirtd")?;
        ensure!(!pids.is_empty(), "libvirtd does not run on {}", self.name);
        for pid in pids {
            self.text(&["kill", "-KILL", &pid.to_string()]).await?;
        }
        wait_for("libvirtd to be gone", BOOT_LIMIT, async || {
            let left = self.pids_of("libvirtd")?;
            Ok(Seen::when(left.is_empty(), left))
        })
        .await
    }

    /// [`Self::kill_libvirtd`] and [`Self::start_libvirtd`].
    ///
    /// # Errors
    /// As there.
    pub async fn restart_libvirtd(&self) -> anyhow::Result<()> {
        self.kill_libvirtd().await?;
        self.start_libvirtd().await
    }

    /// Starts the agent. It may take a moment until it serves.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn spawn_agent(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.agent.is_none(),
            "the agent of {} runs already",
            self.name
        );
        let program = match &self.installed {
            Some(folder) => folder.join("berth-agent"),
            None => binaries::path("berth-agent")?,
        };
        let program = program.display().to_string();
        let config = self.agent_config().display().to_string();
        let pid = self.pid()?.to_string();
        let argv: Vec<&str> = door(&pid)
            .into_iter()
            .chain([program.as_str(), "--config", &config])
            .collect();
        let name = format!("the agent of {}", self.name);
        self.agent =
            Some(Service::start_inside(&name, &argv, &self.agent_log(), &self.mark).await?);
        Ok(())
    }

    /// Puts an agent with what it starts into a folder of the machine's own, as an upgrade does: the one that runs goes on, the next
    /// one is started from there.
    ///
    /// # Errors
    /// The programs were not built, or cannot be copied.
    pub fn install_agent(&mut self) -> anyhow::Result<()> {
        let folder = self.dir.join("bin");
        std::fs::create_dir_all(&folder)?;
        for name in ["berth-agent", "berth-metadata"] {
            let fresh = folder.join(format!("{name}.new"));
            std::fs::copy(binaries::path(name)?, &fresh)?;
            std::fs::rename(&fresh, folder.join(name))?;
        }
        self.installed = Some(folder);
        Ok(())
    }

    /// The links of a running domain's NICs.
    ///
    /// # Errors
    /// libvirt does not answer.
    pub async fn links(&self, domain: &str) -> anyhow::Result<Vec<String>> {
        let text = self.text(&["virsh", "-q", "domiflist", domain]).await?;
        let links = text
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        Ok(links.map(str::to_owned).collect())
    }

    /// The first of them.
    ///
    /// # Errors
    /// libvirt does not answer, or there is none.
    pub async fn first_link(&self, domain: &str) -> anyhow::Result<String> {
        let links = self.links(domain).await?.into_iter().next();
        links.with_context(|| format!("{domain} has no NIC"))
    }

    /// How many bytes a link of the machine has sent.
    ///
    /// # Errors
    /// There is none.
    pub fn sent_bytes(&self, link: &str) -> anyhow::Result<u64> {
        let root = format!("/proc/{}/root", self.pid()?);
        let path = format!("{root}/sys/class/net/{link}/statistics/tx_bytes");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(text.trim().parse()?)
    }

    /// Whether an agent was started and not stopped since; it may have died by itself.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// SIGKILL for the agent.
    ///
    /// # Errors
    /// It runs not, or does not end.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent
            .take()
            .with_context(|| format!("no agent runs on {}", self.name))?
            .kill()
    }

    /// SIGTERM for the agent, which must end in order.
    ///
    /// # Errors
    /// It runs not, or does not end with success.
    pub async fn terminate_agent(&mut self) -> anyhow::Result<()> {
        self.agent
            .take()
            .with_context(|| format!("no agent runs on {}", self.name))?
            .terminate()
            .await
    }

    /// Runs a program on the machine.
    ///
    /// # Errors
    /// It cannot be started or takes too long.
    pub async fn exec(&self, argv: &[&str]) -> anyhow::Result<Output> {
        let pid = self.pid()?.to_string();
        run::output(&[&door(&pid), argv].concat()).await
    }

    /// Runs a program on the machine that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub async fn text(&self, argv: &[&str]) -> anyhow::Result<String> {
        run::checked(argv, &self.exec(argv).await?)
    }

    /// Runs a program in the DHCP namespace of a network on the machine.
    ///
    /// # Errors
    /// It cannot be started or takes too long.
    pub async fn exec_in_network(
        &self,
        network: NetworkId,
        argv: &[&str],
    ) -> anyhow::Result<Output> {
        let namespace = format!("berth-{network}");
        self.exec(&[&["ip", "netns", "exec", &namespace], argv].concat())
            .await
    }

    /// Runs a program there that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub async fn text_in_network(
        &self,
        network: NetworkId,
        argv: &[&str],
    ) -> anyhow::Result<String> {
        run::checked(argv, &self.exec_in_network(network, argv).await?)
    }

    /// Starts a long-running program in the DHCP namespace of a network, with its output in a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_in_network(
        &self,
        network: NetworkId,
        argv: &[&str],
        log: &Path,
    ) -> anyhow::Result<Service> {
        let (pid, namespace) = (self.pid()?.to_string(), format!("berth-{network}"));
        let argv = [&door(&pid), &["ip", "netns", "exec", &namespace][..], argv].concat();
        Service::start_inside(argv.last().unwrap_or(&"a program"), &argv, log, &self.mark).await
    }

    /// Starts a long-running program on the machine, with its output in a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_watching(&self, argv: &[&str], log: &Path) -> anyhow::Result<Service> {
        let pid = self.pid()?.to_string();
        let argv = [&door(&pid)[..], argv].concat();
        Service::start_inside(argv.last().unwrap_or(&"a program"), &argv, log, &self.mark).await
    }

    /// The process of the agent, seen from outside.
    ///
    /// # Errors
    /// It was not started.
    pub fn agent_pid(&self) -> anyhow::Result<i32> {
        let agent = self.agent.as_ref();
        Ok(agent
            .with_context(|| format!("no agent runs on {}", self.name))?
            .pid()
            .as_raw())
    }

    /// The names of libvirt's domains, running or not.
    ///
    /// # Errors
    /// libvirt does not answer.
    pub async fn domains(&self) -> anyhow::Result<Vec<String>> {
        let text = self
            .text(&["virsh", "-q", "list", "--all", "--name"])
            .await?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Process ids, as the machine sees them, of all processes with this name (cut to 15 bytes by the kernel).
    ///
    /// # Errors
    /// The machine is off.
    pub fn pids_of(&self, name: &str) -> anyhow::Result<Vec<u32>> {
        let name = name.get(..15).unwrap_or(name);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/root/proc", self.pid()?))? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            // pid (name) state …: a zombie holds nothing any more.
            let is_zombie = stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z'));
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.trim_end() == name && !is_zombie {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The names of the files of volumes, and of the marks that they were made.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn volume_files(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in ["volumes", "made"] {
            found.extend(names(&self.state_dir().join(folder).display().to_string())?);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// What of berth is left on the machine, in words; empty when nothing is.
    ///
    /// # Errors
    /// The machine or its libvirt does not answer.
    pub async fn remains(&self) -> anyhow::Result<Vec<String>> {
        let mut remains = Vec::new();
        let mut add =
            |what: &str, name: &str| remains.push(format!("{}: {what} {name}", self.name));
        for domain in self
            .domains()
            .await?
            .iter()
            .filter(|name| name.starts_with("berth-"))
        {
            add("domain", domain);
        }
        let root = format!("/proc/{}/root", self.pid()?);
        for link in names(&format!("{root}/sys/class/net"))?
            .iter()
            .filter(|name| name.starts_with("bt"))
        {
            add("link", link);
        }
        for namespace in names(&format!("{root}/run/netns"))?
            .iter()
            .filter(|name| name.starts_with("berth-"))
        {
            add("namespace", namespace);
        }
        let tables = self.text(&["nft", "list", "tables"]).await?;
        for table in tables.lines().filter(|line| line.contains("berth")) {
            add("of nftables:", table);
        }
        for folder in [
            "instances",
            "networks",
            "volumes",
            "snapshots",
            "made",
            "metadata",
            "nat",
            "routers",
        ] {
            // What says which disk a storage pool is on stays as long as the pool does.
            let files = names(&self.state_dir().join(folder).display().to_string())?;
            for file in files.iter().filter(|name| !name.starts_with("pool-")) {
                add(&format!("file in {folder}/:"), file);
            }
        }
        for program in ["dnsmasq", "berth-metadata", "qemu-img"] {
            for pid in self.pids_of(program)? {
                add(&format!("process {program}"), &pid.to_string());
            }
        }
        let domains = self
            .text(&["virsh", "-q", "list", "--name"])
            .await?
            .split_whitespace()
            .count();
        let guests = self.pids_of("qemu-system-x86_64")?;
        if guests.len() > domains {
            add("QEMU without a domain, among", &format!("{guests:?}"));
        }
        Ok(remains)
    }

    /// PID 1 of the machine, seen from outside.
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Ok(self
            .machine
            .as_ref()
            .with_context(|| format!("{} is off", self.name))?
            .pid())
    }
}

/// Sends SIGINT to a service, for programs that print a summary then.
///
/// # Errors
/// It is gone.
pub fn interrupt(service: &Service) -> anyhow::Result<()> {
    Ok(kill(service.pid(), Signal::SIGINT)?)
}

/// The way into a machine.
fn door(pid: &str) -> [&str; 8] {
    [
        "nsenter", "-t", pid, "--mount", "--uts", "--net", "--pid", "--",
    ]
}

/// Names in a folder; none when it is not there.
fn names(folder: &str) -> anyhow::Result<Vec<String>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {folder}")),
    }
}
