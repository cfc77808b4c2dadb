//! The packet filter in the kernel: what guests may send and receive, with real packets.
//!
//! Guests are network namespaces whose link on the host has the name of their port's tap. Each test runs in network, mount and
//! process namespaces of its own, that of `agent/tests/net.rs`. Needs root, `unshare`, `ip`, `nft` and a kernel that tracks
//! connections across bridges in either way; where one is missing, it fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic in a test's helper is a failed assertion"
)]

#[path = "filter/frames.rs"]
mod frames;
#[path = "filter/host.rs"]
mod host;
mod isolation;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_agent::decide::{
    filter::{Stateful, base, nft::transaction, trace},
    names,
    network::NetThen,
};
use berth_common::{
    document::{
        AddressPair, EtherType, NetworkSpec, PortRange, RuleDirection, RuleProtocol, RuleRemote,
        SubnetSpec,
    },
    ids::SubnetId,
};
use frames::{MARK, announcement, hostile, legitimate, mac};
use host::{Host, group, inside, isolated, nft, rule};
use isolation::{ip, limit, run, wait_for};

/// How long something may take that must come about, in seconds.
const PATIENCE: u32 = 10;

fn tcp(port: u16) -> Option<RuleProtocol> {
    Some(RuleProtocol::Tcp {
        ports: Some(PortRange {
            min: port,
            max: port,
        }),
    })
}

/// A group that lets everything out, and in what is told.
fn allow_in(
    spec: &mut NetworkSpec,
    protocol: Option<RuleProtocol>,
    remote: Option<RuleRemote>,
) -> usize {
    let rules = &mut spec.security_groups[0].rules;
    rules.push(rule(RuleDirection::Ingress, protocol, remote));
    rules.len() - 1
}

#[test]
fn what_a_group_allows_passes_and_nothing_else() {
    isolated(
        "what_a_group_allows_passes_and_nothing_else",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            let open = allow_in(&mut spec, tcp(80), None);
            host.converge(Some(&spec)).await;
            let [a, b] = [host.plug(&spec, 0), host.plug(&spec, 1)];
            assert!(a.cannot_ping("10.0.0.11"), "no rule allows it");
            assert!(a.connects(&b, 80));
            assert!(a.cannot_connect(&b, 81));
            assert!(host.drops(&spec, 1, "denied_ingress") > 0);

            let icmp = RuleProtocol::Icmp {
                kind: Some(8),
                code: Some(0),
            };
            allow_in(&mut spec, Some(icmp), None);
            host.converge(Some(&spec)).await;
            assert!(a.ping("10.0.0.11"));
            let refused = host.drops(&spec, 1, "denied_ingress");
            assert!(refused > 0, "counters outlive a change");

            spec.security_groups[0].rules.remove(open);
            host.converge(Some(&spec)).await;
            assert!(a.cannot_connect(&b, 80));
            // Nothing may leave, either.
            spec.security_groups[0]
                .rules
                .retain(|rule| rule.direction == RuleDirection::Ingress);
            host.converge(Some(&spec)).await;
            assert!(a.cannot_ping("10.0.0.11"));
            assert!(host.drops(&spec, 0, "denied_egress") > 0);
            // Without port security everything passes.
            spec.ports.iter_mut().for_each(|port| port.security = None);
            host.converge(Some(&spec)).await;
            assert!(a.ping("10.0.0.11"));
            assert!(a.connects(&b, 81));
        },
    );
}

