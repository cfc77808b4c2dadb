//! What an attachment leaves in QEMU that libvirt does not know of.
//!
//! To attach a disk, libvirt gives QEMU its file, then its format, then the guest's device, and notes the disk when all is
//! done. If libvirtd dies in between, QEMU has what it was given, and libvirt will never know: the file stays locked, and
//! each later attachment of it fails. QEMU itself refuses to remove what something uses, so asking it to is safe.
//!
//! Shapes: QEMU's `query-named-block-nodes` and `query-block` (QEMU QMP Reference Manual, "Block devices").

use std::path::Path;

use serde::Deserialize;

use super::names;

/// A node of QEMU's block layer: a file, or a format over one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockNode {
    /// Its name, unique in this QEMU.
    #[serde(rename = "node-name")]
    pub node_name: String,
    /// Its driver: `file`, `host_device`, `qcow2`, `raw`, …
    pub drv: String,
    /// The file at its end.
    pub file: String,
}

/// A guest's device that block nodes can be in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockDevice {
    /// Its path in QEMU's object tree: `/machine/peripheral/<alias>/…`; none of a device that is no guest's.
    #[serde(default)]
    pub qdev: Option<String>,
    /// What is in it.
    #[serde(default)]
    pub inserted: Option<Inserted>,
}

/// What is in a device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Inserted {
    /// The node at its top.
    #[serde(rename = "node-name", default)]
    pub node_name: String,
}

/// How QEMU gets rid of what was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Nothing was left.
    Nothing,
    /// A guest has it: it is asked to give these devices back, by their aliases.
    AskBack(Vec<String>),
    /// Nobody has it: these nodes go, each before those that it stands on.
    Nodes(Vec<String>),
}

/// An object of QEMU's, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QemuObject {
    /// Its name.
    pub name: String,
}

/// A piece of memory that a guest was given (QEMU's `query-memory-devices`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemoryDevice {
    /// What is said of it.
    pub data: MemoryDeviceData,
}

/// What QEMU says of a piece of memory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemoryDeviceData {
    /// Its alias.
    #[serde(default)]
    pub id: Option<String>,
}

/// How QEMU gets rid of memory that was left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryRemoval {
    /// Nobody has it: these objects go.
    pub unused: Vec<String>,
    /// The guest has it: it is asked to give these devices back, by their aliases.
    pub held: Vec<String>,
}

/// How to get rid of berth's pieces of memory that libvirt does not know by these aliases. Those have to be newer than what
/// QEMU says: what was completed in between is not lost.
#[must_use]
pub fn memory_removal(
    known: &[String],
    objects: &[QemuObject],
    devices: &[MemoryDevice],
) -> MemoryRemoval {
    let is_lost = |alias: &str| {
        alias.starts_with(names::MEMORY_ALIAS) && !known.iter().any(|known| known == alias)
    };
    let held: Vec<String> = devices
        .iter()
        .filter_map(|device| device.data.id.clone())
        .filter(|alias| is_lost(alias))
        .collect();
    // libvirt calls the object behind the device `x` `memx`.
    let unused = objects
        .iter()
        .filter_map(|object| Some((object, object.name.strip_prefix("mem")?)))
        .filter(|(_, alias)| is_lost(alias) && !held.iter().any(|held| held == alias))
        .map(|(object, _)| object.name.clone())
        .collect();
    MemoryRemoval { unused, held }
}

/// How to get rid of what is left of a file that libvirt does not know as a disk of this guest.
#[must_use]
pub fn removal(file: &Path, nodes: &[BlockNode], devices: &[BlockDevice]) -> Removal {
    let (mut formats, mut files) = (Vec::new(), Vec::new());
    for node in nodes.iter().filter(|node| Path::new(&node.file) == file) {
        let name = node.node_name.clone();
        match node.drv.as_str() {
            "file" | "host_device" => files.push(name),
            _ => formats.push(name),
        }
    }
    formats.append(&mut files);
    if formats.is_empty() {
        return Removal::Nothing;
    }
    let holds = |device: &&BlockDevice| {
        let inserted = device.inserted.as_ref();
        inserted.is_some_and(|inserted| formats.contains(&inserted.node_name))
    };
    let holders: Vec<_> = devices
        .iter()
        .filter(holds)
        .filter_map(|device| alias(device.qdev.as_deref()?))
        .collect();
    if holders.is_empty() {
        Removal::Nodes(formats)
    } else {
        Removal::AskBack(holders)
    }
}

