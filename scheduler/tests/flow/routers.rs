//! Routers and floating IPs: which hosts get which documents and addresses, and what is refused on the way.

use std::collections::BTreeMap;

use berth_common::{
    document::{Document, DocumentKey, Kind, RouterSpec},
    ids::{FloatingIpId, PortId, RouterId},
    message::{
        report::PowerState,
        request::{Method, NetworkDelete},
        router::{
            FloatingIpCreate, FloatingIpDelete, FloatingIpList, FloatingIpSet, FloatingIpShow,
            RouterAddInterface, RouterCreate, RouterDelete, RouterList, RouterRemoveInterface,
            RouterSet, RouterShow, RouterView,
        },
    },
    refusal::RefusalCode::{Conflict, Invalid, NotFound},
};
use serde_json::{Value, json};

use crate::{
    ask::{delete, instance, network},
    cloud::{Cloud, wait_until},
    host::Host,
    soundness::assert_sound,
};

pub(crate) fn request<M: Method>(body: Value) -> M {
    serde_json::from_value(body).unwrap()
}

pub(crate) fn router(name: &str, mut more: Value) -> RouterCreate {
    more["id"] = json!(RouterId::new());
    more["name"] = json!(name);
    request(more)
}

pub(crate) fn set(router: &str, mut more: Value) -> RouterSet {
    more["router"] = json!(router);
    request(more)
}

pub(crate) fn add(router: &str, subnet: &str) -> RouterAddInterface {
    request(json!({ "router": router, "subnet": subnet }))
}

fn remove(router: &str, subnet: &str) -> RouterRemoveInterface {
    request(json!({ "router": router, "subnet": subnet }))
}

pub(crate) fn floating(address: Option<&str>) -> FloatingIpCreate {
    request(json!({ "id": FloatingIpId::new(), "network": "public", "ip_address": address }))
}

pub(crate) fn give(floating_ip: &str, port: Option<PortId>) -> FloatingIpSet {
    request(json!({ "floating_ip": floating_ip, "port_id": port }))
}

pub(crate) fn with_gateway(
    name: &str,
    cidr: &str,
) -> berth_common::message::request::NetworkCreate {
    let mut request = network(name, cidr);
    request.gateway_ip = request.cidr.and_then(|cidr| cidr.net().hosts().next());
    request.external = name != "green";
    request
}

/// Two inside networks and an external one.
pub(crate) async fn networks(cloud: &Cloud) {
    for (name, cidr) in [
        ("blue", "10.0.1.0/24"),
        ("green", "10.0.2.0/24"),
        ("public", "198.51.100.0/29"),
    ] {
        cloud.ok(with_gateway(name, cidr)).await;
    }
}

async fn show(cloud: &Cloud, name: &str) -> RouterView {
    cloud
        .ok(request::<RouterShow>(json!({ "router": name })))
        .await
}

/// The newest documents a host was told, once it was told of all that is out.
pub(crate) async fn told(
    host: &mut Host,
    id: RouterId,
    is: impl Fn(Option<&RouterSpec>) -> bool,
) -> Seen {
    let key = DocumentKey {
        kind: Kind::Router,
        id: id.as_uuid(),
    };
    let mut seen = Seen::default();
    loop {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        let is_router = document.key() == key;
        let done = match &document {
            Document::Router(desired) if is_router => is(desired.spec.as_ref()),
            _ => false,
        };
        seen.0.insert(document.key(), document);
        if done {
            return seen;
        }
    }
}

#[derive(Default)]
pub(crate) struct Seen(BTreeMap<DocumentKey, Document>);

impl Seen {
    pub(crate) fn router(&self) -> RouterSpec {
        let found = self.0.values().find_map(|document| match document {
            Document::Router(desired) => desired.spec.clone(),
            _ => None,
        });
        found.unwrap()
    }

