//! What the bus promises, each law written once and held by both implementations: RabbitMQ and
//! the one in this process.
//!
//! A law knows only the [`Bus`] trait and a [`Harness`] that can do what happens to brokers.
//! The RabbitMQ tests need a broker of their own; without one they fail, they never skip.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use berth_common::bus::topology::{Consumers, DEAD, QueueKind};
use berth_common::bus::{
    Bus, BusError, BusHealth, Consumer, Delivery, Faults, LocalBroker, MAX_MESSAGE_BYTES, Message,
    PublishError, QueueDecl, RabbitBus, RabbitConfig, RpcClient, RpcError, Settled, Target, Unfit,
    heartbeat_key, report_key,
};
use tokio::sync::RwLock;
use tokio::time::timeout;

/// How long anything may take before a law is broken. Generous: brokers share busy machines.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a publish waits in these tests.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what must be sent may take where the test waits for all of that time.
const SENT_LIMIT: Duration = Duration::from_secs(5);

/// What happens to brokers and connections.
#[async_trait]
trait Harness: Send + Sync {
    /// A new connection.
    async fn bus(&self) -> Arc<dyn Bus>;
    /// A new connection whose publishes give up soon.
    async fn hasty_bus(&self) -> Arc<dyn Bus>;
    /// All connections die, as those of killed processes do.
    async fn crash_connections(&self);
    /// Puts a message in a queue as a foreign client can: any size, properties missing.
    async fn inject(&self, queue: &str, message: Message);
    async fn stop_broker(&self);
    async fn start_broker(&self);
    async fn delete_vhost(&self);
    async fn create_vhost(&self);
    /// Cleans up.
    async fn end(&self);
}

// Helpers.

fn queue(name: &str) -> QueueDecl {
    QueueDecl::quorum(name, Consumers::SingleActive)
}

fn shared_queue(name: &str) -> QueueDecl {
    QueueDecl::quorum(name, Consumers::Shared)
}

fn number(n: u32) -> Message {
    Message::new("test.number", 1, "bus-laws", &n).unwrap()
}

async fn send(bus: &Arc<dyn Bus>, queue: &str, n: u32) {
    bus.publish(Target::queue(queue), number(n)).await.unwrap();
}

async fn next(consumer: &mut Consumer) -> Delivery {
    timeout(LIMIT, consumer.next())
        .await
        .unwrap_or_else(|_| panic!("nothing came from {}", consumer.queue()))
        .expect("the bus was closed")
}

async fn next_number(consumer: &mut Consumer) -> (u32, Delivery) {
    let delivery = next(consumer).await;
    (delivery.message.decode().unwrap(), delivery)
}

/// Takes and acknowledges until this number comes; redeliveries of earlier ones are fine.
async fn take_until(consumer: &mut Consumer, wanted: u32) {
    loop {
        let (n, delivery) = next_number(consumer).await;
        delivery.ack().await;
        if n == wanted {
            return;
        }
    }
}

async fn wait_health(bus: &Arc<dyn Bus>, what: &str, is: impl Fn(&BusHealth) -> bool) {
    let mut health = bus.health();
    let last = health.clone();
    timeout(LIMIT, health.wait_for(is))
        .await
        .unwrap_or_else(|_| panic!("never {what}; last: {}", last.borrow().clone()))
        .unwrap();
}

async fn wait_connected(bus: &Arc<dyn Bus>) {
    wait_health(bus, "connected", BusHealth::is_connected).await;
}

async fn wait_depth(bus: &Arc<dyn Bus>, queue: &str, wanted: Option<u64>) {
    let begin = Instant::now();
    loop {
        let depth = bus.queue_depth(queue).await.unwrap();
        if depth == wanted {
            return;
        }
        assert!(
            begin.elapsed() < LIMIT,
            "{queue} has {depth:?} messages, never {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Publishes again and again until a queue takes it: what every sender does.
async fn send_persistently(bus: &Arc<dyn Bus>, queue: &str, n: u32) {
    let begin = Instant::now();
    loop {
        match bus.publish(Target::queue(queue), number(n)).await {
            Ok(()) => return,
            Err(error) => {
                assert!(error.retryable(), "{error}");
                assert!(begin.elapsed() < LIMIT, "never sent: {error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn dead_letters(bus: &Arc<dyn Bus>) -> Consumer {
    bus.consume(&QueueDecl::dead(), 10).await.unwrap()
}

// The laws.

async fn messages_arrive_in_order_with_all_properties(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut consumer = bus.consume(&queue("order"), 10).await.unwrap();
    wait_connected(&bus).await;
    wait_depth(&bus, "order", Some(0)).await;
    let mut full = number(0);
    full.correlation_id = Some("corr".into());
    full.reply_to = Some("amq.gen-x".into());
    full.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    full.expiration = Some(Duration::from_secs(600));
    bus.publish(Target::queue("order"), full.clone())
        .await
        .unwrap();
    for n in 1..50 {
        send(&bus, "order", n).await;
    }
    let first = next(&mut consumer).await;
    assert!(!first.redelivered);
    // AMQP timestamps are whole seconds.
    let mut got = first.message.clone();
    assert_eq!(
        got.timestamp.unwrap().timestamp(),
        full.timestamp.unwrap().timestamp()
    );
    got.timestamp = full.timestamp;
    assert_eq!(got, full);
    first.ack().await;
    for n in 1..50 {
        let (got, delivery) = next_number(&mut consumer).await;
        assert_eq!(got, n);
        assert_eq!(delivery.ack().await, Settled::Done);
    }
}

async fn topics_reach_the_bound_queues_only(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut reports = bus.consume(&QueueDecl::reports(), 10).await.unwrap();
    let mut heartbeats = bus.consume(&QueueDecl::heartbeats(), 10).await.unwrap();
    wait_connected(&bus).await;
    wait_depth(&bus, "scheduler.reports", Some(0)).await;
    wait_depth(&bus, "scheduler.heartbeats", Some(0)).await;
    let host = "0190b0c4-0000-7000-8000-000000000001";
    bus.publish(Target::topic(report_key(host)), number(1))
        .await
        .unwrap();
    bus.publish(Target::topic(heartbeat_key(host)), number(2))
        .await
        .unwrap();
    let (n, delivery) = next_number(&mut reports).await;
    assert_eq!(n, 1);
    delivery.ack().await;
    let (n, delivery) = next_number(&mut heartbeats).await;
    assert_eq!(n, 2);
    delivery.ack().await;
    wait_depth(&bus, "scheduler.reports", Some(0)).await;
    wait_depth(&bus, "scheduler.heartbeats", Some(0)).await;
}

async fn a_crash_before_the_ack_redelivers_with_the_flag(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("crash")).await.unwrap();
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&queue("crash"), 1).await.unwrap();
    send(&bus, "crash", 1).await;
    let (_, held) = next_number(&mut consumer).await;
    assert!(!held.redelivered);
    h.crash_connections().await;
    let (n, again) = next_number(&mut consumer).await;
    assert_eq!(n, 1);
    assert!(again.redelivered);
    // The old one is nobody's trouble.
    assert_eq!(held.ack().await, Settled::Lost);
    assert_eq!(again.ack().await, Settled::Done);
    wait_depth(&bus, "crash", Some(0)).await;
}

async fn an_ack_is_final(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("final")).await.unwrap();
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&queue("final"), 1).await.unwrap();
    send(&bus, "final", 1).await;
    send(&bus, "final", 2).await;
    let (n, delivery) = next_number(&mut consumer).await;
    assert_eq!(n, 1);
    assert_eq!(delivery.ack().await, Settled::Done);
    // With a prefetch of one, the second is sent only once the first ack has arrived.
    let (n, held) = next_number(&mut consumer).await;
    assert_eq!(n, 2);
    h.crash_connections().await;
    let (n, again) = next_number(&mut consumer).await;
    assert_eq!((n, again.redelivered), (2, true));
    drop(held);
    again.ack().await;
    wait_depth(&bus, "final", Some(0)).await;
}

async fn what_is_given_back_or_dropped_comes_again(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("again")).await.unwrap();
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&queue("again"), 1).await.unwrap();
    send(&bus, "again", 1).await;
    let (_, delivery) = next_number(&mut consumer).await;
    assert_eq!(delivery.retry().await, Settled::Done);
    let (_, delivery) = next_number(&mut consumer).await;
    assert!(delivery.redelivered);
    drop(delivery);
    let (_, delivery) = next_number(&mut consumer).await;
    assert!(delivery.redelivered);
    delivery.ack().await;
}

async fn unroutable_is_an_error_at_once(h: &dyn Harness) {
    let bus = h.bus().await;
    wait_connected(&bus).await;
    for to in [Target::queue("nobody"), Target::topic("report.nobody")] {
        let begin = Instant::now();
        let error = bus.publish(to.clone(), number(1)).await.unwrap_err();
        assert_eq!(error, PublishError::Unroutable { target: to });
        assert!(begin.elapsed() < PUBLISH_TIMEOUT, "{:?}", begin.elapsed());
    }
}

async fn every_one_of_many_publishes_gets_its_own_outcome(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("many")).await.unwrap();
    wait_connected(&bus).await;
    let sends = (0..600_u32).map(|n| {
        let bus = Arc::clone(&bus);
        async move {
            let to = if n % 3 == 0 { "nobody" } else { "many" };
            (n, bus.publish(Target::queue(to), number(n)).await)
        }
    });
    for (n, outcome) in futures::future::join_all(sends).await {
        match outcome {
            Ok(()) => assert_ne!(n % 3, 0),
            Err(PublishError::Unroutable { .. }) => assert_eq!(n % 3, 0),
            Err(error) => panic!("{n}: {error}"),
        }
    }
    let mut consumer = bus.consume(&queue("many"), 100).await.unwrap();
    let mut got = BTreeSet::new();
    while got.len() < 400 {
        let (n, delivery) = next_number(&mut consumer).await;
        got.insert(n);
        delivery.ack().await;
    }
    assert!(got.iter().all(|n| n % 3 != 0));
}

