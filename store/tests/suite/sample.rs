//! Rows to test with. Every call makes new ids, so that two samples never collide by accident.

use std::{collections::BTreeMap, net::IpAddr};

use berth_common::{
    document::{
        DesiredPower, DiskBus, DocumentKey, EtherType, FixedIp, Flavor, ImageFormat, ImageRef,
        Kind, NetworkType, RuleDirection, RuleRemote, SecurityGroupRule, VolumeAccess,
        VolumeFormat, VolumeLimits, VolumeRef,
    },
    ids::{
        AggregateId, DecisionId, HostId, InstanceId, NetworkId, PortId, SecurityGroupId,
        SecurityGroupRuleId, ServerGroupId, SnapshotId, SubnetId, VolumeId,
    },
    message::{
        heartbeat::{Heartbeat, NetworkCapabilities, PartHealth},
        placement::{DecisionView, SchedulerHints, ServerGroupPolicy},
        report::ConvergeStatus,
        view::Resources,
    },
    names::{Cidr, MacAddress},
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use berth_store::{
    Executor, Store, StoreError,
    aggregates::AggregateRow,
    attachments::{AttachmentRow, AttachmentState},
    claims::{self, ClaimRole, ClaimRow},
    decisions::DecisionRow,
    documents::{self, DocumentRow, Observation},
    hosts,
    instances::{self, BootSource, InstanceObserved, InstanceRow},
    networks::{self, NetworkRow},
    ports::{PortAttachment, PortRow, PortWishes},
    security_groups::{SecurityGroupRow, SecurityGroupRuleRow},
    server_groups::ServerGroupRow,
    snapshots::SnapshotRow,
    subnets::SubnetRow,
    volumes::{VolumeObserved, VolumeRow},
};
use chrono::{DateTime, TimeDelta, Utc};

/// A fixed point in time, plus so many milliseconds.
pub(crate) fn time(millis: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_767_225_600_000).unwrap() + TimeDelta::milliseconds(millis)
}

