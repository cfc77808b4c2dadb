//! Storage pools of type `dir`, on real file systems of their own that come and go.

use berth_agent::{
    act::storage::{DirPoolOptions, PoolOptions, VolumeWipe, check_dir_pools},
    decide::{
        snapshot::{NewSnapshot, SnapshotFiles, StoredSnapshot},
        volume::{Content, LargerVolume, NewVolume},
    },
};
use berth_common::{
    document::{SnapshotRef, VolumeFormat, VolumeRef},
    ids::{SnapshotId, VolumeId},
    message::heartbeat::{PoolKind, PoolReport},
    names::PoolName,
};
use nix::mount::{MntFlags, umount2};

use super::{
    volumes::{FORMATS, check_content, meanwhile, run, slow_qemu_img},
    *,
};

/// How long berth's mark is called.
const MARK: &str = ".berth-pool";

fn ssd() -> PoolName {
    "ssd".parse().unwrap()
}

fn must(program: &str, args: &[&str], paths: &[&Path]) {
    let run = Command::new(program).args(args).args(paths).output();
    let output = run.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
}

/// A disk that keeps what is on it while it is not mounted where a pool is.
struct Disk(PathBuf);

impl Disk {
    /// One in memory, of this size.
    fn new(root: &Path, name: &str, size: &str) -> Self {
        let at = root.join("disks").join(name);
        fs::create_dir_all(&at).unwrap();
        let (none, size) = (MsFlags::empty(), format!("size={size},mode=755"));
        mount(
            Some("berth-test"),
            &at,
            Some("tmpfs"),
            none,
            Some(size.as_str()),
        )
        .unwrap();
        Self(at)
    }

    /// One with a real file system, of 320 MiB in a file.
    fn formatted(root: &Path, name: &str, kind: &str, flags: &[&str]) -> Self {
        let disk = Self(root.join("disks").join(name));
        fs::create_dir_all(&disk.0).unwrap();
        let file = root.join(format!("{name}.disk"));
        fs::File::create(&file)
            .and_then(|file| file.set_len(320 * MIB))
            .unwrap();
        must(&format!("mkfs.{kind}"), flags, &[&file]);
        must("mount", &["-o", "loop"], &[&file, &disk.0]);
        disk
    }

    fn mount(&self, at: &Path) {
        let none = None::<&str>;
        mount(Some(&self.0), at, none, MsFlags::MS_BIND, none).unwrap();
    }
}

fn unmount(at: &Path) {
    // What others fork just now may have it open.
    umount2(at, MntFlags::MNT_DETACH).unwrap();
}

/// Where the pool of this name is.
fn place(root: &Path, name: &str) -> PathBuf {
    let at = root.join("srv").join(name);
    fs::create_dir_all(&at).unwrap();
    at
}

/// An agent whose state is below this directory, with these pools.
fn agent(root: &Path, pools: &[&str], change: impl FnOnce(&mut StorageOptions)) -> Host {
    Host::at(root, |options| {
        for name in pools {
            let path = place(root, name);
            let pool = PoolOptions::Dir(DirPoolOptions { path });
            options.pools.insert(name.parse().unwrap(), pool);
        }
        change(options);
    })
}

impl Host {
    fn volume_in(
        &self,
        pool: &PoolName,
        format: VolumeFormat,
        size: u64,
        content: Content,
    ) -> NewVolume {
        let id = VolumeId::new();
        NewVolume {
            pool: pool.clone(),
            path: self.paths.volume(pool, id, format),
            ..self.new_volume(format, size, content)
        }
        .with_id(id)
    }

    fn snapshot_in(&self, volume: &NewVolume) -> (NewSnapshot, StoredSnapshot) {
        let id = SnapshotId::new();
        let snapshot = NewSnapshot {
            id,
            path: self.paths.snapshot(&volume.pool, id),
            volume: reference(volume),
        };
        let pool = volume.pool.clone();
        (snapshot, StoredSnapshot { id, pool })
    }

    /// What is said of a pool.
    async fn told(&self, pool: &str) -> Result<PoolReport, String> {
        let pools = self.storage.pools().await;
        let state = pools.into_iter().find(|it| it.name.as_str() == pool);
        state.unwrap().report
    }

