//! Gathers the rows that [`super::view`] shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use berth_common::{
    bus::MAX_MESSAGE_BYTES,
    document::{DocumentKey, Kind},
    ids::{HostId, InstanceId, NetworkId, SnapshotId, VolumeId},
    message::{
        report::{ConvergeStatus, Fault},
        request::{
            HostList, HostListReply, InstanceList, InstanceListReply, NetworkList,
            NetworkListReply, SnapshotList, SnapshotListReply, VolumeList, VolumeListReply,
        },
        view::{HostView, InstanceView, NetworkView, SnapshotView, VolumeView},
    },
    names::{HostName, NetworkName, VolumeName},
};
use berth_store::{
    Executor,
    aggregates::{self, Aggregate},
    attachments::{self, AttachmentRow, ROOT},
    claims::{self, ClaimRole, ClaimRow},
    documents::{self, DocumentRow},
    hosts::{self, HostRow},
    instances::{self, InstanceRow},
    networks::{self, NetworkRow},
    ports::{self, PortRow},
    snapshots::{self, SnapshotClaim, SnapshotRow},
    volumes::{self, VolumeClaim, VolumeRow},
};
use serde::Serialize;

use super::{
    snapshot_view,
    view::{self, Silence},
    volume_view::{self, AttachedTo},
};
use crate::{claim::ClaimError, context::Context};

/// One instance.
///
/// # Errors
/// When the database fails.
pub async fn instance(
    context: &Context,
    db: &impl Executor,
    row: &InstanceRow,
) -> Result<InstanceView, ClaimError> {
    let mut views = instances(context, db, std::slice::from_ref(row)).await?;
    views
        .pop()
        .ok_or_else(|| crate::claim::not_found(format!("instance {} is gone", row.id)))
}

/// Some instances, with a fixed number of queries.
async fn instances(
    context: &Context,
    db: &impl Executor,
    rows: &[InstanceRow],
) -> Result<Vec<InstanceView>, ClaimError> {
    let ids: Vec<InstanceId> = rows.iter().map(|row| row.id).collect();
    let mut ports_of: BTreeMap<InstanceId, Vec<PortRow>> = BTreeMap::new();
    for port in ports::of_instances(db, &ids).await? {
        ports_of.entry(port.instance_id).or_default().push(port);
    }
    let wanted: BTreeSet<NetworkId> = ports_of
        .values()
        .flatten()
        .map(|port| port.network_id)
        .collect();
    let wanted: Vec<NetworkId> = wanted.into_iter().collect();
    let networks: BTreeMap<NetworkId, NetworkName> = networks::of_ids(db, &wanted)
        .await?
        .into_iter()
        .map(|network| (network.id, network.name))
        .collect();
    let mut volumes_of = volumes_of(db, &ids).await?;
    let host_of: BTreeMap<InstanceId, HostId> = claims::of_instances(db, &ids)
        .await?
        .into_iter()
        .filter(|claim| claim.role == ClaimRole::Current)
        .map(|claim| (claim.instance_id, claim.host_id))
        .collect();
    let on: BTreeSet<HostId> = host_of.values().copied().collect();
    let on: Vec<HostId> = on.into_iter().collect();
    let host_names: BTreeMap<HostId, HostName> = hosts::names(db, &on).await?;
    let silences = silences(context, &on);
    let keys: Vec<DocumentKey> = ids
        .iter()
        .map(|id| DocumentKey {
            kind: Kind::Instance,
            id: id.as_uuid(),
        })
        .collect();
    let documents: Vec<DocumentRow> = documents::of_keys(db, &keys).await?;

    Ok(rows
        .iter()
        .map(|row| {
            let host = host_of
                .get(&row.id)
                .and_then(|id| host_names.get(id).map(|name| (*id, name)));
            let document = documents.iter().find(|document| {
                document.key.id == row.id.as_uuid()
                    && host.is_some_and(|(id, _)| id == document.host_id)
            });
            let volumes = volumes_of.remove(&row.id).unwrap_or_default();
            let root_fault = volumes.root_fault.as_ref();
            let ports = ports_of.get(&row.id).map(Vec::as_slice).unwrap_or_default();
            view::instance(view::InstanceFacts {
                row,
                ports,
                volumes: &volumes.named,
                root_fault,
                host,
                silence: host.and_then(|(id, _)| silences.get(&id).copied()),
                document,
                networks: &networks,
            })
        })
        .collect())
}

/// Which of some hosts are down, and since when.
fn silences(context: &Context, hosts: &[HostId]) -> BTreeMap<HostId, Silence> {
    let now = Instant::now();
    context.liveness(|liveness| {
        let silence = |id: &HostId| Silence::of(liveness.state(*id), liveness.age(*id, now));
        hosts
            .iter()
            .filter_map(|id| Some((*id, silence(id)?)))
            .collect()
    })
}