/// Messages to queues that are there, that are not, and that are full; with ids of their own, repeated ones and none;
/// from several tasks, some of which stop waiting at any moment. Not one wrong answer, and not one message twice.
async fn no_publish_of_many_gets_the_answer_of_another(h: &dyn Harness) {
    const TASKS: u32 = 4;
    const EACH: u32 = 1000;
    let bus = h.bus().await;
    let reports = QueueDecl::reports();
    let full = QueueDecl {
        max_length: Some(3),
        ..queue("full")
    };
    for decl in [&reports, &full] {
        bus.declare(decl).await.unwrap();
    }
    // Some confirm late, some at once: confirms and returns come in any order.
    let there = |n: u32| match n {
        0..2 => queue(&format!("there-{n}")),
        _ => QueueDecl {
            name: format!("there-{n}"),
            topic: None,
            ..QueueDecl::heartbeats()
        },
    };
    for n in 0..5 {
        bus.declare(&there(n)).await.unwrap();
    }
    wait_connected(&bus).await;
    let one = |n: u32| {
        let bus = Arc::clone(&bus);
        async move {
            let to = match n % 13 {
                0..5 => Target::queue(format!("there-{}", n % 5)),
                5..9 => Target::queue(format!("nobody-{}", n % 3)),
                9 => Target::queue("full"),
                10 => Target::topic(report_key("a")),
                _ => Target::topic("nothing.a"),
            };
            let mut message = number(n);
            match n % 3 {
                0 => message.id = "the same".into(),
                1 => message.id = String::new(),
                _ => {}
            }
            let publish = bus.publish(to.clone(), message);
            // Some are not waited for, for any time.
            let outcome = if n.is_multiple_of(7) {
                let while_waiting = Duration::from_micros(u64::from(n % 50) * 100);
                timeout(while_waiting, publish).await.ok()
            } else {
                Some(publish.await)
            };
            (n, to, outcome)
        }
    };
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let sends = (0..EACH).map(|n| one(task * EACH + n));
            tokio::spawn(futures::future::join_all(sends.collect::<Vec<_>>()))
        })
        .collect();
    let (mut sent, mut perhaps) = (BTreeMap::new(), BTreeSet::new());
    for task in tasks {
        for (n, to, outcome) in timeout(LIMIT, task).await.unwrap().unwrap() {
            let routed = n % 13 < 5 || (9..11).contains(&(n % 13));
            match outcome {
                None if routed => assert!(perhaps.insert(n)),
                None => {}
                Some(Ok(())) => {
                    assert!(routed, "{n} to {to}: there is no such queue");
                    assert_eq!(sent.insert(n, to), None);
                }
                Some(Err(PublishError::Unroutable { target })) => {
                    assert!(!routed, "{n} to {to}: the queue is there");
                    assert_eq!(target, to);
                }
                Some(Err(PublishError::Refused { .. })) => {
                    assert_eq!(to, Target::queue("full"), "{n}");
                }
                Some(Err(error)) => panic!("{n} to {to}: {error}"),
            }
        }
    }
    let (mut got, mut consumers) = (BTreeSet::new(), Vec::new());
    for n in 0..5 {
        consumers.push(bus.consume(&there(n), 500).await.unwrap());
    }
    consumers.push(bus.consume(&reports, 500).await.unwrap());
    consumers.push(bus.consume(&full, 500).await.unwrap());
    for mut consumer in consumers {
        send_until_last(&bus, &mut consumer, &mut got).await;
    }
    for (n, to) in &sent {
        assert!(got.contains(n), "{n} to {to} was confirmed and never came");
    }
    for n in got {
        assert!(sent.contains_key(&n) || perhaps.contains(&n), "{n}");
    }
}

/// Takes what a queue holds: all that comes before a message of its own.
async fn send_until_last(bus: &Arc<dyn Bus>, consumer: &mut Consumer, got: &mut BTreeSet<u32>) {
    let to = match consumer.queue() {
        "scheduler.reports" => Target::topic(report_key("a")),
        name => Target::queue(name),
    };
    // A full queue takes it when there is room again.
    let mut last = bus.publish(to.clone(), number(u32::MAX)).await;
    loop {
        let wait = if last.is_ok() {
            LIMIT
        } else {
            Duration::from_millis(200)
        };
        match timeout(wait, consumer.next()).await {
            Ok(delivery) => {
                let delivery = delivery.unwrap();
                let n: u32 = delivery.message.decode().unwrap();
                delivery.ack().await;
                if n == u32::MAX {
                    return;
                }
                assert!(got.insert(n), "{n} came twice");
            }
            Err(_) => {
                assert!(last.is_err(), "the last message never came");
                last = bus.publish(to.clone(), number(u32::MAX)).await;
            }
        }
    }
}

async fn poison_is_put_away_with_its_reason_and_the_next_is_served(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("poison")).await.unwrap();
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&queue("poison"), 10).await.unwrap();
    let mut bad = Message::from_json("test.number", 1, "bus-laws", &b"{\"not json"[..]);
    bad.correlation_id = Some("kept".into());
    bad.expiration = Some(Duration::from_secs(600));
    bus.publish(Target::queue("poison"), bad.clone())
        .await
        .unwrap();
    send(&bus, "poison", 2).await;
    let delivery = next(&mut consumer).await;
    let error = delivery.message.decode::<u32>().unwrap_err();
    assert_eq!(delivery.dead(&error.to_string()).await, Settled::Done);
    let (n, delivery) = next_number(&mut consumer).await;
    assert_eq!(n, 2);
    delivery.ack().await;

    let mut dead = dead_letters(&bus).await;
    let delivery = next(&mut dead).await;
    let info = delivery.dead.clone().unwrap();
    assert_eq!(info.queue, "poison");
    assert_eq!(info.reason, "the body of `test.number` cannot be read");
    assert_eq!(delivery.message.body, bad.body);
    assert_eq!(delivery.message.id, bad.id);
    assert_eq!(delivery.message.method, bad.method);
    assert_eq!(delivery.message.correlation_id.as_deref(), Some("kept"));
    assert_eq!(delivery.message.expiration, None, "it must not expire");
    delivery.ack().await;
    wait_depth(&bus, "poison", Some(0)).await;
}

async fn missing_properties_are_seen_as_missing(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("bare")).await.unwrap();
    wait_connected(&bus).await;
    let mut bare = number(1);
    bare.id = String::new();
    bare.method = String::new();
    bare.version = None;
    bare.app_id = String::new();
    bare.timestamp = None;
    h.inject("bare", bare.clone()).await;
    let mut no_version = number(2);
    no_version.version = None;
    h.inject("bare", no_version).await;
    let mut consumer = bus.consume(&queue("bare"), 10).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message, bare);
    assert_eq!(delivery.unfit(), Some(Unfit::NoMethod));
    delivery.ack().await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.unfit(), Some(Unfit::NoVersion));
    delivery.ack().await;
}

