//! What is written is read back, at both ends of every range; what could not be read back is not written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use berth_common::{
    document::{
        AddressPair, BandwidthLimit, ConfigDrive, DesiredPower, FixedIp, ImageFormat, ImageRef,
        Incarnation, Ipv6AddressMode, MirrorDirection, MirrorTarget, NetworkType, OnCrash,
        PortMirror, PortQos, Reboot, RebootKind, Rescue, Route,
    },
    ids::{HostId, InstanceId, Nonce, ServerGroupId, VolumeId},
    message::{
        heartbeat::{ForeignDomain, PartHealth},
        network::AllocationPool,
        placement::SchedulerHints,
        report::{BootDisk, ConvergeStatus, Fault, FaultCode, PowerState, RunningSize},
        view::{HostStatus, Resources, RootVolume},
    },
    names::{HostName, MacAddress},
    units::{AllocationRatio, DiskGb, Generation, MemoryMb, Vcpus},
};
use berth_store::{
    StoreError, claims, claims::ClaimRole, documents, hosts, instances, instances::BootSource,
    networks, ports, ports::PortWishes, security_groups, whole_millis,
};
use chrono::{DateTime, Utc};

use crate::{
    database::{TestDatabase, on_all_databases},
    sample,
};

on_all_databases!(
    hosts_at_their_extremes,
    networks_at_their_extremes,
    instances_at_their_extremes,
    every_word_of_every_enum,
    ports_at_their_extremes,
    claims_at_their_extremes,
    documents_at_their_extremes,
    what_cannot_be_read_back_is_not_written,
    the_nul_character_is_shown_as_a_replacement_character,
);

/// Longer than MariaDB's `TEXT`, with characters of one to four bytes.
fn long_text() -> String {
    "a'\"\\%_`é\u{ffff}🛳\n".repeat(10_000)
}

fn largest() -> Resources {
    Resources {
        vcpus: Vcpus::MAX,
        memory_mb: MemoryMb::MAX,
        disk_gb: DiskGb::MAX,
    }
}

const LARGEST: u64 = i64::MAX.unsigned_abs();

async fn hosts_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut heartbeat = sample::heartbeat("a");
    heartbeat.host =
        HostName::try_from(["a".repeat(63), "b".repeat(63), "C".repeat(63)].join(".")).unwrap();
    heartbeat.session = LARGEST;
    heartbeat.sequence = LARGEST;
    heartbeat.agent_version = long_text();
    heartbeat.arch = String::new();
    heartbeat.virt_type = " trailing space ".to_owned();
    heartbeat.total = largest();
    heartbeat.used_now = Resources::default();
    heartbeat.health = vec![PartHealth {
        part: "\0".to_owned(),
        ok: false,
        reason: Some(long_text()),
    }];
    heartbeat.foreign_domains = vec![ForeignDomain {
        uuid: uuid::Uuid::max(),
        name: "<name>&'\"".to_owned(),
        power_state: PowerState::Suspended,
        vcpus: Vcpus::MAX,
        memory_mb: MemoryMb::MAX,
    }];
    let now = DateTime::<Utc>::MAX_UTC;
    let answered = hosts::upsert_heartbeat(db, &heartbeat, now).await.unwrap();
    assert_eq!(answered.last_heartbeat_at, whole_millis(now));
    assert_eq!(
        (answered.total, &answered.health),
        (heartbeat.total, &heartbeat.health)
    );
    assert_eq!(
        hosts::get(db, answered.id).await.unwrap().as_ref(),
        Some(&answered)
    );
    assert_eq!(
        hosts::find_by_name(db, &heartbeat.host)
            .await
            .unwrap()
            .as_ref(),
        Some(&answered)
    );

    database
        .execute("UPDATE hosts SET cpu_ratio = 1, ram_ratio = 1000000")
        .await;
    hosts::set_status(db, answered.id, HostStatus::Disabled, Some(&long_text()))
        .await
        .unwrap();
    let read = hosts::get(db, answered.id).await.unwrap().unwrap();
    assert_eq!(
        (read.cpu_ratio, read.ram_ratio, read.disk_ratio),
        (
            Some(AllocationRatio::from_thousandths(1).unwrap()),
            Some(AllocationRatio::from_thousandths(1_000_000).unwrap()),
            None
        )
    );
    assert_eq!(
        (read.status, read.disabled_reason),
        (HostStatus::Disabled, Some(long_text()))
    );
}

