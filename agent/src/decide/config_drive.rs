//! What is on an instance's config drive: files as cloud-init's data sources ConfigDrive (OpenStack's layout) and Ec2 read
//! them. Pure: the same document makes the same bytes.
//!
//! Layouts: <https://docs.openstack.org/nova/latest/user/metadata.html> and
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_common::{
    document::{ConfigDrive, FixedIp, InstancePort, InstanceSpec, SubnetSpec},
    ids::{InstanceId, SubnetId},
};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::metadata;

/// The volume label by which guests find a config drive.
pub const LABEL: &str = "config-2";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveFile {
    /// Where on the drive.
    pub path: &'static str,
    /// What is in it.
    pub content: String,
}

/// The subnets of an instance's networks, as far as they are known.
pub type Subnets = BTreeMap<SubnetId, SubnetSpec>;

/// The files of an instance's config drive, in the order of their paths.
#[must_use]
pub fn files(
    id: InstanceId,
    spec: &InstanceSpec,
    drive: &ConfigDrive,
    subnets: &Subnets,
) -> Vec<DriveFile> {
    let file = |path, content| DriveFile { path, content };
    let mut files = vec![
        file("ec2/latest/meta-data.json", text(&ec2(id, spec, drive))),
        file(
            "openstack/latest/meta_data.json",
            text(&openstack(id, spec, drive)),
        ),
        file(
            "openstack/latest/network_data.json",
            text(&network(spec, subnets)),
        ),
        file("openstack/latest/vendor_data.json", text(&json!({}))),
    ];
    if let Some(user_data) = &drive.user_data {
        for path in ["ec2/latest/user-data", "openstack/latest/user_data"] {
            files.push(file(path, user_data.as_str().to_owned()));
        }
    }
    files.sort_by_key(|file| file.path);
    files
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn openstack(id: InstanceId, spec: &InstanceSpec, drive: &ConfigDrive) -> Value {
    let named: Map<String, Value> = drive
        .public_keys
        .iter()
        .map(|(name, key)| (name.to_string(), key.as_str().into()))
        .collect();
    let keys: Vec<Value> = drive
        .public_keys
        .iter()
        .map(|(name, key)| json!({ "name": name, "type": "ssh", "data": key }))
        .collect();
    json!({
        "uuid": id,
        "name": spec.name,
        "hostname": spec.name,
        "project_id": spec.project,
        "launch_index": 0,
        "public_keys": named,
        "keys": keys,
        "meta": drive.metadata,
        "devices": [],
    })
}

/// Every NIC by its address. What it is configured with comes by DHCP and router advertisements, or is told here where nobody of
/// berth's tells it.
fn network(spec: &InstanceSpec, subnets: &Subnets) -> Value {
    let links: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            json!({
                "id": port.id,
                "type": "phy",
                "ethernet_mac_address": port.mac_address,
                "mtu": port.mtu,
            })
        })
        .collect();
    let of_ports = spec.ports.iter().flat_map(|port| {
        let told = ways(port, subnets)
            .into_iter()
            .map(|way| json!({ "type": way }));
        let fixed = untold(port, subnets).map(|(fixed, subnet)| by_hand(fixed, subnet));
        told.chain(fixed).map(move |network| (port, network))
    });
    let networks: Vec<Value> = of_ports
        .enumerate()
        .map(|(index, (port, mut network))| {
            network["id"] = json!(format!("network{index}"));
            network["network_id"] = json!(port.network_id);
            network["link"] = json!(port.id);
            network
        })
        .collect();
    let servers: BTreeSet<IpAddr> = spec
        .ports
        .iter()
        .flat_map(|port| untold(port, subnets))
        .flat_map(|(_, subnet)| subnet.dns_nameservers.iter().copied())
        .collect();
    json!({ "links": links, "networks": networks, "services": name_servers(servers) })
}

