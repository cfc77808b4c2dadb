//! What is wished of one host: wishes become documents here. It knows nothing of plans, steps or reports. What must come of the
//! wishes is said in [`expected`].

#[path = "expected.rs"]
mod expected;

use std::collections::{BTreeMap, BTreeSet};

use berth_agent::{
    act::fake::{FakeDisk, Lives},
    decide::{domain::DomainConfig, instance::DiskName},
};
use berth_common::{
    document::{
        BandwidthLimit, ConfigDrive, DiskBus, Incarnation, InstanceVolume, MirrorDirection,
        MirrorTarget, PortLink, PortMirror, PortSecurity, Rescue, SnapshotRef, SnapshotSpec,
        VolumeAccess, VolumeLimits, VolumeRef, VolumeSource,
    },
    ids::SnapshotId,
};

use super::super::*;

/// The name of a volume or a snapshot in the table.
pub(super) type Label = &'static str;

/// How volumes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// Files of the pool `local`.
    Qcow2,
    Raw,
    /// Raw files of a pool on a disk of its own.
    Dir,
    /// Block devices.
    Lvm,
    /// Block devices, where snapshots share what they hold with their volumes.
    Thin,
}

impl Store {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Dir => "dir",
            Self::Lvm => "lvm",
            Self::Thin => "thin",
        }
    }

    fn pool(self) -> PoolName {
        match self {
            Self::Qcow2 | Self::Raw => PoolName::default(),
            Self::Dir => ssd(),
            Self::Lvm => fast(),
            Self::Thin => thin(),
        }
    }

    const fn format(self) -> VolumeFormat {
        match self {
            Self::Qcow2 => VolumeFormat::Qcow2,
            Self::Raw | Self::Dir | Self::Lvm | Self::Thin => VolumeFormat::Raw,
        }
    }
}

/// What becomes of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Becomes {
    /// What it was: nobody starts it, switches it off, or asks it to.
    AsItWas,
    /// One that was started once, anew.
    Started,
    /// Off.
    Off,
    /// Saved on disk, once.
    Asleep,
    /// Awake, once, from what was saved.
    Awake,
    /// The same, and then off.
    AwakeAndOff,
    /// Nothing.
    Gone,
}

impl Becomes {
    /// How often it is started, saved and restored on the way there.
    const fn lives(self) -> [u32; 3] {
        match self {
            Self::AsItWas | Self::Off | Self::Gone => [0, 0, 0],
            Self::Started => [1, 0, 0],
            Self::Asleep => [0, 1, 0],
            Self::Awake | Self::AwakeAndOff => [0, 0, 1],
        }
    }
}

/// A volume that is wished.
#[derive(Debug, Clone)]
struct Volume {
    id: VolumeId,
    gb: u64,
    source: Option<VolumeSource>,
    /// What is on it, once it is there.
    content: Option<String>,
}

/// A snapshot that is wished.
#[derive(Debug, Clone)]
struct Snapshot {
    id: SnapshotId,
    of: VolumeRef,
    gb: u64,
    content: Option<String>,
}

/// The guest as it must be.
#[derive(Debug, Clone)]
enum Guest {
    Absent,
    Off,
    On(Has),
    Asleep(Has),
}

/// What a guest has.
#[derive(Debug, Clone)]
struct Has {
    /// As it was started.
    started: DomainConfig,
    /// With what it was given since.
    vcpus: Vcpus,
    memory_mb: MemoryMb,
    /// Of one that sleeps: what it will go on with.
    kept: DomainConfig,
}

/// What the host shall make of a network.
#[derive(Debug, Clone, Copy, Default)]
struct Wire {
    limited: bool,
    secured: bool,
}

