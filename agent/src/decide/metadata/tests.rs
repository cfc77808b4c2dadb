//! Tests of what the metadata service answers, and to whom.

use berth_common::{
    document::{
        Desired, DesiredPower, FixedIp, Flavor, InstancePort, NetworkType, OnCrash, PortLink,
        PortQos, SubnetSpec,
    },
    ids::{HostId, SubnetId},
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};

use super::*;

fn spec() -> InstanceSpec {
    InstanceSpec {
        name: "web-1".parse().unwrap(),
        project: "shop".parse().unwrap(),
        power: DesiredPower::Running,
        reboot: None,
        stop_timeout_seconds: 60,
        flavor: Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(128),
            disk_gb: DiskGb::clamped(1),
        },
        disks: Vec::new(),
        ports: vec![InstancePort {
            id: PortId::new(),
            network_id: NetworkId::new(),
            mac_address: "52:54:00:00:00:01".parse().unwrap(),
            fixed_ips: vec![FixedIp {
                subnet_id: SubnetId::new(),
                ip_address: "10.0.0.5".parse().unwrap(),
            }],
            mtu: 1450,
            link: PortLink::Up,
        }],
        volumes: Vec::new(),
        config_drive: None,
        guest_data: Some(ConfigDrive {
            user_data: Some("#!/bin/sh\n".parse().unwrap()),
            public_keys: [
                (
                    "me".parse().unwrap(),
                    "ssh-ed25519 AAAA me@home".parse().unwrap(),
                ),
                ("ops".parse().unwrap(), "ssh-rsa BBBB".parse().unwrap()),
            ]
            .into(),
            metadata: [("role".parse().unwrap(), "front".parse().unwrap())].into(),
        }),
        rescue: None,
        on_crash: OnCrash::default(),
    }
}

fn get(files: &GuestFiles, path: &str) -> Option<String> {
    files.answer(path).map(|answer| answer.content)
}

#[test]
fn ec2_is_answered_as_a_tree_of_texts() {
    let id = InstanceId::new();
    let files = GuestFiles::of(id, &spec(), &Subnets::new());
    let check = |path: &str, expected: Option<&str>| {
        assert_eq!(get(&files, path).as_deref(), expected, "{path}");
    };
    check(
        "/latest/meta-data/",
        Some(
            "ami-launch-index\nhostname\ninstance-id\nlocal-hostname\nlocal-ipv4\nmac\npublic-keys/",
        ),
    );
    check("/latest/meta-data/instance-id", Some(&id.to_string()));
    check("/2009-04-04/meta-data/hostname", Some("web-1"));
    check("/1.0//meta-data/local-ipv4", Some("10.0.0.5"));
    check("/latest/meta-data/ami-launch-index", Some("0"));
    check("/latest/meta-data/public-keys", Some("0=me\n1=ops"));
    check("/latest/meta-data/public-keys/", Some("0=me\n1=ops"));
    check("/latest/meta-data/public-keys/0/", Some("openssh-key"));
    check(
        "/latest/meta-data/public-keys/0/openssh-key",
        Some("ssh-ed25519 AAAA me@home"),
    );
    check("/latest/user-data", Some("#!/bin/sh\n"));
    check("/latest", Some("meta-data/\nuser-data"));
    assert!(get(&files, "/").unwrap().ends_with("2009-04-04\nlatest"));
    for absent in [
        "/latest/meta-data/public-keys/2/openssh-key",
        "/latest/meta-data/hostname/x",
        "/2030-01-01/meta-data/hostname",
        "/latest/../latest/user-data",
        "/latest/meta-dat",
        "/etc/passwd",
    ] {
        check(absent, None);
    }
}

#[test]
fn openstack_is_answered_as_on_a_config_drive() {
    let id = InstanceId::new();
    let files = GuestFiles::of(id, &spec(), &Subnets::new());
    let listed = get(&files, "/openstack/").unwrap();
    assert!(listed.lines().any(|version| version == "2018-08-27"));
    for version in listed.lines() {
        let path = format!("/openstack/{version}/meta_data.json");
        let answer = files.answer(&path).unwrap();
        assert_eq!(answer.content_type, "application/json");
        let meta: Value = serde_json::from_str(&answer.content).unwrap();
        assert_eq!(meta["uuid"], id.to_string());
        assert_eq!(meta["meta"]["role"], "front");
        assert_eq!(meta["public_keys"]["ops"], "ssh-rsa BBBB");
    }
    assert_eq!(
        get(&files, "/openstack/latest/").unwrap(),
        "meta_data.json\nnetwork_data.json\nuser_data\nvendor_data.json"
    );
    assert_eq!(
        get(&files, "/openstack/latest/user_data").unwrap(),
        "#!/bin/sh\n"
    );
}

#[test]
fn what_is_on_the_config_drive_is_told_and_nothing_else_is_without_it() {
    let id = InstanceId::new();
    let mut spec = spec();
    spec.config_drive = Some(ConfigDrive::default());
    let files = GuestFiles::of(id, &spec, &Subnets::new());
    for absent in [
        "/latest/user-data",
        "/openstack/latest/user_data",
        "/latest/meta-data/public-keys/",
    ] {
        assert_eq!(files.answer(absent), None, "{absent}");
    }
    (spec.config_drive, spec.guest_data) = (None, None);
    assert_eq!(GuestFiles::of(id, &spec, &Subnets::new()), files);
    assert_eq!(get(&files, "/latest/meta-data/hostname").unwrap(), "web-1");
}

