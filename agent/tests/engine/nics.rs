//! Ports that come and go while their instance runs, through the whole agent: the guest is never started anew for it, and the
//! network says that a port is gone only when its tap is.

use berth_agent::{act::Net, decide::names};
use berth_common::document::{BandwidthLimit, MirrorDirection, MirrorTarget, PortLink, PortMirror};

use super::*;

/// A port beside the first one.
fn port(wish: &Wish, id: PortId) -> InstancePort {
    InstancePort {
        id,
        network_id: wish.network,
        mac_address: MacAddress::derived(id.as_uuid().as_bytes()),
        fixed_ips: Vec::new(),
        mtu: 1500,
        link: PortLink::Up,
    }
}

/// The network and the instance with these ports.
fn with_ports(wish: &Wish, generation: u64, ports: &[InstancePort]) -> [Document; 2] {
    let ids: Vec<PortId> = ports.iter().map(|port| port.id).collect();
    [
        wish.network(generation, &ids),
        wish.instance(generation, |spec| spec.ports = ports.to_vec()),
    ]
}

fn live(lab: &Lab, wish: &Wish) -> Vec<(String, PortLink)> {
    let domain = lab.host.domain(wish.instance.as_uuid()).unwrap();
    let nics = domain.nics.live.into_iter();
    nics.map(|nic| (nic.tap, nic.link)).collect()
}

fn expected(ports: &[InstancePort]) -> Vec<(String, PortLink)> {
    let ports = ports.iter();
    ports.map(|port| (names::tap(port.id), port.link)).collect()
}

async fn send_all(lab: &Lab, documents: &[Document]) {
    for document in documents {
        lab.send(document).await;
    }
}

