//! What an instance is called, and what is said of it. Its guest does not notice: it learns its new name by DHCP, with its next
//! lease.

use std::collections::BTreeMap;

use berth_common::{
    document::{ConfigDrive, OnCrash},
    ids::HostId,
    message::request::InstanceSet,
    names::{InstanceName, PropertyKey, PropertyValue},
};
use berth_store::instances::{self, Description, InstanceRow};

use super::change::leave_off;
use crate::{
    claim::{ClaimError, conflict, invalid},
    context::Writing,
};

/// What shall be different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wording {
    name: Option<InstanceName>,
    metadata: BTreeMap<PropertyKey, Option<PropertyValue>>,
    on_crash: Option<OnCrash>,
}

impl From<InstanceSet> for Wording {
    fn from(request: InstanceSet) -> Self {
        Self {
            name: request.name,
            metadata: request.metadata,
            on_crash: request.on_crash,
        }
    }
}

/// Changes it. The same again is granted.
pub(super) async fn describe(
    writing: &Writing<'_>,
    row: &InstanceRow,
    wording: Wording,
    host: Option<HostId>,
) -> Result<(), ClaimError> {
    let name = wording.name.unwrap_or_else(|| row.name.clone());
    let mut metadata = row.metadata.clone();
    for (key, value) in wording.metadata {
        match value {
            Some(value) => drop(metadata.insert(key, value)),
            None => drop(metadata.remove(&key)),
        }
    }
    let most = ConfigDrive::MAX_METADATA;
    if metadata.len() > most {
        return Err(invalid(format!(
            "metadata must be at most {most}; instance {} would have {}",
            row.name,
            metadata.len()
        )));
    }
    let on_crash = wording.on_crash.unwrap_or(row.on_crash);
    if (&name, &metadata, on_crash) == (&row.name, &row.metadata, row.on_crash) {
        return Ok(());
    }
    let txn = writing.txn();
    let other = instances::find_by_name(txn, &row.project, &name).await?;
    if other.is_some_and(|other| other.id != row.id) {
        return Err(conflict(format!(
            "project {} has an instance {name} already; choose another name",
            row.project
        )));
    }
    // Another name is no reason to start a guest that switched itself off.
    if let Some(host) = host {
        leave_off(writing, host, row).await?;
    }
    let description = Description {
        name: &name,
        metadata: &metadata,
        on_crash,
    };
    instances::set_description(txn, row.id, &description, writing.now).await?;
    tracing::info!(instance = %row.id, before = %row.name, %name, "instance is called or described differently");
    Ok(())
}
