//! Subscribes to a queue, again after every loss, and settles what it delivers.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use lapin::Acker;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::super::topology::DEAD;
use super::super::{BusError, DeadInfo, Delivery, QueueDecl, Settle, Settled, Source};
use super::care::{Care, Held};
use super::link::{Backoff, Link, Up};
use super::publish::Publisher;
use super::{convert, declare};

/// Answers held by a reply queue's consumer at most.
const REPLY_PREFETCH: u16 = 256;

enum What {
    Queue(QueueDecl),
    Reply(watch::Sender<Option<String>>),
}

struct Subscription {
    channel: Channel,
    consumer: lapin::Consumer,
    queue: String,
    /// Taking one message at a time.
    careful: bool,
}

/// A subscription that begins. Given up before the broker has answered, it would go on at the broker with nobody to take
/// what comes: its channel is closed then.
struct Beginning(Option<Channel>);

impl Beginning {
    fn succeeded(mut self) {
        self.0 = None;
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        // Without a runtime the program ends, and the connection with it.
        if let Some(channel) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                let close = channel.close(200, "given up".into());
                if let Err(error) = declare::bounded("giving a subscription up", close).await {
                    tracing::debug!(%error, "a subscription that was given up ends with its connection");
                }
            });
        }
    }
}

pub(super) struct RabbitSource {
    link: Arc<Link>,
    publisher: Arc<Publisher>,
    what: What,
    prefetch: u16,
    subscription: Option<Subscription>,
    backoff: Backoff,
    care: Care,
}

impl RabbitSource {
    pub(super) fn queue(
        link: Arc<Link>,
        publisher: Arc<Publisher>,
        queue: QueueDecl,
        prefetch: u16,
    ) -> Self {
        let care = Care::new(link.turns());
        Self {
            link,
            publisher,
            what: What::Queue(queue),
            // 0 would mean "no limit" on the wire.
            prefetch: prefetch.max(1),
            subscription: None,
            backoff: Backoff::new(),
            care,
        }
    }

    pub(super) fn reply(
        link: Arc<Link>,
        publisher: Arc<Publisher>,
    ) -> (Self, watch::Receiver<Option<String>>) {
        let (sender, receiver) = watch::channel(None);
        let care = Care::new(link.turns());
        let source = Self {
            link,
            publisher,
            what: What::Reply(sender),
            prefetch: REPLY_PREFETCH,
            subscription: None,
            backoff: Backoff::new(),
            care,
        };
        (source, receiver)
    }

