//! Messages to AMQP properties and back. Pure; the body is not touched.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString, ShortStringError};

use super::super::message::{
    CONTENT_TYPE, HEADER_QUEUE, HEADER_REASON, HEADER_TAG, HEADER_TRACEPARENT, HEADER_VERSION,
};
use super::super::{DeadInfo, Message};

/// Persistent: written to disk by durable queues.
const PERSISTENT: u8 = 2;
/// The longest reason in a header, in bytes: headers travel in one frame.
const REASON_LIMIT: usize = 4000;
/// The header that keeps the expiration of a dead message, which itself must not expire.
const HEADER_EXPIRATION: &str = "x-berth-expiration";

/// The AMQP properties of a message.
pub(super) fn to_properties(message: &Message) -> Result<BasicProperties, ShortStringError> {
    let mut headers = FieldTable::default();
    if let Some(version) = message.version {
        headers.insert(
            HEADER_VERSION.into(),
            AMQPValue::LongLongInt(i64::from(version)),
        );
    }
    if let Some(traceparent) = &message.traceparent {
        headers.insert(HEADER_TRACEPARENT.into(), text(traceparent));
    }
    let mut properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    if !message.id.is_empty() {
        properties = properties.with_message_id(ShortString::try_new(message.id.as_str())?);
    }
    if !message.method.is_empty() {
        properties = properties.with_type(ShortString::try_new(message.method.as_str())?);
    }
    if !message.app_id.is_empty() {
        properties = properties.with_app_id(ShortString::try_new(message.app_id.as_str())?);
    }
    if let Some(id) = &message.correlation_id {
        properties = properties.with_correlation_id(ShortString::try_new(id.as_str())?);
    }
    if let Some(reply_to) = &message.reply_to {
        properties = properties.with_reply_to(ShortString::try_new(reply_to.as_str())?);
    }
    if let Some(expiration) = message.expiration {
        let millis = expiration.as_millis().to_string();
        properties = properties.with_expiration(ShortString::try_new(millis)?);
    }
    if let Some(seconds) = message
        .timestamp
        .and_then(|t| u64::try_from(t.timestamp()).ok())
    {
        properties = properties.with_timestamp(seconds);
    }
    Ok(properties)
}

/// The properties of one try. They are kept with the headers apart, so that nothing is copied twice.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    properties: BasicProperties,
    headers: FieldTable,
}

impl Parts {
    pub(super) fn new(properties: BasicProperties) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        Self {
            properties: properties.with_headers(FieldTable::default()),
            headers,
        }
    }

    /// As they are.
    pub(super) fn whole(&self) -> BasicProperties {
        self.properties.clone().with_headers(self.headers.clone())
    }

    /// With a tag of the sender's.
    pub(super) fn tagged(&self, tag: u64) -> BasicProperties {
        let mut headers = self.headers.clone();
        // Counts from 1 on each channel; the sign is never reached.
        let tag = i64::try_from(tag).unwrap_or(i64::MAX);
        headers.insert(HEADER_TAG.into(), AMQPValue::LongLongInt(tag));
        self.properties.clone().with_headers(headers)
    }
}

/// The tag of a message that came back.
pub(super) fn tag(properties: &BasicProperties) -> Option<u64> {
    match properties.headers().as_ref()?.inner().get(HEADER_TAG)? {
        AMQPValue::LongLongInt(tag) => u64::try_from(*tag).ok(),
        _ => None,
    }
}

/// The message of a delivery. What is missing or unreadable is represented as missing.
pub(super) fn to_message(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let header = |name: &str| {
        properties
            .headers()
            .as_ref()
            .and_then(|table| table.inner().get(name))
    };
    Message {
        id: string(properties.message_id().as_ref()).unwrap_or_default(),
        correlation_id: string(properties.correlation_id().as_ref()),
        reply_to: string(properties.reply_to().as_ref()),
        method: string(properties.kind().as_ref()).unwrap_or_default(),
        version: header(HEADER_VERSION).and_then(version),
        traceparent: header(HEADER_TRACEPARENT).and_then(value_text),
        timestamp: properties.timestamp().and_then(instant),
        expiration: properties
            .expiration()
            .as_ref()
            .and_then(|e| e.as_str().parse().ok())
            .map(Duration::from_millis),
        app_id: string(properties.app_id().as_ref()).unwrap_or_default(),
        body: Bytes::from(body),
    }
}

/// The properties of a dead message: the same, with the reason and the queue.
///
/// Left out is what would act a second time: `expiration` (kept in a header), `user_id` (the
/// broker refuses another user's), the headers `CC` and `BCC` (it would be routed again) and the
/// tag of the first sender.
pub(super) fn to_dead(properties: &BasicProperties, queue: &str, reason: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (key, value) in properties.headers().iter().flat_map(|t| t.inner()) {
        if !matches!(key.as_str(), "CC" | "BCC" | HEADER_TAG) {
            headers.insert(key.clone(), value.clone());
        }
    }
    let (reason, _) = reason.split_at(reason.floor_char_boundary(REASON_LIMIT));
    headers.insert(HEADER_REASON.into(), text(reason));
    headers.insert(HEADER_QUEUE.into(), text(queue));
    if let Some(expiration) = properties.expiration() {
        headers.insert(HEADER_EXPIRATION.into(), text(expiration.as_str()));
    }
    let mut dead = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT);
    if let Some(v) = properties.content_type() {
        dead = dead.with_content_type(v.clone());
    }
    if let Some(v) = properties.content_encoding() {
        dead = dead.with_content_encoding(v.clone());
    }
    if let Some(v) = properties.correlation_id() {
        dead = dead.with_correlation_id(v.clone());
    }
    if let Some(v) = properties.reply_to() {
        dead = dead.with_reply_to(v.clone());
    }
    if let Some(v) = properties.message_id() {
        dead = dead.with_message_id(v.clone());
    }
    if let Some(v) = properties.timestamp() {
        dead = dead.with_timestamp(*v);
    }
    if let Some(v) = properties.kind() {
        dead = dead.with_type(v.clone());
    }
    if let Some(v) = properties.app_id() {
        dead = dead.with_app_id(v.clone());
    }
    dead
}

