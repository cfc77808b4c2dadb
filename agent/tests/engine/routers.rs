//! Routers, with the networks they are in: whatever breaks off when, in whatever order documents come.

use berth_agent::{
    act::Net,
    decide::{
        filter::part::Part,
        network::NetStep,
        router::{Leg, Neighbours, RouterNamespace, Translation},
    },
};
use berth_common::document::{
    GatewayAddress, RemotePort, RouterFloatingIp, RouterGateway, RouterInterface,
};
use berth_common::ids::FloatingIpId;

use super::*;

/// A router between two networks, of which one is external.
struct Routed {
    host: HostId,
    router: RouterId,
    inside: NetworkId,
    outside: NetworkId,
}

impl Routed {
    fn new(lab: &Lab) -> Self {
        Self {
            host: lab.host_id,
            router: RouterId::new(),
            inside: NetworkId::new(),
            outside: NetworkId::new(),
        }
    }

    fn spec(&self) -> RouterSpec {
        RouterSpec {
            name: "router".parse().unwrap(),
            project: "default".parse().unwrap(),
            interfaces: vec![RouterInterface {
                network_id: self.inside,
                subnet_id: SubnetId::new(),
                cidr: "10.0.0.0/24".parse().unwrap(),
                ip_address: "10.0.0.1".parse().unwrap(),
                mac_address: "52:54:00:00:00:01".parse().unwrap(),
                mtu: 1450,
                ipv6_address_mode: None,
            }],
            external_gateway: Some(RouterGateway {
                network_id: self.outside,
                mac_address: "52:54:00:00:00:02".parse().unwrap(),
                addresses: vec![GatewayAddress {
                    cidr: "198.51.100.0/24".parse().unwrap(),
                    ip_address: Some("198.51.100.20".parse().unwrap()),
                    gateway_ip: Some("198.51.100.1".parse().unwrap()),
                }],
                enable_snat: true,
                mtu: 1500,
            }),
            floating_ips: vec![RouterFloatingIp {
                id: FloatingIpId::new(),
                floating_ip_address: "198.51.100.50".parse().unwrap(),
                fixed_ip_address: "10.0.0.5".parse().unwrap(),
                port_id: PortId::new(),
            }],
            routes: Vec::new(),
        }
    }

    fn document(&self, generation: u64, change: impl FnOnce(&mut RouterSpec)) -> Document {
        let mut spec = self.spec();
        change(&mut spec);
        Document::Router(Desired {
            id: self.router,
            generation: Generation(generation),
            host_id: self.host,
            spec: Some(spec),
        })
    }

    fn network(&self, id: NetworkId) -> Document {
        self.network_with(id, 1, &[])
    }

    /// A network with ports on other hosts that have these addresses and Ethernet addresses.
    fn network_with(&self, id: NetworkId, generation: u64, remote: &[(&str, u8)]) -> Document {
        let remote_ports = remote.iter().map(|(address, mac)| RemotePort {
            mac_address: format!("52:54:00:00:01:{mac:02x}").parse().unwrap(),
            hostname: "far".parse().unwrap(),
            ip_addresses: vec![address.parse().unwrap()],
            tunnel_ip: None,
        });
        Document::Network(Desired {
            id,
            generation: Generation(generation),
            host_id: self.host,
            spec: Some(NetworkSpec {
                name: "net".parse().unwrap(),
                project: "default".parse().unwrap(),
                network_type: NetworkType::Local,
                mtu: 1500,
                subnets: Vec::new(),
                ports: Vec::new(),
                physical_network: None,
                segmentation_id: None,
                remote_ports: remote_ports.collect(),
                security_groups: Vec::new(),
                group_members: BTreeMap::new(),
            }),
        })
    }

    fn all(&self) -> [Document; 3] {
        [
            self.network(self.inside),
            self.network(self.outside),
            self.document(1, |_| {}),
        ]
    }

