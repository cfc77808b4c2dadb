//! Tests of the packet filter's data: golden rulesets, and what a change touches.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{
        AddressPair, Desired, Document, EtherType, FixedIp, Ipv6AddressMode, NetworkPort,
        NetworkType, PortQos, PortRange, PortSecurity, RemotePort, RouterInterface, RouterSpec,
        RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule, SecurityGroupSpec, SubnetSpec,
    },
    ids::{HostId, InstanceId, PortId, RouterId, SecurityGroupId, SecurityGroupRuleId, SubnetId},
    message::trace::{TraceConnection, TracePacket, TraceProtocol, TraceStage},
    units::Generation,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NETWORK: &str = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11";
const SUBNET: &str = "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a12";

fn network() -> NetworkId {
    NETWORK.parse().unwrap()
}

fn host() -> HostId {
    NETWORK.parse().unwrap()
}

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(n: u32) -> T {
    format!("0191e7a0-7c1f-7b5e-9d2a-3f6f{n:08x}")
        .parse()
        .unwrap()
}

fn group(n: u8) -> SecurityGroupId {
    id(0x1000 + u32::from(n))
}

fn port(n: u8, groups: &[u8]) -> NetworkPort {
    NetworkPort {
        id: id::<PortId>(0x2000 + u32::from(n)),
        instance_id: id::<InstanceId>(0x3000 + u32::from(n)),
        mac_address: format!("52:54:00:00:00:{n:02x}").parse().unwrap(),
        hostname: format!("vm{n}").parse().unwrap(),
        fixed_ips: vec![FixedIp {
            subnet_id: SUBNET.parse::<SubnetId>().unwrap(),
            ip_address: IpAddr::from([10, 0, 0, n]),
        }],
        security: Some(PortSecurity {
            allowed_address_pairs: Vec::new(),
            security_groups: groups.iter().copied().map(group).collect(),
        }),
        qos: PortQos::default(),
        mirrors: Vec::new(),
    }
}

fn rule(
    n: u32,
    direction: RuleDirection,
    protocol: Option<RuleProtocol>,
    remote: Option<RuleRemote>,
) -> SecurityGroupRule {
    SecurityGroupRule {
        id: id::<SecurityGroupRuleId>(0x4000 + n),
        direction,
        ethertype: EtherType::IPv4,
        protocol,
        remote,
    }
}

