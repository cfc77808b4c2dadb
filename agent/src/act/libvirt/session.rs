//! One thread's connection to libvirt: opened when first needed, opened again when libvirtd went away.
//!
//! A connection never leaves the thread that opened it. libvirt allows sharing one, but then a call that hangs
//! would hold up the others, and a thread given up could disturb the one that took its place.

use std::sync::OnceLock;

use virt::{connect::Connect, event};

use super::error::{abandoned, unreachable};
use crate::act::{ActError, pool::Ticket};

/// Seconds between two questions whether libvirtd is still there.
const KEEPALIVE_INTERVAL: i32 = 5;
/// How many of them may go unanswered before the connection is given up, and with it the calls that hang on it.
const KEEPALIVE_COUNT: u32 = 3;

/// A thread's connection.
pub(super) struct Session {
    uri: String,
    connection: Option<Connect>,
}

impl Session {
    pub(super) fn new(uri: String) -> Self {
        Self {
            uri,
            connection: None,
        }
    }

    /// Runs an operation on the connection. When the connection turns out to be broken, once more on a new one:
    /// every operation here may be repeated.
    pub(super) fn run<T>(
        &mut self,
        ticket: &Ticket,
        what: &str,
        operation: impl Fn(&Connect) -> Result<T, ActError>,
    ) -> Result<T, ActError> {
        let first = operation(self.connect()?);
        if first.is_ok() || self.is_alive() {
            return first;
        }
        self.close();
        if ticket.is_abandoned() {
            return Err(abandoned(what.to_owned()));
        }
        operation(self.connect()?)
    }

    fn connect(&mut self) -> Result<&Connect, ActError> {
        if !self.is_alive() {
            self.close();
        }
        if self.connection.is_none() {
            prepare_library();
            let connection =
                Connect::open(Some(&self.uri)).map_err(|error| unreachable(&self.uri, error))?;
            // An in-process driver (libvirt's `test:///`) has nothing to keep alive and says so.
            if let Err(error) = connection.set_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT) {
                tracing::debug!(uri = %self.uri, %error, "libvirt connection without keepalive");
            }
            tracing::debug!(uri = %self.uri, "connected to libvirt");
            return Ok(self.connection.insert(connection));
        }
        self.connection
            .as_ref()
            .ok_or_else(|| abandoned("connecting to libvirt".to_owned()))
    }

    fn is_alive(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.is_alive().unwrap_or(false))
    }

    fn close(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            // Of a broken connection only the memory is left to free.
            drop(connection.close());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

/// Once per process, before the first connection: errors go to the callers only (libvirt would print them), and
/// libvirt's event loop runs, which keepalive needs and which notices that libvirtd went away.
fn prepare_library() {
    static PREPARED: OnceLock<()> = OnceLock::new();
    PREPARED.get_or_init(|| {
        virt::error::clear_error_callback();
        if let Err(error) = event::event_register_default_impl() {
            tracing::warn!(%error, "no event loop for libvirt: a libvirtd that hangs is noticed by deadlines only");
            return;
        }
        let events = std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(|| {
            while event::event_run_default_impl().is_ok() {}
            tracing::warn!("libvirt's event loop ended: a libvirtd that hangs is noticed by deadlines only");
        });
        if let Err(error) = events {
            tracing::warn!(%error, "no thread for libvirt's event loop");
        }
    });
}
