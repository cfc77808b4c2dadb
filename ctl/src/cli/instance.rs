//! The words of `berthctl instance …`.

use std::path::PathBuf;

use berth_common::{
    ids::InstanceId,
    names::InstanceName,
    units::{DiskGb, MemoryMb, Vcpus},
};
use clap::{Args, Subcommand};

use super::Wait;

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
    /// Give a stopped instance another size, on the hypervisor it is on. What is not named stays; a disk never shrinks.
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

/// A new instance.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceCreateArgs {
    /// The instance file.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Its name, instead of the file's.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<InstanceName>,
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
    #[command(flatten)]
    pub(crate) wait: Wait,
}
