//! One of each resource as the scheduler would show it, and a scheduler by script, for tests.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use berth_common::{
    message::{
        heartbeat::NetworkCapabilities,
        placement::{AggregateView, DecisionView, ServerGroupView},
        request::Method,
        security_group::SecurityGroupView,
        view::{
            HostStatus, HostView, InstanceView, NetworkView, PortView, SnapshotView, VolumeView,
        },
    },
    refusal::{Refusal, RefusalCode},
};
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{Cli, Output},
    client::{Caller, is_question},
    commands::Context,
    error::{CtlError, Fate},
};

/// What a scheduler by script does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Play {
    /// It answers.
    Reply(Value),
    /// It refuses.
    Refuse(RefusalCode),
    /// It says nothing.
    Silence,
}

impl Play {
    /// It answers with this.
    pub(crate) fn view(view: &impl Serialize) -> Self {
        Self::Reply(serde_json::to_value(view).unwrap())
    }
}

/// A command line, without `berthctl`.
pub(crate) fn parsed(line: &str) -> Cli {
    let words = std::iter::once("berthctl").chain(line.split_whitespace());
    Cli::try_parse_from(words).unwrap()
}

/// What a command gets that programs call, with a scheduler by script.
pub(crate) fn context(
    project: Option<&str>,
    script: impl IntoIterator<Item = Play>,
) -> Context<Scheduler> {
    Context {
        caller: Scheduler::new(script),
        timeout: Duration::from_secs(1),
        output: Output::Json,
        project: project.map(|name| name.parse().unwrap()),
    }
}

/// The keys that say what a request is about, the first that is there.
const SUBJECTS: [&str; 11] = [
    "subnet",
    "snapshot",
    "volume",
    "instance",
    "network",
    "aggregate",
    "server_group",
    "security_group",
    "port",
    "host",
    "id",
];

/// Plays a script to its end, and remembers what was asked: `method subject`, and `of instance` with volumes.
#[derive(Debug)]
pub(crate) struct Scheduler {
    script: RefCell<VecDeque<Play>>,
    pub(crate) asked: RefCell<Vec<String>>,
}

impl Scheduler {
    pub(crate) fn new(script: impl IntoIterator<Item = Play>) -> Self {
        Self {
            script: RefCell::new(script.into_iter().collect()),
            asked: RefCell::default(),
        }
    }
}

impl Caller for Scheduler {
    async fn call<M: Method + Sync>(&self, request: &M, _: Duration) -> Result<M::Reply, CtlError> {
        let request = serde_json::to_value(request).unwrap();
        let subject = SUBJECTS
            .iter()
            .find_map(|key| request[*key].as_str())
            .unwrap_or("-");
        let mut asked = format!("{} {subject}", M::NAME);
        // A volume's instance.
        if let (Some(_), Some(instance)) =
            (request["volume"].as_str(), request["instance"].as_str())
        {
            asked = format!("{asked} of {instance}");
        }
        if let Some("scsi") = request["disk_bus"].as_str() {
            asked = format!("{asked} on scsi");
        }
        self.asked.borrow_mut().push(asked);
        let play = self.script.borrow_mut().pop_front();
        match play.expect("nothing more was to be asked") {
            Play::Reply(reply) => Ok(serde_json::from_value(reply).unwrap()),
            Play::Refuse(code) => Err(CtlError::Refused(Refusal::new(code, "refused"))),
            Play::Silence => Err(CtlError::Unanswered {
                reason: "no answer".to_owned(),
                fate: if is_question(M::NAME) {
                    Fate::Question
                } else {
                    Fate::Open {
                        hint: String::new(),
                    }
                },
            }),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// An instance that runs.
pub(crate) fn instance() -> InstanceView {
    read(json!({
        "id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
        "name": "web-1",
        "project": "lab",
        "vm_state": "active",
        "task_state": null,
        "power_state": "running",
        "desired_power": "running",
        "progress": null,
        "fault": null,
        "host": "hv1",
        "host_id": "0191e7a0-0000-7000-8000-000000000001",
        "flavor": { "vcpus": 1, "memory_mb": 256, "disk_gb": 2 },
        "image": { "url": "file:///srv/guest.qcow2", "sha256": "a".repeat(64), "format": "qcow2" },
        "ports": [{
            "id": "0191e7a0-0000-7000-8000-000000000002",
            "network_id": "0191e7a0-0000-7000-8000-000000000003",
            "network": "net0",
            "mac_address": "52:54:00:12:34:56",
            "fixed_ips": [{ "subnet_id": "0191e7a0-0000-7000-8000-000000000004", "ip_address": "10.0.0.5" }],
        }],
        "generation": 1,
        "observed_generation": 1,
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:15Z",
    }))
}

/// A port that an instance has.
pub(crate) fn port() -> PortView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000002",
        "name": "uplink",
        "project": "lab",
        "network_id": "0191e7a0-0000-7000-8000-000000000003",
        "network": "net0",
        "status": "active",
        "instance_id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
        "mac_address": "52:54:00:12:34:56",
        "fixed_ips": [{ "subnet_id": "0191e7a0-0000-7000-8000-000000000004", "ip_address": "10.0.0.5" }],
        "port_security_enabled": true,
        "security_groups": [{ "id": "0191e7a0-0000-7000-8000-00000000000a", "name": "web" }],
        "allowed_address_pairs": [{ "ip_address": "10.0.0.100/32" }],
        "qos": { "egress": { "max_kbps": 10000, "max_burst_kbps": 2000 } },
        "mirrors": [{ "direction": "both", "to": { "interface": "eth1" } }],
        "created_at": "2026-01-02T03:04:05Z",
    }))
}