/// Why a message is dead: what a consumer wrote, or else what the broker wrote.
pub(super) fn dead_info(properties: &BasicProperties) -> DeadInfo {
    let find = |ours: &str, brokers: &str| {
        let table = properties.headers().as_ref()?.inner();
        table
            .get(ours)
            .or_else(|| table.get(brokers))
            .and_then(value_text)
    };
    DeadInfo {
        reason: find(HEADER_REASON, "x-first-death-reason")
            .unwrap_or_else(|| "no reason was given".to_owned()),
        queue: find(HEADER_QUEUE, "x-first-death-queue").unwrap_or_default(),
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

fn string(value: Option<&ShortString>) -> Option<String> {
    value.map(|v| v.as_str().to_owned())
}

fn instant(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

fn value_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(v) => Some(String::from_utf8_lossy(v.as_bytes()).into_owned()),
        AMQPValue::ShortString(v) => Some(v.as_str().to_owned()),
        _ => None,
    }
}

/// A whole number in any of the widths that clients choose.
fn version(value: &AMQPValue) -> Option<u32> {
    match value {
        AMQPValue::ShortShortInt(v) => u32::try_from(*v).ok(),
        AMQPValue::ShortShortUInt(v) => Some(u32::from(*v)),
        AMQPValue::ShortInt(v) => u32::try_from(*v).ok(),
        AMQPValue::ShortUInt(v) => Some(u32::from(*v)),
        AMQPValue::LongInt(v) => u32::try_from(*v).ok(),
        AMQPValue::LongUInt(v) => Some(*v),
        AMQPValue::LongLongInt(v) => u32::try_from(*v).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Message {
        Message {
            id: "id".into(),
            correlation_id: Some("corr".into()),
            reply_to: Some("amq.gen-1".into()),
            method: "instance.create".into(),
            version: Some(7),
            traceparent: Some("00-1-2-01".into()),
            timestamp: DateTime::from_timestamp(1_800_000_000, 0),
            expiration: Some(Duration::from_millis(1500)),
            app_id: "berthctl".into(),
            body: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn a_message_survives_the_wire() {
        let properties = to_properties(&full()).unwrap();
        assert_eq!(to_message(&properties, b"{}".to_vec()), full());
    }

    #[test]
    fn a_tag_is_seen_by_its_sender_only() {
        for properties in [
            to_properties(&full()).unwrap(),
            BasicProperties::default().with_message_id("id".into()),
        ] {
            assert_eq!(tag(&properties), None);
            let once = Parts::new(properties.clone()).tagged(1);
            let sent = Parts::new(once).tagged(7);
            assert_eq!(Parts::new(sent.clone()).whole(), sent);
            assert_eq!(tag(&sent), Some(7));
            assert_eq!(
                to_message(&sent, b"{}".to_vec()),
                to_message(&properties, b"{}".to_vec())
            );
            assert_eq!(tag(&to_dead(&sent, "scheduler", "bad")), None);
        }
    }

    #[test]
    fn what_is_missing_stays_missing() {
        let message = to_message(&BasicProperties::default(), Vec::new());
        assert_eq!(message.method, "");
        assert_eq!(message.version, None);
        assert_eq!(message.id, "");
        assert_eq!(message.timestamp, None);
    }

    #[test]
    fn a_version_that_is_no_whole_number_is_missing() {
        for value in [
            text("1"),
            AMQPValue::Double(1.0),
            AMQPValue::LongInt(-1),
            AMQPValue::LongLongInt(1 << 40),
        ] {
            assert_eq!(version(&value), None, "{value:?}");
        }
        assert_eq!(version(&AMQPValue::ShortInt(1)), Some(1));
    }

    #[test]
    fn a_dead_message_keeps_its_properties_but_does_not_act_again() {
        let mut headers = FieldTable::default();
        headers.insert("CC".into(), text("scheduler"));
        headers.insert("mine".into(), text("kept"));
        let properties = to_properties(&full())
            .unwrap()
            .with_headers(headers)
            .with_user_id("somebody".into());
        let dead = to_dead(&properties, "scheduler", &"x".repeat(10_000));
        assert_eq!(dead.user_id(), &None);
        assert_eq!(dead.expiration(), &None);
        assert_eq!(dead.kind(), properties.kind());
        let table = dead.headers().as_ref().unwrap().inner();
        assert!(!table.contains_key("CC"));
        assert_eq!(table.get("mine"), Some(&text("kept")));
        assert_eq!(table.get(HEADER_EXPIRATION), Some(&text("1500")));
        let info = dead_info(&dead);
        assert_eq!(info.queue, "scheduler");
        assert_eq!(info.reason.len(), REASON_LIMIT);
    }
}
