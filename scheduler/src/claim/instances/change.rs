//! Changing what is wanted of an instance, up to its end.

use berth_common::{
    document::{DesiredPower, DocumentKey, Flavor, Kind, Reboot, RebootKind},
    ids::{HostId, InstanceId},
    message::{
        report::{ConvergeStatus, PowerState},
        request::{InstanceReboot, InstanceRebuild, InstanceRescue, Method},
        view::InstanceView,
    },
    names::ProjectName,
};
use berth_store::{
    Txn,
    attachments::{self, AttachmentState},
    documents,
    instances::{self, InstanceRow},
    nonces, volumes,
};

use super::{
    boot::{RebuildWish, RescueWish, check_not_rescued, rebuild, rescue, unrescue},
    describe::{Wording, describe},
    networks_of,
    resize::resize,
    resolve, root,
};
use crate::{
    claim::{ClaimError, conflict, not_found},
    context::Writing,
    report::show,
};

/// A change to an existing instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Power it on.
    Start,
    /// Power it off.
    Stop,
    /// Let its processors stand still.
    Pause,
    /// Let it go on after a pause.
    Unpause,
    /// Keep its memory on disk and switch it off.
    Suspend,
    /// Let it go on after a suspension.
    Resume,
    /// Reboot it once.
    Reboot(Reboot),
    /// Give it another size.
    Resize(Flavor),
    /// Boot it from another disk.
    Rescue(RescueWish),
    /// Boot it from its own disk again.
    Unrescue,
    /// Make its root disk anew.
    Rebuild(RebuildWish),
    /// Call it something else, or say something else of it.
    Describe(Box<Wording>),
    /// Delete it.
    Delete,
}

impl From<InstanceRescue> for Change {
    fn from(request: InstanceRescue) -> Self {
        Self::Rescue(RescueWish {
            nonce: request.nonce,
            image: request.image,
        })
    }
}

impl From<InstanceRebuild> for Change {
    fn from(request: InstanceRebuild) -> Self {
        Self::Rebuild(RebuildWish {
            nonce: request.nonce,
            image: request.image,
        })
    }
}

impl From<&InstanceReboot> for Change {
    fn from(request: &InstanceReboot) -> Self {
        Self::Reboot(Reboot {
            nonce: request.nonce,
            kind: request.kind,
        })
    }
}

/// Changes what is wanted of an instance.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn change(
    writing: &mut Writing<'_>,
    project: &ProjectName,
    instance: &str,
    change: Change,
) -> Result<InstanceView, ClaimError> {
    let now = writing.now;
    let row = resolve(writing.txn(), project, instance).await?;
    let host = writing.cloud.placed(row.id).map(|placed| placed.host);

    let tells_others = matches!(change, Change::Delete | Change::Describe(_));
    match change {
        Change::Delete => delete(writing, &row, host).await?,
        _ if row.desired_deleted || row.deleted_at.is_some() => {
            return Err(conflict(format!("instance {} is being deleted", row.name)));
        }
        _ if row.placement_fault.is_some() => {
            return Err(conflict(format!(
                "instance {} has no host; repeat the request that created it, or delete it",
                row.name
            )));
        }
        Change::Reboot(reboot) => reboot_once(writing, &row, reboot).await?,
        Change::Resize(flavor) => resize(writing, &row, flavor, host).await?,
        Change::Rescue(wish) => rescue(writing, &row, wish).await?,
        Change::Unrescue => unrescue(writing, &row).await?,
        Change::Rebuild(wish) => rebuild(writing, &row, wish, host).await?,
        Change::Describe(wording) => describe(writing, &row, *wording, host).await?,
        Change::Start
        | Change::Stop
        | Change::Pause
        | Change::Unpause
        | Change::Suspend
        | Change::Resume => {
            let power = power_after(&row, &change)?;
            if matches!(change, Change::Suspend) && row.desired_power != power {
                check_volumes(writing, &row).await?;
            }
            instances::set_desired_power(writing.txn(), row.id, power, now).await?;
            if matches!(change, Change::Start)
                && is_left_off(&row)
                && let Some(host) = host
            {
                writing.again(host, row.id);
            }
        }
    }
    if let Some(host) = host {
        writing.touch_instance(host, row.id);
        for network in networks_of(writing.txn(), row.id).await? {
            writing.touch_network(host, network);
            if tells_others {
                writing.touch_members(network);
            }
        }
        writing.derive().await?;
    }
    let row = get(writing.txn(), row.id).await?;
    show::instance(writing.context(), writing.txn(), &row).await
}

/// The power an instance shall have after a change, or why that change is not for it. A change that was made already is
/// granted again; memory is never lost by one that does not say so.
fn power_after(row: &InstanceRow, change: &Change) -> Result<DesiredPower, ClaimError> {
    use DesiredPower::{Paused, Running, Stopped, Suspended};
    let refused = |instead: &str| {
        Err(conflict(format!(
            "instance {} is {}; {instead}",
            row.name,
            row.desired_power.as_str()
        )))
    };
    if matches!(change, Change::Pause | Change::Suspend) {
        check_not_rescued(row)?;
    }
    match (change, row.desired_power) {
        (Change::Start, Running | Stopped) => Ok(Running),
        (Change::Stop, Running | Stopped | Paused) => Ok(Stopped),
        (Change::Pause | Change::Suspend, Running) if is_left_off(row) => Err(conflict(format!(
            "instance {} is powered off; start it first",
            row.name
        ))),
        (Change::Suspend, Running) if !row.observed.was_active => Err(conflict(format!(
            "instance {} is being built; suspend it when it is active",
            row.name
        ))),
        (Change::Pause, Running | Paused) => Ok(Paused),
        (Change::Suspend, Running | Suspended) => Ok(Suspended),
        (Change::Unpause, Running | Paused) | (Change::Resume, Running | Suspended) => Ok(Running),
        (_, Paused) => refused("unpause it first"),
        (_, Suspended) => refused("resume it first, or reboot it hard and lose its memory"),
        (_, Running | Stopped) => refused("start it first"),
    }
}

