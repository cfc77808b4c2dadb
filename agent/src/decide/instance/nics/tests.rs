//! What a guest is given and gives back, in plans.

use std::time::Duration;

use berth_common::{
    document::{DesiredPower, Flavor, InstanceSpec, PortLink},
    ids::{InstanceId, NetworkId},
    names::MacAddress,
    units::{DiskGb, MemoryMb, Vcpus},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    super::{Asked, HostFacts, Paths, domain_config},
    *,
};
use crate::decide::{
    domain::{DomainDisks, DomainNics, VirtType},
    room::{HostSize, RoomToGrow},
};

const BASE: u128 = 0x0191_e7a0_7c1f_7b5e_9d2a_0000_0000_0000;

fn port_id(n: u8) -> PortId {
    PortId::try_from(Uuid::from_u128(BASE + u128::from(n))).unwrap()
}

fn network_id(n: u8) -> NetworkId {
    NetworkId::try_from(Uuid::from_u128(BASE + 0x100 + u128::from(n))).unwrap()
}

/// A port with its own network and address.
fn port(n: u8) -> InstancePort {
    InstancePort {
        id: port_id(n),
        network_id: network_id(n),
        mac_address: MacAddress::derived(port_id(n).as_uuid().as_bytes()),
        fixed_ips: Vec::new(),
        mtu: 1500,
        link: PortLink::Up,
    }
}

fn ports_of(ns: &[u8]) -> Vec<InstancePort> {
    ns.iter().copied().map(port).collect()
}

fn config(ports: &[InstancePort]) -> DomainConfig {
    let host = HostFacts {
        virt_type: VirtType::Qemu,
        arch: "x86_64".to_owned(),
        has_cpu_controller: false,
        size: HostSize {
            cpus: 16,
            memory_mb: MemoryMb::clamped(65_536),
        },
        room_to_grow: RoomToGrow::Given,
        paths: Paths::below(std::path::Path::new("/var/lib/berth")),
    };
    let spec = InstanceSpec {
        name: "web-1".parse().unwrap(),
        project: "default".parse().unwrap(),
        power: DesiredPower::Running,
        reboot: None,
        stop_timeout_seconds: 30,
        flavor: Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(128),
            disk_gb: DiskGb::clamped(1),
        },
        disks: Vec::new(),
        ports: ports.to_vec(),
        volumes: Vec::new(),
        config_drive: None,
        guest_data: None,
        rescue: None,
        on_crash: berth_common::document::OnCrash::default(),
    };
    domain_config(
        InstanceId::try_from(Uuid::from_u128(BASE)).unwrap(),
        &spec,
        &host,
    )
}

fn nic(port: &InstancePort) -> NicObserved {
    NicObserved {
        alias: Some(names::nic_alias(port.id)),
        mac_address: port.mac_address,
        bridge: names::bridge(port.network_id),
        tap: names::tap(port.id),
        mtu: Some(port.mtu),
        link: port.link,
    }
}

/// A guest in a state, with the NICs of these ports.
fn domain(state: PowerState, live: &[InstancePort]) -> DomainObserved {
    DomainObserved {
        uuid: Uuid::from_u128(BASE),
        name: String::new(),
        power_state: state,
        off_reason: (state == PowerState::Shutdown).then_some(OffReason::Unknown),
        leftover_memory: false,
        is_starting: false,
        is_halted: false,
        reason: String::new(),
        persistent: true,
        vcpus: Vcpus::clamped(1),
        memory_mb: MemoryMb::clamped(128),
        running: None,
        metadata: None,
        disks: DomainDisks::default(),
        nics: DomainNics {
            live: live.iter().map(nic).collect(),
            kept: Vec::new(),
        },
    }
}

fn ready(networks: &[u8]) -> Observed {
    Observed {
        networks_ready: networks.iter().copied().map(network_id).collect(),
        ..Observed::default()
    }
}

fn asked(first: u64, last: u64) -> Observed {
    Observed {
        nic_asked: Some(Asked {
            first: Duration::from_secs(first),
            last: Duration::from_secs(last),
        }),
        ..ready(&[1, 2, 3])
    }
}

