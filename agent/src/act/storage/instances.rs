//! The directories of instances: making, reading and removing them.
//!
//! An instance's directory belongs to root, and nobody else makes anything there: a guest that broke out of its QEMU cannot make a
//! root process write elsewhere by planting a link in place of the console log.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt as _, PermissionsExt, chown},
    path::Path,
};

use berth_common::{document::DiskFormat, ids::InstanceId, units::ByteCount};
use nix::{
    fcntl::OFlag,
    sys::statvfs::{Statvfs, statvfs},
};

use super::{atomic::sync_directory, fault::StorageFault, metadata};
use crate::decide::{
    image_header::qcow2,
    instance::{DiskName, InstanceFiles, OldFile, Paths, parse_config_drive},
};

/// Mode of the directories that hold images and instances, and of those of instances: QEMU passes through, and sees only what it was
/// told of. It makes nothing there: virtlogd, which is root, opens the console's log by its name and follows a link.
pub(super) const MODE: u32 = 0o711;

/// Makes one of the two top directories, if it is not there.
pub(super) fn make_root(directory: &Path) -> Result<(), StorageFault> {
    DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(directory)
        .map_err(|source| StorageFault::io("make the directory", directory, source))
}

/// Makes an instance's directory, if it is not there, with the right permissions in any case.
pub(super) fn make(paths: &Paths, id: InstanceId) -> Result<(), StorageFault> {
    make_root(&paths.instances)?;
    let directory = paths.instance(id);
    match DirBuilder::new().mode(0o700).create(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(&directory)? => {
        }
        Err(source) => return Err(StorageFault::io("make the directory", &directory, source)),
    }
    close(&directory)?;
    sync_directory(&paths.instances)
        .map_err(|source| StorageFault::io("write to disk", &paths.instances, source))
}

/// Sees that only root makes anything in a directory of an instance: older agents let QEMU's group.
fn close(directory: &Path) -> Result<(), StorageFault> {
    chown(directory, Some(0), Some(0))
        .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(MODE)))
        .map_err(|source| StorageFault::io("set the permissions of", directory, source))
}

/// The same for all that are there; answers what it could not do.
pub(super) fn close_all(paths: &Paths) -> Vec<StorageFault> {
    let ids = match list(paths) {
        Ok(ids) => ids,
        Err(fault) => return vec![fault],
    };
    let closed = |id: InstanceId| -> Result<(), StorageFault> {
        let directory = paths.instance(id);
        if is_directory(&directory)? {
            close(&directory)?;
        }
        Ok(())
    };
    ids.into_iter().filter_map(|id| closed(id).err()).collect()
}

/// The complete files of an instance.
pub(super) fn observe(paths: &Paths, id: InstanceId) -> Result<InstanceFiles, StorageFault> {
    let directory = paths.instance(id);
    let metadata = metadata::read(paths, id)?;
    let Some(names) = entries(&directory)? else {
        return Ok(InstanceFiles {
            metadata,
            ..InstanceFiles::default()
        });
    };
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    let disks: BTreeSet<DiskName> = names
        .iter()
        .filter_map(|name| DiskName::parse(name))
        .filter(|name| is_file(&paths.disk(id, *name, DiskFormat::Qcow2)))
        .collect();
    let mut sizes = BTreeMap::new();
    for name in &disks {
        let path = paths.disk(id, *name, DiskFormat::Qcow2);
        // One that berth did not write so has no size that it could be grown from.
        if let Some(size) = virtual_size(&path)? {
            sizes.insert(*name, size);
        }
    }
    let config_drives = names
        .iter()
        .filter_map(|name| parse_config_drive(name))
        .filter(|incarnation| is_file(&paths.config_drive(id, *incarnation)))
        .collect();
    Ok(InstanceFiles {
        directory: true,
        disks,
        sizes,
        config_drives,
        metadata,
    })
}

