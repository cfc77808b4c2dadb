//! Networks that reach beyond their host, with real packets between hosts: VXLAN, flat, nat.

use std::collections::BTreeSet;

use berth_agent::decide::{
    names,
    network::{NetThen, uplink::FlatAddressPolicy},
};
use berth_common::{
    document::{NetworkSpec, NetworkType, SubnetSpec},
    ids::{NetworkId, SubnetId},
    message::report::FaultCode,
};
use serde_json::Value;

use super::{
    fabric::{
        Capture, HostOnWire, WIRE, bare, break_off_everywhere, cut_wires, inside, remote,
        tunnel_ip, wires,
    },
    ip, isolated, run,
};

fn mac(n: u8) -> String {
    format!("52:54:00:00:00:{n:02x}")
}

/// The forwarding table of a link, as `bridge -j fdb` shows it: Ethernet address, destination, whose, and how.
fn fdb(host: &HostOnWire, link: &str) -> BTreeSet<String> {
    let shown = inside(&host.namespace, || {
        run("bridge", &["-j", "fdb", "show", "dev", link])
    });
    let entries: Value = serde_json::from_str(&shown).unwrap();
    let entries = entries.as_array().unwrap().iter();
    entries
        .filter(|entry| entry["state"] != "permanent" || entry["dst"].is_string())
        .map(|entry| {
            let flags = entry["flags"].as_array().unwrap();
            let own = flags.iter().any(|flag| flag == "self");
            format!(
                "{} {} {} {}",
                entry["mac"].as_str().unwrap(),
                entry["dst"].as_str().unwrap_or("-"),
                if own { "self" } else { "master" },
                entry["state"].as_str().unwrap_or_default()
            )
        })
        .collect()
}

/// What the table of a host shall be that knows of these guests.
fn known(guests: &[(u8, u8)]) -> BTreeSet<String> {
    guests
        .iter()
        .flat_map(|(guest, host)| {
            let (mac, host) = (mac(*guest), tunnel_ip(*host));
            [
                format!("00:00:00:00:00:00 {host} self static"),
                format!("{mac} {host} self static"),
                format!("{mac} - master static"),
            ]
        })
        .collect()
}

fn vxlan(vni: u32, remotes: &[(u8, u8)]) -> NetworkSpec {
    NetworkSpec {
        remote_ports: remotes
            .iter()
            .map(|(guest, host)| remote(&mac(*guest), *host))
            .collect(),
        ..bare(NetworkType::Vxlan, Some(vni))
    }
}