    async fn size_in(&self, volume: &NewVolume) -> Option<ByteCount> {
        let found = self.storage.observe_volume(volume.id, Some(&volume.pool));
        found.await.unwrap().whole(&volume.pool, volume.format)
    }
}

trait WithId {
    fn with_id(self, id: VolumeId) -> Self;
}

impl WithId for NewVolume {
    fn with_id(self, id: VolumeId) -> Self {
        Self { id, ..self }
    }
}

fn reference(volume: &NewVolume) -> VolumeRef {
    VolumeRef {
        id: volume.id,
        format: volume.format,
        pool: volume.pool.clone(),
    }
}

/// How often `qemu-img` copied.
fn copies(host: &Host) -> usize {
    let calls = host.calls();
    let copies = calls.iter().filter(|call| call.starts_with("convert"));
    copies.count()
}

/// What is in a pool, but for what its file system came with.
fn left_in(path: &Path) -> Vec<String> {
    let mut left = names(path);
    left.retain(|name| name != "lost+found");
    for directory in ["volumes", "snapshots"] {
        left.extend(names(&path.join(directory)));
    }
    left
}

/// Everything a volume goes through, in a pool of this file system, beside `local` and another pool.
fn lives_on(kind: &'static str, flags: &'static [&'static str], shares: bool) {
    on_a_small_file_system("900m", move |root| async move {
        let disk = Disk::formatted(&root, "one", kind, flags);
        let other = Disk::new(&root, "two", "64m");
        disk.mount(&place(&root, "ssd"));
        other.mount(&place(&root, "hdd"));
        let host = agent(&root, &["hdd", "ssd"], |options| {
            options.volume_wipe = VolumeWipe::Zero;
        });
        let content = noise(3 * MIB);
        let image = host.cached(&content).await;
        let pools = [ssd(), PoolName::default(), "hdd".parse().unwrap()];
        for format in FORMATS {
            let volume = host.volume_in(&ssd(), format, 8 * MIB, Content::Image(image.clone()));
            assert!(volume.path.starts_with(place(&root, "ssd")));
            host.make(&volume).await;
            check_content(&host, &volume, &content);
            let larger = LargerVolume {
                id: volume.id,
                pool: ssd(),
                path: volume.path.clone(),
                format,
                size: ByteCount::clamped(12 * MIB),
            };
            host.step(StorageStep::GrowVolume(larger)).await.unwrap();
            assert_eq!(host.size_in(&volume).await.unwrap().get(), 12 * MIB);
            let (snapshot, stored) = host.snapshot_in(&volume);
            host.step(StorageStep::CreateSnapshot(snapshot.clone()))
                .await
                .unwrap();
            host.step(StorageStep::MarkSnapshot(stored.clone()))
                .await
                .unwrap();
            let told = host.told("ssd").await.unwrap();
            assert_eq!(
                (told.kind, told.provisioned_bytes.get()),
                (PoolKind::Dir, 24 * MIB)
            );
            let total = told.total_bytes.get();
            assert!((200 * MIB..=320 * MIB).contains(&total), "{total}");
            assert!(told.used_bytes.get() > 6 * MIB);
            assert_eq!(
                host.told("local").await.unwrap().provisioned_bytes.get(),
                0,
                "nothing of it is local"
            );
            // From there to everywhere, and from everywhere back.
            for pool in &pools {
                for source in [
                    Content::Volume(reference(&volume)),
                    Content::Snapshot(SnapshotRef {
                        id: snapshot.id,
                        pool: ssd(),
                    }),
                ] {
                    let before = copies(&host);
                    let is_alike = match &source {
                        Content::Snapshot(_) => format == VolumeFormat::Qcow2,
                        _ => true,
                    };
                    let copy = host.volume_in(pool, format, 12 * MIB, source);
                    host.make(&copy).await;
                    check_content(&host, &copy, &content);
                    let is_shared = shares && is_alike && *pool == ssd();
                    assert_eq!(copies(&host) == before, is_shared, "{pool} {format:?}");
                    let back = Content::Volume(reference(&copy));
                    let back = host.volume_in(&ssd(), format, 12 * MIB, back);
                    host.make(&back).await;
                    check_content(&host, &back, &content);
                    let found = host.found(copy.id).await;
                    assert_eq!(found.whole(pool, format).unwrap().get(), 12 * MIB);
                    for id in [copy.id, back.id] {
                        host.remove_volume(id).await;
                        assert!(host.found(id).await.is_empty());
                    }
                }
            }
            // What a hypervisor writes lies beside its volume.
            let (live, stored_live) = host.snapshot_in(&volume);
            host.step(StorageStep::PrepareSnapshot(live.clone()))
                .await
                .unwrap();
            let partial = host.paths.partial_snapshot(&ssd(), live.id);
            run(
                &["convert", "-f", format.as_str(), "-O", "qcow2"],
                &[&volume.path, &partial],
            );
            host.storage.check_snapshot_room(live.id).await.unwrap();
            host.step(StorageStep::NameSnapshot(stored_live.clone()))
                .await
                .unwrap();
            host.step(StorageStep::MarkSnapshot(stored_live))
                .await
                .unwrap();
            host.storage.release_snapshot_room(live.id);
            // Whoever has it open sees what became of its bytes.
            let mut file = fs::File::open(&volume.path).unwrap();
            host.remove_volume(volume.id).await;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0));
            let listed = host.storage.snapshots_with_files().await.unwrap();
            assert_eq!(BTreeSet::from_iter(listed), [snapshot.id, live.id].into());
            for id in [snapshot.id, live.id] {
                host.step(StorageStep::RemoveSnapshot(id)).await.unwrap();
            }
            assert_eq!(host.storage.snapshots_with_files().await.unwrap(), []);
            assert_eq!(host.storage.volumes_with_files().await.unwrap(), []);
        }
        for name in ["ssd", "hdd"] {
            let mut left = left_in(&place(&root, name));
            left.retain(|name| !["volumes", "snapshots"].contains(&name.as_str()));
            assert_eq!(left, [MARK], "{name}");
        }
        assert_eq!(names(&host.paths.volumes), [""; 0]);
        assert_eq!(names(&host.paths.made), ["pool-hdd", "pool-ssd"]);
        unmount(&place(&root, "ssd"));
        must("umount", &["--lazy"], &[&disk.0]);
    });
}

