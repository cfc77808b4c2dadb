//! One fetch of one image, on a thread that may block: stream to a partial file while hashing, compare, inspect,
//! and only then give it its name. A download that breaks off is continued where it ended, if the server can do that;
//! whatever else goes wrong, the partial file goes away with it.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use berth_common::{document::ImageRef, telemetry::error_chain, units::ByteCount};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{
    Inner, cache,
    convert::Fetched,
    evict::{self, touch},
    fault::StorageFault,
    instances,
    partial::{self, Origin, Partial},
    room::{Load, Share, file_system},
    source::{self, GoOn, Source, SourceFault, for_people},
};

/// How much is read, hashed and written at a time, in bytes. A piece of zeros becomes a hole.
const PIECE: usize = 128 * 1024;
/// How often progress is told: a few times a second is enough for people.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// How much room is made at once for a download of unknown length, in bytes: looking for it reads all disks' headers.
const MORE_ROOM: u64 = 64 << 20;
/// How often a download that waits to be continued looks whether anybody still wants it.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Everybody may read an image (QEMU must), nobody may write it.
pub(super) const IMAGE_MODE: u32 = 0o444;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Other downloads are in front.
    Waiting,
    /// Bytes arrive.
    Fetching {
        verb: &'static str,
        done: u64,
        total: Option<u64>,
    },
    /// All bytes are there and go to disk.
    Checking,
    /// It becomes what guests can run on.
    Converting { percent: u8 },
}

impl Stage {
    /// For people.
    pub(super) fn text(self) -> String {
        match self {
            Self::Waiting => "waiting for other downloads".to_owned(),
            Self::Fetching {
                verb,
                done,
                total: Some(total),
            } if total > 0 => {
                let percent = u128::from(done) * 100 / u128::from(total);
                format!("{verb} the image, {percent} %")
            }
            Self::Fetching { verb, done, .. } => format!("{verb} the image, {} MB", done >> 20),
            Self::Checking => "checking the image".to_owned(),
            Self::Converting { percent } => format!("converting the image, {percent} %"),
        }
    }
}

/// Fetches an image into the cache, unless it is there. One that has to be converted is returned.
pub(super) fn fetch(
    inner: &Inner,
    image: &ImageRef,
    cancelled: &AtomicBool,
    stage: &watch::Sender<Stage>,
) -> Result<Option<Fetched>, StorageFault> {
    if cache::facts(&inner.paths, image)?.is_some() {
        touch(&inner.paths.image(image));
        return Ok(None);
    }
    instances::make_root(&inner.paths.images)?;
    let url = for_people(&image.url);
    let mut download = Download {
        inner,
        image,
        url: &url,
        cancelled,
        stage,
        partial: Partial::open(inner, image)?,
        hash: Sha256::new(),
        done: 0,
    };
    let partial = match download.all() {
        Ok(()) => download.partial,
        Err(fault) => {
            download.give_up(&fault);
            return Err(fault);
        }
    };
    stage.send_replace(Stage::Checking);
    let path = partial.path().to_owned();
    let failed = |source| StorageFault::io("write", &path, source);
    let file = &partial.file;
    file.set_permissions(Permissions::from_mode(IMAGE_MODE))
        .map_err(failed)?;
    let facts = cache::inspect(file, &path, image.format, image)?;
    if image.format.is_converted() {
        return Ok(Some(Fetched { partial, facts }));
    }
    file.sync_all().map_err(failed)?;
    partial.publish(&inner.paths.image(image))?;
    Ok(None)
}

/// One download, however often it has to be continued.
struct Download<'a> {
    inner: &'a Inner,
    image: &'a ImageRef,
    url: &'a str,
    cancelled: &'a AtomicBool,
    stage: &'a watch::Sender<Stage>,
    partial: Partial,
    /// Of the first `done` bytes, which are in the file.
    hash: Sha256,
    done: u64,
}

