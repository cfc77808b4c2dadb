//! The files of a fake host.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use berth_common::{
    document::VolumeFormat,
    ids::{InstanceId, SnapshotId, VolumeId},
    message::{
        heartbeat::{PoolKind, PoolReport},
        report::FaultCode,
    },
    names::{ImageUrl, PoolName},
    units::{ByteCount, DiskGb},
};

use super::{Disk, faults::Nature};
use crate::{
    act::{ActError, PoolState},
    decide::{
        config_drive::DriveFile,
        image_cache::CachedName,
        instance::{DiskName, InstanceFiles, StorageStep, parse_config_drive},
        names,
        snapshot::{NewSnapshot, SnapshotFiles, StoredSnapshot},
        volume::{Content, NewVolume, VolumeContent, VolumeFile, VolumeFiles},
    },
};

#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    pub(super) images: BTreeSet<CachedName>,
    pub(super) unreachable: BTreeSet<ImageUrl>,
    pub(super) disk: Disk,
    instances: BTreeMap<InstanceId, BTreeMap<DiskName, FakeDisk>>,
    config_drives: BTreeMap<InstanceId, BTreeMap<PathBuf, Vec<DriveFile>>>,
    /// What the metadata service tells each guest.
    metadata: BTreeMap<InstanceId, String>,
    volumes: BTreeMap<VolumeId, Volume>,
    /// The pools besides `local`: what each is made of, and the bytes it has.
    pub(super) pools: BTreeMap<PoolName, (PoolKind, ByteCount)>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
}

/// What is there of a snapshot: a file, its mark, and what a hypervisor wrote.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    file: Option<FakeVolume>,
    made: bool,
    partial: Option<FakeVolume>,
    /// It has lost its name, and its bytes are there.
    leaving: bool,
}

/// What is there of a volume: a file, its mark, or both, and what is half done.
#[derive(Debug, Clone, Default)]
struct Volume {
    file: Option<FakeVolume>,
    made: bool,
    /// A block device that was to become it.
    partial: bool,
    /// Its block device is larger than it, and nobody has written zeros there.
    growing: bool,
    /// It has lost its name, and its bytes are there.
    leaving: bool,
}

/// A disk of an instance on a fake host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeDisk {
    /// Its size.
    pub size: ByteCount,
    /// What is on it, in words: the image it was made from, and what was written since.
    pub content: String,
}

/// A volume's file on a fake host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeVolume {
    /// The storage pool it is in.
    pub pool: PoolName,
    /// How it is stored.
    pub format: VolumeFormat,
    /// Its size.
    pub size: ByteCount,
    /// What is on it, in words: what it was made from, and what was written since.
    pub content: String,
    /// Of a block device: how much of it whoever has it knows of.
    pub known: ByteCount,
    /// Of a block device: whether it is noted that whoever has it may not know its size.
    pub grown: bool,
    /// Of a block device: whether it is there. The host has booted since it was, if it is not.
    pub active: bool,
}

/// What a step needs is not there.
fn missing(what: String) -> Result<(), ActError> {
    Err(ActError::retryable(
        FaultCode::Internal,
        what,
        "no such file",
    ))
}

impl Files {
    /// Whether what is in a pool is files.
    fn holds_files(&self, pool: &PoolName) -> bool {
        let kind = self.pools.get(pool).map(|(kind, _)| *kind);
        pool.is_local() || kind == Some(PoolKind::Dir)
    }

    pub(super) fn observe(&self, instance: InstanceId) -> InstanceFiles {
        let disks = self.instances.get(&instance);
        InstanceFiles {
            directory: disks.is_some(),
            disks: disks
                .into_iter()
                .flat_map(|disks| disks.keys().copied())
                .collect(),
            sizes: disks
                .into_iter()
                .flatten()
                .map(|(name, disk)| (*name, disk.size))
                .collect(),
            config_drives: self
                .config_drives
                .get(&instance)
                .into_iter()
                .flat_map(BTreeMap::keys)
                .filter_map(|path| parse_config_drive(path.file_name()?.to_str()?))
                .collect(),
            metadata: self.metadata.get(&instance).cloned(),
        }
    }

    pub(super) fn instances(&self) -> Vec<InstanceId> {
        let all = self.instances.keys().chain(self.metadata.keys());
        let all: BTreeSet<InstanceId> = all.copied().collect();
        all.into_iter().collect()
    }

