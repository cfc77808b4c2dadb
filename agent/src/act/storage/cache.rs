//! The image cache: one file per content, named by its sha256. A file with such a name is whole, verified and on
//! disk; it is never changed, and several overlays may lean on it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use berth_common::{
    document::{ImageFormat, ImageRef},
    names::ImageSha256,
    units::ByteCount,
};
use nix::fcntl::OFlag;

use super::{fault::StorageFault, instances, source::for_people};
use crate::decide::{
    image_header::{self, HEAD_BYTES, ImageFacts},
    instance::Paths,
};

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// Its content.
    pub sha256: ImageSha256,
    /// Length of its file.
    pub size: ByteCount,
}

/// Whether an image is there.
pub(super) fn has(paths: &Paths, sha256: &ImageSha256) -> Result<bool, StorageFault> {
    let path = paths.image(sha256);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => Err(StorageFault::NotOurs { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StorageFault::io("look at", &path, source)),
    }
}

/// All images that are there.
pub(super) fn list(paths: &Paths) -> Result<Vec<CachedImage>, StorageFault> {
    let mut images = Vec::new();
    for name in instances::entries(&paths.images)?.unwrap_or_default() {
        let Ok(sha256) = name.parse::<ImageSha256>() else {
            continue;
        };
        match fs::symlink_metadata(paths.image(&sha256)) {
            Ok(metadata) if metadata.is_file() => {
                images.push(CachedImage {
                    sha256,
                    size: ByteCount::clamped(metadata.len()),
                });
            }
            _ => {}
        }
    }
    images.sort_unstable_by(|a, b| a.sha256.cmp(&b.sha256));
    Ok(images)
}

/// Inspects a cached image as the format its document states; `None`: it is not there. Done at every use, because
/// another document may state another format for the same bytes.
pub(super) fn facts(paths: &Paths, image: &ImageRef) -> Result<Option<ImageFacts>, StorageFault> {
    if !has(paths, &image.sha256)? {
        return Ok(None);
    }
    let path = paths.image(&image.sha256);
    let failed = |source| StorageFault::io("read", &path, source);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(failed)?;
    inspect(file, &path, image).map(Some)
}

/// Inspects a file that is positioned at its beginning.
pub(super) fn inspect(
    file: File,
    path: &Path,
    image: &ImageRef,
) -> Result<ImageFacts, StorageFault> {
    let failed = |source| StorageFault::io("read", path, source);
    let length = file.metadata().map_err(failed)?.len();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX))
        .read_to_end(&mut head)
        .map_err(failed)?;
    let format: ImageFormat = image.format;
    image_header::inspect(format, &head, length).map_err(|refusal| StorageFault::Refused {
        url: for_people(&image.url),
        refusal,
    })
}