/// A security group that lets the web in.
pub(crate) fn security_group() -> SecurityGroupView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-00000000000a",
        "name": "web",
        "project": "lab",
        "description": "what the world may reach",
        "rules": [
            {
                "id": "0191e7a0-0000-7000-8000-00000000000b",
                "direction": "egress",
                "ethertype": "IPv4",
            },
            {
                "id": "0191e7a0-0000-7000-8000-00000000000c",
                "direction": "ingress",
                "ethertype": "IPv4",
                "protocol": { "name": "tcp", "ports": { "min": 80, "max": 443 } },
                "remote": { "prefix": "10.0.0.0/8" },
            },
            {
                "id": "0191e7a0-0000-7000-8000-00000000000d",
                "direction": "ingress",
                "ethertype": "IPv6",
                "protocol": { "name": "icmp", "type": 128 },
                "remote": { "group": "0191e7a0-0000-7000-8000-00000000000a" },
            },
        ],
        "ports": 1,
        "created_at": "2026-01-02T03:04:05Z",
    }))
}

/// A volume that an instance has.
pub(crate) fn volume() -> VolumeView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000008",
        "name": "data",
        "project": "lab",
        "size_gb": 20,
        "format": "raw",
        "source": {
            "image": { "url": "file:///srv/guest.qcow2", "sha256": "a".repeat(64), "format": "qcow2" },
        },
        "limits": { "total_iops": 500, "total_bytes_per_second": null },
        "status": "in-use",
        "progress": null,
        "fault": null,
        "host": "hv1",
        "host_id": "0191e7a0-0000-7000-8000-000000000001",
        "attachment": {
            "instance_id": "0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11",
            "instance": "web-1",
            "device": "/dev/vdb",
            "access": "read_write",
        },
        "generation": 2,
        "observed_generation": 2,
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:15Z",
    }))
}

/// A snapshot that is whole.
pub(crate) fn snapshot() -> SnapshotView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000009",
        "name": "monday",
        "project": "lab",
        "volume_id": "0191e7a0-0000-7000-8000-000000000008",
        "volume": "data",
        "size_gb": 20,
        "pool": "fast",
        "status": "available",
        "progress": null,
        "fault": null,
        "host": "hv1",
        "host_id": "0191e7a0-0000-7000-8000-000000000001",
        "generation": 1,
        "observed_generation": 1,
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:15Z",
    }))
}

/// A host that is well, with one foreign domain.
pub(crate) fn host() -> HostView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000001",
        "name": "hv1",
        "status": "enabled",
        "disabled_reason": null,
        "state": "up",
        "last_heartbeat_seconds": 3,
        "agent_version": "0.1.0",
        "virt_type": "qemu",
        "arch": "x86_64",
        "health": [{ "part": "agent", "ok": true }, { "part": "libvirt", "ok": false, "reason": "no answer" }],
        "total": { "vcpus": 2, "memory_mb": 24000, "disk_gb": 100 },
        "reserved": { "vcpus": 0, "memory_mb": 512, "disk_gb": 0 },
        "allocation_ratios": { "cpu": "4.0", "ram": "1.5", "disk": "1.0" },
        "capacity": { "vcpus": 8, "memory_mb": 35232, "disk_gb": 100 },
        "used_now": { "vcpus": 2, "memory_mb": 1200, "disk_gb": 11 },
        "used_max": { "vcpus": 2, "memory_mb": 384, "disk_gb": 2 },
        "projects": [{ "project": "lab", "claimed": { "vcpus": 1, "memory_mb": 256, "disk_gb": 2 } }],
        "foreign_domains": [{
            "uuid": "3f6f5f0c-0000-4000-8000-000000000005",
            "name": "by-hand",
            "power_state": "running",
            "vcpus": 1,
            "memory_mb": 128,
        }],
        "instances": 1,
    }))
}

