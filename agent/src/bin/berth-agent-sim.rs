//! `berth-agent-sim`: many agents in one process, on hosts that exist only in memory, for benchmarks and tests. It is
//! not part of an installation.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use berth_agent::{
    process,
    sim::{self, SimOptions},
};
use berth_common::{
    bus::{Bus, RabbitBus, RabbitConfig},
    message::view::Resources,
    telemetry::logging::{self, LogConfig},
    units::{DiskGb, MemoryMb, Vcpus},
};
use clap::Parser;
use tokio_util::sync::CancellationToken;

/// Plays many hypervisors on one broker. SIGTERM ends it.
#[derive(Debug, Parser)]
#[command(name = "berth-agent-sim", version)]
struct Args {
    /// The broker and its vhost: amqp://user:password@host:port/vhost.
    #[arg(long, env = "BERTH_BUS__URL", hide_env_values = true)]
    bus_url: String,
    /// How many hosts.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Hosts are named PREFIX-0001 and so on, and their ids follow from their names.
    #[arg(long, default_value = "sim")]
    name_prefix: String,
    /// Processors of each host.
    #[arg(long, default_value = "16")]
    vcpus: Vcpus,
    /// Memory of each host in MiB.
    #[arg(long, default_value = "65536")]
    memory_mb: MemoryMb,
    /// Disk of each host in GiB.
    #[arg(long, default_value = "1000")]
    disk_gb: DiskGb,
    /// The pause between two heartbeats of a host, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    heartbeat_seconds: u64,
    /// Where the journals are, written and synced as real ones; they stay. Without it they are in memory (/dev/shm,
    /// else the directory for temporary files), and removed at the end.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Connections to the broker that all hosts share in turn. A connection is one thread here and one process of the
    /// broker, and has a channel for each host (RabbitMQ allows 2047).
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// So many of the hosts, the first ones, have a full disk: every build there fails.
    #[arg(long, default_value_t = 0)]
    broken: usize,
    /// The probability that a step fails, from 0 to 1, on every host.
    #[arg(long, default_value_t = 0.0)]
    fault_rate: f64,
    /// What is logged to standard error.
    #[arg(long, default_value = "warn,lapin=error")]
    log: String,
}

fn main() -> ExitCode {
    process::exit("berth-agent-sim", start(Args::parse()))
}

fn start(args: Args) -> anyhow::Result<()> {
    logging::init(&LogConfig {
        filter: args.log.clone(),
        ..LogConfig::default()
    })?;
    process::run(async |cancel| run(args, cancel).await)
}

async fn run(args: Args, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut buses: Vec<Arc<dyn Bus>> = Vec::new();
    for number in 1..=args.connections {
        let name = format!("berth-agent-sim {} {number}", args.name_prefix);
        let config = RabbitConfig::new(args.bus_url.clone(), name);
        buses.push(Arc::new(RabbitBus::start(config)?));
    }
    let options = SimOptions {
        count: args.count,
        name_prefix: args.name_prefix,
        size: Resources {
            vcpus: args.vcpus,
            memory_mb: args.memory_mb,
            disk_gb: args.disk_gb,
        },
        heartbeat_every: Duration::from_secs(args.heartbeat_seconds),
        broken: args.broken,
        fault_rate: args.fault_rate,
        state_dir: args.state_dir,
        ..SimOptions::default()
    };
    let outcome = sim::run(options, &buses, cancel).await;
    for bus in buses {
        bus.close().await;
    }
    outcome
}
