//! Server groups: instances that shall be together, or apart.

use berth_common::{
    ids::InstanceId,
    message::{
        placement::{ServerGroupPolicy, ServerGroupView},
        request::{ServerGroupCreate, ServerGroupDelete, ServerGroupList, ServerGroupListReply},
    },
};
use berth_store::{
    Executor, StoreError, UniqueWhat,
    server_groups::{self, ServerGroupRow},
};

use super::{ClaimError, conflict, fingerprint, hints, invalid};
use crate::context::Writing;

/// Creates a server group without members.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn create(
    writing: &Writing<'_>,
    request: &ServerGroupCreate,
) -> Result<ServerGroupView, ClaimError> {
    match (request.max_server_per_host, request.policy) {
        (Some(0), _) => return Err(invalid("max_server_per_host must be at least 1")),
        (Some(_), policy) if policy != ServerGroupPolicy::AntiAffinity => {
            return Err(invalid(format!(
                "max_server_per_host goes with policy anti_affinity only; the policy is {}",
                policy.as_str()
            )));
        }
        _ => {}
    }
    let fingerprint = fingerprint(request)?;
    let txn = writing.txn();
    if let Some(existing) = server_groups::get(txn, request.id).await? {
        if existing.fingerprint != fingerprint {
            return Err(conflict(format!(
                "server group {} exists already and was asked for with another content; use a new id for a new group",
                existing.id
            )));
        }
        return view(txn, existing).await;
    }
    let row = ServerGroupRow {
        id: request.id,
        project: request.project.clone(),
        name: request.name.clone(),
        policy: request.policy,
        max_server_per_host: request.max_server_per_host,
        fingerprint,
        created_at: writing.now,
    };
    server_groups::insert(txn, &row)
        .await
        .map_err(|error| match error {
            StoreError::Unique {
                constraint: UniqueWhat::ServerGroupName,
                ..
            } => conflict(format!(
                "project {} already has a server group named {}",
                request.project, request.name
            )),
            error => error.into(),
        })?;
    view(txn, row).await
}

/// Deletes a server group that has no living instance.
///
/// # Errors
/// A refusal, or a failure of the database; then nothing of it may be kept.
pub async fn delete(
    writing: &Writing<'_>,
    request: &ServerGroupDelete,
) -> Result<ServerGroupView, ClaimError> {
    let txn = writing.txn();
    let row = hints::group(txn, &request.project, &request.server_group).await?;
    let shown = view(txn, row).await?;
    if !shown.members.is_empty() {
        return Err(conflict(format!(
            "server group {} has {} instances; delete them first",
            shown.name,
            shown.members.len()
        )));
    }
    server_groups::delete(txn, shown.id).await?;
    Ok(shown)
}

/// All server groups asked for, by project and name.
///
/// # Errors
/// When the database fails.
pub async fn list(
    db: &impl Executor,
    request: &ServerGroupList,
) -> Result<ServerGroupListReply, ClaimError> {
    let rows = server_groups::list(db, request.project.as_ref()).await?;
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let mut members = server_groups::members(db, &ids).await?;
    Ok(ServerGroupListReply {
        server_groups: rows
            .into_iter()
            .map(|row| {
                let members = members.remove(&row.id).unwrap_or_default();
                view_of(row, members)
            })
            .collect(),
    })
}

async fn view(db: &impl Executor, row: ServerGroupRow) -> Result<ServerGroupView, ClaimError> {
    let mut members = server_groups::members(db, &[row.id]).await?;
    let members = members.remove(&row.id).unwrap_or_default();
    Ok(view_of(row, members))
}

fn view_of(row: ServerGroupRow, members: Vec<InstanceId>) -> ServerGroupView {
    ServerGroupView {
        id: row.id,
        name: row.name,
        project: row.project,
        policy: row.policy,
        max_server_per_host: row.max_server_per_host,
        members,
        created_at: row.created_at,
    }
}
