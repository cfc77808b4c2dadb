//! Several hosts on one wire: network namespaces whose NICs are joined by a bridge, each with an agent's hands of its own, and
//! guests behind their bridges.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    thread,
};

use berth_agent::{
    act::{
        ActError, Net,
        net::{KernelNet, UplinkOptions},
    },
    decide::{
        filter::{self, FilterObserved},
        names,
        network::{
            self, NetPlan, NetStep, NetThen, NetworkObserved, plan, uplink::FlatAddressPolicy,
        },
        router::{self, RouterObserved, RouterPlan, RouterStep, RouterThen},
    },
};
use berth_common::{
    document::{Desired, Document, DocumentKey, NetworkSpec, NetworkType, RemotePort, RouterSpec},
    ids::{HostId, NetworkId, RouterId},
    units::Generation,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{chroot, fchdir},
};
use serde_json::Value;

use super::isolation::{in_tries, ip, run, try_run, wait_passes};

/// The wire that the first NICs are on, in the namespace of the test.
pub(super) const WIRE: &str = "wire";
/// The one of the second NICs: physical network `physnet1`.
pub(super) const TRUNK: &str = "trunk";
/// The one of the third NICs: physical network `physnet2`.
pub(super) const SECOND_TRUNK: &str = "trunk-b";
/// All of them, with the NICs on them.
const WIRES: [(&str, &str); 3] = [(WIRE, "eth0"), (TRUNK, "eth1"), (SECOND_TRUNK, "eth2")];
/// What all hosts' files are below.
const FILES: &str = "/run/state/hosts";

/// A host on the wires: `eth0` on [`WIRE`] with the address `192.0.2.<n>`, `eth1` on [`TRUNK`] and `eth2` on [`SECOND_TRUNK`] without
/// any. It has a `/run` of its own.
pub(super) struct HostOnWire {
    pub(super) n: u8,
    pub(super) namespace: String,
    pub(super) id: HostId,
    options: UplinkOptions,
    net: KernelNet,
    /// Its root directory, and the mounts below.
    mounts: [fs::File; 2],
    documents: RefCell<BTreeMap<DocumentKey, Document>>,
}

/// A machine with one NIC in a network's bridge.
pub(super) struct GuestOnWire {
    host: String,
    tap: String,
    pub(super) namespace: String,
    pub(super) mac: String,
}

/// Makes the wires.
pub(super) fn wires() {
    for (wire, _) in WIRES {
        ip(&format!("link add {wire} type bridge"));
        ip(&format!("link set {wire} up"));
    }
}

pub(super) fn cut_wires() {
    for (wire, _) in WIRES {
        ip(&format!("link del {wire}"));
    }
}

/// Does something in a namespace, on a thread that ends with it.
pub(super) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let file = fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        entered.join().unwrap()
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

impl HostOnWire {
    pub(super) fn new(n: u8) -> Self {
        Self::with(n, FlatAddressPolicy::Refuse)
    }

    /// One whose VXLANs are over IPv6.
    pub(super) fn over_ipv6(n: u8) -> Self {
        let mut host = Self::new(n);
        ip(&format!(
            "-n {} address add {}/64 dev eth0 nodad",
            host.namespace,
            tunnel_ip6(n)
        ));
        host.options.tunnel_ip = Some(tunnel_ip6(n));
        host.restart_agent();
        host
    }

