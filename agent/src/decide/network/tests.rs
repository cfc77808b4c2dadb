//! Tests of the planner: against a model of the host, from any state it can be in.

use berth_common::{
    document::{FixedIp, Ipv6AddressMode, NetworkPort, NetworkType},
    ids::{HostId, PortId, SubnetId},
    units::Generation,
};
use proptest::prelude::*;

use super::{uplink::UplinkObserved, *};
use crate::decide::filter::FilterObserved;

pub(super) fn network() -> NetworkId {
    "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11".parse().unwrap()
}

pub(super) fn spec(ports: u8) -> NetworkSpec {
    let subnet: SubnetId = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12".parse().unwrap();
    let port = |n: u8| NetworkPort {
        id: format!("0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2b{n:02x}")
            .parse()
            .unwrap(),
        instance_id: format!("0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2c{n:02x}")
            .parse()
            .unwrap(),
        mac_address: format!("52:54:00:00:00:{n:02x}").parse().unwrap(),
        hostname: format!("vm{n}").parse().unwrap(),
        fixed_ips: vec![FixedIp {
            subnet_id: subnet,
            ip_address: IpAddr::from([10, 0, 0, 10 + n]),
        }],
        security: None,
        qos: berth_common::document::PortQos::default(),
        mirrors: Vec::new(),
    };
    NetworkSpec {
        name: "net".parse().unwrap(),
        project: "default".parse().unwrap(),
        network_type: NetworkType::Local,
        mtu: 1450,
        subnets: vec![SubnetSpec {
            id: subnet,
            cidr: "10.0.0.0/24".parse().unwrap(),
            gateway_ip: None,
            dhcp_ip: Some(IpAddr::from([10, 0, 0, 2])),
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            ipv6_address_mode: None,
        }],
        ports: (0..ports).map(port).collect(),
        physical_network: None,
        segmentation_id: None,
        remote_ports: Vec::new(),
        security_groups: Vec::new(),
        group_members: std::collections::BTreeMap::new(),
    }
}

pub(super) fn desired(spec: Option<NetworkSpec>) -> Desired<NetworkId, NetworkSpec> {
    Desired {
        id: network(),
        generation: Generation(1),
        host_id: HostId::new(),
        spec,
    }
}

pub(super) fn is_ready(
    desired: &Desired<NetworkId, NetworkSpec>,
    observed: &NetworkObserved,
) -> bool {
    let plan = plan(desired, observed);
    plan.steps.is_empty() && plan.then == NetThen::Converged
}

pub(super) fn carried_out(observed: &NetworkObserved, steps: &[NetStep]) -> NetworkObserved {
    let mut after = observed.clone();
    steps.iter().for_each(|step| imagine(&mut after, step));
    after
}

fn built(spec: &NetworkSpec) -> NetworkObserved {
    let nothing = NetworkObserved::default();
    carried_out(
        &nothing,
        &plan(&desired(Some(spec.clone())), &nothing).steps,
    )
}

