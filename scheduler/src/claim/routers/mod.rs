//! Routers: creating, changing and deleting them, and their legs.
//!
//! - [`able`]: whether the hosts that they come to can build their networks;
//! - [`floating`]: floating IPs;
//! - [`held`]: addresses outside that hosts have not given up yet;
//! - [`hosts`]: which documents follow, and which addresses hosts need of external networks;
//! - [`joined`]: what they ask of the hosts of ports;
//! - [`networks`]: the networks and subnets that requests name;
//! - [`routes`]: further routes;
//! - [`supply`]: hosts that had to wait for such an address;
//! - [`uses`]: what is refused because of them elsewhere.

mod able;
pub mod floating;
pub mod held;
pub mod hosts;
pub mod joined;
mod networks;
pub mod routes;
pub mod supply;
pub mod uses;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{DocumentKey, Kind},
    ids::{HostId, NetworkId, RouterId},
    message::router::{
        ExternalGateway, RouterAddInterface, RouterCreate, RouterDelete, RouterHostView,
        RouterInterfaceView, RouterList, RouterListReply, RouterRemoveInterface, RouterSet,
        RouterView,
    },
    names::{ProjectName, RouterName},
};
use berth_store::{
    Executor, StoreError, UniqueWhat, documents, floating_ips, hosts as host_rows,
    networks::NetworkRow,
    ports,
    reach::{self, Among},
    routers::{self, RouterInterfaceRow, RouterRow},
};

use super::{ClaimError, address, conflict, fingerprint, invalid, not_found};
use crate::context::Writing;

/// Creates a router.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &Writing<'_>,
    request: &RouterCreate,
) -> Result<RouterView, ClaimError> {
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = routers::get(txn, request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "router {} exists already and was asked for with another content; use a new id for a new router",
                existing.id
            )));
        }
        return view(txn, &existing).await;
    }
    let external = match &request.external_network {
        Some(network) => Some(networks::external(txn, &request.project, network).await?),
        None => None,
    };
    let row = RouterRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        admin_state_up: request.admin_state_up,
        external_network_id: external.map(|network| network.id),
        enable_snat: request.enable_snat,
        routes: Vec::new(),
        fingerprint,
        created_at: writing.now,
        deleted_at: None,
    };
    let inserted = routers::insert(txn, &row).await;
    inserted.map_err(|error| name_taken(error, &row))?;
    view(txn, &row).await
}

fn name_taken(error: StoreError, row: &RouterRow) -> ClaimError {
    match error {
        StoreError::Unique {
            constraint: UniqueWhat::RouterName,
            ..
        } => conflict(format!(
            "project {} already has a router named {}",
            row.project, row.name
        )),
        error => error.into(),
    }
}

/// Changes a router.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(writing: &mut Writing<'_>, request: &RouterSet) -> Result<RouterView, ClaimError> {
    let mut row = resolve(writing.txn(), &request.project, &request.router).await?;
    let (was_up, before) = (row.admin_state_up, row.external_network_id);
    if let Some(name) = &request.name {
        row.name = name.clone();
    }
    row.admin_state_up = request.admin_state_up.unwrap_or(row.admin_state_up);
    row.enable_snat = request.enable_snat.unwrap_or(row.enable_snat);
    match &request.external_gateway {
        Some(ExternalGateway::Network(network)) => {
            let network = networks::external(writing.txn(), &request.project, network).await?;
            row.external_network_id = Some(network.id);
        }
        Some(ExternalGateway::None) => row.external_network_id = None,
        None => {}
    }
    if let Some(routes) = &request.routes {
        row.routes.clone_from(routes);
    }
    let legs = legs(writing.txn(), row.id).await?;
    if row.external_network_id != before {
        refuse_losing_floating_ips(writing.txn(), &row).await?;
        if let Some(external) = row.external_network_id
            && legs.iter().any(|leg| leg.network_id == external)
        {
            return Err(conflict(format!(
                "router {} has an interface in that network; the external network must be another one",
                row.name
            )));
        }
        uses::refuse_overlap_outside(writing.txn(), &row, &legs).await?;
    }
    // A router from before that was asked may stay as it is, and be switched off.
    if request.routes.is_some() || row.external_network_id != before {
        routes::check(writing.txn(), &row, &legs).await?;
    }
    // What it does not need any more no host must be able to.
    let leads_elsewhere = row.external_network_id.is_some() && row.external_network_id != before;
    if !was_up || leads_elsewhere {
        able::check_hosts(writing, &row, &legs).await?;
    }
    let updated = routers::update(writing.txn(), &row).await;
    updated.map_err(|error| name_taken(error, &row))?;
    touch(writing, &row, before.into_iter().collect()).await?;
    view(writing.txn(), &row).await
}

