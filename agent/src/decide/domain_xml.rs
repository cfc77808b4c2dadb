//! A domain's XML, both ways: written from a [`DomainConfig`], and read for the few facts berth needs.
//!
//! Nothing here talks to libvirt. What is written leaves as little as possible to libvirt's guesses: every format
//! of every file below a disk is stated, so that none is ever probed. What libvirt does choose is where QEMU must
//! be able to write: the sockets of VNC and of the guest agent lie in libvirt's own directory of the domain.

mod element;
mod live;
mod read;

use std::path::{Path, PathBuf};

use berth_common::{
    document::{DiskBus, PortLink, VolumeAccess, VolumeFormat, VolumeLimits},
    names::MacAddress,
    units::{ByteCount, MemoryMb},
};

use super::{
    disk_target,
    domain::{
        BackupPlan, DiskFile, DomainConfig, DomainDisk, DomainMetadata, DomainNic, NicObserved,
        VirtType,
    },
    instance::MAX_NICS,
    names,
    room::MEMORY_SLOTS,
};
use element::Element;

pub use live::{AgentChannel, GuestAgentChannel, LiveDevices, VncAddress, read_live};
pub use read::{DomainFacts, read, read_backup};

/// The namespace of berth's metadata element. A new meaning of it gets a new number.
pub const METADATA_NAMESPACE: &str = "urn:berth:domain:1";
/// Where devices are.
pub const DEVICES: &str = "/dev";
/// The prefix libvirt shows it with.
const METADATA_PREFIX: &str = "berth";
/// How often QEMU asks the guest for its memory figures, in seconds.
const BALLOON_STATS_PERIOD: &str = "10";
/// How many disks can be given to a guest while it is on, each in a port of its own. NICs have theirs, as many as it can have.
const SPARE_PORTS: usize = 8;
/// Devices beside disks and NICs that sit in ports of their own: memory balloon, random numbers, serial channels, and
/// the SCSI controller, which a guest without one may be given.
const OTHER_DEVICES: usize = 4;

/// A domain cannot be told as XML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainXmlError {
    /// XML is text; this path is not.
    #[error("the path {} is not UTF-8, so libvirt cannot be told of it", .0.display())]
    PathNotText(PathBuf),
    /// XML has no way to write this character.
    #[error("a domain's XML cannot hold the character {character:?} of {text:?}")]
    IllegalCharacter {
        /// The character.
        character: char,
        /// Where it stands.
        text: String,
    },
}

/// The XML that defines a domain.
///
/// # Errors
/// [`DomainXmlError`] for paths and texts that XML cannot hold.
pub fn write(config: &DomainConfig) -> Result<String, DomainXmlError> {
    let domain = Element::new("domain")
        .attribute("type", config.virt_type.as_str())
        .child(Element::new("name").text(names::domain(config.id)))
        .child(Element::new("uuid").text(config.id.to_string()))
        .child(Element::new("title").text(one_line(&config.title)))
        .child(Element::new("metadata").child(metadata(&config.metadata)))
        .children(max_memory(config))
        .child(
            Element::new("memory")
                .attribute("unit", "KiB")
                .text(kib(config.memory_mb).to_string()),
        )
        .child(vcpu(config))
        .children(config.cpu_shares.map(|shares| {
            Element::new("cputune").child(Element::new("shares").text(shares.to_string()))
        }))
        .child(
            Element::new("os")
                .child(
                    Element::new("type")
                        .attribute("arch", &config.arch)
                        .optional_attribute("machine", machine(&config.arch))
                        .text("hvm"),
                )
                .child(Element::new("boot").attribute("dev", "hd")),
        )
        .children(features(&config.arch))
        .child(cpu(config.virt_type).children(numa(config)))
        .child(Element::new("clock").attribute("offset", "utc"))
        .child(Element::new("on_poweroff").text("destroy"))
        .child(Element::new("on_reboot").text("restart"))
        .child(Element::new("on_crash").text("destroy"))
        .child(devices(config)?);
    domain.write()
}

/// The XML of one disk, as a guest that is on is given it.
///
/// # Errors
/// [`DomainXmlError`] for paths that XML cannot hold.
pub fn write_disk(disk: &DomainDisk) -> Result<String, DomainXmlError> {
    self::disk(disk)?.write()
}

/// The XML by which libvirt finds a disk that is to be given back.
///
/// # Errors
/// [`DomainXmlError`] for paths that XML cannot hold.
pub fn write_disk_file(file: &DiskFile) -> Result<String, DomainXmlError> {
    let source = Source::of(&file.path);
    Element::new("disk")
        .attribute("type", source.kind)
        .attribute("device", "disk")
        .child(Element::new("source").attribute(source.attribute, text(&file.path)?))
        .child(target(&file.target))
        .write()
}

