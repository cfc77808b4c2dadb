//! The whole scheduler over the in-process bus and a SQLite file, with a host played by the test.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use berth_common::{
    bus::{
        Bus, Consumer, LocalBroker, Message, QueueDecl, RpcClient, Target, heartbeat_key,
        report_key,
    },
    config::Reader,
    document::{Document, DocumentKey, Kind},
    ids::{HostId, InstanceId, NetworkId, Nonce},
    message::{
        heartbeat::{HEARTBEAT_TYPE, HEARTBEAT_VERSION, Heartbeat},
        report::{ConvergeStatus, PowerState, REPORT_TYPE, REPORT_VERSION, Report, ResourceReport},
        request::{
            HostDisable, HostShow, InstanceCreate, InstanceDelete, InstanceList, InstanceReboot,
            InstanceShow, InstanceStart, InstanceStop, Method, NetworkCreate, NetworkDelete, Reply,
        },
        view::{InstanceView, Resources, TaskState, VmState},
    },
    refusal::{Refusal, RefusalCode},
    telemetry::registry::Metrics,
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use berth_scheduler::{
    config::Config,
    context::Context,
    inbox::requests::PREFETCH,
    metrics::SchedulerMetrics,
    service::{self, Flow},
};
use berth_store::{Store, StoreConfig, leadership};
use chrono::Utc;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// A scheduler, its broker and its database; several may follow one another on the same database.
struct Cloud {
    broker: LocalBroker,
    directory: tempfile::TempDir,
    rpc: RpcClient,
    cancel: CancellationToken,
    tasks: JoinSet<Result<(), service::TaskError>>,
}

impl Cloud {
    async fn start() -> Self {
        let broker = LocalBroker::new(7);
        let directory = tempfile::tempdir().unwrap();
        let (cancel, tasks) = run_scheduler(&broker, &directory).await;
        let bus: Arc<dyn Bus> = Arc::new(broker.connect());
        let rpc = RpcClient::start(bus, "scheduler", "test").await.unwrap();
        Self {
            broker,
            directory,
            rpc,
            cancel,
            tasks,
        }
    }

    /// Ends the scheduler without ceremony and starts another one on the same database.
    async fn crash_scheduler(&mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.cancel.cancel();
        (self.cancel, self.tasks) = run_scheduler(&self.broker, &self.directory).await;
    }

    async fn call<M: Method>(&self, request: M) -> Result<M::Reply, Refusal> {
        let answer = self
            .rpc
            .call(M::NAME, M::VERSION, &request, LIMIT)
            .await
            .unwrap();
        answer.decode::<Reply<M::Reply>>().unwrap().into()
    }

    async fn show(&self, id: InstanceId) -> InstanceView {
        self.call(InstanceShow {
            instance: id.to_string(),
            project: Default::default(),
        })
        .await
        .unwrap()
    }

    async fn wait_for_instance(
        &self,
        id: InstanceId,
        what: &str,
        is: impl Fn(&InstanceView) -> bool,
    ) -> InstanceView {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let view = self.show(id).await;
            if is(&view) {
                return view;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "instance is not {what}: {view:#?}"
            );
            tokio::task::yield_now().await;
        }
    }
}

async fn run_scheduler(
    broker: &LocalBroker,
    directory: &tempfile::TempDir,
) -> (CancellationToken, JoinSet<Result<(), service::TaskError>>) {
    let url = format!("sqlite://{}/berth.db", directory.path().display());
    let text = format!(
        "[bus]\nurl = \"amqp://nobody@localhost/\"\n[store]\nurl = \"{url}\"\n[dispatch]\nrepublish_seconds = 1\n"
    );
    let config = Config::read(Reader::from_text("test", &text, [], "BERTH")).unwrap();
    let store = Store::connect(&StoreConfig {
        url,
        max_connections: 4,
    })
    .await
    .unwrap();
    store.migrate().await.unwrap();
    let metrics = SchedulerMetrics::new(&Metrics::new("scheduler", "test").unwrap()).unwrap();
    let bus: Arc<dyn Bus> = Arc::new(broker.connect());
    let epoch = leadership::take(store.pool(), "test", Utc::now())
        .await
        .unwrap();
    let (context, fresh) = Context::take_over(config, store, Arc::clone(&bus), metrics, epoch)
        .await
        .unwrap();
    let flow = Flow {
        requests: bus
            .consume(&QueueDecl::scheduler(), PREFETCH)
            .await
            .unwrap(),
        first: None,
        fresh,
    };
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    flow.spawn(&mut tasks, &Arc::new(context), &cancel);
    let deadline = tokio::time::Instant::now() + LIMIT;
    let missing = |name: &&&str| !broker.queues().iter().any(|queue| queue == **name);
    while let Some(name) = ["scheduler", "scheduler.reports", "scheduler.heartbeats"]
        .iter()
        .find(missing)
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "queue {name} was never declared"
        );
        tokio::task::yield_now().await;
    }
    (cancel, tasks)
}

