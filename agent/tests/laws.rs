//! The law of all operations on a real host: whatever step of whatever operation the agent or libvirtd dies in or after,
//! each operation ends as its documents say, a guest that should have stayed on did, and nothing is left at the end.
//!
//! One table of operations, real libvirt, real QEMU, real files; inbox, journal and engine as they are, over a broker in
//! memory. `engine/law.rs` runs thousands of such schedules over fake hosts, with every step; here every kind of step that an operation
//! has meets every kind of death once.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "in a test, a panic is a failed assertion; this one prints what it met"
)]

#[path = "laws/deadly.rs"]
mod deadly;
#[path = "laws/lab.rs"]
mod lab;
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod support;

use std::fs;

use berth_common::{
    document::DesiredPower,
    message::report::PowerState,
    units::{ByteCount, DiskGb, MemoryMb, Vcpus},
};

use self::{
    deadly::Death,
    lab::{Lab, Snapshots, Wish},
    support::wait_for,
};

/// What becomes of the guest's QEMU in an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// It stays on: the same process before and after.
    StaysOn,
    /// It ends, or another one begins.
    Changes,
}

/// One operation: what is wished, and how the host must look once it is done.
struct Operation {
    name: &'static str,
    change: fn(&mut Wish),
    guest: Guest,
    check: fn(&Lab),
}