#[test]
fn volumes_of_a_pool_on_ext4_live_as_those_of_local_do() {
    lives_on("ext4", &["-q", "-F"], false);
}

#[test]
fn volumes_of_a_pool_on_xfs_share_their_blocks_within_it() {
    lives_on("xfs", &["-q", "-m", "reflink=1"], true);
}

/// Checks that nothing can be done in the pool, that nothing is lost or gone, and that others go on.
async fn is_ill(host: &Host, volume: &NewVolume, snapshot: SnapshotId, parts: &[&str]) {
    let ill = |result: Result<(), ActError>| fails(result, FaultCode::Volume, true, parts);
    for pool in [None, Some(&volume.pool)] {
        let storage = &host.storage;
        ill(storage.observe_volume(volume.id, pool).await.map(drop));
        ill(storage.observe_snapshot(snapshot, pool).await.map(drop));
    }
    let another = host.volume_in(&volume.pool, VolumeFormat::Raw, MIB, Content::Zeros);
    ill(host.step(StorageStep::CreateVolume(another)).await);
    let (more, stored) = host.snapshot_in(volume);
    for step in [
        StorageStep::RemoveVolume(volume.id),
        StorageStep::RemoveSnapshot(snapshot),
        StorageStep::CreateVolume(volume.clone()),
        StorageStep::CreateSnapshot(more.clone()),
        StorageStep::PrepareSnapshot(more),
        StorageStep::NameSnapshot(stored.clone()),
        StorageStep::DiscardPartialSnapshot(stored),
        StorageStep::GrowVolume(LargerVolume {
            id: volume.id,
            pool: volume.pool.clone(),
            path: volume.path.clone(),
            format: volume.format,
            size: ByteCount::clamped(1 << 30),
        }),
    ] {
        ill(host.step(step).await);
    }
    // They are not given up, and there may be more.
    let listed = host.storage.volumes_with_files().await.unwrap();
    assert_eq!(listed, [volume.id]);
    let listed = host.storage.snapshots_with_files().await.unwrap();
    assert_eq!(listed, [snapshot]);
    let reason = host.told("ssd").await.unwrap_err();
    for part in parts {
        assert!(reason.contains(part), "{reason:?} does not say {part:?}");
    }
    host.storage.sweep().await.unwrap();
    // Other pools go on, and tombstones of what lies there.
    host.told("local").await.unwrap();
    let local = host.new_volume(VolumeFormat::Qcow2, MIB, Content::Zeros);
    host.make(&local).await;
    assert!(!host.found(local.id).await.is_empty());
    let (more, stored) = host.snapshot_in(&local);
    for step in [
        StorageStep::CreateSnapshot(more),
        StorageStep::MarkSnapshot(stored.clone()),
        StorageStep::RemoveSnapshot(stored.id),
    ] {
        host.step(step).await.unwrap();
    }
    // A tombstone names no pool.
    let left = host.storage.observe_snapshot(stored.id, None).await;
    assert_eq!(left.unwrap(), SnapshotFiles::default());
    host.remove_volume(local.id).await;
    assert!(host.found(local.id).await.is_empty());
}

