//! Two hosts, a router on both, and ports of its two networks on different hosts: real packets, looked at on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use berth_agent::decide::{names, network::NetThen, router::RouterThen};
use berth_common::{
    document::{
        EtherType, FixedIp, GatewayAddress, NetworkPort, NetworkSpec, NetworkType, PortQos,
        PortRange, PortSecurity, RemotePort, RouterFloatingIp, RouterGateway, RouterInterface,
        RouterSpec, RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule, SecurityGroupSpec,
        SubnetSpec,
    },
    ids::{
        FloatingIpId, InstanceId, NetworkId, PortId, RouterId, SecurityGroupId,
        SecurityGroupRuleId, SubnetId,
    },
};

use super::{
    fabric::{Capture, GuestOnWire, HostOnWire, bare, cut_wires, inside, tunnel_ip, wires},
    isolation::{in_tries, ip, limit, run, try_run, wait_for, wait_passes},
};

/// How much one transfer is.
const TRANSFER: usize = 300_000;
/// How long one exchange of a transfer may take, in seconds.
const PATIENCE: u32 = 5;

/// How the two networks are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vxlan,
    Vlan,
    Flat,
}

/// A port, and where it is.
struct Port {
    port: NetworkPort,
    /// 1 or 2: of which network.
    n: u8,
    host: usize,
    guest: Option<GuestOnWire>,
}

/// Networks 1 and 2 of a project with a router, on two hosts.
pub(super) struct World {
    pub(super) hosts: [HostOnWire; 2],
    networks: BTreeMap<u8, (NetworkId, NetworkSpec)>,
    router: (RouterId, RouterSpec),
    external: Option<NetworkId>,
    ports: BTreeMap<&'static str, Port>,
}

/// A group that lets in what comes from both networks, on one port, and pings.
fn group() -> SecurityGroupSpec {
    let rule = |direction, ethertype, protocol, remote: Option<&str>| SecurityGroupRule {
        id: SecurityGroupRuleId::new(),
        direction,
        ethertype,
        protocol,
        remote: remote.map(|prefix| RuleRemote::Prefix(prefix.parse().unwrap())),
    };
    let http = || {
        Some(RuleProtocol::Tcp {
            ports: Some(PortRange { min: 80, max: 80 }),
        })
    };
    let ping = || {
        Some(RuleProtocol::Icmp {
            kind: None,
            code: None,
        })
    };
    let (sends, receives) = (RuleDirection::Egress, RuleDirection::Ingress);
    SecurityGroupSpec {
        id: "0191e7a0-7c1f-7b5e-9d2a-3f6f00001001"
            .parse::<SecurityGroupId>()
            .unwrap(),
        rules: vec![
            rule(sends, EtherType::IPv4, None, None),
            rule(sends, EtherType::IPv6, None, None),
            rule(receives, EtherType::IPv4, http(), Some("10.0.0.0/16")),
            rule(receives, EtherType::IPv6, http(), Some("fd00::/16")),
            rule(receives, EtherType::IPv4, ping(), Some("10.0.0.0/16")),
            rule(receives, EtherType::IPv6, ping(), Some("fd00::/16")),
        ],
    }
}

