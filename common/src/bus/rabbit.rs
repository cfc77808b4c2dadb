//! The bus over RabbitMQ. Nothing outside this file and its folder names the AMQP library.
//!
//! ```text
//!            ┌────────────── link: one task per bus ──────────────┐
//!  start ──▶ │ Down ──connect, declare everything──▶ Up ──lost──▶ Down ─ ─ (backoff) │ ──close──▶ Closed
//!            └─────────────────────────────────────────────────────┘
//!  publish:  takes the link when it is Up, a place on a shared channel, waits for the confirm
//!  consume:  subscribes whenever the link is Up again
//! ```
//!
//! - [`link`] keeps the connection and tells everybody how it is,
//! - [`declare`] turns the topology into broker calls,
//! - [`publish`] sends until it is confirmed or the time is up,
//! - [`lane`] carries many publishes on one channel,
//! - [`places`] chooses the channel and bounds what is under way to one queue,
//! - [`returns`] tells which of them reached no queue (pure),
//! - [`consume`] subscribes and settles,
//! - [`care`] keeps a message that cannot be read from harming others,
//! - [`convert`] maps messages to AMQP properties and back (pure).
//!
//! The library's own recovery is not used: it does not know a deleted vhost from a lost
//! connection, and publishers and consumers want different things while there is none.

mod care;
mod consume;
mod convert;
mod declare;
mod lane;
mod link;
mod places;
mod publish;
mod returns;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::QueueDeleteOptions;
use lapin::uri::AMQPUri;
use tokio::sync::watch;

use super::{Bus, BusError, BusHealth, Consumer, Message, PublishError, QueueDecl, ReplyQueue};
use super::{MAX_MESSAGE_BYTES, Target};
use consume::RabbitSource;
use lane::Outgoing;
use link::Link;
use publish::Publisher;

/// How to reach the broker.
#[derive(Clone)]
pub struct RabbitConfig {
    /// `amqp://user:password@host:port/vhost` or `amqps://…`; the vhost is URL-encoded.
    pub url: String,
    /// What the broker shows as the connection's name, such as `berth-agent hv1`.
    pub connection_name: String,
    /// How often the connection shows that it lives, in whole seconds. The broker gives it up in the third
    /// interval without a byte: a standby takes over from a frozen consumer after two to three of them.
    pub heartbeat: Duration,
    /// How long one try to connect may take.
    pub connect_timeout: Duration,
    /// How long a publish waits for a connection and for its confirm, all in all.
    pub publish_timeout: Duration,
    /// The largest frame in bytes; without it what the broker proposes. Room for 32 of them is kept in each direction, in
    /// memory that never comes back. Bodies travel in as many frames as they need, headers in one.
    pub frame_max: Option<u32>,
}

impl RabbitConfig {
    /// The usual times: heartbeat 10 s, connect 10 s, publish 10 s.
    pub fn new(url: impl Into<String>, connection_name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connection_name: connection_name.into(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(10),
            frame_max: None,
        }
    }

    /// The address without the password, for people.
    #[must_use]
    pub fn display_url(&self) -> String {
        match parse(&self.url) {
            Ok(uri) => format!(
                "{}://{}@{}:{}/{}",
                uri.scheme,
                uri.authority.userinfo.username,
                uri.authority.host,
                uri.authority.port,
                uri.vhost
            ),
            Err(_) => "(an address that cannot be read)".to_owned(),
        }
    }

    /// Whether the address can be read.
    ///
    /// # Errors
    /// [`BusError::Config`], without the password.
    pub fn check(&self) -> Result<(), BusError> {
        parse(&self.url).map(drop)
    }
}

fn parse(url: &str) -> Result<AMQPUri, BusError> {
    // The reader's own messages quote parts of the address; the password may be among them.
    url.parse::<AMQPUri>().map_err(|_| BusError::Config {
        reason: "it must look like amqp://user:password@host:5672/vhost (or amqps://), with \
                 special characters in each part URL-encoded"
            .to_owned(),
    })
}

impl fmt::Debug for RabbitConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConfig")
            .field("url", &self.display_url())
            .field("connection_name", &self.connection_name)
            .field("heartbeat", &self.heartbeat)
            .field("connect_timeout", &self.connect_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("frame_max", &self.frame_max)
            .finish()
    }
}

/// A connection to RabbitMQ that is made again whenever it is lost. Dropping it closes it.
#[derive(Debug)]
pub struct RabbitBus {
    link: Arc<Link>,
    publisher: Arc<Publisher>,
}

