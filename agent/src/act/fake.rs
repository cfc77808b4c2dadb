//! A host that exists only in memory: a small model with state behind the same traits as the real one.
//!
//! It does what a host would do, remembers it, and can be told to misbehave: a step fails, the agent dies after a
//! step or in it, libvirtd ends, power fails, a guest does not listen, an image is out of reach, the disk is full. Whoever
//! drives it can look at what is left. It decides nothing, and it is no list of canned answers.

mod domains;
mod faults;
mod files;
mod inspect;
mod networks;
mod routers;
mod usage;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use berth_common::{
    document::ImageRef,
    ids::{InstanceId, NetworkId, RouterId, SnapshotId, VolumeId},
    message::{
        heartbeat::{NetworkCapabilities, PoolKind, PoolReport},
        report::FaultCode,
        view::Resources,
    },
    names::{ImageUrl, MacAddress, PoolName},
    units::{ByteCount, DiskGb, MemoryMb, Vcpus},
};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    ActError, Compute, Net, PoolState, Progress, Storage, Usage,
    machine::{Machine, Measure},
};
use crate::decide::{
    domain::{BackupPlan, DiskError, DomainConfig, DomainObserved, DomainStep, JobProgress},
    filter::{Reason, RouterLeg},
    image_cache::CachedName,
    instance::{DiskName, InstanceFiles, StorageStep},
    metadata::ForgedCounts,
    network::{Herald, NetStep, NetworkObserved, uplink::HostUplinks},
    router::{Leg, RouterObserved, RouterStep, Translation},
    snapshot::{BackupJob, SnapshotFiles},
    usage::{Activity, DomainUsage},
    volume::VolumeFiles,
};
use domains::Domains;
use faults::{Fate, Faults, Nature};
use files::Files;
use inspect::Consoles;
use networks::Networks;
use routers::Routers;
use usage::Workloads;

pub use domains::{Guest, Lives};
pub use faults::Mishap;
pub use files::{FakeDisk, FakeVolume};
pub use inspect::Answers;
pub use usage::Busy;

/// Memory that the host itself takes, as the reserve that schedulers keep by default.
const OWN_MEMORY_MB: u64 = 512;

/// A host in memory. Clones are the same host.
#[derive(Debug, Clone)]
pub struct FakeHost {
    model: Arc<Mutex<Model>>,
    news: Arc<Notify>,
}

/// Everything the host is.
#[derive(Debug)]
struct Model {
    size: Resources,
    domains: Domains,
    files: Files,
    networks: Networks,
    routers: Routers,
    workloads: Workloads,
    consoles: Consoles,
    faults: Faults,
    /// How long a step takes.
    pace: Duration,
    /// How long a look at the storage pools takes.
    pools_pace: Duration,
    unfiltered_legs: BTreeSet<MacAddress>,
    /// What no sweep can remove.
    leftover: Option<String>,
    open_tunnels: BTreeSet<NetworkId>,
}

/// How much of a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    Half,
}

impl Model {
    /// The host loses power and boots.
    fn power_cut(&mut self) {
        self.domains.power_cut();
        self.files.power_cut();
        self.networks.power_cut();
        self.routers = Routers::default();
    }

    /// Notes which legs are in the bridge of a network whose packet filter does not know them.
    fn check_legs(&mut self, network: NetworkId) {
        let plugged = self.routers.plugged(network).into_iter();
        let unfiltered = plugged.filter(|leg| !self.networks.knows(network, *leg));
        self.unfiltered_legs.extend(unfiltered);
    }

    /// Notes whether everybody may send into the VXLAN of a network.
    fn check_tunnel(&mut self, network: NetworkId) {
        if self.networks.has_tunnel(network) && self.networks.senders(network).is_none() {
            self.open_tunnels.insert(network);
        }
    }
}

impl FakeHost {
    /// A host with nothing on it: 16 processors, 64 GiB of memory, 1000 GiB of disk.
    #[must_use]
    pub fn new() -> Self {
        Self::sized(Resources {
            vcpus: Vcpus::clamped(16),
            memory_mb: MemoryMb::clamped(64 << 10),
            disk_gb: DiskGb::clamped(1000),
        })
    }