    pub(crate) fn networks(&self) -> usize {
        let living = |it: &&Document| it.key().kind == Kind::Network && !it.is_tombstone();
        self.0.values().filter(living).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_port_has_the_router_with_all_its_networks_and_an_address_outside() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    // The same again is the same.
    assert_eq!(cloud.ok(create.clone()).await.id, create.id);
    cloud.ok(add("r1", "blue")).await;
    cloud.ok(add("r1", "green")).await;
    assert!(
        show(&cloud, "r1").await.hosts.is_empty(),
        "nobody needs it yet"
    );
    assert_sound(&cloud).await;

    let vm = instance("web", 512, json!([{ "network": "blue" }]));
    let port = cloud.ok(vm.clone()).await.ports[0].clone();
    assert_sound(&cloud).await;
    let seen = told(&mut host, create.id, |spec| spec.is_some()).await;
    let spec = seen.router();
    assert_eq!(spec.interfaces.len(), 2);
    let gateway = spec.external_gateway.clone().unwrap();
    assert!(gateway.enable_snat);
    let own = gateway.addresses[0].ip_address.unwrap();
    assert_eq!(
        gateway.addresses[0].gateway_ip.map(|it| it.to_string()),
        Some("198.51.100.1".to_owned())
    );
    wait_until("all networks are told", async || {
        show(&cloud, "r1").await.hosts.len() == 1
    })
    .await;
    let view = show(&cloud, "r1").await;
    assert_eq!(view.hosts[0].ip_addresses, [own]);
    assert_eq!(view.interfaces.len(), 2);

    // A floating IP comes to the port's host.
    let float = cloud.ok(floating(Some("198.51.100.5"))).await;
    let given = cloud.ok(give("198.51.100.5", Some(port.id))).await;
    assert_eq!(given.fixed_ip_address, Some(port.fixed_ips[0].ip_address));
    assert_eq!(
        (given.router_id, given.instance_id),
        (Some(create.id), Some(vm.id))
    );
    assert_sound(&cloud).await;
    let seen = told(&mut host, create.id, |spec| {
        spec.is_some_and(|spec| !spec.floating_ips.is_empty())
    })
    .await;
    assert_eq!(seen.router().floating_ips[0].id, float.id);
    cloud
        .refused(remove("r1", "blue"), Conflict, "198.51.100.5")
        .await;

    // With the instance goes everything, and the address is free.
    cloud.ok(delete(vm.id)).await;
    host.converge_instance(PowerState::Nostate).await;
    told(&mut host, create.id, |spec| spec.is_none()).await;
    assert_sound(&cloud).await;
    assert!(show(&cloud, "r1").await.hosts.is_empty());
    let shown = cloud
        .ok(request::<FloatingIpShow>(
            json!({ "floating_ip": float.id }),
        ))
        .await;
    assert_eq!((shown.port_id, shown.router_id), (None, None));
    cloud.ok(give("198.51.100.5", None)).await;
    cloud
        .ok(request::<FloatingIpDelete>(
            json!({ "floating_ip": "198.51.100.5" }),
        ))
        .await;
    assert!(
        cloud
            .ok(FloatingIpList::default())
            .await
            .floating_ips
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_all_hosts_that_have_the_router() {
    let cloud = Cloud::start().await;
    let mut hosts = Host::join_all(&cloud, &["hv1", "hv2"]).await;
    networks(&cloud).await;
    let create = router("r1", json!({}));
    cloud.ok(create.clone()).await;
    for (name, host) in [("a", "hv1"), ("b", "hv2")] {
        let mut vm = instance(name, 512, json!([{ "network": "blue" }]));
        vm.hints = serde_json::from_value(json!({ "host": host })).unwrap();
        cloud.ok(vm).await;
    }
    cloud.ok(add("r1", "blue")).await;
    assert_sound(&cloud).await;
    cloud.ok(add("r1", "green")).await;
    cloud
        .ok(set(
            "r1",
            json!({ "external_gateway": { "network": "public" }, "enable_snat": false }),
        ))
        .await;
    assert_sound(&cloud).await;
    let mut outside = Vec::new();
    for host in hosts.values_mut() {
        let seen = told(host, create.id, |spec| {
            spec.is_some_and(|spec| spec.external_gateway.is_some())
        })
        .await;
        assert_eq!(seen.router().interfaces.len(), 2);
        assert!(seen.networks() >= 1);
        let gateway = seen.router().external_gateway.unwrap();
        assert!(!gateway.enable_snat);
        outside.push((
            gateway.mac_address,
            gateway.addresses[0].ip_address.unwrap(),
        ));
    }
    assert_ne!(outside[0].0, outside[1].0);
    assert_ne!(outside[0].1, outside[1].1);
    let routes = json!([{ "destination": "192.0.2.0/24", "nexthop": "10.0.2.77" }]);
    cloud.ok(set("r1", json!({ "routes": routes }))).await;
    cloud
        .refused(remove("r1", "green"), Invalid, "10.0.2.77")
        .await;
    cloud.ok(set("r1", json!({ "routes": [] }))).await;
    cloud.ok(remove("r1", "green")).await;
    assert_sound(&cloud).await;
    cloud
        .ok(set("r1", json!({ "external_gateway": "none" })))
        .await;
    assert_sound(&cloud).await;
    assert!(
        show(&cloud, "r1")
            .await
            .hosts
            .iter()
            .all(|host| host.ip_addresses.is_empty())
    );
    cloud
        .ok(set("r1", json!({ "admin_state_up": false })))
        .await;
    assert_sound(&cloud).await;
    for host in hosts.values_mut() {
        told(host, create.id, |spec| spec.is_none()).await;
    }
    cloud.ok(remove("r1", "blue")).await;
    cloud
        .ok(request::<RouterDelete>(json!({ "router": "r1" })))
        .await;
    assert_sound(&cloud).await;
    assert!(cloud.ok(RouterList::default()).await.routers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_address_left_a_host_has_the_router_all_the_same() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    // A gateway, a DHCP server, and four more.
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(cloud.ok(floating(None)).await);
    }
    cloud
        .refused(floating(None), Conflict, "no address is free")
        .await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    cloud
        .ok(instance("web", 512, json!([{ "network": "blue" }])))
        .await;
    assert_sound(&cloud).await;
    let seen = told(&mut host, create.id, |spec| spec.is_some()).await;
    let gateway = seen.router().external_gateway.unwrap();
    assert_eq!(gateway.addresses[0].ip_address, None);
    assert!(show(&cloud, "r1").await.hosts[0].ip_addresses.is_empty());
    // Nothing is done to the router: an address is free.
    let freed = taken.swap_remove(1);
    let delete = json!({ "floating_ip": freed.id });
    cloud.ok(request::<FloatingIpDelete>(delete)).await;
    let has_address = |spec: Option<&RouterSpec>| {
        let gateway = spec.and_then(|spec| spec.external_gateway.as_ref());
        gateway.is_some_and(|gateway| gateway.addresses[0].ip_address == Some(freed.ip_address))
    };
    told(&mut host, create.id, has_address).await;
    assert_eq!(
        show(&cloud, "r1").await.hosts[0].ip_addresses,
        [freed.ip_address]
    );
    assert_sound(&cloud).await;
    cloud
        .refused(floating(None), Conflict, "no address is free")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_by_name() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    cloud.ok(network("bare", "10.0.3.0/24")).await;
    cloud.ok(with_gateway("overlap", "10.0.0.0/16")).await;
    cloud
        .ok(router("r1", json!({ "external_network": "public" })))
        .await;
    cloud.ok(add("r1", "blue")).await;
    // Again is harmless.
    cloud.ok(add("r1", "blue")).await;
    let taken = router("r1", json!({}));
    cloud
        .refused(taken, Conflict, "already has a router named r1")
        .await;
    cloud
        .refused(add("r1", "bare"), Invalid, "has no gateway")
        .await;
    cloud
        .refused(add("r1", "overlap"), Conflict, "overlaps with")
        .await;
    cloud
        .refused(add("r1", "public"), Conflict, "is the external network")
        .await;
    cloud
        .refused(add("r2", "blue"), NotFound, "no router \"r2\"")
        .await;
    let routes = json!([{ "destination": "192.0.2.0/24", "nexthop": "172.16.0.1" }]);
    cloud
        .refused(
            set("r1", json!({ "routes": routes })),
            Invalid,
            "172.16.0.1",
        )
        .await;
    let gateway = json!({ "external_gateway": { "network": "blue" } });
    cloud
        .refused(
            set("r1", gateway),
            Conflict,
            "has an interface in that network",
        )
        .await;
    cloud
        .refused(
            request::<RouterDelete>(json!({ "router": "r1" })),
            Conflict,
            "has 1 interfaces",
        )
        .await;
    cloud
        .refused(
            request::<NetworkDelete>(json!({ "network": "blue" })),
            Conflict,
            "is used by router r1",
        )
        .await;
    cloud
        .refused(floating(Some("198.51.100.1")), Invalid, "gateway")
        .await;
    cloud
        .refused(floating(Some("2001:db8::1")), Invalid, "IPv6")
        .await;
    cloud.ok(floating(Some("198.51.100.5"))).await;
    cloud
        .refused(
            give("198.51.100.5", Some(PortId::new())),
            NotFound,
            "has no port",
        )
        .await;
    // A port whose network has no way to that network.
    let vm = cloud
        .ok(instance("web", 512, json!([{ "network": "green" }])))
        .await;
    cloud
        .refused(
            give("198.51.100.5", Some(vm.ports[0].id)),
            Conflict,
            "no router leads",
        )
        .await;
    assert_sound(&cloud).await;
}
