//! Plans for routers, and the transactions of their packet filter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{
        Desired, GatewayAddress, Ipv6AddressMode, Route, RouterFloatingIp, RouterGateway,
        RouterInterface, RouterSpec,
    },
    ids::{FloatingIpId, HostId, NetworkId, PortId, RouterId, SubnetId},
    message::report::FaultCode,
    units::Generation,
};
use uuid::Uuid;

use super::*;

const ROUTER: Uuid = Uuid::from_u128(0x0b5e_77e0_0000_7000_8000_0000_0000_0001);

fn network(n: u128) -> NetworkId {
    NetworkId::try_from(Uuid::from_u128(ROUTER.as_u128() + (n << 32))).unwrap()
}

fn router() -> RouterId {
    RouterId::try_from(ROUTER).unwrap()
}

fn interface(n: u8) -> RouterInterface {
    RouterInterface {
        network_id: network(u128::from(n)),
        subnet_id: SubnetId::new(),
        cidr: format!("10.0.{n}.0/24").parse().unwrap(),
        ip_address: IpAddr::from([10, 0, n, 1]),
        mac_address: format!("52:54:00:00:01:{n:02x}").parse().unwrap(),
        mtu: 1450,
        ipv6_address_mode: None,
    }
}

fn gateway() -> RouterGateway {
    RouterGateway {
        network_id: network(9),
        mac_address: "52:54:00:00:09:09".parse().unwrap(),
        addresses: vec![GatewayAddress {
            cidr: "198.51.100.0/24".parse().unwrap(),
            ip_address: Some(IpAddr::from([198, 51, 100, 20])),
            gateway_ip: Some(IpAddr::from([198, 51, 100, 1])),
        }],
        enable_snat: true,
        mtu: 1500,
    }
}

fn floating(outside: u8, inside: [u8; 4]) -> RouterFloatingIp {
    RouterFloatingIp {
        id: FloatingIpId::new(),
        floating_ip_address: IpAddr::from([198, 51, 100, outside]),
        fixed_ip_address: IpAddr::from(inside),
        port_id: PortId::new(),
    }
}

/// Two networks, a way out, a floating IP and a route.
fn spec() -> RouterSpec {
    RouterSpec {
        name: "router".parse().unwrap(),
        project: "default".parse().unwrap(),
        interfaces: vec![interface(1), interface(2)],
        external_gateway: Some(gateway()),
        floating_ips: vec![floating(50, [10, 0, 1, 10])],
        routes: vec![Route {
            destination: "192.0.2.0/24".parse().unwrap(),
            nexthop: IpAddr::from([10, 0, 2, 77]),
        }],
    }
}

fn desired(spec: Option<RouterSpec>) -> Desired<RouterId, RouterSpec> {
    Desired {
        id: router(),
        generation: Generation(1),
        host_id: HostId::new(),
        spec,
    }
}

/// A host with these bridges, and nothing of the router.
fn bare(networks: &[u128]) -> RouterObserved {
    RouterObserved {
        bridges: networks.iter().map(|n| network(*n)).collect(),
        ..RouterObserved::default()
    }
}

fn follow(observed: &mut RouterObserved, spec: Option<&RouterSpec>) -> RouterPlan {
    let plan = plan(&desired(spec.cloned()), observed);
    for step in &plan.steps {
        imagine(observed, step);
    }
    plan
}

fn built(spec: &RouterSpec) -> RouterObserved {
    let mut observed = bare(&[1, 2, 9]);
    follow(&mut observed, Some(spec));
    let again = plan(&desired(Some(spec.clone())), &observed);
    assert_eq!((again.steps, again.then), (vec![], RouterThen::Converged));
    observed
}

/// What changes when one document follows another.
fn change(from: &RouterSpec, to: &RouterSpec) -> Vec<RouterStep> {
    let mut observed = built(from);
    let plan = follow(&mut observed, Some(to));
    let again = super::plan(&desired(Some(to.clone())), &observed);
    assert_eq!((again.steps, again.then), (vec![], RouterThen::Converged));
    plan.steps
}

