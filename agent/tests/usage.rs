//! What is used, measured on a host in memory and on a real libvirtd, and read as Prometheus reads it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test, a panic is a failed assertion"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use berth_agent::{
    act::{
        ActError, Compute, Usage,
        fake::{Busy, FakeHost},
        libvirt::{Libvirt, Options},
    },
    decide::{
        domain::{
            DomainConfig, DomainDisk, DomainDisks, DomainMetadata, DomainNic, DomainObserved,
            DomainStep, VirtType,
        },
        instance::DiskName,
        names,
        room::Room,
        usage::{Activity, DomainUsage, OwnUsage, Picture, Rates, Traffic, Transfer},
    },
    inbox::journal::Journal,
    metrics::{AgentMetrics, usage::MOST_DOMAINS},
    report::{glance::Glances, usage::Meter},
    state::ballast::Ballast,
};
use berth_common::{
    document::{
        Desired, DesiredPower, DiskFormat, DiskSource, Document, Flavor, ImageFormat, ImageRef,
        InstanceDisk, InstancePort, InstanceSpec, Kind, PortLink, VolumeAccess, VolumeLimits,
    },
    ids::{HostId, InstanceId, NetworkId, PortId},
    message::report::{FaultCode, PowerState},
    names::MacAddress,
    telemetry::{health::Health, http, registry::Metrics},
    units::{ByteCount, DiskGb, Generation, MemoryMb, Vcpus},
};
use support::{Hypervisor, LIMIT, guest_image, wait_for};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The pause between two measurements on the host in memory, where time passes when everybody waits.
const EVERY: Duration = Duration::from_secs(10);

/// How libvirt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Answers,
    Away,
    Hangs,
}

/// The libvirt of a host in memory, with moods.
struct Moody {
    host: FakeHost,
    mood: Mutex<Mood>,
}

#[async_trait]
impl Usage for Moody {
    async fn usage(&self) -> Result<Vec<DomainUsage>, ActError> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Answers => self.host.usage().await,
            Mood::Away => Err(ActError::refused(FaultCode::Hypervisor, "libvirt is away")),
            Mood::Hangs => std::future::pending().await,
        }
    }
}

/// A host in memory, and what is shown of it.
struct Bench {
    host: FakeHost,
    libvirt: Arc<Moody>,
    glances: Glances,
    journal: Arc<Journal>,
    metrics: Metrics,
    agent: AgentMetrics,
    host_id: HostId,
    directory: TempDir,
    _end: tokio_util::sync::DropGuard,
}

impl Bench {
    /// Begins to measure.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host_id = HostId::new();
        let journal = open_journal(directory.path(), host_id);
        let host = FakeHost::new();
        let libvirt = Arc::new(Moody {
            host: host.clone(),
            mood: Mutex::new(Mood::Answers),
        });
        let metrics = Metrics::new("agent", "1").unwrap();
        let agent = AgentMetrics::new(&metrics).unwrap();
        let glances = Glances::default();
        let cancel = CancellationToken::new();
        let meter = Meter {
            usage: libvirt.clone(),
            storage: Arc::new(host.clone()),
            net: Arc::new(host.clone()),
            glances: glances.clone(),
            journal: Arc::clone(&journal),
            root: machine(directory.path()),
            every: EVERY,
            figures: agent.usage().clone(),
        };
        tokio::spawn(meter.run(cancel.clone()));
        Self {
            host,
            libvirt,
            glances,
            journal,
            metrics,
            agent,
            host_id,
            directory,
            _end: cancel.drop_guard(),
        }
    }

    /// An instance that runs, with a document that calls it so.
    async fn instance(&self, name: &str) -> InstanceId {
        let id = InstanceId::new();
        let network = NetworkId::new();
        self.host.have_bridge(network);
        let root = DiskName::first(0);
        let disk = DomainDisk {
            path: self
                .directory
                .path()
                .join(id.to_string())
                .join(root.file_name(DiskFormat::Qcow2)),
            ..disk("vda", self.directory.path())
        };
        let config = config(id, network, vec![disk]);
        let size = ByteCount::from_gb(DiskGb::clamped(1));
        self.host.have_disk(id, root, size);
        self.journal.put(document(id, self.host_id, name)).unwrap();
        self.step(DomainStep::Define(Box::new(config))).await;
        self.step(DomainStep::Start(id)).await;
        self.look().await;
        id
    }

    async fn step(&self, step: DomainStep) {
        Compute::apply(&self.host, &step).await.unwrap();
    }

    /// What the engine does every few seconds.
    async fn look(&self) {
        let domains = Arc::new(Compute::observe(&self.host).await.unwrap());
        self.glances
            .update(|glance| glance.domains = Some((Instant::now(), domains)));
    }

    /// What is shown after the next measurement.
    async fn next(&self) -> String {
        self.look().await;
        sleep(EVERY).await;
        self.metrics.render().unwrap()
    }

    fn set_mood(&self, mood: Mood) {
        *self.libvirt.mood.lock().unwrap() = mood;
    }
}

