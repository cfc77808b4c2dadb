//! Questions about instances: passed on to the right host with the asker's address, or refused at once.

use std::time::Duration;

use berth_common::{
    bus::{Consumer, Delivery, Message, QueueDecl, RpcError, Target, ask_queue, topology::DEAD},
    document::RuleDirection,
    ids::{InstanceId, PortId},
    message::{
        counters::PortCounters,
        question::{
            Ask, ConsoleOutput, ConsolePlace, InstanceConsoleOutput, InstanceEndpoints,
            InstancePingGuestAgent, InstanceScreenshot, QUESTION_TYPE, Question,
        },
        report::PowerState,
        request::{Method, Reply},
        trace::{PortTrace, TraceConnection, TracePacket, TraceProtocol},
        view::VmState,
    },
    refusal::{
        Refusal,
        RefusalCode::{Conflict, Invalid, Malformed, NotFound, Unavailable},
    },
};
use serde_json::json;

use crate::{
    ask::{delete, hinted, instance, network, small},
    cloud::{Cloud, LIMIT, message, wait_until},
    host::Host,
    ports,
};

/// A question as a client writes it.
fn console(instance: &str) -> InstanceConsoleOutput {
    serde_json::from_value(json!({ "instance": instance })).unwrap()
}

/// The agent's end of a host's questions.
async fn listen(host: &Host) -> Consumer {
    let queue = QueueDecl::ask(&host.name);
    host.bus.consume(&queue, 8).await.unwrap()
}

async fn next(questions: &mut Consumer) -> (Question, Delivery) {
    let delivery = tokio::time::timeout(LIMIT, questions.next())
        .await
        .expect("no question came")
        .unwrap();
    let question = delivery.message.decode().unwrap();
    (question, delivery)
}

/// An instance that runs on a host.
async fn active(cloud: &Cloud, host: &mut Host, name: &str) -> InstanceId {
    let request = hinted(name, json!({ "host": host.name }));
    cloud.ok(request.clone()).await;
    host.converge_instance(PowerState::Running).await;
    cloud
        .wait_for_instance(request.id, "active", |view| {
            view.vm_state == VmState::Active
        })
        .await;
    request.id
}

#[tokio::test]
async fn a_question_reaches_the_host_and_its_answer_whoever_asked() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    let hv2 = hosts.get_mut("hv2").unwrap();
    let id = active(&cloud, hv2, "web").await;
    let mut questions = listen(hv2).await;

    let mut request = console("web");
    request.lines = 7;
    request.after = Some(ConsolePlace { file: 5, offset: 9 });
    let mut asked = message(&request);
    asked.traceparent = Some("00-1-2-01".to_owned());
    asked.expiration = Some(Duration::from_secs(4));
    let answering = async {
        let (question, delivery) = next(&mut questions).await;
        let told = &delivery.message;
        assert_eq!(told.method, QUESTION_TYPE);
        // An agent that knows no more than this can answer it.
        assert_eq!(told.version, Some(1));
        assert_eq!(told.traceparent.as_deref(), Some("00-1-2-01"));
        assert_eq!(told.expiration, Some(Duration::from_secs(4)));
        let expected = Question {
            host_id: hv2.id,
            instance_id: id,
            patience_ms: 4000,
            ask: Ask::ConsoleOutput {
                lines: 7,
                after: Some(ConsolePlace { file: 5, offset: 9 }),
            },
        };
        assert_eq!(question, expected);
        let output = ConsoleOutput {
            instance_id: id,
            host: "hv2".parse().unwrap(),
            text: "login:".to_owned(),
            cut: false,
            more: false,
            next: None,
        };
        let answer = Reply::from(Ok::<_, Refusal>(output));
        let reply = Message::reply(told, "instance.console_output.reply", 1, "test", &answer);
        let to = Target::queue(told.reply_to.clone().unwrap());
        hv2.bus.publish(to, reply.unwrap()).await.unwrap();
        delivery.ack().await;
    };
    let (answer, ()) = tokio::join!(cloud.rpc.call_message(asked, LIMIT), answering);
    let answer: Reply<ConsoleOutput> = answer.unwrap().decode().unwrap();
    assert_eq!(Result::from(answer).unwrap().text, "login:");
}

