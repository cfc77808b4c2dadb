//! Instances as tables.

use berth_common::message::{
    port::PortStatus,
    report::RunningSize,
    view::{
        AttachedVolume, InstanceView, PendingSize, PortView, RootVolume, SizePart, TakesEffect,
    },
};

use super::{
    joined, or_none,
    table::{Column, Width, fields, rows},
};
use crate::{
    error::why,
    wait::{label, summary},
};

/// Instances, one in a row.
pub(crate) fn list(instances: &[InstanceView], width: Width) -> String {
    let columns = [
        Column::Text("ID"),
        Column::Text("Name"),
        Column::Text("State"),
        Column::Text("Task"),
        Column::Text("Power"),
        Column::Text("Networks"),
        Column::Text("Host"),
        Column::Number("vCPU"),
        Column::Number("RAM MB"),
        Column::Number("Disk GB"),
    ];
    let row = |view: &InstanceView| {
        vec![
            view.id.to_string(),
            view.name.to_string(),
            view.vm_state.as_str().to_owned(),
            or_none(view.task_state.map(|task| task.as_str())),
            view.power_state.as_str().to_owned(),
            networks(&view.ports),
            or_none(view.host.as_ref()),
            view.flavor.vcpus.get().to_string(),
            view.flavor.memory_mb.get().to_string(),
            match view.root_volume {
                Some(_) => "-".to_owned(),
                None => view.flavor.disk_gb.get().to_string(),
            },
        ]
    };
    rows(&columns, instances.iter().map(row), width)
}

/// Everything about one instance, its fault in full.
pub(crate) fn show(view: &InstanceView, width: Width) -> String {
    let fault = view.fault.as_ref();
    let mut properties = vec![
        ("ID", view.id.to_string()),
        ("Name", view.name.to_string()),
        ("Project", view.project.to_string()),
        ("State", view.vm_state.as_str().to_owned()),
        ("Task", or_none(view.task_state.map(|task| task.as_str()))),
        ("Progress", or_none(view.progress.as_ref())),
        ("Power", view.power_state.as_str().to_owned()),
        ("Wanted power", view.desired_power.as_str().to_owned()),
        ("Fault", or_none(fault.map(|fault| fault.code.as_str()))),
        ("Fault message", or_none(fault.map(|fault| &fault.message))),
    ];
    let why = fault.and_then(|fault| why(fault, view.id));
    properties.extend(why.map(|why| ("Why", why)));
    properties.extend([
        ("Host", or_none(view.host.as_ref())),
        ("Host ID", or_none(view.host_id)),
        ("vCPU", view.flavor.vcpus.get().to_string()),
        ("RAM MB", view.flavor.memory_mb.get().to_string()),
        ("Disk GB", disk(view)),
    ]);
    properties.extend(view.running.map(|running| ("Running with", has(running))));
    let pending = view.pending.iter();
    properties.extend(pending.map(|part| ("Pending", describe_pending(part))));
    if let Some(image) = &view.image {
        properties.extend([
            ("Image", image.url.to_string()),
            ("Image sha256", image.sha256.to_string()),
            ("Image format", image.format.as_str().to_owned()),
        ]);
    }
    let root = view.root_volume.map(|root| boots_from(view, root));
    properties.extend(root.map(|root| ("Boots from", root)));
    let rescued = view.rescued.then(|| "yes, its own disk is vdb".to_owned());
    properties.extend(rescued.map(|rescued| ("Rescued", rescued)));
    properties.push(("On crash", view.on_crash.as_str().to_owned()));
    let metadata = view.metadata.iter();
    properties.extend(metadata.map(|(key, value)| ("Metadata", format!("{key}={value}"))));
    properties.extend(view.ports.iter().map(|port| ("Port", describe(port))));
    let volumes = view.volumes.iter();
    properties.extend(volumes.map(|volume| ("Volume", describe_volume(volume))));
    properties.extend([
        (
            "Generation",
            format!(
                "{}, confirmed by the host: {}",
                view.generation, view.observed_generation
            ),
        ),
        ("Created", view.created_at.to_rfc3339()),
        ("Updated", view.updated_at.to_rfc3339()),
    ]);
    fields(properties, width)
}

/// The size of its root disk: the flavor's, if that is used.
fn disk(view: &InstanceView) -> String {
    match view.root_volume {
        Some(_) => "- (it boots from a volume: the flavor's disk is not used)".to_owned(),
        None => view.flavor.disk_gb.get().to_string(),
    }
}

