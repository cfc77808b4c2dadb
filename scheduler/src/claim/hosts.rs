//! Enabling, disabling and looking up hosts.

use berth_common::{
    ids::HostId,
    message::view::{HostStatus, HostView},
    names::HostName,
};
use berth_store::{
    Executor,
    hosts::{self, HostRow},
};

use super::{ClaimError, not_found};
use crate::{context::Context, report::show};

/// Lets a host get new instances, or no more.
///
/// # Errors
/// A refusal when there is no such host, or a failure of the database.
pub async fn set_status(
    context: &Context,
    host: &str,
    status: HostStatus,
    reason: Option<&str>,
) -> Result<HostView, ClaimError> {
    let writing = context.begin().await?;
    let row = resolve(&writing.txn, host).await?;
    hosts::set_status(&writing.txn, row.id, status, reason).await?;
    let row = resolve(&writing.txn, &row.id.to_string()).await?;
    let shown = show::host(context, &writing.txn, &row).await?;
    writing.commit().await?;
    tracing::info!(host = %row.name, ?status, reason, "host status changed");
    Ok(shown)
}

/// The host a request names, by id or by name.
///
/// # Errors
/// A refusal when there is none, or a failure of the database.
pub async fn resolve(db: &impl Executor, host: &str) -> Result<HostRow, ClaimError> {
    if let Ok(id) = host.parse::<HostId>()
        && let Some(row) = hosts::get(db, id).await?
    {
        return Ok(row);
    }
    if let Ok(name) = host.parse::<HostName>()
        && let Some(row) = hosts::find_by_name(db, &name).await?
    {
        return Ok(row);
    }
    let shown: String = host.chars().take(80).collect();
    Err(not_found(format!(
        "there is no host {shown:?}, neither by id nor by name; `berthctl host list` shows all"
    )))
}
