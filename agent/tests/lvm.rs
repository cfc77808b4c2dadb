//! Storage pools of logical volumes on a real device mapper with LVM's real tools: made, filled, grown, cloned, wiped and
//! removed, full, foreign and hostile; and what is left of an agent that was killed.
//!
//! Not among what `cargo test` runs by itself: it needs a kernel that the machine may not have, and fails where that is
//! missing. `scripts/stock-kernel.sh` boots one. As root, one test at a time: all look at the same kernel.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "in a test, a panic is a failed assertion"
)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_agent::{
    act::{
        ActError, Storage,
        storage::{
            DirPoolOptions, DirStorage, KeepFree, LvmPoolOptions, PoolOptions, StorageOptions,
            VolumeWipe,
        },
    },
    decide::{
        instance::{Paths, StorageStep},
        snapshot::NewSnapshot,
        volume::{
            Content, LargerVolume, NewVolume, StoredVolume, VolumeContent, VolumeFile, VolumeFiles,
        },
    },
    state::StateDir,
};
use berth_common::{
    document::{ImageFormat, ImageRef, SnapshotRef, VolumeFormat, VolumeRef},
    ids::{SnapshotId, VolumeId},
    message::{
        heartbeat::{PoolKind, PoolReport},
        report::FaultCode,
    },
    names::PoolName,
    units::ByteCount,
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use self::{isolation::limit, snapshots::stored};

#[allow(dead_code, reason = "other tests use the rest of it")]
mod isolation;
#[path = "lvm/snapshots.rs"]
mod snapshots;

const MIB: u64 = 1 << 20;
/// What fills the disk below the volume group before anything else: what somebody else once had there.
const STALE: u8 = 0xa5;
/// The environment variable that makes the test binary an agent to be killed.
const VICTIM: &str = "BERTH_LVM_VICTIM";

/// One test at a time has the kernel.
static KERNEL: Mutex<()> = Mutex::new(());

/// A volume group on a loop device that is full of what somebody else once had, with a thin pool in it.
struct Lab {
    directory: tempfile::TempDir,
    group: String,
    device: String,
    storage: DirStorage,
    paths: Paths,
    _alone: MutexGuard<'static, ()>,
}

fn run(program: &str, args: &[&str]) -> String {
    let begun = Instant::now();
    let output = Command::new(program).args(args).output().unwrap();
    println!("{} ms: {program} {args:?}", begun.elapsed().as_millis());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

const PLAIN: &str = "devices { scan_lvs=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\" } \
                     activation { udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=0 }";

fn lvm(command: &str, args: &[&str]) -> String {
    let all = [&["--config", PLAIN], args].concat();
    run(command, &all)
}

impl Lab {
    fn new(megabytes: u64) -> Self {
        Self::with(megabytes, VolumeWipe::Zero)
    }

    fn with(megabytes: u64, wipe: VolumeWipe) -> Self {
        Self::of_sectors(512, megabytes, wipe)
    }

    fn of_sectors(sector: u64, megabytes: u64, wipe: VolumeWipe) -> Self {
        let alone = KERNEL.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            Path::new("/dev/mapper/control").exists(),
            "this kernel has no device mapper: run me with scripts/stock-kernel.sh"
        );
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let disk = directory.path().join("disk");
        let file = File::create(&disk).unwrap();
        let stale = vec![STALE; usize::try_from(MIB).unwrap()];
        for piece in 0..megabytes {
            file.write_all_at(&stale, piece * MIB).unwrap();
        }
        let (disk, sector) = (disk.to_str().unwrap(), sector.to_string());
        let args = ["--find", "--show", "--sector-size", &sector, disk];
        let device = run("losetup", &args);
        let group = format!("bt{}", VolumeId::new().as_uuid().simple());
        lvm("pvcreate", &["-ff", "--yes", "--zero", "y", &device]);
        lvm("vgcreate", &["--physicalextentsize", "1m", &group, &device]);
        let (storage, paths) = agent(directory.path(), &group, wipe);
        Self {
            directory,
            group,
            device,
            storage,
            paths,
            _alone: alone,
        }
    }

    /// Makes the thin pool of the pool `thin`.
    fn with_thin_pool(self, megabytes: u64) -> Self {
        let size = format!("{megabytes}m");
        let args = [
            "--type",
            "thin-pool",
            "--yes",
            "--name",
            "tp",
            "--size",
            &size,
            "--poolmetadatasize",
            "4m",
            "--chunksize",
            "64k",
            &self.group,
        ];
        lvm("lvcreate", &args);
        let pool = format!("{}/tp", self.group);
        lvm("lvchange", &["--errorwhenfull", "y", &pool]);
        self
    }

    /// The agent starts anew.
    fn restart(&mut self, wipe: VolumeWipe) {
        (self.storage, self.paths) = agent(self.directory.path(), &self.group, wipe);
    }

    /// Sweeps, as the engine does, until it succeeds: it gives up on a tool of an agent before that takes long, and says so.
    async fn sweep(&self) {
        let begun = Instant::now();
        while let Err(error) = self.storage.sweep().await {
            assert!(begun.elapsed() < limit(60), "{}", chain(&error));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn new_volume(&self, pool: &str, megabytes: u64, content: Content) -> NewVolume {
        let (id, pool) = (VolumeId::new(), pool.parse::<PoolName>().unwrap());
        let format = VolumeFormat::usual(&pool);
        NewVolume {
            path: self.paths.volume(&pool, id, format),
            id,
            pool,
            format,
            size: ByteCount::clamped(megabytes * MIB),
            content,
        }
    }

    async fn step(&self, step: StorageStep) -> Result<(), ActError> {
        let begun = Instant::now();
        let result = self.storage.apply(&step, &watch::channel(None).0).await;
        let end = result.as_ref().map_err(chain);
        println!("{} ms: {step:?}: {end:?}", begun.elapsed().as_millis());
        result
    }

    async fn make(&self, volume: &NewVolume) {
        self.step(StorageStep::CreateVolume(volume.clone()))
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.step(StorageStep::MarkVolume(volume.id)).await.unwrap();
    }

    async fn fails(&self, step: StorageStep, code: FaultCode, part: &str) {
        let error = self.step(step).await.unwrap_err();
        let text = chain(&error);
        assert_eq!(error.code, code, "{text}");
        assert!(text.contains(part), "{text}");
        assert!(error.retryable, "{text}");
    }

    async fn found(&self, volume: &NewVolume) -> VolumeFiles {
        let found = self.storage.observe_volume(volume.id, Some(&volume.pool));
        found.await.unwrap()
    }

    async fn content(&self, volume: &NewVolume) -> VolumeContent {
        let found = self.found(volume).await;
        assert!(found.made && !found.leaving && !found.partial, "{found:?}");
        match found.files.as_slice() {
            [VolumeFile { content, .. }] => content.clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn is_whole(&self, volume: &NewVolume, megabytes: u64) {
        let size = ByteCount::clamped(megabytes * MIB);
        assert_eq!(self.content(volume).await, VolumeContent::Size(size));
    }

    fn larger(&self, volume: &NewVolume, megabytes: u64) -> LargerVolume {
        LargerVolume {
            id: volume.id,
            pool: volume.pool.clone(),
            path: volume.path.clone(),
            format: volume.format,
            size: ByteCount::clamped(megabytes * MIB),
        }
    }

    /// Grows a volume and settles that.
    async fn grow(&self, volume: &NewVolume, megabytes: u64) {
        let larger = self.larger(volume, megabytes);
        let size = larger.size;
        self.step(StorageStep::GrowVolume(larger)).await.unwrap();
        assert_eq!(self.content(volume).await, VolumeContent::Grown(size));
        let stored = StoredVolume {
            id: volume.id,
            pool: volume.pool.clone(),
        };
        self.step(StorageStep::SettleVolume(stored)).await.unwrap();
        self.is_whole(volume, megabytes).await;
    }

    async fn remove(&self, volume: &NewVolume) {
        self.step(StorageStep::RemoveVolume(volume.id))
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let found = self.storage.observe_volume(volume.id, None).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
    }

    /// An image in the cache, a qcow2 of these bytes.
    async fn cached(&self, content: &[u8]) -> ImageRef {
        let (raw, packed) = (
            self.directory.path().join("content.raw"),
            self.directory.path().join("content.qcow2"),
        );
        fs::write(&raw, content).unwrap();
        let paths = [raw.to_str().unwrap(), packed.to_str().unwrap()];
        let args = [&["convert", "-f", "raw", "-O", "qcow2"], &paths[..]].concat();
        run("qemu-img", &args);
        let digest = Sha256::digest(fs::read(&packed).unwrap());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let image = ImageRef {
            url: format!("file://{}", packed.display()).parse().unwrap(),
            sha256: hex.parse().unwrap(),
            format: ImageFormat::Qcow2,
        };
        let progress = watch::channel(None).0;
        self.storage.fetch_image(&image, &progress).await.unwrap();
        image
    }

    async fn report(&self, pool: &str) -> PoolReport {
        let pools = self.storage.pools().await;
        let state = pools.into_iter().find(|it| it.name.as_str() == pool);
        state.unwrap().report.unwrap()
    }

    /// The names of all logical volumes.
    fn volumes(&self) -> Vec<String> {
        let names = lvm("lvs", &["--noheadings", "-o", "lv_name", &self.group]);
        names.lines().map(|name| name.trim().to_owned()).collect()
    }

    /// Ends the test: nothing of berth's is left, and nothing of the kernel's once the volume group is removed.
    fn end(self, foreign: &[&str]) {
        assert_eq!(self.volumes(), foreign);
        for name in foreign {
            lvm("lvremove", &["--yes", &format!("{}/{name}", self.group)]);
        }
        lvm("vgremove", &["--yes", &self.group]);
        lvm("pvremove", &["--yes", &self.device]);
        run("losetup", &["--detach", &self.device]);
        assert_eq!(run("dmsetup", &["ls"]), "No devices found");
        assert_eq!(run("losetup", &["--all"]), "");
    }
}

/// The storage of an agent that keeps its state here.
fn agent(root: &Path, group: &str, volume_wipe: VolumeWipe) -> (DirStorage, Paths) {
    agent_with(root, group, volume_wipe, BTreeMap::new())
}

/// The same, with more pools.
fn agent_with(
    root: &Path,
    group: &str,
    volume_wipe: VolumeWipe,
    more: BTreeMap<PoolName, PoolOptions>,
) -> (DirStorage, Paths) {
    let pool = |thin_pool: Option<&str>| {
        PoolOptions::Lvm(LvmPoolOptions {
            volume_group: group.parse().unwrap(),
            thin_pool: thin_pool.map(|name| name.parse().unwrap()),
        })
    };
    let options = StorageOptions {
        keep_free: KeepFree {
            bytes: ByteCount::clamped(0),
            percent: 0,
        },
        volume_wipe,
        pools: [
            ("thick".parse().unwrap(), pool(None)),
            ("thin".parse().unwrap(), pool(Some("tp"))),
        ]
        .into_iter()
        .chain(more)
        .collect(),
        ..StorageOptions::default()
    };
    let paths = Paths {
        pools: options
            .pools
            .iter()
            .map(|(name, pool)| (name.clone(), pool.place()))
            .collect(),
        ..Paths::below(&root.join("state"))
    };
    (DirStorage::new(paths.clone(), options), paths)
}

fn chain(error: &ActError) -> String {
    berth_common::telemetry::error_chain(error)
}

/// Bytes that no compression and no search for zeros makes less of (xorshift64): cheap, for all of this is emulated.
fn noise(bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = 0..bytes / 8;
    words
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

/// The first block of a text that is not all of this byte. Blocks are compared as a whole, which is quick.
fn other_than(content: &[u8], byte: u8) -> Option<usize> {
    let block = [byte; 4096];
    content
        .chunks(block.len())
        .position(|piece| *piece != block[..piece.len()])
}

/// A device begins with these bytes, and all others are zeros.
fn check(device: &Path, begins: &[u8], megabytes: u64) {
    let mut file = File::open(device).unwrap();
    let length = file.seek(SeekFrom::End(0)).unwrap();
    assert_eq!(length, megabytes * MIB, "{}", device.display());
    file.rewind().unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert!(content.starts_with(begins), "other bytes than expected");
    let other = other_than(&content[begins.len()..], 0);
    assert_eq!(other, None, "not zeros after what was written");
}

fn write(device: &Path, bytes: &[u8], at: u64) {
    let file = File::options().write(true).open(device).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

fn of(volume: &NewVolume) -> Content {
    Content::Volume(VolumeRef {
        id: volume.id,
        format: volume.format,
        pool: volume.pool.clone(),
    })
}

/// The same of a file.
fn check_local(lab: &Lab, volume: &NewVolume, begins: &[u8]) {
    let raw = lab.directory.path().join("read-back");
    let paths = [volume.path.to_str().unwrap(), raw.to_str().unwrap()];
    let args = [&["convert", "-f", "qcow2", "-O", "raw"], &paths[..]].concat();
    run("qemu-img", &args);
    check(&raw, begins, volume.size.get() / MIB);
    fs::remove_file(raw).unwrap();
}

#[tokio::test]
async fn volumes_of_every_pool_are_made_grown_copied_and_removed() {
    let lab = Lab::new(160).with_thin_pool(64);
    let content = noise(4 * MIB);
    let image = lab.cached(&content).await;
    for pool in ["thick", "thin"] {
        let empty = lab.new_volume(pool, 16, Content::Zeros);
        let full = lab.new_volume(pool, 16, Content::Image(image.clone()));
        assert!(lab.found(&empty).await.is_empty());
        for volume in [&empty, &full, &full] {
            // Repeated, it is the same.
            lab.make(volume).await;
        }
        lab.is_whole(&full, 16).await;
        check(&empty.path, &[], 16);
        check(&full.path, &content, 16);
        let owner = run("stat", &["-L", "-c", "%U", full.path.to_str().unwrap()]);
        assert_eq!(owner, "root", "the device was lent, and is root's again");
        for other in ["thick", "thin", "local"] {
            let copy = lab.new_volume(other, 20, of(&full));
            lab.make(&copy).await;
            if other == "local" && pool == "thin" {
                check_local(&lab, &copy, &content);
            } else if other == "local" {
                check_local(&lab, &copy, &content);
                let back = lab.new_volume(pool, 20, of(&copy));
                lab.make(&back).await;
                check(&back.path, &content, 20);
                lab.remove(&back).await;
            } else {
                check(&copy.path, &content, 20);
                // A copy stands alone.
                write(&copy.path, &[1; 512], 0);
            }
            lab.remove(&copy).await;
        }
        check(&full.path, &content, 16);
        lab.grow(&full, 24).await;
        check(&full.path, &content, 24);
        // What a guest wrote to the new part since is its own.
        write(&full.path, &[7; 512], 20 * MIB);
        lab.step(StorageStep::GrowVolume(lab.larger(&full, 24)))
            .await
            .unwrap();
        let mut last = [0; 512];
        let file = File::open(&full.path).unwrap();
        file.read_exact_at(&mut last, 20 * MIB).unwrap();
        assert_eq!(last, [7; 512]);
        drop(file);
        for volume in [&empty, &full] {
            lab.remove(volume).await;
        }
    }
    lab.end(&["tp"]);
}

/// Files of a pool on a disk of its own, and logical volumes.
#[tokio::test]
async fn copies_go_between_logical_volumes_and_files_on_another_disk() {
    let mut lab = Lab::new(96).with_thin_pool(32);
    let path = lab.directory.path().join("ssd");
    fs::create_dir(&path).unwrap();
    let at = path.to_str().unwrap().to_owned();
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", &at],
    );
    let ssd: PoolName = "ssd".parse().unwrap();
    let more = PoolOptions::Dir(DirPoolOptions { path });
    (lab.storage, lab.paths) = agent_with(
        lab.directory.path(),
        &lab.group,
        VolumeWipe::Zero,
        [(ssd.clone(), more)].into(),
    );
    let content = noise(4 * MIB);
    let image = lab.cached(&content).await;
    for format in [VolumeFormat::Qcow2, VolumeFormat::Raw] {
        let file = |content| {
            let volume = lab.new_volume("ssd", 8, content);
            let path = lab.paths.volume(&ssd, volume.id, format);
            NewVolume {
                format,
                path,
                ..volume
            }
        };
        let check_file = |volume: &NewVolume| match format {
            VolumeFormat::Qcow2 => check_local(&lab, volume, &content),
            VolumeFormat::Raw => check(&volume.path, &content, 8),
        };
        let full = file(Content::Image(image.clone()));
        lab.make(&full).await;
        check_file(&full);
        let snapshot = lab.new_snapshot(&full);
        lab.keep(&snapshot).await;
        for pool in ["thick", "thin"] {
            for source in [of(&full), snapshots::from(&snapshot)] {
                let copy = lab.new_volume(pool, 8, source);
                lab.make(&copy).await;
                check(&copy.path, &content, 8);
                let back = file(of(&copy));
                lab.make(&back).await;
                check_file(&back);
                lab.remove(&back).await;
                lab.remove(&copy).await;
            }
        }
        lab.step(StorageStep::RemoveSnapshot(snapshot.id))
            .await
            .unwrap();
        lab.remove(&full).await;
    }
    run("umount", &["--lazy", &at]);
    lab.end(&["tp"]);
}

#[tokio::test]
async fn a_volume_of_every_pool_is_made_from_a_snapshot_of_a_file() {
    let lab = Lab::new(96).with_thin_pool(32);
    let content = noise(4 * MIB);
    let image = lab.cached(&content).await;
    let kept = lab.new_volume("local", 8, Content::Image(image));
    lab.make(&kept).await;
    let id = SnapshotId::new();
    let snapshot = NewSnapshot {
        id,
        path: lab.paths.snapshot_file(id),
        volume: VolumeRef {
            id: kept.id,
            format: kept.format,
            pool: kept.pool.clone(),
        },
    };
    let steps = [
        StorageStep::CreateSnapshot(snapshot.clone()),
        StorageStep::MarkSnapshot(stored(&snapshot)),
    ];
    for step in steps {
        lab.step(step).await.unwrap();
    }
    let local = lab.report("local").await;
    assert_eq!(local.provisioned_bytes.get(), 16 * MIB);
    lab.remove(&kept).await;
    for pool in ["thick", "thin"] {
        let source = snapshots::from(&snapshot);
        let copy = lab.new_volume(pool, 12, source);
        lab.make(&copy).await;
        lab.is_whole(&copy, 12).await;
        check(&copy.path, &content, 12);
        lab.remove(&copy).await;
    }
    lab.step(StorageStep::RemoveSnapshot(id)).await.unwrap();
    lab.end(&["tp"]);
}

#[tokio::test]
async fn a_thin_clone_takes_nothing_and_pools_tell_how_full_they_are() {
    let lab = Lab::new(64).with_thin_pool(32);
    let source = lab.new_volume("thin", 20, Content::Zeros);
    lab.make(&source).await;
    write(&source.path, &noise(8 * MIB), 0);
    let before = lab.report("thin").await;
    assert_eq!(before.kind, PoolKind::LvmThin);
    assert_eq!(before.total_bytes.get(), 32 * MIB);
    assert_eq!(before.provisioned_bytes.get(), 20 * MIB);
    let used = before.used_bytes.get() / MIB;
    assert!((7..=9).contains(&used), "{before:?}");
    let started = Instant::now();
    let clone = lab.new_volume("thin", 24, of(&source));
    lab.make(&clone).await;
    println!("cloned in {} ms", started.elapsed().as_millis());
    check(&clone.path, &noise(8 * MIB), 24);
    let after = lab.report("thin").await;
    assert_eq!(after.provisioned_bytes.get(), 44 * MIB);
    assert!(after.used_bytes.get() / MIB <= 9, "{after:?}");
    assert!(after.metadata_percent.is_some());
    // Thin volumes of the same volume group are not those of the thick pool, and what is not berth's counts as used.
    let thick = lab.report("thick").await;
    assert_eq!(
        (thick.kind, thick.provisioned_bytes.get()),
        (PoolKind::Lvm, 0)
    );
    assert!(thick.used_bytes.get() >= 32 * MIB && thick.total_bytes.get() >= 60 * MIB);
    // A clone outlives what it was made from.
    lab.remove(&source).await;
    check(&clone.path, &noise(8 * MIB), 24);
    lab.remove(&clone).await;
    lab.end(&["tp"]);
}

#[tokio::test]
async fn a_new_volume_shows_nothing_of_what_was_there_before() {
    for wipe in [VolumeWipe::None, VolumeWipe::Zero, VolumeWipe::Discard] {
        let lab = Lab::with(48, wipe).with_thin_pool(16);
        let raw = fs::read(lab.directory.path().join("disk")).unwrap();
        let other = other_than(&raw[44 << 20..], STALE);
        assert_eq!(other, None, "the lab is as it should be");
        for pool in ["thick", "thin"] {
            let volume = lab.new_volume(pool, 8, Content::Zeros);
            lab.make(&volume).await;
            check(&volume.path, &[], 8);
            write(&volume.path, &noise(8 * MIB), 0);
            lab.remove(&volume).await;
        }
        let raw = fs::read(lab.directory.path().join("disk")).unwrap();
        let needle = &noise(8 * MIB)[4096..4096 + 512];
        let stays = raw
            .chunks_exact(512)
            .filter(|piece| *piece == needle)
            .count();
        match wipe {
            VolumeWipe::None => assert!(stays > 0, "nothing was to be wiped"),
            VolumeWipe::Zero | VolumeWipe::Discard => assert_eq!(stays, 0, "{wipe:?}"),
        }
        lab.end(&["tp"]);
    }
}

#[tokio::test]
async fn a_disk_that_takes_no_discards_is_wiped_with_zeros() {
    let lab = Lab::with(24, VolumeWipe::Discard);
    let name = lab.device.strip_prefix("/dev/").unwrap();
    let most = format!("/sys/block/{name}/queue/discard_max_bytes");
    fs::write(most, "0").unwrap();
    let volume = lab.new_volume("thick", 4, Content::Zeros);
    lab.make(&volume).await;
    write(&volume.path, &noise(4 * MIB), 0);
    lab.remove(&volume).await;
    let raw = fs::read(lab.directory.path().join("disk")).unwrap();
    let needle = &noise(4 * MIB)[4096..4096 + 512];
    assert!(raw.chunks_exact(512).all(|piece| piece != needle));
    lab.end(&[]);
}

#[tokio::test]
async fn an_image_may_end_within_a_sector_of_the_disk() {
    let lab = Lab::of_sectors(4096, 24, VolumeWipe::Zero);
    let content = noise(MIB + 512);
    let image = lab.cached(&content).await;
    let volume = lab.new_volume("thick", 4, Content::Image(image));
    lab.make(&volume).await;
    check(&volume.path, &content, 4);
    lab.remove(&volume).await;
    lab.end(&[]);
}

#[tokio::test]
async fn a_full_pool_is_told_leaves_nothing_and_is_mended() {
    let lab = Lab::new(96).with_thin_pool(8);
    // Thick: what does not fit is not begun.
    let large = lab.new_volume("thick", 90, Content::Zeros);
    let create = |volume: &NewVolume| StorageStep::CreateVolume(volume.clone());
    lab.fails(
        create(&large),
        FaultCode::DiskFull,
        "insufficient free space",
    )
    .await;
    assert!(lab.found(&large).await.is_empty());
    assert_eq!(lab.volumes(), ["tp"]);
    let small = lab.new_volume("thick", 16, Content::Zeros);
    lab.make(&small).await;
    let larger = StorageStep::GrowVolume(lab.larger(&small, 90));
    lab.fails(larger, FaultCode::DiskFull, "free space").await;
    lab.is_whole(&small, 16).await;
    lab.grow(&small, 24).await;
    check(&small.path, &[], 24);
    lab.remove(&small).await;
    // Thin: what is known not to fit is not begun, and what turns out not to fit leaves nothing.
    let image = lab.cached(&noise(12 * MIB)).await;
    let full = lab.new_volume("thin", 16, Content::Image(image.clone()));
    lab.fails(create(&full), FaultCode::DiskFull, "has").await;
    assert_eq!(lab.volumes(), ["tp"]);
    let filler = lab.new_volume("thick", 12, Content::Zeros);
    lab.make(&filler).await;
    write(&filler.path, &noise(12 * MIB), 0);
    let copy = lab.new_volume("thin", 12, of(&filler));
    lab.fails(create(&copy), FaultCode::DiskFull, "thin pool")
        .await;
    assert!(lab.found(&copy).await.is_empty());
    lab.remove(&filler).await;
    // There is room again.
    lvm("lvextend", &["--size", "40m", &format!("{}/tp", lab.group)]);
    lab.make(&full).await;
    check(&full.path, &noise(12 * MIB), 16);
    lab.remove(&full).await;
    lab.end(&["tp"]);
}

#[tokio::test]
async fn a_volume_group_inside_a_volume_is_never_looked_at() {
    let lab = Lab::new(96);
    let hostile = lab.new_volume("thick", 24, Content::Zeros);
    lab.make(&hostile).await;
    // The guest makes a volume group of the same name as the host's on its disk, with a logical volume in it.
    let disk = lab.directory.path().join("guest");
    fs::write(&disk, vec![0; 24 << 20]).unwrap();
    let inner = run("losetup", &["--find", "--show", disk.to_str().unwrap()]);
    let only = format!("{PLAIN} devices {{ filter=[\"a|{inner}|\",\"r|.*|\"] scan=[\"/dev\"] }}");
    let guest = |command: &str, args: &[&str]| run(command, &[&["--config", &only], args].concat());
    // Its tools would refuse the name of a directory that they see here, and its own machine does not have.
    let (devices, hidden) = (
        Path::new("/dev").join(&lab.group),
        Path::new("/dev/hidden-from-the-guest"),
    );
    fs::rename(&devices, hidden).unwrap();
    guest("pvcreate", &["--yes", &inner]);
    guest(
        "vgcreate",
        &["--physicalextentsize", "1m", &lab.group, &inner],
    );
    guest(
        "lvcreate",
        &[
            "--yes", "-Wn", "-Zn", "-an", "--name", "trap", "--size", "8m", &lab.group,
        ],
    );
    fs::rename(hidden, &devices).unwrap();
    run("losetup", &["--detach", &inner]);
    write(&hostile.path, &fs::read(&disk).unwrap(), 0);
    // A tool that looks there sees it: the trap is set.
    let scanned = Command::new("pvs")
        .args(["--config", &PLAIN.replace("scan_lvs=0", "scan_lvs=1")])
        .args(["--noheadings", "-o", "vg_name,vg_uuid"])
        .output()
        .unwrap();
    let scanned = String::from_utf8_lossy(&scanned.stdout).into_owned();
    assert_eq!(scanned.lines().count(), 2, "{scanned}");
    // The agent goes on as if it was not there.
    lab.is_whole(&hostile, 24).await;
    let other = lab.new_volume("thick", 16, of(&hostile));
    let refused = lab
        .step(StorageStep::CreateVolume(other))
        .await
        .unwrap_err();
    assert!(
        chain(&refused).contains("make it with at least"),
        "{}",
        chain(&refused)
    );
    let copy = lab.new_volume("thick", 24, of(&hostile));
    lab.make(&copy).await;
    lab.grow(&hostile, 32).await;
    let mut expected = [hostile.id, copy.id].map(|id| format!("berth-{id}"));
    expected.sort();
    let mut found = lab.volumes();
    found.sort();
    assert_eq!(found, expected);
    assert!(!run("dmsetup", &["ls"]).contains("trap"));
    for volume in [&hostile, &copy] {
        lab.remove(volume).await;
    }
    lab.end(&[]);
}

#[tokio::test]
async fn foreign_logical_volumes_are_never_touched_and_count() {
    let lab = Lab::new(128);
    let volume = lab.new_volume("thick", 16, Content::Zeros);
    let name = format!("berth-{}", volume.id);
    // It has the name, and not the tag.
    let make = |name: &str| {
        lvm(
            "lvcreate",
            &[
                "--yes", "-Wn", "-Zn", "--name", name, "--size", "16m", &lab.group,
            ],
        );
    };
    make(&name);
    make("root");
    let device = Path::new("/dev").join(&lab.group).join(&name);
    write(&device, b"theirs", 0);
    let part = "does not carry its tag";
    let create = StorageStep::CreateVolume(volume.clone());
    lab.fails(create, FaultCode::ForeignObject, part).await;
    lab.storage.sweep().await.unwrap();
    lab.step(StorageStep::RemoveVolume(volume.id))
        .await
        .unwrap();
    assert!(lab.found(&volume).await.is_empty());
    assert!(lab.storage.volumes_with_files().await.unwrap().is_empty());
    let mut begins = [0; 6];
    File::open(&device)
        .unwrap()
        .read_exact(&mut begins)
        .unwrap();
    assert_eq!(&begins, b"theirs");
    let report = lab.report("thick").await;
    assert_eq!(report.used_bytes.get(), 32 * MIB);
    assert_eq!(report.provisioned_bytes.get(), 0);
    lvm("lvremove", &["--yes", &format!("{}/{name}", lab.group)]);
    lab.make(&volume).await;
    assert_eq!(lab.report("thick").await.provisioned_bytes.get(), 16 * MIB);
    // What it grows by lies behind another one, and it is still one volume.
    lab.grow(&volume, 24).await;
    let segments = lvm("lvs", &["--noheadings", "--segments", &lab.group]);
    assert_eq!(segments.lines().count(), 3, "{segments}");
    assert_eq!(lab.report("thick").await.provisioned_bytes.get(), 24 * MIB);
    // A snapshot that somebody made of it is not removed with it.
    write(&volume.path, b"ours", 0);
    let (full, backup) = (
        format!("{}/{name}", lab.group),
        format!("{}/backup", lab.group),
    );
    lvm(
        "lvcreate",
        &["--yes", "-s", "--name", "backup", "--size", "4m", &full],
    );
    let remove = StorageStep::RemoveVolume(volume.id);
    lab.fails(remove, FaultCode::ForeignObject, &backup).await;
    check(&volume.path, b"ours", 24);
    check(&Path::new("/dev").join(&backup), b"ours", 24);
    lvm("lvremove", &["--yes", &backup]);
    lab.remove(&volume).await;
    lab.end(&["root"]);
}

/// Not a test: the agent that [`an_agent_that_is_killed_leaves_nothing_half`] kills. It makes and grows volumes for ever.
#[tokio::test]
async fn victim() {
    let Ok(text) = std::env::var(VICTIM) else {
        return;
    };
    let (root, group) = text.split_once(' ').unwrap();
    let _state = StateDir::open(Path::new(root)).unwrap();
    let (storage, paths) = agent(Path::new(root), group, VolumeWipe::Zero);
    let progress = watch::channel(None).0;
    loop {
        for pool in ["thick", "thin"] {
            let (id, pool) = (VolumeId::new(), pool.parse::<PoolName>().unwrap());
            let path = paths.volume(&pool, id, VolumeFormat::Raw);
            let new = NewVolume {
                id,
                path: path.clone(),
                pool: pool.clone(),
                format: VolumeFormat::Raw,
                size: ByteCount::clamped(16 * MIB),
                content: Content::Zeros,
            };
            let larger = LargerVolume {
                id,
                path,
                pool,
                format: VolumeFormat::Raw,
                size: ByteCount::clamped(24 * MIB),
            };
            let kept = SnapshotId::new();
            let snapshot = NewSnapshot {
                id: kept,
                path: paths.snapshot(&larger.pool, kept),
                volume: VolumeRef {
                    id,
                    format: VolumeFormat::Raw,
                    pool: larger.pool.clone(),
                },
            };
            for step in [
                StorageStep::CreateVolume(new),
                StorageStep::MarkVolume(id),
                StorageStep::CreateSnapshot(snapshot.clone()),
                StorageStep::MarkSnapshot(stored(&snapshot)),
                StorageStep::GrowVolume(larger),
                StorageStep::RemoveSnapshot(snapshot.id),
                StorageStep::RemoveVolume(id),
            ] {
                storage.apply(&step, &progress).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn an_agent_that_is_killed_leaves_nothing_half() {
    let mut lab = Lab::new(160).with_thin_pool(48);
    for round in 0..5_u32 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture"])
            .env(
                VICTIM,
                format!("{} {}", lab.directory.path().display(), lab.group),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Duration::from_millis(1500 + 1300 * u64::from(round));
        let begun = Instant::now();
        while begun.elapsed() < until && victim.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(
            victim.try_wait().unwrap().is_none(),
            "it works until it is killed"
        );
        victim.kill().unwrap();
        victim.wait().unwrap();
        // Its lock is held by what it had begun to start, until that is one of LVM's tools, which a sweep waits for.
        drop(StateDir::open(lab.directory.path()).unwrap());
        lab.restart(VolumeWipe::Zero);
        lab.sweep().await;
        for id in lab.storage.volumes_with_files().await.unwrap() {
            let found = lab.storage.observe_volume(id, None).await.unwrap();
            assert!(!found.partial, "{found:?}");
            for file in &found.files {
                let path = lab.paths.volume(&file.pool, id, file.format);
                match &file.content {
                    // Whole, and not a byte of what was there before.
                    VolumeContent::Size(size) | VolumeContent::Grown(size) => {
                        check(&path, &[], size.get() / MIB);
                    }
                    VolumeContent::Growing(from) => {
                        let larger = LargerVolume {
                            id,
                            path: path.clone(),
                            pool: file.pool.clone(),
                            format: file.format,
                            size: ByteCount::clamped(24 * MIB),
                        };
                        assert_eq!(from.get(), 16 * MIB);
                        lab.step(StorageStep::GrowVolume(larger)).await.unwrap();
                        check(&path, &[], 24);
                    }
                    other => panic!("{other:?}"),
                }
            }
            println!("round {round}: {found:?}");
            lab.step(StorageStep::RemoveVolume(id)).await.unwrap();
        }
        for id in lab.storage.snapshots_with_files().await.unwrap() {
            let found = lab.storage.observe_snapshot(id, None).await.unwrap();
            println!("round {round}: {found:?}");
            lab.step(StorageStep::RemoveSnapshot(id)).await.unwrap();
        }
        assert_eq!(lab.volumes(), ["tp"], "round {round}");
    }
    lab.end(&["tp"]);
}

#[tokio::test]
async fn volumes_that_are_not_active_are_activated_and_ill_pools_are_told() {
    let mut lab = Lab::new(96).with_thin_pool(24);
    let volume = lab.new_volume("thick", 16, Content::Zeros);
    lab.make(&volume).await;
    let local = lab.new_volume("local", 16, Content::Zeros);
    lab.make(&local).await;
    // As after a boot of the host.
    lvm("vgchange", &["--activate", "n", &lab.group]);
    assert!(!volume.path.exists());
    lvm(
        "lvchange",
        &["--activate", "y", &format!("{}/tp", lab.group)],
    );
    assert_eq!(lab.content(&volume).await, VolumeContent::Inactive);
    let stored = StoredVolume {
        id: volume.id,
        pool: volume.pool.clone(),
    };
    lab.step(StorageStep::ActivateVolume(stored)).await.unwrap();
    lab.is_whole(&volume, 16).await;
    check(&volume.path, &[], 16);
    // The agent is told of a volume group that is not there.
    let group = std::mem::replace(&mut lab.group, "btnothing".to_owned());
    lab.restart(VolumeWipe::None);
    let pools = lab.storage.pools().await;
    let ill = pools.iter().filter(|pool| pool.report.is_err()).count();
    assert_eq!(ill, 2, "{pools:?}");
    let why = pools[1].report.as_ref().unwrap_err();
    assert!(
        why.contains("Volume group \"btnothing\" not found"),
        "{why}"
    );
    // Files go on; what may lie there does not count as gone.
    lab.is_whole(&local, 16).await;
    lab.remove(&local).await;
    let lost = lab
        .storage
        .observe_volume(volume.id, None)
        .await
        .unwrap_err();
    assert!(chain(&lost).contains("not found"), "{}", chain(&lost));
    let step = StorageStep::RemoveVolume(volume.id);
    assert!(lab.step(step).await.is_err());
    // Of what was never there nobody is kept from saying that it is gone.
    let never = lab.storage.observe_volume(VolumeId::new(), None).await;
    assert!(never.unwrap().is_empty());
    lab.group = group;
    lab.restart(VolumeWipe::None);
    // A thin pool that does not fill with zeros is none.
    lvm("lvchange", &["--zero", "n", &format!("{}/tp", lab.group)]);
    let pools = lab.storage.pools().await;
    let why = pools.iter().find_map(|pool| pool.report.as_ref().err());
    assert!(
        why.unwrap().contains("does not fill extents with zeros"),
        "{why:?}"
    );
    lvm("lvchange", &["--zero", "y", &format!("{}/tp", lab.group)]);
    lab.remove(&volume).await;
    lab.end(&["tp"]);
}

#[tokio::test]
async fn a_leftover_that_is_open_keeps_no_other_from_going() {
    let lab = Lab::new(48).with_thin_pool(16);
    let mut ids = [VolumeId::new(), VolumeId::new()];
    ids.sort_unstable();
    let [held, other] = ids.map(|id| format!("berth-tmp-{id}"));
    for (id, name) in ids.iter().zip([&held, &other]) {
        let tag = format!("berth.volume={id}");
        let args = ["--yes", "-Wn", "-Zn", "--addtag", &tag, "--size", "4m"];
        let place = ["--name", name, &lab.group];
        lvm("lvcreate", &[&args[..], &place[..]].concat());
    }
    let device = Path::new("/dev").join(&lab.group).join(&held);
    let file = File::open(device).unwrap();
    let told = lab.storage.sweep().await.unwrap_err().to_string();
    assert!(told.contains(&held) && !told.contains(&other), "{told}");
    let mut left = lab.volumes();
    left.sort_unstable();
    assert_eq!(left, [held.as_str(), "tp"]);
    drop(file);
    lab.storage.sweep().await.unwrap();
    lab.end(&["tp"]);
}

/// All that is needed is there: nothing here may pass because it did not run.
#[test]
fn this_kernel_has_what_pools_need() {
    let targets = run("dmsetup", &["targets"]);
    for target in ["thin-pool", "thin", "linear"] {
        assert!(targets.contains(target), "no target {target}:\n{targets}");
    }
    assert!(PathBuf::from("/dev/loop-control").exists());
}