/// The XML of one NIC, as a guest that is on is given it.
///
/// # Errors
/// As [`write`].
pub fn write_nic(nic: &DomainNic) -> Result<String, DomainXmlError> {
    self::nic(nic).write()
}

/// The XML by which libvirt finds a NIC that is there, and what its cable shall be. Everything else is as it is: libvirt takes
/// no other change of one.
///
/// # Errors
/// As [`write`].
pub fn write_nic_observed(nic: &NicObserved, link: PortLink) -> Result<String, DomainXmlError> {
    let alias = nic.alias.as_deref();
    let mtu = nic.mtu.map(|mtu| mtu.to_string());
    interface(nic.mac_address, &nic.bridge, &nic.tap, link)
        .children(mtu.map(|mtu| Element::new("mtu").attribute("size", mtu)))
        .children(alias.map(|alias| Element::new("alias").attribute("name", alias)))
        .write()
}

/// The XML of the controller that SCSI disks sit behind, as a guest that is on is given it.
///
/// # Errors
/// As [`write`].
pub fn write_scsi_controller() -> Result<String, DomainXmlError> {
    scsi_controller().write()
}

/// The XML of a piece of memory that a guest is given while it is on. Whatever it shall have with it, its alias is the same:
/// two at a time would give it too much.
///
/// # Errors
/// As [`write`].
pub fn write_memory(before: MemoryMb, with: MemoryMb) -> Result<String, DomainXmlError> {
    Element::new("memory")
        .attribute("model", "dimm")
        .child(
            Element::new("target")
                .child(
                    Element::new("size")
                        .attribute("unit", "KiB")
                        .text(kib(with.saturating_sub(before)).to_string()),
                )
                .child(Element::new("node").text("0")),
        )
        .child(Element::new("alias").attribute("name", names::memory_alias(before)))
        .write()
}

/// The XML that begins a backup job: the hypervisor pushes a copy of one disk into a file of its own.
///
/// # Errors
/// As [`write`].
pub fn write_backup(plan: &BackupPlan) -> Result<String, DomainXmlError> {
    let (kind, place) = match plan.format {
        VolumeFormat::Qcow2 => ("file", "file"),
        VolumeFormat::Raw => ("block", "dev"),
    };
    let disk = Element::new("disk")
        .attribute("name", plan.disk.target.as_str())
        .attribute("backup", "yes")
        .attribute("type", kind)
        .child(Element::new("driver").attribute("type", plan.format.as_str()))
        .child(Element::new("target").attribute(place, text(&plan.file)?));
    Element::new("domainbackup")
        .attribute("mode", "push")
        .child(Element::new("disks").child(disk))
        .write()
}

/// berth's own element, as it stands below `<metadata>`.
fn metadata(metadata: &DomainMetadata) -> Element {
    let own = |name: &str| Element::new(format!("{METADATA_PREFIX}:{name}"));
    own("domain")
        .attribute(format!("xmlns:{METADATA_PREFIX}"), METADATA_NAMESPACE)
        .child(own("instance").text(metadata.instance_id.to_string()))
        .child(own("generation").text(metadata.generation.to_string()))
        .children(
            metadata
                .reboot_nonce
                .map(|nonce| own("reboot").text(nonce.to_string())),
        )
        .child(own("digest").text(&metadata.digest))
        .children(
            metadata
                .left_off
                .map(|reason| own("off").text(reason.as_str())),
        )
}

/// The machine of an architecture; libvirt makes the installed QEMU's newest version of it.
fn machine(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" | "i686" => Some("q35"),
        "aarch64" | "riscv64" => Some("virt"),
        _ => None,
    }
}

fn has_room_for_memory(config: &DomainConfig) -> bool {
    config.room.memory_mb > config.memory_mb
}

fn max_memory(config: &DomainConfig) -> Option<Element> {
    has_room_for_memory(config).then(|| {
        Element::new("maxMemory")
            .attribute("slots", MEMORY_SLOTS.to_string())
            .attribute("unit", "KiB")
            .text(kib(config.room.memory_mb).to_string())
    })
}

/// Memory can only be added to a NUMA node: all that the guest has, and may have, is in one.
fn numa(config: &DomainConfig) -> Option<Element> {
    let last = config.room.vcpus.max(config.vcpus).get().saturating_sub(1);
    has_room_for_memory(config).then(|| {
        Element::new("numa").child(
            Element::new("cell")
                .attribute("id", "0")
                .attribute("cpus", format!("0-{last}"))
                .attribute("memory", kib(config.memory_mb).to_string())
                .attribute("unit", "KiB"),
        )
    })
}

