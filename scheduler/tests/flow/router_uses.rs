//! What routers and floating IPs have to do with the rest: ports that come and go, subnets and networks that change under them.

use berth_common::{
    document::{DocumentKey, Kind, Route},
    ids::{NetworkId, PortId, SubnetId},
    message::{
        network::{NetworkCreate, NetworkSet, SubnetCreate, SubnetDelete, SubnetList, SubnetSet},
        port::{InstanceAttachInterface, InstanceDetachInterface, PortCreate, PortDelete},
        report::PowerState,
        request::{InstanceCreate, InstanceShow},
        router::{FloatingIpDelete, FloatingIpShow, RouterAddInterface, RouterShow},
        view::VmState,
    },
    refusal::RefusalCode::{Conflict, Invalid, NoValidHost, NotFound},
};
use berth_store::{documents, subnets};
use serde_json::{Value, json};

use crate::{
    ask::{delete, instance},
    cloud::{Cloud, message, wait_until},
    host::Host,
    networks::able,
    reached_groups,
    routers::{add, floating, give, networks, request, router, set, told, with_gateway},
    soundness::assert_sound,
};

fn port(network: &str) -> PortCreate {
    request(json!({ "id": PortId::new(), "network": network }))
}

fn on(name: &str, network: &str, host: &str) -> InstanceCreate {
    let mut request = instance(name, 512, json!([{ "network": network }]));
    request.hints = serde_json::from_value(json!({ "host": host })).unwrap();
    request
}

fn set_subnet(subnet: &str, mut more: Value) -> SubnetSet {
    more["subnet"] = json!(subnet);
    request(more)
}

