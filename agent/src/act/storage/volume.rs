//! Volumes of pools of files: making them, looking at them, growing and removing them.
//!
//! A volume is a whole copy of what it is made from, with nothing below it. `qemu-img` works on temporary files of
//! the agent's own and on volumes that no guest has, is told every format, and QEMU's own locks on the files keep it
//! out of those that a guest opened after all. A guest wrote what it reads, so it is a user without rights who sees only
//! what it reads and what it writes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use berth_common::{
    document::{ImageFormat, VolumeFormat},
    ids::VolumeId,
    names::PoolName,
    units::ByteCount,
};
use nix::fcntl::OFlag;

use super::{
    Inner, VolumeWipe,
    atomic::{remove_durably, sync_directory, write_atomically},
    cache::FileWindow,
    convert::{COROUTINES, here, lent},
    disk,
    fault::StorageFault,
    fetch::reserve,
    file_pool::FilePool,
    instances::{self, is_file},
    original::{self, Original, allocated},
    reflink::reflink,
    room::{Load, Share},
    sight,
    temporary::Temporary,
    wipe::{self, Wiping},
};
use crate::{
    act::{
        Progress,
        command::{Account, Command, CommandError, Confinement, Limits, Network, View},
    },
    decide::{
        image_header::{self, Judgement},
        instance::Paths,
        volume::{FORMATS, LargerVolume, NewVolume, VolumeContent, VolumeFile, VolumeFiles},
    },
};

/// Prefix of a volume that was deleted and is being wiped: it has lost its name, and no sweep removes it.
pub(super) const WIPE: &str = ".wipe-";
/// What the mark of a volume says, for people: that it is there counts, and its last line.
const MARK: &str = "This volume was made. Without its file it was lost, or its disk is absent.\n";
/// What begins that line: the storage pool it was made in. A mark without it is of `local`.
pub(super) const MARK_POOL: &str = "Storage pool: ";
/// The line of a mark whose bytes are being removed: that nothing is found of it any more is right then.
const MARK_REMOVING: &str = "It is being removed.";
/// More than a mark has, in bytes.
const MARK_MOST: u64 = 4096;
/// How often it is looked at how far a copy or a wipe is, and at the room that is left.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Address space of `qemu-img`, in bytes: it keeps many threads and their stacks while it copies.
pub(super) const ADDRESS_SPACE: u64 = 2 << 30;
/// What qcow2's tables may add to a file of this size: they take less than a thousandth, and a few at the beginning.
pub(super) const fn with_tables(size: u64) -> u64 {
    size.saturating_add(size / 512).saturating_add(64 << 20)
}

/// What is there of a volume in a pool of files. Whether it was made once is not asked here.
pub(super) fn observe(pool: &FilePool, id: VolumeId) -> Result<VolumeFiles, StorageFault> {
    let mut found = VolumeFiles::default();
    for format in FORMATS {
        let path = pool.place.volume(id, format);
        if is_file(&path)? {
            found.files.push(VolumeFile {
                pool: pool.name.clone(),
                format,
                content: content(&path, format)?,
            });
        }
        found.leaving |= is_file(&leaving(pool, id, format))?;
    }
    Ok(found)
}

