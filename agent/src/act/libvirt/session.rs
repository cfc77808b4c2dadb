//! One call's connection to libvirt: opened when first needed, opened again when libvirtd went away.

use std::{future::Future, sync::Arc};

use super::{
    error::{abandoned, is_silence, unreachable},
    rpc::{Address, Connection},
};
use crate::act::{ActError, calls::Ticket};

/// A connection that is used by one after the other.
#[derive(Debug)]
pub(super) struct Session {
    address: Arc<Address>,
    connection: Option<Connection>,
}

impl Session {
    pub(super) fn new(address: Arc<Address>) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    /// Runs an operation on the connection. When the connection turns out to be broken, once more on a new one:
    /// every operation here may be repeated.
    pub(super) async fn run<T, F: Future<Output = Result<T, ActError>>>(
        &mut self,
        ticket: &Ticket,
        what: &str,
        operation: impl Fn(Connection) -> F,
    ) -> Result<T, ActError> {
        let connection = self.connect().await?;
        let first = operation(connection.clone()).await;
        // One that says nothing would say nothing on a new connection either.
        let is_answer = first.as_ref().map_or_else(is_silence, |_| true);
        if is_answer || connection.is_alive() {
            return first;
        }
        if ticket.is_abandoned() {
            return Err(abandoned(what.to_owned()));
        }
        let connection = self.connect().await?;
        operation(connection).await
    }

    async fn connect(&mut self) -> Result<Connection, ActError> {
        if let Some(connection) = self.connection.as_ref().filter(|it| it.is_alive()) {
            return Ok(connection.clone());
        }
        let opened = Connection::open(&self.address).await;
        let connection = opened.map_err(|error| unreachable(&self.address, error))?;
        tracing::debug!(address = %self.address, "connected to libvirt");
        Ok(self.connection.insert(connection).clone())
    }
}
