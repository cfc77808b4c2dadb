//! Random histories of a small cloud, with crashes and failovers, and with a bus that loses, doubles, delays and
//! reorders; after every step everything must be sound.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use berth_common::{
    bus::Faults,
    document::{DocumentKey, Kind, NetworkType},
    ids::{HostId, InstanceId},
    message::{
        report::{ConvergeStatus, Fault, FaultCode, PowerState, Report, ResourceReport},
        request::{
            BlockDevice, Change, CreateMode, HostDelete, HostDisable, HostDrain, HostEnable,
            HostSet, InstanceCreate, InstanceStart, InstanceStop, Method, SnapshotCreate,
            VolumeCreate,
        },
        view::{HostStatus, Resources},
    },
    units::Generation,
};
use berth_scheduler::{
    claim::{ClaimError, facts},
    place::Resource,
    report::apply,
    service::TaskError,
};
use berth_store::{
    StoreError, aggregates, attachments, claims, documents, hosts, instances, snapshots,
    volumes::{self, VolumeClaim},
};
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use crate::{
    ask::{
        attach, delete, delete_snapshot, delete_volume, detach, extend, hinted, many, network,
        server_group, snapshot, volume,
    },
    cloud::{Cloud, LIMIT, message},
    host::{Host, inventory, resource},
    soundness,
};

const HOSTS: [&str; 3] = ["hv1", "hv2", "hv3"];
const GROUPS: [(&str, &str); 3] = [
    ("apart", "anti_affinity"),
    ("pack", "affinity"),
    ("far", "soft_anti_affinity"),
];

/// Of this each host has a few.
const CLASS: &str = "PCI_GPU";

/// What may happen to a message.
const FAULTS: Faults = Faults {
    drop: 0.1,
    duplicate: 0.2,
    delay: 0.2,
    max_delay: Duration::from_millis(20),
    reorder: 0.2,
};
/// How long an answer is waited for that may never come.
const PATIENCE: Duration = Duration::from_millis(100);

/// What an instance is like.
#[derive(Debug, Clone)]
struct Like {
    vcpus: u64,
    memory_mb: u64,
    /// How many of [`CLASS`] it takes.
    countable: u64,
    /// Which of [`GROUPS`].
    group: Option<usize>,
    /// How many ports it has on the one network there is.
    ports: usize,
}

/// What happens next. Numbers choose among what there is, whatever that is by then.
#[derive(Debug, Clone)]
enum Step {
    Create(Like),
    CreateMany(Vec<Like>, CreateMode),
    /// In one batch: two are created, the first is deleted, an older one is deleted, the second is asked for again.
    Batch(Like, Like, usize),
    /// Asks for one again that was asked for before.
    Again(usize),
    Delete(usize),
    Stop(usize),
    Start(usize),
    Enable(usize),
    Disable(usize),
    Drain(usize),
    /// In thousandths; none clears.
    Ratio(usize, Option<u32>),
    /// A host confirms everything it was told, or says that it is at work.
    Reports(usize, ConvergeStatus),
    /// The host of an instance cannot build it.
    Fault(usize, FaultCode),
    /// An operator gives up a host, which comes back.
    Forget(usize),
    /// An operator enables or disables a host, and whether that was committed is not known; then one is created.
    Doubt(usize, bool, Like),
    Crash,
    Failover,
    /// So large, on a host or on none yet.
    Volume(u64, Option<usize>),
    /// A copy of an older one, so much larger.
    Copy(usize, u64),
    /// Asks for a volume again that was asked for before.
    VolumeAgain(usize),
    Attach(usize, usize),
    Detach(usize),
    Extend(usize, u64),
    DeleteVolume(usize),
    /// The host of a volume cannot do what its document says.
    VolumeFault(usize),
    /// A snapshot of a volume.
    Snapshot(usize),
    DeleteSnapshot(usize),
    /// A volume from a snapshot, so much larger.
    FromSnapshot(usize, u64),
    /// In one batch: one is created, attached, grown, detached and perhaps deleted.
    VolumeBatch(u64, usize, bool),
    /// One that boots from a volume, which perhaps goes with it.
    Boot(usize, Like, bool),
    /// In one batch: a volume, two that boot from it, and the first is perhaps deleted.
    BootBatch(u64, Like, bool),
}

