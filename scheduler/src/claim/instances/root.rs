//! The volume that an instance boots from, instead of a disk of its own.
//!
//! ```text
//!  volume with a host ────▶ the instance is placed there or nowhere
//!  volume without one ────▶ the instance's host is the volume's, which claims its room there with the same decision
//! ```
//!
//! Its attachment is written with the instance's claim, and ends with the instance: nothing else takes that disk from it.
//! Such an instance never moves to another host: its volume would not.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{DiskBus, Flavor, VolumeAccess},
    ids::HostId,
    message::{request::InstanceCreate, view::RootVolume},
    names::VolumeName,
    units::DiskGb,
};
use berth_store::{
    attachments::{self, AttachmentRow, AttachmentState, ROOT},
    instances::{BootSource, InstanceRow},
    volumes::{self, VolumeRow},
};

use crate::{
    claim::{
        ClaimError,
        cloud::{Cloud, PlacedVolume},
        conflict, invalid,
        volumes::{self as claim_volumes, PoolRoom, Wanted, attach::check_volume},
    },
    context::Writing,
    place::{self, Demand, VolumeRoom},
};

/// A volume to boot from.
#[derive(Debug, Clone)]
pub(super) struct Root {
    volume: VolumeRow,
    wanted: RootVolume,
}

/// What is wrong with what a request says of where to boot from, without looking at any row.
pub(super) fn mistakes(request: &InstanceCreate) -> Vec<String> {
    let mut mistakes = Vec::new();
    match (&request.image, request.block_devices.as_slice()) {
        (Some(_), []) => {}
        (None, []) => mistakes.push(
            "an instance boots from an image or from a volume: give image, or block_devices with one volume".to_owned(),
        ),
        (Some(_), [_, ..]) => mistakes.push(
            "an instance boots from an image or from a volume: give image or block_devices, not both".to_owned(),
        ),
        (None, [device]) if device.boot_index != 0 => mistakes.push(format!(
            "block_devices[0].boot_index must be 0, what the instance boots from; got {}: attach other volumes when the \
             instance is built",
            device.boot_index
        )),
        (None, [_]) => {}
        (None, devices) => mistakes.push(format!(
            "block_devices must have one entry, what the instance boots from; got {}: attach other volumes when the \
             instance is built",
            devices.len()
        )),
    }
    mistakes
}

/// A flavor whose disk is of no account, as one that could be asked for.
pub(super) fn without_disk(flavor: Flavor) -> Flavor {
    Flavor {
        disk_gb: DiskGb::clamped(1),
        ..flavor
    }
}

impl Root {
    /// The volume that a request boots from, if it is fit for that. `before`: the instance, if the request is a
    /// repetition. `taken`: volumes that this batch has given away.
    ///
    /// # Errors
    /// A refusal that says why nobody boots from it, or a failure of the database.
    pub(super) async fn find(
        writing: &Writing<'_>,
        request: &InstanceCreate,
        before: Option<&InstanceRow>,
        taken: &[Given],
    ) -> Result<Option<Self>, ClaimError> {
        let Some(device) = request.block_devices.first() else {
            return Ok(None);
        };
        // By its name, another one might be meant by now.
        let before = before.and_then(|row| row.boot_source.volume());
        let named = before.map_or_else(|| device.volume.clone(), |root| root.id.to_string());
        let volume = claim_volumes::resolve(writing.txn(), &request.project, &named).await?;
        if volume.project != request.project {
            return Err(invalid(format!(
                "volume {} is of project {}, and instance {} of project {}: they must be of the same",
                volume.name, volume.project, request.name, request.project
            )));
        }
        if volume.desired_deleted || volume.deleted_at.is_some() {
            return Err(claim_volumes::being_deleted(&volume));
        }
        if volume.source.is_none() {
            return Err(conflict(format!(
                "volume {} was made empty, so there is nothing to boot from: make a volume from an image, a snapshot or \
                 another volume",
                volume.name
            )));
        }
        let in_batch = taken
            .iter()
            .map(|given| given.attachment)
            .find(|attachment| attachment.volume_id == volume.id);
        let attached = match in_batch {
            Some(attachment) => Some(attachment),
            None => attachments::of_volume(writing.txn(), volume.id).await?,
        };
        if let Some(attached) = attached {
            let has = claim_volumes::called(writing.txn(), attached.instance_id).await?;
            return Err(conflict(format!(
                "volume {} is attached to instance {has}: an instance boots only from a volume that no other one has",
                volume.name
            )));
        }
        check_volume(writing, &volume, VolumeAccess::ReadWrite).await?;
        let wanted = RootVolume {
            id: volume.id,
            delete_on_termination: device.delete_on_termination,
        };
        Ok(Some(Self { volume, wanted }))
    }

    /// What the instance boots from.
    pub(super) const fn boot_source(&self) -> BootSource {
        BootSource::Volume(self.wanted)
    }

    /// Asks hosts for what the volume needs, that it is there or has room there; the answer is what the instance takes by
    /// itself.
    pub(super) fn ask(&self, cloud: &Cloud, request: &mut place::Request) -> Demand {
        let volume = &self.volume;
        request.resources.disk_gb = DiskGb::ZERO;
        let demand = request.demand();
        match volume.host_id {
            Some(host) => request.volume_hosts = Some(BTreeSet::from([host])),
            // Of the host's disk, as the instance takes of it.
            None if volume.pool.is_local() => request.resources.disk_gb = volume.size_gb,
            None => {
                let (hosts, room) = self.room(cloud);
                request.volume_hosts = Some(hosts);
                request.volume_room = Some(room);
            }
        }
        demand
    }

