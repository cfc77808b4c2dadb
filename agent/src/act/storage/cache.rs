//! The image cache: one file per content, named by its sha256, or by that and the format it was converted from. A file
//! with such a name is whole, verified and on disk; it is never changed, and several overlays may lean on it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use berth_common::{
    document::{ImageFormat, ImageRef},
    units::ByteCount,
};
use nix::fcntl::OFlag;

use super::{fault::StorageFault, instances, source::for_people};
use crate::decide::{
    image_cache::CachedName,
    image_header::{self, ImageFacts, Judgement, Window},
    instance::Paths,
};

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// Its name, which says what it is.
    pub name: CachedName,
    /// Length of its file.
    pub size: ByteCount,
}

/// Whether an image is there.
pub(super) fn has(paths: &Paths, image: &ImageRef) -> Result<bool, StorageFault> {
    instances::is_file(&paths.image(image))
}

/// All images that are there.
pub(super) fn list(paths: &Paths) -> Result<Vec<CachedImage>, StorageFault> {
    let mut images = Vec::new();
    for name in instances::entries(&paths.images)?.unwrap_or_default() {
        let Some(name) = CachedName::parse(&name) else {
            continue;
        };
        match fs::symlink_metadata(paths.images.join(name.file_name())) {
            Ok(metadata) if metadata.is_file() => {
                images.push(CachedImage {
                    name,
                    size: ByteCount::clamped(metadata.len()),
                });
            }
            _ => {}
        }
    }
    images.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// Inspects a cached image as the format its document states, or as what that is converted to; `None`: it is not
/// there. Done at every use, because another document may state another format for the same bytes.
pub(super) fn facts(paths: &Paths, image: &ImageRef) -> Result<Option<ImageFacts>, StorageFault> {
    if !has(paths, image)? {
        return Ok(None);
    }
    let path = paths.image(image);
    let failed = |source| StorageFault::io("read", &path, source);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        // It was evicted in this moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    inspect(&file, &path, image.format.cached(), image).map(Some)
}

/// Inspects a file as an image of a format.
pub(super) fn inspect(
    file: &File,
    path: &Path,
    format: ImageFormat,
    image: &ImageRef,
) -> Result<ImageFacts, StorageFault> {
    let failed = |source| StorageFault::io("read", path, source);
    let length = file.metadata().map_err(failed)?.len();
    image_header::inspect(format, &mut FileWindow { file, length }).map_err(|judgement| {
        match judgement {
            Judgement::Refused(refusal) => StorageFault::Refused {
                url: for_people(&image.url),
                refusal,
            },
            Judgement::Unreadable(source) => failed(source),
        }
    })
}

/// The bytes of a file.
pub(super) struct FileWindow<'a> {
    pub(super) file: &'a File,
    pub(super) length: u64,
}

impl Window for FileWindow<'_> {
    type Error = io::Error;

    fn length(&self) -> u64 {
        self.length
    }

    fn read(&mut self, at: u64, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let offset = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.file.read_at(rest, offset) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }
}
