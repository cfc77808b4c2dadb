//! Takes messages off the bus: decode, one call, encode. No decisions here.
//!
//! A message is acknowledged after its commit. One that nobody could use goes to `berth.dead` with its reason,
//! and its sender gets a refusal if it asked for an answer; the next message is served all the same.

pub mod heartbeats;
mod methods;
mod questions;
pub mod reports;
pub mod requests;

use std::time::Duration;

use berth_common::{
    bus::{Consumer, Delivery, Message},
    message::understands,
    telemetry::error_chain,
};
use berth_store::StoreError;
use futures::FutureExt as _;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio_util::sync::CancellationToken;

use crate::claim::ClaimError;

/// How long to wait before a message is tried again whose database was out of reach.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The next delivery, or `None` when the service ends.
async fn next(consumer: &mut Consumer, cancel: &CancellationToken) -> Option<Delivery> {
    tokio::select! {
        () = cancel.cancelled() => None,
        delivery = consumer.next() => delivery,
    }
}

/// A delivery, and what is there already behind it: at most so many in all.
fn gather(one: Delivery, consumer: &mut Consumer, most: u16) -> Vec<Delivery> {
    let mut batch = vec![one];
    while batch.len() < usize::from(most) {
        match consumer.next().now_or_never() {
            Some(Some(delivery)) => batch.push(delivery),
            Some(None) | None => break,
        }
    }
    batch
}

/// Reads a body of a version this scheduler speaks; the error is for people.
fn decode<T: DeserializeOwned>(
    delivery: &Delivery,
    method: &str,
    version: u32,
) -> Result<T, String> {
    if let Some(unfit) = delivery.unfit() {
        return Err(unfit.to_string());
    }
    let message = &delivery.message;
    if message.method != method {
        return Err(format!(
            "property `type` must be {method:?}; got {:?}",
            message.method
        ));
    }
    if !message.version.is_some_and(|got| understands(version, got)) {
        return Err(wrong_version(message, version));
    }
    serde_json::from_slice(&message.body).map_err(|error| misfit(method, &error))
}

/// The most of a sender's own text that is given back to it or logged, in bytes.
const MAX_ECHO: usize = 500;

/// The beginning of a text, at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn misfit(method: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = cut(&text, MAX_ECHO);
    match error.classify() {
        Category::Data => format!("the body does not fit {method}: {text}"),
        Category::Syntax | Category::Eof | Category::Io => format!("the body is not JSON: {text}"),
    }
}

fn wrong_version(message: &Message, version: u32) -> String {
    match message.version {
        Some(got) => format!(
            "header `x-berth-version` must be {} for {:?}; got {got}",
            versions(version),
            message.method
        ),
        None => format!(
            "header `x-berth-version` is missing; it must be {} for {:?}",
            versions(version),
            message.method
        ),
    }
}

/// The versions that are understood, in words.
fn versions(newest: u32) -> String {
    match newest {
        1 => "1".to_owned(),
        _ => format!("1 to {newest}"),
    }
}

/// What to do after a failure.
enum Next {
    /// Try again.
    Again,
    /// End; the delivery goes back to its queue.
    End,
    /// Nothing will help.
    GiveUp(ClaimError),
}

/// Waits a little when trying again can help: the database is out of reach.
async fn after_failure(error: ClaimError, cancel: &CancellationToken) -> Next {
    match &error {
        // Another scheduler took over: it gets the message.
        ClaimError::Store(StoreError::Fenced { .. }) => Next::End,
        ClaimError::Store(cause) if cause.retryable() => {
            if cancel.is_cancelled() {
                return Next::End;
            }
            tracing::warn!(error = %error_chain(&error), "the database is out of reach; trying again");
            tokio::time::sleep(RETRY_PAUSE).await;
            Next::Again
        }
        _ => Next::GiveUp(error),
    }
}
