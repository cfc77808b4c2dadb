//! A machine that is none of the cloud's, on a wire that second NICs of hypervisors are plugged into. It answers ping, tells whoever
//! connects by which address it sees him, and forgets no Ethernet address by itself.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Context;

use super::{Hypervisor, Service, Site};
use crate::{
    run,
    wait::{Seen, wait_for},
};

/// The physical network that the wire is for the cloud.
pub const PHYSICAL_NETWORK: &str = "physnet1";
/// The NIC of a hypervisor that is plugged into the wire.
pub const NIC: &str = "eth1";
/// The address of the machine.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The addresses on the wire.
pub const NETWORK: &str = "203.0.113.0/24";
/// Those of them that are the cloud's to give.
pub const POOL: &str = "start=203.0.113.100,end=203.0.113.199";
/// Where the machine tells whoever connects by which address it sees him.
pub const WHO_PORT: u16 = 7;

const START_LIMIT: Duration = Duration::from_secs(60);
const OUTSIDE_SH: &str = include_str!("outside.sh");
const OUTSIDE_PY: &str = include_str!("outside.py");

/// The machine and the wire, which go together.
#[derive(Debug)]
pub struct Outside {
    machine: Service,
}

impl Outside {
    /// Switches it on.
    ///
    /// # Errors
    /// Its namespace cannot be made, or it does not serve.
    pub async fn start(site: &Site) -> anyhow::Result<Self> {
        let (address, port) = (format!("{ADDRESS}/24"), WHO_PORT.to_string());
        let argv = [
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            OUTSIDE_SH,
            "sh",
            &address,
            OUTSIDE_PY,
            &port,
        ];
        let log = site.dir().join("outside.log");
        let mark = site.number().to_string();
        let machine = Service::start_inside("the machine outside", &argv, &log, &mark).await?;
        let outside = Self { machine };
        let listening = ["ss", "-Hltn", &format!("sport = :{WHO_PORT}")];
        wait_for("the machine outside to serve", START_LIMIT, async || {
            let sockets = outside.text(&listening).await?;
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(Seen::when(!sockets.is_empty(), said))
        })
        .await?;
        Ok(outside)
    }

    /// Plugs the second NIC of a hypervisor in. It is off, and has no address.
    ///
    /// # Errors
    /// It has one already, or is off.
    pub async fn plug(&self, hypervisor: &Hypervisor) -> anyhow::Result<()> {
        let (near, far) = (
            self.machine.pid().to_string(),
            hypervisor.pid()?.to_string(),
        );
        let name = hypervisor.name();
        run::text(&[
            "ip", "link", "add", NIC, "netns", &far, "type", "veth", "peer", "name", name, "netns",
            &near,
        ])
        .await?;
        self.text(&["ip", "link", "set", name, "master", "wire", "up"])
            .await?;
        Ok(())
    }

    /// Runs a program on the machine, however it ends.
    ///
    /// # Errors
    /// It cannot be started or takes too long.
    pub async fn exec(&self, argv: &[&str]) -> anyhow::Result<std::process::Output> {
        let pid = self.machine.pid().to_string();
        run::output(&[&["nsenter", "-t", &pid, "--net", "--"], argv].concat()).await
    }

    /// Runs a program on the machine that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub async fn text(&self, argv: &[&str]) -> anyhow::Result<String> {
        run::checked(argv, &self.exec(argv).await?)
    }

    /// The Ethernet address that the machine has for an address on the wire.
    ///
    /// # Errors
    /// It has none.
    pub async fn neighbour(&self, address: &str) -> anyhow::Result<String> {
        let argv = ["ip", "-j", "neigh", "show", "dev", "wire", address];
        let listed: serde_json::Value = serde_json::from_str(&self.text(&argv).await?)?;
        let mac = listed[0]["lladdr"].as_str();
        Ok(mac
            .with_context(|| format!("{address} is not known outside: {listed}"))?
            .to_owned())
    }

    /// Switches it off.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.machine.kill()
    }
}