pub(super) fn names_of(steps: &[NetStep]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn a_network_is_built_in_this_order() {
    let plan = plan(&desired(Some(spec(1))), &NetworkObserved::default());
    let [bridge, host, inside] =
        [Link::bridge, Link::veth_host, Link::veth_namespace].map(|link| link(network()).name());
    assert_eq!(
        names_of(&plan.steps),
        [
            "change its packet filter (7 objects, and those of the host)".to_owned(),
            "write the files of its DHCP server".to_owned(),
            "write who may ask its metadata service".to_owned(),
            format!("make bridge {bridge}"),
            format!("give link {bridge} its alias"),
            format!("set the IP switches of link {bridge}"),
            format!("switch link {bridge} on"),
            "make its namespace".to_owned(),
            format!("make veth pair {host}"),
            format!("give link {host} its alias"),
            format!("set the IP switches of link {host}"),
            format!("put link {host} into bridge {bridge}"),
            format!("give link {inside} its alias"),
            format!("set the IP switches of link {inside}"),
            format!(
                "change the addresses of link {inside}: +10.0.0.2/24 +169.254.169.254/32 +fe80::a9fe:a9fe/64"
            ),
            format!("switch link {host} on"),
            format!("switch link {inside} on"),
            "start its DHCP server".to_owned(),
            "start its metadata service".to_owned(),
        ]
    );
    assert_eq!(plan.then, NetThen::Converged);
}

#[test]
fn a_network_is_taken_down_in_this_order() {
    let plan = plan(&desired(None), &built(&spec(1)));
    let [bridge, host] = [Link::bridge, Link::veth_host].map(|link| link(network()).name());
    assert_eq!(
        names_of(&plan.steps),
        [
            "stop its metadata service".to_owned(),
            "stop its DHCP server".to_owned(),
            format!("remove veth pair {host}"),
            "remove its namespace".to_owned(),
            format!("remove bridge {bridge}"),
            "remove its files".to_owned(),
            "change its packet filter (7 objects, and those of the host unless others need them)"
                .to_owned(),
        ]
    );
    assert_eq!(
        (plan.then, plan.on_error),
        (NetThen::Gone, OnError::CarryOn)
    );
}

#[test]
fn a_tombstone_waits_for_the_taps() {
    let mut observed = built(&spec(1));
    observed.members.insert("btt000000000001".to_owned());
    let plan = plan(&desired(None), &observed);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.then, NetThen::Wait(NetWait::Members(observed.members)));
}

#[test]
fn a_port_is_gone_when_its_tap_is_and_what_is_no_tap_of_ours_does_not_count() {
    let spec = spec(1);
    let wanted = desired(Some(spec.clone()));
    let mut observed = built(&spec);
    observed.members.insert(names::tap(spec.ports[0].id));
    observed.members.insert("tap0".to_owned());
    assert!(is_ready(&wanted, &observed));
    let old = "btt000000000001".to_owned();
    observed.members.insert(old.clone());
    let plan = plan(&wanted, &observed);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.then, NetThen::Wait(NetWait::Members([old].into())));
}

#[test]
fn wrong_things_are_mended_in_place() {
    let spec = spec(1);
    let wanted = desired(Some(spec.clone()));
    let check = |spoil: &dyn Fn(&mut NetworkObserved), expected: &[NetStep]| {
        let mut observed = built(&spec);
        observed.members.insert(names::tap(spec.ports[0].id));
        assert!(is_ready(&wanted, &observed));
        spoil(&mut observed);
        assert!(!is_ready(&wanted, &observed));
        assert_eq!(plan(&wanted, &observed).steps, expected);
    };
    let bridge = Link::bridge(network());
    check(
        &|now| now.bridge.as_mut().unwrap().mtu = 1500,
        &[NetStep::SetMtu {
            link: bridge,
            mtu: 1450,
        }],
    );
    check(
        &|now| now.bridge.as_mut().unwrap().up = false,
        &[NetStep::SetUp(bridge)],
    );
    check(
        &|now| now.bridge.as_mut().unwrap().bridge.as_mut().unwrap().stp = true,
        &[NetStep::SetBridgeOptions(network())],
    );
    check(
        &|now| now.veth_host.as_mut().unwrap().master = None,
        &[NetStep::Plug(BridgePort::Veth(network()))],
    );
    check(
        &|now| now.veth_host.as_mut().unwrap().master = Some("br0".to_owned()),
        &[NetStep::Plug(BridgePort::Veth(network()))],
    );
    check(
        &|now| now.dhcp.process = None,
        &[NetStep::StartDhcp(network())],
    );
    check(
        &|now| now.dhcp.process.as_mut().unwrap().loaded = None,
        &[NetStep::StopDhcp(network()), NetStep::StartDhcp(network())],
    );
    let stray: IpNet = "10.0.0.99/24".parse().unwrap();
    check(
        &|now| {
            if let NamespaceObserved::Present(content) = &mut now.namespace {
                content.addresses.remove(&"10.0.0.2/24".parse().unwrap());
                content.addresses.insert(stray);
            }
        },
        &[NetStep::ChangeAddresses {
            network: network(),
            remove: BTreeSet::from([stray]),
            add: BTreeSet::from(["10.0.0.2/24".parse().unwrap()]),
        }],
    );
}