/// A volume and a snapshot of it in the pool.
async fn both(host: &Host, content: &[u8]) -> (NewVolume, SnapshotId) {
    let image = host.cached(content).await;
    let volume = host.volume_in(&ssd(), VolumeFormat::Raw, 4 * MIB, Content::Image(image));
    host.make(&volume).await;
    let (snapshot, stored) = host.snapshot_in(&volume);
    for step in [
        StorageStep::CreateSnapshot(snapshot),
        StorageStep::MarkSnapshot(stored.clone()),
    ] {
        host.step(step).await.unwrap();
    }
    (volume, stored.id)
}

#[test]
fn a_pool_whose_disk_is_not_mounted_waits_for_it_and_nothing_is_written_below() {
    on_a_small_file_system("128m", |root| async move {
        let disk = Disk::new(&root, "one", "64m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let content = noise(2 * MIB);
        let host = agent(&root, &["ssd"], |_| ());
        let (volume, snapshot) = both(&host, &content).await;
        let there = left_in(&at);
        unmount(&at);
        let told = [
            "the storage pool ssd cannot be used",
            "is its disk mounted?",
        ];
        is_ill(&host, &volume, snapshot, &told).await;
        // The host boots without it, and it comes after the agent.
        let host = agent(&root, &["ssd"], |_| ());
        is_ill(&host, &volume, snapshot, &told).await;
        assert_eq!(names(&at), [""; 0]);
        fs::remove_dir(&at).unwrap();
        let told = ["there is no directory", "is its disk mounted?"];
        let gone = host.told("ssd").await.unwrap_err();
        assert!(told.iter().all(|part| gone.contains(part)), "{gone}");
        assert!(!at.exists(), "it is not made");
        fs::create_dir(&at).unwrap();
        disk.mount(&at);
        assert_eq!(left_in(&at), there);
        assert_eq!(host.size_in(&volume).await.unwrap().get(), 4 * MIB);
        check_content(&host, &volume, &content);
        host.told("ssd").await.unwrap();
        host.step(StorageStep::RemoveSnapshot(snapshot))
            .await
            .unwrap();
        host.remove_volume(volume.id).await;
        assert_eq!(left_in(&at), [MARK, "snapshots", "volumes"]);
    });
}

#[test]
fn what_is_being_wiped_is_not_gone_with_its_disk() {
    on_a_small_file_system("128m", |root| async move {
        let disk = Disk::new(&root, "one", "64m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let host = agent(&root, &["ssd"], |options| {
            options.volume_wipe = VolumeWipe::Zero;
        });
        let (volume, snapshot) = both(&host, &noise(2 * MIB)).await;
        // As an agent leaves them that ends while it wipes.
        let note = |mark: &Path| {
            let text = fs::read_to_string(mark).unwrap() + "It is being removed.\n";
            fs::write(mark, text).unwrap();
        };
        let marks = [
            host.paths.volume_mark(volume.id),
            host.paths.snapshot_mark(snapshot),
        ];
        let kept = host.paths.snapshot(&volume.pool, snapshot);
        let doomed = [volume.path.as_path(), &kept].map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let doomed = path.with_file_name(format!(".wipe-{name}"));
            fs::rename(path, &doomed).unwrap();
            doomed
        });
        marks.iter().for_each(|mark| note(mark));
        unmount(&at);
        let told = ["is its disk mounted?"];
        is_ill(&host, &volume, snapshot, &told).await;
        disk.mount(&at);
        // And one that ended when the volume was wiped, and before it was noted.
        fs::remove_file(&doomed[0]).unwrap();
        host.remove_volume(volume.id).await;
        host.step(StorageStep::RemoveSnapshot(snapshot))
            .await
            .unwrap();
        assert!(host.found(volume.id).await.is_empty());
        let left = host.storage.observe_snapshot(snapshot, None).await;
        assert_eq!(left.unwrap(), SnapshotFiles::default());
        assert!(!marks.iter().any(|mark| mark.exists()));
        assert_eq!(left_in(&at), [MARK, "snapshots", "volumes"]);
    });
}

