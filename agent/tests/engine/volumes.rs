//! Volumes through the whole agent, over a host in memory: what they wait for, what is refused, and what is told of both.

use std::collections::BTreeSet;

use berth_agent::{act::fake::FakeVolume, decide::domain::DiskFile};
use berth_common::document::{
    DiskBus, InstanceVolume, VolumeAccess, VolumeLimits, VolumeRef, VolumeSource,
};

use super::*;

/// A volume of its own.
struct Wanted {
    host: HostId,
    id: VolumeId,
    pool: PoolName,
    source: Option<VolumeSource>,
}

impl Wanted {
    fn new(lab: &Lab, source: Option<VolumeSource>) -> Self {
        Self {
            host: lab.host_id,
            id: VolumeId::new(),
            pool: lab.pool.clone(),
            source,
        }
    }

    fn of_image(lab: &Lab) -> Self {
        Self::new(lab, Some(VolumeSource::Image(image())))
    }

    fn copy_of(lab: &Lab, other: &Self) -> Self {
        let source = VolumeRef {
            pool: other.pool.clone(),
            id: other.id,
            format: other.format(),
        };
        Self::new(lab, Some(VolumeSource::Volume(source)))
    }

    fn document(&self, generation: u64, gb: u64) -> Document {
        Document::Volume(Desired {
            id: self.id,
            generation: Generation(generation),
            host_id: self.host,
            spec: Some(VolumeSpec {
                pool: self.pool.clone(),
                name: "data".parse().unwrap(),
                project: "default".parse().unwrap(),
                size_gb: DiskGb::new(gb).unwrap(),
                format: self.format(),
                source: self.source.clone(),
            }),
        })
    }

    fn path(&self) -> std::path::PathBuf {
        facts().paths.volume(&self.pool, self.id, self.format())
    }

    fn format(&self) -> VolumeFormat {
        VolumeFormat::usual(&self.pool)
    }
}

