//! The newest look at the whole host: written by the engine every few seconds, read by whoever must not wait.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_common::units::ByteCount;
use tokio::time::Instant;

use crate::{act::PoolState, decide::domain::DomainObserved};

/// A look older than this says nothing about now.
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// The newest look. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub struct Glances {
    newest: Arc<Mutex<Glance>>,
}

/// A look at the host. The default: nothing is known yet.
#[derive(Debug, Clone, Default)]
pub struct Glance {
    /// All domains, and when they were seen last.
    pub domains: Option<(Instant, Arc<Vec<DomainObserved>>)>,
    /// Why the last look at the domains failed, if it did.
    pub libvirt_error: Option<String>,
    /// Size and used bytes of the file system of the disks.
    pub space: Option<(ByteCount, ByteCount)>,
    /// Every storage pool, as it was seen last.
    pub pools: Vec<PoolState>,
    /// Why the last look at the file system failed, if it did.
    pub storage_error: Option<String>,
    /// Why the journal cannot be written, if so.
    pub journal_error: Option<String>,
    /// When the engine was last heard of.
    pub engine_alive: Option<Instant>,
}

impl Glances {
    /// The newest look.
    #[must_use]
    pub fn newest(&self) -> Glance {
        self.newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the newest look.
    pub fn update(&self, change: impl FnOnce(&mut Glance)) {
        change(&mut self.newest.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