/// A hypervisor, as far as the scheduler can see one.
struct Host {
    id: HostId,
    name: &'static str,
    bus: Arc<dyn Bus>,
    queue: Consumer,
    total: Resources,
    session: u64,
    sequence: u64,
}

impl Host {
    /// Appears with 4 CPUs, 4 GB and 100 GB.
    async fn join(cloud: &Cloud, name: &'static str) -> Self {
        let bus: Arc<dyn Bus> = Arc::new(cloud.broker.connect());
        let queue = bus.consume(&QueueDecl::compute(name), 16).await.unwrap();
        let total = Resources {
            vcpus: Vcpus::new(4).unwrap(),
            memory_mb: MemoryMb::new(4096).unwrap(),
            disk_gb: DiskGb::new(100).unwrap(),
        };
        let mut host = Self {
            id: HostId::new(),
            name,
            bus,
            queue,
            total,
            session: 1,
            sequence: 0,
        };
        host.heartbeat().await;
        let deadline = tokio::time::Instant::now() + LIMIT;
        while cloud
            .call(HostShow {
                host: name.to_owned(),
            })
            .await
            .is_err()
        {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the host is not known"
            );
        }
        host
    }

    async fn heartbeat(&mut self) {
        self.sequence += 1;
        let heartbeat = Heartbeat {
            host_id: self.id,
            host: self.name.parse().unwrap(),
            session: self.session,
            sequence: self.sequence,
            agent_version: "test".to_owned(),
            arch: "x86_64".to_owned(),
            virt_type: "qemu".to_owned(),
            total: self.total,
            used_now: Resources::default(),
            health: Vec::new(),
            foreign_domains: Vec::new(),
            physical_networks: Vec::new(),
            resources: Vec::new(),
        };
        let message = Message::new(HEARTBEAT_TYPE, HEARTBEAT_VERSION, "test", &heartbeat).unwrap();
        self.bus
            .publish(Target::topic(heartbeat_key(self.id)), message)
            .await
            .unwrap();
    }

    /// The next document, acknowledged as if journalled.
    async fn next(&mut self) -> Document {
        let delivery = tokio::time::timeout(LIMIT, self.queue.next())
            .await
            .expect("no document came")
            .unwrap();
        let document: Document = serde_json::from_slice(&delivery.message.body).unwrap();
        assert_eq!(document.host_id(), self.id);
        delivery.ack().await;
        document
    }

    /// The next documents, until all of these kinds came.
    async fn next_of(&mut self, kinds: &[Kind]) -> BTreeMap<Kind, Document> {
        let mut found = BTreeMap::new();
        while !kinds.iter().all(|kind| found.contains_key(kind)) {
            let document = self.next().await;
            found.insert(document.key().kind, document);
        }
        found
    }

    async fn report(
        &mut self,
        key: DocumentKey,
        generation: Generation,
        status: ConvergeStatus,
        power: PowerState,
    ) {
        self.sequence += 1;
        let report = Report {
            host_id: self.id,
            host: self.name.parse().unwrap(),
            session: self.session,
            sequence: self.sequence,
            resources: vec![ResourceReport {
                key,
                generation,
                status,
                progress: None,
                fault: None,
                power_state: (key.kind == Kind::Instance).then_some(power),
                reboot_nonce: None,
                observed_at: Utc::now(),
            }],
        };
        let message = Message::new(REPORT_TYPE, REPORT_VERSION, "test", &report).unwrap();
        self.bus
            .publish(Target::topic(report_key(self.id)), message)
            .await
            .unwrap();
    }

    /// Does as it is told: everything that comes until the instance's document came is carried out.
    async fn converge_instance(&mut self, power: PowerState) -> Document {
        loop {
            let document = self.next().await;
            let status = if document.is_tombstone() {
                ConvergeStatus::Gone
            } else {
                ConvergeStatus::Converged
            };
            self.report(document.key(), document.generation(), status, power)
                .await;
            if document.key().kind == Kind::Instance {
                return document;
            }
        }
    }
}

