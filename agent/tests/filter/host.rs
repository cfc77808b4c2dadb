//! A hypervisor with one network, and its guests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use berth_agent::{
    act::{Net as _, net::KernelNet},
    decide::{
        filter::{Reason, Rendered, towards},
        names,
        network::{Link, NetPlan, NetStep, NetThen, NetWait, NetworkObserved, plan},
    },
};
use berth_common::{
    document::{
        Desired, EtherType, FixedIp, NetworkPort, NetworkSpec, NetworkType, PortQos, PortSecurity,
        RuleDirection, RuleProtocol, RuleRemote, SecurityGroupRule, SecurityGroupSpec, SubnetSpec,
    },
    ids::{HostId, InstanceId, NetworkId, PortId, SecurityGroupId, SecurityGroupRuleId, SubnetId},
    units::Generation,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6,
            SockaddrLike as _, bind, connect, recv, sendto, setsockopt, socket,
            sockopt::{ReceiveTimeout, SendTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use serde_json::Value;

use super::{
    frames,
    isolation::{self, STATE_DIR, client_script, in_tries, ip, limit, run, try_run, wait_passes},
};

/// How long one test may take, in seconds: a machine runs several at once.
const TEST_LIMIT: u32 = 300;
/// The way to track connections that the tests shall show, by its name: another one is a failure.
const STATEFUL: &str = "BERTH_TEST_STATEFUL";

/// The link in the bridge by which a network reaches beyond the host.
const UPLINK: &str = "uplink0";

/// What the DHCP client runs.
const CLIENT_SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] && echo \"lease $ip\"\nexit 0\n";

/// Runs a test on a hypervisor in namespaces of its own.
pub(crate) fn isolated<F: AsyncFnOnce(&mut Host)>(test: &str, body: F) {
    isolation::isolated(test, TEST_LIMIT, async || {
        client_script(CLIENT_SCRIPT);
        let mut host = Host::new();
        if let Ok(way) = std::env::var(STATEFUL) {
            assert_eq!(format!("{:?}", host.observe().await.filter.stateful), way);
        }
        body(&mut host).await;
        host.end().await;
        // The last network takes with it what there is once for the host.
        let tables = run("nft", &["list", "tables"]);
        assert!(!tables.contains(" berth"), "{tables}");
    });
}

/// Several commands of `ip` in one go: each start of it takes as long as what it does.
fn ip_batch(options: &[&str], commands: &[String]) {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(commands.join("\n").as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "{commands:?}");
}

pub(crate) fn nft(command: &str) {
    run("nft", &[command]);
}

/// Does something in a network namespace, on a thread that ends with it.
pub(crate) fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = namespace.to_owned();
    let thread = std::thread::spawn(move || {
        enter(&namespace);
        work()
    });
    thread.join().unwrap()
}

fn enter(namespace: &str) {
    let file = fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

/// A group by its number.
pub(crate) fn group(n: u8) -> SecurityGroupId {
    format!("0191e7a0-7c1f-7b5e-9d2a-3f6f000010{n:02x}")
        .parse()
        .unwrap()
}

/// A rule for IPv4.
pub(crate) fn rule(
    direction: RuleDirection,
    protocol: Option<RuleProtocol>,
    remote: Option<RuleRemote>,
) -> SecurityGroupRule {
    SecurityGroupRule {
        id: SecurityGroupRuleId::new(),
        direction,
        ethertype: EtherType::IPv4,
        protocol,
        remote,
    }
}

/// A machine with one NIC in the network's bridge.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) namespace: String,
    link: String,
}

/// What a guest sees from now on.
pub(crate) struct Sight {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Sight {
    /// Whether frames with such bytes came, within the time that a frame takes.
    pub(crate) fn saw(self, bytes: &[u8], at_least: usize) -> bool {
        self.with(bytes).len() >= at_least
    }

    /// The frames with such bytes that came, within the time that a frame takes.
    pub(crate) fn with(self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.stop.send(()).unwrap();
        let mut frames = self.thread.join().unwrap();
        frames.retain(|frame| frame.windows(bytes.len()).any(|window| window == bytes));
        frames
    }
}

impl Guest {
    /// Whether somebody answers at last.
    pub(crate) fn ping(&self, address: &str) -> bool {
        in_tries(|| !self.cannot_ping(address))
    }

