//! A hypervisor with an agent that is killed and started again, and what is wished of it.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_agent::{
    act::{
        fake::FakeHost,
        libvirt::{Libvirt, Options},
        storage::{DirStorage, KeepFree, StorageOptions},
    },
    decide::{
        domain::VirtType,
        instance::{HostFacts, Paths},
        names,
        room::{HostSize, RoomToGrow},
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
    bus::{Bus, LocalBroker, Message, QueueDecl, Target},
    document::{
        DOCUMENT_VERSION, Desired, DesiredPower, DiskBus, Document, DocumentKey, ImageRef,
        Incarnation, InstancePort, InstanceSpec, InstanceVolume, NetworkSpec, PortLink, Reboot,
        RebootKind, Rescue, SnapshotSpec, VolumeFormat, VolumeSpec,
    },
    ids::{HostId, InstanceId, NetworkId, Nonce, PortId, SnapshotId, VolumeId},
    message::{
        catalogue::document_type,
        report::{ConvergeStatus, PowerState, Report, ResourceReport},
    },
    names::HostName,
    telemetry::{health::Health, registry::Metrics},
    units::{ByteCount, Generation, MemoryMb},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    deadly::{Deadly, Death, Trap},
    support::{Hypervisor, guest_image},
};

/// How long an operation may take with all its deaths, on a busy machine. A guest that boots gives a disk back only when
/// it is done with that, and a start that a libvirtd left unfinished is waited for before it is abandoned.
const LIMIT: Duration = Duration::from_secs(240);

/// The address of the instance's NIC.
const MAC: &str = "52:54:00:00:00:01";

type Known = Arc<Mutex<BTreeMap<DocumentKey, ResourceReport>>>;

/// An instance and a volume as they shall be.
pub(crate) struct Wish {
    host: HostId,
    image: PathBuf,
    sha256: String,
    instance: InstanceId,
    volume: VolumeId,
    network: NetworkId,
    port: PortId,
    spec: Option<InstanceSpec>,
    pub(crate) volume_gb: u64,
    snapshot: SnapshotId,
    pub(crate) snapshots: Snapshots,
}

/// What is wished of the volume's snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Snapshots {
    /// Nobody ever wished one.
    Never,
    One,
    /// There was one.
    Gone,
}

impl Wish {
    pub(crate) fn create(&mut self) {
        let spec = json!({
            "name": "law", "project": "default", "power": "running", "stop_timeout_seconds": 2,
            "flavor": {"vcpus": 1, "memory_mb": 128, "disk_gb": 1},
            "disks": [{"index": 0, "size_gb": 1, "format": "qcow2", "source": {"image": self.image_ref()}}],
            "ports": [],
            "config_drive": {},
        });
        self.spec = Some(serde_json::from_value(spec).unwrap());
        self.volume_gb = 1;
    }

    pub(crate) fn spec_mut(&mut self) -> &mut InstanceSpec {
        self.spec.as_mut().expect("it was created")
    }

    pub(crate) fn power(&mut self, power: DesiredPower) {
        self.spec_mut().power = power;
    }

    pub(crate) fn reboot(&mut self) {
        self.spec_mut().reboot = Some(Reboot {
            nonce: Nonce::new(),
            kind: RebootKind::Hard,
        });
    }

    pub(crate) fn attach(&mut self) {
        let volume: InstanceVolume =
            serde_json::from_value(json!({"id": self.volume, "position": 1, "format": "qcow2"}))
                .unwrap();
        self.spec_mut().volumes = vec![volume];
    }

    pub(crate) fn attach_port(&mut self) {
        let port: InstancePort = serde_json::from_value(json!({
            "id": self.port, "network_id": self.network, "mac_address": MAC, "fixed_ips": [], "mtu": 1500,
        }))
        .unwrap();
        self.spec_mut().ports = vec![port];
    }

    pub(crate) fn pull_cable(&mut self) {
        for port in &mut self.spec_mut().ports {
            port.link = PortLink::Down;
        }
    }

    pub(crate) fn detach_port(&mut self) {
        self.spec_mut().ports.clear();
    }

    /// The network, with the instance's port.
    fn network(&self) -> Option<NetworkSpec> {
        let spec = self.spec.as_ref()?;
        let ports: Vec<_> = spec
            .ports
            .iter()
            .map(|port| {
                json!({
                    "id": port.id, "instance_id": self.instance, "mac_address": MAC, "hostname": "law", "fixed_ips": [],
                })
            })
            .collect();
        let network = json!({
            "name": "net", "project": "default", "network_type": "local", "mtu": 1500, "subnets": [], "ports": ports,
        });
        Some(serde_json::from_value(network).unwrap())
    }

