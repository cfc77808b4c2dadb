//! What the ports of a network on a host may send and receive: their groups, and whom the rules of these mean by a group.
//!
//! Of a network that reaches beyond the host, the members of a group are all ports that have it, wherever they are. Of one that
//! does not, only the host's own ports can be meant: others never send anything there, and so a host hears nothing of them.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{PortSecurity, SecurityGroupSpec},
    ids::SecurityGroupId,
    names::IpPrefix,
};
use berth_store::{host_rows::HostRows, networks::NetworkRow, ports::PortRow};

/// What is held against a port; none without port security.
pub(super) fn of_port(port: &PortRow) -> Option<PortSecurity> {
    port.wishes.port_security_enabled.then(|| PortSecurity {
        allowed_address_pairs: port.wishes.allowed_address_pairs.clone(),
        security_groups: port.groups_in_force().collect(),
    })
}

/// The host's own ports in a network.
fn ports<'a>(network: &NetworkRow, rows: &'a HostRows) -> impl Iterator<Item = &'a PortRow> {
    let id = network.id;
    rows.instances
        .iter()
        .flat_map(|(_, ports)| ports)
        .filter(move |port| port.network_id == id)
}

fn groups_in(network: &NetworkRow, rows: &HostRows) -> BTreeSet<SecurityGroupId> {
    ports(network, rows)
        .flat_map(PortRow::groups_in_force)
        .collect()
}

/// The groups of a network's ports on the host, by id, each with its rules by id.
pub(super) fn groups(network: &NetworkRow, rows: &HostRows) -> Vec<SecurityGroupSpec> {
    groups_in(network, rows)
        .into_iter()
        .map(|id| {
            let mut rules = rows.security.groups.get(&id).cloned().unwrap_or_default();
            rules.sort();
            SecurityGroupSpec { id, rules }
        })
        .collect()
}

/// The addresses of those whom the rules of these groups mean by a group.
pub(super) fn members(
    network: &NetworkRow,
    rows: &HostRows,
) -> BTreeMap<SecurityGroupId, Vec<IpPrefix>> {
    let named: BTreeSet<SecurityGroupId> = groups_in(network, rows)
        .into_iter()
        .flat_map(|group| rows.security.named_by(group))
        .collect();
    named
        .into_iter()
        .map(|group| {
            let addresses: BTreeSet<IpPrefix> = if network.network_type.spans_hosts() {
                let known = rows.security.members.get(&(network.id, group));
                known.cloned().unwrap_or_default()
            } else {
                ports(network, rows)
                    .filter(|port| port.groups_in_force().any(|of| of == group))
                    .flat_map(addresses)
                    .collect()
            };
            (group, addresses.into_iter().collect())
        })
        .collect()
}

/// The addresses that a port may use: its own, and its pairs.
fn addresses(port: &PortRow) -> impl Iterator<Item = IpPrefix> {
    let own = port.fixed_ips.iter().map(|fixed| fixed.ip_address.into());
    let pairs = port.wishes.allowed_address_pairs.iter();
    own.chain(pairs.map(|pair| pair.ip_address))
}
