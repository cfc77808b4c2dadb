//! Plans for instances: each in a table, and all of them together against a host in memory.
//!
//! The law: from any state a host can be in, following plans leads to what the document says in a bounded number
//! of passes, whatever step the agent dies after, and whatever goes wrong once.

use berth_common::{
    document::{
        ConfigDrive, DesiredPower, Flavor, ImageFormat, InstanceDisk, InstancePort, InstanceVolume,
        OnCrash, Reboot, RebootKind, VolumeAccess, VolumeFormat, VolumeLimits,
    },
    ids::{HostId, Nonce, PortId},
    units::{DiskGb, MemoryMb, Vcpus},
};
use futures::executor::block_on;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::decide::domain::{DiskFile, LeftOff, OffReason};
use crate::{
    act::{
        ActError, Compute, Net, Progress, Storage,
        fake::{Disk, FakeHost, Guest, Lives},
    },
    decide::{
        domain::{DomainDisks, DomainNics, NicObserved},
        room::{HostSize, RoomToGrow},
    },
};

/// More passes than any plan needs, however often it is interrupted.
const PASSES: usize = 60;
/// How much time the engine lets pass between two passes.
const PASS: Duration = Duration::from_secs(1);
const STOP_TIMEOUT: u32 = 8;

fn id<T: TryFrom<Uuid>>(n: u128) -> T
where
    T::Error: std::fmt::Debug,
{
    T::try_from(Uuid::from_u128(
        0x0191_e7a0_7c1f_7b5e_9d2a_0000_0000_0000 + n,
    ))
    .unwrap()
}

fn instance() -> InstanceId {
    id(1)
}

fn network() -> NetworkId {
    id(2)
}

fn host() -> HostFacts {
    HostFacts {
        virt_type: VirtType::Qemu,
        arch: "x86_64".to_owned(),
        has_cpu_controller: false,
        size: HostSize {
            cpus: 16,
            memory_mb: MemoryMb::clamped(65_536),
        },
        room_to_grow: RoomToGrow::Given,
        paths: Paths::below(Path::new("/var/lib/berth")),
    }
}