async fn a_message_that_comes_back_too_often_is_dead(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut decl = queue("limit");
    decl.delivery_limit = Some(2);
    bus.declare(&decl).await.unwrap();
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&decl, 1).await.unwrap();
    send(&bus, "limit", 1).await;
    send(&bus, "limit", 2).await;
    for round in 0..3 {
        let (n, delivery) = next_number(&mut consumer).await;
        assert_eq!((n, delivery.redelivered), (1, round > 0));
        delivery.retry().await;
    }
    let (n, delivery) = next_number(&mut consumer).await;
    assert_eq!(n, 2);
    delivery.ack().await;
    let mut dead = dead_letters(&bus).await;
    let (n, delivery) = next_number(&mut dead).await;
    assert_eq!(n, 1);
    let info = delivery.dead.clone().unwrap();
    assert_eq!(info.queue, "limit");
    assert_eq!(info.reason, "delivery_limit");
    delivery.ack().await;
}

async fn an_oversized_message_is_not_sent_and_poison_when_it_arrives(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("large")).await.unwrap();
    wait_connected(&bus).await;
    let body = vec![b' '; MAX_MESSAGE_BYTES * 2];
    let large = Message::from_json("test.number", 1, "bus-laws", body);
    assert_eq!(
        bus.publish(Target::queue("large"), large.clone()).await,
        Err(PublishError::TooLarge {
            bytes: MAX_MESSAGE_BYTES * 2,
            limit: MAX_MESSAGE_BYTES
        })
    );
    let exact = Message::from_json("test.number", 1, "bus-laws", vec![b' '; MAX_MESSAGE_BYTES]);
    bus.publish(Target::queue("large"), exact).await.unwrap();
    h.inject("large", large.clone()).await;
    send(&bus, "large", 3).await;

    let mut consumer = bus.consume(&queue("large"), 10).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.unfit(), None);
    assert_eq!(delivery.message.body.len(), MAX_MESSAGE_BYTES);
    delivery.ack().await;
    let delivery = next(&mut consumer).await;
    let unfit = delivery.unfit().unwrap();
    assert_eq!(
        unfit,
        Unfit::TooLarge {
            bytes: MAX_MESSAGE_BYTES * 2,
            limit: MAX_MESSAGE_BYTES
        }
    );
    assert!(delivery.message.body.is_empty(), "held back");
    assert_eq!(delivery.dead(&unfit.to_string()).await, Settled::Done);
    let (n, delivery) = next_number(&mut consumer).await;
    assert_eq!(n, 3);
    delivery.ack().await;

    let mut dead = dead_letters(&bus).await;
    let delivery = next(&mut dead).await;
    assert_eq!(delivery.message.body, large.body, "kept whole");
    assert_eq!(delivery.dead.clone().unwrap().reason, unfit.to_string());
    delivery.ack().await;
}

/// Answers every request with twice its number; `twice` answers each two times.
async fn serve_doubles(bus: Arc<dyn Bus>, queue: QueueDecl, times: usize) {
    let mut consumer = bus.consume(&queue, 10).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        let n: u32 = delivery.message.decode().unwrap();
        let reply = Message::reply(&delivery.message, "test.double", 1, "server", &(n * 2));
        let to = delivery.message.reply_to.clone().unwrap();
        for _ in 0..times {
            // The caller may be gone.
            let _ = bus
                .publish(Target::queue(to.as_str()), reply.as_ref().unwrap().clone())
                .await;
        }
        delivery.ack().await;
    }
}

async fn calls_are_answered_by_correlation(h: &dyn Harness) {
    let bus = h.bus().await;
    let client = RpcClient::start(Arc::clone(&bus), "doubles", "bus-laws")
        .await
        .unwrap();
    wait_connected(&bus).await;
    let error = client
        .call("test.double", 1, &1, LIMIT)
        .await
        .expect_err("nobody has declared the queue");
    assert!(matches!(error, RpcError::Unroutable { .. }), "{error}");

    bus.declare(&queue("doubles")).await.unwrap();
    let error = client
        .call("test.double", 1, &1, SENT_LIMIT)
        .await
        .expect_err("nobody serves");
    assert!(matches!(error, RpcError::Timeout { .. }), "{error}");

    // The server answers twice, and the late call as well: only the right answers count.
    let server = h.bus().await;
    let serving = tokio::spawn(serve_doubles(Arc::clone(&server), queue("doubles"), 2));
    let calls = (1..40_u32).map(|n| {
        let client = client.clone();
        async move {
            let reply = client.call("test.double", 1, &n, LIMIT).await.unwrap();
            assert_eq!(reply.decode::<u32>().unwrap(), n * 2);
        }
    });
    futures::future::join_all(calls).await;
    server.close().await;
    serving.await.unwrap();
}

async fn a_call_survives_a_lost_connection(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("doubles")).await.unwrap();
    wait_connected(&bus).await;
    let client = RpcClient::start(Arc::clone(&bus), "doubles", "bus-laws")
        .await
        .unwrap();
    let calling = tokio::spawn(async move {
        let reply = client.call("test.double", 1, &21, LIMIT).await.unwrap();
        reply.decode::<u32>().unwrap()
    });
    // The request waits in its queue; the reply queue dies with the connection.
    wait_depth(&bus, "doubles", Some(1)).await;
    h.crash_connections().await;
    let server = h.bus().await;
    let serving = tokio::spawn(serve_doubles(Arc::clone(&server), queue("doubles"), 1));
    assert_eq!(calling.await.unwrap(), 42);
    server.close().await;
    serving.await.unwrap();
}

async fn a_single_active_consumer_hands_over(h: &dyn Harness) {
    let one = h.bus().await;
    let two = h.bus().await;
    one.declare(&queue("single")).await.unwrap();
    wait_connected(&one).await;
    wait_connected(&two).await;
    let mut first = one.consume(&queue("single"), 1).await.unwrap();
    send(&one, "single", 1).await;
    let (n, held) = next_number(&mut first).await;
    assert_eq!(n, 1);
    let mut second = two.consume(&queue("single"), 1).await.unwrap();
    send(&one, "single", 2).await;
    // The first consumer is full, and yet the message is not the second one's.
    assert_eq!(one.queue_depth("single").await.unwrap(), Some(1));
    held.ack().await;
    let (n, held) = next_number(&mut first).await;
    assert_eq!(n, 2);
    // The first program ends with work in its hands.
    one.close().await;
    assert!(first.next().await.is_none());
    let (n, delivery) = next_number(&mut second).await;
    assert_eq!((n, delivery.redelivered), (2, true));
    assert_eq!(held.ack().await, Settled::Lost);
    delivery.ack().await;
}

async fn a_consumer_that_is_dropped_gives_way(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("dropped")).await.unwrap();
    wait_connected(&bus).await;
    let mut first = bus.consume(&queue("dropped"), 10).await.unwrap();
    for n in 1..4 {
        send(&bus, "dropped", n).await;
    }
    let (_, delivery) = next_number(&mut first).await;
    delivery.ack().await;
    let mut second = bus.consume(&queue("dropped"), 10).await.unwrap();
    drop(first);
    let mut rest = BTreeSet::new();
    while rest.len() < 2 {
        let (n, delivery) = next_number(&mut second).await;
        delivery.ack().await;
        rest.insert(n);
    }
    assert_eq!(rest, BTreeSet::from([2, 3]));
}

async fn prefetch_bounds_what_a_consumer_holds(h: &dyn Harness) {
    let bus = h.bus().await;
    let decl = shared_queue("prefetch");
    bus.declare(&decl).await.unwrap();
    wait_connected(&bus).await;
    let mut first = bus.consume(&decl, 2).await.unwrap();
    send(&bus, "prefetch", 1).await;
    send(&bus, "prefetch", 2).await;
    let (_, one) = next_number(&mut first).await;
    let (_, two) = next_number(&mut first).await;
    // The first is full: all that follows goes to the second.
    let mut second = bus.consume(&decl, 10).await.unwrap();
    for n in 3..8 {
        send(&bus, "prefetch", n).await;
    }
    for n in 3..8 {
        let (got, delivery) = next_number(&mut second).await;
        assert_eq!(got, n);
        delivery.ack().await;
    }
    drop(second);
    assert_eq!(one.ack().await, Settled::Done);
    send(&bus, "prefetch", 8).await;
    let (n, delivery) = next_number(&mut first).await;
    assert_eq!(n, 8);
    delivery.ack().await;
    two.ack().await;
}

async fn what_waits_too_long_is_gone(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut decl = QueueDecl::heartbeats();
    decl.message_ttl = Some(Duration::from_millis(100));
    bus.declare(&decl).await.unwrap();
    wait_connected(&bus).await;
    bus.publish(Target::topic(heartbeat_key("a")), number(1))
        .await
        .unwrap();
    wait_depth(&bus, &decl.name, Some(0)).await;
}