    pub(super) fn with(n: u8, flat_addresses: FlatAddressPolicy) -> Self {
        let namespace = format!("host{n}");
        ip(&format!("netns add {namespace}"));
        for (wire, nic) in WIRES {
            let end = format!("{wire}{n}");
            ip(&format!(
                "link add {end} type veth peer name {nic} netns {namespace}"
            ));
            ip(&format!("link set {end} master {wire} up"));
            ip(&format!("-n {namespace} link set {nic} up"));
        }
        for (wire, nic) in WIRES {
            wait_passes(&format!("{wire}{n}"), &namespace, nic);
        }
        ip(&format!("-n {namespace} link set lo up"));
        ip(&format!(
            "-n {namespace} address add 192.0.2.{n}/24 dev eth0"
        ));
        let options = UplinkOptions {
            nics: [("physnet1", "eth1"), ("physnet2", "eth2")]
                .map(|(physical, nic)| (physical.parse().unwrap(), nic.parse().unwrap()))
                .into(),
            tunnel_ip: Some(tunnel_ip(n)),
            flat_addresses,
            ..UplinkOptions::default()
        };
        Self {
            mounts: own_run(&namespace),
            net: KernelNet::with_uplinks(&files(&namespace), options.clone()),
            n,
            namespace,
            id: HostId::new(),
            options,
            documents: RefCell::default(),
        }
    }

    /// The agent is gone and starts again.
    pub(super) fn restart_agent(&mut self) {
        self.net = KernelNet::with_uplinks(&files(&self.namespace), self.options.clone());
    }