/// The volumes of an instance.
#[derive(Default)]
struct VolumesOf {
    /// By position, with their names.
    named: Vec<(AttachmentRow, VolumeName)>,
    /// Why the one it boots from could not be made.
    root_fault: Option<Fault>,
}

/// The volumes of some instances, by position, with their names.
async fn volumes_of(
    db: &impl Executor,
    ids: &[InstanceId],
) -> Result<BTreeMap<InstanceId, VolumesOf>, ClaimError> {
    let attachments = attachments::of_instances(db, ids).await?;
    let ids: Vec<VolumeId> = attachments.iter().map(|row| row.volume_id).collect();
    let rows: BTreeMap<VolumeId, VolumeRow> = volumes::of_ids(db, &ids)
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    let mut volumes: BTreeMap<InstanceId, VolumesOf> = BTreeMap::new();
    for attachment in attachments {
        let Some(row) = rows.get(&attachment.volume_id) else {
            continue;
        };
        let of_instance = volumes.entry(attachment.instance_id).or_default();
        if attachment.position == ROOT {
            of_instance.root_fault = volume_view::making_failed(row).cloned();
        }
        of_instance.named.push((attachment, row.name.clone()));
    }
    Ok(volumes)
}

/// One page of instances.
///
/// # Errors
/// When the database fails.
pub async fn instance_list(
    context: &Context,
    db: &impl Executor,
    request: &InstanceList,
) -> Result<InstanceListReply, ClaimError> {
    let limit = request.limit.clamp(1, 1000);
    let mut rows = instances::list(db, request.project.as_ref(), request.after, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let mut instances = instances(context, db, &rows).await?;
    let is_cut = cut(&mut instances)?;
    Ok(InstanceListReply {
        instances,
        more: more || is_cut,
    })
}

/// One volume.
///
/// # Errors
/// When the database fails.
pub async fn volume(
    context: &Context,
    db: &impl Executor,
    row: &VolumeRow,
) -> Result<VolumeView, ClaimError> {
    let mut views = volumes(context, db, std::slice::from_ref(row)).await?;
    views
        .pop()
        .ok_or_else(|| crate::claim::not_found(format!("volume {} is gone", row.id)))
}

/// Some volumes, with a fixed number of queries.
async fn volumes(
    context: &Context,
    db: &impl Executor,
    rows: &[VolumeRow],
) -> Result<Vec<VolumeView>, ClaimError> {
    let ids: Vec<VolumeId> = rows.iter().map(|row| row.id).collect();
    let attachments = attachments::of_volumes(db, &ids).await?;
    let with: BTreeSet<InstanceId> = attachments.iter().map(|row| row.instance_id).collect();
    let with: Vec<InstanceId> = with.into_iter().collect();
    let instances: BTreeMap<InstanceId, InstanceRow> = instances::of_ids(db, &with)
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    let on: BTreeSet<HostId> = rows.iter().filter_map(|row| row.host_id).collect();
    let on: Vec<HostId> = on.into_iter().collect();
    let names: BTreeMap<HostId, HostName> = hosts::names(db, &on).await?;
    let silences = silences(context, &on);
    let of_volumes = ids.iter().map(|id| (Kind::Volume, id.as_uuid()));
    let of_instances = with.iter().map(|id| (Kind::Instance, id.as_uuid()));
    let keys: Vec<DocumentKey> = of_volumes
        .chain(of_instances)
        .map(|(kind, id)| DocumentKey { kind, id })
        .collect();
    let documents: BTreeMap<(HostId, DocumentKey), DocumentRow> = documents::of_keys(db, &keys)
        .await?
        .into_iter()
        .map(|row| ((row.host_id, row.key), row))
        .collect();
    let document = |host: HostId, kind, id| documents.get(&(host, DocumentKey { kind, id }));

    Ok(rows
        .iter()
        .map(|row| {
            let host = row
                .host_id
                .and_then(|id| names.get(&id).map(|name| (id, name)));
            let attachment = attachments.iter().find(|of| of.volume_id == row.id);
            let attachment = attachment.and_then(|attachment| {
                let instance = instances.get(&attachment.instance_id)?;
                let told = row
                    .host_id
                    .and_then(|host| document(host, Kind::Instance, instance.id.as_uuid()));
                Some(AttachedTo {
                    row: attachment,
                    instance,
                    failure: given_up(instance, told),
                    progress: told
                        .filter(|told| instance.observed.generation >= told.generation)
                        .and(instance.observed.progress.as_deref()),
                })
            });
            volume_view::volume(volume_view::VolumeFacts {
                row,
                host,
                silence: host.and_then(|(id, _)| silences.get(&id).copied()),
                document: host.and_then(|(id, _)| document(id, Kind::Volume, row.id.as_uuid())),
                attachment,
            })
        })
        .collect())
}

/// Why the host of an instance gave up on what is wanted of it now, if it did.
fn given_up<'a>(instance: &'a InstanceRow, document: Option<&DocumentRow>) -> Option<&'a Fault> {
    let observed = &instance.observed;
    let is_about_this = document.is_some_and(|document| observed.generation >= document.generation);
    let fault = observed.fault.as_ref();
    fault.filter(|_| is_about_this && observed.status == Some(ConvergeStatus::Failed))
}