fn spec() -> NetworkSpec {
    let tcp = |min, max| {
        Some(RuleProtocol::Tcp {
            ports: Some(PortRange { min, max }),
        })
    };
    let prefix = |text: &str| Some(RuleRemote::Prefix(text.parse().unwrap()));
    let mut pairs = port(11, &[1, 2]);
    pairs.fixed_ips.push(FixedIp {
        subnet_id: id(0x12),
        ip_address: "2001:db8::11".parse().unwrap(),
    });
    pairs.security.as_mut().unwrap().allowed_address_pairs = vec![
        AddressPair {
            ip_address: "10.0.0.100".parse().unwrap(),
            mac_address: Some("00:00:5e:00:01:01".parse().unwrap()),
        },
        AddressPair {
            ip_address: "10.7.0.0/16".parse().unwrap(),
            mac_address: None,
        },
    ];
    let mut open = port(12, &[]);
    open.security = None;
    let subnet = |cidr: &str, dhcp: &str| SubnetSpec {
        id: SUBNET.parse().unwrap(),
        cidr: cidr.parse().unwrap(),
        gateway_ip: None,
        dhcp_ip: Some(dhcp.parse().unwrap()),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_address_mode: None,
    };
    let mut v6 = subnet("2001:db8::/64", "2001:db8::2");
    v6.id = id(0x12);
    v6.ipv6_address_mode = Some(Ipv6AddressMode::Slaac);
    NetworkSpec {
        name: "net".parse().unwrap(),
        project: "default".parse().unwrap(),
        network_type: NetworkType::Local,
        physical_network: None,
        segmentation_id: None,
        mtu: 1450,
        subnets: vec![subnet("10.0.0.0/24", "10.0.0.2"), v6],
        ports: vec![port(10, &[1]), pairs, open],
        remote_ports: Vec::new(),
        security_groups: vec![
            SecurityGroupSpec {
                id: group(1),
                rules: vec![
                    rule(1, RuleDirection::Egress, None, None),
                    rule(2, RuleDirection::Ingress, tcp(22, 22), prefix("0.0.0.0/0")),
                    rule(
                        3,
                        RuleDirection::Ingress,
                        None,
                        Some(RuleRemote::Group(group(1))),
                    ),
                    SecurityGroupRule {
                        ethertype: EtherType::IPv6,
                        ..rule(
                            4,
                            RuleDirection::Ingress,
                            Some(RuleProtocol::Icmp {
                                kind: Some(128),
                                code: Some(0),
                            }),
                            None,
                        )
                    },
                ],
            },
            SecurityGroupSpec {
                id: group(2),
                rules: vec![
                    rule(
                        5,
                        RuleDirection::Ingress,
                        tcp(8000, 8080),
                        prefix("192.0.2.0/24"),
                    ),
                    rule(
                        6,
                        RuleDirection::Egress,
                        Some(RuleProtocol::Number { number: 112 }),
                        None,
                    ),
                ],
            },
        ],
        group_members: [(
            group(1),
            ["10.0.0.10", "10.0.0.11", "10.1.0.0/16", "10.1.2.3"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
        )]
        .into(),
    }
}

fn empty(stateful: Stateful) -> FilterObserved {
    FilterObserved {
        stateful,
        ..FilterObserved::default()
    }
}

fn step(spec: &NetworkSpec, found: &FilterObserved) -> Option<FilterStep> {
    step_by(spec, &Reach::default(), found)
}

fn step_by(spec: &NetworkSpec, reach: &Reach, found: &FilterObserved) -> Option<FilterStep> {
    towards(
        network(),
        spec,
        reach,
        host(),
        found,
        &mut Rendered::default(),
    )
}

fn built(spec: &NetworkSpec) -> FilterObserved {
    let mut found = empty(Stateful::BrNetfilter);
    if let Some(step) = step(spec, &found) {
        imagine(&mut found, &step);
    }
    found
}

fn commands(step: Option<FilterStep>) -> Vec<String> {
    match step {
        Some(FilterStep::Change(change)) => change.commands(),
        Some(step) => panic!("{step:?}"),
        None => Vec::new(),
    }
}

/// The same, with a command for each chain and each rule: nft makes the chains of a table before it adds the first rule.
fn each(commands: &[String]) -> Vec<String> {
    let mut each = Vec::new();
    for command in commands {
        let Some(block) = command.strip_prefix("table ") else {
            each.push(command.clone());
            continue;
        };
        let (table, block) = block.split_once(" {\n").unwrap();
        let (mut chain, mut rules) = ("", Vec::new());
        for line in block.lines() {
            if let Some(rule) = line.strip_prefix("\t\t") {
                rules.push(format!("add rule {table} {chain} {rule}"));
            } else if let Some(name) = line.strip_prefix("\tchain ") {
                chain = name.strip_suffix(" {").unwrap();
                each.push(format!("add chain {table} {chain}"));
            } else {
                assert!(["\t}", "}"].contains(&line), "{line}");
            }
        }
        each.extend(rules);
    }
    each
}

/// All that nft is told.
fn text(step: Option<FilterStep>) -> String {
    commands(step).join("\n")
}

#[test]
fn the_ruleset_of_a_network_on_a_bridge_that_tracks_connections() {
    insta::assert_snapshot!(text(step(&spec(), &empty(Stateful::Bridge))));
}

#[test]
fn the_ruleset_of_a_network_with_br_netfilter() {
    insta::assert_snapshot!(text(step(&spec(), &empty(Stateful::BrNetfilter))));
}

#[test]
fn the_ruleset_of_a_network_with_an_uplink_and_a_router() {
    let found = FilterObserved {
        legs: vec![RouterLeg {
            mac_address: "52:54:00:aa:aa:01".parse().unwrap(),
            ip_addresses: vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        }],
        ..empty(Stateful::Bridge)
    };
    let uplinks = BTreeSet::from(["btx000000000001".to_owned()]).into();
    let spec = NetworkSpec {
        ports: Vec::new(),
        security_groups: Vec::new(),
        network_type: NetworkType::Vxlan,
        ..spec()
    };
    insta::assert_snapshot!(text(step_by(&spec, &uplinks, &found)));
}

/// An address of a pair may be in no subnet, and so may those of others on the wire.
#[test]
fn neighbours_are_found_at_any_address_but_not_by_a_router() {
    let finding = |legs: Vec<RouterLeg>| {
        let found = FilterObserved {
            legs,
            ..empty(Stateful::Bridge)
        };
        let text = text(step(&spec(), &found));
        let begin =
            "meta l4proto == \"ipv6-icmp\" icmpv6 type == { 135, 136 } ip6 hoplimit == 255 ";
        let rules = text.lines().filter_map(|line| {
            let rule = line.trim_start().strip_prefix(begin)?;
            Some(rule.split_once(" comment")?.0.to_owned())
        });
        rules.collect::<Vec<_>>()
    };
    assert_eq!(finding(Vec::new()), ["accept"]);
    let leg = RouterLeg::found("52:54:00:aa:aa:01".parse().unwrap());
    assert_eq!(
        finding(vec![leg]),
        [
            "ip6 daddr == 2001:db8::/64 accept",
            "ether daddr != \"52:54:00:aa:aa:01\" accept"
        ]
    );
}

/// A VXLAN with guests on these other hosts.
fn vxlan(hosts: &[&str]) -> NetworkSpec {
    NetworkSpec {
        network_type: NetworkType::Vxlan,
        subnets: Vec::new(),
        ports: Vec::new(),
        security_groups: Vec::new(),
        remote_ports: (1..)
            .zip(hosts)
            .map(|(n, host)| far(n, Some(host)))
            .collect(),
        ..spec()
    }
}

/// A port on another host.
fn far(n: u8, host: Option<&str>) -> RemotePort {
    RemotePort {
        mac_address: format!("52:54:00:00:05:{n:02x}").parse().unwrap(),
        hostname: "far".parse().unwrap(),
        ip_addresses: vec![IpAddr::from([10, 5, 0, n])],
        tunnel_ip: host.map(|host| host.parse().unwrap()),
    }
}

/// By a VXLAN of this VNI, from this address of the host.
fn by_tunnel(id: u32, local: &str) -> Reach {
    Reach {
        links: BTreeSet::from(["btx000000000001".to_owned()]),
        tunnel: Some(TunnelEnd {
            id,
            port: 4789,
            local: local.parse().unwrap(),
        }),
    }
}

const HERE: &str = "192.0.2.1";

#[test]
fn the_ruleset_of_a_vxlan_asks_who_sends_into_it() {
    let reach = by_tunnel(7777, HERE);
    let step = step_by(
        &vxlan(&["192.0.2.2", "192.0.2.3"]),
        &reach,
        &empty(Stateful::Bridge),
    );
    insta::assert_snapshot!(text(step));
}

#[test]
fn a_host_that_comes_or_goes_touches_the_set_of_a_vxlan_alone() {
    let (reach, mut found) = (by_tunnel(7777, HERE), empty(Stateful::Bridge));
    let before = step_by(&vxlan(&["192.0.2.2", "192.0.2.3"]), &reach, &found).unwrap();
    imagine(&mut found, &before);
    let check = |hosts: &[&str], senders: Senders, touches: &[&str], words: &[&str]| {
        let found = FilterObserved {
            senders,
            ..found.clone()
        };
        let step = step_by(&vxlan(hosts), &reach, &found);
        assert_eq!(touched(step.clone()), touches);
        for (command, end) in commands(step).iter().zip(words) {
            assert!(command.ends_with(end), "{command}");
        }
    };
    let nobody = Senders::default;
    let some =
        |hosts: &[&str]| Senders::Known(hosts.iter().map(|it| it.parse().unwrap()).collect());
    // How many guests a host has does not matter, nor what is not of this version of IP, nor the host itself.
    check(&["192.0.2.2", "192.0.2.3", "192.0.2.3"], nobody(), &[], &[]);
    check(
        &["192.0.2.3", "192.0.2.2", HERE],
        some(&["2001:db8::9", HERE]),
        &[],
        &[],
    );
    check(
        &["192.0.2.3", "192.0.2.4"],
        nobody(),
        &["delete element h4", "add element h4"],
        &[" { 192.0.2.2 }", " { 192.0.2.4 }"],
    );
    // Those that send by routers.
    check(
        &["192.0.2.2", "192.0.2.3"],
        some(&["192.0.2.3", "192.0.2.9"]),
        &["add element h4"],
        &[" { 192.0.2.9 }"],
    );
    // Whose hosts are not told, of that nobody can be refused.
    check(
        &["192.0.2.2"],
        Senders::Unknown,
        &[
            "delete element tunnels",
            "flush chain v",
            "delete chain v",
            "delete set h4",
        ],
        &[&format!(
            " {{ 4789 . 7777 : goto {} }}",
            names::of_network("v", network())
        )],
    );
}

#[test]
fn the_hosts_of_networks_that_a_router_joins_may_send() {
    let (_, [Document::Network(beside), router]) = routed() else {
        panic!("a network and a router");
    };
    let told = |kind: NetworkType, hosts: &[Option<&str>]| {
        let mut beside = beside.clone();
        let spec = beside.spec.as_mut().unwrap();
        spec.network_type = kind;
        spec.remote_ports = (1..).zip(hosts).map(|(n, host)| far(n, *host)).collect();
        let documents = [Document::Network(beside.clone()), router.clone()];
        let alone = senders(network(), documents[..1].iter());
        assert_eq!(alone, Senders::default(), "without the router");
        assert_eq!(senders(beside.id, documents.iter()), Senders::default());
        assert_eq!(joined(beside.id, documents.iter()), [network()].into());
        senders(network(), documents.iter())
    };
    let known =
        |hosts: &[&str]| Senders::Known(hosts.iter().map(|it| it.parse().unwrap()).collect());
    let both = [Some("192.0.2.7"), Some("192.0.2.8")];
    use NetworkType::{Flat, Local, Nat, Vlan, Vxlan};
    for kind in [Flat, Vlan, Vxlan] {
        assert_eq!(told(kind, &both), known(&["192.0.2.7", "192.0.2.8"]));
    }
    for kind in [Local, Nat] {
        assert_eq!(told(kind, &both), known(&[]), "it ends at its host");
    }
    // A host without an address is on no VXLAN. In other networks it may be one that was not told, if none was.
    for kind in [Flat, Vlan, Vxlan] {
        let one = [Some("192.0.2.7"), None];
        assert_eq!(told(kind, &one), known(&["192.0.2.7"]));
        assert_eq!(told(kind, &[]), known(&[]), "no host but this one has it");
    }
    assert_eq!(told(Vxlan, &[None, None]), known(&[]));
    for kind in [Flat, Vlan] {
        assert_eq!(told(kind, &[None, None]), Senders::Unknown);
    }
}

#[test]
fn what_guards_vxlans_comes_with_the_first_and_goes_with_the_last_network() {
    let other: NetworkId = id(0x5000);
    let stateful = Stateful::Bridge;
    let tunnel = |tables: &mut Tables, reach: &Reach| {
        let found = tables.observed(network(), stateful);
        let step = step_by(&vxlan(&["192.0.2.2"]), reach, &found)?;
        let FilterStep::Change(change) = step else {
            panic!("{step}");
        };
        tables.apply(&change);
        Some(*change)
    };
    let families = |tables: &Tables| {
        tables
            .families
            .iter()
            .map(|it| it.as_str())
            .collect::<Vec<_>>()
    };
    let mut tables = Tables::default();
    settle(&mut tables, other, stateful);
    assert_eq!(families(&tables), ["bridge"]);
    let planned_before = {
        let found = tables.observed(id(0x6000), stateful);
        let without = FilterObserved {
            base: BTreeMap::new(),
            ..found
        };
        towards(
            id(0x6000),
            &spec(),
            &Reach::default(),
            host(),
            &without,
            &mut Rendered::default(),
        )
    };
    tunnel(&mut tables, &by_tunnel(7777, HERE)).unwrap();
    assert_eq!(families(&tables), ["bridge", "inet"]);
    let guarded = tables.clone();
    assert_eq!(tunnel(&mut tables, &by_tunnel(7777, HERE)), None);
    // Others need none of it, and leave it alone.
    assert_eq!(settle(&mut tables, other, stateful), []);
    let Some(FilterStep::Change(change)) = planned_before else {
        panic!("nothing planned");
    };
    tables.apply(&change);
    assert_eq!(tables.base, guarded.base);
    // Half of it taken away comes back.
    for name in ["tunnel", "tunnels", base::FOREIGN] {
        let mut tables = guarded.clone();
        assert!(
            tables
                .base
                .remove(&(nft::Family::Inet, name.to_owned()))
                .is_some()
        );
        settle(&mut tables, other, stateful);
        tunnel(&mut tables, &by_tunnel(7777, HERE));
        assert_eq!(tables, guarded, "{name}");
    }
    // Another VNI, and another version of IP.
    let change = tunnel(&mut tables, &by_tunnel(8888, HERE)).unwrap();
    let key = |id: u32| {
        (
            nft::Family::Inet,
            "tunnels".to_owned(),
            format!("4789 . {id}"),
        )
    };
    assert_eq!(change.links.keys().collect::<Vec<_>>(), [&key(8888)]);
    assert_eq!(change.gone_links.keys().collect::<Vec<_>>(), [&key(7777)]);
    assert!(change.chains.is_empty() && change.sets.is_empty());
    let change = tunnel(&mut tables, &by_tunnel(8888, "2001:db8::1")).unwrap();
    assert_eq!(
        change.sets.values().collect::<Vec<_>>(),
        [&part::Version::V6]
    );
    assert_eq!(change.gone_sets.len(), 1);
    // A network that goes leaves nothing, and the last one takes the tables.
    for (network, is_last) in [(network(), false), (id(0x6000), false), (other, true)] {
        let step = away(network, &tables.observed(network, stateful)).unwrap();
        let text = leave(&mut tables, &step).concat();
        assert_eq!(text.contains("delete table inet berth"), is_last, "{text}");
    }
    assert_eq!(tables, Tables::default());
}

#[test]
fn what_nft_lists_of_a_guarded_vxlan_is_understood() {
    let (reach, mut found) = (by_tunnel(7777, HERE), empty(Stateful::Bridge));
    let step = step_by(&vxlan(&["192.0.2.2"]), &reach, &found).unwrap();
    imagine(&mut found, &step);
    let (chain, set) = (
        names::of_network("v", network()),
        names::of_network("h4", network()),
    );
    let of = |mut object: Value| {
        object["family"] = json!("inet");
        object["table"] = json!("berth");
        object
    };
    let rules = found.part.chains[&(nft::Family::Inet, chain.clone())].iter();
    let rules = rules.map(|comment| {
        json!({"rule": of(json!({"chain": chain, "comment": comment, "expr": [
            {"counter": {"packets": 2, "bytes": 100}}, {"drop": null}
        ]}))})
    });
    let lead = json!([{"concat": [4789, 7777]}, {"goto": {"target": chain}}]);
    let objects = [
        json!({"map": of(json!({"name": "tunnels", "type": ["inet_service", "integer"], "map": "verdict", "elem": [lead]}))}),
        json!({"set": of(json!({"name": set, "type": "ipv4_addr", "elem": ["192.0.2.2"]}))}),
    ];
    let listed = json!({"nftables": objects.into_iter().chain(rules).collect::<Vec<_>>()});
    let part = tables(&listed).unwrap().part(network());
    let inet = |(family, _): &&part::Name| *family == nft::Family::Inet;
    assert_eq!(part.sets, found.part.sets);
    let key = (
        nft::Family::Inet,
        "tunnels".to_owned(),
        "4789 . 7777".to_owned(),
    );
    assert_eq!(part.links.get(&key), found.part.links.get(&key));
    assert_eq!(
        part.chains
            .iter()
            .filter(|(name, _)| inet(name))
            .collect::<Vec<_>>(),
        found
            .part
            .chains
            .iter()
            .filter(|(name, _)| inet(name))
            .collect::<Vec<_>>()
    );
    assert_eq!(counted(&listed), 4);
}

/// Each of these is the first thing that is asked of a frame, so nothing lets it pass before.
#[test]
fn no_tag_crosses_an_uplink_whatever_a_port_may_send() {
    let spec = NetworkSpec {
        network_type: NetworkType::Flat,
        ..spec()
    };
    let first_rules = |uplinks: &[&str]| {
        let uplinks: BTreeSet<String> = uplinks.iter().map(|name| (*name).to_owned()).collect();
        let found = empty(Stateful::Bridge);
        let reach = Reach::from(uplinks);
        let commands = each(&commands(step_by(&spec, &reach, &found)));
        ["n", "o"].map(|kind| {
            let chain = names::of_network(kind, network());
            let rule = format!("add rule bridge berth {chain} ");
            let mut rules = commands.iter().filter_map(|it| it.strip_prefix(&rule));
            let first = rules.next().and_then(|rule| rule.split(" comment").next());
            first.map(str::to_owned)
        })
    };
    let tagged = r#"ether type == { "8021q", "8021ad" } drop"#;
    // Where they end, and are counted.
    let counted = format!("jump {}", base::UNTAGGED);
    let [of_guests, outwards] = first_rules(&["eth1"]);
    assert_eq!(of_guests.as_ref(), Some(&counted));
    assert_eq!(outwards.as_deref(), Some(tagged));
    let [of_guests, outwards] = first_rules(&[]);
    assert_ne!(of_guests, Some(counted));
    assert_eq!(outwards, None);
}

/// A provider's network with a DHCP server and a metadata service of its own.
fn unserved() -> NetworkSpec {
    let mut spec = spec();
    spec.network_type = NetworkType::Flat;
    for subnet in &mut spec.subnets {
        subnet.dhcp_ip = None;
    }
    spec
}

#[test]
fn services_of_somebody_else_are_let_through_where_berth_has_none() {
    let uplinks = Reach::from(BTreeSet::from(["eth1".to_owned()]));
    let own = |spec: &NetworkSpec| {
        let text = text(step_by(spec, &uplinks, &empty(Stateful::Bridge)));
        let mac = Link::veth_namespace(network()).mac();
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        [
            mac,
            "169.254.169.254".to_owned(),
            "fea9fe".to_owned(),
            crate::decide::names::veth_host(network()),
        ]
        .map(|word| text.contains(&word))
    };
    let unserved = unserved();
    assert_eq!(own(&unserved), [false; 4]);
    let mut served = unserved.clone();
    served.subnets[0].dhcp_ip = spec().subnets[0].dhcp_ip;
    assert_ne!(own(&served), [false; 4]);
    let metadata = packet(
        RuleDirection::Egress,
        "10.0.0.10",
        "169.254.169.254",
        TraceProtocol::Tcp {
            source_port: None,
            destination_port: 80,
        },
    );
    let says_berths = |spec: &NetworkSpec| {
        let steps = trace(spec, &[], &[], &spec.ports[0], &metadata);
        steps
            .iter()
            .any(|step| step.detail.contains("berth's metadata"))
    };
    assert!(says_berths(&served));
    assert!(!says_berths(&unserved));
}

#[test]
fn a_router_on_the_wire_is_heard_where_a_subnet_names_it_and_no_leg_has_its_address() {
    let crosses = |kind: NetworkType, gateway: Option<&str>, leg: Option<&str>| {
        let mut spec = spec();
        spec.network_type = kind;
        for subnet in &mut spec.subnets {
            if subnet.cidr.is_ipv6() {
                subnet.gateway_ip = gateway.map(|it| it.parse().unwrap());
            }
        }
        let reach = Reach::from(BTreeSet::from(["eth1".to_owned()]));
        let leg = leg.map(|address| RouterLeg {
            mac_address: "02:00:00:00:00:09".parse().unwrap(),
            ip_addresses: vec![address.parse().unwrap()],
        });
        let found = FilterObserved {
            legs: Vec::from_iter(leg),
            ..empty(Stateful::Bridge)
        };
        let commands = each(&commands(step_by(&spec, &reach, &found)));
        // Inwards and outwards, what is dropped of solicitations and advertisements.
        ["u", "o"].map(|kind| {
            let rule = format!(
                "add rule bridge berth {} ",
                names::of_network(kind, network())
            );
            let rules = commands.iter().filter_map(|it| it.strip_prefix(&rule));
            let rules = rules.filter_map(|it| it.split(" comment").next());
            let rules: Vec<&str> = rules
                .filter(|it| it.starts_with("meta") && it.contains("137"))
                .collect();
            assert_eq!(rules.len(), 1, "{rules:#?}");
            ["133", "134"].map(|it| rules[0].contains(it))
        })
    };
    let (gateway, nobody) = (Some("fd00::1"), [[true; 2]; 2]);
    for kind in [NetworkType::Flat, NetworkType::Vlan] {
        let is_heard = [[true, false], [false, true]];
        assert_eq!(crosses(kind, gateway, None), is_heard);
        assert_eq!(crosses(kind, gateway, Some("fd00::2")), is_heard);
        assert_eq!(crosses(kind, gateway, gateway), nobody);
        assert_eq!(crosses(kind, None, None), nobody);
    }
    assert_eq!(crosses(NetworkType::Vxlan, gateway, None), nobody);
}

/// The kinds of commands, without rules.
fn touched(step: Option<FilterStep>) -> Vec<String> {
    let commands = each(&commands(step));
    let names = commands.iter().map(|command| {
        let mut words = command.split(' ');
        let [verb, kind, _, _, name] = std::array::from_fn(|_| words.next().unwrap());
        let name = name.split('_').next().unwrap();
        format!("{verb} {kind} {name}")
    });
    names.collect()
}

#[test]
fn a_new_member_touches_its_set_alone() {
    let mut spec = spec();
    let found = built(&spec);
    let members = spec.group_members.get_mut(&group(1)).unwrap();
    members.push("10.0.0.99".parse().unwrap());
    members.retain(|member| *member != "10.0.0.10".parse().unwrap());
    let step = step(&spec, &found);
    assert_eq!(
        touched(step.clone()),
        ["delete element m4", "add element m4"]
    );
    let commands = commands(step);
    assert!(commands[0].ends_with(" { 10.0.0.10 }"), "{commands:?}");
    assert!(commands[1].ends_with(" { 10.0.0.99 }"), "{commands:?}");
}

#[test]
fn a_new_rule_touches_the_chain_of_its_group_alone() {
    let mut spec = spec();
    let found = built(&spec);
    let udp = Some(RuleProtocol::Udp { ports: None });
    spec.security_groups[1]
        .rules
        .push(rule(9, RuleDirection::Ingress, udp, None));
    let touched = touched(step(&spec, &found));
    assert_eq!(
        touched,
        [
            "flush chain gi",
            "add chain gi",
            "add rule gi",
            "add rule gi"
        ]
    );
}

#[test]
fn a_port_that_goes_takes_all_that_is_its_own() {
    let mut spec = spec();
    let found = built(&spec);
    spec.ports.remove(0);
    let touched = touched(step(&spec, &found));
    let removed: Vec<&String> = touched
        .iter()
        .filter(|text| text.starts_with("delete chain"))
        .collect();
    assert_eq!(
        removed,
        ["delete chain e", "delete chain i", "delete chain s"]
    );
    assert!(
        !touched.iter().any(|text| text.starts_with("add")),
        "{touched:?}"
    );
    let counters = touched
        .iter()
        .filter(|text| text.starts_with("delete element dropped-"));
    assert_eq!(counters.count(), Reason::ALL.len());
}

#[test]
fn what_is_unknown_in_our_tables_is_removed_whatever_it_is_called() {
    let stray = |kind, name: &str| part::Stray {
        family: nft::Family::Bridge,
        kind,
        name: name.to_owned(),
    };
    // A word of nft's language, and what would be a command in it.
    let strays = [stray("chain", "mark"), stray("set", "x; flush ruleset")];
    let found = FilterObserved {
        strays: BTreeSet::from(strays),
        ..built(&spec())
    };
    let Some(FilterStep::Change(change)) = step(&spec(), &found) else {
        panic!("they stay");
    };
    assert_eq!(change.commands(), Vec::<String>::new());
    let object = |name: &str| json!({ "family": "bridge", "table": "berth", "name": name });
    let told = json!({ "nftables": [
        { "flush": { "chain": object("mark") } },
        { "delete": { "chain": object("mark") } },
        { "delete": { "set": object("x; flush ruleset") } },
    ] });
    assert_eq!(part::removal(&change.strays), told);
}

/// What nft lists of a table with these chains.
fn listed(chains: &[&str]) -> Value {
    let chains = chains.iter().map(|name| {
        json!({ "chain": { "family": "bridge", "table": "berth", "name": name, "handle": 1 } })
    });
    json!({ "nftables": chains.collect::<Vec<Value>>() })
}

#[test]
fn only_what_is_named_like_ours_is_a_networks() {
    let own = [
        names::of_network("n", network()),
        names::of_port("s", network(), id(0x2001)),
        names::of_group("gi", network(), group(1)),
    ];
    let digits = names::network(network());
    let others = [
        format!("x; flush ruleset; _{digits}"),
        format!("n _{digits}"),
        format!("n_{digits}_x; flush ruleset"),
        format!("n_{digits}_{digits}_"),
        format!("_{digits}"),
        format!("1n_{digits}"),
        "mark".to_owned(),
    ];
    let all: Vec<&str> = own.iter().chain(&others).map(String::as_str).collect();
    let tables = tables(&listed(&all)).unwrap();
    let found = tables.part(network());
    let chains: BTreeSet<&String> = found.chains.keys().map(|(_, name)| name).collect();
    assert_eq!(chains, own.iter().collect());
    let strays: BTreeSet<&String> = tables.strays.iter().map(|stray| &stray.name).collect();
    assert_eq!(strays, others.iter().collect());
}

/// One had a chain with a name that nft's own language has no words for.
#[test]
fn the_tables_of_an_agent_from_before_are_carried_over() {
    let mut tables = Tables::default();
    settle(&mut tables, network(), Stateful::BrNetfilter);
    let fresh = tables.clone();
    let [now, before] = ["mark-bridge", "mark"].map(|name| (nft::Family::Inet, name.to_owned()));
    assert!(tables.base.remove(&now).is_some());
    tables.strays.insert(base::stray(&before));
    let changes = settle(&mut tables, network(), Stateful::BrNetfilter);
    assert_eq!(tables, fresh);
    let [change] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    // The new one is there before the old one goes, and nothing else of the network is touched.
    let commands = change.commands();
    assert!(
        commands
            .iter()
            .any(|it| it.starts_with("add rule inet berth mark-bridge ")),
        "{commands:?}"
    );
    assert!(change.chains.is_empty() && change.gone_chains.is_empty());
    let removed = part::removal(&change.strays);
    assert_eq!(removed["nftables"][1]["delete"]["chain"]["name"], "mark");
}

/// Carries out what is to do for a network, as long as there is something; answers the transactions.
fn settle(tables: &mut Tables, network: NetworkId, stateful: Stateful) -> Vec<Change> {
    let mut changes = Vec::new();
    for _ in 0..4 {
        let found = tables.observed(network, stateful);
        let (links, rendered) = (Reach::default(), &mut Rendered::default());
        let Some(step) = towards(network, &spec(), &links, host(), &found, rendered) else {
            return changes;
        };
        let mut imagined = found;
        imagine(&mut imagined, &step);
        let FilterStep::Change(change) = step else {
            panic!("{step}");
        };
        tables.apply(&change);
        let seen = tables.observed(network, stateful);
        assert_eq!(
            (&imagined.base, &imagined.strays),
            (&seen.base, &seen.strays)
        );
        changes.push(*change);
    }
    panic!("it does not settle: {changes:?}");
}

#[test]
fn a_kernel_that_tracks_connections_in_another_way_settles_too() {
    let other: NetworkId = id(0x5000);
    let ways = [Stateful::BrNetfilter, Stateful::Bridge, Stateful::No];
    for (before, after) in ways
        .iter()
        .flat_map(|before| ways.map(|after| (*before, after)))
    {
        let mut tables = Tables::default();
        settle(&mut tables, network(), before);
        settle(&mut tables, other, before);
        let changes = settle(&mut tables, network(), after);
        assert!(changes.len() <= 1, "{before:?} {after:?}");
        settle(&mut tables, other, after);
        assert_eq!(settle(&mut tables, network(), after), []);
        let mut fresh = Tables::default();
        settle(&mut fresh, network(), after);
        settle(&mut fresh, other, after);
        assert_eq!(tables.base, fresh.base, "{before:?} {after:?}");
        for network in [network(), other] {
            assert_eq!(
                tables.part(network),
                fresh.part(network),
                "{before:?} {after:?}"
            );
        }
        // A chain names the map, which so goes after it.
        for change in changes {
            let removed = part::removal(&change.strays).to_string();
            let of = |kind: &str| removed.find(&format!("{{\"delete\":{{\"{kind}\":"));
            if let (Some(_), Some(map)) = (of("chain"), of("map")) {
                assert!(
                    !removed[map..].contains("{\"delete\":{\"chain\":"),
                    "{removed}"
                );
            }
        }
    }
}

/// Carries out what leaves nothing of a network, as it was planned.
fn leave(tables: &mut Tables, planned: &FilterStep) -> Vec<String> {
    let FilterStep::Change(change) = planned else {
        panic!("{planned}");
    };
    let commands = tables.commands(change);
    tables.apply(change);
    commands
}

#[test]
fn the_last_network_takes_the_tables_with_it() {
    let other: NetworkId = id(0x5000);
    let gone = |tables: &Tables, network| {
        let found = tables.observed(network, Stateful::BrNetfilter);
        let step = away(network, &found).unwrap();
        let mut imagined = found;
        imagine(&mut imagined, &step);
        imagine(&mut imagined, &step);
        (step, imagined)
    };
    let tables = ["bridge", "inet"]
        .map(|family| ["add", "delete"].map(|verb| format!("{verb} table {family} berth")));
    let tables = tables.concat();
    let mut both = Tables::default();
    settle(&mut both, network(), Stateful::BrNetfilter);
    settle(&mut both, other, Stateful::BrNetfilter);
    let alone = {
        let mut alone = Tables::default();
        settle(&mut alone, other, Stateful::BrNetfilter);
        alone
    };

    // One after the other.
    let mut one_by_one = both.clone();
    let (step, imagined) = gone(&one_by_one, network());
    assert!(!leave(&mut one_by_one, &step).concat().contains(" table "));
    assert_eq!(one_by_one, alone);
    assert_eq!(
        imagined,
        one_by_one.observed(network(), Stateful::BrNetfilter)
    );
    assert_eq!(away(network(), &imagined), None);
    let (step, imagined) = gone(&one_by_one, other);
    assert_eq!(leave(&mut one_by_one, &step), tables);
    assert_eq!(one_by_one, Tables::default());
    assert_eq!(imagined, one_by_one.observed(other, Stateful::BrNetfilter));

    // Both at once: neither saw that it would be the last.
    let mut at_once = both.clone();
    let steps = [network(), other].map(|network| gone(&at_once, network).0);
    leave(&mut at_once, &steps[0]);
    assert_eq!(leave(&mut at_once, &steps[1]), tables);
    assert_eq!(at_once, Tables::default());

    // Another came meanwhile.
    let mut late = alone.clone();
    let (step, _) = gone(&late, other);
    settle(&mut late, network(), Stateful::BrNetfilter);
    let before = late.observed(network(), Stateful::BrNetfilter).part;
    leave(&mut late, &step);
    let left = late.observed(network(), Stateful::BrNetfilter);
    assert_eq!((left.part, left.base.is_empty()), (before, false));

    // What is left without any network, such as by an agent of before.
    let mut left = Tables {
        parts: BTreeMap::new(),
        ..alone
    };
    let (step, _) = gone(&left, network());
    assert_eq!(leave(&mut left, &step), tables);
    assert_eq!(left, Tables::default());
    assert_eq!(
        away(network(), &left.observed(network(), Stateful::No)),
        None
    );
}

#[test]
fn no_two_networks_keep_one_zone() {
    let found = built(&spec());
    let has = zone(network(), &found);
    assert_ne!(has, 0);
    let other = FilterObserved {
        taken_zones: BTreeSet::from([has]),
        ..found.clone()
    };
    let moved = zone(network(), &other);
    assert_ne!(moved, has);
    assert_eq!(
        touched(step(&spec(), &other)),
        ["flush chain z", "add chain z", "add rule z"]
    );
    assert_eq!(zone(network(), &found), has);
}

#[test]
fn port_security_needs_a_kernel_that_tracks_connections() {
    let fault = impossible(&spec(), &empty(Stateful::No)).unwrap();
    assert!(
        fault.message.contains("nf_conntrack_bridge"),
        "{}",
        fault.message
    );
    let mut open = spec();
    open.ports.iter_mut().for_each(|port| port.security = None);
    assert_eq!(impossible(&open, &empty(Stateful::No)), None);
    assert_eq!(impossible(&spec(), &empty(Stateful::Bridge)), None);
}

#[test]
fn overlapping_prefixes_become_one() {
    let nets = [
        "10.0.0.1",
        "10.0.0.0/24",
        "0.0.0.0/0",
        "fe80::1",
        "10.0.0.0/24",
    ];
    let nets = nets.map(|text| text.parse::<berth_common::names::IpPrefix>().unwrap().net());
    let minimal: Vec<String> = wanted::minimal(nets)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(minimal, ["0.0.0.0/0", "fe80::1/128"]);
}

#[test]
fn names_fit_the_kernel() {
    let built = built(&spec());
    assert!(built.part.chains.len() > spec().ports.len());
    for (_, name) in built.part.chains.keys() {
        assert!(name.len() < 32, "{name}");
    }
    for comment in built
        .part
        .chains
        .values()
        .flat_map(|comments| comments.iter())
    {
        assert!(comment.len() < 128, "{comment}");
    }
}

fn packet(
    direction: RuleDirection,
    source: &str,
    destination: &str,
    protocol: TraceProtocol,
) -> TracePacket {
    TracePacket {
        direction,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        mac_address: None,
        protocol,
        connection: TraceConnection::New,
    }
}

/// Traces at a port: whether the packet passes, and what the last step says.
fn traced(port: usize, packet: &TracePacket) -> (bool, String) {
    traced_in(&spec(), &[], port, packet)
}

fn traced_in(
    spec: &NetworkSpec,
    legs: &[RouterLeg],
    port: usize,
    packet: &TracePacket,
) -> (bool, String) {
    let steps = trace(spec, legs, &[], &spec.ports[port], packet);
    let last = steps.last().unwrap();
    (
        steps.iter().all(|step| step.passes),
        format!("{}: {}", last.stage.as_str(), last.detail),
    )
}

#[test]
fn a_trace_names_what_decides() {
    let tcp = |destination_port| TraceProtocol::Tcp {
        source_port: None,
        destination_port,
    };
    let check = |port, packet: TracePacket, passes: bool, words: &str| {
        let (found, text) = traced(port, &packet);
        assert_eq!(found, passes, "{text}");
        assert!(text.contains(words), "{text}");
    };
    let (sends, receives) = (RuleDirection::Egress, RuleDirection::Ingress);
    let rule_id = id::<SecurityGroupRuleId>(0x4000 + 2).to_string();
    check(
        0,
        packet(receives, "203.0.113.9", "10.0.0.10", tcp(22)),
        true,
        &rule_id,
    );
    check(
        0,
        packet(receives, "203.0.113.9", "10.0.0.10", tcp(23)),
        false,
        "denied_ingress",
    );
    // A member of the remote group.
    check(
        0,
        packet(receives, "10.1.9.9", "10.0.0.10", tcp(23)),
        true,
        "allows it",
    );
    check(
        0,
        packet(sends, "10.0.0.10", "10.0.0.11", tcp(23)),
        true,
        "ingress: rule",
    );
    check(
        0,
        packet(sends, "10.0.0.99", "10.0.0.11", tcp(23)),
        false,
        "spoofed_ip",
    );
    check(
        1,
        packet(sends, "10.7.1.2", "10.0.0.10", tcp(22)),
        true,
        "allows it",
    );
    let stranger = TracePacket {
        mac_address: Some("02:00:00:00:00:01".parse().unwrap()),
        ..packet(sends, "10.0.0.10", "10.0.0.11", tcp(23))
    };
    check(0, stranger, false, "spoofed_mac");
    let answer = TracePacket {
        connection: TraceConnection::Answer,
        ..packet(receives, "203.0.113.9", "10.0.0.10", tcp(23))
    };
    check(0, answer, true, "answers pass");
    let offer = TraceProtocol::Udp {
        source_port: Some(67),
        destination_port: 68,
    };
    check(
        0,
        packet(sends, "10.0.0.10", "255.255.255.255", offer),
        false,
        "rogue_dhcp",
    );
    for (source, destination, destination_port) in [
        ("10.0.0.10", "10.0.0.11", 68),
        ("fe80::5054:ff:fe00:a", "ff02::1", 546),
    ] {
        let from_another_port = TraceProtocol::Udp {
            source_port: Some(1000),
            destination_port,
        };
        check(
            0,
            packet(sends, source, destination, from_another_port),
            false,
            "rogue_dhcp",
        );
    }
    check(
        0,
        packet(sends, "10.0.0.10", "169.254.169.254", tcp(80)),
        true,
        "metadata",
    );
    check(
        0,
        packet(sends, "10.0.0.10", "192.0.2.1", tcp(80)),
        false,
        "no gateway",
    );
    // Without port security.
    check(
        2,
        packet(sends, "10.9.9.9", "10.0.0.10", tcp(22)),
        true,
        "allows it",
    );
}

#[test]
fn a_trace_knows_routers_and_the_host_as_a_gateway() {
    let legs = [RouterLeg {
        mac_address: "52:54:00:aa:aa:01".parse().unwrap(),
        ip_addresses: vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
    }];
    let ping = |destination: &str| {
        let kind = TraceProtocol::Icmp { kind: 8, code: 0 };
        packet(RuleDirection::Egress, "10.0.0.10", destination, kind)
    };
    let check = |spec: &NetworkSpec, legs: &[RouterLeg], to: &str, passes: bool, words: &str| {
        let (found, text) = traced_in(spec, legs, 0, &ping(to));
        assert_eq!(found, passes, "{to}: {text}");
        assert!(text.contains(words), "{to}: {text}");
    };
    let mut routed = spec();
    // One without port security could have any address.
    routed.ports.truncate(2);
    // There is a router, and no guest is told of it.
    check(
        &routed,
        &legs,
        "10.0.0.1",
        true,
        "it goes to the router's leg on this host",
    );
    check(&routed, &[], "10.0.0.1", false, "no port has this address");
    check(&routed, &legs, "192.0.2.1", false, "no gateway");
    routed.subnets[0].host_routes = vec![berth_common::document::Route {
        destination: "192.0.2.0/24".parse().unwrap(),
        nexthop: "10.0.0.1".parse().unwrap(),
    }];
    check(
        &routed,
        &legs,
        "192.0.2.1",
        true,
        "by the router's leg on this host, 10.0.0.1",
    );
    check(&routed, &legs, "203.0.113.1", false, "no gateway");
    routed.subnets[0].gateway_ip = Some("10.0.0.1".parse().unwrap());
    check(
        &routed,
        &legs,
        "203.0.113.1",
        true,
        "by the router's leg on this host, 10.0.0.1",
    );
    let nobody = "10.0.0.1, which nobody on this host has";
    check(&routed, &[], "203.0.113.1", false, nobody);
    routed.network_type = NetworkType::Vlan;
    check(&routed, &[], "203.0.113.1", true, "by its gateway 10.0.0.1");
    check(&routed, &[], "10.0.0.2", true, "berth's own services");
    routed.network_type = NetworkType::Nat;
    check(
        &routed,
        &[],
        "10.0.0.1",
        true,
        "this host, which is the network's gateway",
    );
    check(
        &routed,
        &[],
        "203.0.113.1",
        true,
        "by this host, which is the network's gateway",
    );

    // In IPv6 routers tell of themselves, and no subnet has to.
    let spec = spec();
    let mut port = spec.ports[1].clone();
    port.security = None;
    let out = packet(
        RuleDirection::Egress,
        "2001:db8::11",
        "2001:db8:ffff::1",
        TraceProtocol::Icmp { kind: 128, code: 0 },
    );
    let last = |legs: &[RouterLeg]| trace(&spec, legs, &[], &port, &out).pop().unwrap();
    assert!(last(&legs).passes, "{:?}", last(&legs));
    assert!(!last(&[]).passes);
}

#[test]
fn a_trace_lets_a_guest_ask_on_the_link_whatever_its_groups_say_and_no_further() {
    let without_rules = |mut spec: NetworkSpec| {
        for group in &mut spec.security_groups {
            group.rules.clear();
        }
        spec
    };
    let [served, unserved] = [spec(), unserved()].map(without_rules);
    let udp = |from, to| TraceProtocol::Udp {
        source_port: Some(from),
        destination_port: to,
    };
    let (v4, v6) = (udp(68, 67), udp(546, 547));
    let icmp = |kind| TraceProtocol::Icmp { kind, code: 0 };
    let (berths, somebodys) = (Ok("berth's DHCP"), Ok("whoever answers DHCP"));
    let (on_link, denied) = (Ok("neighbour discovery"), Err("denied_egress"));
    let far = "2001:db8:ffff::1";
    let legs = [RouterLeg::found("52:54:00:aa:aa:01".parse().unwrap())];
    for (what, spec, protocol, destination, wanted) in [
        (1, &served, v4, "255.255.255.255", berths),
        (2, &served, v4, "10.0.0.2", berths),
        (3, &served, v4, "10.0.0.11", denied),
        (4, &served, v4, "198.51.100.9", denied),
        (5, &served, v6, "ff02::1:2", berths),
        (6, &served, v6, "fe80::a9fe:a9fe", berths),
        (7, &served, v6, "2001:db8::2", berths),
        (8, &served, v6, "2001:db8::11", denied),
        (9, &served, v6, far, denied),
        // From or to another port it is nothing of DHCP's.
        (10, &served, udp(1000, 67), "255.255.255.255", denied),
        (11, &served, udp(68, 69), "10.0.0.2", denied),
        (12, &unserved, v4, "255.255.255.255", somebodys),
        (13, &unserved, v4, "10.0.0.9", somebodys),
        (14, &unserved, v4, "198.51.100.9", denied),
        (15, &unserved, v6, "2001:db8::9", somebodys),
        (16, &unserved, v6, far, denied),
        (17, &served, icmp(133), "ff02::2", on_link),
        (18, &served, icmp(133), "2001:db8::11", denied),
        (19, &served, icmp(135), "ff02::1:ff00:11", on_link),
        (20, &served, icmp(135), "2001:db8::11", on_link),
        (21, &served, icmp(135), far, denied),
        (22, &served, icmp(136), "ff02::1", on_link),
        (23, &served, icmp(136), far, Err("spoofed_nd")),
        (24, &served, icmp(131), "ff0e::1", on_link),
        (25, &served, icmp(143), "2001:db8::11", denied),
    ] {
        let is_ipv6 = destination.contains(':');
        let source = if is_ipv6 {
            "fe80::5054:ff:fe00:a"
        } else {
            "10.0.0.10"
        };
        let packet = packet(RuleDirection::Egress, source, destination, protocol);
        let (passes, text) = traced_in(spec, &legs, 0, &packet);
        assert_eq!(passes, wanted.is_ok(), "{what}: {text}");
        let (Ok(words) | Err(words)) = wanted;
        assert!(text.contains(words), "{what}: {text}");
        // Without a router everybody is on the link.
        if [135, 136].map(icmp).contains(&protocol) {
            let (passes, text) = traced_in(spec, &[], 0, &packet);
            assert!(
                passes && text.contains("neighbour discovery"),
                "{what}: {text}"
            );
        }
    }
}

#[test]
fn a_trace_knows_who_may_use_an_address_and_what_is_for_everybody() {
    let sent = |spec: &NetworkSpec, to: &str| {
        let kind = TraceProtocol::Tcp {
            source_port: None,
            destination_port: 22,
        };
        let packet = packet(RuleDirection::Egress, "10.0.0.10", to, kind);
        let steps = trace(spec, &[], &[], &spec.ports[0], &packet);
        let passes = steps.iter().all(|step| step.passes);
        let delivery = steps
            .iter()
            .find(|step| step.stage == TraceStage::Delivery)
            .unwrap();
        (passes, delivery.port_id, delivery.detail.clone())
    };
    let check = |spec: &NetworkSpec, to, passes: bool, port: Option<usize>, words: &str| {
        let found = sent(spec, to);
        assert_eq!(found.0, passes, "{found:?}");
        assert_eq!(found.1, port.map(|at| spec.ports[at].id), "{found:?}");
        assert!(found.2.contains(words), "{found:?}");
    };
    let mut closed = spec();
    closed.ports.truncate(2);
    check(&closed, "10.0.0.100", true, Some(1), "may use this address");
    check(&closed, "10.0.0.99", false, None, "no port has this");
    for everybody in ["10.0.0.255", "255.255.255.255", "224.0.0.1"] {
        check(&closed, everybody, true, None, "to everybody");
    }
    // One that may use any.
    check(&spec(), "10.0.0.77", true, Some(2), "may use this address");
    // Whose groups are asked, who said that it uses it.
    check(&spec(), "10.0.0.100", true, Some(1), "may use this address");
    let mut denied = closed.clone();
    for group in &mut denied.security_groups {
        let egress = |rule: &SecurityGroupRule| rule.direction == RuleDirection::Egress;
        group.rules.retain(egress);
    }
    check(
        &denied,
        "10.0.0.100",
        false,
        Some(1),
        "may use this address",
    );
    let mut two = closed.clone();
    let mut another = port(13, &[1]);
    another.security = two.ports[1].security.clone();
    two.ports.push(another);
    check(&two, "10.0.0.100", true, None, "whichever of the ports");
    // Its own, it is not sent.
    let mut own = closed.clone();
    own.ports.swap(0, 1);
    let packet = packet(
        RuleDirection::Egress,
        "10.0.0.11",
        "10.0.0.100",
        TraceProtocol::Number { number: 112 },
    );
    assert!(!traced_in(&own, &[], 0, &packet).0);
    let mut spanning = closed;
    spanning.network_type = NetworkType::Vxlan;
    check(&spanning, "10.0.0.99", true, None, "the uplink leads");
    check(&spanning, "10.0.0.100", true, Some(1), "on another host");
}

#[test]
fn a_trace_lets_metadata_be_told_to_a_port_itself() {
    let tcp = |source_port, destination_port| TraceProtocol::Tcp {
        source_port,
        destination_port,
    };
    let (v4, v6) = ("169.254.169.254", "fe80::a9fe:a9fe");
    let mut spec = spec();
    let security = spec.ports[1].security.as_mut().unwrap();
    security.allowed_address_pairs.push(AddressPair {
        ip_address: "10.0.0.10".parse().unwrap(),
        mac_address: None,
    });
    for (port, source, destination, passes) in [
        (0, "10.0.0.10", v4, true),
        (1, "10.0.0.11", v4, true),
        (1, "10.0.0.10", v4, false),
        (1, "10.7.1.2", v4, false),
        (1, "2001:db8::11", v6, true),
        (1, "fe80::5054:ff:fe00:b", v6, true),
        (2, "10.0.0.12", v4, true),
        (2, "10.0.0.10", v4, false),
        (2, "fe80::5054:ff:fe00:c", v6, true),
        (2, "fe80::5054:ff:fe00:a", v6, false),
    ] {
        let asks = packet(RuleDirection::Egress, source, destination, tcp(None, 80));
        let (found, text) = traced_in(&spec, &[], port, &asks);
        assert_eq!(found, passes, "{source} at {port}: {text}");
        assert_eq!(text.contains("dropped as spoofed_ip"), !passes, "{text}");
        // And what is answered.
        let tells = packet(
            RuleDirection::Ingress,
            destination,
            source,
            tcp(Some(80), 40_000),
        );
        let (found, text) = traced_in(&spec, &[], port, &tells);
        assert_eq!(found, passes, "{source} at {port}: {text}");
    }
    // With its own address, but another's Ethernet address.
    let another = TracePacket {
        mac_address: Some("00:00:5e:00:01:01".parse().unwrap()),
        ..packet(RuleDirection::Egress, "10.0.0.12", v4, tcp(None, 80))
    };
    assert!(!traced_in(&spec, &[], 2, &another).0);
    // By this address guests find berth's DHCP server as well, and it them.
    let solicits = TraceProtocol::Icmp { kind: 135, code: 0 };
    let finds = packet(RuleDirection::Egress, "fe80::1:2", v6, solicits);
    assert!(traced_in(&spec, &[], 2, &finds).0);
    // Where berth has no such service, whoever has one may tell what it likes.
    let asks = packet(RuleDirection::Egress, "10.0.0.10", v4, tcp(None, 80));
    let (_, text) = traced_in(&unserved(), &[], 2, &asks);
    assert!(!text.contains("spoofed_ip"), "{text}");
}

/// Ports of other networks lead through the host's chains while these are those of the new agent, and they are those of the one before.
#[test]
fn ports_of_an_agent_from_before_keep_the_chains_that_they_go_through() {
    /// What all of its ports' chains led to.
    const BEFORE: [&str; 7] = [
        "asked",
        "received",
        "rogues",
        "sent",
        "services",
        "strangers",
        "untagged",
    ];
    let other: NetworkId = id(0x5000);
    for stateful in [Stateful::BrNetfilter, Stateful::Bridge] {
        let mut tables = Tables::default();
        settle(&mut tables, network(), stateful);
        settle(&mut tables, other, stateful);
        let fresh = tables.clone();
        let bridge = |name: &str| (nft::Family::Bridge, name.to_owned());
        assert!(tables.base.remove(&bridge(base::NEIGHBOURS)).is_some());
        for name in BEFORE {
            let rules = tables.base.get_mut(&bridge(name)).unwrap();
            rules.push("what it said before".to_owned());
        }
        for network in [network(), other] {
            let part = tables.part(network);
            let mut part = Arc::unwrap_or_clone(part);
            assert!(
                part.chains
                    .remove(&bridge(&names::of_network("d", network)))
                    .is_some()
            );
            let sent = part.chains.iter_mut();
            for (_, comments) in sent.filter(|(name, _)| name.1.starts_with("e_")) {
                Arc::make_mut(comments).push("what it said before".to_owned());
            }
            tables.put(network, part.into());
        }
        let changes = settle(&mut tables, network(), stateful);
        assert_eq!(tables.base, fresh.base);
        let changes = [changes, settle(&mut tables, other, stateful)].concat();
        assert_eq!(tables, fresh);
        for change in changes {
            assert!(change.strays.is_empty() && change.gone_chains.is_empty());
            // Each in one transaction with what takes its place; and no link leads to nowhere meanwhile.
            assert!(change.gone_links.is_empty(), "{change:?}");
            let told = change.commands();
            assert!(!told.iter().any(|it| it.starts_with("delete ")), "{told:?}");
        }
    }
}

/// The documents of a router in this network and another one, with a port there on this host and one on another.
fn routed() -> (NetworkSpec, [Document; 2]) {
    let mut here = spec();
    here.subnets[0].gateway_ip = Some("10.0.0.1".parse().unwrap());
    let other: NetworkId = id(77);
    let mut there = spec();
    there.ports.truncate(1);
    there.ports[0].fixed_ips[0].ip_address = "10.5.0.10".parse().unwrap();
    there.network_type = NetworkType::Vxlan;
    there.remote_ports = vec![far(11, Some("192.0.2.7"))];
    let leg = |network_id, n: u8| RouterInterface {
        network_id,
        subnet_id: SUBNET.parse().unwrap(),
        cidr: format!("10.{n}.0.0/24").parse().unwrap(),
        ip_address: IpAddr::from([10, n, 0, 1]),
        mac_address: format!("52:54:00:00:01:{n:02x}").parse().unwrap(),
        mtu: 1450,
        ipv6_address_mode: None,
    };
    let router = RouterSpec {
        name: "router".parse().unwrap(),
        project: "default".parse().unwrap(),
        interfaces: vec![leg(network(), 0), leg(other, 5)],
        external_gateway: None,
        floating_ips: Vec::new(),
        routes: Vec::new(),
    };
    let documents = [
        Document::Network(Desired {
            id: other,
            generation: Generation(1),
            host_id: host(),
            spec: Some(there),
        }),
        Document::Router(Desired {
            id: id::<RouterId>(99),
            generation: Generation(1),
            host_id: host(),
            spec: Some(router),
        }),
    ];
    (here, documents)
}

#[test]
fn a_leg_counts_while_it_is_in_the_bridge_and_while_documents_tell_of_it() {
    let (_, documents) = routed();
    let told = legs(network(), &[], documents.iter());
    assert_eq!(told.len(), 1);
    // The same one, found.
    let same = RouterLeg::found(told[0].mac_address);
    assert_eq!(
        legs(network(), std::slice::from_ref(&same), documents.iter()),
        told
    );
    // One that no document tells of any more.
    let left = RouterLeg::found("52:54:00:ff:ff:ff".parse().unwrap());
    let both = legs(network(), std::slice::from_ref(&left), documents.iter());
    assert_eq!(both, [told[0].clone(), left.clone()]);
    let rules = |legs: &[RouterLeg]| {
        let found = FilterObserved {
            legs: legs.to_vec(),
            ..empty(Stateful::Bridge)
        };
        text(step(&spec(), &found))
    };
    assert!(!rules(&told).contains("52:54:00:ff:ff:ff"));
    assert!(rules(&both).contains("52:54:00:ff:ff:ff"));
}

#[test]
fn a_trace_follows_a_packet_by_a_router_to_another_host() {
    let (here, documents) = routed();
    let all: Vec<&Document> = documents.iter().collect();
    let kind = TraceProtocol::Tcp {
        source_port: None,
        destination_port: 22,
    };
    let check = |documents: &[&Document], to: &str, passes: bool, words: &str| {
        let legs = legs(network(), &[], documents.iter().copied());
        let beyond = beyond(network(), documents);
        let sent = packet(RuleDirection::Egress, "10.0.0.10", to, kind);
        let steps = trace(&here, &legs, &beyond, &here.ports[0], &sent);
        let last = steps.last().unwrap();
        let text = format!("{}: {}", last.stage.as_str(), last.detail);
        assert_eq!(steps.iter().all(|step| step.passes), passes, "{text}");
        assert!(text.contains(words), "{to}: {text}");
        steps
    };
    let steps = check(
        &all,
        "10.5.0.11",
        true,
        "by the tunnel to 192.0.2.7 to 10.5.0.11 (far) on another host",
    );
    assert!(
        steps[steps.len() - 2]
            .detail
            .contains("the router's leg on this host"),
        "{steps:?}"
    );
    // On this host the groups of the receiver are asked too.
    check(&all, "10.5.0.10", true, "ingress: rule");
    check(&all, "10.5.0.1", true, "itself");
    check(&all, "10.5.0.99", false, "no port is known");
    check(&all, "203.0.113.1", true, "the router's leg on this host");
    check(&all[1..], "10.5.0.11", false, "not been told of");
}

#[test]
fn a_trace_lets_in_what_the_chain_lets_in_before_it_asks_groups() {
    let icmp = |kind| TraceProtocol::Icmp { kind, code: 0 };
    let tcp = |from| TraceProtocol::Tcp {
        source_port: Some(from),
        destination_port: 40_000,
    };
    let udp = |from, to| TraceProtocol::Udp {
        source_port: Some(from),
        destination_port: to,
    };
    let v6 = ("fe80::1", "fe80::5054:ff:fe00:b");
    let v4 = ("10.0.0.2", "10.0.0.11");
    let metadata = ("169.254.169.254", "10.0.0.11");
    let stranger = ("10.9.0.2", "10.0.0.11");
    let (pass, drop) = ("services: ", "ingress: none of");
    for ((source, destination), protocol, words) in [
        (v6, icmp(130), pass),
        (v6, icmp(134), pass),
        (v6, icmp(135), pass),
        (v6, icmp(136), pass),
        (v6, icmp(143), pass),
        (v6, icmp(133), drop),
        (v6, icmp(137), drop),
        (v4, udp(67, 68), pass),
        (v4, udp(53, 4000), pass),
        (v4, tcp(53), pass),
        (v4, icmp(0), pass),
        (v4, icmp(8), drop),
        (v4, tcp(22), drop),
        (metadata, tcp(80), pass),
        (stranger, tcp(80), drop),
        (stranger, udp(67, 68), drop),
        // No types of IPv6.
        (stranger, icmp(135), drop),
    ] {
        let packet = packet(RuleDirection::Ingress, source, destination, protocol);
        let (passes, text) = traced(1, &packet);
        assert!(text.contains(words), "{source} {protocol}: {text}");
        assert_eq!(passes, words == pass, "{text}");
    }
    // Where berth has no services, nothing comes from them.
    let packet = packet(RuleDirection::Ingress, metadata.0, metadata.1, tcp(80));
    let (passes, text) = traced_in(&unserved(), &[], 1, &packet);
    assert!(!passes, "{text}");
}

/// The chain that a command makes or removes.
fn chain_of<'a>(verb: &str, command: &'a str) -> Option<&'a str> {
    let mut words = command.split(' ');
    let is_it = words.next() == Some(verb) && words.next() == Some("chain");
    words.nth(2).filter(|_| is_it)
}

