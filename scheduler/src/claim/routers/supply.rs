//! Hosts that got no address of an external subnet because none was free: they get one when there is one.

use std::{collections::BTreeSet, net::IpAddr};

use berth_common::ids::{HostId, RouterId, SubnetId};
use berth_store::{Executor, ports, routers, subnets};

use crate::{
    claim::{ClaimError, address},
    context::Context,
};

/// Hosts that are given addresses in one transaction: requests want their turn.
const AT_ONCE: u32 = 256;

/// Which hosts that lacked an address got one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supplied {
    /// None lacks one.
    All,
    /// As many as at once; there may be more.
    Batch,
    /// Those that one could be had for. Whether that was all, the next look tells.
    Rest,
}

/// Gives the hosts that lack an address for a router one, as far as any are free.
///
/// # Errors
/// When the database is out of reach.
pub async fn supply(context: &Context) -> Result<Supplied, ClaimError> {
    let short = routers::short_subnets(context.store.pool()).await?;
    let mut places: BTreeSet<(HostId, RouterId)> = BTreeSet::new();
    for subnet in &short {
        if has_free(context.store.pool(), *subnet).await? {
            let without = routers::without_address(context.store.pool(), *subnet, AT_ONCE);
            places.extend(without.await?);
        }
    }
    if short.is_empty() {
        return Ok(Supplied::All);
    }
    let is_batch = u32::try_from(places.len()).is_ok_and(|count| count >= AT_ONCE);
    if !places.is_empty() {
        let mut writing = context.begin().await?;
        for (host, router) in places {
            writing.touch_router(host, router);
        }
        writing.commit().await?;
    }
    Ok(if is_batch {
        Supplied::Batch
    } else {
        Supplied::Rest
    })
}

async fn has_free(db: &impl Executor, subnet: SubnetId) -> Result<bool, ClaimError> {
    let Some(row) = subnets::get(db, subnet).await? else {
        return Ok(false);
    };
    Ok(address::choose(&row, &used(db, subnet).await?, None).is_ok())
}

/// The addresses of an external subnet that anybody has.
///
/// # Errors
/// When the database is out of reach.
pub async fn used(db: &impl Executor, subnet: SubnetId) -> Result<BTreeSet<IpAddr>, ClaimError> {
    let mut used = ports::addresses_in_use(db, subnet).await?;
    used.extend(routers::addresses_in_use(db, subnet).await?);
    Ok(used)
}
