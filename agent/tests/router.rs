//! Routers and floating IPs on the real kernel, with real packets.
//!
//! Each test runs in network, mount and process namespaces of its own, with a private `/run`: it starts itself again inside of
//! them. So names cannot collide, and nothing can be left on the machine. Needs root, `unshare`, `ip`, `nft`, `ping`, `busybox` and
//! `dnsmasq`; where one is missing, it fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic in a test's helper is a failed assertion"
)]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "net/fabric.rs"]
mod fabric;
#[allow(dead_code, reason = "other tests use the rest of it")]
mod isolation;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "net/routed.rs"]
mod routed;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use berth_agent::{
    act::{Net, net::KernelNet},
    decide::{
        names, network,
        router::{self, Leg, RouterObserved, RouterThen},
    },
};
use berth_common::{
    document::{
        Desired, GatewayAddress, Ipv6AddressMode, NetworkSpec, NetworkType, Route,
        RouterFloatingIp, RouterGateway, RouterInterface, RouterSpec,
    },
    ids::{FloatingIpId, HostId, NetworkId, PortId, RouterId, SubnetId},
    message::report::FaultCode,
    units::Generation,
};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use self::isolation::{
    INSIDE, STATE_DIR, block_on, in_tries, ip, limit, private_run, try_run, wait_for,
    wait_forwards, wait_passes,
};

/// Set, with a file of documents, for the copy that is another host.
const OTHER_HOST: &str = "BERTH_ROUTER_TEST_OTHER_HOST";
/// How long one test may take, in seconds.
const TEST_LIMIT: u32 = 150;

/// Runs a test in namespaces of its own.
fn isolated<F: AsyncFnOnce(&mut Lab)>(test: &str, body: F) {
    isolation::isolated(test, TEST_LIMIT, async || {
        let mut lab = Lab::new();
        body(&mut lab).await;
        lab.end().await;
    });
}

/// What a program in a namespace prints.
fn within(namespace: &str, command: &str) -> Output {
    let args: Vec<&str> = ["netns", "exec", namespace]
        .into_iter()
        .chain(command.split(' '))
        .collect();
    try_run("ip", &args)
}

/// Whether somebody answers at last.
fn ping(namespace: &str, address: &str) -> bool {
    in_tries(|| !cannot_ping(namespace, address))
}

/// Whether nobody answers. It waits for as long as answers take when there are any.
fn cannot_ping(namespace: &str, address: &str) -> bool {
    let pinged = within(namespace, &format!("ping -c 1 -W 2 {address}"));
    !pinged.status.success()
}

/// A thread that is in a namespace from the start, and ends with its work.
fn thread_within<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// A TCP server that answers each connection with the address it came from.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || thread::panicking());
    }
}

fn serve(namespace: &str, port: u16) -> Server {
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, listening) = mpsc::channel();
    let stopped = Arc::clone(&stop);
    let thread = thread_within(namespace, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        ready.send(()).unwrap();
        while !stopped.load(Ordering::SeqCst) {
            match listener.accept() {
                // A client that is gone by now has not waited for the answer.
                Ok((mut stream, from)) => drop(stream.write_all(from.ip().to_string().as_bytes())),
                Err(_) => thread::park_timeout(Duration::from_millis(2)),
            }
        }
    });
    listening.recv().unwrap();
    Server {
        stop,
        thread: Some(thread),
    }
}

/// As what address a client in a namespace is seen by a server.
fn seen_as(namespace: &str, server: &str, port: u16) -> Option<String> {
    seen_within(limit(10), namespace, server, port)
}

/// Whether no server hears a client in a namespace out. It waits for as long as that takes where one does.
fn is_not_seen(namespace: &str, server: &str, port: u16) -> bool {
    seen_within(Duration::from_secs(2), namespace, server, port).is_none()
}

fn seen_within(limit: Duration, namespace: &str, server: &str, port: u16) -> Option<String> {
    let server = SocketAddr::new(server.parse().unwrap(), port);
    let client = thread_within(namespace, move || {
        let mut stream = TcpStream::connect_timeout(&server, limit).ok()?;
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    });
    client.join().unwrap()
}

/// A network of one host.
#[derive(Clone, Copy)]
struct Network {
    id: NetworkId,
    n: u8,
}

