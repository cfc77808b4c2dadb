//! Snapshots of the pool `local`: making them, looking at them and removing them.
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
    instances::{self, is_file},
    original,
    room::{Load, Share},
    volume::{self, MARK_POOL, Target, WIPE},
};
use crate::{
    act::{Progress, command::Account},
    decide::{
        instance::Paths,
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

/// What is there of a snapshot.
pub(super) fn observe(paths: &Paths, id: SnapshotId) -> Result<SnapshotFiles, StorageFault> {
    let path = paths.snapshot_file(id);
    let file = if is_file(&path)? {
        Some(volume::content(&path, VolumeFormat::Qcow2)?)
    } else {
        None
    };
    Ok(SnapshotFiles {
        file,
        made: is_file(&paths.snapshot_mark(id))?,
        leaving: is_file(&leaving(paths, id))?,
        partial: is_file(&paths.partial_snapshot_file(id))?,
    })
}

/// Ids of all snapshots of which anything is there.
pub(super) fn list(paths: &Paths) -> Result<Vec<SnapshotId>, StorageFault> {
    let names = instances::entries(&paths.snapshots)?.unwrap_or_default();
    let of_file = |name: &String| {
        let bare = [WIPE, LIVE]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        let id = bare.strip_suffix(".qcow2")?;
        let parsed = id.parse::<SnapshotId>().ok();
        parsed.filter(|parsed| parsed.to_string() == id)
    };
    let marks = instances::entries(&paths.made)?.unwrap_or_default();
    let of_mark = |name: &String| name.strip_prefix("snapshot-")?.parse().ok();
    let mut ids: Vec<SnapshotId> = names
        .iter()
        .filter_map(of_file)
        .chain(marks.iter().filter_map(of_mark))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The place of a deleted snapshot that is being wiped.
fn leaving(paths: &Paths, id: SnapshotId) -> PathBuf {
    paths.snapshots.join(format!("{WIPE}{id}.qcow2"))
}

fn in_place(inner: &Inner, plan: &NewSnapshot) -> Result<(), StorageFault> {
    let expected = inner.paths.snapshot_file(plan.id);
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
    plan: &NewSnapshot,
    progress: &Progress,
) -> Result<(), StorageFault> {
    let (shared, planned) = (Arc::clone(inner), plan.clone());
    let is_there = move || {
        in_place(&shared, &planned)?;
        is_file(&planned.path)
    };
    if inner.files.run(is_there).await? {
        return Ok(());
    }
    let original = original::volume(inner, &plan.volume).await?;
    let (shared, id) = (Arc::clone(inner), plan.id);
    let prepare = move || {
        let account = Account::named(&shared.options.qemu_img_user)?;
        instances::make_root(&shared.paths.snapshots)?;
        let temporary = shared
            .temporaries
            .claim(&shared.paths.snapshots, &id.to_string())?;
        lent(temporary.path(), account)?;
        Ok((account, temporary))
    };
    let (account, temporary) = inner.files.run(prepare).await?;
    let target = Target {
        file: temporary.path().to_owned(),
        format: VolumeFormat::Qcow2,
        size: original.size,
        directory: inner.paths.snapshots.clone(),
    };
    let failed = |source| StorageFault::Snapshot {
        id: plan.id,
        path: plan.path.clone(),
        source,
    };
    volume::copy(inner, &target, (original, account), progress, failed).await?;
    let path = plan.path.clone();
    inner
        .slow_files
        .run(move || disk::finish(temporary, path))
        .await
}

/// Sees that there is a place and room for what a hypervisor will write.
pub(super) async fn prepare(inner: &Arc<Inner>, plan: &NewSnapshot) -> Result<(), StorageFault> {
    in_place(inner, plan)?;
    let original = original::volume(inner, &plan.volume).await?;
    let (shared, id) = (Arc::clone(inner), plan.id);
    let prepare = move || {
        instances::make_root(&shared.paths.snapshots)?;
        let load = Load {
            verb: "copying",
            what: original.what,
        };
        let directory = &shared.paths.snapshots;
        shared.live.end(id);
        let share = reserve(&shared, directory, &load, original.allocated)?;
        shared.live.begin(id, share);
        Ok(())
    };
    inner.files.run(prepare).await
}

/// Whether what a hypervisor writes leaves the room that is kept for guests.
pub(super) fn check_room(inner: &Inner, id: SnapshotId) -> Result<(), StorageFault> {
    let load = Load {
        verb: "copying",
        what: format!("the volume for snapshot {id}"),
    };
    // A sparse file has what was written, and no more.
    let written = match fs::metadata(inner.paths.partial_snapshot_file(id)) {
        Ok(metadata) => metadata.blocks().saturating_mul(BLOCK),
        Err(_) => 0,
    };
    if let Some(result) = inner.live.written(id, written) {
        return result;
    }
    let directory = &inner.paths.snapshots;
    let mut share = inner.room.reserve(directory, load, Some(0))?;
    share.taken(0)
}

/// What is promised to those snapshots that hypervisors are about to write, or write just now: another one begins only if
/// it fits beside them.
#[derive(Debug, Default)]
pub(super) struct LiveShares(Mutex<BTreeMap<SnapshotId, Share>>);

impl LiveShares {
    fn begin(&self, id: SnapshotId, share: Share) {
        self.shares().insert(id, share);
    }

    fn written(&self, id: SnapshotId, total: u64) -> Option<Result<(), StorageFault>> {
        self.shares().get_mut(&id).map(|share| share.written(total))
    }

    /// Gives back what is left of it.
    pub(super) fn end(&self, id: SnapshotId) {
        self.shares().remove(&id);
    }

    fn shares(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Share>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the file that a hypervisor has written, whole, the snapshot's name.
///
/// libvirt tells the end of a job a moment before QEMU closes the file, and only then the last of its tables are written.
pub(super) async fn name(inner: &Arc<Inner>, id: SnapshotId) -> Result<(), StorageFault> {
    for _ in 0..CLOSED_LOOKS {
        let shared = Arc::clone(inner);
        let look = inner.slow_files.run(move || name_closed(&shared, id));
        if look.await? {
            return Ok(());
        }
        tokio::time::sleep(CLOSED_EVERY).await;
    }
    Err(StorageFault::SnapshotOpen {
        id,
        path: inner.paths.partial_snapshot_file(id),
    })
}

/// The same, if nobody has the file open any more; answers whether that is so.
fn name_closed(inner: &Inner, id: SnapshotId) -> Result<bool, StorageFault> {
    let (partial, path) = (
        inner.paths.partial_snapshot_file(id),
        inner.paths.snapshot_file(id),
    );
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
        .and_then(|()| sync_directory(&inner.paths.snapshots))
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
pub(super) fn discard(paths: &Paths, id: SnapshotId) -> Result<(), StorageFault> {
    let path = paths.partial_snapshot_file(id);
    remove_durably(&path).map_err(|source| StorageFault::io("remove", &path, source))
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
pub(super) fn take_name(inner: &Inner, id: SnapshotId) -> Result<Option<PathBuf>, StorageFault> {
    let paths = &inner.paths;
    let doomed = leaving(paths, id);
    let files = [paths.snapshot_file(id), paths.partial_snapshot_file(id)];
    match inner.options.volume_wipe {
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
                        .and_then(|()| sync_directory(&paths.snapshots))
                        .map_err(|source| StorageFault::io("take its name from", &path, source))?;
                    return Ok(Some(doomed));
                }
            }
            Ok(None)
        }
    }
}
