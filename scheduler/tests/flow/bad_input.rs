//! Ways of asking wrongly: each is refused with a code and words, and the next request is served.

use berth_common::{
    bus::{Bus as _, Message, QueueDecl},
    ids::{AggregateId, HostId, InstanceId, ServerGroupId, VolumeId},
    message::request::{
        AggregateAddHost, AggregateList, HostList, InstanceList, ServerGroupList, VolumeList,
    },
    refusal::RefusalCode::{
        self, Conflict, Invalid, Malformed, NotFound, TooLarge, UnknownMethod, UnsupportedVersion,
    },
};
use serde_json::{Map, Value, json};

use crate::{
    ask::{aggregate, body, hinted, server_group, small, volume},
    cloud::{Cloud, wait_until},
    host::Host,
    soundness::assert_sound,
};

/// A cloud of two hosts, and how much there is in it before anybody asks wrongly.
struct Asked {
    cloud: Cloud,
    hosts: std::collections::BTreeMap<String, Host>,
}

impl Asked {
    async fn new() -> Self {
        let cloud = Cloud::start().await;
        let hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
        Self { cloud, hosts }
    }

    /// Refused, with nothing changed, and what follows is served.
    async fn check(&self, method: &str, body: Value, code: RefusalCode, words: &str) {
        let before = self.everything().await;
        let refusal = self.cloud.refused_raw(method, 1, body, code, words).await;
        assert_eq!(refusal.retryable, code.retryable());
        assert_eq!(self.everything().await, before, "{method}: {refusal}");
    }

    async fn create(&self, hints: Value, code: RefusalCode, words: &str) {
        self.check("instance.create", body("bad", hints), code, words)
            .await;
    }

    async fn sized(&self, flavor: Value, code: RefusalCode, words: &str) {
        let mut body = body("bad", json!({}));
        body["flavor"] = flavor;
        for method in ["instance.create", "placement.place", "placement.capacity"] {
            self.check(method, body.clone(), code, words).await;
        }
        let many = json!({ "instances": [body] });
        self.check("instance.create_many", many, code, words).await;
    }

    /// All that is there, but for what changes by itself.
    async fn everything(&self) -> Value {
        let instances = InstanceList {
            project: None,
            after: None,
            limit: 1000,
        };
        let volumes = VolumeList {
            limit: 1000,
            ..VolumeList::default()
        };
        let mut hosts = self.cloud.ok(HostList::default()).await.hosts;
        for host in &mut hosts {
            host.last_heartbeat_seconds = None;
        }
        json!([
            self.cloud.ok(instances).await,
            self.cloud.ok(volumes).await,
            hosts,
            self.cloud.ok(AggregateList {}).await,
            self.cloud.ok(ServerGroupList { project: None }).await,
        ])
    }

