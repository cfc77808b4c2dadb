//! Ports from outside.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    ids::{NetworkId, SecurityGroupId},
    message::{
        port::{PortList, PortListReply, PortStatus},
        security_group::SecurityGroupRef,
        view::PortView,
    },
    names::{NetworkName, ProjectName, SecurityGroupName},
};
use berth_store::{
    Executor, networks,
    ports::{self, AttachmentState, PortFilter, PortRow},
};

use super::show::cut;
use crate::claim::{self, ClaimError};

/// The names of what ports refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Of networks.
    pub networks: BTreeMap<NetworkId, NetworkName>,
    /// Of security groups.
    pub groups: BTreeMap<SecurityGroupId, SecurityGroupName>,
}

/// A port from outside.
#[must_use]
pub fn port(row: &PortRow, names: &Names) -> PortView {
    let group = |id: &SecurityGroupId| {
        let name = names.groups.get(id)?;
        Some(SecurityGroupRef {
            id: *id,
            name: name.clone(),
        })
    };
    PortView {
        id: row.id,
        name: row.name.clone(),
        project: row.project.clone(),
        network_id: row.network_id,
        network: names.networks.get(&row.network_id).cloned(),
        status: match row.attachment.map(|attachment| attachment.state) {
            None => PortStatus::Down,
            Some(AttachmentState::Attaching) => PortStatus::Attaching,
            Some(AttachmentState::Attached) => PortStatus::Active,
            Some(AttachmentState::Detaching) => PortStatus::Detaching,
        },
        instance_id: row.instance_id(),
        delete_with_instance: row.delete_with_instance,
        mac_address: row.mac_address,
        fixed_ips: row.fixed_ips.clone(),
        admin_state_up: row.wishes.admin_state_up,
        port_security_enabled: row.wishes.port_security_enabled,
        security_groups: row
            .wishes
            .security_groups
            .iter()
            .filter_map(group)
            .collect(),
        allowed_address_pairs: row.wishes.allowed_address_pairs.clone(),
        qos: row.wishes.qos,
        mirrors: row.wishes.mirrors.clone(),
        created_at: Some(row.created_at),
    }
}

/// The names of what some ports refer to: two queries.
///
/// # Errors
/// When the database fails.
pub async fn names<'a>(
    db: &impl Executor,
    rows: impl IntoIterator<Item = &'a PortRow>,
) -> Result<Names, ClaimError> {
    let (mut of_networks, mut of_groups) = (BTreeSet::new(), BTreeSet::new());
    for row in rows {
        of_networks.insert(row.network_id);
        of_groups.extend(row.wishes.security_groups.iter().copied());
    }
    let of_networks: Vec<NetworkId> = of_networks.into_iter().collect();
    Ok(Names {
        networks: networks::of_ids(db, &of_networks)
            .await?
            .into_iter()
            .map(|network| (network.id, network.name))
            .collect(),
        groups: claim::security_groups::names(db, &of_groups).await?,
    })
}

/// One port.
///
/// # Errors
/// When the database fails.
pub async fn one(db: &impl Executor, row: PortRow) -> Result<PortView, ClaimError> {
    let names = names(db, [&row]).await?;
    Ok(port(&row, &names))
}

/// One page of ports, by id.
///
/// # Errors
/// A refusal when the network or the instance is not there, or a failure of the database.
pub async fn list(db: &impl Executor, request: &PortList) -> Result<PortListReply, ClaimError> {
    let project = request.project.clone();
    let named_in: ProjectName = project.clone().unwrap_or_default();
    let network = match &request.network {
        Some(network) => Some(
            claim::networks::resolve_any(db, &named_in, network)
                .await?
                .id,
        ),
        None => None,
    };
    let instance = match &request.instance {
        Some(instance) => Some(claim::instances::resolve(db, &named_in, instance).await?.id),
        None => None,
    };
    let filter = PortFilter {
        project,
        network,
        instance,
    };
    let limit = request.limit.clamp(1, 1000);
    let mut rows = ports::list(db, &filter, request.after, limit + 1).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let names = names(db, &rows).await?;
    let mut ports: Vec<PortView> = rows.iter().map(|row| port(row, &names)).collect();
    let is_cut = cut(&mut ports)?;
    Ok(PortListReply {
        ports,
        more: more || is_cut,
    })
}