    pub(crate) fn attach_on_scsi(&mut self) {
        self.attach();
        for volume in &mut self.spec_mut().volumes {
            volume.disk_bus = DiskBus::Scsi;
        }
    }

    pub(crate) fn detach(&mut self) {
        self.spec_mut().volumes.clear();
    }

    pub(crate) fn rescue(&mut self) {
        let image = self.image_ref();
        self.spec_mut().rescue = Some(Rescue {
            nonce: Nonce::new(),
            image,
            size_gb: None,
        });
    }

    pub(crate) fn rebuild(&mut self) {
        for disk in &mut self.spec_mut().disks {
            disk.incarnation = Some(Incarnation {
                number: 1,
                nonce: Nonce::new(),
            });
        }
    }

    fn image_ref(&self) -> ImageRef {
        serde_json::from_value(json!({
            "url": format!("file://{}", self.image.display()), "sha256": self.sha256, "format": "qcow2",
        }))
        .unwrap()
    }

    pub(crate) fn delete(&mut self) {
        self.spec = None;
        self.volume_gb = 0;
    }

    fn documents(&self, generation: u64) -> Vec<Document> {
        let volume: Option<VolumeSpec> = (self.volume_gb > 0).then(|| {
            serde_json::from_value(json!({
                "name": "data", "project": "default", "size_gb": self.volume_gb, "format": "qcow2",
            }))
            .unwrap()
        });
        let snapshot: Option<SnapshotSpec> = (self.snapshots == Snapshots::One).then(|| {
            serde_json::from_value(json!({
                "name": "before", "project": "default", "size_gb": self.volume_gb,
                "volume": {"id": self.volume, "format": "qcow2"},
            }))
            .unwrap()
        });
        let snapshot = Document::Snapshot(Desired {
            id: self.snapshot,
            generation: Generation(generation),
            host_id: self.host,
            spec: snapshot,
        });
        let mut documents = vec![
            Document::Instance(Desired {
                id: self.instance,
                generation: Generation(generation),
                host_id: self.host,
                spec: self.spec.clone(),
            }),
            Document::Volume(Desired {
                id: self.volume,
                generation: Generation(generation),
                host_id: self.host,
                spec: volume,
            }),
            Document::Network(Desired {
                id: self.network,
                generation: Generation(generation),
                host_id: self.host,
                spec: self.network(),
            }),
        ];
        if self.snapshots != Snapshots::Never {
            documents.push(snapshot);
        }
        documents
    }
}

/// A running agent.
struct Agent {
    _state: StateDir,
    tasks: JoinSet<()>,
}

/// A hypervisor, its agent, and the scheduler's end of the bus.
pub(crate) struct Lab {
    agent: Option<Agent>,
    broker: LocalBroker,
    scheduler: Arc<dyn Bus>,
    known: Known,
    name: HostName,
    wish: Wish,
    generation: u64,
    sent: Vec<Document>,
    /// How often the agent died.
    pub(crate) kills: u32,
    pub(crate) trap: Arc<Trap>,
    hypervisor: Arc<Hypervisor>,
}

impl Lab {
    pub(crate) async fn new(death: Death) -> Self {
        let hypervisor = Arc::new(Hypervisor::start());
        let network = NetworkId::new();
        hypervisor.add_bridge(&names::bridge(network));
        let images = hypervisor.path().join("published");
        fs::create_dir(&images).unwrap();
        let image = images.join("guest.qcow2");
        fs::copy(guest_image(), &image).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
        let digest = Sha256::digest(fs::read(&image).unwrap());
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let state = StateDir::open(&hypervisor.path().join("state")).unwrap();
        let host = state.host_id();
        drop(state);
        let broker = LocalBroker::new(7);
        let scheduler: Arc<dyn Bus> = Arc::new(broker.connect());
        let known = Known::default();
        tokio::spawn(listen(Arc::clone(&scheduler), Arc::clone(&known)));
        let name: HostName = "hv1".parse().unwrap();
        let queue = QueueDecl::compute(name.as_str());
        scheduler.declare(&queue).await.unwrap();
        let mut lab = Self {
            agent: None,
            broker,
            scheduler,
            known,
            name,
            wish: Wish {
                host,
                image,
                sha256,
                instance: InstanceId::new(),
                volume: VolumeId::new(),
                network,
                port: PortId::new(),
                spec: None,
                volume_gb: 0,
                snapshot: SnapshotId::new(),
                snapshots: Snapshots::Never,
            },
            generation: 0,
            sent: Vec::new(),
            kills: 0,
            trap: Arc::new(Trap::new(death, Arc::clone(&hypervisor))),
            hypervisor,
        };
        lab.start();
        lab
    }