fn mac_of(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

fn leg_mac(n: u8) -> String {
    format!("52:54:00:00:01:{n:02x}")
}

fn cidrs(n: u8) -> [String; 2] {
    [format!("10.0.{n}.0/24"), format!("fd00:{n}::/64")]
}

pub(super) fn addresses(n: u8, host: u8) -> [String; 2] {
    [format!("10.0.{n}.{host}"), format!("fd00:{n}::{host}")]
}

impl World {
    pub(super) fn new(kind: Kind) -> Self {
        Self::with(kind, [1, 2].map(HostOnWire::new), 100)
    }

    /// Another project on the hosts, with the same addresses.
    fn with(kind: Kind, hosts: [HostOnWire; 2], first_segment: u32) -> Self {
        let networks = [1_u8, 2].map(|n| {
            let segment = first_segment + u32::from(n);
            let mut spec = match kind {
                Kind::Vxlan => bare(NetworkType::Vxlan, Some(segment)),
                Kind::Vlan => bare(NetworkType::Vlan, Some(segment)),
                Kind::Flat => bare(NetworkType::Flat, None),
            };
            if kind == Kind::Flat {
                spec.physical_network = Some(format!("physnet{n}").parse().unwrap());
            }
            // Packets that are too large for the second network have to be found out by their senders.
            spec.mtu = if n == 1 { 1450 } else { 1400 };
            spec.subnets = cidrs(n).map(|cidr| subnet(&cidr, n)).to_vec();
            spec.security_groups = vec![group()];
            (n, (NetworkId::new(), spec))
        });
        let networks = BTreeMap::from(networks);
        let interfaces = networks.iter().flat_map(|(n, (id, spec))| {
            spec.subnets.iter().map(|subnet| RouterInterface {
                network_id: *id,
                subnet_id: subnet.id,
                cidr: subnet.cidr,
                ip_address: subnet.gateway_ip.unwrap(),
                mac_address: leg_mac(*n).parse().unwrap(),
                mtu: spec.mtu,
                ipv6_address_mode: subnet.ipv6_address_mode,
            })
        });
        let router = RouterSpec {
            name: "router".parse().unwrap(),
            project: "default".parse().unwrap(),
            interfaces: interfaces.collect(),
            external_gateway: None,
            floating_ips: Vec::new(),
            routes: Vec::new(),
        };
        Self {
            hosts,
            networks,
            router: (RouterId::new(), router),
            external: None,
            ports: BTreeMap::new(),
        }
    }

    /// Adds a port to network `n`, with address `at` in each of its subnets.
    fn port(&mut self, name: &'static str, n: u8, at: u8, host: usize) {
        let subnets = self.networks[&n].1.subnets.iter();
        let fixed_ips = subnets
            .zip(addresses(n, at))
            .map(|(subnet, address)| FixedIp {
                subnet_id: subnet.id,
                ip_address: address.parse().unwrap(),
            });
        let port = NetworkPort {
            id: PortId::new(),
            instance_id: InstanceId::new(),
            mac_address: format!("52:54:00:00:{n:02x}:{at:02x}").parse().unwrap(),
            hostname: name.parse().unwrap(),
            fixed_ips: fixed_ips.collect(),
            security: Some(PortSecurity {
                allowed_address_pairs: Vec::new(),
                security_groups: vec![group().id],
            }),
            qos: PortQos::default(),
            mirrors: Vec::new(),
        };
        let port = Port {
            port,
            n,
            host,
            guest: None,
        };
        self.ports.insert(name, port);
    }

    fn network_id(&self, n: u8) -> NetworkId {
        self.networks[&n].0
    }

    /// Starts the guest of a port where the port is.
    fn start(&mut self, name: &'static str) {
        let port = &self.ports[name];
        let (network, spec) = &self.networks[&port.n];
        let mac = port.port.mac_address.to_string();
        let [v4, v6] = [0, 1].map(|at| port.port.fixed_ips[at].ip_address);
        let (tap, n) = (names::tap(port.port.id), port.n);
        let host = &self.hosts[port.host];
        let guest = host.guest_at(*network, &tap, name, &mac, &format!("{v4}/24"));
        // It makes itself no second address, which it would not be allowed to use.
        inside(name, || {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0").unwrap()
        });
        let mtu = spec.mtu;
        for command in [
            "link set lo up".to_owned(),
            format!("link set eth0 mtu {mtu}"),
            format!("address add {v6}/64 dev eth0 nodad"),
            format!("route add default via 10.0.{n}.1"),
            format!("-6 route replace default via fd00:{n}::1"),
        ] {
            ip(&format!("-n {name} {command}"));
        }
        self.ports.get_mut(name).unwrap().guest = Some(guest);
    }

    fn start_all(&mut self, names: &[&'static str]) {
        for name in names {
            self.start(name);
        }
    }

    fn stop(&mut self, name: &str) {
        let guest = self.ports.get_mut(name).unwrap().guest.take();
        guest.unwrap().unplug();
    }

    /// What each host is told, as the scheduler tells it: all of the router's networks, and who is on other hosts.
    fn tell(&self) {
        for (at, host) in self.hosts.iter().enumerate() {
            let (networks, router) = self.documents(at);
            host.told(&networks, &router);
        }
    }

    fn documents(
        &self,
        at: usize,
    ) -> (
        BTreeMap<NetworkId, NetworkSpec>,
        BTreeMap<RouterId, RouterSpec>,
    ) {
        let mut networks: BTreeMap<NetworkId, NetworkSpec> =
            self.networks.values().cloned().collect();
        for port in self.ports.values() {
            let spec = networks.get_mut(&self.network_id(port.n)).unwrap();
            if port.host == at {
                spec.ports.push(port.port.clone());
            } else {
                let fixed = port.port.fixed_ips.iter();
                spec.remote_ports.push(RemotePort {
                    mac_address: port.port.mac_address,
                    hostname: port.port.hostname.clone(),
                    ip_addresses: fixed.map(|fixed| fixed.ip_address).collect(),
                    tunnel_ip: Some(tunnel_ip(self.hosts[port.host].n)),
                });
            }
        }
        let mut router = self.router.1.clone();
        if let Some(external) = self.external {
            networks.insert(external, bare(NetworkType::Local, None));
            let own = IpAddr::from([198, 51, 100, 20 + self.hosts[at].n]);
            router.external_gateway = Some(RouterGateway {
                network_id: external,
                mac_address: format!("52:54:00:00:02:{at:02x}").parse().unwrap(),
                addresses: vec![GatewayAddress {
                    cidr: "198.51.100.0/24".parse().unwrap(),
                    ip_address: Some(own),
                    gateway_ip: Some(IpAddr::from([198, 51, 100, 1])),
                }],
                enable_snat: true,
                mtu: 1450,
            });
            router.floating_ips.retain(|floating| {
                let mut ports = self.ports.values().filter(|port| port.host == at);
                ports.any(|port| port.port.id == floating.port_id)
            });
        }
        (networks, [(self.router.0, router)].into())
    }

    /// The hosts do what they are told.
    fn converge(&self) {
        self.tell();
        self.hosts.iter().for_each(HostOnWire::converge_told);
    }

    fn address(&self, name: &str, version: usize) -> IpAddr {
        self.ports[name].port.fixed_ips[version].ip_address
    }

    /// The Ethernet address that a host routes with.
    fn host_mac(&self, at: usize) -> String {
        mac_of(names::host_mac(self.hosts[at].id))
    }

    /// Pings and transfers in both directions and both versions of IP; nothing is translated.
    fn reach_each_other(&self, one: &str, other: &str) {
        for (from, to) in [(one, other), (other, one)] {
            for version in [0, 1] {
                let address = self.address(to, version);
                ping_until(from, &[], address, is_answered);
                assert_eq!(
                    transfer(from, to, address),
                    Ok(self.address(from, version)),
                    "{from} to {to}, {address}"
                );
            }
        }
    }

    fn end(mut self) -> [HostOnWire; 2] {
        let started = self.ports.iter().filter(|(_, port)| port.guest.is_some());
        let names: Vec<&str> = started.map(|(name, _)| *name).collect();
        names.into_iter().for_each(|name| self.stop(name));
        for host in &self.hosts {
            host.told(&BTreeMap::new(), &BTreeMap::new());
            assert_eq!(host.converge_router(self.router.0, None), RouterThen::Gone);
            let external = self.external.into_iter();
            for network in [1, 2]
                .map(|n| self.network_id(n))
                .into_iter()
                .chain(external)
            {
                assert_eq!(host.converge(network, None), NetThen::Gone);
            }
        }
        self.hosts
    }
}

fn subnet(cidr: &str, n: u8) -> SubnetSpec {
    let cidr: berth_common::names::Cidr = cidr.parse().unwrap();
    let gateway = if cidr.is_ipv6() {
        IpAddr::from(Ipv6Addr::new(0xfd00, u16::from(n), 0, 0, 0, 0, 0, 1))
    } else {
        IpAddr::from([10, 0, n, 1])
    };
    SubnetSpec {
        id: SubnetId::new(),
        cidr,
        gateway_ip: Some(gateway),
        dhcp_ip: None,
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_address_mode: None,
    }
}

/// What ping prints in a guest.
fn ping(from: &str, how: &[&str], to: IpAddr) -> String {
    let args = ["netns", "exec", from, "ping", "-c", "1", "-W", "2"];
    let to = to.to_string();
    let output = try_run("ip", &[&args[..], how, &[&to]].concat());
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8(both).unwrap()
}

/// Pings until that comes to what is wanted. What is sent once may be lost on its way, and errors are not told as often as they occur.
#[track_caller]
fn ping_until(from: &str, how: &[&str], to: IpAddr, wanted: impl Fn(&str) -> bool) {
    let mut last = String::new();
    let found = in_tries(|| {
        last = ping(from, how, to);
        wanted(&last)
    });
    assert!(found, "{from} to {to}: {last}");
}

fn is_answered(output: &str) -> bool {
    output.contains(" 0% packet loss")
}

/// Whether somebody answers at last.
fn reaches(from: &str, to: IpAddr) -> bool {
    in_tries(|| !cannot_reach(from, to))
}

/// Whether nobody answers. It waits for as long as answers take when there are any.
fn cannot_reach(from: &str, to: IpAddr) -> bool {
    !is_answered(&ping(from, &[], to))
}

/// Sends much from a guest to another one; answers as whom the receiver saw the sender, if all of it came.
fn transfer(from: &str, to: &str, address: IpAddr) -> Result<IpAddr, String> {
    let server = SocketAddr::new(address, 80);
    let listener = inside(to, || TcpListener::bind(server).unwrap());
    listener.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| -> Result<IpAddr, String> {
            let deadline = Instant::now() + limit(PATIENCE);
            let (mut stream, from) = loop {
                match listener.accept() {
                    Ok(accepted) => break accepted,
                    Err(error) if Instant::now() > deadline => return Err(error.to_string()),
                    Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
                }
            };
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(limit(PATIENCE))).unwrap();
            let mut received = Vec::new();
            let read = stream.read_to_end(&mut received);
            read.map_err(|error| format!("after {} bytes: {error}", received.len()))?;
            stream
                .write_all(b"thanks")
                .map_err(|error| error.to_string())?;
            match received.len() {
                TRANSFER => Ok(from.ip()),
                other => Err(format!("{other} bytes")),
            }
        });
        let sent = inside(from, || {
            let mut stream = TcpStream::connect_timeout(&server, limit(PATIENCE))?;
            stream.set_read_timeout(Some(limit(PATIENCE)))?;
            stream.write_all(&vec![7; TRANSFER])?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        });
        let received = receiver.join().unwrap();
        match sent {
            Ok(answer) if answer == "thanks" => received,
            other => Err(format!("{other:?}, {received:?}")),
        }
    })
}