#[test]
fn a_transfer_loses_nothing_when_rules_change_and_stops_when_its_rule_goes() {
    isolated(
        "a_transfer_loses_nothing_when_rules_change_and_stops_when_its_rule_goes",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, tcp(80), None);
            host.converge(Some(&spec)).await;
            let [a, b] = [host.plug(&spec, 0), host.plug(&spec, 1)];
            let stop = Arc::new(AtomicBool::new(false));
            let listener = inside(&b.namespace, || TcpListener::bind("10.0.0.11:80").unwrap());
            // Every byte is its place in the stream, and comes back as it is.
            let echo = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = [0_u8; 4096];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
            });
            let mut stream = inside(&a.namespace, || TcpStream::connect("10.0.0.11:80").unwrap());
            stream.set_read_timeout(Some(limit(PATIENCE))).unwrap();
            let ended = Arc::clone(&stop);
            let transfer = std::thread::spawn(move || {
                let mut place = 0_u64;
                while !ended.load(Ordering::Relaxed) {
                    let sent: Vec<u8> = (place..place + 1024)
                        .flat_map(|place| place.to_be_bytes())
                        .collect();
                    stream.write_all(&sent).unwrap();
                    let mut received = vec![0; sent.len()];
                    stream.read_exact(&mut received).unwrap();
                    assert_eq!(received, sent);
                    place += 1024;
                }
                (stream, place)
            });
            for port in 1000..1004 {
                allow_in(&mut spec, tcp(port), None);
                if port == 1002 {
                    host.restart_agent();
                }
                host.converge(Some(&spec)).await;
            }
            // As an agent of before had named it.
            let chains = || run("nft", &["-j", "list", "chains"]);
            if chains().contains("\"mark-bridge\"") {
                let chain = serde_json::json!({
                    "family": "inet", "table": "berth", "name": "mark-bridge", "newname": "mark",
                });
                nft_json(&[serde_json::json!({ "rename": { "chain": chain } })]);
                assert!(!chains().contains("\"mark-bridge\""), "{}", chains());
                host.restart_agent();
                host.converge(Some(&spec)).await;
                let all = chains();
                assert!(
                    all.contains("\"mark-bridge\"") && !all.contains("\"mark\""),
                    "{all}"
                );
            }
            // Its rules were others, under the same names, and one chain was not there.
            let all = chains();
            let of = |kind: &str| -> Vec<String> {
                let names = all.split('"').filter(|name| name.starts_with(kind));
                names.map(str::to_owned).collect()
            };
            let mut before = vec!["flush chain bridge berth sent".to_owned()];
            for chain in of("e_") {
                before.push(format!("flush chain bridge berth {chain}"));
                before.push(format!("add rule bridge berth {chain} jump sent"));
                before.push(format!("add rule bridge berth {chain} accept"));
            }
            for chain in of("d_").into_iter().chain(["neighbours".to_owned()]) {
                before.push(format!("flush chain bridge berth {chain}"));
                before.push(format!("delete chain bridge berth {chain}"));
            }
            nft(&before.join("; "));
            assert!(!host.is_as(&spec).await);
            host.restart_agent();
            host.converge(Some(&spec)).await;
            let all = chains();
            let is_back = |name: &&str| all.contains(&format!("\"{name}"));
            assert!(["d_", "neighbours\""].iter().all(is_back), "{all}");
            // Another port comes, and goes.
            let alone = spec.clone();
            let more = host.port(12);
            spec.ports.push(more);
            host.converge(Some(&spec)).await;
            host.converge(Some(&alone)).await;
            stop.store(true, Ordering::Relaxed);
            let (mut stream, places) = transfer.join().unwrap();
            assert!(places > 0);

            // The rule goes, and with it the connection, although its answers would be allowed.
            let mut without = alone.clone();
            without.security_groups[0]
                .rules
                .retain(|rule| rule.protocol != tcp(80));
            host.converge(Some(&without)).await;
            stream.write_all(b"more").unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            let mut received = [0; 4];
            assert!(stream.read_exact(&mut received).is_err(), "it goes on");
            // It comes back, and the connection with it: nothing was torn.
            host.converge(Some(&alone)).await;
            // The sender tries again less and less often.
            stream.set_read_timeout(Some(limit(6 * PATIENCE))).unwrap();
            stream.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"more");
            drop(stream);
            echo.join().unwrap();
        },
    );
}

#[test]
fn members_of_a_remote_group_come_and_go() {
    isolated(
        "members_of_a_remote_group_come_and_go",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11, 12]);
            allow_in(&mut spec, None, Some(RuleRemote::Group(group(7))));
            spec.group_members
                .insert(group(7), vec!["10.0.0.10".parse().unwrap()]);
            host.converge(Some(&spec)).await;
            let guests = [0, 1, 2].map(|n| host.plug(&spec, n));
            assert!(guests[0].ping("10.0.0.11"));
            assert!(guests[2].cannot_ping("10.0.0.11"));
            spec.group_members
                .insert(group(7), vec!["10.0.0.12".parse().unwrap()]);
            host.converge(Some(&spec)).await;
            assert!(guests[2].ping("10.0.0.11"));
            assert!(guests[0].cannot_ping("10.0.0.11"));
            spec.group_members.insert(
                group(7),
                vec!["10.0.0.0/24".parse().unwrap(), "10.0.0.12".parse().unwrap()],
            );
            host.converge(Some(&spec)).await;
            assert!(guests[0].ping("10.0.0.11"));
        },
    );
}

/// The same addresses, the same ports, at the same time.
#[test]
fn networks_with_the_same_addresses_do_not_mix() {
    isolated(
        "networks_with_the_same_addresses_do_not_mix",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, tcp(80), None);
            host.converge(Some(&spec)).await;
            let [a, b] = [host.plug(&spec, 0), host.plug(&spec, 1)];
            let mut other = host.another();
            let closed = other.spec(&[10, 11]);
            other.converge(Some(&closed)).await;
            let [c, d] = [other.plug(&closed, 0), other.plug(&closed, 1)];
            let udp = |guest: &host::Guest, n: u8| {
                let socket = inside(&guest.namespace, move || {
                    UdpSocket::bind(SocketAddr::from(([10, 0, 0, n], 4000))).unwrap()
                });
                socket.set_read_timeout(Some(limit(PATIENCE))).unwrap();
                socket
            };
            allow_in(&mut spec, Some(RuleProtocol::Udp { ports: None }), None);
            host.converge(Some(&spec)).await;
            let [a_socket, b_socket, c_socket, d_socket] =
                [udp(&a, 10), udp(&b, 11), udp(&c, 10), udp(&d, 11)];
            let mut buffer = [0_u8; 16];
            a_socket.send_to(b"there", "10.0.0.11:4000").unwrap();
            assert_eq!(b_socket.recv(&mut buffer).unwrap(), 5);
            // Were it the same connection, this would be an answer in it.
            d_socket.send_to(b"wrong", "10.0.0.10:4000").unwrap();
            let in_vain = Some(Duration::from_millis(500));
            c_socket.set_read_timeout(in_vain).unwrap();
            assert!(c_socket.recv(&mut buffer).is_err(), "it crossed");
            b_socket.send_to(b"back", "10.0.0.10:4000").unwrap();
            assert_eq!(a_socket.recv(&mut buffer).unwrap(), 4);
            assert!(a.connects(&b, 80));
            assert!(c.cannot_connect(&d, 80));
            other.end().await;
        },
    );
}

