//! Tests of uplinks: every kind, from any state of a host, towards any other kind.

use std::collections::BTreeMap;

use berth_common::{
    document::{Desired, RemotePort},
    ids::SubnetId,
    names::PhysicalNetworkName,
};
use proptest::prelude::*;

use super::{
    super::{
        LinkObserved, NetPlan, NetThen, OnError, imagine as step_done, plan,
        tests::{any_link, any_observed, carried_out, desired, is_ready, names_of, network, spec},
    },
    nat::NatShape,
    *,
};
use crate::decide::filter::nft::Family;

const LOCAL: [u8; 4] = [192, 0, 2, 1];

fn physical(n: u8) -> PhysicalNetworkName {
    format!("physnet{n}").parse().unwrap()
}

fn nic_name(n: u8) -> LinkName {
    format!("eth{n}").parse().unwrap()
}

fn found_nic() -> NicFound {
    NicFound {
        mac: Some([0x52, 0x54, 0, 1, 1, 1]),
        mtu: 1500,
        up: true,
        master: None,
        addresses: BTreeSet::new(),
    }
}

fn addresses(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A host with two NICs of physical networks, an address for VXLANs, and a way out that forwards nothing.
fn host() -> HostUplinks {
    let nic = |n: u8| Nic {
        name: nic_name(n),
        found: Some(found_nic()),
    };
    HostUplinks {
        nics: BTreeMap::from([(physical(1), nic(1)), (physical(2), nic(2))]),
        tunnel: Some(Tunnel {
            local: LOCAL.into(),
            port: 4789,
            carrier: Some(Carrier {
                name: "eth0".to_owned(),
                mtu: 1500,
            }),
        }),
        outward: BTreeMap::from([("eth0".to_owned(), Forwards::No)]),
        addresses: BTreeMap::from([("eth0".to_owned(), addresses(&["192.0.2.1/24"]))]),
        ..HostUplinks::default()
    }
}

fn on_host() -> NetworkObserved {
    let mut observed = NetworkObserved::default();
    observed.uplink.host = host();
    observed
}

fn remote(n: u8, host: u8) -> RemotePort {
    RemotePort {
        mac_address: format!("52:54:00:00:01:{n:02x}").parse().unwrap(),
        hostname: format!("far{n}").parse().unwrap(),
        ip_addresses: Vec::new(),
        tunnel_ip: Some(IpAddr::from([192, 0, 2, host])),
    }
}

fn of_type(network_type: NetworkType) -> NetworkSpec {
    let mut spec = spec(1);
    spec.network_type = network_type;
    spec.subnets[0].gateway_ip = Some([10, 0, 0, 1].into());
    match network_type {
        NetworkType::Local | NetworkType::Nat => {}
        NetworkType::Flat => spec.physical_network = Some(physical(1)),
        NetworkType::Vlan => {
            spec.physical_network = Some(physical(1));
            spec.segmentation_id = Some(10);
        }
        NetworkType::Vxlan => {
            spec.segmentation_id = Some(7777);
            spec.remote_ports = vec![remote(1, 2), remote(2, 2), remote(3, 3)];
        }
    }
    spec
}

fn built(spec: &NetworkSpec) -> NetworkObserved {
    carried_out(
        &on_host(),
        &plan(&desired(Some(spec.clone())), &on_host()).steps,
    )
}

fn fault_of(spec: NetworkSpec, observed: &NetworkObserved) -> Fault {
    match plan(&desired(Some(spec)), observed) {
        NetPlan {
            steps,
            then: NetThen::Refused(fault),
            ..
        } => {
            assert_eq!(steps, []);
            fault
        }
        plan => panic!("{plan:?}"),
    }
}

fn uplink_steps(spec: &NetworkSpec, observed: &NetworkObserved) -> Vec<String> {
    let plan = plan(&desired(Some(spec.clone())), observed);
    let link = |step: &&NetStep| {
        let names = [Link::vlan(network()).name(), Link::vxlan(network()).name()];
        let text = step.to_string();
        matches!(step, NetStep::Uplink(_)) || names.iter().any(|name| text.contains(name))
    };
    names_of(&plan.steps.iter().filter(link).cloned().collect::<Vec<_>>())
}

#[test]
fn each_kind_is_built_in_this_order() {
    let bridge = Link::bridge(network()).name();
    let [vlan, vxlan] = [Link::vlan, Link::vxlan].map(|link| link(network()).name());
    let check = |network_type, expected: &[String]| {
        let spec = of_type(network_type);
        assert_eq!(uplink_steps(&spec, &on_host()), expected);
        assert!(is_ready(&desired(Some(spec.clone())), &built(&spec)));
    };
    check(NetworkType::Local, &[]);
    check(
        NetworkType::Nat,
        &[
            format!("translate the addresses of bridge {bridge}"),
            format!("give bridge {bridge} the address 10.0.0.1/24"),
        ],
    );
    check(
        NetworkType::Flat,
        &[format!("put NIC eth1 into bridge {bridge}")],
    );
    check(
        NetworkType::Vlan,
        &[
            format!("make link {vlan} for VLAN 10 of eth1"),
            format!("give link {vlan} its alias"),
            format!("set the IP switches of link {vlan}"),
            format!("put link {vlan} into bridge {bridge}"),
            format!("switch link {vlan} on"),
        ],
    );
    check(
        NetworkType::Vxlan,
        &[
            format!("make link {vxlan} for VNI 7777 from 192.0.2.1 on UDP port 4789"),
            format!("give link {vxlan} its alias"),
            format!("set the IP switches of link {vxlan}"),
            format!("put link {vxlan} into bridge {bridge}"),
            format!("keep bridge {bridge} from learning from link {vxlan}"),
            format!("put 8 entries into the forwarding table of link {vxlan} and take 0 out"),
            format!("switch link {vxlan} on"),
        ],
    );
}

#[test]
fn a_network_is_taken_down_before_its_bridge_goes() {
    let last_steps = |spec: &NetworkSpec| {
        let plan = plan(&desired(None), &built(spec));
        assert_eq!(plan.then, NetThen::Gone);
        let mut names = names_of(&plan.steps);
        let last = names.pop().unwrap();
        assert!(last.starts_with("change its packet filter"), "{last}");
        names.split_off(4)
    };
    let bridge = Link::bridge(network()).name();
    let end = |first: &[String]| {
        let rest = [
            format!("remove bridge {bridge}"),
            "remove its files".to_owned(),
        ];
        [first, &rest].concat()
    };
    assert_eq!(
        last_steps(&of_type(NetworkType::Nat)),
        end(&[
            format!("take the address 10.0.0.1/24 from bridge {bridge}"),
            format!(
                "no longer translate the addresses of bridge {bridge}, and close what nobody else needs"
            ),
        ])
    );
    assert_eq!(
        last_steps(&of_type(NetworkType::Flat)),
        end(&[format!("take NIC eth1 out of bridge {bridge}")])
    );
    let vxlan = Link::vxlan(network()).name();
    assert_eq!(
        last_steps(&of_type(NetworkType::Vxlan)),
        end(&[format!("remove link {vxlan}")])
    );
}

#[test]
fn forwarding_tables_change_by_what_differs() {
    let before = of_type(NetworkType::Vxlan);
    let observed = built(&before);
    let check = |remotes: Vec<RemotePort>, add: &[FdbEntry], remove: &[FdbEntry]| {
        let spec = NetworkSpec {
            remote_ports: remotes,
            ..before.clone()
        };
        let steps = plan(&desired(Some(spec.clone())), &observed).steps;
        let expected = NetStep::Uplink(UplinkStep::ChangeFdb {
            network: network(),
            add: add.to_vec(),
            remove: remove.to_vec(),
        });
        // Who may send is asked before anybody is expected to.
        let filters = |spec: &NetworkSpec| -> BTreeSet<IpAddr> {
            let ports = spec.remote_ports.iter();
            ports.filter_map(|port| port.tunnel_ip).collect()
        };
        let (last, others) = steps.split_last().unwrap();
        assert_eq!(*last, expected);
        let changes = usize::from(filters(&spec) != filters(&before));
        assert_eq!(others.len(), changes);
        assert!(others.iter().all(|it| matches!(it, NetStep::Filter(_))));
        assert!(is_ready(
            &desired(Some(spec)),
            &carried_out(&observed, &steps)
        ));
    };
    let mac = |n: u8| remote(n, 0).mac_address.octets();
    let at = |host: u8| IpAddr::from([192, 0, 2, host]);
    // One more guest on a host that is known, and one on a new host.
    check(
        vec![remote(1, 2), remote(2, 2), remote(3, 3), remote(4, 3)],
        &[
            FdbEntry::Remote {
                mac: mac(4),
                host: at(3),
            },
            FdbEntry::Bridge(mac(4)),
        ],
        &[],
    );
    // The last guest of a host left.
    check(
        vec![remote(1, 2), remote(2, 2)],
        &[],
        &[
            FdbEntry::Flood(at(3)),
            FdbEntry::Remote {
                mac: mac(3),
                host: at(3),
            },
            FdbEntry::Bridge(mac(3)),
        ],
    );
    // A guest moved: its new place takes out the old one.
    check(
        vec![remote(1, 3), remote(2, 2), remote(3, 3)],
        &[FdbEntry::Remote {
            mac: mac(1),
            host: at(3),
        }],
        &[],
    );
}

#[test]
fn guests_of_this_host_and_of_unknown_hosts_are_not_remote() {
    let mut spec = of_type(NetworkType::Vxlan);
    spec.remote_ports = vec![remote(1, 1), remote(2, 2), remote(3, 2)];
    spec.remote_ports[1].mac_address = spec.ports[0].mac_address;
    spec.remote_ports[2].tunnel_ip = None;
    assert_eq!(fdb::wanted(&spec, LOCAL.into()), BTreeSet::new());
}

#[test]
fn what_a_host_cannot_do_is_said() {
    let check = |network_type,
                 spoil: &dyn Fn(&mut NetworkSpec, &mut HostUplinks),
                 code: FaultCode,
                 parts: &[&str]| {
        let (mut spec, mut observed) = (of_type(network_type), on_host());
        spoil(&mut spec, &mut observed.uplink.host);
        let fault = fault_of(spec, &observed);
        assert_eq!(fault.code, code);
        for part in parts {
            assert!(fault.message.contains(part), "{part}: {}", fault.message);
        }
    };
    let nic = |host: &mut HostUplinks, change: &dyn Fn(&mut NicFound)| {
        change(
            host.nics
                .get_mut(&physical(1))
                .unwrap()
                .found
                .as_mut()
                .unwrap(),
        );
    };
    use FaultCode::{Network, Unsupported};
    use NetworkType::{Flat, Nat, Vlan, Vxlan};
    for (kind, feature) in [
        (Vlan, Feature::Vlan),
        (Vxlan, Feature::Vxlan),
        (Nat, Feature::Nat),
    ] {
        let lack = |_: &mut NetworkSpec, host: &mut HostUplinks| {
            host.lacks.insert(feature, "modprobe it".to_owned());
        };
        check(kind, &lack, Unsupported, &["modprobe it"]);
    }
    for kind in [Flat, Vlan] {
        check(
            kind,
            &|spec, _| spec.physical_network = None,
            Network,
            &["none is given"],
        );
        check(
            kind,
            &|spec, _| spec.physical_network = Some(physical(9)),
            Network,
            &["physnet9", "network.physical_networks"],
        );
        check(
            kind,
            &|_, host| host.nics.get_mut(&physical(1)).unwrap().found = None,
            Network,
            &["eth1", "not there"],
        );
        check(
            kind,
            &|_, host| nic(host, &|nic| nic.mtu = 1400),
            Network,
            &["1450", "1400"],
        );
    }
    check(
        Flat,
        &|_, host| nic(host, &|nic| nic.master = Some("br0".to_owned())),
        Network,
        &["eth1 is in br0"],
    );
    check(
        Flat,
        &|_, host| {
            nic(host, &|nic| {
                nic.addresses = addresses(&["192.0.2.9/24", "fd00::9/64"])
            })
        },
        Network,
        &["192.0.2.9/24, fd00::9/64", "flat_address_policy"],
    );
    for (kind, id) in [
        (Vlan, Some(0)),
        (Vlan, Some(4095)),
        (Vlan, None),
        (Vxlan, Some(1 << 24)),
    ] {
        check(
            kind,
            &|spec, _| spec.segmentation_id = id,
            Network,
            &["segmentation id"],
        );
    }
    let taken = |_: &mut NetworkSpec, host: &mut HostUplinks| {
        let vlan = Segment::Vlan {
            parent: "eth1".to_owned(),
            id: 10,
        };
        let vxlan = Segment::Vxlan {
            id: 7777,
            port: 4789,
        };
        host.taken = BTreeMap::from([(vlan, "eth1.10".to_owned()), (vxlan, "vx0".to_owned())]);
    };
    check(
        Vlan,
        &taken,
        Network,
        &["VLAN 10 of eth1 is in use by link eth1.10"],
    );
    check(Vxlan, &taken, Network, &["VNI 7777", "vx0"]);
    check(
        Vxlan,
        &|_, host| host.tunnel = None,
        Network,
        &["network.tunnel_ip"],
    );
    check(
        Vxlan,
        &|_, host| host.tunnel.as_mut().unwrap().carrier = None,
        Network,
        &["192.0.2.1"],
    );
    check(
        Vxlan,
        &|spec, _| spec.mtu = 1451,
        Network,
        &["1451", "1501", "1500", "50 bytes"],
    );
    check(
        Vxlan,
        &|spec, _| spec.remote_ports[0].tunnel_ip = Some("fd00::2".parse().unwrap()),
        Network,
        &["fd00::2"],
    );
    check(
        Nat,
        &|_, host| {
            host.addresses
                .insert("br9".to_owned(), addresses(&["10.0.0.200/25"]));
        },
        Network,
        &["10.0.0.0/24", "10.0.0.200/25", "br9"],
    );
}

#[test]
fn a_nic_that_is_down_is_switched_on_and_never_off() {
    let mut observed = on_host();
    observed
        .uplink
        .host
        .change_nic(&nic_name(1), |nic| nic.up = false);
    for kind in [NetworkType::Flat, NetworkType::Vlan] {
        let spec = of_type(kind);
        let steps = plan(&desired(Some(spec.clone())), &observed).steps;
        let up = NetStep::Uplink(UplinkStep::NicUp {
            network: network(),
            nic: nic_name(1),
        });
        assert!(steps.contains(&up));
        let after = carried_out(&observed, &steps);
        let gone = carried_out(&after, &plan(&desired(None), &after).steps);
        assert!(gone.uplink.host.found(&nic_name(1)).unwrap().up);
    }
}

#[test]
fn addresses_move_with_the_nic_and_back() {
    let mut observed = on_host();
    observed.uplink.host.flat_addresses = FlatAddressPolicy::Move;
    let own = addresses(&["192.0.2.9/24", "fd00::9/64"]);
    observed
        .uplink
        .host
        .change_nic(&nic_name(1), |nic| nic.addresses = own.clone());
    let spec = of_type(NetworkType::Flat);
    let steps = plan(&desired(Some(spec.clone())), &observed).steps;
    let taken = NetStep::Uplink(UplinkStep::TakeNic {
        network: network(),
        nic: nic_name(1),
        addresses: own.clone(),
    });
    assert!(steps.contains(&taken));
    let after = carried_out(&observed, &steps);
    assert_eq!(after.uplink.addresses, own);
    assert_eq!(after.bridge.as_ref().unwrap().mac, found_nic().mac);
    let settled = |setting| !after.bridge.as_ref().unwrap().unsettled.contains(&setting);
    use super::super::LinkSetting::{DisableIpv6, HostArpReplies, HostIpv6, NoArpReplies};
    assert!(settled(HostIpv6) && settled(HostArpReplies));
    assert!(!settled(DisableIpv6) && !settled(NoArpReplies));

    // Even if the configuration says something else meanwhile, they are where they are.
    let mut later = after.clone();
    later.uplink.host.flat_addresses = FlatAddressPolicy::Refuse;
    assert!(is_ready(&desired(Some(spec.clone())), &later));

    // Whatever comes next, the NIC gets them back, and nothing is done without it.
    for next in [
        None,
        Some(of_type(NetworkType::Local)),
        Some(of_type(NetworkType::Vlan)),
        Some(of_type(NetworkType::Nat)),
    ] {
        let plan = plan(&desired(next), &after);
        let gone = carried_out(&after, &plan.steps);
        assert_eq!(gone.uplink.host.found(&nic_name(1)).unwrap().addresses, own);
        assert_eq!(gone.uplink.host.found(&nic_name(1)).unwrap().master, None);
        assert!(gone.uplink.addresses.is_disjoint(&own));
        assert_eq!(plan.on_error, OnError::Stop);
    }

    // The NIC was pulled out: the bridge does not go with the host's addresses on it.
    let mut pulled = after.clone();
    pulled
        .uplink
        .host
        .change_nic(&nic_name(1), |nic| nic.master = None);
    let refused = plan(&desired(None), &pulled);
    assert_eq!(refused.steps, []);
    assert!(
        matches!(&refused.then, NetThen::Refused(fault) if fault.message.contains("192.0.2.9/24")),
        "{refused:?}"
    );
    assert!(is_ready(
        &desired(Some(spec.clone())),
        &carried_out(&pulled, &plan(&desired(Some(spec)), &pulled).steps)
    ));
}

#[test]
fn rules_that_translate_are_these() {
    let spec = of_type(NetworkType::Nat);
    let rules = nat::wanted(&spec, &on_host().uplink).unwrap();
    insta::assert_snapshot!(
        "nat_ruleset",
        serde_json::to_string_pretty(&rules.ruleset(network())).unwrap()
    );
    insta::assert_snapshot!(
        "nat_removal",
        serde_json::to_string_pretty(&nat::removal(network())).unwrap()
    );
}

#[test]
fn what_forwards_for_others_stays_open() {
    let spec = of_type(NetworkType::Nat);
    let mut observed = built(&spec);
    let removed = |observed: &NetworkObserved| {
        let after = carried_out(observed, &plan(&desired(None), observed).steps);
        after.uplink.host.outward["eth0"]
    };
    let eth0 = BTreeSet::from(["eth0".to_owned()]);
    assert_eq!(removed(&observed), Forwards::No);
    observed.uplink.host.opened.clone_from(&eth0);
    assert_eq!(removed(&observed), Forwards::Yes);
    // A host that forwards by itself is left as it is.
    let mut router = on_host();
    router
        .uplink
        .host
        .outward
        .insert("eth0".to_owned(), Forwards::Yes);
    let rules = nat::wanted(&spec, &router.uplink).unwrap();
    assert_eq!(rules.open, BTreeSet::new());
    // But not if it does so because another network of berth's asked for it: then it is this one's to keep too.
    router.uplink.host.opened = eth0.clone();
    assert_eq!(nat::wanted(&spec, &router.uplink).unwrap().open, eth0);
}

#[test]
fn what_forwards_follows_the_default_route() {
    let spec = of_type(NetworkType::Nat);
    let links = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        names.collect::<BTreeSet<String>>()
    };
    for outward in [&["eth1"][..], &[]] {
        let mut observed = built(&spec);
        let opened = observed.uplink.nat.as_ref().unwrap().rules.open.clone();
        assert_eq!(opened, links(&["eth0"]));
        let host = &mut observed.uplink.host;
        host.outward = links(outward)
            .into_iter()
            .map(|link| (link, Forwards::No))
            .collect();
        let steps = plan(&desired(Some(spec.clone())), &observed).steps;
        let [NetStep::Uplink(UplinkStep::ApplyNat { rules, .. })] = &steps[..] else {
            panic!("{steps:?}");
        };
        assert_eq!(rules.open, links(outward));
        let close = |others: &[&str]| nat::no_longer_needed(&opened, &rules.open, &links(others));
        assert_eq!(close(&[]), links(&["eth0"]));
        assert_eq!(close(&["eth0"]), links(&[]));
        let after = carried_out(&observed, &steps);
        assert_eq!(plan(&desired(Some(spec.clone())), &after).steps, []);
    }
}