/// A host with networks and routers, and an outside world behind the external network.
struct Lab {
    net: KernelNet,
    networks: Vec<NetworkId>,
    routers: Vec<RouterId>,
    namespaces: Vec<String>,
    taps: Vec<String>,
}

impl Lab {
    fn new() -> Self {
        Self {
            net: KernelNet::new(Path::new(STATE_DIR)),
            networks: Vec::new(),
            routers: Vec::new(),
            namespaces: Vec::new(),
            taps: Vec::new(),
        }
    }

    async fn network(&mut self, n: u8) -> Network {
        let id = NetworkId::new();
        self.networks.push(id);
        assert_eq!(
            self.converge_network(id, true).await,
            network::NetThen::Converged
        );
        Network { id, n }
    }

    /// A network of guests without DHCP: a bridge.
    async fn converge_network(&self, id: NetworkId, wanted: bool) -> network::NetThen {
        let spec = NetworkSpec {
            name: "net".parse().unwrap(),
            project: "default".parse().unwrap(),
            network_type: NetworkType::Local,
            physical_network: None,
            segmentation_id: None,
            mtu: 1500,
            subnets: Vec::new(),
            ports: Vec::new(),
            remote_ports: Vec::new(),
            security_groups: Vec::new(),
            group_members: BTreeMap::new(),
        };
        let desired = Desired {
            id,
            generation: Generation(1),
            host_id: HostId::new(),
            spec: wanted.then_some(spec),
        };
        for _ in 0..4 {
            let plan = network::plan(&desired, &self.net.observe(id).await.unwrap());
            if plan.steps.is_empty() {
                return plan.then;
            }
            for step in &plan.steps {
                self.net.apply(step).await.unwrap();
            }
        }
        panic!("network {id} does not converge");
    }

    fn new_router(&mut self) -> RouterId {
        let id = RouterId::new();
        self.routers.push(id);
        id
    }

    async fn observe(&self, desired: &Desired<RouterId, RouterSpec>) -> RouterObserved {
        self.net
            .observe_router(desired.id, &router::legs(desired))
            .await
            .unwrap()
    }

    async fn plan(&self, desired: &Desired<RouterId, RouterSpec>) -> router::RouterPlan {
        router::plan(desired, &self.observe(desired).await)
    }

    /// Plans and applies until nothing is left to do.
    async fn converge(&self, id: RouterId, spec: Option<&RouterSpec>) -> RouterThen {
        let desired = desired(id, spec);
        for _ in 0..4 {
            let plan = self.plan(&desired).await;
            if plan.steps.is_empty() {
                return plan.then;
            }
            for step in &plan.steps {
                self.net
                    .apply_router(step)
                    .await
                    .unwrap_or_else(|error| panic!("{step}: {error:?} of {plan:#?}"));
            }
        }
        panic!(
            "router {id} does not converge: {:#?}",
            self.plan(&desired).await
        );
    }

    /// A guest in a network, with an address and the router as its way out.
    fn guest(&mut self, name: &str, network: Network, host: u8) {
        self.machine(name, network.id);
        let n = network.n;
        ip(&format!(
            "-n {name} address add 10.0.{n}.{host}/24 dev eth0"
        ));
        ip(&format!("-n {name} route add default via 10.0.{n}.1"));
    }

    /// A machine in the external network, which knows no way to the inside.
    fn outside(&mut self, name: &str, external: Network, host: u8) {
        self.machine(name, external.id);
        ip(&format!(
            "-n {name} address add 198.51.100.{host}/24 dev eth0"
        ));
        // The rest of the world, beyond the first machine.
        ip(&format!("-n {name} address add 203.0.113.{host}/32 dev lo"));
    }

    fn machine(&mut self, name: &str, network: NetworkId) {
        let tap = format!("tap-{name}");
        ip(&format!("netns add {name}"));
        ip(&format!(
            "link add {tap} type veth peer name eth0 netns {name}"
        ));
        ip(&format!(
            "link set {tap} master {} up",
            names::bridge(network)
        ));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        wait_passes(&tap, name, "eth0");
        self.namespaces.push(name.to_owned());
        self.taps.push(tap);
    }

    /// The agent is gone and starts again.
    fn restart_agent(&mut self) {
        self.net = KernelNet::new(Path::new(STATE_DIR));
    }