    /// Whether nobody answers. It waits for as long as answers take when there are any.
    pub(crate) fn cannot_ping(&self, address: &str) -> bool {
        let args = ["netns", "exec", &self.namespace, "busybox", "ping"];
        let output = try_run(
            "ip",
            &[&args[..], &["-c", "2", "-w", "2", "-W", "1", address]].concat(),
        );
        !output.status.success()
    }

    /// What the metadata service answers it, as a status of HTTP; 000: nothing.
    pub(crate) fn asks_metadata(&self) -> String {
        self.asks_metadata_with(&[])
    }

    /// The same from one of its addresses.
    pub(crate) fn asks_metadata_from(&self, address: &str) -> String {
        self.asks_metadata_with(&["--interface", address])
    }

    fn asks_metadata_with(&self, more: &[&str]) -> String {
        let url = "http://169.254.169.254/latest/meta-data/instance-id";
        let format = [
            "-s",
            "-m",
            "5",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            url,
        ];
        let format = [&format[..], more].concat();
        let args = ["netns", "exec", &self.namespace, "curl"];
        let output = try_run("ip", &[&args[..], &format].concat());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The address it gets by DHCP.
    pub(crate) fn dhcp(&self) -> Option<String> {
        let args = ["netns", "exec", &self.namespace, "busybox", "udhcpc"];
        let more = [
            "-i",
            "eth0",
            "-n",
            "-q",
            "-f",
            "-t",
            "8",
            "-T",
            "1",
            "-s",
            "/run/script",
        ];
        let output = try_run("ip", &[&args[..], &more].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let lease = text.lines().find_map(|line| line.strip_prefix("lease "));
        lease.map(str::to_owned)
    }

    /// Tells it the way to the metadata service, as DHCP does.
    pub(crate) fn knows_metadata(&self) {
        let inside = &self.namespace;
        ip(&format!(
            "-n {inside} route replace 169.254.169.254 via 10.0.0.2"
        ));
    }

    /// Whether the metadata service hears it out in IPv6, from this address of its.
    pub(crate) fn connects_to_metadata(&self, from: &str) -> bool {
        let from: Ipv6Addr = from.parse().unwrap();
        inside(&self.namespace, move || {
            let link = nix::net::if_::if_nametoindex("eth0").unwrap();
            let at = |address, port| SockaddrIn6::from(SocketAddrV6::new(address, port, 0, link));
            let client = socket(
                AddressFamily::Inet6,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            setsockopt(&client, SendTimeout, &TimeVal::seconds(3)).unwrap();
            let service = at(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe), 80);
            // An address that it has not for sure yet cannot be used.
            bind(client.as_raw_fd(), &at(from, 0)).is_ok()
                && connect(client.as_raw_fd(), &service).is_ok()
        })
    }

    /// Whether the DHCP server lets it keep its address when it is asked alone, as a guest does that has one.
    pub(crate) fn renews(&self, address: [u8; 4], mac: [u8; 6], server: [u8; 4]) -> bool {
        inside(&self.namespace, move || {
            // RFC 2131: a request of the client's own address, with the type of message 3 (request).
            let mut request = vec![1, 1, 6, 0, 0xbe, 0x27, 0, 1, 0, 0, 0, 0];
            request.extend(address);
            request.resize(28, 0);
            request.extend(mac);
            request.resize(236, 0);
            request.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 3, 255]);
            let client = UdpSocket::bind(SocketAddr::from((address, 68))).unwrap();
            client.set_read_timeout(Some(limit(5))).unwrap();
            client
                .send_to(&request, SocketAddr::from((server, 67)))
                .unwrap();
            let mut answer = [0; 1500];
            let acknowledges = [53, 1, 5];
            client.recv(&mut answer).is_ok_and(|length| {
                let mut options = answer[236..length].windows(acknowledges.len());
                options.any(|window| window == acknowledges)
            })
        })
    }

    /// Whether a TCP connection to another guest comes about.
    pub(crate) fn connects(&self, to: &Self, port: u16) -> bool {
        self.connects_within(limit(10), to, port)
    }

    /// Whether none does. It waits for as long as one takes.
    pub(crate) fn cannot_connect(&self, to: &Self, port: u16) -> bool {
        !self.connects_within(Duration::from_secs(2), to, port)
    }

    fn connects_within(&self, limit: Duration, to: &Self, port: u16) -> bool {
        let address = SocketAddr::from((to.address(), port));
        let listener = inside(&to.namespace, move || TcpListener::bind(address).unwrap());
        let connected = inside(&self.namespace, move || {
            TcpStream::connect_timeout(&address, limit).is_ok()
        });
        drop(listener);
        connected
    }

