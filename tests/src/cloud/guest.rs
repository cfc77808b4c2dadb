//! Looking at a guest from inside its network.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Context;
use berth_common::message::view::InstanceView;
use serde::Deserialize;

use super::TestCloud;
use crate::{
    lab::Hypervisor,
    wait::{Seen, wait_for},
};

/// How long a guest may take to boot, on a machine that emulates several.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// What the guest says of itself on `/cgi-bin/status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GuestStatus {
    /// Its host name.
    pub hostname: String,
    /// The address it got.
    pub address: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Another one after each boot.
    pub boot_id: String,
    /// Its processors.
    pub vcpus: u64,
    /// Its memory.
    pub memory_kib: u64,
    /// The size of its disk.
    pub disk_bytes: u64,
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
    pub fn address_of(instance: &InstanceView) -> anyhow::Result<Ipv4Addr> {
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
        let url = format!("http://{address}/cgi-bin/status");
        let status = wait_for(&format!("{url} to answer"), BOOT_LIMIT, async || {
            let argv = ["curl", "-sS", "--fail", "--max-time", "2", &url];
            let output = hypervisor.exec_in_network(network, &argv).await?;
            if output.status.success() {
                return Ok(Seen::Done(serde_json::from_slice::<GuestStatus>(
                    &output.stdout,
                )?));
            }
            Ok(Seen::NotYet(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        })
        .await?;
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