    /// The first try. Only what cannot pass by waiting is an error.
    pub(super) async fn subscribe_if_up(&mut self) -> Result<(), BusError> {
        let Some(up) = self.link.up_now() else {
            return Ok(());
        };
        match self.subscribe(&up).await {
            Err(error @ BusError::Mismatch { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "subscribed on the next connection");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn subscribe(&mut self, up: &Up) -> Result<(), BusError> {
        self.wait_for_turn(up).await;
        // It may have ended meanwhile.
        if !up.connection.status().connected() {
            self.care.pass();
            return Ok(());
        }
        let link = Arc::clone(&self.link);
        let subscribed = tokio::select! {
            subscribed = self.subscribe_now(up) => subscribed,
            () = link.gone(up.epoch) => Ok(()),
        };
        if self.subscription.is_none() {
            self.care.end();
        }
        subscribed
    }

    /// After a message that could not be read, consumers start one after another. Not those of
    /// answers: their queues, with all that is in them, went with the connection.
    async fn wait_for_turn(&mut self, up: &Up) {
        if matches!(self.what, What::Reply(_)) {
            return;
        }
        self.care.open(up, self.prefetch);
        if self.care.active() {
            self.care.wait().await;
        }
    }

    async fn subscribe_now(&mut self, up: &Up) -> Result<(), BusError> {
        let (name, operation, channel) = match &self.what {
            What::Queue(decl) => {
                self.link.declare_on(up, decl).await?;
                let operation = format!("consuming queue `{}`", decl.name);
                let channel = declare::channel(&up.connection, &operation).await?;
                if self.care.suspect() && decl.message_ttl.is_some() {
                    // Nothing counts the returns of what is worthless in a minute anyway.
                    let purge = channel.queue_purge(
                        declare::short(&decl.name, &operation)?,
                        QueuePurgeOptions::default(),
                    );
                    let purged = declare::bounded(&operation, purge).await?;
                    tracing::warn!(
                        queue = decl.name,
                        purged,
                        "purged: it holds a message that cannot be read"
                    );
                }
                (decl.name.clone(), operation, channel)
            }
            What::Reply(_) => {
                let operation = "making a queue for answers".to_owned();
                let channel = declare::channel(&up.connection, &operation).await?;
                let options = QueueDeclareOptions {
                    exclusive: true,
                    auto_delete: true,
                    ..QueueDeclareOptions::default()
                };
                let call =
                    channel.queue_declare(ShortString::default(), options, FieldTable::default());
                let queue = declare::bounded(&operation, call).await?;
                (queue.name().as_str().to_owned(), operation, channel)
            }
        };
        let careful = self.care.active();
        let prefetch = if careful { 1 } else { self.prefetch };
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        declare::bounded(&operation, qos).await?;
        let beginning = Beginning(Some(channel.clone()));
        let call = channel.basic_consume(
            declare::short(&name, &operation)?,
            ShortString::default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = declare::bounded(&operation, call).await?;
        beginning.succeeded();
        if let What::Reply(address) = &self.what {
            address.send_replace(Some(name.clone()));
        }
        tracing::debug!(queue = name, epoch = up.epoch, "subscribed");
        self.subscription = Some(Subscription {
            channel,
            consumer,
            queue: name,
            careful,
        });
        Ok(())
    }

    fn unsubscribed(&mut self) {
        self.subscription = None;
        self.care.end();
        if let What::Reply(address) = &self.what {
            address.send_replace(None);
        }
    }

    fn delivery(&mut self, raw: lapin::message::Delivery) -> Option<Delivery> {
        let subscription = self.subscription.as_ref()?;
        if !raw.acker.usable() {
            // Left over from a connection that is gone; the broker delivers it again.
            return None;
        }
        self.backoff.reset();
        let message = convert::to_message(&raw.properties, raw.data);
        let dead: Option<DeadInfo> =
            (subscription.queue == DEAD).then(|| convert::dead_info(&raw.properties));
        let settle = RabbitSettle {
            acker: raw.acker,
            tag: raw.delivery_tag,
            properties: raw.properties,
            body: message.body.clone(),
            queue: subscription.queue.clone(),
            publisher: Arc::clone(&self.publisher),
            held: self.care.hold(),
            channel: subscription.channel.clone(),
        };
        Some(Delivery::new(
            message,
            raw.redelivered,
            dead,
            Box::new(settle),
        ))
    }
}

#[async_trait]
impl Source for RabbitSource {
    async fn next(&mut self) -> Option<Delivery> {
        let link = Arc::clone(&self.link);
        // Neither taking what is there nor settling it waits for anything: others have their turn here.
        tokio::task::consume_budget().await;
        loop {
            let Some(subscription) = &mut self.subscription else {
                let up = link.up().await?;
                let subscribed = tokio::select! {
                    () = link.stopped() => return None,
                    subscribed = self.subscribe(&up) => subscribed,
                };
                if let Err(error) = subscribed {
                    tracing::debug!(%error, "not subscribed; trying again");
                    tokio::select! {
                        () = link.stopped() => return None,
                        () = tokio::time::sleep(self.backoff.step()) => {}
                    }
                }
                continue;
            };
            if subscription.careful && !self.care.active() {
                // Ends when what was already sent is taken, and is then made anew.
                subscription.careful = false;
                self.care.pass();
                let tag = subscription.consumer.tag();
                let cancel = subscription
                    .channel
                    .basic_cancel(tag, BasicCancelOptions::default());
                if let Err(error) = declare::bounded("taking more messages at a time", cancel).await
                {
                    tracing::debug!(%error, "a subscription ended");
                    self.unsubscribed();
                }
                continue;
            }
            let item = tokio::select! {
                biased;
                () = link.stopped() => return None,
                item = subscription.consumer.next() => item,
                () = self.care.quiet() => {
                    self.care.rest();
                    continue;
                }
            };
            match item {
                Some(Ok(raw)) => {
                    if let Some(delivery) = self.delivery(raw) {
                        return Some(delivery);
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a subscription ended");
                    self.unsubscribed();
                }
                None => self.unsubscribed(),
            }
        }
    }
}

struct RabbitSettle {
    /// Knows whether the delivery still counts.
    acker: Acker,
    tag: u64,
    properties: BasicProperties,
    body: bytes::Bytes,
    queue: String,
    publisher: Arc<Publisher>,
    held: Held,
    /// Stays open until the last delivery on it is settled.
    channel: Channel,
}

const REQUEUE: BasicNackOptions = BasicNackOptions {
    multiple: false,
    requeue: true,
};

impl RabbitSettle {
    /// Puts a settlement in the library's queue and does not wait until it is written: that would promise no more,
    /// since it can be lost on its way all the same, and costs a round through two threads for each message. What
    /// is in the queue is written before a goodbye. The library's own acker takes two tasks more.
    fn hand_over(&self, call: impl Future<Output = lapin::Result<()>>) -> Settled {
        if self.acker.poisoned() {
            return Settled::Lost;
        }
        match call.now_or_never() {
            None | Some(Ok(())) => Settled::Done,
            Some(Err(error)) => {
                tracing::debug!(%error, "a delivery could not be settled; it will come again");
                Settled::Lost
            }
        }
    }
}

#[async_trait]
impl Settle for RabbitSettle {
    async fn ack(self: Box<Self>) -> Settled {
        let ack = self.channel.basic_ack(self.tag, BasicAckOptions::default());
        let settled = self.hand_over(ack);
        match settled {
            Settled::Done => self.held.done(),
            Settled::Lost => self.held.lost(),
        }
        settled
    }

    async fn retry(self: Box<Self>) -> Settled {
        let settled = self.hand_over(self.channel.basic_nack(self.tag, REQUEUE));
        if settled == Settled::Lost {
            self.held.lost();
        }
        settled
    }

    async fn dead(self: Box<Self>, reason: &str) -> Settled {
        let properties = convert::to_dead(&self.properties, &self.queue, reason);
        match self
            .publisher
            .publish_dead(properties, self.body.clone())
            .await
        {
            Ok(()) => {
                tracing::warn!(
                    queue = self.queue,
                    reason,
                    id = self
                        .properties
                        .message_id()
                        .as_ref()
                        .map(ShortString::as_str),
                    "a message is dead"
                );
                self.ack().await
            }
            Err(error) => {
                tracing::warn!(queue = self.queue, reason, %error, "a dead message could not be put away; it goes back to its queue");
                self.retry().await;
                Settled::Lost
            }
        }
    }

    fn abandon(self: Box<Self>) {
        // Without a runtime the process is ending, and the connection with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                self.retry().await;
            });
        }
    }
}
