//! Which report of a resource is the newest: `(session, sequence)` of its host, remembered in memory.
//!
//! The bus may deliver a report twice or late. After a start nothing is remembered, and nothing needs to be: what
//! was not acknowledged comes again in its old order.

use std::collections::HashMap;

use berth_common::{document::DocumentKey, ids::HostId};

/// The newest report seen of each resource of each host.
#[derive(Debug, Default)]
pub struct ReportOrder {
    newest: HashMap<(HostId, DocumentKey), Stamp>,
}

/// When a report was made, on its host's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// How often the agent had started.
    pub session: u64,
    /// Which report of that session.
    pub sequence: u64,
}

impl ReportOrder {
    /// Whether a report is older than one of the same resource that was written down.
    #[must_use]
    pub fn is_late(&self, host: HostId, key: DocumentKey, stamp: Stamp) -> bool {
        self.newest
            .get(&(host, key))
            .is_some_and(|newest| stamp < *newest)
    }

    /// A report was written down.
    pub fn written(&mut self, host: HostId, key: DocumentKey, stamp: Stamp) {
        let newest = self.newest.entry((host, key)).or_insert(stamp);
        *newest = stamp.max(*newest);
    }

    /// Forgets everything: now and then, so that what is long gone takes no memory. A report that is late by more
    /// than the time between is not to be had on a bus that loses nothing for so long.
    pub fn clear(&mut self) {
        self.newest = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use berth_common::document::Kind;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_an_older_report_of_the_same_resource_is_late() {
        let host = HostId::new();
        let key = |id| DocumentKey {
            kind: Kind::Instance,
            id: Uuid::from_u128(id),
        };
        let stamp = |session, sequence| Stamp { session, sequence };
        let mut order = ReportOrder::default();
        order.written(host, key(1), stamp(2, 5));
        order.written(host, key(1), stamp(2, 4));
        assert!(order.is_late(host, key(1), stamp(2, 4)));
        assert!(order.is_late(host, key(1), stamp(1, 9)));
        assert!(
            !order.is_late(host, key(1), stamp(2, 5)),
            "a repeated one is harmless"
        );
        assert!(!order.is_late(host, key(1), stamp(3, 1)));
        assert!(!order.is_late(host, key(2), stamp(1, 1)));
        order.clear();
        assert!(!order.is_late(host, key(1), stamp(1, 1)));
    }
}
