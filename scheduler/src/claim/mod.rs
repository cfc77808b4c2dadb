//! Changes to rows: one transaction per request, then the documents that follow from it.
//!
//! Every function here checks everything before it writes anything, and answers with a [`Refusal`] that says what
//! is wrong and what would be right. [`refresh`] ends each change: it derives the documents of the hosts concerned
//! in the same transaction, so that rows and documents can never disagree.

pub mod address;
pub mod hosts;
pub mod instances;
pub mod networks;

use std::collections::{BTreeMap, BTreeSet};

use berth_common::{
    document::DocumentKey,
    ids::HostId,
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
    units::Generation,
};
use berth_store::{StoreError, Txn, documents, documents::DocumentRow, host_rows};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::derive::{self, diff};

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The request cannot be granted; its sender is told why.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// A document could not be written as JSON.
    #[error("a document could not be written")]
    Encode(#[from] serde_json::Error),
}

impl ClaimError {
    /// What the sender of the request is told; the rest is for the log.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Store(error) if error.retryable() => Refusal::new(
                RefusalCode::Unavailable,
                "the scheduler's database is out of reach just now; whether anything was changed is not known: send the same \
                 request again",
            ),
            Self::Store(StoreError::NotFound { id, .. }) => {
                Refusal::new(RefusalCode::NotFound, format!("there is no {id}"))
            }
            Self::Store(_) | Self::Encode(_) => {
                tracing::error!(error = %error_chain(self), "a request failed");
                Refusal::new(
                    RefusalCode::Internal,
                    "the scheduler failed; its log has the reason",
                )
            }
        }
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> ClaimError {
    Refusal::new(RefusalCode::Invalid, message).into()
}

pub(crate) fn not_found(message: impl Into<String>) -> ClaimError {
    Refusal::new(RefusalCode::NotFound, message).into()
}

pub(crate) fn conflict(message: impl Into<String>) -> ClaimError {
    Refusal::new(RefusalCode::Conflict, message).into()
}

/// What makes a repeated request the same: SHA-256 over its content, in hex.
fn fingerprint(request: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_vec(request)?;
    Ok(Sha256::digest(&json)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Writes the documents of a host that follow from its rows now. Documents in `again` get a new generation even
/// if nothing differs.
///
/// # Errors
/// When the database fails.
pub async fn refresh(
    txn: &Txn,
    host: HostId,
    again: &BTreeSet<DocumentKey>,
    now: DateTime<Utc>,
) -> Result<(), ClaimError> {
    let wanted = derive::derive(&host_rows::of_host(txn, host).await?)?;
    let rows: BTreeMap<DocumentKey, DocumentRow> = documents::of_host(txn, host)
        .await?
        .into_iter()
        .map(|row| (row.key, row))
        .collect();
    let told = rows
        .iter()
        .map(|(key, row)| {
            let told = diff::Told {
                generation: row.generation,
                spec_json: row.spec_json.clone(),
            };
            (*key, told)
        })
        .collect();
    for change in diff::diff(&wanted, &told, again) {
        let before = rows.get(&change.key);
        let row = DocumentRow {
            host_id: host,
            key: change.key,
            generation: change.generation,
            spec_json: change.spec_json,
            observed_generation: before.map_or(Generation(0), |row| row.observed_generation),
            observed_status: before.and_then(|row| row.observed_status),
            changed_at: now,
            published_at: None,
            attempts: 0,
            next_publish_at: None,
        };
        documents::upsert(txn, &row).await?;
    }
    Ok(())
}
