//! The words of the questions to placement: `berthctl explain`, `place` and `capacity`.

use std::path::PathBuf;

use berth_common::message::request::default_most;
use clap::Args;

/// Which instance's placement is explained.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExplainArgs {
    /// Name or id of the instance.
    pub(crate) instance: String,
}

/// What would be placed.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// The instance file. Its size, its [hints] and its networks count here: name and image may be missing.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// What would be placed again and again.
#[derive(Debug, Clone, Args)]
pub(crate) struct CapacityArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Count no further than this, 1 to 100000.
    #[arg(long, value_name = "N", default_value_t = default_most(), value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) most: u32,
}
