//! Creating, changing and deleting networks.

use berth_common::{
    document::NetworkType,
    ids::NetworkId,
    message::{
        network::{NetworkCreate, NetworkDelete, NetworkSet},
        view::NetworkView,
    },
    names::{Cidr, NetworkName, ProjectName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    networks::{self, NetworkRow},
    subnets::SubnetRow,
};
use chrono::{DateTime, Utc};

use super::{
    ClaimError, conflict, fingerprint, invalid, nat, not_found, routers, segments,
    subnets::{self, Wish},
};
use crate::{
    config::Networks,
    context::Writing,
    place::{Need, NetworkNeeds},
    report::view,
};

/// The smallest packet that everybody must take (RFC 791).
const MIN_MTU: u16 = 576;

/// Creates a network, with one subnet or none.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &Writing<'_>,
    request: &NetworkCreate,
) -> Result<NetworkView, ClaimError> {
    let settings = &writing.context().config.networks;
    validate(request, settings)?;
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
    let segment = segments::choose(txn, request, settings).await?;
    let row = NetworkRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        network_type: request.network_type,
        physical_network: segment.physical_network.clone(),
        segmentation_id: segment.segmentation_id,
        external: request.external,
        mtu: request
            .mtu
            .unwrap_or_else(|| settings.default_mtu(request.network_type)),
        created_at: writing.now,
        deleted_at: None,
        fingerprint,
        subnets: first_subnet(request, writing.now)?,
    };
    networks::insert(txn, &row)
        .await
        .map_err(|error| match error {
            StoreError::Unique {
                constraint: UniqueWhat::NetworkName,
                ..
            } => name_taken(&request.project, &request.name),
            // It was looked up before, under the right to write: only a writer that should not be could have come between.
            StoreError::Unique {
                constraint: UniqueWhat::Segment,
                ..
            } => segments::taken(request.network_type, &segment),
            error => error.into(),
        })?;
    Ok(view::network(&row, 0))
}

fn name_taken(project: &ProjectName, name: &NetworkName) -> ClaimError {
    conflict(format!(
        "project {project} already has a network named {name}"
    ))
}

/// Everything that can be said of a request without looking at any row; all mistakes at once.
fn validate(request: &NetworkCreate, settings: &Networks) -> Result<(), ClaimError> {
    let mut mistakes = segments::mistakes(request, settings);
    match request.cidr {
        Some(cidr) => {
            let wish = Wish {
                cidr,
                gateway_ip: request.gateway_ip,
                allocation_pools: &[],
                dns_nameservers: &request.dns_nameservers,
                host_routes: &[],
                ipv6_address_mode: None,
            };
            mistakes.extend(wish.mistakes());
        }
        None if request.gateway_ip.is_some() || !request.dns_nameservers.is_empty() => mistakes
            .push(
                "gateway_ip and dns_nameservers are those of a subnet, which needs cidr".to_owned(),
            ),
        None => {}
    }
    if let Some(mtu) = request.mtu {
        let least = least_mtu(request.cidr.into_iter());
        mistakes.extend(mtu_mistake(mtu, request.network_type, least, settings));
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(invalid(mistakes.join("; ")))
    }
}

/// What is wrong with an MTU.
fn mtu_mistake(
    mtu: u16,
    network_type: NetworkType,
    least: u16,
    settings: &Networks,
) -> Option<String> {
    let most = settings.largest_mtu(network_type);
    (!(least..=most).contains(&mtu)).then(|| {
        format!(
            "mtu of a {} network must be from {least} to {most}; got {mtu}",
            network_type.as_str()
        )
    })
}

/// The least MTU of a network with these subnets.
fn least_mtu(cidrs: impl Iterator<Item = Cidr>) -> u16 {
    let mut cidrs = cidrs;
    if cidrs.any(Cidr::is_ipv6) {
        subnets::MIN_MTU_IPV6
    } else {
        MIN_MTU
    }
}

