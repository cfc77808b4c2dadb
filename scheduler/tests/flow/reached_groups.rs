//! Whom a rule means by a group where routers join networks, and who hears of it.

use std::collections::BTreeSet;

use berth_common::{
    document::{DocumentKey, Kind, NetworkSpec},
    ids::{NetworkId, PortId, SecurityGroupId, SubnetId},
    message::{
        network::{NetworkCreate, SubnetCreate, SubnetDelete},
        port::{PortDelete, PortSet},
        router::{RouterAddInterface, RouterRemoveInterface},
        view::InstanceView,
    },
    units::Generation,
};
use berth_store::documents;
use serde_json::{Value, json};

use crate::{
    ask::{delete, instance},
    cloud::Cloud,
    host::Host,
    networks::able,
    ports::port,
    routers::{add, request, router, set},
    soundness::assert_sound,
};

/// A network of a type whose addresses begin with 10.0 and this, with a gateway.
pub(crate) async fn network(cloud: &Cloud, name: &str, network_type: &str, third: u8) -> NetworkId {
    let network = json!({
        "id": NetworkId::new(),
        "name": name,
        "network_type": network_type,
        "cidr": format!("10.0.{third}.0/24"),
        "gateway_ip": format!("10.0.{third}.1"),
    });
    cloud.ok(request::<NetworkCreate>(network)).await.id
}

/// An instance on a host with a port in a network.
pub(crate) async fn on(cloud: &Cloud, name: &str, network: &str, host: &str) -> InstanceView {
    let mut create = instance(name, 512, json!([{ "network": network }]));
    create.hints.host = Some(host.to_owned());
    cloud.ok(create).await
}

fn address(view: &InstanceView) -> String {
    format!("{}/32", view.ports[0].fixed_ips[0].ip_address)
}

fn all(addresses: &[&str]) -> BTreeSet<String> {
    addresses.iter().map(|it| (*it).to_owned()).collect()
}

/// What a host was told of a network.
pub(crate) async fn told(
    cloud: &Cloud,
    host: &Host,
    network: NetworkId,
) -> (Generation, NetworkSpec) {
    let key = DocumentKey {
        kind: Kind::Network,
        id: network.as_uuid(),
    };
    let row = documents::get(cloud.pool(), host.id, key).await.unwrap();
    let row = row.unwrap();
    let spec = serde_json::from_str(&row.spec_json.unwrap()).unwrap();
    (row.generation, spec)
}

/// Whom it means there by a group.
async fn members(
    cloud: &Cloud,
    host: &Host,
    network: NetworkId,
    group: SecurityGroupId,
) -> BTreeSet<String> {
    let (_, spec) = told(cloud, host, network).await;
    let members = spec.group_members.get(&group).into_iter().flatten();
    members.map(ToString::to_string).collect()
}

async fn set_port(cloud: &Cloud, port: PortId, mut more: Value) {
    more["port"] = json!(port);
    cloud.ok(request::<PortSet>(more)).await;
}