/// How a port gets its addresses. One that is made of its Ethernet address needs nobody who gives it.
fn ways(port: &InstancePort, subnets: &Subnets) -> BTreeSet<&'static str> {
    let by_hand: BTreeSet<IpAddr> = untold(port, subnets)
        .map(|(fixed, _)| fixed.ip_address)
        .collect();
    let fixed = port.fixed_ips.iter();
    fixed
        .filter(|fixed| !by_hand.contains(&fixed.ip_address))
        .map(|fixed| match fixed.ip_address {
            IpAddr::V4(_) => "ipv4_dhcp",
            IpAddr::V6(address)
                if metadata::with_interface_id(address, port.mac_address) == address =>
            {
                "ipv6_slaac"
            }
            IpAddr::V6(_) => "ipv6_dhcp",
        })
        .collect()
}

/// The addresses of a port that nobody of berth's tells its guest: classic clouds' networks of type Flat, without DHCP.
fn untold<'a>(
    port: &'a InstancePort,
    subnets: &'a Subnets,
) -> impl Iterator<Item = (FixedIp, &'a SubnetSpec)> {
    port.fixed_ips.iter().filter_map(|fixed| {
        let subnet = subnets.get(&fixed.subnet_id)?;
        let is_told = match fixed.ip_address {
            IpAddr::V4(_) => subnet.dhcp_ip.is_some(),
            IpAddr::V6(_) => subnet.ipv6_address_mode.is_some(),
        };
        (!is_told).then_some((*fixed, subnet))
    })
}

/// An address as a guest that is told of nothing else has to set it.
fn by_hand(fixed: FixedIp, subnet: &SubnetSpec) -> Value {
    let (kind, everywhere) = match fixed.ip_address {
        IpAddr::V4(_) => ("ipv4", "0.0.0.0"),
        IpAddr::V6(_) => ("ipv6", "::"),
    };
    let way = |network: String, netmask: String, gateway: IpAddr| json!({ "network": network, "netmask": netmask, "gateway": gateway });
    let out = subnet
        .gateway_ip
        .map(|gateway| way(everywhere.to_owned(), everywhere.to_owned(), gateway));
    let others = subnet.host_routes.iter().map(|route| {
        let net: IpNet = route.destination.net().trunc();
        way(
            net.addr().to_string(),
            net.netmask().to_string(),
            route.nexthop,
        )
    });
    let routes: Vec<Value> = out.into_iter().chain(others).collect();
    json!({
        "type": kind,
        "ip_address": fixed.ip_address,
        "netmask": subnet.cidr.net().netmask(),
        "routes": routes,
        "services": name_servers(subnet.dns_nameservers.iter().copied()),
    })
}