    fn state(&self) -> PathBuf {
        self.hypervisor.path().join("state")
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths::below(&self.state())
    }

    fn start(&mut self) {
        let state = StateDir::open(&self.state()).unwrap();
        let (journal, corrupt) =
            Journal::open(&state.journal(), state.host_id(), state.ballast().clone()).unwrap();
        assert_eq!(corrupt.len(), 0);
        let journal = Arc::new(journal);
        let metrics = AgentMetrics::new(&Metrics::new("test", "1").unwrap()).unwrap();
        let health = Health::new();
        let bus: Arc<dyn Bus> = Arc::new(self.broker.connect());
        let (reports, glances) = (Reports::default(), Glances::default());
        let options = StorageOptions {
            keep_free: KeepFree {
                bytes: ByteCount::clamped(0),
                percent: 0,
            },
            ..StorageOptions::default()
        };
        let facts = HostFacts {
            virt_type: VirtType::Qemu,
            arch: "x86_64".to_owned(),
            has_cpu_controller: false,
            size: HostSize {
                cpus: 4,
                memory_mb: MemoryMb::clamped(8192),
            },
            room_to_grow: RoomToGrow::Given,
            paths: self.paths(),
        };
        let (facts_sender, facts) = watch::channel(Some(facts));
        let (engine, handle) = Engine::new(Parts {
            host: Host {
                compute: Arc::new(Deadly {
                    real: Libvirt::start(&self.hypervisor.address(), Options::default()),
                    trap: Arc::clone(&self.trap),
                }),
                storage: Arc::new(Deadly {
                    real: DirStorage::new(self.paths(), options),
                    trap: Arc::clone(&self.trap),
                }),
                // The bridge of its network is there from the beginning.
                net: Arc::new(FakeHost::new()),
            },
            facts,
            journal: Arc::clone(&journal),
            reports: reports.clone(),
            glances: glances.clone(),
            metrics: metrics.clone(),
            health: health.component("engine"),
            libvirt: health.component("libvirt"),
            leftovers: health.component("leftovers"),
            resync_every: Duration::from_secs(2),
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
        tasks.spawn(async move {
            engine.run(cancel).await;
            drop(facts_sender);
        });
        self.agent = Some(Agent {
            _state: state,
            tasks,
        });
    }

    /// Ends the agent without a word.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.tasks.shutdown().await;
        }
    }

    /// Changes what is wished, and sends all of it: the old documents once more, the new ones twice.
    pub(crate) fn wish_anew(&mut self, change: fn(&mut Wish)) -> Vec<Document> {
        change(&mut self.wish);
        self.generation += 1;
        self.wish.documents(self.generation)
    }