fn remove(router: &str, subnet: &str) -> RouterRemoveInterface {
    request(json!({ "router": router, "subnet": subnet }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_brings_the_members_of_one_network_to_the_other() {
    let cloud = Cloud::start().await;
    let one = Host::join_with(&cloud, "hv1", able(1)).await;
    let two = Host::join_with(&cloud, "hv2", able(2)).await;
    let a = network(&cloud, "a", "vxlan", 1).await;
    let b = network(&cloud, "b", "vxlan", 2).await;
    let c = network(&cloud, "c", "vxlan", 3).await;
    let web = on(&cloud, "web", "a", "hv1").await;
    let db = on(&cloud, "db", "b", "hv2").await;
    let lone = on(&cloud, "lone", "c", "hv1").await;
    let group = web.ports[0].security_groups[0].id;
    let [in_a, in_b, in_c] = [&web, &db, &lone].map(address);
    let both = all(&[&in_a, &in_b]);

    // Before anything leads there, nothing is said anew.
    let (alone, _) = told(&cloud, &one, a).await;
    cloud.ok(router("r1", json!({}))).await;
    cloud.ok(add("r1", "a")).await;
    assert_eq!(told(&cloud, &one, a).await.0, alone);
    assert_eq!(members(&cloud, &one, a, group).await, all(&[&in_a]));
    let (apart, _) = told(&cloud, &one, c).await;

    // A leg more.
    cloud.ok(add("r1", "b")).await;
    assert_eq!(members(&cloud, &one, a, group).await, both);
    assert_eq!(members(&cloud, &two, b, group).await, both);
    // Who has a network only for the router has no rules there that mean anybody.
    assert!(told(&cloud, &one, b).await.1.group_members.is_empty());
    assert_sound(&cloud).await;

    // One comes that is of no instance, and goes.
    let free = port("b", json!({ "ip_address": "10.0.2.77" }));
    cloud.ok(free.clone()).await;
    let with_free = all(&[&in_a, &in_b, "10.0.2.77/32"]);
    assert_eq!(members(&cloud, &one, a, group).await, with_free);
    assert_sound(&cloud).await;
    cloud
        .ok(request::<PortDelete>(json!({ "port": free.id })))
        .await;
    assert_eq!(members(&cloud, &one, a, group).await, both);

    // One comes with its instance, and goes.
    let more = on(&cloud, "more", "b", "hv2").await;
    let with_more = all(&[&in_a, &in_b, &address(&more)]);
    assert_eq!(members(&cloud, &one, a, group).await, with_more);
    assert_sound(&cloud).await;
    let mut two = two;
    cloud.ok(delete(more.id)).await;
    two.bury(&cloud, &[more.id]).await;
    assert_eq!(members(&cloud, &one, a, group).await, both);
    assert_sound(&cloud).await;

    // One leaves the group, or is held to nothing, and is back.
    let of_db = db.ports[0].id;
    for (out, back) in [
        (
            json!({ "security_groups": [] }),
            json!({ "security_groups": ["default"] }),
        ),
        (
            json!({ "port_security_enabled": false }),
            json!({ "port_security_enabled": true }),
        ),
    ] {
        set_port(&cloud, of_db, out).await;
        assert_eq!(members(&cloud, &one, a, group).await, all(&[&in_a]));
        assert_sound(&cloud).await;
        set_port(&cloud, of_db, back).await;
        assert_eq!(members(&cloud, &one, a, group).await, both);
        assert_sound(&cloud).await;
    }

    // What it may use besides counts where the router leads to it.
    let pairs = json!([{ "ip_address": "10.0.2.128/25" }, { "ip_address": "10.0.1.0/24" }]);
    set_port(&cloud, of_db, json!({ "allowed_address_pairs": pairs })).await;
    let with_pair = all(&[&in_a, &in_b, "10.0.2.128/25"]);
    assert_eq!(members(&cloud, &one, a, group).await, with_pair);
    let there = members(&cloud, &two, b, group).await;
    assert!(there.contains("10.0.1.0/24"), "{there:?}");
    set_port(&cloud, of_db, json!({ "allowed_address_pairs": [] })).await;
    assert_eq!(members(&cloud, &one, a, group).await, both);
    assert_sound(&cloud).await;

    // Another subnet of the network, in which the router is not, and then is.
    let subnet = SubnetId::new();
    let create =
        json!({ "id": subnet, "network": "b", "cidr": "10.0.4.0/24", "gateway_ip": "10.0.4.1" });
    cloud.ok(request::<SubnetCreate>(create)).await;
    let (before, _) = told(&cloud, &one, a).await;
    let aside = port("b", json!({ "ip_address": "10.0.4.9" }));
    cloud.ok(aside.clone()).await;
    assert_eq!(told(&cloud, &one, a).await.0, before);
    cloud.ok(add("r1", &subnet.to_string())).await;
    let with_aside = all(&[&in_a, &in_b, "10.0.4.9/32"]);
    assert_eq!(members(&cloud, &one, a, group).await, with_aside);
    assert_sound(&cloud).await;
    cloud.ok(remove("r1", &subnet.to_string())).await;
    assert_eq!(members(&cloud, &one, a, group).await, both);
    assert_sound(&cloud).await;
    cloud
        .ok(request::<PortDelete>(json!({ "port": aside.id })))
        .await;
    cloud
        .ok(request::<SubnetDelete>(json!({ "subnet": subnet })))
        .await;

    // The router rests, and works again.
    cloud
        .ok(set("r1", json!({ "admin_state_up": false })))
        .await;
    assert_eq!(members(&cloud, &one, a, group).await, all(&[&in_a]));
    assert_eq!(members(&cloud, &two, b, group).await, all(&[&in_b]));
    assert_sound(&cloud).await;
    cloud.ok(set("r1", json!({ "admin_state_up": true }))).await;
    assert_eq!(members(&cloud, &one, a, group).await, both);
    assert_eq!(members(&cloud, &two, b, group).await, both);
    assert_sound(&cloud).await;

    // A leg less.
    cloud.ok(remove("r1", "b")).await;
    assert_eq!(members(&cloud, &one, a, group).await, all(&[&in_a]));
    assert_eq!(members(&cloud, &two, b, group).await, all(&[&in_b]));
    assert_sound(&cloud).await;

    // Whoever nothing leads to heard nothing of it all.
    assert_eq!(told(&cloud, &one, c).await.0, apart);
    assert_eq!(members(&cloud, &one, c, group).await, all(&[&in_c]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_means_nobody_two_routers_away() {
    let cloud = Cloud::start().await;
    let one = Host::join_with(&cloud, "hv1", able(1)).await;
    let a = network(&cloud, "a", "vxlan", 1).await;
    let b = network(&cloud, "b", "vxlan", 2).await;
    network(&cloud, "c", "vxlan", 3).await;
    let views = [
        on(&cloud, "in-a", "a", "hv1").await,
        on(&cloud, "in-b", "b", "hv1").await,
        on(&cloud, "in-c", "c", "hv1").await,
    ];
    let group = views[0].ports[0].security_groups[0].id;
    let [in_a, in_b, in_c] = [&views[0], &views[1], &views[2]].map(address);
    for name in ["r1", "r2"] {
        cloud.ok(router(name, json!({}))).await;
    }
    cloud.ok(add("r1", "a")).await;
    cloud.ok(add("r1", "b")).await;
    let (before, _) = told(&cloud, &one, a).await;
    let other = json!({ "router": "r2", "subnet": "b", "ip_address": "10.0.2.9" });
    cloud.ok(request::<RouterAddInterface>(other)).await;
    cloud.ok(add("r2", "c")).await;
    let of_all = all(&[&in_a, &in_b, &in_c]);
    assert_eq!(members(&cloud, &one, b, group).await, of_all);
    assert_eq!(members(&cloud, &one, a, group).await, all(&[&in_a, &in_b]));
    assert_eq!(told(&cloud, &one, a).await.0, before);
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_network_ends_at_its_host_only_the_hosts_own_are_meant() {
    let cloud = Cloud::start().await;
    let one = Host::join_with(&cloud, "hv1", able(1)).await;
    let two = Host::join_with(&cloud, "hv2", able(2)).await;
    let here = network(&cloud, "here", "local", 1).await;
    let beside = network(&cloud, "beside", "local", 2).await;
    let wide = network(&cloud, "wide", "vxlan", 3).await;
    cloud.ok(router("r1", json!({}))).await;
    for name in ["here", "beside", "wide"] {
        cloud.ok(add("r1", name)).await;
    }
    let x = on(&cloud, "x", "here", "hv1").await;
    let group = x.ports[0].security_groups[0].id;
    let y = on(&cloud, "y", "beside", "hv1").await;
    let u = on(&cloud, "u", "wide", "hv1").await;
    let [x, y, u] = [&x, &y, &u].map(address);
    let own = all(&[&x, &y, &u]);
    for network in [here, beside, wide] {
        assert_eq!(members(&cloud, &one, network, group).await, own);
    }
    assert_sound(&cloud).await;

    // What comes elsewhere in a network of this host is no news here.
    let generations = async || {
        let mut found = Vec::new();
        for network in [here, beside, wide] {
            found.push(told(&cloud, &one, network).await.0);
        }
        found
    };
    let before = generations().await;
    let z = address(&on(&cloud, "z", "beside", "hv2").await);
    assert_eq!(members(&cloud, &two, beside, group).await, all(&[&z]));
    assert_eq!(generations().await, before);
    assert_sound(&cloud).await;

    // One in the wide network is meant there, and nowhere else.
    let v = address(&on(&cloud, "v", "wide", "hv2").await);
    let with_v = all(&[&x, &y, &u, &v]);
    assert_eq!(members(&cloud, &one, wide, group).await, with_v);
    let there = all(&[&z, &u, &v]);
    assert_eq!(members(&cloud, &two, wide, group).await, there);
    assert_eq!(members(&cloud, &two, beside, group).await, all(&[&z, &v]));
    for network in [here, beside] {
        assert_eq!(members(&cloud, &one, network, group).await, own);
    }
    assert_eq!(generations().await[..2], before[..2]);
    assert_sound(&cloud).await;
}
