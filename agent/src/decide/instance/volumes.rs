//! The part of an instance's plan that is about the volumes its guest has: those of its document × those that are live.
//!
//! A guest that is on gets and gives back volumes while it runs. It has to give one back itself, and may take its time
//! or never do it, so it is asked again and again, and the plan waits until libvirt no longer names the disk: a
//! volume is free only when the agent saw it gone. A guest that does not do it in time makes that a fault, and is still
//! asked; one that stands still cannot, and is waited for. Switching the guest off takes it from it as well. A guest that
//! is saved on disk keeps what it had, until it goes on.

use std::{collections::BTreeSet, path::Path};

use super::{End, Observed, Paths, Wait, keeps_for_long, kept_by_guest, power::ASK_AGAIN_AFTER};
use crate::decide::{
    disk_target,
    domain::{DiskFile, DomainConfig, DomainDisk, DomainObserved, DomainStep, OffReason},
};
use berth_common::{document::DiskBus, ids::VolumeId, message::report::PowerState};

/// What a guest's volumes need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Change {
    /// The steps, in order.
    pub(super) steps: Vec<DomainStep>,
    /// What keeps them from being as they shall be.
    pub(super) end: Option<End>,
}

/// What to do so that a guest has the volumes of its definition, and no others.
pub(super) fn change(
    config: &DomainConfig,
    domain: &DomainObserved,
    observed: &Observed,
    paths: &Paths,
) -> Change {
    let is_volume = |path: &Path| paths.volume_at(path).is_some();
    let wanted: Vec<&DomainDisk> = config
        .disks
        .iter()
        .filter(|disk| is_volume(&disk.path))
        .collect();
    let live: Vec<&DiskFile> = domain
        .disks
        .live
        .iter()
        .filter(|disk| is_volume(&disk.path))
        .collect();
    let is_same =
        |disk: &DomainDisk, file: &DiskFile| disk.path == file.path && disk.target == file.target;
    let surplus: Vec<&DiskFile> = live
        .iter()
        .copied()
        .filter(|file| !wanted.iter().any(|disk| is_same(disk, file)))
        .collect();
    let missing: Vec<&DomainDisk> = wanted
        .iter()
        .copied()
        .filter(|disk| !live.iter().any(|file| is_same(disk, file)))
        .collect();
    if surplus.is_empty() && missing.is_empty() {
        return Change::default();
    }
    match (domain.power_state, domain.off_reason) {
        (PowerState::Running | PowerState::Paused, _) => {}
        // Off, and nothing saved: it has none, and its next start gives it those of its definition.
        (PowerState::Shutdown | PowerState::Nostate, reason)
            if reason != Some(OffReason::Saved) =>
        {
            return Change::default();
        }
        _ => {
            return Change {
                steps: Vec::new(),
                end: Some(End::Wait(Wait::GuestGoesOn)),
            };
        }
    }
    let mut change = Change::default();
    // QEMU gives no disk back that it copies.
    let copied = surplus
        .iter()
        .filter_map(|file| paths.volume_at(&file.path))
        .find(|id| observed.volumes_copied.contains(id));
    if let Some(volume) = copied {
        change.end = Some(End::Wait(Wait::Copied(volume)));
    } else if !surplus.is_empty() {
        let targets: BTreeSet<String> = surplus.iter().map(|file| file.target.clone()).collect();
        let asked = observed.detach_asked;
        change.end = Some(if keeps_for_long(domain, asked) {
            End::Stuck(kept_by_guest("disk", &targets))
        } else {
            End::Wait(Wait::Detach(targets))
        });
        if asked.is_none_or(|asked| asked.last >= ASK_AGAIN_AFTER) {
            let detach = |file: &&DiskFile| DomainStep::Detach {
                instance: config.id,
                disk: (*file).clone(),
            };
            change.steps.extend(surplus.iter().map(detach));
        }
    }
    let mut has_controller = domain.disks.scsi_controller;
    for disk in missing {
        // The same place, or the same volume elsewhere: it has to be free first.
        if surplus
            .iter()
            .any(|file| file.target == disk.target || file.path == disk.path)
        {
            continue;
        }
        match paths.volume_at(&disk.path) {
            Some(id) if !observed.volumes_ready.contains(&id) => {
                change.end.get_or_insert(End::Wait(Wait::Volume(id)));
            }
            Some(_) | None => {
                let on_scsi = disk_target::bus(&disk.target) == DiskBus::Scsi;
                if on_scsi && !has_controller {
                    let instance = config.id;
                    change
                        .steps
                        .push(DomainStep::AttachScsiController(instance));
                    has_controller = true;
                }
                change.steps.push(DomainStep::Attach {
                    instance: config.id,
                    disk: Box::new(disk.clone()),
                });
            }
        }
    }
    change
}

