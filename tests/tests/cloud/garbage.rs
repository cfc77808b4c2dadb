//! Messages that nobody can use: a typed, readable refusal to the sender, the message in `berth.dead` with its
//! reason, and the next request served.

use std::time::Duration;

use berth_common::{
    bus::{Bus, Message, Target},
    document::{DOCUMENT_VERSION, DesiredPower},
    ids::{HostId, InstanceId, NetworkId},
    message::{
        request::{HostList, Method as _},
        view::VmState,
    },
};
use berth_tests::{
    TestCloud,
    cloud::{CONVERGE_LIMIT, InstanceOptions},
    raw::{RawClient, RawMessage},
    wait::{Seen, wait_for},
    with_cloud,
};
use serde_json::json;

/// A message that is refused as unusable.
struct Case {
    what: &'static str,
    message: RawMessage,
    code: &'static str,
    /// Part of the text, the same in the answer and in the dead message.
    says: String,
}

fn case(
    what: &'static str,
    method: &str,
    version: i64,
    body: impl Into<Vec<u8>>,
    code: &'static str,
    says: &str,
) -> Case {
    let message = RawMessage {
        method: Some(method.to_owned()),
        version: Some(version),
        body: body.into(),
    };
    Case {
        what,
        message,
        code,
        says: says.to_owned(),
    }
}

fn cases() -> Vec<Case> {
    let id = InstanceId::new();
    let instance = json!({
        "id": id, "name": "x", "flavor": {"vcpus": 1, "memory_mb": 96, "disk_gb": 1},
        "image": {"url": "file:///x", "sha256": "0".repeat(64), "format": "qcow2"},
    });
    let with = |field: &str, value: serde_json::Value| {
        let mut instance = instance.clone();
        instance[field] = value;
        instance.to_string()
    };
    let mut missing = instance.clone();
    if let Some(fields) = missing.as_object_mut() {
        fields.remove("flavor");
    }
    let network =
        |cidr: &str| json!({"id": NetworkId::new(), "name": "n", "cidr": cidr}).to_string();
    let mut list = vec![
        case(
            "malformed JSON",
            "host.list",
            1,
            "{\"half\": ",
            "malformed",
            "the body is not JSON",
        ),
        case(
            "no JSON at all",
            "host.list",
            1,
            [0xff, 0x00, 0x9f],
            "malformed",
            "the body is not JSON",
        ),
        case(
            "an empty body",
            "instance.show",
            1,
            "",
            "malformed",
            "the body is not JSON",
        ),
        case(
            "an unknown method",
            "instance.explode",
            1,
            "{}",
            "unknown_method",
            "no method \"instance.explode\"",
        ),
        case(
            "a version of the future",
            "host.list",
            99,
            "{}",
            "unsupported_version",
            &format!(
                "must be 1 to {} for \"host.list\"; got 99",
                HostList::VERSION
            ),
        ),
        case(
            "a missing field",
            "instance.create",
            1,
            missing.to_string(),
            "malformed",
            "missing field `flavor`",
        ),
        case(
            "the nil UUID",
            "instance.create",
            1,
            with("id", json!("00000000-0000-0000-0000-000000000000")),
            "malformed",
            "other than the nil UUID",
        ),
        case(
            "a name with XML",
            "instance.create",
            1,
            with("name", json!("<b>&amp;</b>")),
            "malformed",
            "an instance name must be",
        ),
        case(
            "a name with shell",
            "instance.create",
            1,
            with("name", json!("x; reboot #")),
            "malformed",
            "an instance name must be",
        ),
        case(
            "a name with a command",
            "instance.create",
            1,
            with("name", json!("$(reboot)")),
            "malformed",
            "an instance name must be",
        ),
        case(
            "a name with a line break",
            "instance.create",
            1,
            with("name", json!("a\nb")),
            "malformed",
            "an instance name must be",
        ),
        case(
            "a negative size",
            "instance.create",
            1,
            with(
                "flavor",
                json!({"vcpus": -1, "memory_mb": 96, "disk_gb": 1}),
            ),
            "malformed",
            "a number of vCPUs",
        ),
        case(
            "a path that climbs",
            "instance.create",
            1,
            with(
                "image",
                json!({"url": "ftp://x", "sha256": "0".repeat(64), "format": "qcow2"}),
            ),
            "malformed",
            "an image URL must be",
        ),
        case(
            "a checksum that is a path",
            "instance.create",
            1,
            with(
                "image",
                json!({"url": "file:///x", "sha256": "../../etc/passwd", "format": "qcow2"}),
            ),
            "malformed",
            "sha256",
        ),
        case(
            "a multicast MAC",
            "instance.create",
            1,
            with(
                "networks",
                json!([{"network": "n", "mac_address": "01:00:5e:00:00:01"}]),
            ),
            "malformed",
            "a MAC address must be",
        ),
        case(
            "a subnet with host bits",
            "network.create",
            1,
            network("10.0.0.1/24"),
            "malformed",
            "a subnet's CIDR must be",
        ),
        case(
            "10 MB",
            "host.list",
            1,
            vec![b' '; 10_000_000],
            "too_large",
            "10000000",
        ),
    ];
    list.push(Case {
        what: "no method",
        message: RawMessage {
            method: None,
            version: Some(1),
            body: b"{}".to_vec(),
        },
        code: "malformed",
        says: "type".to_owned(),
    });
    list.push(Case {
        what: "no version",
        message: RawMessage {
            method: Some("host.list".to_owned()),
            version: None,
            body: b"{}".to_vec(),
        },
        code: "malformed",
        says: "x-berth-version".to_owned(),
    });
    list
}