/// The virtual size of a disk that this host made; `None`: it is none.
pub(super) fn virtual_size(path: &Path) -> Result<Option<ByteCount>, StorageFault> {
    let failed = |source| StorageFault::io("read", path, source);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(failed)?;
    let mut head = Vec::with_capacity(qcow2::SIZED);
    file.take(u64::try_from(qcow2::SIZED).unwrap_or(u64::MAX))
        .read_to_end(&mut head)
        .map_err(failed)?;
    Ok(qcow2::own_size(&head))
}

/// Ids of all instances of which there is anything.
pub(super) fn list(paths: &Paths) -> Result<Vec<InstanceId>, StorageFault> {
    let names = entries(&paths.instances)?.unwrap_or_default();
    let mut ids: Vec<InstanceId> = names
        .iter()
        .filter_map(|name| {
            name.parse::<InstanceId>()
                .ok()
                .filter(|id| id.to_string() == *name)
        })
        .filter(|id| {
            fs::symlink_metadata(paths.instance(*id)).is_ok_and(|metadata| metadata.is_dir())
        })
        .collect();
    ids.extend(metadata::list(paths)?);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Removes a disk or a config drive that another one took the place of; nothing else, whatever it is asked. One that is
/// gone already is no error.
pub(super) fn remove_old(paths: &Paths, old: &OldFile) -> Result<(), StorageFault> {
    let directory = paths.instance(old.instance);
    let path = directory.join(&old.name);
    if DiskName::parse(&old.name).is_none() && parse_config_drive(&old.name).is_none() {
        return Err(StorageFault::NotOurs { path });
    }
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StorageFault::io("remove", &path, source)),
    }
    sync_directory(&directory)
        .map_err(|source| StorageFault::io("write to disk the directory", &directory, source))
}

/// Removes an instance's directory with all that is in it. The standard library walks it by descriptors and never
/// through a symbolic link, so nothing outside can be reached, whatever QEMU put there.
pub(super) fn remove(paths: &Paths, id: InstanceId) -> Result<(), StorageFault> {
    metadata::remove(paths, id)?;
    let directory = paths.instance(id);
    match fs::symlink_metadata(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StorageFault::io("look at", &directory, source)),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(StorageFault::NotOurs { path: directory });
        }
        Ok(_) => {}
    }
    match fs::remove_dir_all(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(StorageFault::io("remove", &directory, source)),
    }
    sync_directory(&paths.instances)
        .map_err(|source| StorageFault::io("write to disk", &paths.instances, source))
}

/// Size of the file system that holds the disks, and what is used of it: as `df` counts, so blocks that only root
/// may fill count as free.
pub(super) fn space(paths: &Paths) -> Result<(ByteCount, ByteCount), StorageFault> {
    make_root(&paths.instances)?;
    let status = statvfs(&paths.instances).map_err(|errno| {
        StorageFault::io("ask for the free space of", &paths.instances, errno.into())
    })?;
    Ok(size_and_used(&status))
}

/// The same of any file system.
pub(super) fn size_and_used(status: &Statvfs) -> (ByteCount, ByteCount) {
    let bytes = |blocks: u64| ByteCount::clamped(blocks.saturating_mul(status.fragment_size()));
    (
        bytes(status.blocks()),
        bytes(status.blocks().saturating_sub(status.blocks_free())),
    )
}

/// Names in a directory, those that are text; `None`: there is no such directory.
pub(super) fn entries(directory: &Path) -> Result<Option<Vec<String>>, StorageFault> {
    let failed = |source| StorageFault::io("list", directory, source);
    if !is_directory(directory)? {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(Some(names))
}

/// Whether a file is there, itself and not a link to one. Something else in its place is an error.
pub(super) fn is_file(path: &Path) -> Result<bool, StorageFault> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => Err(StorageFault::NotOurs {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StorageFault::io("look at", path, source)),
    }
}

/// Whether it is a directory itself, not a link to one. Something else in its place is an error.
pub(super) fn is_directory(path: &Path) -> Result<bool, StorageFault> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => Err(StorageFault::NotOurs {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StorageFault::io("look at", path, source)),
    }
}
