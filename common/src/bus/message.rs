//! One message as berth sees it: the AMQP properties with their meaning, and a JSON body.
//!
//! Pure data. It knows no broker and decides nothing about methods or versions: what a
//! sender left out is represented as missing, so that the receiver can refuse it with a
//! readable reason. [`Message::unfit`] names what makes a message unusable for everybody.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// The largest body that is sent or given to a consumer, in bytes (1 MiB).
///
/// A document of one instance is a few KiB. The limit keeps one sender from filling the
/// memory of every receiver.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The header with the version of the method's JSON shape.
pub const HEADER_VERSION: &str = "x-berth-version";
/// The header with the W3C trace context.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// The header on a dead message that says why it is dead.
pub const HEADER_REASON: &str = "x-berth-reason";
/// The header on a dead message that names the queue it was taken from.
pub const HEADER_QUEUE: &str = "x-berth-queue";
/// The header with a number of the sender's own, by which it knows a message that the broker returns. It means
/// nothing to anybody else.
pub const HEADER_TAG: &str = "x-berth-tag";
/// The content type of every body.
pub const CONTENT_TYPE: &str = "application/json";

/// One message: AMQP properties and a JSON body.
///
/// Content type (`application/json`) and delivery mode (2, persistent) are the same for all
/// messages and are set by the implementation.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// `message_id`: unique per message. Empty when the sender gave none.
    pub id: String,
    /// `correlation_id`: in a reply, the id of the request it answers.
    pub correlation_id: Option<String>,
    /// `reply_to`: the queue that waits for the answer.
    pub reply_to: Option<String>,
    /// `type`: the method, such as `instance.create`. Empty when the sender gave none.
    pub method: String,
    /// Header `x-berth-version`: the version of the method's JSON shape, when given.
    pub version: Option<u32>,
    /// Header `traceparent`: the W3C trace context, when given.
    pub traceparent: Option<String>,
    /// `timestamp`: when the message was made; AMQP carries whole seconds.
    pub timestamp: Option<DateTime<Utc>>,
    /// `expiration`: the broker drops the message when it waited longer; whole milliseconds.
    pub expiration: Option<Duration>,
    /// `app_id`: the program that sent it. Empty when the sender gave none.
    pub app_id: String,
    /// The body, JSON in UTF-8.
    pub body: Bytes,
}

impl Message {
    /// A message with a fresh id, stamped with the present time.
    ///
    /// # Errors
    /// [`EncodeError`] when `payload` has no JSON form.
    pub fn new<T: Serialize + ?Sized>(
        method: impl Into<String>,
        version: u32,
        app_id: impl Into<String>,
        payload: &T,
    ) -> Result<Self, EncodeError> {
        let method = method.into();
        let body = serde_json::to_vec(payload).map_err(|source| EncodeError {
            method: method.clone(),
            source,
        })?;
        Ok(Self::from_json(method, version, app_id, body))
    }

