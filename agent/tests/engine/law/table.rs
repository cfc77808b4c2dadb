//! All operations of compute and storage on one host: what they begin with, what is wished, and what becomes of the guest.

use berth_agent::act::fake::FakeHost;
use berth_common::document::{DesiredPower, DiskBus, RebootKind};

use super::world::{
    Becomes::{self, *},
    Label,
    Store::{self, *},
    World,
};

/// One operation. How the host must be at its end follows from what is wished.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    /// Operations that lead to where it begins.
    pub(super) after: &'static [&'static str],
    /// Where it can begin.
    pub(super) when: fn(&World) -> bool,
    /// What the host sees before.
    pub(super) event: Option<fn(&FakeHost, &World)>,
    /// What is wished, one after the other; the last one is what must come of it.
    pub(super) wishes: &'static [fn(&mut World)],
    /// What becomes of the guest.
    pub(super) guest: Becomes,
    /// Whether its guest is off by itself at the beginning, though it shall run.
    pub(super) left_off: bool,
    /// How volumes are stored where each of its steps is disturbed: ways that differ in it.
    pub(super) stores: &'static [Store],
}

/// What has no volume.
const ONE: &[Store] = &[Qcow2];
/// A file and a block device.
const TWO: &[Store] = &[Qcow2, Lvm];
/// Where snapshots are made in different ways.
const FOUR: &[Store] = &[Qcow2, Dir, Lvm, Thin];
const ALL: &[Store] = &[Qcow2, Raw, Dir, Lvm, Thin];

/// Volumes: one with data, another one, one to boot from, a copy.
const DATA: Label = "data";
const OTHER: Label = "other";
const ROOT: Label = "root";
const COPY: Label = "copy";
/// A snapshot.
const MONDAY: Label = "monday";

/// What an operation says unless it says something else.
const PLAIN: Operation = Operation {
    name: "",
    after: &[],
    when: |_| true,
    event: None,
    wishes: &[],
    guest: AsItWas,
    left_off: false,
    stores: ONE,
};

impl Operation {
    /// Whether it can begin here.
    pub(super) fn can_begin(&self, world: &World) -> bool {
        self.left_off == world.is_left_off() && (self.when)(world)
    }
}

/// A guest that is on and can be told anything.
fn is_plain(world: &World) -> bool {
    world.runs() && !world.is_rescued()
}

/// Whether something can be attached as `vdb` or later.
fn may_attach(world: &World, label: Label) -> bool {
    world.has_volume(label) && !world.is_attached(label) && !world.is_rescued()
}

fn is_free(world: &World, label: Label) -> bool {
    world.has_volume(label) && !world.is_attached(label)
}

/// Whether the guest has a volume, and is on.
fn is_live(world: &World, label: Label) -> bool {
    world.is_attached(label) && is_plain(world)
}

