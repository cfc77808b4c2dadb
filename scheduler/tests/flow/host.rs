//! A hypervisor, as far as the scheduler can see one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use berth_common::{
    bus::{Bus, Consumer, Message, QueueDecl, Target, heartbeat_key, report_key},
    document::{Document, DocumentKey, InstanceSpec, Kind},
    ids::{HostId, InstanceId},
    message::{
        heartbeat::{
            ForeignDomain, HEARTBEAT_TYPE, HEARTBEAT_VERSION, Heartbeat, NetworkCapabilities,
            PartHealth, PoolReport, ResourceInventory,
        },
        report::{
            BootDisk, ConvergeStatus, Fault, FaultCode, PowerState, REPORT_TYPE, REPORT_VERSION,
            Report, ResourceReport, RunningSize,
        },
        view::Resources,
    },
    names::PhysicalNetworkName,
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use berth_store::hosts;
use chrono::Utc;

use crate::cloud::{Cloud, LIMIT, wait_until};

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) queue: Consumer,
    pub(crate) total: Resources,
    pub(crate) arch: String,
    pub(crate) virt_type: String,
    pub(crate) resources: Vec<ResourceInventory>,
    pub(crate) pools: Vec<PoolReport>,
    pub(crate) physical_networks: Vec<PhysicalNetworkName>,
    pub(crate) network: NetworkCapabilities,
    pub(crate) foreign_domains: Vec<ForeignDomain>,
    pub(crate) health: Vec<PartHealth>,
    pub(crate) session: u64,
    pub(crate) sequence: u64,
    /// The highest generation of each document that came.
    came: BTreeMap<DocumentKey, Generation>,
}