    /// A host of this size with nothing on it.
    #[must_use]
    pub fn sized(size: Resources) -> Self {
        Self {
            model: Arc::new(Mutex::new(Model {
                size,
                domains: Domains::default(),
                files: Files::default(),
                networks: Networks::default(),
                routers: Routers::default(),
                workloads: Workloads::default(),
                consoles: Consoles::default(),
                faults: Faults::default(),
                pace: Duration::ZERO,
                pools_pace: Duration::ZERO,
                unfiltered_legs: BTreeSet::new(),
                leftover: None,
                open_tunnels: BTreeSet::new(),
            })),
            news: Arc::default(),
        }
    }

    /// Another host, on which everything is as it is on this one now. What is due to go wrong here is not due there.
    #[must_use]
    pub fn twin(&self) -> Self {
        let model = self.model();
        let twin = Model {
            size: model.size,
            domains: model.domains.clone(),
            files: model.files.clone(),
            networks: model.networks.clone(),
            routers: model.routers.clone(),
            workloads: model.workloads.clone(),
            consoles: model.consoles.clone(),
            faults: Faults::default(),
            pace: model.pace,
            pools_pace: model.pools_pace,
            unfiltered_legs: model.unfiltered_legs.clone(),
            leftover: model.leftover.clone(),
            open_tunnels: model.open_tunnels.clone(),
        };
        Self {
            model: Arc::new(Mutex::new(twin)),
            news: Arc::default(),
        }
    }

    /// From now on each step takes so long, and others may be done meanwhile. None, unless told so.
    pub fn set_pace(&self, pace: Duration) {
        self.model().pace = pace;
    }

    /// This befalls the step after `steps` further ones, once; what was due before is so no longer.
    pub fn befall(&self, mishap: Mishap, steps: u64) {
        self.model().faults.befall(mishap, steps);
    }

    /// Waits until what was due has befallen, however long ago; told once.
    pub async fn befallen(&self) {
        let befell = self.model().faults.befell();
        befell.notified().await;
    }

    /// libvirtd ends, and is there again at once.
    pub fn restart_libvirt(&self) {
        self.model().domains.libvirt_ends();
    }

    /// A libvirtd that ended is there again.
    pub fn libvirt_is_back(&self) {
        self.model().faults.libvirt_is_back();
    }

    /// Takes a step, or as much of it as the host's fate has.
    async fn carry_out(
        &self,
        nature: Nature,
        work: impl FnOnce(&mut Model, Extent) -> Result<(), ActError> + Send,
    ) -> Result<(), ActError> {
        let pace = self.model().pace;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        let mut guard = self.model();
        let model = &mut *guard;
        let was_there = !model.faults.libvirt_is_away();
        let fate = model.faults.step(nature);
        if was_there && model.faults.libvirt_is_away() {
            model.domains.libvirt_ends();
        }
        match fate? {
            Fate::Done => work(model, Extent::Whole),
            Fate::Unanswered(error) => work(model, Extent::Whole).and(Err(error)),
            Fate::Halved(error) => work(model, Extent::Half).and(Err(error)),
            Fate::PowerCut(error) => {
                model.power_cut();
                Err(error)
            }
        }
    }

    /// A panic while the lock was held is a failed test already.
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the step after `steps` further ones fail, once, with nothing done.
    pub fn fail_after(&self, steps: u64) {
        self.model().faults.fail_after(steps);
    }

    /// Makes each step fail with this probability, with nothing done; from 0, none, to 1, every one. The seed decides
    /// which.
    pub fn fail_at_random(&self, rate: f64, seed: u64) {
        self.model().faults.fail_at_random(rate, seed);
    }

    /// Lets the agent die after `steps` further steps: every call fails until [`Self::restart_agent`].
    pub fn crash_after(&self, steps: u64) {
        self.model().faults.crash_after(steps);
    }