/// As many as it may have, and as many as it starts with.
fn vcpu(config: &DomainConfig) -> Element {
    let (now, most) = (config.vcpus, config.room.vcpus);
    Element::new("vcpu")
        .optional_attribute(
            "current",
            (most > now).then(|| now.get().to_string()).as_deref(),
        )
        .text(most.max(now).get().to_string())
}

/// Without ACPI an x86 guest cannot be asked to power off.
fn features(arch: &str) -> Option<Element> {
    matches!(arch, "x86_64" | "i686").then(|| {
        Element::new("features")
            .child(Element::new("acpi"))
            .child(Element::new("apic"))
    })
}

/// With KVM a named model as near to the host's as possible; emulation offers all it can do, because current
/// distributions do not run on QEMU's default model.
fn cpu(virt_type: VirtType) -> Element {
    let mode = match virt_type {
        VirtType::Kvm => "host-model",
        VirtType::Qemu => "maximum",
    };
    Element::new("cpu").attribute("mode", mode)
}

fn devices(config: &DomainConfig) -> Result<Element, DomainXmlError> {
    let disks: Vec<_> = config.disks.iter().map(disk).collect::<Result<_, _>>()?;
    let controller = config.needs_scsi_controller().then(scsi_controller);
    let cd = config.config_drive.as_deref().map(cd).transpose()?;
    Ok(Element::new("devices")
        .children(disks)
        .children(controller)
        .children(cd)
        .children(config.nics.iter().map(nic))
        .children(root_ports(config))
        .child(
            Element::new("controller")
                .attribute("type", "usb")
                .attribute("model", "none"),
        )
        .child(
            Element::new("serial")
                .attribute("type", "pty")
                .child(
                    Element::new("log")
                        .attribute("file", text(&config.console_log)?)
                        .attribute("append", "on"),
                )
                .child(Element::new("target").attribute("port", "0")),
        )
        .child(
            Element::new("channel").attribute("type", "unix").child(
                Element::new("target")
                    .attribute("type", "virtio")
                    .attribute("name", live::GUEST_AGENT),
            ),
        )
        .child(
            Element::new("graphics")
                .attribute("type", "vnc")
                .child(Element::new("listen").attribute("type", "socket")),
        )
        .child(Element::new("video").child(Element::new("model").attribute("type", "vga")))
        .child(
            Element::new("rng").attribute("model", "virtio").child(
                Element::new("backend")
                    .attribute("model", "random")
                    .text("/dev/urandom"),
            ),
        )
        .child(
            Element::new("memballoon")
                .attribute("model", "virtio")
                .child(Element::new("stats").attribute("period", BALLOON_STATS_PERIOD)),
        )
        .children(panic(&config.arch)))
}

/// By which a kernel that panics tells its host so: without it the guest just stands still. The one of other architectures sits on
/// PCI, and libvirt has it since 9.1 only.
fn panic(arch: &str) -> Option<Element> {
    matches!(arch, "x86_64" | "i686").then(|| Element::new("panic").attribute("model", "isa"))
}

/// Where the machine's bus is PCI Express, each device sits in a port of its own, and nothing can be plugged into a
/// guest that is on and has no free one.
fn root_ports(config: &DomainConfig) -> Vec<Element> {
    let port = |_| {
        Element::new("controller")
            .attribute("type", "pci")
            .attribute("model", "pcie-root-port")
    };
    match machine(&config.arch) {
        Some("q35") => {
            // libvirt numbers controllers in their order, and number 0 is the bus that the ports are on.
            let root = Element::new("controller")
                .attribute("type", "pci")
                .attribute("index", "0")
                .attribute("model", "pcie-root");
            let on_virtio = |disk: &&DomainDisk| disk_target::bus(&disk.target) == DiskBus::Virtio;
            let disks = config.disks.iter().filter(on_virtio).count();
            let taken = disks + config.nics.len().max(MAX_NICS) + OTHER_DEVICES;
            [root]
                .into_iter()
                .chain((0..taken + SPARE_PORTS).map(port))
                .collect()
        }
        Some(_) | None => Vec::new(),
    }
}

/// How libvirt is told where a disk's bytes are.
struct Source {
    kind: &'static str,
    attribute: &'static str,
}

impl Source {
    /// What is in the directory of devices is a block device; files of berth's are never there.
    fn of(path: &Path) -> Self {
        if path.starts_with(DEVICES) {
            Self {
                kind: "block",
                attribute: "dev",
            }
        } else {
            Self {
                kind: "file",
                attribute: "file",
            }
        }
    }
}