    /// Does something on this host.
    fn here<T: Send>(&self, work: impl AsyncFnOnce(KernelNet) -> T + Send) -> T {
        let (net, mounts) = (self.net.clone(), &self.mounts);
        inside(&self.namespace, || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            let [root, mounts] = mounts;
            setns(mounts, CloneFlags::CLONE_NEWNS).unwrap();
            // Where the test itself has another root than its mounts have.
            fchdir(root).unwrap();
            chroot(".").unwrap();
            block_on(work(net))
        })
    }

    pub(super) fn observe(&self, network: NetworkId) -> NetworkObserved {
        let mut observed = self.here(async |net| net.observe(network).await.unwrap());
        let documents = self.documents.borrow();
        observed.filter.legs = filter::legs(network, &observed.filter.legs, documents.values());
        observed.filter.senders = filter::senders(network, documents.values());
        observed
    }

    pub(super) fn apply(&self, step: &NetStep) -> Result<(), ActError> {
        self.here(async |net| net.apply(step).await)
    }

    fn desired<I, S: Clone>(&self, id: I, spec: Option<&S>) -> Desired<I, S> {
        Desired {
            id,
            generation: Generation(1),
            host_id: self.id,
            spec: spec.cloned(),
        }
    }

    pub(super) fn plan(&self, network: NetworkId, spec: Option<&NetworkSpec>) -> NetPlan {
        plan(&self.desired(network, spec), &self.observe(network))
    }

    /// Puts documents into what the host knows, in place of what it was told before.
    pub(super) fn told(
        &self,
        networks: &BTreeMap<NetworkId, NetworkSpec>,
        routers: &BTreeMap<RouterId, RouterSpec>,
    ) {
        let networks = networks
            .iter()
            .map(|(id, spec)| Document::Network(self.desired(*id, Some(spec))));
        let routers = routers
            .iter()
            .map(|(id, spec)| Document::Router(self.desired(*id, Some(spec))));
        let all = networks.chain(routers);
        *self.documents.borrow_mut() = all.map(|document| (document.key(), document)).collect();
    }

    /// Carries out all that the host was told of.
    pub(super) fn converge_told(&self) {
        let documents: Vec<Document> = self.documents.borrow().values().cloned().collect();
        for document in &documents {
            if let Document::Network(wish) = document {
                let then = self.converge(wish.id, wish.spec.as_ref());
                // A port that moved away has its tap still.
                let built = matches!(then, NetThen::Converged | NetThen::Wait(_));
                assert!(built, "{then:?}");
            }
        }
        for document in &documents {
            if let Document::Router(wish) = document {
                let then = self.converge_router(wish.id, wish.spec.as_ref());
                assert_eq!(then, RouterThen::Converged);
            }
        }
    }

    /// Tells switches of the ports that are here, as the engine does from time to time.
    pub(super) fn herald(&self, network: NetworkId, spec: &NetworkSpec) {
        let herald = network::herald(&self.desired(network, Some(spec)), &self.observe(network));
        if let Some(herald) = herald {
            self.here(async |net| net.herald(&herald).await.unwrap());
        }
    }

    pub(super) fn observe_router(&self, desired: &Desired<RouterId, RouterSpec>) -> RouterObserved {
        let legs = router::legs(desired);
        let mut observed =
            self.here(async |net| net.observe_router(desired.id, &legs).await.unwrap());
        observed.neighbours = router::neighbours(&legs, self.documents.borrow().values());
        observed
    }

    pub(super) fn plan_router(&self, id: RouterId, spec: Option<&RouterSpec>) -> RouterPlan {
        let desired = self.desired(id, spec);
        router::plan(&desired, &self.observe_router(&desired))
    }

    pub(super) fn apply_router(&self, step: &RouterStep) {
        let done = self.here(async |net| net.apply_router(step).await);
        done.unwrap_or_else(|error| panic!("{}: {step}: {error:?}", self.namespace));
    }

    pub(super) fn converge_router(&self, id: RouterId, spec: Option<&RouterSpec>) -> RouterThen {
        for _ in 0..4 {
            let plan = self.plan_router(id, spec);
            if plan.steps.is_empty() {
                return plan.then;
            }
            plan.steps.iter().for_each(|step| self.apply_router(step));
        }
        panic!("not converged: {:#?}", self.plan_router(id, spec));
    }

    /// What a program prints in a namespace that a router has on this host.
    pub(super) fn in_router(&self, router: RouterId, command: &str) -> String {
        let namespace = names::router_namespace(router);
        let words: Vec<&str> = command.split(' ').collect();
        let args = [&["netns", "exec", &namespace][..], &words].concat();
        self.here(async |_| run("ip", &args))
    }

    /// Plans and applies until nothing is left to do.
    pub(super) fn converge(&self, network: NetworkId, spec: Option<&NetworkSpec>) -> NetThen {
        for _ in 0..4 {
            let plan = self.plan(network, spec);
            if plan.steps.is_empty() {
                return plan.then;
            }
            for step in &plan.steps {
                self.apply(step)
                    .unwrap_or_else(|error| panic!("{}: {step}: {error:?}", self.namespace));
            }
        }
        panic!("not converged: {:#?}", self.plan(network, spec));
    }

    /// How many packets for its VXLANs were dropped, as nobody named their senders.
    pub(super) fn tunnel_drops(&self) -> Option<u64> {
        self.here(async |net| net.tunnel_drops().await.unwrap())
    }

    pub(super) fn present(&self) -> Vec<NetworkId> {
        self.here(async |net| net.networks_present().await.unwrap())
    }

    /// Plugs a guest into a network's bridge. Its name tells it from all others on all hosts.
    pub(super) fn guest(
        &self,
        network: NetworkId,
        name: &str,
        mac: &str,
        address: &str,
    ) -> GuestOnWire {
        self.guest_at(network, &format!("tap{name}"), name, mac, address)
    }

    /// The same, with a link of this name on the host.
    pub(super) fn guest_at(
        &self,
        network: NetworkId,
        tap: &str,
        name: &str,
        mac: &str,
        address: &str,
    ) -> GuestOnWire {
        let host = &self.namespace;
        ip(&format!("netns add {name}"));
        ip(&format!(
            "-n {host} link add {tap} type veth peer name eth0 address {mac} netns {name}"
        ));
        ip(&format!(
            "-n {host} link set {tap} master {} up",
            names::bridge(network)
        ));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} address add {address} dev eth0"));
        inside(host, || wait_passes(tap, name, "eth0"));
        GuestOnWire {
            host: host.clone(),
            tap: tap.to_owned(),
            namespace: name.to_owned(),
            mac: mac.to_owned(),
        }
    }

    pub(super) fn ip_json(&self, args: &str) -> Value {
        let args = format!("-n {} -j -d {args}", self.namespace);
        serde_json::from_str(&ip(&args)).unwrap()
    }

    /// What addresses and routes the host has: each on its own, without what changes by itself.
    pub(super) fn addresses_and_routes(&self) -> BTreeSet<String> {
        let lines = |args: &str| {
            let shown = ip(&format!("-n {} {args}", self.namespace));
            let lines: Vec<String> = shown.lines().map(|line| line.trim().to_owned()).collect();
            lines
        };
        let mut all = lines("-o -4 address show");
        all.extend(lines("-o -6 address show scope global"));
        all.extend(lines("-4 route show"));
        all.extend(lines("-6 route show"));
        let number = |line: String| {
            let known = line.split_once(": ").map(|(_, rest)| rest.to_owned());
            known.unwrap_or(line)
        };
        all.into_iter()
            .map(number)
            .filter(|line| !line.contains("fe80") && !line.contains("ff00"))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// Takes the host off the wires, and makes sure that nothing of berth's was left on it.
    pub(super) fn end(self) {
        assert_eq!(self.present(), []);
        let links = self.ip_json("link show");
        let own = links.as_array().unwrap().iter().filter(|link| {
            let name = link["ifname"].as_str().unwrap_or_default();
            name.starts_with(names::LINK_PREFIX)
        });
        assert_eq!(own.collect::<Vec<_>>(), Vec::<&Value>::new());
        let tables = inside(&self.namespace, || run("nft", &["list", "tables"]));
        assert!(!tables.contains("berth"), "{tables}");
        for (wire, _) in WIRES {
            ip(&format!("link del {wire}{}", self.n));
        }
        ip(&format!("netns del {}", self.namespace));
    }
}