    /// A message around JSON text that was made elsewhere.
    pub fn from_json(
        method: impl Into<String>,
        version: u32,
        app_id: impl Into<String>,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            correlation_id: None,
            reply_to: None,
            method: method.into(),
            version: Some(version),
            traceparent: None,
            timestamp: Some(Utc::now()),
            expiration: None,
            app_id: app_id.into(),
            body: body.into(),
        }
    }

    /// The answer to `request`: correlated with its id, carrying on its trace.
    ///
    /// Where it goes is [`Message::reply_to`] of the request.
    ///
    /// # Errors
    /// [`EncodeError`] when `payload` has no JSON form.
    pub fn reply<T: Serialize + ?Sized>(
        request: &Self,
        method: impl Into<String>,
        version: u32,
        app_id: impl Into<String>,
        payload: &T,
    ) -> Result<Self, EncodeError> {
        let mut message = Self::new(method, version, app_id, payload)?;
        message.correlation_id = Some(request.reply_correlation().to_owned());
        message.traceparent.clone_from(&request.traceparent);
        Ok(message)
    }

    /// What an answer to this message carries as its correlation id: the request's own
    /// correlation id when its sender chose one, else its message id.
    #[must_use]
    pub fn reply_correlation(&self) -> &str {
        self.correlation_id.as_deref().unwrap_or(&self.id)
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// [`DecodeError`] with the place of the mistake in the text.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        serde_json::from_slice(&self.body).map_err(|source| DecodeError {
            method: self.method.clone(),
            source,
        })
    }

    /// What makes this message unusable whatever its method, if anything does.
    ///
    /// A body over the limit is found by the bus on delivery, which holds the body back;
    /// see [`super::Delivery::unfit`].
    #[must_use]
    pub fn unfit(&self) -> Option<Unfit> {
        if self.body.len() > MAX_MESSAGE_BYTES {
            return Some(Unfit::TooLarge {
                bytes: self.body.len(),
                limit: MAX_MESSAGE_BYTES,
            });
        }
        if self.method.is_empty() {
            return Some(Unfit::NoMethod);
        }
        if self.version.is_none() {
            return Some(Unfit::NoVersion);
        }
        None
    }
}

/// The body is shown by its size: it may hold secrets such as user data.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("correlation_id", &self.correlation_id)
            .field("reply_to", &self.reply_to)
            .field("method", &self.method)
            .field("version", &self.version)
            .field("traceparent", &self.traceparent)
            .field("timestamp", &self.timestamp)
            .field("expiration", &self.expiration)
            .field("app_id", &self.app_id)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Why a message cannot be used by any receiver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The body is over the limit; it was not given to the receiver.
    #[error("the body has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Size of the body in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The property `type` is missing.
    #[error("the AMQP property `type` (the method) is missing")]
    NoMethod,
    /// The version header is missing or is not a whole number from 0 to 4294967295.
    #[error("the header `{HEADER_VERSION}` is missing or is not a whole number")]
    NoVersion,
}

/// A payload that has no JSON form.
#[derive(Debug, thiserror::Error)]
#[error("the payload of `{method}` cannot be written as JSON")]
pub struct EncodeError {
    /// The method of the message.
    pub method: String,
    /// What the JSON writer says.
    #[source]
    pub source: serde_json::Error,
}

/// A body that is not the JSON its method needs.
#[derive(Debug, thiserror::Error)]
#[error("the body of `{method}` cannot be read")]
pub struct DecodeError {
    /// The method of the message.
    pub method: String,
    /// What the JSON reader says, with line and column.
    #[source]
    pub source: serde_json::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_answers_the_correlation_id_or_else_the_message_id() {
        let mut request = Message::new("a.b", 1, "t", &1).unwrap();
        assert_eq!(
            Message::reply(&request, "a.b", 1, "t", &2)
                .unwrap()
                .correlation_id,
            Some(request.id.clone())
        );
        request.correlation_id = Some("mine".into());
        request.traceparent = Some("00-1-2-01".into());
        let reply = Message::reply(&request, "a.b", 1, "t", &2).unwrap();
        assert_eq!(reply.correlation_id.as_deref(), Some("mine"));
        assert_eq!(reply.traceparent, request.traceparent);
    }

    #[test]
    fn what_is_missing_makes_a_message_unfit() {
        let good = Message::new("a.b", 1, "t", &1).unwrap();
        assert_eq!(good.unfit(), None);
        let mut no_method = good.clone();
        no_method.method.clear();
        assert_eq!(no_method.unfit(), Some(Unfit::NoMethod));
        let mut no_version = good;
        no_version.version = None;
        assert_eq!(no_version.unfit(), Some(Unfit::NoVersion));
    }

    #[test]
    fn debug_shows_no_body() {
        let message = Message::new("a.b", 1, "t", "hunter2").unwrap();
        assert!(!format!("{message:?}").contains("hunter2"));
    }
}