/// A chain that a command leads to and that is none of these.
fn missing<'a>(chains: &BTreeSet<String>, command: &'a str) -> Option<&'a str> {
    let words: Vec<&str> = command.split([' ', ',']).collect();
    let leads = words.windows(2).filter_map(|pair| match pair {
        ["jump" | "goto", target] => Some(*target),
        _ => None,
    });
    leads.into_iter().find(|target| !chains.contains(*target))
}

prop_compose! {
    fn any_spec()(
        ports in prop::collection::vec((1..6_u8, any::<bool>(), prop::sample::subsequence(vec![1, 2, 3], 0..=3)), 0..5),
        rules in prop::sample::subsequence(vec![0, 1, 2, 3], 0..=4),
        members in prop::sample::subsequence(vec!["10.0.0.1", "10.0.0.0/30", "10.0.0.2", "2001:db8::1", "::/0"], 0..=5),
        second_group in any::<bool>(),
        served in any::<bool>(),
    ) -> NetworkSpec {
        let mut spec = spec();
        let mut seen = BTreeSet::new();
        spec.ports = ports
            .into_iter()
            .filter(|(n, _, _)| seen.insert(*n))
            .map(|(n, secured, groups)| {
                let mut port = port(n, &groups);
                port.security = port.security.filter(|_| secured);
                port
            })
            .collect();
        let all = spec.security_groups[0].rules.clone();
        spec.security_groups[0].rules = rules.into_iter().map(|n: usize| all[n].clone()).collect();
        spec.security_groups.truncate(if second_group { 2 } else { 1 });
        let members = members.into_iter().map(|text| text.parse().unwrap()).collect();
        spec.group_members.insert(group(1), members);
        if !served {
            spec.subnets.clear();
        }
        spec
    }
}