fn refusal(change: impl FnOnce(&mut RouterSpec)) -> Fault {
    let mut spec = spec();
    change(&mut spec);
    match plan(&desired(Some(spec)), &bare(&[1, 2, 9])).then {
        RouterThen::Refused(fault) => fault,
        then => panic!("{then:?}"),
    }
}

#[test]
fn the_plan_for_a_bare_host() {
    let plan = plan(&desired(Some(spec())), &bare(&[1, 2, 9]));
    let text: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn a_leg_waits_until_the_packet_filter_knows_it_and_one_that_is_there_stays() {
    let spec = spec();
    let leg = Leg::inside(router(), network(2));
    let mut observed = bare(&[1, 2, 9]);
    observed.unfiltered.insert(leg);
    let plan = follow(&mut observed, Some(&spec));
    assert_eq!(plan.then, RouterThen::Wait(network(2)));
    assert!(observed.link(leg.host_end()).is_none());
    // The others do not wait for it.
    for other in [
        Leg::inside(router(), network(1)),
        Leg::outside(router(), network(9)),
    ] {
        assert!(observed.link(other.host_end()).is_some(), "{other:?}");
    }
    observed.unfiltered.clear();
    let plan = follow(&mut observed, Some(&spec));
    assert_eq!(plan.then, RouterThen::Converged);
    assert_eq!(observed.link(leg.host_end()).unwrap().behind.len(), 1);

    // As after a start of the agent, before it has looked at the network.
    observed.unfiltered.insert(leg);
    let plan = follow(&mut observed, Some(&spec));
    assert_eq!((plan.steps, plan.then), (vec![], RouterThen::Converged));
    // What was in a bridge that is gone is not plugged in again before that.
    let bridge = observed.host_ends.get_mut(&leg.host_end()).unwrap();
    bridge.master = None;
    let plan = follow(&mut observed, Some(&spec));
    assert_eq!(
        (plan.steps, plan.then),
        (vec![], RouterThen::Wait(network(2)))
    );
}

#[test]
fn rules_with_everything() {
    let wanted = Wanted::of(router(), &spec()).unwrap();
    insta::assert_json_snapshot!(wanted.rules.transaction());
}

#[test]
fn rules_without_a_way_out() {
    let mut spec = spec();
    spec.external_gateway = None;
    spec.floating_ips.clear();
    let wanted = Wanted::of(router(), &spec).unwrap();
    insta::assert_json_snapshot!(wanted.rules.transaction());
}

#[test]
fn without_an_address_of_its_own_only_floating_ips_get_out() {
    let mut without = spec();
    without.external_gateway.as_mut().unwrap().addresses[0].ip_address = None;
    let wanted = Wanted::of(router(), &without).unwrap();
    assert_eq!(
        wanted.rules.outside.as_ref().unwrap().source,
        rules::Source::Dropped
    );
    // The subnet is still on the link, and the rest of the world behind the next router.
    let link = wanted.outside().unwrap().leg.namespace_end().name();
    for (destination, via) in [
        ("198.51.100.0/24", None),
        ("0.0.0.0/0", Some(IpAddr::from([198, 51, 100, 1]))),
    ] {
        assert!(wanted.routes.contains(&RouteEntry {
            destination: destination.parse().unwrap(),
            via,
            link: link.clone()
        }));
    }
    let mut kept = spec();
    kept.external_gateway.as_mut().unwrap().enable_snat = false;
    let wanted = Wanted::of(router(), &kept).unwrap();
    assert_eq!(wanted.rules.outside.unwrap().source, rules::Source::Kept);
}

#[test]
fn a_floating_ip_comes_with_three_steps_and_goes_with_its_flows() {
    let one = spec();
    let mut two = spec();
    two.floating_ips.push(floating(51, [10, 0, 2, 10]));
    let outside = Leg::outside(router(), network(9));
    let address = |n| ipnet::IpNet::from(IpAddr::from([198, 51, 100, n]));
    let names: Vec<_> = change(&one, &two).iter().map(RouterStep::name).collect();
    assert_eq!(
        names,
        [
            "set_router_rules",
            "add_router_address",
            "announce_addresses"
        ]
    );
    let told = change(&one, &two).into_iter().find_map(|step| match step {
        RouterStep::Announce { addresses, .. } => Some(addresses),
        _ => None,
    });
    assert_eq!(told, Some(BTreeSet::from([address(51).addr()])));

    // It goes while a connection to it is open, and one of another port that stays.
    let mut observed = built(&two);
    let flow = |outside: u8, inside| Translation {
        outside: [198, 51, 100, outside].into(),
        inside: std::net::Ipv4Addr::from(inside),
    };
    let (gone, stays) = (flow(51, [10, 0, 2, 10]), flow(20, [10, 0, 2, 11]));
    let RouterNamespace::Present(content) = &mut observed.namespace else {
        panic!("{observed:?}")
    };
    content.flows = [gone, stays, flow(50, [10, 0, 1, 10])].into();
    let plan = follow(&mut observed, Some(&one));
    let steps: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| !matches!(step, RouterStep::SetRules { .. }))
        .cloned()
        .collect();
    assert_eq!(
        steps,
        [
            RouterStep::RemoveAddress {
                leg: outside,
                address: address(51)
            },
            RouterStep::ForgetFlows {
                router: router(),
                flows: [gone].into()
            },
            RouterStep::Announce {
                leg: outside,
                mac: gateway().mac_address.octets(),
                addresses: BTreeSet::new(),
                announced: [address(20).addr(), address(50).addr()].into(),
            },
        ]
    );
}

