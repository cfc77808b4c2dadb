//! How a cloud shall be, and its start.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use berth_common::bus::{RabbitBus, RabbitConfig, RpcClient};
use serde_json::Value;

use super::{
    TestCloud,
    database::{Database, Store},
    scheduler::Scheduler,
    sim::{SimAgents, Sims},
};
use crate::{
    broker::Vhost,
    lab::{Hypervisor, Libvirtd, Outside, Site, Wire, outside},
    services::Services,
    wait::{Seen, wait_for},
};

/// How long everything may take to find each other.
const START_LIMIT: Duration = Duration::from_secs(40);

/// Whether the broker can be reached from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// It can.
    Reachable,
    /// The test plugs the wire in.
    Absent,
}

/// Whether hypervisors have a second NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecondNic {
    Absent,
    PluggedIn,
}

/// A cloud to be.
#[derive(Debug, Clone)]
pub struct Builder {
    agents: u8,
    second_nic: SecondNic,
    store: Store,
    broker: Broker,
    libvirtd: Libvirtd,
    sims: Vec<Sims>,
    scheduler: BTreeMap<String, Value>,
    agent: BTreeMap<String, Value>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            agents: 1,
            second_nic: SecondNic::Absent,
            store: Store::Sqlite,
            broker: Broker::Reachable,
            libvirtd: Libvirtd::Running,
            sims: Vec::new(),
            scheduler: BTreeMap::new(),
            agent: BTreeMap::new(),
        }
    }
}

impl Builder {
    /// So many hypervisors with an agent each; 1 unless said otherwise.
    #[must_use]
    pub fn agents(mut self, agents: u8) -> Self {
        self.agents = agents;
        self
    }

    /// There is a machine outside of the cloud, and a wire to it: the hypervisors' second NICs are plugged in there, and it is
    /// their [`outside::PHYSICAL_NETWORK`], for flat networks and for VLANs.
    #[must_use]
    pub fn outside(mut self) -> Self {
        self.second_nic = SecondNic::PluggedIn;
        let (network, nic) = (outside::PHYSICAL_NETWORK, outside::NIC);
        self.scheduler_config("network.flat_networks", vec![network])
            .scheduler_config("network.vlan_ranges", vec![network])
            .agent_config(
                "network.physical_networks",
                vec![format!("{network}:{nic}")],
            )
    }

    /// Simulated hypervisors, besides those with a real agent or, with `agents(0)`, instead of them.
    #[must_use]
    pub fn sims(mut self, sims: Sims) -> Self {
        self.sims.push(sims);
        self
    }

    /// The database; SQLite unless said otherwise.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = store;
        self
    }

    /// Whether the broker can be reached from the start.
    #[must_use]
    pub fn broker(mut self, broker: Broker) -> Self {
        self.broker = broker;
        self
    }

    /// Whether libvirt runs from the start.
    #[must_use]
    pub fn libvirtd(mut self, libvirtd: Libvirtd) -> Self {
        self.libvirtd = libvirtd;
        self
    }

    /// A key of the scheduler's configuration, such as `placement.ram_allocation_ratio`.
    #[must_use]
    pub fn scheduler_config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.scheduler.insert(key.to_owned(), value.into());
        self
    }

    /// A key of every agent's configuration, such as `host.resync_seconds`.
    #[must_use]
    pub fn agent_config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.agent.insert(key.to_owned(), value.into());
        self
    }

    /// Starts everything. Waits until all is well, unless a part is absent on purpose.
    ///
    /// # Errors
    /// Something does not start; the logs have been shown then.
    pub async fn start(self) -> anyhow::Result<TestCloud> {
        let services = Services::from_env()?;
        let site = Site::open()?;
        let name = format!("berth-test-{}", site.number());
        let vhost = Vhost::create(&services, &name).await?;
        let database = Database::create(&services, self.store, &site).await?;
        let broker = SocketAddr::from((site.address(1), 5672));
        let mut wire = Wire::new(broker, services.amqp_socket()?);
        if self.broker == Broker::Reachable {
            wire.plug().await?;
        }
        let through_wire = format!("amqp://{}@{broker}/{name}", services.amqp_login()?);
        let direct = format!("{}/{name}", services.amqp);
        let bus = Arc::new(RabbitBus::start(RabbitConfig::new(direct, "berth-tests"))?);
        let rpc = RpcClient::start(bus.clone(), "scheduler", "berth-tests").await?;

        let scheduler =
            Scheduler::new(&site, &through_wire, database.url(), self.scheduler.clone());
        let hypervisors = Vec::new();
        let mut cloud = TestCloud {
            bus,
            rpc,
            scheduler,
            standby: None,
            sims: Vec::new(),
            hypervisors,
            outside: None,
            wire,
            vhost,
            site,
            services,
            database,
            expected_dead: 0,
            closed: false,
        };
        cloud.scheduler.start()?;
        for sims in self.sims {
            let sims = SimAgents::start(sims, &cloud.site, &through_wire)?;
            cloud.sims.push(sims);
        }
        for index in 1..=self.agents {
            let hypervisor = Hypervisor::create(&cloud.site, index, self.libvirtd).await?;
            cloud.hypervisors.push(hypervisor);
        }
        if self.second_nic == SecondNic::PluggedIn {
            let outside = Outside::start(&cloud.site).await?;
            for hypervisor in &cloud.hypervisors {
                outside.plug(hypervisor).await?;
            }
            cloud.outside = Some(outside);
        }
        for hypervisor in &mut cloud.hypervisors {
            write_agent_config(hypervisor, &through_wire, &self.agent)?;
            hypervisor.spawn_agent().await?;
        }
        if self.broker == Broker::Reachable {
            cloud.wait_all_up().await?;
        }
        Ok(cloud)
    }
}

impl TestCloud {
    /// Waits until the scheduler is well and hears of every hypervisor.
    ///
    /// # Errors
    /// One of them is not well in time.
    pub async fn wait_all_up(&self) -> anyhow::Result<()> {
        wait_for(
            "scheduler and hypervisors to be up",
            START_LIMIT,
            async || {
                let health = self.scheduler.healthz().await?;
                let simulated: usize = self.sims.iter().map(SimAgents::count).sum();
                let hosts = self.hosts().await?;
                let up = hosts
                    .iter()
                    .filter(|host| host.state == berth_common::message::view::HostState::Up)
                    .count();
                Ok(Seen::when(
                    up == self.hypervisors.len() + simulated,
                    format!("{up} hosts up; scheduler: {health:?}"),
                ))
            },
        )
        .await
    }
}

/// Lines `key = value` of TOML; a JSON scalar is a TOML value as well.
pub(super) fn toml(keys: &BTreeMap<String, Value>) -> String {
    keys.iter()
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect()
}

fn write_agent_config(
    hypervisor: &Hypervisor,
    bus_url: &str,
    extra: &BTreeMap<String, Value>,
) -> anyhow::Result<()> {
    let mut keys: BTreeMap<String, Value> = [
        ("bus.url", Value::from(bus_url)),
        ("host.name", hypervisor.name().into()),
        ("host.state_dir", "/var/lib/berth".into()),
        ("host.heartbeat_seconds", 1.into()),
        ("host.resync_seconds", 2.into()),
        ("libvirt.virt_type", "qemu".into()),
        (
            "network.tunnel_ip",
            hypervisor.telemetry().ip().to_string().into(),
        ),
        (
            "telemetry.listen",
            hypervisor.telemetry().to_string().into(),
        ),
        ("log.filter", "info,berth_agent=debug".into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    keys.extend(extra.clone());
    Ok(std::fs::write(hypervisor.agent_config(), toml(&keys))?)
}
