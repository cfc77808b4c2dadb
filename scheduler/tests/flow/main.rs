//! The whole scheduler over the in-process bus and a SQLite file, with the hosts played by the tests.
//!
//! [`cloud`] runs schedulers, [`host`] plays a hypervisor, [`ask`] makes requests; every other file is a topic.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is a failed test"
)]

mod ask;
mod cloud;
mod host;
mod soundness;

mod bad_input;
mod batches;
mod boot;
mod explain;
mod guest_data;
mod held_addresses;
mod hints;
mod invariants;
mod leading;
mod life;
mod many;
mod nat;
mod networks;
mod ports;
mod questions;
mod ratios;
mod reached_groups;
mod relocation;
mod root_volumes;
mod router_uses;
mod routers;
mod scale;
mod security_groups;
mod snapshots;
mod standstill;
mod volumes;
