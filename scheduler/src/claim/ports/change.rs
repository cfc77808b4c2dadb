//! Ports by themselves: made, changed and deleted.

use std::collections::BTreeSet;

use berth_common::{
    document::{MirrorTarget, PortMirror, PortQos},
    ids::{HostId, PortId},
    message::{
        port::{PortCreate, PortDelete, PortSet},
        view::{PortView, Resources},
    },
};
use berth_store::{
    floating_ips::{self, Association},
    instances,
    ports::{self, PortRow, PortWishes},
};

use super::{
    Addresses, NewPort, called, demand, resolve, taken, touch_members,
    wishes::{SecurityWish, mirror_mistakes, pair_mistakes, qos_mistakes},
};
use crate::{
    claim::{
        ClaimError, conflict, fingerprint, instances::change::leave_off, invalid, not_found,
        routers::floating::touch_translated_of,
    },
    context::Writing,
    place,
    report::port_view,
};

/// Creates a port that is of no instance.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &mut Writing<'_>,
    request: &PortCreate,
) -> Result<PortView, ClaimError> {
    let wish = SecurityWish {
        port_security_enabled: request.port_security_enabled,
        security_groups: request.security_groups.as_deref(),
    };
    let mut mistakes = wish.mistakes();
    mistakes.extend(pair_mistakes(&request.allowed_address_pairs));
    if !request.port_security_enabled && !request.allowed_address_pairs.is_empty() {
        mistakes.push(
            "allowed_address_pairs need port security; without it a guest may use any address"
                .to_owned(),
        );
    }
    mistakes.extend(qos_mistakes(&request.qos));
    mistakes.extend(mirror_mistakes(&request.mirrors));
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    let fingerprint = fingerprint(request)?;
    let (txn, now) = (writing.txn(), writing.now);
    if let Some(existing) = ports::get(txn, request.id).await? {
        check_same(&existing, &fingerprint)?;
        return port_view::one(txn, existing).await;
    }
    let mut addresses = Addresses::default();
    let network = addresses
        .network(txn, &request.project, &request.network)
        .await?;
    let wishes = PortWishes {
        admin_state_up: request.admin_state_up,
        allowed_address_pairs: request.allowed_address_pairs.clone(),
        qos: request.qos,
        mirrors: request.mirrors.clone(),
        ..addresses.wishes(txn, &request.project, wish, now).await?
    };
    let new = NewPort {
        id: request.id,
        seed: (request.id.as_uuid(), 0),
        project: &request.project,
        name: request.name.clone(),
        ip_address: request.ip_address,
        mac_address: request.mac_address,
        attachment: None,
        delete_with_instance: false,
        wishes,
        fingerprint,
        created_at: now,
    };
    let row = addresses.port(writing.txn(), &network, new).await?;
    check_mirrors(writing, &row, &row.wishes.mirrors).await?;
    let inserted = ports::insert(writing.txn(), &row).await;
    inserted.map_err(|error| taken(error, &row))?;
    touch_members(writing, &row);
    tracing::info!(port = %row.id, network = %network.name, "a port was made");
    port_view::one(writing.txn(), row).await
}

/// Lets a repetition pass.
pub(super) fn check_same(existing: &PortRow, fingerprint: &str) -> Result<(), ClaimError> {
    if existing.fingerprint == fingerprint {
        return Ok(());
    }
    Err(conflict(format!(
        "port {} exists already and was asked for with another content; use a new id for a new port",
        existing.id
    )))
}

/// Changes what is wanted of a port.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn set(writing: &mut Writing<'_>, request: &PortSet) -> Result<PortView, ClaimError> {
    let before = resolve(writing.txn(), &request.project, &request.port).await?;
    let wishes = wishes_after(writing, &before, request).await?;
    let row = PortRow {
        name: request.name.clone().apply(before.name.clone()),
        wishes,
        ..before.clone()
    };
    if row.wishes.mirrors != before.wishes.mirrors {
        check_mirrors(writing, &row, &row.wishes.mirrors).await?;
    }
    if row.wishes.port_security_enabled && !before.wishes.port_security_enabled {
        check_filter(writing, &row)?;
    }
    if row.name != before.name {
        let named = ports::set_name(writing.txn(), row.id, row.name.as_ref()).await;
        named.map_err(|error| taken(error, &row))?;
    }
    if row.wishes != before.wishes {
        ports::set_wishes(writing.txn(), row.id, &row.wishes).await?;
        touch_members(writing, &before);
        touch_members(writing, &row);
        if let Some((host, instance)) = place_of(writing, &row) {
            if row.wishes.admin_state_up != before.wishes.admin_state_up
                && let Some(instance) = instances::get(writing.txn(), instance).await?
            {
                leave_off(writing, host, &instance).await?;
            }
            writing.touch_network(host, row.network_id);
            writing.touch_instance(host, instance);
        }
    }
    port_view::one(writing.txn(), row).await
}

/// The host of a port's instance, and the instance.
fn place_of(
    writing: &Writing<'_>,
    row: &PortRow,
) -> Option<(HostId, berth_common::ids::InstanceId)> {
    let instance = row.instance_id()?;
    let placed = writing.cloud.placed(instance)?;
    Some((placed.host, instance))
}

