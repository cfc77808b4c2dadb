//! How fast confirmed publishing is, beside lapin with nothing around it: the same messages to the same broker in
//! the same run, in turns. And how fast deliveries are settled. Prints lines and ratios, asserts nothing.
//! `make bench-bus` runs it.
//!
//! Bare lapin publishes the same properties and body on one channel with confirms, and without `mandatory`: it would
//! not notice a message that reaches no queue.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints its result and ends with the first thing that goes wrong"
)]

use std::time::{Duration, Instant};

use berth_common::bus::message::{CONTENT_TYPE, HEADER_VERSION};
use berth_common::bus::topology::Consumers;
use berth_common::bus::{
    Bus, BusHealth, Delivery, Message, QueueDecl, RabbitBus, RabbitConfig, Target,
};
use futures::StreamExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

/// Publishes under way at once.
const IN_FLIGHT: [usize; 4] = [1, 64, 256, 1000];
/// Turns of each side; the median counts.
const TURNS: usize = 10;
/// A turn ends with the first of these.
const TURN: Duration = Duration::from_millis(750);
const TURN_MESSAGES: u32 = 30_000;
/// Not measured: what a turn begins with.
const WARM_UP_MESSAGES: u32 = 300;
/// Deliveries in hand.
const ACKS: u16 = 500;
const BODY_BYTES: usize = 1024;
const BERTH_QUEUE: &str = "bench.berth";
const BARE_QUEUE: &str = "bench.bare";
const ACK_QUEUE: &str = "bench.ack";

fn queue(name: &str) -> QueueDecl {
    QueueDecl::quorum(name, Consumers::Shared)
}

/// Runs publishes, so many at once, until the turn is over; says how many a second.
async fn turn<F: Future<Output = ()>>(in_flight: usize, one: impl Fn() -> F) -> f64 {
    async fn run<F: Future<Output = ()>>(
        in_flight: usize,
        one: &impl Fn() -> F,
        most: u32,
    ) -> (u32, Duration) {
        let begin = Instant::now();
        let mut done = 0;
        let mut publishes = futures::stream::iter(0..most)
            .take_while(|_| std::future::ready(begin.elapsed() < TURN))
            .map(|_| one())
            .buffer_unordered(in_flight);
        while publishes.next().await.is_some() {
            done += 1;
        }
        (done, begin.elapsed())
    }
    run(in_flight, &one, WARM_UP_MESSAGES).await;
    let (done, elapsed) = run(in_flight, &one, TURN_MESSAGES).await;
    f64::from(done) / elapsed.as_secs_f64()
}

/// The message as lapin takes it, with all that berth says in properties.
fn bare_properties(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    let version = AMQPValue::LongLongInt(message.version.map(i64::from).unwrap());
    headers.insert(HEADER_VERSION.into(), version);
    let seconds = message.timestamp.unwrap().timestamp();
    BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(2)
        .with_headers(headers)
        .with_message_id(message.id.as_str().into())
        .with_type(message.method.as_str().into())
        .with_app_id(message.app_id.as_str().into())
        .with_timestamp(u64::try_from(seconds).unwrap())
}

async fn bare_publish(channel: &Channel, message: Message) {
    let properties = bare_properties(&message);
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(
            "".into(),
            BARE_QUEUE.into(),
            options,
            &message.body,
            properties,
        )
        .await
        .unwrap()
        .await
        .unwrap();
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How fast deliveries are settled that are all there: each awaited before the next, and all at once.
async fn bench_acks(bus: &RabbitBus, message: &Message) {
    let decl = queue(ACK_QUEUE);
    let mut consumer = bus.consume(&decl, ACKS).await.unwrap();
    for way in ["one_by_one", "at_once"] {
        let mut per_s = Vec::new();
        for _ in 0..TURNS {
            let publishes =
                (0..ACKS).map(|_| bus.publish(Target::queue(ACK_QUEUE), message.clone()));
            futures::future::try_join_all(publishes).await.unwrap();
            let mut deliveries = Vec::new();
            for _ in 0..ACKS {
                deliveries.push(consumer.next().await.unwrap());
            }
            let begin = Instant::now();
            if way == "at_once" {
                futures::future::join_all(deliveries.into_iter().map(Delivery::ack)).await;
            } else {
                for delivery in deliveries {
                    delivery.ack().await;
                }
            }
            per_s.push(f64::from(ACKS) / begin.elapsed().as_secs_f64());
        }
        println!("bench ack way={way} per_s={:.0}", median(&mut per_s));
    }
}

#[tokio::main]
async fn main() {
    // In a task, as services publish: the main thread is no worker of the runtime.
    tokio::spawn(bench()).await.unwrap();
}

async fn bench() {
    let url = std::env::var("BERTH_TEST_AMQP")
        .expect("BERTH_TEST_AMQP names the broker; `make bench-bus` sets it");
    let url = format!("{}/%2f", url.trim_end_matches('/'));
    let bus = RabbitBus::start(RabbitConfig::new(url.as_str(), "bench bus")).unwrap();
    bus.declare(&queue(BERTH_QUEUE)).await.unwrap();
    bus.declare(&queue(BARE_QUEUE)).await.unwrap();
    bus.health()
        .wait_for(BusHealth::is_connected)
        .await
        .unwrap();
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    let body = vec![b' '; BODY_BYTES];
    let message = Message::from_json("bench.publish", 1, "bench", body);

    for in_flight in IN_FLIGHT {
        let (mut berth, mut bare) = (Vec::new(), Vec::new());
        for number in 0..TURNS {
            // Both begin with an empty queue.
            for name in [BERTH_QUEUE, BARE_QUEUE] {
                bus.delete_queue(name).await.unwrap();
                bus.declare(&queue(name)).await.unwrap();
            }
            let by_berth = || async {
                let to = Target::queue(BERTH_QUEUE);
                bus.publish(to, message.clone()).await.unwrap();
            };
            let by_lapin = || bare_publish(&channel, message.clone());
            // Neither always has the fresher broker.
            if number % 2 == 0 {
                berth.push(turn(in_flight, by_berth).await);
                bare.push(turn(in_flight, by_lapin).await);
            } else {
                bare.push(turn(in_flight, by_lapin).await);
                berth.push(turn(in_flight, by_berth).await);
            }
        }
        let (berth, bare) = (median(&mut berth), median(&mut bare));
        println!(
            "bench publish in_flight={in_flight} berth_per_s={berth:.0} bare_per_s={bare:.0} ratio={:.2}",
            berth / bare
        );
    }
    bench_acks(&bus, &message).await;
    for name in [BERTH_QUEUE, BARE_QUEUE, ACK_QUEUE] {
        bus.delete_queue(name).await.unwrap();
    }
    bus.close().await;
    connection.close(200, "done".into()).await.unwrap();
}