#[test]
fn another_disk_in_the_place_of_a_pools_is_not_taken_for_it() {
    on_a_small_file_system("128m", |root| async move {
        let [right, empty, foreign] =
            ["right", "empty", "foreign"].map(|name| Disk::new(&root, name, "32m"));
        let at = place(&root, "ssd");
        // Another host used one for a pool of that name, and for one of another name.
        foreign.mount(&at);
        let text = "x\nStorage pool: ssd\nId: 0b5a\n";
        fs::write(at.join(MARK), text).unwrap();
        unmount(&at);
        right.mount(&at);
        let host = agent(&root, &["ssd"], |_| ());
        let (volume, snapshot) = both(&host, &noise(MIB)).await;
        unmount(&at);
        for (disk, left, told) in [
            (&empty, vec![], "it is missing: is its disk mounted?"),
            (&foreign, vec![MARK.to_owned()], "with the id 0b5a"),
        ] {
            disk.mount(&at);
            is_ill(&host, &volume, snapshot, &[told, "is its disk mounted?"]).await;
            assert_eq!(names(&at), left);
            unmount(&at);
        }
        right.mount(&at);
        assert_eq!(host.size_in(&volume).await.unwrap().get(), 4 * MIB);
        // One that never was a pool of this host is taken for what it says it is, and for nothing else.
        unmount(&at);
        let text = "x\nStorage pool: hdd\nId: 0b5a\n";
        fs::write(foreign.0.join(MARK), text).unwrap();
        foreign.mount(&at);
        fs::remove_file(host.paths.pool_record(&ssd())).unwrap();
        let told = host.told("ssd").await.unwrap_err();
        assert!(told.contains("says that this is pool hdd"), "{told}");
        assert!(!host.paths.pool_record(&ssd()).exists());
    });
}