/// Ids of all volumes of which anything is there in a pool of files.
pub(super) fn list(pool: &FilePool) -> Result<Vec<VolumeId>, StorageFault> {
    let id = |name: &str| {
        let name = name.strip_prefix(WIPE).unwrap_or(name);
        let (id, _) = name.split_once('.')?;
        id.parse::<VolumeId>()
            .ok()
            .filter(|parsed| parsed.to_string() == id)
    };
    let names = instances::entries(&pool.place.volumes)?.unwrap_or_default();
    let mut ids: Vec<VolumeId> = names.iter().filter_map(|name| id(name)).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Ids of all volumes that were made, in whatever pool.
pub(super) fn marked(paths: &Paths) -> Result<Vec<VolumeId>, StorageFault> {
    let marks = instances::entries(&paths.made)?.unwrap_or_default();
    Ok(marks.iter().filter_map(|name| name.parse().ok()).collect())
}

/// The place of a deleted volume that is being wiped.
fn leaving(pool: &FilePool, id: VolumeId, format: VolumeFormat) -> PathBuf {
    pool.place
        .volumes
        .join(format!("{WIPE}{id}.{}", format.as_str()))
}

/// What a volume's file holds. Of a raw one only the length counts: its bytes are the guest's, who may write there
/// whatever looks like something else.
pub(super) fn content(path: &Path, format: VolumeFormat) -> Result<VolumeContent, StorageFault> {
    let failed = |source| StorageFault::io("read", path, source);
    let file = open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    Ok(match format {
        VolumeFormat::Raw if length == 0 => VolumeContent::Unreadable("it is empty".to_owned()),
        VolumeFormat::Raw => VolumeContent::Size(ByteCount::clamped(length)),
        VolumeFormat::Qcow2 => {
            let mut window = FileWindow {
                file: &file,
                length,
            };
            match image_header::inspect(ImageFormat::Qcow2, &mut window) {
                Ok(facts) => VolumeContent::Size(facts.virtual_size),
                Err(Judgement::Refused(refusal)) => VolumeContent::Unreadable(refusal.to_string()),
                Err(Judgement::Unreadable(source)) => return Err(failed(source)),
            }
        }
    })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

/// Makes a volume, unless it is there.
pub(super) async fn create(
    inner: &Arc<Inner>,
    pool: &Arc<FilePool>,
    plan: &NewVolume,
    progress: &Progress,
) -> Result<(), StorageFault> {
    let (shared, planned) = (Arc::clone(pool), plan.clone());
    let is_there = move || {
        in_place(&shared, planned.id, planned.format, &planned.path)?;
        shared.on_disk(|| is_file(&planned.path))
    };
    if pool.threads.run(is_there).await? {
        return Ok(());
    }
    // Everything that can be refused is refused before anything exists.
    let original = original::of(inner, plan).await?;
    let (shared, its, id) = (Arc::clone(inner), Arc::clone(pool), plan.id);
    let prepare = move || its.on_disk(|| prepare(&shared, &its, id));
    let making = pool.threads.run(prepare).await?;
    let failed = |source| StorageFault::Volume {
        what: "make",
        id: plan.id,
        path: plan.path.clone(),
        source,
    };
    let format = plan.format.as_str();
    let file = making.temporary.path().to_owned();
    match original {
        None => {
            confined(quick(inner, pool, plan.size), making.account, making.view)
                .args(["create", "-q", "-f", format, "--"])
                .arg(here(&file))
                .arg(plan.size.get().to_string())
                .run()
                .await
                .map_err(failed)?;
        }
        Some(original) => {
            let size = original.size;
            let target = Target {
                file: file.clone(),
                format: plan.format,
                size: plan.size,
                directory: pool.place.volumes.clone(),
            };
            copy(inner, &target, (original, making.account), progress, failed).await?;
            if size < plan.size {
                let command = confined(quick(inner, pool, plan.size), making.account, making.view);
                resize(command, &file, plan.format, plan.size)
                    .await
                    .map_err(failed)?;
            }
        }
    }
    let (its, path) = (Arc::clone(pool), plan.path.clone());
    inner
        .slow_files
        .run(move || its.on_disk(|| disk::finish(making.temporary, path)))
        .await
}

/// A volume that is being made.
struct Making {
    account: Account,
    view: View,
    temporary: Temporary,
}

fn prepare(inner: &Inner, pool: &FilePool, id: VolumeId) -> Result<Making, StorageFault> {
    let account = Account::named(&inner.options.qemu_img_user)?;
    pool.make(&pool.place.volumes)?;
    let temporary = inner
        .temporaries
        .claim(&pool.place.volumes, &id.to_string())?;
    // `qemu-img` keeps the mode and the owner of a file that is there.
    lent(temporary.path(), account)?;
    let view = sight::with_new(sight::system(&inner.options)?, temporary.path())?;
    Ok(Making {
        account,
        view,
        temporary,
    })
}

fn in_place(
    pool: &FilePool,
    id: VolumeId,
    format: VolumeFormat,
    path: &Path,
) -> Result<(), StorageFault> {
    let expected = pool.place.volume(id, format);
    if path == expected {
        return Ok(());
    }
    Err(StorageFault::VolumePlace {
        id,
        expected,
        path: path.to_owned(),
    })
}

/// A file to copy into.
pub(super) struct Target {
    pub(super) file: PathBuf,
    pub(super) format: VolumeFormat,
    /// The most it may become.
    pub(super) size: ByteCount,
    /// Where it lies.
    pub(super) directory: PathBuf,
}

/// Copies all of the original into the file, and watches the room meanwhile; or shares its blocks, which takes neither
/// room nor time.
pub(super) async fn copy(
    inner: &Arc<Inner>,
    target: &Target,
    (original, account): (Original, Account),
    progress: &Progress,
    failed: impl FnOnce(CommandError) -> StorageFault,
) -> Result<(), StorageFault> {
    let (file, format) = (target.file.clone(), target.format);
    let share = move || Ok((reflink(&original, &file, format)?, original));
    let (is_shared, original) = inner.slow_files.run(share).await?;
    if is_shared {
        return original::check_unwritten(inner, original).await;
    }
    progress.send_replace(Some("waiting for other copies".to_owned()));
    let _place = inner.copies.acquire().await.map_err(StorageFault::thread)?;
    let (original, view, mut watch) = {
        let (shared, path) = (Arc::clone(inner), target.file.clone());
        let directory = target.directory.clone();
        let begin = move || {
            let view = sight::with_original(sight::system(&shared.options)?, &original)?;
            let view = sight::with_new(view, &path)?;
            let (what, length) = (original.what.clone(), original.allocated.unwrap_or(0));
            let watch = CopyWatch::begin(&shared, what, length, path, &directory)?;
            Ok((original, view, watch))
        };
        inner.files.run(begin).await?
    };
    let command = Command::new(&inner.options.qemu_img)
        .args([
            "convert",
            "-q",
            "-m",
            COROUTINES,
            "-f",
            original.format,
            "-O",
        ])
        .args([target.format.as_str(), "--"])
        .arg(&original.path)
        .arg(here(&target.file))
        .directory(&target.directory)
        .malloc_arenas(1)
        .limits(Limits {
            address_space: Some(ADDRESS_SPACE),
            cpu_seconds: Some(inner.options.copy_deadline.as_secs()),
            file_size: Some(with_tables(target.size.get())),
        })
        .timeout(inner.options.copy_deadline)
        .ends_with_agent();
    let result = {
        // It may have the device of a snapshot open, and ends before that is taken away.
        let command = confined(command, account, view);
        let run = command.run();
        tokio::pin!(run);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                biased;
                result = &mut run => break result,
                _ = looks.tick() => {
                    // A copy that takes what is kept for guests is broken off: returning here ends it.
                    watch = inner.files.run(move || watch.look()).await?;
                    progress.send_replace(Some(watch.text()));
                }
            }
        }
    };
    result.map_err(failed)?;
    original::check_unwritten(inner, original).await
}

