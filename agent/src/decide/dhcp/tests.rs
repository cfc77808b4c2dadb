//! Tests of the DHCP files: what they say, and that no document can make them say anything else.

use berth_common::{
    document::{FixedIp, NetworkType, RemotePort, Route},
    ids::{InstanceId, PortId},
    names::{InstanceName, MacAddress},
};
use proptest::prelude::*;

use super::*;

fn network() -> NetworkId {
    "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11".parse().unwrap()
}

fn subnet(cidr: &str, dhcp_ip: &str) -> SubnetSpec {
    SubnetSpec {
        id: SubnetId::new(),
        cidr: cidr.parse().unwrap(),
        gateway_ip: None,
        dhcp_ip: Some(dhcp_ip.parse().unwrap()),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_address_mode: None,
    }
}

fn port(subnet: SubnetId, mac: &str, address: &str, name: &str) -> NetworkPort {
    NetworkPort {
        id: PortId::new(),
        instance_id: InstanceId::new(),
        mac_address: mac.parse().unwrap(),
        hostname: name.parse().unwrap(),
        fixed_ips: vec![FixedIp {
            subnet_id: subnet,
            ip_address: address.parse().unwrap(),
        }],
        security: None,
        qos: berth_common::document::PortQos::default(),
        mirrors: Vec::new(),
    }
}

fn spec(subnets: Vec<SubnetSpec>, ports: Vec<NetworkPort>) -> NetworkSpec {
    NetworkSpec {
        name: "net".parse().unwrap(),
        project: "default".parse().unwrap(),
        network_type: NetworkType::Local,
        mtu: 1450,
        subnets,
        ports,
        physical_network: None,
        segmentation_id: None,
        remote_ports: Vec::new(),
        security_groups: Vec::new(),
        group_members: std::collections::BTreeMap::new(),
    }
}

#[test]
fn a_network_with_everything_becomes_these_files() {
    let mut first = subnet("10.0.0.0/24", "10.0.0.2");
    first.gateway_ip = Some(IpAddr::from([10, 0, 0, 1]));
    first.dns_nameservers = vec![IpAddr::from([9, 9, 9, 9]), "2620:fe::fe".parse().unwrap()];
    first.host_routes = vec![Route {
        destination: "192.168.0.0/16".parse().unwrap(),
        nexthop: IpAddr::from([10, 0, 0, 7]),
    }];
    let second = subnet("10.9.0.0/20", "10.9.0.2");
    let mut stateful = subnet("fd00:2::/64", "fd00:2::2");
    stateful.ipv6_address_mode = Some(Ipv6AddressMode::Dhcpv6Stateful);
    stateful.gateway_ip = Some("fd00:2::1".parse().unwrap());
    let mut slaac = subnet("fd00:1::/64", "fd00:1::2");
    slaac.ipv6_address_mode = Some(Ipv6AddressMode::Slaac);
    slaac.dns_nameservers = vec!["2620:fe::fe".parse().unwrap(), IpAddr::from([9, 9, 9, 9])];
    let untold = subnet("fd00:3::/64", "fd00:3::2");
    let mut unserved = subnet("10.8.0.0/24", "10.8.0.2");
    unserved.dhcp_ip = None;
    let mut web = port(first.id, "52:54:00:00:00:01", "10.0.0.10", "Web-1");
    let more = [
        (stateful.id, "fd00:2::10"),
        (slaac.id, "fd00:1::5054:ff:fe00:1"),
        (untold.id, "fd00:3::10"),
        (unserved.id, "10.8.0.10"),
    ];
    web.fixed_ips
        .extend(more.map(|(subnet_id, address)| FixedIp {
            subnet_id,
            ip_address: address.parse().unwrap(),
        }));
    let ports = vec![port(second.id, "52:54:00:00:00:02", "10.9.1.7", "db"), web];
    let mut spec = spec(
        vec![second, first, stateful, slaac, untold, unserved],
        ports,
    );
    spec.remote_ports = vec![RemotePort {
        mac_address: "52:54:00:00:00:03".parse().unwrap(),
        hostname: "far".parse().unwrap(),
        ip_addresses: vec!["10.0.0.11".parse().unwrap()],
        tunnel_ip: None,
    }];
    let files = files(network(), &spec);
    assert_eq!(
        files.config,
        "# Written by berth-agent, which overwrites changes.\n\
         no-hosts\n\
         no-resolv\n\
         no-poll\n\
         domain=berth.internal\n\
         local=/berth.internal/\n\
         domain-needed\n\
         bogus-priv\n\
         interface=btnbe5f0736765f\n\
         except-interface=lo\n\
         bind-dynamic\n\
         leasefile-ro\n\
         dhcp-authoritative\n\
         no-ping\n\
         dhcp-ignore=tag:!known\n\
         dhcp-ignore-names\n\
         dhcp-ignore-clid\n\
         dhcp-lease-max=65536\n\
         quiet-dhcp\n\
         quiet-dhcp6\n\
         quiet-ra\n\
         dhcp-option-force=option:mtu,1450\n\
         enable-ra\n\
         ra-param=btnbe5f0736765f,mtu:1450,600,0\n\
         dhcp-option=option6:domain-search,berth.internal\n\
         dhcp-range=set:s0,10.0.0.0,static,255.255.255.0,infinite\n\
         dhcp-option=tag:s0,option:router,10.0.0.1\n\
         dhcp-option=tag:s0,option:dns-server,9.9.9.9\n\
         dhcp-option=tag:s0,option:classless-static-route,169.254.169.254/32,10.0.0.2,192.168.0.0/16,10.0.0.7,0.0.0.0/0,10.0.0.1\n\
         dhcp-option=tag:s0,249,169.254.169.254/32,10.0.0.2,192.168.0.0/16,10.0.0.7,0.0.0.0/0,10.0.0.1\n\
         dhcp-range=set:s2,10.9.0.0,static,255.255.240.0,infinite\n\
         dhcp-option=tag:s2,option:router\n\
         dhcp-option=tag:s2,option:dns-server,10.9.0.2\n\
         dhcp-option=tag:s2,option:classless-static-route,169.254.169.254/32,10.9.0.2\n\
         dhcp-option=tag:s2,249,169.254.169.254/32,10.9.0.2\n\
         dhcp-range=set:s3,fd00:1::,ra-only,64,infinite\n\
         dhcp-option=tag:s3,option6:dns-server,[2620:fe::fe]\n\
         dhcp-range=set:s4,fd00:2::,static,64,infinite\n\
         dhcp-option=tag:s4,option6:dns-server,[fd00:2::2]\n"
    );
    assert_eq!(
        files.hosts,
        "52:54:00:00:00:01,10.0.0.10,web-1.,infinite\n\
         52:54:00:00:00:01,[fd00:2::10],web-1.,infinite\n\
         52:54:00:00:00:02,10.9.1.7,db.,infinite\n"
    );
    assert_eq!(
        files.names,
        "10.0.0.10 web-1.berth.internal web-1\n\
         10.0.0.11 far.berth.internal far\n\
         10.8.0.10 web-1.berth.internal web-1\n\
         10.9.1.7 db.berth.internal db\n\
         fd00:1::5054:ff:fe00:1 web-1.berth.internal web-1\n\
         fd00:2::10 web-1.berth.internal web-1\n\
         fd00:3::10 web-1.berth.internal web-1\n"
    );
}

