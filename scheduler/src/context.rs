//! What every part of the running scheduler shares.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use berth_common::{bus::Bus, ids::HostId};
use berth_store::{Store, StoreError, Txn};
use tokio::sync::{MutexGuard, Notify};

use crate::{
    config::Config, liveness::Liveness, metrics::SchedulerMetrics, report::order::ReportOrder,
};

/// Shared by all tasks of one scheduler.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Counters and gauges.
    pub metrics: SchedulerMetrics,
    /// Wakes [`crate::dispatch`] when there is something to publish.
    pub dispatch: Notify,
    writer: tokio::sync::Mutex<()>,
    liveness: Mutex<Liveness>,
    order: Mutex<ReportOrder>,
}

/// A transaction, and the right to be the only one: one logical writer claims serially, so there is nothing to
/// race with.
pub struct Writing<'a> {
    /// The transaction.
    pub txn: Txn,
    _turn: MutexGuard<'a, ()>,
}

impl Writing<'_> {
    /// Makes everything that was written permanent.
    ///
    /// # Errors
    /// When the database does not confirm; then nothing may be assumed, and whoever asked asks again.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.txn.commit().await
    }
}

impl Context {
    /// The shared state of a scheduler that just started.
    pub fn new(config: Config, store: Store, bus: Arc<dyn Bus>, metrics: SchedulerMetrics) -> Self {
        Self {
            config,
            store,
            bus,
            metrics,
            dispatch: Notify::new(),
            writer: tokio::sync::Mutex::new(()),
            liveness: Mutex::default(),
            order: Mutex::default(),
        }
    }

    /// Waits for the turn to write, and opens a transaction.
    ///
    /// # Errors
    /// When the database is out of reach.
    pub async fn begin(&self) -> Result<Writing<'_>, StoreError> {
        let turn = self.writer.lock().await;
        Ok(Writing {
            txn: self.store.begin().await?,
            _turn: turn,
        })
    }

    /// Looks at or changes who is alive. Never held over an await.
    pub fn liveness<T>(&self, look: impl FnOnce(&mut Liveness) -> T) -> T {
        look(&mut self.liveness.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at or changes which reports are the newest. Never held over an await.
    pub fn order<T>(&self, look: impl FnOnce(&mut ReportOrder) -> T) -> T {
        look(&mut self.order.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a host's heartbeats arrive.
    pub fn is_alive(&self, host: HostId) -> bool {
        let age = self.liveness(|liveness| liveness.age(host, Instant::now()));
        age.is_some_and(|age| age <= self.config.heartbeat_timeout)
    }
}