#[test]
fn taps_of_the_networks_ports_go_back_into_a_bridge_that_was_made_anew() {
    let spec = spec(2);
    let wanted = desired(Some(spec.clone()));
    let [running, off] = [0, 1].map(|n| spec.ports[n].id);
    let of_another_network = super::super::names::tap(PortId::new());
    let tap = super::super::names::tap(running);
    let plugged = NetStep::PlugTaps {
        network: network(),
        ports: BTreeSet::from([running]),
    };
    let whole = NetworkObserved {
        members: BTreeSet::from([tap.clone()]),
        stray_taps: BTreeSet::from([of_another_network.clone()]),
        ..built(&spec)
    };
    assert!(
        is_ready(&wanted, &whole),
        "no tap of port {off} is no drift"
    );

    let mut observed = whole.clone();
    (observed.bridge, observed.members) = (None, BTreeSet::new());
    observed.veth_host.as_mut().unwrap().master = None;
    observed.stray_taps.insert(tap.clone());
    let steps = plan(&wanted, &observed).steps;
    let at = |wanted: &NetStep| steps.iter().position(|step| step == wanted);
    let on = at(&NetStep::SetUp(Link::bridge(network())));
    assert!(on.is_some() && on < at(&plugged), "{steps:?}");
    assert_eq!(carried_out(&observed, &steps), whole);

    // It is the same for a network without addresses.
    let bare = NetworkSpec {
        subnets: Vec::new(),
        ports: spec
            .ports
            .iter()
            .map(|port| NetworkPort {
                fixed_ips: Vec::new(),
                ..port.clone()
            })
            .collect(),
        ..spec
    };
    let steps = plan(&desired(Some(bare)), &observed).steps;
    assert!(steps.contains(&plugged), "{steps:?}");
}

#[test]
fn many_taps_go_back_in_steps_that_can_be_broken_off_between() {
    let at_once = NetStep::TAPS_AT_ONCE;
    let spec = spec(u8::try_from(2 * at_once + 1).unwrap());
    let taps = spec
        .ports
        .iter()
        .map(|port| super::super::names::tap(port.id));
    let observed = NetworkObserved {
        stray_taps: taps.collect(),
        ..built(&spec)
    };
    let steps = plan(&desired(Some(spec.clone())), &observed).steps;
    let counts: Vec<usize> = steps
        .iter()
        .map(|step| match step {
            NetStep::PlugTaps { ports, .. } => ports.len(),
            step => panic!("{step:?}"),
        })
        .collect();
    assert_eq!(counts, [at_once, at_once, 1]);
    let there = carried_out(&observed, &steps);
    assert!(there.stray_taps.is_empty());
    assert_eq!(there.members.len(), spec.ports.len());
}

#[test]
fn new_ports_are_told_and_gone_ones_start_dhcp_afresh() {
    let one = built(&spec(1));
    let more = plan(&desired(Some(spec(2))), &one);
    assert!(
        matches!(
            more.steps[..],
            [
                NetStep::Filter(_),
                NetStep::WriteDhcp { .. },
                NetStep::Metadata(MetadataStep::WriteSources { .. }),
                NetStep::ReloadDhcp(_)
            ]
        ),
        "{more:?}"
    );
    let fewer = plan(&desired(Some(spec(0))), &one);
    assert!(
        matches!(
            fewer.steps[..],
            [
                NetStep::Filter(_),
                NetStep::WriteDhcp { .. },
                NetStep::StopDhcp(_),
                NetStep::Metadata(MetadataStep::WriteSources { .. }),
                NetStep::StartDhcp(_)
            ]
        ),
        "{fewer:?}"
    );
}

#[test]
fn a_new_name_is_told_without_starting_anything_afresh() {
    let before = spec(1);
    let mut after = before.clone();
    after.ports[0].hostname = "other".parse().unwrap();
    let mut far = before.clone();
    far.remote_ports = vec![berth_common::document::RemotePort {
        mac_address: "52:54:00:00:00:99".parse().unwrap(),
        hostname: "far".parse().unwrap(),
        ip_addresses: vec![IpAddr::from([10, 0, 0, 99])],
        tunnel_ip: None,
    }];
    let told = plan(&desired(Some(far)), &built(&before)).steps;
    assert!(
        matches!(
            told[..],
            [NetStep::WriteDhcp { .. }, NetStep::ReloadDhcp(_)]
        ),
        "{told:?}"
    );
    // The name of a port of its own is what DHCP tells it as well: that is kept with the lease.
    let renamed = plan(&desired(Some(after)), &built(&before)).steps;
    assert!(
        renamed.contains(&NetStep::StopDhcp(network())),
        "{renamed:?}"
    );
}

