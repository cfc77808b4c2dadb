//! Floating IPs: getting and giving back addresses of external networks, and giving them to ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    ids::{FloatingIpId, InstanceId, PortId},
    message::router::{
        FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpListReply, FloatingIpSet,
        FloatingIpView,
    },
    names::ProjectName,
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    floating_ips::{self, Association, FloatingIpRow},
    networks::NetworkRow,
    ports::{self, PortRow},
    routers::{self, RouterRow},
    subnets,
};

use super::{held, networks};
use crate::{
    claim::{ClaimError, address, conflict, fingerprint, invalid, not_found},
    context::Writing,
};

/// Gets an address.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &Writing<'_>,
    request: &FloatingIpCreate,
) -> Result<FloatingIpView, ClaimError> {
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = floating_ips::get(txn, request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "floating IP {} exists already and was asked for with another content; use a new id for a new one",
                existing.id
            )));
        }
        return view(txn, &existing).await;
    }
    let network = networks::external(txn, &request.project, &request.network).await?;
    let (subnet_id, ip_address) = choose(txn, &network, request.ip_address).await?;
    let row = FloatingIpRow {
        id: request.id,
        project: request.project.clone(),
        network_id: network.id,
        subnet_id,
        ip_address,
        association: None,
        fingerprint,
        created_at: writing.now,
    };
    floating_ips::insert(txn, &row).await?;
    view(txn, &row).await
}

/// The wished address or a free one, of the IPv4 subnets of a network.
async fn choose(
    db: &impl Executor,
    network: &NetworkRow,
    wish: Option<IpAddr>,
) -> Result<(berth_common::ids::SubnetId, IpAddr), ClaimError> {
    if let Some(wish) = wish.filter(IpAddr::is_ipv6) {
        return Err(invalid(format!(
            "{wish} is of IPv6, where addresses are not translated; use an IPv4 address"
        )));
    }
    let of_ipv4 = || {
        network
            .subnets
            .iter()
            .filter(|subnet| !subnet.cidr.is_ipv6())
    };
    // The others say only that it is not theirs.
    let of_wish = wish.and_then(|wish| of_ipv4().find(|subnet| subnet.cidr.net().contains(&wish)));
    let mut refusal = None;
    for subnet in of_ipv4().filter(|subnet| of_wish.is_none_or(|of_wish| of_wish.id == subnet.id)) {
        let mut used = ports::addresses_in_use(db, subnet.id).await?;
        used.extend(routers::addresses_in_use(db, subnet.id).await?);
        match address::choose(subnet, &used, wish) {
            Ok(address) => return Ok((subnet.id, address)),
            Err(error) => refusal = Some(error),
        }
    }
    Err(match refusal {
        Some(error) => held::refused(db, network, error).await?,
        None => conflict(format!("network {} has no IPv4 subnet", network.name)),
    })
}

/// Gives a floating IP to a port, or takes it back.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(
    writing: &mut Writing<'_>,
    request: &FloatingIpSet,
) -> Result<FloatingIpView, ClaimError> {
    let mut row = resolve(writing.txn(), &request.project, &request.floating_ip).await?;
    let before = row.association;
    row.association = match request.port_id {
        Some(port) => Some(association(writing.txn(), &row, port, request.fixed_ip_address).await?),
        None => None,
    };
    if row.association != before {
        let done = floating_ips::associate(writing.txn(), row.id, row.association).await;
        done.map_err(|error| match error {
            StoreError::Unique {
                constraint: UniqueWhat::FloatingIpPort,
                ..
            } => conflict("that address of the port has a floating IP already"),
            error => error.into(),
        })?;
        let concerned: Vec<Association> = before.into_iter().chain(row.association).collect();
        touch_translated(writing, &concerned).await?;
    }
    view(writing.txn(), &row).await
}

/// What is translated for some ports changed: their hosts are told, and no others.
async fn touch_translated(
    writing: &mut Writing<'_>,
    associations: &[Association],
) -> Result<(), ClaimError> {
    let ids: Vec<PortId> = associations.iter().map(|it| it.port_id).collect();
    for port in ports::of_ids(writing.txn(), &ids).await? {
        touch_translated_of(writing, &port, associations);
    }
    Ok(())
}

/// The same, of one port.
pub fn touch_translated_of(
    writing: &mut Writing<'_>,
    port: &PortRow,
    associations: &[Association],
) {
    let placed = port.instance_id().and_then(|id| writing.cloud.placed(id));
    let Some(host) = placed.map(|placed| placed.host) else {
        return;
    };
    for association in associations.iter().filter(|it| it.port_id == port.id) {
        writing.touch_router(host, association.router_id);
    }
}

/// Which address of the port it becomes, and by which router.
async fn association(
    db: &impl Executor,
    row: &FloatingIpRow,
    port_id: PortId,
    wish: Option<IpAddr>,
) -> Result<Association, ClaimError> {
    let nobodys = || not_found(format!("project {} has no port {port_id}", row.project));
    let port = ports::get(db, port_id).await?.ok_or_else(nobodys)?;
    if port.project != row.project {
        return Err(nobodys());
    }
    let fixed = fixed_ip(&port, wish)?;
    let network = BTreeSet::from([port.network_id]);
    let near = routers::inside(db, &network).await?;
    let interfaces = routers::interfaces(db, &near).await?;
    let mut ways = Vec::new();
    for router in routers::of_ids(db, &near).await? {
        let legs = interfaces.get(&router.id).into_iter().flatten();
        let mut legs = legs.filter(|leg| leg.subnet_id == fixed.subnet_id);
        if router.external_network_id == Some(row.network_id)
            && let Some(leg) = legs.next()
        {
            ways.push((router, leg.ip_address));
        }
    }
    let gateway = subnets::get(db, fixed.subnet_id).await?;
    let gateway = gateway.and_then(|subnet| subnet.gateway_ip);
    let router = translating(&ways, gateway).ok_or_else(|| match ways.first() {
        Some((router, _)) => conflict(format!(
            "router {} leads from the subnet of {} to the network of floating IP {}, but is disabled; enable it",
            router.name, fixed.ip_address, row.ip_address
        )),
        None => conflict(format!(
            "no router leads from the subnet of {} to the network of floating IP {}; add an interface to one",
            fixed.ip_address, row.ip_address
        )),
    })?;
    Ok(Association {
        port_id,
        fixed_ip_address: fixed.ip_address,
        router_id: router.id,
    })
}