/// The alias in a path of QEMU's object tree.
fn alias(qdev: &str) -> Option<String> {
    let below = qdev
        .strip_prefix("/machine/peripheral/")
        .unwrap_or(qdev)
        .split('/')
        .next()?;
    (!below.is_empty()).then(|| below.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "/var/lib/berth/volumes/1.qcow2";

    fn node(name: &str, drv: &str, file: &str) -> BlockNode {
        BlockNode {
            node_name: name.to_owned(),
            drv: drv.to_owned(),
            file: file.to_owned(),
        }
    }

    #[test]
    fn memory_that_libvirt_does_not_know_goes_and_no_other() {
        let object = |name: &str| QemuObject {
            name: name.to_owned(),
        };
        let device = |id: &str| MemoryDevice {
            data: MemoryDeviceData {
                id: Some(id.to_owned()),
            },
        };
        let objects = [
            object("ram-node0"),
            object("memdimm0"),
            object("memua-berth-memory-1024"),
            object("memua-berth-memory-1152"),
            object("memua-berth-memory-1280"),
            object("type"),
        ];
        let devices = [
            device("dimm0"),
            device("ua-berth-memory-1024"),
            device("ua-berth-memory-1152"),
        ];
        let known = ["ua-berth-memory-1024".to_owned()];
        let expected = MemoryRemoval {
            unused: vec!["memua-berth-memory-1280".to_owned()],
            held: vec!["ua-berth-memory-1152".to_owned()],
        };
        assert_eq!(memory_removal(&known, &objects, &devices), expected);
        let all = [
            "ua-berth-memory-1024".to_owned(),
            "ua-berth-memory-1152".to_owned(),
            "ua-berth-memory-1280".to_owned(),
        ];
        assert_eq!(
            memory_removal(&all, &objects, &devices),
            MemoryRemoval::default()
        );
    }

    fn device(qdev: Option<&str>, node: &str) -> BlockDevice {
        BlockDevice {
            qdev: qdev.map(str::to_owned),
            inserted: Some(Inserted {
                node_name: node.to_owned(),
            }),
        }
    }

    fn root() -> [BlockNode; 2] {
        [
            node("libvirt-1-storage", "file", "/disk0.qcow2"),
            node("libvirt-1-format", "qcow2", "/disk0.qcow2"),
        ]
    }

    #[track_caller]
    fn check(left: &[BlockNode], devices: &[BlockDevice], expected: Removal) {
        let nodes = [&root()[..], left].concat();
        assert_eq!(removal(Path::new(VOLUME), &nodes, devices), expected);
    }

    #[test]
    fn other_disks_are_left_alone() {
        let guest = device(
            Some("/machine/peripheral/virtio-disk0/virtio-backend"),
            "libvirt-1-format",
        );
        check(&[], &[guest], Removal::Nothing);
    }

    #[test]
    fn a_format_goes_before_its_file() {
        let storage = node("libvirt-3-storage", "file", VOLUME);
        let format = node("libvirt-3-format", "qcow2", VOLUME);
        check(
            std::slice::from_ref(&storage),
            &[],
            Removal::Nodes(vec!["libvirt-3-storage".to_owned()]),
        );
        check(
            &[storage, format],
            &[],
            Removal::Nodes(vec![
                "libvirt-3-format".to_owned(),
                "libvirt-3-storage".to_owned(),
            ]),
        );
    }

    #[test]
    fn what_a_guest_has_is_asked_for() {
        let left = [
            node("libvirt-3-storage", "file", VOLUME),
            node("libvirt-3-format", "raw", VOLUME),
        ];
        let guest = device(
            Some("/machine/peripheral/virtio-disk1/virtio-backend"),
            "libvirt-3-format",
        );
        let aliases = Removal::AskBack(vec!["virtio-disk1".to_owned()]);
        check(&left, &[device(None, ""), guest], aliases);
        let scsi = device(Some("scsi0-0-0-1"), "libvirt-3-format");
        check(
            &left,
            &[scsi],
            Removal::AskBack(vec!["scsi0-0-0-1".to_owned()]),
        );
    }

    #[test]
    fn what_qemu_says_is_read() {
        let nodes: Vec<BlockNode> = serde_json::from_str(
            r#"[{"iops_rd":0,"detect_zeroes":"off","image":{"filename":"/v.qcow2"},"node-name":"libvirt-2-format",
                "drv":"qcow2","file":"/v.qcow2","ro":false}]"#,
        )
        .unwrap();
        assert_eq!(nodes, [node("libvirt-2-format", "qcow2", "/v.qcow2")]);
        let devices: Vec<BlockDevice> = serde_json::from_str(
            r#"[{"io-status":"ok","device":"","locked":false,"removable":false,"type":"unknown",
                 "qdev":"/machine/peripheral/virtio-disk1/virtio-backend",
                 "inserted":{"node-name":"libvirt-2-format","drv":"qcow2","file":"/v.qcow2"}},
                {"device":"","removable":true,"type":"unknown","qdev":"scsi0-0-0-0","tray_open":false}]"#,
        )
        .unwrap();
        assert_eq!(
            removal(Path::new("/v.qcow2"), &nodes, &devices),
            Removal::AskBack(vec!["virtio-disk1".to_owned()])
        );
    }
}