#[test]
fn vxlans_reach_across_hosts_and_never_one_another() {
    isolated(
        "uplinks::vxlans_reach_across_hosts_and_never_one_another",
        async |_| {
            wires();
            let hosts = [1, 2, 3].map(HostOnWire::new);
            let [red, blue] = [NetworkId::new(), NetworkId::new()];
            let converge = |host: usize, network, spec: &NetworkSpec| {
                assert_eq!(
                    hosts[host - 1].converge(network, Some(spec)),
                    NetThen::Converged
                );
            };
            // Guest n is on host n; two tenants have the same addresses, of Ethernet too. Only red is on host 3.
            converge(1, red, &vxlan(100, &[(2, 2), (3, 3)]));
            converge(2, red, &vxlan(100, &[(1, 1), (3, 3)]));
            converge(3, red, &vxlan(100, &[(1, 1), (2, 2)]));
            converge(1, blue, &vxlan(200, &[(2, 2)]));
            converge(2, blue, &vxlan(200, &[(1, 1)]));
            let plug = |host: u8, network, name: &str| {
                let address = format!("10.0.0.{host}/24");
                hosts[usize::from(host) - 1].guest(network, name, &mac(host), &address)
            };
            let reds = [1, 2, 3].map(|n| plug(n, red, &format!("red{n}")));
            let blues = [1, 2].map(|n| plug(n, blue, &format!("blue{n}")));

            let capture = Capture::start();
            for there in ["10.0.0.2", "10.0.0.3"] {
                assert!(reds[0].ping(there), "{there}");
            }
            assert!(reds[1].ping("10.0.0.3"));
            let seen = capture.vxlans();
            assert!(
                !seen.is_empty() && seen.iter().all(|packet| packet.vni == 100),
                "{seen:?}"
            );
            // What is for one guest goes to its host alone, from the first packet on.
            for packet in &seen {
                for n in 1..=3 {
                    if packet.mac == reds[usize::from(n) - 1].mac {
                        assert_eq!(packet.to, tunnel_ip(n), "{packet:?}");
                    }
                }
            }
            assert!(blues[0].ping("10.0.0.2"));
            assert!(blues[0].cannot_ping("10.0.0.3"), "it is on red alone");
            // Guests of red may still ask who is there.
            let mut seen = capture.vxlans();
            seen.retain(|packet| packet.vni != 100);
            assert!(
                !seen.is_empty() && seen.iter().all(|packet| packet.vni == 200),
                "{seen:?}"
            );
            let pair = BTreeSet::from([tunnel_ip(1), tunnel_ip(2)]);
            assert!(
                seen.iter()
                    .all(|packet| pair.contains(&packet.from) && pair.contains(&packet.to)),
                "{seen:?}"
            );

            // What was said is in the tables, and nothing that was learned.
            let vtep = names::vxlan(red);
            assert_eq!(fdb(&hosts[0], &vtep), known(&[(2, 2), (3, 3)]));
            let shown = hosts[0].ip_json(&format!("link show dev {vtep}"));
            let data = &shown[0]["linkinfo"]["info_data"];
            assert_eq!(
                (
                    &data["id"],
                    &data["local"],
                    &data["port"],
                    &data["learning"]
                ),
                (
                    &100.into(),
                    &"192.0.2.1".into(),
                    &4789.into(),
                    &false.into()
                )
            );
            assert_eq!(
                shown[0]["linkinfo"]["info_slave_data"]["learning"],
                Value::from(false)
            );
            assert_eq!(shown[0]["mtu"], Value::from(1450));
            // Nobody else gets what is for a guest far away: the bridge knows where it is.
            for (name, spec) in [
                ("a guest moved", vec![(2, 3), (3, 3)]),
                ("a guest is gone", vec![(3, 3)]),
                ("nobody is left", vec![]),
            ] {
                converge(1, red, &vxlan(100, &spec));
                assert_eq!(fdb(&hosts[0], &vtep), known(&spec), "{name}");
            }
            // What somebody else put in goes, and what somebody took out comes back.
            let spec = [(2, 2), (3, 3)];
            converge(1, red, &vxlan(100, &spec));
            for change in [
                format!("bridge fdb del {} dev {vtep} dst 192.0.2.2 self", mac(2)),
                format!(
                    "bridge fdb append 00:00:00:00:00:00 dev {vtep} dst 192.0.2.99 self static"
                ),
                format!(
                    "bridge fdb replace {} dev {vtep} dst 192.0.2.99 self static",
                    mac(3)
                ),
                format!("bridge fdb del {} dev {vtep} master", mac(3)),
                format!("bridge link set dev {vtep} learning on"),
            ] {
                let words: Vec<&str> = change.split(' ').collect();
                inside(&hosts[0].namespace, || run(words[0], &words[1..]));
                assert_ne!(
                    hosts[0].plan(red, Some(&vxlan(100, &spec))).steps,
                    [],
                    "{change}"
                );
                converge(1, red, &vxlan(100, &spec));
                assert_eq!(fdb(&hosts[0], &vtep), known(&spec), "{change}");
            }
            assert!(reds[0].ping("10.0.0.2"));
            // Another VNI rebuilds the VTEP, and only that.
            let bridge = hosts[0].ip_json(&format!("link show dev {}", names::bridge(red)));
            converge(1, red, &vxlan(101, &spec));
            assert!(reds[0].cannot_ping("10.0.0.2"));
            assert_eq!(
                hosts[0].ip_json(&format!("link show dev {}", names::bridge(red)))[0]["ifindex"],
                bridge[0]["ifindex"]
            );
            // A VNI is one network's on a host.
            let then = hosts[0].converge(blue, Some(&vxlan(101, &[])));
            assert!(
                matches!(&then, NetThen::Refused(fault) if fault.message.contains(&vtep)),
                "{then:?}"
            );

            reds.into_iter()
                .chain(blues)
                .for_each(|guest| guest.unplug());
            for host in hosts {
                for network in [red, blue] {
                    assert_eq!(host.converge(network, None), NetThen::Gone);
                }
                host.end();
            }
            cut_wires();
        },
    );
}

