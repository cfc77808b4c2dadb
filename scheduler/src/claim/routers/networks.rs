//! The networks and subnets that requests about routers name.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::NetworkId,
    names::{NetworkName, ProjectName},
    refusal::RefusalCode,
};
use berth_store::{
    Executor,
    networks::{self, NetworkRow},
    routers::RouterInterfaceRow,
    subnets::SubnetRow,
};

use crate::claim::{ClaimError, conflict, networks::resolve, not_found, subnets};

/// The living external network that a request names: an id, a name within the project, or else a name that only one external
/// network has.
pub(super) async fn external(
    db: &impl Executor,
    project: &ProjectName,
    network: &str,
) -> Result<NetworkRow, ClaimError> {
    let row = named(db, project, network).await?;
    if !row.external {
        return Err(conflict(format!(
            "network {} is not external; make it so, or name another one",
            row.name
        )));
    }
    Ok(row)
}

async fn named(
    db: &impl Executor,
    project: &ProjectName,
    network: &str,
) -> Result<NetworkRow, ClaimError> {
    if let Ok(id) = network.parse::<NetworkId>()
        && let Some(row) = networks::get(db, id).await?
        && row.deleted_at.is_none()
    {
        return Ok(row);
    }
    if let Ok(name) = network.parse::<NetworkName>() {
        if let Some(row) = networks::find_by_name(db, project, &name).await? {
            return Ok(row);
        }
        let mut named = networks::list(db, None).await?;
        named.retain(|row| row.name == name && row.external);
        match (named.pop(), named.is_empty()) {
            (Some(row), true) => return Ok(row),
            (Some(_), false) => {
                return Err(conflict(format!(
                    "several projects have an external network named {name}; use its id"
                )));
            }
            (None, _) => {}
        }
    }
    let shown: String = network.chars().take(80).collect();
    Err(not_found(format!(
        "there is no external network {shown:?}, neither by id nor by name"
    )))
}

/// The subnet that a request names, by its own id or name, or by its network if that has one.
pub(super) async fn subnet(
    db: &impl Executor,
    project: &ProjectName,
    subnet: &str,
) -> Result<(NetworkRow, SubnetRow), ClaimError> {
    match subnets::living(db, project, subnet).await {
        Ok(row) => {
            let network = resolve(db, project, &row.network_id.to_string()).await?;
            return Ok((network, row));
        }
        Err(ClaimError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {}
        Err(error) => return Err(error),
    }
    let network = resolve(db, project, subnet).await?;
    let mut subnets = network.subnets.clone();
    match (subnets.pop(), subnets.is_empty()) {
        (Some(only), true) => Ok((network, only)),
        (Some(_), false) => Err(conflict(format!(
            "network {} has several subnets; name one of them by its id",
            network.name
        ))),
        (None, _) => Err(conflict(format!("network {} has no subnet", network.name))),
    }
}

/// The networks of some legs, and external ones.
pub(super) async fn of(
    db: &impl Executor,
    legs: &[RouterInterfaceRow],
    outside: impl IntoIterator<Item = NetworkId>,
) -> Result<BTreeMap<NetworkId, NetworkRow>, ClaimError> {
    let ids: BTreeSet<NetworkId> = legs
        .iter()
        .map(|leg| leg.network_id)
        .chain(outside)
        .collect();
    let ids: Vec<NetworkId> = ids.into_iter().collect();
    let rows = networks::of_ids(db, &ids).await?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}