/// A frame of guests as it was on a wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    vni: Option<u32>,
    from: String,
    to: String,
    /// Of IPv4.
    addresses: Option<[IpAddr; 2]>,
}

/// The guests' frames among these, out of their VXLANs.
fn seen(frames: &[Vec<u8>]) -> BTreeSet<Seen> {
    let inner = |frame: &Vec<u8>| {
        let is_vxlan = frame.get(12..14)? == [0x08, 0x00]
            && *frame.get(23)? == 17
            && frame.get(36..38)? == 4789_u16.to_be_bytes();
        let (vni, at) = if is_vxlan {
            let vni = frame.get(46..49)?;
            (Some(u32::from_be_bytes([0, vni[0], vni[1], vni[2]])), 50)
        } else {
            (None, 0)
        };
        let frame = frame.get(at..)?;
        let mac = |at: usize| <[u8; 6]>::try_from(frame.get(at..at + 6)?).ok();
        let address = |at: usize| -> Option<IpAddr> {
            Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into())
        };
        let is_ipv4 = frame.get(12..14)? == [0x08, 0x00];
        Some(Seen {
            vni,
            from: mac_of(mac(6)?),
            to: mac_of(mac(0)?),
            addresses: is_ipv4
                .then(|| Some([address(26)?, address(30)?]))
                .flatten(),
        })
    };
    frames.iter().filter_map(inner).collect()
}

