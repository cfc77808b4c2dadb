//! Request and answer over the bus: a request goes to a queue, its answer comes back to a private
//! reply queue and is matched by its correlation id.
//!
//! Waiting for an answer is a comfort, never a condition of progress. It knows no concrete
//! request: what goes in and out is JSON. A request may be sent **more than once** (after a
//! reconnect the old reply queue is gone, so it is sent again with the new one, under the same
//! message id), so requests must be idempotent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Bus, BusError, EncodeError, Message, PublishError, ReplyQueue, Target};

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The request has no JSON form.
    #[error("the request was not sent")]
    Encode(#[source] EncodeError),
    /// The queue that serves the request does not exist.
    #[error("no queue `{queue}`: has the {queue} ever started here?")]
    Unroutable {
        /// The queue.
        queue: String,
    },
    /// The request was not accepted by the broker.
    #[error("`{method}` was not sent")]
    Publish {
        /// The method.
        method: String,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// There was no connection to the broker for as long as the caller would wait.
    #[error(
        "`{method}` was not sent: no connection to the message broker within {} ms ({health})",
        waited.as_millis()
    )]
    NotConnected {
        /// The method.
        method: String,
        /// How long was waited.
        waited: Duration,
        /// How the connection is, readable.
        health: String,
    },
    /// The broker has the request, but no answer came in time. It may still be carried out.
    #[error("no answer to `{method}` within {} ms; it may still be carried out", waited.as_millis())]
    Timeout {
        /// The method.
        method: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The bus was closed while the answer was awaited.
    #[error("the connection to the message broker was closed before `{method}` was answered")]
    Closed {
        /// The method.
        method: String,
    },
}

type Pending = Arc<Mutex<HashMap<String, oneshot::Sender<Message>>>>;

fn lock(pending: &Pending) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Message>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends requests to one queue and waits for their answers. Cheap to clone; any number of
/// calls may be under way at once. The reply queue goes with the last clone.
#[derive(Clone)]
pub struct RpcClient {
    bus: Arc<dyn Bus>,
    queue: String,
    app_id: String,
    address: watch::Receiver<Option<String>>,
    pending: Pending,
    _reader: Arc<DropGuard>,
}

impl std::fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RpcClient")
            .field("queue", &self.queue)
            .field("app_id", &self.app_id)
            .finish_non_exhaustive()
    }
}

impl RpcClient {
    /// A client for the requests that `queue` serves, sending as `app_id`.
    ///
    /// # Errors
    /// [`BusError::Closed`].
    pub async fn start(
        bus: Arc<dyn Bus>,
        queue: impl Into<String>,
        app_id: impl Into<String>,
    ) -> Result<Self, BusError> {
        let ReplyQueue { address, incoming } = bus.reply_queue().await?;
        let pending = Pending::default();
        let stop = CancellationToken::new();
        tokio::spawn(read(incoming, Arc::clone(&pending), stop.clone()));
        Ok(Self {
            bus,
            queue: queue.into(),
            app_id: app_id.into(),
            address,
            pending,
            _reader: Arc::new(stop.drop_guard()),
        })
    }

    /// Sends a request and waits for its answer; [`Message::decode`] reads it.
    ///
    /// # Errors
    /// See [`RpcError`]. A refusal by the receiver is an answer, not an error.
    pub async fn call<T: Serialize + ?Sized>(
        &self,
        method: &str,
        version: u32,
        request: &T,
        timeout: Duration,
    ) -> Result<Message, RpcError> {
        let message = Message::new(method, version, self.app_id.as_str(), request)
            .map_err(RpcError::Encode)?;
        self.call_message(message, timeout).await
    }

    /// The same with a message the caller has made, for instance with a trace context.
    /// Its `correlation_id` and `reply_to` are set here.
    ///
    /// # Errors
    /// See [`RpcError`].
    pub async fn call_message(
        &self,
        mut message: Message,
        timeout: Duration,
    ) -> Result<Message, RpcError> {
        let deadline = Instant::now() + timeout;
        let method = message.method.clone();
        let correlation = message.id.clone();
        message.correlation_id = Some(correlation.clone());
        let (sender, mut answer) = oneshot::channel();
        lock(&self.pending).insert(correlation.clone(), sender);
        let _forget = Forget {
            pending: &self.pending,
            correlation,
        };
        let mut address = self.address.clone();
        let mut used: Option<String> = None;
        loop {
            // First a reply queue, then (when it has changed) the request again.
            let fresh = address.wait_for(|now| now.is_some() && *now != used);
            let fresh = tokio::select! {
                biased;
                answered = &mut answer => return answered.map_err(|_| RpcError::Closed { method }),
                fresh = timeout_at(deadline, fresh) => match fresh {
                    Ok(Ok(name)) => name.clone(),
                    Ok(Err(_)) => return Err(RpcError::Closed { method }),
                    Err(_) if used.is_some() => {
                        return Err(RpcError::Timeout { method, waited: timeout });
                    }
                    Err(_) => return Err(self.not_connected(method, timeout)),
                },
            };
            message.reply_to.clone_from(&fresh);
            used = fresh;
            let target = Target::queue(self.queue.as_str());
            let publish = self.bus.publish(target, message.clone());
            // The answer can be quicker than the confirm.
            let published = tokio::select! {
                biased;
                answered = &mut answer => return answered.map_err(|_| RpcError::Closed { method }),
                published = timeout_at(deadline, publish) => published,
            };
            match published {
                Ok(Ok(())) => {}
                Ok(Err(PublishError::Unroutable { .. })) => {
                    return Err(RpcError::Unroutable {
                        queue: self.queue.clone(),
                    });
                }
                Ok(Err(source)) => return Err(RpcError::Publish { method, source }),
                Err(_) => return Err(self.not_connected(method, timeout)),
            }
        }
    }

    fn not_connected(&self, method: String, waited: Duration) -> RpcError {
        RpcError::NotConnected {
            method,
            waited,
            health: self.bus.health().borrow().to_string(),
        }
    }
}

/// Takes a call off the list when its caller stops waiting, however it stops.
struct Forget<'a> {
    pending: &'a Pending,
    correlation: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).remove(&self.correlation);
    }
}

/// Hands answers to their callers until the last client is gone or the bus is closed.
async fn read(mut incoming: super::Consumer, pending: Pending, stop: CancellationToken) {
    loop {
        let delivery = tokio::select! {
            () = stop.cancelled() => return,
            delivery = incoming.next() => delivery,
        };
        let Some(delivery) = delivery else {
            // Every caller learns it: the senders go.
            lock(&pending).clear();
            return;
        };
        let caller = delivery
            .message
            .correlation_id
            .as_ref()
            .and_then(|id| lock(&pending).remove(id));
        match caller {
            // An error means that the caller has just stopped waiting.
            Some(caller) => drop(caller.send(delivery.message.clone())),
            None => tracing::debug!(
                correlation_id = delivery.message.correlation_id,
                method = delivery.message.method,
                "an answer that nobody waits for: late, or the second one"
            ),
        }
        delivery.ack().await;
    }
}