#[tokio::test]
async fn each_question_is_passed_on_as_what_it_is_with_a_bounded_patience() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let id = active(&cloud, &mut host, "web").await;
    let mut questions = listen(&host).await;
    let instance = || id.to_string();
    let project = Default::default;
    let asked = [
        (
            message(&console("web")),
            Ask::ConsoleOutput {
                lines: 100,
                after: None,
            },
        ),
        (
            message(&InstanceScreenshot {
                instance: instance(),
                project: project(),
            }),
            Ask::Screenshot {},
        ),
        (
            message(&InstancePingGuestAgent {
                instance: instance(),
                project: project(),
            }),
            Ask::PingGuestAgent {},
        ),
        (
            message(&InstanceEndpoints {
                instance: instance(),
                project: project(),
            }),
            Ask::Endpoints {},
        ),
    ];
    for (asked, ask) in asked {
        for (expiration, patience_ms) in [
            (None, 10_000),
            (Some(Duration::from_millis(500)), 1000),
            (Some(Duration::from_secs(3600)), 60_000),
        ] {
            let mut asked = asked.clone();
            asked.expiration = expiration;
            let patient = cloud.rpc.call_message(asked, Duration::from_secs(30));
            let (question, delivery) = tokio::select! {
                answer = patient => panic!("{answer:?}"),
                told = next(&mut questions) => told,
            };
            assert_eq!(question.ask, ask);
            assert_eq!(question.patience_ms, patience_ms);
            delivery.ack().await;
        }
    }
}

#[tokio::test]
async fn nobody_is_asked_about_what_is_not_there() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud
        .refused(console("web"), NotFound, "has no instance \"web\"")
        .await;
    let id = active(&cloud, &mut host, "web").await;
    let mut elsewhere = console("web");
    elsewhere.project = "other".parse().unwrap();
    cloud
        .refused(elsewhere, NotFound, "project other has no instance")
        .await;
    for lines in [0, 10_001] {
        let mut request = console("web");
        request.lines = lines;
        cloud
            .refused(request, Invalid, "lines must be 1 to 10000")
            .await;
    }

    // One that no host has room for.
    let mut nowhere = small("huge");
    nowhere.flavor.memory_mb = "1000000".parse().unwrap();
    cloud.call(nowhere).await.unwrap_err();
    cloud
        .refused(console("huge"), Conflict, "has no hypervisor")
        .await;

    cloud.ok(delete(id)).await;
    host.bury(&cloud, &[id]).await;
    cloud
        .refused(console(&id.to_string()), NotFound, "is deleted")
        .await;
}

#[tokio::test]
async fn a_host_that_cannot_answer_is_a_refusal_at_once_that_says_why() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    active(&cloud, &mut host, "web").await;
    // Its agent has no queue of questions.
    let refusal = cloud
        .refused(
            console("web"),
            Unavailable,
            "no agent listens on hypervisor hv1",
        )
        .await;
    assert!(refusal.retryable);

    // It has one, until it ends.
    let questions = listen(&host).await;
    drop(questions);
    wait_until("the queue went with its agent", async || {
        !cloud.broker.queues().contains(&ask_queue("hv1"))
    })
    .await;
    cloud
        .refused(console("web"), Unavailable, "no agent listens")
        .await;

    let _questions = listen(&host).await;
    cloud.lose(&[host.id]).await;
    cloud
        .refused(console("web"), Unavailable, "hypervisor hv1 of instance ")
        .await;
    cloud
        .refused(
            console("web"),
            Unavailable,
            "is down, nothing was heard of it for",
        )
        .await;
}

