//! What a change costs beside other routers that lead to the same external network: `make bench-routers`.
//!
//! Each point is a cloud of its own, in a SQLite file in memory, so that no disk is measured: so many routers with a network and an instance each, all leading to one
//! external network, over 20 hosts. Measured is a change with its documents, from the beginning of its transaction to the end of its
//! commit, without a bus; medians. Prints one line per point, and asserts nothing.
//!
//! The times are those of the clock; `cpu_ms` is the processor time of all threads, of which a machine that does other things too tells
//! less, and what the ratios are of.

#![expect(
    clippy::print_stdout,
    reason = "the lines it prints are what a benchmark is for"
)]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_common::{
    bus::LocalBroker,
    config::Reader,
    ids::{HostId, InstanceId, NetworkId, RouterId},
    message::{
        heartbeat::{Heartbeat, NetworkCapabilities},
        report::{ConvergeStatus, PowerState, Report, ResourceReport},
        request::InstanceCreate,
        view::Resources,
    },
    telemetry::registry::Metrics,
    units::{DiskGb, MemoryMb, Vcpus},
};
use berth_scheduler::{
    claim::{
        instances::{
            change::{self, Change},
            create,
        },
        networks,
        routers::{self},
    },
    config::Config,
    context::Context,
    metrics::SchedulerMetrics,
    report::apply,
    service,
};
use berth_store::{Store, StoreConfig, documents, hosts, leadership};
use chrono::Utc;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const HOSTS: usize = 20;
/// How many routers there are at each point; the first is what the others are compared with.
const POINTS: [usize; 3] = [10, 100, 1_000];
/// How often each change is measured.
const MEASURED: usize = 31;
/// Routers that are made in one transaction.
const TOGETHER: usize = 100;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut first = BTreeMap::new();
    for count in POINTS {
        let medians = runtime.block_on(point(count))?;
        let mut line = format!("bench routers routers={count}");
        for (what, [wall, cpu]) in medians {
            let before: Duration = *first.entry(what).or_insert(cpu);
            let ratio = cpu.as_secs_f64() / before.as_secs_f64();
            let [wall, cpu] = [wall, cpu].map(|time| time.as_secs_f64() * 1e3);
            line.push_str(&format!(
                " {what}_ms={wall:.2} {what}_cpu_ms={cpu:.2} {what}_ratio={ratio:.2}"
            ));
        }
        println!("{line}");
    }
    Ok(())
}

/// The clock's time and the processors'.
struct Watch {
    began: Instant,
    cpu: u64,
}

impl Watch {
    fn start() -> Self {
        Self {
            began: Instant::now(),
            cpu: on_cpu(),
        }
    }

    fn stop(self) -> [Duration; 2] {
        let cpu = on_cpu().saturating_sub(self.cpu);
        [self.began.elapsed(), Duration::from_nanos(cpu)]
    }
}

/// Nanoseconds that the threads of this process have been on a processor; zero where the kernel does not say.
fn on_cpu() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let of_thread = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads.flatten().filter_map(of_thread).sum()
}

fn request<T: DeserializeOwned>(body: Value) -> anyhow::Result<T> {
    serde_json::from_value(body).context("a request of this benchmark")
}

fn instance(name: &str, network: &str, host: &str) -> anyhow::Result<InstanceCreate> {
    request(json!({
        "id": InstanceId::new(),
        "name": name,
        "flavor": { "vcpus": 1, "memory_mb": 64, "disk_gb": 1 },
        "image": { "url": "file:///image", "sha256": "0".repeat(64), "format": "qcow2" },
        "networks": [{ "network": network }],
        "hints": { "host": host },
    }))
}