    /// Sends the documents, in any order and number, until the host says that it is as they say; kills the agent whenever
    /// that is due.
    pub(crate) async fn converge(&mut self, operation: &str, documents: &[Document]) {
        let old = std::mem::replace(&mut self.sent, documents.to_vec());
        for document in documents.iter().rev().chain(&old).chain(documents) {
            self.send(document).await;
        }
        let trap = Arc::clone(&self.trap);
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            let known = Arc::clone(&self.known);
            tokio::select! {
                biased;
                () = trap.sprung.notified() => {
                    self.kill().await;
                    self.kills += 1;
                    self.start();
                    // As the scheduler does in a new session.
                    for document in documents {
                        self.send(document).await;
                    }
                }
                () = done(known, documents) => return,
                () = tokio::time::sleep_until(end) => panic!(
                    "{operation}: not done in time; known: {:#?}\n{}",
                    self.known.lock().unwrap(),
                    self.virsh(&["list", "--all"])
                ),
            }
        }
    }

    async fn send(&self, document: &Document) {
        let method = document_type(document.key().kind);
        let message = Message::new(method, DOCUMENT_VERSION, "test", document).unwrap();
        let target = Target::queue(format!("compute.{}", self.name));
        self.scheduler.publish(target, message).await.unwrap();
    }

    pub(crate) fn domain(&self) -> String {
        names::domain(self.wish.instance)
    }

    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        self.hypervisor.wait_libvirtd();
        self.hypervisor.virsh(arguments)
    }

    /// As the newest report says.
    pub(crate) fn power_state(&self) -> Option<PowerState> {
        let known = self.known.lock().unwrap();
        let mut reports = known.values();
        reports.find_map(|report| report.power_state)
    }

    pub(crate) fn qemu_pid(&self) -> Option<String> {
        let pids = self.hypervisor.qemu_pids();
        let pids: Vec<_> = pids.split_whitespace().collect();
        assert!(pids.len() <= 1, "it runs more than once: {pids:?}");
        pids.first().map(|pid| (*pid).to_owned())
    }

    /// The disks of the domain, as libvirt lists them, without its config drive.
    pub(crate) fn block_devices(&self) -> Vec<String> {
        let list = self.virsh(&["domblklist", &self.domain()]);
        let disks = list.lines().filter(|line| line.contains(".qcow2"));
        disks.map(str::to_owned).collect()
    }

    /// The guest's NICs, as libvirt lists them.
    pub(crate) fn nics(&self) -> Vec<String> {
        let list = self.virsh(&["domiflist", &self.domain()]);
        let nics = list.lines().filter(|line| line.contains(MAC));
        nics.map(str::to_owned).collect()
    }

    /// Files with the memory of guests.
    pub(crate) fn saved_memories(&self) -> usize {
        let saved = ["find", "/var/lib/libvirt/qemu/save", "-type", "f"];
        self.hypervisor.run(&saved).lines().count()
    }

    pub(crate) fn volume_path(&self) -> PathBuf {
        self.paths()
            .volume_file(self.wish.volume, VolumeFormat::Qcow2)
    }

    pub(crate) fn snapshot_path(&self) -> PathBuf {
        self.paths().snapshot_file(self.wish.snapshot)
    }

    /// Its own root disk: there is one, whatever it was made from.
    pub(crate) fn root_disk(&self) -> PathBuf {
        let disks = self.instance_files("disk");
        assert_eq!(disks.len(), 1, "{disks:?}");
        disks.into_iter().next().unwrap()
    }

    /// Files of the instance whose names begin so.
    pub(crate) fn instance_files(&self, prefix: &str) -> Vec<PathBuf> {
        let folder = self.paths().instance(self.wish.instance);
        let entries = fs::read_dir(folder).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with(prefix)
            })
            .collect()
    }

    pub(crate) fn virtual_size(&self, path: &Path) -> ByteCount {
        let output = Command::new("qemu-img")
            .args(["info", "-U", "-f", "qcow2", "--output", "json"])
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        ByteCount::clamped(info["virtual-size"].as_u64().unwrap())
    }

    /// Writes to a disk that nobody has.
    pub(crate) fn write_pattern(&self, path: &Path) {
        let written = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "write -P 0x5a 0 8M", "-c"])
            .arg("write -P 0xa5 900M 8M")
            .arg(path)
            .output()
            .unwrap();
        assert!(written.status.success(), "{written:?}");
    }

    /// Both hold the same.
    pub(crate) fn assert_same(&self, one: &Path, other: &Path) {
        let compared = Command::new("qemu-img")
            .args(["compare", "-U", "-f", "qcow2", "-F", "qcow2"])
            .args([one, other])
            .output()
            .unwrap();
        assert!(compared.status.success(), "{compared:?}");
    }

    /// Everything in the directories of images, instances, volumes and marks, below the state directory.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut folders = ["images", "instances", "volumes", "snapshots", "made"]
            .map(|name| self.state().join(name))
            .to_vec();
        while let Some(folder) = folders.pop() {
            if !seen.insert(folder.clone()) || !folder.exists() {
                continue;
            }
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let relative = path.strip_prefix(self.state()).unwrap();
                found.push(relative.display().to_string());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }
}

/// Waits until the host has said of all documents that it is as they say.
async fn done(known: Known, documents: &[Document]) {
    let is_done = |document: &Document| {
        let wanted = if document.is_tombstone() {
            ConvergeStatus::Gone
        } else {
            ConvergeStatus::Converged
        };
        let known = known.lock().unwrap();
        known.get(&document.key()).is_some_and(|report| {
            report.generation == document.generation() && report.status == wanted
        })
    };
    while !documents.iter().all(is_done) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Notes the newest report of each resource; an older one is ignored, as the scheduler does.
async fn listen(bus: Arc<dyn Bus>, known: Known) {
    let mut consumer = bus.consume(&QueueDecl::reports(), 100).await.unwrap();
    let mut newest = (0, 0);
    while let Some(delivery) = consumer.next().await {
        let report: Report = delivery.message.decode().unwrap();
        if (report.session, report.sequence) > newest {
            newest = (report.session, report.sequence);
            let mut known = known.lock().unwrap();
            for resource in report.resources {
                known.insert(resource.key, resource);
            }
        }
        delivery.ack().await;
    }
}
