//! What is on an instance's config drive: files as cloud-init's data sources ConfigDrive (OpenStack's layout) and Ec2 read
//! them. Pure: the same document makes the same bytes.
//!
//! Layouts: <https://docs.openstack.org/nova/latest/user/metadata.html> and
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>.

use std::{collections::BTreeSet, net::IpAddr};

use berth_common::{
    document::{ConfigDrive, InstancePort, InstanceSpec},
    ids::InstanceId,
};
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

/// The files of an instance's config drive, in the order of their paths.
#[must_use]
pub fn files(id: InstanceId, spec: &InstanceSpec, drive: &ConfigDrive) -> Vec<DriveFile> {
    let file = |path, content| DriveFile { path, content };
    let mut files = vec![
        file("ec2/latest/meta-data.json", text(&ec2(id, spec, drive))),
        file(
            "openstack/latest/meta_data.json",
            text(&openstack(id, spec, drive)),
        ),
        file("openstack/latest/network_data.json", text(&network(spec))),
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

/// Every NIC by its address; what it is configured with comes by DHCP and router advertisements.
fn network(spec: &InstanceSpec) -> Value {
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
    let networks: Vec<Value> = spec
        .ports
        .iter()
        .flat_map(|port| ways(port).into_iter().map(move |way| (port, way)))
        .enumerate()
        .map(|(index, (port, way))| {
            json!({
                "id": format!("network{index}"),
                "network_id": port.network_id,
                "link": port.id,
                "type": way,
            })
        })
        .collect();
    json!({ "links": links, "networks": networks, "services": [] })
}

/// How a port gets its addresses. One that is made of its Ethernet address needs nobody who gives it.
fn ways(port: &InstancePort) -> BTreeSet<&'static str> {
    let fixed = port.fixed_ips.iter();
    fixed
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
        let shown: String = files(id(1), &spec(), &drive)
            .iter()
            .map(|file| format!("--- {}\n{}", file.path, file.content))
            .collect();
        insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("config_drive", shown);
        });
    }

    #[test]
    fn an_empty_drive_still_tells_name_and_nics_and_no_user_data() {
        let paths: Vec<_> = files(id(1), &spec(), &ConfigDrive::default())
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
}