#[test]
fn nothing_of_a_hostile_guest_reaches_anyone_and_all_of_it_is_counted() {
    isolated(
        "nothing_of_a_hostile_guest_reaches_anyone_and_all_of_it_is_counted",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11, 12]);
            allow_in(&mut spec, None, None);
            spec.ports[2].security = None;
            host.converge(Some(&spec)).await;
            let guests = [0, 1, 2].map(|n| host.plug(&spec, n));
            let [bad, victims @ ..] = &guests;
            for (what, frame) in legitimate() {
                let sight: Vec<_> = victims.iter().map(host::Guest::watch).collect();
                bad.send(&frame);
                let seen = sight.into_iter().map(|sight| sight.saw(MARK, 1));
                assert!(seen.into_iter().any(|seen| seen), "{what} did not pass");
            }
            for (what, reason, frame) in hostile() {
                let before = host.drops(&spec, 0, reason);
                let sight: Vec<_> = victims.iter().map(host::Guest::watch).collect();
                bad.send(&frame);
                let counted = || host.drops(&spec, 0, reason);
                wait_for(
                    &format!("{what} to be counted as {reason}"),
                    limit(PATIENCE),
                    || {
                        let now = counted();
                        (now > before, now)
                    },
                );
                // Something that passes comes after it, so it would have come by then.
                bad.send(&legitimate()[0].1);
                for sight in sight {
                    assert!(!sight.saw(frames::HOSTILE, 1), "{what} reached somebody");
                }
            }
        },
    );
}

/// The kernel asks fewer rules about such frames, or none, takes them for the host's own, and learns who sent them.
#[test]
fn what_bridges_keep_to_themselves_reaches_neither_the_host_nor_its_tables() {
    isolated(
        "what_bridges_keep_to_themselves_reaches_neither_the_host_nor_its_tables",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11, 12]);
            spec.ports[2].security = None;
            host.converge(Some(&spec)).await;
            let guests = [0, 1, 2].map(|n| host.plug(&spec, n));
            let own = Ipv4Addr::new(192, 0, 2, 1);
            ip(&format!("address add {own}/32 dev lo"));
            for link in ["all".to_owned(), names::tap(spec.ports[0].id)] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "0").unwrap();
            }
            let heard = UdpSocket::bind((own, 2000)).unwrap();
            heard.set_nonblocking(true).unwrap();
            // Where guest 11 is: the bridge learns it from what that guest says.
            guests[1].send(&announcement(mac(11), [10, 0, 0, 11]));
            let place = || {
                let list: serde_json::Value =
                    serde_json::from_str(&run("bridge", &["-j", "fdb"])).unwrap();
                let entries = list.as_array().unwrap().iter();
                let links: Vec<String> = entries
                    .filter(|entry| entry["mac"] == "52:54:00:00:00:0b")
                    .map(|entry| entry["ifname"].as_str().unwrap().to_owned())
                    .collect();
                links
            };
            let learned = vec![names::tap(spec.ports[1].id)];
            wait_for("the bridge to learn it", limit(PATIENCE), || {
                let now = place();
                (now == learned, now)
            });
            for port in [0, 2] {
                for (what, frame) in frames::reserved(own.octets(), 2000) {
                    let before = host.drops(&spec, port, "reserved");
                    guests[port].send(&frame);
                    wait_for(&format!("{what} to be counted"), limit(PATIENCE), || {
                        let now = host.drops(&spec, port, "reserved");
                        (now > before, now)
                    });
                    let nothing = heard.recv(&mut [0; 64]).map_err(|error| error.kind());
                    assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock), "{what}");
                    assert_eq!(place(), learned, "{what}");
                }
            }
        },
    );
}

#[test]
fn berths_own_services_are_reached_whatever_the_groups_say() {
    isolated(
        "berths_own_services_are_reached_whatever_the_groups_say",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            spec.security_groups[0].rules.clear();
            host.converge(Some(&spec)).await;
            let guest = host.plug(&spec, 0);
            // First: what it is told by DHCP, it answers to by this.
            assert!(guest.renews([10, 0, 0, 10], frames::mac(10), [10, 0, 0, 2]));
            ip(&format!("-n {} address flush dev eth0", guest.namespace));
            assert_eq!(guest.dhcp(), Some("10.0.0.10".to_owned()));
            // The metadata service, by way of berth's own address, and of a gateway that only has a neighbour entry.
            let inside = &guest.namespace;
            ip(&format!("-n {inside} address add 10.0.0.10/24 dev eth0"));
            ip(&format!(
                "-n {inside} neigh replace 10.0.0.9 lladdr 02:00:00:00:00:99 dev eth0"
            ));
            for by in ["10.0.0.2", "10.0.0.9"] {
                ip(&format!(
                    "-n {inside} route replace 169.254.169.254 via {by}"
                ));
                assert_eq!(guest.asks_metadata(), "404", "by way of {by}");
            }
        },
    );
}

/// Three guests: the first may use these addresses too, the third any, as it has no port security.
async fn with_pair_and_open(host: &mut Host, addresses: &str) -> NetworkSpec {
    let mut spec = host.spec(&[10, 11, 12]);
    let pair = AddressPair {
        ip_address: addresses.parse().unwrap(),
        mac_address: None,
    };
    let security = spec.ports[0].security.as_mut().unwrap();
    security.allowed_address_pairs = vec![pair];
    spec.ports[2].security = None;
    host.converge(Some(&spec)).await;
    spec
}