    fn address(&self) -> IpAddr {
        let list = ip(&format!(
            "-n {} -j -4 address show dev eth0",
            self.namespace
        ));
        let list: Value = serde_json::from_str(&list).unwrap();
        let address = list[0]["addr_info"][0]["local"].as_str().unwrap();
        address.parse().unwrap()
    }

    /// From now on it says nothing by itself in IPv6, which would be counted too where nobody may receive it.
    pub(crate) fn is_quiet(&self) {
        inside(&self.namespace, || {
            fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
        });
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) {
        let frame = frame.to_vec();
        inside(&self.namespace, move || {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            let address = nix::ifaddrs::getifaddrs()
                .unwrap()
                .filter(|interface| interface.interface_name == "eth0")
                .find_map(|interface| interface.address.filter(|it| it.as_link_addr().is_some()))
                .unwrap();
            let link = *address.as_link_addr().unwrap();
            assert!(link.family().is_some());
            let sent = sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty()).unwrap();
            assert_eq!(sent, frame.len());
        });
    }

    /// Sees every frame that comes from now on.
    pub(crate) fn watch(&self) -> Sight {
        /// What is still under way comes within this, in milliseconds.
        const TAIL: i64 = 300;
        let (stop, stopped) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let namespace = self.namespace.clone();
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .unwrap();
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TAIL)).unwrap();
            ready.send(()).unwrap();
            let mut frames = Vec::new();
            let mut buffer = vec![0; 65536];
            let mut last_look = None;
            loop {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(len) => frames.push(buffer[..len].to_vec()),
                    Err(nix::errno::Errno::EAGAIN) if last_look.is_some() => return frames,
                    Err(nix::errno::Errno::EAGAIN) => {}
                    Err(errno) => panic!("{errno}"),
                }
                if last_look.is_none() && stopped.try_recv().is_ok() {
                    last_look = Some(Instant::now());
                }
                if last_look.is_some_and(|since| since.elapsed() > Duration::from_secs(2)) {
                    return frames;
                }
            }
        });
        is_ready.recv().unwrap();
        Sight { stop, thread }
    }
}

/// A hypervisor with one network.
pub(crate) struct Host {
    net: KernelNet,
    pub(crate) id: NetworkId,
    pub(crate) host: HostId,
    subnet: SubnetId,
    guests: Vec<Guest>,
    /// Of several on one machine.
    number: u8,
}

impl Host {
    fn new() -> Self {
        Self {
            net: KernelNet::new(Path::new(STATE_DIR)),
            id: NetworkId::new(),
            host: HostId::new(),
            subnet: SubnetId::new(),
            guests: Vec::new(),
            number: 0,
        }
    }

    /// Another network on the same hypervisor.
    pub(crate) fn another(&self) -> Self {
        Self {
            net: self.net.clone(),
            number: self.number + 1,
            ..Self::new()
        }
    }

    pub(crate) fn port(&self, n: u8) -> NetworkPort {
        let octets = frames::mac(n).map(|octet| format!("{octet:02x}"));
        NetworkPort {
            id: PortId::new(),
            instance_id: InstanceId::new(),
            mac_address: octets.join(":").parse().unwrap(),
            hostname: format!("vm{n}").parse().unwrap(),
            fixed_ips: vec![FixedIp {
                subnet_id: self.subnet,
                ip_address: IpAddr::from([10, 0, 0, n]),
            }],
            security: Some(PortSecurity {
                allowed_address_pairs: Vec::new(),
                security_groups: vec![group(1)],
            }),
            qos: PortQos::default(),
            mirrors: Vec::new(),
        }
    }

    /// A network whose guests may send everything, and receive nothing that they did not ask for.
    pub(crate) fn spec(&self, ports: &[u8]) -> NetworkSpec {
        NetworkSpec {
            name: "net".parse().unwrap(),
            project: "default".parse().unwrap(),
            network_type: NetworkType::Local,
            physical_network: None,
            segmentation_id: None,
            mtu: 1450,
            subnets: vec![SubnetSpec {
                id: self.subnet,
                cidr: "10.0.0.0/24".parse().unwrap(),
                gateway_ip: None,
                dhcp_ip: Some(IpAddr::from([10, 0, 0, 2])),
                dns_nameservers: Vec::new(),
                host_routes: Vec::new(),
                ipv6_address_mode: None,
            }],
            ports: ports.iter().map(|n| self.port(*n)).collect(),
            remote_ports: Vec::new(),
            security_groups: vec![SecurityGroupSpec {
                id: group(1),
                rules: vec![
                    rule(RuleDirection::Egress, None, None),
                    SecurityGroupRule {
                        ethertype: EtherType::IPv6,
                        ..rule(RuleDirection::Egress, None, None)
                    },
                ],
            }],
            group_members: BTreeMap::new(),
        }
    }

