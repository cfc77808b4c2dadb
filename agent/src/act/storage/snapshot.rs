//! Snapshots of pools of files: making them, looking at them and removing them.
//!
//! Such a snapshot is a qcow2 file of its own, with nothing below it. Of a volume that no guest has it is made as a copy is;
//! that of a guest that is on is written by its hypervisor into a partial file, which gets its name here once it is whole.
//! What a hypervisor wrote is inspected first: it belongs to a process that a guest may have taken over.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_common::{document::VolumeFormat, ids::SnapshotId};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};

use super::{
    Inner, VolumeWipe,
    atomic::{remove_durably, sync_directory, write_atomically},
    convert::{lent, take_back},
    disk,
    fault::StorageFault,
    fetch::reserve,
    file_pool::FilePool,
    instances::{self, is_file},
    original,
    room::{Load, Share},
    volume::{self, MARK_POOL, Target, WIPE},
};
use crate::{
    act::{Progress, command::Account},
    decide::{
        instance::Paths,
        pool::FilesPlace,
        snapshot::{NewSnapshot, SnapshotFiles, StoredSnapshot},
        volume::VolumeContent,
    },
};

/// The unit of `st_blocks`, in bytes.
const BLOCK: u64 = 512;
/// Prefix of a file that a hypervisor writes.
const LIVE: &str = ".live-";
/// How often it is asked whether a hypervisor has closed a file, and how many times.
const CLOSED_EVERY: Duration = Duration::from_millis(100);
const CLOSED_LOOKS: u32 = 300;
/// What the mark of a snapshot says, for people: that it is there is all that counts.
const MARK: &str = "This snapshot was made. Without its file it was lost, or its disk is absent.\n";

/// What is there of a snapshot in a pool of files. Whether it was made once is not asked here.
pub(super) fn observe(pool: &FilePool, id: SnapshotId) -> Result<SnapshotFiles, StorageFault> {
    let path = pool.place.snapshot(id);
    let file = if is_file(&path)? {
        Some(volume::content(&path, VolumeFormat::Qcow2)?)
    } else {
        None
    };
    Ok(SnapshotFiles {
        file,
        made: false,
        leaving: is_file(&leaving(pool, id))?,
        partial: is_file(&pool.place.partial_snapshot(id))?,
    })
}