/// It tells guests apart by their address, and what it tells is for one of them alone.
#[test]
fn metadata_are_told_to_a_port_at_its_own_addresses_alone() {
    isolated(
        "metadata_are_told_to_a_port_at_its_own_addresses_alone",
        async |host: &mut Host| {
            let spec = with_pair_and_open(host, "10.0.0.11").await;
            let [paired, victim, open] = [0, 1, 2].map(|port| host.plug(&spec, port));
            for guest in [&paired, &victim, &open] {
                guest.knows_metadata();
            }
            assert_eq!(victim.asks_metadata(), "404");
            for (bad, port, own) in [(&paired, 0, "10.0.0.10"), (&open, 2, "10.0.0.12")] {
                let inside = &bad.namespace;
                ip(&format!("-n {inside} address add 10.0.0.11/32 dev eth0"));
                let before = host.drops(&spec, port, "spoofed_ip");
                assert_eq!(bad.asks_metadata_from("10.0.0.11"), "000", "of {own}");
                let counted = host.drops(&spec, port, "spoofed_ip");
                assert!(counted > before, "of {own}");
                assert_eq!(bad.asks_metadata_from(own), "404", "{own} itself");
            }
            let inside = &open.namespace;
            ip(&format!(
                "-n {inside} address add fe80::5054:ff:fe00:b/64 dev eth0 nodad"
            ));
            wait_for("an answer in IPv6", limit(PATIENCE), || {
                let own = open.connects_to_metadata("fe80::5054:ff:fe00:c");
                (own, own)
            });
            let before = host.drops(&spec, 2, "spoofed_ip");
            assert!(!open.connects_to_metadata("fe80::5054:ff:fe00:b"));
            assert!(host.drops(&spec, 2, "spoofed_ip") > before);
            // Frames with its Ethernet address, and a priority tag, which the service would take off.
            let before = host.drops(&spec, 2, "tagged");
            let frames = frames::with_priority_to(12, &host.service_mac());
            for frame in &frames {
                open.send(frame);
            }
            wait_for("them to be counted", limit(PATIENCE), || {
                let now = host.drops(&spec, 2, "tagged") - before;
                (usize::try_from(now) == Ok(frames.len()), now)
            });
        },
    );
}

/// Who may use a neighbour's address can tell the service that it is where that address is. It gets nothing of what the neighbour is told.
#[test]
fn what_metadata_tell_a_port_reaches_no_other() {
    isolated(
        "what_metadata_tell_a_port_reaches_no_other",
        async |host: &mut Host| {
            /// From the service to the victim, as headers say it.
            const TOLD: [u8; 8] = [169, 254, 169, 254, 10, 0, 0, 11];
            let spec = with_pair_and_open(host, "10.0.0.0/24").await;
            let [paired, victim, open] = [0, 1, 2].map(|port| host.plug(&spec, port));
            victim.knows_metadata();
            for (bad, n) in [(&paired, 10), (&open, 12)] {
                assert_eq!(victim.asks_metadata(), "404");
                let namespace = names::namespace(host.id);
                let is_at = frames::mac(n).map(|octet| format!("{octet:02x}")).join(":");
                let claim = frames::announcement(frames::mac(n), [10, 0, 0, 11]);
                // An entry that is new is kept for a second, whatever is said.
                wait_for("the service to believe it", limit(PATIENCE), || {
                    bad.send(&claim);
                    let known = ip(&format!("-n {namespace} neigh show 10.0.0.11"));
                    (known.contains(&is_at), known)
                });
                let sight = bad.watch();
                let asked = victim.asks_metadata();
                let nothing: [Vec<u8>; 0] = [];
                assert_eq!(sight.with(&TOLD), nothing, "{n}: {asked}");
                // The truth is told again.
                ip(&format!("-n {namespace} neigh flush all"));
            }
            assert_eq!(victim.asks_metadata(), "404");
        },
    );
}

