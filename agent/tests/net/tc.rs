//! Limits and copies of packets on the real kernel, with real packets, read back with `tc -j`.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
};

use berth_common::document::{BandwidthLimit, MirrorDirection, MirrorTarget, PortMirror, PortQos};

use super::*;

/// A guest whose tap has the name of its port's.
fn plug_port(host: &mut Host, n: u8, port: &NetworkPort) -> Guest {
    let guest = Guest {
        namespace: format!("guest{n}"),
        tap: names::tap(port.id),
    };
    let Guest { namespace, tap } = &guest;
    ip(&format!("netns add {namespace}"));
    let mtu = "mtu 1450";
    ip(&format!(
        "link add {tap} {mtu} type veth peer name eth0 {mtu} address {} netns {namespace}",
        mac(n)
    ));
    ip(&format!(
        "link set {tap} master {} up",
        names::bridge(host.id)
    ));
    ip(&format!("-n {namespace} link set lo up"));
    ip(&format!("-n {namespace} link set eth0 up"));
    ip(&format!(
        "-n {namespace} address add 10.0.0.{n}/24 dev eth0"
    ));
    wait_passes(tap, namespace, "eth0");
    host.guests.push(guest.clone());
    guest
}

/// Does something in a guest's namespace, on a thread of its own that ends with it.
fn within<T: Send + 'static>(
    guest: &Guest,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let path = format!("/run/netns/{}", guest.namespace);
    thread::spawn(move || {
        let file = fs::File::open(path).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// How long a transfer is measured, and how much of it is not: the first burst passes at once.
const MEASURED: Duration = Duration::from_secs(2);

/// Bytes a second that get from one guest to another over TCP, once the first burst has passed.
fn rate(from: &Guest, to: &Guest, address: &'static str) -> f64 {
    let (ready, listening) = std::sync::mpsc::channel();
    let receiver = within(to, move || {
        let listener = TcpListener::bind((address, 5000)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 16];
        let (start, mut counted) = (Instant::now(), 0_usize);
        let mut measured_from = None;
        loop {
            let count = stream.read(&mut buffer).unwrap();
            let from = match measured_from {
                Some(from) => from,
                None if start.elapsed() > Duration::from_millis(500) => {
                    *measured_from.insert(Instant::now())
                }
                None => continue,
            };
            counted += count;
            if from.elapsed() >= MEASURED {
                let bytes = f64::from(u32::try_from(counted).unwrap());
                return bytes / from.elapsed().as_secs_f64();
            }
        }
    });
    listening.recv().unwrap();
    let sender = within(from, move || {
        let mut stream = TcpStream::connect((address, 5000)).unwrap();
        let chunk = vec![0x55; 1 << 14];
        // The receiver hangs up when it has seen enough.
        while stream.write_all(&chunk).is_ok() {}
    });
    let rate = receiver.join().unwrap();
    sender.join().unwrap();
    rate
}

/// One of three measurements is near the limit: on a busy machine it is also others that guests and kernel wait for. Without a limit, or
/// with another one, none is.
#[track_caller]
fn assert_near(measure: impl Fn() -> f64, kbps: u32) {
    let limit = f64::from(kbps) * 125.0;
    let mut ratios = Vec::new();
    while ratios.len() < 3 {
        let ratio = measure() / limit;
        ratios.push(ratio);
        if (0.6..1.25).contains(&ratio) {
            return;
        }
    }
    panic!("{ratios:.2?} of the limit of {kbps} kbit/s");
}

fn tc(args: &str) -> Value {
    let args: Vec<&str> = ["-j", "-s"].into_iter().chain(args.split(' ')).collect();
    serde_json::from_str(&run("tc", &args)).unwrap()
}

/// The kinds of the qdiscs of a link, with handle.
fn qdiscs(link: &str) -> BTreeSet<String> {
    let all = tc(&format!("qdisc show dev {link}"));
    let all = all.as_array().unwrap().iter();
    all.map(|it| {
        format!(
            "{} {}",
            it["kind"].as_str().unwrap(),
            it["handle"].as_str().unwrap()
        )
    })
    .collect()
}

fn limit(max_kbps: u32) -> Option<BandwidthLimit> {
    Some(BandwidthLimit {
        max_kbps,
        max_burst_kbps: 100,
    })
}

/// Sends datagrams with this text from one guest to another, and counts those that come.
fn datagrams(from: &Guest, to: &Guest, address: &'static str, text: &'static str) -> usize {
    let (ready, listening) = std::sync::mpsc::channel();
    let receiver = within(to, move || {
        let socket = UdpSocket::bind((address, 6000)).unwrap();
        socket.set_read_timeout(Some(isolation::limit(5))).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 2048];
        let mut count = 0;
        while count < 5 && socket.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    });
    listening.recv().unwrap();
    let sender = within(from, move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for _ in 0..5 {
            socket.send_to(text.as_bytes(), (address, 6000)).unwrap();
        }
    });
    sender.join().unwrap();
    receiver.join().unwrap()
}

