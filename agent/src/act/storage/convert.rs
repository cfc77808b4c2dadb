//! Makes a qcow2 of an image in a format that guests do not run on: once, right after it was fetched and verified.
//!
//! `qemu-img` reads what a stranger made here, more of it than an inspection of headers can judge. So it runs as a user
//! without rights, in a network of its own with nothing in it, and sees one file to read and one to write. What it made is
//! judged like any other image before it gets a name.

use std::{
    fs::{File, OpenOptions, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_common::{document::ImageRef, units::ByteCount};
use tokio::sync::watch;

use super::{
    Inner, cache,
    fault::StorageFault,
    fetch::{IMAGE_MODE, Stage, take},
    partial::Partial,
    room::Load,
    sight,
    source::for_people,
    temporary::Temporary,
};
use crate::{
    act::command::{Account, Command, CommandError, Confinement, Limits, Network, View},
    decide::image_header::ImageFacts,
};

/// Address space and CPU time of `qemu-img convert`. It takes some hundred MiB for its libraries and buffers, and 8 MiB
/// for the stack of each of up to 64 threads; a second for a gigabyte.
const ADDRESS_SPACE: u64 = 2 << 30;
const CPU_SECONDS: u64 = 3600;
/// What it may print, in bytes: its progress, a hundred short lines.
const PRINTS: usize = 64 << 10;
/// How many pieces it reads and writes at once: each takes memory, and the disk is shared.
pub(super) const COROUTINES: &str = "4";
/// How often the room that is left is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What qcow2 takes for itself: 8 bytes for each 64 KiB of disk, 2 for their count, some of that twice; and its first
/// clusters.
const TABLES_PART: u64 = 4096;
const TABLES_BYTES: u64 = 4 << 20;
/// What the kernel says when a file was about to pass its limit.
const TOO_LARGE: &str = "File too large";

/// An image that is there as it was fetched, verified and inspected, and needs converting.
pub(super) struct Fetched {
    pub(super) partial: Partial,
    pub(super) facts: ImageFacts,
}

/// A conversion that can start.
struct Making {
    account: Account,
    view: View,
    output: Temporary,
    file: File,
}

/// Converts an image into the cache.
pub(super) async fn convert(
    inner: &Arc<Inner>,
    image: &ImageRef,
    fetched: Fetched,
    stage: &watch::Sender<Stage>,
) -> Result<(), StorageFault> {
    let url = for_people(&image.url);
    let (shared, wanted) = (Arc::clone(inner), image.clone());
    let input = fetched.partial.path().to_owned();
    let prepare = move || prepare(&shared, &wanted, &input);
    let making = inner.files.run(prepare).await?;
    stage.send_replace(Stage::Converting { percent: 0 });

    let limit = largest(fetched.facts.virtual_size, inner.options.max_image);
    let command = Command::new(&inner.options.qemu_img)
        .args(["convert", "-p", "-t", "unsafe", "-m", COROUTINES])
        .args(["-f", image.format.as_str()])
        .args(["-O", image.format.cached().as_str(), "--"])
        .arg(here(fetched.partial.path()))
        .arg(here(making.output.path()))
        .directory(&inner.paths.images)
        .limits(Limits {
            address_space: Some(ADDRESS_SPACE),
            cpu_seconds: Some(CPU_SECONDS),
            file_size: Some(limit),
        })
        .malloc_arenas(1)
        .timeout(inner.options.convert_deadline)
        .stdout_limit(PRINTS)
        .ends_with_agent()
        .confined(Confinement {
            account: making.account,
            network: Network::None,
            view: making.view.clone(),
        });
    let mut meter = Meter::default();
    let mut hear = |bytes: &[u8]| {
        if let Some(percent) = meter.hear(bytes) {
            stage.send_replace(Stage::Converting { percent });
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = command.run_heard(&mut hear) => outcome,
        fault = room_ends(inner, &url) => return Err(fault),
    };
    outcome.map_err(|source| failed(&url, limit, source))?;

    let (shared, image) = (Arc::clone(inner), image.clone());
    stage.send_replace(Stage::Checking);
    inner
        .files
        .run(move || finish(&shared, &image, fetched, making))
        .await
}

/// The largest file that a disk of this size can become: all of its bytes, and the tables for them.
fn largest(disk: ByteCount, max_image: ByteCount) -> u64 {
    let disk = disk.get();
    disk.saturating_add(disk / TABLES_PART)
        .saturating_add(TABLES_BYTES)
        .min(max_image.get())
}

/// A file in the directory that the tool works in. It begins with `./`: no name is an option or an address.
pub(super) fn here(path: &Path) -> PathBuf {
    Path::new(".").join(path.file_name().unwrap_or_default())
}

/// Makes the file that the tool may write.
fn prepare(inner: &Inner, image: &ImageRef, input: &Path) -> Result<Making, StorageFault> {
    let account = Account::named(&inner.options.qemu_img_user)?;
    let output = inner
        .temporaries
        .claim(&inner.paths.images, &format!("convert-{}", image.sha256))?;
    let file = lent(output.path(), account)?;
    let view = sight::with_image(sight::system(&inner.options)?, input)?;
    Ok(Making {
        account,
        view: sight::with_new(view, output.path())?,
        output,
        file,
    })
}

/// A new empty file that belongs to the tool's user.
pub(super) fn lent(path: &Path, account: Account) -> Result<File, StorageFault> {
    let failed = |source| StorageFault::io("make", path, source);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    fchown(&file, Some(account.uid()), Some(account.gid())).map_err(failed)?;
    Ok(file)
}

/// A lent file is root's again, with this mode.
pub(super) fn take_back(file: &File, path: &Path, mode: u32) -> Result<(), StorageFault> {
    let failed = |source| StorageFault::io("take back", path, source);
    fchown(file, Some(0), Some(0)).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed)
}

/// Returns when the room that is kept for guests is about to be taken.
async fn room_ends(inner: &Arc<Inner>, url: &str) -> StorageFault {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (shared, url) = (Arc::clone(inner), url.to_owned());
        let looked = inner.files.run(move || {
            let images = &shared.paths.images;
            let mut share = shared.room.reserve(images, Load::fetching(&url), None)?;
            take(&shared, &mut share, 0)
        });
        if let Err(fault) = looked.await {
            return fault;
        }
    }
}

fn failed(url: &str, limit: u64, source: CommandError) -> StorageFault {
    let url = url.to_owned();
    if source.stderr().contains(TOO_LARGE) {
        StorageFault::Swollen { url, limit }
    } else {
        StorageFault::Convert { url, source }
    }
}

/// Judges what was made, puts it on the medium, and gives it its name.
fn finish(
    inner: &Inner,
    image: &ImageRef,
    fetched: Fetched,
    making: Making,
) -> Result<(), StorageFault> {
    let path = making.output.path();
    take_back(&making.file, path, IMAGE_MODE)?;
    let facts = cache::inspect(&making.file, path, image.format.cached(), image)?;
    if facts != fetched.facts {
        return Err(StorageFault::OtherSize {
            url: for_people(&image.url),
            expected: fetched.facts.virtual_size,
            got: facts.virtual_size,
        });
    }
    making
        .file
        .sync_all()
        .map_err(|source| StorageFault::io("write", path, source))?;
    making.output.publish(&inner.paths.image(image))
}

/// Reads `qemu-img`'s progress: `    (12.34/100%)`, each after a carriage return.
#[derive(Debug, Default)]
struct Meter {
    /// What came after the last opening parenthesis, as far as it can be of interest.
    text: String,
    told: u8,
}

/// The longest number there is: `100.00`.
const LONGEST_NUMBER: usize = 6;

impl Meter {
    /// A new percentage, if there is one.
    fn hear(&mut self, bytes: &[u8]) -> Option<u8> {
        let mut newest = None;
        for byte in bytes {
            match byte {
                b'(' => self.text.clear(),
                b'0'..=b'9' | b'.' if self.text.len() < LONGEST_NUMBER => {
                    self.text.push(char::from(*byte));
                }
                b'/' => {
                    let whole = self.text.split('.').next().unwrap_or_default();
                    newest = whole
                        .parse()
                        .ok()
                        .map(|percent: u8| percent.min(100))
                        .or(newest);
                }
                _ => {}
            }
        }
        let newest = newest.filter(|percent| *percent != self.told)?;
        self.told = newest;
        Some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_any_pieces() {
        let mut meter = Meter::default();
        for (bytes, expected) in [
            (&b"    (0.00/100%)\r"[..], None),
            (b"    (12.", None),
            (b"50/100%)\r    (13.10/100%)", Some(13)),
            (b"\r    (13.90/100%)\r", None),
            (b"(999.9/100%)(100.00/100%)\n", Some(100)),
            (b"(123456789012345678901234567890/", None),
        ] {
            assert_eq!(meter.hear(bytes), expected);
        }
    }

    #[test]
    fn a_disk_can_become_so_large_and_no_image_larger_than_allowed() {
        let bytes = ByteCount::clamped;
        assert_eq!(
            largest(bytes(1 << 30), bytes(1 << 40)),
            (1 << 30) + (256 << 10) + (4 << 20)
        );
        assert_eq!(largest(bytes(1 << 45), bytes(1 << 40)), 1 << 40);
    }
}