fn open_journal(directory: &Path, host_id: HostId) -> Arc<Journal> {
    let path = directory.join("journal");
    fs::create_dir_all(&path).unwrap();
    let (journal, _) = Journal::open(&path, host_id, Ballast::of(directory)).unwrap();
    Arc::new(journal)
}

/// A machine's `/proc` and `/sys`, as far as they are read.
fn machine(directory: &Path) -> PathBuf {
    let root = directory.join("machine");
    for (path, text) in [
        ("proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 1024 kB\n"),
        ("sys/kernel/mm/ksm/pages_shared", "1\n"),
        ("sys/kernel/mm/ksm/pages_sharing", "2\n"),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "8\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "5\n",
        ),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn document(id: InstanceId, host_id: HostId, name: &str) -> Document {
    document_with(id, host_id, name, Vec::new())
}

fn document_with(
    id: InstanceId,
    host_id: HostId,
    name: &str,
    ports: Vec<InstancePort>,
) -> Document {
    let image = ImageRef {
        url: "https://images.example/x".parse().unwrap(),
        sha256: "0".repeat(64).parse().unwrap(),
        format: ImageFormat::Qcow2,
    };
    let flavor = Flavor {
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(128),
        disk_gb: DiskGb::clamped(3),
    };
    let disk = InstanceDisk {
        index: 0,
        size_gb: flavor.disk_gb,
        format: DiskFormat::Qcow2,
        source: DiskSource::Image(image),
        incarnation: None,
    };
    Document::Instance(Desired {
        id,
        generation: Generation(1),
        host_id,
        spec: Some(InstanceSpec {
            name: name.parse().unwrap(),
            project: "shop".parse().unwrap(),
            power: DesiredPower::Running,
            reboot: None,
            stop_timeout_seconds: 1,
            flavor,
            disks: vec![disk],
            ports,
            volumes: Vec::new(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::default(),
        }),
    })
}

fn disk(target: &str, folder: &Path) -> DomainDisk {
    DomainDisk {
        path: folder.join(target),
        format: "qcow2",
        backing: Vec::new(),
        target: target.to_owned(),
        serial: target.to_owned(),
        access: VolumeAccess::ReadWrite,
        limits: VolumeLimits::default(),
    }
}

fn config(id: InstanceId, network: NetworkId, disks: Vec<DomainDisk>) -> DomainConfig {
    let port = PortId::new();
    let console = disks.first().unwrap().path.with_extension("console");
    DomainConfig {
        id,
        title: "measured".to_owned(),
        virt_type: VirtType::Qemu,
        arch: "x86_64".to_owned(),
        vcpus: Vcpus::clamped(1),
        cpu_shares: None,
        memory_mb: MemoryMb::clamped(128),
        room: Room::none(Vcpus::clamped(1), MemoryMb::clamped(128)),
        disks,
        nics: vec![DomainNic {
            port,
            mac_address: MacAddress::derived(port.as_uuid().as_bytes()),
            bridge: names::bridge(network),
            tap: names::tap(port),
            mtu: 1400,
            link: berth_common::document::PortLink::Up,
        }],
        config_drive: None,
        console_log: console,
        metadata: DomainMetadata {
            instance_id: id,
            generation: Generation(1),
            reboot_nonce: None,
            digest: String::new(),
            left_off: None,
        },
    }
}

fn foreign(uuid: Uuid) -> DomainObserved {
    DomainObserved {
        uuid,
        name: "theirs\"} 1".to_owned(),
        power_state: PowerState::Running,
        off_reason: None,
        reason: "running".to_owned(),
        persistent: true,
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(64),
        running: None,
        disks: DomainDisks::default(),
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        metadata: None,
        nics: Default::default(),
    }
}

/// So much of everything.
fn work(amount: u64) -> Activity {
    let transfer = Some(Transfer {
        bytes: amount,
        requests: amount,
    });
    let traffic = Some(Traffic {
        bytes: amount,
        packets: amount,
        drops: amount,
        errors: 0,
    });
    Activity {
        cpu: Some(Duration::from_secs(amount)),
        read: transfer,
        written: transfer,
        received: traffic,
        sent: traffic,
    }
}

/// The value of a series.
#[track_caller]
fn value(page: &str, series: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(series));
    let found = found.unwrap_or_else(|| panic!("no {series} in:\n{page}"));
    found.trim().parse().unwrap()
}

fn series_of(page: &str, id: &str) -> usize {
    page.lines().filter(|line| line.contains(id)).count()
}

/// Has Prometheus' own checker read a page.
#[track_caller]
fn promtool(page: &str) {
    let mut checker = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed (Debian's package prometheus)");
    let mut input = checker.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let output = checker.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{page}");
}

/// Asks an agent's own server for its page.
async fn scrape(metrics: Metrics) -> String {
    let listener = http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let cancel = CancellationToken::new();
    let server = tokio::spawn(http::serve(
        listener,
        metrics,
        Health::new(),
        cancel.clone(),
    ));
    let page = tokio::task::spawn_blocking(move || {
        let mut answer = ureq::get(&url).call().unwrap();
        answer.body_mut().read_to_string().unwrap()
    });
    let page = page.await.unwrap();
    cancel.cancel();
    server.await.unwrap().unwrap();
    page
}

#[tokio::test(start_paused = true)]
async fn each_instance_has_its_series_and_they_go_with_it() {
    let bench = Bench::start();
    let web = bench.instance("web").await;
    let db = bench.instance("db").await;
    let page = bench.next().await;
    assert_eq!(
        value(
            &page,
            &format!(
                "berth_agent_domain_info{{instance_id=\"{web}\",name=\"web\",project=\"shop\"}}"
            )
        ),
        1.0
    );
    bench.host.guest_works(web.as_uuid(), work(20));
    let page = bench.next().await;
    let of = |page: &str, id: InstanceId, name: &str, more: &str| {
        value(
            page,
            &format!("berth_agent_domain_{name}{{instance_id=\"{id}\"{more}}}"),
        )
    };
    assert_eq!(of(&page, web, "cpu_seconds_total", ""), 20.0);
    assert_eq!(of(&page, web, "cpu_cores", ""), 2.0);
    assert_eq!(of(&page, db, "cpu_cores", ""), 0.0);
    assert_eq!(
        of(&page, web, "disk_written_bytes_total", ",disk=\"vda\""),
        20.0
    );
    assert_eq!(
        of(&page, web, "disk_bytes_per_second", ",direction=\"write\""),
        2.0
    );
    assert_eq!(
        of(&page, web, "network_sent_drops_total", ",nic=\"0\""),
        20.0
    );
    assert_eq!(
        of(
            &page,
            web,
            "network_packets_per_second",
            ",direction=\"receive\""
        ),
        2.0
    );
    assert_eq!(
        of(&page, web, "memory_resident_bytes", ""),
        f64::from(128 << 20)
    );
    assert!(
        !page.contains("guest_memory_unused"),
        "a guest that tells nothing"
    );
    assert_eq!(
        value(&page, "berth_agent_pool_provisioned_bytes{pool=\"local\"}"),
        f64::from(6) * f64::from(1 << 30)
    );
    assert_eq!(
        value(&page, "berth_agent_host_memory_available_bytes"),
        f64::from(1 << 20)
    );
    assert_eq!(
        value(
            &page,
            "berth_agent_host_huge_pages_free{page_bytes=\"2097152\"}"
        ),
        5.0
    );

    // Started anew, it begins anew: the counter falls, the rate does not.
    bench.step(DomainStep::Destroy(web)).await;
    bench.step(DomainStep::Start(web)).await;
    bench.host.guest_works(web.as_uuid(), work(5));
    let page = bench.next().await;
    assert_eq!(of(&page, web, "cpu_seconds_total", ""), 5.0);
    assert_eq!(of(&page, web, "cpu_cores", ""), 0.5);

    // Busy, it tells less, and what it does not tell is not there.
    bench.host.set_busy(web.as_uuid(), Busy::Yes);
    let page = bench.next().await;
    assert_eq!(of(&page, web, "cpu_seconds_total", ""), 5.0);
    assert!(!page.contains(&format!(
        "domain_disk_written_bytes_total{{instance_id=\"{web}\""
    )));
    bench.host.set_busy(web.as_uuid(), Busy::No);

    bench.step(DomainStep::Destroy(web)).await;
    bench.step(DomainStep::Undefine(web)).await;
    let page = bench.next().await;
    assert_eq!(series_of(&page, &web.to_string()), 0, "{page}");
    assert!(series_of(&page, &db.to_string()) > 20, "{page}");
}

#[tokio::test(start_paused = true)]
async fn foreign_domains_are_one_sum_that_never_falls() {
    let bench = Bench::start();
    let uuids = [Uuid::from_u128(1), Uuid::from_u128(2)];
    for uuid in uuids {
        bench.host.add_foreign(foreign(uuid));
    }
    let page = bench.next().await;
    assert_eq!(value(&page, "berth_agent_foreign_domains_running"), 2.0);
    bench.host.guest_works(uuids[0], work(3));
    bench.host.guest_works(uuids[1], work(4));
    let page = bench.next().await;
    assert_eq!(value(&page, "berth_agent_foreign_cpu_seconds_total"), 7.0);
    assert_eq!(
        value(&page, "berth_agent_foreign_memory_resident_bytes"),
        f64::from(128 << 20)
    );
    bench.host.remove_foreign(uuids[1]);
    bench.host.guest_works(uuids[0], work(1));
    let page = bench.next().await;
    assert_eq!(value(&page, "berth_agent_foreign_domains_running"), 1.0);
    assert_eq!(
        value(&page, "berth_agent_foreign_network_sent_bytes_total"),
        8.0
    );
    for word in ["theirs", &uuids[0].to_string()] {
        assert!(!page.contains(word), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_libvirt_is_away_or_hangs_the_figures_of_domains_vanish_and_the_others_stay() {
    let bench = Bench::start();
    let web = bench.instance("web").await;
    let shown = |page: &str| {
        assert_eq!(
            value(page, "berth_agent_host_memory_bytes"),
            f64::from(4 << 20)
        );
        assert!(value(page, "berth_agent_pool_capacity_bytes{pool=\"local\"}") > 0.0);
        let foreign = page.contains("\nberth_agent_foreign_domains_running");
        assert_eq!(foreign, series_of(page, &web.to_string()) > 0, "{page}");
        foreign
    };
    for (mood, periods) in [(Mood::Away, 1), (Mood::Hangs, 4)] {
        bench.set_mood(Mood::Answers);
        assert!(shown(&bench.next().await));
        bench.set_mood(mood);
        for _ in 0..periods {
            bench.next().await;
        }
        let page = bench.metrics.render().unwrap();
        assert!(!shown(&page), "{mood:?}: {page}");
    }
}

#[tokio::test]
async fn however_many_domains_there_are_series_are_bounded() {
    let bench = Bench::start();
    let transfer = work(1);
    let usage = |instance: InstanceId| OwnUsage {
        instance,
        label: None,
        usage: DomainUsage {
            uuid: instance.as_uuid(),
            run: Some(1),
            cpu: transfer.cpu,
            ..DomainUsage::default()
        },
        rates: Rates::default(),
    };
    let many = MOST_DOMAINS + 76;
    let picture = Picture {
        own: (0..many).map(|_| usage(InstanceId::new())).collect(),
        ..Picture::default()
    };
    bench.agent.usage().domains(Some(picture), LIMIT);
    let page = bench.metrics.render().unwrap();
    let lines = page.lines().filter(|line| line.contains("instance_id"));
    let ids: BTreeSet<_> = lines.map(|line| line.split('"').nth(1)).collect();
    assert_eq!(ids.len(), MOST_DOMAINS);
    assert_eq!(value(&page, "berth_agent_domains_unshown"), 76.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_guest_is_measured_and_prometheus_finds_no_fault_with_the_page() {
    let hypervisor = Hypervisor::start();
    let options = Options {
        usage_deadline: Duration::from_secs(30),
        ..Options::default()
    };
    let libvirt = Arc::new(Libvirt::start(&hypervisor.address(), options));
    told(&libvirt, <[DomainUsage]>::is_empty).await;

    let id = InstanceId::new();
    let network = NetworkId::new();
    hypervisor.add_bridge(&names::bridge(network));
    let image = hypervisor.path().join("vda");
    fs::copy(guest_image(), &image).unwrap();
    let mut config = config(id, network, vec![disk("vda", hypervisor.path())]);
    config.metadata.digest = config.digest();
    let step = async |step| apply(&libvirt, step).await;
    step(DomainStep::Define(Box::new(config.clone()))).await;
    told(&libvirt, <[DomainUsage]>::is_empty).await;
    step(DomainStep::Start(id)).await;
    let theirs = hypervisor.path().join("theirs.xml");
    fs::write(&theirs, "<domain type='qemu'><name>theirs</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>").unwrap();
    hypervisor.virsh(&["create", theirs.to_str().unwrap()]);

    // Through the whole of it: measured, labelled, shown, served, checked.
    let metrics = Metrics::new("agent", "1").unwrap();
    let agent = AgentMetrics::new(&metrics).unwrap();
    let host_id = HostId::new();
    let directory = tempfile::tempdir().unwrap();
    let journal = open_journal(directory.path(), host_id);
    let nic = config.nics[0].clone();
    let port = InstancePort {
        id: nic.port,
        network_id: network,
        mac_address: nic.mac_address,
        fixed_ips: Vec::new(),
        mtu: nic.mtu,
        link: PortLink::Up,
    };
    journal
        .put(document_with(id, host_id, "web", vec![port]))
        .unwrap();
    let glances = Glances::default();
    let observed = Arc::new(Compute::observe(&*libvirt).await.unwrap());
    glances.update(|glance| glance.domains = Some((Instant::now(), observed)));
    let cancel = CancellationToken::new();
    let meter = Meter {
        usage: libvirt.clone(),
        storage: Arc::new(FakeHost::new()),
        net: Arc::new(FakeHost::new()),
        glances,
        journal,
        root: PathBuf::from("/"),
        every: Duration::from_secs(5),
        figures: agent.usage().clone(),
    };
    let measuring = tokio::spawn(meter.run(cancel.clone()));
    let read =
        format!("berth_agent_domain_disk_read_bytes_total{{instance_id=\"{id}\",disk=\"vda\"}}");
    let rate = format!(
        "berth_agent_domain_disk_bytes_per_second{{instance_id=\"{id}\",direction=\"read\"}}"
    );
    let page = wait_for("figures and rates of the guest", || {
        let page = metrics.render().unwrap();
        let has = |series: &str| {
            page.lines()
                .any(|line| line.starts_with(series) && !line.ends_with(" 0"))
        };
        (has(&read) && page.contains(&rate))
            .then(|| page.clone())
            .ok_or(page)
    });
    let memory = format!("berth_agent_domain_memory_maximum_bytes{{instance_id=\"{id}\"}}");
    assert_eq!(value(&page, &memory), f64::from(128 << 20));
    for name in ["memory_balloon_bytes", "memory_resident_bytes"] {
        assert!(
            value(
                &page,
                &format!("berth_agent_domain_{name}{{instance_id=\"{id}\"}}")
            ) > f64::from(1 << 20)
        );
    }
    assert_eq!(value(&page, "berth_agent_foreign_domains_running"), 1.0);
    its_nic_is_that_of_its_port(&hypervisor, &metrics, id, (network, &nic));

    touch_all(&agent);
    let page = scrape(metrics.clone()).await;
    assert!(
        page.contains(&read) && page.contains("berth_agent_steps_total"),
        "{page}"
    );
    promtool(&page);
    cancel.cancel();
    measuring.await.unwrap();
}

/// The guest asks for an address, the host looks for guests, and the figures of the NIC are what the kernel says of the tap, the
/// other way round: what the tap receives is what the guest sends.
fn its_nic_is_that_of_its_port(
    hypervisor: &Hypervisor,
    metrics: &Metrics,
    id: InstanceId,
    (network, nic): (NetworkId, &DomainNic),
) {
    let bridge = names::bridge(network);
    hypervisor.run(&["ip", "address", "add", "10.9.0.1/24", "dev", &bridge]);
    let series = |direction: &str, what: &str| {
        format!(
            "berth_agent_domain_network_{direction}_{what}_total{{instance_id=\"{id}\",nic=\"0\"}}"
        )
    };
    wait_for("traffic of the guest in both directions", || {
        // Nobody answers: these are questions to everybody for the Ethernet address.
        let _ = hypervisor.try_run(&["ping", "-c", "1", "-W", "1", "10.9.0.2"]);
        let tap = statistics(hypervisor, &nic.tap);
        let [[received, ..], [sent, ..]] = tap;
        (received > 0.0 && sent > 0.0 && received != sent)
            .then_some(())
            .ok_or_else(|| format!("{tap:?}"))
    });
    // So that nothing passes between the measurement and the look at the tap.
    hypervisor.virsh(&["suspend", &names::domain(id)]);
    let page = wait_for("the figures of the NIC to be those of its tap", || {
        let tap = statistics(hypervisor, &nic.tap);
        let page = metrics.render().unwrap();
        let shown = ["received", "sent"].map(|direction| {
            ["bytes", "packets", "drops", "errors"]
                .map(|what| figure(&page, &series(direction, what)))
        });
        (shown == tap.map(|counted| counted.map(Some)))
            .then_some(page)
            .ok_or_else(|| format!("the tap counted {tap:?}, and {shown:?} is shown"))
    });

    // Which port it is of.
    let told = page
        .lines()
        .filter(|line| line.starts_with("berth_agent_domain_network_port_info{"));
    let expected = format!(
        "berth_agent_domain_network_port_info{{instance_id=\"{id}\",nic=\"0\",port_id=\"{}\"}} 1",
        nic.port
    );
    assert_eq!(told.collect::<Vec<_>>(), [expected]);
}

/// What the kernel counted of a tap, as its guest sees it: bytes, packets, drops and errors that it received, and that it sent.
fn statistics(hypervisor: &Hypervisor, tap: &str) -> [[f64; 4]; 2] {
    // A /sys of the hypervisor's own namespace.
    let script = "mount -t sysfs sysfs /sys && cd /sys/class/net/$0/statistics && cat \
        tx_bytes tx_packets tx_dropped tx_errors rx_bytes rx_packets rx_dropped rx_errors";
    let text = hypervisor.run(&["unshare", "--mount", "sh", "-c", script, tap]);
    let mut numbers = text.lines().map(|line| line.parse().unwrap());
    [(); 2].map(|()| [(); 4].map(|()| numbers.next().unwrap()))
}

/// A figure of the page, if it is there.
fn figure(page: &str, series: &str) -> Option<f64> {
    let mut lines = page.lines();
    lines.find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Every other figure of an agent, once.
fn touch_all(agent: &AgentMetrics) {
    agent.documents(&[((Kind::Instance, "active"), 1)].into());
    agent.received("new");
    agent.dead();
    agent.journal(1);
    agent.pass(Kind::Instance, "converged", 0.1);
    agent.pass_error(Kind::Instance, FaultCode::DiskFull);
    agent.step("start", Ok(()));
    agent.report(Ok(()));
    agent.heartbeat(Err(()));
    agent.unclaimed("domain", 0);
    agent.domains(&[(("berth", "running"), 1)].into());
    agent.stuck(0);
    agent.evicted(berth_agent::decide::image_cache::Reason::Age, 1);
    agent.images(1, ByteCount::clamped(1));
}

/// As the engine does: a libvirtd on a busy machine, asked for the first time, may fail without a cause.
async fn apply(libvirt: &Libvirt, step: DomainStep) {
    let mut tries = 5;
    while let Err(error) = Compute::apply(libvirt, &step).await {
        tries -= 1;
        assert!(error.retryable && tries > 0, "{error:?}");
        sleep(Duration::from_secs(1)).await;
    }
}

/// What the domains use once it is as expected: a busy machine takes its time, and a busy domain tells less.
async fn told(libvirt: &Libvirt, expected: impl Fn(&[DomainUsage]) -> bool) -> Vec<DomainUsage> {
    let start = Instant::now();
    loop {
        let seen = libvirt.usage().await;
        match seen {
            Ok(domains) if expected(&domains) => return domains,
            seen if start.elapsed() > LIMIT => panic!("last seen: {seen:?}"),
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A domain by its UUID.
fn find(domains: &[DomainUsage], uuid: Uuid) -> Option<&DomainUsage> {
    domains.iter().find(|domain| domain.uuid == uuid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_hangs_costs_its_own_figures_and_a_libvirtd_that_restarts_costs_none() {
    let hypervisor = Hypervisor::start();
    let options = Options {
        usage_deadline: Duration::from_secs(10),
        ..Options::default()
    };
    let libvirt = Arc::new(Libvirt::start(&hypervisor.address(), options));
    let [hung, well] = [InstanceId::new(), InstanceId::new()];
    let network = NetworkId::new();
    hypervisor.add_bridge(&names::bridge(network));
    let step = async |step| apply(&libvirt, step).await;
    for id in [hung, well] {
        let folder = hypervisor.path().join(id.to_string());
        fs::create_dir(&folder).unwrap();
        fs::copy(guest_image(), folder.join("vda")).unwrap();
        let config = config(id, network, vec![disk("vda", &folder)]);
        step(DomainStep::Define(Box::new(config))).await;
    }
    step(DomainStep::Start(hung)).await;
    let pid = hypervisor.qemu_pids();
    step(DomainStep::Start(well)).await;
    let tells_all = |domains: &[DomainUsage], id: InstanceId| {
        let domain = find(domains, id.as_uuid());
        domain.is_some_and(|it| it.disks.get("vda").is_some_and(|disk| disk.read.is_some()))
    };
    let before = told(&libvirt, |domains| {
        tells_all(domains, hung) && tells_all(domains, well)
    })
    .await;
    hypervisor.run(&["kill", "-s", "STOP", pid.trim()]);
    let error = libvirt.usage().await.unwrap_err();
    assert_eq!((error.retryable, libvirt.stuck_calls()), (true, 1));
    let without = libvirt.usage().await.unwrap();
    assert!(
        !tells_all(&without, hung) && tells_all(&without, well),
        "{without:?}"
    );
    // Whoever looks at domains, or works on others, has not noticed.
    assert_eq!(Compute::observe(&*libvirt).await.unwrap().len(), 2);
    hypervisor.run(&["kill", "-s", "CONT", pid.trim()]);
    let stuck = || match libvirt.stuck_calls() {
        0 => Ok(()),
        stuck => Err(format!("{stuck} hang")),
    };
    wait_for("the call that hung to return", stuck);
    told(&libvirt, |domains| tells_all(domains, hung)).await;

    hypervisor.signal_libvirtd("STOP");
    assert!(libvirt.usage().await.unwrap_err().retryable);
    hypervisor.signal_libvirtd("CONT");
    wait_for("the call that hung to return", stuck);
    hypervisor.kill_libvirtd();
    assert!(libvirt.usage().await.unwrap_err().retryable);
    hypervisor.start_libvirtd();
    hypervisor.wait_libvirtd();
    let after = told(&libvirt, |domains| domains.len() == 2).await;
    let run = |domains: &[DomainUsage], id: InstanceId| find(domains, id.as_uuid()).unwrap().run;
    for id in [hung, well] {
        assert_eq!(run(&before, id), run(&after, id), "it ran on");
    }
    step(DomainStep::Destroy(hung)).await;
    step(DomainStep::Start(hung)).await;
    step(DomainStep::Destroy(well)).await;
    let anew = libvirt.usage().await.unwrap();
    assert_ne!(run(&after, hung), run(&anew, hung), "it was started anew");
    assert_eq!(find(&anew, well.as_uuid()), None);
}
