//! Creating and deleting networks.

use std::net::IpAddr;

use berth_common::{
    ids::{NetworkId, SubnetId},
    message::{
        request::{NetworkCreate, NetworkDelete},
        view::NetworkView,
    },
    names::{Cidr, NetworkName, ProjectName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    networks::{self, NetworkRow, SubnetRow},
};
use chrono::Utc;
use uuid::Uuid;

use super::{ClaimError, conflict, fingerprint, invalid, not_found, routers};
use crate::{context::Writing, derive::DEFAULT_MTU, report::view};

/// What a DHCP reply can carry without being cut.
const MAX_NAMESERVERS: usize = 3;

/// Creates a network with its subnet.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &Writing<'_>,
    request: &NetworkCreate,
) -> Result<NetworkView, ClaimError> {
    validate(request)?;
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = networks::get(txn, request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "network {} exists already and was asked for with another content; use a new id for a new network",
                existing.id
            )));
        }
        let ports = networks::port_count(txn, existing.id).await?;
        return Ok(view::network(&existing, ports));
    }
    let row = new_row(request, fingerprint)?;
    networks::insert(txn, &row)
        .await
        .map_err(|error| match error {
            StoreError::Unique {
                constraint: UniqueWhat::NetworkName,
                ..
            } => conflict(format!(
                "project {} already has a network named {}",
                request.project, request.name
            )),
            error => error.into(),
        })?;
    Ok(view::network(&row, 0))
}

/// Everything that can be said of a request without looking at any row; all mistakes at once.
fn validate(request: &NetworkCreate) -> Result<(), ClaimError> {
    let mut mistakes = Vec::new();
    if let Some(gateway) = request.gateway_ip
        && !request.cidr.is_host_address(gateway)
    {
        mistakes.push(format!(
            "gateway_ip {gateway} is not an address for a machine in {}",
            request.cidr
        ));
    }
    if let Some(mtu) = request.mtu
        && !(576..=9216).contains(&mtu)
    {
        mistakes.push(format!("mtu must be from 576 to 9216; got {mtu}"));
    }
    if request.dns_nameservers.len() > MAX_NAMESERVERS {
        mistakes.push(format!(
            "dns_nameservers must be at most {MAX_NAMESERVERS}; got {}",
            request.dns_nameservers.len()
        ));
    }
    let unusable = |address: &IpAddr| {
        let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        address.is_unspecified() || address.is_multicast() || is_broadcast
    };
    if let Some(address) = request
        .dns_nameservers
        .iter()
        .find(|address| unusable(address))
    {
        mistakes.push(format!(
            "{address} in dns_nameservers is no server's address"
        ));
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(invalid(mistakes.join("; ")))
    }
}

fn new_row(request: &NetworkCreate, fingerprint: String) -> Result<NetworkRow, ClaimError> {
    let subnet_id = SubnetId::try_from(Uuid::new_v5(&request.id.as_uuid(), b"subnet 0"))
        .map_err(|error| invalid(error.to_string()))?;
    Ok(NetworkRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        network_type: request.network_type,
        mtu: request.mtu.unwrap_or(DEFAULT_MTU),
        created_at: Utc::now(),
        deleted_at: None,
        fingerprint,
        subnet: SubnetRow {
            id: subnet_id,
            network_id: request.id,
            cidr: request.cidr,
            gateway_ip: request.gateway_ip,
            dhcp_ip: dhcp_address(request.cidr, request.gateway_ip)
                .ok_or_else(|| invalid(format!("{} has no address left for DHCP", request.cidr)))?,
            dns_nameservers: request.dns_nameservers.clone(),
        },
    })
}

/// The DHCP server's address: the second of the subnet, as people know it from Neutron, or the first when the
/// gateway has the second.
fn dhcp_address(cidr: Cidr, gateway: Option<IpAddr>) -> Option<IpAddr> {
    let mut hosts = cidr
        .net()
        .hosts()
        .filter(|address| cidr.is_host_address(*address));
    let first = hosts.next()?;
    let second = hosts.next()?;
    Some(if gateway == Some(second) {
        first
    } else {
        second
    })
}

/// Deletes a network that no port uses.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &Writing<'_>,
    request: &NetworkDelete,
) -> Result<NetworkView, ClaimError> {
    let txn = writing.txn();
    let row = resolve_any(txn, &request.project, &request.network).await?;
    let ports = networks::port_count(txn, row.id).await?;
    if ports > 0 {
        return Err(conflict(format!(
            "network {} is used by {ports} ports; delete their instances first",
            row.name
        )));
    }
    if row.deleted_at.is_none() {
        routers::refuse_use(txn, &row).await?;
        networks::mark_deleted(txn, row.id, writing.now).await?;
    }
    Ok(view::network(&row, 0))
}

/// The living network a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    network: &str,
) -> Result<NetworkRow, ClaimError> {
    let row = resolve_any(db, project, network).await?;
    if row.deleted_at.is_some() || row.project != *project {
        return Err(unknown(project, network));
    }
    Ok(row)
}

async fn resolve_any(
    db: &impl Executor,
    project: &ProjectName,
    network: &str,
) -> Result<NetworkRow, ClaimError> {
    if let Ok(id) = network.parse::<NetworkId>()
        && let Some(row) = networks::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = network.parse::<NetworkName>()
        && let Some(row) = networks::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    Err(unknown(project, network))
}

fn unknown(project: &ProjectName, network: &str) -> ClaimError {
    let shown: String = network.chars().take(80).collect();
    not_found(format!(
        "project {project} has no network {shown:?}, neither by id nor by name"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dhcp_server_never_sits_on_the_gateway() {
        let check = |gateway: Option<&str>, expected: &str| {
            let gateway = gateway.map(|address| address.parse().unwrap());
            assert_eq!(
                dhcp_address("10.0.0.0/24".parse().unwrap(), gateway),
                Some(expected.parse().unwrap())
            );
        };
        check(None, "10.0.0.2");
        check(Some("10.0.0.1"), "10.0.0.2");
        check(Some("10.0.0.2"), "10.0.0.1");
        check(Some("10.0.0.254"), "10.0.0.2");
    }
}
