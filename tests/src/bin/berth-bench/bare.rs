//! What the broker does without berth: messages published to one durable quorum queue and confirmed. With the AMQP
//! library alone, one channel per connection, no `mandatory`, no consumer.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
        QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::{task::JoinSet, time::Instant};

const QUEUE: &str = "bench.bare";

/// Connections to the broker, and its queue.
pub(crate) struct Bare {
    channels: Vec<(Connection, Channel)>,
}

impl Bare {
    /// Connects, and makes the queue.
    pub(crate) async fn connect(url: &str, connections: u16) -> anyhow::Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..connections {
            let connection = Connection::connect(url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            channels.push((connection, channel));
        }
        let bare = Self { channels };
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        bare.any()?
            .queue_declare(QUEUE.into(), options, arguments)
            .await?;
        Ok(bare)
    }

    fn any(&self) -> anyhow::Result<&Channel> {
        let (_, channel) = self.channels.first().context("no connection")?;
        Ok(channel)
    }

    /// Publishes one body again and again; answers how many were confirmed, and in what time.
    pub(crate) async fn publish(
        &self,
        body: &[u8],
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<(u64, Duration)> {
        let started = Instant::now();
        let deadline = started + time;
        let each = in_flight.div_ceil(self.channels.len().max(1));
        let mut publishers = JoinSet::new();
        for (_, channel) in &self.channels {
            publishers.spawn(publish(channel.clone(), body.to_vec(), each, deadline));
        }
        let mut confirmed = 0;
        while let Some(ended) = publishers.join_next().await {
            confirmed += ended??;
        }
        let took = started.elapsed();
        self.any()?
            .queue_purge(QUEUE.into(), QueuePurgeOptions::default())
            .await?;
        Ok((confirmed, took))
    }

    /// Deletes the queue and ends the connections.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.any()?
            .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
            .await?;
        for (connection, _) in self.channels {
            connection.close(200, "bye".into()).await?;
        }
        Ok(())
    }
}

async fn publish(
    channel: Channel,
    body: Vec<u8>,
    in_flight: usize,
    deadline: Instant,
) -> anyhow::Result<u64> {
    let mut confirms = FuturesUnordered::new();
    let mut confirmed = 0;
    loop {
        while confirms.len() < in_flight && Instant::now() < deadline {
            let confirm = channel
                .basic_publish(
                    "".into(),
                    QUEUE.into(),
                    BasicPublishOptions::default(),
                    &body,
                    BasicProperties::default()
                        .with_delivery_mode(2)
                        .with_content_type("application/json".into()),
                )
                .await?;
            confirms.push(confirm);
        }
        match confirms.next().await {
            Some(confirm) => {
                confirm?;
                confirmed += 1;
            }
            None => return Ok(confirmed),
        }
    }
}
