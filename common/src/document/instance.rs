//! The document of a virtual machine, with its disks and ports inline.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigDrive, VolumeFormat, VolumeLimits};
use crate::{
    ids::{NetworkId, Nonce, PortId, SubnetId, VolumeId},
    names::{ImageSha256, ImageUrl, InstanceName, MacAddress, PoolName, ProjectName},
    units::{DiskGb, MemoryMb, Vcpus},
};

/// How a virtual machine shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceSpec {
    /// Name given by its owner; the guest gets it as host name by DHCP.
    pub name: InstanceName,
    /// The owner.
    pub project: ProjectName,
    /// How far it shall run.
    pub power: DesiredPower,
    /// The last reboot that was asked for. A nonce the host has not carried out yet means: reboot once.
    #[serde(default)]
    pub reboot: Option<Reboot>,
    /// How long a guest may take to power itself off before it is switched off, in seconds.
    pub stop_timeout_seconds: u32,
    /// Its size.
    pub flavor: Flavor,
    /// Its disks, made with it; the first one is the boot disk. None: it boots from its volume of position 0.
    pub disks: Vec<InstanceDisk>,
    /// Its virtual NICs, in the order the guest sees them.
    pub ports: Vec<InstancePort>,
    /// The volumes attached to it, by position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<InstanceVolume>,
    /// What it finds on its config drive; null: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<ConfigDrive>,
    /// What the metadata service tells it, if it has no config drive: with one, that is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_data: Option<ConfigDrive>,
    /// What it boots from instead of its own disks; null: it boots from those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue: Option<Rescue>,
    /// What becomes of it when its guest crashes.
    #[serde(default, skip_serializing_if = "OnCrash::is_restart")]
    pub on_crash: OnCrash,
}

/// What becomes of an instance that shall run when its guest crashes: QEMU ends by itself, or libvirt says so. (libvirt's
/// `on_crash` knows more, for those who debug guests.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OnCrash {
    /// It is started again: it shall run, and a host that loses power starts it again as well.
    #[default]
    Restart,
    /// It stays off, in error, until somebody starts it.
    Stop,
}

impl OnCrash {
    /// Whether it is started again.
    #[must_use]
    pub fn is_restart(&self) -> bool {
        *self == Self::Restart
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Stop => "stop",
        }
    }
}

/// A system that an instance is rescued with: it boots from a fresh disk, its own disks come after that one, and its
/// volumes are left out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Rescue {
    /// Chosen by the client; it names the disk, so that none is ever taken for that of another rescue.
    pub nonce: Nonce,
    /// What the disk is made from. It is as large as the root disk.
    pub image: ImageRef,
    /// The size of that disk, where the flavor's is not that of the root disk: of an instance that boots from a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<DiskGb>,
}

/// How far an instance shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DesiredPower {
    /// It shall run.
    #[default]
    Running,
    /// It shall be powered off; its disks are kept.
    Stopped,
    /// Its processors shall stand still; its memory stays where it is.
    Paused,
    /// Its memory shall be kept on disk and the guest be off; running again, it goes on where it was.
    Suspended,
}

impl DesiredPower {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
        }
    }
}

/// A wish to reboot once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Reboot {
    /// Chosen by the client; the same nonce twice is one reboot.
    pub nonce: Nonce,
    /// Whether the guest is asked first.
    #[serde(rename = "type")]
    pub kind: RebootKind,
}

/// How to reboot, in OpenStack's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum RebootKind {
    /// Ask the guest through ACPI; switch off what does not obey within `stop_timeout_seconds`.
    #[default]
    Soft,
    /// Switch off and on.
    Hard,
}

/// The size of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Flavor {
    /// Virtual CPUs, at least 1.
    pub vcpus: Vcpus,
    /// Memory in MiB, at least 1.
    pub memory_mb: MemoryMb,
    /// Size of the root disk in GiB, at least 1.
    pub disk_gb: DiskGb,
}

/// An image by location and content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ImageRef {
    /// Where to fetch it.
    pub url: ImageUrl,
    /// What it must contain.
    pub sha256: ImageSha256,
    /// Its format: a stated fact, never probed.
    pub format: ImageFormat,
}

/// Formats of images.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ImageFormat {
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// The bare bytes of the disk.
    Raw,
    /// VMware's format, as one file: `monolithicSparse` or `streamOptimized`. Converted once it is fetched.
    Vmdk,
    /// VirtualBox's format, dynamic or of fixed size. Converted once it is fetched.
    Vdi,
    /// Hyper-V's format, dynamic or of fixed size. Converted once it is fetched.
    Vhdx,
}