pub(crate) fn resources(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Resources {
    Resources {
        vcpus: Vcpus::new(vcpus).unwrap(),
        memory_mb: MemoryMb::new(memory_mb).unwrap(),
        disk_gb: DiskGb::new(disk_gb).unwrap(),
    }
}

pub(crate) fn heartbeat(name: &str) -> Heartbeat {
    Heartbeat {
        host_id: HostId::new(),
        host: name.parse().unwrap(),
        session: 1,
        sequence: 1,
        agent_version: "0.1.0".to_owned(),
        arch: "x86_64".to_owned(),
        virt_type: "qemu".to_owned(),
        total: resources(8, 16_384, 200),
        used_now: resources(1, 900, 20),
        health: vec![PartHealth {
            part: "libvirt".to_owned(),
            ok: true,
            reason: None,
        }],
        foreign_domains: vec![],
        physical_networks: vec![],
        resources: vec![],
        pools: vec![],
        network: NetworkCapabilities::default(),
    }
}

pub(crate) fn image() -> ImageRef {
    ImageRef {
        url: "file:///images/guest.qcow2".parse().unwrap(),
        sha256: "ab".repeat(32).parse().unwrap(),
        format: ImageFormat::Qcow2,
    }
}

pub(crate) fn instance(name: &str) -> InstanceRow {
    InstanceRow {
        id: InstanceId::new(),
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        flavor: Flavor {
            vcpus: Vcpus::new(2).unwrap(),
            memory_mb: MemoryMb::new(512).unwrap(),
            disk_gb: DiskGb::new(5).unwrap(),
        },
        boot_source: BootSource::Image(image()),
        stop_timeout_seconds: 60,
        fingerprint: "f1".to_owned(),
        desired_power: DesiredPower::Running,
        desired_reboot: None,
        desired_deleted: false,
        placement_fault: None,
        observed: InstanceObserved::default(),
        created_at: time(0),
        updated_at: time(0),
        deleted_at: None,
        hints: SchedulerHints::default(),
        server_group_id: None,
        attempt: 1,
        failed_hosts: vec![],
        config_drive: None,
        guest_data: None,
        desired_rescue: None,
        desired_incarnation: None,
        metadata: std::collections::BTreeMap::new(),
        on_crash: berth_common::document::OnCrash::default(),
    }
}

pub(crate) fn network(name: &str) -> NetworkRow {
    let id = NetworkId::new();
    NetworkRow {
        id,
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        network_type: NetworkType::Local,
        physical_network: None,
        segmentation_id: None,
        external: false,
        mtu: 1500,
        created_at: time(0),
        deleted_at: None,
        fingerprint: "f1".to_owned(),
        subnets: vec![subnet(id, "10.0.0.0/24")],
    }
}

/// A subnet of a network, with its DHCP server at the second address.
pub(crate) fn subnet(network: NetworkId, cidr: &str) -> SubnetRow {
    let cidr: Cidr = cidr.parse().unwrap();
    SubnetRow {
        id: SubnetId::new(),
        network_id: network,
        name: None,
        cidr,
        gateway_ip: None,
        dhcp_ip: cidr
            .net()
            .hosts()
            .filter(|ip| cidr.is_host_address(*ip))
            .nth(1),
        allocation_pools: vec![],
        dns_nameservers: vec![],
        host_routes: vec![],
        ipv6_address_mode: None,
        fingerprint: String::new(),
        created_at: time(0),
        deleted_at: None,
    }
}

/// The port of an instance in a network, with the address `10.0.0.<last>` and a MAC made from it.
pub(crate) fn port(instance: &InstanceRow, network: &NetworkRow, last: u8) -> PortRow {
    PortRow {
        id: PortId::new(),
        project: instance.project.clone(),
        name: None,
        network_id: network.id,
        attachment: Some(PortAttachment {
            instance_id: instance.id,
            position: 0,
            state: AttachmentState::Attached,
        }),
        delete_with_instance: true,
        mac_address: MacAddress::from_octets([0x52, 0x54, 0, 0, 0, last]).unwrap(),
        fixed_ips: vec![FixedIp {
            subnet_id: network.subnets[0].id,
            ip_address: IpAddr::from([10, 0, 0, last]),
        }],
        wishes: PortWishes::default(),
        fingerprint: "f1".to_owned(),
        created_at: time(0),
    }
}

/// Gives the port of an instance another place among its NICs.
pub(crate) fn put_at(port: &mut PortRow, position: u8) {
    port.attachment.as_mut().unwrap().position = position;
}

/// Gives a port to another instance, at the same place.
pub(crate) fn give_to(port: PortRow, instance: InstanceId) -> PortRow {
    let attachment = port.attachment.map(|attachment| PortAttachment {
        instance_id: instance,
        ..attachment
    });
    PortRow { attachment, ..port }
}

pub(crate) fn security_group(name: &str) -> SecurityGroupRow {
    SecurityGroupRow {
        id: SecurityGroupId::new(),
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        description: String::new(),
        fingerprint: "f1".to_owned(),
        created_at: time(0),
    }
}

/// A rule that lets in what comes from another group, or from anywhere.
pub(crate) fn ingress(
    group: SecurityGroupId,
    remote: Option<SecurityGroupId>,
) -> SecurityGroupRuleRow {
    SecurityGroupRuleRow {
        group_id: group,
        rule: SecurityGroupRule {
            id: SecurityGroupRuleId::new(),
            direction: RuleDirection::Ingress,
            ethertype: EtherType::IPv4,
            protocol: None,
            remote: remote.map(RuleRemote::Group),
        },
        created_at: time(0),
    }
}

pub(crate) fn claim(instance: &InstanceRow, host: HostId, role: ClaimRole) -> ClaimRow {
    ClaimRow {
        instance_id: instance.id,
        host_id: host,
        role,
        resources: instance.flavor.into(),
        project: instance.project.clone(),
        extra: BTreeMap::new(),
    }
}

/// A host says how far it is with a document. Whether that changed anything.
pub(crate) async fn observe(
    db: &impl Executor,
    host_id: HostId,
    key: DocumentKey,
    generation: Generation,
    status: ConvergeStatus,
) -> bool {
    let before = documents::get(db, host_id, key).await.unwrap();
    let said = Observation {
        host_id,
        key,
        generation,
        status,
    };
    documents::mark_observed_many(db, &[said]).await.unwrap();
    documents::get(db, host_id, key).await.unwrap() != before
}

pub(crate) fn document(host: HostId, instance: InstanceId) -> DocumentRow {
    DocumentRow {
        host_id: host,
        key: DocumentKey {
            kind: Kind::Instance,
            id: instance.as_uuid(),
        },
        generation: Generation::FIRST,
        spec_json: Some(r#"{"name":"web"}"#.to_owned()),
        observed_generation: Generation(0),
        observed_status: None,
        changed_at: time(0),
        published_at: None,
        attempts: 0,
        next_publish_at: None,
    }
}

pub(crate) fn aggregate(name: &str) -> AggregateRow {
    AggregateRow {
        id: AggregateId::new(),
        name: name.parse().unwrap(),
        availability_zone: None,
        cpu_ratio: None,
        ram_ratio: None,
        disk_ratio: None,
        properties: BTreeMap::new(),
        fingerprint: "f1".to_owned(),
        created_at: time(0),
    }
}

pub(crate) fn server_group(name: &str) -> ServerGroupRow {
    ServerGroupRow {
        id: ServerGroupId::new(),
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        policy: ServerGroupPolicy::AntiAffinity,
        max_server_per_host: None,
        fingerprint: "f1".to_owned(),
        created_at: time(0),
    }
}

pub(crate) fn volume(name: &str, host: Option<HostId>) -> VolumeRow {
    VolumeRow {
        id: VolumeId::new(),
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        host_id: host,
        size_gb: DiskGb::new(10).unwrap(),
        format: VolumeFormat::Qcow2,
        pool: Default::default(),
        source: None,
        limits: VolumeLimits::default(),
        fingerprint: "f1".to_owned(),
        desired_deleted: false,
        observed: VolumeObserved::default(),
        created_at: time(0),
        updated_at: time(0),
        deleted_at: None,
    }
}

pub(crate) fn snapshot(name: &str, volume: &VolumeRow) -> SnapshotRow {
    SnapshotRow {
        id: SnapshotId::new(),
        project: "default".parse().unwrap(),
        name: name.parse().unwrap(),
        volume: VolumeRef {
            id: volume.id,
            format: volume.format,
            pool: volume.pool.clone(),
        },
        host_id: volume.host_id,
        size_gb: volume.size_gb,
        fingerprint: "f1".to_owned(),
        desired_deleted: false,
        observed: VolumeObserved::default(),
        created_at: time(0),
        updated_at: time(0),
        deleted_at: None,
    }
}

pub(crate) fn attachment(volume: &VolumeRow, instance: InstanceId, position: u8) -> AttachmentRow {
    AttachmentRow {
        volume_id: volume.id,
        instance_id: instance,
        position,
        access: VolumeAccess::ReadWrite,
        disk_bus: DiskBus::Virtio,
        state: AttachmentState::Attaching,
        created_at: time(0),
    }
}

/// A decision about an instance, so many milliseconds later.
pub(crate) fn decision(instance: InstanceId, millis: i64) -> DecisionRow {
    DecisionRow {
        id: DecisionId::new(),
        instance_id: instance,
        decision: DecisionView {
            decided_at: time(millis),
            attempt: 1,
            asked: None,
            constraints: vec![],
            hosts: 3,
            filters: vec![],
            chosen: None,
            runner_up: None,
            nearest_misses: vec![],
            summary: "0 of 3 hosts fit".to_owned(),
            public_summary: "no host fits".to_owned(),
        },
    }
}

/// Adds a host and answers its id.
pub(crate) async fn add_host(db: &impl Executor, name: &str) -> HostId {
    hosts::upsert_heartbeat(db, &heartbeat(name), time(0))
        .await
        .unwrap()
        .id
}

/// Adds an instance.
pub(crate) async fn add_instance(db: &impl Executor, name: &str) -> InstanceRow {
    let instance = instance(name);
    instances::insert(db, &instance).await.unwrap();
    instance
}

/// Adds a network.
pub(crate) async fn add_network(db: &impl Executor, name: &str) -> NetworkRow {
    let network = network(name);
    networks::insert(db, &network).await.unwrap();
    network
}

/// A store with one host, one network and one instance.
pub(crate) async fn populate(store: &Store) -> (HostId, NetworkRow, InstanceRow) {
    let db = store.pool();
    (
        add_host(db, "hv1").await,
        add_network(db, "blue").await,
        add_instance(db, "web").await,
    )
}

/// All claims there are.
pub(crate) async fn claims(db: &impl Executor) -> Result<Vec<ClaimRow>, StoreError> {
    let page = claims::page_with_groups(db, None, u32::MAX).await?;
    Ok(page.into_iter().map(|row| row.claim).collect())
}