    /// The same, with both networks built.
    async fn with_networks(&self, lab: &Lab) -> [Document; 3] {
        let all = self.all();
        for network in &all[..2] {
            lab.send(network).await;
            lab.wait_status(network, ConvergeStatus::Converged).await;
        }
        all
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_waits_for_its_networks_and_they_for_its_end() {
    let lab = Lab::new().await;
    let routed = Routed::new(&lab);
    let [inside, outside, router] = routed.all();
    lab.send(&router).await;
    let waits = |report: &ResourceReport| {
        report
            .progress
            .as_deref()
            .is_some_and(|text| text.contains("waiting for network"))
    };
    lab.wait(router.key(), "waiting", waits).await;
    lab.send(&inside).await;
    lab.send(&outside).await;
    lab.wait_status(&router, ConvergeStatus::Converged).await;

    lab.send(&inside.tombstone()).await;
    let waits = |report: &ResourceReport| {
        report
            .progress
            .as_deref()
            .is_some_and(|text| text.contains("left its bridge"))
    };
    lab.wait(inside.key(), "waiting for the leg", waits).await;
    lab.send(&router.tombstone()).await;
    lab.wait_status(&router.tombstone(), ConvergeStatus::Gone)
        .await;
    lab.send(&outside.tombstone()).await;
    for network in [inside, outside] {
        lab.wait_status(&network.tombstone(), ConvergeStatus::Gone)
            .await;
    }
    assert_eq!(lab.host.leftovers(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn documents_come_twice_and_in_any_order() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let lab = Lab::new().await;
        let routed = Routed::new(&lab);
        let all = routed.all();
        for at in order {
            lab.send(&all[at]).await;
            lab.send(&all[at]).await;
        }
        for document in &all {
            lab.wait_status(document, ConvergeStatus::Converged).await;
        }
        for at in order {
            lab.send(&all[at].tombstone()).await;
            lab.send(&all[at]).await;
        }
        for document in &all {
            lab.wait_status(&document.tombstone(), ConvergeStatus::Gone)
                .await;
        }
        assert_eq!(lab.host.leftovers(), Vec::<String>::new(), "{order:?}");
        assert_eq!(lab.host.unfiltered_legs(), [], "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_step_is_made_good() {
    for steps in 0.. {
        let mut lab = Lab::new().await;
        let routed = Routed::new(&lab);
        let all = routed.all();
        let change = routed.document(2, |spec| {
            spec.floating_ips.clear();
            spec.interfaces.clear();
        });
        let flow = Translation {
            outside: "198.51.100.50".parse().unwrap(),
            inside: "10.0.0.5".parse().unwrap(),
        };
        lab.host.crash_after(steps);
        let mut crashed = false;
        for document in &all {
            lab.send(document).await;
        }
        let end = |document: &Document| {
            if document.is_tombstone() {
                ConvergeStatus::Gone
            } else {
                ConvergeStatus::Converged
            }
        };
        let sequences: [Vec<Document>; 3] = [
            all.to_vec(),
            vec![change.clone()],
            vec![change.tombstone(), all[0].tombstone(), all[1].tombstone()],
        ];
        for (stage, documents) in sequences.iter().enumerate() {
            for document in documents {
                lab.send(document).await;
            }
            for document in documents {
                let done = || {
                    lab.newest(document.key()).is_some_and(|report| {
                        report.generation == document.generation() && report.status == end(document)
                    })
                };
                lab.wait_until("the crash or the end", || lab.host.is_crashed() || done())
                    .await;
                if lab.host.is_crashed() {
                    crashed = true;
                    lab.restart().await;
                    // As the scheduler does with what was not confirmed.
                    for document in documents {
                        lab.send(document).await;
                    }
                }
                lab.wait_status(document, end(document)).await;
            }
            let observed = lab.host.router(routed.router);
            match (stage, &observed.namespace) {
                (0, RouterNamespace::Present(content)) => {
                    assert_eq!(content.links.len(), 2);
                    lab.host.have_flow(routed.router, flow);
                }
                (1, RouterNamespace::Present(content)) => {
                    assert_eq!(content.links.len(), 1);
                    assert!(content.flows.is_empty());
                }
                (2, RouterNamespace::Absent) => {}
                (_, namespace) => panic!("stage {stage} after {steps} steps: {namespace:?}"),
            }
        }
        assert_eq!(lab.host.leftovers(), Vec::<String>::new(), "after {steps}");
        assert_eq!(lab.host.unfiltered_legs(), [], "after {steps}");
        lab.kill().await;
        if !crashed {
            assert!(steps > 30, "{steps}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_is_made_good() {
    let mut lab = Lab::new().await;
    let routed = Routed::new(&lab);
    let all = routed.all();
    for document in &all {
        lab.send(document).await;
    }
    for document in &all {
        lab.wait_status(document, ConvergeStatus::Converged).await;
    }
    let whole = lab.host.router(routed.router);
    lab.kill().await;
    lab.host.power_cut();
    assert_ne!(lab.host.router(routed.router), whole);
    lab.start();
    lab.wait_until("the router", || lab.host.router(routed.router) == whole)
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_no_host_can_do_is_told_and_mended_by_another_document() {
    let lab = Lab::new().await;
    let routed = Routed::new(&lab);
    let [inside, outside, _] = routed.all();
    lab.send(&inside).await;
    lab.send(&outside).await;
    let wrong = routed.document(1, |spec| spec.external_gateway = None);
    lab.send(&wrong).await;
    let report = lab.wait_status(&wrong, ConvergeStatus::Failed).await;
    assert_eq!(report.fault.unwrap().code, FaultCode::Network);
    let right = routed.document(2, |_| {});
    lab.send(&right).await;
    lab.wait_status(&right, ConvergeStatus::Converged).await;
}

async fn filter(lab: &Lab, network: NetworkId) -> std::sync::Arc<Part> {
    let observed = Net::observe(&lab.host, network).await.unwrap();
    observed.filter.part
}

/// Sooner than the next regular look.
pub(super) async fn soon(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = tokio::time::Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < Duration::from_secs(3), "{what}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_packet_filter_of_a_network_follows_the_routers_legs_at_once() {
    let lab = Lab::new().await;
    let routed = Routed::new(&lab);
    let [inside, _, router] = routed.with_networks(&lab).await;
    let without = filter(&lab, routed.inside).await;
    assert!(!without.is_empty());
    lab.send(&router).await;
    soon("the leg that comes", async || {
        filter(&lab, routed.inside).await != without
    })
    .await;
    let with = filter(&lab, routed.inside).await;
    lab.wait_status(&router, ConvergeStatus::Converged).await;
    lab.wait_status(&inside, ConvergeStatus::Converged).await;

    let moved = routed.document(2, |spec| {
        spec.interfaces[0].mac_address = "52:54:00:00:00:03".parse().unwrap();
    });
    lab.send(&moved).await;
    soon("another Ethernet address", async || {
        ![&with, &without].contains(&&filter(&lab, routed.inside).await)
    })
    .await;
    // Of a leg that goes only the old document tells.
    lab.send(&routed.document(3, |spec| {
        spec.interfaces.clear();
        spec.floating_ips.clear();
    }))
    .await;
    soon("the leg that goes", async || {
        filter(&lab, routed.inside).await == without
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_is_made_anew_gets_the_legs_of_its_routers_back_at_once() {
    let lab = Lab::new().await;
    let routed = Routed::new(&lab);
    let all = routed.all();
    for document in &all {
        lab.send(document).await;
    }
    for document in &all {
        lab.wait_status(document, ConvergeStatus::Converged).await;
    }
    for leg in [
        Leg::inside(routed.router, routed.inside),
        Leg::outside(routed.router, routed.outside),
    ] {
        let has_leg = async || {
            let observed = Net::observe(&lab.host, leg.network).await.unwrap();
            observed.bridge.is_some() && observed.members.contains(&leg.host_end().name())
        };
        assert!(has_leg().await);
        let step = NetStep::DeleteBridge(leg.network);
        Net::apply(&lab.host, &step).await.unwrap();
        assert!(!has_leg().await);
        // Only the network is looked at for this.
        let mut network = routed.network(leg.network);
        if let Document::Network(wish) = &mut network {
            wish.generation = Generation(2);
        }
        lab.send(&network).await;
        soon("its leg", has_leg).await;
    }
}

/// Whom the leg in the inside network was told of.
fn known(lab: &Lab, routed: &Routed) -> Option<Neighbours> {
    let leg = Leg::inside(routed.router, routed.inside).namespace_end();
    let observed = lab.host.router(routed.router);
    observed.link(leg).map(|found| found.neighbours.clone())
}

fn neighbours(of: &[(&str, u8)]) -> Option<Neighbours> {
    let entries = of.iter().map(|(address, mac)| {
        let mac = [0x52, 0x54, 0, 0, 1, *mac];
        (address.parse().unwrap(), mac)
    });
    Some(entries.collect())
}

#[tokio::test(start_paused = true)]
async fn a_router_knows_at_once_who_comes_to_other_hosts_and_who_leaves_them() {
    let lab = Lab::new().await;
    let routed = Routed::new(&lab);
    let all = routed.all();
    for document in &all {
        lab.send(document).await;
    }
    for document in &all {
        lab.wait_status(document, ConvergeStatus::Converged).await;
    }
    assert_eq!(known(&lab, &routed), neighbours(&[]));
    // Only documents of the network come; one is late and one comes twice.
    for (generation, remote) in [
        (2, &[("10.0.0.7", 7)][..]),
        (3, &[("10.0.0.7", 7), ("10.0.0.8", 8)]),
        (4, &[("10.0.0.8", 9)]),
        (5, &[]),
        (6, &[("10.0.0.8", 9)]),
    ] {
        let document = routed.network_with(routed.inside, generation, remote);
        lab.send(&document).await;
        lab.send(&document).await;
        lab.send(&routed.network_with(routed.inside, 1, &[("10.0.0.99", 99)]))
            .await;
        soon("who is elsewhere", async || {
            known(&lab, &routed) == neighbours(remote)
        })
        .await;
    }
    // The network goes, and with it all that it told.
    lab.send(&routed.document(2, |spec| {
        spec.interfaces.clear();
        spec.floating_ips.clear();
    }))
    .await;
    soon("the leg's end", async || known(&lab, &routed).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_ports_move_between_hosts_is_made_good() {
    let stages: [&[(&str, u8)]; 4] = [
        &[("10.0.0.7", 7), ("10.0.0.8", 8)],
        // One came here, and another one has a new Ethernet address.
        &[("10.0.0.8", 9)],
        &[("10.0.0.7", 7), ("10.0.0.8", 9)],
        &[],
    ];
    for steps in 0.. {
        let mut lab = Lab::new().await;
        let routed = Routed::new(&lab);
        lab.host.crash_after(steps);
        let mut crashed = false;
        let others = [routed.network(routed.outside), routed.document(1, |_| {})];
        for (generation, remote) in (1..).zip(stages) {
            let inside = routed.network_with(routed.inside, generation, remote);
            let documents = [&others[..], &[inside]].concat();
            for document in &documents {
                lab.send(document).await;
            }
            let done = || known(&lab, &routed) == neighbours(remote);
            lab.wait_until("the crash or the end", || lab.host.is_crashed() || done())
                .await;
            if lab.host.is_crashed() {
                crashed = true;
                lab.restart().await;
                for document in &documents {
                    lab.send(document).await;
                }
            }
            for document in &documents {
                lab.wait_status(document, ConvergeStatus::Converged).await;
            }
            lab.wait_until("who is elsewhere", || {
                known(&lab, &routed) == neighbours(remote)
            })
            .await;
        }
        lab.kill().await;
        if !crashed {
            assert!(steps > 30, "{steps}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_leg_is_in_a_bridge_whose_packet_filter_does_not_know_it_whatever_fails() {
    for steps in 0..16 {
        let lab = Lab::new().await;
        let routed = Routed::new(&lab);
        let [inside, _, router] = routed.with_networks(&lab).await;
        let without = filter(&lab, routed.inside).await;
        lab.host.fail_after(steps);
        lab.send(&router).await;
        lab.wait_status(&router, ConvergeStatus::Converged).await;
        assert_eq!(lab.host.unfiltered_legs(), [], "after {steps}");
        lab.host.fail_after(steps);
        let change = routed.document(2, |spec| {
            spec.floating_ips.clear();
            spec.interfaces.clear();
        });
        lab.send(&change).await;
        lab.wait_status(&change, ConvergeStatus::Converged).await;
        lab.wait_status(&inside, ConvergeStatus::Converged).await;
        assert_eq!(lab.host.unfiltered_legs(), [], "after {steps}, away");
        // The filter forgets it once it is gone.
        soon("the leg that went", async || {
            filter(&lab, routed.inside).await == without
        })
        .await;
    }
}
