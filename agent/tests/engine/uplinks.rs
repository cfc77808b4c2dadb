//! Networks of every type through the whole agent: whatever step the agent dies after, whatever type they were before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_agent::decide::network::uplink::{
    Carrier, Feature, FlatAddressPolicy, HostUplinks, Nic, NicFound, Tunnel,
};
use berth_common::document::RemotePort;

use super::{routers::soon, *};

const TYPES: [NetworkType; 5] = [
    NetworkType::Local,
    NetworkType::Nat,
    NetworkType::Flat,
    NetworkType::Vlan,
    NetworkType::Vxlan,
];

/// A host whose only NIC of a physical network is also the one it is reached by.
fn uplinks() -> HostUplinks {
    let nic = Nic {
        name: "eth1".parse().unwrap(),
        found: Some(NicFound {
            mac: Some([0x52, 0x54, 0, 1, 1, 1]),
            mtu: 1600,
            up: true,
            master: None,
            addresses: BTreeSet::from(["192.0.2.1/24".parse().unwrap()]),
        }),
    };
    HostUplinks {
        nics: BTreeMap::from([("physnet1".parse().unwrap(), nic)]),
        tunnel: Some(Tunnel {
            local: "192.0.2.1".parse().unwrap(),
            port: 4789,
            carrier: Some(Carrier {
                name: "eth1".to_owned(),
                mtu: 1600,
            }),
        }),
        flat_addresses: FlatAddressPolicy::Move,
        ..HostUplinks::default()
    }
}

fn of_type(wish: &Wish, generation: u64, network_type: NetworkType) -> Document {
    let Document::Network(mut document) = wish.network(generation, &[wish.port]) else {
        panic!("a network's document is one");
    };
    let spec = document.spec.as_mut().unwrap();
    spec.network_type = network_type;
    spec.physical_network = Some("physnet1".parse().unwrap());
    spec.segmentation_id = Some(100);
    spec.subnets[0].gateway_ip = Some("10.0.0.1".parse().unwrap());
    spec.remote_ports = vec![RemotePort {
        mac_address: "52:54:00:00:01:01".parse().unwrap(),
        hostname: "far".parse().unwrap(),
        ip_addresses: Vec::new(),
        tunnel_ip: Some("192.0.2.2".parse().unwrap()),
    }];
    Document::Network(document)
}