/// Refuses to save the memory of a guest whose disks are changing: it knows those it has when it is saved, and it is
/// known which only when its host said so.
async fn check_volumes(writing: &Writing<'_>, row: &InstanceRow) -> Result<(), ClaimError> {
    let attached = attachments::of_instances(writing.txn(), &[row.id]).await?;
    let changing = attached
        .iter()
        .find(|attachment| attachment.state != AttachmentState::Attached);
    let Some(attachment) = changing else {
        return Ok(());
    };
    let volume = match volumes::get(writing.txn(), attachment.volume_id).await? {
        Some(volume) => volume.name.to_string(),
        None => attachment.volume_id.to_string(),
    };
    let instance = &row.name;
    Err(conflict(match attachment.state {
        AttachmentState::Attaching | AttachmentState::Attached => format!(
            "volume {volume} is being attached to instance {instance}; suspend it when the volume is in use, or detach \
             the volume first"
        ),
        AttachmentState::Detaching => format!(
            "volume {volume} is being detached from instance {instance}; suspend it when the volume is available"
        ),
    }))
}

/// An instance whose guest switched itself off stays off, whatever else changes of it: a new generation of a document
/// that says running would start it, and only its owner does that. A wish that its host has yet to confirm, or failed
/// at, still stands.
///
/// # Errors
/// When the database fails.
pub(in crate::claim) async fn leave_off(
    writing: &Writing<'_>,
    host: HostId,
    row: &InstanceRow,
) -> Result<(), ClaimError> {
    if !is_left_off(row) || row.observed.status != Some(ConvergeStatus::Converged) {
        return Ok(());
    }
    let told = documents::get(writing.txn(), host, document_key(row.id)).await?;
    if told.is_some_and(|told| row.observed.generation >= told.generation) {
        let off = DesiredPower::Stopped;
        instances::set_desired_power(writing.txn(), row.id, off, writing.now).await?;
        tracing::info!(instance = %row.id, "its guest switched itself off, and it stays off");
    }
    Ok(())
}

fn document_key(id: InstanceId) -> DocumentKey {
    DocumentKey {
        kind: Kind::Instance,
        id: id.as_uuid(),
    }
}

/// An instance that must be there: it was just read.
async fn get(txn: &Txn, id: InstanceId) -> Result<InstanceRow, ClaimError> {
    let row = instances::get(txn, id).await?;
    row.ok_or_else(|| not_found(format!("instance {id} is gone")))
}

/// Whether an instance that shall run was settled and yet is off, or has failed: starting it means trying anew.
fn is_left_off(row: &InstanceRow) -> bool {
    let off = matches!(
        row.observed.power_state,
        PowerState::Shutdown | PowerState::Crashed | PowerState::Nostate
    );
    let settled = matches!(
        row.observed.status,
        Some(ConvergeStatus::Converged | ConvergeStatus::Failed)
    );
    row.desired_power == DesiredPower::Running && off && settled
}

/// An instance that no host was told of is gone at once; one with a host that was is gone when the host says so.
async fn delete(
    writing: &mut Writing<'_>,
    row: &InstanceRow,
    host: Option<HostId>,
) -> Result<(), ClaimError> {
    if row.deleted_at.is_some() {
        return Ok(());
    }
    if !row.desired_deleted {
        root::end(writing, row).await?;
    }
    instances::set_desired_deleted(writing.txn(), row.id, writing.now).await?;
    // One that is created and deleted in one transaction has a host, and no document there: there would never be a
    // tombstone that its host could confirm.
    let is_told = match host {
        Some(host) => {
            let key = document_key(row.id);
            documents::get(writing.txn(), host, key).await?.is_some()
        }
        None => false,
    };
    if !is_told {
        instances::mark_deleted(writing.txn(), row.id, writing.now).await?;
        writing.cloud.unplace(row.id);
    }
    Ok(())
}

async fn reboot_once(
    writing: &Writing<'_>,
    row: &InstanceRow,
    reboot: Reboot,
) -> Result<(), ClaimError> {
    let refusal = match (row.desired_power, reboot.kind) {
        // It was to stop before it could go on: its memory is still kept, and this is the way to lose it.
        (DesiredPower::Stopped, RebootKind::Hard)
            if row.observed.power_state == PowerState::Suspended =>
        {
            None
        }
        (DesiredPower::Stopped, _) => Some("stopped; start it instead"),
        (DesiredPower::Paused, RebootKind::Soft) => {
            Some("paused, so its guest cannot be asked; unpause it first, or reboot it hard")
        }
        (DesiredPower::Suspended, RebootKind::Soft) => {
            Some("suspended, so its guest cannot be asked; resume it first, or reboot it hard")
        }
        (DesiredPower::Running, _)
        | (DesiredPower::Paused | DesiredPower::Suspended, RebootKind::Hard) => None,
    };
    let (txn, now) = (writing.txn(), writing.now);
    // A repetition is granted: whatever was asked for after the first one stands.
    if !nonces::remember(txn, row.id, reboot.nonce, InstanceReboot::NAME, now).await? {
        return Ok(());
    }
    if let Some(why) = refusal {
        return Err(conflict(format!("instance {} is {why}", row.name)));
    }
    instances::set_desired_reboot(txn, row.id, Some(reboot), now).await?;
    if reboot.kind == RebootKind::Hard {
        instances::set_desired_power(txn, row.id, DesiredPower::Running, now).await?;
    }
    Ok(())
}
