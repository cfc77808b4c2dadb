//! The words of `berthctl instance …`.

use std::path::PathBuf;

use berth_common::{
    document::{ImageRef, OnCrash},
    ids::InstanceId,
    names::{ImageSha256, ImageUrl, InstanceName, PropertyKey, PropertyValue},
    units::{DiskGb, MemoryMb, Vcpus},
};
use clap::{Args, Subcommand, ValueEnum};

use super::{
    Wait,
    aggregate::property,
    port::{AddNetworkArgs, Security},
    volume::StatedFormat,
};

/// How many instances one request may create.
const MOST_AT_ONCE: i64 = 256;

/// Commands on instances.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Instance {
    /// Create an instance, or with --count several, as a file says; `docs/instance.sample.toml` documents every field.
    Create(InstanceCreateArgs),
    /// List instances.
    List,
    /// Show one instance.
    Show {
        /// Name or id of the instance.
        name: String,
    },
    /// Power an instance on.
    Start {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Power an instance off: the guest is asked first, and switched off after its timeout.
    Stop {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let the processors of a running instance stand still; its memory stays where it is.
    Pause {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a paused instance go on.
    Unpause {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Save the memory of a running instance on its hypervisor's disk, and switch it off.
    Suspend {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a suspended instance go on where it was.
    Resume {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Reboot an instance. A hard reboot also ends a pause or a suspension, and loses the memory.
    Reboot {
        /// Name or id of the instance.
        name: String,
        /// Switch it off and on instead of asking the guest.
        #[arg(long)]
        hard: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give an instance another size, on the hypervisor it is on. A running one gets more, never less: at once where it
    /// can, else with its next start, and it is said which. What is not named stays; a disk never shrinks.
    Resize {
        /// Name or id of the instance.
        name: String,
        /// Virtual CPUs.
        #[arg(long, value_name = "N", required_unless_present_any = ["memory_mb", "disk_gb"])]
        vcpus: Option<Vcpus>,
        /// Memory in MiB.
        #[arg(long, value_name = "N")]
        memory_mb: Option<MemoryMb>,
        /// Size of the root disk in GiB.
        #[arg(long, value_name = "N")]
        disk_gb: Option<DiskGb>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Boot an instance from a fresh disk, with its own disk as the next one (vdb) and without its volumes. It is powered
    /// on if it was off.
    Rescue {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        image: Image,
        #[command(flatten)]
        wait: Wait,
    },
    /// Boot a rescued instance from its own disk again. The rescue disk goes.
    Unrescue {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Make an instance's root disk anew: WHAT IS ON IT IS LOST. Its id, addresses and volumes stay.
    Rebuild {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        image: Image,
        #[command(flatten)]
        wait: Wait,
    },
    /// Change what an instance is called, what is said of it, and what becomes of it when it crashes. What is not named
    /// stays, and the guest runs on: it learns its new name with its next DHCP lease.
    Set(InstanceSetArgs),
    /// Plug a port that is of no instance into an instance, also while it runs.
    AddPort {
        /// Name or id of the instance.
        instance: String,
        /// Name or id of the port.
        port: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Plug an instance into one more network, also while it runs. The port that is made goes when it is unplugged.
    AddNetwork(AddNetworkArgs),
    /// Unplug a port from an instance, also while it runs. It is free when its hypervisor saw it gone.
    RemovePort {
        /// Name or id of the instance.
        instance: String,
        /// Name or id of the port.
        port: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete an instance, its disks and its ports. Its volumes stay.
    Delete {
        /// Name or id of the instance.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show the end of an instance's serial console. Control characters of the guest are made visible.
    Console(ConsoleArgs),
    /// Save a picture of what an instance shows on its display.
    Screenshot {
        /// Name or id of the instance.
        name: String,
        /// Where the picture goes: PNG, or PPM where QEMU is older than 7.1. An existing file is replaced.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Ask whether the QEMU guest agent in an instance is present, absent or silent.
    PingGuestAgent {
        /// Name or id of the instance.
        name: String,
    },
    /// Show where the display and the consoles of an instance are, and how an administrator reaches them.
    Endpoints {
        /// Name or id of the instance.
        name: String,
    },
}

/// Which part of a console is shown, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConsoleArgs {
    /// Name or id of the instance.
    pub(crate) name: String,
    /// How many lines, up to 10000.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) lines: u32,
    /// Go on with what comes, until Ctrl-C.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show what the guest wrote as it is. It can then do to the terminal what it likes.
    #[arg(long)]
    pub(crate) raw: bool,
    /// Read the log on this machine, which must be the instance's hypervisor; its agent may be down.
    #[arg(long, conflicts_with_all = ["follow", "raw"])]
    pub(crate) local: bool,
    /// The agent's state directory on this machine, for --local. Default: /var/lib/berth.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["follow", "raw"])]
    pub(crate) state_dir: Option<PathBuf>,
}

/// What of an instance changes.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Changes {
    /// Its new name, unique in the project.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<InstanceName>,
    /// Say something of it. May be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = property)]
    pub(crate) metadata: Vec<(PropertyKey, PropertyValue)>,
    /// Say it no more. May be given several times.
    #[arg(long, value_name = "KEY")]
    pub(crate) unset_metadata: Vec<PropertyKey>,
    /// What becomes of it when its guest crashes.
    #[arg(long, value_enum)]
    pub(crate) on_crash: Option<CrashPolicy>,
}

/// A change to what is said of an instance.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceSetArgs {
    /// Name or id of the instance.
    pub(crate) instance: String,
    #[command(flatten)]
    pub(crate) changes: Changes,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// What becomes of an instance when its guest crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CrashPolicy {
    /// It is started again.
    Restart,
    /// It stays off, in error.
    Stop,
}

impl From<CrashPolicy> for OnCrash {
    fn from(policy: CrashPolicy) -> Self {
        match policy {
            CrashPolicy::Restart => Self::Restart,
            CrashPolicy::Stop => Self::Stop,
        }
    }
}

/// An image; default: the one that the instance was made from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Image {
    /// Where to fetch an image: file://, http:// or https://. Default: the image the instance was made from.
    #[arg(long, value_name = "URL", requires_all = ["image_sha256", "image_format"])]
    pub(crate) image_url: Option<ImageUrl>,
    /// What the image must contain: 64 hexadecimal digits.
    #[arg(long, value_name = "SHA256", requires = "image_url")]
    pub(crate) image_sha256: Option<ImageSha256>,
    /// The image's format.
    #[arg(long, value_enum, requires = "image_url")]
    pub(crate) image_format: Option<StatedFormat>,
}

impl Image {
    /// The image that was named.
    pub(crate) fn named(self) -> Option<ImageRef> {
        match (self.image_url, self.image_sha256, self.image_format) {
            (Some(url), Some(sha256), Some(format)) => Some(ImageRef {
                url,
                sha256,
                format: format.into(),
            }),
            // The command line has all of them or none.
            _ => None,
        }
    }
}

/// A new instance.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceCreateArgs {
    /// The instance file.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Its name, instead of the file's.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<InstanceName>,
    /// Boot from this volume, by name or id, instead of the file's image. It must be available, and made from an image, a
    /// snapshot or another volume. The file needs neither [image] nor disk_gb then, and neither is used.
    #[arg(long, value_name = "VOLUME", conflicts_with = "count")]
    pub(crate) volume: Option<String>,
    /// With --volume: delete the volume when the instance is deleted. Otherwise it stays.
    #[arg(long, requires = "volume")]
    pub(crate) delete_volume_on_termination: bool,
    /// Let this SSH key log in, the public half of which is in a file such as ~/.ssh/id_ed25519.pub; it is named after the file.
    #[arg(long = "key", value_name = "FILE")]
    pub(crate) keys: Vec<PathBuf>,
    /// What cloud-init does at the first boot: "#cloud-config", a script, or a MIME archive of several; instead of the file's.
    #[arg(long, value_name = "FILE")]
    pub(crate) user_data: Option<PathBuf>,
    /// Put what its guest is told on a config drive as well: a small CD, for guests that cannot ask the metadata service.
    #[arg(long)]
    pub(crate) config_drive: bool,
    /// Create so many, 1 to 256, named NAME-1, NAME-2 and so on; all of them or, if one cannot be, none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_AT_ONCE))]
    pub(crate) count: Option<u32>,
    /// With --count: create those that can be, whatever becomes of the others.
    #[arg(long, requires = "count")]
    pub(crate) best_effort: bool,
    /// Its id: repeating a request with the same id is harmless. Default: a new one. With --count, the id of the
    /// first; the others count up from it.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<InstanceId>,
    /// What may go through the ports that are made for it.
    #[command(flatten)]
    pub(crate) security: Security,
    #[command(flatten)]
    pub(crate) wait: Wait,
}
