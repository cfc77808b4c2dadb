//! Networks of all types and their subnets: which segments and addresses are given out, who is told of whom, and which hosts
//! will do.

use std::net::IpAddr;

use berth_common::{
    document::{Document, DocumentKey, Kind, NetworkSpec},
    ids::{NetworkId, SubnetId},
    message::{
        heartbeat::NetworkCapabilities,
        network::{NetworkCreate, NetworkDelete, NetworkList, NetworkSet, NetworkShow},
        network::{SubnetCreate, SubnetDelete, SubnetList, SubnetSet, SubnetShow},
        report::PowerState,
        request::InstanceCreate,
        view::NetworkView,
    },
    refusal::RefusalCode,
};
use berth_scheduler::config::{Config, IdRange, VlanRange};
use berth_store::documents;
use serde_json::{Value, json};

use crate::{
    ask::{body, delete, network},
    cloud::{Cloud, message, wait_until},
    host::Host,
    soundness::assert_sound,
};

/// Two VLANs of `physnet1`, three VNIs, and `physnet2` as a flat network.
fn few_segments(config: &mut Config) {
    config.networks.vlan_ranges = vec![VlanRange {
        physical_network: "physnet1".parse().unwrap(),
        ids: Some(IdRange(100..=101)),
    }];
    config.networks.flat_networks = vec!["physnet2".parse().unwrap()];
    config.networks.vni_ranges = vec![IdRange(10..=11), IdRange(20..=20)];
}

fn of_type(name: &str, kind: &str, mut more: Value) -> NetworkCreate {
    more["id"] = json!(NetworkId::new());
    more["name"] = json!(name);
    more["network_type"] = json!(kind);
    serde_json::from_value(more).unwrap()
}

fn subnet(network: &str, cidr: &str, mut more: Value) -> SubnetCreate {
    if more["id"].is_null() {
        more["id"] = json!(SubnetId::new());
    }
    more["network"] = json!(network);
    more["cidr"] = json!(cidr);
    serde_json::from_value(more).unwrap()
}

/// An instance with a port in each of these networks, on this host if it is named.
fn member(name: &str, networks: Value, host: Option<&str>) -> InstanceCreate {
    let hints = host.map_or_else(|| json!({}), |host| json!({ "host": host }));
    let mut body = body(name, hints);
    body["networks"] = networks;
    serde_json::from_value(body).unwrap()
}

fn ends(network: &NetworkView) -> (Option<&str>, Option<u32>) {
    let physnet = network.physical_network.as_ref();
    (physnet.map(|name| name.as_str()), network.segmentation_id)
}