    async fn end(&mut self) {
        for id in std::mem::take(&mut self.routers) {
            assert_eq!(self.converge(id, None).await, RouterThen::Gone);
            let nothing = self.observe(&desired(id, None)).await;
            assert_eq!(nothing, RouterObserved::default());
        }
        assert_eq!(self.net.routers_present().await.unwrap(), []);
        for tap in self.taps.drain(..) {
            ip(&format!("link del {tap}"));
        }
        for namespace in self.namespaces.drain(..) {
            ip(&format!("netns del {namespace}"));
        }
        for id in std::mem::take(&mut self.networks) {
            assert_eq!(
                self.converge_network(id, false).await,
                network::NetThen::Gone
            );
        }
        assert_eq!(ip("netns list"), "");
        let links: Value = serde_json::from_str(&ip("-j link show")).unwrap();
        let left: Vec<_> = links
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| name.starts_with(names::LINK_PREFIX))
            .collect();
        assert_eq!(left, Vec::<&str>::new());
        for directory in ["networks", "routers"] {
            let left = fs::read_dir(Path::new(STATE_DIR).join(directory));
            assert!(left.is_err() || left.unwrap().next().is_none());
        }
    }
}

fn desired(id: RouterId, spec: Option<&RouterSpec>) -> Desired<RouterId, RouterSpec> {
    Desired {
        id,
        generation: Generation(1),
        host_id: HostId::new(),
        spec: spec.cloned(),
    }
}

fn spec(interfaces: &[Network], external: Option<(Network, u8)>) -> RouterSpec {
    let interfaces = interfaces.iter().map(|network| RouterInterface {
        network_id: network.id,
        subnet_id: SubnetId::new(),
        cidr: format!("10.0.{}.0/24", network.n).parse().unwrap(),
        ip_address: IpAddr::from([10, 0, network.n, 1]),
        mac_address: format!("52:54:00:00:01:{:02x}", network.n).parse().unwrap(),
        mtu: 1500,
        ipv6_address_mode: None,
    });
    let gateway = external.map(|(network, own)| RouterGateway {
        network_id: network.id,
        mac_address: format!("52:54:00:00:02:{own:02x}").parse().unwrap(),
        addresses: vec![GatewayAddress {
            cidr: "198.51.100.0/24".parse().unwrap(),
            ip_address: Some(IpAddr::from([198, 51, 100, own])),
            gateway_ip: Some(IpAddr::from([198, 51, 100, 1])),
        }],
        enable_snat: true,
        mtu: 1500,
    });
    RouterSpec {
        name: "router".parse().unwrap(),
        project: "default".parse().unwrap(),
        interfaces: interfaces.collect(),
        external_gateway: gateway,
        floating_ips: Vec::new(),
        routes: Vec::new(),
    }
}

fn floating(outside: u8, inside: [u8; 4]) -> RouterFloatingIp {
    RouterFloatingIp {
        id: FloatingIpId::new(),
        floating_ip_address: IpAddr::from([198, 51, 100, outside]),
        fixed_ip_address: IpAddr::V4(Ipv4Addr::from(inside)),
        port_id: PortId::new(),
    }
}