async fn refuse_losing_floating_ips(db: &impl Executor, row: &RouterRow) -> Result<(), ClaimError> {
    let floating = floating_ips::of_routers(db, &BTreeSet::from([row.id])).await?;
    match floating
        .iter()
        .find(|it| Some(it.network_id) != row.external_network_id)
    {
        Some(floating) => Err(conflict(format!(
            "router {} translates floating IP {}; take that from its port first",
            row.name, floating.ip_address
        ))),
        None => Ok(()),
    }
}

/// Deletes a router that has no interfaces.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &RouterDelete,
) -> Result<RouterView, ClaimError> {
    let row = resolve_any(writing.txn(), &request.project, &request.router).await?;
    if row.deleted_at.is_none() {
        let legs = legs(writing.txn(), row.id).await?;
        if !legs.is_empty() {
            return Err(conflict(format!(
                "router {} has {} interfaces; remove them first",
                row.name,
                legs.len()
            )));
        }
        // What was asked for before it in the same transaction chooses its addresses while those of this one are somebody's.
        writing.derive().await?;
        let networks = row.external_network_id.into_iter().collect();
        touch(writing, &row, networks).await?;
        routers::mark_deleted(writing.txn(), row.id, writing.now).await?;
        // Who asks for an address next knows then whom to wait for.
        writing.derive().await?;
    }
    view(writing.txn(), &row).await
}

/// Puts a router into a subnet.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn add_interface(
    writing: &mut Writing<'_>,
    request: &RouterAddInterface,
) -> Result<RouterView, ClaimError> {
    let txn = writing.txn();
    let row = resolve(txn, &request.project, &request.router).await?;
    let (network, subnet) = networks::subnet(txn, &request.project, &request.subnet).await?;
    let legs = legs(txn, row.id).await?;
    let ip_address = match request.ip_address.or(subnet.gateway_ip) {
        Some(address) => address,
        None => {
            return Err(invalid(format!(
                "subnet {} has no gateway; name an address for the router",
                subnet.cidr
            )));
        }
    };
    if let Some(leg) = legs.iter().find(|leg| leg.subnet_id == subnet.id) {
        if leg.ip_address == ip_address {
            return view(txn, &row).await;
        }
        return Err(conflict(format!(
            "router {} is in subnet {} already, as {}",
            row.name, subnet.cidr, leg.ip_address
        )));
    }
    if row.external_network_id == Some(network.id) {
        return Err(conflict(format!(
            "network {} is the external network of router {}; an interface must be in another one",
            network.name, row.name
        )));
    }
    if !subnet.cidr.is_host_address(ip_address) {
        return Err(invalid(format!(
            "{ip_address} is not an address for a machine in {}",
            subnet.cidr
        )));
    }
    if uses::is_bridge_address(&network, &subnet, ip_address) {
        return Err(conflict(format!(
            "{ip_address} is the gateway of {} in nat network {}, where the bridge of each host has it; name another address for the router",
            subnet.cidr, network.name
        )));
    }
    uses::refuse_overlap(txn, &row, &legs, subnet.cidr).await?;
    let mut used = ports::addresses_in_use(txn, subnet.id).await?;
    used.extend(routers::addresses_in_use(txn, subnet.id).await?);
    if used.contains(&ip_address) || subnet.dhcp_ip == Some(ip_address) {
        let waited_for = held::refused_for_now(txn, &network, ip_address).await?;
        if let Some(refusal) = waited_for.filter(|_| subnet.dhcp_ip != Some(ip_address)) {
            return Err(refusal);
        }
        return Err(conflict(format!(
            "{ip_address} is already used in {}",
            subnet.cidr
        )));
    }
    let shared = legs.iter().find(|leg| leg.network_id == network.id);
    let mac_address = match shared {
        Some(leg) => leg.mac_address,
        None => {
            let mut macs = ports::macs_in_use(txn, network.id).await?;
            macs.extend(routers::macs_in_use(txn, network.id).await?);
            address::choose_mac(&macs, (row.id.as_uuid(), 0))
        }
    };
    let leg = RouterInterfaceRow {
        router_id: row.id,
        subnet_id: subnet.id,
        network_id: network.id,
        ip_address,
        mac_address,
    };
    let mut after = legs;
    after.push(leg.clone());
    routes::check(txn, &row, &after).await?;
    able::check_hosts(writing, &row, &after).await?;
    routers::insert_interface(writing.txn(), &leg).await?;
    touch(writing, &row, BTreeSet::new()).await?;
    view(writing.txn(), &row).await
}