async fn settled(lab: &Lab, documents: &[Document]) {
    for document in documents {
        lab.wait_status(document, ConvergeStatus::Converged).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_guest_gets_a_port_loses_its_cable_and_gives_it_back() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let first = port(&wish, wish.port);
    let mut second = port(&wish, PortId::new());
    let both = [first.clone(), second.clone()];
    let documents = with_ports(&wish, 2, &both);
    // The instance first: it waits for its port in the network.
    lab.send(&documents[1]).await;
    let waits = |report: &ResourceReport| {
        let progress = report.progress.as_deref();
        progress.is_some_and(|text| text.contains("waiting for network"))
    };
    lab.wait(documents[1].key(), "waiting for its network", waits)
        .await;
    assert_eq!(live(&lab, &wish), expected(&both[..1]));
    lab.send(&documents[0]).await;
    settled(&lab, &documents).await;
    assert_eq!(live(&lab, &wish), expected(&both));
    let told = lab.newest(documents[1].key()).unwrap().ports;
    assert_eq!(told, Some(vec![first.id, second.id]));

    second.link = PortLink::Down;
    let pulled = [first.clone(), second.clone()];
    let documents = with_ports(&wish, 3, &pulled);
    send_all(&lab, &documents).await;
    settled(&lab, &documents).await;
    assert_eq!(live(&lab, &wish), expected(&pulled));

    let documents = with_ports(&wish, 4, std::slice::from_ref(&first));
    send_all(&lab, &documents).await;
    settled(&lab, &documents).await;
    assert_eq!(live(&lab, &wish), expected(std::slice::from_ref(&first)));
    let told = lab.newest(documents[1].key()).unwrap().ports;
    assert_eq!(told, Some(vec![first.id]));
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_port_is_not_gone_before_the_guest_gave_it_back_or_is_off() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let both = [port(&wish, wish.port), port(&wish, PortId::new())];
    let documents = with_ports(&wish, 2, &both);
    send_all(&lab, &documents).await;
    settled(&lab, &documents).await;
    lab.host.set_guest(wish.instance, Guest::IgnoresAcpi);
    let [network, instance] = with_ports(&wish, 3, &both[..1]);
    lab.send(&network).await;
    lab.send(&instance).await;
    let told = |report: &ResourceReport, part: &str| {
        let progress = report.progress.as_deref();
        progress.is_some_and(|text| text.contains(part))
    };
    lab.wait(instance.key(), "waiting for its guest", |report| {
        told(report, "give back the NIC")
    })
    .await;
    let tap = names::tap(both[1].id);
    lab.wait(network.key(), "waiting for the tap", |report| {
        told(report, &tap)
    })
    .await;
    // It is asked again and again, and that it does not answer becomes a fault.
    let report = lab.wait_status(&instance, ConvergeStatus::Failed).await;
    let fault = report.fault.unwrap();
    assert_eq!(fault.code, FaultCode::Hypervisor);
    assert!(
        fault.message.contains(&both[1].id.to_string()),
        "{}",
        fault.message
    );
    assert_eq!(report.ports, Some(vec![both[0].id, both[1].id]));
    // Others get into the network all the same.
    let other = Wish {
        network: wish.network,
        subnet: wish.subnet,
        ..Wish::new(&lab)
    };
    let widened = wish.network(4, &[both[0].id, other.port]);
    let started = other.instance(1, |_| {});
    lab.send(&widened).await;
    lab.send(&started).await;
    lab.wait_status(&started, ConvergeStatus::Converged).await;
    // At last it listens.
    lab.host.set_guest(wish.instance, Guest::Obeys);
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    lab.wait_status(&widened, ConvergeStatus::Converged).await;
    assert_eq!(live(&lab, &wish), expected(&both[..1]));
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

#[tokio::test(start_paused = true)]
async fn ports_of_a_guest_that_sleeps_change_when_it_goes_on() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let both = [port(&wish, wish.port), port(&wish, PortId::new())];
    let sleeping = wish.instance(2, |spec| spec.power = DesiredPower::Suspended);
    lab.send(&sleeping).await;
    lab.wait_status(&sleeping, ConvergeStatus::Converged).await;
    let [network, mut instance] = with_ports(&wish, 3, &both);
    if let Document::Instance(desired) = &mut instance {
        desired.spec.as_mut().unwrap().power = DesiredPower::Suspended;
    }
    lab.send(&network).await;
    lab.send(&instance).await;
    let waits = |report: &ResourceReport| {
        let progress = report.progress.as_deref();
        progress.is_some_and(|text| text.contains("when its guest goes on"))
    };
    lab.wait(instance.key(), "waiting for its guest", waits)
        .await;
    let awake = wish.instance(4, |spec| spec.ports = both.to_vec());
    lab.send(&awake).await;
    lab.wait_status(&awake, ConvergeStatus::Converged).await;
    assert_eq!(live(&lab, &wish), expected(&both));
    assert_eq!(lab.host.lives(wish.instance).starts, 1);
}

/// The network with a limit on what the first port's guest sends, and copies of all its packets.
fn limited(wish: &Wish, generation: u64) -> Document {
    let mut network = wish.network(generation, &[wish.port]);
    if let Document::Network(desired) = &mut network {
        let port = &mut desired.spec.as_mut().unwrap().ports[0];
        port.qos.egress = Some(BandwidthLimit {
            max_kbps: 1000,
            max_burst_kbps: 0,
        });
        port.mirrors = vec![PortMirror {
            direction: MirrorDirection::Both,
            to: MirrorTarget::Interface("eth0".parse().unwrap()),
        }];
    }
    network
}

async fn is_limited(lab: &Lab, wish: &Wish) -> bool {
    let observed = Net::observe(&lab.host, wish.network).await.unwrap();
    let tap = observed.tc.taps.get(&names::tap(wish.port));
    tap.is_some_and(|tap| tap.actions.len() == 2) && observed.tc.ifbs.len() == 1
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_started_again_has_its_limit_at_once() {
    let lab = Lab::new().await;
    let (wish, ..) = running(&lab).await;
    let network = limited(&wish, 2);
    lab.send(&network).await;
    lab.wait_status(&network, ConvergeStatus::Converged).await;
    assert!(is_limited(&lab, &wish).await);
    let reboot = wish.instance(2, |spec| {
        spec.reboot = Some(Reboot {
            nonce: Nonce::new(),
            kind: RebootKind::Hard,
        });
    });
    lab.send(&reboot).await;
    lab.wait_status(&reboot, ConvergeStatus::Converged).await;
    // Sooner than the next regular look.
    let start = tokio::time::Instant::now();
    while !is_limited(&lab, &wish).await {
        assert!(start.elapsed() < Duration::from_secs(3));
        sleep(Duration::from_millis(50)).await;
    }
    // Powered off, it needs nothing.
    let off = wish.instance(3, stopped);
    lab.send(&off).await;
    lab.wait_status(&off, ConvergeStatus::Converged).await;
    let start = tokio::time::Instant::now();
    loop {
        let observed = Net::observe(&lab.host, wish.network).await.unwrap();
        if observed.tc.ifbs.is_empty() {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{:?}",
            observed.tc
        );
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn copies_that_have_nowhere_to_go_keep_no_guest_from_starting() {
    let lab = Lab::new().await;
    let wish = Wish::new(&lab);
    let mut network = limited(&wish, 1);
    if let Document::Network(desired) = &mut network {
        let port = &mut desired.spec.as_mut().unwrap().ports[0];
        port.mirrors[0].to = MirrorTarget::Interface("eth9".parse().unwrap());
    }
    let instance = wish.instance(1, |_| {});
    lab.send(&network).await;
    lab.send(&instance).await;
    lab.wait_status(&instance, ConvergeStatus::Converged).await;
    let report = lab.wait_status(&network, ConvergeStatus::Failed).await;
    assert!(report.fault.unwrap().message.contains("eth9"));
    // Started anew, it still gets into its network.
    let reboot = wish.instance(2, |spec| {
        spec.reboot = Some(Reboot {
            nonce: Nonce::new(),
            kind: RebootKind::Hard,
        });
    });
    lab.send(&reboot).await;
    lab.wait_status(&reboot, ConvergeStatus::Converged).await;
    assert_eq!(lab.host.lives(wish.instance).starts, 2);
    // Whoever puts the link right is seen.
    let right = limited(&wish, 2);
    lab.send(&right).await;
    lab.wait_status(&right, ConvergeStatus::Converged).await;
}