#[test]
fn a_pools_mark_is_made_once_wherever_the_agent_ends_meanwhile() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let new = || agent(&root, &["ssd"], |_| ());
        let record = new().paths.pool_record(&ssd());
        let half = |directory: &Path, name: &str| {
            fs::create_dir_all(directory).unwrap();
            fs::write(directory.join(name), "Storage pool: s").unwrap();
        };
        // While it writes the mark: what is not whole has another name. An operator's file is not berth's.
        half(&at, &format!(".new-1{MARK}"));
        fs::write(at.join(".new-notes"), "x").unwrap();
        fs::write(at.join(".tmp-notes"), "x").unwrap();
        let host = new();
        host.told("ssd").await.unwrap();
        host.storage.sweep().await.unwrap();
        assert_eq!(names(&at), [MARK, ".new-notes", ".tmp-notes"]);
        let mark = fs::read_to_string(at.join(MARK)).unwrap();
        assert_eq!(fs::read_to_string(&record).unwrap(), mark);
        // Between the mark and the record, and while it writes that.
        fs::remove_file(&record).unwrap();
        half(&host.paths.made, ".new-1-pool-ssd");
        let host = new();
        host.told("ssd").await.unwrap();
        assert_eq!(fs::read_to_string(at.join(MARK)).unwrap(), mark);
        assert_eq!(fs::read_to_string(&record).unwrap(), mark);
        // Many that begin at once agree.
        for path in [&record, &at.join(MARK)] {
            fs::remove_file(path).unwrap();
        }
        let host = new();
        let mut looks = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let storage = host.storage.clone();
            looks.spawn(async move {
                let pool = ssd();
                let found = storage.observe_volume(VolumeId::new(), Some(&pool));
                found.await.map(drop)
            });
        }
        while let Some(look) = looks.join_next().await {
            look.unwrap().unwrap();
        }
        let again = fs::read_to_string(at.join(MARK)).unwrap();
        assert_ne!(again, mark);
        assert_eq!(fs::read_to_string(&record).unwrap(), again);
        host.told("ssd").await.unwrap();
    });
}

/// Not a test of its own: the process that [`an_agent_that_is_killed_while_it_begins_with_a_pool_harms_nothing`] kills.
#[tokio::test]
#[ignore = "another test runs it under strace, with its environment"]
async fn beginner() {
    let Ok(root) = std::env::var("BERTH_TEST_ROOT") else {
        return;
    };
    let root = Path::new(&root);
    let pool = PoolOptions::Dir(DirPoolOptions {
        path: place(root, "ssd"),
    });
    let paths = Paths {
        pools: [(ssd(), pool.place())].into(),
        ..Paths::below(&root.join("state"))
    };
    let options = StorageOptions {
        pools: [(ssd(), pool)].into(),
        ..StorageOptions::default()
    };
    let storage = DirStorage::new(paths, options);
    let found = storage.observe_volume(VolumeId::new(), Some(&ssd())).await;
    found.unwrap();
}

#[test]
fn an_agent_that_is_killed_while_it_begins_with_a_pool_harms_nothing() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let made = root.join("state/made");
        let mut kills = BTreeMap::new();
        // Before each change of a kind that it makes, until it makes no more.
        for kind in ["fsync", "rename", "mkdir"] {
            for change in 1..20 {
                let inject = format!("inject={kind}:signal=SIGKILL:when={change}");
                let status = Command::new("strace")
                    .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
                    .args(["-e", &format!("trace={kind}")])
                    .arg(std::env::current_exe().unwrap())
                    .args(["--exact", "dirs::beginner", "--ignored"])
                    .env("BERTH_TEST_ROOT", &root)
                    .stdout(std::process::Stdio::null())
                    .status()
                    .expect("strace is installed");
                let host = agent(&root, &["ssd"], |_| ());
                host.told("ssd").await.unwrap();
                host.storage.sweep().await.unwrap();
                assert_eq!(names(&at), [MARK], "killed at {kind} {change}");
                let mark = fs::read_to_string(at.join(MARK)).unwrap();
                let record = host.paths.pool_record(&ssd());
                assert_eq!(fs::read_to_string(record).unwrap(), mark);
                fs::remove_file(at.join(MARK)).unwrap();
                fs::remove_dir_all(&made).unwrap();
                if status.success() {
                    break;
                }
                kills.insert(kind, change);
            }
        }
        // Each of two files, and its directory; a name for each; the directory of the second.
        assert_eq!(kills, [("fsync", 4), ("rename", 2), ("mkdir", 1)].into());
    });
}

