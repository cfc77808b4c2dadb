//! What an instance boots from: a rescue disk for a while, or a root disk that is made anew.
//!
//! Both are wishes with a nonce of the client's, and the nonce becomes part of the document: the host calls the disk by it, so
//! that the same wish is the same disk, however often it is told.

use berth_common::{
    document::{DesiredPower, ImageRef, Incarnation, Rescue},
    ids::{HostId, Nonce},
    message::{
        report::ConvergeStatus,
        request::{InstanceRebuild, InstanceRescue, Method},
    },
};
use berth_store::{
    instances::{self, InstanceRow},
    nonces,
};
use chrono::{DateTime, Utc};

use super::{change::leave_off, root};
use crate::{
    claim::{ClaimError, conflict, invalid},
    context::Writing,
};

/// A wish to rescue an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RescueWish {
    /// Which wish it is.
    pub nonce: Nonce,
    /// What to boot from; `None`: what its own disk was made from.
    pub image: Option<ImageRef>,
}

/// A wish to make the root disk of an instance anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildWish {
    /// Which wish it is.
    pub nonce: Nonce,
    /// What to make it from.
    pub image: ImageRef,
}

/// Refuses what does not go with a rescue.
///
/// # Errors
/// The instance is rescued.
pub(in crate::claim) fn check_not_rescued(row: &InstanceRow) -> Result<(), ClaimError> {
    match row.desired_rescue {
        Some(_) => Err(conflict(format!(
            "instance {} is rescued; unrescue it first",
            row.name
        ))),
        None => Ok(()),
    }
}

/// Boots an instance from a fresh disk. The same wish again is granted.
pub(super) async fn rescue(
    writing: &Writing<'_>,
    row: &InstanceRow,
    wish: RescueWish,
) -> Result<(), ClaimError> {
    let (txn, now) = (writing.txn(), writing.now);
    if !nonces::remember(txn, row.id, wish.nonce, InstanceRescue::NAME, now).await? {
        return Ok(());
    }
    check_not_rescued(row)?;
    check_awake(row)?;
    if !row.observed.was_active {
        return Err(conflict(format!(
            "instance {} was not built yet, so there is nothing to rescue",
            row.name
        )));
    }
    let Some(image) = wish.image.or_else(|| row.boot_source.image().cloned()) else {
        return Err(invalid(format!(
            "instance {} boots from a volume, so there is no image that it was made from: give image, what to rescue it with",
            row.name
        )));
    };
    let rescue = Rescue {
        nonce: wish.nonce,
        image,
        size_gb: root::size(writing, row).await?,
    };
    instances::set_desired_rescue(txn, row.id, Some(&rescue), now).await?;
    instances::set_desired_power(txn, row.id, DesiredPower::Running, now).await?;
    tracing::info!(instance = %row.id, name = %row.name, image = %rescue.image.url, "instance is to be rescued");
    Ok(())
}

/// Boots an instance from its own disk again; one that was stopped meanwhile stays off. One that is not rescued is as it shall
/// be.
pub(super) async fn unrescue(writing: &Writing<'_>, row: &InstanceRow) -> Result<(), ClaimError> {
    if row.desired_rescue.is_some() {
        instances::set_desired_rescue(writing.txn(), row.id, None, writing.now).await?;
        tracing::info!(instance = %row.id, name = %row.name, "instance is to be unrescued");
    }
    Ok(())
}

/// Makes the root disk of an instance anew, on the host it is on. The same wish again is granted.
pub(super) async fn rebuild(
    writing: &Writing<'_>,
    row: &InstanceRow,
    wish: RebuildWish,
    host: Option<HostId>,
) -> Result<(), ClaimError> {
    let (txn, now) = (writing.txn(), writing.now);
    if let Some(volume) = root::name(writing, row).await? {
        return Err(conflict(format!(
            "instance {} boots from volume {volume}, and is not rebuilt: create a volume from the image, and an instance \
             from that volume",
            row.name
        )));
    }
    if !nonces::remember(txn, row.id, wish.nonce, InstanceRebuild::NAME, now).await? {
        return Ok(());
    }
    check_not_rescued(row)?;
    check_awake(row)?;
    // One that is being built may yet move to another host; one that could not be built may have a better image.
    if !row.observed.was_active && row.observed.status != Some(ConvergeStatus::Failed) {
        return Err(conflict(format!(
            "instance {} is being built; rebuild it when it is active, or delete it",
            row.name
        )));
    }
    if let Some(host) = host {
        leave_off(writing, host, row).await?;
    }
    let incarnation = Incarnation {
        number: next_number(row.desired_incarnation, now).ok_or_else(|| {
            conflict(format!(
                "instance {} was rebuilt as often as can be counted; create another one",
                row.name
            ))
        })?,
        nonce: wish.nonce,
    };
    instances::set_root_disk(txn, row.id, incarnation, &wish.image, now).await?;
    tracing::warn!(
        instance = %row.id, name = %row.name, image = %wish.image.url, number = incarnation.number,
        "the root disk of an instance is to be made anew; what is on it now is lost"
    );
    Ok(())
}

/// The number of the next root disk: above the one before it, and above those that a database knew which was restored to an
/// earlier time since. The clock gives the latter, in seconds since 1970; one that was set back changes nothing of the former.
fn next_number(before: Option<Incarnation>, now: DateTime<Utc>) -> Option<u32> {
    let counted = before.map_or(0, |it| it.number).checked_add(1)?;
    let by_clock = u32::try_from(now.timestamp()).unwrap_or(0);
    Some(counted.max(by_clock))
}

/// What stands still or sleeps knows the disks it has.
fn check_awake(row: &InstanceRow) -> Result<(), ClaimError> {
    let first = match row.desired_power {
        DesiredPower::Running | DesiredPower::Stopped => return Ok(()),
        DesiredPower::Paused => "unpause it first",
        DesiredPower::Suspended => "resume it first",
    };
    Err(conflict(format!(
        "instance {} is {}; {first}",
        row.name,
        row.desired_power.as_str()
    )))
}

#[cfg(test)]
mod tests {
    use berth_common::ids::Nonce;
    use chrono::{DateTime, Utc};

    use super::{Incarnation, next_number};

    #[test]
    fn numbers_of_disks_grow_with_a_restored_database_and_with_a_clock_set_back() {
        let at = |seconds| DateTime::<Utc>::from_timestamp(seconds, 0).unwrap();
        let after = |number| {
            Some(Incarnation {
                number,
                nonce: Nonce::new(),
            })
        };
        let first = next_number(None, at(1_795_000_000)).unwrap();
        // Two within a second.
        assert_eq!(
            next_number(after(first), at(1_795_000_000)),
            Some(first + 1)
        );
        assert_eq!(
            next_number(after(first), at(1_000_000_000)),
            Some(first + 1)
        );
        // The database knows nothing of the rebuild above.
        assert!(next_number(None, at(1_795_000_060)).unwrap() > first);
        assert_eq!(next_number(after(7), at(-5)), Some(8));
        assert_eq!(next_number(after(u32::MAX), at(1_795_000_000)), None);
    }
}