fn image() -> ImageRef {
    ImageRef {
        url: "http://images.example/guest.qcow2".parse().unwrap(),
        sha256: "ab".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

fn spec() -> InstanceSpec {
    InstanceSpec {
        name: "web-1".parse().unwrap(),
        project: "default".parse().unwrap(),
        power: DesiredPower::Running,
        reboot: None,
        stop_timeout_seconds: STOP_TIMEOUT,
        flavor: Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(128),
            disk_gb: DiskGb::clamped(1),
        },
        disks: vec![InstanceDisk {
            index: 0,
            size_gb: DiskGb::clamped(1),
            format: DiskFormat::Qcow2,
            source: DiskSource::Image(image()),
            incarnation: None,
        }],
        ports: vec![InstancePort {
            id: id::<PortId>(3),
            network_id: network(),
            mac_address: "52:54:00:00:00:01".parse().unwrap(),
            fixed_ips: Vec::new(),
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

fn desired(generation: u64, spec: Option<InstanceSpec>) -> Desired<InstanceId, InstanceSpec> {
    Desired {
        id: instance(),
        generation: Generation(generation),
        host_id: id::<HostId>(9),
        spec,
    }
}

fn running(generation: u64) -> Desired<InstanceId, InstanceSpec> {
    desired(generation, Some(spec()))
}

fn stopped(generation: u64) -> Desired<InstanceId, InstanceSpec> {
    desired(
        generation,
        Some(InstanceSpec {
            power: DesiredPower::Stopped,
            ..spec()
        }),
    )
}

fn with_power(generation: u64, power: DesiredPower) -> Desired<InstanceId, InstanceSpec> {
    desired(generation, Some(InstanceSpec { power, ..spec() }))
}

fn paused(generation: u64) -> Desired<InstanceId, InstanceSpec> {
    with_power(generation, DesiredPower::Paused)
}

fn suspended(generation: u64) -> Desired<InstanceId, InstanceSpec> {
    with_power(generation, DesiredPower::Suspended)
}

fn rebooting(generation: u64, kind: RebootKind, nonce: u128) -> Desired<InstanceId, InstanceSpec> {
    let reboot = Some(Reboot {
        nonce: id::<Nonce>(1000 + nonce),
        kind,
    });
    desired(generation, Some(InstanceSpec { reboot, ..spec() }))
}

/// A host, and what an agent keeps in memory about it.
struct Rig {
    host: FakeHost,
    now: Duration,
    asked: Option<(Duration, Duration)>,
    asked_before: Option<Duration>,
}

impl Rig {
    /// A host whose network is ready.
    fn new() -> Self {
        let rig = Self {
            host: FakeHost::new(),
            now: Duration::ZERO,
            asked: None,
            asked_before: None,
        };
        rig.build_network();
        rig
    }

    fn build_network(&self) {
        self.host.have_bridge(network());
    }

    /// A host on which documents were carried out already.
    fn after(documents: &[Desired<InstanceId, InstanceSpec>]) -> Self {
        let mut rig = Self::new();
        for document in documents {
            rig.converge(document);
        }
        rig
    }

    fn observe(&self) -> Result<Observed, ActError> {
        block_on(async {
            let bridge = Net::observe(&self.host, network()).await?.bridge;
            Ok(Observed {
                domain: self.host.observe_one(instance()).await?,
                files: Storage::observe(&self.host, instance()).await?,
                images: self.host.images(),
                networks_ready: bridge.is_some().then(network).into_iter().collect(),
                asked: self.asked.map(|(first, last)| Asked {
                    first: self.now - first,
                    last: self.now - last,
                }),
                asked_before: self.asked_before.map(|at| self.now - at),
                ..Observed::default()
            })
        })
    }

    fn apply(&mut self, step: &Step) -> Result<(), ActError> {
        match step {
            Step::Storage(step) => {
                block_on(Storage::apply(&self.host, step, &Progress::new(None)))?
            }
            Step::Domain(step) => block_on(Compute::apply(&self.host, step))?,
        }
        match step {
            Step::Domain(DomainStep::Shutdown(_)) => {
                let first = self.asked.map_or(self.now, |(first, _)| first);
                self.asked = Some((first, self.now));
                self.asked_before = Some(self.now);
            }
            Step::Domain(
                DomainStep::Start(_)
                | DomainStep::StartPaused(_)
                | DomainStep::Restore(_)
                | DomainStep::Save(_)
                | DomainStep::Destroy(_),
            ) => self.forget(),
            Step::Domain(DomainStep::Resume(_)) => {
                self.asked_before = self.asked_before.map(|_| self.now);
            }
            Step::Domain(_) | Step::Storage(_) => {}
        }
        Ok(())
    }

    /// What an agent keeps in memory is lost.
    fn forget(&mut self) {
        (self.asked, self.asked_before) = (None, None);
    }

    /// `kill -9`, and the next agent.
    fn restart_agent(&mut self) {
        self.host.restart_agent();
        self.forget();
    }

    /// Observe, plan, apply: once, as the engine does it.
    fn pass(&mut self, desired: &Desired<InstanceId, InstanceSpec>) -> Result<Plan, ActError> {
        self.now += PASS;
        let observed = self.observe()?;
        if observed
            .domain
            .as_ref()
            .is_none_or(|domain| domain.power_state != PowerState::Running)
        {
            self.asked = None;
        }
        let plan = plan(desired, &observed, &host());
        if matches!(plan.then, Then::Watch(_)) {
            self.asked_before.get_or_insert(self.now);
        }
        for step in &plan.steps {
            self.apply(step)?;
        }
        Ok(plan)
    }

    /// Passes until there is nothing to do and nothing to wait for. An agent that dies is started again.
    fn converge(&mut self, desired: &Desired<InstanceId, InstanceSpec>) -> Then {
        let mut last = None;
        for _ in 0..PASSES {
            let result = self.pass(desired);
            if self.host.is_crashed() {
                self.restart_agent();
            }
            match result {
                Ok(plan)
                    if plan.steps.is_empty()
                        && !matches!(plan.then, Then::Wait(_) | Then::Watch(_)) =>
                {
                    return plan.then;
                }
                result => last = Some(result),
            }
        }
        panic!("not converged after {PASSES} passes; the last one was {last:#?}");
    }

    fn lives(&self) -> Lives {
        self.host.lives(instance())
    }

    fn power_state(&self) -> PowerState {
        self.host
            .domain(instance().as_uuid())
            .map_or(PowerState::Nostate, |domain| domain.power_state)
    }

    fn metadata(&self) -> DomainMetadata {
        self.host
            .domain(instance().as_uuid())
            .unwrap()
            .metadata
            .unwrap()
    }
}

/// Steps without their arguments: a plan at a glance. What the metadata service tells has tests of its own.
fn outline(plan: &Plan) -> Vec<String> {
    let word = |name: DiskName| match name {
        DiskName::Own { index, incarnation } => {
            let number = incarnation.map_or(String::new(), |it| format!("-{}", it.number));
            format!("disk{index}{number}")
        }
        DiskName::Rescue(_) => "rescue".to_owned(),
    };
    let step = |step: &Step| match step {
        Step::Storage(StorageStep::FetchImage(_)) => "fetch".to_owned(),
        Step::Storage(StorageStep::CreateDirectory(_)) => "directory".to_owned(),
        Step::Storage(StorageStep::CreateDisk(disk)) => word(disk.name),
        Step::Storage(StorageStep::CreateConfigDrive(_)) => "config-drive".to_owned(),
        Step::Storage(StorageStep::WriteMetadata(_)) => "metadata".to_owned(),
        Step::Storage(StorageStep::GrowDisk(disk)) => word(disk.name).replace("disk", "grow"),
        Step::Storage(StorageStep::RemoveOldFile(old)) => {
            let name = DiskName::parse(&old.name);
            format!("remove {}", name.map_or("config".to_owned(), word))
        }
        Step::Storage(StorageStep::RemoveInstance(_)) => "remove".to_owned(),
        Step::Domain(DomainStep::Define(config)) => {
            format!("define@{}", config.metadata.generation)
        }
        Step::Domain(DomainStep::Start(_)) => "start".to_owned(),
        Step::Domain(DomainStep::StartPaused(_)) => "start-paused".to_owned(),
        Step::Domain(DomainStep::Restore(_)) => "restore".to_owned(),
        Step::Domain(DomainStep::DiscardSaved(_)) => "discard".to_owned(),
        Step::Domain(DomainStep::Pause(_)) => "pause".to_owned(),
        Step::Domain(DomainStep::Resume(_)) => "resume".to_owned(),
        Step::Domain(DomainStep::Save(_)) => "save".to_owned(),
        Step::Domain(DomainStep::Shutdown(_)) => "shutdown".to_owned(),
        Step::Domain(DomainStep::Destroy(_)) => "destroy".to_owned(),
        Step::Domain(DomainStep::AbandonStart(_)) => "abandon-start".to_owned(),
        Step::Domain(DomainStep::Undefine(_)) => "undefine".to_owned(),
        Step::Domain(DomainStep::AttachScsiController(_)) => "attach controller".to_owned(),
        Step::Domain(DomainStep::Attach { disk, .. }) => format!("attach {}", disk.target),
        Step::Domain(DomainStep::Detach { disk, .. }) => format!("detach {}", disk.target),
        Step::Domain(DomainStep::AttachNic { nic, .. }) => format!("attach NIC {}", nic.tap),
        Step::Domain(DomainStep::DetachNic { nic, .. }) => format!("detach NIC {}", nic.tap),
        Step::Domain(DomainStep::SetLink { nic, link, .. }) => format!("link {link:?} {}", nic.tap),
        Step::Domain(DomainStep::GrowDisk { disk, .. }) => format!("grow {}", disk.target),
        Step::Domain(DomainStep::SetVcpus { vcpus, .. }) => format!("vcpus {}", vcpus.get()),
        Step::Domain(DomainStep::PlugMemory { before, with, .. }) => {
            format!("memory {}-{}", before.get(), with.get())
        }
        Step::Storage(
            StorageStep::CreateVolume(_)
            | StorageStep::SettleVolume(_)
            | StorageStep::ActivateVolume(_)
            | StorageStep::MarkVolume(_)
            | StorageStep::GrowVolume(_)
            | StorageStep::RemoveVolume(_),
        ) => "a step for volumes".to_owned(),
        Step::Domain(DomainStep::Backup(_) | DomainStep::AbortBackup { .. })
        | Step::Storage(
            StorageStep::CreateSnapshot(_)
            | StorageStep::PrepareSnapshot(_)
            | StorageStep::NameSnapshot(_)
            | StorageStep::MarkSnapshot(_)
            | StorageStep::DiscardPartialSnapshot(_)
            | StorageStep::RemoveSnapshot(_),
        ) => "a step for snapshots".to_owned(),
    };
    let is_metadata = |step: &&Step| matches!(step, Step::Storage(StorageStep::WriteMetadata(_)));
    let steps = plan.steps.iter().filter(|step| !is_metadata(step));
    steps.map(step).collect()
}

/// What a host in a given state is observed as.
#[derive(Clone)]
struct Given {
    observed: Observed,
}

/// An instance that was carried out at a generation, in a power state.
fn given(generation: u64, state: PowerState, off: Option<OffReason>) -> Given {
    let mut config = domain_config(instance(), &spec(), &host());
    config.metadata.generation = Generation(generation);
    let nics: Vec<NicObserved> = config
        .nics
        .iter()
        .map(|nic| NicObserved {
            alias: Some(names::nic_alias(nic.port)),
            mac_address: nic.mac_address,
            bridge: nic.bridge.clone(),
            tap: nic.tap.clone(),
            mtu: Some(nic.mtu),
            link: nic.link,
        })
        .collect();
    let is_off = matches!(state, PowerState::Shutdown | PowerState::Nostate);
    let domain = DomainObserved {
        uuid: instance().as_uuid(),
        name: names::domain(instance()),
        power_state: state,
        off_reason: off,
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        reason: String::new(),
        persistent: true,
        vcpus: config.vcpus,
        memory_mb: config.memory_mb,
        running: None,
        metadata: Some(config.metadata),
        nics: DomainNics {
            live: if is_off && off != Some(OffReason::Saved) {
                Vec::new()
            } else {
                nics.clone()
            },
            kept: nics,
        },
        disks: DomainDisks::default(),
    };
    Given {
        observed: Observed {
            domain: Some(domain),
            files: InstanceFiles {
                directory: true,
                disks: [DiskName::first(0)].into(),
                sizes: [(DiskName::first(0), ByteCount::from_gb(DiskGb::clamped(1)))].into(),
                config_drives: BTreeSet::new(),
                metadata: Some(metadata::guest_text(instance(), &spec(), &Subnets::new())),
            },
            images: [CachedName::of(&image())].into(),
            networks_ready: [network()].into(),
            ..Observed::default()
        },
    }
}

fn nothing() -> Given {
    Given {
        observed: Observed {
            networks_ready: [network()].into(),
            ..Observed::default()
        },
    }
}

impl Given {
    fn but(mut self, change: impl FnOnce(&mut Observed)) -> Self {
        change(&mut self.observed);
        self
    }

    fn domain(self, change: impl FnOnce(&mut DomainObserved)) -> Self {
        self.but(|observed| change(observed.domain.as_mut().unwrap()))
    }

    /// It is noted that its guest powered itself off.
    fn noted(self) -> Self {
        self.domain(|domain| {
            domain.metadata.as_mut().unwrap().left_off = Some(LeftOff::Guest);
        })
    }

    fn asked(self, first: u64, last: u64) -> Self {
        let asked = Asked {
            first: Duration::from_secs(first),
            last: Duration::from_secs(last),
        };
        self.but(|observed| observed.asked = Some(asked))
    }
}

#[track_caller]
fn check(given: Given, desired: &Desired<InstanceId, InstanceSpec>, steps: &[&str], then: &Then) {
    let plan = plan(desired, &given.observed, &host());
    assert_eq!(outline(&plan), steps);
    assert_eq!(&plan.then, then);
}

#[track_caller]
fn check_refused(
    given: Given,
    desired: &Desired<InstanceId, InstanceSpec>,
    code: FaultCode,
    words: &str,
) {
    let plan = plan(desired, &given.observed, &host());
    assert_eq!(plan.steps, []);
    let Then::Refused(fault) = plan.then else {
        panic!("not refused: {:?}", plan.then)
    };
    assert_eq!(fault.code, code);
    assert!(fault.message.contains(words), "{}", fault.message);
}

use OffReason::{Destroyed, Failed, Moved, Saved, Unknown};
use PowerState::{Crashed, Nostate, Paused, Running, Shutdown, Suspended};
use Then::{Converged, Gone};

const ASKED: Then = Then::Wait(Wait::GuestPowersOff);

#[test]
fn from_nothing_everything_is_made_in_order() {
    check(
        nothing(),
        &running(1),
        &["fetch", "disk0", "define@0", "start", "define@1"],
        &Converged,
    );
    check(
        nothing(),
        &stopped(1),
        &["fetch", "disk0", "define@1"],
        &Converged,
    );
    let cached = nothing().but(|observed| observed.images = [CachedName::of(&image())].into());
    check(
        cached,
        &running(1),
        &["disk0", "define@0", "start", "define@1"],
        &Converged,
    );
    check(nothing(), &desired(1, None), &[], &Gone);
}

#[test]
fn a_config_drive_is_made_before_the_first_start_and_anew_when_it_is_lost() {
    let wanted = |generation| {
        desired(
            generation,
            Some(InstanceSpec {
                config_drive: Some(ConfigDrive::default()),
                ..spec()
            }),
        )
    };
    check(
        nothing(),
        &wanted(1),
        &[
            "fetch",
            "disk0",
            "config-drive",
            "define@0",
            "start",
            "define@1",
        ],
        &Converged,
    );
    let there = |given: Given| given.but(|observed| observed.files.config_drives = [None].into());
    let off = || given(1, Shutdown, Some(Destroyed));
    // What is on it is said by the documents of its networks too.
    let waits = nothing().but(|observed| {
        observed.networks_ready.clear();
        observed.networks_unknown.insert(network());
    });
    check(
        waits,
        &wanted(1),
        &["fetch", "disk0"],
        &super::Then::Wait(Wait::Network(network())),
    );
    let start = ["config-drive", "define@0", "start", "define@2"];
    check(off(), &wanted(2), &start, &Converged);
    check(there(off()), &wanted(2), &start[1..], &Converged);
    let config = domain_config(instance(), wanted(1).spec.as_ref().unwrap(), &host());
    assert_eq!(
        config.config_drive,
        Some(host().paths.config_drive(instance(), None))
    );
    assert_ne!(
        config.digest(),
        domain_config(instance(), &spec(), &host()).digest()
    );
}

#[test]
fn a_disk_grows_while_its_guest_is_off_and_awake() {
    let larger = |generation, power| {
        let mut larger = spec();
        larger.power = power;
        larger.disks[0].size_gb = DiskGb::clamped(2);
        desired(generation, Some(larger))
    };
    let off = |reason| given(1, Shutdown, Some(reason));
    let stopped = || larger(2, DesiredPower::Stopped);
    check(
        off(Destroyed),
        &stopped(),
        &["grow0", "define@2"],
        &Converged,
    );
    check(
        off(OffReason::Guest),
        &larger(2, DesiredPower::Running),
        &["grow0", "define@0", "start", "define@2"],
        &Converged,
    );
    check(off(Saved), &stopped(), &["define@0", "restore"], &Converged);
    check(
        given(1, Running, None),
        &larger(2, DesiredPower::Running),
        &["define@2"],
        &Converged,
    );
    // It never shrinks, and one whose size nobody can read is left as it is.
    let large = off(Destroyed).but(|observed| {
        observed.files.sizes =
            [(DiskName::first(0), ByteCount::from_gb(DiskGb::clamped(3)))].into();
    });
    check(large, &stopped(), &["define@2"], &Converged);
    let unread = off(Destroyed).but(|observed| observed.files.sizes.clear());
    check(unread, &stopped(), &["define@2"], &Converged);
}

#[test]
fn one_image_for_two_disks_is_fetched_once() {
    let mut two = spec();
    two.disks.push(InstanceDisk {
        index: 1,
        ..two.disks[0].clone()
    });
    check(
        nothing(),
        &desired(1, Some(two)),
        &["fetch", "disk0", "disk1", "define@0", "start", "define@1"],
        &Converged,
    );
}

#[test]
fn an_image_that_was_cleaned_up_is_fetched_before_a_start_and_only_then() {
    let lost = |given: Given| given.but(|observed| observed.images.clear());
    let off = || lost(given(1, Shutdown, Some(Destroyed)));
    check(
        off(),
        &running(2),
        &["fetch", "define@0", "start", "define@2"],
        &Converged,
    );
    check(off(), &stopped(1), &[], &Converged);
    check(lost(given(1, Running, None)), &running(1), &[], &Converged);
    check(
        lost(given(1, Running, None)),
        &rebooting(2, RebootKind::Hard, 0),
        &["fetch", "destroy", "define@0", "start", "define@2"],
        &Converged,
    );
    let waiting = off().but(|observed| observed.networks_ready.clear());
    check(
        waiting,
        &running(2),
        &["fetch"],
        &Then::Wait(Wait::Network(network())),
    );
}

#[test]
fn disks_are_made_while_the_network_is_not_ready_and_a_start_waits_for_it() {
    let wait = Then::Wait(Wait::Network(network()));
    let unready = |given: Given| given.but(|observed| observed.networks_ready.clear());
    check(unready(nothing()), &running(1), &["fetch", "disk0"], &wait);
    check(
        unready(given(1, Shutdown, Some(Destroyed))),
        &running(2),
        &[],
        &wait,
    );
    check(
        unready(given(1, Running, None)),
        &running(1),
        &[],
        &Converged,
    );
    check(
        unready(nothing()),
        &stopped(1),
        &["fetch", "disk0", "define@1"],
        &Converged,
    );
}

#[test]
fn what_is_as_it_shall_be_is_left_alone() {
    check(given(1, Running, None), &running(1), &[], &Converged);
    check(given(1, Suspended, None), &running(1), &[], &Converged);
    check(
        given(1, Shutdown, Some(Destroyed)),
        &stopped(1),
        &[],
        &Converged,
    );
    check(
        given(1, Running, None),
        &running(2),
        &["define@2"],
        &Converged,
    );
    check(
        given(1, Shutdown, Some(Destroyed)),
        &stopped(2),
        &["define@2"],
        &Converged,
    );
}

#[test]
fn a_guest_that_crashed_is_started_again_unless_its_document_says_otherwise() {
    let restarts = |generation, power| with_power(generation, power);
    let stays = |generation, power| {
        let mut wanted = with_power(generation, power);
        wanted.spec.as_mut().unwrap().on_crash = OnCrash::Stop;
        wanted
    };
    let crashed = || given(1, Shutdown, Some(OffReason::Crashed));
    let start = ["define@0", "start", "define@1"];
    let paused = ["define@0", "start-paused", "define@1"];
    check(
        crashed(),
        &restarts(1, DesiredPower::Running),
        &start,
        &Converged,
    );
    check(
        crashed(),
        &restarts(1, DesiredPower::Paused),
        &paused,
        &Converged,
    );
    for power in [DesiredPower::Running, DesiredPower::Paused] {
        let plan = plan(&stays(1, power), &crashed().observed, &host());
        let starts = |step: &Step| matches!(step, Step::Domain(step) if step.starts_qemu());
        assert!(!plan.steps.iter().any(starts), "{plan:?}");
        // A new generation is a wish to start it, and one that never ran is not one that crashed.
        for (given, generation) in [(crashed(), 2), (given(0, Shutdown, Some(Failed)), 1)] {
            let plan = super::plan(&stays(generation, power), &given.observed, &host());
            assert!(plan.steps.iter().any(starts), "{plan:?}");
        }
    }
    // libvirt keeps it for whoever wants to look at it.
    let kept = || given(1, Crashed, None);
    let again = ["destroy", "define@0", "start", "define@1"];
    check(
        kept(),
        &restarts(1, DesiredPower::Running),
        &again,
        &Converged,
    );
    let plan = plan(&stays(1, DesiredPower::Running), &kept().observed, &host());
    assert!(
        outline(&plan).iter().all(|step| step == "define@1"),
        "{plan:?}"
    );
}

#[test]
fn what_the_metadata_service_tells_is_written_before_the_start_and_when_it_changes() {
    let told = |given: Given, desired: &Desired<InstanceId, InstanceSpec>| {
        let steps = plan(desired, &given.observed, &host()).steps;
        let at = steps
            .iter()
            .position(|step| matches!(step, Step::Storage(StorageStep::WriteMetadata(_))));
        let starts = |step: &Step| matches!(step, Step::Domain(step) if step.starts_qemu());
        (at, steps.iter().position(starts))
    };
    let (written, started) = told(nothing(), &running(1));
    assert!(
        written.is_some() && written < started,
        "{written:?} {started:?}"
    );
    assert_eq!(told(given(1, Running, None), &running(1)), (None, None));
    let mut described = running(2);
    described.spec.as_mut().unwrap().guest_data = Some(ConfigDrive {
        metadata: [("role".parse().unwrap(), "front".parse().unwrap())].into(),
        ..ConfigDrive::default()
    });
    assert_eq!(told(given(2, Running, None), &described), (Some(0), None));
    let lost = given(1, Running, None).but(|observed| observed.files.metadata = None);
    assert_eq!(told(lost, &running(1)), (Some(0), None));
    // Without a port, nobody can ask.
    let mut alone = running(1);
    alone.spec.as_mut().unwrap().ports.clear();
    assert_eq!(told(nothing(), &alone).0, None);
    // It goes with the instance, even if it is all that is left.
    let left = nothing().but(|observed| {
        observed.files.metadata = Some(String::new());
    });
    let removed = plan(&desired(2, None), &left.observed, &host());
    assert_eq!(outline(&removed), ["remove"]);
}

#[test]
fn another_name_or_crash_policy_is_for_the_next_start_and_the_guest_runs_on() {
    let mut renamed = running(2);
    let spec = renamed.spec.as_mut().unwrap();
    spec.name = "web-2".parse().unwrap();
    spec.on_crash = OnCrash::Stop;
    let config = domain_config(instance(), spec, &host());
    assert_eq!(config.title, "web-2");
    check(given(1, Running, None), &renamed, &["define@2"], &Converged);
}

#[test]
fn a_definition_that_differs_or_is_lost_is_written_anew_and_the_guest_runs_on() {
    let changed =
        given(1, Running, None).domain(|domain| domain.metadata.as_mut().unwrap().digest.push('x'));
    check(changed, &running(1), &["define@1"], &Converged);
    check(
        given(1, Running, None).domain(|domain| domain.persistent = false),
        &running(1),
        &["define@1"],
        &Converged,
    );
}

#[test]
fn what_is_off_against_the_wish_is_started() {
    for reason in [Destroyed, Failed, Unknown] {
        let off = given(1, Shutdown, Some(reason));
        check(
            off,
            &running(1),
            &["define@0", "start", "define@1"],
            &Converged,
        );
    }
    check(
        given(1, Nostate, None),
        &running(1),
        &["define@0", "start", "define@1"],
        &Converged,
    );
}

#[test]
fn a_guest_that_powered_itself_off_stays_off_until_a_new_generation() {
    let off = || given(1, Shutdown, Some(OffReason::Guest));
    check(off(), &running(1), &["define@1"], &Converged);
    check(off().noted(), &running(1), &[], &Converged);
    check(
        given(1, Shutdown, Some(OffReason::Guest)),
        &running(2),
        &["define@0", "start", "define@2"],
        &Converged,
    );
    // Its start was not marked as done: it may have been this very generation's.
    check(
        given(0, Shutdown, Some(OffReason::Guest)),
        &running(1),
        &["define@0", "start", "define@1"],
        &Converged,
    );
}

#[test]
fn what_is_noted_of_a_guest_that_is_off_counts_only_where_libvirt_does_not_know() {
    use OffReason::{Crashed, Destroyed, Failed, Guest, Moved, Saved, Unknown};
    let said = [Guest, Saved, Destroyed, Crashed, Failed, Moved, Unknown];
    for (noted, reason) in [(LeftOff::Guest, Guest), (LeftOff::Crashed, Crashed)] {
        for said in said {
            let expected = if said == Unknown { reason } else { said };
            assert_eq!(LeftOff::recall(Some(said), Some(noted)), Some(expected));
            assert_eq!(LeftOff::recall(Some(said), None), Some(said));
        }
        // One that is on is off for no reason.
        assert_eq!(LeftOff::recall(None, Some(noted)), None);
        assert_eq!(noted.as_str().parse(), Ok(noted));
    }
    assert!("shutdown".parse::<LeftOff>().is_err());
}

#[test]
fn a_guest_that_is_off_by_itself_is_left_off_over_a_restart_of_libvirtd_and_of_the_host() {
    let stays = |generation| {
        let mut wanted = running(generation);
        wanted.spec.as_mut().unwrap().on_crash = OnCrash::Stop;
        wanted
    };
    for ends in [FakeHost::guest_powers_off, FakeHost::guest_crashes] {
        let mut rig = Rig::after(&[stays(1)]);
        ends(&rig.host, instance());
        assert_eq!(rig.converge(&stays(1)), Converged);
        rig.host.restart_libvirt();
        assert_eq!(rig.converge(&stays(1)), Converged);
        rig.host.power_cut();
        rig.restart_agent();
        rig.build_network();
        assert_eq!(rig.converge(&stays(1)), Converged);
        assert_eq!((rig.power_state(), rig.lives().starts), (Shutdown, 1));
        // One that was started since is no longer off by itself.
        rig.converge(&stays(2));
        assert_eq!(rig.metadata().left_off, None);
        rig.host.power_cut();
        rig.restart_agent();
        rig.build_network();
        rig.converge(&stays(2));
        assert_eq!((rig.power_state(), rig.lives().starts), (Running, 3));
    }
}

#[test]
fn a_start_that_is_broken_off_after_any_step_is_no_guest_that_is_off_by_itself() {
    for steps in 0..4 {
        let mut rig = Rig::after(&[running(1)]);
        rig.host.guest_powers_off(instance());
        rig.converge(&running(1));
        assert_eq!(rig.metadata().left_off, Some(LeftOff::Guest));
        rig.host.crash_after(steps);
        let _ = rig.pass(&running(2));
        rig.host.power_cut();
        rig.restart_agent();
        rig.build_network();
        rig.converge(&running(2));
        assert_eq!(rig.power_state(), Running, "after {steps} steps");
        assert_eq!(rig.metadata().left_off, None, "after {steps} steps");
    }
    // Nor is one that somebody else started.
    let mut rig = Rig::after(&[running(1)]);
    rig.host.guest_powers_off(instance());
    rig.converge(&running(1));
    rig.apply(&Step::Domain(DomainStep::Start(instance())))
        .unwrap();
    rig.converge(&running(1));
    assert_eq!(rig.metadata().left_off, None);
}

#[test]
fn a_guest_that_was_migrated_away_is_not_started() {
    check_refused(
        given(1, Shutdown, Some(Moved)),
        &running(2),
        FaultCode::Hypervisor,
        "migrated away",
    );
    check(
        given(1, Shutdown, Some(Moved)),
        &stopped(1),
        &[],
        &Converged,
    );
    check(
        given(1, Shutdown, Some(Moved)),
        &desired(2, None),
        &["undefine", "remove"],
        &Gone,
    );
}

#[test]
fn a_paused_guest_goes_on_and_a_crashed_one_starts_anew() {
    check(given(1, Paused, None), &running(1), &["resume"], &Converged);
    check(
        given(1, Paused, None),
        &running(2),
        &["define@2", "resume"],
        &Converged,
    );
    check(
        given(1, Crashed, None),
        &running(1),
        &["destroy", "define@0", "start", "define@1"],
        &Converged,
    );
    check(given(1, Crashed, None), &stopped(1), &["destroy"], &ASKED);
    check(given(1, Paused, None), &stopped(2), &["destroy"], &ASKED);
}

/// A guest that stands still because there is no room for what it writes, and was let go on so many seconds ago.
fn halted(tried: Option<(u64, u64)>) -> Given {
    let no_space = [("vda".to_owned(), DiskError::NoSpace)];
    let tried = tried.map(|(first, last)| Asked {
        first: Duration::from_secs(first),
        last: Duration::from_secs(last),
    });
    let stands = given(1, Paused, None).domain(|domain| domain.is_halted = true);
    stands.but(|observed| {
        observed.disk_errors = no_space.into();
        observed.let_go_on = tried;
    })
}

#[track_caller]
fn check_halted(
    given: Given,
    desired: &Desired<InstanceId, InstanceSpec>,
    steps: &[&str],
    code: FaultCode,
    words: &str,
) {
    let plan = plan(desired, &given.observed, &host());
    assert_eq!(outline(&plan), steps);
    let Then::Halted(fault) = plan.then else {
        panic!("not halted: {:?}", plan.then)
    };
    assert_eq!(fault.code, code);
    assert!(fault.message.contains(words), "{}", fault.message);
}

#[test]
fn a_guest_that_stands_still_for_its_disks_is_let_go_on_every_few_seconds_and_that_is_told() {
    let full = |given, desired: &Desired<InstanceId, InstanceSpec>, steps: &[&str]| {
        let words = "no room for what it writes to vda";
        check_halted(given, desired, steps, FaultCode::DiskFull, words);
    };
    full(halted(None), &running(1), &["resume"]);
    full(halted(Some((90, 4))), &running(1), &[]);
    full(halted(Some((90, 5))), &running(1), &["resume"]);
    full(halted(None), &running(2), &["define@2", "resume"]);
    // It has to run for a while before that counts.
    let on = |tried| {
        halted(Some(tried)).domain(|domain| {
            domain.is_halted = false;
            domain.power_state = Running;
        })
    };
    full(on((90, 0)), &running(1), &[]);
    full(on((90, 4)), &running(1), &[]);
    check(on((90, 5)), &running(1), &[], &Converged);
    // What somebody paused is another matter.
    let paused_by_somebody = on((90, 1)).domain(|domain| domain.power_state = Paused);
    check(paused_by_somebody, &running(1), &["resume"], &Converged);

    let with = |errors: &[(&str, DiskError)]| {
        let errors = errors
            .iter()
            .map(|(disk, error)| ((*disk).to_owned(), *error));
        halted(None).but(|observed| observed.disk_errors = errors.collect())
    };
    let other = |given, words| {
        check_halted(
            given,
            &running(1),
            &["resume"],
            FaultCode::Hypervisor,
            words,
        );
    };
    other(with(&[]), "one of its disks is full or fails");
    other(
        with(&[("vdb", DiskError::Other)]),
        "vdb cannot be read or written",
    );
    let both = with(&[("vdb", DiskError::Other), ("vdc", DiskError::NoSpace)]);
    full_of(
        both,
        "vdb cannot be read or written, there is no room for what it writes to vdc",
    );
    let with_path = halted(None).domain(|domain| {
        domain.disks.live = vec![DiskFile {
            path: "/var/lib/berth/volumes/v.qcow2".into(),
            target: "vda".to_owned(),
        }];
    });
    let mut wanted = running(1);
    // It boots from what it has.
    wanted.spec.as_mut().unwrap().disks.clear();
    let plan = power::Wish {
        config: &domain_config(instance(), wanted.spec.as_ref().unwrap(), &host()),
        generation: Generation(1),
        spec: wanted.spec.as_ref().unwrap(),
        paths: &host().paths,
    }
    .plan(&with_path.observed);
    let Then::Halted(fault) = plan.1 else {
        panic!("not halted: {plan:?}")
    };
    let words = "writes to vda (/var/lib/berth/volumes/v.qcow2)";
    assert!(fault.message.contains(words), "{}", fault.message);
}

#[track_caller]
fn full_of(given: Given, words: &str) {
    check_halted(given, &running(1), &["resume"], FaultCode::DiskFull, words);
}

#[test]
fn a_guest_that_stands_still_for_its_disks_is_stopped_saved_and_rebooted_all_the_same() {
    check(halted(None), &paused(1), &[], &Converged);
    check(halted(None), &stopped(2), &["destroy"], &ASKED);
    check(halted(None), &suspended(2), &["save"], &Converged);
    let hard = ["destroy", "define@0", "start", "define@2"];
    check(
        halted(None),
        &rebooting(2, RebootKind::Hard, 0),
        &hard,
        &Converged,
    );
    // It can hear that it shall power off only when it goes on, and has its time for that.
    let soft = rebooting(2, RebootKind::Soft, 0);
    let words = "stands still";
    check_halted(halted(None), &soft, &["resume"], FaultCode::DiskFull, words);
    let late = u64::from(STOP_TIMEOUT);
    check_halted(
        halted(Some((late - 1, 1))),
        &soft,
        &[],
        FaultCode::DiskFull,
        words,
    );
    check(halted(Some((late, 1))), &soft, &["destroy"], &ASKED);
    check(
        halted(Some((3, 3))).asked(2, 2),
        &soft,
        &["destroy"],
        &ASKED,
    );
}

#[test]
fn a_guest_is_asked_to_stop_then_asked_again_then_switched_off() {
    check(
        given(1, Running, None),
        &stopped(2),
        &["define@0", "shutdown"],
        &ASKED,
    );
    let on = || given(0, Running, None);
    check(on(), &stopped(2), &["shutdown"], &ASKED);
    check(on().asked(1, 1), &stopped(2), &[], &ASKED);
    check(on().asked(7, 5), &stopped(2), &["shutdown"], &ASKED);
    check(
        on().asked(u64::from(STOP_TIMEOUT), 1),
        &stopped(2),
        &["destroy"],
        &ASKED,
    );
    check(
        given(1, Shutdown, Some(OffReason::Guest)),
        &stopped(2),
        &["define@2"],
        &Converged,
    );
}

#[test]
fn a_reboot_is_carried_out_once_for_its_nonce() {
    let on = || given(1, Running, None);
    let done = |given: Given| {
        given.domain(|domain| {
            domain.metadata.as_mut().unwrap().reboot_nonce = Some(id::<Nonce>(1000));
        })
    };
    let soft = rebooting(2, RebootKind::Soft, 0);
    let hard = rebooting(2, RebootKind::Hard, 0);
    check(on(), &soft, &["define@0", "shutdown"], &ASKED);
    check(
        given(1, Shutdown, Some(OffReason::Guest)),
        &soft,
        &["define@0", "start", "define@2"],
        &Converged,
    );
    check(
        on(),
        &hard,
        &["destroy", "define@0", "start", "define@2"],
        &Converged,
    );
    for reboot in [&soft, &hard] {
        check(done(on()), reboot, &["define@2"], &Converged);
        check(done(given(2, Running, None)), reboot, &[], &Converged);
        check(
            done(given(2, Shutdown, Some(OffReason::Guest)).noted()),
            reboot,
            &[],
            &Converged,
        );
    }
}

#[test]
fn asking_for_a_reboot_does_not_count_as_having_done_it() {
    let before = given(1, Running, None).domain(|domain| {
        domain.metadata.as_mut().unwrap().reboot_nonce = Some(id::<Nonce>(1000));
    });
    let again = rebooting(2, RebootKind::Soft, 1);
    let plan = plan(&again, &before.observed, &host());
    let Some(Step::Domain(DomainStep::Define(mark))) = plan.steps.first() else {
        panic!("no mark: {plan:?}")
    };
    assert_eq!(mark.metadata.reboot_nonce, Some(id::<Nonce>(1000)));
}

#[test]
fn a_guest_that_may_still_obey_an_old_request_is_watched_before_its_start_counts_as_done() {
    let marked = |seconds: Option<u64>| {
        given(0, Running, None)
            .but(|observed| observed.asked_before = seconds.map(Duration::from_secs))
    };
    let timeout = u64::from(STOP_TIMEOUT);
    let watch = |seconds| Then::Watch(Duration::from_secs(seconds));
    check(marked(None), &running(3), &[], &watch(timeout));
    check(marked(Some(5)), &running(3), &[], &watch(timeout - 5));
    check(
        marked(Some(timeout)),
        &running(3),
        &["define@3"],
        &Converged,
    );
    // What is to be written meanwhile keeps the mark.
    let changed = marked(None).domain(|domain| domain.metadata.as_mut().unwrap().digest.push('x'));
    check(changed, &running(3), &["define@0"], &watch(timeout));
}

#[test]
fn a_start_outlives_the_agent_that_asked_the_guest_to_power_off() {
    let slow = || {
        let mut rig = Rig::after(&[running(1)]);
        rig.host.set_guest(instance(), Guest::Takes(4));
        rig.pass(&stopped(2)).unwrap();
        assert_eq!(rig.lives().asked, 1);
        rig
    };
    // Killed at once, and again after each look at the guest.
    for kills in 0..5 {
        let mut rig = slow();
        rig.restart_agent();
        for _ in 0..kills {
            rig.pass(&running(3)).unwrap();
            rig.restart_agent();
        }
        let then = rig.converge(&running(3));
        assert_as_desired(&rig, &running(3), &then);
        assert_eq!(rig.lives().starts, 2, "after {kills} more kills");
    }
}

#[test]
fn a_reboot_of_a_stopped_instance_is_noted_and_does_not_start_it() {
    let mut off = rebooting(2, RebootKind::Hard, 0);
    off.spec.as_mut().unwrap().power = DesiredPower::Stopped;
    check(
        given(1, Shutdown, Some(Destroyed)),
        &off,
        &["define@2"],
        &Converged,
    );
}

#[test]
fn a_foreign_domain_is_never_touched() {
    for state in [Running, Paused, Shutdown, Crashed, Suspended, Nostate] {
        let foreign = || given(1, state, None).domain(|domain| domain.metadata = None);
        // A tombstone removes what is berth's, and leaves the domain alone, and what that may use.
        if state == Shutdown {
            check(foreign(), &desired(2, None), &["remove"], &Gone);
        } else {
            check_refused(
                foreign(),
                &desired(2, None),
                FaultCode::ForeignObject,
                "disks stay while it may use them",
            );
        }
        let without_disks = foreign().but(|observed| observed.files.disks.clear());
        check(without_disks, &desired(2, None), &["remove"], &Gone);
        // One that boots from a volume has no disk of its own.
        let with_volume = foreign()
            .but(|observed| observed.files.disks.clear())
            .domain(|domain| {
                let path = host()
                    .paths
                    .volume(&PoolName::default(), id(60), VolumeFormat::Qcow2);
                domain.disks.live = vec![DiskFile {
                    path,
                    target: "vda".to_owned(),
                }];
            });
        if state == Shutdown {
            check(with_volume, &desired(2, None), &["remove"], &Gone);
        } else {
            check_refused(
                with_volume,
                &desired(2, None),
                FaultCode::ForeignObject,
                "disks stay while it may use them",
            );
        }
        let without_files = foreign().but(|observed| observed.files = InstanceFiles::default());
        check(without_files, &desired(2, None), &[], &Gone);
        for document in [running(2), stopped(2), rebooting(2, RebootKind::Hard, 0)] {
            check_refused(
                foreign(),
                &document,
                FaultCode::ForeignObject,
                "berth did not make it",
            );
        }
    }
    let copied = given(1, Running, None)
        .domain(|domain| domain.metadata.as_mut().unwrap().instance_id = id::<InstanceId>(77));
    check_refused(
        copied,
        &desired(2, None),
        FaultCode::ForeignObject,
        "does not carry berth's mark",
    );
}

#[test]
fn a_disk_that_vanished_is_not_made_anew() {
    for state in [Running, Shutdown] {
        let lost = given(1, state, None).but(|observed| observed.files.disks.clear());
        check_refused(
            lost,
            &running(2),
            FaultCode::Hypervisor,
            "disk 0 is missing on the host",
        );
    }
}

#[test]
fn a_pause_stops_the_processors_and_nothing_else() {
    check(given(1, Running, None), &paused(2), &["pause"], &Converged);
    check(
        given(1, Paused, None),
        &paused(2),
        &["define@2"],
        &Converged,
    );
    check(given(2, Paused, None), &paused(2), &[], &Converged);
    // What was asked before the pause may still be obeyed after it.
    check(given(0, Paused, None), &paused(2), &[], &Converged);
    check(
        given(0, Paused, None),
        &running(3),
        &["resume"],
        &Then::Watch(Duration::from_secs(STOP_TIMEOUT.into())),
    );
    check(
        given(2, Paused, None),
        &running(3),
        &["define@3", "resume"],
        &Converged,
    );
    // A guest that sleeps stands still already; a crashed one has nothing left to stand still with.
    check(given(2, Suspended, None), &paused(2), &[], &Converged);
    check(
        given(2, Crashed, None),
        &paused(2),
        &["destroy", "define@0", "start-paused", "define@2"],
        &Converged,
    );
}

#[test]
fn what_is_off_and_shall_stand_still_is_started_so() {
    let steps = &["define@0", "start-paused", "define@2"];
    check(
        given(1, Shutdown, Some(OffReason::Guest)),
        &paused(2),
        &["define@2"],
        &Converged,
    );
    // One that was asked to, for a stop that was taken back, is not off by itself.
    check(
        given(0, Shutdown, Some(OffReason::Guest)),
        &paused(2),
        steps,
        &Converged,
    );
    for reason in [Destroyed, Failed, Unknown] {
        check(
            given(1, Shutdown, Some(reason)),
            &paused(2),
            steps,
            &Converged,
        );
    }
    let unready = given(1, Shutdown, Some(Unknown)).but(|observed| observed.networks_ready.clear());
    check(
        unready,
        &paused(2),
        &[],
        &Then::Wait(Wait::Network(network())),
    );
    check_refused(
        given(1, Shutdown, Some(Moved)),
        &paused(2),
        FaultCode::Hypervisor,
        "migrated",
    );
}

#[test]
fn a_suspension_saves_the_memory_and_running_again_restores_it() {
    for state in [Running, Paused, Suspended] {
        check(given(1, state, None), &suspended(2), &["save"], &Converged);
    }
    let saved = |generation| given(generation, Shutdown, Some(Saved));
    check(saved(1), &suspended(2), &["define@2"], &Converged);
    check(saved(2), &suspended(2), &[], &Converged);
    check(saved(2), &running(3), &["define@0", "restore"], &Converged);
    check(saved(0), &running(3), &["restore"], &Converged);
    check(saved(2), &paused(3), &["define@0", "restore"], &Converged);
    // Nothing throws the memory away but who says so: a guest that shall stop can only be asked when it runs.
    check(saved(2), &stopped(3), &["define@0", "restore"], &Converged);
    check(
        saved(2),
        &rebooting(3, RebootKind::Soft, 0),
        &["define@0", "restore"],
        &Converged,
    );
    check(
        saved(2),
        &rebooting(3, RebootKind::Hard, 0),
        &["discard", "define@0", "start", "define@3"],
        &Converged,
    );
    // What has no memory left is suspended as it is.
    check(
        given(1, Crashed, None),
        &suspended(2),
        &["destroy"],
        &Converged,
    );
    check(
        given(1, Shutdown, Some(OffReason::Guest)),
        &suspended(2),
        &["define@2"],
        &Converged,
    );
    // A restored guest needs its networks as much as a fresh one.
    check(
        saved(2).but(|observed| observed.networks_ready.clear()),
        &running(3),
        &[],
        &Then::Wait(Wait::Network(network())),
    );
}

#[test]
fn memory_that_is_left_over_while_the_guest_runs_is_never_gone_back_to() {
    for state in [Running, Paused] {
        for wish in [running(1), paused(2), suspended(2), stopped(2)] {
            let left = given(1, state, None).domain(|domain| domain.leftover_memory = true);
            check(left, &wish, &["discard"], &Converged);
        }
    }
    // A libvirtd that dies while it restores leaves the file; the guest lives on, and is switched off later.
    for last in [stopped(4), rebooting(4, RebootKind::Hard, 0)] {
        let mut rig = Rig::after(&[running(1), suspended(2), running(3)]);
        rig.host.leave_memory(instance());
        rig.converge(&last);
        rig.converge(&running(5));
        let lives = rig.lives();
        assert_eq!((lives.starts, lives.restores), (2, 1));
    }
}

#[test]
fn everything_waits_while_libvirt_starts_it_and_one_that_never_gets_there_is_switched_off() {
    let starting = |memory_mb, seconds: Option<u64>| {
        let given = given(1, Running, None).domain(|domain| {
            domain.is_starting = true;
            domain.memory_mb = MemoryMb::clamped(memory_mb);
        });
        given.but(|observed| observed.starting = seconds.map(Duration::from_secs))
    };
    let wait = Then::Wait(Wait::Starts);
    for wish in [
        running(1),
        running(2),
        paused(2),
        suspended(2),
        stopped(2),
        rebooting(2, RebootKind::Hard, 0),
    ] {
        for (memory_mb, last) in [(1_000, 79), (100_000, 2_059)] {
            check(starting(memory_mb, None), &wish, &[], &wait);
            check(starting(memory_mb, Some(last)), &wish, &[], &wait);
            let late = starting(memory_mb, Some(last + 1));
            check(late, &wish, &["abandon-start"], &wait);
        }
    }
    // What shall be gone needs no start.
    let gone = &["destroy", "undefine", "remove"];
    check(starting(1_000, None), &desired(2, None), gone, &Gone);
}

#[test]
fn a_reboot_waits_until_the_volumes_it_needs_are_there() {
    let mut wanted = spec();
    wanted.volumes = vec![InstanceVolume {
        pool: Default::default(),
        id: id::<VolumeId>(77),
        position: 1,
        format: VolumeFormat::Qcow2,
        access: VolumeAccess::ReadWrite,
        disk_bus: Default::default(),
        limits: VolumeLimits::default(),
    }];
    let wait = Then::Wait(Wait::Volume(id::<VolumeId>(77)));
    for kind in [RebootKind::Soft, RebootKind::Hard] {
        wanted.reboot = Some(Reboot {
            nonce: id::<Nonce>(1000),
            kind,
        });
        let wish = desired(2, Some(wanted.clone()));
        check(given(1, Running, None), &wish, &[], &wait);
    }
}

#[test]
fn pauses_and_suspensions_keep_the_guest_that_runs() {
    for between in [paused, suspended] {
        let rig = Rig::after(&[running(1), between(2), running(3), between(4), running(5)]);
        let lives = rig.lives();
        assert_eq!((lives.starts, lives.destroys, lives.asked), (1, 0, 0));
        assert_eq!(lives.saves, lives.restores);
    }
    let rig = Rig::after(&[running(1), suspended(2)]);
    rig.host.power_cut();
    rig.build_network();
    let mut rig = rig;
    rig.converge(&running(3));
    assert_eq!(
        (rig.lives().starts, rig.lives().restores),
        (1, 1),
        "saved memory outlives a power cut"
    );
}

#[test]
fn a_reboot_that_a_pause_came_before_is_carried_out_after_it() {
    let mut rig = Rig::after(&[running(1), paused(2)]);
    let Some(reboot) = rebooting(3, RebootKind::Soft, 0).spec.unwrap().reboot else {
        unreachable!()
    };
    let both = |generation, power| {
        desired(
            generation,
            Some(InstanceSpec {
                power,
                reboot: Some(reboot),
                ..spec()
            }),
        )
    };
    rig.converge(&both(3, DesiredPower::Paused));
    assert_eq!((rig.power_state(), rig.lives().starts), (Paused, 1));
    rig.converge(&both(4, DesiredPower::Suspended));
    assert_eq!((rig.power_state(), rig.lives().starts), (Shutdown, 1));
    rig.converge(&both(5, DesiredPower::Running));
    let lives = rig.lives();
    assert_eq!((lives.starts, lives.asked, lives.destroys), (2, 1, 0));
    assert_eq!(rig.metadata().reboot_nonce, Some(reboot.nonce));
}

#[test]
fn a_tombstone_removes_everything_from_every_state() {
    let gone = |given: Given, steps: &[&str]| check(given, &desired(9, None), steps, &Gone);
    for state in [Running, Paused, Crashed, Suspended, Nostate] {
        gone(given(1, state, None), &["destroy", "undefine", "remove"]);
    }
    gone(given(1, Shutdown, Some(Unknown)), &["undefine", "remove"]);
    gone(
        given(1, Running, None).domain(|domain| domain.persistent = false),
        &["destroy", "remove"],
    );
    gone(
        given(1, Running, None).but(|observed| observed.domain = None),
        &["remove"],
    );
    gone(
        given(1, Shutdown, None).but(|observed| observed.files = InstanceFiles::default()),
        &["undefine"],
    );
}

#[test]
fn the_weight_of_a_guest_is_in_proportion_to_its_vcpus_where_the_host_can_weigh() {
    let mut facts = host();
    assert_eq!(domain_config(instance(), &spec(), &facts).cpu_shares, None);
    facts.has_cpu_controller = true;
    assert_eq!(
        domain_config(instance(), &spec(), &facts).cpu_shares,
        Some(1024)
    );
    assert_eq!(cpu_shares(Vcpus::clamped(4)), 4096);
    assert_eq!(cpu_shares(Vcpus::clamped(9)), 9216);
    // libvirt takes no more where cgroups are of version 2.
    assert_eq!(cpu_shares(Vcpus::clamped(10)), 10_000);
    assert_eq!(cpu_shares(Vcpus::MAX), 10_000);
}

/// The documents whose plans are interrupted, each with those carried out before it.
fn histories() -> Vec<Vec<Desired<InstanceId, InstanceSpec>>> {
    vec![
        vec![running(1)],
        vec![stopped(1)],
        vec![running(1), stopped(2)],
        vec![running(1), stopped(2), running(3)],
        vec![running(1), rebooting(2, RebootKind::Soft, 0)],
        vec![running(1), rebooting(2, RebootKind::Hard, 0)],
        vec![
            running(1),
            rebooting(2, RebootKind::Soft, 0),
            rebooting(3, RebootKind::Soft, 1),
        ],
        vec![running(1), desired(2, None)],
        vec![running(1), stopped(2), desired(3, None)],
        vec![paused(1)],
        vec![running(1), paused(2)],
        vec![running(1), paused(2), running(3)],
        vec![running(1), paused(2), stopped(3)],
        vec![running(1), paused(2), desired(3, None)],
        vec![suspended(1)],
        vec![running(1), suspended(2)],
        vec![running(1), suspended(2), running(3)],
        vec![running(1), suspended(2), paused(3)],
        vec![running(1), suspended(2), stopped(3)],
        vec![running(1), suspended(2), desired(3, None)],
        vec![running(1), suspended(2), rebooting(3, RebootKind::Hard, 0)],
        vec![running(1), suspended(2), rebooting(3, RebootKind::Soft, 0)],
        vec![running(1), paused(2), rebooting(3, RebootKind::Soft, 0)],
        vec![running(1), stopped(2), suspended(3)],
    ]
}

/// Is the host as the document says?
fn assert_as_desired(rig: &Rig, desired: &Desired<InstanceId, InstanceSpec>, then: &Then) {
    let Some(spec) = &desired.spec else {
        assert_eq!(then, &Gone);
        assert_eq!(rig.host.leftovers(), [format!("network {}", network())]);
        return;
    };
    assert_eq!(then, &Converged);
    let domain = rig.host.domain(instance().as_uuid()).unwrap();
    let left = domain.off_reason == Some(OffReason::Guest);
    assert_eq!(
        rig.power_state(),
        match spec.power {
            // Its guest was faster than the pause.
            DesiredPower::Paused if left => Shutdown,
            DesiredPower::Running => Running,
            DesiredPower::Stopped | DesiredPower::Suspended => Shutdown,
            DesiredPower::Paused => Paused,
        }
    );
    let metadata = rig.metadata();
    // One that stands still may be marked as asked to power off: whether it would obey shows when it goes on.
    if spec.power != DesiredPower::Paused || metadata.generation != Generation(0) {
        assert_eq!(metadata.generation, desired.generation);
    }
    // A reboot that a pause or a suspension came before waits for the guest to go on.
    if spec.power == DesiredPower::Running {
        assert_eq!(
            metadata.reboot_nonce,
            spec.reboot.map(|reboot| reboot.nonce)
        );
    }
}

#[test]
fn dying_or_failing_at_any_step_leads_to_the_same_end() {
    for history in histories() {
        let (last, before) = history.split_last().unwrap();
        for guest in [Guest::Obeys, Guest::Takes(3), Guest::IgnoresAcpi] {
            let prepared = || {
                let rig = Rig::after(before);
                rig.host.set_guest(instance(), guest);
                rig
            };
            let mut undisturbed = prepared();
            let begun = undisturbed.host.steps_done();
            let then = undisturbed.converge(last);
            assert_as_desired(&undisturbed, last, &then);
            let steps = undisturbed.host.steps_done() - begun;
            let starts = undisturbed.lives().starts;
            for at in 0..=steps {
                for disturb in [FakeHost::crash_after, FakeHost::fail_after] {
                    let mut rig = prepared();
                    disturb(&rig.host, at);
                    let then = rig.converge(last);
                    assert_as_desired(&rig, last, &then);
                    // Neither lost nor done twice.
                    assert_eq!(rig.lives().starts, starts, "after {at} steps of {last:?}");
                }
            }
        }
    }
}

#[test]
fn a_stubborn_guest_is_switched_off_in_time_and_an_obedient_one_never() {
    let stop = |guest| {
        let mut rig = Rig::after(&[running(1)]);
        rig.host.set_guest(instance(), guest);
        let begun = rig.now;
        rig.converge(&stopped(2));
        (rig.lives(), rig.now - begun)
    };
    let (lives, took) = stop(Guest::IgnoresAcpi);
    assert_eq!((lives.destroys, lives.asked), (1, 2));
    assert!(
        took <= Duration::from_secs(u64::from(STOP_TIMEOUT) + 5),
        "{took:?}"
    );
    let (lives, _) = stop(Guest::Takes(4));
    assert_eq!((lives.destroys, lives.asked), (0, 1));
}

#[test]
fn an_unreachable_image_and_a_full_disk_leave_nothing_and_are_overcome() {
    let mut rig = Rig::new();
    rig.host.image_is_unreachable(image().url);
    assert_eq!(
        rig.pass(&running(1)).unwrap_err().code,
        FaultCode::ImageUnreachable
    );
    rig.host.image_is_back(&image().url);
    rig.host.set_disk(Disk::Full);
    assert_eq!(rig.pass(&running(1)).unwrap_err().code, FaultCode::DiskFull);
    assert_eq!(rig.host.leftovers(), [format!("network {}", network())]);
    rig.host.set_disk(Disk::Roomy);
    assert_eq!(rig.converge(&running(1)), Converged);
}

#[test]
fn a_host_that_lost_power_starts_its_guests_again() {
    let mut rig = Rig::after(&[running(1)]);
    rig.host.power_cut();
    assert_eq!(
        rig.pass(&running(1)).unwrap().then,
        Then::Wait(Wait::Network(network()))
    );
    rig.build_network();
    assert_eq!(rig.converge(&running(1)), Converged);
    assert_eq!((rig.power_state(), rig.lives().starts), (Running, 2));
}

#[test]
fn a_lost_disk_is_told_and_the_instance_can_still_be_deleted() {
    let mut rig = Rig::after(&[running(1)]);
    rig.host.lose_disk(instance(), DiskName::first(0));
    assert!(matches!(rig.converge(&running(2)), Then::Refused(_)));
    let then = rig.converge(&desired(3, None));
    assert_as_desired(&rig, &desired(3, None), &then);
}

#[test]
fn a_foreign_domain_with_the_instances_uuid_survives_all_documents() {
    let mut rig = Rig::new();
    let mut foreign = given(0, Running, None).observed.domain.unwrap();
    foreign.metadata = None;
    rig.host.add_foreign(foreign.clone());
    for document in [running(1), stopped(2)] {
        assert!(matches!(rig.converge(&document), Then::Refused(_)));
    }
    assert_eq!(rig.converge(&desired(3, None)), Then::Gone);
    assert_eq!(rig.host.domain(instance().as_uuid()), Some(foreign));
}

/// What may happen on a host, beside its agent.
#[derive(Debug, Clone)]
enum Event {
    Document(Wish),
    Pass,
    CrashAfter(u64),
    FailAfter(u64),
    GuestPowersOff,
    GuestCrashes,
    Pause,
    PowerCut,
    LibvirtEnds,
    Guest(u32),
}

#[derive(Debug, Clone, Copy)]
enum Wish {
    Run,
    Stop,
    Pause,
    Suspend,
    Soft,
    Hard,
}

fn event() -> impl Strategy<Value = Event> {
    let wish = prop_oneof![
        Just(Wish::Run),
        Just(Wish::Stop),
        Just(Wish::Pause),
        Just(Wish::Suspend),
        Just(Wish::Soft),
        Just(Wish::Hard)
    ];
    prop_oneof![
        3 => wish.prop_map(Event::Document),
        6 => Just(Event::Pass),
        2 => (0_u64..6).prop_map(Event::CrashAfter),
        1 => (0_u64..6).prop_map(Event::FailAfter),
        1 => Just(Event::GuestPowersOff),
        1 => Just(Event::GuestCrashes),
        1 => Just(Event::Pause),
        1 => Just(Event::PowerCut),
        1 => Just(Event::LibvirtEnds),
        1 => (0_u32..6).prop_map(Event::Guest),
    ]
}

/// Documents as a scheduler makes them: a new generation each, and a reboot's nonce stays in all that follow.
#[derive(Default)]
struct Documents {
    generation: u64,
    power: DesiredPower,
    reboot: Option<Reboot>,
}

impl Documents {
    fn next(&mut self, wish: Wish) -> Desired<InstanceId, InstanceSpec> {
        self.generation += 1;
        let nonce = id::<Nonce>(1000 + u128::from(self.generation));
        match wish {
            Wish::Run => self.power = DesiredPower::Running,
            Wish::Stop => self.power = DesiredPower::Stopped,
            Wish::Pause => self.power = DesiredPower::Paused,
            Wish::Suspend => self.power = DesiredPower::Suspended,
            Wish::Soft => {
                self.reboot = Some(Reboot {
                    nonce,
                    kind: RebootKind::Soft,
                })
            }
            Wish::Hard => {
                self.reboot = Some(Reboot {
                    nonce,
                    kind: RebootKind::Hard,
                })
            }
        }
        let spec = InstanceSpec {
            power: self.power,
            reboot: self.reboot,
            ..spec()
        };
        desired(self.generation, Some(spec))
    }
}

proptest! {
    #[test]
    fn whatever_happened_the_last_document_is_carried_out(events in proptest::collection::vec(event(), 0..40)) {
        let mut rig = Rig::new();
        let mut documents = Documents::default();
        let mut current = documents.next(Wish::Run);
        for event in events {
            match event {
                Event::Document(wish) => current = documents.next(wish),
                Event::Pass => drop(rig.pass(&current)),
                Event::CrashAfter(steps) => rig.host.crash_after(steps),
                Event::FailAfter(steps) => rig.host.fail_after(steps),
                Event::GuestPowersOff => rig.host.guest_powers_off(instance()),
                Event::GuestCrashes => rig.host.guest_crashes(instance()),
                Event::Pause => rig.host.pause(instance()),
                Event::PowerCut => {
                    rig.host.power_cut();
                    rig.restart_agent();
                    rig.build_network();
                }
                Event::LibvirtEnds => rig.host.restart_libvirt(),
                Event::Guest(0) => rig.host.set_guest(instance(), Guest::IgnoresAcpi),
                Event::Guest(looks) => rig.host.set_guest(instance(), Guest::Takes(looks)),
            }
            if rig.host.is_crashed() {
                rig.restart_agent();
            }
        }
        // A new generation overrules whatever the guest did by itself.
        current.generation = current.generation.next();
        let then = rig.converge(&current);
        assert_as_desired(&rig, &current, &then);

        let tombstone = desired(current.generation.0 + 1, None);
        let then = rig.converge(&tombstone);
        assert_as_desired(&rig, &tombstone, &then);
    }
}

#[path = "instance_tests/boot.rs"]
mod boot;
#[path = "instance_tests/size.rs"]
mod size;
