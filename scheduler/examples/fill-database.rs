//! Fills an empty database with hosts and instances that run as they should, for benchmarks of a large cloud:
//! `fill-database URL HOSTS INSTANCES`. Rows are written by the store's own functions and documents are derived by the
//! scheduler's, so that a scheduler finds nothing to do.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use berth_common::{
    document::{DesiredPower, Flavor, ImageFormat, ImageRef},
    ids::{HostId, InstanceId},
    message::{
        heartbeat::{Heartbeat, NetworkCapabilities, PartHealth},
        report::{ConvergeStatus, PowerState},
        view::Resources,
    },
    units::{DiskGb, Generation, MemoryMb, Vcpus},
};
use berth_scheduler::derive::derive;
use berth_store::{
    Store, StoreConfig, Txn,
    claims::{self, ClaimRole, ClaimRow},
    documents::{self, DocumentRow},
    host_rows::HostRows,
    hosts,
    instances::{self, BootSource, InstanceObserved, InstanceRow},
};
use chrono::{DateTime, Utc};

/// Hosts whose rows go into one transaction, with those of their instances.
const HOSTS_PER_TRANSACTION: usize = 100;

#[expect(clippy::print_stderr, reason = "the last word of a program")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fill-database: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [url, hosts, instances] = arguments else {
        anyhow::bail!("usage: fill-database URL HOSTS INSTANCES");
    };
    let hosts: usize = hosts.parse().context("HOSTS is a number")?;
    let instances: usize = instances.parse().context("INSTANCES is a number")?;
    ensure!(hosts > 0, "instances need hosts");
    let store = Store::connect(&StoreConfig {
        url: url.clone(),
        max_connections: 1,
    })
    .await?;
    store.migrate().await?;
    let now = Utc::now();
    let numbers: Vec<usize> = (0..hosts).collect();
    for batch in numbers.chunks(HOSTS_PER_TRANSACTION) {
        let txn = store.begin().await?;
        for host in batch {
            // The first hosts have one more when the division leaves a rest.
            let guests = instances / hosts + usize::from(*host < instances % hosts);
            fill_host(&txn, *host, guests, now).await?;
        }
        txn.commit().await?;
    }
    Ok(())
}

/// Writes one host with its instances, all confirmed.
async fn fill_host(
    txn: &Txn,
    number: usize,
    guests: usize,
    now: DateTime<Utc>,
) -> anyhow::Result<()> {
    let host = heartbeat(number, guests)?;
    hosts::upsert_heartbeat(txn, &host, now).await?;
    let mut rows = HostRows::default();
    for _ in 0..guests {
        let row = instance(now)?;
        instances::insert(txn, &row).await?;
        let claim = ClaimRow {
            instance_id: row.id,
            host_id: host.host_id,
            role: ClaimRole::Current,
            resources: row.flavor.into(),
            project: row.project.clone(),
            extra: Default::default(),
        };
        claims::insert(txn, &claim).await?;
        rows.instances.push((row, Vec::new()));
    }
    for (key, spec_json) in derive(host.host_id, &rows)? {
        let document = DocumentRow {
            host_id: host.host_id,
            key,
            generation: Generation::FIRST,
            spec_json: Some(spec_json),
            observed_generation: Generation::FIRST,
            observed_status: Some(ConvergeStatus::Converged),
            changed_at: now,
            published_at: Some(now),
            attempts: 1,
            next_publish_at: None,
        };
        documents::upsert(txn, &document).await?;
    }
    Ok(())
}

fn heartbeat(number: usize, guests: usize) -> anyhow::Result<Heartbeat> {
    let guests = u64::try_from(guests)?;
    Ok(Heartbeat {
        host_id: HostId::new(),
        host: format!("fill-{number:05}.example.org").parse()?,
        session: 1,
        sequence: 1,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: "x86_64".to_owned(),
        virt_type: "kvm".to_owned(),
        total: resources(64, 256 << 10, 4000),
        used_now: resources(guests, 512 + guests * 1024, guests * 10),
        health: ["agent", "libvirt", "storage"]
            .map(|part| PartHealth {
                part: part.to_owned(),
                ok: true,
                reason: None,
            })
            .into(),
        foreign_domains: Vec::new(),
        physical_networks: Vec::new(),
        resources: Vec::new(),
        pools: Vec::new(),
        network: NetworkCapabilities {
            stateful_filter: true,
            ..NetworkCapabilities::default()
        },
    })
}

fn instance(now: DateTime<Utc>) -> anyhow::Result<InstanceRow> {
    let id = InstanceId::new();
    Ok(InstanceRow {
        id,
        project: "default".parse()?,
        name: format!("fill-{id}").parse()?,
        flavor: Flavor {
            vcpus: Vcpus::clamped(1),
            memory_mb: MemoryMb::clamped(1024),
            disk_gb: DiskGb::clamped(10),
        },
        boot_source: BootSource::Image(ImageRef {
            url: "http://images.example.org/berth/bench.qcow2".parse()?,
            sha256: "ab".repeat(32).parse()?,
            format: ImageFormat::Qcow2,
        }),
        stop_timeout_seconds: 60,
        fingerprint: "ab".repeat(32),
        desired_power: DesiredPower::Running,
        desired_reboot: None,
        desired_deleted: false,
        hints: Default::default(),
        config_drive: None,
        guest_data: None,
        desired_rescue: None,
        desired_incarnation: None,
        metadata: std::collections::BTreeMap::new(),
        on_crash: berth_common::document::OnCrash::default(),
        server_group_id: None,
        attempt: 1,
        failed_hosts: Vec::new(),
        placement_fault: None,
        observed: InstanceObserved {
            status: Some(ConvergeStatus::Converged),
            generation: Generation::FIRST,
            power_state: PowerState::Running,
            was_active: true,
            at: Some(now),
            ..InstanceObserved::default()
        },
        created_at: now,
        updated_at: now,
        deleted_at: None,
    })
}

fn resources(vcpus: u64, memory_mb: u64, disk_gb: u64) -> Resources {
    Resources {
        vcpus: Vcpus::clamped(vcpus),
        memory_mb: MemoryMb::clamped(memory_mb),
        disk_gb: DiskGb::clamped(disk_gb),
    }
}