#[test]
fn a_metadata_service_that_is_not_as_it_should_be_is_started_afresh() {
    let wanted = desired(Some(spec(1)));
    let restart = [
        MetadataStep::Stop(network()),
        MetadataStep::Start(network()),
    ];
    let restart = restart.map(NetStep::Metadata);
    let check = |spoil: &dyn Fn(&mut MetadataProcess), expected: &[NetStep]| {
        let mut observed = built(&spec(1));
        spoil(observed.metadata.process.as_mut().unwrap());
        assert_eq!(plan(&wanted, &observed).steps, expected);
    };
    check(&|_| {}, &[]);
    check(&|process| process.is_current = false, &restart);
    check(&|process| process.in_namespace = false, &restart);
    let mut observed = built(&spec(1));
    observed.metadata.process = None;
    assert_eq!(plan(&wanted, &observed).steps, restart[1..]);
    // It listens on the link, which is another one now.
    let mut observed = built(&spec(1));
    observed.veth_host = None;
    let steps = plan(&wanted, &observed).steps;
    assert!(restart.iter().all(|step| steps.contains(step)), "{steps:?}");
}

#[test]
fn a_kernel_without_ipv6_has_networks_of_ipv4() {
    let without = NetworkObserved {
        lacks_ipv6: true,
        ..NetworkObserved::default()
    };
    let mut spec = spec(1);
    let after = carried_out(
        &without,
        &plan(&desired(Some(spec.clone())), &without).steps,
    );
    assert!(is_ready(&desired(Some(spec.clone())), &after));
    let addresses = &after.content().unwrap().addresses;
    assert!(
        addresses.iter().all(|address| address.addr().is_ipv4()),
        "{addresses:?}"
    );
    spec.subnets.push(SubnetSpec {
        id: SubnetId::new(),
        cidr: "fd00::/64".parse().unwrap(),
        dhcp_ip: Some("fd00::2".parse().unwrap()),
        ..spec.subnets[0].clone()
    });
    let refused = plan(&desired(Some(spec)), &without);
    assert!(
        matches!(&refused.then, NetThen::Refused(fault) if fault.message.contains("has no IPv6")),
        "{refused:?}"
    );
}

#[test]
fn a_network_whose_subnets_are_not_served_has_no_namespace() {
    let mut unserved = spec(1);
    unserved.subnets[0].dhcp_ip = None;
    let after = built(&unserved);
    assert_eq!(after.namespace, NamespaceObserved::Absent);
    assert!(after.bridge.is_some());
}

#[test]
fn a_link_of_somebody_else_is_refused_and_left_alone() {
    let whole = built(&spec(1));
    let check = |spoil: &dyn Fn(&mut LinkObserved), owner: Owner| {
        let mut observed = whole.clone();
        spoil(observed.bridge.as_mut().unwrap());
        assert_eq!(
            observed
                .bridge
                .as_ref()
                .unwrap()
                .owner(Link::bridge(network())),
            owner
        );
        let build = plan(&desired(Some(spec(1))), &observed);
        let remove = plan(&desired(None), &observed).steps;
        if owner == Owner::Foreign {
            assert!(
                matches!(
                    build.then,
                    NetThen::Refused(Fault {
                        code: FaultCode::ForeignObject,
                        ..
                    })
                ),
                "{build:?}"
            );
            assert_eq!(build.steps, []);
            assert!(!remove.contains(&NetStep::DeleteBridge(network())));
        } else {
            assert_eq!(build.then, NetThen::Converged);
            assert!(remove.contains(&NetStep::DeleteBridge(network())));
        }
    };
    check(&|_| {}, Owner::Berth);
    check(&|link| link.alias = None, Owner::Unmarked);
    check(
        &|link| link.alias = Some("berth bridge of another".to_owned()),
        Owner::Foreign,
    );
    check(
        &|link| (link.alias, link.mac) = (None, Some([2, 0, 0, 0, 0, 1])),
        Owner::Foreign,
    );
    check(&|link| link.kind = "dummy".to_owned(), Owner::Foreign);
}