    /// Whether the agent is dead.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.model().faults.is_crashed()
    }

    /// The agent is started again; the host kept running meanwhile.
    pub fn restart_agent(&self) {
        self.model().faults.restart();
    }

    /// How many steps were carried out so far.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.model().faults.steps_done()
    }

    /// The host loses power and boots: nothing runs, no network is there, all files are.
    pub fn power_cut(&self) {
        self.model().power_cut();
    }

    /// What physical switches were told so far of where ports are.
    #[must_use]
    pub fn heralds(&self) -> Vec<Herald> {
        self.model().networks.heralds()
    }

    /// What its networks go out by; nothing unless told otherwise.
    pub fn have_uplinks(&self, uplinks: HostUplinks) {
        self.model().networks.have_uplinks(uplinks);
    }

    /// What its networks go out by now.
    #[must_use]
    pub fn uplinks(&self) -> HostUplinks {
        self.model().networks.uplinks().clone()
    }

    /// A network's bridge is there, whoever made it.
    pub fn have_bridge(&self, network: NetworkId) {
        let mut model = self.model();
        let model = &mut *model;
        model.networks.apply(
            &NetStep::CreateBridge { network, mtu: 1500 },
            &model.domains,
        );
    }

    /// What is there of a router, as it is: nothing passes by looking at it this way.
    #[must_use]
    pub fn router(&self, router: RouterId) -> RouterObserved {
        let model = self.model();
        model
            .routers
            .observe(router, &BTreeSet::new(), &model.networks)
    }

    /// A flow passes by a router, translated in this way.
    pub fn have_flow(&self, router: RouterId, flow: Translation) {
        self.model().routers.have_flow(router, flow);
    }

    /// How the guest of an instance behaves when it is asked to power off. Guests obey at once unless told otherwise.
    pub fn set_guest(&self, instance: InstanceId, guest: Guest) {
        self.model().domains.set_guest(instance, guest);
    }

    /// The guest of an instance powers itself off, if it runs.
    pub fn guest_powers_off(&self, instance: InstanceId) {
        self.model().domains.guest_powers_off(instance);
    }

    /// The guest of an instance crashes, if it runs.
    pub fn guest_crashes(&self, instance: InstanceId) {
        self.model().domains.guest_crashes(instance);
    }

    /// Somebody pauses an instance, if it runs.
    pub fn pause(&self, instance: InstanceId) {
        self.model().domains.pause(instance);
    }

    /// There is no room for what the guest of an instance writes, until [`Self::make_room`]: it stands still, and again soon after each
    /// time that it is let go on.
    pub fn fill_disk(&self, instance: InstanceId) {
        self.model().domains.fill_disk(instance);
    }

    /// There is room for what it writes again.
    pub fn make_room(&self, instance: InstanceId) {
        self.model().domains.make_room(instance);
    }

    /// The host says that something happened to a domain. It says so never by itself.
    pub fn tell_news(&self) {
        self.news.notify_one();
    }

    /// From now on a look at the storage pools takes so long.
    pub fn slow_pools(&self, pace: Duration) {
        self.model().pools_pace = pace;
    }

    /// Memory of an instance stays on disk while it runs, as a libvirtd leaves it that dies while it restores.
    pub fn leave_memory(&self, instance: InstanceId) {
        self.model().domains.leave_memory(instance);
    }

    /// libvirt begins to start an instance that is off, or to restore it, and never gets any further.
    pub fn hang_start(&self, instance: InstanceId) {
        self.model().domains.hang_start(instance);
    }

    /// From now on that becomes of each start of an instance.
    pub fn hang_starts(&self, instance: InstanceId) {
        self.model().domains.hang_starts(instance);
    }

    /// Somebody defines a domain that is not berth's.
    pub fn add_foreign(&self, domain: DomainObserved) {
        self.model().domains.add_foreign(domain);
    }

    /// Somebody takes away a domain that is not berth's.
    pub fn remove_foreign(&self, uuid: Uuid) {
        self.model().domains.remove_foreign(uuid);
    }

    /// The guest of a domain works, if it runs: its first disk and its first NIC count on.
    pub fn guest_works(&self, uuid: Uuid, work: Activity) {
        let mut guard = self.model();
        let model = &mut *guard;
        model.workloads.work(&model.domains, uuid, work);
    }

    /// Something else is done to a domain, from now on or no longer: it tells little of itself.
    pub fn set_busy(&self, uuid: Uuid, busy: Busy) {
        self.model().workloads.set_busy(uuid, busy);
    }

    /// What the guest of an instance was started with and given since, if it is on or sleeps.
    #[must_use]
    pub fn guest_has(&self, instance: InstanceId) -> Option<DomainConfig> {
        self.model().domains.guest_has(instance)
    }

    /// What the next start of an instance uses.
    #[must_use]
    pub fn definition(&self, instance: InstanceId) -> Option<DomainConfig> {
        self.model().domains.definition(instance)
    }

    /// What became of an instance's guest so far.
    #[must_use]
    pub fn lives(&self, instance: InstanceId) -> Lives {
        self.model().domains.lives(instance)
    }

    /// The image at this address cannot be fetched until [`Self::image_is_back`].
    pub fn image_is_unreachable(&self, url: ImageUrl) {
        self.model().files.unreachable.insert(url);
    }

    /// The image at this address can be fetched again.
    pub fn image_is_back(&self, url: &ImageUrl) {
        self.model().files.unreachable.remove(url);
    }

    /// There is a storage pool of this kind and size.
    pub fn have_pool(&self, kind: PoolKind, pool: PoolName, size: ByteCount) {
        self.model().files.pools.insert(pool, (kind, size));
    }

    /// There is a leftover that no sweep can remove; `None`: no longer.
    pub fn have_leftover(&self, what: Option<&str>) {
        self.model().leftover = what.map(str::to_owned);
    }

    /// No file can be made, from now on or no longer.
    pub fn set_disk(&self, disk: Disk) {
        self.model().files.disk = disk;
    }

    /// An instance has a disk of this size, whoever made it.
    pub fn have_disk(&self, instance: InstanceId, name: DiskName, size: ByteCount) {
        self.model().files.have_disk(instance, name, size);
    }

    /// A disk vanishes from under an instance.
    pub fn lose_disk(&self, instance: InstanceId, name: DiskName) {
        self.model().files.lose_disk(instance, name);
    }

    /// The disks an instance has of its own, with what is on them.
    #[must_use]
    pub fn disks(&self, instance: InstanceId) -> BTreeMap<DiskName, FakeDisk> {
        self.model().files.disks(instance)
    }

    /// The guest of an instance writes this to one of its disks (`vda`), if it is on.
    pub fn guest_writes(&self, instance: InstanceId, target: &str, text: &str) {
        let mut guard = self.model();
        let model = &mut *guard;
        let domain = model.domains.peek(instance.as_uuid());
        let live = domain.iter().flat_map(|domain| &domain.disks.live);
        if let Some(disk) = live.into_iter().find(|disk| disk.target == target) {
            model.files.write_disk(instance, &disk.path, text);
        }
    }

    /// What is there of a volume's file.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<FakeVolume> {
        self.model().files.volume(volume)
    }

    /// A volume's file vanishes.
    pub fn lose_volume(&self, volume: VolumeId) {
        self.model().files.lose_volume(volume);
    }

    /// Somebody writes this to a volume.
    pub fn write_volume(&self, volume: VolumeId, text: &str) {
        self.model().files.write_volume(volume, text);
    }

    /// What is there of a snapshot's file.
    #[must_use]
    pub fn snapshot(&self, snapshot: SnapshotId) -> Option<FakeVolume> {
        self.model().files.snapshot(snapshot)
    }

    /// A snapshot's file vanishes.
    pub fn lose_snapshot(&self, snapshot: SnapshotId) {
        self.model().files.lose_snapshot(snapshot);
    }

    /// The hypervisor of an instance copies a disk from now on, and nobody waits for it any more.
    pub fn leave_backup(&self, plan: &BackupPlan) {
        let mut guard = self.model();
        let model = &mut *guard;
        model.domains.leave_backup(plan, &mut model.files);
    }

    /// All images vanish from the cache.
    pub fn lose_images(&self) {
        self.model().files.images.clear();
    }

    /// Which images are in the cache.
    #[must_use]
    pub fn images(&self) -> BTreeSet<CachedName> {
        self.model().files.images.clone()
    }

    /// The legs of routers that were in a bridge while the packet filter of its network did not know them, at any time.
    #[must_use]
    pub fn unfiltered_legs(&self) -> Vec<MacAddress> {
        self.model().unfiltered_legs.iter().copied().collect()
    }

    /// The networks into whose VXLAN everybody could send, at any time.
    #[must_use]
    pub fn open_tunnels(&self) -> Vec<NetworkId> {
        self.model().open_tunnels.iter().copied().collect()
    }

    /// The addresses of the hosts that may send into the VXLAN of a network; `None`: it has none, or everybody may.
    #[must_use]
    pub fn senders(&self, network: NetworkId) -> Option<BTreeSet<IpAddr>> {
        self.model().networks.senders(network)
    }

    /// All that is left of berth on the host, for people; cached images are meant to stay and do not count.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let model = self.model();
        let domains = model
            .domains
            .own()
            .into_iter()
            .map(|id| format!("domain of instance {id}"));
        let files = model
            .files
            .instances()
            .into_iter()
            .map(|id| format!("files of instance {id}"));
        let networks = model
            .networks
            .present()
            .into_iter()
            .map(|id| format!("network {id}"));
        let routers = model
            .routers
            .present()
            .into_iter()
            .map(|id| format!("router {id}"));
        let volumes = model
            .files
            .volumes()
            .into_iter()
            .map(|id| format!("volume {id}"));
        let snapshots = model
            .files
            .snapshots()
            .into_iter()
            .map(|id| format!("snapshot {id}"));
        let jobs = model
            .domains
            .backups()
            .into_iter()
            .map(|job| format!("a backup job of {}", job.domain));
        domains
            .chain(files)
            .chain(networks)
            .chain(routers)
            .chain(volumes)
            .chain(snapshots)
            .chain(jobs)
            .collect()
    }

    /// The domain with this UUID, as it is: nothing passes by looking at it this way.
    #[must_use]
    pub fn domain(&self, uuid: Uuid) -> Option<DomainObserved> {
        self.model().domains.peek(uuid)
    }
}