/// All that is wished of a host, and what must come of it.
#[derive(Debug, Clone)]
pub(super) struct World {
    host: HostId,
    pub(super) store: Store,
    ids: u64,
    pub(super) instance: InstanceId,
    network: NetworkId,
    subnet: SubnetId,
    wire: Option<Wire>,
    spec: Option<InstanceSpec>,
    volumes: BTreeMap<Label, Volume>,
    snapshots: BTreeMap<Label, Snapshot>,
    /// Whether the instance's document shall come anew although nothing in it changes.
    anew: bool,
    /// The newest document of everything that was ever wished.
    told: BTreeMap<DocumentKey, Document>,
    /// The older ones.
    outdated: Vec<Document>,
    guest: Guest,
    disks: BTreeMap<DiskName, FakeDisk>,
    lives: Lives,
    words: u32,
}

/// A number that looks like any other.
pub(super) const fn mix(number: u64) -> u64 {
    // One step of SplitMix64 (Steele, Lea, Flood 2014).
    let state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn gb(size: u64) -> ByteCount {
    ByteCount::from_gb(DiskGb::clamped(size))
}

fn image(letter: &str) -> ImageRef {
    ImageRef {
        url: format!("http://images.example.org/{letter}.qcow2")
            .parse()
            .unwrap(),
        sha256: letter.repeat(64).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

fn content_of(image: &ImageRef) -> String {
    format!("image {}", image.sha256)
}

impl World {
    pub(super) fn new(host: HostId, store: Store) -> Self {
        let mut world = Self {
            host,
            store,
            ids: 0,
            instance: InstanceId::new(),
            network: NetworkId::new(),
            subnet: SubnetId::new(),
            wire: None,
            spec: None,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            anew: false,
            told: BTreeMap::new(),
            outdated: Vec::new(),
            guest: Guest::Absent,
            disks: BTreeMap::new(),
            lives: Lives::default(),
            words: 0,
        };
        world.network = world.id();
        world.subnet = world.id();
        world
    }

    /// Another id, the same ones in the same order.
    fn id<I: TryFrom<Uuid, Error: std::fmt::Debug>>(&mut self) -> I {
        self.ids += 2;
        let uuid = Uuid::from_u64_pair(mix(self.ids), mix(self.ids + 1));
        I::try_from(uuid).unwrap()
    }

    // ---- What can be asked of it ----

    pub(super) const fn has_network(&self) -> bool {
        self.wire.is_some()
    }

    pub(super) fn is_limited(&self) -> bool {
        self.wire.is_some_and(|wire| wire.limited)
    }

    pub(super) fn is_secured(&self) -> bool {
        self.wire.is_some_and(|wire| wire.secured)
    }

    pub(super) const fn exists(&self) -> bool {
        self.spec.is_some()
    }

    /// How far the guest shall run.
    pub(super) fn power(&self) -> Option<DesiredPower> {
        self.spec.as_ref().map(|spec| spec.power)
    }

    pub(super) fn runs(&self) -> bool {
        matches!(self.guest, Guest::On(_)) && self.power() == Some(DesiredPower::Running)
    }

    pub(super) fn is_paused(&self) -> bool {
        matches!(self.guest, Guest::On(_)) && self.power() == Some(DesiredPower::Paused)
    }

    pub(super) const fn is_off(&self) -> bool {
        matches!(self.guest, Guest::Off)
    }

    /// Whether it is off by itself: it shall run.
    pub(super) fn is_left_off(&self) -> bool {
        self.is_off() && self.power() == Some(DesiredPower::Running)
    }

    pub(super) const fn is_asleep(&self) -> bool {
        matches!(self.guest, Guest::Asleep(_))
    }

    pub(super) fn stays_off_after_crash(&self) -> bool {
        let spec = self.spec.as_ref();
        spec.is_some_and(|spec| spec.on_crash == berth_common::document::OnCrash::Stop)
    }

    pub(super) fn is_rescued(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.rescue.is_some())
    }

    pub(super) fn boots_from_volume(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.disks.is_empty())
    }

    pub(super) fn has_config_drive(&self) -> bool {
        let spec = self.spec.as_ref();
        spec.is_some_and(|spec| spec.config_drive.is_some())
    }

    pub(super) fn vcpus(&self) -> u64 {
        let spec = self.spec.as_ref();
        spec.map_or(0, |spec| spec.flavor.vcpus.get())
    }

    pub(super) fn ports(&self) -> usize {
        self.spec.as_ref().map_or(0, |spec| spec.ports.len())
    }

    pub(super) fn has_volume(&self, label: Label) -> bool {
        self.volumes.contains_key(label)
    }

    pub(super) fn has_snapshot(&self, label: Label) -> bool {
        self.snapshots.contains_key(label)
    }

    pub(super) fn has_snapshots_of(&self, label: Label) -> bool {
        let volume = self.volumes.get(label).map(|volume| volume.id);
        let mut snapshots = self.snapshots.values();
        snapshots.any(|snapshot| Some(snapshot.of.id) == volume)
    }

    pub(super) fn size(&self, label: Label) -> u64 {
        self.volumes.get(label).map_or(0, |volume| volume.gb)
    }

    /// Which bus a volume is attached on.
    pub(super) fn bus(&self, label: Label) -> Option<DiskBus> {
        let id = self.volumes.get(label)?.id;
        let mut volumes = self.spec.as_ref()?.volumes.iter();
        volumes.find(|it| it.id == id).map(|it| it.disk_bus)
    }

    pub(super) fn is_attached(&self, label: Label) -> bool {
        self.bus(label).is_some()
    }

    pub(super) fn attached(&self) -> usize {
        self.spec.as_ref().map_or(0, |spec| spec.volumes.len())
    }

    // ---- What can be wished ----

    fn spec_mut(&mut self) -> &mut InstanceSpec {
        self.spec.as_mut().expect("the instance was created")
    }

    pub(super) fn make_network(&mut self) {
        self.wire = Some(Wire::default());
    }

    pub(super) fn remove_network(&mut self) {
        self.wire = None;
    }

    pub(super) fn limit(&mut self, limited: bool) {
        self.wire.as_mut().unwrap().limited = limited;
    }

    pub(super) fn secure(&mut self, secured: bool) {
        self.wire.as_mut().unwrap().secured = secured;
    }

    pub(super) fn create(&mut self) {
        self.instance = self.id();
        self.lives = Lives::default();
        self.spec = Some(InstanceSpec {
            name: "web-1".parse().unwrap(),
            project: "default".parse().unwrap(),
            power: DesiredPower::Running,
            reboot: None,
            stop_timeout_seconds: 30,
            flavor: Flavor {
                vcpus: Vcpus::clamped(1),
                memory_mb: MemoryMb::clamped(1024),
                disk_gb: DiskGb::clamped(1),
            },
            disks: vec![InstanceDisk {
                index: 0,
                size_gb: DiskGb::clamped(1),
                format: DiskFormat::Qcow2,
                source: DiskSource::Image(image("a")),
                incarnation: None,
            }],
            ports: Vec::new(),
            volumes: Vec::new(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::Restart,
        });
        self.add_port();
    }

    /// The same, from this volume.
    pub(super) fn create_from(&mut self, root: Label) {
        self.create();
        self.spec_mut().disks.clear();
        self.attach_as(root, 0, DiskBus::Virtio);
    }

    pub(super) fn delete(&mut self) {
        self.spec = None;
    }

    pub(super) fn delete_everything(&mut self) {
        self.spec = None;
        self.wire = None;
        self.volumes.clear();
        self.snapshots.clear();
    }

    pub(super) fn set_power(&mut self, power: DesiredPower) {
        self.spec_mut().power = power;
    }

    pub(super) fn reboot(&mut self, kind: RebootKind) {
        let nonce = self.id();
        self.spec_mut().reboot = Some(Reboot { nonce, kind });
        self.spec_mut().power = DesiredPower::Running;
    }

    /// What starts a guest that is off by itself.
    pub(super) fn start_anew(&mut self) {
        self.anew = true;
    }

    pub(super) fn stay_off_after_crash(&mut self) {
        self.spec_mut().on_crash = berth_common::document::OnCrash::Stop;
    }

    pub(super) fn rescue(&mut self) {
        let nonce = self.id();
        self.spec_mut().rescue = Some(Rescue {
            nonce,
            image: image("b"),
            size_gb: None,
        });
    }

    pub(super) fn unrescue(&mut self) {
        self.spec_mut().rescue = None;
    }

    pub(super) fn rebuild(&mut self) {
        let nonce = self.id();
        let disk = &mut self.spec_mut().disks[0];
        let number = disk.incarnation.map_or(0, |it| it.number) + 1;
        disk.incarnation = Some(Incarnation { number, nonce });
        disk.source = DiskSource::Image(image("c"));
    }

    pub(super) fn resize(&mut self, vcpus: u64, memory_mb: u64) {
        let flavor = &mut self.spec_mut().flavor;
        flavor.vcpus = Vcpus::clamped(vcpus);
        flavor.memory_mb = MemoryMb::clamped(memory_mb);
    }

    pub(super) fn grow_own_disk(&mut self) {
        let spec = self.spec_mut();
        let size_gb = DiskGb::clamped(spec.disks[0].size_gb.get() + 1);
        spec.disks[0].size_gb = size_gb;
        spec.flavor.disk_gb = size_gb;
    }

    pub(super) fn rename(&mut self) {
        self.words += 1;
        let name = format!("web-{}", self.words);
        self.spec_mut().name = name.parse().unwrap();
    }

    /// Tells the guest something else, by the metadata service.
    pub(super) fn tell_guest(&mut self) {
        self.words += 1;
        let value = self.words.to_string().parse().unwrap();
        self.spec_mut().guest_data = Some(ConfigDrive {
            metadata: BTreeMap::from([("word".parse().unwrap(), value)]),
            ..ConfigDrive::default()
        });
    }

    pub(super) fn give_config_drive(&mut self) {
        self.spec_mut().config_drive = Some(ConfigDrive::default());
    }

    pub(super) fn add_port(&mut self) {
        let port: PortId = self.id();
        let port = InstancePort {
            id: port,
            network_id: self.network,
            mac_address: MacAddress::derived(port.as_uuid().as_bytes()),
            fixed_ips: Vec::new(),
            mtu: 1500,
            link: PortLink::Up,
        };
        self.spec_mut().ports.push(port);
    }

    pub(super) fn remove_port(&mut self) {
        self.spec_mut().ports.pop();
    }

    pub(super) fn remove_first_port(&mut self) {
        self.spec_mut().ports.remove(0);
    }

    pub(super) fn remove_ports(&mut self) {
        self.spec_mut().ports.clear();
    }

    pub(super) fn turn_cable(&mut self) {
        let port = self.spec_mut().ports.last_mut().unwrap();
        port.link = match port.link {
            PortLink::Up => PortLink::Down,
            PortLink::Down => PortLink::Up,
        };
    }

    /// The same port with another Ethernet address.
    pub(super) fn readdress_port(&mut self) {
        self.words += 1;
        let word = self.words.to_be_bytes();
        let port = self.spec_mut().ports.last_mut().unwrap();
        let id = [&port.id.as_uuid().as_bytes()[..], &word].concat();
        port.mac_address = MacAddress::derived(&id);
    }

    pub(super) fn make_volume(&mut self, label: Label) {
        self.make_from(label, None, 1);
    }

    pub(super) fn make_from_image(&mut self, label: Label) {
        let source = VolumeSource::Image(image("d"));
        self.make_from(label, Some(source), 1);
    }

    pub(super) fn copy_volume(&mut self, from: Label, label: Label) {
        let (source, gb) = (self.volume_ref(from), self.size(from));
        self.make_from(label, Some(VolumeSource::Volume(source)), gb + 1);
    }

    pub(super) fn copy_snapshot(&mut self, from: Label, label: Label) {
        let snapshot = &self.snapshots[from];
        let gb = snapshot.gb;
        let source = SnapshotRef {
            id: snapshot.id,
            pool: snapshot.of.pool.clone(),
        };
        self.make_from(label, Some(VolumeSource::Snapshot(source)), gb);
    }

    fn make_from(&mut self, label: Label, source: Option<VolumeSource>, gb: u64) {
        let volume = Volume {
            id: self.id(),
            gb,
            source,
            content: None,
        };
        self.volumes.insert(label, volume);
    }

    pub(super) fn grow(&mut self, label: Label) {
        self.volumes.get_mut(label).unwrap().gb += 1;
    }

    pub(super) fn delete_volume(&mut self, label: Label) {
        self.volumes.remove(label);
    }

    pub(super) fn take_snapshot(&mut self, of: Label, label: Label) {
        let snapshot = Snapshot {
            id: self.id(),
            of: self.volume_ref(of),
            gb: self.size(of),
            content: None,
        };
        self.snapshots.insert(label, snapshot);
    }

    pub(super) fn delete_snapshot(&mut self, label: Label) {
        self.snapshots.remove(label);
    }

    fn volume_ref(&self, label: Label) -> VolumeRef {
        VolumeRef {
            id: self.volumes[label].id,
            format: self.store.format(),
            pool: self.store.pool(),
        }
    }

    /// Attaches a volume in the next free place.
    pub(super) fn attach(&mut self, label: Label, bus: DiskBus) {
        let volumes = &self.spec_mut().volumes;
        let is_free = |position: &u8| volumes.iter().all(|it| it.position != *position);
        let position = (1..=u8::MAX).find(is_free).unwrap();
        self.attach_as(label, position, bus);
    }

    fn attach_as(&mut self, label: Label, position: u8, disk_bus: DiskBus) {
        let VolumeRef { id, format, pool } = self.volume_ref(label);
        self.spec_mut().volumes.push(InstanceVolume {
            id,
            position,
            format,
            pool,
            access: VolumeAccess::ReadWrite,
            disk_bus,
            limits: VolumeLimits::default(),
        });
        self.spec_mut().volumes.sort_by_key(|it| it.position);
    }

    fn attachment(&mut self, label: Label) -> &mut InstanceVolume {
        let id = self.volumes[label].id;
        let mut volumes = self.spec_mut().volumes.iter_mut();
        volumes.find(|it| it.id == id).unwrap()
    }

    pub(super) fn attach_read_only(&mut self, label: Label) {
        self.attach(label, DiskBus::Virtio);
        self.attachment(label).access = VolumeAccess::ReadOnly;
    }

    pub(super) fn attach_limited(&mut self, label: Label) {
        self.attach(label, DiskBus::Virtio);
        self.attachment(label).limits = VolumeLimits {
            total_iops: Some(100),
            total_bytes_per_second: Some(1 << 20),
        };
    }

    pub(super) fn detach(&mut self, label: Label) {
        let id = self.volumes[label].id;
        self.spec_mut().volumes.retain(|it| it.id != id);
    }

    /// The other volume in the place of the one.
    pub(super) fn replace(&mut self, one: Label, other: Label) {
        let attachment = self.attachment(one).clone();
        let id = self.volumes[other].id;
        *self.attachment(one) = InstanceVolume { id, ..attachment };
    }

    pub(super) fn change_bus(&mut self, label: Label) {
        let attachment = self.attachment(label);
        attachment.disk_bus = match attachment.disk_bus {
            DiskBus::Virtio => DiskBus::Scsi,
            DiskBus::Scsi => DiskBus::Virtio,
        };
    }

    // ---- Documents ----

    /// Everything that was told, newest documents only.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Document> {
        self.told.values()
    }

    /// The same, to be sent.
    pub(super) fn told(&self) -> Vec<Document> {
        self.newest().cloned().collect()
    }

    /// What was told before.
    pub(super) fn outdated(&self) -> &[Document] {
        &self.outdated
    }

    /// Wishes something else; answers the documents that change by it.
    pub(super) fn wish(&mut self, change: impl FnOnce(&mut Self)) -> Vec<Document> {
        change(self);
        let wanted = self.documents();
        let keys: BTreeSet<DocumentKey> = wanted.iter().map(Document::key).collect();
        let ended = self.told.iter();
        let ended = ended.filter(|(key, last)| !keys.contains(key) && !last.is_tombstone());
        let mut changed: Vec<Document> = ended.map(|(_, last)| last.tombstone()).collect();
        for document in wanted {
            let key = document.key();
            let last = self.told.get(&key);
            let generation = last.map_or(Generation(0), Document::generation);
            let is_anew = self.anew && key.kind == Kind::Instance;
            if is_anew || last != Some(&document.clone().with_generation(generation)) {
                changed.push(document.with_generation(generation.next()));
            }
        }
        self.anew = false;
        self.tell(&changed);
        changed
    }

    /// The same documents, as if somebody wished the same again.
    pub(super) fn wish_again(&mut self, documents: &[Document]) -> Vec<Document> {
        let newest = documents.iter().map(|it| self.told[&it.key()].clone());
        let again: BTreeMap<DocumentKey, Document> = newest
            .map(|it| (it.key(), it.clone().with_generation(it.generation().next())))
            .collect();
        let again: Vec<Document> = again.into_values().collect();
        self.tell(&again);
        again
    }

    fn tell(&mut self, documents: &[Document]) {
        for document in documents {
            let before = self.told.insert(document.key(), document.clone());
            self.outdated.extend(before);
        }
    }

    fn documents(&self) -> Vec<Document> {
        let (host_id, generation) = (self.host, Generation(0));
        let network = self.network_spec().map(|spec| {
            Document::Network(Desired {
                id: self.network,
                generation,
                host_id,
                spec: Some(spec),
            })
        });
        let volumes = self.volumes.values().map(|volume| {
            Document::Volume(Desired {
                id: volume.id,
                generation,
                host_id,
                spec: Some(VolumeSpec {
                    name: "data".parse().unwrap(),
                    project: "default".parse().unwrap(),
                    size_gb: DiskGb::clamped(volume.gb),
                    format: self.store.format(),
                    pool: self.store.pool(),
                    source: volume.source.clone(),
                }),
            })
        });
        let snapshots = self.snapshots.values().map(|snapshot| {
            Document::Snapshot(Desired {
                id: snapshot.id,
                generation,
                host_id,
                spec: Some(SnapshotSpec {
                    name: "monday".parse().unwrap(),
                    project: "default".parse().unwrap(),
                    volume: snapshot.of.clone(),
                    size_gb: DiskGb::clamped(snapshot.gb),
                }),
            })
        });
        let instance = self.spec.clone().map(|spec| {
            Document::Instance(Desired {
                id: self.instance,
                generation,
                host_id,
                spec: Some(spec),
            })
        });
        let all = network.into_iter().chain(volumes).chain(snapshots);
        all.chain(instance).collect()
    }

    fn network_spec(&self) -> Option<NetworkSpec> {
        let wire = self.wire?;
        let ports = self.spec.iter().flat_map(|spec| &spec.ports);
        let mut ports: Vec<NetworkPort> = ports
            .map(|port| NetworkPort {
                id: port.id,
                instance_id: self.instance,
                mac_address: port.mac_address,
                hostname: "web-1".parse().unwrap(),
                fixed_ips: Vec::new(),
                security: wire.secured.then(PortSecurity::default),
                qos: Default::default(),
                mirrors: Vec::new(),
            })
            .collect();
        if let Some(port) = ports.first_mut().filter(|_| wire.limited) {
            port.qos.egress = Some(BandwidthLimit {
                max_kbps: 1000,
                max_burst_kbps: 0,
            });
            port.mirrors = vec![PortMirror {
                direction: MirrorDirection::Both,
                to: MirrorTarget::Interface("eth0".parse().unwrap()),
            }];
        }
        Some(NetworkSpec {
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
            ports,
            physical_network: None,
            segmentation_id: None,
            remote_ports: Vec::new(),
            security_groups: Vec::new(),
            group_members: BTreeMap::new(),
        })
    }
}