/// A rule in which every part that can be any text is this one.
fn rule_of(text: &str) -> nft::Rule {
    use nft::{Field, IN, MAC_TO, Op, Operand, Statement};
    let matches = |operand| Statement::Match(IN, Op::Is, operand);
    let of = || Operand::text(text);
    nft::Rule {
        statements: vec![
            matches(of()),
            matches(Operand::Set(vec![of(), of()])),
            Statement::Match(Field::Ct("state"), Op::Has, of()),
            Statement::SetMac(MAC_TO, text.to_owned()),
        ],
        whose: text.to_owned(),
    }
}

/// A rule in which every part that can be any name is this one.
fn rule_to(name: &str) -> nft::Rule {
    use nft::{IN, Op, Operand, Rule, Statement};
    Rule {
        statements: vec![
            Statement::Match(IN, Op::Is, Operand::Named(name.to_owned())),
            Statement::Jump(name.to_owned()),
            Statement::Goto(name.to_owned()),
        ],
        whose: "host".to_owned(),
    }
}

/// A change in which every part that can be any text is this one.
fn change_of(text: &str) -> Change {
    let spec = spec();
    let Some(FilterStep::Change(change)) = step(
        &spec,
        &built(&NetworkSpec {
            ports: Vec::new(),
            ..spec.clone()
        }),
    ) else {
        panic!("nothing to do");
    };
    let mut change = *change;
    let links = std::mem::take(&mut change.links).into_iter();
    change.links = links
        .map(|((family, map, _), target)| ((family, map, text.to_owned()), target))
        .collect();
    change.gone_links = change.links.clone();
    change.counted = [(text.to_owned(), Reason::ALL.into())].into();
    change.gone_counted = change.counted.clone();
    change
}