fn name_servers(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Value> {
    let addresses = addresses.into_iter();
    addresses
        .map(|address| json!({ "type": "dns", "address": address }))
        .collect()
}

pub(super) fn ec2(id: InstanceId, spec: &InstanceSpec, drive: &ConfigDrive) -> Value {
    let keys: Map<String, Value> = drive
        .public_keys
        .iter()
        .enumerate()
        .map(|(index, (name, key))| (format!("{index}={name}"), json!({ "openssh-key": key })))
        .collect();
    let addresses = spec.ports.first().map(|port| port.fixed_ips.as_slice());
    let address = |is_wanted: fn(&IpAddr) -> bool| {
        let mut addresses = addresses
            .into_iter()
            .flatten()
            .map(|fixed| fixed.ip_address);
        addresses.find(is_wanted)
    };
    let mut tree = json!({
        "instance-id": id,
        "hostname": spec.name,
        "local-hostname": spec.name,
        "local-ipv4": address(IpAddr::is_ipv4),
        "mac": spec.ports.first().map(|port| port.mac_address),
        "ami-launch-index": 0,
        "public-keys": keys,
    });
    if let Some(address) = address(IpAddr::is_ipv6) {
        tree["ipv6"] = json!(address);
    }
    tree
}

#[cfg(test)]
mod tests {
    use berth_common::document::{DesiredPower, FixedIp, Flavor};
    use berth_common::ids::{NetworkId, PortId, SubnetId};
    use berth_common::units::{DiskGb, MemoryMb, Vcpus};
    use uuid::Uuid;

    use super::*;

    fn id<T: TryFrom<Uuid>>(n: u128) -> T
    where
        T::Error: std::fmt::Debug,
    {
        T::try_from(Uuid::from_u128(
            0x0191_e7a0_7c1f_7b5e_9d2a_0000_0000_0000 + n,
        ))
        .unwrap()
    }

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
                id: id::<PortId>(3),
                network_id: id::<NetworkId>(2),
                mac_address: "52:54:00:00:00:01".parse().unwrap(),
                fixed_ips: vec![FixedIp {
                    subnet_id: id::<SubnetId>(4),
                    ip_address: "10.0.0.5".parse().unwrap(),
                }],
                mtu: 1450,
                link: berth_common::document::PortLink::Up,
            }],
            volumes: Vec::new(),
            config_drive: None,
            guest_data: None,
            rescue: None,
            on_crash: berth_common::document::OnCrash::default(),
        }
    }

    #[test]
    fn everything_of_a_document_is_told() {
        let drive = ConfigDrive {
            user_data: Some("#cloud-config\nhostname: \"ü\"\n".parse().unwrap()),
            public_keys: [
                (
                    "me".parse().unwrap(),
                    "ssh-ed25519 AAAA me@home".parse().unwrap(),
                ),
                ("ops".parse().unwrap(), "ssh-rsa BBBB".parse().unwrap()),
            ]
            .into(),
            metadata: [("role".parse().unwrap(), "a \"front\" end".parse().unwrap())].into(),
        };
        let shown: String = files(id(1), &spec(), &drive, &Subnets::new())
            .iter()
            .map(|file| format!("--- {}\n{}", file.path, file.content))
            .collect();
        insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("config_drive", shown);
        });
    }

    #[test]
    fn an_empty_drive_still_tells_name_and_nics_and_no_user_data() {
        let paths: Vec<_> = files(id(1), &spec(), &ConfigDrive::default(), &Subnets::new())
            .iter()
            .map(|file| file.path)
            .collect();
        assert_eq!(
            paths,
            [
                "ec2/latest/meta-data.json",
                "openstack/latest/meta_data.json",
                "openstack/latest/network_data.json",
                "openstack/latest/vendor_data.json",
            ]
        );
    }

    #[test]
    fn what_nobody_tells_a_guest_is_on_its_drive() {
        let mut spec = spec();
        let port = &mut spec.ports[0];
        let fixed = |n: u128, address: &str| FixedIp {
            subnet_id: id(n),
            ip_address: address.parse().unwrap(),
        };
        port.fixed_ips = vec![
            fixed(11, "192.0.2.7"),
            fixed(12, "fd00:7::7"),
            fixed(13, "10.0.0.5"),
            fixed(14, "fd00:8::8"),
        ];
        let subnet = |n: u128, cidr: &str, gateway: &str, servers: &[&str]| SubnetSpec {
            id: id(n),
            cidr: cidr.parse().unwrap(),
            gateway_ip: Some(gateway.parse().unwrap()),
            dhcp_ip: None,
            dns_nameservers: servers.iter().map(|it| it.parse().unwrap()).collect(),
            host_routes: Vec::new(),
            ipv6_address_mode: None,
        };
        let mut flat = subnet(11, "192.0.2.0/25", "192.0.2.1", &["192.0.2.53"]);
        flat.host_routes = vec![
            serde_json::from_value(json!({ "destination": "10.9.0.0/16", "nexthop": "192.0.2.9" }))
                .unwrap(),
        ];
        let mut served = subnet(13, "10.0.0.0/24", "10.0.0.1", &["10.0.0.53"]);
        served.dhcp_ip = Some("10.0.0.2".parse().unwrap());
        let mut stateful = subnet(14, "fd00:8::/64", "fd00:8::1", &[]);
        stateful.dhcp_ip = Some("fd00:8::2".parse().unwrap());
        stateful.ipv6_address_mode = Some(berth_common::document::Ipv6AddressMode::Dhcpv6Stateful);
        let subnets: Subnets = [
            flat,
            subnet(12, "fd00:7::/64", "fd00:7::1", &["fd00:7::53"]),
            served,
            stateful,
        ]
        .into_iter()
        .map(|subnet| (subnet.id, subnet))
        .collect();
        let drive = files(id(1), &spec, &ConfigDrive::default(), &subnets);
        let told = drive
            .iter()
            .find(|file| file.path.ends_with("network_data.json"))
            .unwrap();
        insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("network_data_by_hand", told.content);
        });
    }
}