#[test]
fn unusable_messages_are_refused_kept_with_their_reason_and_stop_nobody() {
    with_cloud(TestCloud::builder().agents(0), async |cloud| {
        let mut client = RawClient::connect(&cloud.broker_url()).await?;
        for case in cases() {
            let what = case.what;
            let answer = client
                .ask(case.message.clone())
                .await
                .map_err(|error| error.context(what))?;
            let error = &answer["error"];
            assert_eq!(error["code"], case.code, "{what}: {answer}");
            assert_eq!(error["retryable"], false, "{what}: {answer}");
            let text = error["message"].as_str().unwrap_or_default();
            assert!(
                text.contains(&case.says),
                "{what}: no {:?} in {text:?}",
                case.says
            );

            let dead = wait_for(
                &format!("{what} in berth.dead"),
                Duration::from_secs(60),
                async || {
                    Ok(client
                        .take_dead()
                        .await?
                        .map_or_else(|| Seen::NotYet("it is empty".to_owned()), Seen::Done))
                },
            )
            .await?;
            assert!(
                dead.reason.contains(&case.says),
                "{what}: no {:?} in {:?}",
                case.says,
                dead.reason
            );
            assert_eq!(dead.queue, "scheduler", "{what}");
            assert_eq!(
                dead.method,
                case.message.method.unwrap_or_default(),
                "{what}"
            );

            cloud
                .call(&HostList::default())
                .await
                .map_err(|error| error.context(format!("after {what}")))?;
        }
        assert!(cloud.instances().await?.is_empty(), "something half-made");
        assert!(cloud.networks().await?.is_empty(), "something half-made");
        Ok(())
    });
}

#[test]
fn an_unusable_document_ends_in_the_dead_queue_and_the_next_one_is_carried_out() {
    with_cloud(TestCloud::builder(), async |cloud| {
        let client = RawClient::connect(&cloud.broker_url()).await?;
        let bystander = cloud.create_instance("bystander", &stopped()).await?;
        cloud
            .wait_state(bystander.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        // A tombstone would be the end of the bystander, if it were for this host.
        let of_another_host = json!({"kind": "instance", "id": bystander.id, "generation": 99, "host_id": HostId::new(), "spec": null});
        let without_spec = json!({"kind": "instance", "id": bystander.id, "generation": 99, "host_id": bystander.host_id});
        let cases = [
            (
                "{\"kind\":\"instance\"".to_owned(),
                DOCUMENT_VERSION,
                "the body is no document",
            ),
            ("[]".to_owned(), DOCUMENT_VERSION, "the body is no document"),
            (without_spec.to_string(), DOCUMENT_VERSION, "spec"),
            (
                of_another_host.to_string(),
                DOCUMENT_VERSION,
                "the document is for host",
            ),
            (of_another_host.to_string(), 7, "x-berth-version"),
        ];
        for (body, version, says) in cases {
            let message = Message::from_json("document.instance", version, "stranger", body);
            cloud
                .bus
                .publish(Target::queue("compute.hv1"), message)
                .await?;
            let dead = wait_for(
                "the document in berth.dead",
                Duration::from_secs(60),
                async || {
                    Ok(client
                        .take_dead()
                        .await?
                        .map_or_else(|| Seen::NotYet("it is empty".to_owned()), Seen::Done))
                },
            )
            .await?;
            assert_eq!(dead.queue, "compute.hv1");
            assert!(
                dead.reason.contains(says),
                "no {says:?} in {:?}",
                dead.reason
            );
        }
        let next = cloud.create_instance("next", &stopped()).await?;
        cloud
            .wait_state(next.id, VmState::Stopped, CONVERGE_LIMIT)
            .await?;
        assert_eq!(
            cloud.hv1().domains().await?.len(),
            2,
            "the bystander is still there"
        );
        Ok(())
    });
}

fn stopped() -> InstanceOptions {
    InstanceOptions {
        power: DesiredPower::Stopped,
        ..InstanceOptions::default()
    }
}
