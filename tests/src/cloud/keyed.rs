//! Guests that let somebody in by a key: what they see of their networks is asked from inside.

use std::{fmt::Display, net::IpAddr, path::PathBuf};

use anyhow::{Context, ensure};
use berth_common::{
    document::ConfigDrive,
    message::{
        placement::SchedulerHints,
        request::{InstanceCreate, NetworkAttachment},
        view::{InstanceView, PortView},
    },
    names::ProjectName,
};

use super::{CONVERGE_LIMIT, InstanceOptions, TestCloud};
use crate::{
    lab::outside,
    wait::{Seen, wait_for},
};

/// What of a guest differs between tests.
#[derive(Debug, Clone, Default)]
pub struct GuestOptions {
    /// Its name.
    pub name: &'static str,
    /// Its owner.
    pub project: ProjectName,
    /// The hypervisor it is on.
    pub host: &'static str,
    /// What it is plugged into.
    pub networks: Vec<NetworkAttachment>,
}

impl GuestOptions {
    /// A guest in a network, by its id or name.
    #[must_use]
    pub fn in_network(name: &'static str, host: &'static str, network: impl Display) -> Self {
        let attachment = NetworkAttachment {
            network: network.to_string(),
            ..NetworkAttachment::default()
        };
        Self {
            name,
            host,
            networks: vec![attachment],
            ..Self::default()
        }
    }

    /// A guest with a port, by its id or name.
    #[must_use]
    pub fn with_port(name: &'static str, host: &'static str, port: impl Display) -> Self {
        let attachment = NetworkAttachment {
            port: Some(port.to_string()),
            ..NetworkAttachment::default()
        };
        Self {
            name,
            host,
            networks: vec![attachment],
            ..Self::default()
        }
    }
}

/// A guest, and the key that the metadata service tells it.
#[derive(Debug)]
pub struct Guest {
    /// The instance, as it was when it was up.
    pub view: InstanceView,
    /// Where the key is.
    pub key: PathBuf,
}

impl TestCloud {
    /// Guests on given hypervisors, each up with exactly the address and MAC of its first port.
    ///
    /// # Errors
    /// One is refused, or not up in time.
    pub async fn guests<const N: usize>(
        &self,
        wanted: [GuestOptions; N],
    ) -> anyhow::Result<[Guest; N]> {
        let mut asked = Vec::new();
        for options in wanted {
            let (request, key) = self.guest_request(options).await?;
            asked.push((self.call(&request).await?.id, key));
        }
        let mut guests = Vec::new();
        for (id, key) in asked {
            let view = self.wait_active(id).await?;
            let guest = Guest { view, key };
            guest.is_up(self).await?;
            guests.push(guest);
        }
        <[Guest; N]>::try_from(guests).map_err(|_| anyhow::anyhow!("{N} were asked for"))
    }

    /// The request for a guest, and where its key is.
    ///
    /// # Errors
    /// The name or the guest image is unusable.
    pub async fn guest_request(
        &self,
        wanted: GuestOptions,
    ) -> anyhow::Result<(InstanceCreate, PathBuf)> {
        let (key, public) = self.new_key(wanted.name).await?;
        let options = InstanceOptions {
            guest_data: Some(ConfigDrive {
                public_keys: [("me".parse()?, public.parse()?)].into(),
                ..ConfigDrive::default()
            }),
            ..InstanceOptions::default()
        };
        let mut request = self.instance_request(wanted.name, &options)?;
        request.project = wanted.project;
        request.networks = wanted.networks;
        request.hints = SchedulerHints {
            host: Some(wanted.host.to_owned()),
            ..SchedulerHints::default()
        };
        Ok((request, key))
    }
}

impl Guest {
    /// Waits until it is up, and makes sure that it has exactly the address and MAC of its first port.
    ///
    /// # Errors
    /// It is not up in time, or has others.
    pub async fn is_up(&self, cloud: &TestCloud) -> anyhow::Result<()> {
        let has = "cat /run/address /sys/class/net/eth0/address";
        let has = self.run(cloud, has).await?;
        ensure!(
            has == format!("{}\n{}\n", self.address()?, self.port()?.mac_address),
            "{} has {has}",
            self.view.name
        );
        Ok(())
    }

    /// Its first port.
    ///
    /// # Errors
    /// It has none.
    pub fn port(&self) -> anyhow::Result<&PortView> {
        self.view.ports.first().context("no port")
    }

    /// The address of that.
    ///
    /// # Errors
    /// It has none.
    pub fn address(&self) -> anyhow::Result<IpAddr> {
        TestCloud::address_of(&self.view)
    }

    /// Runs a line of shell in it, which must succeed; answers what it prints.
    ///
    /// # Errors
    /// It fails.
    pub async fn run(&self, cloud: &TestCloud, script: &str) -> anyhow::Result<String> {
        cloud.in_guest(&self.view, &self.key, script).await
    }

    /// Runs a line of shell in it again and again until it succeeds; answers what it prints then.
    ///
    /// # Errors
    /// It does not succeed in time.
    pub async fn until(
        &self,
        cloud: &TestCloud,
        what: &str,
        script: &str,
    ) -> anyhow::Result<String> {
        let what = format!("{what}, in {}", self.view.name);
        wait_for(&what, CONVERGE_LIMIT, async || {
            let output = cloud.log_in(&self.view, &self.key, script).await?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                return Ok(Seen::Done(said));
            }
            let error = String::from_utf8_lossy(&output.stderr);
            Ok(Seen::NotYet(format!("{}: {said}{error}", output.status)))
        })
        .await
    }

    /// What the guest at an address says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask(&self, cloud: &TestCloud, address: impl Display) -> anyhow::Result<String> {
        self.run(cloud, &question(address)).await
    }

    /// Waits until it gets an answer at an address, from the guest with a name.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn reaches(
        &self,
        cloud: &TestCloud,
        address: impl Display,
        name: &str,
    ) -> anyhow::Result<()> {
        let what = format!("an answer of {name} at {address}");
        let script = format!("{} | grep -F '\"hostname\":\"{name}\"'", question(&address));
        self.until(cloud, &what, &script).await.map(drop)
    }

    /// Waits until it gets no connection to port 80 of an address.
    ///
    /// # Errors
    /// It gets some for too long.
    pub async fn reaches_not(
        &self,
        cloud: &TestCloud,
        address: impl Display,
    ) -> anyhow::Result<()> {
        let what = format!("no connection to {address}");
        let script = format!("! nc -w 2 {address} 80 </dev/null");
        self.until(cloud, &what, &script).await.map(drop)
    }

    /// Waits until the machine outside sees it by an address.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn is_seen_outside_as(
        &self,
        cloud: &TestCloud,
        address: impl Display,
    ) -> anyhow::Result<()> {
        let what = format!("to be seen outside as {address}");
        let (machine, port) = (outside::ADDRESS, outside::WHO_PORT);
        let script =
            format!("it=$(nc -w 5 {machine} {port} </dev/null); echo $it; [ \"$it\" = {address} ]");
        self.until(cloud, &what, &script).await.map(drop)
    }
}

/// The line of shell by which a guest asks another one what it says of itself.
fn question(address: impl Display) -> String {
    format!("printf 'GET /cgi-bin/status HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80")
}