/// Takes a router out of a subnet.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn remove_interface(
    writing: &mut Writing<'_>,
    request: &RouterRemoveInterface,
) -> Result<RouterView, ClaimError> {
    let txn = writing.txn();
    let row = resolve(txn, &request.project, &request.router).await?;
    let (network, subnet) = networks::subnet(txn, &request.project, &request.subnet).await?;
    let mut legs = legs(txn, row.id).await?;
    if !legs.iter().any(|leg| leg.subnet_id == subnet.id) {
        return view(txn, &row).await;
    }
    let floating = floating_ips::of_routers(txn, &BTreeSet::from([row.id])).await?;
    let uses = |address: IpAddr| subnet.cidr.net().contains(&address);
    if let Some(floating) = floating
        .iter()
        .find(|it| it.association.is_some_and(|it| uses(it.fixed_ip_address)))
    {
        return Err(conflict(format!(
            "floating IP {} belongs to an address of {}; take it from its port first",
            floating.ip_address, subnet.cidr
        )));
    }
    legs.retain(|leg| leg.subnet_id != subnet.id);
    routes::check_next_hops(txn, &row, &legs).await?;
    // Those who have it now: afterwards nothing may lead to them, and nothing on them to its networks.
    let mut was_in = BTreeSet::from([network.id]);
    was_in.extend(legs.iter().map(|leg| leg.network_id));
    was_in.extend(row.external_network_id);
    touch(writing, &row, was_in).await?;
    routers::delete_interface(writing.txn(), row.id, subnet.id).await?;
    view(writing.txn(), &row).await
}

/// The documents of a router may follow from other rows now, on all hosts that have it or will; with them follow those of its
/// networks, and of these that it was in. Other routers in the same networks are none of its business.
async fn touch(
    writing: &mut Writing<'_>,
    row: &RouterRow,
    was_in: BTreeSet<NetworkId>,
) -> Result<(), ClaimError> {
    let legs = legs(writing.txn(), row.id).await?;
    let inside: BTreeSet<NetworkId> = legs.iter().map(|leg| leg.network_id).collect();
    let mut hosts = routers::hosts_told(writing.txn(), row.id).await?;
    let with_ports = reach::hosts_of(writing.txn(), &inside, Among::All).await?;
    hosts.extend(with_ports.into_iter().map(|(host, _)| host));
    for host in hosts {
        writing.touch_router(host, row.id);
        for network in &was_in {
            writing.touch_network_alone(host, *network);
        }
    }
    Ok(())
}

/// The living router a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    router: &str,
) -> Result<RouterRow, ClaimError> {
    let row = resolve_any(db, project, router).await?;
    if row.deleted_at.is_some() || row.project != *project {
        return Err(unknown(project, router));
    }
    Ok(row)
}

async fn resolve_any(
    db: &impl Executor,
    project: &ProjectName,
    router: &str,
) -> Result<RouterRow, ClaimError> {
    if let Ok(id) = router.parse::<RouterId>()
        && let Some(row) = routers::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = router.parse::<RouterName>()
        && let Some(row) = routers::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    Err(unknown(project, router))
}