pub(super) const OPERATIONS: &[Operation] = &[
    // ---- A network ----
    Operation {
        name: "make the network",
        when: |world| !world.has_network(),
        wishes: &[World::make_network],
        ..PLAIN
    },
    Operation {
        name: "remove the network",
        after: &["make the network"],
        when: |world| world.has_network() && !world.exists(),
        wishes: &[World::remove_network],
        ..PLAIN
    },
    // ---- Instances come ----
    Operation {
        name: "create",
        when: |world| !world.exists(),
        wishes: &[|world| {
            world.make_network();
            world.create();
        }],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "create switched off",
        after: &["make the network"],
        when: |world| !world.exists(),
        wishes: &[|world| {
            world.make_network();
            world.create();
            world.set_power(DesiredPower::Stopped);
        }],
        ..PLAIN
    },
    Operation {
        name: "create paused, with a config drive",
        after: &["make the network"],
        when: |world| !world.exists(),
        wishes: &[|world| {
            world.make_network();
            world.create();
            world.give_config_drive();
            world.set_power(DesiredPower::Paused);
        }],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "create with two ports, limited and filtered",
        after: &["make the network"],
        when: |world| !world.exists(),
        wishes: &[|world| {
            world.make_network();
            world.create();
            world.add_port();
            world.limit(true);
            world.secure(true);
        }],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "create, and wish it off before it is there",
        when: |world| !world.exists() && !world.has_network(),
        wishes: &[World::create, |world| {
            world.make_network();
            world.set_power(DesiredPower::Stopped);
        }],
        ..PLAIN
    },
    Operation {
        name: "create from a volume, with another one",
        after: &["make the network"],
        when: |world| !world.exists() && !world.has_volume(ROOT) && !world.has_volume(DATA),
        wishes: &[|world| {
            world.make_network();
            world.make_from_image(ROOT);
            world.make_volume(DATA);
            world.create_from(ROOT);
            world.attach(DATA, DiskBus::Virtio);
        }],
        guest: Started,
        stores: TWO,
        ..PLAIN
    },
    // ---- Instances go ----
    Operation {
        name: "delete",
        after: &["create"],
        when: World::runs,
        wishes: &[World::delete],
        guest: Gone,
        ..PLAIN
    },
    Operation {
        name: "delete one that is off, and its network",
        after: &["create", "stop"],
        when: World::is_off,
        wishes: &[|world| {
            world.delete();
            world.remove_network();
        }],
        guest: Gone,
        ..PLAIN
    },
    Operation {
        name: "delete one that is paused",
        after: &["create", "pause"],
        when: World::is_paused,
        wishes: &[World::delete],
        guest: Gone,
        ..PLAIN
    },
    Operation {
        name: "delete one that sleeps",
        after: &["create", "suspend"],
        when: World::is_asleep,
        wishes: &[World::delete],
        guest: Gone,
        ..PLAIN
    },
    Operation {
        name: "delete one that is rescued",
        after: &["create", "rescue"],
        when: World::is_rescued,
        wishes: &[World::delete],
        guest: Gone,
        ..PLAIN
    },
    Operation {
        name: "delete one that boots from a volume, which stays",
        after: &["make the network", "create from a volume, with another one"],
        when: |world| world.boots_from_volume() && world.exists(),
        wishes: &[World::delete],
        guest: Gone,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "delete everything",
        after: &[
            "make the network",
            "create with two ports, limited and filtered",
            "make a volume",
            "attach",
            "snapshot under the guest",
        ],
        when: |world| world.runs() && world.is_attached(DATA) && world.has_snapshot(MONDAY),
        wishes: &[World::delete_everything],
        guest: Gone,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "create from a volume that another one left",
        after: &[
            "make the network",
            "create from a volume, with another one",
            "delete one that boots from a volume, which stays",
        ],
        when: |world| !world.exists() && world.has_volume(ROOT),
        wishes: &[|world| {
            world.make_network();
            world.create_from(ROOT);
        }],
        guest: Started,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "create, and delete it before it is there",
        when: |world| !world.exists() && !world.has_network(),
        wishes: &[World::create, World::delete],
        ..PLAIN
    },
    // ---- Off and on ----
    Operation {
        name: "stop",
        after: &["create"],
        when: World::runs,
        wishes: &[|world| world.set_power(DesiredPower::Stopped)],
        guest: Off,
        ..PLAIN
    },
    Operation {
        name: "stop one that is paused",
        after: &["create", "pause"],
        when: World::is_paused,
        wishes: &[|world| world.set_power(DesiredPower::Stopped)],
        guest: Off,
        ..PLAIN
    },
    Operation {
        name: "stop one that sleeps",
        after: &["create", "suspend"],
        when: World::is_asleep,
        wishes: &[|world| world.set_power(DesiredPower::Stopped)],
        guest: AwakeAndOff,
        ..PLAIN
    },
    Operation {
        name: "start",
        after: &["create", "stop"],
        when: World::is_off,
        wishes: &[|world| world.set_power(DesiredPower::Running)],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "start one that powered itself off",
        after: &["create"],
        when: World::runs,
        event: Some(|host, world| host.guest_powers_off(world.instance)),
        wishes: &[World::start_anew],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "let a crash be the end",
        after: &["create"],
        when: World::runs,
        wishes: &[World::stay_off_after_crash],
        ..PLAIN
    },
    Operation {
        name: "start one that crashed and stayed off",
        after: &["create", "let a crash be the end"],
        when: World::runs,
        event: Some(|host, world| host.guest_crashes(world.instance)),
        wishes: &[World::start_anew],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "the guest powers itself off",
        after: &["create"],
        when: World::runs,
        event: Some(|host, world| {
            host.guest_powers_off(world.instance);
            host.tell_news();
        }),
        guest: Off,
        ..PLAIN
    },
    Operation {
        name: "the guest crashes, and stays off",
        after: &["create", "let a crash be the end"],
        when: |world| world.runs() && world.stays_off_after_crash(),
        event: Some(|host, world| {
            host.guest_crashes(world.instance);
            host.tell_news();
        }),
        guest: Off,
        ..PLAIN
    },
    // Something is wished, so that there is something to disturb.
    Operation {
        name: "libvirtd ends after its guest powered itself off",
        after: &["create", "the guest powers itself off"],
        when: |world| !world.has_volume(DATA),
        event: Some(|host, _| {
            host.restart_libvirt();
            host.tell_news();
        }),
        wishes: &[|world| world.make_volume(DATA)],
        left_off: true,
        ..PLAIN
    },
    Operation {
        name: "libvirtd ends after its guest crashed",
        after: &[
            "create",
            "let a crash be the end",
            "the guest crashes, and stays off",
        ],
        when: |world| !world.has_volume(DATA),
        event: Some(|host, _| {
            host.restart_libvirt();
            host.tell_news();
        }),
        wishes: &[|world| world.make_volume(DATA)],
        left_off: true,
        ..PLAIN
    },
    Operation {
        name: "start one that is off by itself, also for a libvirtd that does not know it",
        after: &["create", "the guest powers itself off"],
        event: Some(|host, _| host.restart_libvirt()),
        wishes: &[World::start_anew],
        guest: Started,
        left_off: true,
        ..PLAIN
    },
    Operation {
        name: "soft reboot",
        after: &["create"],
        when: World::runs,
        wishes: &[|world| world.reboot(RebootKind::Soft)],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "hard reboot",
        after: &["create"],
        when: World::runs,
        wishes: &[|world| world.reboot(RebootKind::Hard)],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "reboot of one that is off",
        after: &["create", "stop"],
        when: World::is_off,
        wishes: &[|world| world.reboot(RebootKind::Soft)],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "soft reboot of one that is paused",
        after: &["create", "pause"],
        when: World::is_paused,
        wishes: &[|world| world.reboot(RebootKind::Soft)],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "hard reboot of one that is paused",
        after: &["create", "pause"],
        when: World::is_paused,
        wishes: &[|world| world.reboot(RebootKind::Hard)],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "hard reboot of one that sleeps",
        after: &["create", "suspend"],
        when: World::is_asleep,
        wishes: &[|world| world.reboot(RebootKind::Hard)],
        guest: Started,
        ..PLAIN
    },
    // ---- Standing still ----
    Operation {
        name: "pause",
        after: &["create"],
        when: World::runs,
        wishes: &[|world| world.set_power(DesiredPower::Paused)],
        ..PLAIN
    },
    Operation {
        name: "unpause",
        after: &["create", "pause"],
        when: World::is_paused,
        wishes: &[|world| world.set_power(DesiredPower::Running)],
        ..PLAIN
    },
    Operation {
        name: "suspend",
        after: &["create"],
        when: World::runs,
        wishes: &[|world| world.set_power(DesiredPower::Suspended)],
        guest: Asleep,
        ..PLAIN
    },
    Operation {
        name: "suspend one that is paused",
        after: &["create", "pause"],
        when: World::is_paused,
        wishes: &[|world| world.set_power(DesiredPower::Suspended)],
        guest: Asleep,
        ..PLAIN
    },
    Operation {
        name: "resume",
        after: &["create", "suspend"],
        when: World::is_asleep,
        wishes: &[|world| world.set_power(DesiredPower::Running)],
        guest: Awake,
        ..PLAIN
    },
    Operation {
        name: "resume, and pause at once",
        after: &["create", "suspend"],
        when: World::is_asleep,
        wishes: &[|world| world.set_power(DesiredPower::Paused)],
        guest: Awake,
        ..PLAIN
    },
    // ---- Other disks to boot from ----
    Operation {
        name: "rescue",
        after: &["create"],
        when: is_plain,
        wishes: &[World::rescue],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "unrescue",
        after: &["create", "rescue"],
        when: |world| world.runs() && world.is_rescued(),
        wishes: &[World::unrescue],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "rescue one that is off",
        after: &["create", "stop"],
        when: |world| world.is_off() && !world.is_rescued(),
        wishes: &[|world| {
            world.rescue();
            world.set_power(DesiredPower::Running);
        }],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "rescue one that boots from a volume",
        after: &["make the network", "create from a volume, with another one"],
        when: |world| is_plain(world) && world.boots_from_volume(),
        wishes: &[World::rescue],
        guest: Started,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "unrescue one that boots from a volume",
        after: &[
            "make the network",
            "create from a volume, with another one",
            "rescue one that boots from a volume",
        ],
        when: |world| world.runs() && world.is_rescued() && world.boots_from_volume(),
        wishes: &[World::unrescue],
        guest: Started,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "rebuild",
        after: &["create"],
        when: |world| is_plain(world) && !world.boots_from_volume(),
        wishes: &[World::rebuild],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "rebuild with a config drive",
        after: &[
            "make the network",
            "create paused, with a config drive",
            "unpause",
            "rebuild",
        ],
        when: |world| is_plain(world) && !world.boots_from_volume() && world.has_config_drive(),
        wishes: &[World::rebuild],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "rebuild one that is off",
        after: &["create", "stop"],
        when: |world| world.is_off() && !world.is_rescued() && !world.boots_from_volume(),
        wishes: &[World::rebuild],
        ..PLAIN
    },
    Operation {
        name: "unrescue and rebuild at once",
        after: &["create", "rescue"],
        when: |world| world.runs() && world.is_rescued() && !world.boots_from_volume(),
        wishes: &[|world| {
            world.unrescue();
            world.rebuild();
        }],
        guest: Started,
        ..PLAIN
    },
    Operation {
        name: "rebuild twice",
        after: &["create", "stop"],
        when: |world| world.is_off() && !world.is_rescued() && !world.boots_from_volume(),
        wishes: &[World::rebuild, World::rebuild],
        ..PLAIN
    },
    // ---- Other sizes, names and facts ----
    Operation {
        name: "resize one that is off",
        after: &["create", "stop"],
        when: |world| world.is_off() && !world.is_rescued() && !world.boots_from_volume(),
        wishes: &[|world| {
            world.resize(4, 2048);
            world.grow_own_disk();
        }],
        ..PLAIN
    },
    Operation {
        name: "resize under the guest",
        after: &["create"],
        when: |world| is_plain(world) && world.vcpus() == 1,
        wishes: &[|world| world.resize(4, 2048)],
        ..PLAIN
    },
    Operation {
        name: "make smaller, for the next start",
        after: &["create", "resize under the guest"],
        when: |world| is_plain(world) && world.vcpus() == 4,
        wishes: &[|world| world.resize(1, 1024)],
        ..PLAIN
    },
    Operation {
        name: "grow its own disk under the guest",
        after: &["create"],
        when: |world| is_plain(world) && !world.boots_from_volume(),
        wishes: &[World::grow_own_disk],
        ..PLAIN
    },
    Operation {
        name: "rename",
        after: &["create"],
        when: |world| world.exists() && !world.is_rescued(),
        wishes: &[World::rename],
        ..PLAIN
    },
    Operation {
        name: "tell the guest something else",
        after: &["create"],
        when: |world| is_plain(world) && world.ports() > 0,
        wishes: &[World::tell_guest],
        ..PLAIN
    },
    Operation {
        name: "give it a config drive, for the next start",
        after: &["create"],
        when: |world| is_plain(world) && !world.has_config_drive(),
        wishes: &[World::give_config_drive],
        ..PLAIN
    },
    Operation {
        name: "hard reboot into a config drive",
        after: &["create"],
        when: |world| is_plain(world) && !world.has_config_drive(),
        wishes: &[|world| {
            world.give_config_drive();
            world.reboot(RebootKind::Hard);
        }],
        guest: Started,
        ..PLAIN
    },
    // ---- Ports ----
    Operation {
        name: "attach a port",
        after: &["create"],
        when: |world| (world.runs() || world.is_paused()) && world.ports() < 4,
        wishes: &[World::add_port],
        ..PLAIN
    },
    Operation {
        name: "detach a port",
        after: &["create", "attach a port"],
        when: |world| world.runs() && world.ports() > 0,
        wishes: &[World::remove_port],
        ..PLAIN
    },
    Operation {
        name: "detach all ports",
        after: &["create", "attach a port"],
        when: |world| world.runs() && world.ports() > 0,
        wishes: &[World::remove_ports],
        ..PLAIN
    },
    Operation {
        name: "attach two ports at once, one without a cable",
        after: &["create"],
        when: |world| world.runs() && world.ports() < 3,
        wishes: &[|world| {
            world.add_port();
            world.add_port();
            world.turn_cable();
        }],
        ..PLAIN
    },
    Operation {
        name: "detach the first port, pull the cable of the other",
        after: &["create", "attach a port"],
        when: |world| world.runs() && world.ports() > 1,
        wishes: &[|world| {
            world.remove_first_port();
            world.turn_cable();
        }],
        ..PLAIN
    },
    Operation {
        name: "one port instead of another",
        after: &["create"],
        when: |world| world.runs() && world.ports() > 0,
        wishes: &[|world| {
            world.remove_port();
            world.add_port();
        }],
        ..PLAIN
    },
    Operation {
        name: "the same port with another address",
        after: &["create"],
        when: |world| world.runs() && world.ports() > 0,
        wishes: &[World::readdress_port],
        ..PLAIN
    },
    Operation {
        name: "pull a cable",
        after: &["create"],
        when: |world| (world.runs() || world.is_paused()) && world.ports() > 0,
        wishes: &[World::turn_cable],
        ..PLAIN
    },
    Operation {
        name: "plug it in again",
        after: &["create", "pull a cable"],
        when: |world| world.runs() && world.ports() > 0,
        wishes: &[World::turn_cable],
        ..PLAIN
    },
    Operation {
        name: "attach a port to one that is off",
        after: &["create", "stop"],
        when: |world| world.is_off() && world.ports() < 4,
        wishes: &[World::add_port],
        ..PLAIN
    },
    Operation {
        name: "attach a port to one that sleeps, and resume",
        after: &["create", "suspend"],
        when: |world| world.is_asleep() && world.ports() < 4,
        wishes: &[World::add_port, |world| {
            world.set_power(DesiredPower::Running)
        }],
        guest: Awake,
        ..PLAIN
    },
    Operation {
        name: "limit a port",
        after: &["create"],
        when: |world| world.runs() && world.ports() > 0 && !world.is_limited(),
        wishes: &[|world| world.limit(true)],
        ..PLAIN
    },
    Operation {
        name: "limit it no longer",
        after: &[
            "make the network",
            "create with two ports, limited and filtered",
        ],
        when: |world| world.runs() && world.is_limited(),
        wishes: &[|world| world.limit(false)],
        ..PLAIN
    },
    Operation {
        name: "filter ports",
        after: &["create"],
        when: |world| world.runs() && world.ports() > 0 && !world.is_secured(),
        wishes: &[|world| world.secure(true)],
        ..PLAIN
    },
    Operation {
        name: "filter them no longer",
        after: &[
            "make the network",
            "create with two ports, limited and filtered",
        ],
        when: |world| world.runs() && world.is_secured(),
        wishes: &[|world| world.secure(false)],
        ..PLAIN
    },
    // ---- Volumes ----
    Operation {
        name: "make a volume",
        when: |world| !world.has_volume(DATA),
        wishes: &[|world| world.make_volume(DATA)],
        stores: ALL,
        ..PLAIN
    },
    Operation {
        name: "make another volume, of an image",
        when: |world| !world.has_volume(OTHER),
        wishes: &[|world| world.make_from_image(OTHER)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "copy a volume",
        after: &["make a volume"],
        when: |world| is_free(world, DATA) && !world.has_volume(COPY),
        wishes: &[|world| world.copy_volume(DATA, COPY)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "make a volume and its copy",
        when: |world| !world.has_volume(DATA) && !world.has_volume(COPY),
        wishes: &[|world| {
            world.make_from_image(DATA);
            world.copy_volume(DATA, COPY);
        }],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "make a volume of a snapshot",
        after: &["make a volume", "snapshot"],
        when: |world| world.has_snapshot(MONDAY) && !world.has_volume(COPY),
        wishes: &[|world| world.copy_snapshot(MONDAY, COPY)],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "make a volume, its snapshot and a copy of that",
        when: |world| {
            !world.has_volume(DATA) && !world.has_volume(COPY) && !world.has_snapshot(MONDAY)
        },
        wishes: &[|world| {
            world.make_volume(DATA);
            world.take_snapshot(DATA, MONDAY);
            world.copy_snapshot(MONDAY, COPY);
        }],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "grow",
        after: &["make a volume"],
        when: |world| is_free(world, DATA) && world.size(DATA) < 9,
        wishes: &[|world| world.grow(DATA)],
        stores: ALL,
        ..PLAIN
    },
    Operation {
        name: "grow under the guest",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA) && world.size(DATA) < 9,
        wishes: &[|world| world.grow(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "grow on scsi under the guest",
        after: &["create", "make a volume", "attach on scsi"],
        when: |world| is_live(world, DATA) && world.bus(DATA) == Some(DiskBus::Scsi),
        wishes: &[|world| world.grow(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "grow the volume of a guest that is off",
        after: &["create", "make a volume", "attach", "stop"],
        when: |world| world.is_off() && world.is_attached(DATA) && world.size(DATA) < 9,
        wishes: &[|world| world.grow(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "grow the volume of a guest that sleeps, and resume",
        after: &["create", "make a volume", "attach", "suspend"],
        when: |world| world.is_asleep() && world.is_attached(DATA) && !world.is_rescued(),
        wishes: &[
            |world| world.grow(DATA),
            |world| world.set_power(DesiredPower::Running),
        ],
        guest: Awake,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "grow what the guest boots from",
        after: &["make the network", "create from a volume, with another one"],
        when: |world| is_live(world, ROOT) && world.size(ROOT) < 9,
        wishes: &[|world| world.grow(ROOT)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "delete a volume",
        after: &["make a volume"],
        when: |world| is_free(world, DATA),
        wishes: &[|world| world.delete_volume(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "delete a copy",
        after: &["make a volume", "copy a volume"],
        when: |world| is_free(world, COPY),
        wishes: &[|world| world.delete_volume(COPY)],
        stores: TWO,
        ..PLAIN
    },
    // ---- Snapshots ----
    Operation {
        name: "snapshot",
        after: &["make a volume"],
        when: |world| is_free(world, DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| world.take_snapshot(DATA, MONDAY)],
        stores: ALL,
        ..PLAIN
    },
    Operation {
        name: "snapshot under the guest",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| world.take_snapshot(DATA, MONDAY)],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "snapshot under a guest that is paused",
        after: &["create", "make a volume", "attach", "pause"],
        when: |world| world.is_paused() && world.is_attached(DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| world.take_snapshot(DATA, MONDAY)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "snapshot under a guest that sleeps",
        after: &["create", "make a volume", "attach", "suspend"],
        when: |world| world.is_asleep() && world.is_attached(DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| world.take_snapshot(DATA, MONDAY)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "snapshot and volume of it under the guest",
        after: &["create", "make a volume", "attach"],
        when: |world| {
            is_live(world, DATA) && !world.has_snapshot(MONDAY) && !world.has_volume(COPY)
        },
        wishes: &[|world| {
            world.take_snapshot(DATA, MONDAY);
            world.copy_snapshot(MONDAY, COPY);
        }],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "snapshot and detach at once",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| {
            world.take_snapshot(DATA, MONDAY);
            world.detach(DATA);
        }],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "snapshot and stop at once",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| {
            world.take_snapshot(DATA, MONDAY);
            world.set_power(DesiredPower::Stopped);
        }],
        guest: Off,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "snapshot and suspend at once",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA) && !world.has_snapshot(MONDAY),
        wishes: &[|world| {
            world.take_snapshot(DATA, MONDAY);
            world.set_power(DesiredPower::Suspended);
        }],
        guest: Asleep,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "delete a volume, its snapshot and the copy of that",
        after: &["make a volume, its snapshot and a copy of that"],
        when: |world| is_free(world, DATA) && is_free(world, COPY) && world.has_snapshot(MONDAY),
        wishes: &[|world| {
            world.delete_volume(DATA);
            world.delete_snapshot(MONDAY);
            world.delete_volume(COPY);
        }],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "delete a snapshot",
        after: &["make a volume", "snapshot"],
        when: |world| world.has_snapshot(MONDAY),
        wishes: &[|world| world.delete_snapshot(MONDAY)],
        stores: FOUR,
        ..PLAIN
    },
    Operation {
        name: "delete a volume that has a snapshot",
        after: &["make a volume", "snapshot"],
        when: |world| is_free(world, DATA) && world.has_snapshots_of(DATA),
        wishes: &[|world| world.delete_volume(DATA)],
        stores: FOUR,
        ..PLAIN
    },
    // ---- Volumes of guests ----
    Operation {
        name: "attach",
        after: &["create", "make a volume"],
        when: |world| may_attach(world, DATA) && world.runs(),
        wishes: &[|world| world.attach(DATA, DiskBus::Virtio)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach on scsi",
        after: &["create", "make a volume"],
        when: |world| may_attach(world, DATA) && world.runs(),
        wishes: &[|world| world.attach(DATA, DiskBus::Scsi)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "make and attach",
        after: &["create"],
        when: |world| is_plain(world) && !world.has_volume(DATA),
        wishes: &[|world| {
            world.make_from_image(DATA);
            world.attach(DATA, DiskBus::Virtio);
        }],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach read-only",
        after: &["create", "make another volume, of an image"],
        when: |world| may_attach(world, OTHER) && world.runs(),
        wishes: &[|world| world.attach_read_only(OTHER)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach with limits",
        after: &["create", "make another volume, of an image"],
        when: |world| may_attach(world, OTHER) && world.runs(),
        wishes: &[|world| world.attach_limited(OTHER)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach to one that is paused",
        after: &["create", "make a volume", "pause"],
        when: |world| may_attach(world, DATA) && world.is_paused(),
        wishes: &[|world| world.attach(DATA, DiskBus::Virtio)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach to one that is off",
        after: &["create", "make a volume", "stop"],
        when: |world| may_attach(world, DATA) && world.is_off(),
        wishes: &[|world| world.attach(DATA, DiskBus::Virtio)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach to one that sleeps, and resume",
        after: &["create", "make a volume", "suspend"],
        when: |world| may_attach(world, DATA) && world.is_asleep(),
        wishes: &[
            |world| world.attach(DATA, DiskBus::Scsi),
            |world| world.set_power(DesiredPower::Running),
        ],
        guest: Awake,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach, and reboot at once",
        after: &["create", "make a volume"],
        when: |world| may_attach(world, DATA) && world.runs(),
        wishes: &[|world| {
            world.attach(DATA, DiskBus::Virtio);
            world.reboot(RebootKind::Hard);
        }],
        guest: Started,
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "detach",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA),
        wishes: &[|world| world.detach(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "detach from scsi",
        after: &["create", "make a volume", "attach on scsi"],
        when: |world| is_live(world, DATA) && world.bus(DATA) == Some(DiskBus::Scsi),
        wishes: &[|world| world.detach(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "detach from one that is off",
        after: &["create", "make a volume", "attach", "stop"],
        when: |world| world.is_off() && world.is_attached(DATA),
        wishes: &[|world| world.detach(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "detach and delete at once",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA),
        wishes: &[|world| {
            world.detach(DATA);
            world.delete_volume(DATA);
        }],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach two at once, on two buses",
        after: &[
            "create",
            "make a volume",
            "make another volume, of an image",
        ],
        when: |world| may_attach(world, DATA) && may_attach(world, OTHER) && world.runs(),
        wishes: &[|world| {
            world.attach(DATA, DiskBus::Virtio);
            world.attach(OTHER, DiskBus::Scsi);
        }],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "detach two at once",
        after: &[
            "create",
            "make a volume",
            "make another volume, of an image",
            "attach two at once, on two buses",
        ],
        when: |world| is_live(world, DATA) && is_live(world, OTHER),
        wishes: &[|world| {
            world.detach(DATA);
            world.detach(OTHER);
        }],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "one volume in the place of another",
        after: &[
            "create",
            "make a volume",
            "make another volume, of an image",
            "attach",
        ],
        when: |world| is_live(world, DATA) && may_attach(world, OTHER),
        wishes: &[|world| world.replace(DATA, OTHER)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "from one bus to another",
        after: &["create", "make a volume", "attach"],
        when: |world| is_live(world, DATA),
        wishes: &[|world| world.change_bus(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "from scsi to virtio",
        after: &["create", "make a volume", "attach on scsi"],
        when: |world| is_live(world, DATA),
        wishes: &[|world| world.change_bus(DATA)],
        stores: TWO,
        ..PLAIN
    },
    Operation {
        name: "attach to a rescued one, for its own system",
        after: &["create", "make a volume", "rescue"],
        when: |world| {
            world.runs() && world.is_rescued() && is_free(world, DATA) && world.attached() < 3
        },
        wishes: &[|world| world.attach(DATA, DiskBus::Virtio)],
        ..PLAIN
    },
];

/// The operation of this name.
pub(super) fn operation(name: &str) -> &'static Operation {
    let found = OPERATIONS.iter().find(|it| it.name == name);
    found.unwrap_or_else(|| panic!("there is no operation {name:?}"))
}
