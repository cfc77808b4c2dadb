//! Snapshots as real files, made and read back with the real `qemu-img`.

use berth_agent::{
    act::storage::{LvmPoolOptions, PoolOptions, VolumeWipe},
    decide::{
        snapshot::{NewSnapshot, SnapshotFiles, StoredSnapshot},
        volume::{Content, NewVolume, VolumeContent},
    },
};
use berth_common::{
    document::{SnapshotRef, VolumeFormat, VolumeRef},
    ids::SnapshotId,
    names::PoolName,
};

use super::{
    volumes::{FORMATS, check_content, run},
    *,
};

impl Host {
    fn new_snapshot(&self, volume: &NewVolume) -> NewSnapshot {
        let id = SnapshotId::new();
        NewSnapshot {
            id,
            path: self.paths.snapshot_file(id),
            volume: VolumeRef {
                id: volume.id,
                format: volume.format,
                pool: volume.pool.clone(),
            },
        }
    }

    async fn keep(&self, snapshot: &NewSnapshot) {
        let create = StorageStep::CreateSnapshot(snapshot.clone());
        self.step(create).await.unwrap();
        let mark = StorageStep::MarkSnapshot(stored(snapshot.id));
        self.step(mark).await.unwrap();
    }

    async fn kept(&self, id: SnapshotId) -> SnapshotFiles {
        self.storage.observe_snapshot(id, None).await.unwrap()
    }

    fn snapshot_files(&self) -> Vec<String> {
        names(&self.paths.snapshots)
    }

    /// A hypervisor writes for a snapshot: a qcow2 of these bytes.
    fn write_live(&self, id: SnapshotId, content: &[u8]) {
        fs::create_dir_all(&self.paths.snapshots).unwrap();
        let raw = self.file("live.raw", content);
        let partial = self.paths.partial_snapshot_file(id);
        run(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &partial]);
        fs::remove_file(raw).unwrap();
    }
}

/// A snapshot of the pool `local`, as steps name it.
pub(super) fn stored(id: SnapshotId) -> StoredSnapshot {
    StoredSnapshot {
        id,
        pool: PoolName::default(),
    }
}

/// The same, as volumes name it.
pub(super) fn of(id: SnapshotId) -> SnapshotRef {
    SnapshotRef {
        id,
        pool: PoolName::default(),
    }
}

fn whole(size: u64) -> SnapshotFiles {
    SnapshotFiles {
        file: Some(VolumeContent::Size(ByteCount::clamped(size))),
        made: true,
        ..SnapshotFiles::default()
    }
}

/// A snapshot's file, to be looked at as if it were a volume's.
fn as_volume(snapshot: &NewSnapshot, size: u64) -> NewVolume {
    NewVolume {
        id: snapshot.volume.id,
        pool: snapshot.volume.pool.clone(),
        path: snapshot.path.clone(),
        format: VolumeFormat::Qcow2,
        size: ByteCount::clamped(size),
        content: Content::Zeros,
    }
}

