//! A question to the host of a port: what went through it, and what was dropped. It is answered from what the kernel and the
//! host's metadata service count, and changes nothing.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{InstanceId, PortId},
    names::HostName,
};

/// Tell what went through a port, and what was dropped. Only the port's host can tell, and only while the guest is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortCounters {
    /// The port, which belongs to an instance.
    pub port: PortId,
}

/// What went through a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortCounted {
    /// The port.
    pub port_id: PortId,
    /// The instance it belongs to.
    pub instance_id: InstanceId,
    /// Its hypervisor.
    pub host: HostName,
    /// The port's link there. What it counts begins anew with it: when the guest is started, or the port is plugged in.
    pub tap: String,
    /// What the guest received by it: what the kernel says that the tap transmitted.
    pub received: LinkCounts,
    /// What the guest sent by it: what the kernel says that the tap received.
    pub sent: LinkCounts,
    /// Packets of the port that the packet filter dropped since the port came to this host, by reason, as in
    /// `berth_port_dropped_packets_total`.
    pub filter_dropped_packets: BTreeMap<String, u64>,
    /// Requests to the metadata service with headers by which a proxy says who asks, since that service was started. Nothing
    /// became of the headers. Null: the port has no metadata service here.
    pub forged_metadata_requests: Option<u64>,
}

/// What a link counted in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LinkCounts {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that the link dropped: not those of the packet filter or of a limit.
    pub dropped_packets: u64,
    /// Packets that were spoilt.
    pub errors: u64,
}