/// The router by which a guest answers, of those that lead from its subnet to a network, each with its address in the subnet: the one
/// that is the subnet's gateway, or else the oldest that is up. What another one translates inwards would come back untranslated.
fn translating(ways: &[(RouterRow, IpAddr)], gateway: Option<IpAddr>) -> Option<&RouterRow> {
    let up = || ways.iter().filter(|(router, _)| router.admin_state_up);
    let is_gateway = |(_, address): &&(RouterRow, IpAddr)| Some(*address) == gateway;
    let chosen = up().find(is_gateway).or_else(|| up().next());
    chosen.map(|(router, _)| router)
}

fn fixed_ip(
    port: &PortRow,
    wish: Option<IpAddr>,
) -> Result<berth_common::document::FixedIp, ClaimError> {
    let mut of_ipv4 = port.fixed_ips.iter().filter(|ip| ip.ip_address.is_ipv4());
    let found = match wish {
        Some(wish) => of_ipv4.find(|ip| ip.ip_address == wish),
        None => of_ipv4.next(),
    };
    let found = found.cloned().ok_or_else(|| match wish {
        Some(wish) => invalid(format!("port {} has no IPv4 address {wish}", port.id)),
        None => invalid(format!("port {} has no IPv4 address", port.id)),
    })?;
    if wish.is_none() && of_ipv4.next().is_some() {
        return Err(invalid(format!(
            "port {} has several IPv4 addresses; name one of them",
            port.id
        )));
    }
    Ok(found)
}

/// Gives an address back.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &FloatingIpDelete,
) -> Result<FloatingIpView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.floating_ip).await?;
    let shown = view(writing.txn(), &row).await?;
    // What was asked for before it in the same transaction chooses its addresses while this one is somebody's.
    writing.derive().await?;
    floating_ips::delete(writing.txn(), row.id).await?;
    let association: Vec<Association> = row.association.into_iter().collect();
    touch_translated(writing, &association).await?;
    // Who asks for an address next, maybe in the same transaction, knows then that the host still has this one.
    writing.derive().await?;
    Ok(shown)
}

/// The floating IP a request names, by id or by address.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    floating_ip: &str,
) -> Result<FloatingIpRow, ClaimError> {
    if let Ok(id) = floating_ip.parse::<FloatingIpId>()
        && let Some(row) = floating_ips::get(db, id).await?
        && row.project == *project
    {
        return Ok(row);
    }
    if let Ok(address) = floating_ip.parse::<IpAddr>() {
        let mut found = floating_ips::find_by_address(db, project, address).await?;
        match (found.pop(), found.is_empty()) {
            (Some(row), true) => return Ok(row),
            (Some(_), false) => {
                return Err(conflict(format!(
                    "project {project} has {address} of several networks; use an id"
                )));
            }
            (None, _) => {}
        }
    }
    let shown: String = floating_ip.chars().take(80).collect();
    Err(not_found(format!(
        "project {project} has no floating IP {shown:?}, neither by id nor by address"
    )))
}

/// All floating IPs asked for.
///
/// # Errors
/// When the database fails.
pub async fn list(
    db: &impl Executor,
    request: &FloatingIpList,
) -> Result<FloatingIpListReply, ClaimError> {
    let rows = floating_ips::list(db, request.project.as_ref()).await?;
    Ok(FloatingIpListReply {
        floating_ips: views(db, &rows).await?,
    })
}

/// A floating IP as it is now.
///
/// # Errors
/// When the database fails.
pub async fn view(db: &impl Executor, row: &FloatingIpRow) -> Result<FloatingIpView, ClaimError> {
    Ok(views(db, std::slice::from_ref(row)).await?.remove(0))
}

async fn views(
    db: &impl Executor,
    rows: &[FloatingIpRow],
) -> Result<Vec<FloatingIpView>, ClaimError> {
    let ids: BTreeSet<_> = rows.iter().map(|row| row.network_id).collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let known = berth_store::networks::of_ids(db, &ids).await?;
    let associations = rows.iter().filter_map(|row| row.association);
    let ids: Vec<PortId> = associations.map(|it| it.port_id).collect();
    let instances: BTreeMap<PortId, InstanceId> = ports::of_ids(db, &ids)
        .await?
        .iter()
        .filter_map(|port| Some((port.id, port.instance_id()?)))
        .collect();
    Ok(rows
        .iter()
        .map(|row| {
            let network = known.iter().find(|network| network.id == row.network_id);
            let association = row.association;
            FloatingIpView {
                id: row.id,
                project: row.project.clone(),
                network_id: row.network_id,
                network: network.map(|network| network.name.clone()),
                ip_address: row.ip_address,
                port_id: association.map(|it| it.port_id),
                instance_id: association.and_then(|it| instances.get(&it.port_id).copied()),
                fixed_ip_address: association.map(|it| it.fixed_ip_address),
                router_id: association.map(|it| it.router_id),
                created_at: row.created_at,
            }
        })
        .collect())
}