#[test]
fn pools_that_share_a_file_system_are_not_used() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        // On the one of the state directory, because nothing is mounted.
        let at = place(&root, "ssd");
        let host = agent(&root, &["ssd"], |_| ());
        fs::create_dir_all(&host.paths.made).unwrap();
        let told = host.told("ssd").await.unwrap_err();
        for part in [
            "lies on the same file system as",
            "where the pool local is",
            at.to_str().unwrap(),
            "is its disk mounted?",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert_eq!(names(&at), [""; 0]);
        // Two on one.
        for name in ["ssd", "hdd"] {
            disk.mount(&place(&root, name));
        }
        let host = agent(&root, &["hdd", "ssd"], |_| ());
        for (name, other) in [("ssd", "hdd"), ("hdd", "ssd")] {
            let told = host.told(name).await.unwrap_err();
            let path = place(&root, other);
            let text = format!("as {}, which is pool {other}", path.display());
            assert!(told.contains(&text), "{told}");
        }
        assert_eq!(names(&at), [""; 0]);
        // Whoever was there first stays.
        let host = agent(&root, &["ssd"], |_| ());
        host.told("ssd").await.unwrap();
        let host = agent(&root, &["hdd", "ssd"], |_| ());
        host.told("ssd").await.unwrap();
        let told = host.told("hdd").await.unwrap_err();
        assert!(told.contains("is pool ssd"), "{told}");
        // A pool whose disk is absent takes nothing from the one that has its mount point.
        unmount(&place(&root, "ssd"));
        let second = Disk::new(&root, "two", "32m");
        second.mount(&at);
        fs::create_dir_all(at.join("volumes")).unwrap();
        host.told("hdd").await.unwrap_err();
    });
}

#[test]
fn a_pool_that_is_full_takes_no_room_of_others() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "24m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let host = agent(&root, &["ssd"], |options| {
            options.keep_free.bytes = ByteCount::clamped(2 * MIB);
        });
        // Nobody needs it, and for long.
        let idle = host.cached(&noise(7 * MIB)).await;
        let days_ago = ["-d", "2 days ago"];
        must("touch", &days_ago, &[&host.paths.image(&idle)]);
        let image = host.cached(&noise(6 * MIB)).await;
        let volume_in = |pool: &PoolName| {
            host.volume_in(
                pool,
                VolumeFormat::Raw,
                8 * MIB,
                Content::Image(image.clone()),
            )
        };
        // What is promised there is promised there alone.
        let volume = volume_in(&ssd());
        host.make(&volume).await;
        let (live, _) = host.snapshot_in(&volume);
        host.step(StorageStep::PrepareSnapshot(live.clone()))
            .await
            .unwrap();
        let filler = fill_up(&root, 11 * MIB);
        let local = volume_in(&PoolName::default());
        host.make(&local).await;
        host.remove_volume(local.id).await;
        host.storage.release_snapshot_room(live.id);
        fs::remove_file(filler).unwrap();
        // Known beforehand, and no image goes for room that it does not take.
        let filler = fill_up(&at, 5 * MIB);
        let more = volume_in(&ssd());
        fails(
            host.step(StorageStep::CreateVolume(more.clone())).await,
            FaultCode::DiskFull,
            true,
            &["has room for", at.to_str().unwrap()],
        );
        assert_eq!(host.image_files().len(), 2);
        // Taken in the middle of the copy.
        fs::remove_file(filler).unwrap();
        let taken = place(&root, "ssd").join("taken");
        fs::write(&taken, b"").unwrap();
        let take = format!("head -c 30M /dev/zero > {} 2>/dev/null", taken.display());
        slow_qemu_img(&host, "", "exec /usr/bin/qemu-img \"$@\"");
        let fill = || {
            let status = Command::new("sh").args(["-c", &take]).status();
            status.unwrap();
        };
        let step = StorageStep::CreateVolume(more.clone());
        fails(
            meanwhile(&host, step, fill).await,
            FaultCode::DiskFull,
            true,
            &[],
        );
        let files = names(&at.join("volumes"));
        assert_eq!(files, [format!("{}.raw", volume.id)]);
        qemu_img(&host, "exec /usr/bin/qemu-img \"$@\"");
        let local = volume_in(&PoolName::default());
        host.make(&local).await;
        fs::remove_file(&taken).unwrap();
        host.make(&more).await;
    });
}

