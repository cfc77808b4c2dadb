//! Snapshots that are logical volumes: of thin volumes while they are written to, and of thick ones, as copies.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use berth_agent::decide::snapshot::{SnapshotFiles, StoredSnapshot};

use super::*;

/// How many blocks a writer writes to in turn, and of how many bytes each.
const BLOCKS: u64 = 512;
const BLOCK: u64 = 4096;

impl Lab {
    pub(super) fn new_snapshot(&self, volume: &NewVolume) -> NewSnapshot {
        let id = SnapshotId::new();
        NewSnapshot {
            id,
            path: self.paths.snapshot(&volume.pool, id),
            volume: VolumeRef {
                id: volume.id,
                format: volume.format,
                pool: volume.pool.clone(),
            },
        }
    }

    pub(super) async fn keep(&self, snapshot: &NewSnapshot) {
        let steps = [
            StorageStep::CreateSnapshot(snapshot.clone()),
            StorageStep::MarkSnapshot(stored(snapshot)),
        ];
        for step in steps {
            self.step(step)
                .await
                .unwrap_or_else(|error| panic!("{}", chain(&error)));
        }
    }

    async fn kept(&self, snapshot: &NewSnapshot) -> SnapshotFiles {
        let found = self.storage.observe_snapshot(snapshot.id, None);
        found.await.unwrap()
    }

    async fn is_kept(&self, snapshot: &NewSnapshot, megabytes: u64) {
        let found = self.kept(snapshot).await;
        assert_eq!(found.whole(), Some(ByteCount::clamped(megabytes * MIB)));
        assert!(!found.partial, "{found:?}");
    }

    async fn forget(&self, snapshot: &NewSnapshot) {
        self.step(StorageStep::RemoveSnapshot(snapshot.id))
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let found = self.kept(snapshot).await;
        assert!(found.is_empty(), "{found:?}");
    }

