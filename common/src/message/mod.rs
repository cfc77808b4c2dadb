//! The bodies of all messages except desired documents (see [`crate::document`]).
//!
//! - [`request`]: what clients ask of the scheduler, one method each, and the replies.
//! - [`view`]: what replies show of instances, networks and hosts.
//! - [`placement`]: hints, aggregates, server groups, decisions.
//! - [`question`]: what agents are asked and answer clients themselves.
//! - [`network`]: networks and subnets: the requests and what they show.
//! - [`report`]: what agents say of documents.
//! - [`heartbeat`]: what agents say of their host.
//! - [`catalogue`]: all of them in one table, from which `docs/messages.md` is generated and fingerprinted.
//!
//! Bodies are JSON. Unknown fields are ignored, so that neighbouring versions understand each other; a change
//! that an older reader would misunderstand needs a new version number in the catalogue.

pub mod catalogue;
pub mod counters;
pub mod heartbeat;
pub mod network;
pub mod placement;
pub mod port;
pub mod question;
pub mod report;
pub mod request;
pub mod router;
pub mod security_group;
pub mod trace;
pub mod view;

/// The application name each part puts into `app_id`.
pub mod app {
    /// The scheduler.
    pub const SCHEDULER: &str = "berth-scheduler";
    /// The agent.
    pub const AGENT: &str = "berth-agent";
    /// The command line.
    pub const CTL: &str = "berthctl";
}

/// Whether a reader of messages up to version `newest` understands one of version `version`: older versions lack only
/// fields that have defaults.
#[must_use]
pub const fn understands(newest: u32, version: u32) -> bool {
    1 <= version && version <= newest
}
