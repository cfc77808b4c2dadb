//! The store's tests: one suite, run on SQLite, PostgreSQL and MariaDB.
//!
//! Each test has a database of its own. A server that is not there fails its tests; nothing is skipped.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic in a test is a failed assertion; the exception for tests does not reach their helpers"
)]

mod aggregates;
mod bulk;
mod claims;
mod corrupt;
mod database;
mod decisions;
mod deletion;
mod documents;
mod heartbeats;
mod host_rows;
mod leadership;
mod lists;
mod lock;
mod migrations;
mod networks;
mod nonces;
mod outage;
mod ports;
mod proxy;
mod round_trip;
mod routers;
mod sample;
mod savepoints;
mod security_groups;
mod server_groups;
mod setters;
mod snapshots;
mod unique;
mod volumes;