#[test]
fn a_leg_waits_for_its_bridge_and_holds_up_nothing_else() {
    let spec = spec();
    let mut observed = bare(&[1]);
    let plan = follow(&mut observed, Some(&spec));
    assert_eq!(plan.then, RouterThen::Wait(network(2)));
    let content = observed.content().unwrap();
    let inside = Leg::inside(router(), network(1));
    assert_eq!(
        content.links.keys().collect::<Vec<_>>(),
        [&inside.namespace_end().name()]
    );
    assert!(content.unsettled.is_empty(), "what is there is routed");
    observed.bridges = [network(1), network(2), network(9)].into();
    let plan = follow(&mut observed, Some(&spec));
    assert_eq!(plan.then, RouterThen::Converged);
    assert_eq!(observed, built(&spec));
}

#[test]
fn subnets_of_one_network_share_a_leg() {
    let mut spec = spec();
    for (n, mode) in [
        (1, Some(Ipv6AddressMode::Slaac)),
        (2, Some(Ipv6AddressMode::Dhcpv6Stateful)),
        (3, None),
    ] {
        let mut more = interface(1);
        more.cidr = format!("fd00:{n}::/64").parse().unwrap();
        more.ip_address = format!("fd00:{n}::1").parse().unwrap();
        more.ipv6_address_mode = mode;
        spec.interfaces.push(more);
    }
    // Too wide to be advertised.
    let mut wide = interface(2);
    wide.cidr = "fd01::/48".parse().unwrap();
    wide.ip_address = "fd01::1".parse().unwrap();
    spec.interfaces.push(wide);
    let wanted = Wanted::of(router(), &spec).unwrap();
    assert_eq!(wanted.legs.len(), 3);
    let shared = &wanted.legs[0];
    assert_eq!(
        shared
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        [
            "10.0.1.1/24",
            "fd00:1::1/64",
            "fd00:2::1/64",
            "fd00:3::1/64"
        ]
    );
    insta::assert_snapshot!(wanted.advertiser.unwrap().config);
}

