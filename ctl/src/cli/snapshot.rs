//! The words of `berthctl snapshot …`.

use berth_common::{ids::SnapshotId, names::SnapshotName};
use clap::Subcommand;

use super::Wait;

/// Commands on snapshots.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Snapshot {
    /// Keep what a volume holds at one moment from now on, as after a power cut. An instance may use it meanwhile.
    Create {
        /// Its name, unique in the project.
        name: SnapshotName,
        /// Name or id of the volume.
        #[arg(long, value_name = "VOLUME")]
        volume: String,
        /// Its id: repeating a request with the same id is harmless. Default: a new one.
        #[arg(long, value_name = "UUID")]
        id: Option<SnapshotId>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List snapshots.
    List,
    /// Show one snapshot.
    Show {
        /// Name or id of the snapshot.
        name: String,
    },
    /// Delete a snapshot, with its content. Volumes that were made from it stay.
    Delete {
        /// Name or id of the snapshot.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
}
