//! Plugging ports into instances, and unplugging them.
//!
//! ```text
//!  attach ─▶ attaching ── its host says that the instance has it ─▶ attached
//!                └──────────────────── detach ───────────────────────────┴─▶ detaching
//!  detaching ── its host says that the instance does not have it, or the instance is gone ─▶ free, or no port
//! ```
//!
//! A port is free only when its host saw the NIC gone: until then nobody else gets it, and its addresses stay its own. A port
//! that was made for its instance goes then; one that was made by itself stays.

use std::collections::BTreeSet;

use berth_common::{
    document::DesiredPower,
    ids::HostId,
    message::{
        port::{InstanceAttachInterface, InstanceDetachInterface, NewPort as NewPortWish},
        view::{InstanceView, Resources},
    },
};
use berth_store::{
    instances::InstanceRow,
    networks::{self as network_rows, NetworkRow},
    ports::{self, AttachmentState, PortAttachment, PortRow, PortWishes},
};

use super::{
    Addresses, NewPort, called,
    change::{check_same, remove},
    check_free, check_project, demand, resolve, taken, touch_members,
    wishes::SecurityWish,
};
use crate::{
    claim::{
        ClaimError, conflict, fingerprint,
        instances::{self as claim_instances, boot::check_not_rescued, change::leave_off},
        invalid, networks,
        routers::joined::Joined,
    },
    context::Writing,
    place,
    report::show,
};

/// The most NICs an instance may have: what QEMU's first PCI bus takes with room to spare.
pub const MAX_PORTS: u8 = 8;

/// Plugs a port into an instance, one that is there or a new one.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn attach(
    writing: &mut Writing<'_>,
    request: &InstanceAttachInterface,
) -> Result<InstanceView, ClaimError> {
    let instance =
        claim_instances::resolve(writing.txn(), &request.project, &request.instance).await?;
    match (&request.port, &request.new_port) {
        (Some(port), None) => attach_given(writing, request, &instance, port).await?,
        (None, Some(wish)) => attach_new(writing, &instance, wish).await?,
        (None, None) | (Some(_), Some(_)) => {
            return Err(invalid("exactly one of port and new_port must be named"));
        }
    }
    writing.derive().await?;
    let instance = claim_instances::change::get(writing.txn(), instance.id).await?;
    show::instance(writing.context(), writing.txn(), &instance).await
}

async fn attach_given(
    writing: &mut Writing<'_>,
    request: &InstanceAttachInterface,
    instance: &InstanceRow,
    port: &str,
) -> Result<(), ClaimError> {
    let row = resolve(writing.txn(), &request.project, port).await?;
    let has_it = row.instance_id() == Some(instance.id) && row.is_wanted();
    if has_it {
        return Ok(());
    }
    check_project(&row, &instance.project)?;
    check_free(writing.txn(), &row).await?;
    let host = check_instance(writing, instance)?;
    let network = network_rows::get(writing.txn(), row.network_id).await?;
    if let Some(network) = network {
        check_reach(writing, host, &network, &row.wishes).await?;
    }
    let attachment = next(writing, instance).await?;
    ports::attach(writing.txn(), row.id, attachment).await?;
    plugged(writing, host, instance, &row).await
}

async fn attach_new(
    writing: &mut Writing<'_>,
    instance: &InstanceRow,
    wish: &NewPortWish,
) -> Result<(), ClaimError> {
    let security = SecurityWish {
        port_security_enabled: wish.port_security_enabled,
        security_groups: wish.security_groups.as_deref(),
    };
    let mistakes = security.mistakes();
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    let fingerprint = fingerprint(wish)?;
    if let Some(there) = ports::get(writing.txn(), wish.id).await? {
        check_same(&there, &fingerprint)?;
        if there.instance_id() == Some(instance.id) && there.is_wanted() {
            return Ok(());
        }
        check_free(writing.txn(), &there).await?;
        return Err(conflict(format!(
            "port {} is there already, and free; name it as a port, or use a new id for a new one",
            called(&there)
        )));
    }
    let host = check_instance(writing, instance)?;
    let attachment = next(writing, instance).await?;
    let (txn, now) = (writing.txn(), writing.now);
    let project = &instance.project;
    let mut addresses = Addresses::default();
    let network = addresses.network(txn, project, &wish.network).await?;
    let wishes = addresses.wishes(txn, project, security, now).await?;
    check_reach(writing, host, &network, &wishes).await?;
    let new = NewPort {
        id: wish.id,
        seed: (wish.id.as_uuid(), 0),
        project,
        name: None,
        ip_address: wish.ip_address,
        mac_address: wish.mac_address,
        attachment: Some(attachment),
        delete_with_instance: true,
        wishes,
        fingerprint,
        created_at: now,
    };
    let row = addresses.port(txn, &network, new).await?;
    let inserted = ports::insert(txn, &row).await;
    inserted.map_err(|error| taken(error, &row))?;
    plugged(writing, host, instance, &row).await
}

/// An instance has a port more: its documents follow.
async fn plugged(
    writing: &mut Writing<'_>,
    host: HostId,
    instance: &InstanceRow,
    row: &PortRow,
) -> Result<(), ClaimError> {
    leave_off(writing, host, instance).await?;
    writing.touch_instance(host, instance.id);
    touch_members(writing, row);
    writing.touch_network(host, row.network_id);
    tracing::info!(port = %row.id, instance = %instance.id, "port is to be plugged in");
    Ok(())
}

