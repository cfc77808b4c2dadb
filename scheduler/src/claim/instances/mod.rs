//! Instances: asked for ([`create`]), changed and deleted ([`change`](mod@change)), and moved on when a host cannot build
//! them ([`relocate`]).

pub(in crate::claim) mod boot;
pub mod change;
pub mod create;
pub mod describe;
pub mod relocate;
mod resize;
mod root;

use berth_common::{
    ids::{InstanceId, NetworkId},
    names::{InstanceName, ProjectName},
};
use berth_store::{
    Executor,
    instances::{self, InstanceRow},
    ports,
};

use super::{ClaimError, not_found};

/// The networks an instance has ports on.
///
/// # Errors
/// When the database fails.
pub async fn networks_of(
    db: &impl Executor,
    instance: InstanceId,
) -> Result<Vec<NetworkId>, ClaimError> {
    let ports = ports::of_instances(db, &[instance]).await?;
    Ok(ports.into_iter().map(|port| port.network_id).collect())
}

/// The instance a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(
    db: &impl Executor,
    project: &ProjectName,
    instance: &str,
) -> Result<InstanceRow, ClaimError> {
    if let Ok(id) = instance.parse::<InstanceId>()
        && let Some(row) = instances::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = instance.parse::<InstanceName>()
        && let Some(row) = instances::find_by_name(db, project, &name).await?
    {
        return Ok(row);
    }
    let shown: String = instance.chars().take(80).collect();
    Err(not_found(format!(
        "project {project} has no instance {shown:?}, neither by id nor by name"
    )))
}
