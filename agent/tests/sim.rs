//! Simulated agents on the bus in this process, in paused time.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test, a panic is a failed assertion"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_agent::sim::{Sim, SimHost, SimOptions};
use berth_common::{
    bus::{Bus, LocalBroker, Message, QueueDecl, Target, compute_queue},
    document::{
        DOCUMENT_VERSION, Desired, DesiredPower, DiskFormat, DiskSource, Document, DocumentKey,
        Flavor, ImageFormat, ImageRef, InstanceDisk, InstanceSpec,
    },
    ids::{HostId, InstanceId},
    message::{
        catalogue::document_type,
        heartbeat::Heartbeat,
        report::{ConvergeStatus, FaultCode, Report, ResourceReport},
    },
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Far longer than anything takes here, in paused time.
const LIMIT: Duration = Duration::from_secs(300);

/// A prefix for each test, so that its files can be told from those of others.
fn prefix() -> String {
    format!("sim-{}", InstanceId::new().as_uuid().simple())
}

/// What arrived, and when.
#[derive(Default)]
struct Heard {
    reports: BTreeMap<DocumentKey, ResourceReport>,
    heartbeats: Vec<(Instant, Heartbeat)>,
}

/// Simulated hosts, and the scheduler's end of their bus.
struct Lab {
    scheduler: Arc<dyn Bus>,
    heard: Arc<Mutex<Heard>>,
    hosts: Vec<SimHost>,
    cancel: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Lab {
    async fn start(options: SimOptions) -> Self {
        let broker = LocalBroker::new(11);
        let scheduler: Arc<dyn Bus> = Arc::new(broker.connect());
        let heard = Arc::<Mutex<Heard>>::default();
        tokio::spawn(hear_reports(Arc::clone(&scheduler), Arc::clone(&heard)));
        tokio::spawn(hear_heartbeats(Arc::clone(&scheduler), Arc::clone(&heard)));
        let sim = Sim::new(options).unwrap();
        for host in sim.hosts() {
            let queue = QueueDecl::compute(host.name.as_str());
            scheduler.declare(&queue).await.unwrap();
        }
        let hosts = sim.hosts().to_vec();
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let running = tokio::spawn(async move {
            let buses: Vec<Arc<dyn Bus>> =
                vec![Arc::new(broker.connect()), Arc::new(broker.connect())];
            sim.run(&buses, stop).await
        });
        Self {
            scheduler,
            heard,
            hosts,
            cancel,
            running,
        }
    }

    async fn send(&self, host: &SimHost, document: &Document) {
        let method = document_type(document.key().kind);
        let message = Message::new(method, DOCUMENT_VERSION, "test", document).unwrap();
        let queue = compute_queue(host.name.as_str());
        self.scheduler
            .publish(Target::queue(queue), message)
            .await
            .unwrap();
    }

    async fn wait<T>(&self, what: &str, look: impl Fn(&Heard) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = look(&self.heard.lock().unwrap()) {
                    return found;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(LIMIT, wait)
            .await
            .unwrap_or_else(|_| panic!("{what} did not come about"))
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn hear_reports(bus: Arc<dyn Bus>, heard: Arc<Mutex<Heard>>) {
    let mut consumer = bus.consume(&QueueDecl::reports(), 100).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        let report: Report = delivery.message.decode().unwrap();
        let newest = report.resources.into_iter().map(|it| (it.key, it));
        heard.lock().unwrap().reports.extend(newest);
        delivery.ack().await;
    }
}

async fn hear_heartbeats(bus: Arc<dyn Bus>, heard: Arc<Mutex<Heard>>) {
    let mut consumer = bus.consume(&QueueDecl::heartbeats(), 100).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        let heartbeat: Heartbeat = delivery.message.decode().unwrap();
        let now = Instant::now();
        heard.lock().unwrap().heartbeats.push((now, heartbeat));
        delivery.ack().await;
    }
}

/// An instance without networks, on this host.
fn instance(host: &SimHost, power: DesiredPower) -> Document {
    let size_gb = DiskGb::clamped(3);
    Document::Instance(Desired {
        id: InstanceId::new(),
        generation: Generation(1),
        host_id: host.id,
        spec: Some(InstanceSpec {
            name: "web-1".parse().unwrap(),
            project: "default".parse().unwrap(),
            power,
            reboot: None,
            stop_timeout_seconds: 30,
            flavor: Flavor {
                vcpus: Vcpus::clamped(2),
                memory_mb: MemoryMb::clamped(1024),
                disk_gb: size_gb,
            },
            disks: vec![InstanceDisk {
                index: 0,
                size_gb,
                format: DiskFormat::Qcow2,
                source: DiskSource::Image(ImageRef {
                    url: "http://images.example.org/guest.qcow2".parse().unwrap(),
                    sha256: "ab".repeat(32).parse().unwrap(),
                    format: ImageFormat::Qcow2,
                }),
                incarnation: None,
            }],
            ports: Vec::new(),
            volumes: Vec::new(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::default(),
        }),
    })
}

/// The directory in which this host's journal is, if there is one.
fn scratch_of(host: &SimHost) -> Option<PathBuf> {
    let places = [Path::new("/dev/shm").to_owned(), std::env::temp_dir()];
    let directories = places.iter().filter_map(|it| std::fs::read_dir(it).ok());
    directories
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join(host.name.as_str()).is_dir())
}

#[tokio::test(start_paused = true)]
async fn documents_converge_and_broken_hosts_say_what_is_wrong_with_them() {
    let lab = Lab::start(SimOptions {
        count: 12,
        broken: 2,
        name_prefix: prefix(),
        ..SimOptions::default()
    })
    .await;
    for (number, host) in lab.hosts.iter().enumerate() {
        let document = instance(host, DesiredPower::Running);
        lab.send(host, &document).await;
        let report = lab
            .wait("a report", |heard| {
                let report = heard.reports.get(&document.key());
                let settled = |it: &&ResourceReport| it.status != ConvergeStatus::Converging;
                report.filter(settled).cloned()
            })
            .await;
        if number < 2 {
            assert_eq!(report.status, ConvergeStatus::Failed);
            assert_eq!(report.fault.unwrap().code, FaultCode::DiskFull);
            continue;
        }
        assert_eq!(report.status, ConvergeStatus::Converged, "{report:?}");
        let mine = |heartbeat: &Heartbeat| {
            heartbeat.host_id == host.id && heartbeat.used_now.vcpus == Vcpus::clamped(2)
        };
        let heartbeat = lab
            .wait("a heartbeat with its usage", |heard| {
                let newest = heard.heartbeats.iter().rev();
                newest.map(|(_, it)| it).find(|it| mine(it)).cloned()
            })
            .await;
        assert_eq!(heartbeat.used_now.memory_mb, MemoryMb::clamped(512 + 1024));
        assert_eq!(heartbeat.used_now.disk_gb, DiskGb::clamped(3));
        assert_eq!(heartbeat.total, SimOptions::default().size);
        assert!(heartbeat.health.iter().all(|part| part.ok), "{heartbeat:?}");

        lab.send(host, &document.tombstone()).await;
        lab.wait("the end of the instance", |heard| {
            let report = heard.reports.get(&document.key())?;
            (report.status == ConvergeStatus::Gone).then_some(())
        })
        .await;
        assert!(host.host.leftovers().is_empty());
    }
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn steps_that_fail_by_chance_are_tried_until_they_do_not() {
    let lab = Lab::start(SimOptions {
        count: 8,
        fault_rate: 0.3,
        name_prefix: prefix(),
        ..SimOptions::default()
    })
    .await;
    for host in &lab.hosts {
        let document = instance(host, DesiredPower::Stopped);
        lab.send(host, &document).await;
        lab.wait("an instance in spite of faults", |heard| {
            let report = heard.reports.get(&document.key())?;
            (report.status == ConvergeStatus::Converged).then_some(())
        })
        .await;
    }
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_spread_over_the_period_and_each_host_keeps_its_moment() {
    let count = 200;
    let lab = Lab::start(SimOptions {
        count,
        name_prefix: prefix(),
        ..SimOptions::default()
    })
    .await;
    lab.wait("four heartbeats of every host", |heard| {
        let late = heard.heartbeats.iter().filter(|(_, it)| it.sequence == 4);
        let hosts: BTreeSet<HostId> = late.map(|(_, it)| it.host_id).collect();
        (hosts.len() == count).then_some(())
    })
    .await;
    let heard = std::mem::take(&mut lab.heard.lock().unwrap().heartbeats);
    let start = heard.first().unwrap().0;
    let mut per_second = [0_u32; 10];
    for (at, _) in heard.iter().filter(|(_, it)| it.sequence == 3) {
        per_second[usize::try_from((*at - start).as_secs() % 10).unwrap()] += 1;
    }
    // Twenty each on average, with a deviation of 4.2.
    assert!(
        per_second.iter().all(|count| (3..60).contains(count)),
        "{per_second:?}"
    );
    for host in &lab.hosts {
        let of_host = |sequence| {
            let mut found = heard.iter().filter(|(_, it)| it.host_id == host.id);
            found.find(|(_, it)| it.sequence == sequence).unwrap().0
        };
        let pause = of_host(4) - of_host(3);
        assert!(
            pause.abs_diff(Duration::from_secs(10)) < Duration::from_millis(50),
            "{pause:?}"
        );
    }
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_simulation_leaves_nothing_and_comes_back_as_the_same_hosts() {
    let options = SimOptions {
        count: 3,
        name_prefix: prefix(),
        ..SimOptions::default()
    };
    let mut known = Vec::new();
    for _ in 0..2 {
        let lab = Lab::start(options.clone()).await;
        let last = lab.hosts.last().unwrap().clone();
        let session = lab
            .wait("a heartbeat", |heard| {
                let mut heartbeats = heard.heartbeats.iter().map(|(_, it)| it);
                Some(heartbeats.find(|it| it.host_id == last.id)?.session)
            })
            .await;
        let ids: Vec<HostId> = lab.hosts.iter().map(|host| host.id).collect();
        known.push((ids, session));
        assert!(scratch_of(&last).is_some());
        lab.stop().await;
        assert_eq!(scratch_of(&last), None);
        // The clock that counts the starts goes on in real time only.
        while u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap() <= session {
            std::thread::yield_now();
        }
    }
    let [(ids, session), (again, later)] = &known[..] else {
        unreachable!()
    };
    assert_eq!(ids, again);
    assert!(session < later);
}

#[tokio::test(start_paused = true)]
async fn journals_in_a_directory_of_ones_own_stay_and_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = SimOptions {
        name_prefix: prefix(),
        state_dir: Some(directory.path().join("state")),
        ..SimOptions::default()
    };
    let lab = Lab::start(options.clone()).await;
    let document = instance(&lab.hosts[0], DesiredPower::Stopped);
    lab.send(&lab.hosts[0], &document).await;
    let converged = |heard: &Heard| {
        let report = heard.reports.get(&document.key())?;
        (report.status == ConvergeStatus::Converged).then_some(())
    };
    lab.wait("the instance", converged).await;
    lab.stop().await;
    // Nobody tells it again.
    let lab = Lab::start(options).await;
    lab.wait("the instance again", converged).await;
    lab.stop().await;
}

#[test]
fn options_that_cannot_work_are_refused() {
    for options in [
        SimOptions {
            name_prefix: "no_host".to_owned(),
            ..SimOptions::default()
        },
        SimOptions {
            fault_rate: 1.5,
            ..SimOptions::default()
        },
    ] {
        assert!(Sim::new(options).is_err());
    }
}