/// One page of volumes.
///
/// # Errors
/// When the database fails.
pub async fn volume_list(
    context: &Context,
    db: &impl Executor,
    request: &VolumeList,
) -> Result<VolumeListReply, ClaimError> {
    let limit = request.limit.clamp(1, 1000);
    let mut rows = volumes::list(db, request.project.as_ref(), request.after, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let mut volumes = volumes(context, db, &rows).await?;
    let is_cut = cut(&mut volumes)?;
    Ok(VolumeListReply {
        volumes,
        more: more || is_cut,
    })
}

/// One snapshot.
///
/// # Errors
/// When the database fails.
pub async fn snapshot(
    context: &Context,
    db: &impl Executor,
    row: &SnapshotRow,
) -> Result<SnapshotView, ClaimError> {
    let mut views = snapshots(context, db, std::slice::from_ref(row)).await?;
    views
        .pop()
        .ok_or_else(|| crate::claim::not_found(format!("snapshot {} is gone", row.id)))
}

/// Some snapshots, with a fixed number of queries.
async fn snapshots(
    context: &Context,
    db: &impl Executor,
    rows: &[SnapshotRow],
) -> Result<Vec<SnapshotView>, ClaimError> {
    let of: BTreeSet<VolumeId> = rows.iter().map(|row| row.volume.id).collect();
    let of: Vec<VolumeId> = of.into_iter().collect();
    let volumes: BTreeMap<VolumeId, VolumeName> = volumes::of_ids(db, &of)
        .await?
        .into_iter()
        .filter(|row| row.deleted_at.is_none())
        .map(|row| (row.id, row.name))
        .collect();
    let on: BTreeSet<HostId> = rows.iter().filter_map(|row| row.host_id).collect();
    let on: Vec<HostId> = on.into_iter().collect();
    let names: BTreeMap<HostId, HostName> = hosts::names(db, &on).await?;
    let silences = silences(context, &on);
    let key = |id: SnapshotId| DocumentKey {
        kind: Kind::Snapshot,
        id: id.as_uuid(),
    };
    let keys: Vec<DocumentKey> = rows.iter().map(|row| key(row.id)).collect();
    let documents: BTreeMap<(HostId, DocumentKey), DocumentRow> = documents::of_keys(db, &keys)
        .await?
        .into_iter()
        .map(|row| ((row.host_id, row.key), row))
        .collect();
    let view = |row: &SnapshotRow| {
        let host = row
            .host_id
            .and_then(|id| names.get(&id).map(|name| (id, name)));
        snapshot_view::snapshot(snapshot_view::SnapshotFacts {
            row,
            volume: volumes.get(&row.volume.id),
            host,
            silence: host.and_then(|(id, _)| silences.get(&id).copied()),
            document: host.and_then(|(id, _)| documents.get(&(id, key(row.id)))),
        })
    };
    Ok(rows.iter().map(view).collect())
}

/// One page of snapshots.
///
/// # Errors
/// When the database fails.
pub async fn snapshot_list(
    context: &Context,
    db: &impl Executor,
    request: &SnapshotList,
) -> Result<SnapshotListReply, ClaimError> {
    let limit = request.limit.clamp(1, 1000);
    let mut rows = snapshots::list(db, request.project.as_ref(), request.after, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let mut snapshots = snapshots(context, db, &rows).await?;
    let is_cut = cut(&mut snapshots)?;
    Ok(SnapshotListReply {
        snapshots,
        more: more || is_cut,
    })
}

/// What of a message is left for the frame of an answer.
const FRAME_BYTES: usize = 4096;

/// Cuts a page to what fits in a message, but not to nothing; answers whether anything was cut off.
fn cut<T: Serialize>(page: &mut Vec<T>) -> Result<bool, ClaimError> {
    let mut left = MAX_MESSAGE_BYTES - FRAME_BYTES;
    for (place, one) in page.iter().enumerate() {
        // And a comma.
        let bytes = serde_json::to_vec(one)?.len() + 1;
        if bytes > left && place > 0 {
            page.truncate(place);
            return Ok(true);
        }
        left = left.saturating_sub(bytes);
    }
    Ok(false)
}

/// One network.
///
/// # Errors
/// When the database fails.
pub async fn network(db: &impl Executor, row: &NetworkRow) -> Result<NetworkView, ClaimError> {
    let ports = networks::port_count(db, row.id).await?;
    Ok(view::network(row, ports))
}

/// All networks asked for.
///
/// # Errors
/// When the database fails.
pub async fn network_list(
    db: &impl Executor,
    request: &NetworkList,
) -> Result<NetworkListReply, ClaimError> {
    let rows = networks::list(db, request.project.as_ref()).await?;
    let counts = networks::port_counts(db).await?;
    let networks = rows
        .iter()
        .map(|row| view::network(row, counts.get(&row.id).copied().unwrap_or_default()))
        .collect();
    Ok(NetworkListReply { networks })
}

/// One host.
///
/// # Errors
/// When the database fails.
pub async fn host(
    context: &Context,
    db: &impl Executor,
    row: &HostRow,
) -> Result<HostView, ClaimError> {
    let claims = claims::of_hosts(db, &[row.id]).await?;
    let volumes = volumes::claims_of_hosts(db, &[row.id]).await?;
    let snapshots = snapshots::claims_of_hosts(db, &[row.id]).await?;
    let aggregates = aggregates::all(db).await?;
    let claimed = Claimed {
        instances: claims.iter().collect(),
        volumes: volumes.iter().collect(),
        snapshots: snapshots.iter().collect(),
    };
    Ok(host_view(context, row, &claimed, &aggregates))
}

/// One page of hosts, by name; without a limit all of them, whether or not a message holds them.
///
/// # Errors
/// When the database fails.
pub async fn host_list(
    context: &Context,
    db: &impl Executor,
    request: &HostList,
) -> Result<HostListReply, ClaimError> {
    let mut names = hosts::names_after(db, request.after.as_ref()).await?;
    let before = names.len();
    if let Some(limit) = request.limit {
        names.truncate(usize::try_from(limit.clamp(1, 1000)).unwrap_or(usize::MAX));
    }
    let more = names.len() < before;
    let ids: Vec<HostId> = names.iter().map(|(_, id)| *id).collect();
    let all = claims::of_hosts(db, &ids).await?;
    let all_volumes = volumes::claims_of_hosts(db, &ids).await?;
    let all_snapshots = snapshots::claims_of_hosts(db, &ids).await?;
    let mut by_host: BTreeMap<HostId, Claimed<'_>> = BTreeMap::new();
    for claim in &all {
        let of_host = by_host.entry(claim.host_id).or_default();
        of_host.instances.push(claim);
    }
    for claim in &all_volumes {
        by_host
            .entry(claim.host_id)
            .or_default()
            .volumes
            .push(claim);
    }
    for claim in &all_snapshots {
        let of_host = by_host.entry(claim.host_id).or_default();
        of_host.snapshots.push(claim);
    }
    let nothing = Claimed::default();
    let aggregates = aggregates::all(db).await?;
    let mut rows = hosts::of_ids(db, &ids).await?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let claims_of = |id: HostId| by_host.get(&id).unwrap_or(&nothing);
    let mut hosts: Vec<HostView> = rows
        .iter()
        .map(|row| host_view(context, row, claims_of(row.id), &aggregates))
        .collect();
    let is_cut = request.limit.is_some() && cut(&mut hosts)?;
    Ok(HostListReply {
        more: more || is_cut,
        hosts,
    })
}

/// What is claimed of a host.
#[derive(Debug, Default)]
struct Claimed<'a> {
    instances: Vec<&'a ClaimRow>,
    volumes: Vec<&'a VolumeClaim>,
    snapshots: Vec<&'a SnapshotClaim>,
}

fn host_view(
    context: &Context,
    row: &HostRow,
    claimed: &Claimed<'_>,
    aggregates: &[Aggregate],
) -> HostView {
    let (age, state, used_now) = context.liveness(|liveness| {
        (
            liveness.age(row.id, Instant::now()),
            liveness.state(row.id),
            liveness.used_now(row.id),
        )
    });
    let seen = view::HostSeen {
        row,
        claims: &claimed.instances,
        volumes: &claimed.volumes,
        snapshots: &claimed.snapshots,
        aggregates,
        age,
        state,
    };
    let mut view = view::host(seen, &context.config.placement);
    // Measured from moment to moment, and written down only now and then.
    view.used_now = used_now.unwrap_or(view.used_now);
    view
}