/// Ports of two networks on two hosts reach each other by a router that is on both, and nobody on the wire sees the router.
pub(super) fn ports_on_different_hosts_reach_each_other(kind: Kind) {
    wires();
    let mut world = World::new(kind);
    world.port("a", 1, 10, 0);
    world.port("b", 2, 10, 1);
    world.converge();
    world.start_all(&["a", "b"]);
    world.converge();
    let wire = Capture::start();
    let switches = Switches::count(&world, kind);
    for version in [0, 1] {
        assert!(reaches("a", world.address("b", version)));
    }
    let on_wire = seen(&wire.frames());
    world.reach_each_other("a", "b");
    looks_right_on_the_wire(&world, kind, &on_wire);
    looks_right_on_the_wire_at_all(&seen(&wire.frames()));
    if kind != Kind::Vxlan {
        assert!(switches.of("there") > 0 && switches.of("back") > 0);
    }
    where_hosts_see_it(&world, kind);

    // Errors reach the sender: packets that live too short, and too large ones.
    for (version, by, error) in [
        (0, "10.0.1.1", "Time to live exceeded"),
        (1, "fd00:1::1", "Time exceeded"),
    ] {
        let to = world.address("b", version);
        ping_until("a", &["-t", "1"], to, |gone| {
            gone.contains(by) && gone.contains(error)
        });
        ping_until("a", &["-M", "do", "-s", "1390"], to, |large| {
            large.contains("mtu = 1400") || large.contains("mtu=1400")
        });
    }

    // The groups of the receiver are asked on its host.
    let refused = |world: &World, to: &'static str| {
        let server = SocketAddr::new(world.address(to, 0), 81);
        let _listener = inside(to, || TcpListener::bind(server).unwrap());
        inside("a", || {
            TcpStream::connect_timeout(&server, Duration::from_secs(1)).is_err()
        })
    };
    assert!(refused(&world, "b"), "no rule allows it");

    // It moves to the other one's host, and back.
    for host in [0, 1] {
        world.stop("b");
        world.ports.get_mut("b").unwrap().host = host;
        world.converge();
        world.start("b");
        world.converge();
        world.reach_each_other("a", "b");
        let told = world.hosts[0].in_router(world.router.0, "ip neigh show nud permanent");
        assert_eq!(told.contains("10.0.2.10"), host == 1, "{told}");
        assert_eq!(told.contains("fd00:2::10"), host == 1, "{told}");
        switches_are_told(&world, kind);
    }
    // The rest is as on flat networks, and an emulated machine takes its time.
    if kind != Kind::Vlan {
        what_somebody_else_did_is_mended(&mut world);
        hostile_guests_get_nothing_through(&mut world, kind);
    }
    assert_eq!(switches.of("leg"), 0, "a leg was seen");
    drop(switches);
    for host in world.end() {
        host.end();
    }
    cut_wires();
}