/// How far a copy is, and the room it takes.
struct CopyWatch {
    share: Share,
    what: String,
    path: PathBuf,
    expected: u64,
    done: u64,
}

impl CopyWatch {
    fn begin(
        inner: &Inner,
        what: String,
        expected: u64,
        path: PathBuf,
        directory: &Path,
    ) -> Result<Self, StorageFault> {
        let load = Load {
            verb: "copying",
            what: what.clone(),
        };
        let share = reserve(inner, directory, &load, Some(expected))?;
        Ok(Self {
            share,
            what,
            path,
            expected,
            done: 0,
        })
    }

    fn look(mut self) -> Result<Self, StorageFault> {
        let done = allocated(&self.path)?;
        self.share.taken(done.saturating_sub(self.done))?;
        self.done = done;
        Ok(self)
    }

    /// A copy of something compressed becomes larger than that.
    fn text(&self) -> String {
        if self.done < self.expected {
            let percent = u128::from(self.done) * 100 / u128::from(self.expected);
            format!("copying {}, {percent} %", self.what)
        } else {
            format!("copying {}, {} MB", self.what, self.done >> 20)
        }
    }
}

/// A `qemu-img` that writes tables, not data.
fn quick(inner: &Inner, pool: &FilePool, size: ByteCount) -> Command {
    Command::new(&inner.options.qemu_img)
        .directory(&pool.place.volumes)
        .malloc_arenas(1)
        .limits(Limits {
            address_space: Some(ADDRESS_SPACE),
            cpu_seconds: Some(inner.options.create_deadline.as_secs()),
            file_size: Some(with_tables(size.get())),
        })
        .timeout(inner.options.create_deadline)
        .ends_with_agent()
}