    async fn end(self) {
        self.cloud.ok(small("after-all-that")).await;
        assert_sound(&self.cloud).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_cannot_be() {
    let asked = Asked::new().await;
    let size = |vcpus: Value, memory_mb: Value, disk_gb: Value| json!({ "vcpus": vcpus, "memory_mb": memory_mb, "disk_gb": disk_gb });
    for (wrong, words) in [
        (json!(-1), "must be a whole number from 0 to"),
        (json!(1.5), "must be a whole number from 0 to"),
        (json!(u64::MAX), "must be a whole number from 0 to"),
        (json!("1"), "invalid type: string"),
        (json!(null), "invalid type: null"),
        (
            serde_json::from_str("1e300").unwrap(),
            "must be a whole number from 0 to",
        ),
        (
            serde_json::from_str("18446744073709551616").unwrap(),
            "must be a whole number from 0 to",
        ),
    ] {
        asked
            .sized(size(wrong.clone(), json!(64), json!(1)), Malformed, words)
            .await;
        asked
            .sized(size(json!(1), wrong.clone(), json!(1)), Malformed, words)
            .await;
        asked
            .sized(size(json!(1), json!(64), wrong), Malformed, words)
            .await;
    }
    asked
        .sized(
            size(json!(0), json!(64), json!(1)),
            Invalid,
            "flavor.vcpus must be at least 1",
        )
        .await;
    asked
        .sized(
            size(json!(0), json!(0), json!(0)),
            Invalid,
            "flavor.vcpus must be at least 1; flavor.memory_mb must be at least 1; flavor.disk_gb must be at least 1",
        )
        .await;
    // The largest that can be said is refused for want of a host, in numbers.
    let largest = size(json!(1_u64 << 20), json!(1_u64 << 36), json!(1_u64 << 36));
    let place = json!({ "flavor": largest });
    let answer = asked
        .cloud
        .rpc
        .call("placement.place", 1, &place, crate::cloud::LIMIT)
        .await
        .unwrap();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(
        text.contains("needs 1048576 vCPU, the whole host has 4"),
        "{text}"
    );
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_name_what_is_not_there_or_contradict_themselves() {
    let asked = Asked::new().await;
    let cloud = &asked.cloud;
    let theirs = {
        let mut theirs = server_group("theirs", "affinity");
        theirs.project = "other".parse().unwrap();
        cloud.ok(theirs).await
    };
    let first = cloud.ok(hinted("first", json!({ "host": "hv1" }))).await.id;
    let second = cloud
        .ok(hinted("second", json!({ "host": "hv2" })))
        .await
        .id;
    let beside_first = cloud.ok(hinted("third", json!({ "host": "hv1" }))).await.id;
    let stranger = InstanceId::new();

    asked
        .create(
            json!({ "server_group": "nobodys" }),
            NotFound,
            "project default has no server group \"nobodys\"",
        )
        .await;
    asked
        .create(
            json!({ "server_group": ServerGroupId::new() }),
            NotFound,
            "has no server group",
        )
        .await;
    asked
        .create(
            json!({ "server_group": "theirs" }),
            NotFound,
            "has no server group",
        )
        .await;
    asked
        .create(
            json!({ "server_group": theirs.id }),
            NotFound,
            "has no server group",
        )
        .await;
    asked
        .create(
            json!({ "availability_zone": "mars" }),
            NotFound,
            "there is no availability zone mars; there are: nova",
        )
        .await;
    asked
        .create(
            json!({ "availability_zone": "not a zone" }),
            Malformed,
            "an availability zone",
        )
        .await;
    asked
        .create(
            json!({ "host": "hv9" }),
            NotFound,
            "there is no host \"hv9\"",
        )
        .await;
    asked
        .create(
            json!({ "host": HostId::new() }),
            NotFound,
            "there is no host",
        )
        .await;
    asked
        .create(
            json!({ "host": "x".repeat(100_000) }),
            NotFound,
            "there is no host",
        )
        .await;
    asked
        .create(
            json!({ "same_host": [stranger] }),
            NotFound,
            "which hints.same_host names",
        )
        .await;
    asked
        .create(
            json!({ "different_host": [first, stranger] }),
            NotFound,
            "which hints.different_host names",
        )
        .await;
    asked
        .create(json!({ "same_host": ["first"] }), Malformed, "UUID")
        .await;

    asked
        .create(
            json!({ "same_host": [first], "different_host": [first] }),
            Invalid,
            "it cannot be both",
        )
        .await;
    asked
        .create(
            json!({ "same_host": [first], "different_host": [beside_first] }),
            Invalid,
            "every host of hints.same_host has an instance of hints.different_host",
        )
        .await;
    asked
        .create(
            json!({ "host": "hv1", "different_host": [first] }),
            Invalid,
            "contradict one another",
        )
        .await;
    asked
        .create(
            json!({ "host": "hv2", "same_host": [first] }),
            Invalid,
            "hints.host has no instance of hints.same_host",
        )
        .await;
    for hint in ["same_host", "different_host"] {
        let mut itself = body("bad", json!({}));
        itself["hints"] = json!({ hint: [second, itself["id"]] });
        let words = format!("hints.{hint} names the instance itself");
        asked
            .check("instance.create", itself, Invalid, &words)
            .await;
        let crowd: Vec<_> = (0..65).map(|_| InstanceId::new()).collect();
        asked
            .create(
                json!({ hint: crowd }),
                Invalid,
                "must name at most 64 instances; got 65",
            )
            .await;
    }
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_and_countable_resources_that_cannot_be_asked_for() {
    let asked = Asked::new().await;
    let numbered = |count: usize, prefix: &str, value: Value| -> Map<String, Value> {
        (0..count)
            .map(|n| (format!("{prefix}{n}"), value.clone()))
            .collect()
    };
    asked
        .create(
            json!({ "properties": numbered(65, "key-", json!("value")) }),
            Invalid,
            "hints.properties must be at most 64; got 65",
        )
        .await;
    asked
        .create(
            json!({ "properties": { "no spaces": "x" } }),
            Malformed,
            "the name of a property",
        )
        .await;
    asked
        .create(
            json!({ "properties": { "key": "" } }),
            Malformed,
            "the value of a property",
        )
        .await;
    asked
        .create(
            json!({ "properties": { "key": 7 } }),
            Malformed,
            "invalid type",
        )
        .await;
    asked
        .create(
            json!({ "resources": numbered(17, "CLASS_", json!(1)) }),
            Invalid,
            "hints.resources must be at most 16 classes; got 17",
        )
        .await;
    asked
        .create(
            json!({ "resources": { "PCI_GPU": 0 } }),
            Invalid,
            "hints.resources.PCI_GPU must be at least 1",
        )
        .await;
    asked
        .create(
            json!({ "resources": { "PCI_GPU": -1 } }),
            Malformed,
            "invalid value",
        )
        .await;
    for class in ["pci", "1GPU", "PCI-GPU", "", &"A".repeat(64)] {
        asked
            .create(
                json!({ "resources": { class: 1 } }),
                Malformed,
                "a resource class",
            )
            .await;
    }
    for word in ["", "x 86", "x86_64; rm", &"x".repeat(33)] {
        asked
            .create(
                json!({ "architecture": word }),
                Invalid,
                "hints.architecture must be 1 to 32",
            )
            .await;
        asked
            .create(
                json!({ "virt_type": word }),
                Invalid,
                "hints.virt_type must be 1 to 32",
            )
            .await;
    }
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ratios_and_reserves_that_cannot_be() {
    let asked = Asked::new().await;
    for ratio in [
        json!(0),
        json!("0"),
        json!(0.0),
        json!(-1),
        json!("-1.5"),
        json!("NaN"),
        json!("inf"),
        json!(1e9),
        json!(1001),
        json!("1.2345"),
        json!(true),
        json!([]),
        json!({}),
        json!(""),
        json!("1e3"),
    ] {
        for key in [
            "cpu_allocation_ratio",
            "ram_allocation_ratio",
            "disk_allocation_ratio",
        ] {
            let words = "an allocation ratio must be a decimal from 0.001 to 1000";
            asked
                .check(
                    "host.set",
                    json!({ "host": "hv1", key: ratio }),
                    Malformed,
                    words,
                )
                .await;
            let mut create = json!({ "id": AggregateId::new(), "name": "bad" });
            create[key] = ratio.clone();
            asked
                .check("aggregate.create", create, Malformed, words)
                .await;
        }
    }
    asked
        .check(
            "host.set",
            json!({ "host": "hv1" }),
            Invalid,
            "nothing to change: name a ratio",
        )
        .await;
    asked
        .check(
            "host.set",
            json!({ "host": "hv1", "cpu_ratio": "2" }),
            Invalid,
            "nothing to change",
        )
        .await;
    asked
        .check("host.set", json!({}), Malformed, "missing field `host`")
        .await;
    asked
        .check(
            "host.set",
            json!({ "host": "hv9", "reserved_host_cpus": 1 }),
            NotFound,
            "there is no host",
        )
        .await;
    for reserve in [
        "reserved_host_cpus",
        "reserved_host_memory_mb",
        "reserved_host_disk_gb",
    ] {
        for wrong in [json!(-1), json!(u64::MAX), json!(0.5)] {
            let request = json!({ "host": "hv1", reserve: wrong });
            asked
                .check(
                    "host.set",
                    request,
                    Malformed,
                    "must be a whole number from 0",
                )
                .await;
        }
    }
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_aggregates_that_cannot_be() {
    let asked = Asked::new().await;
    let cloud = &asked.cloud;
    let group = |policy: &str, most: Value| json!({ "id": ServerGroupId::new(), "name": "bad", "policy": policy, "max_server_per_host": most });
    for policy in ["affinity", "soft_affinity", "soft_anti_affinity"] {
        let words = "max_server_per_host goes with policy anti_affinity only";
        asked
            .check(
                "server_group.create",
                group(policy, json!(2)),
                Invalid,
                words,
            )
            .await;
        asked
            .check(
                "server_group.create",
                group(policy, json!(0)),
                Invalid,
                "at least 1",
            )
            .await;
    }
    asked
        .check(
            "server_group.create",
            group("anti_affinity", json!(0)),
            Invalid,
            "max_server_per_host must be at least 1",
        )
        .await;
    asked
        .check(
            "server_group.create",
            group("anti_affinity", json!(-1)),
            Malformed,
            "invalid value",
        )
        .await;
    asked
        .check(
            "server_group.create",
            group("together", json!(null)),
            Malformed,
            "unknown variant",
        )
        .await;

    // An id, or a name, that is taken.
    let apart = server_group("apart", "anti_affinity");
    let view = cloud.ok(apart.clone()).await;
    assert_eq!(
        cloud.ok(apart.clone()).await,
        view,
        "the same again is the same"
    );
    let mut other = serde_json::to_value(&apart).unwrap();
    other["policy"] = json!("affinity");
    asked
        .check(
            "server_group.create",
            other,
            Conflict,
            "was asked for with another content",
        )
        .await;
    let mut twin = serde_json::to_value(&apart).unwrap();
    twin["id"] = json!(ServerGroupId::new());
    asked
        .check(
            "server_group.create",
            twin,
            Conflict,
            "already has a server group named apart",
        )
        .await;

    let east = aggregate("east", json!({ "availability_zone": "east" }));
    let view = cloud.ok(east.clone()).await;
    assert_eq!(
        cloud.ok(east.clone()).await,
        view,
        "the same again is the same"
    );
    let mut other = serde_json::to_value(&east).unwrap();
    other["availability_zone"] = json!("west");
    asked
        .check(
            "aggregate.create",
            other,
            Conflict,
            "was asked for with another content",
        )
        .await;
    let mut twin = serde_json::to_value(&east).unwrap();
    twin["id"] = json!(AggregateId::new());
    asked
        .check(
            "aggregate.create",
            twin,
            Conflict,
            "there is already an aggregate named east",
        )
        .await;
    let properties: Map<String, Value> =
        (0..65).map(|n| (format!("key-{n}"), json!("x"))).collect();
    asked
        .check(
            "aggregate.create",
            json!({ "id": AggregateId::new(), "name": "bad", "properties": properties }),
            Invalid,
            "an aggregate has at most 64 properties; got 65",
        )
        .await;
    asked
        .check(
            "aggregate.set",
            json!({ "aggregate": "east", "properties": properties }),
            Invalid,
            "at most 64 properties",
        )
        .await;

    // A host in two zones.
    cloud
        .ok(aggregate("west", json!({ "availability_zone": "west" })))
        .await;
    cloud.ok(aggregate("plain", json!({}))).await;
    for aggregate in ["east", "plain"] {
        cloud
            .ok(AggregateAddHost {
                aggregate: aggregate.to_owned(),
                host: "hv1".to_owned(),
            })
            .await;
    }
    let to = |aggregate: &str, host: &str| json!({ "aggregate": aggregate, "host": host });
    let words =
        "host hv1 is in availability zone east through aggregate east; a host is in one zone only";
    asked
        .check("aggregate.add_host", to("west", "hv1"), Conflict, words)
        .await;
    asked
        .check(
            "aggregate.set",
            json!({ "aggregate": "plain", "availability_zone": "west" }),
            Conflict,
            words,
        )
        .await;
    asked
        .check(
            "aggregate.add_host",
            to("north", "hv1"),
            NotFound,
            "there is no aggregate \"north\"",
        )
        .await;
    asked
        .check(
            "aggregate.add_host",
            to("east", "hv9"),
            NotFound,
            "there is no host \"hv9\"",
        )
        .await;
    asked
        .check(
            "aggregate.delete",
            json!({ "aggregate": "north" }),
            NotFound,
            "there is no aggregate",
        )
        .await;
    // Twice into the same one is once.
    let again = AggregateAddHost {
        aggregate: "east".to_owned(),
        host: "hv1".to_owned(),
    };
    assert_eq!(cloud.ok(again).await.hosts.len(), 1);
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_that_cannot_be() {
    let asked = Asked::new().await;
    let cloud = &asked.cloud;
    let new = |key: &str, value: Value| {
        let mut body = json!({ "id": VolumeId::new(), "name": "bad", "size_gb": 1 });
        body[key] = value;
        body
    };
    for (key, value, code, words) in [
        ("size_gb", json!(0), Invalid, "size_gb must be at least 1"),
        ("size_gb", json!(-1), Malformed, "must be a whole number"),
        ("size_gb", json!(1.5), Malformed, "must be a whole number"),
        (
            "size_gb",
            json!(u64::MAX),
            Malformed,
            "must be a whole number",
        ),
        ("size_gb", json!(null), Malformed, "invalid type: null"),
        ("name", json!("a/b"), Malformed, "a volume name must be"),
        ("name", json!(""), Malformed, "a volume name must be"),
        (
            "name",
            json!("v".repeat(64)),
            Malformed,
            "a volume name must be",
        ),
        ("project", json!("-"), Malformed, "a project name must be"),
        ("id", json!("1"), Malformed, "UUID parsing failed"),
        ("format", json!("vmdk"), Malformed, "unknown variant"),
        ("source", json!("image"), Malformed, "invalid"),
        (
            "source",
            json!({ "backup": "x" }),
            Malformed,
            "unknown variant",
        ),
        (
            "source",
            json!({ "volume": "golden" }),
            NotFound,
            "project default has no volume \"golden\", neither by id nor by name",
        ),
        (
            "source",
            json!({ "volume": "x".repeat(10_000) }),
            NotFound,
            "project default has no volume \"xxx",
        ),
        ("host", json!("hv9"), NotFound, "there is no host \"hv9\""),
        ("host", json!(7), Malformed, "invalid type"),
        (
            "limits",
            json!({ "total_iops": 0, "total_bytes_per_second": 0 }),
            Invalid,
            "limits.total_iops must be 1 to 1000000000000000, or null for no limit; got 0; \
             limits.total_bytes_per_second must be 1 to 1000000000000000, or null for no limit; got 0",
        ),
        (
            "limits",
            json!({ "total_iops": 1_000_000_000_000_001_u64, "total_bytes_per_second": u64::MAX }),
            Invalid,
            "limits.total_iops must be 1 to 1000000000000000, or null for no limit; got 1000000000000001; \
             limits.total_bytes_per_second must be 1 to 1000000000000000, or null for no limit; got \
             18446744073709551615",
        ),
        (
            "limits",
            json!({ "total_iops": -1 }),
            Malformed,
            "invalid value",
        ),
    ] {
        asked
            .check("volume.create", new(key, value), code, words)
            .await;
    }
    let data = volume("data", 5, json!({}));
    cloud.ok(data.clone()).await;
    asked
        .check(
            "volume.create",
            new("name", json!("data")),
            Conflict,
            "project default already has a volume named data",
        )
        .await;
    asked
        .check(
            "volume.create",
            new("id", json!(data.id)),
            Conflict,
            "exists already and was asked for with another content; use a new id for a new volume",
        )
        .await;
    for size in [json!(0), json!(4)] {
        asked
            .check(
                "volume.extend",
                json!({ "volume": "data", "size_gb": size }),
                Invalid,
                "a volume never shrinks: volume data has 5 GB; got size_gb",
            )
            .await;
    }
    let nobody = "project default has no volume \"nothing\", neither by id nor by name";
    for method in ["volume.show", "volume.delete", "volume.detach"] {
        asked
            .check(method, json!({ "volume": "nothing" }), NotFound, nobody)
            .await;
        asked
            .check(method, json!({}), Malformed, "missing field `volume`")
            .await;
    }
    let extend = json!({ "volume": "nothing", "size_gb": 9 });
    asked.check("volume.extend", extend, NotFound, nobody).await;
    let attach = |instance: &str, access: &str| json!({ "volume": "data", "instance": instance, "access": access });
    asked
        .check(
            "volume.attach",
            attach("web", "read_write"),
            NotFound,
            "project default has no instance \"web\"",
        )
        .await;
    asked
        .check(
            "volume.attach",
            attach("web", "append"),
            Malformed,
            "unknown variant",
        )
        .await;
    asked
        .check(
            "volume.attach",
            json!({ "volume": "data", "instance": "web", "disk_bus": "ide" }),
            Malformed,
            "unknown variant `ide`, expected `virtio` or `scsi`",
        )
        .await;
    asked
        .check(
            "volume.attach",
            json!({ "volume": "data" }),
            Malformed,
            "missing field `instance`",
        )
        .await;
    asked
        .check(
            "volume.list",
            json!({ "after": VolumeId::new() }),
            NotFound,
            "there is no",
        )
        .await;
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_none() {
    let asked = Asked::new().await;
    let cloud = &asked.cloud;
    for method in [
        "instance.create",
        "host.set",
        "placement.explain",
        "server_group.create",
    ] {
        for body in [json!(null), json!([]), json!("text"), json!(7)] {
            asked
                .check(method, body, Malformed, "the body does not fit")
                .await;
        }
        cloud
            .refused_raw(method, 99, json!({}), UnsupportedVersion, "x-berth-version")
            .await;
        cloud
            .refused_raw(method, 0, json!({}), UnsupportedVersion, "x-berth-version")
            .await;
    }
    asked
        .check(
            "",
            json!({}),
            Malformed,
            "property `type` (the method) is missing",
        )
        .await;
    asked
        .check(
            &"x".repeat(255),
            json!({}),
            UnknownMethod,
            "there is no method",
        )
        .await;
    asked
        .check(
            "instance.create_many",
            json!({ "instances": [] }),
            Invalid,
            "instances must be 1 to 256; got 0",
        )
        .await;
    let crowd: Vec<_> = (0..257)
        .map(|n| body(&format!("vm-{n}"), json!({})))
        .collect();
    asked
        .check(
            "instance.create_many",
            json!({ "instances": crowd }),
            Invalid,
            "instances must be 1 to 256; got 257",
        )
        .await;
    let mut nil = body("bad", json!({}));
    nil["id"] = json!("00000000-0000-0000-0000-000000000000");
    asked
        .check("instance.create", nil, Malformed, "nil UUID")
        .await;
    let mode = json!({ "instances": [body("bad", json!({}))], "mode": "perhaps" });
    asked
        .check("instance.create_many", mode, Malformed, "unknown variant")
        .await;
    // A body that no sender of ours could send.
    let reply_to = "answers-of-a-stranger";
    let mut huge = Message::from_json("instance.create", 1, "test", vec![b' '; 2 << 20]);
    huge.reply_to = Some(reply_to.to_owned());
    let bus = cloud.broker.connect();
    let queue = QueueDecl {
        name: reply_to.to_owned(),
        ..QueueDecl::dead()
    };
    let mut answers = bus.consume(&queue, 1).await.unwrap();
    assert!(cloud.broker.inject("scheduler", huge));
    let answer = tokio::time::timeout(crate::cloud::LIMIT, answers.next())
        .await
        .unwrap()
        .unwrap();
    let reply: berth_common::message::request::Reply<Value> =
        serde_json::from_slice(&answer.message.body).unwrap();
    let refusal = Result::from(reply).unwrap_err();
    assert_eq!(refusal.code, TooLarge);
    answer.ack().await;
    asked.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_with_one_name_are_not_the_same_host() {
    let mut asked = Asked::new().await;
    let cloud = &asked.cloud;
    cloud.ok(hinted("vm", json!({ "host": "hv1" }))).await;
    let thief = asked.hosts.get_mut("hv2").unwrap();
    // A re-imaged host: it has the name of another, and an id of its own.
    thief.id = HostId::new();
    thief.name = "hv1".to_owned();
    thief.total = crate::host::resources(64, 65_536, 1000);
    let id = thief.id;
    // Heartbeats are taken in their order: after the second newcomer the first word of the thief was heard.
    for newcomer in ["hv4", "hv5"] {
        thief.heartbeat().await;
        Host::join(cloud, newcomer).await;
    }
    let shown = cloud.show_host("hv1").await;
    assert_eq!(
        (shown.instances, shown.total.vcpus.get()),
        (1, 4),
        "the thief gets nothing"
    );
    assert!(
        cloud
            .context()
            .image()
            .await
            .unwrap()
            .table()
            .host(id)
            .is_none()
    );
    // Nor does a host that is known get another one's name and what is meant for it, or anything under its own.
    let mut known = Host::join(cloud, "hv6").await;
    known.name = "hv1".to_owned();
    for newcomer in ["hv7", "hv8"] {
        known.heartbeat().await;
        Host::join(cloud, newcomer).await;
    }
    assert_eq!(cloud.show_host("hv1").await.instances, 1);
    let lost = hinted("lost", json!({ "host": "hv6" }));
    wait_until("it gets nothing", async || {
        let decision = cloud.ok(crate::ask::place(&lost)).await;
        decision.chosen.is_none()
    })
    .await;
    // Renamed, it is welcome.
    thief.name = "hv3".to_owned();
    thief.tell(cloud).await;
    assert_eq!(cloud.show_host("hv3").await.id, id);
    asked.end().await;
}
