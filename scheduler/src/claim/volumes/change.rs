//! Changing what is wanted of a volume, up to its end.

use berth_common::{
    document::VolumeAccess,
    ids::VolumeId,
    message::{
        request::{VolumeDelete, VolumeExtend},
        view::VolumeView,
    },
    units::DiskGb,
};
use berth_store::{
    attachments::{self, AttachmentState, ROOT},
    instances,
    volumes::{self, VolumeRow},
};

use super::{
    Wanted, again, being_deleted, called, check_no_snapshot, check_not_copied, check_room, is_told,
    resolve,
};
use crate::{
    claim::{ClaimError, cloud::PlacedVolume, conflict, invalid},
    context::Writing,
    report::show,
};

/// Deletes a volume that no instance has, or whose instance is being deleted: then it goes after the instance. One that
/// no host was told of is gone at once, others when their host says so.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &VolumeDelete,
) -> Result<VolumeView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.volume).await?;
    if row.deleted_at.is_none() && !row.desired_deleted {
        check_deletable(writing, &row).await?;
        end(writing, &row).await?;
        writing.derive().await?;
    }
    let row = again(writing.txn(), row.id).await?;
    show::volume(writing.context(), writing.txn(), &row).await
}

/// Deletes a volume whose instance is being deleted, and takes it along. Documents are left to be derived.
///
/// # Errors
/// A refusal while it is copied or a snapshot is made of it, or a failure of the database.
pub(in crate::claim) async fn delete_with_instance(
    writing: &mut Writing<'_>,
    id: VolumeId,
) -> Result<(), ClaimError> {
    let Some(row) = volumes::get(writing.txn(), id).await? else {
        return Ok(());
    };
    if row.deleted_at.is_some() || row.desired_deleted {
        return Ok(());
    }
    check_not_copied(writing.txn(), &row).await?;
    check_no_snapshot(writing.txn(), &row).await?;
    end(writing, &row).await
}

/// It shall be gone: when its host says so, or at once if no host was told of it.
async fn end(writing: &mut Writing<'_>, row: &VolumeRow) -> Result<(), ClaimError> {
    volumes::set_desired_deleted(writing.txn(), row.id, writing.now).await?;
    let is_told = match row.host_id {
        Some(host) => is_told(writing.txn(), host, row.id).await?,
        None => false,
    };
    if let Some(host) = row.host_id.filter(|_| is_told) {
        writing.touch_volume(host, row.id);
    } else {
        volumes::mark_deleted(writing.txn(), row.id, writing.now).await?;
        writing.cloud.unplace_volume(row.id);
    }
    tracing::info!(volume = %row.id, name = %row.name, "volume is to be deleted");
    Ok(())
}

async fn check_deletable(writing: &Writing<'_>, row: &VolumeRow) -> Result<(), ClaimError> {
    let txn = writing.txn();
    check_not_copied(txn, row).await?;
    check_no_snapshot(txn, row).await?;
    let Some(attachment) = attachments::of_volume(txn, row.id).await? else {
        return Ok(());
    };
    let instance = instances::get(txn, attachment.instance_id).await?;
    match instance {
        Some(instance) if !instance.desired_deleted => Err(conflict(
            if attachment.state == AttachmentState::Detaching {
                format!(
                    "volume {} is being detached from instance {}; delete it when it is available",
                    row.name, instance.name
                )
            } else if attachment.position == ROOT {
                format!(
                    "instance {} boots from volume {}; delete the instance first",
                    instance.name, row.name
                )
            } else {
                format!(
                    "volume {} is attached to instance {}; detach it first",
                    row.name, instance.name
                )
            },
        )),
        // Its document stays until the instance is gone.
        Some(_) | None => Ok(()),
    }
}

/// Makes a volume larger: a claim of the difference.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn extend(
    writing: &mut Writing<'_>,
    request: &VolumeExtend,
) -> Result<VolumeView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.volume).await?;
    if row.desired_deleted || row.deleted_at.is_some() {
        return Err(being_deleted(&row));
    }
    if request.size_gb < row.size_gb {
        return Err(invalid(format!(
            "a volume never shrinks: volume {} has {}; got size_gb {}",
            row.name,
            row.size_gb,
            request.size_gb.get()
        )));
    }
    if request.size_gb > row.size_gb {
        grow(writing, &row, request.size_gb).await?;
    }
    let row = again(writing.txn(), row.id).await?;
    show::volume(writing.context(), writing.txn(), &row).await
}

async fn grow(writing: &mut Writing<'_>, row: &VolumeRow, size: DiskGb) -> Result<(), ClaimError> {
    check_not_copied(writing.txn(), row).await?;
    check_no_snapshot(writing.txn(), row).await?;
    check_writable(writing, row).await?;
    if let Some(host) = row.host_id {
        let more = size.saturating_sub(row.size_gb);
        let wanted = Wanted {
            what: &format!("volume {}", row.name),
            pool: &row.pool,
            format: row.format,
            size,
            more,
        };
        check_room(writing, host, wanted)?;
    }
    volumes::set_size(writing.txn(), row.id, size, writing.now).await?;
    if let Some(host) = row.host_id {
        let placed = PlacedVolume {
            host,
            pool: row.pool.clone(),
            size_gb: size,
        };
        writing.cloud.place_volume(row.id, placed);
        writing.touch_volume(host, row.id);
        writing.derive().await?;
    }
    Ok(())
}

/// Refuses to grow what a guest may only read: QEMU's `block_resize` opens nothing for writing that it has open for
/// reading.
async fn check_writable(writing: &Writing<'_>, row: &VolumeRow) -> Result<(), ClaimError> {
    let txn = writing.txn();
    let attachment = attachments::of_volume(txn, row.id).await?;
    let Some(attachment) = attachment.filter(|of| of.access == VolumeAccess::ReadOnly) else {
        return Ok(());
    };
    let instance = called(txn, attachment.instance_id).await?;
    let way_out = match attachment.state {
        AttachmentState::Attaching | AttachmentState::Attached => "detach it first",
        AttachmentState::Detaching => "extend it when it is available",
    };
    Err(conflict(format!(
        "volume {} is attached to instance {instance} read-only, and QEMU cannot grow a disk that a guest may only \
         read; {way_out}",
        row.name
    )))
}