/// What a guest may send whatever its groups say goes to who is on the link, and not on from there.
#[test]
fn what_finds_addresses_and_neighbours_goes_no_further_than_the_link() {
    isolated(
        "what_finds_addresses_and_neighbours_goes_no_further_than_the_link",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            spec.security_groups[0].rules.clear();
            allow_in(&mut spec, None, None);
            let mut v6 = rule(RuleDirection::Ingress, None, None);
            v6.ethertype = EtherType::IPv6;
            spec.security_groups[0].rules.push(v6);
            host.converge(Some(&spec)).await;
            let guests = quiet(host, &spec);
            let ask4 = |to| frames::udp_to(to, (68, 67));
            let ask6 = |to: &str| frames::udp6_to(to.parse().unwrap(), (546, 547));
            let find = |to: &str, kind| frames::icmp6_to(to.parse().unwrap(), kind, 255);
            let tell = |to: &str, kind| frames::icmp6_to(to.parse().unwrap(), kind, 1);
            let denied = || refused("denied_egress");
            let neighbour = "fe80::5054:ff:fe00:b";
            let far = "2001:db8:ffff::1";
            let check = |spec: &NetworkSpec, what: &str, frame: &[u8], wanted| {
                let became = becomes(host, spec, &guests, what, frame);
                assert_eq!(became, wanted, "{what}");
            };
            for (what, frame, wanted) in [
                ("a request to everybody", ask4([255; 4]), Ok(())),
                ("a request far away", ask4([198, 51, 100, 9]), denied()),
                ("a request to a neighbour", ask4([10, 0, 0, 11]), denied()),
                ("a DHCPv6 request to servers", ask6("ff02::1:2"), Ok(())),
                ("one to a neighbour", ask6(neighbour), Ok(())),
                ("one far away", ask6(far), denied()),
                ("a solicitation", find("ff02::1:ff00:b", 135), Ok(())),
                ("one to a neighbour alone", find(neighbour, 135), Ok(())),
                ("one no router gets", find(far, 135), Ok(())),
                ("a solicitation of routers", find("ff02::2", 133), Ok(())),
                ("one of a router far away", find(far, 133), denied()),
                ("an advertisement", find("ff02::1", 136), Ok(())),
                ("one no router gets", find(far, 136), Ok(())),
                ("a report of groups", tell("ff02::16", 143), Ok(())),
                ("one to a group of the world", tell("ff0e::1", 131), Ok(())),
                ("one to a single machine", tell(neighbour, 143), denied()),
            ] {
                check(&spec, what, &frame, wanted);
            }
            // A trace is not told it.
            for (what, kind, hop_limit, to, reason) in [
                (
                    "a solicitation from afar",
                    135,
                    254,
                    neighbour,
                    "denied_egress",
                ),
                (
                    "an advertisement from afar",
                    136,
                    254,
                    neighbour,
                    "spoofed_nd",
                ),
                (
                    "a report that goes far",
                    143,
                    2,
                    "ff02::16",
                    "denied_egress",
                ),
            ] {
                let frame = frames::icmp6_to(to.parse().unwrap(), kind, hop_limit);
                let became = host.sends(&spec, &guests, &frame);
                assert_eq!(became, refused(reason), "{what}");
            }

            // Where berth has no DHCP server, anybody in the network may be one, and is asked alone to have an address for longer.
            spec.subnets[0].dhcp_ip = None;
            spec.subnets.push(SubnetSpec {
                id: SubnetId::new(),
                cidr: "2001:db8::/64".parse().unwrap(),
                ..spec.subnets[0].clone()
            });
            host.converge(Some(&spec)).await;
            for (what, frame, wanted) in [
                ("a request to a server", ask4([10, 0, 0, 11]), Ok(())),
                ("a request beyond it", ask4([10, 0, 1, 11]), denied()),
                ("a DHCPv6 request to a server", ask6("2001:db8::11"), Ok(())),
                ("one beyond it", ask6(far), denied()),
                ("a solicitation in it", find("2001:db8::11", 135), Ok(())),
                ("one beyond it", find(far, 135), Ok(())),
            ] {
                check(&spec, what, &frame, wanted);
            }
        },
    );
}

#[test]
fn a_tap_that_nobody_knows_sends_and_gets_nothing() {
    isolated(
        "a_tap_that_nobody_knows_sends_and_gets_nothing",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            spec.ports.iter_mut().for_each(|port| port.security = None);
            host.converge(Some(&spec)).await;
            let [a, b] = [host.plug(&spec, 0), host.plug(&spec, 1)];
            assert!(a.ping("10.0.0.11"));
            let gone = NetworkSpec {
                ports: vec![spec.ports[0].clone()],
                ..spec.clone()
            };
            host.converge(Some(&gone)).await;
            assert!(a.cannot_ping("10.0.0.11"));
            assert!(b.cannot_ping("10.0.0.10"));
        },
    );
}

#[test]
fn what_others_did_is_mended_and_what_is_theirs_stays() {
    isolated(
        "what_others_did_is_mended_and_what_is_theirs_stays",
        async |host: &mut Host| {
            nft(
                "add table bridge theirs; add chain bridge theirs c; add rule bridge theirs c accept",
            );
            nft("add table inet theirs");
            let theirs = || {
                run("nft", &["list", "table", "bridge", "theirs"])
                    + &run("nft", &["list", "table", "inet", "theirs"])
            };
            let before = theirs();
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, tcp(80), None);
            host.converge(Some(&spec)).await;
            assert!(host.is_as(&spec).await);
            // What was listed is what was remembered.
            host.restart_agent();
            assert!(
                host.is_as(&spec).await,
                "an agent that starts changes nothing"
            );
            let port = &spec.ports[0];
            let chain = run("nft", &["-j", "list", "chains", "bridge"])
                .split('"')
                .find(|word| word.starts_with("s_") && word.ends_with(&names::tap(port.id)[3..]))
                .unwrap()
                .to_owned();
            for harm in [
                format!("flush chain bridge berth {chain}"),
                format!("add rule bridge berth {chain} accept"),
                format!(
                    "delete element bridge berth source {{ {} }}",
                    names::tap(port.id)
                ),
                "flush chain bridge berth from".to_owned(),
                "add chain bridge berth unknown; add rule bridge berth unknown accept".to_owned(),
                "add set bridge berth unknown { type ipv4_addr; }".to_owned(),
                format!(
                    "delete element bridge berth dropped-spoofed_ip {{ {} }}",
                    names::tap(port.id)
                ),
                "delete table bridge berth".to_owned(),
            ] {
                nft(&harm);
                assert!(!host.is_as(&spec).await, "not seen: {harm}");
                host.converge(Some(&spec)).await;
                assert!(host.is_as(&spec).await, "not mended: {harm}");
                host.restart_agent();
                assert!(host.is_as(&spec).await, "not mended for good: {harm}");
            }
            // nft's own language has no words for such names. The first is what an agent of before had.
            for name in ["mark", "x; flush ruleset"] {
                let chain =
                    serde_json::json!({ "family": "bridge", "table": "berth", "name": name });
                let rule = serde_json::json!({
                    "family": "bridge", "table": "berth", "chain": name, "expr": [{ "drop": null }],
                });
                nft_json(&[
                    serde_json::json!({ "add": { "chain": chain } }),
                    serde_json::json!({ "add": { "rule": rule } }),
                ]);
                assert!(!host.is_as(&spec).await, "not seen: {name}");
                host.converge(Some(&spec)).await;
                assert!(host.is_as(&spec).await, "not mended: {name}");
                host.restart_agent();
                assert!(host.is_as(&spec).await, "not mended for good: {name}");
            }
            assert_eq!(theirs(), before);
            assert_eq!(host.converge(None).await, NetThen::Gone);
            let left = run("nft", &["-j", "list", "ruleset"]);
            assert!(!left.contains(&host.id.to_string()), "{left}");
            assert_eq!(theirs(), before);
        },
    );
}

