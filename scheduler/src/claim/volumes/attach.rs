//! Giving volumes to instances, and taking them back.
//!
//! ```text
//!  attach ─▶ attaching ── its host confirms the instance's document ─▶ attached
//!                └─────────────────── detach ─────────────────────────────┴─▶ detaching
//!  detaching ── its host confirms an instance's document without the volume, or the instance is gone ─▶ free
//! ```
//!
//! A volume is free only when its host saw the device gone: until then nobody else gets it. An instance that may yet move
//! to another host gets none. A guest that switched itself off stays off when its volumes change.

use std::collections::BTreeSet;

use berth_common::{
    document::{DesiredPower, DiskBus, VolumeAccess},
    ids::{HostId, InstanceId},
    message::{
        request::{VolumeAttach, VolumeDetach},
        view::{VolumeStatus, VolumeView},
    },
};
use berth_store::{
    attachments::{self, AttachmentRow, AttachmentState, ROOT},
    hosts,
    instances::{self, InstanceRow},
    volumes::{self, VolumeRow},
};

use super::{Wanted, again, being_deleted, called, check_not_copied, check_room, resolve};
use crate::{
    claim::{
        ClaimError,
        cloud::PlacedVolume,
        conflict,
        instances::{self as claim_instances, boot::check_not_rescued, change::leave_off},
        invalid,
    },
    context::Writing,
    report::show,
};

/// The most volumes an instance may have, each with a name of one letter after its own disk's.
pub const MAX_VOLUMES: u8 = 24;
/// The most of them on the bus virtio: each sits in a PCI port of its own, and a machine has so many spare ones.
pub const MAX_VIRTIO_VOLUMES: usize = 8;

/// Attaches a volume to an instance; one without a host gets the instance's.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn attach(
    writing: &mut Writing<'_>,
    request: &VolumeAttach,
) -> Result<VolumeView, ClaimError> {
    let volume = resolve(writing.txn(), &request.project, &request.volume).await?;
    let instance =
        claim_instances::resolve(writing.txn(), &request.project, &request.instance).await?;
    if volume.project != instance.project {
        return Err(invalid(format!(
            "volume {} is of project {}, and instance {} of project {}: they must be of the same",
            volume.name, volume.project, instance.name, instance.project
        )));
    }
    if volume.desired_deleted || volume.deleted_at.is_some() {
        return Err(being_deleted(&volume));
    }
    let host = check_instance(writing, &instance)?;
    if let Some(there) = attachments::of_volume(writing.txn(), volume.id).await? {
        check_same(writing, &volume, &there, &instance, request).await?;
        return show::volume(writing.context(), writing.txn(), &volume).await;
    }
    check_suspended(&instance)?;
    check_not_rescued(&instance)?;
    check_volume(writing, &volume, request.access).await?;
    check_host(writing, &volume, &instance, host).await?;
    let attachment = AttachmentRow {
        volume_id: volume.id,
        instance_id: instance.id,
        position: free_position(writing, &instance, request.disk_bus).await?,
        access: request.access,
        disk_bus: request.disk_bus,
        state: AttachmentState::Attaching,
        created_at: writing.now,
    };
    if volume.host_id.is_none() {
        bind(writing, &volume, host).await?;
    }
    attachments::insert(writing.txn(), &attachment).await?;
    leave_off(writing, host, &instance).await?;
    writing.touch_instance(host, instance.id);
    writing.derive().await?;
    tracing::info!(volume = %volume.id, instance = %instance.id, "volume is to be attached");
    let volume = again(writing.txn(), volume.id).await?;
    show::volume(writing.context(), writing.txn(), &volume).await
}