fn like() -> impl Strategy<Value = Like> {
    let group = prop_oneof![3 => Just(None), 2 => (0..GROUPS.len()).prop_map(Some)];
    let memory_mb = prop::sample::select(vec![64_u64, 700, 1500]);
    let countable = prop_oneof![2 => Just(0), 1 => 1_u64..=3];
    (1_u64..=2, memory_mb, countable, group, 0..3_usize).prop_map(
        |(vcpus, memory_mb, countable, group, ports)| Like {
            vcpus,
            memory_mb,
            countable,
            group,
            ports,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just(CreateMode::AllOrNothing), Just(CreateMode::BestEffort)];
    let fault = prop_oneof![3 => Just(FaultCode::DiskFull), 1 => Just(FaultCode::ImageChecksum)];
    let host = 0..HOSTS.len();
    prop_oneof![
        5 => like().prop_map(Step::Create),
        3 => (prop::collection::vec(like(), 1..5), mode).prop_map(|(likes, mode)| Step::CreateMany(likes, mode)),
        2 => (like(), like(), 0..64_usize).prop_map(|(a, b, n)| Step::Batch(a, b, n)),
        1 => (0..64_usize).prop_map(Step::Again),
        4 => (0..64_usize).prop_map(Step::Delete),
        1 => (0..64_usize).prop_map(Step::Stop),
        1 => (0..64_usize).prop_map(Step::Start),
        2 => host.clone().prop_map(Step::Enable),
        1 => host.clone().prop_map(Step::Disable),
        1 => host.clone().prop_map(Step::Drain),
        2 => (host.clone(), prop::option::of(250_u32..3000)).prop_map(|(host, ratio)| Step::Ratio(host, ratio)),
        4 => host.clone().prop_map(|host| Step::Reports(host, ConvergeStatus::Converged)),
        1 => host.clone().prop_map(|host| Step::Reports(host, ConvergeStatus::Converging)),
        5 => (0..64_usize, fault).prop_map(|(instance, code)| Step::Fault(instance, code)),
        1 => host.clone().prop_map(Step::Forget),
        1 => (host, any::<bool>(), like()).prop_map(|(host, on, like)| Step::Doubt(host, on, like)),
        1 => Just(Step::Crash),
        1 => Just(Step::Failover),
        8 => volume_step(),
    ]
}

fn volume_step() -> impl Strategy<Value = Step> {
    let one = || 0..64_usize;
    let size = prop::sample::select(vec![1_u64, 20, 45]);
    prop_oneof![
        4 => (size.clone(), prop::option::of(0..HOSTS.len())).prop_map(|(size, host)| Step::Volume(size, host)),
        1 => (one(), 0_u64..20).prop_map(|(of, more)| Step::Copy(of, more)),
        1 => one().prop_map(Step::VolumeAgain),
        6 => (one(), one()).prop_map(|(volume, instance)| Step::Attach(volume, instance)),
        3 => one().prop_map(Step::Detach),
        2 => (one(), 0_u64..60).prop_map(|(volume, size)| Step::Extend(volume, size)),
        2 => one().prop_map(Step::DeleteVolume),
        1 => one().prop_map(Step::VolumeFault),
        3 => one().prop_map(Step::Snapshot),
        1 => one().prop_map(Step::DeleteSnapshot),
        1 => (one(), 0_u64..20).prop_map(|(of, more)| Step::FromSnapshot(of, more)),
        1 => (size.clone(), one(), any::<bool>()).prop_map(|(size, with, goes)| Step::VolumeBatch(size, with, goes)),
        4 => (one(), like(), any::<bool>()).prop_map(|(of, like, ends)| Step::Boot(of, like, ends)),
        1 => (size, like(), any::<bool>()).prop_map(|(size, like, goes)| Step::BootBatch(size, like, goes)),
    ]
}

/// A cloud, and what was asked of it.
struct World {
    cloud: Cloud,
    hosts: Vec<Host>,
    asked: Vec<InstanceCreate>,
    volumes: Vec<VolumeCreate>,
    snapshots: Vec<SnapshotCreate>,
    /// Whether the bus has [`FAULTS`].
    faulty: bool,
}

type Checked = Result<(), String>;

impl World {
    async fn new(faulty: bool) -> Self {
        let cloud = Cloud::start().await;
        let mut hosts = Vec::new();
        for name in HOSTS {
            let equip = |host: &mut Host| {
                host.resources = inventory(CLASS, 3);
                host.network.vxlan = true;
                host.network.tunnel_ip = Some(std::net::IpAddr::from([192, 0, 2, 1]));
            };
            hosts.push(Host::join_with(&cloud, name, equip).await);
        }
        for (name, policy) in GROUPS {
            cloud.ok(server_group(name, policy)).await;
        }
        // 13 addresses; and every host is told of the ports on all others.
        let mut blue = network("blue", "10.0.0.0/28");
        blue.network_type = NetworkType::Vxlan;
        cloud.ok(blue).await;
        if faulty {
            cloud.broker.set_faults(FAULTS);
        }
        Self {
            cloud,
            hosts,
            asked: Vec::new(),
            volumes: Vec::new(),
            snapshots: Vec::new(),
            faulty,
        }
    }

    /// Whether it is granted or refused does not matter here, nor whether it arrives if messages can be lost: what
    /// matters is what is there then.
    async fn ask<M: Method>(&self, request: M) {
        if self.faulty {
            let rpc = &self.cloud.rpc;
            drop(rpc.call(M::NAME, M::VERSION, &request, PATIENCE).await);
        } else {
            drop(self.cloud.call(request).await);
        }
    }

    /// What must be granted, if it arrives.
    async fn must<M: Method>(&self, request: M) {
        if self.faulty {
            self.ask(request).await;
        } else {
            self.cloud.ok(request).await;
        }
    }

    fn request(&mut self, like: &Like) -> InstanceCreate {
        let mut hints = json!({});
        if let Some(group) = like.group {
            hints["server_group"] = json!(GROUPS[group].0);
        }
        if like.countable > 0 {
            hints["resources"] = json!({ CLASS: like.countable });
        }
        let mut request = hinted(&format!("vm-{}", self.asked.len()), hints);
        request.flavor = serde_json::from_value(json!({
            "vcpus": like.vcpus, "memory_mb": like.memory_mb, "disk_gb": 1,
        }))
        .unwrap();
        request.networks =
            serde_json::from_value(json!(vec![json!({ "network": "blue" }); like.ports])).unwrap();
        self.asked.push(request.clone());
        request
    }

    /// The same of one that boots from a volume.
    fn rooted(&mut self, like: &Like, volume: String, ends: bool) -> InstanceCreate {
        let mut request = self.request(like);
        request.image = None;
        request.block_devices = vec![BlockDevice {
            volume,
            boot_index: 0,
            delete_on_termination: ends,
        }];
        if let Some(last) = self.asked.last_mut() {
            last.clone_from(&request);
        }
        request
    }

    /// One of those that were asked for.
    fn one(&self, n: usize) -> Option<InstanceCreate> {
        let index = n.checked_rem(self.asked.len())?;
        self.asked.get(index).cloned()
    }

    /// The id of one of the volumes that were asked for.
    fn volume(&self, n: usize) -> Option<String> {
        let index = n.checked_rem(self.volumes.len())?;
        Some(self.volumes.get(index)?.id.to_string())
    }

    /// The id of one of the snapshots that were asked for.
    fn snapshot(&self, n: usize) -> Option<String> {
        let index = n.checked_rem(self.snapshots.len())?;
        Some(self.snapshots.get(index)?.id.to_string())
    }

    async fn new_volume(&mut self, size: u64, more: serde_json::Value) {
        let request = self.volume_request(size, more);
        self.ask(request).await;
    }

    fn volume_request(&mut self, size: u64, more: serde_json::Value) -> VolumeCreate {
        let request = volume(&format!("v-{}", self.volumes.len()), size, more);
        self.volumes.push(request.clone());
        request
    }

    async fn take_volume_step(&mut self, step: &Step) {
        match step {
            Step::Volume(size, host) => {
                let host = host.map(|n| HOSTS[n]);
                // Nothing boots from an empty one.
                let source = (*size < 45).then(|| {
                    json!({ "image": { "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2" } })
                });
                self.new_volume(*size, json!({ "host": host, "source": source }))
                    .await;
            }
            Step::Copy(of, more) => {
                if let Some(of) = self.volume(*of) {
                    let source = json!({ "source": { "volume": of } });
                    self.new_volume(20 + more, source).await;
                }
            }
            Step::VolumeAgain(n) => {
                if let Some(index) = n.checked_rem(self.volumes.len()) {
                    self.ask(self.volumes[index].clone()).await;
                }
            }
            Step::Attach(n, instance) => {
                if let (Some(volume), Some(with)) = (self.volume(*n), self.one(*instance)) {
                    self.ask(attach(&volume, &with.id.to_string())).await;
                }
            }
            Step::Detach(n) => {
                if let Some(volume) = self.volume(*n) {
                    self.ask(detach(&volume)).await;
                }
            }
            Step::Extend(n, size) => {
                if let Some(volume) = self.volume(*n) {
                    self.ask(extend(&volume, *size)).await;
                }
            }
            Step::DeleteVolume(n) => {
                if let Some(volume) = self.volume(*n) {
                    self.ask(delete_volume(&volume)).await;
                }
            }
            Step::VolumeFault(n) => self.volume_fault(*n).await,
            Step::Snapshot(n) => {
                if let Some(of) = self.volume(*n) {
                    let request = snapshot(&format!("s-{}", self.snapshots.len()), &of);
                    self.snapshots.push(request.clone());
                    self.ask(request).await;
                }
            }
            Step::DeleteSnapshot(n) => {
                if let Some(id) = self.snapshot(*n) {
                    self.ask(delete_snapshot(&id)).await;
                }
            }
            Step::FromSnapshot(n, more) => {
                if let Some(of) = self.snapshot(*n) {
                    let source = json!({ "source": { "snapshot": of } });
                    self.new_volume(20 + more, source).await;
                }
            }
            Step::VolumeBatch(size, instance, goes) => {
                let request = self.volume_request(*size, json!({}));
                let id = request.id.to_string();
                let mut messages = vec![message(&request)];
                if let Some(with) = self.one(*instance) {
                    messages.push(message(&attach(&id, &with.id.to_string())));
                }
                messages.push(message(&extend(&id, size + 1)));
                messages.push(message(&detach(&id)));
                if *goes {
                    messages.push(message(&delete_volume(&id)));
                }
                self.batch(messages).await;
            }
            Step::Boot(n, like, ends) => {
                if let Some(volume) = self.volume(*n) {
                    let request = self.rooted(like, volume, *ends);
                    self.ask(request).await;
                }
            }
            Step::BootBatch(size, like, goes) => {
                let source = json!({ "image": { "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2" } });
                let volume = self.volume_request(*size, json!({ "source": source }));
                let id = volume.id.to_string();
                let first = self.rooted(like, id.clone(), *goes);
                let second = self.rooted(like, id, false);
                let mut messages = vec![message(&volume), message(&first), message(&second)];
                if *goes {
                    messages.push(message(&delete(first.id)));
                }
                self.batch(messages).await;
            }
            _ => {}
        }
    }

    async fn batch(&self, messages: Vec<berth_common::bus::Message>) {
        if self.faulty {
            let rpc = &self.cloud.rpc;
            let calls = messages
                .into_iter()
                .map(|message| rpc.call_message(message, PATIENCE));
            drop(futures::future::join_all(calls).await);
        } else {
            drop(self.cloud.in_one_batch(messages).await);
        }
    }

    async fn volume_fault(&mut self, n: usize) {
        let Some(index) = n.checked_rem(self.volumes.len()) else {
            return;
        };
        let id = self.volumes[index].id;
        let row = volumes::get(self.cloud.pool(), id).await.unwrap();
        let Some(on) = row.and_then(|row| row.host_id) else {
            return;
        };
        let Some(host) = self.hosts.iter().position(|host| host.id == on) else {
            return;
        };
        let key = DocumentKey {
            kind: Kind::Volume,
            id: id.as_uuid(),
        };
        let told = documents::get(self.cloud.pool(), on, key).await.unwrap();
        let Some(told) = told else { return };
        let failed = ConvergeStatus::Failed;
        let mut report = resource(key, told.generation, failed, PowerState::Nostate);
        report.fault = Some(Fault {
            code: FaultCode::Volume,
            message: "it cannot be made here".to_owned(),
        });
        self.report(host, vec![report.clone()]).await;
        self.report(host, vec![report]).await;
    }

    async fn take(&mut self, step: &Step) -> Checked {
        let host = |n: usize| HOSTS[n].to_owned();
        let cloud = &self.cloud;
        // However slow this machine is, nobody falls silent by it.
        cloud.context().liveness(|liveness| {
            for host in &self.hosts {
                liveness.heard(host.id, Instant::now());
            }
        });
        match step {
            Step::Create(like) => {
                let request = self.request(like);
                self.ask(request).await;
            }
            Step::CreateMany(likes, mode) => {
                let requests = likes.iter().map(|like| self.request(like)).collect();
                self.ask(many(*mode, requests)).await;
            }
            Step::Batch(first, second, old) => {
                let old = self.one(*old);
                let (first, second) = (self.request(first), self.request(second));
                let mut messages = vec![
                    message(&first),
                    message(&second),
                    message(&delete(first.id)),
                ];
                messages.extend(old.map(|old| message(&delete(old.id))));
                messages.push(message(&second));
                self.batch(messages).await;
            }
            Step::Again(n) => {
                if let Some(request) = self.one(*n) {
                    self.ask(request).await;
                }
            }
            Step::Delete(n) => {
                if let Some(request) = self.one(*n) {
                    self.ask(delete(request.id)).await;
                }
            }
            Step::Stop(n) => {
                if let Some(request) = self.one(*n) {
                    let stop = InstanceStop {
                        instance: request.id.to_string(),
                        project: Default::default(),
                    };
                    self.ask(stop).await;
                }
            }
            Step::Start(n) => {
                if let Some(request) = self.one(*n) {
                    let start = InstanceStart {
                        instance: request.id.to_string(),
                        project: Default::default(),
                    };
                    self.ask(start).await;
                }
            }
            Step::Enable(n) => {
                self.must(HostEnable { host: host(*n) }).await;
            }
            Step::Disable(n) => {
                self.must(HostDisable {
                    host: host(*n),
                    reason: None,
                })
                .await;
            }
            Step::Drain(n) => {
                self.must(HostDrain {
                    host: host(*n),
                    reason: None,
                })
                .await;
            }
            Step::Ratio(n, thousandths) => {
                let change = thousandths.map_or(Change::Clear, |thousandths| {
                    let ratio = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
                    Change::Set(ratio.parse().unwrap())
                });
                self.must(HostSet {
                    host: host(*n),
                    cpu_allocation_ratio: change,
                    ram_allocation_ratio: change,
                    ..HostSet::default()
                })
                .await;
            }
            Step::Reports(n, status) => self.reports(*n, *status).await,
            Step::Fault(n, code) => self.fault(*n, *code).await,
            // A heartbeat that is lost would be waited for.
            Step::Forget(_) if self.faulty => {}
            Step::Forget(n) => self.forget(*n).await,
            Step::Doubt(n, enabled, like) => {
                self.doubt(*n, *enabled).await;
                let request = self.request(like);
                self.ask(request).await;
            }
            Step::Crash => self.cloud.crash_scheduler().await,
            Step::Failover => return self.failover().await,
            step => self.take_volume_step(step).await,
        }
        Ok(())
    }

    async fn report(&mut self, host: usize, resources: Vec<ResourceReport>) {
        let host = &mut self.hosts[host];
        if self.faulty {
            host.say_all(resources).await;
            return;
        }
        host.sequence += 1;
        let report = Report {
            host_id: host.id,
            host: host.name.parse().unwrap(),
            session: host.session,
            sequence: host.sequence,
            resources,
        };
        apply::reports(self.cloud.context(), &[report])
            .await
            .unwrap();
    }

    /// The host knows what the rows say that it was told, and says so of all of it.
    async fn reports(&mut self, host: usize, status: ConvergeStatus) {
        let told = documents::of_host(self.cloud.pool(), self.hosts[host].id)
            .await
            .unwrap();
        let reports = told
            .into_iter()
            .map(|row| {
                let status = match (&row.spec_json, status) {
                    (None, ConvergeStatus::Converged) => ConvergeStatus::Gone,
                    (_, status) => status,
                };
                resource(row.key, row.generation, status, PowerState::Running)
            })
            .collect();
        self.report(host, reports).await;
    }

    async fn fault(&mut self, instance: usize, code: FaultCode) {
        let Some((host, key, generation)) = self.document_of(instance).await else {
            return;
        };
        let mut report = resource(key, generation, ConvergeStatus::Failed, PowerState::Nostate);
        report.fault = Some(Fault {
            code,
            message: "it cannot be built here".to_owned(),
        });
        // Twice, as the bus may deliver it.
        self.report(host, vec![report.clone()]).await;
        self.report(host, vec![report]).await;
    }

    async fn document_of(&self, instance: usize) -> Option<(usize, DocumentKey, Generation)> {
        let id = self.one(instance)?.id;
        let pool = self.cloud.pool();
        let claim = claims::of_instance(pool, id).await.unwrap().pop()?;
        let host = self
            .hosts
            .iter()
            .position(|host| host.id == claim.host_id)?;
        let key = crate::host::key(id);
        let row = documents::get(pool, claim.host_id, key).await.unwrap()?;
        Some((host, key, row.generation))
    }

    /// Its operator gives a silent host up, if that is granted; then it is heard of again.
    async fn forget(&mut self, host: usize) {
        let one = &mut self.hosts[host];
        self.cloud.lose(&[one.id]).await;
        drop(
            self.cloud
                .call(HostDelete {
                    host: one.name.clone(),
                })
                .await,
        );
        one.session += 1;
        one.sequence = 0;
        one.tell(&self.cloud).await;
    }

    /// A commit took effect, and its answer was lost: the rows say something that the memory does not.
    async fn doubt(&self, host: usize, enabled: bool) {
        let mut image = self.cloud.context().image().await.unwrap();
        let status = if enabled {
            HostStatus::Enabled
        } else {
            HostStatus::Disabled
        };
        hosts::set_status(self.cloud.pool(), self.hosts[host].id, status, None)
            .await
            .unwrap();
        image.doubt();
    }

    async fn failover(&mut self) -> Checked {
        let mut old = self.cloud.take_over().await;
        match old.context.begin().await.map(drop) {
            Err(StoreError::Fenced { .. }) => {}
            other => return Err(format!("the old leader may still write: {other:?}")),
        }
        match apply::reports(&old.context, &[]).await {
            Err(ClaimError::Store(StoreError::Fenced { .. })) => {}
            other => return Err(format!("the old leader still takes reports: {other:?}")),
        }
        match old.ended().await {
            TaskError::Fenced { .. } => Ok(()),
            other => Err(format!("the old leader ended otherwise: {other}")),
        }
    }
}

impl World {
    /// Detaches every volume, then deletes everything, and answers what is left.
    async fn end(&mut self) -> Result<Option<String>, String> {
        for host in 0..HOSTS.len() {
            self.reports(host, ConvergeStatus::Converged).await;
        }
        for request in &self.volumes {
            self.ask(detach(&request.id.to_string())).await;
        }
        for host in 0..HOSTS.len() {
            self.reports(host, ConvergeStatus::Converged).await;
        }
        let ids: Vec<_> = self.volumes.iter().map(|request| request.id).collect();
        let mut attached = attachments::of_volumes(self.cloud.pool(), &ids)
            .await
            .unwrap();
        // What an instance boots from goes with it.
        attached.retain(|row| row.position != attachments::ROOT);
        if let Some(stuck) = attached.pop() {
            return Ok(Some(format!("{stuck:?}")));
        }
        for request in &self.asked {
            self.ask(delete(request.id)).await;
        }
        for host in 0..HOSTS.len() {
            self.reports(host, ConvergeStatus::Converged).await;
        }
        for request in &self.volumes {
            self.ask(delete_volume(&request.id.to_string())).await;
        }
        for request in &self.snapshots {
            self.ask(delete_snapshot(&request.id.to_string())).await;
        }
        for host in 0..HOSTS.len() {
            self.reports(host, ConvergeStatus::Converged).await;
        }
        // What was being made from another one, or was the source of it.
        for request in &self.volumes {
            self.ask(delete_volume(&request.id.to_string())).await;
        }
        for host in 0..HOSTS.len() {
            self.reports(host, ConvergeStatus::Converged).await;
        }
        soundness::check(&self.cloud).await?;
        within_inventory(&self.cloud).await?;
        let living = volumes::list(self.cloud.pool(), None, None, 1).await;
        if let Some(volume) = living.unwrap().pop() {
            return Ok(Some(format!("{volume:?}")));
        }
        let living = snapshots::list(self.cloud.pool(), None, None, 1).await;
        if let Some(snapshot) = living.unwrap().pop() {
            return Ok(Some(format!("{snapshot:?}")));
        }
        let claim = self.cloud.claims().await.pop();
        Ok(claim.map(|claim| format!("{claim:?}")))
    }
}

/// What is claimed, by host.
async fn claimed(cloud: &Cloud) -> BTreeMap<HostId, BTreeMap<Uuid, Resources>> {
    let mut by_host: BTreeMap<HostId, BTreeMap<Uuid, Resources>> = BTreeMap::new();
    for claim in cloud.claims().await {
        let of_host = by_host.entry(claim.host_id).or_default();
        of_host.insert(claim.instance_id.as_uuid(), claim.resources);
    }
    for claim in of_volumes(cloud).await {
        let resources = Resources {
            disk_gb: claim.of_host_disk(),
            ..Resources::default()
        };
        let of_host = by_host.entry(claim.host_id).or_default();
        of_host.insert(claim.volume_id.as_uuid(), resources);
    }
    let page = snapshots::page_of_claims(cloud.pool(), None, u32::MAX).await;
    for claim in page.unwrap() {
        let resources = Resources {
            disk_gb: claim.of_host_disk(),
            ..Resources::default()
        };
        let of_host = by_host.entry(claim.host_id).or_default();
        of_host.insert(claim.snapshot_id.as_uuid(), resources);
    }
    by_host
}

/// What all volumes take.
async fn of_volumes(cloud: &Cloud) -> Vec<VolumeClaim> {
    let page = volumes::page_of_claims(cloud.pool(), None, u32::MAX).await;
    page.unwrap()
}

/// What is counted is never overcommitted, and nothing here takes any of it away from a host.
async fn within_inventory(cloud: &Cloud) -> Checked {
    let claims = cloud.claims().await;
    for host in hosts::all(cloud.pool()).await.unwrap() {
        let has: u64 = host.resources.iter().map(|inventory| inventory.total).sum();
        let on_host = claims.iter().filter(|claim| claim.host_id == host.id);
        let sum: u64 = on_host.flat_map(|claim| claim.extra.values()).sum();
        if sum > has {
            return Err(format!("{} has {sum} {CLASS} claimed of {has}", host.name));
        }
    }
    Ok(())
}

/// Whoever got something more got it within its capacity. Nothing changes a capacity and claims in one step.
async fn within_capacity(
    cloud: &Cloud,
    before: &BTreeMap<HostId, BTreeMap<Uuid, Resources>>,
) -> Checked {
    let all = aggregates::all(cloud.pool()).await.unwrap();
    let after = claimed(cloud).await;
    for row in hosts::all(cloud.pool()).await.unwrap() {
        let Some(now) = after.get(&row.id) else {
            continue;
        };
        let old = before.get(&row.id).cloned().unwrap_or_default();
        let state = berth_common::message::view::HostState::Up;
        let facts = facts::of_host(&row, &all, state, &cloud.context().config.placement);
        let grew = |of: Resource| {
            let before = |id| old.get(id).map_or(0, |used| of.of(used));
            now.iter().any(|(id, used)| of.of(used) > before(id))
        };
        for of in Resource::ALL.into_iter().filter(|of| grew(*of)) {
            let (sum, capacity): (u64, _) = (
                now.values().map(|used| of.of(used)).sum(),
                of.of(&facts.capacity()),
            );
            if sum > capacity {
                return Err(format!("{} has {sum} {of} claimed of {capacity}", row.name));
            }
        }
    }
    Ok(())
}

/// Nothing is lost: what was granted once is there until it is deleted.
async fn nothing_is_lost(world: &World, granted: &mut BTreeSet<InstanceId>) -> Checked {
    let ids: Vec<InstanceId> = world.asked.iter().map(|request| request.id).collect();
    let rows = instances::of_ids(world.cloud.pool(), &ids).await.unwrap();
    for row in &rows {
        if row.placement_fault.is_none() {
            granted.insert(row.id);
        } else if granted.contains(&row.id) {
            return Err(format!("{} lost its place", row.name));
        }
    }
    match granted
        .iter()
        .find(|id| rows.iter().all(|row| row.id != **id))
    {
        Some(lost) => Err(format!("{lost} is lost")),
        None => Ok(()),
    }
}

async fn live(steps: &[Step], faulty: bool) -> Checked {
    let mut world = World::new(faulty).await;
    let mut granted = BTreeSet::new();
    for (n, step) in steps.iter().enumerate() {
        let before = claimed(&world.cloud).await;
        let outcome = async {
            world.take(step).await?;
            soundness::check(&world.cloud).await?;
            within_inventory(&world.cloud).await?;
            // With faults a ratio may change meanwhile, at the word of an earlier step.
            if !faulty {
                within_capacity(&world.cloud, &before).await?;
            }
            nothing_is_lost(&world, &mut granted).await
        };
        outcome
            .await
            .map_err(|wrong| format!("after step {n}, {step:?}: {wrong}"))?;
    }
    world.cloud.broker.set_faults(Faults::NONE);
    world.faulty = false;
    // In the end everything that shall be gone can go. What is under way yet may come between.
    let deadline = Instant::now() + LIMIT;
    loop {
        match world.end().await? {
            None => return Ok(()),
            Some(_) if faulty && Instant::now() < deadline => {}
            Some(left) => return Err(format!("everything is deleted, and there is {left}")),
        }
    }
}

fn histories(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), length)
}