const OPERATIONS: [Operation; 30] = [
    Operation {
        name: "create",
        change: |wish| wish.create(),
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            assert_eq!(lab.virtual_size(&lab.volume_path()), gb(1));
            // Something that copies must have, all of it.
            lab.write_pattern(&lab.volume_path());
        },
    },
    Operation {
        name: "attach",
        change: |wish| wish.attach(),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.block_devices().len(), 2, "{:?}", lab.block_devices()),
    },
    Operation {
        name: "attach a port",
        change: |wish| wish.attach_port(),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.nics().len(), 1, "{:?}", lab.nics()),
    },
    Operation {
        name: "pull its cable",
        change: |wish| wish.pull_cable(),
        guest: Guest::StaysOn,
        check: |lab| {
            let xml = lab.virsh(&["dumpxml", &lab.domain()]);
            assert!(xml.contains("<link state='down'/>"), "{xml}");
        },
    },
    Operation {
        name: "grow the volume under the guest",
        change: |wish| wish.volume_gb = 2,
        guest: Guest::StaysOn,
        check: |lab| {
            let info = lab.virsh(&["domblkinfo", &lab.domain(), "vdb"]);
            assert!(info.contains(&gb(2).get().to_string()), "{info}");
        },
    },
    Operation {
        name: "snapshot under the guest",
        change: |wish| wish.snapshots = Snapshots::One,
        guest: Guest::StaysOn,
        check: |lab| {
            assert_eq!(lab.virtual_size(&lab.snapshot_path()), gb(2));
            lab.assert_same(&lab.snapshot_path(), &lab.volume_path());
        },
    },
    Operation {
        name: "pause",
        change: |wish| wish.power(DesiredPower::Paused),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.power_state(), Some(PowerState::Paused)),
    },
    Operation {
        name: "unpause",
        change: |wish| wish.power(DesiredPower::Running),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.power_state(), Some(PowerState::Running)),
    },
    Operation {
        name: "suspend",
        change: |wish| wish.power(DesiredPower::Suspended),
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.qemu_pid(), None);
            assert_eq!(lab.saved_memories(), 1);
        },
    },
    Operation {
        name: "resume",
        change: |wish| wish.power(DesiredPower::Running),
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            // libvirt removes it when it is done, and may be doing that for an agent that died meanwhile.
            wait_for("the saved memory to go", || match lab.saved_memories() {
                0 => Ok(()),
                left => Err(format!(
                    "{left} files, {}",
                    lab.virsh(&["domstate", "--reason", &lab.domain()])
                )),
            });
        },
    },
    Operation {
        name: "detach",
        change: |wish| wish.detach(),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.block_devices().len(), 1, "{:?}", lab.block_devices()),
    },
    Operation {
        name: "detach the port",
        change: |wish| wish.detach_port(),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.nics(), [""; 0]),
    },
    Operation {
        name: "delete the snapshot",
        change: |wish| wish.snapshots = Snapshots::Gone,
        guest: Guest::StaysOn,
        check: |lab| assert!(!lab.snapshot_path().exists()),
    },
    Operation {
        name: "hard reboot, without a config drive",
        change: |wish| {
            wish.spec_mut().config_drive = None;
            wish.reboot();
        },
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            let xml = lab.virsh(&["dumpxml", &lab.domain()]);
            assert!(!xml.contains("virtio-scsi"), "{xml}");
        },
    },
    Operation {
        name: "attach on scsi",
        change: |wish| wish.attach_on_scsi(),
        guest: Guest::StaysOn,
        check: |lab| {
            let disks = lab.block_devices();
            assert_eq!(disks.len(), 2, "{disks:?}");
            assert!(disks[1].trim().starts_with("sdb "), "{disks:?}");
            let xml = lab.virsh(&["dumpxml", &lab.domain()]);
            assert_eq!(xml.matches("model='virtio-scsi'").count(), 1, "{xml}");
        },
    },
    Operation {
        name: "grow the volume on scsi",
        change: |wish| wish.volume_gb = 3,
        guest: Guest::StaysOn,
        check: |lab| {
            let info = lab.virsh(&["domblkinfo", &lab.domain(), "sdb"]);
            assert!(info.contains(&gb(3).get().to_string()), "{info}");
        },
    },
    Operation {
        name: "detach from scsi",
        change: |wish| {
            wish.detach();
            wish.spec_mut().config_drive = Some(Default::default());
        },
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.block_devices().len(), 1, "{:?}", lab.block_devices()),
    },
    Operation {
        name: "rescue",
        change: |wish| wish.rescue(),
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            assert_eq!(lab.instance_files("rescue").len(), 1);
            let first = lab.block_devices().swap_remove(0);
            assert!(first.contains("rescue"), "{first}");
        },
    },
    Operation {
        name: "unrescue",
        change: |wish| wish.spec_mut().rescue = None,
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            assert_eq!(lab.instance_files("rescue").len(), 0);
        },
    },
    Operation {
        name: "rebuild",
        change: |wish| wish.rebuild(),
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            assert_eq!(lab.virtual_size(&lab.root_disk()), gb(1));
            assert_eq!(lab.instance_files("disk0-1-"), [lab.root_disk()]);
        },
    },
    Operation {
        name: "stop",
        change: |wish| wish.power(DesiredPower::Stopped),
        guest: Guest::Changes,
        check: |lab| {
            // Of a guest that libvirtd was switching off when it died, the next one says that it crashed.
            let power_state = lab.power_state();
            let is_off = matches!(
                power_state,
                Some(PowerState::Shutdown | PowerState::Crashed)
            );
            assert!(is_off, "{power_state:?}");
            assert_eq!(lab.qemu_pid(), None);
        },
    },
    Operation {
        name: "grow the volume that nobody has",
        change: |wish| wish.volume_gb = 4,
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.virtual_size(&lab.volume_path()), gb(4)),
    },
    Operation {
        name: "attach to one that is off",
        change: |wish| wish.attach(),
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.block_devices().len(), 2, "{:?}", lab.block_devices()),
    },
    Operation {
        name: "resize",
        change: |wish| {
            wish.spec_mut().flavor.vcpus = Vcpus::clamped(2);
            // With room for more: smaller guests have none.
            wish.spec_mut().flavor.memory_mb = MemoryMb::clamped(1024);
            wish.spec_mut().flavor.disk_gb = DiskGb::clamped(2);
            for disk in &mut wish.spec_mut().disks {
                disk.size_gb = DiskGb::clamped(2);
            }
        },
        guest: Guest::StaysOn,
        check: |lab| assert_eq!(lab.virtual_size(&lab.root_disk()), gb(2)),
    },
    Operation {
        name: "start",
        change: |wish| wish.power(DesiredPower::Running),
        guest: Guest::Changes,
        check: |lab| {
            assert_eq!(lab.power_state(), Some(PowerState::Running));
            assert_size(lab, 2, 1024);
        },
    },
    Operation {
        name: "resize under the guest",
        change: |wish| {
            wish.spec_mut().flavor.vcpus = Vcpus::clamped(4);
            wish.spec_mut().flavor.memory_mb = MemoryMb::clamped(1152);
        },
        guest: Guest::StaysOn,
        check: |lab| {
            assert_size(lab, 4, 1152);
            assert_eq!(pieces(lab), 1);
        },
    },
    Operation {
        name: "suspend with what it was given",
        change: |wish| wish.power(DesiredPower::Suspended),
        guest: Guest::Changes,
        check: |lab| assert_eq!(lab.saved_memories(), 1),
    },
    Operation {
        name: "resume with what it was given",
        change: |wish| wish.power(DesiredPower::Running),
        guest: Guest::Changes,
        check: |lab| {
            assert_size(lab, 4, 1152);
            assert_eq!(pieces(lab), 1);
            wait_for("the saved memory to go", || match lab.saved_memories() {
                0 => Ok(()),
                left => Err(format!(
                    "{left} files, {}",
                    lab.virsh(&["domstate", "--reason", &lab.domain()])
                )),
            });
        },
    },
    Operation {
        name: "hard reboot of the larger one",
        change: |wish| wish.reboot(),
        guest: Guest::Changes,
        check: |lab| {
            assert_size(lab, 4, 1152);
            assert_eq!(pieces(lab), 0);
        },
    },
    Operation {
        name: "delete",
        change: |wish| wish.delete(),
        guest: Guest::Changes,
        check: |lab| assert_eq!(lab.power_state(), Some(PowerState::Nostate)),
    },
];

