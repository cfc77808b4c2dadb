//! What a snapshot looks like from outside: a pure function of rows.

use berth_common::{
    ids::HostId,
    message::{
        report::{ConvergeStatus, Fault, FaultCode},
        view::{SnapshotStatus, SnapshotView},
    },
    names::{HostName, VolumeName},
    units::Generation,
};
use berth_store::{documents::DocumentRow, snapshots::SnapshotRow};

use super::view::Silence;

/// Everything that is known of a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotFacts<'a> {
    /// Its row.
    pub row: &'a SnapshotRow,
    /// The name of its volume, if that still lives.
    pub volume: Option<&'a VolumeName>,
    /// The host it is on.
    pub host: Option<(HostId, &'a HostName)>,
    /// That host is down, and since when.
    pub silence: Option<Silence>,
    /// Its document.
    pub document: Option<&'a DocumentRow>,
}

/// A snapshot from outside.
#[must_use]
pub fn snapshot(facts: SnapshotFacts<'_>) -> SnapshotView {
    let row = facts.row;
    let generation = facts
        .document
        .map_or(Generation(0), |document| document.generation);
    let (status, fault) = status(&facts, generation);
    let silence = facts.silence.map(Silence::in_words);
    let progress = silence.or_else(|| row.observed.progress.clone());
    SnapshotView {
        id: row.id,
        name: row.name.clone(),
        project: row.project.clone(),
        volume_id: row.volume.id,
        volume: facts.volume.cloned(),
        size_gb: row.size_gb,
        pool: row.volume.pool.clone(),
        status,
        progress: progress.filter(|_| status != SnapshotStatus::Deleted),
        fault,
        host: facts.host.map(|(_, name)| name.clone()),
        host_id: facts.host.map(|(id, _)| id),
        generation,
        observed_generation: row.observed.generation,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

/// In which part of its life a snapshot is, and why it is in error.
fn status(facts: &SnapshotFacts<'_>, generation: Generation) -> (SnapshotStatus, Option<Fault>) {
    let row = facts.row;
    if row.deleted_at.is_some() {
        return (SnapshotStatus::Deleted, None);
    }
    let observed = &row.observed;
    let fault = observed.fault.clone();
    let has_failed = observed.status == Some(ConvergeStatus::Failed);
    if has_failed && observed.generation >= generation {
        return (SnapshotStatus::Error, fault);
    }
    if row.desired_deleted {
        return (SnapshotStatus::Deleting, fault);
    }
    match (observed.was_available, facts.silence) {
        (true, _) => (SnapshotStatus::Available, fault),
        // Nobody makes it: that is no state to wait in. It ends when the host is back, and making it goes on.
        (false, Some(silence)) => (SnapshotStatus::Error, Some(not_made(silence))),
        (false, None) => (SnapshotStatus::Creating, fault),
    }
}

/// The host of a snapshot went down before it was made.
fn not_made(silence: Silence) -> Fault {
    Fault {
        code: FaultCode::NoValidHost,
        message: format!(
            "{}: making it goes on when the host is back, with the content that the volume has then",
            silence.in_words()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_common::{
        document::{DocumentKey, Kind, VolumeFormat, VolumeRef},
        ids::{SnapshotId, VolumeId},
        names::PoolName,
        units::DiskGb,
    };
    use berth_store::volumes::VolumeObserved;
    use chrono::DateTime;

    use super::*;

    fn row() -> SnapshotRow {
        SnapshotRow {
            id: SnapshotId::new(),
            project: "default".parse().unwrap(),
            name: "monday".parse().unwrap(),
            volume: VolumeRef {
                id: VolumeId::new(),
                format: VolumeFormat::Raw,
                pool: PoolName::default(),
            },
            host_id: Some(HostId::new()),
            size_gb: DiskGb::new(5).unwrap(),
            fingerprint: String::new(),
            desired_deleted: false,
            observed: VolumeObserved::default(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
        }
    }

    /// What is shown of a snapshot whose document has generation 2.
    fn shown(row: &SnapshotRow, silence: Option<Silence>) -> SnapshotView {
        let name: HostName = "hv1".parse().unwrap();
        let host = row.host_id.unwrap_or_else(HostId::new);
        let document = DocumentRow {
            host_id: host,
            key: DocumentKey {
                kind: Kind::Snapshot,
                id: row.id.as_uuid(),
            },
            generation: Generation(2),
            spec_json: None,
            observed_generation: Generation(0),
            observed_status: None,
            changed_at: DateTime::UNIX_EPOCH,
            published_at: None,
            attempts: 0,
            next_publish_at: None,
        };
        snapshot(SnapshotFacts {
            row,
            volume: None,
            host: Some((host, &name)),
            silence,
            document: Some(&document),
        })
    }

    fn observed(status: ConvergeStatus, generation: u64) -> VolumeObserved {
        VolumeObserved {
            status: Some(status),
            generation: Generation(generation),
            fault: (status == ConvergeStatus::Failed).then(|| Fault {
                code: FaultCode::DiskFull,
                message: "it is full".to_owned(),
            }),
            ..VolumeObserved::default()
        }
    }

    #[test]
    fn a_snapshot_shows_the_part_of_its_life_it_is_in() {
        let down = Some(Silence {
            age: Some(Duration::from_secs(95)),
        });
        let check = |row: &SnapshotRow, silence, expected| {
            assert_eq!(shown(row, silence).status, expected, "{row:?}");
        };
        let mut it = row();
        check(&it, None, SnapshotStatus::Creating);
        check(&it, down, SnapshotStatus::Error);
        it.observed = observed(ConvergeStatus::Failed, 2);
        check(&it, None, SnapshotStatus::Error);
        assert_eq!(shown(&it, None).fault.unwrap().message, "it is full");
        it.observed = observed(ConvergeStatus::Failed, 1);
        check(&it, None, SnapshotStatus::Creating);
        it.observed = observed(ConvergeStatus::Converged, 2);
        it.observed.was_available = true;
        check(&it, None, SnapshotStatus::Available);
        check(&it, down, SnapshotStatus::Available);
        it.desired_deleted = true;
        check(&it, None, SnapshotStatus::Deleting);
        it.observed = observed(ConvergeStatus::Failed, 2);
        check(&it, None, SnapshotStatus::Error);
        it.deleted_at = Some(DateTime::UNIX_EPOCH);
        check(&it, None, SnapshotStatus::Deleted);
    }

    #[test]
    fn a_host_that_is_down_is_told_and_what_its_volume_may_have_become() {
        let down = Silence {
            age: Some(Duration::from_secs(95)),
        };
        let view = shown(&row(), Some(down));
        assert_eq!(
            view.fault.unwrap().message,
            "its host is down, nothing was heard of it for 95 s: making it goes on when the host is back, with the \
             content that the volume has then"
        );
    }
}