#[test]
fn what_no_host_can_do_is_refused_with_the_reason() {
    type Case = (fn(&mut RouterSpec), FaultCode, &'static str);
    let cases: [Case; 7] = [
        (
            |spec| spec.interfaces[0].ip_address = IpAddr::from([10, 0, 2, 1]),
            FaultCode::Network,
            "not one of subnet 10.0.1.0/24",
        ),
        (
            |spec| {
                spec.interfaces[1].cidr = "10.0.0.0/16".parse().unwrap();
            },
            FaultCode::Network,
            "overlap",
        ),
        (
            |spec| spec.external_gateway = None,
            FaultCode::Network,
            "floating IP 198.51.100.50 has no way out",
        ),
        (
            |spec| spec.routes[0].nexthop = IpAddr::from([172, 16, 0, 1]),
            FaultCode::Network,
            "next hop 172.16.0.1",
        ),
        (
            |spec| spec.floating_ips[0].floating_ip_address = "2001:db8::5".parse().unwrap(),
            FaultCode::Unsupported,
            "not of IPv4",
        ),
        (
            |spec| spec.external_gateway.as_mut().unwrap().network_id = network(1),
            FaultCode::Network,
            "both of its sides",
        ),
        (
            |spec| spec.interfaces[0].mtu = 100,
            FaultCode::Network,
            "MTU of 100",
        ),
    ];
    for (change, code, text) in cases {
        let fault = refusal(change);
        assert_eq!(fault.code, code, "{fault:?}");
        assert!(fault.message.contains(text), "{fault:?}");
    }
}

/// What documents tell of ports on other hosts.
fn told(ports: &[(u8, u8)]) -> BTreeMap<NetworkId, Neighbours> {
    let told = ports.iter().map(|(host, mac)| {
        let mac = [0x52, 0x54, 0, 0, 2, *mac];
        (IpAddr::from([10, 0, 2, *host]), mac)
    });
    // Of the external network too, where the router asks for itself.
    let outside = [(IpAddr::from([198, 51, 100, 77]), [2; 6])];
    [(network(2), told.collect()), (network(9), outside.into())].into()
}

#[test]
fn a_leg_is_told_of_ports_on_other_hosts_and_only_of_what_differs() {
    let spec = spec();
    let mut observed = built(&spec);
    let leg = Leg::inside(router(), network(2));
    let steps_for = |observed: &mut RouterObserved, ports: &[(u8, u8)]| -> Vec<String> {
        observed.neighbours = told(ports);
        let plan = follow(observed, Some(&spec));
        assert_eq!(plan.then, RouterThen::Converged);
        let again = super::plan(&desired(Some(spec.clone())), observed);
        assert_eq!(again.steps, []);
        let texts = plan.steps.iter().map(|step| match step {
            RouterStep::ChangeNeighbours {
                leg: it,
                set,
                unset,
            } => {
                assert_eq!(*it, leg);
                let set: Vec<String> = set
                    .iter()
                    .map(|(address, mac)| format!("{address} {}", mac[5]))
                    .collect();
                format!("+{set:?} -{unset:?}")
            }
            step => panic!("{step}"),
        });
        texts.collect()
    };
    assert_eq!(
        steps_for(&mut observed, &[(7, 7), (8, 8)]),
        [r#"+["10.0.2.7 7", "10.0.2.8 8"] -[]"#]
    );
    // Another Ethernet address, one that came here (its document tells of it no more), and a new one.
    assert_eq!(
        steps_for(&mut observed, &[(8, 9), (10, 10)]),
        [r#"+["10.0.2.8 9", "10.0.2.10 10"] -[10.0.2.7]"#]
    );
    // It goes back.
    assert_eq!(
        steps_for(&mut observed, &[(7, 7), (8, 9), (10, 10)]),
        [r#"+["10.0.2.7 7"] -[]"#]
    );
    assert_eq!(
        steps_for(&mut observed, &[]),
        ["+[] -[10.0.2.7, 10.0.2.8, 10.0.2.10]"]
    );
    assert_eq!(steps_for(&mut observed, &[]), Vec::<String>::new());
}

#[test]
fn with_its_last_address_a_leg_forgets_its_neighbours_and_is_told_again() {
    let mut spec = spec();
    let mut observed = built(&spec);
    observed.neighbours = told(&[(7, 7)]);
    follow(&mut observed, Some(&spec));
    spec.interfaces[1].ip_address = IpAddr::from([10, 0, 2, 254]);
    let plan = follow(&mut observed, Some(&spec));
    let names: Vec<_> = plan.steps.iter().map(RouterStep::name).collect();
    assert_eq!(
        names,
        [
            "remove_router_address",
            "add_router_address",
            "change_neighbours"
        ]
    );
    assert_eq!(super::plan(&desired(Some(spec)), &observed).steps, []);
}

#[test]
fn a_foreign_link_is_refused_and_left_alone() {
    let spec = spec();
    let mut observed = built(&spec);
    let link = Leg::inside(router(), network(2)).host_end();
    observed.host_ends.get_mut(&link).unwrap().alias = Some("somebody's".to_owned());
    let plan = super::plan(&desired(Some(spec)), &observed);
    assert!(
        matches!(&plan.then, RouterThen::Refused(fault) if fault.code == FaultCode::ForeignObject)
    );
    // A tombstone takes the rest.
    follow(&mut observed, None);
    assert_eq!(
        observed.host_ends.keys().copied().collect::<Vec<_>>(),
        [link]
    );
}

#[test]
fn what_broke_off_anywhere_is_finished_or_taken_down() {
    let spec = spec();
    let bare = |networks: &[u128]| RouterObserved {
        neighbours: told(&[(7, 7), (8, 8)]),
        ..bare(networks)
    };
    let mut whole = bare(&[1, 2, 9]);
    follow(&mut whole, Some(&spec));
    let mut bare_host = bare(&[1, 2, 9]);
    let steps = plan(&desired(Some(spec.clone())), &bare_host).steps;
    for cut in 0..=steps.len() {
        let mut cut_off = bare(&[1, 2, 9]);
        for step in &steps[..cut] {
            imagine(&mut cut_off, step);
            let once = cut_off.clone();
            imagine(&mut cut_off, step);
            assert_eq!(cut_off, once, "{step} twice");
        }
        let mut finished = cut_off.clone();
        follow(&mut finished, Some(&spec));
        assert_eq!(finished, whole, "after {cut} steps");
        follow(&mut cut_off, None);
        assert_eq!(cut_off, bare_host, "taken down after {cut} steps");
    }
    follow(&mut bare_host, None);
    assert_eq!(bare_host, bare(&[1, 2, 9]));
}

#[test]
fn a_leg_that_lost_an_end_is_made_anew_and_announced_again() {
    let spec = spec();
    let mut observed = built(&spec);
    let outside = Leg::outside(router(), network(9));
    observed.host_ends.remove(&outside.host_end());
    let plan = follow(&mut observed, Some(&spec));
    let names: Vec<_> = plan.steps.iter().map(RouterStep::name).collect();
    assert_eq!(
        names[..3],
        [
            "announce_addresses",
            "remove_router_link",
            "create_router_leg"
        ]
    );
    assert_eq!(names.last(), Some(&"announce_addresses"));
    assert_eq!(observed, built(&spec));
}

#[test]
fn a_leg_with_another_ethernet_address_is_announced_with_all_of_its_addresses() {
    let (before, mut after) = (spec(), spec());
    let gateway = after.external_gateway.as_mut().unwrap();
    gateway.mac_address = "02:00:00:00:00:99".parse().unwrap();
    let mut observed = built(&before);
    let plan = follow(&mut observed, Some(&after));
    let told = plan.steps.iter().rev().find_map(|step| match step {
        RouterStep::Announce { mac, addresses, .. } => Some((*mac, addresses.clone())),
        _ => None,
    });
    let all: BTreeSet<IpAddr> = [20, 50].map(|n| IpAddr::from([198, 51, 100, n])).into();
    assert_eq!(told, Some(([0x02, 0, 0, 0, 0, 0x99], all)));
    assert_eq!(observed, built(&after));
}

#[test]
fn the_name_of_a_leg_tells_of_router_network_and_side() {
    let legs = [
        Leg::inside(router(), network(1)),
        Leg::outside(router(), network(1)),
        Leg::inside(router(), network(2)),
        Leg::inside(RouterId::new(), network(1)),
    ];
    let links = legs.map(|leg| [leg.host_end(), leg.namespace_end()]);
    let names: BTreeSet<String> = links.concat().iter().map(|link| link.name()).collect();
    assert_eq!(names.len(), 8);
    assert!(names.iter().all(|name| name.len() == 15));
    for leg in legs {
        let link = leg.host_end();
        assert_eq!(Leg::of_host_end(&link.name(), &link.alias()), Some(leg));
        assert_eq!(Leg::of_host_end("eth0", &link.alias()), None);
    }
}