/// A port gets another Ethernet address, and somebody changes neighbours of a leg by hand.
fn what_somebody_else_did_is_mended(world: &mut World) {
    // Another Ethernet address.
    world.stop("b");
    world.ports.get_mut("b").unwrap().port.mac_address = "52:54:00:00:02:99".parse().unwrap();
    world.converge();
    world.start("b");
    world.converge();
    world.reach_each_other("a", "b");

    // What somebody did to a leg by hand is mended; what the leg learned itself stays.
    let router = world.router.0;
    let leg = berth_agent::decide::router::Leg::inside(router, world.network_id(2));
    let leg = leg.namespace_end().name();
    for change in [
        format!("ip neigh replace 10.0.2.10 lladdr 52:54:00:00:00:77 dev {leg} nud permanent"),
        format!("ip neigh del fd00:2::10 dev {leg}"),
        format!("ip neigh add 10.0.2.77 lladdr 52:54:00:00:00:77 dev {leg} nud permanent"),
        format!("ip neigh add 10.0.2.78 lladdr 52:54:00:00:00:78 dev {leg} nud stale"),
    ] {
        world.hosts[0].in_router(router, &change);
    }
    world.converge();
    let neighbours = world.hosts[0].in_router(router, "ip neigh show");
    assert!(
        neighbours.contains("10.0.2.10 ") && neighbours.contains("10.0.2.78"),
        "{neighbours}"
    );
    assert!(!neighbours.contains("10.0.2.77"), "{neighbours}");
    world.reach_each_other("a", "b");
}

/// Counts on the trunks, whatever captures miss: what goes there and back between a and b, with its tag, and what is from or to a
/// leg.
struct Switches;

impl Switches {
    fn count(world: &World, kind: Kind) -> Self {
        let mut rules = "add table bridge seen; add chain bridge seen through { type filter hook forward priority 0; }".to_owned();
        let [a, b] = ["a", "b"].map(|name| world.address(name, 0));
        for (what, host, n, from, to) in [("there", 0, 2, a, b), ("back", 1, 1, b, a)] {
            let tag = match kind {
                Kind::Vlan => format!("vlan id {}", 100 + n),
                Kind::Vxlan | Kind::Flat => String::new(),
            };
            let mac = world.host_mac(host);
            rules += &format!(
                "; add rule bridge seen through ether saddr {mac} {tag} ip saddr {from} ip daddr {to} counter comment {what:?}"
            );
        }
        for side in ["saddr", "daddr"] {
            let legs = [1, 2].map(leg_mac).join(", ");
            // What a stranger on the wire sends is not a leg's.
            rules += &format!(
                "; add rule bridge seen through iifname != \"stranger0\" ether {side} {{ {legs} }} counter comment \"leg\""
            );
        }
        run("nft", &[&rules]);
        Self
    }

