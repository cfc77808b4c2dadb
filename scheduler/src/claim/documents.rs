//! The documents that follow from changed rows, written in the same transaction, so that rows and documents can never
//! disagree.
//!
//! A document is written as if it were published already: that happens right after the commit, and it is due again
//! only when its host does not confirm it. When publishing fails, or the scheduler dies before, it is made due anew.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    bus::MAX_MESSAGE_BYTES,
    document::{DocumentKey, Kind},
    ids::{HostId, InstanceId, NetworkId, RouterId, SnapshotId, VolumeId},
    names::HostName,
    telemetry::error_chain,
    units::Generation,
};
use berth_store::{
    Executor,
    documents::{self, DocumentRow},
    held_addresses::{self, HeldAddressRow},
    host_rows::{self, HostPart, HostRows},
    reach::{self, Among},
    security_groups,
};
use chrono::{DateTime, Utc};

use super::{
    ClaimError, conflict,
    routers::{self, held},
};
use crate::{
    context::{Cause, Oversize, Touched, TouchedGroups, Writing},
    derive::{self, diff},
    dispatch::{Publication, backoff},
};

/// The longest spec in a message: the rest of it are ids and numbers.
const MAX_SPEC_BYTES: usize = MAX_MESSAGE_BYTES - 1024;

/// Adds the documents of some networks on all hosts that have one.
///
/// # Errors
/// When the database fails.
pub async fn spread(
    db: &impl Executor,
    touched: &mut BTreeMap<HostId, Touched>,
    everywhere: &BTreeMap<NetworkId, Among>,
) -> Result<(), ClaimError> {
    for among in [Among::All, Among::Spanning] {
        let networks: BTreeSet<NetworkId> = everywhere
            .iter()
            .filter(|(_, of)| **of == among)
            .map(|(network, _)| *network)
            .collect();
        if networks.is_empty() {
            continue;
        }
        let mut places = reach::hosts_of(db, &networks, among).await?;
        // Who has a network only for a router has no port there.
        places.extend(reach::hosts_told(db, &networks, among).await?);
        let cause = match among {
            Among::All => Cause::Itself,
            Among::Spanning => Cause::Members,
        };
        for (host, network) in places {
            let key = DocumentKey {
                kind: Kind::Network,
                id: network.as_uuid(),
            };
            let touched = touched.entry(host).or_default();
            touched.keys.insert(key);
            touched.networks.insert((network, cause));
        }
    }
    Ok(())
}

/// Writes the documents of the hosts concerned, and answers what is to be published.
///
/// # Errors
/// When the database fails.
pub async fn refresh(
    writing: &mut Writing<'_>,
    touched: &BTreeMap<HostId, Touched>,
) -> Result<Vec<Publication>, ClaimError> {
    if touched.is_empty() {
        return Ok(Vec::new());
    }
    let touched = &routers::hosts::follow(writing, touched).await?;
    let parts: BTreeMap<HostId, HostPart> = touched
        .iter()
        .map(|(host, touched)| (*host, part(&touched.keys)))
        .collect();
    let keys: Vec<(HostId, DocumentKey)> = touched
        .iter()
        .flat_map(|(host, touched)| touched.keys.iter().map(|key| (*host, *key)))
        .collect();
    let rows = host_rows::of_parts(writing.txn(), &parts).await?;
    let mut told: BTreeMap<HostId, BTreeMap<DocumentKey, DocumentRow>> = BTreeMap::new();
    for row in documents::of_host_resources(writing.txn(), &keys).await? {
        told.entry(row.host_id).or_default().insert(row.key, row);
    }

    let (mut fresh, mut publications) = (Vec::new(), Vec::new());
    let mut held = Vec::new();
    for (host, touched) in touched {
        let mut wanted = match rows.get(host) {
            Some(rows) => derive::derive(*host, rows)?,
            None => BTreeMap::new(),
        };
        // What is beside the scope was not read whole.
        wanted.retain(|key, _| touched.keys.contains(key));
        let before = told.remove(host).unwrap_or_default();
        remember_nats(writing, *host, touched, (rows.get(host), &wanted, &before));
        let name = listening(writing, *host);
        for change in diff::diff(&wanted, &as_told(&before), &touched.again) {
            if let Some(bytes) = oversize(&change, &before) {
                let host = writing
                    .cloud
                    .table()
                    .host(*host)
                    .map(|known| &known.facts().name);
                let message = format!(
                    "the document of {} for host {} would have {bytes} bytes, and a message has room for {MAX_SPEC_BYTES}: use several \
                     networks instead of one, or fewer ports, rules and routes",
                    change.key,
                    host.map_or("?", HostName::as_str)
                );
                match writing.oversize() {
                    Oversize::Refused => return Err(conflict(message)),
                    Oversize::LeftOut => tracing::error!(message, "a host is told nothing new"),
                }
                continue;
            }
            held.extend(given_up(*host, &change, &before));
            let row = document(*host, change, &before, writing.now);
            match &name {
                Some(name) => {
                    let row = as_published(writing, row);
                    publications.push(Publication {
                        host: name.clone(),
                        row: row.clone(),
                    });
                    fresh.push(row);
                }
                None => fresh.push(row),
            }
        }
    }
    documents::upsert_many(writing.txn(), &fresh).await?;
    held_addresses::hold(writing.txn(), &held).await?;
    Ok(publications)
}

