//! Networks on the real kernel, with real DHCP clients.
//!
//! Each test runs in network, mount and process namespaces of its own, with a private `/run`: it starts itself
//! again inside of them. So names cannot collide, and nothing can be left on the machine. Needs root, `unshare`,
//! `ip`, `busybox` and `dnsmasq`; where one is missing, it fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic in a test's helper is a failed assertion"
)]

#[path = "net/guests.rs"]
mod guests;
mod isolation;
#[path = "net/tc.rs"]
mod tc;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use berth_agent::{
    act::{ActError, Net, net::KernelNet},
    decide::{
        filter::FilterObserved,
        names,
        network::{NamespaceObserved, NetPlan, NetThen, NetWait, NetworkObserved, OnError, plan},
    },
};
use berth_common::{
    document::{Desired, FixedIp, NetworkPort, NetworkSpec, NetworkType, SubnetSpec},
    ids::{HostId, InstanceId, NetworkId, PortId, SubnetId},
    message::report::FaultCode,
    units::Generation,
};
use serde_json::Value;

use self::isolation::{STATE_DIR, client_script, ip, limit, run, try_run, wait_for, wait_passes};

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "net/fabric.rs"]
mod fabric;
#[path = "net/uplinks.rs"]
mod uplinks;

/// How long one test may take, in seconds.
const TEST_LIMIT: u32 = 120;

/// Runs a test on a hypervisor in namespaces of its own.
fn isolated<F: AsyncFnOnce(&mut Host)>(test: &str, body: F) {
    isolation::isolated(test, TEST_LIMIT, async || {
        client_script(CLIENT_SCRIPT);
        let mut host = Host::new();
        body(&mut host).await;
        host.end().await;
    });
}

