//! Sends messages and waits for the broker's confirms, again and again until the time is up.
//!
//! Publishes share a few channels, see [`lane`](super::lane) and [`places`](super::places); those to topics have
//! theirs apart, because the exchange can be missing. An error of a single message closes its channel, which catches
//! whatever is under way beside it; and a queue without a leader can block one. What was caught is tried again on a
//! channel of its own, where it can harm nobody and nobody can harm it. So is what the shared channel cannot tell
//! from others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::super::topology::{DEAD, EXCHANGE};
use super::super::{PublishError, QueueDecl, Target};
use super::lane::{self, Outcome, Outgoing, Road};
use super::link::{Backoff, Link, Phase, Up};
use super::places::Places;
use super::returns::Verdict;

/// Publishes at once that have a channel of their own. More channels make a broker slower, not faster.
const ALONE: usize = 64;

/// Publishes under way at once on one connection; the others wait.
const UNDER_WAY: usize = 1024;

#[derive(Debug)]
pub(super) struct Publisher {
    link: Arc<Link>,
    timeout: Duration,
    queues: Arc<Places>,
    topics: Arc<Places>,
    under_way: Semaphore,
    alone: Semaphore,
}

/// Which way the next try takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Shared,
    Alone,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            timeout: link.publish_timeout(),
            link,
            queues: Places::new(Road::Queues),
            topics: Places::new(Road::Topics),
            under_way: Semaphore::new(UNDER_WAY),
            alone: Semaphore::new(ALONE),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Publishes and waits for the confirm, trying again on a new connection until the time is up.
    pub(super) async fn publish(
        &self,
        to: &Target,
        outgoing: Arc<Outgoing>,
    ) -> Result<(), PublishError> {
        let deadline = Instant::now() + self.timeout;
        let mut last = None;
        let verdict = match timeout_at(deadline, self.tries(to, &outgoing, &mut last)).await {
            Ok(verdict) => verdict?,
            Err(_) => return Err(self.out_of_time(to, last)),
        };
        match verdict {
            Verdict::Taken => Ok(()),
            Verdict::Unroutable => Err(PublishError::Unroutable { target: to.clone() }),
            Verdict::Refused => Err(PublishError::Refused { target: to.clone() }),
        }
    }

    /// Copies a message to the dead letter queue, making the queue if somebody deleted it.
    pub(super) async fn publish_dead(
        &self,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let to = Target::queue(DEAD);
        let outgoing = Outgoing::new(&to, properties, body)?;
        match self.publish(&to, Arc::clone(&outgoing)).await {
            Err(PublishError::Unroutable { .. }) => {}
            other => return other,
        }
        if let Some(up) = self.link.up_now()
            && let Err(error) = self.link.declare_on(&up, &QueueDecl::dead()).await
        {
            tracing::warn!(%error, "the dead letter queue cannot be declared");
        }
        self.publish(&to, outgoing).await
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
        outgoing: &Arc<Outgoing>,
        last: &mut Option<String>,
    ) -> Result<Verdict, PublishError> {
        // All topics share one place: what they are bound to, nobody here knows.
        let (places, name) = match to {
            Target::Queue(name) => (&self.queues, name.as_str()),
            Target::Topic { .. } => (&self.topics, EXCHANGE),
        };
        let _under_way = match self.under_way.acquire().await {
            Ok(permit) => permit,
            Err(_) => return Err(PublishError::Closed),
        };
        let mut backoff = Backoff::new();
        let mut way = Way::Shared;
        loop {
            let up = self.unblocked().await?;
            if places.is_suspect(name) {
                way = Way::Alone;
            }
            let outcome = match way {
                Way::Shared => {
                    let (seat, lane) = places.shared(name, &self.link, &up).await;
                    lane.publish(Arc::clone(outgoing), seat).await
                }
                Way::Alone => {
                    let _seat = places.alone(name).await;
                    // Seldom, and large: it would make every publish larger.
                    Box::pin(self.alone(&up, outgoing)).await
                }
            };
            let why = match outcome {
                Some(Outcome::Decided(verdict)) => {
                    if way == Way::Alone {
                        places.clear(name);
                    }
                    return Ok(verdict);
                }
                Some(Outcome::Blocked) => {
                    tracing::debug!(target = %to, "a channel is blocked");
                    places.suspect(name);
                    continue;
                }
                // The lane declares it before it goes on.
                Some(Outcome::NoExchange { why }) => {
                    way = Way::Shared;
                    why
                }
                // Nobody else was there.
                Some(Outcome::Offended { why }) if way == Way::Alone => {
                    return Err(PublishError::Invalid {
                        target: to.clone(),
                        reason: why,
                    });
                }
                Some(Outcome::Offended { why } | Outcome::Lost { why }) => {
                    if up.connection.status().connected() {
                        way = Way::Alone;
                    }
                    why
                }
                None => {
                    *last = Some(self.link.last_error());
                    if up.connection.status().connected() {
                        tokio::time::sleep(backoff.step()).await;
                    }
                    continue;
                }
            };
            tracing::debug!(why, target = %to, "a publish is tried again");
            *last = Some(why);
            tokio::time::sleep(backoff.step()).await;
        }
    }

    /// The connection, when there is one that takes messages.
    async fn unblocked(&self) -> Result<Up, PublishError> {
        if let Some(up) = self.link.up_now()
            && up.blocked.is_none()
        {
            return Ok(up);
        }
        Box::pin(self.wait_until_unblocked()).await
    }

    async fn wait_until_unblocked(&self) -> Result<Up, PublishError> {
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

    /// One try on a channel of its own. `None` when nothing was heard of it, because the connection ended.
    async fn alone(&self, up: &Up, outgoing: &Outgoing) -> Option<Outcome> {
        let _turn = self.alone.acquire().await.ok()?;
        tokio::select! {
            confirmed = on_a_channel(up, outgoing) => Some(match confirmed {
                Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                    Outcome::Decided(Verdict::Unroutable)
                }
                Ok(Confirmation::Ack(None)) => Outcome::Decided(Verdict::Taken),
                Ok(Confirmation::Nack(None) | Confirmation::NotRequested) => {
                    Outcome::Decided(Verdict::Refused)
                }
                Err(error) => Outcome::failed(&error),
            }),
            () = self.link.gone(up.epoch) => None,
        }
    }
}

async fn on_a_channel(up: &Up, outgoing: &Outgoing) -> lapin::Result<Confirmation> {
    let channel = up.connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    channel
        .basic_publish(
            ShortString::from(outgoing.exchange),
            outgoing.key.clone(),
            lane::OPTIONS,
            &outgoing.body,
            outgoing.properties.whole(),
        )
        .await?
        .await
}
