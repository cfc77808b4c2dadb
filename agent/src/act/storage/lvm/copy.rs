//! Copies an image, a volume or a snapshot onto a new logical volume.
//!
//! `qemu-img` reads what a stranger or a guest made, as a user without rights, who is shown the device under a node of his
//! own. Its own sparse copying does the rest: a thin volume is known to be zeros, of a thick one everything is written.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use berth_common::units::ByteCount;

use super::{
    super::{
        Inner,
        convert::COROUTINES,
        fault::StorageFault,
        instances,
        original::{self, Original, Written},
        sight,
        volume::{ADDRESS_SPACE, confined, with_tables},
    },
    LvmPool,
};
use crate::{
    act::{
        Progress,
        command::{Account, Command, Limits},
    },
    decide::lvm::Owner,
};

/// How often it is looked at how far a copy is, and how full a thin pool is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes in a sector of the kernel's statistics.
const SECTOR: u64 = 512;

/// A copy to make.
pub(super) struct Job<'a> {
    /// The volume or the snapshot.
    pub(super) owner: Owner,
    /// Its block device.
    pub(super) device: &'a Path,
    /// Its size.
    pub(super) size: ByteCount,
    /// Whether the device reads as zeros, and takes room only where it is written to.
    pub(super) is_thin: bool,
}

/// Copies all of the original to the beginning of the device, durably.
pub(super) async fn copy(
    inner: &Arc<Inner>,
    pool: &LvmPool,
    job: &Job<'_>,
    original: Original,
    progress: &Progress,
) -> Result<(), StorageFault> {
    progress.send_replace(Some("waiting for other copies".to_owned()));
    let _place = inner.copies.acquire().await.map_err(StorageFault::thread)?;
    let device = job.device.to_owned();
    let shared = Arc::clone(inner);
    let prepare = move || {
        let account = Account::named(&shared.options.qemu_img_user)?;
        instances::make_root(&shared.paths.volumes)?;
        let view = sight::with_original(sight::system(&shared.options)?, &original)?;
        let view = sight::with_device(view, &device)?;
        let file = File::options()
            .write(true)
            .open(&device)
            .map_err(|source| StorageFault::io("open", &device, source))?;
        Ok((original, account, view, file))
    };
    let (original, account, view, target) = inner.files.run(prepare).await?;
    let result = {
        // It has the devices open, and ends before they are taken away.
        let command = confined(command(inner, job, &original), account, view);
        let run = command.run();
        tokio::pin!(run);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                biased;
                result = &mut run => break result,
                _ = looks.tick() => {
                    // The kernel lets what it writes to a full pool wait for long: returning here ends it.
                    if job.is_thin {
                        pool.check_thin_room(&pool.look().await?, None)?;
                    }
                    progress.send_replace(Some(text(inner, job, &original).await?));
                }
            }
        }
    };
    result.map_err(|source| StorageFault::not_filled(job.owner, job.device.to_owned(), source))?;
    let device = job.device.to_owned();
    inner
        .slow_files
        .run(move || {
            target
                .sync_all()
                .map_err(|source| StorageFault::io("write to disk", &device, source))
        })
        .await?;
    original::check_unwritten(inner, original).await
}

fn command(inner: &Inner, job: &Job<'_>, original: &Original) -> Command {
    let deadline = inner.options.copy_deadline;
    Command::new(&inner.options.qemu_img)
        .args([
            "convert",
            "-q",
            "-n",
            "-m",
            COROUTINES,
            "-f",
            original.format,
            "-O",
            "raw",
        ])
        .args(job.is_thin.then_some("--target-is-zero"))
        .arg("--")
        .arg(&original.path)
        .arg(job.device)
        // Nothing is there for it. It tells what it works for, even when there is nothing left of it but what it has to write.
        .directory(&inner.paths.volumes)
        .malloc_arenas(1)
        .limits(Limits {
            address_space: Some(ADDRESS_SPACE),
            cpu_seconds: Some(deadline.as_secs()),
            file_size: Some(with_tables(job.size.get())),
        })
        .timeout(deadline)
        .ends_with_agent()
}

/// How far a copy is, by what was written to the new device, for people.
async fn text(
    inner: &Arc<Inner>,
    job: &Job<'_>,
    original: &Original,
) -> Result<String, StorageFault> {
    let device = job.device.to_owned();
    let written = inner.files.run(move || original::written(&device)).await?;
    let what = &original.what;
    let Written::Sectors(sectors) = written else {
        return Ok(format!("copying {what}"));
    };
    Ok(format!(
        "copying {what}, {} MB",
        sectors.saturating_mul(SECTOR) >> 20
    ))
}