impl RabbitBus {
    /// Starts to connect in the background and returns at once, broker or no broker.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BusError::Config`] when the address cannot be read.
    pub fn start(config: RabbitConfig) -> Result<Self, BusError> {
        let uri = parse(&config.url)?;
        let link = Link::start(config, uri);
        let publisher = Arc::new(Publisher::new(Arc::clone(&link)));
        Ok(Self { link, publisher })
    }
}

impl Drop for RabbitBus {
    fn drop(&mut self) {
        self.link.stop();
    }
}

fn outgoing(to: &Target, message: Message) -> Result<Arc<Outgoing>, PublishError> {
    let properties = convert::to_properties(&message).map_err(|e| PublishError::Invalid {
        target: to.clone(),
        reason: e.to_string(),
    })?;
    Outgoing::new(to, properties, message.body)
}

#[async_trait]
impl Bus for RabbitBus {
    async fn publish(&self, to: Target, message: Message) -> Result<(), PublishError> {
        let bytes = message.body.len();
        if bytes > MAX_MESSAGE_BYTES {
            return Err(PublishError::TooLarge {
                bytes,
                limit: MAX_MESSAGE_BYTES,
            });
        }
        // Nothing large is kept across the wait: it would be part of every publish under way.
        let outgoing = outgoing(&to, message)?;
        self.publisher.publish(&to, outgoing).await
    }

    async fn consume(&self, queue: &QueueDecl, prefetch: u16) -> Result<Consumer, BusError> {
        self.link.remember(queue)?;
        let mut source = RabbitSource::queue(
            Arc::clone(&self.link),
            Arc::clone(&self.publisher),
            queue.clone(),
            prefetch,
        );
        source.subscribe_if_up().await?;
        Ok(Consumer::new(queue.name.clone(), Box::new(source)))
    }

    async fn reply_queue(&self) -> Result<ReplyQueue, BusError> {
        self.link.check_open()?;
        let (mut source, address) =
            RabbitSource::reply(Arc::clone(&self.link), Arc::clone(&self.publisher));
        source.subscribe_if_up().await?;
        Ok(ReplyQueue {
            address,
            incoming: Consumer::new("(answers)", Box::new(source)),
        })
    }

    async fn declare(&self, queue: &QueueDecl) -> Result<(), BusError> {
        self.link.remember(queue)?;
        match self.link.up_now() {
            Some(up) => match self.link.declare_on(&up, queue).await {
                Err(error @ BusError::Mismatch { .. }) => Err(error),
                Err(error) => {
                    // The connection is going: everything is declared on the next one.
                    tracing::debug!(queue = queue.name, %error, "declared on the next connection");
                    Ok(())
                }
                Ok(()) => Ok(()),
            },
            None => Ok(()),
        }
    }

    async fn delete_queue(&self, name: &str) -> Result<(), BusError> {
        self.link.forget(name);
        let operation = format!("deleting queue `{name}`");
        let name = declare::short(name, &operation)?;
        let up = self.link.up_within(self.publisher.timeout()).await?;
        let channel = declare::channel(&up.connection, &operation).await?;
        let call = channel.queue_delete(name, QueueDeleteOptions::default());
        declare::bounded(&operation, call).await.map(drop)
    }

    async fn queue_depth(&self, name: &str) -> Result<Option<u64>, BusError> {
        let up = self.link.up_within(self.publisher.timeout()).await?;
        let queue = declare::existing(&up.connection, name).await?;
        Ok(queue.map(|queue| u64::from(queue.message_count())))
    }

    async fn consumer_count(&self, name: &str) -> Result<Option<u64>, BusError> {
        let up = self.link.up_within(self.publisher.timeout()).await?;
        let queue = declare::existing(&up.connection, name).await?;
        Ok(queue.map(|queue| u64::from(queue.consumer_count())))
    }

    fn health(&self) -> watch::Receiver<BusHealth> {
        self.link.health()
    }

    fn epoch(&self) -> watch::Receiver<u64> {
        self.link.epoch()
    }

    async fn close(&self) {
        self.link.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        for url in [
            "amqp://berth:hunter2@127.0.0.1:5672/v",
            "amqp://berth:hunter2@127.0.0.1:port/v",
            "hunter2",
        ] {
            let config = RabbitConfig::new(url, "t");
            assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
            if let Err(error) = config.check() {
                assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
            }
        }
    }
}
