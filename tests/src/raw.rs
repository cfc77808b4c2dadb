//! An AMQP client without manners: sends any bytes with any properties, and reads what comes back.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(15);

/// What is sent: everything may be missing or wrong.
#[derive(Debug, Clone, Default)]
pub struct RawMessage {
    /// Property `type`.
    pub method: Option<String>,
    /// Header `x-berth-version`.
    pub version: Option<i64>,
    /// The body.
    pub body: Vec<u8>,
}

/// A message found in `berth.dead`.
#[derive(Debug, Clone)]
pub struct DeadMessage {
    /// Header `x-berth-reason`, or why the broker itself moved it.
    pub reason: String,
    /// Header `x-berth-queue`, or the queue that the broker moved it from.
    pub queue: String,
    /// Property `type`.
    pub method: String,
}

/// A connection with a reply queue.
pub struct RawClient {
    _connection: Connection,
    channel: Channel,
    replies: lapin::Consumer,
    reply_to: String,
}

impl std::fmt::Debug for RawClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawClient")
            .field("reply_to", &self.reply_to)
            .finish_non_exhaustive()
    }
}

impl RawClient {
    /// Connects.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await?;
        let reply_to = queue.name().to_string();
        let replies = channel
            .basic_consume(
                reply_to.as_str().into(),
                "".into(),
                BasicConsumeOptions {
                    no_ack: true,
                    ..BasicConsumeOptions::default()
                },
                FieldTable::default(),
            )
            .await?;
        Ok(Self {
            _connection: connection,
            channel,
            replies,
            reply_to,
        })
    }

    /// Sends to queue `scheduler` and waits for the answer with this message's id.
    ///
    /// # Errors
    /// No answer within 15 seconds, or one that is not JSON.
    pub async fn ask(&mut self, message: RawMessage) -> anyhow::Result<Value> {
        let id = Uuid::new_v4().to_string();
        self.send(&id, message).await?;
        loop {
            let delivery = tokio::time::timeout(LIMIT, self.replies.next())
                .await
                .context("no answer")?
                .context("the reply queue is gone")??;
            let correlation = delivery
                .properties
                .correlation_id()
                .as_ref()
                .map(ToString::to_string);
            if correlation.as_deref() == Some(&id) {
                return serde_json::from_slice(&delivery.data).context("the answer is not JSON");
            }
        }
    }

    async fn send(&self, id: &str, message: RawMessage) -> anyhow::Result<()> {
        let mut headers = FieldTable::default();
        if let Some(version) = message.version {
            headers.insert("x-berth-version".into(), AMQPValue::LongLongInt(version));
        }
        let mut properties = BasicProperties::default()
            .with_message_id(id.into())
            .with_reply_to(self.reply_to.as_str().into())
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_app_id("stranger".into())
            .with_headers(headers);
        if let Some(method) = message.method {
            properties = properties.with_type(method.into());
        }
        self.channel
            .basic_publish(
                "".into(),
                "scheduler".into(),
                BasicPublishOptions::default(),
                &message.body,
                properties,
            )
            .await?
            .await?;
        Ok(())
    }

    /// Takes the oldest message off `berth.dead`.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn take_dead(&self) -> anyhow::Result<Option<DeadMessage>> {
        let Some(got) = self
            .channel
            .basic_get("berth.dead".into(), BasicGetOptions::default())
            .await?
        else {
            return Ok(None);
        };
        got.delivery.ack(BasicAckOptions::default()).await?;
        let header = |name: &str| {
            let headers = got.delivery.properties.headers().as_ref()?;
            match headers.inner().get(name)? {
                AMQPValue::LongString(text) => {
                    Some(String::from_utf8_lossy(text.as_bytes()).into_owned())
                }
                other => Some(format!("{other:?}")),
            }
        };
        Ok(Some(DeadMessage {
            reason: header("x-berth-reason")
                .or_else(|| header("x-first-death-reason"))
                .unwrap_or_default(),
            queue: header("x-berth-queue")
                .or_else(|| header("x-first-death-queue"))
                .unwrap_or_default(),
            method: got
                .delivery
                .properties
                .kind()
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }))
    }
}