/// How full the fake disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Disk {
    /// There is room.
    #[default]
    Roomy,
    /// There is none.
    Full,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Measure for FakeHost {
    fn measure(&self) -> Machine {
        let model = self.model();
        let total = model.size.memory_mb;
        let used = model
            .domains
            .memory_in_use()
            .saturating_add(MemoryMb::clamped(OWN_MEMORY_MB));
        Machine {
            cpus: model.size.vcpus.get(),
            memory_total: ByteCount::from_mb(total),
            memory_available: ByteCount::from_mb(total.saturating_sub(used)),
            network: NetworkCapabilities {
                stateful_filter: true,
                ..NetworkCapabilities::default()
            },
            ..Machine::default()
        }
    }
}

#[async_trait]
impl Compute for FakeHost {
    async fn observe(&self) -> Result<Vec<DomainObserved>, ActError> {
        let mut model = self.model();
        model.faults.ask_libvirt()?;
        Ok(model.domains.observe_all())
    }

    async fn observe_one(&self, instance: InstanceId) -> Result<Option<DomainObserved>, ActError> {
        let mut model = self.model();
        model.faults.ask_libvirt()?;
        Ok(model.domains.observe(instance.as_uuid()))
    }

    async fn apply(&self, step: &DomainStep) -> Result<(), ActError> {
        let work = |model: &mut Model, extent| {
            let (files, networks) = (&mut model.files, &model.networks);
            let done = match extent {
                Extent::Whole => model.domains.apply(step, files, networks),
                Extent::Half => model.domains.halve(step, files, networks),
            };
            model.networks.forget_taps(&model.domains);
            done
        };
        self.carry_out(domains::nature(step), work).await
    }