#[tokio::test]
async fn snapshots_hold_what_volumes_held_and_volumes_are_made_from_them() {
    let host = Host::new();
    let content = noise(4 * MIB);
    let image = host.cached(&content).await;
    for format in FORMATS {
        let source = Content::Image(image.clone());
        let volume = host.new_volume(format, 8 * MIB, source);
        host.make(&volume).await;
        let snapshot = host.new_snapshot(&volume);
        assert!(host.kept(snapshot.id).await.is_empty());
        for _ in 0..2 {
            host.keep(&snapshot).await;
            assert_eq!(host.kept(snapshot.id).await, whole(8 * MIB));
        }
        let mode = fs::metadata(&snapshot.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        // Nothing of it depends on the volume.
        host.remove_volume(volume.id).await;
        check_content(&host, &as_volume(&snapshot, 8 * MIB), &content);
        for other in FORMATS {
            let source = Content::Snapshot(of(snapshot.id));
            let copy = host.new_volume(other, 12 * MIB, source);
            host.make(&copy).await;
            check_content(&host, &copy, &content);
            host.remove_volume(copy.id).await;
        }
        let ids = host.storage.snapshots_with_files().await.unwrap();
        assert_eq!(ids, [snapshot.id]);
        assert_eq!(host.storage.volumes_with_files().await.unwrap(), []);
        for _ in 0..2 {
            host.step(StorageStep::RemoveSnapshot(snapshot.id))
                .await
                .unwrap();
            assert!(host.kept(snapshot.id).await.is_empty());
        }
    }
    assert_eq!(host.snapshot_files(), [""; 0]);
    for call in host.calls() {
        assert!(call.contains(" -f "), "{call}");
    }
}

#[tokio::test]
async fn what_a_hypervisor_wrote_gets_its_name_once_and_only_if_it_is_a_disk_of_its_own() {
    let host = Host::new();
    let volume = host.new_volume(VolumeFormat::Raw, 4 * MIB, Content::Zeros);
    host.make(&volume).await;
    let snapshot = host.new_snapshot(&volume);
    let prepare = StorageStep::PrepareSnapshot(snapshot.clone());
    host.step(prepare).await.unwrap();
    let content = noise(4 * MIB);
    host.write_live(snapshot.id, &content);
    let files = host.kept(snapshot.id).await;
    assert!(files.partial && files.file.is_none(), "{files:?}");
    // A sweep leaves it: somebody may write there.
    host.storage.sweep().await.unwrap();
    assert!(host.kept(snapshot.id).await.partial);
    for _ in 0..2 {
        host.step(StorageStep::NameSnapshot(stored(snapshot.id)))
            .await
            .unwrap();
    }
    host.step(StorageStep::MarkSnapshot(stored(snapshot.id)))
        .await
        .unwrap();
    assert_eq!(host.kept(snapshot.id).await, whole(4 * MIB));
    check_content(&host, &as_volume(&snapshot, 4 * MIB), &content);
    let mode = fs::metadata(&snapshot.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    // What a guest that broke out could leave: a disk that names another file.
    let hostile = host.new_snapshot(&volume);
    let secret = host.file("secret", &noise(MIB));
    let partial = host.paths.partial_snapshot_file(hostile.id);
    run(
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b"],
        &[&secret, &partial],
    );
    fails(
        host.step(StorageStep::NameSnapshot(stored(hostile.id)))
            .await,
        FaultCode::Volume,
        true,
        &["is no qcow2 disk of its own", "backing file"],
    );
    assert!(host.kept(hostile.id).await.file.is_none());
    for _ in 0..2 {
        host.step(StorageStep::DiscardPartialSnapshot(stored(hostile.id)))
            .await
            .unwrap();
        assert!(host.kept(hostile.id).await.is_empty());
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_and_leaves_nothing() {
    let host = Host::new();
    let nobody = host.new_volume(VolumeFormat::Raw, MIB, Content::Zeros);
    let snapshot = host.new_snapshot(&nobody);
    for step in [
        StorageStep::CreateSnapshot(snapshot.clone()),
        StorageStep::PrepareSnapshot(snapshot.clone()),
    ] {
        fails(
            host.step(step).await,
            FaultCode::Volume,
            true,
            &["is not whole on this host"],
        );
    }
    let mut astray = snapshot.clone();
    astray.path = host.root.join("elsewhere");
    fails(
        host.step(StorageStep::CreateSnapshot(astray)).await,
        FaultCode::Internal,
        false,
        &["belongs at"],
    );
    let source = Content::Snapshot(of(snapshot.id));
    let copy = host.new_volume(VolumeFormat::Raw, MIB, source);
    fails(
        host.step(StorageStep::CreateVolume(copy)).await,
        FaultCode::Volume,
        true,
        &["snapshot", "is not whole on this host"],
    );
    assert!(host.kept(snapshot.id).await.is_empty());
}

#[test]
fn a_disk_that_fills_up_hurts_the_snapshot_alone() {
    on_a_small_file_system("32m", move |root| async move {
        let host = Host::at(&root, |options| {
            options.keep_free.bytes = ByteCount::clamped(MIB);
        });
        let volume = host.new_volume(VolumeFormat::Raw, 12 * MIB, Content::Zeros);
        host.make(&volume).await;
        let content = noise(12 * MIB);
        fs::write(&volume.path, &content).unwrap();
        let before = room(&root);
        let ballast = host.file("ballast", &noise(8 * MIB));
        let snapshot = host.new_snapshot(&volume);
        for step in [
            StorageStep::CreateSnapshot(snapshot.clone()),
            StorageStep::PrepareSnapshot(snapshot.clone()),
        ] {
            fails(
                host.step(step).await,
                FaultCode::DiskFull,
                true,
                &["volume", "has room for"],
            );
        }
        assert!(host.kept(snapshot.id).await.is_empty());
        assert_eq!(host.snapshot_files(), [""; 0]);
        // What a hypervisor writes is watched.
        let check = async || host.storage.check_snapshot_room(snapshot.id).await;
        check().await.unwrap();
        let more = host.file("more", &noise(room(&host.root).saturating_sub(MIB / 2)));
        fails(check().await, FaultCode::DiskFull, true, &["snapshot"]);
        for path in [more, ballast] {
            fs::remove_file(path).unwrap();
        }
        room_again(&root, before).await;
        check_content(&host, &volume, &content);
        host.keep(&snapshot).await;
        assert_eq!(host.kept(snapshot.id).await, whole(12 * MIB));
    });
}

#[test]
fn a_snapshot_that_is_being_made_keeps_the_room_that_it_still_takes() {
    on_a_small_file_system("32m", move |root| async move {
        let host = Host::at(&root, |options| {
            options.keep_free.bytes = ByteCount::clamped(MIB);
        });
        let mut snapshots = Vec::new();
        for _ in 0..2 {
            let volume = host.new_volume(VolumeFormat::Raw, 6 * MIB, Content::Zeros);
            host.make(&volume).await;
            fs::write(&volume.path, noise(6 * MIB)).unwrap();
            snapshots.push(host.new_snapshot(&volume));
        }
        host.file("ballast", &noise(room(&host.root).saturating_sub(10 * MIB)));
        let prepare = async |snapshot: &NewSnapshot| {
            let step = StorageStep::PrepareSnapshot(snapshot.clone());
            host.step(step).await
        };
        let check = async |snapshot: &NewSnapshot| {
            let checked = host.storage.check_snapshot_room(snapshot.id).await;
            checked.unwrap();
        };
        // Each fits alone, and not both.
        let [first, second] = snapshots.as_slice() else {
            panic!("there are two");
        };
        prepare(first).await.unwrap();
        prepare(first).await.unwrap();
        let full = &["volume", "has room for"];
        fails(prepare(second).await, FaultCode::DiskFull, true, full);
        // What is written of it is room that is gone, and promised no more.
        let before = room(&root);
        host.write_live(first.id, &noise(4 * MIB));
        check(first).await;
        fails(prepare(second).await, FaultCode::DiskFull, true, full);
        host.storage.release_snapshot_room(first.id);
        let partial = StorageStep::DiscardPartialSnapshot(stored(first.id));
        host.step(partial).await.unwrap();
        room_again(&root, before).await;
        prepare(second).await.unwrap();
    });
}

#[tokio::test]
async fn deleted_snapshots_are_wiped_as_volumes_are() {
    for how in [VolumeWipe::Zero, VolumeWipe::Discard] {
        let host = Host::with(|options| options.volume_wipe = how);
        let volume = host.new_volume(VolumeFormat::Raw, MIB, Content::Zeros);
        host.make(&volume).await;
        fs::write(&volume.path, noise(MIB)).unwrap();
        let snapshot = host.new_snapshot(&volume);
        host.keep(&snapshot).await;
        // One on its way out is what an agent leaves that dies while it wipes.
        let doomed = host
            .paths
            .snapshots
            .join(format!(".wipe-{}.qcow2", snapshot.id));
        fs::rename(&snapshot.path, &doomed).unwrap();
        host.write_live(snapshot.id, &noise(MIB));
        assert!(host.kept(snapshot.id).await.leaving);
        let ids = host.storage.snapshots_with_files().await.unwrap();
        assert_eq!(ids, [snapshot.id]);
        // What is wiped is seen through another name of the same bytes.
        let spy = host.root.join("spy");
        fs::hard_link(&doomed, &spy).unwrap();
        host.step(StorageStep::RemoveSnapshot(snapshot.id))
            .await
            .unwrap();
        assert!(host.kept(snapshot.id).await.is_empty());
        let left = fs::read(&spy).unwrap();
        assert!(left.iter().all(|byte| *byte == 0), "{how:?}");

        // Lost bytes cannot be wiped, and that is said.
        let lost = host.new_snapshot(&volume);
        host.keep(&lost).await;
        fs::remove_file(&lost.path).unwrap();
        fails(
            host.step(StorageStep::RemoveSnapshot(lost.id)).await,
            FaultCode::Volume,
            true,
            &["shall be wiped, and its file is missing"],
        );
    }
}

#[tokio::test]
async fn a_tombstone_of_a_snapshot_without_a_mark_waits_for_a_pool_that_cannot_be_looked_at() {
    let host = Host::with(|options| {
        let pool = LvmPoolOptions {
            volume_group: "btnothing".parse().unwrap(),
            thin_pool: None,
        };
        options
            .pools
            .insert("ill".parse().unwrap(), PoolOptions::Lvm(pool));
        options.lvm = "/nowhere/lvm".into();
    });
    let id = SnapshotId::new();
    let ill = |result: Result<(), ActError>| fails(result, FaultCode::Volume, true, &[]);
    ill(host.storage.observe_snapshot(id, None).await.map(drop));
    ill(host.step(StorageStep::RemoveSnapshot(id)).await);
    // A mark says that it lies elsewhere.
    let volume = host.new_volume(VolumeFormat::Qcow2, 8 * MIB, Content::Zeros);
    host.make(&volume).await;
    let snapshot = host.new_snapshot(&volume);
    host.keep(&snapshot).await;
    assert_eq!(host.kept(snapshot.id).await, whole(8 * MIB));
    host.step(StorageStep::RemoveSnapshot(snapshot.id))
        .await
        .unwrap();
    assert_eq!(host.snapshot_files(), [""; 0]);
}
