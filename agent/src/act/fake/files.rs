//! The files of a fake host.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::InstanceId,
    message::report::FaultCode,
    names::ImageUrl,
    units::{ByteCount, DiskGb},
};

use super::Disk;
use crate::{
    act::ActError,
    decide::{
        config_drive::DriveFile,
        image_cache::CachedName,
        instance::{InstanceFiles, StorageStep},
    },
};

#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) images: BTreeSet<CachedName>,
    pub(super) unreachable: BTreeSet<ImageUrl>,
    pub(super) disk: Disk,
    instances: BTreeMap<InstanceId, BTreeMap<u8, ByteCount>>,
    config_drives: BTreeMap<InstanceId, Vec<DriveFile>>,
}

impl Files {
    pub(super) fn observe(&self, instance: InstanceId) -> InstanceFiles {
        let disks = self.instances.get(&instance);
        InstanceFiles {
            directory: disks.is_some(),
            disks: disks
                .into_iter()
                .flat_map(|disks| disks.keys().copied())
                .collect(),
            config_drive: self.config_drives.contains_key(&instance),
        }
    }

    pub(super) fn instances(&self) -> Vec<InstanceId> {
        self.instances.keys().copied().collect()
    }

    pub(super) fn lose_disk(&mut self, instance: InstanceId, index: u8) {
        if let Some(disks) = self.instances.get_mut(&instance) {
            disks.remove(&index);
        }
    }

    /// Size and used bytes of a disk of this size.
    pub(super) fn space(&self, size: DiskGb) -> (ByteCount, ByteCount) {
        let total = ByteCount::from_gb(size);
        let used = self
            .instances
            .values()
            .flat_map(BTreeMap::values)
            .copied()
            .sum();
        (
            total,
            match self.disk {
                Disk::Roomy => used,
                Disk::Full => total,
            },
        )
    }

    pub(super) fn apply(&mut self, step: &StorageStep) -> Result<(), ActError> {
        match step {
            StorageStep::FetchImage(image) => {
                if self.images.contains(&CachedName::of(image)) {
                    return Ok(());
                }
                if self.unreachable.contains(&image.url) {
                    let what = format!("could not fetch {}", image.url);
                    return Err(ActError::retryable(
                        FaultCode::ImageUnreachable,
                        what,
                        "connection refused",
                    ));
                }
                self.needs_room("the image")?;
                self.images.insert(CachedName::of(image));
            }
            StorageStep::CreateDisk(plan) => {
                if !self.images.contains(&CachedName::of(&plan.image)) {
                    let what = format!("image {} is not in the cache", plan.image.sha256);
                    return Err(ActError::retryable(
                        FaultCode::Internal,
                        what,
                        "no such file",
                    ));
                }
                self.needs_room("the disk")?;
                self.instances
                    .entry(plan.instance)
                    .or_default()
                    .entry(plan.index)
                    .or_insert(plan.size);
            }
            StorageStep::CreateConfigDrive(plan) => {
                self.needs_room("the config drive")?;
                self.instances.entry(plan.instance).or_default();
                self.config_drives.insert(plan.instance, plan.files.clone());
            }
            StorageStep::RemoveInstance(instance) => {
                self.config_drives.remove(instance);
                self.instances.remove(instance);
            }
        }
        Ok(())
    }

    fn needs_room(&self, what: &str) -> Result<(), ActError> {
        match self.disk {
            Disk::Roomy => Ok(()),
            Disk::Full => Err(ActError::retryable(
                FaultCode::DiskFull,
                format!("could not write {what}"),
                "no space left",
            )),
        }
    }
}