/// Commands for which nft's own language has no words.
fn nft_json(commands: &[serde_json::Value]) {
    let told = serde_json::json!({ "nftables": commands });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), told.to_string()).unwrap();
    run("nft", &["-j", "-f", file.path().to_str().unwrap()]);
}

/// As a module that is loaded, or is not any more, leaves it: the tables hold what another way to track connections needs.
#[test]
fn what_another_way_to_track_connections_left_is_removed() {
    isolated(
        "what_another_way_to_track_connections_left_is_removed",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, tcp(80), None);
            host.converge(Some(&spec)).await;
            let listed = || run("nft", &["-j", "list", "ruleset"]).contains("inet");
            let had_inet = listed();
            for way in [Stateful::Bridge, Stateful::BrNetfilter] {
                // Without the rules: not every kernel takes those of the other way.
                let mut all = base::commands(way);
                all.retain(|command| !command.starts_with("add rule "));
                let all = transaction(&all);
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &all).unwrap();
                run("nft", &["-f", file.path().to_str().unwrap()]);
            }
            assert!(listed());
            // With an element that leads to a chain of the network.
            let zone = format!("z_{}", &names::bridge(host.id)[3..]);
            let bridge = names::bridge(host.id);
            for family in ["bridge", "inet"] {
                nft(&format!(
                    "add chain {family} berth {zone}; \
                     add element {family} berth zones {{ {bridge} : goto {zone} }}"
                ));
            }
            assert!(!host.is_as(&spec).await);
            host.restart_agent();
            host.converge(Some(&spec)).await;
            assert!(host.is_as(&spec).await);
            host.restart_agent();
            assert!(host.is_as(&spec).await, "it does not settle");
            let chains = run("nft", &["-j", "list", "chains"]);
            assert_eq!(chains.contains("mark-host"), had_inet, "{chains}");
            assert_eq!(host.converge(None).await, NetThen::Gone);
        },
    );
}

/// The same services are on every host of a network: they must not meet.
#[test]
fn what_is_the_same_on_every_host_crosses_no_uplink() {
    isolated(
        "what_is_the_same_on_every_host_crosses_no_uplink",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, None, None);
            host.converge(Some(&spec)).await;
            let guest = host.plug(&spec, 0);
            let outside = host.span(&spec).await;
            assert!(outside.ping("10.0.0.10"), "others are reached");
            for (what, frame) in frames::from_outside(&host.service_mac()) {
                let sight = guest.watch();
                outside.send(&frame);
                outside.send(&frames::from_stranger());
                assert!(!sight.saw(frames::HOSTILE, 1), "{what} came in");
            }
            for (what, frame) in frames::to_outside() {
                let sight = outside.watch();
                guest.send(&frame);
                guest.send(&legitimate()[1].1);
                assert!(!sight.saw(frames::HOSTILE, 1), "{what} went out");
            }
            assert!(
                outside.cannot_ping("10.0.0.2"),
                "this host's DHCP server is for its own guests"
            );
            // Nothing hostile is for that machine, and the bridge knows nobody it is for: what passed would go there too.
            let sight = outside.watch();
            for (_, _, frame) in hostile() {
                guest.send(&frame);
            }
            let nothing: [Vec<u8>; 0] = [];
            assert_eq!(sight.with(frames::HOSTILE), nothing);
        },
    );
}

/// What the host asks over the bridge of a flat network, that has its addresses, is a connection of the host's and in no network's zone.
#[test]
fn the_hosts_own_firewall_knows_answers_that_come_over_a_flat_network() {
    isolated(
        "the_hosts_own_firewall_knows_answers_that_come_over_a_flat_network",
        async |host: &mut Host| {
            let spec = host.spec(&[10]);
            host.converge(Some(&spec)).await;
            let outside = host.span(&spec).await;
            nft("add table inet own; \
                 add chain inet own in { type filter hook input priority 0; policy drop; }; \
                 add rule inet own in ct state established,related accept");
            assert!(host.hears(&outside, 80), "the host is cut off");
            nft("delete table inet own");
        },
    );
}