/// The host of an instance that volumes may be attached to.
fn check_instance(writing: &Writing<'_>, instance: &InstanceRow) -> Result<HostId, ClaimError> {
    let name = &instance.name;
    if instance.desired_deleted || instance.deleted_at.is_some() {
        return Err(conflict(format!("instance {name} is being deleted")));
    }
    let Some(placed) = writing.cloud.placed(instance.id) else {
        return Err(conflict(format!(
            "instance {name} has no host; repeat the request that created it, or delete it"
        )));
    };
    if !instance.observed.was_active {
        return Err(conflict(format!(
            "instance {name} was not built yet, and may still get another host; attach the volume when it is built"
        )));
    }
    Ok(placed.host)
}

/// A guest whose memory is on disk knows the disks it had, and no others.
fn check_suspended(instance: &InstanceRow) -> Result<(), ClaimError> {
    if instance.desired_power == DesiredPower::Suspended {
        return Err(conflict(format!(
            "instance {} is suspended, and its memory knows the disks it has; resume it first",
            instance.name
        )));
    }
    Ok(())
}

/// Lets a repetition pass: the volume is attached as it is asked for already.
async fn check_same(
    writing: &Writing<'_>,
    volume: &VolumeRow,
    there: &AttachmentRow,
    instance: &InstanceRow,
    request: &VolumeAttach,
) -> Result<(), ClaimError> {
    let name = called(writing.txn(), there.instance_id).await?;
    let volume = &volume.name;
    if there.state == AttachmentState::Detaching {
        return Err(conflict(format!(
            "volume {volume} is being detached from instance {name}; attach it when it is available"
        )));
    }
    if there.instance_id != instance.id {
        return Err(conflict(format!(
            "volume {volume} is attached to instance {name}; detach it there first"
        )));
    }
    if there.access != request.access {
        return Err(conflict(format!(
            "volume {volume} is attached to instance {name} already, with access {}; detach it first to attach it with \
             access {}",
            there.access.as_str(),
            request.access.as_str()
        )));
    }
    if there.disk_bus != request.disk_bus {
        return Err(conflict(format!(
            "volume {volume} is attached to instance {name} already, on the bus {}; detach it first to attach it on the \
             bus {}",
            there.disk_bus.as_str(),
            request.disk_bus.as_str()
        )));
    }
    Ok(())
}

/// Refuses a volume that is copied, in error, or cannot be given away so.
///
/// # Errors
/// A refusal, or a failure of the database.
pub(in crate::claim) async fn check_volume(
    writing: &Writing<'_>,
    volume: &VolumeRow,
    access: VolumeAccess,
) -> Result<(), ClaimError> {
    check_not_copied(writing.txn(), volume).await?;
    let shown = show::volume(writing.context(), writing.txn(), volume).await?;
    if shown.status == VolumeStatus::Error {
        let why = shown.fault.map_or_else(String::new, |fault| fault.message);
        return Err(conflict(format!(
            "volume {} is in error: {why}",
            volume.name
        )));
    }
    // A disk that a guest may only read cannot grow.
    if shown.status == VolumeStatus::Extending && access == VolumeAccess::ReadOnly {
        return Err(conflict(format!(
            "volume {} is being extended; attach it for reading only when it is available",
            volume.name
        )));
    }
    Ok(())
}

/// Refuses an instance on another host than the volume's.
async fn check_host(
    writing: &Writing<'_>,
    volume: &VolumeRow,
    instance: &InstanceRow,
    host: HostId,
) -> Result<(), ClaimError> {
    let Some(on) = volume.host_id.filter(|on| *on != host) else {
        return Ok(());
    };
    let names = hosts::names(writing.txn(), &[on, host]).await?;
    let name = |id| names.get(&id).map_or_else(String::new, ToString::to_string);
    Err(conflict(format!(
        "volume {} is on host {}, and instance {} on host {}: attach it to an instance on {}, or attach a volume that \
         has no host yet",
        volume.name,
        name(on),
        instance.name,
        name(host),
        name(on)
    )))
}

