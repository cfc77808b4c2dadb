//! Creating volumes. One that is made from another volume, or names a host, is on a host at once; others get that of the
//! first instance they are attached to.

use berth_common::{
    document::{SnapshotRef, VolumeFormat, VolumeLimits, VolumeRef, VolumeSource},
    ids::HostId,
    message::{
        request::{VolumeCreate, VolumeCreateSource},
        view::{HostState, SnapshotStatus, VolumeStatus, VolumeView},
    },
    names::PoolName,
    refusal::{Refusal, RefusalCode},
    units::DiskGb,
};
use berth_store::{
    StoreError, UniqueWhat, hosts as host_rows,
    volumes::{self, VolumeObserved, VolumeRow},
};

use super::{Wanted, check_room, no_such, resolve};
use crate::{
    claim::{ClaimError, cloud::PlacedVolume, conflict, fingerprint, hosts, invalid, snapshots},
    context::Writing,
    place::{Admission, Host},
    report::show,
};

/// Creates a volume.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &mut Writing<'_>,
    request: &VolumeCreate,
) -> Result<VolumeView, ClaimError> {
    validate(request)?;
    let pool = request.pool.clone().unwrap_or_default();
    let format = request.format.unwrap_or_else(|| VolumeFormat::usual(&pool));
    let fingerprint = fingerprint(&filled_in(request, format))?;
    if let Some(existing) = volumes::get(writing.txn(), request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "volume {} exists already and was asked for with another content; use a new id for a new volume",
                existing.id
            )));
        }
        return show::volume(writing.context(), writing.txn(), &existing).await;
    }
    let named = match &request.host {
        None => None,
        Some(host) => Some(hosts::resolve(writing.txn(), host).await?.id),
    };
    let (source, host) = source(writing, request, named).await?;
    check_format(writing, format, &pool, host)?;
    let row = VolumeRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        host_id: host,
        size_gb: request.size_gb,
        format,
        pool,
        source,
        limits: request.limits,
        fingerprint,
        desired_deleted: false,
        observed: VolumeObserved::default(),
        created_at: writing.now,
        updated_at: writing.now,
        deleted_at: None,
    };
    add(writing, request, &row).await?;
    tracing::info!(volume = %row.id, name = %row.name, ?host, "volume accepted");
    show::volume(writing.context(), writing.txn(), &row).await
}

/// A request with its format said. Requests of schedulers before there were pools had theirs filled in as they were read, and
/// one of those may be repeated today.
fn filled_in(request: &VolumeCreate, format: VolumeFormat) -> VolumeCreate {
    VolumeCreate {
        format: Some(format),
        ..request.clone()
    }
}

/// Writes a new volume down and gives it its room, if it has a host.
async fn add(
    writing: &mut Writing<'_>,
    request: &VolumeCreate,
    row: &VolumeRow,
) -> Result<(), ClaimError> {
    // A name that is taken is said before a host that is full: it cannot be helped by waiting.
    let living = volumes::find_by_name(writing.txn(), &row.project, &row.name).await?;
    if living.is_some() {
        return Err(name_taken(request));
    }
    if let Some(host) = row.host_id {
        check_admission(writing, host, "the volume")?;
        let wanted = Wanted {
            what: &format!("volume {}", row.name),
            pool: &row.pool,
            format: row.format,
            size: row.size_gb,
            more: row.size_gb,
        };
        check_room(writing, host, wanted)?;
    }
    volumes::insert(writing.txn(), row)
        .await
        .map_err(|error| match error {
            StoreError::Unique {
                constraint: UniqueWhat::VolumeName,
                ..
            } => name_taken(request),
            error => error.into(),
        })?;
    if let Some(host) = row.host_id {
        let placed = PlacedVolume {
            host,
            pool: row.pool.clone(),
            size_gb: row.size_gb,
        };
        writing.cloud.place_volume(row.id, placed);
        writing.touch_volume(host, row.id);
        writing.derive().await?;
    }
    Ok(())
}

fn name_taken(request: &VolumeCreate) -> ClaimError {
    conflict(format!(
        "project {} already has a volume named {}",
        request.project, request.name
    ))
}

/// Everything that can be said of a request without looking at any row; all mistakes at once.
fn validate(request: &VolumeCreate) -> Result<(), ClaimError> {
    let mut mistakes = Vec::new();
    if request.size_gb.get() == 0 {
        mistakes.push("size_gb must be at least 1".to_owned());
    }
    let limits = request.limits;
    for (key, limit) in [
        ("total_iops", limits.total_iops),
        ("total_bytes_per_second", limits.total_bytes_per_second),
    ] {
        let most = VolumeLimits::MOST;
        if let Some(wrong) = limit.filter(|limit| !(1..=most).contains(limit)) {
            mistakes.push(format!(
                "limits.{key} must be 1 to {most}, or null for no limit; got {wrong}"
            ));
        }
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(invalid(mistakes.join("; ")))
    }
}

/// Refuses what no host could store so, of those that have the pool just now, or the one it shall be on. Where nobody has it,
/// nothing is known.
fn check_format(
    writing: &Writing<'_>,
    format: VolumeFormat,
    pool: &PoolName,
    host: Option<HostId>,
) -> Result<(), ClaimError> {
    if pool.is_local() {
        return Ok(());
    }
    let table = writing.cloud.table();
    let hosts = table.hosts().map(Host::facts);
    let hosts = hosts.filter(|facts| host.is_none_or(|host| host == facts.id));
    let mut kinds = hosts
        .flat_map(|facts| &facts.pools)
        .filter(|report| report.name == *pool)
        .map(|report| report.kind)
        .peekable();
    if kinds.peek().is_none() || kinds.any(|kind| kind.holds(format)) {
        return Ok(());
    }
    Err(conflict(format!(
        "format must be raw or null in pool {pool}: on the hosts that have it now it is of logical volumes, which hold raw volumes only; {} are held by pools \
         of files, as {} is",
        format.as_str(),
        PoolName::LOCAL
    )))
}