/// The host of an instance whose NICs may change.
fn check_instance(writing: &Writing<'_>, instance: &InstanceRow) -> Result<HostId, ClaimError> {
    let name = &instance.name;
    if instance.desired_deleted || instance.deleted_at.is_some() {
        return Err(conflict(format!("instance {name} is being deleted")));
    }
    let Some(placed) = writing.cloud.placed(instance.id) else {
        return Err(conflict(format!(
            "instance {name} has no host; repeat the request that created it, or delete it"
        )));
    };
    if !instance.observed.was_active {
        return Err(conflict(format!(
            "instance {name} was not built yet, and may still get another host; plug the port in when it is built"
        )));
    }
    check_suspended(instance)?;
    check_not_rescued(instance)?;
    Ok(placed.host)
}

/// Refuses a network if the host of an instance cannot build it for such a port, or another one that routers join to it: nobody moves
/// for a port.
async fn check_reach(
    writing: &Writing<'_>,
    host: HostId,
    network: &NetworkRow,
    wishes: &PortWishes,
) -> Result<(), ClaimError> {
    let Some(known) = writing.cloud.table().host(host) else {
        return Ok(());
    };
    let mut request = place::Request::of(Resources::default());
    networks::demand(network, &mut request.networks);
    demand(wishes, &mut request.networks);
    Joined::default()
        .demand(
            writing.txn(),
            &writing.cloud,
            std::slice::from_ref(network),
            &mut request,
        )
        .await?;
    place::reaches_networks(&request, known).map_err(|rejection| {
        conflict(format!(
            "host {} cannot build network {}: {}",
            known.facts().name,
            network.name,
            rejection.for_owner()
        ))
    })
}

/// A guest whose memory is on disk knows the NICs it had, and no others.
fn check_suspended(instance: &InstanceRow) -> Result<(), ClaimError> {
    if instance.desired_power == DesiredPower::Suspended {
        return Err(conflict(format!(
            "instance {} is suspended, and its memory knows the NICs it has; resume it first",
            instance.name
        )));
    }
    Ok(())
}

/// The next place among an instance's NICs: the lowest that none has; those being unplugged keep theirs.
async fn next(writing: &Writing<'_>, instance: &InstanceRow) -> Result<PortAttachment, ClaimError> {
    let has = ports::of_instance(writing.txn(), instance.id).await?;
    let taken: BTreeSet<u8> = has.iter().map(PortRow::position).collect();
    let free = (0..MAX_PORTS).find(|position| !taken.contains(position));
    let position = free.ok_or_else(|| {
        conflict(format!(
            "instance {} has {MAX_PORTS} ports, which is the most; unplug one first",
            instance.name
        ))
    })?;
    Ok(PortAttachment {
        instance_id: instance.id,
        position,
        state: AttachmentState::Attaching,
    })
}

/// Unplugs a port from an instance. From one that does not have it, it is unplugged already.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn detach(
    writing: &mut Writing<'_>,
    request: &InstanceDetachInterface,
) -> Result<InstanceView, ClaimError> {
    let instance =
        claim_instances::resolve(writing.txn(), &request.project, &request.instance).await?;
    let row = resolve(writing.txn(), &request.project, &request.port).await?;
    if row.instance_id() == Some(instance.id) && row.is_wanted() {
        check_suspended(&instance)?;
        check_not_rescued(&instance)?;
        ports::set_state(writing.txn(), &[row.id], AttachmentState::Detaching).await?;
        if let Some(host) = writing.cloud.placed(instance.id).map(|placed| placed.host) {
            leave_off(writing, host, &instance).await?;
            writing.touch_instance(host, instance.id);
            writing.touch_network(host, row.network_id);
            writing.derive().await?;
        }
        tracing::info!(port = %row.id, instance = %instance.id, "port {} is to be unplugged", called(&row));
    }
    show::instance(writing.context(), writing.txn(), &instance).await
}

/// The host of an instance does not have a port any more that it was to give up: it is free, or gone.
///
/// # Errors
/// When the database fails.
pub async fn settle_gone(
    writing: &mut Writing<'_>,
    host: HostId,
    row: &PortRow,
) -> Result<(), ClaimError> {
    if row.delete_with_instance {
        remove(writing, row).await?;
    } else {
        touch_members(writing, row);
        ports::free(writing.txn(), row.id).await?;
    }
    writing.touch_network(host, row.network_id);
    tracing::info!(port = %row.id, "port is unplugged");
    Ok(())
}

/// Refuses to save the memory of a guest whose NICs are changing: it knows those it has when it is saved.
///
/// # Errors
/// A refusal, or a failure of the database.
pub async fn check_settled(
    writing: &Writing<'_>,
    instance: &InstanceRow,
) -> Result<(), ClaimError> {
    let changing = ports::unsettled_of_instances(writing.txn(), &[instance.id]).await?;
    match changing.first() {
        None => Ok(()),
        Some(port) => Err(conflict(format!(
            "port {} is being plugged into instance {} or unplugged from it; suspend it when that is done",
            called(port),
            instance.name
        ))),
    }
}