/// What a named counter in a router's packet filter says, in packets.
fn counted(router: RouterId, name: &str) -> u64 {
    let namespace = names::router_namespace(router);
    let text = within(
        &namespace,
        &format!("nft -j list counter inet berth {name}"),
    )
    .stdout;
    let listed: Value = serde_json::from_slice(&text).unwrap();
    listed["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|object| object["counter"]["packets"].as_u64())
        .unwrap()
}

#[test]
fn two_networks_are_routed_and_what_leaves_has_the_hosts_address() {
    isolated(
        "two_networks_are_routed_and_what_leaves_has_the_hosts_address",
        async |lab| {
            let (a, b, external) = (
                lab.network(1).await,
                lab.network(2).await,
                lab.network(9).await,
            );
            lab.guest("guest-a", a, 10);
            lab.guest("guest-b", b, 10);
            lab.outside("world", external, 1);
            let id = lab.new_router();
            let mut spec = spec(&[a, b], Some((external, 20)));
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);

            assert!(ping("guest-a", "10.0.2.10"), "from network to network");
            assert!(ping("guest-a", "10.0.1.1"), "the router itself");
            let servers = [serve("guest-b", 80), serve("world", 80)];
            assert_eq!(
                seen_as("guest-a", "10.0.2.10", 80).as_deref(),
                Some("10.0.1.10"),
                "inside, nothing is translated"
            );
            for server in ["198.51.100.1", "203.0.113.1"] {
                assert_eq!(
                    seen_as("guest-a", server, 80).as_deref(),
                    Some("198.51.100.20")
                );
            }
            assert!(counted(id, "translated_out") >= 2);
            // From outside nothing new comes in, though the way is known.
            ip("-n world route add 10.0.0.0/16 via 198.51.100.20");
            assert!(cannot_ping("world", "10.0.1.10"));
            assert!(is_not_seen("world", "10.0.2.10", 80));
            assert!(counted(id, "denied_forward") >= 2);
            assert!(ping("world", "198.51.100.20"), "the router answers ping");

            // Without an address of its own nobody gets out, and inside everything goes on.
            spec.external_gateway.as_mut().unwrap().addresses[0].ip_address = None;
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            assert!(is_not_seen("guest-a", "198.51.100.1", 80));
            assert!(ping("guest-a", "10.0.2.10"));
            // Without translation the inside is seen as it is.
            let gateway = spec.external_gateway.as_mut().unwrap();
            gateway.addresses[0].ip_address = Some(IpAddr::from([198, 51, 100, 20]));
            gateway.enable_snat = false;
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            assert_eq!(
                seen_as("guest-a", "198.51.100.1", 80).as_deref(),
                Some("10.0.1.10")
            );
            drop(servers);
        },
    );
}