async fn a_full_queue_drops_the_oldest(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut decl = QueueDecl::heartbeats();
    decl.max_length = Some(2);
    bus.declare(&decl).await.unwrap();
    wait_connected(&bus).await;
    for n in 1..6 {
        bus.publish(Target::topic(heartbeat_key("a")), number(n))
            .await
            .unwrap();
    }
    wait_depth(&bus, &decl.name, Some(2)).await;
    let mut consumer = bus.consume(&decl, 10).await.unwrap();
    for n in 4..6 {
        let (got, delivery) = next_number(&mut consumer).await;
        assert_eq!(got, n);
        delivery.ack().await;
    }
}

async fn a_full_queue_with_dead_letters_refuses_the_newest(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut decl = queue("full");
    decl.max_length = Some(5);
    bus.declare(&decl).await.unwrap();
    wait_connected(&bus).await;
    let mut taken = 0;
    let refused = loop {
        match bus.publish(Target::queue("full"), number(taken)).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "no end");
    };
    let to = Target::queue("full");
    assert_eq!(refused, PublishError::Refused { target: to });
    assert!(refused.retryable());
    assert!(taken >= 5, "{taken}");
    wait_depth(&bus, "full", Some(u64::from(taken))).await;
    let mut consumer = bus.consume(&decl, 10).await.unwrap();
    for n in 0..taken {
        let (got, delivery) = next_number(&mut consumer).await;
        assert_eq!(got, n);
        delivery.ack().await;
    }
    send_persistently(&bus, "full", 1000).await;
    take_until(&mut consumer, 1000).await;
    assert_eq!(bus.queue_depth(DEAD).await.unwrap(), Some(0));
}

async fn every_connection_counts(h: &dyn Harness) {
    let bus = h.bus().await;
    let mut epoch = bus.epoch();
    wait_connected(&bus).await;
    assert_eq!(*epoch.borrow_and_update(), 1);
    for expected in 2..4 {
        h.crash_connections().await;
        let counted = epoch.wait_for(|now| *now >= expected);
        let counted = *timeout(LIMIT, counted).await.unwrap().unwrap();
        assert_eq!(counted, expected);
        wait_connected(&bus).await;
    }
}

async fn a_queue_with_other_arguments_is_a_clear_error(h: &dyn Harness) {
    let bus = h.bus().await;
    bus.declare(&queue("other")).await.unwrap();
    wait_connected(&bus).await;
    wait_depth(&bus, "other", Some(0)).await;
    let wrong = QueueDecl {
        kind: QueueKind::DurableClassic,
        delivery_limit: None,
        ..queue("other")
    };
    let stranger = h.bus().await;
    wait_connected(&stranger).await;
    for error in [
        stranger.declare(&wrong).await.unwrap_err(),
        stranger.consume(&wrong, 1).await.unwrap_err(),
    ] {
        assert!(matches!(&error, BusError::Mismatch { queue, .. } if queue == "other"));
        assert!(error.to_string().contains("delete_queue other"), "{error}");
    }
    // Nothing else suffers.
    send(&stranger, "other", 1).await;
}

async fn a_deleted_queue_is_made_again_by_its_consumer(h: &dyn Harness) {
    let bus = h.bus().await;
    let operator = h.bus().await;
    bus.declare(&queue("deleted")).await.unwrap();
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&queue("deleted"), 1).await.unwrap();
    send(&bus, "deleted", 1).await;
    let (_, delivery) = next_number(&mut consumer).await;
    delivery.ack().await;
    operator.delete_queue("deleted").await.unwrap();
    operator.delete_queue("never was there").await.unwrap();
    let consuming = tokio::spawn(async move {
        take_until(&mut consumer, 2).await;
    });
    send_persistently(&bus, "deleted", 2).await;
    consuming.await.unwrap();
    assert_eq!(bus.queue_depth("never was there").await.unwrap(), None);
}