/// The networks on hosts whose documents may follow from what changed of security groups: those with a port that has a group
/// whose rules changed, and those with a port whose rules name a group that others in the network have now, or no longer have. Other
/// networks that a router joins to it follow with its members, on all hosts that have it ([`Cause::Members`]).
///
/// # Errors
/// When the database fails.
pub async fn dependents(
    db: &impl Executor,
    groups: &TouchedGroups,
) -> Result<BTreeSet<(HostId, NetworkId)>, ClaimError> {
    let mut places = security_groups::places_with(db, &groups.rules).await?;
    places.extend(security_groups::places_that_name(db, &groups.members).await?);
    Ok(places)
}

/// Keeps the writer's memory of `nat` networks in step with what a host is told, by its rows, what it shall have and what it was told
/// before.
fn remember_nats(
    writing: &mut Writing<'_>,
    host: HostId,
    touched: &Touched,
    (rows, wanted, before): (
        Option<&HostRows>,
        &BTreeMap<DocumentKey, String>,
        &BTreeMap<DocumentKey, DocumentRow>,
    ),
) {
    let of_kind = |key: &&DocumentKey| key.kind == Kind::Network;
    for key in touched.keys.iter().filter(of_kind) {
        let Ok(network) = NetworkId::try_from(key.id) else {
            continue;
        };
        let row = rows.and_then(|rows| rows.networks.iter().find(|row| row.id == network));
        match row.filter(|_| wanted.contains_key(key)) {
            Some(row) => writing.cloud.hold_nat(host, row),
            None => {
                if before.get(key).is_none_or(DocumentRow::is_gone) {
                    writing.cloud.release_nat(host, network);
                }
            }
        }
    }
}

/// The length of a spec that does not fit in a message. One that did not before may still become shorter.
fn oversize(change: &diff::Change, before: &BTreeMap<DocumentKey, DocumentRow>) -> Option<usize> {
    let bytes = change.spec_json.as_ref()?.len();
    let before = before
        .get(&change.key)
        .and_then(|row| row.spec_json.as_ref());
    let is_shorter = before.is_some_and(|before| bytes < before.len());
    (bytes > MAX_SPEC_BYTES && !is_shorter).then_some(bytes)
}

