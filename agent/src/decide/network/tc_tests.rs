//! Limits and copies, in plans: against a model of what is on the taps, from any state it can be in.

use berth_common::{
    document::{MirrorDirection, PortMirror, PortQos},
    ids::InstanceId,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const BASE: u128 = 0x0191_e7a0_7c1f_7b5e_9d2a_0000_0000_0000;
const MTU: u32 = 1500;

fn network() -> NetworkId {
    NetworkId::try_from(Uuid::from_u128(BASE + 0xff)).unwrap()
}

fn id(n: u8) -> PortId {
    PortId::try_from(Uuid::from_u128(BASE + u128::from(n))).unwrap()
}

fn port(n: u8) -> NetworkPort {
    NetworkPort {
        id: id(n),
        instance_id: InstanceId::try_from(Uuid::from_u128(BASE + 0x100 + u128::from(n))).unwrap(),
        mac_address: format!("52:54:00:00:00:{n:02x}").parse().unwrap(),
        hostname: "vm".parse().unwrap(),
        fixed_ips: Vec::new(),
        security: None,
        qos: PortQos::default(),
        mirrors: Vec::new(),
    }
}

fn limit(max_kbps: u32) -> Option<BandwidthLimit> {
    Some(BandwidthLimit {
        max_kbps,
        max_burst_kbps: 0,
    })
}

fn mirror(direction: MirrorDirection, to: MirrorTarget) -> PortMirror {
    PortMirror { direction, to }
}

fn to_link(name: &str) -> MirrorTarget {
    MirrorTarget::Interface(name.parse().unwrap())
}

/// A host with these taps in the network's bridge.
fn host(taps: &[u8]) -> NetworkObserved {
    let taps: BTreeMap<String, TapObserved> = taps
        .iter()
        .map(|n| (names::tap(id(*n)), TapObserved::default()))
        .collect();
    let mut links: BTreeSet<String> = taps.keys().cloned().collect();
    links.extend(["eth0", "eth1", "lo"].map(str::to_owned));
    NetworkObserved {
        tc: TcObserved {
            taps,
            links,
            ..TcObserved::default()
        },
        ..NetworkObserved::default()
    }
}

fn carry_out(observed: &mut NetworkObserved, steps: &[NetStep]) {
    for step in steps {
        super::super::imagine(observed, step);
    }
}

fn words(steps: &[NetStep]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn a_port_is_limited_and_copied_and_then_no_longer() {
    let mut wanted = port(1);
    wanted.qos = PortQos {
        egress: limit(8_000),
        ingress: limit(16_000),
    };
    wanted.mirrors = vec![
        mirror(MirrorDirection::Both, MirrorTarget::Port(id(2))),
        mirror(MirrorDirection::Egress, to_link("eth1")),
    ];
    let ports = [wanted, port(2)];
    let mut now = host(&[1, 2]);
    let (steps, complaints) = plan(network(), &ports, MTU, &now);
    assert_eq!(complaints, Complaints::default());
    let [tap, ifb, other] = [names::tap(id(1)), names::ifb(id(1)), names::tap(id(2))];
    assert_eq!(
        words(&steps),
        [
            format!("make ifb {ifb}"),
            format!("give ifb {ifb} its alias"),
            format!("limit {ifb} to 1000000 bytes/s, 100000 at once"),
            format!("switch ifb {ifb} on"),
            format!("limit {tap} to 2000000 bytes/s, 200000 at once"),
            format!("make the clsact qdisc of {tap}"),
            format!("set what is done with packets from {tap}"),
            format!("set what is done with packets to {tap}"),
        ]
    );
    carry_out(&mut now, &steps);
    let on_tap = &now.tc.taps[&tap];
    let copies = [&other, "eth1"].map(|link| Action::Copy(link.to_owned()));
    let mut sent = copies.to_vec();
    sent.push(Action::Through(ifb.clone()));
    assert_eq!(on_tap.actions[&Hook::Sent], sent);
    assert_eq!(on_tap.actions[&Hook::Received], copies[..1]);
    assert_eq!(plan(network(), &ports, MTU, &now).0, []);

    // The tap is another one, of a guest that was started again.
    let whole = now.clone();
    now.tc.taps.insert(tap.clone(), TapObserved::default());
    let again = plan(network(), &ports, MTU, &now).0;
    assert_eq!(words(&again), words(&steps)[4..]);
    // It is gone: nothing of it stays.
    now.tc.taps.remove(&tap);
    let gone = plan(network(), &ports, MTU, &now).0;
    assert_eq!(words(&gone), [format!("remove ifb {ifb}")]);

    let mut now = whole;
    let (steps, _) = plan(network(), &[port(1), port(2)], MTU, &now);
    assert_eq!(
        words(&steps),
        [
            format!("take the limit off {tap}"),
            format!("remove the clsact qdisc of {tap}"),
            format!("remove ifb {ifb}"),
        ]
    );
    carry_out(&mut now, &steps);
    assert_eq!(now, host(&[1, 2]));
}

#[test]
fn only_what_differs_is_written() {
    let mut wanted = port(1);
    wanted.qos.egress = limit(8_000);
    wanted.mirrors = vec![mirror(MirrorDirection::Ingress, to_link("eth0"))];
    let mut now = host(&[1]);
    let steps = plan(network(), &[wanted.clone()], MTU, &now).0;
    carry_out(&mut now, &steps);
    let [tap, ifb] = [names::tap(id(1)), names::ifb(id(1))];
    wanted.qos.egress = limit(4_000);
    assert_eq!(
        words(&plan(network(), &[wanted.clone()], MTU, &now).0),
        [format!("limit {ifb} to 500000 bytes/s, 50000 at once")]
    );
    wanted.qos.egress = limit(8_000);
    wanted.mirrors[0].to = to_link("eth1");
    assert_eq!(
        words(&plan(network(), &[wanted.clone()], MTU, &now).0),
        [format!("set what is done with packets to {tap}")]
    );
    // Somebody has something there as well: what is ours goes, and the rest stays.
    now.tc.taps.get_mut(&tap).unwrap().others = true;
    assert_eq!(
        words(&plan(network(), &[port(1)], MTU, &now).0),
        [
            format!("clear what is done with packets from {tap}"),
            format!("clear what is done with packets to {tap}"),
            format!("remove ifb {ifb}"),
        ]
    );
}

#[test]
fn a_port_without_a_tap_needs_nothing() {
    let mut wanted = port(1);
    wanted.qos.egress = limit(8_000);
    wanted.mirrors = vec![mirror(MirrorDirection::Both, to_link("nothing"))];
    let (steps, complaints) = plan(network(), &[wanted], MTU, &host(&[2]));
    assert_eq!((steps, complaints), (Vec::new(), Complaints::default()));
}

#[test]
fn a_burst_lets_a_packet_pass_and_the_kernels_numbers_tell_it() {
    let tiny = Shaper::of(limit(1).unwrap(), 9000);
    assert_eq!(tiny.rate, 125);
    assert!(tiny.burst > 9014);
    let stated = BandwidthLimit {
        max_kbps: 1000,
        max_burst_kbps: 800,
    };
    assert_eq!(
        Shaper::of(stated, MTU),
        Shaper {
            rate: 125_000,
            burst: 100_000
        }
    );
    for max_kbps in [1, 1000, 1_000_000, u32::MAX] {
        let shaper = Shaper::of(limit(max_kbps).unwrap(), MTU);
        assert!(u32::try_from(shaper.limit()).is_ok(), "{shaper:?}");
        assert_eq!(shaper.limit() - Shaper::queue(shaper.rate), shaper.burst);
    }
}

#[test]
fn copies_that_cannot_go_where_they_shall_are_told_and_the_rest_is_done() {
    let with = |mirrors: Vec<PortMirror>| NetworkPort { mirrors, ..port(1) };
    let told = |wanted: NetworkPort| {
        let mut wanted = [wanted, port(2)];
        wanted[0].qos.ingress = limit(1000);
        let (steps, complaints) = plan(network(), &wanted, MTU, &host(&[1]));
        assert!(words(&steps)[0].starts_with("limit "), "{steps:?}");
        complaints
    };
    let absent = told(with(vec![mirror(
        MirrorDirection::Both,
        MirrorTarget::Port(id(2)),
    )]));
    assert_eq!(
        absent.absent,
        [format!("{} of port {}", names::tap(id(2)), id(2))].into()
    );
    assert_eq!(absent.fault(), None);
    let own = names::tap(id(1));
    for (link, why) in [
        ("eth9", "has no such link"),
        ("lo", "packets of its own"),
        (own.as_str(), "berth's"),
    ] {
        let wrong = told(with(vec![mirror(MirrorDirection::Both, to_link(link))]));
        let fault = wrong.fault().unwrap();
        assert!(fault.message.contains(why), "{}", fault.message);
    }
    let itself = told(with(vec![mirror(
        MirrorDirection::Both,
        MirrorTarget::Port(id(1)),
    )]));
    assert!(itself.fault().unwrap().message.contains("come back"));
}

#[test]
fn copies_never_go_in_circles() {
    let next = |n: u8, to: u8| NetworkPort {
        mirrors: vec![mirror(MirrorDirection::Both, MirrorTarget::Port(id(to)))],
        ..port(n)
    };
    let circle = [next(1, 2), next(2, 3), next(3, 1), next(4, 1)];
    let nothing = Copies::new();
    assert_eq!(loops(&circle, &nothing), [id(1), id(2), id(3)].into());
    let line = [next(1, 2), next(2, 3), port(3)];
    assert_eq!(loops(&line, &nothing), BTreeSet::new());
    // Over a port of another network: whichever of the two is looked at sees it.
    let beyond = copies(&[next(3, 4), next(4, 2)]);
    assert_eq!(loops(&line[..2], &beyond), [id(2)].into());
    assert_eq!(
        loops(&[next(3, 4), next(4, 2)], &copies(&line)),
        [id(3), id(4)].into()
    );
}

#[test]
fn a_link_in_the_way_is_left_alone() {
    let mut wanted = port(1);
    wanted.qos.egress = limit(1000);
    let mut now = host(&[1]);
    now.tc.foreign.insert(names::ifb(id(1)));
    let (steps, complaints) = plan(network(), &[wanted], MTU, &now);
    assert_eq!(steps, []);
    assert!(complaints.fault().unwrap().message.contains("not berth's"));
}

#[test]
fn the_alias_of_an_ifb_tells_its_network() {
    let alias = ifb_alias(network(), id(1));
    assert_eq!(network_of_ifb(&alias), Some(network()));
    for other in ["", "berth qos", &alias.replace("qos", "port"), "x of y"] {
        assert_eq!(network_of_ifb(other), None, "{other}");
    }
}

prop_compose! {
    /// A port with any limits and any mirrors, also impossible ones.
    fn any_port(n: u8)(
        egress in prop::option::of(1_u32..3),
        ingress in prop::option::of(1_u32..3),
        mirrors in prop::collection::vec((0_u8..3, 0_u8..6), 0..3),
    ) -> NetworkPort {
        let mirrors = mirrors.into_iter().map(|(direction, to)| mirror(
            [MirrorDirection::Ingress, MirrorDirection::Egress, MirrorDirection::Both][usize::from(direction)],
            match to {
                0..4 => MirrorTarget::Port(id(to)),
                4 => to_link("eth0"),
                _ => to_link("eth9"),
            },
        ));
        NetworkPort {
            qos: PortQos { egress: egress.and_then(|it| limit(it * 1000)), ingress: ingress.and_then(|it| limit(it * 1000)) },
            mirrors: mirrors.collect(),
            ..port(n)
        }
    }
}

fn any_ports() -> impl Strategy<Value = Vec<NetworkPort>> {
    prop::sample::subsequence(vec![0_u8, 1, 2, 3], 0..=4)
        .prop_flat_map(|ns| ns.into_iter().map(any_port).collect::<Vec<_>>())
}

proptest! {
    /// From whatever another document left, broken off anywhere and with taps that came and went since, one plan leads to what a
    /// fresh host would have, and then nothing is left to do; without taps, nothing is left at all.
    #[test]
    fn a_plan_broken_off_anywhere_is_made_good_by_the_next(
        before in any_ports(),
        after in any_ports(),
        taps in prop::sample::subsequence(vec![0_u8, 1, 2, 3], 0..=4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut now = host(&[0, 1, 2, 3]);
        let steps = plan(network(), &before, MTU, &now).0;
        carry_out(&mut now, &steps[..cut.index(steps.len() + 1)]);
        let mut fresh = host(&taps);
        now.tc.links.clone_from(&fresh.tc.links);
        now.tc.taps.retain(|tap, _| fresh.tc.taps.contains_key(tap));
        let steps = plan(network(), &after, MTU, &now).0;
        carry_out(&mut now, &steps);
        prop_assert_eq!(&plan(network(), &after, MTU, &now).0, &Vec::new());
        let steps = plan(network(), &after, MTU, &fresh).0;
        carry_out(&mut fresh, &steps);
        prop_assert_eq!(&now.tc, &fresh.tc);
        // Whatever a packet goes through has a limit and is on.
        for tap in now.tc.taps.values() {
            for action in tap.actions.values().flatten() {
                if let Action::Through(ifb) = action {
                    prop_assert!(now.tc.ifbs[ifb].up && now.tc.ifbs[ifb].shaper.is_some());
                }
            }
        }
        let steps = remove(network(), &now);
        carry_out(&mut now, &steps);
        prop_assert!(now.tc.ifbs.is_empty());
    }
}