proptest! {
    /// Names of links and whatever else is a string stays within its quotes, and a name of an object is no more than one.
    #[test]
    fn nothing_that_is_put_into_a_command_becomes_another(
        text in prop_oneof![any::<String>(), Just("x\" accept; flush ruleset; #\n\\\"{}".to_owned())]
    ) {
        let family = nft::Family::Bridge;
        // What is left without what stands in quotes.
        let bare = |command: &str| -> String { command.split('"').step_by(2).collect() };
        let (hostile, harmless) = (rule_of(&text), rule_of("x"));
        let (hostile, harmless) = (hostile.add(family, "c"), harmless.add(family, "c"));
        prop_assert_eq!(bare(&hostile), bare(&harmless));
        prop_assert!(!hostile.chars().any(char::is_control));

        let named = rule_to(&text).add(family, &text);
        let is_plain = |it: char| it.is_ascii_alphanumeric() || " _-?@=".contains(it);
        prop_assert!(bare(&named).chars().all(is_plain), "{}", named);
        let words = |command: &str| command.split(' ').count();
        prop_assert_eq!(words(&named), words(&rule_to("x").add(family, "x")));

        let mut number = String::new();
        nft::write_numbers(&mut number, &text);
        prop_assert!(number.chars().all(|it| it.is_ascii_digit() || " .?".contains(it)));

        let told = |text: &str| nft::transaction(&change_of(text).commands());
        let (hostile, harmless) = (told(&text), told("x"));
        prop_assert_eq!(bare(&hostile), bare(&harmless));
        prop_assert_eq!(hostile.lines().count(), harmless.lines().count());
    }

    /// From any document to any other: one change, and nothing is left to do.
    #[test]
    fn a_change_leads_where_it_shall(before in any_spec(), after in any_spec()) {
        let mut found = built(&before);
        if let Some(step) = step(&after, &found) {
            imagine(&mut found, &step);
        }
        prop_assert_eq!(step(&after, &found), None);
        prop_assert_eq!(&found.part, &built(&after).part);
        if let Some(step) = away(network(), &found) {
            imagine(&mut found, &step);
        }
        prop_assert!(found.part.is_empty());
    }

    /// What is kept from plan to plan changes no plan.
    #[test]
    fn what_was_rendered_before_makes_no_difference(
        specs in prop::collection::vec((any_spec(), any::<bool>()), 1..6)
    ) {
        let (links, mut rendered) = (Reach::default(), Rendered::default());
        let mut found = empty(Stateful::BrNetfilter);
        for (spec, is_carried_out) in specs {
            let again = towards(network(), &spec, &links, host(), &found, &mut rendered);
            prop_assert_eq!(&again, &step(&spec, &found));
            if let Some(step) = again.filter(|_| is_carried_out) {
                imagine(&mut found, &step);
                let none = towards(network(), &spec, &links, host(), &found, &mut rendered);
                prop_assert_eq!(none, None);
            }
        }
    }

    /// Nothing is used before it is made, and nothing is removed that is still used.
    #[test]
    fn a_transaction_is_in_order(before in any_spec(), after in any_spec()) {
        let found = built(&before);
        let mut chains: BTreeSet<String> = found.part.chains.keys().chain(found.base.keys()).map(|name| name.1.clone()).collect();
        for command in each(&commands(step(&after, &found))) {
            prop_assert_eq!(missing(&chains, &command), None, "{}", command);
            if let Some(name) = chain_of("add", &command) {
                chains.insert(name.to_owned());
            }
            if let Some(name) = chain_of("delete", &command) {
                prop_assert!(chains.remove(name));
            }
        }
    }
}

