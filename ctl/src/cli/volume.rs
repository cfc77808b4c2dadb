//! The words of `berthctl volume …`.

use berth_common::{
    document::{DiskBus, ImageFormat, VolumeFormat, VolumeLimits},
    ids::VolumeId,
    names::{ImageSha256, ImageUrl, PoolName, VolumeName},
    units::DiskGb,
};
use clap::{Args, Subcommand, ValueEnum};

use super::Wait;

/// Commands on volumes.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume. Without --host, --from and --snapshot it gets the hypervisor of the first instance it is attached to.
    Create(VolumeCreateArgs),
    /// List volumes.
    List,
    /// Show one volume.
    Show {
        /// Name or id of the volume.
        name: String,
    },
    /// Delete a volume that no instance has, with its content.
    Delete {
        /// Name or id of the volume.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Make a volume larger, also while an instance has it. It never shrinks.
    Extend {
        /// Name or id of the volume.
        name: String,
        /// Its new size in GiB.
        #[arg(long, value_name = "GB")]
        size: DiskGb,
        #[command(flatten)]
        wait: Wait,
    },
    /// Attach a volume to an instance on the same hypervisor; at once if the instance runs.
    Attach {
        /// Name or id of the volume.
        name: String,
        /// Name or id of the instance.
        instance: String,
        /// The guest may not write to it.
        #[arg(long)]
        read_only: bool,
        /// Which bus the guest has it on.
        #[arg(long, value_enum, default_value_t = StatedBus::Virtio)]
        disk_bus: StatedBus,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a volume from its instance. It is free when its hypervisor saw the device gone.
    Detach {
        /// Name or id of the volume.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
}

/// A new volume.
#[derive(Debug, Clone, Args)]
pub(crate) struct VolumeCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: VolumeName,
    /// Its size in GiB.
    #[arg(long, value_name = "GB")]
    pub(crate) size: DiskGb,
    /// How it is stored. Default: qcow2 in the pool local, raw in any other one. Pools of logical volumes hold raw volumes only.
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// The storage pool of its hypervisor that it shall be in: a directory or LVM, as its operator configured it (`berthctl host
    /// show` lists them). Default: local, which every hypervisor has.
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Option<PoolName>,
    /// Name or id of a volume to copy; no instance may have it.
    #[arg(long, value_name = "VOLUME", conflicts_with = "image_url")]
    pub(crate) from: Option<String>,
    /// Name or id of a snapshot to begin with.
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = ["image_url", "from"])]
    pub(crate) snapshot: Option<String>,
    /// Where to fetch an image to begin with: file://, http:// or https://.
    #[arg(long, value_name = "URL", requires_all = ["image_sha256", "image_format"])]
    pub(crate) image_url: Option<ImageUrl>,
    /// What the image must contain: 64 hexadecimal digits.
    #[arg(long, value_name = "SHA256", requires = "image_url")]
    pub(crate) image_sha256: Option<ImageSha256>,
    /// The image's format.
    #[arg(long, value_enum, requires = "image_url")]
    pub(crate) image_format: Option<StatedFormat>,
    /// Name or id of the hypervisor it shall be on.
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// How many I/O operations a guest may do in a second. Default: as many as it can.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=VolumeLimits::MOST))]
    pub(crate) iops: Option<u64>,
    /// How many bytes a guest may read and write in a second. Default: as many as it can.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=VolumeLimits::MOST))]
    pub(crate) bytes_per_second: Option<u64>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<VolumeId>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// How volumes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The bare bytes.
    Raw,
}

impl From<Format> for VolumeFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Qcow2 => Self::Qcow2,
            Format::Raw => Self::Raw,
        }
    }
}

/// Which bus a guest has a volume on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatedBus {
    /// A device of its own (virtio-blk), vdb and so on.
    Virtio,
    /// Behind a controller (virtio-scsi), sdb and so on: more of them, and no PCI port for each.
    Scsi,
}

impl From<StatedBus> for DiskBus {
    fn from(bus: StatedBus) -> Self {
        match bus {
            StatedBus::Virtio => Self::Virtio,
            StatedBus::Scsi => Self::Scsi,
        }
    }
}

/// What an image may be, as its owner states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatedFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The bare bytes.
    Raw,
    /// VMware's format, as one file; converted on the hypervisor.
    Vmdk,
    /// VirtualBox's format; converted on the hypervisor.
    Vdi,
    /// Hyper-V's format; converted on the hypervisor.
    Vhdx,
}

impl From<StatedFormat> for ImageFormat {
    fn from(format: StatedFormat) -> Self {
        match format {
            StatedFormat::Qcow2 => Self::Qcow2,
            StatedFormat::Raw => Self::Raw,
            StatedFormat::Vmdk => Self::Vmdk,
            StatedFormat::Vdi => Self::Vdi,
            StatedFormat::Vhdx => Self::Vhdx,
        }
    }
}