/// Ids of all snapshots of which anything is there in a pool of files.
pub(super) fn list(pool: &FilePool) -> Result<Vec<SnapshotId>, StorageFault> {
    let names = instances::entries(&pool.place.snapshots)?.unwrap_or_default();
    let of_file = |name: &String| {
        let bare = [WIPE, LIVE]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        let id = bare.strip_suffix(".qcow2")?;
        let parsed = id.parse::<SnapshotId>().ok();
        parsed.filter(|parsed| parsed.to_string() == id)
    };
    let mut ids: Vec<SnapshotId> = names.iter().filter_map(of_file).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Ids of all snapshots that were made, in whatever pool.
pub(super) fn marked(paths: &Paths) -> Result<Vec<SnapshotId>, StorageFault> {
    let marks = instances::entries(&paths.made)?.unwrap_or_default();
    let of_mark = |name: &String| name.strip_prefix("snapshot-")?.parse().ok();
    Ok(marks.iter().filter_map(of_mark).collect())
}

/// The place of a deleted snapshot that is being wiped.
fn leaving(pool: &FilePool, id: SnapshotId) -> PathBuf {
    pool.place.snapshots.join(format!("{WIPE}{id}.qcow2"))
}

fn in_place(pool: &FilePool, plan: &NewSnapshot) -> Result<(), StorageFault> {
    let expected = pool.place.snapshot(plan.id);
    if plan.path == expected {
        return Ok(());
    }
    Err(StorageFault::SnapshotPlace {
        id: plan.id,
        expected,
        path: plan.path.clone(),
    })
}

/// Makes a snapshot of a volume that no guest has open, unless it is there.
pub(super) async fn create(
    inner: &Arc<Inner>,
    pool: &Arc<FilePool>,
    plan: &NewSnapshot,
    progress: &Progress,
) -> Result<(), StorageFault> {
    let (its, planned) = (Arc::clone(pool), plan.clone());
    let is_there = move || {
        in_place(&its, &planned)?;
        its.on_disk(|| is_file(&planned.path))
    };
    if pool.threads.run(is_there).await? {
        return Ok(());
    }
    let original = original::volume(inner, &plan.volume).await?;
    let (shared, its, id) = (Arc::clone(inner), Arc::clone(pool), plan.id);
    let prepare = move || {
        let account = Account::named(&shared.options.qemu_img_user)?;
        its.on_disk(|| {
            its.make(&its.place.snapshots)?;
            let temporary = shared
                .temporaries
                .claim(&its.place.snapshots, &id.to_string())?;
            lent(temporary.path(), account)?;
            Ok((account, temporary))
        })
    };
    let (account, temporary) = pool.threads.run(prepare).await?;
    let target = Target {
        file: temporary.path().to_owned(),
        format: VolumeFormat::Qcow2,
        size: original.size,
        directory: pool.place.snapshots.clone(),
    };
    let failed = |source| StorageFault::Snapshot {
        id: plan.id,
        path: plan.path.clone(),
        source,
    };
    volume::copy(inner, &target, (original, account), progress, failed).await?;
    let (its, path) = (Arc::clone(pool), plan.path.clone());
    inner
        .slow_files
        .run(move || its.on_disk(|| disk::finish(temporary, path)))
        .await
}

/// Sees that there is a place and room for what a hypervisor will write.
pub(super) async fn prepare(
    inner: &Arc<Inner>,
    pool: &Arc<FilePool>,
    plan: &NewSnapshot,
) -> Result<(), StorageFault> {
    in_place(pool, plan)?;
    let original = original::volume(inner, &plan.volume).await?;
    let (shared, its, id) = (Arc::clone(inner), Arc::clone(pool), plan.id);
    let prepare = move || {
        its.on_disk(|| {
            its.make(&its.place.snapshots)?;
            let load = Load {
                verb: "copying",
                what: original.what,
            };
            shared.live.end(id);
            let share = reserve(&shared, &its.place.snapshots, &load, original.allocated)?;
            shared.live.begin(id, share, Arc::clone(&its));
            Ok(())
        })
    };
    pool.threads.run(prepare).await
}

/// Whether what a hypervisor writes leaves the room that is kept for guests.
pub(super) async fn check_room(inner: &Arc<Inner>, id: SnapshotId) -> Result<(), StorageFault> {
    if let Some((share, pool)) = inner.live.get(id) {
        let its = Arc::clone(&pool);
        let look = move || {
            // A sparse file has what was written, and no more.
            let written = match fs::metadata(its.place.partial_snapshot(id)) {
                Ok(metadata) => metadata.blocks().saturating_mul(BLOCK),
                Err(_) => 0,
            };
            lock_whole(&share).written(written)
        };
        return pool.threads.run(look).await;
    }
    let load = Load {
        verb: "copying",
        what: format!("the volume for snapshot {id}"),
    };
    let shared = Arc::clone(inner);
    let look = move || {
        let directory = &shared.paths.snapshots;
        let mut share = shared.room.reserve(directory, load, Some(0))?;
        share.taken(0)
    };
    inner.files.run(look).await
}

/// What is promised to those snapshots that hypervisors are about to write, or write just now: another one begins only if
/// it fits beside them. Each with the pool it is written to.
///
/// Nothing is asked of a disk while the map is locked: whoever ends one does not wait for it.
#[derive(Debug, Default)]
pub(super) struct LiveShares(Mutex<BTreeMap<SnapshotId, LiveShare>>);

type LiveShare = (Arc<Mutex<Share>>, Arc<FilePool>);

impl LiveShares {
    fn begin(&self, id: SnapshotId, share: Share, pool: Arc<FilePool>) {
        let share = Arc::new(Mutex::new(share));
        lock_whole(&self.0).insert(id, (share, pool));
    }

    fn get(&self, id: SnapshotId) -> Option<LiveShare> {
        lock_whole(&self.0).get(&id).cloned()
    }

    /// Gives back what is left of it.
    pub(super) fn end(&self, id: SnapshotId) {
        lock_whole(&self.0).remove(&id);
    }
}

/// Whoever panicked under one of these locks left it whole.
fn lock_whole<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the file that a hypervisor has written, whole, the snapshot's name.
///
/// libvirt tells the end of a job a moment before QEMU closes the file, and only then the last of its tables are written.
pub(super) async fn name(
    inner: &Arc<Inner>,
    pool: &Arc<FilePool>,
    id: SnapshotId,
) -> Result<(), StorageFault> {
    for _ in 0..CLOSED_LOOKS {
        let its = Arc::clone(pool);
        let look = inner
            .slow_files
            .run(move || its.on_disk(|| name_closed(&its.place, id)));
        if look.await? {
            return Ok(());
        }
        tokio::time::sleep(CLOSED_EVERY).await;
    }
    Err(StorageFault::SnapshotOpen {
        id,
        path: pool.place.partial_snapshot(id),
    })
}

/// The same, if nobody has the file open any more; answers whether that is so.
fn name_closed(place: &FilesPlace, id: SnapshotId) -> Result<bool, StorageFault> {
    let (partial, path) = (place.partial_snapshot(id), place.snapshot(id));
    if is_file(&path)? {
        return Ok(true);
    }
    let failed = |source| StorageFault::io("write to disk", &partial, source);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&partial)
        .map_err(failed)?;
    if !is_closed(&file).map_err(failed)? {
        return Ok(false);
    }
    take_back(&file, &partial, disk::DISK_MODE)?;
    if let VolumeContent::Unreadable(why) = volume::content(&partial, VolumeFormat::Qcow2)? {
        return Err(StorageFault::SnapshotBroken {
            id,
            path: partial,
            why,
        });
    }
    file.sync_all().map_err(failed)?;
    fs::rename(&partial, &path)
        .and_then(|()| sync_directory(&place.snapshots))
        .map_err(|source| StorageFault::io("give its final name to", &path, source))?;
    unlock(&file).map_err(failed)?;
    Ok(true)
}