fn word(step: &DomainStep) -> String {
    let number = |port: PortId| port.as_uuid().as_u128() - BASE;
    match step {
        DomainStep::AttachNic { nic, .. } => format!("attach {}", number(nic.port)),
        DomainStep::DetachNic { nic, .. } => format!("detach {}", number(nic.port().unwrap())),
        DomainStep::SetLink { nic, link, .. } => {
            format!("{link:?} {}", number(nic.port().unwrap()))
        }
        other => format!("{other:?}"),
    }
}

#[track_caller]
fn check(
    ports: &[InstancePort],
    domain: &DomainObserved,
    observed: &Observed,
    steps: &[&str],
    end: Option<End>,
) {
    let change = change(&config(ports), ports, domain, observed);
    let found: Vec<String> = change.steps.iter().map(word).collect();
    assert_eq!(found, steps);
    assert_eq!(change.end, end);
}

fn waits_for(ns: &[u8]) -> Option<End> {
    let names = ns.iter().map(|n| name(&nic(&port(*n)))).collect();
    Some(End::Wait(Wait::DetachNics(names)))
}

#[test]
fn a_guest_that_is_on_gets_a_port_once_its_network_is_ready() {
    for state in [PowerState::Running, PowerState::Paused] {
        let bare = domain(state, &ports_of(&[1]));
        let wanted = ports_of(&[1, 2, 3]);
        check(
            &wanted,
            &bare,
            &ready(&[1, 2, 3]),
            &["attach 2", "attach 3"],
            None,
        );
        let wait = Some(End::Wait(Wait::Network(network_id(2))));
        check(&wanted, &bare, &ready(&[1, 3]), &["attach 3"], wait);
        check(&wanted, &domain(state, &wanted), &ready(&[]), &[], None);
    }
}

#[test]
fn a_guest_is_asked_again_until_the_nic_is_gone_and_after_a_while_that_is_a_fault() {
    let on = domain(PowerState::Running, &ports_of(&[1, 2]));
    let wanted = ports_of(&[1]);
    let waits = || waits_for(&[2]);
    check(&wanted, &on, &ready(&[1]), &["detach 2"], waits());
    check(&wanted, &on, &asked(1, 1), &[], waits());
    check(&wanted, &on, &asked(9, 5), &["detach 2"], waits());
    let late = change(&config(&wanted), &wanted, &on, &asked(60, 5));
    assert_eq!(
        late.steps.iter().map(word).collect::<Vec<_>>(),
        ["detach 2"]
    );
    let Some(End::Stuck(fault)) = late.end else {
        panic!("it is no fault");
    };
    assert!(
        fault.message.contains(&port_id(2).to_string()) && fault.message.contains("60 s"),
        "{}",
        fault.message
    );
    // One that stands still cannot hear it.
    let paused = domain(PowerState::Paused, &ports_of(&[1, 2]));
    check(&wanted, &paused, &asked(600, 5), &["detach 2"], waits());
    let gone = domain(PowerState::Running, &wanted);
    check(&wanted, &gone, &asked(600, 5), &[], None);
}

#[test]
fn a_nic_with_another_address_has_to_go_first() {
    let on = domain(PowerState::Running, &ports_of(&[1]));
    let mut other = ports_of(&[1]);
    other[0].mac_address = MacAddress::derived(b"another one");
    check(&other, &on, &ready(&[1]), &["detach 1"], waits_for(&[1]));
    let none = domain(PowerState::Running, &[]);
    check(&other, &none, &ready(&[1]), &["attach 1"], None);
    // Another port with the address of one that is still there.
    let mut taker = ports_of(&[2]);
    taker[0].mac_address = port(1).mac_address;
    check(&taker, &on, &ready(&[2]), &["detach 1"], waits_for(&[1]));
}

#[test]
fn a_cable_is_plugged_and_pulled_and_another_mtu_waits_for_the_next_start() {
    let on = domain(PowerState::Running, &ports_of(&[1]));
    let mut wanted = ports_of(&[1]);
    wanted[0].mtu = 1400;
    check(&wanted, &on, &ready(&[1]), &[], None);
    wanted[0].link = PortLink::Down;
    check(&wanted, &on, &ready(&[]), &["Down 1"], None);
    let pulled = domain(PowerState::Paused, &wanted);
    check(&ports_of(&[1]), &pulled, &ready(&[]), &["Up 1"], None);
}