fn first_subnet(request: &NetworkCreate, now: DateTime<Utc>) -> Result<Vec<SubnetRow>, ClaimError> {
    let Some(cidr) = request.cidr else {
        return Ok(Vec::new());
    };
    Ok(vec![SubnetRow {
        id: subnets::first_id(request.id)?,
        network_id: request.id,
        name: None,
        cidr,
        gateway_ip: request.gateway_ip,
        dhcp_ip: Some(subnets::dhcp_address(cidr, request.gateway_ip)?),
        allocation_pools: Vec::new(),
        dns_nameservers: request.dns_nameservers.clone(),
        host_routes: Vec::new(),
        ipv6_address_mode: None,
        fingerprint: String::new(),
        created_at: now,
        deleted_at: None,
    }])
}

/// Changes a network.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(
    writing: &mut Writing<'_>,
    request: &NetworkSet,
) -> Result<NetworkView, ClaimError> {
    if (&request.name, request.mtu, request.external) == (&None, None, None) {
        return Err(invalid(
            "nothing to change: name one of name, mtu, external",
        ));
    }
    let txn = writing.txn();
    let before = living(txn, &request.project, &request.network).await?;
    let ports = networks::port_count(txn, before.id).await?;
    let mut row = before.clone();
    if let Some(name) = &request.name {
        row.name = name.clone();
    }
    if let Some(external) = request.external {
        if before.external && !external {
            routers::uses::refuse_outside_use(txn, &before).await?;
        }
        row.external = external;
    }
    if let Some(mtu) = request.mtu {
        let settings = &writing.context().config.networks;
        let least = least_mtu(row.subnets.iter().map(|subnet| subnet.cidr));
        if let Some(mistake) = mtu_mistake(mtu, row.network_type, least, settings) {
            return Err(invalid(mistake));
        }
        // A guest keeps the size it began with, and drops what is larger.
        if mtu != row.mtu && ports > 0 {
            return Err(conflict(format!(
                "network {} is used by {ports} ports, whose guests have an MTU of {}; delete their instances first",
                row.name, row.mtu
            )));
        }
        row.mtu = mtu;
    }
    if row != before {
        networks::update(txn, &row)
            .await
            .map_err(|error| match error {
                StoreError::Unique {
                    constraint: UniqueWhat::NetworkName,
                    ..
                } => name_taken(&row.project, &row.name),
                error => error.into(),
            })?;
        writing.touch_everywhere(row.id);
        nat::changed(writing, row.id, None).await?;
    }
    Ok(view::network(&row, ports))
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
            "network {} is used by {ports} ports; delete their instances, and those that are of none, first",
            row.name
        )));
    }
    if row.deleted_at.is_none() {
        routers::uses::refuse_use(txn, &row).await?;
        networks::mark_deleted(txn, row.id, writing.now).await?;
    }
    Ok(view::network(&row, 0))
}

/// The living network of a project that a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    network: &str,
) -> Result<NetworkRow, ClaimError> {
    let row = living(db, project, network).await?;
    if row.project != *project {
        return Err(unknown(project, network));
    }
    Ok(row)
}

/// The living network that a request names, by its id, or by its name in the project.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn living(
    db: &impl Executor,
    project: &ProjectName,
    network: &str,
) -> Result<NetworkRow, ClaimError> {
    let row = resolve_any(db, project, network).await?;
    if row.deleted_at.is_some() {
        return Err(unknown(project, network));
    }
    Ok(row)
}

/// What a network demands of the host of an instance that has a port in it.
pub fn demand(network: &NetworkRow, needs: &mut NetworkNeeds) {
    if let Some(physnet) = &network.physical_network {
        needs.physical_networks.insert(physnet.to_string());
    }
    match network.network_type {
        NetworkType::Local | NetworkType::Nat | NetworkType::Flat => {}
        NetworkType::Vlan => needs.vlan = Need::Asked,
        NetworkType::Vxlan => needs.vxlan = Need::Asked,
    }
}

/// The network a request names, by id or by name, living or not.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve_any(
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