#[test]
fn a_foreign_uplink_is_refused_where_it_is_needed_and_left_alone() {
    for kind in [NetworkType::Vlan, NetworkType::Vxlan] {
        let spec = of_type(kind);
        let mut observed = built(&spec);
        let links = [
            observed.uplink.vlan.as_mut().map(|vlan| &mut vlan.link),
            observed.uplink.vxlan.as_mut().map(|vxlan| &mut vxlan.link),
        ];
        for link in links.into_iter().flatten() {
            link.alias = Some("somebody's".to_owned());
        }
        assert_eq!(fault_of(spec, &observed).code, FaultCode::ForeignObject);
        for next in [None, Some(of_type(NetworkType::Local))] {
            let steps = plan(&desired(next), &observed).steps;
            assert!(
                !steps
                    .iter()
                    .any(|step| matches!(step, NetStep::Uplink(UplinkStep::Delete(_)))),
                "{steps:?}"
            );
        }
    }
}

#[test]
fn another_segment_rebuilds_the_uplink_and_nothing_else() {
    for kind in [NetworkType::Vlan, NetworkType::Vxlan] {
        let before = of_type(kind);
        let after = NetworkSpec {
            segmentation_id: Some(20),
            ..before.clone()
        };
        let observed = built(&before);
        let all = plan(&desired(Some(after.clone())), &observed).steps;
        let (filters, others): (Vec<NetStep>, Vec<_>) = all
            .iter()
            .cloned()
            .partition(|step| matches!(step, NetStep::Filter(_)));
        assert_eq!(names_of(&others), uplink_steps(&after, &observed));
        // Who sends into the other VXLAN is asked before there is one, and of the old one until there is none.
        let guards = usize::from(kind == NetworkType::Vxlan);
        assert_eq!(filters.len(), guards);
        assert_eq!(
            all[1..].iter().take(guards).collect::<Vec<_>>(),
            filters.iter().collect::<Vec<_>>()
        );
        assert_eq!(carried_out(&observed, &all), built(&after));
    }
}