    /// What LVM says of a snapshot: its permission, and whether its device is there.
    fn attributes(&self, snapshot: &NewSnapshot) -> String {
        let name = format!("{}/berth-snap-{}", self.group, snapshot.id);
        let args = ["--noheadings", "-o", "lv_permissions,lv_active", &name];
        let text = lvm("lvs", &args);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Nobody reads a snapshot any more, and so its device goes.
    async fn rests(&self, snapshot: &NewSnapshot) {
        let begun = Instant::now();
        while self.attributes(snapshot) != "read-only" {
            assert!(begun.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(!snapshot.path.exists());
    }
}

pub(super) fn stored(snapshot: &NewSnapshot) -> StoredSnapshot {
    StoredSnapshot {
        id: snapshot.id,
        pool: snapshot.volume.pool.clone(),
    }
}

pub(super) fn from(snapshot: &NewSnapshot) -> Content {
    Content::Snapshot(SnapshotRef {
        id: snapshot.id,
        pool: snapshot.volume.pool.clone(),
    })
}

/// Writes the numbers from 1 on to the blocks of a device in turn, each durably before the next one, until told to stop.
fn writer(device: &Path) -> (Arc<AtomicBool>, std::thread::JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, device) = (Arc::clone(&stop), device.to_owned());
    let thread = std::thread::spawn(move || {
        let file = File::options().write(true).open(device).unwrap();
        let mut number = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            number += 1;
            let mut block = vec![0; usize::try_from(BLOCK).unwrap()];
            block[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all_at(&block, number % BLOCKS * BLOCK).unwrap();
            file.sync_data().unwrap();
        }
        number
    });
    (stop, thread)
}

/// What a writer had written when a device was as it is; panics if that was never so.
fn moment(device: &Path) -> u64 {
    let file = File::open(device).unwrap();
    let number = |block: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
        u64::from_le_bytes(bytes)
    };
    let numbers: Vec<u64> = (0..BLOCKS).map(number).collect();
    let last = *numbers.iter().max().unwrap();
    for (block, found) in (0..BLOCKS).zip(numbers) {
        // The newest number up to the last one that belongs to this block.
        let back = (last + BLOCKS - block) % BLOCKS;
        let expected = last.saturating_sub(back);
        assert_eq!(found, expected, "block {block}, of the moment {last}");
    }
    last
}

#[tokio::test]
async fn a_thin_snapshot_is_of_one_moment_while_its_volume_is_written_to() {
    let mut lab = Lab::new(160).with_thin_pool(64);
    let volume = lab.new_volume("thin", 16, Content::Zeros);
    lab.make(&volume).await;
    write(&volume.path, &noise(4 * MIB), 8 * MIB);
    let used = lab.report("thin").await.used_bytes;
    let (stop, thread) = writer(&volume.path);
    let mut snapshots = Vec::new();
    for _ in 0..2 {
        let snapshot = lab.new_snapshot(&volume);
        lab.keep(&snapshot).await;
        // Again is the same, and of the same moment.
        lab.keep(&snapshot).await;
        lab.is_kept(&snapshot, 16).await;
        assert_eq!(lab.attributes(&snapshot), "read-only");
        assert!(!snapshot.path.exists());
        snapshots.push(snapshot);
    }
    stop.store(true, Ordering::Relaxed);
    let end = thread.join().unwrap();
    let report = lab.report("thin").await;
    assert_eq!(report.provisioned_bytes.get(), 3 * 16 * MIB);
    // It costs what changed since, which is at most all that was written to.
    let most = used.get() + 3 * BLOCKS * BLOCK + 2 * MIB;
    assert!(report.used_bytes.get() <= most, "{report:?}");

    // Its volume goes first, wiped; after a loss of its documents it is found.
    lab.remove(&volume).await;
    lab.restart(VolumeWipe::Zero);
    lab.storage.sweep().await.unwrap();
    let found = lab.storage.snapshots_with_files().await.unwrap();
    let mut ids: Vec<SnapshotId> = snapshots.iter().map(|it| it.id).collect();
    ids.sort_unstable();
    assert_eq!(found, ids);
    assert_eq!(lab.storage.volumes_with_files().await.unwrap(), []);
    let mut moments = Vec::new();
    for snapshot in &snapshots {
        let mut of_one = Vec::new();
        for pool in ["thin", "thick"] {
            let copy = lab.new_volume(pool, 20, from(snapshot));
            lab.make(&copy).await;
            lab.is_whole(&copy, 20).await;
            of_one.push(moment(&copy.path));
            let file = File::open(&copy.path).unwrap();
            let mut rest = vec![0; usize::try_from(4 * MIB).unwrap()];
            file.read_exact_at(&mut rest, 8 * MIB).unwrap();
            assert!(rest == noise(4 * MIB), "other bytes than the volume had");
            drop(file);
            write(&copy.path, &[1; 512], 0);
            lab.remove(&copy).await;
        }
        assert_eq!(of_one[0], of_one[1]);
        moments.push(of_one[0]);
        lab.rests(snapshot).await;
    }
    assert!(moments[0] < moments[1] && moments[1] <= end, "{moments:?}");
    for snapshot in &snapshots {
        lab.forget(snapshot).await;
    }
    assert_eq!(lab.report("thin").await.used_bytes.get(), 0);
    lab.end(&["tp"]);
}

#[tokio::test]
async fn a_thick_snapshot_is_a_copy_which_takes_no_part_in_its_volume() {
    let mut lab = Lab::new(128).with_thin_pool(16);
    let content = noise(4 * MIB);
    let volume = lab.new_volume("thick", 12, Content::Zeros);
    lab.make(&volume).await;
    write(&volume.path, &content, 0);
    let copied = lab.new_snapshot(&volume);
    lab.keep(&copied).await;
    lab.keep(&copied).await;
    lab.is_kept(&copied, 12).await;
    assert_eq!(lab.attributes(&copied), "read-only");
    let report = lab.report("thick").await;
    assert_eq!(report.provisioned_bytes.get(), 2 * 12 * MIB);

    // What a hypervisor writes is the snapshot once it is closed, and not before.
    let pushed = lab.new_snapshot(&volume);
    let prepare = StorageStep::PrepareSnapshot(pushed.clone());
    lab.step(prepare.clone()).await.unwrap();
    lab.step(prepare).await.unwrap();
    let found = lab.kept(&pushed).await;
    assert!(found.partial && found.file.is_none(), "{found:?}");
    let partial = lab.paths.partial_snapshot(&volume.pool, pushed.id);
    let open = File::options().write(true).open(&partial).unwrap();
    let held = lab.step(StorageStep::DiscardPartialSnapshot(stored(&pushed)));
    held.await.unwrap_err();
    open.write_all_at(&content, 0).unwrap();
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        drop(open);
    });
    lab.step(StorageStep::NameSnapshot(stored(&pushed)))
        .await
        .unwrap();
    assert!(closing.is_finished(), "it was open still");
    closing.join().unwrap();
    lab.step(StorageStep::MarkSnapshot(stored(&pushed)))
        .await
        .unwrap();
    lab.is_kept(&pushed, 12).await;
    assert_eq!(lab.attributes(&pushed), "read-only");

    // What nobody saw end well is discarded, and goes with its tombstone too.
    let left = lab.new_snapshot(&volume);
    for step in [
        StorageStep::PrepareSnapshot(left.clone()),
        StorageStep::DiscardPartialSnapshot(stored(&left)),
        StorageStep::PrepareSnapshot(left.clone()),
    ] {
        lab.step(step).await.unwrap();
    }
    lab.restart(VolumeWipe::Zero);
    lab.storage.sweep().await.unwrap();
    assert!(lab.kept(&left).await.partial);
    lab.forget(&left).await;

    write(&volume.path, &[9; 4096], 0);
    lab.remove(&volume).await;
    for (snapshot, pool) in [(&copied, "thick"), (&pushed, "thin")] {
        let copy = lab.new_volume(pool, 14, from(snapshot));
        lab.make(&copy).await;
        let mut begins = vec![0; content.len()];
        let file = File::open(&copy.path).unwrap();
        file.read_exact_at(&mut begins, 0).unwrap();
        assert!(begins == content, "other bytes than the volume had");
        drop(file);
        lab.remove(&copy).await;
        lab.rests(snapshot).await;
    }
    let copy = lab.new_volume("local", 12, from(&copied));
    lab.make(&copy).await;
    check_local(&lab, &copy, &content);
    lab.remove(&copy).await;
    lab.rests(&copied).await;
    for snapshot in [&copied, &pushed] {
        lab.forget(snapshot).await;
    }
    lab.end(&["tp"]);
}

