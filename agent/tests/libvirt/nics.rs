//! NICs that a running guest is given and gives back, with a real QEMU: the guest sees them, packets pass, and a cable can be
//! pulled.

use berth_agent::decide::domain::NicObserved;
use serde_json::json;

use super::{shell::Shell, *};

fn nic(hypervisor: &Hypervisor, mtu: u16) -> DomainNic {
    let (network, port) = (NetworkId::new(), PortId::new());
    hypervisor.add_bridge(&names::bridge(network));
    DomainNic {
        port,
        mac_address: MacAddress::derived(port.as_uuid().as_bytes()),
        bridge: names::bridge(network),
        tap: names::tap(port),
        mtu,
        link: PortLink::Up,
    }
}

fn attach(config: &DomainConfig, nic: &DomainNic) -> DomainStep {
    DomainStep::AttachNic {
        instance: config.id,
        nic: Box::new(nic.clone()),
    }
}

async fn found(libvirt: &Libvirt, config: &DomainConfig, nic: &DomainNic) -> Option<NicObserved> {
    let domain = observed(libvirt, config.id).await;
    let mut nics = domain.nics.live.into_iter();
    nics.find(|found| found.tap == nic.tap)
}

/// Asks the guest until it has given the NIC back.
async fn give_back(libvirt: &Libvirt, config: &DomainConfig, nic: &DomainNic) {
    let gone = async {
        while let Some(found) = found(libvirt, config, nic).await {
            let step = DomainStep::DetachNic {
                instance: config.id,
                nic: found,
            };
            libvirt.apply(&step).await.unwrap();
            libvirt.apply(&step).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone)
        .await
        .expect("the guest keeps the NIC");
}

fn answers_ping(hypervisor: &Hypervisor) -> bool {
    let ping = ["ping", "-c", "1", "-W", "1", "10.9.9.2"];
    hypervisor.try_run(&ping).is_ok()
}

fn wait_for_ping(hypervisor: &Hypervisor) {
    wait_for("an answer of the guest", || {
        answers_ping(hypervisor)
            .then_some(())
            .ok_or_else(String::new)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_guest_gets_a_nic_loses_its_cable_and_gives_it_back() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = booted(&hypervisor, &libvirt).await;
    let id = config.id;
    let shell = Shell::open(&hypervisor, &config);
    shell.type_line("");

    // The guest sees it, with its address and its MTU, and packets pass.
    let second = nic(&hypervisor, 1380);
    hypervisor.run(&["ip", "address", "add", "10.9.9.1/24", "dev", &second.bridge]);
    twice(&libvirt, attach(&config, &second)).await;
    let as_found = found(&libvirt, &config, &second).await.unwrap();
    assert_eq!(as_found.port(), Some(second.port));
    assert_eq!(as_found.mtu, Some(1380));
    let all = "cat /sys/class/net/*/address";
    shell.expect(all, &second.mac_address.to_string());
    let eth = shell.interface(second.mac_address);
    shell.expect(&format!("cat /sys/class/net/{eth}/mtu"), "1380");
    shell.type_line(&format!(
        "ip address add 10.9.9.2/24 dev {eth}; ip link set {eth} up"
    ));
    wait_for_ping(&hypervisor);

    // The cable.
    let carrier = format!("cat /sys/class/net/{eth}/carrier");
    let set_link = |nic: NicObserved, link| DomainStep::SetLink {
        instance: id,
        nic,
        link,
    };
    twice(&libvirt, set_link(as_found.clone(), PortLink::Down)).await;
    let pulled = found(&libvirt, &config, &second).await.unwrap();
    assert_eq!(pulled.link, PortLink::Down);
    shell.expect(&carrier, "0");
    assert!(!answers_ping(&hypervisor), "packets pass without a cable");
    twice(&libvirt, set_link(pulled, PortLink::Up)).await;
    shell.expect(&carrier, "1");
    wait_for_ping(&hypervisor);

    // Its memory knows the NIC.
    twice(&libvirt, DomainStep::Save(id)).await;
    let saved = observed(&libvirt, id).await;
    assert!(
        saved
            .nics
            .live
            .iter()
            .any(|it| it.port() == Some(second.port))
    );
    twice(&libvirt, DomainStep::Restore(id)).await;
    wait_for_state(&libvirt, id, PowerState::Running).await;
    let shell = Shell::open(&hypervisor, &config);
    wait_for_ping(&hypervisor);

    // It gives it back, and the tap is gone with it.
    give_back(&libvirt, &config, &second).await;
    wait_for("the tap to be gone", || {
        match hypervisor.try_run(&["ip", "link", "show", &second.tap]) {
            Ok(seen) => Err(seen),
            Err(_) => Ok(()),
        }
    });
    shell.expect(&format!("ls /sys/class/net | grep -c {eth}"), "0");

    // The same port with another address, and without a cable.
    let again = DomainNic {
        mac_address: MacAddress::derived(b"another address"),
        link: PortLink::Down,
        ..second.clone()
    };
    twice(&libvirt, attach(&config, &again)).await;
    let as_found = found(&libvirt, &config, &again).await.unwrap();
    assert_eq!(
        (as_found.mac_address, as_found.link),
        (again.mac_address, PortLink::Down)
    );
    shell.expect(all, &again.mac_address.to_string());

    // There is room for eight.
    for _ in 0..6 {
        let more = nic(&hypervisor, 1400);
        libvirt.apply(&attach(&config, &more)).await.unwrap();
    }
    assert_eq!(observed(&libvirt, id).await.nics.live.len(), 8);
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_attachment_left_and_what_has_no_alias_of_ours_is_given_back() {
    let hypervisor = Hypervisor::start();
    let libvirt = Libvirt::start(&hypervisor.address(), Options::default());
    let config = instance(&hypervisor);
    let id = config.id;
    let domain = names::domain(id);
    twice(&libvirt, DomainStep::Define(Box::new(config.clone()))).await;
    twice(&libvirt, DomainStep::Start(id)).await;
    wait_for_console(&config, BOOTED, 1);

    // Both ends in QEMU, and libvirt does not know of them.
    let left = nic(&hypervisor, 1400);
    let alias = names::nic_alias(left.port);
    let end = format!("host{alias}");
    let ask = |command: serde_json::Value| {
        let answer = hypervisor.virsh(&["qemu-monitor-command", &domain, &command.to_string()]);
        assert!(answer.contains("\"return\""), "{answer}");
    };
    ask(json!({"execute": "netdev_add", "arguments": {"type": "hubport", "hubid": 7, "id": end}}));
    ask(json!({"execute": "device_add", "arguments": {
        "driver": "virtio-net-pci", "netdev": end, "id": alias, "bus": "pci.9",
    }}));
    let attached = async {
        let mut refused = 0;
        while let Err(error) = libvirt.apply(&attach(&config, &left)).await {
            assert!(error.retryable, "{}", chain(&error));
            refused += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        refused
    };
    let refused = tokio::time::timeout(LIMIT, attached).await.unwrap();
    assert!(refused > 0, "nothing was left");
    assert!(found(&libvirt, &config, &left).await.is_some());
    give_back(&libvirt, &config, &left).await;

    // Of an older agent: libvirt gave it its name.
    let old = nic(&hypervisor, 1400);
    let xml = format!(
        "<interface type='bridge'><mac address='{}'/><source bridge='{}'/><target dev='{}'/><model type='virtio'/>\
         <mtu size='1400'/></interface>",
        old.mac_address, old.bridge, old.tap
    );
    let file = hypervisor.path().join("nic.xml");
    fs::write(&file, xml).unwrap();
    hypervisor.virsh(&["attach-device", &domain, file.to_str().unwrap(), "--live"]);
    let as_found = found(&libvirt, &config, &old).await.unwrap();
    assert_eq!((as_found.port(), as_found.is_ours()), (None, true));
    let pull = DomainStep::SetLink {
        instance: id,
        nic: as_found,
        link: PortLink::Down,
    };
    twice(&libvirt, pull).await;
    give_back(&libvirt, &config, &old).await;
    twice(&libvirt, DomainStep::Destroy(id)).await;
    twice(&libvirt, DomainStep::Undefine(id)).await;
}