#[test]
fn many_new_ports_come_in_portions_that_lead_where_the_whole_does() {
    for (ports, portions) in [(1, 1), (64, 1), (65, 2), (130, 3)] {
        let mut wanted = spec();
        wanted.ports = (0..ports)
            .map(|n| {
                let mut port = port(n, &[1]);
                // Those without security have fewer chains of their own.
                port.security = port.security.filter(|_| n != 3);
                port
            })
            .chain((ports > 64).then(|| port(200, &[1])))
            .collect();
        let whole = step(&wanted, &empty(Stateful::BrNetfilter)).unwrap();
        let mut found = empty(Stateful::BrNetfilter);
        let steps = whole.portions();
        assert_eq!(steps.len(), portions, "{ports} ports");
        let mut chains: BTreeSet<String> = found.base.keys().map(|name| name.1.clone()).collect();
        for portion in steps {
            for command in each(&commands(Some(portion.clone()))) {
                assert_eq!(missing(&chains, &command), None, "{command}");
                if let Some(name) = chain_of("add", &command) {
                    chains.insert(name.to_owned());
                }
            }
            imagine(&mut found, &portion);
        }
        assert_eq!(step(&wanted, &found), None);
    }
}

#[test]
fn ports_that_all_change_change_in_portions_and_what_goes_goes_last() {
    let many = |groups: &[u8], served: bool| {
        let mut wanted = spec();
        wanted.ports = (0..130).map(|n| port(n, groups)).collect();
        if !served {
            for subnet in &mut wanted.subnets {
                subnet.dhcp_ip = None;
            }
        }
        wanted
    };
    let before = built(&many(&[1, 2], true));
    for (after, portions) in [
        (many(&[1, 2], false), 3),
        (many(&[1], true), 3),
        (
            {
                let mut after = many(&[1], true);
                after.security_groups.truncate(1);
                after
            },
            4,
        ),
    ] {
        let mut found = before.clone();
        let steps = step(&after, &found).unwrap().portions();
        assert_eq!(steps.len(), portions);
        for portion in &steps {
            imagine(&mut found, portion);
        }
        assert_eq!(step(&after, &found), None);
    }
}