fn image() -> ImageRef {
    ImageRef {
        url: "http://images.example.org/data.qcow2".parse().unwrap(),
        sha256: "cd".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

/// A volume's size and what is on it.
type Held = Option<(ByteCount, String)>;

fn holds(gb: u64, content: &str) -> Held {
    let size = ByteCount::from_gb(DiskGb::new(gb).unwrap());
    Some((size, content.to_owned()))
}

/// What there is of a volume at rest.
fn held(lab: &Lab, id: VolumeId) -> Held {
    let found: FakeVolume = lab.host.volume(id)?;
    assert!(found.active && !found.grown, "{found:?}");
    Some((found.size, found.content))
}

fn of_image() -> String {
    format!("image {}", image().sha256)
}

/// A domain that is not berth's, with this volume.
fn foreign(volume: &Wanted) -> DomainObserved {
    let disk = DiskFile {
        path: volume.path(),
        target: "vdb".to_owned(),
    };
    DomainObserved {
        uuid: Uuid::new_v4(),
        name: "theirs".to_owned(),
        power_state: PowerState::Running,
        off_reason: None,
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        reason: "running".to_owned(),
        persistent: true,
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(64),
        running: None,
        metadata: None,
        nics: Default::default(),
        disks: DomainDisks {
            live: vec![disk.clone()],
            kept: vec![disk],
            scsi_controller: false,
        },
    }
}

/// The same, off and without it.
fn without_disks(domain: &DomainObserved) -> DomainObserved {
    DomainObserved {
        power_state: PowerState::Shutdown,
        disks: DomainDisks::default(),
        ..domain.clone()
    }
}

async fn made(lab: &Lab, volume: &Wanted, gb: u64) -> Document {
    let document = volume.document(1, gb);
    lab.send(&document).await;
    lab.wait_status(&document, ConvergeStatus::Converged).await;
    document
}

async fn wait_fault(lab: &Lab, document: &Document, code: FaultCode, part: &str) {
    let report = lab.wait_status(document, ConvergeStatus::Failed).await;
    let fault = report.fault.unwrap();
    assert_eq!(fault.code, code, "{}", fault.message);
    assert!(fault.message.contains(part), "{}", fault.message);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_made_grown_copied_and_removed() {
    let lab = Lab::new().await;
    let volume = Wanted::of_image(&lab);
    made(&lab, &volume, 1).await;
    assert_eq!(held(&lab, volume.id), holds(1, &of_image()));
    lab.host.write_volume(volume.id, "work");
    let content = format!("{} + work", of_image());

    let larger = volume.document(2, 3);
    lab.send(&larger).await;
    lab.wait_status(&larger, ConvergeStatus::Converged).await;
    assert_eq!(held(&lab, volume.id), holds(3, &content));

    let copy = Wanted::copy_of(&lab, &volume);
    let document = made(&lab, &copy, 4).await;
    assert_eq!(held(&lab, copy.id), holds(4, &content));

    // A copy stands alone.
    for tombstone in [larger.tombstone(), document.tombstone()] {
        lab.send(&tombstone).await;
        lab.wait_status(&tombstone, ConvergeStatus::Gone).await;
    }
    assert_eq!(lab.host.leftovers(), [""; 0]);
}

/// The host's pools, of files and of block devices.
const POOLS: [&str; 3] = ["local", "ssd", "fast"];

#[tokio::test(start_paused = true)]
async fn a_volume_stays_while_any_domain_names_it() {
    let lab = Lab::new().await;
    let volume = Wanted::new(&lab, None);
    let document = made(&lab, &volume, 1).await;
    let theirs = foreign(&volume);
    lab.host.add_foreign(theirs.clone());
    let tombstone = document.tombstone();
    lab.send(&tombstone).await;
    let told = |report: &ResourceReport| {
        report
            .progress
            .as_ref()
            .is_some_and(|it| it.contains("theirs"))
    };
    lab.wait(tombstone.key(), "waiting for its user", told)
        .await;
    // Off, but its next start would use it.
    let mut off = without_disks(&theirs);
    off.disks.kept.clone_from(&theirs.disks.kept);
    lab.host.add_foreign(off.clone());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(held(&lab, volume.id), holds(1, "zeros"));
    lab.host.add_foreign(without_disks(&off));
    lab.wait_status(&tombstone, ConvergeStatus::Gone).await;
    assert_eq!(held(&lab, volume.id), None);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_vanished_is_told_and_not_made_anew() {
    let mut lab = Lab::new().await;
    let volume = Wanted::of_image(&lab);
    made(&lab, &volume, 1).await;
    lab.host.lose_volume(volume.id);
    // Whether the agent notices by itself, at its start, or with another document.
    let unchanged = volume.document(1, 1);
    wait_fault(&lab, &unchanged, FaultCode::Volume, "its file is missing").await;
    lab.restart().await;
    let larger = volume.document(2, 2);
    lab.send(&larger).await;
    wait_fault(&lab, &larger, FaultCode::Volume, "its file is missing").await;
    sleep(LIMIT).await;
    assert_eq!(held(&lab, volume.id), None);
    lab.send(&larger.tombstone()).await;
    lab.wait_status(&larger.tombstone(), ConvergeStatus::Gone)
        .await;
    assert_eq!(lab.host.leftovers(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_never_shrinks_and_stays_as_it_is() {
    let lab = Lab::new().await;
    let volume = Wanted::new(&lab, None);
    made(&lab, &volume, 3).await;
    let smaller = volume.document(2, 1);
    lab.send(&smaller).await;
    wait_fault(&lab, &smaller, FaultCode::Volume, "never shrinks").await;
    assert_eq!(held(&lab, volume.id), holds(3, "zeros"));
    let back = volume.document(3, 3);
    lab.send(&back).await;
    lab.wait_status(&back, ConvergeStatus::Converged).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_in_use_is_neither_copied_nor_grown_behind_its_users_back() {
    let lab = Lab::new().await;
    let volume = Wanted::new(&lab, None);
    made(&lab, &volume, 1).await;
    let theirs = foreign(&volume);
    lab.host.add_foreign(theirs.clone());
    let copy = Wanted::copy_of(&lab, &volume);
    let document = copy.document(1, 2);
    lab.send(&document).await;
    wait_fault(&lab, &document, FaultCode::Volume, "\"theirs\"").await;
    assert_eq!(held(&lab, copy.id), None);
    let larger = volume.document(2, 2);
    lab.send(&larger).await;
    lab.wait(larger.key(), "waiting", |report| report.progress.is_some())
        .await;
    assert_eq!(held(&lab, volume.id), holds(1, "zeros"));
    lab.host.add_foreign(without_disks(&theirs));
    lab.wait_status(&larger, ConvergeStatus::Converged).await;
    lab.wait_status(&document, ConvergeStatus::Converged).await;
    assert_eq!(held(&lab, copy.id), holds(2, "zeros"));
}

#[tokio::test(start_paused = true)]
async fn a_copy_fails_with_its_source_and_goes_on_with_it() {
    let lab = Lab::new().await;
    let source = Wanted::of_image(&lab);
    let copy = Wanted::copy_of(&lab, &source);
    lab.host.image_is_unreachable(image().url);
    let documents = [copy.document(1, 1), source.document(1, 1)];
    for document in &documents {
        lab.send(document).await;
    }
    let part = format!("its volume {}", source.id);
    wait_fault(&lab, &documents[0], FaultCode::ImageUnreachable, &part).await;
    lab.host.image_is_back(&image().url);
    for document in &documents {
        lab.wait_status(document, ConvergeStatus::Converged).await;
    }
    let late = Wanted::copy_of(&lab, &source);
    lab.send(&documents[1].tombstone()).await;
    lab.wait_status(&documents[1].tombstone(), ConvergeStatus::Gone)
        .await;
    let late = late.document(1, 1);
    lab.send(&late).await;
    wait_fault(&lab, &late, FaultCode::Volume, "was deleted").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_and_mended() {
    let lab = Lab::new().await;
    lab.host.set_disk(Disk::Full);
    let document = Wanted::new(&lab, None).document(1, 1);
    lab.send(&document).await;
    wait_fault(&lab, &document, FaultCode::DiskFull, "the volume").await;
    lab.host.set_disk(Disk::Roomy);
    lab.wait_status(&document, ConvergeStatus::Converged).await;
}

#[tokio::test(start_paused = true)]
async fn what_reappears_of_a_removed_volume_is_removed_again_and_what_has_no_document_stays() {
    let mut lab = Lab::new().await;
    let (removed, unknown) = (Wanted::new(&lab, None), Wanted::new(&lab, None));
    let document = made(&lab, &removed, 1).await;
    lab.send(&document.tombstone()).await;
    lab.wait_status(&document.tombstone(), ConvergeStatus::Gone)
        .await;
    lab.kill().await;
    for volume in [&removed, &unknown] {
        let Document::Volume(wish) = volume.document(1, 1) else {
            panic!("it is a volume");
        };
        let observed = berth_agent::decide::volume::VolumeObserved::default();
        let plan = berth_agent::decide::volume::plan(&wish, &observed, &facts().paths);
        for step in plan.steps {
            let berth_agent::decide::instance::Step::Storage(step) = step else {
                panic!("it is a step on files");
            };
            Storage::apply(&lab.host, &step, &watch::channel(None).0)
                .await
                .unwrap();
        }
    }
    lab.start();
    let host = lab.host.clone();
    lab.wait_until("the removal", || host.volume(removed.id).is_none())
        .await;
    assert_eq!(
        BTreeSet::from_iter(lab.host.leftovers()),
        BTreeSet::from([format!("volume {}", unknown.id)])
    );
}

/// An instance with these volumes.
fn with_volumes(wish: &Wish, generation: u64, volumes: &[&Wanted]) -> Document {
    with_volumes_on(DiskBus::Virtio, wish, generation, volumes)
}

fn with_volumes_on(
    disk_bus: DiskBus,
    wish: &Wish,
    generation: u64,
    volumes: &[&Wanted],
) -> Document {
    wish.instance(generation, |spec| {
        let attached = (1..).zip(volumes).map(|(position, volume)| InstanceVolume {
            pool: volume.pool.clone(),
            id: volume.id,
            position,
            format: volume.format(),
            access: VolumeAccess::ReadWrite,
            disk_bus,
            limits: VolumeLimits::default(),
        });
        spec.volumes = attached.collect();
    })
}

/// The guest's names of the volumes it has.
fn live(lab: &Lab, wish: &Wish) -> Vec<String> {
    let domain = lab.host.domain(wish.instance.as_uuid()).unwrap();
    let disks = domain.disks.live.into_iter();
    let volumes = disks.filter(|disk| facts().paths.volume_at(&disk.path).is_some());
    volumes.map(|disk| disk.target).collect()
}

#[tokio::test(start_paused = true)]
async fn what_an_instance_needs_is_looked_at_again_after_its_image_came() {
    const PACE: Duration = Duration::from_secs(100);
    let lab = Lab::new().await;
    let volume = Wanted::new(&lab, None);
    made(&lab, &volume, 1).await;
    let wish = Wish::new(&lab);
    let network = wish.network(1, &[wish.port]);
    lab.send(&network).await;
    lab.wait_status(&network, ConvergeStatus::Converged).await;
    lab.host.set_pace(PACE);
    let document = with_volumes(&wish, 1, &[&volume]);
    lab.send(&document).await;
    // The volume was there when its image began to come.
    sleep(PACE / 2).await;
    lab.host.lose_volume(volume.id);
    let larger = volume.document(2, 2);
    lab.send(&larger).await;
    wait_fault(&lab, &larger, FaultCode::Volume, "its file is missing").await;
    sleep(20 * PACE).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 0);
}

#[tokio::test(start_paused = true)]
async fn an_instance_starts_with_its_volume_once_that_is_made() {
    let lab = Lab::new().await;
    let (wish, volume) = (Wish::new(&lab), Wanted::new(&lab, None));
    lab.send(&wish.network(1, &[wish.port])).await;
    let instance = with_volumes(&wish, 1, &[&volume]);
    lab.send(&instance).await;
    let text = format!("waiting for volume {}", volume.id);
    let told = |report: &ResourceReport| {
        report
            .progress
            .as_ref()
            .is_some_and(|it| it.contains(&text))
    };
    lab.wait(instance.key(), "waiting for its volume", told)
        .await;
    assert_eq!(lab.host.lives(wish.instance).starts, 0);
    made(&lab, &volume, 1).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert_eq!(live(&lab, &wish), ["vdb"]);
}

#[tokio::test(start_paused = true)]
async fn a_running_guest_gets_a_volume_that_grows_under_it_and_gives_it_back() {
    for pool in POOLS {
        let mut lab = Lab::new().await;
        lab.pool = pool.parse().unwrap();
        grows_under_its_guest(&lab).await;
    }
}

async fn grows_under_its_guest(lab: &Lab) {
    let (wish, ..) = running(lab).await;
    let volume = Wanted::new(lab, None);
    let instance = with_volumes(&wish, 2, &[&volume]);
    // The instance's document may come first.
    lab.send(&instance).await;
    made(lab, &volume, 1).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    assert_eq!(live(lab, &wish), ["vdb"]);
    let larger = volume.document(2, 2);
    lab.send(&larger).await;
    lab.wait_status(&larger, ConvergeStatus::Converged).await;
    assert_eq!(held(lab, volume.id), holds(2, "zeros"));
    let known = lab.host.volume(volume.id).unwrap().known;
    assert_eq!(known, ByteCount::from_gb(DiskGb::new(2).unwrap()));
    // Deleted in the wrong order, it stays until the guest has given it back.
    lab.send(&larger.tombstone()).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(held(lab, volume.id), holds(2, "zeros"));
    let without = with_volumes(&wish, 3, &[]);
    lab.send(&without).await;
    lab.wait_status(&without, ConvergeStatus::Converged).await;
    lab.wait_status(&larger.tombstone(), ConvergeStatus::Gone)
        .await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

#[tokio::test(start_paused = true)]
async fn block_devices_appear_again_after_the_host_lost_power() {
    let mut lab = Lab::new().await;
    lab.pool = fast();
    let (wish, ..) = running(&lab).await;
    let volume = Wanted::of_image(&lab);
    made(&lab, &volume, 1).await;
    let with = with_volumes(&wish, 2, &[&volume]);
    lab.send(&with).await;
    lab.wait_status(&with, ConvergeStatus::Converged).await;
    lab.kill().await;
    lab.host.power_cut();
    assert!(!lab.host.volume(volume.id).unwrap().active);
    lab.restart().await;
    lab.send(&with).await;
    lab.wait_until("the guest runs with its volume", || {
        lab.host.volume(volume.id).is_some_and(|it| it.active)
            && lab.host.lives(wish.instance).starts == 2
    })
    .await;
    assert_eq!(live(&lab, &wish), ["vdb"]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_the_host_does_not_have_is_told_by_name() {
    let mut lab = Lab::new().await;
    lab.pool = "slow".parse().unwrap();
    let volume = Wanted::new(&lab, None);
    let document = volume.document(1, 1);
    lab.send(&document).await;
    let part =
        "is in the storage pool slow, which this host does not have; it has local, fast, ssd, thin";
    wait_fault(&lab, &document, FaultCode::Volume, part).await;
    lab.send(&document.tombstone()).await;
    lab.wait_status(&document.tombstone(), ConvergeStatus::Gone)
        .await;
    assert_eq!(lab.host.leftovers(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn qcow2_is_stored_in_files_only() {
    for (pool, is_made) in [("ssd", true), ("fast", false), ("thin", false)] {
        let mut lab = Lab::new().await;
        lab.pool = pool.parse().unwrap();
        let volume = Wanted::new(&lab, None);
        let mut document = volume.document(1, 1);
        if let Document::Volume(Desired {
            spec: Some(spec), ..
        }) = &mut document
        {
            spec.format = VolumeFormat::Qcow2;
        }
        lab.send(&document).await;
        if is_made {
            lab.wait_status(&document, ConvergeStatus::Converged).await;
        } else {
            let part = "which is of block devices on this host: those hold raw volumes only";
            wait_fault(&lab, &document, FaultCode::Volume, part).await;
        }
        assert_eq!(lab.host.volume(volume.id).is_some(), is_made, "{pool}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_not_free_before_the_guest_gave_it_back_or_is_off() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let volume = Wanted::new(&lab, None);
    made(&lab, &volume, 1).await;
    // One that needs no guest to give it back.
    let other = Wanted::new(&lab, None);
    made(&lab, &other, 1).await;
    let mut with = with_volumes(&wish, 2, &[&volume, &other]);
    if let Document::Instance(desired) = &mut with {
        desired.spec.as_mut().unwrap().volumes[1].disk_bus = DiskBus::Scsi;
    }
    lab.send(&with).await;
    lab.wait_status(&with, ConvergeStatus::Converged).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let without = with_volumes(&wish, 3, &[]);
    lab.send(&without).await;
    let told = |report: &ResourceReport| {
        report
            .progress
            .as_ref()
            .is_some_and(|it| it.contains("give back vdb"))
    };
    lab.wait(without.key(), "waiting for its guest", told).await;
    sleep(Duration::from_secs(30)).await;
    let report = lab.newest(without.key()).unwrap();
    assert!(told(&report), "{report:?}");
    assert_eq!(report.status, ConvergeStatus::Converging);
    // It is asked again and again, and that it does not answer becomes a fault.
    wait_fault(&lab, &without, FaultCode::Hypervisor, "disk vdb").await;
    sleep(Duration::from_secs(120)).await;
    let report = lab.newest(without.key()).unwrap();
    assert_eq!(report.status, ConvergeStatus::Failed);
    assert_eq!(report.volumes, Some(vec![volume.id]), "the other is free");
    assert_eq!(live(&lab, &wish), ["vdb"]);
    // Switched off, it has lost it.
    let mut off = without.clone().with_generation(Generation(4));
    if let Document::Instance(desired) = &mut off {
        stopped(desired.spec.as_mut().unwrap());
    }
    lab.send(&off).await;
    let report = lab.wait_status(&off, ConvergeStatus::Converged).await;
    assert_eq!(report.volumes, Some(Vec::new()));
    assert_eq!(live(&lab, &wish), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_kept_a_volume_for_too_long_may_still_give_it_back() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let volume = Wanted::new(&lab, None);
    let made = made(&lab, &volume, 1).await;
    let with = with_volumes(&wish, 2, &[&volume]);
    lab.send(&with).await;
    lab.wait_status(&with, ConvergeStatus::Converged).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let without = with_volumes(&wish, 3, &[]);
    lab.send(&without).await;
    wait_fault(&lab, &without, FaultCode::Hypervisor, "disk vdb").await;
    // Nobody else gets it meanwhile.
    lab.send(&made.tombstone()).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(held(&lab, volume.id), holds(1, "zeros"));
    // At last it listens.
    lab.host.set_guest(wish.instance, Guest::Obeys);
    lab.wait_status(&without, ConvergeStatus::Converged).await;
    lab.wait_status(&made.tombstone(), ConvergeStatus::Gone)
        .await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
    // Another one has its own time.
    let next = Wanted::new(&lab, None);
    self::made(&lab, &next, 1).await;
    lab.send(&with_volumes(&wish, 4, &[&next])).await;
    lab.wait_until("the volume", || live(&lab, &wish) == ["vdb"])
        .await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let without = with_volumes(&wish, 5, &[]);
    lab.send(&without).await;
    sleep(Duration::from_secs(30)).await;
    let report = lab.newest(without.key()).unwrap();
    assert_eq!(report.status, ConvergeStatus::Converging, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_scsi_disk_is_taken_from_a_guest_that_hears_nothing() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let volume = Wanted::new(&lab, None);
    made(&lab, &volume, 1).await;
    let with = with_volumes_on(DiskBus::Scsi, &wish, 2, &[&volume]);
    lab.send(&with).await;
    lab.wait_status(&with, ConvergeStatus::Converged).await;
    assert_eq!(live(&lab, &wish), ["sdb"]);
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let without = with_volumes(&wish, 3, &[]);
    lab.send(&without).await;
    lab.wait_status(&without, ConvergeStatus::Converged).await;
    assert_eq!(live(&lab, &wish), [""; 0]);
    // Its next start has what its definition says.
    lab.send(&with_volumes_on(DiskBus::Scsi, &wish, 4, &[&volume]))
        .await;
    lab.wait_until("the volume", || live(&lab, &wish) == ["sdb"])
        .await;
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}
