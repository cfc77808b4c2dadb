//! Changing what is wanted of an instance, up to its end.

use berth_common::{
    document::{DesiredPower, DocumentKey, Kind, Reboot},
    ids::{HostId, InstanceId},
    message::{
        report::{ConvergeStatus, PowerState},
        request::{InstanceReboot, Method},
        view::InstanceView,
    },
    names::ProjectName,
};
use berth_store::{
    Txn, documents,
    instances::{self, InstanceRow},
    nonces,
};

use super::{networks_of, resolve};
use crate::{
    claim::{ClaimError, conflict, not_found},
    context::Writing,
    report::show,
};

/// A change to an existing instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Power it on.
    Start,
    /// Power it off.
    Stop,
    /// Reboot it once.
    Reboot(Reboot),
    /// Delete it.
    Delete,
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
        Change::Start => {
            instances::set_desired_power(writing.txn(), row.id, DesiredPower::Running, now).await?;
            if is_left_off(&row)
                && let Some(host) = host
            {
                writing.again(host, row.id);
            }
        }
        Change::Stop => {
            instances::set_desired_power(writing.txn(), row.id, DesiredPower::Stopped, now).await?;
        }
        Change::Reboot(reboot) => reboot_once(writing, &row, reboot).await?,
    }
    if let Some(host) = host {
        writing.touch_instance(host, row.id);
        for network in networks_of(writing.txn(), row.id).await? {
            writing.touch_network(host, network);
        }
        writing.derive().await?;
    }
    let row = get(writing.txn(), row.id).await?;
    show::instance(writing.context(), writing.txn(), &row).await
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
    instances::set_desired_deleted(writing.txn(), row.id, writing.now).await?;
    // One that is created and deleted in one transaction has a host, and no document there: there would never be a
    // tombstone that its host could confirm.
    let is_told = match host {
        Some(host) => {
            let key = DocumentKey {
                kind: Kind::Instance,
                id: row.id.as_uuid(),
            };
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
    if row.desired_power == DesiredPower::Stopped {
        return Err(conflict(format!(
            "instance {} is stopped; start it instead",
            row.name
        )));
    }
    let (txn, now) = (writing.txn(), writing.now);
    if nonces::remember(txn, row.id, reboot.nonce, InstanceReboot::NAME, now).await? {
        instances::set_desired_reboot(txn, row.id, Some(reboot), now).await?;
    }
    Ok(())
}