/// On a NIC a tag leads into a VLAN, and other networks are in those.
#[test]
fn no_tag_crosses_an_uplink_also_of_a_port_without_security() {
    isolated(
        "no_tag_crosses_an_uplink_also_of_a_port_without_security",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            spec.ports.iter_mut().for_each(|port| port.security = None);
            host.converge(Some(&spec)).await;
            let [open, other] = [host.plug(&spec, 0), host.plug(&spec, 1)];
            let frames_in_vlans = frames::in_vlans(10);
            let sight = other.watch();
            for (_, frame) in &frames_in_vlans {
                open.send(frame);
            }
            assert!(
                sight.saw(frames::HOSTILE, frames_in_vlans.len()),
                "a network of one host carries them"
            );
            assert_eq!(host.drops(&spec, 0, "tagged"), 0);

            let outside = host.span(&spec).await;
            let mut sent = 0;
            for (what, frame) in frames_in_vlans {
                let sights = [outside.watch(), other.watch()];
                open.send(&frame);
                // Something that passes comes after it, so it would have come by then.
                open.send(&legitimate()[1].1);
                for sight in sights {
                    assert!(!sight.saw(frames::HOSTILE, 1), "{what} passed");
                }
                sent += 1;
                assert_eq!(host.drops(&spec, 0, "tagged"), sent, "{what}");
            }
            open.send(&frames::with_priority(10));
            wait_for("a priority tag to be counted", limit(PATIENCE), || {
                let now = host.drops(&spec, 0, "tagged");
                (now > sent, now)
            });

            for (what, frame) in frames::in_vlans(200) {
                let sight = open.watch();
                outside.send(&frame);
                assert!(!sight.saw(frames::HOSTILE, 1), "{what} came in");
            }
            let sight = open.watch();
            outside.send(&frames::with_priority(200));
            assert!(sight.saw(MARK, 1), "it is in no VLAN");
        },
    );
}

/// What became of a frame that the first port's guest sent to the second one's: it came, or the reason that was counted. A trace says
/// the same, unless it cannot be asked.
fn becomes(
    host: &Host,
    spec: &NetworkSpec,
    guests: &[host::Guest; 2],
    what: &str,
    frame: &[u8],
) -> Result<(), String> {
    let became = host.sends(spec, guests, frame);
    if let Some(packet) = frames::as_traced(frame) {
        let steps = trace(spec, &[], &[], &spec.ports[0], &packet);
        let dropped = steps.iter().find(|step| !step.passes).map(|step| {
            let reason = step.detail.rsplit_once("dropped as ");
            reason.map_or(step.detail.as_str(), |(_, reason)| reason)
        });
        let traced = dropped.map_or(Ok(()), |reason| Err(reason.to_owned()));
        assert_eq!(traced, became, "{what}: {steps:#?}");
    }
    became
}

/// Two guests that say nothing by themselves.
fn quiet(host: &mut Host, spec: &NetworkSpec) -> [host::Guest; 2] {
    [0, 1].map(|port| {
        let guest = host.plug(spec, port);
        guest.is_quiet();
        guest
    })
}

fn refused(reason: &str) -> Result<(), String> {
    Err(reason.to_owned())
}

#[test]
fn a_trace_says_what_the_kernel_does() {
    isolated(
        "a_trace_says_what_the_kernel_does",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, None, None);
            let pair = AddressPair {
                ip_address: "10.0.0.100/31".parse().unwrap(),
                mac_address: None,
            };
            let security = spec.ports[1].security.as_mut().unwrap();
            security.allowed_address_pairs = vec![pair];
            host.converge(Some(&spec)).await;
            let guests = quiet(host, &spec);
            for (what, frame) in [
                (
                    "a pair's address",
                    frames::udp_to([10, 0, 0, 101], (1000, 2000)),
                ),
                ("everybody", frames::udp_to_all([255; 4])),
                (
                    "everybody in the subnet",
                    frames::udp_to_all([10, 0, 0, 255]),
                ),
            ] {
                assert_eq!(
                    becomes(host, &spec, &guests, what, &frame),
                    Ok(()),
                    "{what}"
                );
            }
            let mut traced = BTreeSet::new();
            for (what, frame) in legitimate() {
                assert_eq!(becomes(host, &spec, &guests, what, &frame), Ok(()));
                if frames::as_traced(&frame).is_some() {
                    traced.insert("passes");
                }
            }
            for (what, reason, frame) in hostile() {
                // A trace is not told what neighbour discovery says, and answers for what is true.
                if frames::as_traced(&frame).is_some() && reason != "spoofed_nd" {
                    assert_eq!(
                        becomes(host, &spec, &guests, what, &frame),
                        refused(reason),
                        "{what}"
                    );
                    traced.insert(reason);
                }
            }
            let all = [
                "passes",
                "rogue_dhcp",
                "rogue_ra",
                "spoofed_ip",
                "spoofed_mac",
            ];
            assert_eq!(traced, all.into());
        },
    );
}