/// As a user without rights, who sees this and no network.
pub(super) fn confined(command: Command, account: Account, view: View) -> Command {
    command.confined(Confinement {
        account,
        network: Network::None,
        view,
    })
}

async fn resize(
    command: Command,
    path: &Path,
    format: VolumeFormat,
    size: ByteCount,
) -> Result<(), CommandError> {
    command
        .args(["resize", "-q", "-f", format.as_str(), "--"])
        .arg(here(path))
        .arg(size.get().to_string())
        .run()
        .await
        .map(drop)
}

/// Notes durably that a volume was made, and in which pool.
pub(super) fn mark(paths: &Paths, id: VolumeId, pool: &PoolName) -> Result<(), StorageFault> {
    let path = paths.volume_mark(id);
    if is_file(&path)? {
        return Ok(());
    }
    instances::make_root(&paths.made)?;
    let text = format!("{MARK}{MARK_POOL}{pool}\n");
    write_atomically(&path, text.as_bytes())
        .map_err(|source| StorageFault::io("write", &path, source))
}

/// The pool that a volume was made in; `None`: it was not made, or its tombstone was carried out.
pub(super) fn marked_pool(paths: &Paths, id: VolumeId) -> Result<Option<PoolName>, StorageFault> {
    read_mark(&paths.volume_mark(id))
}

/// The pool that a mark names; `None`: there is no mark.
pub(super) fn read_mark(path: &Path) -> Result<Option<PoolName>, StorageFault> {
    let Some(text) = text_of(path)? else {
        return Ok(None);
    };
    let named = text.lines().find_map(|line| line.strip_prefix(MARK_POOL));
    let pool = named.and_then(|name| name.parse().ok());
    Ok(Some(pool.unwrap_or_default()))
}

/// What a mark says; `None`: there is none.
fn text_of(path: &Path) -> Result<Option<String>, StorageFault> {
    if !is_file(path)? {
        return Ok(None);
    }
    let mut text = String::new();
    open(path)
        .and_then(|file| file.take(MARK_MOST).read_to_string(&mut text))
        .map_err(|source| StorageFault::io("read", path, source))?;
    Ok(Some(text))
}

/// Whether a mark says that its bytes are being removed.
pub(super) fn is_being_removed(mark: &Path) -> Result<bool, StorageFault> {
    Ok(text_of(mark)?.is_some_and(|text| says_removal(&text)))
}

fn says_removal(mark: &str) -> bool {
    mark.lines().any(|line| line == MARK_REMOVING)
}

/// Has a mark say that its bytes are being removed, if there is one.
pub(super) fn note_removal(mark: &Path) -> Result<(), StorageFault> {
    let Some(text) = text_of(mark)? else {
        return Ok(());
    };
    if says_removal(&text) {
        return Ok(());
    }
    write_atomically(mark, format!("{text}{MARK_REMOVING}\n").as_bytes())
        .map_err(|source| StorageFault::io("write", mark, source))
}

/// Makes a volume that no guest has larger, unless it is.
pub(super) async fn grow(
    inner: &Arc<Inner>,
    pool: &Arc<FilePool>,
    plan: &LargerVolume,
) -> Result<(), StorageFault> {
    let (shared, its, planned) = (Arc::clone(inner), Arc::clone(pool), plan.clone());
    let prepare = move || {
        let size = its.on_disk(|| size_of(&shared.paths, &its, &planned))?;
        if size >= planned.size {
            return Ok(None);
        }
        let account = Account::named(&shared.options.qemu_img_user)?;
        let path = std::path::absolute(&planned.path)
            .map_err(|source| StorageFault::io("find", &planned.path, source))?;
        let view = sight::with_disk(sight::system(&shared.options)?, &path)?;
        Ok(Some((account, view, path)))
    };
    let Some((account, view, path)) = pool.threads.run(prepare).await? else {
        return Ok(());
    };
    let command = confined(quick(inner, pool, plan.size), account, view);
    resize(command, &path, plan.format, plan.size)
        .await
        .map_err(|source| StorageFault::Volume {
            what: "grow",
            id: plan.id,
            path: plan.path.clone(),
            source,
        })?;
    inner
        .slow_files
        .run(move || {
            open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|source| StorageFault::io("write to disk", &path, source))
        })
        .await
}

