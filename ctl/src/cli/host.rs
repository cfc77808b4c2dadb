//! The words of `berthctl host …`.

use std::{fmt::Display, str::FromStr};

use berth_common::{
    message::request::Change,
    units::{AllocationRatio, DiskGb, MemoryMb, Vcpus},
};
use clap::{Args, Subcommand};

use super::value_or;

/// Commands on hypervisors.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Host {
    /// List all hypervisors.
    List,
    /// Show one hypervisor: what it has, what is used and claimed, how it is.
    Show {
        /// Name or id of the hypervisor.
        name: String,
    },
    /// Let a hypervisor get new instances again.
    Enable {
        /// Name or id of the hypervisor.
        name: String,
    },
    /// Give a hypervisor no new instances; those it has stay.
    Disable(WithReason),
    /// Give a hypervisor no new instances, and mark that those it has shall leave.
    Drain(WithReason),
    /// Change a hypervisor's own ratios and reserves. What is not named stays; `default` takes the aggregate's value,
    /// or else the scheduler's.
    Set(HostSetArgs),
    /// Forget a hypervisor that is gone for good. It must be down and have no instances; should its agent ever start
    /// again, it is a new hypervisor to berth.
    Delete {
        /// Name or id of the hypervisor.
        name: String,
    },
}

/// A hypervisor, and why something is done to it.
#[derive(Debug, Clone, Args)]
pub(crate) struct WithReason {
    /// Name or id of the hypervisor.
    pub(crate) name: String,
    /// Why, for other operators.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// What changes on a hypervisor.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostSetArgs {
    /// Name or id of the hypervisor.
    pub(crate) name: String,
    /// How many vCPUs may be claimed for each CPU, like 4.0.
    #[arg(long, value_name = "R|default", value_parser = or_default::<AllocationRatio>)]
    pub(crate) cpu_allocation_ratio: Option<Change<AllocationRatio>>,
    /// How much memory may be claimed for each MiB, like 1.5.
    #[arg(long, value_name = "R|default", value_parser = or_default::<AllocationRatio>)]
    pub(crate) ram_allocation_ratio: Option<Change<AllocationRatio>>,
    /// How much disk may be claimed for each GiB, like 1.0.
    #[arg(long, value_name = "R|default", value_parser = or_default::<AllocationRatio>)]
    pub(crate) disk_allocation_ratio: Option<Change<AllocationRatio>>,
    /// CPUs kept for the host itself.
    #[arg(long, value_name = "N|default", value_parser = or_default::<Vcpus>)]
    pub(crate) reserved_cpus: Option<Change<Vcpus>>,
    /// Memory in MiB kept for the host itself.
    #[arg(long, value_name = "MB|default", value_parser = or_default::<MemoryMb>)]
    pub(crate) reserved_memory_mb: Option<Change<MemoryMb>>,
    /// Disk in GiB kept for the host itself.
    #[arg(long, value_name = "GB|default", value_parser = or_default::<DiskGb>)]
    pub(crate) reserved_disk_gb: Option<Change<DiskGb>>,
}

fn or_default<T: FromStr<Err: Display>>(text: &str) -> Result<Change<T>, String> {
    value_or("default", text)
}
