//! What the metadata service tells guests: one small file for each instance, which only that service's user can read.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
};

use berth_common::ids::InstanceId;

use super::{
    Inner,
    atomic::{remove_durably, sync_directory},
    fault::StorageFault,
    instances,
};
use crate::{
    act::account::{METADATA_USERS, group_of},
    decide::instance::{MetadataPlan, Paths},
};

/// It may hold secrets: the service's group reads it, and nobody else.
const MODE: u32 = 0o640;
/// One that is larger was not written by berth.
const SIZE_MAX: u64 = 4 << 20;
const SUFFIX: &str = ".json";

/// Writes what an instance is told. Whoever reads at the same time gets the old file or the new one.
pub(super) fn write(inner: &Inner, plan: &MetadataPlan) -> Result<(), StorageFault> {
    let directory = &inner.paths.metadata;
    instances::make_root(directory)?;
    let temporary = inner.temporaries.claim(directory, "metadata")?;
    let failed = |source| StorageFault::io("write", temporary.path(), source);
    let group = group_of(&METADATA_USERS).map_err(failed)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary.path())
        .map_err(failed)?;
    if let Some(group) = group {
        fchown(&file, Some(0), Some(group.as_raw())).map_err(failed)?;
    }
    file.set_permissions(Permissions::from_mode(MODE))
        .and_then(|()| file.write_all(plan.content.as_bytes()))
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    let path = inner.paths.metadata_file(plan.instance);
    fs::rename(temporary.path(), &path)
        .and_then(|()| sync_directory(directory))
        .map_err(|source| StorageFault::io("replace", &path, source))
}

/// What an instance is told; `None`: nothing. What berth did not write so is written anew.
pub(super) fn read(paths: &Paths, id: InstanceId) -> Result<Option<String>, StorageFault> {
    let path = paths.metadata_file(id);
    let failed = |source| StorageFault::io("read", &path, source);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let group = file.metadata().map_err(failed)?.gid();
    // It was written when the service had another user, or none.
    if group_of(&METADATA_USERS)
        .map_err(failed)?
        .is_some_and(|wanted| wanted.as_raw() != group)
    {
        return Ok(Some(String::new()));
    }
    let mut bytes = Vec::new();
    file.take(SIZE_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Some(String::from_utf8(bytes).unwrap_or_default()))
}

/// Removes it, if it is there.
pub(super) fn remove(paths: &Paths, id: InstanceId) -> Result<(), StorageFault> {
    let path = paths.metadata_file(id);
    remove_durably(&path).map_err(|source| StorageFault::io("remove", &path, source))
}

/// The instances that are told anything.
pub(super) fn list(paths: &Paths) -> Result<Vec<InstanceId>, StorageFault> {
    let names = instances::entries(&paths.metadata)?.unwrap_or_default();
    let ids = names.iter().filter_map(|name| {
        let id = name.strip_suffix(SUFFIX)?;
        id.parse()
            .ok()
            .filter(|parsed: &InstanceId| parsed.to_string() == id)
    });
    Ok(ids.collect())
}
