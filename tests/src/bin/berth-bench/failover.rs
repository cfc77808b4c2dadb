//! Failover: the scheduler that leads is killed or frozen under load; the time until the other one places a request.
//!
//! Only requests sent after the signal count. The answer to one of them can come from nobody but the other scheduler.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use anyhow::{Context as _, ensure};
use berth_common::bus::RpcClient;
use berth_tests::http::metric;
use clap::ValueEnum;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    load::{self, Bounds, Clients},
    print,
};

/// 1 on the scheduler that leads; 0 or absent on one that stands by.
const LEADER: &str = "berth_scheduler_leader";
const EPOCH: &str = "berth_scheduler_epoch";
/// Load before the signal.
const BEFORE: Duration = Duration::from_secs(5);
/// Pause between two requests that probe for the other scheduler.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// How the leader goes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Mode {
    /// SIGKILL: its connections end with it.
    Kill,
    /// SIGSTOP: its connections stay, and nobody answers on them.
    Freeze,
}

/// A scheduler from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    pid: Pid,
    metrics: SocketAddr,
}

impl FromStr for Process {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (pid, metrics) = text.split_once('@').context("it is PID@ADDRESS")?;
        Ok(Self {
            pid: Pid::from_raw(pid.parse()?),
            metrics: metrics.parse()?,
        })
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How the leader goes.
    pub(crate) mode: Mode,
    /// The schedulers.
    pub(crate) schedulers: Vec<Process>,
    /// Requests under way at once.
    pub(crate) in_flight: usize,
    /// How long the other scheduler is waited for.
    pub(crate) limit: Duration,
}

/// Measures one failover. A frozen scheduler goes on afterwards.
pub(crate) async fn run(url: &str, connections: u16, plan: Plan) -> anyhow::Result<()> {
    let clients = Clients::connect(url, connections).await?;
    let load = Bounds {
        in_flight: plan.in_flight,
        count: u64::MAX,
        time: BEFORE,
    };
    // Sent until the leader goes; their answers are waited for afterwards, whoever gives them.
    let before = clients.place(load);
    let mut before = std::pin::pin!(before);
    let leader = tokio::select! {
        leader = leader_after(&plan, BEFORE.mul_f64(0.8)) => leader?,
        done = &mut before => anyhow::bail!("the load ended before its time: {done:?}"),
    };
    let (signal, mode) = match plan.mode {
        Mode::Kill => (Signal::SIGKILL, "kill"),
        Mode::Freeze => (Signal::SIGSTOP, "freeze"),
    };
    let epoch = metric(leader.metrics, EPOCH).await?.unwrap_or(0.0);
    kill(leader.pid, signal).context("the leader cannot be signalled")?;
    let gone = Instant::now();
    let rpc = clients.rpcs().first().context("no connection")?.clone();
    let probe = probe(&rpc, gone, plan.limit);
    let (found, done) = tokio::join!(probe, before);
    if let Mode::Freeze = plan.mode {
        kill(leader.pid, Signal::SIGCONT).context("the old leader cannot go on")?;
    }
    let done = done?;
    print(&format!(
        "bench failover mode={mode} seconds={} epoch_before={epoch:.0} answered={} unanswered={}",
        found.map_or("never".to_owned(), |took| format!(
            "{:.2}",
            took.as_secs_f64()
        )),
        done.placed + done.refused,
        done.failed,
    ));
    clients.close().await;
    Ok(())
}

/// Who leads, asked after a while.
async fn leader_after(plan: &Plan, pause: Duration) -> anyhow::Result<Process> {
    tokio::time::sleep(pause).await;
    let mut leaders = Vec::new();
    for scheduler in &plan.schedulers {
        // One that stands by may serve nothing yet.
        let leads = metric(scheduler.metrics, LEADER).await.unwrap_or_default();
        if leads == Some(1.0) {
            leaders.push(*scheduler);
        }
    }
    ensure!(
        leaders.len() == 1,
        "{} schedulers say that they lead ({} 1)",
        leaders.len(),
        LEADER
    );
    leaders.pop().context("nobody leads")
}

/// Sends a request every now and then until one is granted; answers when that was.
async fn probe(rpc: &RpcClient, since: Instant, limit: Duration) -> Option<Duration> {
    let deadline = since + limit;
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    let mut probes: JoinSet<bool> = JoinSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return None,
            _ = ticks.tick() => {
                let rpc = rpc.clone();
                probes.spawn(async move {
                    matches!(load::create(&rpc, limit).await, Ok(Ok(_)))
                });
            }
            Some(placed) = probes.join_next() => {
                if placed.unwrap_or(false) {
                    return Some(since.elapsed());
                }
            }
        }
    }
}
