//! Networks that reach beyond their host, with real packets between hosts: VXLAN, flat, nat.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use berth_agent::decide::{
    filter::{FilterObserved, FilterStep, Reach, Rendered, TunnelEnd, nft::transaction, towards},
    names,
    network::{NetThen, uplink::FlatAddressPolicy},
};
use berth_common::{
    document::{
        Ipv6AddressMode, NetworkPort, NetworkSpec, NetworkType, PortQos, PortSecurity, SubnetSpec,
    },
    ids::{InstanceId, NetworkId, PortId, SubnetId},
    message::report::FaultCode,
};
use serde_json::Value;

use super::{
    fabric::{
        Capture, GuestOnWire, HostOnWire, TRUNK, WIRE, bare, break_off_everywhere, cut_wires,
        inside, remote, tunnel_ip, tunnel_ip6, wires,
    },
    ip, isolated,
    isolation::{self, in_tries, limit, wait_passes},
    run,
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

/// What somebody puts into a VXLAN: a frame for a guest that carries a word.
fn forged(vni: u32, to: &str, word: &str) -> Vec<u8> {
    let to: berth_common::names::MacAddress = to.parse().unwrap();
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(to.octets());
    packet.extend([0x52, 0x54, 0, 0, 0, 0x66]);
    // What is nothing in particular (IEEE 802).
    packet.extend([0x88, 0xb5]);
    packet.extend(word.as_bytes());
    packet.resize(packet.len().max(8 + 60), b' ');
    packet
}

/// Sends it from a namespace to the port of VXLANs of a host.
fn send_from(namespace: &str, to: IpAddr, packet: &[u8]) {
    inside(namespace, || {
        let any: IpAddr = match to {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
        socket.send_to(packet, SocketAddr::new(to, 4789)).unwrap();
    });
}

/// The words that come to a guest, until the last one that is expected.
fn words(capture: &Capture, last: &str) -> BTreeSet<String> {
    words_while(capture, last, || {})
}

/// The same, while something is done again and again.
fn words_while(capture: &Capture, last: &str, again: impl Fn()) -> BTreeSet<String> {
    let start = Instant::now();
    let mut words = BTreeSet::new();
    while !words.contains(last) {
        again();
        assert!(start.elapsed() < limit(5), "no {last}: {words:?}");
        for frame in capture.frames() {
            if frame.get(12..14) == Some(&[0x88, 0xb5]) {
                let word = String::from_utf8_lossy(&frame[14..]);
                words.extend(word.split_whitespace().map(str::to_owned));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    words
}

/// Somebody on the first wire who has no part in anything.
fn stranger(addresses: &[&str]) {
    ip("netns add stranger");
    ip("link add stranger0 type veth peer name eth0 netns stranger");
    ip(&format!("link set stranger0 master {WIRE} up"));
    ip("-n stranger link set eth0 up");
    wait_passes("stranger0", "stranger", "eth0");
    for address in addresses {
        ip(&format!("-n stranger address add {address} dev eth0"));
    }
}

/// Waits until a guest that was plugged in hears what a host sends it: its link comes up some time after it is switched on.
fn wait_for(guest: &GuestOnWire, to: IpAddr, vni: u32, from: &str) {
    let capture = Capture::within(&guest.namespace);
    let send = || send_from(from, to, &forged(vni, &guest.mac, "ready"));
    words_while(&capture, "ready", send);
}

/// Waits until so many packets for a host's VXLANs were dropped, and no more: what is sent is counted some time after it.
fn drops(host: &HostOnWire, expected: u64, what: &str) {
    isolation::wait_for(&format!("the count after {what}"), limit(5), || {
        let now = host.tunnel_drops();
        (now == Some(expected), now)
    });
}

/// What a guest hears when these send it their own names, and then one who may.
fn heard(guest: &GuestOnWire, to: IpAddr, vni: u32, from: &[&str], last: &str) -> BTreeSet<String> {
    let capture = Capture::within(&guest.namespace);
    for namespace in from.iter().chain([&last]) {
        send_from(namespace, to, &forged(vni, &guest.mac, namespace));
    }
    words(&capture, last)
}

#[test]
fn only_hosts_of_a_vxlan_send_into_it() {
    isolated("uplinks::only_hosts_of_a_vxlan_send_into_it", async |_| {
        wires();
        let hosts = [1, 2, 3].map(HostOnWire::new);
        stranger(&["192.0.2.66/24"]);
        let red = NetworkId::new();
        let members = vxlan(100, &[(2, 2)]);
        let converge = |spec: &NetworkSpec| {
            assert_eq!(hosts[0].converge(red, Some(spec)), NetThen::Converged);
        };
        assert_eq!(hosts[0].tunnel_drops(), None, "no VXLAN");
        converge(&members);
        let guest = hosts[0].guest(red, "red1", &mac(1), "10.0.0.1/24");
        let here = tunnel_ip(1);
        wait_for(&guest, here, 100, "host2");
        let only = |name: &str| BTreeSet::from([name.to_owned()]);
        let check = |name: &str, dropped: u64| {
            let before = hosts[0].tunnel_drops().unwrap();
            let heard = heard(&guest, here, 100, &["host3", "stranger"], "host2");
            assert_eq!(heard, only("host2"), "{name}");
            drops(&hosts[0], before + dropped, name);
        };
        check("neither another host nor a stranger", 2);

        // By another of the host's addresses, in pieces, and so short that nothing is in it.
        ip("-n host1 address add 198.51.100.9/32 dev lo");
        ip("-n stranger route add 198.51.100.9 via 192.0.2.1");
        let capture = Capture::within(&guest.namespace);
        let mut large = forged(100, &guest.mac, "large");
        large.resize(3000, b' ');
        send_from(
            "stranger",
            [198, 51, 100, 9].into(),
            &forged(100, &guest.mac, "elsewhere"),
        );
        send_from("stranger", here, &large);
        send_from("stranger", here, &large[..6]);
        send_from("host2", here, &forged(100, &guest.mac, "host2"));
        assert_eq!(words(&capture, "host2"), only("host2"));
        drops(&hosts[0], 2 + 2, "others of its addresses");

        // Who comes may send, and who goes may not any more; the count goes on.
        converge(&vxlan(100, &[(2, 2), (3, 3)]));
        let capture = Capture::within(&guest.namespace);
        send_from("host3", here, &forged(100, &guest.mac, "host3"));
        assert_eq!(words(&capture, "host3"), only("host3"));
        drops(&hosts[0], 4, "a host that came");
        converge(&members);
        check("a host that left", 2);
        // Another VNI has the same guard.
        converge(&vxlan(101, &[(2, 2)]));
        let heard_there = heard(&guest, here, 101, &["host3", "stranger"], "host2");
        assert_eq!(heard_there, only("host2"));
        converge(&members);

        // VXLANs of the host's own, on the same port, are left alone.
        ip("-n host1 link add own0 type vxlan id 300 local 192.0.2.1 dstport 4789");
        ip("-n host1 link set own0 up");
        let capture = Capture::within("host1");
        send_from("stranger", here, &forged(300, &guest.mac, "own"));
        assert_eq!(words(&capture, "own"), only("own"));

        // What somebody took away comes back.
        let key = "4789 . 100";
        for change in [
            format!("delete element inet berth tunnels {{ {key} }}"),
            "flush chain inet berth tunnel".to_owned(),
            "flush chain inet berth drop-foreign_tunnel".to_owned(),
            format!(
                "add element inet berth h4_{} {{ 192.0.2.66 }}",
                &names::vxlan(red)[3..]
            ),
            "delete table inet berth".to_owned(),
            "flush ruleset".to_owned(),
        ] {
            let words: Vec<&str> = change.split(' ').collect();
            inside("host1", || run("nft", &words));
            assert_ne!(hosts[0].plan(red, Some(&members)).steps, [], "{change}");
            converge(&members);
            check(&change, 2);
        }

        // Beside a network that needs none of it, the guard goes with its own.
        let plain = NetworkId::new();
        assert_eq!(
            hosts[0].converge(plain, Some(&bare(NetworkType::Local, None))),
            NetThen::Converged
        );
        guest.unplug();
        assert_eq!(hosts[0].converge(red, None), NetThen::Gone);
        let left = inside("host1", || run("nft", &["list", "ruleset"]));
        assert!(!left.contains(&names::vxlan(red)[3..]), "{left}");
        let capture = Capture::within("host1");
        ip("-n host1 link add foreign0 type vxlan id 100 local 192.0.2.1 dstport 4789");
        ip("-n host1 link set foreign0 up");
        send_from("stranger", here, &forged(100, &mac(1), "foreign"));
        assert_eq!(
            words(&capture, "foreign"),
            only("foreign"),
            "it is not berth's any more"
        );
        assert_eq!(hosts[0].converge(plain, None), NetThen::Gone);
        for name in ["own0", "foreign0"] {
            ip(&format!("-n host1 link del {name}"));
        }
        ip("netns del stranger");
        hosts.into_iter().for_each(HostOnWire::end);
        cut_wires();
    });
}

/// The checksum of UDP over IPv6 (RFC 8200, 8.1).
fn checksum(from: IpAddr, to: IpAddr, datagram: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(_) => panic!("{address} is not of IPv6"),
    };
    let length = u32::try_from(datagram.len()).unwrap();
    let mut all = [octets(from), octets(to)].concat();
    all.extend(length.to_be_bytes());
    all.extend([0, 0, 0, 17]);
    all.extend(datagram);
    all.resize(all.len().next_multiple_of(2), 0);
    let pairs = all
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = pairs.fold(0, |sum: u32, pair| {
        let sum = sum + pair;
        (sum & 0xffff) + (sum >> 16)
    });
    !u16::try_from(sum).unwrap()
}

/// A datagram from the stranger to the first host in two frames of IPv6, of which the first has so much of it.
fn in_pieces(first: u16, payload: &[u8]) -> [Vec<u8>; 2] {
    let mac_of = |host: &str| {
        let shown = ip(&format!("-n {host} -j link show dev eth0"));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let mac = shown[0]["address"].as_str().unwrap();
        mac.parse::<berth_common::names::MacAddress>().unwrap()
    };
    let macs = ["host1", "stranger"].map(mac_of);
    let [from, to] = [tunnel_ip6(0x66), tunnel_ip6(1)];
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [4789_u16, 4789, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    let sum = checksum(from, to, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    let piece = |offset: u16, more: u16, part: &[u8]| {
        let mut frame = Vec::new();
        for mac in macs {
            frame.extend(mac.octets());
        }
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(8 + part.len()).unwrap().to_be_bytes());
        frame.extend([44, 64]);
        for address in [from, to] {
            let IpAddr::V6(address) = address else {
                panic!("{address} is not of IPv6");
            };
            frame.extend(address.octets());
        }
        frame.extend([17, 0]);
        frame.extend((offset | more).to_be_bytes());
        // Which datagram it is of.
        frame.extend([payload[4], payload[5], payload[6], first.to_be_bytes()[1]]);
        frame.extend(part);
        frame
    };
    let (begin, end) = datagram.split_at(usize::from(first));
    [piece(0, 1, begin), piece(first, 0, end)]
}

/// Sends frames out of the first NIC of a namespace.
fn send_frames(namespace: &str, frames: &[Vec<u8>]) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
    use std::os::fd::AsRawFd as _;
    inside(namespace, || {
        let cloexec = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, cloexec, None).unwrap();
        let link = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|interface| interface.interface_name == "eth0")
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .unwrap();
        for frame in frames {
            sendto(socket.as_raw_fd(), frame, &link, MsgFlags::empty()).unwrap();
        }
    });
}

#[test]
fn only_hosts_of_a_vxlan_over_ipv6_send_into_it() {
    isolated(
        "uplinks::only_hosts_of_a_vxlan_over_ipv6_send_into_it",
        async |_| {
            wires();
            let hosts = [1, 2].map(HostOnWire::over_ipv6);
            stranger(&["fd00:2::66/64 nodad"]);
            let red = NetworkId::new();
            let mut spec = NetworkSpec {
                mtu: 1430,
                ..vxlan(100, &[(2, 2)])
            };
            spec.remote_ports[0].tunnel_ip = Some(tunnel_ip6(2));
            assert_eq!(hosts[0].converge(red, Some(&spec)), NetThen::Converged);
            let guest = hosts[0].guest(red, "red1", &mac(1), "10.0.0.1/24");
            let here = tunnel_ip6(1);
            wait_for(&guest, here, 100, "host2");
            let only = BTreeSet::from(["host2".to_owned()]);
            assert_eq!(heard(&guest, here, 100, &["stranger"], "host2"), only);
            drops(&hosts[0], 1, "a stranger");
            // The first piece does not say yet which VXLAN it is for.
            let capture = Capture::within(&guest.namespace);
            let pieces = in_pieces(8, &forged(100, &guest.mac, "pieces"));
            send_frames("stranger", &pieces);
            send_from("host2", here, &forged(100, &guest.mac, "host2"));
            assert_eq!(words(&capture, "host2"), only);
            drops(&hosts[0], 2, "pieces");
            // It was the sender that they were dropped for.
            let capture = Capture::within(&guest.namespace);
            spec.remote_ports[0].tunnel_ip = Some(tunnel_ip6(0x66));
            assert_eq!(hosts[0].converge(red, Some(&spec)), NetThen::Converged);
            send_from("stranger", here, &forged(100, &guest.mac, "stranger"));
            words(&capture, "stranger");
            guest.unplug();
            assert_eq!(hosts[0].converge(red, None), NetThen::Gone);
            ip("netns del stranger");
            hosts.into_iter().for_each(HostOnWire::end);
            cut_wires();
        },
    );
}

/// A kernel that tracks no connections puts IPv6 together only after the packet filter.
#[test]
fn a_piece_that_does_not_tell_its_vxlan_is_dropped_where_pieces_come_one_by_one() {
    isolated(
        "uplinks::a_piece_that_does_not_tell_its_vxlan_is_dropped_where_pieces_come_one_by_one",
        async |_| {
            wires();
            let host = HostOnWire::over_ipv6(1);
            stranger(&["fd00:2::66/64 nodad"]);
            let reach = Reach {
                links: BTreeSet::new(),
                tunnel: Some(TunnelEnd {
                    id: 100,
                    port: 4789,
                    local: tunnel_ip6(1),
                }),
            };
            let step = towards(
                NetworkId::new(),
                &vxlan(100, &[]),
                &reach,
                host.id,
                &FilterObserved::default(),
                &mut Rendered::default(),
            );
            let Some(FilterStep::Change(change)) = step else {
                panic!("{step:?}");
            };
            std::fs::write("/run/tunnel.nft", transaction(&change.commands())).unwrap();
            inside("host1", || run("nft", &["-f", "/run/tunnel.nft"]));
            for (name, id) in [("guarded0", 100), ("own0", 300)] {
                let local = tunnel_ip6(1);
                ip(&format!(
                    "-n host1 link add {name} type vxlan id {id} local {local} dstport 4789"
                ));
                ip(&format!("-n host1 link set {name} up"));
            }
            let capture = Capture::within("host1");
            // It ends with the header of UDP, or with that of the VXLAN; another VXLAN of the host takes what it is sent.
            for (first, vni, word) in [(8, 100, "short"), (16, 100, "long"), (16, 300, "own")] {
                send_frames("stranger", &in_pieces(first, &forged(vni, &mac(1), word)));
            }
            assert_eq!(words(&capture, "own"), BTreeSet::from(["own".to_owned()]));
            let dropped = ["list", "chain", "inet", "berth", "drop-foreign_tunnel"];
            isolation::wait_for("both pieces to be counted", limit(5), || {
                let dropped = inside("host1", || run("nft", &dropped));
                (dropped.contains("packets 2 "), dropped)
            });
            for name in ["guarded0", "own0"] {
                ip(&format!("-n host1 link del {name}"));
            }
            inside("host1", || run("nft", &["flush", "ruleset"]));
            ip("netns del stranger");
            host.end();
            cut_wires();
        },
    );
}

#[test]
fn guests_behind_a_hosts_address_send_into_no_vxlan() {
    isolated(
        "uplinks::guests_behind_a_hosts_address_send_into_no_vxlan",
        async |_| {
            wires();
            let hosts = [1, 2].map(HostOnWire::new);
            ip("-n host1 route add default via 192.0.2.2");
            let [red, out] = [NetworkId::new(), NetworkId::new()];
            for (host, other) in [(0, 2), (1, 1)] {
                let spec = vxlan(100, &[(other, other)]);
                assert_eq!(hosts[host].converge(red, Some(&spec)), NetThen::Converged);
            }
            assert_eq!(hosts[0].converge(out, Some(&nat(1))), NetThen::Converged);
            let reds = [1, 2].map(|n| {
                let address = format!("10.0.9.{n}/24");
                hosts[usize::from(n) - 1].guest(red, &format!("red{n}"), &mac(n), &address)
            });
            wait_for(&reds[0], tunnel_ip(1), 100, "host2");
            wait_for(&reds[1], tunnel_ip(2), 100, "host1");
            let guest = hosts[0].guest(out, "out", &mac(7), "10.0.1.10/24");
            ip("-n out route add default via 10.0.1.1");
            assert!(guest.ping("192.0.2.2"), "it gets out to the other host");
            // With the address of its own host, which the other one takes packets from.
            for (red, last) in [(&reds[1], "host1"), (&reds[0], "host2")] {
                let n = if last == "host1" { 2 } else { 1 };
                let heard = heard(red, tunnel_ip(n), 100, &["out"], last);
                assert_eq!(heard, BTreeSet::from([last.to_owned()]), "to host{n}");
            }
            let table = names::nat_table(out);
            isolation::wait_for("one packet to be counted", limit(5), || {
                let shown = inside("host1", || run("nft", &["list", "table", "inet", &table]));
                let one = "udp dport 4789 counter packets 1 ";
                (shown.contains(one), shown)
            });
            let gateway = Capture::within(&reds[0].namespace);
            send_from(
                "out",
                [10, 0, 1, 1].into(),
                &forged(100, &reds[0].mac, "gateway"),
            );
            send_from("host2", tunnel_ip(1), &forged(100, &reds[0].mac, "host2"));
            assert_eq!(
                words(&gateway, "host2"),
                BTreeSet::from(["host2".to_owned()])
            );
            guest.unplug();
            reds.into_iter().for_each(|guest| guest.unplug());
            assert_eq!(hosts[0].converge(out, None), NetThen::Gone);
            for host in hosts {
                assert_eq!(host.converge(red, None), NetThen::Gone);
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
fn a_router_on_the_wire_is_the_way_out_of_guests_whose_subnet_names_it() {
    isolated(
        "uplinks::a_router_on_the_wire_is_the_way_out_of_guests_whose_subnet_names_it",
        async |_| {
            wires();
            let host = HostOnWire::new(1);
            let network = NetworkId::new();
            let port = NetworkPort {
                id: PortId::new(),
                instance_id: InstanceId::new(),
                mac_address: mac(1).parse().unwrap(),
                hostname: "near".parse().unwrap(),
                fixed_ips: Vec::new(),
                security: Some(PortSecurity::default()),
                qos: PortQos::default(),
                mirrors: Vec::new(),
            };
            let spec = NetworkSpec {
                subnets: vec![SubnetSpec {
                    id: SubnetId::new(),
                    cidr: "2001:db8:7::/64".parse().unwrap(),
                    gateway_ip: Some("2001:db8:7::1".parse().unwrap()),
                    dhcp_ip: Some("2001:db8:7::2".parse().unwrap()),
                    dns_nameservers: Vec::new(),
                    host_routes: Vec::new(),
                    ipv6_address_mode: Some(Ipv6AddressMode::Slaac),
                }],
                ports: vec![port.clone()],
                ..bare(NetworkType::Flat, None)
            };
            let then = host.converge(network, Some(&spec));
            assert!(
                matches!(then, NetThen::Converged | NetThen::Wait(_)),
                "{then:?}"
            );
            ip("netns add router");
            ip("link add router0 type veth peer name eth0 netns router");
            ip(&format!("link set router0 master {TRUNK} up"));
            ip("-n router link set eth0 up");
            ip("-n router address add 2001:db8:7::1/64 dev eth0 nodad");
            let mut router = Command::new("ip")
                .args(["netns", "exec", "router", "dnsmasq", "--keep-in-foreground"])
                .args(["--conf-file=/dev/null", "--port=0", "--enable-ra"])
                .args(["--interface=eth0", "--bind-interfaces", "--user=root"])
                .args(["--dhcp-range=2001:db8:7::,ra-only", "--pid-file"])
                .spawn()
                .unwrap();
            let tap = names::tap(port.id);
            let near = host.guest_at(network, &tap, "near", &mac(1), "192.0.2.77/32");
            super::wait_for("a way out", Duration::from_secs(20), || {
                let routes = ip("-n near -6 route show default");
                (routes.contains("via fe80:"), routes)
            });
            router.kill().unwrap();
            router.wait().unwrap();
            near.unplug();
            assert_eq!(host.converge(network, None), NetThen::Gone);
            host.end();
            ip("link del router0");
            ip("netns del router");
            cut_wires();
        },
    );
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
            wait_passes("peer0", "peer", "eth0");
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
                let found = in_tries(|| super::try_run("ip", &args).status.success());
                assert!(found, "nobody answers");
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
        wait_passes("out0", "outside", "eth0");
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
        assert!(in_tries(|| outside("192.0.2.1")));
        assert!(!outside("10.0.1.10"), "nobody comes in");
        // A host that did not forward before forwards nothing but this.
        ip("-n host1 address add 198.51.100.1/24 dev eth1");
        ip("netns add beside");
        ip("link add beside0 type veth peer name eth0 netns beside");
        ip("link set beside0 master trunk up");
        ip("-n beside link set eth0 up");
        wait_passes("beside0", "beside", "eth0");
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
