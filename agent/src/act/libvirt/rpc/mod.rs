//! A client of libvirt's RPC over its UNIX socket: as much of it as the agent needs, without libvirt's library.
//!
//! ```text
//!   Domain ──▶ Procedure ──▶ Connection ──▶ Link ──▶ socket
//!   (calls)    (shapes)      (a handle)     (serial numbers, keepalive, streams)
//! ```
//!
//! [`xdr`] is how values lie in packets, [`packet`] how packets lie in the socket, [`procedures`] what can be asked. The
//! names are those of libvirt's `remote_protocol.x`, `virnetprotocol.x` and `qemu_protocol.x`. What another version of
//! libvirt may not change, and what is done about it if it does, is in ADR 30.
//!
//! [`events`] has a connection of its own, on which nothing is asked and libvirt tells what happens.

mod address;
mod connection;
pub(super) mod constants;
mod domain;
mod error;
mod events;
mod link;
mod packet;
mod procedures;
mod xdr;

#[cfg(test)]
mod tests;

pub use address::{Address, BadAddress};

pub(super) use connection::Connection;
pub(super) use domain::{Domain, JobStats};
#[cfg(test)]
pub(super) use error::Refusal;
pub(super) use error::{Code, Ended, Error};
pub(super) use events::listen;
pub(super) use procedures::{DomainStatsRecord, TypedParam, TypedValue};
