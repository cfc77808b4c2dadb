//! One fetch of one image, on a thread that may block: stream to a partial file while hashing, compare, inspect,
//! and only then give it its name. Whatever goes wrong, the partial file goes away with it.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use berth_common::document::ImageRef;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{
    Inner, cache,
    convert::Fetched,
    fault::StorageFault,
    instances,
    room::Share,
    source::{self, Source, SourceFault, for_people},
    temporary::PARTIAL,
};

/// How much is read, hashed and written at a time, in bytes. A piece of zeros becomes a hole.
const PIECE: usize = 128 * 1024;
/// How often progress is told: a few times a second is enough for people.
const TELL_EVERY: Duration = Duration::from_millis(250);
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
        return Ok(None);
    }
    let images = &inner.paths.images;
    instances::make_root(images)?;
    let url = for_people(&image.url);
    let source = source::open(&image.url, &inner.paths, &inner.options).map_err(|source| {
        StorageFault::Source {
            url: url.clone(),
            source,
        }
    })?;
    let limit = inner.options.max_image.get();
    if source.length.is_some_and(|length| length > limit) {
        return Err(StorageFault::TooLarge { url, limit });
    }
    let share = inner.room.reserve(images, &url, source.length)?;
    let tell_sum = source.is_public;

    let partial = inner
        .temporaries
        .claim(images, &format!("{PARTIAL}{}", image.sha256))?;
    let path = partial.path();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| StorageFault::io("make", path, source))?;
    let got = Copy {
        url: &url,
        path,
        limit,
        cancelled,
        stage,
    }
    .run(source, share, &mut file)?;
    if got != image.sha256.as_str() {
        return Err(StorageFault::Checksum {
            url,
            expected: image.sha256.clone(),
            got: tell_sum.then_some(got),
        });
    }
    stage.send_replace(Stage::Checking);
    let failed = |source| StorageFault::io("write", path, source);
    file.set_permissions(Permissions::from_mode(IMAGE_MODE))
        .map_err(failed)?;
    let facts = cache::inspect(&file, path, image.format, image)?;
    if image.format.is_converted() {
        return Ok(Some(Fetched { partial, facts }));
    }
    file.sync_all().map_err(failed)?;
    partial.publish(&inner.paths.image(image))?;
    Ok(None)
}

/// The bounds of one copy.
struct Copy<'a> {
    url: &'a str,
    path: &'a Path,
    limit: u64,
    cancelled: &'a AtomicBool,
    stage: &'a watch::Sender<Stage>,
}

impl Copy<'_> {
    /// Streams all bytes into the file; returns their sha256 in hex.
    fn run(
        &self,
        mut source: Source,
        mut share: Share<'_>,
        file: &mut File,
    ) -> Result<String, StorageFault> {
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        let mut done = 0_u64;
        let mut told: Option<Instant> = None;
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(StorageFault::Cancelled {
                    url: self.url.to_owned(),
                });
            }
            if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                self.stage.send_replace(Stage::Fetching {
                    verb: source.verb,
                    done,
                    total: source.length,
                });
            }
            let (count, ended) = self.fill(&mut source, &mut piece, done)?;
            let bytes = &piece[..count];
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            done = done.saturating_add(count);
            if done > self.limit {
                return Err(StorageFault::TooLarge {
                    url: self.url.to_owned(),
                    limit: self.limit,
                });
            }
            share.take(count)?;
            hash.update(bytes);
            self.write(file, bytes)
                .map_err(|source| StorageFault::io("write", self.path, source))?;
            if ended {
                break;
            }
        }
        if let Some(total) = source.length.filter(|total| *total != done) {
            let source = SourceFault::Short { done, total };
            return Err(StorageFault::Source {
                url: self.url.to_owned(),
                source,
            });
        }
        // A hole at the end exists only as the file's length.
        file.set_len(done)
            .map_err(|source| StorageFault::io("write", self.path, source))?;
        Ok(hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    /// Fills the piece as far as the source goes; says whether that was the end.
    fn fill(
        &self,
        source: &mut Source,
        piece: &mut [u8],
        done: u64,
    ) -> Result<(usize, bool), StorageFault> {
        let mut count = 0;
        while count < piece.len() {
            if self.cancelled.load(Ordering::Relaxed) {
                break;
            }
            match source.reader.read(&mut piece[count..]) {
                Ok(0) => return Ok((count, true)),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let done = done.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                    let source = SourceFault::Read {
                        done,
                        total: source.length,
                        source: error,
                    };
                    return Err(StorageFault::Source {
                        url: self.url.to_owned(),
                        source,
                    });
                }
            }
        }
        Ok((count, false))
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().any(|byte| *byte != 0) {
            return file.write_all(bytes);
        }
        let count = i64::try_from(bytes.len()).map_err(io::Error::other)?;
        file.seek(SeekFrom::Current(count)).map(drop)
    }
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
