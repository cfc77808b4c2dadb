//! Networks of type `nat` on one host never have the same addresses.

use berth_common::{
    document::Kind,
    ids::{NetworkId, PortId, SubnetId},
    message::{
        network::{NetworkCreate, NetworkSet, SubnetCreate, SubnetDelete, SubnetSet},
        port::InstanceAttachInterface,
        report::PowerState,
        request::InstanceCreate,
        view::VmState,
    },
    refusal::RefusalCode::{Conflict, NoValidHost},
};
use serde_json::{Value, json};

use crate::{
    ask::{delete, instance, place},
    cloud::{Cloud, message, wait_until},
    host::Host,
    routers::{add, request, router},
    soundness::assert_sound,
};

async fn network(cloud: &Cloud, name: &str, network_type: &str, cidr: &str, gateway: Option<&str>) {
    let network = json!({
        "id": NetworkId::new(), "name": name, "network_type": network_type, "cidr": cidr, "gateway_ip": gateway,
    });
    cloud.ok(request::<NetworkCreate>(network)).await;
}

/// `home` and `lab` have the same addresses, and so has `mute`, whose gateway is nobody; `own` has others.
async fn networks(cloud: &Cloud) {
    for (name, cidr, gateway) in [
        ("home", "10.0.0.0/24", Some("10.0.0.1")),
        ("lab", "10.0.0.0/16", Some("10.0.9.1")),
        ("mute", "10.0.0.0/24", None),
        ("own", "10.1.0.0/24", Some("10.1.0.1")),
    ] {
        network(cloud, name, "nat", cidr, gateway).await;
    }
}

fn on(name: &str, network: &str, host: Option<&str>) -> InstanceCreate {
    let mut wanted = instance(name, 64, json!([{ "network": network }]));
    wanted.hints.host = host.map(str::to_owned);
    wanted
}

/// The same for who may not know of the other one.
const TAKEN_BY_SOMEBODY: &str =
    "needs 10.0.0.0/16 for itself, as a nat network does, and another one has some of it there";
const TAKEN: &str = "needs 10.0.0.0/16 for itself, as a nat network does, and nat network home has 10.0.0.0/24 there";