/// What the guest that is on has, by libvirt's word.
fn assert_size(lab: &Lab, vcpus: u64, memory_mb: u64) {
    let info = lab.virsh(&["dominfo", &lab.domain()]);
    let has = |line: &str, value: u64| {
        let mut lines = info.lines().filter(|it| it.starts_with(line));
        lines.any(|it| it.split_whitespace().any(|word| word == value.to_string()))
    };
    assert!(has("CPU(s):", vcpus), "{info}");
    assert!(has("Max memory:", memory_mb * 1024), "{info}");
}

/// How many pieces of memory it was given while it was on.
fn pieces(lab: &Lab) -> usize {
    let xml = lab.virsh(&["dumpxml", &lab.domain()]);
    xml.matches("<memory model=").count()
}

fn gb(size: u64) -> ByteCount {
    ByteCount::from_gb(DiskGb::clamped(size))
}

/// Goes through the table on a host of its own, with this death at every step.
async fn law(death: Death) {
    let mut lab = Lab::new(death).await;
    for operation in &OPERATIONS {
        println!("{death:?}: {}", operation.name);
        lab.trap.begin(operation.name);
        let before = lab.qemu_pid();
        let generations = lab.wish_anew(operation.change);
        lab.converge(operation.name, &generations).await;
        let after = lab.qemu_pid();
        match operation.guest {
            Guest::StaysOn => assert_eq!(before, after, "{}: {death:?}", operation.name),
            Guest::Changes => assert_ne!(before, after, "{}: {death:?}", operation.name),
        }
        (operation.check)(&lab);
    }
    lab.kill().await;
    assert_eq!(lab.virsh(&["list", "--all", "--name"]).trim(), "");
    assert_eq!(lab.qemu_pid(), None);
    assert_eq!(lab.saved_memories(), 0);
    let left: Vec<_> = lab
        .files()
        .into_iter()
        .filter(|file| !file.starts_with("images/"))
        .collect();
    assert_eq!(left, [""; 0]);
    let images = fs::read_dir(lab.paths().images).unwrap().count();
    assert_eq!(images, 1, "the image, whole, and no part of one");
    let met = lab.trap.met();
    println!("{death:?} met {} steps: {met:?}", met.len());
    // A pass that panics is only one that failed: the deaths have to be counted.
    match death {
        // Two steps may end with one death.
        Death::AgentAfter | Death::AgentWithin => assert!(lab.kills >= 20, "{}", lab.kills),
        Death::LibvirtdBefore | Death::LibvirtdWithin => {
            assert_eq!(lab.trap.restarts().await, met.len());
        }
    }
    // Every operation has at least one step, and some have many.
    for operation in &OPERATIONS {
        let step = met.iter().any(|(name, _)| *name == operation.name);
        assert!(step, "{}: nothing was disturbed", operation.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_dies_after_each_step() {
    law(Death::AgentAfter).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_dies_in_each_step() {
    law(Death::AgentWithin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libvirtd_dies_before_each_step() {
    law(Death::LibvirtdBefore).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libvirtd_dies_in_each_step() {
    law(Death::LibvirtdWithin).await;
}