    /// The hosts whose pool has room for the volume, and what the others lack.
    fn room(&self, cloud: &Cloud) -> (BTreeSet<HostId>, VolumeRoom) {
        let volume = &self.volume;
        let wanted = Wanted {
            what: "the volume",
            pool: &volume.pool,
            format: volume.format,
            size: volume.size_gb,
            more: volume.size_gb,
        };
        let claimed = cloud.claimed_of_pools(&volume.pool);
        let mut hosts = BTreeSet::new();
        let mut lacking = BTreeMap::new();
        let mut unfit = BTreeSet::new();
        for host in cloud.table().hosts() {
            let id = host.facts().id;
            let claimed = claimed.get(&id).copied().unwrap_or(DiskGb::ZERO);
            match claim_volumes::pool_room(host, wanted, claimed) {
                PoolRoom::Enough => {
                    hosts.insert(id);
                }
                PoolRoom::NoPool => {}
                PoolRoom::OtherFormat => {
                    unfit.insert(id);
                }
                PoolRoom::TooSmall { total } => {
                    lacking.insert(id, (total.get(), total.get()));
                }
                PoolRoom::Full { free, total } => {
                    lacking.insert(id, (free.get(), total.get()));
                }
            }
        }
        let room = VolumeRoom {
            pool: volume.pool.to_string(),
            needed: volume.size_gb.get(),
            lacking,
            format: volume.format.as_str(),
            unfit,
        };
        (hosts, room)
    }

    /// Gives the volume to an instance on a host; one that has no host yet gets this one, and its room there.
    pub(super) fn give(
        &self,
        writing: &mut Writing<'_>,
        instance: &InstanceRow,
        host: HostId,
    ) -> Given {
        let volume = &self.volume;
        let attachment = AttachmentRow {
            volume_id: volume.id,
            instance_id: instance.id,
            position: ROOT,
            access: VolumeAccess::ReadWrite,
            disk_bus: DiskBus::Virtio,
            state: AttachmentState::Attaching,
            created_at: writing.now,
        };
        let is_bound = volume.host_id.is_some();
        if !is_bound {
            let placed = PlacedVolume {
                host,
                pool: volume.pool.clone(),
                size_gb: volume.size_gb,
            };
            writing.cloud.place_volume(volume.id, placed);
        }
        writing.touch_volume(host, volume.id);
        Given {
            attachment,
            name: volume.name.clone(),
            binds: (!is_bound).then_some(host),
        }
    }
}

/// A volume that was given to an instance, to be written down.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// That the instance has it.
    pub(super) attachment: AttachmentRow,
    /// What it is called.
    pub(super) name: VolumeName,
    /// The host that it has from now on, if it had none.
    binds: Option<HostId>,
}

/// Writes down which instances have which volumes.
///
/// # Errors
/// When the database fails.
pub(super) async fn write(writing: &Writing<'_>, given: &[Given]) -> Result<(), ClaimError> {
    for volume in given {
        if let Some(host) = volume.binds {
            let id = volume.attachment.volume_id;
            volumes::set_host(writing.txn(), id, host, writing.now).await?;
        }
        attachments::insert(writing.txn(), &volume.attachment).await?;
    }
    Ok(())
}

/// The name of the volume that an instance boots from, for a refusal; `None`: it boots from a disk of its own.
///
/// # Errors
/// When the database fails.
pub(super) async fn name(
    writing: &Writing<'_>,
    row: &InstanceRow,
) -> Result<Option<String>, ClaimError> {
    let Some(root) = row.boot_source.volume() else {
        return Ok(None);
    };
    let volume = volumes::get(writing.txn(), root.id).await?;
    Ok(Some(volume.map_or_else(
        || root.id.to_string(),
        |volume| volume.name.to_string(),
    )))
}

/// The size of the volume that an instance boots from; `None`: it boots from a disk of its own.
///
/// # Errors
/// When the database fails.
pub(super) async fn size(
    writing: &Writing<'_>,
    row: &InstanceRow,
) -> Result<Option<DiskGb>, ClaimError> {
    let Some(root) = row.boot_source.volume() else {
        return Ok(None);
    };
    let volume = volumes::get(writing.txn(), root.id).await?;
    Ok(volume.map(|volume| volume.size_gb))
}

/// Ends the volume with its instance, if it was to be so: it goes when the instance is gone.
///
/// # Errors
/// A refusal while something needs the volume, or a failure of the database.
pub(super) async fn end(writing: &mut Writing<'_>, row: &InstanceRow) -> Result<(), ClaimError> {
    let Some(root) = row.boot_source.volume() else {
        return Ok(());
    };
    // One that never got a host never had the volume.
    let attachment = attachments::of_volume(writing.txn(), root.id).await?;
    let has_it = attachment.is_some_and(|attachment| attachment.instance_id == row.id);
    if root.delete_on_termination && has_it {
        claim_volumes::change::delete_with_instance(writing, root.id).await?;
    }
    Ok(())
}