fn unknown(project: &ProjectName, router: &str) -> ClaimError {
    let shown: String = router.chars().take(80).collect();
    not_found(format!(
        "project {project} has no router {shown:?}, neither by id nor by name"
    ))
}

async fn legs(db: &impl Executor, router: RouterId) -> Result<Vec<RouterInterfaceRow>, StoreError> {
    let mut found = routers::interfaces(db, &BTreeSet::from([router])).await?;
    Ok(found.remove(&router).unwrap_or_default())
}

/// A router as it is now.
///
/// # Errors
/// When the database fails.
pub async fn view(db: &impl Executor, row: &RouterRow) -> Result<RouterView, ClaimError> {
    Ok(views(db, std::slice::from_ref(row)).await?.remove(0))
}

/// All routers asked for.
///
/// # Errors
/// When the database fails.
pub async fn list(db: &impl Executor, request: &RouterList) -> Result<RouterListReply, ClaimError> {
    let rows = routers::list(db, request.project.as_ref()).await?;
    Ok(RouterListReply {
        routers: views(db, &rows).await?,
    })
}

async fn views(db: &impl Executor, rows: &[RouterRow]) -> Result<Vec<RouterView>, ClaimError> {
    let ids: BTreeSet<RouterId> = rows.iter().map(|row| row.id).collect();
    let interfaces = routers::interfaces(db, &ids).await?;
    let gateways = routers::gateways(db, &ids).await?;
    let keys: Vec<DocumentKey> = ids
        .iter()
        .map(|id| DocumentKey {
            kind: Kind::Router,
            id: id.as_uuid(),
        })
        .collect();
    let documents = documents::of_keys(db, &keys).await?;
    let hosts: BTreeSet<HostId> = documents.iter().map(|row| row.host_id).collect();
    let hosts: Vec<HostId> = hosts.into_iter().collect();
    let names: BTreeMap<_, _> = host_rows::of_ids(db, &hosts)
        .await?
        .into_iter()
        .map(|row| (row.id, row.name))
        .collect();
    let all_legs: Vec<RouterInterfaceRow> = interfaces.values().flatten().cloned().collect();
    let outside = rows.iter().filter_map(|row| row.external_network_id);
    let known = networks::of(db, &all_legs, outside).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let legs = interfaces.get(&row.id).into_iter().flatten();
            let told = documents
                .iter()
                .filter(|it| it.key.id == row.id.as_uuid() && it.spec_json.is_some());
            let external = row.external_network_id.and_then(|id| known.get(&id));
            RouterView {
                id: row.id,
                name: row.name.clone(),
                project: row.project.clone(),
                admin_state_up: row.admin_state_up,
                external_network_id: row.external_network_id,
                external_network: external.map(|network| network.name.clone()),
                enable_snat: row.enable_snat,
                routes: row.routes.clone(),
                interfaces: legs.map(|leg| interface_view(leg, &known)).collect(),
                hosts: told
                    .map(|document| RouterHostView {
                        host_id: document.host_id,
                        host: names.get(&document.host_id).cloned(),
                        ip_addresses: gateways
                            .iter()
                            .filter(|it| it.router_id == row.id && it.host_id == document.host_id)
                            .map(|it| it.ip_address)
                            .collect(),
                        status: document.observed_status,
                    })
                    .collect(),
                created_at: row.created_at,
            }
        })
        .collect())
}

fn interface_view(
    leg: &RouterInterfaceRow,
    known: &BTreeMap<NetworkId, NetworkRow>,
) -> RouterInterfaceView {
    let network = known.get(&leg.network_id);
    let subnet = network
        .into_iter()
        .flat_map(|network| &network.subnets)
        .find(|subnet| subnet.id == leg.subnet_id);
    RouterInterfaceView {
        subnet_id: leg.subnet_id,
        cidr: subnet.map(|subnet| subnet.cidr),
        network_id: leg.network_id,
        network: network.map(|network| network.name.clone()),
        ip_address: leg.ip_address,
        mac_address: leg.mac_address,
    }
}