async fn lab() -> Lab {
    let lab = Lab::new().await;
    lab.host.have_uplinks(uplinks());
    lab
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_step_of_building_or_removing_an_uplink_leaves_nothing_behind() {
    for network_type in TYPES {
        for steps in 0.. {
            let mut lab = lab().await;
            let wish = Wish::new(&lab);
            let document = of_type(&wish, 1, network_type);
            lab.host.crash_after(steps);
            lab.send(&document).await;
            let done = |lab: &Lab| {
                lab.newest(document.key())
                    .is_some_and(|report| report.status == ConvergeStatus::Converged)
            };
            lab.wait_until("the crash or the end", || {
                lab.host.is_crashed() || done(&lab)
            })
            .await;
            let crashed = lab.host.is_crashed();
            lab.restart().await;
            lab.wait_status(&document, ConvergeStatus::Converged).await;
            lab.host.crash_after(steps);
            lab.send(&document.tombstone()).await;
            let gone = |lab: &Lab| {
                lab.newest(document.key())
                    .is_some_and(|report| report.status == ConvergeStatus::Gone)
            };
            lab.wait_until("the crash or the end", || {
                lab.host.is_crashed() || gone(&lab)
            })
            .await;
            let crashed = crashed || lab.host.is_crashed();
            lab.restart().await;
            lab.wait_status(&document.tombstone(), ConvergeStatus::Gone)
                .await;
            assert_eq!(
                lab.host.uplinks(),
                uplinks(),
                "{network_type:?}, {steps} steps"
            );
            assert_eq!(lab.host.open_tunnels(), [], "{steps} steps");
            if !crashed {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_becomes_one_of_any_other_type() {
    let lab = lab().await;
    let wish = Wish::new(&lab);
    let mut generation = 0;
    for before in TYPES {
        for after in TYPES {
            for network_type in [before, after] {
                generation += 1;
                let document = of_type(&wish, generation, network_type);
                lab.send(&document).await;
                // Twice is no more than once.
                lab.send(&document).await;
                lab.wait_status(&document, ConvergeStatus::Converged).await;
            }
        }
    }
    let last = of_type(&wish, generation, NetworkType::Local).tombstone();
    lab.send(&last).await;
    lab.wait_status(&last, ConvergeStatus::Gone).await;
    assert_eq!(lab.host.uplinks(), uplinks());
    assert_eq!(lab.host.open_tunnels(), []);
}

/// A network with guests on these hosts; `None`: it is not told on which.
fn with_guests(wish: &Wish, generation: u64, kind: NetworkType, hosts: &[Option<u8>]) -> Document {
    let Document::Network(mut document) = of_type(wish, generation, kind) else {
        panic!("a network's document is one");
    };
    let spec = document.spec.as_mut().unwrap();
    // Each its own.
    let id = wish.network.as_uuid().as_u128() % 4094 + 1;
    spec.segmentation_id = u32::try_from(id).ok();
    let guests = (1..).zip(hosts).map(|(n, host): (u8, _)| RemotePort {
        mac_address: format!("52:54:00:00:01:{n:02x}").parse().unwrap(),
        hostname: "far".parse().unwrap(),
        ip_addresses: Vec::new(),
        tunnel_ip: host.map(|host| [192, 0, 2, host].into()),
    });
    spec.remote_ports = guests.collect();
    Document::Network(document)
}

#[tokio::test(start_paused = true)]
async fn who_may_send_into_a_vxlan_follows_the_documents_at_once() {
    let lab = lab().await;
    let [wide, beside] = [Wish::new(&lab), Wish::new(&lab)];
    let may_send = async |what: &str, hosts: Option<&[u8]>| {
        let wanted = hosts.map(|hosts| hosts.iter().map(|host| [192, 0, 2, *host].into()));
        let wanted: Option<BTreeSet<IpAddr>> = wanted.map(Iterator::collect);
        soon(what, async || lab.host.senders(wide.network) == wanted).await;
    };
    let vxlan = NetworkType::Vxlan;
    let first = with_guests(&wide, 1, vxlan, &[Some(2), Some(2), None]);
    lab.send(&first).await;
    lab.wait_status(&first, ConvergeStatus::Converged).await;
    may_send("one host has guests in it", Some(&[2])).await;
    lab.send(&with_guests(&wide, 2, vxlan, &[Some(2), Some(3)]))
        .await;
    may_send("and another one", Some(&[2, 3])).await;
    lab.send(&with_guests(&wide, 3, vxlan, &[Some(3)])).await;
    may_send("the first has none any more", Some(&[3])).await;

    // A network beside it counts as soon as a router joins the two.
    lab.send(&with_guests(&beside, 1, NetworkType::Vlan, &[Some(4)]))
        .await;
    may_send("it is another network", Some(&[3])).await;
    let Document::Router(mut router) = router_in(&wide, lab.host_id) else {
        panic!("a router's document is one");
    };
    let spec = router.spec.as_mut().unwrap();
    let mut leg = spec.interfaces[0].clone();
    leg.network_id = beside.network;
    spec.interfaces.push(leg);
    lab.send(&Document::Router(router.clone())).await;
    may_send("a router joins them", Some(&[3, 4])).await;
    for (generation, hosts, may) in [
        (2, &[Some(4), Some(5)][..], Some(&[3, 4, 5][..])),
        // A scheduler of before does not tell it of such networks.
        (3, &[None, None], None),
        // One that tells it of some: the others are on no VXLAN.
        (4, &[Some(4), None], Some(&[3, 4])),
        (5, &[Some(5)], Some(&[3, 5])),
    ] {
        let document = with_guests(&beside, generation, NetworkType::Vlan, hosts);
        lab.send(&document).await;
        may_send("only the document of the other network came", may).await;
    }
    // Nobody sends into it from a network that ends at its host.
    lab.send(&with_guests(&beside, 6, NetworkType::Nat, &[Some(5)]))
        .await;
    may_send("the other one ends at its host", Some(&[3])).await;
    lab.send(&with_guests(&beside, 7, vxlan, &[Some(6)])).await;
    may_send("the other one is a VXLAN too", Some(&[3, 6])).await;
    lab.send(&Document::Router(router).tombstone()).await;
    may_send("no router joins them", Some(&[3])).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_lacks_is_a_fault_until_it_is_there() {
    let lab = lab().await;
    for (feature, network_type) in [
        (Feature::Vlan, NetworkType::Vlan),
        (Feature::Vxlan, NetworkType::Vxlan),
        (Feature::Nat, NetworkType::Nat),
    ] {
        let what_helps = format!("what helps {feature:?}");
        let lacking = HostUplinks {
            lacks: BTreeMap::from([(feature, what_helps.clone())]),
            ..uplinks()
        };
        lab.host.have_uplinks(lacking);
        let wish = Wish::new(&lab);
        let document = of_type(&wish, 1, network_type);
        lab.send(&document).await;
        let report = lab.wait_status(&document, ConvergeStatus::Failed).await;
        let fault = report.fault.unwrap();
        assert_eq!(fault.code, FaultCode::Unsupported, "{feature:?}");
        assert!(fault.message.contains(&what_helps), "{fault:?}");
        lab.host.have_uplinks(uplinks());
        lab.wait_status(&document, ConvergeStatus::Converged).await;
        let last = document.tombstone();
        lab.send(&last).await;
        lab.wait_status(&last, ConvergeStatus::Gone).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_networks_share_no_nic_no_segment_and_no_translated_addresses() {
    for (network_type, word) in [
        (NetworkType::Flat, "eth1 is in"),
        (NetworkType::Vlan, "VLAN 100"),
        (NetworkType::Vxlan, "VNI 100"),
        (NetworkType::Nat, "overlaps"),
    ] {
        let lab = lab().await;
        let [first, second] = [Wish::new(&lab), Wish::new(&lab)];
        let documents = [&first, &second].map(|wish| of_type(wish, 1, network_type));
        lab.send(&documents[0]).await;
        lab.wait_status(&documents[0], ConvergeStatus::Converged)
            .await;
        lab.send(&documents[1]).await;
        let report = lab.wait_status(&documents[1], ConvergeStatus::Failed).await;
        let message = report.fault.unwrap().message;
        assert!(message.contains(word), "{message}");
        // Once the first is gone the second gets it.
        lab.send(&documents[0].tombstone()).await;
        lab.wait_status(&documents[0].tombstone(), ConvergeStatus::Gone)
            .await;
        lab.wait_status(&documents[1], ConvergeStatus::Converged)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn switches_are_told_of_ports_that_routers_send_to_again_and_again() {
    for network_type in TYPES {
        let lab = lab().await;
        let wish = Wish::new(&lab);
        let network = of_type(&wish, 1, network_type);
        let instance = wish.instance(1, |_| {});
        for document in [&network, &instance] {
            lab.send(document).await;
        }
        for document in [&network, &instance] {
            lab.wait_status(document, ConvergeStatus::Converged).await;
        }
        sleep(Duration::from_secs(200)).await;
        assert_eq!(lab.host.heralds(), [], "without a router");
        lab.send(&router_in(&wish, lab.host_id)).await;
        sleep(Duration::from_secs(200)).await;
        let told = lab.host.heralds();
        if !matches!(network_type, NetworkType::Flat | NetworkType::Vlan) {
            assert_eq!(told, [], "{network_type:?}");
            continue;
        }
        assert!((3..=5).contains(&told.len()), "{network_type:?}: {told:?}");
        assert!(told.iter().all(|herald| *herald == told[0]));
        assert_eq!(told[0].ports.len(), 1);
        // A guest that is off is nowhere.
        let off = wish.instance(2, |spec| spec.power = DesiredPower::Stopped);
        lab.send(&off).await;
        lab.wait_status(&off, ConvergeStatus::Converged).await;
        sleep(Duration::from_secs(20)).await;
        let before = lab.host.heralds().len();
        sleep(Duration::from_secs(200)).await;
        assert_eq!(lab.host.heralds().len(), before);
    }
}

/// A router in the network.
fn router_in(wish: &Wish, host_id: HostId) -> Document {
    let leg = berth_common::document::RouterInterface {
        network_id: wish.network,
        subnet_id: SubnetId::new(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        ip_address: "10.0.0.1".parse().unwrap(),
        mac_address: "52:54:00:00:01:fe".parse().unwrap(),
        mtu: 1450,
        ipv6_address_mode: None,
    };
    Document::Router(Desired {
        id: RouterId::new(),
        generation: Generation(1),
        host_id,
        spec: Some(RouterSpec {
            name: "router".parse().unwrap(),
            project: "default".parse().unwrap(),
            interfaces: vec![leg],
            external_gateway: None,
            floating_ips: Vec::new(),
            routes: Vec::new(),
        }),
    })
}