/// The lowest position that no volume of an instance has; those being detached keep theirs.
async fn free_position(
    writing: &Writing<'_>,
    instance: &InstanceRow,
    bus: DiskBus,
) -> Result<u8, ClaimError> {
    let has = attachments::of_instances(writing.txn(), &[instance.id]).await?;
    let name = &instance.name;
    // What it boots from has a port of its own, as a disk of its own has.
    let on_virtio = has
        .iter()
        .filter(|row| row.position != ROOT && row.disk_bus == DiskBus::Virtio);
    if bus == DiskBus::Virtio && on_virtio.count() >= MAX_VIRTIO_VOLUMES {
        return Err(conflict(format!(
            "instance {name} has {MAX_VIRTIO_VOLUMES} volumes on the bus virtio, which is the most; detach one first, or \
             attach it on the bus scsi"
        )));
    }
    let taken: BTreeSet<u8> = has.iter().map(|row| row.position).collect();
    let free = (1..=MAX_VOLUMES).find(|position| !taken.contains(position));
    free.ok_or_else(|| {
        conflict(format!(
            "instance {name} has {MAX_VOLUMES} volumes, which is the most; detach one first"
        ))
    })
}

/// Gives a volume its host, and room there.
async fn bind(
    writing: &mut Writing<'_>,
    volume: &VolumeRow,
    host: HostId,
) -> Result<(), ClaimError> {
    let size_gb = volume.size_gb;
    let wanted = Wanted {
        what: &format!("volume {}", volume.name),
        pool: &volume.pool,
        format: volume.format,
        size: size_gb,
        more: size_gb,
    };
    check_room(writing, host, wanted)?;
    volumes::set_host(writing.txn(), volume.id, host, writing.now).await?;
    let placed = PlacedVolume {
        host,
        pool: volume.pool.clone(),
        size_gb,
    };
    writing.cloud.place_volume(volume.id, placed);
    writing.touch_volume(host, volume.id);
    Ok(())
}

/// Takes a volume from its instance. It is free when its host confirmed that. From an instance that does not have it, it
/// is taken already.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn detach(
    writing: &mut Writing<'_>,
    request: &VolumeDetach,
) -> Result<VolumeView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.volume).await?;
    if let Some(attachment) = attachments::of_volume(writing.txn(), row.id).await?
        && attachment.state != AttachmentState::Detaching
        && is_meant(writing, request, attachment.instance_id).await?
    {
        let instance = instances::get(writing.txn(), attachment.instance_id).await?;
        if let Some(instance) = &instance {
            check_root(&row, &attachment, instance)?;
            check_suspended(instance)?;
            check_not_rescued(instance)?;
        }
        let detaching = AttachmentState::Detaching;
        attachments::set_state(writing.txn(), row.id, detaching).await?;
        if let Some(host) = row.host_id {
            if let Some(instance) = &instance {
                leave_off(writing, host, instance).await?;
            }
            writing.touch_instance(host, attachment.instance_id);
            writing.derive().await?;
        }
        tracing::info!(volume = %row.id, instance = %attachment.instance_id, "volume is to be detached");
    }
    show::volume(writing.context(), writing.txn(), &row).await
}

/// An instance keeps what it boots from.
fn check_root(
    volume: &VolumeRow,
    attachment: &AttachmentRow,
    instance: &InstanceRow,
) -> Result<(), ClaimError> {
    if attachment.position == ROOT {
        return Err(conflict(format!(
            "instance {} boots from volume {}: it is detached when the instance is deleted",
            instance.name, volume.name
        )));
    }
    Ok(())
}

/// Whether a volume shall be taken from the instance that has it.
async fn is_meant(
    writing: &Writing<'_>,
    request: &VolumeDetach,
    has: InstanceId,
) -> Result<bool, ClaimError> {
    let Some(instance) = &request.instance else {
        return Ok(true);
    };
    let meant = claim_instances::resolve(writing.txn(), &request.project, instance).await?;
    Ok(meant.id == has)
}