#[test]
fn a_broken_off_vxlan_is_finished_or_removed() {
    isolated(
        "uplinks::a_broken_off_vxlan_is_finished_or_removed",
        async |_| {
            wires();
            let mut host = HostOnWire::new(1);
            break_off_everywhere(
                &mut host,
                NetworkId::new(),
                &vxlan(100, &[(2, 2), (3, 2), (4, 3)]),
            );
            // A packet that does not fit is no network that half works.
            let spec = NetworkSpec {
                mtu: 1451,
                ..vxlan(100, &[])
            };
            let then = host.converge(NetworkId::new(), Some(&spec));
            assert!(
                matches!(&then, NetThen::Refused(fault) if fault.message.contains("1501") && fault.message.contains("1500")),
                "{then:?}"
            );
            host.end();
            cut_wires();
        },
    );
}

#[test]
fn flat_networks_are_on_the_nic() {
    isolated("uplinks::flat_networks_are_on_the_nic", async |_| {
        wires();
        let mut hosts = [1, 2].map(HostOnWire::new);
        let network = NetworkId::new();
        let spec = bare(NetworkType::Flat, None);
        ip("-n host1 link set eth1 down");
        break_off_everywhere(&mut hosts[1], network, &spec);
        for host in &hosts {
            assert_eq!(host.converge(network, Some(&spec)), NetThen::Converged);
        }
        let near = hosts[0].guest(network, "near", &mac(1), "10.0.0.1/24");
        let far = hosts[1].guest(network, "far", &mac(2), "10.0.0.2/24");
        assert!(near.ping("10.0.0.2"));
        // One flat network has a NIC alone; and a NIC that is elsewhere is left there.
        let then = hosts[0].converge(NetworkId::new(), Some(&spec));
        assert!(
            matches!(&then, NetThen::Refused(fault) if fault.message.contains("eth1 is in")),
            "{then:?}"
        );
        // Out of the bridge by somebody's hand: it comes back.
        ip("-n host1 link set eth1 nomaster");
        assert_eq!(hosts[0].converge(network, Some(&spec)), NetThen::Converged);
        assert!(near.ping("10.0.0.2"));
        near.unplug();
        far.unplug();
        for host in hosts {
            assert_eq!(host.converge(network, None), NetThen::Gone);
            let nic = host.ip_json("link show dev eth1");
            assert!(
                nic[0]["master"].is_null()
                    && nic[0]["flags"].as_array().unwrap().contains(&"UP".into())
            );
            assert!(nic[0]["ifalias"].is_null());
            host.end();
        }
        cut_wires();
    });
}