async fn end(cloud: &Cloud, network: &NetworkView) {
    cloud
        .ok(NetworkDelete {
            network: network.id.to_string(),
            project: Default::default(),
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lowest_free_segment_is_given_out_until_none_is_left() {
    let cloud = Cloud::start_with(few_segments).await;
    let first = cloud.ok(of_type("v1", "vlan", json!({}))).await;
    assert_eq!(ends(&first), (Some("physnet1"), Some(100)));
    assert_eq!(first.mtu, 1500);
    let second = cloud.ok(of_type("v2", "vlan", json!({}))).await;
    assert_eq!(ends(&second), (Some("physnet1"), Some(101)));
    cloud
        .refused(
            of_type("v3", "vlan", json!({})),
            RefusalCode::Conflict,
            "no VLAN is free in physnet1:100:101",
        )
        .await;
    let named = |name: &str, id: u32| {
        of_type(
            name,
            "vlan",
            json!({ "physical_network": "physnet1", "segmentation_id": id }),
        )
    };
    cloud
        .refused(
            named("v4", 101),
            RefusalCode::Conflict,
            "VLAN 101 of physical network physnet1 is already used",
        )
        .await;
    // Whoever names one may name any.
    cloud.ok(named("v5", 4000)).await;
    end(&cloud, &first).await;
    end(&cloud, &first).await;
    let again = cloud.ok(of_type("v6", "vlan", json!({}))).await;
    assert_eq!(ends(&again), (Some("physnet1"), Some(100)));

    let flat = json!({ "physical_network": "physnet2" });
    let flat = cloud.ok(of_type("f1", "flat", flat)).await;
    assert_eq!(ends(&flat), (Some("physnet2"), None));
    cloud
        .refused(
            of_type("f2", "flat", json!({ "physical_network": "physnet2" })),
            RefusalCode::Conflict,
            "physical network physnet2 is already a flat network",
        )
        .await;
    let vxlan = of_type("x1", "vxlan", json!({ "external": true }));
    let one = cloud.ok(vxlan.clone()).await;
    assert_eq!(
        (ends(&one), one.mtu, one.external),
        ((None, Some(10)), 1450, true)
    );
    // The same request again is the same network, and takes no other segment.
    assert_eq!(cloud.ok(vxlan).await, one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_segment_is_given_out_twice_in_one_batch_or_after_a_crash() {
    let mut cloud = Cloud::start_with(few_segments).await;
    let requests = (0..4).map(|n| message(&of_type(&format!("x{n}"), "vxlan", json!({}))));
    let answers = cloud.in_one_batch(requests.collect()).await;
    let given: Vec<Value> = answers
        .iter()
        .map(|answer| match answer {
            Ok(network) => network["segmentation_id"].clone(),
            Err(refusal) => json!(refusal.message),
        })
        .collect();
    let none = "no VNI is free in 10:11, 20:20: delete a network, or let network.vni_ranges of the scheduler's \
                configuration have more";
    assert_eq!(given, [json!(10), json!(11), json!(20), json!(none)]);
    cloud.crash_scheduler().await;
    cloud
        .refused(
            of_type("x9", "vxlan", json!({})),
            RefusalCode::Conflict,
            none,
        )
        .await;
    let all = cloud.ok(NetworkList::default()).await.networks;
    assert_eq!(all.len(), 3);
    end(&cloud, &all[1]).await;
    let next = cloud.ok(of_type("x9", "vxlan", json!({}))).await;
    assert_eq!(next.segmentation_id, Some(11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mistakes_of_a_network_are_told_at_once() {
    let cloud = Cloud::start_with(few_segments).await;
    let check = async |kind: &str, more: Value, words: &[&str]| {
        let request = of_type("n", kind, more);
        let refusal = cloud.refused(request, RefusalCode::Invalid, words[0]).await;
        for words in words {
            assert!(refusal.message.contains(words), "{words}: {refusal}");
        }
    };
    check(
        "local",
        json!({ "physical_network": "p", "segmentation_id": 7, "gateway_ip": "10.0.0.1", "mtu": 9300 }),
        &[
            "physical_network p is for flat and vlan networks",
            "segmentation_id 7 is for vlan and vxlan networks",
            "gateway_ip and dns_nameservers are those of a subnet, which needs cidr",
            "mtu of a local network must be from 576 to 9216; got 9300",
        ],
    )
    .await;
    check(
        "vlan",
        json!({ "physical_network": "physnet2", "segmentation_id": 4095, "mtu": 1501 }),
        &[
            "physical_network physnet2 has no VLANs: network.vlan_ranges of the scheduler's configuration has physnet1:100:101",
            "segmentation_id of a vlan network must be from 1 to 4094; got 4095",
            "mtu of a vlan network must be from 576 to 1500; got 1501",
        ],
    )
    .await;
    check(
        "vlan",
        json!({ "segmentation_id": 5 }),
        &["needs physical_network"],
    )
    .await;
    check(
        "flat",
        json!({}),
        &["a flat network needs physical_network: network.flat_networks"],
    )
    .await;
    check(
        "vxlan",
        json!({ "segmentation_id": 16_777_216_u32, "cidr": "fd00:1::/64", "mtu": 1200 }),
        &[
            "segmentation_id of a vxlan network must be from 1 to 16777215",
            "mtu of a vxlan network must be from 1280 to 1450; got 1200",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_has_many_subnets_and_ports_an_address_of_each_family() {
    let cloud = Cloud::start().await;
    let mut host = Host::join(&cloud, "hv1").await;
    let bare = cloud.ok(of_type("blue", "local", json!({}))).await;
    assert_eq!(bare.subnets, []);
    let first = subnet(
        "blue",
        "10.0.0.0/24",
        json!({
            "name": "first", "gateway_ip": "10.0.0.1",
            "allocation_pools": [{ "start": "10.0.0.50", "end": "10.0.0.51" }],
            "host_routes": [{ "destination": "10.9.0.0/16", "nexthop": "10.0.0.9" }],
        }),
    );
    let view = cloud.ok(first.clone()).await;
    assert_eq!(view.dhcp_ip, Some(IpAddr::from([10, 0, 0, 2])));
    assert_eq!(cloud.ok(first).await, view);
    let six = subnet(
        "blue",
        "fd00:1::/64",
        json!({ "name": "six", "enable_dhcp": false }),
    );
    assert_eq!(cloud.ok(six).await.dhcp_ip, None);
    let slaac = subnet(
        "blue",
        "fd00:2::/64",
        json!({ "ipv6_address_mode": "slaac" }),
    );
    cloud.ok(slaac).await;
    for (cidr, overlapped) in [
        ("10.0.0.128/25", "10.0.0.0/24"),
        ("fd00::/16", "fd00:1::/64"),
    ] {
        cloud
            .refused(
                subnet("blue", cidr, json!({})),
                RefusalCode::Conflict,
                &format!("{cidr} overlaps with {overlapped}, another subnet of network blue"),
            )
            .await;
    }
    cloud
        .refused(
            subnet("blue", "10.3.0.0/24", json!({ "name": "first" })),
            RefusalCode::Conflict,
            "network blue already has a subnet named first",
        )
        .await;
    // Another network may have the same addresses.
    cloud.ok(network("green", "10.0.0.0/24")).await;
    cloud
        .refused(
            SubnetShow {
                subnet: "none".to_owned(),
                project: Default::default(),
            },
            RefusalCode::NotFound,
            "has no subnet \"none\"",
        )
        .await;

    let vm = member(
        "vm",
        json!([{ "network": "blue", "mac_address": "52:54:00:12:34:56" }]),
        None,
    );
    let ports = cloud.ok(vm.clone()).await.ports;
    let ips: Vec<String> = ports[0]
        .fixed_ips
        .iter()
        .map(|ip| ip.ip_address.to_string())
        .collect();
    assert_eq!(ips, ["10.0.0.50", "fd00:1::1", "fd00:2::5054:ff:fe12:3456"]);
    let spec = network_spec(&mut host, bare.id, |_| true).await;
    assert_eq!(spec.subnets.len(), 3);
    assert_eq!(spec.subnets[0].host_routes.len(), 1);
    assert_eq!(spec.ports[0].fixed_ips, ports[0].fixed_ips);
    assert_eq!(spec.remote_ports, []);

    cloud
        .refused(
            subnet(
                "blue",
                "fd00:3::/64",
                json!({ "ipv6_address_mode": "slaac" }),
            ),
            RefusalCode::Conflict,
            "before there are ports",
        )
        .await;
    for (name, addresses) in [("first", "10.0.0.0/24"), ("six", "fd00:1::/64")] {
        cloud
            .refused(
                SubnetDelete {
                    subnet: name.to_owned(),
                    project: Default::default(),
                },
                RefusalCode::Conflict,
                &format!("subnet {addresses} is used by 1 ports"),
            )
            .await;
    }
    cloud
        .refused(
            NetworkSet {
                network: "blue".to_owned(),
                mtu: Some(1400),
                ..NetworkSet::default()
            },
            RefusalCode::Conflict,
            "is used by 1 ports",
        )
        .await;
    let set: SubnetSet = serde_json::from_value(json!({
        "subnet": "first", "gateway_ip": "10.0.0.50",
    }))
    .unwrap();
    cloud
        .refused(set, RefusalCode::Conflict, "10.0.0.50 is used by a port")
        .await;
    let set: SubnetSet = serde_json::from_value(json!({
        "subnet": "first", "gateway_ip": null, "dns_nameservers": ["10.0.0.53"], "name": "renamed",
    }))
    .unwrap();
    let changed = cloud.ok(set).await;
    assert_eq!(changed.gateway_ip, None);
    let spec = network_spec(&mut host, bare.id, |spec| {
        spec.subnets[0].gateway_ip.is_none()
    })
    .await;
    assert_eq!(
        spec.subnets[0].dns_nameservers,
        [IpAddr::from([10, 0, 0, 53])]
    );

    // No host would build the network with it, for any guest.
    let short = subnet(
        "blue",
        "fd00:9::/56",
        json!({ "ipv6_address_mode": "dhcpv6-stateful" }),
    );
    let words = "with ipv6_address_mode dhcpv6-stateful the prefix must have at least 64 bits: fd00:9::/56 has 56";
    cloud.refused(short, RefusalCode::Invalid, words).await;
    let unused = cloud.ok(subnet("blue", "10.4.0.0/24", json!({}))).await;
    network_spec(&mut host, bare.id, |spec| spec.subnets.len() == 4).await;
    let gone = || SubnetDelete {
        subnet: unused.id.to_string(),
        project: Default::default(),
    };
    cloud.ok(gone()).await;
    cloud.ok(gone()).await;
    network_spec(&mut host, bare.id, |spec| spec.subnets.len() == 3).await;
    let set = NetworkSet {
        network: "blue".to_owned(),
        name: Some("red".parse().unwrap()),
        ..NetworkSet::default()
    };
    cloud.ok(set).await;
    network_spec(&mut host, bare.id, |spec| spec.name.as_str() == "red").await;
    let shown = cloud
        .ok(NetworkShow {
            network: "red".to_owned(),
            project: Default::default(),
        })
        .await;
    let listed = SubnetList {
        network: Some("red".to_owned()),
        project: None,
    };
    assert_eq!(cloud.ok(listed).await.subnets, shown.subnets);
    assert_eq!((shown.ports, shown.subnets.len()), (1, 3));
    assert_sound(&cloud).await;
}

/// The next document of a network that says so.
async fn network_spec(
    host: &mut Host,
    network: NetworkId,
    is: impl Fn(&NetworkSpec) -> bool,
) -> NetworkSpec {
    loop {
        let document = host.next().await;
        host.carry_out(&document, PowerState::Running).await;
        if let Document::Network(document) = document
            && document.id == network
            && let Some(spec) = document.spec
            && is(&spec)
        {
            return spec;
        }
    }
}

/// Waits until a host was told so of a network.
pub(crate) async fn told(
    cloud: &Cloud,
    host: &Host,
    network: NetworkId,
    what: &str,
    is: impl Fn(&NetworkSpec) -> bool,
) {
    let key = DocumentKey {
        kind: Kind::Network,
        id: network.as_uuid(),
    };
    wait_until(what, async || {
        let row = documents::get(cloud.pool(), host.id, key).await.unwrap();
        let spec = row.and_then(|row| row.spec_json);
        spec.is_some_and(|spec| is(&serde_json::from_str(&spec).unwrap()))
    })
    .await;
}

/// A host as one whose agent tells nothing of networks: it can filter for no port.
pub(crate) fn unable(host: &mut Host) {
    host.network = NetworkCapabilities::default();
}

/// What such a host lacks for a port with port security.
pub(crate) const NO_FILTER: &str = "needs connection tracking in bridges, for port security: its kernel lacks it \
                                    (nf_conntrack_bridge or br_netfilter)";

/// A host that can build every kind of network.
pub(crate) fn able(last: u8) -> impl FnOnce(&mut Host) {
    move |host| {
        host.network = NetworkCapabilities {
            vlan: true,
            vxlan: true,
            stateful_filter: true,
            tunnel_ip: Some(IpAddr::from([192, 0, 2, last])),
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_of_a_network_are_told_of_each_others_ports() {
    let cloud = Cloud::start().await;
    let mut one = Host::join_with(&cloud, "hv1", able(1)).await;
    let mut two = Host::join_with(&cloud, "hv2", able(2)).await;
    let wide = cloud
        .ok(of_type("wide", "vxlan", json!({ "cidr": "10.0.0.0/24" })))
        .await;
    let narrow = cloud.ok(network("narrow", "10.0.0.0/24")).await;
    let nics = json!([{ "network": "wide" }, { "network": "narrow" }]);
    let a = member("a", nics.clone(), Some("hv1"));
    let b = member("b", nics, Some("hv2"));
    cloud.ok(a.clone()).await;
    one.converge_instance(PowerState::Running).await;
    cloud.ok(b.clone()).await;
    two.converge_instance(PowerState::Running).await;

    let remote = |spec: &NetworkSpec| -> Vec<(String, String, Option<IpAddr>)> {
        spec.remote_ports
            .iter()
            .map(|port| {
                (
                    port.hostname.to_string(),
                    port.ip_addresses[0].to_string(),
                    port.tunnel_ip,
                )
            })
            .collect()
    };
    let at = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
    told(&cloud, &one, wide.id, "hv1 is told of b", |spec| {
        remote(spec) == [("b".to_owned(), "10.0.0.3".to_owned(), at(2))] && spec.ports.len() == 1
    })
    .await;
    told(&cloud, &two, wide.id, "hv2 is told of a", |spec| {
        remote(spec) == [("a".to_owned(), "10.0.0.1".to_owned(), at(1))]
    })
    .await;
    // It comes as a document, with a new generation.
    network_spec(&mut one, wide.id, |spec| remote(spec).len() == 1).await;
    told(
        &cloud,
        &one,
        narrow.id,
        "a local network ends at its host",
        |spec| spec.remote_ports.is_empty() && spec.ports.len() == 1,
    )
    .await;
    assert_sound(&cloud).await;

    two.network.tunnel_ip = at(22);
    two.tell(&cloud).await;
    told(&cloud, &one, wide.id, "hv1 knows where b is now", |spec| {
        remote(spec)[0].2 == at(22)
    })
    .await;
    let rename = serde_json::from_value::<berth_common::message::request::InstanceSet>(
        json!({ "instance": b.id, "name": "bee" }),
    );
    cloud.ok(rename.unwrap()).await;
    told(&cloud, &one, wide.id, "hv1 knows its name", |spec| {
        remote(spec)[0].0 == "bee"
    })
    .await;
    cloud.ok(delete(b.id)).await;
    // Until its host says that it is gone, it may still send.
    told(&cloud, &one, wide.id, "it is still there", |spec| {
        spec.remote_ports.len() == 1
    })
    .await;
    two.bury(&cloud, &[b.id]).await;
    told(&cloud, &one, wide.id, "it is gone", |spec| {
        spec.remote_ports.is_empty()
    })
    .await;
    assert_sound(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_goes_where_its_networks_can_be_built() {
    let cloud = Cloud::start_with(few_segments).await;
    let _plain = Host::join(&cloud, "plain").await;
    let _wired = Host::join_with(&cloud, "wired", |host| {
        host.physical_networks = vec!["physnet1".parse().unwrap()];
    })
    .await;
    let _untold = Host::join_with(&cloud, "untold", |host| host.network.vxlan = true).await;
    let _open = Host::join_with(&cloud, "open", unable).await;
    cloud.ok(of_type("vlan", "vlan", json!({}))).await;
    cloud.ok(of_type("vxlan", "vxlan", json!({}))).await;
    cloud.ok(network("local", "10.0.0.0/24")).await;
    let nowhere = async |network: &str, host: &str, words: &str| {
        let request = member(
            &format!("{network}-{host}"),
            json!([{ "network": network }]),
            Some(host),
        );
        let code = RefusalCode::NoValidHost;
        cloud.refused(request.clone(), code, "No valid host").await;
        let decisions = cloud.explain(request.id).await;
        let near = &decisions[0].nearest_misses[0];
        // Asked for the one host, the others are out for that; this one for its networks.
        assert_eq!((near.host.as_str(), near.reason.as_str()), (host, words));
        assert_eq!(near.filter, "network_reachability");
    };
    nowhere(
        "vlan",
        "plain",
        "needs physical network physnet1, it is connected to none",
    )
    .await;
    nowhere(
        "vlan",
        "wired",
        "needs VLANs: its kernel lacks them (802.1Q)",
    )
    .await;
    nowhere("vxlan", "wired", "needs VXLAN: its kernel lacks it").await;
    nowhere(
        "vxlan",
        "untold",
        "needs VXLAN: its agent's configuration lacks network.tunnel_ip",
    )
    .await;
    nowhere("local", "open", NO_FILTER).await;
    let unsecured = json!([{ "network": "local", "port_security_enabled": false }]);
    cloud.ok(member("unsecured", unsecured, Some("open"))).await;
    let anywhere = member("anywhere", json!([{ "network": "vxlan" }]), None);
    cloud
        .refused(anywhere.clone(), RefusalCode::NoValidHost, "network")
        .await;
    let decision = &cloud.explain(anywhere.id).await[0];
    assert!(
        decision.summary.contains("network_reachability removed 4"),
        "{}",
        decision.summary
    );
    let _able = Host::join_with(&cloud, "able", able(9)).await;
    cloud.ok(anywhere.clone()).await;
    assert_eq!(cloud.host_of(anywhere.id).await, "able");
}
