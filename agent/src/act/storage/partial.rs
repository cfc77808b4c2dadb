//! An image that is not whole yet, and what is known of where its bytes come from.
//!
//! ```text
//!   .partial-<sha256>         the bytes so far, from the first one on
//!   .partial-<sha256>.from    the server's mark of the version they are of; without it nothing is continued
//! ```
//!
//! Both go away with the step that made them, unless it ends in a way that a later one can continue. What is in them is
//! never trusted: the checksum is over the whole image, always.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use berth_common::document::ImageRef;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Inner,
    atomic::write_atomically,
    fault::StorageFault,
    temporary::{PARTIAL, Temporary},
};

/// What the name of the mark ends with.
pub(super) const FROM: &str = ".from";
/// A mark is a short text: of a larger file only so much is read, in bytes.
const MAX_MARK: u64 = 8192;
/// How much is hashed at a time, in bytes.
const PIECE: usize = 128 * 1024;

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The sha256 of the URL: another server's bytes are not continued, and a token in a URL is not written down.
    url_sha256: String,
    /// The server's name of this version: a strong ETag, or when it was changed.
    pub(super) version: String,
    /// How many bytes there are in all, if it said so.
    pub(super) total: Option<u64>,
}

impl Origin {
    pub(super) fn new(image: &ImageRef, version: String, total: Option<u64>) -> Self {
        Self {
            url_sha256: hex(Sha256::digest(image.url.as_str())),
            version,
            total,
        }
    }
}

/// A digest as text.
pub(super) fn hex(digest: impl AsRef<[u8]>) -> String {
    let bytes = digest.as_ref().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// The file that an image is fetched into.
pub(super) struct Partial {
    bytes: Temporary,
    /// `None`: an earlier fetch of the same content has not let go of its files yet, and this one leaves none behind.
    mark: Option<Temporary>,
    origin: Option<Origin>,
    pub(super) file: File,
}

impl Partial {
    /// What an earlier fetch left, or a new empty file.
    pub(super) fn open(inner: &Inner, image: &ImageRef) -> Result<Self, StorageFault> {
        let images = &inner.paths.images;
        let name = format!("{PARTIAL}{}", image.sha256);
        let both = inner.temporaries.claim_named(images, &name).zip(
            inner
                .temporaries
                .claim_named(images, &format!("{name}{FROM}")),
        );
        let Some((bytes, mark)) = both else {
            let bytes = inner.temporaries.claim(images, &name)?;
            let file = create(bytes.path())?;
            return Ok(Self {
                bytes,
                mark: None,
                origin: None,
                file,
            });
        };
        let origin = read_mark(mark.path())
            .filter(|origin| *origin == Origin::new(image, origin.version.clone(), origin.total));
        let old = origin.as_ref().and_then(|_| reopen(bytes.path()));
        let (file, origin) = match old {
            Some(file) => (file, origin),
            None => {
                for path in [bytes.path(), mark.path()] {
                    remove(path)?;
                }
                (create(bytes.path())?, None)
            }
        };
        Ok(Self {
            bytes,
            mark: Some(mark),
            origin,
            file,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// Where the bytes come from, if they can be continued.
    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Notes where the bytes that follow come from; `None`: from where nothing can be continued.
    pub(super) fn comes_from(&mut self, origin: Option<Origin>) -> Result<(), StorageFault> {
        let Some(mark) = &self.mark else {
            return Ok(());
        };
        if self.origin == origin {
            return Ok(());
        }
        match &origin {
            None => remove(mark.path())?,
            Some(origin) => {
                let failed = |source| StorageFault::io("write", mark.path(), source);
                let text =
                    serde_json::to_vec(origin).map_err(|error| failed(io::Error::other(error)))?;
                write_atomically(mark.path(), &text).map_err(failed)?;
            }
        }
        self.origin = origin;
        Ok(())
    }

    /// Throws the bytes away.
    pub(super) fn restart(&mut self) -> Result<(), StorageFault> {
        self.comes_from(None)?;
        let failed = |source| StorageFault::io("empty", self.bytes.path(), source);
        self.file.set_len(0).map_err(failed)?;
        self.file.rewind().map_err(failed)
    }

    /// Hashes what is there; says how much that is. The file is then at its end.
    pub(super) fn hash(
        &mut self,
        hash: &mut Sha256,
        cancelled: &AtomicBool,
    ) -> Result<u64, StorageFault> {
        let failed = |source| StorageFault::io("read", self.bytes.path(), source);
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut piece = vec![0; PIECE];
        let mut done = 0_u64;
        while !cancelled.load(Ordering::Relaxed) {
            let count = match self.file.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            hash.update(piece.get(..count).unwrap_or_default());
            done = done.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(done)
    }

    /// Leaves the first so many bytes for a later fetch, if that could go on with them.
    pub(super) fn leave(self, done: u64) {
        let can_go_on = self.origin.is_some() && done > 0 && self.file.set_len(done).is_ok();
        if let (true, Some(mark)) = (can_go_on, self.mark) {
            mark.leave();
            self.bytes.leave();
        }
    }

    /// Gives the file, which is complete and on disk, its final name.
    pub(super) fn publish(self, path: &Path) -> Result<(), StorageFault> {
        self.bytes.publish(path)
    }
}

fn create(path: &Path) -> Result<File, StorageFault> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| StorageFault::io("make", path, source))
}

/// A file that an earlier fetch left; what is no plain file of its is not taken.
fn reopen(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
        .open(path)
        .ok()?;
    let kind = file.metadata().ok()?.file_type();
    kind.is_file().then_some(file)
}

fn read_mark(path: &Path) -> Option<Origin> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_NONBLOCK.bits())
        .open(path)
        .ok()?;
    let mut text = Vec::new();
    file.take(MAX_MARK).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn remove(path: &Path) -> Result<(), StorageFault> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StorageFault::io("remove", path, error))
        }
        _ => Ok(()),
    }
}
