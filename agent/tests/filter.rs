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
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_agent::decide::{
    filter::{Rendered, Stateful, base, nft::transaction, towards},
    names,
    network::NetThen,
};
use berth_common::document::{
    NetworkSpec, NetworkType, PortRange, RuleDirection, RuleProtocol, RuleRemote,
};
use frames::{MARK, hostile, legitimate};
use host::{Host, group, inside, isolated, nft, rule};
use isolation::{ip, run, slowness, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

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
            assert!(!a.ping("10.0.0.11"), "no rule allows it");
            assert!(a.connects(&b, 80));
            assert!(!a.connects(&b, 81));
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
            assert!(!a.connects(&b, 80));
            // Nothing may leave, either.
            spec.security_groups[0]
                .rules
                .retain(|rule| rule.direction == RuleDirection::Ingress);
            host.converge(Some(&spec)).await;
            assert!(!a.ping("10.0.0.11"));
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
            stream
                .set_read_timeout(Some(PATIENCE * slowness()))
                .unwrap();
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
            stream
                .set_read_timeout(Some(6 * PATIENCE * slowness()))
                .unwrap();
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
            assert!(!guests[2].ping("10.0.0.11"));
            spec.group_members
                .insert(group(7), vec!["10.0.0.12".parse().unwrap()]);
            host.converge(Some(&spec)).await;
            assert!(guests[2].ping("10.0.0.11"));
            assert!(!guests[0].ping("10.0.0.11"));
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
                socket
                    .set_read_timeout(Some(Duration::from_millis(500)))
                    .unwrap();
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
            assert!(c_socket.recv(&mut buffer).is_err(), "it crossed");
            b_socket.send_to(b"back", "10.0.0.10:4000").unwrap();
            assert_eq!(a_socket.recv(&mut buffer).unwrap(), 4);
            assert!(a.connects(&b, 80));
            assert!(!c.connects(&d, 80));
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
                    PATIENCE * slowness(),
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

#[test]
fn berths_own_services_are_reached_whatever_the_groups_say() {
    isolated(
        "berths_own_services_are_reached_whatever_the_groups_say",
        async |host: &mut Host| {
            let mut spec = host.spec(&[10, 11]);
            spec.security_groups[0].rules.clear();
            host.converge(Some(&spec)).await;
            let guest = host.plug(&spec, 0);
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
            assert!(!a.ping("10.0.0.11"));
            assert!(!b.ping("10.0.0.10"));
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
            assert_eq!(theirs(), before);
            assert_eq!(host.converge(None).await, NetThen::Gone);
            let left = run("nft", &["-j", "list", "ruleset"]);
            assert!(!left.contains(&host.id.to_string()), "{left}");
            assert_eq!(theirs(), before);
        },
    );
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
                all.retain(|command| !command.starts_with(r#"{"add":{"rule""#));
                let all = transaction(&all);
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &all).unwrap();
                run("nft", &["-j", "-f", file.path().to_str().unwrap()]);
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
            let outside = host.uplink("uplink0");
            let uplinks = BTreeSet::from(["uplink0".to_owned()]);
            let spanning = NetworkSpec {
                network_type: NetworkType::Flat,
                ..spec.clone()
            };
            let observed = host.observe().await;
            let (observed, rendered) = (observed.filter, &mut Rendered::default());
            let step =
                towards(host.id, &spanning, &uplinks, host.host, &observed, rendered).unwrap();
            host.apply(&berth_agent::decide::network::NetStep::Filter(step))
                .await;
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
                !outside.ping("10.0.0.2"),
                "this host's DHCP server is for its own guests"
            );
        },
    );
}