/// Listens to all packets in a guest's namespace until told to stop; the number of those with this text.
struct Sniffer {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

impl Sniffer {
    fn start(guest: &Guest, text: &'static str) -> Self {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
        };
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let path = format!("/run/netns/{}", guest.namespace);
        let stopped = std::sync::Arc::clone(&stop);
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let file = fs::File::open(path).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::EthAll,
            )
            .unwrap();
            let limit = nix::sys::time::TimeVal::new(0, 100_000);
            setsockopt(&socket, sockopt::ReceiveTimeout, &limit).unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 4096];
            let mut count = 0;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
            loop {
                match recv(fd, &mut buffer, nix::sys::socket::MsgFlags::empty()) {
                    Ok(length) => {
                        let packet = &buffer[..length];
                        let found = packet
                            .windows(text.len())
                            .any(|part| part == text.as_bytes());
                        count += usize::from(found);
                    }
                    Err(_) if stopped.load(std::sync::atomic::Ordering::SeqCst) => return count,
                    Err(_) => {}
                }
            }
        });
        listening.recv().unwrap();
        Self { stop, thread }
    }

    fn count(self) -> usize {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn ports_are_as_fast_as_they_may_be() {
    isolated("tc::ports_are_as_fast_as_they_may_be", async |host| {
        let mut ports = vec![host.port(5, "slow"), host.port(6, "fast")];
        assert_eq!(
            host.converge(Some(&host.spec(ports.clone()))).await,
            NetThen::Converged
        );
        let slow = plug_port(host, 5, &ports[0]);
        let fast = plug_port(host, 6, &ports[1]);
        let bare = qdiscs(&slow.tap);
        ports[0].qos = PortQos {
            egress: limit(4_000),
            ingress: limit(8_000),
        };
        let limited = host.spec(ports.clone());
        assert_eq!(host.converge(Some(&limited)).await, NetThen::Converged);
        assert!(host.is_as(&limited).await);
        let ifb = names::ifb(ports[0].id);
        assert!(
            qdiscs(&slow.tap).contains("tbf be70:"),
            "{:?}",
            qdiscs(&slow.tap)
        );
        assert!(qdiscs(&slow.tap).contains("clsact ffff:"));
        let on_tap = tc(&format!("qdisc show dev {} root", slow.tap));
        assert_eq!(on_tap[0]["options"]["rate"], 1_000_000, "{on_tap}");
        // It is kept in ticks of the clock.
        let burst = on_tap[0]["options"]["burst"].as_u64().unwrap();
        assert!((12_400..=12_500).contains(&burst), "{on_tap}");
        let on_ifb = tc(&format!("qdisc show dev {ifb} root"));
        assert_eq!(on_ifb[0]["options"]["rate"], 500_000, "{on_ifb}");
        let alias = ip_json(&format!("link show {ifb}"))["ifalias"].clone();
        assert!(
            alias.as_str().unwrap().ends_with(&host.id.to_string()),
            "{alias}"
        );

        assert_near(|| rate(&slow, &fast, "10.0.0.6"), 4_000);
        assert_near(|| rate(&fast, &slow, "10.0.0.5"), 8_000);

        // Another limit, and nothing but the limit is written.
        ports[0].qos.egress = limit(16_000);
        let faster = host.spec(ports.clone());
        let steps = plan(&host.desired(Some(faster.clone())), &host.observe().await).steps;
        assert_eq!(steps.len(), 1, "{steps:#?}");
        assert_eq!(host.converge(Some(&faster)).await, NetThen::Converged);
        assert_near(|| rate(&slow, &fast, "10.0.0.6"), 16_000);

        // The guest is started again: its tap is another one.
        ip(&format!("link del {}", slow.tap));
        host.guests.retain(|guest| guest.tap != slow.tap);
        ip(&format!("netns del {}", slow.namespace));
        assert_eq!(host.converge(Some(&faster)).await, NetThen::Converged);
        assert!(!try_run("ip", &["link", "show", &ifb]).status.success());
        let slow = plug_port(host, 5, &ports[0]);
        assert!(!host.is_as(&faster).await);
        assert_eq!(host.converge(Some(&faster)).await, NetThen::Converged);
        assert_near(|| rate(&slow, &fast, "10.0.0.6"), 16_000);

        // No limit: nothing of it is left, and it is much faster.
        ports[0].qos = PortQos::default();
        let free = host.spec(ports.clone());
        assert_eq!(host.converge(Some(&free)).await, NetThen::Converged);
        assert_eq!(qdiscs(&slow.tap), bare);
        assert!(!try_run("ip", &["link", "show", &ifb]).status.success());
        let mut unlimited = Vec::new();
        let is_fast = (0..3).any(|_| {
            let measured = rate(&slow, &fast, "10.0.0.6");
            unlimited.push(measured);
            measured > 10.0 * 2_000_000.0
        });
        assert!(is_fast, "{unlimited:?}");
        assert_eq!(qdiscs(&names::bridge(host.id)), qdiscs(&fast.tap));
    });
}

#[test]
fn packets_are_copied_to_a_port_and_to_a_link_of_the_host() {
    isolated(
        "tc::packets_are_copied_to_a_port_and_to_a_link_of_the_host",
        async |host| {
            let mut ports = vec![
                host.port(5, "watched"),
                host.port(6, "other"),
                host.port(7, "watcher"),
            ];
            ports[0].mirrors = vec![
                PortMirror {
                    direction: MirrorDirection::Both,
                    to: MirrorTarget::Port(ports[2].id),
                },
                PortMirror {
                    direction: MirrorDirection::Egress,
                    to: MirrorTarget::Interface("span0".parse().unwrap()),
                },
            ];
            // Both at once: a limit goes after the copies.
            ports[0].qos.egress = limit(8_000);
            let spec = host.spec(ports.clone());
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            let watched = plug_port(host, 5, &ports[0]);
            let other = plug_port(host, 6, &ports[1]);
            // Where they shall go is not there: told, and the rest is done.
            let then = host.converge(Some(&spec)).await;
            let NetThen::Flawed(fault) = then else {
                panic!("{then:?}");
            };
            assert!(fault.message.contains("span0"), "{}", fault.message);
            // Its other end is alone in a namespace of its own: a packet socket there sees nothing else.
            let span = Guest {
                namespace: "span".to_owned(),
                tap: "span0".to_owned(),
            };
            ip("netns add span");
            ip("link add span0 type veth peer name eth0 netns span");
            ip("link set span0 up");
            ip("-n span link set eth0 up");
            let then = host.converge(Some(&spec)).await;
            let NetThen::Wait(NetWait::Mirrors(taps)) = then else {
                panic!("{then:?}");
            };
            assert_eq!(taps.len(), 1, "{taps:?}");
            let watcher = plug_port(host, 7, &ports[2]);
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert!(host.is_as(&spec).await);

            // Addresses are learned first.
            assert_eq!(datagrams(&watched, &other, "10.0.0.6", "hello"), 5);
            assert_eq!(datagrams(&other, &watched, "10.0.0.5", "hello"), 5);
            let sniff = |text| (Sniffer::start(&watcher, text), Sniffer::start(&span, text));
            let (at_watcher, at_span) = sniff("it is sent");
            assert_eq!(datagrams(&watched, &other, "10.0.0.6", "it is sent"), 5);
            assert_eq!((at_watcher.count(), at_span.count()), (5, 5));
            let (at_watcher, at_span) = sniff("it is received");
            assert_eq!(datagrams(&other, &watched, "10.0.0.5", "it is received"), 5);
            assert_eq!((at_watcher.count(), at_span.count()), (5, 0));
            assert_near(|| rate(&watched, &other, "10.0.0.6"), 8_000);

            // Somebody took the filter away: it comes back, and the target's tap as well.
            run("tc", &["filter", "del", "dev", &watched.tap, "ingress"]);
            assert!(!host.is_as(&spec).await);
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            ip("link del span0");
            ip("netns del span");
            assert!(!host.is_as(&spec).await);
            ports[0].mirrors.pop();
            let spec = host.spec(ports.clone());
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            let at_watcher = Sniffer::start(&watcher, "once more");
            assert_eq!(datagrams(&watched, &other, "10.0.0.6", "once more"), 5);
            assert_eq!(at_watcher.count(), 5);

            // What somebody else put there stays, and works.
            let parts = "filter add dev TAP egress protocol all prio 7 u32 match u32 0 0 action mirred egress mirror dev lo";
            let parts = parts.replace("TAP", &watched.tap);
            run("tc", &parts.split(' ').collect::<Vec<_>>());
            ports[0].mirrors.clear();
            ports[0].qos.egress = None;
            let spec = host.spec(ports.clone());
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            let left = tc(&format!("filter show dev {} egress", watched.tap));
            let left = left.as_array().unwrap();
            assert!(
                !left.is_empty() && left.iter().all(|it| it["pref"] == 7),
                "{left:?}"
            );
            let sent = tc(&format!("filter show dev {} ingress", watched.tap));
            assert_eq!(sent.as_array().unwrap().len(), 0, "{sent}");
            let at_watcher = Sniffer::start(&watcher, "in private");
            assert_eq!(datagrams(&watched, &other, "10.0.0.6", "in private"), 5);
            assert_eq!(at_watcher.count(), 0);
        },
    );
}

#[test]
fn limits_broken_off_anywhere_are_made_good_and_leave_nothing() {
    isolated(
        "tc::limits_broken_off_anywhere_are_made_good_and_leave_nothing",
        async |host| {
            let mut ports = vec![host.port(5, "a"), host.port(6, "b")];
            let bare = host.spec(ports.clone());
            assert_eq!(host.converge(Some(&bare)).await, NetThen::Converged);
            let guests = [5, 6].map(|n| plug_port(host, n, &ports[usize::from(n - 5)]));
            ports[0].qos = PortQos {
                egress: limit(4_000),
                ingress: limit(8_000),
            };
            ports[0].mirrors = vec![PortMirror {
                direction: MirrorDirection::Both,
                to: MirrorTarget::Port(ports[1].id),
            }];
            let full = host.spec(ports.clone());
            for (from, to) in [(&bare, &full), (&full, &bare)] {
                for cut in 0.. {
                    assert_eq!(host.converge(Some(from)).await, NetThen::Converged);
                    let steps = plan(&host.desired(Some(to.clone())), &host.observe().await).steps;
                    for step in steps.iter().take(cut) {
                        host.net.apply(step).await.unwrap();
                        host.net.apply(step).await.unwrap();
                    }
                    host.restart_agent();
                    assert_eq!(host.converge(Some(to)).await, NetThen::Converged);
                    assert!(host.is_as(to).await);
                    if cut >= steps.len() {
                        assert!(cut > 2, "nothing was ever broken off");
                        break;
                    }
                }
            }
            // The port is deleted while its limit is half made.
            assert_eq!(host.converge(Some(&bare)).await, NetThen::Converged);
            let steps = plan(&host.desired(Some(full.clone())), &host.observe().await).steps;
            host.net.apply(&steps[0]).await.unwrap();
            let ifb = names::ifb(ports[0].id);
            assert!(ip_json(&format!("link show {ifb}"))["ifalias"].is_null());
            assert_eq!(host.net.networks_present().await.unwrap(), [host.id]);
            // What is not berth's has such a name: it is told and left alone.
            assert_eq!(host.converge(Some(&bare)).await, NetThen::Converged);
            ip(&format!("link add {ifb} type ifb"));
            let then = host.converge(Some(&full)).await;
            let NetThen::Flawed(fault) = then else {
                panic!("{then:?}");
            };
            assert!(fault.message.contains(&ifb), "{}", fault.message);
            ip(&format!("link del {ifb}"));
            assert_eq!(host.converge(Some(&full)).await, NetThen::Converged);
            drop(guests);
        },
    );
}