#[tokio::test]
async fn snapshots_without_room_or_with_a_foreign_name_are_refused_and_harm_nothing() {
    let lab = Lab::new(64).with_thin_pool(8);
    // Thick: a copy that does not fit is not begun.
    let thick = lab.new_volume("thick", 30, Content::Zeros);
    lab.make(&thick).await;
    let snapshot = lab.new_snapshot(&thick);
    let create = StorageStep::CreateSnapshot(snapshot.clone());
    lab.fails(create, FaultCode::DiskFull, "insufficient free space")
        .await;
    assert!(lab.kept(&snapshot).await.is_empty());
    lab.remove(&thick).await;
    // Thin: one that is full gets no more.
    let content = noise(6 * MIB);
    let thin = lab.new_volume("thin", 16, Content::Zeros);
    lab.make(&thin).await;
    write(&thin.path, &content, 0);
    let filler = lab.new_volume("thin", 16, Content::Zeros);
    lab.make(&filler).await;
    let file = File::options().write(true).open(&filler.path).unwrap();
    let full = file
        .write_all_at(&noise(4 * MIB), 0)
        .and_then(|()| file.sync_all());
    full.unwrap_err();
    drop(file);
    let snapshot = lab.new_snapshot(&thin);
    let create = StorageStep::CreateSnapshot(snapshot.clone());
    lab.fails(create, FaultCode::DiskFull, "thin pool").await;
    assert!(lab.kept(&snapshot).await.is_empty());
    check(&thin.path, &content, 16);
    lvm("lvextend", &["--size", "24m", &format!("{}/tp", lab.group)]);
    // Somebody else has its name.
    let name = format!("berth-snap-{}", snapshot.id);
    lvm(
        "lvcreate",
        &["--yes", "--size", "1m", "--name", &name, &lab.group],
    );
    let create = StorageStep::CreateSnapshot(snapshot.clone());
    let part = "is in the way of snapshot";
    lab.fails(create, FaultCode::ForeignObject, part).await;
    assert!(lab.kept(&snapshot).await.is_empty());
    lvm("lvremove", &["--yes", &format!("{}/{name}", lab.group)]);
    // There is room again.
    lab.keep(&snapshot).await;
    lab.is_kept(&snapshot, 16).await;
    for volume in [&thin, &filler] {
        lab.remove(volume).await;
    }
    lab.forget(&snapshot).await;
    lab.end(&["tp"]);
}

#[tokio::test]
async fn wiping_what_a_snapshot_shares_does_not_fill_its_thin_pool() {
    for discards in ["passdown", "ignore"] {
        let lab = Lab::new(64).with_thin_pool(20);
        // LVM passes them down unless it is told otherwise, and refuses to be told what it does already.
        if discards != "passdown" {
            let pool = format!("{}/tp", lab.group);
            lvm("lvchange", &["--activate", "n", &pool]);
            lvm("lvchange", &["--discards", discards, &pool]);
            lvm("lvchange", &["--activate", "y", &pool]);
        }
        let content = noise(12 * MIB);
        let volume = lab.new_volume("thin", 16, Content::Zeros);
        lab.make(&volume).await;
        write(&volume.path, &content, 0);
        let snapshot = lab.new_snapshot(&volume);
        lab.keep(&snapshot).await;
        // Zeros for all that both have would take more than is free.
        lab.remove(&volume).await;
        let used = lab.report("thin").await.used_bytes.get();
        assert!(used <= 13 * MIB, "{used}, {discards}");
        let copy = lab.new_volume("thin", 16, from(&snapshot));
        lab.make(&copy).await;
        check(&copy.path, &content, 16);
        lab.remove(&copy).await;
        lab.forget(&snapshot).await;
        assert_eq!(lab.report("thin").await.used_bytes.get(), 0);
        lab.end(&["tp"]);
    }
}
