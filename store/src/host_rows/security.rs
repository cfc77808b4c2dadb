//! The security groups of hosts' ports, and who is meant by the groups that their rules name.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::{RuleRemote, SecurityGroupRule},
    ids::{HostId, NetworkId, SecurityGroupId},
};

use super::HostRows;
use crate::{
    error::StoreError,
    executor::Executor,
    security_groups::{self, Members},
};

/// What the security of a host's ports follows from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecurityRows {
    /// The rules of the groups that its ports have, by id; a group without any is in it too.
    pub groups: BTreeMap<SecurityGroupId, Vec<SecurityGroupRule>>,
    /// Of its networks that reach beyond a host: whom the rules of their ports mean by a group, on all hosts; also those in other
    /// such networks that a router joins to them.
    pub members: Members,
}

impl SecurityRows {
    /// The groups that the rules of a group name.
    pub fn named_by(&self, group: SecurityGroupId) -> impl Iterator<Item = SecurityGroupId> {
        let rules = self.groups.get(&group).into_iter().flatten();
        rules.filter_map(|rule| match rule.remote {
            Some(RuleRemote::Group(group)) => Some(group),
            Some(RuleRemote::Prefix(_)) | None => None,
        })
    }
}

/// Adds the groups of the ports in those networks of hosts that are asked for, with one query, and their members with two.
pub(super) async fn add(
    db: &impl Executor,
    rows: &mut BTreeMap<HostId, HostRows>,
    is_asked: impl Fn(HostId, NetworkId) -> bool,
) -> Result<(), StoreError> {
    let mut of_network: BTreeMap<(HostId, NetworkId), BTreeSet<SecurityGroupId>> = BTreeMap::new();
    for (host, rows) in &*rows {
        let ports = rows.instances.iter().flat_map(|(_, ports)| ports);
        for port in ports.filter(|port| is_asked(*host, port.network_id)) {
            let groups = of_network.entry((*host, port.network_id)).or_default();
            groups.extend(port.groups_in_force());
        }
    }
    let ids: BTreeSet<SecurityGroupId> = of_network.values().flatten().copied().collect();
    let ids: Vec<SecurityGroupId> = ids.into_iter().collect();
    let mut rules: BTreeMap<SecurityGroupId, Vec<SecurityGroupRule>> = BTreeMap::new();
    for row in security_groups::rules_of(db, &ids).await? {
        rules.entry(row.group_id).or_default().push(row.rule);
    }
    for ((host, _), groups) in &of_network {
        if let Some(rows) = rows.get_mut(host) {
            for group in groups {
                let of_group = rules.get(group).cloned().unwrap_or_default();
                rows.security.groups.insert(*group, of_group);
            }
        }
    }
    let mut wanted: BTreeMap<HostId, BTreeSet<(NetworkId, SecurityGroupId)>> = BTreeMap::new();
    for ((host, network), groups) in &of_network {
        let Some(rows) = rows.get(host) else { continue };
        let spans_hosts = |network: &NetworkId| {
            let mut of_host = rows.networks.iter();
            of_host.any(|of| of.id == *network && of.network_type.spans_hosts())
        };
        if !spans_hosts(network) {
            continue;
        }
        let mut from: BTreeSet<NetworkId> = rows.joined_to(*network).into_keys().collect();
        from.retain(spans_hosts);
        from.insert(*network);
        let of_host = wanted.entry(*host).or_default();
        for named in groups
            .iter()
            .flat_map(|group| rows.security.named_by(*group))
        {
            of_host.extend(from.iter().map(|network| (*network, named)));
        }
    }
    let all: BTreeSet<(NetworkId, SecurityGroupId)> = wanted.values().flatten().copied().collect();
    let members = security_groups::members(db, &all).await?;
    for (host, wanted) in wanted {
        if let Some(rows) = rows.get_mut(&host) {
            for of in wanted {
                let found = members.get(&of).cloned().unwrap_or_default();
                rows.security.members.insert(of, found);
            }
        }
    }
    Ok(())
}