    fn plan(&self, spec: Option<&NetworkSpec>, observed: &NetworkObserved) -> NetPlan {
        let desired = Desired {
            id: self.id,
            generation: Generation(1),
            host_id: self.host,
            spec: spec.cloned(),
        };
        plan(&desired, observed)
    }

    pub(crate) async fn observe(&self) -> NetworkObserved {
        self.net.observe(self.id).await.unwrap()
    }

    pub(crate) async fn apply(&self, step: &NetStep) {
        self.net.apply(step).await.unwrap();
    }

    /// Plans and applies until nothing is left to do.
    pub(crate) async fn converge(&self, spec: Option<&NetworkSpec>) -> NetThen {
        for _ in 0..4 {
            let plan = self.plan(spec, &self.observe().await);
            if plan.steps.is_empty() {
                assert!(
                    matches!(
                        plan.then,
                        // All is built; the port that left has its tap still.
                        NetThen::Converged | NetThen::Gone | NetThen::Wait(NetWait::Members(_))
                    ),
                    "{plan:?}"
                );
                return plan.then;
            }
            for step in &plan.steps {
                self.apply(step).await;
            }
        }
        panic!(
            "not converged: {:#?}",
            self.plan(spec, &self.observe().await)
        );
    }

    /// Whether there is nothing to do.
    pub(crate) async fn is_as(&self, spec: &NetworkSpec) -> bool {
        let plan = self.plan(Some(spec), &self.observe().await);
        plan.steps.is_empty() && plan.then == NetThen::Converged
    }

    /// Starts the guest of a port, with the port's address.
    pub(crate) fn plug(&mut self, spec: &NetworkSpec, port: usize) -> Guest {
        let port = &spec.ports[port];
        let address = port.fixed_ips[0].ip_address;
        let guest = Guest {
            namespace: format!("guest-{}-{address}", self.number),
            link: names::tap(port.id),
        };
        self.wire(guest, &port.mac_address.to_string(), address)
    }

    /// Has the network reach beyond the host by a link in its bridge, as one of type `flat` does by its NIC; the machine there.
    pub(crate) async fn span(&mut self, spec: &NetworkSpec) -> Guest {
        let outside = Guest {
            namespace: "outside".to_owned(),
            link: UPLINK.to_owned(),
        };
        let outside = self.wire(outside, "52:54:00:00:00:c8", IpAddr::from([10, 0, 0, 200]));
        let spanning = NetworkSpec {
            network_type: NetworkType::Flat,
            ..spec.clone()
        };
        let uplinks = BTreeSet::from([UPLINK.to_owned()]).into();
        let observed = self.observe().await.filter;
        let rendered = &mut Rendered::default();
        let step = towards(self.id, &spanning, &uplinks, self.host, &observed, rendered);
        self.apply(&NetStep::Filter(step.unwrap())).await;
        outside
    }

    /// Whether the host itself hears a guest out over TCP, while the bridge has an address of the host and the Ethernet address of the
    /// link beyond the host: as if they had been that link's and moved.
    pub(crate) fn hears(&self, guest: &Guest, port: u16) -> bool {
        let bridge = names::bridge(self.id);
        let list: Value = serde_json::from_str(&ip(&format!("-j link show dev {UPLINK}"))).unwrap();
        let mac = list[0]["address"].as_str().unwrap();
        ip(&format!("link set dev {bridge} address {mac}"));
        let own = format!("10.0.0.1/24 dev {bridge}");
        ip(&format!("address add {own}"));
        let address = SocketAddr::from((guest.address(), port));
        let listener = inside(&guest.namespace, move || {
            TcpListener::bind(address).unwrap()
        });
        let limit = limit(5);
        let heard = TcpStream::connect_timeout(&address, limit).and_then(|mut stream| {
            listener.accept()?.0.write_all(b"there")?;
            stream.set_read_timeout(Some(limit))?;
            stream.read_exact(&mut [0; 5])
        });
        ip(&format!("address del {own}"));
        heard.is_ok()
    }

