//! Whether a volume has room where it shall be.
//!
//! A volume or a snapshot in the pool `local` takes of its host's disk, as instances do: capacity with the host's ratio. Any other pool
//! has its own room. A thick one holds no more than it has, less what others than berth took of it. A thin one may promise
//! more than it has: only a single volume that could never be filled is refused.

use berth_common::{
    document::VolumeFormat,
    ids::HostId,
    message::heartbeat::{PoolKind, PoolReport},
    names::PoolName,
    refusal::{Refusal, RefusalCode},
    units::{ByteCount, DiskGb},
};

use crate::{
    claim::{ClaimError, conflict},
    context::Writing,
    place::{Host, Resource},
};

/// Room that a volume or a snapshot needs.
#[derive(Debug, Clone, Copy)]
pub(in crate::claim) struct Wanted<'a> {
    /// What to call it.
    pub(in crate::claim) what: &'a str,
    /// Where.
    pub(in crate::claim) pool: &'a PoolName,
    /// How it is stored.
    pub(in crate::claim) format: VolumeFormat,
    /// Of the whole of it.
    pub(in crate::claim) size: DiskGb,
    /// What of it is not claimed yet.
    pub(in crate::claim) more: DiskGb,
}

/// Refuses what needs more than may be claimed, or a pool that the host does not have.
pub(in crate::claim) fn check_room(
    writing: &Writing<'_>,
    host: HostId,
    wanted: Wanted<'_>,
) -> Result<(), ClaimError> {
    let Some(known) = writing.cloud.table().host(host) else {
        return Err(conflict(format!(
            "{} is on a host that is gone",
            wanted.what
        )));
    };
    let refusal = if wanted.pool.is_local() {
        of_disk(known, wanted)
    } else {
        let claimed = writing.cloud.claimed_of_pool(host, wanted.pool);
        of_pool(known, wanted, claimed)
    };
    match refusal {
        None => Ok(()),
        Some(message) => Err(Refusal::new(RefusalCode::NoValidHost, message).into()),
    }
}

/// Why the disk of a host has no room.
fn of_disk(host: &Host, wanted: Wanted<'_>) -> Option<String> {
    let Wanted {
        what, size, more, ..
    } = wanted;
    let on = &host.facts().name;
    let (physical, free) = (host.physical(Resource::DiskGb), host.free(Resource::DiskGb));
    // Overcommit is of the sum, never of one.
    if size.get() > physical {
        return Some(format!(
            "host {on} is too small for {what}: {size} are needed, its disk has {physical} GB"
        ));
    }
    (more.get() > free)
        .then(|| format!("host {on} has no room for {what}: {more} are needed, {free} GB are free"))
}

/// What a storage pool of a host, other than `local`, says to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::claim) enum PoolRoom {
    /// It has room.
    Enough,
    /// The host has no such pool.
    NoPool,
    /// What is in it are block devices, which hold nothing that is stored so.
    OtherFormat,
    /// All of it is not enough.
    TooSmall {
        /// What it has.
        total: DiskGb,
    },
    /// What is left is not enough.
    Full {
        /// What may still be claimed.
        free: DiskGb,
        /// What it has.
        total: DiskGb,
    },
}

/// Whether another pool of a host than `local` has room. `claimed`: of that pool, by volumes.
pub(in crate::claim) fn pool_room(host: &Host, wanted: Wanted<'_>, claimed: DiskGb) -> PoolRoom {
    let pools = &host.facts().pools;
    let Some(report) = pools.iter().find(|report| report.name == *wanted.pool) else {
        return PoolRoom::NoPool;
    };
    if !report.kind.holds(wanted.format) {
        return PoolRoom::OtherFormat;
    }
    let total = report.total_bytes.whole_gb();
    // Overcommit is of the sum, never of one.
    if wanted.size > total {
        return PoolRoom::TooSmall { total };
    }
    let free = match report.kind {
        PoolKind::LvmThin => return PoolRoom::Enough,
        PoolKind::Dir | PoolKind::Lvm => free(report, claimed),
    };
    if wanted.more > free {
        PoolRoom::Full { free, total }
    } else {
        PoolRoom::Enough
    }
}