fn instance(name: &str, memory_mb: u64, networks: serde_json::Value) -> InstanceCreate {
    serde_json::from_value(json!({
        "id": InstanceId::new(),
        "name": name,
        "flavor": { "vcpus": 1, "memory_mb": memory_mb, "disk_gb": 1 },
        "image": { "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2" },
        "networks": networks,
    }))
    .unwrap()
}

fn network(name: &str, cidr: &str) -> NetworkCreate {
    serde_json::from_value(json!({ "id": NetworkId::new(), "name": name, "cidr": cidr })).unwrap()
}

fn delete(id: InstanceId) -> InstanceDelete {
    InstanceDelete {
        instance: id.to_string(),
        project: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_lives_and_dies_by_its_documents() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.call(network("blue", "10.0.0.0/24")).await.unwrap();
    let request = instance(
        "web-1",
        512,
        json!([{ "network": "blue", "ip_address": "10.0.0.9" }, { "network": "blue" }]),
    );
    let view = cloud.call(request.clone()).await.unwrap();
    assert_eq!(
        (view.vm_state, view.task_state),
        (VmState::Building, Some(TaskState::Spawning))
    );
    assert_eq!(view.host.unwrap().as_str(), "hv1");
    let addresses: Vec<_> = view
        .ports
        .iter()
        .map(|port| port.fixed_ips[0].ip_address.to_string())
        .collect();
    assert_eq!(
        addresses,
        ["10.0.0.9", "10.0.0.1"],
        "the DHCP server has 10.0.0.2"
    );

    let documents = host.next_of(&[Kind::Network, Kind::Instance]).await;
    let Document::Network(network_document) = &documents[&Kind::Network] else {
        panic!()
    };
    assert_eq!(network_document.spec.as_ref().unwrap().ports.len(), 2);
    let Document::Instance(document) = &documents[&Kind::Instance] else {
        panic!()
    };
    assert_eq!(document.generation, Generation::FIRST);
    for document in documents.values() {
        host.report(
            document.key(),
            document.generation(),
            ConvergeStatus::Converged,
            PowerState::Running,
        )
        .await;
    }
    let view = cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    assert_eq!(view.task_state, None);

    // The same again is the same; with another content it is a conflict.
    assert_eq!(cloud.call(request.clone()).await.unwrap().id, request.id);
    let mut other = request.clone();
    other.flavor.memory_mb = MemoryMb::new(513).unwrap();
    assert_eq!(
        cloud.call(other).await.unwrap_err().code,
        RefusalCode::Conflict
    );
    // A network in use stays.
    let refusal = cloud
        .call(NetworkDelete {
            network: "blue".to_owned(),
            project: Default::default(),
        })
        .await
        .unwrap_err();
    assert!(refusal.message.contains("used by 2 ports"), "{refusal}");

    assert_eq!(
        cloud.call(delete(request.id)).await.unwrap().task_state,
        Some(TaskState::Deleting)
    );
    let tombstone = host.converge_instance(PowerState::Nostate).await;
    assert!(tombstone.is_tombstone());
    assert_eq!(tombstone.generation(), Generation(2));
    cloud
        .wait_for_instance(request.id, "deleted", |view| {
            view.vm_state == VmState::Deleted
        })
        .await;
    let network_tombstone = host.next_of(&[Kind::Network]).await;
    assert!(
        network_tombstone[&Kind::Network].is_tombstone(),
        "the last instance takes its network with it"
    );
    let shown = cloud
        .call(HostShow {
            host: "hv1".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(
        shown.used_max,
        Resources::default(),
        "the claim is gone with its owner"
    );
    cloud
        .call(NetworkDelete {
            network: "blue".to_owned(),
            project: Default::default(),
        })
        .await
        .unwrap();
    // Deleting it again by id is harmless, and its name is free.
    assert_eq!(
        cloud.call(delete(request.id)).await.unwrap().vm_state,
        VmState::Deleted
    );
    assert!(cloud.call(instance("web-1", 512, json!([]))).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_fits_nowhere_is_kept_in_error_with_the_numbers() {
    let cloud = Cloud::start().await;
    let request = instance("web-1", 512, json!([]));
    let refusal = cloud.call(request.clone()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NoValidHost);
    assert!(
        refusal
            .message
            .ends_with("no host has ever sent a heartbeat"),
        "{refusal}"
    );

    let _host = Host::join(&cloud, "hv1").await;
    let large = instance("web-2", 5000, json!([]));
    let refusal = cloud.call(large.clone()).await.unwrap_err();
    assert!(
        refusal
            .message
            .contains("needs 5000 MB of memory, the whole host has 3584"),
        "{refusal}"
    );
    let view = cloud.show(large.id).await;
    assert_eq!(view.vm_state, VmState::Error);
    assert_eq!(
        view.fault.unwrap().message,
        refusal.message,
        "the reply and the instance say the same"
    );
    assert_eq!(
        cloud.call(large.clone()).await.unwrap_err(),
        refusal,
        "and so does a repeated request"
    );
    assert_eq!(
        cloud.call(delete(large.id)).await.unwrap().vm_state,
        VmState::Deleted
    );

    cloud
        .call(HostDisable {
            host: "hv1".to_owned(),
            reason: Some("repair".to_owned()),
        })
        .await
        .unwrap();
    let refusal = cloud
        .call(instance("web-3", 512, json!([])))
        .await
        .unwrap_err();
    assert!(
        refusal
            .message
            .contains("enabled removed 1; nearest miss: it is disabled"),
        "{refusal}"
    );
    let refusal = cloud
        .call(HostShow {
            host: "hv9".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_fill_a_host_exactly() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    // (4096 − 512) × 1.5 = 5376 MB = 21 × 256 MB; 4 × 4.0 = 16 vCPU: the CPUs are the limit.
    let requests: Vec<_> = (0..24)
        .map(|n| instance(&format!("vm-{n}"), 256, json!([])))
        .collect();
    let answers =
        futures::future::join_all(requests.into_iter().map(|request| cloud.call(request))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 16);
    for refusal in answers.into_iter().filter_map(Result::err) {
        assert!(
            refusal
                .message
                .contains("needs 1 vCPU, 0 free of 16, 1 missing"),
            "{refusal}"
        );
    }
    let shown = cloud
        .call(HostShow {
            host: "hv1".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(shown.used_max.vcpus, shown.capacity.vcpus);
    assert_eq!(shown.instances, 16);
    let listed = cloud
        .call(InstanceList {
            project: None,
            after: None,
            limit: 10,
        })
        .await
        .unwrap();
    assert_eq!((listed.instances.len(), listed.more), (10, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_published_until_they_are_confirmed_whatever_happens_to_the_scheduler_and_the_broker()
 {
    let mut cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 512, json!([]));
    cloud.call(request.clone()).await.unwrap();
    let first = host.next().await;
    let again = host.next().await;
    assert_eq!(again, first, "what is not confirmed comes again");
    cloud.crash_scheduler().await;
    host.heartbeat().await;
    assert_eq!(host.next().await, first);
    cloud.broker.delete_vhost();
    cloud.broker.create_vhost();
    assert_eq!(host.next().await, first);
    host.report(
        first.key(),
        first.generation(),
        ConvergeStatus::Converged,
        PowerState::Running,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;

    // An agent that starts anew is told everything again.
    host.session += 1;
    host.heartbeat().await;
    assert_eq!(host.next().await, first);
    // A host that is ahead (the database was set back) makes the scheduler go above it.
    host.report(
        first.key(),
        Generation(40),
        ConvergeStatus::Gone,
        PowerState::Nostate,
    )
    .await;
    loop {
        let document = host.next().await;
        if document.generation() == Generation(41) {
            assert_eq!(document.with_generation(first.generation()), first);
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_and_reboot_are_wishes_that_are_carried_out_once() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 512, json!([]));
    cloud.call(request.clone()).await.unwrap();
    host.converge_instance(PowerState::Running).await;
    let settled = |view: &InstanceView| view.task_state.is_none();
    cloud.wait_for_instance(request.id, "active", settled).await;
    let by_name = || "web-1".to_owned();

    let reboot = InstanceReboot {
        instance: by_name(),
        project: Default::default(),
        kind: Default::default(),
        nonce: Nonce::new(),
    };
    let view = cloud.call(reboot.clone()).await.unwrap();
    assert_eq!(
        (view.task_state, view.generation),
        (Some(TaskState::Rebooting), Generation(2))
    );
    assert_eq!(
        cloud.call(reboot.clone()).await.unwrap().generation,
        Generation(2),
        "the same nonce is one reboot"
    );

    let stop = InstanceStop {
        instance: by_name(),
        project: Default::default(),
    };
    assert_eq!(
        cloud.call(stop).await.unwrap().task_state,
        Some(TaskState::PoweringOff)
    );
    while host
        .converge_instance(PowerState::Shutdown)
        .await
        .generation()
        != Generation(3)
    {}
    cloud
        .wait_for_instance(request.id, "stopped", |view| {
            view.vm_state == VmState::Stopped && settled(view)
        })
        .await;
    let refusal = cloud
        .call(InstanceReboot {
            nonce: Nonce::new(),
            ..reboot
        })
        .await
        .unwrap_err();
    assert!(
        refusal.message.contains("is stopped; start it instead"),
        "{refusal}"
    );

    let start = InstanceStart {
        instance: by_name(),
        project: Default::default(),
    };
    cloud.call(start.clone()).await.unwrap();
    while host
        .converge_instance(PowerState::Running)
        .await
        .generation()
        != Generation(4)
    {}
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active && settled(view)
        })
        .await;
    // Its guest powers itself off: it is stopped, and stays so until somebody starts it.
    let key = DocumentKey {
        kind: Kind::Instance,
        id: request.id.as_uuid(),
    };
    host.report(
        key,
        Generation(4),
        ConvergeStatus::Converged,
        PowerState::Shutdown,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "stopped", |view| {
            view.vm_state == VmState::Stopped && settled(view)
        })
        .await;
    assert_eq!(cloud.call(start).await.unwrap().generation, Generation(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_in_words_and_change_nothing() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    cloud.call(network("blue", "10.0.0.0/29")).await.unwrap();
    let taken = json!([{ "network": "blue", "ip_address": "10.0.0.4", "mac_address": "52:54:00:00:00:01" }]);
    cloud.call(instance("first", 64, taken)).await.unwrap();
    let check = async |networks: serde_json::Value, code: RefusalCode, words: &str| {
        let refusal = cloud
            .call(instance("second", 64, networks))
            .await
            .unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    };
    check(
        json!([{ "network": "red" }]),
        RefusalCode::NotFound,
        "has no network \"red\"",
    )
    .await;
    check(
        json!([{ "network": "blue", "ip_address": "10.0.0.4" }]),
        RefusalCode::Conflict,
        "10.0.0.4 is already used",
    )
    .await;
    check(
        json!([{ "network": "blue", "mac_address": "52:54:00:00:00:01" }]),
        RefusalCode::Conflict,
        "52:54:00:00:00:01 is already used",
    )
    .await;
    check(
        json!([{ "network": "blue", "ip_address": "10.9.0.4" }]),
        RefusalCode::Invalid,
        "is not an address for a port",
    )
    .await;
    check(
        json!(vec![json!({ "network": "blue" }); 9]),
        RefusalCode::Invalid,
        "networks must be at most 8",
    )
    .await;
    let refusal = cloud
        .call(instance("first", 64, json!([])))
        .await
        .unwrap_err();
    assert!(
        refusal
            .message
            .contains("already has an instance named first"),
        "{refusal}"
    );
    let refusal = cloud
        .call(network("blue", "10.1.0.0/24"))
        .await
        .unwrap_err();
    assert!(
        refusal.message.contains("already has a network named blue"),
        "{refusal}"
    );
    let mut nothing = instance("second", 64, json!([]));
    nothing.flavor.vcpus = Vcpus::ZERO;
    nothing.stop_timeout_seconds = 0;
    let refusal = cloud.call(nothing).await.unwrap_err();
    assert!(
        refusal
            .message
            .contains("flavor.vcpus must be at least 1; stop_timeout_seconds must be"),
        "{refusal}"
    );

    let raw = |method: &str, version: u32, body: &str| {
        Message::from_json(method, version, "test", body.as_bytes().to_vec())
    };
    for (message, code, words) in [
        (
            raw("instance.create", 1, "{\"id\":"),
            RefusalCode::Malformed,
            "JSON",
        ),
        (
            raw("instance.create", 1, "{}"),
            RefusalCode::Malformed,
            "missing field `id`",
        ),
        (
            raw("instance.create", 9, "{}"),
            RefusalCode::UnsupportedVersion,
            "must be 1",
        ),
        (
            raw("instance.explode", 1, "{}"),
            RefusalCode::UnknownMethod,
            "instance.explode",
        ),
    ] {
        let answer = cloud.rpc.call_message(message, LIMIT).await.unwrap();
        let refusal =
            Result::from(answer.decode::<Reply<serde_json::Value>>().unwrap()).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.message.contains(words), "{refusal}");
    }
    let bus = cloud.broker.connect();
    let mut dead = bus.consume(&QueueDecl::dead(), 16).await.unwrap();
    for _ in 0..4 {
        let delivery = tokio::time::timeout(LIMIT, dead.next())
            .await
            .unwrap()
            .unwrap();
        assert!(!delivery.dead.as_ref().unwrap().reason.is_empty());
        delivery.ack().await;
    }
    let listed = cloud
        .call(InstanceList {
            project: None,
            after: None,
            limit: 100,
        })
        .await
        .unwrap();
    assert_eq!(listed.instances.len(), 1, "nothing half-made is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_that_is_repeated_is_placed_once_there_is_room() {
    let cloud = Cloud::start().await;
    cloud.call(network("blue", "10.0.0.0/24")).await.unwrap();
    let request = instance("web-1", 512, json!([{ "network": "blue" }]));
    let refusal = cloud.call(request.clone()).await.unwrap_err();
    assert!(refusal.retryable, "{refusal}");
    let _host = Host::join(&cloud, "hv1").await;
    let view = cloud.call(request.clone()).await.unwrap();
    assert_eq!(view.vm_state, VmState::Building);
    assert_eq!((view.fault, view.ports.len()), (None, 1));
    assert_eq!(
        cloud.call(request).await.unwrap().host.unwrap().as_str(),
        "hv1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_is_one_reboot_of_one_instance() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    let nonce = Nonce::new();
    for name in ["web-1", "web-2"] {
        cloud.call(instance(name, 64, json!([]))).await.unwrap();
        let reboot = InstanceReboot {
            instance: name.to_owned(),
            project: Default::default(),
            kind: Default::default(),
            nonce,
        };
        let view = cloud.call(reboot).await.unwrap();
        assert_eq!(view.generation, Generation(2), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_cannot_be_is_ignored() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let request = instance("web-1", 64, json!([]));
    cloud.call(request.clone()).await.unwrap();
    let first = host.next().await;
    let (key, absurd) = (first.key(), Generation(i64::MAX.unsigned_abs() - 1));
    host.report(key, absurd, ConvergeStatus::Converged, PowerState::Running)
        .await;
    host.report(
        key,
        first.generation(),
        ConvergeStatus::Converged,
        PowerState::Running,
    )
    .await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    let deleted = cloud.call(delete(request.id)).await.unwrap();
    assert_eq!(deleted.generation, Generation(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_host_is_told_everything_under_its_new_name() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.call(instance("web-1", 64, json!([]))).await.unwrap();
    let first = host.next().await;
    host.name = "hv2";
    host.queue = host
        .bus
        .consume(&QueueDecl::compute("hv2"), 16)
        .await
        .unwrap();
    host.heartbeat().await;
    assert_eq!(host.next().await, first);
    let shown = cloud
        .call(HostShow {
            host: "hv2".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(shown.id, host.id);
    let deadline = tokio::time::Instant::now() + LIMIT;
    while cloud
        .broker
        .queues()
        .iter()
        .any(|name| name == "compute.hv1")
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the queue of the old name is left"
        );
        tokio::task::yield_now().await;
    }
}