#[test]
fn an_address_pair_lets_its_addresses_through_for_as_long_as_it_is_there() {
    isolated(
        "an_address_pair_lets_its_addresses_through_for_as_long_as_it_is_there",
        async |host: &mut Host| {
            const SHARED: [u8; 6] = [0, 0, 0x5e, 0, 1, 1];
            let mut spec = host.spec(&[10, 11]);
            allow_in(&mut spec, None, None);
            let pair = |address: &str, mac: Option<&str>| AddressPair {
                ip_address: address.parse().unwrap(),
                mac_address: mac.map(|mac| mac.parse().unwrap()),
            };
            let pairs = vec![
                pair("10.0.0.100/32", Some("00:00:5e:00:01:01")),
                pair("10.0.0.112/30", None),
            ];
            let set = |spec: &mut NetworkSpec, pairs| {
                let security = spec.ports[0].security.as_mut().unwrap();
                security.allowed_address_pairs = pairs;
            };
            set(&mut spec, pairs.clone());
            host.converge(Some(&spec)).await;
            let guests = quiet(host, &spec);
            let check = |spec: &NetworkSpec, what: &str, frame: &[u8], wanted| {
                let became = becomes(host, spec, &guests, what, frame);
                assert_eq!(became, wanted, "{what}");
            };
            let own = frames::mac(10);
            let of_ip = |mac, n| frames::udp_from(mac, [10, 0, 0, n], 2000);
            let of_arp = |mac, n| frames::announcement(mac, [10, 0, 0, n]);
            let owned = |result: Result<(), &str>| result.map_err(str::to_owned);
            for (what, mac, n, ip_wanted, arp_wanted) in [
                ("its own", own, 10, Ok(()), Ok(())),
                ("the pair's", SHARED, 100, Ok(()), Ok(())),
                (
                    "below it",
                    SHARED,
                    99,
                    Err("spoofed_ip"),
                    Err("spoofed_arp"),
                ),
                (
                    "above it",
                    SHARED,
                    101,
                    Err("spoofed_ip"),
                    Err("spoofed_arp"),
                ),
                (
                    "with its own Ethernet address",
                    own,
                    100,
                    Err("spoofed_ip"),
                    Err("spoofed_arp"),
                ),
                (
                    "its own with the pair's",
                    SHARED,
                    10,
                    Err("spoofed_ip"),
                    Err("spoofed_arp"),
                ),
                (
                    "before the prefix",
                    own,
                    111,
                    Err("spoofed_ip"),
                    Err("spoofed_arp"),
                ),
                ("the first of the prefix", own, 112, Ok(()), Ok(())),
                ("the last of the prefix", own, 115, Ok(()), Ok(())),
                (
                    "after the prefix",
                    own,
                    116,
                    Err("spoofed_ip"),
                    Err("spoofed_arp"),
                ),
            ] {
                check(&spec, what, &of_ip(mac, n), owned(ip_wanted));
                check(&spec, what, &of_arp(mac, n), owned(arp_wanted));
            }
            set(&mut spec, Vec::new());
            host.converge(Some(&spec)).await;
            check(&spec, "its own, still", &of_ip(own, 10), Ok(()));
            for (what, mac, n, reason) in [
                ("the pair's, gone", SHARED, 100, "spoofed_mac"),
                ("of the prefix, gone", own, 112, "spoofed_ip"),
            ] {
                check(&spec, what, &of_ip(mac, n), refused(reason));
            }
            set(&mut spec, pairs);
            host.converge(Some(&spec)).await;
            check(&spec, "the pair's, back", &of_ip(SHARED, 100), Ok(()));
        },
    );
}

#[test]
fn a_rule_allows_what_it_names_up_to_its_edges() {
    isolated(
        "a_rule_allows_what_it_names_up_to_its_edges",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            let ports = |min, max| Some(PortRange { min, max });
            let udp = |min, max| {
                let ports = ports(min, max);
                Some(RuleProtocol::Udp { ports })
            };
            let from = |prefix: &str| Some(RuleRemote::Prefix(prefix.parse().unwrap()));
            let ping = RuleProtocol::Icmp {
                kind: Some(8),
                code: Some(0),
            };
            let tcp = RuleProtocol::Tcp {
                ports: ports(2000, 2010),
            };
            for (protocol, remote) in [
                (udp(2000, 2010), None),
                (Some(tcp), None),
                (Some(ping), None),
                // Of 10.0.0.10: it is within, just above, just below.
                (udp(3000, 3000), from("10.0.0.8/30")),
                (udp(3001, 3001), from("10.0.0.8/31")),
                (udp(3002, 3002), from("10.0.0.11/32")),
            ] {
                allow_in(&mut spec, protocol, remote);
            }
            host.converge(Some(&spec)).await;
            let guests = quiet(host, &spec);
            let [a, b] = &guests;
            let datagram = |port| frames::udp_from(frames::mac(10), [10, 0, 0, 10], port);
            let denied = "denied_ingress";
            for (what, frame, wanted) in [
                ("below the range", datagram(1999), refused(denied)),
                ("its first port", datagram(2000), Ok(())),
                ("its last port", datagram(2010), Ok(())),
                ("above the range", datagram(2011), refused(denied)),
                ("a ping", frames::icmp(8, 0), Ok(())),
                ("another code", frames::icmp(8, 1), refused(denied)),
                ("another type", frames::icmp(13, 0), refused(denied)),
                ("from within the prefix", datagram(3000), Ok(())),
                ("from above the prefix", datagram(3001), refused(denied)),
                ("from below the prefix", datagram(3002), refused(denied)),
            ] {
                let became = becomes(host, &spec, &guests, what, &frame);
                assert_eq!(became, wanted, "{what}");
            }
            for port in [2000, 2010] {
                assert!(a.connects(b, port), "{port}");
            }
            for port in [1999, 2011] {
                assert!(a.cannot_connect(b, port), "{port}");
            }

            // The same outwards.
            let mut sends = rule(RuleDirection::Egress, udp(2000, 2001), from("10.0.0.11/32"));
            let rules = &mut spec.security_groups[0].rules;
            rules.retain(|rule| rule.direction == RuleDirection::Ingress);
            rules.push(sends.clone());
            sends.protocol = udp(2002, 2002);
            sends.remote = from("10.0.0.12/32");
            rules.push(sends);
            host.converge(Some(&spec)).await;
            for (what, port, wanted) in [
                ("the last port outwards", 2001, Ok(())),
                ("to another address", 2002, refused("denied_egress")),
                ("no rule's port", 2003, refused("denied_egress")),
            ] {
                let became = becomes(host, &spec, &guests, what, &datagram(port));
                assert_eq!(became, wanted, "{what}");
            }
        },
    );
}