#[test]
fn an_address_of_an_unknown_subnet_is_not_handed_out() {
    let known = subnet("10.0.0.0/24", "10.0.0.2");
    let stray = port(SubnetId::new(), "52:54:00:00:00:01", "10.0.0.10", "web");
    assert_eq!(files(network(), &spec(vec![known], vec![stray])).hosts, "");
}

#[test]
fn only_additions_can_be_told_to_a_running_server() {
    assert!(only_adds("", "a\n"));
    assert!(only_adds("a\n", "a\nb\n"));
    assert!(only_adds("b\n", "a\nb\n"));
    assert!(!only_adds("a\n", ""));
    assert!(!only_adds("a\nb\n", "a\nc\n"));
}

proptest! {
    /// Whatever a document says, it yields the lines it should and no others, and each line keeps its form.
    #[test]
    fn no_value_can_add_a_line(
        names in prop::collection::vec("[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?", 0..8),
        macs in prop::collection::vec(any::<[u8; 6]>(), 8),
        hostile in ".*",
        gateway in any::<Option<u32>>(),
        servers in prop::collection::vec(any::<u32>(), 0..4),
        mtu in any::<u16>(),
    ) {
        let one = SubnetSpec {
            gateway_ip: gateway.map(|address| IpAddr::from(address.to_be_bytes())),
            dns_nameservers: servers.into_iter().map(|address| IpAddr::from(address.to_be_bytes())).collect(),
            ..subnet("10.0.0.0/24", "10.0.0.2")
        };
        let mut ports = Vec::new();
        for (index, (name, octets)) in names.iter().zip(&macs).enumerate() {
            let [_, rest @ ..] = *octets;
            let mac = MacAddress::from_octets([0x52, rest[0], rest[1], rest[2], rest[3], u8::try_from(index).unwrap()]);
            ports.push(port(one.id, &mac.unwrap().to_string(), &format!("10.0.0.{}", index + 10), name));
        }
        // Text that comes from outside and gets through the grammar of names is as good as any.
        if let Ok(name) = hostile.parse::<InstanceName>() {
            ports.push(port(one.id, "52:54:00:00:00:ff", "10.0.0.200", name.as_str()));
        }
        let wanted = ports.len();
        let files = files(network(), &NetworkSpec { mtu, ..spec(vec![one], ports) });
        prop_assert_eq!(files.config.lines().count(), 27);
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-=:,.!/\n".contains(&byte);
        prop_assert!(files.config.bytes().skip_while(|byte| *byte != b'\n').all(harmless));
        prop_assert_eq!(files.hosts.lines().count(), wanted);
        prop_assert_eq!(files.names.lines().count(), wanted);
        for line in files.names.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            prop_assert_eq!(fields.len(), 3);
            prop_assert!(fields[0].parse::<IpAddr>().is_ok());
            prop_assert!(fields[2].parse::<InstanceName>().is_ok());
            prop_assert_eq!(fields[1], format!("{}.{DOMAIN}", fields[2]));
        }
        for line in files.hosts.lines() {
            let fields: Vec<&str> = line.split(',').collect();
            prop_assert_eq!(fields.len(), 4);
            prop_assert!(fields[0].parse::<MacAddress>().is_ok());
            prop_assert!(fields[1].parse::<IpAddr>().is_ok());
            let name = fields[2].strip_suffix('.').unwrap_or_default();
            prop_assert!(name.parse::<InstanceName>().is_ok());
            prop_assert_eq!(fields[3], "infinite");
        }
    }
}