/// What is wanted of a port after a change, with all that is wrong with it.
async fn wishes_after(
    writing: &Writing<'_>,
    before: &PortRow,
    request: &PortSet,
) -> Result<PortWishes, ClaimError> {
    let wishes = &before.wishes;
    let enabled = request
        .port_security_enabled
        .unwrap_or(wishes.port_security_enabled);
    let named = request.security_groups.as_deref();
    let qos = PortQos {
        egress: request.qos_egress.apply(wishes.qos.egress),
        ingress: request.qos_ingress.apply(wishes.qos.ingress),
    };
    let pairs = request.allowed_address_pairs.clone();
    let mirrors = request.mirrors.clone();
    let wish = SecurityWish {
        port_security_enabled: enabled,
        security_groups: named,
    };
    let mut mistakes = wish.mistakes();
    mistakes.extend(pair_mistakes(pairs.as_deref().unwrap_or_default()));
    if !enabled && pairs.as_ref().is_some_and(|pairs| !pairs.is_empty()) {
        mistakes.push(
            "allowed_address_pairs need port security; without it a guest may use any address"
                .to_owned(),
        );
    }
    mistakes.extend(qos_mistakes(&qos));
    mistakes.extend(mirror_mistakes(mirrors.as_deref().unwrap_or_default()));
    if !mistakes.is_empty() {
        return Err(invalid(mistakes.join("; ")));
    }
    // One that never had any begins as a new one does.
    let begins = enabled && !wishes.port_security_enabled && wishes.security_groups.is_empty();
    let security_groups: BTreeSet<_> = if named.is_some() || begins {
        let mut addresses = Addresses::default();
        let of_wish = addresses.wishes(writing.txn(), &before.project, wish, writing.now);
        of_wish.await?.security_groups
    } else {
        wishes.security_groups.clone()
    };
    Ok(PortWishes {
        admin_state_up: request.admin_state_up.unwrap_or(wishes.admin_state_up),
        port_security_enabled: enabled,
        security_groups,
        allowed_address_pairs: pairs.unwrap_or_else(|| wishes.allowed_address_pairs.clone()),
        qos,
        mirrors: mirrors.unwrap_or_else(|| wishes.mirrors.clone()),
    })
}

/// Refuses port security on a host that cannot filter: the whole network would be a fault there.
fn check_filter(writing: &Writing<'_>, row: &PortRow) -> Result<(), ClaimError> {
    let host = place_of(writing, row).and_then(|(host, _)| writing.cloud.table().host(host));
    let Some(host) = host else {
        return Ok(());
    };
    let mut request = place::Request::of(Resources::default());
    demand(&row.wishes, &mut request.networks);
    place::reaches_networks(&request, host).map_err(|rejection| {
        conflict(format!(
            "host {} cannot filter what port {} sends and receives: {rejection}",
            host.facts().name,
            called(row)
        ))
    })
}

/// Refuses mirrors to ports that are not there, are of another project, or on another host than the port. One of no instance
/// yet is judged by the host when both are there.
async fn check_mirrors(
    writing: &Writing<'_>,
    row: &PortRow,
    mirrors: &[PortMirror],
) -> Result<(), ClaimError> {
    let targets: Vec<PortId> = mirrors
        .iter()
        .filter_map(|mirror| match mirror.to {
            MirrorTarget::Port(port) => Some(port),
            MirrorTarget::Interface(_) => None,
        })
        .collect();
    let there = ports::of_ids(writing.txn(), &targets).await?;
    let host = place_of(writing, row).map(|(host, _)| host);
    for target in targets {
        if target == row.id {
            return Err(invalid("a port cannot mirror to itself"));
        }
        let found = there
            .iter()
            .find(|port| port.id == target && port.project == row.project);
        let found = found.ok_or_else(|| {
            not_found(format!(
                "project {} has no port {target} to mirror to",
                row.project
            ))
        })?;
        let other = place_of(writing, found).map(|(host, _)| host);
        if let (Some(host), Some(other)) = (host, other)
            && host != other
        {
            return Err(conflict(format!(
                "port {} is on another host than port {}: copies of packets do not leave their host",
                called(found),
                called(row)
            )));
        }
    }
    Ok(())
}

/// Deletes a port that is of no instance.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &mut Writing<'_>,
    request: &PortDelete,
) -> Result<PortView, ClaimError> {
    let row = resolve(writing.txn(), &request.project, &request.port).await?;
    if let Some(instance) = row.instance_id() {
        let name = crate::claim::volumes::called(writing.txn(), instance).await?;
        return Err(conflict(format!(
            "port {} is of instance {name}; unplug it there first",
            called(&row)
        )));
    }
    let shown = port_view::one(writing.txn(), row.clone()).await?;
    remove(writing, &row).await?;
    tracing::info!(port = %row.id, "a port is gone");
    Ok(shown)
}

/// Deletes a port. Its floating IPs are nobody's, and its host is told.
pub(super) async fn remove(writing: &mut Writing<'_>, row: &PortRow) -> Result<(), ClaimError> {
    let floating = floating_ips::of_port(writing.txn(), row.id).await?;
    let associations: Vec<Association> = floating.iter().filter_map(|it| it.association).collect();
    touch_members(writing, row);
    touch_translated_of(writing, row, &associations);
    ports::delete(writing.txn(), row.id).await?;
    Ok(())
}
