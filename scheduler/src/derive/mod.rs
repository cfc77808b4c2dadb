//! What a host shall be, as a pure function of its rows; and what differs from what it was last told.

pub mod diff;
mod router;
mod security;

use std::collections::BTreeMap;

use berth_common::{
    document::{
        ConfigDrive, DiskFormat, DiskSource, DocumentKey, InstanceDisk, InstancePort, InstanceSpec,
        InstanceVolume, Kind, NetworkPort, NetworkSpec, PortLink, RemotePort, SnapshotSpec,
        SubnetSpec, VolumeSpec,
    },
    ids::{HostId, NetworkId},
};
use berth_store::{
    attachments::AttachmentState, host_rows::HostRows, instances::InstanceRow,
    networks::NetworkRow, ports::PortRow, snapshots::SnapshotRow, subnets::SubnetRow,
    volumes::VolumeRow,
};
use serde::Serialize;

/// The specs of all documents of one host, as the JSON that is published; keyed, so in a fixed order.
///
/// An instance that is being deleted, or is leaving a host that could not build it, has no document there (its absence
/// makes the tombstone), but keeps its place in its networks' documents until the host confirmed that it is gone.
/// A volume that is being deleted loses its document when no instance has it any more.
///
/// # Errors
/// When a spec cannot be written as JSON, which no value of these types can cause.
pub fn derive(
    host: HostId,
    rows: &HostRows,
) -> Result<BTreeMap<DocumentKey, String>, serde_json::Error> {
    let networks: BTreeMap<NetworkId, &NetworkRow> = rows
        .networks
        .iter()
        .map(|network| (network.id, network))
        .collect();
    let mut documents = BTreeMap::new();
    for (instance, ports) in rows
        .instances
        .iter()
        .filter(|(instance, _)| !instance.desired_deleted && !instance.failed_hosts.contains(&host))
    {
        let key = DocumentKey {
            kind: Kind::Instance,
            id: instance.id.as_uuid(),
        };
        let spec = instance_spec(instance, ports, &networks, rows);
        documents.insert(key, json(&spec)?);
    }
    for network in &rows.networks {
        let key = DocumentKey {
            kind: Kind::Network,
            id: network.id.as_uuid(),
        };
        documents.insert(key, json(&network_spec(host, network, rows))?);
    }
    for of_host in &rows.routers {
        let key = DocumentKey {
            kind: Kind::Router,
            id: of_host.router.id.as_uuid(),
        };
        documents.insert(key, json(&router::router_spec(host, of_host, rows))?);
    }
    for volume in rows.volumes.iter().filter(|volume| {
        let is_attached = || rows.attachments.iter().any(|of| of.volume_id == volume.id);
        volume.host_id == Some(host) && (!volume.desired_deleted || is_attached())
    }) {
        let key = DocumentKey {
            kind: Kind::Volume,
            id: volume.id.as_uuid(),
        };
        documents.insert(key, json(&volume_spec(volume))?);
    }
    for snapshot in rows
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.host_id == Some(host) && !snapshot.desired_deleted)
    {
        let key = DocumentKey {
            kind: Kind::Snapshot,
            id: snapshot.id.as_uuid(),
        };
        documents.insert(key, json(&snapshot_spec(snapshot))?);
    }
    Ok(documents)
}

fn json(spec: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(spec)
}

fn instance_spec(
    instance: &InstanceRow,
    ports: &[PortRow],
    networks: &BTreeMap<NetworkId, &NetworkRow>,
    rows: &HostRows,
) -> InstanceSpec {
    let mut ports: Vec<&PortRow> = ports.iter().filter(|port| port.is_wanted()).collect();
    ports.sort_by_key(|port| (port.position(), port.id));
    InstanceSpec {
        name: instance.name.clone(),
        project: instance.project.clone(),
        power: instance.desired_power,
        reboot: instance.desired_reboot,
        stop_timeout_seconds: instance.stop_timeout_seconds,
        flavor: instance.flavor,
        disks: own_disks(instance),
        ports: ports
            .into_iter()
            .map(|port| InstancePort {
                id: port.id,
                network_id: port.network_id,
                mac_address: port.mac_address,
                fixed_ips: port.fixed_ips.clone(),
                mtu: networks
                    .get(&port.network_id)
                    .map_or(DEFAULT_MTU, |network| network.mtu),
                link: if port.wishes.admin_state_up {
                    PortLink::Up
                } else {
                    PortLink::Down
                },
            })
            .collect(),
        volumes: instance_volumes(instance, rows),
        // The drive is made once for each root disk, from what is said of the instance then.
        config_drive: instance.config_drive.as_ref().map(|drive| ConfigDrive {
            metadata: instance.metadata.clone(),
            ..drive.clone()
        }),
        guest_data: guest_data(instance),
        rescue: instance.desired_rescue.clone(),
        on_crash: instance.on_crash,
    }
}