    pub(super) fn have_disk(&mut self, instance: InstanceId, name: DiskName, size: ByteCount) {
        let disk = FakeDisk {
            size,
            content: "zeros".to_owned(),
        };
        self.instances
            .entry(instance)
            .or_default()
            .insert(name, disk);
    }

    pub(super) fn lose_disk(&mut self, instance: InstanceId, name: DiskName) {
        if let Some(disks) = self.instances.get_mut(&instance) {
            disks.remove(&name);
        }
    }

    pub(super) fn disks(&self, instance: InstanceId) -> BTreeMap<DiskName, FakeDisk> {
        self.instances.get(&instance).cloned().unwrap_or_default()
    }

    /// Writes to the disk that has this path, if it is there.
    pub(super) fn write_disk(&mut self, instance: InstanceId, path: &Path, text: &str) {
        let name = path.file_name().and_then(|name| name.to_str());
        let disk = name
            .and_then(DiskName::parse)
            .and_then(|name| self.instances.get_mut(&instance)?.get_mut(&name));
        if let Some(disk) = disk {
            disk.content = format!("{} + {text}", disk.content);
        } else if let Some(id) = self.volume_at(path) {
            self.write_volume(id, text);
        }
    }

    /// Makes the disk that has this path larger; `None`: there is none.
    pub(super) fn grow_disk(
        &mut self,
        instance: InstanceId,
        path: &Path,
        size: ByteCount,
    ) -> Option<()> {
        let name = DiskName::parse(path.file_name()?.to_str()?)?;
        let disk = self.instances.get_mut(&instance)?.get_mut(&name)?;
        disk.size = disk.size.max(size);
        Some(())
    }