pub(crate) fn resources(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Resources {
    Resources {
        vcpus: Vcpus::new(vcpus).unwrap(),
        memory_mb: MemoryMb::new(memory_mb).unwrap(),
        disk_gb: DiskGb::new(disk_gb).unwrap(),
    }
}

/// So many of a countable resource.
pub(crate) fn inventory(class: &str, total: u64) -> Vec<ResourceInventory> {
    vec![ResourceInventory {
        class: class.parse().unwrap(),
        total,
    }]
}

impl Host {
    /// Appears with 4 CPUs, 4 GB and 100 GB, and a kernel that can filter.
    pub(crate) async fn join(cloud: &Cloud, name: &str) -> Self {
        Self::join_with(cloud, name, |_| ()).await
    }

    /// Several, by name.
    pub(crate) async fn join_all(cloud: &Cloud, names: &[&str]) -> BTreeMap<String, Self> {
        let mut hosts = BTreeMap::new();
        for name in names {
            hosts.insert((*name).to_owned(), Self::join(cloud, name).await);
        }
        hosts
    }

    pub(crate) async fn join_with(
        cloud: &Cloud,
        name: &str,
        change: impl FnOnce(&mut Self),
    ) -> Self {
        let bus: Arc<dyn Bus> = Arc::new(cloud.broker.connect());
        let queue = bus.consume(&QueueDecl::compute(name), 16).await.unwrap();
        let mut host = Self {
            id: HostId::new(),
            name: name.to_owned(),
            bus,
            queue,
            total: resources(4, 4096, 100),
            arch: "x86_64".to_owned(),
            virt_type: "qemu".to_owned(),
            resources: Vec::new(),
            pools: Vec::new(),
            physical_networks: Vec::new(),
            network: NetworkCapabilities {
                stateful_filter: true,
                ..NetworkCapabilities::default()
            },
            foreign_domains: Vec::new(),
            health: Vec::new(),
            session: 1,
            sequence: 0,
            came: BTreeMap::new(),
        };
        change(&mut host);
        host.tell(cloud).await;
        host
    }

    /// Says what it is and has; something of it is new.
    pub(crate) async fn tell(&mut self, cloud: &Cloud) {
        self.heartbeat().await;
        wait_until("a heartbeat is written down", async || {
            let row = hosts::get(cloud.pool(), self.id).await.unwrap();
            row.is_some_and(|row| (row.session, row.sequence) == (self.session, self.sequence))
        })
        .await;
    }

    pub(crate) async fn heartbeat(&mut self) {
        self.sequence += 1;
        let heartbeat = Heartbeat {
            host_id: self.id,
            host: self.name.parse().unwrap(),
            session: self.session,
            sequence: self.sequence,
            agent_version: "test".to_owned(),
            arch: self.arch.clone(),
            virt_type: self.virt_type.clone(),
            total: self.total,
            used_now: Resources::default(),
            health: self.health.clone(),
            foreign_domains: self.foreign_domains.clone(),
            physical_networks: self.physical_networks.clone(),
            resources: self.resources.clone(),
            pools: self.pools.clone(),
            network: self.network.clone(),
        };
        let message = Message::new(HEARTBEAT_TYPE, HEARTBEAT_VERSION, "test", &heartbeat).unwrap();
        self.bus
            .publish(Target::topic(heartbeat_key(self.id)), message)
            .await
            .unwrap();
    }

    /// The next document, acknowledged as if journalled.
    pub(crate) async fn next(&mut self) -> Document {
        self.next_within(LIMIT).await.expect("no document came")
    }

    /// The next document, and whether it says anything that the ones before did not. What is not confirmed yet is published again
    /// and again: on a busy machine an earlier document comes once more when a later one is waited for.
    pub(crate) async fn next_told(&mut self) -> (Document, bool) {
        let came = self.came.clone();
        let document = self.next().await;
        let known = came.get(&document.key());
        let is_news = known.is_none_or(|known| *known < document.generation());
        (document, is_news)
    }

    /// The next document, if one comes within this time.
    pub(crate) async fn next_within(&mut self, limit: Duration) -> Option<Document> {
        let delivery = tokio::time::timeout(limit, self.queue.next()).await.ok()?;
        let delivery = delivery.unwrap();
        let document: Document = serde_json::from_slice(&delivery.message.body).unwrap();
        assert_eq!(document.host_id(), self.id);
        delivery.ack().await;
        let came = self.came.entry(document.key()).or_default();
        *came = document.generation().max(*came);
        Some(document)
    }

    /// The next documents, until all of these kinds came.
    pub(crate) async fn next_of(&mut self, kinds: &[Kind]) -> BTreeMap<Kind, Document> {
        let mut found = BTreeMap::new();
        while !kinds.iter().all(|kind| found.contains_key(kind)) {
            let document = self.next().await;
            found.insert(document.key().kind, document);
        }
        found
    }

    /// The next document of an instance.
    pub(crate) async fn next_about(&mut self, instance: InstanceId) -> Document {
        loop {
            let document = self.next().await;
            if document.key() == key(instance) {
                return document;
            }
        }
    }

    pub(crate) async fn report(
        &mut self,
        key: DocumentKey,
        generation: Generation,
        status: ConvergeStatus,
        power: PowerState,
    ) {
        self.say(resource(key, generation, status, power)).await;
    }

    /// Says that it cannot do what a document says.
    pub(crate) async fn fail(&mut self, document: &Document, code: FaultCode, message: &str) {
        let failed = ConvergeStatus::Failed;
        let mut report = resource(
            document.key(),
            document.generation(),
            failed,
            PowerState::Nostate,
        );
        report.fault = Some(Fault {
            code,
            message: message.to_owned(),
        });
        self.say(report).await;
    }

    pub(crate) async fn say(&mut self, resource: ResourceReport) {
        self.say_all(vec![resource]).await;
    }

    /// Says something of all of these.
    pub(crate) async fn say_all(&mut self, resources: Vec<ResourceReport>) {
        self.sequence += 1;
        let report = Report {
            host_id: self.id,
            host: self.name.parse().unwrap(),
            session: self.session,
            sequence: self.sequence,
            resources,
        };
        let message = Message::new(REPORT_TYPE, REPORT_VERSION, "test", &report).unwrap();
        self.bus
            .publish(Target::topic(report_key(self.id)), message)
            .await
            .unwrap();
    }

    /// Does as it is told: everything that comes until the instance's document came is carried out.
    pub(crate) async fn converge_instance(&mut self, power: PowerState) -> Document {
        loop {
            let document = self.next().await;
            self.carry_out(&document, power).await;
            if document.key().kind == Kind::Instance {
                return document;
            }
        }
    }

    pub(crate) async fn carry_out(&mut self, document: &Document, power: PowerState) {
        let status = if document.is_tombstone() {
            ConvergeStatus::Gone
        } else {
            ConvergeStatus::Converged
        };
        let mut report = resource(document.key(), document.generation(), status, power);
        if let Document::Instance(document) = document {
            report.boot_disk = document.spec.as_ref().and_then(boot_disk);
            let on = matches!(power, PowerState::Running | PowerState::Paused);
            report.running = document.spec.as_ref().filter(|_| on).map(running);
            let ports = document.spec.as_ref().map(|spec| &spec.ports);
            report.ports = ports.map(|ports| ports.iter().map(|port| port.id).collect());
        }
        self.say(report).await;
    }

    /// Carries it out, but for the size of the guest: that is what it was.
    pub(crate) async fn carry_out_with(
        &mut self,
        document: &Document,
        power: PowerState,
        running: RunningSize,
    ) {
        let status = ConvergeStatus::Converged;
        let mut report = resource(document.key(), document.generation(), status, power);
        report.running = Some(running);
        self.say(report).await;
    }

    /// Deletes what it was told to delete of these instances, as often as it is told.
    pub(crate) async fn bury(&mut self, cloud: &Cloud, instances: &[InstanceId]) {
        let mut left: BTreeSet<DocumentKey> = instances.iter().map(|id| key(*id)).collect();
        while !left.is_empty() {
            let document = self.next().await;
            if document.is_tombstone() {
                self.carry_out(&document, PowerState::Nostate).await;
                left.remove(&document.key());
            }
        }
        for id in instances {
            cloud
                .wait_for_instance(*id, "deleted", |view| {
                    view.vm_state == berth_common::message::view::VmState::Deleted
                })
                .await;
        }
    }
}

/// What an instance boots from once its host has done as it was told.
fn boot_disk(spec: &InstanceSpec) -> Option<BootDisk> {
    let rescue = spec.rescue.as_ref();
    let rebuilt = spec.disks.first().and_then(|disk| disk.incarnation);
    rescue
        .map(|it| BootDisk::Rescue(it.nonce))
        .or(rebuilt.map(|it| BootDisk::Rebuilt(it.nonce)))
}

/// What its guest has once its host has done as it was told, and how much more it could have.
fn running(spec: &InstanceSpec) -> RunningSize {
    let flavor = spec.flavor;
    running_with(flavor.vcpus.get(), flavor.memory_mb.get())
}

/// A guest with so much, in a domain with room for more.
pub(crate) fn running_with(vcpus: u64, memory_mb: u64) -> RunningSize {
    RunningSize {
        vcpus: Vcpus::clamped(vcpus),
        vcpus_max: Vcpus::clamped(vcpus.max(2)),
        memory_mb: MemoryMb::clamped(memory_mb),
        memory_mb_max: MemoryMb::clamped(memory_mb.max(2048)),
        memory_step_mb: MemoryMb::clamped(128),
    }
}

/// What a report says of one resource.
pub(crate) fn resource(
    key: DocumentKey,
    generation: Generation,
    status: ConvergeStatus,
    power: PowerState,
) -> ResourceReport {
    ResourceReport {
        key,
        generation,
        status,
        progress: None,
        fault: None,
        power_state: (key.kind == Kind::Instance).then_some(power),
        reboot_nonce: None,
        boot_disk: None,
        running: None,
        ports: None,
        volumes: None,
        observed_at: Utc::now(),
    }
}

/// The document of an instance.
pub(crate) fn key(instance: InstanceId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Instance,
        id: instance.as_uuid(),
    }
}