impl ImageFormat {
    /// The name `qemu-img` and libvirt use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
        }
    }

    /// What lies in a host's cache, and so below a disk: guests run on the first two formats only, and an image of
    /// any other one is converted.
    #[must_use]
    pub const fn cached(self) -> Self {
        match self {
            Self::Raw => Self::Raw,
            Self::Qcow2 | Self::Vmdk | Self::Vdi | Self::Vhdx => Self::Qcow2,
        }
    }

    /// Whether what lies in the cache is something else than what was fetched.
    #[must_use]
    pub fn is_converted(self) -> bool {
        self.cached() != self
    }
}

/// One disk of an instance, made with it and deleted with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceDisk {
    /// Position: 0 is the boot disk, and the guest's first virtio disk.
    pub index: u8,
    /// Its size in GiB.
    pub size_gb: DiskGb,
    /// How it is stored on the host.
    pub format: DiskFormat,
    /// What is on it at first.
    pub source: DiskSource,
    /// Which of the disks that this one was so far; null: the first, made with the instance. A higher one is made anew
    /// and takes the place of those before it, whose content is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
}

/// Which of several disks that were one after the other in the same place. It is part of the file's name, so that what
/// lies on the host says it, and nothing else has to be remembered.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Incarnation {
    /// Higher than that of every disk before it: a host never replaces a disk with one of a lower or the same number.
    pub number: u32,
    /// Chosen by the client that asked for it.
    pub nonce: Nonce,
}

/// How a disk is stored on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DiskFormat {
    /// A qcow2 overlay over the cached image.
    Qcow2,
}

/// What is on a disk at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// The content of an image.
    Image(ImageRef),
}

/// One virtual NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstancePort {
    /// The port.
    pub id: PortId,
    /// The network it is plugged into.
    pub network_id: NetworkId,
    /// Its Ethernet address.
    pub mac_address: MacAddress,
    /// The addresses DHCP gives it.
    pub fixed_ips: Vec<FixedIp>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Whether the guest sees a cable in it.
    #[serde(default)]
    pub link: PortLink,
}

/// Whether a guest sees a cable in its NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PortLink {
    /// It does.
    #[default]
    Up,
    /// It does not: nothing is sent or received (Neutron's `admin_state_up` is false).
    Down,
}

/// An address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct FixedIp {
    /// The subnet the address belongs to.
    pub subnet_id: SubnetId,
    /// The address.
    pub ip_address: IpAddr,
}

/// A volume that is attached to an instance. The volume itself has a document of its own on the same host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceVolume {
    /// The volume.
    pub id: VolumeId,
    /// Which of the guest's disks it is: 1 is `vdb`, or `sdb` on the bus `scsi`. 0 is what the instance boots from, `vda`;
    /// otherwise that is a disk of its own. It stays the same as long as the volume is attached; a rescued instance has its
    /// root volume as `vdb`.
    pub position: u8,
    /// How it is stored.
    pub format: VolumeFormat,
    /// Where on its host it is stored; absent: `local`.
    #[serde(default, skip_serializing_if = "PoolName::is_local")]
    pub pool: PoolName,
    /// Whether the guest may write to it.
    #[serde(default)]
    pub access: VolumeAccess,
    /// Which bus the guest has it on; absent: `virtio`.
    #[serde(default, skip_serializing_if = "DiskBus::is_virtio")]
    pub disk_bus: DiskBus,
    /// How much the guest may do with it.
    #[serde(default, skip_serializing_if = "VolumeLimits::is_unlimited")]
    pub limits: VolumeLimits,
}

/// What a guest may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum VolumeAccess {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Read.
    ReadOnly,
}

impl VolumeAccess {
    /// The name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "read_write",
            Self::ReadOnly => "read_only",
        }
    }
}

/// Which bus a guest has a disk on; OpenStack's `disk_bus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DiskBus {
    /// A device of its own: virtio-blk.
    #[default]
    Virtio,
    /// A disk behind a controller: virtio-scsi.
    Scsi,
}

impl DiskBus {
    /// The name on the wire, in the database and of libvirt.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
        }
    }

    /// How the names of its disks begin: the kernel's drivers have prefixes of their own.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Virtio => "vd",
            Self::Scsi => "sd",
        }
    }

    /// Whether it is the one that disks are on if nothing else is said.
    #[must_use]
    pub fn is_virtio(&self) -> bool {
        *self == Self::Virtio
    }
}