/// Histories of a cloud with a few instances that run, and mostly of volumes.
fn histories_of_volumes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let reports = (0..HOSTS.len()).prop_map(|host| Step::Reports(host, ConvergeStatus::Converged));
    let step = prop_oneof![8 => volume_step(), 3 => reports, 3 => step()];
    prop::collection::vec(step, length).prop_map(|steps| {
        let like = Like {
            vcpus: 1,
            memory_mb: 64,
            countable: 0,
            group: None,
            ports: 0,
        };
        let first = [
            Step::CreateMany(vec![like; 4], CreateMode::AllOrNothing),
            Step::Reports(0, ConvergeStatus::Converged),
            Step::Reports(1, ConvergeStatus::Converged),
            Step::Reports(2, ConvergeStatus::Converged),
        ];
        first.into_iter().chain(steps).collect()
    })
}

fn check(steps: &[Step], faulty: bool) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(live(steps, faulty))
        .map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_sound_after_every_step_of_a_short_history(steps in histories(1..16)) {
        check(&steps, false)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_sound_after_every_step_of_a_long_history(steps in histories(40..60)) {
        check(&steps, false)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_sound_after_every_step_over_a_bus_with_faults(steps in histories(10..40)) {
        check(&steps, true)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_sound_after_every_step_with_volumes(steps in histories_of_volumes(10..40)) {
        check(&steps, false)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_sound_with_volumes_over_a_bus_with_faults(steps in histories_of_volumes(10..30)) {
        check(&steps, true)?;
    }
}