async fn networks_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut least = sample::network("n");
    least.mtu = 0;
    least.created_at = whole_millis(DateTime::<Utc>::MIN_UTC);
    least.fingerprint = String::new();
    let mut most = sample::network(&"N".repeat(63));
    most.project = "p".repeat(63).parse().unwrap();
    most.mtu = u16::MAX;
    most.created_at = whole_millis(DateTime::<Utc>::MAX_UTC);
    most.deleted_at = Some(whole_millis(DateTime::<Utc>::MAX_UTC));
    most.fingerprint = long_text();
    most.subnets[0].cidr = "255.255.255.248/29".parse().unwrap();
    most.subnets[0].gateway_ip = Some(IpAddr::from([255; 4]));
    most.subnets[0].dhcp_ip = Some(IpAddr::from([255, 255, 255, 254]));
    most.subnets[0].dns_nameservers = vec![IpAddr::from([0; 4]), IpAddr::from([255; 4])];
    most.network_type = NetworkType::Vlan;
    most.physical_network = Some("p".repeat(63).parse().unwrap());
    most.segmentation_id = Some(u32::MAX);
    most.external = true;
    let mut second = sample::subnet(most.id, "fd00:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125");
    second.name = Some("s".repeat(63).parse().unwrap());
    second.gateway_ip = Some("fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
    second.dhcp_ip = None;
    second.allocation_pools = vec![AllocationPool {
        start: "fd00:ffff:ffff:ffff:ffff:ffff:ffff:fffa".parse().unwrap(),
        end: "fd00:ffff:ffff:ffff:ffff:ffff:ffff:fffc".parse().unwrap(),
    }];
    second.host_routes = vec![Route {
        destination: "::/0".parse().unwrap(),
        nexthop: "fd00::1".parse().unwrap(),
    }];
    second.ipv6_address_mode = Some(Ipv6AddressMode::Dhcpv6Stateful);
    second.fingerprint = long_text();
    second.created_at = sample::time(1);
    most.subnets.push(second);
    let mut bare = sample::network("bare");
    bare.subnets.clear();
    for network in [least, most, bare] {
        networks::insert(db, &network).await.unwrap();
        assert_eq!(networks::get(db, network.id).await.unwrap(), Some(network));
    }
}

async fn instances_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut least = sample::instance("i");
    least.created_at = whole_millis(DateTime::<Utc>::MIN_UTC);
    least.updated_at = least.created_at;
    least.stop_timeout_seconds = 0;
    let mut most = sample::instance(&"I".repeat(63));
    most.flavor.vcpus = Vcpus::MAX;
    most.flavor.memory_mb = MemoryMb::MAX;
    most.flavor.disk_gb = DiskGb::MAX;
    let image = ImageRef {
        url: format!("http://{}", "~".repeat(2041)).parse().unwrap(),
        format: ImageFormat::Raw,
        ..sample::image()
    };
    most.boot_source = BootSource::Image(image.clone());
    most.stop_timeout_seconds = u32::MAX;
    most.fingerprint = long_text();
    most.desired_power = DesiredPower::Stopped;
    most.desired_reboot = Some(Reboot {
        nonce: Nonce::new(),
        kind: RebootKind::Hard,
    });
    most.desired_deleted = true;
    most.placement_fault = Some(Fault {
        code: FaultCode::NoValidHost,
        message: long_text(),
    });
    most.observed.status = Some(ConvergeStatus::Failed);
    most.observed.generation = Generation(LARGEST);
    most.observed.power_state = PowerState::Crashed;
    most.observed.reboot_nonce = Some(Nonce::new());
    most.observed.progress = Some(long_text());
    most.observed.fault = Some(Fault {
        code: FaultCode::ImageUnreachable,
        message: String::new(),
    });
    most.observed.was_active = true;
    most.observed.at = Some(whole_millis(DateTime::<Utc>::MAX_UTC));
    most.updated_at = whole_millis(DateTime::<Utc>::MAX_UTC);
    most.deleted_at = Some(whole_millis(DateTime::<Utc>::MAX_UTC));
    most.hints = SchedulerHints {
        availability_zone: Some("z".repeat(63).parse().unwrap()),
        host: Some(long_text()),
        same_host: vec![InstanceId::new(); 64],
        different_host: vec![InstanceId::new(); 64],
        server_group: Some("\0".to_owned()),
        properties: BTreeMap::from([("p".parse().unwrap(), " ~".repeat(127).parse().unwrap())]),
        architecture: Some(String::new()),
        virt_type: Some("kvm".to_owned()),
        resources: BTreeMap::from([("PCI_GPU".parse().unwrap(), u64::MAX)]),
    };
    most.server_group_id = Some(ServerGroupId::new());
    most.attempt = u32::MAX;
    most.failed_hosts = vec![HostId::new(); 1000];
    most.desired_rescue = Some(Rescue {
        nonce: Nonce::new(),
        image,
        size_gb: Some(DiskGb::MAX),
    });
    most.desired_incarnation = Some(Incarnation {
        number: u32::MAX,
        nonce: Nonce::new(),
    });
    most.metadata = BTreeMap::from([("m".parse().unwrap(), "~ ".repeat(127).parse().unwrap())]);
    most.on_crash = OnCrash::Stop;
    most.observed.boot_disk = Some(BootDisk::Rebuilt(Nonce::new()));
    most.observed.running = Some(RunningSize {
        vcpus: Vcpus::MAX,
        vcpus_max: Vcpus::MAX,
        memory_mb: MemoryMb::MAX,
        memory_mb_max: MemoryMb::MAX,
        memory_step_mb: MemoryMb::MAX,
    });
    most.guest_data = Some(ConfigDrive {
        user_data: Some("#!/bin/sh\n".parse().unwrap()),
        ..ConfigDrive::default()
    });
    most.config_drive = Some(ConfigDrive {
        user_data: Some("ü\n".repeat(21_845).parse().unwrap()),
        public_keys: BTreeMap::from([(
            "k".repeat(63).parse().unwrap(),
            format!("ssh-rsa {}", "A".repeat(16_376)).parse().unwrap(),
        )]),
        metadata: BTreeMap::from([("p".parse().unwrap(), " ~".repeat(127).parse().unwrap())]),
    });
    let rooted = [false, true].map(|delete_on_termination| {
        let mut rooted = sample::instance(&format!("rooted-{delete_on_termination}"));
        rooted.flavor.disk_gb = DiskGb::ZERO;
        rooted.boot_source = BootSource::Volume(RootVolume {
            id: VolumeId::new(),
            delete_on_termination,
        });
        rooted
    });
    for instance in rooted.into_iter().chain([least, most]) {
        instances::insert(db, &instance).await.unwrap();
        assert_eq!(
            instances::get(db, instance.id).await.unwrap(),
            Some(instance)
        );
    }
    assert_eq!(instances::get(db, InstanceId::new()).await.unwrap(), None);
}