/// Why another pool of a host has no room, or is not there. `claimed`: of that pool, by volumes.
fn of_pool(host: &Host, wanted: Wanted<'_>, claimed: DiskGb) -> Option<String> {
    let Wanted {
        what,
        pool,
        format,
        size,
        more,
    } = wanted;
    let on = &host.facts().name;
    match pool_room(host, wanted, claimed) {
        PoolRoom::Enough => None,
        PoolRoom::NoPool => Some(format!(
            "host {on} has no storage pool {pool}, which {what} shall be in; it has {}",
            names(&host.facts().pools)
        )),
        PoolRoom::OtherFormat => Some(format!(
            "pool {pool} of host {on} is of logical volumes, which hold raw volumes only, and {what} shall be {}",
            format.as_str()
        )),
        PoolRoom::TooSmall { total } => Some(format!(
            "pool {pool} of host {on} is too small for {what}: {size} are needed, it has {total}"
        )),
        PoolRoom::Full { free, total } => Some(format!(
            "pool {pool} of host {on} has no room for {what}: {more} are needed, {free} are free of {total}"
        )),
    }
}

/// What may still be claimed of a pool that has all it promises: berth's part of what is taken is counted by claims, of
/// which some are not carried out yet, and the rest as it was measured.
fn free(report: &PoolReport, claimed: DiskGb) -> DiskGb {
    let others = report.used_bytes.saturating_sub(report.provisioned_bytes);
    let free = report
        .total_bytes
        .saturating_sub(others)
        .saturating_sub(ByteCount::from_gb(claimed));
    free.whole_gb()
}

/// The pools of a host, for people. Every host has `local`, said or not.
fn names(pools: &[PoolReport]) -> String {
    let mut names = vec![PoolName::LOCAL];
    names.extend(
        pools
            .iter()
            .map(|pool| pool.name.as_str())
            .filter(|name| *name != PoolName::LOCAL),
    );
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use berth_common::message::view::Resources;

    use super::*;
    use crate::place::{HostFacts, HostTable, Settings};

    fn pool(name: &str, kind: PoolKind, [total, used, provisioned]: [u64; 3]) -> PoolReport {
        let gb = |gb| ByteCount::from_gb(DiskGb::clamped(gb));
        PoolReport {
            name: name.parse().unwrap(),
            kind,
            total_bytes: gb(total),
            used_bytes: gb(used),
            provisioned_bytes: gb(provisioned),
            metadata_percent: None,
        }
    }

    /// What is said of a volume of this size in this pool, if so much is claimed of it.
    fn check(pools: Vec<PoolReport>, to: &str, size: u64, claimed: u64) -> Option<String> {
        let id = HostId::new();
        let mut table = HostTable::new(Settings::default());
        table.upsert(HostFacts {
            pools,
            ..HostFacts::new(id, "hv1".parse().unwrap(), Resources::default())
        });
        let pool = to.parse().unwrap();
        let wanted = Wanted {
            what: "volume data",
            pool: &pool,
            format: VolumeFormat::Raw,
            size: DiskGb::clamped(size),
            more: DiskGb::clamped(size),
        };
        of_pool(table.host(id).unwrap(), wanted, DiskGb::clamped(claimed))
    }

    #[test]
    fn a_pool_that_is_not_there_is_named_with_those_that_are() {
        let fast = || vec![pool("fast", PoolKind::Lvm, [10, 0, 0])];
        assert_eq!(
            check(fast(), "slow", 1, 0).unwrap(),
            "host hv1 has no storage pool slow, which volume data shall be in; it has local, fast"
        );
        assert!(
            check(Vec::new(), "slow", 1, 0)
                .unwrap()
                .ends_with("it has local")
        );
        assert_eq!(check(fast(), "fast", 10, 0), None);
    }

    #[test]
    fn a_thick_pool_holds_what_it_has_less_what_others_took() {
        // 4 GB are others', and of berth's 5 only 3 are made so far.
        let fast = || vec![pool("fast", PoolKind::Lvm, [20, 7, 3])];
        assert_eq!(check(fast(), "fast", 11, 5), None);
        assert_eq!(
            check(fast(), "fast", 12, 5).unwrap(),
            "pool fast of host hv1 has no room for volume data: 12 GB are needed, 11 GB are free of 20 GB"
        );
        assert!(
            check(fast(), "fast", 21, 0)
                .unwrap()
                .contains("is too small for volume data")
        );
    }

    #[test]
    fn a_thin_pool_may_promise_more_than_it_has_but_not_to_one() {
        let thin = || vec![pool("thin", PoolKind::LvmThin, [20, 19, 100])];
        assert_eq!(check(thin(), "thin", 20, 100), None);
        assert_eq!(
            check(thin(), "thin", 21, 0).unwrap(),
            "pool thin of host hv1 is too small for volume data: 21 GB are needed, it has 20 GB"
        );
    }
}
