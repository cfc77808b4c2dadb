//! What a volume looks like from outside: a pure function of rows.

use berth_common::{
    document::DiskBus,
    ids::HostId,
    message::{
        report::{ConvergeStatus, Fault, FaultCode},
        view::{AttachmentView, VolumeStatus, VolumeView},
    },
    names::HostName,
    units::Generation,
};
use berth_store::{
    attachments::{AttachmentRow, AttachmentState},
    documents::DocumentRow,
    instances::InstanceRow,
    volumes::VolumeRow,
};

use super::view::Silence;

/// Everything that is known of a volume.
#[derive(Debug, Clone, Copy)]
pub struct VolumeFacts<'a> {
    /// Its row.
    pub row: &'a VolumeRow,
    /// The host it is on.
    pub host: Option<(HostId, &'a HostName)>,
    /// That host is down, and since when.
    pub silence: Option<Silence>,
    /// Its document.
    pub document: Option<&'a DocumentRow>,
    /// What it is attached to.
    pub attachment: Option<AttachedTo<'a>>,
}

/// What a volume is attached to.
#[derive(Debug, Clone, Copy)]
pub struct AttachedTo<'a> {
    /// The attachment.
    pub row: &'a AttachmentRow,
    /// The instance.
    pub instance: &'a InstanceRow,
    /// Why the instance's host gave up on what is wanted of the instance now, if it did.
    pub failure: Option<&'a Fault>,
    /// What the instance's host is doing for what is wanted of the instance now.
    pub progress: Option<&'a str>,
}

impl VolumeFacts<'_> {
    fn generation(&self) -> Generation {
        self.document
            .map_or(Generation(0), |document| document.generation)
    }
}

/// The guest's usual name of the volume at a position: 1 is `/dev/vdb`, or `/dev/sdb`.
#[must_use]
pub fn device(position: u8, bus: DiskBus) -> String {
    let letter = char::from(b'a'.saturating_add(position));
    format!("/dev/{}{letter}", bus.prefix())
}