    async fn job(&self, _: InstanceId) -> Result<Option<JobProgress>, ActError> {
        // Whatever a fake guest does is done at once.
        self.model().faults.ask_libvirt().map(|()| None)
    }

    async fn disk_errors(
        &self,
        instance: InstanceId,
    ) -> Result<BTreeMap<String, DiskError>, ActError> {
        let model = self.model();
        model.faults.ask_libvirt()?;
        Ok(model.domains.disk_errors(instance))
    }

    async fn backups(&self) -> Result<Vec<BackupJob>, ActError> {
        let model = self.model();
        model.faults.ask_libvirt()?;
        Ok(model.domains.backups())
    }

    async fn news(&self) {
        self.news.notified().await;
    }
}

#[async_trait]
impl Usage for FakeHost {
    async fn usage(&self) -> Result<Vec<DomainUsage>, ActError> {
        let model = self.model();
        model.faults.ask_libvirt()?;
        Ok(model.workloads.measure(&model.domains))
    }
}

#[async_trait]
impl Storage for FakeHost {
    async fn observe(&self, instance: InstanceId) -> Result<InstanceFiles, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.observe(instance))
    }

    async fn has_image(&self, image: &ImageRef) -> Result<bool, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.images.contains(&CachedName::of(image)))
    }

    async fn apply(&self, step: &StorageStep, progress: &Progress) -> Result<(), ActError> {
        if let StorageStep::FetchImage(image) = step {
            progress.send_replace(Some(format!("downloading {}", image.url)));
        }
        let work = |model: &mut Model, extent| match extent {
            Extent::Whole => model.files.apply(step),
            Extent::Half => model.files.halve(step),
        };
        let nature = self.model().files.nature(step);
        let result = self.carry_out(nature, work).await;
        progress.send_replace(None);
        result
    }

    async fn space(&self) -> Result<(ByteCount, ByteCount), ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.space(model.size.disk_gb))
    }

    async fn instances_with_files(&self) -> Result<Vec<InstanceId>, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.instances())
    }

    async fn observe_volume(
        &self,
        volume: VolumeId,
        pool: Option<&PoolName>,
    ) -> Result<VolumeFiles, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.observe_volume(volume, pool))
    }

    async fn pools(&self) -> Vec<PoolState> {
        let pace = self.model().pools_pace;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        let model = self.model();
        let (total_bytes, used_bytes) = model.files.space(model.size.disk_gb);
        let local = PoolReport {
            name: PoolName::default(),
            kind: PoolKind::Dir,
            total_bytes,
            used_bytes,
            provisioned_bytes: used_bytes,
            metadata_percent: None,
        };
        let local = PoolState {
            name: local.name.clone(),
            report: Ok(local),
        };
        let mut pools = model.files.pools();
        pools.insert(0, local);
        pools
    }

    async fn volumes_with_files(&self) -> Result<Vec<VolumeId>, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.volumes())
    }

    async fn observe_snapshot(
        &self,
        snapshot: SnapshotId,
        pool: Option<&PoolName>,
    ) -> Result<SnapshotFiles, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.observe_snapshot(snapshot, pool))
    }

    async fn snapshots_with_files(&self) -> Result<Vec<SnapshotId>, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.files.snapshots())
    }

    async fn check_snapshot_room(&self, _: SnapshotId) -> Result<(), ActError> {
        self.model().faults.look()
    }

    // Nothing takes time here, so nothing is promised.
    fn release_snapshot_room(&self, _: SnapshotId) {}

    async fn sweep(&self) -> Result<(), ActError> {
        let model = self.model();
        model.faults.look()?;
        match &model.leftover {
            None => Ok(()),
            Some(what) => Err(ActError::retryable(
                FaultCode::Internal,
                format!("could not remove the leftover {what}"),
                "not permitted",
            )),
        }
    }

    async fn fetch_image(&self, image: &ImageRef, progress: &Progress) -> Result<(), ActError> {
        Storage::apply(self, &StorageStep::FetchImage(image.clone()), progress).await
    }
}

