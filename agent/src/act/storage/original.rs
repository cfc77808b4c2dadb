//! What a volume or a snapshot is made from: a cached image, another volume, in whatever pool that is, or a snapshot.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_common::{
    document::{ImageRef, SnapshotRef, VolumeFormat, VolumeRef},
    ids::SnapshotId,
    units::ByteCount,
};
use nix::sys::stat::{major, minor};

use super::{
    Inner, cache,
    evict::{Lease, touch},
    fault::StorageFault,
    file_pool::FilePool,
    instances::is_file,
    lvm::{LvmPool, Reading},
    pools::{self, Store},
    snapshot,
    source::for_people,
};
use crate::decide::{
    instance::Paths,
    volume::{Content, NewVolume},
};

/// What a volume or a snapshot is copied from.
pub(super) struct Original {
    /// Where.
    pub(super) path: PathBuf,
    /// How it is stored.
    pub(super) format: &'static str,
    /// Its virtual size.
    pub(super) size: ByteCount,
    /// Bytes that it takes on its disk; `None`: a block device does not tell.
    pub(super) allocated: Option<u64>,
    /// When it was written to last.
    pub(super) written: Written,
    /// For people.
    pub(super) what: String,
    /// Of an image, which a stranger made: it stays in the cache as long as this.
    pub(super) lease: Option<Lease>,
    /// Of a snapshot that is a logical volume: its device is there as long as this.
    pub(super) reading: Option<Reading>,
}

/// When something was written to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// A file, by its seconds and nanoseconds.
    At(i64, i64),
    /// A block device, by how many sectors were written since it is there.
    Sectors(u64),
}

/// What to copy, inspected as what it is said to be; `None`: the volume begins with zeros.
pub(super) async fn of(
    inner: &Arc<Inner>,
    plan: &NewVolume,
) -> Result<Option<Original>, StorageFault> {
    let original = match &plan.content {
        Content::Zeros => return Ok(None),
        Content::Image(image) => {
            let (shared, image) = (Arc::clone(inner), image.clone());
            inner.files.run(move || cached(&shared, &image)).await?
        }
        Content::Volume(source) => volume(inner, source).await?,
        Content::Snapshot(source) => match pools::store(inner, &source.pool)? {
            Store::Files(pool) => {
                let (shared, its, id) = (Arc::clone(inner), Arc::clone(pool), source.id);
                let kept = move || its.on_disk(|| kept(&shared.paths, &its, id));
                pool.threads.run(kept).await?
            }
            Store::Lvm(lvm) => kept_device(inner, lvm, source).await?,
        },
    };
    if original.size > plan.size {
        return Err(StorageFault::VolumeTooSmall {
            id: plan.id,
            size: plan.size.get(),
            needed: original.size.get(),
        });
    }
    Ok(Some(original))
}

fn cached(inner: &Inner, image: &ImageRef) -> Result<Original, StorageFault> {
    let lease = inner.uses.lease(image);
    let facts = cache::facts(&inner.paths, image)?.ok_or_else(|| StorageFault::NotCached {
        sha256: image.sha256.clone(),
    })?;
    let path = inner.paths.image(image);
    touch(&path);
    Ok(Original {
        format: image.format.cached().as_str(),
        size: facts.virtual_size,
        what: format!("the image {}", for_people(&image.url)),
        lease: Some(lease),
        ..at(&path)?
    })
}

/// Another volume.
pub(super) async fn volume(
    inner: &Arc<Inner>,
    source: &VolumeRef,
) -> Result<Original, StorageFault> {
    let path = inner.paths.volume(&source.pool, source.id, source.format);
    let found = pools::observe(inner, source.id, Some(&source.pool)).await?;
    let Some(size) = found.whole(&source.pool, source.format) else {
        return Err(StorageFault::VolumeNotThere {
            id: source.id,
            path,
        });
    };
    let bare = inner.files.run(move || at(&path)).await?;
    Ok(Original {
        format: source.format.as_str(),
        size,
        what: format!("volume {}", source.id),
        ..bare
    })
}

fn kept(paths: &Paths, pool: &FilePool, id: SnapshotId) -> Result<Original, StorageFault> {
    let path = pool.place.snapshot(id);
    let mut found = snapshot::observe(pool, id)?;
    found.made = is_file(&paths.snapshot_mark(id))?;
    let Some(size) = found.whole() else {
        return Err(StorageFault::SnapshotNotThere { id, path });
    };
    Ok(Original {
        format: VolumeFormat::Qcow2.as_str(),
        size,
        what: format!("snapshot {id}"),
        ..at(&path)?
    })
}

/// A snapshot that is a logical volume.
async fn kept_device(
    inner: &Arc<Inner>,
    lvm: &LvmPool,
    source: &SnapshotRef,
) -> Result<Original, StorageFault> {
    let id = source.id;
    let (size, reading) = lvm.read_snapshot(id).await?;
    let path = inner.paths.snapshot(&source.pool, id);
    let bare = inner.files.run(move || at(&path)).await?;
    Ok(Original {
        size,
        what: format!("snapshot {id}"),
        reading: Some(reading),
        ..bare
    })
}

/// What can be said of anything that lies here.
fn at(path: &Path) -> Result<Original, StorageFault> {
    // `qemu-img` does not work in this process's directory.
    let path =
        std::path::absolute(path).map_err(|source| StorageFault::io("find", path, source))?;
    let written = written(&path)?;
    Ok(Original {
        allocated: match written {
            Written::At(..) => Some(allocated(&path)?),
            Written::Sectors(_) => None,
        },
        written,
        path,
        format: "raw",
        size: ByteCount::ZERO,
        what: String::new(),
        lease: None,
        reading: None,
    })
}

/// Bytes that a file takes on its disk.
pub(super) fn allocated(path: &Path) -> Result<u64, StorageFault> {
    let metadata =
        fs::symlink_metadata(path).map_err(|source| StorageFault::io("look at", path, source))?;
    Ok(metadata.blocks().saturating_mul(512))
}

/// When a file or a block device was written to last.
pub(super) fn written(path: &Path) -> Result<Written, StorageFault> {
    let failed = |source| StorageFault::io("look at", path, source);
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.file_type().is_block_device() {
        return sectors_written(metadata.rdev())
            .map(Written::Sectors)
            .map_err(failed);
    }
    Ok(Written::At(metadata.mtime(), metadata.mtime_nsec()))
}

/// How many sectors were written to a block device: the seventh figure of its statistics
/// (Documentation/block/stat.rst of the kernel).
fn sectors_written(device: u64) -> std::io::Result<u64> {
    let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    let text = fs::read_to_string(path)?;
    let figure = text.split_ascii_whitespace().nth(6);
    figure
        .and_then(|figure| figure.parse().ok())
        .ok_or_else(|| std::io::Error::other("the kernel tells no sectors written of it"))
}

/// Refuses a copy that may hold parts of what was written meanwhile: QEMU's locks keep no guest from raw bytes that are
/// only read.
pub(super) async fn check_unwritten(
    inner: &Arc<Inner>,
    original: Original,
) -> Result<(), StorageFault> {
    let (path, before) = (original.path, original.written);
    let after = inner.files.run(move || written(&path)).await?;
    // Nobody reads it any more, and its device may go.
    drop(original.reading);
    if after == before {
        Ok(())
    } else {
        Err(StorageFault::WrittenMeanwhile {
            what: original.what,
        })
    }
}
