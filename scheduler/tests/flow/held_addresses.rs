//! Addresses outside are nobody else's until the host that had them has said that it gave them up.

use berth_common::{
    document::{Document, DocumentKey, Kind},
    ids::{PortId, RouterId},
    message::{
        port::PortCreate,
        report::{ConvergeStatus, FaultCode, PowerState},
        request::{HostDelete, InstanceList},
        router::{FloatingIpDelete, RouterShow, RouterView},
    },
    refusal::RefusalCode::Conflict,
    units::Generation,
};
use serde_json::json;

use crate::{
    ask::{delete, instance},
    cloud::{Cloud, message, wait_until},
    host::Host,
    routers::{add, floating, give, networks, request, router, set, told},
    soundness::assert_sound,
};

async fn show(cloud: &Cloud, name: &str) -> RouterView {
    cloud
        .ok(request::<RouterShow>(json!({ "router": name })))
        .await
}

/// A guest of hv1 with a floating IP, and a host beside.
async fn with_a_floating_ip(cloud: &Cloud) -> (Host, Host, RouterId, PortId) {
    let mut hosts = Host::join_all(cloud, &["hv1", "hv2"]).await;
    let (mut one, two) = (hosts.remove("hv1").unwrap(), hosts.remove("hv2").unwrap());
    networks(cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    let mut vm = instance("web", 512, json!([{ "network": "blue" }]));
    vm.hints = serde_json::from_value(json!({ "host": "hv1" })).unwrap();
    let port = cloud.ok(vm).await.ports[0].id;
    // The DHCP server has .2, the host .3.
    cloud.ok(floating(Some("198.51.100.4"))).await;
    cloud.ok(give("198.51.100.4", Some(port))).await;
    told(&mut one, create.id, |spec| {
        spec.is_some_and(|spec| !spec.floating_ips.is_empty())
    })
    .await;
    (one, two, create.id, port)
}

async fn drop_it(cloud: &Cloud, address: &str) {
    let delete = request::<FloatingIpDelete>(json!({ "floating_ip": address }));
    cloud.ok(delete).await;
}

/// The address that the next floating IP gets, which is not kept.
async fn next_free(cloud: &Cloud) -> String {
    let got = cloud.ok(floating(None)).await.ip_address.to_string();
    drop_it(cloud, &got).await;
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_a_floating_ip_that_a_silent_host_may_still_translate() {
    let cloud = Cloud::start().await;
    let (mut one, _two, router, port) = with_a_floating_ip(&cloud).await;
    cloud.lose(&[one.id]).await;
    drop_it(&cloud, "198.51.100.4").await;
    assert_eq!(next_free(&cloud).await, "198.51.100.5");
    let waits =
        "198.51.100.4 is not free yet: it was given up, which host hv1 did not confirm so far";
    cloud
        .refused(floating(Some("198.51.100.4")), Conflict, waits)
        .await;
    let pinned = json!({ "id": PortId::new(), "network": "public", "ip_address": "198.51.100.4" });
    cloud
        .refused(request::<PortCreate>(pinned), Conflict, waits)
        .await;
    let mut taken = Vec::new();
    for _ in 0..2 {
        taken.push(cloud.ok(floating(None)).await.ip_address.to_string());
    }
    let full = "all 4 are used; 1 of them were given up, which host hv1 did not confirm so far";
    cloud.refused(floating(None), Conflict, full).await;
    // That it is at it is no answer, and neither is that it failed.
    one.heartbeat().await;
    let document = loop {
        let document = one.next().await;
        if let Document::Router(desired) = &document
            && desired
                .spec
                .as_ref()
                .is_some_and(|spec| spec.floating_ips.is_empty())
        {
            break document;
        }
    };
    one.fail(&document, FaultCode::Network, "nft says no").await;
    wait_until("it failed", async || {
        show(&cloud, "r1").await.hosts[0].status == Some(ConvergeStatus::Failed)
    })
    .await;
    cloud.refused(floating(None), Conflict, full).await;
    one.carry_out(&document, PowerState::Running).await;
    wait_until("it is free", async || {
        cloud
            .call(floating(None))
            .await
            .is_ok_and(|got| got.ip_address.to_string() == "198.51.100.4")
    })
    .await;
    // Whose it is now may take it and give it, and nobody waits for anything.
    cloud.ok(give("198.51.100.4", Some(port))).await;
    told(&mut one, router, |spec| {
        spec.is_some_and(|spec| !spec.floating_ips.is_empty())
    })
    .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floating_ip_that_went_to_another_host_is_waited_for_on_the_first() {
    let cloud = Cloud::start().await;
    let (one, mut two, router, _) = with_a_floating_ip(&cloud).await;
    let mut vm = instance("other", 512, json!([{ "network": "blue" }]));
    vm.hints = serde_json::from_value(json!({ "host": "hv2" })).unwrap();
    let other = cloud.ok(vm).await.ports[0].id;
    cloud.lose(&[one.id]).await;
    // It stays its owner's.
    cloud.ok(give("198.51.100.4", Some(other))).await;
    told(&mut two, router, |spec| {
        spec.is_some_and(|spec| !spec.floating_ips.is_empty())
    })
    .await;
    cloud
        .refused(floating(Some("198.51.100.4")), Conflict, "already used")
        .await;
    drop_it(&cloud, "198.51.100.4").await;
    told(&mut two, router, |spec| {
        spec.is_some_and(|spec| spec.floating_ips.is_empty())
    })
    .await;
    wait_until("only hv1 is waited for", async || {
        let refused = cloud
            .call(floating(Some("198.51.100.4")))
            .await
            .unwrap_err();
        refused.message.contains("which host hv1 did not confirm")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_hosts_address_for_a_router_is_its_own_until_it_is_deleted() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    networks(&cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    let vm = instance("web", 512, json!([{ "network": "blue" }]));
    cloud.ok(vm.clone()).await;
    let name = cloud.host_of(vm.id).await;
    let mut host = hosts.remove(&name).unwrap();
    told(&mut host, create.id, |spec| spec.is_some()).await;
    let own = show(&cloud, "r1").await.hosts[0].ip_addresses.clone();
    assert_eq!(own[0].to_string(), "198.51.100.3");
    cloud.lose(&[host.id]).await;
    cloud
        .ok(set("r1", json!({ "external_gateway": "none" })))
        .await;
    assert_eq!(next_free(&cloud).await, "198.51.100.4");
    // The host itself may have it again.
    let back = json!({ "external_gateway": { "network": "public" } });
    cloud.ok(set("r1", back)).await;
    assert_eq!(show(&cloud, "r1").await.hosts[0].ip_addresses, own);
    cloud
        .ok(set("r1", json!({ "admin_state_up": false })))
        .await;
    assert_eq!(next_free(&cloud).await, "198.51.100.4");
    let waits = format!("which host {name} did not confirm");
    cloud
        .refused(floating(Some("198.51.100.3")), Conflict, &waits)
        .await;
    cloud.ok(delete(vm.id)).await;
    cloud
        .ok(request::<HostDelete>(json!({ "host": name })))
        .await;
    cloud.ok(floating(Some("198.51.100.3"))).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_one_transaction_nobody_gets_what_was_given_up_in_it() {
    let cloud = Cloud::start().await;
    let (one, _two, _, _) = with_a_floating_ip(&cloud).await;
    cloud.lose(&[one.id]).await;
    let delete = request::<FloatingIpDelete>(json!({ "floating_ip": "198.51.100.4" }));
    let answers = cloud
        .in_one_batch(vec![message(&delete), message(&floating(None))])
        .await;
    let got = answers[1].clone().unwrap();
    assert_eq!(got["ip_address"], "198.51.100.5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_comes_to_a_router_gets_nothing_that_is_given_up_after_it_in_the_same_transaction()
 {
    let cloud = Cloud::start().await;
    let (one, _two, _, _) = with_a_floating_ip(&cloud).await;
    cloud.lose(&[one.id]).await;
    let mut vm = instance("db", 512, json!([{ "network": "blue" }]));
    vm.hints = serde_json::from_value(json!({ "host": "hv2" })).unwrap();
    let delete = request::<FloatingIpDelete>(json!({ "floating_ip": "198.51.100.4" }));
    let answers = cloud
        .in_one_batch(vec![message(&vm), message(&delete)])
        .await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let hosts = show(&cloud, "r1").await.hosts;
    let of = |name: &str| {
        let mut hosts = hosts
            .iter()
            .filter(|it| it.host.as_ref().is_some_and(|host| host.as_str() == name));
        hosts.next().unwrap().ip_addresses[0].to_string()
    };
    assert_eq!([of("hv1"), of("hv2")], ["198.51.100.3", "198.51.100.5"]);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_of_a_host_that_was_deleted_is_ended_there_when_it_is_back() {
    let cloud = Cloud::start().await;
    let (mut one, _two, router, _) = with_a_floating_ip(&cloud).await;
    cloud.lose(&[one.id]).await;
    let web = cloud
        .ok(request::<InstanceList>(json!({})))
        .await
        .instances
        .remove(0);
    cloud.ok(delete(web.id)).await;
    cloud
        .ok(request::<HostDelete>(json!({ "host": "hv1" })))
        .await;
    one.session += 1;
    one.sequence = 0;
    one.tell(&cloud).await;
    let key = |id: RouterId| DocumentKey {
        kind: Kind::Router,
        id: id.as_uuid(),
    };
    // What nobody knows is left alone.
    for id in [RouterId::new(), router] {
        let converged = ConvergeStatus::Converged;
        one.report(key(id), Generation(7), converged, PowerState::Nostate)
            .await;
    }
    let document = one.next().await;
    assert_eq!(
        (document.key(), document.is_tombstone()),
        (key(router), true)
    );
}