fn disk(disk: &DomainDisk) -> Result<Element, DomainXmlError> {
    // An empty element ends the chain: without it libvirt would look into the last file for more.
    let mut backing = Element::new("backingStore");
    for (path, format) in disk.backing.iter().rev() {
        backing = Element::new("backingStore")
            .attribute("type", "file")
            .child(Element::new("format").attribute("type", *format))
            .child(
                Element::new("source")
                    .attribute("file", text(path)?)
                    .child(keep_owner()),
            )
            .child(backing);
    }
    let source = Source::of(&disk.path);
    Ok(Element::new("disk")
        .attribute("type", source.kind)
        .attribute("device", "disk")
        .child(
            Element::new("driver")
                .attribute("name", "qemu")
                .attribute("type", disk.format)
                .attribute("discard", "unmap"),
        )
        .child(Element::new("source").attribute(source.attribute, text(&disk.path)?))
        .child(backing)
        .child(target(&disk.target))
        .children(scsi_address(&disk.target))
        .children(iotune(disk.limits))
        .children((disk.access == VolumeAccess::ReadOnly).then(|| Element::new("readonly")))
        .child(Element::new("serial").text(&disk.serial)))
}

/// The kernels that distributions make for clouds have drivers for this one, and none for SATA or IDE.
fn scsi_controller() -> Element {
    Element::new("controller")
        .attribute("type", "scsi")
        .attribute("index", "0")
        .attribute("model", "virtio-scsi")
}

fn cd(path: &Path) -> Result<Element, DomainXmlError> {
    Ok(Element::new("disk")
        .attribute("type", "file")
        .attribute("device", "cdrom")
        .child(
            Element::new("driver")
                .attribute("name", "qemu")
                .attribute("type", "raw"),
        )
        .child(Element::new("source").attribute("file", text(path)?))
        .child(
            Element::new("target")
                .attribute("dev", disk_target::CONFIG_DRIVE)
                .attribute("bus", "scsi"),
        )
        .child(Element::new("readonly")))
}

fn target(name: &str) -> Element {
    Element::new("target")
        .attribute("dev", name)
        .attribute("bus", disk_target::bus(name).as_str())
}

/// Each disk is a target of its own, all of them behind one controller: libvirt would begin another controller after
/// seven, of a model that it chooses.
fn scsi_address(name: &str) -> Option<Element> {
    disk_target::scsi_target(name).map(|target| {
        Element::new("address")
            .attribute("type", "drive")
            .attribute("controller", "0")
            .attribute("bus", "0")
            .attribute("target", target.to_string())
            .attribute("unit", "0")
    })
}

fn iotune(limits: VolumeLimits) -> Option<Element> {
    let value = |name: &str, value: Option<u64>| {
        value.map(|value| Element::new(name).text(value.to_string()))
    };
    (!limits.is_unlimited()).then(|| {
        Element::new("iotune")
            .children(value("total_bytes_sec", limits.total_bytes_per_second))
            .children(value("total_iops_sec", limits.total_iops))
    })
}

/// The file stays whose it is. libvirt would give it to QEMU's user, who could then write an image that the disks
/// of others lean on; everybody may read it, and that is all QEMU needs.
fn keep_owner() -> Element {
    Element::new("seclabel")
        .attribute("model", "dac")
        .attribute("relabel", "no")
}

fn nic(nic: &DomainNic) -> Element {
    interface(nic.mac_address, &nic.bridge, &nic.tap, nic.link)
        .child(Element::new("mtu").attribute("size", nic.mtu.to_string()))
        .child(Element::new("alias").attribute("name", names::nic_alias(nic.port)))
}

fn interface(mac_address: MacAddress, bridge: &str, tap: &str, link: PortLink) -> Element {
    let link = match link {
        PortLink::Up => None,
        PortLink::Down => Some("down"),
    };
    Element::new("interface")
        .attribute("type", "bridge")
        .child(Element::new("mac").attribute("address", mac_address.to_string()))
        .child(Element::new("source").attribute("bridge", bridge))
        .child(Element::new("target").attribute("dev", tap))
        .child(Element::new("model").attribute("type", "virtio"))
        .children(link.map(|state| Element::new("link").attribute("state", state)))
}

fn text(path: &Path) -> Result<&str, DomainXmlError> {
    path.to_str()
        .ok_or_else(|| DomainXmlError::PathNotText(path.to_owned()))
}

fn kib(memory: MemoryMb) -> u64 {
    ByteCount::from_mb(memory).get() >> 10
}

/// A title is for people only: what libvirt or XML would refuse in it becomes a space.
fn one_line(title: &str) -> String {
    title
        .chars()
        .map(|c| {
            if element::is_legal(c) && !c.is_control() {
                c
            } else {
                ' '
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
