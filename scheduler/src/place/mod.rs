//! Placement, as a pure function: no I/O, no clock, no async, no randomness but the seed it is given.
//!
//! [`place()`] asks the filters of every host in a [`HostTable`], scores those that remain with the weighers, and
//! answers with the best host and with how it came about: how many hosts each filter removed, the runner-up, and
//! the nearest misses in numbers. The same hosts give the same answer, in whatever order they came into the table.
//! [`capacity`] asks the same of several instances, one after the other.
//!
//! ```text
//!   facts, claims, failures            request
//!          ▼                              ▼
//!   table (host, columns, ──▶ scan (narrow, weigh, nearest) ──▶ survey ──▶ decision ──▶ words
//!          features, countables)
//! ```

mod amounts;
mod capacity;
mod columns;
mod countables;
mod decision;
mod failures;
mod features;
mod filter;
mod host;
mod host_set;
mod mix;
mod narrow;
mod nearest;
mod podium;
mod rejection;
mod request;
mod scan;
mod settings;
mod survey;
mod table;
mod weigh;
mod words;

pub use amounts::Resource;
pub use capacity::{CapacityAnswer, capacity};
pub use decision::{Asked, Decision, NearMiss, Removed, ScoredHost};
pub use failures::{FailureCount, FailureHistory, Millis};
pub use filter::{FilterName, reaches_networks};
pub use host::{Admission, Host, HostFacts, Inventory};
pub use rejection::Rejection;
pub use request::{
    Demand, GroupPolicy, ImageNeeds, NatNeeds, Need, NetworkNeeds, Request, ResourceClass,
    RoutedNetwork, ServerGroup, VolumeRoom,
};
pub use scan::Scratch;
pub use settings::{Multiplier, Settings, Weights};
pub use table::{HostTable, TableError};
pub use weigh::ScoreParts;

/// Chooses a host for a request, or says why there is none.
///
/// Claims nothing: that is for the caller, in the table and in its rows.
#[must_use]
pub fn place(request: &Request, table: &HostTable, scratch: &mut Scratch) -> Decision {
    let survey = scan::survey(request, table, scratch);
    Decision::of(&survey, request, table, |_| 0)
}

#[cfg(test)]
mod tests;