fn any_type() -> impl Strategy<Value = NetworkType> {
    prop::sample::select(vec![
        NetworkType::Local,
        NetworkType::Nat,
        NetworkType::Flat,
        NetworkType::Vlan,
        NetworkType::Vxlan,
    ])
}

prop_compose! {
    /// A document of any kind, on either NIC, in either segment.
    fn any_spec()(
        network_type in any_type(),
        nic in 1..3_u8,
        id in prop::sample::select(vec![10_u32, 20]),
        remotes in prop::collection::vec((1..5_u8, 2..4_u8), 0..4),
        gateway in prop::option::of(prop::sample::select(vec![1_u8, 254])),
        bare in any::<bool>(),
    ) -> NetworkSpec {
        let mut spec = of_type(network_type);
        if spec.physical_network.is_some() {
            spec.physical_network = Some(physical(nic));
        }
        spec.segmentation_id = spec.segmentation_id.map(|_| id);
        spec.remote_ports = remotes.into_iter().map(|(n, host)| remote(n, host)).collect();
        spec.subnets[0].gateway_ip = gateway.map(|n| [10, 0, 0, n].into());
        if bare {
            spec.subnets.clear();
            spec.ports.clear();
        }
        spec
    }
}

fn any_wish() -> impl Strategy<Value = Desired<NetworkId, NetworkSpec>> {
    prop_oneof![
        1 => Just(desired(None)),
        5 => any_spec().prop_map(|spec| desired(Some(spec))),
    ]
}

