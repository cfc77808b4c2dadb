//! The words of `berthctl server-group …`.

use berth_common::{
    ids::ServerGroupId, message::placement::ServerGroupPolicy, names::ServerGroupName,
};
use clap::{Args, Subcommand, ValueEnum};

/// Commands on server groups.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ServerGroup {
    /// Create a server group: instances that shall be on one hypervisor, or on different ones. An instance joins it
    /// by `server_group` in section [hints] of its file.
    Create(ServerGroupCreateArgs),
    /// List server groups.
    List,
    /// Delete a server group that has no living instance.
    Delete {
        /// Name or id of the server group.
        name: String,
    },
}

/// A new server group.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerGroupCreateArgs {
    /// Its name, unique in the project.
    pub(crate) name: ServerGroupName,
    /// How its instances stand to one another.
    #[arg(long, value_enum)]
    pub(crate) policy: Policy,
    /// With anti-affinity: how many of its instances one hypervisor may have. Default: 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_server_per_host: Option<u32>,
    /// Its id: repeating a request with the same id is harmless. Default: a new one.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<ServerGroupId>,
}

/// The policies, as Nova spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// All on one hypervisor.
    Affinity,
    /// At most so many on a hypervisor as --max-server-per-host says.
    AntiAffinity,
    /// Together where there is room.
    SoftAffinity,
    /// Apart where there is room.
    SoftAntiAffinity,
}

impl From<Policy> for ServerGroupPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Affinity => Self::Affinity,
            Policy::AntiAffinity => Self::AntiAffinity,
            Policy::SoftAffinity => Self::SoftAffinity,
            Policy::SoftAntiAffinity => Self::SoftAntiAffinity,
        }
    }
}