/// What a volume is made from, and the host it is on then. `named`: the host that the request names.
async fn source(
    writing: &Writing<'_>,
    request: &VolumeCreate,
    named: Option<HostId>,
) -> Result<(Option<VolumeSource>, Option<HostId>), ClaimError> {
    let from = match &request.source {
        None => return Ok((None, named)),
        Some(VolumeCreateSource::Image(image)) => {
            return Ok((Some(VolumeSource::Image(image.clone())), named));
        }
        Some(VolumeCreateSource::Volume(volume)) => {
            let from = resolve(writing.txn(), &request.project, volume).await?;
            if from.project != request.project {
                return Err(no_such(&request.project, volume));
            }
            from
        }
        Some(VolumeCreateSource::Snapshot(snapshot)) => {
            return from_snapshot(writing, request, snapshot, named).await;
        }
    };
    let shown = show::volume(writing.context(), writing.txn(), &from).await?;
    if let Some(attachment) = &shown.attachment {
        return Err(conflict(format!(
            "volume {} is attached to instance {}: only a volume that no instance has can be copied",
            from.name, attachment.instance
        )));
    }
    if shown.status != VolumeStatus::Available {
        return Err(conflict(format!(
            "volume {} is {}: only an available volume can be copied",
            from.name,
            shown.status.as_str()
        )));
    }
    let Some(host) = from.host_id else {
        return Err(conflict(format!(
            "volume {} has no host yet, so there is nothing on it to copy",
            from.name
        )));
    };
    let called = format!("volume {}", from.name);
    check_copy(writing, request, named, (&called, host, from.size_gb)).await?;
    let source = VolumeSource::Volume(VolumeRef {
        id: from.id,
        format: from.format,
        pool: from.pool,
    });
    Ok((Some(source), Some(host)))
}

/// The same of a snapshot.
async fn from_snapshot(
    writing: &Writing<'_>,
    request: &VolumeCreate,
    snapshot: &str,
    named: Option<HostId>,
) -> Result<(Option<VolumeSource>, Option<HostId>), ClaimError> {
    let from = snapshots::resolve(writing.txn(), &request.project, snapshot).await?;
    if from.project != request.project {
        return Err(snapshots::no_such_snapshot(&request.project, snapshot));
    }
    let shown = show::snapshot(writing.context(), writing.txn(), &from).await?;
    let host = from
        .host_id
        .filter(|_| shown.status == SnapshotStatus::Available);
    let Some(host) = host else {
        return Err(conflict(format!(
            "snapshot {} is {}: only from an available snapshot a volume can be made",
            from.name,
            shown.status.as_str()
        )));
    };
    let called = format!("snapshot {}", from.name);
    check_copy(writing, request, named, (&called, host, from.size_gb)).await?;
    let source = VolumeSource::Snapshot(SnapshotRef {
        id: from.id,
        pool: from.volume.pool,
    });
    Ok((Some(source), Some(host)))
}

/// Refuses a copy on another host than its source's, or smaller than that. `source`: what to call it, its host and size.
async fn check_copy(
    writing: &Writing<'_>,
    request: &VolumeCreate,
    named: Option<HostId>,
    source: (&str, HostId, DiskGb),
) -> Result<(), ClaimError> {
    let (called, host, size) = source;
    if let Some(other) = named.filter(|other| *other != host) {
        let names = host_rows::names(writing.txn(), &[host, other]).await?;
        let name = |id| names.get(&id).map_or_else(String::new, ToString::to_string);
        return Err(conflict(format!(
            "{called} is on host {}, and a copy of it can only be made there; asked for was host {}",
            name(host),
            name(other)
        )));
    }
    if request.size_gb < size {
        return Err(invalid(format!(
            "size_gb must be at least {}, the size of {called}; got {}",
            size.get(),
            request.size_gb.get()
        )));
    }
    Ok(())
}

/// Refuses something new on a host that gets nothing new. `what`: what it is.
pub(in crate::claim) fn check_admission(
    writing: &Writing<'_>,
    host: HostId,
    what: &str,
) -> Result<(), ClaimError> {
    let Some(known) = writing.cloud.table().host(host) else {
        return Ok(());
    };
    let facts = known.facts();
    let why = match (facts.admission, facts.liveness) {
        (Admission::Disabled, _) => {
            "is disabled: it gets nothing new until it is enabled".to_owned()
        }
        (Admission::Draining, _) => {
            "is draining: it gets nothing new until it is enabled".to_owned()
        }
        (Admission::Enabled, HostState::Down) => {
            format!("is down: nobody there would make {what}")
        }
        (Admission::Enabled, HostState::Up) => return Ok(()),
    };
    Err(Refusal::new(
        RefusalCode::NoValidHost,
        format!("host {} {why}", facts.name),
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_from_before_there_were_pools_is_the_same_when_it_is_repeated() {
        let id = "0191e7a0-7c1f-7b5e-9d2a-000000000001";
        let request: VolumeCreate =
            serde_json::from_str(&format!(r#"{{"id":"{id}","name":"data","size_gb":1}}"#)).unwrap();
        let filled = filled_in(&request, VolumeFormat::usual(&PoolName::default()));
        assert_eq!(
            serde_json::to_string(&filled).unwrap(),
            format!(
                r#"{{"id":"{id}","name":"data","project":"default","size_gb":1,"format":"qcow2","source":null,"limits":{{"total_iops":null,"total_bytes_per_second":null}},"host":null}}"#
            )
        );
    }
}
