//! What guests are told: routes, names, IPv6 addresses, metadata.

use std::{
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd as _,
};

use berth_agent::decide::{
    dhcp::DOMAIN,
    metadata::{self, IDENTITY_HEADERS},
};
use berth_common::{
    document::{
        ConfigDrive, DesiredPower, Flavor, InstancePort, InstanceSpec, Ipv6AddressMode, OnCrash,
        PortLink, RemotePort, Route,
    },
    units::{DiskGb, MemoryMb, Vcpus},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::*;

/// How long something may take that happens by itself, in seconds.
const LIMIT: u32 = 20;

impl Host {
    /// How many requests with identity headers are counted of each port, as the agent reads it.
    async fn forged(&self, spec: &NetworkSpec) -> Vec<Option<u64>> {
        let counted = self.net.forged_requests().await.unwrap();
        let counted = counted.get(&self.id);
        let ports = spec.ports.iter();
        ports
            .map(|port| metadata::forged_of(spec, port, counted))
            .collect()
    }

    /// Waits until so many are.
    async fn has_forged(&self, spec: &NetworkSpec, expected: &[u64]) {
        let expected: Vec<_> = expected.iter().copied().map(Some).collect();
        let start = Instant::now();
        loop {
            let seen = self.forged(spec).await;
            if seen == expected {
                return;
            }
            assert!(start.elapsed() < limit(LIMIT), "{seen:?}, not {expected:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Guest {
    fn exec(&self, args: &[&str]) -> Output {
        let all = [&["netns", "exec", &self.namespace], args].concat();
        try_run("ip", &all)
    }

    fn ip(&self, args: &str) -> String {
        ip(&format!("-n {} {args}", self.namespace))
    }

    /// The addresses that dnsmasq knows for a name, or the name for an address.
    fn look_up(&self, name: &str) -> String {
        let output = self.exec(&["busybox", "nslookup", name, "10.0.0.2"]);
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    /// Asks the metadata service; the status, and what it answered.
    fn ask(&self, address: &str, path: &str, more: &[&str]) -> (String, String) {
        let url = format!("http://{address}{path}");
        let mut args = vec![
            "curl",
            "-sS",
            "-g",
            "-m",
            "10",
            "-w",
            "\n%{http_code}",
            &url,
        ];
        args.extend(more);
        let output = self.exec(&args);
        let text = String::from_utf8(output.stdout).unwrap();
        let (content, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), content.to_owned())
    }

    /// Does something on a thread in its namespace.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = Path::new("/run/netns").join(&self.namespace);
        let work = move || {
            setns(fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::spawn(work).join().unwrap()
    }

    /// The addresses of its NIC, but for those that it cannot use yet.
    fn addresses(&self) -> Vec<String> {
        let all: Value = serde_json::from_str(&self.ip("-j address show dev eth0")).unwrap();
        let addresses = all[0]["addr_info"].as_array().unwrap();
        let usable = addresses.iter().filter(|it| it["tentative"] != true);
        usable
            .map(|it| it["local"].as_str().unwrap().to_owned())
            .collect()
    }

    fn wait_for_address(&self, address: &str) {
        wait_for(address, limit(LIMIT), || {
            let addresses = self.addresses();
            (addresses.contains(&address.to_owned()), addresses)
        });
    }
}

#[test]
fn routes_and_names_are_told() {
    isolated("guests::routes_and_names_are_told", async |host| {
        let mut spec = host.spec(vec![host.port(10, "web"), host.port(11, "db")]);
        spec.subnets[0].gateway_ip = Some(IpAddr::from([10, 0, 0, 1]));
        spec.subnets[0].host_routes = vec![Route {
            destination: "192.168.7.0/24".parse().unwrap(),
            nexthop: IpAddr::from([10, 0, 0, 9]),
        }];
        let remote = |name: &str| RemotePort {
            mac_address: mac(20).parse().unwrap(),
            hostname: name.parse().unwrap(),
            ip_addresses: vec![IpAddr::from([10, 0, 0, 20]), "fd00::20".parse().unwrap()],
            tunnel_ip: None,
        };
        spec.remote_ports = vec![remote("far")];
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
        let web = host.plug(10);
        let lease = web.dhcp(5, &[]).unwrap();
        assert_eq!(
            lease["routes"],
            "169.254.169.254/32,10.0.0.2,192.168.7.0/24,10.0.0.9,0.0.0.0/0,10.0.0.1"
        );
        assert_eq!([&lease["dns"], &lease["domain"]], ["10.0.0.2", DOMAIN]);

        let pid = host.pid();
        for name in ["db.berth.internal", "db"] {
            let answer = web.look_up(name);
            assert!(answer.contains("10.0.0.11"), "{answer}");
        }
        let answer = web.look_up("far.berth.internal");
        assert!(
            answer.contains("10.0.0.20") && answer.contains("fd00::20"),
            "{answer}"
        );
        let answer = web.look_up("10.0.0.11");
        assert!(answer.contains("db.berth.internal"), "{answer}");
        let answer = web.look_up("absent.berth.internal");
        assert!(answer.contains("NXDOMAIN"), "{answer}");
        // Nothing is asked elsewhere: there is no way out.
        let answer = web.look_up("example.org");
        assert!(
            answer.contains("REFUSED") || answer.contains("refused"),
            "{answer}"
        );

        // Another name is told without a restart.
        spec.remote_ports = vec![remote("farther")];
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
        wait_for("the new name", limit(LIMIT), || {
            let answer = web.look_up("farther.berth.internal");
            (answer.contains("10.0.0.20"), answer)
        });
        let answer = web.look_up("far.berth.internal");
        assert!(answer.contains("NXDOMAIN"), "{answer}");
        assert_eq!(host.pid(), pid);
    });
}

/// The first IPv6 subnets of a network: one in which guests make their addresses, one with DHCPv6.
fn with_ipv6(spec: &mut NetworkSpec) -> [SubnetId; 2] {
    [
        ("fd00:1::", Ipv6AddressMode::Slaac),
        ("fd00:2::", Ipv6AddressMode::Dhcpv6Stateful),
    ]
    .map(|(prefix, mode)| {
        let id = SubnetId::new();
        spec.subnets.push(SubnetSpec {
            id,
            cidr: format!("{prefix}/64").parse().unwrap(),
            gateway_ip: Some(format!("{prefix}1").parse().unwrap()),
            dhcp_ip: Some(format!("{prefix}2").parse().unwrap()),
            dns_nameservers: Vec::new(),
            host_routes: Vec::new(),
            ipv6_address_mode: Some(mode),
        });
        id
    })
}

fn fixed(subnet_id: SubnetId, address: &str) -> FixedIp {
    FixedIp {
        subnet_id,
        ip_address: address.parse().unwrap(),
    }
}

#[test]
fn ipv6_addresses_come_by_advertisement_and_by_dhcp() {
    isolated(
        "guests::ipv6_addresses_come_by_advertisement_and_by_dhcp",
        async |host| {
            let mut spec = host.spec(vec![host.port(10, "web"), host.port(11, "db")]);
            let [slaac, stateful] = with_ipv6(&mut spec);
            spec.ports[0].fixed_ips.extend([
                fixed(slaac, "fd00:1::5054:ff:fe00:a"),
                fixed(stateful, "fd00:2::77"),
            ]);
            // One port without DHCPv4.
            spec.ports[1].fixed_ips = vec![fixed(stateful, "fd00:2::78")];
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert!(host.is_as(&spec).await);
            let [web, db, stranger] = [10, 11, 12].map(|n| host.plug(n));

            // The kernel's own client. What it is advertised is no way out, and has the network's MTU.
            web.wait_for_address("fd00:1::5054:ff:fe00:a");
            let told = web.addresses();
            assert!(!told.iter().any(|it| it.starts_with("fd00:2:")), "{told:?}");
            assert_eq!(web.ip("-6 route show default").trim(), "");
            let mtu = web.exec(&["cat", "/proc/sys/net/ipv6/conf/eth0/mtu"]);
            assert_eq!(String::from_utf8(mtu.stdout).unwrap().trim(), "1450");
            let advertised = web.inside(advertisement);
            assert!(advertised.managed);
            assert_eq!(advertised.lifetime, 0);
            let of = |kind: u8| {
                let options = advertised.options.iter();
                options
                    .filter(|(found, _)| *found == kind)
                    .map(|(_, bytes)| bytes.clone())
                    .collect::<Vec<_>>()
            };
            // Prefixes: which of them guests make addresses of (RFC 4861, 4.6.2).
            let prefixes: BTreeSet<(String, bool)> = of(3)
                .iter()
                .map(|option| {
                    let prefix: [u8; 16] = option[14..30].try_into().unwrap();
                    (Ipv6Addr::from(prefix).to_string(), option[1] & 0x40 != 0)
                })
                .collect();
            let expected = [
                ("fd00:1::".to_owned(), true),
                ("fd00:2::".to_owned(), false),
            ];
            assert_eq!(prefixes, expected.into());
            assert_eq!(of(5)[0][2..], 1450_u32.to_be_bytes());
            assert!(!of(25).is_empty(), "name servers are advertised");

            web.wait_for_address("fe80::5054:ff:fe00:a");
            let lease = web.inside(|| dhcpv6(10)).unwrap();
            assert_eq!(lease.address.to_string(), "fd00:2::77");
            assert_eq!(lease.servers, ["fd00:2::2".parse::<Ipv6Addr>().unwrap()]);
            db.wait_for_address("fe80::5054:ff:fe00:b");
            assert_eq!(
                db.inside(|| dhcpv6(11)).unwrap().address.to_string(),
                "fd00:2::78"
            );
            assert_eq!(db.dhcp(1, &[]), None);
            stranger.wait_for_address("fe80::5054:ff:fe00:c");
            assert_eq!(stranger.inside(|| dhcpv6(12)), None);
            assert_eq!(web.address().unwrap(), "10.0.0.10");
        },
    );
}

/// A router advertisement.
struct Advertisement {
    managed: bool,
    lifetime: u16,
    /// Type, and what follows the length.
    options: Vec<(u8, Vec<u8>)>,
}

/// Waits for a router advertisement, which the kernel asks for when a link is switched on.
fn advertisement() -> Advertisement {
    let icmp = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::IcmpV6,
    )
    .unwrap();
    setsockopt(&icmp, sockopt::ReceiveTimeout, &TimeVal::seconds(20)).unwrap();
    ip("link set eth0 down");
    ip("link set eth0 up");
    let mut packet = [0; 1500];
    let length = loop {
        let length = recv(
            icmp.as_raw_fd(),
            &mut packet,
            nix::sys::socket::MsgFlags::empty(),
        );
        let length = length.expect("no router advertisement came");
        if packet[0] == 134 {
            break length;
        }
    };
    let mut options = Vec::new();
    let mut rest = &packet[16..length];
    while let [kind, eights, ..] = *rest {
        let (option, after) = rest.split_at(usize::from(eights) * 8);
        options.push((kind, option[2..].to_vec()));
        rest = after;
    }
    Advertisement {
        managed: packet[5] & 0x80 != 0,
        lifetime: u16::from_be_bytes([packet[6], packet[7]]),
        options,
    }
}

/// What DHCPv6 gave.
#[derive(Debug, PartialEq)]
struct Lease {
    address: Ipv6Addr,
    servers: Vec<Ipv6Addr>,
}

/// Asks for an address by DHCPv6 (RFC 8415): solicit, advertise, request, reply.
fn dhcpv6(n: u8) -> Option<Lease> {
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    let udp = UdpSocket::bind("[::]:546").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let servers = SocketAddrV6::new("ff02::1:2".parse().unwrap(), 547, 0, index);
    let option = |kind: u16, bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap();
        [&kind.to_be_bytes()[..], &length.to_be_bytes(), bytes].concat()
    };
    // A DUID of another kind than one of the Ethernet address: that is looked up.
    let client = option(1, &[0, 2, 0, 0, 0x7e, 0xd9, n]);
    let wish = option(3, &[0; 12]);
    let more = option(6, &23_u16.to_be_bytes());
    let ask = |kind: u8, server: &[u8]| -> Option<BTreeMap<u16, Vec<u8>>> {
        let elapsed = option(8, &[0, 0]);
        let message = [
            &[kind, 0, 0, n][..],
            &client,
            server,
            &wish,
            &more,
            &elapsed,
        ]
        .concat();
        for _ in 0..3 {
            udp.send_to(&message, servers).unwrap();
            let mut answer = [0; 1500];
            if let Ok((length, _)) = udp.recv_from(&mut answer) {
                assert_eq!(answer[1..4], [0, 0, n]);
                return Some(options(&answer[4..length]));
            }
        }
        None
    };
    let offer = ask(1, &[])?;
    let server = option(2, offer.get(&2)?);
    // An offer of nothing has a status and no address.
    options(offer.get(&3)?.get(12..)?).get(&5)?;
    let reply = ask(3, &server)?;
    let lease = options(&reply.get(&3)?[12..]);
    let address: [u8; 16] = lease.get(&5)?[..16].try_into().unwrap();
    let servers = reply.get(&23).cloned().unwrap_or_default();
    Some(Lease {
        address: address.into(),
        servers: servers
            .chunks(16)
            .map(|address| <[u8; 16]>::try_from(address).unwrap().into())
            .collect(),
    })
}

fn options(mut bytes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    let mut found = BTreeMap::new();
    while let [k0, k1, l0, l1, rest @ ..] = bytes {
        let (value, after) = rest.split_at(usize::from(u16::from_be_bytes([*l0, *l1])));
        found.insert(u16::from_be_bytes([*k0, *k1]), value.to_vec());
        bytes = after;
    }
    found
}

/// What the document of an instance would say.
fn instance(name: &str, key: &str) -> InstanceSpec {
    InstanceSpec {
        name: name.parse().unwrap(),
        project: "default".parse().unwrap(),
        power: DesiredPower::Running,
        reboot: None,
        stop_timeout_seconds: 60,
        flavor: Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(128),
            disk_gb: DiskGb::clamped(1),
        },
        disks: Vec::new(),
        ports: vec![InstancePort {
            id: PortId::new(),
            network_id: NetworkId::new(),
            mac_address: mac(10).parse().unwrap(),
            fixed_ips: Vec::new(),
            mtu: 1450,
            link: PortLink::Up,
        }],
        volumes: Vec::new(),
        config_drive: None,
        guest_data: Some(ConfigDrive {
            public_keys: [("me".parse().unwrap(), key.parse().unwrap())].into(),
            ..ConfigDrive::default()
        }),
        rescue: None,
        on_crash: OnCrash::default(),
    }
}

/// Writes what an instance is told, as the agent does: for the service's group alone.
fn tell(id: InstanceId, spec: &InstanceSpec) {
    let directory = Path::new(STATE_DIR).join("metadata");
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).unwrap();
    let file = directory.join(format!("{id}.json"));
    fs::write(&file, metadata::guest_text(id, spec, &Default::default())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    run("chown", &["root:nogroup", file.to_str().unwrap()]);
}

const KEY: &str = "/latest/meta-data/public-keys/0/openssh-key";
const V4: &str = "169.254.169.254";
const V6: &str = "[fe80::a9fe:a9fe%25eth0]";

#[test]
fn the_metadata_service_tells_guests_apart_by_where_they_ask_from() {
    isolated(
        "guests::the_metadata_service_tells_guests_apart_by_where_they_ask_from",
        async |host| {
            let spec = host.spec(vec![
                host.port(10, "web"),
                host.port(11, "db"),
                host.port(12, "quiet"),
            ]);
            host.converge(Some(&spec)).await;
            for (port, key) in spec
                .ports
                .iter()
                .zip(["ssh-rsa AAAA web", "ssh-rsa BBBB db"])
            {
                tell(port.instance_id, &instance(port.hostname.as_str(), key));
            }
            let guests = [10, 11, 12].map(|n| host.plug(n));
            let [web, db, quiet] = &guests;
            for guest in &guests {
                guest.address().unwrap();
            }
            for (guest, link_local) in guests.iter().zip(["a", "b", "c"]) {
                guest.wait_for_address(&format!("fe80::5054:ff:fe00:{link_local}"));
            }
            let answer = |guest: &Guest, address, path, more: &[&str]| {
                let (status, content) = guest.ask(address, path, more);
                assert_eq!(status, "200", "{path}: {content}");
                content
            };
            for address in [V4, V6] {
                assert_eq!(answer(web, address, KEY, &[]), "ssh-rsa AAAA web");
                assert_eq!(answer(db, address, KEY, &[]), "ssh-rsa BBBB db");
                // What a guest says of itself counts for nothing.
                let id = format!("X-Instance-ID: {}", spec.ports[1].instance_id);
                let forged = [
                    "-H",
                    "X-Forwarded-For: 10.0.0.11",
                    "-H",
                    "X-Real-IP: 10.0.0.11",
                    "-H",
                    "Forwarded: for=10.0.0.11",
                    "-H",
                    "Host: 10.0.0.11",
                    "-H",
                    &id,
                    "-H",
                    "X-Instance-ID-Signature: 00",
                    "-H",
                    "X-Tenant-ID: default",
                ];
                assert_eq!(answer(web, address, KEY, &forged), "ssh-rsa AAAA web");
                let meta: Value = serde_json::from_str(&answer(
                    db,
                    address,
                    "/openstack/2018-08-27/meta_data.json",
                    &[],
                ))
                .unwrap();
                assert_eq!(meta["uuid"], spec.ports[1].instance_id.to_string());
                for (guest, path) in [
                    (web, "/latest/user-data"),
                    (web, "/openstack/latest/user_data"),
                    (web, "/latest/meta-data/nothing"),
                    (web, "/latest/meta-data/../../../etc/passwd"),
                    // Nothing is known of this one.
                    (quiet, KEY),
                    (quiet, "/"),
                ] {
                    let (status, _) = guest.ask(address, path, &["--path-as-is"]);
                    assert_eq!(status, "404", "{path}");
                }
                let put = web.ask(address, "/latest/api/token", &["-X", "PUT", "--data", "x"]);
                assert_eq!(put.0, "405");
            }
            // Nor does an address that is nobody's.
            web.ip("address add 10.0.0.99/24 dev eth0");
            let (status, _) = web.ask(V4, KEY, &["--interface", "10.0.0.99"]);
            assert_eq!(status, "404");
            // One request of each address claimed to be another's. Whoever is honest is not counted, nor is nobody.
            host.has_forged(&spec, &[2, 0, 0]).await;
            let claim = [
                "--interface",
                "10.0.0.99",
                "-H",
                "X-Forwarded-For: 10.0.0.11",
            ];
            assert_eq!(web.ask(V4, KEY, &claim).0, "404");
            // Each header by itself, whatever is asked for, and whether or not there is an answer.
            for header in IDENTITY_HEADERS {
                let header = format!("{}: 10.0.0.10", header.to_lowercase());
                assert_eq!(answer(db, V4, KEY, &["-H", &header]), "ssh-rsa BBBB db");
            }
            let claim = ["-H", "X-Instance-ID: x"];
            assert_eq!(quiet.ask(V4, "/nothing", &claim).0, "404");
            let put = ["-H", "X-Instance-ID: x", "-X", "PUT", "--data", "x"];
            assert_eq!(quiet.ask(V6, "/", &put).0, "405");
            host.has_forged(&spec, &[2, 5, 2]).await;

            // However often one claims, the file is written rarely.
            let file = host.directory().join("metadata-counts/forged.json");
            let inode = || fs::metadata(&file).unwrap().ino();
            let (mut last, mut writes) = (inode(), 0);
            let start = Instant::now();
            let mut asked = 2;
            while start.elapsed() < Duration::from_secs(6) || asked <= 20 {
                assert_eq!(web.ask(V4, "/", &claim).0, "200");
                asked += 1;
                writes += u32::from(inode() != last);
                last = inode();
            }
            let elapsed = start.elapsed();
            assert!(
                u64::from(writes) <= elapsed.as_secs() / 5 + 1,
                "{writes} writes of {asked} in {elapsed:?}"
            );
            host.has_forged(&spec, &[asked, 5, 2]).await;

            // A guest that takes all it can get keeps nobody else from an answer.
            let greedy = "for n in $(seq 300); do busybox nc 169.254.169.254 80 & done; sleep 600";
            let mut flood = Command::new("ip")
                .args(["netns", "exec", &web.namespace, "sh", "-c", greedy])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            for _ in 0..3 {
                assert_eq!(answer(db, V4, KEY, &[]), "ssh-rsa BBBB db");
            }
            flood.kill().unwrap();
            flood.wait().unwrap();
            // Those that the service has hung up on by now are gone.
            try_run("pkill", &["-KILL", "-x", "busybox"]);

            // What changes is told at once, and nobody is restarted.
            let before = processes("berth-metadata");
            tell(
                spec.ports[0].instance_id,
                &instance("web", "ssh-rsa CCCC web"),
            );
            assert_eq!(answer(web, V6, KEY, &[]), "ssh-rsa CCCC web");
            let fewer = host.spec(spec.ports[1..].to_vec());
            assert_eq!(host.converge(Some(&fewer)).await, NetThen::Converged);
            assert_eq!(web.ask(V4, KEY, &[]).0, "404");
            assert_eq!(answer(db, V4, KEY, &[]), "ssh-rsa BBBB db");
            assert_eq!(processes("berth-metadata"), before);
            // What was counted goes with the port, and stays with the others.
            assert_eq!(host.forged(&fewer).await, [Some(5), Some(2)]);
            fs::remove_dir_all(Path::new(STATE_DIR).join("metadata")).unwrap();
        },
    );
}

fn service() -> i32 {
    let found = processes("berth-metadata");
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn the_metadata_service_outlives_the_agent_and_is_replaced_when_it_must_be() {
    isolated(
        "guests::the_metadata_service_outlives_the_agent_and_is_replaced_when_it_must_be",
        async |host| {
            let spec = host.spec(vec![host.port(10, "web")]);
            host.converge(Some(&spec)).await;
            let id = spec.ports[0].instance_id;
            tell(id, &instance("web", "ssh-rsa AAAA web"));
            let web = host.plug(10);
            web.address().unwrap();
            let answers = || web.ask(V4, KEY, &[]).1 == "ssh-rsa AAAA web";
            assert!(answers());

            // It has no rights, and is nobody's child.
            let pid = service();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
            assert!(status.contains("NoNewPrivs:\t1"), "{status}");
            let field = |name: &str| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap();
                line.trim().trim_end_matches(" kB").to_owned()
            };
            assert!(
                !field("Uid:").split_whitespace().any(|uid| uid == "0"),
                "{status}"
            );
            assert_eq!(field("PPid:"), "1");
            assert_eq!(field("Threads:"), "1");
            let resident: u64 = field("VmRSS:").parse().unwrap();
            assert!(resident < 32 << 10, "it takes {resident} KiB");

            // Who claims to be somebody is counted by it, also while no agent runs.
            let claim = ["-H", "X-Instance-ID: x"];
            assert_eq!(web.ask(V4, "/", &claim).0, "200");
            host.has_forged(&spec, &[1]).await;
            let counts = host.directory().join("metadata-counts");
            let status_of = fs::metadata(&counts).unwrap();
            assert_ne!(status_of.uid(), 0);
            assert_eq!(status_of.mode() & 0o777, 0o700);

            host.restart_agent();
            assert!(host.is_as(&spec).await);
            assert_eq!(host.forged(&spec).await, [Some(1)]);
            // What is there instead of the file is not followed, and not waited for.
            let file = counts.join("forged.json");
            let name = file.to_str().unwrap();
            let real = counts.join("real");
            fs::rename(&file, &real).unwrap();
            for make in [
                &["ln", "-s", real.to_str().unwrap(), name][..],
                &["mkfifo", name],
                &["cp", "/proc/version", name],
            ] {
                let _ = fs::remove_file(&file);
                run(make[0], &make[1..]);
                assert_eq!(host.forged(&spec).await, [None], "{make:?}");
            }
            // Even without a record of it.
            fs::remove_file(host.directory().join("metadata-process.json")).unwrap();
            host.restart_agent();
            assert!(host.is_as(&spec).await);
            assert_eq!(service(), pid);

            kill(pid, "-KILL");
            wait_for("its end", limit(LIMIT), || (!is_alive(pid), ()));
            assert!(!host.is_as(&spec).await);
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert_ne!(service(), pid);
            assert!(answers());
            // A new one counts anew.
            host.has_forged(&spec, &[0]).await;

            // An upgrade: another file is where the program was.
            let program = Path::new("/run/berth-metadata");
            let install = || {
                let built = berth_agent::act::net::metadata::default_program();
                let new = program.with_extension("new");
                fs::copy(built, &new).unwrap();
                fs::rename(new, program).unwrap();
            };
            install();
            let upgraded = KernelNet::new(Path::new(STATE_DIR));
            host.net = upgraded.with_metadata_program(program.to_owned());
            for _ in 0..2 {
                let before = service();
                assert!(!host.is_as(&spec).await);
                assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
                assert_ne!(service(), before);
                assert!(answers());
                install();
            }
            // One that is not there is no reason to end what runs.
            host.converge(Some(&spec)).await;
            let last = service();
            fs::remove_file(program).unwrap();
            assert!(host.is_as(&spec).await);
            assert_eq!(service(), last);
            fs::remove_dir_all(Path::new(STATE_DIR).join("metadata")).unwrap();
        },
    );
}