async fn every_word_of_every_enum(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let id = sample::add_instance(db, "web").await.id;
    let statuses = [
        ConvergeStatus::Converging,
        ConvergeStatus::Converged,
        ConvergeStatus::Failed,
        ConvergeStatus::Gone,
    ];
    let powers = [
        PowerState::Nostate,
        PowerState::Running,
        PowerState::Paused,
        PowerState::Shutdown,
        PowerState::Crashed,
        PowerState::Suspended,
    ];
    let codes = [
        FaultCode::NoValidHost,
        FaultCode::ImageUnreachable,
        FaultCode::ImageChecksum,
        FaultCode::ImageRefused,
        FaultCode::DiskFull,
        FaultCode::Network,
        FaultCode::Hypervisor,
        FaultCode::ForeignObject,
        FaultCode::Unsupported,
        FaultCode::Internal,
    ];
    for (at, code) in (0..).zip(codes) {
        let observed = instances::InstanceObserved {
            status: Some(statuses[at % statuses.len()]),
            power_state: powers[at % powers.len()],
            fault: Some(Fault {
                code,
                message: format!("fault {at}"),
            }),
            ..Default::default()
        };
        instances::set_observed(db, id, &observed, sample::time(1))
            .await
            .unwrap();
        assert_eq!(
            instances::get(db, id).await.unwrap().unwrap().observed,
            observed
        );
    }
}

async fn ports_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (_, network, instance) = sample::populate(&store).await;
    let mut bare = sample::port(&instance, &network, 9);
    bare.fixed_ips = vec![];
    sample::put_at(&mut bare, u8::MAX);
    let mut full = sample::port(&instance, &network, 1);
    full.mac_address = MacAddress::from_octets([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]).unwrap();
    // In an order that neither their numbers nor their text would give.
    full.fixed_ips = [250, 9, 100, 10]
        .map(|last| FixedIp {
            subnet_id: network.subnets[0].id,
            ip_address: IpAddr::from([255, 0, 0, last]),
        })
        .to_vec();
    full.name = Some("p".repeat(63).parse().unwrap());
    full.wishes = PortWishes {
        admin_state_up: false,
        port_security_enabled: true,
        security_groups: BTreeSet::new(),
        allowed_address_pairs: vec![
            AddressPair {
                ip_address: "2001:db8::/32".parse().unwrap(),
                mac_address: Some(full.mac_address),
            },
            AddressPair {
                ip_address: "0.0.0.0/0".parse().unwrap(),
                mac_address: None,
            },
        ],
        qos: PortQos {
            egress: Some(BandwidthLimit {
                max_kbps: u32::MAX,
                max_burst_kbps: u32::MAX,
            }),
            ingress: None,
        },
        mirrors: vec![PortMirror {
            direction: MirrorDirection::Both,
            to: MirrorTarget::Port(bare.id),
        }],
    };
    for name in ["a", "b"] {
        let group = sample::security_group(name);
        security_groups::insert(db, &group).await.unwrap();
        full.wishes.security_groups.insert(group.id);
    }
    ports::insert(db, &bare).await.unwrap();
    ports::insert(db, &full).await.unwrap();
    assert_eq!(
        ports::of_instance(db, instance.id).await.unwrap(),
        [full.clone(), bare.clone()]
    );
    assert_eq!(
        ports::addresses_in_use(db, network.subnets[0].id)
            .await
            .unwrap(),
        full.fixed_ips.iter().map(|ip| ip.ip_address).collect()
    );
    assert_eq!(
        ports::macs_in_use(db, network.id).await.unwrap(),
        [bare.mac_address, full.mac_address].into()
    );
}