fn any_fdb() -> impl Strategy<Value = BTreeSet<FdbEntry>> {
    let entry = (1..5_u8, 2..4_u8, 0..3_u8).prop_map(|(n, host, kind)| {
        let (mac, host) = (
            remote(n, 0).mac_address.octets(),
            IpAddr::from([192, 0, 2, host]),
        );
        match kind {
            0 => FdbEntry::Flood(host),
            1 => FdbEntry::Remote { mac, host },
            _ => FdbEntry::Bridge(mac),
        }
    });
    prop::collection::btree_set(entry, 0..6)
}

prop_compose! {
    /// Any state that a host can be in, of which all is berth's or the host's own.
    fn any_state()(
        rest in any_observed(),
        vlan in any_link(Link::vlan(network())),
        vlan_id in prop::option::of(prop::sample::select(vec![10_u16, 20])),
        parent in prop::sample::select(vec!["eth1", "eth2", "eth9"]),
        vxlan in any_link(Link::vxlan(network())),
        vni in prop::sample::select(vec![10_u32, 20]),
        learning in any::<[bool; 2]>(),
        fdb in any_fdb(),
        nat in prop::option::of((prop::sample::subsequence(vec!["10.0.0.1/24", "10.0.0.254/24"], 0..=2), any::<[bool; 3]>())),
        given in prop::sample::subsequence(vec!["10.0.0.1/24", "10.0.0.254/24"], 0..=2),
        taken in any::<[bool; 2]>(),
    ) -> NetworkObserved {
        let mut observed = rest;
        let uplink = &mut observed.uplink;
        uplink.host = host();
        let bridge = observed.bridge.is_some();
        let in_bridge = |link: Option<LinkObserved>| link.map(|mut link| {
            if !bridge { link.master = None; }
            link
        });
        uplink.vlan = in_bridge(vlan).map(|link| VlanObserved { link, id: vlan_id, parent: Some(parent.to_owned()) });
        uplink.vxlan = in_bridge(vxlan).map(|link| VxlanObserved {
            link,
            id: Some(vni),
            local: Some(LOCAL.into()),
            port: Some(4789),
            learning: learning[0],
            port_learning: learning[1],
            fdb,
        });
        uplink.nat = nat.map(|(gateways, [whole, open, forwards])| {
            let rules = NatRules {
                gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
                open: open.then(|| "eth0".to_owned()).into_iter().collect(),
                tunnel_port: None,
            };
            if open && forwards {
                uplink.host.outward.insert("eth0".to_owned(), Forwards::Yes);
            }
            let shape = if whole { rules.shape(network()) } else { NatShape::default() };
            // An address of the bridge is one that the rules know: they come before it, and go after it.
            if bridge {
                uplink.addresses = given.iter().map(|text| text.parse().unwrap()).filter(|address| rules.addresses().contains(address)).collect();
            }
            NatObserved { rules, shape }
        });
        let name = Link::bridge(network()).name();
        for (n, taken) in (1..).zip(taken) {
            if taken && bridge {
                uplink.host.change_nic(&nic_name(n), |nic| nic.master = Some(name.clone()));
            }
        }
        observed
    }
}