    /// How many of this kind there were.
    fn of(&self, what: &str) -> u64 {
        let listed = run("nft", &["-j", "list", "chain", "bridge", "seen", "through"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let rules = listed["nftables"].as_array().unwrap().iter();
        let rules = rules.filter(|object| object["rule"]["comment"] == what);
        rules
            .flat_map(|object| object["rule"]["expr"].as_array().unwrap())
            .filter_map(|expression| expression["counter"]["packets"].as_u64())
            .sum()
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        try_run("nft", &["delete", "table", "bridge", "seen"]);
    }
}

/// Pings between a (network 1, host 1) and b (network 2, host 2): each way goes by the receiver's network, and comes from the
/// sender's host.
fn looks_right_on_the_wire(world: &World, kind: Kind, on_wire: &BTreeSet<Seen>) {
    looks_right_on_the_wire_at_all(on_wire);
    let [a, b] = ["a", "b"].map(|name| world.address(name, 0));
    for (host, n, to, addresses) in [(0, 2_u8, "b", [a, b]), (1, 1, "a", [b, a])] {
        let wanted = Seen {
            vni: (kind == Kind::Vxlan).then_some(100 + u32::from(n)),
            from: world.host_mac(host),
            to: world.ports[to].port.mac_address.to_string(),
            addresses: Some(addresses),
        };
        // The tag of a VLAN is not in what a capture shows; those that count tags see it.
        assert!(on_wire.contains(&wanted), "{wanted:?} in {on_wire:#?}");
    }
}

/// Nobody on the wire sees a leg.
fn looks_right_on_the_wire_at_all(on_wire: &BTreeSet<Seen>) {
    for leg in [1, 2].map(leg_mac) {
        let shown = on_wire
            .iter()
            .find(|seen| seen.from == leg || seen.to == leg);
        assert_eq!(shown, None);
    }
}

/// The addresses that a bridge has learned or was told, by the port they are behind.
fn forwards(namespace: Option<&str>, bridge: &str) -> BTreeMap<String, BTreeSet<String>> {
    let look = || run("bridge", &["fdb", "show", "br", bridge]);
    let text = namespace.map_or_else(look, |namespace| inside(namespace, look));
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        // What a test adds is added for each VLAN of the port as well, and nobody asks for those where VLANs are not told apart.
        if words.contains(&"vlan") {
            continue;
        }
        if let [mac, "dev", port, ..] = words[..] {
            found
                .entry(mac.to_owned())
                .or_default()
                .insert(port.to_owned());
        }
    }
    found
}

/// Switches see a host's own address behind the host and no leg at all; bridges know a leg behind the leg, and nowhere else.
fn where_hosts_see_it(world: &World, kind: Kind) {
    for (at, host) in world.hosts.iter().enumerate() {
        for n in [1, 2] {
            let network = world.network_id(n);
            let known = forwards(Some(&host.namespace), &names::bridge(network));
            let leg = berth_agent::decide::router::Leg::inside(world.router.0, network);
            let behind = known.get(&leg_mac(n)).cloned().unwrap_or_default();
            let end = leg.host_end().name();
            assert_eq!(behind, [end.clone()].into(), "{known:?}");
            // For good: it would be forgotten while only others send.
            let told = inside(&host.namespace, || {
                run("bridge", &["fdb", "show", "dev", &end])
            });
            let told = told.lines().find(|line| line.starts_with(&leg_mac(n)));
            let is_told =
                told.is_some_and(|line| line.contains("sticky") && line.contains("static"));
            assert!(is_told, "{told:?}");
            assert!(!known.contains_key(&world.host_mac(at)), "{known:?}");
        }
    }
    if kind != Kind::Vxlan {
        let trunks: Vec<_> = [super::fabric::TRUNK, super::fabric::SECOND_TRUNK]
            .map(|trunk| forwards(None, trunk))
            .into_iter()
            .flatten()
            .collect();
        for (at, host) in world.hosts.iter().enumerate() {
            let mac = world.host_mac(at);
            let mut behind = trunks.iter().filter(|(known, _)| *known == mac);
            assert!(behind.clone().count() > 0, "{mac} in {trunks:?}");
            let end = host.n.to_string();
            let is_right = behind.all(|(_, ports)| {
                ports.len() == 1 && ports.iter().all(|port| port.ends_with(&end))
            });
            assert!(is_right, "{trunks:?}");
        }
        for leg in [1, 2].map(leg_mac) {
            assert!(trunks.iter().all(|(known, _)| *known != leg), "{trunks:?}");
        }
    }
}

/// Switches that know b behind another host are told, and see it behind the host it is on.
fn switches_are_told(world: &World, kind: Kind) {
    let trunk = match kind {
        Kind::Vxlan => return,
        Kind::Vlan => super::fabric::TRUNK,
        Kind::Flat => super::fabric::SECOND_TRUNK,
    };
    let port = &world.ports["b"];
    let mac = port.port.mac_address.to_string();
    let at = port.host;
    let elsewhere = format!("{trunk}{}", world.hosts[1 - at].n);
    // As a move leaves it. Whatever b happens to send meanwhile would mend it too, so that nothing can be said of it in between.
    run(
        "bridge",
        &[
            "fdb", "replace", &mac, "dev", &elsewhere, "master", "dynamic",
        ],
    );
    let (networks, _) = world.documents(at);
    for (network, spec) in &networks {
        world.hosts[at].herald(*network, spec);
    }
    let end = BTreeSet::from([format!("{trunk}{}", world.hosts[at].n)]);
    // Soon: see above.
    wait_for("the switches to know where b is", limit(1), || {
        let known = forwards(None, trunk);
        (known.get(&mac) == Some(&end), known)
    });
    // Nobody is led astray by it.
    world.reach_each_other("a", "b");
}

/// A guest with the Ethernet address of a leg or of its host, without port security or with an address pair that allows it, and a
/// stranger on the wire.
fn hostile_guests_get_nothing_through(world: &mut World, kind: Kind) {
    world.port("peer", 1, 11, 1);
    world.port("bad", 1, 66, 0);
    world.converge();
    world.start_all(&["peer", "bad"]);
    world.converge();
    let victims = [world.address("a", 0), world.address("peer", 0)];
    assert!(
        victims.iter().all(|victim| reaches("bad", *victim)),
        "as itself"
    );
    let own = world.ports["bad"].port.mac_address.to_string();
    let macs = [leg_mac(1), world.host_mac(0)];
    for is_secured in [true, false] {
        let port = &mut world.ports.get_mut("bad").unwrap().port;
        let security = port.security.take();
        port.security = is_secured.then(|| {
            let pairs = macs
                .iter()
                .map(|mac| serde_json::json!({ "ip_address": "10.0.1.66/32", "mac_address": mac }));
            let pairs = pairs.map(|pair| serde_json::from_value(pair).unwrap());
            PortSecurity {
                allowed_address_pairs: pairs.collect(),
                ..security.unwrap_or_default()
            }
        });
        world.converge();
        for mac in &macs {
            ip(&format!("-n bad link set eth0 address {mac}"));
            ip("-n bad neigh flush all");
            let wire = Capture::start();
            for victim in victims {
                assert!(cannot_reach("bad", victim), "{mac} got through to {victim}");
            }
            let got_out = seen(&wire.frames());
            let from_bad = |seen: &&Seen| {
                let bad: IpAddr = [10, 0, 1, 66].into();
                seen.addresses.is_some_and(|[from, _]| from == bad)
            };
            assert_eq!(got_out.iter().find(from_bad), None);
        }
        ip(&format!("-n bad link set eth0 address {own}"));
        world.reach_each_other("a", "b");
    }
    for name in ["bad", "peer"] {
        world.stop(name);
        world.ports.remove(name);
    }
    world.converge();

    if kind == Kind::Flat {
        ip("netns add stranger");
        ip("link add stranger0 type veth peer name eth0 netns stranger");
        ip("link set stranger0 master trunk up");
        ip("-n stranger address add 10.0.1.77/24 dev eth0");
        ip(&format!(
            "-n stranger link set eth0 address {} up",
            leg_mac(1)
        ));
        wait_passes("stranger0", "stranger", "eth0");
        assert!(cannot_reach("stranger", victims[0]), "a leg from outside");
        // The bridge was not led astray: the gateway is still here.
        assert!(reaches("a", IpAddr::from([10, 0, 1, 1])));
        world.reach_each_other("a", "b");
        ip("link del stranger0");
        ip("netns del stranger");
    }
}

/// A router with a way out translates nothing between its networks; a port with a floating IP is reached by its own address.
pub(super) fn nothing_is_translated_between_hosts() {
    wires();
    let mut world = World::new(Kind::Vxlan);
    world.port("a", 1, 10, 0);
    world.port("b", 2, 10, 1);
    world.port("c", 2, 11, 0);
    world.external = Some(NetworkId::new());
    let floating = |port: &Port, n: u8| RouterFloatingIp {
        id: FloatingIpId::new(),
        floating_ip_address: IpAddr::from([198, 51, 100, n]),
        fixed_ip_address: port.port.fixed_ips[0].ip_address,
        port_id: port.port.id,
    };
    let floating = [
        floating(&world.ports["a"], 50),
        floating(&world.ports["b"], 51),
    ];
    world.router.1.floating_ips = floating.to_vec();
    world.converge();
    world.start_all(&["a", "b", "c"]);
    world.converge();
    world.reach_each_other("a", "b");
    world.reach_each_other("a", "c");
    // A connection goes on over changes of the router, and of who is where.
    let address = world.address("b", 0);
    let server = SocketAddr::new(address, 80);
    let listener = inside("b", || TcpListener::bind(server).unwrap());
    let mut client = inside("a", || {
        TcpStream::connect_timeout(&server, limit(PATIENCE)).unwrap()
    });
    let (mut accepted, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(limit(PATIENCE))).unwrap();
    accepted.set_read_timeout(Some(limit(PATIENCE))).unwrap();
    let mut exchange = || {
        let mut buffer = [0_u8; 4];
        client.write_all(b"ping").unwrap();
        accepted.read_exact(&mut buffer).unwrap();
        accepted.write_all(b"pong").unwrap();
        client.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"pong");
    };
    exchange();
    world.router.1.floating_ips.clear();
    world.ports.get_mut("c").unwrap().host = 1;
    world.converge();
    exchange();
    world.router.1.floating_ips = floating.to_vec();
    world.converge();
    exchange();
    drop(listener);
    for host in world.end() {
        host.end();
    }
    cut_wires();
}