async fn claims_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let (host, _, instance) = sample::populate(&store).await;
    let mut current = sample::claim(&instance, host, ClaimRole::Current);
    current.resources = largest();
    let mut incoming = sample::claim(&instance, host, ClaimRole::Incoming);
    incoming.resources = Resources::default();
    incoming.project = "P".repeat(63).parse().unwrap();
    incoming.extra = (0..16)
        .map(|number| {
            let class = format!("{}{number}", "R".repeat(61));
            (class.parse().unwrap(), u64::MAX)
        })
        .collect();
    claims::insert(db, &current).await.unwrap();
    claims::insert(db, &incoming).await.unwrap();
    assert_eq!(
        claims::of_instance(db, instance.id).await.unwrap(),
        [current, incoming]
    );
    claims::delete_of_instance(db, instance.id).await.unwrap();
    assert_eq!(sample::claims(db).await.unwrap(), []);
}

async fn documents_at_their_extremes(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let host = sample::add_host(db, "hv1").await;
    let mut document = sample::document(host, InstanceId::new());
    document.generation = Generation(LARGEST);
    document.observed_generation = Generation(LARGEST);
    document.observed_status = Some(ConvergeStatus::Gone);
    document.spec_json = Some(serde_json::to_string(&long_text().repeat(5)).unwrap());
    document.changed_at = whole_millis(DateTime::<Utc>::MIN_UTC);
    document.published_at = Some(whole_millis(DateTime::<Utc>::MAX_UTC));
    document.attempts = u32::MAX;
    document.next_publish_at = document.published_at;
    documents::upsert(db, &document).await.unwrap();
    assert_eq!(
        documents::get(db, host, document.key)
            .await
            .unwrap()
            .as_ref(),
        Some(&document)
    );

    let mut tombstone = sample::document(host, InstanceId::new());
    tombstone.key = document.key;
    tombstone.spec_json = None;
    documents::upsert(db, &tombstone).await.unwrap();
    assert_eq!(
        documents::of_host(db, host).await.unwrap(),
        [tombstone.clone()]
    );
}

async fn what_cannot_be_read_back_is_not_written(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let check = |result: Result<(), StoreError>, column: &str| {
        let error = result.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("{column} cannot be stored: ")),
            "{error}"
        );
        assert!(!error.retryable());
    };
    let mut heartbeat = sample::heartbeat("hv2");
    heartbeat.session = LARGEST + 1;
    check(
        hosts::upsert_heartbeat(db, &heartbeat, sample::time(0))
            .await
            .map(drop),
        "hosts.session",
    );
    let mut heartbeat = sample::heartbeat("hv2");
    heartbeat.total = largest().saturating_add(largest());
    check(
        hosts::upsert_heartbeat(db, &heartbeat, sample::time(0))
            .await
            .map(drop),
        "hosts.total",
    );
    assert_eq!(hosts::all(db).await.unwrap(), []);

    let (host, _, instance) = sample::populate(&store).await;
    let mut document = sample::document(host, instance.id);
    document.generation = Generation(u64::MAX);
    check(
        documents::upsert(db, &document).await,
        "documents.generation",
    );
    let mut claim = sample::claim(&instance, host, ClaimRole::Current);
    claim.resources.disk_gb = DiskGb::MAX.saturating_add(DiskGb::MAX);
    check(claims::insert(db, &claim).await, "claims.resources");
}

async fn the_nul_character_is_shown_as_a_replacement_character(database: Arc<TestDatabase>) {
    let store = database.store().await;
    let db = store.pool();
    let mut heartbeat = sample::heartbeat("hv1");
    heartbeat.agent_version = "0.1\0".to_owned();
    let host = hosts::upsert_heartbeat(db, &heartbeat, sample::time(0))
        .await
        .unwrap();
    assert_eq!(host.agent_version, "0.1\u{FFFD}");
    assert_eq!(hosts::get(db, host.id).await.unwrap(), Some(host));
}
