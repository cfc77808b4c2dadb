//! The names of berth's objects in its tables of nftables: functions of ids. The second part of a name tells the network it
//! belongs to; what has none belongs to the host. nft keeps no comments of chains and sets, so full ids are in those of rules.

use berth_common::ids::{NetworkId, PortId, SecurityGroupId};
use uuid::Uuid;

use crate::decide::names;

/// What stands for an id, the same as in the names of links.
fn digits(id: Uuid) -> String {
    names::digits(id.as_bytes())
}

/// The part of a name that tells its network.
#[must_use]
pub(super) fn network(network: NetworkId) -> String {
    digits(network.as_uuid())
}

/// The network's part in a name of ours. A name that is not formed like ours is nobody's, and nothing of it gets into what nft is told.
#[must_use]
pub(super) fn network_of(name: &str) -> Option<&str> {
    let is_kind = |part: &str| {
        let mut bytes = part.bytes();
        bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
            && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_digits = |part: &str| part.len() == 12 && part.bytes().all(|it| it.is_ascii_hexdigit());
    let mut parts = name.split('_');
    let is_of_kind = parts.next().is_some_and(is_kind);
    let network = parts.next().filter(|part| is_digits(part))?;
    (is_of_kind && parts.next().is_none_or(is_digits) && parts.next().is_none()).then_some(network)
}

/// The port's part in a name of ours, if it is a port's chain.
#[must_use]
pub(super) fn port_of(name: &str) -> Option<&str> {
    let mut parts = name.split('_');
    let kind = parts.next()?;
    ["s", "e", "i"].contains(&kind).then_some(())?;
    parts.nth(1)
}

/// A chain or set of a network: `k_<network>`.
#[must_use]
pub(super) fn of_network(kind: &str, id: NetworkId) -> String {
    format!("{kind}_{}", network(id))
}

/// A chain of a port: `k_<network>_<port>`.
#[must_use]
pub(super) fn of_port(kind: &str, id: NetworkId, port: PortId) -> String {
    format!("{kind}_{}_{}", network(id), digits(port.as_uuid()))
}

/// A chain or set of a group: `k_<network>_<group>`.
#[must_use]
pub(super) fn of_group(kind: &str, id: NetworkId, group: SecurityGroupId) -> String {
    format!("{kind}_{}_{}", network(id), digits(group.as_uuid()))
}