/// The volume it boots from, and whether that outlives it.
fn boots_from(view: &InstanceView, root: RootVolume) -> String {
    let named = view.volumes.iter().find(|volume| volume.id == root.id);
    let name = named.map_or_else(|| root.id.to_string(), |volume| volume.name.to_string());
    let end = if root.delete_on_termination {
        "is deleted with it"
    } else {
        "stays when it is deleted"
    };
    format!("volume {name}, which {end}")
}

/// What became of a request, in a line.
pub(crate) fn outcome(view: &InstanceView) -> String {
    let mut text = format!("instance {}: {}\n", label(view), summary(view));
    for part in &view.pending {
        text.push_str(&describe_pending(part));
        text.push('\n');
    }
    text
}

/// `1 vCPU (at most 8 vCPU), 512 MB (at most 512 MB)`.
fn has(running: RunningSize) -> String {
    format!(
        "{} (at most {}), {} (at most {})",
        running.vcpus, running.vcpus_max, running.memory_mb, running.memory_mb_max
    )
}

/// `vCPUs: 4 wanted, 1 now; the guest gets them while it runs`.
fn describe_pending(pending: &PendingSize) -> String {
    let what = match pending.part {
        SizePart::Vcpus => "vCPUs",
        SizePart::MemoryMb => "MB of memory",
    };
    let when = match pending.takes_effect {
        TakesEffect::Live => "the guest gets them while it runs",
        TakesEffect::NextStart => {
            "takes effect when berth powers it on the next time (reboot, or stop and start)"
        }
    };
    format!(
        "{what}: {} wanted, {} now; {when}",
        pending.wanted, pending.running
    )
}

/// `net0=10.0.0.5, net1=10.1.0.7`.
fn networks(ports: &[PortView]) -> String {
    joined(
        ports
            .iter()
            .map(|port| format!("{}={}", network(port), addresses(port))),
        ", ",
    )
}

/// The network's name, or its id once it is deleted.
fn network(port: &PortView) -> String {
    port.network
        .as_ref()
        .map_or_else(|| port.network_id.to_string(), ToString::to_string)
}

fn addresses(port: &PortView) -> String {
    joined(port.fixed_ips.iter().map(|fixed| fixed.ip_address), "+")
}

fn describe(port: &PortView) -> String {
    let text = format!(
        "{}={}, MAC {}, id {}",
        network(port),
        addresses(port),
        port.mac_address,
        port.id
    );
    match port.status {
        PortStatus::Attaching | PortStatus::Detaching => {
            format!("{text}, {}", port.status.as_str())
        }
        PortStatus::Active | PortStatus::Down => text,
    }
}

fn describe_volume(volume: &AttachedVolume) -> String {
    format!(
        "{}={}, {}, {}, id {}",
        volume.name,
        volume.device,
        volume.access.as_str(),
        volume.disk_bus.as_str(),
        volume.id
    )
}

#[cfg(test)]
mod tests {
    use berth_common::message::{
        report::{Fault, FaultCode},
        view::VmState,
    };

    use super::*;
    use crate::testing::instance;

