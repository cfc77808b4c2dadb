//! Turns the topology into broker calls. Each runs on a channel of its own, because the broker
//! closes a channel on the first refusal.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind, Queue};

use super::super::BusError;
use super::super::topology::{
    Consumers, DEAD, DeadLetter, EXCHANGE, Overflow, QueueDecl, QueueKind,
};

/// How long one call may take. Quorum queues elect a leader when they are declared.
const CALL: Duration = Duration::from_secs(15);

/// Whether the broker answered with this soft error.
pub(super) fn is_soft(error: &lapin::Error, soft: AMQPSoftError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(e) => *e.kind() == AMQPErrorKind::Soft(soft),
        _ => false,
    }
}

/// A failed call as a typed error.
fn failed(operation: &str, source: lapin::Error) -> BusError {
    BusError::Broker {
        operation: operation.to_owned(),
        source: Box::new(source),
    }
}

/// A name for the wire.
pub(super) fn short(name: &str, operation: &str) -> Result<ShortString, BusError> {
    ShortString::try_new(name).map_err(|source| BusError::Broker {
        operation: operation.to_owned(),
        source: Box::new(source),
    })
}

/// Waits for one call, within the limit.
pub(super) async fn bounded<T>(
    operation: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BusError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(result) => result.map_err(|e| failed(operation, e)),
        Err(elapsed) => Err(BusError::Broker {
            operation: operation.to_owned(),
            source: Box::new(elapsed),
        }),
    }
}

/// A fresh channel.
pub(super) async fn channel(connection: &Connection, operation: &str) -> Result<Channel, BusError> {
    bounded(operation, connection.create_channel()).await
}

/// Declares a queue with all it needs: dead letter queue, exchange, binding.
pub(super) async fn queue(connection: &Connection, decl: &QueueDecl) -> Result<(), BusError> {
    if decl.dead_letter == DeadLetter::ToDeadQueue {
        one_queue(connection, &QueueDecl::dead()).await?;
    }
    one_queue(connection, decl).await?;
    let Some(topic) = &decl.topic else {
        return Ok(());
    };
    exchange(connection).await?;
    let operation = format!("binding queue `{}` to `{topic}`", decl.name);
    let channel = channel(connection, &operation).await?;
    let call = channel.queue_bind(
        short(&decl.name, &operation)?,
        short(EXCHANGE, &operation)?,
        short(topic, &operation)?,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bounded(&operation, call).await
}

/// Declares the topic exchange if it is not there. Asking needs no permission to configure it.
pub(super) async fn missing_exchange(connection: &Connection) -> Result<(), BusError> {
    let operation = format!("asking for exchange `{EXCHANGE}`");
    match declare_exchange(connection, &operation, true).await {
        Err(BusError::Broker { source, .. }) if not_found(source.as_ref()) => {
            exchange(connection).await
        }
        other => other,
    }
}

fn not_found(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<lapin::Error>()
        .is_some_and(|e| is_soft(e, AMQPSoftError::NOTFOUND))
}

/// Declares the topic exchange.
async fn exchange(connection: &Connection) -> Result<(), BusError> {
    let operation = format!("declaring exchange `{EXCHANGE}`");
    declare_exchange(connection, &operation, false)
        .await
        .map_err(|e| mismatch(EXCHANGE, e))
}

/// `passive`: only looks whether it is there.
async fn declare_exchange(
    connection: &Connection,
    operation: &str,
    passive: bool,
) -> Result<(), BusError> {
    let channel = channel(connection, operation).await?;
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let call = channel.exchange_declare(
        short(EXCHANGE, operation)?,
        ExchangeKind::Topic,
        options,
        FieldTable::default(),
    );
    bounded(operation, call).await
}

async fn one_queue(connection: &Connection, decl: &QueueDecl) -> Result<(), BusError> {
    let operation = format!("declaring queue `{}`", decl.name);
    let channel = channel(connection, &operation).await?;
    let options = QueueDeclareOptions {
        durable: decl.kind.durable(),
        auto_delete: decl.kind.auto_delete(),
        ..QueueDeclareOptions::default()
    };
    let call = channel.queue_declare(short(&decl.name, &operation)?, options, arguments(decl));
    bounded(&operation, call)
        .await
        .map(drop)
        .map_err(|e| mismatch(&decl.name, e))
}

/// Tells a refusal because of other arguments from everything else.
fn mismatch(name: &str, error: BusError) -> BusError {
    let BusError::Broker { operation, source } = error else {
        return error;
    };
    match source.downcast_ref::<lapin::Error>() {
        Some(e) if is_soft(e, AMQPSoftError::PRECONDITIONFAILED) => BusError::Mismatch {
            queue: name.to_owned(),
            detail: e.to_string(),
        },
        _ => BusError::Broker { operation, source },
    }
}

/// The queue's arguments as RabbitMQ names them.
fn arguments(decl: &QueueDecl) -> FieldTable {
    let mut table = FieldTable::default();
    let mut text = |key: &str, value: &str| {
        table.insert(
            ShortString::from(key),
            AMQPValue::LongString(LongString::from(value)),
        );
    };
    match decl.kind {
        QueueKind::Quorum => text("x-queue-type", "quorum"),
        QueueKind::DurableClassic | QueueKind::TransientClassic | QueueKind::AutoDelete => {
            text("x-queue-type", "classic");
        }
    }
    match decl.dead_letter {
        DeadLetter::ToDeadQueue => {
            text("x-dead-letter-exchange", "");
            text("x-dead-letter-routing-key", DEAD);
        }
        DeadLetter::Drop => {}
    }
    if decl.max_length.is_some() || decl.max_length_bytes.is_some() {
        match decl.overflow() {
            Overflow::DropOldest => text("x-overflow", "drop-head"),
            Overflow::RefuseNewest => text("x-overflow", "reject-publish"),
        }
    }
    let mut number = |key: &str, value: Option<i64>| {
        if let Some(value) = value {
            table.insert(ShortString::from(key), AMQPValue::LongLongInt(value));
        }
    };
    number("x-delivery-limit", decl.delivery_limit.map(i64::from));
    number("x-max-length", decl.max_length.map(i64::from));
    number("x-max-length-bytes", decl.max_length_bytes.map(i64::from));
    number(
        "x-message-ttl",
        decl.message_ttl
            .map(|ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)),
    );
    match decl.consumers {
        Consumers::SingleActive => {
            table.insert(
                ShortString::from("x-single-active-consumer"),
                AMQPValue::Boolean(true),
            );
        }
        Consumers::Shared => {}
    }
    table
}

/// A queue with what waits in it and who consumes it; `None` without such a queue.
pub(super) async fn existing(
    connection: &Connection,
    name: &str,
) -> Result<Option<Queue>, BusError> {
    let operation = format!("asking for queue `{name}`");
    let channel = channel(connection, &operation).await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let call = channel.queue_declare(short(name, &operation)?, options, FieldTable::default());
    match bounded(&operation, call).await {
        Ok(queue) => Ok(Some(queue)),
        Err(BusError::Broker { source, .. }) if not_found(source.as_ref()) => Ok(None),
        Err(error) => Err(error),
    }
}