impl GuestOnWire {
    /// Whether somebody answers at last.
    pub(super) fn ping(&self, address: &str) -> bool {
        in_tries(|| !self.cannot_ping(address))
    }

    /// Whether nobody answers. It waits for as long as answers take when there are any.
    pub(super) fn cannot_ping(&self, address: &str) -> bool {
        let args = ["netns", "exec", &self.namespace, "busybox", "ping"];
        let ping = ["-c", "1", "-w", "1", "-W", "1", address];
        !try_run("ip", &[&args[..], &ping].concat()).status.success()
    }

    pub(super) fn unplug(self) {
        // A namespace goes some time after its name.
        ip(&format!("-n {} link del {}", self.host, self.tap));
        ip(&format!("netns del {}", self.namespace));
    }
}

pub(super) fn tunnel_ip(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

pub(super) fn tunnel_ip6(n: u8) -> IpAddr {
    IpAddr::from([0xfd00, 2, 0, 0, 0, 0, 0, u16::from(n)])
}

fn files(namespace: &str) -> PathBuf {
    Path::new(FILES).join(namespace)
}

/// A place with a `/run` of its own, with the directory for the host's files, which everybody may pass.
fn own_run(namespace: &str) -> [fs::File; 2] {
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let nothing = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(nothing, "/", nothing, private, nothing).unwrap();
            mount(
                Some("tmpfs"),
                "/run",
                Some("tmpfs"),
                MsFlags::empty(),
                nothing,
            )
            .unwrap();
            let path = files(namespace);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).unwrap();
            ["/", "/proc/thread-self/ns/mnt"].map(|path| fs::File::open(path).unwrap())
        });
        made.join().unwrap()
    })
}

/// A network without subnets: what is in it is of no matter to what it goes out by.
pub(super) fn bare(network_type: NetworkType, segmentation_id: Option<u32>) -> NetworkSpec {
    let physical = matches!(network_type, NetworkType::Flat | NetworkType::Vlan);
    NetworkSpec {
        name: "net".parse().unwrap(),
        project: "default".parse().unwrap(),
        network_type,
        mtu: 1450,
        subnets: Vec::new(),
        ports: Vec::new(),
        physical_network: physical.then(|| "physnet1".parse().unwrap()),
        segmentation_id,
        remote_ports: Vec::new(),
        security_groups: Vec::new(),
        group_members: std::collections::BTreeMap::new(),
    }
}

/// A port on another host.
pub(super) fn remote(mac: &str, host: u8) -> RemotePort {
    RemotePort {
        mac_address: mac.parse().unwrap(),
        hostname: "far".parse().unwrap(),
        ip_addresses: Vec::new(),
        tunnel_ip: Some(tunnel_ip(host)),
    }
}