async fn who_consumes_a_queue_is_counted(h: &dyn Harness) {
    let sign = QueueDecl::standby();
    let (first, second, asks) = (h.bus().await, h.bus().await, h.bus().await);
    for bus in [&first, &second, &asks] {
        wait_connected(bus).await;
    }
    let wait_count = async |wanted: Option<u64>| {
        let begin = Instant::now();
        loop {
            let count = asks.consumer_count(&sign.name).await.unwrap();
            if count == wanted {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{count:?}, never {wanted:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    wait_count(None).await;
    let one = first.consume(&sign, 1).await.unwrap();
    let other = second.consume(&sign, 1).await.unwrap();
    wait_count(Some(2)).await;
    drop(one);
    wait_count(Some(1)).await;
    first.close().await;
    // It goes with the last of them, however that ends.
    drop(other);
    wait_count(None).await;
    let _again = second.consume(&sign, 1).await.unwrap();
    wait_count(Some(1)).await;
    second.close().await;
    wait_count(None).await;
}

async fn questions_go_with_who_answers_them_and_with_their_time(h: &dyn Harness) {
    let (asker, agent) = (h.bus().await, h.bus().await);
    for bus in [&asker, &agent] {
        wait_connected(bus).await;
    }
    let queue = QueueDecl::ask("hv1");
    let ask = async |n: u32, patience: Duration| {
        let mut question = number(n);
        question.expiration = Some(patience);
        asker.publish(Target::queue(&queue.name), question).await
    };
    let unheard = |asked: Result<(), PublishError>| {
        assert!(
            matches!(asked, Err(PublishError::Unroutable { .. })),
            "{asked:?}"
        );
    };
    unheard(ask(0, LIMIT).await);

    let mut answers = agent.consume(&queue, 1).await.unwrap();
    wait_depth(&asker, &queue.name, Some(0)).await;
    ask(1, LIMIT).await.unwrap();
    let (got, in_hand) = next_number(&mut answers).await;
    assert_eq!(got, 1);
    // One whose asker has given up is gone before it is anybody's turn.
    ask(2, Duration::from_millis(100)).await.unwrap();
    wait_depth(&asker, &queue.name, Some(0)).await;
    ask(3, LIMIT).await.unwrap();
    in_hand.ack().await;
    let (got, delivery) = next_number(&mut answers).await;
    assert_eq!(got, 3);
    delivery.ack().await;
    ask(4, LIMIT).await.unwrap();
    drop(answers);
    wait_depth(&asker, &queue.name, None).await;
    unheard(ask(5, LIMIT).await);

    // What was left there does not come back with the next one.
    let mut answers = agent.consume(&queue, 1).await.unwrap();
    ask(6, LIMIT).await.unwrap();
    let (got, _) = next_number(&mut answers).await;
    assert_eq!(got, 6);
    agent.close().await;
    wait_depth(&asker, &queue.name, None).await;
    assert_eq!(asker.queue_depth(DEAD).await.unwrap().unwrap_or(0), 0);
}

async fn one_that_is_given_up_while_it_begins_consumes_nothing(h: &dyn Harness) {
    let sign = QueueDecl::standby();
    let (bus, asks) = (h.bus().await, h.bus().await);
    for bus in [&bus, &asks] {
        wait_connected(bus).await;
    }
    // From before its first word to after its last.
    for step in 0.. {
        let begins = bus.consume(&sign, 1);
        let begun = timeout(Duration::from_micros(100 * step), begins).await;
        if step >= 100 && matches!(begun, Ok(Ok(_))) {
            break;
        }
        assert!(step < 2_000, "it never begins");
    }
    let begin = Instant::now();
    while let Some(left) = asks
        .consumer_count(&sign.name)
        .await
        .unwrap()
        .filter(|n| *n > 0)
    {
        assert!(begin.elapsed() < LIMIT, "{left} consume it for nobody");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn closing_ends_consumers_and_publishers(h: &dyn Harness) {
    let bus = h.bus().await;
    wait_connected(&bus).await;
    let mut consumer = bus.consume(&queue("closing"), 1).await.unwrap();
    let waiting = tokio::spawn(async move { consumer.next().await.is_none() });
    bus.close().await;
    assert!(timeout(LIMIT, waiting).await.unwrap().unwrap());
    assert_eq!(
        bus.publish(Target::queue("closing"), number(1)).await,
        Err(PublishError::Closed)
    );
    assert!(matches!(
        bus.declare(&queue("closing")).await,
        Err(BusError::Closed)
    ));
    assert_eq!(*bus.health().borrow(), BusHealth::Closed);
}

async fn a_restarted_broker_is_found_again_with_its_durable_messages(h: &dyn Harness) {
    let bus = h.bus().await;
    let hasty = h.hasty_bus().await;
    bus.declare(&queue("restart")).await.unwrap();
    bus.declare(&queue("waiting")).await.unwrap();
    bus.declare(&QueueDecl::heartbeats()).await.unwrap();
    wait_connected(&bus).await;
    wait_connected(&hasty).await;
    let mut consumer = bus.consume(&queue("restart"), 1).await.unwrap();
    send(&bus, "restart", 1).await;
    send(&bus, "waiting", 7).await;
    let (_, held) = next_number(&mut consumer).await;

    h.stop_broker().await;
    wait_health(&bus, "connecting", |h| !h.is_connected()).await;
    wait_health(&hasty, "connecting", |h| !h.is_connected()).await;
    let error = hasty
        .publish(Target::queue("restart"), number(9))
        .await
        .unwrap_err();
    assert!(
        matches!(error, PublishError::Disconnected { .. }),
        "{error}"
    );
    h.start_broker().await;
    wait_connected(&bus).await;

    let (n, again) = next_number(&mut consumer).await;
    assert_eq!((n, again.redelivered), (1, true));
    assert_eq!(held.ack().await, Settled::Lost);
    again.ack().await;
    send_persistently(&bus, "restart", 2).await;
    take_until(&mut consumer, 2).await;
    let mut waiting = bus.consume(&queue("waiting"), 1).await.unwrap();
    let (n, delivery) = next_number(&mut waiting).await;
    assert_eq!(n, 7);
    delivery.ack().await;
    // The transient queue is back, and bound.
    bus.publish(Target::topic(heartbeat_key("a")), number(1))
        .await
        .unwrap();
}

async fn a_deleted_vhost_is_furnished_again_when_it_is_back(h: &dyn Harness) {
    let bus = h.bus().await;
    let publisher = h.bus().await;
    bus.declare(&queue("declared")).await.unwrap();
    let mut consumer = bus.consume(&queue("consumed"), 1).await.unwrap();
    let mut reports = bus.consume(&QueueDecl::reports(), 1).await.unwrap();
    wait_connected(&bus).await;
    wait_connected(&publisher).await;
    wait_depth(&bus, "consumed", Some(0)).await;
    send(&publisher, "consumed", 1).await;
    let (_, held) = next_number(&mut consumer).await;

    h.delete_vhost().await;
    wait_health(&bus, "connecting", |h| !h.is_connected()).await;
    h.create_vhost().await;
    wait_connected(&bus).await;

    // Nobody calls `declare` again.
    send_persistently(&publisher, "declared", 2).await;
    send_persistently(&publisher, "consumed", 3).await;
    let (n, delivery) = next_number(&mut consumer).await;
    assert_eq!(n, 3, "what was in the old vhost is gone");
    delivery.ack().await;
    assert_eq!(held.ack().await, Settled::Lost);
    let begin = Instant::now();
    while let Err(error) = publisher
        .publish(Target::topic(report_key("a")), number(4))
        .await
    {
        assert!(begin.elapsed() < LIMIT, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    take_until(&mut reports, 4).await;
    wait_depth(&publisher, DEAD, Some(0)).await;
}

async fn a_broker_that_appears_later_is_used_then(h: &dyn Harness) {
    h.stop_broker().await;
    let bus = h.bus().await;
    let begin = Instant::now();
    bus.declare(&queue("later")).await.unwrap();
    let mut consumer = bus.consume(&queue("consumed later"), 1).await.unwrap();
    let client = RpcClient::start(Arc::clone(&bus), "later", "bus-laws")
        .await
        .unwrap();
    assert!(begin.elapsed() < PUBLISH_TIMEOUT, "starting never waits");
    wait_health(&bus, "explained", |h| {
        matches!(
            h,
            BusHealth::Connecting {
                last_error: Some(_),
                ..
            }
        )
    })
    .await;
    let error = client
        .call("test.double", 1, &1, Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(matches!(error, RpcError::NotConnected { .. }), "{error}");

    h.start_broker().await;
    wait_connected(&bus).await;
    send_persistently(&bus, "consumed later", 1).await;
    take_until(&mut consumer, 1).await;
    let serving = tokio::spawn(serve_doubles(Arc::clone(&bus), queue("later"), 1));
    let reply = client.call("test.double", 1, &4, LIMIT).await.unwrap();
    assert_eq!(reply.decode::<u32>().unwrap(), 8);
    bus.close().await;
    serving.await.unwrap();
}

/// Instantiates every law for both implementations.
macro_rules! laws {
    ($($law:ident)*) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $law() {
                let harness = super::LocalHarness::new();
                super::$law(&harness).await;
            })*
        }
        mod rabbit {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $law() {
                let _together = super::BROKER.read().await;
                let harness = super::RabbitHarness::start(super::Front::Direct).await;
                super::$law(&harness).await;
                super::Harness::end(&harness).await;
            })*
        }
    };
}

laws! {
    messages_arrive_in_order_with_all_properties
    topics_reach_the_bound_queues_only
    a_crash_before_the_ack_redelivers_with_the_flag
    an_ack_is_final
    what_is_given_back_or_dropped_comes_again
    unroutable_is_an_error_at_once
    every_one_of_many_publishes_gets_its_own_outcome
    no_publish_of_many_gets_the_answer_of_another
    poison_is_put_away_with_its_reason_and_the_next_is_served
    missing_properties_are_seen_as_missing
    a_message_that_comes_back_too_often_is_dead
    an_oversized_message_is_not_sent_and_poison_when_it_arrives
    calls_are_answered_by_correlation
    a_call_survives_a_lost_connection
    a_single_active_consumer_hands_over
    a_consumer_that_is_dropped_gives_way
    prefetch_bounds_what_a_consumer_holds
    what_waits_too_long_is_gone
    a_full_queue_drops_the_oldest
    a_full_queue_with_dead_letters_refuses_the_newest
    every_connection_counts
    a_queue_with_other_arguments_is_a_clear_error
    a_deleted_queue_is_made_again_by_its_consumer
    who_consumes_a_queue_is_counted
    questions_go_with_who_answers_them_and_with_their_time
    one_that_is_given_up_while_it_begins_consumes_nothing
    closing_ends_consumers_and_publishers
    a_deleted_vhost_is_furnished_again_when_it_is_back
}

// Laws whose RabbitMQ side needs more than a vhost.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_a_restarted_broker_is_found_again_with_its_durable_messages() {
    let harness = LocalHarness::new();
    a_restarted_broker_is_found_again_with_its_durable_messages(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_restarted_broker_is_found_again_with_its_durable_messages() {
    // Alone: it restarts the broker that the others use.
    let _alone = BROKER.write().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    a_restarted_broker_is_found_again_with_its_durable_messages(&harness).await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_a_broker_that_appears_later_is_used_then() {
    let harness = LocalHarness::new();
    a_broker_that_appears_later_is_used_then(&harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_broker_that_appears_later_is_used_then() {
    let _together = BROKER.read().await;
    let harness = RabbitHarness::start(Front::Gate).await;
    a_broker_that_appears_later_is_used_then(&harness).await;
    harness.end().await;
}

// What only one of them has.

#[tokio::test]
async fn local_faults_hit_as_often_as_the_seed_says() {
    async fn run(seed: u64, faults: Faults) -> Vec<u32> {
        let broker = LocalBroker::new(seed);
        let bus: Arc<dyn Bus> = Arc::new(broker.connect());
        bus.declare(&queue("faults")).await.unwrap();
        broker.set_faults(faults);
        for n in 0..200 {
            send(&bus, "faults", n).await;
        }
        broker.set_faults(Faults::NONE);
        bus.declare(&queue("end")).await.unwrap();
        let mut consumer = bus.consume(&queue("faults"), 1).await.unwrap();
        let mut got = Vec::new();
        // A delayed message still comes; the depth counts it.
        while bus.queue_depth("faults").await.unwrap() != Some(0) {
            let (n, delivery) = next_number(&mut consumer).await;
            delivery.ack().await;
            got.push(n);
        }
        got
    }
    let straight: Vec<u32> = (0..200).collect();
    assert_eq!(run(1, Faults::NONE).await, straight);
    let check = |faults: Faults, holds: fn(&[u32]) -> bool| async move {
        let got = run(1, faults).await;
        assert!(holds(&got), "{faults:?} {got:?}");
        if faults.delay == 0.0 {
            assert_eq!(got, run(1, faults).await, "the same seed, the same faults");
        }
    };
    let drop = Faults {
        drop: 0.2,
        ..Faults::NONE
    };
    check(drop, |got| {
        (100..200).contains(&got.len()) && got.is_sorted()
    })
    .await;
    let duplicate = Faults {
        duplicate: 0.2,
        ..Faults::NONE
    };
    check(duplicate, |got| {
        (201..300).contains(&got.len()) && got.is_sorted()
    })
    .await;
    let reorder = Faults {
        reorder: 0.2,
        ..Faults::NONE
    };
    check(reorder, |got| got.len() == 200 && !got.is_sorted()).await;
    let delay = Faults {
        delay: 0.2,
        max_delay: Duration::from_millis(200),
        ..Faults::NONE
    };
    check(delay, |got| got.len() == 200 && !got.is_sorted()).await;
}

#[tokio::test]
async fn local_a_connection_that_is_cut_off_comes_back() {
    let broker = LocalBroker::new(1);
    let cut = Arc::new(
        broker
            .connect()
            .with_publish_timeout(Duration::from_millis(50)),
    );
    let bus: Arc<dyn Bus> = cut.clone();
    let mut consumer = bus.consume(&queue("cut"), 1).await.unwrap();
    cut.disconnect();
    let error = bus
        .publish(Target::queue("cut"), number(1))
        .await
        .unwrap_err();
    assert!(
        matches!(error, PublishError::Disconnected { .. }),
        "{error}"
    );
    let other: Arc<dyn Bus> = Arc::new(broker.connect());
    send(&other, "cut", 2).await;
    cut.reconnect();
    take_until(&mut consumer, 2).await;
    drop((consumer, bus, cut, other));
    let watcher: Arc<dyn Bus> = Arc::new(broker.connect());
    assert!(broker.queues().iter().all(|q| !q.starts_with("amq.gen")));
    assert_eq!(watcher.queue_depth("cut").await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_wrong_password_is_a_readable_state_without_the_password() {
    let _together = BROKER.read().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let url = harness.url().replace("berth:berth@", "berth:hunter2@");
    assert!(url.contains("hunter2"));
    let bus: Arc<dyn Bus> =
        Arc::new(RabbitBus::start(RabbitConfig::new(url, "bus-laws wrong")).unwrap());
    wait_health(&bus, "refused", |h| {
        let text = h.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        text.contains("ACCESS") || text.contains("access")
    })
    .await;
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_an_alarm_blocks_publishes_and_passes() {
    // Alone: an alarm holds for the whole broker.
    let _alone = BROKER.write().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let bus = harness.connect(SENT_LIMIT);
    bus.declare(&queue("alarm")).await.unwrap();
    wait_connected(&bus).await;
    send(&bus, "alarm", 1).await;
    rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    // The broker tells a connection that it is blocked when it next publishes.
    let begin = Instant::now();
    let error = loop {
        match bus.publish(Target::queue("alarm"), number(2)).await {
            Err(error) if matches!(error, PublishError::Blocked { .. }) => break error,
            other => assert!(begin.elapsed() < LIMIT, "never blocked: {other:?}"),
        }
    };
    assert!(error.retryable());
    assert!(matches!(*bus.health().borrow(), BusHealth::Blocked { .. }));
    rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    wait_connected(&bus).await;
    send(&bus, "alarm", 3).await;
    harness.end().await;
}

/// Publishes to one queue without a pause until it is told to stop; every answer must be good.
fn keep_sending(bus: &Arc<dyn Bus>, queue: &'static str) -> tokio::task::JoinHandle<u32> {
    let bus = Arc::clone(bus);
    tokio::spawn(async move {
        let mut sent = 0;
        loop {
            let sends = (0..20).map(|n| bus.publish(Target::queue(queue), number(n)));
            for outcome in futures::future::join_all(sends).await {
                match outcome {
                    Ok(()) => sent += 1,
                    Err(PublishError::Closed) => return sent,
                    Err(error) => panic!("after {sent} to {queue}: {error}"),
                }
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_message_that_the_broker_abhors_fails_alone() {
    let _together = BROKER.read().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let bus = harness.bus().await;
    bus.declare(&queue("innocent")).await.unwrap();
    wait_connected(&bus).await;
    let sending = keep_sending(&bus, "innocent");
    for _ in 0..5 {
        // The broker counts milliseconds in 32 bits, and closes the channel over more.
        let mut bad = number(1);
        bad.expiration = Some(Duration::from_secs(1 << 40));
        let to = Target::queue("innocent");
        let error = bus.publish(to, bad).await.unwrap_err();
        assert!(matches!(error, PublishError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains("expiration"), "{error}");
    }
    assert_eq!(*bus.epoch().borrow(), 1, "the connection was not lost");
    bus.close().await;
    assert!(timeout(LIMIT, sending).await.unwrap().unwrap() > 0);
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_missing_exchange_is_made_and_harms_no_publish() {
    let _together = BROKER.read().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let bus = harness.bus().await;
    bus.declare(&queue("innocent")).await.unwrap();
    wait_connected(&bus).await;
    let sending = keep_sending(&bus, "innocent");
    for _ in 0..3 {
        let sends = (0..200).map(|n| bus.publish(Target::topic(report_key("a")), number(n)));
        for outcome in futures::future::join_all(sends).await {
            assert!(
                matches!(outcome, Err(PublishError::Unroutable { .. })),
                "{outcome:?}"
            );
        }
        foreign::delete_exchange(&harness.url(), "berth").await;
    }
    bus.declare(&QueueDecl::reports()).await.unwrap();
    let to = Target::topic(report_key("a"));
    bus.publish(to, number(1)).await.unwrap();
    bus.close().await;
    assert!(timeout(LIMIT, sending).await.unwrap().unwrap() > 0);
    harness.end().await;
}

/// Stops the process of a quorum queue: it confirms nothing, as one that has lost its majority.
async fn suspend(harness: &RabbitHarness, queue: &str) {
    let process = format!("whereis('{}_{queue}')", harness.vhost);
    rabbitmqctl(&["eval", &format!("sys:suspend({process}).")]).await;
}

async fn resume(harness: &RabbitHarness, queue: &str) {
    let process = format!("whereis('{}_{queue}')", harness.vhost);
    rabbitmqctl(&["eval", &format!("sys:resume({process}).")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_queue_that_does_not_confirm_holds_up_nobody_else() {
    // Alone: it measures time.
    let _alone = BROKER.write().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    // The broker treats a channel's first message to a quorum queue in another way than those after it.
    for stuck in ["new", "known"] {
        let bus = harness.connect(Duration::from_secs(5));
        for name in [stuck, "innocent"] {
            bus.declare(&queue(name)).await.unwrap();
        }
        wait_connected(&bus).await;
        if stuck == "known" {
            send(&bus, stuck, 0).await;
        }
        suspend(&harness, stuck).await;
        let sending = keep_sending(&bus, "innocent");
        // More than may be under way to one queue.
        for _ in 0..2 {
            let sends = (0..300).map(|n| bus.publish(Target::queue(stuck), number(n)));
            for outcome in futures::future::join_all(sends).await {
                assert!(
                    matches!(outcome, Err(PublishError::Unconfirmed { .. })),
                    "{outcome:?}"
                );
            }
        }
        let to = Target::queue("nobody");
        let error = bus.publish(to.clone(), number(1)).await.unwrap_err();
        assert_eq!(error, PublishError::Unroutable { target: to });
        resume(&harness, stuck).await;
        send_persistently(&bus, stuck, 1).await;
        assert_eq!(*bus.epoch().borrow(), 1, "the connection was not lost");
        bus.close().await;
        let sent = timeout(LIMIT, sending).await.unwrap().unwrap();
        println!("{sent} beside a stuck queue");
        assert!(sent > 0);
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_what_is_never_confirmed_does_not_stay_on_the_books_for_ever() {
    // Alone: a channel that is slow for another reason would be given up too.
    let _alone = BROKER.write().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let bus = harness.connect(SENT_LIMIT);
    bus.declare(&queue("stuck")).await.unwrap();
    wait_connected(&bus).await;
    send_persistently(&bus, "stuck", 0).await;
    suspend(&harness, "stuck").await;
    let sends = (0..20).map(|n| bus.publish(Target::queue("stuck"), number(n)));
    for outcome in futures::future::join_all(sends).await {
        assert!(outcome.is_err());
    }
    let unconfirmed = async || {
        let columns = ["-q", "list_channels", "vhost", "messages_unconfirmed"];
        let lines = rabbitmqctl(&columns).await;
        let ours = lines.lines().filter_map(|l| l.strip_prefix(&harness.vhost));
        ours.map(|n| n.trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    assert!(unconfirmed().await >= 20);
    let begin = Instant::now();
    while unconfirmed().await > 0 {
        assert!(begin.elapsed() < LIMIT, "the channel is still there");
    }
    resume(&harness, "stuck").await;
    send_persistently(&bus, "stuck", 1).await;
    assert_eq!(*bus.epoch().borrow(), 1, "the connection was not lost");
    harness.end().await;
}

/// How a program that has frozen says that it has begun, and to whom it connects.
const FROZEN: &str = "BERTH_TEST_FROZEN";

/// Not a test of its own: the program that [`rabbit_a_frozen_consumer_gives_way`] freezes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of another test, which runs it with its environment"]
async fn victim() {
    let Ok(url) = std::env::var(FROZEN) else {
        return;
    };
    let bus = RabbitBus::start(two_second_heartbeat(url)).unwrap();
    let mut consumer = bus.consume(&queue("frozen"), 1).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        delivery.ack().await;
    }
}

fn two_second_heartbeat(url: String) -> RabbitConfig {
    RabbitConfig {
        heartbeat: Duration::from_secs(2),
        ..RabbitConfig::new(url, "bus-laws frozen")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_frozen_consumer_gives_way() {
    use nix::sys::signal::{Signal, kill};
    // Alone: it measures time.
    let _alone = BROKER.write().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let bus: Arc<dyn Bus> =
        Arc::new(RabbitBus::start(two_second_heartbeat(harness.url())).unwrap());
    bus.declare(&queue("frozen")).await.unwrap();
    wait_connected(&bus).await;
    let mut victim = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored"])
        .env(FROZEN, harness.url())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // It is the active one when it takes what nobody else is there to take.
    send(&bus, "frozen", 1).await;
    wait_depth(&bus, "frozen", Some(0)).await;
    let mut standby = bus.consume(&queue("frozen"), 1).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(victim.id().unwrap()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    send(&bus, "frozen", 2).await;
    // The victim may have been frozen before it had acknowledged the first one.
    take_until(&mut standby, 2).await;
    let elapsed = begin.elapsed();
    println!("a standby took over after {} ms", elapsed.as_millis());
    // The broker gives a connection up in the third interval without a byte: six seconds, and what a busy machine adds.
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    victim.kill().await.unwrap();
    harness.end().await;
}

/// Takes and acknowledges for ever, a little slowly; counts how often each number was done.
async fn work_slowly(mut consumer: Consumer, done: Arc<Mutex<BTreeMap<u32, u32>>>) {
    while let Some(delivery) = consumer.next().await {
        let n: u32 = delivery.message.decode().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        if delivery.ack().await == Settled::Done {
            *done.lock().unwrap().entry(n).or_default() += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_message_that_cannot_be_read_dies_alone() {
    // Alone: it measures time.
    let _alone = BROKER.write().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let url = harness.url();
    let sender = harness.bus().await;
    for name in ["bad", "good"] {
        sender.declare(&queue(name)).await.unwrap();
    }
    wait_connected(&sender).await;
    // In the middle of others, with more before it than one round takes.
    for n in 0..30 {
        send(&sender, "bad", n).await;
    }
    foreign::publish_unreadable(&url, "bad", foreign::Unreadable::Id).await;
    for n in 30..40 {
        send(&sender, "bad", n).await;
    }
    foreign::publish_unreadable(&url, "bad", foreign::Unreadable::HeaderKey).await;
    for n in 40..50 {
        send(&sender, "bad", n).await;
    }
    for n in 50..60 {
        send(&sender, "good", n).await;
    }

    let begin = Instant::now();
    let bus = harness.bus().await;
    let done = Arc::new(Mutex::new(BTreeMap::new()));
    let mut workers = Vec::new();
    for name in ["bad", "good"] {
        let consumer = bus.consume(&queue(name), 64).await.unwrap();
        workers.push(tokio::spawn(work_slowly(consumer, Arc::clone(&done))));
    }
    // Messages come to the other queue all the time.
    let mut last = 60;
    while sender.queue_depth(DEAD).await.unwrap() != Some(2) || done.lock().unwrap().len() < last {
        if begin.elapsed() > LIMIT {
            let bad = sender.queue_depth("bad").await.unwrap();
            let good = sender.queue_depth("good").await.unwrap();
            let dead = sender.queue_depth(DEAD).await.unwrap();
            let (epoch, health) = (*bus.epoch().borrow(), bus.health().borrow().clone());
            let done = done.lock().unwrap().len();
            panic!(
                "bad {bad:?} good {good:?} dead {dead:?} done {done} of {last} epoch {epoch} {health}"
            );
        }
        if sender.queue_depth(DEAD).await.unwrap() != Some(2) {
            send(&sender, "good", u32::try_from(last).unwrap()).await;
            last += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let elapsed = begin.elapsed();
    assert!(elapsed < Duration::from_secs(30), "{elapsed:?}");
    wait_depth(&sender, "bad", Some(0)).await;
    wait_depth(&sender, "good", Some(0)).await;
    assert_eq!(sender.queue_depth(DEAD).await.unwrap(), Some(2));
    let all: Vec<u32> = (0..u32::try_from(last).unwrap()).collect();
    let counts = done.lock().unwrap().clone();
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), all);
    // Two messages, each with its limit of returns, and hardly any more.
    let connections = *bus.epoch().borrow();
    assert!((42..60).contains(&connections), "{connections}");
    bus.close().await;
    for worker in workers {
        worker.await.unwrap();
    }
    harness.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_a_heartbeat_that_cannot_be_read_is_purged() {
    let _together = BROKER.read().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let bus = harness.bus().await;
    let decl = QueueDecl::heartbeats();
    bus.declare(&decl).await.unwrap();
    wait_connected(&bus).await;
    foreign::publish_unreadable(&harness.url(), &decl.name, foreign::Unreadable::Id).await;
    let begin = Instant::now();
    let mut consumer = bus.consume(&decl, 64).await.unwrap();
    loop {
        // Sent again and again, as heartbeats are; one may be purged.
        let beat = bus.publish(Target::topic(heartbeat_key("a")), number(1));
        let sent = beat.await;
        if let Ok(Some(delivery)) = timeout(Duration::from_secs(1), consumer.next()).await
            && delivery.ack().await == Settled::Done
        {
            break;
        }
        assert!(begin.elapsed() < LIMIT, "{sent:?}");
    }
    let elapsed = begin.elapsed();
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
    wait_depth(&bus, &decl.name, Some(0)).await;
    harness.end().await;
}

/// An agent has small frames: bodies come in many, headers only in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbit_headers_that_fit_no_frame_of_their_reader_die_alone_and_bodies_fit_always() {
    let _together = BROKER.read().await;
    let harness = RabbitHarness::start(Front::Direct).await;
    let sender = harness.bus().await;
    sender.declare(&queue("small")).await.unwrap();
    wait_connected(&sender).await;
    for n in 0..10 {
        send(&sender, "small", n).await;
    }
    foreign::publish_unreadable(&harness.url(), "small", foreign::Unreadable::LargeHeader).await;
    for n in 10..20 {
        send(&sender, "small", n).await;
    }
    let config = RabbitConfig {
        frame_max: Some(8192),
        ..RabbitConfig::new(harness.url(), "bus-laws small frames")
    };
    let bus: Arc<dyn Bus> = Arc::new(RabbitBus::start(config).unwrap());
    let mut consumer = bus.consume(&queue("small"), 64).await.unwrap();
    let begin = Instant::now();
    let mut left: BTreeSet<u32> = (0..20).collect();
    while !left.is_empty() || sender.queue_depth(DEAD).await.unwrap() != Some(1) {
        assert!(begin.elapsed() < LIMIT, "{left:?}");
        let soon = timeout(Duration::from_millis(200), consumer.next()).await;
        if let Ok(Some(delivery)) = soon {
            let n: u32 = delivery.message.decode().unwrap();
            if delivery.ack().await == Settled::Done {
                left.remove(&n);
            }
        }
    }
    wait_depth(&sender, "small", Some(0)).await;

    let body: Vec<u8> = (0..100_000_u32)
        .map(|n| b'a' + u8::try_from(n % 26).unwrap())
        .collect();
    let body = serde_json::to_vec(&String::from_utf8(body).unwrap()).unwrap();
    let large = Message::from_json("test.text", 1, "bus-laws", body);
    bus.publish(Target::queue("small"), large.clone())
        .await
        .unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message.body, large.body);
    assert_eq!(delivery.ack().await, Settled::Done);
    bus.close().await;
    harness.end().await;
}

// The harness in this process.

struct LocalHarness {
    broker: LocalBroker,
}

impl LocalHarness {
    fn new() -> Self {
        Self {
            broker: LocalBroker::new(1),
        }
    }
}

#[async_trait]
impl Harness for LocalHarness {
    async fn bus(&self) -> Arc<dyn Bus> {
        Arc::new(self.broker.connect())
    }

    async fn hasty_bus(&self) -> Arc<dyn Bus> {
        let bus = self.broker.connect();
        Arc::new(bus.with_publish_timeout(Duration::from_millis(500)))
    }

    async fn crash_connections(&self) {
        self.broker.crash_connections();
    }

    async fn inject(&self, queue: &str, message: Message) {
        assert!(self.broker.inject(queue, message), "no queue {queue}");
    }

    async fn stop_broker(&self) {
        self.broker.stop();
    }

    async fn start_broker(&self) {
        self.broker.start();
    }

    async fn delete_vhost(&self) {
        self.broker.delete_vhost();
    }

    async fn create_vhost(&self) {
        self.broker.create_vhost();
    }

    async fn end(&self) {}
}

// The harness over RabbitMQ.

/// Tests that restart the broker hold it alone.
static BROKER: RwLock<()> = RwLock::const_new(());

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set; run: eval \"$(scripts/test-services.sh env)\" after \
             scripts/test-services.sh start"
        )
    })
}

async fn rabbitmqctl(args: &[&str]) -> String {
    let program = variable("BERTH_TEST_RABBITMQCTL");
    let run = tokio::process::Command::new(&program)
        .args(args)
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT * 2, run)
        .await
        .unwrap_or_else(|_| panic!("{program} {args:?} did not end"))
        .unwrap_or_else(|e| panic!("{program} {args:?}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How a test reaches the broker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Front {
    Direct,
    /// Through a port of the test's own that can be closed: a broker that is not there.
    Gate,
}

struct RabbitHarness {
    vhost: String,
    server: String,
    gate: Option<Gate>,
}

impl RabbitHarness {
    async fn start(front: Front) -> Self {
        let server = variable("BERTH_TEST_AMQP");
        let server = server.trim_end_matches('/').to_owned();
        let vhost = format!("bus-laws-{}", uuid::Uuid::now_v7());
        let gate = match front {
            Front::Direct => None,
            Front::Gate => {
                let (_, address) = server.rsplit_once('@').expect("user:password@host:port");
                Some(Gate::new(address.to_owned()).await)
            }
        };
        let harness = Self {
            vhost,
            server,
            gate,
        };
        harness.create_vhost().await;
        harness
    }

    fn url(&self) -> String {
        match &self.gate {
            None => format!("{}/{}", self.server, self.vhost),
            Some(gate) => {
                let (user, _) = self.server.rsplit_once('@').expect("user:password@");
                format!("{user}@127.0.0.1:{}/{}", gate.port, self.vhost)
            }
        }
    }

    fn connect(&self, publish_timeout: Duration) -> Arc<dyn Bus> {
        let mut config = RabbitConfig::new(self.url(), "bus-laws");
        config.publish_timeout = publish_timeout;
        Arc::new(RabbitBus::start(config).unwrap())
    }
}

#[async_trait]
impl Harness for RabbitHarness {
    async fn bus(&self) -> Arc<dyn Bus> {
        self.connect(PUBLISH_TIMEOUT)
    }

    async fn hasty_bus(&self) -> Arc<dyn Bus> {
        self.connect(Duration::from_millis(500))
    }

    async fn crash_connections(&self) {
        rabbitmqctl(&["close_all_connections", "--vhost", &self.vhost, "crash"]).await;
    }

    async fn inject(&self, queue: &str, message: Message) {
        foreign::publish(&self.url(), queue, message).await;
    }

    async fn stop_broker(&self) {
        match &self.gate {
            None => drop(rabbitmqctl(&["stop_app"]).await),
            Some(gate) => gate.close().await,
        }
    }

    async fn start_broker(&self) {
        match &self.gate {
            None => {
                rabbitmqctl(&["start_app"]).await;
                rabbitmqctl(&["await_startup"]).await;
            }
            Some(gate) => gate.open().await,
        }
    }

    async fn delete_vhost(&self) {
        rabbitmqctl(&["delete_vhost", &self.vhost]).await;
    }

    async fn create_vhost(&self) {
        rabbitmqctl(&["add_vhost", &self.vhost]).await;
        let all = ".*";
        rabbitmqctl(&["set_permissions", "-p", &self.vhost, "berth", all, all, all]).await;
    }

    async fn end(&self) {
        self.delete_vhost().await;
    }
}

impl Drop for RabbitHarness {
    /// A law that broke leaves no vhost behind either.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(program) = std::env::var("BERTH_TEST_RABBITMQCTL")
        {
            let _ = std::process::Command::new(program)
                .args(["delete_vhost", &self.vhost])
                .output();
        }
    }
}

/// A port that leads to the broker while it is open.
struct Gate {
    port: u16,
    address: String,
    open: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Gate {
    async fn new(address: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = tokio::sync::Mutex::new(Some(tokio::spawn(forward(listener, address.clone()))));
        Self {
            port,
            address,
            open,
        }
    }

    async fn close(&self) {
        if let Some(task) = self.open.lock().await.take() {
            task.abort();
            let _ = task.await;
        }
    }

    async fn open(&self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.port))
            .await
            .unwrap();
        *self.open.lock().await = Some(tokio::spawn(forward(listener, self.address.clone())));
    }
}

async fn forward(listener: tokio::net::TcpListener, address: String) {
    let mut streams = tokio::task::JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let address = address.clone();
        streams.spawn(async move {
            if let Ok(mut server) = tokio::net::TcpStream::connect(address).await {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

/// A client that knows nothing of berth.
mod foreign {
    use berth_common::bus::Message;
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions};
    use lapin::types::{AMQPValue, FieldTable};
    use lapin::{BasicProperties, Connection, ConnectionProperties};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Where a message has text that is not UTF-8, or more than small frames hold.
    #[derive(Clone, Copy)]
    pub(super) enum Unreadable {
        Id,
        HeaderKey,
        LargeHeader,
    }

    /// What stands for the text on the way to [`spoil`].
    const MARK: &str = "not-utf-8!";

    /// Publishes what no AMQP library in Rust can write: the text is exchanged on the wire.
    pub(super) async fn publish_unreadable(url: &str, queue: &str, place: Unreadable) {
        let (user, rest) = url.rsplit_once('@').unwrap();
        let (address, vhost) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let spoiling = tokio::spawn(spoil(listener, address.to_owned()));
        let url = format!("{user}@127.0.0.1:{port}/{vhost}");
        let connection = Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let properties = match place {
            Unreadable::Id => BasicProperties::default().with_message_id(MARK.into()),
            Unreadable::HeaderKey => {
                let mut headers = FieldTable::default();
                headers.insert(MARK.into(), AMQPValue::LongInt(1));
                BasicProperties::default().with_headers(headers)
            }
            Unreadable::LargeHeader => {
                let mut headers = FieldTable::default();
                let text = "x".repeat(20_000);
                headers.insert("large".into(), AMQPValue::LongString(text.into()));
                BasicProperties::default().with_headers(headers)
            }
        };
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), queue.into(), options, b"1", properties)
            .await
            .unwrap()
            .await
            .unwrap();
        connection.close(200, "done".into()).await.unwrap();
        let marks = usize::from(!matches!(place, Unreadable::LargeHeader));
        assert_eq!(spoiling.await.unwrap(), marks);
    }

    /// Passes one connection on, with other bytes for the mark; says how often it came.
    async fn spoil(listener: TcpListener, address: String) -> usize {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(address).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let back = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        });
        let mut spoiled = 0;
        let mut buffer = vec![0; 65536];
        loop {
            let n = from_client.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                break;
            }
            let chunk = &mut buffer[..n];
            for at in 0..n.saturating_sub(MARK.len() - 1) {
                let text = &mut chunk[at..at + MARK.len()];
                if text == MARK.as_bytes() {
                    text.fill(0xff);
                    spoiled += 1;
                }
            }
            to_server.write_all(chunk).await.unwrap();
        }
        drop(to_server);
        back.await.unwrap();
        spoiled
    }

    pub(super) async fn delete_exchange(url: &str, exchange: &str) {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .exchange_delete(exchange.into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }

    pub(super) async fn publish(url: &str, queue: &str, message: Message) {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let mut properties = BasicProperties::default();
        if !message.id.is_empty() {
            properties = properties.with_message_id(message.id.as_str().into());
        }
        if !message.method.is_empty() {
            properties = properties.with_type(message.method.as_str().into());
        }
        if let Some(version) = message.version {
            let mut headers = FieldTable::default();
            let value = AMQPValue::LongInt(i32::try_from(version).unwrap());
            headers.insert("x-berth-version".into(), value);
            properties = properties.with_headers(headers);
        }
        channel
            .basic_publish(
                "".into(),
                queue.into(),
                BasicPublishOptions::default(),
                &message.body,
                properties,
            )
            .await
            .unwrap()
            .await
            .unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }
}
