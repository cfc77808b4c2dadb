//! The numbers that every decision reads of every host, one column per number, so that a scan is a few straight
//! loops over dense memory.
//!
//! A row is a pure function of its host and the settings, and is written when the host changes.

use berth_common::message::view::HostState as Liveness;

use super::{
    amounts::Resource,
    filter::FilterName,
    host::{Admission, Host},
    host_set::{BLOCK, HostIndex},
    mix,
    settings::Settings,
    weigh,
};

/// The code of a host that no filter has rejected: above that of every filter, so that the first filter to reject
/// a host is the minimum of all codes.
pub(super) const FITS: u8 = u8::MAX;

/// The columns; all of one length.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    /// The code of [`FilterName::Enabled`] or [`FilterName::Alive`] where those reject, else [`FITS`].
    pub(super) standing: Vec<u8>,
    /// The largest instance that fits, by vCPUs.
    pub(super) vcpus: Vec<i32>,
    /// The same by memory in MiB.
    pub(super) memory_mb: Vec<i32>,
    /// The same by disk in GiB.
    pub(super) disk_gb: Vec<i32>,
    /// The part of the score that changes only with the host.
    pub(super) base: Vec<i64>,
    /// The highest of these in each [`BLOCK`] of slots: a block whose highest is too low needs no look.
    pub(super) highest: Vec<i64>,
    /// What ties are decided by, with the seed.
    pub(super) mixed_id: Vec<u64>,
    /// The id; what ties are decided by at last.
    pub(super) id: Vec<u128>,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    standing: u8,
    vcpus: i32,
    memory_mb: i32,
    disk_gb: i32,
    base: i64,
    mixed_id: u64,
    id: u128,
}

impl Row {
    pub(super) fn of(host: &Host, settings: &Settings) -> Self {
        Self {
            standing: standing(host),
            vcpus: largest(host, Resource::Vcpus),
            memory_mb: largest(host, Resource::MemoryMb),
            disk_gb: largest(host, Resource::DiskGb),
            base: weigh::base(host, settings),
            mixed_id: mix::mixed_id(host.facts().id),
            id: host.facts().id.as_uuid().as_u128(),
        }
    }
}

fn standing(host: &Host) -> u8 {
    match (host.facts().admission, host.facts().liveness) {
        (Admission::Disabled | Admission::Draining, _) => FilterName::Enabled.code(),
        (Admission::Enabled, Liveness::Down) => FilterName::Alive.code(),
        (Admission::Enabled, Liveness::Up) => FITS,
    }
}

/// The largest instance that fits, physically and with overcommit.
///
/// Bounded by `i32::MAX`, which is exact for every request of at most that (2 PiB of memory); four of these fit
/// into one vector register of any x86-64.
fn largest(host: &Host, resource: Resource) -> i32 {
    let room = host.physical(resource).min(host.free(resource));
    i32::try_from(room).unwrap_or(i32::MAX)
}

impl Columns {
    pub(super) fn push(&mut self, row: Row) {
        self.standing.push(row.standing);
        self.vcpus.push(row.vcpus);
        self.memory_mb.push(row.memory_mb);
        self.disk_gb.push(row.disk_gb);
        self.base.push(row.base);
        self.mixed_id.push(row.mixed_id);
        self.id.push(row.id);
        self.note_highest((self.id.len() - 1) / BLOCK);
    }

    pub(super) fn set(&mut self, HostIndex(slot): HostIndex, row: Row) {
        self.standing[slot] = row.standing;
        self.vcpus[slot] = row.vcpus;
        self.memory_mb[slot] = row.memory_mb;
        self.disk_gb[slot] = row.disk_gb;
        self.base[slot] = row.base;
        self.mixed_id[slot] = row.mixed_id;
        self.id[slot] = row.id;
        self.note_highest(slot / BLOCK);
    }

    pub(super) fn row(&self, HostIndex(slot): HostIndex) -> Row {
        Row {
            standing: self.standing[slot],
            vcpus: self.vcpus[slot],
            memory_mb: self.memory_mb[slot],
            disk_gb: self.disk_gb[slot],
            base: self.base[slot],
            mixed_id: self.mixed_id[slot],
            id: self.id[slot],
        }
    }

    pub(super) fn swap_remove(&mut self, HostIndex(slot): HostIndex) {
        self.standing.swap_remove(slot);
        self.vcpus.swap_remove(slot);
        self.memory_mb.swap_remove(slot);
        self.disk_gb.swap_remove(slot);
        self.base.swap_remove(slot);
        self.mixed_id.swap_remove(slot);
        self.id.swap_remove(slot);
        self.note_highest(slot / BLOCK);
        self.note_highest(self.id.len() / BLOCK);
    }

    /// The highest part of the score in a block; none where it has no hosts.
    pub(super) fn highest_in(&self, block: usize) -> Option<i64> {
        let rest = self.base.get(block * BLOCK..)?;
        rest.iter().take(BLOCK).copied().max()
    }

    fn note_highest(&mut self, block: usize) {
        match self.highest_in(block) {
            None => self.highest.truncate(block),
            Some(highest) => {
                self.highest
                    .resize(self.base.len().div_ceil(BLOCK), highest);
                self.highest[block] = highest;
            }
        }
    }
}