/// A VXLAN packet as it was on a wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Packet {
    pub(super) vni: u32,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// Whom it is for, among the guests.
    pub(super) mac: String,
}

/// Reads what passes the wires.
pub(super) struct Capture(OwnedFd);

impl Capture {
    /// Reads what passes the links of a namespace.
    pub(super) fn within(namespace: &str) -> Self {
        inside(namespace, Self::start)
    }

    pub(super) fn start() -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let all = SockProtocol::EthAll;
        Self(socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap())
    }

    /// The VXLAN packets since then, each kind once; without those of IPv6, which all guests send when they like.
    pub(super) fn vxlans(&self) -> BTreeSet<Packet> {
        let packets = self.frames().into_iter().filter_map(|frame| vxlan(&frame));
        packets
            .filter(|packet| !packet.mac.starts_with("33:33"))
            .collect()
    }

    /// All frames since then. Of very many some are lost.
    pub(super) fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0_u8; 1 << 16];
        while let Ok(length) = nix::sys::socket::recv(
            self.0.as_raw_fd(),
            &mut buffer,
            nix::sys::socket::MsgFlags::empty(),
        ) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}

/// Ethernet, IPv4 without options, UDP to the port of VXLAN, VXLAN, Ethernet.
fn vxlan(frame: &[u8]) -> Option<Packet> {
    let is_vxlan = frame.get(12..14)? == [0x08, 0x00]
        && *frame.get(14)? == 0x45
        && *frame.get(23)? == 17
        && frame.get(36..38)? == 4789_u16.to_be_bytes();
    if !is_vxlan {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into())
    };
    let vni = frame.get(46..49)?;
    let mac = frame.get(50..56)?;
    Some(Packet {
        vni: u32::from_be_bytes([0, vni[0], vni[1], vni[2]]),
        from: address(26)?,
        to: address(30)?,
        mac: mac
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect::<Vec<_>>()
            .join(":"),
    })
}

/// What is left of a network. What the packet filter has once for the host stays.
fn left(mut observed: NetworkObserved) -> NetworkObserved {
    assert!(observed.filter.part.is_empty(), "{observed:?}");
    observed.filter = FilterObserved::default();
    observed
}

/// Builds a network, breaking off after each step, and takes it down, breaking off after each step: the next pass gets there,
/// and nothing is left. Each step is done twice in one of the rounds.
pub(super) fn break_off_everywhere(host: &mut HostOnWire, network: NetworkId, spec: &NetworkSpec) {
    let nothing = left(host.observe(network));
    let routes = host.addresses_and_routes();
    let steps = host.plan(network, Some(spec)).steps;
    for cut in 0..=steps.len() {
        for (number, step) in (1..).zip(&steps[..cut]) {
            host.apply(step).unwrap();
            // The last one twice: over all cuts that is each.
            if number == cut {
                let once = host.observe(network);
                host.apply(step).unwrap();
                assert_eq!(host.observe(network), once, "{step}");
            }
        }
        host.restart_agent();
        let built = host.converge(network, Some(spec));
        assert_eq!(built, NetThen::Converged, "after {cut} steps of building");
        let down = host.plan(network, None).steps;
        for step in &down[..cut.min(down.len())] {
            host.apply(step).unwrap();
            host.apply(step).unwrap();
        }
        host.restart_agent();
        let gone = host.converge(network, None);
        assert_eq!(gone, NetThen::Gone, "after {cut} steps of taking down");
        assert_eq!(left(host.observe(network)), nothing);
        assert_eq!(host.present(), []);
        assert_eq!(host.addresses_and_routes(), routes);
        for step in &steps[..cut] {
            host.apply(step).unwrap();
        }
        host.restart_agent();
        let gone = host.converge(network, None);
        assert_eq!(gone, NetThen::Gone, "deleted after {cut} steps of building");
        assert_eq!(left(host.observe(network)), nothing);
        assert_eq!(host.addresses_and_routes(), routes);
    }
}