#[test]
fn impossible_documents_are_refused() {
    let check = |spoil: &dyn Fn(&mut NetworkSpec), expected: &str| {
        let mut spec = spec(2);
        spoil(&mut spec);
        match plan(&desired(Some(spec)), &NetworkObserved::default()) {
            NetPlan {
                steps,
                then: NetThen::Refused(fault),
                ..
            } => {
                assert_eq!(steps, []);
                assert!(fault.message.contains(expected), "{}", fault.message);
            }
            plan => panic!("{plan:?}"),
        }
    };
    check(&|spec| spec.mtu = 500, "at least 576");
    check(
        &|spec| spec.subnets[0].dhcp_ip = Some(IpAddr::from([10, 0, 1, 2])),
        "not one of subnet 10.0.0.0/24",
    );
    let six = |spec: &mut NetworkSpec, cidr: &str, dhcp_ip: &str, mode| {
        spec.subnets.push(SubnetSpec {
            id: SubnetId::new(),
            cidr: cidr.parse().unwrap(),
            dhcp_ip: Some(dhcp_ip.parse().unwrap()),
            ipv6_address_mode: Some(mode),
            ..spec.subnets[0].clone()
        });
    };
    check(
        &|spec| six(spec, "fd00::/80", "fd00::2", Ipv6AddressMode::Slaac),
        "must have 64 bits, the rest is the guest's: fd00::/80 has 80",
    );
    check(
        &|spec| {
            six(
                spec,
                "fd00::/56",
                "fd00::2",
                Ipv6AddressMode::Dhcpv6Stateful,
            )
        },
        "must have at least 64 bits: fd00::/56 has 56",
    );
    check(
        &|spec| six(spec, "10.1.0.0/24", "10.1.0.2", Ipv6AddressMode::Slaac),
        "is for IPv6, and 10.1.0.0/24 is not",
    );
    check(
        &|spec| spec.ports[0].fixed_ips[0].subnet_id = SubnetId::new(),
        "which is unknown",
    );
    check(
        &|spec| spec.ports[0].fixed_ips[0].ip_address = IpAddr::from([10, 0, 1, 9]),
        "not one of subnet",
    );
    check(
        &|spec| spec.ports[0].fixed_ips[0].ip_address = IpAddr::from([10, 0, 0, 2]),
        "in use twice",
    );
    check(
        &|spec| spec.ports[0].fixed_ips[0].ip_address = spec.ports[1].fixed_ips[0].ip_address,
        "in use twice",
    );
}

/// All the settings that a link may have but these.
fn unsettled(link: Link, settled: &[LinkSetting]) -> BTreeSet<LinkSetting> {
    let possible = link.possible_settings().iter().copied();
    possible
        .filter(|setting| !settled.contains(setting))
        .collect()
}

prop_compose! {
    /// Any of our own links in any condition, or none.
    pub(super) fn any_link(link: Link)(
        there in any::<bool>(),
        marked in any::<bool>(),
        mtu in prop::sample::select(vec![1450_u32, 1500]),
        up in any::<bool>(),
        master in prop::sample::select(vec![None, Some("br0".to_owned()), Some(Link::bridge(network()).name())]),
        settled in any::<bool>(),
        stp in any::<bool>(),
    ) -> Option<LinkObserved> {
        there.then(|| LinkObserved {
            kind: link.kind().to_owned(),
            alias: marked.then(|| link.alias()),
            mac: Some(link.mac()),
            mtu,
            up,
            master: matches!(link.role, Role::VethHost | Role::Vlan | Role::Vxlan).then_some(master).flatten(),
            unsettled: unsettled(link, if settled { link.settings() } else { &[] }),
            bridge: (link.role == Role::Bridge).then_some(BridgeOptions { stp, ..BridgeOptions::WANTED }),
        })
    }
}