    /// Size and used bytes of a disk of this size.
    pub(super) fn space(&self, size: DiskGb) -> (ByteCount, ByteCount) {
        let total = ByteCount::from_gb(size);
        let disks = self.instances.values().flat_map(BTreeMap::values);
        let disks = disks.map(|disk| disk.size);
        let volumes = self.volumes.values().filter_map(|it| it.file.as_ref());
        let snapshots = self.snapshots.values().filter_map(|it| it.file.as_ref());
        let stored = volumes.chain(snapshots);
        let stored = stored.filter(|file| file.pool.is_local());
        let used = disks.chain(stored.map(|file| file.size)).sum();
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
            StorageStep::CreateDirectory(instance) => {
                self.needs_room("the directory")?;
                self.instances.entry(*instance).or_default();
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
                    .entry(plan.name)
                    .or_insert_with(|| FakeDisk {
                        size: plan.size,
                        content: format!("image {}", plan.image.sha256),
                    });
            }
            StorageStep::GrowDisk(plan) => {
                self.needs_room("the disk")?;
                let disks = self.instances.entry(plan.instance).or_default();
                if let Some(disk) = disks.get_mut(&plan.name) {
                    disk.size = plan.size.max(disk.size);
                }
            }
            StorageStep::CreateConfigDrive(plan) => {
                self.needs_room("the config drive")?;
                self.instances.entry(plan.instance).or_default();
                self.config_drives
                    .entry(plan.instance)
                    .or_default()
                    .insert(plan.path.clone(), plan.files.clone());
            }
            StorageStep::WriteMetadata(plan) => {
                self.needs_room("the metadata")?;
                self.metadata.insert(plan.instance, plan.content.clone());
            }
            StorageStep::RemoveOldFile(old) => {
                if let (Some(name), Some(disks)) = (
                    DiskName::parse(&old.name),
                    self.instances.get_mut(&old.instance),
                ) {
                    disks.remove(&name);
                }
                if let Some(drives) = self.config_drives.get_mut(&old.instance) {
                    drives.retain(|path, _| !path.ends_with(&old.name));
                }
            }
            StorageStep::RemoveInstance(instance) => {
                self.metadata.remove(instance);
                self.config_drives.remove(instance);
                self.instances.remove(instance);
            }
            StorageStep::CreateVolume(plan) => self.create_volume(plan)?,
            StorageStep::MarkVolume(id) => {
                self.needs_room("the mark")?;
                self.volumes.entry(*id).or_default().made = true;
            }
            StorageStep::GrowVolume(plan) if self.holds_files(&plan.pool) => {
                self.grow(plan.id, plan.size)?;
            }
            StorageStep::GrowVolume(plan) => {
                self.needs_room("the volume")?;
                let file = self.file(plan.id)?;
                if plan.size > file.size {
                    file.size = plan.size;
                    file.grown = true;
                }
                self.volumes.entry(plan.id).or_default().growing = false;
            }
            StorageStep::SettleVolume(volume) => {
                let file = self.file(volume.id)?;
                file.grown = false;
            }
            StorageStep::ActivateVolume(volume) => self.file(volume.id)?.active = true,
            StorageStep::RemoveVolume(id) => {
                self.volumes.remove(id);
            }
            StorageStep::CreateSnapshot(plan) => self.create_snapshot(plan)?,
            StorageStep::PrepareSnapshot(_) => self.needs_room("the snapshot")?,
            StorageStep::NameSnapshot(StoredSnapshot { id, .. }) => {
                let snapshot = self.snapshots.entry(*id).or_default();
                if snapshot.file.is_none() {
                    let Some(partial) = snapshot.partial.take() else {
                        return missing(format!("nothing was written for snapshot {id}"));
                    };
                    snapshot.file = Some(partial);
                }
            }
            StorageStep::MarkSnapshot(StoredSnapshot { id, .. }) => {
                self.needs_room("the mark")?;
                self.snapshots.entry(*id).or_default().made = true;
            }
            StorageStep::DiscardPartialSnapshot(StoredSnapshot { id, .. }) => {
                if let Some(snapshot) = self.snapshots.get_mut(id) {
                    snapshot.partial = None;
                    if snapshot.file.is_none() && !snapshot.made {
                        self.snapshots.remove(id);
                    }
                }
            }
            StorageStep::RemoveSnapshot(id) => {
                self.snapshots.remove(id);
            }
        }
        Ok(())
    }

    /// Leaves half of a step, as an agent does that ends in the middle of it.
    pub(super) fn halve(&mut self, step: &StorageStep) -> Result<(), ActError> {
        match step {
            StorageStep::CreateVolume(plan) if self.volume(plan.id).is_none() => {
                self.volumes.entry(plan.id).or_default().partial = true;
            }
            StorageStep::GrowVolume(plan) => {
                let is_larger = plan.size > self.file(plan.id)?.size;
                self.volumes.entry(plan.id).or_default().growing |= is_larger;
            }
            StorageStep::RemoveVolume(id) => {
                let leaving = Volume {
                    leaving: true,
                    ..Volume::default()
                };
                self.volumes.insert(*id, leaving);
            }
            StorageStep::CreateSnapshot(plan) if self.snapshot(plan.id).is_none() => {
                let content = self.volume(plan.volume.id).map(|it| self.kept(it));
                self.snapshots.entry(plan.id).or_default().partial = content;
            }
            StorageStep::RemoveSnapshot(id) => {
                let leaving = Snapshot {
                    leaving: true,
                    ..Snapshot::default()
                };
                self.snapshots.insert(*id, leaving);
            }
            _ => {}
        }
        Ok(())
    }

    /// Somebody opens a volume, and knows how large it is.
    pub(super) fn open(&mut self, id: VolumeId) {
        if let Some(file) = self.volumes.get_mut(&id).and_then(|it| it.file.as_mut()) {
            file.known = file.size;
        }
    }

    pub(super) fn observe_volume(&self, id: VolumeId, pool: Option<&PoolName>) -> VolumeFiles {
        let Some(volume) = self.volumes.get(&id) else {
            return VolumeFiles::default();
        };
        let file = |file: &FakeVolume| VolumeFile {
            pool: file.pool.clone(),
            format: file.format,
            content: match () {
                () if !file.active => VolumeContent::Inactive,
                () if volume.growing => VolumeContent::Growing(file.size),
                () if file.grown => VolumeContent::Grown(file.size),
                () => VolumeContent::Size(file.size),
            },
        };
        VolumeFiles {
            files: volume
                .file
                .iter()
                .filter(|file| pool.is_none_or(|pool| file.pool == *pool))
                .map(file)
                .collect(),
            made: volume.made,
            leaving: volume.leaving,
            partial: volume.partial,
        }
    }

    pub(super) fn volumes(&self) -> Vec<VolumeId> {
        self.volumes.keys().copied().collect()
    }

    pub(super) fn volume(&self, id: VolumeId) -> Option<FakeVolume> {
        self.volumes.get(&id).and_then(|it| it.file.clone())
    }

    pub(super) fn lose_volume(&mut self, id: VolumeId) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.file = None;
        }
    }

    pub(super) fn write_volume(&mut self, id: VolumeId, text: &str) {
        if let Some(file) = self.volumes.get_mut(&id).and_then(|it| it.file.as_mut()) {
            file.content = format!("{} + {text}", file.content);
        }
    }

    /// Whose file or block device this is, if it is a volume's that is there.
    pub(super) fn volume_at(&self, path: &Path) -> Option<VolumeId> {
        if let Some(id) = names::volume_of(path.file_name()?.to_str()?) {
            return self
                .volume(id)
                .filter(|file| !self.holds_files(&file.pool) && file.active)
                .map(|_| id);
        }
        let id = path.file_stem()?.to_str()?.parse().ok()?;
        self.volume(id)
            .filter(|file| {
                path.extension()
                    .is_some_and(|it| it == file.format.as_str())
            })
            .map(|_| id)
    }

    /// The host boots: block devices are there only once they are activated.
    pub(super) fn power_cut(&mut self) {
        let pools = self.pools.clone();
        let is_device = |pool: &PoolName| {
            let kind = pools.get(pool).map(|(kind, _)| *kind);
            kind.is_some_and(|kind| kind != PoolKind::Dir)
        };
        for file in self.volumes.values_mut().filter_map(|it| it.file.as_mut()) {
            file.active = !is_device(&file.pool);
        }
    }

    /// Every pool besides `local`, and how full it is.
    pub(super) fn pools(&self) -> Vec<PoolState> {
        let report = |(name, (kind, total)): (&PoolName, &(PoolKind, ByteCount))| {
            let volumes = self.volumes.values().filter_map(|it| it.file.as_ref());
            let snapshots = self.snapshots.values().filter_map(|it| it.file.as_ref());
            let used: ByteCount = volumes
                .chain(snapshots)
                .filter(|file| file.pool == *name)
                .map(|file| file.size)
                .sum();
            PoolState {
                name: name.clone(),
                report: Ok(PoolReport {
                    name: name.clone(),
                    kind: *kind,
                    total_bytes: *total,
                    used_bytes: used,
                    provisioned_bytes: used,
                    metadata_percent: None,
                }),
            }
        };
        self.pools.iter().map(report).collect()
    }

    fn file(&mut self, id: VolumeId) -> Result<&mut FakeVolume, ActError> {
        let file = self.volumes.get_mut(&id).and_then(|it| it.file.as_mut());
        file.ok_or_else(|| not_there(id))
    }

    fn create_volume(&mut self, plan: &NewVolume) -> Result<(), ActError> {
        if self.volume(plan.id).is_some() {
            return Ok(());
        }
        let content = match &plan.content {
            Content::Zeros => "zeros".to_owned(),
            Content::Image(image) if !self.images.contains(&CachedName::of(image)) => {
                return missing(format!("image {} is not in the cache", image.sha256));
            }
            Content::Image(image) => format!("image {}", image.sha256),
            Content::Volume(source) => match self.volume(source.id) {
                None => return missing(format!("volume {} is not there", source.id)),
                Some(file) => file.content,
            },
            Content::Snapshot(source) => match self.snapshot(source.id) {
                None => return missing(format!("snapshot {} is not there", source.id)),
                Some(file) => file.content,
            },
        };
        self.needs_room("the volume")?;
        if !plan.pool.is_local() && !self.pools.contains_key(&plan.pool) {
            return missing(format!("pool {} is not there", plan.pool));
        }
        if !self.holds_files(&plan.pool) && plan.format != VolumeFormat::Raw {
            return Err(ActError::refused(
                FaultCode::Volume,
                format!("pool {} holds no files", plan.pool),
            ));
        }
        let volume = self.volumes.entry(plan.id).or_default();
        volume.partial = false;
        volume.file = Some(FakeVolume {
            pool: plan.pool.clone(),
            format: plan.format,
            size: plan.size,
            content,
            known: plan.size,
            grown: false,
            active: true,
        });
        Ok(())
    }

    fn create_snapshot(&mut self, plan: &NewSnapshot) -> Result<(), ActError> {
        if self.snapshot(plan.id).is_some() {
            return Ok(());
        }
        let Some(content) = self.volume(plan.volume.id) else {
            return missing(format!("volume {} is not there", plan.volume.id));
        };
        self.needs_room("the snapshot")?;
        let kept = self.kept(content);
        self.snapshots.entry(plan.id).or_default().file = Some(kept);
        Ok(())
    }

    /// A hypervisor copies a volume as it is now.
    pub(super) fn back_up(&mut self, volume: VolumeId, id: SnapshotId) -> Result<(), ActError> {
        self.needs_room("the snapshot")?;
        let Some(content) = self.volume(volume) else {
            return missing(format!("volume {volume} is not there"));
        };
        let kept = self.kept(content);
        let snapshot = self.snapshots.entry(id).or_default();
        if snapshot.partial.is_some() {
            return Err(ActError::refused(
                FaultCode::Hypervisor,
                format!("the file of snapshot {id} is there already"),
            ));
        }
        snapshot.partial = Some(kept);
        Ok(())
    }

    pub(super) fn observe_snapshot(
        &self,
        id: SnapshotId,
        pool: Option<&PoolName>,
    ) -> SnapshotFiles {
        let Some(snapshot) = self.snapshots.get(&id) else {
            return SnapshotFiles::default();
        };
        let is_in = |file: &&FakeVolume| pool.is_none_or(|pool| file.pool == *pool);
        let file = snapshot.file.as_ref().filter(is_in);
        SnapshotFiles {
            file: file.map(|file| VolumeContent::Size(file.size)),
            made: snapshot.made,
            leaving: snapshot.leaving,
            partial: snapshot.partial.as_ref().filter(is_in).is_some(),
        }
    }

    pub(super) fn snapshots(&self) -> Vec<SnapshotId> {
        self.snapshots.keys().copied().collect()
    }

    pub(super) fn snapshot(&self, id: SnapshotId) -> Option<FakeVolume> {
        self.snapshots.get(&id).and_then(|it| it.file.clone())
    }

    pub(super) fn lose_snapshot(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.snapshots.get_mut(&id) {
            snapshot.file = None;
        }
    }

    /// Makes a file larger, never smaller; of a block device whoever has it gets to know how large it is.
    pub(super) fn grow(&mut self, id: VolumeId, size: ByteCount) -> Result<(), ActError> {
        let pool = self.file(id)?.pool.clone();
        let is_file = self.holds_files(&pool);
        let file = self.file(id)?;
        if is_file {
            file.size = file.size.max(size);
        } else if size > file.size {
            return Err(ActError::retryable(
                FaultCode::Hypervisor,
                format!("could not resize volume {id}"),
                "Cannot grow device files",
            ));
        }
        file.known = size;
        Ok(())
    }

    /// A volume as a snapshot keeps it: in its pool, and of block devices one that nobody has use for until it is copied.
    fn kept(&self, volume: FakeVolume) -> FakeVolume {
        let is_file = self.holds_files(&volume.pool);
        FakeVolume {
            format: if is_file {
                VolumeFormat::Qcow2
            } else {
                VolumeFormat::Raw
            },
            grown: false,
            active: is_file,
            ..volume
        }
    }

    /// Files come whole, under another name first, and what is left of those is swept away. Of block devices it is found, and
    /// so is of both what is on its way out.
    pub(super) fn nature(&self, step: &StorageStep) -> Nature {
        let is_halved = match step {
            StorageStep::CreateVolume(plan) => !self.holds_files(&plan.pool),
            StorageStep::GrowVolume(plan) => !self.holds_files(&plan.pool),
            StorageStep::CreateSnapshot(plan) => !self.holds_files(&plan.volume.pool),
            StorageStep::RemoveVolume(_) | StorageStep::RemoveSnapshot(_) => true,
            _ => false,
        };
        Nature {
            halved_by_agent: is_halved,
            ..Nature::default()
        }
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

fn not_there(id: VolumeId) -> ActError {
    ActError::retryable(
        FaultCode::Internal,
        format!("volume {id} is not there"),
        "no such file",
    )
}
