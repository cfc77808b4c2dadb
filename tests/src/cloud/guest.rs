//! Looking at a guest from inside its network.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::Context;
use berth_common::message::view::InstanceView;
use serde::{Deserialize, de::DeserializeOwned};

use super::TestCloud;
use crate::{
    lab::Hypervisor,
    wait::{Seen, wait_for},
};

/// How long a guest may take to boot, on a machine that emulates several.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// What `ssh` ends with when it did not get as far as running anything.
pub const NOT_LOGGED_IN: i32 = 255;

/// What the guest says of itself on `/cgi-bin/status`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GuestStatus {
    /// Its host name.
    pub hostname: String,
    /// The address it got.
    pub address: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Another one after each boot.
    pub boot_id: String,
    /// For how long it has been running, by its own clock.
    pub uptime_seconds: f64,
    /// Its processors.
    pub vcpus: u64,
    /// Its memory.
    pub memory_kib: u64,
    /// The size of its disk.
    pub disk_bytes: u64,
}

/// What a guest keeps in its memory or at the beginning of one of its disks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Whether there is such a place.
    pub there: bool,
    /// The size of the disk.
    pub bytes: u64,
    /// Whether the disk cannot be written to.
    pub read_only: bool,
    /// The disk's serial number.
    pub serial: String,
    /// The word that is kept there.
    pub word: String,
    /// Why a word could not be kept, if it could not.
    pub failed: String,
}

impl TestCloud {
    /// The hypervisor an instance is on.
    ///
    /// # Errors
    /// It is on none.
    pub fn hypervisor_of(&self, instance: &InstanceView) -> anyhow::Result<&Hypervisor> {
        let name = instance
            .host
            .as_ref()
            .context("the instance is on no host")?;
        self.hypervisors
            .iter()
            .find(|hypervisor| hypervisor.name() == name.as_str())
            .with_context(|| format!("there is no hypervisor {name}"))
    }

    /// The address of an instance's first port.
    ///
    /// # Errors
    /// It has none.
    pub fn address_of(instance: &InstanceView) -> anyhow::Result<IpAddr> {
        let port = instance.ports.first().context("the instance has no port")?;
        Ok(port
            .fixed_ips
            .first()
            .context("the port has no address")?
            .ip_address)
    }