/// The addresses outside that a host has until it confirms a new word about a router.
fn given_up(
    host_id: HostId,
    change: &diff::Change,
    before: &BTreeMap<DocumentKey, DocumentRow>,
) -> Vec<HeldAddressRow> {
    let before = before.get(&change.key);
    let (Kind::Router, Some(before)) = (change.key.kind, before) else {
        return Vec::new();
    };
    let Ok(router_id) = RouterId::try_from(change.key.id) else {
        return Vec::new();
    };
    let addresses = held::given_up(before.spec_json.as_deref(), change.spec_json.as_deref());
    let addresses = addresses.unwrap_or_else(|error| {
        tracing::error!(
            host = %host_id, router = %router_id, error = %error_chain(&error),
            "the router's last document cannot be read; its addresses outside are not waited for"
        );
        BTreeSet::new()
    });
    addresses
        .into_iter()
        .map(|(network_id, ip_address)| HeldAddressRow {
            network_id,
            ip_address,
            host_id,
            router_id,
            generation: change.generation,
        })
        .collect()
}

/// What must be read for these documents.
fn part(keys: &BTreeSet<DocumentKey>) -> HostPart {
    let mut part = HostPart::default();
    for key in keys {
        match key.kind {
            Kind::Instance => part.instances.extend(InstanceId::try_from(key.id)),
            Kind::Network => part.networks.extend(NetworkId::try_from(key.id)),
            Kind::Volume => part.volumes.extend(VolumeId::try_from(key.id)),
            Kind::Snapshot => part.snapshots.extend(SnapshotId::try_from(key.id)),
            Kind::Router => part.routers.extend(RouterId::try_from(key.id)),
        }
    }
    part
}

fn as_told(rows: &BTreeMap<DocumentKey, DocumentRow>) -> BTreeMap<DocumentKey, diff::Told> {
    rows.iter()
        .map(|(key, row)| {
            let told = diff::Told {
                generation: row.generation,
                spec_json: row.spec_json.clone(),
            };
            (*key, told)
        })
        .collect()
}

/// A new word for a host, not published yet.
fn document(
    host_id: HostId,
    change: diff::Change,
    before: &BTreeMap<DocumentKey, DocumentRow>,
    now: DateTime<Utc>,
) -> DocumentRow {
    let before = before.get(&change.key);
    DocumentRow {
        host_id,
        key: change.key,
        generation: change.generation,
        spec_json: change.spec_json,
        observed_generation: before.map_or(Generation(0), |row| row.observed_generation),
        observed_status: before.and_then(|row| row.observed_status),
        changed_at: now,
        published_at: None,
        attempts: 0,
        next_publish_at: None,
    }
}

/// The name of a host that is there to take documents; those of others are published when they are back.
fn listening(writing: &Writing<'_>, host: HostId) -> Option<HostName> {
    let known = writing.cloud.table().host(host)?;
    let alive = writing.context().is_alive(host);
    alive.then(|| known.facts().name.clone())
}

fn as_published(writing: &Writing<'_>, row: DocumentRow) -> DocumentRow {
    let pause = backoff::pause(writing.context().config.republish_after, 0);
    DocumentRow {
        published_at: Some(writing.now),
        attempts: 1,
        next_publish_at: Some(writing.now + pause),
        ..row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_may_only_become_shorter() {
        let key = DocumentKey {
            kind: Kind::Network,
            id: uuid::Uuid::from_u128(1),
        };
        let change = |bytes: usize| diff::Change {
            key,
            generation: Generation(2),
            spec_json: Some("x".repeat(bytes)),
        };
        let check = |before: Option<usize>, after: usize, expected: Option<usize>| {
            let row = before.map(|bytes| {
                let now = DateTime::UNIX_EPOCH;
                let row = document(HostId::new(), change(bytes), &BTreeMap::new(), now);
                (key, row)
            });
            let before = row.into_iter().collect();
            assert_eq!(oversize(&change(after), &before), expected);
        };
        let most = MAX_SPEC_BYTES;
        check(None, most, None);
        check(None, most + 1, Some(most + 1));
        check(Some(1), most + 1, Some(most + 1));
        check(Some(most + 2), most + 1, None);
        check(Some(most + 1), most + 2, Some(most + 2));
    }
}