/// A volume from outside.
#[must_use]
pub fn volume(facts: VolumeFacts<'_>) -> VolumeView {
    let row = facts.row;
    let (status, fault) = status(&facts);
    let progress = facts
        .silence
        .map(Silence::in_words)
        .or_else(|| changes_to(&facts, status))
        .or_else(|| row.observed.progress.clone());
    VolumeView {
        id: row.id,
        name: row.name.clone(),
        project: row.project.clone(),
        size_gb: row.size_gb,
        format: row.format,
        pool: row.pool.clone(),
        source: row.source.clone(),
        limits: row.limits,
        status,
        progress: progress.filter(|_| status != VolumeStatus::Deleted),
        fault,
        host: facts.host.map(|(_, name)| name.clone()),
        host_id: facts.host.map(|(id, _)| id),
        attachment: facts.attachment.map(|to| AttachmentView {
            instance_id: to.instance.id,
            instance: to.instance.name.clone(),
            device: device(to.row.position, to.row.disk_bus),
            access: to.row.access,
            disk_bus: to.row.disk_bus,
        }),
        generation: facts.generation(),
        observed_generation: row.observed.generation,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

/// How far the change of its attachment is: its instance's host makes it.
fn changes_to(facts: &VolumeFacts<'_>, status: VolumeStatus) -> Option<String> {
    match status {
        VolumeStatus::Attaching | VolumeStatus::Detaching => {
            let progress = facts.attachment.and_then(|to| to.progress);
            progress.map(str::to_owned)
        }
        _ => None,
    }
}

/// In which part of its life a volume is, and why it is in error.
fn status(facts: &VolumeFacts<'_>) -> (VolumeStatus, Option<Fault>) {
    let row = facts.row;
    if row.deleted_at.is_some() {
        return (VolumeStatus::Deleted, None);
    }
    let fault = row.observed.fault.clone();
    let change = facts.attachment.and_then(changing);
    // It is on its way, whatever failed of the volume before.
    match (&change, facts.attachment) {
        (_, Some(_)) if row.desired_deleted => return (VolumeStatus::Deleting, fault),
        (Some((VolumeStatus::Detaching, _)), _) => return (VolumeStatus::Detaching, fault),
        _ => {}
    }
    if has_failed(row, facts.generation()) {
        return (VolumeStatus::Error, fault);
    }
    if row.desired_deleted {
        return (VolumeStatus::Deleting, fault);
    }
    if let Some(found) = change {
        return found;
    }
    if row.host_id.is_none() {
        return (VolumeStatus::Available, None);
    }
    if !row.observed.was_available {
        // Nobody makes it: that is no state to wait in. It ends when the host is back, and making it goes on.
        return match facts.silence {
            Some(silence) => (VolumeStatus::Error, Some(not_made(silence))),
            None => (VolumeStatus::Creating, fault),
        };
    }
    let is_settled = row.observed.generation >= facts.generation()
        && row.observed.status == Some(ConvergeStatus::Converged);
    match facts.attachment {
        _ if !is_settled => (VolumeStatus::Extending, fault),
        Some(_) => (VolumeStatus::InUse, fault),
        None => (VolumeStatus::Available, fault),
    }
}

/// Why its host could not make a volume, which waits for that.
#[must_use]
pub fn making_failed(row: &VolumeRow) -> Option<&Fault> {
    let has_failed = row.observed.status == Some(ConvergeStatus::Failed);
    row.observed
        .fault
        .as_ref()
        .filter(|_| has_failed && !row.observed.was_available)
}

/// Whether its host gave up on what is wanted of a volume now.
#[must_use]
pub fn has_failed(row: &VolumeRow, generation: Generation) -> bool {
    row.observed.status == Some(ConvergeStatus::Failed) && row.observed.generation >= generation
}

/// The status of a volume whose attachment changes; none: it does not.
fn changing(to: AttachedTo<'_>) -> Option<(VolumeStatus, Option<Fault>)> {
    let status = match to.row.state {
        // It ends with the instance.
        _ if to.instance.desired_deleted => return Some((VolumeStatus::Detaching, None)),
        AttachmentState::Attaching => VolumeStatus::Attaching,
        AttachmentState::Detaching => VolumeStatus::Detaching,
        AttachmentState::Attached => return None,
    };
    Some(to.failure.map_or((status, None), |fault| {
        (VolumeStatus::Error, Some(fault.clone()))
    }))
}

/// The host of a volume went down before it was made.
fn not_made(silence: Silence) -> Fault {
    Fault {
        code: FaultCode::NoValidHost,
        message: format!(
            "{}: making it goes on when the host is back; delete the volume to have it elsewhere",
            silence.in_words()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_common::{
        document::{
            DesiredPower, DocumentKey, Flavor, ImageFormat, ImageRef, Kind, VolumeAccess,
            VolumeFormat, VolumeLimits,
        },
        ids::{InstanceId, VolumeId},
        message::placement::SchedulerHints,
        names::PoolName,
        units::{DiskGb, MemoryMb, Vcpus},
    };
    use berth_store::{
        instances::{BootSource, InstanceObserved},
        volumes::VolumeObserved,
    };
    use chrono::DateTime;

    use super::*;

    fn row(host: Option<HostId>) -> VolumeRow {
        VolumeRow {
            id: VolumeId::new(),
            project: "default".parse().unwrap(),
            name: "data".parse().unwrap(),
            host_id: host,
            size_gb: DiskGb::new(5).unwrap(),
            pool: PoolName::default(),
            format: VolumeFormat::Qcow2,
            source: None,
            limits: VolumeLimits::default(),
            fingerprint: String::new(),
            desired_deleted: false,
            observed: VolumeObserved::default(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
        }
    }

    fn instance() -> InstanceRow {
        InstanceRow {
            id: InstanceId::new(),
            project: "default".parse().unwrap(),
            name: "web".parse().unwrap(),
            flavor: Flavor {
                vcpus: Vcpus::new(1).unwrap(),
                memory_mb: MemoryMb::new(64).unwrap(),
                disk_gb: DiskGb::new(1).unwrap(),
            },
            boot_source: BootSource::Image(ImageRef {
                url: "file:///x".parse().unwrap(),
                sha256: "00".repeat(32).parse().unwrap(),
                format: ImageFormat::Raw,
            }),
            stop_timeout_seconds: 60,
            fingerprint: String::new(),
            desired_power: DesiredPower::Running,
            desired_reboot: None,
            desired_deleted: false,
            placement_fault: None,
            observed: InstanceObserved::default(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            deleted_at: None,
            hints: SchedulerHints::default(),
            server_group_id: None,
            attempt: 1,
            failed_hosts: Vec::new(),
            config_drive: None,
            guest_data: None,
            desired_rescue: None,
            desired_incarnation: None,
            metadata: std::collections::BTreeMap::new(),
            on_crash: berth_common::document::OnCrash::default(),
        }
    }

    fn document(host_id: HostId, volume: &VolumeRow, generation: u64) -> DocumentRow {
        DocumentRow {
            host_id,
            key: DocumentKey {
                kind: Kind::Volume,
                id: volume.id.as_uuid(),
            },
            generation: Generation(generation),
            spec_json: None,
            observed_generation: Generation(0),
            observed_status: None,
            changed_at: DateTime::UNIX_EPOCH,
            published_at: None,
            attempts: 0,
            next_publish_at: None,
        }
    }

    fn fault() -> Fault {
        Fault {
            code: FaultCode::DiskFull,
            message: "it is full".to_owned(),
        }
    }

    /// What is shown of a volume: its status, and why it is in error.
    fn check(
        row: &VolumeRow,
        generation: u64,
        silence: Option<Silence>,
        attachment: Option<AttachedTo<'_>>,
    ) -> (VolumeStatus, Option<String>) {
        let name: HostName = "hv1".parse().unwrap();
        let document = row.host_id.map(|host| document(host, row, generation));
        let view = volume(VolumeFacts {
            row,
            host: row.host_id.map(|id| (id, &name)),
            silence,
            document: document.as_ref(),
            attachment,
        });
        (view.status, view.fault.map(|fault| fault.message))
    }

    #[test]
    fn a_volume_shows_the_part_of_its_life_it_is_in() {
        let host = HostId::new();
        let down = Silence {
            age: Some(Duration::from_secs(95)),
        };
        let mut made = row(None);
        assert_eq!(check(&made, 0, None, None), (VolumeStatus::Available, None));
        made.host_id = Some(host);
        assert_eq!(check(&made, 1, None, None), (VolumeStatus::Creating, None));
        let (status, why) = check(&made, 1, Some(down), None);
        assert_eq!(status, VolumeStatus::Error);
        assert_eq!(
            why.unwrap(),
            "its host is down, nothing was heard of it for 95 s: making it goes on when the host is back; delete the \
             volume to have it elsewhere"
        );
        made.observed = VolumeObserved {
            status: Some(ConvergeStatus::Failed),
            generation: Generation(1),
            fault: Some(fault()),
            ..VolumeObserved::default()
        };
        let failed = (VolumeStatus::Error, Some("it is full".to_owned()));
        assert_eq!(check(&made, 1, None, None), failed);
        made.observed = VolumeObserved {
            status: Some(ConvergeStatus::Converged),
            generation: Generation(1),
            was_available: true,
            ..VolumeObserved::default()
        };
        assert_eq!(check(&made, 1, None, None), (VolumeStatus::Available, None));
        assert_eq!(
            check(&made, 1, Some(down), None),
            (VolumeStatus::Available, None),
            "it is there, also while its host is down"
        );
        assert_eq!(check(&made, 2, None, None), (VolumeStatus::Extending, None));

        let mut web = instance();
        let mut attachment = AttachmentRow {
            volume_id: made.id,
            instance_id: web.id,
            position: 1,
            access: VolumeAccess::ReadWrite,
            disk_bus: DiskBus::Virtio,
            state: AttachmentState::Attaching,
            created_at: DateTime::UNIX_EPOCH,
        };
        let full = fault();
        for (state, expected) in [
            (AttachmentState::Attaching, VolumeStatus::Attaching),
            (AttachmentState::Attached, VolumeStatus::InUse),
            (AttachmentState::Detaching, VolumeStatus::Detaching),
        ] {
            attachment.state = state;
            let mut to = AttachedTo {
                row: &attachment,
                instance: &web,
                failure: None,
                progress: None,
            };
            assert_eq!(check(&made, 1, None, Some(to)), (expected, None));
            to.failure = Some(&full);
            // An instance that fails at something else still has its volume.
            let expected = match state {
                AttachmentState::Attached => (VolumeStatus::InUse, None),
                AttachmentState::Attaching | AttachmentState::Detaching => failed.clone(),
            };
            assert_eq!(check(&made, 1, None, Some(to)), expected);
        }
        attachment.state = AttachmentState::Attached;
        web.desired_deleted = true;
        let to = AttachedTo {
            row: &attachment,
            instance: &web,
            failure: Some(&full),
            progress: None,
        };
        assert_eq!(
            check(&made, 1, None, Some(to)),
            (VolumeStatus::Detaching, None)
        );
        made.desired_deleted = true;
        assert_eq!(check(&made, 2, None, None), (VolumeStatus::Deleting, None));
        made.deleted_at = Some(DateTime::UNIX_EPOCH);
        assert_eq!(check(&made, 2, None, None), (VolumeStatus::Deleted, None));
    }

    /// A volume that is there and failed to grow, and how an instance has it.
    fn failed_and(state: AttachmentState) -> (VolumeRow, InstanceRow, AttachmentRow) {
        let mut volume = row(Some(HostId::new()));
        volume.observed = VolumeObserved {
            status: Some(ConvergeStatus::Failed),
            generation: Generation(2),
            fault: Some(fault()),
            was_available: true,
            ..VolumeObserved::default()
        };
        let web = instance();
        let attachment = AttachmentRow {
            volume_id: volume.id,
            instance_id: web.id,
            position: 1,
            access: VolumeAccess::ReadWrite,
            disk_bus: DiskBus::Virtio,
            state,
            created_at: DateTime::UNIX_EPOCH,
        };
        (volume, web, attachment)
    }

    /// Attached, with nothing wrong about that.
    fn unfailed<'a>(row: &'a AttachmentRow, instance: &'a InstanceRow) -> AttachedTo<'a> {
        AttachedTo {
            row,
            instance,
            failure: None,
            progress: None,
        }
    }

    #[test]
    fn a_volume_in_error_that_is_on_its_way_out_is_shown_so() {
        let why = Some("it is full".to_owned());
        for (state, expected) in [
            (AttachmentState::Attaching, VolumeStatus::Error),
            (AttachmentState::Attached, VolumeStatus::Error),
            (AttachmentState::Detaching, VolumeStatus::Detaching),
        ] {
            let (mut data, mut web, attachment) = failed_and(state);
            assert_eq!(
                check(&data, 2, None, Some(unfailed(&attachment, &web))),
                (expected, why.clone())
            );
            // The instance goes, and with it the volume.
            web.desired_deleted = true;
            let shown = check(&data, 2, None, Some(unfailed(&attachment, &web)));
            assert_eq!(shown, (VolumeStatus::Detaching, why.clone()));
            data.desired_deleted = true;
            let shown = check(&data, 2, None, Some(unfailed(&attachment, &web)));
            assert_eq!(shown, (VolumeStatus::Deleting, why.clone()));
            // The failure of its own end is one.
            let shown = check(&data, 2, None, None);
            assert_eq!(shown, (VolumeStatus::Error, why.clone()));
        }
        // A detachment that failed is no way out.
        let (data, web, attachment) = failed_and(AttachmentState::Detaching);
        let kept = Fault {
            code: FaultCode::Hypervisor,
            message: "the guest keeps it".to_owned(),
        };
        let to = AttachedTo {
            row: &attachment,
            instance: &web,
            failure: Some(&kept),
            progress: None,
        };
        assert_eq!(check(&data, 2, None, Some(to)).0, VolumeStatus::Error);
    }

    #[test]
    fn what_its_instance_waits_for_is_shown_while_the_attachment_changes() {
        let waits = "waiting for the guest to give back vdb";
        let own = "growing";
        for (state, expected) in [
            (AttachmentState::Attaching, waits),
            (AttachmentState::Attached, own),
            (AttachmentState::Detaching, waits),
        ] {
            let (mut data, web, attachment) = failed_and(state);
            data.observed.status = Some(ConvergeStatus::Converging);
            data.observed.progress = Some(own.to_owned());
            let to = |progress| AttachedTo {
                row: &attachment,
                instance: &web,
                failure: None,
                progress,
            };
            let shown = |silence, progress| {
                volume(VolumeFacts {
                    row: &data,
                    host: None,
                    silence,
                    document: None,
                    attachment: Some(to(progress)),
                })
                .progress
                .unwrap()
            };
            assert_eq!(shown(None, Some(waits)), expected);
            assert_eq!(shown(None, None), own);
            let down = Silence { age: None };
            assert_eq!(shown(Some(down), Some(waits)), "its host is down");
        }
    }

    #[test]
    fn positions_are_the_guests_usual_names() {
        assert_eq!(device(1, DiskBus::Virtio), "/dev/vdb");
        assert_eq!(device(8, DiskBus::Virtio), "/dev/vdi");
        assert_eq!(device(1, DiskBus::Scsi), "/dev/sdb");
        assert_eq!(device(24, DiskBus::Scsi), "/dev/sdy");
    }
}
