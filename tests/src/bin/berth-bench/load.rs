//! Clients that place instances: so many requests under way, until a count or a time is reached.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use berth_common::{
    bus::{Bus, RabbitBus, RabbitConfig, RpcClient, topology::SCHEDULER},
    document::{
        Desired, DesiredPower, DiskFormat, DiskSource, Document, Flavor, ImageFormat, ImageRef,
        InstanceDisk, InstanceSpec,
    },
    ids::{HostId, InstanceId},
    message::{
        request::{InstanceCreate, Method as _, Reply, default_stop_timeout_seconds},
        view::InstanceView,
    },
    refusal::Refusal,
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use tokio::{task::JoinSet, time::Instant};

/// How long a request may go unanswered.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections with a reply queue each.
pub(crate) struct Clients {
    buses: Vec<Arc<dyn Bus>>,
    rpcs: Vec<RpcClient>,
}

/// Where a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Requests under way at once.
    pub(crate) in_flight: usize,
    /// Requests at most.
    pub(crate) count: u64,
    /// Time at most, for sending; all answers are waited for.
    pub(crate) time: Duration,
}

/// How a load went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    /// Granted requests.
    pub(crate) placed: u64,
    /// Refused ones.
    pub(crate) refused: u64,
    /// Unanswered ones.
    pub(crate) failed: u64,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Clients {
    /// Connects.
    pub(crate) async fn connect(url: &str, connections: u16) -> anyhow::Result<Self> {
        let mut buses: Vec<Arc<dyn Bus>> = Vec::new();
        let mut rpcs = Vec::new();
        for number in 1..=connections {
            let config = RabbitConfig::new(url, format!("berth-bench {number}"));
            let bus: Arc<dyn Bus> = Arc::new(RabbitBus::start(config)?);
            rpcs.push(RpcClient::start(Arc::clone(&bus), SCHEDULER, "berth-bench").await?);
            buses.push(bus);
        }
        Ok(Self { buses, rpcs })
    }

    /// The clients, each of which takes any number of requests.
    pub(crate) fn rpcs(&self) -> &[RpcClient] {
        &self.rpcs
    }

    /// Places instances.
    pub(crate) async fn place(&self, bounds: Bounds) -> anyhow::Result<Done> {
        let started = Instant::now();
        let deadline = started + bounds.time;
        let left = Arc::new(AtomicU64::new(bounds.count));
        let mut workers = JoinSet::new();
        for rpc in self.rpcs.iter().cycle().take(bounds.in_flight) {
            let (rpc, left) = (rpc.clone(), Arc::clone(&left));
            workers.spawn(async move {
                let mut done = Done::default();
                let take = |left: u64| left.checked_sub(1);
                while Instant::now() < deadline
                    && left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                        .is_ok()
                {
                    match create(&rpc, PATIENCE).await {
                        Ok(Ok(_)) => done.placed += 1,
                        Ok(Err(_)) => done.refused += 1,
                        Err(_) => done.failed += 1,
                    }
                }
                done
            });
        }
        let mut total = Done::default();
        while let Some(done) = workers.join_next().await {
            let done = done?;
            total.placed += done.placed;
            total.refused += done.refused;
            total.failed += done.failed;
        }
        total.took = started.elapsed();
        Ok(total)
    }

    /// Ends the connections.
    pub(crate) async fn close(&self) {
        for bus in &self.buses {
            bus.close().await;
        }
    }
}

/// Asks for one more instance and waits for the answer.
pub(crate) async fn create(
    rpc: &RpcClient,
    patience: Duration,
) -> anyhow::Result<Result<InstanceView, Refusal>> {
    let (name, version) = (InstanceCreate::NAME, InstanceCreate::VERSION);
    let answer = rpc.call(name, version, &request()?, patience).await?;
    Ok(answer.decode::<Reply<InstanceView>>()?.into())
}

/// A small instance without networks that stays off.
pub(crate) fn request() -> anyhow::Result<InstanceCreate> {
    let id = InstanceId::new();
    Ok(InstanceCreate {
        id,
        name: format!("bench-{id}").parse()?,
        project: Default::default(),
        flavor: Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(64),
            disk_gb: DiskGb::clamped(1),
        },
        image: Some(ImageRef {
            url: "http://images.example.org/berth/bench.qcow2".parse()?,
            sha256: "ab".repeat(32).parse()?,
            format: ImageFormat::Qcow2,
        }),
        block_devices: Vec::new(),
        networks: Vec::new(),
        power: DesiredPower::Stopped,
        stop_timeout_seconds: default_stop_timeout_seconds(),
        hints: Default::default(),
        config_drive: None,
        guest_data: None,
        on_crash: berth_common::document::OnCrash::default(),
    })
}

/// The document that a request leads to, as JSON: its size is what the broker carries.
pub(crate) fn document(request: &InstanceCreate) -> anyhow::Result<Vec<u8>> {
    let document = Document::Instance(Desired {
        id: request.id,
        generation: Generation::FIRST,
        host_id: HostId::new(),
        spec: Some(InstanceSpec {
            name: request.name.clone(),
            project: request.project.clone(),
            power: request.power,
            reboot: None,
            stop_timeout_seconds: request.stop_timeout_seconds,
            flavor: request.flavor,
            disks: vec![InstanceDisk {
                index: 0,
                size_gb: request.flavor.disk_gb,
                format: DiskFormat::Qcow2,
                source: DiskSource::Image(request.image.clone().context("it has an image")?),
                incarnation: None,
            }],
            ports: Vec::new(),
            volumes: Vec::new(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::default(),
        }),
    });
    serde_json::to_vec(&document).context("a document has no JSON form")
}