fn size_of(paths: &Paths, pool: &FilePool, plan: &LargerVolume) -> Result<ByteCount, StorageFault> {
    in_place(pool, plan.id, plan.format, &plan.path)?;
    let mut found = observe(pool, plan.id)?;
    found.made = marked_pool(paths, plan.id)?.is_some();
    found
        .whole(&plan.pool, plan.format)
        .ok_or_else(|| StorageFault::VolumeNotThere {
            id: plan.id,
            path: plan.path.clone(),
        })
}

/// Takes a volume's name from its file; answers what is to be wiped before it is removed. `None`: there was nothing.
pub(super) fn take_name(
    pool: &FilePool,
    how: VolumeWipe,
    id: VolumeId,
) -> Result<Option<Vec<PathBuf>>, StorageFault> {
    let (mut left, mut found) = (Vec::new(), false);
    for format in FORMATS {
        let (path, doomed) = (pool.place.volume(id, format), leaving(pool, id, format));
        found |= is_file(&path)? || is_file(&doomed)?;
        match how {
            VolumeWipe::None => {
                for path in [&path, &doomed] {
                    if is_file(path)? {
                        remove_durably(path)
                            .map_err(|source| StorageFault::io("remove", path, source))?;
                    }
                }
            }
            VolumeWipe::Zero | VolumeWipe::Discard => {
                // One that is on its way out already is finished first: it must not be replaced.
                if is_file(&doomed)? {
                    left.push(doomed);
                } else if is_file(&path)? {
                    fs::rename(&path, &doomed)
                        .and_then(|()| sync_directory(&pool.place.volumes))
                        .map_err(|source| StorageFault::io("take its name from", &path, source))?;
                    left.push(doomed);
                }
            }
        }
    }
    Ok(found.then_some(left))
}

/// Ends a wipe that nobody waits for.
pub(super) struct StopWipe(pub(super) Arc<Wiping>);

impl Drop for StopWipe {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

/// Wipes a file that has lost its name, and removes it.
pub(super) async fn wipe(
    inner: &Arc<Inner>,
    pool: &Arc<FilePool>,
    path: PathBuf,
    progress: &Progress,
    failed: impl FnOnce(PathBuf, io::Error) -> StorageFault + Send + 'static,
) -> Result<(), StorageFault> {
    let how = inner.options.volume_wipe;
    let (shared, its) = (Arc::clone(inner), Arc::clone(pool));
    let work = move |wiping: &Wiping| {
        let load = Load {
            verb: "wiping",
            what: path.display().to_string(),
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut share = shared.room.reserve(directory, load, None);
        let has_room = |count| share.as_mut().is_ok_and(|share| share.take(count).is_ok());
        its.on_disk(|| {
            wipe::wipe(&path, how, wiping, has_room)
                .and_then(|()| remove_durably(&path))
                .map_err(|source| failed(path, source))
        })
    };
    on_wipe_thread(inner, work, progress).await
}

/// Overwrites something on a thread that nobody else waits for, and tells how far it is.
pub(super) async fn on_wipe_thread(
    inner: &Arc<Inner>,
    work: impl FnOnce(&Wiping) -> Result<(), StorageFault> + Send + 'static,
    progress: &Progress,
) -> Result<(), StorageFault> {
    progress.send_replace(Some("waiting for others to be wiped".to_owned()));
    let wiping = Arc::new(Wiping::default());
    let stop = StopWipe(Arc::clone(&wiping));
    let run = inner.wipes.run(move || work(&wiping));
    tokio::pin!(run);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            biased;
            result = &mut run => return result,
            _ = looks.tick() => {
                let length = stop.0.length.load(Ordering::Relaxed);
                if length > 0 {
                    let done = u128::from(stop.0.done.load(Ordering::Relaxed));
                    let percent = done * 100 / u128::from(length);
                    progress.send_replace(Some(format!("wiping it, {percent} %")));
                }
            }
        }
    }
}