/// Carries everything out, until a network's tombstone came.
async fn bury_network(host: &mut Host) {
    loop {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        if document.key().kind == Kind::Network && document.is_tombstone() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_go_where_nobody_has_the_addresses_of_their_networks() {
    let mut cloud = Cloud::start().await;
    let mut one = Host::join(&cloud, "hv1").await;
    let _two = Host::join(&cloud, "hv2").await;
    networks(&cloud).await;
    let first = on("first", "home", Some("hv1"));
    cloud.ok(first.clone()).await;
    assert_sound(&cloud).await;
    let beside = on("beside", "lab", Some("hv1"));
    // Whose they are is not for everybody.
    let refusal = cloud
        .refused(beside.clone(), NoValidHost, "another one has some of it")
        .await;
    assert!(!refusal.message.contains("home"), "{refusal}");
    let decision = &cloud.explain(beside.id).await[0];
    assert_eq!(decision.nearest_misses[0].reason, TAKEN);
    assert_eq!(
        decision.constraints,
        [
            "host hv1",
            "port security",
            "10.0.0.0/16 for nat network lab alone"
        ]
    );
    let asked = cloud.ok(place(&beside)).await;
    assert_eq!(asked.nearest_misses[0].reason, TAKEN);
    // More of the same, without a gateway and with other addresses are in nobody's way.
    for (name, network) in [("more", "home"), ("still", "mute"), ("apart", "own")] {
        cloud.ok(on(name, network, Some("hv1"))).await;
    }
    // Also for a scheduler that has to read it from the rows.
    cloud.crash_scheduler().await;
    one.heartbeat().await;
    let elsewhere = on("elsewhere", "lab", None);
    wait_until("the hosts are there", async || {
        cloud.ok(place(&elsewhere)).await.chosen.is_some()
    })
    .await;
    cloud.ok(elsewhere.clone()).await;
    assert_eq!(cloud.host_of(elsewhere.id).await, "hv2");
    assert_sound(&cloud).await;

    let both = instance(
        "both",
        64,
        json!([{ "network": "home" }, { "network": "lab" }]),
    );
    cloud
        .refused(
            both.clone(),
            Conflict,
            "nat networks home (10.0.0.0/24) and lab (10.0.0.0/16) have the same addresses",
        )
        .await;
    cloud
        .refused(place(&both), Conflict, "no host can have both")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_placed_together_knows_of_one_another() {
    let cloud = Cloud::start().await;
    let _one = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let (first, second) = (on("first", "home", None), on("second", "lab", None));
    let gone = on("gone", "lab", None);
    let answers = cloud
        .in_one_batch(vec![
            message(&gone),
            message(&first),
            message(&delete(gone.id)),
            message(&second),
        ])
        .await;
    let granted: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(granted, [true, false, true, true]);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_free_again_when_the_host_says_that_the_network_is_gone() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let first = on("first", "home", None);
    cloud.ok(first.clone()).await;
    host.converge_instance(PowerState::Running).await;
    cloud
        .wait_for_instance(first.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    cloud.ok(delete(first.id)).await;
    host.bury(&cloud, &[first.id]).await;
    // The host was told that the network shall go, and did not say that it did.
    assert_sound(&cloud).await;
    cloud
        .refused(on("early", "lab", None), NoValidHost, "for itself")
        .await;
    bury_network(&mut host).await;
    let second = on("second", "lab", None);
    let free = async || cloud.ok(place(&second)).await.chosen.is_some();
    wait_until("the addresses are free", free).await;
    // Told of it again, the host may have built it, whatever it said before; it says nothing of it.
    let again = on("again", "home", None);
    cloud.ok(again.clone()).await;
    cloud.ok(delete(again.id)).await;
    host.bury(&cloud, &[again.id]).await;
    assert_sound(&cloud).await;
    cloud
        .refused(on("early-too", "lab", None), NoValidHost, "for itself")
        .await;
    bury_network(&mut host).await;
    wait_until("the addresses are free again", free).await;
    cloud.ok(second).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_routers_join_counts_as_well() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let gateway = Some("172.16.0.1");
    network(&cloud, "blue", "local", "172.16.0.0/24", gateway).await;
    network(
        &cloud,
        "green",
        "local",
        "172.16.1.0/24",
        Some("172.16.1.1"),
    )
    .await;
    for name in ["r1", "r2"] {
        cloud.ok(router(name, json!({}))).await;
    }
    let by = |router: &str, subnet: &str, address: &str| {
        let leg = json!({ "router": router, "subnet": subnet, "ip_address": address });
        request::<berth_common::message::router::RouterAddInterface>(leg)
    };
    cloud.ok(by("r1", "lab", "10.0.0.77")).await;
    cloud.ok(add("r1", "blue")).await;
    cloud.ok(on("first", "home", None)).await;
    cloud
        .refused(
            on("routed", "blue", None),
            NoValidHost,
            "router r1 joins network lab, which needs 10.0.0.0/16 for itself",
        )
        .await;
    // The router that comes later.
    cloud.ok(on("beside", "green", None)).await;
    cloud.ok(add("r2", "green")).await;
    let refusal = cloud
        .refused(by("r2", "lab", "10.0.0.78"), Conflict, TAKEN_BY_SOMEBODY)
        .await;
    let who = "host hv1 of instance beside cannot build network lab";
    assert!(refusal.message.contains(who), "{refusal}");
    assert_sound(&cloud).await;
    cloud.ok(by("r2", "own", "10.1.0.77")).await;
    // What came with a router is there like any other.
    network(&cloud, "wide", "nat", "10.1.0.0/16", Some("10.1.9.1")).await;
    cloud
        .refused(on("late", "wide", None), NoValidHost, "10.1.0.0/16")
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_hosts_have_gets_no_addresses_of_others_there() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let vm = on("first", "home", None);
    cloud.ok(vm.clone()).await;
    cloud.ok(on("apart", "own", None)).await;
    loop {
        let document = host.converge_instance(PowerState::Running).await;
        if document.key().id == vm.id.as_uuid() {
            break;
        }
    }
    cloud
        .wait_for_instance(vm.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    let plug = |network: &str| {
        let port = json!({ "id": PortId::new(), "network": network });
        let wish = json!({ "instance": vm.id, "new_port": port });
        request::<InstanceAttachInterface>(wish)
    };
    let why = format!("host hv1 cannot build network lab: {TAKEN_BY_SOMEBODY}");
    cloud.refused(plug("lab"), Conflict, &why).await;

    let more = |gateway: Value| {
        let id = SubnetId::new();
        let more = json!({
            "id": id, "network": "own", "name": "more", "cidr": "10.0.0.0/25", "gateway_ip": gateway,
        });
        request::<SubnetCreate>(more)
    };
    let taken = "network own is on host hv1, and needs 10.0.0.0/25 for itself";
    cloud
        .refused(more(json!("10.0.0.9")), Conflict, taken)
        .await;
    let mute = cloud.ok(more(Value::Null)).await;
    let speaks = json!({ "subnet": mute.id, "gateway_ip": "10.0.0.9" });
    cloud
        .refused(request::<SubnetSet>(speaks), Conflict, taken)
        .await;
    assert_sound(&cloud).await;
    cloud
        .ok(request::<SubnetDelete>(json!({ "subnet": mute.id })))
        .await;
    cloud
        .ok(request::<NetworkSet>(
            json!({ "network": "home", "name": "house" }),
        ))
        .await;
    assert_sound(&cloud).await;
    let decision = cloud.ok(place(&on("beside", "lab", None))).await;
    let reason = &decision.nearest_misses[0].reason;
    assert!(
        reason.contains("nat network house has 10.0.0.0/24"),
        "{reason}"
    );
}