/// Two projects with the same addresses on the same hosts.
pub(super) fn projects_with_the_same_addresses_stay_apart() {
    wires();
    let mut red = World::new(Kind::Vxlan);
    red.port("a", 1, 10, 0);
    red.port("b", 2, 10, 1);
    red.converge();
    red.start_all(&["a", "b"]);
    red.converge();
    red.reach_each_other("a", "b");
    // The other project has the client, and a server elsewhere.
    let (networks, routers) = red.documents(0);
    let hosts = red.hosts;
    let mut blue = World::with(Kind::Vxlan, hosts, 200);
    blue.port("c", 1, 10, 0);
    blue.converge();
    blue.start("c");
    blue.converge();
    assert!(reaches("c", IpAddr::from([10, 0, 1, 1])), "its own router");
    assert!(
        cannot_reach("c", IpAddr::from([10, 0, 2, 10])),
        "another project's port"
    );
    blue.port("d", 2, 10, 1);
    blue.converge();
    blue.start("d");
    blue.converge();
    blue.reach_each_other("c", "d");
    assert_eq!(
        transfer("a", "b", [10, 0, 2, 10].into()),
        Ok([10, 0, 1, 10].into())
    );
    let hosts = blue.end();
    for port in red.ports.into_values() {
        port.guest.unwrap().unplug();
    }
    for host in hosts {
        for router in routers.keys() {
            assert_eq!(host.converge_router(*router, None), RouterThen::Gone);
        }
        for network in networks.keys() {
            assert_eq!(host.converge(*network, None), NetThen::Gone);
        }
        host.end();
    }
    cut_wires();
}