    /// Waits until the guest answers HTTP and ping at the address of its first port; both are asked from the
    /// network's DHCP namespace.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn guest_answers(&self, instance: &InstanceView) -> anyhow::Result<GuestStatus> {
        let hypervisor = self.hypervisor_of(instance)?;
        let network = instance
            .ports
            .first()
            .context("the instance has no port")?
            .network_id;
        let address = Self::address_of(instance)?;
        let status = self.ask_guest(instance, "status").await?;
        let ping = [
            "ping",
            "-n",
            "-c",
            "3",
            "-i",
            "0.1",
            "-W",
            "2",
            &address.to_string(),
        ];
        let output = hypervisor.exec_in_network(network, &ping).await?;
        crate::run::checked(&ping, &output)?;
        Ok(status)
    }

    /// What a guest keeps at a place: `memory`, or a disk like `vdb`.
    ///
    /// # Errors
    /// The guest does not answer in time.
    pub async fn kept(&self, instance: &InstanceView, place: &str) -> anyhow::Result<Kept> {
        self.ask_guest(instance, &format!("keep?{place}")).await
    }

    /// Gives a guest a word to keep at a place.
    ///
    /// # Errors
    /// The guest does not answer in time.
    pub async fn keep(
        &self,
        instance: &InstanceView,
        place: &str,
        word: &str,
    ) -> anyhow::Result<Kept> {
        self.ask_guest(instance, &format!("keep?{place}={word}"))
            .await
    }

    /// Lets a guest tell one of its disks that it needs nothing of it any more.
    ///
    /// # Errors
    /// The guest does not answer in time.
    pub async fn discard(&self, instance: &InstanceView, disk: &str) -> anyhow::Result<Kept> {
        self.keep(instance, disk, "--discard").await
    }

    /// A file of the config drive, as the guest reads it; empty when there is none.
    ///
    /// # Errors
    /// The guest does not answer in time.
    pub async fn config_file(&self, instance: &InstanceView, path: &str) -> anyhow::Result<String> {
        let bytes = self.fetch(instance, &format!("config?{path}")).await?;
        Ok(String::from_utf8(bytes)?)
    }

    /// A new SSH key: where it is, and its public half. A guest lets it in that was told that one.
    ///
    /// # Errors
    /// There is no `ssh-keygen`.
    pub async fn new_key(&self, name: &str) -> anyhow::Result<(PathBuf, String)> {
        let path = self.site.dir().join(format!("key-{name}"));
        // A guest of this name may have had one before.
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        let file = path.display().to_string();
        let argv = [
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            name,
            "-f",
            &file,
        ];
        crate::run::text(&argv).await?;
        let public = std::fs::read_to_string(path.with_extension("pub"))?;
        Ok((path, public.trim().to_owned()))
    }

    /// Runs a line of shell in the guest, which must succeed; answers what it prints. It comes over SSH from its network's DHCP
    /// namespace, with a key, which may be in the guest a little later than its address.
    ///
    /// # Errors
    /// It fails, or the key opens nothing in time.
    pub async fn in_guest(
        &self,
        instance: &InstanceView,
        key: &Path,
        script: &str,
    ) -> anyhow::Result<String> {
        let what = format!("the key to let somebody into {}", instance.name);
        wait_for(&what, BOOT_LIMIT, async || {
            let output = self.log_in(instance, key, script).await?;
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            let said = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
            Ok(match output.status.code() {
                Some(0) => Seen::Done(stdout),
                Some(NOT_LOGGED_IN) | None => Seen::NotYet(said),
                Some(code) => Seen::Never(format!("{script:?} ended with {code}: {said}")),
            })
        })
        .await
    }

    /// The same, once, however it ends: with [`NOT_LOGGED_IN`] where the key opens nothing.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn log_in(
        &self,
        instance: &InstanceView,
        key: &Path,
        script: &str,
    ) -> anyhow::Result<Output> {
        let hypervisor = self.hypervisor_of(instance)?;
        let port = instance.ports.first().context("the instance has no port")?;
        let user = format!("root@{}", Self::address_of(instance)?);
        let key = key.display().to_string();
        let options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
        ];
        let mut argv = vec!["ssh", "-i", &key];
        argv.extend(options.iter().flat_map(|option| ["-o", *option]));
        argv.extend([user.as_str(), script]);
        hypervisor.exec_in_network(port.network_id, &argv).await
    }

    async fn ask_guest<T: DeserializeOwned>(
        &self,
        instance: &InstanceView,
        question: &str,
    ) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(
            &self.fetch(instance, question).await?,
        )?)
    }

    async fn fetch(&self, instance: &InstanceView, question: &str) -> anyhow::Result<Vec<u8>> {
        let hypervisor = self.hypervisor_of(instance)?;
        let network = instance
            .ports
            .first()
            .context("the instance has no port")?
            .network_id;
        let url = format!("http://{}/cgi-bin/{question}", Self::address_of(instance)?);
        wait_for(&format!("{url} to answer"), BOOT_LIMIT, async || {
            let argv = ["curl", "-sS", "--fail", "--max-time", "2", &url];
            let output = hypervisor.exec_in_network(network, &argv).await?;
            if output.status.success() {
                return Ok(Seen::Done(output.stdout));
            }
            Ok(Seen::NotYet(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        })
        .await
    }

    /// What the guest printed on its serial console.
    ///
    /// # Errors
    /// There is no log.
    pub fn console_log(&self, instance: &InstanceView) -> anyhow::Result<String> {
        let folder = self
            .hypervisor_of(instance)?
            .state_dir()
            .join("instances")
            .join(instance.id.to_string());
        let path = folder.join("console.log");
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