#[async_trait]
impl Net for FakeHost {
    async fn observe(&self, network: NetworkId) -> Result<NetworkObserved, ActError> {
        let model = self.model();
        model.faults.look()?;
        let mut observed = model.networks.observe(network, &model.domains);
        observed.members.extend(model.routers.legs_in(network));
        let behind = model.routers.behind_legs_in(network).into_iter();
        observed.filter.legs = behind.map(RouterLeg::found).collect();
        Ok(observed)
    }

    async fn apply(&self, step: &NetStep) -> Result<(), ActError> {
        let work = |model: &mut Model, _| {
            model.networks.apply(step, &model.domains);
            if let NetStep::DeleteBridge(network) = step {
                model.routers.lose_bridge(*network);
            }
            model.check_legs(step.network());
            model.check_tunnel(step.network());
            Ok(())
        };
        self.carry_out(Nature::default(), work).await
    }

    // No packets pass here.
    async fn drops(&self) -> Result<BTreeMap<(String, Reason), u64>, ActError> {
        self.model().faults.look()?;
        Ok(BTreeMap::new())
    }

    async fn tunnel_drops(&self) -> Result<Option<u64>, ActError> {
        self.model().faults.look()?;
        Ok(None)
    }

    async fn forged_requests(&self) -> Result<BTreeMap<NetworkId, ForgedCounts>, ActError> {
        self.model().faults.look()?;
        Ok(BTreeMap::new())
    }

    async fn networks_present(&self) -> Result<Vec<NetworkId>, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.networks.present())
    }

    async fn observe_router(
        &self,
        router: RouterId,
        legs: &BTreeSet<Leg>,
    ) -> Result<RouterObserved, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.routers.observe(router, legs, &model.networks))
    }

    async fn apply_router(&self, step: &RouterStep) -> Result<(), ActError> {
        let work = |model: &mut Model, _| {
            model.routers.apply(step, &model.networks);
            if let RouterStep::Plug(leg) = step {
                model.check_legs(leg.network);
            }
            Ok(())
        };
        self.carry_out(Nature::default(), work).await
    }

    async fn herald(&self, herald: &Herald) -> Result<(), ActError> {
        let mut model = self.model();
        model.faults.look()?;
        model.networks.herald(herald);
        Ok(())
    }

    async fn routers_present(&self) -> Result<Vec<RouterId>, ActError> {
        let model = self.model();
        model.faults.look()?;
        Ok(model.routers.present())
    }
}