#[test]
fn a_nic_with_addresses_is_refused_or_they_move_with_it() {
    isolated(
        "uplinks::a_nic_with_addresses_is_refused_or_they_move_with_it",
        async |_| {
            wires();
            let give_addresses = |host: &str| {
                for command in [
                    "address add 198.51.100.1/24 dev eth1",
                    "address add 198.51.100.9/24 dev eth1",
                    "address add fd00:51::1/64 dev eth1 nodad",
                    "route add default via 198.51.100.254 dev eth1 metric 7",
                    "route add 203.0.113.0/24 via 198.51.100.254 dev eth1 src 198.51.100.9",
                    "-6 route add default via fd00:51::fe dev eth1",
                ] {
                    ip(&format!("-n {host} {command}"));
                }
            };
            let network = NetworkId::new();
            let spec = bare(NetworkType::Flat, None);
            let careful = HostOnWire::new(1);
            give_addresses("host1");
            let before = careful.addresses_and_routes();
            match careful.converge(network, Some(&spec)) {
                NetThen::Refused(fault) => {
                    assert_eq!(fault.code, FaultCode::Network);
                    for part in ["198.51.100.1/24", "fd00:51::1/64", "flat_address_policy"] {
                        assert!(fault.message.contains(part), "{}", fault.message);
                    }
                }
                then => panic!("{then:?}"),
            }
            assert_eq!(careful.addresses_and_routes(), before);
            ip("-n host1 address flush dev eth1");

            let mut mover = HostOnWire::with(2, FlatAddressPolicy::Move);
            give_addresses("host2");
            // Somebody on the same physical network who talks to the host all the time.
            ip("netns add peer");
            ip("link add peer0 type veth peer name eth0 netns peer");
            ip("link set peer0 master trunk up");
            ip("-n peer link set eth0 up");
            ip("-n peer address add 198.51.100.254/24 dev eth0");
            let reaches = || {
                let args = [
                    "netns",
                    "exec",
                    "peer",
                    "busybox",
                    "ping",
                    "-c",
                    "1",
                    "-w",
                    "5",
                    "198.51.100.1",
                ];
                run("ip", &args)
            };
            reaches();
            let before = mover.addresses_and_routes();
            let mac = mover.ip_json("link show dev eth1")[0]["address"].clone();
            break_off_everywhere(&mut mover, network, &spec);
            assert_eq!(mover.converge(network, Some(&spec)), NetThen::Converged);
            let bridge = names::bridge(network);
            assert_eq!(
                mover.ip_json(&format!("link show dev {bridge}"))[0]["address"],
                mac
            );
            let moved: BTreeSet<String> = before
                .iter()
                .map(|line| line.replace("eth1", &bridge))
                .collect();
            assert_eq!(mover.addresses_and_routes(), moved);
            reaches();
            // What broke off in the middle: addresses on both, routes on either.
            ip("-n host2 address add 198.51.100.9/24 dev eth1");
            assert_eq!(mover.converge(network, Some(&spec)), NetThen::Converged);
            assert_eq!(mover.addresses_and_routes(), moved);
            assert_eq!(mover.converge(network, None), NetThen::Gone);
            assert_eq!(mover.addresses_and_routes(), before);
            reaches();

            // What cannot be moved is moved back: here an address that the bridge refuses.
            ip("-n host2 address add 198.51.100.77/32 dev eth1");
            let before = mover.addresses_and_routes();
            let plan = mover.plan(network, Some(&spec));
            for step in &plan.steps {
                if step.to_string().contains("put NIC") {
                    let path = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
                    inside("host2", || std::fs::write(&path, "1").unwrap());
                    let error = mover.apply(step).unwrap_err();
                    assert!(error.what.contains("eth1"), "{error:?}");
                    assert_eq!(
                        mover.addresses_and_routes(),
                        before,
                        "as if nothing had been done"
                    );
                    reaches();
                    break;
                }
                mover.apply(step).unwrap();
            }
            assert_eq!(mover.converge(network, Some(&spec)), NetThen::Converged);
            assert_eq!(mover.converge(network, None), NetThen::Gone);
            ip("netns del peer");
            careful.end();
            mover.end();
            cut_wires();
        },
    );
}

/// A network whose guests go out by the host.
fn nat(third: u8) -> NetworkSpec {
    NetworkSpec {
        subnets: vec![SubnetSpec {
            id: SubnetId::new(),
            cidr: format!("10.0.{third}.0/24").parse().unwrap(),
            gateway_ip: Some([10, 0, third, 1].into()),
            dhcp_ip: Some([10, 0, third, 2].into()),
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            ipv6_address_mode: None,
        }],
        ..bare(NetworkType::Nat, None)
    }
}

