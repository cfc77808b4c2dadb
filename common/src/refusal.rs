//! The typed "no" that a sender gets: a code for programs, a text for people, and whether trying again can help.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The reason, for programs.
    pub code: RefusalCode,
    /// The reason, for people: what is wrong and what would be right.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

/// Reasons for refusing a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The body is not the JSON that the method takes.
    Malformed,
    /// No such method (AMQP property `type`).
    UnknownMethod,
    /// The header `x-berth-version` is missing or names a version this scheduler does not speak.
    UnsupportedVersion,
    /// The body is larger than a message may be.
    TooLarge,
    /// The request is well-formed but asks for something impossible.
    Invalid,
    /// Something the request names does not exist.
    NotFound,
    /// The request contradicts what exists (a taken id, name or address; a network in use).
    Conflict,
    /// No host fits; the message has the numbers.
    NoValidHost,
    /// A part that is needed is out of order just now.
    Unavailable,
    /// A fault of berth itself; the log has the rest.
    Internal,
}

impl RefusalCode {
    /// Whether the same request may succeed later without anybody changing it.
    #[must_use]
    pub const fn retryable(self) -> bool {
        match self {
            Self::NoValidHost | Self::Unavailable | Self::Internal => true,
            Self::Malformed
            | Self::UnknownMethod
            | Self::UnsupportedVersion
            | Self::TooLarge
            | Self::Invalid
            | Self::NotFound
            | Self::Conflict => false,
        }
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownMethod => "unknown_method",
            Self::UnsupportedVersion => "unsupported_version",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::NoValidHost => "no_valid_host",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl Refusal {
    /// A refusal whose `retryable` follows from its code.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.retryable(),
        }
    }
}
