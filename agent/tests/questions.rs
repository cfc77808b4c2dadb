//! Questions to agents on the bus in this process, in paused time: answered to whoever asked, refused or dropped, and
//! never in the way of documents and heartbeats.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test, a panic is a failed assertion"
)]

use std::{sync::Arc, time::Duration};

use berth_agent::{
    act::{fake::Answers, inspect::PortCounts},
    decide::{
        filter::Reason,
        metadata::{Forged, ForgedCounts},
        names,
        usage::Traffic,
    },
    sim::{Sim, SimHost, SimOptions},
};
use berth_common::{
    bus::{
        Bus, Consumer, LocalBroker, Message, PublishError, QueueDecl, RpcClient, RpcError, Target,
        ask_queue, compute_queue, topology::DEAD,
    },
    document::{
        DOCUMENT_VERSION, Desired, DesiredPower, DiskFormat, DiskSource, Document, DocumentKey,
        FixedIp, Flavor, ImageFormat, ImageRef, InstanceDisk, InstanceSpec, Kind, NetworkPort,
        NetworkSpec, NetworkType, OnCrash, PortQos, PortSecurity, RouterInterface, RouterSpec,
        RuleDirection, SubnetSpec,
    },
    ids::{HostId, InstanceId, NetworkId, PortId, RouterId, SubnetId},
    message::{
        catalogue::document_type,
        counters::{LinkCounts, PortCounted},
        heartbeat::Heartbeat,
        question::{
            Ask, ConsoleOutput, Endpoints, GuestAgent, GuestAgentState, QUESTION_TYPE,
            QUESTION_VERSION, Question, Screenshot,
        },
        report::{ConvergeStatus, PowerState, Report},
        request::Reply,
        trace::{PortTraced, TraceConnection, TracePacket, TraceProtocol},
    },
    refusal::{Refusal, RefusalCode},
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use serde::de::DeserializeOwned;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Far longer than anything takes here, in paused time.
const LIMIT: Duration = Duration::from_secs(300);
/// How long whoever asks waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// One simulated host, and the scheduler's end of its bus.
struct Lab {
    broker: LocalBroker,
    bus: Arc<dyn Bus>,
    rpc: RpcClient,
    reports: Consumer,
    heartbeats: Consumer,
    host: SimHost,
    cancel: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Lab {
    async fn start() -> Self {
        let broker = LocalBroker::new(11);
        let bus: Arc<dyn Bus> = Arc::new(broker.connect());
        let reports = bus.consume(&QueueDecl::reports(), 100).await.unwrap();
        let heartbeats = bus.consume(&QueueDecl::heartbeats(), 100).await.unwrap();
        let options = SimOptions {
            name_prefix: format!("ask-{}", InstanceId::new().as_uuid().simple()),
            ..SimOptions::default()
        };
        let sim = Sim::new(options).unwrap();
        let host = sim.hosts()[0].clone();
        let queue = ask_queue(host.name.as_str());
        let rpc = RpcClient::start(Arc::clone(&bus), queue.clone(), "test")
            .await
            .unwrap();
        let cancel = CancellationToken::new();
        let (stop, theirs) = (cancel.clone(), broker.connect());
        let running = tokio::spawn(async move {
            let buses: Vec<Arc<dyn Bus>> = vec![Arc::new(theirs)];
            sim.run(&buses, stop).await
        });
        let lab = Self {
            broker,
            bus,
            rpc,
            reports,
            heartbeats,
            host,
            cancel,
            running,
        };
        lab.wait("the agent listens", async || {
            lab.bus.consumer_count(&queue).await.unwrap() == Some(1)
        })
        .await;
        lab
    }

    async fn wait(&self, what: &str, is: impl AsyncFn() -> bool) {
        let wait = async {
            while !is().await {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(LIMIT, wait)
            .await
            .unwrap_or_else(|_| panic!("it never came true: {what}"));
    }

    /// An instance that runs here.
    async fn active(&mut self) -> InstanceId {
        let id = InstanceId::new();
        self.tell(&instance(id, self.host.id)).await;
        id
    }

    /// Sends a document and waits until it was carried out.
    async fn tell(&mut self, document: &Document) {
        let key = document.key();
        let method = document_type(key.kind);
        let message = Message::new(method, DOCUMENT_VERSION, "test", document).unwrap();
        let to = Target::queue(compute_queue(self.host.name.as_str()));
        self.bus.publish(to, message).await.unwrap();
        let done = async {
            loop {
                let delivery = self.reports.next().await.unwrap();
                let report: Report = delivery.message.decode().unwrap();
                delivery.ack().await;
                let is_done = report.resources.iter().any(|it| {
                    let settled = [ConvergeStatus::Converged, ConvergeStatus::Gone];
                    it.key == key
                        && it.generation == document.generation()
                        && settled.contains(&it.status)
                });
                if is_done {
                    return;
                }
            }
        };
        timeout(LIMIT, done).await.expect("it was not carried out");
    }

    fn question(&self, instance: InstanceId, ask: Ask) -> Question {
        Question {
            host_id: self.host.id,
            instance_id: instance,
            patience_ms: u64::try_from(PATIENCE.as_millis()).unwrap(),
            ask,
        }
    }

    async fn ask<T: DeserializeOwned>(&self, instance: InstanceId, ask: Ask) -> Result<T, Refusal> {
        let message = message(&self.question(instance, ask));
        self.send(message).await
    }

    async fn send<T: DeserializeOwned>(&self, message: Message) -> Result<T, Refusal> {
        let answer = self.rpc.call_message(message, PATIENCE).await.unwrap();
        answer.decode::<Reply<T>>().unwrap().into()
    }

    async fn refused(&self, instance: InstanceId, ask: Ask, code: RefusalCode, words: &str) {
        let refusal = self
            .ask::<serde_json::Value>(instance, ask)
            .await
            .unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn message(question: &Question) -> Message {
    let mut message = Message::new(QUESTION_TYPE, QUESTION_VERSION, "test", question).unwrap();
    message.expiration = Some(PATIENCE);
    message
}

fn console() -> Ask {
    Ask::ConsoleOutput {
        lines: 10,
        after: None,
    }
}

fn instance(id: InstanceId, host_id: HostId) -> Document {
    let image = ImageRef {
        url: "file:///image".parse().unwrap(),
        sha256: "0".repeat(64).parse().unwrap(),
        format: ImageFormat::Qcow2,
    };
    let flavor = Flavor {
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(64),
        disk_gb: DiskGb::clamped(1),
    };
    Document::Instance(Desired {
        id,
        generation: Generation(1),
        host_id,
        spec: Some(InstanceSpec {
            name: "web".parse().unwrap(),
            project: "default".parse().unwrap(),
            flavor,
            disks: vec![InstanceDisk {
                index: 0,
                size_gb: flavor.disk_gb,
                format: DiskFormat::Qcow2,
                source: DiskSource::Image(image),
                incarnation: None,
            }],
            ports: Vec::new(),
            volumes: Vec::new(),
            power: DesiredPower::Running,
            reboot: None,
            stop_timeout_seconds: 60,
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: OnCrash::default(),
        }),
    })
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_is_answered() {
    let mut lab = Lab::start().await;
    let id = lab.active().await;
    lab.host.host.guest_prints(id, b"boot\nlogin: \x1b[2J\xff");
    let output: ConsoleOutput = lab.ask(id, console()).await.unwrap();
    assert_eq!(output.text, "boot\nlogin: \u{1b}[2J\u{fffd}");
    assert_eq!(
        (output.instance_id, output.host),
        (id, lab.host.name.clone())
    );

    // Nothing is shown twice.
    lab.host.host.guest_prints(id, b"root\n");
    let go_on = Ask::ConsoleOutput {
        lines: 10,
        after: output.next,
    };
    let output: ConsoleOutput = lab.ask(id, go_on).await.unwrap();
    assert_eq!(output.text, "root\n");

    let picture: Screenshot = lab.ask(id, Ask::Screenshot {}).await.unwrap();
    assert!(picture.picture.0.starts_with(b"P6"));
    let agent: GuestAgent = lab.ask(id, Ask::PingGuestAgent {}).await.unwrap();
    assert_eq!(agent.state, GuestAgentState::Absent);
    let endpoints: Endpoints = lab.ask(id, Ask::Endpoints {}).await.unwrap();
    assert_eq!(endpoints.power_state, PowerState::Running);
    assert_eq!(endpoints.endpoints.len(), 1);
    assert_eq!(endpoints.domain, format!("berth-{id}"));

    // Off, it has neither display nor agent.
    lab.host.host.guest_powers_off(id);
    let off = "does not run: its power state is shutdown";
    lab.refused(id, Ask::Screenshot {}, RefusalCode::Conflict, off)
        .await;
    lab.refused(id, Ask::PingGuestAgent {}, RefusalCode::Conflict, off)
        .await;
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_here_is_refused_and_what_nobody_can_use_is_put_away() {
    let mut lab = Lab::start().await;
    let stranger = InstanceId::new();
    lab.refused(
        stranger,
        console(),
        RefusalCode::NotFound,
        "has no instance",
    )
    .await;
    // One that was deleted here.
    let id = lab.active().await;
    let gone = Document::Instance(Desired {
        id,
        generation: Generation(2),
        host_id: lab.host.id,
        spec: None,
    });
    lab.tell(&gone).await;
    lab.refused(id, console(), RefusalCode::NotFound, "has no instance")
        .await;

    let mut other = lab.question(id, console());
    other.host_id = HostId::new();
    let mut newer = message(&lab.question(id, console()));
    newer.version = Some(QUESTION_VERSION + 1);
    let mut untyped = message(&lab.question(id, console()));
    untyped.method = "document.instance".to_owned();
    let nonsense = Message::from_json(QUESTION_TYPE, QUESTION_VERSION, "test", "{}");
    let huge = Message::from_json(
        QUESTION_TYPE,
        QUESTION_VERSION,
        "test",
        format!("{{\"x\":\"{}\"}}", "y".repeat(100_000)),
    );
    for (bad, code, words) in [
        (message(&other), RefusalCode::Unavailable, "same name"),
        (newer, RefusalCode::UnsupportedVersion, "older than"),
        (untyped, RefusalCode::Malformed, "must be \"question\""),
        (nonsense, RefusalCode::Malformed, "no question"),
        (huge, RefusalCode::Malformed, "no question"),
    ] {
        let refusal = lab.send::<serde_json::Value>(bad).await.unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    }
    assert_eq!(lab.bus.queue_depth(DEAD).await.unwrap(), Some(5));
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_libvirt_that_hangs_costs_the_askers_patience_and_nothing_else() {
    let mut lab = Lab::start().await;
    let id = lab.active().await;
    lab.host.host.set_answers(Answers::Never);
    let asked = Instant::now();
    // Far more than are worked on at once.
    let many = (0..60).map(|_| lab.ask::<Screenshot>(id, Ask::Screenshot {}));
    let all = futures::future::join_all(many);
    let meanwhile = async {
        // Documents and heartbeats go on.
        let other = instance(InstanceId::new(), lab.host.id);
        let method = document_type(Kind::Instance);
        let message = Message::new(method, DOCUMENT_VERSION, "test", &other).unwrap();
        let to = Target::queue(compute_queue(lab.host.name.as_str()));
        lab.bus.publish(to, message).await.unwrap();
        lab.wait("the other instance runs", async || {
            let key: DocumentKey = other.key();
            let domain = lab.host.host.domain(key.id);
            domain.is_some_and(|it| it.power_state == PowerState::Running)
        })
        .await;
        asked.elapsed()
    };
    let (answers, converged) = tokio::join!(
        async {
            tokio::time::timeout(LIMIT, all)
                .await
                .expect("they do not end")
        },
        meanwhile
    );
    assert!(converged < Duration::from_secs(5), "{converged:?}");
    for answer in answers {
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Unavailable, "{refusal}");
        assert!(
            refusal.message.contains("could not answer in time")
                || refusal.message.contains("busy with 32 other questions"),
            "{refusal}"
        );
    }
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    let mut beats = 0;
    while let Ok(delivery) = timeout(Duration::from_secs(11), lab.heartbeats.next()).await {
        let delivery = delivery.unwrap();
        delivery.message.decode::<Heartbeat>().unwrap();
        delivery.ack().await;
        beats += 1;
        if beats == 3 {
            break;
        }
    }
    assert_eq!(beats, 3);

    lab.host.host.set_answers(Answers::AtOnce);
    let picture: Screenshot = lab.ask(id, Ask::Screenshot {}).await.unwrap();
    assert_eq!(picture.media_type, "image/x-portable-pixmap");
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_queue_comes_with_the_agent_and_goes_with_it_over_every_loss_of_the_broker() {
    let mut lab = Lab::start().await;
    let id = lab.active().await;
    let queue = ask_queue(lab.host.name.as_str());
    for loss in [
        LocalBroker::crash_connections,
        |broker: &LocalBroker| {
            broker.stop();
            broker.start();
        },
        |broker: &LocalBroker| {
            broker.delete_vhost();
            broker.create_vhost();
        },
    ] {
        loss(&lab.broker);
        lab.wait("the agent listens again", async || {
            lab.bus.consumer_count(&queue).await.unwrap() == Some(1)
        })
        .await;
        let _: Endpoints = lab.ask(id, Ask::Endpoints {}).await.unwrap();
    }
    let (bus, broker) = (Arc::clone(&lab.bus), lab.broker.clone());
    let late = message(&lab.question(id, console()));
    let rpc = lab.rpc.clone();
    lab.stop().await;
    assert!(!broker.queues().contains(&queue), "{:?}", broker.queues());
    let error = rpc.call_message(late.clone(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, RpcError::Unroutable { .. }), "{error}");
    let error = bus.publish(Target::queue(queue), late).await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn questions_that_are_doubled_late_or_lost_do_no_harm() {
    let mut lab = Lab::start().await;
    let id = lab.active().await;
    lab.host.host.guest_prints(id, b"hello\n");
    lab.broker.set_faults(berth_common::bus::Faults {
        drop: 0.3,
        duplicate: 0.3,
        delay: 0.3,
        max_delay: Duration::from_secs(15),
        reorder: 0.3,
    });
    let mut answered = 0;
    for _ in 0..60 {
        let asked = message(&lab.question(id, console()));
        match lab.rpc.call_message(asked, PATIENCE).await {
            Ok(answer) => {
                let answer: Reply<ConsoleOutput> = answer.decode().unwrap();
                assert_eq!(Result::from(answer).unwrap().text, "hello\n");
                answered += 1;
            }
            Err(RpcError::Timeout { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(answered > 10, "{answered}");
    lab.broker.set_faults(berth_common::bus::Faults::NONE);
    sleep(Duration::from_secs(60)).await;
    let queue = ask_queue(lab.host.name.as_str());
    assert_eq!(lab.bus.queue_depth(&queue).await.unwrap(), Some(0));
    let dead = lab.bus.queue_depth(DEAD).await.unwrap();
    assert_eq!(dead.unwrap_or(0), 0);
    lab.stop().await;
}

/// A router with a leg in the network.
fn router(network: &Document, host_id: HostId) -> Document {
    let network_id = network.key().id.try_into().unwrap();
    Document::Router(Desired {
        id: RouterId::new(),
        generation: Generation(1),
        host_id,
        spec: Some(RouterSpec {
            name: "router".parse().unwrap(),
            project: "default".parse().unwrap(),
            interfaces: vec![RouterInterface {
                network_id,
                subnet_id: SubnetId::new(),
                cidr: "10.0.0.0/24".parse().unwrap(),
                ip_address: "10.0.0.254".parse().unwrap(),
                mac_address: "52:54:00:00:00:fe".parse().unwrap(),
                mtu: 1450,
                ipv6_address_mode: None,
            }],
            external_gateway: None,
            floating_ips: Vec::new(),
            routes: Vec::new(),
        }),
    })
}

/// A network with one port, of this instance.
fn network(id: InstanceId, port_id: PortId, host_id: HostId) -> Document {
    Document::Network(Desired {
        id: NetworkId::new(),
        generation: Generation(1),
        host_id,
        spec: Some(NetworkSpec {
            name: "net".parse().unwrap(),
            project: "default".parse().unwrap(),
            network_type: NetworkType::Local,
            physical_network: None,
            segmentation_id: None,
            mtu: 1450,
            subnets: Vec::new(),
            ports: vec![NetworkPort {
                id: port_id,
                instance_id: id,
                mac_address: "52:54:00:00:00:01".parse().unwrap(),
                hostname: "web".parse().unwrap(),
                fixed_ips: Vec::new(),
                security: Some(PortSecurity::default()),
                qos: PortQos::default(),
                mirrors: Vec::new(),
            }],
            remote_ports: Vec::new(),
            security_groups: Vec::new(),
            group_members: std::collections::BTreeMap::new(),
        }),
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_of_a_port_is_told_as_its_guest_sees_it_and_only_while_it_has_a_tap() {
    let mut lab = Lab::start().await;
    let id = lab.active().await;
    let port_id = PortId::new();
    let ask = Ask::PortCounters { port_id };
    lab.refused(
        id,
        ask.clone(),
        RefusalCode::NotFound,
        "not been told of port",
    )
    .await;
    let mut network = network(id, port_id, lab.host.id);
    let Document::Network(wish) = &mut network else {
        panic!("{network:?}");
    };
    let subnet = SubnetId::new();
    let spec = wish.spec.as_mut().unwrap();
    spec.subnets = vec![SubnetSpec {
        id: subnet,
        cidr: "10.0.0.0/24".parse().unwrap(),
        gateway_ip: None,
        dhcp_ip: Some("10.0.0.2".parse().unwrap()),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_address_mode: None,
    }];
    let own = "10.0.0.7".parse().unwrap();
    spec.ports[0].fixed_ips = vec![FixedIp {
        subnet_id: subnet,
        ip_address: own,
    }];
    lab.tell(&network).await;
    let traffic = |bytes| Traffic {
        bytes,
        packets: 3,
        drops: 2,
        errors: 1,
    };
    let forged = |instance, requests| Forged { instance, requests };
    let counted = ForgedCounts::from([
        (own, forged(id, 4)),
        ("fe80::5054:ff:fe00:1".parse().unwrap(), forged(id, 1)),
        // Those of others, and of an instance that had the address before.
        ("10.0.0.8".parse().unwrap(), forged(id, 100)),
    ]);
    let counts = PortCounts {
        received: traffic(1000),
        sent: traffic(70),
        dropped: [(Reason::SpoofedMac, 5), (Reason::DeniedIngress, 0)].into(),
        forged: Some(counted.clone()),
    };
    lab.host.host.count(port_id, counts.clone());
    let told: PortCounted = lab.ask(id, ask.clone()).await.unwrap();
    let link = |bytes| LinkCounts {
        bytes,
        packets: 3,
        dropped_packets: 2,
        errors: 1,
    };
    let expected = PortCounted {
        port_id,
        instance_id: id,
        host: lab.host.name.clone(),
        tap: names::tap(port_id),
        received: link(1000),
        sent: link(70),
        filter_dropped_packets: [
            ("spoofed_mac".to_owned(), 5),
            ("denied_ingress".to_owned(), 0),
        ]
        .into(),
        forged_metadata_requests: Some(5),
    };
    assert_eq!(told, expected);
    // Another instance had the address; then, nobody counts.
    let stale = ForgedCounts::from([(own, forged(InstanceId::new(), 9))]);
    for (forged, told) in [(Some(stale), Some(0)), (None, None)] {
        let counts = PortCounts {
            forged,
            ..counts.clone()
        };
        lab.host.host.count(port_id, counts);
        let answer: PortCounted = lab.ask(id, ask.clone()).await.unwrap();
        assert_eq!(answer.forged_metadata_requests, told);
    }
    // A guest that is off.
    lab.host.host.guest_powers_off(id);
    lab.refused(id, ask, RefusalCode::Conflict, "has no tap btt")
        .await;
    lab.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_packet_is_traced_in_the_document_of_its_network() {
    let mut lab = Lab::start().await;
    let id = lab.active().await;
    let port_id = PortId::new();
    let network = network(id, port_id, lab.host.id);
    lab.tell(&network).await;
    let packet = TracePacket {
        direction: RuleDirection::Ingress,
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        mac_address: None,
        protocol: TraceProtocol::Icmp { kind: 8, code: 0 },
        connection: TraceConnection::New,
    };
    let ask = Ask::PortTrace { port_id, packet };
    let traced: PortTraced = lab.ask(id, ask.clone()).await.unwrap();
    assert_eq!((traced.port_id, traced.passes), (port_id, false));
    assert!(traced.steps[0].detail.contains("denied_ingress"));
    let Ask::PortTrace { packet, .. } = ask else {
        panic!("{ask:?}");
    };
    // To the leg of a router, which another document tells of.
    let mut open = network.clone();
    if let Document::Network(wish) = &mut open {
        wish.generation = Generation(2);
        wish.spec.as_mut().unwrap().ports[0].security = None;
    }
    lab.tell(&open).await;
    let out = TracePacket {
        direction: RuleDirection::Egress,
        source: packet.destination,
        destination: "10.0.0.254".parse().unwrap(),
        ..packet.clone()
    };
    let ask = Ask::PortTrace {
        port_id,
        packet: out,
    };
    let traced: PortTraced = lab.ask(id, ask.clone()).await.unwrap();
    assert!(!traced.passes, "{traced:?}");
    lab.tell(&router(&open, lab.host.id)).await;
    let traced: PortTraced = lab.ask(id, ask).await.unwrap();
    let last = traced.steps.last().unwrap();
    assert!(last.detail.contains("router's leg"), "{traced:?}");
    assert!(traced.passes, "{traced:?}");
    // A port of another instance.
    let other = Ask::PortTrace {
        port_id: PortId::new(),
        packet,
    };
    lab.refused(id, other, RefusalCode::NotFound, "not been told of port")
        .await;
    lab.stop().await;
}