#[test]
fn nat_lets_guests_out_and_nobody_in() {
    isolated("uplinks::nat_lets_guests_out_and_nobody_in", async |_| {
        wires();
        let mut host = HostOnWire::new(1);
        ip("-n host1 route add default via 192.0.2.254");
        ip("netns add outside");
        ip("link add out0 type veth peer name eth0 netns outside");
        ip(&format!("link set out0 master {WIRE} up"));
        for command in [
            "link set eth0 up",
            "link set lo up",
            "address add 192.0.2.254/24 dev eth0",
            "address add 203.0.113.1/32 dev lo",
            // It knows where the guests are, and would like to get there.
            "route add 10.0.0.0/16 via 192.0.2.1",
            "route add 198.51.100.0/24 via 192.0.2.1",
        ] {
            ip(&format!("-n outside {command}"));
        }
        let forwards = || {
            inside("host1", || {
                std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/forwarding").unwrap()
            })
        };
        assert_eq!(forwards().trim(), "0");
        let [red, blue] = [NetworkId::new(), NetworkId::new()];
        // What DHCP adds is broken off elsewhere, and takes its time.
        let mut without_dhcp = nat(1);
        without_dhcp.subnets[0].dhcp_ip = None;
        break_off_everywhere(&mut host, red, &without_dhcp);
        assert_eq!(forwards().trim(), "0");

        assert_eq!(host.converge(red, Some(&nat(1))), NetThen::Converged);
        assert_eq!(host.converge(blue, Some(&nat(2))), NetThen::Converged);
        let guest = |network, name: &str, third: u8| {
            let guest = host.guest(network, name, &mac(third), &format!("10.0.{third}.10/24"));
            ip(&format!("-n {name} route add default via 10.0.{third}.1"));
            guest
        };
        let [near, other] = [guest(red, "red", 1), guest(blue, "blue", 2)];
        // Out, and answers in, although nobody out there would answer to the guest's own address.
        ip("-n outside route del 10.0.0.0/16");
        assert!(near.ping("203.0.113.1"));
        assert!(other.ping("203.0.113.1"));
        ip("-n outside route add 10.0.0.0/16 via 192.0.2.1");
        assert!(near.ping("10.0.1.1"), "the gateway");
        assert!(
            near.cannot_ping("192.0.2.1"),
            "the host is its gateway and nothing else"
        );
        assert!(
            near.cannot_ping("10.0.2.10"),
            "nor does it lead to another network"
        );
        assert!(near.cannot_ping("10.0.2.1"));
        let outside = |address: &str| {
            let args = [
                "netns", "exec", "outside", "busybox", "ping", "-c", "1", "-w", "1", "-W", "1",
                address,
            ];
            super::try_run("ip", &args).status.success()
        };
        assert!(outside("192.0.2.1"));
        assert!(!outside("10.0.1.10"), "nobody comes in");
        // A host that did not forward before forwards nothing but this.
        ip("-n host1 address add 198.51.100.1/24 dev eth1");
        ip("netns add beside");
        ip("link add beside0 type veth peer name eth0 netns beside");
        ip("link set beside0 master trunk up");
        ip("-n beside link set eth0 up");
        ip("-n beside address add 198.51.100.2/24 dev eth0");
        ip("-n beside route add default via 198.51.100.1");
        assert_eq!(forwards().trim(), "1");
        assert!(!outside("198.51.100.2"), "the host is no router");

        // Two networks with the same addresses would be one to the host's routes.
        let same = NetworkId::new();
        let then = host.converge(same, Some(&nat(1)));
        assert!(
            matches!(&then, NetThen::Refused(fault) if fault.message.contains("10.0.1.0/24 overlaps")),
            "{then:?}"
        );
        // What somebody removed comes back.
        inside("host1", || run("nft", &["flush", "ruleset"]));
        assert_eq!(host.converge(red, Some(&nat(1))), NetThen::Converged);
        assert_eq!(host.converge(blue, Some(&nat(2))), NetThen::Converged);
        assert!(near.ping("203.0.113.1"));
        // The one that goes takes nothing from the one that stays.
        near.unplug();
        assert_eq!(host.converge(red, None), NetThen::Gone);
        assert_eq!(forwards().trim(), "1");
        assert!(other.ping("203.0.113.1"));
        // A link that the host's routes no longer leave by forwards no more, as nothing guards it from then on.
        ip("-n host1 route del default");
        assert_eq!(host.converge(blue, Some(&nat(2))), NetThen::Converged);
        assert_eq!(forwards().trim(), "0");
        ip("-n host1 route add default via 192.0.2.254");
        assert_eq!(host.converge(blue, Some(&nat(2))), NetThen::Converged);
        assert_eq!(forwards().trim(), "1");
        other.unplug();
        assert_eq!(host.converge(blue, None), NetThen::Gone);
        assert_eq!(forwards().trim(), "0");
        for name in ["outside", "beside"] {
            ip(&format!("netns del {name}"));
        }
        host.end();
        cut_wires();
    });
}