#[test]
fn a_guest_that_sleeps_keeps_what_it_has_and_one_that_is_off_has_nothing() {
    let wanted = ports_of(&[1]);
    let off = domain(PowerState::Shutdown, &[]);
    check(&wanted, &off, &ready(&[1]), &[], None);
    let mut saved = domain(PowerState::Shutdown, &wanted);
    saved.off_reason = Some(OffReason::Saved);
    for sleeping in [saved, domain(PowerState::Suspended, &wanted)] {
        check(&wanted, &sleeping, &ready(&[1]), &[], None);
        for other in [ports_of(&[]), ports_of(&[1, 2])] {
            let wait = Some(End::Wait(Wait::GuestGoesOn));
            check(&other, &sleeping, &ready(&[1, 2]), &[], wait);
        }
    }
}

#[test]
fn what_berth_did_not_plug_in_stays() {
    let mut on = domain(PowerState::Running, &[]);
    on.nics.live.push(NicObserved {
        alias: Some("net0".to_owned()),
        tap: "vnet7".to_owned(),
        bridge: "virbr0".to_owned(),
        ..nic(&port(9))
    });
    check(&[], &on, &ready(&[]), &[], None);
    assert_eq!(ports(&on, &[]), Some(Vec::new()));
}

#[test]
fn a_domain_tells_its_ports_if_its_nics_do() {
    let on = domain(PowerState::Running, &ports_of(&[1, 2]));
    assert_eq!(ports(&on, &[]), Some(vec![port_id(1), port_id(2)]));
    let mut old = on.clone();
    for nic in &mut old.nics.live {
        nic.alias = Some("net0".to_owned());
    }
    assert_eq!(
        ports(&old, &ports_of(&[2, 1])),
        Some(vec![port_id(1), port_id(2)])
    );
    assert_eq!(ports(&old, &ports_of(&[1])), None, "one cannot be told");
    let mut off = domain(PowerState::Shutdown, &[]);
    off.nics.kept = ports_of(&[3]).iter().map(nic).collect();
    assert_eq!(ports(&off, &[]), Some(vec![port_id(3)]));
}

#[test]
fn more_ports_than_a_guest_can_have_are_refused() {
    assert_eq!(too_many(&ports_of(&[1, 2, 3, 4, 5, 6, 7, 8])), None);
    let fault = too_many(&ports_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9])).unwrap();
    assert!(fault.message.contains("at most 8"), "{}", fault.message);
}

proptest! {
    /// Whatever a guest has, doing what the plan says again and again leads to the NICs of its definition, in no more rounds
    /// than it takes to ask once and to plug in.
    #[test]
    fn it_ends_with_the_nics_of_its_definition(
        had in proptest::collection::btree_map(0_u8..6, (0_u8..3, any::<bool>()), 0..5),
        wanted in proptest::collection::btree_map(0_u8..6, (0_u8..3, any::<bool>()), 0..5),
    ) {
        let make = |(n, (mac, down)): (&u8, &(u8, bool))| InstancePort {
            mac_address: MacAddress::derived(&[*n, *mac]),
            link: if *down { PortLink::Down } else { PortLink::Up },
            ..port(*n)
        };
        let had: Vec<InstancePort> = had.iter().map(make).collect();
        let wanted: Vec<InstancePort> = wanted.iter().map(make).collect();
        let config = config(&wanted);
        let mut now = domain(PowerState::Running, &had);
        for _ in 0..3 {
            for step in change(&config, &wanted, &now, &ready(&[0, 1, 2, 3, 4, 5])).steps {
                match step {
                    DomainStep::AttachNic { nic: new, .. } => {
                        prop_assert!(!now.nics.live.iter().any(|it| it.tap == new.tap || it.mac_address == new.mac_address));
                        now.nics.live.push(nic(wanted.iter().find(|it| it.id == new.port).unwrap()));
                    }
                    DomainStep::DetachNic { nic: old, .. } => now.nics.live.retain(|it| *it != old),
                    DomainStep::SetLink { nic: old, link, .. } => {
                        for it in now.nics.live.iter_mut().filter(|it| **it == old) {
                            it.link = link;
                        }
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
        let mut found: Vec<_> = now.nics.live.clone();
        let mut expected: Vec<_> = wanted.iter().map(nic).collect();
        found.sort_by(|a, b| a.tap.cmp(&b.tap));
        expected.sort_by(|a, b| a.tap.cmp(&b.tap));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(change(&config, &wanted, &now, &ready(&[])), Change::default());
    }
}