/// Whether no QEMU has a file open: each holds locks on a few bytes of those it has (`RAW_LOCK_PERM_BASE` and
/// `RAW_LOCK_SHARED_BASE` in its `block/file-posix.c`). The lock taken here ends with the file.
fn is_closed(file: &File) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends the lock now: a process that is being started has the file open too, until it runs its program.
fn unlock(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK)))?;
    Ok(())
}

/// The bytes that QEMU locks.
fn lock(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 100,
        l_len: 200,
        l_pid: 0,
    }
}

/// Removes the file that a hypervisor wrote.
pub(super) fn discard(pool: &FilePool, id: SnapshotId) -> Result<(), StorageFault> {
    let path = pool.place.partial_snapshot(id);
    pool.on_disk(|| {
        remove_durably(&path).map_err(|source| StorageFault::io("remove", &path, source))
    })
}

/// Notes durably that a snapshot was made, and in which pool.
pub(super) fn mark(paths: &Paths, of: &StoredSnapshot) -> Result<(), StorageFault> {
    let path = paths.snapshot_mark(of.id);
    if is_file(&path)? {
        return Ok(());
    }
    instances::make_root(&paths.made)?;
    let text = format!("{MARK}{MARK_POOL}{}\n", of.pool);
    write_atomically(&path, text.as_bytes())
        .map_err(|source| StorageFault::io("write", &path, source))
}

/// Takes a snapshot's name from one of its files; answers what is to be wiped before it is removed.
pub(super) fn take_name(
    pool: &FilePool,
    how: VolumeWipe,
    id: SnapshotId,
) -> Result<Option<PathBuf>, StorageFault> {
    let place = &pool.place;
    let doomed = leaving(pool, id);
    let files = [place.snapshot(id), place.partial_snapshot(id)];
    match how {
        VolumeWipe::None => {
            for path in files.iter().chain([&doomed]) {
                if is_file(path)? {
                    remove_durably(path)
                        .map_err(|source| StorageFault::io("remove", path, source))?;
                }
            }
            Ok(None)
        }
        VolumeWipe::Zero | VolumeWipe::Discard => {
            // One that is on its way out already is finished first: it must not be replaced.
            if is_file(&doomed)? {
                return Ok(Some(doomed));
            }
            for path in files {
                if is_file(&path)? {
                    fs::rename(&path, &doomed)
                        .and_then(|()| sync_directory(&place.snapshots))
                        .map_err(|source| StorageFault::io("take its name from", &path, source))?;
                    return Ok(Some(doomed));
                }
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::act::{
        Storage as _,
        storage::{DirPoolOptions, DirStorage, PoolOptions, StorageOptions},
    };

    #[tokio::test]
    async fn a_live_snapshot_on_a_disk_that_hangs_holds_up_nobody() {
        let root = tempfile::tempdir().unwrap();
        let dir = DirPoolOptions {
            path: root.path().join("fast"),
        };
        let storage = DirStorage::new(
            Paths::below(root.path()),
            StorageOptions {
                file_deadline: Duration::from_millis(500),
                pools: [("fast".parse().unwrap(), PoolOptions::Dir(dir))].into(),
                ..StorageOptions::default()
            },
        );
        let inner = &storage.inner;
        let pool = inner.dirs.values().next().unwrap();
        let load = Load {
            verb: "copying",
            what: "a volume".to_owned(),
        };
        let share = inner.room.reserve(root.path(), load, Some(0)).unwrap();
        let id = SnapshotId::new();
        inner.live.begin(id, share, Arc::clone(pool));
        // Somebody asks the disk how full it is, and gets no answer.
        let (share, _) = inner.live.get(id).unwrap();
        let (begun, has_begun) = mpsc::channel();
        let (answer, hangs) = mpsc::channel::<()>();
        let look = move || {
            let _held = lock_whole(&share);
            begun.send(()).unwrap();
            Ok(hangs.recv().is_ok())
        };
        let hung = pool.threads.run(look).await;
        assert!(matches!(hung, Err(StorageFault::Hung { .. })), "{hung:?}");
        has_begun.recv().unwrap();
        let refused = check_room(inner, id).await;
        assert!(
            matches!(refused, Err(StorageFault::NotAsked { .. })),
            "{refused:?}"
        );
        let (ended, has_ended) = mpsc::channel();
        thread::spawn(move || {
            storage.release_snapshot_room(id);
            ended.send(()).unwrap();
        });
        has_ended.recv_timeout(Duration::from_secs(30)).unwrap();
        drop(answer);
    }
}