/// The one subnet of a network.
async fn subnet_of(cloud: &Cloud, network: &str) -> String {
    let list = request::<SubnetList>(json!({ "network": network }));
    let found = cloud.ok(list).await;
    found.subnets[0].id.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_free_port_beside_a_router_is_in_nobodys_way() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(port("blue")).await;
    cloud.ok(add("r1", "blue")).await;
    cloud
        .ok(instance("web", 512, json!([{ "network": "blue" }])))
        .await;
    cloud.ok(port("blue")).await;
    told(&mut host, create.id, |spec| spec.is_some()).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_stays_for_the_other_router_that_leads_there() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let mut created = Vec::new();
    let mut vms = Vec::new();
    for (name, network) in [("r1", "blue"), ("r2", "green")] {
        let create = router(name, json!({ "external_network": "public" }));
        cloud.ok(create.clone()).await;
        cloud.ok(add(name, network)).await;
        let vm = on(&format!("in-{network}"), network, "hv1");
        cloud.ok(vm.clone()).await;
        told(&mut host, create.id, |spec| spec.is_some()).await;
        created.push(create.id);
        vms.push(vm.id);
    }
    assert_sound(&cloud).await;
    cloud.ok(delete(vms[0])).await;
    host.bury(&cloud, &vms[..1]).await;
    told(&mut host, created[0], |spec| spec.is_none()).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_network_outside_reaches_those_who_have_it_for_a_router() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    cloud
        .ok(instance("web", 512, json!([{ "network": "blue" }])))
        .await;
    told(&mut host, create.id, |spec| spec.is_some()).await;
    let public = subnet_of(&cloud, "public").await;
    cloud
        .ok(set_subnet(&public, json!({ "gateway_ip": "198.51.100.6" })))
        .await;
    let gateway = "198.51.100.6".parse().ok();
    told(&mut host, create.id, |spec| {
        let outside = spec.and_then(|spec| spec.external_gateway.as_ref());
        outside.is_some_and(|outside| outside.addresses[0].gateway_ip == gateway)
    })
    .await;
    assert_sound(&cloud).await;
    cloud
        .ok(request::<NetworkSet>(
            json!({ "network": "public", "mtu": 1400 }),
        ))
        .await;
    told(&mut host, create.id, |spec| {
        let outside = spec.and_then(|spec| spec.external_gateway.as_ref());
        outside.is_some_and(|outside| outside.mtu == 1400)
    })
    .await;
    // A subnet more is an address more of each host, and back.
    let more = SubnetId::new();
    let more = json!({ "id": more, "network": "public", "cidr": "203.0.113.0/29" });
    let more = cloud.ok(request::<SubnetCreate>(more)).await.id;
    let addresses = async || {
        let shown = request::<RouterShow>(json!({ "router": "r1" }));
        cloud.ok(shown).await.hosts[0].ip_addresses.len()
    };
    assert_eq!(addresses().await, 2);
    assert_sound(&cloud).await;
    cloud
        .ok(request::<SubnetDelete>(json!({ "subnet": more })))
        .await;
    assert_eq!(addresses().await, 1);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_only_routes_to_a_network_is_told_of_those_in_it() {
    let cloud = Cloud::start().await;
    let mut one = Host::join_with(&cloud, "hv1", able(1)).await;
    let _two = Host::join_with(&cloud, "hv2", able(2)).await;
    networks(&cloud).await;
    let wide = json!({
        "id": NetworkId::new(),
        "name": "wide",
        "network_type": "vxlan",
        "cidr": "10.0.9.0/24",
        "gateway_ip": "10.0.9.1",
    });
    let wide = cloud.ok(request::<NetworkCreate>(wide)).await;
    let create = router("r1", json!({}));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    cloud.ok(add("r1", "wide")).await;
    cloud.ok(on("near", "blue", "hv1")).await;
    told(&mut one, create.id, |spec| spec.is_some()).await;
    assert_sound(&cloud).await;
    cloud.ok(on("far", "wide", "hv2")).await;
    crate::networks::told(&cloud, &one, wide.id, "hv1 is told of far", |spec| {
        spec.remote_ports.len() == 1
    })
    .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_router_stands_on_is_not_taken_away() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    cloud
        .ok(instance("web", 512, json!([{ "network": "blue" }])))
        .await;
    let seen = told(&mut host, create.id, |spec| spec.is_some()).await;
    let outside = seen.router().external_gateway.unwrap();
    let own = outside.addresses[0].ip_address.unwrap();
    let (blue, green, public) = (
        subnet_of(&cloud, "blue").await,
        subnet_of(&cloud, "green").await,
        subnet_of(&cloud, "public").await,
    );
    cloud.ok(add("r1", "green")).await;
    cloud
        .refused(
            request::<SubnetDelete>(json!({ "subnet": green })),
            Conflict,
            "is used by router r1",
        )
        .await;
    // The gateway may go and come back: it is the router's own address.
    cloud
        .ok(set_subnet(&blue, json!({ "gateway_ip": null })))
        .await;
    cloud
        .ok(set_subnet(&blue, json!({ "gateway_ip": "10.0.1.1" })))
        .await;
    cloud
        .refused(
            set_subnet(&public, json!({ "gateway_ip": own })),
            Conflict,
            "a host's address for a router",
        )
        .await;
    let internal = || request::<NetworkSet>(json!({ "network": "public", "external": false }));
    cloud
        .refused(internal(), Conflict, "is the external network of router r1")
        .await;
    let float = cloud.ok(floating(Some("198.51.100.5"))).await;
    cloud
        .refused(
            set_subnet(&public, json!({ "gateway_ip": "198.51.100.5" })),
            Conflict,
            "is a floating IP",
        )
        .await;
    cloud
        .ok(set("r1", json!({ "external_gateway": "none" })))
        .await;
    cloud
        .refused(internal(), Conflict, "has 1 floating IPs")
        .await;
    cloud
        .refused(
            request::<SubnetDelete>(json!({ "subnet": public })),
            Conflict,
            "has 1 floating IPs",
        )
        .await;
    cloud
        .ok(request::<FloatingIpDelete>(
            json!({ "floating_ip": float.id }),
        ))
        .await;
    cloud.ok(internal()).await;
    cloud
        .ok(request::<SubnetDelete>(json!({ "subnet": public })))
        .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_nat_network_the_gateway_is_the_hosts() {
    let cloud = Cloud::start().await;
    let nat = json!({
        "id": NetworkId::new(),
        "name": "home",
        "network_type": "nat",
        "cidr": "10.0.8.0/24",
        "gateway_ip": "10.0.8.1",
    });
    cloud.ok(request::<NetworkCreate>(nat)).await;
    cloud.ok(router("r1", json!({}))).await;
    cloud
        .refused(
            add("r1", "home"),
            Conflict,
            "the bridge of each host has it",
        )
        .await;
    let other = json!({ "router": "r1", "subnet": "home", "ip_address": "10.0.8.9" });
    cloud.ok(request::<RouterAddInterface>(other)).await;
    let home = subnet_of(&cloud, "home").await;
    cloud
        .refused(
            set_subnet(&home, json!({ "gateway_ip": "10.0.8.9" })),
            Conflict,
            "the bridge of each host has the gateway's",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_port_go_its_floating_ips_from_it() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create.clone()).await;
    cloud.ok(add("r1", "blue")).await;
    let float = cloud.ok(floating(Some("198.51.100.5"))).await;
    let association = async || {
        let show = request::<FloatingIpShow>(json!({ "floating_ip": float.id }));
        let shown = cloud.ok(show).await;
        (shown.port_id, shown.router_id)
    };

    // One of no instance.
    let free = port("blue");
    cloud.ok(free.clone()).await;
    cloud.ok(give("198.51.100.5", Some(free.id))).await;
    cloud
        .ok(request::<PortDelete>(json!({ "port": free.id })))
        .await;
    assert_eq!(association().await, (None, None));

    // One that was made for its instance, and is unplugged.
    let vm = instance("web", 512, json!([{ "network": "blue" }]));
    let of_vm = cloud.ok(vm.clone()).await.ports[0].id;
    host.converge_instance(PowerState::Running).await;
    cloud
        .wait_for_instance(vm.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    cloud.ok(give("198.51.100.5", Some(of_vm))).await;
    let has_it = |spec: Option<&berth_common::document::RouterSpec>| {
        spec.is_some_and(|spec| !spec.floating_ips.is_empty())
    };
    told(&mut host, create.id, has_it).await;
    cloud
        .ok(request::<InstanceDetachInterface>(
            json!({ "instance": vm.id, "port": of_vm }),
        ))
        .await;
    let document = host.next_about(vm.id).await;
    host.carry_out(&document, PowerState::Running).await;
    wait_until("the floating IP is nobody's", async || {
        association().await == (None, None)
    })
    .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_not_plugged_in_where_its_network_cannot_be() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let wide = json!({
        "id": NetworkId::new(),
        "name": "wide",
        "network_type": "vxlan",
        "cidr": "10.0.9.0/24",
    });
    cloud.ok(request::<NetworkCreate>(wide)).await;
    let vm = instance("web", 512, json!([{ "network": "blue" }]));
    cloud.ok(vm.clone()).await;
    host.converge_instance(PowerState::Running).await;
    cloud
        .wait_for_instance(vm.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    let free = port("wide");
    cloud.ok(free.clone()).await;
    let given = json!({ "instance": vm.id, "port": free.id });
    let new = json!({
        "instance": vm.id,
        "new_port": { "id": PortId::new(), "network": "wide" },
    });
    for wish in [given, new] {
        cloud
            .refused(
                request::<InstanceAttachInterface>(wish),
                Conflict,
                "host hv1 cannot build network wide",
            )
            .await;
    }
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_goes_where_the_networks_that_its_routers_join_can_be_built() {
    let cloud = Cloud::start().await;
    let mut plain = Host::join(&cloud, "plain").await;
    for (name, network_type, third) in [
        ("near", "local", 1),
        ("far", "vxlan", 2),
        ("inner", "local", 3),
        ("deep", "vxlan", 4),
        ("lone", "local", 5),
    ] {
        reached_groups::network(&cloud, name, network_type, third).await;
    }
    for (name, network_type, cidr) in [
        ("public", "vxlan", "198.51.100.0/29"),
        ("outside", "local", "203.0.113.0/29"),
    ] {
        let id = NetworkId::new();
        let outside = json!({
            "id": id, "name": name, "network_type": network_type, "cidr": cidr, "external": true,
        });
        cloud.ok(request::<NetworkCreate>(outside)).await;
    }
    for (name, outside, inside) in [
        ("r1", None, vec!["near", "far"]),
        ("r2", Some("public"), vec!["inner"]),
        ("r3", Some("outside"), vec!["deep"]),
    ] {
        let external = json!({ "external_network": outside });
        cloud.ok(router(name, external)).await;
        for network in inside {
            cloud.ok(add(name, network)).await;
        }
    }
    let far = "router r1 joins network far, which needs VXLAN: its kernel lacks it";
    let public = "router r2 joins network public, which needs VXLAN: its kernel lacks it";
    for (network, why, asked) in [
        ("near", far, "VXLAN for network far of router r1"),
        ("inner", public, "VXLAN for network public of router r2"),
    ] {
        let vm = on(&format!("in-{network}"), network, "plain");
        cloud.refused(vm.clone(), NoValidHost, why).await;
        let decision = &cloud.explain(vm.id).await[0];
        assert_eq!(decision.nearest_misses[0].reason, why);
        assert!(
            decision.constraints.iter().any(|it| it == asked),
            "{:?}",
            decision.constraints
        );
    }
    // A router only leads out by it: it is on no host for that.
    cloud.ok(on("in-outside", "outside", "plain")).await;

    let _able = Host::join_with(&cloud, "able", able(9)).await;
    for network in ["near", "inner"] {
        let vm = instance(
            &format!("more-{network}"),
            512,
            json!([{ "network": network }]),
        );
        cloud.ok(vm.clone()).await;
        assert_eq!(cloud.host_of(vm.id).await, "able");
    }

    let web = on("web", "lone", "plain");
    cloud.ok(web.clone()).await;
    loop {
        let document = plain.converge_instance(PowerState::Running).await;
        if document.key().id == web.id.as_uuid() {
            break;
        }
    }
    cloud
        .wait_for_instance(web.id, "active", |view| view.vm_state == VmState::Active)
        .await;
    let free = port("near");
    cloud.ok(free.clone()).await;
    let plug_in =
        request::<InstanceAttachInterface>(json!({ "instance": web.id, "port": free.id }));
    let why = format!("host plain cannot build network near: {far}");
    cloud.refused(plug_in.clone(), Conflict, &why).await;
    // One that is off is nowhere.
    cloud
        .ok(set("r1", json!({ "admin_state_up": false })))
        .await;
    cloud.ok(plug_in).await;
    cloud.ok(on("beside", "near", "plain")).await;
    cloud
        .refused(
            set("r1", json!({ "admin_state_up": true })),
            Conflict,
            "host plain of instances beside, web cannot build network far: needs VXLAN: its kernel lacks it",
        )
        .await;
    assert_sound(&cloud).await;
}

/// Nor does a router come to a host later that cannot build its networks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_comes_to_no_host_that_cannot_build_its_networks() {
    let cloud = Cloud::start().await;
    let mut plain = Host::join(&cloud, "plain").await;
    let _able = Host::join_with(&cloud, "able", able(9)).await;
    for (name, network_type, third) in [
        ("near", "local", 1),
        ("far", "vxlan", 2),
        ("side", "local", 3),
    ] {
        reached_groups::network(&cloud, name, network_type, third).await;
    }
    let public = json!({
        "id": NetworkId::new(), "name": "public", "network_type": "vxlan", "cidr": "198.51.100.0/29", "external": true,
    });
    cloud.ok(request::<NetworkCreate>(public)).await;
    for name in ["r1", "r2", "r3"] {
        cloud.ok(router(name, json!({}))).await;
    }
    let web = on("web", "near", "plain");
    cloud.ok(web.clone()).await;
    cloud.ok(on("dull", "side", "able")).await;
    let far = |router: &str, address: &str| {
        let leg = json!({ "router": router, "subnet": "far", "ip_address": address });
        request::<RouterAddInterface>(leg)
    };
    let lacks =
        "and host plain of instance web cannot build network far: needs VXLAN: its kernel lacks it";
    // Whichever network comes last.
    cloud.ok(far("r1", "10.0.2.71")).await;
    cloud.refused(add("r1", "near"), Conflict, lacks).await;
    cloud.ok(add("r2", "near")).await;
    cloud.refused(far("r2", "10.0.2.72"), Conflict, lacks).await;
    // The way out is a network like others.
    let out = json!({ "external_gateway": { "network": "public" } });
    cloud
        .refused(
            set("r2", out.clone()),
            Conflict,
            "host plain of instance web cannot build network public: needs VXLAN",
        )
        .await;
    assert_sound(&cloud).await;
    // One that is not up is on no host, and asks nothing until it is to be.
    cloud
        .ok(set("r2", json!({ "admin_state_up": false })))
        .await;
    cloud.ok(far("r2", "10.0.2.72")).await;
    cloud.ok(set("r2", out.clone())).await;
    let up = json!({ "admin_state_up": true });
    cloud.refused(set("r2", up.clone()), Conflict, lacks).await;
    // Others do as before.
    cloud.ok(add("r3", "side")).await;
    cloud.ok(set("r3", out)).await;
    assert_sound(&cloud).await;
    // What is renamed is not judged anew, and what is gone is not in the way.
    cloud.ok(set("r2", json!({ "name": "r2b" }))).await;
    cloud.ok(delete(web.id)).await;
    plain.bury(&cloud, &[web.id]).await;
    cloud.ok(set("r2b", up)).await;
    let also = json!({ "router": "r1", "subnet": "near", "ip_address": "10.0.1.71" });
    cloud.ok(request::<RouterAddInterface>(also)).await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wished_floating_ip_is_judged_by_its_own_subnet() {
    let cloud = Cloud::start().await;
    cloud.ok(with_gateway("public", "198.51.100.0/29")).await;
    let more = SubnetId::new();
    let more = json!({ "id": more, "network": "public", "cidr": "203.0.113.0/29" });
    cloud.ok(request::<SubnetCreate>(more)).await;
    cloud.ok(floating(Some("203.0.113.5"))).await;
    cloud.ok(floating(Some("198.51.100.5"))).await;
    for taken in ["198.51.100.5", "203.0.113.5"] {
        cloud.refused(floating(Some(taken)), Conflict, taken).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_outside_are_never_those_inside() {
    let cloud = Cloud::start().await;
    networks(&cloud).await;
    cloud.ok(with_gateway("elsewhere", "10.0.1.0/28")).await;
    let create = router("r1", json!({ "external_network": "public" }));
    cloud.ok(create).await;
    cloud.ok(add("r1", "blue")).await;
    cloud
        .refused(
            set(
                "r1",
                json!({ "external_gateway": { "network": "elsewhere" } }),
            ),
            Conflict,
            "10.0.1.0/28 overlaps with 10.0.1.0/24, which router r1 is in already",
        )
        .await;
    let more = |network: &str, cidr: &str| {
        let id = SubnetId::new();
        request::<SubnetCreate>(json!({ "id": id, "network": network, "cidr": cidr }))
    };
    cloud
        .refused(
            more("public", "10.0.0.0/16"),
            Conflict,
            "10.0.0.0/16 overlaps with 10.0.1.0/24, which router r1 is in already",
        )
        .await;
    // Nobody leads from there to the router's addresses.
    cloud.ok(more("elsewhere", "10.0.2.0/24")).await;
    let further = cloud.ok(more("public", "10.0.2.0/24")).await;
    cloud
        .refused(
            add("r1", "green"),
            Conflict,
            "10.0.2.0/24 overlaps with 10.0.2.0/24",
        )
        .await;
    // Nor does what a route goes by way of go away.
    let by_way = json!([{ "destination": "172.16.0.0/12", "nexthop": "10.0.2.9" }]);
    cloud.ok(set("r1", json!({ "routes": by_way }))).await;
    let gone = request::<SubnetDelete>(json!({ "subnet": further.id }));
    cloud
        .refused(
            gone.clone(),
            Conflict,
            "router r1 reaches 172.16.0.0/12 by way of 10.0.2.9",
        )
        .await;
    cloud.ok(set("r1", json!({ "routes": [] }))).await;
    cloud.ok(gone).await;
    assert_sound(&cloud).await;
}

fn to(routes: &[(&str, &str)]) -> Value {
    let routes: Vec<Value> = routes
        .iter()
        .map(|(destination, nexthop)| json!({ "destination": destination, "nexthop": nexthop }))
        .collect();
    json!({ "routes": routes })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_has_one_route_to_a_destination() {
    let cloud = Cloud::start().await;
    networks(&cloud).await;
    let bare = json!({ "id": NetworkId::new(), "name": "bare", "cidr": "203.0.113.0/29", "external": true });
    cloud.ok(request::<NetworkCreate>(bare)).await;
    cloud.ok(router("r1", json!({}))).await;
    cloud.ok(add("r1", "blue")).await;
    let twice = to(&[("192.0.2.0/24", "10.0.1.7"), ("192.0.2.0/24", "10.0.1.8")]);
    cloud
        .refused(
            set("r1", twice),
            Invalid,
            "two routes to 192.0.2.0/24, by way of 10.0.1.7 and of 10.0.1.8",
        )
        .await;
    cloud
        .refused(
            set("r1", to(&[("10.0.1.0/24", "10.0.1.7")])),
            Conflict,
            "router r1 is in subnet 10.0.1.0/24 itself",
        )
        .await;
    // A part of it may lie behind a machine in it.
    cloud
        .ok(set("r1", to(&[("10.0.1.128/25", "10.0.1.7")])))
        .await;

    // In the other order.
    cloud
        .ok(set("r1", to(&[("10.0.2.0/24", "10.0.1.7")])))
        .await;
    cloud
        .refused(
            add("r1", "green"),
            Conflict,
            "in subnet 10.0.2.0/24 itself, and has another route there, by way of 10.0.1.7",
        )
        .await;
    cloud
        .ok(set("r1", to(&[("198.51.100.0/29", "10.0.1.7")])))
        .await;
    let gateway = |network: &str| json!({ "external_gateway": { "network": network } });
    cloud
        .refused(
            set("r1", gateway("public")),
            Conflict,
            "in subnet 198.51.100.0/29 itself",
        )
        .await;
    cloud.ok(set("r1", to(&[("0.0.0.0/0", "10.0.1.7")]))).await;
    let leads_out = "leads out by way of 198.51.100.1, the gateway of 198.51.100.0/29, and has another route to 0.0.0.0/0";
    cloud
        .refused(set("r1", gateway("public")), Conflict, leads_out)
        .await;
    // One without a gateway leads nowhere else.
    cloud.ok(set("r1", gateway("bare"))).await;
    let bare = subnet_of(&cloud, "bare").await;
    cloud
        .refused(
            set_subnet(&bare, json!({ "gateway_ip": "203.0.113.1" })),
            Conflict,
            "leads out by way of 203.0.113.1",
        )
        .await;
    let more = |cidr: &str, gateway: Option<&str>| {
        request::<SubnetCreate>(json!({
            "id": SubnetId::new(), "network": "bare", "cidr": cidr, "gateway_ip": gateway,
        }))
    };
    cloud
        .refused(
            more("203.0.113.16/29", Some("203.0.113.17")),
            Conflict,
            "leads out by way of 203.0.113.17",
        )
        .await;
    cloud
        .ok(set("r1", to(&[("203.0.113.32/29", "10.0.1.7")])))
        .await;
    cloud
        .refused(
            more("203.0.113.32/29", None),
            Conflict,
            "in subnet 203.0.113.32/29 itself",
        )
        .await;
    cloud
        .ok(more("203.0.113.16/29", Some("203.0.113.17")))
        .await;
    cloud
        .refused(
            set("r1", to(&[("0.0.0.0/0", "10.0.1.7")])),
            Conflict,
            "leads out by way of 203.0.113.17",
        )
        .await;
    // Of another version of IP.
    let six = json!({ "id": NetworkId::new(), "name": "six", "cidr": "fd00:1::/64", "gateway_ip": "fd00:1::1" });
    cloud.ok(request::<NetworkCreate>(six)).await;
    cloud.ok(add("r1", "six")).await;
    cloud.ok(set("r1", to(&[("::/0", "fd00:1::7")]))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floating_ip_is_translated_by_the_router_that_the_guest_answers_by() {
    let cloud = Cloud::start().await;
    let _host = Host::join(&cloud, "hv1").await;
    networks(&cloud).await;
    let [beside, gateway] =
        ["beside", "gateway"].map(|name| router(name, json!({ "external_network": "public" })));
    for create in [&beside, &gateway] {
        cloud.ok(create.clone()).await;
    }
    let leg = json!({ "router": "beside", "subnet": "blue", "ip_address": "10.0.1.254" });
    cloud.ok(request::<RouterAddInterface>(leg)).await;
    cloud.ok(add("gateway", "blue")).await;
    let free = port("blue");
    cloud.ok(free.clone()).await;
    cloud.ok(floating(Some("198.51.100.5"))).await;
    let by = async || {
        let given = cloud.ok(give("198.51.100.5", Some(free.id))).await;
        given.router_id.unwrap()
    };
    let up = async |router: &str, up: bool| {
        cloud.ok(set(router, json!({ "admin_state_up": up }))).await;
    };
    assert_eq!(by().await, gateway.id);
    up("gateway", false).await;
    // It stays, and goes elsewhere when it is given anew.
    let shown = request::<FloatingIpShow>(json!({ "floating_ip": "198.51.100.5" }));
    assert_eq!(cloud.ok(shown).await.router_id, Some(gateway.id));
    assert_eq!(by().await, beside.id);
    up("beside", false).await;
    cloud
        .refused(
            give("198.51.100.5", Some(free.id)),
            Conflict,
            "router beside leads from the subnet of 10.0.1.3 to the network of floating IP 198.51.100.5, but is disabled",
        )
        .await;
    up("gateway", true).await;
    assert_eq!(by().await, gateway.id);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_a_document_too_large_is_refused() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let blue = cloud.ok(with_gateway("blue", "10.0.1.0/24")).await;
    let [stays, goes] = ["stays", "goes"].map(|name| on(name, "blue", "hv1"));
    for vm in [&stays, &goes] {
        cloud.ok(vm.clone()).await;
        host.converge_instance(PowerState::Running).await;
    }
    let key = DocumentKey {
        kind: Kind::Network,
        id: blue.id.as_uuid(),
    };
    let id = host.id;
    let told = async || {
        let row = documents::get(cloud.pool(), id, key).await.unwrap();
        row.unwrap().spec_json
    };
    let before = told().await;
    // No request makes a subnet so large; many ports are as many bytes.
    let mut subnet = subnets::get(cloud.pool(), blue.subnets[0].id)
        .await
        .unwrap()
        .unwrap();
    let route = Route {
        destination: "192.0.2.0/24".parse().unwrap(),
        nexthop: "10.0.1.9".parse().unwrap(),
    };
    subnet.host_routes = vec![route; 25_000];
    subnets::update(cloud.pool(), &subnet).await.unwrap();
    let one_more = on("one-more", "blue", "hv1");
    let beside = with_gateway("green", "10.0.2.0/24");
    let answers = cloud
        .in_one_batch(vec![message(&one_more), message(&beside)])
        .await;
    let refusal = answers[0].clone().unwrap_err();
    assert_eq!(refusal.code, Conflict);
    let words = format!("the document of {key} for host hv1 would have");
    assert!(refusal.message.contains(&words), "{refusal}");
    assert!(refusal.message.contains("room for 1047552"), "{refusal}");
    answers[1].clone().unwrap();
    let show = request::<InstanceShow>(json!({ "instance": one_more.id }));
    cloud.refused(show, NotFound, "no instance").await;
    assert_eq!(told().await, before);
    // What a host says is written down all the same.
    cloud.ok(delete(goes.id)).await;
    host.bury(&cloud, &[goes.id]).await;
    assert_eq!(told().await, before);
    subnet.host_routes.truncate(1);
    subnets::update(cloud.pool(), &subnet).await.unwrap();
    cloud.ok(one_more).await;
    assert_sound(&cloud).await;
}