impl Download<'_> {
    /// All bytes, with the right sum. What an earlier agent left is continued; if that turns out to be damaged (its
    /// machine may have lost power), all is fetched once more.
    fn all(&mut self) -> Result<(), StorageFault> {
        if self.partial.origin().is_some() {
            self.stage.send_replace(Stage::Checking);
            self.done = self.partial.hash(&mut self.hash, self.cancelled)?;
        }
        let had_some = self.done > 0;
        match self.rest() {
            Err(StorageFault::Checksum { .. }) if had_some => {
                self.restart()?;
                self.rest()
            }
            outcome => outcome,
        }
    }

    /// The bytes that are not there yet; then the sum.
    fn rest(&mut self) -> Result<(), StorageFault> {
        let mut resumes = 0;
        while !self.is_whole() {
            match self.once() {
                Ok(()) => break,
                Err(fault)
                    if self.can_go_on(&fault) && resumes < self.inner.options.max_resumes =>
                {
                    resumes += 1;
                    tracing::debug!(url = self.url, done = self.done, error = %error_chain(&fault), "a download is continued");
                    self.pause(self.inner.options.resume_pause * resumes)?;
                }
                Err(fault) => return Err(fault),
            }
        }
        // What the sum is instead nobody is told: it would name the content of whatever this host can read to whoever asks.
        if partial::hex(self.hash.clone().finalize()) == self.image.sha256.as_str() {
            return Ok(());
        }
        Err(StorageFault::Checksum {
            url: self.url.to_owned(),
            expected: self.image.sha256.clone(),
        })
    }

    /// Whether all bytes are there, as far as a server said how many there are.
    fn is_whole(&self) -> bool {
        let origin = self.partial.origin();
        self.done > 0 && origin.is_some_and(|origin| origin.total == Some(self.done))
    }

    /// Whether what is there can be continued after this.
    fn can_go_on(&self, fault: &StorageFault) -> bool {
        let broke_off = matches!(fault, StorageFault::Source { source, .. } if source.retryable());
        broke_off && self.done > 0 && self.partial.origin().is_some()
    }

    /// Leaves for a later fetch what that can continue.
    fn give_up(self, fault: &StorageFault) {
        if self.can_go_on(fault) || matches!(fault, StorageFault::Cancelled { .. }) {
            self.partial.leave(self.done);
        }
    }

    fn restart(&mut self) -> Result<(), StorageFault> {
        self.partial.restart()?;
        self.hash = Sha256::new();
        self.done = 0;
        Ok(())
    }

    /// Waits, but not for longer than somebody waits for the image.
    fn pause(&self, time: Duration) -> Result<(), StorageFault> {
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()) {
            self.check_cancelled()?;
            std::thread::sleep(left.min(LOOK_EVERY));
        }
        Ok(())
    }

    fn check_cancelled(&self) -> Result<(), StorageFault> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(StorageFault::Cancelled {
                url: self.url.to_owned(),
            });
        }
        Ok(())
    }

    fn source_fault(&self, source: SourceFault) -> StorageFault {
        StorageFault::Source {
            url: self.url.to_owned(),
            source,
        }
    }

    /// One exchange with the source, from where the bytes end, or from the beginning if it cannot do that.
    fn once(&mut self) -> Result<(), StorageFault> {
        let (inner, limit) = (self.inner, self.inner.options.max_image.get());
        let go_on = self.partial.origin().map(|origin| GoOn {
            at: self.done,
            version: &origin.version,
        });
        let go_on = go_on.filter(|go_on| go_on.at > 0);
        let source = source::open(&self.image.url, go_on, &inner.paths, &inner.options)
            .map_err(|source| self.source_fault(source))?;
        if source.starts_at != self.done {
            self.restart()?;
        }
        let (url, length) = (self.url, source.length);
        if length.is_some_and(|length| length > limit) {
            let url = url.to_owned();
            return Err(StorageFault::TooLarge { url, limit });
        }
        let left = length.map(|length| length.saturating_sub(self.done));
        let share = reserve(inner, &inner.paths.images, &Load::fetching(url), left)?;
        let version = source.version.clone();
        let origin = version.map(|version| Origin::new(self.image, version, length));
        self.partial.comes_from(origin)?;
        let (path, end) = (self.partial.path().to_owned(), self.done);
        let failed = |source| StorageFault::io("write", &path, source);
        self.partial
            .file
            .seek(SeekFrom::Start(end))
            .map_err(failed)?;
        self.copy(source, share)?;
        if let Some(total) = length.filter(|total| *total != self.done) {
            let done = self.done;
            return Err(self.source_fault(SourceFault::Short { done, total }));
        }
        // A hole at the end exists only as the file's length.
        self.partial.file.set_len(self.done).map_err(failed)
    }

    /// Streams all bytes of the source into the file.
    fn copy(&mut self, mut source: Source, mut share: Share) -> Result<(), StorageFault> {
        let limit = self.inner.options.max_image.get();
        let mut piece = vec![0; PIECE];
        let mut told: Option<Instant> = None;
        loop {
            self.check_cancelled()?;
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                self.stage.send_replace(Stage::Fetching {
                    verb: source.verb,
                    done: self.done,
                    total: source.length,
                });
            }
            let (count, ended) = self.fill(&mut source, &mut piece);
            let bytes = piece.get(..count).unwrap_or_default();
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            if self.done.saturating_add(count) > limit {
                let url = self.url.to_owned();
                return Err(StorageFault::TooLarge { url, limit });
            }
            take(self.inner, &mut share, count)?;
            write(&mut self.partial.file, bytes)
                .map_err(|source| StorageFault::io("write", self.partial.path(), source))?;
            self.hash.update(bytes);
            self.done = self.done.saturating_add(count);
            match ended {
                Ended::No => {}
                Ended::Yes => return Ok(()),
                Ended::Broken(error) => {
                    return Err(self.source_fault(SourceFault::Read {
                        done: self.done,
                        total: source.length,
                        source: error,
                    }));
                }
            }
        }
    }

    /// Fills the piece as far as the source goes; says whether that was the end.
    fn fill(&self, source: &mut Source, piece: &mut [u8]) -> (usize, Ended) {
        let mut count = 0;
        while let Some(rest) = piece.get_mut(count..).filter(|rest| !rest.is_empty()) {
            if self.cancelled.load(Ordering::Relaxed) {
                break;
            }
            match source.reader.read(rest) {
                Ok(0) => return (count, Ended::Yes),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (count, Ended::Broken(error)),
            }
        }
        (count, Ended::No)
    }
}

