//! Creating and changing instances.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{DesiredPower, DocumentKey, FixedIp, Kind, Reboot},
    ids::{HostId, InstanceId, PortId},
    message::{
        report::{ConvergeStatus, Fault, FaultCode, PowerState},
        request::{InstanceCreate, InstanceReboot, Method, NetworkAttachment},
        view::{InstanceView, Resources},
    },
    names::{InstanceName, ProjectName},
    refusal::{Refusal, RefusalCode},
    units::{MemoryMb, Vcpus},
};
use berth_store::{
    Executor, StoreError, Txn, UniqueWhat,
    claims::{self, ClaimRole, ClaimRow},
    hosts,
    instances::{self, InstanceObserved, InstanceRow},
    networks::NetworkRow,
    nonces,
    ports::{self, PortRow},
};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{ClaimError, address, conflict, fingerprint, invalid, not_found, refresh};
use crate::{
    context::Context,
    place::{self, Demand, HostTable, Scratch},
    report::{show, view},
};

/// The most NICs an instance may have: what QEMU's first PCI bus takes with room to spare.
const MAX_NETWORKS: usize = 8;

/// Creates an instance: row, ports and claim in one transaction.
///
/// One for which there was no host is placed again when its request is repeated.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing was changed, except that an instance for which there is
/// no host is kept, in error with the reason.
pub async fn create(
    context: &Context,
    request: &InstanceCreate,
) -> Result<InstanceView, ClaimError> {
    validate(request)?;
    let fingerprint = fingerprint(request)?;
    let now = Utc::now();
    let writing = context.begin().await?;
    let txn = &writing.txn;

    let existing = instances::get(txn, request.id).await?;
    if let Some(row) = &existing {
        if row.fingerprint != fingerprint {
            return Err(conflict(format!(
                "instance {} exists already and was asked for with another content; use a new id for a new instance",
                row.id
            )));
        }
        if row.placement_fault.is_none() || row.deleted_at.is_some() {
            return show::instance(txn, row).await;
        }
    } else if instances::find_by_name(txn, &request.project, &request.name)
        .await?
        .is_some()
    {
        return Err(name_taken(request));
    }

    let networks = resolve_networks(txn, request).await?;
    let new_ports = plan_ports(txn, request, &networks).await?;
    let hosts = host_table(context, txn).await?;
    let decision = place::place(
        &place::Request::from(request.flavor),
        &hosts,
        &mut Scratch::default(),
    );
    let fault = decision.chosen.is_none().then(|| Fault {
        code: FaultCode::NoValidHost,
        message: decision.operator_text(),
    });
    if existing.is_some() {
        instances::set_placement_fault(txn, request.id, fault.as_ref(), now).await?;
    } else {
        let row = new_row(request, fingerprint, fault, now);
        instances::insert(txn, &row)
            .await
            .map_err(|error| taken(error, request))?;
    }
    if let Some(chosen) = &decision.chosen {
        claim(txn, request, &new_ports, chosen.host_id, now).await?;
    }
    let shown = show::instance(txn, &get(txn, request.id).await?).await?;
    writing.commit().await?;
    context.dispatch.notify_one();
    match &decision.chosen {
        Some(chosen) => {
            context.metrics.placed();
            tracing::info!(instance = %request.id, name = %request.name, host = %chosen.host, "instance accepted");
            Ok(shown)
        }
        None => {
            context.metrics.no_valid_host();
            let reason = decision.operator_text();
            tracing::warn!(instance = %request.id, name = %request.name, %reason, "instance refused");
            Err(Refusal::new(RefusalCode::NoValidHost, reason).into())
        }
    }
}

/// Gives an instance its ports and its room on a host.
async fn claim(
    txn: &Txn,
    request: &InstanceCreate,
    ports: &[PortRow],
    host_id: HostId,
    now: DateTime<Utc>,
) -> Result<(), ClaimError> {
    for port in ports {
        ports::insert(txn, port)
            .await
            .map_err(|error| taken(error, request))?;
    }
    let claim = ClaimRow {
        instance_id: request.id,
        host_id,
        role: ClaimRole::Current,
        resources: Resources::from(request.flavor),
        project: request.project.clone(),
    };
    claims::insert(txn, &claim).await?;
    refresh(txn, host_id, &BTreeSet::new(), now).await
}

/// An instance that must be there: it was just written.
async fn get(txn: &Txn, id: InstanceId) -> Result<InstanceRow, ClaimError> {
    let row = instances::get(txn, id).await?;
    row.ok_or_else(|| not_found(format!("instance {id} is gone")))
}