    fn wire(&mut self, guest: Guest, mac: &str, address: IpAddr) -> Guest {
        let Guest { namespace, link } = &guest;
        ip(&format!("netns add {namespace}"));
        let bridge = names::bridge(self.id);
        let commands = [
            format!("link add {link} type veth peer name eth0 address {mac} netns {namespace}"),
            format!("link set {link} master {bridge} up"),
        ];
        ip_batch(&[], &commands);
        let commands = [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("address add {address}/24 dev eth0"),
        ];
        ip_batch(&["-n", namespace], &commands);
        wait_passes(link, namespace, "eth0");
        self.guests.push(guest.clone());
        guest
    }

    /// The Ethernet address of berth's own services.
    pub(crate) fn service_mac(&self) -> [u8; 6] {
        Link::veth_namespace(self.id).mac()
    }

    /// How many packets of a port were dropped for a reason, as the kernel counts.
    pub(crate) fn drops(&self, spec: &NetworkSpec, port: usize, reason: &str) -> u64 {
        let set = format!("dropped-{reason}");
        let list = run("nft", &["-j", "list", "set", "bridge", "berth", &set]);
        counted(&list, &names::tap(spec.ports[port].id))[reason]
    }

    /// What the kernel does with a frame that the first port's guest sends to the second one's: it comes, or one reason is counted.
    pub(crate) fn sends(
        &self,
        spec: &NetworkSpec,
        [from, to]: &[Guest; 2],
        frame: &[u8],
    ) -> Result<(), String> {
        let drops = || {
            let list = run("nft", &["-j", "list", "table", "bridge", "berth"]);
            let [sent, received] =
                [0, 1].map(|port| counted(&list, &names::tap(spec.ports[port].id)));
            Reason::ALL.map(|reason| {
                let of = if reason.is_of_receiver() {
                    &received
                } else {
                    &sent
                };
                of[reason.as_str()]
            })
        };
        let before = drops();
        let sight = to.watch();
        from.send(frame);
        let came = sight.saw(frame, 1);
        let counted = Reason::ALL.into_iter().zip(before.iter().zip(drops()));
        let counted: Vec<&str> = counted
            .filter(|(_, (before, after))| after > *before)
            .map(|(reason, _)| reason.as_str())
            .collect();
        match (came, &counted[..]) {
            (true, []) => Ok(()),
            (false, [reason]) => Err((*reason).to_owned()),
            other => panic!("it came, and is counted as: {other:?}"),
        }
    }

    /// The agent is gone and starts again.
    pub(crate) fn restart_agent(&mut self) {
        self.net = KernelNet::new(Path::new(STATE_DIR));
    }

    /// Takes everything down, and makes sure that nothing is left.
    pub(crate) async fn end(&mut self) {
        let guests = std::mem::take(&mut self.guests);
        let links = guests.iter();
        let links: Vec<_> = links
            .map(|guest| format!("link del {}", guest.link))
            .collect();
        ip_batch(&[], &links);
        for guest in guests {
            ip(&format!("netns del {}", guest.namespace));
        }
        assert_eq!(self.converge(None).await, NetThen::Gone);
        let observed = self.observe().await;
        assert!(observed.filter.part.is_empty(), "{observed:?}");
        let present = self.net.networks_present().await.unwrap();
        assert!(!present.contains(&self.id), "{present:?}");
        let ruleset = run("nft", &["-j", "list", "ruleset"]);
        assert!(!ruleset.contains(&self.id.to_string()), "{ruleset}");
    }
}

/// How many packets of a tap the listed sets count, by their reasons.
fn counted(list: &str, tap: &str) -> BTreeMap<String, u64> {
    let list: Value = serde_json::from_str(list).unwrap();
    let objects = list["nftables"].as_array().unwrap().iter();
    let sets = objects.filter_map(|object| object.get("set"));
    sets.filter_map(|set| {
        let reason = set["name"].as_str()?.strip_prefix("dropped-")?;
        let mut elements = set["elem"].as_array()?.iter();
        let element = elements.find(|element| element["elem"]["val"] == tap)?;
        let packets = element["elem"]["counter"]["packets"].as_u64()?;
        Some((reason.to_owned(), packets))
    })
    .collect()
}
