//! Changes to rows, many requests in one transaction, and the documents that follow from them.
//!
//! Every function here takes the right to write ([`crate::context::Writing`]), checks everything before it writes
//! anything, and answers with a [`Refusal`] that says what is wrong and what would be right. What it changes it also
//! changes in the writer's memory ([`cloud`]), and it tells which documents may follow from other rows now;
//! [`documents`] derives them in the same transaction, so that rows and documents can never disagree.

pub mod address;
pub mod aggregates;
pub mod cloud;
pub mod documents;
pub mod facts;
pub mod hints;
pub mod hosts;
pub mod instances;
pub mod load;
pub mod nat;
pub mod networks;
pub mod ports;
pub mod routers;
pub mod security_groups;
pub mod segments;
pub mod server_groups;
pub mod snapshots;
pub mod subnets;
pub mod volumes;

use berth_common::{
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
};
use berth_store::StoreError;
use serde::Serialize;
use sha2::{Digest, Sha256};

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
            Self::Store(error) if error.retryable() => unavailable(),
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

/// The database is out of reach.
pub(crate) fn unavailable() -> Refusal {
    Refusal::new(
        RefusalCode::Unavailable,
        "the scheduler's database is out of reach just now; whether anything was changed is not known: send the same \
         request again",
    )
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