prop_compose! {
    /// Any state of a host in which nothing is somebody else's.
    pub(super) fn any_observed()(
        bridge in any_link(Link::bridge(network())),
        veth_host in any_link(Link::veth_host(network())),
        inside in any_link(Link::veth_namespace(network())),
        namespace in 0..4_u8,
        addresses in prop::sample::subsequence(vec!["10.0.0.2/24", "10.0.0.3/24", "169.254.169.254/32"], 0..=3),
        files in prop::option::of(0..3_u8),
        process in prop::option::of((prop::option::of(0..3_u8), any::<bool>())),
        sources in prop::option::of(0..3_u8),
        service in prop::option::of((any::<bool>(), any::<bool>())),
        directory in any::<bool>(),
    ) -> NetworkObserved {
        let files_of = |ports| dhcp::files(network(), &spec(ports));
        let addresses = if inside.is_some() { addresses } else { Vec::new() };
        let content = NamespaceContent {
            loopback_up: namespace == 3,
            veth: inside,
            addresses: addresses.into_iter().map(|address| address.parse().unwrap()).collect(),
        };
        NetworkObserved {
            bridge,
            veth_host,
            members: BTreeSet::new(),
            stray_taps: BTreeSet::new(),
            namespace: match namespace {
                0 => NamespaceObserved::Absent,
                1 => NamespaceObserved::Empty,
                _ => NamespaceObserved::Present(content),
            },
            tc: tc::TcObserved::default(),
            dhcp: DhcpObserved {
                directory: directory || files.is_some() || sources.is_some(),
                files: files.map(files_of),
                process: process.map(|(loaded, inside)| DhcpProcess {
                    loaded: loaded.map(files_of),
                    in_namespace: inside && namespace > 1,
                }),
            },
            uplink: UplinkObserved::default(),
            filter: FilterObserved::default(),
            metadata: MetadataObserved {
                sources: sources.map(|ports| guests_metadata::sources_text(&spec(ports))),
                process: service.map(|(is_current, inside)| MetadataProcess {
                    is_current,
                    in_namespace: inside && namespace > 1,
                }),
            },
            lacks_ipv6: false,
        }
    }
}

fn any_desired() -> impl Strategy<Value = Desired<NetworkId, NetworkSpec>> {
    prop_oneof![
        Just(desired(None)),
        (0..3_u8).prop_map(|ports| desired(Some(spec(ports)))),
        Just(desired(Some(NetworkSpec {
            subnets: Vec::new(),
            ..spec(0)
        }))),
    ]
}

proptest! {
    /// Once a plan is carried out there is nothing left to do, and the host is as the document says.
    #[test]
    fn a_carried_out_plan_leaves_nothing_to_do(observed in any_observed(), desired in any_desired()) {
        let first = plan(&desired, &observed);
        let after = carried_out(&observed, &first.steps);
        let second = plan(&desired, &after);
        prop_assert_eq!(&second.steps, &Vec::new());
        prop_assert_eq!(&second.then, &first.then);
        match &desired.spec {
            None => prop_assert_eq!(after, NetworkObserved::default()),
            Some(spec) => {
                prop_assert!(is_ready(&desired, &after));
                prop_assert_eq!(after, built(spec));
            }
        }
    }

    /// Broken off after any step, from any state, even towards another document: the next plan gets there.
    #[test]
    fn a_plan_broken_off_anywhere_is_made_good_by_the_next(
        observed in any_observed(),
        before in any_desired(),
        desired in any_desired(),
        cut in any::<prop::sample::Index>(),
    ) {
        let steps = plan(&before, &observed).steps;
        let broken_off = carried_out(&observed, &steps[..cut.index(steps.len() + 1)]);
        let after = carried_out(&broken_off, &plan(&desired, &broken_off).steps);
        let expected = desired.spec.as_ref().map_or_else(NetworkObserved::default, built);
        prop_assert_eq!(after, expected);
    }

    /// A step that was carried out already does no harm.
    #[test]
    fn every_step_can_be_repeated(observed in any_observed(), desired in any_desired()) {
        let mut once = observed.clone();
        let mut twice = observed.clone();
        for step in plan(&desired, &observed).steps {
            imagine(&mut once, &step);
            imagine(&mut twice, &step);
            imagine(&mut twice, &step);
        }
        prop_assert_eq!(once, twice);
    }
}
