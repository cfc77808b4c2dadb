//! What was dropped of the packets of this host's ports, of the kernel's counters by tap.

use std::collections::BTreeMap;

use berth_common::{
    document::Document,
    ids::{InstanceId, PortId},
};

use super::Reason;
use crate::decide::names;

/// What was dropped of a port for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortDrops {
    /// The port.
    pub port: PortId,
    /// The instance it belongs to.
    pub instance: InstanceId,
    /// Why.
    pub reason: Reason,
    /// How many packets, since the port came to this host.
    pub packets: u64,
}

/// What was dropped of the ports that documents name. A packet to several receivers counts once for each, where it is the receiver's
/// link that it is dropped before.
#[must_use]
pub fn drops<'a>(
    counted: &BTreeMap<(String, Reason), u64>,
    documents: impl Iterator<Item = &'a Document>,
) -> Vec<PortDrops> {
    let mut drops = Vec::new();
    for document in documents {
        let Document::Network(wish) = document else {
            continue;
        };
        for port in wish.spec.iter().flat_map(|spec| &spec.ports) {
            let tap = names::tap(port.id);
            for reason in Reason::ALL {
                if let Some(packets) = counted.get(&(tap.clone(), reason)) {
                    drops.push(PortDrops {
                        port: port.id,
                        instance: port.instance_id,
                        reason,
                        packets: *packets,
                    });
                }
            }
        }
    }
    drops
}
