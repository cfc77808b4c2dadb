//! How many of each countable resource are free on which host: one column per resource class.

use std::collections::BTreeMap;

use super::{
    host::Host,
    host_set::HostIndex,
    request::{Request, ResourceClass},
};

/// The columns; beyond the end of one nothing is free.
#[derive(Debug, Clone, Default)]
pub(super) struct Countables {
    free: BTreeMap<ResourceClass, Vec<u64>>,
}

/// A request's countable resources, each with the column that has them.
pub(super) type Wanted<'a> = Vec<(u64, &'a [u64])>;

impl Countables {
    /// Writes what is free of a class on a host.
    pub(super) fn set(&mut self, class: &ResourceClass, HostIndex(slot): HostIndex, free: u64) {
        if let Some(column) = self.free.get_mut(class) {
            if slot >= column.len() {
                column.resize(slot + 1, 0);
            }
            column[slot] = free;
        } else if free > 0 {
            let mut column = vec![0; slot + 1];
            column[slot] = free;
            self.free.insert(class.clone(), column);
        }
    }

    /// Writes what is free of every class of a host.
    pub(super) fn set_all(&mut self, slot: HostIndex, host: &Host) {
        for class in host.classes() {
            self.set(class, slot, host.countable_free(class));
        }
    }

    /// Follows the last host into the slot of a removed one.
    pub(super) fn swap_remove(&mut self, HostIndex(slot): HostIndex, HostIndex(last): HostIndex) {
        self.free.retain(|_, column| {
            let moved = column.get(last).copied().unwrap_or(0);
            if let Some(free) = column.get_mut(slot) {
                *free = moved;
            }
            column.truncate(last);
            column.iter().any(|free| *free > 0)
        });
    }

    /// What is free of a class on a host.
    pub(super) fn free(&self, class: &ResourceClass, HostIndex(slot): HostIndex) -> u64 {
        let column = self.free.get(class);
        column
            .and_then(|column| column.get(slot))
            .copied()
            .unwrap_or(0)
    }

    /// The columns a request asks, in the order in which it names them.
    pub(super) fn wanted(&self, request: &Request) -> Wanted<'_> {
        let columns = request.countables.iter().map(|(class, needed)| {
            let column = self.free.get(class).map(Vec::as_slice);
            (*needed, column.unwrap_or_default())
        });
        columns.collect()
    }
}

/// How much a host lacks of the first resource it has too few of; zero where it has enough of all.
#[inline]
pub(super) fn missing(wanted: &Wanted<'_>, HostIndex(slot): HostIndex) -> u64 {
    for (needed, column) in wanted {
        let free = column.get(slot).copied().unwrap_or(0);
        if *needed > free {
            return needed - free;
        }
    }
    0
}

impl Countables {
    /// Compares every number with what it should be.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn debug_validate(
        &self,
        expected: impl Fn(&ResourceClass, HostIndex) -> u64,
    ) -> Result<(), String> {
        for (class, column) in &self.free {
            for (slot, free) in column.iter().enumerate() {
                let expected = expected(class, HostIndex(slot));
                if *free != expected {
                    return Err(format!(
                        "slot {slot}: {free} of {class} are kept as free, {expected} are"
                    ));
                }
            }
        }
        Ok(())
    }
}