/// Broken off after each step of building, and of a port's coming and going: the next pass gets there.
pub(super) fn what_breaks_off_is_finished() {
    wires();
    let mut world = World::new(Kind::Vxlan);
    world.port("a", 1, 10, 0);
    world.port("b", 2, 10, 1);
    world.converge();
    world.start_all(&["a", "b"]);
    world.converge();
    let (id, to) = (world.router.0, world.address("b", 0));
    assert_eq!(world.hosts[0].converge_router(id, None), RouterThen::Gone);
    let spec = world.documents(0).1.remove(&id);
    let steps = world.hosts[0].plan_router(id, spec.as_ref()).steps;
    let tells = |step: &berth_agent::decide::router::RouterStep| step.name() == "change_neighbours";
    assert_eq!(
        steps.iter().filter(|step| tells(step)).count(),
        1,
        "{steps:?}"
    );
    for cut in 0..=steps.len() {
        let host = &mut world.hosts[0];
        for step in &steps[..cut] {
            host.apply_router(step);
            if tells(step) {
                // Again: no error, and nothing changes.
                host.apply_router(step);
            }
        }
        host.restart_agent();
        let then = host.converge_router(id, spec.as_ref());
        assert_eq!(then, RouterThen::Converged, "after {cut} steps");
        assert!(reaches("a", to), "after {cut} steps");
        assert_eq!(host.converge_router(id, None), RouterThen::Gone);
    }
    world.hosts[0].converge_told();

    // The port leaves its host and comes here, and the other way round, with each step on the way the last one.
    world.stop("b");
    for to_host in [0, 1, 0, 1] {
        world.ports.get_mut("b").unwrap().host = to_host;
        world.tell();
        for at in [0, 1] {
            let (networks, routers) = world.documents(at);
            for (network, spec) in &networks {
                // Each step is the last one of an agent.
                while let Some(step) = world.hosts[at].plan(*network, Some(spec)).steps.first() {
                    world.hosts[at].apply(step).unwrap();
                    world.hosts[at].restart_agent();
                }
            }
            let mut plan = world.hosts[at].plan_router(id, routers.get(&id));
            while let Some(step) = plan.steps.first() {
                world.hosts[at].apply_router(step);
                world.hosts[at].restart_agent();
                plan = world.hosts[at].plan_router(id, routers.get(&id));
            }
        }
        world.start("b");
        world.converge();
        world.reach_each_other("a", "b");
        world.stop("b");
    }
    for host in world.end() {
        host.end();
    }
    cut_wires();
}