#[test]
fn a_floating_ip_works_in_both_directions_and_from_inside() {
    isolated(
        "a_floating_ip_works_in_both_directions_and_from_inside",
        async |lab| {
            let (a, b, external) = (
                lab.network(1).await,
                lab.network(2).await,
                lab.network(9).await,
            );
            lab.guest("guest-a", a, 10);
            lab.guest("peer-a", a, 11);
            lab.guest("guest-b", b, 10);
            lab.outside("world", external, 1);
            let id = lab.new_router();
            let mut spec = spec(&[a, b], Some((external, 20)));
            spec.floating_ips = vec![floating(50, [10, 0, 1, 10]), floating(51, [10, 0, 2, 10])];
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            let servers = [serve("guest-a", 80), serve("world", 80)];
            assert_eq!(
                seen_as("world", "198.51.100.50", 80).as_deref(),
                Some("198.51.100.1"),
                "the guest sees who it is"
            );
            assert_eq!(
                seen_as("guest-a", "198.51.100.1", 80).as_deref(),
                Some("198.51.100.50")
            );
            assert_eq!(
                seen_as("peer-a", "198.51.100.1", 80).as_deref(),
                Some("198.51.100.20"),
                "who has none shares the host's"
            );
            // From inside: another network, with and without a floating IP, the same network, the guest itself.
            for (from, seen) in [
                ("guest-b", "198.51.100.51"),
                ("peer-a", "198.51.100.20"),
                ("guest-a", "198.51.100.50"),
            ] {
                assert_eq!(
                    seen_as(from, "198.51.100.50", 80).as_deref(),
                    Some(seen),
                    "{from}"
                );
            }
            assert!(counted(id, "floating_in") >= 4);
            assert!(counted(id, "floating_out") >= 1);

            // One goes: its flows end, those of the other do not, and nothing else is touched.
            let mut stream = Command::new("ip")
                .args(["netns", "exec", "world"])
                .args(["ping", "-i", "0.2", "-W", "1", "198.51.100.50"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let before = lab.observe(&desired(id, Some(&spec))).await;
            assert!(!before.content().unwrap().flows.is_empty(), "{before:?}");
            let gone = spec.floating_ips.remove(0);
            let steps = lab.plan(&desired(id, Some(&spec))).await.steps;
            assert!(
                steps.iter().any(|step| step.name() == "forget_flows"),
                "{steps:?}"
            );
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            let after = lab.observe(&desired(id, Some(&spec))).await;
            let outside =
                |it: &&router::Translation| IpAddr::V4(it.outside) == gone.floating_ip_address;
            assert_eq!(
                after
                    .content()
                    .unwrap()
                    .flows
                    .iter()
                    .filter(outside)
                    .collect::<Vec<_>>(),
                Vec::<&router::Translation>::new()
            );
            assert!(is_not_seen("world", "198.51.100.50", 80));
            assert!(ping("world", "198.51.100.51"));
            stream.kill().unwrap();
            stream.wait().unwrap();
            drop(servers);
        },
    );
}

#[test]
fn routers_with_the_same_addresses_inside_are_kept_apart() {
    isolated(
        "routers_with_the_same_addresses_inside_are_kept_apart",
        async |lab| {
            let external = lab.network(9).await;
            lab.outside("world", external, 1);
            let server = serve("world", 80);
            for (n, own) in [(1_u8, 20_u8), (2, 21)] {
                let mut network = lab.network(1).await;
                network.n = 1;
                lab.guest(&format!("guest{n}"), network, 10);
                let id = lab.new_router();
                let mut spec = spec(&[network], Some((external, own)));
                spec.floating_ips = vec![floating(50 + n, [10, 0, 1, 10])];
                assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            }
            for n in [1, 2] {
                assert_eq!(
                    seen_as(&format!("guest{n}"), "198.51.100.1", 80),
                    Some(format!("198.51.100.5{n}"))
                );
                let server = serve(&format!("guest{n}"), 80);
                assert_eq!(
                    seen_as("world", &format!("198.51.100.5{n}"), 80).as_deref(),
                    Some("198.51.100.1")
                );
                drop(server);
            }
            // The host itself knows nothing of it.
            let routes = ip("route show");
            assert_eq!(routes, "");
            drop(server);
        },
    );
}

#[test]
fn a_route_leads_beyond_a_machine_inside() {
    isolated("a_route_leads_beyond_a_machine_inside", async |lab| {
        let (a, b) = (lab.network(1).await, lab.network(2).await);
        lab.guest("guest-a", a, 10);
        lab.guest("gate", b, 77);
        ip("-n gate address add 192.0.2.5/24 dev lo");
        let id = lab.new_router();
        let mut spec = spec(&[a, b], None);
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        assert!(cannot_ping("guest-a", "192.0.2.5"));
        spec.routes = vec![Route {
            destination: "192.0.2.0/24".parse().unwrap(),
            nexthop: IpAddr::from([10, 0, 2, 77]),
        }];
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        assert!(ping("guest-a", "192.0.2.5"));
        // What somebody adds or takes by hand is put right.
        let namespace = names::router_namespace(id);
        ip(&format!("-n {namespace} route del 192.0.2.0/24"));
        ip(&format!(
            "-n {namespace} route add 192.0.2.128/25 via 10.0.1.10"
        ));
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        assert!(ping("guest-a", "192.0.2.5"));
        let routes: Value =
            serde_json::from_str(&ip(&format!("-n {namespace} -j route show proto static")))
                .unwrap();
        assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
        spec.routes.clear();
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        assert!(cannot_ping("guest-a", "192.0.2.5"));
    });
}

#[test]
fn a_restart_and_changes_lose_no_packet() {
    isolated("a_restart_and_changes_lose_no_packet", async |lab| {
        let (a, b, external) = (
            lab.network(1).await,
            lab.network(2).await,
            lab.network(9).await,
        );
        lab.guest("guest-a", a, 10);
        lab.guest("guest-b", b, 10);
        lab.outside("world", external, 1);
        let id = lab.new_router();
        let mut spec = spec(&[a, b], Some((external, 20)));
        spec.floating_ips = vec![floating(50, [10, 0, 1, 10])];
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        let flood = |from: &str, to: &str| {
            Command::new("ip")
                .args(["netns", "exec", from])
                .args(["ping", "-q", "-c", "100", "-i", "0.02", to])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let runs = [
            flood("guest-a", "10.0.2.10"),
            flood("guest-b", "198.51.100.1"),
            flood("world", "198.51.100.50"),
        ];
        // Meanwhile the agent starts again, finds all as it shall be, and gets other documents.
        lab.restart_agent();
        let plan = lab.plan(&desired(id, Some(&spec))).await;
        assert_eq!((plan.steps, plan.then), (vec![], RouterThen::Converged));
        for n in 60..65 {
            spec.floating_ips.push(floating(n, [10, 0, 2, n]));
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        }
        spec.floating_ips.push(floating(51, [10, 0, 2, 10]));
        spec.routes = vec![Route {
            destination: "192.0.2.0/24".parse().unwrap(),
            nexthop: IpAddr::from([10, 0, 2, 77]),
        }];
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        spec.floating_ips
            .retain(|it| it.fixed_ip_address == IpAddr::from([10, 0, 1, 10]));
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        for run in runs {
            let output = run.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(
                text.contains("100 packets transmitted, 100 received"),
                "{text}"
            );
        }
    });
}

#[test]
fn an_agent_killed_after_any_step_gets_there_afterwards() {
    isolated(
        "an_agent_killed_after_any_step_gets_there_afterwards",
        async |lab| {
            let (a, b, external) = (
                lab.network(1).await,
                lab.network(2).await,
                lab.network(9).await,
            );
            let id = lab.new_router();
            let mut spec = spec(&[a, b], Some((external, 20)));
            spec.floating_ips = vec![floating(50, [10, 0, 1, 10])];
            spec.routes = vec![Route {
                destination: "192.0.2.0/24".parse().unwrap(),
                nexthop: IpAddr::from([10, 0, 2, 77]),
            }];
            let mut shared = spec.interfaces[0].clone();
            shared.cidr = "fd00:1::/64".parse().unwrap();
            shared.ip_address = "fd00:1::1".parse().unwrap();
            spec.interfaces.push(shared);
            let build = desired(id, Some(&spec));
            let steps = lab.plan(&build).await.steps;
            assert!(steps.len() > 25, "{}", steps.len());
            for cut in 0..=steps.len() {
                for step in &steps[..cut] {
                    lab.net.apply_router(step).await.unwrap();
                    if cut == steps.len() {
                        // Repeating it is no error and changes nothing.
                        let once = lab.observe(&build).await;
                        lab.net.apply_router(step).await.unwrap();
                        assert_eq!(lab.observe(&build).await, once, "{step}");
                    }
                }
                lab.restart_agent();
                if cut % 2 == 0 {
                    assert_eq!(
                        lab.converge(id, Some(&spec)).await,
                        RouterThen::Converged,
                        "after {cut} steps of building"
                    );
                    let down = lab.plan(&desired(id, None)).await.steps;
                    for step in &down[..(cut / 2).min(down.len())] {
                        lab.net.apply_router(step).await.unwrap();
                    }
                    lab.restart_agent();
                }
                assert_eq!(
                    lab.converge(id, None).await,
                    RouterThen::Gone,
                    "after {cut} steps"
                );
                assert_eq!(
                    lab.observe(&desired(id, None)).await,
                    RouterObserved::default()
                );
                assert_eq!(lab.net.routers_present().await.unwrap(), []);
                // The networks need not wait for anything of it.
                for network in [a, b, external] {
                    assert_eq!(
                        lab.net.observe(network.id).await.unwrap().members,
                        std::collections::BTreeSet::new()
                    );
                }
            }
        },
    );
}

#[test]
fn a_network_waits_for_the_legs_and_a_leg_for_its_network() {
    isolated(
        "a_network_waits_for_the_legs_and_a_leg_for_its_network",
        async |lab| {
            let (a, b) = (lab.network(1).await, lab.network(2).await);
            lab.guest("guest-a", a, 10);
            let id = lab.new_router();
            let both = spec(&[a, b], None);
            assert_eq!(lab.converge(id, Some(&both)).await, RouterThen::Converged);
            let leg = Leg::inside(id, b.id).host_end().name();
            let members = network::NetWait::Members([leg].into());
            assert_eq!(
                lab.converge_network(b.id, false).await,
                network::NetThen::Wait(members)
            );
            let mut one = both.clone();
            one.interfaces.pop();
            assert_eq!(lab.converge(id, Some(&one)).await, RouterThen::Converged);
            assert_eq!(
                lab.converge_network(b.id, false).await,
                network::NetThen::Gone
            );
            // The document comes before the network does.
            assert_eq!(lab.converge(id, Some(&both)).await, RouterThen::Wait(b.id));
            assert!(ping("guest-a", "10.0.1.1"), "the other leg works");
            lab.converge_network(b.id, true).await;
            assert_eq!(lab.converge(id, Some(&both)).await, RouterThen::Converged);
        },
    );
}

#[test]
fn guests_find_the_router_in_ipv6_by_its_advertisements() {
    isolated(
        "guests_find_the_router_in_ipv6_by_its_advertisements",
        async |lab| {
            let (a, b) = (lab.network(1).await, lab.network(2).await);
            let id = lab.new_router();
            let mut spec = spec(&[a, b], None);
            for interface in &mut spec.interfaces {
                let n = interface.mac_address.octets()[5];
                interface.cidr = format!("fd00:{n}::/64").parse().unwrap();
                interface.ip_address = format!("fd00:{n}::1").parse().unwrap();
                interface.ipv6_address_mode = Some(if n == 1 {
                    Ipv6AddressMode::Slaac
                } else {
                    Ipv6AddressMode::Dhcpv6Stateful
                });
            }
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            for (name, network) in [("guest-a", a), ("guest-b", b)] {
                lab.machine(name, network.id);
                let n = network.n;
                ip(&format!(
                    "-n {name} address add fd00:{n}::10/64 dev eth0 nodad"
                ));
            }
            for name in ["guest-a", "guest-b"] {
                wait_for("a default route", limit(20), || {
                    let routes = ip(&format!("-n {name} -6 route show default"));
                    (routes.contains("proto ra"), routes)
                });
            }
            assert!(ping("guest-a", "fd00:2::10"));
            // Only where they shall guests make themselves addresses of what it advertises.
            let made = |name: &str| ip(&format!("-n {name} -6 address show dev eth0 dynamic"));
            wait_for("an address", limit(20), || {
                let made = made("guest-a");
                (made.contains(" fd00:1:"), made)
            });
            assert_eq!(made("guest-b"), "");
            // Without IPv6 nothing advertises it.
            for interface in &mut spec.interfaces {
                let n = interface.mac_address.octets()[5];
                interface.cidr = format!("10.0.{n}.0/24").parse().unwrap();
                interface.ip_address = IpAddr::from([10, 0, n, 1]);
                interface.ipv6_address_mode = None;
            }
            assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
            let observed = lab.observe(&desired(id, Some(&spec))).await;
            assert_eq!(observed.advertiser, Default::default());
        },
    );
}

#[test]
fn a_link_of_somebody_else_is_refused_and_left_alone() {
    isolated(
        "a_link_of_somebody_else_is_refused_and_left_alone",
        async |lab| {
            let a = lab.network(1).await;
            let id = lab.new_router();
            let spec = spec(&[a], None);
            let name = Leg::inside(id, a.id).host_end().name();
            ip(&format!("link add {name} type veth peer name theirs"));
            match lab.converge(id, Some(&spec)).await {
                RouterThen::Refused(fault) => {
                    assert_eq!(fault.code, FaultCode::ForeignObject);
                    assert!(fault.message.contains(&name), "{}", fault.message);
                }
                then => panic!("{then:?}"),
            }
            assert_eq!(lab.converge(id, None).await, RouterThen::Gone);
            ip(&format!("link del {name}"));
        },
    );
}

/// Runs a test of two hosts in namespaces of its own.
fn on_two_hosts(test: &str, body: fn()) {
    isolation::isolated(test, 2 * TEST_LIMIT, async || body());
}

#[test]
fn ports_on_different_hosts_reach_each_other_over_vxlan() {
    on_two_hosts(
        "ports_on_different_hosts_reach_each_other_over_vxlan",
        || routed::ports_on_different_hosts_reach_each_other(routed::Kind::Vxlan),
    );
}

#[test]
fn ports_on_different_hosts_reach_each_other_over_flat_networks() {
    on_two_hosts(
        "ports_on_different_hosts_reach_each_other_over_flat_networks",
        || routed::ports_on_different_hosts_reach_each_other(routed::Kind::Flat),
    );
}

#[test]
fn nothing_is_translated_between_hosts() {
    on_two_hosts(
        "nothing_is_translated_between_hosts",
        routed::nothing_is_translated_between_hosts,
    );
}

#[test]
fn projects_with_the_same_addresses_stay_apart_on_all_hosts() {
    on_two_hosts(
        "projects_with_the_same_addresses_stay_apart_on_all_hosts",
        routed::projects_with_the_same_addresses_stay_apart,
    );
}

#[test]
fn what_breaks_off_between_hosts_is_finished() {
    on_two_hosts(
        "what_breaks_off_between_hosts_is_finished",
        routed::what_breaks_off_is_finished,
    );
}

/// The copy of this program that is another host: carries out the documents in a file.
#[test]
#[ignore = "the victim of another test, which runs it with its environment"]
fn other_host() {
    let Ok(file) = std::env::var(OTHER_HOST) else {
        return;
    };
    private_run();
    block_on(async {
        let mut lab = Lab::new();
        let text = fs::read_to_string(&file).unwrap();
        let (id, spec, uplink): (RouterId, RouterSpec, String) =
            serde_json::from_str(&text).unwrap();
        for interface in &spec.interfaces {
            lab.converge_network(interface.network_id, true).await;
            let name = "guest-moved";
            lab.machine(name, interface.network_id);
            ip(&format!("-n {name} address add 10.0.1.10/24 dev eth0"));
            ip(&format!("-n {name} route add default via 10.0.1.1"));
        }
        let external = spec.external_gateway.as_ref().unwrap().network_id;
        lab.converge_network(external, true).await;
        ip(&format!(
            "link set {uplink} master {} up",
            names::bridge(external)
        ));
        wait_forwards(&uplink);
        assert_eq!(lab.converge(id, Some(&spec)).await, RouterThen::Converged);
        let server = serve("guest-moved", 80);
        fs::write(format!("{file}.ready"), "").unwrap();
        wait_for("the end", limit(60), || (!Path::new(&file).exists(), ()));
        drop(server);
    });
}

#[test]
fn a_floating_ip_that_moves_to_another_host_is_found_there_at_once() {
    isolated(
        "a_floating_ip_that_moves_to_another_host_is_found_there_at_once",
        async |lab| {
            let (a, external) = (lab.network(1).await, lab.network(9).await);
            lab.guest("guest-a", a, 10);
            lab.outside("world", external, 1);
            let id = lab.new_router();
            let mut here = spec(&[a], Some((external, 20)));
            here.floating_ips = vec![floating(50, [10, 0, 1, 10])];
            assert_eq!(lab.converge(id, Some(&here)).await, RouterThen::Converged);
            let neighbour = || {
                let text = ip("-n world -j neigh show 198.51.100.50");
                let all: Value = serde_json::from_str(&text).unwrap_or_default();
                all[0]["lladdr"].as_str().map(str::to_owned)
            };
            let server = serve("guest-a", 80);
            assert_eq!(
                seen_as("world", "198.51.100.50", 80).as_deref(),
                Some("198.51.100.1")
            );
            assert_eq!(neighbour().as_deref(), Some("52:54:00:00:02:14"));

            // The port is on another host from now on; this one is told first.
            let mut there = spec(&[a], Some((external, 21)));
            there.floating_ips = std::mem::take(&mut here.floating_ips);
            assert_eq!(lab.converge(id, Some(&here)).await, RouterThen::Converged);
            // The cable between the two hosts' external networks.
            ip("netns add host2");
            lab.namespaces.push("host2".to_owned());
            ip("link add cable type veth peer name uplink netns host2");
            lab.taps.push("cable".to_owned());
            ip(&format!(
                "link set cable master {} up",
                names::bridge(external.id)
            ));
            ip("-n host2 link set uplink up");
            wait_passes("cable", "host2", "uplink");
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("documents");
            let documents = serde_json::to_string(&(id, &there, "uplink")).unwrap();
            fs::write(&file, documents).unwrap();
            let mut other = Command::new("ip")
                .args(["netns", "exec", "host2"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "other_host", "--ignored", "--nocapture"])
                .env(OTHER_HOST, &file)
                .env_remove(INSIDE)
                .spawn()
                .unwrap();
            let ready = directory.path().join("documents.ready");
            wait_for("the other host", limit(30), || {
                let ended = other.try_wait().unwrap();
                (ready.exists() || ended.is_some(), ended)
            });
            // Nobody asked, and everybody knows.
            wait_for("the announcement", limit(3), || {
                let found = neighbour();
                (found.as_deref() == Some("52:54:00:00:02:15"), found)
            });
            assert_eq!(
                seen_as("world", "198.51.100.50", 80).as_deref(),
                Some("198.51.100.1")
            );
            drop(server);
            fs::remove_file(&file).unwrap();
            assert!(other.wait().unwrap().success());
        },
    );
}