#[tokio::test]
async fn what_a_silent_agent_leaves_there_is_gone_with_the_patience_of_whoever_asked() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    active(&cloud, &mut host, "web").await;
    let queue = QueueDecl::ask(&host.name);
    // It has the queue and takes nothing off it.
    let _silent = host.bus.consume(&queue, 1).await.unwrap();
    let mut asked = message(&console("web"));
    asked.expiration = Some(Duration::from_secs(1));
    let error = cloud
        .rpc
        .call_message(asked.clone(), Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(matches!(error, RpcError::Timeout { .. }), "{error}");
    wait_until("the question is gone", async || {
        host.bus.queue_depth(&queue.name).await.unwrap() == Some(0)
    })
    .await;
    assert_eq!(host.bus.queue_depth(DEAD).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn questions_that_nobody_can_use_are_put_away_and_those_nobody_waits_for_are_dropped() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    active(&cloud, &mut host, "web").await;
    let mut questions = listen(&host).await;
    let name = InstanceConsoleOutput::NAME;
    for body in [
        json!({}),
        json!({ "instance": "web", "lines": -1 }),
        json!({ "instance": "web", "after": "nonsense" }),
    ] {
        cloud
            .refused_raw(name, 1, body, Malformed, "does not fit")
            .await;
    }
    assert_eq!(host.bus.queue_depth(DEAD).await.unwrap(), Some(3));

    // Without an address for the answer it is nobody's.
    let scheduler = Target::queue("scheduler");
    let unasked = message(&console("web"));
    host.bus.publish(scheduler, unasked).await.unwrap();
    let last = cloud.rpc.call_message(
        message(&InstanceEndpoints {
            instance: "web".to_owned(),
            project: Default::default(),
        }),
        Duration::from_secs(30),
    );
    let (question, _) = tokio::select! {
        answer = last => panic!("{answer:?}"),
        told = next(&mut questions) => told,
    };
    assert_eq!(question.ask, Ask::Endpoints {}, "the first one was dropped");
}

#[tokio::test]
async fn a_deleted_host_takes_its_queue_of_questions_along() {
    let cloud = Cloud::start().await;
    let host = Host::join(&cloud, "hv1").await;
    let queue = QueueDecl::ask("hv1");
    host.bus.declare(&queue).await.unwrap();
    let id = host.id;
    drop(host);
    assert!(cloud.broker.queues().contains(&queue.name));
    cloud.lose(&[id]).await;
    let request = serde_json::from_value(json!({ "host": "hv1" })).unwrap();
    cloud
        .ok::<berth_common::message::request::HostDelete>(request)
        .await;
    assert!(!cloud.broker.queues().contains(&queue.name));
}

#[tokio::test]
async fn a_packet_is_traced_by_the_host_of_its_port() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("net", "10.0.0.0/24")).await;
    let request = instance("web", 64, json!([{ "network": "net" }]));
    let view = cloud.ok(request).await;
    let port = view.ports[0].id;
    let mut questions = listen(&host).await;
    host.heartbeat().await;
    let packet = |source: &str| TracePacket {
        direction: RuleDirection::Ingress,
        source: source.parse().unwrap(),
        destination: "10.0.0.3".parse().unwrap(),
        mac_address: None,
        protocol: TraceProtocol::Tcp {
            source_port: None,
            destination_port: 22,
        },
        connection: TraceConnection::New,
    };
    let trace = |port, source: &str| PortTrace {
        port,
        packet: packet(source),
    };
    cloud
        .refused(
            trace(PortId::new(), "10.0.0.9"),
            NotFound,
            "there is no port",
        )
        .await;
    cloud
        .refused(trace(port, "2001:db8::9"), Invalid, "same version of IP")
        .await;
    let asked = message(&trace(port, "10.0.0.9"));
    let answering = async {
        let (question, delivery) = next(&mut questions).await;
        let expected = Ask::PortTrace {
            port_id: port,
            packet: packet("10.0.0.9"),
        };
        assert_eq!((question.instance_id, question.ask), (view.id, expected));
        delivery.ack().await;
    };
    let limit = Duration::from_secs(2);
    let (unanswered, ()) = tokio::join!(cloud.rpc.call_message(asked, limit), answering);
    assert!(unanswered.is_err());
}

#[tokio::test]
async fn the_counters_of_a_port_are_asked_of_its_host_and_of_none_when_it_is_plugged_in_nowhere() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    cloud.ok(network("net", "10.0.0.0/24")).await;
    let request = instance("web", 64, json!([{ "network": "net" }]));
    let view = cloud.ok(request).await;
    let counters = |port| PortCounters { port };
    let port = view.ports[0].id;
    cloud
        .refused(
            counters(port),
            Unavailable,
            "no agent listens on hypervisor hv1",
        )
        .await;
    let mut questions = listen(&host).await;
    host.heartbeat().await;
    cloud
        .refused(counters(PortId::new()), NotFound, "there is no port")
        .await;
    let free = cloud.ok(ports::port("net", json!({}))).await.id;
    cloud
        .refused(counters(free), Conflict, "it is plugged in nowhere")
        .await;
    let asked = message(&counters(port));
    let answering = async {
        let (question, delivery) = next(&mut questions).await;
        let expected = Ask::PortCounters { port_id: port };
        assert_eq!((question.instance_id, question.ask), (view.id, expected));
        delivery.ack().await;
    };
    let limit = Duration::from_secs(2);
    let (unanswered, ()) = tokio::join!(cloud.rpc.call_message(asked, limit), answering);
    assert!(unanswered.is_err());
    cloud.lose(&[host.id]).await;
    cloud
        .refused(
            counters(port),
            Unavailable,
            "is down, nothing was heard of it for",
        )
        .await;
}