    #[test]
    fn instances_are_listed_with_their_addresses() {
        let bare = InstanceView {
            ports: Vec::new(),
            host: None,
            vm_state: VmState::Building,
            ..instance()
        };
        insta::assert_snapshot!(list(&[instance(), bare], Width::Unlimited), @r#"
        +--------------------------------------+-------+----------+------+---------+---------------+------+------+--------+---------+
        | ID                                   | Name  | State    | Task | Power   | Networks      | Host | vCPU | RAM MB | Disk GB |
        +--------------------------------------+-------+----------+------+---------+---------------+------+------+--------+---------+
        | 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 | web-1 | active   | -    | running | net0=10.0.0.5 | hv1  |    1 |    256 |       2 |
        | 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11 | web-1 | building | -    | running | -             | -    |    1 |    256 |       2 |
        +--------------------------------------+-------+----------+------+---------+---------------+------+------+--------+---------+
        "#);
    }

    #[test]
    fn an_instance_is_shown_whole() {
        insta::assert_snapshot!(show(&instance(), Width::Unlimited), @r#"
        +---------------+-------------------------------------------------------------------------------+
        | Field         | Value                                                                         |
        +---------------+-------------------------------------------------------------------------------+
        | ID            | 0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11                                          |
        | Name          | web-1                                                                         |
        | Project       | lab                                                                           |
        | State         | active                                                                        |
        | Task          | -                                                                             |
        | Progress      | -                                                                             |
        | Power         | running                                                                       |
        | Wanted power  | running                                                                       |
        | Fault         | -                                                                             |
        | Fault message | -                                                                             |
        | Host          | hv1                                                                           |
        | Host ID       | 0191e7a0-0000-7000-8000-000000000001                                          |
        | vCPU          | 1                                                                             |
        | RAM MB        | 256                                                                           |
        | Disk GB       | 2                                                                             |
        | Image         | file:///srv/guest.qcow2                                                       |
        | Image sha256  | aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa              |
        | Image format  | qcow2                                                                         |
        | On crash      | restart                                                                       |
        | Port          | net0=10.0.0.5, MAC 52:54:00:12:34:56, id 0191e7a0-0000-7000-8000-000000000002 |
        | Generation    | 1, confirmed by the host: 1                                                   |
        | Created       | 2026-01-02T03:04:05+00:00                                                     |
        | Updated       | 2026-01-02T03:04:15+00:00                                                     |
        +---------------+-------------------------------------------------------------------------------+
        "#);
    }

    #[test]
    fn what_waits_of_a_size_is_said_with_how_it_comes() {
        let view: InstanceView = InstanceView {
            running: serde_json::from_value(serde_json::json!({
                "vcpus": 1, "vcpus_max": 8, "memory_mb": 256, "memory_mb_max": 256, "memory_step_mb": 128,
            }))
            .unwrap(),
            pending: vec![
                PendingSize {
                    part: SizePart::Vcpus,
                    running: 1,
                    wanted: 4,
                    takes_effect: TakesEffect::Live,
                },
                PendingSize {
                    part: SizePart::MemoryMb,
                    running: 256,
                    wanted: 512,
                    takes_effect: TakesEffect::NextStart,
                },
            ],
            ..instance()
        };
        let id = view.id;
        let expected = format!(
            "instance web-1 ({id}): active on hv1\n\
             vCPUs: 4 wanted, 1 now; the guest gets them while it runs\n\
             MB of memory: 512 wanted, 256 now; takes effect when berth powers it on the next time (reboot, or stop and \
             start)\n"
        );
        assert_eq!(outcome(&view), expected);
        let shown = show(&view, Width::Unlimited);
        for line in [
            "1 vCPU (at most 8 vCPU), 256 MB (at most 256 MB)",
            "vCPUs: 4 wanted, 1 now",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
    }

    #[test]
    fn an_instance_is_shown_with_its_volumes() {
        let volumes = serde_json::from_value(serde_json::json!([{
            "id": "0191e7a0-0000-7000-8000-000000000008",
            "name": "data",
            "device": "/dev/sdb",
            "access": "read_only",
            "disk_bus": "scsi",
        }]));
        let view = InstanceView {
            volumes: volumes.unwrap(),
            ..instance()
        };
        let text = show(&view, Width::Unlimited);
        let line = "data=/dev/sdb, read_only, scsi, id 0191e7a0-0000-7000-8000-000000000008";
        let shown = text.lines().find(|shown| shown.starts_with("| Volume"));
        assert!(shown.unwrap().contains(line), "{text}");
    }

    #[test]
    fn an_instance_that_boots_from_a_volume_shows_which_and_no_disk_of_its_own() {
        let id = "0191e7a0-0000-7000-8000-000000000008".parse().unwrap();
        let mut view = InstanceView {
            image: None,
            root_volume: Some(RootVolume {
                id,
                delete_on_termination: false,
            }),
            ..instance()
        };
        let text = show(&view, Width::Unlimited);
        assert!(!text.contains("Image"), "{text}");
        assert!(text.contains("the flavor's disk is not used"), "{text}");
        let line = format!("volume {id}, which stays when it is deleted");
        assert!(text.contains(&line), "{text}");
        view.root_volume = Some(RootVolume {
            id,
            delete_on_termination: true,
        });
        view.volumes = vec![AttachedVolume {
            id,
            name: "root".parse().unwrap(),
            device: "/dev/vda".to_owned(),
            access: berth_common::document::VolumeAccess::ReadWrite,
            disk_bus: berth_common::document::DiskBus::Virtio,
        }];
        let text = show(&view, Width::Unlimited);
        assert!(
            text.contains("volume root, which is deleted with it"),
            "{text}"
        );
    }

    #[test]
    fn a_fault_is_shown_in_full() {
        let message = "x".repeat(500);
        let fault = Fault {
            code: FaultCode::NoValidHost,
            message: message.clone(),
        };
        let text = show(
            &InstanceView {
                fault: Some(fault),
                ..instance()
            },
            Width::Unlimited,
        );
        assert!(
            text.contains("no_valid_host") && text.contains(&message),
            "{text}"
        );
        let why = format!("| `berthctl explain {}` tells", instance().id);
        assert!(text.contains(&why), "{text}");
    }
}