#[test]
fn what_is_written_for_the_service_is_read_back() {
    let (id, spec) = (InstanceId::new(), spec());
    let read: GuestFiles = serde_json::from_str(&guest_text(id, &spec, &Subnets::new())).unwrap();
    assert_eq!(read, GuestFiles::of(id, &spec, &Subnets::new()));
}

#[test]
fn addresses_are_made_of_ethernet_addresses_as_guests_make_them() {
    // RFC 4291, appendix A, and what the kernel makes of QEMU's addresses.
    let mac = "52:54:00:12:34:56".parse().unwrap();
    assert_eq!(
        link_local(mac),
        "fe80::5054:ff:fe12:3456".parse::<Ipv6Addr>().unwrap()
    );
    let prefix = "fd00:1::".parse().unwrap();
    assert_eq!(
        with_interface_id(prefix, mac),
        "fd00:1::5054:ff:fe12:3456".parse::<Ipv6Addr>().unwrap()
    );
}

/// A network with a subnet that is served and one that is not.
fn network([served, other]: [SubnetId; 2], ports: Vec<NetworkPort>) -> NetworkSpec {
    let subnet = |id, cidr: &str, dhcp_ip: Option<&str>| SubnetSpec {
        id,
        cidr: cidr.parse().unwrap(),
        gateway_ip: None,
        dhcp_ip: dhcp_ip.map(|ip| ip.parse().unwrap()),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_address_mode: None,
    };
    NetworkSpec {
        name: "net".parse().unwrap(),
        project: "default".parse().unwrap(),
        network_type: NetworkType::Local,
        mtu: 1450,
        subnets: vec![
            subnet(served, "10.0.0.0/24", Some("10.0.0.2")),
            subnet(other, "10.0.1.0/24", None),
        ],
        ports,
        physical_network: None,
        segmentation_id: None,
        remote_ports: Vec::new(),
        security_groups: Vec::new(),
        group_members: BTreeMap::new(),
    }
}

#[test]
fn forged_requests_are_those_of_the_port_whose_address_they_came_from() {
    let subnets @ [served, other] = [SubnetId::new(), SubnetId::new()];
    let port = |instance_id, mac: &str, addresses: &[(SubnetId, &str)]| NetworkPort {
        id: PortId::new(),
        instance_id,
        mac_address: mac.parse().unwrap(),
        hostname: "web".parse().unwrap(),
        fixed_ips: addresses
            .iter()
            .map(|(subnet_id, ip)| FixedIp {
                subnet_id: *subnet_id,
                ip_address: ip.parse().unwrap(),
            })
            .collect(),
        security: None,
        qos: PortQos::default(),
        mirrors: Vec::new(),
    };
    let [one, two] = [InstanceId::new(), InstanceId::new()];
    let ports = vec![
        port(
            one,
            "52:54:00:00:00:01",
            &[(served, "10.0.0.10"), (other, "10.0.1.10")],
        ),
        // Another one of the same instance.
        port(one, "52:54:00:00:00:02", &[(served, "10.0.0.11")]),
        port(two, "52:54:00:00:00:03", &[(served, "10.0.0.12")]),
    ];
    let forged_by = |instance, requests| Forged { instance, requests };
    let counted: ForgedCounts = [
        ("10.0.0.10", forged_by(one, 1)),
        ("fe80::5054:ff:fe00:1", forged_by(one, 2)),
        // Nothing is served there.
        ("10.0.1.10", forged_by(one, 4)),
        ("10.0.0.11", forged_by(one, 8)),
        // It was another's before.
        ("10.0.0.12", forged_by(one, 16)),
        ("fe80::5054:ff:fe00:3", forged_by(two, u64::MAX)),
        ("10.0.0.99", forged_by(two, 32)),
    ]
    .map(|(address, forged)| (address.parse().unwrap(), forged))
    .into();
    let read: ForgedCounts = serde_json::from_value(json!(counted)).unwrap();
    assert_eq!(read, counted);

    let spec = network(subnets, ports);
    let id = NetworkId::new();
    let document = Document::Network(Desired {
        id,
        generation: Generation(1),
        host_id: HostId::new(),
        spec: Some(spec.clone()),
    });
    let expected = |requests: [u64; 3]| -> Vec<PortForged> {
        let ports = spec.ports.iter().zip(requests);
        ports
            .map(|(port, requests)| PortForged {
                port: port.id,
                instance: port.instance_id,
                requests,
            })
            .collect()
    };
    let all = |counted: &BTreeMap<_, _>| forged(counted, std::iter::once(&document));
    assert_eq!(
        all(&[(id, counted.clone())].into()),
        expected([3, 8, u64::MAX])
    );
    assert_eq!(all(&[(id, ForgedCounts::new())].into()), expected([0; 3]));
    // Nobody counts in this network, or nobody is served.
    assert_eq!(all(&[(NetworkId::new(), counted.clone())].into()), []);
    let mut unserved = spec.clone();
    unserved.subnets[0].dhcp_ip = None;
    assert_eq!(forged_of(&unserved, &spec.ports[0], Some(&counted)), None);
}
