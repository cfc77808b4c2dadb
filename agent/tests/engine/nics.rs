//! Ports that come and go while their instance runs, through the whole agent: whatever step fails and whatever step the agent dies
//! after, the guest ends with the NICs of its document, is never started anew for it, and the network says that a port is gone
//! only when its tap is.

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

/// What becomes of a step.
#[derive(Debug, Clone, Copy)]
enum Disturb {
    Fail,
    Crash,
}

/// Disturbs every step of a change of an instance's ports.
async fn law(before: &[(usize, u8, PortLink)], after: &[(usize, u8, PortLink)]) {
    for disturb in [Disturb::Fail, Disturb::Crash] {
        for steps in 0.. {
            let mut lab = Lab::new().await;
            let (wish, ..) = running(&lab).await;
            let ids = [wish.port, PortId::new(), PortId::new()];
            let make = |(index, mac, link): &(usize, u8, PortLink)| {
                let id = ids[*index];
                let mut address = id.as_uuid().as_bytes().to_vec();
                address.extend((*mac > 0).then_some(*mac));
                InstancePort {
                    mac_address: MacAddress::derived(&address),
                    link: *link,
                    ..port(&wish, id)
                }
            };
            let chosen: [Vec<InstancePort>; 2] =
                [before, after].map(|ports| ports.iter().map(make).collect());
            let first = with_ports(&wish, 2, &chosen[0]);
            send_all(&lab, &first).await;
            settled(&lab, &first).await;
            let done = lab.host.steps_done();
            match disturb {
                Disturb::Fail => lab.host.fail_after(steps),
                Disturb::Crash => lab.host.crash_after(steps),
            }
            let second = with_ports(&wish, 3, &chosen[1]);
            send_all(&lab, &second).await;
            send_all(&lab, &second).await;
            let is_settled = || {
                second.iter().all(|document| {
                    lab.newest(document.key()).is_some_and(|report| {
                        report.generation == document.generation()
                            && report.status == ConvergeStatus::Converged
                    })
                })
            };
            lab.wait_until("the crash or the end", || {
                lab.host.is_crashed() || is_settled()
            })
            .await;
            let untouched = lab.host.steps_done() - done <= steps && !lab.host.is_crashed();
            lab.restart().await;
            send_all(&lab, &second).await;
            settled(&lab, &second).await;
            let sorted = |mut nics: Vec<_>| {
                nics.sort();
                nics
            };
            let domain = lab.host.domain(wish.instance.as_uuid()).unwrap();
            let wanted: Vec<_> = chosen[1]
                .iter()
                .map(|port| {
                    (
                        names::tap(port.id),
                        port.mac_address,
                        port.link == PortLink::Down,
                    )
                })
                .collect();
            for nics in [&domain.nics.live, &domain.nics.kept] {
                let found = nics
                    .iter()
                    .map(|nic| (nic.tap.clone(), nic.mac_address, nic.link == PortLink::Down))
                    .collect();
                assert_eq!(
                    sorted(found),
                    sorted(wanted.clone()),
                    "{disturb:?} at step {steps}"
                );
            }
            assert_eq!(lab.host.lives(wish.instance).starts, 1);
            lab.kill().await;
            if untouched {
                assert!(steps > 0, "nothing was ever disturbed");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ports_come_and_go_whatever_goes_wrong() {
    use PortLink::{Down, Up};
    law(&[(0, 0, Up)], &[(0, 0, Up), (1, 0, Up), (2, 0, Down)]).await;
    law(&[(0, 0, Up), (1, 0, Up), (2, 0, Up)], &[(1, 0, Up)]).await;
    law(&[(0, 0, Up), (1, 0, Up)], &[]).await;
    // The same port with another address, and a cable that is pulled meanwhile.
    law(&[(0, 0, Up), (1, 0, Up)], &[(1, 1, Up), (0, 0, Down)]).await;
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
async fn nothing_is_left_of_limits_whatever_step_the_agent_is_killed_at() {
    killed_at_every_step(async |lab| {
        let (wish, ..) = running(lab).await;
        let network = limited(&wish, 2);
        lab.send(&network).await;
        lab.wait_status(&network, ConvergeStatus::Converged).await;
        assert!(is_limited(lab, &wish).await);
        let documents = vec![network.tombstone(), wish.instance(1, |_| {}).tombstone()];
        (wish, documents, ConvergeStatus::Gone)
    })
    .await;
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