fn heartbeat(number: usize) -> anyhow::Result<Heartbeat> {
    Ok(Heartbeat {
        host_id: HostId::new(),
        host: host(number).parse()?,
        session: 1,
        sequence: 1,
        agent_version: "bench".to_owned(),
        arch: "x86_64".to_owned(),
        virt_type: "kvm".to_owned(),
        total: Resources {
            vcpus: Vcpus::clamped(1_000),
            memory_mb: MemoryMb::clamped(1 << 20),
            disk_gb: DiskGb::clamped(10_000),
        },
        used_now: Resources::default(),
        health: Vec::new(),
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

fn host(number: usize) -> String {
    format!("hv{}", number % HOSTS)
}

/// A scheduler with hosts, without anything that works by itself.
async fn scheduler(directory: &Path) -> anyhow::Result<(Context, BTreeMap<String, HostId>)> {
    let url = format!("sqlite://{}/berth.db", directory.display());
    let text = format!("[bus]\nurl = \"amqp://nobody@localhost/\"\n[store]\nurl = \"{url}\"\n");
    let config = Config::read(Reader::from_text("bench", &text, [], "BERTH"))
        .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
    let store = Store::connect(&StoreConfig {
        url,
        max_connections: 4,
    })
    .await?;
    store.migrate().await?;
    let mut ids = BTreeMap::new();
    for number in 0..HOSTS {
        let heartbeat = heartbeat(number)?;
        hosts::upsert_heartbeat(store.pool(), &heartbeat, Utc::now()).await?;
        ids.insert(heartbeat.host.to_string(), heartbeat.host_id);
    }
    let metrics = SchedulerMetrics::new(&Metrics::new("scheduler", "bench")?)?;
    let epoch = leadership::take(store.pool(), "bench", Utc::now()).await?;
    let bus = Arc::new(LocalBroker::new(1).connect());
    let (context, _nobody_publishes) =
        Context::take_over(config, store, bus, metrics, epoch).await?;
    service::seed_liveness(&context).await?;
    Ok((context, ids))
}

/// No host is down for want of a heartbeat.
fn hear(context: &Context, ids: &BTreeMap<String, HostId>) {
    let now = Instant::now();
    context.liveness(|liveness| ids.values().for_each(|host| liveness.heard(*host, now)));
}

/// Makes the external network, and so many networks with a router that leads there and an instance.
async fn fill(
    context: &Context,
    ids: &BTreeMap<String, HostId>,
    count: usize,
) -> anyhow::Result<()> {
    let mut writing = context.begin().await?;
    let public = json!({
        "id": NetworkId::new(), "name": "public", "cidr": "198.18.0.0/16", "gateway_ip": "198.18.0.1", "external": true,
    });
    networks::create(&writing, &request(public)?).await?;
    for number in 0..count {
        if number % TOGETHER == 0 && number > 0 {
            writing.commit().await?;
            hear(context, ids);
            writing = context.begin().await?;
        }
        let net = format!("net{number}");
        let third = number % 250;
        let inside = json!({
            "id": NetworkId::new(), "name": net, "cidr": format!("10.0.{third}.0/24"),
            "gateway_ip": format!("10.0.{third}.1"),
        });
        networks::create(&writing, &request(inside)?).await?;
        let name = format!("router{number}");
        let router = json!({ "id": RouterId::new(), "name": name, "external_network": "public" });
        routers::create(&writing, &request(router)?).await?;
        let leg = request(json!({ "router": name, "subnet": net }))?;
        routers::add_interface(&mut writing, &leg).await?;
        let guest = instance(&format!("guest{number}"), &net, &host(number))?;
        make(&mut writing, &guest).await?;
    }
    Ok(writing.commit().await?)
}

async fn make(
    writing: &mut berth_scheduler::context::Writing<'_>,
    guest: &InstanceCreate,
) -> anyhow::Result<()> {
    let answers = create::create(writing, std::slice::from_ref(guest)).await?;
    for answer in answers {
        answer?;
    }
    Ok(())
}

/// The medians of the changes beside so many routers.
async fn point(count: usize) -> anyhow::Result<BTreeMap<&'static str, [Duration; 2]>> {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let (context, ids) = scheduler(directory.path()).await?;
    fill(&context, &ids, count).await?;
    let mut times: BTreeMap<&'static str, Vec<[Duration; 2]>> = BTreeMap::new();
    for round in 0..MEASURED {
        hear(&context, &ids);
        // A router whose own load is the same at every point.
        let number = round % 10;
        let (net, here) = (format!("net{number}"), host(number));
        let guest = instance(&format!("more{round}"), &net, &here)?;
        let watch = Watch::start();
        let mut writing = context.begin().await?;
        make(&mut writing, &guest).await?;
        writing.commit().await?;
        times.entry("create").or_default().push(watch.stop());

        // Where the router is not yet: the host gets an address outside.
        let apart = instance(&format!("apart{round}"), &net, &host(number + 1))?;
        let watch = Watch::start();
        let mut writing = context.begin().await?;
        make(&mut writing, &apart).await?;
        writing.commit().await?;
        times.entry("first_there").or_default().push(watch.stop());

        let name = json!({ "router": format!("router{number}"), "enable_snat": round % 2 == 0 });
        let set = request(name)?;
        let watch = Watch::start();
        let mut writing = context.begin().await?;
        routers::set(&mut writing, &set).await?;
        writing.commit().await?;
        times.entry("router").or_default().push(watch.stop());

        for (guest, on) in [(&guest, &here), (&apart, &host(number + 1))] {
            let watch = Watch::start();
            end(&context, guest.id, ids.get(on).copied().context("a host")?).await?;
            times.entry("delete").or_default().push(watch.stop());
        }
    }
    let medians = times.into_iter().map(|(what, times)| {
        let median = |of: fn(&[Duration; 2]) -> Duration| {
            let mut times: Vec<Duration> = times.iter().map(of).collect();
            times.sort();
            times.get(times.len() / 2).copied().unwrap_or_default()
        };
        (what, [median(|[wall, _]| *wall), median(|[_, cpu]| *cpu)])
    });
    Ok(medians.collect())
}

/// Deletes an instance, and hears from its host that it is gone.
async fn end(context: &Context, instance: InstanceId, host_id: HostId) -> anyhow::Result<()> {
    let mut writing = context.begin().await?;
    let project = Default::default();
    change::change(
        &mut writing,
        &project,
        &instance.to_string(),
        Change::Delete,
    )
    .await?;
    writing.commit().await?;
    let key = berth_common::document::DocumentKey {
        kind: berth_common::document::Kind::Instance,
        id: instance.as_uuid(),
    };
    let told = documents::get(context.store.pool(), host_id, key).await?;
    let report = Report {
        host_id,
        host: "bench".parse()?,
        session: 1,
        sequence: 1,
        resources: vec![ResourceReport {
            key,
            generation: told.context("a tombstone")?.generation,
            status: ConvergeStatus::Gone,
            progress: None,
            fault: None,
            power_state: Some(PowerState::Nostate),
            reboot_nonce: None,
            boot_disk: None,
            running: None,
            ports: None,
            volumes: None,
            observed_at: Utc::now(),
        }],
    };
    Ok(apply::reports(context, &[report]).await?)
}