/// A volume that a guest has and that is being copied.
pub(super) fn copied(
    domain: &DomainObserved,
    observed: &Observed,
    paths: &Paths,
) -> Option<VolumeId> {
    let live = domain.disks.live.iter();
    live.filter_map(|disk| paths.volume_at(&disk.path))
        .find(|id| observed.volumes_copied.contains(id))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_common::{
        document::{
            DesiredPower, Flavor, InstanceSpec, InstanceVolume, VolumeAccess, VolumeFormat,
            VolumeLimits,
        },
        ids::{InstanceId, VolumeId},
        message::report::FaultCode,
        units::{DiskGb, MemoryMb, Vcpus},
    };
    use uuid::Uuid;

    use super::*;
    use crate::decide::{
        domain::{DomainDisks, VirtType},
        instance::{Asked, HostFacts, domain_config, worse},
        room::{HostSize, RoomToGrow},
    };

    fn host() -> HostFacts {
        HostFacts {
            virt_type: VirtType::Qemu,
            arch: "x86_64".to_owned(),
            has_cpu_controller: false,
            size: HostSize {
                cpus: 16,
                memory_mb: MemoryMb::clamped(65_536),
            },
            room_to_grow: RoomToGrow::Given,
            paths: Paths::below(Path::new("/var/lib/berth")),
        }
    }

    fn volume(n: u128) -> VolumeId {
        VolumeId::try_from(Uuid::from_u128(
            0x0191_e7a0_7c1f_7b5e_9d2a_0000_0000_0000 + n,
        ))
        .unwrap()
    }

    /// The definition of an instance with these volumes, by position.
    fn config(volumes: &[(u128, u8)]) -> DomainConfig {
        config_on(DiskBus::Virtio, volumes)
    }

    fn config_on(disk_bus: DiskBus, volumes: &[(u128, u8)]) -> DomainConfig {
        let volumes = volumes.iter().map(|(n, position)| InstanceVolume {
            id: volume(*n),
            position: *position,
            format: VolumeFormat::Raw,
            pool: Default::default(),
            access: VolumeAccess::ReadWrite,
            disk_bus,
            limits: VolumeLimits::default(),
        });
        let spec = InstanceSpec {
            name: "web-1".parse().unwrap(),
            project: "default".parse().unwrap(),
            power: DesiredPower::Running,
            reboot: None,
            stop_timeout_seconds: 30,
            flavor: Flavor {
                vcpus: Vcpus::clamped(1),
                memory_mb: MemoryMb::clamped(128),
                disk_gb: DiskGb::clamped(1),
            },
            disks: Vec::new(),
            ports: Vec::new(),
            volumes: volumes.collect(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::default(),
        };
        domain_config(InstanceId::new(), &spec, &host())
    }

    /// A guest in a state, with these volumes and a disk of its own.
    fn domain(state: PowerState, live: &[(u128, &str)]) -> DomainObserved {
        let own = DiskFile {
            path: "/var/lib/berth/instances/x/disk0.qcow2".into(),
            target: "vda".to_owned(),
        };
        let volumes = live.iter().map(|(n, target)| DiskFile {
            path: host().paths.volume_file(volume(*n), VolumeFormat::Raw),
            target: (*target).to_owned(),
        });
        DomainObserved {
            uuid: Uuid::new_v4(),
            name: String::new(),
            power_state: state,
            off_reason: (state == PowerState::Shutdown).then_some(OffReason::Unknown),
            leftover_memory: false,
            is_starting: false,
            is_halted: false,
            reason: String::new(),
            persistent: true,
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(128),
            running: None,
            metadata: None,
            nics: Default::default(),
            disks: DomainDisks {
                live: [own].into_iter().chain(volumes).collect(),
                kept: Vec::new(),
                scsi_controller: false,
            },
        }
    }

    fn ready(volumes: &[u128]) -> Observed {
        Observed {
            volumes_ready: volumes.iter().map(|n| volume(*n)).collect(),
            ..Observed::default()
        }
    }

    /// A guest that was asked to give back something so many seconds ago, first and last.
    fn asked(first: u64, last: u64) -> Observed {
        Observed {
            detach_asked: Some(Asked {
                first: Duration::from_secs(first),
                last: Duration::from_secs(last),
            }),
            ..Observed::default()
        }
    }

    fn word(step: &DomainStep) -> String {
        match step {
            DomainStep::AttachScsiController(_) => "attach controller".to_owned(),
            DomainStep::Attach { disk, .. } => format!("attach {}", disk.target),
            DomainStep::Detach { disk, .. } => format!("detach {}", disk.target),
            other => format!("{other:?}"),
        }
    }

    fn check(
        config: &DomainConfig,
        domain: &DomainObserved,
        observed: &Observed,
        steps: &[&str],
        wait: Option<Wait>,
    ) {
        let change = change(config, domain, observed, &host().paths);
        let found: Vec<String> = change.steps.iter().map(word).collect();
        assert_eq!(found, steps);
        assert_eq!(change.end, wait.map(End::Wait));
    }

    fn detach(targets: &[&str]) -> Option<Wait> {
        Some(Wait::Detach(
            targets.iter().map(|it| (*it).to_owned()).collect(),
        ))
    }

    #[test]
    fn a_guest_that_is_on_gets_what_is_ready_and_waits_for_the_rest() {
        let wanted = config(&[(1, 1), (2, 2)]);
        for state in [PowerState::Running, PowerState::Paused] {
            let bare = domain(state, &[]);
            let steps = ["attach vdb", "attach vdc"];
            check(&wanted, &bare, &ready(&[1, 2]), &steps, None);
            let wait = Some(Wait::Volume(volume(2)));
            check(&wanted, &bare, &ready(&[1]), &["attach vdb"], wait);
            let full = domain(state, &[(1, "vdb"), (2, "vdc")]);
            check(&wanted, &full, &ready(&[]), &[], None);
        }
    }

    #[test]
    fn a_scsi_disk_comes_after_its_controller_which_a_guest_gets_once() {
        let wanted = config_on(DiskBus::Scsi, &[(1, 1), (2, 2)]);
        let mut on = domain(PowerState::Running, &[]);
        let steps = ["attach controller", "attach sdb", "attach sdc"];
        check(&wanted, &on, &ready(&[1, 2]), &steps, None);
        // Nothing to sit behind it yet: it is not given.
        let wait = Some(Wait::Volume(volume(1)));
        check(&wanted, &on, &ready(&[]), &[], wait);
        on.disks.scsi_controller = true;
        let steps = ["attach sdb", "attach sdc"];
        check(&wanted, &on, &ready(&[1, 2]), &steps, None);
    }

    #[test]
    fn a_volume_changes_its_bus_only_when_the_guest_gave_it_back() {
        let on = domain(PowerState::Running, &[(1, "vdb")]);
        let wanted = config_on(DiskBus::Scsi, &[(1, 1)]);
        let steps = ["detach vdb"];
        check(&wanted, &on, &ready(&[1]), &steps, detach(&["vdb"]));
    }

    #[test]
    fn a_guest_is_asked_again_until_the_disk_is_gone() {
        let nothing = config(&[]);
        let on = domain(PowerState::Running, &[(1, "vdb")]);
        check(
            &nothing,
            &on,
            &ready(&[]),
            &["detach vdb"],
            detach(&["vdb"]),
        );
        check(&nothing, &on, &asked(1, 1), &[], detach(&["vdb"]));
        check(
            &nothing,
            &on,
            &asked(59, 9),
            &["detach vdb"],
            detach(&["vdb"]),
        );
        check(
            &nothing,
            &domain(PowerState::Running, &[]),
            &asked(600, 9),
            &[],
            None,
        );
    }

    #[test]
    fn a_guest_that_keeps_a_disk_for_long_is_at_fault_and_still_asked() {
        let nothing = config(&[]);
        let on = domain(PowerState::Running, &[(1, "vdb"), (2, "vdc")]);
        let late = change(&nothing, &on, &asked(60, 5), &host().paths);
        let found: Vec<String> = late.steps.iter().map(word).collect();
        assert_eq!(found, ["detach vdb", "detach vdc"]);
        let Some(End::Stuck(fault)) = late.end else {
            panic!("it is no fault: {:?}", late.end);
        };
        assert_eq!(fault.code, FaultCode::Hypervisor);
        assert!(
            fault.message.contains("disk vdb, vdc") && fault.message.contains("60 s"),
            "{}",
            fault.message
        );
        // Just asked, it is not asked again; the fault stays.
        let late = change(&nothing, &on, &asked(600, 1), &host().paths);
        assert!(late.steps.is_empty() && matches!(late.end, Some(End::Stuck(_))));
        // One that stands still cannot hear it, and what is copied cannot be given back.
        let paused = domain(PowerState::Paused, &[(1, "vdb")]);
        check(
            &nothing,
            &paused,
            &asked(600, 5),
            &["detach vdb"],
            detach(&["vdb"]),
        );
        let copied = Observed {
            volumes_copied: [volume(1)].into(),
            ..asked(600, 5)
        };
        check(&nothing, &on, &copied, &[], Some(Wait::Copied(volume(1))));
    }

    #[test]
    fn neither_of_two_faults_hides_the_other() {
        let stuck = |what: &str| {
            let names = BTreeSet::from([what.to_owned()]);
            Some(End::Stuck(kept_by_guest("disk", &names)))
        };
        let wait = || Some(End::Wait(Wait::GuestGoesOn));
        assert_eq!(worse(stuck("vdb"), wait()), stuck("vdb"));
        assert_eq!(worse(wait(), stuck("vdb")), stuck("vdb"));
        assert_eq!(worse(None, wait()), wait());
        assert_eq!(worse(None, None), None);
        let Some(End::Stuck(both)) = worse(stuck("vdb"), stuck("eth1")) else {
            panic!("both are faults");
        };
        assert!(
            both.message.contains("vdb") && both.message.contains("eth1"),
            "{}",
            both.message
        );
    }

    #[test]
    fn a_guest_is_not_asked_for_a_disk_that_is_being_copied() {
        let on = domain(PowerState::Running, &[(1, "vdb"), (2, "vdc")]);
        let copied = |n| Observed {
            volumes_copied: [volume(n)].into(),
            ..Observed::default()
        };
        let wait = Some(Wait::Copied(volume(1)));
        check(&config(&[(2, 2)]), &on, &copied(1), &[], wait);
        let other = detach(&["vdb"]);
        check(&config(&[(2, 2)]), &on, &copied(2), &["detach vdb"], other);
    }

    #[test]
    fn a_place_is_given_away_only_when_it_is_free() {
        let on = domain(PowerState::Running, &[(1, "vdb")]);
        let steps = ["detach vdb"];
        let other = config(&[(2, 1)]);
        check(&other, &on, &ready(&[2]), &steps, detach(&["vdb"]));
        let elsewhere = config(&[(1, 2)]);
        check(&elsewhere, &on, &ready(&[1]), &steps, detach(&["vdb"]));
        let beside = config(&[(2, 2)]);
        let steps = ["detach vdb", "attach vdc"];
        check(&beside, &on, &ready(&[2]), &steps, detach(&["vdb"]));
    }

    #[test]
    fn a_guest_that_sleeps_keeps_what_it_has_and_one_that_is_off_has_nothing() {
        let off = domain(PowerState::Shutdown, &[]);
        check(&config(&[(1, 1)]), &off, &ready(&[1]), &[], None);
        let goes_on = Some(Wait::GuestGoesOn);
        let mut saved = domain(PowerState::Shutdown, &[(1, "vdb")]);
        saved.off_reason = Some(OffReason::Saved);
        for sleeping in [saved, domain(PowerState::Suspended, &[(1, "vdb")])] {
            check(&config(&[(1, 1)]), &sleeping, &ready(&[1]), &[], None);
            for other in [config(&[]), config(&[(1, 1), (2, 2)])] {
                let wait = goes_on.clone();
                check(&other, &sleeping, &ready(&[1, 2]), &[], wait);
            }
        }
    }
}
