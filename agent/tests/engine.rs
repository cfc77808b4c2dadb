//! The whole agent but for its edges: inbox, journal on a real disk, engine and reports, over a host and a broker in
//! memory, in paused time.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "in a test, a panic is a failed assertion; the law says which schedule broke it"
)]

#[path = "engine/boot.rs"]
mod boot;
#[path = "engine/halted.rs"]
mod halted;
#[path = "engine/law.rs"]
mod law;
#[path = "engine/news.rs"]
mod news;
#[path = "engine/nics.rs"]
mod nics;
#[path = "engine/routers.rs"]
mod routers;
#[path = "engine/size.rs"]
mod size;
#[path = "engine/snapshots.rs"]
mod snapshots;
#[path = "engine/uplinks.rs"]
mod uplinks;
#[path = "engine/volumes.rs"]
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use berth_agent::{
    act::{
        ActError, Compute, Storage,
        fake::{Disk, FakeHost, Guest},
    },
    decide::{
        domain::{DiskError, DomainDisks, DomainObserved, DomainStep, JobProgress, VirtType},
        instance::{DiskName, DiskPlan, HostFacts, Paths, StorageStep, domain_config},
        pool::{FilesPlace, PoolPlace},
        room::{HostSize, RoomToGrow},
        snapshot::BackupJob,
    },
    engine::{Engine, Host, Parts},
    inbox::{Inbox, journal::Journal},
    metrics::AgentMetrics,
    report::{
        glance::Glances,
        reports::{Reports, Sender},
    },
    state::StateDir,
};
use berth_common::{
    bus::{Bus, Faults, LocalBroker, Message, QueueDecl, Target},
    document::{
        DOCUMENT_VERSION, Desired, DesiredPower, DiskFormat, DiskSource, Document, DocumentKey,
        FixedIp, Flavor, ImageFormat, ImageRef, InstanceDisk, InstancePort, InstanceSpec, Kind,
        NetworkPort, NetworkSpec, NetworkType, Reboot, RebootKind, RouterSpec, SubnetSpec,
        VolumeFormat, VolumeSpec,
    },
    ids::{HostId, InstanceId, NetworkId, Nonce, PortId, RouterId, SubnetId, VolumeId},
    message::{
        catalogue::document_type,
        heartbeat::PoolKind,
        report::{BootDisk, ConvergeStatus, FaultCode, PowerState, Report, ResourceReport},
    },
    names::{HostName, ImageUrl, MacAddress, PoolName},
    telemetry::{health::Health, registry::Metrics},
    units::{ByteCount, DiskGb, Generation, MemoryMb, Vcpus},
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Far longer than anything takes here, in paused time.
const LIMIT: Duration = Duration::from_secs(900);

/// How often the host is looked at, unless a test says otherwise.
const RESYNC_EVERY: Duration = Duration::from_secs(10);

/// The fake host, with a libvirt that can go away.
#[derive(Clone)]
struct FlakyLibvirt {
    host: FakeHost,
    away: Arc<AtomicBool>,
    defective: Arc<AtomicBool>,
    wedged: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    close_looks: Arc<AtomicUsize>,
    slow: Arc<AtomicBool>,
    /// The guests that no step gets an answer from.
    hung: Arc<Mutex<BTreeSet<InstanceId>>>,
}

/// How long a call to a libvirt that hangs is waited for.
const HANG: Duration = Duration::from_secs(30);

impl FlakyLibvirt {
    fn ask(&self) -> Result<(), ActError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(ActError::retryable(
                FaultCode::Hypervisor,
                "cannot reach libvirt",
                "connection refused",
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Compute for FlakyLibvirt {
    async fn observe(&self) -> Result<Vec<DomainObserved>, ActError> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.ask()?;
        let seen = Compute::observe(&self.host).await;
        if self.slow.load(Ordering::SeqCst) {
            sleep(HANG).await;
        }
        seen
    }

    async fn observe_one(&self, instance: InstanceId) -> Result<Option<DomainObserved>, ActError> {
        self.close_looks.fetch_add(1, Ordering::SeqCst);
        if self.wedged.load(Ordering::SeqCst) {
            sleep(HANG).await;
            return Err(ActError::retryable(
                FaultCode::Hypervisor,
                "libvirt hangs",
                "no answer",
            ));
        }
        self.ask()?;
        self.host.observe_one(instance).await
    }

    async fn apply(&self, step: &DomainStep) -> Result<(), ActError> {
        assert!(
            !self.defective.load(Ordering::SeqCst),
            "a defect, on purpose"
        );
        self.ask()?;
        let hangs = self.hung.lock().unwrap().contains(&step.instance());
        if hangs {
            sleep(HANG).await;
            return Err(ActError::retryable(
                FaultCode::Hypervisor,
                "its QEMU hangs",
                "no answer",
            ));
        }
        Compute::apply(&self.host, step).await
    }

    async fn job(&self, instance: InstanceId) -> Result<Option<JobProgress>, ActError> {
        self.ask()?;
        Compute::job(&self.host, instance).await
    }

    async fn disk_errors(
        &self,
        instance: InstanceId,
    ) -> Result<BTreeMap<String, DiskError>, ActError> {
        self.ask()?;
        self.host.disk_errors(instance).await
    }

    async fn backups(&self) -> Result<Vec<BackupJob>, ActError> {
        self.ask()?;
        Compute::backups(&self.host).await
    }

    async fn news(&self) {
        self.host.news().await;
    }
}

/// What the host can do.
fn facts() -> HostFacts {
    HostFacts {
        virt_type: VirtType::Qemu,
        arch: "x86_64".to_owned(),
        has_cpu_controller: false,
        size: HostSize {
            cpus: 16,
            memory_mb: MemoryMb::clamped(65_536),
        },
        room_to_grow: RoomToGrow::Given,
        paths: Paths {
            pools: BTreeMap::from([
                (fast(), PoolPlace::Devices("/dev/vg0".into())),
                (
                    ssd(),
                    PoolPlace::Files(FilesPlace::below(Path::new("/srv/ssd"))),
                ),
                (thin(), PoolPlace::ThinDevices("/dev/vg0".into())),
            ]),
            ..Paths::below(Path::new("/var/lib/berth"))
        },
    }
}

/// One of files, on a disk of its own.
fn ssd() -> PoolName {
    "ssd".parse().unwrap()
}

/// The first one, thin.
fn thin() -> PoolName {
    "thin".parse().unwrap()
}

/// The host's pool of block devices.
fn fast() -> PoolName {
    "fast".parse().unwrap()
}

/// What the scheduler knows by reports.
type Known = Arc<Mutex<BTreeMap<DocumentKey, Vec<ResourceReport>>>>;

/// A host with its broker, and the scheduler's end of the bus.
struct Lab {
    broker: LocalBroker,
    scheduler: Arc<dyn Bus>,
    host: FakeHost,
    libvirt: FlakyLibvirt,
    state: TempDir,
    host_id: HostId,
    name: HostName,
    known: Known,
    agent: Option<Agent>,
    _listener: JoinSet<()>,
    /// How often the host is looked at.
    resync_every: Duration,
    /// Where volumes are.
    pool: PoolName,
}

/// A running agent. Dropping it is `kill -9`.
struct Agent {
    _state: StateDir,
    journal: Weak<Journal>,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
    health: Health,
}

/// Those that its agent knows of.
fn have_pools(host: &FakeHost) {
    for (kind, pool) in [
        (PoolKind::Dir, ssd()),
        (PoolKind::Lvm, fast()),
        (PoolKind::LvmThin, thin()),
    ] {
        host.have_pool(kind, pool, ByteCount::clamped(1 << 40));
    }
}

impl Lab {
    async fn new() -> Self {
        let host = FakeHost::new();
        have_pools(&host);
        Self::on(host, tempfile::tempdir().unwrap(), RESYNC_EVERY).await
    }

    /// With this host, and an agent that has this state and looks at the host so often.
    async fn on(host: FakeHost, state: TempDir, resync_every: Duration) -> Self {
        let broker = LocalBroker::new(7);
        let scheduler: Arc<dyn Bus> = Arc::new(broker.connect());
        let known = Known::default();
        let mut listener = JoinSet::new();
        listener.spawn(listen(Arc::clone(&scheduler), Arc::clone(&known)));
        let name: HostName = "hv1".parse().unwrap();
        scheduler
            .declare(&QueueDecl::compute(name.as_str()))
            .await
            .unwrap();
        let mut lab = Self {
            host_id: StateDir::open(state.path()).unwrap().host_id(),
            libvirt: FlakyLibvirt {
                host: host.clone(),
                away: Arc::default(),
                defective: Arc::default(),
                wedged: Arc::default(),
                looks: Arc::default(),
                close_looks: Arc::default(),
                slow: Arc::default(),
                hung: Arc::default(),
            },
            broker,
            scheduler,
            host,
            state,
            name,
            known,
            agent: None,
            _listener: listener,
            resync_every,
            pool: PoolName::default(),
        };
        lab.start();
        lab
    }

    fn start(&mut self) {
        let state = StateDir::open(self.state.path()).unwrap();
        let (journal, _) =
            Journal::open(&state.journal(), state.host_id(), state.ballast().clone()).unwrap();
        let journal = Arc::new(journal);
        let written = Arc::downgrade(&journal);
        let metrics = AgentMetrics::new(&Metrics::new("test", "1").unwrap()).unwrap();
        let health = Health::new();
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect());
        let (reports, glances) = (Reports::default(), Glances::default());
        let (facts_sender, facts) = watch::channel(Some(facts()));
        let (engine, handle) = Engine::new(Parts {
            host: Host {
                compute: Arc::new(self.libvirt.clone()),
                storage: Arc::new(self.host.clone()),
                net: Arc::new(self.host.clone()),
            },
            facts,
            journal: Arc::clone(&journal),
            reports: reports.clone(),
            glances: glances.clone(),
            metrics: metrics.clone(),
            health: health.component("engine"),
            libvirt: health.component("libvirt"),
            leftovers: health.component("leftovers"),
            resync_every: self.resync_every,
            concurrent_operations: 2,
        });
        let inbox = Inbox {
            bus: Arc::clone(&bus),
            host_id: state.host_id(),
            host: self.name.clone(),
            journal,
            engine: handle,
            glances,
            metrics: metrics.clone(),
            health: health.component("journal"),
        };
        let sender = Sender {
            host_id: state.host_id(),
            host: self.name.clone(),
            session: state.session(),
        };
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(inbox.run(cancel.clone()));
        tasks.spawn(reports.send(bus, sender, metrics, cancel.clone()));
        let stop = cancel.clone();
        tasks.spawn(async move {
            engine.run(stop).await;
            drop(facts_sender);
        });
        self.agent = Some(Agent {
            _state: state,
            journal: written,
            tasks,
            cancel,
            health,
        });
    }

    /// Ends the agent without a word.
    async fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.tasks.shutdown().await;
            // A file that is being written is written by a thread: of a process that is killed, they all end.
            while agent.journal.strong_count() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn restart(&mut self) {
        self.kill().await;
        self.host.restart_agent();
        self.start();
    }

    async fn send(&self, document: &Document) {
        let method = document_type(document.key().kind);
        let message = Message::new(method, DOCUMENT_VERSION, "test", document).unwrap();
        self.scheduler
            .publish(Target::queue(format!("compute.{}", self.name)), message)
            .await
            .unwrap();
    }

    fn newest(&self, key: DocumentKey) -> Option<ResourceReport> {
        self.known
            .lock()
            .unwrap()
            .get(&key)
            .and_then(|reports| reports.last().cloned())
    }

    /// Waits until the newest report of a resource is as wanted.
    async fn wait(
        &self,
        key: DocumentKey,
        what: &str,
        wanted: impl Fn(&ResourceReport) -> bool,
    ) -> ResourceReport {
        let wait = async {
            loop {
                if let Some(report) = self.newest(key).filter(|report| wanted(report)) {
                    return report;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        match tokio::time::timeout(LIMIT, wait).await {
            Ok(report) => report,
            Err(_) => panic!(
                "{key} did not become {what}; last seen: {:#?}",
                self.newest(key)
            ),
        }
    }

    async fn wait_status(&self, document: &Document, status: ConvergeStatus) -> ResourceReport {
        let generation = document.generation();
        self.wait(document.key(), status.as_str(), |report| {
            report.generation == generation && report.status == status
        })
        .await
    }

    async fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            panic!("{what} did not come about");
        }
    }

    async fn dead(&self) -> Vec<(String, String)> {
        let bus = self.broker.connect();
        let mut consumer = bus.consume(&QueueDecl::dead(), 100).await.unwrap();
        let mut found = Vec::new();
        while let Ok(Some(delivery)) =
            tokio::time::timeout(Duration::from_secs(1), consumer.next()).await
        {
            found.push((
                delivery.message.method.clone(),
                delivery.dead.clone().unwrap().reason,
            ));
            delivery.ack().await;
        }
        found
    }
}

/// Notes all reports; an older one than already seen is ignored, as the scheduler does.
async fn listen(bus: Arc<dyn Bus>, known: Known) {
    let mut consumer = bus.consume(&QueueDecl::reports(), 100).await.unwrap();
    let mut newest = (0, 0);
    while let Some(delivery) = consumer.next().await {
        let report: Report = delivery.message.decode().unwrap();
        if (report.session, report.sequence) > newest {
            newest = (report.session, report.sequence);
            let mut known = known.lock().unwrap();
            for resource in report.resources {
                known.entry(resource.key).or_default().push(resource);
            }
        }
        delivery.ack().await;
    }
}

/// An instance with its network.
struct Wish {
    host: HostId,
    instance: InstanceId,
    network: NetworkId,
    subnet: SubnetId,
    port: PortId,
    url: ImageUrl,
}

impl Wish {
    fn new(lab: &Lab) -> Self {
        Self {
            host: lab.host_id,
            instance: InstanceId::new(),
            network: NetworkId::new(),
            subnet: SubnetId::new(),
            port: PortId::new(),
            url: "http://images.example.org/guest.qcow2".parse().unwrap(),
        }
    }

    fn mac(&self) -> MacAddress {
        MacAddress::derived(self.port.as_uuid().as_bytes())
    }

    fn address(&self) -> FixedIp {
        FixedIp {
            subnet_id: self.subnet,
            ip_address: "10.0.0.5".parse().unwrap(),
        }
    }

    fn spec(&self) -> InstanceSpec {
        InstanceSpec {
            name: "web-1".parse().unwrap(),
            project: "default".parse().unwrap(),
            power: DesiredPower::Running,
            reboot: None,
            stop_timeout_seconds: 30,
            flavor: Flavor {
                vcpus: Vcpus::new(1).unwrap(),
                memory_mb: MemoryMb::new(128).unwrap(),
                disk_gb: DiskGb::new(1).unwrap(),
            },
            disks: vec![InstanceDisk {
                index: 0,
                size_gb: DiskGb::new(1).unwrap(),
                format: DiskFormat::Qcow2,
                source: DiskSource::Image(ImageRef {
                    url: self.url.clone(),
                    sha256: "ab".repeat(32).parse().unwrap(),
                    format: ImageFormat::Qcow2,
                }),
                incarnation: None,
            }],
            ports: vec![InstancePort {
                id: self.port,
                network_id: self.network,
                mac_address: self.mac(),
                fixed_ips: vec![self.address()],
                mtu: 1500,
                link: berth_common::document::PortLink::Up,
            }],
            volumes: Vec::new(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::default(),
        }
    }

    fn instance(&self, generation: u64, change: impl FnOnce(&mut InstanceSpec)) -> Document {
        let mut spec = self.spec();
        change(&mut spec);
        Document::Instance(Desired {
            id: self.instance,
            generation: Generation(generation),
            host_id: self.host,
            spec: Some(spec),
        })
    }

    fn network(&self, generation: u64, ports: &[PortId]) -> Document {
        let ports = ports.iter().map(|port| NetworkPort {
            id: *port,
            instance_id: self.instance,
            mac_address: MacAddress::derived(port.as_uuid().as_bytes()),
            hostname: "web-1".parse().unwrap(),
            fixed_ips: if *port == self.port {
                vec![self.address()]
            } else {
                Vec::new()
            },
            security: None,
            qos: berth_common::document::PortQos::default(),
            mirrors: Vec::new(),
        });
        Document::Network(Desired {
            id: self.network,
            generation: Generation(generation),
            host_id: self.host,
            spec: Some(NetworkSpec {
                name: "net".parse().unwrap(),
                project: "default".parse().unwrap(),
                network_type: NetworkType::Local,
                mtu: 1500,
                subnets: vec![SubnetSpec {
                    id: self.subnet,
                    cidr: "10.0.0.0/24".parse().unwrap(),
                    gateway_ip: None,
                    dhcp_ip: Some("10.0.0.2".parse().unwrap()),
                    dns_nameservers: Vec::new(),
                    host_routes: Vec::new(),
                    ipv6_address_mode: None,
                }],
                ports: ports.collect(),
                physical_network: None,
                segmentation_id: None,
                remote_ports: Vec::new(),
                security_groups: Vec::new(),
                group_members: std::collections::BTreeMap::new(),
            }),
        })
    }

    fn both(&self) -> [Document; 2] {
        [self.network(1, &[self.port]), self.instance(1, |_| {})]
    }
}

fn stopped(spec: &mut InstanceSpec) {
    spec.power = DesiredPower::Stopped;
}

async fn running(lab: &Lab) -> (Wish, Document, Document) {
    let wish = Wish::new(lab);
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    (wish, network, instance)
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_made_told_about_and_removed() {
    let lab = Lab::new().await;
    let (wish, network, instance) = running(&lab).await;
    let report = lab.newest(instance.key()).unwrap();
    assert_eq!(
        (report.power_state, report.fault, report.progress),
        (Some(PowerState::Running), None, None)
    );
    assert_eq!(lab.host.lives(wish.instance).starts, 1);

    lab.send(&network.tombstone()).await;
    lab.wait(network.key(), "waiting for its instance", |report| {
        report
            .progress
            .as_deref()
            .is_some_and(|text| text.contains("left its bridge"))
    })
    .await;
    lab.send(&instance.tombstone()).await;
    lab.wait_status(&instance.tombstone(), ConvergeStatus::Gone)
        .await;
    lab.wait_status(&network.tombstone(), ConvergeStatus::Gone)
        .await;
    assert!(
        lab.host.leftovers().is_empty(),
        "{:?}",
        lab.host.leftovers()
    );
}

#[tokio::test(start_paused = true)]
async fn duplicates_and_older_documents_change_nothing_and_are_answered_with_a_report() {
    let lab = Lab::new().await;
    let (wish, _, first) = running(&lab).await;
    let second = wish.instance(2, stopped);
    lab.send(&second).await;
    lab.wait_status(&second, ConvergeStatus::Converged).await;
    let steps = lab.host.steps_done();
    let told = lab.known.lock().unwrap()[&first.key()].len();
    lab.send(&first).await;
    lab.send(&second).await;
    lab.wait_until("another report", || {
        lab.known.lock().unwrap()[&first.key()].len() > told
    })
    .await;
    let newest = lab.newest(first.key()).unwrap();
    assert_eq!(
        (newest.generation, newest.power_state),
        (Generation(2), Some(PowerState::Shutdown))
    );
    assert_eq!(lab.host.steps_done(), steps);
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

#[tokio::test(start_paused = true)]
async fn documents_that_come_late_twice_and_in_any_order_end_in_the_newest() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    lab.broker.set_faults(Faults {
        duplicate: 0.5,
        delay: 0.5,
        max_delay: Duration::from_secs(20),
        reorder: 0.5,
        ..Faults::NONE
    });
    lab.send(&wish.network(1, &[])).await;
    lab.send(&wish.network(2, &[wish.port])).await;
    for generation in 1..=9 {
        let power = if generation % 2 == 0 {
            DesiredPower::Stopped
        } else {
            DesiredPower::Running
        };
        lab.send(&wish.instance(generation, |spec| spec.power = power))
            .await;
    }
    let last = wish.instance(9, |_| {});
    let report = lab.wait_status(&last, ConvergeStatus::Converged).await;
    assert_eq!(report.power_state, Some(PowerState::Running));
    assert!(lab.dead().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_is_remembered_against_older_documents_over_a_restart() {
    let mut lab = Lab::new().await;
    let (_, network, instance) = running(&lab).await;
    lab.send(&instance.tombstone()).await;
    lab.wait_status(&instance.tombstone(), ConvergeStatus::Gone)
        .await;
    lab.restart().await;
    let told = lab.known.lock().unwrap()[&instance.key()].len();
    lab.send(&instance).await;
    lab.wait_until("an answer", || {
        lab.known.lock().unwrap()[&instance.key()].len() > told
    })
    .await;
    assert_eq!(
        lab.newest(instance.key()).unwrap().status,
        ConvergeStatus::Gone
    );
    lab.send(&network.tombstone()).await;
    lab.wait_status(&network.tombstone(), ConvergeStatus::Gone)
        .await;
    assert!(
        lab.host.leftovers().is_empty(),
        "{:?}",
        lab.host.leftovers()
    );
}

#[tokio::test(start_paused = true)]
async fn what_libvirt_never_gets_started_is_switched_off_and_started_again() {
    let lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    let Document::Instance(Desired { id, .. }) = instance else {
        unreachable!()
    };
    let asleep = wish.instance(2, |spec| spec.power = DesiredPower::Suspended);
    lab.send(&asleep).await;
    lab.wait_status(&asleep, ConvergeStatus::Converged).await;
    let before = lab.host.lives(id);
    lab.host.hang_start(id);
    let awake = wish.instance(3, |_| {});
    lab.send(&awake).await;
    let is_waiting = |report: &ResourceReport| {
        let text = report.progress.as_deref().unwrap_or_default();
        text.contains("until libvirt has started it")
    };
    lab.wait(awake.key(), "a start that hangs", is_waiting)
        .await;
    // A newer document does not begin to count anew.
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(lab.host.lives(id), before);
    let awake = wish.instance(4, |_| {});
    lab.send(&awake).await;
    let sent = tokio::time::Instant::now();
    lab.wait_status(&awake, ConvergeStatus::Converged).await;
    assert!(sent.elapsed() < Duration::from_secs(30), "{sent:?}");
    let after = lab.host.lives(id);
    // From the memory that was saved.
    assert_eq!(after.restores, before.restores + 1);
    assert_eq!(after.starts, before.starts);
}

#[tokio::test(start_paused = true)]
async fn what_libvirt_gets_started_at_no_try_is_told_as_failed() {
    let lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    let Document::Instance(Desired { id, .. }) = instance else {
        unreachable!()
    };
    let off = wish.instance(2, |spec| spec.power = DesiredPower::Stopped);
    lab.send(&off).await;
    lab.wait_status(&off, ConvergeStatus::Converged).await;
    lab.host.hang_starts(id);
    let on = wish.instance(3, |_| {});
    lab.send(&on).await;
    let report = lab.wait_status(&on, ConvergeStatus::Failed).await;
    assert_eq!(report.fault.unwrap().code, FaultCode::Hypervisor);
}

#[tokio::test(start_paused = true)]
async fn an_instance_waits_for_its_network_and_for_its_own_port_there() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    let instance = wish.instance(1, |_| {});
    lab.send(&instance).await;
    let waits = |report: &ResourceReport| {
        report
            .progress
            .as_deref()
            .is_some_and(|text| text.contains("network"))
    };
    lab.wait(instance.key(), "waiting for its network", waits)
        .await;
    let without = wish.network(1, &[PortId::new()]);
    lab.send(&without).await;
    lab.wait_status(&without, ConvergeStatus::Converged).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(
        lab.host.lives(wish.instance).starts,
        0,
        "DHCP does not know its address"
    );
    lab.send(&wish.network(2, &[wish.port])).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_image_is_work_in_progress_then_a_failure_and_then_mended() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    lab.host.image_is_unreachable(wish.url.clone());
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    let report = lab
        .wait(instance.key(), "a fault", |report| report.fault.is_some())
        .await;
    assert_eq!(report.status, ConvergeStatus::Converging);
    let report = lab.wait_status(&instance, ConvergeStatus::Failed).await;
    let fault = report.fault.unwrap();
    assert_eq!(fault.code, FaultCode::ImageUnreachable);
    assert!(
        fault
            .message
            .contains("could not fetch http://images.example.org/guest.qcow2"),
        "{fault:?}"
    );
    lab.host.image_is_back(&wish.url);
    let again = wish.instance(2, |_| {});
    lab.send(&again).await;
    let report = lab.wait_status(&again, ConvergeStatus::Converged).await;
    assert_eq!(report.fault, None);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_without_being_asked() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    lab.host.image_is_unreachable(wish.url.clone());
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    lab.wait_status(&instance, ConvergeStatus::Failed).await;
    lab.host.image_is_back(&wish.url);
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
}

#[tokio::test(start_paused = true)]
async fn drift_is_noticed_a_guest_that_powers_itself_off_stays_off() {
    let lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    lab.host.guest_crashes(wish.instance);
    lab.wait_until("a second start", || {
        lab.host.lives(wish.instance).starts == 2
    })
    .await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    lab.host.guest_powers_off(wish.instance);
    lab.wait(instance.key(), "off", |report| {
        report.power_state == Some(PowerState::Shutdown)
            && report.status == ConvergeStatus::Converged
    })
    .await;
    sleep(Duration::from_secs(700)).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_listen_is_switched_off_after_its_timeout() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let stop = wish.instance(2, stopped);
    lab.send(&stop).await;
    lab.wait(stop.key(), "waiting for the guest", |report| {
        report.progress.as_deref() == Some("waiting for the guest to power off")
    })
    .await;
    let report = lab.wait_status(&stop, ConvergeStatus::Converged).await;
    assert_eq!(report.power_state, Some(PowerState::Shutdown));
    let lives = lab.host.lives(wish.instance);
    assert_eq!(lives.destroys, 1);
    assert!(lives.asked >= 5, "asked again and again: {lives:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_obeys_an_old_wish_late_is_started_again() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let stop = wish.instance(2, stopped);
    lab.send(&stop).await;
    lab.wait_until("the question", || lab.host.lives(wish.instance).asked > 0)
        .await;
    let start = wish.instance(3, |_| {});
    lab.send(&start).await;
    lab.wait_status(&start, ConvergeStatus::Converged).await;
    lab.host.guest_powers_off(wish.instance);
    lab.wait_until("a second start", || {
        lab.host.lives(wish.instance).starts == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_start_survives_the_agent_that_asked_the_guest_to_power_off() {
    let mut lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    lab.send(&wish.instance(2, stopped)).await;
    lab.wait_until("the question", || lab.host.lives(wish.instance).asked > 0)
        .await;
    lab.restart().await;
    let start = wish.instance(3, |_| {});
    lab.send(&start).await;
    let report = lab.wait_status(&start, ConvergeStatus::Converged).await;
    assert_eq!(report.power_state, Some(PowerState::Running));
    lab.host.guest_powers_off(wish.instance);
    lab.wait_until("a second start", || {
        lab.host.lives(wish.instance).starts == 2
    })
    .await;
    // Once it was watched for its whole stop timeout, being off is the guest's own decision again.
    lab.wait_status(&start, ConvergeStatus::Converged).await;
    sleep(Duration::from_secs(60)).await;
    lab.host.guest_powers_off(wish.instance);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_obey_an_old_wish_is_settled_after_its_timeout() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    lab.send(&wish.instance(2, stopped)).await;
    lab.wait_until("the question", || lab.host.lives(wish.instance).asked > 0)
        .await;
    let start = wish.instance(3, |_| {});
    lab.send(&start).await;
    lab.wait_status(&start, ConvergeStatus::Converged).await;
    sleep(Duration::from_secs(32)).await;
    let domain = lab.host.domain(wish.instance.as_uuid()).unwrap();
    assert_eq!(domain.metadata.unwrap().generation, Generation(3));
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

#[tokio::test(start_paused = true)]
async fn another_document_of_the_same_generation_is_carried_out() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let stop = wish.instance(2, stopped);
    lab.send(&stop).await;
    lab.wait_status(&stop, ConvergeStatus::Converged).await;
    // The scheduler's database was put back, and it counts on from there.
    lab.send(&wish.instance(2, |_| {})).await;
    lab.wait(stop.key(), "running", |report| {
        report.status == ConvergeStatus::Converged
            && report.power_state == Some(PowerState::Running)
    })
    .await;
    // From now on it is as carried out as any.
    lab.host.guest_powers_off(wish.instance);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
}

#[tokio::test(start_paused = true)]
async fn what_reappears_of_something_deleted_is_removed_again() {
    let mut lab = Lab::new().await;
    let (wish, network, instance) = running(&lab).await;
    let domain = DomainStep::Define(Box::new(domain_config(
        wish.instance,
        &wish.spec(),
        &facts(),
    )));
    for tombstone in [instance.tombstone(), network.tombstone()] {
        lab.send(&tombstone).await;
        lab.wait_status(&tombstone, ConvergeStatus::Gone).await;
    }
    // With this agent, and with the next one, which knows of the end by its journal only.
    for restart in [false, true] {
        if restart {
            lab.restart().await;
        }
        Compute::apply(&lab.host, &domain).await.unwrap();
        lab.host.have_bridge(wish.network);
        assert_eq!(lab.host.leftovers().len(), 2);
        lab.wait_until("nothing is left", || lab.host.leftovers().is_empty())
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_reappear_are_removed_again() {
    let lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    lab.send(&instance.tombstone()).await;
    lab.wait_status(&instance.tombstone(), ConvergeStatus::Gone)
        .await;
    let DiskSource::Image(image) = wish.spec().disks.remove(0).source;
    let disk = StorageStep::CreateDisk(DiskPlan {
        instance: wish.instance,
        name: DiskName::first(0),
        path: "/somewhere".into(),
        size: ByteCount::from_gb(DiskGb::new(1).unwrap()),
        format: DiskFormat::Qcow2,
        image,
    });
    Storage::apply(&lab.host, &disk, &watch::channel(None).0)
        .await
        .unwrap();
    let files = format!("files of instance {}", wish.instance);
    assert!(lab.host.leftovers().contains(&files));
    lab.wait_until("no files", || !lab.host.leftovers().contains(&files))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_libvirt_that_hangs_does_not_keep_networks_from_being_built() {
    let lab = Lab::new().await;
    lab.libvirt.wedged.store(true, Ordering::SeqCst);
    for _ in 0..8 {
        lab.send(&Wish::new(&lab).instance(1, |_| {})).await;
    }
    sleep(Duration::from_secs(1)).await;
    let network = Wish::new(&lab).network(1, &[]);
    lab.send(&network).await;
    let sent = tokio::time::Instant::now();
    lab.wait_status(&network, ConvergeStatus::Converged).await;
    assert!(sent.elapsed() < HANG / 2, "{:?}", sent.elapsed());
}

#[tokio::test(start_paused = true)]
async fn guests_that_hang_do_not_keep_others_from_being_worked_on() {
    let lab = Lab::new().await;
    let mut ill = Vec::new();
    for _ in 0..5 {
        ill.push(running(&lab).await.0);
    }
    let (well, ..) = running(&lab).await;
    let ids = ill.iter().map(|wish| wish.instance);
    lab.libvirt.hung.lock().unwrap().extend(ids);
    for wish in &ill {
        lab.send(&wish.instance(2, |spec| spec.power = DesiredPower::Paused))
            .await;
    }
    sleep(Duration::from_secs(1)).await;
    // More of them than are worked on at once, and each step hangs for longer than all of this takes.
    let sent = tokio::time::Instant::now();
    let off = well.instance(2, stopped);
    lab.send(&off).await;
    lab.wait_status(&off, ConvergeStatus::Converged).await;
    assert!(sent.elapsed() < HANG / 2, "{:?}", sent.elapsed());
    let on = well.instance(3, |_| {});
    lab.send(&on).await;
    lab.wait_status(&on, ConvergeStatus::Converged).await;
    for wish in &ill {
        let paused = wish.instance(2, |spec| spec.power = DesiredPower::Paused);
        let told = |report: &ResourceReport| {
            let fault = report.fault.as_ref();
            fault.is_some_and(|fault| fault.message.contains("its QEMU hangs"))
        };
        lab.wait(paused.key(), "the fault of its own", told).await;
    }
    lab.libvirt.hung.lock().unwrap().clear();
    for wish in &ill {
        let paused = wish.instance(2, |spec| spec.power = DesiredPower::Paused);
        lab.wait_status(&paused, ConvergeStatus::Converged).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_was_cleaned_up_is_fetched_for_the_next_start() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let stop = wish.instance(2, stopped);
    lab.send(&stop).await;
    lab.wait_status(&stop, ConvergeStatus::Converged).await;
    lab.host.lose_images();
    let start = wish.instance(3, |_| {});
    lab.send(&start).await;
    lab.wait_status(&start, ConvergeStatus::Converged).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_change_to_a_refused_instance_is_noticed() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let stop = wish.instance(2, stopped);
    lab.send(&stop).await;
    lab.wait_status(&stop, ConvergeStatus::Converged).await;
    lab.host.lose_disk(wish.instance, DiskName::first(0));
    let start = wish.instance(3, |_| {});
    lab.send(&start).await;
    lab.wait_status(&start, ConvergeStatus::Failed).await;
    // Without its domain there is nothing to lose any more: the disk is made anew.
    Compute::apply(&lab.host, &DomainStep::Undefine(wish.instance))
        .await
        .unwrap();
    let changed = tokio::time::Instant::now();
    lab.wait_status(&start, ConvergeStatus::Converged).await;
    assert!(
        changed.elapsed() < Duration::from_secs(30),
        "it did not wait for its turn: {:?}",
        changed.elapsed()
    );
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_gone_for_a_minute_is_no_event() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    lab.wait_until("work to begin", || lab.host.steps_done() > 0)
        .await;
    lab.broker.stop();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1, "work went on");
    lab.broker.start();
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_journal_costs_nothing_but_a_resend() {
    let mut lab = Lab::new().await;
    let (wish, network, instance) = running(&lab).await;
    lab.kill().await;
    let file = lab
        .state
        .path()
        .join(format!("journal/instance-{}.json", wish.instance));
    std::fs::write(&file, b"{\"document\": {\"kind\": \"inst").unwrap();
    lab.start();
    lab.wait_status(&network, ConvergeStatus::Converged).await;
    sleep(Duration::from_secs(600)).await;
    assert!(!file.exists());
    assert_eq!(
        lab.host.lives(wish.instance).starts,
        1,
        "what nobody claims is left alone"
    );
    let told = lab.known.lock().unwrap()[&instance.key()].len();
    lab.send(&instance).await;
    lab.wait_until("a report", || {
        lab.known.lock().unwrap()[&instance.key()].len() > told
    })
    .await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    let lives = lab.host.lives(wish.instance);
    assert_eq!((lives.starts, lives.destroys), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn libvirt_may_go_away_and_come_back() {
    let lab = Lab::new().await;
    let (_, _, before) = running(&lab).await;
    lab.libvirt.away.store(true, Ordering::SeqCst);
    let wish = Wish::new(&lab);
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    let report = lab.wait_status(&instance, ConvergeStatus::Failed).await;
    assert!(
        report
            .fault
            .unwrap()
            .message
            .contains("cannot reach libvirt")
    );
    assert_eq!(
        lab.newest(before.key()).unwrap().status,
        ConvergeStatus::Converged,
        "it runs as before"
    );
    sleep(Duration::from_secs(600)).await;
    assert_eq!(
        lab.newest(before.key()).unwrap().status,
        ConvergeStatus::Converged,
        "it runs as before"
    );
    lab.libvirt.away.store(false, Ordering::SeqCst);
    let back = tokio::time::Instant::now();
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert!(
        back.elapsed() < Duration::from_secs(10),
        "it did not wait for its turn: {:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_panics_is_a_failure_like_any_other() {
    let lab = Lab::new().await;
    lab.libvirt.defective.store(true, Ordering::SeqCst);
    let wish = Wish::new(&lab);
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    let report = lab.wait_status(&instance, ConvergeStatus::Failed).await;
    assert_eq!(report.fault.unwrap().code, FaultCode::Internal);
    lab.libvirt.defective.store(false, Ordering::SeqCst);
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
}

#[tokio::test(start_paused = true)]
async fn a_document_that_cannot_be_journalled_is_kept_until_it_can() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    let (journal, away) = (
        lab.state.path().join("journal"),
        lab.state.path().join("away"),
    );
    std::fs::rename(&journal, &away).unwrap();
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(
        lab.host.steps_done(),
        0,
        "what is not journalled is not acted on"
    );
    assert_eq!(lab.newest(instance.key()), None);
    std::fs::rename(&away, &journal).unwrap();
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert!(lab.dead().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_newer_document_breaks_off_what_is_being_tried() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    lab.host.image_is_unreachable(wish.url.clone());
    let [network, instance] = wish.both();
    lab.send(&network).await;
    lab.send(&instance).await;
    lab.wait(instance.key(), "a fault", |report| report.fault.is_some())
        .await;
    let tombstone = instance.tombstone();
    lab.send(&tombstone).await;
    lab.wait_status(&tombstone, ConvergeStatus::Gone).await;
}

#[tokio::test(start_paused = true)]
async fn what_berth_did_not_make_is_refused_and_left_alone() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    let theirs = DomainObserved {
        uuid: wish.instance.as_uuid(),
        name: "theirs".to_owned(),
        power_state: PowerState::Running,
        off_reason: None,
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        reason: String::new(),
        persistent: true,
        vcpus: Vcpus::new(1).unwrap(),
        memory_mb: MemoryMb::new(64).unwrap(),
        running: None,
        metadata: None,
        nics: Default::default(),
        disks: DomainDisks::default(),
    };
    lab.host.add_foreign(theirs.clone());
    let instance = wish.instance(1, |_| {});
    lab.send(&instance).await;
    let report = lab.wait_status(&instance, ConvergeStatus::Failed).await;
    assert_eq!(report.fault.unwrap().code, FaultCode::ForeignObject);
    assert_eq!(lab.host.domain(wish.instance.as_uuid()), Some(theirs));
    assert_eq!(lab.host.steps_done(), 0);
}

#[tokio::test(start_paused = true)]
async fn disks_stay_while_a_domain_without_berths_mark_may_use_them() {
    let mut lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let mut theirs = lab.host.domain(wish.instance.as_uuid()).unwrap();
    lab.kill().await;
    // The mark is lost: what was berth's domain is nobody's now, and runs on.
    for step in [
        DomainStep::Destroy(wish.instance),
        DomainStep::Undefine(wish.instance),
    ] {
        Compute::apply(&lab.host, &step).await.unwrap();
    }
    theirs.metadata = None;
    lab.host.add_foreign(theirs.clone());
    lab.start();
    let tombstone = wish.instance(1, |_| {}).tombstone();
    lab.send(&tombstone).await;
    let report = lab.wait_status(&tombstone, ConvergeStatus::Failed).await;
    let fault = report.fault.unwrap();
    assert_eq!(fault.code, FaultCode::ForeignObject);
    assert!(fault.message.contains(&theirs.name), "{fault:?}");
    let files = format!("files of instance {}", wish.instance);
    sleep(Duration::from_secs(700)).await;
    assert!(lab.host.leftovers().contains(&files));

    theirs.power_state = PowerState::Shutdown;
    lab.host.add_foreign(theirs.clone());
    lab.wait_status(&tombstone, ConvergeStatus::Gone).await;
    assert!(!lab.host.leftovers().contains(&files));
    assert_eq!(lab.host.domain(wish.instance.as_uuid()), Some(theirs));
}

#[tokio::test(start_paused = true)]
async fn unusable_messages_go_to_the_dead_with_their_reason_and_the_next_is_served() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    let body = |document: &Document| serde_json::to_vec(document).unwrap();
    let [network, instance] = wish.both();
    let mut foreign = instance.clone();
    if let Document::Instance(desired) = &mut foreign {
        desired.host_id = HostId::new();
    }
    let mut no_version =
        Message::from_json("document.instance", DOCUMENT_VERSION, "x", body(&instance));
    no_version.version = None;
    let nil = format!(
        r#"{{"kind":"network","id":"{}","generation":1,"host_id":"{}","spec":null}}"#,
        Uuid::nil(),
        lab.host_id
    );
    let missing = format!(
        r#"{{"kind":"network","id":"{}","generation":1,"host_id":"{}"}}"#,
        Uuid::now_v7(),
        lab.host_id
    );
    let cases = [
        (
            Message::from_json("document.instance", DOCUMENT_VERSION, "x", "{"),
            "the body is no document",
        ),
        (
            Message::from_json("document.instance", 9, "x", body(&instance)),
            "must be 5",
        ),
        (
            Message::from_json("instance.create", DOCUMENT_VERSION, "x", body(&instance)),
            "document.<kind>",
        ),
        (
            Message::from_json("document.network", DOCUMENT_VERSION, "x", body(&instance)),
            "kind instance",
        ),
        (
            Message::from_json("document.instance", DOCUMENT_VERSION, "x", body(&foreign)),
            "another host has had this name",
        ),
        (
            Message::from_json("document.network", DOCUMENT_VERSION, "x", nil),
            "nil UUID",
        ),
        (
            Message::from_json("document.network", DOCUMENT_VERSION, "x", missing),
            "spec",
        ),
        (no_version, "x-berth-version"),
        (
            Message::from_json(
                "document.instance",
                DOCUMENT_VERSION,
                "x",
                vec![b' '; 10 << 20],
            ),
            "more than the limit",
        ),
    ];
    for (message, _) in &cases {
        assert!(lab.broker.inject("compute.hv1", message.clone()));
    }
    lab.send(&network).await;
    lab.send(&instance).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    let dead = lab.dead().await;
    assert_eq!(dead.len(), cases.len(), "{dead:?}");
    for (_, reason) in &cases {
        assert!(
            dead.iter().any(|(_, found)| found.contains(reason)),
            "{reason:?} is missing in {dead:#?}"
        );
    }
    assert_eq!(
        lab.newest(DocumentKey {
            kind: Kind::Network,
            id: Uuid::nil()
        }),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn stopping_the_agent_touches_nothing_and_starting_it_neither() {
    let mut lab = Lab::new().await;
    let (wish, _, instance) = running(&lab).await;
    let (steps, told) = (
        lab.host.steps_done(),
        lab.known.lock().unwrap()[&instance.key()].len(),
    );
    let mut agent = lab.agent.take().unwrap();
    agent.cancel.cancel();
    while agent.tasks.join_next().await.is_some() {}
    drop(agent);
    lab.start();
    lab.wait_until("the report of the new session", || {
        lab.known.lock().unwrap()[&instance.key()].len() > told
    })
    .await;
    assert_eq!(
        lab.newest(instance.key()).unwrap().status,
        ConvergeStatus::Converged
    );
    assert_eq!(lab.host.steps_done(), steps);
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
    let known = lab.known.lock().unwrap();
    let since = &known[&instance.key()][told..];
    assert!(
        since
            .iter()
            .all(|report| report.status == ConvergeStatus::Converged),
        "it was well all the time: {since:#?}"
    );
}

#[tokio::test]
async fn leftovers_that_stay_are_told_until_a_start_finds_none() {
    let mut lab = Lab::new().await;
    for (leftover, status) in [(Some("/images/.tmp-x"), "degraded"), (None, "ok")] {
        lab.host.have_leftover(leftover);
        lab.restart().await;
        let told = || {
            let health = &lab.agent.as_ref().unwrap().health;
            health.report().components["leftovers"].clone()
        };
        lab.wait_until("the sweep", || told().status == status)
            .await;
        let reason = told().reason.unwrap_or_default();
        assert!(reason.contains(leftover.unwrap_or_default()), "{reason}");
    }
}