#[test]
fn a_disk_that_is_taken_away_in_the_middle_of_a_copy_is_not_replaced_by_what_is_below() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let host = agent(&root, &["ssd"], |_| ());
        let image = host.cached(&noise(MIB)).await;
        let volume = host.volume_in(&ssd(), VolumeFormat::Raw, MIB, Content::Image(image));
        slow_qemu_img(&host, "/usr/bin/qemu-img \"$@\"", "");
        let step = StorageStep::CreateVolume(volume.clone());
        let result = meanwhile(&host, step, || unmount(&at)).await;
        fails(result, FaultCode::Volume, true, &["is its disk mounted?"]);
        assert_eq!(names(&at), [""; 0]);
        // What it left is swept once the disk is there.
        disk.mount(&at);
        assert_eq!(names(&at.join("volumes")).len(), 1);
        host.storage.sweep().await.unwrap();
        assert_eq!(names(&at.join("volumes")), [""; 0]);
        qemu_img(&host, "exec /usr/bin/qemu-img \"$@\"");
        host.make(&volume).await;
    });
}

#[test]
fn what_is_wrong_with_a_pools_directory_is_told_and_at_start_nothing_is_written() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        let at = place(&root, "ssd");
        let pool = PoolOptions::Dir(DirPoolOptions { path: at.clone() });
        let options = StorageOptions {
            pools: [(ssd(), pool)].into(),
            ..StorageOptions::default()
        };
        let host = agent(&root, &["ssd"], |_| ());
        fs::create_dir_all(&host.paths.made).unwrap();
        let at_start = || {
            let checked = check_dir_pools(&host.paths, &options);
            checked.into_values().next().unwrap()()
        };
        // What is told at start is what is told later.
        let told = async |part: &str| {
            let later = host.told("ssd").await.unwrap_err();
            assert!(later.contains(part), "{later}");
            assert_eq!(at_start().unwrap_err(), later);
        };
        told("lies on the same file system as").await;
        disk.mount(&at);
        let mode = |mode| fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap();
        for open in [0o777, 0o775] {
            mode(open);
            told("others than root may write to").await;
        }
        mode(0o700);
        told("not everybody can pass through").await;
        mode(0o755);
        at_start().unwrap();
        assert_eq!(names(&at), [""; 0]);
        assert_eq!(names(&host.paths.made), [""; 0]);
        // A link in the place of a directory leads nowhere.
        let link = at.join("volumes");
        let elsewhere = root.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &link).unwrap();
        let volume = host.volume_in(&ssd(), VolumeFormat::Raw, MIB, Content::Zeros);
        fails(
            host.step(StorageStep::CreateVolume(volume)).await,
            FaultCode::ForeignObject,
            false,
            &["is not a directory of berth's"],
        );
        assert_eq!(names(&elsewhere), [""; 0]);
        unmount(&at);
        fs::remove_dir(&at).unwrap();
        symlink(&elsewhere, &at).unwrap();
        told("is no directory, or a link to one").await;
    });
}

#[test]
fn no_image_is_fetched_from_a_pool_of_volumes() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let host = agent(&root, &["ssd"], |_| ());
        let path = at.join("secret");
        let bytes = noise(MIB);
        fs::write(&path, &bytes).unwrap();
        let image = image(
            &format!("file://{}", path.display()),
            &bytes,
            ImageFormat::Raw,
        );
        let refused = host.fetch(&image).await.unwrap_err();
        assert!(!refused.retryable, "{refused}");
    });
}

#[test]
fn tools_that_an_agent_before_left_running_in_a_pool_are_ended() {
    on_a_small_file_system("64m", |root| async move {
        let disk = Disk::new(&root, "one", "32m");
        let at = place(&root, "ssd");
        disk.mount(&at);
        let host = agent(&root, &["ssd"], |_| ());
        let volume = host.volume_in(&ssd(), VolumeFormat::Raw, MIB, Content::Zeros);
        host.make(&volume).await;
        let goes_on =
            "#!/bin/sh\nexec 2>/dev/null\necho $$ > $2\nwhile [ -e $0 ]; do sleep 0.01; done\n";
        install(&host.tool("qemu-img"), goes_on);
        let tool = orphan(
            &host.tool("qemu-img"),
            "65534",
            &at.join("volumes"),
            Path::new("x"),
        )
        .await;
        assert!(is_alive(tool));
        host.storage.sweep().await.unwrap();
        assert!(!is_alive(tool));
    });
}