proptest! {
    /// Once a plan is carried out there is nothing left to do, and the host is as the document says, whatever it was before.
    #[test]
    fn a_carried_out_plan_leaves_nothing_to_do(observed in any_state(), wish in any_wish()) {
        let first = plan(&wish, &observed);
        let after = carried_out(&observed, &first.steps);
        let second = plan(&wish, &after);
        prop_assert_eq!(&second.steps, &Vec::new());
        prop_assert_eq!(&second.then, &first.then);
        prop_assert_eq!(as_built(after), expected(&wish));
    }

    /// Broken off after any step, even towards another document: the next plan gets there.
    #[test]
    fn a_plan_broken_off_anywhere_is_made_good_by_the_next(
        observed in any_state(),
        before in any_wish(),
        wish in any_wish(),
        cut in any::<prop::sample::Index>(),
    ) {
        let steps = plan(&before, &observed).steps;
        let broken_off = carried_out(&observed, &steps[..cut.index(steps.len() + 1)]);
        let after = carried_out(&broken_off, &plan(&wish, &broken_off).steps);
        prop_assert_eq!(as_built(after), expected(&wish));
    }

    /// The host's own addresses are always on the NIC or on its bridge, after every step.
    #[test]
    fn the_hosts_addresses_are_never_lost(before in any_wish(), wish in any_wish(), cut in any::<prop::sample::Index>()) {
        let own = addresses(&["192.0.2.9/24", "192.0.2.10/24"]);
        let mut now = on_host();
        now.uplink.host.flat_addresses = FlatAddressPolicy::Move;
        now.uplink.host.change_nic(&nic_name(1), |nic| nic.addresses = own.clone());
        let steps = plan(&before, &now).steps;
        let check = |now: &mut NetworkObserved, steps: &[NetStep]| {
            for step in steps {
                step_done(now, step);
                let on_nic = now.uplink.host.found(&nic_name(1)).unwrap().addresses.clone();
                let there: BTreeSet<IpNet> = on_nic.union(&now.uplink.addresses).copied().collect();
                prop_assert!(own.is_subset(&there), "{step}");
            }
            Ok(())
        };
        check(&mut now, &steps[..cut.index(steps.len() + 1)])?;
        let rest = plan(&wish, &now).steps;
        check(&mut now, &rest)?;
    }

    /// A step that was carried out already does no harm.
    #[test]
    fn every_step_can_be_repeated(observed in any_state(), wish in any_wish()) {
        let mut once = observed.clone();
        let mut twice = observed.clone();
        for step in plan(&wish, &observed).steps {
            step_done(&mut once, &step);
            step_done(&mut twice, &step);
            step_done(&mut twice, &step);
        }
        prop_assert_eq!(once, twice);
    }
}

/// Without what is left as it was found: whether the host forwards.
fn as_built(mut observed: NetworkObserved) -> NetworkObserved {
    observed.uplink.host.outward.clear();
    if let Some(nat) = &mut observed.uplink.nat {
        assert!(nat.rules.open.iter().all(|link| link == "eth0"));
        nat.rules.open.clear();
        nat.shape = NatShape::default();
    }
    if let Some(bridge) = &mut observed.bridge {
        bridge.unsettled.clear();
    }
    // What the host has for VXLANs stays while it has a network.
    let base = &mut observed.filter.base;
    base.retain(|(family, _), _| *family == Family::Bridge);
    observed
}

fn expected(wish: &Desired<NetworkId, NetworkSpec>) -> NetworkObserved {
    as_built(wish.spec.as_ref().map_or_else(on_host, built))
}

#[test]
fn a_subnet_without_a_gateway_has_none_on_the_host() {
    let mut spec = of_type(NetworkType::Nat);
    spec.subnets[0].gateway_ip = None;
    spec.subnets[0].id = SubnetId::new();
    spec.ports.clear();
    let rules = nat::wanted(&spec, &on_host().uplink).unwrap();
    assert_eq!(rules.gateways, BTreeSet::new());
}