/// Room for a download; images that nothing uses make it, if they have to.
pub(super) fn reserve(
    inner: &Inner,
    directory: &Path,
    load: &Load,
    length: Option<u64>,
) -> Result<Share, StorageFault> {
    match inner.room.reserve(directory, load.clone(), length) {
        Err(StorageFault::NoRoom {
            needed, available, ..
        }) if file_system(directory).ok() == file_system(&inner.paths.images).ok() => {
            evict::evict(inner, ByteCount::clamped(needed - available))?;
            inner.room.reserve(directory, load.clone(), length)
        }
        outcome => outcome,
    }
}

/// The same for so many bytes of a download that did not say how long it is.
pub(super) fn take(inner: &Inner, share: &mut Share, count: u64) -> Result<(), StorageFault> {
    match share.take(count) {
        Err(StorageFault::Full { .. }) => {
            evict::evict(inner, ByteCount::clamped(count.max(MORE_ROOM)))?;
            share.take(count)
        }
        outcome => outcome,
    }
}

/// Whether a source has more.
enum Ended {
    No,
    Yes,
    Broken(io::Error),
}

/// Writes a piece; one of zeros becomes a hole.
fn write(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    if bytes.iter().any(|byte| *byte != 0) {
        return file.write_all(bytes);
    }
    let count = i64::try_from(bytes.len()).map_err(io::Error::other)?;
    file.seek(SeekFrom::Current(count)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_read_well() {
        let at = |done, total| {
            Stage::Fetching {
                verb: "downloading",
                done,
                total,
            }
            .text()
        };
        assert_eq!(at(40, Some(100)), "downloading the image, 40 %");
        assert_eq!(at(u64::MAX, Some(u64::MAX)), "downloading the image, 100 %");
        assert_eq!(at(5 << 20, None), "downloading the image, 5 MB");
        assert_eq!(at(0, Some(0)), "downloading the image, 0 MB");
    }
}
