//! Sends messages and waits for the broker's confirms.
//!
//! Each publish has a channel to itself while it is under way. A pool keeps the channels, so
//! there are as many as publishes were ever under way at once, at most [`IN_FLIGHT`]. The reason:
//! a returned (unroutable) message and its confirm are two separate frames, and with several
//! publishes on one channel the library hands the return to whichever confirm comes next. Alone
//! on a channel the pair cannot be mixed up, and an error that closes the channel hits nobody else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::super::topology::{DEAD, EXCHANGE};
use super::super::{PublishError, QueueDecl, Target};
use super::declare;
use super::link::{Backoff, Link, Phase, Up};

/// Publishes under way at once on one connection; the others wait their turn. More channels than
/// this make a broker slower, not faster.
const IN_FLIGHT: usize = 64;

#[derive(Debug)]
struct Idle {
    epoch: u64,
    channel: Channel,
}

#[derive(Debug)]
pub(super) struct Publisher {
    link: Arc<Link>,
    timeout: Duration,
    turns: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

/// How one try ended, when not well.
enum Miss {
    /// Final.
    Failed(PublishError),
    /// The exchange is not there yet.
    NoExchange,
    /// The channel or the connection went away.
    Lost(lapin::Error),
    /// The connection is gone, and nothing was heard of the publish.
    Gone,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>, timeout: Duration) -> Self {
        Self {
            link,
            timeout,
            turns: Semaphore::new(IN_FLIGHT),
            idle: Mutex::default(),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Publishes and waits for the confirm, trying again on a new connection until the time is up.
    pub(super) async fn publish(
        &self,
        to: &Target,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let deadline = Instant::now() + self.timeout;
        let mut last = None;
        match timeout_at(deadline, self.tries(to, properties, body, &mut last)).await {
            Ok(result) => result,
            Err(_) => Err(self.out_of_time(to, last)),
        }
    }

    /// Copies a message to the dead letter queue, making the queue if somebody deleted it.
    pub(super) async fn publish_dead(
        &self,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let to = Target::queue(DEAD);
        match self.publish(&to, properties.clone(), body).await {
            Err(PublishError::Unroutable { .. }) => {}
            other => return other,
        }
        if let Some(up) = self.link.up_now()
            && let Err(error) = self.link.declare_on(&up, &QueueDecl::dead()).await
        {
            tracing::warn!(%error, "the dead letter queue cannot be declared");
        }
        self.publish(&to, properties, body).await
    }

    fn out_of_time(&self, to: &Target, last: Option<String>) -> PublishError {
        match self.link.phase() {
            Phase::Up(Up {
                blocked: Some((_, reason)),
                ..
            }) => PublishError::Blocked { reason },
            Phase::Up(up) if up.connection.status().connected() && last.is_none() => {
                PublishError::Unconfirmed {
                    target: to.clone(),
                    waited: self.timeout,
                }
            }
            Phase::Closed => PublishError::Closed,
            Phase::Up(_) | Phase::Down { .. } => PublishError::Disconnected {
                waited: self.timeout,
                last_error: last.unwrap_or_else(|| self.link.last_error()),
            },
        }
    }

    async fn tries(
        &self,
        to: &Target,
        properties: BasicProperties,
        body: &[u8],
        last: &mut Option<String>,
    ) -> Result<(), PublishError> {
        let invalid = |reason: String| PublishError::Invalid {
            target: to.clone(),
            reason,
        };
        let (exchange, key) = match to {
            Target::Queue(name) => ("", name.as_str()),
            Target::Topic { key } => (EXCHANGE, key.as_str()),
        };
        let key = ShortString::try_new(key).map_err(|e| invalid(e.to_string()))?;
        let _turn = match self.turns.acquire().await {
            Ok(turn) => turn,
            Err(_) => return Err(PublishError::Closed),
        };
        let mut backoff = Backoff::new();
        loop {
            let up = self.unblocked().await?;
            let one = self.once(&up, to, exchange, key.clone(), properties.clone(), body);
            let outcome = tokio::select! {
                outcome = one => outcome,
                () = self.link.gone(up.epoch) => Err(Miss::Gone),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(Miss::Failed(error)) => return Err(error),
                Err(Miss::NoExchange) => {
                    if let Err(error) = declare::exchange(&up.connection).await {
                        tracing::debug!(%error, "the exchange cannot be declared");
                        *last = Some(error.to_string());
                    }
                }
                Err(Miss::Lost(error)) => {
                    tracing::debug!(%error, target = %to, "a publish is tried again");
                    *last = Some(error.to_string());
                    tokio::time::sleep(backoff.step()).await;
                }
                Err(Miss::Gone) => *last = Some(self.link.last_error()),
            }
        }
    }

    /// The connection, when there is one that takes messages.
    async fn unblocked(&self) -> Result<Up, PublishError> {
        let mut phases = self.link.phases();
        loop {
            let up = self.link.up().await.ok_or(PublishError::Closed)?;
            if up.blocked.is_none() {
                return Ok(up);
            }
            let now = phases.borrow_and_update().clone();
            let still = matches!(
                now,
                Phase::Up(Up {
                    blocked: Some(_),
                    ..
                })
            );
            if still && phases.changed().await.is_err() {
                return Err(PublishError::Closed);
            }
        }
    }

    async fn once(
        &self,
        up: &Up,
        to: &Target,
        exchange: &str,
        key: ShortString,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), Miss> {
        let channel = self.channel(up).await.map_err(Miss::Lost)?;
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let lost = |error: lapin::Error| {
            if declare::is_soft(&error, AMQPSoftError::NOTFOUND) && !exchange.is_empty() {
                Miss::NoExchange
            } else {
                Miss::Lost(error)
            }
        };
        let confirmation = channel
            .basic_publish(ShortString::from(exchange), key, options, body, properties)
            .await
            .map_err(lost)?
            .await
            .map_err(lost)?;
        // Only a channel with nothing under way goes back. One whose publish was given up on
        // is dropped, which closes it.
        self.put_back(up.epoch, channel);
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                Err(Miss::Failed(PublishError::Unroutable {
                    target: to.clone(),
                }))
            }
            Confirmation::Nack(None) | Confirmation::NotRequested => {
                Err(Miss::Failed(PublishError::Refused { target: to.clone() }))
            }
        }
    }

    async fn channel(&self, up: &Up) -> lapin::Result<Channel> {
        let found = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|i| i.epoch == up.epoch && i.channel.status().connected());
            idle.pop()
        };
        if let Some(found) = found {
            return Ok(found.channel);
        }
        let channel = up.connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }

    fn put_back(&self, epoch: u64, channel: Channel) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Idle { epoch, channel });
    }
}