/// A host that is being emptied, in an aggregate, with all that placement counts.
pub(crate) fn rich_host() -> HostView {
    HostView {
        status: HostStatus::Draining,
        disabled_reason: Some("new memory".to_owned()),
        availability_zone: "rack-1".parse().unwrap(),
        aggregates: read(json!(["rack-1", "ssd"])),
        physical_networks: read(json!(["physnet1", "physnet2"])),
        network: NetworkCapabilities {
            vlan: true,
            vxlan: true,
            stateful_filter: false,
            tunnel_ip: Some(std::net::IpAddr::from([192, 0, 2, 7])),
        },
        resources: read(json!([
            { "class": "HUGEPAGES_2048K", "total": 1024, "used": 512 },
            { "class": "PCI_GPU", "total": 2, "used": 1 },
        ])),
        pools: read(json!([
            {
                "name": "local", "type": "dir", "total_bytes": 100_u64 << 30, "used_bytes": 11_u64 << 30,
                "provisioned_bytes": 30_u64 << 30, "claimed_gb": 30,
            },
            {
                "name": "thin", "type": "lvm_thin", "total_bytes": 500_u64 << 30, "used_bytes": 20_u64 << 30,
                "provisioned_bytes": 800_u64 << 30, "metadata_percent": 3, "claimed_gb": 810,
            },
        ])),
        ..host()
    }
}

/// An aggregate with one host.
pub(crate) fn aggregate() -> AggregateView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000006",
        "name": "ssd",
        "availability_zone": "rack-1",
        "cpu_allocation_ratio": "2.0",
        "ram_allocation_ratio": null,
        "disk_allocation_ratio": null,
        "properties": { "disk": "ssd", "room": "2" },
        "hosts": ["hv1"],
        "created_at": "2026-01-02T03:04:05Z",
    }))
}

/// A server group with one member.
pub(crate) fn server_group() -> ServerGroupView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000007",
        "name": "web",
        "project": "lab",
        "policy": "anti_affinity",
        "max_server_per_host": 2,
        "members": ["0191e7a0-7c1f-7b5e-9d2a-3f6f5f0c2a11"],
        "created_at": "2026-01-02T03:04:05Z",
    }))
}

/// A decision for a host, as a scheduler made it: its own tests write it down.
pub(crate) fn placed() -> DecisionView {
    let text = include_str!("../../scheduler/tests/flow/golden/placed.json");
    serde_json::from_str(text).unwrap()
}

/// A decision for no host, likewise.
pub(crate) fn refused() -> DecisionView {
    let text = include_str!("../../scheduler/tests/flow/golden/refused.json");
    serde_json::from_str(text).unwrap()
}

/// A network with one port.
pub(crate) fn network() -> NetworkView {
    read(json!({
        "id": "0191e7a0-0000-7000-8000-000000000003",
        "name": "net0",
        "project": "lab",
        "network_type": "local",
        "physical_network": null,
        "segmentation_id": null,
        "external": false,
        "mtu": 1500,
        "subnets": [{
            "id": "0191e7a0-0000-7000-8000-000000000004",
            "name": "first",
            "network_id": "0191e7a0-0000-7000-8000-000000000003",
            "cidr": "10.0.0.0/24",
            "gateway_ip": null,
            "dhcp_ip": "10.0.0.2",
            "allocation_pools": [{ "start": "10.0.0.1", "end": "10.0.0.254" }],
            "dns_nameservers": ["10.0.0.53", "10.0.1.53"],
            "host_routes": [{ "destination": "10.9.0.0/16", "nexthop": "10.0.0.3" }],
            "ipv6_address_mode": null,
            "created_at": "2026-01-02T03:04:05Z",
        }],
        "ports": 1,
        "created_at": "2026-01-02T03:04:05Z",
    }))
}
