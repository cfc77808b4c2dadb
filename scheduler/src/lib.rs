//! The scheduler: decides which hypervisor gets which instance, and keeps the documents flowing until every host
//! is as decided.
//!
//! Data flows `inbox → place → claim → derive → dispatch → report`, and the folders say so:
//!
//! - [`inbox`] takes requests, reports and heartbeats off the bus: decode, one call, encode.
//! - [`place`] is pure: a request and a snapshot of the hosts → a host, or the reason in numbers.
//! - [`claim`] changes rows: many requests in one transaction, instance, ports and claim together.
//! - [`derive`] is pure: the rows of a host → its documents, and what differs from those it was last given.
//! - [`dispatch`] publishes what differs, and publishes it again until the host has confirmed it.
//! - [`report`] writes down what hosts observed, and shows it ([`report::view`] is pure).
//!
//! The database is the truth and messages are hints: the scheduler may be killed at any instant. Of several one leads
//! ([`leader`]), and the others stand by.

pub mod claim;
pub mod config;
pub mod context;
pub mod derive;
pub mod dispatch;
pub mod inbox;
pub mod leader;
pub mod liveness;
pub mod metrics;
pub mod place;
pub mod report;
pub mod service;
