//! Durable placements beside bare confirmed publishes, in turns.
//!
//! A placement counts when its request was answered (the claim is committed then) and its document was confirmed by
//! the broker. The scheduler counts the latter in `berth_scheduler_documents_published_total` after the confirm; with
//! a `dispatch.republish_seconds` longer than a turn, each document is counted once. The time of a turn ends when both
//! the last answer and the last confirm are there.
//!
//! Everything shares the processors of one machine, so the processor time of each process is told as well.

use std::{net::SocketAddr, time::Duration};

use berth_tests::http::metric;
use tokio::time::Instant;

use crate::{
    bare::Bare,
    cpu::{Meter, Process},
    load::{self, Bounds, Clients},
    per_second, print,
};

const PUBLISHED: &str = "berth_scheduler_documents_published_total{kind=\"instance\"}";
/// How long the last documents of a turn may take.
const SETTLE: Duration = Duration::from_secs(30);
/// How often it is asked for them.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Requests that warm everything up, and are not counted.
const WARM_UP: u64 = 200;
/// No further turn begins after this time: a slow scheduler answers what is in flight long after a turn.
const LIMIT: Duration = Duration::from_secs(60);
/// A turn of bare publishes takes this part of a turn of placements: it is steadier.
const BARE_PART: u32 = 2;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Where the scheduler serves its figures.
    pub(crate) metrics: SocketAddr,
    /// Under way at once.
    pub(crate) in_flight: usize,
    /// How often the two take turns.
    pub(crate) turns: u32,
    /// How long one takes.
    pub(crate) turn: Duration,
    /// Placements of a turn at most.
    pub(crate) count: u64,
}

/// Counts and times of one kind, over all turns.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    time: Duration,
}

impl Sum {
    fn add(&mut self, count: u64, time: Duration) {
        self.count += count;
        self.time += time;
    }

    fn rate(self) -> f64 {
        per_second(self.count, self.time)
    }
}

/// Measures, and prints a line for each turn and one for all.
pub(crate) async fn run(
    url: &str,
    connections: u16,
    plan: Plan,
    processes: &[Process],
) -> anyhow::Result<()> {
    let clients = Clients::connect(url, connections).await?;
    let bare = Bare::connect(url, 1).await?;
    let body = load::document(&load::request()?)?;
    let warm = Bounds {
        in_flight: 16,
        count: WARM_UP,
        time: plan.turn,
    };
    placements(&clients, plan, warm).await?;
    let (mut ours, mut theirs) = (Sum::default(), Sum::default());
    let (mut our_time, mut their_time) = (Meter::new(processes), Meter::new(processes));
    let mut unplaced = 0;
    let started = Instant::now();
    for turn in 1..=plan.turns {
        if started.elapsed() > LIMIT {
            break;
        }
        let part = plan.turn / BARE_PART;
        let begin = their_time.look()?;
        let (confirmed, took) = bare.publish(&body, plan.in_flight, part).await?;
        theirs.add(confirmed, took);
        their_time.add(&begin, confirmed)?;
        let broker = per_second(confirmed, took);
        let bounds = Bounds {
            in_flight: plan.in_flight,
            count: plan.count,
            time: plan.turn,
        };
        let begin = our_time.look()?;
        let (done, took) = placements(&clients, plan, bounds).await?;
        ours.add(done.placed, took);
        our_time.add(&begin, done.placed)?;
        unplaced += done.refused + done.failed;
        let placements = per_second(done.placed, took);
        print(&format!(
            "bench durable-turn turn={turn} placements_per_s={placements:.1} answers_per_s={:.1} broker_per_s={broker:.0} ratio={:.4}",
            per_second(done.placed, done.took),
            placements / broker,
        ));
    }
    print(&format!(
        "bench durable placements_per_s={:.1} broker_per_s={:.0} ratio={:.4} in_flight={} document_bytes={} placed={} unplaced={unplaced}",
        ours.rate(),
        theirs.rate(),
        ours.rate() / theirs.rate(),
        plan.in_flight,
        body.len(),
        ours.count,
    ));
    for ((name, placement), (_, publish)) in our_time.each().zip(their_time.each()) {
        print(&format!(
            "bench durable-cpu process={name} us_per_placement={placement:.0} us_per_publish={publish:.0} in_flight={}",
            plan.in_flight,
        ));
    }
    bare.close().await?;
    clients.close().await;
    Ok(())
}

/// One turn of placements; answers how it went, and the time until the last document was confirmed.
async fn placements(
    clients: &Clients,
    plan: Plan,
    bounds: Bounds,
) -> anyhow::Result<(load::Done, Duration)> {
    let published = async || anyhow::Ok(metric(plan.metrics, PUBLISHED).await?.unwrap_or(0.0));
    let before = published().await?;
    let started = Instant::now();
    let done = clients.place(bounds).await?;
    let wanted = before + f64::from(u32::try_from(done.placed)?);
    let mut took = started.elapsed();
    let limit = took + SETTLE;
    while published().await? < wanted {
        tokio::time::sleep(LOOK_EVERY).await;
        took = started.elapsed();
        anyhow::ensure!(took < limit, "the last documents were never published");
    }
    Ok((done, took))
}