/// Everything that can be said of a request without looking at any row; all mistakes at once.
fn validate(request: &InstanceCreate) -> Result<(), ClaimError> {
    let flavor = request.flavor;
    let mut mistakes = Vec::new();
    if flavor.vcpus == Vcpus::ZERO {
        mistakes.push("flavor.vcpus must be at least 1".to_owned());
    }
    if flavor.memory_mb == MemoryMb::ZERO {
        mistakes.push("flavor.memory_mb must be at least 1".to_owned());
    }
    if flavor.disk_gb.get() == 0 {
        mistakes.push("flavor.disk_gb must be at least 1".to_owned());
    }
    if !(1..=3600).contains(&request.stop_timeout_seconds) {
        mistakes.push(format!(
            "stop_timeout_seconds must be from 1 to 3600; got {}",
            request.stop_timeout_seconds
        ));
    }
    if request.networks.len() > MAX_NETWORKS {
        mistakes.push(format!(
            "networks must be at most {MAX_NETWORKS}; got {}",
            request.networks.len()
        ));
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(invalid(mistakes.join("; ")))
    }
}

fn name_taken(request: &InstanceCreate) -> ClaimError {
    conflict(format!(
        "project {} already has an instance named {}",
        request.project, request.name
    ))
}

/// What a violated uniqueness means for the sender.
fn taken(error: StoreError, request: &InstanceCreate) -> ClaimError {
    match error {
        StoreError::Unique {
            constraint: UniqueWhat::InstanceName,
            ..
        } => name_taken(request),
        StoreError::Unique {
            constraint: UniqueWhat::IpAddress,
            ..
        } => conflict("an address of this instance was taken meanwhile"),
        StoreError::Unique {
            constraint: UniqueWhat::MacAddress,
            ..
        } => conflict("a MAC address of this instance was taken meanwhile"),
        error => error.into(),
    }
}

fn new_row(
    request: &InstanceCreate,
    fingerprint: String,
    placement_fault: Option<Fault>,
    now: DateTime<Utc>,
) -> InstanceRow {
    InstanceRow {
        id: request.id,
        name: request.name.clone(),
        project: request.project.clone(),
        flavor: request.flavor,
        image: request.image.clone(),
        stop_timeout_seconds: request.stop_timeout_seconds,
        fingerprint,
        desired_power: request.power,
        desired_reboot: None,
        desired_deleted: false,
        placement_fault,
        observed: InstanceObserved::default(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
    }
}

/// The networks a request names, by id or by name, in its order.
async fn resolve_networks<'a>(
    txn: &Txn,
    request: &'a InstanceCreate,
) -> Result<Vec<(&'a NetworkAttachment, NetworkRow)>, ClaimError> {
    let mut resolved = Vec::with_capacity(request.networks.len());
    for attachment in &request.networks {
        let network = super::networks::resolve(txn, &request.project, &attachment.network).await?;
        resolved.push((attachment, network));
    }
    Ok(resolved)
}

/// The ports of a new instance, with every address chosen.
async fn plan_ports(
    txn: &Txn,
    request: &InstanceCreate,
    networks: &[(&NetworkAttachment, NetworkRow)],
) -> Result<Vec<PortRow>, ClaimError> {
    let mut used_addresses = BTreeMap::new();
    let mut used_macs = BTreeMap::new();
    for (_, network) in networks {
        used_addresses.insert(
            network.subnet.id,
            ports::addresses_in_use(txn, network.subnet.id).await?,
        );
        used_macs.insert(network.id, ports::macs_in_use(txn, network.id).await?);
    }
    let mut planned = Vec::with_capacity(networks.len());
    for (position, (attachment, network)) in (0_u8..).zip(networks) {
        let addresses = used_addresses.entry(network.subnet.id).or_default();
        let ip_address = address::choose(&network.subnet, addresses, attachment.ip_address)
            .map_err(address_refused)?;
        addresses.insert(ip_address);

        let macs = used_macs.entry(network.id).or_default();
        let mac_address = match attachment.mac_address {
            Some(mac) if macs.contains(&mac) => {
                return Err(conflict(format!(
                    "{mac} is already used by another port of network {}",
                    network.name
                )));
            }
            Some(mac) => mac,
            None => address::choose_mac(macs, request.id, position),
        };
        macs.insert(mac_address);

        planned.push(PortRow {
            id: port_id(request.id, position)?,
            instance_id: request.id,
            network_id: network.id,
            position,
            mac_address,
            fixed_ips: vec![FixedIp {
                subnet_id: network.subnet.id,
                ip_address,
            }],
        });
    }
    Ok(planned)
}