/// What the DHCP client runs: sets the address and prints what it was told.
const CLIENT_SCRIPT: &str = r#"#!/bin/sh
case "$1" in
bound|renew)
    ip address replace "$ip/$mask" dev "$interface"
    routes=$(echo "$staticroutes" | tr " " ,)
    echo "lease ip=$ip mask=$mask router=$router dns=$(echo "$dns" | tr " " ,) mtu=$mtu hostname=$hostname server=$serverid routes=$routes domain=$domain"
    set -- $staticroutes
    while [ $# -ge 2 ]; do
        ip route replace "$1" via "$2" dev "$interface"
        shift 2
    done ;;
esac
"#;

/// What `ip -j` says, as its one entry.
fn ip_json(args: &str) -> Value {
    let all: Value = serde_json::from_str(&ip(&format!("-j -d {args}"))).unwrap();
    all[0].clone()
}

/// A hypervisor with one network.
struct Host {
    net: KernelNet,
    id: NetworkId,
    subnet: SubnetId,
    guests: Vec<Guest>,
}

/// A machine with one NIC in the network's bridge.
#[derive(Clone)]
struct Guest {
    namespace: String,
    tap: String,
}

impl Guest {
    /// Asks for an address, as often as told, and returns what it was told.
    fn dhcp(&self, tries: u8, more: &[&str]) -> Option<BTreeMap<String, String>> {
        let tries = tries.to_string();
        let mut args = vec![
            "netns",
            "exec",
            &self.namespace,
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-n",
            "-q",
            "-f",
        ];
        args.extend(["-t", &tries, "-T", "1", "-s", "/run/script"]);
        args.extend(["-O", "mtu", "-O", "hostname", "-O", "router", "-O", "dns"]);
        args.extend(["-O", "staticroutes", "-O", "domain"]);
        args.extend(more);
        let output = try_run("ip", &args);
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("lease "));
        assert_eq!(
            output.status.success(),
            line.is_some(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let pairs = line?.split(' ').filter_map(|pair| pair.split_once('='));
        Some(
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    fn address(&self) -> Option<String> {
        self.dhcp(5, &[]).map(|lease| lease["ip"].clone())
    }

    fn ping(&self, address: &str) -> bool {
        try_run(
            "ip",
            &[
                "netns",
                "exec",
                &self.namespace,
                "busybox",
                "ping",
                "-c",
                "1",
                "-w",
                "5",
                address,
            ],
        )
        .status
        .success()
    }
}

impl Host {
    fn new() -> Self {
        let net = KernelNet::new(Path::new(STATE_DIR));
        Self {
            net,
            id: NetworkId::new(),
            subnet: SubnetId::new(),
            guests: Vec::new(),
        }
    }

    fn port(&self, n: u8, name: &str) -> NetworkPort {
        NetworkPort {
            id: PortId::new(),
            instance_id: InstanceId::new(),
            mac_address: mac(n).parse().unwrap(),
            hostname: name.parse().unwrap(),
            fixed_ips: vec![FixedIp {
                subnet_id: self.subnet,
                ip_address: IpAddr::from([10, 0, 0, n]),
            }],
            security: None,
            qos: berth_common::document::PortQos::default(),
            mirrors: Vec::new(),
        }
    }

    fn spec(&self, ports: Vec<NetworkPort>) -> NetworkSpec {
        NetworkSpec {
            name: "net".parse().unwrap(),
            project: "default".parse().unwrap(),
            network_type: NetworkType::Local,
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
            ports,
            physical_network: None,
            segmentation_id: None,
            remote_ports: Vec::new(),
            security_groups: Vec::new(),
            group_members: std::collections::BTreeMap::new(),
        }
    }

    fn desired(&self, spec: Option<NetworkSpec>) -> Desired<NetworkId, NetworkSpec> {
        Desired {
            id: self.id,
            generation: Generation(1),
            host_id: HostId::new(),
            spec,
        }
    }

    /// Plans and applies until nothing is left to do.
    async fn converge(&self, spec: Option<&NetworkSpec>) -> NetThen {
        let desired = self.desired(spec.cloned());
        for _ in 0..4 {
            let observed = self.observe().await;
            let plan = plan(&desired, &observed);
            if plan.steps.is_empty() {
                return plan.then;
            }
            apply_plan(&self.net, &plan).await.unwrap();
        }
        panic!(
            "not converged: {:#?}",
            plan(&desired, &self.observe().await)
        );
    }

    /// Whether there is nothing to do.
    async fn is_as(&self, spec: &NetworkSpec) -> bool {
        let plan = plan(&self.desired(Some(spec.clone())), &self.observe().await);
        plan.steps.is_empty() && plan.then == NetThen::Converged
    }

    async fn observe(&self) -> NetworkObserved {
        self.net.observe(self.id).await.unwrap()
    }

    fn plug(&mut self, n: u8) -> Guest {
        let guest = Guest {
            namespace: format!("guest{n}"),
            tap: format!("tap{n}"),
        };
        let Guest { namespace, tap } = &guest;
        ip(&format!("netns add {namespace}"));
        ip(&format!(
            "link add {tap} type veth peer name eth0 address {} netns {namespace}",
            mac(n)
        ));
        ip(&format!(
            "link set {tap} master {} up",
            names::bridge(self.id)
        ));
        ip(&format!("-n {namespace} link set eth0 up"));
        wait_passes(tap, namespace, "eth0");
        self.guests.push(guest.clone());
        guest
    }

    fn unplug_all(&mut self) {
        for guest in self.guests.drain(..) {
            ip(&format!("link del {}", guest.tap));
            ip(&format!("netns del {}", guest.namespace));
        }
    }

    /// The agent is gone and starts again.
    fn restart_agent(&mut self) {
        self.net = KernelNet::new(Path::new(STATE_DIR));
    }

    fn directory(&self) -> PathBuf {
        Path::new(STATE_DIR)
            .join("networks")
            .join(self.id.to_string())
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(self.directory().join("dnsmasq.pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Takes everything down, and makes sure that nothing is left.
    async fn end(&mut self) {
        self.unplug_all();
        assert_eq!(self.converge(None).await, NetThen::Gone);
        self.assert_nothing_left().await;
    }

    async fn assert_nothing_left(&self) {
        let mut left = self.observe().await;
        assert!(left.filter.part.is_empty(), "{left:?}");
        // What the packet filter has once for the host stays.
        left.filter = FilterObserved::default();
        // And the host has addresses of its own.
        left.uplink.host.addresses.clear();
        assert_eq!(left, NetworkObserved::default());
        assert_eq!(self.net.networks_present().await.unwrap(), []);
        assert_eq!(dnsmasqs(), BTreeSet::new());
        assert_eq!(processes("berth-metadata"), BTreeSet::new());
        assert_eq!(ip("netns list"), "");
        let links: Value = serde_json::from_str(&ip("-j link show")).unwrap();
        let own = |link: &&Value| {
            link["ifname"]
                .as_str()
                .is_some_and(|name| name.starts_with(names::LINK_PREFIX))
        };
        assert_eq!(
            links
                .as_array()
                .unwrap()
                .iter()
                .filter(own)
                .collect::<Vec<_>>(),
            Vec::<&Value>::new()
        );
        let left: Vec<_> = fs::read_dir(STATE_DIR)
            .unwrap()
            .flat_map(|entry| fs::read_dir(entry.unwrap().path()))
            .collect();
        assert!(left.into_iter().all(|mut entries| entries.next().is_none()));
    }
}

/// Carries out the steps of a plan, as far as its rule for errors goes.
async fn apply_plan(net: &dyn Net, plan: &NetPlan) -> Result<(), Vec<ActError>> {
    let mut errors = Vec::new();
    for step in &plan.steps {
        if let Err(error) = net.apply(step).await {
            errors.push(error);
            if plan.on_error == OnError::Stop {
                break;
            }
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn mac(n: u8) -> String {
    format!("52:54:00:00:00:{n:02x}")
}

/// Whether a process has not ended. One that has is a zombie until the shell, which is the init here, collects it.
fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// All dnsmasq processes of the test's own process namespace that have not ended.
fn dnsmasqs() -> BTreeSet<i32> {
    processes("dnsmasq")
}

/// All processes of this name.
fn processes(wanted: &str) -> BTreeSet<i32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == wanted)
            && is_alive(*pid)
    })
    .collect()
}

fn kill(pid: i32, signal: &str) {
    run("kill", &[signal, &pid.to_string()]);
}

#[test]
fn guests_get_exactly_their_addresses() {
    isolated("guests_get_exactly_their_addresses", async |host| {
        // Names that dnsmasq could take for a keyword or a lease time.
        let mut spec = host.spec(vec![
            host.port(10, "Web-1"),
            host.port(11, "ignore"),
            host.port(12, "5h"),
        ]);
        spec.subnets[0].gateway_ip = Some(IpAddr::from([10, 0, 0, 1]));
        spec.subnets[0].dns_nameservers =
            vec![IpAddr::from([9, 9, 9, 9]), IpAddr::from([1, 1, 1, 1])];
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
        let [web, ignore, hours, stranger] = [10, 11, 12, 13].map(|n| host.plug(n));

        let lease = web.dhcp(5, &[]).unwrap();
        let expected = [
            ("dns", "9.9.9.9,1.1.1.1"),
            ("domain", "berth.internal"),
            ("hostname", "web-1"),
            ("ip", "10.0.0.10"),
            ("mask", "24"),
            ("mtu", "1450"),
            ("router", "10.0.0.1"),
            ("routes", "169.254.169.254/32,10.0.0.2,0.0.0.0/0,10.0.0.1"),
            ("server", "10.0.0.2"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(lease, BTreeMap::from(expected));
        let lease = ignore.dhcp(5, &[]).unwrap();
        assert_eq!([&lease["ip"], &lease["hostname"]], ["10.0.0.11", "ignore"]);
        let lease = hours.dhcp(5, &[]).unwrap();
        assert_eq!([&lease["ip"], &lease["hostname"]], ["10.0.0.12", "5h"]);
        // A guest cannot choose: neither an address nor another name.
        let lease = web
            .dhcp(5, &["-r", "10.0.0.77", "-x", "hostname:evil"])
            .unwrap();
        assert_eq!([&lease["ip"], &lease["hostname"]], ["10.0.0.10", "web-1"]);

        assert!(web.ping("10.0.0.2"), "the DHCP server answers ping");
        assert!(web.ping("10.0.0.11"), "guests reach one another");
        assert_eq!(
            stranger.dhcp(2, &[]),
            None,
            "an unknown guest gets no answer"
        );
        assert_eq!(stranger.dhcp(2, &["-r", "10.0.0.10"]), None);

        // Without a gateway, guests are not told any; without name servers, they are told of the one that knows the network.
        let spec = host.spec(spec.ports.clone());
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
        let lease = web.dhcp(5, &[]).unwrap();
        assert_eq!(
            [&lease["ip"], &lease["router"], &lease["dns"]],
            ["10.0.0.10", "", "10.0.0.2"]
        );
    });
}

#[test]
fn the_kernel_has_what_was_planned() {
    isolated("the_kernel_has_what_was_planned", async |host| {
        let spec = host.spec(vec![host.port(10, "web")]);
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);

        let bridge = ip_json(&format!("address show dev {}", names::bridge(host.id)));
        assert_eq!(bridge["ifalias"], format!("berth bridge {}", host.id));
        assert_eq!(bridge["mtu"], 1450);
        assert!(
            bridge["flags"].as_array().unwrap().contains(&"UP".into()),
            "{bridge}"
        );
        let data = &bridge["linkinfo"]["info_data"];
        assert_eq!(
            [
                &data["stp_state"],
                &data["forward_delay"],
                &data["mcast_snooping"]
            ],
            [0, 0, 0],
            "{data}"
        );
        assert_eq!(
            bridge["addr_info"],
            Value::Array(Vec::new()),
            "the host has no address in the network"
        );

        let veth = ip_json(&format!("address show dev {}", names::veth_host(host.id)));
        assert_eq!(veth["ifalias"], format!("berth veth {}", host.id));
        assert_eq!(veth["master"], names::bridge(host.id));
        assert_eq!(veth["mtu"], 1450);
        assert_eq!(veth["addr_info"], Value::Array(Vec::new()));

        let namespace = names::namespace(host.id);
        let inside = ip_json(&format!(
            "-n {namespace} address show dev {}",
            names::veth_namespace(host.id)
        ));
        assert_eq!(inside["ifalias"], format!("berth dhcp {}", host.id));
        let addresses = inside["addr_info"].as_array().unwrap();
        for address in addresses.iter().filter(|it| it["family"] == "inet6") {
            // One that is still looked at cannot be bound to.
            assert_eq!(address["nodad"], true, "{address}");
        }
        let addresses: BTreeSet<String> = addresses
            .iter()
            .map(|address| {
                format!(
                    "{}/{}",
                    address["local"].as_str().unwrap(),
                    address["prefixlen"]
                )
            })
            .collect();
        let expected = ["10.0.0.2/24", "169.254.169.254/32", "fe80::a9fe:a9fe/64"];
        assert_eq!(addresses, expected.map(str::to_owned).into());

        // The namespace is one for `ip netns`, too, and dnsmasq is in it, without root's rights.
        let inside: BTreeSet<i32> = ip(&format!("netns pids {namespace}"))
            .lines()
            .map(|pid| pid.trim().parse().unwrap())
            .collect();
        let mut expected = processes("berth-metadata");
        assert_eq!(expected.len(), 1);
        expected.insert(host.pid());
        assert_eq!(inside, expected);
        assert_ne!(
            fs::metadata(format!("/proc/{}", host.pid())).unwrap().uid(),
            0
        );
        let zero = "CapEff:\t0000000000000000";
        let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
        assert!(
            !status.contains(zero),
            "it keeps the few rights it needs to answer guests without address"
        );
        assert_eq!(host.net.networks_present().await.unwrap(), [host.id]);
    });
}

#[test]
fn the_host_does_not_talk_to_guests() {
    isolated("the_host_does_not_talk_to_guests", async |host| {
        ip("link set lo up");
        ip("address add 192.0.2.1/32 dev lo");
        let spec = host.spec(vec![host.port(10, "web")]);
        host.converge(Some(&spec)).await;
        let guest = host.plug(10);
        assert_eq!(guest.address().unwrap(), "10.0.0.10");
        let Guest { namespace, .. } = &guest;
        ip(&format!("-n {namespace} route add 192.0.2.1 dev eth0"));
        let ping = || {
            let command = [
                "netns",
                "exec",
                namespace,
                "busybox",
                "ping",
                "-c",
                "1",
                "-W",
                "1",
                "192.0.2.1",
            ];
            assert!(
                !try_run("ip", &command).status.success(),
                "the host answers a guest"
            );
        };
        let neighbour =
            || ip_json(&format!("-n {namespace} neigh show 192.0.2.1"))["lladdr"].clone();
        ping();
        assert_eq!(
            neighbour(),
            Value::Null,
            "the host does not tell its addresses"
        );

        // Nor does it take what is sent to its Ethernet address.
        let bridge = names::bridge(host.id);
        let mac = ip_json(&format!("link show dev {bridge}"))["address"]
            .as_str()
            .unwrap()
            .to_owned();
        ip(&format!(
            "-n {namespace} neigh replace 192.0.2.1 lladdr {mac} dev eth0"
        ));
        let received = pings_received();
        ping();
        assert_eq!(pings_received(), received);
        // The same, without the switch that keeps it out: so it is the switch.
        fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/rp_filter"), "0").unwrap();
        ping();
        assert_eq!(pings_received(), received + 1);
    });
}

/// How many echo requests the host's own IP stack took in.
fn pings_received() -> u64 {
    let counters = fs::read_to_string("/proc/net/snmp").unwrap();
    let mut icmp = counters
        .lines()
        .filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (icmp.next().unwrap(), icmp.next().unwrap());
    let (_, value) = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "InEchos")
        .unwrap();
    value.parse().unwrap()
}

#[test]
fn a_new_port_is_told_and_a_reused_address_goes_to_its_new_port() {
    isolated(
        "a_new_port_is_told_and_a_reused_address_goes_to_its_new_port",
        async |host| {
            let first = host.port(10, "first");
            host.converge(Some(&host.spec(vec![first.clone()]))).await;
            let pid = host.pid();
            let [one, two] = [10, 11].map(|n| host.plug(n));
            assert_eq!(one.address().unwrap(), "10.0.0.10");
            assert_eq!(two.dhcp(1, &[]), None);

            let second = host.port(11, "second");
            host.converge(Some(&host.spec(vec![first, second.clone()])))
                .await;
            assert_eq!(two.address().unwrap(), "10.0.0.11");
            assert_eq!(host.pid(), pid, "dnsmasq goes on when a port is added");
            assert_eq!(one.address().unwrap(), "10.0.0.10");

            // The first port is deleted, and its address given to the second.
            let moved = NetworkPort {
                fixed_ips: host.port(10, "x").fixed_ips,
                ..second
            };
            host.converge(Some(&host.spec(vec![moved]))).await;
            assert_eq!(two.address().unwrap(), "10.0.0.10");
            assert_eq!(one.dhcp(1, &[]), None);
            assert_eq!(dnsmasqs().len(), 1);
        },
    );
}

#[test]
fn what_others_broke_is_mended_without_touching_the_taps() {
    isolated(
        "what_others_broke_is_mended_without_touching_the_taps",
        async |host| {
            let spec = host.spec(vec![host.port(10, "web")]);
            host.converge(Some(&spec)).await;
            let guest = host.plug(10);
            let [bridge, veth, inside] =
                [names::bridge, names::veth_host, names::veth_namespace].map(|name| name(host.id));
            let namespace = names::namespace(host.id);
            let whole = host.observe().await;
            let before = ip_json(&format!("link show dev {}", guest.tap));
            let broken = [
                format!("link set {bridge} mtu 1400"),
                format!("link set {bridge} down"),
                format!(
                    "link set {bridge} type bridge stp_state 1 forward_delay 1500 mcast_snooping 1"
                ),
                format!("link set {veth} mtu 1300"),
                format!("link set {veth} nomaster"),
                format!("link set {veth} down"),
                format!("-n {namespace} address del 10.0.0.2/24 dev {inside}"),
                format!("-n {namespace} address add 10.0.0.99/24 dev {inside}"),
                format!("-n {namespace} link set lo down"),
                format!("-n {namespace} link set {inside} down"),
                // These take dnsmasq's link, or even its namespace's name, away from it.
                format!("link del {veth}"),
                format!("netns del {namespace}"),
            ];
            for command in broken {
                ip(&command);
                assert_ne!(host.observe().await, whole, "{command}");
                assert_eq!(
                    host.converge(Some(&spec)).await,
                    NetThen::Converged,
                    "{command}"
                );
                assert_eq!(host.observe().await, whole, "{command}");
                assert_eq!(dnsmasqs(), BTreeSet::from([host.pid()]), "{command}");
            }
            fs::write(
                format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"),
                "0",
            )
            .unwrap();
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert_eq!(host.observe().await, whole);
            let after = ip_json(&format!("link show dev {}", guest.tap));
            for key in ["ifindex", "mtu", "master", "flags"] {
                assert_eq!(before[key], after[key], "{key}");
            }
            assert_eq!(guest.address().unwrap(), "10.0.0.10");
            assert!(guest.ping("10.0.0.2"));

            // Another MTU by document.
            let spec = NetworkSpec { mtu: 1400, ..spec };
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert_eq!(guest.dhcp(5, &[]).unwrap()["mtu"], "1400");
        },
    );
}

/// Makes a tap as libvirt does, and switches it on.
fn make_tap(tap: &str) {
    ip(&format!("tuntap add dev {tap} mode tap"));
    ip(&format!("link set {tap} up"));
}

fn master(link: &str) -> Option<String> {
    let shown = ip_json(&format!("link show dev {link}"));
    shown["master"].as_str().map(str::to_owned)
}

#[test]
fn guests_are_plugged_into_a_bridge_that_was_made_anew() {
    isolated(
        "guests_are_plugged_into_a_bridge_that_was_made_anew",
        async |host| {
            let ports: Vec<_> = (10..14).map(|n| host.port(n, &format!("vm{n}"))).collect();
            let spec = host.spec(ports.clone());
            host.converge(Some(&spec)).await;
            let bridge = names::bridge(host.id);
            let tap = |n: usize| names::tap(ports[n].id);
            for n in 0..2 {
                make_tap(&tap(n));
                ip(&format!("link set {} master {bridge}", tap(n)));
            }
            // libvirt is still making this one; another network's guest; something else with a tap's name. The
            // last port has no tap: its guest does not run here.
            ip(&format!("tuntap add dev {} mode tap", tap(2)));
            let of_another = names::tap(PortId::new());
            make_tap(&of_another);
            ip("link add elsewhere type bridge");
            let whole = host.observe().await;
            assert_eq!(whole.members, BTreeSet::from([tap(0), tap(1)]));
            assert_eq!(whole.stray_taps, BTreeSet::from([of_another.clone()]));
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);

            for command in [
                format!("link del {bridge}"),
                format!("link set {} nomaster", tap(1)),
                format!("link set {} master elsewhere", tap(0)),
            ] {
                ip(&command);
                assert_ne!(host.observe().await, whole, "{command}");
                assert_eq!(
                    host.converge(Some(&spec)).await,
                    NetThen::Converged,
                    "{command}"
                );
                assert_eq!(host.observe().await, whole, "{command}");
                for n in 0..2 {
                    assert_eq!(master(&tap(n)).as_ref(), Some(&bridge), "{command}");
                }
                assert_eq!(master(&tap(2)), None, "{command}");
                assert_eq!(master(&of_another), None, "{command}");
            }

            // A guest that ends between looking and doing is no error, and nothing but a tap is touched.
            let desired = host.desired(Some(spec.clone()));
            ip(&format!("link set {} nomaster", tap(0)));
            let steps = plan(&desired, &host.observe().await);
            assert_eq!(steps.steps.len(), 1);
            ip(&format!("link del {}", tap(0)));
            apply_plan(&host.net, &steps).await.unwrap();
            ip(&format!("link add {} type bridge", tap(0)));
            let errors = apply_plan(&host.net, &steps).await.unwrap_err();
            assert_eq!(errors[0].code, FaultCode::ForeignObject);
            assert_eq!(master(&tap(0)), None);
            ip(&format!("link set {} up", tap(0)));
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert_eq!(master(&tap(0)), None);

            for link in [tap(0), tap(1), tap(2), of_another, "elsewhere".to_owned()] {
                ip(&format!("link del {link}"));
            }
        },
    );
}

#[test]
fn a_restarted_agent_adopts_dnsmasq() {
    isolated("a_restarted_agent_adopts_dnsmasq", async |host| {
        let spec = host.spec(vec![host.port(10, "web")]);
        host.converge(Some(&spec)).await;
        let pid = host.pid();
        let guest = host.plug(10);
        assert_eq!(guest.address().unwrap(), "10.0.0.10");

        host.restart_agent();
        assert!(host.is_as(&spec).await);
        assert_eq!(dnsmasqs(), BTreeSet::from([pid]));

        // Even without its pid file.
        fs::remove_file(host.directory().join("dnsmasq.pid")).unwrap();
        host.restart_agent();
        assert!(host.is_as(&spec).await);

        // Without a record of what it has read it starts afresh: it may have read something else.
        fs::remove_file(host.directory().join("loaded.json")).unwrap();
        host.converge(Some(&spec)).await;
        assert_eq!(dnsmasqs(), BTreeSet::from([host.pid()]));
        assert_ne!(host.pid(), pid);
    });
}

#[test]
fn a_killed_dnsmasq_is_replaced_and_confirms_what_guests_have() {
    isolated(
        "a_killed_dnsmasq_is_replaced_and_confirms_what_guests_have",
        async |host| {
            let spec = host.spec(vec![host.port(10, "web")]);
            host.converge(Some(&spec)).await;
            let guest = host.plug(10);
            assert_eq!(guest.address().unwrap(), "10.0.0.10");
            let pid = host.pid();
            kill(pid, "-KILL");
            wait_for("the end of dnsmasq", limit(5), || {
                let left = dnsmasqs();
                (left.is_empty(), left)
            });
            assert!(!host.is_as(&spec).await);
            assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
            assert_ne!(host.pid(), pid);
            assert_eq!(
                guest.dhcp(5, &["-r", "10.0.0.10"]).unwrap()["ip"],
                "10.0.0.10"
            );
        },
    );
}

#[test]
fn a_stale_pid_file_harms_nobody() {
    isolated("a_stale_pid_file_harms_nobody", async |host| {
        let spec = host.spec(vec![host.port(10, "web")]);
        host.converge(Some(&spec)).await;
        let pid = host.pid();
        kill(pid, "-KILL");
        wait_for("dnsmasq to end", limit(10), || (!is_alive(pid), ()));
        // The same command line, but in another namespace and not the process that was recorded: it might be
        // another agent's.
        let mark = format!(
            "--conf-file={}",
            host.directory().join("dnsmasq.conf").display()
        );
        let mut other = Command::new("sh")
            .args(["-c", "read line", "sh", &mark])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(
            host.directory().join("dnsmasq.pid"),
            format!("{}\n", other.id()),
        )
        .unwrap();
        let record = host.directory().join("loaded.json");
        let mut recorded: Value =
            serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
        recorded["pid"] = other.id().into();
        // This test is quicker than the clock that tells when a process was born.
        recorded["born"] = 1.into();
        fs::write(&record, recorded.to_string()).unwrap();

        assert_eq!(host.observe().await.dhcp.process, None);
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
        assert_eq!(host.converge(None).await, NetThen::Gone);
        assert_eq!(other.try_wait().unwrap(), None, "the other process lives");
        drop(other.stdin.take());
        assert!(other.wait().is_ok());
    });
}

#[test]
fn a_tombstone_waits_for_the_guests_and_then_leaves_nothing() {
    isolated(
        "a_tombstone_waits_for_the_guests_and_then_leaves_nothing",
        async |host| {
            let spec = host.spec(vec![host.port(10, "web")]);
            host.converge(Some(&spec)).await;
            let guest = host.plug(10);
            let members = BTreeSet::from([guest.tap.clone()]);
            assert_eq!(
                host.converge(None).await,
                NetThen::Wait(NetWait::Members(members))
            );
            assert_eq!(
                guest.address().unwrap(),
                "10.0.0.10",
                "everything works until the last guest is gone"
            );
            host.unplug_all();
            assert_eq!(host.converge(None).await, NetThen::Gone);
            host.assert_nothing_left().await;
            assert_eq!(host.converge(None).await, NetThen::Gone);
        },
    );
}

#[test]
fn an_agent_killed_after_any_step_gets_there_afterwards() {
    isolated(
        "an_agent_killed_after_any_step_gets_there_afterwards",
        async |host| {
            let spec = host.spec(vec![host.port(10, "web")]);
            let build = host.desired(Some(spec.clone()));
            let steps = plan(&build, &host.observe().await).steps;
            for cut in 0..=steps.len() {
                for step in &steps[..cut] {
                    host.net.apply(step).await.unwrap();
                    // Repeating it is no error and changes nothing.
                    let once = host.observe().await;
                    host.net.apply(step).await.unwrap();
                    assert_eq!(host.observe().await, once, "{step}");
                }
                host.restart_agent();
                assert_eq!(
                    host.converge(Some(&spec)).await,
                    NetThen::Converged,
                    "after {cut} steps of building"
                );
                assert_eq!(dnsmasqs().len(), 1);

                let down = plan(&host.desired(None), &host.observe().await).steps;
                for step in &down[..cut.min(down.len())] {
                    host.net.apply(step).await.unwrap();
                    host.net.apply(step).await.unwrap();
                }
                host.restart_agent();
                assert_eq!(
                    host.converge(None).await,
                    NetThen::Gone,
                    "after {cut} steps of taking down"
                );
                host.assert_nothing_left().await;
                // Broken off while it was built, and then deleted.
                for step in &steps[..cut] {
                    host.net.apply(step).await.unwrap();
                }
                host.restart_agent();
                assert_eq!(
                    host.converge(None).await,
                    NetThen::Gone,
                    "deleted after {cut} steps of building"
                );
                host.assert_nothing_left().await;
            }
        },
    );
}

#[test]
fn half_done_steps_are_finished() {
    isolated("half_done_steps_are_finished", async |host| {
        let spec = host.spec(vec![host.port(10, "web")]);
        // A namespace's name without a namespace, and files that are half written.
        fs::create_dir("/run/netns").unwrap();
        fs::write(format!("/run/netns/{}", names::namespace(host.id)), "").unwrap();
        fs::create_dir_all(host.directory()).unwrap();
        fs::write(host.directory().join("dnsmasq.conf"), "port=").unwrap();
        fs::write(host.directory().join("loaded.json"), "{").unwrap();
        fs::write(host.directory().join("hosts.new"), b"\xff").unwrap();
        let observed = host.observe().await;
        assert_eq!(observed.namespace, NamespaceObserved::Empty);
        assert_eq!(host.net.networks_present().await.unwrap(), [host.id]);
        assert_eq!(host.converge(Some(&spec)).await, NetThen::Converged);
        host.converge(None).await;
        host.assert_nothing_left().await;

        fs::write(format!("/run/netns/{}", names::namespace(host.id)), "").unwrap();
        assert_eq!(host.converge(None).await, NetThen::Gone);
    });
}

#[test]
fn a_link_of_somebody_else_is_refused_and_left_alone() {
    isolated(
        "a_link_of_somebody_else_is_refused_and_left_alone",
        async |host| {
            let bridge = names::bridge(host.id);
            let spec = host.spec(vec![host.port(10, "web")]);
            ip(&format!("link add {bridge} type bridge"));
            let before = ip(&format!("-j -d address show dev {bridge}"));
            for alias in ["", "berth bridge of another"] {
                if !alias.is_empty() {
                    run("ip", &["link", "set", &bridge, "alias", alias]);
                }
                let before = ip(&format!("-j -d address show dev {bridge}"));
                match host.converge(Some(&spec)).await {
                    NetThen::Refused(fault) => {
                        assert_eq!(fault.code, FaultCode::ForeignObject);
                        assert!(fault.message.contains(&bridge), "{}", fault.message);
                    }
                    then => panic!("{then:?}"),
                }
                assert_eq!(host.converge(None).await, NetThen::Gone);
                assert_eq!(ip(&format!("-j -d address show dev {bridge}")), before);
            }
            // Nor does a plan made before it came touch it.
            let desired = host.desired(Some(spec.clone()));
            let steps = plan(&desired, &NetworkObserved::default());
            let errors = apply_plan(&host.net, &steps).await.unwrap_err();
            assert_eq!(
                (errors.len(), errors[0].code, errors[0].retryable),
                (1, FaultCode::ForeignObject, false)
            );
            ip(&format!("link set {bridge} alias "));
            assert_eq!(ip(&format!("-j -d address show dev {bridge}")), before);
            ip(&format!("link del {bridge}"));
        },
    );
}

#[test]
fn a_missing_dnsmasq_is_told_with_its_package() {
    isolated("a_missing_dnsmasq_is_told_with_its_package", async |host| {
        for directory in ["/run/upper", "/run/work"] {
            fs::create_dir(directory).unwrap();
        }
        let layers = "lowerdir=/usr/sbin,upperdir=/run/upper,workdir=/run/work";
        run(
            "mount",
            &["-t", "overlay", "overlay", "-o", layers, "/usr/sbin"],
        );
        fs::remove_file("/usr/sbin/dnsmasq").unwrap();
        let desired = host.desired(Some(host.spec(vec![host.port(10, "web")])));
        let errors = apply_plan(&host.net, &plan(&desired, &host.observe().await))
            .await
            .unwrap_err();
        let cause = std::error::Error::source(&errors[0]).unwrap().to_string();
        assert!(
            cause.contains("dnsmasq is not installed") && cause.contains("dnsmasq-base"),
            "{cause}"
        );
        assert!(errors[0].retryable);
        // Once it is there, the next pass gets there.
        run("umount", &["/usr/sbin"]);
        assert_eq!(
            host.converge(desired.spec.as_ref()).await,
            NetThen::Converged
        );
    });
}

/// What an agent remembers of links from look to look is what another one finds, whoever changed it and however much.
#[test]
fn a_look_sees_at_once_what_others_changed() {
    isolated(
        "a_look_sees_at_once_what_others_changed",
        async |host: &mut Host| {
            let spec = host.spec(vec![host.port(10, "vm0")]);
            host.converge(Some(&spec)).await;
            let [bridge, veth] = [names::bridge(host.id), names::veth_host(host.id)];
            let tap = names::tap(spec.ports[0].id);
            // So many that those that change are few.
            let unchanged: Vec<String> = (0..20).map(|n| format!("unchanged{n}")).collect();
            for link in &unchanged {
                ip(&format!("link add {link} up type bridge"));
            }
            let mut before = host.observe().await;
            let mut check = async |change: &str| {
                let now = host.observe().await;
                let anew = KernelNet::new(Path::new(STATE_DIR));
                assert_eq!(now, anew.observe(host.id).await.unwrap(), "{change}");
                assert_ne!(now, before, "not seen: {change}");
                before = now;
            };
            for change in [
                format!("ip link set {bridge} mtu 1400"),
                format!("ip link set {bridge} alias somebodys"),
                format!("ip link set {bridge} alias bridge-was-berths"),
                format!("ip link set {veth} nomaster"),
                format!("ip link set {veth} master {bridge}"),
                format!("ip link set {veth} down"),
                format!("ip link set {veth} alias somebodys"),
                format!("ip link set {bridge} type bridge forward_delay 400"),
                format!("ip link set {bridge} down"),
                format!("ip address add 10.9.0.1/24 dev {bridge}"),
                format!("ip address del 10.9.0.1/24 dev {bridge}"),
                format!("ip tuntap add dev {tap} mode tap; ip link set {tap} up"),
                format!("ip link set {tap} master {bridge}"),
                format!(
                    "tc qdisc add dev {tap} root handle be70: tbf rate 1mbit burst 32k latency 50ms"
                ),
                format!("tc qdisc add dev {tap} clsact"),
                format!("tc qdisc del dev {tap} root"),
                "ip link add others type bridge".to_owned(),
                "ip link set others name renamed".to_owned(),
                format!("ip link set {tap} nomaster"),
                format!("ip link del {tap}"),
                "ip address add 10.8.0.1/24 dev renamed".to_owned(),
            ] {
                for command in change.split("; ") {
                    let mut words = command.split(' ');
                    run(words.next().unwrap(), &words.collect::<Vec<_>>());
                }
                check(&change).await;
            }
            // By other ways than netlink.
            let option = format!("/sys/class/net/{bridge}/bridge/multicast_snooping");
            let script = format!("mount -t sysfs sysfs /sys && echo 1 >{option}");
            run("unshare", &["--mount", "sh", "-c", &script]);
            check(&option).await;
            // More than the kernel has room to tell; what matters comes last.
            ip("link set renamed up");
            ip(&format!("link set {veth} up"));
            host.observe().await;
            let many: String = (0..6000)
                .map(|n| format!("link set renamed alias a{n}\n"))
                .collect();
            let batch = tempfile::NamedTempFile::new().unwrap();
            fs::write(batch.path(), many + &format!("link set {veth} mtu 1300\n")).unwrap();
            ip(&format!("-batch {}", batch.path().display()));
            check("a batch").await;

            for link in unchanged.iter().map(String::as_str).chain(["renamed"]) {
                ip(&format!("link del {link}"));
            }
            ip(&format!("link del {veth}"));
            ip(&format!("link del {bridge}"));
            host.converge(Some(&spec)).await;
        },
    );
}