/// What the metadata service tells the guest of an instance without a config drive; absent where there is nothing to tell.
fn guest_data(instance: &InstanceRow) -> Option<ConfigDrive> {
    let told = ConfigDrive {
        metadata: instance.metadata.clone(),
        ..instance.guest_data.clone().unwrap_or_default()
    };
    (instance.config_drive.is_none() && told != ConfigDrive::default()).then_some(told)
}

/// The disks that are made with an instance: none, if it boots from a volume.
fn own_disks(instance: &InstanceRow) -> Vec<InstanceDisk> {
    let image = instance.boot_source.image();
    let disk = image.map(|image| InstanceDisk {
        index: 0,
        size_gb: instance.flavor.disk_gb,
        format: DiskFormat::Qcow2,
        source: DiskSource::Image(image.clone()),
        incarnation: instance.desired_incarnation,
    });
    disk.into_iter().collect()
}

/// The volumes an instance shall have: all of its but those that it is being freed of.
fn instance_volumes(instance: &InstanceRow, rows: &HostRows) -> Vec<InstanceVolume> {
    let mut wanted: Vec<InstanceVolume> = rows
        .attachments
        .iter()
        .filter(|row| row.instance_id == instance.id && row.state != AttachmentState::Detaching)
        .filter_map(|row| {
            let volume = rows.volumes.iter().find(|of| of.id == row.volume_id)?;
            Some(InstanceVolume {
                id: volume.id,
                position: row.position,
                format: volume.format,
                pool: volume.pool.clone(),
                access: row.access,
                disk_bus: row.disk_bus,
                limits: volume.limits,
            })
        })
        .collect();
    wanted.sort_by_key(|volume| volume.position);
    wanted
}

fn volume_spec(volume: &VolumeRow) -> VolumeSpec {
    VolumeSpec {
        name: volume.name.clone(),
        project: volume.project.clone(),
        size_gb: volume.size_gb,
        format: volume.format,
        pool: volume.pool.clone(),
        source: volume.source.clone(),
    }
}

fn snapshot_spec(snapshot: &SnapshotRow) -> SnapshotSpec {
    SnapshotSpec {
        name: snapshot.name.clone(),
        project: snapshot.project.clone(),
        volume: snapshot.volume.clone(),
        size_gb: snapshot.size_gb,
    }
}

/// Ethernet's usual MTU in bytes.
const DEFAULT_MTU: u16 = 1500;

fn network_spec(host: HostId, network: &NetworkRow, rows: &HostRows) -> NetworkSpec {
    let mut ports: Vec<NetworkPort> = rows
        .instances
        .iter()
        .flat_map(|(instance, ports)| ports.iter().map(move |port| (instance, port)))
        .filter(|(_, port)| port.network_id == network.id)
        .map(|(instance, port)| NetworkPort {
            id: port.id,
            instance_id: instance.id,
            mac_address: port.mac_address,
            hostname: instance.name.clone(),
            fixed_ips: port.fixed_ips.clone(),
            security: security::of_port(port),
            qos: port.wishes.qos,
            mirrors: port.wishes.mirrors.clone(),
        })
        .collect();
    ports.sort_by_key(|port| port.id);
    NetworkSpec {
        name: network.name.clone(),
        project: network.project.clone(),
        network_type: network.network_type,
        physical_network: network.physical_network.clone(),
        segmentation_id: network.segmentation_id,
        mtu: network.mtu,
        subnets: network.subnets.iter().map(subnet_spec).collect(),
        ports,
        remote_ports: remote_ports(host, network.id, rows),
        security_groups: security::groups(network, rows),
        group_members: security::members(network, rows),
    }
}

fn subnet_spec(subnet: &SubnetRow) -> SubnetSpec {
    SubnetSpec {
        id: subnet.id,
        cidr: subnet.cidr,
        gateway_ip: subnet.gateway_ip,
        dhcp_ip: subnet.dhcp_ip,
        dns_nameservers: subnet.dns_nameservers.clone(),
        host_routes: subnet.host_routes.clone(),
        ipv6_address_mode: subnet.ipv6_address_mode,
    }
}

/// The ports of a network on other hosts, in a fixed order.
fn remote_ports(host: HostId, network: NetworkId, rows: &HostRows) -> Vec<RemotePort> {
    let reached = rows.reached.get(&network);
    let mut remote: Vec<RemotePort> = reached
        .iter()
        .flat_map(|ports| ports.iter())
        .filter(|port| port.host_id != host)
        .map(|port| RemotePort {
            mac_address: port.mac_address,
            hostname: port.hostname.clone(),
            ip_addresses: port.ip_addresses.clone(),
            tunnel_ip: port.tunnel_ip,
        })
        .collect();
    remote.sort();
    remote
}