fn address_refused(error: address::AddressError) -> ClaimError {
    match error {
        address::AddressError::Outside { .. } | address::AddressError::Reserved { .. } => {
            invalid(error.to_string())
        }
        address::AddressError::Taken { .. } | address::AddressError::Full { .. } => {
            conflict(error.to_string())
        }
    }
}

/// The id of an instance's port: a function of the instance and the position.
fn port_id(instance: InstanceId, position: u8) -> Result<PortId, ClaimError> {
    let name = format!("port {position}");
    PortId::try_from(Uuid::new_v5(&instance.as_uuid(), name.as_bytes()))
        .map_err(|error| invalid(error.to_string()))
}

/// All hosts as placement sees them.
async fn host_table(context: &Context, txn: &Txn) -> Result<HostTable, ClaimError> {
    let mut table = HostTable::default();
    for row in &hosts::all(txn).await? {
        table.upsert(view::placement_facts(
            row,
            context.is_alive(row.id),
            &context.config.placement,
        ));
    }
    for claim in claims::all(txn).await? {
        let demand = Demand {
            resources: claim.resources,
            ..Demand::default()
        };
        // A claim refers to its host, so the host is there.
        if let Err(error) = table.claim(claim.host_id, &demand) {
            tracing::warn!(instance = %claim.instance_id, %error, "claim without a host");
        }
    }
    Ok(table)
}

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
/// A refusal, or a failure of the database; then nothing was changed.
pub async fn change(
    context: &Context,
    project: &ProjectName,
    instance: &str,
    change: Change,
) -> Result<InstanceView, ClaimError> {
    let now = Utc::now();
    let writing = context.begin().await?;
    let txn = &writing.txn;
    let row = resolve(txn, project, instance).await?;
    let host = current_host(txn, row.id).await?;
    let mut again = BTreeSet::new();

    match change {
        Change::Delete => delete(txn, &row, host, now).await?,
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
            instances::set_desired_power(txn, row.id, DesiredPower::Running, now).await?;
            if is_left_off(&row) {
                again.insert(DocumentKey {
                    kind: Kind::Instance,
                    id: row.id.as_uuid(),
                });
            }
        }
        Change::Stop => {
            instances::set_desired_power(txn, row.id, DesiredPower::Stopped, now).await?
        }
        Change::Reboot(reboot) => reboot_once(txn, &row, reboot, now).await?,
    }
    if let Some(host) = host {
        refresh(txn, host, &again, now).await?;
    }
    let shown = show::instance(txn, &get(txn, row.id).await?).await?;
    writing.commit().await?;
    context.dispatch.notify_one();
    Ok(shown)
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

/// An instance without a host is gone at once; one with a host is gone when the host says so.
async fn delete(
    txn: &Txn,
    row: &InstanceRow,
    host: Option<HostId>,
    now: DateTime<Utc>,
) -> Result<(), ClaimError> {
    if row.deleted_at.is_some() {
        return Ok(());
    }
    instances::set_desired_deleted(txn, row.id, now).await?;
    if host.is_none() {
        instances::mark_deleted(txn, row.id, now).await?;
    }
    Ok(())
}

async fn reboot_once(
    txn: &Txn,
    row: &InstanceRow,
    reboot: Reboot,
    now: DateTime<Utc>,
) -> Result<(), ClaimError> {
    if row.desired_power == DesiredPower::Stopped {
        return Err(conflict(format!(
            "instance {} is stopped; start it instead",
            row.name
        )));
    }
    if nonces::remember(txn, row.id, reboot.nonce, InstanceReboot::NAME, now).await? {
        instances::set_desired_reboot(txn, row.id, Some(reboot), now).await?;
    }
    Ok(())
}

/// The host an instance has its claim on.
async fn current_host(txn: &Txn, instance: InstanceId) -> Result<Option<HostId>, ClaimError> {
    let claims = claims::of_instance(txn, instance).await?;
    Ok(claims
        .iter()
        .find(|claim| claim.role == ClaimRole::Current)
        .map(|claim| claim.host_id))
}

/// The instance a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    instance: &str,
) -> Result<InstanceRow, ClaimError> {
    if let Ok(id) = instance.parse::<InstanceId>()
        && let Some(row) = instances::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = instance.parse::<InstanceName>()
        && let Some(row) = instances::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    let shown: String = instance.chars().take(80).collect();
    Err(not_found(format!(
        "project {project} has no instance {shown:?}, neither by id nor by name"
    )))
}
