//! `berth-bench`: the client of the benchmarks in `bench/`, whose scripts start what it measures. It prints one line
//! per point, `bench NAME key=value …`, and asserts nothing.
//!
//! It measures from outside, as the tests do: over the bus, `/metrics`, and signals.

mod bare;
mod boot;
mod cpu;
mod domains;
mod durable;
mod failover;
mod load;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Measures berth, together with the scripts in bench/.
#[derive(Debug, Parser)]
#[command(name = "berth-bench")]
struct Args {
    /// The broker and its vhost: amqp://user:password@host:port/vhost. Boot and domains make their own.
    #[arg(long)]
    bus_url: Option<String>,
    /// Connections of this client.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Placements per second, from the request to the confirmed document, beside what the broker does for bare
    /// confirmed publishes of documents of the same size, in turns.
    Durable {
        /// Where the scheduler serves /metrics.
        #[arg(long)]
        metrics: SocketAddr,
        /// Requests, or publishes, under way at once.
        #[arg(long, default_value_t = 256)]
        in_flight: usize,
        /// How often the two take turns.
        #[arg(long, default_value_t = 3)]
        turns: u32,
        /// How long each turn of each takes, in seconds.
        #[arg(long, default_value_t = 6)]
        seconds: u64,
        /// Placements of each turn at most.
        #[arg(long, default_value_t = 15_000)]
        count: u64,
        /// A process whose processor time is told, as NAME=PID; may be given several times.
        #[arg(long = "process", num_args = 1)]
        processes: Vec<cpu::Process>,
    },
    /// Places instances and says how that went.
    Load {
        /// Requests under way at once.
        #[arg(long, default_value_t = 1)]
        in_flight: usize,
        /// How many at most.
        #[arg(long)]
        count: u64,
        /// For how long at most, in seconds.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// How long until a guest runs, from its request, beside the same by hand, in turns.
    Boot {
        /// How often each is done.
        #[arg(long, default_value_t = 15)]
        pairs: usize,
    },
    /// What the agent takes of its host while so many guests run there.
    Domains {
        /// How many guests.
        #[arg(long, default_value_t = 50)]
        count: usize,
        /// For how long it is watched, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Ends or freezes the scheduler that leads, under load: how long until the other one places a request.
    Failover {
        /// How it goes.
        #[arg(long, value_enum)]
        mode: failover::Mode,
        /// A scheduler, as PID@ADDRESS of its /metrics; given twice.
        #[arg(long = "scheduler", required = true, num_args = 1)]
        schedulers: Vec<failover::Process>,
        /// Requests under way at once.
        #[arg(long, default_value_t = 16)]
        in_flight: usize,
        /// How long to wait for the other scheduler, in seconds.
        #[arg(long, default_value_t = 90)]
        limit: u64,
    },
}

#[expect(clippy::print_stderr, reason = "the last word of a program")]
fn main() -> ExitCode {
    let args = Args::parse();
    // A cloud of the tests brings a runtime of its own.
    let done = match &args.what {
        What::Boot { pairs } => boot::run(*pairs),
        What::Domains { count, seconds } => domains::run(*count, Duration::from_secs(*seconds)),
        What::Durable { .. } | What::Load { .. } | What::Failover { .. } => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: &Args) -> anyhow::Result<()> {
    let bus_url = args.bus_url.as_deref().context("--bus-url is missing")?;
    match &args.what {
        What::Boot { .. } | What::Domains { .. } => {
            anyhow::bail!("boot and domains bring a runtime of their own")
        }
        What::Durable {
            metrics,
            in_flight,
            turns,
            seconds,
            count,
            processes,
        } => {
            let plan = durable::Plan {
                metrics: *metrics,
                in_flight: *in_flight,
                turns: *turns,
                turn: Duration::from_secs(*seconds),
                count: *count,
            };
            let mut processes = processes.clone();
            processes.push(cpu::Process::this("client")?);
            durable::run(bus_url, args.connections, plan, &processes).await
        }
        What::Load {
            in_flight,
            count,
            seconds,
        } => {
            let clients = load::Clients::connect(bus_url, args.connections).await?;
            let bounds = load::Bounds {
                in_flight: *in_flight,
                count: *count,
                time: Duration::from_secs(*seconds),
            };
            let done = clients.place(bounds).await?;
            print(&format!(
                "bench load placed={} refused={} failed={} in_flight={in_flight} seconds={:.2} placements_per_s={:.2}",
                done.placed,
                done.refused,
                done.failed,
                done.took.as_secs_f64(),
                per_second(done.placed, done.took),
            ));
            anyhow::ensure!(
                done.placed == *count,
                "only {} of {count} were placed",
                done.placed
            );
            clients.close().await;
            Ok(())
        }
        What::Failover {
            mode,
            schedulers,
            in_flight,
            limit,
        } => {
            let plan = failover::Plan {
                mode: *mode,
                schedulers: schedulers.clone(),
                in_flight: *in_flight,
                limit: Duration::from_secs(*limit),
            };
            failover::run(bus_url, args.connections, plan).await
        }
    }
}

/// One point.
#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn print(line: &str) {
    println!("{line}");
}

/// A rate.
fn per_second(count: u64, time: Duration) -> f64 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    f64::from(count) / time.as_secs_f64().max(1e-9)
}
